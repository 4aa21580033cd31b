"""One run: the model and its callbacks, put together; it goes on where it was stopped."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
from rich.console import Console

from ..datasets.training import Pictures
from ..images.decode import ImageError
from ..model.van import VAN
from ..support import plots
from ..support.console import pictures_bar, say
from ..support.files import write_atomically
from ..support.text import in_shell, printable
from ..weights.pretrained import open_pretrained
from .batches import EvaluationBatches, refusal, unreadable
from .build import (
    build_model,
    class_labels,
    make_batches,
    make_dataset,
    make_loss,
    make_optimizer,
    make_schedule,
    preprocessing_of,
    why_fresh,
)
from .callbacks import Averaging, KeepSnapshots, Position, Records, TrainingError, Validation, Watch
from .devices import environment
from .folder import Ending, check_batch, check_unchanged, ending, fingerprints
from .optim import LearningRate, ModelAverage
from .progress import FitProgress
from .recipe import Recipe
from .snapshots import Snapshot, Snapshots
from .workers import Workers


class Run:
    """The model, the data and the callbacks of one run, put together."""

    def __init__(
        self,
        folder: Path,
        data: str,
        recipe: Recipe,
        found: Pictures,
        validation: Pictures,
        workers: Workers,
        console: Console,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        stop: Callable[[], bool] = lambda: False,
    ):
        self.folder, self.data, self.recipe, self.console = folder, data, recipe, console
        self.found, self.validation, self.workers = found, validation, workers
        self._data = fingerprints(found, validation)
        keras.utils.set_random_seed(recipe.seed)
        if recipe.deterministic and keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            tf.config.experimental.enable_op_determinism()
        check_batch(recipe, workers.replicas)
        source = workers.together(lambda: open_pretrained(recipe.pretrained, recipe.model))
        self.start = "random weights"
        if source is not None:
            why = why_fresh(source, class_labels(found.classes))
            head = f"a fresh head ({why})" if why else "their head as well"
            self.start = f"{printable(recipe.pretrained or '')}, {head}"
        normalised = recipe.mean and recipe.std
        self.remarks = source.card.remarks(found.classes, normalised) if source else ""
        with workers.scope():
            self.model = build_model(recipe, found.classes, source)
            self.metrics = [keras.metrics.CategoricalAccuracy(name="accuracy")]
            self.model.compile(
                make_optimizer(recipe, self.model),
                make_loss(),
                metrics=self.metrics,
                steps_per_execution=recipe.steps_per_execution,
            )
            # Inside the first step Keras would take twice as long for it.
            self.model.optimizer.build(self.model.trainable_variables)
            decay = recipe.average_decay
            self.average = None if decay is None else ModelAverage(self.model, decay)
        # As one deploys it: probabilities out, float32, without the optimizer. Now, since making
        # layers draws from Python's random numbers, whose state a snapshot keeps.
        config = self.model.get_config() | {"classifier_activation": "softmax", "dtype": "float32"}
        with workers.local():
            self._deployed = VAN.from_config(config)
        # `freeze` is of this run only. One by one: on TensorFlow what is True already is not set.
        for layer in self._deployed._flatten_layers():
            layer.trainable = True
        workers.prepare(self.model)
        self.batches = make_batches(recipe, self.model, found, (workers.rank, workers.count))
        steps = self.batches.steps_per_epoch
        if steps % recipe.steps_per_execution:
            raise ValueError(
                f"`steps_per_execution` must divide the {steps} batches of an epoch. "
                f"Received: {recipe.steps_per_execution}"
            )
        self._make_callbacks(steps, callbacks, stop)
        self.snapshot: Snapshot | None = None

    def _make_callbacks(
        self,
        steps: int,
        others: Sequence[keras.callbacks.Callback],
        stop: Callable[[], bool],
    ) -> None:
        recipe, images = self.recipe, self.recipe.batch_size // self.recipe.accumulation_steps
        self.position = Position(steps)
        self.watch = Watch(self.position, len(self.found.classes))
        self.records = Records(
            self.folder,
            self.position,
            images,
            "val" if self.average is None else "average",
            self.save_best,
            recipe.early_stopping,
            self.workers.leads,
        )
        self.keep = KeepSnapshots(
            Snapshots(self.folder / "snapshots"),
            self.position,
            self._variables,
            [self.position, self.watch, self.records],
            self.metrics,
            recipe.total_epochs,
            recipe.snapshot_seconds,
            {"data": self._data, "environment": environment(self.workers.replicas)},
            self.refresh,
            self.workers,
            stop,
        )
        looked_at = EvaluationBatches(
            self.validation,
            preprocessing_of(self.model),
            min(images, 64),
            workers=recipe.workers or None,
            max_corrupt=recipe.max_corrupt,
        )
        average = self.average
        self.callbacks: list[keras.callbacks.Callback] = [
            self.position,
            LearningRate(make_schedule(recipe)),
            *(
                []
                if average is None
                else [Averaging(average, self.position, recipe.accumulation_steps)]
            ),
            self.watch,
            Validation(looked_at, average, self.workers),
            self.records,
            *others,
            self.keep,
        ]

    def _variables(self) -> dict[str, Any]:
        parts = {"model": self.model.variables, "optimizer": self.model.optimizer.variables}
        if self.average is not None:
            parts["average"] = self.average.variables
        # By number: a path need not be unique, and Keras counts some through the whole process.
        return {
            f"{part}/{i}": variable
            for part, variables in parts.items()
            for i, variable in enumerate(variables)
        }

    # --- Going on ---

    def resume(self, force: bool) -> None:
        """Takes up the newest snapshot; the run starts anew where there is none yet.

        Raises:
            ValueError: The run would go on otherwise than it was begun, or workers do not see the
                same snapshot.
        """
        snapshot = self.workers.together(self.keep.store.load)
        self.workers.check_equal(
            {"newest snapshot": "none" if snapshot is None else f"step {snapshot.step:,}"}
        )
        if not force:  # again: only now it is known which snapshot is intact
            state = None if snapshot is None else snapshot.state
            parts = (self.found, self.validation)
            self.workers.together(
                lambda: check_unchanged(self.folder, self.recipe, self.data, parts, state)
            )
        if snapshot is None:
            self.console.print("No snapshot yet: the run starts anew.")
            return
        for note in snapshot.notes:
            say(self.console, note, "yellow")
        now = environment(self.workers.replicas)
        made_with = {k: v for k, v in snapshot.state["environment"].items() if now.get(k) != v}
        if made_with:
            say(
                self.console,
                "Not what the snapshot was made with, so it may not go on bit for bit: "
                + ", ".join(f"{k} {old} -> {now.get(k)}" for k, old in made_with.items()),
                "yellow",
            )
        self.keep.restore(snapshot)
        self.snapshot = snapshot

    def ending(self) -> Ending | None:
        """How the run has ended, and said so; None where there is still something to train.

        Raises:
            ValueError: As for `train.folder.ending`.
        """
        if self.snapshot is None:
            return None
        states = self.position.get_state(), self.records.get_state()
        found = self.workers.together(lambda: ending(self.folder, self.recipe, *states))
        there = self.workers.share((self.folder / "best.keras").exists())
        if found is not None:
            # As the first sees the folder: what others see may be older.
            names = self.workers.texts(",".join(found.missing))[0]
            found = replace(found, missing=tuple(names.split(",")) if names else ())
            say(self.console, str(found))
        elif self.records.best and not there:
            self.console.print("[yellow]best.keras is gone: the best of what follows.[/yellow]")
            self.records.best = {}
        return found

    def nothing_to_lose(self) -> bool:
        """Whether there is neither a snapshot nor an epoch that would be lost."""
        return not self.records.rows and not self.keep.store.steps()

    def write_config(self) -> None:
        import yaml

        record = {
            "data": self.data,
            "recipe": self.recipe.to_dict(),
            "made_with": environment(self.workers.replicas),
        }
        text = yaml.safe_dump(record, sort_keys=False, allow_unicode=True)
        write_atomically(
            self.folder / "config.yaml", lambda path: path.write_text(text, encoding="utf-8")
        )

    # --- Training ---

    def fit(self) -> None:
        """`model.fit`; after a stop inside an epoch first for the rest of that one."""
        epochs, steps = self.recipe.total_epochs, self.batches.steps_per_epoch
        progress = FitProgress(
            self.console,
            lambda: self.records.images_per_second,
            epochs,
            steps,
            self.position.step,
            epochs,
        )
        with _stopped_by_signals(self.keep, self.console), progress:
            epoch, within = divmod(self.position.step, steps)
            if within:
                self._fit_epochs(epoch, epoch + 1, steps - within, progress)
                epoch += 1
            if epoch < epochs and not self.records.finished:
                self._fit_epochs(epoch, epochs, steps, progress)

    def _fit_epochs(self, first: int, last: int, steps: int, progress: FitProgress) -> None:
        failures: list[Exception] = []
        try:
            self.model.fit(
                self.workers.dataset(
                    make_dataset(self.batches, self.model, self.position.step, failures)
                ),
                steps_per_epoch=steps,
                initial_epoch=first,
                epochs=last,
                shuffle=False,  # the batches are shuffled already
                verbose=0,
                callbacks=[*self.callbacks, progress],
            )
        except Exception as error:
            if failures:
                raise failures[0] from None
            if isinstance(error, TrainingError):
                raise TrainingError(f"{error}. {self._what_is_kept()}") from None
            raise

    def _what_is_kept(self) -> str:
        steps = self.keep.store.steps()
        if not steps:
            return "There is no snapshot yet; a lower --learning-rate may help"
        return (
            f"The snapshot of step {max(steps):,} is kept; to go on from it, with another learning "
            f"rate: van train --resume {in_shell(self.folder)} --learning-rate "
            f"{self.recipe.learning_rate / 3:.2g} --force"
        )

    # --- What is left behind ---

    def save_best(self) -> None:
        swapped = contextlib.nullcontext() if self.average is None else self.average.swapped()
        with swapped:
            self._save(self.folder / "best.keras")

    def refresh(self) -> None:
        self._save(self.folder / "last.keras")

        def draw(path: Path) -> None:
            plots.training_curves(self.records.history, path, "validation")

        curves = self.folder / "training_curves.png"
        self.workers.first_alone(lambda: write_atomically(curves, draw))

    def _save(self, path: Path) -> None:
        self._deployed.set_weights(self.model.get_weights())  # all: some need each other for it
        self.workers.first_alone(lambda: write_atomically(path, self._deployed.save))


@contextlib.contextmanager
def _stopped_by_signals(keep: KeepSnapshots, console: Console) -> Iterator[None]:
    """Ctrl-C or SIGTERM stops the run after the present step, which is kept; a second, at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return

    def asked(number, frame) -> None:
        if keep.stop_asked:
            raise KeyboardInterrupt
        keep.stop_asked = True
        console.print("Stopping after this step; once more: at once, from the last snapshot.")

    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def all_unreadable(run: Run, error: ImageError) -> ImageError:
    """The error about the first unreadable pictures, with all the others of the data."""
    parts = (run.found, run.validation)
    with pictures_bar(run.console) as bar:
        total = sum(map(len, parts))
        task = bar.add_task("Looking for others", total=total, rate="")
        there, looked_at = unreadable(
            parts, lambda: bar.advance(task), workers=run.recipe.workers or None
        )
    return refusal(there, run.recipe.max_corrupt, total, looked_at) if there else error
