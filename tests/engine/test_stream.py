"""Frames in the making together are the frames one after the other: every number of steps, guidance and depth; nobody
sees another one's.
"""

import itertools
import threading
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.engine.live import Failed, Frame, LiveSession, Order
from fewstep.engine.live_request import LiveRequest
from fewstep.engine.local import LocalEngine
from fewstep.engine.painter import LivePainter
from fewstep.engine.pictures import PictureNetwork
from fewstep.pipeline import Pipeline
from fewstep.request import Request
from fewstep.runners import TorchRunner
from tests.cheap import CheapUnet
from tests.tiny import tiny_model

GUIDANCE = {
    "off": ("sd15", {"guidance": 1, "sampler": "lcm"}, {}),
    "full": ("sd15", {"guidance": 2, "negative_prompt": "moon"}, {}),
    "residual": ("sd15", {"guidance": 2, "sampler": "lcm"}, {"guidance_mode": "residual"}),
    "embedded": ("lcm", {"guidance": 2}, {}),
}
FRAMES = 5


class Latents(Pipeline):
    """A pipeline whose pictures are their latents."""

    def finish(self, plan, z_BCHW, first, runner):
        return [z_BCHW]


@cache
def pipe_of(kind, network):
    model = tiny_model(kind)
    if network == "cheap":
        model.unet = CheapUnet(model.unet.config)
    pipe = Latents(model)
    if network == "cheap":
        pipe.runner.encode = lambda pixels, **_: torch.tensor(pixels[:, ::8, ::8, [0, 1, 2, 0]] / 99.0).permute(
            0, 3, 1, 2
        )
    return pipe


def orders(mode, steps, seed):
    """Frames of noise whose prompt changes in mid-flight, with a blend and a walk of the noise."""
    _, asked, own = GUIDANCE[mode]
    own = own | {"noise": "walk", "noise_speed": 0.3, "blend": 2}
    pixels = np.random.default_rng(seed).integers(0, 256, (FRAMES, 64, 64, 3), np.uint8)
    for seq in range(FRAMES):
        prompt = "a cat" if seq < FRAMES // 2 else "red moon"
        fields = LiveRequest(Request(prompt, steps=steps, seed=seed, strength=0.7, **asked), **own)
        yield Order(Frame(seq, Image.fromarray(pixels[seq])), seq, fields)


def stream(painters_orders, depth, room, calls):
    """Sessions of this depth, a new frame of each every tick while there is room for it; all asks of a key share calls.

    What every session's frames come to, in order.
    """
    network = PictureNetwork(room)
    going, found = [], [[] for _ in painters_orders]
    waiting = [(iter(list(left)), painter) for painter, left in painters_orders]
    while True:
        for session, (left, painter) in enumerate(waiting):
            order = next(left, None) if sum(one[0] == session for one in going) < depth else None
            if order is not None:
                steps = painter.paint(order)
                going.append([session, steps, next(steps)])
        if not going:
            return found
        for _, group in itertools.groupby(sorted(going, key=lambda one: repr(one[2].key)), lambda one: one[2].key):
            group = list(group)[:room]
            calls.append(sorted({float(one[2].what.timestep) for one in group}))
            for one, answer in zip(group, network.answer([one[2] for one in group]), strict=True):
                try:
                    one[2] = one[1].send(answer)
                except StopIteration as end:
                    found[one[0]].append(end.value)
                    going.remove(one)


def sequential(pipe, mode, steps, seed):
    return stream([(LivePainter(pipe), orders(mode, steps, seed))], 1, 1, [])[0]


def furthest(found, expected):
    """The largest difference of any latent, where latents have unit variance, as Stable Diffusion's are scaled to."""
    assert len(found) == len(expected) == FRAMES
    return max(float((one - other).abs().max() / other.std()) for one, other in zip(found, expected, strict=True))


def check(network, mode, steps, depths):
    pipe = pipe_of(GUIDANCE[mode][0], network)
    expected = sequential(pipe, mode, steps, seed=3)
    assert min(furthest([one] * FRAMES, [other] * FRAMES) for one, other in itertools.pairwise(expected)) > 0.1
    for depth in depths:
        calls = []
        (found,) = stream([(LivePainter(pipe), orders(mode, steps, 3))], depth, depth, calls)
        assert furthest(found, expected) < 1e-5
        assert max(map(len, calls)) == min(depth, steps)  # of different steps


@pytest.mark.parametrize("steps", range(1, 9))
@pytest.mark.parametrize("mode", GUIDANCE)
def test_stream_batch_equals_sequential(mode, steps):
    check("cheap", mode, steps, [4])


def test_with_a_unet():
    check("unet", "residual", 3, [3])


