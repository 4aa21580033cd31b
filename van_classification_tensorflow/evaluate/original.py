"""The same checkpoint by the authors' code as transformers has it, on the very same batches.

Needs the extra `original`; it is imported only when something is compared.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..export.convert import convert
from ..weights.catalogue import CATALOGUE
from ..weights.hub import local
from ..weights.pretrained import local_file

_ACCURACIES = ("Top-1\noriginal", "Top-1\nported", "Top-5\noriginal", "Top-5\nported")
TOLERANCE = 1e-4
"""Largest allowed absolute difference of a logit, in float32."""


@dataclass(frozen=True)
class Comparison:
    """One checkpoint, original and ported, on the same arrays; accuracies in [0, 1].

    Args:
        configuration: Name of the weights.
        resolution: Side of the model's input in pixels.
        top1_original: Of transformers' VanForImageClassification.
        top1_ported: Of this package.
        top5_original: As above, top-5.
        top5_ported: As above, top-5.
        parameters: Trainable ones.
        largest_logit_difference: Largest absolute difference of any logit of any picture.
        pictures: How many were compared.
    """

    configuration: str
    resolution: int
    top1_original: float
    top1_ported: float
    top5_original: float
    top5_ported: float
    parameters: int
    largest_logit_difference: float
    pictures: int

    @property
    def metrics_difference(self) -> float:
        """Larger of the absolute differences of top-1 and top-5."""
        return max(
            abs(self.top1_original - self.top1_ported), abs(self.top5_original - self.top5_ported)
        )

    @property
    def agrees(self) -> bool:
        """The metrics are the same and no logit differs by more than `TOLERANCE`."""
        # Not `difference > TOLERANCE`, which is false for a difference that is not a number.
        return self.metrics_difference == 0 and self.largest_logit_difference <= TOLERANCE

    def report(self, console: Console) -> None:
        """Prints the results table, the differences and whether they are allowed."""
        table = Table(title="Original against ported, the same batches")
        table.add_column("Configuration", overflow="fold")
        for column in ("Reso-\nlution", *_ACCURACIES, "#Params"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_row(
            Text(self.configuration),
            str(self.resolution),
            f"{self.top1_original:.3%}",
            f"{self.top1_ported:.3%}",
            f"{self.top5_original:.3%}",
            f"{self.top5_ported:.3%}",
            f"{self.parameters:,}",
        )
        console.print(table)
        verdict = "They agree." if self.agrees else "[red]They do not agree.[/red]"
        console.print(
            f"Difference of the metrics: {self.metrics_difference:.3g} (allowed: 0). Largest "
            f"|difference| of a logit: {self.largest_logit_difference:.1e} "
            f"(allowed: {TOLERANCE:.0e}), over {self.pictures:,} pictures. {verdict}",
            highlight=False,
        )


def require_original() -> Any:
    """VanForImageClassification, or the install hint, before any long work."""
    try:
        import torch  # noqa: F401 - without it transformers gives a class that only fails later
        from transformers import VanForImageClassification
    except ImportError as error:
        raise ModuleNotFoundError(
            "The comparison needs torch and a transformers that has VAN (4.57, not 5): "
            f"pip install 'van-classification-tensorflow[original]' ({error})"
        ) from error
    return VanForImageClassification


class Original:
    """transformers' model with the same weights, given the inputs that `Classifier` makes.

    Attributes:
        logits: (classes,) of the pictures given and not yet taken, in their order.
        seconds: How long it has taken.

    Args:
        weights: As in `Classifier`, but no exported file.
        name: Of the `Classifier` of the same weights.

    Raises:
        ModuleNotFoundError: torch or transformers is missing, or transformers has no VAN.
    """

    def __init__(self, weights: str | os.PathLike, name: str):
        kind = require_original()
        record = CATALOGUE.get(name)
        self._model = load_original(kind, local(weights) if record is None else local_file(record))
        self.logits: deque[np.ndarray] = deque()
        self.seconds = 0.0

    def see(self, inputs: np.ndarray, pictures: int) -> None:
        """Computes the logits of (N, H, W, C) inputs, the views of each picture in turn."""
        import torch

        started = time.perf_counter()
        # (N, H, W, C) -> (N, C, H, W), a copy: neither model can change the other's input.
        images = torch.from_numpy(inputs.transpose(0, 3, 1, 2).copy())
        with torch.inference_mode():
            logits = self._model(images).logits.numpy()
        self.logits.extend(logits.reshape(pictures, -1, logits.shape[-1]).mean(axis=1))
        self.seconds += time.perf_counter() - started


def load_original(kind: Any, weights: str | os.PathLike) -> Any:
    """The weights, written for transformers and read by it; float32 on the CPU."""
    with tempfile.TemporaryDirectory(prefix="van-original-") as work:
        folder = Path(work) / "original"
        convert(weights, folder, naming="huggingface")
        model, report = kind.from_pretrained(folder, output_loading_info=True)
    wrong = {key: report[key] for key in report if report[key]}
    if wrong:
        raise ValueError(f"transformers did not take the weights as they are: {wrong}")
    return model.float().eval()


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """No TF32 on GPUs meanwhile: it has 10 bits for the fraction, float32 has 23."""
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        config = tf.config.experimental
        before = config.tensor_float_32_execution_enabled()
        config.enable_tensor_float_32_execution(False)
        try:
            yield
        finally:
            config.enable_tensor_float_32_execution(before)
    elif backend == "torch":
        import torch

        flags = torch.backends.cudnn, torch.backends.cuda.matmul
        before = [flag.allow_tf32 for flag in flags]
        for flag in flags:
            flag.allow_tf32 = False
        try:
            yield
        finally:
            for flag, value in zip(flags, before, strict=True):
                flag.allow_tf32 = value
    else:
        import jax

        with jax.default_matmul_precision("highest"):
            yield
