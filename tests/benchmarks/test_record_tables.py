"""The table of stages: nothing is shown twice, nothing that was not measured is shown."""

from __future__ import annotations

import pytest

pytest.importorskip("msgspec")

from yolact_deploy.benchmarks.record import Latency
from yolact_deploy.benchmarks.record_tables import stage_rows

HOST = Latency.of((20.0, 22.0), {"decode": 1.0, "network": 12.0, "nms": 2.0, "assembly": 1.5, "paste": 4.0})
GRAPH = Latency.of((18.0,), {"decode": 1.0, "network+nms+assembly": 14.25, "paste": 2.5}, encode_mean_ms=0.5)


def test_side_by_side() -> None:
    columns, rows = stage_rows({"host": HOST, "graph": GRAPH})
    assert columns == ("engine", "decode", "network", "nms", "assembly", "paste", "sum", "whole", "rest", "encode")
    assert rows == [
        ("host", "1.00", "12.00", "2.00", "1.50", "4.00", "20.50", "21.00", "0.50", ""),
        ("graph", "1.00", "14.25", "in network", "in network", "2.50", "17.75", "18.00", "0.25", "0.50"),
    ]


def test_a_gpu_beside_a_cpu() -> None:
    gpu = Latency.of((9.0,), {"decode": 1.0, "upload+network+download": 6.0, "other": 0.5, "copy+upload2": 0.25})
    columns, rows = stage_rows({"host": HOST, "gpu": gpu})
    cells = dict(zip(columns, rows[1], strict=True))
    assert columns[1:-4] == (
        "decode", "copy", "upload", "network", "nms", "assembly", "paste", "download", "other", "upload2",
    )  # fmt: skip
    assert (cells["network"], cells["upload"], cells["download"]) == ("6.00", "in network", "in network")
    assert (cells["nms"], cells["paste"]) == ("", ""), "it does not do these"
    assert (cells["copy"], cells["upload2"], cells["other"]) == ("0.25", "in copy", "0.50")
    assert dict(zip(columns, rows[0], strict=True))["download"] == ""


@pytest.mark.parametrize("latency", [HOST, GRAPH])
def test_the_times_of_a_row_add_up(latency: Latency) -> None:
    columns, (row,) = stage_rows({"one": latency})
    cells = dict(zip(columns, row, strict=True))
    times = [float(cell) for name, cell in list(cells.items())[1:-4] if not cell.startswith("in ")]
    assert sum(times) == float(cells["sum"])
    assert float(cells["sum"]) + float(cells["rest"]) == float(cells["whole"])
