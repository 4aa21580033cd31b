"""The Open Inference Protocol: tensors as JSON and as bytes, and what is wrong with them."""

import base64
import json
import re
import struct
import threading
import tracemalloc

import numpy as np
import pytest

from van_classification_tensorflow.inference.classifier import Classifier

from .conftest import picture

INFER = "/v2/models/digits/infer"
IMAGES = np.random.default_rng(0).random((2, 32, 32, 1), np.float32)


@pytest.fixture(scope="module")
def expected():
    engine = Classifier("digits", engine="numpy").choose_engine().engine
    return engine(IMAGES)


def images(**changes):
    data = IMAGES.ravel().tolist()
    return {"name": "images", "datatype": "FP32", "shape": [2, 32, 32, 1], "data": data, **changes}


def binary(record, *tails):
    head = json.dumps(record).encode()
    return {
        "content": head + b"".join(tails),
        "headers": {"inference-header-content-length": str(len(head))},
    }


def test_metadata(client):
    found = client.get("/v2/models/digits").json()
    assert found["versions"] == ["1"]
    assert [one["shape"] for one in found["inputs"]] == [[-1, 32, 32, 1], [-1]]
    assert [one["shape"] for one in found["outputs"]] == [[-1, 10], [-1, 10]]
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]


def test_json_both_ways(client, expected):
    for data in (IMAGES.ravel().tolist(), IMAGES.tolist()):
        answer = client.post(INFER, json={"id": "7", "inputs": [images(data=data)]}).json()
        assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", "digits", "1")
        logits, shares = answer["outputs"]
        found = np.reshape(logits["data"], logits["shape"])
        np.testing.assert_allclose(found, expected, atol=1e-3)
        np.testing.assert_allclose(np.reshape(shares["data"], (2, 10)).sum(axis=1), 1, atol=1e-5)


def test_binary_both_ways(client, expected):
    given = images(parameters={"binary_data_size": IMAGES.nbytes})
    del given["data"]
    outputs = [{"name": "logits", "parameters": {"binary_data": True}}]
    record = {"inputs": [given], "outputs": outputs}
    answer = client.post(INFER, **binary(record, IMAGES.tobytes()))
    length = int(answer.headers["inference-header-content-length"])
    (logits,) = json.loads(answer.content[:length])["outputs"]
    assert logits["parameters"] == {"binary_data_size": 80}
    found = np.frombuffer(answer.content[length:], "<f4").reshape(logits["shape"])
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_pictures(client):
    files = [picture(1), picture(2)]
    tail = b"".join(struct.pack("<I", len(one)) + one for one in files)
    given = {"name": "pictures", "datatype": "BYTES", "shape": [2]}
    as_text = {**given, "data": [base64.b64encode(one).decode() for one in files]}
    as_bytes = {**given, "parameters": {"binary_data_size": len(tail)}}
    one = client.post(INFER, json={"inputs": [as_text]}).json()
    other = client.post(INFER, **binary({"inputs": [as_bytes]}, tail)).json()
    assert one == other
    best = np.reshape(one["outputs"][1]["data"], (2, 10)).argmax(axis=1)
    sent = [("a", ("x.png", data)) for data in files]
    results = client.post("/predict?top=1", files=sent).json()["results"]
    assert best.tolist() == [result["predictions"][0]["index"] for result in results]


def test_a_picture_that_cannot_be_read(client):
    data = [base64.b64encode(one).decode() for one in (picture(), b"x")]
    given = {"name": "pictures", "datatype": "BYTES", "shape": [2], "data": data}
    answer = client.post(INFER, json={"inputs": [given]})
    assert answer.status_code == 422
    assert "picture 1 cannot be answered" in answer.json()["error"]


