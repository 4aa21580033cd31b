"""A run from end to end, and runs that are stopped and go on."""

import csv
import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.parity import GOLDEN
from van_classification_tensorflow import VAN, Classifier
from van_classification_tensorflow.cli import main
from van_classification_tensorflow.datasets import digits
from van_classification_tensorflow.datasets.training import open_data
from van_classification_tensorflow.evaluate.evaluate import evaluate
from van_classification_tensorflow.train import build, callbacks, report, run, train
from van_classification_tensorflow.train import folder as runs
from van_classification_tensorflow.train.batches import EvaluationBatches
from van_classification_tensorflow.train.optim import LearningRate
from van_classification_tensorflow.train.recipe import RECIPES, Recipe
from van_classification_tensorflow.train.snapshots import RunLock, RunLockedError, Snapshots
from van_classification_tensorflow.train.workers import Workers
from van_classification_tensorflow.weights.pretrained import open_pretrained

# Everything that has a state: accumulated gradients, an average, dropped paths and units.
TINY = RECIPES["digits"].with_(
    embed_dims=(4, 8),
    mlp_ratios=(2, 2),
    depths=(1, 1),
    epochs=2,
    warmup_epochs=1,
    batch_size=128,
    accumulation_steps=2,
    cutmix=1.0,
    clip_norm=1.0,
    layer_decay=0.9,
    drop_rate=0.1,
    drop_path_rate=0.2,
    average_decay=0.9,
)
STEPS = 22  # of an epoch: 11 updates in two parts
tensorflow_only = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="a property of the TensorFlow backend"
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    history = train.train("digits", folder, TINY)
    return folder, history


def end_of(folder: Path):
    return Snapshots(folder / "snapshots").load()


def figures(folder: Path) -> list[dict]:
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


# --- What a run leaves ---


def test_the_folder_of_a_run(whole):
    folder, history = whole
    there = {path.name for path in folder.iterdir() if path.name[0] != "."}
    assert there >= {
        "config.yaml",
        "metrics.csv",
        "tensorboard",
        "training_curves.png",
        "augmented.png",
        "evaluation",
        "best.keras",
        "last.keras",
        "snapshots",
    }
    assert {p.name for p in (folder / "evaluation").iterdir()} >= {
        "per_class.csv",
        "confusion_matrix.png",
    }
    for picture in folder.rglob("*.png"):
        assert Image.open(picture).size[0] > 300
    assert runs.check_run(folder) == ("digits", TINY)
    rows = figures(folder)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [int(row["step"]) for row in rows] == [STEPS, 2 * STEPS]
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([1e-3, 1.0005e-3])
    assert [float(row["loss"]) for row in rows] == history["loss"]
    events = list((folder / "tensorboard").iterdir())
    assert events
    assert events[0].stat().st_size > 200


