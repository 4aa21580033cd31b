"""Several workers that train one model make of it what one worker makes of the same batches."""

import json
import os

import keras
import numpy as np
import pytest
from PIL import Image

from tests.train.one_worker import STEPS, trained
from van_classification_tensorflow.train import callbacks
from van_classification_tensorflow.train.snapshots import Snapshot, Snapshots
from van_classification_tensorflow.train.workers import Workers, join

BACKEND = keras.backend.backend()
# What sums in another order come to after 20 steps, in weights of about 1.
TOLERANCE = {"tensorflow": 3e-6, "jax": 1e-6}
several = pytest.mark.skipif(
    BACKEND not in TOLERANCE, reason="several workers train on TensorFlow and on JAX"
)
SGD, ADAMW = {"name": "sgd", "optimizer": "sgd"}, {"name": "adamw"}
STOPPED, RESUMED = {"name": "stopped", "stop_at": STEPS + 3}, {"name": "stopped", "resume": True}
OTHER, MISSING = {"name": "other", "data": "pictures"}, {"name": "missing", "data": "nothing"}
ODD = {"name": "odd", "batch_size": 66}


def variables(folder, job, rank=0):
    with np.load(folder / f"{job}-{rank}.npz") as arrays:
        return dict(arrays)


def largest(ours, theirs):
    """{"model", "optimizer", ...: largest |difference|}; of sums above 1 it is relative."""
    assert set(ours) == set(theirs)
    found = {}
    for name, array in ours.items():
        kind, other = name.partition("/")[0], theirs[name]
        assert array.shape == other.shape
        array, other = array.astype(np.float64), other.astype(np.float64)
        apart = (np.abs(array - other) / np.maximum(np.abs(other), 1)).max(initial=0)
        found[kind] = max(found.get(kind, 0.0), float(apart))
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(number of workers, jobs): the folder, and what became of each job on each worker."""
    made = {}

    def of(count, *jobs):
        if count == 2 and BACKEND == "tensorflow":
            # All that the tests ask for: TensorFlow starts once. To compile them takes JAX minutes.
            jobs = [SGD, ADAMW, STOPPED, RESUMED, OTHER, MISSING, ODD]
        key = json.dumps([count, jobs])
        if key not in made:
            folder = tmp_path_factory.mktemp(f"workers{count}")
            _fill(folder / "pictures")
            there = [
                {**job, "data": str(folder / job["data"])} if "data" in job else job for job in jobs
            ]
            said = trained(folder, count, there)
            became = [dict(zip(map(json.dumps, jobs), one, strict=True)) for one in said]
            made[key] = folder, [lambda job, one=one: one[json.dumps(job)] for one in became]
        return made[key]

    return of


def _fill(folder):
    """Other pictures than the digits."""
    for label in "01":
        (folder / label).mkdir(parents=True)
        for i in range(80):
            Image.new("L", (8, 8), i).save(folder / label / f"{i}.png")


@several
@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("job", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_they_train_what_one_does(runs, count, job, thorough):
    """Over 20 steps, dropped paths, mixing and erasing included; also the figures of epochs."""
    if count > 2 and not thorough:
        pytest.skip("--thorough: three of them as well")
    both = [SGD, ADAMW] if BACKEND == "tensorflow" else [job]
    (alone, (told,)), (folder, said) = runs(1, *both), runs(count, *both)
    ours, theirs = variables(folder, job["name"]), variables(alone, job["name"])
    apart = largest(ours, theirs)
    print(f"{count} workers, {BACKEND}, {job['name']}: {apart}")
    assert max(apart.values()) <= TOLERANCE[BACKEND]
    for rank in range(count):
        # Ranks agree to the bit, in all they have and in all they say.
        assert max(largest(variables(folder, job["name"], rank), ours).values()) == 0
        assert said[rank](job) == said[0](job)
    for name, figures in told(job).items():
        assert np.abs(np.subtract(figures, said[0](job)[name])).max() <= 1e-5, name


@several
@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_bit_for_bit(runs):
    """The signal reaches one of them; all stop after the same step."""
    folder, said = runs(2, ADAMW, STOPPED, RESUMED)
    assert [of_one(STOPPED) for of_one in said] == [{"stopped": True}] * 2
    assert STEPS + 3 <= min(Snapshots(folder / "stopped" / "snapshots").steps()) < 2 * STEPS
    for rank in (0, 1):
        assert said[rank](RESUMED) == said[rank](ADAMW)
        ours = variables(folder, "stopped", rank), variables(folder, "adamw", rank)
        assert max(largest(*ours).values()) == 0


@several
@pytest.mark.slow
def test_workers_that_see_other_things_do_not_begin(runs):
    folder, said = runs(2, OTHER, MISSING, ODD)
    for of_one in said:
        assert "all workers must have the same data. Received: " in of_one(OTHER)["error"]
        assert "on worker 1" in of_one(OTHER)["error"]
        assert "an even number of pictures, as they are mixed in pairs" in of_one(ODD)["error"]
    assert said[0](MISSING)["error"].startswith("worker 1 of 2: ")
    assert "nothing" in said[1](MISSING)["error"]
    assert not any((folder / name / "config.yaml").exists() for name in ("missing", "odd"))


def test_one_alone_hears_itself():
    one = Workers()
    assert (one.rank, one.count, one.replicas, one.leads) == (0, 1, 1, True)
    assert np.array_equal(one.gather(np.arange(3)), [[0, 1, 2]])
    assert one.share(5) == 5
    assert one.texts("a") == ["a"]
    assert one.together(lambda: 7) == 7
    one.check_equal({"anything": "at all"})


class Follower(Workers):
    """The second of two; the first one says always the same: due, to stop, steps to the next."""

    def __init__(self, first):
        super().__init__(1, 2)
        self.first, self.asked = first, 0

    def together(self, do):
        return do()

    def gather(self, values):
        self.asked += 1
        return np.array([self.first, values])


class Store:
    def __init__(self):
        self.saved = []

    def save(self, step, *_):
        self.saved.append(step)


def keeper(workers, **options):
    """A `KeepSnapshots` after the third of ten steps."""
    position = callbacks.Position(10)
    position.step = 3
    store = Store()
    keep = callbacks.KeepSnapshots(
        store, position, dict, [], [], epochs=9, workers=workers, **options
    )
    keep.set_model(keras.Sequential([keras.layers.Dense(1)]))
    return keep, store


def test_the_first_clock_says_when_and_the_first_alone_saves():
    for seconds in (0, 1e9):  # of its own clock always, or never
        first = Follower([1, 0, 5])
        keep, store = keeper(first, seconds=seconds)
        keep.on_train_batch_end(0)
        assert first.asked == 1
        assert store.saved == []
    keep, store = keeper(Workers(), seconds=0)
    keep.on_train_batch_end(0)
    assert store.saved == [3]


def test_they_ask_each_other_at_the_step_that_the_first_has_named():
    first = Follower([0, 0, 5])
    keep, _ = keeper(first, seconds=1e9)
    asked = []
    for step in (3, 4, 7, 8, 9):
        keep.position.step = step
        keep.on_train_batch_end(0)
        asked.append(first.asked)
    assert asked == [1, 1, 1, 2, 2]


def test_they_ask_each_other_soon_after_a_run_has_gone_on():
    """However many steps were done before."""

    class First(Follower):
        def gather(self, values):
            self.first = values
            return super().gather(values)

    first = First(None)
    keep, _ = keeper(first, seconds=1e9)
    keep.position.step = 200_005
    keep.restore(Snapshot(200_005, {}, {"callbacks": {}}, {}))
    keep.position.step += 1
    keep.on_train_batch_end(0)
    assert first.first[2] <= 2


@pytest.mark.parametrize("workers", [Workers(), Follower([0, 0, 5])], ids=["alone", "two"])
def test_anyone_may_ask_to_stop(workers):
    keep, _ = keeper(workers, seconds=1e9, stop=lambda: True)
    with pytest.raises(callbacks.Stopped):
        keep.on_train_batch_end(0)
    keep, _ = keeper(Follower([0, 1, 5]), seconds=1e9)  # the first, not this one
    with pytest.raises(callbacks.Stopped):
        keep.on_train_batch_end(0)


class Two(Workers):
    """The first of two; the other one says what it is given."""

    def __init__(self, other):
        super().__init__(0, 2)
        self.other = other

    def texts(self, text):
        return [text, self.other]


def test_what_fails_on_one_fails_on_all():
    with pytest.raises(ValueError, match=r"^worker 1 of 2: the disk is gone$"):
        Two("the disk is gone").together(lambda: 7)
    assert Two("").together(lambda: 7) == 7

    def fails():
        raise OSError("mine")

    with pytest.raises(OSError, match=r"^mine$"):
        Two("the disk is gone").together(fails)


def test_what_the_first_does_alone_may_fail_there_alone():
    done = []
    Two("").first_alone(lambda: done.append(1))
    Follower([]).first_alone(lambda: done.append(2))
    assert done == [1]
    with pytest.raises(ValueError, match="worker 1 of 2: no"):
        Two("no").first_alone(lambda: None)


def test_what_differs_is_named():
    says = r"all workers must have the same keras\. Received: 4 on worker 1, 3 on worker 0"
    with pytest.raises(ValueError, match=says):
        Two('{"python": "3.12", "keras": "4"}').check_equal({"python": "3.12", "keras": "3"})


@pytest.mark.skipif(BACKEND != "torch", reason="of a backend that has no such workers")
def test_a_backend_without_workers():
    with pytest.raises(ValueError, match="Received: KERAS_BACKEND=torch"):
        join(0, ["127.0.0.1:1", "127.0.0.1:2"])
    assert "TF_CONFIG" not in os.environ
