"""Training-time augmentation as timm 0.4.12 does it, which the authors trained with.

In the order of its loader (`create_loader` with the prefetcher, which is its default): each picture
is cropped, flipped and changed by RandAugment; the batch of 8-bit pictures is mixed, and only then
normalised; at last each of the mixed images may lose a rectangle. The first is `TrainTransform`,
the rest `BatchTransform`.

On Pillow pictures and NumPy arrays; imports neither Keras nor a backend. The distributions are
timm's, and an operation with given arguments is timm's bit for bit; the order in which random
numbers are drawn is our own. All of them come from the `numpy.random.Generator` that the caller
gives, so a result depends on that generator and on nothing else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from ..spec.config import entries
from ..spec.preprocessing import Preprocessing, _channels, resized
from ..support.checks import is_number, is_whole

# --- RandAugment (arXiv 1909.13719), timm.data.auto_augment ---

OPERATIONS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
)
# With `inc1`: those whose effect does not grow with the magnitude are replaced by ones that do.
_REPLACED = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")
INCREASING_OPERATIONS = tuple(
    f"{name}Increasing" if name in _REPLACED else name for name in OPERATIONS
)

_PART = re.compile(
    r"m(?P<magnitude>[0-9]{1,2})|n(?P<layers>[1-9][0-9]?)"
    r"|mstd(?P<magnitude_std>[0-9]+(?:\.[0-9]+)?)|inc(?P<increasing>[01])"
)


def operation_arguments(name: str, magnitude: float, sign: int) -> tuple[float, ...]:
    """What an operation is called with: none or one number.

    Args:
        name: Of `OPERATIONS` or `INCREASING_OPERATIONS`.
        magnitude: 0 to 10.
        sign: 1 or -1; which way to turn, shear, shift or (increasing) enhance.

    Returns:
        Degrees; shear in pixels per pixel; shift as a share of the side; bits kept; threshold or
        offset of pixel values; factor of the enhancement, 1 being none.
    """
    share = magnitude / 10
    match name:
        case "AutoContrast" | "Equalize" | "Invert":
            return ()
        case "Rotate":
            return (sign * (share * 30),)
        case "ShearX" | "ShearY":
            return (sign * (share * 0.3),)
        case "TranslateXRel" | "TranslateYRel":
            return (sign * (share * 0.45),)
        case "Posterize":
            return (int(share * 4),)
        case "PosterizeIncreasing":
            return (4 - int(share * 4),)
        case "Solarize":
            return (int(share * 256),)
        case "SolarizeIncreasing":
            return (256 - int(share * 256),)
        case "SolarizeAdd":
            return (int(share * 110),)
        case "Color" | "Contrast" | "Brightness" | "Sharpness":
            return (share * 1.8 + 0.1,)
        case (
            "ColorIncreasing"
            | "ContrastIncreasing"
            | "BrightnessIncreasing"
            | "SharpnessIncreasing"
        ):
            return (1 + sign * (share * 0.9),)
    raise ValueError(f"`name` must be one of timm's operations. Received: name={name!r}")


def apply_operation(
    image: Image.Image,
    name: str,
    arguments: tuple[float, ...],
    resample: Image.Resampling,
    fill: int | tuple[int, ...],
) -> Image.Image:
    """One operation, bit for bit timm's.

    Args:
        image: Mode "L" or "RGB".
        name: Of `OPERATIONS` or `INCREASING_OPERATIONS`.
        arguments: `operation_arguments`.
        resample: Of the geometric operations: nearest, bilinear or bicubic.
        fill: Colour of what they bring in from outside; one number for "L".
    """
    affine: tuple[float, ...]
    match name.removesuffix("Increasing"), arguments:
        case "AutoContrast", ():
            return ImageOps.autocontrast(image)
        case "Equalize", ():
            return ImageOps.equalize(image)
        case "Invert", ():
            return ImageOps.invert(image)
        case "Rotate", (degrees,):
            return image.rotate(degrees, resample=resample, fillcolor=fill)
        case "Posterize", (bits,):
            # Not ImageOps.posterize: new Pillows refuse the 0 bits (black) of a magnitude of 10.
            mask = 256 - 2 ** (8 - int(bits))
            return _mapped(image, [value & mask for value in range(256)])
        case "Solarize", (threshold,):
            return ImageOps.solarize(image, int(threshold))
        case "SolarizeAdd", (added,):
            dark = [min(255, value + int(added)) for value in range(128)]
            return _mapped(image, [*dark, *range(128, 256)])
        case ("Color" | "Contrast" | "Brightness" | "Sharpness") as enhancement, (factor,):
            return getattr(ImageEnhance, enhancement)(image).enhance(factor)
        case "ShearX", (shear,):
            affine = (1, shear, 0, 0, 1, 0)
        case "ShearY", (shear,):
            affine = (1, 0, 0, shear, 1, 0)
        case "TranslateXRel", (share,):
            affine = (1, 0, share * image.width, 0, 1, 0)
        case "TranslateYRel", (share,):
            affine = (1, 0, 0, 0, 1, share * image.height)
        case _:
            raise ValueError(
                "`name` must be one of timm's operations, with its `arguments`. "
                f"Received: name={name!r}, arguments={arguments}"
            )
    method = Image.Transform.AFFINE
    return image.transform(image.size, method, affine, resample=resample, fillcolor=fill)


def _mapped(image: Image.Image, table: Sequence[int]) -> Image.Image:
    """Each of the 256 pixel values replaced, the same in every band."""
    return image.point([*table] * len(image.getbands()))


@dataclass(frozen=True)
class RandAugment:
    """Random operations on a picture, each of which happens with probability 0.5.

    Args:
        magnitude: Mean strength; clipped to 0 to 10 after the noise is added.
        layers: Operations drawn for each picture, with replacement.
        magnitude_std: Standard deviation of the strength from one operation to the next.
        increasing: `INCREASING_OPERATIONS`, which all grow stronger with the magnitude.
    """

    magnitude: int = 10
    layers: int = 2
    magnitude_std: float = 0.0
    increasing: bool = False

    @classmethod
    def from_spec(cls, spec: str) -> RandAugment:
        """Reads timm's notation: "rand-m9-mstd0.5-inc1".

        timm 0.4.12 takes `inc0` for `inc1` and passes over what it does not know; here `inc0`
        means what it says, and the unknown is refused, as are its experimental weights, `w0`.

        Raises:
            ValueError: A part is unknown, out of its range, or there twice.
        """
        first, *parts = spec.split("-") if isinstance(spec, str) else ("",)
        found = [_PART.fullmatch(part) for part in parts]
        values = {one.lastgroup: one[one.lastgroup] for one in found if one and one.lastgroup}
        if first != "rand" or len(values) < len(parts):
            raise ValueError(
                "`rand_augment` must be rand and then, each at most once, -m (magnitude: 0 to 99, "
                "those above 10 count as 10), -n (operations: 1 to 99), -mstd (standard "
                "deviation of the magnitude) and -inc (0 or 1), such as rand-m9-mstd0.5-inc1. "
                f"Received: rand_augment={spec!r}"
            )
        return cls(
            magnitude=int(values.get("magnitude", cls.magnitude)),
            layers=int(values.get("layers", cls.layers)),
            magnitude_std=float(values.get("magnitude_std", cls.magnitude_std)),
            increasing=values.get("increasing") == "1",
        )

    def __call__(
        self,
        image: Image.Image,
        rng: np.random.Generator,
        resamples: Sequence[Image.Resampling],
        fill: int | tuple[int, ...],
    ) -> Image.Image:
        """The picture changed.

        Args:
            image: Mode "L" or "RGB".
            rng: Where all random numbers come from.
            resamples: Filters that each geometric operation draws one from.
            fill: Colour of what they bring in from outside; one number for "L".
        """
        names = INCREASING_OPERATIONS if self.increasing else OPERATIONS
        for index in rng.integers(len(names), size=self.layers):
            if rng.random() < 0.5:
                magnitude = min(10.0, max(0.0, rng.normal(self.magnitude, self.magnitude_std)))
                sign = 1 if rng.random() < 0.5 else -1
                resample = resamples[int(rng.integers(len(resamples)))]
                arguments = operation_arguments(names[index], magnitude, sign)
                image = apply_operation(image, names[index], arguments, resample, fill)
        return image


# --- Random resized crop, timm.data.transforms; random erasing, timm.data.random_erasing ---


def random_crop_box(
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Where to crop a picture: a share of its area, at a random place.

    Args:
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        scale: Least and largest share of the area, drawn uniformly.
        ratio: Least and largest width / height, drawn uniformly on a logarithmic scale.
        rng: Where the numbers come from.

    Returns:
        Left, top, right, bottom. After ten draws that do not fit: the largest crop in the centre
        whose ratio is allowed.
    """
    for _ in range(10):
        area = rng.uniform(*scale) * (width * height)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        # Of a picture a few pixels wide timm may cut a crop of 0 pixels, and fail.
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < ratio[0]:
        h = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w = max(1, round(height * ratio[1]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def erase(pixels: np.ndarray, probability: float, rng: np.random.Generator) -> None:
    """Random erasing (arXiv 1708.04896), in place: a rectangle becomes noise, N(0, 1).

    timm's mode "pixel" with one box: 2 to 33 % of the area, height / width between 0.3 and 1 / 0.3
    on a logarithmic scale. Ten draws that do not fit leave the picture as it is.

    Args:
        pixels: (H, W, C), float32, normalised.
        probability: Of erasing anything.
        rng: Where the numbers come from.
    """
    if rng.random() >= probability:
        return
    height, width, channels = pixels.shape
    for _ in range(10):
        area = rng.uniform(0.02, 1 / 3) * (height * width)
        aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            noise = rng.standard_normal((h, w, channels), dtype=np.float32)
            pixels[top : top + h, left : left + w] = noise
            return


# --- One picture ---


@dataclass(frozen=True)
class TrainTransform:
    """What happens to each picture by itself: `timm.data.create_transform(is_training=True)`.

    In this order: random resized crop, flips, RandAugment. `BatchTransform` does the rest.

    Args:
        input_size: Side of the square input in pixels.
        mean: The model's, in [0, 1]: the colour that RandAugment fills with. 1 (grey) or 3 (RGB)
            channels.
        crop_scale: Least and largest share of the picture's area that is cropped.
        crop_ratio: Least and largest width / height of the crop.
        interpolations: nearest, bilinear, bicubic: those that one is drawn from, for the crop and
            again for each geometric operation.
        horizontal_flip: Probability of swapping left and right.
        vertical_flip: Probability of swapping top and bottom.
        rand_augment: `RandAugment.from_spec`, or None for no such operations.

    Raises:
        ValueError: A value is out of its range.
    """

    input_size: int = 224
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolations: tuple[str, ...] = ("bilinear", "bicubic")
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_size", Preprocessing(self.input_size).input_size)
        object.__setattr__(self, "mean", _channels("mean", self.mean))
        for name, largest in (("crop_scale", 1.0), ("crop_ratio", math.inf)):
            object.__setattr__(self, name, _range(name, getattr(self, name), largest))
        for name in ("horizontal_flip", "vertical_flip"):
            object.__setattr__(self, name, _probability(name, getattr(self, name)))
        names = self.interpolations
        given = entries(names)
        # Pillow turns and shears with no others.
        if not given or not all(name in ("nearest", "bilinear", "bicubic") for name in given):
            raise ValueError(
                "`interpolations` must be one or more of nearest, bilinear, bicubic. "
                f"Received: interpolations={names!r}"
            )
        object.__setattr__(self, "interpolations", given)
        _ = self._rand_augment  # read now: an error belongs here

    @cached_property
    def _rand_augment(self) -> RandAugment | None:
        return None if self.rand_augment is None else RandAugment.from_spec(self.rand_augment)

    @cached_property
    def _fill(self) -> int | tuple[int, ...]:
        levels = tuple(max(0, min(255, round(255 * mean))) for mean in self.mean)
        return levels if len(levels) > 1 else levels[0]

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """One random version of a picture.

        Args:
            image: An upright 8-bit picture (`images.decode.open_image`) of any size.
            rng: Where all random numbers come from.

        Returns:
            (input_size, input_size, C), uint8; C is 1 (grey) or 3 (RGB), as `mean` has it.
        """
        size, channels = self.input_size, len(self.mean)
        mode = "L" if channels == 1 else "RGB"
        resamples = [Image.Resampling[name.upper()] for name in self.interpolations]
        box = random_crop_box(image.width, image.height, self.crop_scale, self.crop_ratio, rng)
        resample = resamples[int(rng.integers(len(resamples)))]
        image = resized(image.crop(box), (size, size), resample, mode)
        if rng.random() < self.horizontal_flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if rng.random() < self.vertical_flip:
            image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        if self._rand_augment is not None:
            image = self._rand_augment(image, rng, resamples, self._fill)
        return np.asarray(image).reshape(size, size, channels)


# --- A batch: mixup (arXiv 1710.09412), cutmix (arXiv 1905.04899) and what comes after it ---


@dataclass(frozen=True)
class BatchTransform:
    """Pictures become a model's input: mixed, normalised, erased; labels become targets.

    timm's loader in this order: `FastCollateMixup` in mode "batch", `PrefetchLoader`'s
    normalisation, `RandomErasing`. Mixup rounds to whole pixel values, as pictures of 8 bits are
    what is mixed, and the noise of erasing is never mixed.

    A batch is mixed in one way and with one share, its images in pairs: the first with the second,
    the third with the fourth, ...; the last one of an odd batch with itself. (timm's pairs are the
    first with the last, ...: of a shuffled batch as random, but no worker that has a part of the
    batch has whole pairs of these.) Erasing is drawn for each image.

    Args:
        mixup: Alpha of mixup's Beta(alpha, alpha); 0 turns it off.
        cutmix: Alpha of cutmix's Beta(alpha, alpha); 0 turns it off.
        mix_probability: Of mixing a batch at all.
        mix_switch: Probability of cutmix rather than mixup where both are on.
        label_smoothing: Share of each target that is spread over all classes.
        erasing: Probability of erasing a rectangle of an image.
        mean: Taken from each channel after scaling to [0, 1]; 1 or 3 channels.
        std: What each channel is then divided by; as many as `mean`.
        class_weights: How much a picture of each class counts in the loss; None: all the same.

    Raises:
        ValueError: A value is out of its range, or `mean` and `std` do not fit together.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    mix_probability: float = 1.0
    mix_switch: float = 0.5
    label_smoothing: float = 0.1
    erasing: float = 0.25
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    class_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            alpha = getattr(self, name)
            if not is_number(alpha) or not 0 <= alpha < math.inf:
                raise ValueError(f"`{name}` must be 0 or above. Received: {name}={alpha!r}")
            object.__setattr__(self, name, float(alpha))
        for name in ("mix_probability", "mix_switch", "label_smoothing", "erasing"):
            object.__setattr__(self, name, _probability(name, getattr(self, name)))
        checked = Preprocessing(mean=self.mean, std=self.std)
        object.__setattr__(self, "mean", checked.mean)
        object.__setattr__(self, "std", checked.std)

    def __call__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        num_classes: int,
        rng: np.random.Generator,
        rngs: Iterable[np.random.Generator] | None = None,
    ) -> tuple[np.ndarray, ...]:
        """One random version of a batch, in new arrays: what is given stays as it is.

        Of a batch that workers share, each gives its rows and the same `rng`, and gets what one
        worker would have made of them, if no pair is divided.

        Args:
            images: (N, H, W, C), uint8: what `TrainTransform` makes.
            labels: (N,), whole numbers from 0 to num_classes - 1.
            num_classes: Classes of the model.
            rng: Where the random numbers of the whole batch come from.
            rngs: Those of each image, for its erasing; by default `rng` for all, in their order.

        Returns:
            Images (N, H, W, C), float32, normalised; targets (N, num_classes), float32, each
            row's sum 1; with `class_weights` also the weight of each image in the loss, (N,),
            float32: its class's, of mixed ones the mean by their shares, without the smoothing.

        Raises:
            ValueError: An array has the wrong shape or type, or a label is no class.
        """
        labels = np.asarray(labels)
        _check_batch(images, labels, num_classes, len(self.mean))
        _, height, width, _ = images.shape
        share, box = self._drawn(height, width, rng)
        # By whole rows: NumPy is slow over an axis of 3.
        mean = np.tile(np.float32([255 * mean for mean in self.mean]), width)
        std = np.tile(np.float32([255 * std for std in self.std]), width)
        made = np.empty(images.shape, np.float32)
        others = np.empty(images.shape[1:], np.float32)
        # Image by image, so that all steps find it in the processor's cache.
        partners = (images[row] for row in _partners(len(images)))
        of_images = repeat(rng, len(images)) if rngs is None else rngs
        for image, own, partner, of_image in zip(made, images, partners, of_images, strict=True):
            image[:] = own
            if box is not None:
                image[box] = partner[box]
            elif share < 1:
                np.multiply(partner, 1 - share, out=others, dtype=np.float32)
                image *= share
                image += others
                np.rint(image, out=image)
            rows = image.reshape(height, -1)
            rows -= mean
            rows /= std
            erase(image, self.erasing, of_image)
        targets = self._targets(labels, num_classes, share)
        if self.class_weights is None:
            return made, targets
        weights = np.array(self.class_weights, np.float32)[labels]
        return made, targets, _mixed(weights, share)

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in pairs at all."""
        return self.mix_probability > 0 and self.mixup + self.cutmix > 0

    def to_picture(self, images: np.ndarray) -> np.ndarray:
        """What can be looked at: (..., H, W, C), normalised -> uint8; erased noise is clipped."""
        scaled = (images * np.float32(self.std) + np.float32(self.mean)) * 255
        return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)

    def _drawn(
        self, height: int, width: int, rng: np.random.Generator
    ) -> tuple[float, tuple[slice, slice] | None]:
        """Share that is each image's own, and cutmix's box; no box: the whole image is blended."""
        if rng.random() >= self.mix_probability or not self.mixup + self.cutmix:
            return 1.0, None
        if self.cutmix and (not self.mixup or rng.random() < self.mix_switch):
            return _cutmix_box(height, width, rng.beta(self.cutmix, self.cutmix), rng)
        return rng.beta(self.mixup, self.mixup), None

    def _targets(self, labels: np.ndarray, num_classes: int, share: float) -> np.ndarray:
        spread = self.label_smoothing / num_classes
        own: np.ndarray = np.full((len(labels), num_classes), spread, np.float32)
        own[np.arange(len(labels)), labels] = 1 - self.label_smoothing + spread
        return _mixed(own, share)


def _mixed(own: np.ndarray, share: float) -> np.ndarray:
    return own * share + own[_partners(len(own))] * (1 - share)


def _partners(count: int) -> np.ndarray:
    """The row that each is mixed with: its neighbour, and the last of an odd number itself."""
    return np.minimum(np.arange(count) ^ 1, count - 1)


def _cutmix_box(
    height: int, width: int, share: float, rng: np.random.Generator
) -> tuple[float, tuple[slice, slice]]:
    """The exact share that is left, and a box of about 1 - share of the area."""
    side = math.sqrt(1 - share)
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    # Any pixel may be the centre, so the border may cut the box.
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = max(0, y - half_height), min(height, y + half_height)
    left, right = max(0, x - half_width), min(width, x + half_width)
    left_over = 1 - (bottom - top) * (right - left) / (height * width)
    return left_over, (slice(top, bottom), slice(left, right))


# --- Checks ---


def _check_batch(images: np.ndarray, labels: np.ndarray, num_classes: int, channels: int) -> None:
    if (
        not isinstance(images, np.ndarray)
        or images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[3] != channels
        or not images.size
    ):
        found = f"{getattr(images, 'dtype', type(images).__name__)}, {np.shape(images)}"
        raise ValueError(
            f"`images` must be uint8, (N, H, W, {channels}), and not empty. Received: {found}"
        )
    if not is_whole(num_classes) or num_classes < 1:
        raise ValueError(
            "`num_classes` must be a whole number, at least 1. "
            f"Received: num_classes={num_classes!r}"
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            f"`labels` must be {len(images)} whole numbers, one per image. "
            f"Received: {labels.dtype}, {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"`labels` must be classes from 0 to {num_classes - 1}. "
            f"Received: from {labels.min()} to {labels.max()}"
        )


def _probability(name: str, value: Any) -> float:
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be from 0 to 1. Received: {name}={value!r}")
    return float(value)


def _range(name: str, value: Any, largest: float) -> tuple[float, float]:
    """(least, largest), or a ValueError that names the argument."""
    pair = entries(value)
    if (
        len(pair) != 2
        or not all(is_number(one) and math.isfinite(one) for one in pair)
        or not 0 < pair[0] <= pair[1] <= largest
    ):
        limit = f", at most {largest:g}" if math.isfinite(largest) else ""
        raise ValueError(
            f"`{name}` must be the least and the largest value: two numbers above 0{limit}. "
            f"Received: {name}={value!r}"
        )
    return float(pair[0]), float(pair[1])
