"""Who is trained against whom: a student, its gradient-free target, and the frozen teacher, as functions of tensors.

`LoraStudent`: one UNet. The teacher is the base with its adapters off, the target is the student itself without
gradient (LCM-LoRA, 2311.05556; no averaged target).
`FullStudent`: three UNets. The student starts as the teacher plus a zero-initialised projection of the guidance
embedding, so its first output equals the teacher's (LCM, 2310.04378, appendix); the target is its moving average.

Shapes: B batch, C channels, H, W latent height and width, L tokens, D text width, P pooled width.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Protocol

import torch

from fewstep.distill.adversarial import Critic
from fewstep.distill.objectives import objective_named
from fewstep.distill.recipes import Recipe
from fewstep.distill.sharding import put
from fewstep.distill.terms import Networks
from fewstep.errors import RecipeError
from fewstep.models.critic import Heads, block_features, block_widths
from fewstep.models.lora_layers import ADAPTER, FAKE, add_lora, base_only, only, recomputed
from fewstep.models.text import Text
from fewstep.models.unet import predict

Spread = Callable[[Any], Any]
"""Splits a network among the processes, in place; see `sharding.py`."""

Rival = Callable[[torch.Tensor, torch.Tensor, Text], torch.Tensor]
"""The network that learns what the student draws: (z_BCHW, t_B, text) -> output, with gradient."""

GUIDANCE_KEY = "time_embedding.cond_proj.weight"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Student(Protocol):
    """What the trainer, the looks and the writer need of a student."""

    kind: type
    unet: Any
    teacher_unet: Any
    parameters: dict[str, torch.nn.Parameter]
    groups: list[list[torch.nn.Parameter]]
    fake: Rival | None
    heads: Heads | None

    def student(self, z_BCHW: torch.Tensor, t_B: torch.Tensor, text: Text, w_B: torch.Tensor) -> torch.Tensor:
        """The student's output, with gradient."""
        ...

    def target(self, z_BCHW: torch.Tensor, t_B: torch.Tensor, text: Text, w_B: torch.Tensor) -> torch.Tensor:
        """The target's output, without gradient; this is also the network that is shipped."""
        ...

    def teacher(self, z_BCHW: torch.Tensor, t_B: torch.Tensor, text: Text) -> torch.Tensor:
        """The teacher's output, without gradient."""
        ...

    def features(self, z_BCHW: torch.Tensor, t_B: torch.Tensor, text: Text) -> list[torch.Tensor]:
        """What the frozen teacher's blocks see, with gradient to z."""
        ...

    def stepped(self) -> None:
        """Called after each optimiser step."""
        ...

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything a checkpoint must keep of the student."""
        ...

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Put back what `tensors` gave."""
        ...

    def start(self, unet: Any) -> None:
        """Begin as this finished UNet."""
        ...


class LoraStudent:
    """Adapters on the model's own UNet, which is changed in place: they stay injected after the run."""

    def __init__(self, unet: Any, recipe: Recipe, *, size: tuple[int, int], spread: Spread | None = None) -> None:
        """`size` is the picture's height and width in pixels."""
        self.kind = type(unet)
        self.unet = self.teacher_unet = _frozen(unet, recipe)
        rival = objective_named(recipe.objective).fake
        adapters = (ADAPTER, FAKE) if rival else (ADAPTER,)
        add_lora(unet, rank=recipe.rank, alpha=recipe.alpha, seed=recipe.seed, adapters=adapters)
        _prepare(unet, recipe, spread)
        self.parameters = {name: value for name, value in unet.named_parameters() if value.requires_grad}
        self.groups = [
            [value for name, value in self.parameters.items() if f".{adapter}." in name] for adapter in adapters
        ]
        self.fake: Rival | None = self._fake if rival else None
        self.heads = _add_heads(self, recipe)
        self._features = _caller(recipe, size, block_features)
        self._predict = _predictor(recipe, size)

    def student(self, z_BCHW: torch.Tensor, t_B: torch.Tensor, text: Text, w_B: torch.Tensor) -> torch.Tensor:
        """The base with its adapters."""
        return self._predict(self.unet, z_BCHW, t_B, text, None)

    @torch.no_grad()
    def target(self, z_BCHW: torch.Tensor, t_B: torch.Tensor, text: Text, w_B: torch.Tensor) -> torch.Tensor:
        """The same, without gradient."""
        return self._predict(self.unet, z_BCHW, t_B, text, None)

    @torch.no_grad()
    def teacher(self, z_BCHW: torch.Tensor, t_B: torch.Tensor, text: Text) -> torch.Tensor:
        """The base with its adapters off."""
        with base_only(self.unet):
            return self._predict(self.unet, z_BCHW, t_B, text, None)

    def features(self, z_BCHW: torch.Tensor, t_B: torch.Tensor, text: Text) -> list[torch.Tensor]:
        """Of the base with its adapters off."""
        with base_only(self.unet):
            return self._features(self.unet, z_BCHW, t_B, text)

    def _fake(self, z_BCHW: torch.Tensor, t_B: torch.Tensor, text: Text) -> torch.Tensor:
        """The base with the rival's adapters, with gradient."""
        with only(self.unet, FAKE):
            return self._predict(self.unet, z_BCHW, t_B, text, None)

    def stepped(self) -> None:
        """There is no average to move."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """The adapters."""
        return {name: value.detach() for name, value in self.parameters.items()}

    @torch.no_grad()
    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Put the adapters back."""
        for name, value in self.parameters.items():
            put(value, tensors[name])

    def start(self, unet: Any) -> None:
        """LoRA layers cannot become a whole UNet. Raises RecipeError."""
        raise RecipeError("A LoRA student starts from a LoRA file, not from a whole model. Set student = 'full'.")


