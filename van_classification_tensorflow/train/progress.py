"""What `model.fit` shows: a bar while it runs, and a line of figures for each epoch that stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

from ..support.console import progress_bar, say

_GROUPS = {"": "training", "val_": "validation", "average_": "averaged weights"}


class FitProgress(keras.callbacks.Callback):
    """A single bar over all epochs; use it with `verbose=0`, inside a `with` statement.

    Leaving the `with` gives the terminal back, also when training is interrupted. The lines are at
    most 79 columns wide.

    Args:
        console: Where to draw; without a terminal there are only the lines.
        rate: Called for the pictures a second so far; None: it is not shown.
        lines: How many lines to print at most.
        steps_per_epoch: Where it is not what `fit` is told; `fit` may be called several times.
        done: Batches of an earlier run that this one goes on from.
        epochs: Of all calls of `fit`, where it is not what `fit` is told.
    """

    def __init__(
        self,
        console: Console,
        rate: Callable[[], float | None] | None = None,
        lines: int = 30,
        steps_per_epoch: int | None = None,
        done: int = 0,
        epochs: int | None = None,
    ):
        super().__init__()
        self.of_all = epochs
        self.console, self.rate, self.lines = console, rate, lines
        self.steps, self.done = steps_per_epoch, done
        self.bar = progress_bar(
            console,
            TextColumn("[bold]Epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(min(max(console.width - 56, 5), 40)),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        self.task = None
        self._headed = False

    def on_train_begin(self, logs=None):
        self.epochs = self.of_all or self.params["epochs"]
        steps = self.steps or self.params["steps"]
        if self.task is None:
            self.task = self.bar.add_task("", epoch=1, epochs="", figures="")
        self.bar.update(
            self.task, total=self.epochs * steps, completed=self.done, epochs=self.epochs
        )

    def on_epoch_begin(self, epoch, logs=None):
        self.bar.update(self.task, epoch=epoch + 1)
        self._first = self.done

    def on_train_batch_end(self, batch, logs=None):
        self.done = self._first + batch + 1
        figures = f"loss {float((logs or {}).get('loss', 0)):.4f}"
        if self.rate is not None and (speed := self.rate()) is not None:
            figures += f"  {speed:.1f} images/s"
        self.bar.update(self.task, completed=self.done, figures=figures)

    def on_epoch_end(self, epoch, logs=None):
        every = max(self.epochs // self.lines, 1)
        if (epoch + 1) % every and epoch + 1 != self.epochs:
            return
        speed = None if self.rate is None else self.rate()
        cells = _cells(f"{epoch + 1}/{self.epochs}", logs or {}, speed)
        if not self._headed:
            for line in _heading(cells):
                say(self.console, line)
            self._headed = True
        say(self.console, "".join(text.rjust(width) for _, _, width, text in cells))

    def __enter__(self):
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self.task is not None:
            self.bar.update(self.task, visible=False)  # the lines stay
        self.bar.stop()


_Cell = tuple[str, str, int, str]  # group, name, width, text


def _cells(epoch: str, logs: Mapping[str, Any], speed: float | None) -> list[_Cell]:
    cells = [("", "epoch", 9, epoch)]
    for prefix, group in _GROUPS.items():
        loss, accuracy = logs.get(f"{prefix}loss"), logs.get(f"{prefix}accuracy")
        if loss is not None:
            alone = 18 if accuracy is None else 9  # the group's name above it needs the room
            cells.append((group, "loss", alone, f"{float(loss):.4f}"))
        if accuracy is not None:
            cells.append((group, "top-1", 8, f"{float(accuracy):.2%}"))
    if "learning_rate" in logs:
        cells.append(("", "lr", 9, f"{float(logs['learning_rate']):.1e}"))
    if speed is not None:
        cells.append(("", "img/s", 8, f"{speed:.1f}"))
    return cells


def _heading(cells: list[_Cell]) -> tuple[str, str]:
    """Two lines: what groups of columns are of, each at the right end of its group; the columns."""
    groups, width = "", 0
    for place, (group, _, cell, _) in enumerate(cells):
        width += cell
        if place + 1 == len(cells) or cells[place + 1][0] != group:
            groups += group.rjust(width)
            width = 0
    return groups.rstrip(), "".join(name.rjust(cell) for _, name, cell, _ in cells)
