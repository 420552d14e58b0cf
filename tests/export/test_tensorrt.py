"""Real engines by TensorRT for RTX, which builds without a GPU; and what a build refuses."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yolact_deploy.config import get_config, list_configs
from yolact_deploy.engine_file import read_engine_header, read_engine_metadata
from yolact_deploy.errors import ArtifactError, ExportError, MissingDependencyError, OutputError

onnx = pytest.importorskip("onnx")

from yolact_deploy.export import tensorrt as build_module  # noqa: E402
from yolact_deploy.export.tensorrt import available_flavour, build_engine, import_tensorrt  # noqa: E402
from yolact_deploy.runtime.onnx_graph import onnx_metadata, read_onnx  # noqa: E402

Export = Callable[..., Path]
SMALL = 138


def have_rtx() -> bool:
    try:
        import_tensorrt("rtx")
    except MissingDependencyError:
        return False
    return True


needs_rtx = pytest.mark.skipif(not have_rtx(), reason="TensorRT for RTX is not installed")
SUPPORTED = [name for name in list_configs() if not get_config(name).is_plus]


def check_engine(path: Path, source: Path) -> None:
    """A plain plan that carries the metadata of the ONNX file and the version of its builder."""
    header = read_engine_header(path)
    assert header.kind == "TensorRT for RTX"
    assert header.size == path.stat().st_size
    found = read_engine_metadata(path)
    expected = onnx_metadata(read_onnx(source), source)
    assert found.versions.pop("rtx") == import_tensorrt("rtx").__version__
    assert found == expected


# -- building -------------------------------------------------------------------------------------------------------


@needs_rtx
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {"precision": "fp32" if name == "yolact_im700" else "fp16"}) for name in SUPPORTED),
        ("yolact_resnet50", {"precision": "fp32"}),
        ("yolact_resnet50", {"tail": "heads"}),
        ("yolact_resnet50", {"tail": "heads", "precision": "fp16"}),
        ("yolact_resnet50", {"cross_class": True}),
        ("yolact_edge_mobilenetv2", {"batch": (1, 2, 4)}),
        ("yolact_edge_mobilenetv2", {"batch": (2, 2, 2)}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_engines_are_built(export: Export, tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    source = export(name, SMALL, **options)
    report = build_engine(source, tmp_path / "made" / "model.trt", flavour="rtx")
    assert report.path == tmp_path / "made" / "model.trt"
    assert report.flavour == "rtx"
    assert report.version == import_tensorrt("rtx").__version__
    assert report.bytes == report.path.stat().st_size > 0.5 * source.stat().st_size
    assert report.seconds > 0
    check_engine(report.path, source)
    assert [path.name for path in report.path.parent.iterdir()] == ["model.trt"]


@needs_rtx
@pytest.mark.slow
def test_resnet50_in_full(resnet50_fp16: Path, tmp_path: Path) -> None:
    report = build_engine(resnet50_fp16, tmp_path / "r50.trt", flavour="rtx")
    check_engine(report.path, resnet50_fp16)
    assert 60e6 < report.bytes < 75e6  # half precision: in FP32 it has 126 MB


@needs_rtx
def test_options_and_progress(export: Export, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    source = export("yolact_edge_mobilenetv2", SMALL)
    report = build_engine(
        source,
        tmp_path / "m.trt",
        flavour="auto",
        workspace_mib=256,
        optimization_level=1,
        target_sm="89",
        progress=lambda *step: told.append(step),
    )
    check_engine(report.path, source)
    assert len({phase for phase, _, _ in told}) > 3
    assert all(0 <= done <= total for _, done, total in told)
    outer = [(done, total) for phase, done, total in told if phase == told[0][0]]  # the first holds all others
    total = outer[0][1]
    assert [done for done, _ in outer] == sorted(done for done, _ in outer)
    assert {step for step, _ in outer} == set(range(total + 1))


@needs_rtx
@pytest.mark.parametrize("target", ["8.9", "sm_89"])
def test_spellings_of_the_compute_capability(export: Export, tmp_path: Path, target: str) -> None:
    if target == "sm_89":  # not one of ours
        with pytest.raises(ExportError, match="unknown compute capability 'sm_89'"):
            build_engine(export("yolact_edge_mobilenetv2", SMALL), tmp_path / "m.trt", target_sm=target)
    else:
        build_engine(export("yolact_edge_mobilenetv2", SMALL), tmp_path / "m.trt", target_sm=target)


@needs_rtx
def test_an_engine_is_replaced_only_by_a_whole_one(export: Export, tmp_path: Path) -> None:
    target = tmp_path / "m.trt"
    target.write_bytes(b"old")
    source = export("yolact_edge_mobilenetv2", SMALL)
    with pytest.raises(ExportError, match=r"unknown compute capability '12345'; known are .*SM89"):
        build_engine(source, target, flavour="rtx", target_sm="12345")
    assert target.read_bytes() == b"old"
    build_engine(source, target, flavour="rtx")
    check_engine(target, source)
    assert list(tmp_path.iterdir()) == [target]


@needs_rtx
def test_ctrl_c_stops_the_build(export: Export, tmp_path: Path) -> None:
    """The handler is called as Python calls it; tests/test_errors_end_to_end.py sends the signal itself."""
    handler = signal.getsignal(signal.SIGINT)
    steps: list[int] = []

    def press(phase: str, done: int, total: int) -> None:
        if not steps:
            signal.getsignal(signal.SIGINT)(signal.SIGINT, None)  # type: ignore[operator,misc]
        steps.append(done)

    with pytest.raises(KeyboardInterrupt):
        build_engine(export("yolact_edge_mobilenetv2", SMALL), tmp_path / "m.trt", flavour="rtx", progress=press)
    assert 0 < len(steps) < 50  # of hundreds
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is handler


# -- failures -------------------------------------------------------------------------------------------------------


def doctored(source: Path, target: Path, change: Callable[[Any], None]) -> Path:
    model = onnx.load(str(source))
    change(model)
    onnx.save(model, str(target))
    return target


@needs_rtx
def test_a_node_that_cannot_be_parsed_is_named(export: Export, tmp_path: Path) -> None:
    def change(model: Any) -> None:
        node = next(node for node in model.graph.node if node.op_type == "Softmax")
        node.op_type, node.domain, node.name = "Sorcery", "elsewhere", "the_odd_one"
        model.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))

    source = doctored(export("yolact_edge_mobilenetv2", SMALL), tmp_path / "odd.onnx", change)
    with pytest.raises(ExportError) as caught:
        build_engine(source, tmp_path / "odd.trt", flavour="rtx")
    message = str(caught.value)
    assert f"cannot parse {source}" in message
    assert "the_odd_one" in message
    assert "Sorcery" in message
    assert [path.name for path in tmp_path.iterdir()] == ["odd.onnx"]


@needs_rtx
def test_a_network_that_cannot_be_built(export: Export, tmp_path: Path) -> None:
    """TensorRT finds a TopK of more than 3840 when it builds, not when it parses."""

    def change(model: Any) -> None:
        nms = next(node for node in model.graph.node if node.op_type == "FastNMS")
        next(a for a in nms.attribute if a.name == "max_detections").i = 5000

    source = doctored(export("yolact_edge_mobilenetv2", SMALL), tmp_path / "large.onnx", change)
    with pytest.raises(ExportError, match=r"cannot build .*large\.onnx: .*TopK"):
        build_engine(source, tmp_path / "large.trt", flavour="rtx")
    assert [path.name for path in tmp_path.iterdir()] == ["large.onnx"]


def write_text(path: Path, source: Path) -> None:
    path.write_text("this is not a network\n" * 40)


def write_nothing(path: Path, source: Path) -> None:
    path.touch()


def write_half(path: Path, source: Path) -> None:
    data = source.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def write_foreign(path: Path, source: Path) -> None:
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [value("x", 1, [1])], [value("y", 1, [1])])
    onnx.save(onnx.helper.make_model(graph), str(path))


def write_unreadable_metadata(path: Path, source: Path) -> None:
    def change(model: Any) -> None:
        model.metadata_props[0].value = '{"schema": 1'

    doctored(source, path, change)


def write_later_schema(path: Path, source: Path) -> None:
    def change(model: Any) -> None:
        model.metadata_props[0].value = '{"schema": 99}'

    doctored(source, path, change)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_text, "is not an ONNX file"),
        (write_nothing, "is not an ONNX file"),
        (write_half, "is not an ONNX file, or a truncated one: make it with: yolact-deploy export"),
        (write_foreign, "was not exported by yolact-deploy"),
        (write_unreadable_metadata, "unreadable yolact-deploy metadata"),
        (write_later_schema, "metadata of schema 99, this version reads 1"),
        (lambda path, source: path.mkdir(), "cannot read .*: Is a directory"),
        (lambda path, source: None, "no such ONNX file"),
    ],
)
def test_files_that_are_not_ours(
    export: Export, tmp_path: Path, write: Callable[[Path, Path], None], message: str
) -> None:
    path = tmp_path / "model.onnx"
    write(path, export("yolact_edge_mobilenetv2", SMALL))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ArtifactError, match=message) as caught:
        build_engine(path, tmp_path / "model.trt")
    assert str(path) in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


@needs_rtx
def test_a_place_that_cannot_be_written(export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module._Build, "run", lambda *args: pytest.fail("the work was begun"))
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*Choose another place with -o"):
        build_engine(export("yolact_edge_mobilenetv2", SMALL), tmp_path / "file" / "m.trt")


# -- which TensorRT -------------------------------------------------------------------------------------------------


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``without("name")``: as if a package were not installed."""

    def remove(*modules: str) -> None:
        for module in modules:
            monkeypatch.setitem(sys.modules, module, None)

    return remove