class FullStudent:
    """A whole UNet that is told w, with a moving average as its target."""

    def __init__(self, unet: Any, recipe: Recipe, *, size: tuple[int, int], spread: Spread | None = None) -> None:
        """`size` is the picture's height and width in pixels."""
        self.kind = type(unet)
        if objective_named(recipe.objective).fake:
            raise RecipeError(
                f"objective = '{recipe.objective}' trains two networks on one base, which only LoRA layers can share. "
                "Set student = 'lora'."
            )
        self.fake: Rival | None = None
        self.student_unet = with_guidance_embedding(unet, recipe.guidance_embedding)
        self.teacher_unet = _frozen(unet, recipe)
        self.unet = copy.deepcopy(self.student_unet).requires_grad_(False)
        for network in (self.teacher_unet, self.student_unet, self.unet):
            _prepare(network, recipe, spread)
        self.parameters = dict(self.student_unet.named_parameters())
        self.groups = [list(self.parameters.values())]
        self.heads = _add_heads(self, recipe)
        self._decay = recipe.ema
        self._embedded = recipe.guidance_embedding > 0
        self._features = _caller(recipe, size, block_features)
        self._predict = _predictor(recipe, size)

    def student(self, z_BCHW: torch.Tensor, t_B: torch.Tensor, text: Text, w_B: torch.Tensor) -> torch.Tensor:
        """The student, told w."""
        return self._predict(self.student_unet, z_BCHW, t_B, text, w_B if self._embedded else None)

    @torch.no_grad()
    def target(self, z_BCHW: torch.Tensor, t_B: torch.Tensor, text: Text, w_B: torch.Tensor) -> torch.Tensor:
        """The student's moving average, told w."""
        return self._predict(self.unet, z_BCHW, t_B, text, w_B if self._embedded else None)

    @torch.no_grad()
    def teacher(self, z_BCHW: torch.Tensor, t_B: torch.Tensor, text: Text) -> torch.Tensor:
        """The frozen original."""
        return self._predict(self.teacher_unet, z_BCHW, t_B, text, None)

    def features(self, z_BCHW: torch.Tensor, t_B: torch.Tensor, text: Text) -> list[torch.Tensor]:
        """Of the frozen original."""
        return self._features(self.teacher_unet, z_BCHW, t_B, text)

    @torch.no_grad()
    def stepped(self) -> None:
        """Move the average: target <- ema * target + (1 - ema) * student."""
        for name, value in self.unet.named_parameters():
            value.lerp_(self.parameters[name], 1 - self._decay)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The student and its average."""
        average = {f"average.{name}": value.detach() for name, value in self.unet.named_parameters()}
        return average | {name: value.detach() for name, value in self.parameters.items()}

    @torch.no_grad()
    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Put the student and its average back."""
        for name, value in self.unet.named_parameters():
            put(value, tensors[f"average.{name}"])
        for name, value in self.parameters.items():
            put(value, tensors[name])

    def start(self, unet: Any) -> None:
        """Begin as this UNet; one without a guidance embedding leaves the student's at zero. Raises RecipeError."""
        given, averages = unet.state_dict(), dict(self.unet.named_parameters())
        same = all(name in averages and averages[name].shape == value.shape for name, value in given.items())
        if not same or set(averages) - set(given) - {GUIDANCE_KEY}:
            raise RecipeError("The model to start from has other layers than the teacher. Use one made from it.")
        for name, value in given.items():
            put(averages[name], value)
            put(self.parameters[name], value)


STUDENTS: dict[str, type[LoraStudent] | type[FullStudent]] = {"lora": LoraStudent, "full": FullStudent}


def with_guidance_embedding(unet: Any, width: int) -> Any:
    """A copy of the UNet that takes a guidance embedding of `width`, whose projection is zero; 0 gives a plain copy.

    A randomly initialised projection would move the time embedding by about 60 percent before the first step.
    """
    if not width:
        return copy.deepcopy(unet).requires_grad_(True)
    # "_use_default_values" lists what config.json did not say, and would take the width away again
    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    student = type(unet).from_config(config | {"time_cond_proj_dim": width})
    missing = student.load_state_dict(unet.state_dict(), strict=False).missing_keys
    torch.nn.init.zeros_(student.get_parameter(GUIDANCE_KEY))
    assert missing == [GUIDANCE_KEY], missing
    return like(student, unet).requires_grad_(True)


