"""Figures of merit of logits: right or wrong, loss, calibration, interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..spec.scores import SIGMOID, SOFTMAX, probabilities

BINS = 15
_Z95 = 1.959963984540054  # 97.5 % of a normal distribution lie below


@dataclass(frozen=True)
class Score:
    """One picture.

    Args:
        predicted: Position of the largest logit; the first of equal ones.
        top1: Whether it is right.
        top5: Whether one of the five largest logits is; of equal ones the first come first.
        confidence: Largest probability.
        loss: Minus the natural logarithm of the probability of the right class; where several
            are right, of the sum of theirs. Of independent classes (sigmoid): their mean binary
            cross-entropy.
        decisions: Of independent classes: the share of them for which "more probable than not" is
            the truth; else None.
    """

    predicted: int
    top1: bool
    top5: bool
    confidence: float
    loss: float
    decisions: float | None = None


def score(logits: np.ndarray, right: Sequence[int], activation: str = SOFTMAX) -> Score:
    """Scores (classes,) logits.

    Args:
        logits: One for each class.
        right: Positions of the classes that are right.
        activation: What makes probabilities of them: "softmax", or "sigmoid" where the classes do
            not exclude each other; those that are not `right` then count as wrong ones.
    """
    z: np.ndarray = logits.astype(np.float64)
    order = np.argsort(-z, kind="stable")[:5]
    if activation == SIGMOID:
        truth = np.isin(np.arange(len(z)), list(right))
        # -log p where the class is right, -log(1 - p) where it is not.
        losses = np.logaddexp(0, np.where(truth, -z, z))
        confidence, loss = float(probabilities(z, SIGMOID).max()), float(losses.mean())
        return Score(
            **_ranks(order, right),
            confidence=confidence,
            loss=loss,
            decisions=float(((z > 0) == truth).mean()),
        )
    shifted = z - z.max()
    log_sum = math.log(np.exp(shifted).sum())
    # Where one probability is too small for a float, its logarithm is not.
    mine = shifted[list(right)]
    log_right = mine.max() + math.log(np.exp(mine - mine.max()).sum())
    return Score(
        **_ranks(order, right), confidence=math.exp(-log_sum), loss=float(log_sum - log_right)
    )


def _ranks(order: np.ndarray, right: Sequence[int]) -> dict[str, Any]:
    return {
        "predicted": int(order[0]),
        "top1": int(order[0]) in right,
        "top5": not set(map(int, order)).isdisjoint(right),
    }


def calibration_error(
    confidence: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray, bins: int = BINS
) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 3).

    The sum over bins m of |B_m| / n · |accuracy(B_m) − mean confidence(B_m)|; the bins are
    ((m − 1) / M, m / M], m = 1 ... M.

    Args:
        confidence: Top-1 probability of each of n pictures.
        right: Whether the top-1 class is right.
        bins: M, of equal width.
    """
    sure: np.ndarray = np.asarray(confidence, np.float64)
    hits: np.ndarray = np.asarray(right, np.float64)
    edges = np.linspace(0, 1, bins + 1)
    which = np.clip(np.searchsorted(edges, sure, side="left") - 1, 0, bins - 1)
    gaps = np.bincount(which, hits - sure, minlength=bins)
    return float(np.abs(gaps).sum() / len(sure))


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (E. B. Wilson 1927, J. Am. Stat. Assoc. 22, 209-212), in [0, 1]."""
    share, z2 = right / count, _Z95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    # At the ends rounding would miss 0 and 1 by a hair.
    return centre - half if right else 0.0, centre + half if right < count else 1.0
