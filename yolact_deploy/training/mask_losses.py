"""The mask term of the loss and the mask IoU term of YOLACT++.

Legend: N images, B images at once, P priors, M mask slots per image, K prototypes, h x w the prototypes, T objects of
the batch.

Source: YOLACT (arXiv:1904.02689), sections 3.1 and 4; YOLACT++ (arXiv:1912.06218), section 3.4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from yolact_deploy.model.torch_ops import sanitize_coordinates
from yolact_deploy.training.entropies import binary_cross_entropy
from yolact_deploy.training.matching import Match
from yolact_deploy.training.targets import GroundTruth

_STEP = 0x9E3779B9  # an odd number that spreads the steps over 32 bits
#: pixels of all masks computed in one pass on a device; each of half a dozen temporaries then takes 64 MiB
_PIXELS_AT_ONCE = 1 << 24


# -- sampling of positives ------------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """The positives that take part in the mask losses."""

    #: int64 [N, M]; an unused slot holds some prior that no other slot holds
    priors: Tensor
    #: bool [N, M], the used slots of an image first
    used: Tensor
    #: positives of the image per sampled one, float32 [N, 1]: 1 unless the limit left some out
    scale: Tensor


def sample_positives(truth: GroundTruth, match: Match, limit: int, step: int = 0) -> Sample:
    """Up to ``limit`` positives of each image: all of them, or a random sample.

    The sample follows from a hash of the image's boxes, the prior and ``step``. It is the same in every run, in any
    batch and with any number of processes.
    """
    positive = match.labels > 0
    num_priors = positive.shape[1]
    slots = min(limit, num_priors)
    prior = torch.arange(num_priors, device=positive.device)
    # The prior in the low bits makes the keys distinct, so that the device has no ties to break.
    key = (_hash(prior + _seeds(truth, step)[:, None]) << 24) | prior
    best = torch.where(positive, key, prior - num_priors).topk(slots, dim=1)
    count = positive.sum(dim=1, keepdim=True)
    scale = count / count.clamp(min=1, max=slots)
    return Sample(best.indices, best.values >= 0, scale.to(torch.float32))


def _seeds(truth: GroundTruth, step: int) -> Tensor:
    """A number below 2**32 for each image, int64 [N], computed from its boxes and the step."""
    bits = truth.boxes.view(torch.int32).to(torch.int64).sum(dim=1)
    total = torch.zeros(len(truth.counts), dtype=torch.int64, device=bits.device)
    total.index_add_(0, truth.image[:-1], bits[:-1])
    return _hash(total + step * _STEP % (1 << 32))


def _hash(value: Tensor) -> Tensor:
    """Pseudo-random numbers below 2**32 from integers [...] int64: two rounds of xor-shift and multiply."""
    value = value & 0xFFFFFFFF
    for _ in range(2):
        value = ((value ^ (value >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return value ^ (value >> 16)


# -- the losses -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskIou:
    """Settings of the mask IoU loss."""

    #: from cropped mask probabilities [m, 1, h, w] to an IoU for each class [m, C]
    network: Callable[[Tensor], Tensor]
    #: objects with at most this many pixels at prototype resolution are left out
    min_area: int


def mask_losses(
    proto: Tensor,
    coeff: Tensor,
    truth: GroundTruth,
    match: Match,
    masks: Tensor,
    sample: Sample,
    mask_iou: MaskIou | None = None,
) -> tuple[Tensor, Tensor]:
    """The mask loss and the mask IoU loss (0 without a network), each summed over the sampled positives.

    Args:
        proto: float32 [N, h, w, K]
        coeff: float32 [N, P, K]
        masks: of the objects, bool [T + 1, h, w]
    """
    with torch.no_grad():
        rows = match.rows.gather(1, sample.priors)
        groups = list(_groups(sample.used, masks[0].numel(), look=proto.device.type == "cpu"))
    drawn = coeff.gather(1, sample.priors[:, :, None].expand(-1, -1, coeff.shape[2]))
    sizes = [images.stop - images.start for images, _ in groups]
    loss, iou_loss = [], []
    # Split instead of slice: the gradient of a split is one concatenation.
    parts = zip(groups, torch.split(proto, sizes), torch.split(drawn, sizes), strict=True)
    for (images, slots), proto_part, drawn_part in parts:
        part = Sample(sample.priors[images, :slots], sample.used[images, :slots], sample.scale[images])
        wanted = Wanted.of(part, rows[images, :slots], truth, masks)
        logits = torch.bmm(drawn_part[:, :slots], proto_part.flatten(1, 2).transpose(1, 2))
        logits = logits.view_as(wanted.masks)
        loss.append(binary_cross_entropy(logits, wanted.masks, wanted.inside * wanted.weights[..., None, None]))
        if mask_iou is not None:
            iou_loss.append(_mask_iou_loss(logits, wanted, mask_iou))
    return torch.stack(loss).sum(), torch.stack(iou_loss).sum() if iou_loss else proto.new_zeros(())


def _groups(used: Tensor, pixels: int, *, look: bool) -> Iterator[tuple[slice, int]]:
    """Groups of images to compute at once, and the number of mask slots they need, from the used slots bool [N, M].

    Args:
        pixels: of one mask
        look: read the counts and go image by image over the used slots alone, which is less work and fits in the cache.
            Only for the CPU: elsewhere reading would wait for the device, so groups take all slots of as many images
            as memory allows.
    """
    images, slots = used.shape
    if look:
        for image, count in enumerate(used.sum(dim=1).tolist()):
            yield slice(image, image + 1), max(count, 1)
        return
    at_once = max(_PIXELS_AT_ONCE // (slots * pixels), 1)
    for first in range(0, images, at_once):
        yield slice(first, min(first + at_once, images)), slots


@dataclass(frozen=True)
class Wanted:
    """The masks that some positives should predict."""

    #: the object's mask, float32 [B, M, h, w]
    masks: Tensor
    #: 1 in the object's box with one pixel of padding, else 0, float32 [B, M, h, w]
    inside: Tensor
    #: weight of the sum over the pixels of a mask, float32 [B, M]; 0 for unused slots
    weights: Tensor
    #: class of the object, int64 [B, M]
    labels: Tensor
    #: bool [B, M]
    used: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, sample: Sample, rows: Tensor, truth: GroundTruth, masks: Tensor) -> Wanted:
        """Gather the targets of the objects ``rows`` [B, M] from the masks bool [T + 1, h, w]."""
        height, width = masks.shape[1:]
        boxes = truth.boxes[rows]
        # Dividing by the area of the box replaces pooling to a fixed size: objects of all sizes weigh alike.
        area = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1) * (height * width)
        weights = torch.where(sample.used, sample.scale / area, area.new_zeros(()))
        return cls(
            masks[rows].to(torch.float32), _inside(boxes, height, width), weights, truth.labels[rows], sample.used
        )


def _inside(boxes: Tensor, height: int, width: int, padding: int = 1) -> Tensor:
    """1 for the pixels in the padded box, else 0: float32 [B, M, h, w] of boxes [B, M, 4] xyxy normalized."""
    x1, x2 = sanitize_coordinates(boxes[..., 0, None], boxes[..., 2, None], width, padding)
    y1, y2 = sanitize_coordinates(boxes[..., 1, None], boxes[..., 3, None], height, padding)
    column = torch.arange(width, device=boxes.device)
    row = torch.arange(height, device=boxes.device)
    across, down = (column >= x1) & (column < x2), (row >= y1) & (row < y2)
    return down[..., :, None].to(torch.float32) * across[..., None, :].to(torch.float32)


def _mask_iou_loss(logits: Tensor, wanted: Wanted, mask_iou: MaskIou) -> Tensor:
    """Smooth L1 between the IoU that the network predicts for the object's class and the true one, summed.

    The gradient also flows through the network's input to the masks. The network runs on unused slots as well, so that
    shapes stay constant and its parameters always receive a gradient.
    """
    masks = logits.sigmoid() * wanted.inside
    iou = mask_iou.network(masks.flatten(0, 1)[:, None]).to(torch.float32)
    iou = iou.gather(1, wanted.labels.flatten()[:, None]).view_as(wanted.labels)
    with torch.no_grad():
        binary = (masks > 0.5).to(torch.float32)
        area = wanted.masks.sum(dim=(2, 3))
        inter = (binary * wanted.masks).sum(dim=(2, 3))
        true = inter / (binary.sum(dim=(2, 3)) + area - inter)
        counts = wanted.used & (area > mask_iou.min_area)
    zero = iou.new_zeros(())
    return smooth_l1_loss(torch.where(counts, iou, zero), torch.where(counts, true, zero), reduction="sum")
