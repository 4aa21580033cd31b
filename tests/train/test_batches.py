"""Training data: which pictures, and batches that are the same whoever makes them, and when."""

import gc
import io
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from van_classification_tensorflow.datasets.digits import PREPROCESSING, load_digits
from van_classification_tensorflow.datasets.training import Pictures, open_data
from van_classification_tensorflow.images.decode import ImageError
from van_classification_tensorflow.spec.preprocessing import Preprocessing
from van_classification_tensorflow.train.augment import BatchTransform, TrainTransform
from van_classification_tensorflow.train.batches import (
    EvaluationBatches,
    TrainingBatches,
    refusal,
    unreadable,
)

SMALL = TrainTransform(8, (0.5,))
MIX = BatchTransform(mean=(0.5,), std=(0.5,))


def folder(root, files):
    """{path within root: bytes}; a path that ends in / is an empty folder."""
    for name, content in files.items():
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(content)
    return root


def empty_files(root, counts):
    """{class: number of pictures}; nobody opens them here."""
    return folder(root, {f"{c}/{i}.png": b"" for c, n in counts.items() for i in range(n)})


def png(value):
    data = io.BytesIO()
    Image.new("L", (2, 2), value).save(data, "PNG")
    return data.getvalue()


def names(pictures, root):
    """[(path within root, class)]."""
    paths = [os.path.relpath(source, root) for source in pictures.sources]
    return list(zip(paths, (pictures.classes[i] for i in pictures.labels), strict=True))


# --- Which pictures ---


def test_digits():
    for pictures, split, count in zip(open_data("digits"), load_digits(), (1437, 360), strict=True):
        assert len(pictures) == count
        assert pictures.sources.shape == (count, 32, 32)
        assert pictures.sources.dtype == np.uint8
        assert pictures.classes == tuple("0123456789")
        assert np.array_equal(pictures.labels, split.labels)
        assert pictures.labels.dtype == np.int32
        ((images, labels),) = EvaluationBatches(pictures, PREPROCESSING, count)
        assert np.abs(images - split.images).max() <= 2 / 255
        assert np.array_equal(labels, split.labels)


def test_only_the_text_digits_means_the_bundled_ones(tmp_path, monkeypatch):
    empty_files(tmp_path / "digits", {"a": 2, "b": 2})
    monkeypatch.chdir(tmp_path)
    for data in (Path("digits"), "./digits", b"digits"):
        assert open_data(data)[0].classes == ("a", "b")
    assert open_data("digits")[0].classes == tuple("0123456789")


@pytest.mark.parametrize(
    "name", ["val", "validation", "valid", "eval", "test", "testing", "Val", "TEST"]
)
def test_two_folders(tmp_path, name):
    files = {"train/b/2.png": b"", "train/a/x/1.JPEG": b"", "train/a/1.gif": b""}
    files |= {f"{name}/a/3.png": b"", f"{name}/b/": b"", "other/c/1.png": b"", "1.png": b""}
    training, validation = open_data(folder(tmp_path, files))
    assert names(training, tmp_path) == [
        ("train/a/1.gif", "a"),
        ("train/a/x/1.JPEG", "a"),
        ("train/b/2.png", "b"),
    ]
    assert training.labels.tolist() == [0, 0, 1]
    assert names(validation, tmp_path) == [(f"{name}/a/3.png", "a")]
    assert training.classes == validation.classes == ("a", "b")


def test_training_is_train_by_another_name(tmp_path):
    data = empty_files(tmp_path, {f"{s}/{c}": 1 for s in ("Training", "Testing") for c in "ab"})
    training, validation = open_data(data)
    assert names(training, data) == [("Training/a/0.png", "a"), ("Training/b/0.png", "b")]
    assert names(validation, data) == [("Testing/a/0.png", "a"), ("Testing/b/0.png", "b")]


@pytest.mark.parametrize(
    "folders",
    [
        ("training_set", "test_set"),
        ("seg_train/seg_train", "seg_test/seg_test", "seg_pred/seg_pred"),
        ("Fold 1", "Fold 2"),
        ("train2017", "val2017"),
    ],
)
def test_parts_of_a_data_set_are_no_classes(tmp_path, folders):
    data = empty_files(tmp_path, {f"{s}/{c}": 2 for s in folders for c in "ab"})
    said = r"look like parts of a data set, .* Name the part to train on train .* val, or give"
    with pytest.raises(ValueError, match=said):
        open_data(data)


@pytest.mark.parametrize(
    "folders",
    [
        ("training_set", "test_set"),  # with pictures of their own
        ("cat/2020", "dog/2020", "cat/2021", "dog/2021"),
        ("n01443537/images", "n01629819/images"),
        ("express train/steam", "test tube/glass"),
    ],
)
def test_classes_that_are_no_parts_of_a_data_set(tmp_path, folders):
    data = empty_files(tmp_path, dict.fromkeys(folders, 2))
    assert set(open_data(data)[0].classes) == {name.split("/")[0] for name in folders}


