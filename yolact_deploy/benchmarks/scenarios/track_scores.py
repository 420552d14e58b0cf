"""Tracking on generated videos with known ids, scored by TrackEval: HOTA, IDF1, MOTA and switches of ids.

    python -m yolact_deploy.benchmarks.scenarios.track_scores run TRACKS.json [--engine SPEC] [--overlap mask] \
        [--track-score X] [--seed N]
    python -m yolact_deploy.benchmarks.scenarios.track_scores score TRACKS.json

Two steps, because ``trackeval`` installs another OpenCV and wants an environment of its own: ``pip install trackeval``
there, with this package on ``PYTHONPATH``. Shapes hide behind each other, bounce and leave. Objects are compared by the
IoU of their masks.

Legend: n objects of the truth in a frame, m tracked ones.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.benchmarks.command import command_parser, run_command
from yolact_deploy.errors import import_optional
from yolact_deploy.streams.byte_track import TrackOptions


def run(engine: str | None, videos: int, frames: int, seed: int, options: TrackOptions) -> list[dict[str, Any]]:
    """Track the objects of each video; per frame their ids, those of the truth, and the IoU of all pairs."""
    from yolact_deploy import samples
    from yolact_deploy.datasets.shape_videos import render_video
    from yolact_deploy.loading import load
    from yolact_deploy.streams.byte_track import ByteTracker

    results = []
    with load(engine or str(samples.DEMO_MODEL)) as model:
        for index in range(videos):
            tracker = ByteTracker(options)
            rows = []
            for frame in render_video(index, frames=frames, seed=seed):
                found = tracker.track(model(frame.image))
                assert found.track_ids is not None
                found = found[found.track_ids > 0]
                assert found.track_ids is not None
                truth = np.array([shape.mask for shape in frame.shapes], np.bool_).reshape(-1, *frame.image.shape[:2])
                rows.append(
                    {
                        "truth": [shape.number for shape in frame.shapes],
                        "tracked": found.track_ids.tolist(),
                        "overlaps": overlaps(truth, found.masks).round(4).tolist(),
                    }
                )
            results.append({"video": index, "frames": rows})
    return results


def overlaps(truth: NDArray[np.bool_], tracked: NDArray[np.bool_]) -> NDArray[np.float64]:
    """IoU [n, m] of masks [n, H, W] and [m, H, W]."""
    first, second = (
        masks.reshape(len(masks), math.prod(masks.shape[1:])).astype(np.float32) for masks in (truth, tracked)
    )
    both = first @ second.T
    union = first.sum(axis=1)[:, None] + second.sum(axis=1)[None] - both
    return np.asarray(both / np.maximum(union, 1), np.float64)


def score(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """HOTA (mean over its thresholds), IDF1, MOTA and switches of all videos together."""
    metrics = import_optional("trackeval.metrics", "track", "Scoring tracks (pip install trackeval)")
    kinds = {"HOTA": metrics.HOTA(), "Identity": metrics.Identity(), "CLEAR": metrics.CLEAR()}
    single = [_sequence(one["frames"]) for one in results]
    combined = {}
    for name, metric in kinds.items():
        scored = {str(i): metric.eval_sequence(data) for i, data in enumerate(single)}
        combined[name] = metric.combine_sequences(scored)
    return {
        "videos": len(results),
        "frames": sum(len(one["frames"]) for one in results),
        "HOTA": float(np.mean(combined["HOTA"]["HOTA"])),
        "DetA": float(np.mean(combined["HOTA"]["DetA"])),
        "AssA": float(np.mean(combined["HOTA"]["AssA"])),
        "IDF1": float(combined["Identity"]["IDF1"]),
        "MOTA": float(combined["CLEAR"]["MOTA"]),
        "switches": int(combined["CLEAR"]["IDSW"]),
    }


def _sequence(frames: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One video as TrackEval takes it, with ids from 0."""
    data: dict[str, Any] = {"num_timesteps": len(frames)}
    for ours, theirs, ids, count in (
        ("truth", "gt_ids", "num_gt_ids", "num_gt_dets"),
        ("tracked", "tracker_ids", "num_tracker_ids", "num_tracker_dets"),
    ):
        known = {number: index for index, number in enumerate(sorted({n for row in frames for n in row[ours]}))}
        data[theirs] = [np.array([known[n] for n in row[ours]], int) for row in frames]
        data[ids], data[count] = len(known), sum(len(row[ours]) for row in frames)
    data["similarity_scores"] = [
        np.array(row["overlaps"], float).reshape(len(row["truth"]), len(row["tracked"])) for row in frames
    ]
    return data


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("scenarios.track_scores", __doc__)
    parser.add_argument("step", choices=("run", "score"))
    parser.add_argument("tracks", metavar="TRACKS.json", help="written by run, read by score")
    parser.add_argument("--engine", metavar="SPEC", help="a model of shapes (default: the one that ships)")
    parser.add_argument("--videos", type=int, default=20, metavar="N", help="number of videos (default: 20)")
    parser.add_argument("--frames", type=int, default=40, metavar="N", help="frames of each (default: 40)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the videos (default: 0)")
    parser.add_argument(
        "--track-score", type=float, default=TrackOptions.new_score, metavar="X",
        help=f"least score of a new track (default: {TrackOptions.new_score})",
    )  # fmt: skip
    parser.add_argument("--overlap", choices=("box", "mask"), default="box", help="what the tracker compares")
    return run_command(parser, argv, _measure)


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    path = Path(args.tracks)
    if args.step == "score":
        return score(json.loads(path.read_text(encoding="utf-8")))
    options = TrackOptions(high_score=args.track_score, new_score=args.track_score, overlap=args.overlap)
    results = run(args.engine, args.videos, args.frames, args.seed, options)
    path.write_text(json.dumps(results), encoding="utf-8")
    return {"videos": len(results), "frames": sum(len(one["frames"]) for one in results), "tracks": str(path)}


if __name__ == "__main__":
    sys.exit(main())
