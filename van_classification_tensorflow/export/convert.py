"""Weight files from any known format and naming to any other: `van convert IN OUT`."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..spec.architecture import Architecture
from ..spec.preprocessing import Preprocessing
from ..spec.scores import SIGMOID, SOFTMAX, activation_of
from ..support.console import print_report, to_json
from ..support.files import (
    check_place_for_file,
    folder_beside,
    put_in_place,
    write_atomically,
)
from ..weights.address import address_of
from ..weights.checkpoint import ModelWeights, read_weights
from ..weights.formats.torch import write_torch
from ..weights.hub import local
from ..weights.namings import NAMINGS, spell
from ..weights.pretrained import Pretrained, of_weights
from ..weights.sidecars import class_names, to_openmmlab, to_transformers
from .request import ConvertRequest

_KERAS = (".keras", ".weights.h5")
_TORCH = (".pth", ".pth.tar", ".pt", ".bin")
# What a folder of another model may have beside the files that are always written.
_OF_OTHERS = ("preprocessor_config.json", "model.safetensors.index.json")


@dataclass(frozen=True)
class Report:
    """What `convert` recognised, wrote and left out."""

    weights: ModelWeights
    target: Path
    written: str
    """Format and naming of what was written."""
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report for a person."""
        source = self.weights.source
        entry = f", entry {source.wrapper!r}" if source.wrapper else ""
        lines = [
            f"read     {source.layout} file{entry}, {self.weights.naming} names: "
            f"{len(self.weights.tensors)} tensors",
            f"model    {self.weights.architecture}",
        ]
        by_reason = Counter(self.weights.ignored.values())
        for reason, count in by_reason.items():
            examples = [n for n, why in self.weights.ignored.items() if why == reason]
            more = ", ..." if count > 3 else ""
            lines.append(f"ignored  {', '.join(examples[:3])}{more} ({count}): {reason}")
        lines += [f"note     {note}" for note in self.notes]
        return [*lines, f"written  {self.target}: {self.written}"]


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    naming: str | None = None,
    wrapper: str | None = None,
    allow_nonfinite: bool = False,
    overwrite: bool = False,
) -> Report:
    """Reads the weights of one VAN and writes them in the format that `target`'s name asks for.

    Args:
        source: A weight file of any known format, a Hugging Face folder, or the address of one.
        target: `*.safetensors`, `*.pth` (also .pth.tar, .pt, .bin), `*.keras`, `*.weights.h5`,
            or, with `naming="huggingface"`, a folder to make.
        naming: "official" (default), "huggingface" or "mmpretrain". Keras files have
            their own names.
        wrapper: Entry of a PyTorch file to read, such as "model_ema".
        allow_nonfinite: Accept NaN and infinities.
        overwrite: Replace `target` if it is there.

    The weights are written as float32. A target file appears whole or not at all, and so does
    each file of a folder; what another model has left there that would be taken for this one's
    is then removed.

    Raises:
        ValueError: The source is refused, or `target` and `naming` do not fit together.
        FileExistsError: `target` is there and `overwrite` is not set.
        OSError: A file cannot be read or written.
    """
    target = Path(target)
    kind, naming = _kind(target, naming)
    if not target.absolute().parent.is_dir():
        raise FileNotFoundError(f"{target.absolute().parent} is no folder; make it first")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} is already there; to replace it: --overwrite")
    if kind != "folder":
        check_place_for_file(target)
    if address_of(source).kind == "exported":
        raise ValueError(f"{source} is an exported file; give the weights it was made of")
    weights, notes = in_float32(read_weights(local(source), wrapper, allow_nonfinite), source)
    opened = of_weights(os.fspath(source), weights)
    opened.check(["labels", "preprocessing"])
    card = opened.card
    if weights.architecture.num_classes is not None:
        activation_of(card.activation, weights.architecture.num_classes, card.name)
    notes += [f"its {what} is left out: {why}" for what, why in card.problems.items()]
    written_so = ["labels"] if card.labels is not None else []
    if kind == "folder" or card.preprocessing is not None:
        written_so.append("preprocessing")
    assumed = (card.assumed[what] for what in written_so if what in card.assumed)
    notes += filter(None, (card.notes, *assumed))
    bare = naming == "huggingface" and target.name.endswith(".bin")  # as transformers reads it
    write, written, said = _writer(target, kind, naming, opened, bare)
    notes += said
    if bare or target.name.endswith(".weights.h5"):
        notes += _lost(target, opened)
    if kind == "folder":
        read = Path(source).resolve()
        in_place = target.resolve() in (read, read.parent)
        _replace_files(target, write, () if in_place else _OF_OTHERS)
    else:
        write_atomically(target, write, shared=True)
    return Report(weights, target, written, tuple(notes))


