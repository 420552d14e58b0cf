"""The sinks by the names that ``--format`` takes: a new one is one class and one line here."""

from __future__ import annotations

from yolact_deploy.streams.sinks.csv_table import CsvSink
from yolact_deploy.streams.sinks.labelme import LabelMeSink
from yolact_deploy.streams.sinks.mask_pictures import CropSink, CutoutSink, MaskSink
from yolact_deploy.streams.sinks.sink import Sink
from yolact_deploy.streams.sinks.tracks import MotSink, YouTubeVisSink
from yolact_deploy.streams.sinks.yolo_text import YoloSink

SINKS: dict[str, type[Sink]] = {
    sink.name: sink
    for sink in (CsvSink, YoloSink, LabelMeSink, MaskSink, CropSink, CutoutSink, MotSink, YouTubeVisSink)
}
