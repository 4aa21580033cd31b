"""One contender of `folder.py` in this process: pictures -> a table of their classes.

    python benchmarks/folder_contender.py onnxruntime --weights van.onnx --output x.csv FOLDER

Imports only what the contender needs, because starting it is part of what is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
RESIZE_TO = 248  # the shorter side: what 224 is 0.9 of, rounded down
AHEAD = 4  # batches that are decoded before they are needed

Ranked = list[tuple[int, float]]  # class and probability, best first
# Every picture -> what the contender gives for it: (classes,) logits, or the ranked classes.
Run = Callable[[Sequence[str]], list[Any]]


def classifier(args: argparse.Namespace) -> Run:
    """`Classifier.stream` of this package."""
    sys.path.insert(0, str(HERE.parent))
    from van_classification_tensorflow import Classifier

    model = Classifier(args.weights, engine=args.engine)

    def run(paths: Sequence[str]) -> list[np.ndarray]:
        results = list(model.stream(paths))
        failed = [result.error for result in results if result.error]
        if failed:
            raise SystemExit(failed[0])
        return [result.output for result in results]

    return run


def prepared(path: str, size: int) -> np.ndarray:
    """(3, size, size) float32: as the weights want it, by Pillow and one pass of NumPy."""
    from PIL import Image

    with Image.open(path) as file:
        image = file.convert("RGB")
    scale = RESIZE_TO / min(image.size)
    width, height = (int(side * scale) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image.crop((left, top, left + size, top + size)))
    return pixels.transpose(2, 0, 1) * np.float32(2 / 255) - np.float32(1)


def decoded(
    pool: ThreadPoolExecutor, paths: Sequence[str], size: int, ahead: int
) -> Iterator[np.ndarray]:
    """Pictures in their order, some of them decoded ahead by the pool."""
    waiting: deque[Future[np.ndarray]] = deque()
    for path in paths:
        waiting.append(pool.submit(prepared, path, size))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def onnxruntime(args: argparse.Namespace) -> Run:
    """ONNX Runtime as one would write it: a pool decodes ahead while a batch is computed.

    The session has a thread a core and the graph a static batch; the last batch is filled up. Its
    threads stop spinning when a batch is done, which leaves the cores to the decoders.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = args.threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(args.weights, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    batch, size = given.shape[0], given.shape[-1]
    images = np.zeros(given.shape, np.float32)
    pool = ThreadPoolExecutor(args.threads)

    def run(paths: Sequence[str]) -> list[np.ndarray]:
        pictures = decoded(pool, paths, size, AHEAD * batch)
        found: list[np.ndarray] = []
        while len(found) < len(paths):
            count = min(batch, len(paths) - len(found))
            for i in range(count):
                images[i] = next(pictures)
            found += list(session.run(None, {given.name: images})[0][:count])
        return found

    return run


def pipeline(args: argparse.Namespace) -> Run:
    """The pipeline of transformers, as it comes."""
    os.environ["USE_TORCH"] = "1"  # it need not start TensorFlow as well, where that is installed
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    model = transformers.pipeline(
        "image-classification",
        model=args.weights,
        device="cpu",
        use_fast=False,  # the other needs torchvision, and resizes another way
        batch_size=args.batch,
        top_k=args.top,
    )
    classes = model.model.config.num_labels
    model.model.config.id2label = {i: str(i) for i in range(classes)}  # some names are twice

    def run(paths: Sequence[str]) -> list[Ranked]:
        return [[(int(one["label"]), one["score"]) for one in each] for each in model(list(paths))]

    return run


CONTENDERS = {one.__name__: one for one in (classifier, onnxruntime, pipeline)}


def ranked(found: Any, top: int) -> Ranked:
    """The best classes of logits, or what has been ranked already."""
    if isinstance(found, list):
        return found
    shares = np.exp(found - found.max(), dtype=np.float64)
    shares /= shares.sum()
    return [(int(i), float(shares[i])) for i in np.argsort(-shares, kind="stable")[:top]]


def write_table(path: Path, pictures: Sequence[str], found: Sequence[Any], top: int) -> None:
    """The columns that `van predict` writes, but for the names."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        pairs = range(1, top + 1)
        writer.writerow(
            ["path", *(f"{key}_{i}" for i in pairs for key in ("index", "probability"))]
        )
        for picture, one in zip(pictures, found, strict=True):
            writer.writerow([picture, *(cell for pair in ranked(one, top) for cell in pair)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("folder", type=Path, help="of pictures")
    parser.add_argument("--weights", required=True, help="a file or a folder, as it takes them")
    parser.add_argument("--output", type=Path, required=True, help="the table to write, *.csv")
    parser.add_argument("--passes", type=int, default=0, help="timed, after one that is not")
    parser.add_argument("--pictures", type=int, help="at most so many of them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8, help="of the pipeline")
    parser.add_argument("--engine", default="auto", help="of the classifier")
    parser.add_argument("--top", type=int, default=5, help="classes in the table")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # read when the libraries load
    with contextlib.redirect_stdout(sys.stderr):  # libraries chat; stdout is the result
        run = CONTENDERS[args.name](args)
        paths = sorted(str(path) for path in args.folder.iterdir())[: args.pictures]
        times: list[float] = []
        for _ in range(args.passes + 1):
            start = time.perf_counter()
            found = run(paths)
            times.append(1e3 * (time.perf_counter() - start))
        write_table(args.output, paths, found, args.top)
    timed = times[1:] or times
    found_out = {"median_ms": statistics.median(timed), "passes": timed, "classified": len(paths)}
    print(json.dumps({"name": args.name, **found_out}))


if __name__ == "__main__":
    main()
