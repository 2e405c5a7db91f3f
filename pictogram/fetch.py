"""Fetch the picture sets from the npm registry and render every concept as a cut-out with alpha.

    python -m pictogram.fetch            # -> build/pictogram/cutouts.npz

Needs `npm` (any client of the registry) and the `resvg-py` package. Packages are cached.
"""

import argparse
import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from pictogram.concepts import CONCEPTS, STYLES

SIZE_PX = 160
BUILD = Path("build/pictogram")
#: Names that differ from the slug in the one set that does not follow CLDR.
FXEMOJI_ALIASES = {
    "dog-face": "dogside", "cat-face": "cat", "mouse-face": "mouse", "rabbit-face": "rabbit", "tiger-face": "tiger",
    "cow-face": "cow", "pig-face": "pig", "monkey-face": "monkey", "red-apple": "apple", "hot-beverage": "hotbeverage",
    "soft-ice-cream": "softicecream", "red-heart": "heart", "locked": "lock", "light-bulb": "lightbulb",
    "lady-beetle": "ladybeetle", "tropical-fish": "tropicalfish", "spouting-whale": "whalespouting",
    "deciduous-tree": "deciduoustree", "palm-tree": "palmtree", "christmas-tree": "christmastree",
    "birthday-cake": "birthdaycake", "wrapped-gift": "gift", "soccer-ball": "soccer", "alarm-clock": "alarmclock",
    "crescent-moon": "crescentmoon", "french-fries": "frenchfries", "star": "star", "beer-mug": "beer",
}  # fmt: skip


def package(name: str, *, cache: Path) -> Path:
    """The unpacked npm package `name@version`, fetched once with `npm pack`."""
    folder = cache / name.lstrip("@").replace("/", "-")
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["npm", "pack", "--silent", name], cwd=cache, capture_output=True, text=True, check=True)
        partial = folder.with_suffix(".partial")
        with tarfile.open(cache / done.stdout.split()[-1]) as archive:
            archive.extractall(partial, filter="data")
        (partial / "package").rename(folder)
        partial.rmdir()
    return folder


def svg_icons(folder: Path) -> tuple[dict[str, dict], int]:
    """slug -> icon body, and the set's side in its own units."""
    icons = json.loads((folder / "icons.json").read_text())
    return icons["icons"], icons.get("width", 16)


def render_svg(icon: dict, side: int) -> Image.Image:
    """An Iconify icon body as an RGBA picture."""
    import resvg_py

    width, height = icon.get("width", side), icon.get("height", side)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}">{icon["body"]}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE_PX, height=SIZE_PX)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def codepoints(flat: Path) -> dict[str, str]:
    """slug -> hexadecimal code points, from the flat set's character table."""
    return {slug: code for code, slug in json.loads((flat / "chars.json").read_text()).items()}


def cutouts(cache: Path) -> dict[str, np.ndarray]:
    """'style/slug' -> uint8 RGBA (SIZE_PX, SIZE_PX, 4) for all that exists."""
    folders = {style: package(name, cache=cache) for style, name in STYLES.items()}
    codes = codepoints(folders["flat"])
    sets = {style: svg_icons(folder) for style, folder in folders.items() if style != "3d"}
    pictures: dict[str, np.ndarray] = {}
    for slug in track(CONCEPTS, "rendering"):
        # Only what also exists in the MIT repository's own set is taken from the 3D package.
        if slug not in sets["flat"][0]:
            raise SystemExit(f"'{slug}' is not in the flat set; correct pictogram/concepts.py")
        for style in STYLES:
            if style == "3d":
                files = [folders["3d"] / "assets" / f"{codes[slug]}{tail}.webp" for tail in ("", "-fe0f")]
                found = next((f for f in files if f.exists()), None)
                image = (
                    Image.open(found).convert("RGBA").resize((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS)
                    if found
                    else None
                )
            else:
                icons, side = sets[style]
                name = FXEMOJI_ALIASES.get(slug, slug.replace("-", "")) if style == "simple" else slug
                image = render_svg(icons[name], side) if name in icons else None
            if image is not None:
                pictures[f"{style}/{slug}"] = np.asarray(image)
    return pictures


def main() -> None:
    """Write build/pictogram/cutouts.npz and say what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("build/npm"))
    parser.add_argument("-o", "--output", type=Path, default=BUILD / "cutouts.npz")
    args = parser.parse_args()
    pictures = cutouts(args.cache)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.output, **pictures)
    for style in STYLES:
        missing = [slug for slug in CONCEPTS if f"{style}/{slug}" not in pictures]
        print(f"{style}: {len(CONCEPTS) - len(missing)} of {len(CONCEPTS)}; missing: {', '.join(missing) or 'none'}")


if __name__ == "__main__":
    main()
