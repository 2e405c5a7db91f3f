"""The exported page in Chromium: seconds to the first picture, pictures a second, by WebAssembly.

    python benchmarks/web.py [--seconds 8] [--steps 1 2 4]

`first visit`: from the address to the first picture, nothing cached, from a file server on this machine; `second
visit`: the same once the service worker has every file. Then another seed is asked for as soon as a picture is there:
pictures in a second, and the page's own milliseconds. Browser, server and this script share the machine, so these are
upper bounds. Needs playwright, a Chromium, the package onnx, and ONNX Runtime Web (fetched from npm once).
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import tempfile
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from chromium import FLAGS, program
from race import keep

import fewstep
from fewstep.export.runtime import VERSION, fetch_runtime, runtime_folder, runtime_in
from fewstep.export.web import export_web

WATCH = """
window.shown = [];
const put = CanvasRenderingContext2D.prototype.putImageData;
CanvasRenderingContext2D.prototype.putImageData = function (...all) {
  if (this.canvas.id === 'output') shown.push(performance.now());
  return put.apply(this, all);
};
"""


class Quiet(SimpleHTTPRequestHandler):
    """A file server that prints nothing."""

    def log_message(self, *_):
        """Nothing."""


def first_picture(page, at):
    """Seconds from the address to the picture."""
    began = time.perf_counter()
    page.goto(at)
    page.wait_for_selector("#state.done", timeout=120_000)
    return time.perf_counter() - began


def measured(page, steps, seconds):
    """One row: figures at this number of steps."""
    page.locator("#steps").focus()
    page.keyboard.press(str(steps))
    page.wait_for_timeout(200)
    page.wait_for_selector("#state.done", timeout=60_000)
    began, first, ms = time.perf_counter(), page.evaluate("shown.length"), []
    while (passed := time.perf_counter() - began) < seconds:
        page.keyboard.press("r")
        page.wait_for_timeout(20)
        ms.append(float(page.inner_text("#time").split()[0]))
    pictures = page.evaluate("shown.length") - first
    page.wait_for_selector("#state.done", timeout=60_000)
    return {"steps": steps, "fps": round(pictures / passed, 2), "ms_p50": statistics.median(ms), "ms_min": min(ms)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--runtime", type=Path, help="ONNX Runtime Web, unpacked")
    options = parser.parse_args()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise SystemExit("playwright is not installed: pip install 'fewstep[browser]'") from None
    chromium = program()
    list(fetch_runtime(runtime_folder()) if options.runtime is None else ())
    runtime, load_before = runtime_in(options.runtime or runtime_folder()), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as there, sync_playwright() as driver:
        found = export_web(fewstep.load(), Path(there) / "page", runtime=runtime)
        server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(found.folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = driver.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.add_init_script(WATCH)
        visits = [first_picture(page, f"http://127.0.0.1:{server.server_port}/") for _ in range(2)]
        engine = page.inner_text("#engine")
        rows = [measured(page, steps, options.seconds) for steps in options.steps]
        version = browser.version
        browser.close()
        server.shutdown()
    facts = {
        "first_visit_s": round(visits[0], 2),
        "second_visit_s": round(visits[1], 2),
        "megabytes": found.bytes / 1e6,
    }
    versions = {"engine": engine, "runtime": VERSION, "chromium": version}
    report(rows, **facts, **versions, cores=os.cpu_count(), load_before=round(load_before, 2))


def report(rows, **facts):
    print(
        f"first visit {facts['first_visit_s']:.1f} s, second visit {facts['second_visit_s']:.1f} s, {facts['engine']}"
    )
    print(f"{'steps':>5} {'pictures/s':>11} {'ms p50':>8} {'ms min':>8}")
    for row in rows:
        print(f"{row['steps']:>5} {row['fps']:>11.2f} {row['ms_p50']:>8.0f} {row['ms_min']:>8.0f}")
    four = next((row["fps"] for row in rows if row["steps"] == 4), None)
    figures = {"first_picture_s": facts["first_visit_s"], "pictures_s": four, "rows": rows}
    keep({"benchmark": "web", **figures, **facts})


if __name__ == "__main__":
    main()
