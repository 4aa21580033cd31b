"""Trains on two devices and on one, and prints how far they are apart, as JSON.

    python -m tests.two_devices

The devices are two halves of the CPU. They must exist before TensorFlow starts, which is why
`train/test_distribution.py` runs this in a process of its own.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import nullcontext
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tests.parity import load_seeded
from van_classification_tensorflow import VAN
from van_classification_tensorflow.model.layers import BatchNorm, DropPath

SMALL = {
    "embed_dims": [8, 16],
    "mlp_ratios": [4, 2],
    "depths": [1, 1],
    "num_stages": 2,
    "num_classes": 10,
    "drop_path_rate": 0.3,
}
OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    # A bias before a batch norm has no gradient but rounding errors; a smaller epsilon would
    # scale them up to whole steps.
    "adamw": lambda: keras.optimizers.AdamW(1e-3, weight_decay=0.5, epsilon=1e-4),
}
STEPS, BATCH = 4, 8
IMAGES = np.random.default_rng(0).standard_normal((STEPS * BATCH, 64, 64, 3)).astype("float32")
LABELS = np.arange(len(IMAGES)) % 10


class Losses(keras.callbacks.Callback):
    """The running mean of the loss after every step."""

    def on_train_begin(self, logs=None):
        self.values = []

    def on_train_batch_end(self, batch, logs=None):
        self.values.append(logs["loss"])


def new_model(**arguments) -> VAN:
    keras.utils.set_random_seed(1)  # of the random layers
    return load_seeded(VAN(**SMALL, **arguments))


def largest(ours, theirs) -> float:
    """Largest |difference| of two lists of variables or tensors."""
    return max(
        float(np.max(np.abs(np.asarray(a, "float64") - np.asarray(b, "float64"))))
        for a, b in zip(ours, theirs, strict=True)
    )


def copies(strategy, variable) -> list:
    return [np.asarray(copy) for copy in strategy.experimental_local_results(variable.value)]


def fit(scope, optimizer: str, steps: int = STEPS, **arguments):
    with scope:
        model = new_model(**arguments)
        model.compile(
            OPTIMIZERS[optimizer](),
            "sparse_categorical_crossentropy",
            metrics=["accuracy"],
            jit_compile=False,
            run_eagerly=optimizer == "adamw",  # one of either; to trace it takes seconds
        )
    losses = Losses()
    n = steps * BATCH
    model.fit(IMAGES[:n], LABELS[:n], BATCH, verbose=0, shuffle=False, callbacks=[losses])
    return model, losses.values


def check_fit(strategy, optimizer: str) -> dict:
    one, losses_of_one = fit(nullcontext(), optimizer)
    two, losses_of_two = fit(strategy.scope(), optimizer)
    variables = two.variables + two.optimizer.variables
    report = {
        "losses": largest([losses_of_one], [losses_of_two]),
        "variables": largest(one.variables + one.optimizer.variables, variables),
        "moved": largest(new_model().trainable_variables, two.trainable_variables),
        "copies": max(largest(*[[c] for c in copies(strategy, v)]) for v in variables),
    }
    if optimizer == "sgd":
        report |= check_use(strategy, one, two) | check_half_precision(strategy, losses_of_one)
    return report


def check_use(strategy, one: VAN, two: VAN) -> dict:
    """What follows training: the same scores, in a file as well."""
    x, y = IMAGES[:13], LABELS[:13]  # the last batch is not full
    scores = two.predict(x, BATCH, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        with strategy.scope():
            two.save(Path(folder) / "two.keras")
        again = keras.saving.load_model(Path(folder) / "two.keras", compile=False)
    return {
        "predict": largest([one.predict(x, BATCH, verbose=0)], [scores]),
        "evaluate": largest(
            [one.evaluate(x, y, BATCH, verbose=0)], [two.evaluate(x, y, BATCH, verbose=0)]
        ),
        "loaded": largest(again.weights, two.weights),
        "loaded predict": largest([again.predict(x, BATCH, verbose=0)], [scores]),
    }


def check_half_precision(strategy, expected: list[float]) -> dict:
    model, losses = fit(strategy.scope(), "sgd", steps=2, dtype="mixed_float16")
    return {
        "half optimizer": type(model.optimizer).__name__,
        "half losses": largest([losses], [expected[:2]]),
        "half finite": all(np.isfinite(np.asarray(v)).all() for v in model.variables),
    }


def check_gradients(strategy, remat: bool = False, **arguments) -> dict:
    """Gradients of one step: all-reduced, as the optimizer does."""
    dtype = "float64" if arguments.get("dtype") == "float64" else None
    loss_of = keras.losses.SparseCategoricalCrossentropy(dtype=dtype)  # over all replicas

    def gradients(model, x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
        return tf.distribute.get_replica_context().all_reduce("SUM", [loss, *gradients])

    one = new_model(**arguments)
    expected = gradients(one, IMAGES[:BATCH], LABELS[:BATCH])
    with strategy.scope():
        two = new_model(**arguments)
        two.remat = remat
    got = strategy.run(gradients, (two, *shares(strategy, IMAGES[:BATCH], LABELS[:BATCH])))
    got = [strategy.experimental_local_results(g)[0] for g in got]
    return {
        "gradients": largest(expected, got),
        "running": largest(one.variables, two.variables),
        "scale": float(max(np.abs(g).max() for g in expected)),
    }


def shares(strategy, *arrays, at: int | None = None) -> list:
    """Each array cut in two, one part for each replica."""

    def share(array):
        parts = np.split(array, [at or len(array) // 2])
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(parts[context.replica_id_in_sync_group])
        )

    return [share(array) for array in arrays]


def joined(strategy, values) -> np.ndarray:
    parts = strategy.experimental_local_results(values)
    return np.concatenate([np.asarray(part, "float64") for part in parts])


def check_batch_norm(strategy, dtype: str, at: int) -> dict:
    """One layer, on channels with large means, against plain formulas in float64."""
    x = np.random.default_rng(1).standard_normal((8, 5, 7, 6)) * [1, 2, 3, 1, 1, 0.1]
    x += [0, 1, 10, 100, -10, 1] if dtype == "mixed_float16" else [0, 1, 10, 3000, -1000, 1]
    x = np.asarray(tf.cast(x, keras.DTypePolicy(dtype).compute_dtype))
    with strategy.scope():
        layer = BatchNorm(dtype=dtype)
        layer.build(x.shape)
    run = strategy.run(lambda part: layer(part, training=True), shares(strategy, x, at=at))
    y, x = joined(strategy, run), x.astype("float64")
    mean, variance, n = x.mean((0, 1, 2)), x.var((0, 1, 2)), x[..., 0].size
    running = [0.1 * mean, 0.9 + 0.1 * variance * n / (n - 1)]
    statistics = (layer.moving_mean, layer.moving_variance)
    return {
        "outputs": largest([y], [(x - mean) / np.sqrt(variance + 1e-5)]),
        "running": max(
            float(np.max(np.abs(copy / expected - 1)))
            for variable, expected in zip(statistics, running, strict=True)
            for copy in copies(strategy, variable)
        ),
    }


def check_drop_path(strategy) -> dict:
    x = np.ones((64, 2, 2, 3), "float32")
    expected = DropPath(0.5, seed=3)(x, training=True)
    with strategy.scope():
        layer = DropPath(0.5, seed=3)
        layer.build(x.shape)
    two = joined(strategy, strategy.run(lambda v: layer(v, training=True), shares(strategy, x)))
    return {"whole batch": largest([expected], [two]), "replicas": largest([two[:32]], [two[32:]])}


def main() -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})  # takes longer
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    assert strategy.num_replicas_in_sync == 2
    report = {
        "fit": {name: check_fit(strategy, name) for name in OPTIMIZERS},
        "gradients": {
            "float64": check_gradients(strategy, dtype="float64"),
            "remat": check_gradients(strategy, remat=True),
        },
        "batch norm": {
            dtype: check_batch_norm(strategy, dtype, at=4)
            for dtype in ("float32", "mixed_bfloat16", "mixed_float16", "float64")
        }
        | {"uneven": check_batch_norm(strategy, "float32", at=5)},
        "drop path": check_drop_path(strategy),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
