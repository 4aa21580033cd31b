"""What a training run does, as one record: the authors' recipe and those made from it.

Imports neither Keras nor a backend.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from numbers import Real
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ..datasets.digits import MODEL as DIGITS_MODEL
from ..datasets.digits import PREPROCESSING as DIGITS_PREPROCESSING
from ..spec.config import CONFIGURATIONS, VANConfig, entries, min_image_size, resolve
from ..spec.preprocessing import Preprocessing
from ..support.extras import missing
from ..support.options import option

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
_BALANCED = ("balanced", lambda v: v == "balanced")

# Of the authors' training commands; B4-B6 from OpenMixup's.
_DROP_PATH_RATES = {
    "van_b0": 0.1,
    "van_b1": 0.1,
    "van_b2": 0.1,
    "van_b3": 0.2,
    "van_b4": 0.2,
    "van_b5": 0.2,
    "van_b6": 0.3,
}


# --- Checks ---

_SHARE = ("in [0, 1]", lambda v: 0 <= v <= 1)
_RATE = ("in [0, 1)", lambda v: 0 <= v < 1)
_ABOVE = ("above 0", lambda v: v > 0)
_LEAST_0 = ("at least 0", lambda v: v >= 0)
_LEAST_1 = ("at least 1", lambda v: v >= 1)
_PAIR = ("two numbers above 0, the smaller first", lambda v: len(v) == 2 and 0 < v[0] <= v[1])
_MODELS = (f"one of {', '.join(CONFIGURATIONS)}", CONFIGURATIONS.__contains__)
_PRECISIONS = (f"one of {', '.join(PRECISIONS)}", PRECISIONS.__contains__)


def _typed(name: str, value: Any, kind: Any) -> Any:
    """`value` as the field's type; a number may come as text, as YAML reads 1e-3."""
    options = get_args(kind)
    if type(None) in options:
        if value is None:
            return None
        kind = options[0]
    if inner := get_args(kind):  # tuple[inner, ...]
        items = tuple(_typed(name, item, inner[0]) for item in entries(value))
        if not items:
            raise _not_allowed(name, f"a list, each item {_WORDS[inner[0]]}", value)
        return items
    if kind in (int, float) and isinstance(value, (Real, str)) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            raise _not_allowed(name, _WORDS[kind], value) from None
        if math.isfinite(number) and (kind is float or number.is_integer()):
            return kind(number)
    elif kind in (str, bool) and isinstance(value, kind):
        return value
    raise _not_allowed(name, _WORDS[kind], value)


_WORDS = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}


def _not_allowed(name: str, allowed: str, value: Any) -> ValueError:
    return ValueError(f"`{name}` must be {allowed}. Received: {name}={value!r}")


def check_input_size(received: int, num_stages: int) -> None:
    """Raises `ValueError` where a model of so many stages needs larger pictures."""
    if received < (least := min_image_size(num_stages)):
        raise _not_allowed("input_size", f"at least {least} for this model", received)