def test_val_comes_before_test(tmp_path):
    data = empty_files(tmp_path, {f"{s}/{c}": 1 for s in ("train", "test", "val") for c in "ab"})
    assert names(open_data(data)[1], data) == [("val/a/0.png", "a"), ("val/b/0.png", "b")]


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"val/c/1.png": b""}, r"val has classes that .*train lacks: c\."),
        ({"train/c/1.png": b""}, r"train has classes that .*val lacks: c\. .* empty folder there"),
        ({"train/c/": b"", "val/c/1.png": b""}, "train has class folders without a picture: c;"),
        ({"val/1.png": b""}, r"val: 1 pictures lie in no class folder.*\(1\.png\)"),
    ],
)
def test_two_folders_that_do_not_agree(tmp_path, extra, says):
    data = empty_files(tmp_path, {f"{s}/{c}": 1 for s in ("train", "val") for c in "ab"})
    with pytest.raises(ValueError, match=says):
        open_data(folder(data, extra))


def test_validation_folder_without_pictures(tmp_path):
    folder(tmp_path, {"train/a/1.png": b"", "train/b/1.png": b"", "val/a/": b"", "val/b/": b""})
    with pytest.raises(ValueError, match=r"no pictures in .*val$"):
        open_data(tmp_path)


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(1, 12), min_size=2, max_size=4),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**70),
)
def test_split(tmp_path_factory, counts, share, seed):
    data = tmp_path_factory.mktemp("split")
    empty_files(data, {f"class {i}": count for i, count in enumerate(counts)})
    if max(counts) == 1:
        with pytest.raises(ValueError, match="every class has one picture"):
            open_data(data)
        return
    training, validation = open_data(data, validation_split=share, seed=seed)
    assert training.classes == validation.classes
    assert not set(training.sources) & set(validation.sources)
    assert sorted(training.sources) == list(training.sources)
    every = {str(path) for path in data.glob("*/*.png")}
    assert set(training.sources) | set(validation.sources) == every
    for i, count in enumerate(counts):
        held_out = int((validation.labels == i).sum())
        assert held_out + int((training.labels == i).sum()) == count
        assert held_out == (min(max(round(count * share), 1), count - 1)) or (
            count * share % 1 == 0.5
        )
    for pictures in (training, validation):
        assert all(f"/class {i}/" in p for p, i in zip(pictures.sources, pictures.labels, strict=1))
    shutil.rmtree(data)


def test_the_split_is_the_same_everywhere(tmp_path):
    files = {f"{c}/{i}.jpg": b"" for c in "ab" for i in range(10)}
    one = open_data(folder(tmp_path / "one", files), validation_split=0.3)
    backwards = dict(reversed(files.items()))
    two = open_data(folder(tmp_path / "two", backwards), validation_split=0.3)
    for here, there in zip(one, two, strict=True):
        assert names(here, tmp_path / "one") == names(there, tmp_path / "two")
        assert here.fingerprint == there.fingerprint
    # The smallest SHA-256 of seed, class and name: on every machine, now and later.
    held_out = [name for name, _ in names(one[1], tmp_path / "one")]
    assert held_out == ["a/7.jpg", "a/8.jpg", "a/9.jpg", "b/0.jpg", "b/2.jpg", "b/3.jpg"]
    other = open_data(tmp_path / "one", validation_split=0.3, seed=1)[1]
    assert names(other, tmp_path / "one") != names(one[1], tmp_path / "one")
    # Another class changes nothing for these.
    more = open_data(folder(tmp_path / "one", {"A/1.png": b""}), validation_split=0.3)[1]
    assert names(more, tmp_path / "one") == names(one[1], tmp_path / "one")


def test_classes_do_not_share_their_draws(tmp_path):
    data = empty_files(tmp_path, {str(i): 10 for i in range(20)})
    held_out = [name.split("/")[1] for name, _ in names(open_data(data)[1], data)]
    assert len(set(held_out)) > 5  # otherwise the same two of every class


def test_what_is_no_picture_is_ignored(tmp_path):
    files = {"a/1.png": b"", "a/2.PNG": b"", "b/1.png": b"", "b/sub/sub/2.webp": b""}
    ignored = {"a/notes.txt": b"", ".git/1.png": b"", "a/.ipynb_checkpoints/1.png": b""}
    ignored |= {"readme.md": b"", ".DS_Store": b"", "a/._1.png": b"", "a/.hidden.png": b""}
    data = folder(tmp_path, files | ignored)
    found = [name for part in open_data(data) for name, _ in names(part, data)]
    assert sorted(found) == sorted(files)


def test_classes_are_in_the_plain_order_of_their_names(tmp_path):
    data = empty_files(tmp_path, dict.fromkeys(("10", "2", "b", "B", "é", "a b"), 2))
    assert open_data(data)[0].classes == ("10", "2", "B", "a b", "b", "é")


def test_a_class_may_be_called_train(tmp_path):
    assert open_data(empty_files(tmp_path, {"train": 2, "plane": 2}))[0].classes == (
        "plane",
        "train",
    )


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "must hold a folder of pictures for each class, two at least. It has none"),
        ({"a/1.png": b"", "a/2.png": b""}, "It has only one, a"),
        ({"train/a/1.png": b"", "train/b/1.png": b""}, "It has only one, train"),
        ({"a/1.png": b"", "b/1.png": b"", "2.jpg": b""}, r"in no class folder.*\(2\.jpg\)"),
        ({"a/1.png": b"", "b/": b""}, "without a picture: b; fill or remove"),
        (
            {"a/1.txt": b"", "b/": b""},
            r"without a picture: a, b; .* Left out 1 file .*: 1 .txt \(1.txt\).",
        ),
    ],
)
def test_folders_that_cannot_be_trained_on(tmp_path, files, says):
    with pytest.raises(ValueError, match=says):
        open_data(folder(tmp_path, files))


