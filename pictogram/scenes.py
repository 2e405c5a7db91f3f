"""Captioned scenes composed from the cut-outs: the whole training distribution, in one function of a seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pictogram.concepts import COLOURS, CONCEPTS, EVERYDAY, PLACES, TRAIN_STYLES, background_held_out, style_held_out

SIZE_PX = 128
COUNTS = {2: "two", 3: "three", 4: "four"}
HUES = {"red": 0, "orange": 25, "yellow": 50, "green": 120, "blue": 215, "purple": 275, "pink": 330}
#: (centre x, centre y, scale) of each copy, as shares of the side.
LAYOUTS = {
    2: ((0.27, 0.5, 0.48), (0.73, 0.5, 0.48)),
    3: ((0.5, 0.27, 0.46), (0.27, 0.73, 0.46), (0.73, 0.73, 0.46)),
    4: ((0.27, 0.27, 0.45), (0.73, 0.27, 0.45), (0.27, 0.73, 0.45), (0.73, 0.73, 0.45)),
}

Cutouts = dict[str, Image.Image]


@dataclass(frozen=True)
class Scene:
    """One picture (SIZE_PX square, RGB) and what it shows."""

    image: Image.Image
    caption: str
    slug: str
    style: str
    background: str
    kind: str


def load_cutouts(path: Path) -> Cutouts:
    """'style/slug' -> RGBA picture with premultiplied alpha (mode RGBa), ready to be resized."""
    with np.load(path) as data:
        return {key: Image.fromarray(data[key]).convert("RGBa") for key in data.files}


@cache
def palette(*stops: tuple[int, int, int]) -> np.ndarray:
    """A vertical gradient through the stops, float (SIZE_PX, 1, 3)."""
    at = np.linspace(0, len(stops) - 1, SIZE_PX)
    return np.stack([np.interp(at, range(len(stops)), [s[c] for s in stops]) for c in range(3)], -1)[:, None]


def gradient(*stops: tuple[int, int, int]) -> Image.Image:
    """The gradient as a picture."""
    return Image.fromarray(np.broadcast_to(palette(*stops), (SIZE_PX, SIZE_PX, 3)).astype(np.uint8))


#: place -> sky, ground; the three without ground are painted by hand below.
SKIES = {
    "meadow": (((120, 190, 245), (205, 235, 255)), (110, 185, 80)),
    "beach": (((110, 190, 245), (200, 235, 255)), (240, 215, 150)),
    "snow": (((170, 200, 230), (220, 232, 245)), (246, 250, 255)),
    "desert": (((250, 215, 150), (255, 238, 195)), (222, 170, 95)),
    "table": (((238, 228, 212), (238, 228, 212)), (160, 108, 62)),
    "sunset": (((90, 60, 130), (235, 110, 90), (255, 200, 110)), (95, 55, 95)),
    "night": (((12, 14, 48), (34, 36, 92), (60, 60, 120)), None),
    "sea": (((90, 200, 235), (30, 120, 200), (12, 60, 130)), None),
}


def paint_place(place: str, rng: np.random.Generator) -> Image.Image:
    """A painted place, SIZE_PX square: sky, what stands behind the horizon, ground, what lies on it."""
    n = SIZE_PX
    horizon = int(n * rng.uniform(0.58, 0.66))
    sky, ground = SKIES[place]
    image = gradient(*sky)
    draw = ImageDraw.Draw(image)
    if place == "sunset":
        draw.ellipse((n * 0.3, horizon - n * 0.25, n * 0.7, horizon + n * 0.15), fill=(255, 225, 130))
    elif place == "desert":
        draw.ellipse((-n * 0.4, horizon - n * 0.12, n * 0.8, n * 1.4), fill=(205, 150, 80))
    elif place == "beach":
        draw.rectangle((0, horizon - n // 7, n, horizon), fill=(50, 150, 215))
    if ground is not None:
        draw.rectangle((0, horizon, n, n), fill=ground)
    paint_details(draw, place, horizon, rng)
    return image


def paint_details(draw: ImageDraw.ImageDraw, place: str, horizon: int, rng: np.random.Generator) -> None:
    """Stars, flakes, bubbles, planks."""
    n = SIZE_PX
    if place == "night":
        for x, y in rng.uniform(0, n, (14, 2)):
            draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill=(240, 240, 210))
    elif place == "snow":
        for x, y in rng.uniform(0, n, (26, 2)):
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(255, 255, 255))
    elif place == "sea":
        for x, y, r in rng.uniform((0, 0, 2), (n, n, 5), (9, 3)):
            draw.ellipse((x - r, y - r, x + r, y + r), outline=(200, 235, 250))
    elif place == "table":
        for y in range(horizon + n // 9, n, n // 9):
            draw.line((0, y, n, y), fill=(132, 86, 46), width=2)


def paint_background(name: str, rng: np.random.Generator) -> Image.Image:
    """A plain colour or a painted place."""
    if name in COLOURS:
        return Image.new("RGB", (SIZE_PX, SIZE_PX), COLOURS[name])
    return paint_place(name, rng)


def background_phrase(name: str) -> str:
    """What a caption says of the background."""
    return PLACES.get(name) or f"on a {name} background"


def paste(image: Image.Image, cutout: Image.Image, x: float, y: float, scale: float) -> None:
    """Paste a premultiplied cut-out with its centre at (x, y), scale in shares of the side."""
    side = max(1, round(scale * SIZE_PX))
    small = cutout.resize((side, side), Image.Resampling.BICUBIC).convert("RGBA")
    image.paste(small, (round(x * SIZE_PX - side / 2), round(y * SIZE_PX - side / 2)), small)


def recolour(cutout: Image.Image, hue_degrees: int) -> Image.Image:
    """The cut-out with every saturated pixel turned to one hue."""
    rgba = cutout.convert("RGBA")
    h, s, v = rgba.convert("RGB").convert("HSV").split()
    h = h.point(lambda _: round(hue_degrees / 360 * 255))
    tinted = Image.merge("HSV", (h, s, v)).convert("RGB")
    tinted.putalpha(rgba.getchannel("A"))
    return tinted.convert("RGBa")


def plural(name: str) -> str | None:
    """The plural of a simple name; None where it has none that is plain."""
    if " " in name or name.endswith("s") or name in ("fish", "cheese", "fire", "beer", "broccoli"):
        return None
    if name == "mouse":
        return "mice"
    if name.endswith(("ch", "x", "sh")):
        return name + "es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


def article(name: str) -> str:
    """The name with its article, where it takes one."""
    if name.endswith("s") and name not in ("bus", "octopus", "cactus"):
        return name
    return f"{'an' if name[0] in 'aeiou' and not name.startswith('uni') else 'a'} {name}"


def caption(what: str, style: str, rng: np.random.Generator) -> str:
    """The caption's wording: style first, last, or not at all."""
    draw = rng.random()
    if draw < 0.40:
        return f"{what}, {style}"
    if draw < 0.60:
        return f"a {style} emoji of {what}"
    if draw < 0.80:
        return what
    return f"{style} {what.removeprefix('a ').removeprefix('an ')}"


