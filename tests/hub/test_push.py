"""`van push` by the hub's own client to a stand-in of the hub, and `van pull` of what is there."""

import json
import re

import numpy as np
import pytest

from tests.parity import GOLDEN
from van_classification_tensorflow.cli import main
from van_classification_tensorflow.hub import push as module
from van_classification_tensorflow.hub.folder import write_model
from van_classification_tensorflow.weights.checkpoint import read_weights
from van_classification_tensorflow.weights.file_names import KERAS_HUB_FILES
from van_classification_tensorflow.weights.hub import place_of
from van_classification_tensorflow.weights.hub_name import HubName

pytest.importorskip("huggingface_hub", reason="extra hub")
pytest.importorskip("yaml", reason="extra hub")

WEIGHTS = GOLDEN / "micro.safetensors"
MICRO = WEIGHTS.read_bytes()
STALE = {"task.json": b"{}", "pytorch_model.bin": b"old", "notes.txt": b"mine", "evil.py": b"x"}


@pytest.fixture(autouse=True)
def _client(monkeypatch, hub, tmp_path):
    """The hub's client as if it had been imported with this environment.

    Large files as LFS: Xet, the other way, is a protocol of its own that no stand-in speaks.
    """
    from huggingface_hub import constants, file_download

    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    # Before release 1 (transformers 4 needs one of these) it was a name of this module as well.
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)


@pytest.fixture
def light(monkeypatch):
    """What Keras writes takes seconds: here only the tensors."""

    def write(folder, opened):
        from van_classification_tensorflow.export.convert import describe, write_safetensors

        write_safetensors(folder / "model.safetensors", opened.weights.tensors, describe(opened))
        return ["a note"]

    monkeypatch.setattr(module, "write_model", write)


def van(*arguments):
    """Exit code of a command in this process."""
    try:
        main(list(map(str, arguments)))
    except SystemExit as stop:
        return stop.code
    return 0


def meanwhile(monkeypatch, hub, name, files, branch="main"):
    """Somebody else puts something on the hub while the files are written here."""
    write = module.write_model

    def made(folder, opened):
        hub.put(name, files, branch)
        return write(folder, opened)

    monkeypatch.setattr(module, "write_model", made)


