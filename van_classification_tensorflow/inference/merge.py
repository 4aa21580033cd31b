"""`van merge`: the parts of several processes -> the output that one process would have written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from ..support.console import messages, pictures_bar, say, say_failures
from ..support.text import first_few, printable, shown
from .journal import Journal
from .parts import Part, command, open_part, parts_beside
from .records import write_output
from .request import FEATURE_FORMATS, FORMATS, MergeRequest
from .shard import Shard, digest_of, turns

# What parts of one run have in common: {in their first line: in words}.
_SAME = {
    "content": "other weights",
    "preprocessing": "another preprocessing",
    "views": "other crops or flips",
    "features": "other results (features or classes)",
    "top": "another number of classes",
    "precision": "another precision",
    "calibration": "another calibration",
    "block": "another batch size",
    "names": "other inputs, or another order of them,",
    "inputs": "another number of inputs",
}


def run(request: MergeRequest, console: Console | None = None) -> int:
    """Merges; returns how many pictures had failed.

    The parts are checked before anything is written, and removed once the output is whole.

    Args:
        request: What to do.
        console: Where to report.

    Raises:
        ValueError: A part is missing, unfinished, damaged, or not of the same run as the others.
        OSError: A part cannot be read, or the output not be written.
    """
    console, output = console or messages(), request.output
    with Journal(output, resume=False, overwrite=request.overwrite) as journal:
        parts = _whole_set(output)
        _check_settings(output, parts)
        inputs, top = parts[0].about["inputs"], parts[0].about["top"]
        if note := _engines(parts):
            say(console, note)
        with pictures_bar(console) as bar:
            # Read once to be checked, and once to be written.
            task = bar.add_task(output.name, total=2 * inputs, rate="")
            failed = _check_records(parts, lambda: bar.advance(task))

            def records() -> Iterator[dict[str, Any]]:
                bar.update(task, completed=inputs)
                for record in _in_order(parts):
                    bar.advance(task)
                    yield record

            write_output(output, records, top or 0, top is None)
        journal.path.unlink(missing_ok=True)  # with --overwrite, of an unfinished run
        if not request.keep_parts:
            for part in parts:
                part.path.unlink()
    say(console, f"{output}: {inputs:,} records")
    if failed:
        say_failures(console, f"{len(failed):,} of {inputs:,} failed", failed)
    return len(failed)


def _whole_set(output: Path) -> list[Part]:
    """All parts of an output, by number."""
    there, name = parts_beside(output), printable(output)
    if not there:
        raise ValueError(
            f"{name} has no parts beside it; what makes them: {command(output, '0/2')}, and so on"
        )
    counts = sorted({shard.count for shard in there})
    if len(counts) > 1:
        among = " and of ".join(str(count) for count in counts)
        raise ValueError(
            f"{name} has parts of {among} shards beside it; remove those that are not to be merged"
        )
    for shard, whole in there.items():
        if not whole:
            raise ValueError(
                f"part {shard} of {name} is not finished; to go on once its process has ended: "
                f"{command(output, shard)} --resume"
            )
    every = [Shard(number, counts[0]) for number in range(counts[0])]
    if missing := [str(shard) for shard in every if shard not in there]:
        what = f"part {missing[0]} of {name} is"
        if len(missing) > 1:
            what = f"parts {first_few(missing)} of {name} are"
        raise ValueError(f"{what} not there; what makes it: {command(output, missing[0])}")
    return [open_part(output, shard) for shard in every]


def _check_settings(output: Path, parts: Sequence[Part]) -> None:
    first = parts[0]
    features = first.about["features"]
    if output.suffix not in (FEATURE_FORMATS if features else FORMATS):
        raise ValueError(
            f"{printable(first.path)} holds {'features' if features else 'classes'}, which are not "
            f"written to *{output.suffix}"
        )
    same = dict(_SAME)
    if first.about["precision"] != "float32":  # there each engine has numbers of its own
        same["engine"] = "another engine"
    for part in parts[1:]:
        for key, what in same.items():
            if first.about.get(key) != part.about.get(key):
                raise ValueError(
                    f"{printable(part.path)} was made with {what} than {printable(first.path)}"
                    f"{_difference(key, first, part)}; {part.anew}"
                )


def _difference(key: str, first: Part, part: Part) -> str:
    if key in ("names", "preprocessing"):
        return ""
    key = "weights" if key == "content" else key
    return f" ({shown(part.about.get(key))}, not {shown(first.about.get(key))})"


def _engines(parts: Sequence[Part]) -> str:
    """A word where several engines have made the parts, which agree but for rounding."""
    engines = Counter(part.about["engine"] for part in parts)
    if len(engines) == 1:
        return ""
    each = ", ".join(f"{count:,} by {printable(name)}" for name, count in engines.items())
    return f"Several engines made the parts, and each rounds in its way: {each}"


def _check_records(parts: Sequence[Part], seen: Callable[[], object]) -> list[str]:
    """Why pictures had failed, in order; `seen` is called at each.

    Raises:
        ValueError: A record is damaged, or they are not those of the inputs.
    """
    about = parts[0].about
    failed: list[str] = []
    widths: set[int] = set()

    def names() -> Iterator[str]:
        for record in _in_order(parts):
            seen()
            if record["error"]:
                failed.append(record["error"])
            elif about["features"]:
                widths.add(len(record["features"]))
            yield record["path"]

    if digest_of(names(), len(parts), about["block"]) != about["names"] or len(widths) > 1:
        raise ValueError(
            f"{printable(parts[0].output)}: the records of its parts are not those of the inputs "
            "that the parts were begun with: one is damaged; make them all anew, with --overwrite"
        )
    return failed


def _in_order(parts: Sequence[Part]) -> Iterator[dict[str, Any]]:
    """The records in the order of the inputs."""
    about, records = parts[0].about, [part.records() for part in parts]
    for number, size in turns(about["inputs"], len(parts), about["block"]):
        found = list(islice(records[number], size))
        if len(found) < size:
            raise _wrong_number(parts[number], "too few")
        yield from found
    for part, more in zip(parts, records, strict=True):
        if next(more, None) is not None:
            raise _wrong_number(part, "too many")


def _wrong_number(part: Part, how: str) -> ValueError:
    return ValueError(f"{printable(part.path)} has {how} records; {part.anew}")
