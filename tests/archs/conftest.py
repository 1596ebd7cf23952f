import pytest
import torch
from deformable import define_operator

import cp_basicsr.archs  # noqa: F401  (BasicSR, mended where it does not import by itself)

torch.set_num_threads(1)  # the networks are too small to share out


@pytest.fixture
def deform_conv(monkeypatch):
    """Deformable convolutions run in this test, on any machine."""
    import torchvision

    if not torchvision.extension._has_ops():
        define_operator()
        monkeypatch.setattr(torchvision.extension, '_has_ops', lambda: True)
