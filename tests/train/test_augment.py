"""Training-time augmentation: timm 0.4.12's operations bit for bit, its distributions, determinism.

Statistical tests draw from fixed seeds; their tolerances are four to six standard errors.
"""

import json
import math
import pickle
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from van_classification_tensorflow.spec.preprocessing import Preprocessing, resized
from van_classification_tensorflow.train import augment
from van_classification_tensorflow.train.augment import (
    INCREASING_OPERATIONS,
    OPERATIONS,
    BatchTransform,
    RandAugment,
    TrainTransform,
    apply_operation,
    erase,
    operation_arguments,
    random_crop_box,
)

GOLDEN = Path(__file__).parents[1] / "golden"
KEYS = json.loads((GOLDEN / "augment.json").read_text())
BOTH = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NOISE = np.random.Generator(np.random.PCG64(3)).integers(0, 256, (60, 80, 3), dtype=np.uint8)
PICTURE = Image.fromarray(NOISE)
PLAIN = TrainTransform(  # the whole picture, unchanged
    40,
    crop_scale=(1, 1),
    crop_ratio=(4 / 3, 4 / 3),
    interpolations=("bicubic",),
    horizontal_flip=0,
    rand_augment=None,
)
ONLY_MIXED = BatchTransform(label_smoothing=0, erasing=0, mean=(0,), std=(1 / 255,))
NOT_MIXED = BatchTransform(mix_probability=0)


def generator(seed=0):
    return np.random.Generator(np.random.PCG64(seed))


def near(found, expected, draws, spread):
    """Whether the mean of many draws is what it should be: within 5 standard errors."""
    return abs(np.mean(found) - expected) <= 5 * spread / math.sqrt(draws)


# --- RandAugment's operations ---


def test_the_golden_file_has_all_operations():
    assert len(KEYS["args"]) == len(KEYS["stored_as"]) == 120
    assert tuple(KEYS["ops"]) == INCREASING_OPERATIONS
    assert {key.split("|")[0] for key in KEYS["args"]} == set(INCREASING_OPERATIONS)


@pytest.mark.parametrize("name", INCREASING_OPERATIONS)
def test_operations_are_timms_bit_for_bit(name):
    keys = [key for key in KEYS["args"] if key.split("|")[0] == name]
    assert len(keys) == 8
    with np.load(GOLDEN / "augment.npz") as golden:
        before = Image.fromarray(golden["input"])
        for key in keys:
            _, magnitude, filter_name, sign = key.split("|")
            arguments = operation_arguments(name, float(magnitude[1:]), 1 if sign == "pos" else -1)
            assert list(arguments) == KEYS["args"][key], key  # exactly
            resample = Image.Resampling[filter_name.upper()]
            after = apply_operation(before, name, arguments, resample, (128, 128, 128))
            expected = golden[KEYS["stored_as"][key]]
            assert np.array_equal(np.asarray(after), expected), key
        assert np.array_equal(np.asarray(before), golden["input"])


@pytest.mark.parametrize(
    ("name", "at_0", "at_3", "at_10"),
    [
        ("Posterize", 0, 1, 4),
        ("PosterizeIncreasing", 4, 3, 0),
        ("Solarize", 0, 76, 256),
        ("SolarizeIncreasing", 256, 180, 0),
        ("SolarizeAdd", 0, 33, 110),
        ("Color", 0.1, 0.64, 1.9),
        ("Contrast", 0.1, 0.64, 1.9),
        ("Brightness", 0.1, 0.64, 1.9),
        ("Sharpness", 0.1, 0.64, 1.9),
        ("ColorIncreasing", 1, 0.73, 0.1),
        ("TranslateXRel", 0, -0.135, -0.45),
    ],
)
def test_arguments_from_no_to_full_magnitude(name, at_0, at_3, at_10):
    for magnitude, expected in ((0, at_0), (3, at_3), (10, at_10)):
        [found] = operation_arguments(name, magnitude, -1)
        assert found == pytest.approx(expected, abs=1e-12)
        assert isinstance(found, type(expected)) or expected in (0, 1)


@pytest.mark.parametrize(("name", "magnitude"), [("PosterizeIncreasing", 10), ("Posterize", 2.4)])
def test_no_bits_kept_is_black(name, magnitude):
    # Pillow 13's own posterize refuses it; a magnitude of 9 with noise is often 10.
    arguments = operation_arguments(name, magnitude, 1)
    assert arguments == (0,)
    for image in (PICTURE, PICTURE.convert("L")):
        assert not np.asarray(apply_operation(image, name, arguments, BOTH[0], 0)).any()


@pytest.mark.parametrize("name", sorted({*OPERATIONS, *INCREASING_OPERATIONS}))
def test_grey_pictures_change_as_grey_colours_do(name):
    grey = PICTURE.convert("L").resize((20, 16))
    colour = grey.convert("RGB")
    for magnitude in (0, 4.3, 10):
        for sign in (1, -1):
            arguments = operation_arguments(name, magnitude, sign)
            found = apply_operation(grey, name, arguments, BOTH[1], 100)
            assert found.mode == "L"
            expected = np.asarray(apply_operation(colour, name, arguments, BOTH[1], (100,) * 3))
            assert np.array_equal(np.asarray(found)[..., None].repeat(3, 2), expected)
            if name.startswith("Color"):
                assert found.tobytes() == grey.tobytes()


def test_geometric_operations_bring_in_the_fill_colour():
    fill = (10, 20, 30)
    for name in ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"):
        after = apply_operation(PICTURE, name, operation_arguments(name, 9, 1), BOTH[0], fill)
        assert (np.asarray(after).reshape(-1, 3) == fill).all(1).mean() > 0.05, name
    shifted = np.asarray(apply_operation(PICTURE, "TranslateXRel", (0.25,), BOTH[0], fill))
    assert np.array_equal(shifted[:, :60], NOISE[:, 20:])  # a quarter of 80 pixels, to the left
    assert (shifted[:, 60:] == fill).all()


