"""Detections on disk: continued after any interruption, and rejected if they belong to something else."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pycocotools")

from random_coco import make_content, make_results

from yolact_deploy.errors import DatasetError, InputError, OutputError
from yolact_deploy.evaluation.accuracy import by_image
from yolact_deploy.evaluation.detection_cache import DetectionCache, is_detection_cache, read_detections

KEY = {"model_sha256": "ab", "threads": None, "images": 4}
CONTENT = make_content(4, 2)
IDS = [10, 11, 12, 13]
RESULTS = {i: by_image(make_results(CONTENT, 2, decimals=9)).get(i, []) for i in IDS}


def fill(cache: DetectionCache, ids: list[int]) -> None:
    for image_id in ids:
        cache.add(image_id, RESULTS[image_id])


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A file with two of the four images."""
    path = tmp_path / "folder" / "d.jsonl"
    with DetectionCache(path, KEY, IDS) as cache:
        fill(cache, IDS[:2])
    return path


def test_what_goes_in_comes_out(half: Path) -> None:
    assert is_detection_cache(half)
    with DetectionCache(half, KEY, IDS, resume=True) as cache:
        assert cache.stored == 2
        assert [(s.image_id, s.results) for s in cache] == [(i, RESULTS[i]) for i in IDS[:2]]
        fill(cache, IDS[2:])
        assert cache.stored == 2, "how many there were"
        assert len(list(cache)) == 2
    assert any(RESULTS.values())
    assert {s.image_id: s.results for s in read_detections(half)} == RESULTS


def test_each_image_is_there_at_once(half: Path) -> None:
    with DetectionCache(half, KEY, IDS, resume=True) as cache:
        for count, image_id in enumerate(IDS[2:], 3):
            fill(cache, [image_id])
            assert len(list(read_detections(half))) == count


@pytest.mark.parametrize("keep", [1, 20, -1])
def test_a_torn_last_line_is_dropped(half: Path, keep: int) -> None:
    whole = half.read_bytes()
    lines = whole.splitlines(keepends=True)
    half.write_bytes(whole + lines[-1][:keep])
    assert len(list(read_detections(half))) == 2, "also for those who only read"
    with DetectionCache(half, KEY, IDS, resume=True) as cache:
        assert cache.stored == 2
        assert half.read_bytes() == whole
        fill(cache, IDS[2:])
    assert {s.image_id: s.results for s in read_detections(half)} == RESULTS


@pytest.mark.parametrize("keep", [0, 5, 60])
def test_a_torn_first_line_is_written_anew(half: Path, keep: int) -> None:
    header = half.read_bytes().splitlines(keepends=True)[0]
    half.write_bytes(header[:keep])
    with DetectionCache(half, KEY, IDS, resume=True) as cache:
        assert cache.stored == 0
    assert half.read_bytes() == header


def test_resume_without_a_file_makes_one(tmp_path: Path) -> None:
    with DetectionCache(tmp_path / "d", KEY, IDS, resume=True) as cache:
        fill(cache, IDS)
    assert len(list(read_detections(tmp_path / "d"))) == 4


def test_an_existing_file_is_not_touched_unasked(half: Path) -> None:
    before = half.read_bytes()
    with pytest.raises(InputError, match="exists: continue it with --resume, remove it"):
        DetectionCache(half, KEY, IDS)
    assert half.read_bytes() == before


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ({**KEY, "model_sha256": "cd"}, "model_sha256 is 'ab' there and 'cd' now"),
        ({**KEY, "threads": 2}, "threads is None there and 2 now"),
        ({"model_sha256": "ab", "images": 4, "spec": "@openvino"}, "spec is None there and '@openvino' now"),
    ],
)
def test_detections_of_something_else(half: Path, key: dict[str, Any], message: str) -> None:
    before = half.read_bytes()
    with pytest.raises(DatasetError, match=message):
        DetectionCache(half, key, IDS, resume=True)
    assert half.read_bytes() == before


