"""`completion`: scripts that shells accept, and what bash then completes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("shtab")

from pseudo_terminal import typed

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


def program(shell: str) -> str:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"no {shell} here")
    return found


def test_fish_completes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    fish, path = program("fish"), tmp_path / "completion.fish"
    path.write_text(script("fish", capsys))

    def offered(line: str) -> set[str]:
        code = f"source {path}; complete -C '{line}'"
        done = subprocess.run([fish, "--no-config", "-c", code], capture_output=True, text=True, check=True)
        return {line.partition("\t")[0] for line in done.stdout.splitlines()}

    assert offered("yolact-deploy pre") == {"predict"}
    assert offered("yolact-deploy export --calibration-m") == {"--calibration-method"}
    assert {"entropy", "percentile"} <= offered("yolact-deploy export --calibration-method ")
    assert {"check", "convert", "priors"} <= offered("yolact-deploy data ")


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
@pytest.mark.parametrize(
    ("line", "expected"),
    [("pre", "predict "), ("export --calibration-m", "--calibration-method"), ("inspect mo", "model.onnx")],
)
def test_zsh_and_tcsh_complete(
    shell: str, line: str, expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A tab in an interactive shell."""
    started = [program(shell), "-i"]
    (tmp_path / "model.onnx").touch()
    if shell == "zsh":
        (tmp_path / "_yolact-deploy").write_text(script(shell, capsys))
        setup = f"fpath=({tmp_path} $fpath); autoload -U compinit; compinit -u -d {tmp_path}/dump; PS1='ready '"
        (tmp_path / ".zshrc").write_text(f"{setup}\n")
    else:
        (tmp_path / "script").write_text(script(shell, capsys))
        (tmp_path / ".tcshrc").write_text(f"source {tmp_path}/script\nset prompt='ready '\n")
    variables = {"ZDOTDIR": str(tmp_path), "HOME": str(tmp_path)}
    assert expected in typed(started, f"yolact-deploy {line}\t", expected, tmp_path, variables)