def test_operations_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match="Received: name='Cutout'"):
        operation_arguments("Cutout", 9, 1)
    for name, arguments in (("Cutout", ()), ("Rotate", ()), ("Invert", (1,))):
        with pytest.raises(ValueError, match=f"Received: name='{name}', arguments="):
            apply_operation(PICTURE, name, arguments, BOTH[0], 0)


# --- RandAugment's draws ---


def test_specs_are_read_as_timm_reads_them():
    read = RandAugment.from_spec
    assert read("rand-m9-mstd0.5-inc1") == RandAugment(9, 2, 0.5, True)
    assert read("rand") == RandAugment(10, 2, 0.0, False)
    assert read("rand-n3-m15") == RandAugment(15, 3, 0.0, False)
    assert read("rand-mstd1-inc0-m0") == RandAugment(0, 2, 1.0, False)


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "augmix-m5",
        "original",
        "rand-m9-p0.5",
        "rand-m9-mmax30",
        "rand-w0",
        "rand-m9-",
        "rand-m",
        "rand-m9.5",
        "rand-m-1",
        "rand-n0",
        "rand-inc2",
        "rand-mstd",
        "rand-mstdinf",
        "rand-m9-m5",
        "Rand-m9",
        "rand-m9 ",
        "rand-m٣",
        None,
        9,
    ],
)
def test_specs_with_something_unknown_are_refused(spec):
    with pytest.raises(ValueError, match=r"-mstd .* -inc .*Received: rand_augment=") as error:
        RandAugment.from_spec(spec)
    assert repr(spec) in str(error.value)


@pytest.fixture
def calls(monkeypatch):
    """What RandAugment would do, instead of doing it: (name, arguments, resample, fill)."""
    made = []

    def record(image, *call):
        made.append(call)
        return image

    monkeypatch.setattr(augment, "apply_operation", record)
    return made


def test_operations_are_drawn_evenly_and_half_of_them_happen(calls):
    one, rng, dot = (
        RandAugment.from_spec("rand-m9-mstd0.5-inc1"),
        generator(),
        Image.new("L", (1, 1)),
    )
    draws, happened, pairs = 20_000, Counter(), Counter()
    for _ in range(draws):
        start = len(calls)
        assert one(dot, rng, BOTH, 7) is dot
        happened[len(calls) - start] += 1
        pairs[tuple(call[0] for call in calls[start:])] += 1
    for count, share in ((0, 0.25), (1, 0.5), (2, 0.25)):
        assert abs(happened[count] / draws - share) < 5 * math.sqrt(share * (1 - share) / draws)
    names = Counter(call[0] for call in calls)
    assert set(names) == set(INCREASING_OPERATIONS)
    assert all(abs(n - draws / 15) < 5 * math.sqrt(draws / 15) for n in names.values())
    # With replacement: the two are the same in one of 15.
    twice = sum(n for pair, n in pairs.items() if len(pair) == 2 and pair[0] == pair[1])
    assert abs(twice - happened[2] / 15) < 5 * math.sqrt(happened[2] / 15)
    filters = Counter(call[2] for call in calls)
    assert set(filters) == set(BOTH)
    assert abs(filters[BOTH[0]] - len(calls) / 2) < 5 * math.sqrt(len(calls) / 4)
    assert {call[3] for call in calls} == {7}


def test_without_inc_the_original_operations_are_drawn(calls):
    one, rng = RandAugment.from_spec("rand-m3-n40"), generator()
    for _ in range(50):
        one(PICTURE, rng, BOTH, (0, 0, 0))
    assert {call[0] for call in calls} == set(OPERATIONS)
    assert abs(len(calls) - 1_000) < 5 * math.sqrt(500)
    # No noise: every magnitude is 3.
    assert {call[1] for call in calls if call[0] == "SolarizeAdd"} == {(33,)}
    assert {call[1] for call in calls if call[0] == "Rotate"} == {(9.0,), (-9.0,)}


def _magnitudes(calls, spec):
    one, rng = RandAugment.from_spec(spec), generator(1)
    for _ in range(2_000):
        one(PICTURE, rng, BOTH, (0, 0, 0))
    turned = np.array([call[1][0] for call in calls if call[0] == "Rotate"])
    factors = np.array([call[1][0] for call in calls if call[0] == "ColorIncreasing"])
    return turned, np.abs(turned) / 3, factors


def test_magnitudes_are_normal_and_clipped(calls):
    turned, found, factors = _magnitudes(calls, "rand-m9-mstd0.5-inc1-n15")
    draws = len(found)
    assert draws > 900
    assert abs((turned > 0).mean() - 0.5) < 2.5 / math.sqrt(draws)
    assert abs((factors > 1).mean() - 0.5) < 2.5 / math.sqrt(len(factors))
    assert found.max() == 10  # two standard deviations away: 2.3 % of them are clipped
    assert abs((found == 10).mean() - 0.02275) < 5 * math.sqrt(0.02275 / draws)
    for at, share in ((8.5, 0.1587), (9, 0.5), (9.5, 0.8413)):
        assert abs((found < at).mean() - share) < 2.5 / math.sqrt(draws)
    assert factors.min() == pytest.approx(0.1)
    assert factors.max() == pytest.approx(1.9)


def test_magnitudes_are_clipped_at_0(calls):
    _, found, factors = _magnitudes(calls, "rand-m0-mstd2-inc1-n15")
    assert abs((found == 0).mean() - 0.5) < 2.5 / math.sqrt(len(found))
    assert abs((factors == 1).mean() - 0.5) < 2.5 / math.sqrt(len(factors))
    assert abs((found < 2).mean() - 0.8413) < 2.5 / math.sqrt(len(found))


def test_magnitudes_above_10_are_10(calls):
    _, found, _ = _magnitudes(calls, "rand-m15-n15")
    assert set(found) == {10}


# --- Random resized crop ---