def test_wrong_arguments(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Received: .*nowhere, and there is no such"):
        open_data(tmp_path / "nowhere")
    for share in (0, 1, -0.1, float("nan"), "a", None, True):
        with pytest.raises(ValueError, match="`validation_split` must be a share above 0"):
            open_data("digits", validation_split=share)
    with pytest.raises(ValueError, match=r"`seed` must be an integer >= 0\. Received: seed=-1"):
        open_data("digits", seed=-1)


@pytest.mark.parametrize("unreadable", ["b", "b/sub", "."])
def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch, unreadable):
    """Root may read all, so the system is made to refuse."""
    data = folder(tmp_path, {"a/1.png": b"", "b/1.png": b"", "b/sub/2.png": b""})

    def refusing(function):
        def called(path="."):
            if os.path.abspath(path) == os.path.abspath(data / unreadable):
                raise PermissionError(13, "Permission denied", str(path))
            return function(path)

        return called

    monkeypatch.setattr(os, "scandir", refusing(os.scandir))
    monkeypatch.setattr(os, "listdir", refusing(os.listdir))
    with pytest.raises(PermissionError, match="Permission denied"):
        open_data(data)


def test_names_in_odd_encodings(tmp_path):
    odd = [b"caf\xe9.png", b"a\nb.png", b"\xf0\x9f\x90\xb1.png", b"-.png", b"%s [x].png"]
    for kind in (b"caf\xe9", b"\xc3\xa9 \x1b[31m"):
        os.makedirs(os.path.join(os.fsencode(tmp_path), kind))
        for name in odd:
            with open(os.path.join(os.fsencode(tmp_path), kind, name), "wb") as file:
                file.write(png(7))
    training, validation = open_data(os.fsencode(tmp_path))
    assert (len(training), len(validation)) == (8, 2)
    assert training.classes == (r"caf\udce9", r"é \x1b[31m")  # as they can be written anywhere
    batches = TrainingBatches(training, SMALL, MIX, 8, workers=1)
    images, _ = next(batches.iterate())
    assert images.shape == (8, 8, 8, 1)
    os.remove(os.fsencode(training.sources[0]))
    with pytest.raises(ImageError, match="No such file") as caught:
        next(batches.iterate())
    str(caught.value).encode()
    assert all(c.isprintable() or c == "\n" for c in str(caught.value))


NFC, NFD = "é", "e\N{COMBINING ACUTE ACCENT}"


def test_names_compare_in_nfc_however_a_system_writes_them(tmp_path):
    two = {f"train/{NFC}/1.png": b"", f"val/{NFD}/1.png": b"", "train/b/1.png": b"", "val/b/": b""}
    training, validation = open_data(folder(tmp_path / "two", two))
    assert training.classes == validation.classes == ("b", NFC)
    parts = [
        open_data(folder(tmp_path / str(i), {f"{one}/{one}{n}.png": b"" for n in range(9)} | b))
        for i, (one, b) in enumerate((form, {"b/1.png": b""}) for form in (NFC, NFD))
    ]
    for one, other in zip(*parts, strict=True):  # the same are held out, and it is the same run
        assert one.fingerprint == other.fingerprint
        assert one.classes == other.classes == ("b", NFC)
        held = [[os.path.basename(s)[-5:] for s in p.sources] for p in (one, other)]
        assert held[0] == held[1]
    twice = folder(tmp_path / "twice", {f"{NFC}/1.png": b"", f"{NFD}/1.png": b"", "b/1.png": b""})
    with pytest.raises(ValueError, match="two folders for the class é, whose names differ only in"):
        open_data(twice)


def test_pictures_are_known_by_content_and_what_is_left_out_is_counted(tmp_path):
    files = {
        "train/a/1": png(1),
        "train/a/2.jfif": png(1),
        "train/a/3.image": png(1),
        "train/a/notes.txt": b"none",
        "train/a/.4.png": png(1),
        "train/b/1.png": png(1),
        "train/list.csv": b"a,b",
        "val/a/1.dat": png(1),
        "val/a/._1.png": b"",
        "val/b/README": b"",
        "val/b/Thumbs.db": b"",
    }
    training, validation = open_data(folder(tmp_path, files))
    assert (len(training), len(validation)) == (4, 1)
    assert training.left_out == (
        "Left out 4 files that are hidden or no pictures: 1 .csv (list.csv), 1 .txt (notes.txt), "
        "1 hidden (.4.png), 1 without an ending (README)."
    )
    assert open_data("digits")[0].left_out == ""


def test_fingerprint(tmp_path):
    files = {f"{s}/{c}/{i}.png": b"1" for s in ("train", "val") for c in "ab" for i in "12"}

    def prints(change=None):
        data = folder(tmp_path / "data", files | (change or {}))
        found = [pictures.fingerprint for pictures in open_data(data)]
        shutil.rmtree(data)
        return found

    before = prints()
    assert len(before[0]) == 64
    assert prints() == before
    assert prints({"train/a/notes.txt": b""}) == before
    seen = {before[0]}
    for change in (
        {"train/a/3.png": b"1"},
        {"train/a/10.png": b"1"},
        {"train/b/3.png": b"1"},
        {"train/a/b/1.png": b"1"},
        {"train/a/1.png": b"12"},
        {"train/a/1.png": b""},
        {"train/c/1.png": b"1", "val/c/": b""},
    ):
        changed = prints(change)
        assert changed[1] == before[1]
        assert changed[0] not in seen
        seen.add(changed[0])
    files["train/A/1.png"] = files.pop("train/a/1.png")  # moved to another class
    files["val/A/1.png"] = b"1"
    assert prints()[0] not in seen


