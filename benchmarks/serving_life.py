"""`van serve` over its life: start, signals, reloads, memory; measurements of `serving.py`."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from serving_bench import (
    TOKEN,
    Answers,
    Bench,
    Part,
    alike,
    answers_now,
    lost_of,
    measured_load,
    milliseconds,
    results_of,
    told,
    told_answer,
)
from serving_client import Address, Client, Load, closed_loop, percentile, request_bytes, run
from serving_server import READY, Server, asked


def sigterm(bench: Bench) -> Part:
    """SIGTERM under load: who was answered, and whether it ended well."""
    part, draw = Part(), random.Random(bench.seed)
    runs = []
    for _ in range(bench.times):
        with bench.server() as server:
            delay = 0.3 + draw.random()
            load, seen = run(_terminated(server, bench.singles(server.address), delay))
            begun = time.perf_counter()
            status = server.stop()
            broken = [one for one in load.answers if one.outcome in ("closed", "partial")]
            runs.append(
                {
                    **load.summary(),
                    **seen,
                    "exit": status,
                    "exit_after_load_s": time.perf_counter() - begun,
                    "broken": load.broken(),
                    "broken_on_new_connections": sum(not one.reused for one in broken),
                }
            )
    good = sum(one["exit"] == 0 and one["broken"] == 0 for one in runs)
    counts = sum((Counter(one["counts"]) for one in runs), Counter())
    part.details = {"runs": runs}
    text = f"{good} of {bench.times}; exit statuses {sorted({str(r['exit']) for r in runs})}, "
    text += f"{sum(r['broken'] for r in runs)} broken: {told(dict(sorted(counts.items())))}"
    what = f"SIGTERM under load, {bench.times} times: exit 0, no broken request"
    part.add(what, f"{bench.times} of {bench.times}", text, good == bench.times)
    unready = [one["unready_s"] for one in runs]
    late = max(unready)
    part.add("Not ready after SIGTERM", "at once", f"within {milliseconds(late)}", late < 0.5)
    longest = max(one["gone_s"] for one in runs)
    part.add("Gone after SIGTERM", "", f"within {longest:.2f} s")
    return part


async def _terminated(
    server: Server, requests: list[bytes], delay: float
) -> tuple[Load, dict[str, float]]:
    """The load around one SIGTERM, until nothing listens; when it was no longer ready, and gone."""
    kept, fresh = Client(server.address), Client(server.address, keep_alive=False)
    health = Client(server.address, keep_alive=False)
    ready = request_bytes(server.address, "GET", READY)
    until = time.perf_counter() + 60

    def over() -> bool:
        return time.perf_counter() > until

    async def end() -> dict[str, float]:
        await asyncio.sleep(delay)
        server.process.send_signal(signal.SIGTERM)
        begun = time.perf_counter()
        while (await health.ask(ready)).status == 200 and not over():
            await asyncio.sleep(0.002)
        unready = time.perf_counter() - begun
        while server.alive() and not over():
            await asyncio.sleep(0.01)
        return {"unready_s": unready, "gone_s": time.perf_counter() - begun}

    first, second, seen = await asyncio.gather(
        closed_loop(kept, requests, 12, stop=over),
        closed_loop(fresh, requests, 4, stop=over),
        end(),
    )
    kept.close()
    both = first.answers + second.answers
    return Load(both, first.seconds, first.client_cpu + second.client_cpu), seen


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
        memory: Bytes of the server before the first and after each.
        late: Answers of the old model to a request that was sent after it.
        loads: One picture a request, and four.
    """

    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    late: int = 0
    loads: list[Load] = field(default_factory=list)


def reload_(bench: Bench) -> Part:
    """A model file replaced under load: every answer is of the one or of the other."""
    live = bench.folder / "live.safetensors"
    sources = (bench.files.weights, bench.files.other)
    replace_file(sources[0], live)
    with bench.server(live) as server:
        states = [answers_now(bench, server.address)]
        replace_file(sources[1], live)
        assert _reload(server.address)[0] == 200
        states.append(answers_now(bench, server.address))
        if any(alike(a, b) for a, b in zip(*states, strict=True)):
            raise SystemExit("the two models answer alike: no result is reported")
        seen = run(_reloaded(bench, server, live, sources, states))
        live.write_bytes(b"no weights")
        bad, _ = _reload(server.address)
        kept = alike(answers_now(bench, server.address)[0], states[(bench.times + 1) % 2][0])
    part = _reload_part(bench, seen, states)
    text = f"{bad}, {'the old one serves on' if kept else 'THE OLD ONE DOES NOT SERVE'}"
    part.add("A bad new file", "409, the old one serves on", text, bad == 409 and kept)
    return part


