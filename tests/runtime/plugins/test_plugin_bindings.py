"""Our plugins with NVIDIA's real bindings of five TensorRT versions: their answers and results.

The bindings are wheels from the package index over stub libraries, see tests/tensorrt_stubs; each version has its own
process, see bindings_child.py.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

onnx = pytest.importorskip("onnx")

import fake_cuda
from cuda_emu import emulate
from few import few
from tail_model import SLOTS, tail_model
from tensorrt_stubs import bindings

from yolact_deploy.runtime.plugins import PTX_ARCH, rewrite
from yolact_deploy.runtime.plugins.aot_stages import stages_of
from yolact_deploy.runtime.plugins.node_plans import output_dtypes, plan_for, workspace

HERE = Path(__file__).parent
TESTS = HERE.parents[1]
BATCHES = (1, 3, 7)  # that the child reports
LARGEST = 4  # of the profiles there
AHEAD_OF_TIME = [version for version in bindings.WHEELS if version != "10.3"]

VARIANTS: dict[str, dict[str, Any]] = {
    "usual": {"half": True},
    "cross-class": {"cross_class": True, "max_detections": 50},
    "fixed": {"batch": (1, 1, 1)},
}


def cases(versions: Iterable[str]) -> list[Any]:
    """The first version, the last one and TensorRT for RTX; the first with each of the other variants."""
    versions = list(versions)
    between = [version for version in list(bindings.WHEELS)[1:-1] if version in versions[1:]]
    return [
        *(pytest.param(v, "usual", marks=pytest.mark.slow if v in between else ()) for v in versions),
        *((versions[0], variant) for variant in ("cross-class", "fixed")),
        *(pytest.param(version, "cross-class", marks=pytest.mark.slow) for version in versions[1:]),
    ]


@functools.cache
def reason_against(version: str) -> str:
    """Why a version is unavailable; empty if it is available."""
    try:
        bindings.prepare(version)
    except bindings.UnavailableError as error:
        return str(error)
    return ""


@functools.cache
def answers(version: str, kind: str, variant: str) -> Any:
    """The report of the child process for a version; skips the test if the version is unavailable."""
    if reason := reason_against(version):
        pytest.skip(reason)
    if kind == "v3" and (fake_cuda.why_not() or not emulate.available()):
        pytest.skip(fake_cuda.why_not() or "no g++")
    if kind == "aot":
        pytest.importorskip("cuda.bindings.nvrtc")
    search = os.pathsep.join(map(str, (TESTS.parent, TESTS)))
    environment = fake_cuda.environment() if kind == "v3" else {**os.environ, "PYTHONPATH": search}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(tail_model(**VARIANTS[variant]), str(path))
        command = [sys.executable, "-X", "faulthandler", str(HERE / "bindings_child.py"), version, kind, str(path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return json.loads(done.stdout.splitlines()[-1])


def sizes(numbers: Any) -> list[list[int]]:
    """One list per dimension of a shape: its values for the batches."""
    return [list(values) for values in zip(*numbers, strict=True)]


# -- in Python ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "variant"), cases(bindings.VERSIONS))
def test_plugins_in_python(version: str, variant: str) -> None:
    report = answers(version, "v3", variant)
    assert report["kind"] == "v3"
    assert report["names"] == ["yolact::FastNMS", "yolact::MaskAssembly"]
    tails = rewrite.tail_nodes(rewrite.bare_copy(tail_model(**VARIANTS[variant])))
    fixed = tails[0].shapes[0][0] is not None
    for node, tail in zip(report["nodes"], tails, strict=True):
        assert node["name"] == tail.op.name
        assert node["attributes"] == tail.attributes
        assert node["output_types"] == output_dtypes(tail.op, tail.attributes)
        shapes = [tail.op.output_shapes(tail.shapes_of(batch), tail.attributes) for batch in BATCHES]
        assert node["output_shapes"] == [sizes(each) for each in zip(*shapes, strict=True)]
        plan = plan_for(tail.op, tail.shapes_of(1 if fixed else LARGEST), tail.dtypes, tail.attributes)
        assert node["workspace"] == workspace(plan).nbytes
        assert node["right"] == (1 if fixed else 4)  # images that were run and compared with NumPy's
    assert report["nodes"][0]["workspace"] > 0


# -- ahead of time --------------------------------------------------------------------------------------------------


def test_before_ahead_of_time_plugins() -> None:
    report = answers("10.3", "aot", "usual")
    assert report["kind"] == "none"
    assert report["reason"] == "TensorRT 10.3.0 has no ahead-of-time plugins: NMS and masks are TensorRT's own layers."
    assert report["refused"].endswith("use TensorRT 10.9 or later, or --plugin on")


def parameters(ptx: str, kernel: str) -> str:
    """Sizes of a kernel's parameters in PTX: "p" for a pointer, "i" for an int."""
    entry = re.search(rf"\.visible \.entry {kernel}\(([^)]*)\)", ptx)
    assert entry, f"no entry {kernel}"
    return "".join({"u64": "p", "u32": "i"}[kind] for kind in re.findall(r"\.param \.(\w+)", entry[1]))


