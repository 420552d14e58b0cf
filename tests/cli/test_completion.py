"""`completion`: scripts that shells accept, and what bash then completes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("shtab")

from yolact_deploy.cli import main as cli
from yolact_deploy.cli.completion import SHELLS


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_reads_its_script(shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = script(shell, capsys)
    for name in cli.COMMANDS:
        assert name in text
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"no {shell} here")
    path = tmp_path / "completion"
    path.write_text(text)
    check = subprocess.run([program, "-n", str(path)], capture_output=True, text=True, check=False)
    assert (check.returncode, check.stderr) == (0, "")


@pytest.fixture
def typed_script(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Path:
    path = tmp_path / "completion.bash"
    path.write_text(script("bash", capsys))
    (tmp_path / "work" / "pictures").mkdir(parents=True)
    (tmp_path / "work" / "model.onnx").touch()
    return path


def completed(typed_script: Path, *words: str) -> set[str]:
    """What bash offers for the last of the words."""
    code = """
        source "$1"; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
        _shtab_yolact_deploy
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    done = subprocess.run(
        [bash, "--norc", "-c", code, "bash", str(typed_script), *words],
        cwd=typed_script.parent / "work", capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(filter(None, done.stdout.split("\n")))


def test_commands(typed_script: Path) -> None:
    assert set(cli.COMMANDS) <= completed(typed_script, "yolact-deploy", "")
    assert completed(typed_script, "yolact-deploy", "pre") == {"predict"}
    assert {"check", "convert", "priors"} <= completed(typed_script, "yolact-deploy", "data", "")


def test_options_and_their_choices(typed_script: Path) -> None:
    assert completed(typed_script, "yolact-deploy", "export", "--calibration-m") == {"--calibration-method"}
    assert "entropy" in completed(typed_script, "yolact-deploy", "export", "--calibration-method", "")
    assert {"--debug", "--score-threshold"} <= completed(typed_script, "yolact-deploy", "predict", "--")
    assert "--margin" in completed(typed_script, "yolact-deploy", "bench", "diff", "--m")


def test_files_and_folders(typed_script: Path) -> None:
    assert "model.onnx" in completed(typed_script, "yolact-deploy", "inspect", "mo")
    assert completed(typed_script, "yolact-deploy", "predict", "--output", "") == {"pictures"}
    assert {"model.onnx", "pictures"} <= completed(typed_script, "yolact-deploy", "bench", "--engine", "")
