"""How a picture becomes input: the record that each checkpoint carries."""

import json

import pytest

from van_classification_tensorflow.preprocessing import Preprocessing
from van_classification_tensorflow.weights import CATALOGUE


def test_preprocessing_reads_like_a_sentence_and_survives_json():
    one = Preprocessing()
    assert str(one) == (
        "shorter side to 248 (bicubic), centre crop 224, mean (0.5, 0.5, 0.5), std (0.5, 0.5, 0.5)"
    )
    for record in (one, CATALOGUE["van_b5.in22k"].preprocessing, CATALOGUE["digits"].preprocessing):
        assert Preprocessing.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    assert Preprocessing(256, 0.875).resize_to == 292  # floor(292.57)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"input_size": 0}, "`input_size`"),
        ({"input_size": 224.0}, "`input_size`"),
        ({"input_size": True}, "`input_size`"),
        ({"crop_pct": 0}, "`crop_pct`"),
        ({"crop_pct": 1.01}, "`crop_pct`"),
        ({"crop_pct": float("nan")}, "`crop_pct`"),
        ({"interpolation": "cubic"}, "bicubic, lanczos"),
        ({"mean": (0.5, 0.5)}, "`mean`"),
        ({"mean": 0.5}, "`mean`"),
        ({"mean": (float("nan"),) * 3}, "`mean`"),
        ({"mean": "0.5"}, "`mean`"),
        ({"mean": (0.5,)}, "`mean` and `std`"),
        ({"std": (0.5, 0.5, 0.0)}, "`std` divides"),
        ({"std": (float("inf"),) * 3}, "`std`"),
        ({"crop": 0.9}, "Received also: crop"),
    ],
)
def test_preprocessing_refuses(wrong, says):
    with pytest.raises(ValueError, match="Received") as error:
        Preprocessing.from_dict(wrong)
    assert says in str(error.value)
