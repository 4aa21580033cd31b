"""How many go through the model at once, when, and what is left out."""

import threading
import time

import pytest

from van_classification_tensorflow.serve.batching import Batcher, Call, GoneError, OverdueError


class Gate:
    """A model that waits until it may go on, and notes what it was given."""

    def __init__(self, **options):
        self.batches, self.alone = [], []
        self.open = threading.Event()
        self.begun = threading.Semaphore(0)
        self.batcher = Batcher(self._run, **options)
        self.answers, self.told = {}, threading.Semaphore(0)

    def _run(self, items, alone):
        self.batches.append(items)
        self.alone.append(alone)
        self.begun.release()
        assert self.open.wait(20)
        return [10 * one for one in items]

    def submit(self, *items, call=None):
        for one in items:
            self.batcher.submit(one, lambda answer, one=one: self._tell(one, answer), call)

    def _tell(self, item, answer):
        self.answers[item] = answer
        self.told.release()

    def wait(self, count, what="told"):
        for _ in range(count):
            assert getattr(self, what).acquire(timeout=20)

    def finish(self, count):
        self.open.set()
        self.wait(count)
        self.batcher.close()


def test_what_comes_while_it_is_busy_is_the_next_batch():
    gate = Gate(most=4)
    gate.submit(1)
    gate.wait(1, "begun")
    gate.submit(2, 3, 4, 5, 6, 7)
    gate.finish(7)
    assert gate.batches == [[1], [2, 3, 4, 5], [6, 7]]
    assert gate.answers == {i: 10 * i for i in range(1, 8)}


def test_lanes_share_what_waits():
    gate = Gate(lanes=2)
    gate.submit(1)
    gate.wait(1, "begun")
    gate.submit(2)
    gate.wait(1, "begun")
    gate.submit(3, 4, 5, 6)
    gate.finish(6)
    assert gate.batches[:2] == [[1], [2]]
    assert sorted(one for batch in gate.batches for one in batch) == [1, 2, 3, 4, 5, 6]


def test_one_that_is_alone_has_all_cores():
    gate = Gate(lanes=2, alone=True)
    gate.submit(1)
    gate.wait(1, "begun")
    gate.submit(2)
    time.sleep(0.05)
    assert gate.batches == [[1]]  # the other lane rests
    gate.finish(2)
    assert gate.batches == [[1], [2]]
    assert gate.alone == [True] * 2


def test_one_that_others_follow_has_a_core():
    gate = Gate(lanes=2, alone=True)
    for i in (1, 2):
        gate.submit(i, call=Call(company=lambda: True))
        gate.wait(1, "begun")
    gate.finish(2)
    assert gate.batches == [[1], [2]]
    assert gate.alone == [False] * 2


def test_many_do_not_go_alone():
    gate = Gate(lanes=2, alone=True)
    gate.submit(1)
    gate.wait(1, "begun")
    gate.submit(*range(2, 10))
    gate.finish(9)
    assert gate.alone[:2] == [True, False]
    assert sorted(one for batch in gate.batches for one in batch) == list(range(1, 10))


def test_waiting_for_others():
    gate = Gate(most=3, wait=20)
    gate.open.set()
    gate.submit(1, 2)
    time.sleep(0.05)
    assert gate.batches == []
    gate.submit(3)
    gate.finish(3)
    assert gate.batches == [[1, 2, 3]]
    soon = Gate(most=3, wait=0.02)
    soon.submit(1)
    soon.finish(1)
    assert soon.batches == [[1]]


def test_overdue_and_unwanted_work_is_not_done():
    gate = Gate()
    gate.submit(1)
    gate.wait(1, "begun")
    gate.submit(2, call=Call(deadline=time.monotonic() - 1))
    gate.submit(3, call=Call(gone=lambda: True))
    gate.submit(4)
    gate.finish(4)
    assert gate.batches == [[1], [4]]
    assert isinstance(gate.answers[2], OverdueError)
    assert isinstance(gate.answers[3], GoneError)
    assert gate.answers[4] == 40


def test_an_error_of_the_model_is_told_and_the_next_go_on():
    told = threading.Semaphore(0)
    answers = []

    def run(items, alone):
        if items == ["bad"]:
            raise ValueError("no")
        return items

    batcher = Batcher(run, most=1)
    for one in ("bad", "good"):
        batcher.submit(one, lambda answer: (answers.append(answer), told.release()))
    assert all(told.acquire(timeout=20) for _ in range(2))
    batcher.close()
    assert isinstance(answers[0], ValueError)
    assert answers[1] == "good"


def test_many_from_many_threads():
    told = threading.Semaphore(0)
    answers = {}
    batcher = Batcher(lambda items, alone: [one + 1 for one in items], lanes=3, most=7, alone=True)

    def submit(first):
        for i in range(first, first + 200):
            batcher.submit(i, lambda answer, i=i: (answers.update({i: answer}), told.release()))

    threads = [threading.Thread(target=submit, args=(1_000 * n,)) for n in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert all(told.acquire(timeout=20) for _ in range(800))
    batcher.close()
    assert all(answer == i + 1 for i, answer in answers.items())
    assert len(answers) == 800


@pytest.mark.parametrize(
    ("call", "error"), [(Call(0), OverdueError), (Call(gone=lambda: True), GoneError)]
)
def test_a_call_checks_itself(call, error):
    with pytest.raises(error):
        call.check()
    Call().check()
