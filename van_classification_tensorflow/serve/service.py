"""What all handlers of requests share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fastapi import Request

from ..support.text import shown
from .batching import Call, OverdueError, Tell
from .http import HttpError, busy, is_gone
from .limits import Admission, Limits, Uploads
from .metrics import Metrics
from .models import Answer, Models, PictureError, Question, Served


@dataclass
class Service:
    """The models, and what may be asked of them.

    Args:
        models: What is served.
        limits: Of requests.
        admission: Of the pictures.
        uploads: Of the bytes.
        metrics: Where it is counted.

    Attributes:
        desk: The thread in which long requests are read and long answers written: in those that
            decode they would wait behind all pictures.
    """

    models: Models
    limits: Limits
    admission: Admission
    uploads: Uploads
    metrics: Metrics
    desk: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "desk"))

    def model(self, name: str) -> Served:
        """The model of a name, "" the default.

        Raises:
            HttpError: 404.
        """
        try:
            return self.models[name]
        except KeyError:
            there = ", ".join(one.name for one in self.models.all)
            raise HttpError(404, f"the models here are {there}. Received: {shown(name)}") from None

    async def at_desk(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs something beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.desk, function, *arguments)

    async def if_long(self, is_long: bool, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs something beside the event loop where it would hold up the others."""
        return await self.at_desk(function, *arguments) if is_long else function(*arguments)

    def count(self, model: Served, found: Sequence[Any]) -> int:
        """Notes in the metrics what became of pictures; how many have an answer."""
        refused = sum(isinstance(one, PictureError) for one in found)
        answered = len(found) - refused
        for outcome, count in (("answered", answered), ("refused", refused)):
            if count:
                self.metrics.pictures.labels(model.name, outcome).inc(count)
        return answered

    async def answers(
        self,
        model: Served,
        pictures: Sequence[bytes | memoryview],
        question: Question | None,
        request: Request,
    ) -> list[Answer | PictureError]:
        """What the model says of each file, in their order; all are taken in, or none.

        Raises:
            HttpError: 429, or 503 where one waited too long.
            GoneError: The client has gone.
        """

        def begin(i: int, tell: Tell, call: Call) -> None:
            self.models.decoders.submit(model.answer, pictures[i], question, call, tell)

        return await self._gathered(len(pictures), begin, request)

    async def logits(
        self, model: Served, images: np.ndarray, request: Request
    ) -> list[np.ndarray | PictureError]:
        """The same of pictures as the model takes them, (N, H, W, C)."""

        def begin(i: int, tell: Tell, call: Call) -> None:
            model.batcher.submit(images[i : i + 1], tell, call)

        return await self._gathered(len(images), begin, request)

    async def _gathered(
        self, count: int, begin: Callable[[int, Tell, Call], None], request: Request
    ) -> list[Any]:
        with self.admission.enter(count):
            call = Call(
                time.monotonic() + self.limits.timeout,
                lambda: is_gone(request.scope),
                lambda: self.admission.count > 1,
            )
            found = await _all(count, lambda i, tell: begin(i, tell, call))
        for one in found:
            if isinstance(one, OverdueError):
                raise busy("it waited too long in the queue: try again", "overdue", 503)
            if isinstance(one, Exception) and not isinstance(one, PictureError):
                raise one
        return found


async def _all(count: int, begin: Callable[[int, Tell], None]) -> list[Any]:
    """What so many tasks, in whatever threads, tell; this wakes up once, for the last of them."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    found: list[Any] = [None] * count
    left = iter(range(count - 1, -1, -1))  # the next of an iterator is taken by one thread only

    def settle() -> None:
        if not done.done():
            done.set_result(None)

    def teller(i: int) -> Tell:
        def tell(answer: Any) -> None:
            found[i] = answer
            if next(left) == 0:
                loop.call_soon_threadsafe(settle)

        return tell

    for i in range(count):
        begin(i, teller(i))
    await done
    return found
