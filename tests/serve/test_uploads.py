"""Bodies of requests: forms, sizes, times, and what is wrong with them."""

import asyncio
import time
from contextlib import ExitStack, suppress
from dataclasses import replace

import httpx
import numpy as np
import pytest

from van_classification_tensorflow.serve.http import HttpError
from van_classification_tensorflow.serve.limits import Admission, Limits, Uploads
from van_classification_tensorflow.serve.uploads import uploads_of

from .conftest import picture

PNG = {"content-type": "image/png"}
FORM = "multipart/form-data; boundary=xyz"


def form(*parts, boundary="xyz", end="--"):
    lines = [f"--{boundary}\r\n".encode() + part + b"\r\n" for part in parts]
    return b"".join(lines) + f"--{boundary}{end}\r\n".encode()


def part(data, disposition='form-data; name="a"; filename="x.png"', *more):
    head = [f"Content-Disposition: {disposition}", *more]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + data


def test_forms():
    tricky = b"\r\n--xy\r\n\r\n--xyz"[:-1]
    body = b"\r\n" + form(part(b"one"), part(b""), part(tricky)) + b"after"
    found = uploads_of(body, FORM, 10)
    assert [bytes(one.data) for one in found] == [b"one", b"", tricky]
    assert {one.name for one in found} == {"x.png"}


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('form-data; name="a"; filename="a b.png"', "a b.png"),
        (r'form-data; name="a"; filename="a\"b\\.png"', 'a"b\\.png'),
        ("form-data; name=a; filename=plain.png", "plain.png"),
        ('form-data; name="a"; filename="你.png"', "你.png"),
        ("form-data; filename*=UTF-8''no.png; filename=\"plain.png\"", "plain.png"),  # RFC 7578
        ('form-data; filename="../../etc/x\x1b[2J"', "../../etc/x\\x1b[2J"),
        ('form-data; filename="' + "n" * 300 + '"', "n" * 255),
        ('FORM-DATA; FILENAME="up.png"', "up.png"),
        ('form-data; filename=""', None),
    ],
)
def test_names_of_files(disposition, name):
    (found,) = uploads_of(form(part(b"x", disposition)), FORM, 10)
    assert found.name == name


def test_a_file_that_looks_like_a_boundary_comes_whole():
    """Whatever of the boundary is in it: a parser may give such a file in pieces."""
    rng = np.random.default_rng(0)
    pieces = [b"\r\n", b"\r", b"\n", b"--", b"\r\n--", b"\r\n--x", b"\r\n--xy", bytes(range(256))]
    for _ in range(500):
        data = b"".join(pieces[i] for i in rng.integers(0, len(pieces), rng.integers(1, 60)))
        if b"\r\n--xyz" in data:
            continue
        (found, other) = uploads_of(form(part(data), part(b"b")), FORM, 2)
        assert bytes(found.data) == data
        assert bytes(other.data) == b"b"


def test_a_part_of_a_pictures_type_is_one():
    body = form(part(b"x", 'form-data; name="a"', "Content-Type: image/png"))
    assert uploads_of(body, FORM, 10)[0].name is None


