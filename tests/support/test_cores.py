"""How many cores there are; NumPy on one thread, for as long as somebody wants it."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from threadpoolctl import threadpool_info

from van_classification_tensorflow.support import cores
from van_classification_tensorflow.support.cores import numpy_on_one_thread


def _threads():
    return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}


def test_threads_that_come_and_go_leave_the_limit_as_it_was():
    before = _threads()

    def enter(_):
        with numpy_on_one_thread():
            return _threads()

    with ThreadPoolExecutor(4) as pool:
        assert all(seen == {1} for seen in pool.map(enter, range(40)))
    assert _threads() == before


@pytest.mark.parametrize(
    ("limit", "most"),
    [
        ("max 100000", None),
        ("100000 100000", 1),
        ("150000 100000", 2),
        ("1 100000", 1),
        ("x", None),
    ],
)
def test_the_limit_of_a_container(limit, most, tmp_path, monkeypatch):
    file = tmp_path / "cpu.max"
    file.write_text(f"{limit}\n")
    monkeypatch.setattr(cores, "_LIMIT", file)
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert cores.cores() == min(there, most or there)
    file.unlink()
    assert cores.cores() == there
