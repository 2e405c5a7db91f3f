"""How answers are written: JSON that can always be written, and errors as sentences that tell strangers no secrets."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi.responses import JSONResponse

from fewstep.errors import FewstepError

_QUOTED = re.compile(r"'(?:[A-Za-z]:)?[/\\][^'\n]*[/\\]([^'/\\\n]*)'")
_PATH = re.compile(r"(?<![\w./\\:<-])(?:[A-Za-z]:)?[/\\](?:[^\s/\\'\",;:]+[/\\])*([^\s/\\'\",;:]*)")


class Answer(JSONResponse):
    """JSON, also of what has no place in it: numbers without end become null, halves of letters a question mark."""

    def render(self, content: Any) -> bytes:
        """As text in UTF-8."""
        try:
            return super().render(content)
        except ValueError:
            return super().render(plain(content))


def answering(value: Any) -> Callable[[], Awaitable[Any]]:
    """A route that always answers the same."""

    async def answer() -> Any:
        return value

    return answer


def plain(value: Any) -> Any:
    """What JSON in UTF-8 can say of a value.

    >>> plain({"a": [float("nan"), 1.5], "b": chr(0xD800)})
    {'a': [None, 1.5], 'b': '?'}
    """
    if isinstance(value, dict):
        return {plain(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sentence_of(error: BaseException) -> str:
    r"""What a client is told of an error: ours in their own words, without this machine's folders; nothing of others.

    >>> sentence_of(FewstepError("There is no LoRA 'ink', nor in '/srv/me too/loras'. Try C:\\a\\b."))
    "There is no LoRA 'ink', nor in 'loras'. Try b."
    >>> sentence_of(KeyError("secret"))
    'The server could not do this. Its log says more.'
    """
    if not isinstance(error, FewstepError):
        return "The server could not do this. Its log says more."
    return _PATH.sub(r"\1", _QUOTED.sub(r"'\1'", str(error)))