@pytest.mark.parametrize("text", ["[\n]\n", "[{}]", "{}", '{"format": "other", "key": {}}\n', "\x00\n"])
def test_files_of_others_stay_as_they_are(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    assert not is_detection_cache(path)
    with pytest.raises(DatasetError, match="was not written by eval --cache: choose another file"):
        DetectionCache(path, KEY, IDS, resume=True)
    assert path.read_text() == text


def test_another_version(half: Path) -> None:
    half.write_text(half.read_text().replace('"version":1', '"version":2'))
    with pytest.raises(DatasetError, match="of format 2, this version reads 1"):
        DetectionCache(half, KEY, IDS, resume=True)


def edited(path: Path, edit: Any) -> Path:
    lines = path.read_text().splitlines()
    record = json.loads(lines[1])
    edit(record)
    path.write_text("\n".join([lines[0], json.dumps(record), *lines[2:]]) + "\n")
    return path


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r.update(image_id=12), "line 2, has image 12 instead of 10"),
        (lambda r: r.pop("detections"), "line 2, is damaged"),
        (lambda r: r["detections"].append({"bbox": [1, 2, 3, 4]}), "line 2, is damaged"),
        (lambda r: r["detections"][0].update(score="high"), "result number 0 has the score 'high'"),
        (lambda r: r["detections"][0]["segmentation"].update(counts="11"), "damaged RLE"),
        (lambda r: r["detections"][0].update(score=float("nan")), "has the score nan"),
        (lambda r: r.update(image_id=[10]), "line 2, is damaged"),
        (lambda r: r.update(image_id="10"), "line 2, is damaged"),
        (lambda r: r["detections"][0].update(category_id={}), "line 2, is damaged"),
        (lambda r: r["detections"][0]["segmentation"].update(size=[10**400, 5]), "mask of size"),
        (lambda r: r["detections"][0]["segmentation"].update(size=["a", "b"]), "mask of size"),
    ],
)
def test_damaged_lines(half: Path, edit: Any, message: str) -> None:
    assert RESULTS[10]
    with (
        DetectionCache(edited(half, edit), KEY, IDS, resume=True) as cache,
        pytest.raises(DatasetError, match=message),
    ):
        list(cache)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"image_id":' + "9" * 5000 + "}", "{", '"\\ud800"', "null"])
def test_lines_that_are_no_records(half: Path, text: str) -> None:
    lines = half.read_text().splitlines()
    half.write_text("\n".join([lines[0], text, ""]))
    with (
        DetectionCache(half, KEY, IDS, resume=True) as cache,
        pytest.raises(DatasetError, match="line 2,") as caught,
    ):
        list(cache)
    assert len(str(caught.value)) < 500


def test_more_lines_than_images(half: Path) -> None:
    with pytest.raises(DatasetError, match="more than 1 images"):
        DetectionCache(half, KEY, IDS[:1], resume=True)


class FullDisk:
    """Accepts some bytes of a line, then is full."""

    def __init__(self, path: Path) -> None:
        self.file, self.room = io.FileIO(path, "a"), 30

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.file.write(data[: self.room]) or 0
        self.room -= written
        return written

    def close(self) -> None:
        self.file.close()


def test_a_full_disk(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with DetectionCache(half, KEY, IDS, resume=True) as cache:
        cache._file.close()
        monkeypatch.setattr(cache, "_file", FullDisk(half))
        with pytest.raises(OutputError, match=r"No space left on device\. Free some space and continue with --resume"):
            fill(cache, IDS[2:])
    assert not half.read_bytes().endswith(b"\n")
    with DetectionCache(half, KEY, IDS, resume=True) as cache:
        fill(cache, IDS[2:])
    assert {s.image_id: s.results for s in read_detections(half)} == RESULTS


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        DetectionCache(tmp_path / "file" / "d", KEY, IDS)
