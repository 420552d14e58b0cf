"""The models of a service, and waiting for their answers without blocking the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from starlette.requests import Request

from yolact_deploy.serving.model_pool import Job, ModelPool
from yolact_deploy.serving.service_errors import RequestError, bad_request, too_late
from yolact_deploy.serving.service_metrics import ServiceMetrics
from yolact_deploy.serving.service_settings import ServiceSettings
from yolact_deploy.untrusted import shown


class ServedModels:
    """The pool of each model by its name.

    Raises:
        YolactDeployError: a model cannot be loaded.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings, self.metrics = settings, ServiceMetrics()
        self.pools: dict[str, ModelPool] = {}
        with contextlib.ExitStack() as stack:
            for name, spelling in settings.models.items():
                self.pools[name] = ModelPool(name, spelling, settings, self.metrics)
                stack.callback(self.pools[name].close)
            stack.pop_all()

    def close(self) -> None:
        """Finish what was accepted and free all models."""
        for pool in self.pools.values():
            pool.close()

    def pool(self, name: str | None) -> ModelPool:
        """The pool of a model; without a name, that of the only one.

        Raises:
            RequestError: no such model, or several and no name.
        """
        known = ", ".join(self.pools)
        if name is None:
            if len(self.pools) > 1:
                raise bad_request(f"model: expected one of {known}: this service has several models")
            return next(iter(self.pools.values()))
        if name not in self.pools:
            raise bad_request(f"no model {shown(name)}: this service has {known}", status=404, reason="model")
        return self.pools[name]

    def deadline(self) -> float:
        """When a request that arrives now has to be finished, in seconds of ``time.monotonic``."""
        return time.monotonic() + self.settings.timeout_s

    async def answers(self, request: Request, pool: ModelPool, jobs: Sequence[Job]) -> list[Any]:
        """Submit jobs and wait for all answers; jobs whose client goes away, or whose time is over, are canceled.

        Raises:
            RequestError: the queue is full, the time is over, or one of the jobs is refused.
            YolactDeployError: the network failed.
        """
        pool.submit(*jobs)
        answers: asyncio.Future[list[Any]] = asyncio.gather(*(asyncio.wrap_future(job.answer) for job in jobs))
        gone: asyncio.Future[None] = asyncio.ensure_future(_disconnected(request))
        remaining = max(0.0, jobs[0].deadline - time.monotonic())
        try:
            waiting: set[asyncio.Future[Any]] = {answers, gone}
            await asyncio.wait(waiting, timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
            if answers.done():
                return answers.result()
            if gone.done():
                raise RequestError(499, "the client went away", reason="disconnected")
            raise too_late(self.settings.timeout_s)
        finally:
            gone.cancel()
            answers.cancel()
            for job in jobs:
                _cancel(job.answer)
            with contextlib.suppress(BaseException):
                await answers


def _cancel(answer: Future[Any]) -> None:
    if not answer.done():
        answer.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def models_of(request: Request) -> ServedModels:
    """The models of the application that received the request."""
    models: ServedModels = request.app.state.models
    return models