BAD = {
    "no JSON": ({"content": b"{"}, "no JSON"),
    "no object": ({"json": [1]}, "must be a JSON object"),
    "deep": ({"content": b"[" * 100_000}, "deep|no JSON"),
    "deep data": ({"content": b'{"inputs":' + b"[" * 5_000 + b"]" * 5_000 + b"}"}, "deep|inputs"),
    "NaN": ({"content": b'{"inputs": NaN}'}, "NaN is no number"),
    "a huge number": ({"content": b'{"inputs": ' + b"9" * 10_000 + b"}"}, "no JSON|inputs"),
    "no UTF-8": ({"content": b'{"inputs": "\xff"}'}, "no JSON"),
    "no inputs": ({"json": {}}, "inputs"),
    "two inputs": ({"json": {"inputs": [images()] * 2}}, "one tensor"),
    "no data": (
        {"json": {"inputs": [{"name": "images", "datatype": "FP32", "shape": [1]}]}},
        "data",
    ),
    "another name": ({"json": {"inputs": [images(name=["x"])]}}, "the input must be"),
    "another type": ({"json": {"inputs": [images(datatype="FP64")]}}, "the input must be"),
    "another shape": ({"json": {"inputs": [images(shape=[2, 1024])]}}, "N, 32, 32, 1"),
    "a wrong shape": ({"json": {"inputs": [images(shape=[True, 32, 32, 1])]}}, "whole numbers"),
    "a negative shape": ({"json": {"inputs": [images(shape=[-1, 32, 32, 1])]}}, "whole numbers"),
    "too few": ({"json": {"inputs": [images(data=[0.5])]}}, "2048 numbers"),
    "ragged": ({"json": {"inputs": [images(data=[[1], [1, 2]])]}}, "2048 numbers"),
    "texts": ({"json": {"inputs": [images(data=["x"] * 2048)]}}, "2048 numbers"),
    # NumPy would make each of them as wide as the longest: 570 MB, and 3.6 TiB.
    "a long text": (
        {"json": {"inputs": [images(data=["a" * 1000] + [""] * 9000)]}},
        "2048 numbers",
    ),
    "longer ones": ({"json": {"inputs": [images(data=["a" * 10**6] + [""] * 10**5)]}}, "2048 num"),
    "an object": ({"json": {"inputs": [images(data=[{}] * 2048)]}}, "2048 numbers"),
    "nothing": ({"json": {"inputs": [images(data=None)]}}, "2048 numbers"),
    "too large numbers": ({"json": {"inputs": [images(data=[1e300] * 2048)]}}, "finite"),
    "whole ones": ({"json": {"inputs": [images(data=[10**400] * 2048)]}}, "2048 numbers|finite"),
    "an id": ({"json": {"id": 5, "inputs": [images()]}}, "`id`"),
    "parameters": ({"json": {"inputs": [images(parameters=[])]}}, "`parameters`"),
    "outputs": ({"json": {"inputs": [images()], "outputs": ["logits"]}}, "`outputs`"),
    "an output": ({"json": {"inputs": [images()], "outputs": [{"name": "x"}]}}, "outputs are"),
    "a header": (
        {"content": b"{}", "headers": {"inference-header-content-length": "-5"}},
        "length",
    ),
    "a long header": (
        {"content": b"{}", "headers": {"inference-header-content-length": "99"}},
        "at most 2",
    ),
    "a size": (
        binary({"inputs": [images(parameters={"binary_data_size": 5})]}, b"1234"),
        "4 bytes",
    ),
    "nobody's bytes": (binary({"inputs": [images()]}, b"1234"), "belong to no tensor"),
    "no base64": (
        {
            "json": {
                "inputs": [{"name": "pictures", "datatype": "BYTES", "shape": [1], "data": ["ü"]}]
            }
        },
        "base64",
    ),
    "cut short": (
        binary(
            {
                "inputs": [
                    {
                        "name": "pictures",
                        "datatype": "BYTES",
                        "shape": [1],
                        "parameters": {"binary_data_size": 5},
                    }
                ]
            },
            b"\xff\xff\xff\xff1",
        ),
        "ends within",
    ),
    "a query": ({"json": {"inputs": [images()]}, "params": {"top": 3}}, "parameters allowed"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_told(client, case):
    options, words = BAD[case]
    answer = client.post(INFER, **options)
    assert answer.status_code == 400, answer.text
    assert re.search(words, answer.json()["error"]), answer.text


def test_too_many(client):
    given = images(shape=[1_000, 32, 32, 1])
    assert client.post(INFER, json={"inputs": [given]}).status_code == 413


def test_not_finite_bytes(client):
    bad = IMAGES.copy()
    bad[0, 0, 0, 0] = np.nan
    given = images(parameters={"binary_data_size": bad.nbytes})
    del given["data"]
    answer = client.post(INFER, **binary({"inputs": [given]}, bad.tobytes()))
    assert answer.status_code == 400
    assert "finite" in answer.json()["error"]


@pytest.mark.parametrize("piece", ["[],", "{},", "0,"])
def test_json_of_too_many_values_is_not_read(client, piece):
    """It would hold everything up for a second, and take twenty times its size."""
    text = '{"inputs": [' + piece * 1_100_000
    answer = client.post(INFER, content=text.encode())
    assert answer.status_code == 413
    assert "1,000,000 values: send tensors as binary data" in answer.json()["error"]


def test_more_files_than_were_said_are_not_counted(client):
    given = {"name": "pictures", "datatype": "BYTES", "shape": [1]}
    given["parameters"] = {"binary_data_size": 4_000_000}
    answer = client.post(INFER, **binary({"inputs": [given]}, bytes(4_000_000)))
    assert (answer.status_code, "Received: more" in answer.json()["error"]) == (400, True)
    del given["parameters"]
    answer = client.post(INFER, json={"inputs": [given | {"data": ["x"] * 1000}]})
    assert (answer.status_code, "Received: 1000" in answer.json()["error"]) == (400, True)


def test_a_tensor_of_texts_takes_no_more_than_its_size(client):
    """Each as wide as the longest they would be 200 MB."""
    sent = {"inputs": [images(data=["a" * 1000] + [""] * 50_000)]}
    tracemalloc.start()
    answer = client.post(INFER, json=sent)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert answer.status_code == 400
    assert most < 20_000_000


def test_what_is_not_set_may_be_null(client):
    asked = {"inputs": [images(parameters=None)], "id": None, "parameters": None, "outputs": None}
    assert client.post(INFER, json=asked).status_code == 200


def test_pictures_are_counted_whatever_becomes_of_them(client):
    def counted(outcome):
        labels = {"model": "digits", "outcome": outcome}
        registry = client.app.service.metrics.registry
        return registry.get_sample_value("van_pictures_total", labels) or 0

    before = counted("answered"), counted("refused")
    files = [base64.b64encode(one).decode() for one in (picture(), b"nonsense", picture(1))]
    given = {"name": "pictures", "datatype": "BYTES", "shape": [3], "data": files}
    assert client.post(INFER, json={"inputs": [given]}).status_code == 422
    assert (counted("answered"), counted("refused")) == (before[0] + 2, before[1] + 1)


def test_tensors_do_not_wait_for_pictures_that_are_decoded(client):
    """With all threads that decode at work, a request that decodes nothing is answered."""
    service, gate = client.app.service, threading.Event()
    kept = [service.models.decoders.submit(gate.wait, 60) for _ in range(64)]
    try:
        assert client.post(INFER, json={"inputs": [images()]}).status_code == 200
    finally:
        gate.set()
    assert all(one.result() for one in kept)
