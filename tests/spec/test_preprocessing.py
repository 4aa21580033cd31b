"""How a picture becomes input: the record that each checkpoint carries."""

import hashlib
import io
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from van_classification_tensorflow.images.decode import ImageError, open_image
from van_classification_tensorflow.images.parallel import decoded
from van_classification_tensorflow.spec.preprocessing import (
    INTERPOLATIONS,
    MAX_RESIZED,
    Preprocessing,
    resized,
)
from van_classification_tensorflow.support.text import printable
from van_classification_tensorflow.train.augment import TrainTransform
from van_classification_tensorflow.weights.catalogue import CATALOGUE

NOISE = np.random.Generator(np.random.PCG64(3)).integers(0, 256, (75, 100, 3), dtype=np.uint8)


def test_preprocessing_reads_like_a_sentence_and_survives_json():
    one = Preprocessing()
    assert str(one) == (
        "shorter side to 248 (bicubic), centre crop 224, mean (0.5, 0.5, 0.5), std (0.5, 0.5, 0.5)"
    )
    for record in (one, CATALOGUE["van_b5.in22k"].preprocessing, CATALOGUE["digits"].preprocessing):
        assert Preprocessing.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    assert Preprocessing(256, 0.875).resize_to == 292  # floor(292.57)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"input_size": 0}, "`input_size`"),
        ({"input_size": 224.0}, "`input_size`"),
        ({"input_size": True}, "`input_size`"),
        ({"crop_pct": 0}, "`crop_pct`"),
        ({"crop_pct": 1.01}, "`crop_pct`"),
        ({"crop_pct": float("nan")}, "`crop_pct`"),
        ({"interpolation": "cubic"}, "bicubic, lanczos"),
        ({"mean": (0.5, 0.5)}, "`mean`"),
        ({"mean": 0.5}, "`mean`"),
        ({"mean": np.array(0.5)}, "`mean`"),
        ({"mean": (float("nan"),) * 3}, "`mean`"),
        ({"mean": "0.5"}, "`mean`"),
        ({"mean": (0.5,)}, "`mean` and `std`"),
        ({"std": (0.5, 0.5, 0.0)}, "`std` divides"),
        ({"std": (float("inf"),) * 3}, "`std`"),
        ({"crop": 0.9}, "Received also: ['crop']"),
    ],
)
def test_preprocessing_refuses(wrong, says):
    with pytest.raises(ValueError, match="Received") as error:
        Preprocessing.from_dict(wrong)
    assert says in str(error.value)


CASES = ("landscape", "portrait", "small", "exact", "square")
GOLDEN = Path(__file__).parents[1] / "golden" / "eval_transform.npz"
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("case", CASES)
def test_resize_and_crop_are_the_authors_bit_for_bit(case):
    with np.load(GOLDEN) as golden:
        assert {key.split("/")[0] for key in golden} == set(CASES)
        picture, expected = golden[f"{case}/input"], golden[f"{case}/cropped_uint8"]
    one = Preprocessing()
    found = one.crop(Image.fromarray(picture))
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)
    # The whole way: a file without loss, decoded, cut, scaled.
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    made = one(open_image(file.getvalue()))
    assert made.dtype == np.float32
    assert made.shape == (224, 224, 3)
    assert np.abs(made - (expected.astype(np.float64) / 255 - 0.5) / 0.5).max() <= 1e-6


@pytest.mark.parametrize(("mean", "std"), [((0.5,) * 3, (0.5,) * 3), IMAGENET, CLIP])
def test_scaling(mean, std):
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    found = Preprocessing(16, 1.0, mean=mean, std=std)(Image.fromarray(pixels))
    exact = (pixels.astype(np.float64) / 255 - mean) / std
    assert np.abs(found - exact).max() <= 1e-6


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_each_filter_is_pillows(interpolation):
    one = Preprocessing(20, 0.5, interpolation)
    image = Image.fromarray(NOISE)
    resized = image.resize((53, 40), Image.Resampling[interpolation.upper()])
    # (53 - 20) / 2 = 16.5, rounded to even as Python rounds.
    assert np.array_equal(one.crop(image), np.asarray(resized)[10:30, 16:36])


# What `Image.resize` of Pillow 12.3.0 makes of tall noise, as SHA-256. Release 13 takes the height
# of such pictures first, and other values come out.
TALL = {
    "nearest": ("74c891511b10c4c9", "df65e1cb81767be4", "9e9917475d9e9f43"),
    "box": ("c28f586fa99af643", "440558bffb1c3340", "6df6f3c0ac0620df"),
    "bilinear": ("9d51e3f720b48918", "ecbe0eadc256ade2", "e3fd840bb287bc31"),
    "hamming": ("4775764e8423ca9b", "bdd606ea9b2825ed", "081f8d6bdc7c7f38"),
    "bicubic": ("c65838d4474aa7b5", "b46604d70a7ff8e1", "f17ddf754eca63ad"),
    "lanczos": ("940ff7586b7c5854", "1c42914d825006e7", "b87f1bc234073166"),
}


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_tall_pictures_are_the_same_with_every_pillow(interpolation):
    found = []
    for size, target in (((50, 120), (24, 57)), ((50, 90), (24, 24)), ((30, 200), (40, 40))):
        rng = np.random.Generator(np.random.PCG64(0))
        image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8))
        pixels = resized(image, target, Image.Resampling[interpolation.upper()], "RGB")
        found.append(hashlib.sha256(np.asarray(pixels).tobytes()).hexdigest()[:16])
        if target[0] != 40:  # and the whole record
            way = "both sides" if target == (24, 24) else "shorter side"
            cut = Preprocessing(24, 1.0, interpolation, resize=way).crop(image)
            top = round((target[1] - 24) / 2)
            assert np.array_equal(cut, np.asarray(pixels)[top : top + 24])
    assert tuple(found) == TALL[interpolation]


