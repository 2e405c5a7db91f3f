"""`fewstep serve`: the model behind A1111's and OpenAI's interfaces, for this machine alone unless told otherwise."""

from __future__ import annotations

import argparse
import secrets
import sys
from typing import Any

from fewstep.cli.options import add_loading_options, loading_asked
from fewstep.errors import RequestError


def register(subparsers: Any) -> None:
    """Add `serve` to the command line."""
    parser = subparsers.add_parser(
        "serve",
        help="serve a model: A1111's and OpenAI's interfaces",
        description="Serve a model over HTTP, as A1111 (/sdapi/v1) and OpenAI (/v1/images) do.",
        allow_abbrev=False,
    )
    add_loading_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; others than this machine need a key")
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="[7860]")
    parser.add_argument("--name", action="append", default=[], help="host name that it answers to; may be repeated")
    parser.add_argument("--api-key", metavar="KEY", help="asked of every client; made and printed with --host")
    parser.add_argument("--insecure", action="store_true", help="no key, whatever the address: only behind a guard")
    parser.add_argument("--queue", type=int, default=64, metavar="N", help="pictures that may wait [64]")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serves until it is stopped; returns the exit code."""
    import fewstep
    from fewstep.serve.security import LOOPBACK, Door

    if not 1 <= arguments.port <= 65535 or arguments.queue < 1:
        raise RequestError(
            f"port {arguments.port} or queue {arguments.queue} is out of range (1 to 65535; at least 1)."
        )
    try:
        import uvicorn

        from fewstep.serve.app import application
    except ImportError:
        raise RequestError("Serving needs more libraries: pip install 'fewstep[serve]'") from None
    from fewstep.serve.jobs import Studio

    key = arguments.api_key
    if key is not None and not key.strip():
        raise RequestError("The API key is empty. Give one of some length, or leave --api-key out.")
    if arguments.host not in LOOPBACK and key is None and not arguments.insecure:
        key = secrets.token_urlsafe(18)
        print(f"fewstep: the key is {key}", file=sys.stderr)
    studio = Studio(fewstep.load(**loading_asked(arguments, None)), waiting=arguments.queue)
    door = Door(application(studio), key=key, hosts=[arguments.host, *arguments.name])
    print(f"fewstep: {studio.pipe.model.name} at http://{arguments.host}:{arguments.port}", file=sys.stderr)
    uvicorn.run(door, host=arguments.host, port=arguments.port, log_level="warning", server_header=False)
    return 0
