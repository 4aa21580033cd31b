"""What every engine is, and what those of exported files tell of a file that they have opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

FLOAT32 = np.dtype(np.float32)


class Engine(Protocol):
    """A model that is ready to run, whatever computes it.

    Attributes:
        format: "numpy", "keras", or the format of an exported file.
        dtype: Of its images: float32, normalised, or uint8, pixels of 0 to 255.
    """

    @property
    def format(self) -> str: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __call__(self, images: np.ndarray, features: bool = False) -> np.ndarray:
        """Runs the model.

        Args:
            images: (N, H, W, C) of `dtype`.
            features: Give pooled features instead of logits. An exported file gives what it was
                written for.

        Returns:
            (N, outputs), float32.
        """
        ...


Spec = tuple[list[Any] | None, str]  # shape, None where not even the axes are known; dtype


@dataclass(frozen=True)
class Loaded:
    """What a runtime tells of a file, and how it runs it; `shared`: for several threads at once."""

    metadata: str | None
    inputs: list[Spec]
    outputs: list[Spec]
    run: Callable[[np.ndarray], Any]
    shared: bool = False
