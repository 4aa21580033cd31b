"""How many requests `van serve` answers, and how soon: measurements of `serving.py`."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections import Counter
from typing import Any

from serving_bench import (
    QUEUE,
    Bench,
    Part,
    capacity,
    costs,
    even,
    lost_of,
    measured_load,
    milliseconds,
    offered,
    poisson,
    results_of,
    steady,
    told,
)
from serving_client import Address, Answer, Client, Load, open_loop, percentile
from serving_server import HERE, busy


def baseline(bench: Bench, batch_size: int) -> dict[str, Any]:
    """Decode + engine without HTTP: `Classifier.stream` in a process alone."""
    folder = bench.folder / f"{bench.files.model}-bytes"
    folder.mkdir(exist_ok=True)
    for i, picture in enumerate(bench.files.pictures):
        (folder / f"{i:04d}").write_bytes(picture)
    command = [bench.python, str(HERE / "serving_baseline.py"), str(folder)]
    command += ["--weights", str(bench.files.weights), "--seconds", str(bench.seconds)]
    command += [*bench.options, "--batch-size", str(batch_size)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "TF_CPP_MIN_LOG_LEVEL": "3"}
    begun, all_before, mine = time.perf_counter(), busy(), sum(os.times()[:4])
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    others = (busy() - all_before) - (sum(os.times()[:4]) - mine)
    if done.returncode:
        raise SystemExit(f"failed: {' '.join(command)}\n{done.stderr[-2000:]}")
    others /= time.perf_counter() - begun
    return json.loads(done.stdout.splitlines()[-1]) | {"others_cores": max(others, 0.0)}


def throughput(bench: Bench) -> Part:
    """Pictures a second beside those without HTTP, launches in turn; the best of each counts."""
    part, alone = Part(), []
    loads: dict[int, list[Load]] = {1: [], 8: []}  # pictures a request -> launches
    details: list[dict[str, Any]] = []
    for _ in range(bench.rounds):
        alone += [baseline(bench, batch) for batch in (1, 8, 32, 128)]
        with bench.server() as server:
            for size, found in loads.items():
                address = server.address
                requests = bench.singles(address) if size == 1 else bench.several(address, size)
                load, clients = capacity(server, requests, bench.seconds, size)
                require_whole(load, size)
                found.append(load)
                details.append({"pictures": size, "clients": clients, **load.summary()})
    best = max(one["per_second"] for one in alone)
    part.details = {"without_http": alone, "loads": details}
    part.add("Without HTTP, pictures/s", "", f"{best:.1f} ({alone[0]['engine']})")
    for size, found in loads.items():
        load = max(found, key=Load.rate)
        rate = size * load.rate()
        text = f"{rate:.1f} = {rate / best:.3f}; {costs(load)}"
        what = f"Pictures/s, {size} a request"
        part.add(what, ">= 0.85 of it", text, rate / best >= 0.85)
    return part


def require_whole(load: Load, pictures: int) -> None:
    """Ends where answers that were looked into are not of so many pictures, all with classes."""
    for body in {one.body for one in load.of(200) if one.body}:
        results = results_of(body)
        if len(results) != pictures or not all(results):
            raise SystemExit(f"not {pictures} answered pictures: {body[:300]!r}")


def latency(bench: Bench) -> Part:
    """A single client's latency, and the slowest percent at half the capacity."""
    part = Part()
    with bench.server() as server:
        requests = bench.singles(server.address)
        best, clients = capacity(server, requests, bench.seconds / 2)
        half = best.rate() / 2
        seconds = max(bench.seconds, min(3 * bench.seconds, 1000 / half))
        single = steady(server, requests, 1, bench.seconds)
        schedules = {
            "evenly spaced": even(half, seconds),
            "at random (Poisson)": poisson(half, seconds, bench.seed),
        }
        loads = {name: offered(server, requests, s) for name, s in schedules.items()}
    one = single.percentile(0.5)
    part.details = {"capacity": best.summary() | {"clients": clients}, "single": single.summary()}
    part.details |= {name: load.summary() for name, load in loads.items()}
    part.add("A single request, median", "", f"{milliseconds(one)}; {costs(single)}")
    for name, load in loads.items():
        slowest, answered = load.percentile(0.99), len(load.of(200)) == len(load.answers)
        text = f"{milliseconds(slowest)} = {slowest / one:.2f}; {costs(load)}"
        if not answered:
            text += f"; {told(load.counts())}"
        what = f"p99 at half load ({half:.0f}/s), {name}"
        part.add(what, "<= 3 x it", text, answered and slowest <= 3 * one)
    return part


