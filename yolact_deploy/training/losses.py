"""`YolactLoss`: the terms of the loss from the outputs of a model in training mode and the targets of its images.

All terms are computed in FP32, whatever the precision of the outputs, also under autocast. Shapes depend on the shapes
of the inputs alone, so that nothing waits for a device. (On the CPU, where that is free, a loop bound is read from the
data.)

Legend: N images, P priors, C foreground classes, K prototypes, h x w the prototypes, T objects of the batch.

Source: YOLACT (arXiv:1904.02689), sections 3 and 4; YOLACT++ (arXiv:1912.06218), section 3.4 for the mask IoU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import smooth_l1_loss

from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import ConfigError, InputError
from yolact_deploy.training.entropies import binary_cross_entropy, cross_entropy
from yolact_deploy.training.mask_losses import MaskIou, mask_losses, sample_positives
from yolact_deploy.training.matching import Match, encode_boxes, match_priors
from yolact_deploy.training.targets import GroundTruth, Target

_OUTPUTS = ("boxes", "masks", "scores", "prior_boxes", "proto_masks", "semantic_masks")


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Thresholds and weights of the loss; the defaults are the original's.

    Raises:
        ConfigError: thresholds out of order, or negative values.
    """

    #: a prior with this IoU or more with an object is positive
    positive_iou: float = 0.5
    #: a prior with less than this is background; in between, it is neutral
    negative_iou: float = 0.4
    #: a prior that is not positive is neutral if a crowd covers more than this part of it
    crowd_iou: float = 0.7
    #: hardest negatives in the class loss per positive of the image
    negatives_per_positive: int = 3
    #: "entropy" of the positives and the hardest negatives, or "focal", the focal loss of all priors but the neutral
    class_loss: str = "entropy"
    #: weight of the positives in the focal loss; that of the background is 1 minus it
    focal_alpha: float = 0.25
    #: how strongly the focal loss discounts what is already right
    focal_gamma: float = 2.0
    #: positives of an image in the mask loss, which is scaled up if there are more
    max_masks: int = 100
    #: the mask IoU loss leaves out objects with at most this many pixels at prototype resolution
    min_mask_area: int = 25
    box_weight: float = 1.5
    class_weight: float = 1.0
    mask_weight: float = 6.125
    semantic_weight: float = 1.0
    mask_iou_weight: float = 25.0
    #: of the loss of the classes in an image, if the model predicts them
    existence_weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.negative_iou <= self.positive_iou <= 1:
            raise ConfigError(
                "expected 0 <= negative_iou <= positive_iou <= 1, "
                f"got negative_iou {self.negative_iou} and positive_iou {self.positive_iou}"
            )
        if self.max_masks < 1:
            raise ConfigError(f"max_masks: expected 1 or more, got {self.max_masks}")
        if self.class_loss not in ("entropy", "focal"):
            raise ConfigError(f"class_loss: expected entropy or focal, got {self.class_loss!r}")
        if self.focal_alpha > 1:
            raise ConfigError(f"focal_alpha: expected 0 to 1, got {self.focal_alpha}")
        for name, value in vars(self).items():
            if not isinstance(value, str) and value < 0:
                raise ConfigError(f"{name}: expected 0 or more, got {value}")

    @classmethod
    def of(cls, config: YolactConfig, *, class_loss: str = "entropy") -> LossSettings:
        """The original's settings for a configuration: up to 300 masks per image from 700 pixels on, 100 below."""
        many = math.prod(config.input_shape) >= 700 * 700
        return cls(max_masks=300 if many else 100, class_loss=class_loss)


