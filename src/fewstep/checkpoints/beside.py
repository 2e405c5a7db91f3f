"""Networks that stand beside a model, as files: ControlNets, which steer it, and motion modules, which move it.

Both layouts of each: a ControlNet's original names (lllyasviel, `control_model.`) and diffusers'; AnimateDiff's
(guoyww, `temporal_transformer`) and diffusers' `MotionAdapter`. Known by names, configured by shapes. Read, converted
and written here; compared with diffusers' own readers in tests/checkpoints/test_beside.py.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.checkpoints.files import read_header, read_json, read_tensors, write_json, write_safetensors
from fewstep.checkpoints.keys import table
from fewstep.checkpoints.save import cast, number_format
from fewstep.checkpoints.shapes import Shapes, unet_config
from fewstep.checkpoints.single import CONFIGS
from fewstep.errors import CheckpointError, OutputError

WEIGHTS = "diffusion_pytorch_model.safetensors"
CONTROL, MOTION = "ControlNetModel", "MotionAdapter"
_PREFIXES = ("control_model.", "module.")
_HINTS = 16
_MOTION = {
    ".temporal_transformer.": ".",
    ".attention_blocks.0.": ".attn1.",
    ".attention_blocks.1.": ".attn2.",
    ".norms.0.": ".norm1.",
    ".norms.1.": ".norm2.",
    ".ff_norm.": ".norm3.",
}
"""What differs in AnimateDiff's names -> diffusers'. Its tables of positions are computed there, not stored."""

_POSITIONS = re.compile(r"pos_encoder\.pe$|pos_embed\.pe$")


@dataclass(frozen=True, eq=False)
class Beside:
    """A ControlNet or a motion module: diffusers' config, and its tensors by diffusers' names."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def kind(self) -> str:
        """diffusers' class."""
        return self.config["_class_name"]


def is_beside(path: Path) -> bool:
    """Whether the path is such a network: a file by its names, a folder by its config."""
    if path.is_dir():
        config = path / "config.json"
        return config.is_file() and read_json(config).get("_class_name") in (CONTROL, MOTION)
    return path.is_file() and path.suffix == ".safetensors" and _class_of(read_header(path)[0]) is not None


def _class_of(names: Mapping[str, Any]) -> str | None:
    if names and all(".motion_modules." in name or name.startswith("conv_in.") for name in names):
        return MOTION
    steers = ("control_model.", "input_hint_block.", "controlnet_cond_embedding.")
    return CONTROL if any(name.startswith(steers) for name in names) else None


def read_beside(path: str | Path) -> Beside:
    """A ControlNet or motion module from a file of either layout or a diffusers folder, in the stored number format.

    Raises:
        CheckpointError: it is missing, damaged, or neither.
    """
    path = Path(path)
    if path.is_dir():
        return Beside(read_json(path / "config.json"), _without_positions(read_tensors(path / WEIGHTS)))
    shapes, metadata = read_header(path)
    kind = _class_of(shapes)
    if kind is None:
        raise CheckpointError(f"'{path.name}' is neither a ControlNet nor a motion module.")
    tensors = {_bare(name): tensor for name, tensor in read_tensors(path).items()}
    try:
        named = _control_names(tensors) if kind == CONTROL else _motion_names(tensors)
        found = {name: tuple(tensor.shape) for name, tensor in named.items()}
        config = _control_config(found) if kind == CONTROL else _motion_config(found, tensors)
    except (KeyError, IndexError, StopIteration):
        what = "ControlNet" if kind == CONTROL else "motion module"
        raise CheckpointError(
            f"'{path.name}' is an incomplete {what}, or one of another kind. Copy it again."
        ) from None
    return Beside(json.loads(metadata[CONFIGS])["beside"] if CONFIGS in metadata else config, named)


def write_beside(network: Beside, out: str | Path, *, dtype: str | None = None) -> Path:
    """Writes a folder as diffusers has it, or (name.safetensors) one file in the original layout; whole or not at all.

    Raises OutputError when it cannot be written, DeviceError for an unknown dtype.
    """
    out, number = Path(out).expanduser(), number_format(dtype)
    tensors = {name: cast(tensor, number) for name, tensor in network.tensors.items()}
    if out.suffix != ".safetensors":
        if out.is_file():
            raise OutputError(f"'{out}' is a file; a single file's name ends in .safetensors, a folder's does not.")
        write_safetensors(out / WEIGHTS, tensors)
        write_json(out / "config.json", network.config)
        return out
    if network.kind == CONTROL:
        back = {new: old for old, new in _control_table(network.config["layers_per_block"]).items()}
        original = {f"control_model.{back[name]}": tensor for name, tensor in tensors.items()}
    else:
        original = {_motion_back(name): tensor for name, tensor in tensors.items()}
    write_safetensors(out, original, {CONFIGS: json.dumps({"beside": network.config})})
    return out


