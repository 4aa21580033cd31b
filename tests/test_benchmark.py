import keras
import pytest

from van_classification_tensorflow import VAN
from van_classification_tensorflow.benchmark import count_macs, count_parameters
from van_classification_tensorflow.config import CONFIGURATIONS

# Trainable parameters and convolution + linear MACs at 224 x 224, of the authors' code.
TABLE = {
    "van_b0": (4_105_800, 0.864),
    "van_b1": (13_861_800, 2.495),
    "van_b2": (26_578_472, 4.993),
    "van_b3": (44_765_608, 8.925),
    "van_b4": (60_283_176, 12.144),
    "van_b5": (89_967_688, 17.129),
    "van_b6": (199_829_416, 38.710),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_parameters_and_macs_of_the_family(name):
    model = VAN(name)
    assert count_parameters(model)[0] == TABLE[name][0]
    assert round(count_macs(model) / 1e9, 3) == TABLE[name][1]
    if name == "van_b0":
        assert count_parameters(model)[1] == 7_424
        assert model.count_params() == 4_113_224
    keras.utils.clear_session()


def test_macs_of_one_block_by_hand():
    model = VAN(embed_dims=[8], mlp_ratios=[2], depths=[1], num_classes=5)
    positions = 16 * 8  # a 64 x 32 image at stride 4
    block = 3 * 8 * 8 + 8 * (5 * 5 + 7 * 7) + 2 * 8 * 16 + 16 * 3 * 3
    assert count_macs(model, (64, 32)) == positions * (7 * 7 * 3 * 8 + block) + 8 * 5
