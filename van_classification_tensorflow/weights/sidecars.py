"""What other code bases write beside the tensors -> labels and preprocessing of ours, and back.

transformers' `config.json` and `preprocessor_config.json`, OpenMMLab's `meta`, timm's `args`: plain
data by the time it comes here, and data of strangers: every value is checked, nothing is run.
The readers give a dictionary as a file of this package says it of itself: "labels" (None: it has
names for none), "preprocessing", "classifier_activation"; and what only they give (`ONLY_HERE`):
"origin", where it stands; "notes", what one should know; "assumed", what it leaves open of the
preprocessing; "problems", {one of the first three: why it cannot be followed}.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..spec.architecture import Architecture
from ..spec.labels import imagenet_classes, labels_of
from ..spec.preprocessing import Preprocessing
from ..support.text import shown

ONLY_HERE = frozenset(("origin", "notes", "assumed", "problems"))
OPENMMLAB = "OpenMMLab's `meta`"  # where about["origin"] is that

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


# --- transformers: the model ---

# One of these at least is in a `config.json` of transformers, which is no rare name.
TRANSFORMERS_KEYS = frozenset(("model_type", "id2label", "hidden_sizes", "hidden_act"))


def check_transformers(config: Any) -> None:
    """Raises `ValueError` where `config.json` describes another model than a VAN as built here."""
    if not isinstance(config, dict):
        raise ValueError("config.json is no JSON object")
    problems = []
    kind = config.get("model_type", "van")
    if kind != "van":
        raise ValueError(f"config.json is of a model of type {shown(kind)}; expected 'van'")
    for key, allowed in (("hidden_act", ("gelu", "gelu_python")), ("layer_norm_eps", (1e-6,))):
        if key in config and (isinstance(config[key], bool) or config[key] not in allowed):
            problems.append(f"{key} {shown(config[key])} (here: {allowed[0]})")
    for key, first in (("patch_sizes", 7), ("strides", 4)):
        value = config.get(key)
        rest = 3 if key == "patch_sizes" else 2
        if key in config and not (
            isinstance(value, list) and value == [first, *[rest] * (len(value) - 1)]
        ):
            problems.append(f"{key} {shown(value)} (here: {first}, then {rest})")
    scale = config.get("layer_scale_init_value", 0.01)
    if not _is_number(scale) or not scale > 0:
        problems.append(f"layer_scale_init_value {shown(scale)} (here: layer scale is on)")
    if problems:
        raise ValueError(
            "config.json describes another model than the VAN built here: " + "; ".join(problems)
        )


def check_sizes(config: Mapping[str, Any], architecture: Architecture) -> None:
    """Raises `ValueError` where `config.json` has other sizes than the tensors."""
    found = {
        "num_channels": architecture.in_chans,
        "hidden_sizes": list(architecture.embed_dims),
        "depths": list(architecture.depths),
    }
    problems = [
        f"{key} {shown(config[key])} (tensors: {value})"
        for key, value in found.items()
        if key in config and config[key] != value
    ]
    mine, ratios = list(architecture.config.mlp_ratios), config.get("mlp_ratios")
    if "mlp_ratios" in config and ratios != mine:
        problems.append(f"mlp_ratios {shown(ratios)} (tensors: {mine})")
    if problems:
        raise ValueError("config.json contradicts the tensors: " + "; ".join(problems))


def of_transformers(files: Mapping[str, Any]) -> dict[str, Any]:
    """What a folder of transformers says.

    Args:
        files: "config.json" and "preprocessor_config.json", as far as they are there.
    """
    about: dict[str, Any] = {"origin": "config.json", "problems": {}}
    channels = 3
    if "config.json" in files:
        config = files["config.json"]
        channels = config.get("num_channels", 3)
        with _problem(about, "classifier_activation"):
            about["classifier_activation"] = _activation_of_transformers(config)
        with _problem(about, "labels"):
            about |= _labels_of_transformers(config)
    if "preprocessor_config.json" in files:
        with _problem(about, "preprocessing"):
            processor = files["preprocessor_config.json"]
            about |= _preprocessing_of_transformers(processor, 1 if channels == 1 else 3)
    return about


@contextmanager
def _problem(about: dict[str, Any], what: str, where: str = "") -> Iterator[None]:
    """Keeps why something cannot be followed, for whoever needs it; the weights are read."""
    try:
        yield
    except (ValueError, TypeError, OverflowError) as error:
        about["problems"][what] = f"{where}{error}"


def _activation_of_transformers(config: dict[str, Any]) -> str:
    kind = config.get("problem_type")
    activations = {
        None: "softmax",
        "single_label_classification": "softmax",
        "multi_label_classification": "sigmoid",
    }
    if not (kind is None or isinstance(kind, str)) or kind not in activations:
        raise ValueError(
            f"config.json: problem_type {shown(kind)}: its outputs are not the scores of classes"
        )
    return activations[kind]


def _labels_of_transformers(config: dict[str, Any]) -> dict[str, Any]:
    names = config.get("id2label")
    if names is None:
        return {}
    if not isinstance(names, dict) or names.keys() != {str(i) for i in range(len(names))}:
        raise ValueError("config.json: id2label must name the classes 0, 1, ... without a gap")
    labels = [names[str(i)] for i in range(len(names))]
    if not all(isinstance(one, str) or type(one) is int for one in labels):
        raise ValueError("config.json: id2label must hold texts")
    labels = [str(one) for one in labels]
    unknown = labels == [f"LABEL_{i}" for i in range(len(labels))]
    return {"labels": None if unknown else _known(labels)}


def _known(labels: list[str]) -> list[str] | str:
    """ImageNet's names in their usual spelling, "tench, Tinca tinca", are told from others."""
    if len(labels) == 1000 and labels == [c.lemmas for c in imagenet_classes()]:
        return "imagenet1k"
    return labels


