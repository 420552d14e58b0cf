"""Which prior learns which object: the matching of SSD with YOLACT's rule for crowds.

It uses the ground truth and the priors, not the predictions. Nothing here waits for the device. There is a loop over
the images, and one that assigns each object its best prior, but none over the priors.

Legend: N images, P priors, T objects of the batch, G the most objects of one image, k candidates, C classes. Boxes are
xyxy and normalized, priors (cx, cy, w, h).

Source: SSD (arXiv:1512.02325), section 2.2; YOLACT (arXiv:1904.02689), section 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from yolact_deploy.priors import VARIANCES
from yolact_deploy.training.targets import GroundTruth

#: overlaps per pass, which limits memory: 64 MiB of float32, 128 MiB of int64
_OVERLAPS_AT_ONCE = 1 << 24


class Match(NamedTuple):
    """The targets of each prior."""

    #: int64 [N, P]: 1 to C, the class + 1 of its object; 0 background; -1 neutral, ignored by all losses
    labels: Tensor
    #: the object that it overlaps most or is assigned to, int64 [N, P]: row of :class:`GroundTruth`; also for negatives
    rows: Tensor


def match_priors(
    truth: GroundTruth,
    priors: Tensor,
    *,
    positive_iou: float = 0.5,
    negative_iou: float = 0.4,
    crowd_iou: float = 0.7,
) -> Match:
    """Match the priors [P, 4] with the objects of each image.

    A prior is positive if its best IoU is at least ``positive_iou``, background if that is below ``negative_iou``, and
    neutral in between. Each object takes at least one prior: first the pair with the highest IoU, then the next among
    the remaining objects and priors, even with an IoU of 0. Crowds are not objects: a prior of which a crowd covers
    more than ``crowd_iou`` becomes neutral unless it is positive.

    The result is bitwise the same in every run and in any batch. Ties go to the first object and the first prior.
    """
    best, rows, crowded, choices = _overlaps(truth, priors.to(torch.float32))
    given = _forced_priors(choices[truth.rows], len(priors))
    best, rows = _force(best, rows, given, truth)
    labels = truth.labels[rows] + 1
    labels = labels.masked_fill(best < positive_iou, -1).masked_fill(best < negative_iou, 0)
    return Match(labels.masked_fill((labels <= 0) & (crowded > crowd_iou), -1), rows)


def encode_boxes(boxes: Tensor, priors: Tensor) -> Tensor:
    """Regression [..., P, 4] from the priors [P, 4] to the boxes [..., P, 4] (SSD); the inverse of `decode_boxes`.

    A box without width or height gives minus infinity.
    """
    center = (boxes[..., :2] + boxes[..., 2:]) / 2 - priors[:, :2]
    size = (boxes[..., 2:] - boxes[..., :2]) / priors[:, 2:]
    return torch.cat([center / (VARIANCES[0] * priors[:, 2:]), size.log() / VARIANCES[1]], dim=-1)


def corners(priors: Tensor) -> Tensor:
    """Priors [P, 4] as xyxy boxes."""
    half = priors[:, 2:] / 2
    return torch.cat([priors[:, :2] - half, priors[:, :2] + half], dim=1)


# -- overlaps -------------------------------------------------------------------------------------------------------


def _overlaps(truth: GroundTruth, priors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What later steps need of the IoU [T, P], which itself is too large to keep.

    Returns:
        For each prior its best IoU float32 [N, P], -1 without objects; the row of that object int64 [N, P]; and the
        largest part of the prior that one crowd covers float32 [N, P]. For each object its best priors, best first, as
        keys int64 [T + 1, k] with k = min(G, P); see :func:`_best_priors`.
    """
    boxes = corners(priors)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    count = min(truth.rows.shape[1], len(priors))
    best, rows, crowded, keys = [], [], [], []
    for images, start, end in _chunks(truth.counts, len(priors)):
        inter = _intersections(truth.boxes[start:end], boxes)
        covered = inter.masked_fill(~truth.crowd[start:end, None], 0)
        iou = _iou(inter, truth.boxes[start:end], area).masked_fill_(truth.crowd[start:end, None], -1)
        keys.append(_best_priors(iou, count))
        for one_iou, one_covered in zip(torch.split(iou, images), torch.split(covered, images), strict=True):
            value, row, cover = _best_objects(one_iou, one_covered, start, truth.size)
            start += len(one_iou)
            best.append(value)
            rows.append(row)
            crowded.append(cover / area)
    keys.append(torch.full((1, count), -1, dtype=torch.int64, device=priors.device))
    return torch.stack(best), torch.stack(rows), torch.stack(crowded), torch.cat(keys)


def _chunks(counts: tuple[int, ...], num_priors: int) -> Iterator[tuple[list[int], int, int]]:
    """Groups of images whose overlaps fit in memory: objects of each, first row and end of the group."""
    start = 0
    images: list[int] = []
    for count in counts:
        if images and (sum(images) + count) * num_priors > _OVERLAPS_AT_ONCE:
            yield images, start, start + sum(images)
            start, images = start + sum(images), []
        images.append(count)
    if images:
        yield images, start, start + sum(images)


