"""What `van evaluate` has measured, read from its `results.json` for a model card.

The file may be a stranger's: it is read as plain data of bounded size, and every value is checked.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..support.checks import is_number, is_whole
from ..support.files import open_regular
from ..support.text import printable

_MAX = 64 << 20  # bytes; 21,841 classes have 3 million


@dataclass(frozen=True)
class Measured:
    """Accuracy on a data set.

    Args:
        model: What was measured.
        dataset: On what.
        pictures: How many of them were measured.
        failed: How many could not be read.
        classes: Among how many it was decided.
        top1: In [0, 1].
        top5: The same.
        top1_interval: Of 95 %.
        views: Crops of each picture.
        flip: Whether they were mirrored as well.
        engine: What ran the model.
        version: Of this package.
    """

    model: str
    dataset: str
    pictures: int
    failed: int
    classes: int
    top1: float
    top5: float
    top1_interval: tuple[float, float]
    views: int
    flip: bool
    engine: str
    version: str

    @property
    def command(self) -> str:
        """What measures it again."""
        options = [f"--crops {self.views}"] if self.views != 1 else []
        options += ["--flip"] if self.flip else []
        words = ["van evaluate", "--data", shlex.quote(self.dataset), "--weights"]
        return " ".join([*words, shlex.quote(self.model), *options])


def read_measured(path: Path) -> Measured:
    """Reads `results.json` of `van evaluate --output`.

    Raises:
        ValueError: It is none.
        OSError: It cannot be read.
    """
    try:
        with open_regular(path) as file:
            text = file.read(_MAX + 1)
        if len(text) > _MAX:
            raise ValueError(f"more than {_MAX:,} bytes")
        return _measured(_object(text))
    except ValueError as error:
        raise ValueError(
            f"`metrics` must be the results.json of `van evaluate --output`: {printable(path)}: "
            f"{error}"
        ) from error


def _object(text: bytes) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("no JSON") from None
    if not isinstance(record, dict):
        raise ValueError("no JSON object")
    return record


def _measured(record: dict[str, Any]) -> Measured:
    views = record.get("views")
    if not isinstance(views, list) or len(views) != 2 or type(views[1]) is not bool:
        raise ValueError("it has no `views`")
    failed = record.get("failed")
    if not isinstance(failed, list):
        raise ValueError("it has no `failed`")
    interval = record.get("top1_interval")
    if not isinstance(interval, list) or len(interval) != 2:
        raise ValueError("it has no `top1_interval`")
    return Measured(
        model=_text(record, "model"),
        dataset=_text(record, "dataset"),
        pictures=_count(record.get("pictures"), "pictures"),
        failed=len(failed),
        classes=_count(record.get("classes"), "classes"),
        top1=_share(record.get("top1"), "top1"),
        top5=_share(record.get("top5"), "top5"),
        top1_interval=(_share(interval[0], "top1_interval"), _share(interval[1], "top1_interval")),
        views=_count(views[0], "views"),
        flip=views[1],
        engine=_text(record, "engine", least=0),
        version=_text(record, "version"),
    )


def _text(record: dict[str, Any], key: str, least: int = 1) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not least <= len(value) <= 500:
        raise ValueError(f"its `{key}` is no text of sensible length")
    return printable(value)


def _count(value: Any, key: str) -> int:
    if not is_whole(value) or not 1 <= value <= 10**9:
        raise ValueError(f"its `{key}` is no number of 1 or more")
    return int(value)


def _share(value: Any, key: str) -> float:
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"its `{key}` is not from 0 to 1")
    return float(value)
