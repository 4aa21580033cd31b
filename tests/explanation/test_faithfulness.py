"""Deletion and insertion beside RISE's own evaluation on the authors' code."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.parity import GOLDEN
from van_classification_tensorflow.datasets.digits import MODEL, load_digits
from van_classification_tensorflow.engines.numpy_forward import forward
from van_classification_tensorflow.explanation.faithfulness import area, blurred, curve, order_of
from van_classification_tensorflow.spec.architecture import Architecture
from van_classification_tensorflow.spec.scores import probabilities


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "explain_digits.npz") as file:
        return {key: file[key] for key in file.files}


@pytest.fixture(scope="module")
def images(golden):
    return load_digits()[1][0][golden["index"]].astype(np.float32)


@pytest.fixture(scope="module")
def score(golden):
    tensors = load_file(GOLDEN / "digits.safetensors")
    hidden = tuple(4 * one for one in MODEL["embed_dims"])
    sizes = Architecture(tuple(MODEL["embed_dims"]), hidden, tuple(MODEL["depths"]), 1, 10)

    def of(index):
        return lambda x: probabilities(forward(tensors, sizes, x)[1], "softmax")[:, index]

    return of


@pytest.mark.parametrize(
    ("which", "kind"),
    [
        *(
            (which, kind)
            for which in ("saliency", "smoothgrad", "random")
            for kind in ("del", "ins")
        ),
        ("saliency", "del_background"),
    ],
)
def test_curves(golden, images, score, which, kind):
    for i, image in enumerate(images):
        empty = np.full_like(image, -1 if kind == "del_background" else 0)
        start, end = (blurred(image), image) if kind == "ins" else (image, empty)
        order = golden[f"causal/{which}/order"][i]
        found = curve(score(golden["causal/explained_class"][i]), start, end, order, 32)
        assert np.abs(found - golden[f"causal/{which}/{kind}_scores"][i]).max() < 1e-4
        assert area(found) == pytest.approx(golden[f"causal/{which}/{kind}_auc"][i], abs=1e-4)


def test_order_and_blur(golden, images):
    for found, map in zip(
        golden["causal/saliency/order"], golden["causal/saliency_map"], strict=True
    ):
        values = map.reshape(-1)
        assert (values[order_of(map)] == values[found]).all()
    for i in range(2):
        assert np.abs(blurred(images[i]) - golden["causal/blurred"][i]).max() < 1e-5


def test_messages(images):
    with pytest.raises(ValueError, match="`step` must be an integer >= 1"):
        curve(len, images[0], images[1], np.arange(1024), 0)
    with pytest.raises(ValueError, match="each of the 1024 pixels once"):
        curve(len, images[0], images[1], np.zeros(1024, int), 32)
