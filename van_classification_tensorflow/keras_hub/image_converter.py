"""`VANImageConverter`: pictures -> input of a VAN in KerasHub, with the pixels of Pillow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.src.utils.backend_utils import in_grain_data_pipeline
from keras_hub.layers import ImageConverter

from ..model.layers import foreign_tensorflow, register
from ..model.preprocessing_layer import normalised, preprocessed
from ..spec.preprocessing import Preprocessing
from ..support.checks import is_whole
from .backbone import VANBackbone

# Arguments of KerasHub's own converter that follow from those here, or have no meaning.
_OF_OTHERS = (
    "scale",
    "offset",
    "antialias",
    "bounding_box_format",
    "crop_to_aspect_ratio",
    "pad_to_aspect_ratio",
)


@register
class VANImageConverter(ImageConverter):
    """Resize, centre crop and normalisation, as the authors evaluated: `Preprocessing` in KerasHub.

    It takes pictures of any size, one (rank 3) or a batch (rank 4), arrays, tensors of any
    backend, lists of pictures of several sizes, and elements of `tf.data` and of Grain. Their
    values are 0 to 255, whole or rounded to it: Pillow's resize, which this is bit by bit,
    computes with 8 bits. (KerasHub's own converter resizes by `keras.layers.Resizing` and cuts the
    longer side first, which differs.)

    Args:
        image_size: Height and width of the crop in pixels, the same; None to leave the size as it
            is and only normalise, for segmentation and detection.
        crop_pct: The crop's share of the resized shorter side, above 0 and at most 1.
        interpolation: Pillow's filter: nearest, box, bilinear, hamming, bicubic or lanczos.
        mean: Taken from each channel after scaling to [0, 1]; 1 or 3 channels.
        std: What each channel is then divided by; as many as `mean`.
        resize: "shorter side" keeps the proportions; "both sides" makes the picture a square.
        crop_rounding: Where half a pixel is left over, the crop begins at the "nearest" whole
            one (half to even), or it is rounded "down".
        data_format: "channels_last" or "channels_first" of the pictures and of the result; None:
            `keras.config.image_data_format()`.
        kwargs: `name`, `dtype` (of the result), `trainable`.

    Raises:
        ValueError: A value is out of its range, or `mean` and `std` do not fit together; or
            bounding boxes are to be resized, or the pictures have other channels.
    """

    backbone_cls = VANBackbone

    def __init__(
        self,
        image_size: Sequence[int] | None = (224, 224),
        crop_pct: float = 0.9,
        interpolation: str = "bicubic",
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        resize: str = "shorter side",
        crop_rounding: str = "nearest",
        data_format: str | None = None,
        **kwargs,
    ):
        super().__init__(data_format=data_format, **kwargs)
        record = Preprocessing.from_dict(
            {
                "input_size": _side(image_size) or 1,
                "crop_pct": crop_pct,
                "interpolation": interpolation,
                "mean": mean,
                "std": std,
                "resize": resize,
                "crop_rounding": crop_rounding,
            }
        )
        # What the same numbers are in KerasHub's own converter.
        self.scale = [1 / (255 * one) for one in record.std]
        self.offset = [-m / s for m, s in zip(record.mean, record.std, strict=True)]
        self.interpolation = record.interpolation
        self.antialias = True
        self._record = record.to_dict()
        self.image_size = image_size

    @classmethod
    def of(cls, preprocessing: Preprocessing, **kwargs) -> VANImageConverter:
        """The converter of a checkpoint's record; `kwargs`: what else the constructor takes."""
        record = preprocessing.to_dict()
        side = record.pop("input_size")
        return cls(image_size=(side, side), **record, **kwargs)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of the result, or None; can be set."""
        return ImageConverter.image_size.fget(self)

    @image_size.setter
    def image_size(self, value: Sequence[int] | None) -> None:
        side = _side(value)
        if side is not None:
            Preprocessing.from_dict({**self._record, "input_size": side})
        ImageConverter.image_size.fset(self, None if side is None else (side, side))

    @property
    def preprocessing(self) -> Preprocessing:
        """The record that this follows; without an `image_size` its size is 1."""
        side = 1 if self.image_size is None else self.image_size[0]
        return Preprocessing.from_dict({**self._record, "input_size": side})

    def call(self, inputs):
        if isinstance(inputs, Mapping):
            return self._with_boxes(inputs)
        if isinstance(inputs, (list, tuple)):
            try:
                inputs = np.asarray(inputs)
            except ValueError:  # of several sizes, or tensors
                return type(inputs)([self.call(one) for one in inputs])
        tensorflow = foreign_tensorflow(inputs)
        if tensorflow is not None:  # within `tf.data` on another backend, where NumPy computes
            x = tensorflow.numpy_function(
                lambda pictures: self._converted(np, pictures),
                [inputs],
                tensorflow.float32,
                stateful=False,
            )
            x = tensorflow.ensure_shape(x, self._output_shape(tuple(inputs.shape)))
            return tensorflow.cast(x, self.compute_dtype)
        if ops.is_tensor(inputs) or isinstance(inputs, keras.KerasTensor):
            return ops.cast(self._converted(ops, inputs), self.compute_dtype)
        x = self._converted(np, np.asarray(inputs))
        if in_grain_data_pipeline():  # whose elements go from process to process
            return x.astype(keras.backend.standardize_dtype(self.compute_dtype))
        return ops.convert_to_tensor(x, self.compute_dtype)

    def _output_shape(self, input_shape: tuple) -> tuple:
        batch, shape = tuple(input_shape[:-3]), list(input_shape[-3:])
        first = self.data_format == "channels_first"
        if self.image_size is not None:
            shape[1 if first else 0] = shape[2 if first else 1] = self.image_size[0]
            shape[0 if first else 2] = self.preprocessing.channels
        return (*batch, *shape)

    def get_config(self) -> dict:
        config = super().get_config()
        for of_others in _OF_OTHERS:
            del config[of_others]
        record = self.preprocessing.to_dict()
        del record["input_size"]
        size = None if self.image_size is None else list(self.image_size)
        return {**config, **record, "image_size": size, "data_format": self.data_format}

    def _converted(self, xp, x):
        """What `call` gives, float32, of one picture or a batch; `xp` is NumPy or `keras.ops`."""
        rank = len(x.shape)
        if rank not in (3, 4):
            raise ValueError(
                "pictures must be one (rank 3) or a batch of one size (rank 4). "
                f"Received: shape {tuple(x.shape)}"
            )
        record, first = self.preprocessing, self.data_format == "channels_first"
        x = x[None] if rank == 3 else x
        x = xp.transpose(x, (0, 2, 3, 1)) if first else x
        allowed = (1, 3) if self.image_size is not None else (record.channels,)
        if x.shape[3] not in allowed:
            raise ValueError(
                f"pictures must have {' or '.join(map(str, allowed))} channels, for "
                f"data_format={self.data_format!r}. Received: {x.shape[3]} channels"
            )
        if self.image_size is None:
            x = normalised(xp, _float32(xp, x), record)
        else:
            x = preprocessed(xp, _whole(xp, x), record)
        x = xp.transpose(x, (0, 3, 1, 2)) if first else x
        return x[0] if rank == 3 else x

    def _with_boxes(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Pictures with bounding boxes, for detectors; their size stays."""
        if self.image_size is not None:
            raise ValueError(
                "`image_size` must be None for pictures with bounding boxes, which a centre crop "
                "would cut: resize both before, or use keras_hub.layers.ImageConverter with the "
                f"`scale` and `offset` of this. Received: image_size={self.image_size}"
            )
        return {**inputs, "images": self.call(inputs["images"])}


def _side(image_size: Any) -> int | None:
    """The side of the square that `image_size` gives, or an error."""
    if image_size is None:
        return None
    sides = tuple(image_size) if isinstance(image_size, (tuple, list)) else ()
    if len(sides) != 2 or not all(map(is_whole, sides)) or sides[0] != sides[1] or sides[0] < 1:
        raise ValueError(
            "`image_size` must be None or a height and width that are the same, such as "
            f"(224, 224). Received: image_size={image_size!r}"
        )
    return int(sides[0])


def _float32(xp, x):
    return x.astype(np.float32) if xp is np else xp.cast(x, "float32")


def _whole(xp, x):
    """0 to 255 as 8 bits; numbers in between are rounded, others the nearest of them."""
    if keras.backend.standardize_dtype(x.dtype) == "uint8":
        return x
    x = xp.clip(xp.round(_float32(xp, x)), 0.0, 255.0)
    return x.astype(np.uint8) if xp is np else xp.cast(x, "uint8")
