"""The folding in NumPy: names and shapes, and one block against its definition in float64."""

import math

import numpy as np
import pytest

from van_classification_tensorflow.spec.architecture import Architecture
from van_classification_tensorflow.weights.fold import fold

SIZES = Architecture((4, 6), (8, 12), (1, 2), 3, 5)


@pytest.fixture
def tensors():
    """Every statistic far from where folding would be trivial."""
    rng = np.random.default_rng(3)
    made = {}
    for name, spec in SIZES.tensors().items():
        positive = name.endswith("running_var")
        values = rng.uniform(0.01, 9, spec.shape) if positive else rng.normal(0, 1, spec.shape)
        made[name] = values.astype(np.float32)
    return made


def test_names_and_shapes(tensors):
    folded = fold(tensors)
    left = {n for n in tensors if ".norm" not in n and ".layer_scale" not in n}
    added = {f"block{i}.{j}.attn.shortcut" for i, j in ((1, 0), (2, 0), (2, 1))}
    assert set(folded) == left | added
    for name in left:
        assert folded[name].shape == tensors[name].shape
        assert folded[name].dtype == np.float32
    assert folded["block2.1.attn.shortcut"].shape == (6,)


def test_only_the_neighbours_of_an_affine_change(tensors):
    folded = fold(tensors)
    changed = {n for n in folded if n in tensors and not np.array_equal(folded[n], tensors[n])}
    parts = {n.rsplit(".", 1)[0].split(".", 2)[-1] for n in changed}
    assert parts == {"proj", "attn.proj_1", "attn.proj_2", "mlp.fc1", "mlp.fc2"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_its_input_is_left_alone(tensors, dtype):
    tensors = {name: array.astype(dtype) for name, array in tensors.items()}
    before = {name: array.copy() for name, array in tensors.items()}
    fold(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(array, before[name])


def _linear(t, name, x):
    return x @ t[f"{name}.weight"][:, :, 0, 0].T + t[f"{name}.bias"]


def _norm(t, name, x):
    deviation = np.sqrt(t[f"{name}.running_var"] + 1e-5)
    scaled = (x - t[f"{name}.running_mean"]) / deviation
    return scaled * t[f"{name}.weight"] + t[f"{name}.bias"]


def _some(x):
    """Stands for all that lies between two convolutions and is not touched."""
    return np.tanh(x) * x


def test_a_block_by_its_definition(tensors):
    tensors = {name: array.astype(np.float64) for name, array in tensors.items()}
    t, f = (
        {n.removeprefix("block2.1."): a for n, a in found.items() if n.startswith("block2.1.")}
        for found in (tensors, fold(tensors))
    )
    x = np.random.default_rng(4).normal(0, 3, (50, 6))

    n = _norm(t, "norm1", x)
    y = x + t["layer_scale_1"] * (
        _linear(t, "attn.proj_2", _some(_linear(t, "attn.proj_1", n))) + n
    )
    hidden = _some(_linear(t, "mlp.fc1", _norm(t, "norm2", y)))
    z = y + t["layer_scale_2"] * _linear(t, "mlp.fc2", hidden)

    y = f["attn.shortcut"] * x + _linear(f, "attn.proj_2", _some(_linear(f, "attn.proj_1", x)))
    folded = y + _linear(f, "mlp.fc2", _some(_linear(f, "mlp.fc1", y)))
    assert abs(folded - z).max() <= 2e-6 * abs(z).max()  # the tensors come rounded to float32


def test_a_patch_embedding_by_its_definition(tensors):
    f = fold(tensors)
    x = np.random.default_rng(5).normal(0, 3, (50, math.prod((3, 7, 7))))
    plain = x @ tensors["patch_embed1.proj.weight"].reshape(4, -1).T
    plain = _norm(tensors, "patch_embed1.norm", plain + tensors["patch_embed1.proj.bias"])
    folded = x @ f["patch_embed1.proj.weight"].reshape(4, -1).T + f["patch_embed1.proj.bias"]
    assert abs(folded - plain).max() <= 2e-6 * abs(plain).max()
