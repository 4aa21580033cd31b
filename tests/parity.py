"""How far the family is from the authors' PyTorch code, measured; prints the table.

    python tests/parity.py                  # van_b0 ... van_b6
    python tests/parity.py van_b0 van_b1

`tests/golden` holds what the authors' code computes with the seeded weights and images below.
"""

from __future__ import annotations

import sys
import time
import zlib
from pathlib import Path

import keras
import numpy as np

from van_classification_tensorflow import VAN, load_checkpoint
from van_classification_tensorflow.model.load import to_official
from van_classification_tensorflow.spec.config import CONFIGURATIONS

GOLDEN = Path(__file__).parent / "golden"
INPUTS = {"a": (2, 224, 224, 3), "b": (1, 160, 225, 3)}
# Largest allowed absolute difference, in float32, of logits, features and stage statistics.
TOLERANCE = {name: 3e-4 if name == "van_b6" else 1e-4 for name in CONFIGURATIONS}
MICRO = {
    "embed_dims": [8, 16, 24, 32],
    "mlp_ratios": [4, 4, 2, 2],
    "depths": [1, 1, 2, 1],
    "num_classes": 10,
}
# Where the depth proves nothing: most of what such a test costs is building and tracing blocks.
SMALL = {"embed_dims": [8, 16], "mlp_ratios": [4, 2], "depths": [1, 1], "num_classes": 10}


def seeded_tensor(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """The value of one official tensor: weights that matter, without a file."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) + seed))
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_var":
        array = rng.uniform(0.5, 1.5, shape)
    elif leaf == "running_mean":
        array = 0.1 * rng.standard_normal(shape)
    elif leaf.startswith("layer_scale_"):
        array = rng.uniform(0.01, 0.05, shape)
    elif leaf == "bias":
        array = 0.1 * rng.standard_normal(shape)
    elif len(shape) == 1:
        array = rng.uniform(0.5, 1.5, shape)
    else:
        array = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return array.astype(np.float32)


def load_seeded(model: keras.Model, seed: int = 0) -> keras.Model:
    """Fills `model` with the seeded weights of its own tensor names."""
    shapes = {name: array.shape for name, array in to_official(model).items()}
    return load_checkpoint(model, {n: seeded_tensor(n, s, seed) for n, s in shapes.items()})


def seeded_images(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.Generator(np.random.PCG64(seed))
    return rng.standard_normal(shape).astype(np.float32)


def computed(model: keras.Model, images: np.ndarray, traced: bool):
    """The outputs in NumPy: of a traced graph, as `predict` has it, or operation by operation.

    To trace the large ones for a second size takes longer than all else of their tests.
    """
    if traced:
        return model.predict_on_batch(images)
    return keras.tree.map_structure(keras.ops.convert_to_numpy, model(images))


def largest_differences(configuration: str) -> dict[str, float]:
    """Largest absolute difference of everything the golden file of `configuration` holds."""
    model = load_seeded(VAN(configuration, classifier_activation=None))
    inside = keras.Model(
        model.input,
        {
            "logits": model.output,
            "features": model.get_layer("pool").output,
            **{f"stage{i}": model.pyramid_outputs[f"P{i + 1}"] for i in (1, 2, 3, 4)},
        },
    )
    differences = dict.fromkeys(("logits", "features", "stage1", "stage2", "stage3", "stage4"), 0.0)
    compared = set()
    with np.load(GOLDEN / f"{configuration}.npz") as golden:
        for key, shape in INPUTS.items():
            outputs = computed(inside, seeded_images(7, shape), traced=key == "a")
            ours = {"logits": outputs["logits"], "features": outputs["features"]}
            for i in (1, 2, 3, 4):
                stage = outputs[f"stage{i}"]
                ours[f"stage{i}_mean"] = stage.mean(axis=(1, 2), dtype=np.float64)
                ours[f"stage{i}_std"] = stage.std(axis=(1, 2), dtype=np.float64)
                ours[f"stage{i}_corner"] = stage[:, -1, -1]
            for name, value in ours.items():
                expected = golden[f"{key}_{name}"]
                assert value.shape == expected.shape, (name, value.shape, expected.shape)
                compared.add(f"{key}_{name}")
                part = name.split("_")[0]
                differences[part] = max(differences[part], float(np.abs(value - expected).max()))
        # Nothing in the file may go uncompared but the images themselves.
        assert compared == {k for k in golden.files if not k.endswith(("input", "_x"))}
    return differences


def main(configurations: list[str]) -> int:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Largest |difference| from the authors' code ({keras.backend.backend()})")
    parts = ("logits", "features", "stage1", "stage2", "stage3", "stage4")
    for column in ("", *parts, "allowed", "s"):
        table.add_column(column, justify="right")
    worst = True
    for name in configurations or CONFIGURATIONS:
        started = time.perf_counter()
        differences = largest_differences(name)
        keras.utils.clear_session()
        worst &= max(differences.values()) <= TOLERANCE[name]
        cells = [f"{differences[part]:.1e}" for part in parts]
        seconds = time.perf_counter() - started
        table.add_row(name, *cells, f"{TOLERANCE[name]:.0e}", f"{seconds:.0f}")
    Console(width=110).print(table)
    return 0 if worst else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
