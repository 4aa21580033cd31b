"""`van train`: a model from a recipe, a folder of pictures and `model.fit`; nothing is lost.

The same in Python, in Keras's own words:

    recipe = RECIPES["finetune"].with_(model="van_b1", epochs=20)
    pictures, validation = open_data("flowers")
    model = build_model(recipe, pictures.classes)
    model.compile(make_optimizer(recipe, model), make_loss(), metrics=["accuracy"])
    batches = make_batches(recipe, model, pictures)
    model.fit(
        make_dataset(batches, model),
        steps_per_epoch=batches.steps_per_epoch,
        epochs=recipe.total_epochs,
        shuffle=False,  # they are
        callbacks=[LearningRate(make_schedule(recipe))],
    )
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import threading
import warnings
from collections.abc import Collection, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import __version__
from ..datasets.labelled import Dataset, Example, some
from ..datasets.training import Pictures
from ..evaluate import evaluate
from ..images.decode import ImageError, open_image
from ..inference.classifier import Classifier
from ..model.van import VAN
from ..spec.labels import labels_of
from ..spec.preprocessing import Preprocessing
from ..support import plots as pictures
from ..support.console import pictures_bar, say, say_files
from ..support.files import write_atomically
from ..support.text import in_shell, printable, shown
from ..weights.pretrained import Pretrained, open_pretrained
from .augment import BatchTransform, TrainTransform
from .batches import EvaluationBatches, TrainingBatches, refusal, unreadable
from .callbacks import Averaging, Keep, Position, Records, TrainingError, Validation, Watch
from .folder import Ending, check_start, check_unchanged, ending, fingerprints, note_reported
from .optim import AdamW, CosineSchedule, LearningRate, ModelAverage, layer_scales
from .progress import FitProgress
from .recipe import Recipe, check_input_size
from .snapshots import RunLock, Snapshot, Snapshots

_SAMPLES = 32


# --- The parts of a recipe ---


def build_model(recipe: Recipe, classes: Sequence[str], source: Pretrained | None = None) -> VAN:
    """The model to train: logits out, labels and preprocessing attached.

    Args:
        recipe: Names sizes, weights to start from and what is frozen.
        classes: Names of the classes, in the order of the outputs. Where they are the classes of
            the pretrained weights, in the same order, the head is kept; else it starts anew.
        source: The weights to start from, where they have been opened already.

    Raises:
        ValueError: The recipe does not fit the weights or the classes.
        OSError: The pretrained weights cannot be had.
    """
    labels = class_labels(classes)
    source = source or open_pretrained(recipe.pretrained, recipe.model)
    of_weights = None if source is None else source.weights.architecture.configuration
    with warnings.catch_warnings():
        if recipe.pretrained:  # a fresh head was asked for; what is not taken, the run says
            warnings.filterwarnings(
                "ignore", message=".*(head|cannot be taken)", category=UserWarning
            )
        model = VAN(
            recipe.model,
            in_chans=None if recipe.mean is None else len(recipe.mean),
            num_classes=len(classes),
            embed_dims=recipe.embed_dims,
            mlp_ratios=recipe.mlp_ratios,
            depths=recipe.depths,
            drop_rate=recipe.drop_rate,
            drop_path_rate=recipe.drop_path(recipe.model or of_weights),
            classifier_activation=None,
            data_format="channels_last",
            pretrained=source or False,
            dtype=recipe.precision,
        )
    if source is None or why_fresh(source, labels):
        head = model.get_layer("head")
        kernel = keras.random.normal(head.kernel.shape, stddev=0.02, seed=recipe.seed)
        head.kernel.assign(recipe.head_scale * kernel)
        head.bias.assign(keras.ops.zeros(head.bias.shape))
    model.labels = labels
    known = model.preprocessing or Preprocessing().with_channels(model.in_chans)
    model.preprocessing = recipe.preprocessing(known)
    check_input_size(model.preprocessing.input_size, model.num_stages)
    if recipe.freeze > model.num_stages:
        raise ValueError(
            f"`freeze` must be a number of stages, at most {model.num_stages}. "
            f"Received: freeze={recipe.freeze}"
        )
    for stage in range(1, recipe.freeze + 1):
        for layer in model.layers:
            if layer.name.startswith((f"patch_embed{stage}", f"block{stage}_", f"norm{stage}")):
                layer.trainable = False
    if recipe.remat:
        model.remat = True
    return model


def why_fresh(source: Pretrained, labels: Sequence[str]) -> str:
    """Why the head of the weights is not that of a model with these labels; "" where it is."""
    count = source.weights.architecture.num_classes
    if count != len(labels):
        return "theirs has none" if count is None else f"theirs is of {count:,} classes"
    if source.labels is None:
        return "theirs names no classes"
    theirs = [label.text for label in labels_of(source.labels, count)]
    if theirs == list(labels):
        return ""
    same = sorted(theirs) == sorted(labels)
    return "theirs has the classes in another order" if same else "theirs is of other classes"


def class_labels(classes: Sequence[str]) -> tuple[str, ...]:
    """What the classes are called: ImageNet's words where all are its WordNet ids."""
    by_wnid = {label.wnid: label.text for label in labels_of("imagenet1k", 1000)}
    return tuple(by_wnid[c] for c in classes) if set(classes) <= set(by_wnid) else tuple(classes)


