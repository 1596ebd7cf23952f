"""Saving, resuming and loading of ClassPruningModel."""

from __future__ import annotations

from collections.abc import Mapping
from os import path as osp
from typing import Any

from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only
from torch import nn

from cp_basicsr.archs.state import CheckpointError
from cp_basicsr.sparsity import adopt_dense_values

from .calibrating import calibrate
from .checkpoints import read_state_dict, write_atomically


class SavingMixin:
    """Checkpoints of ClassPruningModel; stands before SRModel in its bases."""

    def save(self, epoch: int, current_iter: int) -> None:
        """Save networks and training state; once a classifier learns the networks are calibrated first."""
        if self.stage.name == 'dense':  # another run may start from this checkpoint: its levels start from the base
            for net in self._nets():
                adopt_dense_values(net.base)
        self.calibrate()
        super().save(epoch, current_iter)

    @master_only
    def calibrate(self) -> None:
        """Fit the policy's curves on held-out images (``train.calibration.dataset``)."""
        patches = [] if self.stage.name in ('dense', 'supernet') else self.calibration_images.patches
        if not patches:
            return
        for net in self._nets():
            calibrate(net, patches, self.trained_budget(), self.choice.tile)
        self._set_modes()
        get_root_logger().info(f'Calibrated on {len(patches)} images.')

    @master_only
    def save_network(
        self, net: nn.Module | list[nn.Module], net_label: str, current_iter: int, param_key: str | list[str] = 'params'
    ) -> None:
        nets, keys = (value if isinstance(value, list) else [value] for value in (net, param_key))
        states = {
            key: {name: value.cpu() for name, value in self.get_bare_model(one).state_dict().items()}
            for one, key in zip(nets, keys, strict=True)
        }
        label = 'latest' if current_iter == -1 else current_iter
        write_atomically(states, osp.join(self.opt['path']['models'], f'{net_label}_{label}.pth'))

    @master_only
    def save_training_state(self, epoch: int, current_iter: int) -> None:
        if current_iter == -1:
            return
        state = {
            'epoch': epoch,
            'iter': current_iter,
            'stage': self.stage.name,
            'manual_seed': self.opt['manual_seed'],
            'optimizers': [optimizer.state_dict() for optimizer in self.optimizers],
            'schedulers': [scheduler.state_dict() for scheduler in self.schedulers],
        }
        write_atomically(state, osp.join(self.opt['path']['training_states'], f'{current_iter}.state'))

    def resume_training(self, resume_state: Mapping[str, Any]) -> None:
        """Go on in the stage of the saved iteration with its optimiser and scheduler.

        Raises:
            CheckpointError: that iteration belongs to another stage in this option file.
        """
        stage = self.training_options.plan.at(resume_state['iter'])
        if resume_state.get('stage', stage.name) != stage.name:
            raise CheckpointError(
                f'The state of iteration {resume_state["iter"]} was saved in stage {resume_state["stage"]!r}, but with '
                f'train.stages of this option file it belongs to {stage.name!r}. Restore the stages of its training.'
            )
        # Without manual_seed in the option file BasicSR draws another one in each run.
        self.opt['manual_seed'] = resume_state.get('manual_seed', self.opt['manual_seed'])
        self._enter_stage(stage)
        super().resume_training(resume_state)

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = 'params'
    ) -> None:
        """Load a ClassPruningNet checkpoint or a plain one of the base network.

        Raises:
            CheckpointError: naming the file and what does not fit.
        """
        state_dict = read_state_dict(load_path, param_key)
        try:
            self.get_bare_model(net).load_state_dict(state_dict, strict=strict)
        except (CheckpointError, RuntimeError) as error:
            raise CheckpointError(f'{load_path}: {error}') from error
        get_root_logger().info(f'Loaded {load_path}.')