def refusal(capsys, *arguments):
    assert van(*arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("van: error: ")
    assert "hf_secret" not in error
    assert len(error) < 700
    return error


def test_a_new_folder_is_made_and_read_again(hub, light, capsys):
    assert van("push", "hf://me/new", "--weights", WEIGHTS, "--licence", "mit", "--private") == 0
    out = capsys.readouterr()
    commit = hub.repositories["me/new"].branches["main"]
    assert out.out.splitlines() == [
        "note     a note",
        f"pushed   {hub.address}/me/new/commit/{commit}",
    ]
    assert hub.repositories["me/new"].private
    files = hub.files("me/new")
    assert set(files) == {"model.safetensors", "README.md", ".gitattributes"}
    assert b"license: mit" in files["README.md"]
    assert van("pull", "hf://me/new") == 0
    folder = place_of(HubName.of("hf://me/new")) / commit
    assert capsys.readouterr().out.strip() == str(folder)
    read = read_weights(folder).tensors
    for name, array in read_weights(WEIGHTS).tensors.items():
        np.testing.assert_array_equal(read[name], array)
    hub.asked.clear()
    assert van("push", "hf://me/new", "--weights", WEIGHTS, "--licence", "mit") == 0
    assert hub.repositories["me/new"].branches["main"] == commit  # nothing has changed
    assert {given for _, _, given in hub.asked} == {"Bearer hf_secret"}
    assert {given for _, _, given in hub.cdn.asked} == {None}


def test_what_others_wrote_stays_and_what_is_stale_goes(hub, light):
    card = b"---\nlicense: cc-by-4.0\n---\nMy card\n"
    hub.put("me/old", {**STALE, "README.md": card, "model.safetensors": b"old"})
    assert van("push", "hf://me/old", "--weights", WEIGHTS, "--message", "new weights") == 0
    files = hub.files("me/old")
    assert set(files) == {"model.safetensors", "README.md", "notes.txt", "evil.py"}
    text = files["README.md"].decode()
    assert "license: cc-by-4.0" in text
    assert "\nMy card\n" in text
    assert "## Use" in text


def test_what_is_asked_of_a_new_folder(hub, light, monkeypatch):
    assert van("push", "hf://me/new", "--weights", WEIGHTS) == 0
    assert van("push", "hf://me/mine", "--weights", WEIGHTS, "--private") == 0
    usual, private = hub.created
    assert not {"private", "visibility"} & usual.keys()  # the organisation's own default
    assert private.get("private") is True or private.get("visibility") == "private"


@pytest.mark.parametrize("private", [False, True])
def test_a_new_branch_begins_with_what_is_there(hub, light, private):
    stale = {"preprocessor_config.json": b"{}", "task.json": b"{}", "pytorch_model.bin": b"old"}
    card = b"---\nlicense: cc-by-4.0\n---\nMy card\n"
    before = hub.put("me/old", {**stale, "README.md": card, "notes.txt": b"mine"})
    hub.repositories["me/old"].private = private
    assert van("push", "hf://me/old@trial", "--weights", WEIGHTS) == 0
    files = hub.files("me/old", "trial")
    assert set(files) == {"model.safetensors", "README.md", "notes.txt"}
    text = files["README.md"].decode()
    assert "license: cc-by-4.0" in text
    assert "\nMy card\n" in text
    assert 'load_model("old")' in text  # not that of "main"
    assert hub.repositories["me/old"].branches["main"] == before


def test_a_new_branch_of_what_changes_meanwhile(hub, light, capsys, monkeypatch):
    hub.put("me/x", {"README.md": b"a"})
    meanwhile(monkeypatch, hub, "me/x", {"README.md": b"b"}, branch="trial")
    text = refusal(capsys, "push", "hf://me/x@trial", "--weights", WEIGHTS)
    assert "(412): somebody else has changed it meanwhile: push again" in text
    assert hub.files("me/x", "trial") == {"README.md": b"b"}


def test_a_folder_that_comes_into_being_meanwhile(hub, light, capsys, monkeypatch):
    meanwhile(monkeypatch, hub, "me/x", {"README.md": b"b"})
    text = refusal(capsys, "push", "hf://me/x", "--weights", WEIGHTS)
    assert "(409): it is there by now" in text
    assert hub.files("me/x") == {"README.md": b"b"}


@pytest.mark.parametrize(
    ("card", "says"),
    [
        ("é".encode("latin-1"), "hf://me/x: its README.md is no UTF-8: mend it first"),
        (b"---\n{\n---\n", "hf://me/x: the front matter of its README.md is no YAML"),
        (b"x" * (9 << 20), "hf://me/x: its README.md has 9,437,184 bytes; allowed"),
        (b"x" * (2 << 20), "hf://me/x: its README.md has more than 1,048,576 characters"),
    ],
)
def test_a_card_that_cannot_be_kept_is_said_before_the_work(card, says, hub, capsys, monkeypatch):
    monkeypatch.setattr(module, "write_model", None)
    hub.put("me/x", {"README.md": card})
    assert says in refusal(capsys, "push", "hf://me/x", "--weights", WEIGHTS)
    assert hub.files("me/x") == {"README.md": card}


def test_a_licence_that_is_asked_for_wins(hub, light, capsys):
    hub.put("me/x", {"README.md": b"---\nlicense: cc-by-4.0\n---\n"})
    for options, expected in (((), "cc-by-4.0"), (("--licence", "mit"), "mit"), ((), "mit")):
        assert van("push", "hf://me/x", "--weights", WEIGHTS, *options) == 0
        text = hub.files("me/x")["README.md"].decode()
        assert f"license: {expected}\n" in text
        assert f"The weights: {expected}." in text
        assert "--licence" not in capsys.readouterr().out
    assert van("push", "hf://me/y", "--weights", WEIGHTS) == 0
    assert "note     the model card states no licence: --licence" in capsys.readouterr().out


def test_a_branch_of_its_own(hub, light):
    assert van("push", "hf://me/new@trial", "--weights", WEIGHTS) == 0
    assert set(hub.files("me/new", "trial")) >= {"model.safetensors", "README.md"}
    assert set(hub.files("me/new")) == {".gitattributes"}


def test_measured_accuracy_is_in_the_card(hub, light, tmp_path):
    from tests.hub.test_measured import RECORD

    path = tmp_path / "results.json"
    path.write_text(json.dumps(RECORD))
    assert van("push", "hf://me/x", "--weights", WEIGHTS, "--metrics", path) == 0
    text = hub.files("me/x")["README.md"].decode()
    assert "value: 0.91" in text
    assert "van evaluate --data 'my flowers' --weights hf://me/x --test-size 64" in text
    assert "alice" not in text


def test_accuracy_of_other_weights_is_refused(hub, light, capsys, tmp_path):
    from safetensors.numpy import load_file, save_file

    from tests.hub.test_measured import RECORD

    path, headless = tmp_path / "results.json", tmp_path / "headless.safetensors"
    tensors = load_file(WEIGHTS)
    save_file({name: one for name, one in tensors.items() if "head" not in name}, headless)
    for weights, classes, says in (
        (WEIGHTS, 11, "which have 10 classes. Received: --metrics"),
        (headless, 10, "which have no head. Received: --metrics"),
    ):
        path.write_text(json.dumps({**RECORD, "classes": classes}))
        arguments = ("push", "hf://me/x", "--weights", weights, "--metrics", path)
        assert says in refusal(capsys, *arguments)
    assert not hub.asked


# --- What goes wrong, one line each ---


def test_who_may_not_push(hub, light, capsys, monkeypatch):
    assert "may not write to you/x: set HF_TOKEN" in refusal(
        capsys, "push", "hf://you/x", "--weights", WEIGHTS
    )
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert "the token was not accepted: set HF_TOKEN" in refusal(
        capsys, "push", "hf://me/x", "--weights", WEIGHTS
    )
    assert not hub.repositories
    monkeypatch.delenv("HF_TOKEN")
    before = len(hub.asked)
    assert "there is no token for" in refusal(capsys, "push", "hf://me/x", "--weights", WEIGHTS)
    monkeypatch.setenv("VAN_OFFLINE", "1")
    assert "is set: unset it" in refusal(capsys, "push", "hf://me/x", "--weights", WEIGHTS)
    assert len(hub.asked) == before


def test_somebody_else_was_quicker(hub, light, capsys, monkeypatch):
    hub.put("me/x", {"README.md": b"a"})
    meanwhile(monkeypatch, hub, "me/x", {"README.md": b"b"})
    text = refusal(capsys, "push", "hf://me/x", "--weights", WEIGHTS)
    assert "(412): somebody else has changed it meanwhile: push again" in text
    assert hub.files("me/x") == {"README.md": b"b"}


@pytest.mark.parametrize("place", ["preupload", "batch", "/commit/"])
def test_a_hub_that_fails_leaves_what_is_there(place, hub, light, capsys):
    hub.put("me/x", {"README.md": b"a"})
    hub.faults[place] = lambda h: h.error(418)
    assert "was not pushed (418)" in refusal(capsys, "push", "hf://me/x", "--weights", WEIGHTS)
    assert hub.files("me/x") == {"README.md": b"a"}


def test_the_token_is_never_said(hub, light, capsys, monkeypatch):
    hub.put("me/x", {"README.md": b"a"})
    hub.faults["/commit/"] = lambda h: h.error(418, X_Error_Message=f"not {hub.token}")
    assert van("push", "hf://me/x", "--weights", WEIGHTS) == 1
    said = capsys.readouterr()
    assert "not ***" in said.err
    assert hub.token not in said.out + said.err


def test_nor_is_a_part_of_it(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "0123456789" * 3)
    name = HubName.of("hf://me/x")
    for length in range(270, 301):
        with pytest.raises(OSError, match="was not pushed") as error, module._said(name):
            raise RuntimeError("x" * length + "0123456789" * 3)
        assert "0" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("me/x", "ADDRESS must be hf://USER/NAME"),
        ("hf://me", "ADDRESS must be hf://USER/NAME"),
        (f"hf://me/x@{'a' * 40}", "ADDRESS must be without a commit"),
        ("hf://me/x --licence Apache", "--licence must be as the hub writes it"),
        ("hf://me/x --datasets ../x", "--datasets must be names of the hub"),
        ("hf://me/x --metrics no.json", "no.json: No such file"),
        ("hf://me/x --output {0}/no/x", "make it first"),
        ("hf://me/x --output {0}/full", "holds what no push wrote"),
    ],
)
def test_bad_input_is_said_before_anything_is_asked(arguments, says, hub, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary").write_text("precious")
    words = arguments.format(tmp_path).split()
    assert says in refusal(capsys, "push", *words, "--weights", WEIGHTS)
    assert not hub.asked


def test_weights_that_are_none(hub, capsys, tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"")
    for weights, says in (
        (tmp_path / "x.onnx", "is an exported file"),
        ("van_b9", "no such weights"),
        (tmp_path / "no.pth", "No such file"),
    ):
        assert says in refusal(capsys, "push", "hf://me/x", "--weights", weights)
    assert not hub.asked


# --- Pull ---


def test_pull_to_a_folder_leaves_what_nothing_reads(hub, capsys, tmp_path):
    hub.put("me/x", {"model.safetensors": MICRO, "README.md": b"a", "evil.py": b"x"})
    target = tmp_path / "x"
    assert van("pull", "hf://me/x", "--output", target) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(target)
    assert "left there, as nothing here reads it: evil.py" in said.err
    assert sorted(path.name for path in target.iterdir()) == ["README.md", "model.safetensors"]
    assert "already there; to replace it: --overwrite" in refusal(
        capsys, "pull", "hf://me/x", "--output", target
    )
    assert van("pull", "hf://me/x", "--output", target, "--overwrite") == 0


def test_weights_in_several_files_are_pulled_twice(hub, tmp_path):
    from safetensors.numpy import load_file, save

    tensors = load_file(WEIGHTS)
    names = sorted(tensors)
    shards = {
        f"model-0000{i + 1}-of-00002.safetensors": {name: tensors[name] for name in names[i::2]}
        for i in range(2)
    }
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    files = {file: save(held) for file, held in shards.items()}
    hub.put("me/x", {**files, "model.safetensors.index.json": json.dumps(index).encode()})
    target = tmp_path / "x"
    assert van("pull", "hf://me/x", "--output", target) == 0
    assert van("pull", "hf://me/x", "--output", target, "--overwrite") == 0
    assert read_weights(target).tensors.keys() == read_weights(WEIGHTS).tensors.keys()


_OURS = "van_classification_tensorflow"
CONVERTER = {
    "module": f"{_OURS}.keras_hub.image_converter",
    "class_name": "VANImageConverter",
    "config": {"dtype": {"module": "keras", "class_name": "DTypePolicy", "config": {}}},
    "registered_name": f"{_OURS}>VANImageConverter",
}
LAMBDA = {"class_name": "Lambda", "config": {"function": "x"}, "module": "keras.layers"}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", LAMBDA),  # Keras makes the model before it looks for weights
        ("config.json", {**LAMBDA, "pretrained_cfg": {}}),
        ("config.json", {}),
        ("task.json", LAMBDA),
        ("task.json", []),
        ("preprocessor.json", {**CONVERTER, "config": {"image_converter": [LAMBDA]}}),
        ("preprocessor.json", {**CONVERTER, "config": {"x": {**CONVERTER, "class_name": "y"}}}),
        ("image_converter.json", {**CONVERTER, "registered_name": f"{_OURS}>Evil"}),
        ("image_converter.json", {**CONVERTER, "registered_name": ["x"]}),
        ("image_converter.json", {**CONVERTER, "registered_name": None}),
    ],
)
def test_pull_refuses_what_keras_or_keras_hub_would_make(file, content, hub, capsys, tmp_path):
    files = {"model.safetensors": MICRO, "image_converter.json": json.dumps(CONVERTER).encode()}
    hub.put("me/x", files)
    assert van("pull", "hf://me/x") == 0
    capsys.readouterr()
    hub.put("me/x", {**files, file: json.dumps(content).encode()})
    assert "was refused" in refusal(capsys, "pull", "hf://me/x")


