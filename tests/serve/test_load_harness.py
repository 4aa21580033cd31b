"""The load generator's own logic: what it counts as lost, its schedules, its changed requests."""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def scripts():
    """The benchmarks import each other as scripts do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield


@pytest.fixture
def client():
    import serving_client

    return serving_client


@pytest.fixture
def bench():
    import serving_bench

    return serving_bench


ANSWERS = {  # path -> what a server sends; None: nothing more, then it closes
    "/ok": [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"],
    "/in-pieces": [b"HTT", b"P/1.1 200 OK\r\nContent-Le", b"ngth: 2\r\n\r\no", b"k"],
    "/busy": [b"HTTP/1.1 429 Full\r\nRetry-After: 3\r\nContent-Length: 2\r\n\r\nno"],
    "/chunked": [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n",
        b"1;x=y\r\nk\r\n0\r\n\r\n",
    ],
    "/until-close": [b"HTTP/1.1 200 OK\r\n\r\nok", None],
    "/last": [b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", None],
    "/go-on": [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"],
    "/closed": [None],
    "/half-a-head": [b"HTTP/1.1 200 OK\r\nContent-", None],
    "/half-a-body": [b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", None],
    "/half-a-chunk": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nok", None],
    "/no-http": [b"SSH-2.0\r\n\r\n"],
    "/more-than-said": [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokay"],
    "/more-than-chunks": [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nay"
    ],
    "/never": [],
}


async def scripted(reader, writer):
    try:
        while line := await reader.readline():
            while await reader.readline() not in (b"\r\n", b""):
                pass
            for piece in ANSWERS[line.split()[1].decode()]:
                if piece is None:
                    return
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.002)
    finally:
        writer.close()


def with_server(work, answer=scripted):
    """`work(address)` while a server of our own runs in the same loop."""

    async def both():
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            return await work(server.sockets[0].getsockname())

    return asyncio.run(both())


def get(client, address, path):
    return client.request_bytes(client.Address(*address), "GET", path)


@pytest.mark.parametrize(
    ("path", "outcome", "status"),
    [
        ("/ok", "answered", 200),
        ("/in-pieces", "answered", 200),
        ("/busy", "answered", 429),
        ("/chunked", "answered", 200),
        ("/until-close", "answered", 200),
        ("/last", "answered", 200),
        ("/go-on", "answered", 200),
        ("/closed", "closed", 0),
        ("/half-a-head", "partial", 0),
        ("/half-a-body", "partial", 0),
        ("/half-a-chunk", "partial", 0),
        ("/no-http", "partial", 0),
        ("/more-than-said", "partial", 0),
        ("/more-than-chunks", "partial", 0),
        ("/never", "timeout", 0),
    ],
)
def test_what_became_of_a_request(client, path, outcome, status):
    async def work(address):
        one = client.Client(client.Address(*address), timeout=0.2)
        first = await one.ask(get(client, address, path))
        second = await one.ask(get(client, address, "/ok"))  # on a good connection all the same
        one.close()
        return first, second, one.connections

    first, second, connections = with_server(work)
    assert (first.outcome, first.status) == (outcome, status)
    assert first.body == {200: b"ok", 429: b"no", 0: b""}[status]
    assert first.retry_after == (3 if status == 429 else None)
    assert (second.outcome, second.status) == ("answered", 200)
    kept = status and path not in ("/last", "/until-close")
    assert (connections, second.reused) == ((1, True) if kept else (2, False))


def test_nobody_listens(client):
    async def work(address):
        return address

    address = with_server(work)  # and gone
    answer = asyncio.run(client.Client(client.Address(*address)).ask(b"GET / HTTP/1.1\r\n\r\n"))
    assert (answer.outcome, answer.status) == ("refused", 0)


def test_a_load_counts_what_was_lost(client):
    paths = ["/ok", "/busy", "/closed", "/half-a-body"]

    async def work(address):
        requests = [get(client, address, path) for path in paths]
        one = client.Client(client.Address(*address))
        load = await client.closed_loop(one, requests, 3, count=40, keep=True)
        one.close()
        return load

    load = with_server(work)
    assert load.counts() == {"200": 10, "429": 10, "closed": 10, "partial": 10}
    assert Counter(paths[one.request] for one in load.of(200)) == {"/ok": 10}
    assert load.rate() == pytest.approx(10 / load.seconds)
    summary = load.summary()
    assert summary["requests"] == 40
    assert summary["client_us_per_request"] == pytest.approx(1e6 * load.client_cpu / 40)
    json.dumps(summary)


def test_an_open_load_counts_from_the_time_that_was_meant(client):
    """Also where the client itself comes too late to send: all that is due meanwhile waits."""
    starts = [i / 100 for i in range(10)]

    async def work(address):
        asyncio.get_running_loop().call_later(0.005, time.sleep, 0.15)
        one = client.Client(client.Address(*address))
        load = await client.open_loop(one, [get(client, address, "/ok")], starts)
        one.close()
        return load

    load = with_server(work)
    assert load.counts() == {"200": 10}
    assert [a.start - load.answers[0].start for a in load.answers] == pytest.approx(starts)
    assert all(a.seconds >= 0.15 - at for a, at in zip(load.answers[1:], starts[1:], strict=True))
    assert load.details["client_late_p99_ms"] >= 100


def test_refusals_are_lost_unless_they_say_when_to_come_again(client, bench):
    answers = [
        client.Answer("answered", status, retry_after=later)
        for status, later in [(200, None), (429, 1), (503, 5), (503, None), (429, 0), (500, 1)]
    ]
    load = client.Load([*answers, client.Answer("closed")], 1.0, 0.0)
    assert bench.lost_of(load) == 4


def test_answers_are_looked_into(client):
    import serving_load

    def load(*bodies):
        return client.Load([client.Answer("answered", 200, body=one) for one in bodies], 1.0, 0.0)

    serving_load.require_whole(load(body(0, 1), b"", body(1, 1)), 2)
    without = json.dumps({"results": [{"predictions": []}] * 2}).encode()
    for wrong in (body(0), without):
        with pytest.raises(SystemExit, match="not 2 answered pictures"):
            serving_load.require_whole(load(body(0, 1), wrong), 2)


def test_some_bodies_are_kept(client):
    async def work(address):
        one = client.Client(client.Address(*address))
        load = await client.closed_loop(one, [get(client, address, "/ok")], 1, count=9, keep=4)
        one.close()
        return load

    kept = [a.body for a in with_server(work).answers]
    assert kept == [b"ok", b"", b"", b"", b"ok", b"", b"", b"", b"ok"]


def test_percentiles_are_values_that_were_measured(client):
    values = list(range(100, 0, -1))
    assert [client.percentile(values, q) for q in (0.5, 0.99, 1.0)] == [50, 99, 100]
    assert client.percentile([7], 0.01) == 7
    assert np.isnan(client.percentile([], 0.5))


def test_schedules(bench):
    assert bench.even(4, 1) == [0, 0.25, 0.5, 0.75]
    drawn = bench.poisson(200, 10, 3)
    assert drawn == bench.poisson(200, 10, 3) != bench.poisson(200, 10, 4)
    assert drawn == sorted(drawn)
    assert 1800 < len(drawn) < 2200
    assert np.std(np.diff(drawn)) == pytest.approx(1 / 200, rel=0.1)  # exponential


def body(*models):
    """What `/predict` answers of pictures by these models, of which each has its own best class."""
    results = [
        {"predictions": [{"index": 3 + m, "probability": 0.6}, {"index": 9, "probability": 0.1}]}
        for m in models
    ]
    return json.dumps({"results": results}).encode()


def test_answers_of_two_models_are_told_apart(client, bench):
    import serving_life

    states = [bench.results_of(body(m, m)) for m in (0, 1)]
    answers = [
        client.Answer("answered", 200, body=one)
        for one in (body(0, 0), body(1, 1), body(1, 1), body(0, 1), body(2, 2), body(0))
    ]
    found = serving_life.judged(client.Load(answers, 1.0, 0.0), states, 2)
    assert found == {"first": 1, "second": 2, "mixed": 1, "neither": 2}
    (known,) = bench.results_of(body(0))
    assert not bench.alike({}, known)  # no answer is not the right one
    assert not bench.alike({3: 0.61, 9: 0.1}, known)
    assert bench.alike({3: 0.601, 9: 0.1}, known)


def test_changed_requests_are_those_of_their_seed():
    from serving_client import Address
    from serving_fuzz import Mutator

    mutator = Mutator(Address("127.0.0.1", 1), "m", "t", [b"picture" * 30], "image/png", (4, 4, 1))
    made = list(mutator.requests(5, 350))
    assert made == list(mutator.requests(5, 350))
    assert made != list(mutator.requests(6, 350))
    kinds = Counter(kind for kind, _ in made)
    assert set(kinds.values()) == {50}
    assert len(kinds) == 7
    assert len({data for _, data in made}) > 300
    whole = [data for kind, data in made if kind in ("picture", "parts", "infer_json")]
    for data in whole:  # what is changed is the body: its length is right
        head, _, rest = data.partition(b"\r\n\r\n")
        assert f"Content-Length: {len(rest)}".encode() in head.split(b"\r\n")


@pytest.mark.parametrize("data", [b"", b"x", b"a request of some length"])
def test_anything_can_be_changed(data):
    from serving_fuzz import changed

    found = {changed(random.Random(seed), data) for seed in range(50)}  # noqa: S311
    assert len(found) > 10


def test_multipart_is_what_the_standard_library_reads(client):
    import email

    files = [b"\r\n--a\0\xff", b""]
    data, kind = client.multipart(files, kind="image/png")
    message = email.message_from_bytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + data)
    parts = message.get_payload()
    assert [part.get_payload(decode=True) for part in parts] == files
    assert [part.get_content_type() for part in parts] == ["image/png"] * 2
    assert parts[1].get_param("name", header="content-disposition") == "pictures"


def test_a_process_is_measured_and_ended(tmp_path, client):
    from serving_server import HOST, free_port, started

    address = client.Address(HOST, free_port())
    command = [sys.executable, "-m", "http.server", str(address.port), "--bind", HOST]
    with started(command, address, tmp_path / "log", "/", tmp_path) as server:
        assert server.ready_s > 0
        assert server.processes() == [server.process.pid]
        assert 1e6 < server.memory() < 1e9
        assert server.cpu() >= 0
        assert server.get("/nothing")[0] == 404
        assert server.tracebacks() == 0
    assert not server.alive()
    with (
        pytest.raises(SystemExit, match=r"(?s)not ready.*No module named nothing"),
        started([sys.executable, "-m", "nothing"], address, tmp_path / "log", "/", tmp_path),
    ):
        pass


def test_the_two_models_of_digits_answer_otherwise(tmp_path, bench):
    from serving_server import prepare

    from van_classification_tensorflow import Classifier

    files = prepare("digits", tmp_path, 5)
    (first, other) = (
        [Classifier(path)(picture, top=1)[0] for picture in files.pictures]
        for path in (files.weights, files.other)
    )
    assert [(one.index + 1) % 10 for one in first] == [one.index for one in other]
    shares = [one.probability for one in first]
    np.testing.assert_allclose([one.probability for one in other], shares, rtol=1e-4)


def test_options(tmp_path):
    import serving

    args = serving.parse_args(["--model", "digits"])
    assert args.only == list(serving.MEASUREMENTS)
    args = serving.parse_args(["--environments", str(tmp_path)])
    assert args.only[-1] == "peers"
    for wrong in (["--only", "peers"], ["--only", "nothing"], ["--output", str(tmp_path / "a/b")]):
        with pytest.raises(SystemExit):
            serving.parse_args(wrong)


def test_the_table():
    import serving
    from serving_bench import Row

    rows = [Row("a", "<= 1", "2", False), Row("b", "", "3"), Row("c", "4", "4", True)]
    assert serving.table(rows).splitlines()[2:] == [
        "| a | <= 1 | 2 | MISSED |",
        "| b |  | 3 |  |",
        "| c | 4 | 4 | met |",
    ]


def test_what_others_took_of_the_machine_is_found():
    import serving

    details = {"a": {"loads": [{"others_cores": 0.2}, {"others_cores": 0.5, "per_second": 9}]}}
    assert serving.disturbed(details | {"took_s": 3.0, "b": {"others_cores": 0.1}}) == 0.5
    assert serving.disturbed({"a": [1, "x"], "b": {}}) is None


def test_capacity_is_that_of_the_best_number_of_clients(bench, client, monkeypatch):
    rates = {1: 10, 2: 30, 4: 20}

    def steady(server, requests, clients, seconds):
        return client.Load([client.Answer("answered", 200)] * rates[clients], 1.0, 0.0)

    monkeypatch.setattr(bench, "steady", steady)
    load, clients = bench.capacity(None, [], 1.0, pictures=8)
    assert (clients, load.rate()) == (2, 30)


def test_the_table_of_peers(client, tmp_path):
    import serving_peers

    def load(status, *seconds):
        answers = [client.Answer("answered", 200, seconds=one) for one in seconds]
        return client.Load([*answers, client.Answer("answered", status)], 0.1, 0.0, 0.0, 0.25)

    python = str(tmp_path / "bin" / "python")
    one = serving_peers.Contender("x", python, None, "2 workers")
    one.best.extend([load(200), load(500, 0.02, 0.03)])
    one.at_rate.extend([load(429, 0.02, 0.09), load(429, 0.02, 0.0417)])
    one.memory.extend([int(3e8), int(2e8)])
    one.ready_s.extend([0.84, 0.9, 0.1])
    text = serving_peers.table([one], 45.2)
    assert "| pictures/s | not 200 | p50 at 45/s, ms | p99, ms |" in text.splitlines()[0]
    assert text.splitlines()[2:] == [
        "| x (2 workers) | 20.0 | 1 | 20 | 42 | 2 | 0.25 | 300 | 0 | 0.8 |"
    ]
    json.dumps(one.record())
    assert not any(one.startswith(("keras", "tensorflow")) for one in serving_peers.without_keras())


def test_an_environment_that_was_cut_off_is_installed_again(tmp_path, monkeypatch):
    import serving_peers

    ran = []

    def run(command, check):
        ran.append(command[5:])
        if len(ran) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(serving_peers.subprocess, "run", run)
    monkeypatch.setattr(serving_peers.venv, "create", lambda path, **_: path.mkdir(exist_ok=True))
    with pytest.raises(KeyboardInterrupt):
        serving_peers.environments(tmp_path, False)
    found = serving_peers.environments(tmp_path, False)
    assert [one[0] for one in ran[:3]] == ["litserve", "bentoml", "bentoml"]
    assert found["van"] == str(tmp_path / "van" / "bin" / "python")
    count = len(ran)
    assert serving_peers.environments(tmp_path, False) == found
    assert len(ran) == count


def test_what_was_measured_before_a_failure_is_kept(tmp_path, monkeypatch, capsys, bench):
    import serving

    def good(_):
        part = bench.Part()
        part.add("a thing", "<= 1", "1", True)
        return part

    def bad(_):
        raise SystemExit("no server")

    monkeypatch.setattr(serving, "MEASUREMENTS", {"good": good, "bad": bad})
    monkeypatch.setattr(serving, "bench_of", lambda args, folder: None)
    monkeypatch.setattr(serving, "versions_of", lambda python, libraries: {})
    file = tmp_path / "found.json"
    with pytest.raises(SystemExit, match="no server"):
        serving.main(["--only", "good", "bad", "--output", str(file)])
    record = json.loads(file.read_text())
    assert record["rows"][0]["what"] == "a thing"
    assert list(record["details"]) == ["good"]
    assert "| a thing | <= 1 | 1 | met |" in capsys.readouterr().out


RESULT = b'{"results": [{"predictions": [{"index": 1, "probability": 0.5}]}]}'
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(RESULT), RESULT)
FULL = b"HTTP/1.1 429 Full\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
WRONG = {
    "500": b"HTTP/1.1 500 Wrong\r\nContent-Length: 0\r\n\r\n",
    "503 that does not say when": b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n",
    "no answer": b"",
}


@contextmanager
def answering(wrong, every):
    """A server in a thread that answers so, of so many requests one."""
    asked = 0

    async def answer(reader, writer):
        nonlocal asked
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
                await reader.readexactly(int(length or 0))
                asked += 1
                sent = GOOD if asked % every else wrong
                writer.write(sent)
                if not sent:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(answer, "127.0.0.1", 0, backlog=500))
    thread = Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()


@pytest.fixture
def stub(bench, client):
    """Gives a `Bench` whose server answers so, of so many requests one."""
    files = SimpleNamespace(pictures=[b"a", b"b"], kind="image/png")

    def make(wrong=GOOD, every=1):
        class Stubbed(bench.Bench):
            @contextmanager
            def server(self):
                with answering(wrong, every) as address:
                    yield SimpleNamespace(
                        address=client.Address(*address), cpu=lambda: 0.0, memory=lambda: 1
                    )

        return Stubbed(files, None, seconds=0.02, rounds=1, clients=200)

    return make


def test_many_clients_of_a_good_server(stub):
    import serving_load

    (row,) = serving_load.clients(stub()).rows
    assert row.met, row
    (row,) = serving_load.clients(stub(FULL, 2)).rows  # refuses half of them, as it may
    assert row.met, row


@pytest.mark.parametrize(
    ("name", "wrong"), [*(("clients", wrong) for wrong in WRONG), ("overload", "500")]
)
def test_what_a_bad_server_loses_is_not_overlooked(stub, name, wrong):
    import serving

    (row,) = serving.MEASUREMENTS[name](stub(WRONG[wrong], 20)).rows
    assert row.met is False, row
    assert " 0 lost" not in row.measured


def test_a_server_that_refuses_nearly_all_is_not_overlooked(stub):
    import serving_load

    (row,) = serving_load.clients(stub(FULL, 1)).rows
    assert row.met is False, row
    assert "0 lost" in row.measured


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """What is asked for, in seconds instead of minutes."""
    import serving_bench
    from serving_server import prepare

    folder = tmp_path_factory.mktemp("load")
    return serving_bench.Bench(
        prepare("digits", folder, 8),
        folder,
        seconds=0.2,
        rounds=1,
        times=2,
        clients=100,
        slow=10,
        requests=400,
        mutants=70,
    )


def require_met(part):
    """For what does not depend on how fast the machine is."""
    json.dumps(part.details)
    assert part.rows
    assert all(row.met is not False for row in part.rows), part


@pytest.mark.slow
def test_many_clients(short):
    import serving_load

    require_met(serving_load.clients(short))


@pytest.mark.slow
def test_reloads(short):
    import serving_life

    require_met(serving_life.reload_(short))


@pytest.mark.slow
def test_changed_requests(short):
    import serving_fuzz

    require_met(serving_fuzz.fuzz(short))


@pytest.mark.slow
def test_signals(short):
    import serving_life

    (ended, *_) = serving_life.sigterm(short).rows
    assert ended.met, ended


@pytest.mark.slow
def test_a_client_of_others(short):
    pytest.importorskip("tritonclient.http")
    import serving_triton

    require_met(serving_triton.triton(short))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["throughput", "latency", "overload", "slow", "memory", "ready"])
def test_what_depends_on_the_machine_is_measured(short, name):
    import serving

    part = serving.MEASUREMENTS[name](short)
    json.dumps(part.details)
    assert any(row.met is not None for row in part.rows)
