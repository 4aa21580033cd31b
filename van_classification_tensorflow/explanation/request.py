"""What `van explain` is asked for, checked before any work is done."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..inference.request import ClassifierOptions
from ..support.checks import at_least, at_least_or_none, is_number
from ..support.options import option, same_as
from ..support.text import printable
from ..weights.address import address_of
from .folder import FOLDER
from .kinds import METHODS, PIXELS

_BEST = re.compile(r"top(\d{0,6})")


@dataclass(frozen=True, kw_only=True)
class ExplainRequest:
    """The options of `van explain`.

    Args:
        paths: As in `images.find.expand`.
        output: Folder to make: pictures, arrays and `folder.INDEX`.
        weights: As in `Classifier`, but no exported file.
        classes: Names, WordNet ids, indices, "top" or "top3": for the class that each picture is
            taken for, or its three best.
        methods: As `method` of `explain`.
        layers: As `layer` of `explain`, one map for each; "all": every block. None: its default.
        sheet: Write a contact sheet of each picture, methods x classes.
        opacity: Of the colours.
        steps: As in `explain`.
        samples: As in `explain`.
        noise: As in `explain`.
        seed: As in `explain`.
        test_size: As in `Classifier`.
        batch_size: As in `explain`.
        workers: As in `Classifier`.
        max_pixels: As in `Classifier`.
        overwrite: Replace an earlier output.

    Raises:
        ValueError: An option is not allowed, or does not go with another.
        OSError: The output is in the way or cannot be written.
    """

    paths: tuple[str, ...] = option(
        "pictures, folders (searched at any depth), patterns, or - for a list or a picture "
        "on the standard input",
        flag="path",
    )
    output: Path = option("folder to make: a picture and an array of each map, and a record of all")
    weights: Any = option(
        "a name of `van weights list`, van_b0 ... for its ImageNet-1k weights, a weight file, or "
        "hf://USER/NAME (default: {default})",
        "van_b0",
    )
    classes: tuple[str, ...] = option(
        "what to explain: top (the class a picture is taken for), top3 (its three best), and "
        "classes by name, WordNet id or index; several may be given (default: {default})",
        ("top",),
        flag="--class",
        metavar="CLASS",
    )
    methods: tuple[str, ...] = option(
        f"how: {', '.join(METHODS)}; several may be given (default: {{default}})",
        ("grad-cam",),
        flag="--method",
        metavar="METHOD",
    )
    layers: tuple[str, ...] | None = option(
        "where: block4_1, norm4, ... or all (every block); several may be given (default: the "
        "last block, of hires-cam the last norm, whose map has more than one position)",
        None,
        flag="--layer",
        metavar="LAYER",
    )
    sheet: bool = option("write a contact sheet of each picture: methods x classes", False)
    opacity: float = option("of the colours, 0 to 1 (default: {default})", 0.55)
    steps: int = option("of integrated-gradients (default: {default})", 32)
    samples: int = option("of smooth-grad (default: {default})", 16)
    noise: float = option(
        "of smooth-grad, a share of the picture's range (default: {default})", 0.15
    )
    seed: int = option("of smooth-grad (default: {default})", 0)
    test_size: int | None = same_as(ClassifierOptions, "test_size")
    batch_size: int = option("pictures at once (default: {default})", 32)
    workers: int | None = same_as(ClassifierOptions, "workers")
    max_pixels: int = same_as(ClassifierOptions, "max_pixels")
    overwrite: bool = option("replace an earlier output", False)

    def __post_init__(self) -> None:
        for name in ("batch_size", "steps", "samples", "max_pixels"):
            at_least(name, getattr(self, name), 1)
        at_least("seed", self.seed, 0)
        at_least_or_none("workers", self.workers, 1)
        at_least_or_none("test_size", self.test_size, 1)
        for name, most in (("opacity", 1), ("noise", 10)):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value <= most:
                raise ValueError(f"`{name}` must be from 0 to {most}. Received: {name}={value!r}")
        for one in self.methods:
            if one not in METHODS:
                raise ValueError(
                    f"`methods` must be of {', '.join(METHODS)}. Received: {printable(one)}"
                )
        pixels = [one for one in self.methods if METHODS[one].at == PIXELS]
        if self.layers is not None and len(pixels) == len(self.methods):
            raise ValueError(
                f"`layers` must be left out for {', '.join(pixels)}, which look at the pixels. "
                f"Received: {' '.join(map(printable, self.layers))}"
            )
        for one in self.classes:
            best = _BEST.fullmatch(one)
            if best is not None and best[1] == "0":
                raise ValueError(f"`classes` must name one at least. Received: {one}")
        if address_of(self.weights).kind == "exported":
            raise ValueError(
                f"`weights` must be a weight file or a name: {printable(str(self.weights))} is an "
                "exported file, whose inside cannot be looked at. Give the weights that it was "
                "made from"
            )
        FOLDER.check(self.output, self.overwrite)


def best_of(word: str) -> int | None:
    """How many of a picture's best classes a word asks for: 1 of "top", 3 of "top3"; else None."""
    found = _BEST.fullmatch(word)
    return None if found is None else int(found[1] or 1)
