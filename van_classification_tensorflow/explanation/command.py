"""`van explain`: for each picture, maps of what its classes came from."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import file_digest
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import __version__
from ..images.decode import open_image
from ..images.parallel import decoded, reason
from ..inference.classifier import Classifier
from ..inference.predict import inputs_of, name_of
from ..spec.labels import Label, index_of
from ..spec.scores import of_classes, probabilities
from ..support.console import messages, pictures_bar, results, say, say_failures
from ..support.text import printable
from ..weights.address import address_of
from . import folder
from .folder import INDEX
from .last_stage import LAST_STAGE_METHODS, LastStage
from .methods import METHODS, OWN_CLASS, Explained
from .overlay import Caption, overlay, scale_of, sheet, with_caption
from .receptive import PAPERS, lka_kernel
from .request import ExplainRequest, best_of

if TYPE_CHECKING:
    from .explain import Explainer


def run(
    request: ExplainRequest, stdin: TextIO | None = None, console: Console | None = None
) -> int:
    """Explains every picture; how many could not be read.

    Args:
        request: What to do.
        stdin: Read where a path is "-".
        console: Where to report.

    Raises:
        ValueError: Weights and request do not fit together, or there are no pictures.
        OSError: The output cannot be written.
    """
    console = console or messages()
    inputs = inputs_of(request.paths, stdin or sys.stdin, console)
    classifier = Classifier(
        request.weights,
        test_size=request.test_size,
        batch_size=request.batch_size,
        workers=request.workers,
        max_pixels=request.max_pixels,
    )
    classifier.check_top(1)
    classes = _classes_of(request.classes, classifier)
    say(console, f"{classifier.name}: {classifier.preprocessing}")
    if classifier.notes:
        say(console, classifier.notes)
    job = _Job(request, classifier, classes, folder.Names(), [])
    errors: list[str] = []

    def fill(work: Path) -> None:
        with pictures_bar(console) as bar:
            task = bar.add_task(classifier.name, total=len(inputs), rate="")
            for record in job.of_all(inputs, work):
                job.records.append(record)
                if record["error"]:
                    errors.append(record["error"])
                bar.advance(task)
        job.write_kernels(work)
        job.write_index(work)

    folder.write(request.output, request.overwrite, fill)
    _report(request, job, results())
    if errors:
        say_failures(console, f"{len(errors):,} of {len(inputs):,} failed", errors)
    return len(errors)


@dataclass(frozen=True)
class _Asked:
    """Classes to explain: so many of a picture's best, or one by its index."""

    best: int | None = None
    index: int | None = None


def _classes_of(words: Sequence[str], classifier: Classifier) -> list[_Asked]:
    """Raises `ValueError` where a word is no class."""
    labels, found = classifier.classes, []
    for word in words:
        best = best_of(word)
        if best is not None:
            found.append(_Asked(best=min(best, len(labels))))
        else:
            found.append(_Asked(index=index_of(word, labels, "classes")))
    return found


@dataclass
class _Way:
    """One method, and what computes it for prepared pictures: a result for each layer."""

    method: str
    explain: Callable[[np.ndarray, np.ndarray | None], list[Explained]]