def test_grey_and_colour_models_take_both():
    grey, colour = Image.fromarray(NOISE[..., 0]), Image.fromarray(NOISE)
    one = Preprocessing(20, mean=(0.1,), std=(0.3,))
    assert one(grey).shape == (20, 20, 1)
    assert np.array_equal(one(colour), one(colour.convert("L")))
    three = Preprocessing(20)(grey)
    assert three.shape == (20, 20, 3)
    assert (three == three[..., :1]).all()


def test_views_are_the_centre_the_corners_and_their_mirrors():
    one = Preprocessing(20, 0.5, "bilinear", *IMAGENET)
    image = Image.fromarray(NOISE)
    resized = np.asarray(image.resize((53, 40), Image.Resampling.BILINEAR))
    cut = [
        resized[10:30, 16:36],
        resized[:20, :20],
        resized[:20, 33:],
        resized[20:, :20],
        resized[20:, 33:],
    ]
    for crops in (1, 5):
        plain = one.normalise(np.stack(cut[:crops]))
        assert np.array_equal(one.views(image, crops), plain)
        pixels = one.pixel_views(image, crops)
        assert pixels.dtype == np.uint8
        assert np.array_equal(pixels, np.stack(cut[:crops]))
        both = np.concatenate([plain, plain[:, :, ::-1]])
        assert np.array_equal(one.views(image, crops, flip=True), both)
    assert one.views(image).dtype == np.float32
    assert np.array_equal(one.views(image)[0], one(image))
    for crops in (0, 2, 10):
        with pytest.raises(ValueError, match=f"`crops` must be 1 or 5. Received: {crops}"):
            one.views(image, crops)


@pytest.mark.parametrize("size", [(1, 50_000_000), (50_000_000, 1), (2, 20_000_000)])
def test_a_line_is_refused_before_it_becomes_a_giant(size):
    image = Image.new("L", size)
    tracemalloc.start()
    for call in (Preprocessing().crop, Preprocessing(), Preprocessing().views):
        with pytest.raises(ValueError, match=r"too long and thin, .* allowed: 50,000,000 pixels"):
            call(image)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("size", [(1, 50_000_000), (50_000_000, 1), (100, 300_000)])
def test_a_line_is_refused_before_it_is_squeezed_into_a_square(size):
    """Between the two passes of the filter it is a giant, or its weights are."""
    image = Image.new("L", size)
    transform = TrainTransform(crop_scale=(1, 1), crop_ratio=(1e-8, 1e8))
    for call in (
        Preprocessing(resize="both sides").crop,
        lambda image: transform(image, np.random.default_rng(0)),
    ):
        with pytest.raises(ValueError, match=r"too long and thin, .* allowed: 50,000,000 pixels"):
            call(image)


def test_pictures_that_do_not_fit_into_the_memory_are_named(tmp_path):
    def decode(source):
        raise MemoryError

    for source, name in ((tmp_path / "a\n.png", printable(tmp_path / "a\n.png") + ": "), (b"", "")):
        [(_, error)] = decoded([source], decode)
        assert isinstance(error, ImageError)
        assert str(error) == f"{name}too large for the memory"


def test_a_line_in_a_file_is_refused_by_its_name(tmp_path):
    path = tmp_path / "line\n.png"
    Image.new("L", (1, 300_000)).save(path)
    one = Preprocessing()
    [(source, error)] = decoded([path], lambda path: one.views(open_image(path)))
    assert source == path
    assert isinstance(error, ImageError)
    assert str(error).startswith(f"{printable(path)}: 1 x 300000 pixels: too long and thin")


def test_long_and_large_pictures_that_are_no_lines():
    one = Preprocessing()
    assert one(Image.new("RGB", (10, 8_000))).shape == (224, 224, 3)  # 800 : 1
    large = Preprocessing(8_000, 1.0)  # 64 million pixels, the crop itself
    assert large.resize_to**2 > MAX_RESIZED
    assert large.crop(Image.new("L", (10, 10))).shape == (8_000, 8_000, 3)
    # The shorter side has its length already: nothing is resized.
    assert one(Image.new("L", (248, 201_614))).shape == (224, 224, 3)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"interpolation": np.array(["box", "a"])}, "`interpolation` must be one of"),
        ({"mean": {0.1, 0.2, 0.3}}, "`mean` must hold"),
        ({"std": {0.1: 1, 0.2: 2, 0.3: 3}}, "`std` must hold"),
    ],
)
def test_what_has_no_order_or_is_no_single_value_is_refused(values, says):
    with pytest.raises(ValueError, match=says):
        Preprocessing(**values)
    plain = Preprocessing(interpolation=np.str_("box"), mean=iter([0.1, 0.2, 0.3]))
    assert type(plain.interpolation) is str
    assert plain.mean == (0.1, 0.2, 0.3)