def run(request: ConvertRequest) -> None:
    """`van convert`: converts, and prints what was recognised, written and left out."""
    print_report(convert(**vars(request)).lines())


def in_float32(weights: ModelWeights, source: str | os.PathLike) -> tuple[ModelWeights, list[str]]:
    """The weights in float32, and what is to be said of it."""
    kinds = {a.dtype.name for a in weights.source.tensors.values() if a.dtype.kind not in "iu"}
    notes = []
    if kinds != {"float32"}:
        notes.append(f"{', '.join(sorted(kinds))} numbers were written as float32")
    with np.errstate(over="ignore"):
        tensors: dict[str, np.ndarray] = {
            n: a.astype(np.float32, copy=False) for n, a in weights.tensors.items()
        }
    for name, array in weights.tensors.items():
        if array.dtype == np.float64 and np.isinf(tensors[name]).sum() > np.isinf(array).sum():
            raise ValueError(f"{source}: {name} does not fit into float32")
    return replace(weights, tensors=tensors), notes


def _writer(
    target: Path, kind: str, naming: str, opened: Pretrained, bare: bool
) -> tuple[Callable[[Path], Any], str, list[str]]:
    """What writes the target, what that is called, and what is to be said of it."""
    if kind == "keras":
        what = "model" if target.name.endswith(".keras") else "weights"
        return lambda path: _write_keras(path, opened), f"Keras 3 {what}", []
    named = spell(opened.weights.tensors, naming)
    written = f"{kind}, {naming} names"
    if kind == "torch":
        return lambda path: _write_torch(path, named, opened, bare), written, []
    if kind == "safetensors":
        return lambda path: write_safetensors(path, named, describe(opened)), written, []
    files, said = hugging_face_files(opened)
    return lambda path: write_folder(path, named, describe(opened), files), written, said


def _lost(target: Path, opened: Pretrained) -> list[str]:
    """What a file of tensors alone cannot say."""
    notes = []
    card = opened.card
    if card.labels is not None or card.preprocessing is not None:
        notes.append(f"{target.name} holds tensors only: labels and preprocessing are left out")
    if card.activation == SIGMOID and opened.weights.architecture.num_classes != 1:
        notes.append(
            f"{target.name} cannot say that its classes do not exclude each other (sigmoid), and "
            "will be read as if they did: .safetensors and .keras keep it"
        )
    return notes


def _kind(target: Path, naming: str | None) -> tuple[str, str]:
    """(container, naming) that the target's name and the option ask for."""
    if naming is not None and naming not in NAMINGS:
        raise ValueError(
            f"`naming` must be one of {', '.join(NAMINGS)}. Received: naming={naming!r}"
        )
    if target.name.endswith(_KERAS):
        if naming is not None:
            raise ValueError(f"`naming` does not apply to {target.name}: Keras has its own names")
        return "keras", ""
    if target.name.endswith(".safetensors"):
        return "safetensors", naming or "official"
    if target.name.endswith(_TORCH):
        return "torch", naming or "official"
    if naming == "huggingface" and not target.is_file() and address_of(target).kind == "weights":
        return "folder", naming
    raise ValueError(
        f"`target` must end in .safetensors, {', '.join(_TORCH)}, {' or '.join(_KERAS)}, or, with "
        f"naming 'huggingface', be a folder. Received: {target}"
    )


def _replace_files(target: Path, write: Callable[[Path], Any], stale: Sequence[str]) -> None:
    """Makes the files of a folder, each whole or not at all; removes others that are `stale`."""
    with folder_beside(target) as work:
        made = work / target.name
        write(made)
        target.mkdir(exist_ok=True)
        written = [part.name for part in made.iterdir()]
        for name in written:
            put_in_place([(made / name, target / name)], work)
        for name in set(stale) - set(written):
            (target / name).unlink(missing_ok=True)


# --- The formats ---


def describe(opened: Pretrained) -> dict[str, Any]:
    """What a file of ours says of itself, beside its tensors; kept from the source if it said."""
    return {**architecture_to_dict(opened.weights.architecture), **opened.card.to_dict()}


