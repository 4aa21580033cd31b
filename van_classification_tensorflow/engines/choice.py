"""The first engine of several that proves itself: it is there, runs, and gives the right answer.

Runtimes are programs of others, on processors of all kinds. So none is taken at its word: it
answers one picture, and what it says is compared with an answer that is known.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

import numpy as np

from ..support.extras import is_installed
from ..support.text import one_line

# Largest |difference| allowed, in parts of the largest |logit|. Of bfloat16 as much as the
# benchmark of deployed files allows it. What eight bits do to a logit says little: it is told, and
# what they do to the decision is measured.
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.05, "int8": np.inf}
# Share of pictures whose best class must be the same in int8. Every quantiser keeps 99 % and more
# of the bundled digits, and 94 % with a B0 of random weights, which hardly tells its classes apart;
# what has lost the range of a layer decides at random. This tells the two apart. Files of
# `van export`, which stay, are asked for more.
AGREEMENT = 0.9
# Largest |difference| in int8 where there is no decision, of features, or one of two classes only.
WITHOUT_CLASSES = 0.3

# Of an output of so few numbers the largest counts as so large at least.
_FEW, _LEAST_SCALE = 2, 1e-2

# {name: what users know it by, the module that is imported, its distribution}
_KNOWN = {
    "numpy": ("NumPy", "numpy", "numpy"),
    "keras": ("Keras", "keras", "keras"),
    "onnxruntime": ("ONNX Runtime", "onnxruntime", "onnxruntime"),
    "openvino": ("OpenVINO", "openvino", "openvino"),
    "litert": ("LiteRT", "ai_edge_litert", "ai-edge-litert"),
    "tensorflow": ("TensorFlow", "tensorflow", "tensorflow"),
}

Answer = Callable[[np.ndarray], Any]  # pictures (N, H, W, C) -> an array (N, ...), or several


@dataclass(frozen=True)
class Candidate:
    """An engine that may be chosen.

    Args:
        name: "numpy", "keras", "onnxruntime", "openvino" or "litert".
        make: Makes it: what answers pictures. May raise anything.
        tolerance: Gives the largest difference, where it is not that of the others, once the
            engine is made.
    """

    name: str
    make: Callable[[], Answer]
    tolerance: Callable[[], float | None] = lambda: None


@dataclass(frozen=True)
class Chosen:
    """An engine that was chosen, and why.

    Args:
        engine: What `Candidate.make` gave.
        name: As of `Candidate`.
        version: Of its package.
        precision: Of its arithmetic.
        threads: That it runs on; None: its own choice.
        reason: Why it is this one.
        difference: Largest |difference| from the reference, in parts of the reference's largest
            |number|; None where nothing was compared.
        rejected: What was tried before it, and why it is not that.
        reference: What `difference` is from.
        agreement: Share of the pictures of which the reference has the same best class; None
            where there was but one, or there are no classes.
        pictures: That it was compared on.
        calibration: Of int8: SHA-256 of the pictures that its ranges come from.
    """

    engine: Any
    name: str
    version: str
    precision: str = "float32"
    threads: int | None = None
    reason: str = ""
    difference: float | None = None
    rejected: tuple[str, ...] = ()
    reference: str = "NumPy's reference"
    agreement: float | None = None
    pictures: int = 1
    calibration: str | None = None

    def describe(self) -> str:
        """A line for the user."""
        threads = "" if self.threads is None else f" on {_count(self.threads, 'thread')}"
        text = f"Engine: {title(self.name, self.version)}{threads}, {self.precision}"
        if self.reason:
            text += f": {self.reason}"
        if self.difference is not None:
            text += f"; differs from {self.reference} by {self.difference:.0e} of the largest logit"
        if self.agreement is not None:
            text += f", best class the same for {self.agreement:.1%}"
        failed = [one for one in self.rejected if not one.endswith(NOT_INSTALLED)]
        return text + "".join(f"; not {one}" for one in failed)


NOT_INSTALLED = "not installed"


class NoEngineError(ValueError):
    """No candidate proved itself; says why of each.

    Args:
        rejected: As of `Chosen`.
    """

    def __init__(self, rejected: Sequence[str]):
        super().__init__("; ".join(rejected) or "there is no engine to choose from")
        self.rejected = tuple(rejected)


def choose(
    candidates: Iterable[Candidate],
    reference: Any,
    picture: np.ndarray,
    *,
    precision: str = "float32",
    reason: str = "",
    decide: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Chosen:
    """The first candidate that proves itself.

    Args:
        candidates: The one that is wanted most first.
        reference: The right answer to the picture, arrays (1, ...) or one; or a function that
            gives it, called once the first candidate has answered.
        picture: (N, H, W, C): what the candidates are asked, the same picture N times, or, where
            the answers are (N, ...), N pictures. One that runs several pictures by other means
            than a single one is asked what it will be.
        precision: Of the arithmetic.
        reason: Of `Chosen`.
        decide: The first output (N, ...) -> the best class of each picture, of which a share of
            `AGREEMENT` must be the same.

    Raises:
        NoEngineError: None did.
    """
    expected: list[np.ndarray] = []
    rejected: list[str] = []
    for candidate in candidates:
        try:
            engine = candidate.make()
            answer = _arrays(engine(picture))
        except Exception as error:  # an engine of others may fail in any way
            rejected.append(_failure(candidate.name, error))
            continue
        if not expected:
            expected = _arrays(reference() if callable(reference) else reference)
        try:
            difference = largest_difference(answer, expected, len(picture))
            allowed = candidate.tolerance()
            if allowed is None:
                allowed = TOLERANCES[precision]
            same = decide and float((decide(answer[0]) == decide(expected[0])).mean())
        except Exception as error:
            rejected.append(_failure(candidate.name, error))
            continue
        found = version(candidate.name)
        wrong = _wrong(difference, allowed, same)
        if not wrong:
            threads = getattr(engine, "threads", None)
            proven = Chosen(engine, candidate.name, found, precision, threads, reason, difference)
            return replace(proven, rejected=tuple(rejected), agreement=same)
        rejected.append(f"{title(candidate.name, found)}: {wrong}")
    raise NoEngineError(rejected)


def _wrong(difference: float, allowed: float, agreement: float | None) -> str:
    """What is wrong with an answer; nothing of one that will do."""
    if not difference <= allowed:  # as where it is no number
        return f"differs by {difference:.0e} of the largest logit"
    if agreement is not None and agreement < AGREEMENT:
        return (
            f"its best class is the same for {agreement:.1%} of the pictures, not {AGREEMENT:.0%}"
        )
    return ""


def _failure(name: str, error: Exception) -> str:
    gone = isinstance(error, ImportError) and not is_installed(_KNOWN[name][1])
    return f"{title(name, version(name))}: {NOT_INSTALLED if gone else one_line(error)}"


def largest_difference(
    found: Sequence[np.ndarray], expected: Sequence[np.ndarray], count: int = 1
) -> float:
    """Largest |difference| in parts of the largest |number| expected, the worst of all outputs.

    Where something is expected to be no finite number, no finite number will do.

    Args:
        found: Of each output (`count`, ...); as many outputs as it has, of those expected.
        expected: Of each output (1, ...), or (`count`, ...) of as many pictures.
        count: How often the same picture was asked, or how many there are.

    Returns:
        NaN where something else is no finite number, or nothing is one.

    Raises:
        ValueError: The outputs have other shapes.
    """
    worst = 0.0
    if not 0 < len(found) <= len(expected):
        raise ValueError(f"gives {len(found)} outputs; expected {len(expected)}")
    for one, right in zip(found, expected, strict=False):
        if one.shape != (count, *right.shape[1:]):
            raise ValueError(f"gives {one.shape}; expected {(count, *right.shape[1:])}")
        finite = np.isfinite(right)
        if not (np.isfinite(one) == finite).all() or not finite.any():
            return np.nan
        there = np.where(finite, right, 0)
        difference = np.abs(np.where(finite, one, 0) - there).max()
        scale = np.abs(there).max()
        if there.size <= _FEW:  # which may be near zero by chance
            scale = max(scale, _LEAST_SCALE)
        worst = max(worst, float(difference / scale) if scale else float(difference))
    return worst


def title(name: str, version: str = "") -> str:
    """What users know an engine by, with its version."""
    return f"{_KNOWN[name][0]} {version}".strip()


def version(name: str) -> str:
    """Version of an engine's package, "" where it is not known; imports nothing."""
    _, module, distribution = _KNOWN[name]
    found = getattr(sys.modules.get(module), "__version__", None)
    if not isinstance(found, str):
        try:
            found = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            return ""
    return found.split("-")[0]  # OpenVINO's goes on with where it was built


def _arrays(answer: Any) -> list[np.ndarray]:
    several = isinstance(answer, (list, tuple))
    return [np.asarray(one) for one in (answer if several else [answer])]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
