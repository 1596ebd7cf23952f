import pytest
import torch
from compiled import SETS
from deformable import define_operator

torch.set_num_threads(1)  # the networks are too small to share out


@pytest.fixture(params=['avx512', 'avx2'])
def isa(request, monkeypatch):
    """Networks run in compiled code of each instruction set that this processor has."""
    if request.param not in SETS:
        pytest.skip(f'this processor has no {request.param}')
    monkeypatch.setenv('CP_ENGINE', request.param)
    return request.param


@pytest.fixture
def compiled_code(monkeypatch):
    """Networks run in the best compiled code of this processor; without any, the test is skipped."""
    if not SETS:
        pytest.skip('no compiled code can run on this processor')
    monkeypatch.setenv('CP_ENGINE', SETS[0])


@pytest.fixture
def deform_conv(monkeypatch):
    """Deformable convolutions run in this test, on any machine."""
    import torchvision

    if not torchvision.extension._has_ops():
        define_operator()
        monkeypatch.setattr(torchvision.extension, '_has_ops', lambda: True)
