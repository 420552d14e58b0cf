"""Every configuration through TensorRT for RTX, in each precision, tail and kind of batch.

Takes a quarter of an hour, so it is marked slow. With ``YOLACT_ENGINE_BUILDS=FILE.json`` it writes what it measured
there, beside what is in that file already; ``python tests/export/engine_table.py FILE.json`` makes a table of it.
``YOLACT_ENGINE_SIZE=138`` builds the same layers on small images, in a fraction of the time.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from yolact_deploy.artifact import Metadata, write_json
from yolact_deploy.config import get_config, list_configs
from yolact_deploy.engine_file import read_engine_header, read_engine_metadata
from yolact_deploy.errors import ExportError, OutputError
from yolact_deploy.machine.environment import environment
from yolact_deploy.samples import sample_images
from yolact_deploy.untrusted import read_json
from yolact_deploy.vocabulary import HALF_PRECISIONS

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

import old_parser

from yolact_deploy.export.calibration import calibrate
from yolact_deploy.export.engine import BuildOptions, build_engine
from yolact_deploy.export.mixed_precision import lower_trunk
from yolact_deploy.export.onnx import export_onnx, trace, write_onnx
from yolact_deploy.export.quantize import quantize_trunk
from yolact_deploy.export.spec import ExportSpec

BATCHES = {"static": (1, 1, 1), "dynamic": (1, 4, 16)}
SIZE = int(os.environ.get("YOLACT_ENGINE_SIZE", "0")) or None
CASES = list(
    itertools.product(
        list_configs(),
        ("fp32", "fp16", "bf16", "int8", "int8+fp16"),
        ("functions", "heads"),
        BATCHES,
    )
)


@pytest.fixture(scope="module")
def record(rtx: Any) -> Iterator[dict[str, Any]]:
    """What was measured, by configuration-precision-tail-batch; written down at the end."""
    builds: dict[str, Any] = {}
    yield builds
    target = os.environ.get("YOLACT_ENGINE_BUILDS")
    if target and builds:
        known = read_json(target, "result", OutputError)["builds"] if Path(target).exists() else {}
        head = {
            "environment": environment(),
            "tensorrt_rtx": rtx.__version__,
            "batch": {k: list(v) for k, v in BATCHES.items()},
            "size": SIZE,
        }
        write_json(target, {**head, "load_average": list(os.getloadavg()), "builds": {**known, **builds}})


def _export_int8(model: Any, path: Path, spec: ExportSpec) -> Metadata:
    """INT8 without a check; with pseudo-random weights the ranges of three pictures are as good as any."""
    metadata = spec.metadata(model.config)
    graph = trace(model, metadata)
    calibration = calibrate(graph, sample_images())
    quantize_trunk(graph, calibration)
    if spec.rest != "fp32":
        lower_trunk(graph, precision=spec.rest)
    how = {"target": spec.form, "method": calibration.method, "rest": spec.rest}
    metadata = replace(metadata, quantization=how)
    write_onnx(graph, metadata, path)
    return metadata


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision", "tail", "batch"), CASES, ids=["-".join(case) for case in CASES])
def test_every_configuration(
    make_model: Callable[..., Any],
    tmp_path: Path,
    record: dict[str, Any],
    name: str,
    precision: str,
    tail: str,
    batch: str,
) -> None:
    source, target = tmp_path / "m.onnx", tmp_path / "m.trt"
    start = time.perf_counter()
    whole, _, rest = precision.partition("+")
    int8: dict[str, Any] = {"calibration": sample_images(), "rest": rest or "fp32"} if whole == "int8" else {}
    spec = ExportSpec(precision=whole, tail=tail, batch=BATCHES[batch], **int8)
    expected = (_export_int8 if int8 else export_onnx)(make_model(name, SIZE), source, spec)
    export_seconds = time.perf_counter() - start
    old_parser.check(source)
    key = "-".join((name, precision, tail, batch))
    try:
        report = build_engine(source, target, flavour="rtx", options=BuildOptions(cache=False))
    except ExportError as error:
        record[key] = {"error": str(error)}
        raise
    header, found = read_engine_header(target), read_engine_metadata(target)
    assert header.kind == "TensorRT for RTX"
    assert header.size == report.bytes == target.stat().st_size
    assert found.config == expected.config
    assert SIZE or found.config == get_config(name)
    half = rest or (whole if whole in HALF_PRECISIONS else "")
    assert (found.precision, found.half, found.tail) == (whole, half, tail)
    assert found.batch == BATCHES[batch]
    assert report.profiles == (BATCHES[batch],)
    # The weights are in it, in the precision that was asked for; in INT8 those of the heads once for each level, and
    # with depthwise convolutions of a static batch several times as much as the file has.
    assert 0.9 < report.bytes / source.stat().st_size < (8 if int8 else 1.6 if SIZE else 1.3)
    record[key] = {
        "build_seconds": round(report.seconds, 2),
        "engine_bytes": report.bytes,
        "onnx_bytes": source.stat().st_size,
        "export_seconds": round(export_seconds, 2),
    }
    for path in (source, target):
        path.unlink()  # pytest would keep twelve gigabytes


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import engine_table

    build = {"build_seconds": 1.25, "engine_bytes": 64_500_000, "onnx_bytes": 63_000_000, "export_seconds": 6}
    builds: dict[str, Any] = {"-".join(case): build for case in CASES}
    head = {"environment": {"cpu": "A CPU", "cores": 2, "date": "2030-01-02T"}, "tensorrt_rtx": "1.7", "batch": BATCHES}
    (tmp_path / "r.json").write_text(json.dumps({**head, "builds": builds}))
    engine_table.main([str(tmp_path / "r.json")])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| `yolact")]
    assert len(rows) == len({case[:2] for case in CASES})
    assert all(row.count("64.5 MB, 1.2 s") == 4 for row in rows)

    builds[f"{CASES[0][0]}-fp32-heads-dynamic"] = {"error": "TensorRT cannot build it"}
    (tmp_path / "r.json").write_text(json.dumps({**head, "size": 138, "builds": builds}))
    engine_table.main([str(tmp_path / "r.json")])
    text = capsys.readouterr().out
    rows = [line for line in text.splitlines() if line.startswith("| `yolact")]
    assert len(rows) == 4 * len(list_configs()), "a row for each tail and kind of batch"
    assert text.count("64.5 MB, 1.2 s") == len(CASES) - 1
    assert text.count("TensorRT cannot build it") == 1
