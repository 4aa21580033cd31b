"""Rebuilds the bundled weights `van_classification_tensorflow/assets/digits.safetensors`.

    python scripts/make_digits_weights.py [FOLDER OF AN EARLIER `van demo`]

Trains the demo's model (`van demo`, seed 0) and stores what it saved under the authors' tensor
names, with the labels and the preprocessing that it carries.
"""

import sys
import tempfile
from pathlib import Path

from van_classification_tensorflow.export.convert import describe, write_safetensors
from van_classification_tensorflow.train import demo
from van_classification_tensorflow.train.request import DemoRequest
from van_classification_tensorflow.weights.pretrained import open_pretrained

TARGET = Path(demo.__file__).parents[1] / "assets" / "digits.safetensors"


def main(folder: Path) -> None:
    if not (folder / "model.keras").is_file():
        demo.run(DemoRequest(output=folder))
    opened = open_pretrained(folder / "model.keras")
    write_safetensors(TARGET, opened.weights.tensors, describe(opened))
    print(f"{TARGET}: {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
