"""The page that `fewstep export --to web` writes, in a real Chromium behind a plain file server.

Every test ends with: no errors, no blocked things, no requests elsewhere. Pictures are compared with Python's, by the
decoder that the page has; weights in half precision and another runtime move a few pixels by one of 255.
"""

import functools
import io
import json
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

import fewstep
from fewstep.errors import OutputError
from fewstep.infotext import parse
from fewstep.request import Request

pytest.importorskip("onnx")

from fewstep.export.runtime import fetch_runtime, runtime_folder
from fewstep.export.web import export_web

MEAN, MOST = 0.3, 8
"""Of 255: how far the page's picture may be from Python's on average, and anywhere."""

SCALED = """() => {
  const small = new OffscreenCanvas(128, 128).getContext('2d', { willReadFrequently: true });
  small.imageSmoothingQuality = 'high';
  small.drawImage(document.querySelector('#stage'), 0, 0, 128, 128);
  return [...small.getImageData(0, 0, 128, 128).data];
}"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def pipe():
    return fewstep.load()


@pytest.fixture(scope="session")
def exported(pipe, tmp_path_factory):
    try:
        list(fetch_runtime(runtime_folder()))
    except OutputError as error:
        pytest.skip(str(error))
    return export_web(pipe, tmp_path_factory.mktemp("web") / "page", runtime=runtime_folder()).folder


def serve(folder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}/"


@pytest.fixture
def site(exported):
    server, at = serve(exported)
    yield at
    server.shutdown()
    server.server_close()


def rgb(values):
    return np.array(values, np.uint8).reshape(128, 128, 4)[..., :3].astype(int)


def painted(pipe, exported, **fields):
    """Python's picture, by the page's decoder."""
    *_, last = pipe.steps(Request(**{"prompt": "a red apple, 3d", "seed": 7, "steps": 4} | fields))
    graph = json.loads((exported / "model.json").read_text())["graphs"]["decoder"]
    name = graph.removeprefix("model/").removesuffix(".onnx")
    image_BCHW = pipe.model.sessions.run(name, "image_BCHW", z_BCHW=last.step.z)
    return np.rint((image_BCHW[0].transpose(1, 2, 0) + 1) * 127.5).clip(0, 255).astype(int)


def same(found, wanted):
    difference = abs(found - wanted)
    assert difference.mean() < MEAN and difference.max() < MOST, (difference.mean(), difference.max())
    assert wanted.std() > 20  # no comparison of blank pictures


def test_it_draws_what_python_draws_with_threads(watched, site, pipe, exported):
    one = watched(site)
    page = one.open()
    assert page.evaluate("crossOriginIsolated")
    assert "threads" in page.inner_text("#engine")
    assert page.title() == "pictogram" and page.input_value("#prompt") == "a red apple, 3d"
    same(rgb(one.output()), painted(pipe, exported))
    assert page.inner_text("#time").endswith("ms, 4 steps")
    one.check()


def test_words_weights_seed_steps_and_guidance_mean_what_they_mean_in_python(watched, site, pipe, exported):
    one = watched(site)
    page = one.open()
    words = "a (blue:1.2) fish, [3d], " + "in the deep sea, " * 20
    page.fill("#prompt", words)
    page.fill("#seed", "4294967295")
    page.keyboard.press("Enter")
    page.locator("#steps").focus()
    page.keyboard.press("3")
    page.click("summary")
    page.locator("#guidance").fill("1.5")
    page.fill("textarea[placeholder^=With]", "grey")
    one.settle()
    wanted = painted(pipe, exported, prompt=words, seed=2**32 - 1, steps=3, guidance=1.5, negative_prompt="grey")
    same(rgb(one.output()), wanted)
    one.check()


def test_it_draws_from_the_paper_and_undo_goes_back(watched, site, pipe, exported):
    one = watched(site)
    page = one.open()
    before = rgb(one.output())
    page.get_by_role("button", name="Colour #1d6fd6").click()
    one.stroke((0.3, 0.3), (0.7, 0.3), (0.7, 0.7), (0.3, 0.7), (0.3, 0.3))
    page.locator("#strength").fill("0.5")
    one.settle()
    drawn = Image.fromarray(np.array(page.evaluate(SCALED), np.uint8).reshape(128, 128, 4)[..., :3].copy())
    same(rgb(one.output()), painted(pipe, exported, image=drawn, strength=0.5))
    assert abs(rgb(one.output()) - before).mean() > 5
    page.keyboard.press("Control+z")
    one.settle()
    assert (rgb(one.output()) == before).all()  # the words decide alone again
    one.check()


def test_a_saved_picture_carries_its_settings(watched, site, pipe):
    one = watched(site)
    page = one.open()
    page.fill("#prompt", 'été: a "green" pear, 3d')
    one.settle()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save").click()
    content = download.value.path().read_bytes()
    picture = Image.open(io.BytesIO(content))
    assert (np.array(picture.convert("RGB")) == rgb(one.output())).all()
    found = parse(picture.info["parameters"])
    assert found.prompt == 'été: a "green" pear, 3d'
    own = parse(pipe(found.prompt, seed=7, steps=4).info["parameters"])
    assert dict(found.settings) == dict(own.settings)
    assert download.value.suggested_filename.endswith("-7.png")
    one.check()


def test_the_second_visit_needs_no_server(watched, exported):
    server, at = serve(exported)
    one = watched(at)
    one.open()
    first = one.output()
    server.shutdown()
    server.server_close()
    one.page.reload()
    one.settle()
    assert one.output() == first
    one.page.fill("#prompt", "a yellow star, 3d")
    one.settle()
    assert one.output() != first
    one.check()


def test_without_a_service_worker_it_draws_with_one_thread(watched, site):
    one = watched(site, service_workers="block")
    page = one.open()
    assert page.inner_text("#engine") == "WebAssembly, 1 thread"
    assert one.said.pop() == "Service Worker registration blocked by Playwright"
    one.check()


def test_a_folder_without_its_weights_says_so(watched, exported, tmp_path):
    folder = tmp_path / "page"
    shutil.copytree(exported, folder)
    (folder / "model" / "weights.bin").unlink()
    server, at = serve(folder)
    one = watched(at)
    one.open(settled=False)
    said = one.page.locator("[role=alert]")
    said.wait_for(timeout=30_000)
    assert "'/model/weights.bin' could not be loaded (404)" in said.inner_text()
    server.shutdown()
    server.server_close()


def test_on_a_phone_everything_fits_the_width(watched, site):
    one = watched(site, viewport={"width": 360, "height": 760}, has_touch=True, color_scheme="dark")
    page = one.open()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for button in page.get_by_role("button").all():
        assert button.get_attribute("aria-label") or button.inner_text()
    one.check()
