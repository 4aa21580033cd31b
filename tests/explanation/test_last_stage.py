"""Maps without a framework: the same as by pytorch-grad-cam, and as by Keras."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.parity import GOLDEN, MICRO, seeded_images, seeded_tensor
from van_classification_tensorflow import Classifier, Preprocessing
from van_classification_tensorflow.datasets.digits import load_digits
from van_classification_tensorflow.explanation.last_stage import LAST_STAGE_METHODS, LastStage
from van_classification_tensorflow.explanation.numpy_tail import Tail

TOLERANCE = 1e-4
THEIRS = {
    "grad-cam": "gradcam",
    "grad-cam++": "gradcampp",
    "hires-cam": "hirescam",
    "layer-cam": "layercam",
    "eigen-cam": "eigencam",
}


def off(found, expected) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12))


@pytest.fixture(scope="module")
def digits():
    """(explainer, its golden file, the pictures): the last stage with several positions is the 3rd.

    Its gradient has come through the whole of stage 4.
    """
    _, test = load_digits()
    with np.load(GOLDEN / "explain_digits.npz") as file:
        golden = {key: file[key] for key in file.files}
    classifier = Classifier(GOLDEN / "digits.safetensors", preprocessing=_grey(32))
    return LastStage(classifier), golden, test[0][golden["index"]].astype(np.float32)


def _grey(side: int) -> Preprocessing:
    return Preprocessing(side, 1.0, mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize("method", LAST_STAGE_METHODS)
def test_as_pytorch_grad_cam_on_the_authors_code(digits, method):
    explainer, golden, images = digits
    assert explainer.stage == 3
    found = explainer(images, golden["targets"], method)
    layer = "norm3" if method == "hires-cam" else "block3"
    assert found.layer == (layer if method == "hires-cam" else "block3_1")
    expected = golden[f"{THEIRS[method]}/{layer}/raw"]
    raw = found.raw
    if method == "eigen-cam":  # whose sign is anyone's
        sign = np.sign((raw * expected).sum(axis=(1, 2), keepdims=True))
        raw = np.where(sign < 0, -raw, raw)
    assert off(raw, expected) < (1e-3 if method == "grad-cam++" else TOLERANCE)
    assert off(found.logits, golden["logits"]) < TOLERANCE


def test_the_class_it_is_taken_for(digits):
    explainer, golden, images = digits
    found = explainer(images)
    assert list(found.class_index) == list(golden["logits"].argmax(axis=1))
    same = explainer(images, found.class_index)
    assert np.array_equal(found.maps, same.maps)
    assert found.maps.dtype == np.float32
    assert found.maps.min() == 0
    assert found.maps.max() <= 1
    assert explainer(images[:1], 3).maps.shape == (1, 2, 2)


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_gradient_beside_differences(stage):
    """From any stage on, of the micro model; in float64, where differences are exact enough."""
    names = {}
    from van_classification_tensorflow.spec.architecture import Architecture

    sizes = Architecture((8, 16, 24, 32), (32, 64, 48, 64), (1, 1, 2, 1), 3, 10)
    for name, tensor in sizes.tensors().items():
        names[name] = seeded_tensor(name, tensor.shape)
    tail = Tail(names, sizes, stage)
    side = 32 >> (stage + 1)
    x = seeded_images(stage, (1, max(side, 1), max(side, 1) + 1, sizes.embed_dims[stage - 1]))
    normed, back_norm = tail.norm(x)
    logits, back = tail.after_norm(normed)
    wanted = seeded_images(5, logits.shape)
    gradient = back_norm(back(wanted))
    direction = seeded_images(6, x.shape)
    step = np.float32(1e-2)

    def score(at):
        return float((tail.after_norm(tail.norm(at)[0])[0].astype(np.float64) * wanted).sum())

    along = (score(x + step * direction) - score(x - step * direction)) / (2 * float(step))
    assert along == pytest.approx(float((gradient * direction).sum()), rel=2e-3, abs=2e-3)


def test_what_cannot_be_explained(digits, tmp_path):
    explainer, _, images = digits
    with pytest.raises(ValueError, match=r"`class_index` .* from 0 to 9.*Received: class_index=10"):
        explainer(images, 10)
    with pytest.raises(ValueError, match="each of the 4 pictures"):
        explainer(images, [1, 2])
    with pytest.raises(ValueError, match="`method` must be one of"):
        explainer(images, 1, "lka")
    bare = {name: seeded_tensor(name, shape) for name, shape in _shapes().items()}
    save_file(bare, tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="no head"):
        LastStage(Classifier(tmp_path / "bare.safetensors"))


def _shapes():
    from van_classification_tensorflow.spec.architecture import Architecture

    hidden = tuple(
        int(a * b) for a, b in zip(MICRO["embed_dims"], MICRO["mlp_ratios"], strict=True)
    )
    sizes = Architecture(tuple(MICRO["embed_dims"]), hidden, tuple(MICRO["depths"]), 3, None)
    return {name: tensor.shape for name, tensor in sizes.tensors().items()}
