"""The Open Inference Protocol, version 2, with its extension for binary tensors.

What KServe, Triton and their clients speak: <https://github.com/kserve/open-inference-protocol>.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from fastapi import Request, Response

from .. import __version__
from ..spec.scores import probabilities
from ..support.text import shown
from .http import HttpError, Json, parsed_json
from .models import Answer, PictureError, Served
from .service import Service
from .uploads import body_of

VERSION = "1"
_JSON_LENGTH = "inference-header-content-length"
_OUTPUTS = ("logits", "probabilities")
_MAX_ID = 1_000  # characters
MAX_VALUES = 1_000_000  # of the JSON of a request, which holds everything up while it is read
_KINDS = {np.dtype(np.float32): "FP32", np.dtype(np.uint8): "UINT8"}


def server_metadata() -> Response:
    """`GET /v2`."""
    return Json(
        {
            "name": "van-classification-tensorflow",
            "version": __version__,
            "extensions": ["binary_tensor_data"],
        }
    )


def model_metadata(model: Served) -> Response:
    """`GET /v2/models/{model}`."""
    outputs = model.outputs
    return Json(
        {
            "name": model.name,
            "versions": [VERSION],
            "platform": f"van_{model.chosen.name}",
            "inputs": [
                {
                    "name": "images",
                    "datatype": _KINDS[model.dtype],
                    "shape": [-1, *model.input_shape],
                },
                {"name": "pictures", "datatype": "BYTES", "shape": [-1]},
            ],
            "outputs": [
                {"name": name, "datatype": "FP32", "shape": [-1, outputs]} for name in _OUTPUTS
            ],
        }
    )


@dataclass(frozen=True)
class _Asked:
    """An inference request, understood.

    Args:
        id: Of the client's own.
        images: (N, H, W, C), or None where there are files.
        pictures: The bytes of N files.
        outputs: {name: whether it is wanted as binary}.
    """

    id: str | None
    images: np.ndarray | None
    pictures: Sequence[bytes]
    outputs: Mapping[str, bool]


async def infer(service: Service, request: Request, model: Served) -> Response:
    """`POST /v2/models/{model}/infer`: all its pictures, or an error."""
    service.admission.check()
    with model.in_use():
        async with body_of(request, service.limits, service.uploads) as body:
            length = request.headers.get(_JSON_LENGTH, "")
            asked = await service.at_desk(_understood, model, body, length, service.limits.pictures)
            logits = await _logits(service, request, model, asked)
        return await service.at_desk(_reply, model, asked, np.stack(logits))


async def _logits(
    service: Service, request: Request, model: Served, asked: _Asked
) -> list[np.ndarray]:
    found: Sequence[Any]
    if asked.images is not None:
        found = await service.logits(model, asked.images, request)
    else:
        answers = await service.answers(model, asked.pictures, None, request)
        found = [one.logits if isinstance(one, Answer) else one for one in answers]
    service.count(model, found)
    for i, one in enumerate(found):
        if isinstance(one, PictureError):
            raise HttpError(422, f"picture {i} cannot be answered: {one}")
    return list(found)


# --- What was asked ---


def _understood(model: Served, body: bytes, said_length: str, most: int) -> _Asked:
    """Raises `HttpError` 400 or 413 where it is no request, or one of too many pictures."""
    length = len(body)
    if said_length:
        is_number = said_length.isascii() and said_length.isdigit() and len(said_length) < 12
        if not is_number or int(said_length) > len(body):
            raise HttpError(
                400,
                "Inference-Header-Content-Length must be the length of the JSON, at most "
                f"{len(body)}. Received: {shown(said_length)}",
            )
        length = int(said_length)
    record = parsed_json(memoryview(body)[:length], MAX_VALUES)
    if not isinstance(record, dict):
        raise HttpError(400, "the request must be a JSON object")
    inputs = record.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise HttpError(400, "`inputs` must hold one tensor: `images` or `pictures`")
    given, rest = inputs[0], memoryview(body)[length:]
    name, kind, shape = given.get("name"), given.get("datatype"), _shape(given, most)
    data = _data(given, rest)
    said_id = record.get("id")
    if said_id is not None and not (isinstance(said_id, str) and len(said_id) <= _MAX_ID):
        raise HttpError(400, f"`id` must be a text of at most {_MAX_ID} characters")
    outputs = _wanted(record)
    if name == "images" and kind == _KINDS[model.dtype]:
        return _Asked(said_id, _images(model, shape, data), (), outputs)
    if name == "pictures" and kind == "BYTES":
        return _Asked(said_id, None, _pictures(shape, data), outputs)
    raise HttpError(
        400,
        f"the input must be `images` of {_KINDS[model.dtype]} or `pictures` of BYTES. "
        f"Received: {shown(name)} of {shown(kind)}",
    )


def _shape(given: dict[str, Any], most: int) -> tuple[int, ...]:
    shape: Any = given.get("shape")
    fits = isinstance(shape, list) and 1 <= len(shape) <= 4
    if not fits or not all(type(n) is int and 1 <= n <= 1_000_000 for n in shape):
        raise HttpError(400, f"`shape` must be a list of whole numbers. Received: {shown(shape)}")
    if shape[0] > most:
        raise HttpError(
            413, f"a request may have {most} pictures. Received: {shape[0]}", reason="pictures"
        )
    return tuple(shape)


def _parameters(record: dict[str, Any]) -> dict[str, Any]:
    found: Any = record.get("parameters")
    if found is None:  # as some clients write what is not set
        return {}
    if not isinstance(found, dict):
        raise HttpError(400, "`parameters` must be an object")
    return found


def _data(given: dict[str, Any], rest: memoryview) -> Any:
    """Of a tensor: what the JSON has, or the bytes behind it."""
    size = _parameters(given).get("binary_data_size")
    if size is None:
        if "data" not in given:
            raise HttpError(400, "a tensor needs `data`, or the parameter `binary_data_size`")
        if len(rest):
            raise HttpError(400, f"{len(rest)} bytes follow the JSON that belong to no tensor")
        return given["data"]
    if type(size) is not int or size != len(rest):
        raise HttpError(
            400,
            f"`binary_data_size` must be what follows the JSON, {len(rest)} bytes. "
            f"Received: {shown(size)}",
        )
    return rest


def _images(model: Served, shape: tuple[int, ...], data: Any) -> np.ndarray:
    if shape[1:] != model.input_shape:
        expected = ", ".join(map(str, model.input_shape))
        raise HttpError(400, f"`images` must be (N, {expected}). Received: {shown(shape)}")
    try:
        if isinstance(data, memoryview):
            found = np.frombuffer(data, model.dtype.newbyteorder("<"))
        else:
            found = np.asarray(data, np.float64)  # else texts would all take as much as the longest
            if model.dtype == np.uint8 and not ((found >= 0) & (found <= 255)).all():
                raise ValueError("not 0 to 255")
        with np.errstate(over="ignore"):
            images: np.ndarray = found.astype(model.dtype).reshape(shape)
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError):
        raise HttpError(
            400, f"the data of `images` must be {prod(shape)} numbers of {_KINDS[model.dtype]}"
        ) from None
    if not np.isfinite(images).all():
        raise HttpError(400, "`images` must be finite numbers")
    return images


def _pictures(shape: tuple[int, ...], data: Any) -> list[bytes]:
    if len(shape) != 1:
        raise HttpError(400, f"`pictures` must be (N). Received: {shown(shape)}")
    count = shape[0]
    found = _split(data, count) if isinstance(data, memoryview) else _decoded(data, count)
    if len(found) != count:
        raise HttpError(400, f"`pictures` must be {count} files. Received: {len(found)}")
    return found


def _split(data: memoryview, count: int) -> list[bytes]:
    """Elements of BYTES, each behind its length in 4 bytes."""
    found: list[bytes] = []
    at = 0
    while at < len(data):
        if len(found) == count:
            raise HttpError(400, f"`pictures` must be {count} files. Received: more")
        size = struct.unpack_from("<I", data, at)[0] if at + 4 <= len(data) else len(data)
        if at + 4 + size > len(data):
            raise HttpError(400, "`pictures` ends within an element")
        found.append(bytes(data[at + 4 : at + 4 + size]))
        at += 4 + size
    return found


def _decoded(data: Any, count: int) -> list[bytes]:
    try:
        if not isinstance(data, list):
            raise ValueError
        if len(data) != count:
            raise HttpError(400, f"`pictures` must be {count} files. Received: {len(data)}")
        return [base64.b64decode(one, validate=True) for one in data]
    except (ValueError, TypeError, binascii.Error):
        raise HttpError(
            400, "`pictures` in JSON must be a list of texts, each a file in base64"
        ) from None


def _wanted(record: dict[str, Any]) -> dict[str, bool]:
    binary = _parameters(record).get("binary_data_output", False) is True
    outputs = record.get("outputs")
    if outputs is None or outputs == []:
        return dict.fromkeys(_OUTPUTS, binary)
    if not isinstance(outputs, list) or not all(isinstance(one, dict) for one in outputs):
        raise HttpError(400, "`outputs` must be a list of objects")
    found = {}
    for one in outputs:
        name = one.get("name")
        if name not in _OUTPUTS:
            allowed = ", ".join(_OUTPUTS)
            raise HttpError(400, f"outputs are {allowed}. Received: {shown(name)}")
        parameters = _parameters(one)
        if parameters.get("classification"):
            raise HttpError(400, "`classification` is not served: POST /predict names classes")
        found[name] = parameters.get("binary_data", binary) is True
    return found


# --- The answer ---


def _reply(model: Served, asked: _Asked, logits: np.ndarray) -> Response:
    arrays = {"logits": logits}
    if "probabilities" in asked.outputs:
        found = probabilities(logits, model.classifier.activation)
        arrays["probabilities"] = found.astype(np.float32)
    outputs, tail = [], b""
    for name, binary in asked.outputs.items():
        array = np.ascontiguousarray(arrays[name], "<f4")
        one: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(array.shape)}
        if binary:
            one["parameters"] = {"binary_data_size": array.nbytes}
            tail += array.tobytes()
        else:
            one["data"] = array.ravel().tolist()
        outputs.append(one)
    record = {"model_name": model.name, "model_version": VERSION, "outputs": outputs}
    if asked.id is not None:
        record["id"] = asked.id
    if not tail:
        return Json(record)
    head = json.dumps(record, separators=(",", ":")).encode()
    length = {_JSON_LENGTH: str(len(head))}
    return Response(head + tail, headers=length, media_type="application/octet-stream")
