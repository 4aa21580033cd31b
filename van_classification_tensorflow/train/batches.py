"""What a model is trained on: labelled pictures, and batches of them that can be made again.

Every batch is a function of the pictures, the seed and the batch's number, whatever made it: a run
can go on from any step, and on any number of workers. Each epoch has its own order; a picture's
augmentation depends on the seed, the epoch and the picture alone, a batch's mixing on the seed and
the batch's number, what is erased of an image on these and its row.

Pictures are read by Grain (the extra `train`). Imports neither Keras nor a backend.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import signal
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..datasets.training import Pictures
from ..images.decode import MAX_PIXELS, ImageError, open_image
from ..images.parallel import decoded
from ..spec.preprocessing import Preprocessing
from ..support.checks import at_least
from ..support.extras import missing

Transform = Callable[[Image.Image, np.random.Generator], np.ndarray]
Mixing = Callable[
    [np.ndarray, np.ndarray, int, np.random.Generator, Sequence[np.random.Generator]],
    tuple[np.ndarray, ...],
]

_ORDER, _AUGMENT, _MIX, _ROW = range(4)  # keep the streams of random numbers apart
_ENDLESS = 1 << 62
_LISTED = 100
_EXIT_CODES = (
    ' (1: the main script does not start its work under `if __name__ == "__main__"`; '
    "-7: too little shared memory in /dev/shm; -9: too little memory)"
)


# --- Training ---


class TrainingBatches:
    """Shuffled, augmented and mixed batches, numbered from 0 without end.

    Each epoch takes every picture once, but for the remainder that fills no batch. Balanced, it
    has as many pictures, of each class the same number: those of a small one several times, each
    time augmented otherwise, of a large one another part in each epoch.

    With `shard`, several workers share each batch, of which worker i of n holds the i-th n-th of
    the rows: to the bit those that one worker's batch has there, mixed and erased alike.

    A picture that cannot be read ends the run, or, where `max_corrupt` allows, is replaced by the
    next in the epoch's order that can be.

    Args:
        pictures: To train on.
        transform: A picture (`open_image`) -> (S, S, C), with the random numbers it is
            given (`train.augment.TrainTransform`).
        mix: What `transform` makes (N, S, S, C), labels (N,), number of classes, random numbers of
            the batch and those of each row -> the model's input, its targets (N, classes) and, if
            the pictures do not all count the same, their weights (N,), float32
            (`train.augment.BatchTransform`). Where its `mixes` is true, a row depends on its
            neighbour.
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
        if count > 1 and self.batch_size // count % 2 and getattr(mix, "mixes", False):
            raise ValueError(
                "`batch_size` must give each worker an even number of pictures, as they are mixed "
                f"in pairs: a multiple of {2 * count} for {count} workers. "
                f"Received: batch_size={batch_size}. Or turn mixing off: mixup and cutmix 0"
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
        seed, rows = self._samples.seed, self._samples.rows
        number, first = samples[0].number // rows, self._samples.shard[0] * rows
        rng = _generator(_MIX, seed, number)
        rngs = [_generator(_ROW, seed, number, row) for row in range(first, first + rows)]
        return replaced, self.mix(np.stack(found), labels, len(self.pictures.classes), rng, rngs)


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
        place = step * self.batch_size + self.shard[0] * self.rows + row
        (order, times), unreadable = self.order(epoch), []
        # One more than allowed cannot be read: the run is over, whatever comes after.
        for offset in range(min(self.max_corrupt + 1, len(order))):
            position = (place + offset) % len(order)
            index = int(order[position])
            try:
                image = open_image(self.pictures.sources[index], self.max_pixels)
            except (ImageError, OSError) as error:
                name = self.pictures.name_of(index)
                unreadable.append((name, _reason(name, error)))
                continue
            again = () if times is None or not times[position] else (int(times[position]),)
            rng = _generator(_AUGMENT, self.seed, epoch, index, *again)
            try:
                pixels = self.transform(image, rng)
            except Exception as error:
                # By name, and of a kind that a process can always send.
                name = self.pictures.name_of(index)
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
                    name = self.pictures.name_of(index)
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
                    found[part.name_of(index)] = _reason(part.name_of(index), error)
    return found, looked_at


def refusal(
    unreadable: Mapping[str, str], allowed: int, total: int = 0, looked_at: int = 0
) -> ImageError:
    """The error that names the pictures that cannot be read.

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
