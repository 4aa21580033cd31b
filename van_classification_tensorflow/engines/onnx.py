"""ONNX files, by ONNX Runtime."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..spec.card import METADATA_KEY
from ..support.extras import missing
from .protocol import Loaded, Spec


def load(path: Path, threads: int | None) -> Loaded:
    try:
        import onnxruntime
    except ImportError as error:
        raise missing("this file", "onnxruntime", "onnx", error) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    # Its threads spin between operators, not after a picture, at the cost of the decoders.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 4  # what fails is raised as well
    session = onnxruntime.InferenceSession(
        os.fspath(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
    )
    dtypes = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}

    def spec(tensor: Any) -> Spec:
        return list(tensor.shape), dtypes.get(tensor.type, tensor.type)

    inputs = session.get_inputs()
    return Loaded(
        session.get_modelmeta().custom_metadata_map.get(METADATA_KEY),
        [spec(one) for one in inputs],
        [spec(one) for one in session.get_outputs()],
        lambda images: session.run(None, {inputs[0].name: images})[0],
        shared=True,
    )
