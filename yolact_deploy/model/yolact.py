"""`YolactModel`: the whole network, for training, eager inference and export alike.

It knows nothing about image files, losses or engines. Images are normalized RGB (see `yolact_deploy.preprocess`).

Legend: N images, H x W the input, P priors, C foreground classes, K prototypes, h x w the prototypes, n detections.

Source: YOLACT (arXiv:1904.02689), YOLACT++ (arXiv:1912.06218).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from yolact_deploy.config import TIMM, YolactConfig
from yolact_deploy.errors import ConfigError, InputError
from yolact_deploy.model import resnet
from yolact_deploy.model import torch_ops as ops
from yolact_deploy.model.darknet import DarknetBackbone
from yolact_deploy.model.deformable import DeformableConv
from yolact_deploy.model.fpn import FeaturePyramid
from yolact_deploy.model.mask_iou_net import MaskIouNet
from yolact_deploy.model.mobilenet import MobileNetBackbone, MobileNetV3Backbone
from yolact_deploy.model.prediction_head import PredictionHead
from yolact_deploy.model.protonet import make_protonet
from yolact_deploy.model.timm_backbone import TimmBackbone
from yolact_deploy.priors import make_priors

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on


#: with fewer images per device, batch normalizations should be frozen
BATCH_NORM_IMAGES = 6


class RawHeads(NamedTuple):
    """The outputs of the trunk, before any operation that is not a convolution."""

    #: box regression relative to the priors, float [N, P, 4]
    loc: Tensor
    #: class logits, background first, float [N, P, C + 1]
    logits: Tensor
    #: mask coefficients after tanh, float [N, P, K]
    coeff: Tensor
    #: prototype masks after ReLU, float [N, h, w, K]
    proto: Tensor


class YolactModel(nn.Module):
    """A YOLACT network with random weights; `yolact_deploy.training.load_model` makes one from a file.

    >>> sum(p.numel() for p in YolactModel(YolactConfig(num_classes=80)).parameters())
    50157071

    Raises:
        ConfigError: deformable convolutions in a backbone that is not a ResNet.
    """

    priors: Tensor

    def __init__(self, config: YolactConfig) -> None:
        super().__init__()
        if not isinstance(config, YolactConfig):
            raise ConfigError(
                f"expected a YolactConfig, got {type(config).__name__}: pass YolactConfig(...) or get_config(name)"
            )
        self.config = config
        self.backbone = _make_backbone(config)
        channels = config.fpn_channels
        self.proto_net = make_protonet(
            channels, config.num_prototypes, config.protonet_pattern, align_corners=config.prototype_align_corners
        )
        self.maskiou_net = MaskIouNet(config.num_classes) if config.mask_iou else None
        self.fpn = FeaturePyramid(
            self.backbone.out_channels,
            channels,
            relu=config.pyramid_relu,
            from_c5=config.extra_levels_from == "c5",
            extra_relu=config.extra_levels_relu,
        )
        head = PredictionHead(
            channels,
            config.priors_per_cell,
            config.num_classes + 1,
            config.num_prototypes,
            config.head_pattern,
            config.head_branches,
        )
        self.prediction_layers = nn.ModuleList([head])  # a list of one: the tensor names of the original
        self.semantic_seg_conv = nn.Conv2d(channels, config.num_classes, kernel_size=1)
        self.class_existence_fc = nn.Linear(channels, config.num_classes) if config.class_existence else None
        self._frozen_batch_norm = False
        self._frozen_stages: list[nn.Module] = []
        self._held: list[nn.Parameter] = []  # what freeze_batch_norm has frozen
        self.register_buffer("priors", torch.from_numpy(make_priors(config).copy()), persistent=False)
        self._initialize()

    def _initialize(self) -> None:
        """He initialization in the backbone, Glorot elsewhere, zero biases."""
        backbone = set(self.backbone.modules())
        for module in self.modules():
            if not isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                continue
            if module in backbone:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            else:
                nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, DeformableConv):  # starts without offsets
                nn.init.zeros_(module.conv_offset_mask.weight)

    def freeze_batch_norm(self, frozen: bool = True) -> None:
        """Freeze the statistics and parameters of all batch normalizations during training, or release them.

        Frozen, they use the stored statistics even in training mode, and get no gradient. The original does so with
        fewer than :data:`BATCH_NORM_IMAGES` images per device, whose statistics would be too noisy.
        """
        if frozen:
            # Parameters that had no gradient before, since nothing uses them, are not released later either.
            self._held += [p for module in self._batch_norms() for p in module.parameters() if p.requires_grad]
        for parameter in self._held:
            parameter.requires_grad_(not frozen)
        if not frozen:
            self._held = []
        self._frozen_batch_norm = frozen
        self.train(self.training)

    def freeze_stages(self, count: int) -> None:
        """Freeze the stem and the first stages of the backbone; their gradients are not computed.

        Raises:
            ConfigError: the backbone has fewer stages.
        """
        stages = list(self.backbone.layers)
        if not 0 <= count <= len(stages):
            raise ConfigError(f"freeze_stages: {self.config.backbone} has {len(stages)} stages, got {count}")
        if count:
            stem = [module for name, module in self.backbone.named_children() if name != "layers"]
            self._frozen_stages = [*stem, *stages[:count]]
        for module in self._frozen_stages:
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; frozen stages and batch normalizations stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen_stages:
            module.eval()
        if self._frozen_batch_norm:
            for module in self._batch_norms():
                module.eval()
        return self

    def _batch_norms(self) -> list[nn.BatchNorm2d]:
        return [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Pyramid maps P3..P7, float [N, channels, h, w] with the sides of ``config.level_shapes``.

        Raises:
            InputError: images of another shape or of integers.
        """
        height, width = shape = self.config.input_shape
        if not isinstance(images, Tensor):
            raise InputError(
                f"expected normalized float images [N, 3, {height}, {width}] as a tensor, got {type(images).__name__}: "
                "stack them with torch.stack, or give pictures to a predictor (yolact_deploy.load)"
            )
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, *shape) or not images.is_floating_point():
            raise InputError(
                f"expected normalized float images [N, 3, {height}, {width}], got {images.dtype} {list(images.shape)}: "
                "resize and normalize them, or build the model with another image_size"
            )
        levels: tuple[Tensor, ...] = self.fpn(*self.backbone(images))
        return levels

    def at_size(self, config: YolactConfig) -> YolactModel:
        """This network at another input, with the same parameters, which both share.

        Args:
            config: differs from this network's in its input and the sizes of its priors
        """
        if isinstance(self.backbone, TimmBackbone):
            self.backbone.check_size(config)
        other = copy.copy(self)
        other._buffers = dict(self._buffers)
        other.config = config
        other.register_buffer("priors", torch.from_numpy(make_priors(config).copy()).to(self.priors), persistent=False)
        return other

    @contextmanager
    def resized(self, config: YolactConfig, priors: Tensor) -> Iterator[None]:
        """Inside, this very network has another input: for modules that wrap it, such as those of several GPUs.

        Args:
            config: differs from this network's in its input and the sizes of its priors
            priors: of ``config``, on the device of the network
        """
        before = self.config, self.priors
        self.config, self.priors = config, priors
        try:
            yield
        finally:
            self.config, self.priors = before

    def predict(self, levels: tuple[Tensor, ...]) -> RawHeads:
        """Raw predictions from the pyramid maps of :meth:`features`."""
        head = self.prediction_layers[0]
        loc, logits, coeff = (torch.cat(parts, dim=1) for parts in zip(*map(head, levels), strict=True))
        return RawHeads(loc, logits, coeff, self.proto_net(levels[0]).permute(0, 2, 3, 1))

    def heads(self, images: Tensor) -> RawHeads:
        """The trunk: raw predictions for normalized RGB images, float [N, 3, H, W]."""
        return self.predict(self.features(images))

    def forward(self, images: Tensor) -> dict[str, Any]:
        """Raw predictions for the loss in training mode, else detections by Fast NMS.

        Training outputs, for `yolact_deploy.training.YolactLoss`: ``boxes`` [N, P, 4] regression, ``masks`` [N, P, K]
        coefficients, ``scores`` [N, P, C + 1] logits, ``prior_boxes`` [P, 4] as (cx, cy, w, h), ``proto_masks``
        [N, h, w, K], ``semantic_masks`` [N, C, rows, columns] logits on P3. YOLACT++ adds ``mask_iou_net``, its network
        from masks [m, 1, h, w] to their IoUs [m, C].

        With ``config.class_existence``, ``class_existence`` has the logits [N, C] of the classes in each image.

        Evaluation outputs, lists with one tensor per image: ``boxes`` [n, 4] xyxy normalized, ``masks`` [n, h, w]
        probabilities cropped to the boxes, ``scores`` [n], ``labels`` [n] int64 from 0, and ``keypoints`` [n, 0, 3] (a
        YOLACT detects none), best first. YOLACT++ adds ``mask_scores`` [n]: scores times the predicted IoUs of the
        masks.
        """
        levels = self.features(images)
        raw = self.predict(levels)
        return self._training_outputs(raw, levels) if self.training else self._detections(raw)

    def _training_outputs(self, raw: RawHeads, levels: tuple[Tensor, ...]) -> dict[str, Any]:
        existence = self.class_existence_fc
        return {
            "boxes": raw.loc,
            "masks": raw.coeff,
            "scores": raw.logits,
            "prior_boxes": self.priors,
            "proto_masks": raw.proto,
            "semantic_masks": self.semantic_seg_conv(levels[0]),
            **({} if existence is None else {"class_existence": existence(levels[-1].mean(dim=(2, 3)))}),
            **({} if self.maskiou_net is None else {"mask_iou_net": self.maskiou_net}),
        }

    def _detections(self, raw: RawHeads) -> dict[str, Any]:
        config = self.config
        outputs: dict[str, Any] = {"boxes": [], "masks": [], "scores": [], "labels": [], "keypoints": []}
        for loc, logits, coeff, proto in zip(*raw, strict=True):
            detected = ops.detect(
                ops.decode_boxes(loc, self.priors, clip=config.clip_boxes),
                logits.softmax(dim=-1)[:, 1:],
                coeff,
                score_threshold=config.nms_score_threshold,
                iou_threshold=config.iou_threshold,
                top_k=config.top_k,
                max_detections=config.max_detections,
                second_threshold=config.second_threshold,
            )
            outputs["boxes"].append(detected.boxes)
            masks = ops.assemble_masks(proto, detected.coeff, detected.boxes)
            outputs["masks"].append(masks)
            outputs["scores"].append(detected.scores)
            outputs["labels"].append(detected.labels)
            outputs["keypoints"].append(detected.boxes.new_zeros((len(detected.boxes), 0, 3)))
            if self.maskiou_net is not None:
                rescored = ops.rescore_masks(self.maskiou_net, masks, detected.scores, detected.labels)
                outputs.setdefault("mask_scores", []).append(rescored)
        return outputs


_OTHERS: dict[str, type[DarknetBackbone | MobileNetBackbone | MobileNetV3Backbone]] = {
    "darknet53": DarknetBackbone,
    "mobilenet_v2": MobileNetBackbone,
    "mobilenet_v3_large": MobileNetV3Backbone,
}
Backbone = resnet.ResNetBackbone | DarknetBackbone | MobileNetBackbone | MobileNetV3Backbone | TimmBackbone


def _make_backbone(config: YolactConfig) -> Backbone:
    blocks = resnet.STAGE_BLOCKS.get(config.backbone)
    basic = config.backbone in resnet.BASIC
    if any(config.deformable_blocks) and (blocks is None or basic):
        raise ConfigError(
            f"deformable_blocks: only a ResNet with bottleneck blocks has such blocks, {config.backbone} has none"
        )
    if blocks is not None:
        return resnet.ResNetBackbone(blocks, config.deformable_blocks, config.deformable_interval, basic=basic)
    return TimmBackbone(config) if config.backbone.startswith(TIMM) else _OTHERS[config.backbone]()
