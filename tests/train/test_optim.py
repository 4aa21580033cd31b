"""The optimizer against torch's formulas, the schedule against timm's, and what a resume needs.

Backend-agnostic: CI runs it again under `KERAS_BACKEND=jax` and `KERAS_BACKEND=torch`.
"""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from tests.parity import GOLDEN, MICRO
from van_classification_tensorflow import VAN
from van_classification_tensorflow.model.layers import tf
from van_classification_tensorflow.train.optim import (
    AdamW,
    CosineSchedule,
    LearningRate,
    ModelAverage,
    layer_scales,
)

BACKEND = keras.backend.backend()
pytestmark = pytest.mark.usefixtures("eager")
RATE = 2.0**-10  # exact in float32, where Keras keeps it
needs_tensorflow = pytest.mark.skipif(tf is None, reason="a TensorFlow feature")
DTYPES = [
    "float32",
    pytest.param(
        "float64",
        marks=pytest.mark.skipif(BACKEND == "jax", reason="JAX's float64 is a global switch"),
    ),
]
# Tensors of every rank, and how large their gradients are: layer scales make small ones.
SHAPES = {"scalar": (), "bias": (5,), "dense": (4, 5), "sequence": (2, 3, 4), "conv": (3, 3, 2, 4)}
GRADIENTS = {"scalar": 1.0, "bias": 1e-7, "dense": 1e-7, "sequence": 1e-3, "conv": 10.0}


def _draw(steps: int) -> tuple[dict, list[dict]]:
    """Values of all tensors, and their gradients at each step."""
    rng = np.random.default_rng(3)
    # Small ones: what float32 rounds off them stays small beside what a step adds.
    values = {n: 0.05 * rng.standard_normal(shape) for n, shape in SHAPES.items()}
    gradients = [
        {n: GRADIENTS[n] * rng.standard_normal(shape) for n, shape in SHAPES.items()}
        for _ in range(steps)
    ]
    # What every dtype can hold, so that nothing but the computation differs.
    exact = np.float32
    values = {n: exact(v).astype(np.float64) for n, v in values.items()}
    return values, [{n: exact(g).astype(np.float64) for n, g in step.items()} for step in gradients]


def _variables(values: dict, dtype: str = "float32") -> list[keras.Variable]:
    return [keras.Variable(value, dtype=dtype, name=name) for name, value in values.items()]


def _apply(optimizer, variables, gradients: dict) -> None:
    tensors = [
        ops.cast(ops.convert_to_tensor(g, dtype="float32"), v.dtype)
        for g, v in zip(gradients.values(), variables, strict=True)
    ]
    if BACKEND != "jax":
        optimizer.apply(tensors, variables)
        return
    # As its trainer does; a loss scale works in no other way there.
    if not optimizer.built:
        optimizer.build(variables)
    state = optimizer.variables
    news = optimizer.stateless_apply(
        [v.value for v in state], tensors, [v.value for v in variables]
    )
    for variable, value in zip([*variables, *state], [*news[0], *news[1]], strict=True):
        variable.assign(value)


def _numbers(variables) -> dict[str, np.ndarray]:
    return {v.name: ops.convert_to_numpy(v.value) for v in variables}


def _states(variables) -> list[np.ndarray]:
    return [np.array(ops.convert_to_numpy(v.value)) for v in variables]


def reference(values, gradients, rate=RATE, decay=0.05, beta_1=0.9, beta_2=0.999, epsilon=1e-8):
    """Loshchilov and Hutter's Algorithm 2 with torch's place of epsilon, in float64."""
    values = dict(values)
    m = dict.fromkeys(values, 0.0)
    v = dict.fromkeys(values, 0.0)
    for t, step in enumerate(gradients, start=1):
        for name, g in step.items():
            if values[name].ndim >= 2:
                values[name] = values[name] * (1 - rate * decay)
            m[name] = beta_1 * m[name] + (1 - beta_1) * g
            v[name] = beta_2 * v[name] + (1 - beta_2) * g * g
            denominator = np.sqrt(v[name]) / np.sqrt(1 - beta_2**t) + epsilon
            values[name] = values[name] - rate / (1 - beta_1**t) * m[name] / denominator
    return values


