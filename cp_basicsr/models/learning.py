"""What learns in each stage, and with which optimiser and scheduler."""

from __future__ import annotations

import torch
from basicsr.utils import get_root_logger
from torch import nn

from cp_basicsr.options import OptionError

from .stages import Stage
from .whitened_adam import WhitenedAdam


class LearningMixin:
    """Stages of ClassPruningModel, from its ``training_options.plan``; stands before SRModel in its bases."""

    def setup_optimizers(self) -> None:
        """Every stage's optimiser and scheduler are tried, so that a wrong option stops the run now and not in days."""
        for stage in self.training_options.plan.stages:
            try:
                self._start_learning(stage, [nn.Parameter(torch.zeros(1))])
            except (TypeError, ValueError, AssertionError, NotImplementedError) as error:
                raise OptionError(
                    f'Stage {stage.name}: {error} (optim_g is {dict(stage.optim_g)}, scheduler is '
                    f'{dict(stage.scheduler)}; from train and train.stages).'
                ) from error
        self._enter_stage(self.training_options.plan.at(1))

    def setup_schedulers(self) -> None:
        """Set up with the stage in :meth:`_enter_stage`."""

    def _enter_stage(self, stage: Stage) -> None:
        """Let the stage's networks learn, with an optimiser and a scheduler of their own."""
        if self.stage == stage:
            return
        self.stage = stage
        self._flips: dict[str, float] = {}
        net = self.net
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name in self._trainable and self._learns(name, stage.name))
            parameter.grad = None
        self.net_g = self.model_to_device(net)
        self._set_modes()
        learning = [parameter for parameter in net.parameters() if parameter.requires_grad]
        self._start_learning(stage, learning)
        get_root_logger().info(
            f'Stage {stage.name}: iterations {stage.first} to {stage.last}, {sum(p.numel() for p in learning):,d} '
            f'parameters learn with {dict(stage.optim_g)} and {dict(stage.scheduler)}.'
        )

    def _start_learning(self, stage: Stage, learning: list[nn.Parameter]) -> None:
        """Make the stage's optimiser and scheduler for these parameters."""
        options = dict(stage.optim_g)
        kind = options.pop('type')
        if kind != 'WhitenedAdam':
            self.optimizer_g = self.get_optimizer(kind, learning, **options)
        elif stage.name == 'supernet':
            self.optimizer_g = WhitenedAdam(self.net.base, **options)
        else:
            raise OptionError('WhitenedAdam trains sparse levels only, in stage supernet; take Adam for this one.')
        self.optimizers, self.schedulers = [self.optimizer_g], []
        run_options, self.opt['train'] = self.opt['train'], {'scheduler': dict(stage.scheduler)}
        try:
            super().setup_schedulers()
        finally:
            self.opt['train'] = run_options

    def _learns(self, name: str, stage: str) -> bool:
        """Whether a parameter learns in a stage. With ``per_level`` the base's own values do in stage dense only."""
        if name.startswith('classifier.'):
            return stage in ('classifier', 'joint')
        if stage == 'classifier':
            return False
        of_sparse_level = '.level_weights.' in name or '.level_biases.' in name
        if stage == 'dense':
            return not of_sparse_level
        return self.net.weights == 'shared' or of_sparse_level

    def _set_modes(self) -> None:
        """Training mode; a frozen supernet is in eval mode, so that targets are measured without dropout."""
        self.net_g.train()
        if self.stage.name == 'classifier':
            self.net.base.eval()
        elif self.net.weights == 'per_level' and self.stage.name != 'dense':  # BatchNorm belongs to the untouched base
            for module in self.net.base.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
