"""Side-by-side speed of VAN on a CPU: every contender in its own process, rounds interleaved.

    python benchmarks/speed.py --output results.json

Each (mode, model, batch) runs A B C, A B C, ...; a contender's figure is the median of its best
launch, because engines have slow and fast launches and disturb each other in one process.
No number is reported unless all contenders compute the same logits (or losses).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from contender import CONTENDERS, INFERENCE_ONLY, MODELS, MODES, ONNX_DIR
from contender import OURS as OUR_CONTENDERS
from floors import gemm_floor_ms

HERE = Path(__file__).resolve().parent
OURS = "keras"  # what the table compares all others with
BATCHES = {"inference": (1, 8), "training": (8, 32)}  # what is asked for
TOLERANCE = 1e-3  # on the checks, absolute
LAUNCH_TIMEOUT_S = 1800  # torch.compile alone takes minutes on a slow machine


class Target(NamedTuple):
    """`ours` is asked to be at least `ratio` times as fast as `peer`."""

    ours: str
    mode: str
    batch: int
    peer: str
    ratio: float


TARGETS = (
    Target("keras", "inference", 8, "torch_eager", 2.5),
    Target("keras", "inference", 8, "torch_compile", 1.3),
    Target("keras", "inference", 8, "onnxruntime", 0.7),
    Target("keras", "inference", 1, "onnxruntime", 0.5),
    Target("keras_fused", "inference", 8, "onnxruntime", 0.8),
    Target("keras_fused", "inference", 1, "onnxruntime", 0.6),
    *(Target("accelerated", "inference", b, "onnxruntime", 1.0) for b in BATCHES["inference"]),
    *(Target("keras_jax", "inference", b, "onnxruntime", 0.6) for b in BATCHES["inference"]),
    *(Target("keras_jax_fused", "inference", b, "onnxruntime", 0.6) for b in BATCHES["inference"]),
    *(Target("keras", "training", b, "torch_channels_last", 1.5) for b in BATCHES["training"]),
    *(Target("keras_jax", "training", b, "torch_channels_last", 0.7) for b in BATCHES["training"]),
)


class Setting(NamedTuple):
    """What all contenders of one comparison run."""

    mode: str
    model: str
    batch: int


Launches = dict[Setting, dict[str, list[dict[str, Any]]]]  # contender -> one result a round


def run_process(command: Sequence[str], folder: Path | None = None) -> str:
    """What a process prints, started in a folder; its error is ours."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LAUNCH_TIMEOUT_S, cwd=folder
        )
    except subprocess.TimeoutExpired:
        raise SystemExit(f"no result in {LAUNCH_TIMEOUT_S} s: {' '.join(command)}") from None
    except OSError as error:
        raise SystemExit(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-15:])
        raise SystemExit(f"failed ({done.returncode}): {' '.join(command)}\n{tail}")
    return done.stdout


def run_worker(command: Sequence[str]) -> dict[str, Any]:
    """Runs a process that prints one JSON line at the end."""
    return json.loads(run_process(command).splitlines()[-1])


def worker_command(
    python: str, script: str, name: str, setting: Setting, args: argparse.Namespace
) -> list[str]:
    """Starts one contender; `args` as `add_shared_arguments` makes them."""
    command = [python, str(HERE / script), name, "--model", setting.model]
    command += ["--batch", str(setting.batch), "--mode", setting.mode]
    command += ["--threads", str(args.threads), "--seconds", str(args.seconds)]
    command += ["--onnx-dir", str(args.onnx_dir)]
    if args.iterations is not None:
        command += ["--iterations", str(args.iterations)]
    return command


def launch(args: argparse.Namespace, name: str, setting: Setting) -> dict[str, Any]:
    python = args.python_ours if name in OUR_CONTENDERS else args.python_peers
    return run_worker(worker_command(python, "contender.py", name, setting, args))


