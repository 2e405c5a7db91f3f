"""Everything that one picture of a grid depends on, and the ways in which an axis may change it.

Source: the names in `LABELS` and the order of cost are those of AUTOMATIC1111's X/Y/Z plot.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.errors import RequestError
from fewstep.request import Request

if TYPE_CHECKING:
    from fewstep.pipeline import LoraPath

_TAG = re.compile(r"<lora:([^>:]+)((?::[^>:]*)*)>")
PICKED = "*"
"""In `lora:*`: the LoRA that the axis `lora` picks."""


@dataclass(frozen=True)
class Setting:
    """A request, and what is to be loaded for it. `model` None is the embedded one, `vae` None the model's own.

    `loras` None are the model's own; `picked` is one more, which an axis chose.
    """

    request: Request
    model: str | Path | None = None
    vae: str | Path | None = None
    loras: tuple[tuple[LoraPath, float], ...] | None = None
    picked: tuple[LoraPath, float] | None = None

    @property
    def all_loras(self) -> tuple[tuple[LoraPath, float], ...]:
        """Every (path, weight) that the pipeline is to carry."""
        from fewstep.pipeline import own_loras

        given = tuple(own_loras(self.model)) if self.loras is None else self.loras
        return given if self.picked is None else (*given, self.picked)

    def with_fields(self, **fields: Any) -> Setting:
        """A copy with some fields of the request changed."""
        return replace(self, request=self.request.replaced(**fields))

    def with_words(self, swaps: Mapping[str, str]) -> Setting:
        """Other words in the prompts, all at once, so that what one swap writes is not searched by another.

        >>> Setting(Request("a red cat")).with_words({"red": "cat", "cat": "red"}).request.prompt
        'a cat red'

        Raises:
            RequestError: neither prompt has a word.
        """
        if not swaps:
            return self
        prompt, negative = self.request.prompt, self.request.negative_prompt
        for word in swaps:
            if word not in prompt and word not in negative:
                raise RequestError(f"The prompt {prompt[:80]!r} has no {word!r} to be replaced. Write it as it stands.")
        either = re.compile("|".join(re.escape(word) for word in sorted(swaps, key=len, reverse=True)))
        texts = [either.sub(lambda match: swaps[match[0]], text) for text in (prompt, negative)]
        return self.with_fields(prompt=texts[0], negative_prompt=texts[1])

    def with_weight(self, name: str, weight: float) -> Setting:
        """Another weight for a LoRA: that of an axis (*), of the prompt's tag, or one that was given by its file.

        Raises:
            RequestError: there is no such LoRA.
        """
        if name == PICKED:
            return self if self.picked is None else replace(self, picked=(self.picked[0], weight))
        prompt = _TAG.sub(lambda tag: _weighed(tag, weight) if tag[1].strip() == name else tag[0], self.request.prompt)
        if any(tag[1].strip() == name for tag in _TAG.finditer(self.request.prompt)):
            return self.with_fields(prompt=prompt)
        if self.picked is not None and _is(self.picked[0], name):
            return replace(self, picked=(self.picked[0], weight))
        given = self.all_loras if self.picked is None else self.all_loras[:-1]
        if not any(_is(path, name) for path, _ in given):
            known = ", ".join(Path(path).stem for path, _ in given) or "none"
            raise RequestError(
                f"There is no LoRA '{name}' to be weighed; those of this picture are: {known}. Give it with --lora, or "
                f"as <lora:{name}:1> in the prompt."
            )
        return replace(self, loras=tuple((path, weight if _is(path, name) else old) for path, old in given))


def _is(path: LoraPath, name: str) -> bool:
    return name in (str(path), Path(path).stem)


def _weighed(tag: re.Match[str], weight: float) -> str:
    """The tag with one weight for everything; its blocks stay."""
    blocks = [part for part in tag[2].split(":") if part.strip().startswith("lbw=")]
    return f"<lora:{':'.join([tag[1], f'{weight:.10g}', *blocks])}>"
