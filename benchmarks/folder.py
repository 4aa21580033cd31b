"""End to end: a folder of 500 pictures to a table of their classes, beside ONNX Runtime.

    python benchmarks/folder.py --output results.json

As `speed.py`: every contender in its own process, rounds interleaved, the figure is a contender's
best launch, and no number is reported unless all find the same classes, with logarithms of their
probabilities within 1e-3. "Whole" is from starting a process to its end; "warm" is the median pass
over the folder in a process that has done one before.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from cold_start import write_weights
from contender import HERE
from decoding import make_pictures
from folder_contender import write_table
from speed import (
    TOLERANCE,
    Launches,
    Setting,
    Target,
    add_common_arguments,
    best_ms,
    check_output,
    document,
    headline,
    positive,
    run_all,
    run_process,
    targets_report,
)

PACKAGE = HERE.parent
PICTURE = (500, 375)  # width and height
MODE = "folder"
PEER, PIPELINE = "onnxruntime", "pipeline"
ENGINES = ("auto", "numpy", "onnxruntime", "openvino", "keras")
TIE = 1e-4  # of the reference's two best classes: either may be named first
FIRST_ANSWER_S = 1.0  # asked, at most
BATCHES = (1, 8)
TARGETS = tuple(
    Target(ours, MODE, batch, peer, ratio)
    for batch in BATCHES
    for ours, peer, ratio in (
        ("predict_auto", PEER, 1.0),
        ("predict_auto", PIPELINE, 3.0),
        ("evaluate_auto", PEER, 1.0),
        ("classifier_auto_warm", f"{PEER}_warm", 1.0),
        ("classifier_auto_warm", f"{PIPELINE}_warm", 3.0),
    )
)

# Kind of contender -> the libraries whose versions decide its speed.
LIBRARIES = {
    "ours": ("onnxruntime", "openvino", "keras", "tensorflow", "pillow", "numpy"),
    PEER: ("onnxruntime", "onnx", "torch", "transformers", "pillow", "numpy"),
    PIPELINE: ("torch", "transformers", "pillow", "numpy"),
}

Table = dict[str, dict[int, float]]  # picture -> class -> logarithm of its probability, best first


class Contender(NamedTuple):
    """Who is measured: this package by one of its engines, or a peer (`engine` is None)."""

    kind: str  # predict, evaluate, first_answer, classifier, or a peer
    engine: str | None = None
    warm: bool = False

    @property
    def name(self) -> str:
        warm = "warm" if self.warm else None
        return "_".join(part for part in (self.kind, self.engine, warm) if part)


class Files(NamedTuple):
    """What the contenders of one setting read, all in one folder."""

    folder: Path
    pictures: Path
    labelled: Path  # the same pictures in folders of classes
    weights: Path  # of this package
    peer: Path  # of transformers: a folder
    onnx: Path  # what torch exports of that, with the setting's batch
    expected: Table  # what the peer finds, all classes


def contenders(engines: Sequence[str]) -> dict[str, Contender]:
    """All of them, in the order in which they run."""
    kinds = [("predict", False), ("evaluate", False), ("classifier", True), ("first_answer", False)]
    ours = [Contender(kind, engine, warm) for engine in engines for kind, warm in kinds]
    peers = [Contender(kind, None, warm) for kind in (PEER, PIPELINE) for warm in (False, True)]
    return {one.name: one for one in (*ours, *peers)}


# --- Agreement ---


def read_table(path: Path) -> Table:
    """Of a file as `van predict` and `folder_contender.py` write it."""
    found: Table = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            indices = [key for key in row if key.startswith("index_")]
            found[Path(row["path"]).name] = {
                int(row[key]): math.log(max(float(row[f"probability_{key[6:]}"]), 1e-300))
                for key in indices
            }
    return found


def require_agreement(name: str, expected: Table, found: Table, count: int) -> None:
    """Speeds of different answers are not comparable: refuses them, and another number of them."""
    if len(found) != count:
        raise SystemExit(f"{name}: {len(found)} pictures for {count}; no result is reported")
    for picture, classes in found.items():
        right = expected[picture]
        first, best = next(iter(classes)), next(iter(right))
        if first != best and not right[best] - right[first] <= TIE:
            raise SystemExit(
                f"{name}: {picture} is {first}, of the peer {best}; no result is reported"
            )
        for index, log in classes.items():
            if not abs(log - right[index]) <= TOLERANCE:
                raise SystemExit(
                    f"{name}: the logarithm of class {index} of {picture} is {log:.5f}, of the "
                    f"peer {right[index]:.5f} (allowed: {TOLERANCE:.0e}); no result is reported"
                )


def require_figures(name: str, expected: Table, printed: str) -> None:
    """Refuses an evaluation of the labelled folders with other figures than the peer's answers."""
    found = [re.search(rf"{key}\W+([\d.]+)", printed) for key in ("Top-1", "Loss")]
    top1, loss = (float(one[1]) if one else math.nan for one in found)
    answers = [list(expected[picture].items()) for picture in sorted(expected)]
    right = 100 * sum(i % 2 == 0 for i in range(len(answers))) / len(answers)
    nats = -sum(classes[i % 2][1] for i, classes in enumerate(answers)) / len(answers)
    # A figure is printed with three and four digits.
    if not (abs(top1 - right) <= 0.001 and abs(loss - nats) <= TOLERANCE):
        raise SystemExit(
            f"{name}: top-1 {top1} %, loss {loss}; of the peer {right:.3f} % and {nats:.4f}; no "
            f"result is reported\n{printed}"
        )


