"""What a model is trained on: labelled pictures, and batches of them that can be made again.

Every batch is a function of the pictures, the seed and the batch's number, whatever made it: a run
can go on from any step. Each epoch has its own order; a picture's augmentation depends on the
seed, the epoch and the picture alone, a batch's mixing on the seed and the batch's number.

Pictures are read by Grain (the extra `train`). Imports neither Keras nor a backend.
"""

from __future__ import annotations

import atexit
import hashlib
import multiprocessing
import os
import pickle
import re
import signal
import threading
import time
import unicodedata
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from numbers import Real
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..datasets.digits import CLASSES as DIGITS
from ..datasets.digits import Split, load_digits
from ..datasets.labelled import some
from ..images.decode import MAX_PIXELS, SUFFIXES, ImageError, open_image
from ..images.find import ClassFolder, LeftOut, class_folders, no_pictures
from ..images.parallel import decoded
from ..spec.preprocessing import Preprocessing
from ..support.checks import at_least
from ..support.extras import missing
from ..support.text import printable

Transform = Callable[[Image.Image, np.random.Generator], np.ndarray]
Mixing = Callable[[np.ndarray, np.ndarray, int, np.random.Generator], tuple[np.ndarray, ...]]

_TRAINING = ("train", "training")  # the first that is there
_VALIDATION = ("val", "validation", "valid", "eval", "test", "testing")  # likewise
_PART = re.compile(r"(?<![a-z])(train|dev|val|eval|test|fold|split)[a-z]*")
_ORDER, _AUGMENT, _MIX = range(3)  # keep the streams of random numbers apart
_ENDLESS = 1 << 62
_LISTED = 100
_EXIT_CODES = (
    ' (1: the main script does not start its work under `if __name__ == "__main__"`; '
    "-7: too little shared memory in /dev/shm; -9: too little memory)"
)


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures and the class of each.

    Args:
        name: What reports call them.
        sources: Paths, or uint8 arrays (N, H, W).
        labels: (N,) int32, indices into `classes`.
        classes: Names, in the order of the model's outputs.
        fingerprint: SHA-256 over what each picture is called (its path within the folder), its
            class and its size in bytes: whether a run that goes on still has the same pictures.
        left_out: Which files of the folders, those to validate on included, are no pictures; "".
    """

    name: str
    sources: Sequence[str] | np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    fingerprint: str
    left_out: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def called(self, index: int) -> str:
        """What messages call a picture: its path, as it may be printed."""
        source = self.sources[index]
        return printable(source) if isinstance(source, str) else f"{self.name}, picture {index}"


def open_data(
    data: str | os.PathLike, *, validation_split: float = 0.2, seed: int = 0
) -> tuple[Pictures, Pictures]:
    """Finds the pictures to train on and those to validate on; none is opened.

    Pictures are known as in `pictures_in`. Names are compared in NFC, and classes are in
    the plain order of these.

    Args:
        data: "digits", the bundled images (32, 32): 1,437 and 360; or a folder: any other text,
            or a path. One that holds `train` or `training` and one of `val`, `validation`,
            `valid`, `eval`, `test`, `testing` (the first of these, in any case of letters), each
            with a folder of pictures for each class, is taken as it is. One that holds a folder
            for each class is split.
        validation_split: Share of each class that is held out where the folder is split, rounded;
            at least one picture and not all of them, and of a single one none.
        seed: Of that split: whether a picture is held out depends on it, the class and the names
            of the class's pictures, not on the machine.

    Returns:
        Training and validation, with the same classes.

    Raises:
        ValueError: A class has no pictures, there is only one, the two folders have different
            ones, a picture lies outside of the class folders, folders look like parts of a data
            set by other names, or an argument is out of its range.
        OSError: There is no such folder, or one cannot be read.
    """
    if not isinstance(validation_split, Real) or not 0 < validation_split < 1:
        raise ValueError(
            "`validation_split` must be a share above 0 and below 1. "
            f"Received: validation_split={validation_split!r}"
        )
    seed = at_least("seed", seed, 0)
    if data == "digits":
        training, validation = load_digits()
        return _of_digits(training, "digits, training"), _of_digits(validation, "digits, test")
    data = os.fsdecode(data)
    if not os.path.isdir(data):
        raise FileNotFoundError(
            "`data` must be a folder of class folders, one with train and val, or digits. "
            f"Received: {printable(data)}, and there is no such folder"
        )
    parts = {name.lower(): os.path.join(data, name) for name in sorted(os.listdir(data))}
    parts = {name: path for name, path in parts.items() if os.path.isdir(path)}
    train, held_out = (
        next((parts[name] for name in names if name in parts), None)
        for names in (_TRAINING, _VALIDATION)
    )
    if train and held_out:
        return _of_two_folders(train, held_out)
    left_out = LeftOut()
    kept, out = {}, {}
    for name, files in _class_folders(data, left_out).items():
        count = min(max(int(len(files) * validation_split + 0.5), 1), len(files) - 1)
        chosen = set(sorted(files, key=lambda file: _draw(seed, name, file.within))[:count])
        kept[name] = [file for file in files if file not in chosen]
        out[name] = [file for file in files if file in chosen]
    if not any(out.values()):
        raise ValueError(
            f"{printable(data)}: every class has one picture, so none is left to validate on"
        )
    shown = printable(data)
    return (
        _of_folder(f"{shown}, training part", kept, left_out),
        _of_folder(f"{shown}, validation part", out),
    )


def _of_two_folders(train: str, held_out: str) -> tuple[Pictures, Pictures]:
    left_out = LeftOut()
    training = _class_folders(train, left_out)
    validation = _class_folders(held_out, left_out, may_be_empty=True)
    for here, there, folder, other in (
        (validation, training, held_out, train),
        (training, validation, train, held_out),
    ):
        if only := sorted(set(here) - set(there)):
            raise ValueError(
                f"{printable(folder)} has classes that {printable(other)} lacks: {some(only)}. "
                "Give both the same; a class without validation pictures has an empty folder there"
            )
    if not any(validation.values()):
        raise ValueError(no_pictures(printable(held_out), left_out))
    return (
        _of_folder(printable(train), training, left_out),
        _of_folder(printable(held_out), validation),
    )


class _File(NamedTuple):
    """A picture: where it is within the folder of its class, in NFC and with "/", and its path."""

    within: str
    path: str


def _class_folders(
    folder: str, left_out: LeftOut, may_be_empty: bool = False
) -> dict[str, list[_File]]:
    """{class: its pictures}, all in order."""
    found, shown = class_folders(folder, left_out), printable(folder)
    if len(found) < 2:
        has = f"only one, {printable(*found)}" if found else "none"
        raise ValueError(
            f"{shown} must hold a folder of pictures for each class, two at least. It has {has}"
        )
    empty = [name for name, one in found.items() if not one.pictures]
    if empty and not may_be_empty:
        beside = f". {left_out}" if left_out else ""
        raise ValueError(
            f"{shown} has class folders without a picture: {some(empty)}; fill or remove them"
            f"{beside}"
        )
    if parts := _parts_among(found):
        raise ValueError(
            f"{shown}: {some(parts)} look like parts of a data set, not like classes: they have no "
            "pictures but in further folders. Name the part to train on train and the one to "
            "validate on val, or give the folder that holds the class folders"
        )
    return {name: sorted(map(_File, *_within(one))) for name, one in found.items()}


def _parts_among(found: Mapping[str, ClassFolder]) -> list[str]:
    """Folders whose names are the same but for a part's: training_set and test_set."""
    alike: dict[str, list[str]] = {}
    for name, one in found.items():
        rest, times = _PART.subn("", name.lower())
        if times and not any(os.path.dirname(path) == one.path for path in one.pictures):
            alike.setdefault(re.sub(r"\d", "", rest), []).append(name)
    return next((names for names in alike.values() if len(names) > 1), [])


