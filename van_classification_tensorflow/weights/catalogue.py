"""Published VAN weights: what there is, where from, under which licence.

Imports neither Keras nor a backend.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from urllib.parse import urlsplit

from ..spec.card import SEGMENTATION as SEGMENTATION
from ..spec.card import Card
from ..spec.config import CONFIGURATIONS
from ..spec.decoders import AUXILIARY_CHANNELS, UPERNET, DecoderSizes, published_sizes
from ..spec.preprocessing import Preprocessing

# Trainable parameters with 1,000 classes (the authors' code).
_PARAMETERS = {
    "van_b0": 4_105_800,
    "van_b1": 13_861_800,
    "van_b2": 26_578_472,
    "van_b3": 44_765_608,
    "van_b4": 60_283_176,
    "van_b5": 89_967_688,
    "van_b6": 199_829_416,
}

CLASSIFICATION = "classification"
_TAKEN_BY = {
    CLASSIFICATION: "VAN, Classifier, `van predict`",
    SEGMENTATION: "VANSegmenter, `van segment`",
}


@dataclass(frozen=True)
class Source:
    """One address of a weight file.

    Args:
        url: http or https.
        sha256: The published SHA-256: all 64 hexadecimal digits, the first 8, or "" for none.
        file: Name in the cache and on a mirror; by default the last part of `url`.
    """

    url: str
    sha256: str = ""
    file: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"(?:[0-9a-f]{8}|[0-9a-f]{64})?", self.sha256):
            raise ValueError(
                "`sha256` must be 64 or the first 8 lower-case hexadecimal digits, or empty. "
                f"Received: {self.sha256!r}"
            )
        if not self.file:
            object.__setattr__(self, "file", urlsplit(self.url).path.rpartition("/")[2])
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.file):
            raise ValueError(
                "`file` must be a plain file name (letters, digits, '_', '.', '-'); give it where "
                f"`url` does not end in one. Received: {self.file!r} for {self.url!r}"
            )

    @property
    def format(self) -> str:
        """What `weights/checkpoint.py` calls it: "keras h5" or "torch", of either layout."""
        return "keras h5" if self.file.endswith(".h5") else "torch"


@dataclass(frozen=True, kw_only=True)
class Weights(Card):
    """One published checkpoint: its card, of a name such as `van_b0.in1k`, and where it is.

    Args:
        configuration: The member of the family; None for a model of its own.
        num_classes: Outputs of the head; 0 for a backbone without one.
        sources: Addresses of the same weights, the preferred one first; none: bundled.
        decoder: What stands behind the backbone of a segmenter; None of a classifier.
        miou: Mean intersection over union in percent, as published, of a segmenter.
    """

    configuration: str | None
    num_classes: int
    sources: tuple[Source, ...] = ()
    decoder: DecoderSizes | None = None
    miou: float | None = None

    @property
    def task(self) -> str:
        """What the weights do, "classification" or "segmentation"."""
        return CLASSIFICATION if self.decoder is None else SEGMENTATION

    @property
    def parameters(self) -> int | None:
        """Trainable parameters, its own head included; None for a model of its own."""
        if self.configuration is None:
            return None
        dims = CONFIGURATIONS[self.configuration].embed_dims
        features = dims[-1]
        if self.decoder is not None:
            head = self.decoder.parameters(dims, self.num_classes)
        else:
            head = (features + 1) * self.num_classes if self.num_classes else 0
        return _PARAMETERS[self.configuration] - (features + 1) * 1000 + head

    @property
    def expected_bytes(self) -> int | None:
        """About the size of a file that holds the weights only, in float32."""
        return None if self.parameters is None else 4 * self.parameters

    @property
    def max_bytes(self) -> int:
        """Largest file accepted; training checkpoints hold the weights about three times."""
        return 4 * (self.expected_bytes or 0) + (16 << 20)


_LICENCE_NOTE = "for commercial use, please contact the authors"
_IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# Of every configuration that segmentation weights were published for.
OF_SEGMENTERS = Preprocessing(
    512, 1.0, "bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
_IMAGENET_NOTE = (
    "The preprocessing (ImageNet mean and standard deviation) and the order of the class names "
    "are unverified for these weights."
)
_KEYS_NOTE = "A segmentation backbone; the naming of its tensors is unverified."
# Where the authors' README links its checkpoints; no hashes are published.
_TSINGHUA = "https://cloud.tsinghua.edu.cn/f/"
_UPERNET = (
    ("van_b2", "ade20k_upernet", "68c8b494f3824d30bf07", 50.1),
    ("van_b3", "ade20k_upernet", "97bde65fbe334b358797", 50.6),
    ("van_b4", "ade20k_upernet", "5273f92c77a94395b804", 52.2),
    ("van_b4", "in22k_ade20k_upernet", "8f1f0a9c4c71478fa43b", 53.5),
    ("van_b5", "in22k_ade20k_upernet", "2175bdc39d094e5f8f99", 53.9),
    ("van_b6", "in22k_ade20k_upernet", "853d9d0ea0f44c2aa090", 54.7),
)
_MMCLS = "https://download.openmmlab.com/mmclassification/v0/van/"
_MMSEG = "https://download.openmmlab.com/mmsegmentation/v0.5/van_3rdparty/"
_HF = "https://huggingface.co/Visual-Attention-Network/"
_PORT = "https://github.com/EMalagoli92/VAN-Classification-TensorFlow/releases/download/1.0.3/"


def _openmmlab(base: str, stem: str, prefix: str) -> Source:
    """OpenMMLab writes the first 8 digits of a file's SHA-256 into its name."""
    return Source(f"{base}{stem}-{prefix}.pth", prefix)


