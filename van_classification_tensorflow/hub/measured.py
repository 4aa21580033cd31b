"""What `van evaluate` has measured, read from its `results.json` for a model card.

The file may be a stranger's: it is read as plain data of bounded size, and every value is checked.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..support.checks import is_number, is_whole
from ..support.files import open_regular
from ..support.text import printable

_MAX = 64 << 20  # bytes; 21,841 classes have 3 million
_LONGEST_PATH = 4096
# Options of `van evaluate` that decide what is measured, beside the views; those that may be paths.
_OPTIONS = (
    *("data", "split", "subset", "class_map", "real_labels"),
    *("test_size", "engine", "precision", "calibration"),
)
_PATHS = ("data", "class_map", "real_labels", "calibration")


@dataclass(frozen=True)
class Measured:
    """Accuracy on a data set.

    Args:
        model: What was measured; of a path its last part, as others need not know where it was.
        dataset: On what; of a path the same.
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
        asked: {option of `van evaluate`: what it was given}, of those that decide what is measured;
            empty where the file is of a version that did not keep them.
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
    asked: Mapping[str, str] = field(default_factory=dict)

    def command(self, weights: str) -> str:
        """What measures it again, with weights of this address; "" where that is not known."""
        if "data" not in self.asked:
            return ""
        words = ["--data", self.asked["data"], "--weights", weights]
        for name, value in self.asked.items():
            if name != "data":
                words += [f"--{name.replace('_', '-')}", value]
        words += ["--crops", str(self.views)] if self.views != 1 else []
        words += ["--flip"] if self.flip else []
        return " ".join(["van evaluate", *map(shlex.quote, words)])


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
        model=_without_folders(_text(record, "model")),
        dataset=_without_folders(_text(record, "dataset")),
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
        asked=_asked(record.get("asked", {})),
    )


def _asked(found: Any) -> dict[str, str]:
    """The options, of paths their last part."""
    if not isinstance(found, dict):
        raise ValueError("its `asked` names no options")
    asked = {}
    for name in _OPTIONS:
        value = found.get(name)
        if value is None:
            continue
        if is_whole(value):
            asked[name] = f"{_count(value, name)}"
        elif isinstance(value, str) and 1 <= len(value) <= _LONGEST_PATH:
            text = printable(value)
            asked[name] = _last_part(text) if name in _PATHS and not _is_name(text) else text
        else:
            raise ValueError(f"its `{name}` is no text of sensible length")
    return asked


def _is_name(text: str) -> bool:
    """Whether it names data that are no folder."""
    return text == "digits" or text.startswith("tfds:")


def _last_part(path: str) -> str:
    last = re.split(r"[/\\]", path.rstrip("/\\"))[-1] or path
    return f"./{last}" if _is_name(last) or last.startswith("-") else last


def _without_folders(text: str) -> str:
    """What `van evaluate` calls weights or data, of a path its last part."""
    if text.startswith(("hf://", "tfds:", "digits:")):
        return text
    text = re.sub(r"[/\\]+(?=$|, )", "", text)  # at the end of a folder's name
    return re.split(r"[/\\]", text)[-1] or text


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
