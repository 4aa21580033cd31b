"""How a picture becomes a model's input: a property of each checkpoint, kept beside its weights.

Imports neither Keras nor a backend.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from PIL import Image

from ..support.checks import is_number, is_whole
from ..support.text import shown
from .config import entries

MAX_RESIZED = 50_000_000  # pixels, before the crop
MAX_SIDE = 1_000_000_000
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")  # Pillow's
NOT_SAID = (
    "It does not say how its pictures are prepared: as for the published ImageNet-1k weights is "
    "assumed."
)
RESIZES = ("shorter side", "both sides")
CROP_ROUNDINGS = ("nearest", "down")


def resized(
    image: Image.Image, size: tuple[int, int], resample: Image.Resampling, mode: str
) -> Image.Image:
    """`image.resize(size, resample)` of Pillow up to release 12, the authors' among them.

    A filter runs over one axis after the other and rounds to 8 bits in between. The width was
    always the first; since release 13 it is the height where that is less work, and values of
    such pictures, tall ones, differ by up to 18 of 255.

    Args:
        image: An upright 8-bit picture (`images.decode.open_image`).
        size: Width and height in pixels.
        resample: The filter.
        mode: L or RGB, which it is converted to before.

    Raises:
        ValueError: It is so long and thin that this would need far more memory than the picture
            and the result: for what lies in between, or for the filter, which has a weight for
            each pixel of a side.
    """
    width, height = max(image.width, size[0]), max(image.height, size[1])
    # A large result may need as many, of any picture.
    allowed = max(MAX_RESIZED, 4 * min(size) ** 2, image.width * image.height)
    if width * height > allowed:
        raise ValueError(
            f"{image.width} x {image.height} pixels: too long and thin, resizing it would take "
            f"{width} x {height}; allowed: {allowed:,} pixels"
        )
    image = image if image.mode == mode else image.convert(mode)
    return image.resize((size[0], image.height), resample).resize(size, resample)


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop and normalisation of one checkpoint.

    The defaults are the ones that the authors' ImageNet-1k weights were evaluated with
    (timm 0.4.12's).

    Args:
        input_size: Side of the square crop in pixels.
        crop_pct: The crop's share of the resized shorter side, above 0 and at most 1.
        interpolation: Pillow's filter: nearest, box, bilinear, hamming, bicubic or lanczos.
        mean: Taken from each channel after scaling to [0, 1]; 1 or 3 channels.
        std: What each channel is then divided by; as many as `mean`.
        resize: "shorter side" keeps the picture's proportions; "both sides" makes it a square
            (transformers' ViT, timm's "squash").
        crop_rounding: Where half a pixel is left over, the crop begins at the "nearest" whole
            one (half to even: torchvision, timm, OpenMMLab), or it is rounded "down"
            (transformers).

    Raises:
        ValueError: A value is out of its range, or `mean` and `std` do not fit together.
    """

    input_size: int = 224
    crop_pct: float = 0.9
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resize: str = "shorter side"
    crop_rounding: str = "nearest"

    def __post_init__(self) -> None:
        size, share = self.input_size, self.crop_pct
        if not is_whole(size) or size < 1:
            raise ValueError(
                "`input_size` must be a whole number of pixels, at least 1. "
                f"Received: {shown(size)}"
            )
        if not is_number(share) or not 0 < share <= 1:
            raise ValueError(
                "`crop_pct` is a share of the shorter side: above 0 and at most 1 (0.9 for 90 %). "
                f"Received: {shown(share)}"
            )
        if not isinstance(self.interpolation, str) or self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"`interpolation` must be one of Pillow's: {', '.join(INTERPOLATIONS)}. "
                f"Received: {shown(self.interpolation)}"
            )
        for name, allowed in (("resize", RESIZES), ("crop_rounding", CROP_ROUNDINGS)):
            received = getattr(self, name)
            if not isinstance(received, str) or received not in allowed:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(allowed)}. Received: {shown(received)}"
                )
        if size > MAX_SIDE or size / share > MAX_SIDE:
            raise ValueError(
                f"`input_size` / `crop_pct` is the side in pixels before the crop: at most "
                f"{MAX_SIDE:,}. Received: {shown(size)} / {shown(share)}"
            )
        # Plain numbers, also from NumPy's: the record goes into JSON.
        object.__setattr__(self, "interpolation", str(self.interpolation))
        object.__setattr__(self, "input_size", int(size))
        object.__setattr__(self, "crop_pct", float(share))
        object.__setattr__(self, "mean", _channels("mean", self.mean))
        object.__setattr__(self, "std", _channels("std", self.std))
        if len(self.mean) != len(self.std):
            raise ValueError(
                "`mean` and `std` need one number per channel each, so the same length. "
                f"Received: mean={self.mean}, std={self.std}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"`std` divides: it must be above 0. Received: {self.std}")

    @property
    def resize_to(self) -> int:
        """Length of the shorter side before the crop, in pixels (timm's floor, 248 for 224)."""
        return math.floor(self.input_size / self.crop_pct)

    @classmethod
    def of_sizes(cls, resize_to: int, input_size: int, **others: Any) -> Preprocessing:
        """The record for exactly `resize_to` pixels before the crop; `others`: its other fields.

        Raises:
            ValueError: The crop is larger than the resized picture, or a value out of its range.
        """
        if not 0 < input_size <= resize_to:
            raise ValueError(
                f"a crop of {input_size} pixels out of {resize_to}: it must be smaller or the same"
            )
        share = input_size / resize_to
        if math.floor(input_size / share) != resize_to:  # rounded, it would be a pixel less
            share = math.nextafter(share, 0)
        return cls(input_size, share, **others)

    @property
    def channels(self) -> int:
        """Channels of the model's input, 1 (grey) or 3 (RGB)."""
        return len(self.mean)

    def crop(self, image: Image.Image) -> np.ndarray:
        """Resize and centre crop, bit for bit as torchvision does it on a PIL image.

        Args:
            image: An upright 8-bit picture (`images.decode.open_image`).

        Returns:
            (input_size, input_size, C), uint8.

        Raises:
            ValueError: It is too long and thin (`resized`).
        """
        return self._centre(self._resized(image))

    def __call__(self, image: Image.Image) -> np.ndarray:
        """The model's input: `crop`, scaled to [0, 1] and normalised.

        Args:
            image: An upright 8-bit picture (`images.decode.open_image`).

        Returns:
            (input_size, input_size, C), float32.
        """
        return self.normalise(self.crop(image))

    def views(self, image: Image.Image, crops: int = 1, flip: bool = False) -> np.ndarray:
        """`pixel_views` normalised, float32: inputs whose predictions are to be averaged."""
        return self.normalise(self.pixel_views(image, crops, flip))

    def pixel_views(self, image: Image.Image, crops: int = 1, flip: bool = False) -> np.ndarray:
        """Several crops of one picture, for a model that normalises its input itself.

        Args:
            image: An upright 8-bit picture (`images.decode.open_image`).
            crops: 1 (the centre), or 5: the centre and the four corners of the resized picture.
            flip: Each crop mirrored left to right as well.

        Returns:
            (crops, or twice as many, input_size, input_size, C), uint8; the centre first.
        """
        if crops not in (1, 5):
            raise ValueError(f"`crops` must be 1 or 5. Received: {crops!r}")
        resized = self._resized(image)
        cut = [self._centre(resized)]
        if crops == 5:
            right, bottom = resized.width - self.input_size, resized.height - self.input_size
            corners = ((0, 0), (right, 0), (0, bottom), (right, bottom))
            cut += [self._cut(resized, left, top) for left, top in corners]
        if flip:
            cut += [one[:, ::-1] for one in cut]
        return np.stack(cut)

    def box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of an upright picture that the centre crop is made of.

        Args:
            width: Of the picture, in pixels.
            height: The same.

        Returns:
            Left, top, right and bottom, in pixels of the picture, seldom whole ones.
        """
        across, down = self._resized_size(width, height)
        left, top = self._corner(across, down)
        x, y, side = width / across, height / down, self.input_size
        return left * x, top * y, (left + side) * x, (top + side) * y

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """(..., W, C) pixels, uint8 -> float32: scaled to [0, 1], less mean, over std."""
        scaled = pixels.astype(np.float32) / np.float32(255)
        # By whole rows: NumPy is slow over an axis of 3.
        rows = scaled.reshape(-1, pixels.shape[-2] * self.channels)
        rows -= np.tile(np.float32(self.mean), pixels.shape[-2])
        rows /= np.tile(np.float32(self.std), pixels.shape[-2])
        return scaled

    def _resized(self, image: Image.Image) -> Image.Image:
        mode = "L" if self.channels == 1 else "RGB"
        size = self._resized_size(*image.size)
        if size == image.size:
            return image if image.mode == mode else image.convert(mode)
        return resized(image, size, Image.Resampling[self.interpolation.upper()], mode)

    def _resized_size(self, width: int, height: int) -> tuple[int, int]:
        short = self.resize_to
        if min(width, height) == short and (self.resize == "shorter side" or width == height):
            return width, height
        if self.resize == "both sides":
            return short, short
        # The longer side rounded down, as torchvision does.
        if width < height:
            return short, int(short * height / width)
        return int(short * width / height), short

    def _corner(self, width: int, height: int) -> tuple[int, int]:
        """Where the centre crop of a resized picture begins: left, top."""
        whole = round if self.crop_rounding == "nearest" else math.floor
        left, top = (whole((side - self.input_size) / 2.0) for side in (width, height))
        return left, top

    def _centre(self, resized: Image.Image) -> np.ndarray:
        return self._cut(resized, *self._corner(*resized.size))

    def _cut(self, image: Image.Image, left: int, top: int) -> np.ndarray:
        side = self.input_size
        pixels = np.asarray(image.crop((left, top, left + side, top + side)))
        return pixels.reshape(side, side, self.channels)

    def with_channels(self, channels: int) -> Preprocessing | None:
        """The same for another number of channels; None where there is no such thing.

        Grey from RGB and back, where every channel has the same mean and std.
        """
        if channels == self.channels:
            return self
        uniform = len(set(self.mean)) == len(set(self.std)) == 1
        if channels not in (1, 3) or not uniform:
            return None
        return replace(self, mean=self.mean[:1] * channels, std=self.std[:1] * channels)

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON can hold it; of the last two fields only what is not the default.

        So that earlier versions, which do not know them, read all records that they can follow.
        """
        record = asdict(self) | {"mean": list(self.mean), "std": list(self.std)}
        for field in fields(self)[-2:]:
            if record[field.name] == field.default:
                del record[field.name]
        return record

    @classmethod
    def of(cls, record: Any, argument: str = "preprocessing") -> Preprocessing | None:
        """`record` itself, what its `to_dict` gave, or None.

        Raises:
            ValueError: It is something else, or a value is out of its range.
        """
        if record is None or isinstance(record, cls):
            return record
        if isinstance(record, Mapping):
            return cls.from_dict(record)
        raise ValueError(
            f"`{argument}` must be a `Preprocessing`, what its `to_dict` gives, or None. "
            f"Received: {type(record).__name__} {shown(record)}"
        )

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`; what is left out has its default.

        Raises:
            ValueError: A key is unknown, or a value is out of its range.
        """
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(map(str, record)) - set(known)):
            raise ValueError(
                f"A preprocessing record has the keys {', '.join(known)}. "
                f"Received also: {shown(unknown)}; remove or rename them."
            )
        return cls(**record)

    def __str__(self) -> str:
        down = " (offset rounded down)" if self.crop_rounding == "down" else ""
        return (
            f"{self.resize} to {self.resize_to} ({self.interpolation}), "
            f"centre crop {self.input_size}{down}, mean {self.mean}, std {self.std}"
        )


_MOST = 1e30  # of a mean or std, which are of pixels in [0, 1]


def _channels(name: str, received: Any) -> tuple[float, ...]:
    """One finite number per channel, 1 or 3 of them, or a ValueError that names the argument."""
    values = entries(received)
    numbers = all(map(is_number, values))
    # Compared, not converted: a whole number may be larger than any float.
    if len(values) not in (1, 3) or not numbers or not all(abs(v) < _MOST for v in values):
        raise ValueError(
            f"`{name}` must hold one finite number per channel, 1 or 3 of them. "
            f"Received: {shown(received)}"
        )
    return tuple(float(v) for v in values)
