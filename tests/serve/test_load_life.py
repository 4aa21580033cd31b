"""A server that does wrong is found out by each measurement of its life."""

import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PICTURES = 4
# Answers of each picture are the number in the model's file; a picture without its end is refused.
STUB = r"""
import asyncio, json, os, re, signal, sys

port, file, fault, good = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
asked = reloads = 0
draining = False
number = old = waiting = 0
gate, connections = asyncio.Event(), set()

def reload():
    global number, old, reloads
    text = open(file).read()
    if text.isdigit():
        number, old, reloads = int(text), number, reloads + 1
    return 200 if text.isdigit() else 409

async def answered(path, body):
    global asked
    if path == "/v2/health/ready":
        return (503 if draining and fault != "ready" else 200), {}
    if path == "/about":
        return 200, {"models": [{"name": "m", "preprocessing": {"input_size": 2, "mean": [0]}}]}
    if path == "/reload":
        return reload(), {}
    if path != "/predict":
        return 404, {}
    asked += 1
    if asked > good:
        if fault == "hang":
            await asyncio.sleep(60)
        elif fault == "dead":
            os._exit(3)
        elif fault == "close":
            raise EOFError
        elif fault == "traceback":
            print("Traceback (most recent call last):", file=sys.stderr, flush=True)
        elif fault.isdigit():
            return int(fault), {}
    index = old if fault == "old" and reloads > 2 and asked % 5 == 0 else number
    count = body.count(b"filename=") or 1
    one = {"predictions": [{"index": index, "probability": 0.5}]}
    return (200 if b"end" in body else 422), {"results": [one] * count}

async def serve(reader, writer):
    global waiting
    connections.add(writer)
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            before = draining
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)\r\n", head)
            body = await reader.readexactly(int(length[1]) if length else 0)
            if fault == "uploads" and before != draining:
                return
            status, found = await answered(head.split()[1].decode(), body)
            text = json.dumps(found).encode()
            waiting += 1
            await gate.wait()
            waiting -= 1
            last = draining
            head = b"HTTP/1.1 %d X\r\n" % status + b"Connection: close\r\n" * last
            head += b"Content-Length: %d\r\n\r\n" % len(text)
            writer.write(head + text)
            await asyncio.sleep(0.002)
            if last:
                return
    except Exception:
        pass
    finally:
        connections.discard(writer)
        writer.close()

async def end(server):
    global draining
    draining = True
    await asyncio.sleep(0.01)
    if fault == "hang":
        os._exit(0)
    if connections:
        await asyncio.sleep(0.07)
        gate.clear()  # until all clients wait, so that none comes when it closes
        for _ in range(40):
            await asyncio.sleep(0.005 * (waiting < 16))
        await asyncio.sleep(0.03)
    server.close()
    gate.set()
    while connections:
        await asyncio.sleep(0.005)
    os._exit(0)

async def main():
    loop = asyncio.get_running_loop()
    gate.set()
    server = await asyncio.start_server(serve, "127.0.0.1", port, backlog=100)
    loop.add_signal_handler(signal.SIGTERM, lambda: loop.create_task(end(server)))
    loop.add_signal_handler(signal.SIGHUP, reload)
    await asyncio.sleep(60)

reload()
asyncio.run(main())
"""


@pytest.fixture(scope="module", autouse=True)
def scripts():
    """The benchmarks import each other as scripts do; nobody waits long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import serving_fuzz
        import serving_life

        patch.setattr(serving_life, "BEFORE_S", 0.05)
        patch.setattr(serving_life, "PAUSE_S", 0.04)
        patch.setattr(serving_life, "LET_IN_S", 0.06)
        patch.setattr(serving_life, "UPLOADS_S", (0.02, 0.05))
        patch.setattr(serving_fuzz, "PATIENCE_S", 0.1)
        yield


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Makes a `Bench` whose servers have a fault, after so many answers without it."""
    import serving_bench
    import serving_fuzz
    import serving_life
    from serving_client import Address
    from serving_server import HOST, Files, free_port, started

    class Bench(serving_bench.Bench):
        @contextmanager
        def server(self, weights=None):
            address, file = Address(HOST, free_port()), str(weights or self.files.weights)
            command = [self.python, "-S", "-c", STUB, str(address.port), file, *self.options]
            with started(command, address, tmp_path / "log", folder=tmp_path) as server:
                yield server

    def make(fault, good=0, **options):
        if fault == "hang":
            monkeypatch.setattr(serving_life, "WAIT_S", 0.1)
            monkeypatch.setattr(serving_fuzz, "HANG_S", 0.2)
        for i in range(2):
            (tmp_path / str(i)).write_text(str(i))
        pictures = [b"picture %d, of which this is the end" % i for i in range(PICTURES)]
        files = Files("stub", tmp_path / "0", tmp_path / "1", pictures, "image/png")
        # Of this seed SIGTERM comes early.
        return Bench(files, tmp_path, options=(fault, str(good)), seed=31, **options)

    return make


@pytest.mark.parametrize("fault", ["none", "500", "dead", "hang", "uploads", "ready"])
def test_sigterm(served, fault):
    import serving_life

    ended, unready, _ = serving_life.sigterm(served(fault, times=1)).rows
    assert ended.met is (fault in ("none", "ready")), ended
    if fault == "uploads":
        assert "2 lost" in ended.measured
    assert fault not in ("none", "ready") or unready.met is (fault == "none"), unready


@pytest.mark.parametrize("fault", ["none", "503", "dead", "hang", "old"])
def test_reload(served, fault):
    import serving_life

    part = serving_life.reload_(served(fault, good=2 * PICTURES, times=2))
    assert part.rows[0].met is (fault == "none")
    assert (part.details["verdicts"].get("late", 0) > 0) is (fault == "old")


@pytest.mark.parametrize("fault", ["none", "503", "dead"])
def test_memory(served, fault):
    import serving_life

    row = serving_life.memory(served(fault, requests=200)).rows[0]
    assert ("NOT" in row.measured) is (fault != "none")
    assert fault == "none" or row.met is False


@pytest.mark.parametrize("fault", ["none", "500", "503", "dead", "hang", "close", "traceback"])
def test_changed_requests(served, fault):
    import serving_fuzz

    (row,) = serving_fuzz.fuzz(served(fault, good=PICTURES, mutants=21)).rows
    assert row.met is (fault == "none")


def test_tracebacks_of_ours_are_told_and_all_processes_ended(tmp_path):
    from serving_client import Address
    from serving_server import HOST, OURS, free_port, read_or_empty, started

    address = Address(HOST, free_port())
    script = f"""
import http.server, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(9)"])
print("Traceback (most recent call last):", flush=True)
http.server.HTTPServer({tuple(address)}, http.server.SimpleHTTPRequestHandler).serve_forever()
"""
    command = [sys.executable, "-c", script, OURS]
    with ExitStack() as stack:
        server = stack.enter_context(started(command, address, tmp_path / "log", "/", tmp_path))
        _, below = server.processes()
        with pytest.raises(SystemExit, match="1 tracebacks in its log"):
            stack.close()
    for _ in range(100):  # the system takes a moment
        if "Z" in (read_or_empty(Path(f"/proc/{below}/stat")) or "Z").split(")")[-1]:
            return
        time.sleep(0.02)
    pytest.fail("what it had started lives on")
