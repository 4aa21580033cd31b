"""Time and memory to the first answer: `van predict one.jpg` beside the transformers pipeline.

    python benchmarks/cold_start.py --python-peers .venv-peers/bin/python

Both read the same seeded VAN-B0 from the disk (ours from a verified cache, the peer from a folder
that `van convert --naming huggingface` wrote) and the same JPEG. Every launch is a process of its
own; rounds are interleaved; the figure is the best launch's time and the largest peak memory.
Also measured: how long NumPy takes for one picture, and Keras to its first answer, from which
`inference/classifier.py` has its two constants.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

# Runs `van` with a catalogue that knows the stand-in's hash, as it knows the published file's.
OURS = """
import dataclasses, sys
from van_classification_tensorflow.weights import catalogue as weights
record = weights.CATALOGUE["van_b0.in1k"]
source = dataclasses.replace(record.sources[0], sha256=sys.argv[1])
weights.CATALOGUE = {record.name: dataclasses.replace(record, sources=(source,))}
from van_classification_tensorflow.cli import main
main(["predict", *sys.argv[2:]])
"""
KERAS = """
import sys
from van_classification_tensorflow import Classifier
print(Classifier(sys.argv[1], engine="keras")(sys.argv[2])[0])
"""
PEER = """
import sys
from transformers import pipeline
print(pipeline("image-classification", model=sys.argv[1], device="cpu")(sys.argv[2])[0])
"""
PROCESSOR = {
    "image_processor_type": "ConvNextImageProcessor",
    "size": {"shortest_edge": 224},
    "crop_pct": 0.9,
    "resample": 3,
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}


def launch(command: list[str], **environment: str) -> tuple[float, int]:
    """(seconds, peak memory in bytes) of a command that must succeed."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        cwd=HERE.parent,
    )
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{command[0]} failed:\n{error.decode()}")
    return seconds, usage.ru_maxrss * 1024


def write_weights(model: str, path: Path, peer: Path) -> None:
    """Writes the seeded weights as they are published, and a folder of transformers with them."""
    from weights import seeded

    from van_classification_tensorflow.export.convert import convert
    from van_classification_tensorflow.spec.architecture import Architecture
    from van_classification_tensorflow.spec.config import CONFIGURATIONS
    from van_classification_tensorflow.weights.formats.torch import write_torch
    from van_classification_tensorflow.weights.namings import spell

    config = CONFIGURATIONS[model]
    sizes = Architecture(config.embed_dims, config.hidden_dims, config.depths, 3, 1000)
    tensors = {n: seeded(n, s.shape) for n, s in sizes.tensors().items()}
    write_torch(path, spell(tensors, "mmpretrain"))
    convert(path, peer, naming="huggingface")
    (peer / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))


def prepare(folder: Path) -> str:
    """Writes the weights for both and the picture; returns the SHA-256 of ours."""
    import numpy as np
    from PIL import Image

    from van_classification_tensorflow.weights.catalogue import CATALOGUE

    record = CATALOGUE["van_b0.in1k"]
    path = folder / "cache" / record.name / record.sources[0].file
    path.parent.mkdir(parents=True)
    write_weights("van_b0", path, folder / "peer")
    # Smooth noise, as large as a usual picture of ImageNet.
    rough = np.random.default_rng(0).integers(0, 256, (25, 33, 3), dtype=np.uint8)
    Image.fromarray(rough).resize((500, 375), Image.Resampling.BICUBIC).save(folder / "one.jpg")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--python-peers", default=sys.executable)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digest = prepare(folder)
        picture = str(folder / "one.jpg")
        (cached,) = (folder / "cache").rglob("*.pth")
        commands = {
            "van predict": [sys.executable, "-c", OURS, digest, picture],
            "Keras on TensorFlow": [sys.executable, "-c", KERAS, str(cached), picture],
            "transformers": [options.python_peers, "-c", PEER, str(folder / "peer"), picture],
        }
        launches: dict[str, list[tuple[float, int]]] = {key: [] for key in commands}
        for _ in range(options.rounds):
            for key, command in commands.items():
                launches[key].append(launch(command, VAN_CACHE=str(folder / "cache")))
        peer = min(s for s, _ in launches["transformers"])
        peer_memory = max(m for _, m in launches["transformers"])
        print(
            f"One picture, VAN-B0, best of {options.rounds} launches\n\n"
            "| | s | over transformers | peak memory, MB | over transformers |\n"
            "|---|---:|---:|---:|---:|"
        )
        for key, found in launches.items():
            seconds, memory = min(s for s, _ in found), max(m for _, m in found)
            print(
                f"| {key} | {seconds:.2f} | {seconds / peer:.2f} | {memory / 1e6:.0f} | "
                f"{memory / peer_memory:.2f} |"
            )
        per_picture(folder)


def per_picture(folder: Path) -> None:
    """NumPy's seconds for 10^9 multiply-accumulates."""
    import numpy as np

    from van_classification_tensorflow.engines.numpy_forward import forward
    from van_classification_tensorflow.weights.checkpoint import read_weights

    (cached,) = (folder / "cache").rglob("*.pth")
    weights = read_weights(cached)
    x = np.zeros((1, 224, 224, 3), np.float32)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        forward(weights.tensors, weights.architecture, x)
        times.append(time.perf_counter() - start)
    gmacs = weights.architecture.macs(224, 224) / 1e9
    median = sorted(times)[len(times) // 2]
    print(f"\nNumPy: {median:.3f} s a picture, {median / gmacs:.3f} s for 10^9 MACs")


if __name__ == "__main__":
    main()
