"""Which pictures there are and what each should be taken for; no model is needed."""

import json
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from van_classification_tensorflow.datasets.digits import load_digits
from van_classification_tensorflow.datasets.labelled import (
    is_validation_picture,
    match_classes,
    open_dataset,
    subset_indices,
)
from van_classification_tensorflow.spec.labels import Label, imagenet_classes, labels_of

IMAGENET = labels_of("imagenet1k", 1000)
WNIDS = [c.wnid for c in imagenet_classes()]
PETS = (Label("cat"), Label("great_dane"), Label("dog"))


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(path)


@pytest.fixture
def folders(tmp_path):
    """Makes a data set: {folder: number of pictures} -> its path."""

    def make(counts):
        for name, count in counts.items():
            (tmp_path / "data" / name).mkdir(parents=True)
            for i in range(count):
                picture(tmp_path / "data" / name / f"{i}.png")
        return tmp_path / "data"

    return make


def found(dataset):
    """[(folder or file, classes)]."""
    return [(str(e.name).split("/")[-2], e.classes) for e in dataset.examples]


def test_folders_by_wordnet_id(folders):
    data = folders({WNIDS[7]: 2, WNIDS[2]: 1})
    dataset = open_dataset(data, IMAGENET)
    assert found(dataset) == [(WNIDS[2], (2,)), (WNIDS[7], (7,)), (WNIDS[7], (7,))]
    assert dataset.count == 3
    assert dataset.restricted is None
    assert "by WordNet id" in dataset.notes[0]


def test_wordnet_ids_of_weights_with_another_order(folders):
    """ImageNet-22k has other positions for the same ids."""
    labels = labels_of("imagenet22k", 21_841)
    data = folders({WNIDS[7]: 1})
    ((_, (index,)),) = found(open_dataset(data, labels))
    assert index != 7
    assert labels[index].wnid == WNIDS[7]


def test_imagenet_v2_is_read_in_numeric_order(folders):
    """Its folders are 0 ... 999; by the alphabet, 10 would be the third class."""
    dataset = open_dataset(folders({str(i): 1 for i in range(1000)}), IMAGENET)
    assert found(dataset) == [(str(i), (i,)) for i in range(1000)]


def test_indices_may_be_padded_and_be_few(folders):
    assert found(open_dataset(folders({"010": 1, "2": 1}), IMAGENET)) == [
        ("2", (2,)),
        ("010", (10,)),
    ]


def test_folders_by_name_also_with_spaces(folders):
    data = folders({"dog": 1, "great dane": 1})
    assert found(open_dataset(data, PETS)) == [("great dane", (1,)), ("dog", (2,))]


def test_pictures_at_any_depth_and_what_is_no_picture(folders):
    data = folders({"dog": 1, "cat": 0})
    picture(data / "dog" / "more" / "deep.JPEG")
    (data / "dog" / "notes.txt").write_text("")
    (data / ".cache").mkdir()
    (data / "readme.md").write_text("")
    dataset = open_dataset(data, PETS)
    assert dataset.count == 2
    assert any("Folders without a picture: 1 (cat)" in note for note in dataset.notes)
    assert dataset.notes[-1] == (
        "Left out 2 files that are hidden or no pictures: 1 .md (readme.md), 1 .txt (notes.txt)."
    )


def test_pictures_are_known_by_content(folders):
    data = folders({"dog": 1, "cat": 1})
    (data / "cat" / "0.png").rename(data / "cat" / "no ending")
    dataset = open_dataset(data, PETS)
    assert [os.path.basename(e.name) for e in dataset.examples] == ["no ending", "0.png"]
    (data / "loose").write_bytes((data / "cat" / "no ending").read_bytes())
    with pytest.raises(ValueError, match=r"1 pictures lie in no class folder.*\(loose\)"):
        open_dataset(data, PETS)