def _within(one: ClassFolder) -> tuple[list[str], Sequence[str]]:
    for path in one.pictures:
        if not path.lower().endswith(SUFFIXES) and os.path.isdir(path):
            os.listdir(path)  # raises why it cannot be read
    names = [path.removeprefix(one.path + os.sep).replace(os.sep, "/") for path in one.pictures]
    return [unicodedata.normalize("NFC", name) for name in names], one.pictures


def _draw(seed: int, name: str, path: str) -> bytes:
    """What decides who is held out: the same everywhere, as good as random."""
    return hashlib.sha256(b"%d\0" % seed + os.fsencode(f"{name}\0{path}")).digest()


def _of_folder(
    name: str, classes: Mapping[str, Sequence[_File]], left_out: LeftOut | None = None
) -> Pictures:
    hashed = hashlib.sha256()
    sources: list[str] = []
    for one, files in classes.items():
        for file in files:
            sources.append(file.path)
            try:
                size = os.path.getsize(file.path)
            except OSError:  # a link to nothing: reading it will say so
                size = -1
            hashed.update(os.fsencode(f"{one}\0{file.within}\0{size}\0"))
    counts = [len(files) for files in classes.values()]
    labels: np.ndarray = np.arange(len(counts), dtype=np.int32).repeat(counts)
    said = str(left_out) if left_out else ""
    return Pictures(name, tuple(sources), labels, tuple(classes), hashed.hexdigest(), said)


