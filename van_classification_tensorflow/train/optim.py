"""How the weights move in training: timm's AdamW and cosine schedule, layer-wise rates, averages.

The authors trained with timm 0.4.12 (`--opt adamw --sched cosine`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import keras
from keras import ops

from ..model.layers import register, tf
from ..model.van import VAN
from ..support.checks import is_number, is_whole


@register
class AdamW(keras.optimizers.Optimizer):
    """AdamW (arXiv 1711.05101) as `torch.optim.AdamW` computes it and timm 0.4.12 sets it up.

    Two things are not as in `keras.optimizers.AdamW`. Only tensors with two or more dimensions
    decay: no bias, no norm, no layer scale; this belongs to the class, where Keras's list of
    exclusions is lost when a model is saved. And `epsilon` is added behind the bias correction
    of the second moment; Keras adds it before, where it weighs up to 30 times as much in the
    first steps and slows what has tiny gradients: here the residual branches, whose gradients
    pass a layer scale of 1e-2. Over the eight golden steps the loss is 2e-7 from torch's,
    with Keras's optimizer 2e-5.

    Args:
        learning_rate: Rate, a Keras schedule of it per step, or a callable without arguments.
        weight_decay: Share of a tensor that one step takes off it, per unit of learning rate.
        beta_1: Share of the gradients' running mean that a step keeps, in (0, 1).
        beta_2: The same of their running mean square.
        epsilon: Added to the root of the mean square, above 0.
        learning_rate_scales: Factor of the learning rate, and so of the decay, of all variables
            whose `path` starts with this layer's name; see `layer_scales`. The longest name
            counts; what is not named has 1.
        name: First part of its variables' paths.
        **kwargs: Keras's own: `clipnorm`, `global_clipnorm`, `clipvalue`,
            `gradient_accumulation_steps`, ...

    Raises:
        ValueError: A number is out of its range; or, when the optimizer meets its variables, a
            name in `learning_rate_scales` is none of theirs.
    """

    def __init__(
        self,
        learning_rate: float | Callable = 1e-3,
        weight_decay: float = 0.05,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        learning_rate_scales: Mapping[str, float] | None = None,
        name: str = "adamw",
        **kwargs,
    ):
        _check_number("weight_decay", weight_decay, "at least 0", lambda x: x >= 0)
        _check_number("beta_1", beta_1, "in (0, 1)", lambda x: 0 < x < 1)
        _check_number("beta_2", beta_2, "in (0, 1)", lambda x: 0 < x < 1)
        _check_number("epsilon", epsilon, "above 0", lambda x: x > 0)
        scales = dict(learning_rate_scales or {})
        for layer, scale in scales.items():
            _check_number(f"learning_rate_scales[{layer!r}]", scale, "at least 0", lambda x: x >= 0)
        super().__init__(learning_rate, weight_decay=weight_decay, name=name, **kwargs)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.learning_rate_scales = scales

    # A model in half precision has half-precision variables and gradients. The square of a gradient
    # below 1e-4 is 0 in float16, and bfloat16 rounds off what a step adds to a mean: all that the
    # optimizer keeps and computes is in at least float32. Only the variables are rounded.
    def apply(self, grads, trainable_variables=None):
        super().apply([None if g is None else _in_full(g) for g in grads], trainable_variables)

    def add_variable(self, shape, initializer="zeros", dtype=None, **kwargs):
        return super().add_variable(shape, initializer, dtype and _full(dtype), **kwargs)

    def _update_model_variables_moving_average(self, trainable_variables):
        super()._update_model_variables_moving_average([_in_full(v) for v in trainable_variables])

    def _overwrite_model_variables_with_average_value(self, trainable_variables):
        if all(_in_full(v) is v for v in trainable_variables):
            super()._overwrite_model_variables_with_average_value(trainable_variables)
            return
        # Keras's does not round the averages, and TensorFlow then refuses them.
        pairs = zip(trainable_variables, self._model_variables_moving_average, strict=True)
        for variable, average in pairs:
            if average is not None:
                self.assign(variable, ops.cast(average, variable.dtype))

    def build(self, variables):
        if self.built:
            return
        # A plain tf.Variable has no path.
        self._scales = self._scales_of([getattr(v, "path", v.name) for v in variables])
        super().build(variables)
        self._momentums, self._velocities = self.add_optimizer_variables(
            variables, ["momentum", "velocity"]
        )

    def _scales_of(self, paths: list[str]) -> list[float]:
        """The factor of each path's learning rate."""
        # From the front only: "norm1" is the norm of stage 1, not "block1_0/norm1".
        given = self.learning_rate_scales
        names = [[n for n in given if f"{path}/".startswith(f"{n}/")] for path in paths]
        if unknown := set(given).difference(*names):
            layers = dict.fromkeys(path.partition("/")[0] for path in paths)
            raise ValueError(
                "`learning_rate_scales` must name layers that are trained: "
                f"{', '.join(layers)}. Received also: {', '.join(sorted(unknown))}"
            )
        return [given[max(own, key=len)] if own else 1.0 for own in names]

    def _apply_weight_decay(self, variables):
        """Does nothing: Keras's decay knows no scales, so `update_step` decays."""

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        # What all variables share, once: traced for each, it would take as long as the rest.
        step = self.iterations + 1
        shared = {}
        for dtype in {_full(v.dtype) for v in trainable_variables}:
            t = ops.cast(step, dtype)
            # 1 - beta ** t: as a difference, only five digits of the first ones would be right.
            correction_1 = -ops.expm1(t * math.log(self.beta_1))
            correction_2 = -ops.expm1(t * math.log(self.beta_2))
            rate = ops.cast(learning_rate, dtype)
            shared[dtype] = (rate, rate / correction_1, ops.sqrt(correction_2))
        super()._backend_update_step(grads, trainable_variables, shared)

    def update_step(self, gradient, variable, learning_rate):
        """`learning_rate`: by type, the rate, the same over 1 - beta_1 ** t, √(1 - beta_2 ** t)."""
        # Not TensorFlow's kernel for Adam: in float32 its 1 - 0.999 is off by 1e-5.
        dtype = _full(variable.dtype)
        rate, corrected_rate, root_correction = learning_rate[dtype]
        index = self._get_variable_index(variable)
        m, v, scale = self._momentums[index], self._velocities[index], self._scales[index]
        gradient = ops.cast(gradient, dtype)
        self.assign_add(m, ops.subtract(gradient, m) * (1 - self.beta_1))
        self.assign_add(v, ops.subtract(ops.square(gradient), v) * (1 - self.beta_2))
        denominator = ops.sqrt(v) / root_correction + self.epsilon
        update = ops.multiply(m, corrected_rate * scale) / denominator
        if len(variable.shape) >= 2 and self._use_weight_decay(variable):
            decay = rate * (scale * self.weight_decay)
            update = update + ops.multiply(_in_full(variable), decay)
        self.assign_sub(variable, update)

    def get_config(self) -> dict:
        own = {
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "learning_rate_scales": dict(self.learning_rate_scales),
        }
        return {**super().get_config(), **own}


