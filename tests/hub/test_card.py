"""The model card: what is generated, and what a person wrote in it."""

from dataclasses import replace

import pytest
import yaml

from tests.hub.test_measured import MEASURED
from tests.parity import GOLDEN
from van_classification_tensorflow.hub.card import (
    Facts,
    datasets_of,
    front_matter,
    licence_of,
    licence_stated,
    model_card,
)
from van_classification_tensorflow.spec.card import Card
from van_classification_tensorflow.spec.preprocessing import Preprocessing
from van_classification_tensorflow.weights.catalogue import CATALOGUE
from van_classification_tensorflow.weights.checkpoint import read_weights
from van_classification_tensorflow.weights.hub_name import HubName

SIZES = read_weights(GOLDEN / "micro.safetensors").architecture
FACTS = Facts(
    HubName.of("hf://me/micro"),
    Card(name="micro", labels=tuple("abcdefghij")),
    SIZES,
    Preprocessing(),
    licence="mit",
    version="1.2",
)


def taken_apart(text):
    assert text.startswith("---\n")
    front, _, body = text[4:].partition("\n---\n")
    return yaml.safe_load(front), body


def test_front_matter_of_a_classifier():
    front, body = taken_apart(model_card(replace(FACTS, measured=MEASURED, datasets=("x/y",))))
    assert front["license"] == "mit"
    assert front["library_name"] == "keras"
    assert front["pipeline_tag"] == "image-classification"
    assert {"van", "keras-hub", "safetensors"} <= set(front["tags"])
    assert front["datasets"] == ["x/y"]
    (result,) = front["model-index"][0]["results"]
    assert result["task"] == {"type": "image-classification"}
    assert result["dataset"] == {"name": "my flowers", "type": "my-flowers"}
    assert [one["value"] for one in result["metrics"]] == [0.91, 0.99]
    assert "top-1 91.00 % (95 % interval 89.00 to 93.00), top-5 99.00 %" in body
    assert "of weights called flowers:" in body
    assert "van evaluate --data 'my flowers' --weights hf://me/micro --test-size 64" in body


def test_front_matter_without_a_head_or_a_licence():
    facts = replace(FACTS, sizes=replace(SIZES, num_classes=None), licence="", with_keras_hub=False)
    front, body = taken_apart(model_card(facts))
    assert "license" not in front
    assert front["pipeline_tag"] == "image-feature-extraction"
    assert "keras-hub" not in front["tags"]
    assert "model-index" not in front
    assert "No licence is stated here" in body
    assert "keras_hub" not in body
    assert "Not measured." in body


def test_published_weights_say_what_their_authors_do():
    record = CATALOGUE["van_b0.in1k"]
    assert (licence_of(record), datasets_of(record)) == ("apache-2.0", ("imagenet-1k",))
    sizes = replace(SIZES, num_classes=1000)
    facts = replace(FACTS, card=record, sizes=sizes, licence=licence_of(record))
    text = model_card(facts)
    assert "for commercial use, please contact the authors" in text
    assert "Published, not measured here: ImageNet-1k top-1 75.41 %" in text
    assert licence_of(CATALOGUE["digits"]) == "mit"


