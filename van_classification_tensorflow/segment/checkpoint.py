"""Segmentation checkpoints of strangers -> {mmsegmentation's name: array}, of one segmenter.

Reads what mmsegmentation saves, 0.x (`state_dict`) and 1.x (a `message_hub` beside it), with either
naming of the backbone, and `.safetensors` of the same names. Nothing in a file is ever executed.
Imports neither Keras nor a backend.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..spec.architecture import Architecture, architecture_of, check
from ..spec.card import read_labels, read_preprocessing
from ..spec.config import VANConfig
from ..spec.decoders import LIGHT_HAM, DecoderSizes, decoder_of
from ..spec.labels import labels_of
from ..spec.palette import Colour, colours_of
from ..spec.preprocessing import Preprocessing
from ..support.text import printable
from ..weights.address import address_of
from ..weights.catalogue import OF_SEGMENTERS, SEGMENTATION
from ..weights.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from ..weights.namings import translate
from ..weights.pretrained import local_file
from ..weights.sidecars import plain_python

BACKBONE = "backbone."
_DECODER = ("decode_head.", "auxiliary_head.", "neck.")


@dataclass(frozen=True)
class SegmenterWeights:
    """The weights of one segmenter, complete and checked, and what goes with them.

    Args:
        tensors: {mmsegmentation's name: array in PyTorch's axes}, the backbone's under `backbone.`
            in the authors' names.
        architecture: Sizes of the backbone; its `num_classes` is None.
        decoder: Sizes of the decoder. What no tensor tells (rank and groups of Light-Ham) is as
            published.
        num_classes: Classes that a pixel may have.
        name: In the catalogue, or of the file.
        source: What was read, with the file's own names.
        ignored: {entry or tensor of the file: why it was left out}.
        labels: A name for each class; None where the file names none.
        palette: A colour for each class, likewise.
        preprocessing: Mean and standard deviation.
        notes: What one should know.
        norm_epsilon: Of the stages' LayerNorm; None where the file does not say.
        ham_seed: Of Light-Ham's bases in inference; None: drawn at every call.
    """

    tensors: dict[str, np.ndarray]
    architecture: Architecture
    decoder: DecoderSizes
    num_classes: int
    name: str
    source: Checkpoint
    ignored: dict[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    palette: tuple[Colour, ...] | None = None
    preprocessing: Preprocessing | None = OF_SEGMENTERS
    notes: tuple[str, ...] = ()
    norm_epsilon: float | None = None
    ham_seed: int | None = 0

    def check_backbone(self, config: VANConfig) -> None:
        """Raises `ValueError` where a backbone of `config` has other sizes."""
        self.architecture.check_same_sizes(config, f"`pretrained`: {printable(self.name)}")


@dataclass(frozen=True)
class _State:
    tensors: dict[str, Any]
    ignored: dict[str, str]


def split(tensors: Mapping[str, Any]) -> _State:
    """The tensors under their full names, of a backbone in any known naming.

    Raises:
        ValueError: Two names mean the same tensor, or it holds several VANs.
    """
    state = translate(tensors)
    found = {f"{BACKBONE}{name}": array for name, array in state.tensors.items()}
    ignored = dict(state.ignored)
    for name, array in tensors.items():
        if not str(name).startswith(_DECODER):
            continue
        ignored.pop(name, None)
        if str(name).endswith(".num_batches_tracked"):
            ignored[name] = "BatchNorm's step counter, which changes no output"
        else:
            found[name] = array
    return _State(found, ignored)


def read_segmenter(
    path: str | os.PathLike,
    allow_nonfinite: bool = False,
    wrapper: str | None = None,
    name: str | None = None,
) -> SegmenterWeights:
    """Reads a segmentation checkpoint; all of one segmenter, or an error.

    Args:
        path: As in `weights.checkpoint.read_checkpoint`.
        allow_nonfinite: Accept NaN and infinities.
        wrapper: As there.
        name: Of the weights, for messages; that of the file by default.

    Raises:
        CheckpointError: As `read_checkpoint`; or the tensors are not those of a VAN with one of
            the decoders.
        OSError: There is no such file, or it cannot be opened.
    """
    found = read_checkpoint(path, wrapper)
    try:
        state = split(found.tensors)
        inside = {
            name.removeprefix(BACKBONE): array
            for name, array in state.tensors.items()
            if name.startswith(BACKBONE)
        }
        sizes = architecture_of(inside)
        decoder, classes = decoder_of(state.tensors)
        if len(sizes.embed_dims) != 4:
            raise ValueError(f"a backbone of {len(sizes.embed_dims)} stages; expected 4")
        specs = {f"{BACKBONE}{name}": spec for name, spec in sizes.tensors().items()}
        specs |= decoder.tensors(sizes.embed_dims, classes)
        tensors = check(state.tensors, specs, allow_nonfinite=allow_nonfinite)
        if "decoder" in found.own:
            said = DecoderSizes.of_config(found.own)
            promised, there = (d.tensors(sizes.embed_dims, classes) for d in (said, decoder))
            if promised != there:
                raise ValueError(f"it says that it has {said}, and has the tensors of {decoder}")
            decoder, beside = said, _own(found.own, classes, sizes.in_chans)
        else:
            meta = found.metadata.get("meta")
            beside = _beside(meta, classes, sizes.in_chans)
            if decoder.kind == LIGHT_HAM:
                decoder = _factorised(decoder, meta, beside)
    except ValueError as error:
        raise CheckpointError(f"{path} was refused, nothing was loaded: {error}") from error
    return SegmenterWeights(
        tensors,
        sizes,
        decoder,
        classes,
        name or str(path),
        found,
        {**found.ignored, **state.ignored},
        **beside,
    )


def open_segmenter(
    pretrained: Any, configuration: str | None = None, argument: str = "pretrained"
) -> SegmenterWeights | None:
    """Finds, fetches if needed, verifies and reads the segmentation weights that are meant.

    Args:
        pretrained: A name of the catalogue (`van weights list`), or a path; None: nothing.
            `SegmenterWeights` are given back.
        configuration: The member of the family asked for, if any.
        argument: What the caller calls `pretrained`, for messages.

    Raises:
        ValueError: There are no such weights; says which there are. Or the file is refused.
        OSError: The file cannot be downloaded, verified or opened.
    """
    if pretrained is None or isinstance(pretrained, SegmenterWeights):
        return pretrained
    address = address_of(pretrained)
    if address.kind == "exported":
        raise ValueError(
            f"`{argument}`: {printable(pretrained)} is an exported file; give the weights it was "
            "made of"
        )
    if address.kind == "hub":
        raise ValueError(
            f"`{argument}`: {printable(pretrained)} is a folder of a hub, of which only "
            "classifiers are read; download the file of a segmenter and give its path"
        )
    if address.kind == "weights":
        return read_segmenter(pretrained)
    record = address.record(configuration, argument, SEGMENTATION)
    return read_segmenter(local_file(record), name=record.name)


def _own(said: Mapping[str, Any], classes: int, in_chans: int) -> dict[str, Any]:
    """What a file of this package says beside the tensors."""
    found: dict[str, Any] = {"preprocessing": None}
    labels = read_labels(said.get("labels"), classes)
    if labels is not None:
        found["labels"] = tuple(one.text for one in labels_of(labels, classes))
    if said.get("palette") is not None:
        found["palette"] = colours_of(said["palette"], classes)
    preprocessing = read_preprocessing(said.get("preprocessing"))
    if preprocessing is not None:
        found["preprocessing"] = preprocessing.with_channels(in_chans)
    epsilon = said.get("norm_epsilon")
    if epsilon is not None:
        if not _is_number(epsilon) or not 0 < epsilon < 1:
            raise ValueError("its metadata: `norm_epsilon` must be a number above 0 and below 1")
        found["norm_epsilon"] = float(epsilon)
    if "ham_seed" in said:
        seed = said["ham_seed"]
        if seed is not None and (type(seed) is not int or not 0 <= seed < 2**63):
            raise ValueError("its metadata: `ham_seed` must be a whole number from 0 on, or null")
        found["ham_seed"] = seed
    return found


# --- What mmsegmentation says beside the tensors ---


def _beside(meta: Any, classes: int, in_chans: int) -> dict[str, Any]:
    """Labels, palette, preprocessing and notes, as far as `meta` has them and they fit."""
    if not isinstance(meta, Mapping):
        return {"preprocessing": OF_SEGMENTERS if in_chans == 3 else None}
    notes: list[str] = []
    said = meta.get("dataset_meta")
    said = said if isinstance(said, Mapping) else {}
    labels = said.get("classes", said.get("CLASSES", meta.get("CLASSES")))
    palette = said.get("palette", said.get("PALETTE", meta.get("PALETTE")))
    found: dict[str, Any] = {}
    if isinstance(labels, (list, tuple)) and all(isinstance(one, str) for one in labels):
        if len(labels) == _named(classes, labels):
            given = labels_of(list(labels), len(labels))
            found["labels"] = tuple(one.text for one in given)
        else:
            notes.append(f"It names {len(labels):,} classes, which are not these {classes:,}.")
    if palette is not None:
        try:
            found["palette"] = colours_of(palette, _named(classes, palette))
        except ValueError:
            notes.append("Its palette is not one of colours for these classes.")
    found["preprocessing"] = _normalisation(meta, notes) if in_chans == 3 else None
    if classes == 1:
        notes.append(
            "Of its one map a pixel is of the class where the probability is above 0.5; "
            "mmsegmentation takes 0.3 unless its configuration has another `threshold`."
        )
    return {**found, "notes": tuple(notes)}


def _named(classes: int, given: Any) -> int:
    """How many names or colours there are: of one map perhaps two, of which 0 is no class."""
    two = classes == 1 and isinstance(given, (list, tuple)) and len(given) == 2
    return 2 if two else classes


def _factorised(decoder: DecoderSizes, meta: Any, beside: dict[str, Any]) -> DecoderSizes:
    """Light-Ham with the rank and groups of its configuration's text, which no tensor tells."""
    head = _config_of(meta).get("model")
    head = head.get("decode_head") if isinstance(head, dict) else None
    said = head.get("ham_kwargs") if isinstance(head, dict) else None
    if not isinstance(said, dict) or "MD_R" not in said:
        note = (
            f"It does not say the rank of its factorisation: {decoder.ham_rank}, as published, is "
            "assumed."
        )
        beside["notes"] = (*beside.get("notes", ()), note)
        return decoder
    rank, groups = said["MD_R"], said.get("MD_S", 1)
    for name, number in (("MD_R", rank), ("MD_S", groups)):
        if type(number) is not int or not 1 <= number <= 65_536:
            raise ValueError(f"its configuration: `{name}` must be a whole number from 1 on")
    return replace(decoder, ham_rank=rank, ham_groups=groups)