# --- transformers: the preprocessing ---

# What each processor takes for what is not written: size, crop, filter, mean and std. `square`:
# one number is both sides. ConvNeXt's crop is a share of `size`; ViT's resize is its last step.
_CONVNEXT = {
    "size": {"shortest_edge": 384},
    "crop_pct": 0.875,
    "resample": 2,
    "square": False,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}
_VIT = {**_CONVNEXT, "size": {"height": 224, "width": 224}, "square": True}
_CLIP = {
    "size": {"shortest_edge": 224},
    "crop_size": 224,
    "do_center_crop": True,
    "resample": 3,
    "square": False,
    "image_mean": _CLIP_MEAN,
    "image_std": _CLIP_STD,
}
_DEIT = {
    **_VIT,
    "size": {"height": 256, "width": 256},
    "crop_size": 224,
    "do_center_crop": True,
    "resample": 3,
}
_PROCESSORS: dict[str, dict[str, Any]] = {
    "ConvNext": _CONVNEXT,
    "ViT": _VIT,
    "CLIP": _CLIP,
    "Bit": _CLIP,
    "DeiT": _DEIT,
}
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's number
# Steps that other processors have; what is not here and switched on is refused.
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
_SQUASHED_FROM = 384  # a `size` from which ConvNeXt's processor does not crop
_FAST_NOTE = (
    "Its processor is transformers' fast one, whose resize differs from Pillow's by single grey "
    "levels: so do its probabilities."
)


def _preprocessing_of_transformers(record: Any, channels: int) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError("preprocessor_config.json is no JSON object")
    kind = record.get("image_processor_type") or record.get("feature_extractor_type")
    if kind is None:
        kind = "ConvNextImageProcessor"  # of a model of type "van"
    match = re.fullmatch(r"(\w+?)(?:ImageProcessor(Fast)?|FeatureExtractor)", str(kind))
    family = match[1] if match else ""
    if match is None or family not in _PROCESSORS:
        known = ", ".join(f"{name}ImageProcessor" for name in _PROCESSORS)
        raise _not_followed(f"the processor {shown(kind)} (followed are {known})")
    settings = {**_PROCESSORS[family], **{k: v for k, v in record.items() if v is not None}}
    for step in _STEPS:
        if not isinstance(settings.setdefault(step, step != "do_center_crop"), bool):
            raise _not_followed(f"{step} {shown(settings[step])}")
    for key, value in record.items():
        if key.startswith("do_") and key not in _STEPS and value:
            raise _not_followed(f"{shown(key)} {shown(value)}")
    if not settings["do_resize"]:
        raise _not_followed("do_resize false: pictures of any size")
    mean, std = _normalisation(settings, channels)
    found = Preprocessing.of_sizes(
        *_sizes(family, settings),
        interpolation=_FILTERS[_whole("resample", settings["resample"], 0, 5)],
        mean=mean,
        std=std,
        resize="both sides" if _is_squashed(family, settings) else "shorter side",
        crop_rounding="down",
    )
    return {"preprocessing": found.to_dict(), "notes": [_FAST_NOTE] if match[2] else []}


