import re

import pytest

from van_classification_tensorflow.spec.config import CONFIGURATIONS, DEFAULT, VANConfig, resolve


def test_names_and_defaults():
    assert list(CONFIGURATIONS) == [f"van_b{i}" for i in range(7)]
    assert resolve() == DEFAULT
    assert resolve("van_b0").hidden_dims == (256, 512, 640, 1024)


def test_overrides_beside_a_name():
    config = resolve("van_b0", depths=[1, 1, 1, 1], num_stages=4)
    assert (config.depths, config.embed_dims) == ((1, 1, 1, 1), (32, 64, 160, 256))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"configuration": "van_b7"}, "`configuration` must be one of van_b0, .*'van_b7'"),
        ({"configuration": 3}, "`configuration` must be one of"),
        ({"depths": [1, 1]}, "same length.*'depths': 2"),
        ({"depths": []}, "`depths` must be a list .*at least one stage"),
        ({"depths": 3}, "`depths` must be a list"),
        ({"depths": [1, 1, 0, 1]}, "`depths` must hold positive integers"),
        ({"embed_dims": [64, 128, 256.5, 512]}, "`embed_dims` must hold positive integers"),
        ({"mlp_ratios": [4, 4, "4", 4]}, "`mlp_ratios` must hold positive numbers"),
        ({"mlp_ratios": [4, 4, 4, 0.001]}, "at least one hidden channel"),
        ({"configuration": "van_b0", "num_stages": 3}, "`num_stages` must equal .*4.*num_stages=3"),
    ],
)
def test_wrong_arguments_name_themselves(arguments, says):
    with pytest.raises(ValueError, match=re.compile(says, re.DOTALL)):
        resolve(**arguments)


def test_config_is_frozen():
    with pytest.raises(AttributeError):
        VANConfig([8], [2], [1]).depths = (2,)