def architecture_to_dict(architecture: Architecture) -> dict[str, Any]:
    config = architecture.config
    return {
        "embed_dims": list(config.embed_dims),
        "mlp_ratios": list(config.mlp_ratios),
        "depths": list(config.depths),
        "in_chans": architecture.in_chans,
        "num_classes": architecture.num_classes,
    }


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict) -> None:
    """Writes `tensors`, and `metadata` as JSON under the key "van"."""
    from safetensors.numpy import save_file

    # It writes an array's memory as it lies, so a transposed view would be scrambled.
    plain = {n: np.ascontiguousarray(a).reshape(a.shape) for n, a in tensors.items()}
    path.touch()  # save_file gives its file to its owner alone; ours is as others that are made
    mode = path.stat().st_mode
    save_file(plain, path, metadata={"format": "pt", "van": json.dumps(metadata)})
    path.chmod(mode)
    _in_order(path)


def _in_order(path: Path) -> None:
    """Puts the metadata of a safetensors file in order, which the library leaves to chance.

    So the same weights are the same bytes, and to push them again changes nothing.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def _write_torch(path: Path, tensors: dict, opened: Pretrained, bare: bool) -> None:
    """With the classes where OpenMMLab looks for them; `bare`: nothing but tensors."""
    if bare:
        write_torch(path, tensors, wrapper="")
        return
    meta = to_openmmlab(opened.card.labels, opened.weights.architecture.num_classes)
    card = {"van": json.dumps(describe(opened))}
    write_torch(path, tensors, beside=card | ({"meta": meta} if meta else {}))


def write_folder(
    path: Path, tensors: dict[str, np.ndarray], metadata: dict, files: dict[str, Any]
) -> None:
    """A folder that `transformers.pipeline("image-classification")` takes."""
    path.mkdir()
    write_safetensors(path / "model.safetensors", tensors, metadata)
    for name, content in files.items():
        (path / name).write_text(to_json(content, indent=2) + "\n", encoding="utf-8")


def hugging_face_files(opened: Pretrained) -> tuple[dict[str, Any], list[str]]:
    """({file of transformers beside the weights: its JSON}, what a user of them should know)."""
    sizes, card = opened.weights.architecture, opened.card
    preprocessing = card.preprocessing
    if preprocessing is None and "preprocessing" not in card.problems:
        preprocessing = Preprocessing().with_channels(sizes.in_chans)
    config = hugging_face_config(sizes, card.labels, preprocessing, card.activation)
    files = {"config.json": config}
    if preprocessing is None:
        return files, ["no preprocessor_config.json was written: no preprocessing is known"]
    files["preprocessor_config.json"], notes = to_transformers(preprocessing)
    return files, notes


def hugging_face_config(
    architecture: Architecture,
    labels: Any = None,
    preprocessing: Preprocessing | None = None,
    classifier_activation: Any = SOFTMAX,
) -> dict[str, Any]:
    """The `VanConfig` of transformers as JSON.

    Args:
        architecture: Sizes.
        labels: One text per class, or a key of `spec.labels.labels_of`; None: unknown.
        preprocessing: Its `input_size` is the model's `image_size`.
        classifier_activation: "sigmoid" makes it a multi-label model.

    Raises:
        ValueError: transformers cannot express it.
    """
    names = class_names(labels, architecture.num_classes or 0)
    stages = len(architecture.depths)
    ratios = list(architecture.config.mlp_ratios)
    if not all(isinstance(ratio, int) for ratio in ratios):
        raise ValueError(f"transformers takes only whole mlp_ratios. Received: {ratios}")
    problem = {SIGMOID: {"problem_type": "multi_label_classification"}}
    return {
        "architectures": ["VanForImageClassification" if names else "VanModel"],
        "model_type": "van",
        "num_channels": architecture.in_chans,
        "image_size": preprocessing.input_size if preprocessing else 224,
        "patch_sizes": [7] + [3] * (stages - 1),
        "strides": [4] + [2] * (stages - 1),
        "hidden_sizes": list(architecture.embed_dims),
        "depths": list(architecture.depths),
        "mlp_ratios": ratios,
        "hidden_act": "gelu",
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-6,
        "layer_scale_init_value": 0.01,
        "drop_path_rate": 0.0,
        "dropout_rate": 0.0,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        **problem.get(classifier_activation, {}),
    }


def _write_keras(path: Path, opened: Pretrained) -> None:
    from ..model.build import build_van

    weights, sizes = opened.weights, opened.weights.architecture
    model = build_van(
        sizes, weights.tensors, classifier_activation=opened.card.activation, allow_nonfinite=True
    )
    opened.describe(model, sizes.num_classes, sizes.in_chans)
    model.save(path) if path.name.endswith(".keras") else model.save_weights(path)
