"""What stands in a reader's folder for the files that the pages name: small, made on the spot.

The weights of the catalogue lie in a cache, as if they had been downloaded: random ones, under the
names of sources without a published hash.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from tests import tiny_artefacts
from tests.parity import GOLDEN, SMALL, seeded_tensor
from tests.stand_in_hub import Hub
from van_classification_tensorflow import VAN, cli
from van_classification_tensorflow.benchmark.measure import write_safetensors
from van_classification_tensorflow.spec.architecture import Architecture
from van_classification_tensorflow.spec.config import CONFIGURATIONS, VANConfig
from van_classification_tensorflow.weights.catalogue import CATALOGUE
from van_classification_tensorflow.weights.formats.torch import write_torch

# Names that a page takes for granted, as of a model that its reader has.
GIVEN = {
    "hubs": "import keras, keras_hub, van_classification_tensorflow",
    "keras-hub": "import numpy as np; rng = np.random.default_rng(0); "
    "pictures = rng.integers(0, 256, (8, 64, 64, 3)).astype('float32'); "
    "labels = np.arange(8) % 2; masks = rng.integers(0, 3, (8, 64, 64)); "
    "boxes = np.tile(np.float32([[[8, 8, 40, 40]]]), (8, 1, 1)); classes = labels[:, None]",
    "segment": "paths = ['photos/0.jpg', 'my_1x.h5']",
    "predict": "from van_classification_tensorflow import VAN; model = VAN(pretrained='digits')",
    "weights": "from tests.parity import MICRO; from van_classification_tensorflow import VAN; "
    "model = VAN(**MICRO)",
}
# Files of the golden set: one VAN of 10 classes in the namings of others.
MICRO = {
    "my_finetuned.pth": "micro_official_legacy.pth.tar",
    "checkpoint.pth.tar": "micro_official.pth.tar",
    "van_base_828.pth.tar": "micro_official.pth.tar",
    "my_1x.h5": "micro_seed.h5",
    "my_van_hf": "micro_hf",
    "upernet_van_b2.pth": "seg_upernet_micro_mmseg0.pth",  # a segmenter of 7 classes
}
CACHED = ("van_b0.in1k", "van_b1.in1k")


def fill(folder: Path) -> None:
    """Everything but the cache."""
    for name, golden in MICRO.items():
        copy = shutil.copytree if (GOLDEN / golden).is_dir() else shutil.copyfile
        copy(GOLDEN / golden, folder / name)
    rng = np.random.default_rng(0)
    for name in ("cat.jpg", "dog.png", "a.jpg", "b.png", "picture.png", "street.jpg", *_photos()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _picture(rng).save(folder / name)
    for place in ("flowers", "imagenet/train", "imagenet/val"):
        classes = ("daisy", "rose", "tulip") if place == "flowers" else ("n01440764", "n02123045")
        for shade, label in enumerate(classes):
            (folder / place / label).mkdir(parents=True)
            for number in range(8 if place == "flowers" else 2):
                _picture(rng, 60 + 60 * shade).save(folder / place / label / f"{number}.jpg")
    (folder / "ade" / "annotations").mkdir(parents=True)
    shutil.copytree(folder / "photos", folder / "ade" / "images")
    for path in (folder / "ade" / "images").iterdir():
        truth = Image.fromarray(rng.integers(0, 8, (56, 72), np.uint8))
        truth.save(folder / "ade" / "annotations" / f"{path.stem}.png")
    _picture(rng).save(folder / "aerial.tif")
    for name in (".local/share/bash-completion/completions", ".zfunc", ".config/fish/completions"):
        (folder / name).mkdir(parents=True)
    digits = VAN(pretrained="digits")  # trained, so that int8 can be compared
    for name in ("my_van.keras", "my_model.keras"):
        digits.save(folder / name)
    write_safetensors(folder / "small.safetensors", _tensors(**SMALL), {})
    weights = tiny_artefacts.random_weights(32 * 32 * 3)
    made = tiny_artefacts.build(folder, "onnx", weights, tiny_artefacts.about())
    made.rename(folder / "model.onnx")


def _photos() -> list[str]:
    return [f"photos/{number}.jpg" for number in range(4)]


def _picture(rng: np.random.Generator, shade: int = 128) -> Image.Image:
    """72 x 56 with some structure."""
    coarse = rng.integers(0, 60, (7, 9, 3), np.uint8) + shade
    return Image.fromarray(coarse.clip(0, 255).astype(np.uint8)).resize((72, 56))


def fill_cache(folder: Path) -> None:
    """Random weights of `CACHED`, in the authors' naming and PyTorch's format."""
    for name in CACHED:
        record = CATALOGUE[name]
        source = next(s for s in record.sources if s.url.endswith(".pth.tar"))
        (folder / name).mkdir(parents=True)
        config = asdict(CONFIGURATIONS[record.configuration])
        write_torch(folder / name / source.file, _tensors(**config, num_classes=1000))


def _tensors(embed_dims, mlp_ratios, depths, num_classes) -> dict[str, np.ndarray]:
    config = VANConfig(embed_dims, mlp_ratios, depths)
    sizes = Architecture(config.embed_dims, config.hidden_dims, config.depths, 3, num_classes)
    return {name: seeded_tensor(name, one.shape) for name, one in sizes.tensors().items()}


def fill_hub(hub: Hub, folder: Path) -> None:
    """The folder USER/NAME of a hub, with a revision v1, as `van push` makes it."""
    made = folder / "pushed"
    command = ["push", "hf://USER/NAME", "--weights", str(folder / "my_finetuned.pth")]
    cli.main([*command, "--output", str(made)])
    files = {path.name: path.read_bytes() for path in made.iterdir()}
    for branch in ("v1", "main"):
        hub.put("USER/NAME", files, branch)
    shutil.rmtree(made)
