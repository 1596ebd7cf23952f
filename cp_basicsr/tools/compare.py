"""Compare the dense network, every static level, routing at several budgets and random routing on the test sets.

    python -m cp_basicsr.tools.compare -opt options/test_cp_srvgg_color_dn.yml --budgets 0.75 0.5 0.35

Takes a BasicSR test option file and prints one Markdown table for each dataset; ``--out`` keeps the table, the rows as
JSON, the restored pictures, the level maps and a plot.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from os import path as osp
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

from cp_basicsr import autoload
from cp_basicsr.data.files import write_png
from cp_basicsr.launch import check_option_file
from cp_basicsr.options import OptionError
from cp_basicsr.tools.report import Row, as_markdown, machine, plot, write_text

DEFAULT_BUDGETS = (0.75, 0.5, 0.35)
RANDOM_SEED = 0


def compare(
    model: Any, loader: Any, budgets: Sequence[float], pictures: Path | None = None, random: bool = True
) -> list[Row]:
    """Rows for one dataset.

    Args:
        model: a ClassPruningModel built for testing.
        loader: BasicSR's loader of the dataset, with gt.
        budgets: fractions of the dense MACs.
        pictures: folder for restored pictures and level maps of the route at the middle budget; None writes none.
        random: whether the control, random routing at the same cost, runs too.

    Raises:
        BudgetError: the levels do not allow a budget.
    """
    _warm_up(model, loader)
    for budget in budgets:
        model.check_budget(budget, '--budgets')
    rows: list[Row] = []
    pictured = sorted(budgets)[len(budgets) // 2]
    routes: list[tuple[torch.Tensor, int | None]] = []
    for name, kind, choice in _runs(model.net, model.choice, budgets, random):
        folder = pictures if kind == 'routed' and choice.budget == pictured else None
        row = _Mean(name, kind, len(model.net.levels))
        maps = _shuffled(routes) if kind == 'random' else []
        routes = []
        with model.using(choice):
            for index, data in enumerate(tqdm(loader, unit='image', desc=f'{loader.dataset.opt["name"]}, {name}')):
                _feed(model, data)
                seconds = _timed(lambda: model.test(*maps[index : index + 1]))  # noqa: B023 (called at once)
                stem = Path(data['lq_path'][0]).stem
                images = model.current_images(stem)
                row.add(model.measure(images), model.restored, seconds)
                routes.append((model.restored.levels, model.restored.tile))
                if folder:
                    write_png(folder / f'{stem}.png', images['img'])
                    write_png(folder / f'{stem}_levels.png', model.level_picture(images['img']))
        rows.append(row.row())
    return rows


def _runs(net: Any, choice: Any, budgets: Sequence[float], random: bool) -> Iterator[tuple[str, str, Any]]:
    """Name, kind and choice of each row, dense first; a random row follows the routed one whose levels it shuffles."""
    densest = net.pattern.densest
    for level in range(densest, -1, -1):
        name = 'dense' if level == densest else f'static {net.labels[level]}'
        yield name, 'static', replace(choice, budget=None, level=level)
    for budget in sorted(budgets, reverse=True):
        for kind in ('routed', 'random')[: 1 + random]:
            yield f'{kind}, budget {budget:g}', kind, replace(choice, budget=budget, level=None)


def _shuffled(routes: Sequence[tuple[torch.Tensor, int | None]]) -> list[tuple[torch.Tensor, int | None]]:
    """The same levels elsewhere: on other tiles of each image, or, routed as wholes, on other images of the set."""
    generator = torch.Generator().manual_seed(RANDOM_SEED)
    if all(tile is None for _, tile in routes):
        order = torch.randperm(len(routes), generator=generator).tolist()
        return [routes[index] for index in order]
    return [(_shuffled_tiles(levels, generator), tile) for levels, tile in routes]


def _shuffled_tiles(levels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A map ``[1, rows, columns]``, shuffled among tiles of equal size: the last row and column may be cut."""
    shuffled = levels.clone()
    for part in (shuffled[:, :-1, :-1], shuffled[:, -1:, :-1], shuffled[:, :-1, -1:]):
        order = torch.randperm(part.numel(), generator=generator)
        part.copy_(part.flatten()[order].view_as(part))
    return shuffled


