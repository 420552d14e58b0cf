"""Many pictures on a Ray cluster: `Predict` for ``map_batches``, and Parquet files that a second run continues.

    dataset = ray.data.from_items([{"path": path} for path in paths])
    actors = ray.data.ActorPoolStrategy(size=8)
    dataset.map_batches(Predict, fn_constructor_args=("yolact.onnx",), compute=actors, num_cpus=1, batch_size=8)

One row a picture. Columns: ``path``; ``error``, None for a picture that was read; ``width`` and ``height``; ``boxes``,
xyxy in pixels; ``scores``; ``labels``, 0-based; ``masks``, the ``counts`` of COCO run-length encodings of that size.
Columns that come in with the paths are kept. Every machine of the cluster needs the model and the pictures under the
same paths.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.artifact import sha256_file, write_json
from yolact_deploy.detections import Detections
from yolact_deploy.errors import BackendError, InputError, OutputError, import_optional
from yolact_deploy.loading import ModelSpec, load
from yolact_deploy.preprocess import read_image
from yolact_deploy.untrusted import read_json

#: what a folder of Parquet files was made with
_RUN_FILE = "run.json"
#: pictures of a task; a task that fails is repeated as a whole
_BATCH = 8
#: times that an actor is started again, and that its task is repeated
_RETRIES = 3


class Predict:
    """Detects in batches of paths; each actor of Ray loads the model once.

    Args:
        model: as :func:`yolact_deploy.load` takes it
        threads: CPU threads, which should be the ``num_cpus`` of the actor; None as the model chooses
        options: further arguments of :func:`~yolact_deploy.load`
    """

    def __init__(self, model: str, *, threads: int | None = 1, **options: Any) -> None:
        self._model = load(model, threads=threads, **options)

    def __call__(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """A batch with a column ``path``, as a table of pyarrow or a dictionary of arrays; the same with results."""
        arrow = import_optional("pyarrow", "ray", "Detecting on Ray")
        given = batch if isinstance(batch, arrow.Table) else arrow.table({k: list(v) for k, v in batch.items()})
        rows = list(self._rows([str(path) for path in given.column("path").to_pylist()]))
        for field in _schema(arrow):
            given = given.append_column(field, arrow.array([row[field.name] for row in rows], type=field.type))
        table: Mapping[str, Any] = given
        return table

    def _rows(self, paths: Sequence[str]) -> Iterator[dict[str, Any]]:
        images = list(map(_read, paths))
        detections = iter(self._model([image for image in images if not isinstance(image, str)]))
        for image in images:
            yield _failed(image) if isinstance(image, str) else _row(next(detections))


def _read(path: str) -> NDArray[np.uint8] | str:
    """The picture, or why it cannot be read."""
    try:
        return read_image(path)
    except InputError as error:
        return str(error)


def _schema(arrow: Any) -> Any:
    return arrow.schema(
        [
            ("error", arrow.string()),
            ("width", arrow.int32()),
            ("height", arrow.int32()),
            ("boxes", arrow.list_(arrow.list_(arrow.float32(), 4))),
            ("scores", arrow.list_(arrow.float32())),
            ("labels", arrow.list_(arrow.int32())),
            ("masks", arrow.list_(arrow.string())),
            ("mask_scores", arrow.list_(arrow.float32())),
        ]
    )


def _row(detections: Detections) -> dict[str, Any]:
    return {
        "error": None,
        "width": detections.width,
        "height": detections.height,
        "boxes": detections.boxes.tolist(),
        "scores": detections.scores.tolist(),
        "labels": detections.labels.tolist(),
        "masks": [rle["counts"] for rle in detections.rle()],
        "mask_scores": None if detections.mask_scores is None else detections.mask_scores.tolist(),
    }


def _failed(error: str) -> dict[str, Any]:
    empty: dict[str, Any] = {column: [] for column in ("boxes", "scores", "labels", "masks")}
    return {"error": error, "width": None, "height": None, **empty, "mask_scores": None}


def coco_results(row: Mapping[str, Any], image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """COCO results of a row, as :meth:`yolact_deploy.Detections.to_coco` gives them."""
    boxes = np.asarray(row["boxes"], np.float32).reshape(-1, 4)
    bbox = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(float).round(2).tolist()
    size = [row["height"], row["width"]]
    scores = row["mask_scores"]
    return [
        {
            "image_id": image_id,
            "category_id": int(category_ids[label]),
            "bbox": box,
            "score": float(score),
            "segmentation": {"size": size, "counts": counts},
            **({} if scores is None else {"mask_score": float(scores[i])}),
        }
        for i, (box, score, label, counts) in enumerate(
            zip(bbox, row["scores"], row["labels"], row["masks"], strict=True)
        )
    ]


@contextlib.contextmanager
def running_ray(address: str | None) -> Iterator[Any]:
    """The module ray, connected to a cluster, or to one of its own on this machine; it is disconnected at the end.

    Ray listens on all interfaces of a machine: see docs/ray.md. What it prints goes to standard error.

    Args:
        address: of a cluster; None starts one here

    Raises:
        BackendError: there is no cluster at that address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when it is imported
    ray = import_optional("ray", "ray", "Detecting on Ray")
    data = import_optional("ray.data", "ray", "Detecting on Ray")
    # Without "local", Ray would look for a cluster that somebody started here, also for one that is gone.
    own = {"address": "local", "include_dashboard": False} if address is None else {"address": address}
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecated names that work in all versions that we allow
        try:
            ray.init(log_to_driver=False, logging_level="ERROR", **own)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise BackendError(f"Ray at {address or 'this machine'} cannot be used: {error}") from error
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        data.DataContext.get_current().enable_progress_bars = False
        try:
            yield ray
        except ray.exceptions.RayError as error:
            raise BackendError(f"Ray failed: {' '.join(str(error).split())[:500]}") from error
        finally:
            ray.shutdown()