def _intersections(a: Tensor, b: Tensor) -> Tensor:
    """Areas of intersection [n, m] of boxes [n, 4] and [m, 4]."""
    width = torch.minimum(a[:, None, 2], b[:, 2]).sub_(torch.maximum(a[:, None, 0], b[:, 0])).clamp_(min=0)
    height = torch.minimum(a[:, None, 3], b[:, 3]).sub_(torch.maximum(a[:, None, 1], b[:, 1])).clamp_(min=0)
    return width.mul_(height)


def _iou(inter: Tensor, boxes: Tensor, area: Tensor) -> Tensor:
    """IoU [T, P] of boxes [T, 4] and priors of this area [P]; overwrites ``inter`` [T, P].

    NaN, which only invalid boxes produce, becomes 0, so that the matching stays valid; the loss itself becomes NaN.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    union = ((sides[:, 0] * sides[:, 1])[:, None] + area).sub_(inter)
    return inter.div_(union).nan_to_num_(0.0, 0.0, 0.0).clamp_(min=0)


def _best_objects(iou: Tensor, covered: Tensor, start: int, nothing: int) -> tuple[Tensor, Tensor, Tensor]:
    """For one image with IoU [n, P]: the best IoU of each prior, the row of that object, the area in a crowd."""
    if len(iou) == 0:
        none = iou.new_zeros(iou.shape[1])
        return none - 1, torch.full_like(none, nothing, dtype=torch.int64), none
    value, index = iou.max(dim=0)
    return value, index + start, covered.amax(dim=0)


def _best_priors(iou: Tensor, count: int) -> Tensor:
    """The best priors of each object with IoU [n, P], best first and ties by the first, as keys int64 [n, count].

    A key is the IoU's bits above 32 bits of ``P - 1 - prior``: the bits of floats that are not negative sort like their
    values. Crowds, whose IoU is -1, have the key -1.
    """
    bits = iou.view(torch.int32).to(torch.int64)
    back = torch.arange(iou.shape[1] - 1, -1, -1, device=iou.device)
    keys = bits.bitwise_left_shift_(32).bitwise_or_(back)
    return keys.topk(count, dim=1).values.clamp_(min=-1)


# -- every object gets a prior --------------------------------------------------------------------------------------


def _forced_priors(keys: Tensor, num_priors: int) -> Tensor:
    """The prior assigned to each object, int64 [N, G]; ``num_priors`` if there is no object or no prior is left.

    The original takes the pair with the highest IoU of all, removes its object and prior, and repeats. Here all objects
    ask at once, each for its best prior that no better one holds (Gale and Shapley's deferred acceptance). As objects
    and priors rank pairs by the same order, the result is the same. Each round makes at least one more pair final, so
    G rounds suffice; on the CPU, where looking is free, a picture full of objects needs a few.

    Args:
        keys: candidates of each object, best first, int64 [N, G, k] from :func:`_best_priors`. An object can lose at
            most G - 1 priors to others, so its G best ones suffice.
    """
    images, most, _ = keys.shape
    place = torch.arange(most - 1, -1, -1, device=keys.device)
    bids = (keys >> 32) * most + place[:, None]  # ties: the first object
    # Bids of no worth, on no prior: those of crowds, and the last of each object, for when no prior is left.
    bids = pad(bids.masked_fill(keys < 0, -1), (0, 1), value=-1)
    priors = pad((num_priors - 1 - (keys & 0xFFFFFFFF)).masked_fill(keys < 0, num_priors), (0, 1), value=num_priors)
    flat = priors.flatten(1)
    best = torch.full((images, num_priors + 1), -1, dtype=torch.int64, device=keys.device)
    prior = priors[:, :, -1]
    for _ in range(most):
        before = best
        ask = (bids >= best.gather(1, flat).view_as(bids)).to(torch.uint8).argmax(dim=2, keepdim=True)
        prior = priors.gather(2, ask)[:, :, 0]
        best = before.scatter_reduce(1, prior, bids.gather(2, ask)[:, :, 0], "amax")
        if keys.device.type == "cpu" and torch.equal(best, before):  # elsewhere the host would wait for the answer
            break
    return prior


def _force(best: Tensor, rows: Tensor, given: Tensor, truth: GroundTruth) -> tuple[Tensor, Tensor]:
    """IoU and rows [N, P] after assigning the priors ``given`` [N, G] to their objects, with an IoU of 2."""
    num_priors = best.shape[1]
    # Objects without a prior write into an extra column, which is cut off again.
    best = pad(best, (0, 1)).scatter(1, given, 2.0)[:, :-1]
    rows = pad(rows, (0, 1)).scatter(1, given, truth.rows)[:, :-1]
    if max(truth.counts, default=0) > num_priors:
        # With more objects than priors, the original gives the first prior to the first object once no pair is left.
        objects = ~truth.crowd[truth.rows]
        first = truth.rows.gather(1, objects.to(torch.int64).argmax(dim=1, keepdim=True))
        over = objects.sum(dim=1, keepdim=True) > num_priors
        rows = torch.cat([torch.where(over, first, rows[:, :1]), rows[:, 1:]], dim=1)
    return best, rows