def test_crops_are_even_in_area_ratio_and_place():
    # At most 30 % of a large square: every draw fits.
    rng, draws, side = generator(), 8_000, 4_000
    boxes = np.array([random_crop_box(side, side, (0.08, 0.3), RATIO, rng) for _ in range(draws)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    share = (width * height / side**2 - 0.08) / 0.22
    log_ratio = np.log(width / height) / math.log(4 / 3)
    places = boxes[:, 0] / (side - width), boxes[:, 1] / (side - height)
    for found, least in ((share, 0), (log_ratio, -1), (places[0], 0), (places[1], 0)):
        even = (found - least) / (1 - least)
        assert -0.001 < even.min() < 0.002
        assert 0.998 < even.max() < 1.001
        for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
            spread = math.sqrt(quantile * (1 - quantile) / draws)
            assert abs((even < quantile).mean() - quantile) < 5 * spread
    everything = np.corrcoef([share, log_ratio, *places])
    assert np.abs(everything - np.eye(4)).max() < 5 / math.sqrt(draws)


def test_a_crop_may_lie_at_every_border():
    rng = generator()
    places = Counter(
        random_crop_box(5, 4, (0.45, 0.45), (1, 1), rng)  # always 3 x 3
        for _ in range(6_000)
    )
    assert set(places) == {(x, y, x + 3, y + 3) for x in range(3) for y in range(2)}
    assert all(abs(n - 1_000) < 5 * math.sqrt(1_000) for n in places.values())


def test_a_crop_is_drawn_ten_times_and_then_central():
    # One in 9.5 fits (ratios within 2 * log(1000.5 / 900) of 1); if none, the whole picture is cut.
    rng, ratio, draws = generator(), (math.exp(-2), math.exp(2)), 12_000
    never = (1 - math.log(1_000.5 / 900)) ** 10
    boxes = [random_crop_box(1_000, 1_000, (0.81, 0.81), ratio, rng) for _ in range(draws)]
    share = sum(box == (0, 0, 1_000, 1_000) for box in boxes) / draws
    assert abs(share - never) < 5 * math.sqrt(never * (1 - never) / draws)


def test_a_crop_may_be_as_wide_or_high_as_the_picture():
    rng = generator()
    tall = {random_crop_box(10, 40, (0.25, 0.25), (1, 1), rng) for _ in range(500)}
    assert tall == {(0, top, 10, top + 10) for top in range(31)}
    wide = {random_crop_box(40, 10, (0.25, 0.25), (1, 1), rng) for _ in range(500)}
    assert wide == {(left, 0, left + 10, 10) for left in range(31)}


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((300, 100), (83, 0, 216, 100)),  # 133 wide; 167 / 2 rounded down
        ((100, 300), (0, 83, 100, 216)),
        ((5000, 1), (2499, 0, 2500, 1)),
        ((1, 5000), (0, 2499, 1, 2500)),
        ((100, 100), (0, 0, 100, 100)),
        ((1, 1), (0, 0, 1, 1)),
    ],
)
def test_what_never_fits_is_cropped_in_the_centre(size, box):
    for seed in range(20):
        assert random_crop_box(*size, (1.0, 1.0), RATIO, generator(seed)) == box


def test_a_central_crop_has_at_least_one_pixel():
    assert random_crop_box(1, 1, (1, 1), (9, 9), generator()) == (0, 0, 1, 1)
    assert random_crop_box(1, 1, (1, 1), (0.1, 0.1), generator()) == (0, 0, 1, 1)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (2, 3), (8, 8), (3, 700)])
def test_crops_lie_inside_of_any_picture(size):
    rng = generator()
    for _ in range(300):
        left, top, right, bottom = random_crop_box(*size, SCALE, RATIO, rng)
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]


# --- Random erasing ---


def _erased(shape, draws, probability=1.0, seed=0):
    """The box of each draw that erased anything: top, bottom, left, right."""
    rng, boxes = generator(seed), []
    for _ in range(draws):
        pixels = np.full(shape, 99, np.float32)
        assert erase(pixels, probability, rng) is None
        changed = pixels != 99
        assert (changed.all(-1) == changed.any(-1)).all()  # every channel of a pixel
        if changed.any():
            rows, columns = np.flatnonzero(changed.any((1, 2))), np.flatnonzero(changed.any((0, 2)))
            box = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
            assert changed[box[0] : box[1], box[2] : box[3]].all()
            assert changed[..., 0].sum() == (box[1] - box[0]) * (box[3] - box[2])
            boxes.append(box)
    return np.array(boxes)


def test_erasing_happens_as_often_as_it_should():
    draws = 4_000
    for probability in (0.25, 0.7):
        count = len(_erased((24, 24, 1), draws, probability))
        assert abs(count / draws - probability) < 2.5 / math.sqrt(draws)
    assert len(_erased((24, 24, 1), 200, 0.0)) == 0
    assert len(_erased((24, 24, 1), 200, 1.0)) == 200


def test_erased_boxes_are_even_in_area_shape_and_place():
    draws, height, width = 3_000, 120, 150
    boxes = _erased((height, width, 1), draws)
    assert len(boxes) == draws
    h, w = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    area = (h * w / (height * width) - 0.02) / (1 / 3 - 0.02)
    shape = (np.log(h / w) / math.log(1 / 0.3) + 1) / 2
    # A box nearly as large as the picture does not fit; boxes of whole pixels round.
    for found, tolerance in ((area, 0.01), (shape, 0.03)):
        assert -0.03 < found.min() < 0.02
        assert 0.98 < found.max() < 1.03
        for quantile in (0.25, 0.5, 0.75):
            spread = math.sqrt(quantile * (1 - quantile) / draws)
            assert abs((found < quantile).mean() - quantile) < 5 * spread + tolerance
    assert near(area, 0.5, draws, 0.289 * 1.2)
    top, left = boxes[:, 0] / (height - h), boxes[:, 2] / (width - w)
    for place in (top, left):
        assert place.min() == 0
        assert place.max() == 1
        assert near(place, 0.5, draws, 0.289 * 1.2)


