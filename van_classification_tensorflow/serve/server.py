"""uvicorn's server, ended without the loss of a request, and told to reload."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from uvicorn import Config, Server

from .app import App
from .connections import KEEP_ALIVE, Connection, stop_listening

_BACKLOG = 2048  # connections that the system holds until they are taken
_SAME_SIGNAL = 0.1  # seconds in which one may come twice: to the process, and to its group
_SWEEP = 1.0  # seconds between looks at slow connections
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class GracefulServer(Server):
    """Answers on a socket until it is told to end.

    Args:
        app: What answers.
        listener: A socket that has its address.
        drain: Seconds in which new requests are still answered, once it is told to end.
        say: Tells the operator something.
        started: Called when it listens.
    """

    def __init__(
        self,
        app: App,
        listener: socket.socket,
        drain: float,
        say: Callable[[str], None],
        started: Callable[[], None] = lambda: None,
    ):
        # Of strangers' bytes, which are answered, nothing is said.
        for name in ("uvicorn", "python_multipart"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        super().__init__(
            Config(
                app,
                interface="asgi3",
                http=Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                timeout_keep_alive=KEEP_ALIVE,
            )
        )
        self.app, self.listener, self.drain = app, listener, drain
        self.say, self._tell_started = say, started
        self._told_at = 0.0
        self._ending: asyncio.Task[None] | None = None
        self._reloading: asyncio.Task[None] | None = None

    def go(self) -> None:
        """Serves until the end."""
        with asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner:
            runner.run(self._all())

    async def _all(self) -> None:
        self.loop = asyncio.get_running_loop()
        sweeper = asyncio.create_task(self._sweep())
        with self._signals():
            await self.serve([self.listener])
        sweeper.cancel()

    async def startup(self, sockets: Any = None) -> None:
        """Of uvicorn."""
        await super().startup(sockets)
        self._tell_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Of uvicorn, which would close idle connections at once."""
        yield

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Signals of the process, handled by the loop; nothing where this is no main thread."""
        if threading.current_thread() is not threading.main_thread() or os.name != "posix":
            yield
            return
        handled = {**dict.fromkeys(_SIGNALS, self.end), signal.SIGHUP: self.reload}
        for number, handler in handled.items():
            self.loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handled:
                self.loop.remove_signal_handler(number)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP)
            for one in self._connections():
                one.sweep(self.loop.time())

    def _connections(self) -> list[Connection]:
        found: Any = self.server_state.connections
        return list(found)

    def end(self) -> None:
        """Begins the end; told twice, ends the process at once."""
        now = self.loop.time()
        if self._ending is None:
            self.say("Ending: requests at work are finished; a second signal ends at once.")
            self.app.draining, self._told_at = True, now
            self._ending = asyncio.create_task(self._drain())
        elif now - self._told_at > _SAME_SIGNAL:
            self.say("Ended at once, as told twice.")
            os._exit(1)

    async def _drain(self) -> None:
        await asyncio.sleep(self.drain)
        await stop_listening(self.listener, self.servers)
        self.app.ending = True
        while self.server_state.connections:
            for one in self._connections():
                one.close_if_idle(self.loop.time())
            await asyncio.sleep(0.02)
        self.should_exit = True

    def reload(self) -> None:
        """Takes over new files, and tells the operator."""
        self._reloading = asyncio.create_task(self._reload())

    async def _reload(self) -> None:
        for one in await self.app.reload():
            said = "taken over" if one["changed"] else "the same file"
            if one["error"]:
                said = f"not reloaded, the old model serves on: {one['error']}"
            self.say(f"{one['name']}: {said}")
