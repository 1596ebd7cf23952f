"""val.precision: read, refused where the device gains nothing by it, and computed in."""

import pytest
import torch
from networks import IMAGE_CASES
from training import build, training_options, validation_loader

from cp_basicsr.engine import winograd
from cp_basicsr.models.option_check import check_options
from cp_basicsr.options import OptionError
from cp_basicsr.precision import allowed_precisions, check_precision
from cp_basicsr.routing.choice import RoutingChoice

pytestmark = pytest.mark.usefixtures('one_thread')
NEAR = 2e-2  # of the largest output; bf16 has 8 significant bits


@pytest.mark.parametrize(
    ('device', 'native', 'allowed'),
    [
        ('cpu', True, {'fp32', 'bf16'}),
        ('cuda', True, {'fp32', 'bf16', 'fp16'}),
        ('cuda', False, {'fp32', 'fp16'}),
        ('mps', False, {'fp32'}),
    ],
)
def test_what_a_device_computes_in(device, native, allowed, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation: native or including_emulation)
    assert set(allowed_precisions(torch.device(device))) == allowed
    for precision in ('fp32', 'bf16', 'fp16'):
        if precision in allowed:
            check_precision(precision, torch.device(device))
        else:
            with pytest.raises(OptionError, match=rf"'{precision}', but the network runs on {device}; allowed.* fp32"):
                check_precision(precision, torch.device(device))


def test_an_option_file_that_asks_for_what_a_cpu_does_not_do_is_refused_early(tmp_path):
    options = training_options(tmp_path)
    options['val']['precision'] = 'fp16'
    with pytest.raises(OptionError, match=r"val\.precision is 'fp16', but the network runs on cpu; .*: fp32, bf16"):
        check_options(options)
    options['val']['precison'] = options['val'].pop('precision')
    with pytest.raises(OptionError, match="'precison' in val. Did you mean 'precision'"):
        check_options(options)
    net, x = IMAGE_CASES['EDSR'].net(), IMAGE_CASES['EDSR'].input()
    with pytest.raises(OptionError, match='fp16'):
        net.restore(x, RoutingChoice(precision='fp16'))


@pytest.mark.parametrize('name', ['EDSR', 'SwinIR pixelshuffle', 'ECBSR'])
@pytest.mark.parametrize('engine', ['', 'reference'])
@pytest.mark.parametrize('how', [{'level': 0}, {'tile': 4}, {'tile': 4, 'overlap': 4}, {'tile': None}])
def test_bf16_is_near_fp32_and_changes_neither_levels_nor_counts(name, engine, how, monkeypatch):
    monkeypatch.setenv('CP_ENGINE', engine)
    net, x = IMAGE_CASES[name].net(), IMAGE_CASES[name].input(2)
    with torch.no_grad():
        exact, near = (net.restore(x, RoutingChoice(**how, precision=precision)) for precision in ('fp32', 'bf16'))
    assert near.image.dtype == torch.float32
    error = float((near.image - exact.image).abs().max() / exact.image.abs().max())
    # Compiled code leaves small layers in fp32: they gain nothing.
    assert error < NEAR and (error > 1e-6 or not engine)
    assert torch.equal(near.levels, exact.levels)
    assert (near.macs, near.dense_macs) == (exact.macs, exact.dense_macs)


def test_a_network_that_was_told_computes_every_level_in_it(monkeypatch):
    monkeypatch.setenv('CP_ENGINE', 'reference')  # small layers of compiled code gain nothing and stay in fp32
    net, x = IMAGE_CASES['EDSR'].net(), IMAGE_CASES['EDSR'].input(2)
    with torch.no_grad():
        exact = net(x, level=0)
        net.choice = RoutingChoice(precision='bf16')
        assert not torch.equal(net(x, level=0), exact)
        assert torch.equal(net(x, level=0), net.restore(x, RoutingChoice(level=0, precision='bf16')).image)
        assert not torch.equal(net(x, level=torch.tensor([0, 0])), exact)


def test_gradients_flow_in_bf16_too():
    net, x = IMAGE_CASES['EDSR'].net(), IMAGE_CASES['EDSR'].input()
    near = net.restore(x, RoutingChoice(level=0, precision='bf16')).image
    near.sum().backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in net.base.parameters())
    near, exact = near.detach(), net(x, level=0).detach()
    assert near.dtype == torch.float32
    assert 1e-6 < float((near - exact).abs().max() / exact.abs().max()) < NEAR


def test_the_model_validates_in_it_and_by_cut_tiles(tmp_path, monkeypatch):
    monkeypatch.setattr(winograd, 'is_faster', lambda *_: True)  # of so narrow layers not on every processor
    options = training_options(tmp_path)
    data = next(iter(validation_loader(options)))
    images = []
    for val in ({}, {'precision': 'bf16'}, {'precision': 'bf16', 'tile': {'size': 8, 'overlap': 0}}):
        model = build(options | {'is_train': False, 'val': options['val'] | val})
        model.feed_data(data)
        model.prepare()
        model.test()
        images.append(model.output)
        following = model.restored
        model.test((following.levels, following.tile))
        assert torch.equal(model.output, images[-1])
        assert model.restored.macs < following.macs  # without the classifier
    exact, *others = images
    for image in others:
        assert 1e-6 < float((image - exact).abs().max() / exact.abs().max()) < 5 * NEAR
    assert not torch.equal(*others)
