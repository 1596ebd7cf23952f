"""Results do not depend on the number of threads, nor on what other networks do meanwhile."""

import threading

import pytest
import torch
from compiled import Layer, each_set, random_mask
from networks import IMAGE_CASES

from cp_basicsr.archs.restoring import restore_by_map
from cp_basicsr.engine import threads


@pytest.fixture(autouse=True)
def as_before():
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


@pytest.fixture(params=['OpenMP', 'Python threads'])
def means(request, monkeypatch):
    """With PyTorch's own threads, and without them."""
    if request.param == 'Python threads':
        monkeypatch.setattr(threads, '_openmp', lambda: None)
    elif threads._openmp() is None:
        pytest.skip("PyTorch's OpenMP library is not found")


@each_set
@pytest.mark.parametrize('size', [(1, 3), (9, 33), (70, 100)])
def test_one_thread_or_more_give_the_same_bits(isa, size, means):
    masks = [random_mask((40, 16, 3, 3), n, 4, torch.Generator().manual_seed(n)) for n in (1, 4)]
    layer = Layer(isa, masks, 1, (1, 1), bias=True)
    x = torch.randn(2, 16, *size, generator=torch.Generator().manual_seed(0))
    levels = torch.randint(2, (2, *size), generator=torch.Generator().manual_seed(1))
    outputs = []
    for count in (1, 2, 3, 1):
        torch.set_num_threads(count)
        outputs.append((layer.run(x, 0).clone(), layer.run(x, levels).clone()))
    layer.check(x, levels)
    for uniform, mixed in outputs[1:]:
        assert torch.equal(uniform, outputs[0][0]) and torch.equal(mixed, outputs[0][1])


def restored_by(tasks):
    """Outputs of ``(net, x, levels)``, each from a Python thread of its own, several times over."""
    results, ready = [[] for _ in tasks], threading.Barrier(len(tasks), timeout=60)

    def work(index, net, x, levels):
        with torch.no_grad():
            ready.wait()
            for _ in range(5):
                results[index].append(restore_by_map(net, x, levels, 8).image)

    workers = [threading.Thread(target=work, args=(index, *task)) for index, task in enumerate(tasks)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return results


def task(name, seed):
    net, generator = IMAGE_CASES[name].net(), torch.Generator().manual_seed(seed)
    x = torch.rand(1, *IMAGE_CASES[name].shape[:-2], 40, 56, generator=generator)
    return net, x, torch.randint(3, (1, 5, 7), generator=generator)


@pytest.mark.parametrize('count', [1, 2])
def test_two_networks_from_two_python_threads_at_once(count, means, compiled_code):
    torch.set_num_threads(count)
    tasks = [task('EDSR', 0), task('RRDBNet x4', 1)]
    results = restored_by(tasks)  # each compiles while the other runs
    for (net, x, levels), images in zip(tasks, results, strict=True):
        with torch.no_grad():
            alone = restore_by_map(net, x, levels, 8).image
        assert len(images) == 5 and all(torch.equal(image, alone) for image in images)


def test_one_network_from_three_python_threads_at_once(compiled_code):
    torch.set_num_threads(2)
    net, *_ = first = task('EDSR', 0)
    tasks = [first, (net, *task('EDSR', 1)[1:]), (net, *task('EDSR', 2)[1:])]
    results = restored_by(tasks)
    for (_, x, levels), images in zip(tasks, results, strict=True):
        with torch.no_grad():
            alone = restore_by_map(net, x, levels, 8).image
        assert len(images) == 5 and all(torch.equal(image, alone) for image in images)


@pytest.mark.parametrize('broken', [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_run_leaves_nothing_behind(broken, compiled_code, monkeypatch):
    net, x, levels = task('EDSR', 0)
    with torch.no_grad():
        before = restore_by_map(net, x, levels, 8).image
        run, calls = threads.run, []

        def fail_at_the_third(*arguments):
            calls.append(arguments)
            if len(calls) == 3:
                raise broken
            run(*arguments)

        monkeypatch.setattr(threads, 'run', fail_at_the_third)
        with pytest.raises(broken):
            restore_by_map(net, x, levels, 8)
        assert torch.equal(restore_by_map(net, x, levels, 8).image, before)
