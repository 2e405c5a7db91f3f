"""`fewstep serve`: models behind A1111's and OpenAI's interfaces, for this machine alone unless told otherwise."""

from __future__ import annotations

import argparse
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli.options import add_loading_options, loading_asked, shelf_options
from fewstep.cli.quickest import quickest
from fewstep.device import cores
from fewstep.errors import RequestError

if TYPE_CHECKING:
    from fewstep.engine.painting import Painting
    from fewstep.pipeline import Pipeline
    from fewstep.serve.address import Address
    from fewstep.serve.jobs import Studio


def register(subparsers: Any) -> None:
    """Add `serve` to the command line."""
    parser = subparsers.add_parser(
        "serve",
        help="serve models: A1111's and OpenAI's interfaces",
        description="Serve models over HTTP, as A1111 (/sdapi/v1) and OpenAI (/v1/images) do.",
        allow_abbrev=False,
    )
    parser.add_argument("given", nargs="?", metavar="MODEL", help="the same as --model")
    add_loading_options(parser)
    add = parser.add_argument_group("models").add_argument
    add("--models", type=Path, metavar="FOLDER", help="more models, loaded when a client names one")
    add(
        "--models-memory",
        type=float,
        metavar="GB",
        help="for all loaded models; chosen by what is free if absent; a worker keeps two models, whatever they take",
    )
    add = parser.add_argument_group("where").add_argument
    add("--workers", metavar="N[:M]", help="paint in N processes of their own, up to M while pictures wait")
    add("--ray", nargs="?", const="", metavar="ADDRESS", help="have the workers on a Ray cluster, or on a new one here")
    add("--gpus", type=float, default=0, metavar="N", help="GPUs that each worker on Ray asks for [0]")
    add = parser.add_argument_group("history").add_argument
    add("--history", type=Path, metavar="FOLDER", help="keep pictures and their settings there; nothing if absent")
    add("--history-limit", type=float, default=2, metavar="GB", help="above it the oldest pictures leave [2]")
    add = parser.add_argument_group("who may come in").add_argument
    add("--host", default="127.0.0.1", help="address to listen at; others than this machine need a key")
    add("--port", type=int, default=7860, metavar="N", help="[7860]")
    add("--name", action="append", default=[], help="host name that it answers to; may be repeated")
    add("--api-key", action="append", metavar="KEY", help="asked of every client; several for several owners")
    add("--https", action="store_true", help="by a certificate made here: phones give their cameras to https alone")
    add("--insecure", action="store_true", help="no key, whatever the address: only behind a guard")
    _add_manners(parser.add_argument_group("manners").add_argument)
    parser.set_defaults(run=run)


def _add_manners(add: Any) -> None:
    add("--queue", type=int, default=64, metavar="N", help="pictures that may wait [64]")
    add("--patience", type=float, default=600, metavar="S", help="seconds that a job may wait for its turn [600]")
    add("--grace", type=float, default=30, metavar="S", help="told to stop, what has begun may take so long [30]")
    add("--log", choices=("json", "plain"), default="plain", help="how each request and job is written down [plain]")
    add("--log-prompts", action="store_true", help="with the jobs' prompts")


def run(arguments: argparse.Namespace) -> int:
    """Serves until it is stopped; returns the exit code."""
    from fewstep.serve.security import LOOPBACK, Door

    _check(arguments)
    try:
        from fewstep.serve import journal
        from fewstep.serve.address import Address
        from fewstep.serve.app import application
        from fewstep.serve.server import Server
    except ImportError:
        raise RequestError("Serving needs more libraries: pip install 'fewstep[serve]'") from None
    keys = arguments.api_key
    if arguments.host not in LOOPBACK and not keys and not arguments.insecure:
        keys = [secrets.token_urlsafe(18)]
        print(f"fewstep: the key is {keys[0]}", file=sys.stderr)
    if arguments.host in LOOPBACK:
        leave_a_core()
    journal.begin(arguments.log)
    address = Address.of(arguments)
    studio = _studio(arguments)
    door = Door(application(studio), key=keys, hosts=[arguments.host, *address.names], address=address.outside)
    _say(address, studio.pipe.model.name, keys[0] if keys else None)
    Server(journal.Journal(door), studio, grace_s=arguments.grace, **address.how).run()
    return 0


