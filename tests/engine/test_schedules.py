"""A map and a list of tokens of one shape: each is computed at its own pixels."""

import pytest
import torch
from torch import Tensor, nn

from cp_basicsr.engine import NetworkEngine
from cp_basicsr.sparsity import NMPattern, UniformRoute, convert, routed


class MapThenTokens(nn.Module):
    """As ConvNeXt has it: a 1 x 1 convolution, then Linear on the channels, which have been put last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map, self.tokens = nn.Conv2d(width, width, 1), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens(self.map(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize('width', [16, 32, 64])
@pytest.mark.parametrize('level', [0, 1])
def test_as_many_channels_as_rows_and_columns(width: int, level: int, one_thread: None) -> None:
    net = MapThenTokens(width).eval()
    convert(net, NMPattern(4, [1, 4]))
    x = torch.rand(1, width, width, width)
    with torch.no_grad():
        with routed(UniformRoute(level)):
            expected = net(x)
        found = NetworkEngine(1, (), lambda text: None).run(net, x, UniformRoute(level))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
