"""Callbacks of `model.fit` that a training run is made of.

Those with `get_state` and `set_state` go on exactly where a snapshot left them.
"""

from __future__ import annotations

import csv
import io
import math
import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ..evaluate.metrics import score
from ..support.files import write_atomically
from ..support.text import printable
from .folder import is_no_better
from .optim import ModelAverage
from .snapshots import Snapshot, Snapshots, nonfinite
from .workers import Workers

_SMOOTHING = 50  # steps over which a loss is looked at
_COST = 50  # a snapshot may take a fiftieth of the time
_TALK = 1.0  # seconds between two questions of all workers


class TrainingError(ValueError):
    """The run cannot go on: its numbers are not finite any more, or the loss only grows."""


class Stopped(Exception):  # noqa: N818 - no more an error than KeyboardInterrupt
    """The run was asked to stop, and what it had reached is kept."""


class Position(keras.callbacks.Callback):
    """Counts the batches of the whole run; the first in the list, since others ask it.

    Args:
        steps_per_epoch: Batches of an epoch.
    """

    def __init__(self, steps_per_epoch: int):
        super().__init__()
        self.steps_per_epoch, self.step, self._before = steps_per_epoch, 0, 0

    @property
    def at_end_of_epoch(self) -> bool:
        return self.step % self.steps_per_epoch == 0

    def on_epoch_begin(self, epoch, logs=None):
        self._before = self.step

    def on_train_batch_end(self, batch, logs=None):
        self.step = self._before + batch + 1  # the last one, where several are run at once

    def get_state(self) -> dict:
        return {"step": self.step, "steps_per_epoch": self.steps_per_epoch}

    def set_state(self, state: dict) -> None:
        if state["steps_per_epoch"] != self.steps_per_epoch:
            raise ValueError(
                f"an epoch has {self.steps_per_epoch} batches now, and had "
                f"{state['steps_per_epoch']}: a run keeps its batch size and its number of "
                "pictures. Start another one with its last.keras as --pretrained"
            )
        self.step = state["step"]


class Averaging(keras.callbacks.Callback):
    """Moves the average of the weights after each update.

    Args:
        average: Of the model that is fitted.
        position: Of the run.
        accumulation_steps: Batches of an update.
    """

    def __init__(self, average: ModelAverage, position: Position, accumulation_steps: int = 1):
        super().__init__()
        self.average, self.position, self.every = average, position, accumulation_steps

    def on_train_batch_end(self, batch, logs=None):
        if self.position.step % self.every == 0:
            _ = self.model  # on JAX this brings the variables up to date
            self.average.update()


class Watch(keras.callbacks.Callback):
    """Ends the run when its loss is not finite, or far above what guessing gives.

    Args:
        position: Of the run.
        num_classes: Guessing has a loss of log(num_classes).
    """

    def __init__(self, position: Position, num_classes: int):
        super().__init__()
        self.position = position
        # Even a network that is sure and wrong comes back from a few such steps; not from 50.
        self.limit = 3 * math.log(max(num_classes, 2)) + 3
        self.smoothed, self._mean, self._seen = 0.0, 0.0, 0

    def on_epoch_begin(self, epoch, logs=None):
        # Keras's loss is the mean since the epoch's begin.
        self._seen = self.position.step % self.position.steps_per_epoch
        if not self._seen:
            self._mean = 0.0

    def on_train_batch_end(self, batch, logs=None):
        mean = float((logs or {})["loss"])
        step = self.position.step
        seen = (step - 1) % self.position.steps_per_epoch + 1
        if not math.isfinite(mean):
            raise TrainingError(f"step {step:,}: the loss is {mean}")
        loss = (mean * seen - self._mean * self._seen) / (seen - self._seen)
        self._mean, self._seen = mean, seen
        share = 1 / min(step, _SMOOTHING)
        self.smoothed += share * (loss - self.smoothed)
        if self.smoothed > self.limit and step >= _SMOOTHING:
            raise TrainingError(
                f"step {step:,}: the loss has grown to {self.smoothed:.3g} (mean of the last "
                f"{_SMOOTHING} steps); guessing gives {(self.limit - 3) / 3:.3g}"
            )

    def get_state(self) -> dict:
        return {"smoothed": self.smoothed, "mean": self._mean}

    def set_state(self, state: dict) -> None:
        self.smoothed, self._mean = state["smoothed"], state["mean"]


