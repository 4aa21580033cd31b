"""Optional packages: whether they are there, and how to install them."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def is_installed(package: str) -> bool:
    """Whether a package is there, without importing it, which may take seconds."""
    if package in sys.modules:
        return sys.modules[package] is not None
    return find_spec(package) is not None


def missing(package: str, extra: str, error: ImportError) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"this file needs {package}: pip install 'van-classification-tensorflow[{extra}]' ({error})"
    )
