"""Real engines by TensorRT for RTX, which builds without a GPU; and what a build refuses."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yolact_deploy.cache import file_lock
from yolact_deploy.engine_file import plugin_kind, read_engine_header, read_engine_metadata
from yolact_deploy.errors import ArtifactError, BackendError, ExportError, MissingDependencyError, OutputError
from yolact_deploy.export.tensorrt_build import Build
from yolact_deploy.machine import nvidia

onnx = pytest.importorskip("onnx")

from exports import needs_rtx
from few import few

from yolact_deploy.export import engine as build_module
from yolact_deploy.export.build_options import choose_profiles
from yolact_deploy.export.engine import BuildOptions, available_flavour, build_engine, import_tensorrt
from yolact_deploy.export.engine_cache import EngineCache
from yolact_deploy.graph.onnx_graph import onnx_metadata, read_onnx

TESTS = Path(__file__).resolve().parents[1]
Export = Callable[..., Path]
SMALL = 138


NAME = "small"


def check_engine(path: Path, source: Path, batch: tuple[int, int, int] | None = None, plugin: str = "none") -> None:
    """A plain plan that carries the metadata of the ONNX file and the version of its builder."""
    header = read_engine_header(path)
    assert (header.kind, header.flavour) == ("TensorRT for RTX", "rtx")
    assert header.size == path.stat().st_size
    found = read_engine_metadata(path)
    expected = onnx_metadata(read_onnx(source), source)
    assert plugin_kind(found) == plugin
    versions = {"rtx": import_tensorrt("rtx").__version__} | ({} if plugin == "none" else {"plugins": plugin})
    assert found == dataclasses.replace(
        expected, versions={**expected.versions, **versions}, batch=batch or expected.batch
    )


# -- building -------------------------------------------------------------------------------------------------------


@needs_rtx
@pytest.mark.parametrize(
    "options",
    few([{"precision": "fp16", "batch": (1, 2, 4)}, {"tail": "heads"}, {"cross_class": True}], 0),
    ids=lambda options: "-".join(options),
)
def test_engines_are_built(export: Export, tmp_path: Path, options: dict[str, Any]) -> None:
    """Some of them; every configuration is in test_engine_builds.py."""
    source = export(NAME, SMALL, **options)
    report = build_engine(source, tmp_path / "made" / "model.trt", flavour="rtx")
    assert report.path == tmp_path / "made" / "model.trt"
    assert report.flavour == "rtx"
    assert report.version == import_tensorrt("rtx").__version__
    assert report.bytes == report.path.stat().st_size > 0.5 * source.stat().st_size
    assert report.seconds > 0
    assert report.profiles == (options.get("batch", (1, 1, 1)),)
    assert (report.plugin, report.cached, report.target) == ("none", False, "compute capability 8.0 and later")
    check_engine(report.path, source)
    assert [path.name for path in report.path.parent.iterdir()] == ["model.trt"]


@pytest.mark.slow
@needs_rtx
def test_an_engine_of_a_range_of_sizes(export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Any] = []
    run = Build.run

    def noted(self: Build, *arguments: Any) -> Any:
        plans.append(self.plan)
        return run(self, *arguments)

    monkeypatch.setattr(Build, "run", noted)
    source = export(NAME, SMALL, size_range=(96, SMALL, (160, 192)), batch=(1, 2, 4))
    report = build_engine(source, tmp_path / "model.trt", flavour="rtx")
    assert plans[0].sizes == ((96, 96), (SMALL, SMALL), (160, 192))
    assert plans[0].profiles == ((1, 2, 4),)
    assert report.plugin_reason.endswith("the file takes a range of sizes.")
    check_engine(report.path, source)


@needs_rtx
@pytest.mark.slow
def test_resnet50_in_full(resnet50_fp16: Path, tmp_path: Path) -> None:
    report = build_engine(resnet50_fp16, tmp_path / "r50.trt", flavour="rtx")
    check_engine(report.path, resnet50_fp16)
    assert 60e6 < report.bytes < 75e6  # half precision: in FP32 it has 126 MB


@needs_rtx
def test_options_and_progress(export: Export, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    source = export(NAME, SMALL)
    report = build_engine(
        source,
        tmp_path / "m.trt",
        flavour="auto",
        options=BuildOptions(workspace_mib=256, optimization_level=1, targets=("89",)),
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
@pytest.mark.slow
def test_several_targets(export: Export, tmp_path: Path) -> None:
    source = export(NAME, SMALL)
    options = BuildOptions(targets=("8.6", "sm_89", "120", "SM86"))
    report = build_engine(source, tmp_path / "m.trt", flavour="rtx", options=options)
    assert report.target == "SM86, SM89, SM120"
    check_engine(report.path, source)


@needs_rtx
@pytest.mark.slow
def test_several_profiles(export: Export, tmp_path: Path) -> None:
    source = export(NAME, SMALL, precision="fp16", batch=(1, 2, 4))
    one = build_engine(source, tmp_path / "one.trt", flavour="rtx")
    two = build_engine(
        source, tmp_path / "two.trt", flavour="rtx", options=BuildOptions(profiles=((1, 1, 1), (2, 4, 8)))
    )
    assert two.profiles == ((1, 1, 1), (2, 4, 8))
    assert two.bytes > one.bytes
    check_engine(two.path, source, batch=(1, 1, 8))


@pytest.mark.parametrize(
    ("batch", "wanted", "expected"),
    [
        ((1, 2, 4), (), ((1, 2, 4),)),
        ((3, 3, 3), (), ((3, 3, 3),)),
        ((1, 2, 4), ((4, 4, 4), (1, 1, 3)), ((4, 4, 4), (1, 1, 3))),
        ((1, 2, 4), ((1, 8, 8), (2, 2, 4)), ((1, 8, 8), (2, 2, 4))),
        ((2, 2, 2), ((2, 2, 2),), "m has a fixed batch of 2, which --profile cannot change"),
        ((1, 2, 4), ((1, 1, 1), (3, 3, 4)), "no profile covers a batch of 2"),
        ((1, 2, 4), ((1, 1, 8), (2, 2, 3), (10, 10, 10)), "no profile covers a batch of 9"),
    ],
)
def test_which_profiles(batch: Any, wanted: Any, expected: Any) -> None:
    if isinstance(expected, str):
        with pytest.raises(ExportError, match=expected):
            choose_profiles(batch, wanted, "m")
    else:
        assert choose_profiles(batch, wanted, "m") == expected


@needs_rtx
@pytest.mark.parametrize("mode", few(["off", "on"], 1))
def test_rtx_keeps_the_functions(export: Export, tmp_path: Path, mode: str) -> None:
    source, options = export(NAME, SMALL), BuildOptions(plugin=mode)
    if mode == "on":
        with pytest.raises(ExportError, match="v3"):
            build_engine(source, tmp_path / "m.trt", flavour="rtx", options=options)
    else:
        report = build_engine(source, tmp_path / "m.trt", flavour="rtx", options=options)
        assert report.plugin == "none"
        assert report.plugin_reason
        check_engine(report.path, source)


@needs_rtx
@pytest.mark.slow  # test_plugin_rtx.py builds with plugins as well
def test_plugins_on_rtx_for_those_who_ask(export: Export, tmp_path: Path) -> None:
    """In a process that finds RTX's library under the name that its package lacks, without which the parser dies."""
    source, target = export(NAME, SMALL, precision="fp16", batch=(1, 2, 4)), tmp_path / "m.trt"
    code = f"""
import os, sys
sys.path[:0] = [{str(TESTS)!r}, {str(TESTS.parent)!r}]
from pathlib import Path
from tensorrt_stubs.bindings import use_private_libraries
use_private_libraries(Path({str(tmp_path)!r}))
from yolact_deploy.export.engine import BuildOptions, build_engine
report = build_engine({str(source)!r}, {str(target)!r}, flavour="rtx", options=BuildOptions(plugin="v3"))
print(report.plugin, flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "v3\n", done.stderr
    check_engine(target, source, plugin="v3")
    data = target.read_bytes()
    assert b"FastNMS" in data
    assert b"MaskAssembly" in data


@needs_rtx
def test_plugins_on_rtx_say_what_they_need(export: Export, tmp_path: Path) -> None:
    import tensorrt_rtx_libs

    if (Path(tensorrt_rtx_libs.__file__).parent / "libtensorrt_rtx.so").exists():
        pytest.skip("somebody made the link")
    with pytest.raises(BackendError, match=r"--plugin off, or create the link: ln -s libtensorrt_rtx.so.1 /"):
        build_engine(
            export(NAME, SMALL, precision="fp16"), tmp_path / "m.trt", flavour="rtx", options=BuildOptions(plugin="v3")
        )
    assert list(tmp_path.iterdir()) == []


@needs_rtx
def test_an_engine_is_replaced_only_by_a_whole_one(export: Export, tmp_path: Path) -> None:
    target = tmp_path / "m.trt"
    target.write_bytes(b"old")
    source = export(NAME, SMALL)
    with pytest.raises(ExportError, match=r"--target-sm: expected one of .*SM89.*, got '12345'"):
        build_engine(source, target, flavour="rtx", options=BuildOptions(targets=("12345",)))
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
        build_engine(export(NAME, SMALL), tmp_path / "m.trt", flavour="rtx", progress=press)
    assert 0 < len(steps) < 50  # of hundreds
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is handler


# -- two builds at a time -------------------------------------------------------------------------------------------


def test_another_build_of_the_engine_is_waited_for(export: Export, tmp_path: Path, built: list[str]) -> None:
    source, target, told = export(NAME, SMALL), tmp_path / "m.trt", list[str]()
    lock = tmp_path / ".m.trt.lock"

    def hold() -> None:
        with file_lock(lock, 0):
            held.set()
            released.wait(60)

    def tell(text: str) -> None:
        told.append(text)
        released.set()

    held, released = threading.Event(), threading.Event()
    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    with pytest.raises(ExportError, match=f"another build of {target} has been running for more than 0 s: raise"):
        build_engine(source, target, flavour="rtx", options=BuildOptions(wait=0), tell=told.append)
    assert (told, built) == ([], [])
    build_engine(source, target, flavour="rtx", tell=tell)
    assert told == [f"another build of {target} is running: waiting for it"]
    assert built == ["m.trt"]
    other.join()
    assert list(tmp_path.iterdir()) == [target]


def test_a_lock_file_left_behind_does_not_matter(export: Export, tmp_path: Path, built: list[str]) -> None:
    (tmp_path / ".m.trt.lock").touch()
    build_engine(export(NAME, SMALL), tmp_path / "m.trt", flavour="rtx", options=BuildOptions(wait=0))
    assert [path.name for path in tmp_path.iterdir()] == ["m.trt"]


# -- the cache ------------------------------------------------------------------------------------------------------


@pytest.fixture
def built(rtx: Any, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Replace the work by a file of 100 bytes; gives the names of the engines that were built, and an empty cache."""
    made: list[str] = []

    def build(job: Any, target: Path, progress: Any) -> None:
        made.append(target.name)
        time.sleep(0.1)
        target.write_bytes(os.urandom(100))

    monkeypatch.setattr(build_module._Job, "_build", build)
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", str(tmp_path_factory.mktemp("cache")))
    return made


