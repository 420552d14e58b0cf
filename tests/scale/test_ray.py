"""Many pictures on Ray: rows, Parquet folders, and the commands on a cluster of this machine.

Ray listens on all interfaces. Its part runs in a network namespace that has only loopback, in the Python that
``YOLACT_RAY_PYTHON`` names, or in this one if it has Ray.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import pytest
from static_server import folder_served

import yolact_deploy
from yolact_deploy.cli.main import main
from yolact_deploy.cli.serve import _address_on_ray
from yolact_deploy.datasets.shapes import render, write_shapes
from yolact_deploy.errors import BackendError, InputError, MissingDependencyError
from yolact_deploy.scale.ray_rows import Predict, coco_results, made_with
from yolact_deploy.scale.serving_ray import _require_free, _require_room, _resources
from yolact_deploy.serving.service_settings import ServiceSettings

ROOT = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("YOLACT_RAY_PYTHON") or (sys.executable if importlib.util.find_spec("ray") else "")
_ALONE = (
    "unshare",
    "--user",
    "--map-root-user",
    "--net",
    "--pid",
    "--fork",
    "--mount-proc",
    "--kill-child",
    "sh",
    "-c",
    'ip link set lo up && "$@"; exit $?',  # Ray takes a parent with the number 1 for none
    "sh",
)


def can_be_alone() -> bool:
    """Whether a process can have a network of its own here."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    return subprocess.run([*_ALONE, "true"], capture_output=True, check=False).returncode == 0


needs_ray = pytest.mark.skipif(not PYTHON or not can_be_alone(), reason="no Ray, or no network namespace, here")


def test_the_extra_is_named(demo_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"yolact-deploy\[ray\]"):
        Predict(str(demo_onnx))({"path": ["x.png"]})


def test_what_a_folder_was_made_with(demo_onnx: Path, tmp_path: Path) -> None:
    first = made_with(str(demo_onnx), {"score_threshold": 0.15, "threads": 1, "nms": None})
    copied = shutil.copy(demo_onnx, tmp_path / "other.onnx")
    assert made_with(str(copied), {"score_threshold": 0.15, "threads": 8}) == first, "the same content, elsewhere"
    assert made_with(str(demo_onnx), {"score_threshold": 0.5}) != first
    assert made_with(f"{demo_onnx}@openvino", {"score_threshold": 0.15}) != first


def test_coco_results_of_a_row(demo_onnx: Path) -> None:
    with yolact_deploy.load(f"{demo_onnx}@onnxruntime:threads=1") as model:
        detections = model(render(3).image)
        ids = model.config.category_ids
    from yolact_deploy.scale.ray_rows import _row

    row = json.loads(json.dumps(_row(detections)))
    assert coco_results(row, 7, ids) == detections.to_coco(7, ids)
    assert len(detections) >= 2


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(20):
        cv2.imwrite(str(folder / f"{i:02}.png"), render(i).image)
    (folder / "broken.png").write_bytes((folder / "03.png").read_bytes()[:5000])
    return folder


