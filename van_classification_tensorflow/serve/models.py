"""The models that are served: each opened, proven and warm before its first picture."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..engines.choice import TOLERANCES, Chosen, largest_difference, title
from ..engines.of_weights import GraphEngine
from ..engines.runtimes import open_runtime
from ..explanation.last_stage import LAST_STAGE_METHODS, LastStage
from ..explanation.methods import NotFiniteError
from ..images.decode import ImageError
from ..inference.classifier import Classifier
from ..spec.scores import best
from ..support.cores import cores
from ..support.text import one_line, printable
from ..weights.address import address_of
from ..weights.catalogue import Weights
from ..weights.hub_name import is_hub_name
from ..weights.pretrained import state_of_weights
from .batching import Batcher, Call, Tell

_SOONER = 0.8  # of the time on one core, or the cores are better used for other pictures


class PictureError(Exception):
    """A picture that gets no answer; says why."""


@dataclass(frozen=True)
class Question:
    """What is to be explained.

    Args:
        method: One of `Served.methods`.
        index: The class; None: the one that the picture is taken for.
    """

    method: str
    index: int | None = None


@dataclass(frozen=True)
class Map:
    """An explanation of one picture: as of `explanation.last_stage`, without its batch axis."""

    values: np.ndarray
    index: int
    layer: str
    empty: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says of a picture.

    Args:
        size: Width and height of the upright picture in pixels.
        logits: (outputs,).
        explanation: Where one was asked for.
    """

    size: tuple[int, int]
    logits: np.ndarray
    explanation: Map | None = None


class Served:
    """A model that is open, its pictures and its queue. Never changed: a new file is a new one.

    Args:
        name: In addresses.
        options: Of its `Classifier`.
        wait: As of `Batcher`, in seconds.
        watch: As of `Batcher`.

    Attributes:
        classifier: What it is made of.
        chosen: Its engine, and why.
        explainer: Of class activation maps, or why there is none, in a line.
        outputs: How many numbers it gives for a picture.
        batcher: Its queue.
        closed: Whether another one took over, and nobody uses it any more.

    Raises:
        ValueError: As of `Classifier`; or it has no head.
        OSError: As of `Classifier`.
        ModuleNotFoundError: As of `Classifier`.
    """

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any],
        wait: float = 0.0,
        watch: Callable[[int], None] = lambda size: None,
    ):
        self.name, self.weights = name, options["weights"]
        self._users, self._retired, self.closed = 0, False, False
        self.state = state_of_weights(self.weights)  # before it is read: a later one is another
        self.classifier = classifier = Classifier(**options)
        classifier.check_top(1)
        self.chosen: Chosen = classifier.choose_engine()
        self._engine = self.chosen.engine
        self.explainer = self._explainer()
        lanes, self._in_turn = self._lanes()
        self.outputs, lanes, alone = self._warm(lanes)
        self.batcher = Batcher(
            self._run,
            lanes=lanes,
            most=classifier.batch_size,
            wait=wait,
            alone=alone,
            watch=watch,
        )
        self._explaining = Batcher(self._explain, most=1)

    def _some_picture(self) -> np.ndarray:
        """Noise, prepared."""
        return np.random.default_rng(0).random((1, *self.input_shape), np.float32)

    def _explainer(self) -> LastStage | str:
        try:
            explainer = LastStage(self.classifier)
            explainer(self._some_picture(), 0)
        except ValueError as error:  # it is an exported file, or its graph does not run
            return one_line(error)
        return explainer

    def _lanes(self) -> tuple[int, Callable[[np.ndarray], np.ndarray]]:
        """How many may run the model at a time, and how each of them does."""
        engine = self._engine
        if isinstance(engine, GraphEngine):
            return engine.runner.threads, engine.in_turn
        if engine.format == "onnx" and engine.batch_size in (None, 1) and cores() > 1:
            return cores(), open_runtime(self.weights, threads=1)
        return 1, engine

    def _warm(self, lanes: int) -> tuple[int, int, bool]:
        """Runs each program once.

        Returns:
            How many numbers it gives for a picture, how many may run at a time, and whether a
            single one has a program of its own, on all cores, which is done sooner.
        """
        picture = self._some_picture()
        if self.dtype != np.float32:
            picture = (255 * picture).astype(self.dtype)
        alone, in_turn = self._engine(picture), self._in_turn(picture)
        outputs = alone.shape[-1]
        if lanes == 1:
            return outputs, 1, False
        allowed = TOLERANCES.get(self.chosen.precision, TOLERANCES["bfloat16"])
        if not largest_difference([in_turn], [alone]) <= allowed:
            self._in_turn = self._engine  # which has proved itself
            return outputs, 1, False
        sooner = _seconds(self._engine, picture) < _SOONER * _seconds(self._in_turn, picture)
        return outputs, lanes, sooner

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """While it is open, the model stays, whatever takes over meanwhile."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            self._close_if_unused()

    def retire(self) -> None:
        """Another one took over: closed as soon as nobody uses it."""
        self._retired = True
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._retired and not self._users:
            self.batcher.close()
            self._explaining.close()
            self.closed = True
            del self.batcher, self._explaining  # which hold this, and the weights with it

    @property
    def methods(self) -> tuple[str, ...]:
        """How it can explain itself; none of an exported file."""
        return LAST_STAGE_METHODS if isinstance(self.explainer, LastStage) else ()

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Of a picture as the model takes it: (height, width, channels)."""
        record = self.classifier.preprocessing
        return record.input_size, record.input_size, record.channels

    @property
    def dtype(self) -> np.dtype:
        """Of the numbers in it."""
        return self._engine.dtype

    def answer(
        self, data: bytes | memoryview, question: Question | None, call: Call, tell: Tell
    ) -> None:
        """Decodes a picture, and has it answered, perhaps with those of others.

        Args:
            data: Of its file.
            question: What is to be explained of it, if anything.
            call: For whom.
            tell: Called with an `Answer`, or with a `PictureError`, `OverdueError`, `GoneError`
                or, where the model fails, something else.
        """
        try:
            call.check()
            views, size = self._prepared(data)
        except Exception as error:
            tell(error)
            return

        def classified(logits: Any) -> None:
            if isinstance(logits, Exception) or question is None:
                tell(logits if isinstance(logits, Exception) else Answer(size, logits))
                return

            def explained(found: Any) -> None:
                tell(found if isinstance(found, Exception) else Answer(size, logits, found))

            # The class is that of the answer, whose engine or views may be others.
            index = int(best(logits[None], False)[0]) if question.index is None else question.index
            self._explaining.submit((views[:1], question.method, index), explained, call)

        self.batcher.submit(views, classified, call)

    def _prepared(self, data: bytes | memoryview) -> tuple[np.ndarray, tuple[int, int]]:
        try:
            return self.classifier.prepare(data)
        except MemoryError:
            raise PictureError("too large for the memory") from None
        except (ImageError, OSError, ValueError) as error:
            raise PictureError(one_line(error)) from None

    def _run(self, items: list[np.ndarray], alone: bool) -> list[Any]:
        views = items[0] if len(items) == 1 else np.concatenate(items)
        outputs = self.classifier.finished((self._engine if alone else self._in_turn)(views))
        ends = np.cumsum([len(one) for one in items])[:-1]
        means = (part.mean(axis=0) for part in np.split(outputs, ends))
        return [one if np.isfinite(one).all() else _no_number() for one in means]

    def _explain(self, items: list[Any], alone: bool) -> list[Any]:
        made: list[Map | PictureError] = []
        explainer = self.explainer
        assert isinstance(explainer, LastStage)  # noqa: S101 - else there are no methods
        for views, method, index in items:
            try:
                found = explainer(views, index, method)
            except NotFiniteError:  # unlike the engine
                made.append(_no_number())
            else:
                made.append(Map(found.maps[0], index, found.layer, bool(found.empty[0])))
        return made

    def about(self) -> dict[str, Any]:
        """What a person may want to know of it."""
        classifier, card, chosen = self.classifier, self.classifier.card, self.chosen
        return {
            "name": self.name,
            "title": classifier.name,
            "classes": len(classifier.classes),
            "parameters": classifier.parameters,
            "input_size": classifier.preprocessing.input_size,
            "preprocessing": classifier.preprocessing.to_dict(),
            "engine": title(chosen.name, chosen.version),
            "precision": chosen.precision,
            "licence": (card and card.licence) or None,
            "source": _source(self.weights, card),
            "published_top1": card and card.top1,
            "notes": classifier.notes,
            "explains": bool(self.methods),
        }