CACHED = BuildOptions(cache=True)


def test_the_same_engine_is_built_once(export: Export, tmp_path: Path, built: list[str]) -> None:
    source = export(NAME, SMALL)
    first = build_engine(source, tmp_path / "a.trt", flavour="rtx", options=CACHED)
    second = build_engine(source, tmp_path / "b.trt", flavour="rtx", options=CACHED)
    assert (first.cached, second.cached) == (False, True)
    assert built == ["a.trt"]
    assert first.path.read_bytes() == second.path.read_bytes()
    third = build_engine(source, tmp_path / "c.trt", flavour="rtx")  # not asked for
    assert not third.cached
    assert built == ["a.trt", "c.trt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.trt", "b.trt", "c.trt"]


@pytest.mark.parametrize(
    "options",
    [
        BuildOptions(cache=True, workspace_mib=64),
        BuildOptions(cache=True, optimization_level=1),
        BuildOptions(cache=True, targets=("89",)),
        BuildOptions(cache=True, profiles=((1, 2, 3), (4, 4, 4))),
        "another file",
        "another package",
        "another TensorRT",
    ],
    ids=str,
)
def test_whatever_changes_the_engine_is_in_the_key(
    export: Export, tmp_path: Path, built: list[str], monkeypatch: pytest.MonkeyPatch, options: BuildOptions | str
) -> None:
    source = export(NAME, SMALL, precision="fp16", batch=(1, 2, 4))
    build_engine(source, tmp_path / "a.trt", flavour="rtx", options=CACHED)
    if options == "another file":
        source = export(NAME, SMALL)
    elif options == "another package":
        monkeypatch.setattr(build_module, "__version__", "99")
    elif options == "another TensorRT":
        monkeypatch.setattr(import_tensorrt("rtx"), "__version__", "99")
    wanted = CACHED if isinstance(options, str) else options
    assert not build_engine(source, tmp_path / "b.trt", flavour="rtx", options=wanted).cached
    assert built == ["a.trt", "b.trt"]


