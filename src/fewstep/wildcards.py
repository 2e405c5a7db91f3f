"""Templates of prompts: `a {red|green} __pet__` becomes one prompt for each picture, chosen by its seed.

The notation is sd-dynamic-prompts', read by its own library (extra `wildcards`): `{a|b}`, `{2$$a|b|c}`, `{0.3::a|b}`,
`__name__` for a line of name.txt (or an entry of a .yaml or .json file) in the wildcards' folder, `__sub/name__`,
`__na*__`, `${x=!{a|b}}`.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

from fewstep.errors import RequestError

_NAME = re.compile(r"__([\w*?/.-]+?)__")
_TAG = re.compile(r"<[^<>]*>")


def expanded(template: str, seed: int, *, folder: str | Path | None = None) -> str:
    """The prompt that a template gives for a seed, the same each time; a text without its signs is left alone.

    Raises:
        RequestError: the notation is broken, a wildcard has no file, there is no such folder, or the library is absent.
    """
    if not re.search(r"[{}]|\$\{|__", template):
        return template
    generator, known = _library(folder)
    _check_names(template, known)
    try:
        (found,) = generator(known, seed=seed, ignore_whitespace=True).generate(template, 1)
    except RecursionError:
        raise RequestError(f"The template {template[:40]!r} has too many brackets inside one another.") from None
    except Exception as error:  # noqa: BLE001 - pyparsing's and the library's own, for whatever is written
        raise RequestError(f"The template {template[:40]!r} cannot be read: {_first_line(error)}.") from None
    return str(found)


def _library(folder: str | Path | None) -> tuple[Any, Any]:
    try:
        from dynamicprompts.generators import RandomPromptGenerator
        from dynamicprompts.wildcards import WildcardManager
    except ImportError:
        raise RequestError("Wildcards need the library dynamicprompts: pip install 'fewstep[wildcards]'") from None
    path = None if folder is None else Path(folder).expanduser()
    if path is not None and not path.is_dir():
        raise RequestError(f"The folder of wildcards '{folder}' does not exist. Give another.")
    return RandomPromptGenerator, WildcardManager(path)


def _check_names(template: str, known: Any) -> None:
    """The library would leave an unknown name as it is, and print what it thinks of it."""
    for name in _NAME.findall(_TAG.sub("", template)):
        if ".." in name or name.startswith("/"):
            raise RequestError(f"The wildcard '{name}' is a path. Write only its name, such as __colour__.")
        if not known.get_values(name):
            near = difflib.get_close_matches(name, list(known.get_collection_names()), n=1)
            meant = f" Did you mean __{near[0]}__?" if near else " Give its folder, or write the line's text."
            raise RequestError(f"There is no wildcard '{name}'.{meant}")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
