"""A single file as a model: what its shapes and its metadata say, and what a base or another VAE completes it with.

Prediction, in this order: the user's word, `modelspec.prediction_type`, what this package recorded, a `v_pred` tensor
(NoobAI and others; `ztsnr` beside it means zero terminal SNR), and for SD 2.x the spread of one bias, by which ComfyUI
tells v (above 0.09) from eps: a guess, which the notes say.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fewstep.checkpoints import files
from fewstep.checkpoints.description import Description, describe, family_from, sampling_from, schedule_from
from fewstep.checkpoints.lora_metadata import sampling_of
from fewstep.checkpoints.shapes import text_config, unet_config, vae_config
from fewstep.checkpoints.single import CONFIGS, MERGES, PADS, SingleFile, open_single
from fewstep.checkpoints.vocabulary import MARKS, clip_merges
from fewstep.errors import CheckpointError, RequestError

PREDICTIONS = {
    "eps": "epsilon", "epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction", "sample": "sample",
}  # fmt: skip
_GUESSED = {
    "attention_head_dim", "addition_time_embed_dim", "sample_size", "scaling_factor", "num_attention_heads",
    "hidden_act", "projection_dim", "bos_token_id", "eos_token_id", "pad_token_id",
}  # fmt: skip
"""Config keys that shapes do not tell: what the file recorded is believed for these, and for no key that they do."""

_SPREAD = ("up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias", 0.09)
_NOISE = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
_SAID = re.compile(r"(?i)(?<![a-z])lcm|lcm(?![a-z])")


def describe_model(
    path: str | Path | None = None,
    *,
    base: str | Path | None = None,
    vae: str | Path | None = None,
    tiny_vae: str | Path | None = None,
    prediction: str | None = None,
    trust_pickle: bool = False,
) -> Description:
    """Of a file, a folder, a Hub name or (None) the embedded model, before its weights.

    base lends what a file lacks (a UNet alone has neither text encoder nor VAE); vae replaces the VAE, by a file or
    a model; tiny_vae lends a tiny one (TAESD) for previews and live pictures; prediction ("eps", "v") corrects what the
    file says or does not.

    Raises CheckpointError in one sentence for whatever is wrong with the files, RequestError for prediction.
    """
    if prediction is not None and prediction not in PREDICTIONS:
        raise RequestError(f"There is no prediction {prediction!r}. Use eps or v.")
    local = None if path is None else Path(path).expanduser()
    if local is not None and (local.is_file() or local.suffix.lower() in (".safetensors", *files.PICKLES)):
        found = _describe_file(local, base, prediction, trust_pickle=trust_pickle)
    elif base is not None:
        raise RequestError(f"'{path}' is a whole model already: a base is for a file that lacks a part. Leave it out.")
    else:
        found = describe(path)
    if prediction is not None:
        noise_config = found.configs["scheduler"] | {"prediction_type": PREDICTIONS[prediction]}
        schedule = schedule_from(noise_config, found.path)
        found = replace(found, configs={**found.configs, "scheduler": noise_config}, schedule=schedule)
    found = found if vae is None else _with_vae(found, "vae", vae)
    return found if tiny_vae is None else _with_vae(found, "tiny_vae", tiny_vae)


def _describe_file(path: Path, base: str | Path | None, prediction: str | None, *, trust_pickle: bool) -> Description:
    file = open_single(path, trust_pickle=trust_pickle)
    if "unet" not in file.parts:
        parts = " and ".join(part.replace("_", " ") for part in sorted(file.parts))
        hint = ": give it as vae= (--vae) beside a model" if set(file.parts) == {"vae"} else ""
        raise CheckpointError(f"'{path}' holds a {parts.replace('vae', 'VAE')} and no UNet, so it is no model{hint}.")
    recorded = _recorded(file)
    configs = _configs(file, recorded)
    xl = configs["unet"]["addition_embed_type"] is not None
    wanted = ["vae", "text_encoder", *(["text_encoder_2"] if xl else [])]
    sources: dict[str, Any] = dict.fromkeys(file.parts, file)
    missing = [part for part in wanted if part not in file.parts]
    lent, borrowed = _borrowed(file, missing, base, configs["unet"]["cross_attention_dim"])
    configs |= {part: config for part, config in lent.items() if part not in configs}
    sources |= borrowed
    noise, why_noise = _noise_config(file, recorded, configs["unet"], prediction)
    configs["scheduler"] = noise
    configs["model_index"] = recorded.get("model_index") or _index(xl=xl, channels=configs["unet"]["in_channels"])
    _check_tokens(file, configs, sources)
    family = family_from(configs, lambda part: path)
    sampling, why = sampling_from(configs, _sampling_records(file, configs))
    schedule = schedule_from(noise, path)
    kept = {key: value for key, value in file.metadata.items() if key not in ("format", CONFIGS, MERGES, PADS)}
    notes = (*file.notes, *why_noise)
    return Description(path.stem, path, family, schedule, sampling, why, configs, sources, kept, notes)


def _recorded(file: SingleFile) -> dict[str, dict[str, Any]]:
    """The configs that this package wrote into the file."""
    try:
        found = json.loads(file.metadata.get(CONFIGS, "{}"))
        return {str(part): dict(config) for part, config in dict(found).items()}
    except (ValueError, TypeError, RecursionError):
        raise CheckpointError(f"'{file.path}' has metadata '{CONFIGS}' that cannot be read. Get it again.") from None


def _configs(file: SingleFile, recorded: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of the parts that the file holds; raises CheckpointError when a part is not whole."""
    configs: dict[str, dict[str, Any]] = {}
    shapes = {part: file.part_shapes(part) for part in file.parts}
    xl = "add_embedding.linear_1.weight" in shapes.get("unet", {})
    pooled = shapes.get("text_encoder_2", {}).get("text_projection.weight", (None,))[0]
    makers = {
        "unet": lambda found: unet_config(found, pooled=pooled),
        "vae": lambda found: vae_config(found, xl=xl),
        "text_encoder": lambda found: text_config(found, open_clip=file.open_clip("text_encoder")),
        "text_encoder_2": lambda found: text_config(found, open_clip=True),
    }
    for part, found in shapes.items():
        try:
            told, said = makers[part](found), recorded.get(part, {})
        except (KeyError, IndexError, ValueError, StopIteration, TypeError) as error:
            raise CheckpointError(
                f"'{file.path}' holds a {part.replace('_', ' ')} that is not whole ({type(error).__name__}: {error}): "
                "it is damaged, or of another kind of model."
            ) from None
        configs[part] = told | said | {key: value for key, value in told.items() if key not in _GUESSED}
    return configs


