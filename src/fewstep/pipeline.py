"""Requests in, pictures out: one pipeline for text to image, image to image and inpainting.

The task is inferred from what is given; every task is the same loop over `fewstep.sampling.sample`. What touches arrays
stands in a `Runner`.

Shapes: B pictures, C 4 latent channels, H and W latent height and width (pixels / 8).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from PIL import Image

from fewstep import __version__, second
from fewstep.checkpoints.lora_apply import Strength
from fewstep.checkpoints.outline import Outline, open_outline
from fewstep.checkpoints.search import file_hash
from fewstep.checkpoints.shelves import EmbeddingShelf, LoraShelf, find_lora, mentions
from fewstep.conditioning import conditioned
from fewstep.denoising import begin
from fewstep.errors import LoraError, RequestError
from fewstep.image import paste_back
from fewstep.infotext import Picture, write
from fewstep.plan import Defaults, Plan, SamplingDefaults, Start, number_text, plan_of
from fewstep.prompt.tags import LoraTag, split_lora_tags
from fewstep.request import Request, request_of
from fewstep.runners import Runner, open_model, runner_of
from fewstep.sampling.sampler import Denoiser, Step, evaluations, sample

if TYPE_CHECKING:
    from fewstep.backends.onnx_model import OnnxModel
    from fewstep.checkpoints.load import Model
    from fewstep.checkpoints.lora_read import Lora

Array: TypeAlias = Any
LoraPath: TypeAlias = "str | Path"
LoraChoice: TypeAlias = "bool | LoraPath | tuple[LoraPath, float] | Sequence[LoraPath | tuple[LoraPath, float]] | None"
Sources: TypeAlias = "LoraPath | Sequence[LoraPath] | None"


@dataclass(frozen=True)
class PictureStep:
    """One model evaluation of a batch: z0 is what the model now sees, z the latents that go on.

    `first` is the number of the batch's first picture in its plan; the timesteps are those of the sampler's step.
    """

    step: Step
    first: int
    plan: Plan
    finish: Callable[..., list[Picture]]

    @property
    def index(self) -> int:
        """Which step this is, from 0."""
        return self.step.index

    @property
    def count(self) -> int:
        """How many steps there are."""
        return self.step.count

    @property
    def last(self) -> bool:
        """Whether these pictures are done."""
        return self.step.index + 1 == self.step.count

    def preview(self) -> list[Picture]:
        """The pictures as the model predicts them at this step: by the tiny autoencoder where there is one, else each
        latent as a colour; no model evaluation.
        """
        return self.finish(self.step.z0, self.first, preview=True)

    def pictures(self) -> list[Picture]:
        """The pictures as they stand after this step; after the last one they are the result."""
        return self.finish(self.step.z, self.first)


class Pipeline:
    """A model with its LoRAs, ready to paint.

    `batch` pictures are computed at once: 1 on a CPU, where a picture is then bit for bit the same alone or as one of
    many, and 8 elsewhere (1 under a memory plan that is not full), where the order of a sum may move a pixel by one or
    two of 255. `lora_folder` is where the names in prompts are looked up, `embeddings` are textual inversions: files,
    or folders of them. `hires` is another pipeline, which paints the second pass where a request has one; it may have
    the same model with other LoRAs.
    `source` are the keywords of `load`, as plain values, that make this pipeline again elsewhere.
    """

    def __init__(
        self,
        model: Model | OnnxModel | Outline,
        loras: LoraChoice = None,
        *,
        batch: int | None = None,
        lora_folder: str | Path | None = None,
        embeddings: Sources = None,
        hires: Pipeline | None = None,
    ) -> None:
        self.model, self.hires = cast("Model | OnnxModel", model), hires
        self._lora_shelf = None if lora_folder is None else LoraShelf(lora_folder)
        self._embedding_shelf = EmbeddingShelf(_sources(embeddings))
        self.runner: Runner = runner_of(model)
        self.batch = batch or self.runner.at_once
        self.source: dict[str, Any] = {}
        self.loras: tuple[tuple[Lora, float], ...] = ()
        self._read: dict[Path, Lora] = {}
        self.set_loras(loras)

    def __call__(self, prompt: str | Request, **fields: Any) -> Picture | list[Picture]:
        """Paints: one picture, or a list where `count` is above 1. The keywords are the fields of `Request`.

        Every picture carries its settings (`info["parameters"]`), also into the file it is saved to.

        Raises:
            RequestError, ImageError, LoraError: what was asked cannot be done; nothing was computed yet.
        """
        request = prompt.replaced(**fields) if isinstance(prompt, Request) else request_of({"prompt": prompt, **fields})
        pictures = [picture for step in self.steps(request) if step.last for picture in step.pictures()]
        return pictures[0] if request.count == 1 else pictures

    def steps(self, request: Request) -> Iterator[PictureStep]:
        """The same, step by step: for previews, progress, and stopping early. Batches follow one another."""
        plan = self.plan(request)
        for note in plan.notes:
            warnings.warn(note, UserWarning, stacklevel=3)
        return self.run(plan)

    def plan(self, request: Request) -> Plan:
        """The request with this model's defaults filled in, its pictures opened, and notes on what has no effect."""
        plan = self.plan_pass(request)
        return self._with_second(plan) if request.hires else plan

    def plan_pass(self, request: Request, start: Start | None = None) -> Plan:
        """As `plan`, of one pass alone; `start` stands in for the request's own size and strength."""
        loras = self._with_tags(split_lora_tags(request.validated().prompt)[1])
        plan = plan_of(request, self._defaults(loras), start)
        of_loras = (note for lora, _ in loras for note in lora.notes)
        return replace(plan, notes=(*plan.notes, *of_loras))

    def _with_second(self, plan: Plan) -> Plan:
        """Both passes: each follows the sampling defaults of its own model and LoRAs, where nothing else is asked."""
        other = self.hires or self
        tags = split_lora_tags(plan.request.hires_prompt or plan.request.prompt)[1]
        both = self._defaults(self._with_tags(plan.tags)), other._defaults(other._with_tags(tags))
        same = both[0].sampling == both[1].sampling and both[0].embedded == both[1].embedded
        asked, start = second.second_request(plan, same=same), second.second_start(plan, other.model.family)
        later, families = other.plan_pass(asked, start), (self.model.family, other.model.family)
        facts = {} if other is self else second.other_facts(self.facts(), other.facts())
        return second.with_second(plan, later, families, same=same, facts=facts)

    def run(self, plan: Plan) -> Iterator[PictureStep]:
        """Carries a plan out. Use one run at a time: LoRAs are merged into the one model."""
        alone = plan.sampler.alone or (plan.hires is not None and plan.hires.sampler.alone)
        batch = 1 if alone else self.batch
        for first in range(0, plan.request.count, batch):
            yield from self._paint(plan, first, min(batch, plan.request.count - first))

    def _paint(self, plan: Plan, first: int, count: int) -> Iterator[PictureStep]:
        """One batch through the first pass and, if there is one, the second; their steps are counted together."""
        other, step, later = self.hires or self, None, 0
        if plan.hires is not None:
            later = evaluations(plan.hires.sampler, other.model.schedule, plan.hires.timesteps)
        for step in self._denoise(plan, first, count):
            counted = replace(step, count=step.count + later)
            yield PictureStep(counted, first, plan, partial(self.finish, plan, runner=self.runner))
        if plan.hires is None or step is None:
            return
        known_BCHW, done = second.enlarge((self.runner, other.runner), plan, step.z), step.index + 1
        for step in other._denoise(plan.hires, first, count, known_BCHW):
            counted = replace(step, index=done + step.index, count=done + step.count)
            yield PictureStep(counted, first, plan, partial(self.finish, plan, runner=other.runner))

    def _denoise(self, plan: Plan, first: int, count: int, known_BCHW: Array | None = None) -> Iterator[Step]:
        denoiser = self.denoiser(plan)
        begun = begin(self.runner, self.model.schedule, plan, first, count, known_BCHW)
        return sample(begun.keeping(denoiser), begun.z_BCHW, plan.timesteps, **begun.how)

    def denoiser(self, plan: Plan) -> Denoiser:
        """The network for one pass of a plan, with the LoRAs and the embeddings that its prompts name."""
        self.use_loras(plan)
        return second.windowed(conditioned(self.runner, plan, self._embeddings(plan)), plan, self.batch)

    def use_loras(self, plan: Plan) -> None:
        """Make the model carry the LoRAs of the pipeline and of the plan's prompt, and no others."""
        self.runner.set_loras(self._with_tags(plan.tags))

    @property
    def sampling(self) -> SamplingDefaults:
        """How the model with its LoRAs wants to be sampled."""
        return self._defaults(self._with_tags(())).sampling

    def lora_state(self, plan: Plan) -> Hashable:
        """What tells one state of the model from another: the LoRAs that `use_loras` gives it."""
        return id(self.model), tuple((lora.path, strength) for lora, strength in self._with_tags(plan.tags))

    def tokens(self, plan: Plan) -> dict[str, dict[str, int]]:
        """How long a plan's prompts are: tokens without marks, and the chunks that they are read in, at the most."""
        found, embeddings = {}, self._embeddings(plan)
        negatives = [stage.negative for stage in plan.stages] if plan.guided else []
        positives = [part.words for stage in plan.stages for part in stage.parts]
        for name, texts in (("prompt", positives), ("negative_prompt", negatives)):
            read = [self.model.text.chunks(text, plan.request.emphasis, embeddings) for text in dict.fromkeys(texts)]
            if read:
                tokens = max(sum(len(chunk.ids) for chunk in chunks) for chunks in read)
                found[name] = {"tokens": tokens, "chunks": max(map(len, read))}
        return found

    def set_loras(self, loras: LoraChoice) -> None:
        """Replaces the LoRAs: a path, a (path, weight) pair, or a list of them; None, False or () for none.

        Raises:
            LoraError: a file is missing, damaged, or made for another family.
        """
        found = tuple((self._lora(path), weight) for path, weight in lora_pairs(loras))
        paths = [lora.path for lora, _ in found]
        if twice := next((path for path in paths if paths.count(path) > 1), None):
            raise RequestError(f"The LoRA '{twice}' was given twice. Give it once, with the sum of the weights.")
        self.runner.set_loras([(lora, weight, weight) for lora, weight in found])
        self.loras = found

    def outline(self) -> Pipeline:
        """The same without weights: it plans, while the model may leave the memory."""
        found, model = copy(self), self.model
        about = model.name, model.path, model.family, model.schedule, model.sampling, model.notes, model.tiny
        outline = Outline(*about)
        found.model, found.runner = cast("Model | OnnxModel", outline), runner_of(outline)
        found.hires = None if self.hires is None else self.hires.outline()
        return found

    def lora_names(self) -> dict[str, str]:
        """The LoRAs that prompts may name, those of the folder read anew and the pipeline's own, each with the name it
        was trained under.
        """
        shelf = None if self._lora_shelf is None else LoraShelf(self._lora_shelf.folder)
        self._lora_shelf = shelf
        return {**({} if shelf is None else shelf.names()), **{lora.name: lora.name for lora, _ in self.loras}}

    @property
    def notes(self) -> tuple[str, ...]:
        """What was chosen and why, one sentence each."""
        return (*self.model.notes, *(f"LoRA {lora.name} at weight {weight:g}" for lora, weight in self.loras))

    def _lora(self, path: LoraPath) -> Lora:
        found = find_lora(path, self.model.path, self._lora_shelf)
        if found not in self._read:
            self._read[found] = self.runner.read_lora(found)
        return self._read[found]

    def _embeddings(self, plan: Plan) -> dict[str, dict[str, Array]]:
        """Those that the plan's prompts name, of the pipeline's own and of its LoRAs'."""
        texts = {text for stage in plan.stages for text in (stage.negative, *(part.words for part in stage.parts))}
        loras = [lora for lora, strength in self._with_tags(plan.tags) if strength]
        brought = {embedding.name: embedding.vectors for lora in loras for embedding in lora.embeddings}
        named = {name: found for name, found in brought.items() if any(mentions(text, name) for text in texts)}
        return {**named, **self._embedding_shelf.named_in(texts)}

    def _with_tags(self, tags: Sequence[LoraTag]) -> list[tuple[Lora, Strength]]:
        """The pipeline's LoRAs and the prompt's: a tag that names one of ours changes its weights for this picture."""
        wanted = {lora.path: (lora, Strength(weight, weight)) for lora, weight in self.loras}
        for tag in tags:
            lora = next((lora for lora, _ in self.loras if lora.name == tag.name), None) or self._tagged(tag.name)
            wanted[lora.path] = (lora, Strength(tag.weight_unet, tag.weight_text, tag.weight_text_2, tag.blocks))
        return list(wanted.values())

    def _tagged(self, name: str) -> Lora:
        """A prompt may come from somebody else, so it may name LoRAs but no paths."""
        if any(mark in name for mark in "/\\") or name.startswith((".", "~")):
            raise LoraError(f"The prompt's LoRA '{name}' is a path. Write only its name, such as <lora:ink:0.8>.")
        return self._lora(name)

    def _defaults(self, loras: Sequence[tuple[Lora, Strength]]) -> Defaults:
        """The model's way of sampling, or that of the last few-step LoRA that has any weight."""
        own = [lora.sampling for lora, strength in loras if strength and lora.sampling is not None]
        embedded = self.model.sampling.embedded_guidance
        sampling = own[-1] if own and not embedded else self.model.sampling
        family = self.model.family
        xl, tiny = family.text_encoders > 1, self.model.tiny
        return Defaults(sampling, embedded, family.size_px, self.model.schedule, xl=xl, tiny=tiny)

    @cached_property
    def _model_hash(self) -> str:
        return self.model.content_hash

    @cached_property
    def _vae(self) -> dict[str, str]:
        path = self.model.vae_path
        return {} if path is None else {"VAE hash": file_hash(path)[:10] if path.is_file() else "", "VAE": path.name}

    def facts(self, tags: Sequence[LoraTag] = ()) -> dict[str, str]:
        """What every picture of this pipeline records beside its plan; `tags` are those of its prompt."""
        used = sorted((lora.name, lora.short_hash) for lora, how in self._with_tags(tags) if how.unet or how.text)
        return {
            "Model hash": self._model_hash,
            "Model": self.model.name,
            **self._vae,
            "Loras": ", ".join(f"{lora.name}: {number_text(weight)}" for lora, weight in self.loras if weight),
            "Lora hashes": ", ".join(f"{name}: {digest}" for name, digest in used),
            "Device": self.model.device.split(":")[0],
            "Precision": str(self.model.dtype).removeprefix("torch."),
            "Version": f"fewstep {__version__}",
        }

    def _embedding_facts(self, plan: Plan) -> dict[str, str]:
        found = {name: self._embedding_shelf.hash(name) for name in self._embeddings(plan)}
        return {"TI hashes": ", ".join(f"{name}: {digest}" for name, digest in found.items() if digest)}

    def finish(self, plan: Plan, z_BCHW: Array, first: int, runner: Runner, *, preview: bool = False) -> list[Picture]:
        """Latents as pictures with their settings; `first` is the number of the first in its plan, `runner` whose
        autoencoder it takes.
        """
        own = plan if plan.hires is None or runner is self.runner else plan.hires
        how = {"tile": plan.request.tile, "tiny": own.tiny}
        pixels_BHWC = second.preview(runner, z_BCHW) if preview else second.decode(runner, z_BCHW, **how)
        images = [Image.fromarray(pixels_HWC) for pixels_HWC in pixels_BHWC]
        if plan.image is not None and plan.mask is not None:
            images = [paste_back(image, plan.image, plan.mask) for image in images]
        facts = self.facts(plan.tags) | self._embedding_facts(plan)
        texts = [write(plan.infotext(first + offset, facts)) for offset in range(len(images))]
        return [Picture.of(image, text) for image, text in zip(images, texts, strict=True)]


