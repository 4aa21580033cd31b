"""A `.keras` file of a `VANSegmenter` from strangers, read as data; no class in it is ever made."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from math import prod
from typing import Any

import keras
import numpy as np

from ..spec.architecture import Architecture
from ..spec.config import resolve
from ..spec.decoders import OF_DECODER, DecoderSizes
from ..spec.labels import labels_of
from ..spec.palette import colours_of
from ..spec.preprocessing import Preprocessing
from ..support.checks import is_whole
from ..support.text import excerpt, printable
from ..weights.checkpoint import CheckpointError, read_keras
from .model import VANSegmenter

_NAME = "van_classification_tensorflow>VANSegmenter"
_BESIDE = ("labels", "palette", "preprocessing")
# What does not change the answers of a model that is not trained.
_LEFT_OUT = {"parts", "trainable", "dtype", "data_format", "pretrained"}
_LARGEST = 100_000  # of a number of channels or classes
_MOST_BLOCKS = 500  # of a stage


def segmenter_of(path: str | os.PathLike) -> VANSegmenter:
    """The model of a `.keras` file, channels last and in float32.

    Raises:
        CheckpointError: It is damaged, or of another model; says what it is.
        OSError: There is no such file, or it cannot be opened.
    """
    config, tensors = read_keras(path)
    try:
        kind = config.get("registered_name") or config.get("class_name")
        if kind != _NAME:
            raise ValueError(
                f"a model of class {excerpt(kind)}; expected this package's VANSegmenter. Where "
                "you trust it, load it with `keras.saving.load_model` and give the model"
            )
        arguments = dict(config["config"])
        beside = {name: arguments.pop(name, None) for name in _BESIDE}
        arguments = {name: one for name, one in arguments.items() if name not in _LEFT_OUT}
        known = inspect.signature(VANSegmenter).parameters
        if unknown := sorted(set(arguments) - set(known)):
            raise ValueError(f"its config.json: no argument {excerpt(unknown[0])}")
        _check_sizes(arguments, tensors)
        _check_beside(beside, arguments)
        model = VANSegmenter(**arguments, data_format="channels_last", dtype="float32")
        _assign(model, tensors)
        for name, value in beside.items():
            setattr(model, name, value)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise CheckpointError(
            f"{printable(path)} was refused, nothing was loaded: {error}"
        ) from error
    return model


def _check_sizes(arguments: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Whether a model of these arguments is as large as the file, before one is made."""
    lists = [arguments.get(name) for name in ("embed_dims", "mlp_ratios", "depths")]
    if not all(isinstance(one, list) and 0 < len(one) <= 16 for one in lists):
        raise ValueError("its config.json: `embed_dims`, `mlp_ratios` and `depths` must be lists")
    widths, ratios, depths = lists
    if not all(is_whole(one) and 0 < one <= _MOST_BLOCKS for one in depths or ()):
        raise ValueError(f"its config.json: `depths` must be from 1 to {_MOST_BLOCKS}")
    names = ("num_classes", "in_chans", "channels", *OF_DECODER)
    numbers: dict[str, Any] = {name: arguments.get(name) for name in names}
    given = [*(widths or ()), *(one for one in numbers.values() if one is not None)]
    if not all(is_whole(one) and 0 < one <= _LARGEST for one in given):
        raise ValueError(f"its config.json: channels and classes must be from 1 to {_LARGEST:,}")
    config = resolve(None, widths, ratios, depths)
    hidden = [int(dim * ratio) for dim, ratio in zip(widths or (), ratios or (), strict=True)]
    if max(hidden) > 32 * _LARGEST:
        raise ValueError("its config.json: `mlp_ratios` are no sensible numbers")
    backbone = Architecture(
        tuple(config.embed_dims), tuple(hidden), tuple(config.depths), numbers["in_chans"], None
    )
    sizes = {name: numbers[name] for name in ("channels", *OF_DECODER)}
    decoder = DecoderSizes(kind=arguments.get("decoder"), **sizes)  # type: ignore[arg-type]
    specs = [*backbone.tensors().values()]
    specs += decoder.tensors(config.embed_dims, numbers["num_classes"]).values()
    needed = sum(prod(one.shape) for one in specs)
    there = sum(one.size for one in tensors.values())
    if needed > there:
        raise ValueError(
            f"its config.json describes a model of {needed:,} numbers, the file has {there:,}"
        )


def _check_beside(beside: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """What the model will refuse, before one is made."""
    if beside["labels"] is not None:
        labels_of(beside["labels"], arguments["num_classes"])
    if beside["palette"] is not None:
        colours_of(beside["palette"], arguments["num_classes"])
    Preprocessing.of(beside["preprocessing"])


def _assign(model: keras.Model, tensors: Mapping[str, np.ndarray]) -> None:
    """Every variable from the file; each has one there, and none is left over."""
    groups: dict[tuple[str, ...], dict[str, np.ndarray]] = {}
    for name, array in tensors.items():
        *owner, section, index = name.split("/")
        if section != "vars" or not owner:
            raise ValueError(f"a tensor {excerpt(name)} of no layer")
        groups.setdefault(tuple(owner), {})[index] = array
    left = {id(one): one.path for one in model.weights}
    for (first, *rest), arrays in groups.items():
        found: Any = model.get_layer(first)
        for step in rest:
            found = getattr(found, step, None)
            if not isinstance(found, (keras.layers.Layer, keras.random.SeedGenerator)):
                raise ValueError(f"a tensor of {excerpt('/'.join([first, *rest]))}, no layer of it")
        if isinstance(found, keras.random.SeedGenerator):
            continue  # of training
        found.load_own_variables(arrays)
        for one in found.weights:
            left.pop(id(one), None)
    if left:
        raise ValueError(f"it lacks {excerpt(next(iter(left.values())))} and others")