def _unknown(name: str, known: list[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}"
    return f"A recipe has no `{name}`; {hint}"


# --- The record ---


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides how a model is trained. The defaults are the authors' for ImageNet.

    Authors' train.py and train.sh with timm 0.4.12; VAN paper, Section 4.1.

    Each field says what it is, which is why this is long; it is an option of `van train` and a
    key of a recipe's YAML file.

    Raises:
        ValueError: A value is not allowed, or two do not fit together; says which and why.
    """

    # Model
    model: str | None = option(
        "van_b0 ... van_b6; none: the sizes of the lists, or of the pretrained weights.",
        "van_b0",
        limit=_MODELS,
    )
    embed_dims: tuple[int, ...] | None = option(
        "Channels of each stage, instead of the model's.", None
    )
    mlp_ratios: tuple[float, ...] | None = option(
        "Hidden channels of each stage's MLP, as a multiple of embed_dims.", None
    )
    depths: tuple[int, ...] | None = option("Blocks of each stage, instead of the model's.", None)
    pretrained: str | None = option(
        "Weights to start from: imagenet, in22k, another name of `van weights list`, or a "
        "file. Where the classes are others, the head starts anew.",
        None,
        nargs="?",
        const="imagenet",
    )
    head_scale: float = option(
        "Factor of a fresh head's initial weights, above 0.", 1.0, limit=_ABOVE
    )
    freeze: int = option(
        "Stages, from the first, whose weights stay as they are; all of them: only the head "
        "learns.",
        0,
        limit=_LEAST_0,
    )
    # Input
    input_size: int | None = option(
        "Side of the square input in pixels; none: the pretrained weights' own.", 224
    )
    crop_pct: float | None = option(
        "In evaluation, the centre crop's share of the resized shorter side; none likewise.", 0.9
    )
    interpolation: str | None = option("In evaluation, Pillow's filter; none likewise.", "bicubic")
    mean: tuple[float, ...] | None = option(
        "Taken from each channel after scaling to [0, 1]; one number for grey pictures, three "
        "for RGB. none: the pretrained weights' own, or 0.5.",
        None,
    )
    std: tuple[float, ...] | None = option(
        "What each channel is then divided by; none: as for `mean`.", None
    )
    # Schedule and optimizer
    epochs: int = option(
        "Passes over the pictures before the cool-down, warm-up included.", 300, limit=_LEAST_1
    )
    warmup_epochs: int = option(
        "Epochs, of `epochs`, in which the learning rate rises. Where a recipe is made shorter, at "
        "most a quarter of them, or one of two or three.",
        5,
        limit=_LEAST_0,
    )
    cooldown_epochs: int = option("Further passes at the lowest learning rate.", 10, limit=_LEAST_0)
    batch_size: int = option("Pictures of one update, over all devices.", 1024, limit=_LEAST_1)
    accumulation_steps: int = option(
        "Parts that such a batch goes through the model in, one after the other, to need less "
        "memory; batch norm sees a part at a time.",
        1,
        limit=_LEAST_1,
    )
    learning_rate: float = option(
        "Learning rate at the top of the cosine, for this batch size.", 1e-3, limit=_ABOVE
    )
    min_learning_rate: float = option(
        "Learning rate at the end of the cosine.", 1e-6, limit=_LEAST_0
    )
    warmup_learning_rate: float | None = option(
        "Learning rate in the first epoch of the warm-up; none: one of equal steps up to the "
        "top, so that no epoch goes by almost unused.",
        1e-6,
        limit=_LEAST_0,
    )
    epsilon: float = option(
        "Added by AdamW to the root of the mean square of a gradient, above 0; timm's --opt-eps.",
        1e-8,
        limit=_ABOVE,
    )
    weight_decay: float = option(
        "Decoupled weight decay, on tensors of two dimensions and more.", 0.05, limit=_LEAST_0
    )
    layer_decay: float = option(
        "Factor of the learning rate from each block to the one before, in (0, 1].",
        1.0,
        limit=("in (0, 1]", lambda v: 0 < v <= 1),
    )
    clip_norm: float | None = option(
        "Largest norm of the whole gradient; None: as it is.", None, limit=_ABOVE
    )
    # Classes of different sizes
    class_weights: str | None = option(
        "balanced: a picture counts n / (k * n_c) in the loss, of n pictures of k classes "
        "with n_c of its own, so that each class counts the same; none: each picture.",
        None,
        limit=_BALANCED,
    )
    sampling: str | None = option(
        "balanced: each class is shown equally often, pictures of small ones several times an "
        "epoch; none: each picture once.",
        None,
        limit=_BALANCED,
    )
    # Augmentation and regularisation
    label_smoothing: float = option(
        "Share of the target spread over all classes, in [0, 1).", 0.1, limit=_RATE
    )
    mixup: float = option("Alpha of mixup's Beta distribution; 0: none.", 0.8, limit=_LEAST_0)
    cutmix: float = option("Alpha of CutMix's Beta distribution; 0: none.", 1.0, limit=_LEAST_0)
    mix_probability: float = option("Share of the batches that are mixed.", 1.0, limit=_SHARE)
    mix_switch: float = option(
        "Share of those that CutMix takes, where both are on.", 0.5, limit=_SHARE
    )
    rand_augment: str | None = option(
        "RandAugment in timm's spelling; None: none.", "rand-m9-mstd0.5-inc1"
    )
    crop_scale: tuple[float, ...] = option(
        "Least and largest area of the random crop, as shares of the picture.",
        (0.08, 1.0),
        limit=_PAIR,
    )
    crop_ratio: tuple[float, ...] = option(
        "Least and largest width / height of the random crop.", (3 / 4, 4 / 3), limit=_PAIR
    )
    crop_interpolations: tuple[str, ...] = option(
        "Pillow's filters, one of which resizes a crop, at random.", ("bilinear", "bicubic")
    )
    horizontal_flip: float = option("Probability of a horizontal flip.", 0.5, limit=_SHARE)
    vertical_flip: float = option("Probability of a vertical flip.", 0.0, limit=_SHARE)
    erasing: float = option("Probability of random erasing.", 0.25, limit=_SHARE)
    drop_rate: float = option("Dropout in the MLPs, in [0, 1).", 0.0, limit=_RATE)
    drop_path_rate: float | None = option(
        "Stochastic depth of the last block, in [0, 1); None: the authors' for the model, 0.1 "
        "for one of your own.",
        None,
        limit=_RATE,
    )
    # The run
    average_decay: float | None = option(
        "Decay of the moving average of all weights, which is then what is kept; None: no average.",
        None,
        limit=("in (0, 1)", lambda v: 0 < v < 1),
    )
    early_stopping: int | None = option(
        "Epochs without a better validation accuracy before the run ends; None: never.",
        None,
        limit=_LEAST_1,
    )
    validation_split: float = option(
        "Share of the pictures kept for validation, where the data has no validation folder.",
        0.2,
        limit=("in (0, 1)", lambda v: 0 < v < 1),
    )
    precision: str = option(
        "float32, mixed_bfloat16 or mixed_float16.", "float32", limit=_PRECISIONS
    )
    remat: bool = option(
        "Recompute each block in the backward pass: less memory, more time.", False
    )
    steps_per_execution: int = option(
        "Batches that TensorFlow runs without coming back to Python.", 1, limit=_LEAST_1
    )
    devices: int = option("Local GPUs to use; 0: all there are.", 1, limit=_LEAST_0)
    deterministic: bool = option(
        "TensorFlow's deterministic kernels, which an exact resumption needs on a GPU.", True
    )
    max_corrupt: int = option(
        "Pictures that may be unreadable; one more ends the run.", 0, limit=_LEAST_0
    )
    workers: int = option(
        "Threads that decode and augment, in each process; 0: they fill the cores.",
        0,
        limit=_LEAST_0,
    )
    processes: int = option(
        "Processes that decode and augment, for machines with more cores than Python's threads "
        "can use; 0: the training process itself.",
        0,
        limit=_LEAST_0,
    )
    snapshot_seconds: float = option(
        "Time between two snapshots that a stopped run goes on from; longer where writing one "
        "takes more than a fiftieth of it. 0: after every step.",
        60.0,
        limit=_LEAST_0,
    )
    seed: int = option(
        "Of weights, split, order and augmentation.",
        0,
        limit=("from 0 to 2^32 - 1", lambda v: 0 <= v < 2**32),
    )

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for field in fields(self):
            value = _typed(field.name, getattr(self, field.name), kinds[field.name])
            object.__setattr__(self, field.name, value)
            limit = field.metadata["option"].limit
            if value is not None and limit is not None and not limit[1](value):
                raise _not_allowed(field.name, limit[0], value)
        _check_together(self)
        sizes = self.config()
        if sizes is not None and self.input_size is not None:
            check_input_size(self.input_size, sizes.num_stages)
        self.preprocessing()  # whose errors name the argument

    # --- What it means ---

    def config(self) -> VANConfig | None:
        """The sizes of the model; None where the pretrained weights say some of them."""
        lists = (self.embed_dims, self.mlp_ratios, self.depths)
        if self.model is None and self.pretrained is not None and None in lists:
            return None
        return resolve(self.model, *lists)

    def preprocessing(self, default: Preprocessing | None = None) -> Preprocessing:
        """How a picture becomes the input in evaluation; `default`: of the pretrained weights."""
        known = default or Preprocessing()
        names = ("input_size", "crop_pct", "interpolation", "mean", "std")
        mine = {name: getattr(self, name) for name in names}
        return replace(known, **{name: value for name, value in mine.items() if value is not None})

    def drop_path(self, model: str | None) -> float:
        """`drop_path_rate`, or the authors' for a member of the family."""
        known = _DROP_PATH_RATES.get(model or "", 0.1)
        return known if self.drop_path_rate is None else self.drop_path_rate

    @property
    def total_epochs(self) -> int:
        return self.epochs + self.cooldown_epochs

    # --- As text ---

    def with_(self, **changes: Any) -> Recipe:
        """A copy with other values; fewer `epochs` get a shorter warm-up, unless it is given.

        Raises:
            ValueError: There is no such field, or the value is not allowed.
        """
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                raise ValueError(_unknown(name, known))
        if "epochs" in changes and "warmup_epochs" not in changes:
            epochs = _typed("epochs", changes["epochs"], int)
            if epochs < self.epochs:
                most = epochs // 4 if epochs >= 4 else int(epochs > 1)
                changes["warmup_epochs"] = min(self.warmup_epochs, most)
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """As YAML and JSON can hold it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_dict`; what is left out has its default.

        Raises:
            ValueError: A key is unknown, or a value not allowed.
        """
        return cls().with_(**{str(name): value for name, value in record.items()})

    def __str__(self) -> str:
        import yaml

        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def differences(self, other: Recipe) -> dict[str, tuple[Any, Any]]:
        """{field: (mine, the other's)} where they differ."""
        mine, theirs = self.to_dict(), other.to_dict()
        return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}