def require_agreement(reference: dict[str, Any], result: dict[str, Any], setting: Setting) -> None:
    """Speeds of different functions are not comparable: refuses them."""
    pairs = zip(reference["check"], result["check"], strict=True)
    differences = [abs(a - b) for a, b in pairs]
    worst = next((d for d in differences if math.isnan(d)), max(differences))
    if not worst <= TOLERANCE:
        raise SystemExit(
            f"{result['name']} and {reference['name']} disagree by {worst:.2e} (allowed "
            f"{TOLERANCE:.0e}) on {setting}; no result is reported.\n"
            f"{reference['name']}: {reference['check'][:4]}\n"
            f"{result['name']}: {result['check'][:4]}"
        )


@contextmanager
def progress(total: int) -> Iterator[Any]:
    """Yields `advance(text)`: a rich bar where rich is installed, else a line each; on stderr."""
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        done = iter(range(1, total + 1))
        yield lambda text: print(f"[{next(done)}/{total}] {text}", file=sys.stderr)
        return
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=total)
        yield lambda text: bar.update(task, description=text, advance=1)


def contenders_of(setting: Setting, args: argparse.Namespace) -> list[str]:
    trains = [name for name in args.contenders if name not in INFERENCE_ONLY]
    return trains if setting.mode == "training" else list(args.contenders)


def run_all(
    plan: Mapping[Setting, Sequence[str]],
    launch: Callable[[str, Setting], dict[str, Any]],
    agree: Callable[[dict[str, Any], dict[str, Any], Setting], None],
    rounds: int,
    floors_command: Sequence[str],
) -> tuple[Launches, dict[str, float]]:
    """All launches, and the floors, measured once in every round of every setting.

    Args:
        plan: The contenders of each setting, in their order; the first is what the others are
            compared with.
        launch: One launch of a contender.
        agree: Ends where a result does not belong beside the first.
        rounds: Launches of each contender.
        floors_command: Prints the floors.
    """
    launches: Launches = {setting: {name: [] for name in plan[setting]} for setting in plan}
    floors: dict[str, float] = {}
    with progress(rounds * sum(map(len, plan.values()))) as advance:
        for setting, names in plan.items():
            reference = None
            for _ in range(rounds):
                # Like a contender's best launch: the rate while nothing disturbed the machine.
                for key, rate in run_worker(floors_command).items():
                    floors[key] = max(rate, floors.get(key, 0.0))
                for name in names:
                    result = launch(name, setting)
                    reference = reference or result
                    agree(reference, result, setting)
                    launches[setting][name].append(result)
                    advance(f"{' '.join(map(str, setting))} {name} {result['median_ms']:.1f} ms")
    return launches, floors


def best_ms(results: Sequence[dict[str, Any]]) -> float:
    return min(result["median_ms"] for result in results)