def test_folders_of_wordnet_id_and_name_are_those_it_was_trained_on(folders):
    names = ["n02123045 tabby", "n02124075 Egyptian cat"]
    dataset = open_dataset(folders(dict.fromkeys(names, 1)), labels_of(names, 2))
    assert [classes for _, classes in found(dataset)] == [(0,), (1,)]


def test_names_compare_in_nfc_and_by_their_bytes(folders, tmp_path):
    composed, apart = "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}"
    latin = os.fsdecode(b"th\xe9")
    data = folders({apart: 1, latin: 1})
    for name in (composed, apart):
        labels = labels_of([name, r"th\udce9"], 2)
        assert [classes for _, classes in found(open_dataset(data, labels))] == [(0,), (1,)]
    table = tmp_path / "map.csv"
    table.write_bytes(composed.encode() + b",1\nth\xe9,0\n")
    by_map = open_dataset(data, labels_of(["x", "y"], 2), class_map=table)
    assert [classes for _, classes in found(by_map)] == [(0,), (1,)]
    with pytest.raises(ValueError, match="two folders for the class café"):
        open_dataset(folders({composed: 1}), PETS)  # beside the other


@pytest.mark.parametrize(
    ("names", "labels", "says"),
    [
        (["cat", "wolf"], PETS, "wolf of the folders of x matches no class"),
        (["cat", "1"], PETS, r"named in several ways: cat by class name, 1 by class index"),
        ([WNIDS[0], "5"], IMAGENET, "named in several ways"),
        (["0", "3"], PETS, "3 classes, 0 to 2"),
        ([str(i) for i in range(1000)], PETS, "10, 100, 101 and 994 more of the folders"),
        (WNIDS, PETS, "no WordNet ids"),
        (["1", "01"], PETS, "several mean the same class: 01, 1"),
        (["crane"], IMAGENET, "several classes are called so; use WordNet ids"),
        (["1", "0"], (Label("2"), Label("1"), Label("3")), "1 could be labels .* or, as 0 must"),
        (["5"], labels_of("imagenet22k", 21_841), "ImageNet-1k's indices would mean others"),
        (["-1"], PETS, "matches no class"),
        (["²"], PETS, "matches no class"),
    ],
)
def test_names_that_do_not_fit(names, labels, says):
    with pytest.raises(ValueError, match=says):
        match_classes(names, labels, "folders of x")


def test_names_that_are_indices_too():
    digits = tuple(Label(str(i)) for i in range(10))
    assert match_classes(["7", "3"], digits, "x")[0] == {"7": 7, "3": 3}


def test_names_that_are_the_labels_of_the_weights_mean_these(folders):
    """`van train` orders folders as text: 0, 1, 10, 11, 2, ..., which is no order of indices."""
    names = [str(i) for i in range(12)]
    labels = tuple(map(Label, sorted(names)))
    data = folders(dict.fromkeys(names, 1))
    dataset = open_dataset(data, labels)
    assert "by class name" in dataset.notes[0]
    assert found(dataset) == [(label.name, (i,)) for i, label in enumerate(labels)]
    some_of_them = ["11", "2", "0"]
    assert match_classes(some_of_them, labels, "x")[0] == {"11": 3, "2": 4, "0": 0}


def test_names_are_compared_in_one_form_of_unicode(folders):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for folder, label in ((composed, decomposed), (decomposed, composed)):
        both = (Label(label), Label("tea"))
        assert match_classes(["tea", folder], both, "x")[0] == {folder: 0, "tea": 1}
    with pytest.raises(ValueError, match="several mean the same class"):
        match_classes([composed, decomposed], (Label(composed), Label("tea")), "x")
    # As a label keeps what a terminal would obey.
    assert match_classes(["a\x1b"], labels_of(["a\x1b", "b"], 2), "x")[0] == {"a\x1b": 0}