def _check_together(recipe: Recipe) -> None:
    """Raises `ValueError` where values that are allowed do not fit together."""
    if recipe.batch_size % recipe.accumulation_steps:
        raise ValueError(
            "`batch_size` must be a multiple of `accumulation_steps`. Received: "
            f"batch_size={recipe.batch_size}, accumulation_steps={recipe.accumulation_steps}"
        )
    if recipe.warmup_epochs > recipe.epochs:
        raise ValueError(
            "`warmup_epochs` are the first of `epochs`: there cannot be more of them. "
            f"Received: warmup_epochs={recipe.warmup_epochs}, epochs={recipe.epochs}"
        )
    if recipe.class_weights and recipe.sampling:
        raise ValueError(
            "`class_weights` and `sampling` both make up for classes of different sizes; leave "
            "one of them out"
        )
    if (recipe.mean is None) != (recipe.std is None):
        raise ValueError(
            f"`mean` and `std` go together. Received: mean={recipe.mean}, std={recipe.std}"
        )
    if recipe.crop_scale[1] > 1:
        raise _not_allowed("crop_scale", "shares of the picture, at most 1", recipe.crop_scale)
    if recipe.clip_norm is not None and recipe.devices > 1:
        raise ValueError(
            "`clip_norm` with several `devices` would clip each device's gradient before they "
            "are added, which is not the same; leave one of them out (--clip-norm none)"
        )
    if recipe.accumulation_steps > 1 and recipe.devices > 1:
        raise ValueError(
            "`accumulation_steps` do not work with several `devices`; leave one of them out"
        )
    if recipe.steps_per_execution > 1 and recipe.average_decay is not None:
        raise ValueError(
            "`average_decay` moves the average after every batch, `steps_per_execution` comes "
            "back from TensorFlow more seldom; leave one of them out"
        )
    if recipe.steps_per_execution > 1 and recipe.devices > 1:
        raise ValueError(
            "`steps_per_execution` with several `devices` would hide the step in which a run "
            "fails; leave one of them out"
        )