class Validation(keras.callbacks.Callback):
    """Measures the model on the validation pictures after each epoch; adds to the epoch's logs.

    `val_loss` (cross-entropy in nats, no smoothing), `val_accuracy`, `val_top5`; of the average
    of the weights as `average_loss`, `average_accuracy`, `average_top5`.

    Args:
        batches: To be gone through after each epoch: images (N, H, W, C), and the labels of the
            first of them, of which the last batch has fewer than N (`EvaluationBatches`).
        average: Of the weights, if there is one.
        workers: Who share the batches, in turn.
    """

    def __init__(
        self,
        batches: Iterable[tuple[np.ndarray, np.ndarray]],
        average: ModelAverage | None = None,
        workers: Workers | None = None,
    ):
        super().__init__()
        self.batches, self.average, self.workers = batches, average, workers or Workers()
        self._predict: Callable[[np.ndarray], np.ndarray] | None = None
        self._of: keras.Model | None = None

    def on_epoch_end(self, epoch, logs=None):
        if logs is None:
            return
        logs.update(self._measure("val"))
        if self.average is not None:
            with self.average.swapped():
                logs.update(self._measure("average"))

    def _measure(self, name: str) -> dict[str, float]:
        scores: list[tuple[float, ...]] = []
        count, rank = self.workers.count, self.workers.rank
        model = self.model  # on JAX this brings the variables up to date
        if self._predict is None or self._of is not model:
            self._predict, self._of = self.workers.predict(model), model
        for number, (images, labels) in enumerate(self.batches):
            if number % count != rank:
                continue
            # The rest of a last batch is filling; and several devices all do the same.
            logits = self._predict(images)[: len(labels)]
            for z, label in zip(logits, labels, strict=True):
                one = score(z, [int(label)])
                scores.append((number, one.loss, one.top1, one.top5))
        # In the pictures' order, so that sums come out the same however many workers there are.
        rows = self._of_all(np.array(scores, np.float64).reshape(-1, 4))
        loss, top1, top5 = rows[np.argsort(rows[:, 0], kind="stable"), 1:].T
        return {
            f"{name}_loss": float(np.mean(loss)),
            f"{name}_accuracy": float(np.mean(top1)),
            f"{name}_top5": float(np.mean(top5)),
        }

    def _of_all(self, rows: np.ndarray) -> np.ndarray:
        """The rows of all workers, of which each may have another number."""
        sizes = self.workers.gather(np.array([len(rows)], np.int64))[:, 0]
        padded = np.zeros((sizes.max(), rows.shape[1]), rows.dtype)
        padded[: len(rows)] = rows
        parts = zip(self.workers.gather(padded), sizes, strict=True)
        return np.concatenate([part[:size] for part, size in parts])


