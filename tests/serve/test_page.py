"""The page of `van serve`, in a real Chromium against the real server.

The server runs the digits model and a VAN of random weights that takes 224 x 224. The pictures
of the documents come from here: VAN_SCREENSHOTS=docs pytest -m slow tests/serve/test_page.py
"""

import base64
import csv
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

import van_classification_tensorflow
from tests.browser import chromium
from van_classification_tensorflow.benchmark.measure import write_safetensors
from van_classification_tensorflow.datasets.digits import load_digits
from van_classification_tensorflow.spec.architecture import Architecture

PAGE = Path(van_classification_tensorflow.__file__).parent / "serve" / "page.html"
MAX_BYTES = 300_000
in_browser = pytest.mark.slow  # half a minute in all


# --- What can be told from the file ---


@pytest.fixture(scope="module")
def text():
    return PAGE.read_text(encoding="utf-8")


def test_it_is_one_small_file(text):
    assert len(text.encode()) <= 60_000
    assert text.count("<script") == text.count("<style") == 1
    assert "<script>" in text  # a policy with its hash lets it run
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text))
    assert addresses == {"http://www.w3.org"}  # the name space of the icon, never asked for


def test_nothing_of_strangers_becomes_markup(text):
    script = text.partition("<script>")[2]
    for way in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function("):
        assert way not in script, way
    assert not re.search(r"<[^>]+\son\w+=", text.partition("<script>")[0])
    assert not re.search(r"<[^>]+\sstyle=", text)


def themes(text):
    """The colours of both themes, by name."""
    style = text.partition("<style>")[2].partition("</style>")[0]
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})\b", block)) for block in blocks)
    return {"light": light, "dark": light | dark}


def rgb(colour):
    return [int(colour.lstrip("#")[i : i + 2], 16) for i in (0, 2, 4)]


def luminance(colours):
    """Of sRGB, 0 to 255."""
    parts = np.array(colours) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(one, other):
    """Of WCAG 2."""
    low, high = sorted(luminance([rgb(one), rgb(other)]))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast(text, theme):
    colours = themes(text)[theme]
    for ink, papers, least in (
        ("ink", ("paper", "card", "tint"), 7),
        ("soft", ("paper", "card", "tint"), 4.5),
        ("warn", ("paper", "card", "warn-paper"), 4.5),
        ("accent", ("paper", "card"), 4.5),
        ("on-accent", ("accent",), 4.5),
        ("edge", ("paper", "card"), 3),  # of fields and buttons
        ("bar", ("paper", "card"), 2.5),  # its per cent stands beside it
    ):
        for paper in papers:
            found = contrast(colours[ink], colours[paper])
            assert found >= least, (ink, paper, found)


def cividis(text):
    """(17, 3), the table that the map is drawn with."""
    table = re.search(r"const HEAT = \[(.*?)\]", text, re.DOTALL)[1]
    return np.array([rgb(one) for one in re.findall(r"'(\w{6})'", table)])


def test_colours_of_the_map_rise_evenly(text):
    """Ever lighter, by equal steps of CIE L*: readable in print and to colour-blind people."""
    light = 116 * np.cbrt(luminance(cividis(text))) - 16
    steps = np.diff(light)
    assert len(light) == 17
    assert light[-1] - light[0] > 70
    assert 3 < steps.min() <= steps.max() < 7


