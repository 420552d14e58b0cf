"""The loop: exact resume after kill -9, signals, steps that are skipped, several processes."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("pycocotools")

import tiny
import torch
from few import few

from yolact_deploy.errors import ConfigError, DatasetError, InputError
from yolact_deploy.model import YolactModel
from yolact_deploy.model.checkpoint import load_model
from yolact_deploy.model.weights_file import read_state_dict
from yolact_deploy.training import trainer as trainer_module
from yolact_deploy.training.data import Augmentation, Batch, CocoDataset, open_dataset, training_loader
from yolact_deploy.training.distributed import World
from yolact_deploy.training.fit import FitResult, fit
from yolact_deploy.training.monitors import read_log
from yolact_deploy.training.recipe import Recipe
from yolact_deploy.training.state import set_seed
from yolact_deploy.training.step import TrainStep

# The gradient of a convolution over a map of one pixel, P7 at 64 pixels, is garbage in BF16 on a CPU (torch 2.15).
SIDE = 96
CPU = World(torch.device("cpu"))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.leave_out_pictures(monkeypatch)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_set(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def undisturbed(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    return train(tiny.tiny_recipe(), shapes, tmp_path_factory.mktemp("undisturbed") / "run")


def train(recipe: Recipe, data: Path, output: Path, **options: Any) -> FitResult:
    return fit(recipe, data, output, device="cpu", **{"workers": 0, **options})


def curve(folder: Path) -> list[tuple[int, dict[str, float], float, float]]:
    """(iteration, losses, norm of the gradient, learning rate) of each record."""
    return [
        (r["step"], r["losses"], r["gradient"], r["lr"]) for r in read_log(folder / "log.jsonl") if r["event"] == "step"
    ]


def same_weights(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


# -- resume ---------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The end of a training that nothing handles."""


def end_after(run: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin a training in this process, which ends three steps after the last saved state."""
    make = TrainStep.__call__

    def step(self: TrainStep, batch: Batch, number: int) -> None:
        if number == 7:
            raise Killed
        make(self, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", step)
        with pytest.raises(Killed):
            train(tiny.tiny_recipe(), shapes, run)


def kill(run: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in another process, by a signal that no process can handle."""
    code = f"""
import os, signal, torch, tiny
from yolact_deploy.training.fit import fit
from yolact_deploy.training.step import TrainStep
make = TrainStep.__call__
def step(self, batch, number):
    if number == 7:  # three steps after the last saved state
        os.kill(os.getpid(), signal.SIGKILL)
    make(self, batch, number)
TrainStep.__call__ = step
fit(tiny.tiny_recipe(), {str(shapes)!r}, {str(run)!r}, device="cpu", workers=0)
"""
    assert tiny.run_python("-c", code).returncode == -signal.SIGKILL


@pytest.mark.parametrize("end", [end_after, pytest.param(kill, marks=pytest.mark.slow)])
def test_kill_and_resume_give_the_curve_of_an_undisturbed_run(
    shapes: Path,
    undisturbed: FitResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: Callable[[Path, Path, pytest.MonkeyPatch], None],
) -> None:
    run = tmp_path / "run"
    end(run, shapes, monkeypatch)
    assert [path.name for path in run.glob("*.pt")] == ["state_00000004.pt"]
    assert [step for step, *_ in curve(run)] == [1, 2, 3, 4, 5, 6, 7]

    result = train(tiny.tiny_recipe(), shapes, run, resume=True, workers=1)
    assert (result.outcome.step, result.outcome.finished) == (12, True)
    assert curve(run) == curve(undisturbed.folder)
    assert len(curve(run)) == 12
    assert same_weights(run / "last.safetensors", undisturbed.folder / "last.safetensors")


@pytest.mark.slow
def test_a_log_between_states_is_exact_too(shapes: Path, tmp_path: Path) -> None:
    recipe = tiny.tiny_recipe("log_interval=5", "iterations=6", "save_interval=4", "optimizer=adamw", "keep=9")
    whole = train(recipe, shapes, tmp_path / "whole").folder
    state = whole / "state_00000004.pt"
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / state.name).write_bytes(state.read_bytes())
    train(recipe, shapes, tmp_path / "part", resume=True)
    assert curve(tmp_path / "part") == curve(whole)
    assert same_weights(tmp_path / "part" / "last.safetensors", whole / "last.safetensors")