def test_pull_refuses_what_is_no_van_or_would_run(hub, capsys, tmp_path):
    target = tmp_path / "x"
    hub.put("me/x", {"pytorch_model.bin": b"\x80\x02c__builtin__\nexec\n."})
    assert "was refused" in refusal(capsys, "pull", "hf://me/x", "--output", target)
    hub.put(
        "me/x",
        {
            "model.safetensors": MICRO,
            "model.weights.h5": (GOLDEN / "micro_seed.h5").read_bytes(),
            "config.json": json.dumps(LAMBDA).encode(),
        },
    )
    assert "was refused" in refusal(capsys, "pull", "hf://me/x", "--output", target)
    assert "hf://me/nothing is not there (404)" in refusal(capsys, "pull", "hf://me/nothing")
    assert not target.exists()


# --- One folder for three libraries ---


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """The folder of `van push --output`, with every file that it can have."""
    from van_classification_tensorflow.weights.pretrained import open_pretrained

    folder = tmp_path_factory.mktemp("pushed")
    write_model(folder, open_pretrained(str(GOLDEN / "micro.safetensors")))
    return folder


GOLDEN_VALUES = np.load(GOLDEN / "micro.npz")
PICTURES = GOLDEN_VALUES["x"]


def logits(model):
    import keras

    return keras.Model(model.input, model.get_layer("head").output)(PICTURES, training=False)


