"""`van serve` over its life: start, signals, reloads, memory; measurements of `serving.py`."""

from __future__ import annotations

import asyncio
import math
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving_bench import (
    TOKEN,
    Answers,
    Bench,
    Part,
    alike,
    answers_now,
    measured_load,
    milliseconds,
    results_of,
    told,
    told_answer,
)
from serving_client import (
    Address,
    Answer,
    Client,
    Load,
    closed_loop,
    percentile,
    request_bytes,
    run,
)
from serving_server import READY, Server, watched

WAIT_S = 60.0  # for an answer, an end, a reload
PAUSE_S = 0.2  # between reloads
BEFORE_S = 0.3  # SIGTERM, and up to a second more
LET_IN_S = 0.5  # after SIGTERM, while nobody may be refused: half of `--drain`
UPLOADS_S = (0.1, 0.5, 1.2)  # after SIGTERM, when the last bytes of bodies come that had begun


@watched
def sigterm(bench: Bench) -> Part:
    """SIGTERM under load: who was answered, and whether it ended well."""
    part, draw = Part(), random.Random(bench.seed)
    runs = []
    for _ in range(bench.times):
        with bench.server() as server:
            delay = BEFORE_S + draw.random()
            load, seen = run(_terminated(server, bench.singles(server.address), delay))
            runs.append({**load.summary(), **seen, "exit": server.stop()})
    good = sum(one["exit"] == 0 and one["lost"] == 0 for one in runs)
    counts = sum((Counter(one["counts"]) for one in runs), Counter())
    part.details = {"runs": runs}
    text = f"{good} of {bench.times}; exit statuses {sorted({str(r['exit']) for r in runs})}, "
    text += f"{sum(r['lost'] for r in runs)} lost: {told(dict(sorted(counts.items())))}"
    what = f"SIGTERM under load, {bench.times} times: exit 0, every request answered 200"
    part.add(what, f"{bench.times} of {bench.times}", text, good == bench.times)
    late, others = max(one["unready_s"] for one in runs), [one["unready"] for one in runs]
    text = f"within {milliseconds(late)}: {told(dict(Counter(others)))}"
    part.add("503 of health after SIGTERM", "at once", text, late < 0.5 and set(others) == {"503"})
    longest = max(one["gone_s"] for one in runs)
    part.add("Gone after SIGTERM", "", f"within {longest:.2f} s")
    return part


async def _terminated(
    server: Server, requests: list[bytes], delay: float
) -> tuple[Load, dict[str, Any]]:
    """The load around one SIGTERM, until nothing listens; what health said, and when, and the end.

    Of it are clients whose bodies have begun before the signal and end after it.
    """
    kept, fresh, health = (Client(server.address, WAIT_S, keep) for keep in (True, False, True))
    ready = request_bytes(server.address, "GET", READY)
    until, signalled = time.perf_counter() + delay + WAIT_S, asyncio.Event()

    def over() -> bool:
        return time.perf_counter() > until

    async def upload(request: bytes, seconds: float) -> Answer:
        start, half = time.perf_counter(), (request.index(b"\r\n\r\n") + len(request)) // 2
        try:
            connection = await kept.connect()
        except OSError:
            return Answer("refused", start=start)
        waiting = connection.send(request[:half])
        await signalled.wait()
        await asyncio.sleep(seconds)
        if connection.open and connection.transport is not None:
            connection.transport.write(request[half:])
        await asyncio.wait([waiting], timeout=WAIT_S)
        connection.close()
        answer = waiting.result() if waiting.done() else Answer("timeout")
        answer.start = start
        return answer

    async def end() -> dict[str, Any]:
        await health.ask(ready)
        await asyncio.sleep(delay)
        server.process.send_signal(signal.SIGTERM)
        begun = time.perf_counter()
        signalled.set()
        while (answer := await health.ask(ready)).status == 200 and not over():
            await asyncio.sleep(0.002)
        unready = time.perf_counter() - begun
        while server.alive() and not over():
            await asyncio.sleep(0.01)
        gone = time.perf_counter() - begun
        what = str(answer.status) if answer.reused else "not on a connection that was open"
        return {"unready": what, "unready_s": unready, "gone_s": gone, "signalled": begun}

    cpu = time.process_time()
    first, second, seen, *uploaded = await asyncio.gather(
        closed_loop(kept, requests, 12, stop=over),
        closed_loop(fresh, requests, 4, stop=over),
        end(),
        *(upload(requests[i], seconds) for i, seconds in enumerate(UPLOADS_S)),
    )
    kept.close()
    health.close()
    answers, free = first.answers + second.answers + uploaded, seen.pop("signalled") + LET_IN_S
    refused = [one for one in answers if one.outcome == "refused" and one.start > free]
    load = Load(answers, first.seconds, time.process_time() - cpu)
    return load, {**seen, "lost": len(answers) - len(load.of(200)) - len(refused)}


