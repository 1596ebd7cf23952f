from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest


@pytest.fixture
def write_photographs(tmp_path: Path) -> Callable[..., Path]:
    """Write a folder of smooth random colour PNG images, sizes (height, width) by name, and return it."""

    def write(folder: str, **sizes: tuple[int, int]) -> Path:
        target = tmp_path / folder
        target.mkdir(parents=True, exist_ok=True)
        for seed, (name, (height, width)) in enumerate(sizes.items()):
            coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
            img = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(target / f'{name}.png'), img)
        return target

    return write
