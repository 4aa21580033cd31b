"""Speed of VAN where it is deployed: files of `van export` beside the VAN of transformers.

    python benchmarks/deployment.py --output results.json
    python benchmarks/deployment.py --operators --models van_b0 --batches 8

As `speed.py`: every contender in its own process, rounds interleaved, the figure is the median of
a contender's best launch, and no number is reported unless all contenders compute the same logits,
as far as their precision goes. `--operators` shows where the time goes instead.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from contender import HERE, package_on_path
from deployed import DEPLOYED
from floors import PRECISIONS, gemm_floor_ms, gemm_key
from speed import (
    Launches,
    Setting,
    add_shared_arguments,
    best_ms,
    check_output,
    document,
    headline,
    run_all,
    run_worker,
    worker_command,
)
from weights import IMAGE_SIZE, NUM_CLASSES

REFERENCE = "peer_ort_f32"
# Largest absolute difference from the reference's logits, whose standard deviation is 0.4.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.05}
# Random weights quantise badly, and an accuracy they have none: int8 must only be the same network.
INT8_CORRELATION = 0.9
MAX_INT8_SHARE = 0.3  # of the bytes of the float32 file
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


class Target(NamedTuple):
    """The fastest of `ours` is asked to be at least `ratio` times as fast as `against`."""

    ours: tuple[str, ...]
    against: str
    ratio: float
    batches: tuple[int, ...] = (1, 8)


TARGETS = (
    Target(("ort_f32", "ov_f32", "litert_f32"), REFERENCE, 1.05),
    Target(("ov_bf16", "ov_int8"), REFERENCE, 2.0),
    Target(("ov_bf16",), "peer_ov_bf16", 1.1),
    Target(("ov_int8",), "peer_ov_int8", 1.1),
    Target(("litert_int8",), "litert_f32", 2.0),
    Target(("keras_tf", "keras_openvino"), REFERENCE, 0.65, (1,)),
    Target(("keras_tf", "keras_openvino"), REFERENCE, 0.8, (8,)),
)
SIZES = (("ort_int8", "ort_f32"), ("ov_int8", "ov_f32"), ("litert_int8", "litert_f32"))
# Before and after, for `--operators`.
PAIRS = (
    ("peer_ort_f32", "ort_f32"),
    ("peer_ort_f32", "ort_int8"),
    ("peer_ov_f32", "ov_f32"),
    ("peer_ov_bf16", "ov_bf16"),
    ("peer_ov_int8", "ov_int8"),
)


# --- What must move ---


class Traffic(NamedTuple):
    """Numbers that an engine which runs convolution by convolution reads and writes."""

    activations: int  # of one image: every input once, every output once
    weights: int  # of a whole batch: kernels and biases, once

    def megabytes(self, batch: int, precision: str) -> float:
        return (batch * self.activations + self.weights) * BYTES[precision] / 1e6


def traffic(sizes: Any, image_size: int = IMAGE_SIZE) -> Traffic:
    """Counts the convolutions and the head of a `spec.architecture.Architecture`.

    Norms, GELU, products and shortcuts are taken to ride along for nothing, as the best engine
    does it. An engine that also joins two convolutions, or whose tensors stay in the cache, can
    be faster than this many bytes from memory.
    """
    package_on_path()
    from van_classification_tensorflow.spec.config import patches, stage_kernel_stride

    activations = weights = 0
    side, stage = image_size, 0
    for spec in sizes.tensors().values():
        if spec.kind == "vector":
            continue
        out, inside = spec.shape[:2]
        weights += math.prod(spec.shape) + out  # a bias each
        if spec.kind == "linear":
            activations += inside + out
            continue
        read = side**2 * (out if spec.kind == "depthwise" else inside)
        if spec.kind == "conv":  # a patch embedding
            stage += 1
            side = patches(side, *stage_kernel_stride(stage))
        activations += read + side**2 * out
    return Traffic(activations, weights)


def traffic_of(model: str) -> Traffic:
    """Of a member of the family."""
    package_on_path()
    from van_classification_tensorflow.spec.architecture import Architecture
    from van_classification_tensorflow.spec.config import CONFIGURATIONS

    config = CONFIGURATIONS[model]
    return traffic(
        Architecture(config.embed_dims, config.hidden_dims, config.depths, 3, NUM_CLASSES)
    )


# --- Launches ---


def launch(args: argparse.Namespace, name: str, setting: Setting, *more: str) -> Any:
    python = args.python_peers if DEPLOYED[name].peer else args.python_ours
    command = worker_command(python, "deployed.py", name, setting, args)
    return run_worker([*command, *more])


def require_agreement(reference: dict[str, Any], result: dict[str, Any], setting: Setting) -> None:
    """Refuses a contender that computes something else than the reference."""
    expected, received = np.array(reference["check"]), np.array(result["check"])
    if expected.shape != received.shape:
        raise SystemExit(f"{result['name']}: {received.size} logits for {expected.size}, {setting}")
    if result["precision"] == "int8":
        # A constant or a NaN has no correlation: not a number, and no agreement.
        with np.errstate(invalid="ignore"):
            correlation = np.corrcoef(expected, received)[0, 1]
        agree = correlation >= INT8_CORRELATION
        found = f"correlation {correlation:.3f}, at least {INT8_CORRELATION} allowed"
    else:
        worst, limit = np.abs(expected - received).max(), TOLERANCES[result["precision"]]
        agree = worst <= limit
        found = f"difference {worst:.2e}, at most {limit:.0e} allowed"
    if not agree:
        raise SystemExit(
            f"{result['name']} and {reference['name']} disagree on {setting}: {found}; "
            f"no result is reported.\n{reference['name']}: {reference['check'][:4]}\n"
            f"{result['name']}: {result['check'][:4]}"
        )


# --- Report ---


def table(launches: Launches, floors: dict[str, float]) -> str:
    """Markdown, to be read here and pasted into the README."""
    lines = [
        "| model | batch | contender | best ms | images/s | launches, slowest/best "
        f"| speed over {REFERENCE} | share of GEMM floor | MB moved | share of copy floor "
        "| file, MB |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for setting, results in launches.items():
        for name, runs in results.items():
            best = best_ms(runs)
            spread = max(run["median_ms"] for run in runs) / best
            precision, size = runs[0]["precision"], runs[0]["bytes"]
            rate = floors.get(gemm_key(precision))
            gemm = rate and gemm_floor_ms(setting.model, setting.batch, setting.mode, rate)
            moved = traffic_of(setting.model).megabytes(setting.batch, precision)
            copy_ms = moved / floors["copy_gb_per_s"]  # MB over GB/s is ms
            label = name if precision == DEPLOYED[name].precision else f"{name} ({precision})"
            lines.append(
                f"| {setting.model} | {setting.batch} | {label} | {best:.1f} "
                f"| {1e3 * setting.batch / best:.1f} | {spread:.2f} "
                f"| {best_ms(results[REFERENCE]) / best:.2f} "
                f"| {f'{gemm / best:.0%}' if gemm else '-'} | {moved:.1f} | {copy_ms / best:.0%} "
                f"| {f'{size / 1e6:.1f}' if size else '-'} |"
            )
    return "\n".join(lines)


def targets_report(launches: Launches) -> Iterator[str]:
    """A line for every asked ratio whose contenders were measured."""
    for setting, results in launches.items():
        where = f"- {setting.model}, batch {setting.batch}"
        for target in TARGETS:
            ours = [name for name in target.ours if name in results]
            if setting.batch not in target.batches or not ours or target.against not in results:
                continue
            best = min(ours, key=lambda name: best_ms(results[name]))
            ratio = best_ms(results[target.against]) / best_ms(results[best])
            verdict = "met" if ratio >= target.ratio else "MISSED"
            precision = results[best][0]["precision"]
            yield (
                f"{where}: {best} ({precision}) {ratio:.2f} x {target.against}, asked "
                f"{target.ratio} x: {verdict}"
            )
        for small, large in SIZES:
            if not {small, large} <= results.keys():
                continue
            share = results[small][0]["bytes"] / results[large][0]["bytes"]
            verdict = "met" if share <= MAX_INT8_SHARE else "MISSED"
            yield (
                f"{where}: {small} has {share:.2f} of {large}'s bytes, asked at most "
                f"{MAX_INT8_SHARE}: {verdict}"
            )


def operators_table(before: list[dict[str, Any]], after: list[dict[str, Any]], names: Any) -> str:
    """Time a step by kind of operator, the longest first, of two contenders side by side."""
    columns = [{(row["operator"], row["kernel"]): row for row in rows} for rows in (before, after)]
    totals = [sum(row["ms"] for row in rows) for rows in (before, after)]
    kinds = sorted(
        columns[0] | columns[1],
        key=lambda kind: -max(column[kind]["ms"] for column in columns if kind in column),
    )
    heads = [f"{name}: ms | share | nodes" for name in names]
    lines = [f"| operator | kernel | {heads[0]} | {heads[1]} |", f"|---|---|{'---:|' * 6}"]
    for kind in kinds:
        cells = []
        for column, total in zip(columns, totals, strict=True):
            row = column.get(kind)
            if row is None:
                cells += ["", "", ""]
            else:
                cells += [f"{row['ms']:.2f}", f"{row['ms'] / total:.0%}", str(row["nodes"])]
        lines.append(f"| {' | '.join((*kind, *cells))} |")
    sums = " | ".join(f"{total:.2f} | |" for total in totals)
    lines.append(f"| all | | {sums} |")
    return "\n".join(lines)


def operators_report(args: argparse.Namespace) -> Iterator[str]:
    for setting in args.settings:
        rows: dict[str, list[dict[str, Any]]] = {}
        for pair in PAIRS:
            if not set(pair) <= set(args.contenders):
                continue
            for name in pair:
                if name not in rows:
                    rows[name] = launch(args, name, setting, "--operators")
            yield f"{setting.model}, batch {setting.batch}: {pair[0]} -> {pair[1]}\n"
            yield operators_table(rows[pair[0]], rows[pair[1]], pair) + "\n"
    yield "LiteRT is left out: its Python interpreter does not tell the time of its operators."


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shared_arguments(parser)
    parser.set_defaults(rounds=3, seconds=3.0)
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=DEPLOYED,
        default=list(DEPLOYED),
        help=f"{REFERENCE} runs in any case: the others are compared with it",
    )
    parser.add_argument(
        "--operators", action="store_true", help="time by operator, before and after; nothing else"
    )
    args = parser.parse_args()
    check_output(parser, args.output)
    args.contenders = [n for n in DEPLOYED if n in args.contenders or n == REFERENCE]
    args.settings = [Setting("inference", *s) for s in product(args.models, args.batches)]
    if args.operators and not any(set(pair) <= set(args.contenders) for pair in PAIRS):
        pairs = ", ".join(f"{before} {after}" for before, after in PAIRS)
        parser.error(f"--operators needs --contenders with one of these pairs: {pairs}")
    return args


def main() -> None:
    args = parse_args()
    if args.operators:
        for text in operators_report(args):
            print(text, flush=True)
        return
    floors_command = [args.python_ours, str(HERE / "floors.py"), "--json"]
    used = {DEPLOYED[name].precision for name in args.contenders}
    floors_command += ["--threads", str(args.threads)]
    floors_command += ["--precisions", *(p for p in PRECISIONS if p in used)]
    launches, floors = run_all(
        dict.fromkeys(args.settings, args.contenders),
        partial(launch, args),
        require_agreement,
        args.rounds,
        floors_command,
    )
    result = document(launches, args, floors)
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(headline(result, "224 x 224"), end="\n\n")
    print(table(launches, floors), end="\n\n")
    print(*targets_report(launches), sep="\n")


if __name__ == "__main__":
    main()
