"""`POST /predict`: pictures -> ranked labels, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import Request, Response
from pydantic import Field

from ..explanation.last_stage import LAST_STAGE_METHODS
from ..spec.labels import index_of
from ..support.text import shown
from .documents import OF_MODEL, NoParameters
from .http import HttpError, Json
from .models import Answer, Map, PictureError, Question, Served
from .service import Service
from .uploads import Upload, body_of, uploads_of

_LARGE = 1_000_000  # bytes of a body, which takes long to be taken apart
_MANY = 5_000  # scores, which take long to be put in order


class Asked(NoParameters):
    """The parameters of `POST /predict`."""

    top: int = Field(5, ge=1, le=1_000, description="Classes to name, best first: from 1 to 1000.")
    model: str = OF_MODEL
    explain: str | None = Field(
        None,
        description="Show where the model looked.",
        json_schema_extra={"enum": list(LAST_STAGE_METHODS)},
    )
    to_explain: str | None = Field(
        None,
        alias="class",
        description="Name, WordNet id or position of the class to explain; else the best one.",
    )


async def predict(service: Service, request: Request, asked: Asked) -> Response:
    """Answers each picture of a request by itself: one that cannot be read is an error alone."""
    model = service.model(asked.model)
    question = _question(model, asked)
    service.admission.check()
    with model.in_use():
        async with body_of(request, service.limits, service.uploads) as body:
            kind = request.headers.get("content-type", "")
            pictures = await service.if_long(
                len(body) > _LARGE, uploads_of, body, kind, service.limits.pictures
            )
            files = [one.data for one in pictures]
            found = await service.answers(model, files, question, request)
        return await service.if_long(
            len(found) * model.outputs > _MANY,
            _reply,
            service,
            model,
            pictures,
            found,
            question,
            asked.top,
        )


def _reply(
    service: Service,
    model: Served,
    pictures: Sequence[Upload],
    found: Sequence[Answer | PictureError],
    question: Question | None,
    top: int,
) -> Response:
    results = [
        _result(model, one.name, answer, question, top)
        for one, answer in zip(pictures, found, strict=True)
    ]
    good = service.count(model, found)
    answer: dict[str, Any] = {"model": model.name, "results": results}
    if not good:
        answer["error"] = results[0]["error"] if len(results) == 1 else "no picture could be read"
    return Json(answer, 200 if good else 422)


def _result(
    model: Served,
    name: str | None,
    found: Answer | PictureError,
    question: Question | None,
    top: int,
) -> dict[str, Any]:
    """What is said of a picture."""
    said: dict[str, Any] = {"name": name, "width": None, "height": None, "error": None}
    if isinstance(found, PictureError):
        return said | {"error": str(found), "predictions": []}
    said["width"], said["height"] = found.size
    said["predictions"] = [
        {"label": p.label, "wnid": p.wnid, "index": p.index, "probability": p.probability}
        for p in model.classifier.ranked(found.logits, top)
    ]
    if question is not None and found.explanation is not None:
        said["explanation"] = _explanation(model, question.method, found.explanation, found.size)
    return said


def _question(model: Served, asked: Asked) -> Question | None:
    """What is to be explained, if anything.

    Raises:
        HttpError: There is no such method or class.
    """
    method, wanted = asked.explain, asked.to_explain
    if method is None:
        if wanted is not None:
            raise HttpError(400, "`class` goes with `explain`: it is the class to explain")
        return None
    if not model.methods:
        raise HttpError(400, f"`explain`: the model {model.name} does not: {model.explainer}")
    method = method.replace(" ", "+")  # which a "+" means that was not written %2B
    if method not in model.methods:
        allowed = ", ".join(model.methods)
        raise HttpError(400, f"`explain` must be one of {allowed}. Received: {shown(method)}")
    return Question(method, None if wanted is None else _class(model, wanted))


def _class(model: Served, wanted: str) -> int:
    """The position of a class, given by its name, its WordNet id or its position."""
    try:
        return index_of(wanted, model.classifier.classes, "class")
    except ValueError as error:
        raise HttpError(400, f"{error}; GET /labels has all names") from None


def _explanation(model: Served, method: str, found: Map, size: tuple[int, int]) -> dict[str, Any]:
    height, width = found.values.shape
    values = np.round(found.values.astype(np.float64), 4).ravel().tolist()
    left, top, right, bottom = model.classifier.preprocessing.box(*size)
    index = found.index
    return {
        "method": method,
        "layer": found.layer,
        "class": {"index": index, "label": model.classifier.classes[index].name},
        "crop": {"left": left, "top": top, "width": right - left, "height": bottom - top},
        "map": {"height": height, "width": width, "values": values},
        "empty": found.empty,
        "note": "the map is the same everywhere: nothing stands out" if found.empty else "",
    }
