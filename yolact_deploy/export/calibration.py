"""Ranges of a network's activations, for INT8: the FP32 graph runs over pictures, one after the other.

Memory is that of the network: the ends of each tensor are found inside of the graph, and of its values only evenly
spaced ones leave it, for a histogram. What was gathered is saved on the way, so that an interrupted calibration goes
on where it stopped; the result is the same bit by bit. All methods choose from the same histograms, so that another
method over the same pictures needs no second run.

Legend: N images of a call, S input side, K values of a tensor that leave the graph.
"""

from __future__ import annotations

import hashlib
import math
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.artifact import atomic_write
from yolact_deploy.datasets.calibration_images import usable_images
from yolact_deploy.errors import ExportError, import_optional
from yolact_deploy.export.ranges import Histograms
from yolact_deploy.graph.onnx_graph import fit_trunk
from yolact_deploy.graph.trunk_graph import data_inputs, trunk_nodes
from yolact_deploy.preprocess import read_image, resize_image
from yolact_deploy.progress import SILENT, Progress
from yolact_deploy.runtime.onnxruntime import open_cpu_session
from yolact_deploy.vocabulary import CALIBRATION_METHODS, check_word

#: operators whose inputs and outputs INT8 needs the ranges of
WATCHED = ("Conv", "Add", "Resize", "MaxPool", "Relu", "Clip", "LeakyRelu")
#: values of each tensor and image that leave the graph, about
SAMPLES = 1 << 16
_SECONDS_BETWEEN_SAVES = 10.0
_STATE_VERSION = 1


@dataclass(frozen=True)
class Calibration:
    """What INT8 needs to know of the activations.

    Attributes:
        method: one of :data:`~yolact_deploy.vocabulary.CALIBRATION_METHODS`
        images: that were looked at
        images_sha256: of all of them, in their order
        ranges: low and high end of each tensor, by the names that the FP32 graph has; zero is always between them
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
        model: ``ModelProto`` in FP32 as this package exports it, with or without the tail; it is left as it is
        images: pictures like those that the network will see, not those that its accuracy is measured on
        method: "minmax" keeps everything; "percentile", "entropy" and "mse" clip rare large values
        state: folder in which what was gathered is kept: a second run goes on from there
        progress: counts the images

    Raises:
        InputError: too many pictures are of no use, see :func:`usable_images`.
        ExportError: an unknown method, or values that are not finite in FP32.
        OutputError: the state cannot be written.
    """
    check_word("calibration method", method, CALIBRATION_METHODS, ExportError)
    watched = _Watched(model)
    usable = usable_images(images)
    gathered = _Gathered(len(watched.tensors))
    file = None
    if state is not None:
        file = state / f"{watched.sha256[:32]}-{usable.sha256[:32]}.npz"
        gathered.load(file)
    if gathered.done < len(usable.paths):
        known = f" ({gathered.done} known already)" if gathered.done else ""
        steps = _gather(watched, usable.paths, gathered, file)
        for _ in progress.track(steps, f"calibrating{known}", len(usable.paths) - gathered.done):
            pass
    ranges = {name: gathered.histograms.range(i, method) for i, name in enumerate(watched.tensors)}
    return Calibration(
        method, len(usable.paths), usable.sha256, {n: ranges[s] for n, s in watched.sources.items()}, usable.notes
    )


