"""`van predict`: one record for each input, whole files, nothing lost or repeated by a kill."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.images.test_find import hostile_folder
from tests.tiny_artefacts import FORMATS, about, build, expected, random_weights
from van_classification_tensorflow import Classifier
from van_classification_tensorflow.datasets.digits import load_digits
from van_classification_tensorflow.inference.predict import run
from van_classification_tensorflow.inference.request import ClassifierOptions, PredictRequest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve digits and three files that are none."""
    folder = tmp_path_factory.mktemp("pictures")
    _, test = load_digits()
    for i in range(12):
        pixels = (test.pixels[i].astype(float) * 255 / 16).round().astype(np.uint8)
        (folder / f"{i % 3}").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i % 3}" / f"{i:02}.png")
    (folder / "1" / "broken.png").write_bytes(b"\x89PNG no")
    (folder / "2" / "gone.jpg").symlink_to("nowhere")
    (folder / "2" / "notes.txt").write_text("no picture by its name")
    return folder


def asked(paths, weights, **options):
    """A request; options of the classifier go to where they belong."""
    theirs = {"weights": str(weights)}
    known = ("batch_size", "test_size", "engine", "precision", "calibration")
    theirs |= {name: options.pop(name) for name in known if name in options}
    classifier = ClassifierOptions(**theirs)
    return PredictRequest(paths=tuple(map(str, paths)), classifier=classifier, **options)


def predict(paths, stdin=None, **options):
    console = Console(file=io.StringIO(), width=200)
    failed = run(asked(paths, "digits", **options), stdin, console)
    return failed, console.file.getvalue()


def expected_indices(paths):
    classifier = Classifier("digits")
    return {str(p): classifier(p)[0].index for p in paths}


def test_csv(folder, tmp_path):
    failed, said = predict([folder], output=tmp_path / "x.csv", top=3)
    assert failed == 2
    assert "digits: shorter side to 32 (box)" in said
    assert "Left out 1 file that is hidden or no picture: 1 .txt (notes.txt)." in said
    assert "2 of 14 failed" in said
    assert "broken.png" in said
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 14
    paths = [row["path"] for row in rows]
    assert paths == sorted(paths)
    good = [row for row in rows if not row["error"]]
    expected = expected_indices([row["path"] for row in good])
    for row in good:
        assert int(row["index_1"]) == expected[row["path"]]
        assert row["label_1"] == row["index_1"]
        values = [float(row[f"probability_{i}"]) for i in (1, 2, 3)]
        assert values == sorted(values, reverse=True)
    bad = {os.path.basename(row["path"]): row["error"] for row in rows if row["error"]}
    assert bad.keys() == {"broken.png", "gone.jpg"}
    assert bad["gone.jpg"].endswith("No such file or directory")
    assert [p.name for p in tmp_path.iterdir()] == ["x.csv"]


def test_jsonl(folder, tmp_path):
    predict([folder], output=tmp_path / "x.jsonl", top=2)
    records = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert len(records) == 14
    for record in records:
        assert (record["error"] is None) == (len(record["predictions"]) == 2)
        for one in record["predictions"]:
            assert one.keys() == {"label", "wnid", "index", "probability"}


def test_features_as_npy(folder, tmp_path):
    predict([folder], output=tmp_path / "x.npy", features=True)
    features = np.load(tmp_path / "x.npy")
    assert (features.shape, features.dtype) == ((14, 64), np.float32)
    with (tmp_path / "x.npy.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    classifier = Classifier("digits")
    for row, found in zip(rows, features, strict=True):
        if row["error"]:
            assert np.isnan(found).all()
        else:
            np.testing.assert_allclose(classifier.features(row["path"]), found, atol=1e-5)


def test_a_picture_on_stdin(folder, tmp_path):
    data = (folder / "1" / "01.png").read_bytes()
    for piped, wrong in ((data, None), (data[:-30], "PNG, 8 x 8, L: cut short")):
        stdin = io.TextIOWrapper(io.BytesIO(piped))
        failed, _ = predict(["-"], output=tmp_path / "x.jsonl", stdin=stdin, overwrite=True)
        (record,) = map(json.loads, (tmp_path / "x.jsonl").read_text().splitlines())
        assert (record["path"], failed) == ("-", int(wrong is not None))
        if wrong:
            assert wrong in record["error"]
        else:
            assert record["predictions"][0]["index"] == Classifier("digits")(data)[0].index


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="needs the extra 'parquet'")
def test_parquet(folder, tmp_path):
    from pyarrow import parquet

    predict([folder], output=tmp_path / "x.parquet", top=2)
    table = parquet.read_table(tmp_path / "x.parquet").to_pylist()
    assert len(table) == 14
    assert all((row["error"] is None) == (len(row["predictions"]) == 2) for row in table)
    predict([folder], output=tmp_path / "f.parquet", features=True)
    table = parquet.read_table(tmp_path / "f.parquet").to_pylist()
    assert {len(row["features"]) for row in table if row["error"] is None} == {64}