def make_optimizer(recipe: Recipe, model: VAN) -> AdamW:
    """The authors' AdamW, with layer-wise learning rates, clipping and accumulation if asked."""
    several = recipe.accumulation_steps > 1
    scales = layer_scales(model, recipe.layer_decay) if recipe.layer_decay < 1 else None
    return AdamW(
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        learning_rate_scales=scales,
        global_clipnorm=recipe.clip_norm,
        gradient_accumulation_steps=recipe.accumulation_steps if several else None,
    )


def make_schedule(recipe: Recipe) -> CosineSchedule:
    """Learning rate of each epoch."""
    first = recipe.warmup_learning_rate
    return CosineSchedule(
        learning_rate=recipe.learning_rate,
        epochs=recipe.epochs,
        warmup_epochs=recipe.warmup_epochs,
        cooldown_epochs=recipe.cooldown_epochs,
        min_learning_rate=recipe.min_learning_rate,
        warmup_learning_rate=recipe.learning_rate / (recipe.warmup_epochs + 1)
        if first is None
        else first,
    )


def make_loss() -> keras.losses.Loss:
    """Cross-entropy of soft targets, which hold mixing and smoothing already."""
    return keras.losses.CategoricalCrossentropy(from_logits=True)


def class_weights(recipe: Recipe, found: Pictures) -> tuple[float, ...] | None:
    """How much a picture of each class counts in the loss; None: all the same."""
    if recipe.class_weights is None:
        return None
    counts = np.bincount(found.labels, minlength=len(found.classes))
    return tuple((len(found) / (len(counts) * counts)).tolist())


def make_transforms(
    recipe: Recipe, preprocessing: Preprocessing, weights: tuple[float, ...] | None = None
) -> tuple[TrainTransform, BatchTransform]:
    """What a training picture, and then a batch of them, goes through.

    Args:
        recipe: Names augmentation and mixing.
        preprocessing: The model's.
        weights: Of `class_weights`.
    """
    return (
        TrainTransform(
            input_size=preprocessing.input_size,
            mean=preprocessing.mean,
            crop_scale=(recipe.crop_scale[0], recipe.crop_scale[1]),
            crop_ratio=(recipe.crop_ratio[0], recipe.crop_ratio[1]),
            interpolations=recipe.crop_interpolations,
            horizontal_flip=recipe.horizontal_flip,
            vertical_flip=recipe.vertical_flip,
            rand_augment=recipe.rand_augment,
        ),
        BatchTransform(
            mixup=recipe.mixup,
            cutmix=recipe.cutmix,
            mix_probability=recipe.mix_probability,
            mix_switch=recipe.mix_switch,
            label_smoothing=recipe.label_smoothing,
            erasing=recipe.erasing,
            mean=preprocessing.mean,
            std=preprocessing.std,
            class_weights=weights,
        ),
    )


