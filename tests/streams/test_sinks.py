"""Each sink's file, read back as the tool that it is for reads it."""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from clips import numbered
from sink_items import HEIGHT, WIDTH, found, frames, image, picture, ring, write

from yolact_deploy.draw import DrawStyle, draw_detections
from yolact_deploy.errors import BackendError, InputError, OutputError
from yolact_deploy.streams.sinks.labelme import to_labelme
from yolact_deploy.streams.sinks.mask_pictures import id_picture
from yolact_deploy.streams.sinks.screens import MjpegServer, RateDisplay, Window
from yolact_deploy.streams.sinks.sink import safe_name
from yolact_deploy.streams.sinks.sink_table import SINKS
from yolact_deploy.streams.sinks.yolo_text import yolo_lines
from yolact_deploy.vocabulary import OUTPUT_FORMATS


def test_the_vocabulary_has_all_sinks() -> None:
    assert OUTPUT_FORMATS[3:] == tuple(SINKS)


def test_yolo_reads_back_as_one_object_with_its_hole(tmp_path: Path) -> None:
    assert write("yolo", tmp_path, [picture()]) == ["yolo/a.txt"]
    lines = (tmp_path / "yolo" / "a.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1"]
    for line, mask in zip(lines, found().masks, strict=False):
        # as Ultralytics and supervision read it
        points = (np.array(line.split()[1:], np.float64).reshape(-1, 2) * (WIDTH, HEIGHT)).astype(np.int32)
        read = cv2.fillPoly(np.zeros((HEIGHT, WIDTH), np.uint8), [points], 1).astype(bool)
        assert (read & mask).sum() / (read | mask).sum() > 0.97
    assert len(yolo_lines(found()[:0])) == 0


def test_labelme_content(tmp_path: Path) -> None:
    assert write("labelme", tmp_path, [picture("sub/a")]) == ["labelme/sub/a.json"]
    content = json.loads((tmp_path / "labelme" / "sub" / "a.json").read_text())
    assert {"version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth"} <= set(content)
    assert content["imagePath"].endswith("in/sub/a.jpg")
    assert (content["imageHeight"], content["imageWidth"], content["imageData"]) == (HEIGHT, WIDTH, None)
    assert [shape["label"] for shape in content["shapes"]] == ["cat", "traffic light"]
    for shape, mask in zip(content["shapes"], found().masks, strict=False):
        (x1, y1), (x2, y2) = shape["points"]
        crop = cv2.imdecode(np.frombuffer(base64.b64decode(shape["mask"]), np.uint8), cv2.IMREAD_UNCHANGED)
        assert crop is not None
        assert crop.shape == (y2 - y1 + 1, x2 - x1 + 1)
        np.testing.assert_array_equal(crop > 0, mask[y1 : y2 + 1, x1 : x2 + 1])
    assert write("labelme", tmp_path / "v", frames(1)) == ["labelme/clip/000000.jpg", "labelme/clip/000000.json"]
    assert to_labelme(found([4, -1, 7]), "x.jpg")["shapes"][0]["group_id"] == 4


def test_mask_pictures(tmp_path: Path) -> None:
    assert write("masks", tmp_path, [picture(), *frames(2)]) == [
        "masks/a.png", "masks/clip/000000.png", "masks/clip/000001.png",
    ]  # fmt: skip
    read = cv2.imread(str(tmp_path / "masks" / "a.png"), cv2.IMREAD_UNCHANGED)
    assert read is not None
    assert read.dtype == np.uint16
    assert [int((read == i).sum()) for i in (1, 2, 3)] == found().areas().tolist()
    assert set(np.unique(id_picture(found([40_000, -1, -1])))) == {0, 40_000}


