"""No link of the repository's Markdown is dead: files and headings exist, addresses are addresses.

Whether others' pages are still there is asked by `scripts/docs.sh --linkcheck`, with a network.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from markdown_it import MarkdownIt

from .blocks import ROOT

FILES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
)
MADE = re.compile(r"(docs/)?made/")  # by the build; `toctree` alone knows them


def inline(path):
    for token in MarkdownIt("commonmark").enable("table").parse(path.read_text("utf-8")):
        yield from token.children or ()


def links(path):
    for one in inline(path):
        target = one.attrGet("href") if one.type == "link_open" else one.attrGet("src")
        if target:
            yield str(target)


def anchors(path):
    """Of the headings, as GitHub and MyST make them."""
    tokens = MarkdownIt("commonmark").parse(path.read_text("utf-8"))
    heads = [t.content for i, t in enumerate(tokens) if i and tokens[i - 1].type == "heading_open"]
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in heads}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links(path):
    for link in links(path):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            host = parts.hostname or ""
            assert parts.scheme in ("https", "http"), link
            assert re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", host.lower()), link
            assert not re.search(r"[\s<>\"'`]|[.,;:]$", link), link
            continue
        target = path if not parts.path else (path.parent / parts.path).resolve()
        assert target.is_relative_to(ROOT), link
        assert target.exists(), f"{path.name}: {link}"
        if parts.fragment:
            assert parts.fragment in anchors(target), f"{path.name}: {link}"


def test_they_are_found():
    found = [link for path in FILES for link in links(path)]
    assert len(found) > 100
    assert any("#" in link and "://" not in link for link in found)
    assert Path(ROOT / "docs" / "notebooks" / "fine_tune_and_explain.ipynb") in {
        (path.parent / link).resolve() for path in FILES for link in links(path)
    }


def test_every_page_is_in_the_contents():
    """Sphinx says so as well, but only where it is installed."""
    text = (ROOT / "docs" / "index.md").read_text("utf-8")
    listed = {
        re.sub(r".*<(.*)>", r"\1", name).strip()
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL)
        for name in tree.splitlines()
        if name.strip() and not name.startswith(":")
    }
    there = {path.stem for path in (ROOT / "docs").glob("*.md") if path.stem != "index"}
    assert there <= listed
    for name in listed:
        found = [ROOT / "docs" / f"{name}{end}" for end in (".md", ".rst", ".ipynb")]
        assert MADE.match(name) or any(path.exists() for path in found), name
