"""Packages are floors: each imports from those below it only, and the light ones nothing heavy."""

import ast
from pathlib import Path

import van_classification_tensorflow

PACKAGE = Path(van_classification_tensorflow.__file__).parent
# From the ground up. `registration` is what `__init__` needs before anything else is there.
FLOORS = [
    "registration",
    "support",
    "spec",
    "images",
    "weights",
    "datasets",
    "model",
    "keras_hub",
    "engines",
    "inference",
    "export",
    "evaluate",
    "benchmark",
    "explanation",
    "segment",
    "train",
    "hub",
    "doctor",
    "serve",
    "cluster",
    "cli",
    "__main__",
]
# The only ones that import Keras when they are imported: modules, or whole packages.
NEED_KERAS = {
    "model",
    "keras_hub",
    "engines.keras_graph",
    "engines.keras_layers",
    "engines.keras_products",
    "explanation.explain",
    "explanation.gradients",
    "inference.accelerate",
    "inference.followed",
    "inference.in_memory",
    "cluster.figures",
    "segment.decoders",
    "segment.graph",
    "segment.hamburger",
    "segment.layers",
    "segment.load",
    "segment.losses",
    "segment.model",
    "segment.resize",
    "segment.save",
    "segment.semantic_fpn",
    "segment.upernet",
    "train.callbacks",
    "train.demo",
    "train.optim",
    "train.progress",
    "train.build",
    "train.devices",
    "train.report",
    "train.run",
    "train.train",
    "train.workers",
}
HEAVY = {"keras", "keras_hub", "tensorflow", "jax", "torch", "matplotlib"}


def _modules() -> dict[str, Path]:
    """{name within the package, as "weights.formats.torch": file}, without `__init__`s."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if not name.endswith("__init__"):
            found[name] = path
    return found


def _nodes(node: ast.AST, at_import: bool):
    """All nodes, or only those that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if at_import and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if at_import and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from _nodes(child, at_import)


def _imports(name: str, path: Path, at_import: bool = False):
    """(whether it is of this package, the module) of every import, its names tried as modules."""
    here = [PACKAGE.name, *name.split(".")[:-1]]
    modules = _modules()
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8")), at_import):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            start = ".".join([*base, *filter(None, [node.module])])
            found = [f"{start}.{alias.name}" for alias in node.names]
        else:
            continue
        for full in found:
            first, _, rest = full.partition(".")
            if first != PACKAGE.name:
                yield False, first
            elif rest in modules:
                yield True, rest
            elif rest != "__version__":
                yield True, rest.rpartition(".")[0]


def test_every_module_stands_on_a_floor():
    assert {name.split(".")[0] for name in _modules()} == set(FLOORS)
    assert all(any(_needs_keras(name, (known,)) for name in _modules()) for known in NEED_KERAS)


def test_packages_import_only_from_floors_below():
    for name, path in _modules().items():
        mine = name.split(".")[0]
        for ours, imported in _imports(name, path):
            other = imported.split(".")[0]
            if ours and other != mine:
                assert FLOORS.index(other) < FLOORS.index(mine), f"{name} imports {imported}"


def test_no_circle_within_a_package():
    edges = {
        name: {other for ours, other in _imports(name, path) if ours}
        for name, path in _modules().items()
    }
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way, name))
        if name not in done:
            for other in edges.get(name, ()):
                visit(other, (*way, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def _needs_keras(name: str, known=NEED_KERAS) -> bool:
    """Whether a module is one of `known`, or in a package of them."""
    return any(name == one or name.startswith(f"{one}.") for one in known)


def test_light_modules_import_nothing_heavy():
    for name, path in _modules().items():
        if _needs_keras(name):
            continue
        for ours, imported in _imports(name, path, at_import=True):
            heavy = _needs_keras(imported) if ours else imported in HEAVY
            assert not heavy, f"{name} imports {imported}"


def test_commands_name_the_data_format():
    """They feed channels-last images, whatever Keras's own setting is."""
    made = [
        (name, {keyword.arg for keyword in node.keywords})
        for name, path in _modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "VAN"
    ]
    assert len(made) >= 4
    assert all("data_format" in keywords for _, keywords in made), made
