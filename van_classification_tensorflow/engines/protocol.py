"""What an engine tells of a file that it has opened, and how it runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Spec = tuple[list[Any] | None, str]  # shape, None where not even the axes are known; dtype


@dataclass(frozen=True)
class Loaded:
    """What a runtime tells of a file, and how it runs it."""

    metadata: str | None
    inputs: list[Spec]
    outputs: list[Spec]
    run: Callable[[np.ndarray], Any]
