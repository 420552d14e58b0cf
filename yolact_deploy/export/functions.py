"""The two ops of YOLACT's tail and the deformable convolution as ONNX local functions in standard ops.

``yolact::FastNMS`` and ``yolact::MaskAssembly`` are nodes of our own domain. Their bodies are in the file, so that any
ONNX runtime can inline them; a TensorRT build may drop the bodies and use plugins of the same names instead. Shapes are
static except for the batch, and nothing depends on the data, as TensorRT and CUDA graphs require.

``yolact::DeformConv3x3`` is ONNX's DeformConv, written in operators that TensorRT has: its parser supports the original
only by a plugin, which TensorRT for RTX lacks. For runtimes that have the operator,
:mod:`yolact_deploy.graph.onnx_graph` restores it.

The parsers of TensorRT 10.3 to 10.7 confuse a name inside a function with the same name outside, and all of them take a
function for the operator of the same name, whatever its domain. So the names of functions are those of no operator, and
the names of their tensors begin with the name of the function.

Legend: N images, P priors, C classes, K coefficients, k = top_k, D = max_detections, h x w prototypes.
The reference in NumPy is `yolact_deploy.postprocess`; this module needs `onnx` alone.
"""

from __future__ import annotations

import onnx
import onnx.parser

from yolact_deploy import ops
from yolact_deploy.graph.portable import use_tensors

DOMAIN = ops.DOMAIN
OPSET = 20

FAST_NMS = ops.FAST_NMS.name
MASK_ASSEMBLY = ops.MASK_ASSEMBLY.name

# Within each class, the k best entries take part; -1 marks entries that do not count (scores are probabilities).
_SELECT_PER_CLASS = """
    best = ReduceMax <keepdims = 1> (scores, axis_2)
    passed = Greater (best, threshold)
    counted = Where (passed, scores, minus_1)
    by_class = Transpose <perm = [0, 2, 1]> (counted)
    top_scores, top_priors = TopK <axis = -1, largest = 1, sorted = 1> (by_class, k)
"""

# One list for all classes: each prior stands for its best class.
_SELECT_CROSS_CLASS = """
    best = ReduceMax <keepdims = 0> (scores, axis_2)
    passed = Greater (best, threshold)
    counted = Where (passed, best, minus_1)
    as_one_class = Unsqueeze (counted, axis_1)
    top_scores, top_priors = TopK <axis = -1, largest = 1, sorted = 1> (as_one_class, k)
"""

# top_scores, top_priors [N, C, k]. An entry is dropped if an earlier one in its list overlaps it by more than the
# threshold, or if the overlap is 0 / 0.
_SUPPRESS = """
    lists_shape = Shape (top_scores)
    one_list = Constant <value_ints = [0, -1, 1]> ()
    priors_flat = Reshape (top_priors, one_list)
    top_boxes_flat = GatherND <batch_dims = 1> (boxes, priors_flat)
    four = Constant <value_ints = [4]> ()
    boxes_shape = Concat <axis = 0> (lists_shape, four)
    top_boxes = Reshape (top_boxes_flat, boxes_shape)
    two_parts = Constant <value_ints = [1, 1, 1, 1]> ()
    x1, y1, x2, y2 = Split <axis = -1> (top_boxes, two_parts)
    x1_t = Transpose <perm = [0, 1, 3, 2]> (x1)
    y1_t = Transpose <perm = [0, 1, 3, 2]> (y1)
    x2_t = Transpose <perm = [0, 1, 3, 2]> (x2)
    y2_t = Transpose <perm = [0, 1, 3, 2]> (y2)
    right = Min (x2, x2_t)
    left = Max (x1, x1_t)
    bottom = Min (y2, y2_t)
    top = Max (y1, y1_t)
    width_signed = Sub (right, left)
    height_signed = Sub (bottom, top)
    width = Relu (width_signed)
    height = Relu (height_signed)
    inter = Mul (width, height)
    box_w = Sub (x2, x1)
    box_h = Sub (y2, y1)
    area = Mul (box_w, box_h)
    area_t = Transpose <perm = [0, 1, 3, 2]> (area)
    areas = Add (area, area_t)
    union = Sub (areas, inter)
    iou = Div (inter, union)
    apart = LessOrEqual (iou, iou_limit)
    overlap = Not (apart)
    undefined = Equal (union, zero)
    conflict = Or (overlap, undefined)
    rank_start = Constant <value_int = 0> ()
    rank_step = Constant <value_int = 1> ()
    ranks = Range (rank_start, k_scalar, rank_step)
    ranks_column = Unsqueeze (ranks, axis_1)
    earlier = Less (ranks, ranks_column)
    beaten = And (conflict, earlier)
    beaten_number = Cast <to = 1> (beaten)
    minus_axis = Constant <value_ints = [-1]> ()
    beaten_any = ReduceMax <keepdims = 0> (beaten_number, minus_axis)
    suppressed = Greater (beaten_any, zero)
    survivor_scores = Where (suppressed, minus_1, top_scores)
    flat = Constant <value_ints = [0, -1]> ()
    scores_flat = Reshape (survivor_scores, flat)
    out_scores, out_entries = TopK <axis = -1, largest = 1, sorted = 1> (scores_flat, d)
    valid = Greater (out_scores, second)
    kept_scores = Where (valid, out_scores, zero)
    valid_int = Cast <to = 6> (valid)
    num_detections = ReduceSum <keepdims = 0> (valid_int, axis_1)
    entries_column = Unsqueeze (out_entries, axis_2)
    out_priors = GatherND <batch_dims = 1> (priors_flat, entries_column)
    valid_column = Unsqueeze (valid, axis_2)
    best_boxes = GatherND <batch_dims = 1> (boxes, out_priors)
    kept_boxes = Where (valid_column, best_boxes, zero)
    best_coeff = GatherND <batch_dims = 1> (coeff, out_priors)
    kept_coeff = Where (valid_column, best_coeff, zero)
"""

