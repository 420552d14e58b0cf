"""The problems that a dataset can have, how severe each is, how to fix it, and the record of those detected.

An error makes every command refuse the dataset. A warning says what happens to the record concerned.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from yolact_deploy.errors import DatasetError

_log = logging.getLogger(__name__)

_MOST_EXAMPLES = 5
_MOST_LISTED = 6
_LONGEST_EXAMPLE = 250

#: kind -> (is an error, fix)
KINDS: dict[str, tuple[bool, str]] = {
    "no images": (True, "give an annotation file that lists some"),
    "no objects": (True, "give annotations of objects (iscrowd 0) that have a mask"),
    "malformed image record": (True, "give each image an integer id, a file_name, and its height and width"),
    "duplicate image id": (True, "remove one of the records, or merge the datasets again with new ids"),
    "file name outside the folder": (
        True,
        "give names relative to the folder of the pictures; absolute and Windows paths and '..' lead out of it",
    ),
    "missing image": (True, "complete the folder, correct 'images', or remove the records"),
    "unreadable image": (True, "replace the file, or remove its record and annotations"),
    "image of another size": (True, "correct height and width in the record; turn pictures upright before annotating"),
    "malformed annotation": (
        True,
        "give each id, image_id, category_id, bbox and segmentation, numbers not as text",
    ),
    "duplicate annotation id": (True, "renumber the annotations"),
    "annotation of an unknown image": (
        True,
        "correct image_id, an integer that is in 'images', or remove it",
    ),
    "unknown category id": (
        True,
        "add the class to the names of the dataset, correct the id, or remove the annotation",
    ),
    "impossible box": (
        True,
        "a box is [x, y, width, height]: four finite numbers, the last two not negative",
    ),
    "empty mask": (True, "draw a polygon of three points or more, or remove the annotation"),
    "malformed mask": (True, "a mask is a list of polygons [x, y, x, y, ...], or run lengths of the image's size"),
    "box without area": (False, "left out in training; redraw it or remove the annotation"),
    "box outside its image": (False, "left out in training; are its numbers x, y, width, height in pixels?"),
    "box partly outside its image": (False, "clipped at the border; are its numbers x, y, width, height in pixels?"),
    "mask without area": (False, "left out in training; redraw it or remove the annotation"),
    "polygon of fewer than three points": (False, "that part of the mask is left out; redraw it"),
    "box that does not fit its mask": (
        False,
        "both are used as they are; is the box x, y, width, height? Recompute it from the mask",
    ),
    "no area": (False, "computed from the mask"),
    "duplicate annotation": (False, "both are used; remove one"),
    "duplicate image file": (False, "both are used; merge their annotations into one record"),
    "image without objects": (False, "used as background, unless left out; annotate it if it shows objects"),
    "class without objects": (False, "it will not be learned; annotate some, or remove it from the names"),
    "image in several splits": (False, "this inflates the score of val; remove them from one split"),
}


#: errors of single records, which can be left out; the others leave nothing to work with
_SKIPPABLE = frozenset(kind for kind, (is_error, _) in KINDS.items() if is_error) - {"no images", "no objects"}
#: warnings about records that can change a score
_SCORING = ("polygon of fewer than three points", "box that does not fit its mask", "no area")


@dataclass
class Problem:
    """One kind of problem: how often it occurs, and the first examples."""

    kind: str
    count: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def is_error(self) -> bool:
        return KINDS[self.kind][0]

    @property
    def fix(self) -> str:
        return KINDS[self.kind][1]

    def to_json(self) -> dict[str, Any]:
        severity = "error" if self.is_error else "warning"
        return {"kind": self.kind, "severity": severity, "count": self.count, "examples": self.examples,
                "fix": self.fix}  # fmt: skip

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        examples = f" ({'; '.join(self.examples)}{more})" if self.examples else ""
        return f"{self.count} x {self.kind}{examples}: {self.fix}"


class Findings:
    """The problems of one file, errors first."""

    def __init__(self) -> None:
        self._problems: dict[str, Problem] = {}

    def add(self, kind: str, example: str = "", count: int = 1) -> None:
        """Count one more problem of a kind of :data:`KINDS`."""
        assert kind in KINDS, kind
        problem = self._problems.setdefault(kind, Problem(kind))
        problem.count += count
        if example and len(problem.examples) < _MOST_EXAMPLES:
            problem.examples.append(example[:_LONGEST_EXAMPLE])

    @property
    def problems(self) -> list[Problem]:
        order = list(KINDS)
        return sorted(self._problems.values(), key=lambda problem: order.index(problem.kind))

    def settle(self, source: object, *, lenient: bool = False) -> None:
        """Raise :class:`DatasetError` with the list of errors in ``source``, if there are any; log what changes scores.

        Args:
            lenient: log how many records have errors instead, if leaving them out is enough
        """
        errors = [problem for problem in self.problems if problem.is_error]
        refuse(source, [problem for problem in errors if not (lenient and problem.kind in _SKIPPABLE)])
        if errors:
            listed = ". ".join(map(str, errors[:_MOST_LISTED]))
            _log.warning("%s: left out %d records: %s", source, sum(problem.count for problem in errors), listed)
        for problem in self.problems:
            if problem.kind in _SCORING:
                _log.warning("%s: %s", source, problem)


def refuse(source: object, errors: Sequence[Problem]) -> None:
    """Raise :class:`DatasetError` that lists ``errors``, if there are any."""
    if not errors:
        return
    listed = ". ".join(f"({i}) {problem}" for i, problem in enumerate(errors[:_MOST_LISTED], 1))
    more = f", and {len(errors) - _MOST_LISTED} more kinds" if len(errors) > _MOST_LISTED else ""
    skip = "; eval, bench, compare, export and train leave such records out with --lenient"
    cure = skip if all(problem.kind in _SKIPPABLE for problem in errors) else ""
    raise DatasetError(f"{source} cannot be used: {listed}{more}. 'yolact-deploy data check' lists all problems{cure}")
