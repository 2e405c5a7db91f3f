"""The README of an exported folder: what is in it, and a program that paints with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_LIBRARY = {"onnx": "onnxruntime", "openvino": "openvino"}
_LOAD = {
    "onnx": 'onnxruntime.InferenceSession(f"{name}.onnx")',
    "openvino": 'openvino.Core().compile_model(f"{name}.xml", "CPU")',
}
_RUN = {"onnx": "load(name).run([out], given)[0]", "openvino": "load(name)(given)[out]"}
_PROGRAM = """\
import functools, json, numpy as np, {library}, PIL.Image

load = functools.cache(lambda name: {load})

def run(name, out, **given):
    return {run}

told, draw = json.load(open("model.json")), np.random.default_rng(7)
ids = {{name: {{key: np.int64(row) for key, row in given.items()}} for name, given in told["tokens"].items()}}
text = np.concatenate([run(name, "text_1_BLD", **given) for name, given in ids.items()], -1)
given = {{key: np.float32(row) for key, row in told["given"].items()}}
given["text_kv_BLK"] = run("text_kv", "text_kv_BLK", text_BLD=text)
{pooled}z = draw.standard_normal((1, 4, {side}, {side})).astype(np.float32)
for step in told["steps"]:
    out = run("unet", "output_BCHW", z_BCHW=z, timestep_B=np.float32([step["timestep"]]), **given)
    z0 = z * np.float32(step["z"]) + out * np.float32(step["output"])
    noise = {noise}
    z = z0 * np.float32(step["keep"]) + noise * np.float32(step["add"])
image = run("vae_decoder", "image_BCHW", z_BCHW=z)[0].transpose(1, 2, 0)
PIL.Image.fromarray(np.uint8((image + 1) * 127.5)).save("example.png")
"""
_POOLED = 'given["pooled_BD"] = run("text_encoder_2", "pooled_BD", **ids["text_encoder_2"])\n'
_NEW = "draw.standard_normal(z.shape).astype(np.float32)"
_SAME = '(z - z0 * np.float32(step["alpha"])) / np.float32(step["sigma"])'

_TEXT = """\
# {model} for {label}

{family}, {prediction} prediction{loras}, written by fewstep. Nothing here needs that package.

| file | in | out |
|---|---|---|
{rows}

Batch B, height H and width W (pixels / 8) are free; L is 77, and of `text_kv` a multiple of it. `tokenizer*/` holds
CLIP's vocabulary and merges. `model.json` holds the numbers of every step of the sampler {sampler}, and the tokens of
"{prompt}" in the place of a tokenizer, for this program, which paints it with guidance {guidance}:

```python
{program}```

For guidance s run `unet` with the text of a negative prompt too: out = negative + s x (out - negative).
"""


def program(facts: Mapping[str, Any]) -> str:
    """Paints the example in the folder that it is run in, with numpy, Pillow and the runtime alone."""
    return _PROGRAM.format(
        library=_LIBRARY[facts["format"]],
        load=_LOAD[facts["format"]],
        run=_RUN[facts["format"]],
        pooled=_POOLED if "text_encoder_2" in facts["tokens"] else "",
        side=facts["size_px"] // 8,
        noise=_NEW if facts["sampler"] == "lcm" else _SAME,
    )


def readme(facts: Mapping[str, Any], graphs: Sequence[str]) -> str:
    """The whole text; `graphs` are their names."""
    loras = ", ".join(f"{lora['name']} ({lora['weight']:g})" for lora in facts["loras"])
    ending = {"onnx": ".onnx", "openvino": ".xml"}[facts["format"]]
    unet = ", ".join(["z_BCHW", "timestep_B", "text_kv_BLK", *facts["given"]])
    pooled = len(facts["tokens"]) > 1
    told = {
        "text_encoder": ("ids_BL int64", "text_1_BLD (clip skip 1), text_2_BLD ..."),
        "text_encoder_2": ("ids_BL, ends_B int64 (where the end mark is)", "the same, pooled_BD"),
        "text_kv": ("text_BLD (both encoders' side by side)" if pooled else "text_BLD", "text_kv_BLK"),
        "unet": (f"{unet}, pooled_BD" if pooled else unet, "output_BCHW"),
        "vae_decoder": ("z_BCHW", "image_BCHW in [-1, 1]"),
        "vae_encoder": ("image_BCHW in [-1, 1]", "z_BCHW"),
    }
    parts = [(name, *told[name.removeprefix("tiny_")]) for name in graphs]
    rows = [f"| `{name}{ending}` | {given} | {found} |" for name, given, found in parts]
    return _TEXT.format(
        model=facts["model"],
        label={"onnx": "ONNX Runtime", "openvino": "OpenVINO"}[facts["format"]],
        family=facts["family"],
        prediction=facts["prediction"].removesuffix("_prediction"),
        loras=f", with the LoRA {loras}" if loras else "",
        rows="\n".join(rows),
        sampler=facts["sampler"],
        prompt=facts["prompt"],
        guidance="1" if "guidance_BD" not in facts["given"] else f"{facts['guidance']:g}",
        program=program(facts),
    )
