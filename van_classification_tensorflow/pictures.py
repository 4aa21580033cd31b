"""Pictures a person looks at after a run: curves, confusion matrix, contact sheet.

Drawn with matplotlib (extra `plots`), on figures of their own: no global backend is touched.
"""

from __future__ import annotations

import textwrap
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


def training_curves(
    history: Mapping[str, Sequence[float]], path: Path, held_out: str = "test"
) -> None:
    """Loss and accuracy over epochs.

    Args:
        history: As `keras.callbacks.History.history`: `loss`, `val_loss`, and, where a moving
            average of the weights was measured as well, `average_loss`; `accuracy` likewise.
        path: Of the picture.
        held_out: What the pictures of `val_...` are called.
    """
    figure = _figure(9, 3.6)
    for axes, key, title in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), ("Loss", "Accuracy"), strict=True
    ):
        for name, label in (
            (key, "training"),
            (f"val_{key}", held_out),
            (f"average_{key}", f"{held_out}, averaged weights"),
        ):
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
    names = [_plain(name, 24) for name in classes]
    longest = max(map(len, names), default=0)
    axes.set_xticks(range(len(names)), names, rotation=90 if longest > 4 else 0)
    axes.set_yticks(range(len(names)), names)
    figure.colorbar(image, label="Share of the true class", shrink=0.8)
    figure.savefig(path)


def most_confused(mistakes: Sequence[tuple[str, str, int, int]], path: Path) -> None:
    """Bars for mistakes: (class, taken for, pictures, pictures of the class), frequent first."""
    figure = _figure(9, 1.2 + 0.3 * max(len(mistakes), 1))
    axes = figure.subplots()
    places = range(len(mistakes))
    bars = axes.barh(places, [count for _, _, count, _ in mistakes], color="#4878a8")
    axes.bar_label(bars, [f"{count} of {there}" for _, _, count, there in mistakes], padding=3)
    axes.set_yticks(places, [_plain(f"{true}  →  {taken}", 60) for true, taken, _, _ in mistakes])
    axes.margins(x=0.12)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="Pictures", title="Most frequent mistakes: class  →  taken for")
    axes.set_ylim(max(len(mistakes), 1) - 0.4, -0.6)  # the most frequent on top
    if not mistakes:
        axes.set_xticks([0])
        axes.text(0.5, 0.5, "no mistakes", ha="center", va="center", transform=axes.transAxes)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path)


def _plain(text: str, width: int) -> str:
    """Short, and as matplotlib may be given it: between two $ it would read a formula."""
    return textwrap.shorten(text, width, placeholder="…").replace("$", r"\$")


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


def sample_sheet(images: np.ndarray, captions: Sequence[str], path: Path, columns: int = 8) -> None:
    """Images (N, H, W, C) uint8, each under its caption: what a model is shown in training."""
    height, width = images.shape[1:3]
    rows, gap = -(-len(images) // columns), width // 16 + 1
    head = height // 4  # room for the caption
    # One picture: matplotlib takes seconds to lay out as many axes.
    tall, wide = rows * (height + head), columns * (width + gap)
    sheet = np.full((tall, wide, images.shape[3]), 255, np.uint8)
    figure = _figure(1.7 * columns, 1.7 * columns * tall / wide)
    axes = figure.subplots()
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        top, left = i // columns * (height + head) + head, i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
        lines = textwrap.wrap(_plain(caption, 60), 26)[:2]
        place = left + width / 2, top - head / 8
        axes.text(*place, "\n".join(lines), fontsize=7, ha="center", va="bottom")
    axes.imshow(sheet.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.axis("off")
    figure.savefig(path)
