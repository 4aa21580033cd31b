"""The machine that trains: devices, and what decides whether a run can go on bit for bit."""

from __future__ import annotations

import os
import platform
from importlib import import_module
from typing import Any

import keras
import numpy as np

from .. import __version__
from .recipe import Recipe


def check_backend(recipe: Recipe) -> None:
    if keras.backend.backend() == "tensorflow":
        if keras.distribution.distribution() is not None:
            raise ValueError(
                "keras.distribution has no effect on the TensorFlow backend: this would train on "
                "one device. Take `devices` (tf.distribute), or KERAS_BACKEND=jax"
            )
    elif recipe.devices != 1:
        raise ValueError(
            "`devices` needs the TensorFlow backend (tf.distribute.MirroredStrategy). "
            f"Received: devices={recipe.devices} on {keras.backend.backend()}"
        )


def strategy_for(devices: int) -> Any:
    """The `tf.distribute` strategy for so many devices; None for one."""
    if devices == 1:
        return None
    import tensorflow as tf

    there = len(_gpus())
    if devices > there:
        raise ValueError(f"`devices` must be at most {there}, the GPUs here. Received: {devices}")
    wanted = devices or there
    if wanted < 2:
        return None
    return tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(wanted)])


def versions() -> dict[str, str]:
    """What must be the same wherever a model is trained by several workers."""
    there = environment(1)
    return {name: there[name] for name in there if name not in ("machine", "devices")}


def environment(replicas: int) -> dict[str, str]:
    """What decides whether a run can go on bit for bit."""
    import grain
    import PIL

    backend = keras.backend.backend()
    gpus = [] if backend != "tensorflow" else _gpus()
    return {
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {len(gpus)} GPUs",
        "devices": str(replicas),
        "backend": f"{backend} {import_module(backend).__version__}",
        "keras": keras.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "grain": getattr(grain, "__version__", ""),
        "van": __version__,
    }


def _gpus() -> list:
    import tensorflow as tf

    return tf.config.list_physical_devices("GPU")
