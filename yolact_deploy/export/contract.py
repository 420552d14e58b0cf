"""What an exported file says about itself: descriptions of the graph, its input and its outputs, and class names.

Tools such as netron show them. docs/contract.md has the same rules at length, with programs that follow them.
"""

from __future__ import annotations

from typing import Any

from yolact_deploy.artifact import METADATA_KEY, TAIL_KEY, Metadata
from yolact_deploy.graph.inlined_tail import tail_tensors

_FITS = {
    "stretch": "Resize pictures to {w} x {h} (bilinear), whatever their shape.",
    "letterbox": "Resize pictures into {w} x {h} (bilinear) at their own ratio, centered, with padding around.",
    "pad": "Resize pictures into {w} x {h} (bilinear) at their own ratio, with padding right and below.",
}
_INPUTS = {
    "uint8": "uint8 [N,H,W,3], channels blue, green, red. Normalization is part of the graph.",
    "float32": "float32 0..255 [N,H,W,3], channels blue, green, red. Normalization is part of the graph.",
}
_OUTPUTS = {
    "num_detections": "Number of detections of each image, [N]; slots of the other outputs past it are zero.",
    "boxes": "Corners x1, y1, x2, y2 [N,D,4], as shares of the input's width and height; neither sorted nor clipped.",
    "scores": "Scores of the detections, [N,D], the best first.",
    "labels": "Class of each detection, [N,D], counted from 0: see 'names' in metadata_props.",
    "masks": "Probabilities [N,D,h,w] over the whole input, 0 outside the box. Enlarge them to the picture (bilinear); "
    "a pixel above 0.5 belongs to the object.",
    "mask_scores": "Scores times the predicted IoU of the masks, [N,D]: how to rank masks.",
}
_HEADS = {
    "boxes": "Box of each prior, corners x1, y1, x2, y2 [N,P,4], as shares of the input's width and height.",
    "scores": "Probability of each class, without background, for each prior: [N,P,C].",
    "coeff": "Mask coefficients of each prior: [N,P,K].",
    "proto": "Prototypes [N,h,w,K]: a mask is sigmoid(proto @ coeff), cropped to its box and one pixel around.",
}


def describe(model: Any, metadata: Metadata) -> None:
    """Write the contract into a ``ModelProto``, in place: texts, class names, and our metadata."""
    height, width = metadata.config.input_shape
    sizes = metadata.sizes
    model.graph.doc_string = " ".join(
        (
            f"YOLACT instance segmentation, {metadata.config.num_classes} classes.",
            *([] if sizes is None else [f"The input may be {sizes} (height x width), as suits the picture; usually:"]),
            _FITS[metadata.config.fit].format(w=width, h=height),
            "Fast NMS runs in the graph." if metadata.tail == "functions" else "Fast NMS and masks are left to do.",
            "Labels count from 0.",
        )
    )
    for value in model.graph.input:
        value.doc_string = _INPUTS[metadata.input_dtype]
    texts = _OUTPUTS if metadata.tail == "functions" else _HEADS
    for name, value in zip(metadata.outputs, model.graph.output, strict=True):
        value.doc_string = texts[name]
    del model.metadata_props[:]
    properties = {METADATA_KEY: metadata.to_json(), "names": repr(dict(enumerate(metadata.config.class_names)))}
    if (around := tail_tensors(model.graph)) is not None:
        properties[TAIL_KEY] = around
    for key, text in properties.items():
        model.metadata_props.add(key=key, value=text)
