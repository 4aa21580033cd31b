"""The catalogue of published weights."""

import pytest

from van_classification_tensorflow.spec.config import CONFIGURATIONS
from van_classification_tensorflow.weights.catalogue import CATALOGUE, Source, find


def test_the_catalogue_names_every_published_checkpoint():
    in1k = {f"van_b{n}.in1k" for n in range(5)}
    in22k = {f"van_b{n}.in22k" for n in (4, 5, 6)}
    backbones = {f"{name}_backbone" for name in in1k | in22k}
    upernet = {f"van_b{n}.ade20k_upernet" for n in (2, 3, 4)}
    upernet |= {f"van_b{n}.in22k_ade20k_upernet" for n in (4, 5, 6)}
    assert set(CATALOGUE) == in1k | in22k | backbones | upernet | {"digits"}
    for name, w in CATALOGUE.items():
        assert w.name == name
        assert (w.task == "segmentation") == (name in upernet)
        if not w.sources or name in upernet:
            continue
        assert w.configuration in CONFIGURATIONS
        first = w.sources[0]
        assert first.url.endswith(f"-{first.sha256}.pth")
        assert all(s.url.startswith("https://") for s in w.sources)
        assert w.num_classes == (
            0 if name.endswith("_backbone") else 21_841 if "22k" in name else 1000
        )
        assert "contact the authors" in w.licence_note
        assert w.preprocessing.mean[0] == (0.485 if "22k" in name else 0.5)
        assert ("unverified" in w.notes) == ("22k" in name or "backbone" in name)
    # On a flat mirror no two files may have the same name.
    names = [s.file for w in CATALOGUE.values() for s in w.sources]
    assert len(names) == len(set(names))
    assert [s.file for s in CATALOGUE["van_b0.in1k"].sources] == [
        "van-tiny_8xb128_in1k_20220501-385941af.pth",
        "van-tiny_pytorch_model.bin",
        "van_tiny_754.pth.tar",
        "van_b0.h5",
    ]


def test_sizes_follow_from_the_parameters():
    assert CATALOGUE["van_b0.in1k"].parameters == 4_105_800
    assert CATALOGUE["van_b0.in1k_backbone"].parameters == 4_105_800 - 257_000
    assert CATALOGUE["van_b6.in22k"].parameters == 199_829_416 + 769 * 20_841
    assert CATALOGUE["van_b0.in1k"].expected_bytes == 4 * 4_105_800
    assert CATALOGUE["van_b0.in1k"].max_bytes == 16 * 4_105_800 + 2**24
    assert CATALOGUE["digits"].parameters is None


def test_segmenters_are_of_their_task():
    record = CATALOGUE["van_b2.ade20k_upernet"]
    assert (record.miou, record.num_classes, record.decoder.channels) == (50.1, 150, 512)
    # What its architecture has behind van_b0 too, but for the stages' own channels.
    assert 56_000_000 < record.parameters < 58_000_000  # published: 57 M
    (source,) = record.sources
    assert source.url.startswith("https://cloud.tsinghua.edu.cn/f/")
    assert source.url.endswith("/?dl=1")
    assert (source.file, source.sha256) == ("van_b2_ade20k_upernet.pth", "")
    name = "van_b4.in22k_ade20k_upernet"
    assert find(name, task="segmentation") is CATALOGUE[name]
    assert find("in22k_ade20k_upernet", "van_b4", task=None) is CATALOGUE[name]
    with pytest.raises(ValueError, match=r"is for segmentation .VANSegmenter, `van segment`"):
        find(name)
    with pytest.raises(ValueError, match=r"is for classification .VAN, Classifier.*, not for seg"):
        find("van_b0", task="segmentation")
    with pytest.raises(ValueError, match=r"For van_b5: van_b5.in22k_ade20k_upernet. All names"):
        find("ade20k", "van_b5", task="segmentation")


@pytest.mark.parametrize(
    ("weights", "configuration", "name"),
    [
        (True, "van_b2", "van_b2.in1k"),
        ("imagenet", "van_b0", "van_b0.in1k"),
        ("in1k", "van_b4", "van_b4.in1k"),
        ("in22k", "van_b4", "van_b4.in22k"),
        ("in22k_backbone", "van_b6", "van_b6.in22k_backbone"),
        ("van_b3.in1k", "van_b3", "van_b3.in1k"),
        ("van_b3.in1k", None, "van_b3.in1k"),
        ("digits", None, "digits"),
    ],
)
def test_find(weights, configuration, name):
    assert find(weights, configuration) is CATALOGUE[name]


@pytest.mark.parametrize(
    ("weights", "configuration", "says"),
    [
        (
            True,
            "van_b5",
            "For van_b5: van_b5.in22k, van_b5.in22k_backbone. All names: van weights list",
        ),
        ("in1k", "van_b6", "For van_b6: van_b6.in22k"),
        ("van_b0.in1k", "van_b1", "van_b0.in1k belongs to van_b0. For van_b1: van_b1.in1k"),
        ("digits", "van_b0", "digits belongs to a model of its own"),
        ("in1k", None, "published: 'in1k'. All names: van weights list"),
        ("imagenet21k", "van_b0", "published: 'imagenet21k'. For van_b0: van_b0.in1k, "),
        ("van-b4.in22k", None, "did you mean van_b4.in22k? All names: van weights list"),
        ("van_b5", None, "did you mean van_b5.in22k? All"),
        ("VAN_B3", None, "did you mean van_b3? All"),
        ("van_b7", None, "did you mean van_b4? All"),  # of the others "van_b6" alone is no name
        ("in21k", "van_b5", "did you mean in22k? For van_b5: "),
        (False, "van_b0", "no such weights are published: False"),
    ],
)
def test_find_lists_what_there_is(weights, configuration, says):
    with pytest.raises(ValueError, match="`weights`") as error:
        find(weights, configuration)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (("https://h.example/a.pth", "385941AF"), "lower-case"),
        (("https://h.example/a.pth", "385941a"), "64 or the first 8"),
        (("https://h.example/", ""), "plain file name"),
        (("https://h.example/a", "", "../a"), "plain file name"),
    ],
)
def test_source_refuses(fields, says):
    with pytest.raises(ValueError, match="Received") as error:
        Source(*fields)
    assert says in str(error.value)


def test_formats():
    formats = [source.format for source in CATALOGUE["van_b0.in1k"].sources]
    assert formats == ["torch", "torch", "torch", "keras h5"]