def make_batches(
    recipe: Recipe, model: VAN, found: Pictures, shard: tuple[int, int] = (0, 1)
) -> TrainingBatches:
    """Training batches of `batch_size / accumulation_steps`, a function of seed and number.

    Args:
        recipe: Names augmentation, mixing, sizes and seed.
        model: Whose preprocessing normalises the pictures.
        found: The training pictures.
        shard: (which, of how many) workers this one is.
    """
    return TrainingBatches(
        found,
        *make_transforms(recipe, _preprocessing(model), class_weights(recipe, found)),
        recipe.batch_size // recipe.accumulation_steps,
        parts=recipe.accumulation_steps,
        seed=recipe.seed,
        balanced=recipe.sampling is not None,
        workers=recipe.workers or None,
        processes=recipe.processes,
        shard=shard,
        max_corrupt=recipe.max_corrupt,
    )


def make_dataset(
    batches: TrainingBatches,
    model: VAN,
    start: int = 0,
    failures: list[Exception] | None = None,
) -> Any:
    """The batches from number `start` on as a `tf.data.Dataset`, on every backend.

    For `fit`, which takes `class_weight` with it, and may go through it more than once: where it
    looks at a batch first, as for several devices and on JAX, a generator would lose that one.

    Args:
        batches: Of `make_batches`.
        model: The same as there.
        start: Number of the first batch.
        failures: Gets what goes wrong with the batches, which TensorFlow wraps in pages of its own.
    """
    import tensorflow as tf

    def made() -> Iterator[tuple[np.ndarray, ...]]:
        try:
            yield from batches.iterate(start)
        except Exception as error:
            if failures is not None:
                failures.append(error)
            raise

    side, rows = _preprocessing(model).input_size, batches.rows
    shapes = [(rows, side, side, model.in_chans), (rows, len(batches.pictures.classes)), (rows,)]
    parts = 2 if getattr(batches.mix, "class_weights", None) is None else 3
    signature = tuple(tf.TensorSpec(shape, tf.float32) for shape in shapes[:parts])
    return tf.data.Dataset.from_generator(made, output_signature=signature).prefetch(1)


def _preprocessing(model: VAN) -> Preprocessing:
    if model.preprocessing is None:
        raise ValueError("`model` must have a preprocessing, as `build_model` gives it one")
    return model.preprocessing


# --- A run ---


def train(
    data: str | os.PathLike,
    output: str | os.PathLike,
    recipe: Recipe,
    *,
    resume: bool = False,
    force: bool = False,
    strategy: Any = None,
    shard: tuple[int, int] = (0, 1),
    found: tuple[Pictures, Pictures] | None = None,
    console: Console | None = None,
    report_to: Console | None = None,
) -> dict[str, list[float]]:
    """Trains; leaves a folder with the models, the figures and the pictures of the run.

    Sets the seeds of Python, NumPy and Keras and, if the recipe says so, TensorFlow's
    deterministic kernels, for the whole process.

    Args:
        data: "digits" or a folder, as in `datasets.training.open_data`.
        output: Folder to make; with `resume` the folder of the run.
        recipe: What to do.
        resume: Go on from the newest snapshot, bit for bit as if the run had not stopped. Of a
            finished run nothing is changed; it says how to train longer.
        force: Go on although the recipe or the data are not those of the run.
        strategy: Of `tf.distribute`, instead of the recipe's `devices`.
        shard: (which, of how many) workers this one is: its part of each batch.
        found: The pictures of `data`, where `train.folder.check_start` has been asked already.
        console: Where to show how it goes; by default nowhere.
        report_to: Where the report at the end goes; by default there as well.

    Returns:
        A list for each figure, one entry an epoch: `loss`, `val_accuracy`, ...

    Raises:
        ValueError: Recipe, data and model do not fit together; the folder is in the way; or the
            run fails with a loss that is not finite (`train.callbacks.TrainingError`).
        OSError: Data cannot be read, or the folder not written.
        ModuleNotFoundError: The extra `train` is missing.
        callbacks.Stopped: It was asked to stop (Ctrl-C, SIGTERM), and has been kept.
    """
    _check_arguments(data, output, recipe, strategy, shard)
    console, folder = console or Console(quiet=True), Path(output)
    if found is None:
        data, found = check_start(data, folder, recipe, resume, force)
    _check_backend(recipe)
    data = data if data == "digits" else os.path.abspath(data)
    run = _Run(folder, data, recipe, *found, strategy, shard, console)
    folder.mkdir(parents=True, exist_ok=True)
    with RunLock(folder):
        before = set(os.listdir(folder))
        try:
            if resume:
                run.go_on(force)
            end = run.ending()
            if end is None:
                run.write_config()
                run.fit()
            elif end.missing:
                run.make_again(end.missing)
            if end is None or end.missing:
                run.report(report_to or console)
        except BaseException as error:
            if not resume and run.is_nothing():
                _remove_all_but(before, folder)
            if isinstance(error, ImageError):
                raise run.all_unreadable(error) from None
            raise
    return run.records.history