@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        (b"", "image/png", 400, "empty"),
        (b"x", "text/html", 415, "Content-Type must be"),
        (b"x", "application/x-www-form-urlencoded", 415, "Content-Type must be"),
        (b"x", "multipart/form-data", 400, "boundary"),
        (b"x", 'multipart/form-data; boundary=""', 400, "boundary"),
        (b"x", "multipart/form-data; boundary=ü", 400, "boundary"),
        (b"x", FORM, 400, "damaged"),
        (b"before\r\n" + form(part(b"x")), FORM, 400, "damaged"),
        (b"", FORM, 400, "ends early"),
        (form(), FORM, 400, "no file"),
        (form(part(b"x"), end=""), FORM, 400, "ends early"),
        (form(part(b"x"))[:-9], FORM, 400, "ends early"),
        (b"--xyzjunk\r\n\r\n\r\n--xyz--", FORM, 400, "damaged"),
        (form(b"no head"), FORM, 400, "damaged"),
        (form(part(b"x") + b"\r\n--xyzjunk"), FORM, 400, "damaged"),
        (form(part(b"x", "form-data; filename=" + "n" * 9_000)), FORM, 400, "damaged"),
        (form(part(b"x", "form-data", *["A: b"] * 9)), FORM, 400, "damaged"),
        (form(part(b"3", 'form-data; name="top"')), FORM, 400, "'top' that is no file"),
        (form(*[part(b"x")] * 4), FORM, 413, "3 pictures"),
    ],
)
def test_what_is_wrong_with_a_body(body, kind, status, words):
    with pytest.raises(HttpError, match=words) as error:
        uploads_of(body, kind, 3)
    assert error.value.status_code == status


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/predict?tip=5", "top, model, explain, class"),
        ("/predict?top=0", "from 1 to"),
        ("/predict?top=1.5", "from 1 to"),
        ("/predict?top=-1", "from 1 to"),
        ("/predict?top=999999999999999999999", "from 1 to"),
        ("/predict?top=1&top=2", "once"),
        ("/predict?top=", "from 1 to"),
        ("/predict?top=%ff", "query"),
        ("/predict?" + "&".join(f"a{i}=1" for i in range(50)), "query"),
        ("/predict?class=3", "goes with"),
        ("/predict?explain=magic", "explain"),
    ],
)
def test_parameters_that_are_not_allowed(client, path, words):
    answer = client.post(path, content=picture(), headers=PNG)
    assert answer.status_code == 400
    assert words in answer.json()["error"]


