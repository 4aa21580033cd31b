"""`VANSegmenter` as a Keras model: arguments, formats, types, saving, training."""

import re

import keras
import numpy as np
import pytest

from tests.parity import load_seeded, seeded_images
from tests.segment.golden import micro, seeded
from van_classification_tensorflow import VAN, VANSegmenter
from van_classification_tensorflow.model.load import to_official
from van_classification_tensorflow.segment import hamburger
from van_classification_tensorflow.segment.hamburger import NMF2D, seeded_bases
from van_classification_tensorflow.segment.load import tensors_of
from van_classification_tensorflow.segment.losses import SegmentationCrossEntropy
from van_classification_tensorflow.spec.preprocessing import Preprocessing

TINY = {
    "embed_dims": [4, 4, 8, 8],
    "mlp_ratios": [2, 2, 2, 2],
    "depths": [1, 1, 1, 1],
    "num_classes": 3,
    "data_format": "channels_last",
}
DECODERS = {
    "upernet": {"channels": 4},
    "semantic_fpn": {"channels": 4, "neck_channels": 8},
    "light_ham": {"channels": 32, "ham_channels": 64, "ham_rank": 4, "ham_groups": 2},
}


def tiny(decoder="upernet", **options):
    return VANSegmenter(decoder=decoder, **{**TINY, **DECODERS[decoder], **options})


def values(maps):
    return keras.ops.convert_to_numpy(maps)


@pytest.fixture(scope="module")
def picture():
    return seeded_images(3, (2, 37, 52, 3))


