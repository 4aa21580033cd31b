"""One progress bar for `model.fit`: epoch, losses, images/s, time left."""

from __future__ import annotations

import time

import keras
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class FitProgress(keras.callbacks.Callback):
    """A single bar over all epochs; use it with `verbose=0`, inside a `with` statement.

    Leaving the `with` gives the terminal back, also when training is interrupted.

    Args:
        console: Where to draw; without a terminal it prints one line after an epoch.
        images_per_step: Pictures of a batch, for the rate; None: no rate.
        lines: How many lines to print at most without a terminal.
        steps_per_epoch: Where it is not what `fit` is told; `fit` may be called several times.
        done: Batches of an earlier run that this one goes on from.
    """

    def __init__(
        self,
        console: Console,
        images_per_step: int | None = None,
        lines: int = 10,
        steps_per_epoch: int | None = None,
        done: int = 0,
    ):
        super().__init__()
        self.console, self.images, self.lines = console, images_per_step, lines
        self.steps, self.done = steps_per_epoch, done
        self.bar = Progress(
            TextColumn("[bold]Epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TextColumn("{task.fields[metrics]}{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = None
        self._warm = False

    def on_train_begin(self, logs=None):
        self.epochs, steps = self.params["epochs"], self.steps or self.params["steps"]
        if self.task is None:
            self.task = self.bar.add_task("", epoch=1, epochs="", metrics="", rate="")
        self._total = self.epochs * steps
        self.bar.update(self.task, total=self._total, completed=self.done, epochs=self.epochs)

    def on_epoch_begin(self, epoch, logs=None):
        self.bar.update(self.task, epoch=epoch + 1)
        self._began = time.perf_counter()
        self._first = self._first_timed = self.done
        self._rate, self._learning_rate = "", ""
        if self.images is not None:
            optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
            self._learning_rate = (
                f"  lr {float(keras.ops.convert_to_numpy(optimizer.learning_rate)):.2g}"
            )

    def on_train_batch_end(self, batch, logs=None):
        self.done = self._first + batch + 1
        shown = {}
        if not self._warm and self.images is not None and self.done < self._total:
            # The first batch of a process takes seconds to compile.
            self._began, self._first_timed = time.perf_counter(), self.done
        self._warm = True
        if self.images is not None and self.done > self._first_timed:
            speed = (
                (self.done - self._first_timed) * self.images / (time.perf_counter() - self._began)
            )
            self._rate = f"{self._learning_rate}  {speed:.1f} images/s"
            shown = {"metrics": _text(logs), "rate": self._rate}
        self.bar.update(self.task, completed=self.done, **shown)

    def on_epoch_end(self, epoch, logs=None):
        text = _text(logs)
        self.bar.update(self.task, metrics=text)
        every = max(self.epochs // self.lines, 1)
        if not self.console.is_terminal and ((epoch + 1) % every == 0 or epoch + 1 == self.epochs):
            line = f"Epoch {epoch + 1}/{self.epochs}  {text}{self._rate}"
            self.console.print(line, highlight=False, soft_wrap=True)

    def __enter__(self):
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()


def _text(logs) -> str:
    values = dict(logs or {})
    values = {"loss": values.pop("loss", 0.0), **values}  # first
    return "  ".join(f"{k} {float(v):.4f}" for k, v in values.items() if k != "learning_rate")