def replace_file(source: Path, target: Path) -> None:
    """At once, as one should: a copy beside it that is renamed."""
    beside = target.with_suffix(".new")
    shutil.copyfile(source, beside)
    os.replace(beside, target)


@dataclass
class Reloads:
    """What was seen while a model file was replaced under load.

    Args:
        seconds: Of each, until the file was taken over.
        alone: From when until when which model had to answer: between a reload and the next.
        memory: Bytes of the server all the while.
        loads: One picture a request, four, and the single ones after each reload.
    """

    seconds: list[float] = field(default_factory=list)
    alone: list[tuple[float, float, int]] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)


@watched
def reload_(bench: Bench) -> Part:
    """A model file replaced under load: every answer is of the one or of the other."""
    live = bench.folder / "live.safetensors"
    sources = (bench.files.weights, bench.files.other)
    replace_file(sources[0], live)
    with bench.server(live) as server:
        states = [answers_now(bench, server.address)]
        replace_file(sources[1], live)
        assert run(Client(server.address, WAIT_S, False).ask(_reload(server.address))).status == 200
        states.append(answers_now(bench, server.address))
        if any(alike(a, b) for a, b in zip(*states, strict=True)):
            raise SystemExit("the two models answer alike: no result is reported")
        with server.memory_sampled() as memory:
            seen = run(_reloaded(bench, server, live, sources, states))
        seen.memory = memory
        live.write_bytes(b"no weights")
        bad, kept = run(_refused(bench, server.address, states[(bench.times + 1) % 2][0]))
    part = _reload_part(bench, seen, states)
    text = f"{bad}, {'the old one serves on' if kept else 'THE OLD ONE DOES NOT SERVE'}"
    part.add("A bad new file", "409, the old one serves on", text, bad == 409 and kept)
    return part


def _reload_part(bench: Bench, seen: Reloads, states: list[Answers]) -> Part:
    part, sizes = Part(), (1, 4, 1)
    verdicts = sum(
        (judged(load, states, n, seen.alone) for load, n in zip(seen.loads, sizes, strict=True)),
        Counter(),
    )
    both = Load([a for load in seen.loads for a in load.answers], seen.loads[0].seconds, 0.0)
    lost, done = len(both.answers) - len(both.of(200)), len(seen.seconds)
    wrong = verdicts["neither"] + verdicts["mixed"] + verdicts["late"]
    part.details = {
        "loads": [load.summary() for load in seen.loads],
        "verdicts": dict(verdicts),
        "seconds": seen.seconds,
        "memory": seen.memory,
    }
    text = f"{done} done, slowest {max(seen.seconds, default=0):.2f} s; {told(both.counts())}; "
    text += f"of the first {verdicts['first']:,}, of the second {verdicts['second']:,}, of neither "
    text += f"{verdicts['neither']}, mixed {verdicts['mixed']}, late {verdicts['late']}"
    what = f"{bench.times} reloads under load: all 200, of one model, none late of the old"
    part.add(what, "all", text, lost == wrong == 0 and done == bench.times)
    before, most, end = (one / 1e6 for one in (seen.memory[0], max(seen.memory), seen.memory[-1]))
    text = f"{before:.0f} MB, {most:.0f} MB, {end:.0f} MB"
    part.add("Memory before the reloads, at most meanwhile, after", "", text)
    return part


def _reload(address: Address) -> bytes:
    return request_bytes(address, "POST", "/reload", token=TOKEN)


async def _refused(bench: Bench, address: Address, expected: dict[int, float]) -> tuple[int, bool]:
    """What a reload of a bad file is answered, and whether the old one serves on."""
    client = Client(address, WAIT_S, keep_alive=False)
    bad = await client.ask(_reload(address))
    after = await client.ask(bench.singles(address)[0])
    return bad.status, after.status == 200 and alike(results_of(after.body)[0], expected)


async def _reloaded(
    bench: Bench,
    server: Server,
    live: Path,
    sources: tuple[Path, Path],
    states: list[Answers],
) -> Reloads:
    """The loads while the file is replaced in turn by the first source and by the second."""
    address, done = server.address, False
    client, cpu = Client(address, WAIT_S), time.process_time()
    singles, fours = bench.singles(address), bench.several(address, 4)
    seen, probes = Reloads(), []

    async def reloads() -> None:
        nonlocal done
        target, taken = 1, time.perf_counter()
        try:
            for i in range(bench.times):
                await asyncio.sleep(PAUSE_S)
                begun = time.perf_counter()
                seen.alone.append((taken, begun, target))
                target = i % 2
                replace_file(sources[target], live)
                if not await _one_reload(client, server, i % 4 < 2, singles[0], states[target]):
                    return
                taken = time.perf_counter()
                seen.seconds.append(taken - begun)
                probes.append(await client.ask(singles[0]))
            await asyncio.sleep(PAUSE_S)
            seen.alone.append((taken, time.perf_counter(), target))
        finally:
            done = True

    *seen.loads, _ = await asyncio.gather(
        closed_loop(client, singles, 6, stop=lambda: done, keep=True),
        closed_loop(client, fours, 2, stop=lambda: done, keep=True),
        reloads(),
    )
    client.close()
    seen.loads.append(Load(probes, seen.loads[0].seconds, time.process_time() - cpu))
    return seen


