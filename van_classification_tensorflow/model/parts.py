"""Layers made of named parts, and what was set on single parts after they were made.

A VAN is saved as the arguments of its constructor. What was set on single layers (frozen, another
dtype policy, quantised, LoRA, a regulariser) is saved beside them as differences from what the
constructor makes, and applied again when the model is loaded or cloned.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras


def changed(layer: keras.layers.Layer, changes: Mapping[str, Any] | None) -> keras.layers.Layer:
    """`layer`, or one of its kind with some entries of its configuration replaced."""
    if not changes:
        return layer
    return type(layer).from_config({**layer.get_config(), **changes})


def changed_parts(
    model: keras.Model, make: Callable[[], Iterable[keras.layers.Layer]]
) -> dict[str, dict[str, Any]]:
    """{name of a layer: what its configuration says otherwise than that of the one `make` makes}.

    Args:
        model: Has a layer of the name of each that is made.
        make: Makes the layers as they are by default.
    """
    with _same_random_state():
        defaults = list(make())
    return _differences((model.get_layer(layer.name) for layer in defaults), defaults)


def _differences(
    layers: Iterable[keras.layers.Layer], defaults: Iterable[keras.layers.Layer]
) -> dict[str, dict[str, Any]]:
    """{name: what the configuration of a layer says otherwise than that of its default}.

    Args:
        layers: As they are now.
        defaults: As their maker makes them, in the same order.
    """
    found = {}
    for layer, default in zip(layers, defaults, strict=True):
        # A default has no changed parts, which would be looked for.
        plain = default.plain_config() if isinstance(default, Composite) else default.get_config()
        plain = _unshared(plain)
        if isinstance(layer, Composite) and _unshared(layer.plain_config()) == plain:
            # Its parts are those of the default, so that none has to be made for them alone.
            config = layer.with_changes(layer.plain_config(), default)
        else:
            config = layer.get_config()
        # Keras makes [-1] of an axis of -1 once a layer is built.
        other = {
            key: value
            for key, value in _unshared(config).items()
            if key not in plain or value not in (plain[key], [plain[key]])
        }
        if other:
            found[layer.name] = other
    return found


@contextmanager
def _same_random_state() -> Iterator[None]:
    """Layers made inside leave Python's random state as it was: initialisers draw seeds from it."""
    drawn = random.getstate()
    try:
        yield
    finally:
        random.setstate(drawn)


def _unshared(value: Any) -> Any:
    """`value` without the numbers that Keras gives objects while it saves a model."""
    if isinstance(value, dict):
        return {k: _unshared(v) for k, v in value.items() if k != "shared_object_id"}
    return [_unshared(one) for one in value] if isinstance(value, list) else value


class Composite(keras.layers.Layer):
    """A layer made of named sub-layers (its parts), each of which keeps what was set on it.

    Keras saves a layer as the arguments of its constructor, which say nothing of the parts. What
    was set on a part (frozen, another dtype policy, quantised, LoRA, a regulariser) is saved as
    well, where it differs from what the constructor makes.

    Args:
        parts: {name of a part: {entry of its configuration: value}}, as `get_config` gives it.
    """

    arguments: tuple[str, ...] = ()  # of the constructor, and attributes

    def __init__(self, parts: Mapping[str, Mapping[str, Any]] | None = None, **kwargs):
        super().__init__(**kwargs)
        self._parts = dict(parts or {})

    def _part(self, kind: Any, *args, **kwargs) -> Any:
        """A sub-layer, with the dtype policy of this layer and frozen with it."""
        layer = kind(*args, dtype=self.dtype_policy, trainable=self.trainable, **kwargs)
        return changed(layer, self._parts.get(layer.name))

    def plain_config(self) -> dict:
        """The configuration without what was set on the parts."""
        return {**super().get_config(), **{name: getattr(self, name) for name in self.arguments}}

    def get_config(self) -> dict:
        config = self.plain_config()
        with _same_random_state():
            default = type(self).from_config(config)
        return self.with_changes(config, default)

    def with_changes(self, config: dict, default: Composite) -> dict:
        """`config` with what was set on the parts, which `default` has as they are made."""
        both = (layer._flatten_layers(False, False) for layer in (self, default))
        parts = _differences(*both)
        return {**config, "parts": parts} if parts else config