_LABEL_PER_CLASS = """
    entry_labels = Div (out_entries, k_scalar)
"""

_LABEL_CROSS_CLASS = """
    best_scores = GatherND <batch_dims = 1> (scores, out_priors)
    entry_labels = ArgMax <axis = 2, keepdims = 0> (best_scores)
"""

_FAST_NMS = """
<opset_import: ["" : {opset}], domain: "{domain}">
{name} <{attributes}>
    (boxes, scores, coeff) => (num_detections, kept_boxes, kept_scores, labels, kept_coeff)
{{
    threshold = Constant <value_float: float = @score_threshold> ()
    iou_limit = Constant <value_float: float = @iou_threshold> ()
    second = Constant <value_float: float = @second_threshold> ()
    k_scalar = Constant <value_int: int = @top_k> ()
    d_scalar = Constant <value_int: int = @max_detections> ()
    as_list = Constant <value_ints = [1]> ()
    k = Reshape (k_scalar, as_list)
    d = Reshape (d_scalar, as_list)
    zero = Constant <value_float = 0.0> ()
    minus_1 = Constant <value_float = -1.0> ()
    axis_1 = Constant <value_ints = [1]> ()
    axis_2 = Constant <value_ints = [2]> ()
    {select}
    {suppress}
    {label}
    label_int = Cast <to = 6> (entry_labels)
    zero_int = Constant <value = int32 {{0}}> ()
    labels = Where (valid, label_int, zero_int)
}}
"""

