"""Pictures a person looks at after a run: curves, confusion matrix, contact sheet.

Drawn with matplotlib (extra `plots`), on figures of their own: no global backend is touched.
Names may hold any characters: those that no installed font has are shown as escapes.
"""

from __future__ import annotations

import os
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .extras import missing
from .text import printable

_NUMBERED = 50  # classes up to which a matrix has a number in each cell
_NAMED = 50  # names along the side of a larger one


def require_matplotlib() -> None:
    """Fails with the install hint before any long work, not after it."""
    try:
        import matplotlib  # noqa: F401 - only to see whether it is there
    except ImportError as error:
        raise missing("Drawing", "matplotlib", "plots") from error


# --- Names ---


def shortened(names: Sequence[str], width: int) -> list[str]:
    """`names`, each of at most `width` characters, and different where the names are.

    What is too long loses its middle; where that was all that told names apart, their beginning
    and the place where they differ stay; where that is not enough either, a number tells.

    Args:
        names: Of any length.
        width: At least 12.
    """
    short = {name: _without_middle(name, width) for name in names}
    for group in _alike(short):
        place = len(os.path.commonprefix(group))  # noqa: RUF071 - not of paths
        head = width // 3
        for name in group:
            start = min(max(place - 3, head), len(name))
            tail = name[start:]
            room = width - head - 1
            cut = tail if len(tail) <= room else f"{tail[: room - 1]}…"
            short[name] = f"{name[:head]}…{cut}"
    for group in _alike(short):
        for number, name in enumerate(group, 1):
            short[name] = f"{short[name][: width - len(f'… {number}')]}… {number}"
    return [short[name] for name in names]


def _without_middle(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    head = width // 2
    return f"{text[:head]}…{text[len(text) - (width - head - 1) :]}"


def _alike(short: Mapping[str, str]) -> list[list[str]]:
    """Groups of names that are shortened to the same."""
    groups = defaultdict(list)
    for name, text in short.items():
        groups[text].append(name)
    return [group for group in groups.values() if len(group) > 1]


@lru_cache(maxsize=16)
def _fonts_for(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """The font families that have these characters, and what no installed font has."""
    import matplotlib
    from matplotlib import font_manager

    families, missing = list(matplotlib.rcParams["font.family"]), set(characters)
    usual = font_manager.findfont(font_manager.FontProperties())
    missing -= _drawn_by(usual, missing)
    fonts = [font for font in font_manager.fontManager.ttflist if font.style == "normal"]
    for font in sorted(fonts, key=lambda font: (font.weight != 400, "Sans" not in font.name)):
        # A font of last resort has a box for everything.
        if missing and "lastresort" not in font.name.replace(" ", "").lower():
            found = _drawn_by(font.fname, missing)
            if found:
                families.append(font.name)
                missing -= found
    return tuple(families), frozenset(missing)


def _drawn_by(font: str, characters: Iterable[str]) -> set[str]:
    from matplotlib import font_manager

    try:
        glyph = font_manager.get_font(font).get_char_index
    except (OSError, RuntimeError):  # of a kind that matplotlib cannot read
        return set()
    return {character for character in characters if glyph(ord(character))}


# --- Figures ---


def _figure(width: float, height: float) -> Any:
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def shown(figure: Any, names: Sequence[str], width: int) -> list[str]:
    """`names` as the figure may be given them; says in it what no font can draw.

    Printable, `shortened`, and without a formula, which matplotlib reads between two $.
    """
    texts = [printable(name) for name in names]
    missing = _fonts_for(frozenset("".join(texts)))[1]
    if missing:
        escapes = {ord(c): c.encode("unicode_escape").decode() for c in missing}
        texts = [text.translate(escapes) for text in texts]
        number = "one character" if len(missing) == 1 else f"{len(missing):,} of the characters"
        note = (
            f"No installed font has {number} here, shown as \\u…: install one that has, such as "
            "Noto Sans CJK"
        )
        room = int(15 * figure.get_size_inches()[0])
        figure.supxlabel(textwrap.fill(note, room), fontsize=7)
    return [text.replace("$", r"\$") for text in shortened(texts, width)]


def shown_lines(figure: Any, texts: Sequence[str], width: int) -> list[str]:
    """As `shown`, for texts of several lines, of which each has the width."""
    lines = [line for text in texts for line in text.split("\n")]
    words = dict(zip(lines, shown(figure, lines, width), strict=True))
    return ["\n".join(words[line] for line in text.split("\n")) for text in texts]


def entitle(figure: Any, title: str, data: str) -> None:
    """Writes above the figure what it is, and of which data."""
    (name,) = shown(figure, [data], int(10 * figure.get_size_inches()[0]))
    figure.suptitle(f"{title}\n{name}", fontsize=11)


def save(figure: Any, path: Path) -> None:
    """Writes the picture; what the usual font lacks is drawn with others that are installed."""
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    characters = frozenset("".join(text.get_text() for text in texts)) - {"\n"}
    families, _ = _fonts_for(characters)
    for text in texts:
        text.set_fontfamily(families)
    figure.savefig(path)


# --- Pictures ---


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
    figure = _figure(9, 3.9)
    lines = {}
    for axes, key, title in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), ("Loss", "Accuracy"), strict=True
    ):
        epochs: Sequence[int] = []
        for name, label in (
            (key, "training"),
            (f"val_{key}", held_out),
            (f"average_{key}", f"{held_out}, averaged weights"),
        ):
            if name in history:
                epochs = range(1, len(history[name]) + 1)
                # Of a single epoch a line shows nothing.
                marker = "o" if len(epochs) <= 30 else None
                (lines[label],) = axes.plot(
                    epochs, history[name], linewidth=1.8, marker=marker, markersize=4
                )
        axes.set(xlabel="Epoch", title=title)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        if len(epochs) == 1:
            axes.set_xlim(0.5, 1.5)
        axes.grid(alpha=0.3)
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3)
    save(figure, path)