def test_a_list_on_the_standard_input(folder, tmp_path):
    paths = [folder / "0" / "00.png", folder / "0" / "00.png", folder / "1" / "01.png"]
    stdin = io.StringIO("".join(f"{path}\n" for path in paths))
    failed, _ = predict(["-"], output=tmp_path / "x.jsonl", stdin=stdin)
    assert failed == 0
    records = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [r["path"] for r in records] == [str(path) for path in paths]


def test_no_output_gives_json_lines(folder, capsys):
    predict([folder / "0"], top=1)
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(r["predictions"]) for r in records] == [1, 1, 1, 1]


def test_a_table_on_a_terminal(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "300")
    odd = folder / "0" / "[red]odd.png"
    odd.write_bytes((folder / "0" / "00.png").read_bytes())
    try:
        predict([odd, folder / "1" / "broken.png"], top=3)
    finally:
        odd.unlink()
    text = capsys.readouterr().out.replace("\n", "")
    assert "Best first" in text
    assert "[red]odd.png" in text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"output": "x.txt"}, r"`output` must end in \.csv, \.jsonl, \.parquet\."),
        ({"output": "x.npy"}, "`output` must end in"),
        ({"output": "x.csv", "features": True}, r"must end in \.parquet, \.npy for features"),
        ({"features": True}, "features need an output"),
        ({"resume": True}, "`resume` and `overwrite` are for a run with `output`"),
        ({"output": "x.csv", "resume": True, "overwrite": True}, "leave one of them out"),
        ({"output": "no/x.csv"}, "is no folder; make it first"),
        ({"output": "x.csv", "top": 0}, "`top` must be an integer >= 1"),
        ({"paths": ["."]}, "no pictures in"),
    ],
)
def test_wrong_options(tmp_path, monkeypatch, folder, options, says):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    options = {"paths": [folder], **options}
    if "output" in options:
        options["output"] = Path(options["output"])
    with pytest.raises((ValueError, OSError), match=says):
        predict(**options)
    assert list(tmp_path.iterdir()) == []