def _warm_up(model: Any, loader: Any) -> None:
    """Count the MACs of every image size and run once, so that no row's seconds hold what the first one caused."""
    for data in loader:
        _feed(model, data)
        model.prepare()
    model.test()


def _feed(model: Any, data: dict[str, Any]) -> None:
    """Give the model an image in the layout in which dense convolutions are fastest, so that no rival is slowed."""
    model.feed_data(data)
    if model.lq.dim() == 4:
        model.lq = model.lq.contiguous(memory_format=torch.channels_last)


def _timed(run: Callable[[], None]) -> float:
    """Seconds that ``run`` takes."""
    _synchronise()
    start = time.perf_counter()
    run()
    _synchronise()
    return time.perf_counter() - start


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class _Mean:
    """Adds up the images of one row."""

    def __init__(self, name: str, kind: str, levels: int) -> None:
        self.name, self.kind = name, kind
        self.images = 0
        self.quality: dict[str, float] = {}
        self.macs_share = self.seconds = 0.0
        self.usage = torch.zeros(levels, dtype=torch.float64)

    def add(self, quality: dict[str, float], restored: Any, seconds: float) -> None:
        self.images += 1
        for name, value in quality.items():
            self.quality[name] = self.quality.get(name, 0.0) + value
        self.macs_share += restored.macs_share
        self.seconds += seconds
        self.usage += restored.levels.flatten().bincount(minlength=len(self.usage)) / restored.levels.numel()

    def row(self) -> Row:
        count = self.images
        quality = {name: value / count for name, value in self.quality.items()}
        usage = (self.usage / count).tolist()
        return Row(self.name, self.kind, quality, self.macs_share / count, self.seconds / count, usage)


def run(option_file: Path, budgets: Sequence[float], out: Path | None, random: bool = True) -> dict[str, list[Row]]:
    """Compare on every dataset of a test option file; log each table.

    Args:
        option_file: a BasicSR test option file with a ClassPruningModel.
        budgets: fractions of the dense MACs.
        out: folder for the files, or None.
        random: whether random routing runs too.
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
        rows = results[name] = compare(model, loader, budgets, out / name if out else None, random)
        table = as_markdown(rows, model.net.labels)
        get_root_logger().info(f'{name}: {machine()}\n\n{table}\n')
        if out:
            write_text(out / name / 'table.md', f'{name}: {machine()}\n\n{table}\n')
            write_text(out / name / 'table.json', json.dumps([asdict(row) for row in rows], indent=1))
            plot(rows, out / name / 'psnr_macs.png', name)
    return results


def read_test_options(option_file: Path) -> dict[str, Any]:
    """An option file as BasicSR's test command sees it, without its command line or result folders.

    Raises:
        OptionError: it names no metrics, or another model.
    """
    opt = yaml.safe_load(option_file.read_text(encoding='utf-8'))
    if opt.get('model_type') != 'ClassPruningModel':
        raise OptionError(
            f'{option_file}: model_type is {opt.get("model_type")!r}; only a ClassPruningModel has levels to compare.'
        )
    if not (opt.get('val') or {}).get('metrics'):
        raise OptionError(f'{option_file}: val.metrics is missing; there would be nothing to compare.')
    opt |= {'is_train': False, 'dist': False, 'rank': 0, 'world_size': 1}
    opt['num_gpu'] = torch.cuda.device_count() if opt.get('num_gpu', 'auto') == 'auto' else opt['num_gpu']
    opt['manual_seed'] = opt.get('manual_seed') or 0
    opt['path'] = {
        key: osp.expanduser(value) if isinstance(value, str) else value for key, value in opt['path'].items()
    }
    for phase, block in opt['datasets'].items():
        block |= {'phase': phase.split('_')[0]} | ({'scale': opt['scale']} if 'scale' in opt else {})
    return opt


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-opt', type=Path, required=True, help='BasicSR test option file')
    parser.add_argument('--budgets', type=float, nargs='+', default=DEFAULT_BUDGETS, help='fractions of the dense MACs')
    parser.add_argument('--out', type=Path, help='folder for table, JSON, pictures and plot')
    parser.add_argument(
        '--no-random', action='store_true', help='leave the control out, which takes as long as routing'
    )
    options = parser.parse_args(arguments)
    run(options.opt, options.budgets, options.out, not options.no_random)


if __name__ == '__main__':
    main()
