"""``mot`` and ``ytvis``: objects that keep their ids, as MOT text and as YouTube-VIS results."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from yolact_deploy.artifact import write_json
from yolact_deploy.streams.sinks.sink import Sink, SinkItem


class MotSink(Sink):
    """``mot/NAME.txt``: ``frame,id,left,top,width,height,score,-1,-1,-1``, frames and ids from 1, pixels."""

    name = "mot"

    def __init__(self, folder: Path, category_ids: tuple[int, ...], *, overwrite: bool = False) -> None:
        super().__init__(folder, category_ids, overwrite=overwrite)
        self._lines: dict[str, list[str]] = defaultdict(list)

    def write(self, item: SinkItem) -> None:
        detections, lines = item.detections, self._lines[item.name]
        assert detections.track_ids is not None
        for track, (x1, y1, x2, y2), score in zip(
            detections.track_ids.tolist(), detections.boxes.tolist(), detections.scores.tolist(), strict=True
        ):
            if track > 0:
                box = f"{x1:.2f},{y1:.2f},{x2 - x1:.2f},{y2 - y1:.2f}"
                lines.append(f"{(item.frame or 0) + 1},{track},{box},{score:.6f},-1,-1,-1\n")

    def finish(self) -> None:
        for name, lines in self._lines.items():
            self._write(f"{name}.txt", "".join(lines).encode())


class YouTubeVisSink(Sink):
    """``ytvis/results.json``, tracks with a mask a frame or null, and ``ytvis/videos.json``, the videos."""

    name = "ytvis"

    def __init__(self, folder: Path, category_ids: tuple[int, ...], *, overwrite: bool = False) -> None:
        super().__init__(folder, category_ids, overwrite=overwrite)
        self._videos: dict[str, dict[str, Any]] = {}
        #: of each video, by track: class index, scores, and masks by frame
        self._tracks: dict[str, dict[int, tuple[int, list[float], dict[int, Any]]]] = defaultdict(dict)

    def write(self, item: SinkItem) -> None:
        detections = item.detections
        assert detections.track_ids is not None
        video = self._videos.setdefault(
            item.name,
            {"id": len(self._videos) + 1, "file_names": [], "height": detections.height, "width": detections.width},
        )
        frame = len(video["file_names"])
        video["file_names"].append(f"{item.name}/{frame:06d}.jpg")
        tracks = self._tracks[item.name]
        for track, label, score, rle in zip(
            detections.track_ids.tolist(), detections.labels.tolist(), detections.scores.tolist(), detections.rle(),
            strict=True,
        ):  # fmt: skip
            if track > 0:
                _, scores, masks = tracks.setdefault(track, (label, [], {}))
                scores.append(score)
                masks[frame] = rle

    def finish(self) -> None:
        results = [
            {
                "video_id": video["id"],
                "category_id": self.category_ids[label],
                "score": sum(scores) / len(scores),
                "segmentations": [masks.get(frame) for frame in range(len(video["file_names"]))],
            }
            for name, video in self._videos.items()
            for label, scores, masks in self._tracks[name].values()
        ]
        for name, value in (("results.json", results), ("videos.json", {"videos": list(self._videos.values())})):
            write_json(self.folder / name, value)
            self.paths.append(self.folder / name)
