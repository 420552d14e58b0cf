"""`Trainer`: the loop over the iterations, with logs, evaluations, saved states and stopping between them.

A training is a function of its recipe and its data. Stopped at any moment, by a signal or by force, it continues from
its last saved state with the same batches, random numbers and losses as an undisturbed one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from yolact_deploy.errors import ConfigError, DatasetError
from yolact_deploy.evaluation.accuracy import Accuracy
from yolact_deploy.model.checkpoint import save_checkpoint
from yolact_deploy.training.data.batch import Batch
from yolact_deploy.training.distributed import World
from yolact_deploy.training.interrupt import StopRequest
from yolact_deploy.training.monitors import PACE, TrainingMonitor
from yolact_deploy.training.recipe import Recipe
from yolact_deploy.training.schedule import learning_rate
from yolact_deploy.training.state import StateFolder, random_states, require_same, set_random_states
from yolact_deploy.training.step import TrainStep
from yolact_deploy.training.validation import with_weights

#: consecutive steps that are not finite, after which a training is aborted
MOST_SKIPPED = 100

Evaluate = Callable[[Mapping[str, Tensor]], Accuracy | None]
#: batches of this process, from an iteration on
Batches = Callable[[int], Iterable[Batch]]


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    step: int  #: iterations made
    finished: bool  #: False if it was stopped before the last one
    skipped: int  #: steps that were not finite, over the whole training
    accuracy: Accuracy | None  #: at the end; None without evaluation, or if it was stopped
    best: float | None  #: best mask AP of all evaluations


class Trainer:
    """Trains one model.

    Args:
        step: makes the steps
        batches: the training data
        folder: for states and weights
        identity: JSON values that must not change when the training is resumed
        evaluate: scores weights; all processes call it
        monitors: used in the main process
        hours: end the training after so much time of this run, as if the iterations were made
    """

    def __init__(
        self,
        step: TrainStep,
        batches: Batches,
        folder: Path,
        *,
        identity: Mapping[str, Any],
        evaluate: Evaluate | None = None,
        monitors: Iterable[TrainingMonitor] = (),
        hours: float | None = None,
    ) -> None:
        self.step, self.batches, self.folder, self.evaluate = step, batches, folder, evaluate
        self.recipe: Recipe = step.recipe
        self.world: World = step.world
        self.identity = dict(identity)
        self.monitors = list(monitors) if self.world.is_main else []
        self.states = StateFolder(folder, self.recipe.keep)
        self.done = 0  #: iterations made
        self.skipped = 0
        self.best: float | None = None
        self.stale = 0  #: evaluations since the best one
        self._end = None if hours is None else time.monotonic() + 3600 * hours
        self._logged = (0, 0.0)  # iteration and time of the last record

    def resume(self) -> bool:
        """Restore the last saved state; False if there is none.

        Raises:
            CheckpointError: it is damaged or belongs to another training.
        """
        state = self.states.latest()
        if state is None:
            return False
        require_same(self.states.states()[-1], state["identity"], self.identity)
        self.step.load_state_dict(state["training"])
        set_random_states(state["random"], self.world)
        self.done, self.skipped, self.best = state["step"], state["skipped"], state["best"]
        self.stale = state.get("stale", 0)
        return True

    def run(self) -> Outcome:
        """Make the remaining iterations.

        The first Ctrl-C, SIGTERM or SIGHUP stops after the current step and saves a state.

        Raises:
            ConfigError: too many consecutive steps were not finite.
        """
        self._restart_clock()
        with StopRequest() as stop:
            finished = self._iterate(stop)
        if not finished:
            return Outcome(self.done, False, self.skipped, None, self.best)
        accuracy = self._evaluate()
        if self.world.is_main:
            self._write_weights("last")
        return Outcome(self.done, True, self.skipped, accuracy, self.best)

    def _iterate(self, stop: StopRequest) -> bool:
        """Make all iterations; False if a signal stopped them."""
        recipe, total = self.recipe, self.recipe.iterations
        for batch in _with_plain_errors(islice(self.batches(self.done), total - self.done)):
            self.step(batch, self.done)
            self.done += 1
            self._pace()
            if self.done % recipe.log_interval == 0 or self.done == total:
                self._log()
            if self.world.any(stop.wanted):
                self._save()
                return self.done == total
            if recipe.eval_interval and self.done % recipe.eval_interval == 0 and self.done < total:
                self._evaluate()
            if self.done < total and (why := self._ends_early()):
                self._save()
                self.report("early", reason=why)
                return True
            if self.done % recipe.save_interval == 0 or self.done == total:
                self._save()
        return True

    def _ends_early(self) -> str:
        """Why the training ends before its last iteration; all processes call."""
        patience = self.recipe.patience
        if self.world.any(bool(patience) and self.stale >= patience):
            return f"no better mask AP in {patience} evaluations"
        if self._end is None:
            return ""
        return "its hours are over" if self.world.any(time.monotonic() >= self._end) else ""

    # -- between the steps ------------------------------------------------------------------------------------------

    def _log(self) -> None:
        losses, skipped = self.step.read()
        self.skipped += skipped
        if int(self.step.in_a_row) >= MOST_SKIPPED:
            raise ConfigError(
                f"the last {int(self.step.in_a_row)} steps were not finite: the training has diverged. Lower the "
                "learning rate (--set lr=...), limit the gradient (--set clip=10), or use --set amp=bf16"
            )
        gradient = losses.pop("gradient", 0.0)
        self.report(
            "step",
            losses=losses,
            loss=sum(losses.values()),
            gradient=gradient,
            lr=learning_rate(self.recipe, self.done - 1),
            skipped=skipped,
            **self._speed(),
        )
        self._restart_clock()

    def _speed(self) -> dict[str, float]:
        """Images per second since the last record, and the seconds that remain."""
        first, since = self._logged
        per_step = max(time.perf_counter() - since, 1e-9) / max(self.done - first, 1)
        return {"images_per_second": self.recipe.batch / per_step,
                "eta": per_step * (self.recipe.iterations - self.done)}  # fmt: skip

    def _pace(self) -> None:
        """Show every step from the first on; nothing is read from the GPU."""
        self.report(PACE, **self._speed())

    def _evaluate(self) -> Accuracy | None:
        if self.evaluate is None:
            return None
        accuracy = self.evaluate(self.step.weights())
        if accuracy is not None:
            score = accuracy.mask.ap if accuracy.mask else None
            is_best = score is not None and (self.best is None or score > self.best)
            self.stale = 0 if is_best else self.stale + 1
            if is_best:
                self.best = score
                self._write_weights("best")
            self.report("evaluation", **accuracy.to_json(), is_best=is_best)
        self._restart_clock()
        return accuracy

    def _save(self) -> None:
        """Write a state; all processes call, since each has its own random states."""
        states = random_states(self.world)
        if self.world.is_main:
            path = self.states.save(
                self.done,
                {
                    "identity": self.identity,
                    "training": self.step.state_dict(),
                    "random": states,
                    "skipped": self.skipped,
                    "best": self.best,
                    "stale": self.stale,
                },
            )
            self.report("saved", path=path.name)

    def _write_weights(self, name: str) -> None:
        """Write weights for `export` and `predict`, with the model's configuration and classes."""
        save_checkpoint(with_weights(self.step.model, self.step.weights()), self.folder / f"{name}.safetensors")

    def _restart_clock(self) -> None:
        self._logged = (self.done, time.perf_counter())

    def report(self, event: str, **values: Any) -> None:
        """Send a record to all monitors; only the main process has any."""
        for monitor in self.monitors:
            monitor.write({"event": event, "step": self.done, **values})


def _with_plain_errors(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches; errors come without the traceback that a worker puts before them."""
    try:
        yield from batches
    except DatasetError as error:
        raise DatasetError(str(error).rpartition("DatasetError: ")[2].strip()) from error