def _seconds(run: Callable[[np.ndarray], Any], picture: np.ndarray) -> float:
    """That it takes at best."""
    found = []
    for _ in range(2):
        began = time.perf_counter()
        run(picture)
        found.append(time.perf_counter() - began)
    return min(found)


def _no_number() -> PictureError:
    return PictureError("the model gives no finite number for it")


def _source(weights: str, card: Any) -> str | None:
    """Where weights come from: an address, or the name of their file, not its folder."""
    if is_hub_name(weights):
        return weights
    if address_of(weights).is_path:
        return printable(Path(weights).name)
    if isinstance(card, Weights) and card.sources:
        return card.sources[0].url
    return None


class Models:
    """All models by name, and their taking over of new files.

    Args:
        served: The default first.
        again: (name) -> the model opened anew.
        workers: Threads that decode.
    """

    def __init__(self, served: Sequence[Served], again: Callable[[str], Served], workers: int):
        self._served, self._again = {one.name: one for one in served}, again
        self.decoders = ThreadPoolExecutor(workers, thread_name_prefix="upload")
        self._one_reload = asyncio.Lock()
        self._tidying: asyncio.Task[None] | None = None

    def __getitem__(self, name: str) -> Served:
        """The model of a name, "" the default.

        Raises:
            KeyError: There is none.
        """
        return self._served[name] if name else self.all[0]

    @property
    def all(self) -> list[Served]:
        """The default first."""
        return list(self._served.values())

    async def reload(self, name: str) -> bool:
        """Opens a model anew where its file is another one, and lets it take over.

        Whoever has asked the old one gets its answer; it goes on where the new one is refused.

        Returns:
            Whether there was something new.

        Raises:
            ValueError: The new file is refused.
            OSError: It cannot be opened.
        """
        async with self._one_reload:
            old = self._served[name]
            if state_of_weights(old.weights) == old.state:
                return False
            try:
                new = await asyncio.to_thread(self._again, name)
            except BaseException:
                self._tidying = asyncio.create_task(asyncio.to_thread(give_back_memory))
                raise
            self._served[name] = new
            old.retire()
            self._tidying = asyncio.create_task(_tidied(old))
            return True


async def _tidied(old: Served) -> None:
    """Gives the memory of a model back, once its last request has its answer."""
    while not old.closed:
        await asyncio.sleep(0.05)
    del old
    await asyncio.to_thread(give_back_memory)


def give_back_memory() -> None:
    """What was only needed to open a model, or for one that is closed, back to the system.

    What is left is not looked at again until the next time: it takes tens of milliseconds.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # of glibc, which would keep it for later
