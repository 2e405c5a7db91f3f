"""One live session's painter: the pipeline's own pictures, planned once; prompts on their way, noises that walk."""

import math
import time

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.engine.live import Frame, LiveSession, Order
from fewstep.engine.live_request import LiveRequest, schema
from fewstep.engine.local import LocalEngine, wait_for
from fewstep.engine.painter import LivePainter
from fewstep.engine.pictures import PictureNetwork
from fewstep.engine.work import Ask
from fewstep.errors import RequestError
from fewstep.pipeline import Pipeline
from fewstep.request import Request
from fewstep.sampling.rotation import slerp
from tests.tiny import tiny_model

START = Image.effect_noise((64, 64), 60).convert("RGB")
MASK = Image.new("L", (64, 64))
MASK.paste(255, (8, 8, 40, 40))


@pytest.fixture(scope="module")
def pipe():
    return Pipeline(tiny_model("sd15"))


def asked(prompt="a red cat", **fields):
    own = {name: fields.pop(name) for name in [*fields] if name not in Request.__dataclass_fields__}
    return LiveRequest(Request(prompt, **({"seed": 4, "steps": 1} | fields)), **own)


def question(painter, fields, picture=START, **how):
    """What the network would be asked first."""
    return next(painter.paint(Order(Frame(1, picture), 1, fields, **how))).what


def text(painter, fields, **how):
    return question(painter, fields, **how).denoiser.text.text_BLD


def test_an_order_is_the_pipelines_own_picture(pipe):
    engine, painter = LocalEngine(PictureNetwork()), LivePainter(pipe)
    fields = asked(steps=2, strength=0.8, guidance=1.5, negative_prompt="moon")
    large = START.resize((96, 80)).convert("RGBA")
    for frame in (Frame(1, START, mask=MASK), Frame(2, START), Frame(3), Frame(4, large), Frame(5, large, mask=MASK)):
        made = wait_for(engine, lambda frame=frame: painter.paint(Order(frame, 1, fields)))
        alone = pipe(fields.of(frame.picture, frame.mask))
        assert made.tobytes() == alone.tobytes() and made.info["parameters"].startswith("a red cat")
    engine.close()


@pytest.mark.embedded
def test_the_embedded_model_by_onnx_runtime_too():
    import fewstep

    own, fields = fewstep.load(), asked("a red apple", steps=2, strength=0.8, seed=3)
    engine, painter = LocalEngine(PictureNetwork()), LivePainter(own)
    try:
        made = wait_for(engine, lambda: painter.paint(Order(Frame(1, START), 1, fields)))
        assert made.tobytes() == own(fields.of(START)).tobytes()
        started = question(painter, fields).denoiser.text.text_BLD
        there = question(painter, asked("a blue boat", seed=3)).denoiser
        back = question(painter, asked("a red apple", seed=3, blend=4)).denoiser
        expected = slerp(there.text.text_BLD, started, 0.25)
        assert np.allclose(back.text.text_BLD, expected, atol=1e-5)
        wanted = own.model.conditions(back.text)["text_kv_BLK"]
        assert np.allclose(back.told["text_kv_BLK"], wanted, atol=1e-5)
        aside = question(painter, asked("a red apple", seed=3, guidance=2, guidance_mode="residual"))
        z0, plain = own.runner.encode(np.asarray(START)[None], tiny=True), there.joined([back])
        plain.told = own.model.conditions(aside.denoiser.terms[0][0].text)
        asks = [
            Ask(None, aside),
            Ask(None, question(painter, asked("a red apple", guidance=3, guidance_mode="residual"))),
        ]
        singly, network = [PictureNetwork(1).answer([ask])[0] for ask in asks], PictureNetwork(2)
        for one, other in zip(network.answer(asks), singly, strict=True):
            assert np.allclose(one, other, atol=1e-4)
        found = aside.denoiser(aside.z_BCHW, [aside.timestep])
        assert np.allclose(found, z0 + 2 * (plain(aside.z_BCHW, [aside.timestep]) - z0), atol=1e-4)
    finally:
        engine.close()


def test_a_frame_brings_only_its_picture(pipe, monkeypatch):
    """Plans, hashes and texts are made once a revision; a text also serves the next one, with another strength."""
    counted = {"plan_of": 0, "encode_prompt": 0, "content_hash": 0}

    def counting(place, name):
        real = getattr(place, name)

        def call(*args, **how):
            counted[name] += 1
            return real(*args, **how)

        monkeypatch.setattr(place, name, call)

    counting(__import__("fewstep.pipeline").pipeline, "plan_of")
    counting(__import__("fewstep.plan").plan, "content_hash")
    counting(pipe.model.text, "encode_prompt")
    painter = LivePainter(pipe)
    for _ in range(5):
        question(painter, asked(guidance=1))
    assert counted == {"plan_of": 1, "encode_prompt": 1, "content_hash": 1}
    for strength in (0.3, 0.4, 0.5):
        question(painter, asked(guidance=1, strength=strength))
    assert counted["plan_of"] == 4 and counted["encode_prompt"] == 1
    question(painter, asked("a dog", guidance=1))
    assert counted["encode_prompt"] == 2


