"""What `pretrained=` names: a published checkpoint, fetched and verified, or a file of one's own.

Imports neither Keras nor a backend.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .cache import fetch
from .checkpoint import CheckpointError, ModelWeights, read_weights
from .weights import CATALOGUE, Weights, find


def open_pretrained(pretrained: Any, configuration: str | None = None) -> ModelWeights | None:
    """Finds, fetches if needed, verifies and reads the weights that `pretrained` names.

    Args:
        pretrained: True (or "imagenet") for the ImageNet-1k weights of `configuration`; a tag
            such as "in22k", a name of the catalogue (`van weights list`), or a path. False or
            None: nothing.
        configuration: The member of the family asked for, if any.

    Raises:
        ValueError: There are no such weights; says which there are. Or the file is refused.
        OSError: The file cannot be downloaded, verified or opened.
    """
    if pretrained is None or pretrained is False:
        return None
    if isinstance(pretrained, os.PathLike):
        return read_weights(pretrained)
    if pretrained is not True and not isinstance(pretrained, str):
        raise ValueError(
            "`pretrained` must be True, False, a name of the catalogue (`van weights list`) or a "
            f"path. Received: pretrained={pretrained!r}"
        )
    if pretrained is True and configuration is None:
        with_weights = sorted({w.configuration for w in CATALOGUE.values() if w.configuration})
        raise ValueError(
            "`pretrained=True` needs a `configuration` with published weights: "
            f"{', '.join(with_weights)}"
        )
    if isinstance(pretrained, str) and _looks_like_a_path(pretrained):
        return read_weights(pretrained)
    return read_weights(local_file(find(pretrained, configuration)))


def _looks_like_a_path(text: str) -> bool:
    # A name of the catalogue wins over a file of that name, which can be written ./digits.
    if text in CATALOGUE:
        return False
    return any(mark in text for mark in ("/", os.sep)) or Path(text).exists()


def local_file(record: Weights, **options: Any) -> Path:
    """A verified file of a published checkpoint; `options` as in `cache.fetch`."""
    return fetch(record, check=check_file, **options)


def check_file(path: Path, record: Weights) -> None:
    """Raises `CheckpointError` where the file does not hold what `record` promises."""
    found = read_weights(path).architecture
    wrong_classes = record.num_classes and found.num_classes != record.num_classes
    if found.configuration != record.configuration or wrong_classes:
        raise CheckpointError(
            f"{path}: it should hold {record.name} ({record.num_classes:,} classes); "
            f"it holds {found}"
        )
