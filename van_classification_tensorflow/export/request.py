"""What `van export` and `van convert` are asked for."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..support.checks import check_flag, is_number, is_whole
from ..support.options import number_or, option
from .formats import FORMATS, check_installed, format_for


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """The arguments of `export` and options of `van export`, checked before any work is done.

    Raises:
        ValueError: An argument is not allowed, or does not go with another.
        FileExistsError: `path` is there and `overwrite` is not set.
        OSError: There is no place for the file, or no pictures.
        ModuleNotFoundError: What writes the format is not installed; says what to install.
    """

    # Or a Keras model, which nothing here may import.
    model: Any = option(
        "a name of `van weights list`, a weight file or hf://USER/NAME (default: {default})",
        "van_b0",
        flag="--weights",
    )
    format: str | None = option(
        "saved_model, onnx, openvino or litert (default: by what --output ends in)", None
    )
    path: str | os.PathLike = option(
        "*.onnx, *.xml (OpenVINO, with *.bin beside it), *.tflite, or a folder to make "
        "(SavedModel)",
        flag="--output",
    )
    precision: str = option(
        "float32 (default), float16 (smaller file), bfloat16 (OpenVINO) or int8 (with --data)",
        "float32",
    )
    batch_size: int | str = option(
        "images at once, or any (default: {default})", 1, read=number_or("any"), metavar="N"
    )
    image_size: int | str | None = option(
        "side in pixels, or any (default: of the weights' preprocessing)",
        None,
        read=number_or("any"),
        metavar="N",
    )
    uint8: bool = option("take pixels, 0 to 255, and normalise them inside", False)
    softmax: bool = option("give probabilities, not logits", False)
    features: bool = option("leave the head out, give pooled features", False)
    fused: bool = option(
        "keep batch norm and layer scale (saved_model and litert)", True, flag="--no-fuse"
    )
    data: str | os.PathLike | None = option(
        "real pictures to calibrate int8 and to compare on: a folder (of class folders: accuracy "
        "is reported), or digits (default to compare on: digits)",
        None,
    )
    tolerance: float | None = option(
        "largest absolute difference of an output allowed (default: in float32 1e-4 of the "
        "largest one, or 1e-4 where that is below 1)",
        None,
    )
    agreement: float | None = option(
        "least share of pictures with the same best class (default: 1 in float32, else 0.99)",
        None,
    )
    overwrite: bool = option("replace what is at --output", False)

    def __post_init__(self) -> None:
        kind = self.kind
        for name in ("uint8", "softmax", "features", "fused", "overwrite"):
            check_flag(name, getattr(self, name))
        if self.precision not in FORMATS[kind]:
            raise ValueError(
                f"`precision` must be one of {', '.join(FORMATS[kind])} for {kind}. "
                f"Received: precision={self.precision!r}"
            )
        self._check_sizes()
        if self.features and self.agreement is not None:
            raise ValueError("`agreement` does not go with `features`, which have no best class")
        if self.softmax and self.features:
            raise ValueError("`softmax` does not go with `features`, which are no probabilities")
        if not self.fused and kind in ("onnx", "openvino"):
            raise ValueError(f"`fused`: {kind} is always fused. Received: fused={self.fused!r}")
        if self.precision == "int8" and self.data is None:
            raise ValueError(
                "`data` must name real pictures for int8, such as those the model will see: the "
                "ranges of its numbers come from them. Received: data=None"
            )
        for name, most in (("tolerance", math.inf), ("agreement", 1.0)):
            limit: Any = getattr(self, name)
            if limit is not None and not (is_number(limit) and 0 <= limit <= most):
                raise ValueError(f"`{name}` must be from 0 to {most}. Received: {name}={limit!r}")
        # Only now, as they take NumPy, and the options are to be shown without it.
        from ..datasets.calibration import check_pictures
        from .place import check_place

        check_place(self.target, kind, self.model, self.overwrite)
        check_installed(kind, self.precision)
        check_pictures(self.data, "data")

    @property
    def target(self) -> Path:
        """The place of the file, or of SavedModel's folder."""
        return Path(self.path)

    @property
    def kind(self) -> str:
        """Its format: `format`, or what `path` ends in."""
        return format_for(self.target, self.format)

    def _check_sizes(self) -> None:
        value: Any
        for name, value, others in (
            ("batch_size", self.batch_size, ("any",)),
            ("image_size", self.image_size, (None, "any")),
        ):
            if (value is None or isinstance(value, str)) and value in others:
                continue
            if not is_whole(value) or not 1 <= int(value) <= 4096:
                raise ValueError(
                    f"`{name}` must be an integer from 1 to 4096, or 'any'. "
                    f"Received: {name}={value!r}"
                )
        if self.kind == "litert" and "any" in (self.batch_size, self.image_size):
            raise ValueError(
                "`batch_size` and `image_size` must be fixed for litert, whose dilated "
                "convolutions would be taken apart: write a file for each size. "
                f"Received: batch_size={self.batch_size!r}, image_size={self.image_size!r}"
            )


@dataclass(frozen=True, kw_only=True)
class ConvertRequest:
    """The arguments of `convert`, which checks them, and the options of `van convert`."""

    source: str = option(
        ".pth, .pth.tar, .bin, .safetensors, .h5, .weights.h5, .keras, a Hugging Face folder, or "
        "hf://USER/NAME; nothing in it is executed",
        flag="source",
    )
    target: str = option(
        "*.safetensors, *.pth, *.keras, *.weights.h5, or, with --naming huggingface, a "
        "folder to make",
        flag="target",
    )
    naming: str | None = option("official (default), huggingface or mmpretrain", None)
    wrapper: str | None = option(
        "entry of a PyTorch file to read, such as model_ema; or, of several models in one, "
        "what stands before its names: teacher.",
        None,
    )
    allow_nonfinite: bool = option("accept NaN and infinities", False)
    overwrite: bool = option("replace the target if it is there", False)
