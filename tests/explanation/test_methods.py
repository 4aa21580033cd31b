"""Every method beside pytorch-grad-cam and captum on the authors' code.

Golden: maps before ReLU (`raw`) and final ones (`map`, `map_sub`) of every layer and picture.
`block3` is the last block of stage 3, `norm3` the layer norm behind it.
"""

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.parity import GOLDEN, MICRO, seeded_images
from van_classification_tensorflow import VAN, load_checkpoint
from van_classification_tensorflow.datasets.digits import MODEL, load_digits
from van_classification_tensorflow.explanation import methods
from van_classification_tensorflow.explanation.explain import Explainer

METHODS = {
    "gradcam": "grad-cam",
    "hirescam": "hires-cam",
    "layercam": "layer-cam",
    "gradcampp": "grad-cam++",
    "eigencam": "eigen-cam",
    "scorecam": "score-cam",
}
TOLERANCE = 1e-4  # in parts of the largest value of what is compared
# Its weights are quotients of nearly equal numbers: the golden ones themselves are known to 7e-5
# of a run in float64.
TOLERANCES = {"grad-cam++": 1e-3}


class Case:
    """A golden file, its model and its pictures."""

    def __init__(self, name: str):
        self.name = name
        with np.load(GOLDEN / f"explain_{name}.npz") as file:
            self.golden = {key: file[key] for key in file.files}
        sizes = MICRO if name == "micro" else MODEL
        self.model = VAN(**sizes, classifier_activation=None)
        load_checkpoint(self.model, load_file(GOLDEN / f"{name}.safetensors"))
        if name == "micro":
            self.images = seeded_images(int(self.golden["x_seed"]), (4, 64, 96, 3))
        else:
            _, test = load_digits()
            self.images = test[0][self.golden["index"]]
        self.depths = sizes["depths"]
        self.classes = self.golden["targets"]
        self.explainer = Explainer.of(self.model)

    def layer(self, golden: str) -> str:
        """Our name of one of the golden file's."""
        if golden.startswith("norm"):
            return golden
        stage = int(golden.removeprefix("block"))
        return f"block{stage}_{self.depths[stage - 1] - 1}"

    def at(self, method: str, layer: str):
        return self.explainer(self.images, self.classes, method, self.layer(layer))


@pytest.fixture(scope="module", params=["micro", pytest.param("digits", marks=pytest.mark.slow)])
def case(request) -> Case:
    return Case(request.param)


