"""What a `.keras` file's configuration says, read as data: the VAN in it, and what is around it.

A VAN is answered for as it was saved, and with a classifier head that its user put on it, in any
way that Keras has to do so: on its layers, with it as a layer, in a `Sequential`, cloned. Nothing
is made of what a stranger's file names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..registration import CLASSES
from ..spec.config import stage_kernel_stride
from ..spec.decoders import DecoderSizes
from ..spec.labels import right_number
from ..support.text import excerpt

_OURS = "van_classification_tensorflow>"
_MODELS = ("Functional", "Sequential")
_FOR_KERAS_HUB = {
    f"{_OURS}{name}"
    for module, names in CLASSES.items()
    if module.startswith("keras_hub.")
    for name in names
}
_POLICIES = ("DTypePolicy", "DTypePolicyMap", "QuantizedDTypePolicy")
# They change nothing in inference. Not `RandomCrop`, which says that it gives another size.
_AUGMENTATIONS = {
    "AugMix",
    "CutMix",
    "MixUp",
    "RandAugment",
    "RandomBrightness",
    "RandomColorDegeneration",
    "RandomColorJitter",
    "RandomContrast",
    "RandomElasticTransform",
    "RandomErasing",
    "RandomFlip",
    "RandomGaussianBlur",
    "RandomGrayscale",
    "RandomHue",
    "RandomInvert",
    "RandomPerspective",
    "RandomPosterization",
    "RandomRotation",
    "RandomSaturation",
    "RandomSharpness",
    "RandomShear",
    "RandomTranslation",
    "RandomZoom",
}
ONLY_IN_TRAINING = {
    *_AUGMENTATIONS,
    "ActivityRegularization",
    "AlphaDropout",
    "Dropout",
    "GaussianDropout",
    "GaussianNoise",
    "Identity",
    "SpatialDropout1D",
    "SpatialDropout2D",
}
# Entries of a layer's configuration that change nothing in what it computes from its weights in
# inference (LoRA is saved in the kernels).
_HARMLESS = {"trainable", "dtype", "lora_rank", "lora_alpha", "seed", "momentum", "rate"}
_HARMLESS_ENDINGS = ("_regularizer", "_constraint", "_initializer")
_DEEPEST = 8  # models inside models
INSTEAD = (
    "where you trust it, load it with `keras.saving.load_model` and give `Classifier` the model; "
    "or give the file of the VAN in it"
)
QUANTISED = (
    "layers that Keras has quantised, which have no tensors of a VAN: where you trust it, load it "
    "with `keras.saving.load_model` and give `Classifier` the model; or give the file of the model "
    "before `quantize`"
)


@dataclass(frozen=True)
class Described:
    """A VAN, perhaps with a head of someone's own, or with a decoder.

    Args:
        about: As in `VAN.get_config`: labels, preprocessing, classifier_activation, pooling.
        head: Name of the layer that is the head where it is not the VAN's own.
        use_bias: Whether that layer has a bias.
        notes: What one should know, as in `weights/sidecars.py`.
        decoder: Of a segmenter, what is behind the VAN.
    """

    about: dict[str, Any]
    head: str | None = None
    use_bias: bool = True
    notes: tuple[str, ...] = ()
    decoder: DecoderSizes | None = None


@dataclass(frozen=True)
class _Layer:
    name: str
    kind: str
    """Name of its class: of this package's with `_OURS` before it, of a stranger's its module."""
    config: dict[str, Any]


def describe(config: Mapping[str, Any]) -> Described:
    """Finds the VAN in what `config.json` holds.

    Raises:
        ValueError: There is none, or what is around it is not a classifier head.
    """
    if _kind(config) == f"{_OURS}VAN":
        about = dict(config["config"])
        _check_parts(about.get("parts"))
        return Described(about)
    if _kind(config) == f"{_OURS}VANSegmenter":
        about = dict(config["config"])
        _check_parts(about.get("parts"))
        return Described(about, decoder=DecoderSizes.of_config(about))
    if _kind(config) not in _MODELS:
        raise ValueError(
            f"a model of class {excerpt(_kind(config))}; expected this package's VAN, "
            "alone or in a model of Keras's functional API (of a fused one, the VAN it was made "
            f"from): {INSTEAD}"
        )
    layers = [layer for layer in _chain(config) if not _changes_nothing(layer)]
    about, rest = _body(layers)
    head = rest[0] if rest and rest[0].kind == "Dense" else None
    if head is None:
        return _without_more(Described(about), rest, about)
    if about.get("include_top", True) or about.get("pooling") != "avg":
        raise ValueError(
            f"its layer {excerpt(head.name)} follows what is not the mean over all positions "
            f"(`pooling='avg'`): {INSTEAD}"
        )
    activation = head.config.get("activation") or "linear"
    rest = rest[1:]
    if activation == "linear" and rest and rest[0].kind in ("Activation", "Softmax"):
        activation = rest[0].config.get("activation", "softmax")
        if rest[0].kind == "Softmax" and rest[0].config.get("axis") not in (-1, 1, [-1], [1]):
            activation = "softmax over other axes"
        rest = rest[1:]
    if head.config.get("quantization_config") is not None:
        raise ValueError(QUANTISED)
    about |= {"classifier_activation": activation, "include_top": True}
    labels, units = about.get("labels"), head.config.get("units")
    notes = []
    if isinstance(labels, list) and not right_number(len(labels), units):
        del about["labels"]
        notes.append(
            f"The VAN in it names {len(labels):,} classes, its head has {units}: the names are "
            "left out."
        )
    use_bias = bool(head.config.get("use_bias", True))
    described = Described(about, head.name, use_bias, tuple(notes))
    return _without_more(described, rest, about)


def check_keras_hub(content: Any, file: str) -> None:
    """Checks that KerasHub would make only objects of this package of a file of its own.

    Args:
        content: Of the file, as JSON.
        file: Its name.

    Raises:
        ValueError: It names another class.
    """
    if not isinstance(content, dict) or not _is_for_keras_hub(content):
        raise ValueError(f"{file} describes nothing of this package")
    waiting: list[Any] = [content]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, dict):
            waiting += one.values()
            # Keras makes an object of whatever has this entry.
            if "class_name" in one and not _is_for_keras_hub(one):
                raise ValueError(
                    f"{file} names the class {excerpt(one['class_name'])}; expected only those of "
                    "this package for KerasHub"
                )


def _is_for_keras_hub(entry: Mapping[str, Any]) -> bool:
    module, name, registered = map(entry.get, ("module", "class_name", "registered_name"))
    if isinstance(registered, str) and registered in _FOR_KERAS_HUB:
        return name == registered.removeprefix(_OURS)
    return name in _POLICIES and module == "keras" and registered in (None, name)


def _changes_nothing(layer: _Layer) -> bool:
    if layer.kind in _AUGMENTATIONS and "int" in str(layer.config.get("dtype")):
        return False  # it casts even then
    is_linear = layer.kind == "Activation" and layer.config.get("activation") == "linear"
    return is_linear or layer.kind in ONLY_IN_TRAINING


def _without_more(described: Described, rest: list[_Layer], about: dict[str, Any]) -> Described:
    if rest:
        raise ValueError(
            f"its layer {excerpt(rest[0].name)} ({excerpt(rest[0].kind)}) is none of a VAN "
            f"with a head of [Dropout,] Dense and an activation: {INSTEAD}"
        )
    return described


def _kind(entry: Any) -> str:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("config"), Mapping):
        raise ValueError("its config.json describes no model")
    module, name, registered = map(entry.get, ("module", "class_name", "registered_name"))
    if isinstance(registered, str) and registered.startswith(_OURS):
        return registered
    of_keras = str(module).split(".")[0] == "keras" and registered in (None, name)
    return str(name) if of_keras else f"{module}.{name}"  # a stranger's class of the same name


# --- The graph ---


def _chain(model: Mapping[str, Any], depth: int = 0) -> list[_Layer]:
    """The layers of a model in the order in which they are called; those of inner models too."""
    if depth > _DEEPEST:
        raise ValueError(f"models inside models, more than {_DEEPEST} deep")
    config = model["config"]
    entries = config.get("layers")
    if not isinstance(entries, list) or not entries:
        raise ValueError("its config.json describes no model")
    if _kind(model) == "Functional":
        entries = _in_order(config, entries)
    found: list[_Layer] = []
    for entry in entries:
        kind = _kind(entry)
        if kind in _MODELS:
            found += _chain(entry, depth + 1)
        elif kind != "InputLayer":
            found.append(_Layer(str(entry["config"].get("name")), kind, dict(entry["config"])))
    return found


def _in_order(config: Mapping[str, Any], entries: list[Any]) -> list[Any]:
    by_name = {str(entry.get("name")): entry for entry in entries if isinstance(entry, Mapping)}
    names = _called(config.get("output_layers"))
    order: list[Any] = []
    while len(names) == 1 and names[0] in by_name and len(order) < len(entries):
        entry = by_name[names[0]]
        order.append(entry)
        calls = entry.get("inbound_nodes")
        if calls == []:
            break
        if not isinstance(calls, list) or len(calls) != 1 or not isinstance(calls[0], Mapping):
            break
        names = [name for found in _tensors(calls[0].get("args")) for name in _called(found)]
    if len(order) != len(entries) or order[-1].get("inbound_nodes") != []:
        raise ValueError(
            "a model that is no chain of layers from one input to one output; read are a VAN and a "
            f"head on it: {INSTEAD}"
        )
    return order[::-1]


def _called(history: Any) -> list[str]:
    """[layer, node, tensor], or a list of one such -> [layer]."""
    if isinstance(history, list) and len(history) == 1:
        history = history[0]
    if isinstance(history, list) and len(history) == 3 and isinstance(history[0], str):
        return [history[0]]
    return []


def _tensors(args: Any) -> Iterator[Any]:
    for one in args if isinstance(args, list) else ():
        if isinstance(one, Mapping) and isinstance(one.get("config"), Mapping):
            yield one["config"].get("keras_history")
        else:
            yield from _tensors(one)


# --- The VAN ---


def _body(layers: list[_Layer]) -> tuple[dict[str, Any], list[_Layer]]:
    """(what the VAN at the start of `layers` says of itself, the layers after it)."""
    if layers and layers[0].kind == f"{_OURS}VAN":
        about, rest = dict(layers[0].config), layers[1:]
        _check_parts(about.get("parts"))
        return (about, rest) if about.get("include_top", True) else _pooled(about, rest)
    first = layers[0] if layers else None
    if first and first.kind == "Permute" and first.config.get("dims") == [2, 3, 1]:
        layers = layers[1:]  # of channels_first input
    about = {"include_top": False, "pooling": None}
    stage = block = count = 0
    for layer in layers:
        expected = f"patch_embed{stage + 1}", f"block{stage}_{block}", f"norm{stage}"
        if layer.name not in expected or not _is_ours(layer):
            break
        count += 1
        if layer.name == expected[0]:
            stage, block = stage + 1, 0
        elif layer.name == expected[1]:
            block += 1
        if layer.name == "patch_embed1":
            kept = ("labels", "preprocessing")
            about |= {key: layer.config[key] for key in kept if layer.config.get(key) is not None}
    if not block or layers[count - 1].name != f"norm{stage}":
        found = [f"{excerpt(one.name)} ({excerpt(one.kind)})" for one in layers[count:][:1]]
        raise ValueError(
            "a model that does not begin with this package's VAN; read are a VAN and a head on it. "
            f"Found: {''.join(found) or 'no more layers'}. Else {INSTEAD}"
        )
    return _pooled(about, layers[count:])


def _pooled(about: dict[str, Any], rest: list[_Layer]) -> tuple[dict[str, Any], list[_Layer]]:
    """The same with the pooling of someone's own, which is as good."""
    kinds = {"GlobalAveragePooling2D": "avg", "GlobalMaxPooling2D": "max"}
    first = rest[0] if rest else _Layer("", "", {})
    usual = first.config.get("data_format") == "channels_last" and not first.config.get("keepdims")
    if about.get("pooling") is None and first.kind in kinds and usual:
        about["pooling"] = kinds[first.kind]
        rest = rest[1:]
    if about.get("pooling") is not None and rest and rest[0].kind == "Flatten":
        rest = rest[1:]  # (B, C) as it is
    return about, rest


