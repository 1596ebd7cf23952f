"""The weights that an exported file computes with, by layer, as they lie in it."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cp_basicsr.archs.adapters import dense_weight
from cp_basicsr.archs.building import build_base
from cp_basicsr.archs.state import CheckpointError
from cp_basicsr.models.checkpoints import read_state_dict
from cp_basicsr.options import OptionError

from .description import KEY, Description
from .errors import ExportError, needed

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

LAYERS_OF_ONNX = ('Conv', 'Gemm', 'MatMul')
SCOPES = 'pkg.torch.onnx.name_scopes'  # where PyTorch's exporter notes the modules that a node comes from


@dataclass(frozen=True)
class ExportedWeights:
    """What was found in a file.

    Attributes:
        description: of the level it holds; None: the file says nothing about itself.
        layers: weight ``[out, in, *kernel]`` of each layer.
    """

    description: Description | None
    layers: dict[str, Tensor]


def read_weights(path: Path) -> ExportedWeights:
    """Read a .pth, .safetensors, .pt2 or .onnx file.

    Raises:
        ExportError: it cannot be read, or does not hold the network that it describes.
    """
    readers = {'.pth': _read_pth, '.safetensors': _read_safetensors, '.pt2': _read_pt2, '.onnx': _read_onnx}
    if path.suffix not in readers:
        raise ExportError(f'{path}: the ending {path.suffix!r} is none of {", ".join(readers)}.')
    if not path.is_file():
        raise ExportError(f'{path}: no such file (looked for it from {Path.cwd()}).')
    return readers[path.suffix](path)


def _read_pth(path: Path) -> ExportedWeights:
    try:
        values = read_state_dict(path)
        text = torch.load(path, map_location='cpu', weights_only=True).get(KEY)
    except (CheckpointError, pickle.UnpicklingError) as error:
        raise ExportError(f'{path}: {error}') from error
    return _from_values(path, values, {} if text is None else {KEY: text})


def _read_safetensors(path: Path) -> ExportedWeights:
    try:
        with safe_open(path, framework='pt') as file:
            metadata, values = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ExportError(f'{path} is no readable safetensors file ({error}). Export it again.') from error
    return _from_values(path, values, metadata)


def _read_pt2(path: Path) -> ExportedWeights:
    files = {f'{KEY}.json': ''}
    try:
        program = torch.export.load(path, extra_files=files)
    except Exception as error:  # whatever the archive's reader raises
        raise ExportError(f'{path} is no readable torch.export program ({error}). Export it again.') from error
    text = files[f'{KEY}.json']
    return _from_values(path, program.state_dict, {KEY: text} if text else {})


def _from_values(path: Path, values: Mapping[str, Tensor], metadata: Mapping[str, str]) -> ExportedWeights:
    description = Description.in_metadata(metadata, str(path))
    if description is None:
        named = {key.removesuffix('.weight'): value for key, value in values.items() if key.endswith('.weight')}
        return ExportedWeights(None, {name: value for name, value in named.items() if value.dim() > 1})
    try:
        plain = build_base(description.base)
        plain.load_state_dict(values, strict=True)
    except (OptionError, RuntimeError, KeyError) as error:
        reason = ' '.join(str(error).split())
        raise ExportError(
            f'{path} does not hold the {description.base.get("type")} that it describes: {reason}'
        ) from error
    layers = (*description.pruned, *description.dense)
    found = {name: dense_weight(plain.get_submodule(name)) for name in layers}
    return ExportedWeights(description, {name: weight for name, weight in found.items() if weight is not None})


def _read_onnx(path: Path) -> ExportedWeights:
    onnx = needed('onnx', f'Reading {path.name}')
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's own exceptions have no common class
        raise ExportError(f'{path} is no readable ONNX file ({error}). Export it again.') from error
    description = Description.in_metadata({entry.key: entry.value for entry in model.metadata_props}, str(path))
    wanted = None if description is None else description.pruned.keys() | description.dense.keys()
    constants = _constants(model.graph, onnx)
    layers: dict[str, Tensor] = {}
    for node in model.graph.node:
        if node.op_type not in LAYERS_OF_ONNX:
            continue
        name = _layer_of(node)
        if wanted is not None and name not in wanted:
            continue
        weight = constants.get(node.input[1])
        if weight is None and wanted is not None:
            weight = _evaluated(model, node.input[1])
        if weight is not None:
            layers[name] = _outputs_first(torch.tensor(weight), node)
    return ExportedWeights(description, layers)


def _constants(graph: GraphProto, onnx: Any) -> dict[str, Any]:
    values = {value.name: value for value in graph.initializer}
    return {name: onnx.numpy_helper.to_array(value) for name, value in values.items()}


def _layer_of(node: NodeProto) -> str:
    """The module that a node stands for; in files of other exporters the name of its weight."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), None)
    return ast.literal_eval(scopes)[-2] if scopes else node.input[1].removesuffix('.weight')


def _evaluated(model: ModelProto, name: str) -> Any:
    """A value that is computed from constants alone (merged branches, a transposed weight)."""
    from onnx.utils import Extractor

    runtime = needed('onnxruntime', 'Reading ONNX files whose weights are computed')
    part = Extractor(model).extract_model([], [name])
    session = runtime.InferenceSession(part.SerializeToString(), providers=['CPUExecutionProvider'])
    return session.run([name], {})[0]


def _outputs_first(weight: Tensor, node: NodeProto) -> Tensor:
    """``[out, in, *kernel]``: MatMul multiplies by ``[in, out]``, and Gemm too unless it is told to transpose."""
    if node.op_type == 'Conv' or any(entry.name == 'transB' and entry.i for entry in node.attribute):
        return weight
    return weight.T
