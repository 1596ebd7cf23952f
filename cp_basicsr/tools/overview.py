"""Make the picture at the head of the README: a photograph, its level map, PSNR against seconds.

    python -m cp_basicsr.tools.overview -o cp_basicsr/pictures/overview.jpg

The photographs come with scikit-image, the network with this package. The test
photographs of the demo set are tested by the leaderboard, seconds included
(results/overview), and the plain dense network is timed in PyTorch, in the
faster memory layout. One photograph is shown, restored at a budget.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from cp_basicsr import autoload
from cp_basicsr.data.demo_set import make_demo_set
from cp_basicsr.demo import DATA
from cp_basicsr.loading import find_checkpoint
from cp_basicsr.option_files import option_file
from cp_basicsr.options import check_choice
from cp_basicsr.tools import leaderboard, plots
from cp_basicsr.tools.figures import pyplot, write_figure
from cp_basicsr.tools.leaderboards.settings import Settings
from cp_basicsr.tools.report import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from cp_basicsr.restorer import Restoration
    from cp_basicsr.tools.leaderboards.results import Table

MODEL, PHOTOGRAPH, BUDGET = 'srvgg_small_color_dn', 'coffee', 0.5
BUDGETS = (0.75, 0.5, 0.35, 0.25)
RESULTS = Path('results/overview')
SIZE, DPI = (12.8, 4.1), 130  # inches
PLOT_RATIO = 1.15  # its width to its height, about
SHOWN_RANGE = 2.0  # dB below the best row; what is worse lies below the plot
JPEG = {'quality': 90, 'subsampling': 0}


def options_for(model: str) -> dict[str, Any]:
    """Options that test a shipped network on the test photographs of the demo set.

    Raises:
        OptionError: the network has no option file ``test_cp_NAME.yml``.
        CheckpointError: no such network is shipped.
    """
    options = yaml.safe_load(option_file(f'test_cp_{model}.yml').read_text(encoding='utf-8'))
    options['path'] |= {'pretrain_network_g': str(find_checkpoint(model)), 'param_key_g': 'params_ema'}
    block = next(iter(options['datasets'].values())) | {'name': 'scikit-image', 'dataroot_gt': str(DATA / 'test_HR')}
    if 'dataroot_lq' in block:
        block['dataroot_lq'] = str(DATA / f'test_LR_X{options["scale"]}')
    return options | {'name': f'overview_{model}', 'datasets': {'test': block}}


@dataclass(frozen=True)
class Shown:
    """The photograph that is shown.

    Attributes:
        given: uint8 RGB ``[H, W, 3]``, what the network was given, enlarged to the size of its output.
        restored: the same of its output.
        restoration: with the level map.
        labels: of the levels.
    """

    given: np.ndarray
    restored: np.ndarray
    restoration: Restoration
    labels: list[str]


def restore_one(options_file: Path, name: str, budget: float) -> Shown:
    """Restore a photograph of the test set of an option file at a budget.

    Raises:
        OptionError: there is no photograph of this name.
        BudgetError: the levels do not allow this budget.
    """
    import cv2

    from cp_basicsr.restorer import load

    opt, photographs = _photographs(options_file)
    lq = photographs[check_choice(name, list(photographs), '--photograph')].permute(1, 2, 0).numpy()
    model = load(opt['path']['pretrain_network_g'])
    restoration = model.restore(lq, budget=budget)
    given, restored = ((255 * image.clip(0, 1)).round().astype(np.uint8) for image in (lq, restoration.image))
    given = cv2.resize(given, restored.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    return Shown(given, restored, restoration, model.net.labels)


def _photographs(options_file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Options as BasicSR's test command sees them, and what the network is given of each photograph, by its name."""
    from basicsr.data import build_dataset

    from cp_basicsr.tools.leaderboards.networks import read_test_options

    opt = read_test_options(options_file)
    dataset = build_dataset(opt['datasets']['test'])
    return opt, dict(sorted((Path(data['lq_path']).stem, data['lq']) for data in dataset))


def pytorch_seconds(options_file: Path, count: int) -> float:
    """Seconds that the plain dense network takes in PyTorch for one of the first photographs, mean over ``count``.

    As the leaderboard times: the fastest of a few runs counts. The faster memory layout does, too.
    """
    import torch

    from cp_basicsr.loading import load_network
    from cp_basicsr.tools.leaderboards.subject import seconds_of
    from cp_basicsr.tools.leaderboards.timing import REPEATS

    opt, photographs = _photographs(options_file)
    net = load_network(opt['path']['pretrain_network_g']).bake(-1)
    means = []
    for layout in (torch.contiguous_format, torch.channels_last):
        net = net.to(memory_format=layout)
        batches = [lq[None].contiguous(memory_format=layout) for lq in list(photographs.values())[:count]]
        with torch.inference_mode():
            fastest = [min(seconds_of(partial(net, batch)) for _ in range(REPEATS + 1)) for batch in batches]
        means.append(sum(fastest) / len(fastest))
    return min(means)


