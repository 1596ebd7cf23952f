"""Where no code can be compiled, or not for some layer, the masked reference path runs and the log says why, once."""

import platform
import sys
from types import SimpleNamespace

import pytest
import torch
from networks import IMAGE_CASES
from references import assert_near
from torch import nn

from cp_basicsr.engine import NetworkEngine, host, machine_code
from cp_basicsr.sparsity import NMPattern, UniformRoute, convert, routed


def runs_in_pytorch(log, *texts):
    """A new network computes bit for bit what PyTorch does, and the log has one line with these texts."""
    net, x = IMAGE_CASES['EDSR'].net(m=3, levels=[1, 3]), IMAGE_CASES['EDSR'].input()
    with torch.no_grad():
        for _ in range(2):
            output = net.run_level(x, 0)
            with routed(UniformRoute(0)):
                assert torch.equal(output, net.base(x))
    (line,) = log
    assert line.startswith('INFO Layers run on the masked reference path: ')
    for text in texts:
        assert text in line


@pytest.fixture
def another_processor(monkeypatch):
    """What the engine asks of the processor is asked anew, during and after the test."""
    monkeypatch.delenv('CP_ENGINE', raising=False)
    host.processor_sets.cache_clear()
    yield
    host.processor_sets.cache_clear()


def test_it_is_asked_for(monkeypatch, log):
    monkeypatch.setenv('CP_ENGINE', 'reference')
    runs_in_pytorch(log, 'CP_ENGINE=reference')


def test_a_set_that_this_processor_lacks(compiled_code, monkeypatch, log):
    monkeypatch.setattr(host, 'processor_sets', lambda: ('avx2',))
    monkeypatch.setenv('CP_ENGINE', 'avx512')
    runs_in_pytorch(log, 'CP_ENGINE=avx512 is none of reference, avx2, which this processor can run')


def test_a_name_that_no_machine_has_is_an_error(monkeypatch):
    monkeypatch.setenv('CP_ENGINE', 'avx-512')
    net = IMAGE_CASES['EDSR'].net()
    with torch.no_grad(), pytest.raises(host.EngineNameError, match="CP_ENGINE is 'avx-512'; allowed: reference, avx5"):
        net(IMAGE_CASES['EDSR'].input(), level=0)


def test_no_avx2(another_processor, monkeypatch, log):
    monkeypatch.setattr('llvmlite.binding.get_host_cpu_features', lambda: {'avx2': True, 'fma': False, 'sse2': True})
    runs_in_pytorch(log, 'the processor has neither AVX-512F nor AVX2 with FMA')


def test_avx2_alone_is_enough(another_processor, monkeypatch):
    monkeypatch.setattr('llvmlite.binding.get_host_cpu_features', lambda: {'avx2': True, 'fma': True})
    monkeypatch.setattr(platform, 'machine', lambda: 'AMD64')
    assert host.chosen_set() == 'avx2'


def test_another_architecture(another_processor, monkeypatch, log):
    monkeypatch.setattr(platform, 'machine', lambda: 'aarch64')
    runs_in_pytorch(log, 'the processor is aarch64, code is made for x86-64')


def test_another_operating_system(another_processor, monkeypatch, log):
    monkeypatch.setattr(platform, 'machine', lambda: 'x86_64')
    monkeypatch.setattr(host, 'os', SimpleNamespace(name='nt', environ={}))
    runs_in_pytorch(log, 'calling convention', 'this is nt')


def test_the_system_refuses_executable_memory(compiled_code, monkeypatch, log):
    monkeypatch.setattr(machine_code, '_libc', SimpleNamespace(mprotect=lambda *_: -1))
    runs_in_pytorch(log, 'the system refuses executable memory')


def test_without_llvmlite(run, tmp_path):
    script = """
import sys
sys.modules['llvmlite'] = None
import logging, torch
logging.getLogger('basicsr').setLevel(logging.INFO)
from cp_basicsr.archs.class_pruning_arch import ClassPruningNet
net = ClassPruningNet({'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8}, {'m': 4, 'levels': [2, 4]})
with torch.no_grad():
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(net.eval()(x, level=0), net.bake(0)(x))
"""
    result = run(sys.executable, '-c', script, cwd=tmp_path, CP_ENGINE=None)
    assert 'reference path: llvmlite cannot be imported' in result.stdout + result.stderr


class Unusual(nn.Module):
    """Layers that no code is made for, and two usual ones."""

    def __init__(self):
        super().__init__()
        self.usual = nn.Conv2d(4, 8, 3, padding=1)
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.mirrored = nn.Conv2d(8, 8, 3, padding=1, padding_mode='reflect')
        self.named = nn.Conv2d(8, 8, 3, padding='same')
        self.thirds = nn.Conv2d(8, 8, 3, stride=3)
        self.uneven = nn.Conv2d(8, 8, 3, stride=(1, 2))
        self.deep = nn.Conv3d(8, 8, (1, 3, 3), padding=(0, 1, 1))
        self.transposed = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.named(self.mirrored(self.grouped(self.dilated(self.usual(x).relu()))))
        x = self.uneven(self.thirds(x))
        return self.last(self.transposed(self.deep(x[:, :, None])[:, :, 0]))


def test_unusual_layers_run_in_pytorch_and_the_others_do_not(compiled_code):
    torch.manual_seed(0)
    net, x, said = Unusual().eval(), torch.randn(2, 4, 25, 32), []
    convert(net, NMPattern(4, [1, 2, 4]))
    engine = NetworkEngine(1, (), said.append)
    for level in (0, 1, 2):
        route = UniformRoute(level)
        with torch.no_grad():
            output = engine.run(net, x, route)
            with routed(UniformRoute(level)) as reference:
                assert_near(output, net(x))
        assert route.positions == reference.positions
    (line,) = said
    assert '2 of 8 prunable layers' in line, 'grouped and transposed convolutions are not prunable'
    for text in (
        'dilated (dilation (2, 2))', "mirrored (padding 'reflect')", "named (padding 'same')",
        'thirds (stride (3, 3))', 'uneven (stride (1, 2))', 'deep (NMConv3d is no two-dimensional convolution)',
    ):  # fmt: skip
        assert text in line
    assert 'usual (' not in line and 'last (' not in line


@pytest.mark.parametrize('kind', [torch.float64, torch.bfloat16])
def test_other_types(kind, compiled_code, log):
    net, x = IMAGE_CASES['EDSR'].net().to(kind), IMAGE_CASES['EDSR'].input().to(kind)
    with torch.no_grad():
        output = net.run_level(x, 0)
        with routed(UniformRoute(0)):
            assert torch.equal(output, net.base(x))
    (line,) = log
    assert f'the input is {kind} on cpu' in line


def test_gradients_flow_in_eval_mode(compiled_code):
    net, x = IMAGE_CASES['EDSR'].net(), IMAGE_CASES['EDSR'].input().requires_grad_()
    with torch.no_grad():
        compiled = net(x, level=0)
    output = net(x, level=0)
    output.mean().backward()
    assert x.grad.abs().sum() > 0 and not compiled.requires_grad
    assert_near(compiled, output.detach())
