"""A network from its checkpoint alone: the file describes its architecture, levels, classifier and calibration."""

from __future__ import annotations

from pathlib import Path

from cp_basicsr.archs.class_pruning_arch import ClassPruningNet
from cp_basicsr.archs.state import CheckpointError, described_options, read_description
from cp_basicsr.models.checkpoints import read_state_dict
from cp_basicsr.options import nearest

SHIPPED = Path(__file__).parent / 'checkpoints'


def shipped_checkpoints() -> dict[str, Path]:
    """The checkpoints that come with this installation, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob('*.pth'))}


def find_checkpoint(source: str | Path) -> Path:
    """The file meant by a path or by the name of a shipped checkpoint.

    Raises:
        CheckpointError: neither is there; the message lists the names.
    """
    path, shipped = Path(source).expanduser(), shipped_checkpoints()
    if path.is_file():
        return path
    if str(source) in shipped:
        return shipped[str(source)]
    names = f'Shipped: {", ".join(shipped)}.' if shipped else 'This installation ships none.'
    raise CheckpointError(
        f'{str(source)!r} is neither a file (looked for it from {Path.cwd()}) nor the name of a shipped checkpoint.'
        f'{nearest(str(source), shipped)} {names}'
    )


def load_network(source: str | Path, param_key: str = 'params_ema') -> ClassPruningNet:
    """Build the network that a checkpoint describes, with its weights, on the CPU and in eval mode.

    Args:
        source: a checkpoint that training wrote, or the name of a shipped one.
        param_key: which weights to take where the file holds several: BasicSR's ``params`` or their average,
            ``params_ema``. Where it is missing, the others are taken.

    Raises:
        CheckpointError: there is no such file, or it does not describe a ClassPruningNet; the message says what to do.
    """
    path = find_checkpoint(source)
    state_dict = read_state_dict(path, param_key)
    description = read_description(state_dict)
    if description is None:
        raise CheckpointError(
            f'{path} is a plain checkpoint ({", ".join(list(state_dict)[:2])}, ...): it has no levels, no classifier '
            'and no description of its network. Make a ClassPruning network of it first: name it under '
            'path.pretrain_network_g of a training option file with network_g.type ClassPruningNet (such as '
            'options/train_cp_edsr.yml), train, and give the checkpoint that comes out.'
        )
    try:
        net = ClassPruningNet(**described_options(description))
        net.load_state_dict(state_dict)
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f'{path}: {error}') from error
    return net.eval()
