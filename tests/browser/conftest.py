"""`fewstep serve` with the embedded model, and Chromium in front of it."""

import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from benchmarks import chromium as program

FLAGS = [
    *program.FLAGS,
    "--disable-component-update",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--auto-select-tab-capture-source-by-title=fewstep",
]
HERE = str(Path(__file__).parent)


def pytest_collection_modifyitems(items):
    for item in items:
        if str(item.path).startswith(HERE):
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.embedded)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serving(*more):
    """A server's process and its address, when it is ready."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "fewstep", "serve", "--port", str(port), *more])
    until = time.monotonic() + 90
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1)
        except urllib.error.HTTPError:
            break  # it asks for the key
        except OSError:
            time.sleep(0.2)
        else:
            break
    assert process.poll() is None, "the server ended while it was starting"
    return process, f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def address():
    process, at = serving()
    yield at
    process.terminate()
    process.wait(20)


@pytest.fixture(scope="session")
def locked_address():
    process, at = serving("--api-key", "open sesame")
    yield at
    process.terminate()
    process.wait(20)


@pytest.fixture(scope="session")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra browser)")
    if program.FOUND is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program.FOUND, headless=True, args=FLAGS)
        yield browser
        browser.close()


WATCH = """
window.violations = [];
document.addEventListener('securitypolicyviolation', (event) => violations.push(event.violatedDirective));
"""


class Watched:
    """A page whose complaints and foreign requests are gathered; `check` fails on any."""

    def __init__(self, browser, at, **options):
        self.at, self.said, self.asked = at, [], []
        options = {"viewport": {"width": 1280, "height": 800}, **options}
        self.context = browser.new_context(permissions=["clipboard-read", "clipboard-write"], **options)
        self.page = self.context.new_page()
        self.page.add_init_script(WATCH)
        self.page.on("console", lambda message: message.type in ("error", "warning") and self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def open(self, *, settled=True):
        self.page.goto(self.at)
        if settled:
            self.settle()
        return self.page

    def settle(self, *, refined=False):
        """Until the picture is final and of what was asked last; or until that was painted once more, better."""
        self.page.wait_for_timeout(120)  # a change takes a frame or two to be noticed
        self.page.wait_for_selector("#state.done:text('Refined')" if refined else "#state.done", timeout=60_000)

    def pixels(self, canvas):
        """Red, green, blue, opacity of every pixel, read from a copy: reading the page's own would slow it down."""
        return self.page.evaluate(
            "(name) => { const from = document.querySelector(name);"
            "const copy = new OffscreenCanvas(from.width, from.height).getContext('2d', { willReadFrequently: true });"
            "copy.drawImage(from, 0, 0); return [...copy.getImageData(0, 0, from.width, from.height).data] }",
            canvas,
        )

    def output(self):
        """The picture."""
        return self.pixels("#output")

    def stroke(self, *places, tool=None):
        """Draw through places given as shares of the stage."""
        if tool:
            self.page.get_by_role("button", name=tool, exact=True).click()
        box = self.page.locator("#stage").bounding_box()
        side = min(box["width"], box["height"])
        left, top = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
        points = [(left + x * side, top + y * side) for x, y in places]
        self.page.mouse.move(*points[0])
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*point, steps=8)
        self.page.mouse.up()

    def drawing(self):
        """What the drawing shows, without the brush's ring: a number that changes with it."""
        self.page.mouse.move(2, 2)
        self.page.wait_for_timeout(100)
        return hash(tuple(self.pixels("#stage")))

    def check(self):
        assert not self.said
        assert not self.page.evaluate("violations")
        elsewhere = [url for url in self.asked if not url.startswith((self.at, "blob:", "data:"))]
        assert not elsewhere


@pytest.fixture
def watched(chromium, address):
    made = []

    def make(at=None, **options):
        made.append(Watched(chromium, at or address, **options))
        return made[-1]

    yield make
    for one in made:
        one.context.close()
