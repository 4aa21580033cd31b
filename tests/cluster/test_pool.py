"""Who gets which block, and what is made of the death of a process: without Ray, step by step."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from van_classification_tensorflow.cluster import pool
from van_classification_tensorflow.cluster.actor import Worker
from van_classification_tensorflow.cluster.pool import Pool


class RayError(Exception):
    """As of `ray.exceptions`."""


class RayTaskError(RayError):
    """As of `ray.exceptions`."""

    def __init__(self, cause):
        self.cause = cause


class FakeRay:
    """What `Pool` needs of Ray: calls are done in any order, when they are waited for.

    Args:
        work: (items, left_out) -> results; may raise `Died` or what the work raises.
        start: As `Worker.start`.
    """

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, work, start=lambda: None, seed=0):
        self.calls, self.rng, self.asked, self.killed = {}, np.random.default_rng(seed), [], 0
        self.work, self.start = work, start

    def actor(self):
        def remote(function):
            def call(*arguments):
                number = len(self.calls)
                self.calls[number] = function, arguments
                return number

            return SimpleNamespace(remote=call)

        return SimpleNamespace(start=remote(self.start), work=remote(self.work))

    def wait(self, refs, num_returns, timeout, fetch_local):
        assert num_returns == 1
        return [refs[self.rng.integers(len(refs))]], []

    def get(self, ref):
        function, arguments = self.calls[ref]
        self.asked.append(arguments)
        try:
            return function(*arguments)
        except Died as error:
            raise RayError("gone") from error
        except ValueError as error:
            raise RayTaskError(error) from error

    def kill(self, actor):
        self.killed += 1


class Died(BaseException):
    """The process is gone."""


def doubled(items, left_out):
    return [None if at in left_out else 2 * item for at, item in enumerate(items)]


def run(ray, blocks, least=1, most=3):
    made = Pool(ray, ray.actor, least, most)
    made.ready()
    return list(made.run(iter(blocks)))


BLOCKS = [[10 * n + i for i in range(4)] for n in range(30)]


@pytest.mark.parametrize("seed", range(5))
def test_in_order_and_not_far_ahead(seed):
    taken = []

    def blocks():
        for block in BLOCKS:
            taken.append(block)
            yield block

    ray = FakeRay(doubled, seed=seed)
    made = Pool(ray, ray.actor, 3, 3)
    made.ready()
    for number, (items, results) in enumerate(made.run(blocks())):
        assert items == BLOCKS[number]
        assert results == [2 * item for item in items]
        assert len(taken) <= number + 4 * 3 + 1
    assert number == len(BLOCKS) - 1


@pytest.mark.parametrize("seed", range(5))
def test_what_kills_is_found_and_the_others_go_together(seed):
    def work(items, left_out):
        if any(item in (22, 23, 91) for at, item in enumerate(items) if at not in left_out):
            raise Died
        return doubled(items, left_out)

    ray = FakeRay(work, seed=seed)
    found = run(ray, BLOCKS)
    right = {22: None, 23: None, 91: None}
    assert [one for _, results in found for one in results] == [
        right.get(item, 2 * item) for block in BLOCKS for item in block
    ]
    assert ([20, 21, 22, 23], (2, 3)) in ray.asked
    assert ray.asked.count(([22], ())) == ray.asked.count(([91], ())) == 2
    assert ray.killed == 2 * (2 + 3)  # each block twice, each of the three twice


def test_too_much_together_though_none_alone():
    def work(items, left_out):
        if len(items) > 1 and 21 in items:
            raise Died
        return doubled(items, left_out)

    ray = FakeRay(work)
    assert [results for _, results in run(ray, BLOCKS)] == [doubled(b, ()) for b in BLOCKS]
    assert ray.killed == 3


def test_all_kill():
    def work(items, left_out):
        raise Died

    assert run(FakeRay(work), [[1, 2]]) == [([1, 2], [None, None])]


@pytest.mark.parametrize("seed", range(5))
def test_processes_die_for_other_reasons(seed):
    chance = np.random.default_rng(seed)

    def work(items, left_out):
        if len(items) > 1 and chance.random() < 0.3:
            raise Died
        return doubled(items, left_out)

    found = run(FakeRay(work, seed=seed), BLOCKS)
    assert [results for _, results in found] == [doubled(b, ()) for b in BLOCKS]


def test_an_error_of_the_work_is_raised_as_it_is():
    def work(items, left_out):
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match=r"^no such thing$"):
        run(FakeRay(work), BLOCKS)


def test_who_cannot_do_the_work_says_so():
    with pytest.raises(ValueError, match="node x does not see it"):
        run(FakeRay(doubled, start=lambda: "node x does not see it"), BLOCKS)


def test_processes_that_die_when_they_start():
    def start():
        raise Died

    with pytest.raises(ConnectionError, match="10 processes in a row have died when they started"):
        run(FakeRay(doubled, start=start), BLOCKS)


def test_no_room(monkeypatch):
    monkeypatch.setattr(pool, "_PATIENCE", -1)
    ray = FakeRay(doubled)
    monkeypatch.setattr(ray, "wait", lambda *_, **__: ([], []))
    with pytest.raises(ConnectionError, match=r"had room for 0 of 2 processes .*cluster_workers"):
        run(ray, BLOCKS, least=2)


def test_the_others_go_in_the_batches_that_they_would_have_been_in():
    seen = []

    class Classifier:
        pictures_at_once = 3

        def stream(self, images, features, count):
            seen.append(images)
            return images

    worker = Worker(
        SimpleNamespace(features=False, count=9, shape=lambda _, result: result.upper())
    )
    worker.classifier = Classifier()
    assert worker.work(list("abcdefgh"), ()) == list("ABCDEFGH")
    assert worker.work(list("abcdefgh"), (1, 4)) == ["A", None, "C", "D", None, "F", "G", "H"]
    assert seen == [list("abcdefgh"), ["a", "c"], ["d", "f"], ["g", "h"]]


def test_a_process_in_which_nothing_happens_ends_itself():
    program = """
import time
from types import SimpleNamespace as Made
from van_classification_tensorflow.cluster.actor import Worker

worker = Worker(Made(features=False, count=3, shape=lambda _, result: result))
worker.patience = 0.5
def stream(images, **_):
    for pause in (0.3, 0.3, 99):  # each result gives it new patience
        yield time.sleep(pause)
worker.classifier = Made(pictures_at_once=3, stream=stream)
worker.work("abc", ())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "Timeout (0:00:00.5" in done.stderr
    assert "in stream" in done.stderr
    assert "NameError" not in done.stderr
