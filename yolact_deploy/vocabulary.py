"""The words that users choose from, each list once: for parsers, checks of the library and help texts.

The first word of a list is the default, if there is one.
"""

from __future__ import annotations

from collections.abc import Iterable

from yolact_deploy.errors import InputError, YolactDeployError
from yolact_deploy.untrusted import shown

# -- files ----------------------------------------------------------------------------------------------------------

ONNX_SUFFIXES = (".onnx",)
ENGINE_SUFFIXES = (".trt", ".engine", ".plan")
CHECKPOINT_SUFFIXES = (".pth", ".pt", ".safetensors")
NCNN_SUFFIXES = (".param",)
TFLITE_SUFFIXES = (".tflite",)
MODEL_SUFFIXES = (*ONNX_SUFFIXES, *ENGINE_SUFFIXES, *CHECKPOINT_SUFFIXES, *NCNN_SUFFIXES, *TFLITE_SUFFIXES)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts", ".flv", ".ogv")

# -- running a model ------------------------------------------------------------------------------------------------

BACKENDS = ("onnxruntime", "openvino", "torch", "tensorrt", "ncnn", "litert", "opencv")
#: execution providers of ONNX Runtime
PROVIDERS = ("cpu", "cuda", "tensorrt", "rtx")
#: precision of the arithmetic
PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8")
#: where Fast NMS and mask assembly run
LOAD_TAILS = ("auto", "host", "graph")
#: how frames in host memory come to a GPU: "auto" reads them in place where CPU and GPU share their memory
FRAME_MODES = ("auto", "in-place", "upload")
#: what decodes JPEG files for the CUDA frame path
JPEG_DECODERS = ("cpu", "gpu")
NMS_VARIANTS = ("fast", "cross-class", "traditional")
MAX_THREADS = 1024
#: how a picture of another shape gets into the network's input: stretched, or at its own ratio with padding around it
#: or right and below
FITS = ("stretch", "letterbox", "pad")
#: what priors keep at another input size: their share of the width and height, or their pixels
PRIOR_SIZES = ("original", "pixels")

# -- streams ------------------------------------------------------------------------------------------------------

#: which frame of a live source is taken: the newest one, or each
BUFFERS = ("latest", "all")
#: libraries that decode videos
DECODERS = ("av", "opencv")
#: what of a detection can be left undrawn
HIDDEN = ("boxes", "scores", "labels", "masks")
#: what a color stands for
COLORS = ("instance", "class", "track")
#: what the tracker compares
OVERLAPS = ("box", "mask")
#: what ``predict --format`` writes; all but the first three have a folder of their own
OUTPUT_FORMATS = ("overlay", "json", "coco", "csv", "yolo", "labelme", "masks", "crops", "cutouts", "mot", "ytvis")
#: those of objects that keep their ids
TRACK_FORMATS = ("mot", "ytvis")

# -- exporting one --------------------------------------------------------------------------------------------------

#: precision of the trunk of an exported file
EXPORT_PRECISIONS = ("fp32", "fp16", "bf16", "int8")
HALF_PRECISIONS = ("fp16", "bf16")
#: precision of what an INT8 trunk does not quantize
INT8_RESTS = ("fp32", "fp16")
#: what ``export --format`` writes; all but the first are folders beside the ONNX file
EXPORT_FORMATS = ("onnx", "openvino", "opencv", "ncnn", "coreml", "tflite", "web", "html")
#: what an exported graph ends in
EXPORT_TAILS = ("functions", "heads")
#: outputs of a graph that ends in heads
HEAD_OUTPUTS = ("boxes", "scores", "coeff", "proto")
INPUT_DTYPES = ("uint8", "float32")
CALIBRATION_METHODS = ("percentile", "minmax", "entropy", "mse")
#: runtimes that an INT8 file can be made for, and the form of its Q/DQ nodes
QUANTIZATION_TARGETS = {
    "auto": "symmetric",
    "tensorrt": "symmetric",
    "openvino": "symmetric",
    "onnxruntime": "onnxruntime",
}
QUANTIZATION_FORMS = ("symmetric", "onnxruntime")

# -- building an engine ---------------------------------------------------------------------------------------------

FLAVOURS = {"tensorrt": "TensorRT", "rtx": "TensorRT for RTX"}
PLUGIN_MODES = ("auto", "on", "off", "v3", "aot")

# -- scoring --------------------------------------------------------------------------------------------------------

#: how the classes of a model and of annotations are matched: "both" requires the same names under the same category ids
CLASS_MATCHES = ("both", "id", "name")
EVALUATORS = ("pycocotools", "faster-coco-eval")
#: how the detections of overlapping tiles are compared: intersection over the smaller one, or over union
MATCH_METRICS = ("ios", "iou")


def check_word(what: str, value: object, words: Iterable[str], error: type[YolactDeployError] = InputError) -> None:
    """Raise ``error`` unless ``value`` is one of ``words``; ``what`` names the option in the message."""
    if value not in (known := tuple(words)):
        raise error(f"{what}: expected one of {', '.join(known)}, got {shown(value)}")