def test_an_output_is_not_overwritten(folder, tmp_path):
    (tmp_path / "x.csv").write_text("precious")
    with pytest.raises(FileExistsError, match="already there; to replace it: --overwrite"):
        predict([folder], output=tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text() == "precious"


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet", "f.parquet", "x.npy"])
def test_resuming_what_is_finished_says_what_failed_and_does_nothing(folder, tmp_path, name):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    picture = folder / "0" / "00.png"
    odd = os.fsdecode("Ärger, \udce4\n.png".encode("utf-8", "surrogateescape"))
    options = {"output": tmp_path / name, "features": name in ("x.npy", "f.parquet")}
    predict([folder, odd, picture], **options)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def resumed(paths, **more):
        # The weights are not asked for, and nothing is changed.
        console = Console(file=io.StringIO(), width=200)
        more = {**options, **more}
        failed = run(asked(paths, "none", resume=True, **more), console=console)
        return failed, console.file.getvalue()

    failed, said = resumed([picture, odd, folder])
    assert failed == 3
    assert "is finished: it has all 16 records" in said
    assert "3 of 16 failed" in said
    assert "broken.png" in said
    for paths, words in (
        ([folder, odd], "is also of 1 pictures, such as .*00.png: resume with the same inputs"),
        ([folder / "1", odd, picture], "is also of 9 pictures"),
        ([folder, odd, picture, picture], "has no records of 1 pictures, such as .*00.png"),
    ):
        with pytest.raises(ValueError, match=words):
            resumed(paths)
    if not options["features"]:
        with pytest.raises(ValueError, match="with other settings: top=5"):
            resumed([folder, odd, picture], top=3)
    if name.endswith(".parquet"):
        with pytest.raises(ValueError, match="with other settings: "):
            resumed([folder, odd, picture], features=not options["features"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet", "x.npy"])
@pytest.mark.parametrize("content", [b"precious", b"", b"\xff\0", b"[1]\n", b'{"path": 1}\n'])
def test_what_is_no_output_of_ours_is_not_finished(folder, tmp_path, name, content):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"was not written by .*--overwrite|has no records of 14"):
        predict([folder], output=tmp_path / name, resume=True, features=name == "x.npy")
    assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize("name", ["x.csv", "x.npy"])
def test_overwriting(folder, tmp_path, name):
    """The old output stays until the new one is whole; an unfinished run is forgotten."""
    features = name.endswith(".npy")
    for suffix in ("", ".csv", ".partial"):
        (tmp_path / f"{name}{suffix}").write_text("old")
    options = {"output": tmp_path / name, "overwrite": True, "features": features}
    with pytest.raises(ValueError, match="no such weights"):
        run(asked([folder], "nothing", **options))
    assert {p.read_text() for p in tmp_path.iterdir()} == {"old"}
    failed, _ = predict([folder], **options)
    assert failed == 2
    assert (tmp_path / name).read_bytes() != b"old"
    assert not (tmp_path / f"{name}.partial").exists()


def test_five_failures_are_named_and_the_others_counted(folder, tmp_path):
    paths = [folder / "0" / "00.png", *(tmp_path / f"{i}.png" for i in range(7))]
    _, said = predict(paths, output=tmp_path / "x.csv")
    assert said.count("No such file") == 5
    assert "  and 2 more" in said


def test_resuming_with_other_settings_is_refused(folder, tmp_path):
    journal = tmp_path / "x.csv.partial"
    about = {"weights": "digits", "top": 3}
    journal.write_text(json.dumps(about) + "\n")
    before = journal.read_bytes()
    with pytest.raises(
        FileExistsError, match="go on with --resume, or begin anew with --overwrite"
    ):
        predict([folder], output=tmp_path / "x.csv")
    with pytest.raises(ValueError, match=r"begun with other settings: .*top=3 \(now 5\)"):
        predict([folder], output=tmp_path / "x.csv", resume=True)
    assert journal.read_bytes() == before


def test_resuming_with_other_inputs_is_refused(folder, tmp_path, monkeypatch):
    from van_classification_tensorflow.inference import journal as module

    monkeypatch.setattr(module.Journal, "finish", lambda *_: None)  # as if killed before
    predict([folder / "0"], output=tmp_path / "x.csv")
    before = (tmp_path / "x.csv.partial").read_bytes()
    monkeypatch.undo()
    with pytest.raises(ValueError, match="records of 4 pictures that are not among the inputs"):
        predict([folder / "1"], output=tmp_path / "x.csv", resume=True)
    assert (tmp_path / "x.csv.partial").read_bytes() == before
    predict([folder / "0", folder / "1"], output=tmp_path / "x.csv", resume=True)
    assert len((tmp_path / "x.csv").read_text().splitlines()) == 1 + 4 + 5


@pytest.mark.parametrize("first", ["[1]", "3", "no JSON", ""])
def test_a_journal_that_is_none(folder, tmp_path, first):
    (tmp_path / "x.csv.partial").write_text(f"{first}\n")
    if first in ("[1]", "3"):
        with pytest.raises(ValueError, match="begun with other settings"):
            predict([folder / "0"], output=tmp_path / "x.csv", resume=True)
    else:  # nothing was written before the kill
        predict([folder / "0"], output=tmp_path / "x.csv", resume=True)
        assert len((tmp_path / "x.csv").read_text().splitlines()) == 5


def test_two_runs_at_one_output(folder, tmp_path):
    from van_classification_tensorflow.inference.journal import Journal

    with Journal(tmp_path / "x.csv", False):
        for resume in (False, True):
            with pytest.raises(FileExistsError, match="another run is writing"):
                predict([folder / "0"], output=tmp_path / "x.csv", resume=resume)
    predict([folder / "0"], output=tmp_path / "x.csv")
    assert [p.name for p in tmp_path.iterdir()] == ["x.csv"]


def test_the_table_beside_an_array_is_not_overwritten(folder, tmp_path):
    (tmp_path / "x.npy.csv").write_text("precious")
    with pytest.raises(FileExistsError, match=r"x\.npy\.csv is already there"):
        predict([folder / "0"], output=tmp_path / "x.npy", features=True)
    assert (tmp_path / "x.npy.csv").read_text() == "precious"


def test_weights_whose_name_looks_like_markup(folder, tmp_path):
    from van_classification_tensorflow.weights.cache import fetch
    from van_classification_tensorflow.weights.catalogue import CATALOGUE

    path = tmp_path / "run[" / "v2].safetensors"
    path.parent.mkdir()
    path.write_bytes(fetch(CATALOGUE["digits"]).read_bytes())
    console = Console(file=io.StringIO(), width=300, force_terminal=True)
    assert run(asked([folder / "0"], path, output=tmp_path / "x.csv"), console=console) == 0
    assert "run[/v2].safetensors" in console.file.getvalue()


@pytest.mark.parametrize("moved", [(), ("x.npy.csv",), ("x.npy.csv", "x.npy")])
def test_an_array_that_is_being_replaced_can_be_resumed(folder, tmp_path, monkeypatch, moved):
    """Whatever of the new files was in its place when the run was killed."""
    from van_classification_tensorflow.inference.journal import Journal

    def killed(*_):
        raise KeyboardInterrupt

    (tmp_path / "new").mkdir()
    target, new = tmp_path / "x.npy", {"paths": [folder / "1"], "features": True}
    predict([folder / "0"], output=target, features=True)
    predict(output=tmp_path / "new" / "x.npy", **new)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            predict(output=target, overwrite=True, **new)
    for name in moved:
        (tmp_path / "new" / name).replace(tmp_path / name)
    predict(output=target, resume=True, **new)
    assert len(np.load(target)) == len((tmp_path / "x.npy.csv").read_text().splitlines()) - 1 == 5
    assert not (tmp_path / "x.npy.partial").exists()


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet"])
def test_a_finished_run_that_names_all_classes(folder, tmp_path, name):
    """The digits are ten: whoever asked for twelve has what there is."""
    if name == "x.parquet":
        pytest.importorskip("pyarrow")
    predict([folder / "0"], output=tmp_path / name, top=12)
    failed, said = predict([folder / "0"], output=tmp_path / name, top=12, resume=True)
    assert (failed, "is finished: it has all 4 records" in said) == (0, True)
    with pytest.raises(ValueError, match=r"finished, with other settings: top=1[02]"):
        predict([folder / "0"], output=tmp_path / name, top=3, resume=True)


def test_folders_named_as_published_weights_are_in_no_ones_way(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    predict([folder / "0"], output=tmp_path / "x.csv")
    assert (tmp_path / "x.csv").is_file()


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", ["x.csv", "x.npy"])
def test_any_beginning_of_a_journal_can_be_resumed(folder, tmp_path, monkeypatch, cut, name):
    """As after a kill at any byte: the same file as in one go."""
    features = name.endswith(".npy")
    from van_classification_tensorflow.inference import journal as module

    kept = {}

    def keep(journal, *arguments):
        journal.file.close()
        kept["journal"] = journal.path.read_bytes()
        finish(journal, *arguments)

    finish = module.Journal.finish
    monkeypatch.setattr(module.Journal, "finish", keep)
    whole, half = tmp_path / "whole", tmp_path / "half"
    whole.mkdir()
    half.mkdir()
    predict([folder], output=whole / name, features=features, batch_size=4)
    data = kept["journal"]
    first = data.index(b"\n") + 1
    at = first + int((len(data) - first) * cut)
    (half / f"{name}.partial").write_bytes(data[:at])
    failed, said = predict(
        [folder], output=half / name, features=features, resume=True, batch_size=4
    )
    assert failed == 2
    done = data[:at].count(b"\n") - 1
    assert (f"{done} of 14 were there" in said) == (done > 0)
    assert {p.name for p in half.iterdir()} == {p.name for p in whole.iterdir()}
    if features:
        np.testing.assert_allclose(np.load(half / name), np.load(whole / name), atol=1e-5)
    else:
        rows = [list(csv.reader((d / name).open(newline=""))) for d in (half, whole)]
        assert [r[:3] for r in rows[0]] == [r[:3] for r in rows[1]]


@pytest.mark.slow
def test_killed_and_resumed(folder, tmp_path):
    many = tmp_path / "many"
    many.mkdir()
    source = (folder / "0" / "00.png").read_bytes()
    for i in range(3000):
        (many / f"{i:04}.png").write_bytes(source)
    command = [sys.executable, "-m", "van_classification_tensorflow", "predict", str(many)]
    command += ["--weights", "digits", "--output", str(tmp_path / "x.jsonl"), "--batch-size", "2"]
    journal = tmp_path / "x.jsonl.partial"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"\n") > 20:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "x.jsonl").exists()
    done = journal.read_bytes().count(b"\n") - 1
    assert 0 < done < 3000
    result = subprocess.run(
        [*command, "--resume"], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert f"{done:,} of 3,000 were there" in result.stderr
    records = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [os.path.basename(r["path"]) for r in records] == [f"{i:04}.png" for i in range(3000)]
    assert not journal.exists()


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_two_thousand_hostile_names_and_files(tmp_path, suffix):
    """Exactly one record each, whatever it is called and whatever it is."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    made = hostile_folder(pictures)
    target = tmp_path / f"x{suffix}"
    failed, _ = predict([pictures], output=target, top=1)
    good = sorted(path for path, kind in made.items() if kind == "good")
    assert failed == len(made) - len(good)
    if suffix == ".jsonl":
        records = [json.loads(line) for line in target.read_text().splitlines()]
        assert sorted(r["path"] for r in records if not r["error"]) == good
    elif suffix == ".csv":
        with target.open(newline="", encoding="utf-8") as file:
            records = list(csv.DictReader(file))
    else:
        from pyarrow import parquet

        records = parquet.read_table(target).to_pylist()
    assert len(records) == len(made)
    as_utf8 = sorted(p.encode("utf-8", "backslashreplace").decode() for p in made)
    if suffix != ".jsonl":  # which keeps bytes that are no text as they are
        assert sorted(r["path"] for r in records) == as_utf8
    assert sum(1 for r in records if not r["error"]) == len(good)


def test_the_exit_code_tells_of_failures(folder):
    command = [sys.executable, "-m", "van_classification_tensorflow", "predict"]
    command += ["--weights", "digits"]
    for path, code in ((folder / "0" / "00.png", 0), (folder / "1" / "broken.png", 1)):
        result = subprocess.run(
            [*command, str(path)], capture_output=True, text=True, timeout=120, check=False
        )
        assert result.returncode == code, result.stderr
        assert "Traceback" not in result.stderr
        (record,) = [json.loads(line) for line in result.stdout.splitlines()]
        assert (record["error"] is None) == (code == 0)


# --- Exported files ---


def digits_file(folder, format="onnx", outputs=10, seed=0, **changes):
    """A linear model of the digits, and its weights."""
    weights = random_weights(32 * 32, outputs, seed) / np.float32(20)
    record = about(channels=1, labels=[f"digit {i}" for i in range(10)], **changes)
    return build(folder, format, weights, record, channels=1), weights


def predict_with(weights, paths, **options):
    console = Console(file=io.StringIO(), width=300)
    return run(asked(paths, weights, **options), console=console), console


@pytest.mark.parametrize("format", FORMATS)
def test_exported_files(folder, tmp_path, format):
    path, weights = digits_file(tmp_path, format)
    failed, console = predict_with(path, [folder], output=tmp_path / "x.jsonl", top=3)
    assert failed == 2
    said = console.file.getvalue()
    assert f"van_test.tiny (float32, {path}): shorter side to 32 (box)" in said
    classifier = Classifier(path)
    records = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    good = [record for record in records if not record["error"]]
    assert len(good) == 12
    for record in good:
        image = classifier.preprocessing(Image.open(record["path"]))
        best = np.argsort(-expected(image[None], weights)[0])[:3].tolist()
        assert [p["index"] for p in record["predictions"]] == best
        assert [p["label"] for p in record["predictions"]] == [f"digit {i}" for i in best]


def test_features_of_an_exported_file(folder, tmp_path):
    path, weights = digits_file(tmp_path, outputs=8, output="features")
    predict_with(path, [folder / "0"], output=tmp_path / "x.npy", features=True)
    prepare = Classifier(path).preprocessing
    images = [prepare(Image.open(picture)) for picture in sorted((folder / "0").iterdir())]
    found = np.load(tmp_path / "x.npy")
    np.testing.assert_allclose(found, expected(np.stack(images), weights), atol=1e-5)
    with pytest.raises(ValueError, match="has no head"):
        predict_with(path, [folder / "0"], output=tmp_path / "x.csv")


def test_features_of_an_exported_file_of_logits(folder, tmp_path):
    path, _ = digits_file(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="gives logits, no features"):
        predict_with(path, [folder / "0"], output=tmp_path / "x.npy", features=True)
    assert sorted(tmp_path.iterdir()) == before


def test_features_of_weights_without_a_head(folder, tmp_path):
    from safetensors.numpy import load_file, save_file

    from tests.parity import GOLDEN

    tensors = load_file(GOLDEN / "micro.safetensors")
    kept = {name: array for name, array in tensors.items() if not name.startswith("head.")}
    save_file(kept, tmp_path / "b.safetensors")
    options = {"output": tmp_path / "x.npy", "features": True, "test_size": 32}
    assert predict_with(tmp_path / "b.safetensors", [folder / "0"], **options)[0] == 0
    assert len(np.load(tmp_path / "x.npy")) == 4


@pytest.mark.parametrize("format", FORMATS)
def test_resuming_with_another_exported_file_is_refused(folder, tmp_path, monkeypatch, format):
    """Every file of it counts: the model may be in one and the weights in another."""
    from van_classification_tensorflow.inference import journal as module

    path, _ = digits_file(tmp_path, format)
    finish = module.Journal.finish
    monkeypatch.setattr(module.Journal, "finish", lambda *_: None)  # as if killed before
    predict_with(path, [folder / "0"], output=tmp_path / "x.csv")
    monkeypatch.setattr(module.Journal, "finish", finish)
    files = [path, *path.parent.glob("m.bin")]
    if format == "saved_model":
        files = [file for file in path.rglob("*") if file.is_file()]
    assert len(files) == {"openvino": 2, "saved_model": 5}.get(format, 1)
    for file in files:
        kept = file.stat()
        os.utime(file, ns=(kept.st_atime_ns, kept.st_mtime_ns + 1_000_000))
        with pytest.raises(ValueError, match="begun with other settings: weights="):
            predict_with(path, [folder / "0"], output=tmp_path / "x.csv", resume=True)
        os.utime(file, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    predict_with(path, [folder / "0"], output=tmp_path / "x.csv", resume=True)
    assert len((tmp_path / "x.csv").read_text().splitlines()) == 5


def test_the_command_line_with_exported_files(folder, tmp_path):
    """An answer without Keras, or one line."""
    path, _ = digits_file(tmp_path)
    (tmp_path / "bad.onnx").write_bytes(path.read_bytes()[:99])
    others = {"bad.onnx": "bad.onnx was refused: ", "none.onnx": "No such file or directory"}
    for name, says in {"m.onnx": "", **others}.items():
        command = [sys.executable, "-m", "van_classification_tensorflow", "predict"]
        command += [str(folder / "0" / "00.png"), "--weights", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if not says:
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["predictions"][0]["label"].startswith("digit ")
        else:
            assert done.returncode == 1
            assert done.stderr.startswith("van: error: ")
            assert says in done.stderr
            assert done.stderr.count("\n") == 1


# --- Engines ---


@pytest.mark.parametrize("engine", ["numpy", "keras", "onnxruntime", "openvino"])
def test_the_engine_is_said(folder, tmp_path, engine):
    pytest.importorskip(engine)
    _, said = predict([folder], output=tmp_path / "x.csv", engine=engine)
    named = {"numpy": "NumPy", "keras": "Keras", "onnxruntime": "ONNX Runtime"}
    assert f"Engine: {named.get(engine, 'OpenVINO')} " in said
    assert "float32: as asked" in said
    assert ("differs from NumPy's reference by" in said) == (engine != "numpy")
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if not row["error"]]
    right = expected_indices([row["path"] for row in rows])
    assert {row["path"]: int(row["index_1"]) for row in rows} == right


def test_the_engine_of_an_exported_file_is_said(folder, tmp_path):
    weights = build(tmp_path, "onnx", random_weights(32 * 32 * 3, 10) / np.float32(40), about())
    console = Console(file=io.StringIO(), width=200)
    run(asked([folder / "0"], weights, output=tmp_path / "x.csv"), console=console)
    assert "Engine: ONNX Runtime " in console.file.getvalue()
    assert ", float32: of its format" in console.file.getvalue()


@pytest.mark.parametrize("command", ["predict", "evaluate"])
@pytest.mark.parametrize("engine", ["auto", "onnxruntime"])
def test_neither_keras_nor_a_framework_is_imported(folder, command, engine):
    arguments = {
        "predict": ["predict", str(folder / "0"), "--weights", "digits"],
        "evaluate": ["evaluate", "--data", "digits", "--weights", "digits"],
    }[command]
    code = (
        "import sys; from van_classification_tensorflow.cli import main; "
        f"main({[*arguments, '--engine', engine]!r}); "
        "print(sorted({'keras', 'tensorflow', 'jax', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_journal_is_of_one_precision_whatever_the_engine(folder, tmp_path, monkeypatch):
    """Engines differ by rounding; journals from before there were several say no precision."""
    kept = {}

    def keep(journal, *arguments):
        kept["lines"] = journal.path.read_bytes().splitlines(keepends=True)

    monkeypatch.setattr("van_classification_tensorflow.inference.journal.Journal.finish", keep)
    predict([folder], output=tmp_path / "x.csv")
    monkeypatch.undo()
    about = json.loads(kept["lines"][0])
    assert about.pop("precision") == "float32"
    journal = tmp_path / "x.csv.partial"
    journal.write_bytes(b"".join([json.dumps(about).encode() + b"\n", *kept["lines"][1:5]]))
    with pytest.raises(ValueError, match=r"precision='float32' \(now 'bfloat16'\)"):
        predict(
            [folder], output=tmp_path / "x.csv", resume=True, engine="keras", precision="bfloat16"
        )
    other = {**about, "precision": "bfloat16", "engine": "openvino"}  # which round otherwise
    (tmp_path / "y.csv.partial").write_text(json.dumps(other) + "\n")
    with pytest.raises(ValueError, match=r"engine='openvino' \(now 'keras'\)"):
        predict(
            [folder], output=tmp_path / "y.csv", resume=True, engine="keras", precision="bfloat16"
        )
    _, said = predict([folder], output=tmp_path / "x.csv", resume=True, engine="onnxruntime")
    assert "4 of 14 were there; going on" in said
    with (tmp_path / "x.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 14


def test_a_journal_of_int8_is_of_one_engine_and_one_calibration(folder, tmp_path, monkeypatch):
    """Each of both has numbers of its own."""
    from van_classification_tensorflow.datasets import calibration

    monkeypatch.setattr(calibration, "CALIBRATION", 8)
    options = {"engine": "onnxruntime", "precision": "int8", "calibration": "digits"}
    options |= {"output": tmp_path / "x.csv"}
    finish = "van_classification_tensorflow.inference.journal.Journal.finish"
    with monkeypatch.context() as killed:
        killed.setattr(finish, lambda *_: None)
        _, said = predict([folder], **options)
    assert "int8 takes its ranges from pictures, which may take minutes" in said
    assert "its ranges are those of 8 pictures of the bundled digits (so few say little); " in said
    about = json.loads((tmp_path / "x.csv.partial").read_text().splitlines()[0])
    assert about["engine"] == "onnxruntime"
    with pytest.raises(ValueError, match=rf"calibration='{about['calibration']}' \(now '"):
        predict([folder], resume=True, **{**options, "calibration": str(folder)})
    with pytest.raises(ValueError, match=r"settings: precision='int8' \(now 'float32'\)"):
        predict([folder], output=tmp_path / "x.csv", resume=True)
    _, said = predict([folder], resume=True, **options)
    assert "14 of 14 were there; going on" in said