def test_resuming_what_is_finished_changes_nothing(shapes: Path, undisturbed: FitResult) -> None:
    before = curve(undisturbed.folder)
    again = train(tiny.tiny_recipe("log_interval=1"), shapes, undisturbed.folder, resume=True)
    assert again.outcome.finished
    assert curve(undisturbed.folder) == before


def test_resume_from_nothing_begins(shapes: Path, tmp_path: Path) -> None:
    result = train(tiny.tiny_recipe("iterations=1"), shapes, tmp_path / "run", resume=True)
    assert result.outcome.step == 1


def test_another_training_in_the_folder(shapes: Path, undisturbed: FitResult, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="continue it with --resume"):
        train(tiny.tiny_recipe(), shapes, undisturbed.folder)
    with pytest.raises(Exception, match=r"recipe\.lr 0\.001, now 0\.002"):
        train(tiny.tiny_recipe("lr=2e-3"), shapes, undisturbed.folder, resume=True)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        train(tiny.tiny_recipe(), shapes, tmp_path / "file")


def test_what_is_written(undisturbed: FitResult) -> None:
    folder = undisturbed.folder
    assert {"log.jsonl", "result.json", "last.safetensors", "state_00000008.pt", "state_00000012.pt"} <= {
        path.name for path in folder.iterdir()
    }
    result = json.loads((folder / "result.json").read_text())
    assert result["accuracy"]["images"] == 2
    assert result["environment"]
    start = read_log(folder / "log.jsonl")[0]
    assert (start["event"], start["images"], start["frozen_batch_norm"]) == ("start", 8, True)
    model = load_model(folder / "last.safetensors")
    assert model.config.class_names[:2] == ("disc", "square")