def clients(bench: Bench) -> Part:
    """All clients connect, then all ask at once, three times each."""
    part, each = Part(), 3

    async def work(address: Address, requests: list[bytes]) -> Load:
        cpu, made = (
            time.process_time(),
            [Client(address, timeout=120.0) for _ in range(bench.clients)],
        )
        # Who is refused here tries again with each request.
        await asyncio.gather(*(one.prepare() for one in made), return_exceptions=True)
        begun = time.perf_counter()

        async def one(i: int, own: Client) -> list[Answer]:
            found = [await own.ask(requests[(i + k) % len(requests)]) for k in range(each)]
            own.close()
            return found

        found = await asyncio.gather(*(one(i, own) for i, own in enumerate(made)))
        took = time.perf_counter() - begun
        return Load([a for many in found for a in many], took, time.process_time() - cpu)

    with bench.server() as server:
        requests = bench.singles(server.address)
        load = measured_load(server, work(server.address, requests))
        after = steady(server, requests, 4, min(bench.seconds, 1.0))
        memory = server.memory()
    part.details = {**load.summary(), "memory_after": memory, "after": after.summary()}
    lost, least = lost_of(load), min(QUEUE, bench.clients)
    text = f"{lost} lost: {told(load.counts())} in {load.seconds:.1f} s; {costs(load)}"
    what = f"{bench.clients:,} clients at once, {each} requests each"
    good = lost == 0 and len(load.of(200)) >= least
    part.add(what, f"0 lost, at least {least} answered 200", text, good)
    return part


def overload(bench: Bench) -> Part:
    """Twice as many as it can answer: what is answered beside what could be."""
    part = Part()
    with bench.server() as server:
        requests = bench.singles(server.address)
        before, n = capacity(server, requests, bench.seconds / 2)
        offer = 2 * before.rate()
        load = offered(server, requests, poisson(offer, 2 * bench.seconds, bench.seed))
        after = steady(server, requests, n, bench.seconds)
    able = (before.rate() + after.rate()) / 2
    ratio, lost = load.rate() / able, lost_of(load)
    part.details = {"before": before.summary(), "after": after.summary(), "load": load.summary()}
    text = f"{load.rate():.1f}/s = {ratio:.2f} of {able:.1f}/s, {lost} lost, p99 of them "
    text += f"{milliseconds(load.percentile(0.99))}: {told(load.counts())}; {costs(load)}"
    what = f"Answered at twice the capacity ({offer:.0f}/s)"
    part.add(what, ">= 0.9 of it, 0 lost", text, ratio >= 0.9 and lost == 0)
    return part


class Slow(asyncio.Protocol):
    """A client that sends a byte at a time and comes again when it is thrown out."""

    def __init__(self) -> None:
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)


async def crawl(address: Address, request: bytes, at_once: int, tally: Counter[str]) -> None:
    """Sends the first bytes of a request at once and the others one by one, every 0.5 s."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            transport, slow = await loop.create_connection(Slow, *address)
        except OSError:
            tally["refused"] += 1
            await asyncio.sleep(0.5)
            continue
        tally["connected"] += 1
        tally["now"] += 1
        try:
            transport.write(request[:at_once])
            for i in range(at_once, len(request)):
                await asyncio.wait([slow.closed], timeout=0.5)
                if slow.closed.done():
                    tally["thrown out"] += 1
                    break
                transport.write(request[i : i + 1])
        finally:
            tally["now"] -= 1
            transport.abort()


def slow(bench: Bench) -> Part:
    """The latency of others while clients send heads and bodies byte by byte."""
    part, tally, looks = Part(), Counter[str](), Counter[bool]()

    async def look(n: int) -> None:
        """How often all of them are connected; who is thrown out comes again at once."""
        while True:
            looks[tally["now"] >= n] += 1
            await asyncio.sleep(0.05)

    async def work(address: Address, requests: list[bytes], starts: list[float], n: int) -> Load:
        whole = requests[0]
        head = whole.index(b"\r\n\r\n") + 4
        crawling = [
            asyncio.create_task(crawl(address, whole, (20, head + 10)[i % 2], tally))
            for i in range(n)
        ]
        await asyncio.sleep(1.0 if n else 0.0)
        crawling += [asyncio.create_task(look(n))] if n else []
        client = Client(address)
        try:
            return await open_loop(client, requests, starts)
        finally:
            client.close()
            for task in crawling:
                task.cancel()
            await asyncio.gather(*crawling, return_exceptions=True)

    loads: dict[int, list[Load]] = {0: [], bench.slow: []}
    with bench.server() as server:
        requests = bench.singles(server.address)
        rate = capacity(server, requests, bench.seconds / 4)[0].rate() / 2
        for i in range(bench.rounds):
            starts = poisson(rate, bench.seconds, bench.seed + i)  # both meet the same
            for n, found in loads.items():
                found.append(measured_load(server, work(server.address, requests, starts, n)))
    without, beside = (
        percentile([a.seconds for load in found for a in load.of(200)], 0.99)
        for found in loads.values()
    )
    others = sum(len(load.answers) - len(load.of(200)) for load in loads[bench.slow])
    there, ratio = looks[True] / looks.total(), beside / without
    part.details = {str(n): [load.summary() for load in found] for n, found in loads.items()}
    part.details["slow_clients"] = {**tally, "all_connected": there}
    text = f"{milliseconds(beside)} beside {milliseconds(without)} = {ratio:.2f}; others than 200: "
    text += f"{others}; slow ones: all there {there:.0%} of the time, {tally['refused']} refused, "
    text += f"{tally['thrown out']} thrown out; {costs(loads[bench.slow][0])}"
    what = f"p99 at half load beside {bench.slow} slow clients"
    good = ratio <= 1.5 and others == 0 and there >= 0.95
    part.add(what, "<= 1.5 x without, all there", text, good)
    return part