def table(launches: Launches, gflops: float) -> str:
    """Markdown, to be read here and pasted into the README."""
    lines = [
        "| mode | model | batch | contender | best ms | images/s | launches, slowest/best "
        "| its ms / ours | share of GEMM floor |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for setting, results in launches.items():
        ours = best_ms(results[OURS]) if OURS in results else None
        floor = gemm_floor_ms(setting.model, setting.batch, setting.mode, gflops)
        for name, runs in results.items():
            best = best_ms(runs)
            spread = max(run["median_ms"] for run in runs) / best
            ratio = f"{best / ours:.2f}" if ours else "-"
            lines.append(
                f"| {setting.mode} | {setting.model} | {setting.batch} | {name} | {best:.1f} "
                f"| {1e3 * setting.batch / best:.1f} | {spread:.2f} | {ratio} "
                f"| {floor / best:.0%} |"
            )
    return "\n".join(lines)


def targets_report(launches: Launches, targets: Sequence[Target] = TARGETS) -> Iterator[str]:
    """A line for every asked ratio whose two contenders were measured."""
    for setting, results in launches.items():
        for target in targets:
            asked_here = (target.mode, target.batch) == (setting.mode, setting.batch)
            if not asked_here or not {target.ours, target.peer} <= results.keys():
                continue
            ratio = best_ms(results[target.peer]) / best_ms(results[target.ours])
            verdict = "met" if ratio >= target.ratio else "MISSED"
            yield (
                f"- {setting.mode}, {setting.model}, batch {setting.batch}: {target.ours} "
                f"{ratio:.2f} x {target.peer}, asked {target.ratio} x: {verdict}"
            )


def machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [ln for ln in cpuinfo.read_text().splitlines() if ln.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    return {"cpu": cpu, "cores": os.cpu_count(), "system": platform.system()}


def document(launches: Launches, args: argparse.Namespace, floors: dict[str, Any]) -> dict:
    versions = {
        name: runs[0]["versions"] for results in launches.values() for name, runs in results.items()
    }
    return {
        "machine": machine(),
        "threads": args.threads,
        "rounds": args.rounds,
        "floors": floors,
        "versions": versions,
        "results": [
            {**setting._asdict(), "contender": name, "best_ms": best_ms(runs), "launches": runs}
            for setting, results in launches.items()
            for name, runs in results.items()
        ],
    }


def headline(result: dict[str, Any], what: str) -> str:
    """The machine, its floors and the libraries, in three lines."""
    where, floors = result["machine"], result["floors"]
    rates = [
        f"{floors[key]:.0f} {unit}"
        for key, unit in (
            ("gemm_gflops", "GFLOP/s GEMM"),
            ("gemm_bfloat16_gflops", "GFLOP/s in bfloat16"),
            ("gemm_int8_gflops", "GOP/s in int8"),
            ("copy_gb_per_s", "GB/s copy"),
        )
        if key in floors
    ]
    libraries = {f"{k} {v}" for libs in result["versions"].values() for k, v in libs.items()}
    return (
        f"{where['cpu']}, {where['cores']} cores, {result['threads']} threads, {what}\n"
        f"Floors: {', '.join(rates)}\n{', '.join(sorted(libraries))}"
    )


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, received {text}")
    return value


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """What every side-by-side benchmark asks."""
    add = parser.add_argument
    add("--models", nargs="+", choices=MODELS, default=MODELS)
    add("--batches", nargs="+", type=positive, default=[1, 8])
    add("--rounds", type=positive, default=5, help="launches of each contender")
    add("--threads", type=positive, default=2)
    add("--python-ours", default=sys.executable, help="interpreter with Keras and TensorFlow")
    add("--python-peers", default=sys.executable, help="interpreter with requirements.txt")
    add("--onnx-dir", type=Path, default=ONNX_DIR, help="cache of exported files")
    add("--output", type=Path, help="JSON file with every launch")


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """What those ask that time single steps."""
    add_common_arguments(parser)
    add = parser.add_argument
    add("--seconds", type=float, default=3.5, help="timed steps per launch, at least ten")
    add("--iterations", type=positive, help="steps per launch; overrides --seconds")


def check_output(parser: argparse.ArgumentParser, output: Path | None) -> None:
    if output and not output.resolve().parent.is_dir():
        parser.error(f"--output: no such folder: {output.resolve().parent}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shared_arguments(parser)
    parser.set_defaults(batches=None)  # those of `BATCHES`
    parser.add_argument("--mode", choices=(*MODES, "both"), default="both")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    args = parser.parse_args()
    check_output(parser, args.output)
    modes = MODES if args.mode == "both" else (args.mode,)
    if set(args.contenders) <= set(INFERENCE_ONLY) and "training" in modes:
        parser.error(f"none of {args.contenders} trains: use --mode inference")
    args.settings = [
        Setting(mode, model, batch)
        for mode, model in product(modes, args.models)
        for batch in args.batches or BATCHES[mode]
    ]
    return args


def main() -> None:
    args = parse_args()
    floors_command = [args.python_ours, str(HERE / "floors.py"), "--json"]
    floors_command += ["--threads", str(args.threads)]
    launches, floors = run_all(
        {setting: contenders_of(setting, args) for setting in args.settings},
        partial(launch, args),
        require_agreement,
        args.rounds,
        floors_command,
    )
    result = document(launches, args, floors)
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(headline(result, "float32, 224 x 224"), end="\n\n")
    print(table(launches, floors["gemm_gflops"]), end="\n\n")
    print(*targets_report(launches), sep="\n")


if __name__ == "__main__":
    main()
