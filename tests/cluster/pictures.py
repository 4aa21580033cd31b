"""Pictures for runs on a cluster: many, tiny, in the folders of their classes."""

from __future__ import annotations

import numpy as np
from PIL import Image

from van_classification_tensorflow.datasets.digits import load_digits


def write_digits(folder, count):
    """Writes so many digits, each a file of its own, in a folder for each class."""
    _, test = load_digits()
    for number in range(count):
        which = number % len(test.pixels)
        pixels = (test.pixels[which].astype(float) * 255 / 16).round().astype(np.uint8)
        place = folder / str(int(test.labels[which]))
        place.mkdir(exist_ok=True)
        # No two are alike: a record at the wrong place would be seen.
        pixels[0, 0] = number // len(test.pixels)
        Image.fromarray(pixels).save(place / f"{number:05}.png")
    return folder