@dataclass
class _Job:
    """A run: what is asked, and what it has written."""

    request: ExplainRequest
    classifier: Classifier
    classes: list[_Asked]
    names: folder.Names
    records: list[dict[str, Any]]

    def of_all(self, inputs: Sequence[str | bytes], work: Path) -> Iterator[dict[str, Any]]:
        """A record for each picture, whose files are then in `work`."""
        ways = self._ways()
        batch: list[tuple[Any, Any]] = []
        made = decoded(
            inputs, self.classifier.prepare, self.request.workers, 2 * self.request.batch_size
        )
        for pair in made:
            batch.append(pair)
            if len(batch) == self.request.batch_size:
                yield from self._of_batch(batch, ways, work)
                batch = []
        yield from self._of_batch(batch, ways, work)

    def _ways(self) -> list[_Way]:
        request = self.request
        light = request.layers is None and set(request.methods) <= set(LAST_STAGE_METHODS)
        if light:
            last = LastStage(self.classifier)
            return [_Way(one, partial(_by_last_stage, last, one)) for one in request.methods]
        from .explain import Explainer

        explainer = Explainer.of(self.classifier.model)
        if request.layers is not None and request.layers != ("all",):
            for one in request.layers:
                explainer.layer(one)  # or an error, before anything is computed
        return [_Way(one, partial(self._by_keras, explainer, one)) for one in request.methods]

    def _by_keras(
        self, explainer: Explainer, method: str, images: np.ndarray, classes: np.ndarray | None
    ) -> list[Explained]:
        request, at_pixels = self.request, METHODS[method].at == "pixels"
        if request.layers is None or at_pixels:
            options = {
                name: getattr(request, name) for name in ("steps", "samples", "noise", "seed")
            }
            size = request.batch_size
            return [explainer(images, classes, method, batch_size=size, **options)]
        names = explainer.blocks() if request.layers == ("all",) else request.layers
        wanted = np.full(len(images), OWN_CLASS) if classes is None else classes
        return explainer.at_each(images, wanted, method, names, request.batch_size)

    def _of_batch(
        self, batch: Sequence[tuple[Any, Any]], ways: Sequence[_Way], work: Path
    ) -> Iterator[dict[str, Any]]:
        good = [made[0][:1] for _, made in batch if not isinstance(made, Exception)]
        if good:
            images = np.concatenate(good)
            first = ways[0].explain(images, None)
            chosen = [self._chosen(logits) for logits in first[0].logits]
            found = self._maps(images, ways, chosen, first)
        place = 0
        for source, made in batch:
            path = name_of(source)
            if isinstance(made, Exception):
                yield {"path": path, "error": reason(made)}
                continue
            maps = [one.at(place) for one in found if place in one.rows]
            yield self._of_picture(source, made[1], first[0].logits[place], maps, work)
            place += 1

    def _chosen(self, logits: np.ndarray) -> list[int]:
        """The classes to explain of one picture, each once, in the order they were asked for."""
        ranked = [one.index for one in self.classifier.ranked(logits, len(self.classifier.classes))]
        found: list[int] = []
        for asked in self.classes:
            found += ranked[: asked.best] if asked.index is None else [asked.index]
        return list(dict.fromkeys(found))

    def _maps(
        self,
        images: np.ndarray,
        ways: Sequence[_Way],
        chosen: Sequence[Sequence[int]],
        first: list[Explained],
    ) -> list[_Rows]:
        """Every method for the n-th class of each picture, n from 0 on."""
        found: list[_Rows] = []
        for way in ways:
            known = first if way is ways[0] else None
            if not METHODS[way.method].by_class:
                every = known or way.explain(images, None)
                found += [_Rows(range(len(images)), one) for one in every]
                continue
            by_class = []
            for n in range(max(map(len, chosen))):
                rows = [i for i, classes in enumerate(chosen) if n < len(classes)]
                wanted = np.array([chosen[i][n] for i in rows])
                if known is not None and np.array_equal(known[0].class_index, wanted):
                    every = known
                else:
                    every = way.explain(images[rows], wanted)
                by_class.append([_Rows(rows, one) for one in every])
            found += [one for layer in zip(*by_class, strict=True) for one in layer]
        return found

    def _of_picture(
        self,
        source: Any,
        size: tuple[int, int],
        logits: np.ndarray,
        maps: Sequence[Explained],
        work: Path,
    ) -> dict[str, Any]:
        path = name_of(source)
        stem = self.names.stem(path)
        picture = open_image(source, self.request.max_pixels)
        box = self.classifier.preprocessing.box(*size)
        both, activation = of_classes(logits, self.classifier.activation)
        shares = probabilities(both, activation)
        record: dict[str, Any] = {
            "path": path,
            "error": None,
            "width": size[0],
            "height": size[1],
            "seen": dict(zip(("left", "top", "right", "bottom"), box, strict=True)),
            "predictions": [
                {"index": p.index, "label": p.label, "wnid": p.wnid, "probability": p.probability}
                for p in self.classifier.ranked(logits, 5)
            ],
            "maps": [],
        }
        cells: dict[str, list[tuple[str, Image.Image | None]]] = {}
        for one in maps:
            shown = overlay(
                picture, one.maps[0], self.classifier.preprocessing, self.request.opacity
            )
            about = self._describe(one, shares)
            about |= self._write(one, about, shown, stem, path, size, work)
            record["maps"].append(about)
            heading = f"{one.method} at {one.layer}"
            under = "for every class"
            if about["class"] is not None:
                under = f"{about['class']['label']}  {100 * about['probability']:.1f} %"
            cells.setdefault(heading, []).append((under, shown))
        if self.request.sheet:
            whole = [("the picture", [(Path(path).name, picture.convert("RGB"))]), *cells.items()]
            record["sheet"] = self.names.file(f"{stem}.sheet.png")
            sheet(whole).save(work / record["sheet"])
        return record

    def _describe(self, one: Explained, shares: np.ndarray) -> dict[str, Any]:
        assert one.raw is not None  # noqa: S101 - of one layer there always is
        label = None
        index = int(one.class_index[0])
        if METHODS[one.method].by_class:
            known = self.classifier.classes[index]
            label = {"index": index, "label": known.name, "wnid": known.wnid}
        return {
            "method": one.method,
            "layer": one.layer,
            "class": label,
            "probability": None if label is None else float(shares[index]),
            "raw_least": float(one.raw.min()),
            "raw_most": float(one.raw.max()),
            "empty": bool(one.empty[0]),
            "note": one.reason() if one.empty[0] else "",
        }

    def _write(
        self,
        one: Explained,
        about: dict[str, Any],
        shown: Image.Image,
        stem: str,
        path: str,
        size: tuple[int, int],
        work: Path,
    ) -> dict[str, Any]:
        """The picture and the array of one map; what they are called."""
        index = "" if about["class"] is None else f".{about['class']['index']}"
        at = "" if METHODS[one.method].at == "pixels" else f".{one.layer}"
        name = f"{stem}.{one.method}{at}{index}"
        lines = [f"{one.method} at {one.layer} · {self.classifier.name} · {Path(path).name}"]
        if not about["note"]:
            if tuple(map(round, self.classifier.preprocessing.box(*size))) != (0, 0, *size):
                lines.append("The model saw what is in the frame.")
        else:
            lines.append(f"It shows nothing: {about['note']}.")
        ends = ("nothing for the class", "most")
        title, share = "For every class", None
        if about["class"] is not None:
            title, share = Label(about["class"]["label"]).name, about["probability"]
        elif one.method == "lka":
            title, ends = "The large-kernel attention's gate", ("least", "most")
        with_caption(shown, Caption(title, share, lines, ends)).save(
            work / self.names.file(f"{name}.png")
        )
        np.save(work / self.names.file(f"{name}.npy"), one.raw[0])  # type: ignore[index]
        return {"picture": f"{name}.png", "array": f"{name}.npy", "enlarged": scale_of(size)}

    # --- For the whole run ---

    def write_kernels(self, work: Path) -> None:
        """Of the blocks whose gates were asked for, what one position of them hears of others."""
        weights = self.classifier.opened_weights
        every = [one for record in self.records for one in record.get("maps", ())]
        for block in dict.fromkeys(one["layer"] for one in every if one["method"] == "lka"):
            assert weights is not None  # noqa: S101 - there are no others
            kernel = lka_kernel(weights.tensors, block)
            shown = kernel / max(float(kernel.max()), 1e-30)
            title = f"What one position of the gate of {block} sees"
            lines = [
                f"mean |d gate / d input|, {len(kernel)} x {len(kernel)} positions "
                f"(the paper names {PAPERS} x {PAPERS}) · {self.classifier.name}"
            ]
            grey = np.full(kernel.shape, 128, np.uint8)
            caption = Caption(title, None, lines, ("nothing", "most"))
            picture = with_caption(overlay(grey, shown, opacity=1.0), caption)
            picture.save(work / self.names.file(f"lka-kernel.{block}.png"))
            np.save(work / self.names.file(f"lka-kernel.{block}.npy"), kernel)

    def write_index(self, work: Path) -> None:
        """The record of all, with what is needed to repeat it."""
        request = self.request
        record = {
            "van_classification_tensorflow": __version__,
            "weights": _identity(request.weights, self.classifier.name),
            "preprocessing": self.classifier.preprocessing.to_dict(),
            "activation": self.classifier.activation,
            "asked": {
                name: getattr(request, name)
                for name in (
                    *("paths", "classes", "methods", "layers", "opacity", "steps", "samples"),
                    *("noise", "seed", "test_size", "batch_size"),
                )
            },
            "files": self.names.files,
            "pictures": self.records,
        }
        text = json.dumps(record, indent=1, ensure_ascii=True, default=str)
        (work / INDEX).write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class _Rows:
    """What was found for some of the pictures of a batch."""

    rows: Sequence[int]
    found: Explained

    def at(self, place: int) -> Explained:
        """That of one picture."""
        i = slice(row := self.rows.index(place), row + 1)
        found = self.found
        return replace(
            found,
            maps=found.maps[i],
            raw=None if found.raw is None else found.raw[i],
            logits=found.logits[i],
            class_index=found.class_index[i],
        )


