"""What the document of the addresses (OpenAPI) says that their code does not, and a page of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from typing import Any

from fastapi.responses import HTMLResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from .. import __version__

ABOUT = 'Visual Attention Network: pictures in, classes out. Errors are {"error": "one line"}.'
_STATUSES = {
    400: "What is asked is not understood, or a parameter is not allowed.",
    401: "The token is missing or wrong.",
    403: "The server has no token, so nobody may do this.",
    404: "There is no such model.",
    408: "The body took too long to arrive.",
    409: "The new file is refused; the old model serves on.",
    413: "Too many bytes or pictures.",
    415: "Not a type of body that is taken, or a compressed one.",
    422: "No picture could be read; `results` says why of each.",
    429: "The queue is full. Retry-After says when to try again.",
    503: "It waited too long, or the server is about to end. Retry-After says when to try again.",
}
_OF_WORK = (400, 401, 404, 408, 413, 415, 422, 429, 503)


# --- Parameters: FastAPI refuses every other one ---


class NoParameters(BaseModel):
    """Of an address that takes none."""

    model_config = ConfigDict(extra="forbid")


OF_MODEL: str = Field("", description="By default the first one.")


class OfModel(NoParameters):
    """Of an address that is about one of the models."""

    model: str = OF_MODEL


# --- Answers. They are only described here: what is sent is not checked again. ---


class Error(BaseModel):
    error: str


class Prediction(BaseModel):
    label: str
    wnid: str | None
    index: int
    probability: float = Field(ge=0, le=1)


class ClassOfMap(BaseModel):
    index: int
    label: str


class Crop(BaseModel):
    """What the model saw, in pixels of the upright picture."""

    left: float
    top: float
    width: float
    height: float


class Values(BaseModel):
    height: int
    width: int
    values: list[float]


class Explanation(BaseModel):
    method: str
    layer: str
    of_class: ClassOfMap = Field(alias="class")
    crop: Crop
    map: Values
    empty: bool
    note: str


class Result(BaseModel):
    """Of one picture; `error` says why it has no answer."""

    name: str | None
    width: int | None
    height: int | None
    error: str | None
    predictions: list[Prediction]
    explanation: Explanation | None = None


class Results(BaseModel):
    """Of all pictures, in their order."""

    model: str
    results: list[Result]


class Labels(BaseModel):
    labels: list[str]


class Changed(BaseModel):
    """Of a model; `error` says why the old one serves on."""

    name: str
    changed: bool
    error: str | None


class Reloaded(BaseModel):
    reloaded: list[Changed]


class Limits(BaseModel):
    bytes: int
    pixels: int
    pictures: int


class About(BaseModel):
    """What strangers may know; with the token there is more."""

    version: str
    token_required: bool
    limits: Limits


class Tensor(BaseModel):
    """Of the Open Inference Protocol."""

    name: str
    datatype: str
    shape: list[int]
    data: Any = None
    parameters: dict[str, Any] = {}


class Inferred(BaseModel):
    """Of the Open Inference Protocol."""

    model_config = ConfigDict(protected_namespaces=())
    model_name: str
    model_version: str
    outputs: list[Tensor]


# --- Of each address ---

_FILE = {"type": "string", "format": "binary"}
_TENSORS = {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}}


def _body(schemas: dict[str, Any]) -> dict[str, Any]:
    content = {kind: {"schema": schema} for kind, schema in schemas.items()}
    return {"requestBody": {"required": True, "content": content}}


_PICTURES = {
    "description": "One picture as it is, or a form with a file for each. Each is answered by "
    "itself: of one that cannot be read `error` says why, and the others have their answers. 200 "
    "where one at least was answered.",
    **_body(
        {
            "image/*": _FILE,
            "application/octet-stream": _FILE,
            "multipart/form-data": {"type": "object", "additionalProperties": _FILE},
        }
    ),
}
_INPUT = {
    "description": "One input: `images`, prepared as `GET /about` says, or `pictures`, encoded "
    "files (BYTES; in JSON as base64). Tensors as JSON, or binary behind it "
    "(Inference-Header-Content-Length).",
    **_body(
        {
            "application/json": {"type": "object", "properties": {"inputs": _TENSORS}},
            "application/octet-stream": _FILE,
        }
    ),
}


def _said(
    summary: str, answer: Any = None, statuses: tuple[int, ...] = (), **more: Any
) -> dict[str, Any]:
    """What FastAPI is told of an address, beside its path and its handler.

    Args:
        summary: One line.
        answer: A model of the JSON, or a class of another response.
        statuses: Of what may go wrong.
        more: What FastAPI does not find out.
    """
    kind = "response_class" if answer in (HTMLResponse, PlainTextResponse) else "response_model"
    known = {one: {"model": Error, "description": _STATUSES[one]} for one in statuses}
    return {
        "summary": summary,
        kind: answer,
        "responses": {**known, "default": {"model": Error, "description": "Any other error."}},
        "openapi_extra": more,
    }


SAID = {
    "page": _said("The page for people.", HTMLResponse),
    "predict": _said("Name what is in one picture or several.", Results, _OF_WORK, **_PICTURES),
    "about": _said("Limits and models; without the token only limits.", About),
    "labels": _said("All classes.", Labels, (401, 404)),
    "reload": _said("Take over files that were replaced.", Reloaded, (401, 403, 409)),
    "metrics": _said("For Prometheus.", PlainTextResponse, (401,)),
    "docs": _said("This page.", HTMLResponse),
    "openapi": _said("This document."),
    "server": _said("What the server is."),
    "live": _said("Whether it runs."),
    "ready": _said("Whether it takes requests.", None, (503,)),
    "model": _said("Its inputs and outputs.", None, (401, 404)),
    "model_ready": _said("Whether it takes requests.", None, (401, 404, 503)),
    "infer": _said("Logits and probabilities.", Inferred, _OF_WORK, **_INPUT),
}
"""{name of an address: what FastAPI is told of it}."""


def secured(document: dict[str, Any], without: Iterable[str]) -> dict[str, Any]:
    """The document of a server that may have a token, which some addresses do not ask for."""
    document["security"] = [{"token": []}, {}]
    document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path in without:
        document["paths"][path]["get"]["security"] = []
    return document


# --- The page ---

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:54rem;margin:2rem auto;padding:0 1rem;
color-scheme:light dark}h2{margin:2rem 0 .3rem;font-size:1.1rem}code,pre{font-family:ui-monospace,
monospace}pre{overflow:auto;padding:.8rem;border:1px solid #8886;border-radius:.4rem}
table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;
padding:.25rem .8rem .25rem 0;border-bottom:1px solid #8884}
"""


