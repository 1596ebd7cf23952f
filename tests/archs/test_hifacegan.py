import pytest
import torch
from networks import CLASSIFIER, SPARSITY

from cp_basicsr.archs.class_pruning_arch import ClassPruningNet
from cp_basicsr.sparsity import prunable_layers


@pytest.mark.usefixtures('reference_path')
def test_it_runs_at_every_level_with_its_spectral_norms_left_dense():
    torch.manual_seed(0)
    base = {'type': 'HiFaceGAN', 'num_feat': 4, 'crop_size': 64}
    net, x = ClassPruningNet(base, SPARSITY, CLASSIFIER).eval(), torch.rand(1, 3, 64, 64)
    normed = [reason for reason in net.conversion.left_dense.values() if 'spectral norm' in reason]
    assert normed and len(prunable_layers(net.base)) > 20
    with torch.no_grad():
        outputs = [net(x, level=level) for level in range(3)]
        assert torch.equal(outputs[2], net.base(x))
        assert not torch.equal(outputs[0], outputs[1])
        assert torch.equal(net.bake(0)(x), outputs[0])
        restored = net.restore(x)
    assert restored.image.shape == (1, 3, 64, 64)
