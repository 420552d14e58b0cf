"""Which detections a user wants: scores above a threshold, some classes, the best few; and the settings of NMS.

What NMS keeps is one thing, and what is returned of it another. :class:`NmsSettings` changes the first, where NMS is
not fixed in a file; :class:`Selection` picks from the result, and works for every model.

Legend: n detections, C foreground classes.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import InputError
from yolact_deploy.untrusted import shown

#: score that a detection must exceed if the user names none
SCORE_THRESHOLD = 0.15
#: name of the threshold of all other classes in a mapping
OTHERS = "*"

#: one threshold, one for some classes ({"*": 0.3, "person": 0.5}), or the spelling "0.3,person=0.5"
ScoreThreshold = float | str | Mapping[str, float]


@dataclass(frozen=True)
class NmsSettings:
    """Settings of Fast NMS other than those of a model's configuration; None keeps the configuration's.

    Attributes:
        top_k: best candidates of each class that take part
        nms_iou: a detection is dropped if its IoU with a better one of its class is above this
        max_detections: detections of an image; fewer than the configuration's are picked after NMS
    """

    top_k: int | None = None
    nms_iou: float | None = None
    max_detections: int | None = None

    def applied(self, config: YolactConfig) -> YolactConfig:
        """The configuration with these settings.

        Raises:
            ConfigError: a value out of range.
        """
        changes: dict[str, Any] = {"top_k": self.top_k, "iou_threshold": self.nms_iou}
        if self.max_detections is not None and self.max_detections > config.max_detections:
            changes["max_detections"] = self.max_detections
        given = {name: value for name, value in changes.items() if value is not None}
        return dataclasses.replace(config, **given) if given else config

    def differences(self, config: YolactConfig) -> list[str]:
        """What :meth:`applied` changes, as options and the configuration's values."""
        changed = self.applied(config)
        fields = (("top_k", "top_k"), ("nms_iou", "iou_threshold"), ("max_detections", "max_detections"))
        return [
            f"{option}={getattr(changed, field):g} instead of {getattr(config, field):g}"
            for option, field in fields
            if getattr(changed, field) != getattr(config, field)
        ]


@dataclass(frozen=True, eq=False)
class Selection:
    """What is returned of an image's detections.

    Attributes:
        floor: the lowest threshold of a selected class; nothing below it is returned
        of_class: float32 [C], score that a detection of each class must exceed, infinite for classes that are not
            selected; None if ``floor`` says it all
        max_detections: the best so many of the rest; None for all
    """

    floor: float
    of_class: NDArray[np.float32] | None = None
    max_detections: int | None = None

    @classmethod
    def of(
        cls,
        class_names: Sequence[str],
        score_threshold: ScoreThreshold = SCORE_THRESHOLD,
        classes: Sequence[str] | None = None,
        max_detections: int | None = None,
    ) -> Selection:
        """From what a user gives, for the classes of a model.

        Raises:
            InputError: a value out of range, or a class that the model does not have.
        """
        if max_detections is not None and not (type(max_detections) is int and max_detections >= 1):
            raise InputError(f"max_detections: expected a number of 1 or more, got {shown(max_detections)}")
        if isinstance(classes, str):
            raise InputError(f"classes: expected a list of names, got the text {shown(classes)}")
        thresholds = _thresholds(score_threshold)
        named = {name: value for name, value in thresholds.items() if name != OTHERS}
        _check_names("score_threshold", named, class_names)
        _check_names("classes", classes or (), class_names)
        others = thresholds.get(OTHERS, SCORE_THRESHOLD)
        if not named and not classes:
            return cls(others, None, max_detections)
        wanted = [not classes or name in classes for name in class_names]
        values = [named.get(name, others) if keep else np.inf for name, keep in zip(class_names, wanted, strict=True)]
        return cls(min(values), np.array(values, np.float32), max_detections)

    @property
    def narrows(self) -> bool:
        """Whether it leaves out more than detections at or below :attr:`floor`."""
        return self.of_class is not None or self.max_detections is not None

    def rows(self, scores: NDArray[np.float32], labels: NDArray[np.integer[Any]]) -> NDArray[np.intp]:
        """Indices of the selected detections, in their order, given scores [n], best first, and labels [n]."""
        if self.of_class is None:
            return np.arange(len(scores))[: self.max_detections]
        return np.flatnonzero(scores > self.of_class[labels])[: self.max_detections]


def _thresholds(given: ScoreThreshold) -> dict[str, float]:
    if isinstance(given, str):
        given = dict(map(_threshold, filter(None, (part.strip() for part in given.split(",")))))
    elif not isinstance(given, Mapping):
        given = {OTHERS: given}
    for name, value in given.items():
        real = isinstance(value, (int, float, np.floating, np.integer)) and not isinstance(value, bool)
        if not (real and 0 <= value < 1):
            of = "" if name == OTHERS else f" of {name}"
            raise InputError(f"score_threshold{of}: expected 0 <= value < 1, got {shown(value)}")
    return {str(name): float(value) for name, value in given.items()}


def _threshold(text: str) -> tuple[str, float]:
    name, equals, value = text.rpartition("=")
    try:
        return (name.strip() if equals else OTHERS), float(value)
    except ValueError:
        raise InputError(
            f"score_threshold: expected a number, or CLASS=NUMBER for some classes, as in 0.3,person=0.5; got "
            f"{shown(text)}"
        ) from None


def _check_names(what: str, names: Sequence[str] | Mapping[str, float], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(f"{what}: the model has no class {shown(name)}: {hint}Its classes are {', '.join(known)}")
