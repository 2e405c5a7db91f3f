"""Small data sets on disk, and encoders that need no checkpoint."""

import io
import tarfile
from collections import Counter
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from fewstep.models.text import Text
from tests.tiny import tiny_vae


class TextStandIn:
    """Encodes a caption as its length and the sum of its letters, and counts what it is asked."""

    def __init__(self, pooled=False):
        self.asked, self.pooled = Counter(), pooled

    def encode(self, prompts):
        self.asked.update(prompts)
        rows = torch.tensor([[len(prompt), sum(map(ord, prompt)) / 1000] for prompt in prompts])
        return Text(rows[:, None].repeat(1, 3, 1), rows if self.pooled else None)

    def encode_negative(self, prompts):
        text = self.encode(prompts)
        return Text(text.text_BLD * 0 - 1, text.pooled_BD)


def model_of(pooled=False, name="abc"):
    return SimpleNamespace(
        vae=tiny_vae(), text=TextStandIn(pooled), content_hash=name, family=SimpleNamespace(size_px=16)
    )


class VaeStandIn(torch.nn.Module):
    """The mean of each 8 x 8 block and its brightness: as a tiny autoencoder, without importing one."""

    config = SimpleNamespace(block_out_channels=(1, 1, 1, 1), latent_channels=4, scaling_factor=0.5)
    dtype = torch.float32

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.3, 0.6, 0.1]]))

    def encode(self, image_BCHW):
        blocks_BCHW = torch.nn.functional.avg_pool2d(image_BCHW, 8)
        return SimpleNamespace(latents=torch.einsum("dc,bchw->bdhw", self.weight, blocks_BCHW))


def quick_model(pooled=False, name="abc"):
    """As `model_of`, with an autoencoder that takes no time."""
    return SimpleNamespace(
        vae=VaeStandIn(), text=TextStandIn(pooled), content_hash=name, family=SimpleNamespace(size_px=16)
    )


def picture(seed=0, size=(24, 16), kind="PNG", **how):
    """The bytes of a picture of (width, height) with random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **how)
    return stream.getvalue()


def tar_bytes(files, mode="w"):
    """A tar of {name: bytes}, in that order."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def samples(first, count, *, size=(24, 16), caption="a cat"):
    """{name: bytes} of `count` captioned pictures, the first numbered `first`."""
    files = {}
    for number in range(first, first + count):
        files[f"{number:04d}.png"] = picture(number, size)
        files[f"{number:04d}.txt"] = f"{caption} {number}".encode()
    return files


def write_shards(folder, count=3, each=4, **how):
    """Shards s-0.tar, s-1.tar, ... of `each` samples; returns the pattern."""
    for shard in range(count):
        (folder / f"s-{shard}.tar").write_bytes(tar_bytes(samples(shard * each, each, **how)))
    return f"{folder}/s-{{0..{count - 1}}}.tar"
