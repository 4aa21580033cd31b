"""What strangers do to a socket: a real one, served by a thread of this process."""

import asyncio
import contextlib
import json
import re
import select
import socket
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from van_classification_tensorflow.serve import connections, limits
from van_classification_tensorflow.serve.app import App
from van_classification_tensorflow.serve.command import application, bound
from van_classification_tensorflow.serve.connections import Connection
from van_classification_tensorflow.serve.request import ServeRequest
from van_classification_tensorflow.serve.server import GracefulServer

from .conftest import picture


class Running:
    """A server in a thread."""

    def __init__(self, **options):
        self.app = application(ServeRequest(weights=("digits",), port=0, **options))
        self.listener = bound("127.0.0.1", 0)
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
def gate(monkeypatch):
    """Keeps `GET /labels` at work until it is set."""
    opened, answer = threading.Event(), App.__call__

    async def wait(app, scope, receive, send):
        while scope["path"] == "/labels" and not opened.is_set():
            await asyncio.sleep(0.01)
        await answer(app, scope, receive, send)

    monkeypatch.setattr(App, "__call__", wait)
    yield opened
    opened.set()


@pytest.fixture
def most(running, monkeypatch):
    """Sets how many connections there may be."""
    service = running.app.service
    return lambda n: monkeypatch.setattr(service, "limits", replace(service.limits, connections=n))


@pytest.fixture
def alone(running):
    """Waits until connections of other tests are gone."""
    wait_for(lambda: not running.server.server_state.connections)


def wait_for(what):
    end = time.monotonic() + 20
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def counted(running):
    """Tells how often a refusal was counted since the test began: (answers, reason)."""
    registry = running.app.service.metrics.registry

    def now(status, reason):
        answers = {"path": "connection", "status": str(status)}
        return (
            registry.get_sample_value("van_requests_total", answers) or 0,
            registry.get_sample_value("van_refusals_total", {"reason": reason}) or 0,
        )

    refusals = {
        400: "no HTTP",
        408: "head too slow",
        429: "pipeline too long",
        431: "head too long",
        503: "connections full",
    }
    before = {status: now(status, reason) for status, reason in refusals.items()}

    def since(status):
        answers, reasons = now(status, refusals[status])
        return answers - before[status][0], reasons - before[status][1]

    return since


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
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        f"Content-Length: {length}",
        *headers,
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + body


