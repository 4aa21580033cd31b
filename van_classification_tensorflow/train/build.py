"""What a recipe is made of: model, optimizer, schedule, loss, batches.

`train` puts them together; the same in Python, in Keras's own words:

    recipe = RECIPES["finetune"].with_(model="van_b1", epochs=20)
    pictures, validation = open_data("flowers")
    model = build_model(recipe, pictures.classes)
    model.compile(make_optimizer(recipe, model), make_loss(), metrics=["accuracy"])
    batches = make_batches(recipe, model, pictures)
    model.fit(
        make_dataset(batches, model),
        steps_per_epoch=batches.steps_per_epoch,
        epochs=recipe.total_epochs,
        shuffle=False,  # the batches are shuffled already
        callbacks=[LearningRate(make_schedule(recipe))],
    )
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from ..datasets.training import Pictures
from ..model.van import VAN
from ..spec.labels import labels_of
from ..spec.preprocessing import Preprocessing
from ..weights.pretrained import Pretrained, open_pretrained
from .augment import BatchTransform, TrainTransform
from .batches import TrainingBatches
from .optim import AdamW, CosineSchedule, layer_scales
from .recipe import Recipe, check_input_size


def build_model(recipe: Recipe, classes: Sequence[str], source: Pretrained | None = None) -> VAN:
    """The model to train: logits out, labels and preprocessing attached.

    Args:
        recipe: Names sizes, weights to start from and what is frozen.
        classes: Names of the classes, in the order of the outputs. Where they are the classes of
            the pretrained weights, in the same order, the head is kept; else it starts anew.
        source: The weights to start from, where they have been opened already.

    Raises:
        ValueError: The recipe does not fit the weights or the classes.
        OSError: The pretrained weights cannot be had.
    """
    labels = class_labels(classes)
    source = source or open_pretrained(recipe.pretrained, recipe.model)
    of_weights = None if source is None else source.weights.architecture.configuration
    with warnings.catch_warnings():
        if recipe.pretrained:  # a fresh head was asked for; what is not taken, the run says
            warnings.filterwarnings(
                "ignore", message=".*(head|cannot be taken)", category=UserWarning
            )
        model = VAN(
            recipe.model,
            in_chans=None if recipe.mean is None else len(recipe.mean),
            num_classes=len(classes),
            embed_dims=recipe.embed_dims,
            mlp_ratios=recipe.mlp_ratios,
            depths=recipe.depths,
            drop_rate=recipe.drop_rate,
            drop_path_rate=recipe.drop_path(recipe.model or of_weights),
            classifier_activation=None,
            data_format="channels_last",
            pretrained=source or False,
            dtype=recipe.precision,
        )
    if source is None or why_fresh(source, labels):
        head = model.get_layer("head")
        kernel = keras.random.normal(head.kernel.shape, stddev=0.02, seed=recipe.seed)
        head.kernel.assign(recipe.head_scale * kernel)
        head.bias.assign(keras.ops.zeros(head.bias.shape))
    model.labels = labels
    known = model.preprocessing or Preprocessing().with_channels(model.in_chans)
    model.preprocessing = recipe.preprocessing(known)
    check_input_size(model.preprocessing.input_size, model.num_stages)
    if recipe.freeze > model.num_stages:
        raise ValueError(
            f"`freeze` must be a number of stages, at most {model.num_stages}. "
            f"Received: freeze={recipe.freeze}"
        )
    for stage in range(1, recipe.freeze + 1):
        for layer in model.layers:
            if layer.name.startswith((f"patch_embed{stage}", f"block{stage}_", f"norm{stage}")):
                layer.trainable = False
    if recipe.remat:
        model.remat = True
    return model


def why_fresh(source: Pretrained, labels: Sequence[str]) -> str:
    """Why the head of the weights is not that of a model with these labels; "" where it is."""
    count = source.weights.architecture.num_classes
    if count != len(labels):
        return "theirs has none" if count is None else f"theirs is of {count:,} classes"
    if source.card.labels is None:
        return "theirs names no classes"
    theirs = [label.text for label in labels_of(source.card.labels, count)]
    if theirs == list(labels):
        return ""
    same = sorted(theirs) == sorted(labels)
    return "theirs has the classes in another order" if same else "theirs is of other classes"


def class_labels(classes: Sequence[str]) -> tuple[str, ...]:
    """What the classes are called: ImageNet's words where all are its WordNet ids."""
    by_wnid = {label.wnid: label.text for label in labels_of("imagenet1k", 1000)}
    return tuple(by_wnid[c] for c in classes) if set(classes) <= set(by_wnid) else tuple(classes)


def make_optimizer(recipe: Recipe, model: VAN) -> AdamW:
    """The authors' AdamW, with layer-wise learning rates, clipping and accumulation if asked."""
    several = recipe.accumulation_steps > 1
    scales = layer_scales(model, recipe.layer_decay) if recipe.layer_decay < 1 else None
    return AdamW(
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        epsilon=recipe.epsilon,
        learning_rate_scales=scales,
        global_clipnorm=recipe.clip_norm,
        gradient_accumulation_steps=recipe.accumulation_steps if several else None,
    )


