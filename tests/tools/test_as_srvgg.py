"""ECBSR and DnCNN as SRVGGNetCompact: the same output, or a refusal."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from basicsr.archs import build_network
from basicsr.archs.ecbsr_arch import ECBSR
from torch import Tensor, nn

from cp_basicsr.archs.state import CheckpointError
from cp_basicsr.tools import as_srvgg as command
from cp_basicsr.tools.as_srvgg import as_srvgg

pytestmark = pytest.mark.usefixtures('one_thread')


class DnCNN(nn.Module):
    """As KAIR lays it out: what it predicts is the noise."""

    def __init__(self, colours: int, layers: int, given: int | None = None, norm: bool = False) -> None:
        super().__init__()
        widths = [given or colours, *[12] * (layers - 1), colours]
        parts: list[nn.Module] = []
        for low, high in zip(widths, widths[1:], strict=False):
            parts += [nn.Conv2d(low, high, 3, padding=1), *([nn.BatchNorm2d(high)] if norm else []), nn.ReLU()]
        self.model = nn.Sequential(*parts[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return x - self.model(x)


def ecbsr(colours: int, scale: int, activation: str = 'prelu') -> nn.Module:
    return ECBSR(colours, colours, 2, 8, with_idt=False, act_type=activation, scale=scale)


@pytest.mark.parametrize(
    ('net', 'colours'),
    [
        (ecbsr(3, 2), 3), (ecbsr(1, 4), 1), (ecbsr(3, 3, 'relu'), 3), (DnCNN(1, 5), 1), (DnCNN(3, 2), 3),
    ],
)  # fmt: skip
def test_output_is_the_same(net: nn.Module, colours: int) -> None:
    torch.manual_seed(0)
    for parameter in net.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2)
    options, state = as_srvgg(net.state_dict())
    mine = build_network(options)
    mine.load_state_dict(state)
    x = torch.rand(2, colours, 9, 11)
    with torch.no_grad():
        # Its training form: ECBSR's branches, which have not been merged.
        expected = net.train()(x)
        torch.testing.assert_close(mine.eval()(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ('weights', 'message'),
    [
        ({'conv_first.weight': torch.zeros(1)}, r'neither ECBSR .* nor DnCNN .*; they begin with conv_first\.weight'),
        (DnCNN(1, 3, norm=True).state_dict(), r'it has model\.1\..*Merge its normalization'),
        (DnCNN(3, 4, given=4).state_dict(), r'takes 4 channels and gives 3: FDnCNN'),
        ({k: v for k, v in ecbsr(3, 2).state_dict().items() if 'sbx' not in k}, r"do not fit BasicSR's ECBSR: .*sbx"),
    ],
)  # fmt: skip
def test_others_are_refused(weights: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=f'(?s){message}'):
        as_srvgg(weights)


def test_the_command_writes_a_checkpoint_and_prints_the_network(tmp_path: Path, capsys: Any) -> None:
    source, output = tmp_path / 'ecbsr.pth', tmp_path / 'new' / 'srvgg.pth'
    torch.save({'params': ecbsr(3, 2).state_dict()}, source)
    command.main([str(source), str(output)])
    net = build_network(yaml.safe_load(capsys.readouterr().out)['base'])
    net.load_state_dict(torch.load(output, weights_only=True)['params'])
    assert [path.name for path in output.parent.iterdir()] == ['srvgg.pth']
    with pytest.raises(SystemExit, match=r'srvgg\.pth: These are weights of neither'):
        command.main([str(output), str(source)])
    assert 'params' in torch.load(source, weights_only=True)