def _by_last_stage(
    last: LastStage, method: str, images: np.ndarray, classes: np.ndarray | None
) -> list[Explained]:
    return [last(images, classes, method)]


def _identity(weights: Any, name: str) -> dict[str, Any]:
    """Which weights these are: a name of the catalogue, or a file and what is in it."""
    found: dict[str, Any] = {"name": name, "given": str(weights)}
    if address_of(weights).is_path and Path(weights).is_file():
        with Path(weights).open("rb") as file:
            found["sha256"] = file_digest(file, "sha256").hexdigest()
    return found


def _report(request: ExplainRequest, job: _Job, console: Console) -> None:
    """A line for each map on a terminal; where the files are."""
    table = Table(box=None, pad_edge=False)
    for name in ("Picture", "Class", "%", "Map", "File"):
        table.add_column(name, overflow="fold", justify="right" if name == "%" else "left")
    for record in job.records:
        for one in record.get("maps", ()):
            share = "" if one["probability"] is None else f"{100 * one['probability']:.1f}"
            label = "every class" if one["class"] is None else one["class"]["label"]
            empty = " (empty)" if one["empty"] else ""
            cells = (
                printable(Path(record["path"]).name),
                printable(label),
                share,
                f"{one['method']} at {one['layer']}{empty}",
                one["picture"],
            )
            table.add_row(*map(Text, cells))
    if table.row_count and (table.row_count <= 60 or not console.is_terminal):
        console.print(table)
    say(console, f"{request.output}: {len(job.names.files) + 1:,} files, of which {INDEX} tells")
    every = [one for record in job.records for one in record.get("maps", ()) if one["note"]]
    notes = Counter((one["method"], one["layer"], one["note"]) for one in every)
    for (method, layer, note), count in sorted(notes.items()):
        what = "1 map" if count == 1 else f"{count:,} maps"
        say(console, f"{what} of {method} at {layer} without anything to see: {note}", "yellow")
