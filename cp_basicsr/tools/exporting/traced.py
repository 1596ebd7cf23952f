"""Traced networks of any height and width: torch.export programs and ONNX files, checked before they are kept."""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cp_basicsr.data.files import replacing

from .errors import ExportError, needed

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch.export import ExportedProgram

INPUT = 'lq'
TOLERANCE = 1e-4  # of the largest output, or of 1 where that is smaller: images lie in [0, 1]
LEAST_SIDE = 8  # lq pixels: the smallest side that is traced and checked


@dataclass(frozen=True)
class Traced:
    """A network and its trace, which takes one image ``[1, channels, height, width]`` of any height and width.

    Attributes:
        net: the network in eval mode.
        program: what ``torch.export`` made of it.
        channels: of the input.
        unit: heights and widths that are tried are multiples of this number of pixels.
    """

    net: nn.Module
    program: ExportedProgram
    channels: int
    unit: int

    @classmethod
    def of(cls, net: nn.Module, channels: int, multiple: int = 1) -> Traced:
        """Trace a network whose inputs are multiples of ``multiple`` pixels.

        Raises:
            ExportError: its code depends on the size.
        """
        unit = multiple * -(-LEAST_SIDE // multiple)
        example, size = torch.rand(1, channels, 4 * unit, 6 * unit), torch.export.Dim.AUTO
        try:
            with _quiet(), torch.no_grad():
                program = torch.export.export(net, (example,), dynamic_shapes=({2: size, 3: size},), strict=False)
        except Exception as error:  # the network's own code, run on symbols, may raise anything
            reason = str(error).strip().partition('\n')[0]
            raise ExportError(
                f'{type(net).__name__} cannot be traced for every height and width ({type(error).__name__}: {reason}). '
                'Export it as pth or safetensors.'
            ) from error
        sides = next(node for node in program.graph.nodes if node.op == 'placeholder' and _is_input(program, node))
        if not all(isinstance(side, torch.SymInt) for side in sides.meta['val'].shape[2:]):
            raise ExportError(
                f'{type(net).__name__} would take {4 * unit} x {6 * unit} pixels only once it is traced: its code '
                'turns sizes into numbers. Export it as pth or safetensors.'
            )
        return cls(net, program, channels, unit)

    def write_pt2(self, path: Path, metadata: Mapping[str, str]) -> float:
        """Save the program, and keep the file if it computes what the network does.

        Returns:
            The largest difference at two sizes.

        Raises:
            ExportError: it computes something else.
        """
        files = {f'{key}.json': value for key, value in metadata.items()}
        with replacing(path, path.suffix) as temporary, _quiet():
            torch.export.save(self.program, temporary, extra_files=files)
            return self._check(torch.export.load(temporary).module(), path)

    def write_onnx(self, path: Path, output: str, metadata: Mapping[str, str]) -> float:
        """Write an ONNX file, and keep it if ONNX Runtime computes what the network does.

        Args:
            path: the file.
            output: name of the output; the input is called ``lq``.
            metadata: of the file.

        Returns:
            The largest difference at two sizes.

        Raises:
            ExportError: it computes something else, or a package is missing.
        """
        onnx, runtime = check_onnx()
        with _quiet():
            names = {'input_names': [INPUT], 'output_names': [output]}
            model = torch.onnx.export(self.program, dynamo=True, verbose=False, **names).model_proto
        _name_sizes(model)
        onnx.helper.set_model_props(model, dict(metadata))
        with replacing(path, path.suffix) as temporary:
            onnx.save(model, temporary)
            session = runtime.InferenceSession(temporary, providers=['CPUExecutionProvider'])
            return self._check(lambda x: torch.from_numpy(session.run([output], {INPUT: x.numpy()})[0]), path)

    def _check(self, run: Callable[[Tensor], Tensor], path: Path) -> float:
        worst = 0.0
        # Neither size was traced.
        for height, width in ((2 * self.unit, 3 * self.unit), (5 * self.unit, 2 * self.unit)):
            x = torch.rand(1, self.channels, height, width, generator=torch.Generator().manual_seed(0))
            try:
                with torch.no_grad():
                    expected, found = self.net(x), run(x)
            except Exception as error:  # the network's own code, or ONNX Runtime's, at a size that it does not take
                reason = ' '.join(str(error).split())
                raise ExportError(
                    f'{path} could not be checked on {height} x {width} pixels ({type(error).__name__}: {reason}). It '
                    'was not written. Export it as pth or safetensors.'
                ) from error
            difference = math.inf
            if found.shape == expected.shape:
                difference = float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))
            if not difference <= TOLERANCE:
                raise ExportError(
                    f'{path} would not compute what PyTorch does: on {height} x {width} pixels it gives '
                    f'{tuple(found.shape)} instead of {tuple(expected.shape)}, off by {difference:.1e} (allowed: '
                    f'{TOLERANCE:g}). It was not written.'
                )
            worst = max(worst, difference)
        return worst


def check_onnx() -> tuple:
    """The modules onnx and onnxruntime.

    Raises:
        ExportError: a package that writing or checking takes is missing.
    """
    needed('onnxscript', 'ONNX export')
    return needed('onnx', 'ONNX export'), needed('onnxruntime', 'ONNX export, which checks each file,')


def _is_input(program: ExportedProgram, node: torch.fx.Node) -> bool:
    return node.name in program.graph_signature.user_inputs


def _name_sizes(model: ModelProto) -> None:
    """Call the free sizes ``height`` and ``width``, in place of names such as ``s53``."""
    sides = model.graph.input[0].type.tensor_type.shape.dim[2:]
    names = {side.dim_param: name for side, name in zip(sides, ('height', 'width'), strict=True)}
    pattern = re.compile('|'.join(rf'\b{re.escape(name)}\b' for name in names))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param:
                side.dim_param = pattern.sub(lambda found: names[found[0]], side.dim_param)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notes about their own insides."""
    loggers = [logging.getLogger(name) for name in ('torch.onnx', 'torch.export', 'torch.fx', 'onnxscript', 'onnx_ir')]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