def confusion_matrix(matrix: np.ndarray, classes: Sequence[str], path: Path, data: str) -> None:
    """Counts (true class, predicted class), each cell with its number for up to 50 classes.

    Args:
        matrix: (N, N), integers.
        classes: N names.
        path: Of the picture.
        data: What the pictures are called.
    """
    count = len(classes)
    cell, size = (0.5, 10) if count <= 15 else (0.29, 7)
    side = cell * min(count, _NUMBERED)
    figure = _figure(max(side + 2.6, 4.5), max(side + 1.8, 3.2))
    axes = figure.subplots()
    # Colour by the share of the true class, so that rare classes show as well.
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), number in np.ndenumerate(matrix if count <= _NUMBERED else np.zeros(0)):
        if number:
            colour = "white" if share[row, column] > 0.5 else "black"
            text = str(number)
            fitting = size if len(text) < 4 else size * 3 / len(text)
            place = {"ha": "center", "va": "center"}
            axes.text(column, row, text, color=colour, fontsize=fitting, **place)
    axes.set(xlabel="Predicted", ylabel="True")
    entitle(figure, "Confusion matrix", data)
    names, every = shown(figure, classes, 24), -(-count // _NAMED)
    longest = max(map(len, names), default=0)
    places = range(0, count, every)
    axes.set_xticks(places, names[::every], rotation=90 if longest > 4 else 0, fontsize=size)
    axes.set_yticks(places, names[::every], fontsize=size)
    figure.colorbar(image, label="Share of the true class", shrink=0.8)
    save(figure, path)


def most_confused(mistakes: Sequence[tuple[str, str, int, int]], path: Path, data: str) -> None:
    """Bars for mistakes: (class, taken for, pictures, pictures of the class), frequent first.

    Args:
        mistakes: At most about 50.
        path: Of the picture.
        data: What the pictures are called.
    """
    figure = _figure(10, 1.4 + 0.3 * max(len(mistakes), 1))
    axes = figure.subplots()
    places = range(len(mistakes))
    bars = axes.barh(places, [count for _, _, count, _ in mistakes], color="#4878a8")
    axes.bar_label(bars, [f"{count} of {there}" for _, _, count, there in mistakes], padding=3)
    names = shown(figure, [name for true, taken, _, _ in mistakes for name in (true, taken)], 30)
    pairs = zip(names[::2], names[1::2], strict=True)
    axes.set_yticks(places, [f"{true}  →  {taken}" for true, taken in pairs])
    axes.margins(x=0.12)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="Pictures")
    entitle(figure, "Most frequent mistakes: class  →  taken for", data)
    axes.set_ylim(max(len(mistakes), 1) - 0.4, -0.6)  # the most frequent on top
    if not mistakes:
        axes.set_xticks([0])
        axes.text(0.5, 0.5, "no mistakes", ha="center", va="center", transform=axes.transAxes)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    save(figure, path)


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
    names = shown(figure, [*truth, *predicted], 18)
    # Long names have a line each.
    size, between = (10, "  ") if max(map(len, names), default=0) <= 4 else (7, "\n")
    for axes in grid:
        axes.axis("off")
    for axes, image, true, guess, probability in zip(
        grid, images, names[: len(truth)], names[len(truth) :], confidence, strict=False
    ):
        axes.imshow(image, cmap="gray_r", interpolation="nearest")
        right = true == guess
        text = f"{guess}{between}({probability:.0%})" if right else f"{guess},{between}not {true}"
        axes.set_title(text, fontsize=size, color="black" if right else "crimson")
    save(figure, path)


def sample_sheet(
    images: np.ndarray,
    captions: Sequence[str],
    path: Path,
    columns: int = 8,
    colours: Sequence[str] | None = None,
    title: str = "",
    data: str = "",
) -> None:
    """Images (N, H, W, C) uint8, each under its caption of one or two lines.

    Args:
        images: All of one size.
        captions: What is too long for a line of 27 characters loses its middle.
        path: Of the picture.
        columns: Images beside each other.
        colours: Of the captions; all black by default.
        title: What they are.
        data: What the pictures are called, under the title.
    """
    height, width = images.shape[1:3]
    rows, gap = -(-len(images) // columns), width // 16 + 1
    head = height // 4  # room for the caption
    # One picture: matplotlib takes seconds to lay out as many axes.
    tall, wide = rows * (height + head), columns * (width + gap)
    sheet = np.full((tall, wide, images.shape[3]), 255, np.uint8)
    figure = _figure(1.7 * columns, 1.7 * columns * tall / wide + (0.6 if title else 0))
    axes = figure.subplots()
    if title:
        entitle(figure, title, data)
    texts = shown_lines(figure, captions, 27)
    for i, (image, text) in enumerate(zip(images, texts, strict=True)):
        top, left = i // columns * (height + head) + head, i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
        place = left + width / 2, top - head / 8
        colour = "black" if colours is None else colours[i]
        axes.text(*place, text, fontsize=7, ha="center", va="bottom", color=colour)
    axes.imshow(sheet.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.axis("off")
    save(figure, path)
