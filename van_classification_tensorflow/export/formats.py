"""The formats of `van export`, their endings, and what is needed to write them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from ..support.extras import is_installed, missing
from ..support.text import printable

# What each format can be in; what else its runtime needs to be written.
FORMATS: dict[str, tuple[str, ...]] = {
    "saved_model": ("float32",),
    "onnx": ("float32", "float16", "int8"),
    "openvino": ("float32", "float16", "bfloat16", "int8"),
    "litert": ("float32", "float16", "int8"),
}
_NEEDS = {
    "saved_model": ("tensorflow",),
    "onnx": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "openvino"),
    "litert": ("tensorflow", "ai_edge_litert"),
}
_ENDINGS = {"onnx": ".onnx", "openvino": ".xml", "litert": ".tflite"}


def format_for(target: Path, asked: str | None) -> str:
    kind = asked
    if asked is None:
        kind = {ending: kind for kind, ending in _ENDINGS.items()}.get(
            target.suffix, "saved_model" if not target.suffix else None
        )
    if kind not in FORMATS:
        raise ValueError(
            f"`format` must be one of {', '.join(FORMATS)}, or `path` end in .onnx, .xml or "
            f".tflite, or in nothing for a SavedModel. Received: format={asked!r}, "
            f"path={printable(target)}"
        )
    try:
        target.name.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"`path` must be text in UTF-8. Received: path={printable(target)}"
        ) from None
    if target.suffix != _ENDINGS.get(kind, target.suffix):
        raise ValueError(
            f"`path` must end in {_ENDINGS[kind]} for {kind}. Received: path={printable(target)}"
        )
    if kind == "saved_model" and target.suffix.lower() in _ENDINGS.values():
        raise ValueError(
            f"`path` must be a folder for saved_model. Received: path={printable(target)}"
        )
    return kind


def check_installed(kind: str, precision: str) -> None:
    """Before any work: a missing package is named with what installs it."""
    needed = [*_NEEDS[kind], *(["nncf"] if (kind, precision) == ("openvino", "int8") else [])]
    for package in needed:
        if not is_installed(package):
            raise missing(kind, package, kind)
    if "tensorflow" in needed:
        from ..engines.flatbuffer import check_named_backend  # takes NumPy

        check_named_backend(kind)


def import_runtime(kind: str) -> None:
    """What is installed may be broken, and Keras be told its backend by a file."""
    for package in _NEEDS[kind]:
        if package == "tensorflow":
            from ..engines.flatbuffer import check_backend

            check_backend(kind)
        try:
            import_module(package)
        except ImportError as error:
            raise missing(kind, package, kind, error) from error
