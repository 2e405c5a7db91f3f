"""LoRA files of any family in the namings that other programs read, with what they look for in the metadata.

| naming    | keys                                                           | read by                           |
|-----------|----------------------------------------------------------------|-----------------------------------|
| kohya     | lora_unet_down_blocks_0_....lora_down.weight, with alphas      | everybody; every family           |
| diffusers | unet.down_blocks.0....lora_A.weight, strength inside the matrices | diffusers, ComfyUI; LoRA alone |
| peft      | base_model.model.down_blocks.0....lora_A.weight, likewise      | PEFT; LoRA of one network         |

In kohya's naming all modules get one alpha, where the strengths differ by a factor in `up`: diffusers gives all
attention one alpha, and would misread others.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fewstep.checkpoints.files import write_json, write_safetensors
from fewstep.checkpoints.lora import hashes_of
from fewstep.checkpoints.lora_families import BiasIa3, Diff, Dora, Layer, LoraLayer, alpha_of
from fewstep.checkpoints.lora_metadata import required_metadata
from fewstep.checkpoints.lora_read import Lora, cross_attention_dim, is_cross, read_lora
from fewstep.checkpoints.lora_rotations import PeftBoft, PeftOft
from fewstep.errors import LoraError, OutputError

Naming = Literal["kohya", "diffusers", "peft"]
NAMINGS: tuple[Naming, ...] = get_args(Naming)

_ENDS = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight", "magnitude": "dora_scale"}
_ENDS |= {part: f"{part}.weight" for part in ("a1", "a2", "b1", "b2", "bm", "q_layer", "p_layer")}
_NOT_KEPT = ("lora_adapter_metadata", "sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "format")
"""Metadata of a file that is wrong of another one made from it."""

_PEFTS_OWN = (PeftOft, PeftBoft, BiasIa3)


def save_lora(
    path: str | Path,
    layers: Mapping[str, Layer],
    *,
    naming: Naming = "kohya",
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> Lora:
    """Write layers (`unet.<module>`, `text_encoder.<module>`, biases with `.bias`), read the file back and return it.

    `metadata` of earlier files is kept where it is still true. `dtype` is the number format of matrices on disk; by
    default they keep theirs.

    Raises:
        LoraError: there are no layers, or some that this naming has no keys for.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    if not layers:
        raise LoraError("There are no LoRA layers to write.")
    if others := next((name for name, layer in layers.items() if isinstance(layer, _PEFTS_OWN)), None):
        raise LoraError(
            f"'{others}' is {layers[others].label} in PEFT's own form, which no other naming has keys for. Make it "
            "plain with --plain --model."
        )
    layers, alpha = _one_alpha(layers) if naming == "kohya" else (_folded(layers, naming), None)
    tensors = _kohya(layers) if naming == "kohya" else _dotted(layers, naming)
    tensors = {key: tensor.detach().to("cpu").contiguous() for key, tensor in tensors.items()}
    tensors = {key: tensor.to(dtype) if dtype and tensor.ndim else tensor for key, tensor in tensors.items()}
    if wild := next((key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()), None):
        raise LoraError(f"'{wild}' would hold NaN or infinity: write it in a wider number format, such as fp32.")
    facts = _facts(path, layers, alpha, metadata or {})
    write_safetensors(path, tensors, facts | hashes_of(tensors, facts))
    if naming == "peft" and path.name == "adapter_model.safetensors":
        write_json(path.with_name("adapter_config.json"), _peft_config(layers))
    lora = read_lora(path)
    if lora.all_layers.keys() != layers.keys():
        path.unlink()
        raise OutputError(f"'{path}' held something else when it was read back, so it was removed. Is the disk sound?")
    return lora


def _facts(path: Path, layers: Mapping[str, Layer], alpha: float | None, kept: Mapping[str, str]) -> dict[str, str]:
    ranks = {layer.rank for layer in layers.values() if layer.rank is not None}
    needed = required_metadata(
        title=path.stem,
        alpha=max(ranks, default=1) if alpha is None else alpha,
        ranks=ranks or {1},
        convolutions=any(
            len(layer.shape or ()) == 4 and (layer.shape or ())[2:] != (1, 1) for layer in layers.values()
        ),
        width=cross_attention_dim(layer for name, layer in layers.items() if is_cross(name)),
    )
    if not all(isinstance(layer, (LoraLayer, Diff)) for layer in layers.values()):
        needed["ss_network_module"] = "lycoris.kohya"
    ours = {key: needed[key] for key in ("ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args")}
    return needed | {key: value for key, value in kept.items() if key not in _NOT_KEPT} | ours