def _published() -> Iterator[Weights]:
    """Every published checkpoint: hashed files first, then others, the smaller ones before.

    Long, as it is a table.
    """

    def record(tag, configuration, classes, sources, notes="", top1=None, top5=None):
        is_22k = tag.startswith("in22k")
        return Weights(
            name=f"{configuration}.{tag}",
            configuration=configuration,
            dataset="ImageNet-22k" if is_22k else "ImageNet-1k",
            num_classes=classes,
            sources=tuple(sources),
            preprocessing=_IMAGENET if is_22k else Preprocessing(),
            labels=("imagenet22k" if is_22k else "imagenet1k") if classes else None,
            top1=top1,
            top5=top5,
            licence="Apache-2.0",
            licence_note=_LICENCE_NOTE,
            notes=" ".join(filter(None, (notes, _IMAGENET_NOTE if is_22k else ""))),
        )

    # Accuracy as OpenMMLab measured it on its files.
    for number, size, prefix, original, top1, top5 in (
        (0, "tiny", "385941af", "van_tiny_754", 75.41, 93.02),
        (1, "small", "17bc91aa", "van_small_811", 81.01, 95.63),
        (2, "base", "6a4cc31b", "van_base_828", 82.80, 96.21),
        (3, "large", "f212ba21", "van_large_839", 83.86, 96.73),
    ):
        sources = (
            _openmmlab(_MMCLS, f"van-{size}_8xb128_in1k_20220501", prefix),
            Source(
                f"{_HF}van-{size}/resolve/main/pytorch_model.bin",
                file=f"van-{size}_pytorch_model.bin",
            ),
            Source(f"{_HF}VAN-{size.title()}-original/resolve/main/{original}.pth.tar"),
            Source(f"{_PORT}van_b{number}.h5"),
        )
        yield record("in1k", f"van_b{number}", 1000, sources, top1=top1, top5=top5)
    b4 = _openmmlab(_MMCLS, "van-b4_3rdparty_in1k_20220909", "f4665b92")
    yield record("in1k", "van_b4", 1000, [b4], top1=84.13, top5=96.86)

    for number, prefix in ((4, "db926b18"), (5, "18e904e3"), (6, "96c2cb3a")):
        source = _openmmlab(_MMCLS, f"van-b{number}_3rdparty_in21k_20220909", prefix)
        yield record("in22k", f"van_b{number}", 21_841, [source])

    for number, tag, prefix in (
        (0, "in1k", "956f5e0d"),
        (1, "in1k", "3adb117f"),
        (2, "in1k", "636fac93"),
        (3, "in1k", "a184e051"),
        (4, "in1k", "1d71c077"),
        (4, "in22k", "5e31cafb"),
        (5, "in22k", "b26134d7"),
        (6, "in22k", "5e5172a3"),
    ):
        stem = f"van-b{number}{'-in22k' if tag == 'in22k' else ''}_3rdparty_20230522"
        source = _openmmlab(_MMSEG, stem, prefix)
        yield record(f"{tag}_backbone", f"van_b{number}", 0, [source], _KEYS_NOTE)

    for configuration, tag, key, miou in _UPERNET:
        file = f"{configuration}_{tag}.pth"
        yield Weights(
            name=f"{configuration}.{tag}",
            configuration=configuration,
            dataset="ADE20K",
            num_classes=150,
            sources=(Source(f"{_TSINGHUA}{key}/?dl=1", file=file),),
            decoder=DecoderSizes(
                kind=UPERNET, auxiliary_channels=AUXILIARY_CHANNELS, **published_sizes(UPERNET)
            ),
            miou=miou,
            preprocessing=OF_SEGMENTERS,
            licence="Apache-2.0",
            licence_note=_LICENCE_NOTE,
            notes="No hash of the file is published: the first one that comes is kept.",
        )

    yield Weights(
        name="digits",
        configuration=None,
        dataset="UCI optical digits",
        num_classes=10,
        preprocessing=Preprocessing(32, 1.0, "box", (0.5,), (0.5,)),
        labels="digits",
        licence="MIT",
        licence_note="trained on the UCI optical digits (CC BY 4.0)",
    )


