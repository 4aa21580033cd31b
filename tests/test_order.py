"""What can be known in a second is said before Keras or TensorFlow is even looked for."""

import json
import os
import subprocess
import sys

import pytest

CASES = {
    "demo --epochs 0": "--epochs must be at least 1",
    "demo --output {0}/file/x": "is no folder; make it first",
    "train --data {0}/no --output {0}/x": "no such folder",
    "train --data {0}/one --output {0}/x": "only one, class",
    "train --data digits --output {0}/full": "already there and not empty",
    "train --data {0}/two --output {0}/two/x": "lies inside of --data",
    "train --data {0}/two --output {0}/x --batch-size 99": "--batch-size must be at most",
    "train --data {0}/two --output {0}/x --pretrained van_b9": "no such weights",
    "train --data {0}/two --output {0}/x --pretrained {0}/no.pth": "No such file",
    "train --data digits --output {0}/x --epochs none": "--epochs must be a whole number",
    "train --resume {0}/full": "no config.yaml",
    "predict {0}/no.png {0}/no2.png": "no.png: no such file, nor any of 1 others",
    "predict {0}/*.gif": "no such file",
    "predict {0}/two --top 0": "--top must be",
    "predict {0}/two --batch-size 0": "--batch-size must be",
    "predict {0}/two --output {0}/old.csv": "already there",
    "predict {0}/two --output {0}/no/x.csv": "make it first",
    "predict {0}/two --output {0}/folder.csv --overwrite": "folder.csv is a folder; name a file",
    "predict {0}/two --output {0}/pipe.csv --overwrite": "pipe.csv is not a regular file",
    "predict {0}/two --resume": "run with --output",
    "predict {0}/two --weights van_b9": "no such weights",
    "predict {0}/two --weights {0}/no.onnx": "No such file",
    "predict {0}/two --output {0}/x.csv --shard 4/4": "--shard must be I/N, I from 0 to N - 1",
    "predict {0}/two --shard 0/4": "--shard needs the --output",
    "predict {0}/two --output {0}/x.parquet --rows-per-file 9": "--rows-per-file makes a folder on "
    "a cluster: it needs --cluster and an --output that ends in .parquet",
    "predict {0}/two --output {0}/x.csv --cluster 127.0.0.1:1 --rows-per-file 9": "that ends in "
    ".parquet. Received: --cluster '127.0.0.1:1', --output",
    "predict {0}/two --output {0}/old.csv --shard 0/4": "old.csv is already there",
    "merge {0}/x.csv": "x.csv has no parts beside it",
    "merge {0}/old.csv": "already there; to replace it: --overwrite",
    "merge {0}/x.txt": "OUTPUT must end in .csv, .jsonl, .parquet, .npy.",
    "merge {0}/no/x.csv": "make it first",
    "segment {0}/no.png --weights {0}/no.pth --output {0}/x": "no.png: no such file",
    "segment {0}/two --weights {0}/no.pth --output {0}/x": "No such file",
    "segment {0}/two --weights van_b9 --output {0}/x": "no such weights",
    "segment {0}/two --weights {0}/no.pth --output {0}/full": "holds what no segmentation wrote",
    "segment {0}/two --weights {0}/no.pth --output {0}/x --crop 64": "--crop is for --mode slide",
    "segment {0}/two --weights {0}/no.pth --output {0}/x --truth {0}/no": "no folder of masks",
    "segment {0}/two --weights {0}/no.pth --output {0}/x --truth {0}/full": "have no mask in",
    "evaluate --data {0}/no": "no such folder",
    "evaluate --data digits --output {0}/full": "holds what no evaluation wrote",
    "evaluate --data {0}/two --class-map {0}/no.csv": "No such file",
    "evaluate --data tfds:x": "pip install tensorflow-datasets",
    "evaluate --data digits --weights van_b9": "no such weights",
    "evaluate --data {0}/two --weights digits": "match no class",
    "export --output {0}/old.onnx": "already there",
    "export --output {0}/no/x.onnx": "no such folder",
    "export --output {0}/x.onnx --data {0}/no": "--data must be a folder",
    "export --output {0}/x.onnx --weights van_b9": "no such weights",
    "export --output {0}/x.onnx --weights digits --image-size 3": "--image-size must be at least",
    "export --output {0}/x.onnx --precision int8": "--data must name real pictures",
    "benchmark --weights van_b9": "no such weights",
    "benchmark --weights {0}/no.onnx": "no such file",
    "benchmark --output {0}/full": "holds what no benchmark wrote",
    "serve --weights van_b9": "no such weights",
    "serve --weights digits --host 0.0.0.0": "--host can be reached by others",
    "serve --weights digits digits": "two models of the name digits",
    "serve --weights digits --token-file {0}/no": "No such file",
    "push hf://x --weights digits": "ADDRESS must be hf://USER/NAME",
    "push hf://me/x --weights {0}/no.onnx --output {0}/x": "is an exported file",
    "push hf://me/x --weights digits --output {0}/full": "holds what no push wrote",
    "pull hf://me/x@": "ADDRESS must name a branch, a tag or a commit",
    "pull hf://me/x --output {0}/full": "holds what no pull wrote",
    "predict {0}/two --weights hf://x": "--weights must be hf://USER/NAME",
    "train --data {0}/two --output {0}/x --pretrained hf://x": "must be hf://USER/NAME",
    "convert {0}/no.pth {0}/x.pth": "No such file",
    "convert {0}/no.pth {0}/old.pth": "already there",
    "convert {0}/no.pth {0}/no/x.pth": "make it first",
    "convert {0}/no.pth {0}/pipe.pth --overwrite": "pipe.pth is not a regular file",
}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """Command line -> (exit code, what it said), of all cases in one process."""
    folder = tmp_path_factory.mktemp("order")
    for name in ("one/class/1.png", "two/a/1.png", "two/a/2.png", "two/b/1.png", "two/b/2.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    for name in ("file", "full/notes.txt", "old.csv", "old.onnx", "old.pth"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("precious")
    (folder / "folder.csv").mkdir()
    for name in ("pipe.csv", "pipe.pth"):
        os.mkfifo(folder / name)
    code = """
import contextlib, io, json, sys
# Nobody can have them, and nobody can be asked.
for name in ("keras", "tensorflow", "tensorflow_datasets", "jax", "torch", "requests"):
    sys.modules[name] = None
import onnx, onnxruntime
from van_classification_tensorflow.cli import main
for arguments in json.load(sys.stdin):
    errors, code = io.StringIO(), 0
    with contextlib.redirect_stderr(errors):
        try:
            main(arguments)
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([code, errors.getvalue()]), flush=True)
"""
    lines = [case.format(folder).split() for case in CASES]
    cache = {"VAN_CACHE": str(folder / "cache"), "VAN_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **cache},
        check=False,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(CASES), done.stderr
    return dict(zip(CASES, found, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_said_before_anything_heavy(case, said):
    code, errors = said[case]
    assert code == 1, errors
    assert errors.startswith("van: error: ")
    assert CASES[case] in errors
    assert errors.count("\n") == 1
    assert len(errors) < 700
