"""What loading weights costs: beside `torch.load`, and beside the untrained constructor.

    python benchmarks/reading.py                 # needs torch: pip install '.[torch]'

1. A VAN-B3 training checkpoint (weights and AdamW's two moments, three times the weights, as the
   authors' script saves it), in both layouts of torch.save: wall time and peak memory of
   `read_checkpoint` and of `torch.load`, and as a floor of reading a third of the file, as much
   as the weights are, into fresh memory. Each launch is a process of its own, the file is in the
   page cache, the contenders are interleaved.
2. `VAN("van_b0", pretrained=True)` from a warm cache against `VAN("van_b0")`, interleaved in one
   process: SHA-256, reading, checks and assignment are in it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

READERS = ("floor", "ours", "torch weights_only", "torch unpickled")


def make_checkpoint(path: Path, zip_layout: bool) -> int:
    """Writes a VAN-B3 training checkpoint; returns the bytes of its weights."""
    import torch
    from weights import seeded

    from van_classification_tensorflow.spec.architecture import Architecture
    from van_classification_tensorflow.spec.config import CONFIGURATIONS

    config = CONFIGURATIONS["van_b3"]
    sizes = Architecture(config.embed_dims, config.hidden_dims, config.depths, 3, 1000)
    state = {n: torch.from_numpy(seeded(n, s.shape)) for n, s in sizes.tensors().items()}
    trained = [t for n, t in state.items() if "running_" not in n]
    moments = {
        i: {
            "step": torch.tensor(1.0),
            "exp_avg": torch.zeros_like(t),
            "exp_avg_sq": torch.ones_like(t),
        }
        for i, t in enumerate(trained)
    }
    contents = {
        "epoch": 309,
        "arch": "van_b3",
        "state_dict": state,
        "optimizer": {"state": moments, "param_groups": [{"lr": 1e-3, "params": [*moments]}]},
        "args": argparse.Namespace(lr=1e-3, drop_path=0.2),
    }
    torch.save(contents, path, _use_new_zipfile_serialization=zip_layout)
    return sum(t.numel() * t.element_size() for t in state.values())


def read(reader: str, path: str) -> None:
    """One launch: prints seconds and the growth of the peak memory as JSON."""
    if reader == "floor":  # as many bytes as the weights have, into fresh memory

        def load(file):
            with open(file, "rb", buffering=0) as opened:
                return opened.readinto(bytearray(os.path.getsize(file) // 3))

    elif reader == "ours":
        from van_classification_tensorflow.weights.checkpoint import read_checkpoint as load
    else:
        import torch

        torch.serialization.add_safe_globals([argparse.Namespace])

        def load(file):
            return torch.load(file, weights_only=reader == "torch weights_only")

    before = peak_memory()
    start = time.perf_counter()
    found = load(path)
    seconds = time.perf_counter() - start
    assert found
    print(json.dumps({"seconds": seconds, "peak": peak_memory() - before}))


def peak_memory() -> int:
    """Largest resident set of this process so far, in bytes (Linux).

    Not `getrusage`, whose figure a child inherits from the process that started it.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def compare_readers(rounds: int, folder: Path) -> None:
    for layout, is_zip in (("zip", True), ("before 1.6", False)):
        path = folder / f"{is_zip}.pth.tar"
        weights = make_checkpoint(path, is_zip)
        size = path.stat().st_size
        launches: dict[str, list[dict]] = {reader: [] for reader in READERS}
        path.read_bytes()  # into the page cache
        for _ in range(rounds):
            for reader in READERS:
                command = [sys.executable, __file__, "--reader", reader, "--file", str(path)]
                output = subprocess.run(command, check=True, capture_output=True, text=True)
                launches[reader].append(json.loads(output.stdout))
        best = {r: min(x["seconds"] for x in launches[r]) for r in READERS}
        print(
            f"\nVAN-B3 training checkpoint, {layout}: {size / 1e6:.0f} MB, weights "
            f"{weights / 1e6:.0f} MB; best of {rounds} launches\n\n"
            "| reader | ms | time over torch.load's | peak memory, MB | allowed, MB |\n"
            "|---|---:|---:|---:|---:|"
        )
        for reader in READERS:
            peak = max(x["peak"] for x in launches[reader])
            print(
                f"| {reader} | {best[reader] * 1e3:.0f} | "
                f"{best[reader] / best['torch weights_only']:.2f} | {peak / 1e6:.0f} | "
                f"{(size + weights) / 1e6:.0f} |"
            )
        path.unlink()


def compare_constructors(rounds: int, folder: Path) -> None:
    import dataclasses
    import hashlib

    from weights import seeded

    from van_classification_tensorflow import VAN
    from van_classification_tensorflow.spec.architecture import Architecture
    from van_classification_tensorflow.spec.config import CONFIGURATIONS
    from van_classification_tensorflow.weights import catalogue as weights
    from van_classification_tensorflow.weights.formats.torch import write_torch
    from van_classification_tensorflow.weights.namings import spell

    # A stand-in for OpenMMLab's file: its names, its size, other numbers.
    config = CONFIGURATIONS["van_b0"]
    sizes = Architecture(config.embed_dims, config.hidden_dims, config.depths, 3, 1000)
    record = weights.CATALOGUE["van_b0.in1k"]
    path = folder / record.name / record.sources[0].file
    path.parent.mkdir()
    tensors = {n: seeded(n, s.shape) for n, s in sizes.tensors().items()}
    write_torch(path, spell(tensors, "mmpretrain"))
    source = dataclasses.replace(
        record.sources[0], sha256=hashlib.sha256(path.read_bytes()).hexdigest()
    )
    record = dataclasses.replace(record, sources=(source,))
    weights.CATALOGUE = {record.name: record}
    os.environ.update(VAN_CACHE=str(folder), VAN_OFFLINE="1")

    times: dict[bool, list[float]] = {False: [], True: []}
    for round_ in range(rounds + 1):
        for pretrained in times:
            start = time.perf_counter()
            VAN("van_b0", pretrained=pretrained)
            if round_:  # the first pays for imports and for TensorFlow's start
                times[pretrained].append(time.perf_counter() - start)
    plain, loaded = (statistics.median(times[p]) for p in (False, True))
    print(
        f"\nVAN-B0 from a warm cache, median of {rounds}, interleaved in one process\n\n"
        "| | ms | over untrained |\n|---|---:|---:|\n"
        f'| `VAN("van_b0")` | {plain * 1e3:.0f} | 1.00 |\n'
        f'| `VAN("van_b0", pretrained=True)` | {loaded * 1e3:.0f} | {loaded / plain:.2f} |'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--reader", choices=READERS, help="one launch, for the rounds")
    parser.add_argument("--file")
    options = parser.parse_args()
    if options.reader:
        read(options.reader, options.file)
        return
    with tempfile.TemporaryDirectory() as folder:
        compare_readers(options.rounds, Path(folder))
        compare_constructors(options.rounds, Path(folder))


if __name__ == "__main__":
    main()
