"""The server's addresses: who may ask what, and who answers."""

from __future__ import annotations

import asyncio
import hmac
import re
import sys
import time
import traceback
from base64 import b64encode
from collections.abc import Collection
from functools import cached_property
from hashlib import sha256
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from .. import __version__
from ..explanation.last_stage import LAST_STAGE_METHODS
from ..images.decode import FORMATS
from ..support.text import one_line, shown
from . import protocol
from .batching import GoneError
from .documents import ABOUT, SAID, NoParameters, OfModel, docs_page, secured
from .http import FOLLOWED, HttpError, Json, check_query
from .predict import Asked, predict
from .request import is_local
from .service import Service

_CALM = 0.1  # seconds before a refusal, lest who asks again at once takes the cores from the others
_CLOSE = (b"connection", b"close")
_ALWAYS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
# What answers without the token. `GET /about` then says less.
_OPEN = frozenset(
    {"/", "/about", "/docs", "/openapi.json", "/v2", "/v2/health/live", "/v2/health/ready"}
)
_MODEL = "/v2/models/{model}"
_VERSION = f"{_MODEL}/versions/{protocol.VERSION}"  # the only one


class App:
    """The ASGI application: FastAPI's, behind the check of the token, and counted.

    Args:
        service: What it serves.
        token: That callers must send; None: none.
        hosts: Names in the address of a request that are answered; None: all.
        no_reload: Why it cannot be told to reload; "" where it can.

    Attributes:
        draining: Whether the server is about to end: not ready any more, and each answer the last
            one of its connection.
        ending: Whether it takes nothing new any more behind what is at work.
        web: Of FastAPI.
    """

    def __init__(
        self,
        service: Service,
        token: str | None,
        hosts: Collection[str] | None = None,
        no_reload: str = "",
    ):
        self.service, self._hosts, self._no_reload = service, hosts, no_reload
        self._token = None if token is None else token.encode()
        self.draining = self.ending = False
        of_errors = (HTTPException, RequestValidationError, GoneError, Exception)
        self.web = FastAPI(
            title="van serve",
            version=__version__,
            description=ABOUT,
            openapi_url=None,
            redirect_slashes=False,
            exception_handlers=dict.fromkeys(of_errors, self._refusal),
        )
        self._add_routes()

    def _add_routes(self) -> None:
        for method, path, name, handler in (
            ("GET", "/", "page", self._page),
            ("GET", "/about", "about", self._about),
            ("GET", "/labels", "labels", self._labels),
            ("POST", "/predict", "predict", self._predict),
            ("POST", "/reload", "reload", self._reload),
            ("GET", "/metrics", "metrics", self._metrics),
            ("GET", "/docs", "docs", self._docs),
            ("GET", "/openapi.json", "openapi", self._openapi),
            ("GET", "/v2", "server", self._server),
            ("GET", "/v2/health/live", "live", self._live),
            ("GET", "/v2/health/ready", "ready", self._ready),
            ("GET", _MODEL, "model", self._model),
            ("GET", f"{_MODEL}/ready", "model_ready", self._model_ready),
            ("POST", f"{_MODEL}/infer", "infer", self._infer),
            ("GET", _VERSION, "model", self._model),
            ("GET", f"{_VERSION}/ready", "model_ready", self._model_ready),
            ("POST", f"{_VERSION}/infer", "infer", self._infer),
        ):
            unique = f"{name}_version" if path.startswith(_VERSION) else name
            self.web.add_api_route(
                path, handler, methods=[method], operation_id=unique, **SAID[name]
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            return
        began, status = time.perf_counter(), 500
        if scope["method"] == "HEAD":  # whose body the connection leaves out
            scope = {**scope, "method": "GET"}

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status, headers = message["status"], [*message["headers"], *_ALWAYS]
                if self.draining and _CLOSE not in headers and not _is_followed(scope):
                    headers.append(_CLOSE)
                message["headers"] = headers
            await send(message)

        try:
            self._check_host(scope)
            self._check_token(scope)
            if scope["path"] == "/predict":
                self.service.admission.check()  # again later: a refusal costs least here
            check_query(scope["query_string"])
            await self.web(scope, receive, answer)
        except HttpError as error:
            refusal = await self._refusal(Request(scope), error)
            await refusal(scope, receive, answer)
        except Exception:  # a mistake of this program, which has been answered: the others go on
            traceback.print_exc(file=sys.stderr)
        self._count(scope, status, time.perf_counter() - began)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        """In the metrics, where all models are one address."""
        found: Any = scope.get("route")  # of Starlette
        if found is None:
            known = (one for one in self.web.routes if one.matches(scope)[0] != Match.NONE)
            found = next(known, None)
        path = found.path if found else "other"
        self.service.metrics.requests.labels(path, str(status)).inc()
        if found:
            self.service.metrics.seconds.labels(path).observe(seconds)

    async def _refusal(self, request: Request, error: Exception) -> Response:
        """What is said of an error, and counted."""
        if not isinstance(error, HttpError):
            error = self._understood(request, error)
        if error.status_code == 429:
            await asyncio.sleep(_CALM)
        if error.reason:
            self.service.metrics.refusals.labels(error.reason).inc()
        return Json({"error": error.detail}, error.status_code, error.headers)

    def _understood(self, request: Request, error: Exception) -> HttpError:
        """An error of FastAPI, or of this program, as one of ours."""
        if isinstance(error, RequestValidationError):
            return HttpError(400, self._wrong_parameter(request, error.errors()[0]))
        if isinstance(error, GoneError):  # nobody will read it
            return HttpError(499, "the client has gone", reason="client gone")
        if not isinstance(error, HTTPException):
            return HttpError(500, "a mistake of the server; its log says more")
        path, text = shown(request.scope["path"]), error.detail
        if error.status_code == 404:
            text = f"there is nothing at {path}; GET /docs says what there is"
        elif error.status_code == 405:
            text = f"{path} takes {(error.headers or {})['Allow']}"
        return HttpError(error.status_code, text, error.headers)

    def _wrong_parameter(self, request: Request, found: dict[str, Any]) -> str:
        """Of one that FastAPI refused: its document says what is allowed."""
        name, path = found["loc"][-1], request.scope["route"].path
        told = self.web.openapi()["paths"][path][request.method.lower()].get("parameters", ())
        allowed = {one["name"]: one["description"] for one in told if one["in"] == "query"}
        if name in allowed:
            return f"`{name}`: {allowed[name]} Received: {shown(found['input'])}"
        names = ", ".join(allowed) or "none"
        return f"parameters allowed here: {names}. Received: {shown(name)}"

    def _may(self, scope: Scope) -> bool:
        if self._token is None:
            return True
        kind, _, token = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        return kind.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)

    def _check_token(self, scope: Scope) -> None:
        if scope["path"] not in _OPEN and not self._may(scope):
            raise HttpError(
                401,
                "a token is needed: Authorization: Bearer TOKEN",
                {"WWW-Authenticate": "Bearer"},
                "no token",
            )

    def _check_host(self, scope: Scope) -> None:
        """Against pages of other sites whose name is made to lead here: they could read answers."""
        if self._hosts is None:
            return
        said = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        name = re.sub(r":\d*$", "", said).strip("[]").lower()
        if name and not is_local(name) and name not in self._hosts:
            raise HttpError(
                403,
                f"this server is not {shown(said)}: ask 127.0.0.1, or start it with --token-file, "
                "or with --allow-host and that name",
                reason="wrong host",
            )

    # --- Addresses ---

    async def _page(self) -> Response:
        return self._page_with_policy

    @cached_property
    def _page_with_policy(self) -> Response:
        return _with_policy(files(__package__).joinpath("page.html").read_bytes())

    async def _docs(self) -> Response:
        return self._docs_with_policy

    @cached_property
    def _docs_with_policy(self) -> Response:
        return _with_policy(docs_page(self.web.openapi()).encode())

    async def _openapi(self) -> Response:
        return Json(secured(self.web.openapi(), _OPEN))

    async def _about(self, request: Request) -> Response:
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
        if self._may(request.scope):
            models = self.service.models.all
            said["formats"] = list(FORMATS)
            said["explain"] = list(LAST_STAGE_METHODS) if any(one.methods for one in models) else []
            said["models"] = [one.about() for one in models]
        return Json(said)

    async def _labels(self, asked: Annotated[OfModel, Query()]) -> Response:
        model = self.service.model(asked.model)
        return Json({"labels": [one.name for one in model.classifier.classes]})

    async def _predict(self, request: Request, asked: Annotated[Asked, Query()]) -> Response:
        return await predict(self.service, request, asked)

    async def _metrics(self) -> Response:
        metrics = self.service.metrics
        return Response(metrics.text(), media_type=metrics.kind)

    async def _reload(self) -> Response:
        if self._no_reload:
            raise HttpError(403, self._no_reload)
        if self._token is None:
            raise HttpError(
                403, "only a server with a token can be told to reload; or send it SIGHUP"
            )
        said = await self.reload()
        wrong = [f"{one['name']}: {one['error']}" for one in said if one["error"]]
        if not wrong:
            return Json({"reloaded": said})
        self.service.metrics.refusals.labels("reload refused").inc()
        text = f"the old model serves on: {'; '.join(wrong)}"
        return Json({"error": text, "reloaded": said}, 409)

    async def reload(self) -> list[dict[str, Any]]:
        """Takes over every file that is another one, whatever becomes of the others.

        Returns:
            Of each model its name, whether it is another one now, and why it could not be; then
            the old one serves on.
        """
        said = []
        for model in self.service.models.all:
            error, changed = None, False
            try:
                changed = await self.service.models.reload(model.name)
            except Exception as refused:  # whatever opening a file of others may raise
                error = one_line(refused)
            outcome = "refused" if error else "taken over"
            if changed or error:
                self.service.metrics.reloads.labels(model.name, outcome).inc()
                self.tell_models()
            said.append({"name": model.name, "changed": changed, "error": error})
        return said

    def tell_models(self) -> None:
        """Says in the metrics which models there are now."""
        self.service.metrics.models.clear()
        for one in self.service.models.all:
            about = one.about()
            labels = (one.name, about["title"], about["engine"], about["precision"])
            self.service.metrics.models.labels(*labels).set(1)

    # --- The Open Inference Protocol ---

    async def _server(self) -> Response:
        return protocol.server_metadata()

    async def _live(self) -> Response:
        return Json({"live": True})

    async def _ready(self) -> Response:
        self._check_ready()
        return Json({"ready": True})

    def _check_ready(self) -> None:
        if self.draining:
            raise HttpError(503, "the server is about to end", {"Retry-After": "5"})

    async def _model(self, model: str) -> Response:
        return protocol.model_metadata(self.service.model(model))

    async def _model_ready(self, model: str) -> Response:
        name = self.service.model(model).name
        self._check_ready()
        return Json({"name": name, "ready": True})

    async def _infer(
        self, request: Request, model: str, _: Annotated[NoParameters, Query()]
    ) -> Response:
        return await protocol.infer(self.service, request, self.service.model(model))


def _is_followed(scope: Scope) -> bool:
    asked = scope.get(FOLLOWED)
    return asked is not None and asked()


def _with_policy(page: bytes) -> Response:
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
    headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}
    return Response(page, headers=headers, media_type="text/html")