def test_erasing_never_takes_a_whole_side():
    boxes = _erased((3, 3, 3), 3_000)
    assert (boxes[:, 1] - boxes[:, 0]).max() == (boxes[:, 3] - boxes[:, 2]).max() == 2
    assert set(boxes[:, 1]) == set(boxes[:, 3]) == {1, 2, 3}
    assert set(boxes[:, 0]) == set(boxes[:, 2]) == {0, 1, 2}
    pixels = np.ones((1, 1, 3), np.float32)  # nothing that small fits
    for seed in range(50):
        erase(pixels, 1.0, generator(seed))
    assert (pixels == 1).all()


def test_an_erasing_that_does_not_fit_is_drawn_again():
    # Of 4 x 4 pixels about every twentieth box is as high or as wide as the picture.
    rng, untouched, draws = generator(), 0, 4_000
    for _ in range(draws):
        pixels = np.full((4, 4, 1), 99, np.float32)
        erase(pixels, 1.0, rng)
        untouched += (pixels == 99).all()
    # Boxes of 0 rows or columns fit, as in timm, and erase nothing.
    simulated = generator(5)
    area, aspect = simulated.uniform(0.02, 1 / 3, 10**5), simulated.uniform(-1, 1, 10**5)
    aspect = np.exp(aspect * math.log(0.3))
    h, w = np.rint(np.sqrt(16 * area * aspect)), np.rint(np.sqrt(16 * area / aspect))
    fits = (h < 4) & (w < 4)
    expected = (fits & ((h == 0) | (w == 0))).sum() / fits.sum()
    assert (~fits).mean() > 0.03
    assert abs(untouched / draws - expected) < 5 * math.sqrt(expected / draws)


def test_erased_pixels_are_normal_noise():
    rng, found = generator(), []
    for _ in range(6):
        pixels = np.full((300, 300, 3), 99, np.float32)
        erase(pixels, 1.0, rng)
        assert pixels.dtype == np.float32
        found.append(pixels[pixels[..., 0] != 99])
    noise = np.concatenate(found)
    count = noise.size
    assert count > 50_000
    assert near(noise, 0, count, 1)
    assert near(noise**2, 1, count, math.sqrt(2))
    assert near(noise**4, 3, count, math.sqrt(96))
    assert near(np.abs(noise) < 1, 0.6827, count, 0.466)
    # Each pixel and each channel by itself.
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 5 / math.sqrt(count / 3)
    assert len(np.unique(noise)) > 0.9 * count


# --- One picture ---


def test_without_chance_it_is_resizing():
    found = PLAIN(PICTURE, generator())
    assert found.dtype == np.uint8
    assert np.array_equal(found, PICTURE.resize((40, 40), Image.Resampling.BICUBIC))


def test_tall_pictures_are_resized_as_in_evaluation():
    tall = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 30, 3), np.uint8))
    found = replace(PLAIN, crop_ratio=(0.15, 0.15))(tall, generator())
    whole = Preprocessing(40, 1.0, resize="both sides")  # another order gives other values
    assert np.array_equal(found, whole.crop(tall))


@pytest.mark.parametrize(
    ("change", "turned"),
    [
        ({"horizontal_flip": 1}, NOISE[:, ::-1]),
        ({"vertical_flip": 1}, NOISE[::-1]),
        ({"horizontal_flip": 1, "vertical_flip": 1}, NOISE[::-1, ::-1]),
        ({"input_size": 1}, NOISE),
        ({"interpolations": ["nearest"]}, NOISE),
        ({"interpolations": ("bilinear",)}, NOISE),
    ],
)
def test_each_step_by_itself(change, turned):
    one = replace(PLAIN, **change)
    size, resample = (one.input_size,) * 2, Image.Resampling[one.interpolations[0].upper()]
    # Flipped after it was resized: Pillow's filters are symmetric only up to rounding.
    plain = np.asarray(PICTURE.resize(size, resample))
    flips = (-1 if one.vertical_flip else 1), (-1 if one.horizontal_flip else 1)
    expected = plain[:: flips[0], :: flips[1]]
    assert np.array_equal(one(PICTURE, generator()), expected)
    assert np.array_equal(NOISE[:: flips[0], :: flips[1]], turned)


def test_flips_and_filters_come_as_often_as_they_should():
    small = Image.fromarray(NOISE[:4, :6])
    one = replace(
        PLAIN,
        input_size=5,
        crop_ratio=(1.5, 1.5),
        horizontal_flip=0.5,
        vertical_flip=0.2,
        interpolations=("bilinear", "bicubic"),
    )
    versions = {}
    for resample in BOTH:
        pixels = np.asarray(small.resize((5, 5), resample))
        for down in (1, -1):
            for across in (1, -1):
                versions[pixels[::down, ::across].tobytes()] = (resample, down, across)
    assert len(versions) == 8
    rng, draws = generator(), 4_000
    # A KeyError: something else was done.
    found = Counter(versions[one(small, rng).tobytes()] for _ in range(draws))
    for (_, down, _), count in found.items():
        expected = 0.25 * (0.2 if down < 0 else 0.8) * draws
        assert abs(count - expected) < 5 * math.sqrt(expected)
    assert len(found) == 8


@pytest.mark.parametrize("channels", [1, 3])
def test_the_steps_follow_each_other_as_in_timm(channels, calls):
    mode, fill = ("L", 26) if channels == 1 else ("RGB", (26, 255, 0))
    one = TrainTransform(
        30,
        mean=(0.1, 1.7, -2)[:channels],
        vertical_flip=0.5,
        rand_augment="rand-m9-n4-mstd0.5-inc1",
    )
    for seed in range(30):
        calls.clear()
        found = one(PICTURE, generator(seed))
        # The same numbers, in steps written out.
        rng = generator(seed)
        box = random_crop_box(80, 60, SCALE, RATIO, rng)
        # Cropped, then resized: with `resize(box=...)` the filter would see beyond the crop.
        image = resized(PICTURE.crop(box), (30, 30), BOTH[rng.integers(2)], mode)
        pixels = np.asarray(image).reshape(30, 30, channels)
        pixels = pixels[:, ::-1] if rng.random() < 0.5 else pixels
        pixels = pixels[::-1] if rng.random() < 0.5 else pixels
        made = list(calls)
        RandAugment.from_spec(one.rand_augment)(image, rng, BOTH, fill)
        assert calls[len(made) :] == made
        assert all(call[3] == fill for call in made)
        assert np.array_equal(found, pixels)