@pytest.mark.slow
@pytest.mark.parametrize("decoder", DECODERS)
def test_formats_sizes_and_files(decoder, picture, tmp_path):
    """Channels first gives the same, a file too, and the size changes from call to call."""
    model = seeded(tiny(decoder))
    model.labels, model.palette = ["a", "b", "c"], np.eye(3, dtype=np.uint8)
    model.preprocessing = Preprocessing(input_size=64)
    model.get_layer("conv_seg").trainable = model.get_layer("norm2").trainable = False
    stride = {"light_ham": 8}.get(decoder, 4)
    assert model.stride == stride
    sizes = [-(-n // 4) for n in (37, 52)]
    sizes = [-(-n // 2) for n in sizes] if stride == 8 else sizes
    expected = values(model(picture))
    assert expected.shape == (2, *sizes, 3)
    assert model.output_shape == (None, None, None, 3)
    first = tiny(decoder, data_format="channels_first")
    first.set_weights(model.get_weights())
    ours = values(first(np.moveaxis(picture, -1, 1)))
    np.testing.assert_allclose(np.moveaxis(ours, 1, -1), expected, rtol=0, atol=1e-6)
    assert [maps.shape[1] for maps in first.pyramid_outputs.values()] == TINY["embed_dims"]

    model.save(tmp_path / "x.keras")
    again = keras.saving.load_model(tmp_path / "x.keras")
    assert type(again) is VANSegmenter
    np.testing.assert_array_equal(values(again(picture)), expected)
    assert again.get_config() == model.get_config()
    assert (again.labels, again.palette) == (("a", "b", "c"), ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    assert again.preprocessing == model.preprocessing
    frozen = {layer.name for layer in again.layers if not layer.trainable and layer.weights}
    assert frozen == {"conv_seg", "norm2"}
    config = model.get_config()
    assert config["parts"].keys() == frozen
    assert "parts" not in tiny(decoder).get_config()


@pytest.mark.slow
def test_a_traced_graph_takes_every_size(picture):
    for decoder in DECODERS:
        model = seeded(tiny(decoder))
        for images in (picture, picture[:, :33], picture[:1, :, :40]):
            found = model.predict(images, verbose=0)
            np.testing.assert_allclose(found, values(model(images)), rtol=0, atol=1e-5)


def test_a_van_is_copied_with_its_weights(picture):
    sizes = {name: TINY[name] for name in ("embed_dims", "mlp_ratios", "depths")}
    van = load_seeded(VAN(**sizes, num_classes=5, drop_path_rate=0.2, data_format="channels_last"))
    van.preprocessing = Preprocessing(input_size=64)
    model = VANSegmenter(van, num_classes=3, channels=4, data_format="channels_last")
    assert (model.backbone, model.depths, model.drop_path_rate) == (None, [1, 1, 1, 1], 0.2)
    assert model.preprocessing == van.preprocessing
    theirs, ours = to_official(van), to_official(model)
    assert theirs.keys() - ours.keys() == {"head.weight", "head.bias"}
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert not {id(v) for v in van.variables} & {id(v) for v in model.variables}
    assert model.get_layer("norm1").epsilon == 1e-5
    assert van.get_layer("norm1").epsilon == 1e-6
    with pytest.raises(ValueError, match="`in_chans` must be that of the VAN given as `backbone`"):
        VANSegmenter(van, in_chans=1)
    with pytest.raises(ValueError, match="must not be given beside a VAN"):
        VANSegmenter(van, depths=[1, 1, 1, 1])


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_half_precision_and_a_step_of_training(picture):
    labels = np.zeros((2, 37, 52), np.uint8)
    labels[:, 5:9] = 255
    loss = SegmentationCrossEntropy(data_format="channels_last")
    for decoder, options in (
        ("upernet", {"auxiliary": True, "auxiliary_channels": 4}),
        ("light_ham", {}),
    ):
        model = tiny(decoder, dtype="mixed_bfloat16", **options)
        outputs = model.outputs
        assert [one.dtype for one in outputs] == ["float32"] * len(outputs)
        model.compile(
            keras.optimizers.SGD(100.0),
            [loss] * len(outputs),
            loss_weights=[1.0, 0.4][: len(outputs)],
        )
        before = {v.path: values(v).copy() for v in model.trainable_variables}
        found = model.train_on_batch(picture, [labels] * len(outputs) if options else labels)
        assert np.isfinite(np.asarray(found)).all()
        # Behind a bias or beta, BatchNorm may take every sum away again.
        same = [v.path for v in model.trainable_variables if (before[v.path] == values(v)).all()]
        assert not [path for path in same if not path.endswith(("beta", "bias"))], same


def test_bases_are_of_a_seed_and_drawn_in_training():
    maps = np.abs(seeded_images(1, (2, 3, 4, 8)))
    ham = NMF2D(rank=2, groups=2)
    fixed = values(ham(maps))
    np.testing.assert_array_equal(values(ham(maps)), fixed)
    np.testing.assert_array_equal(values(ham(maps[1:])), fixed[1:])
    ham.bases = seeded_bases(0, 2, 4, 2)
    np.testing.assert_array_equal(values(ham(maps)), fixed)
    np.testing.assert_allclose(np.linalg.norm(ham.bases, axis=1), 1, rtol=1e-6)
    ham.bases = None
    drawn = [values(ham(maps, training=True)) for _ in range(2)]
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-4
    assert np.abs(values(NMF2D(rank=2, groups=2, seed=1)(maps)) - fixed).max() > 1e-4
    free = NMF2D(rank=2, groups=2, seed=None)
    assert np.abs(values(free(maps)) - values(free(maps))).max() > 1e-4
    with pytest.raises(ValueError, match="`groups` must divide the 8 channels"):
        NMF2D(rank=2, groups=3)(maps)


def test_whole_channels_are_dropped():
    from van_classification_tensorflow.segment.layers import ChannelDropout

    made = values(ChannelDropout(0.5)(np.ones((4, 5, 6, 32), np.float32), training=True))
    assert set(np.unique(made)) == {0, 2}
    np.testing.assert_array_equal(made, np.broadcast_to(made[:, :1, :1], made.shape))
    assert len(np.unique(made[:, 0, 0], axis=0)) == 4


def test_official_names_both_ways():
    model = micro("ham")
    tensors = tensors_of(model)
    assert "backbone.block3.1.mlp.dwconv.dwconv.weight" in tensors
    assert tensors["decode_head.hamburger.ham_in.conv.weight"].shape == (64, 64, 1, 1)
    assert len(tensors) == len(model.trainable_variables) + len(
        [name for name in tensors if ".running_" in name]
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "`backbone` must be one of van_b0, "),
        ({"backbone": "van_b9"}, "`backbone` must be one of van_b0, "),
        ({"backbone": 3}, "Received: 3"),
        ({**TINY, "decoder": "pspnet"}, "`decoder` must be one of 'upernet', "),
        ({**TINY, "depths": [1, 1]}, "`embed_dims`, `mlp_ratios` and `depths` must have one entry"),
        (
            {"embed_dims": [4, 4], "mlp_ratios": [2, 2], "depths": [1, 1]},
            "The decoders take 4 stages",
        ),
        ({**TINY, "num_classes": 0}, "`num_classes` must be an integer >= 1"),
        ({**TINY, "auxiliary": 1}, "`auxiliary` must be True or False"),
        ({**TINY, "auxiliary": True, "decoder": "light_ham"}, "`auxiliary` must be False with"),
        ({**TINY, "auxiliary_channels": 4}, "`auxiliary_channels` needs auxiliary=True"),
        ({**TINY, "ham_rank": 4}, "`ham_rank` belongs to decoder='light_ham'"),
        ({**TINY, "drop_rate": 1}, "`drop_rate` must be a number in [0, 1)"),
        ({**TINY, "norm_epsilon": 0}, "`norm_epsilon` must be a number above 0"),
        ({**TINY, "ham_seed": -1}, "`ham_seed` must be an integer >= 0"),
        ({**TINY, "data_format": "nchw"}, "`data_format` must be one of"),
        ({"pretrained": "van_b0"}, "van_b0.in1k is for classification"),
        ({"pretrained": "x.onnx"}, "is an exported file"),
        ({"pretrained": "hf://someone/van"}, "is a folder of a hub, of which only classifiers"),
    ],
)
def test_what_is_refused(arguments, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        VANSegmenter(**arguments)


def test_what_is_set_is_checked():
    model = tiny()
    for name, value, says in (
        ("labels", ["a"], "name each of 3 classes"),
        ("palette", [[0, 0, 0]], "a colour for each of 3"),
        ("preprocessing", Preprocessing(mean=(0.5,), std=(0.5,)), "must make in_chans=3"),
    ):
        with pytest.raises(ValueError, match=says):
            setattr(model, name, value)
    with pytest.raises(ValueError, match="`inputs` must have in_chans=3 channels"):
        model(np.zeros((1, 64, 64, 4), np.float32))
    with pytest.raises(ValueError, match="too small for the strides of 4 stages"):
        model(np.zeros((1, 8, 64, 3), np.float32))


def test_replicas_draw_for_all_and_take_their_own(monkeypatch):
    """As one device draws for the whole batch; that replicas share seeds, `Dropout` has shown."""
    maps = np.abs(seeded_images(1, (4, 3, 4, 8)))
    ham = NMF2D(rank=2)

    def made(share):
        ham.seed_generator.state.assign([0, 5])
        return values(ham(share, training=True))

    whole = made(maps)
    monkeypatch.setattr(hamburger, "replicas", lambda: 2)
    for number, share in enumerate((maps[:2], maps[2:])):
        monkeypatch.setattr(hamburger, "replica_number", lambda number=number: number)
        np.testing.assert_allclose(made(share), whole[2 * number :][:2], rtol=0, atol=1e-6)
