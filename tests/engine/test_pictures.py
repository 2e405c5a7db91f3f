"""The engine's pictures are the pipeline's: alone, among others, at any steps, with any prompt."""

import threading

import numpy as np
import pytest
from PIL import Image

from fewstep.engine.local import LocalEngine, wait_for
from fewstep.engine.pictures import PictureNetwork, paint
from fewstep.engine.work import Work
from fewstep.infotext import PNG_KEY
from fewstep.pipeline import Pipeline
from fewstep.request import Request
from tests.marks import slow
from tests.tiny import tiny_model

START = Image.effect_noise((64, 64), 60).convert("RGB")
MASK = Image.new("L", (64, 64))
MASK.paste(255, (16, 16, 40, 48))


@pytest.fixture(scope="module")
def pipe():
    return Pipeline(tiny_model("sd15"))


def all_at_once(pipe, requests, at_once, previews=None):
    """The pictures of these requests, painted together."""
    network = PictureNetwork(at_once)
    engine, found, done = LocalEngine(network), {}, threading.Semaphore(0)
    sizes = []
    answer = network.answer
    network.answer = lambda asks: sizes.append(len(asks)) or answer(asks)
    gate = threading.Event()

    def hold():
        gate.wait(10)
        return
        yield

    try:
        engine.submit(Work(hold, "gate", 0.0, lambda result, error: None))  # until all are there
        for name, request in enumerate(requests):
            plan = pipe.plan(request)

            def ended(result, error, name=name):
                found[name] = error or result
                done.release()

            told = (
                None
                if previews is None
                else (lambda step, preview, name=name: previews.append((name, step, preview.make())))
            )
            engine.submit(Work(lambda plan=plan, told=told: paint(pipe, plan, told=told), str(name), 1.0 + name, ended))
        gate.set()
        for _ in requests:
            assert done.acquire(timeout=60)
    finally:
        engine.close()
    for result in found.values():
        if isinstance(result, BaseException):
            raise result
    return [found[name] for name in range(len(requests))], sizes


def furthest(one, other):
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other)).max())


REQUESTS = [
    *(Request("a cat", steps=steps, seed=steps, guidance=1) for steps in range(1, 9)),
    *(
        Request("a dog", steps=4, seed=9, guidance=2, negative_prompt="moon", sampler=name)
        for name in ("dpmpp_2m", "heun")
    ),
    Request("a [cat|dog]", steps=3, seed=1, guidance=1.5, negative_prompt="[red:moon:2]"),
    Request("a cat AND a dog :0.5", steps=3, seed=1, guidance=1.5),
    Request("cat " * 80, steps=2, seed=1, guidance=1.5),
    Request("a cat", steps=2, seed=3, image=START, strength=0.5),
    Request("a cat", steps=2, seed=3, image=START, mask=MASK),
    Request("a cat", steps=2, seed=3, width=128, height=64),
    Request("a cat", steps=2, seed=3, hires_scale=1.5, hires_steps=2, hires_strength=0.5),
    Request("a cat", steps=2, seed=3, sampler="dpmpp_sde", rng="nv", ensd=5),
]


@pytest.mark.parametrize("at_once", [4, *slow(1)])
def test_they_equal_the_pipelines(pipe, at_once):
    pictures, sizes = all_at_once(pipe, REQUESTS, at_once)
    for request, picture in zip(REQUESTS, pictures, strict=True):
        alone = pipe(request)
        assert picture.info[PNG_KEY] == alone.info[PNG_KEY]
        assert furthest(picture, alone) <= (0 if at_once == 1 else 1), request
    assert max(sizes) == at_once


def test_latents_among_others_are_those_alone(pipe):
    """The difference that sharing calls makes, in latents of up to 20: the last bits of float32."""
    network = PictureNetwork(8)
    works = []
    for steps in range(1, 9):
        plan = pipe.plan(Request("a cat [dog|moon]", steps=steps, seed=steps, guidance=1 + steps / 8))
        run = paint(pipe, plan)
        works.append((run, next(run)))
    alone = [PictureNetwork(1).answer([ask])[0] for _, ask in works]
    by_key = {}
    for (_, ask), single in zip(works, alone, strict=True):
        by_key.setdefault(ask.key, []).append((ask, single))
    assert max(map(len, by_key.values())) >= 6
    for group in by_key.values():
        together = network.answer([ask for ask, _ in group])
        for (_, single), joint in zip(group, together, strict=True):
            assert float(abs(joint - single).max()) < 2e-6 * float(abs(single).max())


def test_previews_are_told_after_every_step(pipe):
    previews = []
    (picture,), _ = all_at_once(pipe, [Request("a cat", steps=4, seed=0)], 1, previews)
    assert [step for _, step, _ in previews] == [1, 2, 3, 4]
    steps = list(pipe.steps(Request("a cat", steps=4, seed=0)))
    for (_, _, preview), step in zip(previews, steps, strict=True):
        assert furthest(preview, step.preview()[0]) == 0
    assert previews[-1][2].size == picture.size


def test_loras_of_one_picture_do_not_touch_another(pipe, tmp_path):
    import torch

    from fewstep.checkpoints.lora import write_lora

    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
    pair = torch.linspace(-9, 9, 64).reshape(2, 32), torch.linspace(9, -9, 64).reshape(32, 2)
    write_lora(tmp_path / "ink.safetensors", {module: pair}, alpha=2)
    own = Pipeline(tiny_model("sd15"), lora_folder=tmp_path)
    requests = [
        Request(f"a cat{tag}", steps=3, seed=0) for tag in ("", " <lora:ink:1>", "", " <lora:ink:0.3>", " <lora:ink:1>")
    ]
    pictures, sizes = all_at_once(own, requests, 4)
    for request, picture in zip(requests, pictures, strict=True):
        assert furthest(picture, own(request)) <= 1
    assert furthest(pictures[0], pictures[1]) > 5 and max(sizes) == 2


def test_one_picture_after_the_other(pipe):
    engine = LocalEngine(PictureNetwork())
    try:
        plan = pipe.plan(Request("a cat", steps=2, seed=5, count=3))
        for index, alone in enumerate(pipe(Request("a cat", steps=2, seed=5, count=3))):
            assert furthest(wait_for(engine, lambda index=index: paint(pipe, plan, index)), alone) == 0
    finally:
        engine.close()


@pytest.mark.embedded
def test_the_embedded_model_by_onnx_runtime():
    import fewstep

    own = fewstep.load()
    texts = ("a red apple, 3d", "a [cat|dog], 3d", "a cat AND a red apple :0.5")
    requests = [Request(text, steps=2, seed=1, guidance=1.5) for text in texts for _ in range(2)]
    pictures, sizes = all_at_once(own, requests, 2)
    for request, picture in zip(requests, pictures, strict=True):
        assert furthest(picture, own(request)) <= 1
    assert max(sizes) == 2