def _reload_part(bench: Bench, seen: Reloads, states: list[Answers]) -> Part:
    part, sizes = Part(), (1, 4)
    verdicts = sum(
        (judged(load, states, size) for load, size in zip(seen.loads, sizes, strict=True)),
        Counter(),
    )
    both = Load([a for load in seen.loads for a in load.answers], seen.loads[0].seconds, 0.0)
    lost = lost_of(both)
    wrong = verdicts["neither"] + verdicts["mixed"] + seen.late
    part.details = {
        "loads": [load.summary() for load in seen.loads],
        "verdicts": dict(verdicts),
        "late": seen.late,
        "seconds": seen.seconds,
        "memory": seen.memory,
    }
    text = f"{lost} lost, {told(both.counts())}; of the first {verdicts['first']:,}, of the second "
    text += f"{verdicts['second']:,}, of neither {verdicts['neither']}, mixed {verdicts['mixed']}, "
    text += f"old after the reload {seen.late}; slowest reload {max(seen.seconds):.2f} s"
    what = f"{bench.times} reloads under load: 0 lost, every answer of one model"
    part.add(what, "all", text, lost == 0 and wrong == 0)
    megabytes = [one / 1e6 for one in seen.memory]
    middle = len(megabytes) // 2
    text = f"{megabytes[0]:.0f} MB; {megabytes[middle]:.0f} after {middle}; "
    text += f"{megabytes[-1]:.0f} at the end"
    part.add("Memory before the reloads, halfway, after", "", text)
    return part


def _reload(address: Address) -> tuple[int, bytes]:
    return asked(address, "POST", "/reload", b"", {"Authorization": f"Bearer {TOKEN}"})


async def _reloaded(
    bench: Bench,
    server: Server,
    live: Path,
    sources: tuple[Path, Path],
    states: list[Answers],
) -> Reloads:
    """The loads while the file is replaced in turn by the first source and by the second."""
    address, client, done = server.address, Client(server.address), False
    singles, fours = bench.singles(address), bench.several(address, 4)
    seen = Reloads(memory=[server.memory()])

    async def reloads() -> None:
        nonlocal done
        try:
            for i in range(bench.times):
                await asyncio.sleep(0.2)
                target = i % 2
                replace_file(sources[target], live)
                expected = states[target][0]
                took = await _one_reload(client, server, i % 4 < 2, singles[0], expected)
                answer = await client.ask(singles[0])
                if answer.status == 200:
                    seen.late += not alike(results_of(answer.body)[0], expected)
                seen.seconds.append(took)
                seen.memory.append(server.memory())
            await asyncio.sleep(0.2)
        finally:
            done = True

    *seen.loads, _ = await asyncio.gather(
        closed_loop(client, singles, 6, stop=lambda: done, keep=True),
        closed_loop(client, fours, 2, stop=lambda: done, keep=True),
        reloads(),
    )
    client.close()
    return seen


async def _one_reload(
    client: Client, server: Server, by_request: bool, probe: bytes, expected: dict[int, float]
) -> float:
    """Seconds until the file is taken over: by `POST /reload`, or by SIGHUP, which only begins."""
    begun = time.perf_counter()
    if by_request:
        request = request_bytes(server.address, "POST", "/reload", token=TOKEN)
        answer = await client.ask(request)
        if answer.status != 200:
            raise SystemExit(f"/reload answered {answer.status}: {answer.body[:200]!r}")
        return time.perf_counter() - begun
    server.process.send_signal(signal.SIGHUP)
    while time.perf_counter() - begun < 60:
        answer = await client.ask(probe)
        if answer.status == 200 and alike(results_of(answer.body)[0], expected):
            return time.perf_counter() - begun
        await asyncio.sleep(0.02)
    raise SystemExit("SIGHUP: the new file was not taken over within 60 s")


def judged(load: Load, states: list[Answers], size: int) -> Counter[str]:
    """Of how many requests the answers were of the first model, the second, mixed or neither."""
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
    return found


def memory(bench: Bench) -> Part:
    """All its processes' memory over many requests, some of which are refused."""
    part, steps = Part(), 20
    with bench.server() as server:
        requests = bench.singles(server.address) + bench.several(server.address, 4)
        broken = bench.files.pictures[0]
        broken = broken[: len(broken) // 2]
        requests += [bench.single(server.address, broken)] * max(len(requests) // 20, 1)
        random.Random(bench.seed).shuffle(requests)
        samples, loads = [server.memory()], []

        async def work() -> Load:
            client = Client(server.address)
            try:
                return await closed_loop(client, requests, 16, count=bench.requests // steps)
            finally:
                client.close()

        for _ in range(steps):
            loads.append(measured_load(server, work()))
            samples.append(server.memory())
    counts = sum((Counter(load.counts()) for load in loads), Counter())
    base = samples[2]  # after a tenth
    growth = max(samples[3:]) / base - 1
    part.details = {"bytes": samples, "counts": dict(counts)}
    text = f"{growth:+.1%} of {base / 1e6:.0f} MB at most; at its end {samples[-1] / base - 1:+.1%}"
    text += f"; {told(dict(sorted(counts.items())))}"
    what = f"Memory over {bench.requests:,} requests, after the first tenth"
    part.add(what, "<= +5 %", text, growth <= 0.05)
    part.add(
        "Memory when ready, and under load", "", f"{samples[0] / 1e6:.0f} MB, {base / 1e6:.0f} MB"
    )
    return part


def ready(bench: Bench) -> Part:
    """From starting the process to its first "ready", and to its first answer."""
    part, found, first = Part(), [], []
    for _ in range(max(bench.rounds, 5)):
        with bench.server() as server:
            begun = time.perf_counter()
            answer = run(Client(server.address).ask(bench.singles(server.address)[0]))
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