def test_operations_apply_to_the_flipped_picture():
    one = replace(PLAIN, horizontal_flip=1, rand_augment="rand-m9-n3-inc1", mean=(0.2, 0.5, 0.8))
    resized = PICTURE.resize((40, 40), BOTH[1]).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    different = 0
    for seed in range(40):
        rng = generator(seed)
        random_crop_box(80, 60, (1, 1), (4 / 3, 4 / 3), rng)
        rng.integers(1), rng.random(), rng.random()
        image = RandAugment(9, 3, 0, True)(resized, rng, BOTH[1:], (51, 128, 204))
        found = one(PICTURE, generator(seed))
        assert np.array_equal(found, np.asarray(image))
        different += not np.array_equal(found, np.asarray(resized))
    assert different > 25


def test_grey_and_colour_models_take_all_pictures():
    grey = PICTURE.convert("L")
    one, three = replace(PLAIN, mean=(0.1,)), PLAIN
    assert one(grey, generator()).shape == (40, 40, 1)
    assert np.array_equal(one(PICTURE, generator()), one(grey, generator()))
    found = three(grey, generator())
    assert found.shape == (40, 40, 3)
    assert (found == found[..., :1]).all()
    assert np.array_equal(three(PICTURE.convert("RGBA"), generator()), three(PICTURE, generator()))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (8, 8), (2, 900)])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_any_size(size, channels):
    rng = generator()
    for side in (1, 2, 32):
        one = TrainTransform(side, (0.5,) * channels, rand_augment="rand-m9-n5-mstd0.5-inc1")
        for image in (Image.new("L", size, 200), Image.new("RGB", size, (9, 80, 250))):
            for _ in range(12):
                found = one(image, rng)
                assert found.shape == (side, side, channels)
                assert found.dtype == np.uint8


def test_the_same_generator_gives_the_same_picture_and_nothing_else_matters():
    one = TrainTransform(24)
    # In the state of others, neither read nor changed.
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global one must stay untouched
    before = random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    first = [one(PICTURE, generator(seed)) for seed in range(8)]
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == before  # noqa: NPY002
    random.seed(2)
    np.random.seed(2)  # noqa: NPY002 - nor may it matter
    again = pickle.loads(pickle.dumps(TrainTransform(24)))  # noqa: S301 - as workers get it
    used = pickle.loads(pickle.dumps(one))  # noqa: S301
    assert used == again == one
    for seed in reversed(range(8)):
        assert np.array_equal(again(PICTURE, generator(seed)), first[seed])
        assert np.array_equal(used(PICTURE, generator(seed)), first[seed])
    assert len({picture.tobytes() for picture in first}) == 8
    assert np.array_equal(np.asarray(PICTURE), NOISE)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"input_size": 0}, "`input_size`"),
        ({"input_size": 32.0}, "`input_size`"),
        ({"mean": (0.5, 0.5)}, "`mean`"),
        ({"mean": None}, "`mean`"),
        ({"crop_scale": (0, 1)}, "`crop_scale`.*at most 1"),
        ({"crop_scale": (0.5, 1.1)}, "`crop_scale`"),
        ({"crop_scale": (0.9, 0.5)}, "`crop_scale`"),
        ({"crop_scale": 0.5}, "`crop_scale`"),
        ({"crop_scale": (0.1, 0.2, 0.3)}, "`crop_scale`"),
        ({"crop_scale": "12"}, "`crop_scale`"),
        ({"crop_scale": (float("nan"), 1)}, "`crop_scale`"),
        ({"crop_ratio": (0, 1)}, "`crop_ratio`"),
        ({"crop_ratio": (1, float("inf"))}, "`crop_ratio`"),
        ({"crop_ratio": (2, 1)}, "`crop_ratio`"),
        ({"interpolations": ()}, "`interpolations`"),
        ({"interpolations": "bilinear"}, "`interpolations`"),
        ({"interpolations": ("bilinear", "lanczos")}, "`interpolations`"),
        ({"interpolations": None}, "`interpolations`"),
        ({"interpolations": [["bicubic"]]}, "`interpolations`"),
        ({"horizontal_flip": 1.01}, "`horizontal_flip`"),
        ({"horizontal_flip": True}, "`horizontal_flip`"),
        ({"vertical_flip": -0.1}, "`vertical_flip`"),
        ({"vertical_flip": float("nan")}, "`vertical_flip`"),
        ({"rand_augment": "rand-x1"}, "rand-x1"),
        ({"rand_augment": ""}, "rand_augment=''"),
    ],
)
def test_transforms_refuse(wrong, says):
    with pytest.raises(ValueError, match=rf"(?s){says}.*Received|Received.*{says}"):
        TrainTransform(**wrong)


def test_transforms_hold_plain_tuples_and_the_recipes_defaults():
    one = TrainTransform(
        np.int64(32),
        [np.float32(0.5)],
        crop_scale=[0.5, 1],
        crop_ratio=[0.2, 5],
        interpolations=["nearest"],
    )
    assert one.input_size == 32
    assert (one.mean, one.crop_scale, one.crop_ratio) == ((0.5,), (0.5, 1.0), (0.2, 5.0))
    assert one.interpolations == ("nearest",)
    assert hash(one) == hash(replace(one))
    recipe = TrainTransform()
    assert (recipe.input_size, recipe.mean) == (224, (0.5,) * 3)
    assert (recipe.crop_scale, recipe.crop_ratio) == (SCALE, RATIO)
    assert recipe.interpolations == ("bilinear", "bicubic")
    assert (recipe.horizontal_flip, recipe.vertical_flip) == (0.5, 0.0)
    assert recipe.rand_augment == "rand-m9-mstd0.5-inc1"


# --- A batch ---