def test_a_binary_model_that_names_its_positive_class_only():
    both = (Label("not cat"), Label("cat"))
    assert match_classes(["cat", "dog"], both, "x")[0] == {"cat": 1, "dog": 0}
    assert match_classes(["0", "1"], both, "x")[0] == {"0": 0, "1": 1}
    with pytest.raises(ValueError, match="dog of the x matches no class"):
        match_classes(["not cat", "dog"], both, "x")


def test_pictures_without_a_class_folder(folders):
    data = folders({"dog": 1})
    picture(data / "stray.png")
    with pytest.raises(ValueError, match="lie in no class folder"):
        open_dataset(data, PETS)


def test_empty_and_missing(folders, tmp_path):
    with pytest.raises(ValueError, match="no pictures in"):
        open_dataset(folders({"dog": 0}), PETS)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="has no folders: it must hold one for each class"):
        open_dataset(tmp_path / "nothing", PETS)
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        open_dataset(tmp_path / "nowhere", PETS)


# --- The class map ---


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("map.json", '{"a": 2, "b": 0, "not there": 1}'),
        ("map.csv", "a,2\nb,0\n"),
        ("map.csv", "folder,class\r\na, 2\r\n\r\nb,0\r\n"),
    ],
)
def test_class_map(folders, tmp_path, file, text):
    (tmp_path / file).write_text(text)
    dataset = open_dataset(folders({"a": 1, "b": 1}), PETS, class_map=tmp_path / file)
    assert found(dataset) == [("b", (0,)), ("a", (2,))]


def test_class_map_may_join_classes_and_wins_over_names(folders, tmp_path):
    (tmp_path / "map.json").write_text('{"dog": 0, "cat": 0}')
    dataset = open_dataset(folders({"dog": 1, "cat": 1}), PETS, class_map=tmp_path / "map.json")
    assert [classes for _, classes in found(dataset)] == [(0,), (0,)]


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("map.json", '{"a": 3}', "class index, 0 to 2. Received: 3"),
        ("map.json", '{"a": true}', "Received: True"),
        ("map.json", '{"a": {"b": 1}}', "class index, 0 to 2"),
        ("map.json", '{"a": 1, "a": 2}', "names twice: a"),
        ("map.json", '["a"]', "it must hold"),
        ("map.json", "{", "not JSON"),
        ("map.json", '{"b": 1}', "does not name a"),
        ("map.csv", "a,1\na,x\n", "Received: 'x'"),
        ("map.csv", "a,1,2\n", "each line must be"),
        ("map.txt", "", "must end in .json or .csv"),
    ],
)
def test_class_map_mistakes(folders, tmp_path, file, text, says):
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=says):
        open_dataset(folders({"a": 1}), PETS, class_map=tmp_path / file)


# --- ImageNet-A and -R, ReaL ---


@pytest.mark.parametrize(
    ("subset", "has", "has_not"),
    # The robin is in -A only, the goldfish in -R only.
    [("imagenet-a", 15, 1), ("imagenet-r", 1, 15)],
)
def test_subsets(folders, subset, has, has_not):
    indices = subset_indices(subset)
    assert len(set(indices)) == 200
    assert has in indices
    assert has_not not in indices
    data = folders({WNIDS[has]: 1})
    assert open_dataset(data, IMAGENET, subset=subset).restricted == indices
    assert open_dataset(data, IMAGENET).restricted is None
    picture(data / WNIDS[has_not] / "0.png")
    with pytest.raises(ValueError, match="not of the 200 classes"):
        open_dataset(data, IMAGENET, subset=subset)


def test_a_subset_is_suggested_where_the_folders_are_its_classes(folders):
    data = folders({WNIDS[i]: 1 for i in subset_indices("imagenet-r")})
    dataset = open_dataset(data, IMAGENET)
    assert any("--subset imagenet-r." in note for note in dataset.notes)
    assert not any("imagenet-a" in note for note in dataset.notes)


