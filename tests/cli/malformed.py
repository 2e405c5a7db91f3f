"""Inputs that are wrong, by name: each writes its files into a folder and gives the arguments of the command line.

Files are written by hand, byte by byte where the safetensors library would refuse to write them.
"""

import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.tiny import tiny_folder, tiny_taesd

Case = Callable[[Path], list[str]]
CASES: dict[str, Case] = {}
KEY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
F32 = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def case(name: str) -> Callable[[Case], Case]:
    return lambda make: CASES.setdefault(name, make)


def raw(path: Path, header: object, body: bytes = bytes(16), length: int | None = None) -> Path:
    """A file in safetensors' layout, whatever its header says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


def lora(path: Path, **changes: torch.Tensor | None) -> Path:
    """A LoRA of one module with changes to its parts; None: left out."""
    parts = {"lora_down.weight": torch.ones(2, 32), "lora_up.weight": torch.ones(32, 2), **changes}
    save_file({f"{KEY}.{part}": value.contiguous() for part, value in parts.items() if value is not None}, path)
    return path


@cache
def whole() -> Path:
    """A tiny checkpoint as one file."""
    from fewstep.checkpoints.load import load_stored
    from fewstep.checkpoints.save_single import save_single

    folder = tiny_folder("sd15")
    return save_single(load_stored(folder), folder.with_name("whole.safetensors"))


def edited(path: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    from safetensors import safe_open

    with safe_open(whole(), framework="pt") as file:
        metadata = file.metadata()
    save_file(
        {name: value.contiguous() for name, value in edit(dict(load_file(whole()))).items()}, path, metadata=metadata
    )
    return path


def model_folder(folder: Path) -> Path:
    return tiny_folder("sd15", into=folder / "model")


# ---- safetensors files that lie

HEADERS: dict[str, tuple[object, bytes, int | None]] = {
    "a header longer than the file": ({"a": F32}, b"", 5000),
    "a header of 100 MB declared": ({"a": F32}, bytes(16), 100_000_000),
    "a header of 2^63 bytes declared": ({"a": F32}, bytes(16), 1 << 63),
    "a header that is no JSON": (b"nonsense", bytes(16), None),
    "a header that is a list": ([1, 2], bytes(16), None),
    "a header that is not UTF-8": (b'{"\xff\xfe": 1}', bytes(16), None),
    "a header of deep brackets": (b'{"a":' + b"[" * 100_000, bytes(16), None),
    "an empty header": ({}, b"", None),
    "a tensor twice": (b'{"a":%s,"a":%s}' % (json.dumps(F32).encode(), json.dumps(F32).encode()), bytes(16), None),
    "offsets that overlap": ({"a": F32, "b": F32 | {"data_offsets": [8, 24]}}, bytes(24), None),
    "offsets that descend": ({"a": F32 | {"data_offsets": [16, 0]}}, bytes(16), None),
    "a hole between tensors": ({"a": F32, "b": F32 | {"data_offsets": [32, 48]}}, bytes(48), None),
    "an unknown number format": ({"a": F32 | {"dtype": "F128"}}, bytes(16), None),
    "a shape whose product overflows": ({"a": F32 | {"shape": [1 << 40, 1 << 40]}}, bytes(16), None),
    "sizes of 2^63": ({"a": F32 | {"shape": [1 << 63], "data_offsets": [0, 1 << 63]}}, bytes(16), None),
    "a negative size": ({"a": F32 | {"shape": [-2, 2]}}, bytes(16), None),
    "a shape that is text": ({"a": F32 | {"shape": "2x2"}}, bytes(16), None),
    "metadata of numbers": ({"__metadata__": {"a": 1}, "b": F32}, bytes(16), None),
    "a tensor cut short": ({"a": F32}, bytes(9), None),
    "more bytes than tensors": ({"a": F32}, bytes(99), None),
}
for _name, (_header, _body, _length) in HEADERS.items():

    def _file(folder: Path, header: object = _header, body: bytes = _body, length: int | None = _length) -> list[str]:
        return ["info", str(raw(folder / "x.safetensors", header, body, length))]

    CASES[_name] = _file

for _name, _content in {
    "an empty file": b"",
    "five bytes": b"\x05\0\0\0\0",
    "a web page": b"<!DOCTYPE html><html>",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "a pickle by another name": pickle.dumps({"a": 1}),
}.items():

    def _bytes(folder: Path, content: bytes = _content) -> list[str]:
        (folder / "x.safetensors").write_bytes(content)
        return ["info", str(folder / "x.safetensors")]

    CASES[_name] = _bytes


@case("a zip by another name")
def _(folder):
    with zipfile.ZipFile(folder / "x.safetensors", "w") as file:
        file.writestr("archive/data.pkl", b"")
    return ["convert", str(folder / "x.safetensors"), str(folder / "out")]


@case("a pickle that runs code")
def _(folder):
    class Bomb:
        def __reduce__(self):
            return (open, (str(folder / "ran"), "w"))

    torch.save({"state_dict": {"a": Bomb()}}, folder / "x.ckpt")
    return ["convert", str(folder / "x.ckpt"), str(folder / "out.safetensors"), "--trust-pickle"]


@case("a pickle of a list")
def _(folder):
    torch.save([torch.ones(2)], folder / "x.pt")
    return ["convert", str(folder / "x.pt"), str(folder / "out.safetensors"), "--trust-pickle"]


# ---- LoRA files

LORAS: dict[str, dict[str, torch.Tensor | None]] = {
    "NaN in a LoRA": {"lora_up.weight": torch.full((32, 2), float("nan"))},
    "infinity in a LoRA": {"lora_down.weight": torch.full((2, 32), float("inf"))},
    "an alpha that is a list": {"alpha": torch.ones(3)},
    "an alpha that is infinite": {"alpha": torch.tensor(float("inf"))},
    "up without down": {"lora_down.weight": None},
    "down without up": {"lora_up.weight": None},
    "up and down of two ranks": {"lora_up.weight": torch.ones(32, 3)},
    "a tensor of no numbers": {"lora_down.weight": torch.ones(0, 32), "lora_up.weight": torch.ones(32, 0)},
    "two families on one module": {"hada_w1_a": torch.ones(32, 2)},
    "a DoRA scale of the wrong axis": {"dora_scale": torch.ones(1, 7)},
    "weights of text": {"lora_down.weight": torch.ones(2, 32, dtype=torch.uint8), "lora_mid.weight": torch.ones(2, 2)},
    "an OFT of blocks that are not square": {
        "lora_down.weight": None, "lora_up.weight": None, "oft_blocks": torch.ones(8, 4, 3),
    },
    "an OFT of blocks for another size": {
        "lora_down.weight": None, "lora_up.weight": None, "oft_blocks": torch.ones(8, 7, 7),
    },
    "a LoRA of another width": {"lora_down.weight": torch.ones(2, 48)},
    "a LoRA of another height": {"lora_up.weight": torch.ones(31, 2)},
}  # fmt: skip
for _name, _changes in LORAS.items():

    def _lora(folder: Path, changes: dict[str, torch.Tensor | None] = _changes) -> list[str]:
        path = lora(folder / "x.safetensors", **changes)
        return ["merge", str(tiny_folder("sd15")), "--lora", str(path), "-o", str(folder / "out.safetensors")]

    CASES[_name] = _lora


def merged(folder: Path, tensors: dict[str, torch.Tensor], weight: str = "1") -> list[str]:
    save_file(tensors, folder / "x.safetensors")
    return [
        *("merge", str(tiny_folder("sd15")), "--lora", f"{folder / 'x.safetensors'}:{weight}"),
        *("-o", str(folder / "out.safetensors")),
    ]


@case("a LoRA for another family")
def _(folder):
    key = KEY.replace("attn1_to_q", "attn2_to_k")
    parts = {f"{key}.lora_down.weight": torch.ones(2, 2048), f"{key}.lora_up.weight": torch.ones(32, 2)}
    return merged(folder, parts)


@case("text-encoder layers that the model lacks")
def _(folder):
    key = "lora_te2_text_model_encoder_layers_40_mlp_fc1"
    return merged(folder, {f"{key}.lora_down.weight": torch.ones(2, 32), f"{key}.lora_up.weight": torch.ones(64, 2)})


@case("text-encoder names in a UNet")
def _(folder):
    key = "lora_unet_text_model_encoder_layers_0_mlp_fc1"
    return merged(folder, {f"{key}.lora_down.weight": torch.ones(2, 32), f"{key}.lora_up.weight": torch.ones(64, 2)})


@case("names of a LoRA that are paths")
def _(folder):
    return merged(folder, {"../../etc/passwd.lora_up.weight": torch.ones(2, 2)})


@case("a LoRA's weight that is no number")
def _(folder):
    lora(folder / "x.safetensors")
    return ["lora", "merge", f"{folder / 'x.safetensors'}:nan", "-o", str(folder / "out.safetensors")]


@case("a checkpoint as a LoRA")
def _(folder):
    return ["lora", "resize", str(shutil.copy(whole(), folder)), "--rank", "2", "-o", str(folder / "out.safetensors")]


@case("a LoRA as a model")
def _(folder):
    return ["convert", str(lora(folder / "x.safetensors")), str(folder / "out")]


# ---- checkpoints


def converted(folder: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> list[str]:
    return ["convert", str(edited(folder / "x.safetensors", edit)), str(folder / "out")]


@case("a checkpoint with half its UNet")
def _(folder):
    return converted(folder, lambda t: {name: one for name, one in t.items() if "output_blocks" not in name})


@case("a checkpoint with NaN")
def _(folder):
    name = "model.diffusion_model.out.2.bias"
    return converted(folder, lambda t: t | {name: torch.full_like(t[name], float("nan"))})


@case("a checkpoint of integers")
def _(folder):
    return converted(folder, lambda t: {name: one.to(torch.int8) for name, one in t.items()})


@case("a VAE of another size")
def _(folder):
    name = "first_stage_model.decoder.conv_in.weight"
    return converted(folder, lambda t: t | {name: torch.ones(8, 16, 3, 3)})


for _name, _key in {
    "a ControlNet as a model": "control_model.input_hint_block.0.weight",
    "an upscaler as a model": "model.0.weight",
    "a motion module as a model": "down_blocks.0.motion_modules.0.temporal_transformer.norm.bias",
    "an IP-Adapter as a model": "ip_adapter.1.to_k_ip.weight",
    "a textual inversion as a model": "emb_params",
    "a transformer model": "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",
}.items():

    def _other(folder: Path, key: str = _key) -> list[str]:
        save_file({key: torch.ones(2, 2)}, folder / "x.safetensors")
        return ["generate", "a cat", "--model", str(folder / "x.safetensors"), "-o", str(folder / "a.png")]

    CASES[_name] = _other


@case("a tiny VAE as a model")
def _(folder):
    save_file(tiny_taesd().state_dict(), folder / "x.safetensors")
    return ["info", str(folder / "x.safetensors")]


# ---- folders


def broken_folder(folder: Path, file: str, content: object) -> list[str]:
    """A model folder with one json file changed; None: without it."""
    path = model_folder(folder) / file
    path.unlink() if content is None else path.write_text(content if isinstance(content, str) else json.dumps(content))
    return ["generate", "a cat", "--model", str(folder / "model"), "-o", str(folder / "a.png")]


def config(part: str, **changes: object) -> dict[str, object]:
    return json.loads((tiny_folder("sd15") / part / "config.json").read_text()) | changes


FOLDERS: dict[str, tuple[str, Callable[[], object]]] = {
    "a folder without model_index.json": ("model_index.json", lambda: None),
    "a model_index.json that is cut off": ("model_index.json", lambda: '{"_class_name": "Stable'),
    "a model_index.json of deep brackets": ("model_index.json", lambda: "[" * 100_000),
    "a class that is not here": ("model_index.json", lambda: {"_class_name": "FluxPipeline"}),
    "a UNet's class that is not here": ("unet/config.json", lambda: config("unet", _class_name="NoSuchModel")),
    "a UNet of absurd width": ("unet/config.json", lambda: config("unet", block_out_channels=[10**12] * 4)),
    "a UNet of negative width": ("unet/config.json", lambda: config("unet", block_out_channels=[-32] * 4)),
    "a UNet whose width is text": ("unet/config.json", lambda: config("unet", cross_attention_dim="wide")),
    "a VAE of no channels": ("vae/config.json", lambda: config("vae", latent_channels=0)),
    "a text encoder of absurd size": ("text_encoder/config.json", lambda: config("text_encoder", vocab_size=10**15)),
    "a text encoder of no layers": ("text_encoder/config.json", lambda: config("text_encoder", num_hidden_layers=-1)),
    "noise of NaN": ("scheduler/scheduler_config.json", lambda: '{"beta_start": NaN, "beta_end": 0.01}'),
    "noise of 10^12 timesteps": ("scheduler/scheduler_config.json", lambda: {"num_train_timesteps": 10**12}),
    "a tokenizer that is none": ("tokenizer/vocab.json", lambda: "[1, 2"),
}
for _name, (_where, _what) in FOLDERS.items():
    CASES[_name] = partial(lambda folder, where, what: broken_folder(folder, where, what()), where=_where, what=_what)


@case("an empty folder")
def _(folder):
    (folder / "model").mkdir()
    return ["info", str(folder / "model")]


@case("a folder with a file's name")
def _(folder):
    (folder / "x.safetensors").mkdir()
    return ["info", str(folder / "x.safetensors")]


@case("links in a circle")
def _(folder):
    (folder / "x.safetensors").symlink_to(folder / "y.safetensors")
    (folder / "y.safetensors").symlink_to(folder / "x.safetensors")
    return ["info", str(folder / "x.safetensors")]


@case("links in a circle as a folder")
def _(folder):
    (folder / "model").symlink_to(folder / "model")
    return ["convert", str(folder / "model"), str(folder / "out")]


for _name, _arguments in {
    "a pipe as a model": ("info", "{pipe}"),
    "a pipe as a LoRA": ("merge", "{model}", "--lora", "{pipe}", "-o", "{folder}/out.safetensors"),
    "a pipe as a pickle": ("convert", "{pt}", "{folder}/out.safetensors", "--trust-pickle"),
    "a pipe as a VAE": ("convert", "{model}", "{folder}/out.safetensors", "--vae", "{pipe}"),
    "a pipe as a picture": ("generate", "a cat", "--image", "{png}", "-o", "{folder}/a.png"),
    "a pipe as a picture's settings": ("generate", "--from", "{png}", "-o", "{folder}/a.png"),
    "a pipe to be described": ("info", "{png}"),
}.items():

    def _pipe(folder: Path, arguments: tuple[str, ...] = _arguments) -> list[str]:
        names = {"pipe": "x.safetensors", "pt": "x.pt", "png": "x.png"}
        for name in names.values():
            os.mkfifo(folder / name)
        places = {key: str(folder / name) for key, name in names.items()}
        return [text.format(**places, folder=folder, model=tiny_folder("sd15")) for text in arguments]

    CASES[_name] = _pipe
