"""The notebooks as they are committed; `test_site.py` runs them, with the site."""

from __future__ import annotations

import json
import re

import pytest

from .blocks import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def cells(path, kind):
    notebook = json.loads(path.read_text("utf-8"))
    assert notebook["nbformat"] == 4
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_they_are_found():
    assert len(NOTEBOOKS) == 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_is_no_output(path):
    """The site's build makes them; of another machine they would only look like evidence."""
    code = cells(path, "code")
    assert len(code) > 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_says_what_it_needs_proves_what_it_says_and_leads_on(path):
    code = "".join("".join(cell["source"]) for cell in cells(path, "code"))
    texts = ["".join(cell["source"]) for cell in cells(path, "markdown")]
    assert texts[0].startswith("# ")
    assert "You will see" in " ".join(texts[0].split())
    assert re.search(r"^pip install '\.\[[a-z,]+\]'", texts[0], re.MULTILINE)
    assert re.search(r"^## More$", texts[-1], re.MULTILINE)
    links = re.findall(r"\]\((\.\./[a-z-]+\.md)\)", "".join(texts))
    assert len(links) >= 3
    assert all((path.parent / link).exists() for link in links), links
    assert len(re.findall(r"^ *assert ", code, re.MULTILINE)) >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_picture_has_words_for_those_who_do_not_see_it(path):
    drawn = re.compile(r"^(fig(, | = )|rows\()", re.MULTILINE)
    shown = [cell for cell in cells(path, "code") if drawn.search("".join(cell["source"]))]
    assert shown
    for cell in shown:
        assert cell["metadata"]["mystnb"]["image"]["alt"], "".join(cell["source"])[:80]
