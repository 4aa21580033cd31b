"""`VANImageClassifier` and its preprocessor: a VAN as the image classifiers of KerasHub are."""

from __future__ import annotations

import os
from typing import Any

import keras
from keras_hub.models import ImageClassifier, ImageClassifierPreprocessor

from ..model.layers import register
from ..spec.preprocessing import Preprocessing
from ..support.checks import at_least
from .backbone import VANBackbone, with_products
from .image_converter import VANImageConverter
from .weights import load_features, load_head, named, opened, sizes_of


@register
class VANImageClassifierPreprocessor(ImageClassifierPreprocessor):
    """Pictures, labels and weights -> what `VANImageClassifier` takes.

    Args:
        image_converter: A `VANImageConverter`, or another layer that converts pictures.
    """

    backbone_cls = VANBackbone
    image_converter_cls = VANImageConverter


@register
class VANImageClassifier(ImageClassifier):
    """Visual Attention Network (arXiv 2202.09741) as an image classifier of KerasHub.

    `fit`, `predict` and `evaluate` take pictures of 0 to 255 and prepare them. Where the backbone
    computes in half precision, head and scores stay in float32, as in `VAN`.

    Args:
        backbone: A `VANBackbone`.
        num_classes: Classes of the head.
        preprocessor: A `VANImageClassifierPreprocessor`, another layer or function that
            prepares pictures, or None.
        pooling: "avg", as the published weights, or "max".
        activation: Of the scores; None for logits.
        dropout: Before the head, in [0, 1).
        head_dtype: Dtype policy of the head.
        kwargs: `compile=False` to leave out the default one, and what else a model has.

    Example:
    ```python
    classifier = VANImageClassifier.from_preset("van_b0_imagenet")
    scores = classifier.predict(pictures)
    keras_hub.utils.decode_imagenet_predictions(scores, top=5)
    ```
    """

    backbone_cls = VANBackbone
    preprocessor_cls = VANImageClassifierPreprocessor

    def __init__(
        self,
        backbone: keras.Model,
        num_classes: int,
        preprocessor: Any = None,
        pooling: str = "avg",
        activation: Any = None,
        dropout: float = 0.0,
        head_dtype: Any = None,
        **kwargs,
    ):
        if head_dtype is None and backbone.compute_dtype in ("float16", "bfloat16"):
            head_dtype = "float32"
        super().__init__(
            backbone,
            num_classes,
            preprocessor,
            pooling=pooling,
            activation=activation,
            dropout=dropout,
            head_dtype=head_dtype,
            **kwargs,
        )

    def get_config(self) -> dict:
        config = super().get_config()
        head = self.output_dense
        if head.quantization_mode is not None:
            policies = {head.path: head.dtype_policy}
            if isinstance(head.dtype_policy, keras.dtype_policies.DTypePolicyMap):
                policies = {head.path: head.dtype_policy[head.path]}
            policies = keras.dtype_policies.DTypePolicyMap(self.pooler.dtype_policy, policies)
            config["head_dtype"] = keras.dtype_policies.serialize(policies)
        return config

    @classmethod
    def from_weights(
        cls,
        weights: Any,
        num_classes: int | None = None,
        data_format: str | None = None,
        dtype: Any = None,
        **kwargs,
    ) -> VANImageClassifier:
        """A classifier with the weights of a file of any known format, or published ones.

        Args:
            weights: The path of a weight file (`.pth`, `.safetensors`, `.h5`, `.keras`, ...) or of
                a Hugging Face folder; hf://USER/NAME[@REVISION]; or a name of `van weights list`.
            num_classes: Another number of classes than theirs makes a fresh head.
            data_format: As of `VANBackbone`.
            dtype: As of `VANBackbone`.
            kwargs: As of the constructor; by default the preprocessor is that of the weights.

        Raises:
            ValueError: There are no such weights, the file is refused, or it has no head and
                `num_classes` is missing.
            OSError: They cannot be downloaded, verified or opened.
        """
        found = opened(weights)
        sizes = found.weights.architecture
        classes = sizes.num_classes if num_classes is None else num_classes
        if classes is None:
            raise ValueError(f"`num_classes` must be given: {found.card.name} has no head")
        record = found.card.preprocessing or Preprocessing().with_channels(sizes.in_chans)
        if record is not None:
            converter = VANImageConverter.of(record, data_format=data_format)
            kwargs.setdefault("preprocessor", VANImageClassifierPreprocessor(converter))
        backbone = VANBackbone(**sizes_of(sizes.config, sizes.in_chans, data_format), dtype=dtype)
        classifier = cls(backbone, at_least("num_classes", classes, 1), **kwargs)
        load_features(backbone, found)
        if classes == sizes.num_classes:
            load_head(classifier.output_dense, found)
        return classifier

    def quantize(self, mode: str | None = None, **kwargs) -> None:
        """As `VANBackbone.quantize`, the head included."""
        super().quantize(mode, **with_products(kwargs))

    def load_task_weights(self, filepath: str | os.PathLike) -> None:
        """KerasHub's, and of the presets of published weights their head."""
        weights = named(filepath)
        if weights is None:
            super().load_task_weights(filepath)
        else:
            load_head(self.output_dense, weights)
