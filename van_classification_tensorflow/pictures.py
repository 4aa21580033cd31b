"""Pictures a person looks at after a run: curves, confusion matrix, contact sheet.

Drawn with matplotlib (extra `plots`), on figures of their own: no global backend is touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np


def require_matplotlib() -> None:
    """Fails with the install hint before any long work, not after it."""
    try:
        import matplotlib  # noqa: F401 - only to see whether it is there
    except ImportError as error:
        raise ModuleNotFoundError(
            "Pictures need matplotlib: pip install 'van-classification-tensorflow[plots]'"
        ) from error


def _figure(width: float, height: float):
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def training_curves(history: Mapping[str, Sequence[float]], path: Path) -> None:
    """Loss and accuracy over epochs; keys as in `keras.callbacks.History.history`."""
    figure = _figure(9, 3.6)
    for axes, key, title in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), ("Loss", "Accuracy"), strict=True
    ):
        for name, label in ((key, "training"), (f"val_{key}", "test")):
            if name in history:
                epochs = range(1, len(history[name]) + 1)
                axes.plot(epochs, history[name], label=label, linewidth=1.8)
        axes.set(xlabel="Epoch", title=title)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path)


def confusion_matrix(matrix: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """Counts (true class, predicted class), each cell with its number."""
    side = 1.8 + 0.5 * len(classes)
    figure = _figure(side + 0.6, side)
    axes = figure.subplots()
    # Colour by the share of the true class, so that rare classes show as well.
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour)
    axes.set(xlabel="Predicted", ylabel="True", title="Confusion matrix (test images)")
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(classes)), classes)
    figure.colorbar(image, label="Share of the true class", shrink=0.8)
    figure.savefig(path)


def contact_sheet(
    images: np.ndarray,
    truth: Sequence[str],
    predicted: Sequence[str],
    confidence: np.ndarray,
    path: Path,
    columns: int = 8,
) -> None:
    """Images (N, H, W) in any range, each under its predicted label; mistakes in red."""
    rows = -(-len(images) // columns)
    figure = _figure(1.35 * columns, 1.65 * rows)
    grid = np.atleast_2d(figure.subplots(rows, columns)).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, image, true, guess, probability in zip(
        grid, images, truth, predicted, confidence, strict=False
    ):
        axes.imshow(image, cmap="gray_r", interpolation="nearest")
        right = true == guess
        text = f"{guess}  ({probability:.0%})" if right else f"{guess}, not {true}"
        axes.set_title(text, fontsize=10, color="black" if right else "crimson")
    figure.savefig(path)
