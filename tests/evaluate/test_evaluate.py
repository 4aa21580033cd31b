"""`van evaluate`: the figures against hand and NumPy, the files, and the original beside it."""

import csv
import io
import json
import math
import os
import sys
from collections import deque
from dataclasses import replace

import keras
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from safetensors.numpy import save_file

from tests import tiny_artefacts
from tests.parity import GOLDEN, MICRO, load_seeded
from tests.tiny_artefacts import FORMATS, about, build, random_weights
from van_classification_tensorflow import VAN
from van_classification_tensorflow.datasets import calibration
from van_classification_tensorflow.datasets.digits import load_digits
from van_classification_tensorflow.datasets.labelled import (
    Dataset,
    Example,
    open_dataset,
    subset_indices,
)
from van_classification_tensorflow.engines.choice import Chosen
from van_classification_tensorflow.engines.keras import KerasEngine
from van_classification_tensorflow.evaluate import evaluate as module
from van_classification_tensorflow.evaluate import files
from van_classification_tensorflow.evaluate import measure as measuring
from van_classification_tensorflow.evaluate.evaluate import evaluate, report, run
from van_classification_tensorflow.evaluate.measure import measure
from van_classification_tensorflow.evaluate.metrics import calibration_error, score, wilson_interval
from van_classification_tensorflow.evaluate.original import Comparison, Original
from van_classification_tensorflow.evaluate.request import EvaluateRequest
from van_classification_tensorflow.images.decode import open_image
from van_classification_tensorflow.inference.classifier import Classifier, Result
from van_classification_tensorflow.inference.request import ClassifierOptions
from van_classification_tensorflow.model.load import to_official
from van_classification_tensorflow.spec.labels import Label, imagenet_classes
from van_classification_tensorflow.spec.preprocessing import Preprocessing

MICRO_FILE = GOLDEN / "micro.safetensors"
NAMES = [f"kind_{letter}" for letter in "abcdefghij"]
SMALL = {"labels": NAMES, "test_size": 32, "batch_size": 4}
WNIDS = [c.wnid for c in imagenet_classes()]


def asked(data, weights=MICRO_FILE, **options):
    classifier = ClassifierOptions(weights=weights, **SMALL)
    return EvaluateRequest(data=data, classifier=classifier, **options)


@pytest.fixture(scope="module")
def micro():
    return Classifier(MICRO_FILE, **SMALL)


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """Weights with ImageNet-1k's classes that tell the pictures of `drawn` from each other."""
    model = load_seeded(VAN(**{**MICRO, "num_classes": 1000}, classifier_activation=None))
    tensors = to_official(model)
    tensors["head.weight"] = 5 * tensors["head.weight"]
    path = tmp_path_factory.mktemp("weights") / "thousand.safetensors"
    save_file(tensors, path)
    return Classifier(path, test_size=32, batch_size=8)


def drawn(seed):
    """A picture that differs from those of other seeds."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (rng.integers(2, 6), rng.integers(2, 6), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((40, 36), Image.Resampling.BILINEAR)


def save(folder, name, seed):
    folder.mkdir(parents=True, exist_ok=True)
    drawn(seed).save(folder / name)
    return folder / name


def logits_of(classifier, paths):
    """One by one and without the stream: what each picture's logits must be."""
    inputs = np.stack([classifier.preprocessing(open_image(path)) for path in paths])
    return np.asarray(classifier.model(inputs, training=False))


def text_of(what, *arguments):
    console = Console(file=io.StringIO(), width=100)
    what(*arguments, console)
    return " ".join(console.file.getvalue().split())


# --- Figures ---


def test_a_score_by_hand():
    # Probabilities 1/8, 5/8, 2/8.
    found = score(np.log(np.array([1.0, 5.0, 2.0])), (2,))
    assert (found.predicted, found.top1, found.top5) == (1, False, True)
    assert found.confidence == pytest.approx(5 / 8)
    assert found.loss == pytest.approx(-math.log(2 / 8))
    several = score(np.log(np.array([1.0, 5.0, 2.0])), (0, 1))
    assert several.top1
    assert several.loss == pytest.approx(-math.log(6 / 8))


def test_only_five_are_looked_at():
    logits = np.array([7.0, 6, 5, 4, 3, 2, 1])
    assert [score(logits, (i,)).top5 for i in range(7)] == [True] * 5 + [False] * 2


def test_of_equal_logits_the_first_class_counts():
    logits = np.zeros(8, np.float32)
    assert score(logits, (0,)).top1
    assert not score(logits, (1,)).top1
    assert [score(logits, (i,)).top5 for i in range(8)] == [True] * 5 + [False] * 3
    logits[[3, 6]] = 1
    assert score(logits, (3,)).top1
    assert score(logits, (6,)).predicted == 3


def test_a_loss_beyond_the_range_of_a_probability():
    assert score(np.array([0.0, 2000.0], np.float32), (0,)).loss == pytest.approx(2000)
    assert score(np.array([0.0, 2000.0], np.float32), (1,)).loss == 0