def test_fingerprints_of_digits():
    training, validation = open_data("digits")
    assert training.fingerprint != validation.fingerprint
    assert training.fingerprint == open_data("digits")[0].fingerprint


# --- Batches ---


def coded(count, classes=3):
    """Picture i is an even grey of value i."""
    values = np.arange(count, dtype=np.uint8)[:, None, None]
    labels = np.arange(count, dtype=np.int32) % classes
    return Pictures("coded", np.tile(values, (1, 2, 2)), labels, tuple("abcdef"[:classes]), "")


class Drawn:
    """Two numbers: the grey value, and a random number."""

    def __call__(self, image, rng):
        return np.float32([[[np.asarray(image)[0, 0], rng.random()]]])


def unmixed(images, labels, classes, rng, rngs):
    """Targets: one for the label; in the last columns a random number of each row, and mixing's."""
    targets = np.zeros((len(labels), classes + 2), np.float32)
    targets[np.arange(len(labels)), labels] = 1
    targets[:, -2] = [of_row.random() for of_row in rngs]
    targets[:, -1] = rng.random()
    return images, targets


def made(pictures, batch_size=4, count=10, start=0, **options):
    """The first `count` batches from `start`: (greys, random numbers, targets)."""
    batches = TrainingBatches(pictures, Drawn(), unmixed, batch_size, **options)
    found = []
    iterator = batches.iterate(start)
    for _, (images, targets) in zip(range(count), iterator, strict=False):
        found.append((images[:, 0, 0, 0].astype(int), images[:, 0, 0, 1], targets))
    iterator.close()
    return found


def same(one, other):
    return all(
        np.array_equal(x, y)
        for a, b in zip(one, other, strict=True)
        for x, y in zip(a, b, strict=True)
    )


def test_the_batches_are_the_same_whoever_makes_them():
    training = open_data("digits")[0]
    transform = TrainTransform(32, (0.5,))
    epoch = len(training) // 256

    def stream(start, count, workers):
        batches = TrainingBatches(training, transform, MIX, 256, seed=3, workers=workers)
        assert batches.steps_per_epoch == epoch == 5
        iterator = batches.iterate(start)
        found = [next(iterator) for _ in range(count)]
        iterator.close()
        return found

    expected = stream(0, 7, 1)
    for images, targets in expected:
        assert type(images) is np.ndarray
        assert (images.shape, images.dtype) == ((256, 32, 32, 1), np.float32)
        assert (targets.shape, targets.dtype) == ((256, 10), np.float32)
        assert images.flags.writeable
    assert len({images.tobytes() for images, _ in expected}) == 7
    assert same(stream(0, 7, 5), expected)
    assert same(stream(3, 4, 2), expected[3:])
    assert same(stream(6, 1, 3), expected[6:])


@pytest.mark.parametrize("start", [0, 1, 2, 3, 7, 9])
def test_resumed_at_any_step(start):
    pictures = coded(11)
    expected = made(pictures, count=12, seed=5, workers=1)
    assert same(made(pictures, count=12 - start, start=start, seed=5, workers=2), expected[start:])


def test_a_step_far_away_is_as_near():
    pictures = coded(11)
    far = 2 * 10**9
    batches = TrainingBatches(pictures, Drawn(), unmixed, 4)
    ((greys, _, _),) = made(pictures, count=1, start=far)
    assert np.array_equal(greys, batches.indices(far))


def test_every_epoch_takes_each_picture_once_in_its_own_order():
    pictures = coded(23)
    batches = TrainingBatches(pictures, Drawn(), unmixed, 5, seed=1)
    assert batches.steps_per_epoch == 4
    assert batches.indices(0).flags.owndata  # the caller's own
    found = made(pictures, 5, 12, seed=1)
    for number, (greys, _, targets) in enumerate(found):
        assert np.array_equal(greys, batches.indices(number))
        assert np.array_equal(targets[:, :3].argmax(1), pictures.labels[greys])
    epochs = [np.concatenate([greys for greys, _, _ in found[i : i + 4]]) for i in (0, 4, 8)]
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    # What is left out is not always the same.
    assert len({tuple(sorted(set(range(23)) - set(epoch))) for epoch in epochs}) == 3
    other = TrainingBatches(pictures, Drawn(), unmixed, 5, seed=2)
    assert not np.array_equal(other.indices(0), batches.indices(0))
    whole = TrainingBatches(pictures, Drawn(), unmixed, 23, seed=1)
    for epoch in range(3):
        assert sorted(whole.indices(epoch)) == list(range(23))
        assert np.array_equal(whole.indices(epoch)[:20], epochs[epoch])


