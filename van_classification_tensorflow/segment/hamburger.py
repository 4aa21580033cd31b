"""Hamburger (Geng et al., "Is Attention Better Than Matrix Decomposition?", arXiv 2109.04553).

Global context as a low-rank reconstruction of the maps: X (D x N, channels by positions) is
factorised into D (D x R, "bases") times C (R x N, "coef") with nothing negative in it, by
multiplicative updates (Lee and Seung's NMF), and D C takes the place of X.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from ..model.layers import register, replica_number, replicas
from ..support.checks import at_least
from .resize import ResizeLike

_EPSILON = 1e-6  # of the updates' denominators
TRAIN_STEPS, EVAL_STEPS = 6, 7


def seeded_bases(seed: int, count: int, channels: int, rank: int) -> np.ndarray:
    """Bases that are the same everywhere: (count, channels, rank), float32, columns of length 1."""
    drawn = np.random.Generator(np.random.PCG64(seed)).uniform(size=(count, channels, rank))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def nmf(x, bases, steps: int):
    """X as the product of two matrices without negative numbers (paper, Algorithm 1 and Table 2).

    Gradients go through all steps.

    Args:
        x: (G, N, D), nothing negative: G maps of N positions and D channels.
        bases: (G or 1, D, R), what the updates begin with.
        steps: Updates of both factors, at least 0.

    Returns:
        (G, N, D): the reconstruction.
    """

    def updated_coef(coef, bases):
        fit = ops.matmul(coef, ops.matmul(_transposed(bases), bases))
        return coef * (ops.matmul(x, bases) / (fit + _EPSILON))

    def updated_bases(coef, bases):
        transposed = _transposed(coef)
        fit = ops.matmul(bases, ops.matmul(transposed, coef))
        return bases * (ops.matmul(_transposed(x), coef) / (fit + _EPSILON))

    coef = ops.softmax(ops.matmul(x, bases), axis=-1)  # (G, N, R)
    for _ in range(steps):
        coef = updated_coef(coef, bases)
        bases = updated_bases(coef, bases)
    coef = updated_coef(coef, bases)
    return ops.matmul(coef, _transposed(bases))


def _transposed(matrices):
    return ops.transpose(matrices, (0, 2, 1))


@register
class NMF2D(layers.Layer):
    """The "ham" of the Hamburger: maps without negative numbers -> their low-rank reconstruction.

    (B, H, W, C) -> (B, H, W, C), computed in float32 at least. In training the bases are drawn
    anew at every call, for each image, as the authors' code does always; in inference they are
    those of `seed`, so that an image has one answer.

    Args:
        rank: Columns of the bases (MD_R of the authors' code).
        groups: Parts of the channels that are factorised on their own (MD_S).
        train_steps: Updates of both factors in training.
        eval_steps: The same in inference.
        seed: Of the bases in inference; None: drawn anew there as well.

    `bases`, not saved: arrays to take instead, (groups, C / groups, rank), or that many for each
    image, (B * groups, ...); for comparison with other code. To be set before the model is traced.
    """

    bases: np.ndarray | None = None

    def __init__(
        self,
        rank: int = 64,
        groups: int = 1,
        train_steps: int = TRAIN_STEPS,
        eval_steps: int = EVAL_STEPS,
        seed: int | None = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.rank = at_least("rank", rank, 1)
        self.groups = at_least("groups", groups, 1)
        self.train_steps = at_least("train_steps", train_steps, 0)
        self.eval_steps = at_least("eval_steps", eval_steps, 0)
        self.seed = None if seed is None else at_least("seed", seed, 0)
        self.seed_generator = keras.random.SeedGenerator()

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels % self.groups:
            raise ValueError(
                f"`groups` must divide the {channels} channels. Received: groups={self.groups}"
            )
        self.built = True

    def call(self, x, training=None):
        batch, height, width, _ = ops.shape(x)
        channels = x.shape[-1] // self.groups
        dtype = keras.backend.result_type(x.dtype, "float32")
        maps = ops.reshape(ops.cast(x, dtype), (batch, height * width, self.groups, channels))
        maps = ops.transpose(maps, (0, 2, 1, 3))  # (B, groups, N, D)
        maps = ops.reshape(maps, (batch * self.groups, height * width, channels))
        steps = self.train_steps if training else self.eval_steps
        made = nmf(maps, self._first_bases(batch, channels, dtype, training), steps)
        made = ops.reshape(made, (batch, self.groups, height * width, channels))
        made = ops.transpose(made, (0, 2, 1, 3))
        return ops.cast(ops.reshape(made, (batch, height, width, x.shape[-1])), x.dtype)

    def _first_bases(self, batch, channels: int, dtype, training):
        shape = (self.groups, channels, self.rank)
        if self.bases is not None:
            found = ops.convert_to_tensor(self.bases, dtype)
            each_image = found.shape[0] != self.groups
            return found if each_image else self._for_each(found, batch, shape)
        if training or self.seed is None:
            drawn = self._drawn(batch * self.groups, channels, dtype)
            return drawn / ops.sqrt(ops.sum(ops.square(drawn), axis=1, keepdims=True))
        fixed = ops.convert_to_tensor(seeded_bases(self.seed, *shape), dtype)
        return self._for_each(fixed, batch, shape)

    def _drawn(self, count, channels: int, dtype):
        """(count, channels, rank) in [0, 1). Under a `tf.distribute` strategy as `Dropout` draws:
        each replica for all, of which it takes its own.
        """
        others = replicas()
        shape = (count * others, channels, self.rank)
        drawn = keras.random.uniform(shape, dtype=dtype, seed=self.seed_generator)
        if others == 1:
            return drawn
        start = count * replica_number()
        return drawn[start : start + count]

    def _for_each(self, bases, batch, shape):
        """(groups, D, R) -> (B * groups, D, R), or as it is where one will do for all."""
        if self.groups == 1:
            return bases
        tiled = ops.broadcast_to(bases[None], (batch, *shape))
        return ops.reshape(tiled, (batch * self.groups, *shape[1:]))

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self) -> dict:
        names = ("rank", "groups", "train_steps", "eval_steps", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def light_ham(stages: Sequence, part: Any, **every: Any):
    """Light-Ham: a Hamburger on the last three stages at stride 8 (paper, Section 3.2).

    Args:
        stages: Maps of the four stages, strides 4 to 32, (B, H, W, C_i); the first is not used.
        part: Gives the layer of a name: those that `DecoderSizes.convolutions` lists, and "ham".
        every: Arguments of all layers without weights.

    Returns:
        (B, H / 8, W / 8, channels).
    """
    _, first, *rest = stages
    rest = [
        ResizeLike(name=f"ham_resize_{k}", **every)([maps, first])
        for k, maps in enumerate(rest, start=1)
    ]
    x = part("squeeze")(layers.Concatenate(name="ham_concat", **every)([first, *rest]))
    # The two breads around the ham, and a shortcut (paper, Equation 7).
    lower = layers.ReLU(name="ham_input", **every)(part("ham_in")(x))
    upper = part("ham_out")(part("ham")(lower))
    joined = layers.Add(name="ham_shortcut", **every)([x, upper])
    return part("align")(layers.ReLU(name="hamburger", **every)(joined))
