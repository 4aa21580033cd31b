"""NumPy on one thread, for as long as somebody wants it."""

import threading

from threadpoolctl import threadpool_info

from van_classification_tensorflow.support.cores import numpy_on_one_thread


def _threads():
    return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}


def test_threads_that_come_and_go_leave_the_limit_as_it_was():
    before, first_is_in, second_is_in = _threads(), threading.Event(), threading.Event()
    seen = []

    def enter():
        with numpy_on_one_thread():
            first_is_in.set()
            second_is_in.wait()

    first = threading.Thread(target=enter)

    def second():
        first_is_in.wait()
        with numpy_on_one_thread():
            second_is_in.set()
            first.join()  # which leaves while this one is inside
            seen.append(_threads())

    other = threading.Thread(target=second)
    first.start()
    other.start()
    other.join()
    assert seen == [{1}]
    assert _threads() == before
