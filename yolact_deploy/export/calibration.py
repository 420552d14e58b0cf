"""Chooses the ranges of activations for INT8, by running the FP32 graph over pictures one after the other.

Memory is that of the network: the graph itself computes the ends of each tensor, and puts out only evenly spaced values
of it, for a histogram. Progress is saved on the way, so that an interrupted calibration resumes where it stopped, with
the same result bit by bit. All methods choose from the same histograms, so another method on the same pictures needs no
second run.

Legend: N images per call, K values of a tensor that the graph puts out.
"""

from __future__ import annotations

import hashlib
import math
import time
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.artifact import atomic_write
from yolact_deploy.datasets.calibration_images import usable_images
from yolact_deploy.errors import ExportError
from yolact_deploy.export.ranges import Histograms
from yolact_deploy.graph.tensor_probe import TensorProbe, not_finite
from yolact_deploy.graph.trunk_graph import TrunkNode, data_inputs, trunk_nodes
from yolact_deploy.progress import SILENT, Progress
from yolact_deploy.vocabulary import CALIBRATION_METHODS, check_word

#: operators whose inputs and outputs INT8 needs the ranges of
WATCHED = ("Conv", "Add", "Resize", "MaxPool", "Relu", "Clip", "LeakyRelu")
#: values that the graph puts out per tensor and image, about
SAMPLES = 1 << 16
_SECONDS_BETWEEN_SAVES = 10.0
_STATE_VERSION = 1


@dataclass(frozen=True)
class Calibration:
    """The ranges of the activations of a graph.

    Attributes:
        method: one of :data:`~yolact_deploy.vocabulary.CALIBRATION_METHODS`
        images: number of pictures
        images_sha256: hash of all of them, in order
        ranges: low and high end of each tensor, by its name in the FP32 graph; zero is always between them
        notes: what the user should know about the pictures, a sentence each
    """

    method: str
    images: int
    images_sha256: str
    ranges: dict[str, tuple[float, float]]
    notes: tuple[str, ...] = ()


def calibrate(
    model: Any,
    images: Sequence[Path],
    *,
    method: str = CALIBRATION_METHODS[0],
    state: Path | None = None,
    progress: Progress = SILENT,
) -> Calibration:
    """Run an FP32 graph over pictures and choose the range of each activation.

    Args:
        model: ``ModelProto`` in FP32 as this package exports it, with or without a tail; it is not changed
        images: pictures like those that the network will see, but not those that its accuracy is measured on
        method: "minmax" keeps everything; "percentile", "entropy" and "mse" clip rare large values
        state: folder for the histograms, from which another run resumes
        progress: counts the images

    Raises:
        InputError: too many pictures are unusable, see :func:`usable_images`.
        ExportError: an unknown method, or values that are not finite in FP32.
        OutputError: the state cannot be written.
    """
    check_word("calibration method", method, CALIBRATION_METHODS, ExportError)
    probe = TensorProbe(model)
    layers = _tensor_layers(probe.graph)
    sources = _range_sources(probe.graph, layers)
    tensors = list(dict.fromkeys(sources.values()))
    if not tensors:
        raise ExportError("the graph has no layers with weights: there is nothing to calibrate")
    usable = usable_images(images)
    file = None if state is None else state / f"{_digest(probe.graph)[:32]}-{usable.sha256[:32]}.npz"
    gathered = _Gathered(len(tensors), file)
    if gathered.done < len(usable.paths):
        known = f" ({gathered.done} known already)" if gathered.done else ""
        steps = _gather(probe, {name: layers[name] for name in tensors}, usable.paths, gathered)
        for _ in progress.track(steps, f"calibrating{known}", len(usable.paths) - gathered.done):
            pass
    kept = {name: gathered.histograms.range(i, method) for i, name in enumerate(tensors)}
    ranges = {name: kept[source] for name, source in sources.items()}
    return Calibration(method, len(usable.paths), usable.sha256, ranges, usable.notes)


