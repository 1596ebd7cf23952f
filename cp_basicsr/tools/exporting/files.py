"""Writing the files of a level: plain checkpoints and traced networks, each whole or not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from cp_basicsr.data.files import replacing
from cp_basicsr.models.checkpoints import write_atomically

from .description import KEY, Description


def write_pth(path: Path, plain: nn.Module, description: Description) -> None:
    """A checkpoint as BasicSR writes them: native names under ``params``, the description beside them."""
    write_atomically({'params': _values(plain), KEY: description.as_text()}, path)


def write_safetensors(path: Path, plain: nn.Module, description: Description) -> None:
    """Native names at the root, the description in the file's metadata."""
    with replacing(path) as temporary:
        save_file(_values(plain), temporary, {KEY: description.as_text()})


def _values(plain: nn.Module) -> dict[str, Tensor]:
    # Copies, because safetensors takes no tensor twice and a layer may stand at two places.
    return {name: value.detach().cpu().contiguous().clone() for name, value in plain.state_dict().items()}


Writer = Callable[[Path, nn.Module, Description], None]
CHECKPOINT_WRITERS: dict[str, Writer] = {'pth': write_pth, 'safetensors': write_safetensors}