def test_the_code_in_it_is_python():
    import ast
    import re

    blocks = re.findall(r"```python\n(.*?)```", model_card(FACTS), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        ast.parse(block)


def test_a_second_push_keeps_what_a_person_wrote():
    first = model_card(FACTS)
    edited = first.replace("license: mit", "license: cc-by-4.0\nlanguage: en  # mine")
    edited = edited.replace("- van\n", "- van\n- flowers\n")
    edited = edited.replace("# micro\n", "# Flowers of my garden\n\nBy me.\n")
    edited = edited.replace("<!-- van push: end use -->", "<!-- van push: end use -->\n\nMore.\r\n")
    edited += "\n## Thanks\n\nTo all.\n"
    facts = replace(FACTS, measured=MEASURED, licence="")
    second = model_card(facts, edited)
    front, body = taken_apart(second)
    assert front["license"] == "cc-by-4.0"
    assert front["language"] == "en"
    assert front["tags"].count("van") == front["tags"].count("flowers") == 1
    assert front["metrics"] == ["accuracy"]
    for kept in ("# Flowers of my garden\n\nBy me.\n", "\n\nMore.\r\n", "## Thanks\n\nTo all."):
        assert kept in body
    assert "Not measured." not in body
    assert body.count("## Accuracy") == body.count("## Use") == 1
    assert model_card(facts, second) == second


def test_what_holds_no_longer_goes():
    first = model_card(replace(FACTS, measured=MEASURED))
    other = "- name: other\n  results: []\n"
    mine = first.replace("model-index:\n", f"model-index:\n{other}").replace("- van\n", "- x\n")
    facts = replace(
        FACTS, sizes=replace(SIZES, num_classes=None), with_keras_hub=False, measured=None
    )
    front, body = taken_apart(model_card(facts, first))
    assert not {"model-index", "metrics"} & front.keys()
    assert not {"image-classification", "keras-hub"} & set(front["tags"])
    assert "Not measured." in body
    front, _ = taken_apart(model_card(facts, mine))
    assert front["model-index"] == [{"name": "other", "results": []}]
    assert "x" in front["tags"]
    front, _ = taken_apart(model_card(replace(FACTS, measured=replace(MEASURED, top1=0.5)), mine))
    assert [one["name"] for one in front["model-index"]] == ["other", "micro"]
    assert front["model-index"][1]["results"][0]["metrics"][0]["value"] == 0.5


@pytest.mark.parametrize(
    ("there", "asked", "front", "body"),
    [
        (None, "", None, "No licence is stated here"),
        (None, "mit", "mit", "The weights: mit."),
        ("license: mit", "", "mit", "The weights: mit."),
        ("license: mit", "apache-2.0", "apache-2.0", "The weights: apache-2.0."),
        ("license: [mit, cc0-1.0]", "", ["mit", "cc0-1.0"], "The weights: mit, cc0-1.0."),
        ("license: other\nlicense_name: x", "", "other", "The weights: other."),
        ("license: other\nlicense_name: x", "mit", "mit", "The weights: mit."),
        ("license:", "", None, "No licence is stated here"),
    ],
)
def test_front_matter_and_text_state_one_licence(there, asked, front, body):
    facts = replace(FACTS, licence=asked)
    before = None if there is None else f"---\n{there}\n---\nMine\n"
    text = model_card(facts, before)
    found, rest = taken_apart(text)
    assert found.get("license") == front
    assert body in rest
    assert ("license_name" in found) == (front == "other")
    assert (licence_stated(facts, before) == "") == (front is None)
    assert model_card(replace(facts, licence=""), text) == text


def test_words_are_those_of_the_hub():
    before = (
        "---\n# -----\nlanguage: no\ntime: 12:30\nkept: on\ninference: true\nsize: 12\n"
        "code: 012\nshare: 0.5\nday: 2024-01-02\nnothing: null\n---\nMine\n\n---\n"
    )
    text = model_card(FACTS, before)
    front, body = taken_apart(text)
    assert {key: front[key] for key in ("language", "time", "kept", "inference", "size")} == {
        "language": "no",
        "time": "12:30",
        "kept": "on",
        "inference": True,
        "size": 12,
    }
    assert (front["code"], front["share"], str(front["day"])) == ("012", 0.5, "2024-01-02")
    assert front["nothing"] is None
    assert "Mine\n\n---\n" in body
    assert model_card(FACTS, text) == text


def test_no_preprocessing_is_made_up():
    facts = replace(FACTS, sizes=replace(SIZES, in_chans=4), preprocessing=None)
    text = model_card(facts)
    assert "None is known" in text
    assert "0.5" not in text
    assert "Classifier(" not in text


def test_the_card_of_a_branch_does_not_lead_to_another():
    text = model_card(replace(FACTS, name=HubName.of("hf://me/micro@trial")))
    assert text.count("van pull hf://me/micro@trial --output micro") == 2
    assert text.count('("micro")') == 2
    assert '"hf://me/micro"' not in text


def test_a_section_that_was_taken_out_stays_out():
    first = model_card(FACTS)
    begin, end = (first.index(f"<!-- van push: {word} limits -->") for word in ("begin", "end"))
    edited = first[:begin] + first[end + len("<!-- van push: end limits -->") :]
    assert "## Limits" not in model_card(FACTS, edited)


@pytest.mark.parametrize("before", ["", "My card\n", "---\n---\n", "---\ntags: mine\n---\nMy card"])
def test_a_card_of_others_is_added_to(before):
    text = model_card(FACTS, before)
    front, body = taken_apart(text)
    assert body.count("## Use") == 1
    if "My card" in before:
        assert body.lstrip().startswith("My card\n\n<!-- van push: begin summary -->")
    assert ("mine" in front["tags"]) == ("mine" in before)
    assert model_card(FACTS, text) == text


@pytest.mark.parametrize(
    "before",
    [
        "---\n[1, 2]\n---\n",
        "---\n{\n---\n",
        "---\n1: 2\n---\n",
        "---\n!!python/name:os.system\n---\n",
        "---\nx: !!int ''\n---\n",
        "---\nx: !!bool maybe\n---\n",
    ],
)
def test_a_front_matter_that_is_none_is_said(before):
    with pytest.raises(ValueError, match="no YAML of names: mend it first"):
        model_card(FACTS, before)


def test_a_card_without_end_is_refused():
    with pytest.raises(ValueError, match="more than 1,048,576 characters"):
        model_card(FACTS, "x" * ((1 << 20) + 1))


def test_names_of_others_are_no_markup():
    labels = ("<script>", "a|b", "[x](http://y)", "<!-- van push: end summary -->", "\x1b[31m")
    facts = replace(FACTS, card=Card(name="x", labels=(*labels, *"fghij")))
    text = model_card(facts)
    assert "<script>" not in text
    assert "\x1b" not in text
    assert text.count("<!-- van push: end summary -->") == 1
    assert model_card(facts, text) == text


def test_front_matter_is_plain():
    assert yaml.safe_load(yaml.safe_dump(front_matter(FACTS))) == front_matter(FACTS)
