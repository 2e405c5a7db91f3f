"""A pipeline whose network is a formula, and a studio whose pictures cost nothing: no weights, no torch.

With `NullPipeline` what stands before and behind the network is the real thing: plans, noise, samplers, settings in
pictures, which depend on prompt and seed all the same. With `NullStudio` what is left is decoding, scheduling, encoding
and the socket.
"""

import time
import zlib

import numpy as np

from fewstep.checkpoints.description import Sampling
from fewstep.engine.painting import Here
from fewstep.engine.work import Ask
from fewstep.infotext import Picture
from fewstep.models.family import Family
from fewstep.pipeline import Pipeline
from fewstep.runners import OnnxRunner
from fewstep.sampling.timesteps import STABLE_DIFFUSION
from fewstep.serve.jobs import Studio

FEW = Sampling("lcm", "linspace-lcm", 4, 1.0)


class NullModel:
    """A model of few steps at 64 pixels; every evaluation takes `pause_s`."""

    name, content_hash, device, dtype = "null", "0123456789", "cpu", "float32"
    family = Family("sd15", "SD 1.5", 768, 64, 1)
    schedule, notes, vae_path, sampling, tiny = STABLE_DIFFUSION, (), None, FEW, ""

    def __init__(self, path, pause_s=0.0):
        self.path, self.pause_s = path, pause_s


class NullRunner(OnnxRunner):
    """Latents are the picture's colours at an eighth of its size."""

    def __init__(self, model):
        self.model = model

    def set_loras(self, loras):
        assert not loras

    def denoiser(self, words, negative, guidance, reading):
        level = np.float32(zlib.crc32(words.encode()) / 2**32 - 0.5)

        def predict(z_BCHW, timestep_B):
            time.sleep(self.model.pause_s)
            return np.tanh(0.3 * z_BCHW) + level

        return predict

    def encode(self, pixels_BHWC, *, tiny=False):
        small_BHWC = pixels_BHWC[:, 4::8, 4::8].astype(np.float32) / 127.5 - 1
        return np.pad(small_BHWC.transpose(0, 3, 1, 2), ((0, 0), (0, 1), (0, 0), (0, 0)))

    def decode(self, z_BCHW, *, tiny=False):
        pixels_BHWC = np.rint((np.clip(z_BCHW[:, :3], -1, 1) + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
        return pixels_BHWC.repeat(8, axis=1).repeat(8, axis=2)


class NullPipeline(Pipeline):
    """`path` is where LoRAs of prompts are looked for."""

    def __init__(self, path, pause_s=0.0):
        self.model, self.hires, self.batch, self.loras = NullModel(path, pause_s), None, 1, ()
        self._lora_shelf, self._embedding_shelf, self._read = None, NoEmbeddings(), {}
        self.runner = NullRunner(self.model)


class NoEmbeddings:
    """Nothing is named in a prompt."""

    def named_in(self, texts):
        return {}


class NullNetwork:
    def room(self, key):
        return 8

    def answer(self, asks):
        return [ask.what for ask in asks]


class NullPainter:
    """Gives every frame back as it came, after one evaluation."""

    def paint(self, order):
        picture = yield Ask("null", order.frame.picture)
        return Picture.of(picture, f"Seed: {order.fields.request.seed}")

    def moving(self, fields):
        return False


class Nowhere(Here):
    def __init__(self):
        super().__init__()
        self.engine.network = NullNetwork()

    def painter(self, pipe, session):
        return NullPainter()


class NullStudio(Studio):
    def __init__(self, pipe):
        super().__init__(pipe, painting=Nowhere())
