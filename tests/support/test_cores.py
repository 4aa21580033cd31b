"""NumPy on one thread, for as long as somebody wants it."""

from concurrent.futures import ThreadPoolExecutor

from threadpoolctl import threadpool_info

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
