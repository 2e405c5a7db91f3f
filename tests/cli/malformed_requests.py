"""Prompts, numbers and embeddings that are wrong, in the form of `malformed`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.cli.malformed import Case, lora
from tests.tiny import tiny_folder

REQUESTS: dict[str, Case] = {}


def case(name: str) -> Callable[[Case], Case]:
    return lambda make: REQUESTS.setdefault(name, make)


PROMPTS = {
    "51 brackets": "[" * 51 + "a" + "]" * 51,
    "a weight beyond 1000": "(a:1001)",
    "brackets that add up beyond 1000": "(" * 80 + "a" + ")" * 80,
    "a lone surrogate": "a \udcff cat",
    "a NUL": "a\0cat",
    "10,001 characters": "a" * 10_001,
    "a LoRA by a path upwards": "a <lora:../../etc/passwd:1>",
    "a LoRA by a whole path": "a <lora:/etc/passwd:1>",
    "a LoRA by a hidden name": "a <lora:.ssh:1>",
    "a LoRA by a Windows path": "a <lora:..\\secret:1>",
    "a LoRA that is not there": "a <lora:nowhere:1>",
    "a LoRA of no number": "a <lora:a:nan>",
    "a LoRA of infinite weight": "a <lora:a:1e400>",
    "a LoRA of unknown words": "a <lora:a:1:lbw2=3>",
    "blocks of a LoRA that are none": "a <lora:{lora}:1:lbw=OUTZ>",
}
for _name, _prompt in PROMPTS.items():

    def _say(folder: Path, prompt: str = _prompt) -> list[str]:
        lora(folder / "ink.safetensors")
        arguments = ["--lora-folder", str(folder), "--model", str(tiny_folder("sd15"))]
        return ["generate", prompt.replace("{lora}", "ink"), "-o", str(folder / "a.png"), *arguments]

    REQUESTS[f"a prompt with {_name}"] = _say

OPTIONS = {
    "no steps": ("--steps", "0"),
    "steps of NaN": ("--steps", "nan"),
    "steps of 1e400": ("--steps", "1e400"),
    "steps of 4,000 digits": ("--steps", "9" * 4000),
    "guidance of NaN": ("--guidance", "nan"),
    "guidance of 1e400": ("--guidance", "1e400"),
    "a seed below 0": ("--seed", "-1"),
    "a seed of 2^64": ("--seed", str(1 << 64)),
    "a width of 7": ("--width", "7"),
    "a width of 10^9": ("--width", "1000000000"),
    "65 pictures": ("--count", "65"),
    "strength without a picture": ("--strength", "0.5"),
    "an unknown sampler": ("--sampler", "dpm-9000"),
    "an unknown schedule": ("--schedule", "karras\n\x1b[2J9000"),
    "more steps than timesteps": ("--steps", "99", "--schedule", "linspace-lcm"),
    "clip skip 13": ("--clip-skip", "13"),
    "a number in other digits": ("--steps", "\u0664\u0662x"),
    "an unknown device": ("--device", "abacus"),
    "a LoRA folder that is none": ("--lora-folder", "nowhere"),
    "embeddings that are none": ("--embeddings", "nowhere"),
    "a LoRA of infinite strength": ("--lora", "ink.safetensors:inf"),
}
for _name, _options in OPTIONS.items():
    REQUESTS[_name] = partial(
        lambda folder, options: ["generate", "a cat", "-o", str(folder / "a.png"), *options], options=_options
    )


@case("an embedding that is a pickle")
def _(folder):
    torch.save({"string_to_param": {"*": torch.ones(1, 32)}}, folder / "night.pt")
    where = ["--embeddings", str(folder), "--model", str(tiny_folder("sd15"))]
    return ["generate", "by night", *where, "-o", str(folder / "a.png")]


@case("an embedding of another width")
def _(folder):
    save_file({"emb_params": torch.ones(1, 31)}, folder / "night.safetensors")
    where = ["--embeddings", str(folder), "--model", str(tiny_folder("sd15"))]
    return ["generate", "by night", *where, "-o", str(folder / "a.png")]


@case("an embedding of no vectors")
def _(folder):
    save_file({"emb_params": torch.ones(0, 32)}, folder / "night.safetensors")
    where = ["--embeddings", str(folder), "--model", str(tiny_folder("sd15"))]
    return ["generate", "by night", *where, "-o", str(folder / "a.png")]


@case("weights around AND that come to nothing")
def _(folder):
    return ["generate", "a :1 AND b :-1", "--model", str(tiny_folder("lcm")), "-o", str(folder / "a.png")]