class Records(keras.callbacks.Callback):
    """What a person reads: metrics.csv, TensorBoard events, the best model; and early stopping.

    Args:
        folder: Of the run.
        position: Of the run.
        images_per_step: Pictures of a batch.
        monitored: "val" or "average": whose accuracy decides what is best.
        save_best: Called where this epoch is the best one so far.
        patience: Epochs without a better one before the run ends; None: never.
        writes: Whether this process leaves files, of several that train together.
    """

    def __init__(
        self,
        folder: Path,
        position: Position,
        images_per_step: int,
        monitored: str = "val",
        save_best: Callable[[], None] = lambda: None,
        patience: int | None = None,
        writes: bool = True,
    ):
        super().__init__()
        self.writes = writes
        self.folder, self.position, self.images = folder, position, images_per_step
        self.monitored, self.save_best, self.patience = monitored, save_best, patience
        self.rows: list[dict[str, float]] = []
        # Of each epoch, with its validation, and pictures a second in training, without it: not
        # part of what must come out the same.
        self.seconds: list[float] = []
        self.speeds: list[float] = []
        self.images_per_second: float | None = None
        self.best: dict[str, float] = {}
        self._writer: Any = None
        self._warm = False

    @property
    def finished(self) -> bool:
        """Whether the last `patience` epochs have not been better."""
        return is_no_better(self.rows, self.best, self.patience)

    @property
    def history(self) -> dict[str, list[float]]:
        """As `keras.callbacks.History.history`."""
        keys = self.rows[0] if self.rows else {}
        return {key: [row[key] for row in self.rows] for key in keys}

    def on_epoch_begin(self, epoch, logs=None):
        self._began = time.perf_counter()
        self._first = self.position.step
        self.images_per_second = None

    def on_train_batch_end(self, batch, logs=None):
        if not self._warm and not self.position.at_end_of_epoch:
            # The first batch of a process takes seconds to compile.
            self._began, self._first = time.perf_counter(), self.position.step
        elif (took := time.perf_counter() - self._began) > 0:
            self.images_per_second = (self.position.step - self._first) * self.images / took
        self._warm = True

    def on_epoch_end(self, epoch, logs=None):
        took = time.perf_counter() - self._began
        row = {"epoch": epoch + 1, "step": self.position.step, **_plain(logs or {})}
        self.rows.append(row)
        # Of an epoch that was interrupted, as if all of it had gone at the pace of the rest.
        done = self.position.step - self._first
        self.seconds.append(took * self.position.steps_per_epoch / done)
        self.speeds.append(self.images_per_second or 0.0)
        name = self.monitored
        merit = (row[f"{name}_accuracy"], -row[f"{name}_loss"])
        best = self.best
        if not best or merit > (best[f"{name}_accuracy"], -best[f"{name}_loss"]):
            self.save_best()
            self.best = row
        if self.finished:
            self.model.stop_training = True
        if self.writes:
            self.write_csv()
            self._write_events(row)

    def write_csv(self) -> None:
        head = [*(self.rows[0] if self.rows else ()), "seconds", "images_per_second"]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(head)
        for row, seconds, speed in zip(self.rows, self.seconds, self.speeds, strict=True):
            writer.writerow([*row.values(), round(seconds, 2), round(speed, 1)])
        write_atomically(self.folder / "metrics.csv", lambda p: p.write_text(text.getvalue()))

    def _write_events(self, row: dict[str, float]) -> None:
        import tensorflow as tf

        try:
            if self._writer is None:
                # Bytes: a name need not be text.
                folder = os.fsencode(self.folder / "tensorboard")
                self._writer = tf.summary.create_file_writer(folder)
            with self._writer.as_default(step=int(row["epoch"])):
                for key, value in row.items():
                    group, _, name = key.rpartition("_") if "_" in key else ("train", "", key)
                    if key not in ("epoch", "step"):
                        tag = key if key == "learning_rate" else f"{name}/{group}"
                        tf.summary.scalar(tag, value)
            self._writer.flush()
        except tf.errors.OpError as error:
            raise OSError(f"{printable(self.folder / 'tensorboard')}: {error.message}") from error

    def clock(self) -> dict:
        """How long the run took so far; kept beside the state, since no two runs agree in it."""
        return {"seconds": self.seconds, "speeds": self.speeds}

    def set_clock(self, clock: dict) -> None:
        self.seconds = list(clock["seconds"])
        images = self.images * self.position.steps_per_epoch
        # Snapshots of earlier versions have the seconds alone.
        self.speeds = list(clock.get("speeds", [images / took for took in self.seconds]))

    def get_state(self) -> dict:
        return {"rows": self.rows, "best": self.best}

    def set_state(self, state: dict) -> None:
        self.rows, self.best = state["rows"], state["best"]


