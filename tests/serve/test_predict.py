"""`POST /predict`: the answers, and what is wrong with a request."""

import numpy as np
import pytest

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
