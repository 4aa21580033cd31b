"""`van segment`: what it writes, beside which truth, and what it refuses."""

import csv
import io
import json

import keras
import numpy as np
import pytest
from PIL import Image

from van_classification_tensorflow import Segmenter, cli
from van_classification_tensorflow.images.decode import open_image
from van_classification_tensorflow.images.masks import open_mask
from van_classification_tensorflow.segment import command
from van_classification_tensorflow.segment.metrics import Confusion, without_zero
from van_classification_tensorflow.segment.segmenter import Segmentation

NAMES = ["wall", "sky", "=dog()", "sea, water"]


class Colours(keras.layers.Layer):
    """A model by hand: the class of a pixel is its brightest channel, or 3 where all are dark."""

    def call(self, images):
        pooled = keras.ops.average_pool(images, 4, 4)
        dark = keras.ops.full_like(pooled[..., :1], -1.0)
        return keras.ops.concatenate([pooled, dark], axis=-1)


@pytest.fixture(autouse=True)
def by_hand(monkeypatch):
    """The weights `hand.keras` are that model, without the time that a VAN takes."""
    images = keras.Input((None, None, 3))
    model = keras.Model(images, Colours()(images), name="hand")
    model.labels = NAMES

    def made(weights, **options):
        assert weights == "hand.keras"
        return Segmenter(model, **options)

    monkeypatch.setattr(command, "Segmenter", made)


@pytest.fixture
def folder(tmp_path):
    """Two pictures of four fields, a broken one, and one in a folder of its own."""
    made = tmp_path / "pictures"
    (made / "more").mkdir(parents=True)
    for name, size in (("a.png", (64, 96)), ("more/b ü.png", (96, 64))):
        Image.fromarray(fields(*size)).save(made / name)
    (made / "broken.png").write_bytes((made / "a.png").read_bytes()[:60])
    return made


