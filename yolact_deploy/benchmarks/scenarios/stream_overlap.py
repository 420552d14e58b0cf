"""A video through decoding, network, drawing and encoding: one after the other, and in overlapping threads.

    python -m yolact_deploy.benchmarks.scenarios.stream_overlap [--engine SPEC] [--multiframe N] [--frames N] \
        [--width W --height H]

Without an engine, the network is one that sleeps for 8 ms and detects ten objects, as a GPU would that leaves the CPU
alone. Each way, and each stage alone, runs in turns, several times; the best run of each counts. Two things limit the
overlapping way: the slowest stage alone, and the CPU time of all stages shared by the cores. The exit code is 1 if the
detections of both ways differ.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.artifact import Metadata
from yolact_deploy.benchmarks.command import command_parser, run_command
from yolact_deploy.config import get_config
from yolact_deploy.console import print_table
from yolact_deploy.datasets.shape_videos import render_video
from yolact_deploy.detections import Detections
from yolact_deploy.draw import draw_detections
from yolact_deploy.loading import load
from yolact_deploy.machine.cpu_state import usable_cores
from yolact_deploy.machine.environment import environment
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.streaming import StreamFrame, detect_stages
from yolact_deploy.runtime.tails import DetectionOutputs
from yolact_deploy.streams.readers.kinds import open_reader
from yolact_deploy.streams.threaded_stages import Pipeline, each
from yolact_deploy.streams.video import read_timed
from yolact_deploy.streams.writers import VideoWriter, open_encoder

_WAIT = 0.008
_OBJECTS = 10
_ROUNDS = 3


class WaitingBackend(Backend):
    """A network that takes 8 ms and no CPU, and detects the same ten objects."""

    name = "waiting"
    precision = "fp32"

    def __init__(self) -> None:
        self.metadata = Metadata(config=get_config("yolact_resnet50"), batch=(1, 1, 1))
        random = np.random.default_rng(0)
        corners = random.uniform(0, 0.7, (1, _OBJECTS, 2))
        masks = np.zeros((1, _OBJECTS, 138, 138), np.float32)
        for mask, (x, y) in zip(masks[0], (corners[0] * 138).astype(int), strict=True):
            cv2.ellipse(mask, (int(x) + 18, int(y) + 18), (16, 14), 30, 0, 360, 1.0, -1)
        self._outputs = DetectionOutputs(
            np.array([_OBJECTS], np.int32),
            np.concatenate([corners, corners + 0.28], axis=2).astype(np.float32),
            np.linspace(0.9, 0.5, _OBJECTS, dtype=np.float32)[None],
            np.arange(_OBJECTS, dtype=np.int32)[None],
            masks,
        )

    def run(self, images: NDArray[Any]) -> DetectionOutputs:
        time.sleep(_WAIT)
        return self._outputs

    def describe(self) -> dict[str, Any]:
        return {"milliseconds": 1e3 * _WAIT}


def make_clip(path: Path, frames: int, width: int, height: int) -> None:
    """A video of moving shapes, enlarged to the size."""
    with VideoWriter(path, 30, (width, height)) as writer:
        for frame in render_video(0, frames=frames):
            writer.write(np.asarray(cv2.resize(frame.image, (width, height)), np.uint8))


def serially(model: Predictor, clip: Path, out: Path) -> list[Detections]:
    """One frame after the other, in one thread."""
    reader, found = open_reader(str(clip)), []
    encoder = open_encoder(out, out, reader.info.fps, reader.info[:2])
    for frame in reader.frames():
        found.append(model(frame.image))
        encoder.encode(draw_detections(frame.image, found[-1]), frame.seconds)
    encoder.close()
    return found


def overlapping(model: Predictor, clip: Path, out: Path, multiframe: int) -> list[Detections]:
    """The way of ``predict``, with batches of ``multiframe`` frames."""
    found: list[Detections] = []

    def draw(job: StreamFrame) -> StreamFrame:
        assert job.detections is not None
        job.drawn = draw_detections(job.image, job.detections)
        return job

    with read_timed(str(clip)) as frames, VideoWriter(out, frames.info.fps, frames.info[:2]) as writer:
        jobs = (StreamFrame(frame.image, frame.seconds) for frame in frames)
        with Pipeline[StreamFrame](jobs, *detect_stages(model, multiframe), each(draw)) as done:
            for job in done:
                assert job.detections is not None
                assert job.drawn is not None
                found.append(job.detections)
                writer.write(job.drawn, job.tag)
    return found


def alone(model: Predictor, clip: Path, out: Path) -> dict[str, tuple[float, float]]:
    """Milliseconds a frame of each stage by itself: wall time, and CPU time of all threads."""
    spent = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start, cpu = time.perf_counter(), time.process_time()
        result = work()
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        spent[name] = 1e3 * wall / len(frames or result), 1e3 * cpu / len(frames or result)
        return result

    frames: list[Any] = []
    frames = timed("decode", lambda: list(open_reader(str(clip)).frames()))
    inputs = timed("prepare", lambda: [model.preprocess([frame.image]) for frame in frames])
    outputs = timed("network", lambda: [model.backend.run(one) for one in inputs])
    shape = frames[0].image.shape
    found = timed("paste", lambda: [model.postprocess(one, 0, shape, lazy_masks=False) for one in outputs])
    pairs = list(zip(frames, found, strict=True))
    drawn = timed("draw", lambda: [draw_detections(frame.image, one) for frame, one in pairs])

    def encode() -> None:
        encoder = open_encoder(out, out, 30, (shape[1], shape[0]))
        for frame, image in zip(frames, drawn, strict=True):
            encoder.encode(image, frame.seconds)
        encoder.close()

    timed("encode", encode)
    return spent


def measure(model: Predictor, frames: int, width: int, height: int, multiframe: int) -> dict[str, Any]:
    """Rates of both ways, and the time of each stage alone."""
    sys.setswitchinterval(0.0005)  # as the command line does
    best = {"serial": float("inf"), "overlapping": float("inf")}
    stages: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        clip, out = Path(folder) / "clip.mp4", Path(folder) / "out.mp4"
        make_clip(clip, frames, width, height)
        model.lazy_masks = False
        ways: dict[str, Callable[[Predictor, Path, Path], list[Detections]]] = {
            "serial": serially,
            "overlapping": functools.partial(overlapping, multiframe=multiframe),
        }
        results = {}
        for _ in range(_ROUNDS):
            for name, way in ways.items():
                start = time.perf_counter()
                results[name] = way(model, clip, out)
                best[name] = min(best[name], 1e3 * (time.perf_counter() - start) / frames)
            for name, spent in alone(model, clip, out).items():
                stages.setdefault(name, []).append(spent)
    wall = {name: min(one[0] for one in spent) for name, spent in stages.items()}
    cpu = {name: min(one[1] for one in spent) for name, spent in stages.items()}
    slowest = max(wall, key=lambda name: wall[name])
    shared = sum(cpu.values()) / usable_cores()
    return {
        "frames": frames,
        "size": [width, height],
        "multiframe": multiframe,
        "stages_ms": wall,
        "stages_cpu_ms": cpu,
        "slowest_stage": slowest,
        "cpu_ms_shared_by_cores": shared,
        "serial_ms": best["serial"],
        "overlapping_ms": best["overlapping"],
        "times_as_fast": best["serial"] / best["overlapping"],
        "share_of_the_slowest_stage": wall[slowest] / best["overlapping"],
        "share_of_the_limit": max(wall[slowest], shared) / best["overlapping"],
        "equal": results["serial"] == results["overlapping"],
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("scenarios.stream_overlap", __doc__)
    parser.add_argument("--engine", metavar="SPEC", help="a model to run (default: a network that sleeps 8 ms)")
    parser.add_argument("--multiframe", type=int, default=1, metavar="N", help="frames in one batch (default: 1)")
    parser.add_argument("--frames", type=int, default=90, metavar="N", help="frames of the video (default: 90)")
    parser.add_argument("--width", type=int, default=1920, metavar="W", help="of the video (default: 1920)")
    parser.add_argument("--height", type=int, default=1080, metavar="H", help="of the video (default: 1080)")
    return run_command(parser, argv, _measure, show=_show, problems=_problems)


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    model = load(args.engine) if args.engine else Predictor(WaitingBackend())
    with model:
        return {**measure(model, args.frames, args.width, args.height, args.multiframe), "environment": environment()}


def _show(facts: dict[str, Any]) -> None:
    rows = [[name, f"{value:.2f}", f"{facts['stages_cpu_ms'][name]:.2f}"] for name, value in facts["stages_ms"].items()]
    rows += [["serial", f"{facts['serial_ms']:.2f}", ""], ["overlapping", f"{facts['overlapping_ms']:.2f}", ""]]
    print_table(["stage", "ms a frame", "CPU ms"], rows)
    print(
        f"{facts['times_as_fast']:.2f} times as fast as serial; {facts['slowest_stage']} alone takes "
        f"{100 * facts['share_of_the_slowest_stage']:.0f} % of the overlapping time, the slower of that and of all CPU "
        f"time on {usable_cores()} cores {100 * facts['share_of_the_limit']:.0f} %"
    )


def _problems(facts: dict[str, Any]) -> Iterator[str]:
    if not facts["equal"]:
        yield "the detections of both ways differ"


if __name__ == "__main__":
    sys.exit(main())