def off(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, in parts of the largest value."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12))


def layers_of(case: Case, theirs: str) -> list[str]:
    """The golden file's layers of one of its methods."""
    keys = (key.split("/") for key in case.golden if key.endswith("/raw"))
    return [layer for method, layer, _ in keys if method == theirs]


@pytest.mark.parametrize("theirs", METHODS)
def test_logits_and_raw_and_final_maps_of_every_method_layer_and_picture(case, theirs):
    method, golden, layers = METHODS[theirs], case.golden, layers_of(case, theirs)
    assert len(layers) == sum(
        key.startswith(f"{theirs}/block") or key.startswith(f"{theirs}/norm")
        for key in golden
        if key.endswith("/map_sub") and "+" not in key
    )
    # All layers in one pass, the same ones for all gradients: to compile it takes the longest.
    every = layers if theirs in ("eigencam", "scorecam") else [f"block{i}" for i in (1, 2, 3, 4)]
    every = every if every is layers else every + [f"norm{i}" for i in (1, 2, 3, 4)]
    names = [case.layer(one) for one in every]
    found = case.explainer.at_each(case.images, case.classes, method, names)
    tolerance = TOLERANCES.get(method, TOLERANCE)
    for layer in layers:
        one, expected = found[every.index(layer)], golden[f"{theirs}/{layer}/raw"]
        assert off(one.logits, golden["logits"]) < TOLERANCE
        assert list(one.class_index) == list(case.classes)
        raw = one.raw
        if method == "eigen-cam":  # whose sign is anyone's
            sign = np.sign((raw * expected).sum(axis=(1, 2), keepdims=True))
            raw = np.where(sign < 0, -raw, raw)
        assert off(raw, expected) < tolerance, layer
        step = 4 if case.name == "micro" else 2
        final = methods.together([raw], case.images.shape[1:3])
        assert off(final[:, ::step, ::step], golden[f"{theirs}/{layer}/map_sub"]) < tolerance
        if f"{theirs}/{layer}/map" in golden:
            assert off(final, golden[f"{theirs}/{layer}/map"]) < tolerance
        assert off(methods.to_unit(one.raw), one.maps) == 0


@pytest.mark.parametrize("case", ["micro"], indirect=True)
def test_several_layers_together_compiled(case):
    layers = [case.layer(f"block{i}") for i in (1, 2, 3)]
    found = case.explainer(case.images, case.classes, "grad-cam", layers)
    step = 4 if case.name == "micro" else 2
    expected = case.golden["gradcam/block1+2+3/map_sub"]
    assert off(found.maps[:, ::step, ::step], expected) < TOLERANCE
    assert found.raw is None


def test_what_is_zero_but_for_rounding_is_zero_and_says_why(case):
    empty = [key for key in case.golden if key.endswith("/degenerate_max_abs")]
    assert len(empty) == (4 if case.name == "micro" else 5)
    for key in empty:
        theirs, layer, _ = key.split("/")
        found = case.at(METHODS[theirs], layer)
        assert not found.raw.any(), key
        assert found.empty.all()
        assert "norm" in found.reason() or "single position" in found.reason()


def test_gates_of_the_large_kernel_attention(case):
    gates = {key[5:].replace(".", "_"): key for key in case.golden if key.startswith("gate/")}
    assert list(gates) == case.explainer.blocks()
    every = case.explainer.at_each(case.images, case.classes, "lka", list(gates))
    layers = [case.model.get_layer(one).attn.spatial_gating_unit.conv1 for one in gates]
    whole = case.explainer.differentiated(*layers)(case.images, case.classes, back=False)
    for found, activation, key in zip(every, whole.activations, gates.values(), strict=True):
        expected = case.golden[key]
        assert off(activation[:2], expected) < TOLERANCE, key
        assert off(found.raw[:2], np.abs(expected).mean(axis=-1)) < TOLERANCE, key


@pytest.fixture
def pixels(case):
    """(pictures, classes, `(golden key) -> (found -> what is stored)`)."""
    # Of micro the file holds the first picture, every second pixel.
    few = slice(0, 1) if case.name == "micro" else slice(None)

    def stored(name: str, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = found[few]
        if f"pix/{name}_sub" in case.golden:
            return found[:, ::2, ::2], case.golden[f"pix/{name}_sub"]
        return found, case.golden[f"pix/{name}"]

    return stored


def test_saliency_and_smooth_grad(case, pixels):
    run = case.explainer.differentiated()
    found, expected = pixels("saliency", np.abs(run(case.images, case.classes).gradients[0]))
    assert off(found, expected) < TOLERANCE

    two = slice(0, 2) if case.name == "micro" else slice(None)
    images, sigma = case.images[two], 0.3 if case.name == "micro" else 0.2
    rng = np.random.Generator(np.random.PCG64(int(case.golden["pix/noise_seed"])))
    added = sigma * rng.standard_normal((8, *images.shape))
    smooth = case.explainer.smooth_grad(images, case.classes[two], added)
    found, expected = pixels("smoothgrad_abs", smooth)
    assert off(found, expected) < TOLERANCE


def test_integrated_gradients_are_complete_compiled(case, pixels):
    found = case.explainer.integrated_gradients(case.images, case.classes, 32)
    ours, expected = pixels("ig_gausslegendre", found)
    assert off(ours, expected) < TOLERANCE
    each = np.arange(len(case.images)), case.classes
    logits = case.explainer.differentiated()(case.images, case.classes).logits[each]
    zero = np.zeros_like(case.images)
    without = case.explainer.differentiated()(zero, case.classes).logits[each]
    left = found.sum(axis=(1, 2, 3)) - (logits - without)
    expected = case.golden["pix/ig_gausslegendre_delta"]
    assert np.abs(left[: len(expected)] - expected).max() < 1e-3


@pytest.mark.parametrize("case", ["micro"], indirect=True)
def test_a_picture_alone_has_the_map_that_it_has_among_others_compiled(case):
    """On PyTorch the gradient of a batch of one is its own trap (see the golden README)."""
    names = [case.layer("block2"), case.layer("block1")]
    for method in ("grad-cam", "layer-cam"):
        together = case.explainer.at_each(case.images, case.classes, method, names)
        for i in range(len(case.images)):
            one = slice(i, i + 1)
            alone = case.explainer.at_each(case.images[one], case.classes[one], method, names)
            for found, expected in zip(alone, together, strict=True):
                assert off(found.raw, expected.raw[one]) < TOLERANCE
    run = case.explainer.differentiated()
    together = run(case.images, case.classes).gradients[0]
    alone = run(case.images[:1], case.classes[:1]).gradients[0]
    assert off(alone, together[:1]) < TOLERANCE