# --- Server and browser ---


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Site:
    """The server, which can be gone and come back at the same address."""

    def __init__(self, folder):
        sizes = Architecture((8, 16, 24, 32), (16, 32, 48, 64), (1, 1, 1, 1), 3, 12)
        generator = np.random.default_rng(3)
        tensors = {}
        for name, spec in sizes.tensors().items():
            scale = 1 / np.sqrt(np.prod(spec.shape[1:])) if spec.kind != "vector" else 0.02
            offset = 0 if spec.kind != "vector" or name.endswith(("bias", "mean")) else 1
            tensors[name] = (offset + scale * generator.normal(size=spec.shape)).astype(np.float32)
        self.random = folder / "random.safetensors"
        write_safetensors(self.random, tensors, {"labels": [f"thing {i}" for i in range(12)]})
        self.port, self.process = free_port(), None
        self.address = f"http://127.0.0.1:{self.port}/"

    def start(self, *options):
        command = [sys.executable, "-m", "van_classification_tensorflow", "serve", "--weights"]
        command += ["digits", f"random={self.random}", "--port", str(self.port)]
        command += ["--max-bytes", str(MAX_BYTES), "--drain", "0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said = []
        for line in self.process.stdout:
            said.append(line.decode())
            if "Serving at" in said[-1]:
                return
        pytest.fail(f"no server: {said[-1:]}")

    def stop(self, how=signal.SIGTERM):
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(20)
            self.process.stdout.close()
            self.process = None


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    one = Site(tmp_path_factory.mktemp("site"))
    one.start()
    yield one
    one.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def browser():
    with chromium() as one:
        yield one


class Visit:
    """A tab with the page, and what it did that it should not do."""

    def __init__(self, browser, site, **options):
        self.site = site
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.foreign, self.errors, self.asked = [], [], []
        self.page.on("request", self._request)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._console)

    def _request(self, request):
        if request.url.startswith((self.site.address, "blob:" + self.site.address, "data:")):
            self.asked.append(request.url)
        else:
            self.foreign.append(request.url)

    def _console(self, message):
        # That a request failed is the browser's own line, where a test lets it fail.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.errors.append(message.text)

    def open(self):
        self.page.goto(self.site.address)
        self.page.locator("#about").wait_for()
        return self.page

    def predictions(self):
        return [one for one in self.asked if "/predict?" in one]


@pytest.fixture
def visit(browser, site):
    visits = []

    def make(**options):
        options.setdefault("viewport", {"width": 1280, "height": 800})
        visits.append(Visit(browser, site, **options))
        return visits[-1]

    yield make
    for one in visits:
        one.context.close()
    for one in visits:
        assert one.foreign == []
        assert one.errors == []


def payload(name, data, kind="image/png"):
    return {"name": name, "mimeType": kind, "buffer": data}


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def scans():
    """[(a PNG of a digit, which one it is), ...]"""
    digits = load_digits()[1]
    found = []
    for pixels, label in zip(digits.pixels[:12], digits.labels[:12], strict=True):
        grey = Image.fromarray((pixels * 15.9375).astype(np.uint8))
        found.append((encoded(grey.resize((128, 128), Image.Resampling.NEAREST)), str(label)))
    return found


