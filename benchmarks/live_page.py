"""P3: the live page from hand to eye: a server with the embedded model, Chromium in front of it, strokes by the mouse.

    python benchmarks/live_page.py [--seconds 6] [--dots 15] [--steps 1 2 4] [--serve backend=openvino dtype=bf16]

Two things are timed inside the browser, beside the page's own code: when a pointer event arrives, and when a picture is
drawn on the output. `dot`: from the press of the mouse on a quiet page to the first picture after it. `stroke`: the
mouse moves all the time; pictures in a second, and the page's own figure from hand to eye. Browser, server, model and
the script that moves the mouse share the machine, so these are upper bounds. Needs playwright and a Chromium.
"""

from __future__ import annotations

import argparse
import math
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request

from chromium import FLAGS, program
from race import keep

WATCH = """
window.pressed = []; window.shown = [];
addEventListener('pointerdown', () => pressed.push(performance.now()), true);
const draw = CanvasRenderingContext2D.prototype.drawImage;
CanvasRenderingContext2D.prototype.drawImage = function (...all) {
  if (this.canvas.id === 'output') shown.push(performance.now());
  return draw.apply(this, all);
};
"""


def serving(words):
    """A server's process and its address, when it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "fewstep", "serve", "--port", str(port), *words])
    at = f"http://127.0.0.1:{port}"
    for _ in range(300):
        try:
            urllib.request.urlopen(f"{at}/readyz", timeout=1)
            return process, at
        except OSError:
            time.sleep(0.2)
    process.kill()
    raise SystemExit("The server did not start within a minute.")


def settle(page):
    """Until nothing more is painted."""
    page.wait_for_timeout(150)
    page.wait_for_selector("#state.done:text('Refined')", timeout=60_000)
    page.wait_for_timeout(150)


def dots(page, box, count):
    """Milliseconds from a press to the first picture after it, one press at a time."""
    found = []
    for number in range(count):
        settle(page)
        x = box["x"] + box["width"] * (0.3 + 0.4 * number / count)
        page.mouse.move(x, box["y"] + box["height"] * 0.5)
        page.wait_for_timeout(100)
        page.mouse.down()
        page.mouse.up()
        page.wait_for_function("() => shown.at(-1) > pressed.at(-1)", timeout=30_000)
        found.append(page.evaluate("shown.find((ms) => ms > pressed.at(-1)) - pressed.at(-1)"))
    return found


def stroke(page, box, seconds):
    """Pictures in a second while the mouse draws circles, and the page's own median from hand to eye."""
    x, y, radius = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, min(box["width"], box["height"]) * 0.3
    page.mouse.move(x + radius, y)
    page.mouse.down()
    began, first = time.perf_counter(), page.evaluate("shown.length")
    while (passed := time.perf_counter() - began) < seconds:
        page.mouse.move(x + radius * math.cos(2 * passed), y + radius * math.sin(2 * passed))
        time.sleep(1 / 60)
    pictures, passed = page.evaluate("shown.length") - first, time.perf_counter() - began
    figure = page.locator(".figures div", has_text="Hand to eye").locator("dd").inner_text()
    page.mouse.up()
    return pictures / passed, float(figure.split()[0])


def measured(page, steps, options):
    """One row: figures at this number of steps."""
    settle(page)
    page.keyboard.press("Escape")
    page.keyboard.press(str(steps))
    settle(page)
    box = page.locator("#stage").bounding_box()
    ms = sorted(dots(page, box, options.dots))
    fps, delay_ms = stroke(page, box, options.seconds)
    figures = {
        "dot_p50": statistics.median(ms),
        "dot_min": ms[0],
        "dot_max": ms[-1],
        "fps": fps,
        "stroke_p50": delay_ms,
    }
    return {"steps": steps, **{name: round(value, 1) for name, value in figures.items()}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--dots", type=int, default=15)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--serve", nargs="+", default=[], metavar="WORD", help="more for fewstep serve, without dashes")
    options = parser.parse_args()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise SystemExit("playwright is not installed: pip install 'fewstep[browser]'") from None
    chromium = program()
    load_before = os.getloadavg()[0]
    server, at = serving([f"--{word}" for word in options.serve])
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.add_init_script(WATCH)
            page.goto(at)
            page.wait_for_selector("#state.done", timeout=60_000)
            page.locator(".hint button").click()
            rows = [measured(page, steps, options) for steps in options.steps]
            version = browser.version
            browser.close()
    finally:
        server.terminate()
        server.wait()
    report(rows, serve=options.serve, dots=options.dots, chromium=version, load_before=round(load_before, 2))


def report(rows, **facts):
    print(f"{'steps':>5} {'dot p50 ms':>11} {'min':>7} {'max':>7} {'stroke fps':>11} {'hand to eye ms':>15}")
    for row in rows:
        print(
            f"{row['steps']:>5} {row['dot_p50']:>11.1f} {row['dot_min']:>7.1f} {row['dot_max']:>7.1f} "
            f"{row['fps']:>11.1f} {row['stroke_p50']:>15.1f}"
        )
    races, case = [], "-".join(facts.pop("serve")).replace("=", "-")
    for row in rows:
        ms = {"median_ms": row["dot_p50"], "min_ms": row["dot_min"], "max_ms": row["dot_max"]}
        title = f"press to picture, {row['steps']} step{'s' * (row['steps'] > 1)}"
        races.append({"title": title, "ours": "fewstep", "rounds": facts["dots"], "results": {"fewstep": ms}})
    keep({"benchmark": "live_page", "case": case, "races": races, "rows": rows} | facts)


if __name__ == "__main__":
    main()
