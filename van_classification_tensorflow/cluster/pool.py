"""Blocks of inputs dealt to the processes of a cluster; what they make of them comes in order.

Not by Ray Data's pool of actors: where a process dies with its block, that ends the run, tries for
ever, or drops the block without a word, and results come in any order, which the one who writes
them in order would have to hold back without a limit. Here a process has one block at a time, so it
is known which one it died of; and nobody is more than a few blocks ahead of what is written.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

_AHEAD = 4  # blocks for each process, from the first that is not done
_LOOK = 2.0  # seconds between looks at the clock
_PATIENCE = 300.0  # seconds without a process that can run: a cluster may have to start machines
_STARTS = 3  # of each process, before it is said that they die
_TRIES = 2  # of a block, then of each of its inputs alone, before it is the input's fault


@dataclass
class Block:
    """Some inputs, and what has become of them.

    Args:
        number: From 0, in order.
        items: The inputs.
        deaths: How many processes have died with all of them, or with the one at hand.
        alone: Results of the inputs one by one, so far; None: they go together.
        killed: Positions of the inputs that a process dies of.
        rest: Whether the others go together once more, in the batches that they would have been in.
    """

    number: int
    items: list[Any]
    deaths: int = 0
    alone: list[Any] | None = None
    killed: set[int] = field(default_factory=set)
    rest: bool = False

    @property
    def asked(self) -> tuple[list[Any], tuple[int, ...]]:
        """The inputs to send now, and positions among them that are left out."""
        if self.alone is None or self.rest:
            return self.items, tuple(sorted(self.killed))
        return [self.items[len(self.alone)]], ()

    def died(self) -> None:
        """A process died with what was sent."""
        if self.rest:  # together they are too much, though none alone is: keep what there is
            self.rest, self.deaths = False, 0
            return
        self.deaths += 1
        if self.deaths < _TRIES:
            return
        self.deaths = 0
        if self.alone is None:
            self.alone = []
        else:
            self.killed.add(len(self.alone))
            self._next(None)

    def took(self, results: list[Any]) -> list[Any] | None:
        """Takes what came back; once they are there, the results of all, None for killers."""
        if self.alone is None or self.rest:
            return results
        self.deaths = 0
        self._next(results[0])
        return self.finished

    @property
    def finished(self) -> list[Any] | None:
        """The results one by one, where these have to do."""
        if self.alone is None or self.rest or len(self.alone) < len(self.items):
            return None
        return self.alone

    def _next(self, result: Any) -> None:
        assert self.alone is not None  # noqa: S101 - one by one they go
        self.alone.append(result)
        if len(self.alone) == len(self.items):
            self.rest = len(self.killed) < len(self.items)


class Pool:
    """Processes of a cluster that do the same; those that die are replaced.

    Args:
        ray: The module, connected.
        make: Gives an actor, not started yet. It must have `start()`: an error in words, or None;
            and `work(items, left_out)`: a list of results, None where an item is left out.
        least: Work begins when so many have started.
        most: No more are asked for.

    Raises:
        ValueError: A process says that it cannot do the work.
        ConnectionError: The cluster has no room for so many, or they die when they start.
    """

    def __init__(self, ray: Any, make: Callable[[], Any], least: int, most: int):
        self.ray, self.make, self.most = ray, make, most
        self.needed = least  # to go on; one, when work has begun
        self.starting: dict[Any, Any] = {}  # {what will say that it has started: the actor}
        self.idle: list[Any] = []
        self.busy: dict[Any, tuple[Any, Block]] = {}
        self.waiting: deque[Block] = deque()  # to be sent once more
        self.failed_starts = 0  # in a row
        self.since = time.monotonic()  # when there were enough
        for _ in range(most):
            self._start()

    def ready(self) -> None:
        """Returns when the least number of processes have started."""
        while len(self.idle) < self.needed:
            self._look()
        self.needed = 1

    def run(self, blocks: Iterator[list[Any]]) -> Iterator[tuple[list[Any], list[Any]]]:
        """(items, results, None for those that a process dies of) of each block, in order.

        Args:
            blocks: Taken as far ahead as needed.
        """
        held: dict[int, tuple[list[Any], list[Any]]] = {}
        numbered = enumerate(blocks)
        following = next(numbered, None)
        first = 0  # that was not given yet
        while following is not None or self.waiting or self.busy:
            while self.idle:
                if self.waiting:
                    block = self.waiting.popleft()
                elif following is not None and following[0] < first + _AHEAD * self.most:
                    block, following = Block(*following), next(numbered, None)
                else:
                    break
                actor = self.idle.pop(0)  # in turn, so that all nodes have something
                self.busy[actor.work.remote(*block.asked)] = actor, block
            for block, results in self._look():
                held[block.number] = block.items, results
            while first in held:
                yield held.pop(first)
                first += 1

    def _start(self) -> None:
        actor = self.make()
        self.starting[actor.start.remote()] = actor

    def _look(self) -> list[tuple[Block, list[Any]]]:
        """Waits for something to happen; the blocks that are done by it."""
        done, _ = self.ray.wait(
            [*self.busy, *self.starting], num_returns=1, timeout=_LOOK, fetch_local=False
        )
        for one in done:
            if one in self.starting:
                self._take_started(self.starting.pop(one), one)
        finished = [self._take_work(*self.busy.pop(one), one) for one in done if one in self.busy]
        self._check_patience()
        return [one for one in finished if one is not None]

    def _take_started(self, actor: Any, answer: Any) -> None:
        try:
            problem = self.ray.get(answer)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self.ray.exceptions.RayError as error:
            self.failed_starts += 1
            if self.failed_starts > _STARTS * self.most:
                why = str(error).strip().splitlines()[0]
                raise ConnectionError(
                    f"{self.failed_starts} processes in a row have died when they started: {why}"
                ) from None
            self._replace(actor)
            return
        if problem is not None:
            raise ValueError(problem)
        self.failed_starts = 0
        self.idle.append(actor)

    def _take_work(self, actor: Any, block: Block, answer: Any) -> tuple[Block, list[Any]] | None:
        try:
            results = block.took(self.ray.get(answer))
            self.idle.append(actor)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from None  # of the work itself: as where it is done here
        except self.ray.exceptions.RayError:  # its process is gone, its node, or what it gave
            self._replace(actor)
            block.died()
            results = block.finished
        if results is None:
            self.waiting.append(block)
            return None
        return block, results

    def _replace(self, actor: Any) -> None:
        self.ray.kill(actor)  # it may be but out of reach
        self._start()

    def _check_patience(self) -> None:
        there, now = len(self.idle) + len(self.busy), time.monotonic()
        if there >= self.needed:
            self.since = now
        elif now - self.since > _PATIENCE:
            raise ConnectionError(
                f"the cluster had room for {there:,} of {self.needed:,} processes within "
                f"{_PATIENCE / 60:g} minutes: free CPUs, add nodes, or ask for fewer with "
                "`cluster_workers`"
            )
