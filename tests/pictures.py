"""Small pictures in files, read back by decoders apart from the package's, and checkpoints to restore them with."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import cp_basicsr.archs  # noqa: F401  (BasicSR, mended where it does not import by itself)

# isort: split
import cv2
import numpy as np
import tifffile
import torch
from basicsr.archs import build_network
from PIL import Image
from training import SRVGG, network_options

GRAY_X1 = SRVGG | {'num_in_ch': 1, 'num_out_ch': 1, 'upscale': 1}
ORIENTATION = 274


def scene(height: int = 40, width: int = 56, channels: int = 3, deep: bool = False) -> np.ndarray:
    """A picture, flat in one half and busy in the other: ``[H, W]`` or ``[H, W, channels]``, uint8 or uint16."""
    generator = np.random.default_rng(height * width * channels)
    coarse = generator.integers(20, 236, (-(-height // 4), -(-width // 4), channels)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)
    smooth[:, : width // 2] = smooth[:, : width // 2] / 16 + 100
    pixels = smooth.clip(0, 255) * (257 if deep else 1)
    pixels = pixels.round().astype(np.uint16 if deep else np.uint8)
    return pixels[..., 0] if channels == 1 else pixels


def checkpoint(path: Path, base: dict[str, Any] = SRVGG, **sparsity: Any) -> Any:
    """Write the checkpoint of a small network with random weights; returns a copy of the network."""
    torch.manual_seed(0)
    net = build_network(network_options(base, **sparsity)).eval()
    torch.save({'params': net.state_dict()}, path)
    return copy.deepcopy(net)


@torch.no_grad()
def at_level(net: Any, pixels: np.ndarray, level: int) -> np.ndarray:
    """What the plain network of a level makes of a picture without alpha, in BasicSR's way: float64, 0 to 1.

    Gray passes a colour network as three equal channels, of whose results the luma (BT.601) is taken.
    """
    x = torch.from_numpy(pixels.astype(np.float32) / np.iinfo(pixels.dtype).max)
    if pixels.ndim == 3:
        return net.bake(level)(x.permute(2, 0, 1)[None])[0].permute(1, 2, 0).clamp(0, 1).double().numpy()
    y = net.bake(level)(x.expand(1, net.in_channels, -1, -1))[0].double()
    y = y[0] if len(y) == 1 else 0.299 * y[0] + 0.587 * y[1] + 0.114 * y[2]
    return y.clamp(0, 1).numpy()


def same_pixels(found: np.ndarray, expected: np.ndarray, by: float = 1) -> None:
    """``found`` has the values of ``expected`` (0 to 1) at its own bit depth, but for ``by`` steps of rounding."""
    largest = np.iinfo(found.dtype).max
    assert found.shape == expected.shape
    assert np.abs(found.astype(np.float64) - expected * largest).max() <= by


def write_deep(path: Path, pixels: np.ndarray, orientation: int = 1) -> None:
    """A 16-bit PNG or TIFF."""
    if path.suffix == '.png':
        order = {2: None, 3: cv2.COLOR_RGB2BGR}[pixels.ndim]
        content = cv2.imencode('.png', pixels if order is None else cv2.cvtColor(pixels, order))[1].tobytes()
        path.write_bytes(content)
    else:
        tags = [(ORIENTATION, 3, 1, orientation, True)]
        photometric = 'rgb' if pixels.ndim == 3 else 'minisblack'
        tifffile.imwrite(path, pixels, photometric=photometric, extratags=tags, metadata=None)


def write(path: Path, pixels: np.ndarray, orientation: int | None = None, **options: Any) -> None:
    """A picture of the format that the extension names, of 8 or 16 bit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels.dtype == np.uint16:
        return write_deep(path, pixels, orientation or 1)
    if orientation is not None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options['exif'] = exif
    lossless = {'.webp': {'lossless': True, 'exact': True}, '.jpg': {'quality': 100, 'subsampling': 0}}
    file = io.BytesIO()
    form = Image.registered_extensions()[path.suffix.lower()]
    Image.fromarray(pixels).save(file, form, **lossless.get(path.suffix.lower(), {}), **options)
    path.write_bytes(file.getvalue())


def read(path: Path) -> np.ndarray:
    """What a file holds, uint8 or uint16, RGB."""
    if path.suffix.lower() in ('.tif', '.tiff'):
        return tifffile.imread(path)
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        image.load()
        eight = np.asarray(image)
    deep = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if deep.dtype == np.uint8:
        return eight
    return (
        deep if deep.ndim == 2 else cv2.cvtColor(deep, cv2.COLOR_BGR2RGB if deep.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    )
