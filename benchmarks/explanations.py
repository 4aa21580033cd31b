"""Do the maps tell the truth, and what do they cost?

    python benchmarks/explanations.py              # minutes
    python benchmarks/explanations.py --pictures 40 --only truth sanity

1. truth: on the bundled digits model, pixels are taken away (deletion) or put into a blurred
   picture (insertion), 32 at a time, in the order of each method's map, of its inverse, and of
   chance: of single pixels, and of a map as coarse as the method's. The area under the class's
   probability should be small for deletion and large for insertion (Petsiuk et al., arXiv
   1806.07421).
2. sanity: the weights are made random, from the head down to the first layer, and each map is
   compared with the one before (Spearman's rank correlation, mean over pictures): a map that does
   not change explains something else than the model (Adebayo et al., arXiv 1810.03292).
3. cost: 32 pictures of VAN-B0 at 224 x 224 through each method beside their forward pass, both by
   Keras, interleaved, medians.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

METHODS = {  # the layers that `explain` takes here; of Layer-CAM the first stage, which it is for
    "grad-cam": "block3_1",
    "grad-cam++": "block3_1",
    "hires-cam": "norm3",
    "layer-cam": "block1_0",
    "saliency": None,
    "smooth-grad": None,
    "integrated-gradients": None,
}
STEP = 32  # pixels
# Of maps of 2 x 2 positions nobody claims it.
CLAIMED = ("layer-cam", "saliency", "smooth-grad", "integrated-gradients")
UNLIKE = 0.9  # no map may be more like the one of the trained model when all weights are random


def digits_model():
    from van_classification_tensorflow import VAN
    from van_classification_tensorflow.datasets.digits import load_digits

    return VAN(pretrained="digits", classifier_activation=None), load_digits()[1][0]


def maps_of(model, images, method: str, classes):
    """(N, 32, 32), of the pictures' size."""
    from van_classification_tensorflow.explanation import methods
    from van_classification_tensorflow.explanation.explain import Explainer

    found = Explainer.of(model)(images, classes, method, METHODS[method], batch_size=len(images))
    # Saliency and SmoothGrad are magnitudes; all others are signed, and so are compared.
    return methods.enlarged(found.raw, images.shape[1:3])


def truth(pictures: int) -> list[dict]:
    """A row for each method: mean areas of its order, the inverse and chance."""
    import numpy as np

    from van_classification_tensorflow.explanation import methods
    from van_classification_tensorflow.explanation.faithfulness import (
        area,
        blurred,
        curve,
        order_of,
    )

    model, images = digits_model()
    images = images[:pictures].astype(np.float32)
    logits = model.predict_on_batch(images)
    classes = logits.argmax(axis=1)

    def areas(orders) -> tuple[float, float]:
        found = []
        for image, which, order in zip(images, classes, orders, strict=True):

            def score(x, which=which):
                z = model.predict_on_batch(x).astype(np.float64)
                e = np.exp(z - z.max(axis=1, keepdims=True))
                return (e / e.sum(axis=1, keepdims=True))[:, which]

            empty = np.full_like(image, -1)  # the paper of the digits
            found.append(
                (
                    area(curve(score, image, empty, order, STEP)),
                    area(curve(score, blurred(image), image, order, STEP)),
                )
            )
        deletion, insertion = np.mean(found, axis=0)
        return float(deletion), float(insertion)

    by_side: dict[int, tuple[float, float]] = {}

    def chance(side: int) -> tuple[float, float]:
        if side not in by_side:
            maps = np.random.default_rng(0).standard_normal((len(images), side, side))
            maps = methods.enlarged(maps.astype(np.float32), (32, 32))
            by_side[side] = areas([order_of(one) for one in maps])
        return by_side[side]

    rows = []
    for method, layer in METHODS.items():
        maps = maps_of(model, images, method, classes)
        side = 32 if layer is None else 32 >> (int(re.sub(r"\D+", "", layer)[0]) + 1)
        by_chance, by_pixels = chance(side), chance(32)
        orders = [order_of(one) for one in maps]
        own, inverse = areas(orders), areas([one[::-1] for one in orders])
        rows.append(
            {
                "method": method,
                "layer": METHODS[method] or "pixels",
                "deletion": own[0],
                "deletion_chance": by_chance[0],
                "deletion_pixels": by_pixels[0],
                "deletion_inverse": inverse[0],
                "insertion": own[1],
                "insertion_chance": by_chance[1],
                "insertion_pixels": by_pixels[1],
                "insertion_inverse": inverse[1],
            }
        )
    return rows


def ranks(values):
    """(N, positions) -> mean ranks, ties shared."""
    import numpy as np

    found = np.empty(values.shape)
    for row, out in zip(values, found, strict=True):
        _, place, count = np.unique(row, return_inverse=True, return_counts=True)
        last = np.cumsum(count)
        out[:] = (last - (count - 1) / 2)[place]
    return found


