"""Writes OpenVINO's two files."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..spec.card import METADATA_KEY
from .job import Job, quiet
from .onnx import graph

if TYPE_CHECKING:
    import openvino


def write(job: Job, path: Path) -> None:
    import openvino

    # `convert_model` folds what is between a kernel and its convolution into the kernel. As
    # `Core.read_model` leaves it, depthwise convolutions stay in floats when the rest is quantised,
    # and it takes 1.4 x the time.
    model = openvino.convert_model(io.BytesIO(graph(job).SerializeToString()))
    model.input(0).set_names({"images"})
    if job.about.precision == "int8":
        model = _quantised(job, model)
    model.set_rt_info(job.about.to_json(), METADATA_KEY)
    compress = job.about.precision in ("float16", "bfloat16")
    openvino.save_model(model, os.fspath(path), compress_to_fp16=compress)
    # A seventh of the text is indentation.
    path.write_text("\n".join(map(str.strip, path.read_text("utf-8").splitlines())), "utf-8")


def _quantised(job: Job, model: openvino.Model) -> openvino.Model:
    import nncf

    batches = list(job.batches())
    with quiet():
        return nncf.quantize(
            model,
            nncf.Dataset(batches),
            subset_size=len(batches),
            # Of the products and sums between convolutions only the precision would go down.
            ignored_scope=nncf.IgnoredScope(types=["Multiply", "Add"], validate=False),
        )
