"""`POST /predict`: the answers, and what is wrong with a request."""

import numpy as np
import pytest

from van_classification_tensorflow.explanation.last_stage import LAST_STAGE_METHODS, LastStage
from van_classification_tensorflow.inference.classifier import Classifier

from .conftest import picture

PNG = {"content-type": "image/png"}


@pytest.fixture(scope="module")
def classifier():
    return Classifier("digits", engine="numpy")


def test_one_picture(client, classifier):
    answer = client.post("/predict?top=3", content=picture(), headers=PNG)
    assert answer.status_code == 200
    (result,) = answer.json()["results"]
    expected = classifier(picture(), top=3)
    assert [one["index"] for one in result["predictions"]] == [one.index for one in expected]
    found = [one["probability"] for one in result["predictions"]]
    np.testing.assert_allclose(found, [one.probability for one in expected], atol=1e-5)
    assert (result["width"], result["height"], result["error"]) == (40, 30, None)
    assert answer.json()["model"] == "digits"


def test_several_of_a_form_each_by_itself(client, classifier):
    sent = [
        ("a", ("one.png", picture(1))),
        ("a", ("broken.png", b"x")),
        ("b", ("ü.jpg", picture(2))),
    ]
    answer = client.post("/predict?top=1", files=sent)
    assert answer.status_code == 200
    first, broken, last = answer.json()["results"]
    assert [first["name"], broken["name"], last["name"]] == ["one.png", "broken.png", "ü.jpg"]
    assert "not a picture" in broken["error"]
    assert broken["predictions"] == []
    for seed, one in ((1, first), (2, last)):
        assert one["predictions"][0]["index"] == classifier(picture(seed), top=1)[0].index


def test_nothing_to_be_read(client):
    answer = client.post("/predict", content=b"nonsense", headers=PNG)
    assert answer.status_code == 422
    assert "not a picture" in answer.json()["error"]


def explained(client, path, content=None):
    answer = client.post(path, content=content or picture(), headers=PNG)
    assert answer.status_code == 200, answer.text
    (result,) = answer.json()["results"]
    return result


@pytest.mark.parametrize("method", LAST_STAGE_METHODS)
def test_explanations(client, classifier, method):
    result = explained(client, f"/predict?explain={method}")
    why = result["explanation"]
    assert (why["method"], why["class"]["index"]) == (method, result["predictions"][0]["index"])
    assert why["class"]["label"] == result["predictions"][0]["label"]
    views, _ = classifier.prepare(picture())
    expected = LastStage(classifier)(views, None, method)
    assert why["layer"] == expected.layer
    found = np.reshape(why["map"]["values"], (why["map"]["height"], why["map"]["width"]))
    np.testing.assert_allclose(found, expected.maps[0], atol=1e-3)
    assert why["empty"] == (not found.any()) == bool(why["note"])
    # Resized to 42 x 32 pixels, of which it sees 32 from the 5th.
    crop = {"left": 5 * 40 / 42, "top": 0, "width": 32 * 40 / 42, "height": 30}
    assert why["crop"] == pytest.approx(crop)


@pytest.mark.parametrize("wanted", ["7", "07"])
def test_a_class_to_explain(client, wanted):
    answer = client.post(
        f"/predict?explain=grad-cam&class={wanted}", content=picture(), headers=PNG
    )
    assert answer.json()["results"][0]["explanation"]["class"] == {"index": 7, "label": "7"}


@pytest.mark.parametrize("wanted", ["ten", "10", "-1", "", "1e0"])
def test_no_such_class(client, wanted):
    answer = client.post(
        f"/predict?explain=grad-cam&class={wanted}", content=picture(), headers=PNG
    )
    assert answer.status_code == 400
    assert "`class` must be" in answer.json()["error"]


def test_no_such_method(client):
    answer = client.post("/predict?explain=magic", content=picture(), headers=PNG)
    assert answer.status_code == 400
    assert "grad-cam" in answer.json()["error"]


def test_a_model_that_cannot_be_explained_says_so_at_the_start(make_client, monkeypatch):
    def broken(explainer, images, class_index=None, method="grad-cam"):
        raise ValueError("its graph\ndoes not run")

    monkeypatch.setattr(LastStage, "__call__", broken)
    client = make_client()
    assert client.get("/about").json()["explain"] == []
    answer = client.post("/predict?explain=grad-cam", content=picture(), headers=PNG)
    assert answer.status_code == 400
    assert "the model digits does not: its graph does not run" in answer.json()["error"]
    assert client.post("/predict", content=picture(), headers=PNG).status_code == 200


def test_an_explanation_changes_no_answer(make_client):
    """Where the answer is an average over views, or of another engine, the map is of its class."""
    flipped = make_client(flip=True, crops=5)
    plain = flipped.post("/predict", content=picture(3), headers=PNG).json()
    asked = flipped.post("/predict?explain=grad-cam", content=picture(3), headers=PNG).json()
    (answer,), (explained,) = plain["results"], asked["results"]
    assert explained["predictions"] == answer["predictions"]
    assert explained["explanation"]["class"]["index"] == answer["predictions"][0]["index"]


def test_what_is_no_number_is_said_of_the_picture(make_client, monkeypatch):
    broken = make_client()
    model = broken.app.service.model("")
    monkeypatch.setattr(model, "_in_turn", lambda x: np.full((len(x), 10), np.nan, np.float32))
    monkeypatch.setattr(model, "_engine", model._in_turn)
    for path in ("/predict", "/predict?explain=grad-cam"):
        answer = broken.post(path, content=picture(1), headers=PNG)
        assert (answer.status_code, "no finite number" in answer.json()["error"]) == (422, True)


def test_large_answers_are_made_beside_the_loop(client, monkeypatch):
    monkeypatch.setattr("van_classification_tensorflow.serve.predict._MANY", 0)
    monkeypatch.setattr("van_classification_tensorflow.serve.predict._LARGE", 0)
    before = client.post("/predict?top=10", content=picture(1), headers=PNG)
    assert before.status_code == 200
    assert len(before.json()["results"][0]["predictions"]) == 10
    assert client.post("/predict?top=1001", content=picture(1), headers=PNG).status_code == 400
