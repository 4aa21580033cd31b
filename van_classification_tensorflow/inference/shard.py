"""The inputs of one run dealt to several processes, without a word between them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from ..support.text import shown

Input = TypeVar("Input")


@dataclass(frozen=True)
class Shard:
    """One of several processes that predict the same inputs.

    They are dealt in blocks, in turn, each block the pictures that go through the model at once:
    the last bits of a result may depend on the batch, so each batch is one of a single process.

    Args:
        number: From 0 to `count` - 1.
        count: How many processes there are.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: object) -> Shard:
        """The shard that "I/N" means; one is given back.

        Raises:
            ValueError: It is something else.
        """
        if isinstance(text, cls):
            return text
        found = isinstance(text, str) and re.fullmatch(r"([0-9]{1,5})/([0-9]{1,5})", text)
        if not found or int(found[1]) >= int(found[2]):
            raise ValueError(
                "`shard` must be I/N, I from 0 to N - 1 and N at most 99999, such as 0/4. "
                f"Received: shard={shown(text)}"
            )
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, inputs: Sequence[Input], block: int) -> list[Input]:
        """Its share, in order: of each `count` blocks of so many inputs one."""
        starts = range(self.number * block, len(inputs), self.count * block)
        return [one for start in starts for one in inputs[start : start + block]]

    def part_of(self, output: Path) -> Path:
        """Where its results lie until they are merged: beside the output."""
        return output.with_name(f"{output.name}.{self.number}-of-{self.count}.part")


def turns(inputs: int, count: int, block: int) -> Iterator[tuple[int, int]]:
    """(number of a shard, how many inputs it takes) until so many inputs are dealt."""
    for turn, start in enumerate(range(0, inputs, block)):
        yield turn % count, min(block, inputs - start)


def digest_of(names: Iterable[str], count: int, block: int) -> str:
    """SHA-256 of all names of the inputs in their order, and of how they are dealt."""
    digest = sha256(f"{count} {block}".encode())
    for name in names:
        data = name.encode("utf-8", "surrogatepass")  # a name need not be text
        digest.update(b"%d:" % len(data))
        digest.update(data)
    return digest.hexdigest()