@pytest.mark.parametrize(("version", "variant"), cases(AHEAD_OF_TIME))
def test_ahead_of_time_plugins(version: str, variant: str) -> None:
    report = answers(version, "aot", variant)
    assert report["kind"] == "aot"
    model = tail_model(**VARIANTS[variant])
    tails = rewrite.tail_nodes(rewrite.bare_copy(model))
    usual = 1 if variant == "fixed" else 2
    chain = [stage for tail in tails for stage in stages_of(*tail.problem, batch=usual, arch=PTX_ARCH)]
    assert report["names"] == [stage.plugin_id for stage in chain]
    assert len(report["nodes"]) == len(chain) == 4
    for node, stage in zip(report["nodes"], chain, strict=True):
        assert node["name"] == stage.plugin_name
        assert node["strict"] == 1
        assert node["output_types"] == [stage.dtype(name) for name in stage.outputs]
        batches = (1, 1, 1) if variant == "fixed" else BATCHES
        assert node["output_shapes"] == [
            sizes([(batch, *stage.shape(name)) for batch in batches]) for name in stage.outputs
        ]
        fixed = [*stage.launch.block, stage.launch.shared_bytes]
        grid = [[extent.of(batch) for batch in batches] for extent in stage.grid]
        names = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")
        assert node["launch"] == dict(zip(names, [*grid, *([size] * 3 for size in fixed)], strict=True))
        assert node["scalars"] == [[extent.of(batch) for batch in batches] for extent in stage.scalars]
        assert node["kernel"] == stage.launch.kernel
        assert ".target sm_75" in node["ptx"]
        assert "\0" not in node["ptx"]
        order = "p" * len(stage.inputs) + "i" * len(stage.scalars) + "p" * len(stage.outputs)
        assert parameters(node["ptx"], stage.launch.kernel) == order


@pytest.mark.parametrize("version", few(AHEAD_OF_TIME, 0, len(AHEAD_OF_TIME) - 1))
def test_the_chain_replaces_the_nodes(version: str) -> None:
    nodes = answers(version, "aot", "usual")["nodes"]
    made = {"boxes_in", "scores_in", "coeff_in", "proto_in"}
    for node in nodes:
        assert set(node["inputs"]) <= made
        made |= set(node["outputs"])
    assert {"num_detections", "boxes", "scores", "labels", "masks"} <= made
    assert nodes[2]["outputs"] == ["num_detections", "boxes", "scores", "labels", "kept"]
    assert nodes[3]["inputs"] == ["proto_in", "kept", "boxes"]
    assert nodes[3]["output_types"] == ["float16"]
    assert nodes[3]["output_shapes"][0][1] == [SLOTS] * 3