def test_calibration_error_by_hand():
    # Of 15 bins: (9/15, 10/15] holds 0.65 twice, (12/15, 13/15] 0.85, (14/15, 1] 1.0.
    confidence, right = [0.65, 0.65, 0.85, 1.0], [True, False, False, True]
    expected = (2 * abs(0.5 - 0.65) + 1 * abs(0 - 0.85) + 0) / 4
    assert calibration_error(confidence, right) == pytest.approx(expected)
    assert calibration_error([0.2, 0.2], [1, 0], bins=5) == pytest.approx(0.3)
    # An edge belongs to the bin below it: two bins with gaps of 0.5 and -0.9.
    assert calibration_error([0.5, 0.9], [1, 0], bins=2) == pytest.approx(0.7)


def test_calibration_error_against_its_formula():
    rng = np.random.default_rng(0)
    confidence = np.concatenate([rng.uniform(0, 1, 500), np.arange(1, 16) / 15])
    right = rng.uniform(size=515) < confidence**2
    expected = 0.0
    for m in range(15):
        low, high = np.linspace(0, 1, 16)[m : m + 2]
        inside = (confidence > low) & (confidence <= high)
        gap = right[inside].mean() - confidence[inside].mean()
        expected += inside.sum() / 515 * abs(gap)
    assert calibration_error(confidence, right) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("right", "count"), [(0, 10), (10, 10), (3, 7), (37_705, 50_000)])
def test_wilson_interval_solves_its_equation(right, count):
    """The bounds are the p for which |share - p| is 1.96 of p's own standard deviations."""
    low, high = wilson_interval(right, count)
    share = right / count
    for bound in {low, high} - {share}:
        sigma = math.sqrt(bound * (1 - bound) / count)
        assert abs(share - bound) == pytest.approx(1.959964 * sigma, rel=1e-6)
    assert 0 <= low <= share <= high <= 1
    assert low < high


def test_wilson_interval_as_published():
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3: 81 of 263, 15 of 148, 0 of 20.
    for right, count, expected in (
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
    ):
        assert wilson_interval(right, count) == pytest.approx(expected, abs=5e-5)


# --- Measuring, with logits that are given ---


class Given:
    """In a classifier's place: the "picture" of an example is its logits, or its error."""

    name, notes, crops, flip = "given", "a remark", 1, False
    activation, max_pixels = "softmax", 10**6
    runtime = None
    preprocessing = Preprocessing()

    def __init__(self, names):
        self.labels = self.classes = tuple(Label(name) for name in names)
        self.model = VAN(**MICRO)
        self.parameters = sum(math.prod(v.shape) for v in self.model.trainable_variables)

    def choose_engine(self, pictures):
        return Chosen(None, "keras", "3", reason="it is given", difference=1e-7)

    def stream(self, sources, watch=None, count=None):
        assert watch is None
        for source in sources:
            if isinstance(source, str):
                yield Result(source, None, source)
            else:
                yield Result(source, np.asarray(source, np.float32))


@pytest.fixture(scope="module")
def given():
    return Given("abcdefg")


def given_dataset(*pairs, **options):
    examples = [Example(source, f"picture {i}", c) for i, (source, c) in enumerate(pairs)]
    return Dataset("given", examples, len(examples), **options)


def test_everything_by_hand(given):
    best = 10 * np.eye(7)
    rising = np.arange(7.0)  # the best five: 6, 5, 4, 3, 2
    found = measure(
        given,
        given_dataset((best[0], (0,)), (best[1], (0,)), (rising, (2,)), (rising, (1,))),
    )
    assert (found.pictures, found.count, found.classes) == (4, 4, 7)
    assert (found.top1, found.top5) == (0.25, 0.75)
    p_best = np.exp(10) / (np.exp(10) + 6)
    p_rising = np.exp(rising) / np.exp(rising).sum()
    losses = [-np.log(p_best), -np.log((1 - p_best) / 6), *-np.log(p_rising[[2, 1]])]
    assert found.loss == pytest.approx(np.mean(losses))
    gaps = abs(1 - 2 * p_best) + abs(0 - 2 * p_rising[6])
    assert found.calibration_error == pytest.approx(gaps / 4)
    assert found.top1_interval == wilson_interval(1, 4)
    shown = [(c.label, c.pictures, c.right, c.accuracy) for c in found.per_class]
    assert shown[:4] == [("a", 2, 1, 0.5), ("b", 1, 0, 0), ("c", 1, 0, 0), ("d", 0, 0, None)]
    assert found.mean_class_accuracy == pytest.approx(0.5 / 3)
    assert sorted(found.confusion) == [(0, 0, 1), (0, 1, 1), (1, 6, 1), (2, 6, 1)]
    weights = to_official(given.model)
    assert found.parameters == sum(a.size for n, a in weights.items() if "running" not in n)


def test_failures_are_counted_listed_and_counted_as_wrong_beside(given):
    best = 10 * np.eye(7)
    nan = np.full(7, np.nan)
    found = measure(
        given,
        given_dataset(
            ("damaged", (0,)), (best[0], (0,)), (nan, (3,)), (best[2], (2,)), (best[1], (6,))
        ),
    )
    assert (found.pictures, found.count, len(found.failed)) == (5, 3, 2)
    assert found.top1 == pytest.approx(2 / 3)
    assert found.top1_failed_as_wrong == pytest.approx(2 / 5)
    assert found.top5_failed_as_wrong == pytest.approx(found.top5 * 3 / 5)
    assert [(f.picture, f.reason) for f in found.failed] == [
        ("picture 0", "damaged"),
        ("picture 2", "picture 2: the model's logits are not finite"),
    ]
    text = text_of(report, found)
    assert "3 measured, 2 failed" in text
    assert "2 of 5 pictures failed" in text
    assert "top-1 40.000%" in text


