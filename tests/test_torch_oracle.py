"""torch and transformers as judges of what is read and written here.

Neither is in the test environment of the README; `scripts/test_backends.sh`, which CI runs, has
both: pip install '.[torch,original,test]'.
"""

import argparse
import io
import json

import numpy as np
import pytest

from van_classification_tensorflow.checkpoint import CheckpointError, read_checkpoint, read_weights
from van_classification_tensorflow.convert import convert
from van_classification_tensorflow.torch_file import TorchFile

from .parity import GOLDEN

torch = pytest.importorskip("torch", reason="scripts/test_backends.sh runs this with torch")


def saved(value, zip_layout=True):
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=zip_layout)
    return TorchFile(file)


def numpy(tensor):
    if tensor.dtype == torch.bfloat16:
        return tensor.float().numpy()
    return tensor.detach().numpy()


@pytest.mark.parametrize("zip_layout", [True, False])
@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool"]
)
def test_every_dtype_and_every_view(zip_layout, dtype):
    base = (torch.arange(120) - 50).reshape(2, 3, 4, 5).to(getattr(torch, dtype))
    big = torch.arange(1000).to(getattr(torch, dtype))
    views = {
        "plain": base,
        "permuted": base.permute(3, 1, 0, 2),
        "sliced": base[:, 1:, ::2, 3],
        "channels_last": base.to(memory_format=torch.channels_last),
        "scalar": base[1, 1, 1, 1],
        "empty": base[:0],
        "offset": big[700:],
        "shared": big[:10],
        "again": big[5:15],
    }
    opened = saved(views, zip_layout)
    assert len({opened.root[name].storage.key for name in ("offset", "shared", "again")}) == 1
    for name, tensor in views.items():
        array = opened.array(opened.root[name])
        assert array.shape == tuple(tensor.shape), name
        np.testing.assert_array_equal(array.astype(numpy(tensor).dtype), numpy(tensor), name)


@pytest.mark.parametrize("zip_layout", [True, False])
def test_everything_a_training_script_saves(tmp_path, zip_layout):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    model(torch.zeros(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    contents = {
        "epoch": 7,
        "arch": "van_b0",
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "args": argparse.Namespace(lr=1e-3, size=(3, 224, 224), device=torch.device("cpu")),
        "scaler": {"scale": 65536.0, "growth_interval": 2000, "_growth_tracker": 0},
        "metric": np.float64(81.1),
        "best": np.float32(3),
        "shape": torch.Size([1, 2]),
        "dtype": torch.float32,
        "random": torch.get_rng_state(),
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "nested": [{"a": (1, 2.5, None, True, "text", -(2**40))}],
        "bytes": b"nothing is kept of these",
    }
    path = tmp_path / "x.pth.tar"
    torch.save(contents, path, _use_new_zipfile_serialization=zip_layout)
    found = read_checkpoint(path)
    assert found.wrapper == "state_dict"
    assert found.tensors.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(found.tensors[name], tensor.numpy(), name)
    assert set(found.ignored) == contents.keys() - {"state_dict"}
    with open(path, "rb") as file:
        opened = TorchFile(file)
        assert opened.root["nested"] == contents["nested"]
        assert opened.root["shape"] == (1, 2)
        exp = opened.root["optimizer"]["state"][0]["exp_avg"]
        expected = optimizer.state_dict()["state"][0]["exp_avg"].numpy()
        np.testing.assert_array_equal(opened.array(exp), expected)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol(tmp_path, protocol):
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pth", pickle_protocol=protocol)
    np.testing.assert_array_equal(read_checkpoint(tmp_path / "x.pth").tensors["a"], [1, 1])


def test_a_whole_model_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("naming", ["official", "huggingface", "mmpretrain"])
def test_torch_reads_what_is_written(tmp_path, naming):
    convert(GOLDEN / "micro_seed.h5", tmp_path / "x.pth", naming=naming)
    theirs = torch.load(tmp_path / "x.pth", weights_only=True)["state_dict"]
    ours = read_checkpoint(tmp_path / "x.pth").tensors
    assert list(theirs) == list(ours)
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(tensor.numpy(), ours[name], name)
        assert tensor.is_contiguous()


@pytest.mark.parametrize(
    "file",
    ["micro_official.pth.tar", "micro_official_legacy.pth.tar", "micro_mmpretrain.pth"],
)
def test_golden_files_as_torch_reads_them(file):
    with torch.serialization.safe_globals([argparse.Namespace]):
        theirs = torch.load(GOLDEN / file, weights_only=True)["state_dict"]
    ours = read_checkpoint(GOLDEN / file).tensors
    assert list(theirs) == list(ours)
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(tensor.numpy(), ours[name], name)


@pytest.mark.parametrize("head", [True, False])
def test_transformers_reads_what_is_written(tmp_path, head):
    transformers = pytest.importorskip(
        "transformers", reason="scripts/test_backends.sh runs this with transformers"
    )
    source = GOLDEN / "micro_official.pth.tar"
    if not head:
        from safetensors.numpy import load_file, save_file

        tensors = load_file(GOLDEN / "micro.safetensors")
        source = tmp_path / "headless.safetensors"
        save_file({n: a for n, a in tensors.items() if not n.startswith("head.")}, source)
    convert(source, tmp_path / "hf", naming="huggingface")
    kind = transformers.VanForImageClassification if head else transformers.VanModel
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["architectures"] == [
        kind.__name__
    ]
    model, report = kind.from_pretrained(tmp_path / "hf", output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not report[problem], (problem, report[problem])
    assert model.config.layer_norm_eps == 1e-6
    with np.load(GOLDEN / "micro.npz") as golden, torch.no_grad():
        images = torch.from_numpy(golden["x"].transpose(0, 3, 1, 2).copy())
        output = model.eval()(images)
        if head:
            difference = np.abs(output.logits.numpy() - golden["eval_logits"]).max()
            assert difference <= 1e-5
            # And back: what transformers saves is read here.
            model.save_pretrained(tmp_path / "again")
            again = read_weights(tmp_path / "again").tensors
            for name, array in read_weights(GOLDEN / "micro_official.pth.tar").tensors.items():
                np.testing.assert_array_equal(array, again[name], name)