# --- What they read ---


def label(pictures: Path, labelled: Path, expected: Table) -> None:
    """A folder for each class; every other picture has the peer's second class for its label.

    So the peer is right half the time, and an evaluation of other answers is noticed.
    """
    for i, picture in enumerate(sorted(expected)):
        there = labelled / str(list(expected[picture])[i % 2])
        there.mkdir(parents=True, exist_ok=True)
        os.link(pictures / picture, there / picture)


def prepared(args: argparse.Namespace, folder: Path, setting: Setting) -> Files:
    """Writes weights and graph, and has the peer classify all pictures once."""
    model = setting.model
    weights, peer = folder / f"{model}.pth", folder / f"{model}-transformers"
    if not weights.exists():
        write_weights(model, weights, peer)
    export = (
        "import sys, pathlib, contender as c; print(c.onnx_file(c.Job('onnxruntime', sys.argv[1], "
        "int(sys.argv[2]), 'inference', int(sys.argv[3]), pathlib.Path(sys.argv[4]))))"
    )
    asked = [model, str(setting.batch), str(args.threads), str(args.onnx_dir.resolve())]
    onnx = Path(run_process([args.python_peers, "-c", export, *asked], HERE).strip())
    labelled, table = folder / f"{model}-labelled", folder / "expected.csv"
    files = Files(folder, folder / "pictures", labelled, weights, peer, onnx, {})
    run_process([*command_of(args, Contender(PEER), setting, files, table), "--top", "1000"])
    files = files._replace(expected=read_table(table))
    if not labelled.exists():
        label(files.pictures, labelled, files.expected)
    return files


# --- Launches ---


def command_of(
    args: argparse.Namespace, who: Contender, setting: Setting, files: Files, table: Path
) -> list[str]:
    """Starts a contender, which writes `table` if it is one that names classes to a file."""
    if who.kind in ("predict", "evaluate", "first_answer"):
        command = [args.python_ours, "-m", "van_classification_tensorflow"]
        if who.kind == "evaluate":
            command += ["evaluate", "--data", str(files.labelled)]
        else:
            command += ["predict", str(files.pictures)]
        if who.kind == "predict":
            command += ["--output", str(table)]
        return [*command, "--weights", str(files.weights), "--engine", str(who.engine)]
    python = args.python_peers if who.engine is None else args.python_ours
    read = {PEER: files.onnx, PIPELINE: files.peer}.get(who.kind, files.weights)
    command = [python, str(HERE / "folder_contender.py"), who.kind, str(files.pictures)]
    command += ["--weights", str(read), "--output", str(table)]
    command += ["--threads", str(args.threads), "--batch", str(setting.batch)]
    if who.warm:
        command += ["--passes", str(args.passes)]
    if who.kind == PIPELINE:
        command += ["--pictures", str(args.pipeline_pictures)]
    return command if who.engine is None else [*command, "--engine", who.engine]