def test_subset_mistakes(folders):
    data = folders({"dog": 1})
    with pytest.raises(ValueError, match=r"imagenet-a or imagenet-r. Received: subset='x'"):
        open_dataset(data, IMAGENET, subset="x")
    with pytest.raises(ValueError, match="needs weights with ImageNet's classes; these have 3"):
        open_dataset(data, PETS, subset="imagenet-a")


def test_real_labels_go_by_the_number_in_the_name(tmp_path):
    for number in (3, 1, 2):
        # In class folders or not, it does not matter.
        folder = tmp_path / "val" / ("" if number == 1 else f"folder {number}")
        picture(folder / f"ILSVRC2012_val_{number:08d}.JPEG")
    (tmp_path / "real.json").write_text("[[5, 7], [], [999], [1]]")
    dataset = open_dataset(tmp_path / "val", IMAGENET, real_labels=tmp_path / "real.json")
    assert [e.classes for e in dataset.examples] == [(5, 7), (), (999,)]
    assert not dataset.original_labels
    picture(tmp_path / "val" / "ILSVRC2012_val_00000005.JPEG")
    with pytest.raises(ValueError, match=r"named ILSVRC2012_val_00000001 to .*00000004"):
        open_dataset(tmp_path / "val", IMAGENET, real_labels=tmp_path / "real.json")


@pytest.mark.parametrize(
    ("text", "says"), [("{}", "must hold a list"), ("[[1000]]", "0 to 999"), ("x", "not JSON")]
)
def test_real_label_mistakes(folders, tmp_path, text, says):
    (tmp_path / "real.json").write_text(text)
    with pytest.raises(ValueError, match=says):
        open_dataset(folders({"a": 1}), IMAGENET, real_labels=tmp_path / "real.json")


def test_validation_pictures_are_known_by_their_names():
    assert is_validation_picture("a/n01440764/ILSVRC2012_val_00000293.JPEG")
    assert not is_validation_picture("ILSVRC2012_val_00000293/0.JPEG")
    assert not is_validation_picture("n01440764/sketch_0.JPEG")


def test_options_that_do_not_apply(tmp_path):
    for options, says in (
        ({"split": "test"}, "`split` applies to tfds:NAME only"),
        ({"data": "digits", "class_map": "x.json"}, "`class_map` applies to"),
        ({"real_labels": "x.json", "subset": "imagenet-a"}, "leave one out"),
    ):
        with pytest.raises(ValueError, match=says):
            open_dataset(**{"data": tmp_path, "labels": IMAGENET, **options})


@pytest.mark.parametrize("data", ["digits", "tfds:x"])
def test_a_path_of_a_known_name_is_a_path(folders, monkeypatch, data):
    made = folders({"cat": 2, "dog": 1})
    made.rename(made.with_name(data))
    monkeypatch.chdir(made.parent)
    assert open_dataset(Path(data), PETS).count == 3


# --- Digits, TensorFlow Datasets ---


def test_digits_are_the_test_images():
    dataset = open_dataset("digits", labels_of("digits", 10))
    examples = list(dataset.examples)
    test = load_digits()[1]
    assert dataset.count == len(examples) == 360
    assert [e.classes[0] for e in examples] == test.labels.tolist()
    back = np.stack([e.source for e in examples]).astype(float) * 16 / 255
    assert examples[0].source.dtype == np.uint8
    assert np.abs(back - test.pixels).max() < 0.04
    assert max(e.source.max() for e in examples) == 255
    with pytest.raises(ValueError, match="whose classes are the digits 0 to 9; these have 3"):
        open_dataset("digits", PETS)


class Split:
    def __init__(self, count):
        self.num_examples = count


class Splits(dict):
    def __missing__(self, part):  # "test[:1]"
        return Split(1)