def _of_digits(split: Split, name: str) -> Pictures:
    # 0..16 -> 0..255, and each pixel a 4 x 4 patch, as in `load_digits`.
    pixels = np.round(split.pixels * (255 / 16)).astype(np.uint8)
    pictures = pixels.repeat(4, axis=1).repeat(4, axis=2)
    hashed = hashlib.sha256(pictures.tobytes() + split.labels.tobytes()).hexdigest()
    return Pictures(name, pictures, split.labels, DIGITS, hashed)


# --- Training ---


class TrainingBatches:
    """Shuffled, augmented and mixed batches, numbered from 0 without end.

    Each epoch takes every picture once, but for the remainder that fills no batch. Balanced, it
    has as many pictures, of each class the same number: those of a small one several times, each
    time augmented otherwise, of a large one another part in each epoch.

    With `shard`, several workers share each batch, of which worker i of n holds the rows i,
    i + n, ...: together they hold exactly the pictures of one worker's batch. Each mixes its own
    rows with random numbers of its own, as timm's distributed training does, so images that are
    mixed are not those that one worker alone would mix.

    A picture that cannot be read ends the run, or, where `max_corrupt` allows, is replaced by the
    next in the epoch's order that can be.

    Args:
        pictures: To train on.
        transform: A picture (`open_image`) -> (S, S, C), with the random numbers it is
            given (`train.augment.TrainTransform`).
        mix: What `transform` makes (N, S, S, C), labels (N,), number of classes and random numbers
            -> the model's input, its targets (N, classes) and, if the pictures do not all count
            the same, their weights (N,), float32 (`train.augment.BatchTransform`).
        batch_size: Pictures in a batch, those of all shards together.
        parts: Batches of one update, where gradients are accumulated: an epoch has whole updates.
        seed: Of the order and of all random numbers.
        balanced: Whether each class is shown equally often.
        workers: Threads that decode and augment, in each process; by default they fill the cores.
        processes: Processes that do so instead of this one, for machines with more cores than
            Python threads can use. Each imports the main script again, which must therefore
            start its work under `if __name__ == "__main__"`.
        shard: Which worker this is, from 0, and how many there are.
        max_corrupt: How many different pictures may be unreadable, since this object was made.
        max_pixels: Largest height x width of a picture.

    Raises:
        ValueError: An argument is out of its range, or there are too few pictures for one batch.
        ModuleNotFoundError: Grain is missing.
    """

    def __init__(
        self,
        pictures: Pictures,
        transform: Transform,
        mix: Mixing,
        batch_size: int,
        *,
        parts: int = 1,
        seed: int = 0,
        balanced: bool = False,
        workers: int | None = None,
        processes: int = 0,
        shard: tuple[int, int] = (0, 1),
        max_corrupt: int = 0,
        max_pixels: int = MAX_PIXELS,
    ):
        self._grain = _import_grain()
        self.pictures, self.mix = pictures, mix
        self.batch_size = at_least("batch_size", batch_size, 1)
        self.processes = at_least("processes", processes, 0)
        cores = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0))
        threads = max((cores or os.cpu_count() or 1) // max(self.processes, 1), 1)
        self.workers = threads if workers is None else at_least("workers", workers, 1)
        self.max_corrupt = at_least("max_corrupt", max_corrupt, 0)
        update = self.batch_size * at_least("parts", parts, 1)
        if update > len(pictures):
            raise ValueError(
                "`batch_size` must be at most the number of pictures to train on, "
                f"{len(pictures):,}. Received: batch_size={update}"
            )
        first, count = shard
        if at_least("shard", first, 0) >= at_least("shard", count, 1):
            raise ValueError(
                "`shard` must be which worker this is, from 0, and how many there are. "
                f"Received: shard={shard!r}"
            )
        if self.batch_size % count:
            raise ValueError(
                f"`batch_size` must be a multiple of the {count} workers that share a batch. "
                f"Received: batch_size={batch_size}"
            )
        self._samples = _Samples(
            pictures,
            transform,
            self.batch_size,
            len(pictures) // update * parts,
            at_least("seed", seed, 0),
            np.asarray(pictures.labels, np.int32).tobytes() if balanced else None,
            (int(first), int(count)),
            self.max_corrupt,
            at_least("max_pixels", max_pixels, 1),
        )
        self._unreadable: dict[str, str] = {}  # why
        self._replaced: dict[str, set[int]] = {}  # in which samples

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch; batch number n is of epoch n // steps_per_epoch."""
        return self._samples.steps

    @property
    def rows(self) -> int:
        """Pictures of a batch that are this worker's."""
        return self._samples.rows

    def indices(self, number: int) -> np.ndarray:
        """Which pictures batch `number` holds, over all shards: (batch_size,), in its order.

        As drawn: an unreadable picture is named, not what replaces it.
        """
        epoch, step = divmod(at_least("number", number, 0), self.steps_per_epoch)
        start = step * self.batch_size
        return self._samples.order(epoch)[0][start : start + self.batch_size].copy()

    def corrupt(self, step: int) -> dict[str, int]:
        """Unreadable pictures met in the batches before number `step`: name, times replaced.

        Only those that this object has handed out are known: a run that goes on starts anew.
        """
        end = step * self._samples.rows
        times = {name: sum(n < end for n in met) for name, met in self._replaced.items()}
        return {name: count for name, count in times.items() if count}

    def iterate(self, start: int = 0) -> Generator[tuple[np.ndarray, ...]]:
        """Batches `start`, `start + 1`, ...; the next ones are made meanwhile.

        Abandoned or closed, the iterator stops its threads and processes.

        Returns:
            Images (rows, S, S, C) and targets (rows, classes), float32, and the weights (rows,) if
            `mix` gives some; the rows are batch_size / shards.

        Raises:
            ImageError: More than `max_corrupt` pictures cannot be read; names all of them.
            RuntimeError: `transform` fails; names the picture. Or a process died.
        """
        return _closed_at_exit(self._batches(at_least("start", start, 0)))

    def _batches(self, start: int) -> Generator[tuple[np.ndarray, ...]]:
        with ExitStack() as opened:
            samples = self._stored(opened) if self.processes else self._samples
            made = opened.enter_context(closing(self._made(samples, start)))
            while True:
                try:
                    replaced, batch = next(made)
                except RuntimeError as error:  # without Grain's remarks on its traceback
                    hint = _EXIT_CODES if "exit code" in str(error) else ""
                    raise RuntimeError(f"{error}{hint}") from error.__cause__
                for sample in replaced:
                    for name, why in sample.unreadable:
                        self._unreadable[name] = why
                        self._replaced.setdefault(name, set()).add(sample.number)
                if batch is None or len(self._unreadable) > self.max_corrupt:
                    raise refusal(self._unreadable, self.max_corrupt)
                yield batch

    def _stored(self, opened: ExitStack) -> _Stored:
        import cloudpickle  # Grain's; also for what a notebook defines

        folder = opened.enter_context(TemporaryDirectory(prefix="van-"))
        stored = _Stored(os.path.join(folder, "samples"))
        with open(stored.path, "wb") as file:
            cloudpickle.dump(self._samples, file)
        return stored

    def _made(self, samples: Callable[[int], _Sample], start: int) -> Any:
        """Grain's iterator over what `_collated` returns."""
        grain, rows = self._grain, self._samples.rows
        # Ahead, in pictures: about a batch decoded, then one batch mixed and one being mixed.
        ahead = max(-(-rows // max(self.processes, 1)), 2 * self.workers)
        dataset = grain.MapDataset.range(start * rows, _ENDLESS).map(samples)
        dataset = dataset.to_iter_dataset(grain.ReadOptions(self.workers, ahead))
        if self.processes:
            _parse_no_flags()
            # Few wait in shared memory, of which a container has 64 MB.
            options = grain.MultiprocessingOptions(self.processes, per_worker_buffer_size=2)
            dataset = dataset.mp_prefetch(options, _start_process)
        dataset = dataset.batch(rows, batch_fn=self._collated)
        return iter(grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=1))

    def _collated(self, samples: Sequence[_Sample]) -> tuple[list[_Sample], Any]:
        """The samples whose picture was replaced, and the batch; None where there is none."""
        replaced = [sample._replace(image=None) for sample in samples if sample.unreadable]
        found = [sample.image for sample in samples if sample.image is not None]
        if len(found) < len(samples):
            return replaced, None
        labels = np.array([sample.label for sample in samples], np.int32)
        number = samples[0].number // self._samples.rows
        rng = _generator(_MIX, self._samples.seed, number, self._samples.shard[0])
        return replaced, self.mix(np.stack(found), labels, len(self.pictures.classes), rng)


class _Sample(NamedTuple):
    """One row of a batch; `unreadable`: name and reason of each picture it was not made of."""

    number: int
    image: np.ndarray | None
    label: int
    unreadable: tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class _Samples:
    """Makes the rows of the batches, which are numbered through; what a process is sent."""

    pictures: Pictures
    transform: Transform
    batch_size: int
    steps: int
    seed: int
    labels: bytes | None  # int32, where the classes are balanced
    shard: tuple[int, int]
    max_corrupt: int
    max_pixels: int

    @property
    def rows(self) -> int:
        return self.batch_size // self.shard[1]

    def order(self, epoch: int) -> tuple[np.ndarray, np.ndarray | None]:
        if self.labels is None:
            return _order(self.seed, epoch, len(self.pictures)), None
        return _balanced_order(self.seed, epoch, self.labels)

    def __call__(self, number: int) -> _Sample:
        batch, row = divmod(number, self.rows)
        epoch, step = divmod(batch, self.steps)
        place = step * self.batch_size + self.shard[0] + row * self.shard[1]
        (order, times), unreadable = self.order(epoch), []
        # One more than allowed cannot be read: the run is over, whatever comes after.
        for offset in range(min(self.max_corrupt + 1, len(order))):
            position = (place + offset) % len(order)
            index = int(order[position])
            try:
                image = open_image(self.pictures.sources[index], self.max_pixels)
            except (ImageError, OSError) as error:
                name = self.pictures.called(index)
                unreadable.append((name, _reason(name, error)))
                continue
            again = () if times is None or not times[position] else (int(times[position]),)
            rng = _generator(_AUGMENT, self.seed, epoch, index, *again)
            try:
                pixels = self.transform(image, rng)
            except Exception as error:
                # By name, and of a kind that a process can always send.
                name = self.pictures.called(index)
                raise RuntimeError(f"{name}: the transform failed: {error!r}") from error
            label = int(self.pictures.labels[index])
            return _Sample(number, pixels, label, tuple(unreadable))
        return _Sample(number, None, -1, tuple(unreadable))


class _Stored:
    """`_Samples` in a file, where a process finds them.

    What a process is started with must fit into a pipe's 64 kB: one that ends before it has read
    all of it, because the main script cannot be imported again, would leave us writing for ever.
    """

    def __init__(self, path: str):
        self.path = path

    @cached_property
    def _samples(self) -> _Samples:
        with open(self.path, "rb") as file:
            return pickle.load(file)  # noqa: S301 - ours

    def __call__(self, number: int) -> _Sample:
        return self._samples(number)


@lru_cache(maxsize=4)  # those of two epochs are in use where one ends
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    order = _generator(_ORDER, seed, epoch).permutation(count)
    order.flags.writeable = False
    return order


@lru_cache(maxsize=4)
def _balanced_order(seed: int, epoch: int, labels: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Picture of each place of the epoch, and how often that one has been before."""
    rng = _generator(_ORDER, seed, epoch)
    there = np.frombuffer(labels, np.int32)
    classes = rng.permutation(np.unique(there))  # the first ones take what does not divide
    share, rest = divmod(len(there), len(classes))
    chosen = []
    for place, label in enumerate(classes):
        own, count = np.flatnonzero(there == label), share + (place < rest)
        rounds = -(-count // len(own))
        drawn = np.concatenate([rng.permutation(own) for _ in range(rounds)])[:count]
        chosen.append(np.stack([drawn, np.arange(count) // len(own)], axis=1))
    order = rng.permutation(np.concatenate(chosen))
    order.flags.writeable = False
    return order[:, 0], order[:, 1]


def _generator(*entropy: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(entropy))


def _parse_no_flags() -> None:
    """Grain asks for a command-line flag of absl's, which is an error where absl has read none."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _start_process(index: int, count: int) -> None:
    """A process of Grain's leaves Ctrl-C to the one that started it, and ends with that one."""

    def follow() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=follow, daemon=True).start()


def _import_grain() -> Any:
    try:
        from absl import logging

        before = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)  # it warns that there is no JAX to be profiled
        try:
            import grain
            import grain.experimental
        finally:
            logging.set_verbosity(before)
    except ImportError as error:
        raise missing("Training", "grain", "train") from error
    return grain


# --- Evaluation ---


class EvaluationBatches:
    """All pictures once in their order, prepared as for evaluation; each iteration starts anew.

    Args:
        pictures: To evaluate on.
        preprocessing: The model's.
        batch_size: Pictures in a batch.
        workers: Threads that decode; by default one for each core.
        max_corrupt: How many pictures may be unreadable; they are left out.
        max_pixels: Largest height x width of a picture.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        pictures: Pictures,
        preprocessing: Preprocessing,
        batch_size: int,
        *,
        workers: int | None = None,
        max_corrupt: int = 0,
        max_pixels: int = MAX_PIXELS,
    ):
        self.pictures, self.preprocessing = pictures, preprocessing
        self.batch_size = at_least("batch_size", batch_size, 1)
        self.workers = None if workers is None else at_least("workers", workers, 1)
        self.max_corrupt = at_least("max_corrupt", max_corrupt, 0)
        self.max_pixels = at_least("max_pixels", max_pixels, 1)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Images (batch_size, S, S, C), float32, and the labels of the real ones, int32.

        All batches have the same shape: the last one is filled up with zeros, for which there are
        no labels.

        Raises:
            ImageError: More than `max_corrupt` pictures cannot be read; names all of them.
        """
        return _closed_at_exit(self._batches())

    def _batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        side, channels = self.preprocessing.input_size, self.preprocessing.channels
        shape = self.batch_size, side, side, channels
        images: np.ndarray = np.zeros(shape, np.float32)
        labels: list[int] = []
        unreadable: dict[str, str] = {}
        made = decoded(self.pictures.sources, self._prepared, self.workers, 2 * self.batch_size)
        with closing(made):
            for index, (_, image) in enumerate(made):
                if isinstance(image, Exception):
                    name = self.pictures.called(index)
                    unreadable[name] = _reason(name, image)
                    if len(unreadable) > self.max_corrupt:
                        raise refusal(unreadable, self.max_corrupt)
                    continue
                images[len(labels)] = image
                labels.append(int(self.pictures.labels[index]))
                if len(labels) == self.batch_size:
                    yield images, np.array(labels, np.int32)
                    images, labels = np.zeros(shape, np.float32), []
        if labels:
            yield images, np.array(labels, np.int32)

    def _prepared(self, source: Any) -> np.ndarray:
        return self.preprocessing(open_image(source, self.max_pixels))


# --- At the end, and what is wrong ---

_OPEN: weakref.WeakSet[Any] = weakref.WeakSet()


def _closed_at_exit(batches: Any) -> Any:
    """The same generator; an open one is closed before the interpreter takes modules apart."""
    _OPEN.add(batches)
    atexit.unregister(_close_all)
    atexit.register(_close_all)
    return batches


def _close_all() -> None:
    for batches in list(_OPEN):
        batches.close()


def _reason(name: str, error: Exception) -> str:
    """Why the picture called `name` cannot be read."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).removeprefix(f"{name}: ")


def unreadable(
    parts: Sequence[Pictures],
    advance: Callable[[], None] = lambda: None,
    seconds: float = 120.0,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> tuple[dict[str, str], int]:
    """Every picture that cannot be read, all in one go.

    Args:
        parts: Training and validation.
        advance: Called after each picture.
        seconds: After which it gives up.
        workers: Threads that decode; by default one for each core.
        max_pixels: Largest height x width of a picture.

    Returns:
        {name: why}, and how many pictures were looked at.
    """

    def read(source: Any) -> None:
        open_image(source, max_pixels)

    found: dict[str, str] = {}
    looked_at, end = 0, time.monotonic() + seconds
    for part in parts:
        with closing(decoded(part.sources, read, workers)) as made:
            for index, (_, error) in enumerate(made):
                if time.monotonic() > end:
                    return found, looked_at
                looked_at += 1
                advance()
                if isinstance(error, Exception):
                    found[part.called(index)] = _reason(part.called(index), error)
    return found, looked_at


def refusal(
    unreadable: Mapping[str, str], allowed: int, total: int = 0, looked_at: int = 0
) -> ImageError:
    """What is said of pictures that cannot be read.

    Args:
        unreadable: {name: why}; the first hundred are listed.
        allowed: `max_corrupt`.
        total: All pictures, where all were to be looked at.
        looked_at: How many were.
    """
    count = len(unreadable)
    listed = "".join(f"\n  {name}: {why}" for name, why in islice(unreadable.items(), _LISTED))
    if count > _LISTED:
        listed += f"\n  and {count - _LISTED:,} more"
    of = f"{total:,}" if total else "the"
    if looked_at < total:
        of = f"the first {looked_at:,} of {total:,}"
    return ImageError(
        f"{count:,} of {of} pictures cannot be read; `max_corrupt` allows {allowed:,}:"
        f"{listed}\nRemove or replace them, or raise `max_corrupt` to {count}: so many are passed "
        "over"
    )