def first_answer(command: Sequence[str], table: Path) -> float:
    """Milliseconds until a process has printed its first record, which goes into `table`."""
    start = time.perf_counter()
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, cwd=PACKAGE) as process:
        line = process.stdout.readline() if process.stdout else b""
        ms = 1e3 * (time.perf_counter() - start)
        process.kill()
        error = process.communicate()[1].decode()
    if not line:
        raise SystemExit(f"no answer: {' '.join(command)}\n{error}")
    record = json.loads(line)
    found = [(one["index"], one["probability"]) for one in record["predictions"]]
    write_table(table, [record["path"]], [found], len(found))
    return ms


def launch(
    args: argparse.Namespace, files: dict[Setting, Files], name: str, setting: Setting
) -> dict[str, Any]:
    """Runs a contender once and compares its answers with the peer's."""
    who, mine = args.contenders[name], files[setting]
    table = mine.folder / "found.csv"
    table.unlink(missing_ok=True)
    command = command_of(args, who, setting, mine, table)
    count = args.pictures
    result: dict[str, Any] = {"name": name, "pictures": count, "classified": count}
    if who.kind == "first_answer":
        result["median_ms"] = first_answer(command, table)
    else:
        start = time.perf_counter()
        printed = run_process(command, PACKAGE)
        result["median_ms"] = 1e3 * (time.perf_counter() - start)
        if who.kind == "evaluate":
            require_figures(name, mine.expected, printed)
            result["engine"] = engine_of(printed)
        elif who.kind != "predict":
            result |= scaled(result, json.loads(printed.splitlines()[-1]), who.warm)
    if who.kind != "evaluate":
        answered = 1 if who.kind == "first_answer" else result["classified"]
        require_agreement(name, mine.expected, read_table(table), answered)
    return result | {"versions": args.versions["ours" if who.engine else who.kind]}


def engine_of(printed: str) -> str:
    """What ran the model, of the table that `van evaluate` prints."""
    found = re.search(r"Engine\W+([^,\n]+)", printed)
    return found[1].strip() if found else "an engine that is not said"


def scaled(result: dict[str, Any], inside: dict[str, Any], warm: bool) -> dict[str, Any]:
    """The time for all pictures of a process that says how long its own passes took.

    Only the pipeline is given fewer: a pass takes as much longer as it would have more pictures.
    """
    passed, share = inside["median_ms"], result["pictures"] / inside["classified"]
    whole = passed * share if warm else result["median_ms"] + passed * (share - 1)
    return {**inside, "name": result["name"], "median_ms": whole}


def versions_of(python: str, libraries: Sequence[str]) -> dict[str, str]:
    """Those of them that an interpreter has."""
    ask = (
        "import json, platform, sys; from importlib.metadata import distributions; "
        "there = {d.name.lower(): d.version for d in distributions()}; print(json.dumps({'python': "
        "platform.python_version(), **{k: there[k] for k in sys.argv[1:] if k in there}}))"
    )
    return json.loads(run_process([python, "-c", ask, *libraries]))


# --- Report ---