class KeepSnapshots(keras.callbacks.Callback):
    """Snapshots of everything that decides how the run goes on; and stopping when asked to.

    The last in the list: it keeps what the others have become. To go on, give it a snapshot and
    start `fit` at the batch that `Position` then has.

    Args:
        store: Where they go.
        position: Of the run.
        variables: Called for {unique name: variable}; what Keras makes late is there by the first
            batch.
        callbacks: Those whose state is kept as well.
        metrics: Those that the model was compiled with.
        epochs: After which the run is done.
        seconds: Time between snapshots; 0: one after every step, however long it takes.
        about: What else goes into the state, as JSON.
        refresh: Called after each snapshot: files that show how far the run is.
        workers: Who train together. The first one's clock says when a snapshot is due, and it
            alone saves; anyone may ask to stop. They tell each other so once a second, at a step
            on which they have agreed before.
        stop: Called as often, whether to stop; as well as `stop_asked`.
    """

    def __init__(
        self,
        store: Snapshots,
        position: Position,
        variables: Callable[[], dict[str, Any]],
        callbacks: Sequence[Any],
        metrics: Sequence[keras.metrics.Metric],
        epochs: int,
        seconds: float = 60.0,
        about: dict | None = None,
        refresh: Callable[[], None] = lambda: None,
        workers: Workers | None = None,
        stop: Callable[[], bool] = lambda: False,
    ):
        super().__init__()
        self.workers, self.stop = workers or Workers(), stop
        self._talks_at, self._talked = 0, (0, time.perf_counter())
        self.store, self.position, self.variables = store, position, variables
        self.callbacks, self.metrics, self.epochs = list(callbacks), list(metrics), epochs
        self.seconds, self.about = seconds, about or {}
        self.refresh = refresh
        self.stop_asked = False
        self._saved_at, self._cost = time.perf_counter(), 0.0
        self._pending: Snapshot | None = None

    def restore(self, snapshot: Snapshot) -> None:
        """Puts everything back as it was; `fit`, which comes next, resets the rest by itself."""
        for callback in self.callbacks:
            callback.set_state(snapshot.state["callbacks"][type(callback).__name__])
            if isinstance(callback, Records):
                callback.set_clock(snapshot.clock)
        variables = self.variables()
        averaged = [any(n.startswith("average/") for n in x) for x in (variables, snapshot.arrays)]
        if averaged[0] != averaged[1]:
            raise ValueError(
                "a run keeps its moving average, or has none to the end: `average_decay` may "
                "change, but not from or to none"
            )
        self._assign(snapshot, variables)
        self._pending = snapshot
        self._talked = self.position.step, time.perf_counter()

    def _assign(self, snapshot: Snapshot, variables: dict[str, Any]) -> None:
        kinds = {name.partition("/")[0] for name in variables}
        if more := {n for n in snapshot.arrays if n.partition("/")[0] in kinds} - set(variables):
            raise ValueError(
                f"step {snapshot.step:,} was kept of another model or optimizer: it has "
                f"{len(more)} variables more"
            )
        for name, variable in variables.items():
            value = snapshot.arrays.get(name)
            if value is None or tuple(value.shape) != tuple(variable.shape):
                there = "nothing" if value is None else f"shape {tuple(value.shape)}"
                raise ValueError(
                    f"step {snapshot.step:,} was kept of another model or optimizer: for "
                    f"{variable.path} of shape {tuple(variable.shape)} it has {there}"
                )
        for name, variable in variables.items():
            variable.assign(snapshot.arrays[name])

    def on_epoch_begin(self, epoch, logs=None):
        if self._pending is not None and not self.position.at_end_of_epoch:
            self._assign(self._pending, self._metrics())

    def on_train_batch_begin(self, batch, logs=None):
        if self._pending is not None:
            _set_random_states(self._pending)  # as late as this: `fit` itself may draw before
            self._pending = None

    def _metrics(self) -> dict[str, Any]:
        # Keras lists those of `compile` once a batch was measured: here they are from the start.
        metrics = [*self.model.metrics, *self.metrics]
        found = {id(v): v for metric in metrics for v in metric.variables}
        return {f"metrics/{i}": v for i, v in enumerate(found.values())}

    def on_train_batch_end(self, batch, logs=None):
        if self.position.at_end_of_epoch:
            return  # when the epoch has been measured
        due, stop = self._agreed()
        if due or stop:
            self.save()
        if stop:
            raise Stopped

    def on_epoch_end(self, epoch, logs=None):
        last = self.model.stop_training or epoch + 1 == self.epochs
        due, stop = self._agreed(now=True)
        if last or stop or due:
            self.save()
            started = time.perf_counter()
            self.refresh()
            self._saved_at = time.perf_counter()
            self._cost += self._saved_at - started
        if stop and not last:
            raise Stopped

    def _agreed(self, now: bool = False) -> tuple[bool, bool]:
        """Whether a snapshot is due, and whether to stop; the same for all workers."""
        if self.workers.count == 1:
            return self.is_due(), self.stop_asked or self.stop()
        step = self.position.step
        if self.seconds == 0:
            self._talks_at = step
        if step < self._talks_at and not now:
            return False, False
        before, then = self._talked
        elapsed = max(time.perf_counter() - then, 1e-6)
        # At most twice as many as before: the first steps take longest.
        steps = max(1, min(int((step - before) / elapsed * _TALK), 2 * (step - before)))
        stop = self.stop_asked or self.stop()
        said = self.workers.gather(np.array([self.is_due(), stop, steps], np.int64))
        self._talks_at = step + int(said[0, 2])
        self._talked = step, time.perf_counter()
        return bool(said[0, 0]), bool(said[:, 1].any())

    def is_due(self) -> bool:
        waited = time.perf_counter() - self._saved_at
        return self.seconds == 0 or waited >= max(self.seconds, _COST * self._cost)

    def save(self) -> None:
        started = time.perf_counter()
        variables = {**self.variables(), **self._metrics()}
        arrays = {n: v.numpy() for n, v in variables.items()}
        step = self.position.step
        if name := nonfinite(arrays):
            raise TrainingError(f"step {step:,}: {name} is not finite any more")
        arrays, random_state = {**arrays, **_random_arrays()}, _random_state()
        state = {
            **self.about,
            "callbacks": {type(one).__name__: one.get_state() for one in self.callbacks},
            "random": random_state,
        }
        self.workers.first_alone(lambda: self.store.save(step, arrays, state, self._clock()))
        self._saved_at = time.perf_counter()
        self._cost = self._saved_at - started

    def _clock(self) -> dict:
        records = next((one for one in self.callbacks if isinstance(one, Records)), None)
        return {} if records is None else records.clock()


