"""How far training on a cluster is, told to the command that started it."""

from __future__ import annotations

import time
from typing import Any

import keras


class Figures(keras.callbacks.Callback):
    """Tells step and loss of the first worker, a few times a second at most.

    Args:
        news: Handle of a `cluster.news.News`.
        seconds: Between two.
        epochs: Of the whole run, of which `fit` may be told a part.
    """

    def __init__(self, news: Any, seconds: float, epochs: int):
        super().__init__()
        self._epochs = epochs
        self.news, self.seconds, self._told = news, seconds, 0.0
        self._epoch = self._before = self._batches = 0

    def on_epoch_begin(self, epoch, logs=None):
        # `fit` may be called for the rest of an epoch: the optimizer has counted all of it.
        self._epoch, self._before = epoch, int(self.model.optimizer.iterations.numpy())
        self._batches = (self._before + self.params["steps"]) // (epoch + 1)

    def on_train_batch_end(self, batch, logs=None):
        now = time.perf_counter()
        if now - self._told >= self.seconds:
            self._told = now
            self.news.tell.remote(
                "figures",
                {
                    "epoch": self._epoch + 1,
                    "epochs": self._epochs,
                    "done": self._before + batch + 1,
                    "total": self._epochs * self._batches,
                    "loss": float((logs or {}).get("loss", 0)),
                },
            )
