"""Convolutions in the form that XLA makes fast loops of on CPUs.

For JAX, and for inference on TensorFlow with `jit_compile=True`. XLA has no kernel of its own for a
depthwise convolution on CPUs, and takes 10 to 80 times as long for one, longest for its gradients,
as for the same sum written tap by tap: each tap is a multiply-add over a shifted view of the padded
input, and all of them become one loop over the channels (benchmarks/LOG.md, "Keras itself").
Without XLA each would be a pass over memory.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import keras
from keras import ops

if keras.backend.backend() == "jax":
    import jax
else:
    jax = None


def _compiled(function: Callable) -> Callable:
    """Outside of what JAX compiles anyway, each tap would be compiled by itself."""
    return function if jax is None else jax.jit(function, static_argnums=2)


# Images whose products are added up in one loop before their positions are.
_GROUP = 8
# Numbers of a tile that goes through all taps of a kernel before the next one does: with more, each
# tap fetches both tensors from memory again.
_TILE = 2**20
# Of a sum over all positions: so many terms for each number of the first of its two steps.
_STEPS = 16
# Numbers of a tile whose products are written as they are, and summed in one go.
_FEW = 2**18
# Numbers of one intermediate result: two of them at a time stay below 32 MB.
_PART = 7 * 2**19


@_compiled
def depthwise(x, kernel, dilation: int):
    """Stride-1 depthwise convolution, zero-padded to keep H x W.

    Its gradients, of any order, are those of reverse mode: on a CPU `jax.jvp` refuses it.

    Args:
        x: (B, H, W, C), all sizes known.
        kernel: (kh, kw, C, 1), odd sides.
        dilation: Distance between its taps.

    Returns:
        (B, H, W, C), of the dtype of `x`; half precision is added up in float32.
    """
    if jax is None or not runs_on("cpu"):
        return _sum(x, kernel, dilation)  # other compilers have the gradient as good from this
    return _sum_for_training(x, kernel, dilation)


def _sum(x, kernel, dilation: int):
    """The convolution, tap by tap."""
    height, width = x.shape[1:3]
    taps = ops.cast(kernel[..., 0], _accumulated(x))  # (kh, kw, C)
    padded = ops.cast(_padded(x, kernel.shape, dilation), taps.dtype)
    total = None
    for i, j in _taps(kernel.shape):
        top, left = i * dilation, j * dilation
        product = padded[:, top : top + height, left : left + width] * taps[i, j]
        total = product if total is None else total + product
    return fence(ops.cast(total, x.dtype))


def _kernel_gradient(x, upstream, shape, dilation: int):
    """Gradient by the kernel: (kh, kw, C, 1), the products of both summed over all positions.

    In a loop over the rows of the kernel, for one tile of both tensors after the other. The loop is
    also what makes the compiler compute both before, once, not again for each tap.
    """
    count, height, width, channels = upstream.shape
    images = max(n for n in range(1, min(_GROUP, count) + 1) if count % n == 0)
    most = max(_TILE // (images * width * channels), 1)
    rows = max(n for n in range(1, min(most, height) + 1) if height % n == 0)
    tiles, blocks = (count // images) * (height // rows), height // rows
    dtype = _accumulated(x)
    padded, upstream = ops.cast(_padded(x, shape, dilation), dtype), ops.cast(upstream, dtype)

    few = images * rows * width * channels <= _FEW

    def row_of_taps(_, step):
        tile, i = step // shape[0], step % shape[0]
        image, top = tile // blocks * images, tile % blocks * rows
        ours = ops.slice(upstream, (image, top, 0, 0), (images, rows, width, channels))
        start = (image, top + i * dilation, 0, 0)
        seen = ops.slice(padded, start, (images, rows, padded.shape[2], channels))
        sums = []
        for left in range(0, shape[1] * dilation, dilation):
            shifted = seen[:, :, left : left + width]
            if few:
                sums.append(ops.sum(fence(shifted * ours), (0, 1, 2)))
                continue
            # Images first: so many terms for each number that is written.
            products = shifted[0] * ours[0]
            for k in range(1, images):
                products = products + shifted[k] * ours[k]
            sums.append(ops.sum(fence(products), (0, 1)))
        return _, ops.stack(sums)

    _, sums = ops.scan(row_of_taps, 0, ops.arange(tiles * shape[0], dtype="int32"))
    return ops.reshape(ops.sum(ops.reshape(sums, (tiles, *shape[:3])), 0), shape)


def _accumulated(x) -> str:
    return keras.backend.result_type(x.dtype, "float32")


def _padded(x, shape, dilation: int):
    down, across = (side // 2 * dilation for side in shape[:2])
    return ops.pad(x, ((0, 0), (down, down), (across, across), (0, 0)))


def _taps(shape) -> Iterator[tuple[int, int]]:
    return ((i, j) for i in range(shape[0]) for j in range(shape[1]))


if jax is not None:

    @jax.custom_jvp
    def fence(x):
        """`x`, where JAX's compiler ends what it fuses.

        Its newest fusions on CPUs (YNNPACK's) grow backwards from a sum over one axis through
        whatever they support, and write each shifted view of a depthwise convolution to memory on
        the way: seven times the memory for twice the time. A clamp is not supported.
        """
        infinity = jax.numpy.array(math.inf, x.dtype)
        return jax.lax.clamp(-infinity, x, infinity)

    @fence.defjvp
    def _fence_jvp(primals, tangents):
        return fence(*primals), tangents[0]

    def _written(x):
        # Nothing is fused into a branch whose condition is known only when it runs; that no number
        # is above infinity is nothing that the compiler knows.
        beyond = x.ravel()[0] > math.inf
        return jax.lax.cond(beyond, jax.numpy.negative, lambda x: x, x)

    @jax.custom_vjp
    def written(x):
        """`x`, which is written to memory in training, and so is its gradient.

        JAX's compiler fuses sums of few terms into each of their users. Of a sum of sums, such as
        what goes through the blocks of a stage and what comes back through them, each user then
        adds up all terms again: a fifth of a training step.
        """
        return x

    written.defvjp(lambda x: (_written(x), None), lambda _, upstream: (_written(upstream),))

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
    def _sum_for_training(x, kernel, dilation: int):
        return _sum(x, kernel, dilation)

    def _sum_and_operands(x, kernel, dilation: int):
        return _written(_sum(x, kernel, dilation)), (x, kernel)

    def _sum_gradients(dilation: int, operands, upstream):
        x, kernel = operands
        by_kernel = _kernel_gradient(x, upstream, kernel.shape, dilation)
        turned = ops.flip(kernel, (0, 1))
        by_x = _written(_sum(upstream, turned, dilation))
        return by_x, ops.cast(by_kernel, kernel.dtype)

    _sum_for_training.defvjp(_sum_and_operands, _sum_gradients)

    @jax.custom_vjp
    def _add_to_channels(x, bias):
        return x + bias

    def _channel_sums(_, upstream):
        channels = upstream.shape[-1]
        steps = math.gcd(math.prod(upstream.shape[:-1]), _STEPS)
        flat = ops.reshape(ops.cast(upstream, _accumulated(upstream)), (steps, -1, channels))
        sums = ops.sum(fence(ops.sum(flat, 0)), 0)
        return upstream, ops.cast(sums, upstream.dtype)

    _add_to_channels.defvjp(lambda x, bias: (x + bias, None), _channel_sums)

else:

    def fence(x):
        """`x`; see JAX's."""
        return x

    written = fence


def add_bias(x, bias):
    """`x` (..., C) + `bias` (C,), whose gradient is summed in two steps.

    JAX's compiler does it in one, of which most is waiting for memory.
    """
    bias = ops.convert_to_tensor(bias)
    if jax is None or x.dtype != bias.dtype or not (runs_on("cpu") and is_known(x)):
        return ops.add(x, bias)
    return _add_to_channels(x, bias)


_inference_by_xla: ContextVar[bool] = ContextVar("inference by XLA", default=False)


@contextmanager
def inference_by_xla(is_so: bool | None) -> Iterator[None]:
    """Inside, the layers of a model are traced for XLA on TensorFlow, and for inference alone.

    Args:
        is_so: Whether they are; nothing changes elsewhere, nor where there is a GPU.
    """
    if is_so and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        is_so = not tf.config.list_physical_devices("GPU")
    token = _inference_by_xla.set(bool(is_so))
    try:
        yield
    finally:
        _inference_by_xla.reset(token)


def runs_on(*platforms: str) -> bool:
    """Whether XLA compiles for one of these platforms, and for a single device.

    A batch that is spread over several devices would be fetched together by what takes a few of
    its images after the other.
    """
    if keras.backend.backend() == "tensorflow":
        return _inference_by_xla.get() and "cpu" in platforms
    if jax is None or jax.default_backend() not in platforms:
        return False
    return keras.distribution.distribution() is None


def is_known(x) -> bool:
    """Whether all sizes of `x` are numbers; in exports they may be names."""
    return all(isinstance(size, int) for size in x.shape)


def in_parts(function: Callable, x, numbers: int):
    """`function(x)`, of a few images after the other where their intermediate results are large.

    Memory of more than 32 MB is given back to the system after every run, and got anew page by
    page: a tenth of the time of 32 images.

    Args:
        function: (b, H, W, C) -> the same shape, each image for itself.
        x: (B, H, W, C), all sizes known.
        numbers: Of the largest intermediate result of one image.
    """
    count = x.shape[0]
    sizes = (n for n in range(count, 0, -1) if count % n == 0)
    size = next((n for n in sizes if n * numbers <= _PART), 1)
    if size == count:
        return function(x)
    parts = ops.reshape(x, (count // size, size, *x.shape[1:]))
    return ops.reshape(ops.map(function, parts), x.shape)


@_compiled
def strided(x, kernel, stride: int):
    """Convolution of few channels, without padding, as matrix products of whole blocks.

    With the stride x stride pixels of a position as its channels, an image has a kernel of
    ceil(k / stride) taps a side: VAN's first patch embedding is 4 matrix products with 48 channels
    instead of 49 taps with 3.

    Args:
        x: (B, H, W, C), all sizes known, at least k.
        kernel: (k, k, C, outputs).
        stride: Distance between positions.

    Returns:
        (B, (H - k) // stride + 1, (W - k) // stride + 1, outputs), of the dtype of `x`.
    """
    side, channels = kernel.shape[0], x.shape[-1]
    reach = -(-side // stride)
    height, width = ((size - side) // stride + 1 for size in x.shape[1:3])
    rows, columns = height + reach - 1, width + reach - 1
    missing = [max(n * stride - m, 0) for n, m in zip((rows, columns), x.shape[1:3], strict=True)]
    x = ops.pad(x, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))
    x = x[:, : rows * stride, : columns * stride]
    x = ops.reshape(x, (-1, rows, stride, columns, stride * channels))
    x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4)), (-1, rows, columns, stride**2 * channels))
    grown = reach * stride - side
    kernel = ops.pad(kernel, ((0, grown), (0, grown), (0, 0), (0, 0)))
    kernel = ops.reshape(kernel, (reach, stride, reach, stride * channels, -1))
    kernel = ops.transpose(kernel, (0, 2, 1, 3, 4))  # (reach, reach, stride, stride * C, outputs)
    kernel = ops.reshape(kernel, (reach, reach, stride**2 * channels, -1))
    total = None
    for i, j in _taps(kernel.shape):
        product = ops.matmul(x[:, i : i + height, j : j + width], kernel[i, j])
        total = product if total is None else total + product
    return total
