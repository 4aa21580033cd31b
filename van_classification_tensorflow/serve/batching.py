"""Pictures of many requests through one model: how many at once, and when. Knows no HTTP."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any


class OverdueError(Exception):
    """It waited longer than it may, and was not computed."""


class GoneError(Exception):
    """Nobody waits for it any more; it was not computed."""


@dataclass(slots=True)
class Waiting:
    """Something that is to be computed.

    Args:
        item: What `Batcher.run` takes.
        answer: What becomes of it.
        deadline: By `time.monotonic`; it is given up where it was not begun by then.
        gone: Tells whether nobody waits for it any more.
        since: When it came, by `time.monotonic`.
    """

    item: Any
    answer: asyncio.Future[Any]
    deadline: float
    gone: Callable[[], bool]
    since: float


class Batcher:
    """Collects what comes while the model is busy, and gives it to the model at once.

    Several lanes run at a time. A lane that is free takes its share of what waits; only where
    fewer wait than it could take, and `wait` allows it, it waits for more. Something that is
    alone, with every lane free, may be run by a way of its own, which takes all lanes.

    All but `run` happens in the event loop's thread.

    Args:
        run: Items -> an answer for each, in a thread. Given True where the item is alone.
        lanes: How many may run at a time.
        most: Items that a lane takes at once.
        wait: Seconds that an item may wait for others, with a lane free.
        alone: Whether there is another way for a single item.
        watch: Called with the size of each batch.

    Attributes:
        waiting: How many wait.
    """

    def __init__(
        self,
        run: Callable[[list[Any], bool], list[Any]],
        lanes: int = 1,
        most: int = 32,
        wait: float = 0.0,
        alone: bool = False,
        watch: Callable[[int], None] = lambda size: None,
    ):
        self.run, self.lanes, self.most, self.wait = run, lanes, most, wait
        self.alone, self.watch = alone, watch
        self._queue: deque[Waiting] = deque()
        self._busy = 0
        self._timer: asyncio.TimerHandle | None = None
        self._threads = ThreadPoolExecutor(lanes, thread_name_prefix="batch")

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def close(self) -> None:
        """Lets the threads go, when what they do is done."""
        self._threads.shutdown(wait=False)

    def submit(
        self, item: Any, deadline: float = float("inf"), gone: Callable[[], bool] = lambda: False
    ) -> asyncio.Future[Any]:
        """The answer to an item, later.

        Raises:
            OverdueError: Of the answer: it was not begun before its deadline.
            GoneError: Of the answer: `gone` said so when its turn had come.
            Exception: Of the answer: what `run` raised.
        """
        loop = asyncio.get_running_loop()
        one = Waiting(item, loop.create_future(), deadline, gone, time.monotonic())
        self._queue.append(one)
        self._begin(loop)
        return one.answer

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Gives every free lane what there is for it."""
        while self._queue and self._busy < self.lanes:
            count = len(self._queue)
            if count < self.most and self._waits(loop):
                return
            share = -(-count // (self.lanes - self._busy))  # rounded up
            batch = self._taken(min(share, self.most))
            if not batch:
                continue
            alone = self.alone and len(batch) == 1 and not self._queue and not self._busy
            lanes = self.lanes if alone else 1
            self._busy += lanes
            self.watch(len(batch))
            done = self._threads.submit(self.run, [one.item for one in batch], alone)
            done.add_done_callback(partial(self._tell, loop, batch, lanes))

    def _taken(self, most: int) -> list[Waiting]:
        """The next ones; what is overdue or not wanted any more is given up."""
        batch: list[Waiting] = []
        now = time.monotonic()
        while self._queue and len(batch) < most:
            one = self._queue.popleft()
            if one.answer.done():  # the request was given up
                continue
            if now > one.deadline:
                one.answer.set_exception(OverdueError())
            elif one.gone():
                one.answer.set_exception(GoneError())
            else:
                batch.append(one)
        return batch

    def _waits(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether the first of a batch that is not full should wait for more."""
        left = self._queue[0].since + self.wait - time.monotonic()
        if not self.wait or left <= 0:
            return False
        if self._timer is None:
            self._timer = loop.call_later(left, self._time_is_up, loop)
        return True

    def _time_is_up(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        self._begin(loop)

    def _tell(
        self, loop: asyncio.AbstractEventLoop, batch: list[Waiting], lanes: int, done: Future[Any]
    ) -> None:
        """In the thread that ran it."""
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._finish, loop, batch, lanes, done)

    def _finish(
        self, loop: asyncio.AbstractEventLoop, batch: list[Waiting], lanes: int, done: Future[Any]
    ) -> None:
        self._busy -= lanes
        self._begin(loop)  # first: the lanes should not wait for the answers to be written
        error = done.exception()
        answers = [None] * len(batch) if error else done.result()
        for one, answer in zip(batch, answers, strict=True):
            if one.answer.done():  # the request was given up
                continue
            if error:
                one.answer.set_exception(error)
            else:
                one.answer.set_result(answer)