def test_crops_and_cutouts(tmp_path: Path) -> None:
    assert write("crops", tmp_path, [picture()]) == [
        "crops/cat/a-1.jpg", "crops/traffic_light/a-2.jpg", "crops/traffic_light/a-3.jpg",
    ]  # fmt: skip
    assert "cutouts/cat/clip/000000-track1.png" in write("cutouts", tmp_path, frames(1))
    read = cv2.imread(str(tmp_path / "cutouts" / "cat" / "clip" / "000000-track1.png"), cv2.IMREAD_UNCHANGED)
    assert read is not None
    np.testing.assert_array_equal(read[..., 3] > 0, ring())
    np.testing.assert_array_equal(read[..., :3], image()[20:80, 10:80])
    assert [crop.shape for crop in found().crop(image())] == [(60, 70, 3), (20, 15, 3), (3, 3, 3)]
    with pytest.raises(InputError, match="expected the image of the detections"):
        found().crop(image()[:50])


def test_csv_and_pandas(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    assert write("csv", tmp_path, [*frames(2)]) == ["csv/detections.csv"]
    table = pandas.read_csv(tmp_path / "csv" / "detections.csv")
    assert list(table["frame"]) == [0] * 3 + [1] * 3
    assert list(table["track"].fillna(-1)) == [1, -1, -1, 1, 2, -1]
    assert list(table.columns) == ["source", "frame", "time", "name", "label", "score", "x1", "y1", "x2", "y2", "area",
                                   "track"]  # fmt: skip
    frame = found().to_pandas()
    assert list(frame["area"]) == found().areas().tolist()
    assert list(found()[:0].to_pandas().columns) == list(frame.columns)
    again = pandas.read_csv(io.StringIO(found().to_csv()))
    pandas.testing.assert_frame_equal(again, frame, check_dtype=False)


def test_mot_text(tmp_path: Path) -> None:
    assert write("mot", tmp_path, frames(2)) == ["mot/clip.txt"]
    rows = [line.split(",") for line in (tmp_path / "mot" / "clip.txt").read_text().splitlines()]
    assert [row[:6] for row in rows] == [
        ["1", "1", "10.00", "20.00", "70.00", "60.00"],
        ["2", "1", "10.00", "20.00", "70.00", "60.00"],
        ["2", "2", "100.00", "60.00", "15.00", "20.00"],
    ]
    assert {len(row) for row in rows} == {10}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with NumPy 2
def test_youtube_vis(tmp_path: Path) -> None:
    masks = pytest.importorskip("pycocotools.mask")
    assert write("ytvis", tmp_path, frames(3)) == ["ytvis/results.json", "ytvis/videos.json"]
    results = json.loads((tmp_path / "ytvis" / "results.json").read_text())
    (video,) = json.loads((tmp_path / "ytvis" / "videos.json").read_text())["videos"]
    assert (video["width"], video["height"], len(video["file_names"])) == (WIDTH, HEIGHT, 3)
    assert [(one["video_id"], one["category_id"]) for one in results] == [(video["id"], 5), (video["id"], 9)]
    assert results[1]["segmentations"][0] is None
    np.testing.assert_array_equal(masks.decode(results[0]["segmentations"][2]).astype(bool), found().masks[0])


def test_folders_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / "yolo").mkdir()
    (tmp_path / "yolo" / "a.txt").write_text("by hand")
    with pytest.raises(OutputError, match="exists, and no earlier run wrote it"):
        SINKS["yolo"](tmp_path, (5, 9))
    assert (tmp_path / "yolo" / "a.txt").read_text() == "by hand"
    write("csv", tmp_path, [picture()])
    write("csv", tmp_path, [picture()])


def test_safe_names() -> None:
    assert [safe_name(name) for name in ("cat", "../x", "a/b:c", "")] == ["cat", "_x", "a_b_c", "_"]


# -- values ---------------------------------------------------------------------------------------------------------