def by_torch(values, gradients):
    """The same by `torch.optim.AdamW`, with timm's two groups of parameters."""
    torch = pytest.importorskip("torch")
    parameters = {n: torch.nn.Parameter(torch.tensor(v)) for n, v in values.items()}
    groups = [
        {"params": [p for p in parameters.values() if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in parameters.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    for step in gradients:
        for name, gradient in step.items():
            parameters[name].grad = torch.tensor(gradient)
        optimizer.step()
    return {n: p.detach().numpy() for n, p in parameters.items()}


def _largest_error(ours: dict, expected: dict, start: dict) -> float:
    """Largest difference, relative to how far the tensor has moved."""
    return max(
        np.abs(ours[n] - expected[n]).max() / np.abs(expected[n] - start[n]).max() for n in expected
    )


@pytest.mark.parametrize("judge", [reference, by_torch])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fifty_steps_are_torchs(judge, dtype):
    start, gradients = _draw(50)
    expected = judge(start, gradients)
    variables = _variables(start, dtype)
    optimizer = AdamW(RATE)
    for step in gradients:
        _apply(optimizer, variables, step)
    ours = _numbers(variables)
    relative = [np.abs(ours[n] - expected[n]).max() / np.abs(expected[n]).max() for n in ours]
    if dtype == "float64":
        assert _largest_error(ours, expected, start) <= 1e-12
    else:
        assert max(relative) <= 1e-6
        assert _largest_error(ours, expected, start) <= 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_variables_are_all_that_is_rounded(dtype):
    """The square of these gradients is 0 in float16; 0.001 of a mean is nothing in bfloat16."""
    start, _ = _draw(1)
    rng = np.random.default_rng(5)
    start = {n: 0.05 + np.abs(value) for n, value in start.items()}
    gradients = [{n: 1e-6 * (1 + rng.random(v.shape)) for n, v in start.items()} for _ in range(20)]
    rate = 2.0**-8  # steps that bfloat16 can add to 0.05
    expected = reference(start, gradients, rate)
    variables = _variables(start, dtype)
    optimizer = AdamW(rate)
    for step in gradients:
        _apply(optimizer, variables, step)
    assert {keras.backend.standardize_dtype(v.dtype) for v in optimizer.variables[2:]} == {
        "float32"
    }
    bits = 8 if dtype == "bfloat16" else 11
    for variable in variables:
        ours = ops.convert_to_numpy(ops.cast(variable.value, "float32"))
        # The first value and each of the steps are rounded once, to at most half a digit of 0.2.
        np.testing.assert_allclose(ours, expected[variable.name], atol=21 * 0.25 * 2.0**-bits / 4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_average_accumulation_and_loss_scale_together(dtype):
    """As without the loss scale, which is a power of two; the average moves, and slowly."""
    start, gradients = _draw(6)
    start = {n: 0.05 + np.abs(value) for n, value in start.items()}
    gradients = [{n: np.full_like(g, 2.0**-10) for n, g in step.items()} for step in gradients]
    found = []
    for scaled in (True, False):
        variables = _variables(start, dtype)
        inner = AdamW(2.0**-6, use_ema=True, ema_momentum=0.999, gradient_accumulation_steps=2)
        optimizer = keras.optimizers.LossScaleOptimizer(inner, 4.0) if scaled else inner
        for step in gradients:
            factor = 4.0 if scaled else 1.0
            _apply(optimizer, variables, {n: factor * g for n, g in step.items()})
        before = [ops.convert_to_numpy(ops.cast(v.value, "float32")) for v in variables]
        optimizer.finalize_variable_values(variables)  # what `fit` ends with
        found.append([ops.convert_to_numpy(ops.cast(v.value, "float32")) for v in variables])
    for with_scale, without in zip(*found, strict=True):
        # XLA may join the scale to another product, which is then rounded once instead of twice:
        # on JAX 3 units in the last place after 6 steps, elsewhere none.
        np.testing.assert_array_max_ulp(with_scale, without, maxulp=6)
    for average, last, first in zip(found[0], before, start.values(), strict=True):
        assert (average > last).all()
        # It starts at the first update's result; bfloat16 would leave it at 0.999 ** 4 or at 1.
        np.testing.assert_allclose(average, first - 2.0**-6, atol=0.002)


@pytest.mark.parametrize("step", [1, 2, 1000])
def test_bias_corrections_keep_float32s_digits(step):
    """In float32, 1 - 0.999 ** 1 as a difference is off by 1e-5."""
    start, gradients = _draw(1)
    start = dict.fromkeys(start, np.zeros(3))
    gradients = [dict.fromkeys(start, np.ones(3))] * step
    variables = _variables(start)
    optimizer = AdamW(RATE)
    optimizer.build(variables)
    optimizer.iterations.assign(step - 1)
    _apply(optimizer, variables, gradients[0])
    m, v = 0.1, 0.001
    expected = -RATE * m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    for value in _numbers(variables).values():
        np.testing.assert_allclose(value, expected, rtol=4e-7)


def test_kerass_own_fails_where_ours_holds():
    """The tests above can fail: epsilon's place is worth 3 % of the first steps here."""
    start, gradients = _draw(50)
    expected = reference(start, gradients)
    variables = _variables(start)
    optimizer = keras.optimizers.AdamW(RATE, weight_decay=0.05, epsilon=1e-8)
    optimizer.exclude_from_weight_decay([v for v in variables if v.ndim < 2])
    for step in gradients:
        _apply(optimizer, variables, step)
    assert _largest_error(_numbers(variables), expected, start) > 0.05


def _decayed(optimizer) -> dict[str, float]:
    """What a step without gradients leaves of each tensor."""
    variables = _variables({name: np.ones(shape) for name, shape in SHAPES.items()})
    _apply(optimizer, variables, {name: np.zeros(shape) for name, shape in SHAPES.items()})
    return {name: float(value.min()) for name, value in _numbers(variables).items()}


def test_only_tensors_of_two_dimensions_decay_and_once():
    kept = pytest.approx(1 - 0.125 * 0.5, abs=1e-7)
    expected = {"scalar": 1.0, "bias": 1.0, "dense": kept, "sequence": kept, "conv": kept}
    optimizer = AdamW(0.125, weight_decay=0.5)
    assert _decayed(optimizer) == expected
    assert optimizer.weight_decay == 0.5
    assert set(_decayed(AdamW(0.125, weight_decay=0.0)).values()) == {1.0}
    # A copy from the configuration decays the same; Keras's own exclusions still count.
    assert _decayed(AdamW.from_config(optimizer.get_config())) == expected
    excluding = AdamW(0.125, weight_decay=0.5)
    excluding.exclude_from_weight_decay(var_names=["conv"])
    assert _decayed(excluding) == {**expected, "conv": 1.0}


def test_configuration_comes_back():
    given = {
        "learning_rate": 0.25,
        "weight_decay": 0.3,
        "beta_1": 0.8,
        "beta_2": 0.99,
        "epsilon": 1e-6,
        "learning_rate_scales": {"head": 0.5},
        "name": "mine",
        "clipnorm": 1.0,
        "gradient_accumulation_steps": 3,
    }
    stored = json.loads(json.dumps(keras.optimizers.serialize(AdamW(**given))))
    config = keras.optimizers.deserialize(stored).get_config()
    assert {key: config[key] for key in given} == given


def _small(optimizer, seed=1, **compile_arguments) -> keras.Model:
    """Two layers with weights that differ from zero everywhere."""
    rng = np.random.default_rng(seed)
    x = inputs = keras.Input((6,))
    x = keras.layers.Dense(8, activation="tanh", name="first")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    model = keras.Model(inputs, keras.layers.Dense(3, name="second")(x))
    for weight in model.trainable_weights:
        weight.assign(rng.standard_normal(weight.shape))
    compile_arguments.setdefault("jit_compile", BACKEND == "jax")
    model.compile(optimizer, loss="mse", **compile_arguments)
    return model


def _batch(size=4, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((size, n)).astype("float32") for n in (6, 3))


def _keras_adamw():
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


@pytest.mark.parametrize(
    ("optimizer", "continues"),
    [
        (lambda: AdamW(0.1, weight_decay=0.5, learning_rate_scales={"first": 0.25}), True),
        (_keras_adamw, False),  # so the test can fail
    ],
    ids=["ours", "keras"],
)
def test_a_saved_model_goes_on_as_the_one_in_memory(tmp_path, optimizer, continues):
    model = _small(optimizer())
    model.train_on_batch(*_batch())
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        each.train_on_batch(*_batch(seed=1))
    ours, theirs = _states(model.weights), _states(loaded.weights)
    equal = [np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)]
    assert all(equal) == continues


def _first_step(optimizer, variables) -> dict[str, float]:
    """How far each variable goes with gradients of 1, in learning rates."""
    before = _states(variables)
    optimizer.apply([ops.ones(v.shape) for v in variables], variables)
    after = _states(variables)
    return {
        v.path: float(np.mean(b - a) / RATE)
        for v, b, a in zip(variables, before, after, strict=True)
    }


# From the deepest up; 0.5 is exact.
MICRO_SCALES = {
    **dict.fromkeys(["patch_embed1"], 0.5**6),
    **dict.fromkeys(["block1_0", "norm1"], 0.5**5),
    **dict.fromkeys(["patch_embed2", "block2_0", "norm2"], 0.5**4),
    **dict.fromkeys(["patch_embed3", "block3_0"], 0.5**3),
    **dict.fromkeys(["block3_1", "norm3"], 0.5**2),
    **dict.fromkeys(["patch_embed4", "block4_0", "norm4"], 0.5),
    "head": 1.0,
}


def test_layer_scales_step_by_step():
    model = VAN(**MICRO)
    assert layer_scales(model, 0.5) == MICRO_SCALES
    assert set(layer_scales(model, 1).values()) == {1}
    # Every layer that is trained has one.
    assert {v.path.split("/")[0] for v in model.trainable_variables} == set(MICRO_SCALES)


def test_learning_rates_by_layer():
    model = VAN(**MICRO)
    optimizer = AdamW(RATE, weight_decay=0.0, learning_rate_scales=layer_scales(model, 0.5))
    for path, moved in _first_step(optimizer, model.trainable_variables).items():
        assert moved == pytest.approx(MICRO_SCALES[path.split("/")[0]], rel=1e-3), path


def test_learning_rates_of_a_van_inside_another_model():
    backbone = VAN(**MICRO, include_top=False)
    backbone.get_layer("patch_embed1").trainable = False
    scales = layer_scales(backbone, 0.5)
    assert scales == {n: s for n, s in MICRO_SCALES.items() if n not in ("head", "patch_embed1")}
    images = keras.Input((32, 32, 3))
    model = keras.Model(images, keras.layers.Dense(3, name="own_head")(backbone(images)))
    optimizer = AdamW(RATE, weight_decay=0.0, learning_rate_scales=scales)
    expected = {**scales, "own_head": 1.0}
    moved = _first_step(optimizer, model.trainable_variables)
    assert {path.split("/")[0] for path in moved} == set(expected)
    for path, distance in moved.items():
        assert distance == pytest.approx(expected[path.split("/")[0]], rel=1e-3), path


def test_a_name_is_a_layers_and_not_a_part_of_another():
    model = VAN(**MICRO)
    scales = {"norm1": 0.5, "block1_0": 0.25, "block1_0/attn": 0.0}
    optimizer = AdamW(RATE, weight_decay=0.0, learning_rate_scales=scales)
    moved = _first_step(optimizer, model.trainable_variables)
    expected = {
        "norm1/gamma": 0.5,
        "block2_0/norm1/gamma": 1.0,
        "patch_embed1/norm/gamma": 1.0,
        "block1_0/norm1/gamma": 0.25,
        "block1_0/attn/proj_1/kernel": 0.0,
    }
    assert {path: moved[path] for path in expected} == pytest.approx(expected, abs=1e-3)


def test_the_decay_is_scaled_with_the_rate():
    optimizer = AdamW(0.125, weight_decay=0.5, learning_rate_scales={"dense": 0.25})
    decayed = _decayed(optimizer)
    assert decayed["dense"] == pytest.approx(1 - 0.25 * 0.125 * 0.5, abs=1e-7)
    assert decayed["conv"] == pytest.approx(1 - 0.125 * 0.5, abs=1e-7)


def test_unknown_and_frozen_layers_are_refused():
    model = VAN(**MICRO)
    model.get_layer("norm1").trainable = False
    for name in ("block9_0", "norm1", "block1", "proj_1"):
        optimizer = AdamW(learning_rate_scales={"head": 1.0, name: 0.5})
        with pytest.raises(ValueError, match=rf"`learning_rate_scales` .*head.* also: {name}$"):
            optimizer.build(model.trainable_variables)
        assert not optimizer.built
    assert "norm1" not in layer_scales(model, 0.5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"weight_decay": -0.1},
        {"weight_decay": None},
        {"beta_1": 0.0},
        {"beta_2": 1.0},
        {"beta_2": float("nan")},
        {"epsilon": 0.0},
        {"epsilon": "1e-8"},
        {"learning_rate_scales": {"head": -1.0}},
        {"learning_rate_scales": {"head": True}},
    ],
)
def test_arguments_out_of_range(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=rf"`{name}.*Received: {name}"):
        AdamW(**arguments)


def test_arguments_of_layer_scales():
    with pytest.raises(ValueError, match=r"`model` must be a VAN\. Received"):
        layer_scales(_small("sgd"), 0.5)
    for decay in (0, 1.5, None):
        with pytest.raises(ValueError, match=r"`decay` must be .* in \(0, 1\]\. Received: decay"):
            layer_scales(VAN(**MICRO), decay)


@pytest.mark.parametrize(
    ("clipping", "clip"),
    [
        ({"clipvalue": 0.5}, lambda g, norm: np.clip(g, -0.5, 0.5)),
        ({"clipnorm": 0.5}, lambda g, norm: g * min(1.0, 0.5 / np.sqrt((g**2).sum()))),
        ({"global_clipnorm": 0.5}, lambda g, norm: g * min(1.0, 0.5 / norm)),
    ],
)
def test_clipping(clipping, clip):
    start, gradients = _draw(3)
    clipped = []
    for step in gradients:
        norm = np.sqrt(sum((g**2).sum() for g in step.values()))
        clipped.append({n: clip(g, norm) for n, g in step.items()})
    expected = reference(start, clipped)
    variables = _variables(start)
    optimizer = AdamW(RATE, **clipping)
    for step in gradients:
        _apply(optimizer, variables, step)
    assert _largest_error(_numbers(variables), expected, start) <= 1e-4
    assert _largest_error(reference(start, gradients), expected, start) > 1e-2


def test_accumulated_gradients_count_as_one_step():
    start, gradients = _draw(6)
    means = [
        {n: (a[n] + b[n]) / 2 for n in a}
        for a, b in zip(gradients[::2], gradients[1::2], strict=True)
    ]
    variables = _variables(start)
    optimizer = AdamW(RATE, gradient_accumulation_steps=2)
    for step in gradients:
        _apply(optimizer, variables, step)
    assert _largest_error(_numbers(variables), reference(start, means), start) <= 1e-4


def test_loss_scaling_skips_overflows_and_nothing_else():
    start, gradients = _draw(4)
    overflow = {**gradients[1], "dense": np.full((4, 5), np.inf)}
    variables = _variables(start)
    scaling = keras.optimizers.LossScaleOptimizer(AdamW(RATE), initial_scale=1.0)
    for step in (gradients[0], overflow, gradients[2]):
        scale = float(scaling.dynamic_scale) if scaling.built else 1.0
        _apply(scaling, variables, {n: g * scale for n, g in step.items()})
    expected = reference(start, [gradients[0], gradients[2]])
    assert _largest_error(_numbers(variables), expected, start) <= 1e-4


@pytest.mark.parametrize(
    "policy", ["mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)]
)
def test_half_precision_keeps_its_state_in_float32(policy):
    keras.config.set_dtype_policy(policy)
    model = _small(AdamW(1e-2))
    first, *_, last = (float(model.train_on_batch(*_batch())) for _ in range(10))
    assert last < first
    floats = [v for v in model.optimizer.variables if "int" not in v.dtype]
    assert {v.dtype for v in floats} == {"float32"}
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")


@needs_tensorflow
def test_compiled_by_xla():
    plain, compiled = (_small(AdamW(RATE), jit_compile=jit) for jit in (False, True))
    for model in (plain, compiled):
        model.train_on_batch(*_batch())
    for a, b in zip(plain.weights, compiled.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=a.path)


TWO_REPLICAS = """
import sys
import numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
import keras
from van_classification_tensorflow.train.optim import AdamW, ModelAverage

def states(replicas):
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])
    with strategy.scope():
        inputs = keras.Input((6,))
        model = keras.Model(inputs, keras.layers.Dense(3, name="dense")(inputs))
        values = np.random.default_rng(0).standard_normal((7, 3)).astype("float32")
        model.set_weights([values[:6], values[6]])
        scales = {"dense": 0.5}
        optimizer = AdamW(0.1, weight_decay=0.5, learning_rate_scales=scales, global_clipnorm=1.0)
        model.compile(optimizer, loss="mse", jit_compile=False)
    average = ModelAverage(model, 0.5)
    x = np.random.default_rng(1).standard_normal((8, 6)).astype("float32")
    for _ in range(3):
        model.train_on_batch(x, x[:, :3])
        average.update()
    with average.swapped():
        swapped = model.get_weights()
    return model.get_weights() + swapped + [np.array(v) for v in average.variables]

one, two = states(1), states(2)
for a, b in zip(one, two, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
assert np.abs(one[0] - one[2]).max() > 1e-2
"""


@pytest.mark.slow
@needs_tensorflow
def test_two_replicas_are_one():
    command = [sys.executable, "-c", TWO_REPLICAS]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_cosine_schedule_is_timms():
    expected = json.loads((GOLDEN / "lr_schedule.json").read_text())
    schedule = CosineSchedule()
    assert schedule.total_epochs == len(expected) == 310
    ours = [schedule(epoch) for epoch in range(310)]
    assert all(type(rate) is float for rate in ours)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_other_cosines():
    plain = CosineSchedule(2.0, 4, 0, 0, min_learning_rate=0.0)
    assert plain.total_epochs == 4
    rates = [plain(epoch) for epoch in range(6)]
    assert rates == pytest.approx([2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5, 0.0, 0.0], abs=1e-15)
    only_warmup = CosineSchedule(1.0, 4, 4, 1, 0.25, 0.0)
    assert [only_warmup(epoch) for epoch in range(6)] == [0.0, 0.25, 0.5, 0.75, 0.25, 0.25]


@pytest.mark.parametrize(
    "arguments",
    [
        {"learning_rate": 0.0},
        {"learning_rate": float("inf")},
        {"learning_rate": "1e-3"},
        {"learning_rate": 1e-7},  # below the least
        {"epochs": 0},
        {"epochs": 2.0},
        {"epochs": True},
        {"warmup_epochs": 301},
        {"warmup_epochs": -1},
        {"cooldown_epochs": -1},
        {"min_learning_rate": -1e-6},
        {"warmup_learning_rate": -1e-6},
    ],
)
def test_cosine_schedules_out_of_range(arguments):
    with pytest.raises(ValueError, match=r"`\w+` must be a (whole )?number.*Received: "):
        CosineSchedule(**arguments)


def test_epochs_out_of_range():
    for epoch in (-1, 0.5):
        with pytest.raises(ValueError, match=rf"`epoch` must be .* at least 0\. Received: {epoch}"):
            CosineSchedule()(epoch)


def test_learning_rate_is_set_and_logged():
    keras.config.set_dtype_policy("mixed_float16")  # a LossScaleOptimizer around it
    model = _small(AdamW(1.0))
    seen = []

    class Spy(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(float(ops.convert_to_numpy(model.optimizer.inner_optimizer.learning_rate)))

    schedule = CosineSchedule(1e-3, 4, 2, 1)
    callbacks = [LearningRate(schedule), Spy()]
    log = model.fit(*_batch(), epochs=5, initial_epoch=1, verbose=0, callbacks=callbacks).history
    expected = [schedule(epoch) for epoch in range(1, 5)]
    assert log["learning_rate"] == expected
    assert seen == pytest.approx(expected, rel=1e-6)


def test_average_of_all_weights():
    model = _small(AdamW(0.1))
    average = ModelAverage(model, decay=0.25)
    expected = [w.astype(np.float64) for w in _states(model.weights)]
    for update in range(6):
        model.train_on_batch(*_batch(seed=update))
        average.update()
        decay = min(0.25, (1 + update) / (10 + update))  # 0.1, 0.18, then 0.25
        for mean, weight in zip(expected, _states(model.weights), strict=True):
            mean *= decay
            mean += (1 - decay) * weight
    *means, updates = average.variables
    for weight, mean, value in zip(model.weights, expected, means, strict=True):
        np.testing.assert_allclose(_states([value])[0], mean, rtol=1e-6, atol=1e-7)
        assert value.path == "average/" + weight.path.replace("/", "_")
        assert not value.trainable
        assert np.abs(_states([weight])[0] - mean).max() > 1e-4, weight.path  # statistics too
    assert int(updates) == 6
    assert updates.path == "average/updates"


def test_a_decay_near_one_counts_from_the_tenth_update():
    model = _small("sgd")
    average = ModelAverage(model, decay=0.9999)
    weight = model.get_layer("second").bias
    weight.assign(np.ones(3))
    (mean,) = [v for v in average.variables if v.path == "average/second_bias"]
    start = _states([mean])[0].astype(np.float64)
    left = 1.0
    for t in range(20):
        average.update()
        left *= (1 + t) / (10 + t)
    np.testing.assert_allclose(_states([mean])[0] - 1, left * (start - 1), atol=2e-7)
    average.variables[-1].assign(10**7)  # now the decay given is the smaller one
    weight.assign(np.full(3, 2.0))
    before = _states([mean])[0].astype(np.float64)
    average.update()
    np.testing.assert_allclose(_states([mean])[0] - before, 1e-4 * (2 - before), rtol=3e-3)


@pytest.mark.parametrize("raises", [False, True])
def test_swapped_gives_the_weights_back(raises):
    model = _small(AdamW(0.1))
    average = ModelAverage(model, decay=0.5)
    for seed in range(3):
        model.train_on_batch(*_batch(seed=seed))
        average.update()
    weights, state = _states(model.variables), _states(model.optimizer.variables)
    means = _states(average.variables)
    outputs = model.predict_on_batch(_batch()[0])

    def use():
        with average.swapped():
            for weight, mean in zip(_states(model.weights), means[:-1], strict=True):
                np.testing.assert_array_equal(weight, mean)
            assert np.abs(model.predict_on_batch(_batch()[0]) - outputs).max() > 1e-3
            model.evaluate(*_batch(), verbose=0)
            if raises:
                raise RuntimeError("within")

    if raises:
        with pytest.raises(RuntimeError, match="within"):
            use()
    else:
        use()
    for before, now in ((weights, model), (state, model.optimizer), (means, average)):
        for a, b in zip(before, _states(now.variables), strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(model.predict_on_batch(_batch()[0]), outputs)
    model.train_on_batch(*_batch())  # both live on, also where buffers are handed over
    average.update()
    assert not np.array_equal(_states(average.variables)[0], means[0])


def test_half_precision_weights_are_averaged_in_float32():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, dtype="bfloat16")])
    model.layers[0].bias.assign([1.0, 2.0, 3.0])
    average = ModelAverage(model, decay=0.5)
    before = _states(model.weights)
    model.layers[0].bias.assign([1.5, 2.5, 3.5])
    average.update()
    *means, _ = average.variables
    assert {v.dtype for v in means} == {"float32"}
    np.testing.assert_allclose(_states(means)[1], [1.45, 2.45, 3.45], rtol=1e-6)  # 0.1 of the old
    with average.swapped():
        assert model.layers[0].bias.dtype == "bfloat16"
    np.testing.assert_array_equal(_states(model.weights)[0], before[0])
    np.testing.assert_array_equal(_states(model.weights)[1], [1.5, 2.5, 3.5])


def test_seeds_and_integers_have_no_average():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3), keras.layers.Dropout(0.5)])
    model.layers[0].quantize("int8")
    average = ModelAverage(model)
    names = [v.path.split("_")[-1] for v in average.variables]
    assert names == ["bias", "scale", "average/updates"]