# -- signals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGHUP))]
)
def test_a_signal_ends_after_the_step_with_a_saved_state(
    shapes: Path, undisturbed: FitResult, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = TrainStep.__call__

    def step(self: TrainStep, batch: Batch, iteration: int) -> None:
        make(self, batch, iteration)
        if iteration == 5:
            os.kill(os.getpid(), number)

    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", step)
        stopped = train(tiny.tiny_recipe(), shapes, tmp_path)
    assert (stopped.outcome.step, stopped.outcome.finished) == (6, False)
    assert (tmp_path / "state_00000006.pt").exists()
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers
    train(tiny.tiny_recipe(), shapes, tmp_path, resume=True)
    assert curve(tmp_path) == curve(undisturbed.folder)


# -- steps ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def batches(shapes: Path) -> list[Batch]:
    dataset = CocoDataset.of_split(open_dataset(shapes), "train")
    return list(training_loader(dataset, Augmentation(size=SIDE), 6, stop=2, workers=0))


def make_step(*settings: str) -> TrainStep:
    recipe = tiny.tiny_recipe("batch=6", f"config.image_size={SIDE}", *settings)
    set_seed(recipe.seed)
    return TrainStep(YolactModel(recipe.config), recipe, CPU)


def poisoned(batch: Batch) -> Batch:
    images = batch.images.float()
    images[0, 0, 0, 0] = float("nan")
    return Batch(**{**vars(batch), "images": images})


def snapshot(step: TrainStep) -> dict[str, Any]:
    state = step.state_dict()
    momenta = {f"{i}.{k}": v for i, s in state["optimizer"]["state"].items() for k, v in s.items() if v is not None}
    found = {**state["model"], **momenta, **{f"average.{k}": v for k, v in state["average"]["average"].items()}}
    return {k: v.clone() for k, v in found.items() if torch.is_tensor(v) and not k.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    "settings",
    [
        ("optimizer=sgd", "clip=1"),
        ("optimizer=adamw",),
        pytest.param(("amp=bf16",), marks=pytest.mark.slow),
        pytest.param(("amp=fp16",), marks=pytest.mark.slow),
    ],
)
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(
    batches: list[Batch], settings: tuple[str, ...]
) -> None:
    step = make_step("freeze_batch_norm=never", *settings)
    for _ in range(20):  # FP16 begins with a scale that is too large
        step(batches[0], 0)
        losses, _ = step.read()
        if losses:
            break
    assert 0 < losses["box"] < 1e4
    before = snapshot(step)
    step(poisoned(batches[1]), 1)
    after = snapshot(step)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert step.read() == ({}, 1)
    assert int(step.in_a_row) == 1
    step(batches[1], 2)
    assert int(step.in_a_row) == 0
    assert any(not torch.equal(value, after[key]) for key, value in snapshot(step).items())


def test_a_loss_that_is_not_finite_counts_even_where_its_gradient_is(batches: list[Batch]) -> None:
    step = make_step()
    losses = step.criterion

    def with_nan(*arguments: Any, **options: Any) -> dict[str, Any]:
        return {**losses(*arguments, **options), "class": torch.tensor(float("nan"))}

    step.criterion = with_nan  # type: ignore[assignment]
    before = snapshot(step)
    step(batches[0], 0)
    assert all(torch.equal(value, before[key]) for key, value in snapshot(step).items() if key in before)
    assert step.read() == ({}, 1)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_first_step_that_is_skipped_leaves_no_trace(batches: list[Batch], optimizer: str) -> None:
    plain, skipping = (make_step(f"optimizer={optimizer}", "ema_decay=0") for _ in range(2))
    skipping(poisoned(batches[0]), 0)
    for step in (plain, skipping):
        step(batches[1], 1)
    expected = plain.model.state_dict()
    for name, value in skipping.model.state_dict().items():
        assert torch.equal(value, expected[name]) or name.endswith("num_batches_tracked"), name


def test_a_training_that_has_diverged_is_given_up(
    batches: list[Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "MOST_SKIPPED", 3)
    step = make_step("log_interval=2")

    def bad(start: int) -> Iterator[Batch]:
        while True:
            yield poisoned(batches[0])

    trainer = trainer_module.Trainer(step, bad, tmp_path, identity={})
    with pytest.raises(ConfigError, match=r"last 4 steps were not finite.*--set lr"):
        trainer.run()


@pytest.mark.parametrize(
    ("images", "setting", "frozen"),
    [(5, "auto", True), (6, "auto", False), (6, "always", True), (1, "never", False)],
)
def test_batch_normalization_is_frozen_with_few_images(
    batches: list[Batch], images: int, setting: str, frozen: bool
) -> None:
    step = make_step(f"batch={images}", f"freeze_batch_norm={setting}")
    norm = step.model.backbone.layers[0][1]
    before = norm.running_mean.clone()
    step(batches[0], 0)
    assert torch.equal(norm.running_mean, before) is frozen
    assert norm.weight.requires_grad is not frozen


def test_the_gradient_is_clipped(batches: list[Batch]) -> None:
    step = make_step("clip=0.5", "momentum=0", "weight_decay=0", "lr=1", "warmup_iterations=0")
    before = [p.detach().clone() for p in step.parameters]
    step(batches[0], 0)
    moved = torch.stack([(p.detach() - b).norm() for p, b in zip(step.parameters, before, strict=True)]).norm()
    assert float(moved) == pytest.approx(0.5, rel=1e-3)
    assert step.read()[0]["gradient"] > 0.5


def test_the_average_follows_the_weights(batches: list[Batch]) -> None:
    step = make_step("ema_decay=0.5", "lr=1e-2")
    name = "fpn.lat_layers.0.weight"
    expected = step.model.state_dict()[name].clone()
    for number, batch in enumerate(batches):
        step(batch, number)
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * step.model.state_dict()[name]
        assert torch.allclose(step.weights()[name], expected, atol=1e-7)


@pytest.mark.parametrize(
    ("iterations", "settings"),
    [
        (16, ()),
        pytest.param(30, (f"config.image_size={SIDE}", "amp=bf16", "channels_last=yes"), marks=pytest.mark.slow),
    ],
    ids=["fp32", "bf16"],
)
@pytest.mark.slow
def test_it_learns_eight_images(shapes: Path, tmp_path: Path, iterations: int, settings: tuple[str, ...]) -> None:
    recipe = tiny.tiny_recipe(f"iterations={iterations}", "batch=8", "optimizer=adamw", "lr=3e-3", *settings)
    train(recipe, shapes, tmp_path)
    totals = [sum(losses.values()) for _, losses, *_ in curve(tmp_path)]
    assert sum(totals[-5:]) < 0.75 * sum(totals[:5])


# -- data -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_is_gone_is_told_in_one_sentence(tmp_path: Path, workers: int) -> None:
    data = tiny.tiny_set(tmp_path / "set")
    picture = tmp_path / "set" / "images" / "train_000003.png"
    picture.write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"train_000003\.png") as caught:
        train(tiny.tiny_recipe(), data, tmp_path / "run", workers=workers)
    assert "Traceback" not in str(caught.value)


def test_bad_annotations_are_refused_before_the_first_step(tmp_path: Path) -> None:
    data = tiny.tiny_set(tmp_path / "set")
    file = tmp_path / "set" / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][0] = float("nan")
    file.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="instances_val"):
        train(tiny.tiny_recipe(), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- early ends -----------------------------------------------------------------------------------------------------


def test_patience_ends_a_training_that_does_not_improve(shapes: Path, tmp_path: Path) -> None:
    recipe = tiny.tiny_recipe("eval_interval=1", "patience=2", "iterations=12", "lr=1e-12", "warmup_lr=1e-12")
    outcome = train(recipe, shapes, tmp_path).outcome
    assert (outcome.step, outcome.finished) == (3, True), "one evaluation is the best, two are no better"
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["reason"] for r in records if r["event"] == "early"] == ["no better mask AP in 2 evaluations"]
    assert (tmp_path / "last.safetensors").exists()


