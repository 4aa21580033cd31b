"""`van serve`: from its options to a running server, and to its end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ..support.cores import cores
from .request import ServeRequest

if TYPE_CHECKING:
    from .app import App


MOST_CONNECTIONS = 4_000
_OTHER_FILES = 100  # that are no connections: models, libraries, what is read


def say(text: str) -> None:
    """A line on the error stream."""
    print(text, file=sys.stderr, flush=True)


def run(request: ServeRequest) -> int:
    """Serves until it is told to end; 0.

    Raises:
        ValueError: Weights cannot be served.
        OSError: The address cannot be listened on, or weights not be opened.
        ModuleNotFoundError: An engine is not installed.
    """
    began = _started()
    _many_files()
    listener = bound(request.host, request.port)  # first: that it is taken is told at once
    with listener, ThreadPoolExecutor(1, "open") as opener, _signals() as reload_asked:
        opened = opener.submit(application, request)
        from .server import GracefulServer  # and FastAPI and uvicorn, while the models are opened

        app = opened.result()
        most = app.service.limits.connections
        if most < MOST_CONNECTIONS:
            say(f"Takes {most} connections: this process may open {_files()} files (ulimit -n).")
        for one in app.service.models.all:
            say(f"{one.name}: {one.classifier.name}; {one.chosen.describe()}")
            if one.classifier.notes:
                say(f"{one.name}: {one.classifier.notes}")
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"

        def started() -> None:
            _announce(address, began)
            if reload_asked:
                server.reload()

        server = GracefulServer(app, listener, request.drain, say, started)
        server.go()
    return 0


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Until the server takes them over: SIGTERM ends the process, SIGHUP is remembered.

    Without it, the first process of a container would hear neither.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread() or os.name != "posix":
        yield asked
        return
    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: os._exit(0)),
        signal.SIGHUP: signal.signal(signal.SIGHUP, lambda number, _: asked.append(number)),
    }
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _announce(address: str, began: float) -> None:
    say(f"Serving at {address}, ready in {time.time() - began:.1f} s; its API: {address}/docs")


def _started() -> float:
    """When this process was started, where the system tells; else now."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        with open("/proc/uptime", encoding="ascii") as file:
            up = float(file.read().split()[0])
        return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")
    return time.time()


def _files() -> int:
    """How many this process may have open."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if most != resource.RLIM_INFINITY:
            return most
    return sys.maxsize


def _many_files() -> None:
    """As many open files as the system lets this process have: each connection is one."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def bound(host: str, port: int) -> socket.socket:
    """A socket that has the address, and does not listen yet."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, proto, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    one = socket.socket(family, kind, proto)
    try:
        if os.name == "posix":
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(address)
    except OSError as error:
        one.close()
        raise OSError(f"cannot listen on {host}, port {port}: {error.strerror}") from error
    return one


def application(request: ServeRequest, no_reload: str = "") -> App:
    """The ASGI application, its models open and warm.

    Args:
        request: What is served.
        no_reload: As of `App`.

    Raises:
        ValueError: Weights cannot be served.
        OSError: They cannot be opened.
        ModuleNotFoundError: An engine is not installed.
    """
    from .metrics import Metrics
    from .models import Models, Served, give_back_memory

    metrics = Metrics(lambda: admission.count, lambda: uploads.held)
    by_name = request.by_name

    def opened(name: str) -> Served:
        watch = metrics.batches.labels(name).observe
        return Served(name, request.options_of(by_name[name]), request.max_wait / 1000, watch)

    models = Models([opened(name) for name in by_name], opened, request.workers or cores())
    # Only now: `run` imports FastAPI meanwhile.
    from .app import App
    from .limits import Admission, Limits, Uploads
    from .service import Service

    limits = Limits(
        bytes=request.max_bytes,
        pixels=request.max_pixels,
        pictures=request.max_pictures,
        upload_seconds=request.upload_seconds,
        timeout=request.timeout,
        queue=request.queue,
        connections=max(1, min(MOST_CONNECTIONS, _files() - _OTHER_FILES)),
    )
    admission, uploads = Admission(limits), Uploads(limits.uploads, metrics.bytes.inc)
    service = Service(models, limits, admission, uploads, metrics)
    app = App(service, request.secret, request.hosts, no_reload)
    app.tell_models()
    give_back_memory()
    return app
