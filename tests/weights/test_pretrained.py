"""`pretrained=`: from the catalogue through the cache, from a path, adapted; or a clear error."""

import dataclasses
import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.parity import GOLDEN, seeded_tensor
from van_classification_tensorflow import VAN, VANB0, Classifier, Preprocessing
from van_classification_tensorflow.datasets.digits import load_digits
from van_classification_tensorflow.export.convert import convert
from van_classification_tensorflow.model.load import to_official
from van_classification_tensorflow.weights import catalogue as weights
from van_classification_tensorflow.weights.catalogue import CATALOGUE, Source
from van_classification_tensorflow.weights.checkpoint import CheckpointError
from van_classification_tensorflow.weights.formats.torch import write_torch
from van_classification_tensorflow.weights.pretrained import check_file, open_pretrained


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and no way out: what is not in it must come from a mirror on loopback."""
    monkeypatch.setenv("VAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VAN_OFFLINE", "1")
    monkeypatch.delenv("VAN_MIRROR", raising=False)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def official():
    """A stand-in for the published B0: every tensor drawn from its name."""
    shapes = {n: a.shape for n, a in to_official(VAN("van_b0")).items()}
    return {n: seeded_tensor(n, s) for n, s in shapes.items()}


@pytest.fixture
def mirror(tmp_path, monkeypatch, official):
    """A mirror on loopback with that B0, known to the catalogue by its hash; yields its log."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    path = folder / "van-tiny.pth"
    write_torch(path, official)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    record = dataclasses.replace(
        CATALOGUE["van_b0.in1k"],
        sources=(Source("https://example.invalid/van-tiny.pth", digest[:8]),),
    )
    monkeypatch.setattr(weights, "CATALOGUE", {**CATALOGUE, record.name: record})
    requests = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            requests.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("VAN_MIRROR", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("VAN_OFFLINE")
    yield requests
    server.shutdown()
    server.server_close()


def assert_same(model, official):
    for name, array in to_official(model).items():
        np.testing.assert_array_equal(array, official[name], err_msg=name)


def test_downloaded_once_then_from_the_cache(mirror, official, monkeypatch, cache):
    assert_same(VAN("van_b0", pretrained=True), official)
    assert mirror == ["/van-tiny.pth"]
    monkeypatch.setenv("VAN_OFFLINE", "1")
    model = VANB0()
    assert_same(model, official)
    assert model.output_shape == (None, 1000)
    assert len(mirror) == 1
    (cached,) = cache.rglob("*.pth")
    assert cached.name == "van-tiny.pth"


@pytest.mark.slow
def test_by_every_name_from_the_cache(mirror, official):
    for model in (
        VAN("van_b0", pretrained="in1k"),
        VAN(pretrained="van_b0.in1k"),
        VANB0(weights="imagenet", input_tensor=keras.Input((64, 64, 3))),
    ):
        assert_same(model, official)
        assert model.output_shape == (None, 1000)
    assert len(mirror) == 1


def test_a_damaged_cache_is_an_error_at_the_next_load(mirror, cache):
    VAN("van_b0", pretrained=True)
    (cached,) = cache.rglob("*.pth")
    data = bytearray(cached.read_bytes())
    data[len(data) // 2] ^= 1
    cached.write_bytes(data)
    with pytest.raises(OSError, match=r"van weights download van_b0\.in1k --force"):
        VAN("van_b0", pretrained=True)


def test_the_wrong_model_with_the_right_hash_is_refused(mirror, monkeypatch, cache, tmp_path):
    wrong = tmp_path / "mirror" / "van-tiny.pth"
    convert(GOLDEN / "micro_seed.h5", wrong, overwrite=True)
    record = weights.CATALOGUE["van_b0.in1k"]
    digest = hashlib.sha256(wrong.read_bytes()).hexdigest()
    record = dataclasses.replace(record, sources=(Source(record.sources[0].url, digest),))
    monkeypatch.setattr(weights, "CATALOGUE", {record.name: record})
    with pytest.raises((OSError, ValueError), match=r"should hold van_b0\.in1k"):
        VAN("van_b0", pretrained=True)
    assert not list(cache.rglob("*.pth"))


def test_offline_says_what_is_missing(cache):
    with pytest.raises(OSError, match=r"VAN_OFFLINE is set and van_b1\.in1k is not in the cache"):
        VAN("van_b1", pretrained=True)


def test_digits_need_no_network():
    model = VAN(pretrained="digits")
    assert (model.input_shape, model.output_shape) == ((None, None, None, 1), (None, 10))
    _, test = load_digits()
    found = model.predict(test.images, batch_size=360, verbose=0).argmax(1)
    assert (found == test.labels).mean() >= 0.985
    assert "pretrained" not in model.get_config()


@pytest.mark.slow
def test_another_head_is_fresh_and_said(mirror, official):
    with pytest.warns(UserWarning, match="7 classes of its own. Its head is freshly initialised"):
        model = VAN("van_b0", pretrained=True, num_classes=7)
    kept = {n: a for n, a in to_official(model).items() if not n.startswith("head.")}
    for name, array in kept.items():
        np.testing.assert_array_equal(array, official[name], err_msg=name)
    assert model.output_shape == (None, 7)
    with pytest.warns(UserWarning, match="freshly initialised"):
        VANB0(classes=7)


@pytest.mark.slow
def test_no_head_other_channels_any_size(mirror, official):
    model = VAN("van_b0", pretrained=True, include_top=False, img_resolution=96)
    assert_same(model, official)
    assert model.output_shape == (None, 256)
    with pytest.warns(UserWarning, match="summed from 3 to 1"):
        grey = VAN("van_b0", pretrained=True, in_chans=1, include_top=False)
    x = np.random.default_rng(0).standard_normal((1, 96, 96, 1)).astype("float32")
    np.testing.assert_allclose(
        grey.predict_on_batch(x), model.predict_on_batch(np.repeat(x, 3, -1)), atol=1e-5
    )
    with pytest.warns(UserWarning, match="repeated and rescaled from 3 to 4"):
        VANB0(input_shape=(64, 64, 4))


def test_a_path(tmp_path, official):
    for path in (GOLDEN / "micro_mmpretrain.pth", str(GOLDEN / "micro_seed.h5")):
        model = VAN(pretrained=path)
        assert (model.depths, model.num_classes) == ([1, 1, 2, 1], 10)
    write_torch(tmp_path / "b0.pth", official)
    model = VAN(pretrained=tmp_path / "b0.pth")
    assert (model.name, model.configuration) == ("van_b0", "van_b0")
    assert_same(model, official)
    assert_same(VANB0(weights=tmp_path / "b0.pth"), official)


def test_a_model_made_from_weights_saves_and_loads_without_them(tmp_path):
    model = VAN(pretrained=GOLDEN / "micro_hf")
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert_same(again, to_official(model))


def test_other_sizes_are_told_in_short_whatever_names_the_weights():
    path = GOLDEN / "micro_hf"
    for pretrained in (path, str(path), open_pretrained(path)):
        with pytest.raises(ValueError, match=r"micro_hf holds embed_dims \[8, 16") as error:
            VAN("van_b0", pretrained=pretrained)
        assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"configuration": "van_b5", "pretrained": True}, r"van_b5\.in22k"),
        ({"configuration": "van_b6", "pretrained": "in1k"}, r"van_b6\.in22k"),
        ({"configuration": "van_b0", "pretrained": "in22k"}, r"van_b0\.in1k"),
        ({"configuration": "van_b0", "pretrained": "van_b1.in1k"}, "belongs to van_b1"),
        ({"configuration": "van_b0", "pretrained": "digits"}, "belongs to"),
        ({"configuration": "van_b9", "pretrained": True}, "`configuration` must be one of van_b0"),
        ({"pretrained": ""}, "`pretrained`: no such weights"),
        ({"pretrained": True}, "needs a `configuration` with published weights: van_b0"),
        ({"pretrained": "nothing"}, "no such weights"),
        ({"pretrained": 3}, "`pretrained` must be True, False, a name"),
        (
            {"configuration": "van_b0", "pretrained": GOLDEN / "micro_hf"},
            r"micro_hf holds embed_dims \[8, 16, 24, 32\].* asked for has embed_dims \[32, 64",
        ),
        ({"pretrained": GOLDEN / "micro_hf", "depths": [1, 1, 1, 1]}, "asked for has"),
        ({"pretrained": GOLDEN / "digits.npz"}, r"digits\.npz was refused"),
        # Told before anything would be downloaded.
        ({"configuration": "van_b0", "pretrained": True, "num_classes": 0}, "`num_classes`"),
        ({"configuration": "van_b0", "pretrained": True, "in_chans": 0}, "`in_chans`"),
        ({"configuration": "van_b0", "pretrained": True, "pooling": "x"}, "`pooling`"),
        ({"configuration": "van_b0", "pretrained": True, "drop_rate": 2}, "`drop_rate`"),
        ({"configuration": "van_b0", "pretrained": True, "depths": [0]}, "`depths`"),
        ({"configuration": "van_b0", "pretrained": True, "img_resolution": 3}, "too small"),
        (
            {"configuration": "van_b0", "pretrained": True, "classifier_activation": "x"},
            "`classifier_activation`",
        ),
    ],
)
def test_wrong_arguments(arguments, says):
    with pytest.raises(ValueError, match=says):
        VAN(**arguments)