@pytest.mark.slow
@pytest.mark.parametrize("network", ["cheap", "unet"])
@pytest.mark.parametrize("mode", GUIDANCE)
def test_every_depth(mode, network):
    for steps in range(1, 9):
        check(network, mode, steps, [1, 2, 3, 4])


def test_a_seed_is_a_picture_whatever_else_runs():
    """Eight sessions of other modes, steps, seeds and depths beside one: each as if it were alone."""
    pipe, calls = pipe_of("sd15", "cheap"), []
    asked = [(mode, steps, seed) for seed, mode in enumerate(["off", "full", "residual", "off"]) for steps in (2, 5)]
    found = stream([(LivePainter(pipe), orders(*one)) for one in asked], 2, 6, calls)
    for one, pictures in zip(asked, found, strict=True):
        assert furthest(pictures, sequential(pipe, *one)) < 1e-5
    assert max(map(len, calls)) > 2


# ---- isolation: pictures that say whose they are


class Colour:
    """Half the colour of the picture that it began from, half that of its prompt; the fourth channel is the frame's."""

    kind = "colour"

    def __init__(self, schedule, text_B4):
        self.schedule, self.text_B4 = schedule, text_B4

    @staticmethod
    def joined(denoisers):
        return Colour(denoisers[0].schedule, torch.cat([one.text_B4 for one in denoisers]))

    def __call__(self, z_BCHW, timestep_B):
        alpha, _ = self.schedule.alpha_sigma(timestep_B, z_BCHW)
        frame_BCHW = z_BCHW / alpha
        text_BCHW = self.text_B4[..., None, None].expand_as(z_BCHW).clone()
        text_BCHW[:, 3] = frame_BCHW[:, 3]
        return (frame_BCHW + text_BCHW) / 2


class Colours(TorchRunner):
    """Without noise, so that every number can be read at the end."""

    def denoiser(self, words, negative, guidance, reading):
        return Colour(self.model.schedule, torch.tensor([[*map(float, words.split()), 0.0]]))

    def noise(self, seeds, size, rng="cpu"):
        return lambda: torch.zeros(len(seeds), 4, size[1] // 8, size[0] // 8)

    def encode(self, pixels_BHWC, *, tiny=False):
        seen = [*pixels_BHWC[0, -1, -1], pixels_BHWC[0, 0, 0, 0]]
        return torch.tensor(seen).float()[None, :, None, None].expand(1, 4, 8, 8).clone()

    def decode(self, z_BCHW, *, tiny=False):
        picture = z_BCHW[:, :3, :1, :1].round().to(torch.uint8).permute(0, 2, 3, 1).repeat(1, 64, 64, 1).numpy()
        picture[:, 0, 0] = int(z_BCHW[0, 3, 0, 0].round())
        return picture


def frame(seq, colour):
    pixels = np.empty((64, 64, 3), np.uint8)
    pixels[:] = colour
    pixels[0, 0] = seq % 251
    return Frame(seq, Image.fromarray(pixels))


class Camera:
    """A session whose next frame comes when one was painted: what it is told, and the end of it."""

    def __init__(self, engine, pipe, number, frames):
        self.colour, self.frames, self.told, self.done = (
            (number & 1, number & 2, number & 4),
            frames,
            [],
            threading.Event(),
        )
        self.colour = tuple(200 if part else 10 for part in self.colour)
        prompt = " ".join(map(str, self.colour))
        fields = LiveRequest(Request(prompt, steps=1 + number % 3, seed=number, strength=0.3 + number / 20, guidance=1))
        self.session = LiveSession(
            engine, LivePainter(pipe).paint, self.hear, fields, owner=str(number), depth=1 + number % 2
        )

    def hear(self, told):
        self.told.append(told)
        if isinstance(told, Failed) or len(self.told) == self.frames:
            self.done.set()
        elif not self.done.is_set():
            self.session.offer(frame(len(self.told) + 1, self.colour))


@pytest.mark.parametrize("frames", [15, pytest.param(625, marks=pytest.mark.slow)])
def test_eight_sessions_of_eight_colours(frames):
    pipe = Pipeline(tiny_model("sd15"))
    pipe.runner = Colours(pipe.model)
    engine = LocalEngine(PictureNetwork(5))
    cameras = [Camera(engine, pipe, number, frames) for number in range(8)]
    for camera in cameras:
        camera.session.offer(frame(1, camera.colour))
    assert all(camera.done.wait(120) for camera in cameras)
    engine.close()
    assert engine.stats.ticks < engine.stats.asks  # calls were shared
    for camera in cameras:
        for told in camera.told[:frames]:
            pixels = np.asarray(told.result).astype(int)
            assert abs(pixels[32, 32] - camera.colour).max() <= 1
            assert abs(pixels[0, 0, 0] - told.order.frame.seq % 251) <= 1