def spearman(one, other) -> float:
    """Mean over pictures of the rank correlation of (N, H, W)."""
    import numpy as np

    a, b = (ranks(x.reshape(len(x), -1)) for x in (one, other))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    size = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return float(np.mean((a * b).sum(axis=1) / np.maximum(size, 1e-12)))


def sanity(pictures: int) -> list[dict]:
    """A row for each method: the correlation with its own map, the more of the model is random."""
    import numpy as np

    from van_classification_tensorflow import VAN
    from van_classification_tensorflow.datasets.digits import MODEL

    model, images = digits_model()
    images = images[:pictures].astype(np.float32)
    classes = model.predict_on_batch(images).argmax(axis=1)
    before = {method: maps_of(model, images, method, classes) for method in METHODS}
    rows: dict[str, dict] = {
        method: {"method": method, "layer": METHODS[method] or "pixels"} for method in METHODS
    }
    import keras

    keras.utils.set_random_seed(0)
    fresh = VAN(**MODEL)
    groups = ("head", *(f"{part}{i}" for i in (4, 3, 2, 1) for part in ("norm", "block", "patch")))
    for group in groups:
        for layer, other in zip(model.layers, fresh.layers, strict=True):
            if layer.name.startswith(group):
                # With layer scales of 0.01, as it begins, a random block would hardly be felt.
                layer.set_weights(_random(layer.get_weights(), other.get_weights()))
        if group.startswith(("norm", "block")):
            continue
        for method, row in rows.items():
            after = maps_of(model, images, method, classes)
            row["head" if group == "head" else f"stage {group[-1]}"] = spearman(
                before[method], after
            )
    return list(rows.values())


def _random(trained, fresh):
    """Kernels as a new model has them; all that is a vector shuffled among its channels."""
    import numpy as np

    rng = np.random.default_rng(0)
    return [
        new if new.ndim > 1 and np.ptp(new) > 0 else rng.permutation(old)
        for old, new in zip(trained, fresh, strict=True)
    ]


def cost(rounds: int) -> list[dict]:
    """A row for each method: seconds beside the forward pass of the same pictures."""
    import numpy as np

    from van_classification_tensorflow import VAN, explain

    model = VAN("van_b0", classifier_activation=None)
    images = np.random.default_rng(0).standard_normal((32, 224, 224, 3)).astype(np.float32)
    cases = {
        "grad-cam": ("grad-cam", None),
        "hires-cam": ("hires-cam", None),
        "layer-cam at block1_2": ("layer-cam", "block1_2"),
        "eigen-cam": ("eigen-cam", None),
        "lka": ("lka", None),
        "saliency": ("saliency", None),
    }
    model.predict_on_batch(images)
    times: dict[str, list[float]] = {name: [] for name in ("forward", *cases)}
    for method, layer in cases.values():
        explain(model, images, method=method, layer=layer)
    for _ in range(rounds):
        for name, case in {"forward": None, **cases}.items():
            started = time.perf_counter()
            if case is None:
                model.predict_on_batch(images)
            else:
                explain(model, images, method=case[0], layer=case[1])
            times[name].append(time.perf_counter() - started)
    forward = statistics.median(times["forward"])
    return [
        {
            "method": name,
            "seconds": statistics.median(found),
            "ratio": statistics.median(found) / forward,
        }
        for name, found in times.items()
    ]


def show(title: str, rows: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for name in rows[0]:
        side = "left" if name in ("method", "layer") else "right"
        table.add_column(name.replace("_", " "), justify=side, no_wrap=name == "method")
    for row in rows:
        table.add_row(*(one if isinstance(one, str) else f"{one:.3f}" for one in row.values()))
    Console(width=160).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("truth", "sanity", "cost")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument(
        "--pictures", type=int, default=360, help="digits of the test set, at most 360"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    import keras

    found: dict = {
        "machine": platform.processor(),
        "keras": keras.version(),
        "backend": keras.backend.backend(),
    }
    wrong, failed = [], False
    if "truth" in options.only:
        found["truth"] = truth(options.pictures)
        show("Deletion (small is good) and insertion (large is good), digits", found["truth"])
        wrong += [
            row["method"]
            for row in found["truth"]
            if not row["deletion"] < min(row["deletion_chance"], row["deletion_inverse"])
            or not row["insertion"] > max(row["insertion_chance"], row["insertion_inverse"])
        ]
        print("not better than chance as coarse, and its inverse:", ", ".join(wrong) or "none")
        failed |= bool(set(wrong) & set(CLAIMED))
    if "sanity" in options.only:
        found["sanity"] = sanity(min(options.pictures, 100))
        failed |= any(row["stage 1"] > UNLIKE for row in found["sanity"])
        show(
            "Rank correlation with the trained model's map, random from the head down to ...",
            found["sanity"],
        )
    if "cost" in options.only:
        found["cost"] = cost(options.rounds)
        show("32 pictures of VAN-B0, 224 x 224", found["cost"])
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
