"""A certificate that this machine makes for itself: browsers give cameras and screens to https and to localhost alone.

Nobody vouches for it, so a browser warns once, and shows the fingerprint that was printed here. It is kept, so that a
browser that was told to go on need not be told again, and is made anew where it lacks a name or is about to end.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.errors import OutputError, RequestError
from fewstep.image import write_atomically

DAYS, LEAST_DAYS = 365, 30
"""Apple's systems take at most 825 days (support.apple.com/103769)."""

EXTRA = "https needs more libraries: pip install 'fewstep[https]'"


@dataclass(frozen=True)
class Certificate:
    """One file with the key and the certificate, as PEM, and the SHA-256 that browsers show."""

    file: Path
    fingerprint: str


def folder() -> Path:
    """Where certificates are kept, for this user alone."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fewstep" / "https"


def own_certificate(names: Collection[str], kept: Path | None = None) -> Certificate:
    """For these host names and addresses: the one that was kept, or a new one.

    Raises:
        RequestError: a library is missing. OutputError: the folder cannot be written to.
    """
    try:
        from cryptography import x509
    except ImportError:
        raise RequestError(EXTRA) from None
    file, wanted = (kept or folder()) / "fewstep.pem", {_plain(name) for name in names}
    with contextlib.suppress(OSError, ValueError):
        found = x509.load_pem_x509_certificate(file.read_bytes())
        left = found.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
        if _names_of(found) >= wanted and left.days >= LEAST_DAYS:
            return Certificate(file, _fingerprint(found))
    made, data = _made(sorted(wanted))
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(file, lambda stream: stream.writelines([data]))
        file.chmod(0o600)
    except OSError as error:
        raise OutputError(f"'{file}' cannot be written ({error}), so the certificate has no place.") from None
    return Certificate(file, _fingerprint(made))


def _made(names: list[str]) -> tuple[Any, bytes]:
    """A certificate that signs itself, and its PEM with the key (P-256)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fewstep")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(hours=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=DAYS))
    builder = builder.add_extension(x509.SubjectAlternativeName([_general(one) for one in names]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    use = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    made = builder.add_extension(use, critical=False).sign(key, hashes.SHA256())
    how = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return made, key.private_bytes(serialization.Encoding.PEM, *how) + made.public_bytes(serialization.Encoding.PEM)


def _general(name: str) -> Any:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _names_of(found: Any) -> set[str]:
    from cryptography import x509

    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}


def _fingerprint(found: Any) -> str:
    from cryptography.hazmat.primitives import hashes

    return found.fingerprint(hashes.SHA256()).hex(":").upper()


def _plain(name: str) -> str:
    """As a certificate has it: an IPv6 address without brackets."""
    return name.lower().strip("[]")
