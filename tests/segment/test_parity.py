"""The decoders against mmsegmentation's code, map by map, in inference and in training.

Backend-agnostic: CI runs it again under `KERAS_BACKEND=jax` and `KERAS_BACKEND=torch`.
"""

import re

import keras
import numpy as np
import pytest

from tests.parity import computed
from tests.segment.golden import (
    B0_SEGMENTERS,
    INPUTS,
    MICRO_SEGMENTERS,
    channels_first,
    golden,
    images,
    micro,
    relative,
    seeded,
)
from van_classification_tensorflow import VANSegmenter
from van_classification_tensorflow.segment.hamburger import nmf
from van_classification_tensorflow.segment.load import tensors_of
from van_classification_tensorflow.segment.losses import SegmentationCrossEntropy
from van_classification_tensorflow.segment.resize import resize_bilinear

# Of the largest value of a map: one and two threads of torch differ by 4e-7 of it already.
MAPS = 1e-5
LAYERS = {
    "upernet": {
        "psp_concat": "psp_concat",
        "psp": "psp",
        "feats": "fpn_bottleneck",
        **{
            f"{kind}_{k}": f"{kind}_{k}"
            for kind in ("lateral", "topdown", "fpn")
            for k in (0, 1, 2)
        },
        **{f"ppm_{k}": f"ppm_{k}" for k in range(4)},
    },
    "fpn": {
        "neck_topdown_3": "neck_lateral_3",
        "feats": "scale_sum",
        **{f"{kind}_{k}": f"{kind}_{k}" for kind in ("neck_lateral", "neck") for k in range(4)},
        **{f"neck_topdown_{k}": f"neck_topdown_{k}" for k in range(3)},
        **{f"scale_head_{k}": f"scale_upsample_{k}_{k - 1}" for k in (1, 2, 3)},
        "scale_head_0": "scale_0_0",
    },
    "ham": {
        "concat": "ham_concat",
        "squeeze": "squeeze",
        "ham_in": "ham_in",
        "ham_input": "ham_input",
        "ham_output": "ham",
        "ham_out": "ham_out",
        "hamburger": "hamburger",
        "feats": "align",
    },
}


def everything(model, name):
    """The model with every map that the golden data has as an output."""
    outputs = model.output if isinstance(model.output, list) else [model.output]
    named = dict(zip(("logits", "aux_logits"), outputs, strict=False))
    named |= {f"mid_{what}": model.get_layer(it).output for what, it in LAYERS[name].items()}
    named |= {f"stage{i}": model.get_layer(f"norm{i}").output for i in (1, 2, 3, 4)}
    return keras.Model(model.input, named)


def set_bases(model, bases):
    if bases is not None:
        model.get_layer("ham").bases = bases


@pytest.mark.parametrize("name", MICRO_SEGMENTERS)
def test_micro_every_map(name):
    expected, model = golden(f"{name}_micro"), micro(name)
    inside = everything(model, name)
    compared = set()
    for key in INPUTS:
        set_bases(model, expected.get(f"{key}_bases"))
        ours = {k: channels_first(v) for k, v in inside(images("micro", key)).items()}
        logits = resize_bilinear(np.moveaxis(ours["logits"], 1, -1), INPUTS[key][1:3])
        resized = channels_first(logits)
        step = 4 if key == "a" else 2
        ours["logits_resized_sub"] = resized[:, :, ::step, ::step]
        if key == "b":
            same = (resized.argmax(1) == expected["b_pred"]).mean()
            assert same == 1
        for what, value in ours.items():
            for wanted, found in ((f"{key}_{what}", value), (f"{key}_{what}_ch4", value[:, ::4])):
                if wanted in expected:
                    assert relative(found, expected[wanted]) <= MAPS, wanted
                    compared.add(wanted)
    # Nothing in the file may go uncompared.
    maps = {k for k in expected if re.match("[ab]_(logits|aux|mid|stage)", k)}
    assert compared == {k for k in maps if "lneps" not in k}


@pytest.mark.slow
def test_the_other_epsilon_of_the_stages():
    """No weight file says it: each decoder has the one that it was trained with."""
    expected = golden("upernet_micro")
    logits, _ = micro("upernet", norm_epsilon=1e-6)(images("micro", "b"))
    other, wanted = expected["b_logits"], expected["b_logits_lneps1e-06"]
    assert relative(channels_first(logits), wanted) <= 3e-6
    assert relative(other, wanted) > 9e-6