def test_the_best_model_is_ready_for_use(whole):
    folder, history = whole
    best = max(zip(history["average_accuracy"], np.negative(history["average_loss"]), strict=True))
    found = evaluate("digits", folder / "best.keras")
    assert (found.top1, -found.loss) == pytest.approx(best, abs=1e-6)
    classifier = Classifier(folder / "best.keras", engine="numpy")
    assert [label.name for label in classifier.labels] == list(digits.CLASSES)
    assert classifier.preprocessing == digits.PREPROCESSING
    for name in ("best", "last"):
        model = keras.saving.load_model(folder / f"{name}.keras")
        images = digits.load_digits()[1].images[:16]
        probabilities = model.predict(images, verbose=0)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
        assert model.drop_path_rate == TINY.drop_path_rate
    # The last model has the weights themselves, of which the snapshot is.
    arrays = end_of(folder).arrays
    numbers = sorted(int(k.removeprefix("model/")) for k in arrays if k.startswith("model/"))
    kept = [arrays[f"model/{i}"] for i in numbers]
    kept = [a for a in kept if a.dtype.kind == "f"]  # no seeds
    for a, b in zip(kept, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.thorough("a minute and a half; CI trains the demo to its accuracy")
@tensorflow_only
def test_the_digits_recipe_reaches_its_accuracy(tmp_path):
    """Of the last epoch, so that nothing was chosen on the test images."""
    history = train.train("digits", tmp_path / "run", RECIPES["digits"])
    print(f"top-1 {history['average_accuracy'][-1]:.4f}, weights {history['val_accuracy'][-1]:.4f}")
    assert history["average_accuracy"][-1] >= 0.985


@pytest.mark.slow
@tensorflow_only
def test_it_learns(tmp_path):
    recipe = TINY.with_(
        epochs=6,
        accumulation_steps=1,
        batch_size=32,
        drop_rate=0.0,
        drop_path_rate=0.0,
        learning_rate=1e-2,
        rand_augment=None,
        mixup=0.0,
        cutmix=0.0,
        erasing=0.0,
    )
    history = train.train("digits", tmp_path / "run", recipe)
    assert history["val_accuracy"][-1] > 0.8
    assert history["loss"][-1] < history["loss"][0]


# --- Nothing is lost ---


class Crash(Exception):  # noqa: N818 - it is none
    """Stands for whatever ends a process."""


def crash_after(monkeypatch, folder: Path, step: int, snapshots_at, recipe=TINY) -> None:
    """A run that ends after `step`, with snapshots at these steps only."""
    keep = callbacks.KeepSnapshots

    def on_train_batch_end(self, batch, logs=None, before=keep.on_train_batch_end):
        before(self, batch, logs)
        if self.position.step == step:
            raise Crash

    with monkeypatch.context() as patch:
        # A process that is gone takes nothing back.
        patch.setattr(train, "remove_all_but", lambda *_: None)
        patch.setattr(keep, "is_due", lambda self: self.position.step in snapshots_at)
        patch.setattr(keep, "on_train_batch_end", on_train_batch_end)
        with pytest.raises(Crash):
            train.train("digits", folder, recipe)


@pytest.mark.parametrize(
    ("step", "snapshots_at"),
    [
        pytest.param(
            12,
            (7, 11),
            id="in the first epoch, between two parts of an update",
            marks=pytest.mark.slow,
        ),
        pytest.param(30, (STEPS,), id="at the end of an epoch", marks=pytest.mark.slow),
        pytest.param(40, (5, 31), id="in the last epoch", marks=pytest.mark.slow),
        pytest.param(9, (), id="before the first snapshot", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_bit_for_bit(whole, step, snapshots_at, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    crash_after(monkeypatch, folder, step, snapshots_at)
    assert Snapshots(folder / "snapshots").steps() == sorted(snapshots_at)
    history = train.train("digits", folder, TINY, resume=True)
    assert end_of(folder).digest == end_of(whole[0]).digest
    assert history == whole[1]
    assert figures(folder) == figures(whole[0])
    assert {p.name for p in folder.iterdir()} == {p.name for p in whole[0].iterdir()}


@pytest.mark.slow
def test_a_damaged_snapshot_is_passed_over(whole, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    crash_after(monkeypatch, folder, 30, (25, 28))
    damaged = folder / "snapshots" / "step-000000028" / "arrays.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x55")
    train.train("digits", folder, TINY, resume=True, console=Console(width=200))
    said = capsys.readouterr().out
    assert "step-000000028" in said
    assert "Going on after step 25" in said
    assert end_of(folder).digest == end_of(whole[0]).digest


@pytest.mark.slow
def test_ctrl_c_keeps_the_step(whole, tmp_path, monkeypatch):
    folder = tmp_path / "run"

    def on_train_batch_end(self, batch, logs=None, before=callbacks.Watch.on_train_batch_end):
        before(self, batch, logs)
        if self.position.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Watch, "on_train_batch_end", on_train_batch_end)
        with pytest.raises(callbacks.Stopped):
            train.train("digits", folder, TINY)
    assert Snapshots(folder / "snapshots").steps()[-1] in (5, 6)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train.train("digits", folder, TINY, resume=True)
    assert end_of(folder).digest == end_of(whole[0]).digest


def state_of(folder: Path) -> dict:
    """Every file with its content and time, but for the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name[:5] != ".lock")
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_finished_run_is_left_alone_and_says_how_to_go_on(whole, capsys):
    before = state_of(whole[0])
    history = train.train("digits", whole[0], TINY, resume=True, console=Console(width=79))
    assert history == whole[1]
    assert state_of(whole[0]) == before
    said = capsys.readouterr().out
    assert "is finished: all 2 epochs are done" in said
    assert f"van train --resume {whole[0]} --epochs 4 --force" in said
    assert "Going on" not in said


def weights_of(path: Path) -> list[np.ndarray]:
    return keras.saving.load_model(path, compile=False).get_weights()


def test_what_a_finished_run_has_lost_is_made_again(whole, tmp_path, capsys):
    folder = shutil.copytree(whole[0], tmp_path / "run")
    # The best is the last epoch, whichever it was: else its weights could not be made again.
    best_is(folder, epoch=2)
    last = weights_of(folder / "last.keras")
    for name in ("augmented.png", "best.keras", "metrics.csv"):
        (folder / name).unlink()
    # As after a kill between the last snapshot and the report, in a run that was finished before
    # and made longer: these files are there, and older.
    (folder / ".reported").write_text(str(STEPS))
    (folder / "last.keras").write_bytes(b"old")
    (folder / "training_curves.png").write_bytes(b"old")
    (folder / "evaluation" / "per_class.csv").write_bytes(b"old")
    found = train.train("digits", folder, TINY, resume=True, console=Console(width=200))
    assert found == whole[1]
    assert figures(folder) == figures(whole[0])
    for now, then in zip(weights_of(folder / "last.keras"), last, strict=True):
        np.testing.assert_array_equal(now, then)
    # The best are the average's weights of the end, which had this loss.
    best = keras.saving.load_model(folder / "best.keras", compile=False)
    for images, labels in EvaluationBatches(open_data("digits")[1], best.preprocessing, 360):
        losses = -np.log(np.asarray(best.predict_on_batch(images))[range(360), labels])
    assert np.mean(losses) == pytest.approx(found["average_loss"][1], abs=1e-5)
    assert {p.name for p in folder.iterdir()} == {p.name for p in whole[0].iterdir()}
    for name in ("training_curves.png", ".reported"):
        assert (folder / name).read_bytes() == (whole[0] / name).read_bytes()
    with (folder / "evaluation" / "per_class.csv").open() as file:
        right = sum(int(row["right"]) for row in csv.DictReader(file))
    assert right / 360 == pytest.approx(found["average_accuracy"][1], abs=1e-5)
    assert (
        "Written again: augmented.png, best.keras, evaluation, last.keras, metrics.csv, "
        "training_curves.png." in capsys.readouterr().out
    )


def best_is(folder: Path, epoch: int) -> None:
    store = Snapshots(folder / "snapshots")
    end = store.load()
    records = end.state["callbacks"]["Records"]
    records["best"] = records["rows"][epoch - 1]
    store.save(end.step, end.arrays, end.state, end.clock)


def test_a_best_model_that_cannot_be_made_again_is_told(whole, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(whole[0], tmp_path / "run")
    (folder / "best.keras").unlink()
    best_is(folder, epoch=1)
    says = r"is finished: .* Its best.keras, of epoch 1, is gone and .* --epochs 4 --force"
    with pytest.raises(ValueError, match=says):
        train.train("digits", folder, TINY, resume=True)
    # As well before Keras starts.
    monkeypatch.setitem(sys.modules, train.__name__, None)
    with pytest.raises(SystemExit):
        main(["train", "--resume", str(folder)])
    assert "Its best.keras, of epoch 1, is gone" in capsys.readouterr().err


def test_how_a_run_has_ended(tmp_path):
    tmp_path = tmp_path / "my run"
    tmp_path.mkdir()
    for name in ("best.keras", "last.keras", "metrics.csv", "training_curves.png", "augmented.png"):
        (tmp_path / name).touch()
    (tmp_path / "evaluation").mkdir()
    recipe = TINY.with_(epochs=10, early_stopping=3)
    rows = [{"epoch": i + 1, "step": 22 * (i + 1)} for i in range(5)]

    def end(best, recipe=recipe, done=5):
        records = {"rows": rows[:done], "best": rows[best - 1] if best else {}}
        position = {"step": 22 * done, "steps_per_epoch": 22}
        return runs.ending(tmp_path, recipe, position, records)

    assert end(3) is None
    assert end(0, done=0) is None
    assert end(2).missing == ("evaluation", "last.keras", "training_curves.png")  # not reported
    runs.note_reported(tmp_path, 5 * 22)
    assert end(2).missing == ()
    assert "stopped after epoch 5, as the last 3 were no better. The best is of epoch 2" in str(
        end(2)
    )
    assert end(2).command == f"van train --resume '{tmp_path}' --early-stopping 6 --force"
    assert end(3, recipe.with_(epochs=5)).longer == "--epochs 10"
    (tmp_path / "best.keras").unlink()
    assert end(3) is None  # the best of what follows
    assert end(5, recipe.with_(epochs=5)).missing == ("best.keras",)
    for best, settings in ((2, recipe), (4, recipe.with_(epochs=5))):
        with pytest.raises(ValueError, match=f"Its best.keras, of epoch {best}, is gone"):
            end(best, settings)


def test_that_a_run_is_finished_is_known_before_keras_starts(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, train.__name__, None)
    before = state_of(whole[0])
    main(["train", "--resume", str(whole[0])])
    assert "is finished: all 2 epochs are done" in " ".join(capsys.readouterr().err.split())
    assert state_of(whole[0]) == before
    # Whatever may change that is for the run itself to look at.
    folder = shutil.copytree(whole[0], tmp_path / "run")
    (folder / "last.keras").unlink()
    others = tmp_path / "data"
    for i in range(200):
        path = others / str(i % 2) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    started = train.__name__  # which this test has taken away
    for arguments, says in (
        (
            ["--epochs", "3"],
            "otherwise:\n  epochs: 2 -> 3\nTo go on all the same: --force",
        ),
        (["--data", str(others)], f"the pictures of {others} are not those of the run"),
        (["--epochs", "3", "--force"], started),
        (["--data", str(others), "--force"], started),
        (["--resume", str(folder)], started),
    ):
        with pytest.raises(SystemExit):
            main(["train", "--resume", str(whole[0]), *arguments])
        assert says in capsys.readouterr().err


@pytest.mark.slow
def test_another_recipe_or_data_needs_force(whole, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "run")
    changed = TINY.with_(learning_rate=1e-3, seed=3, workers=1)
    with pytest.raises(
        ValueError, match=r"learning_rate: 0\.002 -> 0\.001\n  seed: 0 -> 3"
    ) as error:
        train.train("digits", folder, changed, resume=True)
    assert "--force" in str(error.value)
    assert "workers" not in str(error.value)
    assert runs.check_run(folder) == ("digits", TINY)  # as it was
    longer = TINY.with_(epochs=3)
    history = train.train("digits", folder, longer, resume=True, force=True)
    assert len(history["loss"]) == 3
    assert runs.check_run(folder) == ("digits", longer)
    for other, message in (
        (longer.with_(average_decay=None), "a run keeps its moving average"),
        (longer.with_(batch_size=64), "an epoch has 44 batches now, and had 22"),
        (longer.with_(embed_dims=(4, 12)), "of another model or optimizer"),
    ):
        with pytest.raises(ValueError, match=message):
            train.train("digits", folder, other, resume=True, force=True)
    assert runs.check_run(folder) == ("digits", longer)
    # Pictures that were not there: the fingerprint tells.
    pictures = tmp_path / "pictures"
    split = digits.load_digits()[0]
    for i in range(200):
        path = pictures / digits.CLASSES[split.labels[i]] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((split.pixels[i] * 15).astype(np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"the pictures of .* are not those of the run"):
        train.train(pictures, folder, longer, resume=True)


def test_a_second_trainer_is_refused(whole):
    with RunLock(whole[0]), pytest.raises(RunLockedError):
        train.train("digits", whole[0], TINY, resume=True)


# --- What goes wrong ---


@pytest.mark.usefixtures("eager")
def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    monkeypatch.setattr(callbacks.KeepSnapshots, "is_due", lambda self: True)
    recipe = TINY.with_(warmup_epochs=0, learning_rate=1e30, clip_norm=None)
    with pytest.raises(callbacks.TrainingError) as error:
        train.train("digits", folder, recipe)
    step = int(str(error.value).split("step ")[1].split(":")[0])
    kept = end_of(folder)
    assert 1 <= kept.step < step <= STEPS
    assert all(np.isfinite(a).all() for a in kept.arrays.values() if a.dtype.kind == "f")
    assert f"The snapshot of step {kept.step}" in str(error.value)
    assert f"--resume {folder}" in str(error.value)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_the_watch_alone_names_the_step(loss):
    """Whatever a snapshot, which is refused as well, would find."""
    position = callbacks.Position(100)
    watch = callbacks.Watch(position, 10)
    position.on_epoch_begin(0)
    watch.on_epoch_begin(0)
    for batch, value in enumerate((2.3, 2.2, loss)):
        position.on_train_batch_end(batch)
        if batch == 2:
            with pytest.raises(callbacks.TrainingError, match=f"step 3: the loss is {loss}"):
                watch.on_train_batch_end(batch, {"loss": value})
        else:
            watch.on_train_batch_end(batch, {"loss": value})


def test_a_loss_that_only_grows_ends_the_run():
    position = callbacks.Position(1000)
    watch = callbacks.Watch(position, 10)
    position.on_epoch_begin(0)
    watch.on_epoch_begin(0)
    mean, batch = 0.0, 0

    def go_on(loss, times):
        nonlocal mean, batch
        for _ in range(times):
            mean += (loss - mean) / (batch + 1)
            position.on_train_batch_end(batch)
            watch.on_train_batch_end(batch, {"loss": mean})
            batch += 1

    go_on(2.3, 100)
    go_on(200.0, 1)  # a single one is no reason
    go_on(2.3, 150)
    with pytest.raises(callbacks.TrainingError, match=r"step 2\d\d: .*guessing gives 2\.3"):
        go_on(40.0, 50)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": 3}, "`freeze` must be a number of stages, at most 2"),
        ({"batch_size": 4000}, "`batch_size` must be at most the number of pictures"),
        (
            {"devices": 64, "clip_norm": None, "accumulation_steps": 1},
            "`devices` must be at most",
        ),
        ({"steps_per_execution": 4, "average_decay": None}, "`steps_per_execution` must divide"),
        ({"min_learning_rate": 1.0}, "`min_learning_rate` must be"),
        ({"rand_augment": "rand-x"}, "rand-x"),
    ],
)
@tensorflow_only
def test_what_does_not_fit_leaves_nothing(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train.train("digits", tmp_path / "run", TINY.with_(**changes))
    assert not (tmp_path / "run").exists()


def test_an_output_that_is_there_is_not_touched(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"already there and not empty"):
        train.train("digits", tmp_path, TINY)
    with pytest.raises(ValueError, match=r"there is no config\.yaml in it"):
        train.train("digits", tmp_path, TINY, resume=True)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@tensorflow_only
def test_keras_distribution_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(keras.distribution, "distribution", lambda: "a distribution")
    with pytest.raises(ValueError, match="no effect on the TensorFlow backend"):
        train.train("digits", tmp_path / "run", TINY)


# --- Parts ---


@pytest.mark.slow
def test_a_head_of_other_classes_starts_anew():
    recipe = RECIPES["digits"].with_(pretrained="digits")
    same = build.build_model(recipe, digits.CLASSES)
    other = build.build_model(recipe.with_(head_scale=1e-3), tuple("abcdefghij"))
    kept = keras.ops.convert_to_numpy(same.get_layer("head").kernel)
    fresh = keras.ops.convert_to_numpy(other.get_layer("head").kernel)
    assert np.abs(kept).max() > 0.1
    assert 1e-5 < fresh.std() < 3e-5
    assert not keras.ops.convert_to_numpy(other.get_layer("head").bias).any()
    assert other.labels == tuple("abcdefghij")
    for layer in ("block4_0", "patch_embed1"):
        for a, b in zip(same.get_layer(layer).weights, other.get_layer(layer).weights, strict=True):
            np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (a, b)))
    assert same.preprocessing == digits.PREPROCESSING
    assert same.get_config()["classifier_activation"] == "linear"


def test_whether_the_head_is_kept_is_said(tmp_path):
    """And a name that the file has in another form of Unicode is the same name."""
    model = VAN(embed_dims=[8], mlp_ratios=[1], depths=[1], num_classes=2)
    model.labels = ["cafe\u0301", "tea"]
    model.save(tmp_path / "m.keras")
    source = open_pretrained(tmp_path / "m.keras")
    assert build.why_fresh(source, ("caf\u00e9", "tea")) == ""
    assert (
        build.why_fresh(source, ("tea", "caf\u00e9")) == "theirs has the classes in another order"
    )
    assert build.why_fresh(source, ("milk", "tea")) == "theirs is of other classes"
    assert build.why_fresh(source, ("a", "b", "c")) == "theirs is of 2 classes"
    unnamed = open_pretrained(GOLDEN / "micro.safetensors")
    assert build.why_fresh(unnamed, tuple("0123456789")) == "theirs names no classes"


def test_frozen_stages_have_nothing_to_train():
    recipe = RECIPES["digits"].with_(pretrained="digits", freeze=3, layer_decay=0.8)
    model = build.build_model(recipe, digits.CLASSES)
    trained = {v.path.split("/")[0] for v in model.trainable_variables}
    assert trained == {"patch_embed4", "block4_0", "norm4", "head"}
    build.make_optimizer(recipe, model).build(model.trainable_variables)
    with pytest.raises(ValueError, match="`input_size` must be at least 17 for this model"):
        build.build_model(recipe.with_(model=None, input_size=16), digits.CLASSES)
    head_only = build.build_model(recipe.with_(freeze=4), digits.CLASSES)
    assert len(head_only.trainable_variables) == 2


@pytest.mark.parametrize("told", [False, True])
def test_what_is_assumed_of_the_weights_is_said(tmp_path, told):
    """Not that the classes are, which are those of the data."""
    path = GOLDEN / "micro.safetensors"
    recipe, found = (
        RECIPES["finetune"].with_(model=None, pretrained=str(path), batch_size=16),
        open_data("digits"),
    )
    if told:
        recipe = recipe.with_(mean=(0.5,) * 3, std=(0.5,) * 3)
    console = Console(file=io.StringIO(), width=200)
    made = run.Run(tmp_path, "digits", recipe, *found, Workers(), console)
    report.introduce(made)
    said = console.file.getvalue()
    assert ("It does not say how its pictures are prepared" in said) is not told
    assert "No names of its classes" not in said
    assert f"{path}, a fresh head (theirs names no classes)" in said


def test_what_a_run_froze_is_free_in_what_it_leaves(tmp_path):
    recipe, found = TINY.with_(freeze=1), open_data("digits")
    made = run.Run(tmp_path, "digits", recipe, *found, Workers(), Console(quiet=True))
    assert "block1_0" not in {v.path.split("/")[0] for v in made.model.trainable_variables}
    made.refresh()
    left = keras.saving.load_model(tmp_path / "last.keras")
    assert all(layer.trainable for layer in left._flatten_layers())
    assert "parts" not in left.get_config()


def test_imagenets_folders_get_its_words():
    assert build.class_labels(("n01440764", "n02123045"))[1].endswith("tabby")
    assert build.class_labels(("n01440764", "cat")) == ("n01440764", "cat")


@pytest.mark.slow
@pytest.mark.parametrize("class_weight", [None, dict.fromkeys(range(10), 2.0)])
def test_the_readmes_lines_in_keras_own_words(class_weight):
    recipe = TINY.with_(accumulation_steps=1, batch_size=256)
    pictures, _ = open_data("digits")
    model = build.build_model(recipe, pictures.classes)
    model.compile(build.make_optimizer(recipe, model), build.make_loss(), metrics=["accuracy"])
    batches = build.make_batches(recipe, model, pictures)
    schedule = build.make_schedule(recipe)
    history = model.fit(
        build.make_dataset(batches, model),
        steps_per_epoch=batches.steps_per_epoch,
        epochs=recipe.total_epochs,
        shuffle=False,
        verbose=0,
        callbacks=[LearningRate(schedule)],
        class_weight=class_weight,
    )
    assert history.history["learning_rate"] == [schedule(0), schedule(1)]
    # Twice as much for every class: twice the loss of guessing at the least.
    expected = (1.5, 4) if class_weight is None else (3, 8)
    assert expected[0] < history.history["loss"][0] < expected[1]


def test_the_optimizer_is_the_recipes():
    recipe = TINY.with_(epsilon=1e-3, weight_decay=0.2)
    model = build.build_model(recipe, ("a", "b"))
    made = build.make_optimizer(recipe, model)
    assert (made.epsilon, made.weight_decay, made.global_clipnorm) == (1e-3, 0.2, 1.0)


def test_grey_and_rgb_without_weights():
    recipe = Recipe(model=None, embed_dims=(4,), mlp_ratios=(2,), depths=(1,))
    assert build.build_model(recipe, ("a", "b")).in_chans == 3
    grey = build.build_model(recipe.with_(mean=(0.4,), std=(0.3,)), ("a", "b"))
    assert grey.in_chans == 1
    assert grey.preprocessing.mean == (0.4,)


TWO_DEVICES = """
import sys
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from tests.train.test_train import TINY, Snapshots
from van_classification_tensorflow.train.train import train

alone = TINY.with_(epochs=1, accumulation_steps=1, clip_norm=None, drop_rate=0.0,
                   drop_path_rate=0.0, warmup_epochs=0, learning_rate=1e-5)
folder = sys.argv[1]
one = train("digits", folder + "/one", alone)
two = train("digits", folder + "/two", alone,
            strategy=tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
print(one, two)
# AdamW makes whole steps even of gradients that are rounding noise (biases before batch norm),
# hence the small rate; test_distribution.py compares gradients and weights.
for key in ("loss", "val_loss", "average_loss"):
    assert abs(one[key][0] - two[key][0]) <= 1e-5, (key, one[key], two[key])
more = alone.with_(epochs=2)
train("digits", folder + "/two", more, resume=True, force=True,
      strategy=tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
try:
    train("digits", folder + "/three", TINY,
          strategy=tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
except ValueError as error:
    assert "for one device" in str(error), error
else:
    raise AssertionError("accumulation on two devices")
"""


@pytest.mark.slow
@tensorflow_only
def test_two_devices_train_what_one_does(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", TWO_DEVICES, str(tmp_path)]
    child = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert child.returncode == 0, child.stderr[-3000:]


def test_early_stopping_and_going_on_after_it():
    position = callbacks.Position(1)
    records = callbacks.Records(Path(), position, 1, patience=2)
    records.rows = [{"epoch": i, "val_accuracy": 0.5} for i in range(1, 4)]
    records.best = records.rows[0]
    assert records.finished
    other = callbacks.Records(Path(), position, 1, patience=3)
    other.set_state(records.get_state())
    assert not other.finished


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"data": np.zeros(3)}, "`data` must be a path"),
        ({"output": None}, "`output` must be a path"),
        ({"recipe": {"epochs": 3}}, "`recipe` must be a `Recipe`"),
        ({"recipe": "digits"}, "`recipe` must be a `Recipe`"),
        ({"strategy": "mirrored"}, r"`strategy` must be one of `tf.distribute`"),
    ],
)
def test_wrong_arguments_are_refused_by_name(tmp_path, wrong, says):
    given = {"data": "digits", "output": tmp_path / "run", "recipe": TINY, **wrong}
    with pytest.raises(ValueError, match=f"{says}.*Received"):
        train.train(given.pop("data"), given.pop("output"), given.pop("recipe"), **given)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_here_are_opened_before_keras_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, train.__name__, None)
    (tmp_path / "broken.pth").write_text("no weights")
    for name, says in (
        (tmp_path / "broken.pth", "broken.pth was refused"),
        ("m.onnx", "--pretrained: m.onnx is an exported file"),
        (GOLDEN / "micro_hf", "micro_hf holds embed_dims [8, 16, 24, 32]"),
        (tmp_path / "none.pth", "none.pth: No such file"),
        ("nothing", "--pretrained: no such weights are published"),
    ):
        run = ["--data", "digits", "--output", str(tmp_path / "run"), "--model", "van_b0"]
        with pytest.raises(SystemExit):
            main(["train", *run, "--pretrained", str(name)])
        assert says in capsys.readouterr().err


def test_only_the_text_digits_means_the_bundled_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert runs.check_start("digits", tmp_path / "run", TINY, False)[0] == "digits"
    with pytest.raises(FileNotFoundError, match=f"Received: {tmp_path}/digits"):
        runs.check_start(Path("digits"), tmp_path / "run", TINY, False)


def test_an_output_inside_of_the_data_is_refused(tmp_path):
    for name in "ab":
        for i in range(3):
            path = tmp_path / "data" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20)).save(path)
    with pytest.raises(ValueError, match="lies inside of `data`"):
        train.train(tmp_path / "data", tmp_path / "data" / "run", Recipe())
    with pytest.raises(ValueError, match="start from published weights: --pretrained"):
        train.train(tmp_path / "data", tmp_path / "run", Recipe())


@pytest.mark.parametrize(
    ("target", "caption"),
    [
        ([0.95, 0.05], "a"),
        ([0.5, 0.5], "a 50% + b 50%"),
        ([0.05 + 0.9 * 0.35, 0.05 + 0.9 * 0.65], "b 65% + a 35%"),
    ],
)
def test_captions(target, caption):
    assert report.caption_of(np.array(target), 0.1, ("a", "b")) == caption
    long = report.caption_of(np.array(target), 0.1, ("a" * 20, "b" * 20))
    assert all(len(line) < 28 for line in long.split("\n"))


def test_no_epoch_of_a_fine_tuning_run_is_lost_to_the_warm_up():
    for epochs, rates in ((30, (1, 2, 3)), (8, (1, 2)), (2, (1,)), (1, ())):
        recipe = RECIPES["finetune"].with_(epochs=epochs)
        schedule = build.make_schedule(recipe)
        found = [schedule(epoch) for epoch in range(recipe.warmup_epochs)]
        assert found == pytest.approx([5e-4 * i / (len(rates) + 1) for i in rates])
        assert schedule(recipe.warmup_epochs) > max(found, default=0)
    # Whatever the rate that is asked for; the authors' start stays theirs.
    low = build.make_schedule(RECIPES["finetune"].with_(learning_rate=1e-5))
    assert low(0) < low(1) < low(2) < 1e-5
    assert build.make_schedule(RECIPES["imagenet"])(0) == 1e-6


@pytest.mark.slow
@tensorflow_only
def test_half_precision_goes_on_bit_for_bit(tmp_path, monkeypatch):
    recipe = TINY.with_(precision="mixed_float16")
    train.train("digits", tmp_path / "whole", recipe)
    crash_after(monkeypatch, tmp_path / "run", 12, (7,), recipe)
    train.train("digits", tmp_path / "run", recipe, resume=True)
    assert end_of(tmp_path / "run").digest == end_of(tmp_path / "whole").digest


# --- Classes of different sizes ---


def of_sizes(root, counts, size=20):
    """Class folders with so many pictures, of a grey for each class."""
    for c, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (size, size), (40 + 90 * c, i, 0)).save(root / name / f"{i}.png")
    return root


FEW = TINY.with_(
    mean=None, std=None, input_size=32, accumulation_steps=1, batch_size=8, epochs=2, mixup=0.0
).with_(cutmix=0.0)


def test_class_weights_are_those_of_the_textbook(tmp_path):
    data = of_sizes(tmp_path / "data", {"many": 40, "few": 4})
    found, _ = open_data(data, validation_split=0.25)
    counts = dict(zip(*np.unique(found.labels, return_counts=True), strict=True))
    assert counts == {0: 3, 1: 30}  # few, many
    recipe = FEW.with_(class_weights="balanced", label_smoothing=0.1)
    weights = build.class_weights(recipe, found)
    assert weights == pytest.approx((33 / (2 * 3), 33 / (2 * 30)))
    assert build.class_weights(FEW, found) is None
    model = build.build_model(recipe, found.classes)
    batches = build.make_batches(recipe, model, found)
    images, targets, of_each = next(batches.iterate())
    # Not of the smoothed targets, which would nearly even them out.
    np.testing.assert_allclose(of_each, np.array(weights)[targets.argmax(1)], rtol=1e-6)
    # What Keras makes of them: the mean over the batch of weight times cross-entropy.
    model.compile("sgd", build.make_loss())
    logits = keras.ops.convert_to_numpy(model(images, training=False)).astype(np.float64)
    log = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = np.mean(of_each * -(targets * log).sum(1))
    found_loss = model.test_on_batch(images, targets, sample_weight=of_each)
    assert float(np.ravel(found_loss)[0]) == pytest.approx(expected, rel=1e-5)


def test_mixed_pictures_weigh_the_mean_of_their_classes():
    from van_classification_tensorflow.train.augment import BatchTransform

    mix = BatchTransform(mixup=0.8, cutmix=0.0, label_smoothing=0.2, class_weights=(3.0, 0.5))
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 1, 1])
    _, targets, weights = mix(images, labels, 2, np.random.default_rng(5))
    shares = (targets - 0.2 / 2) / (1 - 0.2)
    assert 0.01 < shares[0, 0] < 0.99  # mixed, with the last
    np.testing.assert_allclose(weights, shares @ np.array([3.0, 0.5]), rtol=1e-5)


@pytest.mark.slow
@tensorflow_only
@pytest.mark.parametrize("field", ["class_weights", "sampling"])
def test_balanced_runs_go_on_bit_for_bit(field, tmp_path, monkeypatch):
    data = of_sizes(tmp_path / "data", {"few": 8, "many": 40})
    recipe = FEW.with_(**{field: "balanced"})
    train.train(data, tmp_path / "whole", recipe)
    folder = tmp_path / "run"
    keep = callbacks.KeepSnapshots

    def on_train_batch_end(self, batch, logs=None, before=keep.on_train_batch_end):
        before(self, batch, logs)
        if self.position.step == 6:
            raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(keep, "is_due", lambda self: self.position.step == 5)
        patch.setattr(keep, "on_train_batch_end", on_train_batch_end)
        with pytest.raises(Crash):
            train.train(data, folder, recipe)
    train.train(data, folder, recipe, resume=True)
    assert end_of(folder).digest == end_of(tmp_path / "whole").digest


# --- What is said ---


def shown(capsys, data, folder, recipe, **options) -> str:
    console = Console(width=80)
    train.train(data, folder, recipe, console=console, **options)
    return capsys.readouterr().out


@pytest.mark.slow
@tensorflow_only
def test_colours_not_seen_are_said_and_one_rate_is_shown(tmp_path, capsys):
    data = of_sizes(tmp_path / "data", {"few": 8, "many": 40})
    one = FEW.with_(epochs=1)
    said = shown(capsys, data, tmp_path / "one", one.with_(mean=(0.5,), std=(0.5,)))
    assert "read in grey" in said
    assert "in colour: --mean 0.5 0.5 0.5" in said
    assert "6 to 32 pictures; to even that out: --sampling balanced" in said
    # The same pictures a second on the screen and in the table.
    with (tmp_path / "one" / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    (line,) = [line for line in said.splitlines() if line.startswith("      1/1")]
    assert line.split()[-1] == row["images_per_second"]
    assert len(line) < 80
    said = shown(capsys, data, tmp_path / "colour", one)
    assert "read in colour" in said
    assert "grey" not in said


@tensorflow_only
def test_unreadable_pictures_are_named_at_once_and_leave_nothing_in_the_way(tmp_path):
    data = of_sizes(tmp_path / "data", {"a": 80, "b": 80})
    bad = [data / "a" / f"{i}.png" for i in range(0, 60, 4)]
    whole = [path.read_bytes() for path in bad]
    for path in bad:
        path.write_bytes(b"no picture")
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match="15 of 160 pictures cannot be read") as caught:
        train.train(data, folder, FEW)
    assert all(f"\n  {path}: " in str(caught.value) for path in bad)
    assert not [path for path in folder.iterdir() if not path.name.startswith(".")]
    for path, content in zip(bad, whole, strict=True):
        path.write_bytes(content)
    little = FEW.with_(epochs=1, batch_size=64, embed_dims=(4,), mlp_ratios=(2,), depths=(1,))
    train.train(data, folder, little)
    assert (folder / "best.keras").exists()


def test_a_failed_start_takes_back_only_its_own(tmp_path, monkeypatch):
    (tmp_path / ".mine").write_text("mine")
    monkeypatch.setattr(train, "draw_samples", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.train("digits", tmp_path, TINY)
    assert {path.name for path in tmp_path.iterdir()} <= {".mine", ".lock"}
    assert (tmp_path / ".mine").read_text() == "mine"


@pytest.mark.slow
@tensorflow_only
def test_names_of_any_bytes_are_trained_on(tmp_path):
    names = {os.fsdecode(b"caf\xe9"): 8, "[red]牡丹$x$": 8}
    data = of_sizes(tmp_path / os.fsdecode(b"d\xe9"), names)
    folder = tmp_path / os.fsdecode(b"run\xe9")
    train.train(data, folder, FEW.with_(epochs=1), console=Console(width=80, quiet=True))
    assert runs.check_run(folder)[0] == str(data)
    labels = [label.name for label in Classifier(folder / "best.keras").labels]
    assert labels == ["[red]牡丹$x$", r"caf\udce9"]
