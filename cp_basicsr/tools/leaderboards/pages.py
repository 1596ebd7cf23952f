"""One page for an image: its level map, where routed and dense differ most, and the difference."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from cp_basicsr.data.files import write_png
from cp_basicsr.routing.picture import draw_level_map
from cp_basicsr.tools.report import write_text

from .images import Images
from .measuring import LoadSubject, Plan, load_image
from .quality import quality
from .subject import Outcome, WholeImage

CROP = 96  # pixels of the restored image
PANEL = 480  # width of each of the panels of a page
GAP = 8
CAPTION = 24
WIDE = PANEL * 3 // 2  # of the two panels of the whole image
WHITE = 99.9  # percentile of the differences that is drawn white
MOST = 64  # times that differences are amplified


def write_pages(images: Images, load: LoadSubject, plan: Plan, folder: Path, count: int) -> None:
    """Draw pages of the first images of a set, at the middle budget, and an index of them.

    Args:
        images: the dataset's.
        load: makes a :class:`WholeImage` of a batch and a name.
        plan: says the budgets.
        folder: for ``NAME.png`` and ``index.md``.
        count: how many images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    budget = sorted(plan.budgets)[len(plan.budgets) // 2]
    lines = [f'Budget {budget:g}.', '']
    for index in range(min(count, len(images))):
        subject = load_image(images, index, load)
        dense = subject.choose(plan.dense_choice())
        routed = subject.choose(plan.routed_choice(budget))
        page, left, top = draw_page(subject, dense, routed)
        write_png(folder / f'{subject.name}.png', page)
        lines += [
            f'## {subject.name}',
            '',
            f'{100 * routed.macs_share:.1f} % of the dense MACs. Crop of {CROP} pixels at ({left}, {top}).',
            '',
            f'![level map, crops and difference of {subject.name}]({subject.name}.png)',
            '',
        ]
    write_text(folder / 'index.md', '\n'.join(lines))


def draw_page(subject: WholeImage, dense: Outcome, routed: Outcome) -> tuple[np.ndarray, int, int]:
    """The contact sheet of one image.

    Args:
        subject: the image, which has just been routed.
        dense, routed: it, restored.

    Returns:
        uint8 ``[H, W, 3]`` (BGR), and left and top of the crop in pixels of the restored image.
    """
    difference = np.abs(_gray(routed.image) - _gray(dense.image))
    left, top, side = _worst_crop(difference)
    bright = int(np.clip(255 / max(np.percentile(difference, WHITE), 1), 1, MOST))
    reduction = max(1, round(difference.shape[1] / WIDE))
    spread = cv2.dilate(difference, np.ones((reduction, reduction)))  # else thin lines would fade when reduced
    shown = np.clip(bright * spread, 0, 255).astype(np.uint8)
    whole = [
        _captioned(_level_map(subject, _marked(routed.image, left, top, side)), 'level map', WIDE),
        _captioned(_marked(shown, left, top, side), f'|routed - dense| x {bright}', WIDE),
    ]
    crops = []
    for title, image in (('routed', routed.image), ('dense', dense.image), ('gt', subject.gt)):
        crop = image[top : top + side, left : left + side]
        truth = subject.gt[top : top + side, left : left + side]
        headline = next(iter(quality(crop, truth, 0).values())) if title != 'gt' else None
        label = title if headline is None else f'{title}, {headline:.2f} dB here'
        crops.append(_captioned(crop, label, PANEL))
    return _stacked([_beside(whole), _beside(crops)]), left, top


def _level_map(subject: WholeImage, image: np.ndarray) -> np.ndarray:
    """The level map of the image restored last, drawn at the size of a panel so that its legend can be read."""
    restored = subject.model.restored
    levels = restored.levels[0].cpu().numpy().astype(np.uint8)
    side = restored.tile_side or max(image.shape[:2])
    pixels = levels.repeat(side, axis=0).repeat(side, axis=1)[: image.shape[0], : image.shape[1]]
    size = (WIDE, max(1, round(image.shape[0] * WIDE / image.shape[1])))
    shrink = cv2.INTER_AREA if image.shape[1] > WIDE else cv2.INTER_NEAREST
    resized = cv2.resize(image, size, interpolation=shrink)
    return draw_level_map(
        resized, cv2.resize(pixels, size, interpolation=cv2.INTER_NEAREST), 1, subject.model.net.pattern
    )


def _gray(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) if image.ndim == 2 else image.astype(np.float32).mean(axis=2)


def _worst_crop(difference: np.ndarray) -> tuple[int, int, int]:
    """Left, top and side of the square whose mean squared difference is largest."""
    side = min(CROP, *difference.shape)
    sums = cv2.integral(difference.astype(np.float64) ** 2)
    inside = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    top, left = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(left), int(top), side


def _marked(picture: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
    """In colour, with a frame around the crop: white within black, to be seen on any ground."""
    picture = _coloured(picture).copy()
    width = max(1, picture.shape[1] // 400)
    for colour, thickness in (((0,) * 3, 3 * width), ((255,) * 3, width)):
        cv2.rectangle(picture, (left, top), (left + side, top + side), colour, thickness)
    return picture


def _captioned(picture: np.ndarray, title: str, width: int) -> np.ndarray:
    """Scaled to a width, with its title above."""
    picture = _coloured(picture)
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    smaller = width < picture.shape[1]
    picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_NEAREST)
    caption = np.full((CAPTION, width, 3), 255, np.uint8)
    cv2.putText(caption, title, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0,) * 3, 1, cv2.LINE_AA)
    return np.vstack([caption, picture])


def _coloured(picture: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR) if picture.ndim == 2 else picture


def _beside(panels: list[np.ndarray]) -> np.ndarray:
    height = max(panel.shape[0] for panel in panels)
    parts = []
    for panel in panels:
        parts += [np.full((height, GAP, 3), 255, np.uint8)] if parts else []
        parts.append(cv2.copyMakeBorder(panel, 0, height - panel.shape[0], 0, 0, cv2.BORDER_CONSTANT, value=(255,) * 3))
    return np.hstack(parts)


def _stacked(rows: list[np.ndarray]) -> np.ndarray:
    width = max(row.shape[1] for row in rows)
    return np.vstack(
        [
            cv2.copyMakeBorder(row, 0, GAP, 0, width - row.shape[1], cv2.BORDER_CONSTANT, value=(255,) * 3)
            for row in rows
        ]
    )