@pytest.fixture
def tfds(monkeypatch):
    """A stand-in for tensorflow_datasets; what the builder holds can be changed."""
    held = types.SimpleNamespace(
        records=[],
        names=WNIDS,
        key="label",
        splits=Splits(test=Split(2), validation=Split(2)),
        asked={},
    )

    class Builder:
        def __init__(self, name):
            held.asked["name"] = name
            label = types.SimpleNamespace(names=held.names)
            if held.key == "real_label":
                label = types.SimpleNamespace(feature=label)
            features = {"image": None, held.key: label, "file_name": None}
            self.info = types.SimpleNamespace(splits=held.splits, features=features)

        def download_and_prepare(self):
            held.asked["prepared"] = True

        def as_dataset(self, **options):
            held.asked |= options
            return held.records

    module = types.ModuleType("tensorflow_datasets")
    module.builder = Builder
    module.as_numpy = iter
    module.decode = types.SimpleNamespace(SkipDecoding=lambda: "as stored")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    return held


def test_tfds(tfds):
    tfds.records = [
        {"image": b"png", "label": np.int64(3), "file_name": b"a/3_x.jpg"},
        {"image": b"jpg", "label": np.int64(0)},
    ]
    dataset = open_dataset("tfds:imagenet_v2/topimages", IMAGENET)
    first, second = dataset.examples
    assert (first.source, first.name, first.classes) == (b"png", "a/3_x.jpg", (3,))
    assert (second.name, second.classes) == ("imagenet_v2/topimages test 1", (0,))
    assert dataset.name == "tfds:imagenet_v2/topimages, split test"
    assert tfds.asked["name"] == "imagenet_v2/topimages"
    assert tfds.asked["prepared"]
    # Pillow must decode, in the order that is stored.
    assert tfds.asked["decoders"] == {"image": "as stored"}
    assert not tfds.asked["shuffle_files"]


def test_tfds_labels_are_matched_by_what_they_mean(tfds):
    tfds.names = ["dog", "cat"]
    tfds.records = [{"image": b"", "label": 0}, {"image": b"", "label": 1}]
    dataset = open_dataset("tfds:pets", PETS)
    assert [e.classes for e in dataset.examples] == [(2,), (0,)]
    tfds.names = ["dog", "cow"]
    with pytest.raises(ValueError, match="cow of the classes of tfds:pets"):
        open_dataset("tfds:pets", PETS)


def test_tfds_splits(tfds):
    assert "split validation" in open_dataset("tfds:imagenet2012", IMAGENET).name
    part = open_dataset("tfds:imagenet_v2", IMAGENET, split="test[:1]")
    assert part.count == 1
    assert tfds.asked["split"] == "test[:1]"
    with pytest.raises(ValueError, match="test, validation, or a part such as"):
        open_dataset("tfds:imagenet_v2", IMAGENET, split="trial")
    tfds.records = [{"image": b"", "label": np.int64(-1)}]
    with pytest.raises(ValueError, match="`split` test has no labels"):
        list(open_dataset("tfds:imagenet2012", IMAGENET, split="test").examples)


def test_tfds_real(tfds, tmp_path):
    tfds.key = "real_label"
    tfds.records = [
        {"image": b"", "real_label": np.array([4, 2])},
        {"image": b"", "real_label": []},
    ]
    dataset = open_dataset("tfds:imagenet2012_real", IMAGENET)
    assert [e.classes for e in dataset.examples] == [(4, 2), ()]
    assert not dataset.original_labels
    tfds.key = "label"
    tfds.records = [{"image": b"", "label": 9, "file_name": b"ILSVRC2012_val_00000002.JPEG"}]
    (tmp_path / "real.json").write_text(json.dumps([[1], [7, 8]]))
    dataset = open_dataset("tfds:imagenet2012", IMAGENET, real_labels=tmp_path / "real.json")
    assert [e.classes for e in dataset.examples] == [(7, 8)]


def test_tfds_that_is_missing_or_of_another_kind(tfds, monkeypatch):
    tfds.key = "objects"
    with pytest.raises(ValueError, match=r"must have image and label. It has: image, objects"):
        open_dataset("tfds:coco", IMAGENET)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install tensorflow-datasets"):
        open_dataset("tfds:imagenet_v2", IMAGENET)