def _not_followed(what: str) -> ValueError:
    return ValueError(
        f"preprocessor_config.json: {what} cannot be followed here. Without that file the weights "
        "are read, and `preprocessing` can be given"
    )


def _is_squashed(family: str, settings: dict[str, Any]) -> bool:
    size = _size("size", settings["size"], settings["square"])
    if family == "ConvNext":
        return size.get("shortest_edge", 0) >= _SQUASHED_FROM
    return "height" in size


def _sizes(family: str, settings: dict[str, Any]) -> tuple[int, int]:
    """(length before the crop, side of the crop), as the processor of `family` computes them."""
    size = _size("size", settings["size"], settings["square"])
    side = size.get("shortest_edge", size.get("height", 0))
    if family == "ConvNext":
        if "shortest_edge" not in size:
            raise _not_followed(f"size {shown(settings['size'])}")
        share = settings["crop_pct"]
        if not _is_number(share) or not 0 < share <= 1 or side / share > 2 * 8192:
            raise _not_followed(f"crop_pct {shown(share)}")
        before, crop = side if side >= _SQUASHED_FROM else int(side / share), side
    elif family == "ViT":
        if "height" not in size:
            raise _not_followed(f"size {shown(settings['size'])}")
        before = crop = side
    else:
        before = side
        crop = _size("crop_size", settings["crop_size"], True)["height"]
        if not settings["do_center_crop"]:
            if "height" not in size:
                raise _not_followed("do_center_crop false: inputs that are not square")
            crop = before
    # After the two that crop no more: a step of the fast ones, here one that changes nothing.
    elsewhere = settings["do_center_crop"] and family in ("ConvNext", "ViT")
    if elsewhere and _size("crop_size", settings.get("crop_size", crop), True)["height"] != crop:
        raise _not_followed(f"crop_size {shown(settings['crop_size'])} after `size`")
    if crop > before:
        raise _not_followed(f"a crop of {crop} pixels out of {before}, which is padded,")
    return before, crop


def _size(key: str, value: Any, square: bool) -> dict[str, int]:
    """{"shortest_edge": n} or {"height": n, "width": n}."""
    if type(value) is int:
        value = {"height": value, "width": value} if square else {"shortest_edge": value}
    keys = set(value) if isinstance(value, dict) else set()
    if keys not in ({"shortest_edge"}, {"height", "width"}) or (
        key == "crop_size" and "shortest_edge" in keys
    ):
        raise _not_followed(f"{key} {shown(value)}")
    found = {name: _whole(key, pixels, 1, 8192) for name, pixels in value.items()}
    if len(set(found.values())) > 1:
        raise _not_followed(f"{key} {shown(value)}, which is not square,")
    return found