def _one_alpha(layers: Mapping[str, Layer]) -> tuple[dict[str, Layer], float | None]:
    """Plain layers with one alpha for all, and that alpha; as they are when they already have one."""
    plain = {name: layer for name, layer in layers.items() if isinstance(layer, LoraLayer)}
    alphas = {layer.scale * layer.rank for layer in plain.values()}
    if len(alphas) < 2:
        return dict(layers), next(iter(alphas), None)
    alpha = float(max(layer.rank for layer in plain.values()))
    return dict(layers) | {name: _rescaled(layer, alpha) for name, layer in plain.items()}, alpha


def _rescaled(layer: LoraLayer, alpha: float) -> LoraLayer:
    factor = layer.scale * layer.rank / alpha
    up = (layer.up.float() * factor).to(layer.up.dtype)
    return LoraLayer(layer.down, up, alpha, layer.mid)


def _kohya(layers: Mapping[str, Layer]) -> dict[str, Tensor]:
    two = any(name.startswith("text_encoder_2.") for name in layers) or _is_xl(layers)
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te1_" if two else "lora_te_", "text_encoder_2": "lora_te2_"}
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        component, _, module = name.partition(".")
        stem = module.removesuffix(".bias")
        flat = ("text_model." if component != "unet" and stem != "text_projection" else "") + stem
        key = prefixes[component] + flat.replace(".", "_")
        tensors |= {f"{key}.{end}": tensor for end, tensor in _parts(module, layer).items()}
    return tensors


def _is_xl(layers: Mapping[str, Layer]) -> bool:
    return cross_attention_dim(layer for name, layer in layers.items() if is_cross(name)) == 2048


def _parts(module: str, layer: Any) -> dict[str, Tensor]:
    """The tensors of a layer by the ends of their names in kohya's and LyCORIS' files."""
    if isinstance(layer, Diff):
        is_norm = "norm" in module.removesuffix(".bias").rpartition(".")[2]
        weight, bias = ("w_norm", "b_norm") if is_norm else ("diff", "diff_b")
        return {bias if module.endswith(".bias") else weight: layer.diff}
    if isinstance(layer, Dora):
        magnitude, wide = layer.magnitude.reshape(-1), len(layer.shape or ()) - 2
        shape = (-1, 1, *(1,) * wide) if layer.of_rows else (1, -1, *(1,) * wide)
        return _parts(module, layer.layer) | {"dora_scale": magnitude.reshape(shape)}
    found = {field.name: getattr(layer, field.name) for field in fields(layer)}
    numbers = {part: torch.tensor(float(found.pop(part))) for part in ("on_input",) if part in found}
    if (alpha := alpha_of(layer)) is not None:
        numbers["alpha"] = torch.tensor(float(alpha))
    found.pop("alpha", None)
    return {_ENDS.get(part, part): tensor for part, tensor in (found | numbers).items() if tensor is not None}


def _folded(layers: Mapping[str, Layer], naming: Naming) -> dict[str, Layer]:
    """With the strength inside `up`: these namings have no alpha."""
    other = [name for name, layer in layers.items() if not isinstance(layer, LoraLayer) or layer.mid is not None]
    if other:
        raise LoraError(
            f"The {naming} naming has no keys for {len(other)} of {len(layers)} modules, first '{other[0]}' "
            f"({layers[other[0]].label}). Make them plain with --rank, or write kohya's naming."
        )
    components = {name.partition(".")[0] for name in layers}
    if naming == "peft" and len(components) > 1:
        raise LoraError(f"PEFT's naming holds one network, not {' and '.join(sorted(components))}. Use diffusers'.")
    plain = {name: layer for name, layer in layers.items() if isinstance(layer, LoraLayer)}
    return {name: _rescaled(layer, float(layer.rank)) for name, layer in plain.items()}


def _dotted(layers: Mapping[str, Any], naming: Naming) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        component, _, module = name.partition(".")
        inner = f"text_model.{module}" if component != "unet" and module != "text_projection" else module
        key = f"base_model.model.{inner}" if naming == "peft" else f"{component}.{inner}"
        tensors |= {f"{key}.lora_A.weight": layer.down, f"{key}.lora_B.weight": layer.up}
    return tensors


def _peft_config(layers: Mapping[str, Layer]) -> dict[str, Any]:
    ranks = {name.partition(".")[2]: layer.rank for name, layer in layers.items()}
    most = max(rank or 1 for rank in ranks.values())
    return {
        "peft_type": "LORA",
        "r": most,
        "lora_alpha": most,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": sorted(ranks),
    }
