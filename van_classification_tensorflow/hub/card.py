"""The model card of a folder on a hub, `README.md`: what is generated, and what a person wrote.

Generated sections stand between comments that a reader does not see; only what is between them is
written anew by the next push. In the front matter the keys that are generated are set and lists
added to; what was generated and holds no longer goes, and a licence that is there stays where no
other is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..spec.architecture import Architecture
from ..spec.card import Card
from ..spec.labels import labels_of
from ..spec.preprocessing import Preprocessing
from ..support.text import printable
from ..weights.hub_name import HubName
from .measured import Measured

MAX_CARD = 1 << 20  # characters
_BEGIN, _END = "<!-- van push: begin {} -->", "<!-- van push: end {} -->"
_FRONT = re.compile(r"---[ \t]*\r?\n(?:(.*?)\r?\n)??---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_DATASETS = {"ImageNet-1k": "imagenet-1k", "ImageNet-22k": "imagenet-22k"}
_NAMED = 20  # classes
_CLASSIFIER, _BACKBONE = "image-classification", "image-feature-extraction"
# Tags that a push gives to some models only: where they hold no longer they are its own to take.
_OF_SOME = (_CLASSIFIER, _BACKBONE, "keras-hub")
# Plain words as YAML 1.2 reads them, and with it the hub: in 1.1, which PyYAML reads, the language
# `no` is false and 12:30 is 750. Kind, what it looks like, with what it may begin.
_PLAIN_WORDS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)"
        r"|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
)
_PAPER = "https://arxiv.org/abs/2202.09741"
_CODE = "https://github.com/Visual-Attention-Network/VAN-Classification"


_CITATION = """```bibtex
@article{guo2022visual,
  title={Visual Attention Network},
  author={Guo, Meng-Hao and Lu, Cheng-Ze and Liu, Zheng-Ning and Cheng, Ming-Ming and Hu, Shi-Min},
  journal={arXiv preprint arXiv:2202.09741},
  year={2022}
}
```"""


@dataclass(frozen=True)
class Facts:
    """What a model card is made of.

    Args:
        name: The folder on the hub.
        card: Of the weights.
        sizes: Of the model.
        preprocessing: Of its pictures; None where none is known.
        licence: That is asked for, as the hub writes it; "": the one of the card that is there, or
            else of the weights.
        datasets: What it was trained on, as the hub calls it.
        measured: Its accuracy, where it was measured.
        with_keras_hub: Whether KerasHub's files are there.
        version: Of this package.
    """

    name: HubName
    card: Card
    sizes: Architecture
    preprocessing: Preprocessing | None
    licence: str = ""
    datasets: tuple[str, ...] = ()
    measured: Measured | None = None
    with_keras_hub: bool = True
    version: str = ""

    @property
    def has_head(self) -> bool:
        """Whether it classifies."""
        return self.sizes.num_classes is not None


def licence_of(card: Card) -> str:
    """The licence of weights as the hub writes it: SPDX in small letters."""
    return card.licence.lower()


def datasets_of(card: Card) -> tuple[str, ...]:
    """What published weights were trained on, as the hub calls it."""
    return (_DATASETS[card.dataset],) if card.dataset in _DATASETS else ()


def model_card(facts: Facts, before: str | None = None) -> str:
    """The text of `README.md`.

    Args:
        facts: What it is to say.
        before: The one that is there; what a person wrote in it is kept.

    Raises:
        ValueError: The front matter of the one that is there cannot be read.
    """
    front, body = ({}, "") if before is None else taken_apart(before)
    asked, facts = facts.licence, replace(facts, licence=_licence_of_all(facts, front))
    mine, sections = front_matter(facts), _sections(facts)
    if not asked and front.get("license"):
        mine.pop("license", None)  # as it stands there, which may be a list
    if before is None:
        return _with_front({}, mine, f"# {facts.name.name}\n\n{_joined(sections)}")
    return _with_front(_without_old(front, mine, facts.name.name), mine, _merged(body, sections))


def licence_stated(facts: Facts, before: str | None = None) -> str:
    """The licence that `model_card` states; "" where it states none."""
    return _licence_of_all(facts, {} if before is None else taken_apart(before)[0])


def _licence_of_all(facts: Facts, front: Mapping[str, Any]) -> str:
    there = front.get("license") or ()
    said = ", ".join(map(str, there if isinstance(there, (list, tuple)) else [there]))
    return facts.licence or printable(said[:200]) or licence_of(facts.card)


# --- Front matter ---


def front_matter(facts: Facts) -> dict[str, Any]:
    """What the hub reads, in its words."""
    found: dict[str, Any] = {}
    if facts.licence:
        found["license"] = facts.licence
    tag = _CLASSIFIER if facts.has_head else _BACKBONE
    tags = ["van", "visual-attention-network", tag, "safetensors"]
    tags += ["keras-hub"] if facts.with_keras_hub else []
    found |= {"library_name": "keras", "pipeline_tag": tag, "tags": tags}
    if facts.datasets:
        found["datasets"] = list(facts.datasets)
    if facts.measured is not None:
        found["metrics"] = ["accuracy"]
        found["model-index"] = [{"name": facts.name.name, "results": [_result(facts.measured)]}]
    return found


def _result(measured: Measured) -> dict[str, Any]:
    values = [("top-1 accuracy", measured.top1)]
    values += [("top-5 accuracy", measured.top5)] if measured.classes > 5 else []
    return {
        "task": {"type": "image-classification"},
        "dataset": {"name": measured.dataset, "type": _as_identifier(measured.dataset)},
        "metrics": [
            {"type": "accuracy", "name": name, "value": round(value, 6)} for name, value in values
        ],
    }


def _as_identifier(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")[:96] or "pictures"


def taken_apart(text: str) -> tuple[dict[str, Any], str]:
    """(front matter, the rest) of a card.

    Raises:
        ValueError: It is too long, or its front matter cannot be read.
    """
    import yaml

    if len(text) > MAX_CARD:
        raise ValueError(f"its README.md has more than {MAX_CARD:,} characters")
    match = _FRONT.match(text.removeprefix("\ufeff"))
    if match is None:
        return {}, text
    try:
        found = yaml.load(match[1] or "", _loader()) or {}  # noqa: S506 - a safe one
    except Exception:  # also KeyError, IndexError, ... of what looks like a number or a date
        found = None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ValueError("the front matter of its README.md is no YAML of names: mend it first")
    return found, text.removeprefix("\ufeff")[match.end() :]


def _loader() -> Any:
    """PyYAML's safe loader, with the plain words of `_PLAIN_WORDS`."""
    import yaml

    kinds = {f"tag:yaml.org,2002:{kind}": (looks, begins) for kind, looks, begins in _PLAIN_WORDS}

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {  # noqa: RUF012 - as PyYAML has it
            first: [(kind, looks) for kind, looks in known if kind not in kinds]
            for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    for kind, (looks, begins) in kinds.items():
        Loader.add_implicit_resolver(kind, re.compile(f"(?:{looks})\\Z"), list(begins))
    return Loader


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value] if value else []