# --- Recipes with a name ---

_NO_MIXING: dict[str, Any] = {"mixup": 0.0, "cutmix": 0.0}

RECIPES: dict[str, Recipe] = {
    # The authors': 8 x 128 pictures, 310 epochs; published accuracy of van_b0: 75.4 %.
    # van train --data imagenet --recipe imagenet --model van_b0 --devices 8 --output runs/b0
    "imagenet": Recipe(),
    # From published weights to classes of one's own, also with a few hundred pictures.
    # van train --data flowers --model van_b0 --pretrained --output runs/flowers
    "finetune": Recipe(
        pretrained="imagenet",
        input_size=None,
        crop_pct=None,
        interpolation=None,
        epochs=30,
        warmup_epochs=3,
        cooldown_epochs=0,
        batch_size=32,
        learning_rate=5e-4,
        warmup_learning_rate=None,
        layer_decay=0.8,
        clip_norm=1.0,
        **_NO_MIXING,
        rand_augment="rand-m7-mstd0.5-inc1",
        crop_scale=(0.35, 1.0),
        erasing=0.0,
        average_decay=0.99,
        early_stopping=10,
    ),
    # The authors' from ImageNet-22k to ImageNet-1k.
    # van train --data imagenet --recipe in22k-to-1k --model van_b4 --output runs/b4
    "in22k-to-1k": Recipe(
        model="van_b4",
        pretrained="in22k",
        head_scale=1e-3,
        epochs=30,
        batch_size=512,
        learning_rate=5e-5,
        weight_decay=1e-8,
        **_NO_MIXING,
    ),
    # Scaled down to the bundled digits: minutes on two cores.
    # van train --data digits --output runs/digits
    "digits": Recipe(
        model=None,
        embed_dims=tuple(DIGITS_MODEL["embed_dims"]),
        mlp_ratios=tuple(DIGITS_MODEL["mlp_ratios"]),
        depths=tuple(DIGITS_MODEL["depths"]),
        input_size=DIGITS_PREPROCESSING.input_size,
        crop_pct=DIGITS_PREPROCESSING.crop_pct,
        interpolation=DIGITS_PREPROCESSING.interpolation,
        mean=DIGITS_PREPROCESSING.mean,
        std=DIGITS_PREPROCESSING.std,
        epochs=35,
        warmup_epochs=3,
        cooldown_epochs=0,
        batch_size=64,
        learning_rate=2e-3,
        warmup_learning_rate=None,
        mixup=0.2,
        cutmix=0.0,
        mix_probability=0.5,
        rand_augment="rand-m5-n1-mstd0.5-inc1",
        crop_scale=(0.7, 1.0),
        horizontal_flip=0.0,  # digits have a left and a right
        erasing=0.1,
        average_decay=0.995,
    ),
}