def _batch(count, seed=0, height=10, width=14):
    rng = generator(seed)
    return rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8), rng.integers(
        0, 7, count
    )


def _smoothed(labels, classes=7, smoothing=0.1):
    return np.eye(classes)[labels] * (1 - smoothing) + smoothing / classes


def _mixed(share, one, other):
    """Sum as in timm: pixels, share and products are float32; the result is rounded to even."""
    parts = one.astype(np.float32) * np.float32(share), other.astype(np.float32)
    return np.rint(parts[0] + parts[1] * np.float32(1 - share)).astype(np.uint8)


PAIRS = {1: [0], 2: [1, 0], 5: [1, 0, 3, 2, 4], 8: [1, 0, 3, 2, 5, 4, 7, 6]}


@pytest.mark.parametrize("count", PAIRS)
def test_mixup_blends_neighbours(count):
    one, shares = BatchTransform(cutmix=0, erasing=0), set()
    for seed in range(10):
        images, labels = _batch(count, seed)
        found, targets = one(images, labels, 7, generator(seed))
        rng = generator(seed)
        rng.random()
        share = rng.beta(0.8, 0.8)
        shares.add(share)
        assert np.array_equal(one.to_picture(found), _mixed(share, images, images[PAIRS[count]]))
        wanted = share * _smoothed(labels) + (1 - share) * _smoothed(labels[PAIRS[count]])
        assert targets.dtype == np.float32
        assert targets.shape == (count, 7)
        assert np.abs(targets - wanted).max() <= 1e-6
        assert np.abs(targets.sum(1) - 1).max() <= 1e-6
    assert len(shares) == 10


def test_mixup_rounds_every_pair_of_values_as_timm_does():
    values = np.arange(256, dtype=np.uint8)
    images = np.stack(np.broadcast_arrays(values[:, None], values))[..., None]
    differ = 0
    for seed in range(12):
        # Nearly 0.5, where a tie may go either way, and anything.
        one = replace(ONLY_MIXED, cutmix=0, mixup=1e9 if seed < 2 else 0.5)
        found, targets = one(images, np.array([0, 1]), 2, generator(seed))
        rng = generator(seed)
        rng.random()
        share = rng.beta(one.mixup, one.mixup)
        assert targets[0] == pytest.approx([share, 1 - share])
        assert np.array_equal(found, _mixed(share, images, images[::-1]))  # and whole
        exact = share * images.astype(np.float64) + (1 - share) * images[::-1]
        assert np.abs(found - exact).max() < 0.5 + 1e-4
        differ += (found != np.floor(exact)).mean()
    assert differ > 12 * 0.3


@pytest.mark.parametrize("count", PAIRS)
def test_cutmix_trades_one_box_and_counts_its_pixels(count):
    one, clipped = BatchTransform(mixup=0, erasing=0), 0
    for seed in range(60):
        images, labels = _batch(count, seed)
        images[PAIRS[count][0]] = ~images[0]  # another value everywhere
        found, targets = one(images, labels, 7, generator(seed))
        found = one.to_picture(found)
        from_partner = (found[0] != images[0]).any(-1)
        rng = generator(seed)
        rng.random()
        side = math.sqrt(1 - rng.beta(1, 1))
        up, left = int(10 * side) // 2, int(14 * side) // 2  # of the centre; as many after it
        y, x = rng.integers(10), rng.integers(14)
        box = np.zeros((10, 14), bool)
        box[max(0, y - up) : y + up, max(0, x - left) : x + left] = True
        area = box.sum()
        clipped += area < 4 * up * left
        if count > 1:
            assert np.array_equal(from_partner, box)
            expected = np.where(box[None, :, :, None], images[PAIRS[count]], images)
            share = 1 - area / 140
            wanted = share * _smoothed(labels) + (1 - share) * _smoothed(labels[PAIRS[count]])
            assert np.abs(targets - wanted).max() <= 1e-6
        else:
            expected = images
            assert np.abs(targets - _smoothed(labels)).max() <= 1e-6
        assert np.array_equal(found, expected)
    assert 20 < clipped < 50


@pytest.mark.parametrize(("mean", "std"), [((0.5,) * 3, (0.5,) * 3), IMAGENET, ((0.1,), (0.3,))])
def test_images_are_normalised_as_for_evaluation(mean, std):
    channels = len(mean)
    images = np.arange(256, dtype=np.uint8).repeat(channels).reshape(2, 8, 16, channels)
    one = replace(NOT_MIXED, erasing=0, mean=mean, std=std)
    found, _ = one(images, [0, 1], 2, generator())
    assert found.dtype == np.float32
    assert np.abs(found - (images / 255.0 - mean) / std).max() <= 1e-6
    assert np.abs(found - Preprocessing(mean=mean, std=std).normalise(images)).max() <= 1e-6
    # PrefetchLoader's arithmetic, bit for bit.
    scale = [np.float32([255 * value for value in values]) for values in (mean, std)]
    assert np.array_equal(found, (images.astype(np.float32) - scale[0]) / scale[1])
    assert np.array_equal(one.to_picture(found), images)
    assert np.array_equal(one.to_picture(found[1]), images[1])


def test_to_picture_clips_noise():
    one = BatchTransform(mean=IMAGENET[0], std=IMAGENET[1])
    found = one.to_picture(np.full((2, 4, 5, 3), 9, np.float32) * [[[[-1]]], [[[1]]]])
    assert found.dtype == np.uint8
    assert (found[0] == 0).all()
    assert (found[1] == 255).all()


@pytest.mark.parametrize("change", [{"cutmix": 0}, {"mixup": 0}, {"mix_probability": 0}])
def test_the_steps_of_a_batch_follow_each_other_as_in_timms_loader(change):
    one = BatchTransform(mean=IMAGENET[0], std=IMAGENET[1], **change)
    erased, rest = replace(one, erasing=1), replace(one, erasing=0)
    for seed in range(20):
        images, labels = _batch(6, seed)
        expected, wanted = rest(images, labels, 7, generator(seed))
        # The same numbers, in steps written out: those of mixing, then each image's own.
        rng = generator(seed)
        if rng.random() < one.mix_probability:
            rng.beta(one.mixup or one.cutmix, one.mixup or one.cutmix)
            if one.cutmix:
                rng.integers(10), rng.integers(14)
        for image in expected:
            erase(image, 1.0, rng)
        found, targets = erased(images, labels, 7, generator(seed))
        assert np.array_equal(found, expected)
        assert np.array_equal(targets, wanted)


