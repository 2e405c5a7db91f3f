"""`fewstep upscale PICTURE -o large.png`: a picture enlarged, and with --strength painted anew in tiles."""

from __future__ import annotations

import argparse
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.cli.options import MODEL, add_model_options, check_new, model_options, say_notes
from fewstep.cli.output import check_outputs
from fewstep.errors import RequestError
from fewstep.hires import DEFAULT_UPSCALER, LATENT, PIXEL, SIDE_LIMIT_PX, target_size, upscaler_named
from fewstep.request import SEED_COUNT, SPECS, Request, lora_choice, request_of

if TYPE_CHECKING:
    from typing import Any

    from PIL import Image

    from fewstep.infotext import Picture

NUMBERS = {"strength": float, "steps": int, "guidance": float, "seed": int, "tile": int}
TEXTS = ("prompt", "negative_prompt", "sampler", "schedule")


def register(subparsers: Any) -> None:
    """Add `upscale` to the command line."""
    parser = subparsers.add_parser(
        "upscale",
        help="enlarge a picture",
        description="Enlarge a picture; with --strength also paint it anew by a model, in tiles where it is large.",
        allow_abbrev=False,
    )
    parser.add_argument("picture", type=Path, metavar="PICTURE", help="the picture to enlarge")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="png, jpg or webp")
    parser.add_argument("--scale", type=float, default=2.0, metavar="X", help="how many times as large [2]")
    names = f"{', '.join(PIXEL)}, or a model's .onnx or .safetensors file"
    parser.add_argument("--upscaler", default=DEFAULT_UPSCALER, metavar="NAME", help=f"{names} [{DEFAULT_UPSCALER}]")
    parser.add_argument("--force", action="store_true", help="overwrite the file")
    painting = parser.add_argument_group("painting it anew")
    for name in (*NUMBERS, *TEXTS):
        kind = "N" if NUMBERS.get(name) is int else "X" if name in NUMBERS else "TEXT"
        text = "what it shows; the picture's own when not given" if name == "prompt" else SPECS[name].help
        kinds = NUMBERS.get(name, str)
        painting.add_argument(f"--{name.replace('_', '-')}", type=kinds, metavar=kind, help=text.replace("%", "%%"))
    painting.add_argument("--model", metavar="PATH", help=f"{MODEL}; the embedded model if absent")
    add_model_options(painting)
    painting.add_argument("--lora", action="append", type=lora_choice, metavar="FILE[:WEIGHT]", help="may be repeated")
    painting.add_argument("--device", help="cpu, cuda, cuda:1, mps; chosen if absent")
    painting.add_argument("--dtype", help="float32, float16, bfloat16; chosen if absent")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Enlarges and writes; returns the exit code."""
    from fewstep.image import open_image, save_image

    check_outputs([arguments.out], [arguments.picture])
    check_new(arguments.out, force=arguments.force)
    label = upscaler_named(arguments.upscaler)
    image = open_image(arguments.picture, what="picture")
    size = _size(arguments, image, label)
    request = _request(arguments)
    started = time.perf_counter()
    large = _enlarged(image, label, size)
    picture = _kept(arguments, large, label) if request is None else _painted(arguments, request, large)
    save_image(picture, arguments.out)
    if not arguments.quiet:
        print(f"{arguments.out}  {size[0]}x{size[1]}  {time.perf_counter() - started:.1f} s")
    return 0


def _size(arguments: argparse.Namespace, image: Image.Image, label: str) -> tuple[int, int]:
    """The size in pixels; in multiples of 8 where a model is to paint."""
    if not 1 <= arguments.scale <= 16:
        raise RequestError(f"--scale is {arguments.scale:g}, but it must be from 1 to 16.")
    if label in LATENT:
        raise RequestError(f"The upscaler {label} works among latents, not on pictures. Use Lanczos or a model's file.")
    size = target_size(image.size, arguments.scale, None, None)
    if arguments.strength is not None:
        return size
    width, height = (max(1, round(side * arguments.scale)) for side in image.size)
    return min(width, SIDE_LIMIT_PX), min(height, SIDE_LIMIT_PX)


def _request(arguments: argparse.Namespace) -> Request | None:
    """What a model is asked to paint; None where the picture is only enlarged."""
    given = {name: getattr(arguments, name) for name in (*NUMBERS, *TEXTS) if getattr(arguments, name) is not None}
    if arguments.strength is None:
        if given:
            raise RequestError(f"--{next(iter(given))} was given, but nothing is painted. Add --strength, such as 0.3.")
        return None
    from fewstep.infotext import parse, read

    info = parse(read(arguments.picture) or "")
    fields = {"prompt": info.prompt, "negative_prompt": info.negative_prompt, "seed": secrets.randbelow(SEED_COUNT)}
    return request_of(fields | given | {"image": arguments.picture})


def _enlarged(image: Image.Image, label: str, size: tuple[int, int]) -> Image.Image:
    from fewstep.upscale import open_upscaler

    return open_upscaler(label)(image, size)


def _kept(arguments: argparse.Namespace, large: Image.Image, label: str) -> Picture:
    """The enlarged picture with the settings that the small one carries, and A1111's note of what was done to it."""
    from fewstep.infotext import Infotext, Picture, parse, read, write
    from fewstep.plan import number_text

    info = parse(read(arguments.picture) or "")
    done = {"Postprocess upscale by": number_text(arguments.scale), "Postprocess upscaler": Path(label).name}
    return Picture.of(large, write(Infotext(info.prompt, info.negative_prompt, {**info.settings, **done})))


def _painted(arguments: argparse.Namespace, request: Request, large: Image.Image) -> Picture:
    import fewstep
    from fewstep.plan import Start

    how = {"device": arguments.device, "dtype": arguments.dtype, **model_options(arguments)}
    pipe = fewstep.load(arguments.model, lora=arguments.lora, **how)
    plan = pipe.plan_pass(request.replaced(image=large), Start(large.size))
    if not arguments.quiet:
        say_notes(plan.notes)
    return next(picture for step in pipe.run(plan) if step.last for picture in step.pictures())
