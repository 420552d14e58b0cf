"""`fit`: train from a recipe and data to weights for `export`, in one process or in those of torchrun."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from yolact_deploy.artifact import write_json
from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import ConfigError, DatasetError, InputError
from yolact_deploy.machine.environment import environment
from yolact_deploy.model import YolactModel
from yolact_deploy.model.initialization import InitReport, initialize
from yolact_deploy.model.unfold import unfold_batch_norms
from yolact_deploy.progress import SILENT, Progress
from yolact_deploy.training.data import Batch, CocoDataset, DatasetSpec, open_dataset, plain_loader, training_loader
from yolact_deploy.training.data.batch import Normalizer
from yolact_deploy.training.distributed import World, processes
from yolact_deploy.training.interrupt import spare_workers
from yolact_deploy.training.model_card import write_model_card
from yolact_deploy.training.monitors import JsonLog, ProgressMonitor, TrainingMonitor, closing, read_log, tensorboard
from yolact_deploy.training.plot import draw_confusion, draw_curves
from yolact_deploy.training.recipe import Recipe
from yolact_deploy.training.state import StateFolder, set_seed
from yolact_deploy.training.step import TrainStep, freezes_batch_norm
from yolact_deploy.training.trainer import Outcome, Trainer
from yolact_deploy.training.validation import Evaluator

_log = logging.getLogger(__name__)

LOG = "log.jsonl"
_UNFOLD_IMAGES = 32


@dataclass(frozen=True)
class FitResult:
    """The result of a training."""

    outcome: Outcome
    folder: Path
    seconds: float  #: of this run, without those it resumed
    is_main: bool

    def to_json(self) -> dict[str, Any]:
        outcome = self.outcome
        return {
            "output": str(self.folder),
            "weights": str(self.folder / "last.safetensors") if outcome.finished else None,
            "step": outcome.step,
            "finished": outcome.finished,
            "skipped_steps": outcome.skipped,
            "best_mask_ap": outcome.best,
            "accuracy": outcome.accuracy.to_json() if outcome.accuracy else None,
            "seconds": round(self.seconds, 1),
        }


def fit(
    recipe: Recipe,
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    weights: str | None = None,
    resume: bool = False,
    device: str = "auto",
    workers: int | None = None,
    images_dir: str | os.PathLike[str] | None = None,
    lenient: bool = False,
    hours: float | None = None,
    progress: Progress = SILENT,
) -> FitResult:
    """Train a network for the classes of a dataset, and write states, logs and weights into a folder.

    The folder gets ``log.jsonl``, ``state_*.pt``, ``best.safetensors`` (the best mask AP), ``last.safetensors``,
    ``result.json``, ``model_card.md``, ``curves.png`` and ``confusion.png`` if matplotlib is installed, and TensorBoard
    files with curves and pictures of predictions if TensorBoard is.

    Args:
        data: a dataset, see `datasets.resolve`
        weights: initial weights other than the recipe's, see `initialization.initialize`
        resume: continue from the last saved state of the folder, or start if there is none
        device: "auto", "cpu", "cuda" or "cuda:N"
        workers: processes that prepare images, per training process
        images_dir: folder of the pictures; by default it is searched
        lenient: leave out records of the dataset that are not sound
        hours: end after so much time of this run, with an evaluation and weights; --resume makes the rest
        progress: shows losses, speed and evaluations

    Raises:
        YolactDeployError: an error in the recipe, data, weights, device or folder, before the first step.
    """
    started, folder = time.perf_counter(), Path(output)
    with processes(device) as world, _settings(recipe):
        _check_folder(folder, resume)
        dataset = open_dataset(data, images_dir=images_dir, lenient=lenient)
        trainer = _prepare(recipe, dataset, folder, world, weights, resume, workers, hours, progress)
        with closing(trainer.monitors):
            outcome = trainer.run()
            seconds = time.perf_counter() - started
            trainer.report("end", seconds=seconds, stopped=not outcome.finished)
        result = FitResult(outcome, folder, seconds, world.is_main)
        if world.is_main and outcome.finished:
            write_json(folder / "result.json", {**result.to_json(), **_origin(trainer)})
            _write_pictures_and_card(trainer, dataset, result)
    return result


def _write_pictures_and_card(trainer: Trainer, dataset: DatasetSpec, result: FitResult) -> None:
    """What a person looks at when the training has ended."""
    records = read_log(result.folder / LOG)
    matrix = trainer.evaluate.confusion() if isinstance(trainer.evaluate, Evaluator) else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # matplotlib's, about what it imports
            draw_curves(records, result.folder / "curves.png")
            if matrix is not None:
                draw_confusion(matrix, result.folder / "confusion.png")
    except Exception as error:  # hours of training do not fail for a picture
        _log.warning("curves and confusion matrix were not drawn: %s: %s", type(error).__name__, error)
    initial = next((record["initial"] for record in records if record["event"] == "start"), "unknown")
    facts = {**_origin(trainer), "seconds": result.seconds}
    write_model_card(result.folder, dataset, trainer.recipe, result.outcome, initial, facts)


def _prepare(
    recipe: Recipe,
    spec: DatasetSpec,
    folder: Path,
    world: World,
    weights: str | None,
    resume: bool,
    workers: int | None,
    hours: float | None,
    progress: Progress,
) -> Trainer:
    """Check and prepare everything that the first step needs."""
    dataset = _training_set(recipe, spec)
    recipe = replace(recipe, config=spec.configure(recipe.config))
    _check_slots(recipe.config)
    set_seed(recipe.seed)
    model = YolactModel(recipe.config)
    evaluator = _evaluator(model, recipe, spec, world, progress)
    resumes = resume and bool(StateFolder(folder).states())
    initial = None if resumes else initialize(model, recipe.weights if weights is None else weights)
    if initial is not None and initial.folded and not freezes_batch_norm(recipe, world.share(recipe.batch)):
        _unfold(model, dataset)
    step = TrainStep(model, recipe, world)
    data = {"images": len(dataset), "names": list(spec.names), "category_ids": list(spec.category_ids)}
    identity = {"recipe": recipe.identity(), "data": data, "frozen_batch_norm": step.frozen}
    batches = partial(_batches, dataset, recipe, world, workers)
    trainer = Trainer(step, batches, folder, identity=identity, evaluate=evaluator, hours=hours)
    if resume:
        trainer.resume()
    if world.is_main:
        trainer.monitors = _monitors(folder, trainer.done if resume else None, progress, evaluator)
    _report_start(trainer, initial, len(dataset))
    return trainer


def _check_slots(config: YolactConfig) -> None:
    """Before hours of training, refuse what no export of the weights could fill."""
    entries = min(config.top_k, config.num_priors) * config.num_classes
    if config.max_detections > entries:
        raise ConfigError(
            f"config.max_detections: {config.max_detections} detections, but NMS keeps {config.top_k} per "
            f"class (top_k) of {config.num_classes}: also set config.top_k={config.max_detections}"
        )


def _batches(dataset: CocoDataset, recipe: Recipe, world: World, workers: int | None, start: int) -> Iterable[Batch]:
    """The batches of this process from iteration ``start`` on."""
    loader = training_loader(
        dataset, recipe.augmentation, world.share(recipe.batch), seed=recipe.seed, start=start,
        stop=recipe.iterations, rank=world.rank, world_size=world.size, workers=workers,
        balance=recipe.balance,
    )  # fmt: skip
    return spare_workers(loader)


def _unfold(model: YolactModel, dataset: CocoDataset) -> None:
    """Unfold with the same images in all processes, so that their weights stay equal."""
    config = model.config
    batches = islice(plain_loader(dataset, config.image_size, _UNFOLD_IMAGES, fit=config.fit, workers=0), 1)
    normalize = Normalizer(model.config)
    unfold_batch_norms(model.backbone, (normalize(batch.images) for batch in batches))


def _training_set(recipe: Recipe, spec: DatasetSpec) -> CocoDataset:
    dataset = CocoDataset.of_split(spec, "train", keep_empty=recipe.keep_empty)
    if not len(dataset):
        raise DatasetError(f"{spec.split('train').annotations} has no image with an object to train on: annotate some")
    return dataset


def _evaluator(
    model: YolactModel, recipe: Recipe, spec: DatasetSpec, world: World, progress: Progress
) -> Evaluator | None:
    if "val" not in spec.splits:
        if world.is_main:
            _log.warning("%s has no split 'val': the model is not evaluated", spec.path)
        return None
    CocoDataset.of_split(spec, "val")  # raises its errors before hours of training
    return Evaluator(model, spec, world, limit=recipe.eval_images, progress=progress)


def _monitors(
    folder: Path, resume_at: int | None, progress: Progress, evaluator: Evaluator | None
) -> list[TrainingMonitor]:
    monitors: list[TrainingMonitor] = [JsonLog(folder / LOG, resume_at)]
    board = tensorboard(folder, None if evaluator is None else evaluator.sheet)
    if board is not None:
        monitors.append(board)
    return [*monitors, ProgressMonitor(progress)]


def _report_start(trainer: Trainer, initial: InitReport | None, images: int) -> None:
    if not trainer.world.is_main:
        return
    source = f"continues at iteration {trainer.done}" if initial is None else str(initial)
    recipe = trainer.recipe
    trainer.report(
        "start",
        iterations=recipe.iterations,
        recipe=recipe.to_json(),
        initial=source,
        images=images,
        frozen_batch_norm=trainer.step.frozen,
        **_origin(trainer),
    )


def _origin(trainer: Trainer) -> dict[str, Any]:
    world = trainer.world
    return {
        "recipe_name": trainer.recipe.name,
        "processes": world.size,
        "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu",
        "environment": environment(),
    }


def _check_folder(folder: Path, resume: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder} is a file: give a folder")
    if not resume and StateFolder(folder).states():
        raise InputError(
            f"{folder} already has a training: continue it with --resume, or start anew with another --output"
        )


@contextlib.contextmanager
def _settings(recipe: Recipe) -> Iterator[None]:
    """Torch's global settings during the training."""
    cudnn, before = torch.backends.cudnn, torch.are_deterministic_algorithms_enabled()
    if recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(recipe.deterministic)
    try:
        with cudnn.flags(
            enabled=cudnn.enabled,
            benchmark=not recipe.deterministic,
            deterministic=recipe.deterministic,
            allow_tf32=cudnn.allow_tf32,
        ):
            yield
    finally:
        torch.use_deterministic_algorithms(before)