def test_filter() -> None:
    every = found([3, 2, 1])
    assert every.filter(classes=["cat"]).names == ["cat"]
    assert every.filter(classes=[1], min_score=0.65).names == ["traffic light"]
    assert len(every.filter(min_area=1)) == 2
    inside = every.filter(region=[(90, 50), (120, 50), (120, 90), (90, 90)])
    assert inside.track_ids is not None
    assert inside.track_ids.tolist() == [2]
    for wrong in ({"classes": ["dog"]}, {"classes": [2]}, {"region": [(0, 0), (1, 1)]}):
        with pytest.raises(InputError):
            every.filter(**wrong)


def test_tracks_in_other_forms() -> None:
    tracked = found([3, -1, 1])
    assert [one["track"] for one in tracked.to_json()["detections"]] == [3, None, 1]
    assert "track" not in found().to_json()["detections"][0]
    assert tracked != found()
    assert tracked == found([3, -1, 1])


def test_styles() -> None:
    canvas, plain = image(), found([3, -1, 1])
    full = draw_detections(canvas, plain)
    nothing = draw_detections(canvas, plain, style=DrawStyle(hide=frozenset(("boxes", "scores", "labels", "masks"))))
    np.testing.assert_array_equal(nothing, canvas)
    by_track = draw_detections(canvas, plain, style=DrawStyle(color="track"))
    again = draw_detections(canvas, found([9, -1, 1]), style=DrawStyle(color="track"))
    by_class = draw_detections(canvas, plain, style=DrawStyle(color="class"))
    assert len({one.tobytes() for one in (full, by_track, again, by_class)}) == 4
    hidden = frozenset(("boxes", "scores", "labels", "masks"))
    blurred = draw_detections(canvas, plain, style=DrawStyle(blur=True, hide=hidden))
    mask = plain.masks.any(axis=0)
    np.testing.assert_array_equal(blurred[~mask], canvas[~mask])
    assert blurred[plain.masks[0]].std() < canvas[plain.masks[0]].std() / 3
    for wrong in ({"color": "red"}, {"hide": frozenset(("x",))}, {"alpha": 2.0}):
        with pytest.raises(InputError):
            DrawStyle(**wrong)


# -- watching -------------------------------------------------------------------------------------------------------


def test_mjpeg_is_served_on_loopback() -> None:
    av = pytest.importorskip("av")
    server, stopped = MjpegServer(0), threading.Event()

    def show() -> None:
        while not stopped.wait(0.01):
            server.show(numbered(5))

    thread = threading.Thread(target=show)
    thread.start()
    try:
        assert server.address.startswith("http://127.0.0.1:")
        with av.open(server.address, timeout=(10, 10)) as stream:
            seen = []
            for packet in stream.demux(video=0):
                seen += [frame.to_ndarray(format="bgr24") for frame in packet.decode()]
                if len(seen) >= 3:
                    break
        assert abs(float(seen[0][30:34, 46:50].mean()) - 100) < 3
        with pytest.raises(OutputError, match="cannot listen on port"):
            MjpegServer(int(server.address.rstrip("/").rpartition(":")[2]))
    finally:
        stopped.set()
        thread.join()
        server.close()


def test_a_window_needs_an_opencv_with_windows_and_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:   NONE\n")
    with pytest.raises(BackendError, match="pip install --force-reinstall --no-deps opencv-python"):
        Window()
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:   QT5\n")
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(BackendError, match="DISPLAY is not set"):
        Window()


def test_escape_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, shown = iter((-1, 27)), list[str]()
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:   QT5\n")
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "imshow", lambda name, image: shown.append(name))
    monkeypatch.setattr(cv2, "waitKey", lambda wait: next(keys))
    window = Window()
    assert [window.show("a", numbered(0)) for _ in range(2)] == [True, False]
    assert shown == ["a", "a"]


def test_the_rate_is_written() -> None:
    display, canvas = RateDisplay(), np.zeros((90, 200, 3), np.uint8)
    display.draw(canvas, 0.0)
    assert canvas[:40].any()
    assert not canvas[45:].any()