def _full(dtype) -> str:
    """The floating-point type to compute in for one to store in: at least float32."""
    dtype = keras.backend.standardize_dtype(dtype)
    return "float32" if dtype in ("bfloat16", "float16") else dtype


def _in_full(value):
    """`value` in at least float32; itself, where it is."""
    dtype = keras.backend.standardize_dtype(value.dtype)
    return value if _full(dtype) == dtype else ops.cast(value, _full(dtype))


def layer_scales(model: VAN, decay: float) -> dict[str, float]:
    """Layer-wise learning-rate decay (BEiT, arXiv 2106.08254) for `AdamW.learning_rate_scales`.

    The head has 1, and every block `decay` times the rate of the one above it. As timm groups
    its convolutional hierarchies (ConvNeXt), the patch embedding of a later stage goes with the
    block after it and a stage's norm with the block before it; `patch_embed1` is one step below
    the first block. So the deepest rate is decay ** (blocks + 1).

    Args:
        model: The network; or a headless one inside a larger model, whose own layers have 1.
        decay: In (0, 1].

    Returns:
        Factor by layer name, of the layers that have something to train.

    Raises:
        ValueError: `model` is no VAN, or `decay` is out of its range.
    """
    if not isinstance(model, VAN):
        raise ValueError(f"`model` must be a VAN. Received: model={model!r}")
    _check_number("decay", decay, "in (0, 1]", lambda x: 0 < x <= 1)
    groups = [["patch_embed1"]]
    for i, depth in enumerate(model.depths, start=1):
        stage = [[f"block{i}_{j}"] for j in range(depth)]
        if i > 1:
            stage[0].append(f"patch_embed{i}")
        stage[-1].append(f"norm{i}")
        groups += stage
    groups.append(["head"])
    trained = {layer.name for layer in model.layers if layer.trainable_weights}
    deepest = len(groups) - 1
    return {
        name: decay ** (deepest - place)
        for place, group in enumerate(groups)
        for name in group
        if name in trained
    }


