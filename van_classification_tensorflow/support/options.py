"""The options of a command, said once: in the fields of the record that the command is asked with.

    @dataclass(frozen=True, kw_only=True)
    class Request:
        output: Path | None = option("folder to make", None)

`add_options` makes `--output OUTPUT` of that, and `from_options` a `Request` of what was given.
"""

from __future__ import annotations

from argparse import SUPPRESS, BooleanOptionalAction
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

Limit = tuple[str, Callable[[Any], bool]]
"""What is allowed, in words, and whether a value is."""


@dataclass(frozen=True)
class Option:
    """What `option` was told of a field; `fields(record)[i].metadata["option"]`."""

    help: str
    flag: str | None
    read: Callable[[str], Any] | None
    limit: Limit | None
    argparse: Mapping[str, Any]


def option(
    help: str,
    default: Any = MISSING,
    *,
    flag: str | None = None,
    read: Callable[[str], Any] | None = None,
    limit: Limit | None = None,
    **argparse: Any,
) -> Any:
    """A field of a request that is an option of the command line as well.

    Args:
        help: What it is; `{default}` in it stands for the default.
        default: Of the record and of the command line; without one it must be given.
        flag: Such as "--weights", if it is not the field's name; "path", without dashes, is an
            argument that is given without a flag.
        read: Makes a value of a text; by default the field's type does.
        limit: For the record's own check of the value.
        argparse: What else `ArgumentParser.add_argument` is to know: metavar, choices, nargs.
    """
    return field(default=default, metadata={"option": Option(help, flag, read, limit, argparse)})


def same_as(record: type, name: str) -> Any:
    """A field that is the same option as one of another record."""
    one = next(field for field in fields(record) if field.name == name)
    return field(default=one.default, metadata=one.metadata)


def part(record: type) -> Any:
    """A field that holds another record; its options are added to the command's."""
    return field(default_factory=record, metadata={"part": record})


def changes_of(record: type, title: str) -> Any:
    """A field {name: value}: which fields of another record the user has changed.

    Each field of that record becomes an option, listed under `title`, whose help ends with the
    default. Only what is given is in the dictionary: None for "none", otherwise the text, of which
    the other record makes a value.
    """
    return field(default_factory=dict, metadata={"changes": (record, title)})


def number_or(word: str) -> Callable[[str], int | str]:
    """A reader for `option(read=...)`: a whole number, or the text itself where it is `word`."""

    def read(text: str) -> int | str:
        return word if text == word else int(text)

    read.__name__ = f"number (or {word!r})"  # argparse says it of a wrong value
    return read


def kind_of(hint: Any) -> tuple[Any, bool]:
    """(type of a value, whether it is a list): (int, True) of `tuple[int, ...] | None`."""
    several = False
    while inner := get_args(hint):
        several |= get_origin(hint) is tuple
        hint = inner[0]
    return hint, several


def add_options(parser: Any, record: type, as_changes: bool = False) -> None:
    """An option for each field that was made by `option`, in their order.

    What is not given is not in the result of `parser`: the defaults are the record's.

    Args:
        parser: An `ArgumentParser`, or a group of one.
        record: A dataclass.
        as_changes: As `changes_of` needs them: values stay text, a flag gets a `--no-` form.
    """
    hints = get_type_hints(record)
    for one in fields(record):
        if "part" in one.metadata:
            add_options(parser, one.metadata["part"])
        elif "changes" in one.metadata:
            changed, title = one.metadata["changes"]
            add_options(parser.add_argument_group(title), changed, as_changes=True)
        elif "option" in one.metadata:
            kind, several = kind_of(hints[one.name])
            how = _as_change(kind) if as_changes else _as_value(kind, one.default)
            if several and kind is not bool:
                how["nargs"] = "+"
            _add_option(parser, one, how, as_changes)


def _as_value(kind: Any, default: Any) -> dict[str, Any]:
    if kind is bool:
        return {"action": "store_false" if default is True else "store_true"}
    return {"type": kind} if kind in (int, float, Path) else {}


def _as_change(kind: Any) -> dict[str, Any]:
    if kind is bool:
        return {"action": BooleanOptionalAction}
    # Only text: the record has the better words for what is wrong with a number.
    return {"type": _none_or_text, "metavar": {int: "N", float: "X", str: "TEXT"}[kind]}


def _none_or_text(text: str) -> str | None:
    return None if text == "none" else text


def _add_option(parser: Any, one: Field, how: dict[str, Any], as_change: bool) -> None:
    said: Option = one.metadata["option"]
    flag = said.flag or f"--{one.name.replace('_', '-')}"
    text = f"{said.help} (default: {{default}})" if as_change else said.help
    how["help"] = text.replace("{default}", _shown(one.default)).replace("%", "%%")
    how["default"] = SUPPRESS
    if said.read is not None:
        how["type"] = said.read
    if "action" not in how and "choices" not in said.argparse:
        how.setdefault("metavar", flag.lstrip("-").replace("-", "_"))
    names = [one.name]
    if flag.startswith("-"):
        names, how["dest"], how["required"] = [flag], one.name, one.default is MISSING
        if "metavar" in how:
            how["metavar"] = how["metavar"].upper()
    parser.add_argument(*names, **{**how, **said.argparse})


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return " ".join(map(str, default))
    return "none" if default is None else str(default)


def from_options(record: type, given: Mapping[str, Any]) -> Any:
    """The record of what was given on the command line.

    Args:
        record: A dataclass, as `add_options` had it.
        given: {field: value}, as the parser found them.

    Raises:
        Exception: What the record raises of values that are not allowed.
    """
    values: dict[str, Any] = {}
    for one in fields(record):
        if "part" in one.metadata:
            values[one.name] = from_options(one.metadata["part"], given)
        elif "changes" in one.metadata:
            names = [other.name for other in fields(one.metadata["changes"][0])]
            changed = {name: given[name] for name in names if name in given}
            values[one.name] = {n: None if v == [None] else v for n, v in changed.items()}
        elif one.name in given:
            value = given[one.name]
            values[one.name] = tuple(value) if isinstance(value, list) else value
    return record(**values)
