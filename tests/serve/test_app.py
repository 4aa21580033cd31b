"""Addresses, tokens, pages, metrics, and the end."""

import json
import os
import re

import pytest

from van_classification_tensorflow.serve import documents
from van_classification_tensorflow.serve.app import App
from van_classification_tensorflow.support.files import asset

from .conftest import picture

PNG = {"content-type": "image/png"}
DOCUMENT = App(None, None).web.openapi()


@pytest.fixture(scope="module")
def guarded(make_client):
    return make_client(token="secret", weights=("digits", "other=digits"))


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def test_health_and_about(client):
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/digits/ready", "/v2"):
        assert client.get(path).status_code == 200
    about = client.get("/about").json()
    (model,) = about["models"]
    assert model["name"] == "digits"
    assert model["classes"] == 10
    assert model["input_size"] == model["preprocessing"]["input_size"] == 32
    assert model["engine"].split()[0] in ("ONNX", "OpenVINO")
    assert about["limits"] == {"bytes": 20_000_000, "pixels": 50_000_000, "pictures": 32}
    assert client.get("/labels").json() == {"labels": list("0123456789")}


OPEN = ("/", "/about", "/docs", "/openapi.json", "/v2", "/v2/health/live", "/v2/health/ready")


def every_address():
    for path, methods in DOCUMENT["paths"].items():
        for method in methods:
            yield method.upper(), path.replace("{model}", "digits")


@pytest.mark.parametrize(("method", "path"), every_address())
def test_the_token_is_asked_for(guarded, method, path):
    for headers in ({}, bearer("wrong"), bearer("secre"), {"authorization": "Basic secret"}):
        answer = guarded(method, path, headers=headers)
        if path in OPEN:
            assert answer.status_code == 200
        else:
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert set(answer.json()) == {"error"}
    assert guarded(method, path, headers=bearer("secret")).status_code != 401


def test_about_says_less_to_strangers(guarded):
    assert set(guarded.get("/about").json()) == {"version", "token_required", "limits"}
    known = guarded.get("/about", headers=bearer("secret")).json()
    assert [one["name"] for one in known["models"]] == ["digits", "other"]


def test_an_address_that_is_not_there_is_not_told_to_strangers(guarded):
    assert guarded.get("/nothing").status_code == 401
    assert guarded.get("/nothing", headers=bearer("secret")).status_code == 404


def test_models_by_name(guarded):
    for name in ("digits", "other"):
        answer = guarded.post(
            f"/predict?model={name}", content=picture(), headers={**PNG, **bearer("secret")}
        )
        assert answer.json()["model"] == name
    answer = guarded.get("/labels?model=third", headers=bearer("secret"))
    assert answer.status_code == 404
    assert "digits, other" in answer.json()["error"]


def test_reload_of_what_did_not_change(guarded, client):
    answer = guarded.post("/reload", headers=bearer("secret"))
    assert answer.json()["reloaded"] == [
        {"name": "digits", "changed": False, "error": None},
        {"name": "other", "changed": False, "error": None},
    ]
    assert client.post("/reload").status_code == 403


