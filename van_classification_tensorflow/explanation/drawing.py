"""What `van explain` writes of a picture, of a block's kernel and of a receptive field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..images.decode import open_image
from ..images.find import name_of
from ..inference.classifier import Classifier
from ..spec.scores import of_classes, probabilities
from ..support.files import sha256_of
from ..support.recorded_folder import Names
from .kinds import GATE, METHODS, PIXELS
from .methods import Explained
from .overlay import CELL, Caption, overlay, scale_of, sheet, whole_pixels, with_caption
from .receptive import PAPERS

Cells = list[tuple[str, Image.Image | None]]
_QUICK = 3  # compression of PNG: a third of the time of 6, and a seventh more bytes


@dataclass(frozen=True)
class Drawing:
    """Draws, and writes into a folder.

    Args:
        classifier: Whose pictures they are.
        names: Of the files.
        work: The folder.
        opacity: Of the colours.
        with_sheet: Whether each picture gets a contact sheet.
        max_pixels: Of a picture.
    """

    classifier: Classifier
    names: Names
    work: Path
    opacity: float
    with_sheet: bool
    max_pixels: int

    def picture(
        self, source: Any, stem: str, logits: np.ndarray, maps: Sequence[Explained]
    ) -> dict[str, Any]:
        """Writes all maps of a picture; its record.

        Args:
            source: As in `open_image`.
            stem: Begins the names of its files.
            logits: (K,).
            maps: Each of this picture alone.

        Raises:
            ImageError: It cannot be read any more.
            OSError: The same, or nothing can be written.
        """
        path, picture = name_of(source), open_image(source, self.max_pixels)
        box = self.classifier.preprocessing.box(*picture.size)
        both, activation = of_classes(logits, self.classifier.activation)
        shares = probabilities(both, activation)
        record: dict[str, Any] = {
            "path": path,
            "error": None,
            "sha256": _digest(source),
            "width": picture.width,
            "height": picture.height,
            "seen": dict(zip(("left", "top", "right", "bottom"), box, strict=True)),
            "predictions": [
                {"index": p.index, "label": p.label, "wnid": p.wnid, "probability": p.probability}
                for p in self.classifier.ranked(logits, 5)
            ],
            "maps": [],
        }
        rows: dict[str, Cells] = {}
        for one in maps:
            shown = overlay(picture, one.maps[0], self.classifier.preprocessing, self.opacity)
            about = self._describe(one, shares)
            about |= self._write(one, about, shown, stem, path)
            record["maps"].append(about)
            if self.with_sheet:
                label = about["class"] and about["class"]["label"]
                under = f"{label}  {100 * about['probability']:.1f} %" if label else ""
                rows.setdefault(f"{one.method} at {one.layer}", []).append((under, _small(shown)))
        if self.with_sheet:
            first: Cells = [(Path(path).name, _small(picture.convert("RGB")))]
            record["sheet"] = self._save(
                f"{stem}.sheet.png", sheet([("the picture", first), *rows.items()])
            )
        return record

    def _describe(self, one: Explained, shares: np.ndarray) -> dict[str, Any]:
        assert one.raw is not None  # noqa: S101 - of one layer there always is
        label, index = None, int(one.class_index[0])
        if METHODS[one.method].by_class:
            known = self.classifier.classes[index]
            label = {"index": index, "label": known.name, "wnid": known.wnid}
        return {
            "method": one.method,
            "source": METHODS[one.method].source,
            "layer": one.layer,
            "class": label,
            "probability": None if label is None else float(shares[index]),
            "raw_least": float(one.raw.min()),
            "raw_most": float(one.raw.max()),
            "empty": bool(one.empty[0]),
            "note": one.reason() if one.empty[0] else "",
        }

    def _write(
        self, one: Explained, about: dict[str, Any], shown: Image.Image, stem: str, path: str
    ) -> dict[str, Any]:
        """The picture and the array of one map; what they are called."""
        kind = METHODS[one.method]
        index = "" if about["class"] is None else f".{about['class']['index']}"
        name = f"{stem}.{one.method}{'' if kind.at == PIXELS else f'.{one.layer}'}{index}"
        lines = [
            f"{one.method} at {one.layer}: {kind.about}",
            f"{self.classifier.name} · {Path(path).name}",
        ]
        box = whole_pixels(self.classifier.preprocessing.box(*shown.size), shown.size)
        if about["note"]:
            lines.append(f"It shows nothing: {about['note']}.")
        elif box != (0, 0, *shown.size):
            lines.append("The model saw what is in the frame.")
        ends = kind.ends
        if kind.at != PIXELS and about["raw_least"] > 0:
            ends = "least", "most"  # there is something everywhere
        title, share = "Of no class", about["probability"]
        if about["class"] is not None:
            title = about["class"]["label"]
        elif kind.at == GATE:
            title = "The large-kernel attention's gate"
        caption = Caption(title, share, lines, ends)
        assert one.raw is not None  # noqa: S101 - of one layer there always is
        return {
            "picture": self._save(f"{name}.png", with_caption(shown, caption)),
            "array": self._array(f"{name}.npy", one.raw[0]),
            "enlarged": scale_of(shown.size),
        }

    def kernel(self, block: str, kernel: np.ndarray) -> None:
        """What one position of a block's gate sees of the others, (23, 23)."""
        scale = 16
        size = len(kernel) * scale, len(kernel) * scale
        grey = Image.new("L", size, 128)
        shade = np.kron(kernel / max(float(kernel.max()), 1e-30), np.ones((scale, scale)))
        picture = overlay(grey, shade, opacity=1.0)
        around = (len(kernel) - PAPERS) // 2 * scale
        frame = around, around, size[0] - around - 1, size[1] - around - 1
        ImageDraw.Draw(picture).rectangle(frame, outline=(255, 255, 255), width=2)
        lines = [
            f"mean |d gate / d input|, {len(kernel)} x {len(kernel)} positions; in the frame the "
            f"{PAPERS} x {PAPERS} of the paper",
            self.classifier.name,
        ]
        caption = Caption(f"What the gate of {block} sees", None, lines, ("nothing", "most"))
        self._save(f"lka-kernel.{block}.png", with_caption(picture, caption))
        self._array(f"lka-kernel.{block}.npy", kernel)

    def field(self, layer: str, field: np.ndarray, pictures: int) -> None:
        """What of the pixels one position of a layer sees, (H, W)."""
        grey = np.full(field.shape, 128, np.uint8)
        height, width = field.shape
        lines = [
            f"mean |gradient| of the channels in the middle, {height} x {width} pixels, over "
            f"{pictures} picture{'s' if pictures > 1 else ''} (arXiv 1701.04128); its square root "
            "is shown, or what lies far from the middle would hardly be seen",
            self.classifier.name,
        ]
        title = f"The effective receptive field of {layer}"
        caption = Caption(title, None, lines, ("nothing", "most"))
        picture = overlay(grey, np.sqrt(field), opacity=1.0)
        self._save(f"receptive-field.{layer}.png", with_caption(picture, caption))
        self._array(f"receptive-field.{layer}.npy", field)

    def _save(self, name: str, picture: Image.Image) -> str:
        picture.save(self.work / name, compress_level=_QUICK)
        return self.names.file(name)

    def _array(self, name: str, array: np.ndarray) -> str:
        np.save(self.work / name, array)
        return self.names.file(name)


def _small(picture: Image.Image) -> Image.Image:
    """As a contact sheet has it, which need not keep more."""
    if max(picture.size) <= CELL:
        return picture
    made = picture.copy()
    made.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
    return made


def _digest(source: Any) -> str:
    if isinstance(source, bytes):
        return sha256(source).hexdigest()
    return sha256_of(source)
