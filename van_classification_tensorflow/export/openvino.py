"""Writes OpenVINO's two files."""

from __future__ import annotations

import os
from pathlib import Path

from ..engines.quantised import openvino_model, quantised_openvino
from ..spec.card import METADATA_KEY
from .job import Job
from .onnx import graph


def write(job: Job, path: Path) -> None:
    import openvino

    model = openvino_model(graph(job).SerializeToString())
    if job.about.precision == "int8":
        model = quantised_openvino(model, job.batches)
    model.set_rt_info(job.about.to_json(), METADATA_KEY)
    compress = job.about.precision in ("float16", "bfloat16")
    openvino.save_model(model, os.fspath(path), compress_to_fp16=compress)
    # A seventh of the text is indentation.
    path.write_text("\n".join(map(str.strip, path.read_text("utf-8").splitlines())), "utf-8")
