"""ClassPruningModel: SRModel with stages, levels, a classifier and a budget."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cp_basicsr.archs.batches import padded
from cp_basicsr.archs.class_pruning_arch import ClassPruningNet, log_conversion
from cp_basicsr.archs.restoring import check_by_tile, level_costs, restore_by_map
from cp_basicsr.precision import DEFAULT_PRECISION, check_precision, computing_in
from cp_basicsr.routing.choice import RoutingChoice
from cp_basicsr.sparsity import adopt_dense_values, refresh_ranks, set_straight_through

from .calibrating import HeldOutImages, RecentBatches
from .collapse import CollapseWatch
from .criteria import build_criteria
from .cropping import random_part
from .learning import LearningMixin
from .objectives import Objectives
from .option_check import check_options
from .saving import SavingMixin
from .stages import Stage
from .starting_levels import middles, reconstruct
from .training_options import TrainingOptions
from .validating import ValidationMixin
from .whitened_adam import WhitenedAdam


class NonFiniteError(FloatingPointError):
    """A loss or gradient is not finite; the run stops before the weights are touched."""


@MODEL_REGISTRY.register()
class ClassPruningModel(LearningMixin, ValidationMixin, SavingMixin, SRModel):
    """Trains and tests a ClassPruningNet. Stages, chosen by iteration:

    - dense: the base network alone learns, for a run without a checkpoint of it; the levels then start from it;
    - supernet: the levels learn, the densest from the images, sparser ones from the images and the densest;
    - classifier: all levels are run on some patches, so which one pays on each tile is measured and it learns that;
    - joint: both learn on the output that the classifier's choice gives.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        check_options(opt)
        self.choice = RoutingChoice.from_val_options(opt.get('val') or {})
        if opt['is_train']:
            self.training_options = TrainingOptions.read(opt['train'])
        super().__init__(opt)
        self._check_choice()
        for net in self._nets():
            net.choice = self.choice
        log_conversion(self.net)

    def _check_choice(self) -> None:
        """Refuse now what the first validation of the network could not do.

        Raises:
            OptionError: ``val.tile`` asks for tiles of a classifier that predicts whole images.
            PatternError: ``val.level`` does not exist.
        """
        if self.choice.level is not None:
            self.net.pattern.index(self.choice.level)
        elif self.choice.tile is not None:
            check_by_tile(self.net, self.choice.tile)

    # Networks.

    @property
    def net(self) -> ClassPruningNet:
        """The network in training, without its parallel wrapper."""
        return self.get_bare_model(self.net_g)

    @property
    def test_net(self) -> ClassPruningNet:
        """The network that is validated, calibrated and shipped: the EMA where there is one."""
        return getattr(self, 'net_g_ema', None) or self.net

    def _nets(self) -> list[ClassPruningNet]:
        return [self.net] + ([self.net_g_ema] if hasattr(self, 'net_g_ema') else [])

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """As BaseModel's, without broadcasting buffers at every step: all processes refresh their ranks alike."""
        net = net.to(self.device)
        if not self.opt['dist']:
            return super().model_to_device(net)
        if not any(parameter.requires_grad for parameter in net.parameters()):
            return net
        for buffer in net.buffers():  # ranks of the first process's weights, which the wrapper gives to all
            torch.distributed.broadcast(buffer, src=0)
        return DistributedDataParallel(
            net,
            device_ids=[torch.cuda.current_device()] if self.device.type == 'cuda' else None,
            broadcast_buffers=False,
            find_unused_parameters=True,  # a step may leave a level or the classifier out
        )

    # Setting up.

    def init_training_settings(self) -> None:
        if self.opt['dist']:  # without manual_seed in the option file BasicSR draws another one in each process
            seed = torch.tensor(self.opt['manual_seed'], device=self.device)
            torch.distributed.broadcast(seed, src=0)
            self.opt['manual_seed'] = int(seed)
        self._trainable = {name for name, parameter in self.net.named_parameters() if parameter.requires_grad}
        stages = self.training_options.plan.stages
        given = self.opt['path'].get('pretrain_network_g') or stages[0].name == 'dense'
        if self.net.weights == 'per_level' and not given:
            get_root_logger().warning(
                'network_g.sparsity.weights is per_level without path.pretrain_network_g: the dense level is never '
                'trained, so it stays random. Give a checkpoint of the base network, let train.stages start with a '
                'stage dense, or use `weights: shared`.'
            )
        criteria = build_criteria(self.opt['train'], self.training_options.plan)
        self.criteria = {name: loss.to(self.device) for name, loss in criteria.items()}
        self.stage: Stage | None = None
        self._budgets_checked = False
        super().init_training_settings()
        options = self.training_options
        check_precision(options.precision, self.device, 'train.precision')
        set_straight_through(self.net, options.straight_through)
        self.calibration_images = (
            HeldOutImages(options, self.opt.get('scale', 1), self.net) if options.calibration else RecentBatches()
        )
        self.objectives = Objectives(self)
        self.collapse = CollapseWatch()

    # One iteration.

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """As BaseModel's, counted from the start of the stage; the warm-up is the first stage's."""
        self._enter_stage(self.training_options.plan.at(current_iter))
        in_stage = current_iter - self.stage.first + 1
        super().update_learning_rate(in_stage, warmup_iter if self.stage.first == 1 else -1)

    def optimize_parameters(self, current_iter: int) -> None:
        self._enter_stage(self.training_options.plan.at(current_iter))
        if self.stage.gt_size is not None:
            chance = random.Random(self._seed_of(current_iter))
            self.lq, self.gt = random_part(self.lq, self.gt, self.stage.gt_size, chance)
        self._check_budgets()
        self._measure_layers_if_due(current_iter)
        self.optimizer_g.zero_grad()
        with self._random_numbers_of(current_iter):
            with computing_in(self._precision(), self.device):
                losses = getattr(self.objectives, self.stage.name)(current_iter)
            self._backward(losses, current_iter)
        self.optimizer_g.step()
        observed = self._refresh_ranks_if_due(current_iter)
        if self.ema_decay > 0:
            self.model_ema(self.ema_decay)
        if self.stage.name == 'dense' and current_iter == self.stage.last:
            for net in self._nets():
                adopt_dense_values(net.base)
        self.log_dict = self.reduce_loss_dict(losses) | self.objectives.observed | observed
        self.collapse.watch(self)
        self.calibration_images.watch(self.lq)

    def _measure_layers_if_due(self, current_iter: int) -> None:
        """The levels' start, and the coordinates of WhitenedAdam, also after a resume: both need the layers' inputs."""
        starts = self.stage.name != 'dense' and current_iter == self.stage.first and self.training_options.reconstruct
        whitens = isinstance(self.optimizer_g, WhitenedAdam) and not self.optimizer_g.whitened
        if not starts and not whitens:
            return
        patches = self.calibration_images.patches or [self.lq]
        if starts:
            reconstruct(self._nets(), patches, self.opt['dist'])
        if whitens:
            self.net.eval()
            self.optimizer_g.whiten(self.net.base, middles(self.net, patches))
        self._set_modes()

    def _precision(self) -> str:
        """What a step computes in. The classifier's targets are small differences of errors, too fine for bf16."""
        return self.training_options.precision if self.stage.name in ('dense', 'supernet') else DEFAULT_PRECISION

    def _seed_of(self, current_iter: int) -> int:
        """Another one in each process and iteration, so that a resumed run draws the same."""
        return hash((self.opt['manual_seed'], self.opt['rank'], current_iter))

    @contextmanager
    def _random_numbers_of(self, current_iter: int) -> Iterator[None]:
        """Random numbers that depend on the iteration only, so that a resumed run takes the same steps."""
        devices = [torch.cuda.current_device()] if self.device.type == 'cuda' else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self._seed_of(current_iter))
            # Ranks of a distributed run must visit the same levels.
            self.levels_random = random.Random(hash((self.opt['manual_seed'], current_iter)))
            yield

    def _backward(self, losses: Mapping[str, Tensor], current_iter: int) -> None:
        total = sum(losses.values())
        total.backward()
        learning = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        norm = nn.utils.clip_grad_norm_(learning, self.training_options.grad_clip_norm or float('inf'))
        # Both after the gradients have met, so that all processes of a distributed run stop together.
        self._require_finite(total, f'the loss ({_values(losses)})', current_iter)
        self._require_finite(norm, 'the norm of the gradient', current_iter)

    def _require_finite(self, value: Tensor, what: str, current_iter: int) -> None:
        if not torch.isfinite(value).all():
            folder = self.opt['path'].get('models', 'experiments')
            raise NonFiniteError(
                f'Iteration {current_iter} ({self.stage.name} stage): {what} is {float(value.detach())}. The weights '
                f'were not touched, and the last checkpoint in {folder} is good. Lower train.optim_g.lr or set '
                'train.grad_clip_norm, look for broken images, and resume with --auto_resume.'
            )

    def _refresh_ranks_if_due(self, current_iter: int) -> dict[str, float]:
        options = self.training_options
        if self.stage.name != 'supernet' or not options.refresh_interval or self.net.weights == 'per_level':
            return {}
        done = current_iter - self.stage.first + 1
        if done % options.refresh_interval or done > options.freeze_at * self.stage.iters:
            return {}
        self._flips = {'mask_flips': refresh_ranks(self.net)}
        return self._flips

    def get_current_log(self) -> dict[str, float]:
        """Numbers of the last step, and of the stage's last refresh of ranks, which seldom falls on a logged step."""
        return self.log_dict | self._flips

    def model_ema(self, decay: float = 0.999) -> None:
        """Exponential moving average of the parameters; buffers are copied: ranks and BatchNorm statistics must fit."""
        ema = dict(self.net_g_ema.named_parameters())
        with torch.no_grad():
            for name, parameter in self.net.named_parameters():
                ema[name].lerp_(parameter, 1 - decay)
            buffers = dict(self.net_g_ema.named_buffers())
            for name, current in self.net.named_buffers():
                if not name.startswith('calibration.'):  # each network has curves of its own
                    buffers[name].copy_(current)

    def _check_budgets(self) -> None:
        """Before the first step: refuse budgets that the levels do not allow, not hours later."""
        if self._budgets_checked:
            return
        self._budgets_checked = True
        shape, tile = self.lq.shape[1:], self.training_tile()
        if self.trained_budget() is not None:
            self.net.check_budget(self.trained_budget(), shape, tile, 'train.budget_opt.target')
        if self.choice.budget is not None:
            self.net.check_budget(self.choice.budget, shape, tile, overlap=self.choice.overlap)

    def trained_budget(self) -> float | None:
        """The budget loss's target, share of the dense MACs; None without such a loss."""
        return getattr(self.criteria.get('budget'), 'target', None)

    def training_tile(self) -> int | None:
        """Side of a routed region of a training patch in lq pixels; None takes the whole patch."""
        if self.choice.tile is None or self.lq.dim() == 5 or not self.net.classifier.by_tile:
            return None
        return self.choice.tile

    # Testing.

    @torch.no_grad()
    def test(self, route: tuple[Tensor, int | None] | None = None) -> None:
        """Restore ``self.lq``, padded to what the network needs (SwinIR's windows) by reflection as SwinIRModel does.

        Args:
            route: a level map ``[1, rows, columns]`` and its tile in lq pixels to follow; None lets the network choose.
        """
        net = self.test_net.eval()
        lq = self.padded_lq()
        choice = self.choice_now()
        if route is None:
            self.restored = net.restore(lq, choice)
        else:
            self.restored = restore_by_map(net, lq, *route, choice.overlap, choice.precision)
        if self.is_train:
            self._set_modes()
        height, width = (side * self.restored.scale for side in self.lq.shape[-2:])
        self.output = self.restored.image[..., :height, :width]

    def prepare(self) -> None:
        """Count the MACs for the size of ``self.lq``, which is done once for each size."""
        lq, tile = self.padded_lq(), self.choice.tile
        self.test_net.overhead(lq.shape[1:], tile)
        level_costs(self.test_net, lq, tile, self.choice.overlap)

    def padded_lq(self) -> Tensor:
        """``self.lq`` as the network gets it: its height and width padded to multiples of what the network needs."""
        return padded(self.lq, self.net.multiple)


def _values(losses: Mapping[str, Tensor]) -> str:
    return ', '.join(f'{name} {float(value.detach()):.4g}' for name, value in losses.items())