CATALOGUE: Mapping[str, Weights] = MappingProxyType({w.name: w for w in _published()})


# What `find` understands without looking at a file: also configurations, tags and "imagenet".
KNOWN_NAMES = frozenset(
    {"", "imagenet", *CATALOGUE, *CONFIGURATIONS, *(n.partition(".")[2] for n in CATALOGUE)}
)


def of_task(task: str | None) -> list[Weights]:
    """The records of one task, or all."""
    return [record for record in CATALOGUE.values() if task in (None, record.task)]


_WITH_IN1K = [name for name in CONFIGURATIONS if f"{name}.in1k" in CATALOGUE]


def find(
    weights: str | bool,
    configuration: str | None = None,
    argument: str = "weights",
    task: str | None = CLASSIFICATION,
) -> Weights:
    """The record that `weights` names.

    Args:
        weights: A name of the catalogue, or for `configuration` only its tag (`in1k`, `in22k`,
            ...); True and `imagenet` mean `in1k`; `van_b0` ... the `in1k` weights of that member.
        configuration: The member of the family it is for; None accepts any.
        argument: What the caller calls `weights`, for messages.
        task: What they are wanted for, "classification" or "segmentation"; None for any.

    Raises:
        ValueError: There are no such weights, or they belong to another configuration, or to
            another task.
    """
    if configuration is not None and configuration not in CONFIGURATIONS:
        raise ValueError(
            f"`configuration` must be one of {', '.join(CONFIGURATIONS)}. "
            f"Received: {configuration!r}"
        )
    tag = "in1k" if weights is True or weights == "imagenet" else weights
    if tag in CONFIGURATIONS:
        tag = f"{tag}.in1k"
    offered = of_task(task)
    mine = [w.name for w in offered if w.configuration == configuration]
    found = None
    if isinstance(tag, str):
        found = CATALOGUE.get(tag) or CATALOGUE.get(f"{configuration}.{tag}")
    if found is not None and task not in (None, found.task):
        raise ValueError(
            f"`{argument}`: {found.name} is for {found.task} ({_TAKEN_BY[found.task]}), not for "
            f"{task}. All names: van weights list"
        )
    if found is not None and (configuration is None or found.name in mine):
        return found
    there_is = "All names: van weights list"
    if configuration is not None:
        there_is = f"For {configuration}: {', '.join(mine)}. {there_is}"
    if found is not None:
        problem = f"{found.name} belongs to {found.configuration or 'a model of its own'}."
    else:
        wanted = f"{configuration}.in1k" if tag == "in1k" and configuration else repr(weights)
        short = [n.partition(".")[2] for n in mine] if configuration else _WITH_IN1K
        names = [w.name for w in offered]
        near = [n for n in names if n.startswith(f"{weights}.")] or get_close_matches(
            str(weights).lower(), [*short, *(mine if configuration else names)], n=1
        )
        hint = f"; did you mean {near[0]}?" if near else "."
        problem = f"no such weights are published: {wanted}{hint}"
    raise ValueError(f"`{argument}`: {problem} {there_is}")
