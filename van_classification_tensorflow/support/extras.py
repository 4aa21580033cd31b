"""Optional packages: whether they are there, and how to install them."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def is_installed(package: str) -> bool:
    """Whether a package is there, without importing it, which may take seconds."""
    if package in sys.modules:
        return sys.modules[package] is not None
    return find_spec(package) is not None


def missing(
    what: str, package: str, extra: str, error: ImportError | None = None
) -> ModuleNotFoundError:
    """The error that says what needs `package`, and which extra of this package brings it."""
    why = "" if error is None else f" ({error})"
    return ModuleNotFoundError(
        f"{what} needs {package}: pip install 'van-classification-tensorflow[{extra}]'{why}"
    )
