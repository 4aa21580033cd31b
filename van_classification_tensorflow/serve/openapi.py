"""What the server can be asked, as an OpenAPI document, and as a page for people."""

from __future__ import annotations

from typing import Any

DOCUMENT: dict[str, Any] = {"openapi": "3.1.0", "paths": {}}


def docs_page() -> str:
    return "<!doctype html>"