# A pixel stays where start <= index < stop in floating point, the box being padded by one prototype pixel.
_MASK_ASSEMBLY = f"""
<opset_import: ["" : {OPSET}], domain: "{DOMAIN}">
{MASK_ASSEMBLY} <{", ".join(ops.MASK_ASSEMBLY.exported_attributes)}> (proto, coeff, boxes) => (masks)
{{
    proto_shape = Shape <start = 1, end = 3> (proto)
    coeff_shape = Shape <start = 0, end = 2> (coeff)
    kept = Shape <start = 3, end = 4> (proto)
    batch = Shape <start = 0, end = 1> (proto)
    all = Constant <value_ints = [-1]> ()
    pixels_shape = Concat <axis = 0> (batch, all, kept)
    pixels = Reshape (proto, pixels_shape)
    pixels_t = Transpose <perm = [0, 2, 1]> (pixels)
    logits_flat = MatMul (coeff, pixels_t)
    masks_shape = Concat <axis = 0> (coeff_shape, proto_shape)
    logits = Reshape (logits_flat, masks_shape)
    probabilities = Sigmoid (logits)
    pad = Constant <value_float: float = @padding> ()
    zero = Constant <value_float = 0.0> ()
    first = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    height_list = Shape <start = 1, end = 2> (proto)
    width_list = Shape <start = 2, end = 3> (proto)
    axis_0 = Constant <value_ints = [0]> ()
    height_int = Squeeze (height_list, axis_0)
    width_int = Squeeze (width_list, axis_0)
    height = Cast <to = 1> (height_int)
    width = Cast <to = 1> (width_int)
    parts = Constant <value_ints = [1, 1, 1, 1]> ()
    x_a_column, y_a_column, x_b_column, y_b_column = Split <axis = -1> (boxes, parts)
    axis_3 = Constant <value_ints = [3]> ()
    x_a = Unsqueeze (x_a_column, axis_3)
    y_a = Unsqueeze (y_a_column, axis_3)
    x_b = Unsqueeze (x_b_column, axis_3)
    y_b = Unsqueeze (y_b_column, axis_3)
    x_a_pixel = Mul (x_a, width)
    x_b_pixel = Mul (x_b, width)
    y_a_pixel = Mul (y_a, height)
    y_b_pixel = Mul (y_b, height)
    x_low = Min (x_a_pixel, x_b_pixel)
    x_high = Max (x_a_pixel, x_b_pixel)
    y_low = Min (y_a_pixel, y_b_pixel)
    y_high = Max (y_a_pixel, y_b_pixel)
    x_start = Sub (x_low, pad)
    x_stop = Add (x_high, pad)
    y_start = Sub (y_low, pad)
    y_stop = Add (y_high, pad)
    columns_int = Range (first, width_int, one)
    rows_int = Range (first, height_int, one)
    columns = Cast <to = 1> (columns_int)
    rows_flat = Cast <to = 1> (rows_int)
    axis_1 = Constant <value_ints = [1]> ()
    rows = Unsqueeze (rows_flat, axis_1)
    after_left = GreaterOrEqual (columns, x_start)
    before_right = Less (columns, x_stop)
    after_top = GreaterOrEqual (rows, y_start)
    before_bottom = Less (rows, y_stop)
    in_columns = And (after_left, before_right)
    in_rows = And (after_top, before_bottom)
    inside = And (in_columns, in_rows)
    masks = Where (inside, probabilities, zero)
}}
"""


# First sample the nine taps of each output pixel, one below the other, then convolve over these nine. Positions are in
# single precision whatever the features are in. The grid of ONNX is (x, y) from -1 to 1 between the centers of the
# outer pixels; outside is 0, as in the operator. The mode of GridSample, linear by default, is not set: opset 20
# renamed it, which not every parser supports.
_DEFORM_CONV = f"""
<opset_import: ["" : {OPSET}], domain: "{DOMAIN}">
{ops.DEFORM_CONV} <strides, pads> (x, weight, offset, bias, mask) => (y)
{{
    strides_int = Constant <value_ints: ints = @strides> ()
    pads_int = Constant <value_ints: ints = @pads> ()
    strides = Cast <to = 1> (strides_int)
    pads = Cast <to = 1> (pads_int)
    first = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    axis_0 = Constant <value_ints = [0]> ()
    stride_y = Gather (strides, first)
    stride_x = Gather (strides, one)
    pad_y = Gather (pads, first)
    pad_x = Gather (pads, one)
    out_height_list = Shape <start = 2, end = 3> (offset)
    out_width_list = Shape <start = 3, end = 4> (offset)
    out_height = Squeeze (out_height_list, axis_0)
    out_width = Squeeze (out_width_list, axis_0)
    rows_int = Range (first, out_height, one)
    columns_int = Range (first, out_width, one)
    rows_float = Cast <to = 1> (rows_int)
    columns_float = Cast <to = 1> (columns_int)
    rows_strided = Mul (rows_float, stride_y)
    columns_strided = Mul (columns_float, stride_x)
    rows_flat = Sub (rows_strided, pad_y)
    columns = Sub (columns_strided, pad_x)
    rows_shape = Constant <value_ints = [-1, 1, 1]> ()
    rows = Reshape (rows_flat, rows_shape)
    tap_rows = Constant <value = float[9, 1] {{0, 0, 0, 1, 1, 1, 2, 2, 2}}> ()
    tap_columns = Constant <value = float[9, 1] {{0, 1, 2, 0, 1, 2, 0, 1, 2}}> ()
    tap_y = Add (rows, tap_rows)
    tap_x = Add (columns, tap_columns)
    offset_float = Cast <to = 1> (offset)
    batch = Shape <start = 0, end = 1> (offset)
    taps_yx = Constant <value_ints = [9, 2]> ()
    split_shape = Concat <axis = 0> (batch, taps_yx, out_height_list, out_width_list)
    moved = Reshape (offset_float, split_shape)
    moved_last = Transpose <perm = [0, 3, 1, 4, 2]> (moved)
    two_parts = Constant <value_ints = [1, 1]> ()
    moved_y, moved_x = Split <axis = -1> (moved_last, two_parts)
    last_axis = Constant <value_ints = [-1]> ()
    tap_y_last = Unsqueeze (tap_y, last_axis)
    tap_x_last = Unsqueeze (tap_x, last_axis)
    pixel_y = Add (moved_y, tap_y_last)
    pixel_x = Add (moved_x, tap_x_last)
    in_height_list = Shape <start = 2, end = 3> (x)
    in_width_list = Shape <start = 3, end = 4> (x)
    in_height_float = Cast <to = 1> (in_height_list)
    in_width_float = Cast <to = 1> (in_width_list)
    half = Constant <value_float = 0.5> ()
    unit = Constant <value_float = 1.0> ()
    last_row = Sub (in_height_float, unit)
    last_column = Sub (in_width_float, unit)
    half_height = Mul (last_row, half)
    half_width = Mul (last_column, half)
    share_y = Div (pixel_y, half_height)
    share_x = Div (pixel_x, half_width)
    grid_y = Sub (share_y, unit)
    grid_x = Sub (share_x, unit)
    grid_taps = Concat <axis = -1> (grid_x, grid_y)
    all = Constant <value_ints = [-1]> ()
    two = Constant <value_ints = [2]> ()
    grid_shape = Concat <axis = 0> (batch, all, out_width_list, two)
    grid = Reshape (grid_taps, grid_shape)
    x_float = Cast <to = 1> (x)
    sampled_float = GridSample <align_corners = 1> (x_float, grid)
    sampled = CastLike (sampled_float, x)
    mask_last = Transpose <perm = [0, 2, 1, 3]> (mask)
    single = Constant <value_ints = [1]> ()
    mask_shape = Concat <axis = 0> (batch, single, all, out_width_list)
    mask_taps = Reshape (mask_last, mask_shape)
    weighted = Mul (sampled, mask_taps)
    kernel_shape = Constant <value_ints = [0, 0, 9, 1]> ()
    kernel = Reshape (weight, kernel_shape)
    y = Conv <kernel_shape = [9, 1], strides = [9, 1]> (weighted, kernel, bias)
}}
"""