@pytest.mark.parametrize("damage", ["cut", "changed", "no engine", "no record", "bad record"])
def test_a_damaged_entry_is_built_again(export: Export, tmp_path: Path, built: list[str], damage: str) -> None:
    source = export(NAME, SMALL)
    build_engine(source, tmp_path / "a.trt", flavour="rtx", options=CACHED)
    folder = Path(os.environ["YOLACT_DEPLOY_CACHE"]) / "engines"
    (engine,), (record,) = folder.glob("*.trt"), folder.glob("*.json")
    data = engine.read_bytes()
    ways: dict[str, Callable[[], object]] = {
        "cut": lambda: engine.write_bytes(data[:50]),
        "changed": lambda: engine.write_bytes(data[::-1]),
        "no engine": engine.unlink,
        "no record": record.unlink,
        "bad record": lambda: record.write_text("[]"),
    }
    ways[damage]()
    again = build_engine(source, tmp_path / "b.trt", flavour="rtx", options=CACHED)
    assert not again.cached
    assert build_engine(source, tmp_path / "c.trt", flavour="rtx", options=CACHED).cached
    assert built == ["a.trt", "b.trt"]


def test_two_builds_of_one_engine_are_one(export: Export, tmp_path: Path, built: list[str]) -> None:
    """To two places, by two threads."""
    source, reports, told = export(NAME, SMALL), list[Any](), list[str]()

    def build(name: str) -> None:
        reports.append(build_engine(source, tmp_path / name, flavour="rtx", options=CACHED, tell=told.append))

    threads = [threading.Thread(target=build, args=(name,)) for name in ("a.trt", "b.trt")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert sorted(report.cached for report in reports) == [False, True]
    assert told in ([], ["the same engine is being built elsewhere: waiting"])


def test_the_cache_has_a_limit(tmp_path: Path, built: list[str]) -> None:
    source = tmp_path / "engine"
    source.write_bytes(bytes(100))
    for age, key in enumerate(["old", "used", "new"]):
        cache = EngineCache(key, limit=250)
        cache.store(source)
        os.utime(cache.record, (age, age))
        if key == "new":
            break
        assert EngineCache("old").fetch(tmp_path / "copy")
        os.utime(EngineCache("old").record, (0, 0))
    assert not EngineCache("old").engine.exists()
    assert not EngineCache("old").record.exists()
    assert EngineCache("used").fetch(tmp_path / "copy")
    assert EngineCache("new").fetch(tmp_path / "copy")


def test_a_full_cache_disk_is_no_failure(
    export: Export, tmp_path: Path, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def store(self: EngineCache, source: Path) -> None:
        raise OutputError("cannot write it: No space left on device")

    monkeypatch.setattr(EngineCache, "store", store)
    told: list[str] = []
    report = build_engine(export(NAME, SMALL), tmp_path / "a.trt", flavour="rtx", options=CACHED, tell=told.append)
    assert report.path.exists()
    assert told == ["the engine was not kept in the cache: cannot write it: No space left on device"]


@needs_rtx
def test_rtx_has_no_timing_cache(export: Export, tmp_path: Path) -> None:
    options = BuildOptions(timing_cache=tmp_path / "t.cache")
    with pytest.raises(ExportError, match="--timing-cache requires TensorRT"):
        build_engine(export(NAME, SMALL), tmp_path / "m.trt", flavour="rtx", options=options)


def test_tensorrt_needs_a_gpu(export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", object())
    monkeypatch.setattr(nvidia, "require_gpu", no_gpu)
    with pytest.raises(BackendError, match="no NVIDIA driver here"):
        build_engine(export(NAME, SMALL), tmp_path / "m.trt", flavour="tensorrt")
    assert list(tmp_path.iterdir()) == []


def no_gpu() -> None:
    raise BackendError("no NVIDIA driver here")


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

    source = doctored(export(NAME, SMALL), tmp_path / "odd.onnx", change)
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

    source = doctored(export(NAME, SMALL), tmp_path / "large.onnx", change)
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
    write(path, export(NAME, SMALL))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ArtifactError, match=message) as caught:
        build_engine(path, tmp_path / "model.trt")
    assert str(path) in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


@needs_rtx
def test_a_place_that_cannot_be_written(export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Build, "run", lambda *args: pytest.fail("the work was begun"))
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*Choose another place with -o"):
        build_engine(export(NAME, SMALL), tmp_path / "file" / "m.trt")


# -- which TensorRT -------------------------------------------------------------------------------------------------


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``without("name")``: as if a package were not installed."""

    def remove(*modules: str) -> None:
        for module in modules:
            monkeypatch.setitem(sys.modules, module, None)

    return remove


def test_missing_tensorrt(export: Export, tmp_path: Path, without: Callable[..., None]) -> None:
    source = export(NAME, SMALL)
    without("tensorrt")
    with pytest.raises(
        MissingDependencyError, match=r"needs the Python package 'tensorrt' .*'yolact-deploy\[tensorrt\]'"
    ):
        build_engine(source, tmp_path / "m.trt", flavour="tensorrt")
    without("tensorrt_rtx_libs")
    with pytest.raises(MissingDependencyError, match=r"with TensorRT for RTX needs .*'yolact-deploy\[rtx\]'"):
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
    options = BuildOptions(targets=("89",))
    with pytest.raises(ExportError, match="--target-sm requires TensorRT for RTX"):
        build_engine(export(NAME, SMALL), tmp_path / "m.trt", flavour="tensorrt", options=options)


def test_no_torch_is_needed() -> None:
    import subprocess

    code = "import sys; import yolact_deploy.export.engine; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
