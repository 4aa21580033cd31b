"""One progress bar for `model.fit`: epoch, losses, time left."""

from __future__ import annotations

import keras
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class FitProgress(keras.callbacks.Callback):
    """A single bar over all epochs; use it with `verbose=0`, inside a `with` statement.

    Leaving the `with` gives the terminal back, also when training is interrupted.

    Args:
        console: Where to draw; without a terminal it prints one line every tenth of the run.
    """

    def __init__(self, console: Console):
        super().__init__()
        self.console = console
        self.bar = Progress(
            TextColumn("[bold]Epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def on_train_begin(self, logs=None):
        self.epochs, steps = self.params["epochs"], self.params["steps"]
        self.task = self.bar.add_task(
            "", total=self.epochs * steps, epoch=1, epochs=self.epochs, metrics=""
        )

    def on_epoch_begin(self, epoch, logs=None):
        self.bar.update(self.task, epoch=epoch + 1)

    def on_train_batch_end(self, batch, logs=None):
        self.bar.advance(self.task)

    def on_epoch_end(self, epoch, logs=None):
        text = "  ".join(f"{k} {v:.4f}" for k, v in (logs or {}).items() if k != "learning_rate")
        self.bar.update(self.task, metrics=text)
        every = max(self.epochs // 10, 1)
        if not self.console.is_terminal and ((epoch + 1) % every == 0 or epoch + 1 == self.epochs):
            self.console.print(f"Epoch {epoch + 1}/{self.epochs}  {text}", highlight=False)

    def __enter__(self):
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()