def test_without_a_seed_a_session_keeps_its_own(pipe):
    painter, other = LivePainter(pipe), LivePainter(pipe)
    plans = [question(painter, asked(seed=None, strength=s), START).plan for s in (0.3, 0.5, 0.7)]
    assert {plan.seed for plan in plans} == {painter.seed} and painter.seed != other.seed
    assert question(LivePainter(pipe, seed=0), asked(seed=None)).plan.seed == 0


# ---- from one prompt to the next


def test_a_changed_prompt_comes_by_an_arc(pipe):
    painter = LivePainter(pipe)
    start, end, third = (text(LivePainter(pipe), asked(prompt)) for prompt in ("a cat", "moon", "a dog"))
    assert torch.equal(text(painter, asked("a cat", blend=4)), start) and not painter.moving(asked())
    for share in (0.25, 0.5):
        torch.testing.assert_close(text(painter, asked("moon", blend=4)), slerp(start, end, share))
        assert painter.moving(asked("moon", blend=4))
    halfway = slerp(start, end, 0.5)
    for share in (0.25, 0.5, 0.75):
        torch.testing.assert_close(text(painter, asked("a dog", blend=4)), slerp(halfway, third, share))
    for _ in range(2):
        assert torch.equal(text(painter, asked("a dog", blend=4)), third)
        assert not painter.moving(asked("a dog", blend=4))


def test_negative_prompts_and_pooled_texts_too():
    painter = LivePainter(Pipeline(tiny_model("sdxl")))
    first, last = (asked("a cat", guidance=2, blend=2, negative_prompt=negative) for negative in ("", "moon"))
    start = question(painter, first).denoiser
    halfway = question(painter, last).denoiser
    end = question(painter, last).denoiser
    for part in ("text_BLD", "pooled_BD"):
        own = [getattr(one.negative, part) for one in (start, halfway, end)]
        assert not start.negative.text_BLD.any()  # SDXL's empty negative prompt
        torch.testing.assert_close(own[1], slerp(own[0], own[2], 0.5), atol=1e-5, rtol=1e-5)
        assert not torch.equal(own[1], own[2])


@pytest.mark.parametrize("prompt", ["a [cat|dog]", "a cat AND moon", "moon " * 80])
def test_other_prompts_come_at_once(pipe, prompt):
    painter, fields = LivePainter(pipe), asked(prompt, blend=9, steps=2)
    question(painter, asked("a cat", steps=2))
    question(painter, fields)
    assert not painter.moving(fields)


def told_by(pipe, fields):
    """A still session of a null network; what it tells."""

    class Null:
        def room(self, key):
            return 1

        def answer(self, asks):
            return [ask.what.z_BCHW for ask in asks]

    painter, told = LivePainter(pipe), []
    session = LiveSession(
        LocalEngine(Null()), painter.paint, told.append, fields, owner="a", period_s=0.002, moving=painter.moving
    )
    return session, told


def settled(session):
    until = time.monotonic() + 10
    while not session.idle and time.monotonic() < until:
        time.sleep(0.002)
    assert session.idle
    session.engine.close()


def test_a_still_session_goes_on_until_its_prompt_has_arrived(pipe):
    session, told = told_by(pipe, asked("a cat", blend=5))
    session.offer(Frame(1, START))
    while not told:
        time.sleep(0.001)
    session.change(1, asked("moon", blend=5))
    settled(session)
    ways = [output.result.info["parameters"].partition("Prompt blend: ")[2][:6] for output in told]
    assert ways == ["", "1 of 5", "2 of 5", "3 of 5", "4 of 5", ""]
    assert [output.final for output in told] == [True, False, False, False, False, True]


def test_it_refines_when_its_prompt_has_arrived(pipe):
    session, told = told_by(pipe, asked("a cat", blend=3))
    session.refine = lambda fields: fields.refined(1) if fields.request.prompt == "moon" else fields
    session.offer(Frame(1, START))
    while len(told) < 2:
        time.sleep(0.001)
    session.change(1, asked("moon", blend=3))
    settled(session)
    outputs = [(output.order.refined, output.final) for output in told if output.order.revision == 1]
    assert outputs == [(False, False), (False, False), (False, True), (True, True)]
    assert "Steps: 8" in told[-1].result.info["parameters"]