def leave_a_core() -> None:
    """To the browser of the same machine: with all of them, every layer waits for the thread that it was taken from.

    On two cores: 16.9 and 11.1 live pictures a second at two and four steps, against 14.3 and 8.2 (docs/log.md).
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() - 1)))


def _say(address: Address, model: str, key: str | None) -> None:
    """Where it is; on a terminal with a QR code, where other devices may come in."""
    from fewstep.serve.share import say_qr, with_key

    for sentence in address.told(model):
        print(f"fewstep: {sentence}", file=sys.stderr)
    if address.outside is not None and sys.stderr.isatty():
        try:
            say_qr(with_key(address.outside, key))
        except RequestError as error:  # the library is missing
            print(f"fewstep: {error}", file=sys.stderr)


def _check(arguments: argparse.Namespace) -> None:
    from fewstep.serve.security import EMPTY_KEY

    if not all(key.strip() for key in arguments.api_key or ()):
        raise RequestError(EMPTY_KEY)
    if not 1 <= arguments.port <= 65535 or arguments.queue < 1:
        raise RequestError(
            f"port {arguments.port} or queue {arguments.queue} is out of range (1 to 65535; at least 1)."
        )
    for name in ("patience", "models_memory", "history_limit"):
        if (number := getattr(arguments, name)) is not None and not 0 < number < 1e9:
            raise RequestError(f"--{name.replace('_', '-')} is {number:g}, but it must be above 0.")
    if not 0 <= arguments.grace < 1e9:
        raise RequestError(f"--grace is {arguments.grace:g}, but it must be at least 0.")
    if arguments.given is not None and arguments.model is not None:
        raise RequestError(f"MODEL '{arguments.given}' and --model '{arguments.model}' were both given. Give one.")
    _workers(arguments.workers or "1")
    if arguments.models is not None and not arguments.models.is_dir():
        raise RequestError(
            f"The folder '{arguments.models}' of --models does not exist. Give the folder of your models."
        )
    arguments.model = arguments.given if arguments.model is None else arguments.model


def _studio(arguments: argparse.Namespace) -> Studio:
    from fewstep.pipeline import load as load_pipeline
    from fewstep.serve.history import History
    from fewstep.serve.jobs import Studio
    from fewstep.serve.models import Models

    away = arguments.workers is not None or arguments.ray is not None
    where = {name: getattr(arguments, name) for name in ("device", "dtype", "backend")}
    how = {**where, "weights": not away, **shelf_options(arguments)}

    def load(path: Path) -> Pipeline:
        return load_pipeline(path, **how)

    asked = loading_asked(arguments, None)
    asked |= quickest(asked)

    def first() -> Pipeline:
        return load_pipeline(**asked, weights=not away)

    budget = None if arguments.models_memory is None else int(arguments.models_memory * 1e9)
    found = first()
    models = Models(found, arguments.models, load=load, again=first, budget=sys.maxsize if away else budget)
    folder, limit = arguments.history, int(arguments.history_limit * 1e9)
    history = None if folder is None else History(folder, limit=limit)
    manners = {"waiting": arguments.queue, "patience_s": arguments.patience, "log_prompts": arguments.log_prompts}
    painting = _away(arguments) if away else None
    return Studio(found, models=models, history=history, painting=painting, **manners)


def _away(arguments: argparse.Namespace) -> Painting:
    """Workers, which load the models; here they are only planned with."""
    from fewstep.engine.fleet import Fleet
    from fewstep.engine.painting import Away
    from fewstep.engine.process import hire_process
    from fewstep.engine.ray import hire_ray

    least, most = _workers(arguments.workers or "1")
    hire = (
        hire_process(_devices(arguments))
        if arguments.ray is None
        else hire_ray(arguments.ray or None, gpus=arguments.gpus)
    )
    return Away(Fleet(hire, least, most, waiting=arguments.queue))


def _workers(text: str) -> tuple[int, int]:
    """How many workers there are at least, and at most.

    >>> _workers("2"), _workers("1:4")
    ((2, 2), (1, 4))
    """
    least, colon, most = text.partition(":")
    if not least.isdecimal() or (colon and not most.isdecimal()):
        raise RequestError(f"--workers is '{text}'. Give a number such as 2, or a range such as 1:4.")
    found = int(least), int(most) if colon else int(least)
    if not 1 <= found[0] <= found[1] <= 1000:
        raise RequestError(f"--workers is '{text}'. Give at least 1, and no more at least than at most.")
    return found


def _devices(arguments: argparse.Namespace) -> int:
    """GPUs of this machine, each for a worker of its own; 0 where none is wanted. Torch is not needed here but for
    that, so a process of its own counts them.
    """
    if arguments.device == "cpu" or (arguments.model is None and arguments.models is None):
        return 0  # the embedded model paints on the CPU
    count = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    return int(subprocess.run(count, check=True, capture_output=True, text=True).stdout)
