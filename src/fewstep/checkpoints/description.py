"""What a model folder says of itself: family, noise schedule, how to sample and why. No weight is read here.

Nothing here imports torch, so that `fewstep generate` on a CPU does not wait for it.

Beside the folder's own files, `fewstep.json` (or "_fewstep" in model_index.json) may say how to sample:
{"sampler": "lcm", "steps": 4, "guidance": 1.0, "table": "linspace-lcm", "origin_steps": 50}, each key optional.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fewstep.checkpoints.files import read_json
from fewstep.checkpoints.hub import PARTS, fetch, is_hub_id
from fewstep.errors import CheckpointError, RequestError
from fewstep.models.family import Family, family_of
from fewstep.sampling.sampler import sampler_named
from fewstep.sampling.schedule import Schedule, linear, scaled_linear, zero_terminal_snr
from fewstep.sampling.timesteps import TABLES

REQUIRED = {
    "unet": ("block_out_channels", "cross_attention_dim"),
    "vae": ("block_out_channels", "latent_channels"),
    "text_encoder": ("hidden_size", "num_hidden_layers", "vocab_size"),
    "text_encoder_2": ("hidden_size", "num_hidden_layers", "vocab_size", "projection_dim"),
    "tiny_vae": ("num_encoder_blocks", "num_decoder_blocks", "latent_channels"),
}
"""Config keys whose defaults would build another network than the one that was saved."""

_EXAMPLE = "Give a .safetensors file, a diffusers model folder, or a Hub name such as owner/name"


METADATA = "metadata.json"
"""Beside model_index.json: what the single file said of itself that the folder was made from."""


FINISHES = "_fewstep_finishes"
"""In a tiny autoencoder's config: it is good enough for finished pictures (docs/log.md says how that was measured)."""


@dataclass(frozen=True)
class Sampling:
    """How a model wants to be sampled when the request does not say otherwise.

    guidance is the API's (1 = off); embedded_guidance: the UNet takes it as an input, in one prediction.
    """

    sampler: str = "dpmpp_2m"
    table: str = "linspace"
    steps: int = 20
    guidance: float = 7.5
    origin_steps: int = 50
    embedded_guidance: bool = False


@dataclass(frozen=True)
class Description:
    """A model folder before its weights; `why` says why it is sampled so; `configs` are its json files by part."""

    name: str
    path: Path
    family: Family
    schedule: Schedule
    sampling: Sampling
    why: str
    configs: Mapping[str, dict[str, Any]]
    sources: Mapping[str, Any] = field(default_factory=dict)
    """Part -> where it is, if not in `path` itself: another folder, or an opened file."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What the file said of itself, to be kept when it is written again."""
    notes: tuple[str, ...] = ()

    @property
    def tiny(self) -> str:
        """What its tiny autoencoder is good for: "" where there is none, else "previews" or "pictures"."""
        return tiny_use(self.configs)


def tiny_use(configs: Mapping[str, Mapping[str, Any]]) -> str:
    """What a model's tiny autoencoder is good for, from the configs of its parts; "" where there is none."""
    if "tiny_vae" not in configs:
        return ""
    return "pictures" if configs["tiny_vae"].get(FINISHES) is True else "previews"


def assets_path() -> Path:
    """Where the embedded model lies in the installed package."""
    return Path(__file__).resolve().parent.parent / "assets" / "pictogram"


def describe(path: str | Path | None = None) -> Description:
    """Of a diffusers folder, a Hub name, or (None) the embedded model.

    Raises CheckpointError in one sentence for whatever is wrong with its json files.
    """
    folder, name = _find(path)
    index = _model_index(folder)
    configs = {"model_index": index, "scheduler": _noise_config(folder)}
    for part in PARTS:
        if part in OPTIONAL and not OPTIONAL[part](folder, index):
            continue
        configs[part] = read_config(folder, part)
    family = family_from(configs, lambda part: folder / part / "config.json" if part else folder)
    schedule = schedule_from(configs["scheduler"], folder / "scheduler" / "scheduler_config.json")
    sampling, why = sampling_from(configs, _records(folder, index))
    path = folder / METADATA
    metadata = {key: str(value) for key, value in read_json(path).items()} if path.is_file() else {}
    return Description(name, folder, family, schedule, sampling, why, configs, metadata=metadata)