def test_a_walk_goes_on_a_frame_each_period_until_paused_or_stopped(pipe):
    session, told = told_by(pipe, asked(noise="walk", noise_speed=0.25))
    session.period_s = 0.03
    begun = time.monotonic()
    session.offer(Frame(1, START))
    while len(told) < 5:
        time.sleep(0.001)
    assert time.monotonic() - begun >= 4 * 0.03 and not any(output.final for output in told)
    session.pause(on=True)
    time.sleep(0.1)
    count = len(told)
    time.sleep(0.1)
    assert len(told) == count
    session.pause(on=False)
    while len(told) < count + 2:
        time.sleep(0.001)
    session.change(1, asked())
    settled(session)
    assert told[-1].final and told[-1].order.revision == 1


def test_what_fails_does_not_go_on(pipe):
    session, told = told_by(pipe, asked(noise="walk", steps=49, schedule="no such"))
    session.offer(Frame(1, START))
    settled(session)
    assert len(told) == 1 and isinstance(told[0].error, RequestError)


# ---- noise


LARGE = {"width": 512, "height": 512}


def first_noise(painter, fields, **how):
    return question(painter, fields, picture=None, **how).z_BCHW


def test_fixed_noise_is_the_seeds(pipe):
    painter = LivePainter(pipe)
    expected = pipe.runner.noise([4], (512, 512))()
    for _ in range(3):
        assert torch.equal(first_noise(painter, asked(**LARGE)), expected)


def test_walking_noise_turns_from_seed_to_seed(pipe):
    painter, fields = LivePainter(pipe), asked(seed=2**32 - 2, noise="walk", noise_speed=0.5, **LARGE)
    seeds = [pipe.runner.noise([seed], (512, 512))() for seed in (2**32 - 2, 2**32 - 1, 0)]
    half = math.sqrt(0.5)
    way = [seeds[0], half * (seeds[0] + seeds[1]), seeds[1], half * (seeds[1] + seeds[2]), seeds[2]]
    for expected in way:
        found = question(painter, fields, picture=None)
        torch.testing.assert_close(found.z_BCHW, expected)
        assert abs(float(found.z_BCHW.std()) - 1) < 0.02
    still = first_noise(painter, fields, refined=True)
    assert torch.equal(still, found.z_BCHW)
    assert torch.equal(first_noise(painter, asked(seed=2**32 - 2, **LARGE)), seeds[0])


def correlation(one, other):
    return float(np.corrcoef(one.flatten(), other.flatten())[0, 1])


def test_every_draw_of_a_walk_turns(pipe):
    """The noise between the steps too, and no draw is another one's."""
    painter, fields = LivePainter(pipe), asked(noise="walk", noise_speed=0.2, steps=4, **LARGE)
    draws = []
    for _ in range(3):
        draw = painter._noise.draw(question(painter, fields, None).plan, painter._noise._place)
        draws.append([draw() for _ in range(4)])
    for one, other in zip(draws[1], draws[2], strict=True):
        assert correlation(one, other) == pytest.approx(math.cos(0.2 * math.pi / 2), abs=0.01)
    assert abs(correlation(*draws[1][:2])) < 0.03


# ---- guidance


def test_residual_guidance_costs_one_evaluation_and_needs_a_picture(pipe):
    painter, rows = LivePainter(pipe), []
    hook = pipe.model.unet.register_forward_hook(lambda unet, given, out: rows.append(len(given[0])))
    engine = LocalEngine(PictureNetwork())
    for mode, picture in (("full", START), ("residual", START), ("residual", None)):
        fields = asked(steps=2, guidance=2, guidance_mode=mode, negative_prompt="moon", width=64, height=64)
        wait_for(engine, lambda f=fields, p=picture: painter.paint(Order(Frame(1, p), 1, f)))
    hook.remove()
    engine.close()
    assert rows == [2, 2, 1, 1, 2, 2]


def test_residual_guidance_at_1_is_none(pipe):
    one, other = (question(LivePainter(pipe), asked(guidance=1, guidance_mode=mode)) for mode in ("full", "residual"))
    assert torch.equal(one.denoiser(one.z_BCHW, 499), other.denoiser(other.z_BCHW, 499))


# ---- parameters


def test_own_parameters_are_read_shown_and_refused():
    given = {"blend": 12, "noise": "walk", "noise_speed": 0.5, "guidance_mode": "residual"}
    fields = asked().patched(given)
    assert {name: fields.values()[name] for name in given} == given
    properties = schema()["properties"]
    assert properties["blend"]["maximum"] == 120 and properties["noise"]["enum"] == ["fixed", "walk"]
    assert {name: properties[name]["default"] for name in given} == {name: asked().values()[name] for name in given}
    for name, bad in (("blend", 121), ("blend", 1.5), ("noise", "loud"), ("noise_speed", -1), ("guidance_mode", None)):
        with pytest.raises(RequestError, match=name):
            asked().patched({name: bad})
