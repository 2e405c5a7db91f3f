"""Race: a rank-64 LCM-LoRA merged into a UNet and taken out again, fewstep against diffusers' fuse_lora, by turns.

    python benchmarks/lora_merge.py [--what file fuse merge weight] [--small] [--rank 64] [--rounds 5] [--clock cpu]

fuse: into the weights, from a LoRA that is loaded. merge: and out again. weight: from one strength to another. file:
from the file on disk to merged weights and out again. The UNet is random, of SD 1.5's size (--small: of 32 channels, to
see that it runs), from a file in float16, as most are; the LoRA has the modules of the published LCM-LoRA. Both must
come to the same weights. --clock cpu counts a process' own time, for a machine with other work; take one thread then
(OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from race import by_turns, report
from torch import nn

from fewstep.checkpoints.folder import load_part
from fewstep.checkpoints.lora import LoraLayer, LoraStack, read_lora
from fewstep.checkpoints.lora_save import save_lora
from fewstep.models.family import family_of

LCM_MODULES = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2")
LCM_MODULES += ("conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj")
STRENGTHS = (1.0, 0.6)
KINDS = ("file", "fuse", "merge", "weight")


def random_unet(*, small: bool) -> Any:
    """SD 1.5's UNet with random weights; small: its layout with 32 channels."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(0)
    widths = (32,) * 4 if small else (320, 640, 1280, 1280)
    groups, text = (8, 32) if small else (32, 768)
    kinds = ("CrossAttnDownBlock2D",) * 3
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=widths,
        down_block_types=(*kinds, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        cross_attention_dim=text,
        attention_head_dim=8,
        norm_num_groups=groups,
    )
    return unet.eval().requires_grad_(False)


def write_lcm_lora(unet: Any, folder: Path, rank: int) -> dict[str, Path]:
    """The same random LoRA in kohya's naming and in diffusers'."""
    generator, layers = torch.Generator().manual_seed(1), {}
    for name, module in unet.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and name.endswith(LCM_MODULES):
            shape = module.weight.shape
            down = torch.randn(rank, *shape[1:], generator=generator) * 0.02
            up = torch.randn(shape[0], rank, *(1,) * (len(shape) - 2), generator=generator) * 0.02
            layers[f"unet.{name}"] = LoraLayer(down.half(), up.half(), float(rank))
    files = {naming: folder / f"{naming}.safetensors" for naming in ("kohya", "diffusers")}
    for naming, path in files.items():
        save_lora(path, layers, naming=naming)  # type: ignore[arg-type]
    return files


def loaded(folder: Path) -> tuple[Any, Any]:
    """The UNet from its file in float32, twice: as fewstep loads a model, and as diffusers does."""
    other = type(random_unet(small=True)).from_pretrained(folder / "unet").eval().requires_grad_(False)
    unet, stored = load_part(folder, "unet", dict(other.config), device="cpu", dtype=torch.float32)
    text = SimpleNamespace(encoders=[nn.Identity()])
    stored = {f"unet.{name}": weight for name, weight in stored.items()}
    return SimpleNamespace(unet=unet, text=text, family=family_of(unet.config), stored=stored), other


def ours(model: Any, path: Path) -> dict[str, Callable[[], None]]:
    """fewstep."""
    stack = LoraStack(model)
    lora, strengths = read_lora(path), itertools.cycle(STRENGTHS)

    def fuse() -> None:
        stack.set([(lora, 1.0, 1.0)])

    def undo() -> None:
        stack.set([])

    def merge() -> None:
        fuse()
        undo()

    def weight() -> None:
        stack.set([(lora, next(strengths), 1.0)])

    def file() -> None:
        stack.set([(read_lora(path), 1.0, 1.0)])
        stack.set([])

    return {"fuse": fuse, "undo": undo, "merge": merge, "weight": weight, "file": file}


def theirs(unet: Any, path: Path) -> dict[str, Callable[[], None]]:
    """diffusers: its LoRA loader with PEFT, and fuse_lora."""
    strengths, fused = itertools.cycle(STRENGTHS), []

    def load() -> None:
        unet.load_lora_adapter(path.parent, weight_name=path.name, prefix="unet")

    def merge() -> None:
        unet.fuse_lora()
        unet.unfuse_lora()

    def weight() -> None:
        if fused:
            unet.unfuse_lora()
        unet.fuse_lora(lora_scale=next(strengths))
        fused.append(True)

    def file() -> None:
        load()
        merge()
        unet.unload_lora()

    return {
        "load": load,
        "fuse": unet.fuse_lora,
        "undo": unet.unfuse_lora,
        "merge": merge,
        "weight": weight,
        "file": file,
    }


def difference(one: Any, other: Any) -> float:
    """The largest between the weights of two UNets, the second perhaps wrapped by PEFT."""
    found = {
        name.replace(".base_layer", ""): value for name, value in other.state_dict().items() if "lora_" not in name
    }
    return max(float((value - found[name]).abs().max()) for name, value in one.state_dict().items())


def main() -> None:
    """Run the races, the file first: afterwards diffusers has its LoRA loaded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=KINDS, nargs="+", default=KINDS)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        drawn = random_unet(small=args.small)
        files = write_lcm_lora(drawn, Path(folder), args.rank)
        drawn.half().save_pretrained(Path(folder) / "unet")
        model, other = loaded(Path(folder))
        one = model.unet
        us, them = ours(model, files["kohya"]), theirs(other, files["diffusers"])
        size = sum(parameter.numel() for parameter in one.parameters())
        facts = {"benchmark": "lora_merge", "rank": args.rank, "parameters": size, "clock": args.clock}
        for what in sorted(args.what, key=KINDS.index):
            if what != "file" and not hasattr(other, "peft_config"):
                them["load"]()
                facts["difference"] = check(one, other, us)
            seconds = race(what, us, them, rounds=args.rounds, cpu=args.clock == "cpu")
            print(f"\n{what}")
            report(seconds, ours="fewstep", **facts, what=what)


def check(one: Any, other: Any, us: dict[str, Callable[[], None]]) -> float:
    """Both merge: the largest difference of the weights, which must be rounding."""
    us["fuse"]()
    other.fuse_lora()
    apart = difference(one, other)
    assert apart < 1e-3, f"the merged weights differ by {apart}"
    other.unfuse_lora()
    us["undo"]()
    return apart


def race(what: str, us: dict[str, Any], them: dict[str, Any], *, rounds: int, cpu: bool) -> dict[str, list[float]]:
    """By turns; what is merged is taken out again off the clock."""
    return by_turns(
        {"fewstep": us[what], "diffusers": them[what]},
        rounds=rounds,
        clock=time.process_time if cpu else time.perf_counter,
        afterwards={"fewstep": us["undo"], "diffusers": them["undo"]} if what == "fuse" else None,
    )


if __name__ == "__main__":
    main()