def on_ray(*arguments: str | Path, seconds: float = 300) -> subprocess.CompletedProcess[str]:
    """A command in a network of its own; all that it starts ends with it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*_ALONE, PYTHON, *map(str, arguments)],
        env=environment, capture_output=True, text=True, timeout=seconds, check=False,
    )  # fmt: skip


@needs_ray
def test_predict(demo_onnx: Path, pictures: Path, tmp_path: Path) -> None:
    """Rows like the JSON files of one process; the second run skips what is done, a third one notices another model."""
    assert (
        main(
            [
                "predict",
                str(demo_onnx),
                str(pictures),
                "-o",
                str(tmp_path / "one"),
                "--format",
                "json",
                "--threads",
                "1",
                "--quiet",
            ]
        )
        == 2
    )
    script = ROOT / "tests" / "helpers" / "ray_child.py"
    done = on_ray(script, demo_onnx, pictures, tmp_path / "rows")
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout.splitlines()[-1])
    first, second, third = result["runs"]
    assert (first["images"], len(first["failed"]), first["skipped"]) == (20, 1, 0)
    assert (second["images"], len(second["failed"]), second["skipped"]) == (20, 1, 21)
    assert "has results of another score_threshold" in third
    assert result["code"] == 2, "a picture is broken"
    fits_its_schema(result["printed"])
    rows = {Path(row["path"]).stem: row for row in result["rows"]}
    assert len(rows) == len(result["rows"]) == 21, "no picture twice"
    assert "broken.png" in rows.pop("broken")["error"]
    for stem, row in rows.items():
        expected = json.loads((tmp_path / "one" / f"{stem}.json").read_text())
        assert row["error"] is None
        assert (row["width"], row["height"]) == (expected["width"], expected["height"])
        items = expected["detections"]
        assert row["masks"] == [item["mask"]["counts"] for item in items]
        assert row["scores"] == [item["score"] for item in items]
        assert row["labels"] == [item["label"] for item in items]


def fits_its_schema(printed: Any) -> None:
    """The JSON of the command, against the schema that ships."""
    jsonschema = pytest.importorskip("jsonschema")
    from strict_schema import strict

    folder = Path(yolact_deploy.__file__).parent / "cli" / "schemas"
    schema = json.loads((folder / f"{printed['schema']}.schema.json").read_text())
    jsonschema.Draft202012Validator(strict(schema)).validate(printed)
    assert (printed["schema"], printed["skipped"], len(printed["failed"])) == ("predict-ray-v1", 21, 1)


@needs_ray
def test_an_actor_that_dies_loses_nothing(demo_onnx: Path, pictures: Path, tmp_path: Path) -> None:
    script = ROOT / "tests" / "helpers" / "ray_child.py"
    done = on_ray(script, demo_onnx, pictures, tmp_path / "rows", "--die")
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["deaths"] == 1
    assert sorted(Path(row["path"]).name for row in result["rows"]) == sorted(path.name for path in pictures.iterdir())


@needs_ray
def test_eval(demo_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pycocotools")
    list(write_shapes(tmp_path / "set", {"val": 12}, seed=3))
    command = ["eval", "--engine", str(demo_onnx), "--threads", "1", "--data", str(tmp_path / "set"), "--json"]
    command += ["--match-classes", "name"]
    assert main([*command, "--workers", "1"]) == 0
    expected = json.loads(capsys.readouterr().out)
    done = on_ray("-m", "yolact_deploy", *command, "--ray")
    assert done.returncode == 0, done.stderr[-4000:]
    values: dict[str, Any] = json.loads(done.stdout)
    assert {key: values[key] for key in ("box", "mask")} == {key: expected[key] for key in ("box", "mask")}
    assert values["mask"]["ap"] > 0


@needs_ray
def test_serve(demo_onnx: Path, pictures: Path) -> None:
    """The answer of one process; what the queue has no room for is refused, and what was accepted is finished."""
    done = on_ray(ROOT / "tests" / "helpers" / "ray_serve_child.py", f"{demo_onnx}@onnxruntime", pictures / "03.png")
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout.splitlines()[-1])
    with yolact_deploy.load(f"{demo_onnx}@onnxruntime:threads=1") as model:
        expected = model(pictures / "03.png")
    assert [item["name"] for item in result["answer"]["detections"]] == expected.names
    assert [item["score"] for item in result["answer"]["detections"]] == pytest.approx(expected.scores.tolist())
    assert (result["malformed"], result["health"], result["final"], result["code"]) == (400, 200, 200, 0)
    assert set(result["statuses"]) == {"200", "429"}, "24 clients at once, and room for few"


@needs_ray
@pytest.mark.slow
def test_a_cluster_of_two_nodes(demo_onnx: Path, pictures: Path, tmp_path: Path) -> None:
    """Nodes and command share a token; two actors with a core each, of which each node has one."""
    script = ROOT / "tests" / "helpers" / "ray_cluster_child.py"
    done = on_ray(script, f"{demo_onnx}@onnxruntime", pictures, tmp_path / "rows", seconds=900)
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["nodes"] == 2
    assert (result["predicted"]["images"], len(result["predicted"]["failed"])) == (20, 1)
    assert sorted(Path(row["path"]).name for row in result["rows"]) == sorted(path.name for path in pictures.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--replicas", "2"), "--replicas requires --ray"),
        (("--ray", "--workers", "2"), "use --replicas instead of --workers"),
        (("--ray", "--replicas", "0"), "expected 1 <= MIN <= MAX"),
        (("--ray", "--replicas", "4:2"), "expected 1 <= MIN <= MAX"),
        (("--ray", "--replicas", "some"), "expected N or MIN:MAX"),
    ],
)
def test_replicas_that_are_refused(
    demo_onnx: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    pytest.importorskip("fastapi_offline")
    pytest.importorskip("prometheus_client")
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    monkeypatch.setitem(sys.modules, "ray.serve", ModuleType("ray.serve"))
    assert main(["serve", str(demo_onnx), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        ('{"/other": "other"}', ""),
        ('{"/": "mine", "/other": "other"}', "has the application 'mine' at / of 127.0.0.1"),
        ("no JSON", "listens at another address than 127.0.0.1"),
    ],
)
def test_room_beside_other_applications(tmp_path: Path, routes: str, message: str) -> None:
    (tmp_path / "-").mkdir()
    (tmp_path / "-" / "routes").write_text(routes)
    with folder_served(tmp_path) as address:
        port = int(address.rpartition(":")[2])
        if not message:
            _require_free("auto", "127.0.0.1", port)
            return
        with pytest.raises(InputError, match=message):
            _require_free("auto", "127.0.0.1", port)


def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(InputError, match="give that one with --host and --port"):
        _require_free("auto", "127.0.0.1", port)


def test_the_address_of_a_cluster_may_be_in_use() -> None:
    """Its proxy serves other applications there; on this machine, a port in use is refused."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        arguments = SimpleNamespace(ray="1.2.3.4:6379", host="127.0.0.1", port=port)
        assert _address_on_ray(arguments) == ("127.0.0.1", port)  # type: ignore[arg-type]
        arguments.ray = ""
        with pytest.raises(InputError, match="cannot listen"):
            _address_on_ray(arguments)  # type: ignore[arg-type]
    arguments.ray, arguments.port = "1.2.3.4:6379", 70000
    with pytest.raises(InputError, match="port: expected 0 to 65535"):
        _address_on_ray(arguments)  # type: ignore[arg-type]


def test_room_for_the_replicas() -> None:
    ray = SimpleNamespace(cluster_resources=lambda: {"CPU": 4.0})
    _require_room(ray, {"num_cpus": 2, "num_gpus": 0}, 2)
    with pytest.raises(BackendError, match="take 6 CPUs, and the cluster has 4"):
        _require_room(ray, {"num_cpus": 2, "num_gpus": 0}, 3)
    with pytest.raises(BackendError, match="take 1 GPUs, and the cluster has 0"):
        _require_room(ray, {"num_cpus": 1, "num_gpus": 1}, 1)


def test_a_replica_takes_a_core_for_each_thread(demo_onnx: Path) -> None:
    models = {"a": f"{demo_onnx}@openvino:threads=2", "b": f"{demo_onnx}@onnxruntime"}
    assert _resources(ServiceSettings(models=models, predictors=2)) == {"num_cpus": 6, "num_gpus": 0}