def _is_number(value: Any) -> bool:
    # Compared, not converted: a whole number may be larger than any float.
    return type(value) in (int, float) and abs(value) < 1e6


def _config_of(meta: Any) -> dict[str, Any]:
    """The configuration that mmengine keeps as text, as far as it is plain."""
    text = meta.get("cfg", meta.get("config")) if isinstance(meta, Mapping) else None
    return plain_python(text) if isinstance(text, str) else {}


def _normalisation(meta: Mapping[str, Any], notes: list[str]) -> Preprocessing:
    """Mean and standard deviation of the configuration text, else ImageNet's."""
    config = _config_of(meta)
    model = config.get("model")
    places = (
        model.get("data_preprocessor") if isinstance(model, dict) else None,
        config.get("data_preprocessor"),
        config.get("img_norm_cfg"),
    )
    said = next((one for one in places if isinstance(one, dict) and "mean" in one), None)
    if said is None:
        return OF_SEGMENTERS
    if not (said.get("bgr_to_rgb") or said.get("to_rgb")):
        raise ValueError("it takes channels in the order BGR, which cannot be followed here")
    found: dict[str, Any] = {}
    for name in ("mean", "std"):
        numbers = said.get(name)
        if not isinstance(numbers, (list, tuple)) or not all(map(_is_number, numbers)):
            notes.append(f"Its {name} could not be read: ImageNet's are assumed.")
            return OF_SEGMENTERS
        found[name] = tuple(number / 255 for number in numbers)
    return Preprocessing(512, 1.0, "bilinear", **found)
