"""Prints what test_engine_builds.py measured as Markdown: python tests/export/engine_table.py RESULT.json"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolact_deploy.config import list_configs

_PRECISIONS = ("fp32", "fp16", "bf16", "int8")
_COLUMNS = list(itertools.product(("functions", "heads"), ("static", "dynamic")))


def table(result: dict[str, Any]) -> str:
    """The text of the page."""
    where, batch = result["environment"], result["batch"]
    builds = result["builds"]
    seconds = [build["build_seconds"] for build in builds.values()]
    lines = [
        "# Engines of every configuration",
        "",
        "Built by TensorRT for RTX on a machine without a GPU: each configuration at its own size, in each precision,",
        "with each tail, for a batch of "
        f"{batch['static'][0]} (static) and of {':'.join(map(str, batch['dynamic']))} (dynamic).",
        "None of them has run on a GPU for this page. A cell tells the engine's size and the time of its build.",
        "",
        f"TensorRT for RTX {result['tensorrt_rtx']}, {where['cores']} cores of {where['cpu']}, {where['date'][:10]};"
        f" other programs were at work. {len(builds)} builds took {min(seconds):.1f} to {max(seconds):.1f} s.",
        "Made by `YOLACT_ENGINE_BUILDS=FILE.json pytest -m slow tests/export/test_engine_builds.py` and",
        "`python tests/export/engine_table.py FILE.json`.",
        "Configurations that are not in a table were not built in that precision at their own size.",
    ]
    for precision in _PRECISIONS:
        rows = {name: _cells(name, precision, builds) for name in list_configs()}
        if not any(map(any, rows.values())):
            continue
        lines += ["", f"## {precision.upper()}", ""]
        lines += [f"| configuration | {' | '.join(' '.join(column) for column in _COLUMNS)} |"]
        lines += [f"| --- |{' --- |' * len(_COLUMNS)}"]
        lines += [f"| `{name}` | {' | '.join(cells)} |" for name, cells in rows.items() if any(cells)]
    return "\n".join(lines)


def _cells(name: str, precision: str, builds: dict[str, Any]) -> list[str]:
    """Of one configuration; empty where nothing was built."""
    found = [builds.get("-".join((name, precision, *column))) for column in _COLUMNS]
    return [f"{build['engine_bytes'] / 1e6:.1f} MB, {build['build_seconds']:.1f} s" if build else "" for build in found]


def main(arguments: Sequence[str]) -> None:
    print(table(json.loads(Path(arguments[0]).read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main(sys.argv[1:])
