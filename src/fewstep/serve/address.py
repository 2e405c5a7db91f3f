"""Where a server listens, by which names it is called, and what is said of that."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any

from fewstep.serve.certificate import Certificate, own_certificate
from fewstep.serve.security import LOOPBACK
from fewstep.serve.share import EVERYWHERE, bracketed, lan_addresses


@dataclass(frozen=True)
class Address:
    """`names` are those that the server answers to besides loopback's; `outside` is how other devices reach it, None
    where it listens to this machine alone.
    """

    host: str
    port: int
    names: tuple[str, ...]
    outside: str | None
    certificate: Certificate | None = field(default=None)

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Address:
        """Of --host, --port, --name and --https. Raises what `own_certificate` raises."""
        everywhere = arguments.host in EVERYWHERE
        lan = lan_addresses(arguments.host) if everywhere else [arguments.host]
        names = tuple(bracketed(name) for name in dict.fromkeys([*arguments.name, *lan]))
        scheme = "https" if arguments.https else "http"
        alone = arguments.host in LOOPBACK or not names
        outside = None if alone else f"{scheme}://{names[0]}:{arguments.port}"
        certificate = own_certificate([*LOOPBACK, *names]) if arguments.https else None
        return cls(arguments.host, arguments.port, names, outside, certificate)

    @property
    def how(self) -> dict[str, Any]:
        """uvicorn's settings."""
        secure = {} if self.certificate is None else {"ssl_certfile": self.certificate.file}
        return {"host": self.host, "port": self.port, **secure}

    def told(self, model: str) -> list[str]:
        """What whoever started it should know, a sentence each."""
        scheme = "http" if self.certificate is None else "https"
        near = bracketed(EVERYWHERE.get(self.host, self.host))
        found = [f"{model} at {scheme}://{near}:{self.port}"]
        if self.certificate is not None:
            found.append(f"the certificate's SHA-256 is {self.certificate.fingerprint}")
        return found if self.outside is None else [*found, f"from other devices {self.outside}"]