def test_a_bad_file_keeps_no_other_from_being_taken_over(make_client, tmp_path):
    digits = asset("digits.safetensors").read_bytes()
    paths = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for path in paths:
        path.write_bytes(digits)
    client = make_client(token="secret", weights=tuple(f"{one.stem}={one}" for one in paths))
    paths[0].write_bytes(digits[: len(digits) // 2])
    later = paths[1].stat().st_mtime_ns + 10**9
    os.utime(paths[1], ns=(later, later))
    answer = client.post("/reload", headers=bearer("secret"))
    assert answer.status_code == 409
    assert answer.json()["error"].startswith("the old model serves on: a: ")
    first, second = answer.json()["reloaded"]
    assert (first["changed"], bool(first["error"])) == (False, True)
    assert second == {"name": "b", "changed": True, "error": None}
    for name in "ab":
        sent = {"content": picture(1), "headers": bearer("secret") | {"content-type": "image/png"}}
        assert client.post(f"/predict?model={name}", **sent).status_code == 200


def test_the_document_has_every_route(client):
    routes = [
        (path, one.lower())
        for route in client.app.web.routes
        for one in route.methods
        for path in [route.path]
    ]
    paths = DOCUMENT["paths"]
    assert sorted(routes) == sorted((path, one) for path in paths for one in paths[path])
    text = client.get("/openapi.json").text
    assert set(json.loads(text)["paths"]) == set(paths)
    for name in re.findall(r"#/components/schemas/(\w+)", text):
        assert name in DOCUMENT["components"]["schemas"]
    names = [one["operationId"] for found in paths.values() for one in found.values()]
    assert len(names) == len(set(names))


def test_the_document_says_who_needs_the_token(client):
    document = client.get("/openapi.json").json()
    assert document["security"] == [{"token": []}, {}]
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    paths = document["paths"]
    open_ones = {path for path in paths for one in paths[path].values() if "security" in one}
    assert open_ones == set(OPEN)


def test_the_document_says_what_is_answered(client):
    """Every answer is as its model, although nothing checks it when it is sent."""
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert "ValidationError" not in "".join(schemas)
    form = [("a", ("x.png", picture())), ("a", ("y.png", b"y"))]
    answer = client.post("/predict?explain=grad-cam", files=form).json()
    for model, value in (
        (documents.Results, answer),
        (documents.About, client.get("/about").json()),
        (documents.Labels, client.get("/labels").json()),
        (documents.Error, client.get("/nothing").json()),
    ):
        model.model_validate(value, strict=True)
    good, bad = answer["results"]
    assert set(good) == set(schemas["Result"]["properties"])
    assert set(bad) == set(schemas["Result"]["required"])


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_load_nothing_from_outside(client, path):
    answer = client.get(path)
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", answer.text)
    assert "@import" not in answer.text


def test_what_is_not_there_and_what_is_not_done(client):
    assert client.get("/nothing").status_code == 404
    answer = client.get("/predict")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert client("HEAD", "/about").status_code == 200
    assert client.get("/v2/models/digits/versions/2").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/about/", 404, "there is nothing at '/about/'"),
        ("GET", "/redoc", 404, "/docs"),
        ("PUT", "/about", 405, "takes GET"),
        ("OPTIONS", "/predict", 405, "takes POST"),
        ("GET", "/labels?top=3", 400, "parameters allowed here: model. Received: 'top'"),
        ("GET", "/v2/models/digits/versions/2", 404, "there is nothing at"),
        ("POST", "/v2/models/digits/versions/1/infer?a=1", 400, "allowed here: none"),
    ],
)
def test_what_the_framework_refuses_is_told_as_all_errors_are(client, method, path, status, words):
    answer = client(method, path)
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert words in answer.json()["error"]
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_metrics(client):
    before = counted(client)
    client.post("/predict", content=picture(), headers=PNG)
    client.post("/predict", content=b"x", headers=PNG)
    after = counted(client)
    for name, more in (
        ('van_requests_total{path="/predict",status="200"}', 1),
        ('van_requests_total{path="/predict",status="422"}', 1),
        ('van_pictures_total{model="digits",outcome="answered"}', 1),
        ('van_pictures_total{model="digits",outcome="refused"}', 1),
        ('van_request_seconds_count{path="/predict"}', 2),
        ('van_batch_pictures_sum{model="digits"}', 1),
        ("van_upload_bytes_total", len(picture()) + 1),
    ):
        assert after[name] - before.get(name, 0) == more, name
    assert after["van_queue_pictures"] == after["van_upload_held_bytes"] == 0
    assert [name for name in after if name.startswith('van_model_info{engine="')]
    assert after["process_resident_memory_bytes"] > 0


def counted(client):
    lines = client.get("/metrics").text.splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("", 200),
        ("evil.example", 403),
        ("evil.example:80", 403),
        ("localhost.evil.example", 403),
        ("[localhost].example", 403),
    ],
)
def test_other_names_are_not_answered(client, host, status):
    """The page of another site, whose name was made to lead here, could read the answers."""
    answer = client.get("/about", headers={"host": host})
    assert answer.status_code == status
    if status == 403:
        assert "--allow-host" in answer.json()["error"]


def test_names_of_a_proxy_are_answered_and_all_with_a_token(make_client, guarded):
    allowed = make_client(allow_host=("Van.example",))
    for client, host, status in (
        (allowed, "van.example:443", 200),
        (allowed, "evil.example", 403),
        (guarded, "evil.example", 200),
    ):
        assert client.get("/about", headers={"host": host}).status_code == status


def test_a_full_queue_is_told_before_anything_else(client, limited, monkeypatch):
    limited(queue=0)
    monkeypatch.setattr(type(client.app.web), "__call__", None)  # it is not even asked
    answer = client.post("/predict?top=5", content=b"")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")


def test_while_the_server_ends(client):
    client.app.draining = True
    try:
        answer = client.get("/v2/health/ready")
        assert (answer.status_code, answer.headers["connection"]) == (503, "close")
        assert client.get("/v2/health/live").status_code == 200
        answer = client.post("/predict", content=picture(), headers=PNG)
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
    finally:
        client.app.draining = False


def test_a_mistake_of_the_server_is_one_answer(client, monkeypatch, capsys):
    monkeypatch.setattr(client.app.service, "answers", None)
    answer = client.post("/predict", content=picture(), headers=PNG)
    assert answer.status_code == 500
    assert set(answer.json()) == {"error"}
    assert "Traceback" in capsys.readouterr().err
