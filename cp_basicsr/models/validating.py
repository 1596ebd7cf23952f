"""Validation: SRModel's, plus MACs, level usage and pictures of the level map."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from os import path as osp
from typing import Any

import numpy as np
import torch
from basicsr.metrics import calculate_metric
from basicsr.utils import get_root_logger, imwrite, tensor2img
from torch.utils.data import DataLoader
from tqdm import tqdm

from cp_basicsr.archs.restoring import Restored
from cp_basicsr.options import OptionError
from cp_basicsr.routing.choice import RoutingChoice
from cp_basicsr.routing.picture import draw_level_map

PICTURES = 4  # level maps of a dataset that go to TensorBoard


@dataclass
class _Usage:
    """What the images of one dataset took."""

    tiles: list[int]
    macs_shares: list[float] = field(default_factory=list)

    def add(self, restored: Restored) -> None:
        for level, count in enumerate(restored.levels.flatten().bincount(minlength=len(self.tiles)).tolist()):
            self.tiles[level] += count
        self.macs_shares.append(restored.macs_share)

    @property
    def shares(self) -> list[float]:
        return [count / sum(self.tiles) for count in self.tiles]

    @property
    def macs_share(self) -> float:
        return sum(self.macs_shares) / len(self.macs_shares)


class ValidationMixin:
    """Validation of ClassPruningModel; stands before SRModel in its bases."""

    _forced_choice: RoutingChoice | None = None

    def choice_now(self) -> RoutingChoice:
        """How levels are chosen right now: as the option file asks, or the level being validated."""
        return self._forced_choice or self.choice

    @contextmanager
    def using(self, choice: RoutingChoice) -> Iterator[None]:
        """Choose levels in another way within this block."""
        self._forced_choice = choice
        try:
            yield
        finally:
            self._forced_choice = None

    def nondist_validation(self, dataloader: DataLoader, current_iter: int, tb_logger: Any, save_img: bool) -> None:
        """Validate one dataset. Before there is a route each level that learns is validated."""
        name = dataloader.dataset.opt['name']
        unrouted = self.stage.name if self.is_train and self.choice.level is None else None
        if unrouted in ('dense', 'supernet'):
            densest = self.net.pattern.densest
            for level in range(densest if unrouted == 'dense' else 0, densest + 1):
                with self.using(replace(self.choice, budget=None, level=level)):
                    label = f'{name}/level{level}'
                    self._validate(dataloader, label, current_iter, tb_logger, save_img, suffix=f'level{level}')
        else:
            self._validate(dataloader, name, current_iter, tb_logger, save_img)

    def _validate(
        self,
        dataloader: DataLoader,
        name: str,
        current_iter: int,
        tb_logger: Any,
        save_img: bool,
        suffix: str | None = None,
    ) -> None:
        metrics = self.opt['val'].get('metrics') or {}
        sums = dict.fromkeys(metrics, 0.0)
        usage = _Usage([0] * len(self.net.levels))
        progress = tqdm(dataloader, unit='image', desc=name, disable=not self.opt['val'].get('pbar', False))
        for index, data in enumerate(progress):
            stem = osp.splitext(osp.basename(data['lq_path'][0]))[0]
            self.feed_data(data)
            self.test()
            usage.add(self.restored)
            images = self.current_images(stem)
            for metric, value in self.measure(images).items():
                sums[metric] += value
            if save_img:
                imwrite(images['img'], self._image_path(name.split('/')[0], stem, current_iter, suffix))
            if tb_logger and index < PICTURES and self.restored.tile:
                picture = self.level_picture(images['img'])
                tb_logger.add_image(
                    f'level_map/{name}/{stem}', picture[..., ::-1].copy(), current_iter, dataformats='HWC'
                )
            self._forget_images()
        self._log(
            name, {metric: total / len(dataloader) for metric, total in sums.items()}, usage, current_iter, tb_logger
        )

    def measure(self, images: Mapping[str, Any]) -> dict[str, float]:
        """The metrics of ``val.metrics`` on the image just restored; only ``calculate_macs`` is handed the MACs."""
        share = {'macs_share': self.restored.macs_share}
        return {
            name: calculate_metric(images | (share if options['type'] == 'calculate_macs' else {}), options)
            for name, options in (self.opt['val'].get('metrics') or {}).items()
        }

    def level_picture(self, image: np.ndarray) -> np.ndarray:
        """The level map of the image just restored, drawn over it: uint8 BGR."""
        levels = self.restored.levels[0].cpu().numpy()
        return draw_level_map(image, levels, self.restored.tile_side, self.net.pattern)

    def current_images(self, stem: str) -> dict[str, Any]:
        """Restored image and ground truth as BasicSR's metrics take them: uint8, BGR or gray.

        Raises:
            OptionError: they differ in size.
        """
        visuals = self.get_current_visuals()
        images = {'img': tensor2img([visuals['result']])}
        if 'gt' in visuals:
            images['img2'] = tensor2img([visuals['gt']])
            if images['img'].shape != images['img2'].shape:
                raise OptionError(
                    f'Image {stem}: the restored image is {images["img"].shape}, its ground truth '
                    f'{images["img2"].shape} (height, width, channels). gt must be lq times `scale`, '
                    'with the channels that the network gives.'
                )
        return images

    def _image_path(self, dataset: str, stem: str, current_iter: int, suffix: str | None) -> str:
        """Where BasicSR saves the image."""
        folder = self.opt['path']['visualization']
        if self.opt['is_train']:
            ending = f'{current_iter}_{suffix}' if suffix else current_iter
            return osp.join(folder, stem, f'{stem}_{ending}.png')
        return osp.join(folder, dataset, f'{stem}_{self.opt["val"].get("suffix") or self.opt["name"]}.png')

    def _forget_images(self) -> None:
        for name in ('lq', 'gt', 'output', 'restored'):
            if hasattr(self, name):
                delattr(self, name)
        if self.device.type == 'cuda':
            torch.cuda.empty_cache()

    def _log(self, name: str, results: Mapping[str, float], usage: _Usage, current_iter: int, tb_logger: Any) -> None:
        """Quality in SRModel's words, then MACs and level usage."""
        self.metric_results = dict(results)
        if results:
            self._initialize_best_metric_results(name)
            for metric, value in results.items():
                self._update_best_metric_result(name, metric, value, current_iter)
            self._log_validation_metric_values(current_iter, name, tb_logger)
        levels = ', '.join(
            f'level {k} ({label}) {100 * share:.1f} %'
            for k, (label, share) in enumerate(zip(self.net.labels, usage.shares, strict=True))
        )
        get_root_logger().info(
            f'Level usage {name}\n\t # MACs: {100 * usage.macs_share:.2f} % of dense\n\t # tiles: {levels}\n'
        )
        if tb_logger:
            tb_logger.add_scalar(f'metrics/{name}/macs_share', usage.macs_share, current_iter)
            for level, share in enumerate(usage.shares):
                tb_logger.add_scalar(f'usage/{name}/level{level}', share, current_iter)