def module_of(network: Beside) -> Any:
    """The network as diffusers' module in eval mode; raises CheckpointError where weights and config do not agree."""
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from diffusers.models.unets.unet_motion_model import MotionAdapter

    kind = ControlNetModel if network.kind == CONTROL else MotionAdapter
    module: Any = kind.from_config(network.config)
    missing, unexpected = module.load_state_dict(network.tensors, strict=False)
    missing = [name for name in missing if not _POSITIONS.search(name)]
    if missing or unexpected:
        raise CheckpointError(f"The {network.kind}'s weights do not fit its config: '{(missing + unexpected)[0]}'.")
    return module.eval()


def _bare(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _without_positions(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not _POSITIONS.search(name)}


# ---- ControlNet


def _control_table(layers: int, hints: int | None = None) -> dict[str, str]:
    """Original name -> diffusers'. The way down and the middle are a UNet's; `hints` is the last hint's number."""
    found = {old: new for old, (new,) in table("unet", layers=layers).items() if not old.startswith(("out", "output"))}
    modules = {"input_hint_block.0": "controlnet_cond_embedding.conv_in", "middle_block_out.0": "controlnet_mid_block"}
    modules |= {f"input_hint_block.{2 * at + 2}": f"controlnet_cond_embedding.blocks.{at}" for at in range(_HINTS)}
    modules |= {f"zero_convs.{at}.0": f"controlnet_down_blocks.{at}" for at in range(64)}
    modules[f"input_hint_block.{14 if hints is None else hints}"] = "controlnet_cond_embedding.conv_out"
    return found | {f"{old}.{end}": f"{new}.{end}" for old, new in modules.items() for end in ("weight", "bias")}


def _control_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if "controlnet_mid_block.weight" in tensors:
        return dict(tensors)
    layers = next(block for block in range(1, 8) if f"input_blocks.{block}.0.op.weight" in tensors) - 1
    hints = max(int(name.split(".")[1]) for name in tensors if name.startswith("input_hint_block."))
    names = _control_table(layers, hints)
    return {names[name]: tensor for name, tensor in tensors.items()}


def _control_config(shapes: Shapes) -> dict[str, Any]:
    config = unet_config({**shapes, "conv_out.weight": (4,)})
    widths = [shapes["controlnet_cond_embedding.conv_in.weight"][0]]
    blocks = [f"controlnet_cond_embedding.blocks.{at}.weight" for at in range(_HINTS)]
    widths += [shapes[name][0] for name in blocks[1::2] if name in shapes]
    depths = config["transformer_layers_per_block"]
    if isinstance(depths, list):
        depths = [depth[0] if isinstance(depth, list) else depth for depth in depths]
    kept = ("in_channels", "block_out_channels", "layers_per_block", "down_block_types", "mid_block_type")
    kept += ("cross_attention_dim", "attention_head_dim", "use_linear_projection", "addition_embed_type")
    kept += ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
    return {
        "_class_name": CONTROL,
        **{name: config[name] for name in kept if name in config},
        "transformer_layers_per_block": depths,
        "conditioning_channels": shapes["controlnet_cond_embedding.conv_in.weight"][1],
        "conditioning_embedding_out_channels": widths,
    }


# ---- motion modules


def _motion_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, tensor in _without_positions(tensors).items():
        for old, new in _MOTION.items():
            name = name.replace(old, new)
        found[name] = tensor
    return found


def _motion_back(name: str) -> str:
    head, module, rest = re.split(r"(\.motion_modules\.\d+\.)", name, maxsplit=1)
    rest = f".{rest}"
    for old, new in list(_MOTION.items())[1:]:
        rest = rest.replace(new, old)
    return f"{head}{module}temporal_transformer{rest}"


def _motion_config(shapes: Shapes, stored: Mapping[str, Tensor]) -> dict[str, Any]:
    levels = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("down_blocks."))
    key = "down_blocks.{}.motion_modules.{}.proj_in.weight"
    channels = [shapes[key.format(level, 0)][0] for level in range(levels)]
    positions = [tensor.shape[1] for name, tensor in stored.items() if name.endswith("pos_encoder.pe")]
    return {
        "_class_name": MOTION,
        "block_out_channels": channels,
        "motion_layers_per_block": sum(key.format(0, at) in shapes for at in range(8)),
        "motion_mid_block_layers_per_block": 1,
        "motion_num_attention_heads": 8,
        "motion_norm_num_groups": 32,
        "motion_max_seq_length": positions[0] if positions else 32,
        "use_motion_mid_block": any(name.startswith("mid_block.") for name in shapes),
        "conv_in_channels": shapes["conv_in.weight"][1] if "conv_in.weight" in shapes else None,
    }
