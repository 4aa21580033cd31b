"""What a layer gives, and how a class's logit changes with it, on every backend of Keras.

A model is run as it is, any model that calls the layer: functional, nested or subclassed. For the
time of one call, in one thread, the layer's output passes through a function of ours.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np

Hook = Callable[[Any], Any]
_hooks: ContextVar[dict[int, Hook] | None] = ContextVar("hooks", default=None)
_lock = threading.Lock()


@dataclass(frozen=True)
class Found:
    """What `Differentiated` gives for N pictures.

    Args:
        activations: What each layer gave, as it gave it.
        gradients: Of the logit of each picture's class with respect to these, in their shapes.
        logits: (N, K).
        class_index: (N,), the class of each.
    """

    activations: list[np.ndarray]
    gradients: list[np.ndarray]
    logits: np.ndarray
    class_index: np.ndarray


class Differentiated:
    """Pictures -> logits, and their gradient with respect to what layers give, or the pictures.

    Compiled once for a shape of pictures; the model's variables are those of the time of a call.

    Args:
        model: (N, ...) -> (N, K).
        layers: In it, each called once; none for the pictures themselves.
        last: Its last layer where that makes probabilities of logits, which is left out.
        centre_of: Another layer, called once: instead of the logit, the sum of its channels in the
            middle position is differentiated.

    Raises:
        ValueError: Keras's backend has no gradients.
    """

    def __init__(
        self,
        model: keras.Model,
        layers: Sequence[Any] = (),
        last: Any = None,
        centre_of: Any = None,
    ):
        self.model, self.layers, self.last, self.centre_of = model, layers, last, centre_of
        make = {"tensorflow": _by_tensorflow, "jax": _by_jax, "torch": _by_torch}
        backend = keras.backend.backend()
        if backend not in make:
            raise ValueError(f"an explanation needs gradients, which Keras on {backend} has not")
        self._run = make[backend](self)
        self._called: list[Any] = []  # `layers` in the order that the model calls them

    def __call__(self, images: np.ndarray, class_index: np.ndarray, back: bool = True) -> Found:
        """Runs the model, and back to the layers.

        Args:
            images: (N, ...), float32, as the model takes them.
            class_index: (N,), whole numbers; `methods.OWN_CLASS` for that of the largest logit.
            back: False: without gradients.

        Raises:
            ValueError: A layer is not called once.
        """
        if not self.model.built:  # a subclassed one that was never called
            self.model(images[:1].astype(np.float32))
        found = self._run(images.astype(np.float32), class_index.astype(np.int32), back)
        activations, gradients, logits, chosen = keras.tree.map_structure(
            keras.ops.convert_to_numpy, found
        )
        places = [self._called.index(layer) for layer in self.layers] or [0]
        return Found(
            [np.asarray(activations[i], np.float32) for i in places],
            [np.asarray(gradients[i], np.float32) for i in places if back],
            np.asarray(logits, np.float32),
            chosen,
        )

    def forward(self, images: Any, wanted: Any, hook: Hook, run: Callable) -> tuple[Any, Any, Any]:
        """Runs the model on backend tensors: (what is to be differentiated, logits, classes).

        Args:
            images: (N, ...).
            wanted: (N,), classes or `methods.OWN_CLASS`.
            hook: Is given what each layer gives, once; what it returns goes on.
            run: The model.
        """
        calls: dict[Any, list[Any]] = {one: [] for one in self.layers}
        if self.centre_of is not None:
            calls[self.centre_of] = []

        called: list[Any] = []

        def passing(layer: Any, x: Any) -> Any:
            calls[layer].append(x)
            if layer not in self.layers:
                return x
            called.append(layer)
            return hook(x)

        hooks: dict[int, Hook] = {id(layer): partial(passing, layer) for layer in calls}
        images = images if self.layers else hook(images)
        with _hooked(calls, self.last), _set(hooks):
            logits = keras.ops.cast(run(images), "float32")
        for layer, seen in calls.items():
            _check_once(layer, seen, self.model)
        self._called = called
        chosen = _chosen(logits, wanted)
        if self.centre_of is not None:
            return _centre(calls[self.centre_of][0]), logits, chosen
        return _score(logits, chosen), logits, chosen


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

    def traced(images, wanted, back):
        kept: list[Any] = []
        with tf.GradientTape(watch_accessed_variables=False) as tape:

            def hook(x):
                tape.watch(x)
                kept.append(x)
                return x

            score, logits, chosen = of.forward(images, wanted, hook, run)
        gradients = tape.gradient(score, kept, unconnected_gradients="zero") if back else []
        return kept, gradients, logits, chosen

    functions: dict[Any, Any] = {}

    def with_shapes(images, wanted, back):
        if tf.config.functions_run_eagerly():
            return traced(tf.constant(images), tf.constant(wanted), back)
        # One for each size of pictures, and any number of them: TensorFlow's own choice among its
        # traces would warn that there are many.
        key = images.shape[1:], back
        if key not in functions:
            signature = (
                tf.TensorSpec((None, *images.shape[1:]), tf.float32),
                tf.TensorSpec((None,), tf.int32),
            )
            made = tf.function(partial(traced, back=back), autograph=False)
            functions[key] = made.get_concrete_function(*signature)
        return functions[key](tf.constant(images), tf.constant(wanted))

    return with_shapes


def _by_jax(of: Differentiated) -> Callable:
    import jax
    import jax.numpy as jnp

    model = of.model

    @partial(jax.jit, static_argnames="back")
    def compiled(trainable, others, images, wanted, back):
        def run(x):
            return model.stateless_call(trainable, others, x, training=False)[0]

        def forward(shifts):
            kept: list[Any] = []

            def hook(x):
                kept.append(x if shifts is None else x + shifts[len(kept)])
                return kept[-1]

            score, logits, chosen = of.forward(images, wanted, hook, run)
            return score, (kept, logits, chosen)

        if not back:
            kept, logits, chosen = forward(None)[1]
            return kept, [], logits, chosen
        shapes = jax.eval_shape(lambda: forward(None)[1][0])
        shifts = [jnp.zeros(one.shape, one.dtype) for one in shapes]
        gradients, (kept, logits, chosen) = jax.grad(forward, has_aux=True)(shifts)
        return kept, gradients, logits, chosen

    def with_state(images, wanted, back):
        if any(variable.value is None for variable in model.variables):
            raise ValueError(
                "`model` is being trained: on JAX its weights are elsewhere until the epoch ends. "
                "Explain it in `on_epoch_end`"
            )
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
            if not kept:  # what comes before the first layer is not kept
                torch.set_grad_enabled(back)
                x = x.detach().requires_grad_(back)
            kept.append(x)
            return x

        with torch.no_grad():  # sets what was set before, in the end
            images, wanted = (keras.ops.convert_to_tensor(one) for one in (images, wanted))
            score, logits, chosen = of.forward(images, wanted, hook, model)
            gradients: Any = []
            if back:
                gradients = torch.autograd.grad(
                    score, kept, allow_unused=True, materialize_grads=True
                )
        return [one.detach() for one in kept], list(gradients), logits.detach(), chosen

    return run