# --- Random states of Python, NumPy and PyTorch, for callbacks of one's own that use them ---


def _random_arrays() -> dict[str, np.ndarray]:
    arrays = {"random/numpy": np.asarray(_numpy_state()[1])}
    if keras.backend.backend() == "torch":  # whose dropout ignores Keras's seed variables
        import torch

        arrays["random/torch"] = torch.get_rng_state().numpy()
    return arrays


def _numpy_state() -> Any:
    return np.random.get_state()  # noqa: NPY002 - the global one is what is to be kept


def _random_state() -> dict:
    _, _, place, has_gauss, cached = _numpy_state()
    version, words, gauss = random.getstate()
    return {
        "numpy": [int(place), int(has_gauss), float(cached)],
        "python": [version, list(words), gauss],
    }


def _set_random_states(snapshot: Snapshot) -> None:
    place, has_gauss, cached = snapshot.state["random"]["numpy"]
    keys = snapshot.arrays["random/numpy"]
    np.random.set_state(("MT19937", keys, place, has_gauss, cached))  # noqa: NPY002
    version, words, gauss = snapshot.state["random"]["python"]
    random.setstate((version, tuple(words), gauss))
    if keras.backend.backend() == "torch":
        import torch

        torch.set_rng_state(torch.from_numpy(snapshot.arrays["random/torch"]))


def _plain(logs: dict) -> dict[str, float]:
    return {key: float(value) for key, value in logs.items()}
