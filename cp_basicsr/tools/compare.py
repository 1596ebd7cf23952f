"""Compare the dense network, every static level, routing at several budgets and random routing on the test sets.

    python -m cp_basicsr.tools.compare -opt options/test_cp_srvgg_color_dn.yml --budgets 0.75 0.5 0.35

Takes a BasicSR test option file and prints one Markdown table for each dataset; ``--out`` keeps the table, the rows as
JSON, the restored pictures, the level maps and a plot.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from cp_basicsr import autoload
from cp_basicsr.launch import check_option_file

DEFAULT_BUDGETS = (0.75, 0.5, 0.35)
RANDOM_SEED = 0


@dataclass
class Row:
    """One line of the table, mean over the images of a set.

    Attributes:
        name: what ran.
        kind: 'static', 'routed' or 'random'; the densest level is 'static' too.
        quality: value of each metric of the option file.
        macs_share: MACs as a fraction of the dense network's, classifier included.
        seconds: for one image, on this machine.
        usage: share of the tiles at each level.
    """

    name: str
    kind: str
    quality: dict[str, float]
    macs_share: float
    seconds: float
    usage: list[float]


def compare(
    model: Any, loader: Any, budgets: Sequence[float], pictures: Path | None = None, main_budget: float | None = None
) -> list[Row]:
    """Rows for one dataset.

    Args:
        model: a ClassPruningModel built for testing.
        loader: BasicSR's loader of the dataset, with gt.
        budgets: fractions of the dense MACs.
        pictures: folder for restored pictures and level maps of the route at ``main_budget``; None writes none.
        main_budget: the budget whose pictures are written; the middle one by default.

    Raises:
        BudgetError: the levels do not allow a budget.
    """
    main_budget = sorted(budgets)[len(budgets) // 2] if main_budget is None else main_budget
    runs = list(_runs(model.net, model.choice, budgets))
    metrics = {name: options for name, options in model.opt['val']['metrics'].items() if name != 'macs'}
    totals = [
        Row(name, kind, dict.fromkeys(metrics, 0.0), 0.0, 0.0, [0.0] * len(model.net.levels)) for name, kind, _ in runs
    ]
    for data in tqdm(loader, unit='image', desc=loader.dataset.opt['name']):
        model.feed_data(data)
        for row, (_, kind, choice) in zip(totals, runs, strict=True):
            seconds = _run(model, kind, choice)
            images = model.current_images(Path(data['lq_path'][0]).stem)
            _add(row, model, images, metrics, seconds)
            if pictures and kind == 'routed' and choice.budget == main_budget:
                _write_pictures(pictures, Path(data['lq_path'][0]).stem, model, images)
    return [_mean(row, len(loader)) for row in totals]


def _runs(net: Any, choice: Any, budgets: Sequence[float]) -> Iterator[tuple[str, str, Any]]:
    """Name, kind and choice of each row, dense first."""
    densest = net.pattern.densest
    for level in range(densest, -1, -1):
        label = net.pattern.label(level)
        name = 'dense' if level == densest else f'static {label}'
        yield name, 'static', replace(choice, budget=None, level=level)
    for budget in sorted(budgets, reverse=True):
        for kind in ('routed', 'random'):
            yield f'{kind}, budget {budget:g}', kind, replace(choice, budget=budget, level=None)


def _run(model: Any, kind: str, choice: Any) -> float:
    """Restore the fed image; returns seconds. A random route shuffles the routed map: the same levels elsewhere."""
    with model.using(choice):
        if kind != 'random':
            start = time.perf_counter()
            model.test()
            return time.perf_counter() - start
        levels = model.route_levels()
        order = torch.randperm(levels.numel(), generator=torch.Generator().manual_seed(RANDOM_SEED))
        shuffled = levels.flatten()[order].view_as(levels)
        start = time.perf_counter()
        model.test(shuffled)
        return time.perf_counter() - start


def _add(row: Row, model: Any, images: dict[str, Any], metrics: dict[str, Any], seconds: float) -> None:
    from basicsr.metrics import calculate_metric

    for name, options in metrics.items():
        row.quality[name] += calculate_metric(images, options)
    row.macs_share += model.restored.macs_share
    row.seconds += seconds
    counts = model.restored.levels.flatten().bincount(minlength=len(row.usage))
    row.usage = [
        share + float(count) / model.restored.levels.numel() for share, count in zip(row.usage, counts, strict=True)
    ]


def _mean(row: Row, count: int) -> Row:
    return Row(
        row.name,
        row.kind,
        {name: value / count for name, value in row.quality.items()},
        row.macs_share / count,
        row.seconds / count,
        [share / count for share in row.usage],
    )


def _write_pictures(folder: Path, stem: str, model: Any, images: dict[str, Any]) -> None:
    from cp_basicsr.data.files import write_png
    from cp_basicsr.routing.picture import draw_level_map

    write_png(folder / f'{stem}.png', images['img'])
    write_png(folder / f'{stem}_levels.png', draw_level_map(images['img'], model.restored, model.net.pattern))


def as_markdown(rows: Sequence[Row], net: Any) -> str:
    """The table, one row a line, with the labels of the levels in the head."""
    metrics = list(rows[0].quality)
    labels = [f'tiles {net.pattern.label(level)}' for level in range(len(net.levels))]
    head = ['', *(name.upper() for name in metrics), 'MACs %', 's / image', *labels]
    lines = [head, ['---', *['---:'] * (len(head) - 1)]]
    for row in rows:
        quality = [f'{row.quality[name]:.{2 if name.startswith("psnr") else 4}f}' for name in metrics]
        usage = [f'{100 * share:.0f} %' for share in row.usage]
        lines.append([row.name, *quality, f'{100 * row.macs_share:.1f}', f'{row.seconds:.3f}', *usage])
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """PSNR against MACs as a PNG: static levels as squares, routed and random routes as lines."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    metric = next(name for name in rows[0].quality if name.startswith('psnr'))
    figure, axes = plt.subplots(figsize=(6, 4), layout='constrained')
    styles = {'static': ('s', '', 'black'), 'routed': ('o', '-', 'tab:blue'), 'random': ('x', '--', 'tab:gray')}
    for kind, (marker, line, colour) in styles.items():
        points = sorted((100 * row.macs_share, row.quality[metric]) for row in rows if row.kind == kind)
        axes.plot(*zip(*points, strict=True), marker=marker, linestyle=line, color=colour, label=kind)
    for row in rows:
        if row.kind == 'static':
            axes.annotate(
                row.name, (100 * row.macs_share, row.quality[metric]), textcoords='offset points', xytext=(4, -12)
            )
    axes.set(xlabel='MACs, % of dense (classifier included)', ylabel='PSNR, dB', title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    temporary = path.with_name(f'.{path.name}')
    figure.savefig(temporary, format='png', dpi=150)
    plt.close(figure)
    temporary.replace(path)


def run(option_file: Path, budgets: Sequence[float], out: Path | None) -> dict[str, list[Row]]:
    """Compare on every dataset of a test option file; log each table.

    Args:
        option_file: a BasicSR test option file with a ClassPruningModel.
        budgets: fractions of the dense MACs.
        out: folder for the files, or None.
    """
    check_option_file(option_file)
    autoload.activate()
    from basicsr.data import build_dataloader, build_dataset
    from basicsr.models import build_model
    from basicsr.utils import get_root_logger

    opt = read_test_options(option_file)
    loaders = [
        build_dataloader(build_dataset(block), block, num_gpu=opt['num_gpu'], dist=False, seed=opt['manual_seed'])
        for _, block in sorted(opt['datasets'].items())
    ]
    model = build_model(opt)
    results = {}
    for loader in loaders:
        name = loader.dataset.opt['name']
        if out:
            (out / name).mkdir(parents=True, exist_ok=True)
        rows = results[name] = compare(model, loader, budgets, out / name if out else None)
        table = as_markdown(rows, model.net)
        get_root_logger().info(f'{name}: {machine()}\n\n{table}\n')
        if out:
            (out / name / 'table.md').write_text(f'{name}: {machine()}\n\n{table}\n')
            (out / name / 'table.json').write_text(json.dumps([asdict(row) for row in rows], indent=1))
            plot(rows, out / name / 'psnr_macs.png', name)
    return results


def read_test_options(option_file: Path) -> dict[str, Any]:
    """An option file as BasicSR's test command sees it, without its command line or result folders."""
    from basicsr.utils.options import yaml_load

    opt = yaml_load(str(option_file))
    opt |= {'is_train': False, 'dist': False, 'rank': 0, 'world_size': 1}
    opt['num_gpu'] = torch.cuda.device_count() if opt['num_gpu'] == 'auto' else opt['num_gpu']
    opt['manual_seed'] = opt.get('manual_seed') or 0
    for phase, block in opt['datasets'].items():
        block |= {'phase': phase.split('_')[0]} | ({'scale': opt['scale']} if 'scale' in opt else {})
    return opt


def machine() -> str:
    """What the seconds were measured on."""
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f'{_processor()}, {torch.get_num_threads()} threads'
    )
    return f'PyTorch {torch.__version__}, {device}, float32, reference path, batch 1'


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return 'CPU'
    return next((line.split(':')[1].strip() for line in lines if line.startswith('model name')), 'CPU')


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-opt', type=Path, required=True, help='BasicSR test option file')
    parser.add_argument('--budgets', type=float, nargs='+', default=DEFAULT_BUDGETS, help='fractions of the dense MACs')
    parser.add_argument('--out', type=Path, help='folder for table, JSON, pictures and plot')
    options = parser.parse_args(arguments)
    run(options.opt, options.budgets, options.out)


if __name__ == '__main__':
    main()