def test_balanced_epochs_show_each_class_equally_often():
    labels = np.repeat(np.arange(3, dtype=np.int32), (40, 7, 1))
    values = np.arange(48, dtype=np.uint8)[:, None, None]
    pictures = Pictures("sizes", np.tile(values, (1, 2, 2)), labels, ("a", "b", "c"), "")
    found = made(pictures, 4, 36, balanced=True, seed=1)
    epochs = [found[i : i + 12] for i in (0, 12, 24)]
    orders = [np.concatenate([greys for greys, _, _ in epoch]) for epoch in epochs]
    for order, epoch in zip(orders, epochs, strict=True):
        assert np.bincount(labels[order]).tolist() == [16, 16, 16]
        times = np.bincount(order, minlength=48)
        assert set(times[:40]) == {0, 1}  # of a large class another part each time
        assert set(times[40:47]) == {2, 3}
        assert times[47] == 16
        drawn = np.concatenate([draws for _, draws, _ in epoch])
        assert len(set(drawn)) == 48  # each time augmented otherwise
        for greys, _, targets in epoch:
            assert np.array_equal(targets[:, :3].argmax(1), labels[greys])
    assert len({tuple(order) for order in orders}) == 3
    assert len(set(np.concatenate(orders)) & set(range(40))) > 25
    # A function of seed and number, whoever makes it.
    assert same(made(pictures, 4, 5, 31, balanced=True, seed=1, workers=3), found[31:])
    assert not same(made(pictures, 4, 1, balanced=True, seed=2), found[:1])
    halves = [made(pictures, 4, 3, balanced=True, seed=1, shard=(i, 2)) for i in (0, 1)]
    both = [np.concatenate([a, b]) for (a, *_), (b, *_) in zip(*halves, strict=True)]
    assert np.array_equal(both, [greys for greys, _, _ in found[:3]])


def test_classes_that_do_not_divide_take_turns():
    pictures = coded(11, classes=3)
    batches = TrainingBatches(pictures, Drawn(), unmixed, 11, balanced=True)
    counts = [np.bincount(pictures.labels[batches.indices(n)]) for n in range(30)]
    assert all(sorted(count) == [3, 4, 4] for count in counts)
    assert len({tuple(count) for count in counts}) == 3


def test_augmentation_belongs_to_the_picture_not_to_its_place():
    pictures = coded(24)

    def draws(batch_size, epoch, **options):
        steps = 24 // batch_size
        found = made(pictures, batch_size, steps, epoch * steps, **options)
        return {g: d for greys, drawn, _ in found for g, d in zip(greys, drawn, strict=True)}

    first, second = draws(4, 0), draws(4, 1)
    assert len(first) == len(set(first.values())) == 24
    assert draws(8, 0) == draws(3, 0) == first
    assert draws(6, 1) == second
    assert not set(first.values()) & set(second.values())
    assert not set(first.values()) & set(draws(4, 0, seed=1).values())


def test_mixing_belongs_to_the_batch():
    draws = [targets[0, -1] for _, _, targets in made(coded(11), count=8)]
    assert len(set(draws)) == 8
    assert draws[5] == made(coded(11), count=1, start=5)[0][2][0, -1]
    assert not set(draws) & {t[0, -1] for _, _, t in made(coded(11), count=8, seed=1)}
    drawn = {float(d) for _, augmented, _ in made(coded(11), count=8) for d in augmented}
    assert not drawn & set(map(float, draws))


@pytest.mark.parametrize("shards", [2, 3])
def test_shards_in_turn_are_the_batch(shards):
    pictures = coded(26)
    whole = made(pictures, 6, 6)
    parts = [made(pictures, 6, 6, shard=(i, shards)) for i in range(shards)]
    for number, batch in enumerate(whole):
        assert len(set(batch[2][:, -2])) == 6  # each row draws for itself
        for arrays in zip(batch, *(part[number] for part in parts), strict=True):
            assert all(len(rows) == 6 // shards for rows in arrays[1:])
            assert np.array_equal(arrays[0], np.concatenate(arrays[1:]))
    for i, part in enumerate(parts):
        assert same(made(pictures, 6, 2, 4, shard=(i, shards)), part[4:])


@pytest.mark.parametrize("shards", [2, 3, 6])
@pytest.mark.parametrize(
    "change", [{"cutmix": 0}, {"mixup": 0}, {"class_weights": (1.0, 2.0, 3.0, 4.0)}]
)
def test_shards_are_mixed_and_erased_as_one_worker_does(shards, change):
    """Every array of every batch, to the bit, of pictures, mixing and erasing as in training."""
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (31, 9, 9), dtype=np.uint8)
    pictures = Pictures("noise", pixels, rng.integers(0, 4, 31).astype(np.int32), tuple("abcd"), "")
    mix = BatchTransform(erasing=0.7, mix_probability=0.8, mean=(0.5,), std=(0.5,), **change)

    def batches(shard):
        one = TrainingBatches(pictures, SMALL, mix, 12, seed=5, shard=shard)
        with closing(one.iterate()) as iterator:
            return list(islice(iterator, 6))

    whole = batches((0, 1))
    parts = [batches((i, shards)) for i in range(shards)]
    for batch, *shares in zip(whole, *parts, strict=True):
        for array, *rows in zip(batch, *shares, strict=True):
            assert np.array_equal(array, np.concatenate(rows))
    targets = np.concatenate([batch[1] for batch in whole])
    assert (targets.max(1) < 0.92 - 1e-6).mean() > 0.3  # there was something to mix