def _without_old(front: Mapping[str, Any], mine: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The front matter that is there, without what an earlier push said and holds no longer."""
    changed: dict[str, Any] = {}
    index = _listed(front.get("model-index"))
    others = [one for one in index if not (isinstance(one, dict) and one.get("name") == name)]
    if len(others) < len(index):
        changed["model-index"] = others
        if not others:
            metrics = _listed(front.get("metrics"))
            changed["metrics"] = [one for one in metrics if one != "accuracy"]
    tags = _listed(front.get("tags"))
    changed["tags"] = [one for one in tags if one not in _OF_SOME or one in mine["tags"]]
    if front.get("license") and mine.get("license", front["license"]) != front["license"]:
        changed |= {"license_name": None, "license_link": None}  # of the licence that was there
    kept = {key: changed.get(key, value) for key, value in front.items()}
    return {key: value for key, value in kept.items() if value or key in mine or key not in changed}


def _with_front(before: Mapping[str, Any], mine: Mapping[str, Any], body: str) -> str:
    import yaml

    front = dict(before)
    for key, value in mine.items():
        if key in ("tags", "datasets", "metrics", "model-index"):
            kept = _listed(front.get(key))
            value = [*kept, *(one for one in value if one not in kept)]
        front[key] = value
    text = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{text}---\n\n{body.lstrip()}".rstrip() + "\n"


# --- Sections ---


def _joined(sections: Mapping[str, str]) -> str:
    return "\n\n".join(_marked(name, text) for name, text in sections.items())


def _marked(name: str, text: str) -> str:
    return f"{_BEGIN.format(name)}\n{text.strip()}\n{_END.format(name)}"


def _merged(body: str, sections: Mapping[str, str]) -> str:
    """`body` with its generated sections replaced; all are added where it has none.

    One that a person has taken out stays out.
    """
    found = False
    for name, text in sections.items():
        begin, end = re.escape(_BEGIN.format(name)), re.escape(_END.format(name))
        parts = re.split(f"{begin}.*?{end}", body, maxsplit=1, flags=re.DOTALL)
        found |= len(parts) > 1
        body = _marked(name, text).join(parts)
    return body if found else f"{body.rstrip()}\n\n{_joined(sections)}"


def _sections(facts: Facts) -> dict[str, str]:
    return {
        "summary": _summary(facts),
        "use": _use(facts),
        "preprocessing": _preprocessing(facts.preprocessing),
        "accuracy": _accuracy(facts),
        "limits": _limits(facts),
        "licence": _licence(facts),
    }


def _summary(facts: Facts) -> str:
    sizes, side = facts.sizes, (facts.preprocessing or Preprocessing()).input_size
    rows = {
        "model": sizes.configuration or "a VAN of its own sizes",
        "channels of the stages": ", ".join(map(str, sizes.embed_dims)),
        "blocks of the stages": ", ".join(map(str, sizes.depths)),
        "parameters": f"{_parameters(sizes):,}",
        f"multiply-accumulates at {side} x {side}": f"{sizes.macs(side, side) / 1e9:.3f} G",
        "input": f"{sizes.in_chans} channel{'s' if sizes.in_chans > 1 else ''}",
    }
    if facts.has_head:
        rows["classes"] = f"{sizes.num_classes:,}"
    if facts.card.dataset:
        rows["trained on"] = facts.card.dataset
    table = "\n".join(f"| {what} | {value} |" for what, value in rows.items())
    kind = "image classifier" if facts.has_head else "backbone"
    text = (
        f"An {kind}, " if facts.has_head else f"A {kind}, "
    ) + f"a [Visual Attention Network]({_PAPER}) for Keras 3 (TensorFlow, JAX or PyTorch)."
    return f"{text}\n\n| | |\n|---|---|\n{table}\n{_classes(facts)}"


def _classes(facts: Facts) -> str:
    if not facts.has_head or facts.card.labels is None:
        return ""
    labels = [one.text for one in labels_of(facts.card.labels, facts.sizes.num_classes or 0)]
    shown = ", ".join(_plain(label) for label in labels[:_NAMED])
    more = f" and {len(labels) - _NAMED:,} more" if len(labels) > _NAMED else ""
    return f"\nClasses: {shown}{more}.\n"


def _plain(text: str) -> str:
    """A name of others as Markdown shows it: no markup, no end of a line, no comment."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~])", r"\\\1", printable(text[:200]))


