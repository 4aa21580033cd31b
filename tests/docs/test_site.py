"""The documentation as Sphinx makes it, opened from the disk in a real Chromium.

It is built as `scripts/docs.sh` does for everybody: warnings are errors, notebooks are executed.
For a look at every page: VAN_SCREENSHOTS=FOLDER pytest -m slow tests/docs/test_site.py
"""

from __future__ import annotations

import os
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from tempfile import gettempdir

import pytest

from tests.browser import chromium

from .blocks import ROOT

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder with index.html; of a build of its own, so that nothing stale is looked at."""
    pytest.importorskip("furo", reason="needs the extra `docs`")
    out = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [ROOT / "scripts" / "docs.sh", "-d", str(out / "doctrees")],
        capture_output=True,
        text=True,
        env=os.environ | {"VAN_DOCS_OUTPUT": str(out / "html"), "VAN_OFFLINE": "1"},
        check=False,
    )
    assert built.returncode == 0, built.stderr[-5000:]
    return out / "html"


def pages(site):
    found = [p for p in sorted(site.rglob("*.html")) if "_static" not in p.parts]
    found.remove(site / "index.html")  # leads to the first page
    assert len(found) > 20
    return found


class _Sources(HTMLParser):
    """What a page loads by itself: scripts, styles, pictures."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        name = {"script": "src", "img": "src", "link": "href", "iframe": "src"}.get(tag)
        values = dict(attrs)
        if name and values.get(name) and values.get("rel") not in ("canonical", "author"):
            self.found.append(values[name])


def test_nothing_is_loaded_from_elsewhere(site):
    for page in pages(site):
        sources = _Sources()
        sources.feed(page.read_text("utf-8"))
        assert not [s for s in sources.found if "//" in s], page
        for one in sources.found:
            local = one.partition("?")[0].partition("#")[0]
            assert not local or (page.parent / local).exists(), (page, one)


# {name: (pictures, what it prints)}; each asserts what its text claims on the way there.
NOTEBOOKS = {
    "fine_tune_and_explain": (5, ["% after each epoch", "% without the hottest fifth", "named ["]),
    "features_and_search": (4, ["% are the same digit", "the original is the nearest"]),
    "segmentation_on_a_backbone": (4, ["steps: mIoU", "% of the pixels right"]),
    "deploy_in_four_formats": (1, ["same class", "named ["]),
}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_notebooks_were_run(site, name):
    text = (site / "docs" / "notebooks" / f"{name}.html").read_text("utf-8")
    pictures, printed = NOTEBOOKS[name]
    assert len(re.findall(r"<img [^>]*_images/", text)) == pictures
    assert [words for words in printed if words not in text] == []
    for noise in ("Warning:", "oneDNN", "INFO:", "output stderr", str(ROOT), gettempdir()):
        assert noise not in text, noise


@pytest.fixture(scope="module")
def browser():
    with chromium() as one:
        yield one


def opened(browser, kind="desktop", theme="light"):
    width, height = SIZES[kind]
    return browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme)


def test_search_without_a_server(site, browser):
    page = opened(browser)
    page.goto((site / "docs" / "start.html").as_uri())
    box = page.locator("input[name=q]").first
    box.fill("GLIBC_TUNABLES")
    box.press("Enter")
    page.locator("#search-results li a").first.wait_for(timeout=20_000)
    assert page.locator("#search-results li a").first.inner_text() == "Train and fine-tune"
    page.goto((site / "search.html").as_uri() + "?q=accelerate")
    page.get_by_role("link", name="van_classification_tensorflow.accelerate").first.wait_for()
    page.close()


@pytest.mark.parametrize("kind", SIZES)
def test_no_page_is_wider_than_its_window(site, browser, kind):
    """What is wide, tables and code, scrolls in a frame of its own."""
    screenshots = os.environ.get("VAN_SCREENSHOTS")
    page, width = opened(browser, kind), SIZES[kind][0]
    for path in pages(site):
        page.goto(path.as_uri())
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, (path, wide)
        if kind == "phone":  # nothing is cut off without a way to scroll to it
            assert page.evaluate(_CUT_OFF) == [], path
        for theme in ("light", "dark") if screenshots else ():
            page.emulate_media(color_scheme=theme)
            name = "-".join(path.relative_to(site).with_suffix("").parts)
            page.screenshot(path=Path(screenshots) / f"{name}-{kind}-{theme}.png", full_page=True)
    page.close()


_CUT_OFF = """
() => [...document.querySelectorAll('article table, article pre, article img')].filter(one => {
  if (one.getBoundingClientRect().right <= innerWidth) return false;
  for (let at = one; at && at.tagName !== 'ARTICLE'; at = at.parentElement)
    if (['auto', 'scroll'].includes(getComputedStyle(at).overflowX)) return false;
  return true;
}).map(one => one.outerHTML.slice(0, 80))
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(site, browser, theme):
    """Contrast of running text and of code with what is behind them, as WCAG asks: 4.5."""
    page = opened(browser, theme=theme)
    page.goto((site / "docs" / "train.html").as_uri())
    low = page.evaluate(_LOW_CONTRAST)
    page.close()
    assert low == []


_LOW_CONTRAST = """
() => {
  const parts = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(v => v / 255).map(
      v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = one => {
    for (let at = one; at; at = at.parentElement) {
      const colour = parts(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const one of document.querySelectorAll(
    'article p, article li, article td, article code, article pre span')) {
    if (!one.textContent.trim()) continue;
    const [a, b] = [light(parts(getComputedStyle(one).color)), light(behind(one))].sort();
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) found.push([contrast, one.className, one.textContent.slice(0, 40)]);
  }
  return found.slice(0, 5);
}
"""