def test_no_pair_that_is_mixed_is_divided():
    says = (
        r"`batch_size` must give each worker an even number of pictures, as they are mixed in "
        r"pairs: a multiple of 4 for 2 workers\. Received: batch_size=6\. Or turn mixing off"
    )
    with pytest.raises(ValueError, match=says):
        TrainingBatches(coded(11), SMALL, MIX, 6, shard=(0, 2))
    for off in ({"mixup": 0, "cutmix": 0}, {"mix_probability": 0}):
        TrainingBatches(coded(11), SMALL, replace(MIX, **off), 6, shard=(0, 2))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 12}, r"at most the number of pictures .* 11\. Received: batch_size=12"),
        ({"batch_size": 0}, "`batch_size` must be an integer >= 1. Received: batch_size=0"),
        ({"batch_size": 2.0}, "`batch_size` must be an integer >= 1"),
        ({"seed": -1}, "`seed` must be an integer >= 0"),
        ({"workers": 0}, "`workers` must be an integer >= 1"),
        ({"workers": True}, "`workers` must be an integer >= 1"),
        ({"processes": -1}, "`processes` must be an integer >= 0"),
        ({"max_corrupt": -1}, "`max_corrupt` must be an integer >= 0"),
        ({"max_pixels": 0}, "`max_pixels` must be an integer >= 1"),
        ({"shard": (2, 2)}, r"`shard` must be which worker this is, .*Received: shard=\(2, 2\)"),
        ({"shard": (-1, 2)}, "`shard` must be an integer >= 0"),
        ({"shard": (0, 3)}, "`batch_size` must be a multiple of the 3 workers"),
    ],
)
def test_wrong_options(options, says):
    with pytest.raises(ValueError, match=says):
        TrainingBatches(coded(11), Drawn(), unmixed, **{"batch_size": 4} | options)


def test_wrong_start():
    batches = TrainingBatches(coded(11), Drawn(), unmixed, 4)
    with pytest.raises(ValueError, match=r"`start` must be an integer >= 0\. Received: start=-1"):
        batches.iterate(-1)
    with pytest.raises(ValueError, match="`number` must be an integer >= 0"):
        batches.indices(-1)


