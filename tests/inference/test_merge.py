"""`van predict --shard` and `van merge`: together the very bytes of one process, or an error."""

import io
import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.inference.test_predict import digits_file
from van_classification_tensorflow import cli
from van_classification_tensorflow.datasets.digits import load_digits
from van_classification_tensorflow.inference import merge, predict
from van_classification_tensorflow.inference.parts import open_part
from van_classification_tensorflow.inference.request import (
    ClassifierOptions,
    MergeRequest,
    PredictRequest,
)
from van_classification_tensorflow.inference.shard import Shard
from van_classification_tensorflow.weights.cache import fetch
from van_classification_tensorflow.weights.catalogue import CATALOGUE

PARQUET = pytest.mark.skipif(find_spec("pyarrow") is None, reason="needs the extra 'parquet'")
NAMES = [
    "x.csv",
    "x.jsonl",
    pytest.param("x.parquet", marks=PARQUET),
    pytest.param("features.parquet", marks=PARQUET),
    "features.npy",
]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Twelve digits, of which one comes twice, and three files that cannot be read, one first."""
    folder = tmp_path_factory.mktemp("pictures")
    _, test = load_digits()
    for i in range(12):
        pixels = (test.pixels[i].astype(float) * 255 / 16).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    for name in ("! first.png", "05 broken.png", os.fsdecode(b"\xe4.png")):
        (folder / name).write_bytes(b"\x89PNG no")
    return [str(folder), str(folder / "07.png")]


def predicted(paths, output, stdin=None, weights="digits", **options):
    theirs = {"weights": str(weights), "engine": "numpy", "batch_size": 2}
    theirs |= {name: options.pop(name) for name in ("engine", "batch_size") if name in options}
    options.setdefault("features", output.name.startswith("features"))
    request = PredictRequest(
        paths=tuple(paths), output=output, classifier=ClassifierOptions(**theirs), **options
    )
    console = Console(file=io.StringIO(), width=300)
    return predict.run(request, stdin, console), console.file.getvalue()


def merged(output, **options):
    console = Console(file=io.StringIO(), width=300)
    failed = merge.run(MergeRequest(output=output, **options), console)
    return failed, console.file.getvalue()


def shards(paths, output, count, **options):
    """The last one first: nothing depends on when each is done."""
    return [
        predicted(paths, output, shard=f"{number}/{count}", **options)
        for number in range(count - 1, -1, -1)
    ]


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def alone(paths, tmp_path_factory):
    """Name of an output -> (how many failed, what was said of it, all files), of one process."""
    known = {}

    def made(name):
        if name not in known:
            folder = tmp_path_factory.mktemp("alone")
            failed, said = predicted(paths, folder / name)
            known[name] = failed, said[said.index("records") :], content(folder)
        return known[name]

    return made


@pytest.fixture(scope="module")
def two_parts(paths, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    shards(paths, folder / "x.csv", 2)
    return folder


@pytest.fixture
def parts(two_parts, tmp_path):
    """x.csv.0-of-2.part and x.csv.1-of-2.part, of 8 records each, to be spoiled."""
    folder = tmp_path / "parts"
    shutil.copytree(two_parts, folder)
    return folder


def rewritten(part, **changes):
    """Says something else of itself."""
    first, _, rest = part.read_bytes().partition(b"\n")
    part.write_bytes(json.dumps(json.loads(first) | changes).encode() + b"\n" + rest)


def refused(folder, says, **options):
    """In one line, and nothing is changed."""
    before = content(folder)
    with pytest.raises((ValueError, OSError), match=says) as error:
        merged(folder / "x.csv", **options)
    assert "\n" not in str(error.value)
    assert content(folder) == before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_very_bytes_of_one_process(paths, alone, tmp_path, name, count):
    failed, said, files = alone(name)
    made = shards(paths, tmp_path / name, count)
    assert sum(failed for failed, _ in made) == failed == 3
    assert set(content(tmp_path)) == {f"{name}.{i}-of-{count}.part" for i in range(count)}
    found, says = merged(tmp_path / name)
    assert (found, says) == (failed, f"{tmp_path / name}: 16 {said}")
    assert content(tmp_path) == files  # and the parts are gone


def test_more_shards_than_batches(paths, alone, tmp_path):
    made = shards(paths, tmp_path / "x.csv", 3, batch_size=8)
    assert "Shard 2/3: 0 of 16 pictures" in made[0][1]
    merged(tmp_path / "x.csv")
    assert content(tmp_path) == alone("x.csv")[2]


def test_a_list_on_the_standard_input(paths, alone, tmp_path):
    names = [*sorted(map(os.fsencode, Path(paths[0]).iterdir())), os.fsencode(paths[1])]
    for number in (0, 1):
        stdin = io.TextIOWrapper(io.BytesIO(b"\n".join(names)))
        predicted(["-"], tmp_path / "x.csv", stdin, shard=f"{number}/2")
    merged(tmp_path / "x.csv")
    assert content(tmp_path) == alone("x.csv")[2]


def test_the_very_bytes_of_a_runtime(paths, tmp_path):
    """Of which a single picture would be run by another program, were it alone."""
    pytest.importorskip("onnxruntime")
    whole, dealt = tmp_path / "whole", tmp_path / "dealt"
    whole.mkdir()
    dealt.mkdir()
    options = {"engine": "onnxruntime", "batch_size": 15}
    predicted(paths, whole / "x.csv", **options)
    made = shards(paths, dealt / "x.csv", 2, **options)
    assert "Shard 1/2: 1 of 16 pictures" in made[0][1]
    merged(dealt / "x.csv")
    assert content(dealt) == content(whole)


def test_the_engine_of_a_shard_is_that_of_all(paths, tmp_path, monkeypatch):
    seen = []
    for name in ("choose_engine", "stream"):
        original = getattr(predict.Classifier, name)

        def spy(self, *arguments, original=original, **options):
            seen.append(options["count"] if "count" in options else arguments[0])
            return original(self, *arguments, **options)

        monkeypatch.setattr(predict.Classifier, name, spy)
    predicted(paths, tmp_path / "x.csv", engine="auto", shard="1/7")
    assert seen == [16, 16]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x.csv", "features.npy"])
def test_the_very_bytes_of_keras(paths, tmp_path, name):
    """Whose last bits may depend on the batch; also where a shard was killed within one."""
    pytest.importorskip("keras")
    whole, dealt = tmp_path / "whole", tmp_path / "dealt"
    whole.mkdir()
    dealt.mkdir()
    options = {"engine": "keras", "batch_size": 3}
    predicted(paths, whole / name, **options)
    shards(paths, dealt / name, 2, **options)
    part = dealt / f"{name}.1-of-2.part"
    lines = part.read_bytes().splitlines(keepends=True)
    part.unlink()
    (dealt / f"{part.name}.partial").write_bytes(
        b"".join(lines[:6])
    )  # five records, of which 3 stay
    _, said = predicted(paths, dealt / name, shard="1/2", resume=True, **options)
    assert "3 of 7 were there; going on" in said
    merged(dealt / name)
    assert content(dealt) == content(whole)


# --- One shard ---


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.9, 1])
@pytest.mark.parametrize("name", ["x.csv", "features.npy"])
def test_a_killed_shard_goes_on(paths, alone, tmp_path, name, cut):
    """As after a kill at any byte; by whole batches."""
    shards(paths, tmp_path / name, 2)
    part = tmp_path / f"{name}.1-of-2.part"
    data = part.read_bytes()
    first = data.index(b"\n") + 1
    kept = data[: first + int((len(data) - first) * cut)]
    part.unlink()
    journal = tmp_path / f"{name}.1-of-2.part.partial"
    journal.write_bytes(kept)
    with pytest.raises(FileExistsError, match="unfinished run: go on with --resume, or begin anew"):
        predicted(paths, tmp_path / name, shard="1/2")
    _, said = predicted(paths, tmp_path / name, shard="1/2", resume=True)
    done = (kept.count(b"\n") - 1) // 2 * 2
    assert (f"{done} of 8 were there; going on" in said) == (done > 0)
    assert part.read_bytes() == data
    merged(tmp_path / name)
    assert content(tmp_path) == alone(name)[2]


def test_a_shard_does_not_go_on_with_something_else(paths, parts):
    part = parts / "x.csv.0-of-2.part"
    part.rename(f"{part}.partial")
    before = content(parts)
    for other, options, says in (
        (paths[::-1], {}, "was begun with other inputs, or in another order: resume with the same"),
        (paths, {"top": 3}, r"begun with other settings: top=5 \(now 3\)"),
        (paths, {"batch_size": 4}, r"begun with other settings: block=2 \(now 4\)"),
        (paths, {"engine": "onnxruntime"}, r"settings: engine='numpy' \(now 'onnxruntime'\)"),
    ):
        with pytest.raises(ValueError, match=says):
            predicted(other, parts / "x.csv", shard="0/2", resume=True, **options)
        assert content(parts) == before


def test_a_finished_part_stays(paths, parts):
    before = content(parts)
    with pytest.raises(FileExistsError, match=r"0-of-2\.part is already there; to replace it: --o"):
        predicted(paths, parts / "x.csv", shard="0/2")
    options = {"shard": "0/2", "resume": True, "weights": "none"}  # which are not asked for
    failed, said = predicted(paths, parts / "x.csv", **options)
    assert failed == 1
    assert "0-of-2.part is finished: it has 8 records; to make it anew: --overwrite" in said
    assert "1 of 8 failed" in said
    with pytest.raises(ValueError, match="is finished, of other inputs or in another order"):
        predicted(paths[:1], parts / "x.csv", **options)
    with pytest.raises(ValueError, match=r"is finished, with other settings: top=5; to make"):
        predicted(paths, parts / "x.csv", top=2, **options)
    assert content(parts) == before
    predicted(paths, parts / "x.csv", shard="0/2", overwrite=True)
    assert content(parts) == before


def test_the_whole_output_is_not_in_the_way_of_a_shard_unseen(paths, tmp_path):
    (tmp_path / "features.npy.csv").write_text("precious")
    with pytest.raises(FileExistsError, match=r"features\.npy\.csv is already there"):
        predicted(paths, tmp_path / "features.npy", shard="0/2")
    assert content(tmp_path) == {"features.npy.csv": b"precious"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shard": "2/2"}, r"`shard` must be I/N, I from 0 to N - 1 .* Received: shard='2/2'"),
        ({"shard": "0/2", "output": None}, "`shard` needs the `output` that the parts are to be"),
    ],
)
def test_wrong_options(options, says):
    with pytest.raises(ValueError, match=says):
        PredictRequest(paths=("x",), **{"output": Path("x.csv"), **options})


def test_a_picture_on_the_standard_input_is_not_dealt(paths, tmp_path):
    stdin = io.TextIOWrapper(io.BytesIO(Path(paths[1]).read_bytes()))
    with pytest.raises(ValueError, match="a picture on the standard input is for one process"):
        predicted(["-"], tmp_path / "x.csv", stdin, shard="0/2")
    assert content(tmp_path) == {}


# --- Merging ---


def test_a_part_that_is_missing_is_named(parts):
    (parts / "x.csv.1-of-2.part").unlink()
    output = parts / "x.csv"
    refused(
        parts,
        rf"^part 1/2 of {output} is not there; what makes it: van predict \.\.\. --output {output} "
        "--shard 1/2$",
    )
    for number in (0, 3):
        shutil.copy(parts / "x.csv.0-of-2.part", parts / f"x.csv.{number}-of-7.part")
    (parts / "x.csv.0-of-2.part").unlink()
    refused(parts, "^parts 1/7, 2/7, 4/7 and 2 more of .* are not there; .* --shard 1/7$")


def test_parts_of_two_divisions(parts):
    shutil.copy(parts / "x.csv.0-of-2.part", parts / "x.csv.0-of-3.part")
    refused(parts, "has parts of 2 and of 3 shards beside it; remove those that are not to be")


@pytest.mark.parametrize("older", [False, True])
def test_an_unfinished_part(parts, older):
    part = parts / "x.csv.1-of-2.part"
    shutil.copy(part, f"{part}.partial")
    if not older:
        part.unlink()
    refused(parts, "^part 1/2 of .* is not finished; to go on .* --shard 1/2 --resume$")


def test_no_part_at_all(tmp_path):
    (tmp_path / "x.csv.1-of-1.part").write_text("no number of a shard")
    (tmp_path / "xAcsv.0-of-1.part").write_text("of another output")
    refused(tmp_path, "has no parts beside it; what makes them: van predict")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"content": "0", "weights": ["b"]},
            r"other weights than .* \(\['b'\], not \['digits'\]\)",
        ),
        ({"preprocessing": {}}, "another preprocessing than"),
        ({"views": [5, False]}, r"other crops or flips than .* \(\[5, False\], not \[1, False\]\)"),
        ({"top": 3}, r"another number of classes than .* \(3, not 5\)"),
        ({"features": True, "top": None}, r"other results \(features or classes\) than"),
        ({"precision": "bfloat16"}, r"another precision than .* \('bfloat16', not 'float32'\)"),
        ({"calibration": "0"}, r"another calibration than .* \('0', not None\)"),
        ({"block": 4}, r"another batch size than .* \(4, not 2\)"),
        ({"inputs": 15}, "another number of inputs than"),
        ({"names": "0"}, "other inputs, or another order of them, than"),
    ],
)
def test_parts_of_other_settings(parts, changes, says):
    rewritten(parts / "x.csv.1-of-2.part", **changes)
    refused(
        parts, rf"1-of-2\.part was made with {says}.*; make it anew: .* --shard 1/2 --overwrite$"
    )


def test_parts_of_another_engine(parts, alone):
    """It matters but in float32, where engines agree to rounding; that they are several is said."""
    part = parts / "x.csv.1-of-2.part"
    rewritten(part, engine="onnxruntime", precision="int8")
    rewritten(parts / "x.csv.0-of-2.part", precision="int8")
    refused(parts, r"another engine than .* \('onnxruntime', not 'numpy'\)")
    for one in parts.iterdir():
        rewritten(one, precision="float32")
    _, said = merged(parts / "x.csv")
    assert (
        "Several engines made the parts, and each rounds in its way: 1 by numpy, 1 by onn" in said
    )
    assert content(parts) == alone("x.csv")[2]


def test_copies_of_weights_differ_in_time_only(paths, alone, tmp_path):
    """Each node may have its own; what counts is what is in them."""
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    original, output = fetch(CATALOGUE["digits"]), tmp_path / "out" / "x.csv"
    output.parent.mkdir()
    for number in (0, 1):
        copied = tmp_path / f"node {number}.safetensors"
        copied.write_bytes(original.read_bytes())
        os.utime(copied, (number, number))
        predicted(paths, output, weights=copied, shard=f"{number}/2")
    merged(output, keep_parts=True)
    assert output.read_bytes() == alone("x.csv")[2]["x.csv"]
    output.unlink()
    tensors = load_file(copied)
    next(iter(tensors.values())).flat[0] += 1
    with safe_open(copied, "numpy") as file:
        save_file(tensors, copied, file.metadata())
    predicted(paths, output, weights=copied, shard="1/2", overwrite=True)
    refused(output.parent, "1-of-2.part was made with other weights than")


def test_copies_of_an_exported_file_differ_in_time_only(paths, tmp_path):
    output = tmp_path / "out" / "x.csv"
    output.parent.mkdir()
    for number, seed in ((0, 0), (1, 0), (1, 1)):
        folder = tmp_path / f"{number} {seed}"
        folder.mkdir()
        exported, _ = digits_file(folder, seed=seed)
        os.utime(exported, (number, number))
        options = {"weights": exported, "engine": "auto", "overwrite": seed == 1}
        predicted(paths, output, shard=f"{number}/2", **options)
        if (number, seed) == (1, 0):
            assert merged(output, keep_parts=True)[0] == 3
            output.unlink()
    refused(output.parent, "1-of-2.part was made with other weights than")


def without(data):
    lines = data.splitlines(keepends=True)
    return b"".join(lines[:4] + lines[5:])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda data: data[:-9], r"line 9 is damaged; make it anew: .* --shard 1/2 --overwrite$"),
        (lambda data: data[:-900], "is damaged; |has too few records; make it anew"),
        (without, "has too few records; make it anew"),
        (lambda data: data + data.splitlines(keepends=True)[-1], "has too many records; make it"),
        (lambda data: data.replace(b'"probability"', b'"p"', 1), "line .* is damaged"),
        (lambda data: data.replace(b'"error"', b'"e"', 1), "line 2 is damaged"),
        (lambda data: data.replace(b"\n", b"\n[1]\n", 1), "line 2 is damaged"),
        (lambda data: data.replace(b"02.png", b"03.png", 1), "are not those of the inputs that"),
        (lambda data: b"", "its first line is not that of part 1/2"),
        (lambda data: b"[1]\n", "its first line is not that of part 1/2"),
        (lambda data: data.replace(b'"block": 2', b'"block": 0'), "its first line is not that of"),
        (lambda data: data.replace(b'"1/2"', b'"0/2"'), "its first line is not that of part 1/2"),
    ],
)
def test_a_damaged_part(parts, spoil, says):
    part = parts / "x.csv.1-of-2.part"
    spoiled = spoil(part.read_bytes())
    assert spoiled != part.read_bytes()
    part.write_bytes(spoiled)
    refused(parts, says)


def test_parts_of_classes_are_not_written_as_features(parts):
    for part in list(parts.iterdir()):
        part.rename(parts / part.name.replace("x.csv", "x.npy"))
    with pytest.raises(ValueError, match=r"holds classes, which are not written to \*\.npy"):
        merged(parts / "x.npy")


def test_a_part_that_is_replaced_while_it_is_read(parts):
    part = open_part(parts / "x.csv", Shard(0, 2))
    assert len(list(part.records())) == 8
    part.path.write_bytes(part.path.read_bytes() + b"more")
    with pytest.raises(ValueError, match=r"0-of-2\.part was changed meanwhile; try again"):
        list(part.records())


@pytest.mark.parametrize("bytes_at_once", [1, 700])
def test_parts_are_read_a_little_at_a_time(parts, alone, monkeypatch, bytes_at_once):
    monkeypatch.setattr("van_classification_tensorflow.inference.parts._AT_ONCE", bytes_at_once)
    merged(parts / "x.csv")
    assert content(parts) == alone("x.csv")[2]


def test_overwriting_and_keeping_the_parts(parts, alone):
    for name in ("x.csv", "x.csv.partial"):
        (parts / name).write_text("precious")
        refused(parts, "to replace it: --overwrite|is of an unfinished run")
    kept = {name: data for name, data in content(parts).items() if name.endswith(".part")}
    merged(parts / "x.csv", overwrite=True, keep_parts=True)
    assert content(parts) == kept | alone("x.csv")[2]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_is_stopped_leaves_the_parts_and_can_be_repeated(parts, alone, monkeypatch, error):
    def stopped(*_):
        raise error

    before = content(parts)
    with monkeypatch.context() as patch:
        patch.setattr("van_classification_tensorflow.support.files.os.replace", stopped)
        with pytest.raises(type(error)):
            merged(parts / "x.csv")
    assert content(parts) == before
    merged(parts / "x.csv")
    assert content(parts) == alone("x.csv")[2]


def test_two_merges_at_once(parts):
    from van_classification_tensorflow.inference.journal import Journal

    with Journal(parts / "x.csv", False), pytest.raises(FileExistsError, match="another run is wr"):
        merged(parts / "x.csv")


def test_the_command_line(paths, tmp_path, monkeypatch, capsys):
    """Exit codes as of `van predict`, and what stands in the way is one line."""

    def van(*arguments):
        try:
            cli.main(list(arguments))
        except SystemExit as stop:
            return stop.code, capsys.readouterr().err
        return 0, capsys.readouterr().err

    monkeypatch.chdir(tmp_path)
    asked = [*paths, "--weights", "digits", "--output", "x.csv", "--batch-size", "2"]
    codes = [van("predict", *asked, "--shard", f"{i}/4")[0] for i in range(3)]
    assert codes == [1, 0, 0]
    missing = "part 3/4 of x.csv is not there; what makes it: van predict ... --output x.csv"
    assert van("merge", "x.csv") == (1, f"van: error: {missing} --shard 3/4\n")
    assert van("predict", *asked, "--shard", "3/4")[0] == 1
    code, said = van("merge", "x.csv")
    assert (code, said.splitlines()[:2]) == (1, ["x.csv: 16 records", "3 of 16 failed"])
    assert list(content(tmp_path)) == ["x.csv"]


def test_after_ctrl_c_a_shard_says_how_it_goes_on(paths, tmp_path, monkeypatch, capsys):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predict.Classifier, "stream", stopped)
    with pytest.raises(SystemExit):
        cli.main(
            ["predict", "--weights", "digits", "--output", "x.csv", "--shard", "0/2", *paths[1:]]
        )
    rest = f"--weights digits --output x.csv --shard 0/2 {paths[1]}"
    assert capsys.readouterr().err.endswith(f"; to go on: van predict --resume {rest}\n")