@pytest.fixture(scope="module")
def photo():
    """A JPEG of 320 x 200 that is to be shown turned: 200 x 320."""
    y, x = np.mgrid[:200, :320]
    pixels = np.stack([x * 255 // 319, y * 255 // 199, (x + y) % 256], 2).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.fromarray(pixels), "JPEG", quality=90, exif=exif)


DROP = """([files, kind]) => {
  const transfer = new DataTransfer();
  for (const {name, data, type} of files) {
    const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
    transfer.items.add(new File([bytes], name, {type}));
  }
  const paste = kind === 'paste';
  const how = {bubbles: true, cancelable: true};
  const event = paste ? new ClipboardEvent(kind, {clipboardData: transfer, ...how})
    : new DragEvent(kind, {dataTransfer: transfer, ...how});
  document.body.dispatchEvent(event);
}"""


def bring(page, kind, *files):
    """Drops or pastes (name, bytes, type)."""
    page.evaluate(
        DROP,
        [
            [{"name": n, "data": base64.b64encode(d).decode(), "type": t} for n, d, t in files],
            kind,
        ],
    )


def table(page):
    """What the button downloads: (bytes, rows)."""
    with page.expect_download() as download:
        page.locator("#csv").click()
    data = Path(download.value.path()).read_bytes()
    return data, list(csv.reader(io.StringIO(data.decode("utf-8"), newline=""), strict=True))


def see(page, selector, text, seconds=15):
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_contain_text(text, timeout=seconds * 1000)


# --- What a person does ---


@in_browser
def test_drop_answer_explanation_download(visit, scans, text):
    one = visit()
    page = one.open()
    bring(page, "dragover", ("five.png", scans[0][0], "image/png"))
    assert page.locator("#drop").is_visible()
    with page.expect_response(lambda response: "/predict?" in response.url) as answered:
        bring(page, "drop", ("five.png", scans[0][0], "image/png"))
    assert not page.locator("#drop").is_visible()
    result = answered.value.json()["results"][0]
    best = result["predictions"][0]
    assert best["label"] == scans[0][1]
    see(page, "#title", best["label"])
    see(page, "#said", f"five.png: {best['label']}")
    assert page.locator("#bars li").count() == 5
    shares = page.locator("#bars .number").all_inner_texts()
    shares = [float(re.sub(r"[^\d.]", "", one)) for one in shares]
    assert shares == sorted(shares, reverse=True)
    assert page.title().startswith(best["label"])

    # The map came with the answer; each cell's centre has the colour of its value.
    page.locator("#map").wait_for()
    map_ = result["explanation"]["map"]
    shown = page.locator("#map").evaluate(
        """(canvas, [height, width]) => {
          const all = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
          return Array.from({length: height * width}, (_, i) => {
            const x = Math.floor((i % width + .5) / width * canvas.width);
            const y = Math.floor((Math.floor(i / width) + .5) / height * canvas.height);
            return [...all.slice(4 * (y * canvas.width + x)).slice(0, 3)];
          });
        }""",
        [map_["height"], map_["width"]],
    )
    places = np.array(map_["values"]) * 16
    colours = cividis(text)
    expected = np.stack([np.interp(places, range(17), colours[:, c]) for c in range(3)], 1)
    assert np.abs(np.array(shown) - expected).max() <= 3
    assert page.locator("#map").get_attribute("aria-label").startswith("Heat map over the picture")

    page.locator("#strength").fill("25")
    assert page.locator("#map").evaluate("map => map.style.opacity") == "0.25"
    colours = "getComputedStyle(document.getElementById('picture')).filter"
    assert page.evaluate(colours) == "grayscale(1)"
    page.locator("#on").uncheck()
    assert not page.locator("#map").is_visible()
    assert page.evaluate(colours) == "none"

    # Another class, from the bars; then one by its name, by another method.
    second = result["predictions"][1]
    with page.expect_request(lambda request: f"class={second['index']}" in request.url):
        page.locator("#bars button").nth(1).click()
    assert page.locator("#on").is_checked()
    see(page, "#where", f"“{second['label']}”")
    others = {str(i) for i in range(10)} - {p["label"] for p in result["predictions"]}
    wanted = min(others)
    page.locator("#another").fill(wanted)
    with page.expect_request(lambda request: f"class={wanted}" in request.url):
        page.locator("#another").press("Enter")
    see(page, "#bars [aria-pressed=true]", wanted)
    page.locator("#another").fill("no such thing")
    page.locator("#another").press("Enter")
    see(page, "#nobody", "no class of this name")
    with page.expect_response(lambda one: "explain=grad-cam%2B%2B&" in one.url) as answered:
        page.locator("#method").select_option("grad-cam++")
    assert answered.value.json()["results"][0]["explanation"]["method"] == "grad-cam++"

    data, rows = table(page)
    assert data.endswith(b"\r\n")
    assert data.count(b"\n") == data.count(b"\r\n") == 2
    assert rows[0][:6] == ["path", "error", "label_1", "wnid_1", "index_1", "probability_1"]
    assert rows[1][:3] == ["five.png", "", best["label"]]
    assert float(rows[1][5]) == best["probability"]


@in_browser
def test_upright_with_the_crop_marked(visit, photo):
    page = visit().open()
    page.locator("#model").select_option("random")
    with page.expect_response(lambda response: "/predict?" in response.url) as answered:
        page.locator("#choose").set_input_files(payload("tall.jpg", photo, "image/jpeg"))
    result = answered.value.json()["results"][0]
    assert (result["width"], result["height"]) == (200, 320)
    see(page, "#size", "200 \u00d7 320")
    page.locator("#seen").wait_for()
    frame, seen = (page.locator(one).bounding_box() for one in ("#frame", "#seen"))
    assert frame["height"] / frame["width"] == pytest.approx(1.6, abs=0.01)
    assert page.locator("#picture").evaluate("i => [i.naturalWidth, i.naturalHeight]") == [200, 320]
    crop, scale = result["explanation"]["crop"], frame["width"] / 200
    assert seen["x"] - frame["x"] == pytest.approx(crop["left"] * scale, abs=1)
    assert seen["y"] - frame["y"] == pytest.approx(crop["top"] * scale, abs=1)
    assert seen["width"] == pytest.approx(crop["width"] * scale, abs=1)
    assert page.locator("#unseen").is_visible()
    see(page, "#where", "not seen")
    see(page, "#about", "224")


@in_browser
def test_paste(visit, scans):
    page = visit().open()
    bring(page, "paste", ("image.png", scans[1][0], "image/png"))
    see(page, "#title", scans[1][1])
    see(page, "#file", "pasted 1.png")


@in_browser
def test_another_model_is_asked_as_well(visit, scans):
    one = visit()
    page = one.open()
    page.locator("#choose").set_input_files(payload("a.png", scans[0][0]))
    see(page, "#title", scans[0][1])
    page.locator("#model").select_option("random")
    see(page, "#title", "thing")
    see(page, "#about-title", "random")
    asked = len(one.predictions())
    page.locator("#model").select_option("digits")  # known already
    see(page, "#title", scans[0][1])
    assert len(one.predictions()) == asked


@in_browser
def test_refused(visit, scans):
    """By the server, and by the page itself before anything is sent."""
    one = visit()
    page = one.open()
    whole = scans[0][0]
    page.locator("#choose").set_input_files(payload("cut.png", whole[: len(whole) // 2]))
    see(page, "#title", "not read")
    see(page, "#trouble", "save it as JPEG or PNG")
    sent = len(one.predictions())
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    for name, data, kind, says in (
        ("large.png", encoded(Image.fromarray(noise)), "image/png", "up to 300 kB"),
        ("phone.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "image/heic", "HEIC"),
        ("text.pdf", b"%PDF-1.7\n" + bytes(99), "application/pdf", "not a picture"),
        ("empty.png", b"", "image/png", "empty"),
        ("vast.png", encoded(Image.new("1", (9000, 9000))), "image/png", "50 million pixels"),
    ):
        page.locator("#choose").set_input_files(payload(name, data, kind))
        see(page, "#file", name)
        see(page, "#trouble", says)
    assert len(one.predictions()) == sent


@in_browser
@pytest.mark.skipif(not features.check("avif"), reason="this Pillow writes no AVIF")
def test_what_only_the_browser_reads_is_made_a_png_of(visit, scans):
    one = visit()
    page = one.open()
    scan = Image.open(io.BytesIO(scans[2][0])).convert("RGB")
    page.locator("#choose").set_input_files(payload("a.avif", encoded(scan, "AVIF"), "image/avif"))
    see(page, "#trouble", "does not read AVIF")
    assert one.predictions() == []
    page.locator("#trouble button").click()
    see(page, "#title", scans[2][1])


@in_browser
def test_what_only_the_server_reads_is_answered(visit, scans):
    page = visit().open()
    scan = encoded(Image.open(io.BytesIO(scans[2][0])), "TIFF")
    page.locator("#choose").set_input_files(payload("a.tif", scan, "image/tiff"))
    see(page, "#title", scans[2][1])
    see(page, "#blind", "cannot show")
    page.locator("#map").wait_for()


@in_browser
def test_several_pictures(visit, scans):
    one = visit()
    page = one.open()
    flying, most = set(), [0]

    def began(request):
        if "/predict?" in request.url:
            flying.add(request)
            most[0] = max(most[0], len(flying))

    page.on("request", began)
    page.on("requestfinished", lambda request: flying.discard(request))
    names = ['=HYPERLINK("http://x.invalid","y").png', "<img src=x onerror=alert(1)>.png", "@a.png"]
    names += ["-1+2.png", "+a.png", 'a "b", c.png', "\tx.png"]
    names += [f"scan {i}.png" for i in range(len(names), len(scans))]
    files = [(n, data, "image/png") for n, (data, _) in zip(names, scans, strict=True)]
    bring(page, "drop", *files, ("broken.png", b"\x89PNG\r\n\x1a\n" + bytes(50), "image/png"))
    see(page, "#said", "12 pictures answered, 1 not read")
    assert 1 < most[0] <= 3
    assert page.locator(".tile").count() == 13
    assert page.locator("#gallery img[src=x]").count() == 0
    for tile, (_, label) in zip(page.locator(".tile").all(), scans, strict=False):
        assert tile.locator(".first").inner_text() == label

    data, rows = table(page)
    assert [len(row) for row in rows] == [22] * 14
    neutral = ["'" + n if n[0] in "=@-+\t" else n for n in names]
    assert [row[0] for row in rows[1:]] == [*neutral, "broken.png"]
    assert [row[2] for row in rows[1:-1]] == [label for _, label in scans]
    assert rows[-1][1] != ""
    assert not any(rows[-1][2:])
    assert b'"a ""b"", c.png"' in data

    # With the keyboard: arrows in the gallery, Enter, arrows from picture to picture, Escape.
    page.locator(".tile").first.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowUp", "End", "Home", "ArrowRight"):
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    see(page, "#file", names[1])
    assert page.evaluate("document.activeElement.id") == "title"
    page.keyboard.press("ArrowRight")
    see(page, "#file", names[2])
    see(page, "#count", "Picture 3 of 13")
    page.keyboard.press("Escape")
    page.locator("#gallery").wait_for()
    assert "@a.png" in page.evaluate("document.activeElement.innerText")
    page.keyboard.press("Enter")
    see(page, "#file", names[2])
    page.go_back()  # as the button of a phone does
    page.locator("#gallery").wait_for()
    page.locator("#clear").click()
    page.locator("#start").wait_for()


@in_browser
def test_busy_server_is_asked_again_when_it_said(visit, scans):
    one = visit()
    page = one.open()
    times = []

    def busy(route):
        times.append(time.monotonic())
        if len(times) == 1:
            route.fulfill(
                status=429,
                headers={"Retry-After": "2", "Content-Type": "application/json"},
                body=json.dumps({"error": "the queue is full"}),
            )
        else:
            route.continue_()

    page.route("**/predict?*", busy)
    page.locator("#choose").set_input_files(payload("a.png", scans[3][0]))
    see(page, "#banner", "busy")
    see(page, "#title", scans[3][1])
    assert times[1] - times[0] >= 1.9
    assert not page.locator("#banner").is_visible()


@in_browser
def test_gone_and_back_with_a_token(visit, scans, site):
    """Goes on where it was; a token is asked for, a wrong one again, and it stays in the tab."""
    one = visit()
    page = one.open()
    page.locator("#choose").set_input_files(payload("a.png", scans[4][0]))
    see(page, "#title", scans[4][1])
    site.stop(signal.SIGKILL)
    try:
        files = [payload(f"{i}.png", data) for i, (data, _) in enumerate(scans[:4])]
        page.locator("#choose").set_input_files(files)
        see(page, "#banner", "does not answer")
        see(page, "#tiles", "Waiting")
        site.start("--token", "right-one")
        # Try now; unless it has tried by itself meanwhile, and asks for the token already.
        page.evaluate("gate.open || document.querySelector('#banner button').click()")
        page.locator("#gate").wait_for()
        for given, says in (("schlüssel", "no spaces"), ("wrong-one", "not the right one")):
            page.locator("#token").fill(given)
            page.keyboard.press("Enter")
            see(page, "#gate-wrong", says)
        page.keyboard.press("Escape")
        see(page, "#banner", "asks for a token")
        page.locator("#banner button").click()
        page.locator("#token").fill("right-one")
        page.keyboard.press("Enter")
        see(page, "#said", "5 pictures answered")
        labels = [page.locator(".tile .first").nth(i).inner_text() for i in range(5)]
        assert labels == [label for _, label in (scans[4], *scans[:4])]
        assert not page.locator("#banner").is_visible()
        kept = page.evaluate("[{...sessionStorage}, {...localStorage}, document.cookie]")
        assert kept == [{"van-token": "right-one"}, {}, ""]
        page.reload()
        page.locator("#about").wait_for()
        assert not page.locator("#gate").is_visible()
    finally:
        site.stop()
        site.start()


# --- For everybody ---


@in_browser
def test_keyboard_alone(visit, scans):
    page = visit().open()
    choosers = []
    page.on("filechooser", lambda one: choosers.append(one))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "model"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "pictures"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"
    page.keyboard.press("Enter")
    for _ in range(50):
        if choosers:
            break
        page.wait_for_timeout(100)
    choosers[0].set_files([payload(f"{i}.png", scans[i][0]) for i in range(2)])
    see(page, "#said", "2 pictures answered")
    met = []
    for _ in range(30):
        page.keyboard.press("Tab")
        met.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        if met[-1] == "tile":
            break
    assert "tile" in met
    page.keyboard.press("Enter")
    see(page, "#file", "0.png")
    page.locator("#map").wait_for()
    met = []
    for _ in range(16):
        page.keyboard.press("Tab")
        met.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        assert page.evaluate(outline) == "solid" or met[-1] == "", met
    order = [one for one in met if one in ("on", "strength", "class", "another", "method")]
    assert order == ["on", "strength", *["class"] * 5, "another", "method"]
    page.keyboard.press("Escape")
    page.locator("#gallery").wait_for()


@in_browser
def test_what_a_screen_reader_finds(visit, scans):
    one = visit()
    page = one.open()
    tree = one.context.new_cdp_session(page)

    def nodes():
        found = tree.send("Accessibility.getFullAXTree")["nodes"]
        kept = [n for n in found if not n.get("ignored")]
        return [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in kept]

    controls = ("button", "link", "checkbox", "slider", "textbox", "combobox")

    def check():
        found = nodes()
        assert {"banner", "main", "complementary"} <= {role for role, _ in found}
        assert [role for role, name in found if role in controls and not name.strip()] == []
        return found

    assert ("heading", "What is in this picture?") in check()
    page.locator("#choose").set_input_files([payload(f"{i}.png", scans[i][0]) for i in range(3)])
    see(page, "#said", "3 pictures answered")
    buttons = [name for role, name in check() if role == "button"]
    assert any(re.fullmatch(rf"{scans[0][1]} .* % 0\.png", name) for name in buttons), buttons
    page.locator(".tile").first.click()
    page.locator("#map").wait_for()
    found = check()
    assert ("heading", scans[0][1]) in found
    assert any(role == "image" and name.startswith("Heat map") for role, name in found)
    assert any(role == "button" and re.match(rf"{scans[0][1]} .*%", name) for role, name in found)
    assert page.locator("[role=status]").count() >= 2


@in_browser
@pytest.mark.parametrize(("width", "height"), [(320, 640), (390, 844), (640, 400)])
def test_small_windows_and_double_zoom(visit, scans, photo, width, height):
    """640 x 400 is what 200 % leaves of 1280 x 800."""
    page = visit(viewport={"width": width, "height": height}, has_touch=True, is_mobile=True).open()
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(overflow) <= 0
    assert page.locator("#photo").is_visible()
    assert page.locator("#shoot").get_attribute("capture") == "environment"
    long = "a_very_long_name_without_any_space_" * 4 + ".jpg"
    page.locator("#choose").set_input_files(
        [payload(long, photo, "image/jpeg"), payload("b.png", scans[0][0])]
    )
    see(page, "#said", "2 pictures answered")
    assert page.evaluate(overflow) <= 0
    page.locator(".tile").first.click()
    page.locator("#map").wait_for()
    assert page.evaluate(overflow) <= 0
    sizes = page.locator("button:visible, select:visible").evaluate_all(
        "all => all.map(one => one.getBoundingClientRect()).map(r => Math.min(r.width, r.height))"
    )
    assert min(sizes) >= 24  # WCAG 2.2: targets


@in_browser
def test_dark_and_still(visit, scans, text):
    page = visit(color_scheme="dark", reduced_motion="reduce").open()
    page.locator("#choose").set_input_files(payload("a.png", scans[0][0]))
    page.locator("#map").wait_for()
    assert page.evaluate("document.getAnimations().length") == 0
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = themes(text)["dark"]["paper"]
    assert [int(one) for one in re.findall(r"\d+", paper)] == rgb(dark)


@in_browser
@pytest.mark.parametrize("name", ["desktop", "phone"])
def test_pictures_of_the_documents(visit, scans, name, tmp_path):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    phone |= {"device_scale_factor": 2, "color_scheme": "dark"}
    page = visit(reduced_motion="reduce", **(phone if name == "phone" else {})).open()
    page.locator("#choose").set_input_files(
        [payload(f"scan {i + 1:02}.png", data) for i, (data, _) in enumerate(scans)]
    )
    see(page, "#said", "12 pictures answered")
    page.locator(".tile").nth(7).click()
    page.locator("#map").wait_for()
    page.mouse.move(0, 0)
    path = Path(os.environ.get("VAN_SCREENSHOTS", tmp_path)) / f"serve_{name}.png"
    page.screenshot(path=path)
    assert path.stat().st_size < 300_000