def make_schedule(recipe: Recipe) -> CosineSchedule:
    """Learning rate of each epoch."""
    first = recipe.warmup_learning_rate
    return CosineSchedule(
        learning_rate=recipe.learning_rate,
        epochs=recipe.epochs,
        warmup_epochs=recipe.warmup_epochs,
        cooldown_epochs=recipe.cooldown_epochs,
        min_learning_rate=recipe.min_learning_rate,
        warmup_learning_rate=recipe.learning_rate / (recipe.warmup_epochs + 1)
        if first is None
        else first,
    )


def make_loss() -> keras.losses.Loss:
    """Cross-entropy of soft targets, which hold mixing and smoothing already."""
    return keras.losses.CategoricalCrossentropy(from_logits=True)


def class_weights(recipe: Recipe, found: Pictures) -> tuple[float, ...] | None:
    """How much a picture of each class counts in the loss; None: all the same."""
    if recipe.class_weights is None:
        return None
    counts = np.bincount(found.labels, minlength=len(found.classes))
    return tuple((len(found) / (len(counts) * counts)).tolist())


def make_transforms(
    recipe: Recipe, preprocessing: Preprocessing, weights: tuple[float, ...] | None = None
) -> tuple[TrainTransform, BatchTransform]:
    """What a training picture, and then a batch of them, goes through.

    Args:
        recipe: Names augmentation and mixing.
        preprocessing: The model's.
        weights: Of `class_weights`.
    """
    return (
        TrainTransform(
            input_size=preprocessing.input_size,
            mean=preprocessing.mean,
            crop_scale=(recipe.crop_scale[0], recipe.crop_scale[1]),
            crop_ratio=(recipe.crop_ratio[0], recipe.crop_ratio[1]),
            interpolations=recipe.crop_interpolations,
            horizontal_flip=recipe.horizontal_flip,
            vertical_flip=recipe.vertical_flip,
            rand_augment=recipe.rand_augment,
        ),
        BatchTransform(
            mixup=recipe.mixup,
            cutmix=recipe.cutmix,
            mix_probability=recipe.mix_probability,
            mix_switch=recipe.mix_switch,
            label_smoothing=recipe.label_smoothing,
            erasing=recipe.erasing,
            mean=preprocessing.mean,
            std=preprocessing.std,
            class_weights=weights,
        ),
    )


def make_batches(
    recipe: Recipe, model: VAN, found: Pictures, shard: tuple[int, int] = (0, 1)
) -> TrainingBatches:
    """Training batches of `batch_size / accumulation_steps`, a function of seed and number.

    Args:
        recipe: Names augmentation, mixing, sizes and seed.
        model: Whose preprocessing normalises the pictures.
        found: The training pictures.
        shard: (which, of how many) workers this one is.
    """
    return TrainingBatches(
        found,
        *make_transforms(recipe, preprocessing_of(model), class_weights(recipe, found)),
        recipe.batch_size // recipe.accumulation_steps,
        parts=recipe.accumulation_steps,
        seed=recipe.seed,
        balanced=recipe.sampling is not None,
        workers=recipe.workers or None,
        processes=recipe.processes,
        shard=shard,
        max_corrupt=recipe.max_corrupt,
    )


def make_dataset(
    batches: TrainingBatches,
    model: VAN,
    start: int = 0,
    failures: list[Exception] | None = None,
) -> Any:
    """The batches from number `start` on as a `tf.data.Dataset`, on every backend.

    For `fit`, which takes `class_weight` with it, and may go through it more than once: where it
    looks at a batch first, as for several devices and on JAX, a generator would lose that one.

    Args:
        batches: Of `make_batches`.
        model: The same as there.
        start: Number of the first batch.
        failures: Gets what goes wrong with the batches, which TensorFlow wraps in pages of its own.
    """
    import tensorflow as tf

    def made() -> Iterator[tuple[np.ndarray, ...]]:
        try:
            yield from batches.iterate(start)
        except Exception as error:
            if failures is not None:
                failures.append(error)
            raise

    side, rows = preprocessing_of(model).input_size, batches.rows
    shapes = [(rows, side, side, model.in_chans), (rows, len(batches.pictures.classes)), (rows,)]
    parts = 2 if getattr(batches.mix, "class_weights", None) is None else 3
    signature = tuple(tf.TensorSpec(shape, tf.float32) for shape in shapes[:parts])
    return tf.data.Dataset.from_generator(made, output_signature=signature).prefetch(1)


def preprocessing_of(model: VAN) -> Preprocessing:
    if model.preprocessing is None:
        raise ValueError("`model` must have a preprocessing, as `build_model` gives it one")
    return model.preprocessing
