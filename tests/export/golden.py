"""Numbers that Python's half of the exported page gives, for the tests of its TypeScript half.

python -m tests.export.golden        writes web/tests/golden.json
"""

import json
from itertools import count
from pathlib import Path

import numpy as np

from fewstep.backends.onnx_model import open_onnx
from fewstep.infotext import Infotext, write
from fewstep.models.chunks import Chunk, chunks, emphasised
from fewstep.noise import CpuNoise
from fewstep.sampling.sampler import SAMPLERS, sample
from fewstep.sampling.schedule import Schedule, add_noise, scaled_linear, to_z0

FILE = Path(__file__).parents[2] / "web" / "tests" / "golden.json"
PROMPTS = [
    "a red apple, 3d",
    "",
    "A  photo of 3 CATS, it's 100% real!!",
    "naïve café, ÀÉ",
    "日本語 emoji 🎉 👨‍👩‍👧 🇩🇪",
    "don't we'll they've I'd 'S 'LL",
    "tab\there\nnew\u00a0nbsp \u200bzero",
    "<|startoftext|> a <|endoftext|>b",
    "foo_bar-baz 12345 6.7",
    "ｆｕｌｌ　ｗｉｄｔｈ İstanbul ſ ß e\u0301",
    "مرحبا мир",
    "x" * 300,
    "a (red:1.2) cat, [dull] ((very) big: 1.5)",
    "escaped \\(brackets\\) \\[too\\], and \\\\ itself",
    "never (closed [at all",
    "too) many] closed:1.2)",
    "sky BREAK (sea BREAK sand:0.5) BREAKFAST",
    ", ".join(f"thing {number}" for number in range(60)),
    "word " * 90 + "(end:1.1)",
]
SPANS = [[1.0, 1.0, 1.0], [1.3, 1.0, 0.5]]
TIMES, LATE = (19, 14, 9, 4), (9, 6, 3)
SETTINGS = {"Steps": "4", "Sampler": "LCM", "Seed": "7", "Loras": "lcm-lora: 1", "Model": 'odd "name'}


def golden():
    """All of them, as plain values."""
    schedule = Schedule(scaled_linear(count=20), "v_prediction")
    return {
        "noise": [_noise(seed, sizes) for seed, sizes in ((0, (64, 64)), (7, (16, 700)), (2**32 - 1, (41, 17)))],
        "alphas_cumprod": list(schedule.alphas_cumprod),
        "latents": [_latents(seed).ravel().tolist() for seed in (1, 2)],
        "clean": {kind: _clean(kind) for kind in ("epsilon", "v_prediction", "sample")},
        "runs": [_run(schedule, name, seed) for seed, name in enumerate(("lcm", "tcd", "pcm", "ddim"))],
        "begun": _begun(schedule),
        "tokenizer": _tokenizer(),
        "chunks": [_chunks(prompt) for prompt in PROMPTS],
        "emphasised": [_emphasised(weights) for weights in SPANS],
        "infotext": write(Infotext("a cat, 3d", "dull, grey", SETTINGS)),
        "halves": _halves(),
    }


def _noise(seed, sizes):
    """The last numbers of each draw, which follow from all before them."""
    stream = CpuNoise(seed)
    return {"seed": seed, "draws": [[size, stream.normal((size,))[-20:].tolist()] for size in sizes]}


def _latents(seed):
    return np.random.default_rng(seed).standard_normal((1, 4, 4, 4)).astype(np.float32)


def _clean(kind):
    schedule, z, output = Schedule(scaled_linear(count=20), kind), _latents(1), _latents(2)
    return {str(t): to_z0(schedule, z, output, [t]).ravel()[:6].tolist() for t in (0, 9, 19)}


def _denoiser(schedule):
    """A network that is a line."""
    return lambda z, t_B: to_z0(schedule, z, np.float32(0.3) * z + np.float32(t_B[0] / 100), t_B)


def _run(schedule, name, seed):
    stream = CpuNoise(seed)
    z, drawn = stream.normal((1, 4, 4, 4)), count()
    how = {"sampler": SAMPLERS[name], "schedule": schedule}
    steps = sample(_denoiser(schedule), z, TIMES, noise=lambda _: (next(drawn), stream.normal(z.shape))[1], **how)
    return {"sampler": name, "seed": seed, "z": [*steps][-1].z.ravel().tolist()}


def _begun(schedule):
    """A run from known latents, at a strength that begins in the middle."""
    stream, known = CpuNoise(5), _latents(3)
    z = add_noise(schedule, known, stream.normal(known.shape), [LATE[0]])
    steps = sample(
        _denoiser(schedule),
        z,
        LATE,
        sampler=SAMPLERS["lcm"],
        schedule=schedule,
        noise=lambda _: stream.normal(known.shape),
    )
    return {"known": known.ravel().tolist(), "z": [*steps][-1].z.ravel().tolist()}


def _tokenizer():
    """tokenizer.json without its words, which lie in the embedded model's folder."""
    found = json.loads(open_onnx().text.words.to_str())
    return found | {"model": found["model"] | {"vocab": {}, "merges": []}}


def _chunks(prompt):
    text = open_onnx().text
    found = chunks(prompt, lambda part: text.words.encode(part, add_special_tokens=False).ids, room=75)
    return {"prompt": prompt, "chunks": [{"ids": chunk.ids, "weights": chunk.weights} for chunk in found]}


def _emphasised(weights):
    states = _latents(4).reshape(1, 16, 4)[:, :5]
    after = emphasised(states, [Chunk([1, 2, 3], weights)])
    return {"weights": weights, "before": states.ravel().tolist(), "after": after.ravel().tolist()}


def _halves():
    bits = np.array([0, 1, 0x3FF, 0x400, 0x3C00, 0x3555, 0x7BFF, 0x8001, 0xC000, 0xFBFF], np.uint16)
    return {"bits": bits.tolist(), "values": bits.view(np.float16).astype(float).tolist()}


if __name__ == "__main__":
    FILE.write_text(json.dumps(golden(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
