"""Checkpoint files: whole or absent, readable by unmodified BasicSR where they are plain, refused with reasons."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training import (
    SRVGG,
    assert_same,
    batch_of,
    build,
    network_options,
    snapshot,
    train,
    training_options,
    write_pairs,
)

from cp_basicsr.archs.state import CheckpointError
from cp_basicsr.models.checkpoints import read_state_dict, write_atomically

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The checkpoint of a short run with EMA."""
    write_pairs(tmp_path, count=1)
    model = build(training_options(tmp_path, ema_decay=0.5))
    train(model, 1, 4)
    model.save(0, 4)
    return tmp_path / 'experiments/tiny/models/net_g_4.pth'


def make_model(folder: Path, **changes: Any) -> Any:
    """A model built for testing with other parts of `network_g` or `path`."""
    options = training_options(folder) | {'is_train': False}
    for block, values in changes.items():
        options[block] = options[block] | values
    return build(options)


def test_what_training_wrote_testing_reads(saved: Path, tmp_path: Path) -> None:
    """Ranks and calibration included; `param_key_g` chooses between the network and its average."""
    content = torch.load(saved, weights_only=True)
    for key in ('params', 'params_ema'):
        model = make_model(tmp_path, path={'pretrain_network_g': str(saved), 'param_key_g': key})
        assert_same(dict(model.net.state_dict()), dict(content[key]))
        assert model.net.calibration.is_fitted('tile') and model.net.calibration.is_fitted('image')
    assert not torch.equal(content['params']['base.body.0.weight'], content['params_ema']['base.body.0.weight'])


@pytest.mark.parametrize('kept', [0, 10, 1000, -100])
def test_a_truncated_file_is_named(kept: int, saved: Path, tmp_path: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=rf'{saved} is not a readable checkpoint .* copy or train it again'):
        make_model(tmp_path, path={'pretrain_network_g': str(saved)})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"No checkpoint '.*absent\.pth'; check path\.pretrain_network_g"):
        make_model(tmp_path, path={'pretrain_network_g': str(tmp_path / 'absent.pth')})


@pytest.mark.parametrize('content', [{'params': 1}, {}, [1, 2], {'params': {}}, {'a': torch.zeros(1), 'b': 2}])
def test_a_file_without_weights_is_named(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / 'odd.pth')
    with pytest.raises(CheckpointError, match=r'odd\.pth holds no network weights'):
        read_state_dict(tmp_path / 'odd.pth')


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({'params': Evil(tmp_path / 'ran')}, tmp_path / 'evil.pth')
    with pytest.raises(CheckpointError, match=r'evil\.pth is not a readable checkpoint'):
        read_state_dict(tmp_path / 'evil.pth')
    assert not (tmp_path / 'ran').exists()


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.write_text, (self.path, 'ran'))


