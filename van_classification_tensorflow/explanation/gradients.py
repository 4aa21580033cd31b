"""What a layer gives, and how a class's logit changes with it, on every backend of Keras.

A model is run as it is, any model that calls the layer: functional, nested or subclassed. For the
time of one call, in one thread, the layer's output passes through a function of ours.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np

Hook = Callable[[Any], Any]
OWN_CLASS = -1  # of a picture, in place of an index: the class with the largest logit

_hooks: ContextVar[dict[int, Hook] | None] = ContextVar("hooks", default=None)
_lock = threading.Lock()


@dataclass(frozen=True)
class Found:
    """What `Differentiated` gives for N pictures.

    Args:
        activation: What the layer gave, as it gave it.
        gradient: Of the logit of each picture's class with respect to that; the same shape.
        logits: (N, K).
        class_index: (N,), the class of each.
    """

    activation: np.ndarray
    gradient: np.ndarray
    logits: np.ndarray
    class_index: np.ndarray


class Differentiated:
    """Pictures -> logits, and their gradient with respect to what a layer gives, or the pictures.

    Compiled once for a shape of pictures; the model's variables are those of the time of a call.

    Args:
        model: (N, ...) -> (N, K), built.
        layer: In it, called once; None for the pictures themselves.
        last: Its last layer where that makes probabilities of logits, which is left out.
        centre_of: Another layer, called once: instead of the logit, the sum of its channels in the
            middle position is differentiated.

    Raises:
        ValueError: Keras's backend has no gradients.
    """

    def __init__(self, model: keras.Model, layer: Any, last: Any = None, centre_of: Any = None):
        self.model, self.layer, self.last, self.centre_of = model, layer, last, centre_of
        make = {"tensorflow": _by_tensorflow, "jax": _by_jax, "torch": _by_torch}
        backend = keras.backend.backend()
        if backend not in make:
            raise ValueError(f"an explanation needs gradients, which Keras on {backend} has not")
        self._run = make[backend](self)

    def __call__(self, images: np.ndarray, class_index: np.ndarray, back: bool = True) -> Found:
        """Runs the model, and back to the layer.

        Args:
            images: (N, ...), float32, as the model takes them.
            class_index: (N,), whole numbers; `OWN_CLASS` for the class with the largest logit.
            back: False: without the gradient, which is empty then.

        Raises:
            ValueError: A layer is not called once.
        """
        found = self._run(images.astype(np.float32), class_index.astype(np.int32), back)
        activation, gradient, logits, chosen = map(keras.ops.convert_to_numpy, found)
        activation, gradient, logits = (
            np.asarray(one, np.float32) for one in (activation, gradient, logits)
        )
        return Found(activation, gradient, logits, chosen)

    def forward(self, images: Any, wanted: Any, hook: Hook, run: Callable) -> tuple[Any, Any, Any]:
        """Runs the model on backend tensors: (what is to be differentiated, logits, classes).

        Args:
            images: (N, ...).
            wanted: (N,), classes or `OWN_CLASS`.
            hook: Is given what the layer gives, once, and what it returns goes on.
            run: The model.
        """
        calls: dict[Any, list[Any]] = {one: [] for one in (self.layer, self.centre_of) if one}

        def passing(layer: Any, x: Any) -> Any:
            calls[layer].append(x)
            return hook(x) if layer is self.layer else x

        hooks: dict[int, Hook] = {id(layer): partial(passing, layer) for layer in calls}
        images = hook(images) if self.layer is None else images
        with _hooked(calls, self.last), _set(hooks):
            logits = keras.ops.cast(run(images), "float32")
        for layer, seen in calls.items():
            _check_once(layer, seen, self.model)
        chosen = _chosen(logits, wanted)
        target = calls.get(self.centre_of)
        return _score(logits, chosen) if target is None else _centre(target[0]), logits, chosen


def _check_once(layer: Any, seen: list[Any], model: keras.Model) -> None:
    if len(seen) != 1:
        often = "not" if not seen else f"{len(seen)} times"
        raise ValueError(
            f"`layer` must be one that every picture passes once. Received: {layer.name!r}, which "
            f"{model.name!r} calls {often}"
        )


@contextmanager
def _set(hooks: dict[int, Hook]) -> Iterator[None]:
    token = _hooks.set(hooks)
    try:
        yield
    finally:
        _hooks.reset(token)


@contextmanager
def _hooked(layers: Iterable[Any], last: Any) -> Iterator[None]:
    """For a while the layers' outputs go through this thread's hooks; others see no difference."""
    with _lock, ExitStack() as undo:
        for layer in layers:
            undo.callback(_wrap_call(layer))
        if last is not None:
            undo.callback(_wrap_activation(last))
        yield


def _wrap_call(layer: Any) -> Callable[[], None]:
    before = layer.call

    def call(*args: Any, **kwargs: Any) -> Any:
        hook = (_hooks.get() or {}).get(id(layer))
        found = before(*args, **kwargs)
        return found if hook is None else hook(found)

    # Past Keras's and torch's own ways of setting attributes: it is none that they should know.
    vars(layer)["call"] = call
    return partial(vars(layer).pop, "call", None)


def _wrap_activation(last: Any) -> Callable[[], None]:
    before = last.activation

    def activation(x: Any) -> Any:
        return before(x) if _hooks.get() is None else x

    last.activation = activation
    return partial(setattr, last, "activation", before)


def _chosen(logits: Any, wanted: Any) -> Any:
    """(N,): the wanted class, or the one with the largest logit; of one output 0 or 1."""
    ops = keras.ops
    if logits.shape[-1] == 1:
        own = ops.cast(logits[:, 0] > 0, "int32")
    else:
        own = ops.cast(ops.argmax(logits, axis=-1), "int32")
    return ops.where(wanted >= 0, wanted, own)


def _score(logits: Any, chosen: Any) -> Any:
    """The sum of each picture's logit, whose gradients do not mix; of one output: of its class 1.

    That of class 0, what it is not, is the same with the other sign.
    """
    ops = keras.ops
    if logits.shape[-1] == 1:
        return ops.sum(logits[:, 0] * ops.cast(2 * chosen - 1, logits.dtype))
    return ops.sum(ops.take_along_axis(logits, chosen[:, None], axis=1))


def _centre(x: Any) -> Any:
    """Sum over pictures and channels in the middle position of (N, h, w, C)."""
    height, width = keras.ops.shape(x)[1:3]
    return keras.ops.sum(keras.ops.cast(x[:, height // 2, width // 2], "float32"))


def _by_tensorflow(of: Differentiated) -> Callable:
    import tensorflow as tf

    run = partial(of.model, training=False)

    @tf.function(reduce_retracing=True, autograph=False)
    def compiled(images, wanted, back):
        kept: list[Any] = []
        with tf.GradientTape(watch_accessed_variables=False) as tape:

            def hook(x):
                tape.watch(x)
                kept.append(x)
                return x

            score, logits, chosen = of.forward(images, wanted, hook, run)
        gradient = (
            tape.gradient(score, kept[0], unconnected_gradients="zero") if back else tf.zeros(0)
        )
        return kept[0], gradient, logits, chosen

    return lambda images, wanted, back: compiled(tf.constant(images), tf.constant(wanted), back)


def _by_jax(of: Differentiated) -> Callable:
    import jax
    import jax.numpy as jnp

    model = of.model

    @partial(jax.jit, static_argnames="back")
    def compiled(trainable, others, images, wanted, back):
        def run(x):
            return model.stateless_call(trainable, others, x, training=False)[0]

        def forward(shift):
            kept: list[Any] = []

            def hook(x):
                kept.append(x if shift is None else x + shift)
                return kept[-1]

            score, logits, chosen = of.forward(images, wanted, hook, run)
            return score, (kept[0], logits, chosen)

        if not back:
            activation, logits, chosen = forward(None)[1]
            return activation, jnp.zeros(0), logits, chosen
        layer = jax.eval_shape(lambda: forward(None)[1][0])
        shift = jnp.zeros(layer.shape, layer.dtype)
        gradient, (activation, logits, chosen) = jax.grad(forward, has_aux=True)(shift)
        return activation, gradient, logits, chosen

    def with_state(images, wanted, back):
        trainable = [variable.value for variable in model.trainable_variables]
        others = [variable.value for variable in model.non_trainable_variables]
        return compiled(trainable, others, images, wanted, back=back)

    return with_state


def _by_torch(of: Differentiated) -> Callable:
    import torch

    model = partial(of.model, training=False)

    def run(images, wanted, back):
        kept: list[Any] = []

        def hook(x):
            torch.set_grad_enabled(back)  # from here on; what comes before is not kept
            kept.append(x.detach().requires_grad_(back))
            return kept[-1]

        with torch.no_grad():  # sets what was set before, in the end
            images, wanted = (keras.ops.convert_to_tensor(one) for one in (images, wanted))
            score, logits, chosen = of.forward(images, wanted, hook, model)
            gradient = torch.zeros(0)
            if back:
                (gradient,) = torch.autograd.grad(
                    score, kept, allow_unused=True, materialize_grads=True
                )
        return kept[0].detach(), gradient, logits.detach(), chosen

    return run