def test_sizes_are_asked_of_a_file_before_they_are_compared(tmp_path):
    """Two stages: smaller pictures than those of four."""
    VAN(embed_dims=[8, 16], mlp_ratios=[2, 2], depths=[1, 1]).save(tmp_path / "two.keras")
    for given in ({}, {"embed_dims": [8, 16]}, {"depths": iter([1, 1]), "num_stages": 2}):
        model = VAN(pretrained=tmp_path / "two.keras", img_resolution=12, **given)
        assert (model.embed_dims, model.input_shape[1:3]) == ([8, 16], (12, 12))
    for wrong, says in (({"embed_dims": [8]}, "same length"), ({"img_resolution": 4}, "too small")):
        with pytest.raises(ValueError, match=says):
            VAN(pretrained=tmp_path / "two.keras", **wrong)


def test_no_weights_for_false_and_none():
    assert open_pretrained(False) is None
    assert open_pretrained(None, "van_b0") is None
    with pytest.raises(FileNotFoundError):
        open_pretrained("./not/there.pth")


def test_what_a_file_must_hold(tmp_path, official):
    record = CATALOGUE["van_b0.in1k"]
    write_torch(tmp_path / "b0.pth", official)
    check_file(tmp_path / "b0.pth", record)
    headless = {n: a for n, a in official.items() if not n.startswith("head.")}
    write_torch(tmp_path / "headless.pth", headless)
    check_file(tmp_path / "headless.pth", CATALOGUE["van_b0.in1k_backbone"])
    for file, name in (
        ("headless.pth", "van_b0.in1k"),
        ("b0.pth", "van_b1.in1k"),
    ):
        with pytest.raises(CheckpointError, match=f"should hold {name}"):
            check_file(Path(tmp_path / file), CATALOGUE[name])


