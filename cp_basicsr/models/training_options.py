"""Our keys in the ``train`` block of an option file, checked before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cp_basicsr.options import OptionError, check_choice, check_keys, check_number, read_block
from cp_basicsr.precision import DEFAULT_PRECISION

from .stages import StagePlan

TRAINING_PRECISIONS = (DEFAULT_PRECISION, 'bf16')  # fp16 would need its losses scaled

# M6C40 x2, patches of 80 x 80, 600 iterations, dB over static pruning at 50, 40 and 30 % of the MACs on 40 images of
# BSD100: 200 patches 0.043, 0.095, 0.194; 400 patches 0.046, 0.095, 0.197; 1,600 patches 0.045, 0.096, 0.200.
CLASSIFIER_PATCHES = 400


@dataclass(frozen=True)
class TrainingOptions:
    """What ClassPruningModel reads from ``train`` beyond SRModel's keys.

    Attributes:
        plan: the stages.
        precision: what layers compute in while the stages dense and supernet train them (``precision``); weights and
            optimiser stay float32.
        reconstruct: whether levels with values of their own start from a least-squares fit to the dense network on
            the calibration images (``reconstruct``), or from the dense values with zeros written in. The colour
            denoiser CDnCNN (18 layers), sigma 25, two images, dense 30.10 dB, levels 2, 4 and 6 of 8 with zeros written
            in: 7.75, 15.91, 23.09 dB; what the fit gives stands in :mod:`cp_basicsr.sparsity.reconstruction`.
        distill: share ``a`` of a sparse level's loss that is measured against the dense output (``sandwich.distill``).
        mixed_weight: weight of a further output of the supernet stage, on which neighbouring tiles run at random levels
            (``sandwich.mixed``); 0 leaves it out. Levels with values of their own drift apart in training: mixing the
            tiles of an 18-layer denoiser cost 0.01 dB after the least-squares start, 0.12 dB after 400 iterations
            without this, and more than a decibel where levels had been trained apart without that start.
        refresh_interval: iterations between two refreshes of the ranks (``ranks.refresh_interval``); 0 never.
        freeze_at: share of the supernet stage after which ranks stay (``ranks.freeze_at``).
        straight_through: whether a sparse level also teaches the weights it masks (``ranks.straight_through``). They
            belong to the denser levels, which this disturbs, and learn from the densest level at every step anyway.
            Small SwinIR from scratch, sigma 25, 400 iterations, PSNR at 4:4, 2:4, 1:4: always 28.56, 28.54, 28.15 dB;
            never, with ranks frozen after 15 %, 28.92, 28.67, 28.35.
        classifier_patches: training patches, of all processes, that all levels are run on in the first iterations of
            the classifier stage, and that the rest of it learns from (``classifier_patches``).
        budget_ramp, confidence_ramp: shares of the classifier stage over which the weight of an auxiliary loss rises
            from 0 to its full value (``ramp``). Both from the start lock a collapsed router (ClassSR issues 11, 22).
        joint_supernet_weight: weight of the supernet's losses in the joint stage (``joint.supernet_weight``).
        grad_clip_norm: largest norm of the whole gradient; None does not clip.
        calibration: options of the held-out dataset (``calibration.dataset``) or None.
        calibration_images: images read from it at most.
    """

    plan: StagePlan
    precision: str
    reconstruct: bool
    distill: float
    mixed_weight: float
    refresh_interval: int
    freeze_at: float
    straight_through: bool
    classifier_patches: int
    budget_ramp: tuple[float, float]
    confidence_ramp: tuple[float, float]
    joint_supernet_weight: float
    grad_clip_norm: float | None
    calibration: Mapping[str, Any] | None
    calibration_images: int

    @classmethod
    def read(cls, train: Mapping[str, Any]) -> TrainingOptions:
        """Read and check.

        Raises:
            OptionError: naming the option path, the value and what is allowed.
        """
        sandwich = check_keys(train.get('sandwich'), ['distill', 'mixed'], 'train.sandwich')
        ranks = check_keys(train.get('ranks'), ['refresh_interval', 'freeze_at', 'straight_through'], 'train.ranks')
        ramp = check_keys(train.get('ramp'), ['budget', 'confidence'], 'train.ramp')
        joint = check_keys(train.get('joint'), ['supernet_weight'], 'train.joint')
        calibration = check_keys(train.get('calibration'), ['dataset', 'images'], 'train.calibration')
        clip = train.get('grad_clip_norm')
        return cls(
            plan=StagePlan(train),
            precision=check_choice(train.get('precision', DEFAULT_PRECISION), TRAINING_PRECISIONS, 'train.precision'),
            reconstruct=check_choice(train.get('reconstruct', True), [True, False], 'train.reconstruct'),
            distill=check_number(sandwich.get('distill', 0.5), 'train.sandwich.distill', 0, 1),
            mixed_weight=check_number(sandwich.get('mixed', 0.0), 'train.sandwich.mixed', 0, 1e6),
            refresh_interval=int(
                check_number(ranks.get('refresh_interval', 500), 'train.ranks.refresh_interval', 0, 1e9)
            ),
            straight_through=check_choice(
                ranks.get('straight_through', False), [True, False], 'train.ranks.straight_through'
            ),
            freeze_at=check_number(ranks.get('freeze_at', 2 / 3), 'train.ranks.freeze_at', 0, 1),
            classifier_patches=int(
                check_number(train.get('classifier_patches', CLASSIFIER_PATCHES), 'train.classifier_patches', 1, 1e9)
            ),
            budget_ramp=_ramp(ramp.get('budget', (0.0, 0.2)), 'train.ramp.budget'),
            confidence_ramp=_ramp(ramp.get('confidence', (0.5, 0.8)), 'train.ramp.confidence'),
            joint_supernet_weight=check_number(
                joint.get('supernet_weight', 0.25), 'train.joint.supernet_weight', 0, 1e6
            ),
            grad_clip_norm=None if clip is None else check_number(clip, 'train.grad_clip_norm', 1e-9, 1e9),
            calibration=_dataset(calibration.get('dataset')),
            calibration_images=int(check_number(calibration.get('images', 100), 'train.calibration.images', 1, 1e6)),
        )


def _dataset(block: Any) -> dict[str, Any] | None:
    form = ' as under datasets, with a type, for example '
    form += '{type: PairedImageDataset, dataroot_gt: ..., dataroot_lq: ..., io_backend: {type: disk}}'
    return None if block is None else read_block(block, 'train.calibration.dataset', form, typed=True)


def _ramp(value: Any, where: str) -> tuple[float, float]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise OptionError(
            f'{where} is {value!r}; write the start and end of the ramp as shares of the stage: [0.0, 0.2].'
        )
    start, end = (check_number(part, where, 0, 1) for part in value)
    if end < start:
        raise OptionError(f'{where} is {value!r}; it ends before it starts.')
    return start, end


def ramped(ramp: tuple[float, float], progress: float) -> float:
    """Weight factor in [0, 1] at a share of the stage."""
    start, end = ramp
    if progress >= end:
        return 1.0
    return 0.0 if progress < start else (progress - start) / (end - start)