class _Gathered:
    """The histograms after ``done`` images, and the file that keeps them, if any.

    A file that is missing, damaged or of another version is ignored.
    """

    _ARRAYS = ("counts", "limits", "lows", "highs")

    def __init__(self, tensors: int, file: Path | None) -> None:
        self.done = 0
        self.histograms = Histograms(tensors)
        self._file, self._saved = file, time.monotonic()
        if file is None:
            return
        try:
            with open(file, "rb") as source, np.load(source, allow_pickle=False) as content:
                arrays = {name: content[name] for name in self._ARRAYS}
                version, done = (int(n) for n in content["state"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return
        own = vars(self.histograms)
        if version == _STATE_VERSION and all(arrays[name].shape == own[name].shape for name in self._ARRAYS):
            self.done = done
            own.update(arrays)

    def save(self, *, now: bool) -> None:
        """Write the file; without ``now``, only if some time has passed since the last write."""
        if self._file is None or not (now or time.monotonic() - self._saved > _SECONDS_BETWEEN_SAVES):
            return
        arrays = {name: vars(self.histograms)[name] for name in self._ARRAYS}
        with atomic_write(self._file) as temporary, open(temporary, "wb") as out:
            np.savez(out, state=np.array([_STATE_VERSION, self.done]), **arrays)
        self._saved = time.monotonic()


def _gather(
    probe: TensorProbe, tensors: Mapping[str, str], paths: Sequence[Path], gathered: _Gathered
) -> Iterator[None]:
    """Run over the pictures that are not done; yields once per picture.

    Args:
        tensors: name of each tensor to measure, and of its layer
    """
    _put_out(probe, tensors)
    for count, outputs in probe.run(paths[gathered.done :]):
        values = iter(output[:count] for output in outputs)
        for tensor, (layer, lows, highs, some) in enumerate(zip(tensors.values(), values, values, values, strict=True)):
            if not all(np.isfinite(array).all() for array in (lows, highs, some)):
                raise not_finite(layer)
            gathered.histograms.add(tensor, float(lows.min()), float(highs.max()), some)
        gathered.done += count
        gathered.save(now=gathered.done == len(paths))
        yield from (None for _ in range(count))


def _put_out(probe: TensorProbe, tensors: Iterable[str]) -> None:
    """Let the graph put out, per tensor, the ends and some values of each image: [N, 1], [N, 1] and [N, K]."""
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in probe.graph.value_info
    }
    zero, one, end = probe.constant(0), probe.constant(1), probe.constant(np.iinfo(np.int64).max)
    for name in tensors:
        flat = probe.compute("Reshape", name, probe.constant(0, -1))
        step = probe.constant(_step(shapes[name]))
        probe.read(
            probe.compute("ReduceMin", flat, one),
            probe.compute("ReduceMax", flat, one),
            probe.compute("Slice", flat, zero, end, one, step),
        )


def _tensor_layers(graph: Any) -> dict[str, str]:
    """The tensors that may be quantized, each with its layer."""
    constants = {constant.name for constant in graph.initializer}
    layers: dict[str, str] = {}
    for trunk_node, node in _watched(graph):
        inputs = [name for _, name in data_inputs(node) if name not in constants]
        for name in (*inputs, node.output[0]):
            layers.setdefault(name, trunk_node.layer)
    return layers


def _range_sources(graph: Any, tensors: Iterable[str]) -> dict[str, str]:
    """Of each tensor, the one whose range it has."""
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(output.name for output in graph.output)
    same: dict[str, str] = {}
    for _, node in _watched(graph):
        source, result = node.input[0], node.output[0]
        if node.op_type == "MaxPool" or (node.op_type == "Resize" and _mode(node) in (b"linear", b"nearest")):
            same[result] = source  # nothing leaves the range of the input
        elif node.op_type in ("Relu", "Clip") and readers[source] == 1:
            same.setdefault(source, result)  # what is clipped need not be in the range
    return {name: _follow(name, same) for name in tensors}


def _watched(graph: Any) -> Iterator[tuple[TrunkNode, Any]]:
    """The nodes of the trunk whose inputs and outputs INT8 needs the ranges of."""
    for trunk_node in trunk_nodes(graph):
        node = graph.node[trunk_node.index]
        if node.op_type in WATCHED and not node.domain:
            yield trunk_node, node


def _mode(node: Any) -> bytes:
    return next((bytes(a.s) for a in node.attribute if a.name == "mode"), b"nearest")


def _follow(name: str, same: dict[str, str]) -> str:
    while name in same:
        name = same[name]
    return name


def _step(shape: Sequence[int]) -> int:
    """Distance of the values put out; coprime to every side, so that they cover all rows and columns."""
    count = math.prod(shape[1:])
    step = -(-count // SAMPLES)
    while math.gcd(step, count) > 1:
        step += 1
    return step


def _digest(graph: Any) -> str:
    """Hash of what the graph computes, regardless of what else the exporter has written into it."""
    digest = hashlib.sha256()
    for node in graph.node:
        digest.update(repr((node.op_type, list(node.input), list(node.output))).encode())
        for attribute in node.attribute:
            digest.update(attribute.SerializeToString(deterministic=True))
    for constant in graph.initializer:
        digest.update(repr((constant.name, constant.data_type, list(constant.dims))).encode())
        digest.update(constant.raw_data or constant.SerializeToString(deterministic=True))
    return digest.hexdigest()
