"""The measurement of `eval` on many images: with a slow model in processes of their own, and what it calls wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pycocotools")

if sys.platform == "win32":
    pytest.skip("needs os.wait4", allow_module_level=True)

from scripted import write_coco

from yolact_deploy.benchmarks.scenarios import eval_at_scale
from yolact_deploy.benchmarks.scenarios.eval_at_scale import Lines, generate, main, measure, problems, run_child
from yolact_deploy.cli.main import main as command_line
from yolact_deploy.errors import BackendError
from yolact_deploy.preprocess import read_image

_SLOW_EVAL = """\
import sys
sys.path[:0] = [{tests!r}, {root!r}]
from scripted import SCRIPT, ScriptedBackend, predictor
from yolact_deploy.evaluation import engines, evaluate
from yolact_deploy.cli.main import main
engines.load = lambda model, **options: predictor(ScriptedBackend(SCRIPT, delay=0.3))
evaluate.inspect_file = lambda path: {{}}
sys.exit(main(["eval", "--quiet", "--json", *sys.argv[1:]]))
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """`eval` of three images, each of which takes 0.3 s."""
    write_coco(tmp_path / "coco")
    (tmp_path / "m.onnx").write_bytes(b"model")
    script = tmp_path / "slow_eval.py"
    here = Path(__file__).resolve()
    script.write_text(_SLOW_EVAL.format(tests=str(here.parents[2] / "helpers"), root=str(here.parents[3])))
    return [sys.executable, str(script), "--engine", str(tmp_path / "m.onnx"), "--coco", str(tmp_path / "coco")]


@pytest.mark.slow
def test_measure(tmp_path: Path, command: list[str]) -> None:
    result = measure(command, 3, tmp_path)
    assert 1 <= result["interrupted_after"] < 3
    assert result["time_resumed"]["images_stored"] == result["interrupted_after"]
    assert (result["time_whole"]["images_run"], result["time_whole"]["images_stored"]) == (3, 0)
    assert result["same_figures"]
    assert result["same_file"]
    assert result["figures"]["box"]["ap"] == pytest.approx(1)
    assert result["time_whole"]["outside_network"] < 0.9
    rate = result["rate"]
    assert rate["one_network"] < rate["one_network_alone"] < 1 / 0.3
    assert rate["share_of_network"] == pytest.approx(rate["several_networks"] / rate["one_network_alone"], abs=1e-3)
    assert result["faster_coco_eval_differs_by"] in (None, pytest.approx(0, abs=1e-9))
    assert problems({**result, "most_mib": 1e9}) == [], "the memory is at least that of the tests"
    assert problems({**result, "most_mib": 30}) != [], "NumPy alone takes more"
    json.dumps(result)


def test_interrupting_what_is_done(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="finished before it could be interrupted: use more images"):
        run_child([sys.executable, "-c", "pass"], tmp_path, (Lines(tmp_path / "absent"), 1))
    with pytest.raises(BackendError, match="eval ended with 3"):
        run_child([sys.executable, "-c", "import sys; sys.exit(3)"], tmp_path)


_TWO_CHILDREN = """\
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from yolact_deploy.benchmarks.scenarios.eval_at_scale import run_child
take = "x = bytearray({{}} << 20); x[::4096] = bytes(len(x[::4096])); print('null')"
print(*(run_child([sys.executable, "-c", take.format(mib)], Path({work!r})).peak_mib for mib in (200, 300)))
"""


def test_memory_of_a_child(tmp_path: Path) -> None:
    """100 MiB more are seen as 100 MiB more: by a process as small as the real one, for its own memory is the least."""
    script = _TWO_CHILDREN.format(root=str(Path(__file__).resolve().parents[3]), work=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    little, much = map(float, done.stdout.split())
    assert little == pytest.approx(210, abs=15)
    assert much - little == pytest.approx(100, abs=5)


def test_lines_of_a_growing_file(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "f")
    counts = [lines.update()]
    for text in ("a\nb", "b\n", "", "c"):
        with open(tmp_path / "f", "a", encoding="ascii") as file:
            file.write(text)
        counts.append(lines.update())
    assert counts == [0, 1, 2, 2, 2]


RIGHT: dict[str, Any] = {"peak_mib": {"whole": 500.0}, "same_figures": True, "faster_coco_eval_differs_by": None}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"peak_mib": {"whole": 500.0, "resumed": 2100.0}}, "the process 'resumed' used 2100 MiB, 2048 are allowed"),
        (
            {"same_figures": False},
            "the figures of the interrupted run, the whole run and the run of one network differ",
        ),
        ({"faster_coco_eval_differs_by": 1e-3}, "faster-coco-eval differs by 0.001"),
    ],
)
def test_problems(changed: dict[str, Any], sentence: str) -> None:
    assert problems(RIGHT) == []
    assert problems({**RIGHT, **changed}) == [sentence]


def test_images_are_generated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")  # of the command data
    codes = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        assert command[1:3] == ["-m", "yolact_deploy"]
        codes.append(command_line(command[3:]))
        return subprocess.CompletedProcess(command, codes[-1])

    monkeypatch.setattr(subprocess, "run", run)
    for _ in range(2):
        generate(tmp_path, 2, 80, 64, quiet=True)
    assert codes == [0], "they were there the second time"
    assert [read_image(path).shape for path in (tmp_path / "images").iterdir()] == [(64, 80, 3)] * 2
    with pytest.raises(BackendError, match="could not be generated"):
        generate(tmp_path, 3, 10, 10, quiet=True)


def test_main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_coco(tmp_path / "coco")
    given: list[Any] = []

    def measured(command: list[str], images: int, work: Path) -> dict[str, Any]:
        given.append((command[3:], images))
        return {**RIGHT, "same_figures": len(given) == 1}

    monkeypatch.setattr(eval_at_scale, "measure", measured)
    arguments = ["--engine", "m.onnx", "--coco", str(tmp_path / "coco"), "--threads", "2"]
    assert main([*arguments, "-o", str(tmp_path / "r.json")]) == 0
    assert given[0] == (
        ["eval", "--coco", str(tmp_path / "coco"), "--images", "3", "--json", "--engine", "m.onnx", "--threads", "2"],
        3,
    )
    assert json.loads((tmp_path / "r.json").read_text())["model"] == "m.onnx"
    assert main(arguments) == 1
    assert "the run of one network differ" in capsys.readouterr().err
    assert main([*arguments, "--images", "1"]) == 2
    assert "cannot be interrupted at half" in capsys.readouterr().err