def test_nothing_measured_is_an_error(given):
    with pytest.raises(ValueError, match="none of 1 pictures could be measured; the first: bad"):
        measure(given, given_dataset(("bad", (0,))))
    with pytest.raises(ValueError, match="all of 1 pictures have no class"):
        measure(given, given_dataset((np.zeros(7), ())))


def test_pictures_without_a_class_are_left_out(given):
    best = 10 * np.eye(7)
    found = measure(given, given_dataset((best[0], ()), (best[1], (1, 2)), (best[2], (1, 0))))
    assert (found.left_out, found.pictures, found.top1) == (1, 2, 0.5)
    # The picture that is right counts for both of its classes; the other for the first.
    assert [(c.pictures, c.right) for c in found.per_class[:3]] == [(1, 0), (2, 1), (1, 1)]
    assert sorted(found.confusion) == [(1, 1, 1), (1, 2, 1)]
    assert "1 without a class left out" in text_of(report, found)


def test_predictions_are_restricted_to_a_subset(given):
    logits = np.array([9.0, 1, 8, 2, 7, 0, 0])
    found = measure(given, given_dataset((logits, (3,)), (logits, (1,)), restricted=(1, 3)))
    assert (found.top1, found.top5, found.classes) == (0.5, 1, 2)
    assert found.loss == pytest.approx(np.log(np.exp([1, 2]).sum()) - 1.5)
    assert [(c.index, c.label) for c in found.per_class] == [(1, "b"), (3, "d")]
    assert sorted(found.confusion) == [(1, 3, 1), (3, 3, 1)]
    assert "Top-2" in text_of(report, found)
    with pytest.raises(ValueError, match=r"picture 0 is of a class that is not of the `subset`"):
        measure(given, given_dataset((logits, (0,)), restricted=(1, 3)))


# --- Measuring, from files to figures ---


@pytest.fixture
def ten(tmp_path, micro):
    """(folder, paths, right classes): ten pictures; about half in the folder of their class."""
    drawn_paths = [save(tmp_path / "drawn", f"{seed}.png", seed) for seed in range(10)]
    best = logits_of(micro, drawn_paths).argmax(1)
    paths, right = [], []
    for seed, path in enumerate(drawn_paths):
        right.append(int(best[seed] if seed % 2 else (best[seed] + seed) % 10))
        folder = tmp_path / "data" / NAMES[right[-1]]
        folder.mkdir(parents=True, exist_ok=True)
        paths.append(path.rename(folder / path.name))
    return tmp_path / "data", paths, np.array(right)


def check_figures(found, logits, right):
    """The formulas once more, over all logits at once."""
    logits = logits.astype(np.float64)
    order = np.argsort(-logits, axis=1, kind="stable")
    hits = order == right[:, None]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert found.top1 == pytest.approx(hits[:, 0].mean())
    assert found.top5 == pytest.approx(hits[:, :5].any(1).mean())
    loss = -np.log(probabilities[np.arange(len(right)), right]).mean()
    assert found.loss == pytest.approx(loss, abs=1e-5)
    gaps = np.zeros(15)
    for p, hit in zip(probabilities.max(1), hits[:, 0], strict=True):
        gaps[math.ceil(p * 15) - 1] += hit - p
    assert found.calibration_error == pytest.approx(np.abs(gaps).sum() / len(right), abs=1e-5)


@pytest.mark.parametrize(
    "batch_size", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (5, 10, 64))]
)
def test_the_last_batch_counts_right(ten, micro, monkeypatch, batch_size):
    """Ten pictures in batches of 4: the third is of 2, and is padded on its way."""
    data, paths, right = ten
    monkeypatch.setattr(micro, "batch_size", batch_size)
    found = measure(micro, open_dataset(data, micro.labels))
    assert found.count == 10
    assert 0.2 < found.top1 < 1
    check_figures(found, logits_of(micro, paths), right)