def like(network: Any, unet: Any) -> Any:
    """The network on the UNet's device and in its number format (asking for a format it has would log a warning)."""
    first = next(unet.parameters())
    network = network.to(first.device)
    return network if first.dtype is torch.float32 else network.to(first.dtype)


def networks(
    student: Student,
    text: Text,
    empty: Text,
    *,
    w_B: torch.Tensor,
    adversarial: float = 0.0,
    guided: bool | None = None,
) -> Networks:
    """The networks an objective sees, conditioned on `text` and w; `empty` is one row, repeated for the guided teacher;
    `adversarial` is the critic's weight. `guided` says whether any w is not 0, without waiting for the device to tell.
    """
    guided, fake = bool((w_B != 0).any()) if guided is None else guided, student.fake
    doubled = Text.cat([text, replace(empty.expand(len(w_B)), time_ids_B6=text.time_ids_B6)]) if guided else text

    def teacher(z_BCHW: torch.Tensor, t_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not guided:
            return student.teacher(z_BCHW, t_B, text), None
        conditional, unconditional = student.teacher(torch.cat([z_BCHW] * 2), torch.cat([t_B] * 2), doubled).chunk(2)
        return conditional, unconditional

    critic = None
    if student.heads is not None:
        critic = Critic(lambda z_BCHW, t_B: student.features(z_BCHW, t_B, text), student.heads, adversarial)
    return Networks(
        student=lambda z_BCHW, t_B: student.student(z_BCHW, t_B, text, w_B),
        target=lambda z_BCHW, t_B: student.target(z_BCHW, t_B, text, w_B),
        teacher=teacher,
        fake=None if fake is None else lambda z_BCHW, t_B: fake(z_BCHW, t_B, text),
        critic=critic,
    )


def choose(mask_B: torch.Tensor, one: Text, other: Text) -> Text:
    """Rows of `one` (a single row serves all) where the mask is true, of `other` elsewhere; the sizes are `other`'s."""
    text_BLD = torch.where(mask_B[:, None, None], one.text_BLD, other.text_BLD)
    if one.pooled_BD is None or other.pooled_BD is None:
        return Text(text_BLD, time_ids_B6=other.time_ids_B6)
    return Text(text_BLD, torch.where(mask_B[:, None], one.pooled_BD, other.pooled_BD), other.time_ids_B6)


def _add_heads(student: "LoraStudent | FullStudent", recipe: Recipe) -> Heads | None:
    """A critic's heads on the teacher, as a group of parameters of the student's own; None where none is wanted."""
    if not recipe.adversarial:
        return None
    unet = student.teacher_unet
    heads = Heads(block_widths(unet), seed=recipe.seed).to(next(unet.parameters()).device)
    student.parameters |= {f"critic.{name}": value for name, value in heads.named_parameters()}
    student.groups.append(list(heads.parameters()))
    return heads


def _frozen(unet: Any, recipe: Recipe) -> Any:
    """The UNet, never to be trained: its matrices and convolutions in the format that they are multiplied in, once and
    for all, which is what autocast would make of them at every call. Norms stay as they are.
    """
    for module in unet.requires_grad_(False).modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            module.to(DTYPES[recipe.precision])
    return unet


def _prepare(unet: Any, recipe: Recipe, spread: Spread | None) -> None:
    unet.eval()
    if spread is None:
        unet.to(memory_format=torch.channels_last)
    else:
        spread(unet)  # which wants its weights contiguous
    if recipe.checkpointing:
        unet.enable_gradient_checkpointing(recomputed)
    if recipe.compile:
        unet.compile(dynamic=False)


def _predictor(recipe: Recipe, size: tuple[int, int]) -> Callable[..., torch.Tensor]:
    call = _caller(recipe, size, predict)

    def run(unet: Any, z_BCHW: torch.Tensor, t_B: torch.Tensor, text: Text, w_B: torch.Tensor | None) -> torch.Tensor:
        return call(unet, z_BCHW, t_B, text, w_B=w_B).float()

    return run


def _caller(recipe: Recipe, size: tuple[int, int], call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` in the recipe's number format and memory layout, for pictures of `size`."""
    dtype = DTYPES[recipe.precision]

    def run(unet: Any, z_BCHW: torch.Tensor, t_B: torch.Tensor, text: Text, **how: Any) -> Any:
        z_BCHW = z_BCHW.contiguous(memory_format=torch.channels_last)
        with nullcontext() if dtype is torch.float32 else torch.autocast(z_BCHW.device.type, dtype):
            return call(unet, z_BCHW, t_B, text, size=size, **how)

    return run
