"""Pages of the documentation that are made of the code: the model cards, and the commands.

`write` is called by `conf.py`. Nothing here imports Keras.
"""

from __future__ import annotations

import re
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path

from van_classification_tensorflow.cli import COMMANDS, Command
from van_classification_tensorflow.spec.config import CONFIGURATIONS, VANConfig, min_image_size
from van_classification_tensorflow.spec.preprocessing import Preprocessing
from van_classification_tensorflow.support.options import add_options
from van_classification_tensorflow.weights.catalogue import (
    CATALOGUE,
    CLASSIFICATION,
    SEGMENTATION,
    Weights,
    of_task,
)

PACKAGE = "van_classification_tensorflow"


def write(folder: Path) -> None:
    """Writes all of them; one that is the same keeps its time, and is not built again."""
    folder.mkdir(exist_ok=True)
    for name, text in {"model-cards.md": model_cards(), "commands.md": commands()}.items():
        path = folder / name
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")


# --- Model cards ---


def model_cards() -> str:
    """One page for all of the catalogue."""
    parts = [
        "# Model cards",
        "Made of the catalogue that the commands use (`van weights list`). Accuracy is ImageNet-1k "
        "top-1 and top-5 at 224 x 224 *as OpenMMLab published it for these files, not measured "
        "here*; `van evaluate --data imagenet/val --weights NAME` measures it. MB: the weights in "
        "float32; the authors' training checkpoints hold about three times as much.",
        _overview(),
        "What the authors say of all of their weights: Apache-2.0, and *for commercial use, please "
        "contact the authors*. They know the photographs that they were trained on: on other "
        "pictures they answer with one of their classes all the same, and with the biases of their "
        "data. There is no claim here that they are fit for decisions about people.",
    ]
    classifiers = list(of_task(CLASSIFICATION))
    for configuration, config in CONFIGURATIONS.items():
        mine = [w for w in classifiers if w.configuration == configuration]
        parts += [f"## {configuration}", _sizes(config), *map(_card, mine)]
    others = [w for w in classifiers if w.configuration is None]
    parts += ["## Models of their own", *map(_card, others)]
    parts += ["## Segmenters", _SEGMENTERS, *map(_card, of_task(SEGMENTATION))]
    return "\n\n".join(parts) + "\n"


_SEGMENTERS = (
    "For `van segment`, `Segmenter` and `VANSegmenter` ([Segment](../segment.md)). mIoU is that of "
    "ADE20K's validation set with several scales, *as the authors published it, not measured "
    "here*; `van segment ade/images --weights NAME --output scores --truth ade/annotations "
    "--reduce-zero-label --scales 0.5 0.75 1 1.25 1.5 1.75 --flip` measures it."
)


def _overview() -> str:
    rows = (
        [
            f"[`{w.name}`](#{_anchor(w.name)})",
            w.dataset,
            f"{w.num_classes:,}" if w.num_classes else "none",
            _millions(w.parameters),
            f"{w.expected_bytes / 1e6:.0f}" if w.expected_bytes else "",
            _percent(w.top1),
            _percent(w.top5),
            f"{w.miou:.1f}" if w.miou is not None else "-",
        ]
        for w in CATALOGUE.values()
    )
    head = ["name", "trained on", "classes", "parameters", "MB", "top-1", "top-5", "mIoU"]
    return _table(head, rows, "lllrrrrr")


def _sizes(config: VANConfig) -> str:
    shown = {
        "Channels": config.embed_dims,
        "hidden channels": config.hidden_dims,
        "blocks": config.depths,
    }
    text = "; ".join(f"{name} {', '.join(map(str, one))}" for name, one in shown.items())
    least = min_image_size(config.num_stages)
    return f"{text}. Input of any size from {least} pixels, float, normalised as the card says."


def _card(weights: Weights) -> str:
    rows = [
        ["trained on", weights.dataset],
        ["classes", f"{weights.num_classes:,}" if weights.num_classes else "none: a backbone"],
        ["parameters", f"{weights.parameters:,}" if weights.parameters else "of its file"],
        *_of_task(weights),
        ["names of the classes", _names(weights)],
        ["licence", f"{weights.licence}; {weights.licence_note}"],
    ]
    if weights.notes:
        rows.append(["to be known", weights.notes])
    lines = [f"### {weights.name}", _table(["", ""], rows, "ll")]
    if not weights.sources:
        lines.append("Part of the package: no network is needed.")
    else:
        lines.append("Addresses, the preferred one first:")
        lines.append("\n".join(f"- <{one.url}>{_hash(one.sha256)}" for one in weights.sources))
    return "\n\n".join(lines)