def test_corrupt_files(ten, micro, tmp_path):
    data, paths, right = ten
    whole = paths[0].read_bytes()
    paths[0].with_name("cut.png").write_bytes(whole[: len(whole) // 2])
    paths[5].with_name("text.jpg").write_text("no picture")
    paths[9].with_name("empty.JPEG").write_bytes(b"")
    found = measure(micro, open_dataset(data, micro.labels))
    assert (found.pictures, found.count) == (13, 10)
    assert {os.path.basename(f.picture) for f in found.failed} == {
        "cut.png",
        "text.jpg",
        "empty.JPEG",
    }
    assert all(f.picture in f.reason for f in found.failed)
    check_figures(found, logits_of(micro, paths), right)
    assert found.top1_failed_as_wrong == pytest.approx(found.top1 * 10 / 13)


def test_digits_are_as_good_as_the_bundled_weights_are():
    found = evaluate("digits", "digits")
    assert found.count == 360
    assert found.top1 == pytest.approx(0.99166666, abs=1e-8)
    assert found.published is None
    assert found.timm_row() == {
        "model": "digits",
        "top1": 99.1667,
        "top1_err": 0.8333,
        "top5": 100.0,
        "top5_err": 0.0,
        "param_count": 0.19,
        "img_size": 32,
        "crop_pct": 1.0,
        "interpolation": "box",
    }


def predicted(classifier, tmp_path, count=12):
    paths = [save(tmp_path / "drawn", f"{seed}.png", seed) for seed in range(count)]
    logits = logits_of(classifier, paths)
    assert len(set(logits.argmax(1))) >= 4, "the pictures are too much alike for these tests"
    return paths, logits


def test_imagenet_v2_numeric_folders(thousand, tmp_path):
    """All 1,000 folders: by the alphabet, 10 would be class 2."""
    paths, logits = predicted(thousand, tmp_path)
    for i in range(1000):
        (tmp_path / "v2" / str(i)).mkdir(parents=True)
    for path, best in zip(paths, logits.argmax(1), strict=True):
        path.rename(tmp_path / "v2" / str(best) / path.name)
    found = measure(thousand, open_dataset(tmp_path / "v2", thousand.labels))
    assert (found.top1, found.count) == (1, 12)


def test_imagenet_sketch_wordnet_folders(thousand, tmp_path):
    paths, logits = predicted(thousand, tmp_path)
    second = np.argsort(-logits, axis=1)[:, 1]
    for i, path in enumerate(paths):
        right = second[i] if i < 3 else logits[i].argmax()
        (tmp_path / "data" / WNIDS[right]).mkdir(parents=True, exist_ok=True)
        path.rename(tmp_path / "data" / WNIDS[right] / path.name)
    found = measure(thousand, open_dataset(tmp_path / "data", thousand.labels))
    assert (found.top1, found.top5) == (9 / 12, 1)


@pytest.mark.parametrize("subset", ["imagenet-a", "imagenet-r"])
def test_imagenet_a_and_r(thousand, tmp_path, subset):
    paths, logits = predicted(thousand, tmp_path)
    indices = np.array(subset_indices(subset))
    best = indices[logits[:, indices].argmax(1)]
    assert (best != logits.argmax(1)).any(), "the restriction would change nothing"
    for path, right in zip(paths, best, strict=True):
        (tmp_path / "data" / WNIDS[right]).mkdir(parents=True, exist_ok=True)
        path.rename(tmp_path / "data" / WNIDS[right] / path.name)
    found = measure(thousand, open_dataset(tmp_path / "data", thousand.labels, subset=subset))
    assert (found.top1, found.classes) == (1, 200)
    free = measure(thousand, open_dataset(tmp_path / "data", thousand.labels))
    assert free.top1 == (best == logits.argmax(1)).mean() < 1


def test_real_labels(thousand, tmp_path):
    paths, logits = predicted(thousand, tmp_path, 8)
    best, accepted = logits.argmax(1), []
    # Right; right as the second of two; wrong; none.
    kinds = [lambda b: [b], lambda b: [(b + 1) % 1000, b], lambda b: [(b + 1) % 1000], lambda b: []]
    for i, path in enumerate(paths):
        path.rename(path.with_name(f"ILSVRC2012_val_{i + 1:08d}.png"))
        accepted.append(kinds[i % 4](int(best[i])))
    (tmp_path / "real.json").write_text(json.dumps(accepted))
    found = measure(
        thousand,
        open_dataset(paths[0].parent, thousand.labels, real_labels=tmp_path / "real.json"),
    )
    assert (found.count, found.left_out) == (6, 2)
    assert found.top1 == pytest.approx(4 / 6)
    assert found.published is None


def test_class_map(ten, micro, tmp_path):
    data, paths, right = ten
    renamed = {}
    for i, folder in enumerate(sorted(data.iterdir())):
        renamed[f"folder {i}"] = NAMES.index(folder.name)
        folder.rename(data / f"folder {i}")
    (tmp_path / "map.json").write_text(json.dumps(renamed))
    found = evaluate(data, MICRO_FILE, class_map=tmp_path / "map.json", **SMALL)
    again = [next(data.rglob(path.name)) for path in paths]
    check_figures(found, logits_of(micro, again), right)


def test_data_of_another_model(tmp_path):
    save(tmp_path / WNIDS[0], "0.png", 0)
    with pytest.raises(ValueError, match=r"10 classes: kind_a.*no WordNet ids"):
        evaluate(tmp_path, MICRO_FILE, **SMALL)


def test_the_data_are_looked_at_before_the_weights(tmp_path):
    for name in ("empty/a", "loose/a"):
        (tmp_path / name).mkdir(parents=True)
    save(tmp_path / "loose", "0.png", 0)
    (tmp_path / "real.json").write_text("[]")
    for data, options, says in (
        ("empty/a", {}, "has no folders"),
        ("empty", {}, "no pictures in"),
        ("empty", {"real_labels": tmp_path / "real.json"}, "no pictures in"),
        ("loose", {}, "1 pictures lie in no class folder"),
    ):
        with pytest.raises(ValueError, match=says):
            evaluate(tmp_path / data, "nothing", **options)


# --- Published figures ---


def validation(tmp_path, thousand, count=4):
    paths, logits = predicted(thousand, tmp_path, 12)
    for i in range(count):
        right = logits[i].argmax() if i else (logits[i].argmax() + 1) % 1000
        folder = tmp_path / "val" / WNIDS[right]
        folder.mkdir(parents=True, exist_ok=True)
        paths[i].rename(folder / f"ILSVRC2012_val_{i + 1:08d}.png")
    return tmp_path / "val"


def test_published_figures_beside_the_measured(thousand, tmp_path, monkeypatch):
    data = validation(tmp_path, thousand)
    dataset = open_dataset(data, thousand.labels)
    assert measure(thousand, dataset).published is None  # weights of one's own
    monkeypatch.setattr(thousand, "name", "van_b0.in1k")
    found = measure(thousand, dataset)
    there = found.published
    assert there.top1 == pytest.approx(0.7541)
    assert there.top1_difference == pytest.approx(0.75 - 0.7541)
    assert there.top5_difference == pytest.approx(found.top5 - 0.9302)
    assert there.inside
    assert not there.same_preprocessing  # at 32 pixels
    text = text_of(report, found)
    assert "published top-1 75.41%: -0.410 points here, inside the interval" in text
    assert "another preprocessing" in text
    monkeypatch.setattr(thousand, "preprocessing", Preprocessing())
    outside = measuring.published_beside(thousand, 0.78, 0.93, (0.76, 0.8))
    assert not outside.inside
    assert outside.same_preprocessing


def test_other_data_has_no_published_figure(thousand, tmp_path, monkeypatch):
    monkeypatch.setattr(thousand, "name", "van_b0.in1k")
    data = validation(tmp_path, thousand)
    one = next(data.rglob("*.png"))
    one.rename(one.with_name("sketch_1.png"))
    assert measure(thousand, open_dataset(data, thousand.labels)).published is None


# --- Files ---


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_everything_is_written(ten, tmp_path):
    data, paths, _ = ten
    paths[0].with_name("bad.png").write_bytes(b"bad")
    target = tmp_path / "out"
    found = evaluate(data, MICRO_FILE, output=target, **SMALL)
    names = {"results.csv", "results.json", "per_class.csv", "failed.csv", "confusion_matrix.png"}
    names |= {"mistakes.png", "least_certain.png"}
    assert {path.name for path in target.iterdir()} == names
    head, row = rows(target / "results.csv")
    assert ",".join(head) == (
        "model,top1,top1_err,top5,top5_err,param_count,img_size,crop_pct,interpolation"
    )
    expected = [str(MICRO_FILE), round(100 * found.top1, 4), round(100 - 100 * found.top1, 4)]
    assert row[:3] == [str(value) for value in expected]
    assert row[5:] == [f"{found.parameters / 1e6:.2f}", "32", "0.9", "bicubic"]
    record = json.loads((target / "results.json").read_text())
    assert record["top1"] == found.top1
    assert record["preprocessing"]["input_size"] == 32
    assert record["failed"][0]["picture"].endswith("bad.png")
    assert len(record["per_class"]) == 10
    assert record["images_per_second"] > 0
    head, *classes = rows(target / "per_class.csv")
    assert len(classes) == 10
    by_name = [dict(zip(head, row, strict=True)) for row in classes]
    assert sum(int(row["predicted"]) for row in by_name) == found.count
    for row in by_name:
        right, predicted = int(row["right"]), int(row["predicted"])
        assert row["precision"] == (str(right / predicted) if predicted else "")
    assert rows(target / "failed.csv")[1][0].endswith("bad.png")
    with Image.open(target / "confusion_matrix.png") as image:
        assert min(image.size) > 400
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "drawn", "out"]


def test_an_output_is_replaced_only_when_asked(ten, tmp_path):
    data, paths, _ = ten
    target = tmp_path / "out"
    paths[0].with_name("bad.png").write_bytes(b"bad")
    target.mkdir()  # empty: nothing to lose
    evaluate(data, MICRO_FILE, output=target, **SMALL)
    with pytest.raises(FileExistsError, match="--overwrite"):
        evaluate(data, MICRO_FILE, output=target, **SMALL)
    paths[0].with_name("bad.png").unlink()
    evaluate(data, MICRO_FILE, output=target, overwrite=True, **SMALL)
    assert not (target / "failed.csv").exists()
    (target / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match=r"holds what no evaluation wrote \(thesis.tex\)"):
        evaluate(data, MICRO_FILE, output=target, overwrite=True, **SMALL)
    with pytest.raises(FileNotFoundError, match="make it first"):
        evaluate(data, MICRO_FILE, output=tmp_path / "no" / "out", **SMALL)
    with pytest.raises(FileExistsError, match="is no folder"):
        evaluate(data, MICRO_FILE, output=paths[1], overwrite=True, **SMALL)


@pytest.mark.parametrize("what", ["draw", "move"])
def test_an_interrupted_write_leaves_nothing_or_the_old(micro, ten, tmp_path, monkeypatch, what):
    found = measure(micro, open_dataset(ten[0], micro.labels))
    target = tmp_path / "out"
    before = sorted(path.name for path in tmp_path.iterdir())

    def interrupted(*arguments):
        raise KeyboardInterrupt

    replace_file = os.replace

    def not_into_place(source, goal):
        if str(goal) == str(target) and "older" not in str(source) and source.name != "old":
            raise KeyboardInterrupt
        replace_file(source, goal)

    with monkeypatch.context() as patch:
        if what == "draw":
            patch.setattr(files.plots, "confusion_matrix", interrupted)
        else:
            patch.setattr(os, "replace", not_into_place)
        with pytest.raises(KeyboardInterrupt):
            files.write(found, target, False)
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        target.mkdir()
        (target / "results.csv").write_text("old")
        with pytest.raises(KeyboardInterrupt):
            files.write(found, target, True)
    assert (target / "results.csv").read_text() == "old"
    assert [path.name for path in target.iterdir()] == ["results.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "out"])


def test_what_appears_meanwhile_is_not_replaced(micro, ten, tmp_path, monkeypatch):
    found = measure(micro, open_dataset(ten[0], micro.labels))
    target = tmp_path / "out"

    def meanwhile(found, folder):
        target.mkdir()
        (target / "thesis.tex").write_text("")

    monkeypatch.setattr(files, "write_files", meanwhile)
    with pytest.raises(FileExistsError, match="thesis"):
        files.write(found, target, True)
    assert [path.name for path in target.iterdir()] == ["thesis.tex"]


def test_many_classes_have_a_picture_of_the_most_frequent_mistakes(thousand, tmp_path):
    paths, logits = predicted(thousand, tmp_path)
    for i, path in enumerate(paths):
        folder = tmp_path / "data" / WNIDS[logits[i].argmax() if i < 3 else i]
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    found = measure(thousand, open_dataset(tmp_path / "data", thousand.labels))
    files.write(found, tmp_path / "out", False)
    assert (tmp_path / "out" / "most_confused.png").stat().st_size > 5000
    assert not (tmp_path / "out" / "confusion_matrix.png").exists()
    perfect = replace(found, confusion=((1, 1, 5),))
    files.draw_most_confused(perfect, tmp_path / "none.png")


def test_names_in_pictures_are_no_formulas(micro, ten, tmp_path):
    found = measure(micro, open_dataset(ten[0], micro.labels))
    classes = [replace(c, label=rf"$\x$ {c.index}$") for c in found.per_class]
    found = replace(found, per_class=tuple(classes))
    files.draw_matrix(found, tmp_path / "matrix.png")
    files.draw_most_confused(found, tmp_path / "pairs.png")
    for name in ("matrix.png", "pairs.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_figures_are_shown_before_they_are_written(ten, tmp_path, monkeypatch):
    """A disk that is full after hours must not take them along."""

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write", full)
    console = Console(file=io.StringIO(), width=100)
    with pytest.raises(OSError, match="No space left"):
        run(asked(ten[0], output=tmp_path / "out"), console)
    assert "95 % interval" in console.file.getvalue()
    monkeypatch.undo()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.csv").write_text("")
    with pytest.raises(FileExistsError):
        asked("nowhere", "nothing", output=tmp_path / "out")


def test_matplotlib_is_asked_for_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"\[plots\]"):
        evaluate("nowhere", "nothing", output=tmp_path / "out")


def test_the_report(ten, tmp_path):
    data, _, _ = ten
    console = Console(file=io.StringIO(), width=100)
    code = run(asked(data, output=tmp_path / "[out]"), console)
    text = " ".join(console.file.getvalue().split())
    assert code == 0
    for words in (
        "shorter side to 35 (bicubic), centre crop 32, mean (0.5, 0.5, 0.5)",
        "10 measured, 0 failed",
        "95 % interval",
        "images/s",
        "by class name",
        "[out]: results.csv, results.json, per_class.csv, confusion_matrix.png",
    ):
        assert words in text
    assert "Failed as wrong" not in text


# --- Against the original ---


class Shifted:
    """In the original's place: the Keras model's own logits, of the last picture shifted."""

    def __init__(self, classifier, shift):
        self.engine = KerasEngine(classifier.model, classifier.batch_size)
        self.shift = np.float32(shift)
        self.logits, self.seconds = deque(), 0.0

    def see(self, inputs, pictures):
        logits = self.engine(inputs).copy()
        assert len(logits) == pictures
        logits[-1] += self.shift
        self.logits.extend(logits)


def test_a_difference_is_said(ten, tmp_path):
    data, paths, _ = ten
    paths[3].with_name("bad.png").write_bytes(b"bad")  # must not shift the pairs
    classifier = Classifier(MICRO_FILE, engine="keras", **SMALL)
    dataset = open_dataset(data, classifier.labels)
    for shift, agrees, difference in (
        (np.zeros(10), True, 0),
        (np.full(10, 2e-4), False, 2e-4),
        (np.eye(10)[0] * -100, False, 100),
        (np.eye(10)[0] * np.nan, False, np.nan),
    ):
        found = measure(classifier, dataset, original=Shifted(classifier, shift))
        original = found.original
        assert original.pictures == 10
        assert original.agrees is agrees
        assert original.largest_logit_difference == pytest.approx(difference, rel=1e-3, nan_ok=True)
        assert original.top1_ported == found.top1
        text = text_of(report, found)
        assert ("They agree." in text) is agrees
        assert ("They do not agree." in text) is not agrees
        json.dumps(found.to_dict(), allow_nan=False)


def test_the_exit_code_says_whether_they_agree(ten, micro, monkeypatch):
    monkeypatch.setattr(module, "require_original", lambda: None)
    for shift, code in ((0, 0), (1, 1)):
        beside = Shifted(micro, shift)
        monkeypatch.setattr(module, "Original", lambda weights, name, beside=beside: beside)
        console = Console(file=io.StringIO())
        assert run(asked(ten[0], against_original=True), console) == code


def test_agreement_needs_both():
    same = Comparison("x", 32, 0.5, 0.5, 0.75, 0.75, 1, 1e-4, 8)
    assert same.agrees
    assert not replace(same, largest_logit_difference=1.01e-4).agrees
    assert not replace(same, top1_ported=0.625).agrees
    assert not replace(same, top5_original=0.875).agrees
    assert replace(same, top5_original=0.875).metrics_difference == 0.125


def test_the_original_is_asked_for_before_the_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install .*\[original\]"):
        evaluate("digits", "digits", against_original=True)


@pytest.fixture
def _transformers():
    pytest.importorskip("torch", reason="scripts/test_backends.sh runs this with torch")
    pytest.importorskip(
        "transformers", reason="scripts/test_backends.sh runs this with transformers"
    )


@pytest.mark.usefixtures("_transformers")
def test_digits_against_the_original():
    found = evaluate("digits", "digits", against_original=True)
    assert found.original.pictures == 360
    assert found.original.top1_original == found.top1 == pytest.approx(0.991667, abs=1e-6)
    assert found.original.metrics_difference == 0
    assert 0 < found.original.largest_logit_difference <= 1e-4
    assert found.original.agrees


@pytest.mark.usefixtures("_transformers")
@pytest.mark.parametrize(
    "views",
    [{}, pytest.param({"crops": 5, "flip": True, "batch_size": 25}, marks=pytest.mark.slow)],
)
def test_micro_against_the_original(ten, views):
    data, paths, right = ten
    found = evaluate(data, MICRO_FILE, against_original=True, **{**SMALL, **views})
    assert found.original.agrees
    assert 0 < found.original.largest_logit_difference <= 1e-4
    assert found.original.parameters == found.parameters
    if not views:
        import torch

        model = Original(MICRO_FILE, "")._model
        prepare = Classifier(MICRO_FILE, **SMALL).preprocessing
        inputs = np.stack([prepare(open_image(path)) for path in paths])
        with torch.inference_mode():
            original = model(torch.from_numpy(inputs.transpose(0, 3, 1, 2).copy()))
        hits = original.logits.numpy().argmax(1) == right
        assert found.original.top1_original == hits.mean()


@pytest.mark.usefixtures("_transformers")
def test_other_weights_in_the_original_are_found_out(ten, monkeypatch):
    import torch

    from van_classification_tensorflow.evaluate import original

    load = original.load_original

    def other(*arguments):
        model = load(*arguments)
        with torch.no_grad():
            model.classifier.bias[0] += 1e-3
        return model

    monkeypatch.setattr(original, "load_original", other)
    console = Console(file=io.StringIO(), width=100)
    assert run(asked(ten[0], against_original=True), console) == 1
    assert "1.0e-03" in console.file.getvalue()


# --- Exported files ---


def templates():
    """The mean of each digit's training scans, as weights of a linear model: right mostly."""
    train, _ = load_digits()
    pixels = np.kron((train.pixels.astype(float) * 255 / 16).round(), np.ones((4, 4)))
    flat = ((pixels / 255 - 0.25) / 0.5).reshape(len(pixels), -1)
    means = np.stack([flat[train.labels == i].mean(axis=0) for i in range(10)], axis=1)
    return ((means - means.mean(axis=1, keepdims=True)) / 20).astype(np.float32)


@pytest.mark.parametrize("format", FORMATS)
def test_exported_files(tmp_path, format):
    record = about(channels=1, labels=list("0123456789"), input="uint8", name="digits")
    path = build(tmp_path, format, templates(), record, batch=64, channels=1, uint8=True)
    found = evaluate("digits", path)
    _, test = load_digits()
    scans = (test.pixels.astype(float) * 255 / 16).round().astype(np.uint8)
    images = np.kron(scans, np.ones((4, 4), np.uint8))[..., None]
    right = tiny_artefacts.expected(images, templates()).argmax(axis=1) == test.labels
    assert found.count == 360
    assert 0.75 < found.top1 < 1
    assert found.top1 == pytest.approx(right.mean(), abs=1e-9)
    assert (found.model, found.backend) == (f"digits (float32, {path})", format)
    # 1 -> 8 channels, 16 hidden, one block, 10 classes, by hand: patch 400 + 16; norms 16 + 16
    # + 16; 1 x 1 convolutions 3 x 72, 144 and 136; depthwise 208 + 400 + 160; scales 16; head 90.
    assert found.parameters == 400 + 16 + 3 * 16 + 3 * 72 + 144 + 136 + 208 + 400 + 160 + 16 + 90
    text = text_of(report, found)
    assert "digits (float32, " in text
    assert "parameters)" in text
    assert found.to_dict()["parameters"] == found.parameters
    assert found.timm_row()["param_count"] == 0.0


def test_an_exported_file_of_others(tmp_path):
    path = build(tmp_path, "onnx", templates(), channels=1)
    preprocessing = Preprocessing(32, 1.0, "box", (0.25,), (0.5,))
    options = {"preprocessing": preprocessing, "labels": "digits"}
    found = evaluate("digits", path, output=tmp_path / "found", **options)
    assert found.parameters is None
    assert found.top1 > 0.75
    assert "parameters" not in text_of(report, found)
    row = next(csv.DictReader((tmp_path / "found" / "results.csv").open(newline="")))
    assert (row["model"], row["param_count"]) == (str(path), "")
    assert json.loads((tmp_path / "found" / "results.json").read_text())["parameters"] is None


def test_an_exported_file_is_compared_with_the_published_figures(tmp_path):
    weights = random_weights(3, 1000)
    record = about(classes=1000, name="van_b0.in1k", precision="int8")
    classifier = Classifier(build(tmp_path, "onnx", weights, record))
    path = save(tmp_path / "val", "ILSVRC2012_val_00000001.png", 1)
    dataset = Dataset("ImageNet", iter([Example(path, path.name, (0,))]), 1, original_labels=True)
    found = measure(classifier, dataset)
    assert found.published.top1 == pytest.approx(0.7541, abs=1e-3)
    assert not found.published.same_preprocessing


def test_an_exported_file_cannot_be_compared_with_the_original(tmp_path):
    path = build(tmp_path, "onnx", templates(), about(channels=1), channels=1)
    with pytest.raises(ValueError, match=r"`against_original` needs the weights; .* exported f"):
        evaluate("digits", path, against_original=True)
    with pytest.raises(ValueError, match="`engine` is for weights"):
        evaluate("digits", path, engine="keras")


# --- The gallery ---


def test_the_most_confident_mistakes_and_the_least_certain(given, monkeypatch):
    """By hand: of the classes a ... g, logits of one class stand out by so much."""
    monkeypatch.setattr(measuring, "_GALLERY", 3)
    cases = [(3, 0, 0), (1, 1, 0), (9, 2, 0), (5, 3, 3), (2, 4, 4), (7, 5, 1), (0.5, 6, 2)] * 3
    dataset = given_dataset(*((by * np.eye(7)[best], (true,)) for by, best, true in cases))
    found = measure(given, dataset)
    wrong = [(one.true, one.predicted) for one in found.mistakes]
    assert wrong == [("a", "c")] * 3  # by 9
    assert [one.picture for one in found.mistakes] == ["picture 2", "picture 9", "picture 16"]
    share = np.exp(9) / (np.exp(9) + 6)
    assert found.mistakes[0].probability == pytest.approx(share)
    assert [(one.true, one.predicted) for one in found.least_certain] == [("c", "g")] * 3
    assert not any(one.right for one in found.mistakes)
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert record["mistakes"][0] == {
        "picture": "picture 2",
        "true": "a",
        "predicted": "c",
        "probability": pytest.approx(share),
        "right": False,
    }


def test_a_gallery_of_several_right_classes_and_no_mistakes(given):
    found = measure(given, given_dataset((np.eye(7)[1], (1, 2))))
    assert found.mistakes == ()
    (one,) = found.least_certain
    assert (one.true, one.predicted, one.right) == ("b or c", "b", True)
    # The picture is gone: grey, and no error after hours of work.
    assert (one.look() == 200).all()


def test_the_pictures_of_the_gallery(tmp_path, monkeypatch, micro):
    """Each is what the model saw, under its class and what it was taken for, mistakes in red."""
    for name in NAMES[:2]:
        for seed in range(3):
            save(tmp_path / "data" / name, f"{seed}.png", seed)
    found = measure(micro, open_dataset(tmp_path / "data", micro.classes))
    drawn_sheets = {}
    monkeypatch.setattr(
        files.plots, "sample_sheet", lambda *a, **k: drawn_sheets.update({a[2].name: (a, k)})
    )
    files.write(found, tmp_path / "out", overwrite=False)
    for kind in ("mistakes", "least_certain"):
        (images, captions, _, _), options = drawn_sheets[f"{kind}.png"]
        shown = getattr(found, kind)
        assert len(images) == len(captions) == len(shown)
        for image, caption, colour, one in zip(
            images, captions, options["colours"], shown, strict=True
        ):
            expected = micro.preprocessing.crop(open_image(one.picture))
            np.testing.assert_array_equal(image, expected)
            true, predicted = one.true.replace("_", " "), one.predicted.replace("_", " ")
            assert caption == f"{true}\n→ {predicted} ({one.probability:.0%})"
            assert colour == ("black" if one.right else "crimson")
    assert "Mistakes" in drawn_sheets["mistakes.png"][1]["title"]


# --- Engines ---


def test_int8_says_what_it_costs(monkeypatch):
    monkeypatch.setattr(calibration, "CALIBRATION", 16)
    options = {"engine": "onnxruntime", "precision": "int8", "calibration": "digits"}
    found = evaluate("digits", "digits", **options)
    assert found.top1 >= 0.97
    assert 1e-3 < found.engine_difference < 0.3
    assert "int8: as asked; its ranges are those of 16 pictures of the bundled" in found.engine
    assert "best class the same for 100.0%" in found.engine


@pytest.mark.usefixtures("eager")
def test_every_engine_measures_the_same(ten):
    data, _, _ = ten
    names = ("numpy", "keras", "onnxruntime", "openvino")
    found = {name: evaluate(data, MICRO_FILE, engine=name, **SMALL) for name in names}
    for name, one in found.items():
        assert one.backend == (keras.backend.backend() if name == "keras" else name)
        assert (one.top1, one.top5, one.confusion) == (
            found["numpy"].top1,
            found["numpy"].top5,
            found["numpy"].confusion,
        )
        assert one.loss == pytest.approx(found["numpy"].loss, abs=1e-6)
        assert "as asked" in one.engine
        record = one.to_dict()
        assert record["engine"] == one.engine
        assert (record["engine_difference"] is None) == (name == "numpy")
    assert found["onnxruntime"].parameters == found["keras"].parameters
    assert "ONNX Runtime" in text_of(report, found["onnxruntime"])
