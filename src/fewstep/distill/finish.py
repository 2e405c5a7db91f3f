"""The end of a run: write the result, read it back, compare its outputs, and refuse to call a bad one finished.

Nothing stands under the asked name before both checks have passed; until then the result is named `*.rejected.*`.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fewstep import __version__
from fewstep.checkpoints.files import write_json
from fewstep.checkpoints.load import Model, Sampling, load_model
from fewstep.checkpoints.lora import read_lora, stack_of, write_lora
from fewstep.checkpoints.save import save_model
from fewstep.data.seeds import noise_at, seed_at
from fewstep.distill.best import Best, take_best
from fewstep.distill.checkpoint import forget
from fewstep.distill.history import BEST, RESULT
from fewstep.distill.measured import measured
from fewstep.distill.page import write_report
from fewstep.distill.report import distance, rms, solve
from fewstep.distill.run import Run
from fewstep.errors import OutputError, QualityError
from fewstep.models.lora_layers import lora_state
from fewstep.models.unet import predict

TOLERANCE = 5e-3
LEAST_CHANGE = 1e-2
TRAINING = "training.json"
_PREDICTION = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}


@dataclass(frozen=True)
class Result:
    """A finished run: where it was written, and its distance to the teacher's solution beside the teacher's own.

    All at `sampling_steps` evaluations of the network: `guided` is the teacher in half as many steps, because guidance
    takes two evaluations for each (None at one step), `plain` the teacher without guidance in as many. `steps` is the
    training step whose weights these are, `last_step` where training ended, `kept_by` the figure that chose ("" where
    none did: the last).
    """

    path: Path
    steps: int
    last_step: int
    kept_by: str
    sampling_steps: int
    student: float
    guided: float | None
    plain: float
    read_back_error: float


def finish(run: Run, path: str | Path) -> Result:
    """Write the LoRA file or the full model's folder to `path`, after reading it back and judging it.

    With the recipe's `keep_best` it is the best weights that are written, and the student has them from then on.

    Raises QualityError, and leaves the result beside `path` as `.rejected`, when what is read back answers otherwise,
    or when the student at `sampling_steps` steps is not nearer to the teacher's many-step solution than the teacher
    itself by the same jumps, from the same noise, at as many evaluations of the network, guided or not; or when
    it has hardly moved from its teacher at all.
    """
    path = Path(path)
    kept = rejected_path(path, run.recipe.student)
    _prepare(path, kept, run.recipe.student)
    best = take_best(run)
    try:
        result = _written(run, path, kept, best)
    except QualityError as error:
        _conclude(run, {"refused": str(error)})
        raise
    shutil.rmtree(path, ignore_errors=True)
    kept.replace(path)
    _conclude(run, asdict(result) | measured(run) | {"path": str(path)})
    forget(run.folder)
    (run.folder / BEST).unlink(missing_ok=True)
    return result


def rejected_path(path: Path, student: str) -> Path:
    """Where a result stands until it is accepted.

    >>> rejected_path(Path("a/lcm.safetensors"), "lora").name, rejected_path(Path("a/lcm"), "full").name
    ('lcm.rejected.safetensors', 'lcm.rejected')
    """
    return (
        path.with_name(f"{path.name}.rejected")
        if student == "full"
        else path.with_name(f"{path.stem}.rejected.safetensors")
    )


def sampling_of(run: Run) -> Sampling:
    """How the result wants to be sampled."""
    recipe = run.recipe
    embedded = recipe.student == "full" and recipe.guidance_embedding > 0
    return Sampling(
        sampler=recipe.sampler,
        table=recipe.table,
        steps=recipe.sampling_steps,
        guidance=1 + recipe.w if embedded else recipe.sampling_guidance,
        origin_steps=recipe.sampling_origin_steps or recipe.origin_steps,
        embedded_guidance=embedded,
    )


def metadata_of(run: Run, step: int) -> dict[str, str]:
    """What the result says of how it was made, beside how it wants to be sampled; `step` is where its weights are of.

    In our own words, in kohya's (`ss_*`) and in ModelSpec's.
    """
    recipe, family = run.recipe, run.model.family.label
    return training_metadata(run, step) | {
        "fewstep.w": str(recipe.w),
        "fewstep.objective": recipe.objective,
        "fewstep.trained_steps": str(step),
        "fewstep.base": run.model.content_hash,
        "fewstep.recipe": json.dumps(asdict(recipe)),
        "modelspec.date": datetime.now(UTC).isoformat(timespec="seconds"),
        "modelspec.description": f"{family} in few steps: {recipe.objective.upper()} distilled from {run.model.name}.",
        "modelspec.tags": f"few-step, {recipe.objective}",
        "modelspec.prediction_type": _PREDICTION[run.model.schedule.prediction],
        "modelspec.timestep_range": f"0,{run.model.schedule.count}",
    }


def training_metadata(run: Run, step: int) -> dict[str, str]:
    """The training's values under kohya's names (sd-scripts, train_network.py), all as text."""
    recipe = run.recipe
    values = {
        "sd_model_name": run.model.name,
        "resolution": (run.size[1], run.size[0]),
        "clip_skip": None,
        "steps": step,
        "max_train_steps": recipe.steps,
        "learning_rate": recipe.learning_rate,
        "unet_lr": recipe.learning_rate,
        "text_encoder_lr": None,
        "lr_scheduler": recipe.decay,
        "lr_warmup_steps": recipe.warmup,
        "optimizer": f"torch.optim.adamw.AdamW(weight_decay={recipe.weight_decay})",
        "max_grad_norm": recipe.clip,
        "batch_size_per_device": recipe.batch,
        "total_batch_size": recipe.batch * recipe.accumulate,
        "gradient_accumulation_steps": recipe.accumulate,
        "gradient_checkpointing": recipe.checkpointing,
        "mixed_precision": "no" if recipe.precision == "float32" else "bf16",
        "loss_type": recipe.distance,
        "huber_c": recipe.huber_c,
        "caption_dropout_rate": recipe.empty_captions,
        "num_train_images": run.cache.count or 0,
        "seed": recipe.seed,
        "session_id": seed_at(recipe.seed, run.cache.fingerprint) % 2**32,
        "training_comment": f"fewstep {__version__}, objective {recipe.objective}",
    }
    return {f"ss_{key}": str(value) for key, value in values.items()}


def _written(run: Run, path: Path, kept: Path, best: Best | None) -> Result:
    write, read = _FORMS[run.recipe.student]
    step = run.step if best is None else best.step
    write(run, kept, step)
    error = _read_back_error(run, read(run, kept))
    if not error <= TOLERANCE:
        raise QualityError(
            f"'{kept}' read back answers differently (relative error {error:.2g}). The weights are kept; report this."
        )
    result = _judged(run, path, kept, error)
    return result if best is None else replace(result, steps=best.step, kept_by=best.by)


def _conclude(run: Run, result: dict[str, Any]) -> None:
    write_json(run.folder / RESULT, result)
    write_report(run.folder)


def _judged(run: Run, path: Path, kept: Path, error: float) -> Result:
    steps = run.recipe.sampling_steps
    student, plain = distance(run, "student", steps), distance(run, "plain", steps)
    guided = distance(run, "guided", steps // 2) if steps % 2 == 0 else None
    teacher = plain if guided is None else min(guided, plain)
    untouched = _has_not_moved(run, steps)
    if untouched or not student < teacher:
        found = "answers as its teacher does" if untouched else f"is {student:.4g} from its teacher's solution"
        raise QualityError(
            f"The student {found} at {steps} steps, and the teacher without training is {teacher:.4g} from it at as "
            f"many evaluations; so it is not finished, and kept as '{kept}'. Train longer, or lower learning_rate."
        )
    return Result(path, run.step, run.step, "", steps, student, guided, plain, error)


def _has_not_moved(run: Run, steps: int) -> bool:
    plain_NCHW = solve(run, "plain", steps)
    return not rms(solve(run, "student", steps) - plain_NCHW) > LEAST_CHANGE * rms(plain_NCHW)


def _prepare(path: Path, kept: Path, student: str) -> None:
    if student == "lora" and path.suffix != ".safetensors":
        raise OutputError(f"A LoRA is written as .safetensors, not as '{path.name}'. Use -o {path.stem}.safetensors.")
    if path.is_dir() != (student == "full") and path.exists():
        raise OutputError(f"'{path}' is in the way: it is a {'folder' if path.is_dir() else 'file'}. Use another name.")
    if path.is_dir() and any(path.iterdir()) and not (path / "model_index.json").is_file():
        raise OutputError(f"The folder '{path}' holds something else than a model. Use another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if kept.is_dir():
        shutil.rmtree(kept)


def _write_lora(run: Run, path: Path, step: int) -> None:
    layers = {name: (down.half(), up.half()) for name, (down, up) in lora_state(run.student.unet).items()}
    title = path.stem.removesuffix(".rejected")  # what it will be called once it is accepted
    write_lora(
        path,
        layers,
        alpha=run.recipe.alpha,
        title=title,
        metadata=metadata_of(run, step),
        sampling=sampling_of(run),
        size=run.size,
    )


def _read_lora(run: Run, path: Path) -> Any:
    base = _plain_copy(run.student.unet)
    model = replace(run.model, unet=base)
    stack_of(model).set([(read_lora(path, family=run.model.family), 1.0, 1.0)])
    return model.unet


def _write_full(run: Run, path: Path, step: int) -> None:
    save_model(_full_model(run), path)
    write_json(path / TRAINING, metadata_of(run, step))


def _read_full(run: Run, path: Path) -> Any:
    return load_model(path, device=run.model.device, dtype="fp32").unet


def _full_model(run: Run) -> Model:
    return replace(run.model, unet=run.student.unet, sampling=sampling_of(run))


_FORMS: dict[str, tuple[Callable[[Run, Path, int], None], Callable[[Run, Path], Any]]] = {
    "lora": (_write_lora, _read_lora),
    "full": (_write_full, _read_full),
}


def _plain_copy(unet: Any) -> Any:
    """The UNet as it was before adapters were injected, in memory of its own and in float32."""
    base = type(unet).from_config(dict(unet.config))
    weights = {
        name.replace(".base_layer.", "."): value for name, value in unet.state_dict().items() if ".lora_" not in name
    }
    base.load_state_dict(weights)
    return base.eval().to(next(unet.parameters()).device)


@torch.no_grad()
def _read_back_error(run: Run, unet: Any) -> float:
    """Relative RMS difference of the outputs of what was trained and what was read back, both in float32, on fixed
    inputs at four timesteps.
    """
    count = run.model.schedule.count
    t_B = torch.tensor([0, count // 3, 2 * count // 3, count - 1], device=run.device)
    z_BCHW = noise_at((4, *run.cache.shape), run.recipe.seed, "read back").to(run.device)
    text = run.cache.text([0]).expand(4).to(run.device)
    w_B = torch.full((4,), run.recipe.w, device=run.device)
    trained, found = (
        predict(network, z_BCHW, t_B, text, w_B=w_B, size=run.size) for network in (run.student.unet.float(), unet)
    )
    return float((trained - found).norm() / trained.norm())
