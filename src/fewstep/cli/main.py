"""The entrance of the command `fewstep`: which command, and what an error looks like.

Exit codes: 0 done; 1 a fault of ours; 2 what was asked cannot be done; 3 a training's result is not good enough;
130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from fewstep import __version__
from fewstep.errors import FewstepError, RequestError

COMMANDS = (
    *("generate", "grid", "variants", "refine", "upscale", "info", "data", "distill", "report", "evaluate"),
    *("lora", "convert", "merge", "export", "serve", "live"),
)
INTERRUPTED = 130
LONGEST = 600
"""Of an error, in characters: what it quotes may be a whole page."""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ours: one sentence, no usage lines."""

    def error(self, message: str) -> NoReturn:
        """Raises RequestError with argparse's message and where to look."""
        raise RequestError(f"{message[:1].upper()}{message[1:]}. See: {self.prog} --help")


def parser() -> Parser:
    """The whole command line; commands that this installation lacks are left out."""
    top = Parser(prog="fewstep", description="Pictures from text in one to eight steps.", allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"fewstep {__version__}")
    top.add_argument("-v", "--verbose", action="store_true", help="say more; show where an unexpected error happened")
    subparsers: Any = top.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name in COMMANDS:
        module = _command(name)
        if module is not None:
            module.register(subparsers)
    return top


def _command(name: str) -> Any:
    try:
        return importlib.import_module(f"fewstep.cli.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"fewstep.cli.{name}":
            raise
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; every error is one line on stderr."""
    argv = sys.argv[1:] if argv is None else list(argv)
    verbose = "-v" in argv or "--verbose" in argv
    for library in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(library, "error")
    try:
        return _run(argv, verbose)
    except FewstepError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - whatever it is, a person reads one line, and the traceback on request
        if verbose:
            traceback.print_exc()
        hint = "" if verbose else " Run again as 'fewstep -v ...' to see where."
        return _fail(f"{type(error).__name__}: {_first_line(error)}.{hint}", 1)


def _run(argv: Sequence[str], verbose: bool) -> int:
    try:
        arguments = parser().parse_args(argv)
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    arguments.verbose = verbose
    with warnings.catch_warnings():
        if not verbose:
            warnings.simplefilter("ignore")
        return int(arguments.run(arguments) or 0)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or "no message"


def _fail(message: str, code: int) -> int:
    message = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in message)
    message = message if len(message) <= LONGEST else f"{message[: LONGEST - 3]}..."
    print(f"fewstep: error: {message}" if code != INTERRUPTED else f"fewstep: {message}", file=sys.stderr)
    return code
