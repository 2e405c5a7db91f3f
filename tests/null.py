"""A pipeline whose network is a formula: no weights, no torch, pictures that depend on prompt and seed all the same.

What stands before and behind the network is the real thing: plans, noise, samplers, settings in pictures.
"""

import base64
import io
import time
import zlib
from contextlib import contextmanager

import numpy as np

from fewstep.checkpoints.description import Sampling
from fewstep.models.family import Family
from fewstep.pipeline import Pipeline
from fewstep.runners import OnnxRunner
from fewstep.sampling.timesteps import STABLE_DIFFUSION

FEW = Sampling("lcm", "linspace-lcm", 4, 1.0)


class NullModel:
    """A model of few steps at 64 pixels; every evaluation takes `pause_s`."""

    name, content_hash, device, dtype = "null", "0123456789", "cpu", "float32"
    family = Family("sd15", "SD 1.5", 768, 64, 1)
    schedule, notes, vae_path, sampling = STABLE_DIFFUSION, (), None, FEW

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

    def encode(self, pixels_BHWC):
        small_BHWC = pixels_BHWC[:, 4::8, 4::8].astype(np.float32) / 127.5 - 1
        return np.pad(small_BHWC.transpose(0, 3, 1, 2), ((0, 0), (0, 1), (0, 0), (0, 0)))

    def decode(self, z_BCHW):
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


def text_of(data):
    """Bytes as clients of A1111 send them."""
    return base64.b64encode(data).decode()


def file_of(image, kind="PNG", **how):
    stream = io.BytesIO()
    image.save(stream, kind, **how)
    return stream.getvalue()


@contextmanager
def serving(studio, **door):
    """The studio on a free port, as `fewstep serve` would: the port."""
    import socket
    import threading

    import uvicorn

    from fewstep.serve.app import application
    from fewstep.serve.security import Door

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = uvicorn.Config(Door(application(studio), **door), host="127.0.0.1", port=port, log_level="critical")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not running.started and time.monotonic() < until:
        time.sleep(0.01)
    assert running.started
    yield port
    running.should_exit = True
    thread.join(10)