def fast_nms_function(*, cross_class: bool = False) -> onnx.FunctionProto:
    """Body of ``yolact::FastNMS(boxes, scores, coeff)`` -> num_detections, boxes, scores, labels, coeff.

    boxes float32 [N, P, 4], scores float32 [N, P, C], coeff float32 [N, P, K]; outputs int32 [N], float32 [N, D, 4],
    float32 [N, D], int32 [N, D], float32 [N, D, K]. top_k must not exceed P, max_detections not the entries (C * k).
    """
    text = _FAST_NMS.format(
        opset=OPSET,
        domain=DOMAIN,
        name=FAST_NMS,
        attributes=", ".join(ops.FAST_NMS.exported_attributes),
        select=_SELECT_CROSS_CLASS if cross_class else _SELECT_PER_CLASS,
        suppress=_SUPPRESS,
        label=_LABEL_CROSS_CLASS if cross_class else _LABEL_PER_CLASS,
    )
    return _parse(text)


def mask_assembly_function() -> onnx.FunctionProto:
    """Body of ``yolact::MaskAssembly(proto [N, h, w, K], coeff [N, D, K], boxes [N, D, 4])`` -> masks [N, D, h, w]."""
    return _parse(_MASK_ASSEMBLY)


def deform_conv_function() -> onnx.FunctionProto:
    """Body of ``yolact::DeformConv3x3(x [N, I, H, W], weight [O, I, 3, 3], offset [N, 18, h, w], bias [O], mask)``.

    mask [N, 9, h, w]; the output is [N, O, h, w]; attributes strides and pads as of ONNX's DeformConv. H and W are 2 at
    least. All have one type, float32 or float16.
    """
    return _parse(_DEFORM_CONV)


def _parse(text: str) -> onnx.FunctionProto:
    """The function, each of its tensors named after it: ``boxes`` of FastNMS is ``FastNMS_boxes``."""
    function = onnx.parser.parse_function(text)
    for holder in (function, *function.node):
        for names in (holder.input, holder.output):
            names[:] = [f"{function.name}_{name}" for name in names]
    use_tensors(function.node)
    return function
