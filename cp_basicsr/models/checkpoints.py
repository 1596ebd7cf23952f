"""Checkpoint files: read with clear errors, written under a temporary name and renamed."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cp_basicsr.archs.state import CheckpointError
from cp_basicsr.data.files import replacing


def read_state_dict(path: str | Path, param_key: str | None = 'params') -> dict[str, Tensor]:
    """Network weights from a .pth file.

    Args:
        path: a file with the weights at its root, or under 'params' and 'params_ema' as BasicSR writes them.
        param_key: the key to take; where it is missing, 'params', 'params_ema' and then the root are.

    Raises:
        CheckpointError: the file is missing, truncated or holds no weights.
    """
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f'No checkpoint {str(path)!r}; check path.pretrain_network_g.') from None
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, ValueError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f'{path} is not a readable checkpoint ({first_line}). It may be truncated: copy or train it again.'
        ) from error
    for key in (param_key, 'params', 'params_ema'):
        if key is not None and isinstance(content, Mapping) and key in content:
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(
            f"{path} holds no network weights under {param_key!r}, 'params', 'params_ema' or at its root."
        )
    return {key.removeprefix('module.'): value for key, value in content.items()}


def write_atomically(content: Any, path: str | Path) -> None:
    """``torch.save`` so that ``path`` is either the old whole file or the new whole file."""
    with replacing(Path(path)) as temporary:
        torch.save(content, temporary)