class _Gathered:
    """What is known after ``done`` images."""

    def __init__(self, tensors: int) -> None:
        self.done = 0
        self.histograms = Histograms(tensors)

    def load(self, file: Path) -> None:
        """Go on from a file; one that is missing, damaged or of another version is passed over."""
        names = ("counts", "limits", "lows", "highs")
        try:
            with open(file, "rb") as source, np.load(source, allow_pickle=False) as content:
                fresh = {name: content[name] for name in names}
                version, done = (int(n) for n in content["state"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return
        own = self.histograms
        if version == _STATE_VERSION and all(fresh[n].shape == getattr(own, n).shape for n in names):
            self.done = done
            for name in names:
                setattr(own, name, fresh[name])

    def save(self, file: Path) -> None:
        own = self.histograms
        with atomic_write(file) as temporary, open(temporary, "wb") as out:
            np.savez(
                out,
                state=np.array([_STATE_VERSION, self.done]),
                counts=own.counts,
                limits=own.limits,
                lows=own.lows,
                highs=own.highs,
            )


def _gather(watched: _Watched, paths: Sequence[Path], gathered: _Gathered, file: Path | None) -> Iterator[None]:
    """Run over the pictures that are not done; gives one item for each."""
    session = open_cpu_session(watched.data, None, "the graph with its tensors watched", arena=False)
    saved = time.monotonic()
    while gathered.done < len(paths):
        call = paths[gathered.done : gathered.done + watched.batch]
        found = iter(session.run(None, {"images": watched.network_input(call)}))
        for tensor, (lows, highs, values) in enumerate(zip(found, found, found, strict=True)):
            # What fills up the batch does not count.
            watched.check(tensor, lows[: len(call)], highs[: len(call)], values[: len(call)])
            gathered.histograms.add(
                tensor, float(lows[: len(call)].min()), float(highs[: len(call)].max()), values[: len(call)]
            )
        gathered.done += len(call)
        if file is not None and (gathered.done == len(paths) or time.monotonic() - saved > _SECONDS_BETWEEN_SAVES):
            gathered.save(file)
            saved = time.monotonic()
        yield from (None for _ in call)


class _Watched:
    """A graph whose outputs are, of each tensor in question, the ends and some values: [N, 1], [N, 1] and [N, K].

    Attributes:
        data: the changed graph
        sha256: of what it computes
        tensors: the watched ones, in the order of the outputs
        sources: of every tensor that may be quantised, the watched one whose range is its range
        batch: images of a call
    """

    def __init__(self, model: Any) -> None:
        self._onnx = import_optional("onnx", "onnx", "Calibrating")
        watched = type(model)()
        watched.CopyFrom(model)
        fit_trunk(watched)
        graph = watched.graph
        self.sha256 = _digest(graph)
        dims = [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim]
        self.batch, self._side = dims[0] or 1, dims[1]
        self._dtype = (
            "uint8" if graph.input[0].type.tensor_type.elem_type == self._onnx.TensorProto.UINT8 else "float32"
        )
        self._layers: dict[str, str] = {}
        self.sources = self._find_sources(graph)
        self.tensors = list(dict.fromkeys(self.sources.values()))
        if not self.tensors:
            raise ExportError("the graph has no layers with weights: there is nothing to calibrate")
        self._watch(graph)
        self.data: bytes = watched.SerializeToString()

    def network_input(self, paths: Sequence[Path]) -> NDArray[Any]:
        images = [resize_image(read_image(path), self._side, self._dtype) for path in paths]
        return np.stack(images + images[-1:] * (self.batch - len(images)))

    def check(self, tensor: int, *found: NDArray[np.float32]) -> None:
        """Raises :class:`ExportError` where something in a tensor is not finite."""
        if not all(np.isfinite(values).all() for values in found):
            raise ExportError(
                f"{self._layers[self.tensors[tensor]]} has values that are not finite in FP32: the checkpoint is "
                "damaged or its training diverged"
            )

    def _find_sources(self, graph: Any) -> dict[str, str]:
        constants = {constant.name for constant in graph.initializer}
        readers: dict[str, list[Any]] = {output.name: [None] for output in graph.output}
        for node in graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        same: dict[str, str] = {}
        for trunk_node in trunk_nodes(graph):
            node = graph.node[trunk_node.index]
            if node.op_type not in WATCHED or node.domain:
                continue
            inputs = [name for _, name in data_inputs(node) if name not in constants]
            for name in (*inputs, node.output[0]):
                self._layers.setdefault(name, trunk_node.layer)
            if node.op_type == "MaxPool" or (node.op_type == "Resize" and _mode(node) in (b"linear", b"nearest")):
                same[node.output[0]] = inputs[0]  # nothing leaves the range of what enters
            elif node.op_type in ("Relu", "Clip") and len(readers[inputs[0]]) == 1:
                same.setdefault(inputs[0], node.output[0])  # what is clipped need not be in the range
        return {name: _follow(name, same) for name in self._layers}

    def _watch(self, graph: Any) -> None:
        onnx = self._onnx
        shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.value_info}
        constants = {"flat": [0, -1], "zero": [0], "one": [1], "end": [np.iinfo(np.int64).max]}
        del graph.output[:]
        for name in self.tensors:
            step = _step(shapes[name])
            constants[f"step_{step}"] = [step]
            outputs = [f"{name}_{what}" for what in ("low", "high", "some")]
            flat = f"{name}_flat"
            graph.node.append(onnx.helper.make_node("Reshape", [name, "watch_flat"], [flat]))
            graph.node.append(onnx.helper.make_node("ReduceMin", [flat, "watch_one"], outputs[:1]))
            graph.node.append(onnx.helper.make_node("ReduceMax", [flat, "watch_one"], outputs[1:2]))
            cut = [flat, "watch_zero", "watch_end", "watch_one", f"watch_step_{step}"]
            graph.node.append(onnx.helper.make_node("Slice", cut, outputs[2:]))
            for output in outputs:
                graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
        graph.initializer.extend(
            onnx.numpy_helper.from_array(np.array(value, np.int64), f"watch_{name}")
            for name, value in constants.items()
        )


def _mode(node: Any) -> bytes:
    return next((bytes(a.s) for a in node.attribute if a.name == "mode"), b"nearest")


def _follow(name: str, same: dict[str, str]) -> str:
    while name in same:
        name = same[name]
    return name


def _step(shape: Sequence[int]) -> int:
    """Between the values that leave the graph; without a common divisor with any side, so that it meets all of them."""
    count = math.prod(shape[1:])
    step = -(-count // SAMPLES)
    while math.gcd(step, count) > 1:
        step += 1
    return step


def _digest(graph: Any) -> str:
    """Of what the graph computes, whatever else the exporter has written into it."""
    digest = hashlib.sha256()
    for node in graph.node:
        digest.update(repr((node.op_type, list(node.input), list(node.output))).encode())
        for attribute in node.attribute:
            digest.update(attribute.SerializeToString(deterministic=True))
    for constant in graph.initializer:
        digest.update(repr((constant.name, constant.data_type, list(constant.dims))).encode())
        digest.update(constant.raw_data or constant.SerializeToString(deterministic=True))
    return digest.hexdigest()
