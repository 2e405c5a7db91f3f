"""A large file is mapped, not copied: measured in a process of its own."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.checkpoints.whole import XL, whole_folder
from tests.tiny import _UNETS

MB = 1 << 20
REPORT = """
import json, sys
from fewstep.checkpoints.load import load_stored
from fewstep.checkpoints.files import read_header
from fewstep.checkpoints.save_single import save_single
from pathlib import Path
from safetensors import safe_open

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

load_stored(sys.argv[1])
libraries = peak()
model = load_stored(sys.argv[2])
loaded = peak()
save_single(model, Path(sys.argv[3]))
print(json.dumps({"libraries": libraries, "loaded": loaded, "written": peak()}))
"""


def large_file(path):
    """An SDXL in fp16 of the published layout, narrower, all zeros: a file with holes, which takes no disk."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from safetensors import safe_open

    settings = {"sample_size": 8, "layers_per_block": 2} | _UNETS["sdxl"] | XL
    settings |= {"block_out_channels": (192, 384, 768), "attention_head_dim": (3, 6, 12)}
    with torch.device("meta"):
        unet = UNet2DConditionModel(**settings)
    shapes = {f"unet.{name}": list(value.shape) for name, value in unet.state_dict().items()}
    for part in ("vae", "text_encoder", "text_encoder_2"):
        for file in (whole_folder("sdxl") / part).glob("*.safetensors"):
            with safe_open(file, framework="np") as content:
                shapes |= {f"{part}.{name}": content.get_slice(name).get_shape() for name in content.keys()}  # noqa: SIM118
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux' record of a process' peak")
def test_loading_takes_the_file_once_and_writing_no_more(tmp_path):
    path = large_file(tmp_path / "large.safetensors")
    size = path.stat().st_size
    assert size > 250 * MB
    small, out = whole_folder("sdxl"), tmp_path / "out.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", REPORT, str(small), str(path), str(out)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["loaded"] - found["libraries"] < 1.25 * size
    assert found["written"] - found["libraries"] < 1.5 * size
    assert abs(out.stat().st_size - size) < MB
