"""What a second worker brings: pictures decoded, resized and cropped a second.

    python benchmarks/decoding.py

Times `images.parallel.decoded` with the default `Preprocessing` on JPEGs made here, with one worker
and with two (threads), and two processes that share nothing, which is what the machine can give
at that moment; interleaved on the same files, the figures are medians of the rounds. Asked: two
workers at least 1.8 times as fast as one. A timing never fails anything; where two processes are
no faster either, the machine was busy and the run says nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from van_classification_tensorflow.images.decode import open_image
from van_classification_tensorflow.images.parallel import decoded
from van_classification_tensorflow.spec.preprocessing import Preprocessing

ASKED = 1.8


def make_pictures(folder: Path, width: int, height: int, count: int) -> list[str]:
    """JPEGs with the detail of photographs: noise at several scales, quality 90."""
    paths = []
    for i in range(count):
        rng = np.random.default_rng(i)
        image = np.zeros((height, width, 3), np.float32)
        for scale in (2, 8, 32, 128):
            size = (max(width // scale, 1), max(height // scale, 1))
            noise = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            image += np.asarray(Image.fromarray(noise).resize((width, height))) * (scale**0.5)
        image *= 255 / image.max()
        paths.append(str(folder / f"{width}x{height}-{i}.jpg"))
        Image.fromarray(image.astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def decode(path: str) -> np.ndarray:
    return Preprocessing().views(open_image(path))


def rate(paths: list[str], workers: int) -> float:
    """Pictures a second, by threads."""
    start = time.perf_counter()
    count = 0
    for _, views in decoded(paths, decode, workers):
        if isinstance(views, Exception):
            raise views
        count += 1
    return count / (time.perf_counter() - start)


def rate_apart(paths: list[str]) -> float:
    """Pictures a second, by two processes of one thread each."""
    start = time.perf_counter()
    children = []
    for half in (paths[::2], paths[1::2]):
        child = os.fork()
        if child == 0:
            for path in half:
                decode(path)
            os._exit(0)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    return len(paths) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    print(
        "| JPEG | one worker, images/s | two | processes | two / one | processes / one | asked |\n"
        "|---|---:|---:|---:|---:|---:|---:|"
    )
    contenders = {
        "one": lambda paths: rate(paths, 1),
        "two": lambda paths: rate(paths, 2),
        "apart": rate_apart,
    }
    with tempfile.TemporaryDirectory() as folder:
        # About a second with one worker.
        for width, height, made, repeat in ((500, 375, 50, 6), (4000, 3000, 4, 2)):
            paths = make_pictures(Path(folder), width, height, made) * repeat
            rates: dict[str, list[float]] = {name: [] for name in contenders}
            for round_ in range(options.rounds + 1):
                for name, measure in contenders.items():
                    found = measure(paths)
                    if round_:  # the first fills the caches
                        rates[name].append(found)
            one, two, apart = (statistics.median(rates[name]) for name in contenders)
            size = Path(paths[0]).stat().st_size / 1e3
            print(
                f"| {width} x {height}, {size:,.0f} kB | {one:.1f} | {two:.1f} | {apart:.1f} | "
                f"{two / one:.2f} | {apart / one:.2f} | {ASKED} |"
            )


if __name__ == "__main__":
    main()
