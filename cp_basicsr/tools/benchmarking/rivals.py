"""The plain dense network in the runtimes that people use on a CPU, each set up at its best.

All use ``torch.get_num_threads()`` threads. Runtimes come with ``pip install 'cp-basicsr[benchmark]'``.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .timing import seconds_of

Run = Callable[[], Tensor]


class RivalUnavailableError(RuntimeError):
    """A rival cannot run here; the message names it and says why."""


@dataclass(frozen=True)
class Rival:
    """One runtime.

    Attributes:
        key: name on the command line.
        name: name in tables.
        precision: 'fp32' or 'bf16'.
        build: gives what runs a network (eval mode, CPU) on one input.
    """

    key: str
    name: str
    precision: str
    build: Callable[[nn.Module, Tensor], Run]

    def prepare(self, net: nn.Module, x: Tensor) -> Run:
        """What runs ``net`` on ``x``.

        Raises:
            RivalUnavailableError: whatever went wrong in other people's code, which may raise anything.
        """
        try:
            run = self.build(net, x)
            run()
        except ImportError as error:
            raise RivalUnavailableError(
                f"{self.name}: {error}. `pip install 'cp-basicsr[benchmark]'` installs it."
            ) from error
        except Exception as error:  # compilers, exporters and runtimes of others; the rest are timed all the same
            reason = str(error).strip().splitlines() or ['']
            raise RivalUnavailableError(f'{self.name}: {type(error).__name__}: {reason[0][:200]}') from error
        return run


def _eager(net: nn.Module, x: Tensor, layout: torch.memory_format) -> Run:
    net, x = copy.deepcopy(net).to(memory_format=layout), x.contiguous(memory_format=layout)
    return lambda: net(x)


def _compiled(net: nn.Module, x: Tensor) -> Run:
    """Inductor with frozen weights, which it packs for oneDNN once; in the faster of the two layouts."""
    runs = []
    for layout in (torch.contiguous_format, torch.channels_last):
        plain, sample = copy.deepcopy(net).to(memory_format=layout), x.contiguous(memory_format=layout)
        compiled = torch.compile(plain, dynamic=False, options={'freezing': True})
        runs.append(partial(compiled, sample))
    return _fastest(runs)


def _onnxruntime(net: nn.Module, x: Tensor) -> Run:
    runtime = import_module('onnxruntime')
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    with _exported(net, x) as path:
        session = runtime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    inputs = {session.get_inputs()[0].name: x.numpy()}
    return lambda: torch.from_numpy(session.run(None, inputs)[0])


def _openvino(net: nn.Module, x: Tensor, precision: str) -> Run:
    """With input and output in the faster of two layouts: inside it is NHWC, and converting 64 channels takes longer
    than convolving them."""
    openvino = import_module('openvino')
    core = openvino.Core()
    settings = {
        'PERFORMANCE_HINT': 'LATENCY',
        'INFERENCE_NUM_THREADS': torch.get_num_threads(),
        'INFERENCE_PRECISION_HINT': precision,
    }
    with _exported(net, x) as path:
        models = [core.read_model(str(path)), _with_last_channels(core.read_model(str(path)))]
    runs = []
    for model, sample in zip(models, (x, x.permute(0, 2, 3, 1).contiguous()), strict=True):
        compiled = core.compile_model(model, 'CPU', settings)
        used = compiled.get_property('INFERENCE_PRECISION_HINT').to_string()
        if used != precision:
            raise RuntimeError(f'it runs {used} where {precision} was asked for')
        runs.append(partial(_infer, compiled.create_infer_request(), [sample.numpy()]))
    return _fastest([runs[0], lambda: runs[1]().permute(0, 3, 1, 2)])


def _infer(request: Any, inputs: list[Any]) -> Tensor:
    return torch.from_numpy(request.infer(inputs, share_inputs=True, share_outputs=True)[0])


def _with_last_channels(model: Any) -> Any:
    """The model with channels as the last axis of its input and output."""
    preprocess = import_module('openvino.preprocess')
    layout = import_module('openvino').Layout
    processor = preprocess.PrePostProcessor(model)
    for end in (processor.input(), processor.output()):
        end.model().set_layout(layout('NCHW'))
        end.tensor().set_layout(layout('NHWC'))
    return processor.build()


def _fastest(runs: list[Run]) -> Run:
    for run in runs:
        run()
    return min(runs, key=lambda run: min(seconds_of(run) for _ in range(3)))


@contextmanager
def _exported(net: nn.Module, x: Tensor) -> Any:
    """Path of the network as ONNX, for inputs shaped like ``x``; gone after the block."""
    import_module('onnx')
    import_module('onnxscript')
    with tempfile.TemporaryDirectory() as folder, _silence():
        path = Path(folder) / 'net.onnx'
        torch.onnx.export(copy.deepcopy(net), (x.clone(),), path, dynamo=True, verbose=False)
        yield path


@contextmanager
def _silence() -> Any:
    """The exporter warns at length about operators that these networks do not use."""
    logger = logging.getLogger('torch.onnx')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)


RIVALS = (
    Rival('nchw', 'PyTorch eager', 'fp32', partial(_eager, layout=torch.contiguous_format)),
    Rival('channels_last', 'PyTorch eager, channels_last', 'fp32', partial(_eager, layout=torch.channels_last)),
    Rival('compile', 'torch.compile', 'fp32', _compiled),
    Rival('onnxruntime', 'ONNX Runtime', 'fp32', _onnxruntime),
    Rival('openvino', 'OpenVINO f32', 'fp32', partial(_openvino, precision='f32')),
    Rival('openvino_bf16', 'OpenVINO bf16 (its default)', 'bf16', partial(_openvino, precision='bf16')),
)