def read_config(folder: Path, part: str) -> dict[str, Any]:
    """A part's config.json, with the keys that must be there checked."""
    path = folder / part / "config.json"
    config = read_json(path)
    missing = [key for key in REQUIRED[part] if key not in config]
    if missing:
        raise CheckpointError(f"'{path}' lacks {' and '.join(missing)}: it is not a whole {part} config.")
    wrong = [key for key in REQUIRED[part] if not isinstance(config[key], (int, list)) or isinstance(config[key], bool)]
    if wrong:
        raise CheckpointError(f"'{path}' gives {config[wrong[0]]!r} for {wrong[0]!r}, where a number belongs.")
    return config


def _find(path: str | Path | None) -> tuple[Path, str]:
    """(folder, name to show)."""
    if path is None:
        if not assets_path().is_dir():
            raise CheckpointError(f"This installation carries no embedded model ('{assets_path()}'). {_EXAMPLE}.")
        return assets_path(), assets_path().name
    local = Path(path).expanduser()
    if local.is_dir():
        return local, local.resolve().name
    if not local.exists() and isinstance(path, str) and is_hub_id(path):
        return fetch(path), path
    raise CheckpointError(f"'{local}' {'is no model folder' if local.exists() else 'does not exist'}. {_EXAMPLE}.")


def _has(index: Mapping[str, Any], part: str) -> bool:
    """Does model_index.json name this part? An absent one is missing there or [null, null]."""
    named = index.get(part)
    return isinstance(named, list) and len(named) == 2 and named[1] is not None


OPTIONAL: Mapping[str, Callable[[Path, Mapping[str, Any]], bool]] = {
    "text_encoder_2": lambda folder, index: _has(index, "text_encoder_2"),
    "tiny_vae": lambda folder, index: (folder / "tiny_vae" / "config.json").is_file(),
}
"""Parts that a model may lack -> is it there?"""