def lora_pairs(loras: LoraChoice) -> list[tuple[LoraPath, float]]:
    """Every way of naming LoRAs, as a list of (path, weight).

    >>> lora_pairs("ink"), lora_pairs(("ink", 0.5)), lora_pairs(["ink", ("fox", 2)]), lora_pairs(False)
    ([('ink', 1.0)], [('ink', 0.5)], [('ink', 1.0), ('fox', 2.0)], [])

    Raises:
        RequestError: something else, or a weight that is not a number.
    """
    if loras is None or loras is False:
        return []
    if isinstance(loras, (str, Path)) or (isinstance(loras, tuple) and len(loras) == 2 and _is_number(loras[1])):
        return [_pair(loras)]
    if isinstance(loras, bool) or not isinstance(loras, Sequence):
        raise RequestError(f"lora is {loras!r}. Give a path, a (path, weight) pair, a list of them, or False for none.")
    return [_pair(entry) for entry in loras]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _pair(entry: Any) -> tuple[LoraPath, float]:
    path, weight = entry if isinstance(entry, tuple) and len(entry) == 2 else (entry, 1.0)
    if not isinstance(path, (str, Path)) or not _is_number(weight) or not isfinite(weight):
        raise RequestError(f"{entry!r} is no LoRA. Give a path, or a (path, weight) pair with a finite weight.")
    return path, float(weight)


