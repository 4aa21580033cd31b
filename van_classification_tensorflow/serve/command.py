"""`van serve`: from its options to a running server, and to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from ..support.cores import cores
from ..support.text import one_line
from .request import ServeRequest

if TYPE_CHECKING:
    from .app import App

_BACKLOG = 2048
_SAME_SIGNAL = 0.1  # seconds in which one may come twice: to the process, and to its group
_SWEEP = 1.0  # seconds between looks at slow connections
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
    listener = _bound(request.host, request.port)  # first: that it is taken is told at once
    with listener, ThreadPoolExecutor(1, "open") as opener:
        opened = opener.submit(application, request)
        server_class = _server_class()  # its modules, while the models are opened
        app = opened.result()
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        server = server_class(app, request, listener)
        for one in app.service.models.all:
            say(f"{one.name}: {one.classifier.name}; {one.chosen.describe()}")
            if one.classifier.notes:
                say(f"{one.name}: {one.classifier.notes}")
        server.announce = partial(_announce, f"http://{shown}:{port}", began)
        server.go()
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
    from .app import App
    from .limits import Admission, Limits, Uploads
    from .metrics import Metrics
    from .models import Models, Served
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
    metrics = Metrics(lambda: admission.count, lambda: uploads.held)
    by_name = request.by_name

    def opened(name: str) -> Served:
        watch = metrics.batches.labels(name).observe
        return Served(name, request.options_of(by_name[name]), request.max_wait / 1000, watch)

    models = Models([opened(name) for name in by_name], opened, request.workers or cores())
    app = App(Service(models, limits, admission, uploads, metrics), request.secret)
    app.tell_models()
    return app


def _server_class() -> Any:
    """Of the server; made here because what it is made from takes a while to import."""
    from uvicorn import Config, Server

    from .connections import KEEP_ALIVE, Connection, stop_listening

    class _Server(Server):
        """uvicorn's, ended without the loss of a request."""

        announce: Any = None

        def __init__(self, app: Any, request: ServeRequest, listener: socket.socket):
            logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # a stranger's bytes no news
            Connection.upload_seconds = request.upload_seconds
            config = Config(
                app,
                http=Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=KEEP_ALIVE,
            )
            super().__init__(config)
            self.app, self.drain, self.listener = app, request.drain, listener
            self._told_at = 0.0
            self._ending: asyncio.Task[None] | None = None

        def go(self) -> None:
            """Serves until the end."""
            with asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner:
                runner.run(self._all())

        async def _all(self) -> None:
            sweeper = asyncio.create_task(self._sweep())
            with _signals(self._end, self._reload):
                await self.serve([self.listener])
            sweeper.cancel()

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.announce is not None:
                self.announce()

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # `_signals` does

        async def _sweep(self) -> None:
            while True:
                await asyncio.sleep(_SWEEP)
                now = asyncio.get_running_loop().time()
                for one in list(self.server_state.connections):
                    one.sweep(now)

        def _end(self) -> None:
            now = time.monotonic()
            if self._ending is not None:
                if now - self._told_at < _SAME_SIGNAL:
                    return
                say("Ended at once, as told twice.")
                os._exit(1)
            say("Ending: requests at work are finished; a second signal ends at once.")
            self.app.draining, self._told_at = True, now
            self._ending = asyncio.create_task(self._drain())

        async def _drain(self) -> None:
            loop = asyncio.get_running_loop()
            await asyncio.sleep(self.drain)
            await stop_listening([self.listener], self.servers)
            while self.server_state.connections:
                for one in list(self.server_state.connections):
                    one.close_if_idle(loop.time())
                await asyncio.sleep(0.02)
            self.should_exit = True

        def _reload(self) -> None:
            self._reloading = asyncio.create_task(_told(self.app))

    return _Server


async def _told(app: Any) -> None:
    """A reload that the error stream is told of."""
    try:
        for one in await app.reload():
            say(f"{one['name']}: {'taken over' if one['changed'] else 'is the same file'}")
    except (ValueError, OSError, ModuleNotFoundError) as error:
        say(f"Not reloaded, the old model serves on: {one_line(error)}")


@contextlib.contextmanager
def _signals(end: Any, reload: Any) -> Iterator[None]:
    """Signals of the process, handled by the loop; nothing where this is no main thread."""
    if threading.current_thread() is not threading.main_thread() or os.name != "posix":
        yield
        return
    loop = asyncio.get_running_loop()
    handled = {**dict.fromkeys(_SIGNALS, end), signal.SIGHUP: reload}
    for number, handler in handled.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