def predict_rows(
    ray: Any, rows: Sequence[Mapping[str, Any]], model: str, options: Mapping[str, Any], *, actors: int | None = None
) -> Any:
    """A ``ray.data.Dataset`` of the results, computed when it is read or written.

    Args:
        ray: the module, connected
        rows: each with a ``path``
        options: keyword arguments of :class:`Predict`
        actors: predictors at once; by default one for each CPU, or GPU, of the cluster
    """
    on_gpu = ModelSpec.parse(model).on_gpu
    threads = options.get("threads") or 1
    have = ray.cluster_resources()
    count = actors or max(1, int(have.get("GPU", 0) if on_gpu else have.get("CPU", 1) // threads))
    count = min(count, max(1, -(-len(rows) // _BATCH)))
    return ray.data.from_items(list(rows), override_num_blocks=max(count, -(-len(rows) // 64))).map_batches(
        Predict,
        fn_constructor_args=(model,),
        fn_constructor_kwargs={**options, "threads": None if on_gpu else threads},
        compute=ray.data.ActorPoolStrategy(size=count),
        num_cpus=threads,
        num_gpus=1 if on_gpu else 0,
        batch_size=_BATCH,
        batch_format="pyarrow",
        max_restarts=_RETRIES,
        max_task_retries=_RETRIES,
    )


class ParquetFolder:
    """A folder of results, into which each run writes a folder of its own.

    Args:
        folder: created if it is missing
        made_with: what the results depend on besides the pictures

    Raises:
        OutputError: the folder has results that were made with something else, or other files.
    """

    def __init__(self, folder: Path, made_with: Mapping[str, Any]) -> None:
        self.folder = folder
        file, values = folder / _RUN_FILE, json.loads(json.dumps(made_with))
        if file.is_file():
            before = read_json(file, "description of a run", OutputError)
            if before != values:
                differs = sorted(key for key in {*before, *values} if before.get(key) != values.get(key))
                raise OutputError(f"{folder} has results of another {', '.join(differs)}: choose another -o")
        elif folder.is_dir() and any(folder.iterdir()):
            raise OutputError(f"{folder} has other files: choose another folder with -o")
        else:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"cannot create {folder}: {error.strerror}. Choose another one with -o") from error
            write_json(file, values)

    def finished(self) -> tuple[set[str], list[Path]]:
        """The paths of the pictures that are done, and files that a run left incomplete, which are renamed."""
        parquet = import_optional("pyarrow.parquet", "ray", "Reading Parquet files")
        arrow = import_optional("pyarrow", "ray", "Reading Parquet files")

        def paths_of(path: Path) -> list[str] | None:
            try:
                paths: list[str] = parquet.read_table(path, columns=["path"]).column("path").to_pylist()
            except (arrow.ArrowInvalid, OSError):  # the run was killed while it wrote
                return None
            return paths

        files = {path: paths_of(path) for path in sorted(self.folder.glob("run-*/*.parquet"))}
        incomplete = [path.rename(path.with_suffix(".incomplete")) for path, own in files.items() if own is None]
        return {path for own in files.values() for path in own or ()}, incomplete

    def next_run(self) -> Path:
        """A new folder for a run."""
        numbers = [int(path.name[4:]) for path in self.folder.glob("run-*") if path.name[4:].isdecimal()]
        return self.folder / f"run-{max(numbers, default=0) + 1:04d}"

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of all runs."""
        parquet = import_optional("pyarrow.parquet", "ray", "Reading Parquet files")
        for path in sorted(self.folder.glob("run-*/*.parquet")):
            yield from parquet.read_table(path).to_pylist()


def made_with(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What the detections of a model depend on: its content and its options."""
    spec = ModelSpec.parse(model)
    spec.check_file()
    content = spec.url or sha256_file(spec.path)
    own = {key: str(value) for key, value in options.items() if value is not None and key != "threads"}
    return {"model": content, "spelling": spec.spelling().removeprefix(str(spec.path)), **own}


def failures(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The pictures that could not be read, and why."""
    return [{"source": row["path"], "error": row["error"]} for row in rows if row["error"] is not None]
