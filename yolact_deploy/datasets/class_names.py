"""Whether the classes of a model are those of a dataset: a category id must stand for the same name in both.

Annotations and results have ids alone, so a model scored on other classes of the same ids would get a figure that means
nothing.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import DatasetError
from yolact_deploy.progress import NOTE
from yolact_deploy.untrusted import shown
from yolact_deploy.vocabulary import CLASS_MATCHES, check_word

_log = logging.getLogger(__name__)

#: names that stand for none, such as those that a checkpoint without names gets
_NO_NAME = re.compile(r"(class[ _-]?\d+)?", re.IGNORECASE)
_BETWEEN = re.compile(r"[\s_-]+")
_MOST_SHOWN = 3


@dataclass(frozen=True)
class NamePair:
    """What a category id is called on two sides."""

    number: int
    first: str
    second: str

    @property
    def unnamed(self) -> bool:
        """Whether a side has no name for it."""
        return any(_NO_NAME.fullmatch(name.strip()) for name in (self.first, self.second))

    @property
    def same(self) -> bool:
        """Whether the names are equal but for case, and for spaces, hyphens, and underscores between words.

        >>> NamePair(10, "traffic light", "Traffic_Light").same
        True
        """
        return _plain(self.first) == _plain(self.second)


def name_pairs(first: Mapping[int, str], second: Mapping[int, str]) -> list[NamePair]:
    """The ids that both sides have and spell differently, in ascending order."""
    shared = sorted(first.keys() & second.keys())
    return [NamePair(n, first[n], second[n]) for n in shared if first[n] != second[n]]


def other_names(first: Mapping[int, str], second: Mapping[int, str]) -> list[NamePair]:
    """The ids that stand for other classes on both sides, in ascending order."""
    return [pair for pair in name_pairs(first, second) if not (pair.unnamed or pair.same)]


@dataclass(frozen=True)
class AnnotatedClasses:
    """The classes of a dataset.

    Attributes:
        source: where they are from, for errors
        names: by category id
        used: ids that annotations use; if there are none, all of ``names`` count
        match: how a model's classes are found, one of :data:`~yolact_deploy.vocabulary.CLASS_MATCHES`
    """

    source: str
    names: Mapping[int, str]
    used: frozenset[int]
    match: str = CLASS_MATCHES[0]

    @classmethod
    def of(
        cls, content: Mapping[str, Any], source: str | os.PathLike[str], match: str = CLASS_MATCHES[0]
    ) -> AnnotatedClasses:
        """Those of the content of a COCO file, whose categories are sound; annotations need not be."""
        check_word("match_classes", match, CLASS_MATCHES)
        names = {category["id"]: category["name"] for category in content["categories"]}
        ids = (record.get("category_id") for record in content["annotations"] if isinstance(record, dict))
        return cls(os.fspath(source), names, frozenset(number for number in ids if isinstance(number, int)), match)

    def category_ids(self, config: YolactConfig, model: str | None = None) -> tuple[int, ...]:
        """The id in the dataset of each class of a model.

        Args:
            config: of the model
            model: what errors call the model; by default the name of its configuration

        Raises:
            DatasetError: the dataset uses classes that the model does not have, or has other classes under its ids.
        """
        model = model or config.name
        if self.match == "name":
            return self._by_name(config, model)
        if unknown := sorted(self.used - set(config.category_ids)):
            raise DatasetError(
                f"{self.source}: annotations use category ids {_some(unknown)} that {model} ({config.num_classes} "
                f"classes) does not know: {self._cure(unknown, config)}"
            )
        of_model = dict(zip(config.category_ids, config.class_names, strict=True))
        pairs = name_pairs({n: name for n, name in self.names.items() if self._counts(n)}, of_model)
        other = [pair for pair in pairs if not (pair.unnamed or pair.same)]
        if other and self.match != "id":
            raise DatasetError(
                f"{self.source} has other classes than {model} under the same category ids: {_described(other)}: "
                f"{self._cure([pair.number for pair in other], config)}"
            )
        self._report(pairs, model)
        return tuple(config.category_ids)

    def _counts(self, number: int) -> bool:
        return number in self.used or not self.used

    def _cure(self, numbers: Collection[int], config: YolactConfig) -> str:
        known = set(map(_plain, config.class_names))
        if all(_plain(self.names.get(number, "")) in known for number in numbers):
            return "the model has these classes under other ids: add --match-classes name"
        cure = "give annotations of the classes the model was trained on"
        if set(numbers) <= set(config.category_ids):
            cure += ". If they are the same classes by other names, add --match-classes id"
        return cure

    def _by_name(self, config: YolactConfig, model: str) -> tuple[int, ...]:
        place = _places(config.class_names, f"{model}: classes")
        ids = _places(self.names.values(), f"{self.source}: categories")
        numbers = list(self.names)
        missing = [name for n, name in self.names.items() if self._counts(n) and _plain(name) not in place]
        if missing:
            raise DatasetError(
                f"{self.source}: {model} has no class called {_some(list(map(shown, missing)))}, only "
                f"{_some(list(map(shown, config.class_names)))}: give annotations of the classes the model was trained "
                "on, or leave out --match-classes name"
            )
        unused = (number for number in count(1) if number not in self.names)
        chosen = [numbers[ids[_plain(name)]] if _plain(name) in ids else next(unused) for name in config.class_names]
        if without := [name for name in config.class_names if _plain(name) not in ids]:
            _log.log(NOTE, "%s does not have %d classes of %s (%s): their detections do not count",
                     self.source, len(without), model, _some(list(map(shown, without))))  # fmt: skip
        return tuple(chosen)

    def _report(self, pairs: Collection[NamePair], model: str) -> None:
        """What was accepted although names differ."""
        same = [pair for pair in pairs if pair.same and not pair.unnamed]
        unnamed = [pair for pair in pairs if pair.unnamed]
        other = [pair for pair in pairs if not (pair.same or pair.unnamed)]
        if same or other:
            _log.log(NOTE, "%s: category %s: taken for the same classes", self.source, _described([*other, *same]))
        if unnamed:
            _log.log(NOTE, "%s: %d classes have a name only there or only in %s, so category ids alone decide (%s)",
                     self.source, len(unnamed), model, _described(unnamed[:1]))  # fmt: skip


def _places(names: Iterable[str], what: str) -> dict[str, int]:
    """The place of each name in plain form; raises :class:`DatasetError` if two are the same."""
    places: dict[str, int] = {}
    for place, name in enumerate(names):
        if places.setdefault(_plain(name), place) != place:
            raise DatasetError(f"{what}: two are called {shown(name)}, so names do not tell them apart: rename one")
    return places


def _described(pairs: Collection[NamePair]) -> str:
    return _some([f"{p.number} is {shown(p.first)} in the file and {shown(p.second)} in the model" for p in pairs])


def _some(values: Sequence[object]) -> str:
    more = len(values) - _MOST_SHOWN
    return ", ".join(map(str, values[:_MOST_SHOWN])) + (f" and {more} more" if more > 0 else "")


def _plain(name: str) -> str:
    return _BETWEEN.sub(" ", name).strip().casefold()