def test_missing_tensorrt(export: Export, tmp_path: Path, without: Callable[..., None]) -> None:
    source = export("yolact_edge_mobilenetv2", SMALL)
    without("tensorrt")
    with pytest.raises(
        MissingDependencyError, match=r"needs the Python package 'tensorrt' .*'yolact-deploy\[tensorrt\]'"
    ):
        build_engine(source, tmp_path / "m.trt", flavour="tensorrt")
    without("tensorrt_rtx_libs")
    with pytest.raises(MissingDependencyError, match=r"TensorRT for RTX needs .*'yolact-deploy\[rtx\]'"):
        build_engine(source, tmp_path / "m.trt", flavour="rtx")
    assert available_flavour() is None
    with pytest.raises(MissingDependencyError, match=r"no TensorRT is installed\. .*\[rtx\].*\[tensorrt\].*JetPack"):
        build_engine(source, tmp_path / "m.trt", flavour="auto")
    assert list(tmp_path.iterdir()) == []


@needs_rtx
def test_auto_takes_what_is_there(without: Callable[..., None]) -> None:
    without("tensorrt")
    assert available_flavour() == "rtx"


def test_tensorrt_has_no_target_sm(export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", object())
    with pytest.raises(ExportError, match="--target-sm is for TensorRT for RTX"):
        build_engine(export("yolact_edge_mobilenetv2", SMALL), tmp_path / "m.trt", flavour="tensorrt", target_sm="89")


def test_no_torch_is_needed() -> None:
    import subprocess

    code = "import sys; import yolact_deploy.export.tensorrt; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