def table_of(launches: Launches, contenders: dict[str, Contender]) -> str:
    """Markdown, to be read here and pasted into the README."""
    lines = [
        "| model | batch of peers | contender | best s | images/s | launches, slowest/best "
        f"| over {PEER} | over {PIPELINE} |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for setting, results in launches.items():
        for name, runs in results.items():
            who, best, one = contenders[name], best_ms(runs), runs[0]
            if who.kind == "first_answer":
                continue
            peers = (Contender(kind, None, who.warm).name for kind in (PEER, PIPELINE))
            over = [f"{best_ms(results[p]) / best:.2f}" if p in results else "-" for p in peers]
            spread = max(run["median_ms"] for run in runs) / best
            scaled = "" if one["classified"] == one["pictures"] else f" ({one['classified']})"
            lines.append(
                f"| {setting.model} | {setting.batch} | {name}{scaled} | {best / 1e3:.2f} "
                f"| {1e3 * one['pictures'] / best:.1f} | {spread:.2f} | {' | '.join(over)} |"
            )
    return "\n".join(lines)


def remarks(launches: Launches, contenders: dict[str, Contender]) -> Iterator[str]:
    """The times to the first answer beside what is asked, and which engines ran."""
    for setting, results in launches.items():
        for name, runs in results.items():
            about = f"- {setting.mode}, {setting.model}, batch {setting.batch}: {name}"
            if contenders[name].kind == "first_answer":
                seconds = best_ms(runs) / 1e3
                verdict = "met" if seconds <= FIRST_ANSWER_S else "MISSED"
                yield f"{about} after {seconds:.2f} s, asked {FIRST_ANSWER_S} s: {verdict}"
            if "engine" in runs[0]:
                yield f"{about} ran on {runs[0]['engine']}"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser)
    parser.set_defaults(batches=[8], rounds=3)
    add = parser.add_argument
    add("--engines", nargs="+", choices=ENGINES, default=["auto"], help="of this package")
    add("--contenders", nargs="+", help="some of them, such as predict_auto onnxruntime")
    add("--pictures", type=positive, default=500)
    add("--pipeline-pictures", type=positive, default=100, help="its time is scaled to all")
    add("--passes", type=positive, default=2, help="timed in a warm process")
    args = parser.parse_args()
    check_output(parser, args.output)
    every = contenders(args.engines)
    names = args.contenders or list(every)
    if unknown := [name for name in names if name not in every]:
        parser.error(f"--contenders: must be some of {', '.join(every)}; received {unknown}")
    args.contenders = {name: who for name, who in every.items() if name in names}
    args.pipeline_pictures = min(args.pictures, args.pipeline_pictures)
    # They are started in another folder.
    for key in ("python_ours", "python_peers"):
        path = getattr(args, key)
        setattr(args, key, os.path.abspath(path) if os.sep in path else path)
    if hasattr(os, "sched_setaffinity"):  # what it starts has as many cores, and sees no more
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    return args


def main() -> None:
    args = parse_args()
    pythons = {"ours": args.python_ours, PEER: args.python_peers, PIPELINE: args.python_peers}
    args.versions = {kind: versions_of(pythons[kind], LIBRARIES[kind]) for kind in LIBRARIES}
    settings = [Setting(MODE, *one) for one in product(args.models, args.batches)]
    floors_command = [args.python_ours, str(HERE / "floors.py"), "--json"]
    floors_command += ["--threads", str(args.threads)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pictures").mkdir()
        make_pictures(folder / "pictures", *PICTURE, args.pictures)
        files = {setting: prepared(args, folder, setting) for setting in settings}
        launches, floors = run_all(
            {setting: list(args.contenders) for setting in settings},
            partial(launch, args, files),
            lambda *_: None,  # `launch` has compared it
            args.rounds,
            floors_command,
        )
    result = document(launches, args, floors)
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")
    what = f"float32, {args.pictures} JPEGs of {PICTURE[0]} x {PICTURE[1]}"
    print(headline(result, what), end="\n\n")
    print(table_of(launches, args.contenders), end="\n\n")
    print(*targets_report(launches, TARGETS), *remarks(launches, args.contenders), sep="\n")


if __name__ == "__main__":
    main()