def _parameters(sizes: Architecture) -> int:
    from math import prod

    specs = sizes.tensors().items()
    return sum(prod(spec.shape) for name, spec in specs if ".running_" not in name)


def _use(facts: Facts) -> str:
    address = there = str(facts.name)
    pulled = ""
    if facts.name.revision is not None:  # which an address of Keras and KerasHub cannot name
        there = facts.name.name
        pulled = f", of the folder that `van pull {address} --output {there}` makes"
    install = "pip install 'van-classification-tensorflow{}'"
    ours = (
        f'from van_classification_tensorflow import VAN, Classifier\n\nmodel = VAN("{address}")'
        f'  # Keras\nprint(Classifier("{address}")(["photo.jpg"]))'
        if facts.has_head and facts.preprocessing is not None
        else f'from van_classification_tensorflow import VAN\n\nmodel = VAN("{address}")'
        if facts.has_head
        else f'from van_classification_tensorflow import VAN\n\nbackbone = VAN("{address}", '
        "include_top=False)"
    )
    text = f"""## Use

With its own package, `{install.format("")}`, which reads `model.safetensors` and executes nothing:

```python
{ours}
```

With Keras, once that package is imported (and `huggingface_hub` installed){pulled}:

```python
import keras
import van_classification_tensorflow

model = keras.saving.load_model("{there}")
```
"""
    if facts.with_keras_hub:
        text += f"""
With KerasHub, `{install.format("[keras-hub]")}`{pulled}:

```python
import keras_hub
import van_classification_tensorflow

classifier = keras_hub.models.ImageClassifier.from_preset("{there}")
```
"""
    return text + (
        "\nAll of them compute the same, to the last bit (on one machine and backend). "
        "`model.safetensors` has the names of the authors' PyTorch code."
    )