def docs_page(document: dict[str, Any]) -> str:
    """The document as one page of HTML, with nothing to be loaded and nothing to be run."""
    parts = []
    for path, methods in document["paths"].items():
        for method, told in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(told['summary'])} {escape(told.get('description', ''))}</p>")
            rows = {p["name"]: _parameter(p) for p in told.get("parameters", ())}
            rows |= {status: _answer(one) for status, one in told["responses"].items()}
            cells = "".join(f"<tr><th>{a}</th><td>{b}</td></tr>" for a, b in rows.items())
            parts.append(f"<table>{cells}</table>")
    parts.append("<h2>What is in them</h2>")
    for name, schema in document["components"]["schemas"].items():
        text = escape(json.dumps(schema, indent=1))
        parts.append(f'<details id="{name}"><summary>{name}</summary><pre>{text}</pre></details>')
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>van serve</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>van serve {escape(__version__)}</h1>"
        f"<p>{escape(ABOUT)} "
        'As a document for programs: <a href="openapi.json">openapi.json</a>.</p>'
        f"{''.join(parts)}</body></html>"
    )


def _parameter(told: dict[str, Any]) -> str:
    allowed = told["schema"].get("enum")
    one_of = f" One of {', '.join(allowed)}." if allowed else ""
    return escape(told.get("description", "") + one_of)


def _answer(told: dict[str, Any]) -> str:
    kinds = []
    for kind, content in told.get("content", {}).items():
        name = content["schema"].get("$ref", "").rpartition("/")[2]
        kinds.append(f"<code>{kind}</code>" + (f': <a href="#{name}">{name}</a>' if name else ""))
    return f"{escape(told['description'])} {', '.join(kinds)}"