def test_the_noise_of_erasing_is_neither_mixed_nor_rounded():
    # Before mixing, each image would have two boxes of noise, half as strong, or one box's part.
    for mixup, cutmix in ((1e6, 0), (0, 1e6)):
        one = BatchTransform(mixup, cutmix, erasing=1, mean=(0,), std=(1 / 255,))
        rng, noise, images = generator(), [], np.full((2, 64, 64, 1), 99, np.uint8)
        for _ in range(40):
            found, _ = one(images, [0, 1], 2, rng)
            boxes = found[..., 0] != 99
            assert not np.array_equal(*boxes)
            for pixels, box in zip(found, boxes, strict=True):
                rows, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
                assert box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
                noise.append(pixels[box])
        noise = np.concatenate(noise)
        assert near(noise, 0, noise.size, 1)
        assert near(noise**2, 1, noise.size, math.sqrt(2))
        assert len(np.unique(noise)) > 0.9 * noise.size


def test_each_image_is_erased_or_not_by_itself():
    one, rng, batches = replace(ONLY_MIXED, mix_probability=0, erasing=0.25), generator(), 400
    images = np.full((16, 12, 12, 1), 128, np.uint8)
    erased = np.array(
        [(one(images, [0] * 16, 1, rng)[0] != 128).any((1, 2, 3)) for _ in range(batches)]
    )
    # Of each place in the batch, and as many as 16 separate draws give.
    assert np.abs(erased.mean(0) - 0.25).max() < 5 * math.sqrt(3 / 16 / batches)
    assert abs(erased.sum(1).mean() - 4) < 5 * math.sqrt(3 / batches)
    assert abs(erased.sum(1).var() - 3) < 5 * 3 * math.sqrt(2 / batches)


def test_what_is_given_stays_as_it_is_and_may_be_a_view():
    for change in ({"cutmix": 0}, {"mixup": 0}, {"mix_probability": 0}):
        one = BatchTransform(erasing=1, **change)
        images, labels = _batch(12)
        before, before_labels = images.copy(), labels.copy()
        for array in (images, labels):
            array.flags.writeable = False
        views = images[::2, :, ::-1], labels[::2]
        found, targets = one(*views, 7, generator(3))
        assert found.flags.c_contiguous
        expected, wanted = one(*(view.copy() for view in views), 7, generator(3))
        assert np.array_equal(found, expected)
        assert np.array_equal(targets, wanted)
        found[:], targets[:] = 0, 0
        assert np.array_equal(images, before)
        assert np.array_equal(labels, before_labels)
        # Nor are two batches one.
        again, _ = one(*views, 7, generator(3))
        assert not np.shares_memory(again, found)


def _shares(one, draws, size, seed=0):
    """(share of the own picture, whether its pixels were blended) of many batches."""
    rng, labels, found, blended = generator(seed), np.array([0, 1]), [], []
    images = np.zeros((2, size, size, 1), np.uint8)
    images[0] = 255
    for _ in range(draws):
        mixed, targets = one(images, labels, 2, rng)
        assert mixed[0].mean() == pytest.approx(255 * targets[0, 0], abs=0.501)
        found.append(float(targets[0, 0]))
        blended.append(0 < mixed[0, 0, 0, 0] < 255)
    return np.array(found), np.array(blended)


@pytest.mark.parametrize("alpha", [0.8, 0.2, 3.0])
def test_mixups_share_is_beta_distributed(alpha):
    draws = 4_000
    found, blended = _shares(replace(ONLY_MIXED, mixup=alpha, cutmix=0), draws, 2)
    assert near(found, 0.5, draws, 0.5)
    deviation = (found - 0.5) ** 2
    assert near(deviation, 1 / (8 * alpha + 4), draws, deviation.std())
    assert np.array_equal(blended, (found > 0.5 / 255) & (found < 254.5 / 255))


def test_cutmixs_share_is_uniform_before_the_border_cuts_it():
    # For a side r = sqrt(1 - lambda) a border cuts r * r / 4 on average, so the area's mean is
    # the integral of (r - r * r / 4) ** 2 over lambda: 1/2 - 1/5 + 1/48.
    draws, size = 3_000, 128
    found, blended = _shares(replace(ONLY_MIXED, mixup=0, cutmix=1), draws, size)
    assert not blended.any()
    # The box has an even number of pixels on each side: on average one less than its side.
    area = 1 / 2 - 1 / 5 + 1 / 48
    assert abs((1 - found).mean() - area) < 5 * found.std() / math.sqrt(draws) + 1 / size
    # alpha: a large one makes lambda 0.5, so the box 0.707 of each side, whole or cut by a quarter.
    fixed, _ = _shares(replace(ONLY_MIXED, mixup=0, cutmix=1e6), 1_000, size)
    assert fixed.min() == pytest.approx(0.5, abs=0.02)
    assert fixed.max() == pytest.approx(1 - 0.5 / 4, abs=0.02)
    middle = math.sqrt(0.5)
    expected = 1 - (middle - middle**2 / 4) ** 2
    assert abs(fixed.mean() - expected) < 5 * fixed.std() / math.sqrt(1_000) + 1 / size


