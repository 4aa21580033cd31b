"""Side-by-side speed of VAN on one GPU: this package on JAX and on PyTorch beside transformers.

    python benchmarks/gpu.py --output results.json

Each contender is a process of its own for each model and mode, and stays (compiling takes
minutes). All are made ready first, then timed in turn, A B C, A B C, ..., while the others wait.
A contender's figure is the median of its best round. Without a GPU it runs on the CPU, to be
tried out: `--models van_b0 --batches 1 --rounds 1`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from contender import MODES
from deployment import traffic_of
from floors import MACS, PASSES
from gpu_contender import CONTENDERS, INFERENCE_ONLY, PRECISIONS
from speed import best_ms, check_output, machine, positive

HERE = Path(__file__).resolve().parent
MODELS = tuple(MACS)
# Of the checks, absolute. Logits have a standard deviation of 0.4, losses are near 7. Products of
# tf32 have 10 bits behind the point, those of bfloat16 7.
TOLERANCE = {"float32": 0.01, "tf32": 0.01, "bfloat16": 0.1}
# Keras's `jit_compile=True` on PyTorch compiles for minutes and is slower: README.md.
DEFAULT = tuple(name for name in CONTENDERS if name != "keras_torch_compile")
OURS = tuple(name for name in CONTENDERS if name.startswith("keras"))


class Setting(NamedTuple):
    """What all contenders of one comparison run."""

    mode: str
    model: str
    batch: int
    precision: str


Measured = dict[Setting, dict[str, dict[str, Any]]]  # setting -> contender -> what is known


class Worker:
    """A process of `gpu_contender.py`."""

    def __init__(self, name: str, model: str, mode: str, logs: Path):
        self.name = name
        self.log = logs / f"{name}-{model}-{mode}.txt"
        command = [sys.executable, str(HERE / "gpu_contender.py"), name]
        command += ["--model", model, "--mode", mode]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def ask(self, do: str, setting: Setting, **more: Any) -> dict[str, Any]:
        """The answer; a process that has ended answers {"error": ...}."""
        command = {"do": do, "batch": setting.batch, "precision": setting.precision, **more}
        try:
            print(json.dumps(command), file=self.process.stdin, flush=True)
            return json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            return {"error": "the process ended: " + " ".join(self.log.read_text().split())[-300:]}

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def contenders_of(setting: Setting, names: Sequence[str]) -> list[str]:
    """Who takes part: tf32 is the same as float32 but for matrix products in PyTorch."""
    return [
        name
        for name in names
        if (setting.mode == "inference" or name not in INFERENCE_ONLY)
        and (setting.precision != "tf32" or name.startswith("keras_torch"))
    ]


def prepare(
    worker: Worker, settings: Sequence[Setting], card: threading.Lock, until: float
) -> Iterator[tuple[Setting, dict[str, Any]]]:
    """Builds, compiles and checks what one worker will run."""
    for setting in settings:
        if time.monotonic() > until:
            yield setting, {"error": "not compiled in time"}
            continue
        answer = worker.ask("build", setting)
        if "error" not in answer:
            # Training without compiling is short and takes most memory: one at a time.
            alone = setting.mode == "training" and not compiles(worker.name)
            with card if alone else contextlib.nullcontext():
                answer = worker.ask("check", setting)
        if "memory" in answer.get("error", "").lower():
            with card:
                worker.ask("build", setting)
                answer = worker.ask("check", setting)
        print(f"{worker.name} {' '.join(map(str, setting))}: {brief(answer)}", file=sys.stderr)
        yield setting, answer


def compiles(name: str) -> bool:
    return "_compile" in name or "_jax" in name


def brief(answer: dict[str, Any]) -> str:
    if "error" in answer:
        return answer["error"][:200]
    return f"first step {answer['first_seconds']:.1f} s"


def refuse(measured: Measured) -> None:
    """Speeds of different functions are not comparable: no timing for who disagrees."""
    checks = {
        setting: {name: one.pop("check") for name, one in known.items() if "check" in one}
        for setting, known in measured.items()
    }
    for setting, found in checks.items():
        # tf32 has no peers of its own; float32 of the same batch is the same function.
        others = checks.get(setting._replace(precision="float32"), {})
        reference = next(iter([*others.values(), *found.values()]), [])
        for name, check in found.items():
            difference = float(np.abs(np.subtract(check, reference)).max())
            measured[setting][name]["difference"] = difference
            allowed = TOLERANCE[setting.precision]
            if not difference <= allowed:
                problem = f"disagrees by {difference:.1e}, allowed {allowed:.0e}"
                measured[setting][name]["error"] = problem


Workers = dict[tuple[str, str, str], Worker]  # by contender, model and mode


@contextlib.contextmanager
def started(settings: Sequence[Setting], args: argparse.Namespace) -> Iterator[Workers]:
    """A process for each, which ends with the block."""
    workers: Workers = {}
    with TemporaryDirectory() as logs:
        try:
            for setting in settings:
                for name in contenders_of(setting, args.contenders):
                    key = (name, setting.model, setting.mode)
                    if key not in workers:
                        workers[key] = Worker(*key, logs=Path(logs))
            yield workers
        finally:
            stop_all(workers)


def stop_all(workers: Workers) -> None:
    for worker in list(workers.values()):
        worker.stop()


@contextlib.contextmanager
def stopped_after(seconds: float, workers: Workers) -> Iterator[None]:
    """Ends what hangs: `workers`, as they are then, are killed unless the block has ended."""
    timer = threading.Timer(seconds, stop_all, [workers])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def make_ready(
    workers: Workers, measured: Measured, args: argparse.Namespace, seconds: float
) -> None:
    """All workers at the same time; what is not ready after `seconds` takes no part."""
    until, card, unready = time.monotonic() + seconds, threading.Lock(), dict(workers)

    def one(key: tuple[str, str, str]) -> None:
        name, *rest = key
        mine = [s for s in measured if [s.model, s.mode] == rest]
        mine = [s for s in mine if name in contenders_of(s, args.contenders)]
        for setting, known in prepare(workers[key], mine, card, until):
            measured[setting][name] = known
        del unready[key]

    with stopped_after(seconds + 15, unready), ThreadPoolExecutor(args.jobs) as pool:
        # The longest first.
        list(pool.map(one, sorted(workers, key=lambda key: not compiles(key[0]))))


def measure(settings: Sequence[Setting], args: argparse.Namespace) -> Measured:
    """Everything: ready, then timed in interleaved rounds; `args.output` is kept up to date."""
    begin, seconds = time.monotonic(), 60 * args.minutes
    measured: Measured = {setting: {} for setting in settings}
    with started(settings, args) as workers, stopped_after(seconds + 30, workers):
        make_ready(workers, measured, args, args.prepare * seconds)
        refuse(measured)
        print(f"ready after {time.monotonic() - begin:.0f} s", file=sys.stderr)

        def sound(names: Sequence[str]) -> Iterator[tuple[Setting, dict[str, Any], Worker]]:
            for setting, known in measured.items():
                for name in names:
                    in_time = time.monotonic() < begin + seconds
                    if in_time and "error" not in known.get(name, {"error": "absent"}):
                        yield setting, known[name], workers[name, setting.model, setting.mode]

        for _ in range(args.rounds):
            for setting, known, worker in sound(args.contenders):
                time_once(worker, setting, known, args.seconds)
            keep(measured, args)
        for setting, known, worker in sound(args.kernels):
            if (setting.model, setting.batch) == (args.models[0], max(args.batches)):
                known["profile"] = worker.ask("kernels", setting)
        keep(measured, args)
    return measured


def time_once(worker: Worker, setting: Setting, known: dict[str, Any], seconds: float) -> None:
    answer = worker.ask("time", setting, seconds=seconds)
    if "error" in answer:
        known["error"] = answer["error"]
    else:
        known.setdefault("rounds", []).append(answer)


def keep(measured: Measured, args: argparse.Namespace) -> None:
    if args.output:
        args.output.write_text(json.dumps(document(measured, args), indent=1) + "\n")


def document(measured: Measured, args: argparse.Namespace) -> dict[str, Any]:
    return {
        "machine": {**machine(), "gpu": args.floors["card"]},
        "rounds": args.rounds,
        "floors": args.floors,
        "results": [
            {**setting._asdict(), "contender": name, **known}
            for setting, every in measured.items()
            for name, known in every.items()
        ],
    }


def floor_ms(setting: Setting, rates: dict[str, float]) -> float:
    """The larger of two times: operations at the rate of a matrix product, bytes at that of a copy.

    float32 is taken at the rate of tf32, which convolutions are allowed by default.
    """
    precision = "bfloat16" if setting.precision == "bfloat16" else "tf32"
    passes = PASSES[setting.mode]
    operations = 2 * MACS[setting.model] * setting.batch * passes
    kind = "bfloat16" if setting.precision == "bfloat16" else "float32"
    moved = traffic_of(setting.model).megabytes(setting.batch, kind) * passes
    return max(operations / rates[f"gemm_{precision}_gflops"] / 1e6, moved / rates["copy_gb_per_s"])


def table(measured: Measured, rates: dict[str, float], names: Sequence[str]) -> str:
    """Markdown: images a second of each contender, the floor, and the best of ours over theirs."""
    lines = [
        f"| mode | model | batch | precision | floor | {' | '.join(names)} | ours / theirs |",
        "|---|---|---:|---|---:|" + "---:|" * (len(names) + 1),
    ]
    for setting, known in measured.items():
        rate = {
            name: 1e3 * setting.batch / best_ms(one["rounds"])
            for name, one in known.items()
            if "rounds" in one
        }
        cells = [f"{rate[name]:,.0f}" if name in rate else "-" for name in names]
        ours = max((rate[name] for name in rate if name in OURS), default=None)
        theirs = max((rate[name] for name in rate if name not in OURS), default=None)
        ratio = f"{ours / theirs:.2f}" if ours and theirs else "-"
        floor = 1e3 * setting.batch / floor_ms(setting, rates)
        lines.append(
            f"| {' | '.join(map(str, setting))} | {floor:,.0f} | {' | '.join(cells)} | {ratio} |"
        )
    return "\n".join(lines)


def memory_table(measured: Measured, names: Sequence[str]) -> str:
    """Markdown: the peak of the device's memory in MB, as each framework counts its own."""
    lines = [
        f"| mode | model | batch | precision | {' | '.join(names)} |",
        "|---|---|---:|---|" + "---:|" * len(names),
    ]
    for setting, known in measured.items():
        peaks = [known.get(name, {}).get("rounds", [{}])[0].get("peak_mb") for name in names]
        cells = [f"{peak:,.0f}" if peak else "-" for peak in peaks]
        lines.append(f"| {' | '.join(map(str, setting))} | {' | '.join(cells)} |")
    return "\n".join(lines)


