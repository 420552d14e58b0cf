"""What a service runs and its limits, as one value that can be sent to worker processes."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from yolact_deploy.errors import InputError
from yolact_deploy.loading import ModelSpec
from yolact_deploy.untrusted import parse_json, shown

#: the environment variable that hands the settings to worker processes
SETTINGS_VARIABLE = "YOLACT_DEPLOY_SERVICE"
#: names of models, as they stand in addresses
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """What a service runs, and its limits.

    Attributes:
        models: the spelling of each model (see :class:`~yolact_deploy.loading.ModelSpec`) by its name in addresses
        score_threshold: of the models; a request may raise it and not lower it
        predictors: networks of each model in a process; 0 chooses: one per core on the CPU, one on a GPU
        threads: CPU threads of each network; 0 chooses: 1 on the CPU where there are several predictors
        max_batch: pictures of one call of the network; 0 chooses: 1 on the CPU, the file's largest batch on a GPU
        max_delay_ms: how long the first picture of a batch waits for others
        queue: pictures of each model that may wait in a process; one more is refused with 429
        timeout_s: how long an accepted request may take before it is refused with 503
        body_timeout_s: how long the header and the body of a request may each take to arrive
        shutdown_s: how long accepted requests may take once the service is asked to end
        max_body_bytes: of a request, and of a picture that is fetched from a URL
        max_pixels: of a picture
        allow_urls: fetch pictures from public addresses for a client
        workers: processes

    Raises:
        InputError: a value out of range, or a name that cannot stand in an address.
    """

    models: dict[str, str]
    score_threshold: float = 0.15
    predictors: int = 0
    threads: int = 0
    max_batch: int = 0
    max_delay_ms: float = 2.0
    queue: int = 64
    timeout_s: float = 30.0
    body_timeout_s: float = 10.0
    shutdown_s: float = 30.0
    max_body_bytes: int = 32 << 20
    max_pixels: int = 50_000_000
    allow_urls: bool = False
    workers: int = 1

    def __post_init__(self) -> None:
        if not self.models:
            raise InputError("a service needs at least one model")
        for name in self.models:
            if not _NAME.fullmatch(name):
                raise InputError(
                    f"model name {shown(name)}: expected letters, digits, '.', '_' and '-': give it one as NAME=MODEL"
                )
        if not 0 <= self.score_threshold < 1:
            raise InputError(f"score_threshold: expected 0 <= value < 1, got {self.score_threshold}")
        for limit in (
            _Limit("predictors", 0, 256), _Limit("threads", 0, 1024), _Limit("max_batch", 0, 1024),
            _Limit("max_delay_ms", 0, 10_000), _Limit("queue", 1, 100_000), _Limit("timeout_s", 0.1, 3600),
            _Limit("body_timeout_s", 0.1, 3600), _Limit("shutdown_s", 0, 3600), _Limit("max_body_bytes", 1024, 1 << 40),
            _Limit("max_pixels", 1, 10**12), _Limit("workers", 1, 256),
        ):  # fmt: skip
            limit.check(getattr(self, limit.name))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_environment(cls) -> ServiceSettings:
        """The settings that the parent of this process left in :data:`SETTINGS_VARIABLE`."""
        return cls.from_json(os.environ.get(SETTINGS_VARIABLE, ""), SETTINGS_VARIABLE)

    @classmethod
    def from_json(cls, text: str, what: str = "settings of a service") -> ServiceSettings:
        """What :meth:`to_json` wrote.

        Raises:
            InputError: it is something else.
        """
        values: dict[str, Any] = parse_json(text, what, InputError)
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) - known:
            raise InputError(f"{what}: expected an object with {', '.join(sorted(known))}")
        return cls(**values)


@dataclass(frozen=True)
class _Limit:
    name: str
    least: float
    most: float = field(default=math.inf)

    def check(self, value: float) -> None:
        if not self.least <= value <= self.most:
            raise InputError(f"{self.name}: expected {self.least:g} to {self.most:g}, got {shown(value)}")


def named_models(texts: Iterable[str]) -> dict[str, str]:
    """The spelling of each model by its name: that of ``NAME=MODEL``, else the stem of its file.

    Raises:
        InputError: two models of one name, or a spelling that is wrong.
    """
    models: dict[str, str] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        named = bool(equals) and _NAME.fullmatch(name) is not None and not os.path.lexists(text)
        spelling = rest if named else text
        stem = ModelSpec.parse(spelling).path.stem
        name = name if named else re.sub(r"[^A-Za-z0-9_.-]", "_", Path(stem).name)
        if name in models:
            raise InputError(
                f"two models are called {name!r}, {models[name]} and {spelling}: give one another name as NAME=MODEL"
            )
        models[name] = spelling
    return models
