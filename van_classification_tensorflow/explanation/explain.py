"""`explain`: maps of what in its pictures a model's answer came from."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from ..engines.keras import on_accelerator
from ..inference.in_memory import InMemory, decisive, look_at
from ..model.blocks import LKA
from ..spec.scores import ACTIVATIONS
from ..support.checks import at_least, check_choice, check_flag, is_number
from . import methods
from .gradients import Differentiated, Found
from .kinds import GATE, METHODS, PIXELS
from .methods import OWN_CLASS, ROUNDING, Explained

_ON_GPUS = 1e-3  # where products are rounded to 10 bits, so much is nothing


def explain(
    model: keras.Model,
    images: Any,
    class_index: int | Sequence[int] | None = None,
    method: str = "grad-cam",
    layer: str | Sequence[str] | None = None,
    *,
    raw: bool = False,
    batch_size: int = 32,
    steps: int = 32,
    samples: int = 16,
    noise: float = 0.15,
    seed: int = 0,
) -> np.ndarray:
    """Where in each picture the score of a class came from.

    Of the logit, never of its probability: that of one class falls where another's rises.

    Args:
        model: A `VAN`, or a classifier with one in it: with a head of its own, nested, in
            channels_first, in mixed precision. One that is subclassed must give logits.
        images: (N, H, W, C), or (N, C, H, W) if the model takes them so: floats, normalised, as
            the model takes them (`preprocess_input`, or `Preprocessing`).
        class_index: Of all pictures, or of each; None: the class each is taken for. Of a model
            with a single output, 1 is its class, and 0 that it is not.
        method: "grad-cam", "grad-cam++", "hires-cam", "layer-cam", "eigen-cam", "score-cam" (a
            pass for each channel of the layer), "lka" (the large-kernel attention's own gate,
            |Attention| of the paper's Equation 1), "saliency", "smooth-grad" or
            "integrated-gradients" (from a picture of zeros on).
        layer: Name of a layer, such as "block3_1" or "norm4", of "lka" a block; several, for the
            mean of their maps, in the pictures' size. None: the last block of the last stage that
            gives more than one position; of "hires-cam" that stage's norm, as in front of a layer
            norm its maps are all zero. Not for what looks at the pixels.
        raw: Give what the method computes, signed, before the negative part is cut off and it is
            brought to [0, 1]; of pixels summed over the channels. One layer only.
        batch_size: Pictures at once.
        steps: Of "integrated-gradients": points of the Gauss-Legendre rule.
        samples: Of "smooth-grad": noisy pictures.
        noise: Of "smooth-grad": standard deviation, as a share of each picture's range, at
            most 10.
        seed: Of that noise, which is the same for every picture.

    Returns:
        (N, h, w), float32, of the layer's size; of several layers and of pixels (N, H, W). From 0
        to 1, each map by itself. A map without any evidence for the class is 0, with a warning.

    Raises:
        ValueError: An argument is not allowed, or the model is no such classifier.
    """
    check_flag("raw", raw)
    found = Explainer.of(model)(
        images,
        class_index,
        method,
        layer,
        batch_size=batch_size,
        steps=steps,
        samples=samples,
        noise=noise,
        seed=seed,
    )
    if raw:
        if found.raw is None:
            raise ValueError(f"`raw` goes with one layer only. Received: layer={layer!r}")
        return found.raw
    if found.empty.any():
        count = f"{found.empty.sum():,} of {len(found.maps):,} maps of {method} at {found.layer}"
        warnings.warn(f"{count} show nothing: {found.reason()}", stacklevel=2)
    return found.maps


class Explainer:
    """A model, and what was compiled to explain it; `Explainer.of(model)` makes one only once.

    Args:
        model: As in `explain`.

    Raises:
        ValueError: It is no such classifier.
    """

    def __init__(self, model: keras.Model):
        if not isinstance(model, keras.Model):
            raise ValueError(f"`model` must be a Keras model. Received: {type(model).__name__}")
        self.model, self.last, self.channels_first = model, None, False
        if isinstance(model, (keras.Function, keras.Sequential)):
            opened = look_at(model, batch_size=1, argument="model")
            self.model, self.last = opened.model, _last(opened)
            self.channels_first = opened.channels_first
        self._compiled: dict[Any, Differentiated] = {}
        self._outputs: int | None = getattr(self.model, "output_shape", (None,))[-1]

    @classmethod
    def of(cls, model: keras.Model) -> Explainer:
        """The one of this model, as it is now: another where its layers have changed."""
        # In its dictionary, for as long as the model lives, and nothing that Keras should save.
        name, state = "_explainer", _state(model)
        if state is None:
            return cls(model)  # which refuses it
        found = vars(model).get(name)
        if found is None or found[0] != state:
            found = vars(model)[name] = state, cls(model)
        return found[1]

    def __call__(
        self,
        images: Any,
        class_index: Any = None,
        method: str = "grad-cam",
        layer: Any = None,
        *,
        batch_size: int = 32,
        steps: int = 32,
        samples: int = 16,
        noise: float = 0.15,
        seed: int = 0,
    ) -> Explained:
        """As `explain`, with all that was found."""
        at = METHODS[check_choice("method", method, tuple(METHODS))].at
        at_least("batch_size", batch_size, 1)
        at_least("steps", steps, 1)
        at_least("samples", samples, 1)
        at_least("seed", seed, 0)
        if not is_number(noise) or not 0 <= noise <= 10:
            raise ValueError(f"`noise` must be from 0 to 10. Received: noise={noise!r}")
        images = self.checked(images)
        wanted = methods.check_classes(class_index, len(images), self._outputs_for(images))
        if at == PIXELS:
            if layer is not None:
                raise ValueError(
                    f"`layer` must be left out for method={method!r}, which looks at the pixels. "
                    f"Received: layer={layer!r}"
                )
            return self._of_pixels(
                images, wanted, method, batch_size, steps, samples, float(noise), seed
            )
        names = [layer] if isinstance(layer, str) else layer
        if names is None:
            return self._at_default(images, wanted, method, batch_size)
        is_list = isinstance(names, (list, tuple)) and bool(names)
        if not is_list or not all(isinstance(one, str) for one in names):
            raise ValueError(f"`layer` must be a name, or several. Received: layer={layer!r}")
        found = self.at_each(images, wanted, method, names, batch_size)
        if len(found) == 1:
            return found[0]
        maps = methods.together(
            [one.raw for one in found if one.raw is not None], self._size(images)
        )
        return replace(found[0], maps=maps, raw=None, layer="+".join(names))

    # --- Layers ---

    def _at_default(
        self, images: np.ndarray, wanted: np.ndarray, method: str, batch_size: int
    ) -> Explained:
        """The last stage that has more than one position, or the last one."""
        names = self.default_layers(method)
        found = None
        for name in names:
            (found,) = self.at_each(images, wanted, method, [name], batch_size)
            if found.maps[0].size > 1:
                return found
        if found is None:
            raise ValueError(f"`layer` must be named for {self.model.name!r}, which has no blocks")
        return found

    def default_layers(self, method: str) -> list[str]:
        """The last block of each stage, or its norm; the last stage first."""
        stages: dict[int, str] = {}
        for one in _layers_of(self.model):
            if match := re.fullmatch(r"block(\d+)_(\d+)", one.name):
                stages[int(match[1])] = one.name
        normed = METHODS[method].normed
        return [f"norm{i}" if normed else stages[i] for i in sorted(stages, reverse=True)]

    def blocks(self) -> list[str]:
        """Names of all blocks, in order."""
        every = [one.name for one in _layers_of(self.model)]
        return [name for name in every if re.fullmatch(r"block\d+_\d+", name)]

    def layer(self, name: str) -> Any:
        """The layer of that name, at any depth.

        Raises:
            ValueError: There is none, or several.
        """
        # A part of a block may have the name of a layer of the model, and is meant by its path.
        every = [one for one in _layers_of(self.model) if one.name == name]
        every = every or [one for one in self.model._flatten_layers() if one.path == name]
        if len(every) != 1:
            known = ", ".join(self.default_layers("grad-cam")[::-1])
            what = "several layers have that name: give the `path` of one" if every else "none"
            raise ValueError(
                f"`layer` must be a layer of {self.model.name!r}, such as {known}. "
                f"Received: layer={name!r} ({what})"
            )
        return every[0]

    def at_each(
        self,
        images: np.ndarray,
        wanted: np.ndarray,
        method: str,
        names: Sequence[str],
        batch_size: int = 32,
    ) -> list[Explained]:
        """The maps of each of several layers, from the same pass.

        Args:
            images: As in `explain`.
            wanted: (N,), classes or `OWN_CLASS`.
            method: One that looks at layers.
            names: Of layers.
            batch_size: As in `explain`.
        """
        layers = [self.layer(one) for one in names]
        if METHODS[method].at == GATE:
            layers = [_gate_of(one) for one in layers]
        back = method in methods.OF_GRADIENTS
        run = self.differentiated(*layers)
        raws: list[list[np.ndarray]] = [[] for _ in layers]
        logits, chosen = [], []
        for some, classes in _batches(images, wanted, batch_size):
            found = run(some, classes, back)
            self._check_outputs(found.logits)
            for i, layer in enumerate(layers):
                raws[i].append(self._raw(method, found, i, layer, some))
            logits.append(found.logits)
            chosen.append(found.class_index)
        every, whose = np.concatenate(logits), np.concatenate(chosen)
        wholes = [np.concatenate(one) for one in raws]
        return [
            Explained(methods.to_unit(raw), raw, every, whose, name, method)
            for raw, name in zip(wholes, names, strict=True)
        ]

    def _raw(self, method: str, found: Found, i: int, layer: Any, images: np.ndarray) -> np.ndarray:
        activation = _channels_last(found.activations[i], layer)
        if method in methods.OF_GRADIENTS:
            rounding = max(ROUNDING[layer.compute_dtype], _ON_GPUS if on_accelerator() else 0)
            gradient = _channels_last(found.gradients[i], layer)
            return methods.of_gradients(method, activation, gradient, rounding)
        if method == "eigen-cam":
            return methods.eigen_cam(activation)
        if method == "lka":
            return methods.gate(activation)
        return self._score_cam(activation, found.class_index, images)

    def _score_cam(
        self, activations: np.ndarray, classes: np.ndarray, images: np.ndarray
    ) -> np.ndarray:
        """A pass of each picture for each channel, which hides all else."""
        raws = []
        run = self.differentiated()
        for image, activation, which in zip(images, activations, classes, strict=True):
            masks = methods.score_cam_masks(activation, self._size(images))
            masks = masks[:, None] if self.channels_first else masks[..., None]
            every = np.full(len(masks), which)
            scores = [
                _of_class(run(image * some, same, back=False).logits, same)
                for some, same in _batches(masks, every, 32)
            ]
            score = np.concatenate(scores)
            weight = np.exp(score - score.max())
            raws.append(activation @ (weight / weight.sum()))
        return np.stack(raws)

    def differentiated(self, *layers: Any, centre_of: Any = None) -> Differentiated:
        """What runs the model and goes back to layers, or the pixels, compiled for them once."""
        key = layers, centre_of
        if key not in self._compiled:
            self._compiled[key] = Differentiated(self.model, layers, self.last, centre_of)
        return self._compiled[key]

    # --- Pixels ---

    def _of_pixels(
        self,
        images: np.ndarray,
        wanted: np.ndarray,
        method: str,
        batch_size: int,
        steps: int,
        samples: int,
        noise: float,
        seed: int,
    ) -> Explained:
        attributions, logits, chosen = [], [], []
        for some, classes in _batches(images, wanted, batch_size):
            found = self.differentiated()(some, classes)
            self._check_outputs(found.logits)
            own = found.class_index  # of the picture as it is, also where it is changed below
            if method == "smooth-grad":
                axes = tuple(range(1, some.ndim))
                span = noise * (some.max(axes, keepdims=True) - some.min(axes, keepdims=True))
                shape = some.shape[1:]
                added = [(seed, i) for i in range(samples)]
                attributions.append(
                    self.smooth_grad(some, own, (span * _noise(one, shape) for one in added))
                )
            elif method == "integrated-gradients":
                attributions.append(self.integrated_gradients(some, own, steps))
            else:
                attributions.append(np.abs(found.gradients[0]))
            logits.append(found.logits)
            chosen.append(own)
        raw = np.concatenate(attributions).sum(axis=1 if self.channels_first else 3)
        maps = methods.pixels_to_unit(raw)
        return Explained(maps, raw, np.concatenate(logits), np.concatenate(chosen), PIXELS, method)

    def smooth_grad(
        self, images: np.ndarray, classes: np.ndarray, added: Iterable[np.ndarray]
    ) -> np.ndarray:
        """The mean of |gradient| over noisy pictures, as the images are.

        Args:
            images: (N, ...).
            classes: (N,).
            added: The noise of each sample, (N, ...).
        """
        run, count = self.differentiated(), 0
        whole = np.zeros_like(images)
        for one in added:
            whole += np.abs(run(images + one.astype(np.float32), classes).gradients[0])
            count += 1
        return whole / np.float32(count)

    def integrated_gradients(
        self, images: np.ndarray, classes: np.ndarray, steps: int
    ) -> np.ndarray:
        """Pixels x the mean gradient on the way from zeros to the picture, as the images are.

        By the Gauss-Legendre rule. Their sum is the difference of the logits of both ends.
        """
        run = self.differentiated()
        points, weights = np.polynomial.legendre.leggauss(steps)
        whole = np.zeros_like(images)
        for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
            gradient = run(images * np.float32(point), classes).gradients[0]
            whole += np.float32(weight) * gradient
        return images * whole

    # --- Checks ---

    def _size(self, images: np.ndarray) -> tuple[int, int]:
        return images.shape[2:] if self.channels_first else images.shape[1:3]

    def checked(self, images: Any) -> np.ndarray:
        """The pictures as an array; raises `ValueError` where the model does not take them."""
        images = np.asarray(images)
        layout = "(N, C, H, W)" if self.channels_first else "(N, H, W, C)"
        if images.ndim != 4 or not len(images):
            raise ValueError(f"`images` must be {layout}, N at least 1. Received: {images.shape}")
        if not np.issubdtype(images.dtype, np.floating):
            raise ValueError(
                "`images` must be floats, normalised as the model takes them "
                f"(`preprocess_input`). Received: {images.dtype}"
            )
        taken = self.model.input_shape if self._is_functional else images.shape
        if any(a not in (None, b) for a, b in zip(taken[1:], images.shape[1:], strict=True)):
            sizes = ", ".join("any" if size is None else str(size) for size in taken[1:])
            raise ValueError(
                f"`images` must be {layout} as {self.model.name!r} takes them: (N, {sizes}). "
                f"Received: {images.shape}"
            )
        if not np.isfinite(images).all():
            raise ValueError("`images` must be finite numbers. Received: some that are not")
        return images

    @property
    def _is_functional(self) -> bool:
        return isinstance(self.model, (keras.Function, keras.Sequential))

    def _outputs_for(self, images: np.ndarray) -> int:
        if self._outputs is None:  # of a subclassed model
            run = self.differentiated()
            self._outputs = run(images[:1], np.full(1, OWN_CLASS), back=False).logits.shape[-1]
        return self._outputs

    def _check_outputs(self, logits: np.ndarray) -> None:
        """They must be numbers, and logits: a subclassed model does not say what it ends with."""
        methods.check_finite(logits)
        if self._is_functional or logits.shape[-1] == 1:
            return
        if np.all(logits >= 0) and np.allclose(logits.sum(axis=-1), 1, atol=1e-3):
            raise ValueError(
                f"`model` must give logits: the outputs of {self.model.name!r} are probabilities, "
                "whose gradients say which other class falls. Leave its softmax out"
            )


def _state(model: Any) -> list[Any] | None:
    """What was compiled for a model is of: its layers, and what they end with."""
    if not isinstance(model, keras.Model):
        return None
    every = model._flatten_layers()
    return [part for one in every for part in (id(one), id(getattr(one, "activation", None)))]


def _layers_of(model: keras.Model) -> Iterator[Any]:
    """The layers of a model and of those in it, but not what these are made of."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers_of(layer)
        else:
            yield layer


def _last(opened: InMemory) -> Any:
    """The layer whose activation is to be left out; None where the model gives logits."""
    if opened.activation is None:
        raise ValueError(
            f"`model` must be a classifier: {opened.model.name!r} has no head whose score could be "
            "explained"
        )
    if not opened.is_probabilities:
        return None
    last = decisive(opened.model)[0]
    if getattr(last, "activation", None) is None:
        raise ValueError(
            "`model` must end in logits, or in a layer whose activation is one of "
            f"{', '.join(ACTIVATIONS)}. Received: {opened.model.name!r}, which ends in {last.name}"
        )
    return last


def _channels_last(map: np.ndarray, layer: Any) -> np.ndarray:
    if map.ndim != 4:
        raise ValueError(
            f"`layer` must give maps (N, h, w, C). Received: {layer.name!r}, which gives "
            f"{map.shape}"
        )
    is_first = getattr(layer, "data_format", None) == "channels_first"
    return np.moveaxis(map, 1, 3) if is_first else map


def _gate_of(layer: Any) -> Any:
    """The 1 x 1 convolution of the large-kernel attention in a block."""
    inside = [layer, *getattr(layer, "_flatten_layers", list)()]
    gates = [one for one in inside if isinstance(one, LKA)]
    if not gates:
        raise ValueError(
            f"`layer` must be a block for method='lka'. Received: layer={layer.name!r}"
        )
    return gates[0].conv1


def _noise(seed: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    """The same for a picture alone and among others, whatever the batches."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def _of_class(logits: np.ndarray, classes: np.ndarray) -> np.ndarray:
    if logits.shape[-1] == 1:
        return logits[:, 0] * (2 * classes - 1)
    return logits[np.arange(len(logits)), classes]


def _batches(
    images: np.ndarray, classes: np.ndarray, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(images), size):
        yield images[start : start + size], classes[start : start + size]
