"""OpenVINO's files, by its runtime."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from ..spec.card import METADATA_KEY, precision_of
from ..support.extras import missing
from .protocol import Loaded, Spec

_cores: list[Any] = []  # the last one is that of this process
_lock = threading.Lock()


def the_core(what: str) -> Any:
    """OpenVINO's `Core`, one for the process, which is never let go.

    With the last one, its plugin for CPUs takes away the stack that it gave to the signals of the
    thread it began in. Where another thread lets it go, the next signal, as of Ctrl-C, is a
    segmentation fault. And where two threads are the first to ask it for NumPy's name of a type,
    they may wait for each other for ever: that was asked before. (Seen with 2026.4.1.)

    Args:
        what: Needs it, if it is not installed.

    Raises:
        ModuleNotFoundError: It is not; says what to install.
    """
    try:
        import openvino
    except ImportError as error:
        raise missing(what, "openvino", "openvino", error) from error
    with _lock:
        if not _cores or _cores[-1] is None:
            openvino.Type.f32.to_dtype()
            _cores.append(openvino.Core())
        return _cores[-1]


def _begin_anew() -> None:
    """In a forked process there are none of the threads that the core counts on."""
    global _lock
    _lock = threading.Lock()
    _cores.append(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def load(path: Path, threads: int | None) -> Loaded:
    core = the_core("this file")
    with path.open("rb") as file:
        # OpenVINO would try what is no IR as every other format, and say so for each.
        head = file.read(4096)
        file.seek(max(file.seek(0, os.SEEK_END) - 64, 0))
        if b"<net" not in head or b"</net>" not in file.read():
            raise ValueError("not an OpenVINO model")
    model = core.read_model(path)
    metadata = None
    if model.has_rt_info(METADATA_KEY):
        metadata = model.get_rt_info(METADATA_KEY).value
        if not isinstance(metadata, str):
            raise ValueError("its metadata is no text")
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = int(threads)
    precision = precision_of(metadata)
    if precision != "int8":  # beside int8, OpenVINO knows best what the rest runs in
        hints = {"float16": ("FP16", "f16"), "bfloat16": ("BF16", "bf16")}
        needed, hint = hints.get(precision, ("FP32", "f32"))
        able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        options["INFERENCE_PRECISION_HINT"] = hint if needed in able else "f32"
    compiled = core.compile_model(model, "CPU", options)
    dtypes = {"f32": "float32", "u8": "uint8"}

    def spec(tensor: Any) -> Spec:
        name = tensor.element_type.get_type_name()
        shape = tensor.partial_shape
        if shape.rank.is_dynamic:
            return None, name
        sizes = [n.get_length() if n.is_static else None for n in shape]
        return sizes, dtypes.get(name, name)

    return Loaded(
        metadata,
        [spec(one) for one in model.inputs],
        [spec(one) for one in model.outputs],
        lambda images: compiled(images)[0],
    )