def _borrowed(
    file: SingleFile, missing: list[str], base: str | Path | None, width: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(configs, sources) of what the file lacks, and of a tokenizer of the base's own; `width` is the text's."""
    if not missing and base is None:
        return {}, {}
    what = " and ".join(part.replace("_", " ").replace("vae", "VAE") for part in missing)
    if base is None:
        raise CheckpointError(
            f"'{file.path}' lacks its {what}: give a model of its family to take that from, as base= (--base)."
        )
    lender = describe_model(base)
    parts = [*missing, *(["tokenizer"] if "text_encoder" in missing or not _has_vocabulary(file) else [])]
    if lender.family.cross_attention_dim != width or any(part not in lender.configs for part in missing):
        raise CheckpointError(
            f"'{file.path}' reads text of width {width}, and the base '{base}' is {lender.family}: give a model of the "
            "file's own family."
        )
    configs = {part: lender.configs[part] for part in missing}
    tokens = lender.sources.get("text_encoder", lender.path)
    return configs, {part: lender.sources.get(part, tokens) for part in parts}


def _has_vocabulary(file: SingleFile) -> bool:
    rows = file.part_shapes("text_encoder").get("text_model.embeddings.token_embedding.weight", (0,))[0]
    return MERGES in file.metadata or rows == len(clip_merges()) + 512 + len(MARKS)


def _noise_config(
    file: SingleFile, recorded: Mapping[str, dict[str, Any]], unet: dict[str, Any], asked: str | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(scheduler_config.json, why it predicts what it does where that is not certain)."""
    known, spec = recorded.get("scheduler"), file.metadata.get("modelspec.prediction_type")
    notes: tuple[str, ...] = ()
    if asked is not None:
        prediction = PREDICTIONS[asked]
    elif spec in PREDICTIONS:
        prediction = PREDICTIONS[spec]
    elif known is not None:
        prediction = known.get("prediction_type", "epsilon")
    elif "v_pred" in file.shapes:
        prediction = "v_prediction"
    else:
        prediction, notes = _guess(file, unet)
    zero = {"rescale_betas_zero_snr": True} if "ztsnr" in file.shapes and prediction == "v_prediction" else {}
    if known is None:
        unet.setdefault("sample_size", _size(unet, prediction))
    return (known or _NOISE | zero) | {"prediction_type": prediction}, notes


def _guess(file: SingleFile, unet: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """SD 2.x alone comes in both kinds without a mark; its inpainting model is eps."""
    name, limit = _SPREAD
    sd2 = unet["use_linear_projection"] and unet["addition_embed_type"] is None
    if not sd2 or unet["in_channels"] != 4 or name not in file.parts["unet"]:
        return "epsilon", ()
    spread = float(file.read_one("unet", name).float().std(correction=0))
    prediction = "v_prediction" if spread > limit else "epsilon"
    short = "v" if spread > limit else "eps"
    return prediction, (f"taken for {short}-prediction by its weights; if pictures are noise, say --prediction",)


def _size(unet: Mapping[str, Any], prediction: str) -> int:
    """What latents the published models were trained at: SD 2.x at 768 px where it predicts v."""
    if unet["addition_embed_type"] is not None:
        return 128
    return 96 if unet["use_linear_projection"] and prediction == "v_prediction" else 64


def _index(*, xl: bool, channels: int) -> dict[str, Any]:
    inpaint = "Inpaint" if channels == 9 else ""
    if xl:
        return {"_class_name": f"StableDiffusionXL{inpaint}Pipeline", "force_zeros_for_empty_prompt": True}
    absent = {part: [None, None] for part in ("safety_checker", "feature_extractor", "image_encoder")}
    return {"_class_name": f"StableDiffusion{inpaint}Pipeline", "requires_safety_checker": False, **absent}


def _check_tokens(file: SingleFile, configs: Mapping[str, dict[str, Any]], sources: Mapping[str, Any]) -> None:
    if "tokenizer" not in sources and not _has_vocabulary(file):
        rows = configs["text_encoder"]["vocab_size"]
        raise CheckpointError(
            f"'{file.path}' has a text encoder of {rows} tokens, which is not CLIP's vocabulary: give the model that "
            "its tokenizer is from as base= (--base)."
        )


def _sampling_records(file: SingleFile, configs: Mapping[str, dict[str, Any]]) -> list[tuple[Path, Mapping[str, Any]]]:
    """From the metadata; of a file without any, from its name, where distilled checkpoints say LCM."""
    said = sampling_of(file.metadata, file.path)
    if "fewstep.sampler" not in file.metadata:
        embedded = configs["unet"]["time_cond_proj_dim"] is not None
        lcm = not embedded and (said is not None or _SAID.search(file.path.stem))
        return [(file.path, {"sampler": "lcm", "steps": 4, "guidance": 1.0})] if lcm else []
    if said is None:
        return []
    names = ("sampler", "table", "steps", "guidance", "origin_steps")
    return [(file.path, {name: getattr(said, name) for name in names})]


def _with_vae(found: Description, part: str, vae: str | Path) -> Description:
    """The same model with another autoencoder as its part: a VAE's file, a whole checkpoint's, or a model folder's.

    Only AutoencoderTiny may be the "tiny_vae".
    """
    path = Path(vae).expanduser()
    if path.is_dir() and (path / "config.json").is_file():
        raise CheckpointError(f"'{path}' is a part's folder: give the .safetensors file in it, or the model's folder.")
    if path.is_file() or path.suffix.lower() == ".safetensors":
        file = open_single(path)
        if "vae" not in file.parts:
            raise CheckpointError(f"'{path}' holds no VAE. Give a VAE's file or a checkpoint that has one.")
        said = _recorded(file).get("vae", {})
        told = vae_config(file.part_shapes("vae"), xl=found.family.text_encoders == 2)
        config, source = told | said | {key: value for key, value in told.items() if key not in _GUESSED}, file
    else:
        lender = describe(vae)
        config, source = lender.configs.get(part, lender.configs["vae"]), lender.path
    if part == "tiny_vae" and config.get("_class_name") != "AutoencoderTiny":
        raise CheckpointError(f"'{path}' is no tiny autoencoder (TAESD). Give it as vae= (--vae), or get taesd's file.")
    configs = {**found.configs, part: config}
    family_from(configs, lambda part: path)
    return replace(found, configs=configs, sources={**found.sources, part: source})