@pytest.mark.slow
def test_three_libraries_open_one_folder_alike(pushed):
    keras_hub = pytest.importorskip("keras_hub", reason="extra keras-hub")
    import keras

    from van_classification_tensorflow import VAN

    files = {path.name for path in pushed.iterdir()}
    assert files == {
        *("config.json", "metadata.json", "model.weights.h5", "model.safetensors"),
        *KERAS_HUB_FILES,
    }
    ours = VAN(pretrained=str(pushed))
    by_keras = keras.saving.load_model(pushed)
    by_keras_hub = keras_hub.models.ImageClassifier.from_preset(str(pushed))
    scores = by_keras_hub(PICTURES, training=False)
    assert type(by_keras) is VAN
    np.testing.assert_allclose(logits(ours), GOLDEN_VALUES["eval_logits"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(logits(by_keras), logits(ours))
    np.testing.assert_array_equal(by_keras(PICTURES, training=False), ours(PICTURES))
    np.testing.assert_array_equal(scores, ours(PICTURES, training=False))
    as_logits = keras_hub.models.ImageClassifier.from_preset(str(pushed), activation=None)
    np.testing.assert_array_equal(as_logits(PICTURES, training=False), logits(ours))


@pytest.mark.slow
def test_by_their_address_as_well(pushed, hub):
    keras_hub = pytest.importorskip("keras_hub", reason="extra keras-hub")
    import keras

    from van_classification_tensorflow import VAN

    hub.put("me/micro", {path.name: path.read_bytes() for path in pushed.iterdir()})
    ours = VAN("hf://me/micro")
    by_keras = keras.saving.load_model("hf://me/micro")
    by_keras_hub = keras_hub.models.ImageClassifier.from_preset("hf://me/micro")
    np.testing.assert_array_equal(logits(by_keras), logits(ours))
    np.testing.assert_array_equal(by_keras_hub(PICTURES, training=False), ours(PICTURES))
    assert van("pull", "hf://me/micro") == 0  # what KerasHub writes is what is allowed


@pytest.mark.slow
def test_labels_and_preprocessing_are_in_all_of_them(tmp_path):
    keras_hub = pytest.importorskip("keras_hub", reason="extra keras-hub")
    import keras

    from van_classification_tensorflow.weights.pretrained import open_pretrained

    opened = open_pretrained("digits")
    write_model(tmp_path, opened)
    model = keras.saving.load_model(tmp_path)
    assert model.preprocessing == opened.card.preprocessing
    assert len(model.labels) == 10
    again = open_pretrained(str(tmp_path))
    assert again.card.preprocessing == opened.card.preprocessing
    assert [*again.card.labels] == [*model.labels] or again.card.labels == "digits"
    converter = keras_hub.models.ImageClassifier.from_preset(
        str(tmp_path)
    ).preprocessor.image_converter
    assert converter.preprocessing == opened.card.preprocessing


@pytest.mark.slow
def test_the_same_weights_are_the_same_files(pushed, tmp_path):
    from van_classification_tensorflow.weights.pretrained import open_pretrained

    write_model(tmp_path, open_pretrained(str(WEIGHTS)))
    # KerasHub's files hold names that Keras counts up within a process.
    for name in ("config.json", "metadata.json", "model.weights.h5", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (pushed / name).read_bytes(), name


@pytest.mark.slow
def test_keras_files_alone_are_read_as_well(pushed, hub):
    """As `keras.saving.save_model(van, "hf://...")` would leave them, and refused where hostile."""
    from van_classification_tensorflow import VAN, Classifier, load_checkpoint

    files = {name: (pushed / name).read_bytes() for name in ("config.json", "model.weights.h5")}
    hub.put("me/keras", files)
    ours, model = VAN(pretrained=str(pushed)), VAN("hf://me/keras")
    np.testing.assert_array_equal(logits(model), logits(ours))
    hub.put("me/micro", {path.name: path.read_bytes() for path in pushed.iterdir()})
    for name in ("hf://me/keras", "hf://me/micro"):
        load_checkpoint(model, name)
        np.testing.assert_array_equal(logits(model), logits(ours))
        classifier = Classifier(name, engine="numpy")
        assert classifier.name.startswith(f"{name}@")
        assert len(classifier.labels) == 10
    config = json.loads(files["config.json"])
    for wrong in ({**config, "registered_name": None, "module": "evil"}, {"config": {}}, []):
        hub.put("me/keras", {**files, "config.json": json.dumps(wrong).encode()})
        with pytest.raises(ValueError, match="was refused"):
            Classifier("hf://me/keras")


@pytest.mark.slow
def test_without_keras_hub_its_files_are_left_out_and_said(tmp_path, monkeypatch):
    from van_classification_tensorflow.hub import folder
    from van_classification_tensorflow.weights.pretrained import open_pretrained

    monkeypatch.setattr(folder, "is_installed", lambda _: False)
    (note,) = write_model(tmp_path, open_pretrained(str(WEIGHTS)))
    assert re.search(r"task\.json, .* were not written.*\[keras-hub\]", note)
    assert not (tmp_path / "task.json").exists()