@pytest.mark.parametrize(
    ('network', 'message'),
    [
        ({'base': {'type': 'MSRResNet', 'num_feat': 8, 'num_block': 1, 'upscale': 2}},
         r"another network_g\.base\.type: SRVGGNetCompact, the option file has MSRResNet"),
        ({'base': SRVGG | {'num_conv': 3}}, r"another the layers left prunable|prunable"),
        ({'base': SRVGG | {'num_feat': 12}}, r"size mismatch for base\.body\.0\.weight|other shapes"),
        ({'sparsity': {'m': 4, 'levels': [2, 4]}}, r'another network_g\.sparsity\.levels: \[1, 2, 4\], .*\[2, 4\]'),
        ({'sparsity': {'m': 8, 'levels': [2, 4, 8]}}, r'another network_g\.sparsity\.m: 4, the option file has 8'),
        ({'sparsity': {'m': 4, 'levels': [1, 2, 4], 'weights': 'per_level'}},
         r"another network_g\.sparsity\.weights: shared, the option file has per_level"),
        ({'sparsity': {'m': 4, 'levels': [1, 2, 4], 'exclude': ['body.4']}}, r'prunable.*body\.4'),
        ({'classifier': {'type': 'TimmDifficultyClassifier', 'model_name': 'test_resnet'}},
         r'another network_g\.classifier\.type: DifficultyClassifier, the option file has TimmDifficultyClassifier'),
        ({'classifier': {'type': 'DifficultyClassifier', 'num_feat': 8}}, r'classifier\.'),
    ],
    ids=['base', 'depth', 'width', 'levels', 'm', 'weights', 'exclude', 'classifier', 'classifier width'],
)  # fmt: skip
def test_a_checkpoint_of_another_network_is_refused(
    network: dict[str, Any], message: str, saved: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        make_model(tmp_path, network_g=network, path={'pretrain_network_g': str(saved)}, val={'tile': None})
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize('weights', ['shared', 'per_level'])
def test_a_plain_checkpoint_of_the_base_starts_every_level(weights: str, tmp_path: Path) -> None:
    plain = build(training_options(tmp_path)).net.bake(-1)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(1.5)
    torch.save({'params': plain.state_dict()}, tmp_path / 'plain.pth')
    options = training_options(tmp_path, ema_decay=0.9)
    options['network_g'] = network_options(weights=weights)
    options['path']['pretrain_network_g'] = str(tmp_path / 'plain.pth')
    model, lq = build(options), batch_of(0)['lq']
    for net in model._nets():
        assert torch.equal(net.eval()(lq, level=-1), plain(lq))
        sparse = net.base.body[2]
        kept = torch.where(sparse.mask(0), plain.body[2].weight, 0)
        assert torch.equal(sparse.level_values(0)[0], kept)


def test_a_plain_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    other = build(training_options(tmp_path, SRVGG | {'num_conv': 3})).net.bake(-1)
    torch.save({'params': other.state_dict()}, tmp_path / 'other.pth')
    message = (
        r'other\.pth: The checkpoint does not fit SRVGGNetCompact .*unknown: body\.7\.weight, .*Check network_g\.base'
    )
    with pytest.raises(CheckpointError, match=message):
        make_model(tmp_path, path={'pretrain_network_g': str(tmp_path / 'other.pth')})


def test_a_failing_write_leaves_the_old_file_and_no_other(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, say, half way through the file."""
    files = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    model = build(training_options(tmp_path, ema_decay=0.5))
    train(model, 1, 4)
    before = snapshot(model)
    write = torch.save

    def fails_half_way(content: Any, path: Path) -> None:
        write(content, path)
        path.write_bytes(path.read_bytes()[:500])
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(torch, 'save', fails_half_way)
    for iteration in (4, -1):
        with pytest.raises(OSError, match='No space left'):
            model.save(0, iteration)
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()} == files
    assert_same(snapshot(model)['optimizers'], before['optimizers'])
    model.save(0, 4)
    assert read_state_dict(saved).keys() == torch.load(saved, weights_only=True)['params'].keys()


def test_another_process_s_half_written_file_is_no_checkpoint(tmp_path: Path) -> None:
    """BasicSR's --auto_resume passes over names that begin with a dot."""
    from basicsr.utils import scandir

    seen = []

    def write(content: Any, path: Path) -> None:
        seen.extend(scandir(str(tmp_path), suffix='state', recursive=False, full_path=False))
        torch.serialization.save(content, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, 'save', write)
        write_atomically({'iter': 4}, tmp_path / '4.state')
    assert seen == []
    assert [path.name for path in tmp_path.iterdir()] == ['4.state']


def test_the_latest_checkpoint_has_no_training_state(tmp_path: Path) -> None:
    model = build(training_options(tmp_path))
    train(model, 1, 1)
    model.save(-1, -1)
    files = [path.name for path in (tmp_path / 'experiments').rglob('*') if path.is_file()]
    assert files == ['net_g_latest.pth']
