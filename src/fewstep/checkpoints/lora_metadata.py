"""The text inside LoRA files: what says how to sample, what says how strong, and what we write.

kohya's `ss_*`: sd-scripts, library/train_util.py. ModelSpec 1.0.1: github.com/Stability-AI/ModelSpec. `fewstep.*` is
ours: sampler, steps, guidance, table, origin_steps, w (what the student was distilled at, as in the papers: 0 = off).
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from fewstep.checkpoints.description import Sampling
from fewstep.errors import LoraError

N = TypeVar("N", int, float)

LCM_SAMPLING = Sampling(sampler="lcm", table="linspace-lcm", steps=4, guidance=1.0, origin_steps=50)
"""How every published LCM-LoRA is sampled (arXiv 2311.05556, section 4)."""

_NAME_KEYS = ("modelspec.title", "modelspec.tags", "ss_output_name")
_PROSE_KEYS = ("modelspec.usage_hint", "modelspec.description", "ss_training_comment")
_LCM_NAME = re.compile(r"(?<![a-z0-9])lcm(?![a-z0-9])", re.IGNORECASE)
_LCM_PROSE = re.compile(r"lcm[-_ ]?lora|lcm[-_ ]sampler|latent consistency", re.IGNORECASE)
_LCM_FILE = re.compile(r"lcm[-_ ]?lora", re.IGNORECASE)
_NAMELESS = "pytorch_lora_weights"
_ELSEWHERE = {"pcm": "DDIM sampler with trailing timesteps"}

_DIFFUSERS, _STABILITY = "diffusers", "https://github.com/Stability-AI/generative-models"
_ARCHITECTURES: dict[int, tuple[str, str, str, str]] = {
    # cross-attention width -> ModelSpec architecture, ModelSpec implementation, kohya base model, resolution
    768: ("stable-diffusion-v1", _DIFFUSERS, "sd_v1", "512x512"),
    1024: ("stable-diffusion-v2-768-v", _DIFFUSERS, "sd_v2", "768x768"),
    2048: ("stable-diffusion-xl-v1-base", _STABILITY, "sdxl_base_v1-0", "1024x1024"),
    160: ("fewstep-pictogram", _DIFFUSERS, "fewstep_pictogram", "128x128"),
}
_OTHER_ARCHITECTURE = ("stable-diffusion-v1", _DIFFUSERS, "sd_v1", "512x512")


def sampling_of(metadata: Mapping[str, str], path: Path) -> Sampling | None:
    """How a LoRA wants to be sampled: as our own keys say, else as an LCM-LoRA when its text or file name says so.

    None for an ordinary LoRA. Raises LoraError when one of our keys holds something else than its number.
    """
    sampler = metadata.get("fewstep.sampler")
    if sampler is None:
        return LCM_SAMPLING if _says_lcm(metadata, path) else None
    return Sampling(
        sampler=sampler,
        table=metadata.get("fewstep.table", LCM_SAMPLING.table),
        steps=_number(metadata, "fewstep.steps", LCM_SAMPLING.steps, path),
        guidance=_number(metadata, "fewstep.guidance", LCM_SAMPLING.guidance, path),
        origin_steps=_number(metadata, "fewstep.origin_steps", LCM_SAMPLING.origin_steps, path),
    )


def tensor_hash(file: BinaryIO) -> str:
    """sha256 of a safetensors file behind its header: of the tensors, not the metadata (kohya's `sshs_model_hash`)."""
    digest = hashlib.sha256()
    file.seek(8 + int.from_bytes(file.read(8), "little"))
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def legacy_hash(content: bytes) -> str:
    """kohya's `sshs_legacy_hash`: 8 hexadecimal digits of the 64 KiB that begin 1 MiB into the file."""
    return hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]


@dataclass(frozen=True)
class PeftConfigs:
    """PEFT's record of its strengths, which stands beside the tensors, not among them: component -> its config."""

    configs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def alpha(self, component: str, module: str, *, rank: int) -> float:
        """The alpha of one module, to be divided by its rank; PEFT's default where nothing is recorded is alpha = rank.

        With rsLoRA (arXiv 2312.03732) the strength is alpha / sqrt(rank), told here as an alpha of alpha * sqrt(rank).
        """
        config = self.configs.get(component, {})
        alpha = _of(config, "alpha", module, config.get("lora_alpha", config.get("alpha", rank)))  # LoHa's and LoKr's
        return float(alpha) * (rank**0.5 if config.get("use_rslora") else 1.0)

    def whole_scale(self, component: str, module: str) -> float:
        """alpha / rank of a LoKr whose factors are whole, which no shape tells: PEFT applies it, LyCORIS does not."""
        config = self.configs.get(component, {})
        rank = int(_of(config, "rank", module, config.get("r", 0)))
        return self.alpha(component, module, rank=rank) / rank if rank else 1.0

    def numbers(self, component: str, module: str, part: str, *, name: str) -> dict[str, float]:
        """What the config says of a module's `ia3_l` or `oft_R`; raises LoraError where there is no config."""
        config = self.configs.get(component)
        if not config:
            raise LoraError(
                f"'{name}' has '{part}' of the module '{module}' without PEFT's configuration, which says how it is "
                "meant. Keep its adapter_model.safetensors and adapter_config.json together."
            )
        if part == "ia3_l":
            return {"on_input": float(_is_named(module, config.get("feedforward_modules") or ()))}
        terms = config.get("num_cayley_neumann_terms", 5) if config.get("use_cayley_neumann", True) else 0
        return {"terms": float(terms), "bound": float(config.get("eps", 6e-5)) if config.get("coft") else 0.0}