def _preprocessing(found: Preprocessing | None) -> str:
    if found is None:
        return (
            "## Preprocessing\n\nNone is known: the weights do not say how the pictures that they "
            "were trained on were prepared."
        )
    side = found.input_size
    how = (
        f"both sides to {found.resize_to} pixels"
        if found.resize == "both sides"
        else f"the shorter side to {found.resize_to} pixels"
    )
    return (
        f"## Preprocessing\n\nResize {how} (Pillow, {found.interpolation}), centre crop of {side} "
        f"x {side}, scale to [0, 1], take {_numbers(found.mean)} and divide by "
        f"{_numbers(found.std)} in each channel. `Classifier` and KerasHub's `ImageClassifier` do "
        "it; the model that Keras loads takes pictures prepared so."
    )


def _numbers(values: tuple[float, ...]) -> str:
    same = len(set(values)) == 1
    return f"{values[0]:g}" if same else "(" + ", ".join(f"{one:g}" for one in values) + ")"


def _accuracy(facts: Facts) -> str:
    text = "## Accuracy\n\n"
    found = facts.measured
    if found is not None:
        low, high = (f"{100 * share:.2f}" for share in found.top1_interval)
        text += (
            f"Measured on {_plain(found.dataset)}, {found.pictures:,} pictures, among "
            f"{found.classes:,} classes: top-1 {100 * found.top1:.2f} % (95 % interval {low} to "
            f"{high})"
        )
        text += f", top-5 {100 * found.top5:.2f} %" if found.classes > 5 else ""
        text += f"; {found.failed:,} pictures could not be read" if found.failed else ""
        text += (
            f". Version {_plain(found.version)} of `van-classification-tensorflow`, of weights "
            f"called {_plain(found.model)}"
        )
        command = found.command(str(facts.name))
        text += f":\n\n```bash\n{command}\n```\n" if command else ".\n"
    published = facts.card.top1
    if published is not None:
        five = f", top-5 {facts.card.top5:.2f} %" if facts.card.top5 is not None else ""
        text += f"Published, not measured here: ImageNet-1k top-1 {published:.2f} %{five}.\n"
    if found is None and published is None:
        text += "Not measured. `van evaluate --data FOLDER --weights ...` measures it.\n"
    return text


def _limits(facts: Facts) -> str:
    text = "## Limits\n\n"
    if facts.has_head:
        text += (
            "Whatever is in a picture, the answer is one of the classes above; a probability is "
            "no measure of whether the picture shows any of them. "
        )
    text += (
        "It has the biases of the pictures it was trained on. Accuracy elsewhere is known only "
        "once it is measured there.\n"
    )
    for one in (facts.card.notes, *facts.card.assumed.values()):
        text += f"\n{_plain_long(one)}\n" if one else ""
    return text


def _plain_long(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", printable(" ".join(text.split())[:2000]))


def _licence(facts: Facts) -> str:
    stated = (
        f"The weights: {_plain(facts.licence)}" if facts.licence else "No licence is stated here"
    )
    note = facts.card.licence_note
    note = f"; {note}" if note else ""
    version = f" {facts.version}" if facts.version else ""
    return (
        f"## Licence and credit\n\n{stated}{note}. The architecture is by Meng-Hao Guo, "
        "Cheng-Ze Lu, Zheng-Ning Liu, Ming-Ming Cheng and Shi-Min Hu "
        f"([paper]({_PAPER}), [code]({_CODE}), Apache-2.0, to which they add: for commercial "
        "use, please contact the authors).\n\n"
        f"{_CITATION}\n\nThis card was written by `van push`{version}."
    )