def kernels_report(measured: Measured, rows: int = 15) -> Iterator[str]:
    for setting, known in measured.items():
        for name, one in known.items():
            found = one.get("profile")
            if not found or "error" in found:
                continue
            yield (
                f"\n{name}, {' '.join(map(str, setting))}: {found['wall_ms']:.1f} ms on the clock, "
                f"{found['device_ms']:.1f} ms of kernels\n"
            )
            yield "| kernel | ms | share | calls |\n|---|---:|---:|---:|"
            for row in found["kernels"][:rows]:
                ms, calls, share = row["ms"], row["calls"], row["ms"] / found["device_ms"]
                yield f"| {row['kernel'][:90]} | {ms:.2f} | {share:.0%} | {calls:.0f} |"


def problems(measured: Measured) -> Iterator[str]:
    for setting, known in measured.items():
        for name, one in known.items():
            if "error" in one:
                yield f"- {' '.join(map(str, setting))}, {name}: {one['error']}"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", nargs="+", choices=MODELS, default=("van_b0", "van_b2"))
    add("--batches", nargs="+", type=positive, default=[1, 128], help="training: the largest")
    add("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    add("--modes", nargs="+", choices=MODES, default=MODES)
    add("--contenders", nargs="+", choices=CONTENDERS, default=DEFAULT)
    add("--rounds", type=positive, default=3)
    add("--seconds", type=float, default=0.5, help="timed steps a round, at least three")
    add("--jobs", type=positive, default=32, help="contenders that compile at the same time")
    add("--minutes", type=float, default=60, help="ends by then, with what has been measured")
    add("--prepare", type=float, default=0.6, help="share of it for building and compiling")
    add(
        "--kernels",
        nargs="+",
        choices=CONTENDERS,
        default=[],
        metavar="CONTENDER",
        help="whose time to show kernel by kernel, for the first model and the largest batch",
    )
    add("--output", type=Path, help="JSON file with everything")
    args = parser.parse_args()
    check_output(parser, args.output)
    return args


def main() -> None:
    args = parse_args()
    command = [sys.executable, str(HERE / "gpu_contender.py"), "floors"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    args.floors = json.loads(done.stdout)
    # The smallest first: JAX tells the peak of its memory since the start only.
    precisions = sorted(args.precisions)
    every = product(args.modes, args.models, sorted(args.batches), precisions)
    settings = [Setting(*one) for one in every]
    largest = max(args.batches)
    settings = [s for s in settings if s.mode == "inference" or s.batch == largest]
    measured = measure(settings, args)
    rates = {key: value for key, value in args.floors.items() if key != "card"}
    print(args.floors["card"], ", ".join(f"{k} {v:,.0f}" for k, v in rates.items()), end="\n\n")
    print(table(measured, rates, args.contenders), end="\n\n")
    print(memory_table(measured, args.contenders), end="\n\n")
    print(*kernels_report(measured), *problems(measured), sep="\n")


if __name__ == "__main__":
    main()
