"""The server's addresses: who may ask what, and who answers."""

from __future__ import annotations

import asyncio
import hmac
import re
import sys
import time
import traceback
from base64 import b64encode
from collections.abc import Awaitable, Callable
from functools import cached_property
from hashlib import sha256
from importlib.resources import files
from typing import Any

from .. import __version__
from ..explanation.last_stage import LAST_STAGE_METHODS
from ..images.decode import FORMATS
from ..support.text import one_line, shown
from . import protocol
from .batching import GoneError
from .http import Headers, HttpError, Receive, Reply, Request, Scope, Send, json_reply, send_reply
from .models import Served
from .openapi import DOCUMENT, docs_page
from .predict import predict
from .service import Service

Handler = Callable[[Request], Awaitable[Reply]]
_CLOSE: Headers = ((b"connection", b"close"),)
_CALM = 0.1  # seconds before a refusal, lest who asks again at once takes the cores from the others
_HTML = b"text/html; charset=utf-8"


class App:
    """The ASGI application.

    Args:
        service: What it serves.
        token: That callers must send; None: none.

    Attributes:
        draining: Whether the server is about to end: not ready any more, and each answer the last
            one of its connection.
    """

    def __init__(self, service: Service, token: str | None):
        self.service = service
        self._token = None if token is None else token.encode()
        self.draining = False
        self._pages: dict[str, tuple[str, dict[str, Handler]]] = {}
        self._patterns: list[tuple[str, re.Pattern[str], dict[str, Handler]]] = []
        for path, handlers in self._routes().items():
            if "{" in path:
                pattern = re.compile(re.sub(r"\\{\w+\\}", "([^/]+)", re.escape(path)))
                self._patterns.append((path, pattern, handlers))
            else:
                self._pages[path] = path, handlers

    def _routes(self) -> dict[str, dict[str, Handler]]:
        model = "/v2/models/{model}"
        routes: dict[str, dict[str, Handler]] = {
            "/": {"GET": self._page},
            "/about": {"GET": self._about},
            "/labels": {"GET": self._labels},
            "/predict": {"POST": self._predict},
            "/reload": {"POST": self._reload},
            "/metrics": {"GET": self._metrics},
            "/docs": {"GET": self._docs},
            "/openapi.json": {"GET": self._openapi},
            "/v2": {"GET": self._server_metadata},
            "/v2/health/live": {"GET": self._live},
            "/v2/health/ready": {"GET": self._ready},
        }
        for path in (model, f"{model}/versions/{{version}}"):
            routes[path] = {"GET": self._model_metadata}
            routes[f"{path}/ready"] = {"GET": self._model_ready}
            routes[f"{path}/infer"] = {"POST": self._infer}
        return routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            return
        began = time.perf_counter()
        request = Request(scope, receive)
        try:
            reply = await self._answer(request)
        except HttpError as error:
            reply = error.reply
            if error.status == 429:
                await asyncio.sleep(_CALM)
            if error.reason:
                self.service.metrics.refusals.labels(error.reason).inc()
        except GoneError:  # nobody will read it
            self.service.metrics.refusals.labels("client gone").inc()
            reply = HttpError(499, "the client has gone").reply
        except Exception:  # a mistake of this program: the others go on
            traceback.print_exc(file=sys.stderr)
            reply = HttpError(500, "a mistake of the server; its log says more").reply
        closing = _CLOSE if self.draining and (b"connection", b"close") not in reply.headers else ()
        await send_reply(send, reply, closing)
        self.service.metrics.requests.labels(request.path or "other", str(reply.status)).inc()
        if request.path:
            self.service.metrics.seconds.labels(request.path).observe(time.perf_counter() - began)

    async def _answer(self, request: Request) -> Reply:
        scope = request.scope
        path, method = scope["path"], scope["method"]
        found = self._pages.get(path)
        if found is None:
            for name, pattern, handlers in self._patterns:
                if match := pattern.fullmatch(path):
                    found, request.wild = (name, handlers), match.groups()
                    break
        if found is None:
            self._check_token(request)
            raise HttpError(404, f"there is nothing at {shown(path)}; GET /docs says what there is")
        request.path, handlers = found
        if request.path not in _OPEN:
            self._check_token(request)
        handler = handlers.get("GET" if method == "HEAD" else method)
        if handler is None:
            allowed = ", ".join(handlers)
            raise HttpError(405, f"{request.path} takes {allowed}", ((b"allow", allowed.encode()),))
        return await handler(request)

    def _may(self, request: Request) -> bool:
        if self._token is None:
            return True
        kind, _, token = request.header(b"authorization").partition(" ")
        given = token.strip().encode("latin-1")
        return kind.lower() == "bearer" and hmac.compare_digest(given, self._token)

    def _check_token(self, request: Request) -> None:
        if not self._may(request):
            raise HttpError(
                401,
                "a token is needed: Authorization: Bearer TOKEN",
                ((b"www-authenticate", b"Bearer"),),
                "no token",
            )

    # --- Addresses ---

    async def _page(self, request: Request) -> Reply:
        page, policy = self._page_and_policy
        return Reply(200, page, _HTML, policy)

    @cached_property
    def _page_and_policy(self) -> tuple[bytes, Headers]:
        return _with_policy(files(__package__).joinpath("page.html").read_bytes())

    async def _docs(self, request: Request) -> Reply:
        page, policy = self._docs_and_policy
        return Reply(200, page, _HTML, policy)

    @cached_property
    def _docs_and_policy(self) -> tuple[bytes, Headers]:
        return _with_policy(docs_page().encode())

    async def _openapi(self, request: Request) -> Reply:
        return json_reply(DOCUMENT)

    async def _about(self, request: Request) -> Reply:
        limits = self.service.limits
        said: dict[str, Any] = {
            "version": __version__,
            "token_required": self._token is not None,
            "limits": {
                "bytes": limits.bytes,
                "pixels": limits.pixels,
                "pictures": limits.pictures,
            },
        }
        if self._may(request):
            models = self.service.models.all
            said["formats"] = list(FORMATS)
            said["explain"] = list(LAST_STAGE_METHODS) if any(one.methods for one in models) else []
            said["models"] = [one.about() for one in models]
        return json_reply(said)

    async def _labels(self, request: Request) -> Reply:
        model = self.service.model(request.query(("model",)).get("model", ""))
        return json_reply({"labels": [one.name for one in model.classifier.classes]})

    async def _predict(self, request: Request) -> Reply:
        return await predict(self.service, request)

    async def _metrics(self, request: Request) -> Reply:
        return Reply(200, self.service.metrics.text(), self.service.metrics.kind)

    async def _reload(self, request: Request) -> Reply:
        if self._token is None:
            raise HttpError(
                403, "only a server with a token can be told to reload; or send it SIGHUP"
            )
        try:
            return json_reply({"reloaded": await self.reload()})
        except (ValueError, OSError, ModuleNotFoundError) as error:
            text = f"the old model serves on: {one_line(error)}"
            raise HttpError(409, text, reason="reload refused") from None

    async def reload(self) -> list[dict[str, Any]]:
        """Takes over every file that is another one; what became of each model.

        Raises:
            ValueError: A new file is refused; those before it have been taken over.
            OSError: It cannot be opened.
        """
        said = []
        for model in self.service.models.all:
            try:
                changed = await self.service.models.reload(model.name)
            except Exception:
                self.service.metrics.reloads.labels(model.name, "refused").inc()
                raise
            if changed:
                self.service.metrics.reloads.labels(model.name, "taken over").inc()
                self.tell_models()
            said.append({"name": model.name, "changed": changed})
        return said

    def tell_models(self) -> None:
        """Says in the metrics which models there are now."""
        self.service.metrics.models.clear()
        for one in self.service.models.all:
            about = one.about()
            labels = (one.name, about["title"], about["engine"], about["precision"])
            self.service.metrics.models.labels(*labels).set(1)

    # --- The Open Inference Protocol ---

    async def _server_metadata(self, request: Request) -> Reply:
        return protocol.server_metadata()

    async def _live(self, request: Request) -> Reply:
        return json_reply({"live": True})

    async def _ready(self, request: Request) -> Reply:
        self._check_ready()
        return json_reply({"ready": True})

    def _check_ready(self) -> None:
        if self.draining:
            raise HttpError(503, "the server is about to end", ((b"retry-after", b"5"),))

    def _named(self, request: Request) -> Served:
        name, *version = request.wild
        model = self.service.model(name)
        if version and version[0] != protocol.VERSION:
            raise HttpError(404, f"the only version is 1. Received: {shown(version[0])}")
        return model

    async def _model_metadata(self, request: Request) -> Reply:
        return protocol.model_metadata(self._named(request))

    async def _model_ready(self, request: Request) -> Reply:
        model = self._named(request)
        self._check_ready()
        return json_reply({"name": model.name, "ready": True})

    async def _infer(self, request: Request) -> Reply:
        return await protocol.infer(self.service, request, self._named(request))


# What answers without the token. `GET /about` then says less.
_OPEN = frozenset({"/", "/about", "/docs", "/openapi.json"}) | {
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
}


def _with_policy(page: bytes) -> tuple[bytes, Headers]:
    """A page, and what a browser may load and run of it: nothing but its own script and style."""

    def hashes(tag: bytes) -> str:
        found = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), page, re.DOTALL)
        made = (b64encode(sha256(one).digest()).decode() for one in found)
        return " ".join(f"'sha256-{one}'" for one in made) or "'none'"

    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {hashes(b'script')}",
            f"style-src {hashes(b'style')}",
            "img-src 'self' blob: data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    headers = (
        (b"content-security-policy", policy.encode()),
        (b"referrer-policy", b"no-referrer"),
    )
    return page, headers