def _normalisation(
    settings: dict[str, Any], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of a picture in [0, 1]: (p * factor - mean) / std is the same of p / 255."""
    factor: Any = settings.get("rescale_factor", 1 / 255) if settings["do_rescale"] else 1.0
    if not _is_number(factor) or not factor > 0:
        raise _not_followed(f"rescale_factor {shown(factor)}")
    mean: Any = settings["image_mean"] if settings["do_normalize"] else 0.0
    std: Any = settings["image_std"] if settings["do_normalize"] else 1.0
    both = []
    for key, value in (("image_mean", mean), ("image_std", std)):
        values = [value] * channels if _is_number(value) else value
        if not isinstance(values, (list, tuple)) or not all(map(_is_number, values)):
            raise _not_followed(f"{key} {shown(value)}")
        scale = 1.0 if math.isclose(factor, 1 / 255, rel_tol=1e-9) else 255 * factor
        both.append(tuple(one / scale for one in values))
    return both[0], both[1]


def to_transformers(preprocessing: Preprocessing) -> tuple[dict[str, Any], list[str]]:
    """(`preprocessor_config.json`, what of the preprocessing transformers does otherwise)."""
    before, side = preprocessing.resize_to, preprocessing.input_size
    record: dict[str, Any] = {
        "do_resize": True,
        "resample": _FILTERS.index(preprocessing.interpolation),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }
    crop = {"do_center_crop": True, "crop_size": {"height": side, "width": side}}
    square = preprocessing.resize == "both sides"
    if square and before == side:
        record |= {"image_processor_type": "ViTImageProcessor"}
        record |= {"size": {"height": side, "width": side}}
    elif square:
        record |= {"image_processor_type": "DeiTImageProcessor", **crop}
        record |= {"size": {"height": before, "width": before}}
    elif side < _SQUASHED_FROM and int(side / preprocessing.crop_pct) == before:
        record |= {"image_processor_type": "ConvNextImageProcessor"}
        record |= {"size": {"shortest_edge": side}, "crop_pct": preprocessing.crop_pct}
    else:
        record |= {"image_processor_type": "CLIPImageProcessor", **crop}
        record |= {"size": {"shortest_edge": before}}
    notes = []
    if preprocessing.channels != 3:
        notes.append(
            "transformers' pipeline makes every picture RGB: give this model of "
            f"{preprocessing.channels} channel its input yourself"
        )
    shifts = (before - side) % 4 == 3 if square else True
    if preprocessing.crop_rounding == "nearest" and shifts:
        which = "every crop" if square else "one crop in four"
        notes.append(
            "transformers begins a crop at the whole pixel below where half a pixel is left over, "
            f"here it is the nearest even one: {which} is shifted by a pixel there"
        )
    return record, notes


# --- timm's `args` ---


# What an `args` without mean and std may have instead (DeiT's and ConvNeXt's scripts).
_IMAGENET = "imagenet_default_mean_and_std"
_NORMALISATIONS = {
    True: {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    False: {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
}


def of_timm(args: Mapping[str, Any], where: str = "its `args`") -> dict[str, Any]:
    """What the command line of a timm training says, or the `pretrained_cfg` of a timm model.

    What it leaves open is the model's default: assumed, and said.
    """
    about: dict[str, Any] = {"origin": where, "problems": {}}
    with _problem(about, "preprocessing", f"{where}: "):
        given = {name: value for name, value in _given(args).items() if value is not None}
        if not given:
            return about
        about["preprocessing"] = Preprocessing(**given).to_dict()
        needed = ("input_size", "crop_pct", "interpolation", "mean", "std")
        if missing := [name for name in needed if name not in given]:
            about["assumed"] = (
                f"Nothing is said of {', '.join(missing)} in {where}: as for the published "
                "ImageNet-1k weights is assumed."
            )
    return about


def _given(args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a `Preprocessing`; None: left open."""
    read = ("img_size", "input_size", "crop_pct", "interpolation", "mean", "std", "crop_mode")
    found = {name: _plain(name, args.get(name)) for name in read}
    both = _NORMALISATIONS.get(args[_IMAGENET]) if type(args.get(_IMAGENET)) is bool else None
    if both and found["mean"] is None and found["std"] is None:
        found |= both
    size = found["img_size"] if found["input_size"] is None else found["input_size"]
    if isinstance(size, (list, tuple)):  # (C, H, W) or (H, W)
        if len(size) < 2 or size[-1] != size[-2]:
            raise ValueError(f"an input of {shown(size)}, not square, cannot be followed here")
        size = size[-1]
    resample = found["interpolation"]
    if type(resample) is int:  # Pillow's number
        resample = _FILTERS[_whole("interpolation", resample, 0, 5)]
    mode = found["crop_mode"] or "center"
    if mode not in ("center", "squash"):
        raise ValueError(f"crop_mode {shown(mode)} cannot be followed here")
    for name in ("mean", "std"):  # one number stands for all channels, as by timm
        value = found[name]
        if isinstance(value, (list, tuple)) and len(value) == 1:
            found[name] = value * 3
    return {
        "input_size": size,
        "crop_pct": found["crop_pct"],
        "interpolation": resample or None,
        "mean": found["mean"],
        "std": found["std"],
        "resize": "both sides" if mode == "squash" else None,
    }


def _plain(name: str, value: Any) -> Any:
    """A text, a number, None, or up to three of these; nothing that could hold more."""
    kinds = (str, int, float, type(None))
    many = value if isinstance(value, (list, tuple)) and len(value) <= 3 else [value]
    if not all(type(one) in kinds for one in many):
        raise ValueError(f"{name} {shown(value)} cannot be followed here")
    return value


def of_timm_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """What timm writes beside a model that it saves: `config.json` with a `pretrained_cfg`."""
    stated = config.get("pretrained_cfg")
    if not isinstance(stated, dict):
        stated = {}
    about = of_timm(stated, "its config.json")
    names = config.get("label_names", stated.get("label_names"))
    if names is not None:
        with _problem(about, "labels", "config.json: "):
            if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
                raise ValueError("label_names must be a list of texts")
            about["labels"] = _known(names)
    return about


# --- OpenMMLab's `meta` ---

_MAX_CONFIG = 100_000  # characters of a configuration text; OpenMMLab's have 10,000


def of_openmmlab(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Classes and, where it can be read as plain data, the test pipeline of OpenMMLab."""
    about: dict[str, Any] = {"origin": OPENMMLAB, "notes": [], "problems": {}}
    dataset = meta.get("dataset_meta")
    dataset = dataset if isinstance(dataset, dict) else {}
    for names in (dataset.get("classes"), dataset.get("CLASSES"), meta.get("CLASSES")):
        if isinstance(names, (list, tuple)) and names and all(isinstance(n, str) for n in names):
            about["labels"] = _known(list(names))
            break
    text = meta.get("cfg", meta.get("config"))
    if not isinstance(text, str) or not text:
        return about
    config = plain_python(text)
    with _problem(about, "classifier_activation", "the model in its `meta`: "):
        about |= _activation_of_openmmlab(config.get("model"))
    found = _pipeline(config)
    if not found:
        about["notes"].append("The configuration text in its `meta` could not be read.")
        return about
    with _problem(about, "preprocessing", "the test pipeline in its `meta`: "):
        about |= {"preprocessing": _preprocessing_of_openmmlab(found, about["notes"]).to_dict()}
    return about


# The heads of one linear layer, as a VAN has; what a head answers is told by its type alone.
_HEADS = {
    "LinearClsHead": "softmax",
    "ClsHead": "softmax",
    "MultiLabelLinearClsHead": "sigmoid",
    "MultiLabelClsHead": "sigmoid",
}


def _activation_of_openmmlab(model: Any) -> dict[str, Any]:
    head = model.get("head") if isinstance(model, dict) else None
    if not isinstance(head, dict) or "type" not in head:
        return {}
    kind = str(head["type"]).rpartition(".")[2]
    if kind not in _HEADS:
        known = ", ".join(_HEADS)
        raise ValueError(f"a head of type {shown(kind)} cannot be followed (followed are {known})")
    return {"classifier_activation": _HEADS[kind]}


def _pipeline(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps that a test picture passes, the normalisation of the model last."""
    steps = config.get("test_pipeline")
    for path in ("test_dataloader", "dataset", "pipeline"), ("data", "test", "pipeline"):
        place: Any = config
        for key in path:
            place = place.get(key) if isinstance(place, dict) else None
        steps = steps if place is None else place
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        return []
    model = config.get("model")
    last = config.get("data_preprocessor")
    if isinstance(model, dict) and isinstance(model.get("data_preprocessor"), dict):
        last = model["data_preprocessor"]
    return [*steps, {**last, "type": "Normalize"}] if isinstance(last, dict) else steps


def _preprocessing_of_openmmlab(steps: list[dict[str, Any]], notes: list[str]) -> Preprocessing:
    before = crop = None
    changes: dict[str, Any] = {}
    done = 0
    for step in steps:
        kind = str(step.get("type")).rpartition(".")[2]
        if re.match(r"Load|Pack|Collect|ToTensor|ImageToTensor", kind):
            if step.get("color_type", "color") != "color":
                raise ValueError(f"color_type {shown(step['color_type'])} cannot be followed here")
            continue
        place = {"Resize": 1, "ResizeEdge": 1, "CenterCrop": 2, "Normalize": 3}.get(kind)
        if place is None:
            raise ValueError(f"the step {shown(kind)} cannot be followed here")
        if place <= done:
            raise ValueError(f"{kind} at that place cannot be followed here: resize, crop, mean")
        done = place
        if place == 1:
            before, resize = _resize_of_openmmlab(kind, step)
            changes |= resize
            if step.get("backend", "cv2") != "pillow":
                notes.append(
                    "It was tested on pictures resized by OpenCV; here they are by Pillow, which "
                    "gives slightly other probabilities."
                )
        elif place == 2:
            if step.get("efficientnet_style"):
                raise ValueError("CenterCrop with efficientnet_style cannot be followed here")
            crop = _whole(kind, _one(step.get("crop_size")), 1, 8192)
        else:
            changes |= _normalisation_of_openmmlab(step)
    if before is None or "mean" not in changes:
        raise ValueError("no resize, mean or std in it")
    return Preprocessing.of_sizes(before, crop or before, **changes)


def _resize_of_openmmlab(kind: str, step: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """(length before the crop, other arguments of a `Preprocessing`)."""
    size = step.get("scale", step.get("size"))
    short = [n for n in size if n != -1] if isinstance(size, (list, tuple)) else [size]
    square = kind == "Resize" and len(short) == 2
    if len(set(map(str, short))) != 1 or step.get("edge", "short") != "short":
        raise ValueError(f"{kind} to {shown(size)} cannot be followed here")
    if not square and kind == "Resize" and not isinstance(size, (list, tuple)):
        square = True  # one number is both sides, by OpenMMLab
    if step.get("keep_ratio"):
        raise ValueError("Resize with keep_ratio cannot be followed here")
    return _whole(kind, short[0], 1, 8192), {
        "resize": "both sides" if square else "shorter side",
        "interpolation": step.get("interpolation", "bilinear"),
    }


def _normalisation_of_openmmlab(step: dict[str, Any]) -> dict[str, Any]:
    if step.get("to_rgb") is not True:
        raise ValueError("to_rgb is not set: channels in the order BGR")
    found = {}
    for name in ("mean", "std"):
        values = step.get(name)
        if not isinstance(values, (list, tuple)) or not all(map(_is_number, values)):
            raise ValueError(f"{name} {shown(values)}: expected a number for each channel")
        found[name] = [value / 255 for value in values]
    return found


def _one(size: Any) -> Any:
    """(224, 224) and [224] -> 224."""
    alike = isinstance(size, (list, tuple)) and size and len(set(map(str, size))) == 1
    return size[0] if alike else size


def plain_python(text: str) -> dict[str, Any]:
    """The assignments of a configuration in Python that are plain data, read and never run."""
    if len(text) > _MAX_CONFIG:
        return {}
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return {}
    names: dict[str, Any] = {}
    for line in tree.body:
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            try:
                names[line.targets[0].id] = _value(line.value)
            except (ValueError, RecursionError):
                continue
    return names


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(one) for one in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _value(node.operand)
        if _is_number(value):
            return -value
    if isinstance(node, ast.Dict):
        keys = [None if key is None else _value(key) for key in node.keys]
        if all(isinstance(key, str) for key in keys):
            return dict(zip(keys, map(_value, node.values), strict=True))
    if isinstance(node, ast.Call) and not node.args and ast.unparse(node.func) == "dict":
        words = {keyword.arg: keyword.value for keyword in node.keywords}
        if None not in words:  # that is, no **
            return {word: _value(value) for word, value in words.items()}
    raise ValueError("no plain data")


def to_openmmlab(labels: str | Sequence[str] | None, num_classes: int | None) -> dict[str, Any]:
    """The `meta` in which OpenMMLab looks for the classes, of version 0.x and since 1.0."""
    if labels is None or num_classes is None:
        return {}
    names = class_names(labels, num_classes)
    return {"CLASSES": names, "dataset_meta": {"classes": names}}


def class_names(labels: str | Sequence[str] | None, num_classes: int) -> list[str]:
    """The classes as other code bases spell them: verbatim, and ImageNet's with all synonyms.

    Unknown ones are LABEL_0, LABEL_1, ..., as by transformers.
    """
    if labels is None:
        return [f"LABEL_{i}" for i in range(num_classes)]
    # Of a single output that names both of its classes: the positive one.
    texts = [label.text for label in labels_of(labels, num_classes)][-num_classes:]
    if num_classes == 1000 and texts == [one.text for one in labels_of("imagenet1k", 1000)]:
        return [one.lemmas for one in imagenet_classes()]
    return texts


# --- Values ---

_LARGEST = 1e30


def _is_number(value: Any) -> bool:
    # Compared, not converted: a whole number may be larger than any float.
    return type(value) in (int, float) and abs(value) < _LARGEST


def _whole(key: str, value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{key} {shown(value)}: expected a whole number, {least} to {most}")
    return value