class YolactLoss(nn.Module):
    """The loss of YOLACT, as terms whose sum is to be minimized.

    >>> criterion = YolactLoss()
    >>> losses = criterion(model(images), targets)      # model.train()
    >>> sum(losses.values()).backward()

    Args:
        settings: thresholds and weights
        sum_over_processes: under `torch.distributed`, divide by the positives and images of all processes. The averaged
            gradients of DistributedDataParallel then equal those of one process with the whole batch. Each call makes
            one all-reduce of two numbers, so every process must call.
    """

    def __init__(self, settings: LossSettings | None = None, *, sum_over_processes: bool = True) -> None:
        super().__init__()
        if settings is not None and not isinstance(settings, LossSettings):
            raise InputError(f"settings: expected LossSettings, got {type(settings).__name__}")
        self.settings = settings or LossSettings()
        self.sum_over_processes = sum_over_processes

    def forward(
        self, outputs: Mapping[str, Any], targets: Sequence[Target] | GroundTruth, *, step: int = 0
    ) -> dict[str, Tensor]:
        """The terms ``box``, ``class``, ``mask``, ``semantic``, and ``mask_iou`` if the model has a mask IoU network.

        A model with ``config.class_existence`` adds ``existence``.

        Each is a float32 scalar, weighted and divided by the positives of the batch (``semantic`` by its images), so
        that ``sum(losses.values())`` is the loss. Without a positive in the batch, all but ``semantic`` are 0. If a
        value in the outputs or boxes is not finite, a term is not finite either, and the step should be skipped.

        Args:
            outputs: the outputs of `YolactModel` in training mode, on any device and in any float precision. With
                ``mask_iou_net``, a callable from masks [m, 1, h, w] to their IoUs [m, C], there is a ``mask_iou``.
            targets: one for each image, see `yolact_deploy.training.targets`, on the CPU or the device of the outputs;
                or :meth:`GroundTruth.of_batch` on the latter
            step: the number of the iteration. If an image has more positives than ``max_masks``, the step and the boxes
                determine the sample: no random state is used, and the other images of the batch do not matter.

        Raises:
            InputError: outputs or targets are incomplete or do not fit together.
        """
        _check(outputs, targets)
        device = outputs["boxes"].device
        with torch.autocast(device_type=device.type, enabled=False):
            with torch.no_grad():
                classes = outputs["scores"].shape[2] - 1
                truth = targets if isinstance(targets, GroundTruth) else GroundTruth.of(targets, classes, device)
                match = self.match(truth, outputs["prior_boxes"])
                masks, semantic_masks = truth.masks_at(
                    tuple(outputs["proto_masks"].shape[1:3]), tuple(outputs["semantic_masks"].shape[2:])
                )
                positives, images = self._divisors(match)
            return {
                "box": self._box(outputs, truth, match) / positives,
                "class": self._class(outputs["scores"], match) / positives,
                **{key: loss / positives for key, loss in self._masks(outputs, truth, match, masks, step).items()},
                "semantic": self._semantic(outputs["semantic_masks"], truth, semantic_masks) / images,
                **self._existence(outputs, truth, images),
            }

    def match(self, truth: GroundTruth, priors: Tensor) -> Match:
        """Match priors [P, 4] and objects with the thresholds of the settings."""
        settings = self.settings
        return match_priors(
            truth,
            priors,
            positive_iou=settings.positive_iou,
            negative_iou=settings.negative_iou,
            crowd_iou=settings.crowd_iou,
        )

    def _divisors(self, match: Match) -> tuple[Tensor, Tensor]:
        """Positives (at least 1) and images, float32 scalars: the mean over all processes."""
        positives = (match.labels > 0).sum()
        numbers = torch.stack([positives, torch.full_like(positives, len(match.labels))]).to(torch.float32)
        processes = 1
        if self.sum_over_processes and distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(numbers)
            processes = distributed.get_world_size()
        positives, images = (numbers.clamp(min=1) / processes).unbind()
        return positives, images

    def _box(self, outputs: Mapping[str, Any], truth: GroundTruth, match: Match) -> Tensor:
        """Smooth L1 between the regression [N, P, 4] of the positives and the encoding of their objects, summed."""
        loc = outputs["boxes"].to(torch.float32)
        wanted = encode_boxes(truth.boxes[match.rows], outputs["prior_boxes"].to(torch.float32))
        positive = (match.labels > 0)[:, :, None]
        zero = loc.new_zeros(())
        loss = smooth_l1_loss(torch.where(positive, loc, zero), torch.where(positive, wanted, zero), reduction="sum")
        return self.settings.box_weight * (loss + not_finite(loc, truth.boxes))

    def _class(self, scores: Tensor, match: Match) -> Tensor:
        """Cross-entropy of the logits [N, P, C + 1] over the positives and the hardest negatives of each image."""
        labels = match.labels
        # For a negative this is -log(background), which also ranks the hardest negatives.
        entropy = cross_entropy(scores.to(torch.float32), labels.clamp(min=0))
        zero = entropy.new_zeros(())
        if self.settings.class_loss == "focal":
            return self.settings.class_weight * (self._focal(entropy, labels) + not_finite(entropy))
        count = (labels > 0).sum(dim=1, keepdim=True) * self.settings.negatives_per_positive
        hardest = torch.where(labels == 0, entropy, zero).sort(dim=1, descending=True, stable=True).values
        rank = torch.arange(labels.shape[1], device=labels.device)
        negative = torch.where(rank < count.clamp(max=labels.shape[1] - 1), hardest, zero).sum()
        positive = torch.where(labels > 0, entropy, zero).sum()
        return self.settings.class_weight * (positive + negative + not_finite(entropy))

    def _focal(self, entropy: Tensor, labels: Tensor) -> Tensor:
        """The focal loss (arXiv:1708.02002) from the cross-entropies [N, P] of softmax, summed; neutral priors are 0.

        ``alpha * (1 - p) ** gamma * -log p`` with the probability p of the right class.
        """
        alpha, gamma = self.settings.focal_alpha, self.settings.focal_gamma
        weight = torch.where(labels > 0, alpha, 1 - alpha) * (labels >= 0)
        wrong = -torch.expm1(-entropy)  # 1 - p
        return (weight * wrong.clamp(min=0) ** gamma * entropy).sum()

    def _masks(
        self, outputs: Mapping[str, Any], truth: GroundTruth, match: Match, masks: Tensor, step: int
    ) -> dict[str, Tensor]:
        """The mask loss, summed, and the mask IoU loss if the model has a network for it."""
        settings = self.settings
        proto, coeff = outputs["proto_masks"].to(torch.float32), outputs["masks"].to(torch.float32)
        with torch.no_grad():
            sample = sample_positives(truth, match, settings.max_masks, step)
        network = outputs.get("mask_iou_net")
        mask_iou = MaskIou(network, settings.min_mask_area) if network is not None else None
        loss, iou_loss = mask_losses(proto, coeff, truth, match, masks, sample, mask_iou)
        losses = {"mask": settings.mask_weight * (loss + not_finite(proto, coeff))}
        return losses | {"mask_iou": settings.mask_iou_weight * iou_loss} if mask_iou else losses

    def _existence(self, outputs: Mapping[str, Any], truth: GroundTruth, images: Tensor) -> dict[str, Tensor]:
        """Binary cross-entropy of the logits [N, C] with the classes of the objects, summed; empty without logits."""
        logits = outputs.get("class_existence")
        if logits is None:
            return {}
        number, classes = logits.shape
        wanted = torch.zeros(number * classes, device=logits.device)
        wanted.index_add_(0, truth.image * classes + truth.labels, (~truth.crowd).to(torch.float32))
        wanted = wanted.clamp_(max=1).view_as(logits)
        loss = binary_cross_entropy(logits.to(torch.float32), wanted)
        return {"existence": self.settings.existence_weight * (loss + not_finite(logits)) / images}

    def _semantic(self, logits: Tensor, truth: GroundTruth, masks: Tensor) -> Tensor:
        """Binary cross-entropy of the logits [N, C, height, width] with the union of the masks of each class.

        The mean over the pixels, summed over classes and images.
        """
        images, classes, height, width = logits.shape
        wanted = torch.zeros((images * classes, height * width), device=logits.device)
        objects = masks.flatten(1) & ~truth.crowd[:, None]
        wanted.index_add_(0, truth.image * classes + truth.labels, objects.to(torch.float32))
        wanted = wanted.clamp_(max=1).view_as(logits)
        loss = binary_cross_entropy(logits.to(torch.float32), wanted)
        return self.settings.semantic_weight * loss / (height * width)


