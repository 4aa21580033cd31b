"""What strangers do to a socket: a real one, served by a thread of this process."""

import json
import re
import socket
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from van_classification_tensorflow.serve import connections
from van_classification_tensorflow.serve.command import _bound, application
from van_classification_tensorflow.serve.connections import Connection
from van_classification_tensorflow.serve.request import ServeRequest
from van_classification_tensorflow.serve.server import GracefulServer

from .conftest import picture


class Running:
    """A server in a thread."""

    def __init__(self, **options):
        self.app = application(ServeRequest(weights=("digits",), port=0, **options))
        self.listener = _bound("127.0.0.1", 0)
        self.address = self.listener.getsockname()
        self.said, started = [], threading.Event()
        self.server = GracefulServer(self.app, self.listener, 0.0, self.said.append, started.set)
        self.thread = threading.Thread(target=self.server.go)
        self.thread.start()
        assert started.wait(30)

    def end(self):
        self.server.loop.call_soon_threadsafe(self.server.end)
        self.thread.join(30)
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def running():
    one = Running()
    yield one
    one.end()


@pytest.fixture
def connect(running):
    made = []

    def connect():
        made.append(socket.create_connection(running.address, timeout=20))
        return made[-1]

    yield connect
    for one in made:
        one.close()


def post(body=None, *headers, path="/predict", length=None):
    body = picture() if body is None else body
    length = len(body) if length is None else length
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {length}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def answer(connection):
    """(status, headers, body) of the next answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65_536)
        assert more, data
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", head)[1])
    while len(body) < length:
        more = connection.recv(65_536)
        assert more
        body += more
    assert len(body) == length
    return int(head[9:12]), head.decode().lower(), body


def closed(connection):
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_many_requests_on_a_connection(connect):
    one = connect()
    for _ in range(3):
        one.sendall(post())
        status, head, body = answer(one)
        assert (status, "connection: close" in head) == (200, False)
        assert json.loads(body)["results"][0]["error"] is None


def test_a_pipeline(connect):
    one = connect()
    get = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    one.sendall(get * 3 + b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    data = b""
    while more := one.recv(65_536):
        data += more
    assert data.count(b"HTTP/1.1 200") == 4
    assert data.count(b'{"live":true}') == 3


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n\r\nnonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET \xff HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"POST /predict HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\r\n c\x00: d\r\n\r\n",
    ],
)
def test_what_is_no_http(connect, data):
    one = connect()
    one.sendall(data)
    status, head, body = answer(one)
    assert status == 400
    assert "error" in json.loads(body)
    assert "connection: close" in head
    assert closed(one)


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"b" * 70_000,
    ],
)
def test_heads_without_end(connect, data):
    one = connect()
    one.sendall(data)
    assert answer(one)[0] == 431
    assert closed(one)


def test_slow_heads_are_closed(connect, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    silent, slow = connect(), connect()
    slow.sendall(b"GET / HT")
    for one in (silent, slow):
        assert answer(one)[0] == 408
        assert closed(one)
    idle = connect()
    idle.sendall(b"GET /v2 HTTP/1.1\r\n\r\n")
    assert answer(idle)[0] == 200
    time.sleep(1.5)
    idle.sendall(b"GET /v2 HTTP/1.1\r\n\r\n")  # between requests it may rest
    assert answer(idle)[0] == 200


def test_a_body_that_does_not_come(running, connect, monkeypatch):
    service = running.app.service
    monkeypatch.setattr(service, "limits", replace(service.limits, upload_seconds=0.3))
    one = connect()
    one.sendall(post(length=100_000))
    status, head, _ = answer(one)
    assert (status, "connection: close" in head) == (408, True)
    assert service.uploads.held == 0


def test_a_body_that_is_too_long_gets_its_answer(connect):
    """Although it is not read: the client may be told before it has sent everything."""
    one = connect()
    one.sendall(post(b"x" * 1000, length=30_000_000))
    status, head, _ = answer(one)
    assert (status, "connection: close" in head) == (413, False)
    one.sendall(b"x" * (30_000_000 - 1000))  # passed over
    one.sendall(post())
    assert answer(one)[0] == 200


def test_a_body_that_ends_early(running, connect):
    one = connect()
    one.sendall(post(length=100_000))
    time.sleep(0.05)
    one.close()
    end = time.monotonic() + 10
    while running.app.service.uploads.held:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_expect_continue(connect):
    one = connect()
    head, _, body = post(None, "Expect: 100-continue").partition(b"\r\n\r\n")
    one.sendall(head + b"\r\n\r\n")
    assert one.recv(1000).startswith(b"HTTP/1.1 100 ")
    one.sendall(body)
    assert answer(one)[0] == 200


def test_an_upgrade_is_not_made(connect):
    one = connect()
    one.sendall(b"GET /v2 HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    status, head, _ = answer(one)
    assert (status, "connection: close" in head) == (200, True)
    assert closed(one)


def test_too_many_connections(connect, monkeypatch):
    monkeypatch.setattr(Connection, "most", 2)
    connect()
    connect()
    time.sleep(0.1)
    assert answer(connect())[0] == 503


def test_a_client_that_reads_nothing_is_left(running, connect, monkeypatch):
    monkeypatch.setattr(connections, "_STUCK", 0.5)
    one = connect()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.sendall(b"GET /docs HTTP/1.1\r\n\r\n" * 2_000)
    end = time.monotonic() + 20
    while running.server.server_state.connections:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_the_end_closes_idle_connections_and_waits_for_the_others():
    one = Running()
    idle = socket.create_connection(one.address, timeout=20)
    idle.sendall(b"GET /v2 HTTP/1.1\r\n\r\n")
    assert answer(idle)[0] == 200
    busy = socket.create_connection(one.address, timeout=20)
    data = post()
    busy.sendall(data[:-10])
    time.sleep(0.1)
    one.server.loop.call_soon_threadsafe(one.server.end)
    assert closed(idle)
    time.sleep(0.3)
    assert one.thread.is_alive()
    busy.sendall(data[-10:])
    status, head, _ = answer(busy)
    assert (status, "connection: close" in head) == (200, True)
    one.thread.join(20)
    assert not one.thread.is_alive()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(one.address, timeout=5)
    for each in (idle, busy):
        each.close()


def test_nobody_new_comes_when_the_end_has_come(running):
    listener = _bound("127.0.0.1", 0)
    listener.listen(5)
    connections._refuse_new(listener)
    late = socket.socket()
    late.settimeout(0.3)
    with pytest.raises(OSError, match=r"timed out|refused"):
        late.connect(listener.getsockname())
    late.close()
    listener.close()


def test_the_client_of_triton(running):
    triton = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient("{}:{}".format(*running.address))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    name = client.get_model_metadata("digits")["inputs"][0]["name"]
    images = np.random.default_rng(0).random((3, 32, 32, 1), np.float32)
    found = []
    for binary in (True, False):
        given = triton.InferInput(name, images.shape, "FP32")
        given.set_data_from_numpy(images, binary_data=binary)
        wanted = [triton.InferRequestedOutput("logits", binary_data=binary)]
        found.append(client.infer("digits", [given], outputs=wanted).as_numpy("logits"))
    np.testing.assert_allclose(*found, atol=1e-6)
    files = triton.InferInput("pictures", [2], "BYTES")
    files.set_data_from_numpy(np.array([picture(1), picture(2)], dtype=object))
    shares = client.infer("digits", [files]).as_numpy("probabilities")
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
    with pytest.raises(triton.InferenceServerException, match="the models here are digits"):
        client.infer("another", [files])
    client.close()