def _model_index(folder: Path) -> dict[str, Any]:
    path = folder / "model_index.json"
    if not path.is_file():
        found = next(iter(sorted(folder.glob("*.safetensors"))), None)
        inside = f". Give one of its files, such as '{found}'" if found is not None else ""
        raise CheckpointError(f"'{folder}' has no model_index.json, so it is no diffusers model folder{inside}.")
    index = read_json(path)
    if _has(index, "transformer"):
        raise CheckpointError(
            f"'{folder}' is a {index.get('_class_name')}; only SD 1.5, SD 2.x, SSD-1B and SDXL are known."
        )
    missing = [part for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler") if not _has(index, part)]
    if missing:
        raise CheckpointError(
            f"'{path}' names no {' and no '.join(missing)}: only whole SD and SDXL models can be loaded."
        )
    return index


def family_from(configs: Mapping[str, dict[str, Any]], path_of: Callable[[str], Path]) -> Family:
    """The family that the configs of all parts agree on; `path_of` a part ("" for all) is named in errors."""
    try:
        family = family_of(configs["unet"])
    except CheckpointError as error:
        raise CheckpointError(f"'{path_of('unet')}': {error}") from None
    if configs["vae"]["latent_channels"] != 4:
        raise CheckpointError(f"'{path_of('vae')}': the VAE has not 4 latent channels as the UNet has.")
    encoders = [configs[part] for part in ("text_encoder", "text_encoder_2") if part in configs]
    width = sum(config["hidden_size"] for config in encoders)
    if len(encoders) != family.text_encoders or width != family.cross_attention_dim:
        raise CheckpointError(
            f"'{path_of('')}': the UNet is {family} and wants {family.text_encoders} text encoder(s) of that width in "
            f"all, but found {len(encoders)} of width {width}."
        )
    return family


def _noise_config(folder: Path) -> dict[str, Any]:
    return read_json(folder / "scheduler" / "scheduler_config.json")


def schedule_from(config: Mapping[str, Any], path: Path) -> Schedule:
    """The noise schedule that a diffusers scheduler_config.json describes; `path` only names it in errors.

    Raises CheckpointError for missing keys, unknown kinds, and a zero terminal SNR with eps-prediction.
    """
    try:
        alphas_cumprod = _alphas_cumprod(config, path)
        zero_snr = bool(config.get("rescale_betas_zero_snr", False))
        schedule = Schedule(
            zero_terminal_snr(alphas_cumprod) if zero_snr else alphas_cumprod,
            config.get("prediction_type", "epsilon"),
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"'{path}' holds values that are no noise schedule ({error}).") from None
    except CheckpointError as error:
        raise CheckpointError(str(error) if str(path) in str(error) else f"'{path}': {error}") from None
    if zero_snr and schedule.prediction == "epsilon":
        raise CheckpointError(
            f"'{path}' asks for a zero terminal SNR with eps-prediction, which cannot give a picture."
        )
    return schedule


def _alphas_cumprod(config: Mapping[str, Any], path: Path) -> tuple[float, ...]:
    if config.get("trained_betas") is not None:
        return _cumulative(config["trained_betas"])
    missing = [key for key in ("beta_start", "beta_end", "beta_schedule") if key not in config]
    if missing:
        raise CheckpointError(f"'{path}' lacks {' and '.join(missing)}: it is not the config of an SD or SDXL model.")
    kinds = {"scaled_linear": scaled_linear, "linear": linear}
    kind = config["beta_schedule"]
    if kind not in kinds:
        raise CheckpointError(f"'{path}' has the beta_schedule {kind!r}; known are {' and '.join(kinds)}.")
    return kinds[kind](config["beta_start"], config["beta_end"], int(config.get("num_train_timesteps", 1000)))


def _cumulative(betas: list[float]) -> tuple[float, ...]:
    left, out = 1.0, []
    for beta in betas:
        left *= 1 - beta
        out.append(left)
    return tuple(out)


def sampling_from(
    configs: Mapping[str, dict[str, Any]], records: Sequence[tuple[Path, Mapping[str, Any]]]
) -> tuple[Sampling, str]:
    """The sampler that the checkpoint calls for and, in words, why; `records` of other files win, the last most."""
    noise_config, embedded = configs["scheduler"], configs["unet"].get("time_cond_proj_dim") is not None
    kind = noise_config.get("_class_name")
    if kind == "TCDScheduler":
        found, why = Sampling("tcd", steps=4, guidance=1.0), "its scheduler_config.json says TCDScheduler"
    elif embedded:
        found, why = Sampling("lcm", steps=4, guidance=8.0), "its UNet has a guidance embedding"
    elif kind == "LCMScheduler":
        found, why = Sampling("lcm", steps=4, guidance=1.0), "its scheduler_config.json says LCMScheduler"
    else:
        found, why = Sampling(), "an ordinary, undistilled model"
    origin = noise_config.get("original_inference_steps", 50) if found.sampler in ("lcm", "tcd") else 50
    found = replace(found, embedded_guidance=embedded, table=sampler_named(found.sampler).table, origin_steps=origin)
    for path, record in records:
        found, why = _recorded(found, record, path), f"'{path.name}' says so"
    return found, f"sampler {found.sampler}, {found.steps} steps, guidance {found.guidance:g}: {why}"


def _records(folder: Path, index: Mapping[str, Any]) -> list[tuple[Path, Mapping[str, Any]]]:
    records: list[tuple[Path, Mapping[str, Any]]] = []
    if isinstance(index.get("_fewstep"), dict):
        records.append((folder / "model_index.json", index["_fewstep"]))
    if (folder / "fewstep.json").is_file():
        records.append((folder / "fewstep.json", read_json(folder / "fewstep.json")))
    return records


_RECORDED: dict[str, tuple[Any, int]] = {
    "sampler": (str, 0),
    "table": (str, 0),
    "steps": (int, 1),
    "guidance": ((int, float), 0),
    "origin_steps": (int, 1),
}
"""Keys of fewstep.json -> (type, least value)."""


def _recorded(found: Sampling, record: Mapping[str, Any], path: Path) -> Sampling:
    for key, value in record.items():
        if key not in _RECORDED:
            raise CheckpointError(f"'{path}' has the key {key!r}; known are {', '.join(_RECORDED)}.")
        kind, least = _RECORDED[key]
        if not isinstance(value, kind) or isinstance(value, bool) or not (isinstance(value, str) or value >= least):
            raise CheckpointError(f"'{path}' gives {value!r} for {key!r}.")
    if "sampler" in record:
        try:
            sampler = sampler_named(record["sampler"])
        except RequestError as error:
            raise CheckpointError(f"'{path}': {error}") from None
        found = replace(found, sampler=sampler.name, table=sampler.table)
    if record.get("table", found.table) not in TABLES:
        raise CheckpointError(f"'{path}' gives {record['table']!r} for 'table'; known are {', '.join(TABLES)}.")
    return replace(found, **{key: value for key, value in record.items() if key != "sampler"})