def pick_name(slug: str, rng: np.random.Generator) -> str:
    """The first name two times in three, else any."""
    names = CONCEPTS[slug]
    return names[0] if rng.random() < 2 / 3 else str(rng.choice(names))


def draw_background(slug: str, rng: np.random.Generator) -> str:
    """White 40 %, a colour 35 %, a place 25 %; never a held-out pair."""
    while True:
        draw = rng.random()
        pool = ["white"] if draw < 0.40 else list(COLOURS)[1:] if draw < 0.75 else list(PLACES)
        name = str(rng.choice(pool))
        if not background_held_out(slug, name):
            return name


def trained(styles: tuple[str, ...] = TRAIN_STYLES, *, words: str = "all") -> list[tuple[str, str]]:
    """Every (slug, style) that training may see; `words` is "all" or "everyday"."""
    slugs = [slug for slug in CONCEPTS if words == "all" or slug in EVERYDAY]
    return [(slug, style) for slug in slugs for style in styles if not style_held_out(slug, style)]


def single(cutouts: Cutouts, slug: str, style: str, background: str, rng: np.random.Generator) -> Image.Image:
    """One concept in the middle of a background, with a little jitter."""
    image = paint_background(background, rng)
    x, y = 0.5 + rng.uniform(-0.03, 0.03, 2)
    paste(image, cutouts[f"{style}/{slug}"], x, y, rng.uniform(0.80, 0.90))
    return image


def compose(cutouts: Cutouts, rng: np.random.Generator, pairs: list[tuple[str, str]], *, extras: float = 0.2) -> Scene:
    """One scene drawn from `pairs`; the share `extras` is, about evenly, counted, two things, or recoloured."""
    slug, style = pairs[rng.integers(len(pairs))]
    name, background = pick_name(slug, rng), draw_background(slug, rng)
    draw, kind, what = rng.random(), "single", article(name)
    cutout = cutouts[f"{style}/{slug}"]
    if draw < 0.35 * extras and plural(name):
        kind, count = "count", int(rng.integers(2, 5))
        what, image = f"{COUNTS[count]} {plural(name)}", paint_background(background, rng)
        for x, y, scale in LAYOUTS[count]:
            paste(image, cutout, x, y, scale)
    elif draw < 0.7 * extras:
        kind = "pair"
        others = [s for s, st in pairs if st == style and s != slug and not background_held_out(s, background)]
        other = str(rng.choice(others))
        what, image = f"{what} and {article(pick_name(other, rng))}", paint_background(background, rng)
        for (x, y, scale), key in zip(LAYOUTS[2], (slug, other), strict=True):
            paste(image, cutouts[f"{style}/{key}"], x, y, scale)
    elif draw < extras:
        kind, hue = "recolour", str(rng.choice(list(HUES)))
        what = article(f"{hue} {name.removeprefix('red ')}")
        tinted = recolour(cutout, HUES[hue])
        image = single({f"{style}/{slug}": tinted}, slug, style, background, rng)
    else:
        image = single(cutouts, slug, style, background, rng)
    text = caption(what, style, rng)
    if background != "white" or rng.random() < 0.3:
        text = f"{text} {background_phrase(background)}"
    return Scene(image, text, slug, style, background, kind)
