"""`van serve`: from its options to a running server, and to its end."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from ..support.cores import cores
from .request import ServeRequest

if TYPE_CHECKING:
    from .app import App


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
    _many_connections()
    listener = _bound(request.host, request.port)  # first: that it is taken is told at once
    with listener, ThreadPoolExecutor(1, "open") as opener:
        opened = opener.submit(application, request)
        from .server import GracefulServer  # and FastAPI and uvicorn, while the models are opened

        app = opened.result()
        for one in app.service.models.all:
            say(f"{one.name}: {one.classifier.name}; {one.chosen.describe()}")
            if one.classifier.notes:
                say(f"{one.name}: {one.classifier.notes}")
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        started = partial(_announce, address, began)
        GracefulServer(app, listener, request.drain, say, started).go()
    return 0


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


def _many_connections() -> None:
    """As many open files as the system lets this process have: each connection is one."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _bound(host: str, port: int) -> socket.socket:
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


def application(request: ServeRequest) -> App:
    """The ASGI application, its models open and warm.

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
    )
    admission, uploads = Admission(limits), Uploads(limits.uploads)
    app = App(Service(models, limits, admission, uploads, metrics), request.secret)
    app.tell_models()
    give_back_memory()
    return app