def fields(height, width):
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2, 0] = 255
    pixels[: height // 2, width // 2 :, 1] = 255
    pixels[height // 2 :, : width // 2, 2] = 255
    return pixels


def right(height, width):
    mask = np.zeros((height, width), np.uint8)
    mask[: height // 2, width // 2 :] = 1
    mask[height // 2 :, : width // 2] = 2
    mask[height // 2 :, width // 2 :] = 3
    return mask


def run(capsys, *arguments):
    """(exit code, standard output, error stream)"""
    code = 0
    given = ("segment", "--weights", "hand.keras", "--size", "own", *arguments)
    try:
        cli.main([str(one) for one in given])
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_folder(folder, tmp_path, capsys):
    output = tmp_path / "out"
    code, out, err = run(capsys, folder, "--output", output)
    assert code == 1
    assert "1 of 3 failed" in err
    assert "broken.png: PNG" in err
    assert "hand: whole picture, its own size, resized to multiples of 32" in err
    index = json.loads((output / "segmentation.json").read_text())
    assert {*index["files"], "segmentation.json"} == {one.name for one in output.iterdir()}
    assert len(index["files"]) == 5
    assert [one["label"] for one in index["classes"]] == NAMES
    first, broken, other = index["pictures"]
    assert (first["width"], first["height"], first["error"]) == (96, 64, None)
    assert (first["mask"], first["overlay"]) == ("a.mask.png", "a.overlay.png")
    assert broken["error"]
    assert "mask" not in broken
    assert other["mask"] == "b__.mask.png"
    mask = open_mask(output / "a.mask.png")
    assert (mask != right(64, 96)).mean() < 0.1  # of the rows between two fields
    assert mask[0, 0] == 0
    assert mask[63, 95] == 3
    with Image.open(output / "a.mask.png") as image:
        assert image.convert("RGB").getpixel((95, 63)) == tuple(
            bytes.fromhex(index["classes"][3]["colour"][1:])
        )
    with (output / "areas.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"].removeprefix(f"{folder}/") for row in rows] == ["a.png"] * 4 + [
        "more/b ü.png"
    ] * 4
    for row in rows[:4]:
        assert int(row["pixels"]) == (mask == int(row["index"])).sum()
        assert float(row["share"]) == pytest.approx(int(row["pixels"]) / mask.size)
        assert row["label"] == NAMES[int(row["index"])]
    assert first["areas"] == [
        {
            "index": int(r["index"]),
            "label": r["label"],
            "pixels": int(r["pixels"]),
            "share": float(r["share"]),
        }
        for r in rows[:4]
    ]
    assert "areas.csv" in out
    with Image.open(output / "a.overlay.png") as image:
        assert image.width == 96 * 5  # enlarged to 480
    # As one of another run it is replaced, with --overwrite only.
    again = folder / "a.png", "--output", output
    code, _, err = run(capsys, *again)
    assert (code, "already there" in err) == (1, True)
    assert run(capsys, *again, "--overwrite", "--no-overlay")[0] == 0
    assert {one.name for one in output.iterdir()} == {
        "a.mask.png",
        "areas.csv",
        "segmentation.json",
    }
    (output / "mine.txt").touch()
    code, _, err = run(capsys, *again, "--overwrite")
    assert (code, "no segmentation wrote (mine.txt)" in err) == (1, True)


def test_beside_the_truth(folder, tmp_path, capsys):
    """The table and the file are `Confusion` of the masks that are written."""
    (folder / "broken.png").unlink()
    truth, output = tmp_path / "truth", tmp_path / "out"
    (truth / "deep").mkdir(parents=True)
    labels = {}
    for name, size in (("a", (64, 96)), ("deep/b ü", (96, 64))):
        labels[name] = right(*size) + 1
        labels[name][0] = 0
        labels[name][1, :9] = 255
        labels[name][2, :5] = 77
        Image.fromarray(labels[name]).save(truth / f"{name}.png")
    code, out, err = run(
        capsys, folder, "--output", output, "--truth", truth, "--reduce-zero-label"
    )
    assert code == 0, err
    expected = Confusion(4)
    for name, mask in (("a", "a.mask.png"), ("deep/b ü", "b__.mask.png")):
        expected.add(open_mask(output / mask), without_zero(labels[name]))
    scores = json.loads((output / "scores.json").read_text())
    means = expected.scores().means()
    assert {name: scores[name] for name in means} == means
    assert scores["pictures"] == 2
    assert scores["pixels_of_no_class"] == 10
    assert "10 pixels of `truth` have a number that is no class" in out
    for one in scores["classes"]:
        assert one["IoU"] == 100 * expected.scores().iou[one["index"]]
        assert f"{one['IoU']:.2f}" in out
    assert f"mIoU {means['mIoU']:.2f} %" in out
    assert means["mIoU"] > 80
    index = json.loads((output / "segmentation.json").read_text())
    assert "scores.json" in index["files"]
    assert 80 < index["pictures"][0]["mIoU"] < 100
    # Another label is ignored, and 0 is a class.
    run(capsys, folder, "--output", output, "--truth", truth, "--ignore", "77", "--overwrite")
    scores = json.loads((output / "scores.json").read_text())
    assert (scores["ignore"], scores["pixels_of_no_class"]) == (77, 2 * 9 + (64 * 96) // 2)
    assert scores["mIoU"] < 10


def test_truth_that_does_not_fit(folder, tmp_path, capsys, monkeypatch):
    truth, output = tmp_path / "truth", tmp_path / "out"
    (truth / "deep").mkdir(parents=True)
    asked = folder, "--output", output, "--truth", truth
    code, _, err = run(capsys, *asked)
    assert (code, "3 of 3 pictures have no mask in" in err) == (1, True)
    assert "(--truth): a.png, broken.png, b ü.png" in err
    for name in ("a.png", "broken.png", "b ü.png", "deep/a.png"):
        Image.fromarray(right(64, 96)).save(truth / name)
    code, _, err = run(capsys, *asked)
    assert (code, "a.png may have the mask" in err) == (1, True)
    (truth / "deep/a.png").unlink()
    Image.new("RGB", (96, 64)).save(truth / "a.png")
    assert not output.exists()
    code, out, err = run(capsys, *asked)
    assert code == 1
    assert "3 of 3 failed" in err
    assert "a.png: a mask must hold numbers of classes" in err
    assert "b ü.png: `labels` must have the size of the picture, 64 x 96. Received: 96 x 64" in err
    assert {one.name for one in output.iterdir()} == {
        "areas.csv",
        "scores.json",
        "segmentation.json",
    }
    assert json.loads((output / "scores.json").read_text())["mIoU"] is None
    assert "mIoU" not in out
    data = io.TextIOWrapper(io.BytesIO((folder / "a.png").read_bytes()))
    monkeypatch.setattr("sys.stdin", data)
    code, _, err = run(capsys, "-", "--output", tmp_path / "x", "--truth", truth)
    assert (code, "standard input has no name by which to find --truth" in err) == (1, True), err
    (folder / "more/a.png").write_bytes((folder / "a.png").read_bytes())
    code, _, err = run(capsys, *asked, "--overwrite")
    assert code == 1
    assert "a.png may be the mask of" in err
    assert "more/a.png" in err


def test_what_is_not_drawn_is_not_counted(folder, tmp_path, capsys, monkeypatch):
    """Of two pictures with truth one goes meanwhile, and a mask cannot be opened: two lines."""
    (folder / "broken.png").unlink()
    (folder / "c.png").write_bytes((folder / "a.png").read_bytes())
    truth, output = tmp_path / "truth", tmp_path / "out"
    truth.mkdir()
    for name, size in (("a", (64, 96)), ("b ü", (96, 64)), ("c", (64, 96))):
        Image.fromarray(right(*size)).save(truth / f"{name}.png")
    before = Segmentation.overlay

    def overlay(self, *args, **options):
        if str(self.source).endswith("a.png"):
            raise FileNotFoundError(2, "No such file or directory", "a.png")
        return before(self, *args, **options)

    def denied(path, *args):
        if path.stem == "c":
            raise PermissionError(13, "Permission denied", str(path))
        return open_mask(path, *args)

    monkeypatch.setattr(Segmentation, "overlay", overlay)
    monkeypatch.setattr("van_classification_tensorflow.segment.truth.open_mask", denied)
    code, _, err = run(capsys, folder, "--output", output, "--truth", truth)
    assert (code, "2 of 3 failed" in err) == (1, True), err
    assert "a.png: No such file or directory" in err
    assert "c.png: Permission denied" in err
    assert json.loads((output / "scores.json").read_text())["pictures"] == 1
    assert {one.name for one in output.glob("*.png")} == {"b__.mask.png", "b__.overlay.png"}


def test_an_upright_picture_beside_its_truth(tmp_path, capsys):
    """The mask is of the picture as a person sees it, whatever way up its file has it."""
    pixels = Image.fromarray(fields(96, 64))
    turned = pixels.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 270 degrees to see it
    turned.save(tmp_path / "a.png", exif=exif)
    (tmp_path / "truth").mkdir()
    Image.fromarray(right(96, 64)).save(tmp_path / "truth" / "a.png")
    asked = "--output", tmp_path / "out", "--truth", tmp_path / "truth"
    code, _, err = run(capsys, tmp_path / "a.png", *asked)
    assert code == 0, err
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["mIoU"] > 80


def test_a_larger_picture_than_usual(folder, tmp_path, capsys, monkeypatch):
    """`--max-pixels` is also of the picture that is drawn over."""
    allowed = []

    def opened(image, max_pixels):
        allowed.append(max_pixels)
        return open_image(image, max_pixels)

    monkeypatch.setattr("van_classification_tensorflow.segment.drawing.open_image", opened)
    asked = folder / "a.png", "--output", tmp_path / "out"
    code, _, err = run(capsys, *asked, "--max-pixels", "10000")
    assert (code, allowed) == (0, [10_000]), err
    code, _, err = run(capsys, *asked, "--max-pixels", "1000", "--overwrite")
    assert (code, "1 of 1 failed" in err) == (1, True)


def test_its_own_output_is_no_input(folder, tmp_path, capsys):
    asked = folder, "--output", folder / "out"
    (folder / "broken.png").unlink()
    assert run(capsys, *asked)[0] == 0
    assert run(capsys, *asked, "--overwrite")[0] == 0
    index = json.loads((folder / "out" / "segmentation.json").read_text())
    assert len(index["pictures"]) == 2


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--crop", "64"], "--crop is for --mode slide"),
        (["--mode", "slide", "--crop", "64", "--stride", "65"], "--stride must be at most --crop"),
        (["--mode", "slide", "--size", "64", "--stride", "65"], "--stride must be at most the"),
        (["--mode", "slide", "--crop", "2049", "2048"], "--crop must be of at most 4,194,304"),
        (["--scales", "0"], "--scales must be numbers above 0"),
        (["--opacity", "2"], "--opacity must be from 0 to 1"),
        (["--ignore", "3"], "--ignore is for a run with --truth"),
        (["--reduce-zero-label"], "--reduce-zero-label is for a run with --truth"),
        (["--truth", "no-folder"], "no-folder is no folder of masks (--truth)"),
    ],
)
def test_options_that_are_refused(given, says, folder, tmp_path, capsys):
    code, _, err = run(capsys, folder, "--output", tmp_path / "x", *given)
    assert (code, says in err) == (1, True), err
    assert not (tmp_path / "x").exists()


def test_windows_and_views_from_the_command_line(folder, tmp_path, capsys, monkeypatch):
    asked = []
    made = command.Segmenter
    monkeypatch.setattr(
        command, "Segmenter", lambda **options: asked.append(options) or made(**options)
    )
    code, _, err = run(
        capsys,
        *(folder / "a.png", "--output", tmp_path / "out", "--mode", "slide"),
        *("--crop", "32", "64", "--stride", "32", "--scales", "0.5", "1", "--flip", "--fit", "pad"),
    )
    assert code == 0, err
    assert "windows of 64 x 32 every 32 x 32 pixels, its own size, scales 0.5 1, mirrored" in err
    (options,) = asked
    assert options["crop"] == (32, 64)
    assert options["scales"] == (0.5, 1.0)
    assert options["flip"] is True


def test_stopped_nothing_is_left(folder, tmp_path, capsys, monkeypatch):
    def stopped(self, found, work):
        (work / "half").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(command._Job, "_written", stopped)
    code, _, err = run(capsys, folder, "--output", tmp_path / "out")
    assert (code, "stopped" in err) == (130, True)
    assert [one.name for one in tmp_path.iterdir()] == ["pictures"]
