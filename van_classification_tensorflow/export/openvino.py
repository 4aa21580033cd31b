"""Writes OpenVINO's two files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..engines.quantised import openvino_model, quantised_openvino
from ..spec.card import METADATA_KEY
from .job import Job
from .onnx import graph

if TYPE_CHECKING:
    import openvino


def write(job: Job, path: Path) -> None:
    model = openvino_model(graph(job).SerializeToString())
    if job.about.precision == "int8":
        model = quantised_openvino(model, job.batches)
    compress = job.about.precision in ("float16", "bfloat16")
    save(model, job.about.to_json(), path, compress)


def save(model: openvino.Model, metadata: str, path: Path, compress: bool) -> None:
    """Writes the two files.

    Args:
        model: What they hold.
        metadata: What they say of themselves.
        path: Of the .xml; the .bin lies beside it.
        compress: Numbers in float16.
    """
    import openvino

    model.set_rt_info(metadata, METADATA_KEY)
    openvino.save_model(model, os.fspath(path), compress_to_fp16=compress)
    # A seventh of the text is indentation.
    path.write_text("\n".join(map(str.strip, path.read_text("utf-8").splitlines())), "utf-8")
