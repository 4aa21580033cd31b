"""The decoders as records: sizes, tensors, and how they are told from a file."""

import re

import numpy as np
import pytest

from van_classification_tensorflow.spec.config import CONFIGURATIONS
from van_classification_tensorflow.spec.decoders import (
    AUXILIARY_CHANNELS,
    DecoderSizes,
    decoder_of,
    published_sizes,
)
from van_classification_tensorflow.spec.palette import colours_of

B0 = CONFIGURATIONS["van_b0"].embed_dims
BACKBONE = 4_105_800 - 257_000  # parameters of van_b0 without its head
HAM = {"channels": 64, "ham_channels": 32, "ham_rank": 4, "ham_groups": 1}


@pytest.mark.parametrize(
    ("kind", "changes", "parameters"),
    [
        ("upernet", {"auxiliary_channels": AUXILIARY_CHANNELS}, 32_133_004),
        ("semantic_fpn", {}, 7_984_374),
        ("light_ham", {}, 4_866_134),
        ("light_ham", {"channels": 256, "ham_channels": 256, "ham_rank": 16}, 4_208_630),
    ],
)
def test_published_sizes_have_the_published_parameters(kind, changes, parameters):
    sizes = DecoderSizes(kind=kind, **{**published_sizes(kind, "van_b0"), **changes})
    assert BACKBONE + sizes.parameters(B0, 150) == parameters
    specs = sizes.tensors(B0, 150)
    found = {name: np.empty(spec.shape, np.bool_) for name, spec in specs.items()}
    assert decoder_of(found) == (sizes, 150)
    assert DecoderSizes.of_config({"decoder": kind, **sizes.numbers()}) == sizes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"kind": "pspnet", "channels": 8}, "`decoder` must be one of 'upernet', 'semantic_fpn'"),
        ({"kind": "upernet", "channels": 0}, "`channels` must be an integer >= 1"),
        ({"kind": "upernet", "channels": 8, "ham_rank": 4}, "`ham_rank` belongs to decoder="),
        ({"kind": "semantic_fpn", "channels": 8}, "`neck_channels` must be an integer"),
        ({"kind": "light_ham", **HAM, "channels": 40}, "`channels` must be a multiple of 32"),
        ({"kind": "light_ham", **HAM, "ham_channels": 40}, "`ham_channels` must be a multiple"),
        ({"kind": "light_ham", **HAM, "ham_groups": 3}, "`ham_groups` must divide ham_channels=32"),
        ({"kind": "light_ham", **HAM, "ham_rank": 2.0}, "`ham_rank` must be an integer"),
    ],
)
def test_sizes_that_are_refused(arguments, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        DecoderSizes(**arguments)


def test_what_a_file_says_is_bounded():
    with pytest.raises(ValueError, match="a decoder of more than 1,000,000 channels"):
        DecoderSizes.of_config({"decoder": "upernet", "channels": 10**9})
    for said in ({}, {"decoder": "upernet"}, {"decoder": ["upernet"], "channels": 3}):
        with pytest.raises(ValueError, match="must be"):
            DecoderSizes.of_config(said)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({}, "not the weights of a segmenter: decode_head.conv_seg.weight is missing"),
        ({"decode_head.conv_seg.weight": np.ones(3)}, "has shape (3,); expected 4 axes"),
        (
            {"decode_head.conv_seg.weight": np.ones((2, 3, 1, 1)), "decode_head.image_pool.1": 0},
            "none of UPerHead (UPerNet), FPNHead (Semantic FPN) and LightHamHead; it has: conv_seg,"
            " image_pool",
        ),
        (
            {
                "decode_head.conv_seg.weight": np.ones((2, 3, 1, 1)),
                "decode_head.scale_heads.0.0.conv.weight": np.ones((3, 3, 3, 3)),
            },
            "neck.lateral_convs.0.conv.weight is missing",
        ),
    ],
)
def test_other_decoders_are_named(tensors, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        decoder_of(tensors)


def test_a_palette_is_a_colour_for_each_class():
    assert colours_of(np.array([[0, 1, 2], [3, 4, 255]], np.uint8), 2) == ((0, 1, 2), (3, 4, 255))
    for wrong, says in (
        ([[0, 0, 0]], "a colour for each of 2 classes. Received: 1 colours"),
        ("ab", "a colour for each of 2"),
        ([[0, 0, 0], [0, 0]], "for class 1: [0, 0]"),
        ([[0, 0, 0], [0, 0, 256]], "whole numbers from 0 to 255"),
        ([[0, 0, 0], [0, 0, 0.5]], "whole numbers from 0 to 255"),
        ([[0, 0, 0], {1, 2, 3}], "for class 1"),
    ):
        with pytest.raises(ValueError, match=re.escape(says)):
            colours_of(wrong, 2)