def test_a_folder_with_a_name_of_the_catalogue_is_in_no_ones_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("imagenet", "in22k", "digits", "van_b0"):
        (tmp_path / name).mkdir()
    with pytest.raises(OSError, match=r"VAN_OFFLINE is set and van_b0\.in1k"):
        VANB0()
    with pytest.raises(OSError, match=r"VAN_OFFLINE is set and van_b4\.in22k"):
        VAN("van_b4", pretrained="in22k")
    with pytest.raises(OSError, match=r"VAN_OFFLINE is set and van_b0\.in1k"):
        VAN(pretrained="van_b0")
    assert VAN(pretrained="digits").num_classes == 10
    for name in ("my_model.keras", "w.pth", "x.safetensors"):
        with pytest.raises(FileNotFoundError, match=name):
            VAN(pretrained=name)


def test_labels_and_preprocessing_follow_the_weights(tmp_path, mirror):
    model = VAN("van_b0", pretrained=True)
    assert (len(model.labels), model.labels[2]) == (1000, "n01484850 great_white_shark")
    assert model.preprocessing == Preprocessing()
    same = VANB0(input_tensor=keras.Input((64, 64, 3)))
    assert (same.labels, same.preprocessing) == (model.labels, model.preprocessing)
    with pytest.warns(UserWarning, match="7 classes of its own"):
        other = VANB0(classes=7)
    assert (other.labels, other.preprocessing) == (None, Preprocessing())
    assert VAN("van_b0", pretrained=True, include_top=False).labels is None


def test_preprocessing_follows_the_channels(tmp_path):
    with pytest.warns(UserWarning, match="from 1 to 3"):
        model = VAN(pretrained="digits", in_chans=3)
    assert model.preprocessing == Preprocessing(32, 1.0, "box")
    model.save(tmp_path / "m.keras")
    assert Classifier(tmp_path / "m.keras").preprocessing == model.preprocessing
    with pytest.warns(UserWarning, match="from 1 to 4"):
        assert VAN(pretrained="digits", in_chans=4).preprocessing is None
    assert Preprocessing(mean=(0.1, 0.2, 0.3)).with_channels(1) is None


def test_labels_of_a_wrong_number_are_refused_when_set():
    model = VAN(pretrained="digits")
    with pytest.raises(ValueError, match="name each of 10 classes"):
        model.labels = ["a", "b"]
    assert model.labels == tuple("0123456789")


def test_what_a_file_says_of_itself_is_bounded(tmp_path):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(GOLDEN / "digits.safetensors")
    for about in (
        '{"preprocessing": {"input_size": 200000}}',
        '{"labels": ["a"]}',
        '{"labels": 3}',
    ):
        save_file(tensors, tmp_path / "x.safetensors", metadata={"van": about})
        with pytest.raises(CheckpointError, match="what it says of itself"):
            VAN(pretrained=tmp_path / "x.safetensors")