def test_decay_of_the_average_out_of_range():
    for decay in (0.0, 1.0, float("nan"), None):
        with pytest.raises(ValueError, match=r"`decay` must be .* in \(0, 1\)\. Received: decay="):
            ModelAverage(_small("sgd"), decay)


@needs_tensorflow
def test_the_average_is_one_graph_when_compiled():
    average = ModelAverage(_small("sgd"))
    for _ in range(3):
        average.update()
    assert average._step.experimental_get_tracing_count() == 1


class _Run:
    """A training with everything that holds state: dropped paths, accumulation, an average."""

    def __init__(self):
        self.model = VAN(
            embed_dims=[8],
            mlp_ratios=[2],
            depths=[2],
            num_stages=1,
            num_classes=10,
            drop_rate=0.1,
            drop_path_rate=0.4,
            classifier_activation=None,
        )
        scales = layer_scales(self.model, 0.9)
        optimizer = AdamW(1e-2, learning_rate_scales=scales, gradient_accumulation_steps=2)
        optimizer.build(self.model.trainable_variables)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile(optimizer, loss=loss, jit_compile=BACKEND == "jax")
        self.average = ModelAverage(self.model, 0.9)

    @property
    def variables(self):
        return [*self.model.variables, *self.model.optimizer.variables, *self.average.variables]

    def restore(self, values) -> None:
        for variable, value in zip(self.variables, values, strict=True):
            variable.assign(value)

    def steps(self, numbers) -> list[float]:
        losses = []
        for number in numbers:
            rng = np.random.default_rng(number)
            x = rng.standard_normal((4, 32, 32, 3)).astype("float32")
            losses.append(float(self.model.train_on_batch(x, rng.integers(0, 10, 4))))
            self.average.update()
        return losses


@pytest.mark.slow
@pytest.mark.skipif(BACKEND == "torch", reason="Keras drops by torch's own generator there")
def test_a_run_copied_into_new_objects_goes_on_bit_for_bit():
    whole = _Run()
    start = _states(whole.variables)
    whole.steps(range(3))  # ends between two updates: half of the gradients are waiting
    copied = _states(whole.variables)
    losses = whole.steps(range(3, 6))

    second = _Run()
    second.restore(copied)
    assert second.steps(range(3, 6)) == losses
    moved = 0
    for a, b, c in zip(second.variables, whole.variables, start, strict=True):
        ours, expected = _states([a, b])
        np.testing.assert_array_equal(ours, expected, err_msg=a.path)
        moved += not np.array_equal(ours, c)
    assert moved > 0.8 * len(start)  # all but the accumulators, which are empty again

    # The seeds count: with others, other paths are dropped.
    seeds = ["seed" in variable.path for variable in second.variables]
    second.restore([s if seed else c for seed, s, c in zip(seeds, start, copied, strict=True)])
    assert second.steps(range(3, 6)) != losses