async def _one_reload(
    client: Client, server: Server, by_request: bool, probe: bytes, expected: Answers
) -> bool:
    """Waits until the file is taken over: by `POST /reload`, or by SIGHUP, which only begins."""
    if by_request:
        return (await client.ask(_reload(server.address))).status == 200
    server.process.send_signal(signal.SIGHUP)
    until = time.perf_counter() + WAIT_S
    while time.perf_counter() < until:
        answer = await client.ask(probe)
        if answer.status == 200 and alike(results_of(answer.body)[0], expected[0]):
            return True
        await asyncio.sleep(0.02)
    return False


def judged(
    load: Load,
    states: list[Answers],
    size: int,
    alone: Sequence[tuple[float, float, int]] = (),
) -> Counter[str]:
    """Of how many requests the answers were of the first model, the second, mixed or neither.

    "late" are those that came wholly while only the other one had to answer.
    """
    found: Counter[str] = Counter()
    for answer in load.of(200):
        results, start = results_of(answer.body), answer.request * size
        models = set()
        for i, result in enumerate(results):
            hits = [k for k, state in enumerate(states) if alike(result, state[start + i])]
            models.add(hits[0] if hits else -1)
        if len(results) != size or -1 in models:
            found["neither"] += 1
        elif len(models) > 1:
            found["mixed"] += 1
        else:
            found["first" if models == {0} else "second"] += 1
        end = answer.start + answer.seconds
        if any(a <= answer.start and end <= b and models != {m} for a, b, m in alone):
            found["late"] += 1
    return found


def memory(bench: Bench) -> Part:
    """All its processes' memory over many requests, some of which are refused."""
    part, steps = Part(), 20
    with bench.server() as server:
        requests = bench.singles(server.address) + bench.several(server.address, 4)
        broken = bench.files.pictures[0]
        broken = bench.single(server.address, broken[: len(broken) // 2])
        requests += [broken] * max(len(requests) // 20, 1)
        random.Random(bench.seed).shuffle(requests)
        rest, most, loads = [server.memory()], 0, []

        async def work() -> Load:
            client = Client(server.address, WAIT_S)
            try:
                return await closed_loop(client, requests, 16, count=bench.requests // steps)
            finally:
                client.close()

        for _ in range(steps):
            with server.memory_sampled() as samples:
                loads.append(measured_load(server, work()))
            rest.append(samples[-1])
            most = max(most, *samples)
        alive = server.alive() and min(rest) > 0
    counts = sum((Counter(load.counts()) for load in loads), Counter())
    asked_for = (requests[i % len(requests)] for i in range(bench.requests // steps))
    expected = Counter("422" if one == broken else "200" for one in asked_for for _ in loads)
    base = rest[2]  # after a tenth
    growth, last = (one / base - 1 if alive else math.nan for one in (max(rest[3:]), rest[-1]))
    part.details = {"bytes": rest, "most": most, "loads": [load.summary() for load in loads]}
    text = f"{growth:+.1%} of {base / 1e6:.0f} MB at most; at its end {last:+.1%}"
    text += f"; {told(dict(sorted(counts.items())))}"
    text += "" if counts == expected else f", NOT {told(dict(sorted(expected.items())))}"
    what = f"Memory over {bench.requests:,} requests, after the first tenth"
    part.add(what, "<= +5 %", text, growth <= 0.05 and counts == expected)
    text = f"{rest[0] / 1e6:.0f} MB, {most / 1e6:.0f} MB"
    part.add("Memory when ready, and at most under load", "", text)
    return part


@watched
def ready(bench: Bench) -> Part:
    """From starting the process to its first "ready", and to its first answer."""
    part, found, first = Part(), [], []
    for _ in range(max(bench.rounds, 5)):
        with bench.server() as server:
            begun = time.perf_counter()
            client = Client(server.address, keep_alive=False)
            answer = run(client.ask(bench.singles(server.address)[0]))
            if answer.status != 200:
                raise SystemExit(f"the first request was answered {told_answer(answer)}")
            found.append(server.ready_s)
            first.append(server.ready_s + time.perf_counter() - begun)
    part.details = {"ready_s": found, "first_answer_s": first}
    middle = percentile(found, 0.5)
    text = f"{middle:.2f} s ({min(found):.2f} to {max(found):.2f} in {len(found)} launches)"
    part.add("Ready after its start, median", "<= 1.5 s", text, middle <= 1.5)
    part.add("First answer after its start, median", "", f"{percentile(first, 0.5):.2f} s")
    return part
