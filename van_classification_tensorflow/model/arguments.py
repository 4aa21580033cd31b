"""Checks of what a model is made of and of the images that it is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set

import keras

from ..spec.config import min_image_size
from ..spec.preprocessing import Preprocessing
from ..support.checks import at_least, is_number, is_whole


def preprocessing_of(preprocessing, in_chans: int) -> Preprocessing | None:
    """What a model's `preprocessing` is set to.

    Raises:
        ValueError: It is none, or makes other channels than the model takes.
    """
    preprocessing = Preprocessing.of(preprocessing)
    if preprocessing is not None and preprocessing.channels != in_chans:
        raise ValueError(
            f"`preprocessing` must make in_chans={in_chans} channels. "
            f"Received: {preprocessing.channels} channels"
        )
    return preprocessing


def check_images(shape, argument: str, in_chans: int, data_format: str, num_stages: int) -> None:
    """Raises `ValueError` for a wrong rank, wrong channels or too small images."""
    shape = tuple(shape)
    channels_first = data_format == "channels_first"
    order = "(batch, {})".format(
        "channels, height, width" if channels_first else "height, width, channels"
    )
    if len(shape) != 4:
        raise ValueError(
            f"`{argument}` must have shape {order} for data_format={data_format!r}. "
            f"Received shape: {shape}"
        )
    channels, size = (shape[1], shape[2:]) if channels_first else (shape[3], shape[1:3])
    if channels not in (None, in_chans):
        raise ValueError(
            f"`{argument}` must have in_chans={in_chans} channels, as {order} for "
            f"data_format={data_format!r}. Received shape: {shape}"
        )
    check_size(argument, size, num_stages, shape)


def check_image_shape(argument: str, received, channels_first: bool) -> tuple[int | None, ...]:
    """The shape of one image without the batch, or an error that names `argument`.

    Args:
        argument: What the caller calls it.
        received: (H, W, C) or (C, H, W); H and W both given, or both None.
        channels_first: Which of them.
    """
    shape = tuple(received) if isinstance(received, Sequence) else ()
    if len(shape) != 3 or not all(d is None or (is_whole(d) and int(d) > 0) for d in shape):
        order = "(C, H, W)" if channels_first else "(H, W, C)"
        raise ValueError(
            f"`{argument}` must be {order}, positive integers (H and W may be None). "
            f"Received: {argument}={received!r}"
        )
    if (shape[1] is None) != (shape[2 if channels_first else 0] is None):
        raise ValueError(
            f"`{argument}` must give both H and W, or None for both. "
            f"Received: {argument}={received!r}"
        )
    if shape[0 if channels_first else 2] is None:
        raise ValueError(f"`{argument}` must name the number of channels. Received: {received!r}")
    return tuple(None if side is None else int(side) for side in shape)


def check_input_shape(
    input_shape, fixed_to: tuple, in_chans: int, data_format: str, num_stages: int
) -> tuple:
    """The shape for `VAN.build`, or an error where the model does not take such images."""
    if not isinstance(input_shape, Sequence):
        raise ValueError(
            "`input_shape` must be a shape with four entries, such as (None, 224, 224, 3). "
            f"Received: {input_shape!r}"
        )
    shape = tuple(input_shape)
    check_images(shape, "input_shape", in_chans, data_format, num_stages)
    if any(fixed not in (None, size) for fixed, size in zip(fixed_to, shape, strict=True)):
        raise ValueError(
            "`input_shape` must be the size the model is fixed to by `img_resolution`, "
            f"{fixed_to}. Received: {shape}"
        )
    return shape


def check_remat(drop_rate: float) -> None:
    """Raises `ValueError` where blocks cannot be computed twice; see `VAN.remat`."""
    if drop_rate:
        raise ValueError(
            "`remat` must be False for a model with dropout, whose masks would be drawn anew in "
            f"the backward pass. Received: remat=True, drop_rate={drop_rate}"
        )
    backend = keras.backend.backend()
    if backend not in ("tensorflow", "jax", "torch"):
        raise ValueError(
            "`remat` must be False on a backend that does not train. "
            f"Received: remat=True, backend={backend!r}"
        )


def check_rate(argument: str, value) -> float:
    """`value` as a float in [0, 1), or an error that names `argument`."""
    if not is_number(value) or not 0 <= float(value) < 1:
        raise ValueError(f"`{argument}` must be a number in [0, 1). Received: {argument}={value!r}")
    return float(value)


def check_size(argument: str, size, num_stages: int, received) -> None:
    """Raises `ValueError` where a side is too small for the strides of the stages."""
    least = min_image_size(num_stages)
    if any(isinstance(side, int) and side < least for side in size):
        raise ValueError(
            f"`{argument}` is too small for the strides of {num_stages} stages: height and "
            f"width must be at least {least}. Received: {received}"
        )


def activation_function(classifier_activation, num_classes: int | None):
    """The activation; sigmoid instead of softmax for a single output, whose softmax is always 1."""
    try:
        found = keras.activations.get(classifier_activation)
        single = num_classes == 1 and found is keras.activations.softmax
        return keras.activations.sigmoid if single else found
    except (ValueError, TypeError) as error:
        raise ValueError(
            "`classifier_activation` must be None, a function, or the name of a Keras "
            f"activation such as 'softmax' or 'sigmoid'. Received: {classifier_activation!r}"
        ) from error


def plain_resolution(img_resolution) -> int | tuple[int, ...] | None:
    """`img_resolution` as None, an int or a tuple of ints, also from NumPy's numbers."""
    if img_resolution is None:
        return None
    try:
        if isinstance(img_resolution, (str, bytes, Mapping, Set)):
            raise TypeError
        if isinstance(img_resolution, Iterable):
            return tuple(at_least("img_resolution", side, 1) for side in img_resolution)
        return at_least("img_resolution", img_resolution, 1)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`img_resolution` must be None, a positive integer, or a pair (height, width). "
            f"Received: {img_resolution!r}"
        ) from error


def fixed_sides(img_resolution, num_stages: int) -> tuple[int | None, int | None]:
    """(height, width) that the input is fixed to; None: any."""
    if img_resolution is None:
        return None, None
    pair = img_resolution if isinstance(img_resolution, tuple) else (img_resolution,) * 2
    if len(pair) != 2:
        raise ValueError(
            "`img_resolution` must be None, a positive integer, or a pair (height, width). "
            f"Received: {img_resolution!r}"
        )
    check_size("img_resolution", pair, num_stages, img_resolution)
    return pair
