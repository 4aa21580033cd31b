"""The root namespace is this list, and importing it has no side effects."""

import ast
import os
import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import van_classification_tensorflow as package

NAMES = {
    "Classifier",
    "Preprocessing",
    "PreprocessingLayer",
    "Segmenter",
    "VAN",
    "VANB0",
    "VANB1",
    "VANB2",
    "VANB3",
    "VANB4",
    "VANB5",
    "VANB6",
    "VANSegmenter",
    "__version__",
    "accelerate",
    "decode_predictions",
    "explain",
    "fuse",
    "load_checkpoint",
    "overlay",
    "preprocess_input",
}


def test_names():
    assert set(package.__all__) == NAMES == set(dir(package))
    assert set(package._HOME) == NAMES - {"__version__"}
    for name in NAMES:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Van'"):
        _ = package.Van


def test_the_documents_import_what_there_is():
    root = Path(__file__).parents[1]
    pages = [root / "README.md", *(root / "docs").glob("*.md")]
    blocks = [
        block
        for page in pages
        for block in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    ]
    nodes = [node for block in blocks for node in ast.walk(ast.parse(block))]
    imports = [one for one in nodes if isinstance(one, ast.ImportFrom) and one.module]
    ours = [one for one in imports if str(one.module).startswith(package.__name__)]
    assert len(ours) > 5
    if find_spec("keras_hub") is None:  # an extra; where it is, its page is run as well
        ours = [one for one in ours if one.module != f"{package.__name__}.keras_hub"]
    for one in ours:
        module = import_module(str(one.module))
        for alias in one.names:
            assert hasattr(module, alias.name), f"{one.module} has no {alias.name}"


def _python(code, **environment):
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_import_sets_nothing_and_starts_nothing():
    code = """
import os, random, sys
before, state = dict(os.environ), random.getstate()
import van_classification_tensorflow
assert dict(os.environ) == before and random.getstate() == state
print([m for m in ("keras", "tensorflow", "numpy") if m in sys.modules] or "nothing")
"""
    assert _python(code) == ["nothing"]


@pytest.mark.slow
def test_importing_the_model_seeds_nothing():
    code = """
import os
import keras, numpy as np
before, state = dict(os.environ), np.random.get_state()[1].tobytes()
from van_classification_tensorflow import VAN, VANB0
assert dict(os.environ) == before and np.random.get_state()[1].tobytes() == state
print("fine")
"""
    assert _python(code) == ["fine"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_do_not_import_tensorflow(backend):
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed; scripts/test_backends.sh runs this with it")
    code = "import sys, numpy; from van_classification_tensorflow import VAN, VANB0; "
    code += "model = VAN(embed_dims=[8], mlp_ratios=[2], depths=[1], num_classes=2); "
    code += "model.predict_on_batch(numpy.zeros((1, 32, 32, 3), 'float32')); "
    code += "print('tensorflow' in sys.modules)"
    assert _python(code, KERAS_BACKEND=backend)[-1] == "False"


_LOAD = """
import json, sys
path = sys.argv[1]
{imports}
assert not [m for m in sys.modules if m.startswith("van_classification_tensorflow.")
            and m.split(".")[1] != "registration"]
model = keras.saving.load_model(path)
import van_classification_tensorflow as package
print(type(model).__name__, type(model.layers[1]).__name__, isinstance(model, package.VAN))
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import keras; import van_classification_tensorflow",
        pytest.param("import van_classification_tensorflow; import keras", marks=pytest.mark.slow),
        pytest.param(
            "import van_classification_tensorflow; from keras.saving import load_model; "
            "import keras",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "import van_classification_tensorflow; from importlib.util import find_spec; "
            "assert find_spec('keras') and find_spec('keras'); import keras",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_importing_the_package_is_enough_to_load_a_file(tmp_path, imports):
    model = package.VAN(embed_dims=[8], mlp_ratios=[2], depths=[1], num_classes=2)
    package.fuse(model).save(tmp_path / "m.keras")
    done = subprocess.run(
        [sys.executable, "-c", _LOAD.format(imports=imports), str(tmp_path / "m.keras")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["FusedVAN", "OverlapPatchEmbed", "True"]


def test_every_registered_name_has_a_stand_in():
    """Those of KerasHub, which need it: `tests/keras_hub/`."""
    import keras

    from van_classification_tensorflow.registration import CLASSES, registered

    own = "van_classification_tensorflow>"
    classes = {module: names for module, names in CLASSES.items() if "keras_hub" not in module}
    for module in classes:
        import_module(f"{package.__name__}.{module}")
    of_hub = {f"{own}{name}" for m, names in CLASSES.items() if m not in classes for name in names}
    stand_ins = {name: one for name, one in registered().items() if name not in of_hub}
    known = {
        name: one
        for name, one in keras.saving.get_custom_objects().items()
        if name.startswith(own) and name not in of_hub
    }
    assert known.keys() == stand_ins.keys()
    for name, one in known.items():
        assert one.__module__ != "van_classification_tensorflow.registration", name
    for module, names in classes.items():  # where the stand-ins look for them
        assert {known[f"{own}{name}"].__module__ for name in names} == {
            f"{package.__name__}.{module}"
        }
    layer = stand_ins[f"{own}LayerScale"].from_config({"init_value": 0.5})
    assert type(layer) is known[f"{own}LayerScale"]
    assert layer.init_value == 0.5
    assert float(stand_ins[f"{own}gelu"](keras.ops.array(0.0))) == 0


def test_kerashub_that_is_not_installed_is_named():
    code = """
import sys
sys.modules["keras_hub"] = None
import van_classification_tensorflow
try:
    import van_classification_tensorflow.keras_hub
except ModuleNotFoundError as error:
    assert "pip install 'van-classification-tensorflow[keras-hub]'" in str(error), error
    print("fine", [m for m in ("keras", "tensorflow") if m in sys.modules] or "light")
"""
    assert _python(code) == ["fine", "light"]
