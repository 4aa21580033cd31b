"""Load on `van serve`, on this machine, and what is asked of it.

    python benchmarks/serving.py --model van_b0 --output results.json
    python benchmarks/serving.py --model digits --only throughput latency --seconds 3

The server is a process of its own with the options that it has by default; the client
(`serving_client.py`) shares its cores, and says how much of them it took. Each measurement starts
servers of its own. A timing never fails anything: what fell short is marked, and the exit status is
0 all the same.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import serving_life as life
import serving_load as load
from folder import versions_of
from serving_bench import Bench, Part, Row
from serving_fuzz import fuzz
from serving_peers import PEERS, environments, peers
from serving_server import prepare
from serving_triton import triton
from speed import check_output, machine, positive

MODELS = ("digits", "van_b0")
PICTURES = 64
QUIET = 0.1  # cores that others may take
MEASUREMENTS: dict[str, Callable[[Bench], Part]] = {
    "throughput": load.throughput,
    "latency": load.latency,
    "clients": load.clients,
    "overload": load.overload,
    "slow": load.slow,
    "sigterm": life.sigterm,
    "reload": life.reload_,
    "memory": life.memory,
    "fuzz": fuzz,
    "triton": triton,
    "ready": life.ready,
}
LIBRARIES = (
    "numpy",
    "pillow",
    "onnxruntime",
    "openvino",
    "fastapi",
    "starlette",
    "uvicorn",
    "uvloop",
    "httptools",
    "prometheus-client",
    "python-multipart",
    "tritonclient",
    "litserve",
    "bentoml",
)


def disturbed(details: Any) -> float | None:
    """The most cores that other processes took in any load of a record; None: nothing says."""
    found: list[float] = []
    if isinstance(details, dict):
        found += [details["others_cores"]] if "others_cores" in details else []
        details = list(details.values())
    if isinstance(details, list):
        found += [one for one in map(disturbed, details) if one is not None]
    return max(found, default=None)


def table(rows: Sequence[Row]) -> str:
    """Markdown, to be read here and pasted into the README."""
    lines = ["| | asked | measured | |", "|---|---|---|---|"]
    verdicts = {None: "", True: "met", False: "MISSED"}
    lines += [f"| {r.what} | {r.asked} | {r.measured} | {verdicts[r.met]} |" for r in rows]
    return "\n".join(lines)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    every = (*MEASUREMENTS, "peers")
    add("--model", choices=MODELS, default="van_b0")
    add("--only", nargs="+", choices=every, metavar="NAME", help=f"some of {', '.join(every)}")
    add("--seconds", type=float, default=10.0, help="of one load")
    add("--rounds", type=positive, default=2, help="launches, where the best of several counts")
    add("--times", type=positive, default=20, help="of SIGTERM, and of reloads")
    add("--clients", type=positive, default=1000, help="at once, in `clients`")
    add("--slow-clients", type=positive, default=200)
    add("--requests", type=positive, default=20_000, help="in `memory`")
    add("--mutants", type=positive, default=10_000, help="in `fuzz`")
    add("--seed", type=int, default=0)
    add("--python-ours", default=sys.executable, help="interpreter that runs `van serve`")
    add("--server-options", default="", help="more of `van serve`, in one word of the shell")
    add("--environments", type=Path, help="folder of the peers' environments; made if missing")
    add("--whole", action="store_true", help="there too ours with Keras, to know its size")
    add("--output", type=Path, help="JSON file with all that was measured")
    args = parser.parse_args(arguments)
    check_output(parser, args.output)
    args.only = args.only or list(MEASUREMENTS) + (["peers"] if args.environments else [])
    if "peers" in args.only and not args.environments:
        parser.error("peers: needs --environments")
    if "peers" in args.only and args.model == "digits":
        parser.error("peers: they serve VAN-B0; received --model digits")
    return args


def bench_of(args: argparse.Namespace, folder: Path) -> Bench:
    return Bench(
        files=prepare(args.model, folder, PICTURES),
        folder=folder,
        python=args.python_ours,
        options=tuple(shlex.split(args.server_options)),
        seconds=args.seconds,
        rounds=args.rounds,
        times=args.times,
        clients=args.clients,
        slow=args.slow_clients,
        requests=args.requests,
        mutants=args.mutants,
        seed=args.seed,
    )


def reported(
    args: argparse.Namespace,
    where: dict[str, Any],
    versions: dict[str, Any],
    parts: dict[str, Part],
) -> str:
    """Writes the JSON file of what was measured so far; the same to read."""
    rows = [row for part in parts.values() for row in part.rows]
    details = {name: part.details for name, part in parts.items()}
    if args.output:
        options = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        record = {"machine": where, "versions": versions, "options": options}
        record |= {"rows": [row._asdict() for row in rows], "details": details}
        args.output.write_text(json.dumps(record, indent=1) + "\n")
    libraries = ", ".join(f"{k} {v}" for k, v in versions["van"].items())
    text = f"{args.model}; {where['cpu']}, {where['cores']} cores, client and server; {libraries}"
    tables = [table(rows)] if rows else []
    tables += [part.table for part in parts.values() if part.table]
    others = disturbed(details)
    if others is not None and others > QUIET:
        tables.append(f"Not quiet: other processes took up to {others:.2f} cores during a load.")
    return "\n\n".join([text, *tables])


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    measurements: dict[str, Any] = dict(MEASUREMENTS)
    versions = {"van": versions_of(args.python_ours, LIBRARIES)}
    if "peers" in args.only:
        pythons = environments(args.environments.resolve(), args.whole)
        measurements["peers"] = partial(peers, pythons=pythons)
        versions |= {name: versions_of(pythons[name], LIBRARIES) for name in PEERS}
    where, parts, text = machine(), dict[str, Part](), ""
    with tempfile.TemporaryDirectory() as name:
        bench = bench_of(args, Path(name))
        try:
            for measurement in args.only:
                begun = time.perf_counter()
                found = parts[measurement] = measurements[measurement](bench)
                found.details["took_s"] = seconds = time.perf_counter() - begun
                others = disturbed(found.details)
                told = "" if others is None else f", others took up to {others:.2f} cores"
                print(f"{measurement}: {seconds:.0f} s{told}", file=sys.stderr)
                text = reported(args, where, versions, parts)
        finally:  # what was measured before a failure, too
            print(text)


if __name__ == "__main__":
    main()
