"""Files written when all modules lay flat beside each other (commit 3fb521c) are still read.

`golden/before_packages`: a VAN of two stages with labels and a preprocessing of its own, fused, as
a backbone under a head, exported to ONNX; and a run of `van train` stopped after its third step.
"""

import json
import shutil

import keras
import numpy as np
import pytest
from PIL import Image

from tests.parity import GOLDEN
from van_classification_tensorflow import VAN, Classifier, Preprocessing
from van_classification_tensorflow.train.recipe import RECIPES
from van_classification_tensorflow.train.snapshots import Snapshots
from van_classification_tensorflow.train.train import train

BEFORE = GOLDEN / "before_packages"
OUTPUTS = json.loads((BEFORE / "outputs.json").read_text())
PICTURE = Image.fromarray(
    np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)[0]
)
OWN = Preprocessing(32, 0.9, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


def answers(classifier):
    return [p.probability for p in sorted(classifier(PICTURE, top=3), key=lambda p: p.index)]


@pytest.mark.parametrize("engine", ["numpy", "keras"])
@pytest.mark.parametrize(("name", "preprocessing"), [("van", OWN), ("head", Preprocessing(32))])
def test_keras_files(name, preprocessing, engine):
    classifier = Classifier(BEFORE / f"{name}.keras", engine=engine)
    assert [label.name for label in classifier.labels] == ["a", "b", "c"]
    assert classifier.preprocessing == preprocessing
    assert not classifier.notes
    np.testing.assert_allclose(answers(classifier), OUTPUTS[name], atol=1e-6)


def test_by_keras_itself():
    found = keras.saving.load_model(BEFORE / "van.keras")
    assert type(found) is VAN
    assert found.labels == ("a", "b", "c")
    for name, expected in (("van", OUTPUTS["van"]), ("fused", OUTPUTS["van"])):
        classifier = Classifier(keras.saving.load_model(BEFORE / f"{name}.keras"))
        np.testing.assert_allclose(answers(classifier), expected, atol=1e-5)


def test_an_exported_file():
    pytest.importorskip("onnxruntime")
    classifier = Classifier(BEFORE / "van.onnx")
    assert classifier.runtime.about.preprocessing == OWN
    np.testing.assert_allclose(answers(classifier), OUTPUTS["van"], atol=1e-5)


@pytest.mark.slow
def test_a_run_goes_on(tmp_path):
    shutil.copytree(BEFORE / "run", tmp_path / "run")
    recipe = RECIPES["digits"].with_(
        embed_dims=(4, 8),
        mlp_ratios=(2, 2),
        depths=(1, 1),
        epochs=2,
        warmup_epochs=1,
        batch_size=512,
        average_decay=0.9,
        snapshot_seconds=0,
    )
    history = train("digits", tmp_path / "run", recipe, resume=True)
    assert len(history["loss"]) == 2
    assert Snapshots(tmp_path / "run" / "snapshots").load().step == 4
