"""The segmenter that `tests/golden/seg_infer.npz` was made with, and what is there."""

import json
from functools import cache

import numpy as np

from tests.parity import GOLDEN, MICRO, seeded_images, seeded_tensor
from van_classification_tensorflow import VANSegmenter
from van_classification_tensorflow.segment.load import load_segmenter, tensors_of

SIZES = {key: MICRO[key] for key in ("embed_dims", "mlp_ratios", "depths")}


@cache
def golden():
    """{name: array} of mmsegmentation's inference, metrics and resizing."""
    with np.load(GOLDEN / "seg_infer.npz", allow_pickle=False) as file:
        return dict(file)


@cache
def numbers():
    """Metrics of mmsegmentation, and the sizes that it rescales to."""
    return json.loads((GOLDEN / "seg_infer.json").read_text())


@cache
def model():
    """UPerNet on a micro VAN, 7 classes, with the seeded weights."""
    made = VANSegmenter(
        **SIZES, decoder="upernet", channels=32, num_classes=7, data_format="channels_last"
    )
    shapes = {name: array.shape for name, array in tensors_of(made).items()}
    return load_segmenter(made, {n: seeded_tensor(n, s) for n, s in shapes.items()})


def run(images):
    """The model as a plain function, without a graph."""
    return np.asarray(model()(images, training=False))


def picture():
    """(75, 131, 3), normalised."""
    return seeded_images(2, (1, 75, 131, 3))[0]