def test_hours_end_a_training_that_can_be_continued(shapes: Path, tmp_path: Path) -> None:
    recipe = tiny.tiny_recipe("iterations=3")
    first = fit(recipe, shapes, tmp_path, device="cpu", workers=0, hours=1e-9)
    assert (first.outcome.step, first.outcome.finished) == (1, True)
    assert first.outcome.accuracy is not None
    assert (tmp_path / "last.safetensors").exists()
    assert fit(recipe, shapes, tmp_path, device="cpu", workers=0, resume=True).outcome.step == 3


def test_all_augmentations_and_focal_loss_together(shapes: Path, tmp_path: Path) -> None:
    recipe = tiny.tiny_recipe(
        "augmentation.flip=yes", "augmentation.rotate=yes", "augmentation.copy_paste=0.7", "balance=0.5",
        "class_loss=focal", "iterations=3",
    )  # fmt: skip
    train(recipe, shapes, tmp_path)
    assert all(math.isfinite(sum(losses.values())) for _, losses, *_ in curve(tmp_path))


@pytest.mark.parametrize("settings", few([(), ("config.image_size=64x96", "config.prior_size=128")], 1))
def test_sizes_vary_from_batch_to_batch(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    """The network sees each batch at its size, and is that of the recipe's size afterwards."""
    sizes: list[tuple[int, ...]] = []
    make = TrainStep.__call__

    def step(self: TrainStep, batch: Batch, number: int) -> None:
        make(self, batch, number)
        sizes.append(tuple(batch.images.shape[1:3]))

    monkeypatch.setattr(TrainStep, "__call__", step)
    recipe = tiny.tiny_recipe("augmentation.multi_scale=1,2.5", "iterations=4", *settings)
    assert train(recipe, shapes, tmp_path / "run").outcome.finished
    assert len(set(sizes)) > 1
    assert load_model(tmp_path / "run" / "last.safetensors").config.with_classes(1) == recipe.config.with_classes(1)
    assert all(math.isfinite(sum(losses.values())) for _, losses, *_ in curve(tmp_path / "run"))


def test_a_batch_of_another_size_is_that_of_a_network_of_its_size() -> None:
    step = make_step()
    images = torch.rand(2, 128, 160, 3) * 255
    batch = Batch(
        images=images, counts=(1, 1), boxes=torch.tensor([[8.0, 8, 120, 100], [20, 20, 60, 90]]),
        labels=torch.tensor([0, 1]), mask_bits=torch.full((2, 128, 20), 255, dtype=torch.uint8),
        area=torch.tensor([9000.0, 2800]), iscrowd=torch.tensor([False, False]), image_ids=(0, 1),
    )  # fmt: skip
    step.model.eval()
    config, priors = step.model.config, step.model.priors
    with torch.no_grad(), step._at_size_of(batch):
        inside, resized = step.model.heads(step.normalize(images)), step.model.config
    assert resized.input_shape == (128, 160)
    assert resized.prior_scales == config.prior_scales
    assert (step.model.config, step.model.priors) == (config, priors)
    with torch.no_grad():
        expected = step.model.at_size(resized).heads(step.normalize(images))
    assert all(torch.equal(one, other) for one, other in zip(inside, expected, strict=True))
    step.model.train()
    step(batch, 1)
    losses, skipped = step.read()
    assert skipped == 0
    assert losses["box"] > 0


# -- several processes ----------------------------------------------------------------------------------------------


def test_a_batch_that_cannot_be_shared() -> None:
    with pytest.raises(InputError, match="--set batch=9"):
        World(torch.device("cpu"), size=3).share(8)


@pytest.mark.slow
def test_two_processes_train_as_one(shapes: Path, undisturbed: FitResult, tmp_path: Path) -> None:
    """The same batches, summed in another order: losses to 1e-4, weights to 1e-5 of their largest."""
    command = [
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "yolact_deploy", "train",
        "--recipe", "shapes_demo", "--data", str(shapes), "--output", str(tmp_path), "--device", "cpu",
        "--workers", "0", "--quiet", *tiny.as_arguments(),
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, *command], cwd=tiny.ROOT, env=tiny.environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    pairs = list(zip(curve(tmp_path), curve(undisturbed.folder), strict=True))
    assert len(pairs) == 12
    for (_, losses, gradient, _), (_, expected, expected_gradient, _) in pairs:
        assert losses == pytest.approx(expected, rel=1e-4)
        assert gradient == pytest.approx(expected_gradient, rel=1e-3)
    one, two = (read_state_dict(f / "last.safetensors")[0] for f in (undisturbed.folder, tmp_path))
    for name, value in one.items():
        assert torch.allclose(two[name], value, rtol=0, atol=1e-5 * max(float(value.abs().max()), 1e-3)), name
    scores = [json.loads((f / "result.json").read_text())["accuracy"] for f in (undisturbed.folder, tmp_path)]
    assert scores[0]["images"] == scores[1]["images"]
    assert scores[0]["detections"] == scores[1]["detections"]


@pytest.mark.slow
def test_torchrun_is_told_to_stop(shapes: Path, tmp_path: Path) -> None:
    """SIGTERM to torchrun, which passes it on to the whole groups of its processes: all save after the same step."""
    command = [
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "yolact_deploy", "train",
        "--recipe", "shapes_demo", "--data", str(shapes), "--output", str(tmp_path), "--device", "cpu",
        "--workers", "1", "--quiet", *tiny.as_arguments((*tiny.SETTINGS, "iterations=2000", "save_interval=2000")),
    ]  # fmt: skip
    child = subprocess.Popen(
        [sys.executable, *command], cwd=tiny.ROOT, env=tiny.environment(), stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while len(read_log(tmp_path / "log.jsonl")) < 5 and time.monotonic() < deadline:
            time.sleep(0.1)
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=60)
    finally:
        child.kill()
    (state,) = tmp_path.glob("state_*.pt")
    assert f"state_{len(curve(tmp_path)):08d}.pt" == state.name


# -- inputs of any shape ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit_words", ["letterbox", pytest.param("stretch", marks=pytest.mark.slow)])
def test_a_network_of_another_shape_trains(shapes: Path, tmp_path: Path, fit_words: str) -> None:
    """Training, evaluation and the checkpoint, whose input is what it was trained with."""
    recipe = tiny.tiny_recipe("config.image_size=64x96", f"config.fit={fit_words}", "iterations=2", "eval_interval=2")
    result = train(recipe, shapes, tmp_path / "run")
    assert result.outcome.finished
    losses = [values for _, values, _, _ in curve(result.folder)]
    assert all(map(math.isfinite, losses[-1].values()))
    config = load_model(result.folder / "last.safetensors").config
    assert (config.input_shape, config.fit) == ((64, 96), fit_words)
    assert config == recipe.config.with_classes(config.class_names, config.category_ids)