def answer(connection):
    """(status, headers, body) of the next answer."""
    head, body = b"", b""
    while not head.endswith(b"\r\n\r\n"):
        more = connection.recv(1)  # what comes after it belongs to the next answer
        assert more, head
        head += more
    length = int(re.search(rb"content-length: (\d+)", head)[1])
    while len(body) < length:
        more = connection.recv(length - len(body))
        assert more
        body += more
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
    get = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    one.sendall(get * 3 + b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    data = b""
    while more := one.recv(65_536):
        data += more
    assert data.count(b"HTTP/1.1 200") == 4
    assert data.count(b'{"live":true}') == 3


def test_a_pipeline_isbounded(connect, counted, monkeypatch):
    parsed, waiting = [], []
    begin, complete = Connection.on_message_begin, Connection.on_headers_complete

    def note(self):
        waiting.append(len(self.pipeline))
        begin(self)

    def count(self):
        complete(self)
        parsed.append(self)

    monkeypatch.setattr(Connection, "on_message_begin", note)
    monkeypatch.setattr(Connection, "on_headers_complete", count)
    one = connect()
    one.sendall(b"GET /v2 HTTP/1.1\r\n\r\n" * 60)
    most = connections.MOST_WAITING + 1
    for _ in range(most):
        status, head, _ = answer(one)
        assert (status, "connection: close" in head) == (200, False)
    status, head, _ = answer(one)
    assert (status, "retry-after: 1\r" in head, "connection: close" in head) == (429, True, True)
    assert closed(one)
    assert (len(parsed), max(waiting)) == (most, most - 1)
    assert counted(429) == (1, 1)
    flood = connect()
    flood.sendall(b"GET /docs HTTP/1.1\r\n\r\n" * 11_000)
    wait_for(lambda: counted(429)[1] == 2)
    assert max(waiting) == most - 1
    assert len(waiting) < 200  # a few pieces, each of which may be answered before the next comes


BEHIND = [
    (b"nonsense\r\n\r\n", 400),
    (b"GET /" + b"a" * 70_000, 431),
    (b"GET / HTTP/1.1\r\nA: " + b"b" * 140_000, 431),
    (b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    (b"GET /v2 HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
]


@pytest.mark.parametrize(("data", "refusal"), BEHIND)
def test_what_is_refused_waits_for_the_answers_before_it(connect, gate, counted, data, refusal):
    one = connect()
    one.sendall(b"GET /labels HTTP/1.1\r\n\r\n")
    time.sleep(0.05)
    for piece in (data[:100], data[100:]):
        one.sendall(piece)
        time.sleep(0.05)
    wait_for(lambda: counted(refusal) == (0, 1))
    gate.set()
    status, _, body = answer(one)
    assert (status, b'"labels"' in body) == (200, True)
    if data.startswith(b"GET /v2"):
        assert answer(one)[0] == 200
    assert answer(one)[0] == refusal
    assert closed(one)
    assert counted(refusal) == (1, 1)


CHUNKED = b"POST %b HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(("path", "status"), [(b"/predict", 431), (b"/nothing", 404)])
@pytest.mark.parametrize("before", [b"0\r\nX: ", b"5;"])
def test_headers_behind_a_body_arebounded(connect, path, status, before):
    one = connect()
    one.sendall(CHUNKED % path + before)
    if status == 404:
        assert answer(one)[0] == 404
    with contextlib.suppress(ConnectionError):  # it may be closed meanwhile
        for _ in range(50):
            one.sendall(b"a" * 20_000)
            time.sleep(0.002)
    if status == 431:
        assert answer(one)[0] == 431
    assert closed(one)


def test_headers_behind_a_body_change_nothing(connect):
    one, body = connect(), picture()
    chunk, behind = b"%x\r\n%b\r\n" % (len(body), body), b"0\r\nContent-Encoding: gzip\r\n\r\n"
    one.sendall(CHUNKED % b"/predict" + chunk + behind)  # at once: there before it is answered
    assert answer(one)[0] == 200


def test_empty_lines_between_requests_mean_nothing(running, connect, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.1)
    one = connect()
    for _ in range(2):
        one.sendall(b"GET /v2 HTTP/1.1\r\n\r\n")
        assert answer(one)[0] == 200
        one.sendall(b"\r\n")
        time.sleep(0.2)
        loop = running.server.loop
        for there in list(running.server.server_state.connections):
            loop.call_soon_threadsafe(there.sweep, loop.time())


def test_who_asks_several_at_once_and_leaves_is_no_mistake(running, connect, monkeypatch, capfd):
    answer = App.__call__

    async def later(app, scope, receive, send):
        await asyncio.sleep(0.1)
        await answer(app, scope, receive, send)

    monkeypatch.setattr(App, "__call__", later)
    one = connect()
    one.sendall(post() * 2)
    wait_for(lambda: running.server.server_state.tasks)
    one.close()
    state = running.server.server_state
    wait_for(lambda: not (state.connections or state.tasks))
    assert capfd.readouterr().err == ""


class Unread:
    """A transport whose client reads so many bytes between two looks."""

    def __init__(self, waiting, reads):
        self.waiting, self.reads, self.aborted = waiting, reads, False

    def get_write_buffer_size(self):
        self.waiting = max(0, self.waiting - self.reads)
        return self.waiting

    def is_closing(self):
        return True

    def abort(self):
        self.aborted = True


@pytest.mark.parametrize(("reads", "aborted"), [(0, True), (100, True), (20_000, False)])
def test_who_reads_slowly_is_not_left(reads, aborted):
    one = object.__new__(Connection)
    one.since, one._unread, one._stuck_since = 0.0, 0, None
    one.transport = Unread(1_000_000, reads)
    for now in range(1, 61):
        one.sweep(float(now))
    assert one.transport.aborted == aborted


def test_nothing_is_written_into_an_answer(connect):
    """What is wrong with a body that was answered already only ends the connection."""
    one = connect()
    one.sendall(b"POST /nothing HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert answer(one)[0] == 404
    one.sendall(b"zz\r\n")
    assert closed(one)


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
def test_what_is_no_http(connect, counted, data):
    one = connect()
    one.sendall(data)
    status, head, body = answer(one)
    assert status == 400
    assert "error" in json.loads(body)
    assert "connection: close" in head
    assert "retry-after" not in head
    assert closed(one)
    assert counted(400) == (1, 1)


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


def test_a_head_behind_a_request_has_its_time_after_the_answer(
    alone, running, connect, gate, monkeypatch
):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1.0)
    loop, one = running.server.loop, connect()
    one.sendall(b"GET /labels HTTP/1.1\r\n\r\nGET /v2 HT")
    time.sleep(1.1)
    (there,) = running.server.server_state.connections
    loop.call_soon_threadsafe(lambda: there.sweep(loop.time()))
    time.sleep(0.05)
    gate.set()
    assert answer(one)[0] == 200
    loop.call_soon_threadsafe(lambda: there.sweep(loop.time()))
    time.sleep(0.05)
    one.sendall(b"TP/1.1\r\n\r\nGET /v2 HT")
    assert answer(one)[0] == 200
    assert answer(one)[0] == 408
    assert closed(one)


def test_a_new_connection_has_one_time_limit(alone, running, connect):
    one, state = connect(), running.server.server_state
    wait_for(lambda: state.connections)
    (there,) = state.connections
    since = there.since
    time.sleep(0.05)
    one.sendall(b"G")
    wait_for(lambda: there.stage == "head")
    assert there.since == since


def test_slow_heads_are_closed(connect, counted, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    silent, slow = connect(), connect()
    slow.sendall(b"GET / HT")
    for one in (silent, slow):
        status, head, _ = answer(one)
        assert (status, "retry-after" in head) == (408, False)
        assert closed(one)
    assert counted(408) == (2, 2)
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


def uploading(running):
    return len(running.app.service.uploads.arriving)


def test_bytes_of_bodies_that_are_never_whole_are_counted(running, connect):
    def counted():
        return running.app.service.metrics.registry.get_sample_value("van_upload_bytes_total")

    before, one = counted(), connect()
    one.sendall(post(b"x" * 70, length=100))
    wait_for(lambda: counted() == before + 70)


def test_slow_uploads_make_room_for_others(running, connect, monkeypatch):
    """Twelve that hold nearly all there is, and stop: who comes next is served."""
    monkeypatch.setattr(limits, "_PATIENCE", 0.3)
    uploads = running.app.service.uploads
    monkeypatch.setattr(uploads, "most", 12 * 50_000 + 10)
    slow = [connect() for _ in range(12)]
    for one in slow:
        one.sendall(post(b"x" * 50_000, length=60_000))
    wait_for(lambda: uploads.held == 12 * 50_000)
    time.sleep(0.4)
    other = connect()
    other.sendall(post())
    assert answer(other)[0] == 200
    assert uploading(running) == 11
    (ended,), _, _ = select.select(slow, [], [], 20)
    status, head, body = answer(ended)
    assert (status, "connection: close" in head) == (408, True)
    assert b"others need its place" in body
    assert closed(ended)
    for one in slow:
        one.close()
    wait_for(lambda: uploads.held == 0)


def test_too_many_connections(alone, connect, gate, counted, most):
    most(2)
    busy = [connect(), connect()]
    for one in busy:
        one.sendall(b"GET /labels HTTP/1.1\r\n\r\n")
    time.sleep(0.3)
    status, head, _ = answer(connect())
    assert (status, "retry-after: 1\r" in head) == (503, True)
    assert counted(503) == (1, 1)
    gate.set()
    assert [answer(one)[0] for one in busy] == [200, 200]


def test_idle_connections_make_room_for_others(alone, running, connect, most):
    most(3)
    idle = connect()
    idle.sendall(b"GET /v2 HTTP/1.1\r\n\r\n")
    assert answer(idle)[0] == 200
    time.sleep(0.05)
    silent = connect()
    time.sleep(0.05)
    half = connect()
    half.sendall(b"GET /v2 HT")
    time.sleep(0.3)
    for left in (lambda: closed(idle), lambda: closed(silent), lambda: answer(half)[0] == 408):
        other = connect()
        other.sendall(b"GET /v2 HTTP/1.1\r\n\r\n")
        assert answer(other)[0] == 200
        assert left()
    wait_for(lambda: len(running.server.server_state.connections) == 3)


def test_slow_uploads_make_room_for_other_connections(alone, running, connect, most, monkeypatch):
    most(2)
    monkeypatch.setattr(limits, "_PATIENCE", 0.3)
    slow = [connect(), connect()]
    for one, size in zip(slow, (10, 20), strict=True):
        one.sendall(post(b"x" * size, length=100))
    wait_for(lambda: uploading(running) == 2)
    time.sleep(0.4)
    other = connect()
    other.sendall(b"GET /v2 HTTP/1.1\r\n\r\n")
    assert answer(other)[0] == 200
    assert answer(slow[1])[0] == 408
    assert uploading(running) == 1


@pytest.fixture
def unread(alone, running, connect):
    """A connection whose client does not read its answers."""
    one = connect()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    wait_for(lambda: running.server.server_state.connections)
    (there,) = running.server.server_state.connections
    there.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    one.sendall(b"GET /docs HTTP/1.1\r\n\r\n" * 16)
    wait_for(there.transport.get_write_buffer_size)
    return there


def test_a_client_that_reads_nothing_is_left(running, unread, monkeypatch):
    monkeypatch.setattr(connections, "_STUCK", 0.5)
    wait_for(lambda: not running.server.server_state.connections)


def test_a_client_that_reads_nothing_makes_room_for_others(running, unread, connect, most):
    most(1)
    wait_for(lambda: unread._waited(unread.loop.time()) > 0.3)
    other = connect()
    other.sendall(b"GET /v2 HTTP/1.1\r\n\r\n")
    assert answer(other)[0] == 200
    assert unread not in running.server.server_state.connections


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


def test_the_end_waits_for_what_has_begun(gate):
    one = Running()
    work, behind, head = (socket.create_connection(one.address, timeout=20) for _ in range(3))
    work.sendall(b"GET /labels HTTP/1.1\r\n\r\nGET /v2 HT")
    behind.sendall(b"GET /labels HTTP/1.1\r\n\r\nGET /v2 HTTP/1.1\r\n\r\n")
    head.sendall(b"GET /v2 HT")
    time.sleep(0.1)
    one.server.loop.call_soon_threadsafe(one.server.end)
    time.sleep(0.4)
    head.sendall(b"TP/1.1\r\n\r\n")
    gate.set()
    for connection, closes in ((work, [True]), (behind, [False, True]), (head, [True])):
        for close in closes:
            status, said, _ = answer(connection)
            assert (status, "connection: close" in said) == (200, close)
        assert closed(connection)
        connection.close()
    one.thread.join(20)
    assert not one.thread.is_alive()


def test_who_asks_again_and_again_does_not_hold_up_the_end(gate):
    one = Running()
    asks = socket.create_connection(one.address, timeout=20)
    asks.sendall(b"GET /labels HTTP/1.1\r\n\r\n" * 2)
    time.sleep(0.1)
    one.server.loop.call_soon_threadsafe(one.server.end)
    wait_for(lambda: one.app.ending)
    asks.sendall(b"GET /labels HTTP/1.1\r\n\r\n" * 3)
    time.sleep(0.1)
    gate.set()
    for close in (False, True):
        status, said, _ = answer(asks)
        assert (status, "connection: close" in said) == (200, close)
    assert closed(asks)
    asks.close()
    one.thread.join(20)
    assert not one.thread.is_alive()


def test_nobody_new_comes_when_the_end_has_come(running):
    listener = bound("127.0.0.1", 0)
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
