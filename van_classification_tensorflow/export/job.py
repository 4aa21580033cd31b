"""What a writer of a format is given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..spec.card import About
from .source import Source


@dataclass(frozen=True)
class Job:
    """What a writer needs to know."""

    source: Source
    about: About
    batch_size: int | None
    image_size: int | None
    fused: bool
    calibration: np.ndarray

    def batches(self) -> Iterator[np.ndarray]:
        """The calibration pictures as the exported file will get them, the last batch filled up."""
        size, count = self.batch_size or 1, len(self.calibration)
        for start in range(0, count, size):
            yield self.inputs(self.calibration[np.arange(start, start + size) % count])

    def inputs(self, crops: np.ndarray) -> np.ndarray:
        return crops if self.about.input == "uint8" else self.source.preprocessing.normalise(crops)
