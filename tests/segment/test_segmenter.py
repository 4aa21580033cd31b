"""`Segmenter`: what it takes, what it gives, and what it refuses."""

import io
import json
import pickle
import zipfile

import keras
import numpy as np
import pytest
from PIL import Image

from tests.parity import GOLDEN
from van_classification_tensorflow import Preprocessing, Segmenter
from van_classification_tensorflow.images.decode import ImageError
from van_classification_tensorflow.segment.strips import best_of
from van_classification_tensorflow.segment.windows import Way
from van_classification_tensorflow.weights.catalogue import OF_SEGMENTERS
from van_classification_tensorflow.weights.checkpoint import CheckpointError

from . import micro

pytestmark = pytest.mark.usefixtures("eager")
NAMES = ["wall", "sky", "tree", "dog", "cat", "road", "sea"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The micro model with names and colours of its own, as Keras saves it."""
    path = tmp_path_factory.mktemp("saved") / "micro.keras"
    model = micro.model()
    model.labels, model.palette = NAMES, [(i, 2 * i, 255 - i) for i in range(7)]
    model.preprocessing = Preprocessing(64, 1.0, "bilinear", mean=(0.5,) * 3, std=(0.25,) * 3)
    model.save(path)
    model.labels = model.palette = model.preprocessing = None
    return path


@pytest.fixture(scope="module")
def segmenter(saved):
    return Segmenter(saved)


def photo(height=60, width=90, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def test_as_mmsegmentation():
    """The golden picture, by the front door: what `test_windows` compares at a finer grain."""
    segmenter = Segmenter(micro.model(), size="own", fit="pad", scales=(0.75, 1, 1.25), flip=True)
    rgb = np.ascontiguousarray(micro.golden()["predict_image_bgr"][:, :, ::-1])
    found = segmenter(rgb)
    np.testing.assert_array_equal(found.mask, micro.golden()["tta_pred"][0])
    assert found.mask.dtype == np.uint8
    assert segmenter.preprocessing == OF_SEGMENTERS
    assert "does not say how its pictures are prepared" in segmenter.notes
    assert "names no classes" in segmenter.notes


def test_a_saved_model(segmenter):
    assert [one.name for one in segmenter.labels] == NAMES
    assert segmenter.palette[3].tolist() == [3, 6, 252]
    assert segmenter.notes == ""
    assert segmenter.describe() == (
        "whole picture, shorter side 64, at most 4 times as long, resized to multiples of 32"
    )
    picture = photo()
    found = segmenter(picture)
    pixels = np.asarray(picture)
    expected = Way(size=64).logits(micro.run, pixels, segmenter.preprocessing.normalise)
    np.testing.assert_array_equal(found.mask, best_of(expected))
    counts = np.bincount(found.mask.reshape(-1), minlength=7)
    assert [one.pixels for one in found.areas] == sorted(counts[counts > 0], reverse=True)
    for one in found.areas:
        assert one.pixels == counts[one.index]
        assert one.share == counts[one.index] / (60 * 90)
        assert one.label == NAMES[one.index]
        assert one.colour == tuple(segmenter.palette[one.index])
    logits = segmenter.logits(picture)
    assert logits.shape == (60, 90, 7)
    np.testing.assert_array_equal(logits.argmax(axis=-1), found.mask)
    assert found.overlay().size[0] == 90 * 6
    assert found.overlay(legend=False).size == (90, 60)


@pytest.mark.slow
def test_a_checkpoint_of_mmsegmentation():
    path = GOLDEN / "seg_upernet_micro_mmseg0.pth"
    segmenter = Segmenter(path, size="own", fit="none")
    assert segmenter.labels[2].name == "class_2"
    assert segmenter.file == path
    found = segmenter(micro.golden()["predict_image_bgr"])
    assert found.mask.shape == (75, 131)


def test_everything_that_is_a_picture(tmp_path):
    segmenter = Segmenter(plain(7), size=64)
    picture = photo()
    path, data = tmp_path / "a.png", io.BytesIO()
    picture.save(path)
    picture.save(data, "PNG")
    expected = segmenter(picture).mask
    for one in (str(path), path, data.getvalue(), np.asarray(picture)):
        np.testing.assert_array_equal(segmenter(one).mask, expected)
    assert [one.mask.shape for one in segmenter([picture, photo(33, 40)])] == [(60, 90), (33, 40)]
    grey = segmenter(picture.convert("L"))
    assert grey.mask.shape == (60, 90)


def test_stream_notes_what_cannot_be_read(tmp_path, monkeypatch):
    segmenter = Segmenter(plain(5), size="own")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    monkeypatch.setattr("van_classification_tensorflow.segment.windows.MAX_WHOLE", 10_000)
    sources = [photo(), tmp_path / "broken.png", tmp_path / "no.png", photo(200, 300), photo()]
    found = list(segmenter.stream(sources))
    assert [one.source for one in found] == sources
    assert [one.mask is None for one in found] == [False, True, True, True, False]
    np.testing.assert_array_equal(found[0].mask, found[4].mask)
    assert "broken.png" in found[1].error
    assert "No such file" in found[2].error
    assert "300 x 200 pixels are too many for one piece; allowed: 10,000" in found[3].error
    with pytest.raises(ImageError, match=r"broken\.png"):
        segmenter(sources[1])
    with pytest.raises(ValueError, match=r"there is nothing to draw: .*broken\.png"):
        found[1].overlay()


def test_names_and_colours_of_the_caller():
    saved = plain(7)
    segmenter = Segmenter(saved, labels=list("abcdefg"), palette=["#000102"] * 7)
    assert segmenter.labels[6].name == "g"
    assert segmenter.palette[0].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="`labels` must name each of 7 classes"):
        Segmenter(saved, labels="ade20k")
    with pytest.raises(ValueError, match="`palette` must have a colour for each of 7"):
        Segmenter(saved, palette="cityscapes")
    with pytest.raises(ValueError, match="`stride` must be at most the window"):
        Segmenter(saved, mode="slide", size=64, stride=65)
    with pytest.raises(ValueError, match="`preprocessing` must make 3 channels"):
        Segmenter(saved, preprocessing=Preprocessing(64, mean=(0.5,), std=(0.5,)))


def plain(classes, channels=3, data_format="channels_last"):
    """A Keras model that is none of this package."""
    shape = (None, None, channels) if data_format == "channels_last" else (channels, None, None)
    images = keras.Input(shape)
    maps = keras.layers.Conv2D(classes, 4, 4, data_format=data_format)(images)
    return keras.Model(images, maps)


def test_any_keras_model(monkeypatch):
    segmenter = Segmenter(plain(150), size=32)
    assert segmenter.labels[0].name == "wall"
    assert "those of ade20k are assumed" in segmenter.notes
    assert segmenter(photo()).mask.shape == (60, 90)
    # One output is the logit of the second of two classes.
    model = plain(1)
    model.layers[-1].kernel.assign(np.zeros((4, 4, 3, 1)))
    model.layers[-1].bias.assign([0.5])
    segmenter = Segmenter(model, size=32, labels=["nothing", "something"])
    assert (segmenter(photo()).mask == 1).all()
    assert len(segmenter.palette) == 2
    grey = Segmenter(plain(3, 1), size=32, preprocessing=Preprocessing(32, mean=(0.5,), std=(0.5,)))
    assert grey(photo()).mask.shape == (60, 90)
    # One of a single size is used in windows, of which the last batch is not full.
    images = keras.Input((32, 32, 3))
    fixed = keras.Model(images, keras.layers.Conv2D(3, 4, 4)(images))
    whole = Segmenter(fixed, mode="slide", size="own", batch_size=4)
    one_by_one = Segmenter(fixed, mode="slide", size="own", batch_size=1)
    np.testing.assert_allclose(whole.logits(photo()), one_by_one.logits(photo()), atol=1e-5)
    assert whole.way.crop == (32, 32)
    # Smaller pictures are enlarged to its size: zeros around them would be most of a window.
    small = Preprocessing(16, 1.0, "bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)
    assert Segmenter(fixed, mode="slide", preprocessing=small).way.size == 32
    with pytest.raises(ValueError, match=r"`mode` must be slide for .* of 32 x 32 pixels only"):
        Segmenter(fixed)
    images = keras.Input((8, 8, 3))
    classifier = keras.Model(images, keras.layers.GlobalAveragePooling2D()(images))
    with pytest.raises(ValueError, match="must give a map for each class"):
        Segmenter(classifier)


def test_a_model_that_fails_is_its_pictures_error(monkeypatch):
    model = plain(3)
    segmenter = Segmenter(model, size=32)

    def exhausted(images):
        raise RuntimeError("OOM when allocating\na tensor")

    monkeypatch.setattr(model, "predict_on_batch", exhausted)
    (found,) = segmenter.stream([photo()])
    assert found.mask is None
    assert "does not run on 1 of 64 x 32 pixels" in found.error
    assert "OOM when allocating a tensor" in found.error


def test_sizes_that_are_too_large_are_not_made(monkeypatch):
    def made(*args):
        raise AssertionError("a picture was resized")

    segmenter = Segmenter(plain(3), size=40_000)
    monkeypatch.setattr("van_classification_tensorflow.segment.windows.resized", made)
    with pytest.raises(ValueError, match=r"60000 x 40000 pixels are too many for one piece"):
        segmenter(photo())
    slid = Segmenter(plain(3), size=40_000, mode="slide", crop=512)
    with pytest.raises(ValueError, match=r"60000 x 40000 pixels are too many; allowed: 268,435"):
        slid(photo())


def test_more_than_256_classes():
    found = Segmenter(plain(300), size=32)(photo())
    assert found.mask.dtype == np.uint16
    assert found.overlay().size[0] == 540


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"mode": "tiles"}, "`mode` must be one of 'whole', 'slide'"),
        ({"fit": "crop"}, "`fit` must be one of"),
        ({"size": "big"}, "`size` must be a number of pixels, or 'own'"),
        ({"size": 16}, "`size` must be an integer >= 32"),
        ({"crop": 64}, "`crop` is for `mode` slide"),
        ({"mode": "slide", "crop": 16}, "`crop` must be a side, or height and width"),
        ({"mode": "slide", "crop": (64, 64, 64)}, "`crop` must be a side"),
        ({"mode": "slide", "crop": 64, "stride": 65}, "`stride` must be at most `crop`"),
        ({"mode": "slide", "stride": 0}, "`stride` must be a side"),
        ({"scales": ()}, "`scales` must be 1 to 32 numbers"),
        ({"scales": (0,)}, "`scales` must be numbers above 0"),
        ({"scales": (float("nan"),)}, "`scales` must be numbers above 0"),
        ({"scales": 1}, "`scales` must be numbers"),
        ({"flip": 1}, "`flip` must be True or False"),
        ({"batch_size": 0}, "`batch_size` must be an integer >= 1"),
        ({"max_pixels": 0}, "`max_pixels` must be"),
    ],
)
def test_arguments_that_are_refused(given, says):
    with pytest.raises(ValueError, match=says):
        Segmenter(None, **given)


def test_weights_that_are_refused(saved, tmp_path):
    with pytest.raises(ValueError, match=r"`weights` must be a name, a path or a Keras model"):
        Segmenter(None)
    with pytest.raises(ValueError, match=r"no such weights"):
        Segmenter("van_b9_ade")
    with pytest.raises(FileNotFoundError):
        Segmenter(tmp_path / "no.keras")
    with pytest.raises(FileNotFoundError):
        Segmenter(tmp_path / "no.pth")
    with pytest.raises(CheckpointError, match="refused"):
        Segmenter(GOLDEN / "micro.safetensors")  # a classifier


# --- .keras files of strangers ---


def changed(saved, path, change=None, member="config.json", data=None):
    """The file with a changed configuration, or another member."""
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == member:
                content = data
                if data is None:
                    config = json.loads(old.read(name))
                    change(config)
                    content = json.dumps(config)
            new.writestr(name, content)
    return path


def setting(**values):
    return lambda config: config["config"].update(values)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (setting(decoder="psp"), "`decoder` must be one of"),
        (setting(decoder="semantic_fpn"), "refused"),
        (setting(labels={"class_name": "Lambda", "module": "keras.layers"}), "the class"),
        (lambda config: config.update(registered_name="os>system"), "a model of class"),
        (lambda config: config.update(config=[1]), "describes no model"),
    ],
)
def test_a_keras_file_is_read_as_data(change, says, saved, tmp_path):
    with pytest.raises(CheckpointError, match=says):
        Segmenter(changed(saved, tmp_path / "x.keras", change))


@pytest.mark.slow
def test_a_keras_file_of_other_tensors(saved, tmp_path):
    other = micro.VANSegmenter(**micro.SIZES, decoder="semantic_fpn", num_classes=7, channels=16)
    other.save(tmp_path / "other.keras")
    with zipfile.ZipFile(tmp_path / "other.keras") as file:
        weights = file.read("model.weights.h5")
    path = changed(saved, tmp_path / "x.keras", member="model.weights.h5", data=weights)
    with pytest.raises(CheckpointError, match=r"x.keras was refused, nothing was loaded"):
        Segmenter(path)
    for data in (b"", b"\x89HDF\r\n\x1a\n", pickle.dumps([1])):
        path = changed(saved, tmp_path / "x.keras", member="model.weights.h5", data=data)
        with pytest.raises(CheckpointError, match="refused"):
            Segmenter(path)


@pytest.mark.slow
def test_a_model_in_training_is_taken_as_data(saved, segmenter, tmp_path):
    """Compiled, frozen, of another policy and data format: the file is of the same weights."""
    path = changed(saved, tmp_path / "x.keras", setting(data_format="channels_first"))
    picture = photo()
    np.testing.assert_array_equal(Segmenter(path)(picture).mask, Segmenter(saved)(picture).mask)
