"""Class activation maps of one of the last stages, without a framework: for `van serve`.

ONNX Runtime computes the map of a stage, NumPy what comes after it and the gradient. Keras, which
has to start for it, gives the same (`explain`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..engines.graph_runner import GraphRunner
from ..engines.onnx_graph import onnx_model
from ..spec.architecture import Architecture
from ..spec.config import patches, stage_kernel_stride
from ..spec.scores import best
from ..support.checks import check_choice
from ..weights.fold import fold
from . import methods
from .kinds import METHODS
from .methods import OF_GRADIENTS, OWN_CLASS, Explained
from .numpy_tail import Tail

if TYPE_CHECKING:
    from ..inference.classifier import Classifier

LAST_STAGE_METHODS = (*OF_GRADIENTS, "eigen-cam")


class LastStage:
    """Explains pictures at the last stage that has more than one position.

    Args:
        classifier: Of weights, with a head.

    Attributes:
        stage: Which stage that is, from 1.

    Raises:
        ValueError: It is an exported file or a model in memory, or it has no head.
    """

    def __init__(self, classifier: Classifier):
        opened = classifier.opened_weights
        if opened is None:
            raise ValueError(
                f"{classifier.name} cannot be explained, as its weights cannot be looked at: give "
                "the weight file itself"
            )
        sizes = opened.architecture
        if sizes.num_classes is None:
            raise ValueError(f"{classifier.name} has no head whose score could be explained")
        self.stage = _last_stage(sizes, classifier.preprocessing.input_size)
        self.sizes, self._tail = sizes, Tail(opened.tensors, sizes, self.stage)
        graph = partial(_graph, opened.tensors, sizes, self.stage)  # which does not hold `self`
        self._runner = GraphRunner(graph, "onnxruntime")

    def layer(self, method: str) -> str:
        """Where a method looks: the last block of the stage, or its norm."""
        if METHODS[method].normed:
            return f"norm{self.stage}"
        return f"block{self.stage}_{self.sizes.depths[self.stage - 1] - 1}"

    def __call__(
        self,
        images: np.ndarray,
        class_index: int | Sequence[int] | np.ndarray | None = None,
        method: str = "grad-cam",
    ) -> Explained:
        """As `explain`.

        Args:
            images: (N, H, W, C), float32, prepared.
            class_index: Of all, or of each; None: the class it is taken for.
            method: One of `LAST_STAGE_METHODS`.

        Raises:
            ValueError: An argument is not allowed.
        """
        check_choice("method", method, LAST_STAGE_METHODS)
        wanted = methods.check_classes(class_index, len(images), self.sizes.num_classes or 0)
        (found,) = self._runner(images)
        activation = np.moveaxis(found, 1, 3)
        normed, back_norm = self._tail.norm(activation)
        logits, back = self._tail.after_norm(normed)
        methods.check_finite(logits)
        chosen = np.where(wanted == OWN_CLASS, best(logits, are_probabilities=False), wanted)
        at_norm = METHODS[method].normed
        if method == "eigen-cam":
            raw = methods.eigen_cam(activation)
        else:
            gradient = back(_one_hot(chosen, logits.shape[1]))
            looked_at = normed if at_norm else activation
            raw = methods.of_gradients(
                method, looked_at, gradient if at_norm else back_norm(gradient)
            )
        return Explained(methods.to_unit(raw), raw, logits, chosen, self.layer(method), method)


def _graph(
    tensors: Mapping[str, np.ndarray], sizes: Architecture, stage: int, shape: tuple[int, ...]
) -> bytes:
    """The network up to the last block of a stage, for pictures of that shape."""
    model = onnx_model(fold(tensors), sizes, image_size=(shape[0], shape[1]), up_to=stage)
    return model.SerializeToString()


def _one_hot(classes: np.ndarray, outputs: int) -> np.ndarray:
    """(N, K), what is differentiated; of one output 1 or, for what it is not, -1."""
    if outputs == 1:
        return (2 * classes - 1).astype(np.float32)[:, None]
    return np.eye(outputs, dtype=np.float32)[classes]


def _last_stage(sizes: Architecture, side: int) -> int:
    """The last stage with more than one position; the last of all where there is none."""
    found = len(sizes.depths)
    for i in range(1, len(sizes.depths) + 1):
        side = patches(side, *stage_kernel_stride(i))
        if side > 1:
            found = i
    return found
