"""A part of the work on many pictures, for jobs that share nothing but their files, as those of a job array."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from yolact_deploy.errors import InputError
from yolact_deploy.untrusted import shown

Item = TypeVar("Item")

#: in the names of files: which shard of how many
SHARD_NAME = r"-(\d{1,9})-of-(\d{1,9})"


@dataclass(frozen=True)
class Shard:
    """Every ``count``-th item from ``index`` on, 0-based: neighbors differ less than the halves of a folder."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From ``i/n``, with i from 1 to n.

        >>> Shard.parse("2/8")
        Shard(index=1, count=8)

        Raises:
            InputError: anything else.
        """
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError(f"--shards: expected i/n with i from 1 to n, such as 2/8, got {shown(text)}")
        return cls(int(match[1]) - 1, int(match[2]))

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items of this part.

        >>> Shard(1, 3).of(range(8))
        range(1, 8, 3)
        """
        return items[self.index :: self.count]

    def some_of(self, items: Sequence[Item]) -> Sequence[Item]:
        """The pictures of this part.

        Raises:
            InputError: there are none.
        """
        part = self.of(items)
        if not part:
            raise InputError(
                f"--shards {self.index + 1}/{self.count}: there are only {len(items)} pictures: use fewer shards"
            )
        return part

    def name(self, stem: str) -> str:
        """A name for the results of this part.

        >>> Shard(1, 8).name("detections")
        'detections-2-of-8'
        """
        return f"{stem}-{self.index + 1}-of-{self.count}"


class Block(Shard):
    """One of ``count`` runs of neighbors, whose results one after the other are in the order of the items."""

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items of this part.

        >>> [list(Block(i, 3).of(range(8))) for i in range(3)]
        [[0, 1], [2, 3, 4], [5, 6, 7]]
        """
        return items[self.index * len(items) // self.count : (self.index + 1) * len(items) // self.count]