def test_without_grain(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'van-classification-.*\[train\]'"):
        TrainingBatches(coded(11), Drawn(), unmixed, 4)


# --- Pictures that cannot be read ---

BROKEN = {
    "empty": (b"", "empty"),
    "text": (b"not a picture at all", "not a picture of JPEG"),
    "cut short": (png(1)[:-30], "PNG, 2 x 2, L: cut short: "),
    "missing": (None, "No such file or directory"),
}


@pytest.fixture
def files(tmp_path):
    """Twelve pictures of one grey each; those named are broken."""

    def make(broken=()):
        paths = [tmp_path / f"{i:02}.png" for i in range(12)]
        for i, path in enumerate(paths):
            content = BROKEN[broken[i]][0] if i in broken else png(i)
            if content is not None:
                path.write_bytes(content)
        labels = np.arange(12, dtype=np.int32) % 3
        return Pictures("files", tuple(map(str, paths)), labels, ("a", "b", "c"), "")

    return make


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("workers", [1, 3])
def test_the_first_unreadable_picture_ends_the_run(files, kind, workers):
    pictures = files({5: kind})
    batches = TrainingBatches(pictures, Drawn(), unmixed, 4, workers=workers)
    bad = next(n for n in range(3) if 5 in batches.indices(n))
    iterator = batches.iterate()
    for _ in range(bad):
        next(iterator)
    with pytest.raises(ImageError) as caught:
        next(iterator)
    first, second, last = str(caught.value).split("\n")
    assert first == "1 of the pictures cannot be read; `max_corrupt` allows 0:"
    assert second.startswith(f"  {pictures.sources[5]}: {BROKEN[kind][1]}")
    assert last.startswith("Remove or replace them, or raise `max_corrupt`")
    assert not getattr(caught.value, "__notes__", [])
    with pytest.raises(StopIteration):
        next(iterator)


def test_unreadable_pictures_are_replaced_by_the_next_in_order(files):
    order = TrainingBatches(files(), Drawn(), unmixed, 12).indices(0)
    # Two in a row in the middle, and the last one, whose next is the first.
    broken = {int(order[4]): "empty", int(order[5]): "text", int(order[11]): "missing"}
    for path in files().sources:
        os.remove(path)
    pictures = files(broken)
    expected = order.copy()
    expected[[4, 5, 11]] = order[[6, 6, 0]]
    found = made(pictures, 4, 9, max_corrupt=3, workers=1)
    assert np.array_equal(np.concatenate([greys for greys, _, _ in found[:3]]), expected)
    # Twice in an epoch, it is augmented as the picture it is, not as the one it replaces.
    drawn = np.concatenate([draws for _, draws, _ in found[:3]])
    assert drawn[4] == drawn[5] == drawn[6]
    assert drawn[11] == drawn[0]
    assert len(set(drawn)) == 9
    for greys, _, targets in found:
        assert np.array_equal(targets[:, :3].argmax(1), pictures.labels[greys])
    assert same(made(pictures, 4, 9, max_corrupt=3, workers=4), found)
    assert same(made(pictures, 4, 4, 5, max_corrupt=3, workers=2), found[5:])
    assert same(made(pictures, 4, 9, max_corrupt=12, workers=2), found)


def test_corrupt_counts_what_has_been_handed_out(files):
    pictures = files({2: "empty", 9: "text"})
    batches = TrainingBatches(pictures, Drawn(), unmixed, 4, max_corrupt=2)
    iterator = batches.iterate()
    for _ in range(7):
        next(iterator)
    time.sleep(0.2)  # more are made meanwhile
    asked = [batches.corrupt(step) for step in range(9)]
    for step in range(8):
        met = {pictures.sources[i]: 0 for i in (2, 9)}
        for number in range(step):
            drawn = batches.indices(number).tolist()
            for i in (2, 9):
                order = np.concatenate([batches.indices(number // 3 * 3 + k) for k in range(3)])
                place = drawn.index(i) if i in drawn else None
                met[pictures.sources[i]] += place is not None
                # Also where the other one is in its place.
                before = order[list(order).index(i) - 1]
                met[pictures.sources[i]] += before in (2, 9) and before in drawn
        assert asked[step] == {name: times for name, times in met.items() if times}
    assert asked[8] == asked[7]
    # Made again, it is still the same.
    iterator.close()
    iterator = batches.iterate(4)
    for _ in range(3):
        next(iterator)
    assert batches.corrupt(7) == asked[7]
    iterator.close()


def test_one_more_than_allowed_ends_the_run_and_all_are_named(files):
    pictures = files({1: "empty", 4: "missing", 7: "text"})
    batches = TrainingBatches(pictures, Drawn(), unmixed, 4, max_corrupt=2)
    found = []
    with pytest.raises(ImageError, match=r"3 of the pictures .* allows 2") as caught:
        found.extend(batches.iterate())
    assert len(found) < batches.steps_per_epoch  # where the third of them is met, no later
    for i in (1, 4, 7):
        assert f"\n  {pictures.sources[i]}: " in str(caught.value)


def test_all_unreadable_pictures_are_found_in_one_go(files):
    pictures = files({1: "empty", 4: "missing", 7: "text"})
    there, looked_at = unreadable([pictures, pictures])
    assert (list(there), looked_at) == ([pictures.sources[i] for i in (1, 4, 7)], 24)
    assert unreadable([pictures], seconds=-1) == ({}, 0)
    text = str(refusal({f"{i}.png": "damaged" for i in range(250)}, 0, 9000, 400))
    assert text.startswith("250 of the first 400 of 9,000 pictures cannot be read")
    assert text.count("damaged") == 100
    assert "\n  and 150 more\n" in text
    assert "`max_corrupt` to 250" in text


def test_nothing_but_unreadable_pictures(files):
    pictures = files(dict.fromkeys(range(12), "empty"))
    with pytest.raises(ImageError, match="12 of the pictures cannot be read"):
        made(pictures, max_corrupt=100)


def test_a_picture_with_too_many_pixels(files):
    with pytest.raises(ImageError, match="2 x 2 pixels; allowed: 3 in all"):
        made(files(), max_pixels=3)


class Failing:
    def __call__(self, image, rng):
        raise KeyError("something")


@pytest.mark.parametrize("workers", [1, 3])
def test_a_failing_transform_is_named_with_the_picture(files, workers):
    batches = TrainingBatches(files(), Failing(), unmixed, 4, workers=workers, max_corrupt=9)
    first = files().sources[batches.indices(0)[0]]
    with pytest.raises(RuntimeError) as caught:
        next(batches.iterate())
    assert str(caught.value) == f"{first}: the transform failed: KeyError('something')"
    assert isinstance(caught.value.__cause__, KeyError)
    assert not getattr(caught.value, "__notes__", [])


def test_a_failing_mix_is_seen():
    def mix(images, labels, classes, rng, rngs):
        raise FloatingPointError("mixed up")

    with pytest.raises(FloatingPointError, match="mixed up"):
        next(TrainingBatches(coded(11), Drawn(), mix, 4).iterate())


# --- Threads and processes end ---


def running():
    return [t for t in threading.enumerate() if t.name.startswith(("grain", "decode"))]


def ended(count=0):
    """They are told to end, not waited for."""
    until = time.monotonic() + 60
    while len(running()) > count and time.monotonic() < until:
        time.sleep(0.01)
    return len(running()) <= count


def test_abandoned_iterators_leave_no_threads(files):
    assert ended()
    broken = files({3: "empty"})
    for _ in range(2):
        iterator = TrainingBatches(coded(50), Drawn(), unmixed, 4, workers=3).iterate()
        next(iterator)
        assert running()
        iterator.close()
        assert ended()
        iterator = TrainingBatches(coded(50), Drawn(), unmixed, 4, workers=3).iterate()
        next(iterator)
        del iterator
        gc.collect()
        assert ended()
        TrainingBatches(coded(50), Drawn(), unmixed, 4).iterate()  # never asked for a batch
        with pytest.raises(ImageError):
            made(broken)
        assert ended()
        iterator = iter(EvaluationBatches(coded(50), Preprocessing(2, 1, mean=(0,), std=(1,)), 4))
        next(iterator)
        assert running()
        iterator.close()
        with pytest.raises(ImageError):
            list(EvaluationBatches(broken, Preprocessing(2, 1, mean=(0,), std=(1,)), 4))
        assert ended()


def test_memory_is_bounded():
    """However slow the consumer, only a few batches are made ahead."""
    opened = []

    class Counting(Drawn):
        def __call__(self, image, rng):
            opened.append(1)
            return super().__call__(image, rng)

    iterator = TrainingBatches(coded(200), Counting(), unmixed, 20, workers=2).iterate()
    next(iterator)
    time.sleep(0.5)
    assert len(opened) <= 20 * 6
    iterator.close()


EXIT = """
import sys
from van_classification_tensorflow.train.augment import BatchTransform, TrainTransform
from van_classification_tensorflow.datasets.training import open_data
from van_classification_tensorflow.train.batches import EvaluationBatches, TrainingBatches
from van_classification_tensorflow.datasets.digits import PREPROCESSING
training, validation = open_data("digits")
assert not {"grain", "keras", "tensorflow"} & set(sys.modules)
transform = TrainTransform(32, (0.5,))
mix = BatchTransform(mean=(0.5,), std=(0.5,))
batches = TrainingBatches(training, transform, mix, 64)
left, other = batches.iterate(), batches.iterate(9)
evaluation = iter(EvaluationBatches(validation, PREPROCESSING, 8))
next(left), next(other), next(evaluation)
print("done")
"""


def test_the_interpreter_ends_with_iterators_open():
    result = subprocess.run(
        [sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.stdout, result.stderr, result.returncode) == ("done\n", "", 0)


def test_processes_make_the_same_batches(tmp_path):
    """And what they cannot read, they say."""
    rng = np.random.default_rng(0)
    for i in range(40):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (12, 12), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "ab"[i % 2] / f"{i}.png")
    training, _ = open_data(tmp_path)
    options = {"batch_size": 8, "max_corrupt": 1, "seed": 4}
    probe = TrainingBatches(training, SMALL, MIX, **options)
    early, late = probe.indices(1)[3], probe.indices(3)[5]
    for index in (early, late):
        os.truncate(training.sources[index], 0)

    def until_refused(**more):
        batches, found = TrainingBatches(training, SMALL, MIX, **options, **more), []
        with pytest.raises(ImageError, match=r"2 of the pictures .* allows 1") as caught:
            found.extend(batches.iterate(1))  # the list keeps what came before the error
        return batches, found, str(caught.value)

    expected, alone, message = until_refused(workers=1)
    batches, found, same_message = until_refused(workers=2, processes=2)
    assert message == same_message
    assert len(found) == len(alone) == 2
    assert same(found, alone)
    assert type(found[0][0]) is np.ndarray
    assert batches.corrupt(3) == expected.corrupt(3) == {training.sources[early]: 1}
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX only")
def test_a_process_that_dies_is_an_error_and_the_others_end():
    before = len(running())  # of what ran earlier in this process
    training = open_data("digits")[0]
    iterator = TrainingBatches(training, SMALL, MIX, 16, workers=1, processes=2).iterate()
    next(iterator)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"exit code -9.*-9: too little memory"):
        list(iterator)
    assert not multiprocessing.active_children()
    assert ended(before)


@pytest.mark.slow
def test_a_script_that_cannot_be_imported_again_fails_and_does_not_hang(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(EXIT.replace("mix, 64)", "mix, 64, workers=1, processes=2)"))
    result = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 1
    assert "exit code 1." in result.stderr
    assert "__main__" in result.stderr


# --- Evaluation ---

PLAIN = Preprocessing(2, 1.0, "nearest", (0.0,), (1.0,))


@pytest.mark.parametrize("batch_size", [1, 4, 11, 20])
def test_evaluation_takes_all_in_order_and_fills_up(batch_size):
    pictures = coded(11)
    batches = EvaluationBatches(pictures, PLAIN, batch_size, workers=3)
    for _ in range(2):
        greys, labels = [], []
        for images, real in batches:
            assert (images.shape, images.dtype) == ((batch_size, 2, 2, 1), np.float32)
            assert real.dtype == np.int32
            assert len(real) == batch_size or len(greys) + len(real) == 11
            assert not images[len(real) :].any()
            greys += np.rint(images[: len(real), 0, 0, 0] * 255).astype(int).tolist()
            labels += real.tolist()
        assert greys == list(range(11))
        assert labels == pictures.labels.tolist()


def test_evaluation_leaves_out_what_cannot_be_read(files):
    pictures = files({0: "empty", 6: "missing"})
    found = list(EvaluationBatches(pictures, PLAIN, 4, max_corrupt=2))
    assert [len(labels) for _, labels in found] == [4, 4, 2]
    greys = np.concatenate([images[: len(labels), 0, 0, 0] * 255 for images, labels in found])
    kept = [i for i in range(12) if i not in (0, 6)]
    assert np.rint(greys).tolist() == kept
    assert np.concatenate([labels for _, labels in found]).tolist() == [i % 3 for i in kept]
    with pytest.raises(ImageError, match=r"2 of the pictures .* allows 1:\n.*00.png: empty\n.*06"):
        list(EvaluationBatches(pictures, PLAIN, 4, max_corrupt=1))
    with pytest.raises(ImageError, match="1 of the pictures"):
        list(EvaluationBatches(pictures, PLAIN, 4))
    with pytest.raises(ImageError, match="allowed: 3 in all"):
        list(EvaluationBatches(files(), PLAIN, 4, max_pixels=3))


def test_evaluation_of_a_picture_that_cannot_be_prepared(files, tmp_path):
    """Too long and thin to be resized: as unreadable as the others."""
    pictures = files()
    Image.new("L", (20000, 1)).save(tmp_path / "03.png")
    long = Preprocessing(100, 1.0, "nearest", (0.0,), (1.0,))
    with pytest.raises(ImageError, match=r"03\.png: 20000 x 1 pixels: too long and thin"):
        list(EvaluationBatches(pictures, long, 4))


@pytest.mark.parametrize("name", ["batch_size", "workers", "max_pixels"])
def test_wrong_options_of_evaluation(name):
    with pytest.raises(ValueError, match=f"`{name}` must be an integer >= 1"):
        EvaluationBatches(coded(3), PLAIN, **{"batch_size": 1} | {name: 0})