def _sources(embeddings: Sources) -> Sequence[LoraPath]:
    return (embeddings,) if isinstance(embeddings, (str, Path)) else embeddings or ()


def load(
    path: str | Path | None = None,
    *,
    lora: LoraChoice = None,
    device: str | None = None,
    dtype: str | None = None,
    backend: str | None = None,
    lora_folder: LoraPath | None = None,
    embeddings: Sources = None,
    memory: str = "auto",
    memory_limit: float | None = None,
    weights: bool = True,
    **parts: Any,
) -> Pipeline:
    """See `fewstep.load`; `parts` are its base, vae, tiny_vae and prediction. Without `weights` it only plans."""
    lora_pairs(lora)
    how = {"device": device, "dtype": dtype, "backend": backend, "memory": memory, "memory_limit": memory_limit}
    by_torch = bool(_sources(embeddings))
    model = open_model(path, **how, by_torch=by_torch, **parts) if weights else open_outline(path, **parts)
    own = own_loras(path) if lora is None else lora
    pipe = Pipeline(model, own, lora_folder=lora_folder, embeddings=embeddings)
    asked = {"path": path, **how, "lora_folder": lora_folder, **parts}
    asked |= {"lora": None if lora is None else [(str(one), weight) for one, weight in lora_pairs(lora)]}
    asked |= {"embeddings": [str(one) for one in _sources(embeddings)]}
    said = {name: one for name, one in asked.items() if one and one != "auto"}
    pipe.source = {name: str(one) if isinstance(one, Path) else one for name, one in said.items()}
    if lora is False or lora == []:
        pipe.source["lora"] = []
    return pipe


def own_loras(path: str | Path | None) -> list[tuple[LoraPath, float]]:
    """The LoRAs that a model brings when none are asked for: the embedded model (None) its own few-step LoRA."""
    from fewstep.checkpoints.description import assets_path

    own = assets_path() / "lcm-lora.safetensors"
    return [(own, 1.0)] if path is None and own.is_file() else []