@dataclass(frozen=True)
class CosineSchedule:
    """The learning rate of each epoch: timm 0.4.12's `CosineLRScheduler`, stepped once an epoch.

    A straight line over the warm-up epochs, then the cosine that *started at epoch 0* (timm's
    default: the warm-up covers its beginning and does not shift it), then the least rate.

    Args:
        learning_rate: Height of the cosine, above 0.
        epochs: Length of the cosine with the warm-up, at least 1.
        warmup_epochs: Epochs of the warm-up, at most `epochs`.
        cooldown_epochs: Epochs at `min_learning_rate` after the cosine.
        min_learning_rate: What the cosine falls to, at most `learning_rate`.
        warmup_learning_rate: Rate of epoch 0 if there is a warm-up.

    Raises:
        ValueError: A value is out of its range.
    """

    learning_rate: float = 1e-3
    epochs: int = 300
    warmup_epochs: int = 5
    cooldown_epochs: int = 10
    min_learning_rate: float = 1e-6
    warmup_learning_rate: float = 1e-6

    def __post_init__(self) -> None:
        top = self.learning_rate
        _check_number("learning_rate", top, "above 0", lambda x: x > 0)
        _check_count("epochs", self.epochs, 1)
        _check_count("warmup_epochs", self.warmup_epochs, 0, self.epochs)
        _check_count("cooldown_epochs", self.cooldown_epochs, 0)
        _check_number(
            "min_learning_rate",
            self.min_learning_rate,
            f"in [0, learning_rate={top}]",
            lambda x: 0 <= x <= top,
        )
        _check_number(
            "warmup_learning_rate", self.warmup_learning_rate, "at least 0", lambda x: x >= 0
        )

    @property
    def total_epochs(self) -> int:
        """Epochs of the whole training, with the cool-down."""
        return self.epochs + self.cooldown_epochs

    def __call__(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0; past the end it stays the least."""
        _check_count("epoch", epoch, 0)
        if epoch < self.warmup_epochs:
            rise = (self.learning_rate - self.warmup_learning_rate) / self.warmup_epochs
            return self.warmup_learning_rate + epoch * rise
        height = 0.5 * (1 + math.cos(math.pi * min(epoch / self.epochs, 1.0)))
        return self.min_learning_rate + height * (self.learning_rate - self.min_learning_rate)


class LearningRate(keras.callbacks.Callback):
    """Sets the optimizer's learning rate at the start of each epoch, and logs it.

    Args:
        schedule: Epoch, counted from 0, to learning rate; a `CosineSchedule`.
    """

    def __init__(self, schedule: Callable[[int], float]):
        super().__init__()
        self.schedule = schedule

    def on_epoch_begin(self, epoch, logs=None):
        self.model.optimizer.learning_rate = self.schedule(epoch)

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs["learning_rate"] = self.schedule(epoch)


class ModelAverage:
    """Running average of a model's weights, BatchNorm's statistics too (timm's `ModelEmaV2`).

    An update moves each average to decay * average + (1 - decay) * weight. timm's decay is
    constant, and keeps most of the initial weights for 1 / (1 - decay) updates; here update t
    (from 0) uses at most (1 + t) / (10 + t), as `tf.train.ExponentialMovingAverage` does.

    Args:
        model: A built model. Its averages start at its present weights; weights of integers,
            random seeds and metrics have none.
        decay: In (0, 1); timm's default is 0.9999.

    Attributes:
        variables: The averages, in at least float32, and the count of the updates. Restored
            into a new `ModelAverage` of such a model, they continue it bit for bit. Their paths
            are "average/" and the weights' with "_" for "/".

    Raises:
        ValueError: `decay` is out of its range.
    """

    def __init__(self, model: keras.Model, decay: float = 0.9999):
        _check_number("decay", decay, "in (0, 1)", lambda x: 0 < x < 1)
        self.decay = decay
        self._weights = [w for w in model.weights if keras.backend.is_float_dtype(w.dtype)]
        with keras.name_scope("average"):
            self._averages = [
                keras.Variable(
                    # A copy: JAX would share the buffer, and `fit` gives the weights' away.
                    ops.copy(w),
                    dtype=keras.backend.result_type(w.dtype, "float32"),
                    trainable=False,
                    name=w.path.replace("/", "_"),
                )
                for w in self._weights
            ]
            self._updates = keras.Variable(0, dtype="int32", trainable=False, name="updates")
        self.variables = [*self._averages, self._updates]
        # One graph: hundreds of eager operations would cost as much as a small model's step.
        self._step = self._move if tf is None else tf.function(self._move, autograph=False)

    def update(self) -> None:
        """Moves the averages towards the present weights; to be called after every step."""
        self._step()

    def _move(self):
        # 1 - (1 + t) / (10 + t), without the difference, which float32 would round.
        warmup = 9.0 / (10.0 + ops.cast(self._updates, "float32"))
        share = ops.maximum(1.0 - self.decay, warmup)
        for weight, average in zip(self._weights, self._averages, strict=True):
            distance = ops.subtract(ops.cast(weight, average.dtype), average)
            average.assign_add(distance * ops.cast(share, average.dtype))
        self._updates.assign_add(1)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within the `with`, the model has the averages; after it, its own weights again.

        They come back bit for bit, also after an exception; changes made within are lost.
        """
        kept = [ops.copy(weight) for weight in self._weights]
        try:
            for weight, average in zip(self._weights, self._averages, strict=True):
                weight.assign(ops.cast(ops.copy(average), weight.dtype))
            yield
        finally:
            for weight, value in zip(self._weights, kept, strict=True):
                weight.assign(value)


def _check_number(argument: str, value, allowed: str, holds: Callable[[float], bool]) -> None:
    real = is_number(value) and math.isfinite(value)
    if not real or not holds(float(value)):
        raise ValueError(
            f"`{argument}` must be a number, {allowed}. Received: {argument}={value!r}"
        )


def _check_count(argument: str, value, least: int, most: float = math.inf) -> None:
    if not is_whole(value) or not least <= value <= most:
        allowed = f"at least {least}" if most == math.inf else f"from {least} to {most}"
        raise ValueError(f"`{argument}` must be a whole number {allowed}. Received: {value!r}")