def not_finite(*values: Tensor) -> Tensor:
    """0, or NaN if any of the values is not finite, even one that no term reads; no gradient."""
    total = torch.stack([value.detach().sum() for value in values]).sum()
    return total * 0


def _check(outputs: Mapping[str, Any], targets: Sequence[Target] | GroundTruth) -> None:
    if not isinstance(outputs, Mapping):
        raise InputError(
            f"expected the outputs of a YolactModel in training mode, a dictionary, got {type(outputs).__name__}: pass "
            "what model(images) returns after model.train()"
        )
    if not isinstance(targets, (list, tuple, GroundTruth)):
        raise InputError(
            f"expected targets as a list with one dictionary per image, got {type(targets).__name__}: put them in a "
            "list"
        )
    missing = [key for key in _OUTPUTS if key not in outputs]
    if missing:
        raise InputError(
            f"the outputs have no {', '.join(missing)}: the loss needs those of a YolactModel in training mode; "
            "call model.train() first"
        )
    for key in _OUTPUTS:
        if not isinstance(outputs[key], Tensor):
            kind = type(outputs[key]).__name__
            raise InputError(
                f"expected the output {key} to be a tensor, got {kind}: the loss needs the outputs of training mode; "
                "call model.train() first"
            )
    images = len(outputs["boxes"])
    given = len(targets.counts) if isinstance(targets, GroundTruth) else len(targets)
    if given != images:
        raise InputError(f"expected one target for each of the {images} images, got {given}")
