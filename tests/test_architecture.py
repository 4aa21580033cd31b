"""Imports only point upward: each module may use the ones above it, and heavy ones stay out."""

import ast
from pathlib import Path

import van_classification_tensorflow

PACKAGE = Path(van_classification_tensorflow.__file__).parent
# From the top: what stands further down may import what stands further up.
ORDER = [
    "registration",
    "config",
    "labels",
    "scores",
    "preprocessing",
    "digits",
    "png_file",
    "tiff_file",
    "images",
    "output",
    "quiet",
    "folders",
    "inputs",
    "stored_zip",
    "torch_file",
    "hdf5_file",
    "names",
    "keras_config",
    "beside",
    "checkpoint",
    "download",
    "weights",
    "runtimes",
    "fold",
    "onnx_graph",
    "cache",
    "pretrained",
    "layers",
    "load",
    "model",
    "memory",
    "fusion",
    "applications",
    "preprocessing_layer",
    "convert",
    "progress",
    "pictures",
    "numpy_model",
    "classifier",
    "benchmark_worker",
    "benchmark",
    "benchmark_report",
    "predict",
    "datasets",
    "export",
    "original",
    "metrics",
    "evaluate",
    "augment",
    "data",
    "recipe",
    "snapshots",
    "runs",
    "optim",
    "callbacks",
    "train",
    "demo",
    "cli",
    "__main__",
]
NEED_KERAS = {
    "applications",
    "callbacks",
    "demo",
    "fusion",
    "layers",
    "load",
    "memory",
    "model",
    "optim",
    "preprocessing_layer",
    "progress",
    "train",
}
WITHOUT_KERAS = {"__init__", *ORDER} - NEED_KERAS


def _nodes(node: ast.AST, at_import: bool):
    """All nodes, or only those that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if at_import and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if at_import and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from _nodes(child, at_import)


def _imports(path: Path, at_import: bool):
    """(level, module) of every import; the package's own name counts as relative."""
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8")), at_import):
        if isinstance(node, ast.Import):
            found = [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level and not node.module:
            found = [(node.level, a.name) for a in node.names if a.name != "__version__"]
        elif isinstance(node, ast.ImportFrom):
            found = [(node.level, node.module)]
        else:
            continue
        for level, module in found:
            if module.split(".")[0] == PACKAGE.name:
                level, module = 1, module.partition(".")[2] or "__init__"
            yield level, module


def test_every_module_has_its_place():
    assert {path.stem for path in PACKAGE.glob("*.py")} == {*ORDER, "__init__"}


def test_imports_point_upward():
    for place, name in enumerate(ORDER):
        for level, imported in _imports(PACKAGE / f"{name}.py", at_import=False):
            if level:
                assert imported.split(".")[0] in ORDER[:place], f"{name} imports {imported}"


def test_light_modules_import_nothing_heavy():
    heavy = {"keras", "tensorflow", "jax", "torch", "matplotlib"}
    for name in WITHOUT_KERAS:
        for level, imported in _imports(PACKAGE / f"{name}.py", at_import=True):
            if level:
                assert imported.split(".")[0] in WITHOUT_KERAS, f"{name} imports {imported}"
            else:
                assert imported.split(".")[0] not in heavy, f"{name} imports {imported}"


def test_commands_name_the_data_format():
    """They feed channels-last images, whatever Keras's own setting is."""
    made = [
        (path.stem, {keyword.arg for keyword in node.keywords})
        for path in PACKAGE.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "VAN"
    ]
    assert {name for name, _ in made} >= {"classifier", "convert", "export", "train"}
    assert all("data_format" in keywords for _, keywords in made), made
