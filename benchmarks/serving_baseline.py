"""Decode + engine without HTTP: `Classifier.stream` over a folder's bytes, in this process alone.

python benchmarks/serving_baseline.py FOLDER --seconds 10 --weights W --batch-size 8

Of the options of `van serve`, which it all takes, it heeds those of `Classifier`.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import cycle, islice
from pathlib import Path

from van_classification_tensorflow import Classifier
from van_classification_tensorflow.serve.request import ServeRequest
from van_classification_tensorflow.support.options import add_options, from_options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    add_options(parser, ServeRequest)
    args = parser.parse_args()
    pictures = [path.read_bytes() for path in sorted(args.folder.iterdir())]
    request = from_options(ServeRequest, vars(args))
    classifier = Classifier(**request.options_of(request.weights[0]))

    def one_pass(count: int) -> float:
        """Pictures a second."""
        start, done = time.perf_counter(), 0
        for result in classifier.stream(islice(cycle(pictures), count), count=None):
            if result.output is None:
                raise SystemExit(result.error)
            classifier.ranked(result.output, 5)
            done += 1
        return done / (time.perf_counter() - start)

    one_pass(len(pictures))  # makes the engine, fills the caches
    rate = one_pass(len(pictures))
    rates = [one_pass(max(int(rate * args.seconds / 2), len(pictures))) for _ in range(2)]
    used = classifier.engine_used
    found = {"per_second": max(rates), "passes": rates, "batch_size": request.batch_size}
    print(json.dumps({**found, "engine": f"{used.name} {used.version}" if used else ""}))


if __name__ == "__main__":
    main()
