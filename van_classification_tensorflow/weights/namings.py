"""What the tensors of a VAN are called and shaped, in every code base that publishes them.

The authors' names are the hub: each other naming translates to them and back. One table holds
the modules; the leaves (`weight`, `running_mean`, ...) are the same in all PyTorch code.
Keras's files differ in axes as well:

| kind      | authors (PyTorch) | this package, Keras 3 | earlier TensorFlow port |
|-----------|-------------------|-----------------------|-------------------------|
| conv      | (O, I, k, k)      | (k, k, I, O)          | (k, k, I, O)            |
| depthwise | (C, 1, k, k)      | (k, k, C, 1)          | (k, k, 1, C)            |
| pointwise | (O, I, 1, 1)      | (I, O)                | (1, 1, I, O)            |
| linear    | (O, I)            | (I, O)                | (I, O)                  |
| vector    | (C,)              | (C,)                  | (C,)                    |
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..spec.architecture import TensorSpec
from ..support.text import shown

# Modules by the authors, in Hugging Face's transformers and in OpenMMLab's mmpretrain;
# i: stage 1-4, s: i - 1, j: block. The spelling "pre_normomalization" is transformers' own.
_MODULES = (
    ("patch_embed{i}.proj", "stages.{s}.embeddings.convolution", "patch_embed{i}.projection"),
    ("patch_embed{i}.norm", "stages.{s}.embeddings.normalization", "patch_embed{i}.norm"),
    *(
        (f"block{{i}}.{{j}}.{ours}", f"stages.{{s}}.layers.{{j}}.{face}", f"blocks{{i}}.{{j}}.{mm}")
        for ours, face, mm in (
            ("layer_scale_1", "attention_scaling", "layer_scale_1"),
            ("layer_scale_2", "mlp_scaling", "layer_scale_2"),
            ("norm1", "pre_normomalization", "norm1"),
            ("attn.proj_1", "attention.pre_projection.conv", "attn.proj_1"),
            (
                "attn.spatial_gating_unit.conv0",
                "attention.attention_layer.attention.depth_wise",
                "attn.spatial_gating_unit.DW_conv",
            ),
            (
                "attn.spatial_gating_unit.conv_spatial",
                "attention.attention_layer.attention.depth_wise_dilated",
                "attn.spatial_gating_unit.DW_D_conv",
            ),
            (
                "attn.spatial_gating_unit.conv1",
                "attention.attention_layer.attention.point_wise",
                "attn.spatial_gating_unit.conv1",
            ),
            ("attn.proj_2", "attention.post_projection", "attn.proj_2"),
            ("norm2", "post_normalization", "norm2"),
            ("mlp.fc1", "mlp.in_dense", "mlp.fc1"),
            ("mlp.dwconv.dwconv", "mlp.depth_wise", "mlp.dwconv"),
            ("mlp.fc2", "mlp.out_dense", "mlp.fc2"),
        )
    ),
    ("norm{i}", "stages.{s}.normalization", "norm{i}"),
)
_OFFICIAL, _HUGGING_FACE, _OPENMMLAB = 0, 1, 2
_HEADS = {_HUGGING_FACE: "classifier", _OPENMMLAB: "head.fc"}
_BODIES = {_HUGGING_FACE: "van.encoder.", _OPENMMLAB: "backbone."}
# Layer scales are bare parameters by the authors and in mmpretrain, a module in transformers.
_SCALE = re.compile(r"\.(layer_scale_[12]|attention_scaling|mlp_scaling)$")

NAMINGS = {"official": _OFFICIAL, "huggingface": _HUGGING_FACE, "mmpretrain": _OPENMMLAB}

# Parts of other models around the backbone, which no VAN classifier has.
_FOREIGN = ("decode_head.", "auxiliary_head.", "neck.", "data_preprocessor.")


# --- Shapes ---


# --- Names ---


@dataclass(frozen=True)
class StateDict:
    """Weights under the authors' names, in PyTorch's axes.

    Args:
        tensors: {authors' name: array}; names that could not be translated stand as they were.
        naming: Whose names the source had: "official", "huggingface", "mmpretrain",
            "mmsegmentation", "tensorflow port 1.x" or "keras" (this package).
        ignored: {name in the source: why it was left out}.
    """

    tensors: dict[str, Any]
    naming: str
    ignored: dict[str, str] = field(default_factory=dict)


# The first tensor of a VAN in each PyTorch naming, and the module that may hold all but the head.
_FIRST = {
    "patch_embed1.proj.weight": "backbone",
    "patch_embed1.projection.weight": "backbone",
    "encoder.stages.0.embeddings.convolution.weight": "van",
}
# What may stand beside that module and be the VAN's, or is told apart later.
_BESIDE = ("head.", "classifier.", *_FOREIGN)
# What PyTorch puts anywhere into a name when it wraps a module.
_WRAPPED = re.compile(r"(^|\.)(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+")
_MAX_PLACES = 20
# What training code calls the model; of several VANs in one file the one so called is meant.
_USUAL = frozenset(("module", "model", "net", "network"))


def without_prefix(
    tensors: Mapping[str, Any], prefix: str | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors of one VAN, named as if it stood alone: `net.norm1.bias` -> `norm1.bias`.

    Where the VAN stands is found from the names that every VAN has.

    Args:
        tensors: {name: anything}; where no such name is found, they stay as they are.
        prefix: Which one, where there are several: "teacher.".

    Returns:
        The tensors, and {name: why it was left out} of what belongs to something else.

    Raises:
        ValueError: There are several, and none of the usual name; or none under `prefix`; or
            two names are the same without the prefix.
    """
    spelled = {name: _WRAPPED.sub(r"\1", str(name)) for name in tensors}
    places: dict[str, str] = {}  # {where its first tensor is: where its head would be}
    for name in spelled.values():
        for first, body in _FIRST.items():
            place = name.removesuffix(first)
            if place != name and (not place or place.endswith(".")):
                at = f".{place}".rfind(f".{body}.")
                places[place] = place if at < 0 else place[:at]
    if prefix is None and not places:
        return dict(tensors), {}
    if len(places) > _MAX_PLACES:
        raise ValueError(f"{len(places):,} VANs are in it; allowed: {_MAX_PLACES}")
    shortest = {outer: place for place, outer in sorted(places.items(), reverse=True)}
    places = {
        place: outer for outer, place in shortest.items()
    }  # else one VAN twice, as `translate` says
    place = _chosen(places, prefix)
    outer = places.pop(place)
    inner = place.removeprefix(outer).partition(".")[0]
    inner = f"{inner}." if inner else ""
    kept: dict[str, Any] = {}
    ignored: dict[str, str] = {}
    for name, tensor in tensors.items():
        bare = spelled[name]
        another = next((p for p, its in places.items() if its and bare.startswith(its)), None)
        if another is not None and not outer.startswith(places[another]):
            ignored[str(name)] = f"another VAN's; to read that instead: --wrapper {another!r}"
        elif not bare.startswith((place, *(f"{outer}{beside}" for beside in _BESIDE))):
            ignored[str(name)] = f"stands outside {place!r}, where the VAN is"
        else:
            if bare.startswith(place):
                bare = inner + bare.removeprefix(place)
            bare = bare.removeprefix(outer)
            if bare in kept:
                raise ValueError(f"two tensors are {bare!r} without what stands before it")
            kept[bare] = tensor
    return kept, ignored


def _chosen(places: Collection[str], prefix: str | None) -> str:
    found = ", ".join(map(shown, sorted(places))) or "none"
    if prefix is not None:
        if prefix in places:
            return prefix
        raise ValueError(f"`wrapper`={shown(prefix)}: no VAN stands there. VANs are under: {found}")
    usual = [p for p in places if not {*p.split(".")[:-1]} - _USUAL - {"backbone", "van"}]
    if len(places) == 1 or len(usual) == 1:
        return usual[0] if usual else next(iter(places))
    example = sorted(places)[-1]
    raise ValueError(
        f"several VANs are in it, under {found}; to write one of them to a file of its own: "
        f"van convert IN OUT --wrapper {example!r}"
    )


def translate(tensors: Mapping[str, Any]) -> StateDict:
    """Translates weights of any known naming, recognised by the names.

    Raises:
        ValueError: Two names mean the same tensor, or it holds several VANs.
    """
    tensors, ignored = without_prefix(tensors)
    naming, translate = _recognise(tensors)
    official: dict[str, Any] = {}
    origin: dict[str, Any] = {}
    for name, array in tensors.items():
        translated = name
        if isinstance(name, str):
            bare = name.removeprefix("van.")
            if naming == "huggingface" and bare in ("layernorm.weight", "layernorm.bias"):
                ignored[name] = "transformers stores it and uses it nowhere"
                continue
            if name.startswith(_FOREIGN):
                ignored[name] = "belongs to the model around the backbone"
                continue
            translated = translate(name)
        if translated in official:
            raise ValueError(f"{origin[translated]} and {name} both mean {translated}")
        origin[translated], official[translated] = name, array
    for name in [n for n in official if str(n).endswith(".num_batches_tracked")]:
        if f"{name.removesuffix('num_batches_tracked')}running_mean" in official:
            del official[name]
            ignored[origin[name]] = "BatchNorm's step counter, which changes no output"
    if naming in _KERAS_NAMINGS:
        official = _from_keras_axes(official, grouped=naming == "tensorflow port 1.x")
    return StateDict(official, naming, ignored)


def spell(tensors: Mapping[str, np.ndarray], naming: str) -> dict[str, np.ndarray]:
    """Weights under the authors' names -> another code base's (`NAMINGS`), complete for it.

    Args:
        tensors: {authors' name: array}.
        naming: "official", "huggingface" or "mmpretrain".
    """
    column = NAMINGS[naming]
    named: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        named[_to_column(name, column)] = array
        if name.endswith(".running_var"):
            counter = name.replace("running_var", "num_batches_tracked")
            named[_to_column(counter, column)] = np.zeros((), np.int64)
    if column == _HUGGING_FACE:
        last = max(int(n.split(".")[0][4:]) for n in tensors if re.match(r"norm\d+\.weight$", n))
        channels = tensors[f"norm{last}.weight"].shape
        named["van.layernorm.weight"] = np.ones(channels, np.float32)
        named["van.layernorm.bias"] = np.zeros(channels, np.float32)
    return named


def _to_column(name: str, column: int) -> str:
    if column == _OFFICIAL:
        return name
    module, leaf = (name, "") if _SCALE.search(name) else name.rsplit(".", 1)
    if module == "head":
        return f"{_HEADS[column]}.{leaf}"
    for pattern, row in _patterns(_OFFICIAL):
        match = pattern.fullmatch(module)
        if match:
            places = match.groupdict()
            path = row[column].format(**places, s=int(places["i"]) - 1)
            if column == _HUGGING_FACE and not leaf:
                leaf = "weight"
            return f"{_BODIES[column]}{path}" + (f".{leaf}" if leaf else "")
    raise ValueError(f"{name} is no tensor of a VAN")


def _patterns(column: int) -> list[tuple[re.Pattern, tuple[str, str, str]]]:
    if column not in _COMPILED:
        _COMPILED[column] = [
            (
                re.compile(
                    re.escape(row[column])
                    .replace(r"\{i\}", r"(?P<i>[1-9])")
                    .replace(r"\{s\}", r"(?P<s>[0-8])")
                    .replace(r"\{j\}", r"(?P<j>0|[1-9]\d{0,2})")
                ),
                row,
            )
            for row in _MODULES
        ]
    return _COMPILED[column]


_COMPILED: dict[int, list[tuple[re.Pattern, tuple[str, str, str]]]] = {}


def _from_column(name: str, column: int) -> str:
    """Another PyTorch naming's tensor -> the authors' name; unchanged if unknown."""
    bare = name.removeprefix("van.").removeprefix("encoder.").removeprefix("backbone.")
    head, _, leaf = bare.rpartition(".")
    if head == _HEADS.get(column, "head"):
        return f"head.{leaf}"
    scale = column == _HUGGING_FACE and leaf == "weight" and _SCALE.search(head)
    module, leaf = (bare, "") if _SCALE.search(bare) else (head, "" if scale else leaf)
    for pattern, row in _patterns(column):
        match = pattern.fullmatch(module)
        if match:
            places = match.groupdict()
            stage = places.get("i") or str(int(places["s"]) + 1)
            path = row[_OFFICIAL].format(i=stage, j=places.get("j"))
            return f"{path}.{leaf}" if leaf else path
    return name


def _from_mmseg(name: str) -> str:
    """OpenMMLab's segmentation backbones: the authors' names, less one level in the MLP."""
    return re.sub(
        r"(\.mlp\.dwconv)\.(weight|bias)$", r"\1.dwconv.\2", name.removeprefix("backbone.")
    )


_KERAS_LEAVES = {
    "kernel": "weight",
    "gamma": "weight",
    "bias": "bias",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def _from_port(name: str) -> str:
    """The earlier TensorFlow port: `block1/0/block1/0/mlp/fc1/conv2d_6/kernel:0`."""
    match = re.fullmatch(r"(?P<layer>[^:]+)/(?P=layer)/(?P<rest>[^:]+):0", name)
    if not match:
        return name
    *modules, leaf = f"{match['layer']}/{match['rest']}".split("/")
    modules = [m for m in modules if not re.fullmatch(r"conv2d(_\d+)?", m)]
    if leaf in ("layer_scale_1", "layer_scale_2"):
        return ".".join([*modules, leaf])
    return ".".join([*modules, _KERAS_LEAVES.get(leaf, leaf)])


def _from_ours(name: str) -> str:
    """Keras 3 files of this package: `block1_0/mlp/fc1/vars/0`, variables by position."""
    match = re.fullmatch(r"(?P<module>.+)/vars/(?P<index>[0-3])", name)
    if not match:
        return name
    module = re.sub(r"^(block\d+)_(\d+)/", r"\1.\2/", match["module"]).replace("/", ".")
    if _SCALE.search(module):
        return module if match["index"] == "0" else name
    module = re.sub(r"\.mlp\.dwconv$", ".mlp.dwconv.dwconv", module)
    leaves = ("weight", "bias", "running_mean", "running_var")
    return f"{module}.{leaves[int(match['index'])]}"


_KERAS_NAMINGS = ("tensorflow port 1.x", "keras")


def _recognise(tensors: Mapping[str, Any]):
    """(whose names these are, the translation of one of them)."""
    names = {n.removeprefix("backbone.") for n in tensors if isinstance(n, str)}
    if any(n.startswith(("van.encoder.stages.", "encoder.stages.")) for n in names):
        return "huggingface", lambda name: _from_column(name, _HUGGING_FACE)
    if "patch_embed1.projection.weight" in names:
        return "mmpretrain", lambda name: _from_column(name, _OPENMMLAB)
    if any(n.startswith("patch_embed1/patch_embed1/") for n in names):
        return "tensorflow port 1.x", _from_port
    if "patch_embed1/proj/vars/0" in names:
        return "keras", _from_ours
    if any(n.endswith((".mlp.dwconv.weight", ".mlp.dwconv.bias")) for n in names):
        return "mmsegmentation", _from_mmseg
    return "official", lambda name: name.removeprefix("backbone.")


def _from_keras_axes(official: dict[str, Any], grouped: bool) -> dict[str, Any]:
    """Axes by kind; what has no place or the wrong rank stays, for the strict check to name."""
    kinds = {"head.weight": "linear"}
    for name in official:
        if re.search(r"\.(proj_[12]|conv1|fc[12])\.weight$", name):
            kinds[name] = "pointwise"
        elif re.search(r"\.(conv0|conv_spatial|dwconv)\.weight$", name):
            kinds[name] = "depthwise"
        elif re.search(r"^patch_embed\d\.proj\.weight$", name):
            kinds[name] = "conv"
    changed = dict(official)
    for name, kind in kinds.items():
        rank = 4 if kind in ("conv", "depthwise") or (grouped and kind == "pointwise") else 2
        if np.ndim(official.get(name)) == rank:
            changed[name] = TensorSpec((), kind).from_keras(official[name], grouped)
    return changed
