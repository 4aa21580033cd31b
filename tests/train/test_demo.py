import json

import keras
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from van_classification_tensorflow import VAN
from van_classification_tensorflow.datasets import digits
from van_classification_tensorflow.model.load import to_official
from van_classification_tensorflow.train import demo
from van_classification_tensorflow.train.request import DemoRequest

FILES = {
    "model.keras",
    "metrics.json",
    "training_curves.png",
    "confusion_matrix.png",
    "predictions.png",
}


@pytest.mark.slow
def test_one_epoch_leaves_everything_and_repeats_itself(tmp_path):
    quiet = Console(quiet=True)
    for name in "ab":
        demo.run(DemoRequest(output=tmp_path / name, seed=3, epochs=1), quiet, quiet)
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in "ab"]
    assert {path.name for path in (tmp_path / "a").iterdir()} == FILES
    stored = metrics[0]
    for name in FILES:
        if name.endswith(".png"):
            with Image.open(tmp_path / "a" / name) as picture:
                assert min(picture.size) > 300
                assert len(np.unique(np.asarray(picture.convert("L")))) > 20, "an empty picture"

    # The saved model is the one that was measured.
    model = keras.saving.load_model(tmp_path / "a" / "model.keras")
    assert type(model) is VAN
    _, test = digits.load_digits()
    predicted = model.predict(test.images, batch_size=360, verbose=0).argmax(axis=1)
    assert (predicted == test.labels).mean() == stored["test_top1"]
    assert 0.1 < stored["test_top1"] <= stored["test_top5"] <= 1

    # The same seed gives the same run.
    again = keras.saving.load_model(tmp_path / "b" / "model.keras")
    for name, array in to_official(again).items():
        np.testing.assert_allclose(array, to_official(model)[name], atol=1e-5, err_msg=name)
    assert metrics[0]["history"]["loss"] == pytest.approx(metrics[1]["history"]["loss"], rel=1e-4)

    # Nothing is replaced unasked.
    before = (tmp_path / "a" / "metrics.json").read_bytes()
    with pytest.raises(FileExistsError, match="already there; to replace it: --overwrite"):
        DemoRequest(output=tmp_path / "a", epochs=1)
    (tmp_path / "a" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds what no demo wrote \(mine.txt\)"):
        DemoRequest(output=tmp_path / "a", epochs=1, overwrite=True)
    assert (tmp_path / "a" / "metrics.json").read_bytes() == before


@pytest.mark.parametrize("name", ["seed", "epochs"])
def test_wrong_numbers_are_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least"):
        DemoRequest(output=tmp_path / "out", **{name: -1})
    assert not (tmp_path / "out").exists()
