"""Runs in a Python that has Ray, in a network of its own: MODEL PICTURES OUTPUT [--die]; prints JSON."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

from yolact_deploy.cli.main import main as main_command
from yolact_deploy.errors import YolactDeployError
from yolact_deploy.progress import SILENT
from yolact_deploy.scale.prediction_ray import predict_on_ray
from yolact_deploy.scale.ray_rows import Predict, running_ray


class Dying(Predict):
    """Ends its process in the middle of the work, once."""

    def __init__(self, model: str, mark: str) -> None:
        super().__init__(model)
        self._mark = Path(mark)

    def __call__(self, batch: Any) -> Any:
        result = super().__call__(batch)
        if not self._mark.exists():
            self._mark.write_text("died")
            os._exit(1)
        return result


def predict(model: str, pictures: list[Path], output: Path) -> dict[str, Any]:
    from yolact_deploy.scale.ray_rows import ParquetFolder, made_with

    runs: list[Any] = []
    for threshold in (0.15, 0.15, 0.5):
        options = {"score_threshold": threshold, "threads": 1}
        try:
            runs.append(predict_on_ray(None, model, options, pictures, output, workers=2, progress=SILENT))
        except YolactDeployError as error:
            runs.append(str(error))
    text = io.StringIO()
    words = ("--score-threshold", "0.15", "--threads", "1", "--ray", "--json")
    with contextlib.redirect_stdout(text):  # nothing is left to do, so Ray does not start
        code = main_command(["predict", model, *map(str, pictures), "-o", str(output), *words])
    folder = ParquetFolder(output, made_with(model, {"score_threshold": 0.15}))
    return {"runs": runs, "code": code, "printed": json.loads(text.getvalue()), "rows": list(folder.rows())}


def die(model: str, pictures: list[Path], output: Path) -> dict[str, Any]:
    mark = output.with_suffix(".died")
    with running_ray(None):
        data = importlib.import_module("ray.data")
        dataset = data.from_items([{"path": str(path)} for path in pictures]).map_batches(
            Dying, fn_constructor_args=(model, str(mark)), compute=data.ActorPoolStrategy(size=1), num_cpus=1,
            batch_size=4, batch_format="pyarrow", max_restarts=3, max_task_retries=3,
        )  # fmt: skip
        return {"rows": list(dataset.iter_rows()), "deaths": int(mark.exists())}


def main() -> None:
    model, folder, output, *rest = sys.argv[1:]
    pictures = sorted(Path(folder).iterdir())
    print(json.dumps((die if rest else predict)(model, pictures, Path(output))))


if __name__ == "__main__":
    main()
