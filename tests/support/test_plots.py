"""Pictures: names that stay readable and different, whatever the number of classes and epochs."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from van_classification_tensorflow.support import plots as pictures

LONG = [f"Golden retriever (mixed with breed number {i} of the shelter)" for i in range(40)]


@pytest.fixture
def figures(monkeypatch):
    """What is saved, drawn as well."""
    from matplotlib.figure import Figure

    saved, save = [], Figure.savefig

    def savefig(self, path):
        saved.append(self)
        save(self, path)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


# --- Names ---


@pytest.mark.parametrize(
    "names",
    [
        LONG,
        [f"{i} is where they differ, and the rest is the same" for i in range(9)],
        [f"the rest is the same, and they differ at {i}" for i in range(9)],
        ["a" * 200 + "x" * n for n in range(12)],
        ["short", "s" * 24, "s" * 25, ""],
        ["x" * 40 + c + "y" * 40 + d + "z" * 40 for c in "ab" for d in "cd"],
    ],
)
@pytest.mark.parametrize("width", [12, 24, 30])
def test_shortened_names_are_short_and_differ(names, width):
    found = pictures.shortened(names, width)
    assert all(len(text) <= width for text in found)
    assert len(set(found)) == len(names)
    for name, text in zip(names, found, strict=True):
        assert len(name) > width or text == name


def test_the_same_name_stays_the_same():
    assert len(set(pictures.shortened(["a" * 50, "a" * 50], 20))) == 1


def test_names_of_any_bytes_can_be_drawn(tmp_path, figures):
    names = ["caf\udce9", "a\nb", "price in $ and $", "tab\there"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pictures.confusion_matrix(np.eye(4, dtype=int), names, tmp_path / "a.png", "d\udcff\\$x$")
        pictures.most_confused([(*names[:2], 1, 2)], tmp_path / "b.png", "data")
        sheet = np.zeros((4, 8, 8), np.uint8)
        pictures.contact_sheet(sheet, names, names, np.ones(4), tmp_path / "c.png")
        pictures.sample_sheet(sheet[..., None], names, tmp_path / "d.png")
    assert ticks(figures[0].axes[0].yaxis)[:2] == [r"caf\udce9", r"a\nb"]


@pytest.fixture
def no_chinese(monkeypatch):
    """A machine without a font for it."""
    from matplotlib import font_manager

    there = [f for f in font_manager.fontManager.ttflist if f.name.startswith("DejaVu")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", there)
    pictures._fonts_for.cache_clear()
    yield there
    pictures._fonts_for.cache_clear()


def test_what_no_font_has_is_escaped_and_said(tmp_path, figures, no_chinese):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of matplotlib: a line for each missing glyph
        pictures.confusion_matrix(
            np.eye(3, dtype=int), ["牡丹", "菊花", "é"], tmp_path / "a.png", "花"
        )
    (figure,) = figures
    assert ticks(figure.axes[0].yaxis) == [r"\u7261\u4e39", r"\u83ca\u82b1", "é"]
    assert "No installed font has" in figure.get_supxlabel()
    assert r"\u82b1" in figure.get_suptitle()


def test_an_installed_font_draws_what_the_usual_one_lacks(tmp_path, figures, no_chinese):
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    from matplotlib import font_manager

    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(point)
    pen.closePath()
    font = FontBuilder(1000)
    font.setupGlyphOrder([".notdef", "han"])
    font.setupCharacterMap({ord("花"): "han"})
    font.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "han": pen.glyph()})
    font.setupHorizontalMetrics({".notdef": (1000, 0), "han": (1000, 0)})
    font.setupHorizontalHeader(ascent=900, descent=-100)
    font.setupNameTable({"familyName": "Ours Sans", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "ours.ttf")
    font_manager.fontManager.addfont(tmp_path / "ours.ttf")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pictures.confusion_matrix(np.eye(1, dtype=int), ["花 é"], tmp_path / "a.png", "data")
    (figure,) = figures
    assert ticks(figure.axes[0].yaxis) == ["花 é"]
    assert not figure.get_supxlabel()


# --- Any number of classes ---


@pytest.mark.parametrize("count", [1, 4, 40, 60])
def test_a_matrix_of_any_size(tmp_path, figures, count):
    names = LONG[:count] if count <= 40 else [f"class {i}" for i in range(count)]
    matrix = np.full((count, count), 7)
    pictures.confusion_matrix(matrix, names, tmp_path / "a.png", "/data/flowers, validation part")
    (figure,) = figures
    axes = figure.axes[0]
    assert figure.get_suptitle() == "Confusion matrix\n/data/flowers, validation part"
    for axis in (axes.xaxis, axes.yaxis):
        labels = axis.get_ticklabels()
        assert len({label.get_text() for label in labels}) == len(labels) <= 50
        boxes = sorted((label.get_window_extent() for label in labels), key=lambda b: (b.y0, b.x0))
        assert not any(a.overlaps(b) for a, b in pairwise(boxes))
    assert len(axes.texts) == (count**2 if count <= 50 else 0)
    # A number lies within its cell.
    cell = abs(np.subtract(*axes.transData.transform([(0, 0), (1, 0)])[:, 0]))
    assert all(text.get_window_extent().width < cell for text in axes.texts)
    with Image.open(tmp_path / "a.png") as picture:
        inside = (0, 0, *picture.size)
    for text in (figure._suptitle, axes.xaxis.label, axes.yaxis.label):
        box = text.get_window_extent()
        assert box.x0 >= inside[0]
        assert box.x1 <= inside[2]


def test_the_most_frequent_mistakes_name_the_data(tmp_path, figures):
    mistakes = [(LONG[i], LONG[i + 1], 5, 9) for i in range(25)]
    pictures.most_confused(mistakes, tmp_path / "a.png", "my data")
    (figure,) = figures
    assert figure.get_suptitle().endswith("\nmy data")
    assert len(set(ticks(figure.axes[0].yaxis))) == 25


@pytest.mark.parametrize(
    "names", [LONG, pytest.param(["3", "7"] * 20, marks=pytest.mark.slow)], ids=["long", "short"]
)
def test_titles_of_a_contact_sheet_lie_beside_each_other(tmp_path, figures, names):
    sheet = np.zeros((40, 8, 8), np.uint8)
    pictures.contact_sheet(sheet, names, names[::-1], np.ones(40), tmp_path / "a.png")
    (figure,) = figures
    boxes = [axes.title.get_window_extent() for axes in figure.axes]
    assert not any(a.overlaps(b) for a, b in pairwise(boxes))
    below = [axes.get_window_extent() for axes in figure.axes]
    assert not any(a.overlaps(b) for a, b in zip(boxes[8:], below, strict=False))


# --- Any number of epochs ---


@pytest.mark.parametrize("epochs", [1, 2, 30, 300])
def test_curves_of_any_length(tmp_path, figures, epochs):
    values = list(np.linspace(2, 0.1, epochs))
    history = {
        f"{part}{key}": values for part in ("", "val_", "average_") for key in ("loss", "accuracy")
    }
    pictures.training_curves(history, tmp_path / "a.png", "validation")
    (figure,) = figures
    (legend,) = figure.legends
    named = [text.get_text() for text in legend.get_texts()]
    assert named == ["training", "validation", "validation, averaged weights"]
    for axes in figure.axes:
        low, high = axes.get_xlim()
        seen = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert seen
        assert all(tick == int(tick) for tick in seen)
        assert len(axes.lines) == 3
        marked = [line.get_marker() not in (None, "None") for line in axes.lines]
        assert marked == [epochs <= 30] * 3
        # The legend hides nothing.
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())
