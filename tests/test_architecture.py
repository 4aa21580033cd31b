"""Imports only point upward: each module may use the ones above it, and heavy ones stay out."""

import ast
from pathlib import Path

import van_classification_tensorflow

PACKAGE = Path(van_classification_tensorflow.__file__).parent
# From the top: what stands further down may import what stands further up.
ORDER = [
    "config",
    "labels",
    "digits",
    "layers",
    "model",
    "convert",
    "applications",
    "benchmark",
    "progress",
    "pictures",
    "demo",
    "cli",
    "__main__",
]
WITHOUT_KERAS = {"__init__", "__main__", "config", "labels", "digits", "pictures", "cli"}


def _imports(path: Path, top_level_only: bool):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level and not node.module:
                yield from ((node.level, alias.name) for alias in node.names)
            else:
                yield node.level, node.module


def test_every_module_has_its_place():
    assert {path.stem for path in PACKAGE.glob("*.py")} == {*ORDER, "__init__"}


def test_imports_point_upward():
    for place, name in enumerate(ORDER):
        for level, imported in _imports(PACKAGE / f"{name}.py", top_level_only=False):
            if level:
                assert imported.split(".")[0] in ORDER[:place], f"{name} imports {imported}"


def test_light_modules_import_nothing_heavy():
    heavy = {"keras", "tensorflow", "jax", "torch", "matplotlib"}
    for name in WITHOUT_KERAS:
        for level, imported in _imports(PACKAGE / f"{name}.py", top_level_only=True):
            if level:
                assert imported.split(".")[0] in WITHOUT_KERAS, f"{name} imports {imported}"
            else:
                assert imported.split(".")[0] not in heavy, f"{name} imports {imported}"