def test_the_centre_of_the_box_is_any_pixel():
    one, counts = replace(ONLY_MIXED, mixup=0, cutmix=1e6), np.zeros((6, 6))
    rng, labels, draws = generator(), np.array([0, 1]), 6_000
    images = np.zeros((2, 6, 6, 1), np.uint8)
    images[1] = 1
    for _ in range(draws):
        found, _ = one(images, labels, 2, rng)
        counts += found[0, ..., 0]
    # A box of 4 x 4 around any of 6 x 6 centres, from 2 before to 1 after it.
    covered = np.array(
        [sum(max(0, c - 2) <= i < min(6, c + 2) for c in range(6)) for i in range(6)]
    )
    expected = np.outer(covered, covered) / 36
    assert np.abs(counts / draws - expected).max() < 2.5 / math.sqrt(draws)


@pytest.mark.parametrize(
    ("switch", "probability"), [(0.5, 1.0), (0.2, 1.0), (0.5, 0.3), (0.0, 0.5)]
)
def test_either_mixup_or_cutmix_or_neither(switch, probability):
    draws = 3_000
    one = replace(ONLY_MIXED, mix_probability=probability, mix_switch=switch)
    found, blended = _shares(one, draws, 24)
    # Of mixup's shares 1.5 % are so near to 0 or 1 that nothing is left of one picture.
    assert abs(blended.mean() - 0.985 * probability * (1 - switch)) < 2.5 / math.sqrt(draws)
    # Cutmix traded nothing if its box was empty: lambda above about 0.99.
    neither = ((found == 1) & ~blended).mean()
    assert 0 <= neither - (1 - probability) + 2.5 / math.sqrt(draws) < 0.12


def test_without_mixing_only_the_labels_are_smoothed():
    off = replace(NOT_MIXED, mixup=0, cutmix=0, mix_probability=1, erasing=0)
    for one in (off, replace(NOT_MIXED, erasing=0)):
        images, labels = _batch(6)
        found, targets = one(images, labels, 7, generator())
        assert np.array_equal(one.to_picture(found), images)
        assert np.abs(targets - _smoothed(labels)).max() <= 1e-7
    images, labels = _batch(2)
    labels = labels.astype(np.uint8)
    _, targets = replace(off, label_smoothing=0)(images, labels, 7, generator())
    assert np.array_equal(targets, np.eye(7)[labels])
    _, targets = replace(off, label_smoothing=1)(images, list(labels), 7, generator())
    assert np.abs(targets - 1 / 7).max() <= 1e-7
    # 0.9 + 0.1 / 4 and 0.1 / 4, as timm has it; not 0.9 and 0.1 / 3.
    _, targets = off(images, np.array([2, 0]), 4, generator())
    assert targets[0] == pytest.approx([0.025, 0.025, 0.925, 0.025])
    # Partners of one class: nothing to share between.
    _, targets = BatchTransform()(images, np.array([3, 3]), 4, generator())
    assert targets[0] == pytest.approx([0.025, 0.025, 0.025, 0.925])


def test_a_batch_is_a_function_of_the_generator():
    made = []
    for seed in (1, 1, 2):
        one = pickle.loads(pickle.dumps(BatchTransform()))  # noqa: S301 - as workers get it
        images, labels = _batch(4)
        found, targets = one(images, labels, 7, generator(seed))
        made.append((found.tobytes(), targets.tobytes()))
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3)])
def test_images_of_any_size(size):
    rng = generator()
    for count in (1, 2, 3):
        for _ in range(40):
            images, labels = _batch(count, 0, *size)
            found, targets = BatchTransform(erasing=1)(images, labels, 7, rng)
            assert found.shape == images.shape
            assert np.isfinite(found).all()
            assert targets.sum() == pytest.approx(count)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"mixup": -0.1}, "`mixup`"),
        ({"mixup": float("inf")}, "`mixup`"),
        ({"cutmix": float("nan")}, "`cutmix`"),
        ({"cutmix": None}, "`cutmix`"),
        ({"cutmix": True}, "`cutmix`"),
        ({"mix_probability": 1.5}, "`mix_probability`"),
        ({"mix_switch": -1}, "`mix_switch`"),
        ({"label_smoothing": "0.1"}, "`label_smoothing`"),
        ({"erasing": float("nan")}, "`erasing`"),
        ({"mean": (0.5, 0.5)}, "`mean`"),
        ({"mean": (0.5,)}, "`mean` and `std`"),
        ({"std": (0.5, 0.5, 0)}, "`std` divides"),
    ],
)
def test_batch_transforms_refuse(wrong, says):
    with pytest.raises(ValueError, match=rf"{says}.* Received: "):
        BatchTransform(**wrong)


def test_batch_transforms_hold_plain_numbers_and_the_recipes_defaults():
    recipe = BatchTransform()
    assert recipe == BatchTransform(0.8, 1.0, 1.0, 0.5, 0.1, 0.25, (0.5,) * 3, (0.5,) * 3)
    one = BatchTransform(np.float32(0.5), erasing=1, mean=[np.float32(0.5)], std=[0.25])
    assert (repr(one.mixup), repr(one.erasing), repr(one.mean)) == ("0.5", "1.0", "(0.5,)")
    assert hash(one) == hash(replace(one))


def test_batch_transforms_refuse_what_is_no_batch():
    images, labels = _batch(4)
    for wrong, says in (
        ((images.astype(np.float32), labels, 7), "`images` must be uint8.*float32"),
        ((images[0], labels, 7), "`images` must be uint8, "),
        ((images[..., :1], labels, 7), r"`images` must be uint8, \(N, H, W, 3\)"),
        ((images.tolist(), labels, 7), "`images` must be uint8, .*list"),
        ((images[:0], labels[:0], 7), "not empty"),
        ((images, labels[:3], 7), "`labels` must be 4 whole numbers"),
        ((images, labels.astype(np.float32), 7), "`labels` must be 4 whole numbers"),
        ((images, labels, 0), "`num_classes`"),
        ((images, labels, 7.0), "`num_classes`"),
        ((images, np.array([0, 1, 2, 7]), 7), "`labels` must be classes from 0 to 6"),
        ((images, np.array([0, 1, -1, 6]), 7), "`labels` must be classes from 0 to 6"),
    ):
        with pytest.raises(ValueError, match=rf"{says}") as error:
            BatchTransform()(*wrong, generator())
        assert "Received" in str(error.value)
