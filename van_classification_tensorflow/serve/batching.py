"""Pictures of many requests through one model: how many at once, and when.

Knows neither HTTP nor asyncio: answers come by a call, in the thread that found them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# A lane that has company takes no more than it is done with in so many seconds: who comes next may
# find the other one free sooner, and answers are told when a batch is done.
_QUICK = 0.005
_KEPT = 0.9  # of the seconds that an item takes, when the next ones are done


class OverdueError(Exception):
    """It waited longer than it may, and was not computed."""


class GoneError(Exception):
    """Nobody waits for it any more; it was not computed."""


@dataclass(frozen=True, slots=True)
class Call:
    """For whom something is computed.

    Args:
        deadline: By `time.monotonic`; what was not begun by then is given up.
        gone: Tells whether nobody waits for it any more.
        company: Tells whether others have come, which may not be in the queue yet.
    """

    deadline: float = float("inf")
    gone: Callable[[], bool] = lambda: False
    company: Callable[[], bool] = lambda: False

    def check(self) -> None:
        """Raises `OverdueError` or `GoneError` where it should be given up."""
        if time.monotonic() > self.deadline:
            raise OverdueError
        if self.gone():
            raise GoneError


Tell = Callable[[Any], None]
"""Called with an answer, or with the exception that stands for it."""


@dataclass(slots=True)
class _Waiting:
    item: Any
    tell: Tell
    call: Call
    since: float


class Batcher:
    """Collects what comes while the model is busy, and gives it to the model at once.

    Each lane is a thread. One that is free takes its share of what waits; only where that is less
    than it could take, and `wait` allows it, it waits for more.

    Where there is a way that answers a single item sooner, with all lanes resting meanwhile, it is
    taken for an item that is alone in the server: others, while they are decoded, would want the
    cores that it takes.

    Args:
        run: (items, whether it is one alone) -> an answer for each.
        lanes: How many may run at a time.
        most: Items that a lane takes at once.
        wait: Seconds that an item may wait for others, with a lane free.
        alone: Whether there is another way for a single item.
        watch: Called with the size of each batch.
    """

    def __init__(
        self,
        run: Callable[[list[Any], bool], Sequence[Any]],
        lanes: int = 1,
        most: int = 32,
        wait: float = 0.0,
        alone: bool = False,
        watch: Callable[[int], None] = lambda size: None,
    ):
        self.run, self.lanes, self.most, self.wait = run, lanes, most, wait
        self.alone, self.watch = alone, watch
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._busy, self._resting, self._closed = 0, False, False
        self._pace = 0.0  # seconds an item
        for _ in range(lanes):
            threading.Thread(target=self._lane, name="batch", daemon=True).start()

    def submit(self, item: Any, tell: Tell, call: Call | None = None) -> None:
        """Has an item computed; any thread may ask.

        Args:
            item: What `run` takes.
            tell: Called with its answer; with an `OverdueError` or a `GoneError` where `call` says
                so when its turn has come; or with what `run` raised.
            call: For whom.
        """
        with self._changed:
            self._queue.append(_Waiting(item, tell, call or Call(), time.monotonic()))
            self._changed.notify()

    def close(self) -> None:
        """Ends the threads when nothing waits any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _lane(self) -> None:
        while True:
            with self._changed:
                batch = self._next()
                if not batch:
                    return
                alone = self._resting
                self._busy += 1
            began = time.monotonic()
            self._answer(batch, alone)
            with self._changed:
                self._busy -= 1
                if alone:
                    self._resting = False
                    self._changed.notify_all()
                else:
                    seconds = (time.monotonic() - began) / len(batch)
                    self._pace = _KEPT * self._pace + (1 - _KEPT) * seconds

    def _next(self) -> list[_Waiting]:
        """Waits for a batch; none where it is closed."""
        while self._queue or not self._closed:
            left = None
            alone = self.alone and len(self._queue) == 1 and not self._queue[0].call.company()
            if self._queue and not self._resting and not (alone and self._busy):
                left = self._queue[0].since + self.wait - time.monotonic()
                if not self.wait or left <= 0 or len(self._queue) >= self.most:
                    if batch := self._taken(1 if alone else self._share()):
                        self._resting = alone
                        return batch
                    continue
            self._changed.wait(left)
        return []

    def _share(self) -> int:
        """How many a free lane takes."""
        share, most = -(-len(self._queue) // (self.lanes - self._busy)), self.most
        if self.lanes > 1 and self._pace:
            most = min(most, max(1, int(_QUICK / self._pace)))
        return min(share, most)

    def _taken(self, most: int) -> list[_Waiting]:
        """The next ones; what is overdue or not wanted any more is given up."""
        batch: list[_Waiting] = []
        while self._queue and len(batch) < most:
            one = self._queue.popleft()
            try:
                one.call.check()
            except (OverdueError, GoneError) as error:
                one.tell(error)
            else:
                batch.append(one)
        return batch

    def _answer(self, batch: list[_Waiting], alone: bool) -> None:
        self.watch(len(batch))
        answers: Sequence[Any]
        try:
            answers = self.run([one.item for one in batch], alone)
        except Exception as error:  # of whatever runs the model
            answers = [error] * len(batch)
        for one, answer in zip(batch, answers, strict=True):
            one.tell(answer)
