"""The losses of each stage. Reads like section "Method" of the README."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from cp_basicsr.losses.across_processes import mean_over_processes
from cp_basicsr.routing import patch_psnr, tile_mse, tile_worth

from .measured_patches import MeasuredPatches
from .training_options import ramped

# The mean cost of so many targets is known to about 0.6 % of the dense MACs.
MAX_ROWS = 4096
# Levels beside the densest that a step of the supernet stage runs: what the sandwich has, with all others left alone.
SPARSE_LEVELS = 2

if TYPE_CHECKING:
    from .class_pruning_model import ClassPruningModel


class Objectives:
    """Losses of the stages on the batch that the model holds.

    Args:
        model: supplies the batch (``lq``, ``gt``), the network, the criteria and the training options.

    Attributes:
        observed: further numbers of the last step for the log: expected cost, and for each level the share of tiles
            that the classifier gives it (``tiles_levelK``) and that the measured target gives it (``target_levelK``).
    """

    def __init__(self, model: ClassPruningModel) -> None:
        self.model = model
        self.observed: dict[str, float] = {}
        self._measured: MeasuredPatches | None = None

    def dense(self, current_iter: int) -> dict[str, Tensor]:
        """The base network alone."""
        self.observed = {}
        densest = self.model.net.pattern.densest
        outputs, _ = self.model.net_g(self.model.lq, each_level=[densest])
        return self._restoration(outputs[densest], self.model.gt, 'dense')

    def supernet(self, current_iter: int) -> dict[str, Tensor]:
        """Sandwich: the densest level and two sparse ones, and random levels on neighbouring tiles where asked for."""
        self.observed = {}
        weight = self.model.training_options.mixed_weight
        level_map = self._random_map() if weight else None
        outputs, _ = self.model.net_g(self.model.lq, each_level=self._sandwich_levels(), level_map=level_map)
        mixed = outputs.pop('mixed', None)
        losses = self._sandwich(outputs)
        if mixed is None:
            return losses
        of_mixed = self._towards_dense(mixed, outputs[self.model.net.pattern.densest].detach(), 'mixed')
        return losses | {name: weight * loss for name, loss in of_mixed.items()}

    def _sandwich_levels(self) -> list[int]:
        """The densest and the sparsest level with one between; levels that share nothing take turns instead."""
        densest, chance = self.model.net.pattern.densest, self.model.levels_random
        if self.model.net.weights == 'per_level':
            return [densest, *chance.sample(range(densest), min(SPARSE_LEVELS, densest))]
        between = range(1, densest)
        return [densest, 0] + ([chance.choice(between)] if between else [])

    def _random_map(self) -> tuple[Tensor, int] | None:
        """A level for each tile of each patch at random; None where patches are routed as a whole."""
        tile, lq = self.model.training_tile(), self.model.lq
        if tile is None:
            return None
        rows, columns = (-(-side // tile) for side in lq.shape[-2:])
        return torch.randint(len(self.model.net.levels), (len(lq), rows, columns)), tile

    def classifier(self, current_iter: int) -> dict[str, Tensor]:
        """The classifier learns which level pays, within the budget, decidedly."""
        lq, target = self._measured_batch()
        _, log_probs = self.model.net_g(lq, each_level=(), predict_tile=self.model.training_tile())
        losses = self._oracle(log_probs, target)
        progress = self.model.stage.progress(current_iter)
        options = self.model.training_options
        return losses | self._auxiliary(
            log_probs, ramped(options.budget_ramp, progress), ramped(options.confidence_ramp, progress)
        )

    @torch.no_grad()
    def _measured_batch(self) -> tuple[Tensor, Tensor | None]:
        """lq patches and their target, log-probabilities ``[n, L]``: the batch, on which all levels are run, until
        ``classifier_patches`` have been measured; from then on random ones of those, and no level is run.
        """
        model = self.model
        if 'oracle' not in model.criteria:
            return model.lq, None
        if self._measured is None:  # also after a resume in the middle of the stage
            self._measured = MeasuredPatches(-(-model.training_options.classifier_patches // model.opt['world_size']))
        if self._measured.complete:
            lq, mse = self._measured.draw(len(model.lq), *self._augmentations())
        else:
            outputs, _ = model.net(model.lq, each_level=range(len(model.net.levels)))
            lq, mse = model.lq, self._errors(outputs)
            self._measured.add(lq, mse)
            self._set_prices(self._measured.mse)
        return lq.to(model.device), self._target(mse)

    def _augmentations(self) -> tuple[bool, bool]:
        """Whether the training dataset mirrors and turns its patches.

        Measured ones stay as they are where tiles do not divide them: another row of tiles would be the cut one.
        """
        tile = self.model.training_tile()
        if tile is not None and any(side % tile for side in self.model.lq.shape[-2:]):
            return False, False
        dataset = self.model.opt['datasets'].get('train', {})
        return bool(dataset.get('use_hflip')), bool(dataset.get('use_rot'))

    def joint(self, current_iter: int) -> dict[str, Tensor]:
        """Both learn: the loss is taken on the chosen output, the choice is hard going forward and soft going back.

        The measured target stays: what the classifier feels through the chosen output is weak, and the auxiliary losses
        alone are content with one middle level everywhere.
        """
        model = self.model
        self._measured = None  # the levels change from here on
        levels = range(len(model.net.levels))
        outputs, log_probs = model.net_g(model.lq, each_level=levels, predict_tile=model.training_tile())
        probs = log_probs.exp()
        hard = F.one_hot(probs.argmax(dim=1), len(levels)).movedim(-1, 1).to(probs)
        choice = hard + probs - probs.detach()
        chosen = sum(self._on_pixels(choice[:, k], outputs[k]) * outputs[k] for k in levels)
        losses = self._restoration(chosen, model.gt, 'chosen')
        target = None
        if 'oracle' in model.criteria:
            errors = self._errors(outputs).detach()
            self._set_prices(errors)
            target = self._target(errors)
        losses |= self._oracle(log_probs, target) | self._auxiliary(log_probs, 1.0, 1.0)
        weight = model.training_options.joint_supernet_weight
        return losses | {name: weight * loss for name, loss in self._sandwich(outputs).items()}

    def _sandwich(self, outputs: dict[int, Tensor]) -> dict[str, Tensor]:
        """``L(y_dense, gt) + sum_k [(1-a) L(y_k, gt) + a L1(y_k, stopgrad(y_dense))]``."""
        densest = self.model.net.pattern.densest
        teacher = outputs[densest].detach()
        losses = self._restoration(outputs[densest], self.model.gt, 'dense')
        for level in sorted(outputs.keys() - {densest}):
            losses |= self._towards_dense(outputs[level], teacher, f'level{level}')
        return losses

    def _towards_dense(self, output: Tensor, teacher: Tensor, name: str) -> dict[str, Tensor]:
        """``(1-a) L(y, gt) + a L1(y, teacher)``, L1 or the pixel loss of the run."""
        distill = self.model.training_options.distill
        to_gt = self._restoration(output, self.model.gt, name) if distill < 1 else {}
        losses = {key: (1 - distill) * loss for key, loss in to_gt.items()}
        if distill:
            criterion = self.model.cri_pix or F.l1_loss
            losses[f'l_distill_{name}'] = distill * criterion(output, teacher)
        return losses

    def _restoration(self, output: Tensor, target: Tensor, name: str) -> dict[str, Tensor]:
        """SRModel's pixel, perceptual and style losses."""
        losses = {}
        if self.model.cri_pix:
            losses[f'l_pix_{name}'] = self.model.cri_pix(output, target)
        if self.model.cri_perceptual:
            perceptual, style = self.model.cri_perceptual(output, target)
            losses |= {f'l_percep_{name}': perceptual, f'l_style_{name}': style}
        return {name: loss for name, loss in losses.items() if loss is not None}

    def _oracle(self, log_probs: Tensor, target: Tensor | None) -> dict[str, Tensor]:
        """Cross-entropy with the measured target; what both choose is observed for the log."""
        self._observe(log_probs, target)
        if target is None:
            return {}
        target = target.to(log_probs.device)
        return {'l_oracle': self.model.criteria['oracle'](_rows(log_probs), target, self._costs(), self._pricing)}

    def _errors(self, outputs: dict[int, Tensor]) -> Tensor:
        """Mean squared error to expect of each tile at each level on the batch: float64 ``[B, L, rows, columns]``.

        The densest level's is measured. What another level adds to it is taken for the squared distance of the two
        outputs: if the dense one is the mean of all images that the input may show, that is its expectation, whereas
        the two true errors differ mostly by luck. M6C40 x2, levels 5, 10, 15, 20, 30 and 40 of 40, 1,000 iterations, dB
        over static levels at 50, 40 and 30 % of the MACs, 20 images of BSD100: 0.014, 0.033, 0.076; from true errors
        0.011, 0.029, 0.066; a router that knows these distances 0.017, 0.039, 0.090. CDnCNN, sigma 25, 12 images of
        McMaster, levels 16, 24, 32, 48 and 64 of 64, at 40 and 30 %: -0.002, 0.014; from true errors -0.016, -0.002.
        """
        model = self.model
        tile = model.training_tile()
        scale = model.gt.shape[-1] // model.lq.shape[-1]
        side = max(model.gt.shape[-2:]) if tile is None else tile * scale
        # The frames of a video count as channels.
        *sparse, dense = (outputs[level].flatten(1, -3) for level in sorted(outputs))
        error = tile_mse(dense, model.gt.flatten(1, -3), side)
        mse = [error + tile_mse(output, dense, side) for output in sparse]
        return torch.stack([*mse, error], dim=1).double()

    def _set_prices(self, mse: Tensor) -> None:
        """Learn from the errors of a set of patches, the same number in each process, what errors and MACs cost."""
        self._set_mse = float(mean_over_processes(mse[:, -1].mean()))
        worth, costs = _rows(self._worth(mse)), self._costs()
        budget = self.model.trained_budget()
        criterion = self.model.criteria['oracle']
        self._pricing = criterion.pricing(
            worth[:: -(-len(worth) // MAX_ROWS)], costs, float(costs.mean()) if budget is None else budget
        )

    def _target(self, mse: Tensor) -> Tensor:
        """The measured soft oracle of patches with these errors: log-probabilities ``[n, L]``."""
        return self.model.criteria['oracle'].target(_rows(self._worth(mse)), self._costs(), self._pricing)

    def _worth(self, mse: Tensor) -> Tensor:
        """What each level is worth to each tile, in dB."""
        return patch_psnr(mse) if self.model.training_tile() is None else tile_worth(mse, self._set_mse)

    def _auxiliary(self, log_probs: Tensor, budget_weight: float, confidence_weight: float) -> dict[str, Tensor]:
        costs = self._costs()
        weights = {'budget': budget_weight, 'confidence': confidence_weight}
        return {
            f'l_{name}': weight * self.model.criteria[name](_rows(log_probs), costs)
            for name, weight in weights.items()
            if name in self.model.criteria
        }

    def _costs(self) -> Tensor:
        """Share of the dense MACs of each level on a training patch, classifier included: float64 ``[L]``."""
        net, shape = self.model.net, self.model.lq.shape[1:]
        return net.costs(shape) + net.overhead(shape, self.model.training_tile())

    def _on_pixels(self, choice: Tensor, output: Tensor) -> Tensor:
        """One weight for each tile ``[B, rows, columns]`` spread over the pixels of an output."""
        tile = self.model.training_tile()
        if tile is None:
            return choice.view(-1, *[1] * (output.dim() - 1))
        side = tile * (output.shape[-1] // self.model.lq.shape[-1])
        spread = choice.repeat_interleave(side, dim=1).repeat_interleave(side, dim=2)
        return spread[:, None, : output.shape[-2], : output.shape[-1]]

    @torch.no_grad()
    def _observe(self, log_probs: Tensor, target: Tensor | None) -> None:
        rows = _rows(log_probs)
        count = rows.shape[1]
        self.observed = {'expected_cost': float((rows.exp() @ self._costs().to(log_probs)).mean())}
        sides = {'tiles': rows} | ({} if target is None else {'target': target})
        for side, values in sides.items():
            shares = values.argmax(dim=1).bincount(minlength=count) / len(values)
            self.observed |= {f'{side}_level{k}': float(share) for k, share in enumerate(shares)}


def _rows(values: Tensor) -> Tensor:
    """``[B, L, rows, columns]`` (or ``[B, L, ...]``) as ``[n, L]``, one row for each tile."""
    return values.flatten(2).transpose(1, 2).flatten(0, 1)
