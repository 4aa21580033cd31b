"""The error stream of the `van` command without what TensorFlow, JAX and LiteRT say of themselves.

They write it from C++ to the file descriptor 2, partly before any setting is read. So Python's
error stream gets a descriptor of its own, and from the moment that one of them is loaded, another
process stands behind descriptor 2 and passes on what is no chatter: it outlives a crash, whose last
words are what a user needs.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

_NATIVE = ("tensorflow", "jax", "ai_edge_litert")
# Information and warnings in the form of their log, and two errors of every machine without a GPU.
_CHATTER = "|".join(
    (
        r"WARNING: All log messages before absl::InitializeLog",
        r"To enable the following instructions: ",  # the second line of one
        r"[IW]\d{4} \d\d:\d\d:\S+ +\d+ \S+:\d+\] ",
        r"E\d{4} .*(Unable to register cu\w+ factory|failed call to cuInit)",
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\S+: [IW] ",
        r"INFO: (Created|Initialized) TensorFlow Lite ",
        r"fully_quantize: \d, inference_type: ",  # of the converter, in int8
    )
)
_FILTER = """
import re, sys
chatter = re.compile(sys.argv[1].encode())
for line in sys.stdin.buffer:
    if not chatter.match(line):
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
"""


def quiet_start() -> None:
    """For the process of the command only. Who has set `TF_CPP_MIN_LOG_LEVEL` sees everything."""
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    # Not where the command is called from Python, with whatever stands there.
    stream = sys.__stderr__
    if stream is not None and sys.stderr is stream and stream.fileno() == 2:
        own = os.dup(2)
        sys.stderr = open(own, "w", 1, stream.encoding, stream.errors)  # noqa: SIM115
        sys.meta_path.insert(0, _AtImport())


class _AtImport:
    """Finds no module: puts the filter there when the first of `_NATIVE` is looked for."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name in _NATIVE:
            import subprocess

            sys.meta_path.remove(self)
            command = [sys.executable, "-E", "-S", "-c", _FILTER, _CHATTER]
            # In a session of its own: Ctrl-C is for the command, and this ends with it.
            self.started = started = subprocess.Popen(  # noqa: S603 - Python itself
                command, stdin=subprocess.PIPE, stdout=sys.stderr, start_new_session=True
            )
            assert started.stdin is not None  # noqa: S101 - asked for
            os.dup2(started.stdin.fileno(), 2)
            started.stdin.close()


# What is switched here belongs to the process: two threads would leave it as neither found it.
_one_at_a_time = threading.RLock()


def _begin_anew() -> None:
    """In a forked process there is no thread that would give the lock back."""
    global _one_at_a_time
    _one_at_a_time = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Without what libraries log or warn of where it is known, and nothing to the user."""
    import logging
    import warnings

    with _one_at_a_time:
        before, handlers = logging.root.manager.disable, logging.root.handlers[:]
        logging.disable(logging.WARNING)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(before)
            # The module's own `logging.warning` makes one where there is none.
            logging.root.handlers[:] = handlers


@contextmanager
def quiet_converter() -> Iterator[None]:
    """Without what converters log or warn of; their progress not on the standard output."""
    with _one_at_a_time, redirect_stdout(sys.stderr), without_warnings():
        yield
