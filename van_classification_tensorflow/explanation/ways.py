"""Which maps `van explain` was asked for, and what computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..inference.classifier import Classifier
from ..spec.architecture import Architecture
from ..spec.labels import index_of
from ..support.text import printable
from .kinds import GATE, METHODS, PIXELS
from .last_stage import LAST_STAGE_METHODS, LastStage
from .methods import OWN_CLASS, Explained
from .request import ExplainRequest, best_of

if TYPE_CHECKING:
    from .explain import Explainer


@dataclass(frozen=True)
class Way:
    """One method.

    Args:
        method: Its name.
        explain: Prepared pictures, and the class of each or None -> a result for each layer.
    """

    method: str
    explain: Callable[[np.ndarray, np.ndarray | None], list[Explained]]


def ways_of(request: ExplainRequest, classifier: Classifier) -> tuple[list[Way], str]:
    """The methods that are asked for, and what computes them, in words.

    Raises:
        ValueError: A layer is not one of the model's, or not for the method.
    """
    methods = list(dict.fromkeys(request.methods))
    weights = classifier.opened_weights
    assert weights is not None  # noqa: S101 - the request refuses what has none
    layers = _layers(request, methods, weights.architecture)
    if layers is None and set(methods) <= set(LAST_STAGE_METHODS):
        last = LastStage(classifier)
        ways = [Way(one, partial(_by_last_stage, last, one)) for one in methods]
        return ways, "ONNX Runtime, the gradient in NumPy"
    import keras

    from .explain import Explainer

    explainer = Explainer.of(classifier.model)
    ways = [Way(one, partial(_by_keras, explainer, request, one, layers)) for one in methods]
    return ways, f"Keras {keras.version()} on {keras.backend.backend()}"


def _layers(
    request: ExplainRequest, methods: Sequence[str], sizes: Architecture
) -> list[str] | None:
    """The layers by name; None where each method has its default."""
    if request.layers is None:
        return None
    stages = list(enumerate(sizes.depths, 1))
    blocks = [f"block{i}_{j}" for i, depth in stages for j in range(depth)]
    others = [f"{name}{i}" for name in ("patch_embed", "norm") for i, _ in stages]
    found = [one for word in request.layers for one in (blocks if word == "all" else [word])]
    gates = [one for one in methods if METHODS[one].at == GATE]
    for one in found:
        if one not in (blocks if gates else [*blocks, *others]):
            what = "a block" if gates else "a block, a norm or a patch embedding"
            raise ValueError(
                f"`layers` must be all, or each {what} of the model, such as {blocks[0]} or "
                f"{blocks[-1]}{f', for {gates[0]}' if gates else ''}. Received: {printable(one)}"
            )
    return list(dict.fromkeys(found))


def _by_last_stage(
    last: LastStage, method: str, images: np.ndarray, classes: np.ndarray | None
) -> list[Explained]:
    return [last(images, classes, method)]


def _by_keras(
    explainer: Explainer,
    request: ExplainRequest,
    method: str,
    layers: Sequence[str] | None,
    images: np.ndarray,
    classes: np.ndarray | None,
) -> list[Explained]:
    if layers is None or METHODS[method].at == PIXELS:
        options = {name: getattr(request, name) for name in ("steps", "samples", "noise", "seed")}
        return [explainer(images, classes, method, batch_size=request.batch_size, **options)]
    wanted = np.full(len(images), OWN_CLASS) if classes is None else classes
    return explainer.at_each(images, wanted, method, layers, request.batch_size)


class Classes:
    """The classes to explain of a picture.

    Args:
        words: As `ExplainRequest.classes`.
        classifier: Whose classes they are.

    Raises:
        ValueError: A word is no class.
    """

    def __init__(self, words: Sequence[str], classifier: Classifier):
        self._classifier, count = classifier, len(classifier.classes)
        self._asked: list[range | int] = []  # ranks, or a class
        for word in words:
            best = best_of(word)
            found = range(min(best, count)) if best is not None else None
            self._asked.append(
                index_of(word, classifier.classes, "classes") if found is None else found
            )

    def of(self, logits: np.ndarray) -> list[int]:
        """Of a picture with these logits, each once, in the order they were asked for."""
        count = len(self._classifier.classes)
        ranked = [one.index for one in self._classifier.ranked(logits, count)]
        found: list[int] = []
        for asked in self._asked:
            found += [asked] if isinstance(asked, int) else [ranked[i] for i in asked]
        return list(dict.fromkeys(found))


def maps_of(
    images: np.ndarray, ways: Sequence[Way], classes: Classes
) -> tuple[np.ndarray, list[list[Explained]]]:
    """Everything that is asked for of a batch.

    Args:
        images: (N, H, W, C), prepared.
        ways: The methods.
        classes: What to explain.

    Returns:
        Logits (N, K); and for each picture its maps, as `Explained` of one picture: of each
        method, at each layer, of each class.
    """
    first = ways[0].explain(images, None)
    logits = first[0].logits
    chosen = [classes.of(one) for one in logits]
    found: list[list[Explained]] = [[] for _ in images]
    for way in ways:
        known = first if way is ways[0] else None
        rounds = max(map(len, chosen)) if METHODS[way.method].by_class else 1
        by_rank: list[tuple[list[int], list[Explained]]] = []
        for n in range(rounds):
            rows = [i for i, one in enumerate(chosen) if n < len(one)]
            wanted = np.array([chosen[i][n] for i in rows])
            if not METHODS[way.method].by_class:
                every = known or way.explain(images, None)
            elif known is not None and np.array_equal(known[0].class_index, wanted):
                every = known
            else:
                every = way.explain(images[rows], wanted)
            by_rank.append((rows, every))
        for layer in range(len(by_rank[0][1])):
            for rows, every in by_rank:
                for place, row in enumerate(rows):
                    found[row].append(_one_of(every[layer], place))
    return logits, found


def _one_of(found: Explained, i: int) -> Explained:
    one = slice(i, i + 1)
    return replace(
        found,
        maps=found.maps[one],
        raw=None if found.raw is None else found.raw[one],
        logits=found.logits[one],
        class_index=found.class_index[one],
    )
