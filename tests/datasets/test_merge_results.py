"""Shards of work, and their results put together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from yolact_deploy.cli.main import main
from yolact_deploy.datasets.merge_results import merge_results
from yolact_deploy.datasets.shard import Block, Shard
from yolact_deploy.errors import DatasetError, InputError


@pytest.mark.parametrize("kind", [Shard, Block])
@pytest.mark.parametrize(("count", "items"), [(1, 5), (3, 8), (8, 8), (7, 3)])
def test_every_item_is_in_one_part(kind: type[Shard], count: int, items: int) -> None:
    parts = [kind(i, count).of(list(range(items))) for i in range(count)]
    assert sorted(item for part in parts for item in part) == list(range(items))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    "text", ["", "1", "0/3", "4/3", "1/0", "a/b", "1/2/3", "-1/2", "1.0/2", "\u0661/2", "1/" + "9" * 30]
)
def test_wrong_shards(text: str) -> None:
    with pytest.raises(InputError, match="--shards: expected i/n"):
        Shard.parse(text)


def write(folder: Path, name: str, value: Any) -> Path:
    (folder / name).write_text(json.dumps(value))
    return folder / name


def test_merges_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path, "r-1-of-2.json", [{"image_id": 1, "score": 0.5}, {"image_id": 3, "score": 0.4}])
    b = write(tmp_path, "r-2-of-2.json", [{"image_id": 2, "score": 0.9}])
    output = tmp_path / "all.json"
    assert main(["merge", str(a), str(b), "-o", str(output)]) == 0
    assert "wrote 3 detections of 2 files" in capsys.readouterr().out
    assert [result["image_id"] for result in json.loads(output.read_text())] == [1, 3, 2]
    empty = write(tmp_path, "empty.json", [])
    alone = write(tmp_path, "alone.json", [{"image_id": 2, "score": 0.9}])
    assert merge_results([empty, alone]) == [{"image_id": 2, "score": 0.9}]
    lists = [write(tmp_path, f"{i}.json", {"written_by": "x", "images": [{"id": i}]}) for i in (1, 2)]
    assert merge_results(lists) == {"written_by": "x", "images": [{"id": 1}, {"id": 2}]}
    assert main(["merge", *map(str, lists), "-o", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a.json": [{"image_id": 1}], "b.json": [{"image_id": 1}]}, r"picture 1 is in .*a\.json and in .*b\.json"),
        ({"a.json": {"images": [{"id": 1}]}, "b.json": {"images": [{"id": 1}]}}, "picture 1 is in"),
        ({"a.json": [], "b.json": {"images": []}}, "merge each kind by itself"),
        ({"a.json": 3}, "expected COCO results"),
        ({"a.json": {"images": 3}}, "expected COCO results"),
        ({"a.json": [3]}, "entry 0: expected an object with 'image_id', got 3"),
        ({"a.json": [{"image_id": None}]}, "entry 0: expected an object"),
        ({"p-1-of-3.json": [], "p-3-of-3.json": []}, "p: of 3 shards, 2 are missing"),
    ],
)
def test_wrong_files(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    paths = [write(tmp_path, name, value) for name, value in values.items()]
    with pytest.raises(DatasetError, match=message):
        merge_results(paths)


def test_no_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DatasetError, match="not valid JSON"):
        merge_results([tmp_path / "a.json"])
    with pytest.raises(DatasetError, match="no such results file"):
        merge_results([tmp_path / "b.json"])