def _is_ours(layer: _Layer) -> bool:
    """Whether a layer with a VAN's name computes what a VAN's does."""
    config = layer.config
    _check_parts({layer.name: {"parts": config.get("parts") or {}}})
    if layer.name.startswith("patch_embed"):
        size = config.get("kernel_size"), config.get("stride")
        usual = stage_kernel_stride(int(layer.name.removeprefix("patch_embed")))
        fused = config.get("batch_norm", True) is not True
        return layer.kind == f"{_OURS}OverlapPatchEmbed" and size == usual and not fused
    if layer.name.startswith("block"):
        return layer.kind == f"{_OURS}Block"
    usual_norm = {"epsilon": 1e-6, "center": True, "scale": True}
    return (
        layer.kind == "LayerNormalization"
        and all(config.get(key) == value for key, value in usual_norm.items())
        and config.get("axis") in (-1, [-1], [3])
        and not config.get("rms_scaling")
    )


def _check_parts(parts: Any) -> None:
    """Raises `ValueError` where a layer was changed so that its tensors do not say what it does."""
    for path, key, value in changed_parts(parts):
        if key == "quantization_config":
            raise ValueError(QUANTISED)
        raise ValueError(
            f"its layer {path} was changed: {excerpt(key)}={excerpt(value)}, which its tensors "
            f"do not say: {INSTEAD}"
        )


def changed_parts(parts: Any, where: str = "") -> Iterator[tuple[str, str, Any]]:
    """(path of a layer, entry of its configuration, value) of what changes what a VAN computes.

    Raises:
        ValueError: They are not as `VAN.get_config` gives them.
    """
    if parts is not None and not isinstance(parts, Mapping):
        raise ValueError("its config.json describes no model")
    for name, changes in (parts or {}).items():
        path = f"{where}{name}"
        if not isinstance(changes, Mapping) or not re.fullmatch(r"[\w/]{1,100}", path):
            raise ValueError("its config.json describes no model")
        for key, value in changes.items():
            if key == "parts":
                yield from changed_parts(value, f"{path}/")
            elif key not in _HARMLESS and not key.endswith(_HARMLESS_ENDINGS):
                yield path, key, value