def _names(weights: Weights) -> str:
    if weights.decoder is not None:
        return "of the file, or else ADE20K's"
    return weights.labels or "none"


def _of_task(weights: Weights) -> list[list[str]]:
    """The rows that classifiers and segmenters do not have alike."""
    how = weights.preprocessing
    if weights.decoder is None:
        return [
            ["top-1, top-5", _accuracy(weights)],
            ["preprocessing", preprocessing_words(how)],
        ]
    assert how is not None  # noqa: S101 - every segmenter of the catalogue has it
    return [
        ["decoder", f"{weights.decoder.kind} of {weights.decoder.channels} channels"],
        ["mIoU", f"{weights.miou:.1f} %, several scales, as published by the authors"],
        [
            "preprocessing",
            f"RGB, shorter side to {how.input_size} ({how.interpolation}), no crop, mean "
            f"{_numbers(how.mean)}, std {_numbers(how.std)}",
        ],
    ]


def preprocessing_words(how: Preprocessing | None) -> str:
    """A line that says everything of it."""
    if how is None:
        return "not known"
    channels = "grey" if how.channels == 1 else "RGB"
    return (
        f"{channels}, {how.resize} to {how.resize_to} ({how.interpolation}), centre crop "
        f"{how.input_size}, mean {_numbers(how.mean)}, std {_numbers(how.std)}"
    )


def _numbers(values: tuple[float, ...]) -> str:
    return f"{values[0]}" if len(set(values)) == 1 else " ".join(map(str, values))


def _accuracy(weights: Weights) -> str:
    if weights.top1 is None:
        return "none is published"
    return f"{weights.top1:.2f} %, {weights.top5:.2f} %, as published by OpenMMLab"


def _hash(digits: str) -> str:
    return f" (SHA-256 begins with `{digits}`)" if digits else " (no hash is published)"


def _millions(count: int | None) -> str:
    return f"{count / 1e6:.1f} M" if count else ""


def _percent(value: float | None) -> str:
    return f"{value:.2f}" if value is not None else "-"


def _anchor(name: str) -> str:
    """GitHub's and MyST's anchor of a heading."""
    return re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-")


def _table(head: list[str], rows: Iterable[list[str]], align: str) -> str:
    rules = ["---:" if one == "r" else "---" for one in align]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rules, *rows])


# --- Commands ---


def commands() -> str:
    """All commands with their options, as `--help` has them."""
    parts = [
        "# Commands",
        "Made of the records that the commands are asked with; `van COMMAND --help` says the same. "
        "Results go to the standard output, messages to the standard error. Exit code: 0 done; 1 "
        "an error, or what the command says of itself; 2 a wrong option; 130 stopped by Ctrl-C.",
    ]
    for name, command in _all_commands(COMMANDS):
        parts += [f"## {name}", _with_flags(command.about), *_options(command)]
        if command.finding:
            parts.append(f"Exit code 1 also where {command.finding}.")
    return "\n\n".join(parts) + "\n"


def _all_commands(commands, before: str = "van") -> Iterator[tuple[str, Command]]:
    for name, one in commands.items():
        if isinstance(one, Command):
            yield f"{before} {name}", one
        else:
            yield from _all_commands(one, f"{before} {name}")


def _options(command: Command) -> Iterator[str]:
    """A table for each group of options."""
    module, _, name = command.request.partition(":")
    record = getattr(import_module(f"{PACKAGE}.{module}"), name)
    parser = ArgumentParser(add_help=False)
    add_options(parser, record)
    for group in parser._action_groups:
        actions = sorted(group._group_actions, key=lambda one: bool(one.option_strings))
        if not actions:
            continue
        if any(one.metadata.get("changes", ("", ""))[1] == group.title for one in fields(record)):
            yield f"{group.title[0].upper()}{group.title[1:]}:"
        rows = ([_flag(one), _escaped(one.help % vars(one))] for one in actions)
        yield _table(["option", "what it is"], rows, "ll")


def _flag(action) -> str:
    flags = ", ".join(f"`{flag}`" for flag in action.option_strings)
    if action.nargs == 0:
        return flags
    value = action.metavar or ", ".join(map(str, action.choices or [action.dest.upper()]))
    several = " ..." if action.nargs in ("+", "*") else ""
    return f"{flags} `{value}{several}`".strip().replace("|", r"\|")


def _escaped(text: str) -> str:
    """For a cell of a table: no column ends in it, and what looks like markup is none."""
    text = re.sub(r"([|*<>_])", r"\\\1", text).replace("\n", " ")
    return _with_flags(text)


def _with_flags(text: str) -> str:
    """Options in running text as code, or their dashes would become one."""
    return re.sub(r"(?<![\w`-])(--[a-z][a-z-]+)", r"`\1`", text)