def draw(out: Path, table: Table, shown: Shown, plain: float) -> None:
    """Draw the three panels and write them.

    Args:
        out: PNG or JPEG as the extension says.
        table: of the photographs.
        shown: one of them.
        plain: seconds of the dense network in PyTorch.
    """
    plt = pyplot()
    ratio = shown.restored.shape[1] / shown.restored.shape[0]
    figure, axes = plt.subplots(1, 3, figsize=SIZE, layout='constrained', width_ratios=(ratio, ratio, PLOT_RATIO))
    _draw_photograph(axes[0], shown)
    _draw_map(axes[1], shown)
    plots.draw_quality(axes[2], table, plots.seconds_of, 'seconds for one photograph')
    dense = table.rows[0].quality[table.headline]
    axes[2].plot([plain], [dense], marker='*', markersize=12, linestyle='', color='tab:red', label='dense in PyTorch')
    axes[2].legend(fontsize='small', loc='center left')
    best = max(row.quality[table.headline] for row in table.rows)
    axes[2].set(title=f'{table.dataset}, {table.images} photographs', ylim=(best - SHOWN_RANGE, best + 0.15))
    for panel in axes:
        panel.title.set_fontsize(11)
    figure.supxlabel('; '.join(table.machine), fontsize=7, color='0.35', x=0.99, ha='right')
    write_figure(figure, out, dpi=DPI, pil_kwargs=JPEG if out.suffix in ('.jpg', '.jpeg') else {})
    plt.close(figure)


def _draw_photograph(axes: Axes, shown: Shown) -> None:
    """What was given on the left, what was restored on the right of a slanting line."""
    height, width = shown.restored.shape[:2]
    top, bottom = 0.58 * width, 0.42 * width
    left = np.arange(width) < np.linspace(top, bottom, height)[:, None]
    axes.imshow(np.where(left[..., None], shown.given, shown.restored))
    axes.plot([top, bottom], [-0.5, height - 0.5], color='white', linewidth=2)
    box = {'facecolor': 'black', 'alpha': 0.65, 'linewidth': 0, 'pad': 3}
    for text, side, place in (('given', 'left', 0.02), ('restored', 'right', 0.98)):
        axes.text(place, 0.03, text, ha=side, va='bottom', color='white', bbox=box, transform=axes.transAxes)
    axes.set_title(f'Restored with {100 * shown.restoration.macs_share:.0f} % of the dense MACs')
    axes.set_axis_off()


def _draw_map(axes: Axes, shown: Shown) -> None:
    from matplotlib.patches import Patch

    from cp_basicsr.routing.picture import level_tints, tint_levels

    levels, count = shown.restoration.levels, len(shown.labels)
    axes.imshow(tint_levels(shown.restored[..., ::-1], levels, shown.restoration.tile_side, count)[..., ::-1])
    shares = np.bincount(levels.ravel(), minlength=count) / levels.size
    boxes = [
        Patch(facecolor=tint[::-1] / 255, edgecolor='black', label=f'{label}  {100 * share:.0f} %')
        for tint, label, share in zip(level_tints(count), shown.labels, shares, strict=True)
    ]
    below = {'loc': 'upper center', 'bbox_to_anchor': (0.5, -0.01), 'ncols': 3, 'frameon': False}
    axes.legend(handles=boxes, fontsize=9, **below)
    axes.set_title('The level of each tile')
    axes.set_axis_off()


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-o', '--out', type=Path, required=True, metavar='FILE', help='PNG or JPEG')
    parser.add_argument('--model', default=MODEL, metavar='NAME', help=f'a shipped network (default: {MODEL})')
    parser.add_argument('--photograph', default=PHOTOGRAPH, metavar='NAME', help=f'default: {PHOTOGRAPH}')
    parser.add_argument('--budget', type=float, default=BUDGET, metavar='B', help=f'of the photograph ({BUDGET})')
    parser.add_argument('--time', type=int, default=6, metavar='N', help='photographs to time (default: 6)')
    options = parser.parse_args(arguments)
    autoload.activate()
    RESULTS.mkdir(parents=True, exist_ok=True)
    try:
        make_demo_set(DATA)
        file = RESULTS / f'{options.model}.yml'
        write_text(file, yaml.safe_dump(options_for(options.model), sort_keys=False))
        (table,) = leaderboard.run([file], RESULTS, Settings(BUDGETS, controls=(), timed=options.time))
        shown = restore_one(file, options.photograph, options.budget)
        plain = pytorch_seconds(file, options.time)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw(options.out, table, shown, plain)
    sys.stdout.write(f'{options.out}\n')


if __name__ == '__main__':
    main()