@pytest.mark.parametrize("kind", ["train", "eval"])
@pytest.mark.usefixtures("eager")
def test_the_factorisation_and_its_gradient(kind):
    expected, steps = golden("ham_micro"), {"train": 6, "eval": 7}[kind]
    x, bases = expected["nmf_x"], expected["nmf_bases"]
    batch, channels, height, width = x.shape
    weights = np.linspace(0, 1, x.size, dtype=np.float32).reshape(x.shape)

    class Sum(keras.layers.Layer):
        """What gradients are taken of, where `x` is a weight."""

        def build(self, shape):
            self.x = self.add_weight(name="x", shape=x.shape)

        def call(self, inputs):
            groups = keras.ops.reshape(self.x, (batch * 2, channels // 2, height * width))
            first = keras.ops.convert_to_tensor(bases)
            made = nmf(keras.ops.transpose(groups, (0, 2, 1)), first, steps)
            made = keras.ops.transpose(made, (0, 2, 1))
            return keras.ops.reshape(made, x.shape) * inputs

    model = keras.Sequential([Sum()])
    made = model(np.ones_like(x))
    model.layers[0].x.assign(x)
    made = keras.ops.convert_to_numpy(model(np.ones_like(x)))
    assert relative(made, expected[f"nmf_{kind}"]) <= MAPS
    rate = 1e3
    model.compile(keras.optimizers.SGD(rate), loss=lambda _, y: keras.ops.sum(y), jit_compile=False)
    model.train_on_batch(weights, np.zeros_like(x))
    after = keras.ops.convert_to_numpy(model.layers[0].x)
    gradient = (x.astype(np.float64) - after) / rate
    assert relative(gradient, expected[f"nmf_{kind}_dx"]) <= MAPS


# Of the largest value of each gradient. In UPerNet's pooling to one window, BatchNorm sees two
# numbers a channel, here of two images, and its gradient is the difference of nearly equal ones:
# what float32 leaves of it. In float64 what differs is the golden values' own rounding.
GRADIENTS = {("upernet", "float32"): 2e-4, ("upernet", "float64"): 3e-5}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("ham", "float32"),
        *(pytest.param(name, "float32", marks=pytest.mark.slow) for name in ("upernet", "fpn")),
        *(pytest.param(name, "float64", marks=pytest.mark.slow) for name in MICRO_SEGMENTERS),
    ],
)
@pytest.mark.usefixtures("eager")
def test_micro_loss_gradients_and_running_statistics(name, dtype):
    if dtype == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX computes in float32 unless told otherwise before it starts")
    expected = golden(f"{name}_micro")
    labels = golden("upernet_micro")["y"]
    model = micro(name, drop_rate=0.0, dtype=dtype)
    set_bases(model, expected.get("a_bases"))
    # Plain SGD with a huge rate reads the gradient on any backend: (before - after) / rate.
    rate = 1e4
    loss = SegmentationCrossEntropy(data_format="channels_last")
    before = tensors_of(model)
    if name == "upernet":
        model.compile(
            keras.optimizers.SGD(rate), [loss, loss], loss_weights=[1.0, 0.4], jit_compile=False
        )
        total, decode, auxiliary = map(
            float, model.train_on_batch(images("micro", "a"), [labels, labels])
        )
        assert abs(0.4 * auxiliary - expected["train_aux_loss_ce"]) <= 2e-6
    else:
        model.compile(keras.optimizers.SGD(rate), loss, jit_compile=False)
        total = decode = float(model.train_on_batch(images("micro", "a"), labels))
    assert abs(decode - expected["train_decode_loss_ce"]) <= 2e-6
    assert abs(total - expected["train_total"]) <= 2e-6
    after = tensors_of(model)
    worst, squares, checked = {}, 0.0, 0
    for tensor in before:
        if ".running_" in tensor:
            if f"stat/{tensor}" in expected:
                assert relative(after[tensor], expected[f"stat/{tensor}"]) <= MAPS, tensor
                checked += 1
            continue
        gradient = (before[tensor].astype(np.float64) - after[tensor]) / rate
        squares += float(np.square(gradient).sum())
        if f"grad/{tensor}" in expected:
            worst[tensor] = relative(gradient, expected[f"grad/{tensor}"])
            checked += 1
    allowed = GRADIENTS.get((name, dtype), 1e-5)
    assert max(worst.values()) <= allowed, worst
    assert abs(np.sqrt(squares) / expected["grad_norm"] - 1) <= allowed
    assert checked == len([k for k in expected if k.startswith(("grad/", "stat/"))])


# --- The published sizes ---


@pytest.mark.slow
@pytest.mark.parametrize("name", B0_SEGMENTERS)
def test_b0_of_the_published_sizes(name):
    expected = golden(f"{name}_b0")
    model = seeded(VANSegmenter("van_b0", data_format="channels_last", **B0_SEGMENTERS[name]))
    counted = {"upernet": 32_133_004, "fpn": 7_984_374, "ham": 4_866_134, "ham_d256": 4_208_630}
    assert sum(int(np.prod(v.shape)) for v in model.trainable_variables) == counted[name]
    decoder = name.split("_")[0]
    inside = everything(model, decoder)
    if "bases" in expected:
        bases = golden_bases(*((480, 64) if name == "ham" else (256, 16)))
        np.testing.assert_array_equal(bases[:, :, : expected["bases"].shape[2]], expected["bases"])
        set_bases(model, bases)
    compared = set()
    for key, (_, height, width, _) in INPUTS.items():
        found = computed(inside, images("b0", key), traced=False)
        found["logits_resized"] = keras.ops.convert_to_numpy(
            resize_bilinear(found["logits"], (height, width))
        )
        for what, maps in found.items():
            wanted = {k: v for k, v in expected.items() if k.startswith(f"{key}_{what}_")}
            for full, value in wanted.items():
                part = full.removeprefix(f"{key}_{what}_")
                if part == "shape":
                    ours = np.array([maps.shape[0], maps.shape[3], *maps.shape[1:3]])
                elif part == "at":
                    rows, columns = expected[f"{key}_{what}_pos"].T
                    ours = maps[:, rows, columns]
                elif part in ("mean", "std"):
                    ours = getattr(maps, part)(axis=(1, 2), dtype=np.float64)[:, : value.shape[1]]
                elif part == "corner":
                    ours = maps[:, -1, -1, : value.shape[1]]
                else:
                    continue
                assert ours.shape == value.shape, full
                assert np.abs(ours - value).max() <= 1e-4, (full, np.abs(ours - value).max())
                compared.add(full)
    rest = {k for k in expected if not k.endswith("_pos")} - {"bases"}
    assert compared == rest


def golden_bases(channels, rank):
    import zlib

    seed = zlib.crc32(b"decode_head.hamburger.ham.bases")
    drawn = np.random.Generator(np.random.PCG64(seed)).uniform(0, 1, (1, channels, rank))
    drawn = drawn.astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