def _of(config: Mapping[str, Any], what: str, module: str, usual: Any) -> Any:
    """The entry of `alpha_pattern` or `rank_pattern` for this module, else the usual one."""
    for pattern, own in (config.get(f"{what}_pattern") or {}).items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern.replace('text_model.', '')})", module):
            return own
    return usual


def _is_named(module: str, names: Any) -> bool:
    """PEFT's rule for lists of modules: a pattern for the whole name, or names that it ends in."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def peft_configs(metadata: Mapping[str, str], path: Path) -> PeftConfigs:
    """From diffusers' metadata key, else from PEFT's `adapter_config.json` beside its `adapter_model.safetensors`.

    Raises LoraError when the record cannot be read.
    """
    text = metadata.get("lora_adapter_metadata")
    beside = path.with_name("adapter_config.json")
    try:
        if text is None:
            if not (path.stem == "adapter_model" and beside.is_file()):
                return PeftConfigs()
            text = beside.read_text(encoding="utf-8")
        return PeftConfigs({name: _checked(config) for name, config in _by_component(json.loads(text)).items()})
    except (OSError, ValueError, AttributeError, TypeError, RecursionError, re.error):
        raise LoraError(
            f"'{path.name}' has a PEFT configuration that cannot be read, so its strength is unknown. Get it again."
        ) from None


def required_metadata(
    *,
    title: str,
    alpha: float,
    ranks: set[int],
    convolutions: bool,
    width: int | None,
    size: tuple[int, int] | None = None,
) -> dict[str, str]:
    """The keys other programs look for: kohya's minimum, by which A1111 knows the family, and what ModelSpec demands.

    `width` is the cross-attention width, or None for a LoRA that does not touch the cross-attention; `size` the height
    and width in pixels it was trained at, the family's usual one where that is not known.
    """
    architecture, implementation, base, resolution = _ARCHITECTURES.get(width or 0, _OTHER_ARCHITECTURE)
    resolution = resolution if size is None else f"{size[1]}x{size[0]}"
    rank = str(ranks.copy().pop()) if len(ranks) == 1 else "Dynamic"
    arguments = {"conv_dim": rank, "conv_alpha": f"{alpha:g}"} if convolutions else {}
    return {
        "ss_v2": str(base == "sd_v2"),
        "ss_base_model_version": base,
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": f"{alpha:g}",
        "ss_network_args": json.dumps(arguments),
        "ss_output_name": title,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": implementation,
        "modelspec.title": title,
        "modelspec.resolution": resolution,
    }


def usage_metadata(sampling: Sampling) -> dict[str, str]:
    """`sampling` in our own keys, and in words for people who use other programs."""
    return {
        "fewstep.sampler": sampling.sampler,
        "fewstep.steps": str(sampling.steps),
        "fewstep.guidance": f"{sampling.guidance:g}",
        "fewstep.table": sampling.table,
        "fewstep.origin_steps": str(sampling.origin_steps),
        "modelspec.usage_hint": usage_hint(sampling),
    }


def usage_hint(sampling: Sampling) -> str:
    """How to sample, for people who use other programs; PCM's deterministic steps are DDIM's there.

    >>> usage_hint(LCM_SAMPLING)
    'LCM sampler, 4 steps, CFG 1'
    """
    sampler = _ELSEWHERE.get(sampling.sampler, f"{sampling.sampler.upper()} sampler")
    return f"{sampler}, {sampling.steps} steps, CFG {sampling.guidance:g}"


def _says_lcm(metadata: Mapping[str, str], path: Path) -> bool:
    # The published files are all called pytorch_lora_weights: their folder has the name, or the Hub's cache above it.
    folders = path.absolute().parents[:3] if path.stem == _NAMELESS else ()
    names = [path.stem, *(folder.name for folder in folders)]
    return (
        any(_LCM_NAME.search(metadata.get(key, "")) for key in _NAME_KEYS)
        or any(_LCM_PROSE.search(metadata.get(key, "")) for key in _PROSE_KEYS)
        or any(_LCM_FILE.search(name) for name in names)
    )


def _number(metadata: Mapping[str, str], key: str, default: N, path: Path) -> N:
    try:
        return type(default)(metadata.get(key, default))
    except ValueError:
        found = metadata[key]
        raise LoraError(f"'{path.name}' says {key} = '{found}', which is not a number. Correct its metadata.") from None


def _by_component(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{"unet.r": 4, "text_encoder.r": 8} or {"r": 4} -> {"unet": {"r": 4}, ...}; without a prefix it is for all."""
    return {
        name: {key.removeprefix(f"{name}."): value for key, value in config.items() if _concerns(key, name)}
        for name in ("unet", "text_encoder", "text_encoder_2")
    }


def _checked(config: dict[str, Any]) -> dict[str, Any]:
    """The same config; raises where a strength is not a number or a pattern is not one."""
    for what in ("alpha_pattern", "rank_pattern"):
        patterns: dict[str, Any] = config.get(what) or {}
        for pattern, number in patterns.items():
            re.compile(pattern)
            float(number)
    for number in ("lora_alpha", "alpha", "r", "eps", "num_cayley_neumann_terms"):
        float(config.get(number) or 0)
    return config


def _concerns(key: str, component: str) -> bool:
    return "." not in key or key.startswith(f"{component}.")
