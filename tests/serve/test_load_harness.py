"""The load generator's own logic: what it counts as lost, its schedules, its changed requests."""

import asyncio
import json
import random
import sys
from collections import Counter
from pathlib import Path

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
        ("/never", "timeout", 0),
    ],
)
def test_what_became_of_a_request(client, path, outcome, status):
    async def work(address):
        one = client.Client(client.Address(*address), timeout=0.3)
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
    assert load.broken() == 20
    assert Counter(paths[one.request] for one in load.of(200)) == {"/ok": 10}
    assert load.rate() == pytest.approx(10 / load.seconds)
    summary = load.summary()
    assert summary["requests"] == 40
    assert summary["client_us_per_request"] == pytest.approx(1e6 * load.client_cpu / 40)
    json.dumps(summary)


def test_an_open_load_counts_from_the_time_that_was_meant(client):
    async def one_after_the_other(reader, writer):
        while await reader.readline():
            await reader.readuntil(b"\r\n\r\n")
            async with turn:
                await asyncio.sleep(0.02)
            writer.write(ANSWERS["/ok"][0])
        writer.close()

    async def work(address):
        one = client.Client(client.Address(*address))
        load = await client.open_loop(one, [get(client, address, "/")], [0.0] * 10)
        one.close()
        return load

    turn = asyncio.Lock()
    load = with_server(work, one_after_the_other)
    assert load.counts() == {"200": 10}
    # Each waited for those before it.
    assert all(
        a.seconds >= 0.02 * (i + 1)
        for i, a in enumerate(sorted(load.answers, key=lambda a: a.seconds))
    )


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


def test_the_table_of_peers():
    import serving_peers

    load = {"per_second": 90.0, "p50_ms": 20.0, "p99_ms": 41.7}
    one = {"best": load, "at_rate": load, "memory": 3e8, "installed": 2.3e8, "ready_s": 0.84}
    found = [{"name": "van serve", "how": "", **one}, {"name": "x", "how": "2 workers", **one}]
    text = serving_peers.table(found, 45.2)
    assert text.splitlines()[0].startswith("| | pictures/s | p50 at 45/s, ms | p99 at 45/s, ms |")
    assert text.splitlines()[2:] == [
        "| van serve | 90.0 | 20 | 42 | 300 | 230 | 0.8 |",
        "| x (2 workers) | 90.0 | 20 | 42 | 300 | 230 | 0.8 |",
    ]
    assert not any(one.startswith(("keras", "tensorflow")) for one in serving_peers.without_keras())


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


def test_many_clients(short):
    import serving_load

    require_met(serving_load.clients(short))


def test_reloads(short):
    import serving_life

    require_met(serving_life.reload_(short))


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
