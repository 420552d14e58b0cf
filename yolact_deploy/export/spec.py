"""What an export is: one value for the command line, the library and the metadata of the file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact_deploy.artifact import Metadata
from yolact_deploy.config import Size, YolactConfig, both_sides, size_text
from yolact_deploy.errors import ExportError
from yolact_deploy.size_range import STEP, SizeRange
from yolact_deploy.vocabulary import (
    CALIBRATION_METHODS,
    EXPORT_PRECISIONS,
    EXPORT_TAILS,
    INPUT_DTYPES,
    INT8_RESTS,
    PRIOR_SIZES,
    QUANTIZATION_TARGETS,
    check_word,
)

if TYPE_CHECKING:
    from yolact_deploy.datasets.image_sets import CocoImages
    from yolact_deploy.export.search.bisect import Target

MAX_BATCH = 1024
#: pictures that a calibration uses by default, if there are as many
CALIBRATION_IMAGES = 500


@dataclass(frozen=True, kw_only=True)
class ExportSpec:
    """What an exported file is, and how its precision is chosen. The options of ``yolact-deploy export``.

    Attributes:
        precision: of the trunk: "fp32", "fp16", "bf16" or "int8"
        rest: with INT8, precision of what is not quantized: "fp32", or "fp16" for GPUs
        tail: "functions" (detections and masks) or "heads" (boxes, scores, coefficients and prototypes)
        batch: smallest, usual and largest batch; three equal numbers fix it
        input_dtype: "uint8", or "float32" in 0..255 for images resized without rounding to gray levels
        cross_class: one Fast NMS over all classes
        config: configuration of weights given as a file or name; by default inferred from the tensors
        size: of the input: the side of a square, or (height, width); by default that of the configuration
        size_range: smallest and largest input, or smallest, usual and largest, for files that take all between them.
            Pictures get an input of their ratio with about the area of the usual one, which by default is that of the
            configuration if it is in the range, and the middle otherwise
        fit: how pictures of another shape get there; by default as the configuration says
        priors: what priors keep at ``size`` or in ``size_range``, see
            :meth:`~yolact_deploy.config.YolactConfig.with_size`
        keep_fp32: layers (``proto_net.10``) or modules (``proto_net``) that stay in FP32 in a lower precision
        overflow_check: in FP16, also as the rest of INT8, detect the layers whose values FP16 cannot hold and keep them
            in FP32
        calibration: folder of pictures, COCO folder or list of pictures. INT8 chooses its ranges on them; FP16 checks
            them for overflow, in addition to the pictures of the parity check
        calibration_images: how many pictures of a folder, 500 by default
        calibration_method: how INT8 chooses ranges, "percentile" by default; see
            :func:`yolact_deploy.export.calibration.calibrate`
        calibration_state: folder in which an interrupted calibration is kept
        target: runtime that an INT8 file is made for: "auto", "tensorrt", "openvino" or "onnxruntime"
        limits: what INT8 may cost; the fewest layers that keep within them stay in FP32
        judged: images that the limits are about, see :func:`yolact_deploy.datasets.image_sets.open_images`

    Raises:
        ExportError: a value that is not allowed, or values that contradict each other.
    """

    precision: str = "fp32"
    rest: str = "fp32"
    tail: str = "functions"
    batch: tuple[int, int, int] = (1, 1, 1)
    input_dtype: str = "uint8"
    cross_class: bool = False
    config: str | None = None
    size: Size | None = None
    size_range: tuple[Size, ...] | None = None
    fit: str | None = None
    priors: str | None = None
    keep_fp32: tuple[str, ...] = ()
    overflow_check: bool = True
    calibration: str | os.PathLike[str] | Sequence[Path] | None = None
    calibration_images: int | None = None
    calibration_method: str | None = None
    calibration_state: Path | None = None
    target: str | None = None
    limits: Target | None = None
    judged: CocoImages | None = None

    def __post_init__(self) -> None:
        check_word("precision", self.precision, EXPORT_PRECISIONS, ExportError)
        check_word("rest", self.rest, INT8_RESTS, ExportError)
        check_word("tail", self.tail, EXPORT_TAILS, ExportError)
        check_word("input_dtype", self.input_dtype, INPUT_DTYPES, ExportError)
        check_word("calibration method", self.method, CALIBRATION_METHODS, ExportError)
        check_word("target", self.target or "auto", QUANTIZATION_TARGETS, ExportError)
        low, usual, high = self.batch
        if not 1 <= low <= usual <= high <= MAX_BATCH:
            raise ExportError(f"batch: expected 1 <= min <= opt <= max <= {MAX_BATCH}, got {low}:{usual}:{high}")
        self._check_range()
        self._check_combination()

    def _check_range(self) -> None:
        given = self.size_range
        if given is None:
            return
        if len(given) not in (2, 3):
            raise ExportError(f"size_range: expected MIN:MAX or MIN:OPT:MAX, got {len(given)} sizes")
        if self.size is not None:
            raise ExportError("size_range replaces size: leave one out")
        heights, widths = zip(*map(both_sides, given), strict=True)
        if any(sorted(sides) != list(sides) for sides in (heights, widths)) or given[0] == given[-1]:
            raise ExportError(
                f"size_range: expected sizes that rise in height and width, got {':'.join(map(size_text, given))}"
            )
        if self.precision == "int8":
            raise ExportError(
                "--int8 is for one --size: the ranges of its activations are measured there. Export the range of sizes "
                "with --fp16, or without a precision"
            )

    def _check_combination(self) -> None:
        int8, calibrated = self.precision == "int8", self.calibration is not None
        fp16 = "fp16" in (self.precision, self.rest)
        if self.rest != "fp32" and not int8:
            raise ExportError(
                f"rest={self.rest} requires precision int8: other precisions are those of the whole trunk"
            )
        if self.rest != "fp32" and self.form != "symmetric":
            raise ExportError("--int8 --fp16 is for GPUs: leave --fp16 out with --target onnxruntime")
        if self.keep_fp32 and self.precision == "fp32":
            raise ExportError("--keep-fp32 requires --fp16, --bf16 or --int8: without them all layers are in FP32")
        if not self.overflow_check and not fp16:
            raise ExportError("--no-overflow-check requires --fp16: no other precision is checked for overflow")
        if int8 and not calibrated:
            raise ExportError(
                "--int8 requires pictures to choose ranges on: give a folder with a few hundred, --calibration DIR"
            )
        if calibrated and not int8 and not (fp16 and self.overflow_check):
            raise ExportError(
                "--calibration requires --int8, or --fp16 with its overflow check: nothing else reads pictures"
            )
        if self.limits is not None and int8 and self.judged is None:
            raise ExportError("limits require images to judge by: give judged=open_images(...)")
        self._check_companions(int8, calibrated)

    def _check_companions(self, int8: bool, calibrated: bool) -> None:
        for option, given, requires, fits in (
            ("--images", self.calibration_images, "--calibration", calibrated),
            ("--calibration-method", self.calibration_method, "--int8", int8),
            ("--target", self.target, "--int8", int8),
            ("--max-ap-drop and --min-agreement", self.limits, "--int8", int8),
        ):
            if given is not None and not fits:
                raise ExportError(f"{option} require{'' if ' and ' in option else 's'} {requires}")

    @property
    def of_checkpoint(self) -> dict[str, Any]:
        """Keyword arguments of :func:`yolact_deploy.model.checkpoint.load_model`."""
        priors = None if self.size_range is not None else self.priors
        return {"config": self.config, "image_size": self.size, "fit": self.fit, "priors": priors}

    @property
    def method(self) -> str:
        """How ranges are chosen: one of :data:`~yolact_deploy.vocabulary.CALIBRATION_METHODS`."""
        return self.calibration_method or CALIBRATION_METHODS[0]

    @property
    def form(self) -> str:
        """The form of the Q/DQ nodes: one of :data:`~yolact_deploy.vocabulary.QUANTIZATION_FORMS`."""
        return QUANTIZATION_TARGETS[self.target or "auto"]

    def metadata(
        self, config: YolactConfig, *, weights_sha256: str = "", versions: Mapping[str, str] | None = None
    ) -> Metadata:
        """The metadata of the file that this spec makes of a network.

        Args:
            config: the network
            weights_sha256: of its checkpoint, for the record
            versions: of the tools that make the file

        Raises:
            ExportError: the network cannot fill the output slots.
        """
        config, sizes = self._ranged(config)
        entries = min(config.top_k, config.num_priors) * (1 if self.cross_class else config.num_classes)
        slots = config.top_k if self.cross_class else config.max_detections
        if slots > entries:
            raise ExportError(
                f"max_detections: {slots} slots for {entries} entries of NMS; lower it to {entries} or raise top_k"
            )
        return Metadata(
            config=config,
            precision=self.precision,
            tail=self.tail,
            cross_class=self.cross_class,
            input_dtype=self.input_dtype,
            batch=self.batch,
            weights_sha256=weights_sha256,
            keep_fp32=tuple(self.keep_fp32),
            versions=dict(versions or {}),
            sizes=sizes,
        )

    def _ranged(self, config: YolactConfig) -> tuple[YolactConfig, SizeRange | None]:
        """The configuration at the usual input, and all inputs if there are others."""
        if self.size_range is None:
            return config, None
        low, *usual, high = self.size_range
        sizes = SizeRange.of(config, low, high, priors=self.priors or PRIOR_SIZES[0])
        if config.mask_iou and self.tail == "functions":
            raise ExportError(
                "a range of sizes: the mask-IoU network of a YOLACT++ is traced for one size: export it with --tail "
                "heads, or for one --size"
            )
        least = sizes.config_at(config, sizes.low)
        if config.top_k > least.num_priors:
            raise ExportError(
                f"top_k: {config.top_k} candidates, and the smallest size {size_text(low)} has {least.num_priors} "
                "priors: raise the size or lower --top-k"
            )
        own = config.input_shape if sizes.holds(config.input_shape) else _middle(sizes)
        shape = both_sides(usual[0]) if usual else own
        return sizes.config_at(config, shape), sizes


def _middle(sizes: SizeRange) -> tuple[int, int]:
    """The height and width half-way."""
    height, width = (
        max(low, (low + high) // 2 // STEP * STEP) for low, high in zip(sizes.low, sizes.high, strict=True)
    )
    return height, width


DEFAULT_SPEC = ExportSpec()