@pytest.mark.parametrize("filler", [';a="', '; a="\\', ";;", ";a=b", ';"'])
def test_a_hostile_header_costs_no_more_than_its_length(filler):
    """What is tried again from every letter would take minutes."""
    long = filler * (16_000 // len(filler))
    began = time.process_time()
    with pytest.raises(HttpError, match="boundary"):
        uploads_of(b"x", f"multipart/form-data{long * 4}", 10)
    for one in (part(b"x", f'form-data; filename="x"{long}'), part(b"x", f"form-data{long}")):
        with suppress(HttpError):
            uploads_of(form(*[one] * 10), FORM, 10)
    assert time.process_time() - began < 2


def test_limits_of_bytes_and_pictures(client, limited):
    limited(bytes=500)

    async def pieces():
        yield picture()

    for content in (picture(), pieces()):  # with a length, and without
        answer = client.post("/predict", content=content, headers=PNG)
        assert answer.status_code == 413
        assert "500 bytes" in answer.json()["error"]
    limited(pictures=2)
    answer = client.post("/predict", files=[("a", ("x", b"x"))] * 3)
    assert answer.status_code == 413


def test_pixels(make_client):
    client = make_client(max_pixels=1_000)
    answer = client.post("/predict", content=picture(size=(40, 26)), headers=PNG)
    assert answer.status_code == 422
    assert "allowed: 1,000" in answer.json()["error"]
    assert client.get("/about").json()["limits"]["pixels"] == 1_000


def test_a_compressed_body(client):
    answer = client.post("/predict", content=b"x", headers={**PNG, "content-encoding": "gzip"})
    assert answer.status_code == 415


def test_the_queue_is_full(client, limited):
    limited(queue=2, pictures=10)
    answer = client.post("/predict", files=[("a", ("x.png", picture()))] * 3)
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    answers = client.together(*[("POST", "/predict", {"content": picture(), "headers": PNG})] * 8)
    assert {one.status_code for one in answers} <= {200, 429}
    assert client.app.service.admission.count == 0
    assert client.post("/predict", content=picture(), headers=PNG).status_code == 200


def test_too_much_is_being_uploaded(client, monkeypatch):
    uploads = client.app.service.uploads
    monkeypatch.setattr(uploads, "most", len(picture()) + 10)
    uploads.take(11)
    answer = client.post("/predict", content=picture(), headers=PNG)
    assert (answer.status_code, uploads.held) == (429, 11)
    uploads.give_back(11)
    assert client.post("/predict", content=picture(), headers=PNG).status_code == 200
    assert uploads.held == 0


def test_slow_uploads_are_ended_where_others_need_their_place():
    uploads, stopped = Uploads(100), []
    with ExitStack() as open_ones:

        def receive(name, count):
            one = open_ones.enter_context(uploads.receive(lambda: stopped.append(name)))
            one.add(b"x" * count)
            return one

        small, large, whole = receive("small", 10), receive("large", 30), receive("whole", 50)
        assert whole.whole() == b"x" * 50
        fast = receive("fast", 10)
        for one in (small, large, whole):
            one.progressed -= 60
        with pytest.raises(HttpError) as error:
            fast.add(b"x" * 41)  # more than all slow ones hold
        assert error.value.status_code == 429
        assert (stopped, uploads.held) == (["large", "small"], 60)
        with pytest.raises(TimeoutError):
            large.add(b"x")
        with pytest.raises(TimeoutError):
            small.whole()
        fast.add(b"x" * 39)
        fast.progressed -= 60
        with pytest.raises(TimeoutError):
            fast.add(b"x")  # it is the slow one now
    assert (uploads.held, uploads.arriving) == (0, set())


def test_progress_of_an_upload():
    with Uploads(1_000_000).receive(lambda: None) as one:
        one.progressed = 0.0
        for _ in range(39):
            one.add(b"x" * 1000)
        assert one.progressed == 0.0
        one.add(b"x" * 1000)
        assert one.progressed > 0


def test_what_waits_too_long_is_not_computed(client, monkeypatch):
    later = replace(client.app.service.limits, timeout=-1)
    monkeypatch.setattr(client.app.service, "limits", later)
    answer = client.post("/predict", content=picture(), headers=PNG)
    assert answer.status_code == 503
    assert "waited too long" in answer.json()["error"]
    assert answer.headers["retry-after"] == "1"


def test_what_would_wait_too_long_is_refused():
    limits = Limits(
        bytes=1, pixels=1, pictures=50, upload_seconds=1, timeout=10.0, queue=1_000, connections=1
    )
    admission = Admission(limits)
    admission.pace = 0.5
    with admission.enter(20):
        admission.check(1)
    admission.pace = 0.5
    with admission.enter(21), pytest.raises(HttpError) as error:
        admission.check()
    assert error.value.status_code == 429
    assert error.value.headers["Retry-After"] == "5"
    for _ in range(100):  # alone, it may always try
        with admission.enter(1):
            pass
    assert admission.pace < 0.001


def asked(client, messages, **scope):
    """(status, headers) of a request whose body comes as `messages` say."""
    sent = []
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "query_string": b"",
        "headers": [(b"content-type", b"image/png")],
        **scope,
    }

    async def send(message):
        sent.append(message)

    client.runner.run(client.app(scope, messages, send))
    return sent[0]["status"], dict(sent[0]["headers"])


def test_a_slow_body(client, limited):
    limited(upload_seconds=0.05)

    async def receive():
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    began = time.monotonic()
    status, headers = asked(client, receive)
    assert (status, headers[b"connection"]) == (408, b"close")
    assert time.monotonic() - began < 10
    assert client.app.service.uploads.held == 0


def test_a_client_that_goes(client):
    async def receive():
        return {"type": "http.disconnect"}

    assert asked(client, receive)[0] == 400

    async def whole():
        return {"type": "http.request", "body": picture(), "more_body": False}

    status, _ = asked(client, whole, **{"van.gone": lambda: True})
    assert status == 499
    assert client.app.service.admission.count == 0


def test_a_length_that_is_no_number(client):
    async def whole():
        return {"type": "http.request", "body": picture(), "more_body": False}

    for length, status in ((b"9" * 5000, 413), (b"-1", 200), (b"x", 200), (b"\xb2", 200)):
        headers = [(b"content-type", b"image/png"), (b"content-length", length)]
        assert asked(client, whole, headers=headers)[0] == status


def test_the_client_of_httpx_is_understood(client):
    answer = client.post("/predict", files={"file": ("ü ö.png", picture(), "image/png")})
    assert answer.json()["results"][0]["name"] == "ü ö.png"
    assert isinstance(answer, httpx.Response)
