"""What the server can be asked: an OpenAPI document, and a page of it that loads nothing.

The routes of `app.py` are the truth; a test holds that this document has all of them.
"""

from __future__ import annotations

import json
from html import escape
from typing import Any

from .. import __version__
from ..explanation.last_stage import LAST_STAGE_METHODS

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_WHOLE: Schema = {"type": "integer"}
_NUMBER: Schema = {"type": "number"}
_STATUSES = {
    "400": "What is asked is not understood, or a parameter is not allowed.",
    "401": "The token is missing or wrong.",
    "403": "The server has no token, so nobody may do this.",
    "404": "There is no such model.",
    "408": "The body took too long to arrive.",
    "409": "The new file is refused; the old model serves on.",
    "413": "Too many bytes or pictures.",
    "415": "Not a type of body that is taken, or a compressed one.",
    "422": "No picture could be read; `results` says why of each.",
    "429": "The queue is full. Retry-After says when to try again.",
    "503": "It waited too long, or the server is about to end. Retry-After says when to try again.",
}
_OF_WORK = ("400", "401", "404", "408", "413", "415", "422", "429", "503")


def _record(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _several(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(schema: Schema) -> Schema:
    return {**schema, "type": [schema["type"], "null"]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_PREDICTION = _record(
    label=_TEXT, wnid=_or_null(_TEXT), index=_WHOLE, probability=_NUMBER | {"maximum": 1}
)
_EXPLANATION = _record(
    method=_TEXT,
    layer=_TEXT,
    **{"class": _record(index=_WHOLE, label=_TEXT)},
    crop=_record(left=_NUMBER, top=_NUMBER, width=_NUMBER, height=_NUMBER)
    | {"description": "What the model saw, in pixels of the upright picture."},
    map=_record(height=_WHOLE, width=_WHOLE, values=_several(_NUMBER))
    | {"description": "0 to 1, row by row, over the crop."},
    empty={"type": "boolean"},
    note=_TEXT,
)
_RESULT = _record(
    name=_or_null(_TEXT),
    width=_or_null(_WHOLE),
    height=_or_null(_WHOLE),
    error=_or_null(_TEXT) | {"description": "Why this picture has no answer."},
    predictions=_several(_ref("Prediction")),
)
_RESULT["properties"]["explanation"] = _ref("Explanation")
_TENSOR = _record(name=_TEXT, datatype=_TEXT, shape=_several(_WHOLE))
_TENSOR["properties"] |= {"data": {}, "parameters": {"type": "object"}}

_SCHEMAS = {
    "Error": _record(error=_TEXT),
    "Prediction": _PREDICTION,
    "Explanation": _EXPLANATION,
    "Result": _RESULT,
    "Answer": _record(model=_TEXT, results=_several(_ref("Result"))),
    "Labels": _record(labels=_several(_TEXT)),
    "Reloaded": _record(reloaded=_several(_record(name=_TEXT, changed={"type": "boolean"}))),
    "About": _record(
        version=_TEXT,
        token_required={"type": "boolean"},
        limits=_record(bytes=_WHOLE, pixels=_WHOLE, pictures=_WHOLE),
    ),
    "InferenceRequest": _record(inputs=_several(_ref("Tensor"))),
    "InferenceAnswer": _record(
        model_name=_TEXT, model_version=_TEXT, outputs=_several(_ref("Tensor"))
    ),
    "Tensor": _TENSOR,
    "Any": {"type": "object"},
}


def _content(schema: Schema, *kinds: str) -> dict[str, Any]:
    return {kind: {"schema": schema} for kind in kinds or ("application/json",)}


def _operation(
    name: str, summary: str, answer: str | dict[str, Any], statuses: Any = (), **more: Any
) -> dict[str, Any]:
    content = _content(_ref(answer)) if isinstance(answer, str) else answer
    answers: dict[str, Any] = {"200": {"description": "The answer.", "content": content}}
    for status in statuses:
        answers[status] = {"description": _STATUSES[status], "content": _content(_ref("Error"))}
    return {"operationId": name, "summary": summary, "responses": answers, **more}


def _parameter(name: str, about: str, schema: Schema, where: str = "query") -> dict[str, Any]:
    return {
        "name": name,
        "in": where,
        "description": about,
        "schema": schema,
        "required": where == "path",
    }


_MODEL = _parameter("model", "By default the first one.", _TEXT)
_METHOD = _TEXT | {"enum": list(LAST_STAGE_METHODS)}
_FILE = {"type": "string", "format": "binary"}
_OPEN: dict[str, Any] = {"security": []}  # of what answers without the token
_PREDICT = _operation(
    "predict",
    "Name what is in one picture or several.",
    "Answer",
    _OF_WORK,
    description="Each picture is answered by itself: of one that cannot be read `error` says why, "
    "and the others have their answers. 200 where one at least was answered.",
    parameters=[
        _parameter("top", "Classes to name, best first.", _WHOLE | {"minimum": 1, "default": 5}),
        _MODEL,
        _parameter(
            "explain", "Show where the model looked.", _TEXT | {"enum": list(LAST_STAGE_METHODS)}
        ),
        _parameter(
            "class",
            "Name, WordNet id or position of the class to explain; by default the best one.",
            _TEXT,
        ),
    ],
    requestBody={
        "required": True,
        "description": "One picture as it is, or a form with a file for each.",
        "content": {
            **_content(_FILE, "image/*", "application/octet-stream"),
            **_content({"type": "object", "additionalProperties": _FILE}, "multipart/form-data"),
        },
    },
)
_INFER = _operation(
    "infer",
    "The Open Inference Protocol: logits and probabilities.",
    {**_content(_ref("InferenceAnswer")), **_content(_FILE, "application/octet-stream")},
    _OF_WORK,
    description="One input: `images`, prepared as `GET /about` says, or `pictures`, encoded files "
    "(BYTES; in JSON as base64). Tensors as JSON, or binary behind it "
    "(Inference-Header-Content-Length).",
    requestBody={
        "required": True,
        "content": {
            **_content(_ref("InferenceRequest")),
            **_content(_FILE, "application/octet-stream"),
        },
    },
)


def _paths() -> dict[str, Any]:
    html, plain = _content(_TEXT, "text/html"), _content(_TEXT, "text/plain")
    paths: dict[str, Any] = {
        "/": {"get": _operation("page", "The page for people.", html, **_OPEN)},
        "/predict": {"post": _PREDICT},
        "/about": {
            "get": _operation(
                "about", "Limits and models; without the token only limits.", "About", **_OPEN
            )
        },
        "/labels": {
            "get": _operation(
                "labels", "All classes.", "Labels", ("401", "404"), parameters=[_MODEL]
            )
        },
        "/reload": {
            "post": _operation(
                "reload", "Take over files that were replaced.", "Reloaded", ("401", "403", "409")
            )
        },
        "/metrics": {"get": _operation("metrics", "For Prometheus.", plain, ("401",))},
        "/docs": {"get": _operation("docs", "This page.", html, **_OPEN)},
        "/openapi.json": {"get": _operation("openapi", "This document.", "Any", **_OPEN)},
        "/v2": {"get": _operation("server", "What the server is.", "Any", **_OPEN)},
        "/v2/health/live": {"get": _operation("live", "Whether it runs.", "Any", **_OPEN)},
        "/v2/health/ready": {
            "get": _operation("ready", "Whether it takes requests.", "Any", ("503",), **_OPEN)
        },
    }
    for base, version in (("", ""), ("/versions/{version}", "_version")):
        path = f"/v2/models/{{model}}{base}"
        named = [_parameter(one, "", _TEXT, "path") for one in ("model", "version") if one in path]
        for end, method, operation in (
            ("", "get", _operation("model", "Its inputs and outputs.", "Any", ("401", "404"))),
            ("/ready", "get", _operation("model_ready", "Is it?", "Any", ("401", "404", "503"))),
            ("/infer", "post", _INFER),
        ):
            name = operation["operationId"] + version
            one = {**operation, "operationId": name, "parameters": named}
            paths[path + end] = {method: one}
    return paths


DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {
        "title": "van serve",
        "version": __version__,
        "description": "Visual Attention Network: pictures in, classes out. Errors are "
        '{"error": "one line"}.',
    },
    "paths": _paths(),
    "components": {
        "schemas": _SCHEMAS,
        "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
    },
    "security": [{"token": []}, {}],  # a server may have none
}

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:54rem;margin:2rem auto;padding:0 1rem;
color-scheme:light dark}h2{margin:2rem 0 .3rem;font-size:1.1rem}code,pre{font-family:ui-monospace,
monospace}pre{overflow:auto;padding:.8rem;border:1px solid #8886;border-radius:.4rem}
table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;
padding:.25rem .8rem .25rem 0;border-bottom:1px solid #8884}
"""


def docs_page() -> str:
    """The document as one page of HTML, with nothing to be loaded and nothing to be run."""
    parts = [f"<p>{escape(DOCUMENT['info']['description'])} As a document for programs: "]
    parts.append('<a href="openapi.json">openapi.json</a>.</p>')
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>")
            text = " ".join(filter(None, (operation["summary"], operation.get("description"))))
            parts.append(f"<p>{escape(text)}</p>")
            rows = [
                (f"<code>{escape(one['name'])}</code>", _told(one))
                for one in operation.get("parameters", ())
            ]
            for status, one in operation["responses"].items():
                kinds = ", ".join(_kind(*pair) for pair in one["content"].items())
                rows.append((status, f"{escape(one['description'])} {kinds}"))
            parts += ["<table>", *(f"<tr><th>{a}</th><td>{b}</td></tr>" for a, b in rows)]
            parts.append("</table>")
    parts.append("<h2>What is in them</h2>")
    for name, schema in _SCHEMAS.items():
        shown = escape(json.dumps(schema, indent=1))
        parts.append(f'<details id="{name}"><summary>{name}</summary><pre>{shown}</pre></details>')
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>van serve</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>van serve {escape(__version__)}</h1>"
        f"{''.join(parts)}</body></html>"
    )


def _told(parameter: dict[str, Any]) -> str:
    schema = parameter["schema"]
    allowed = f" One of {', '.join(schema['enum'])}." if "enum" in schema else ""
    return escape(f"{parameter['description']}{allowed}")


def _kind(kind: str, content: dict[str, Any]) -> str:
    name = content["schema"].get("$ref", "").rpartition("/")[2]
    link = f': <a href="#{name}">{name}</a>' if name else ""
    return f"<code>{escape(kind)}</code>{link}"