def _check_arguments(data: Any, output: Any, recipe: Any, strategy: Any, shard: Any) -> None:
    for name, path in (("data", data), ("output", output)):
        if not isinstance(path, (str, os.PathLike)):
            raise ValueError(f"`{name}` must be a path. Received: {shown(path)}")
    if not isinstance(recipe, Recipe):
        raise ValueError(
            "`recipe` must be a `Recipe`: one of `RECIPES`, changed by its `with_(epochs=10)`, or "
            f"`Recipe.from_dict`. Received: {shown(recipe)}"
        )
    if strategy is not None and not hasattr(strategy, "scope"):
        raise ValueError(f"`strategy` must be one of `tf.distribute`. Received: {shown(strategy)}")
    if not isinstance(shard, Sequence) or isinstance(shard, str) or len(shard) != 2:
        raise ValueError(
            "`shard` must be (which worker this is, from 0, how many there are). "
            f"Received: {shown(shard)}"
        )


def _remove_all_but(names: Collection[str], folder: Path) -> None:
    """What a run that failed at its start has made, so that it can be started again.

    The lock stays, since removing it would let two in; it is hidden and in nobody's way.
    """
    for path in folder.iterdir():
        if path.name not in names:
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


class _Run:
    """Everything of one run, put together."""

    def __init__(
        self,
        folder: Path,
        data: str,
        recipe: Recipe,
        found: Pictures,
        validation: Pictures,
        strategy: Any,
        shard: tuple[int, int],
        console: Console,
    ):
        self.folder, self.data, self.recipe, self.console = folder, data, recipe, console
        self.found, self.validation, self.shard = found, validation, shard
        self._data = fingerprints(found, validation)
        keras.utils.set_random_seed(recipe.seed)
        if recipe.deterministic and keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            tf.config.experimental.enable_op_determinism()
        self.strategy = strategy or _strategy(recipe.devices)
        self.replicas = getattr(self.strategy, "num_replicas_in_sync", 1)
        _check_batch(recipe, self.replicas * shard[1])
        source = open_pretrained(recipe.pretrained, recipe.model)
        self.start = "random weights"
        if source is not None:
            why = why_fresh(source, class_labels(found.classes))
            head = f"a fresh head ({why})" if why else "their head as well"
            self.start = f"{printable(recipe.pretrained or '')}, {head}"
        normalised = recipe.mean and recipe.std
        self.remarks = source.remarks(found.classes, normalised) if source else ""
        with self._scope():
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
        self._deployed = VAN.from_config(config)
        # `freeze` is of this run only. One by one: on TensorFlow what is True already is not set.
        for layer in self._deployed._flatten_layers():
            layer.trainable = True
        self.batches = make_batches(recipe, self.model, found, shard)
        steps = self.batches.steps_per_epoch
        if steps % recipe.steps_per_execution:
            raise ValueError(
                f"`steps_per_execution` must divide the {steps} batches of an epoch. "
                f"Received: {recipe.steps_per_execution}"
            )
        self._make_callbacks(steps)
        self.snapshot: Snapshot | None = None

    def _scope(self):
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def _make_callbacks(self, steps: int) -> None:
        recipe, images = self.recipe, self.recipe.batch_size // self.recipe.accumulation_steps
        self.position = Position(steps)
        self.watch = Watch(self.position, len(self.found.classes))
        self.records = Records(
            self.folder,
            self.position,
            images,
            "val" if self.average is None else "average",
            self._save_best,
            recipe.early_stopping,
        )
        self.keep = Keep(
            Snapshots(self.folder / "snapshots"),
            self.position,
            self._variables,
            [self.position, self.watch, self.records],
            self.metrics,
            recipe.total_epochs,
            recipe.snapshot_seconds,
            {"data": self._data, "environment": _environment(self.replicas)},
            self._refresh,
        )
        looked_at = EvaluationBatches(
            self.validation,
            _preprocessing(self.model),
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
            Validation(looked_at, average),
            self.records,
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

    def go_on(self, force: bool) -> None:
        """Takes up the newest snapshot; the run starts anew where there is none yet."""
        snapshot = self.keep.store.load()
        if not force:  # again: only now it is known which snapshot is intact
            state = None if snapshot is None else snapshot.state
            parts = (self.found, self.validation)
            check_unchanged(self.folder, self.recipe, self.data, parts, state)
        if snapshot is None:
            self.console.print("No snapshot yet: the run starts anew.")
            return
        for note in snapshot.notes:
            say(self.console, note, "yellow")
        now = _environment(self.replicas)
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
        found = ending(self.folder, self.recipe, *states)
        if found is not None:
            say(self.console, str(found))
        elif self.records.best and not (self.folder / "best.keras").exists():
            self.console.print("[yellow]best.keras is gone: the best of what follows.[/yellow]")
            self.records.best = {}
        return found

    def make_again(self, missing: Collection[str]) -> None:
        """What a finished run has lost, or was killed before; the report is made after it."""
        if "best.keras" in missing:  # the weights that are there are the best
            self._save_best()
        if "augmented.png" in missing:
            self._draw_samples()
        self.records.write_csv()
        self._refresh()

    def is_nothing(self) -> bool:
        """Whether there is neither a snapshot nor an epoch that would be lost."""
        return not self.records.rows and not self.keep.store.steps()

    def all_unreadable(self, error: ImageError) -> ImageError:
        """The error about the first unreadable pictures, with all the others of the data."""
        parts = (self.found, self.validation)
        with pictures_bar(self.console) as bar:
            total = sum(map(len, parts))
            task = bar.add_task("Looking for others", total=total, rate="")
            there, looked_at = unreadable(
                parts, lambda: bar.advance(task), workers=self.recipe.workers or None
            )
        if not there:
            return error
        return refusal(there, self.recipe.max_corrupt, total, looked_at)

    def write_config(self) -> None:
        import yaml

        record = {
            "data": self.data,
            "recipe": self.recipe.to_dict(),
            "made_with": _environment(self.replicas),
        }
        text = yaml.safe_dump(record, sort_keys=False, allow_unicode=True)
        write_atomically(
            self.folder / "config.yaml", lambda path: path.write_text(text, encoding="utf-8")
        )

    # --- Training ---

    def fit(self) -> None:
        """`model.fit`; after a stop inside an epoch first for the rest of that one."""
        self._introduce()
        if self.snapshot is not None:
            self.records.write_csv()
        if not (self.folder / "augmented.png").exists():
            self._draw_samples()
        epochs, steps = self.recipe.total_epochs, self.batches.steps_per_epoch
        progress = FitProgress(
            self.console,
            lambda: self.records.images_per_second,
            epochs,
            steps,
            self.position.step,
        )
        with _asking(self.keep, self.console), progress:
            epoch, within = divmod(self.position.step, steps)
            if within:
                self._fit_some(epoch, epoch + 1, steps - within, progress)
                epoch += 1
            if epoch < epochs and not self.records.finished:
                self._fit_some(epoch, epochs, steps, progress)

    def _fit_some(self, first: int, last: int, steps: int, progress: FitProgress) -> None:
        failures: list[Exception] = []
        try:
            self.model.fit(
                make_dataset(self.batches, self.model, self.position.step, failures),
                steps_per_epoch=steps,
                initial_epoch=first,
                epochs=last,
                shuffle=False,  # it is
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

    def _save_best(self) -> None:
        swapped = contextlib.nullcontext() if self.average is None else self.average.swapped()
        with swapped:
            self._save(self.folder / "best.keras")

    def _refresh(self) -> None:
        self._save(self.folder / "last.keras")
        write_atomically(
            self.folder / "training_curves.png",
            lambda path: pictures.training_curves(self.records.history, path, "validation"),
        )

    def _save(self, path: Path) -> None:
        self._deployed.set_weights(self.model.get_weights())
        write_atomically(path, self._deployed.save)

    def _draw_samples(self) -> None:
        # Of several batches: a batch is mixed in one way.
        few = min(_SAMPLES // 4, self.recipe.batch_size // self.recipe.accumulation_steps)
        recipe = self.recipe.with_(batch_size=few, accumulation_steps=1)
        batches = make_batches(recipe, self.model, self.found).iterate()
        drawn = [next(batches)[:2] for _ in range(4)]
        batches.close()
        images, targets = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
        seen = make_transforms(recipe, _preprocessing(self.model))[1].to_picture(images)
        smoothing = recipe.label_smoothing
        names = pictures.shortened([printable(name) for name in self.found.classes], 20)
        captions = [_caption(row, smoothing, names) for row in targets]
        write_atomically(
            self.folder / "augmented.png", lambda path: pictures.sample_sheet(seen, captions, path)
        )

    def _introduce(self) -> None:
        recipe, model = self.recipe, self.model
        trained = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
        per_update = f"{recipe.batch_size} pictures"
        if recipe.accumulation_steps > 1:
            per_update += f" in {recipe.accumulation_steps} parts"
        rows = [
            ("Model", f"{model.name}, {trained:,} of {model.count_params():,} weights learn"),
            ("Starts from", self.start),
            (
                "Pictures",
                f"{len(self.found):,} + {len(self.validation):,} to validate, read in "
                f"{'grey' if model.in_chans == 1 else 'colour'}",
            ),
            ("Classes", f"{len(self.found.classes):,}: {some(self.found.classes)}"),
            ("Of each class", self._balance()),
            ("Epochs", self._epochs()),
            ("An update", f"{per_update}, learning rate up to {recipe.learning_rate:g}"),
            ("Evaluation", str(model.preprocessing)),
            ("Devices", f"{self.replicas}, {keras.backend.backend()}, {recipe.precision}"),
            ("Folder", printable(self.folder)),
        ]
        table = Table(show_header=False, title="Training")
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(name, Text(value))
        self.console.print(table)
        if self.remarks:
            say(self.console, f"{printable(recipe.pretrained or '')}: {self.remarks}")
        if self.found.left_out:
            say(self.console, self.found.left_out)
        if model.in_chans == 1 and _in_colour(self.found):
            why = f"it starts from {recipe.pretrained}, which has one channel"
            if recipe.mean is not None:
                why = "`mean` has one number; in colour: --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5"
            say(
                self.console,
                f"The pictures are in colour, and the model is shown them in grey, as {why}",
                "yellow",
            )
        if self.snapshot is not None:
            self.console.print(
                f"Going on after step {self.position.step:,} (epoch "
                f"{self.position.step // self.batches.steps_per_epoch + 1}).",
                highlight=False,
            )

    def _epochs(self) -> str:
        recipe = self.recipe
        parts = {"to warm up": recipe.warmup_epochs, "to cool down": recipe.cooldown_epochs}
        within = "".join(f", {count} {what}" for what, count in parts.items() if count)
        return f"{recipe.total_epochs} of {self.batches.steps_per_epoch:,} batches{within}"

    def _balance(self) -> str:
        recipe, counts = self.recipe, np.bincount(self.found.labels)
        text = f"{counts.min():,} to {counts.max():,} pictures"
        if recipe.sampling:
            return f"{text}, shown equally often"
        if weights := class_weights(recipe, self.found):
            return f"{text}, weighing {max(weights):.3g} to {min(weights):.3g}"
        if counts.max() > 2 * counts.min():
            return f"{text}; to even that out: --sampling balanced"
        return text

    def report(self, console: Console) -> None:
        """The best model on the validation pictures, by what was saved, as a user would."""
        classifier = Classifier(self.folder / "best.keras", engine="keras")
        names = (self.validation.called(i) for i in range(len(self.validation)))
        examples = [
            Example(source, name, (int(label),))
            for source, name, label in zip(
                self.validation.sources, names, self.validation.labels, strict=True
            )
        ]
        dataset = Dataset(self.validation.name, examples, len(examples))
        with pictures_bar(self.console) as bar:
            task = bar.add_task("best.keras", total=len(examples), rate="")
            found = evaluate.measure(classifier, dataset, lambda: bar.advance(task))
        evaluate.write(found, self.folder / "evaluation", overwrite=True)
        note_reported(self.folder, self.position.step)
        evaluate.report(found, console)
        if corrupt := self.batches.corrupt(self.position.step):
            say(
                console,
                f"{len(corrupt):,} training pictures could not be read, and were replaced by "
                f"others: {some(sorted(corrupt))}",
                "yellow",
            )
        say_files(
            console,
            printable(self.folder),
            {
                "best.keras": f"the best model (epoch {self.records.best['epoch']:.0f})",
                "last.keras": "the weights after the last update",
                "evaluation": "best.keras on the validation pictures, class by class",
                "training_curves.png": "loss and accuracy over the epochs",
                "augmented.png": "what the model was shown",
                "metrics.csv": "each epoch; tensorboard/ holds the same",
                "config.yaml": "the recipe, to be used again with --recipe",
            },
        )
        best = in_shell(self.folder / "best.keras")
        say(console, f"To use it: van predict PICTURES --weights {best}")


def _in_colour(found: Pictures, looked_at: int = 8) -> bool:
    """Whether one of a few pictures, spread over all, is."""
    for index in np.linspace(0, len(found) - 1, looked_at).astype(int):
        with contextlib.suppress(ImageError, OSError):
            pixels = np.asarray(open_image(found.sources[index]))
            if pixels.ndim == 3 and np.ptp(pixels, axis=2).max() > 8:
                return True
    return False


# --- Devices ---


def _check_backend(recipe: Recipe) -> None:
    if keras.backend.backend() == "tensorflow":
        if keras.distribution.distribution() is not None:
            raise ValueError(
                "keras.distribution has no effect on the TensorFlow backend: this would train on "
                "one device. Take `devices` (tf.distribute), or KERAS_BACKEND=jax"
            )
    elif recipe.devices != 1:
        raise ValueError(
            "`devices` needs the TensorFlow backend (tf.distribute.MirroredStrategy). "
            f"Received: devices={recipe.devices} on {keras.backend.backend()}"
        )


def _strategy(devices: int) -> Any:
    """None for one device."""
    if devices == 1:
        return None
    import tensorflow as tf

    there = len(_gpus())
    if devices > there:
        raise ValueError(f"`devices` must be at most {there}, the GPUs here. Received: {devices}")
    wanted = devices or there
    if wanted < 2:
        return None
    return tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(wanted)])


def _check_batch(recipe: Recipe, parts: int) -> None:
    if recipe.batch_size % (parts * recipe.accumulation_steps):
        raise ValueError(
            f"`batch_size` must be a multiple of the {parts} devices. "
            f"Received: batch_size={recipe.batch_size}"
        )
    if parts > 1 and max(recipe.accumulation_steps, recipe.steps_per_execution) > 1:
        raise ValueError("`accumulation_steps` and `steps_per_execution` are for one device")
    if parts > 1 and recipe.clip_norm is not None:
        raise ValueError("`clip_norm` is for one device: Keras clips before gradients are added")


def _environment(replicas: int) -> dict[str, str]:
    """What decides whether a run can go on bit for bit."""
    import grain
    import PIL

    backend = keras.backend.backend()
    gpus = [] if backend != "tensorflow" else _gpus()
    return {
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {len(gpus)} GPUs",
        "devices": str(replicas),
        "backend": f"{backend} {import_module(backend).__version__}",
        "keras": keras.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "grain": getattr(grain, "__version__", ""),
        "van": __version__,
    }


def _gpus() -> list:
    import tensorflow as tf

    return tf.config.list_physical_devices("GPU")


@contextlib.contextmanager
def _asking(keep: Keep, console: Console) -> Iterator[None]:
    """Ctrl-C and SIGTERM: stop after this step, and keep it; the second time at once."""
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


def _caption(target: np.ndarray, smoothing: float, classes: Sequence[str]) -> str:
    """What a target holds, without the smoothing: one class, or two and their shares."""
    shares = (target - smoothing / len(classes)) / (1 - smoothing)
    first, second = np.argsort(-shares, kind="stable")[:2]
    if shares[second] < 0.005:
        return classes[first]
    parts = [f"{classes[i]} {shares[i]:.0%}" for i in (first, second)]
    return (" + " if sum(map(len, parts)) < 24 else "\n+ ").join(parts)