def find_recipe(name: str) -> Recipe:
    """A named recipe, or one from a YAML file.

    Args:
        name: A key of `RECIPES`, or a path that ends in .yaml or .yml. A file holds the fields
            that differ from the authors' recipe; with `recipe: NAME`, from that one.

    Raises:
        ValueError: There is no such recipe, or the file is not one.
        OSError: The file cannot be read.
    """
    if name in RECIPES:
        return RECIPES[name]
    if not name.endswith((".yaml", ".yml")):
        raise ValueError(
            f"`recipe` must be one of {', '.join(RECIPES)}, or a file that ends in .yaml. "
            f"Received: recipe={name!r}"
        )
    record = read_yaml(Path(name))
    base = record.pop("recipe", "imagenet")
    try:
        if isinstance(base, Mapping):  # the config.yaml of a run
            if more := sorted(set(map(str, record)) - {"data", "made_with"}):
                raise ValueError(f"beside `recipe` there is also {', '.join(more)}: put it inside")
            return Recipe.from_dict(base)
        if not isinstance(base, str) or base not in RECIPES:
            raise ValueError(f"`recipe` must be one of {', '.join(RECIPES)}. Received: {base!r}")
        return RECIPES[base].with_(**{str(key): value for key, value in record.items()})
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def choose_recipe(name: str | None, data: str | None, changes: Mapping[str, Any]) -> Recipe:
    """The recipe that a command line means.

    Args:
        name: As in `find_recipe`; None: "finetune" from pretrained weights, "digits" for
            these, else "imagenet".
        data: What is trained on.
        changes: Fields with other values.

    Raises:
        ValueError: As `find_recipe` and `Recipe`.
    """
    start = changes.get("pretrained")
    if name is None:
        name = "finetune" if start else "digits" if data == "digits" else "imagenet"
    if start not in (None, "imagenet", "in22k") and "model" not in changes:
        changes = {**changes, "model": None}  # the weights say which
    return find_recipe(name).with_(**changes)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; nothing in it is executed."""
    require_yaml()
    import yaml

    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML file: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} must hold fields of a recipe, such as `epochs: 100`")
    return record


def require_yaml() -> None:
    """Fails with the install hint."""
    try:
        import yaml  # noqa: F401 - only to see whether it is there
    except ImportError as error:
        raise missing("Training", "PyYAML", "train") from error
