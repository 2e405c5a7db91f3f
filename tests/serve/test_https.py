"""https by a certificate made here, QR codes, and who comes in by them."""

import argparse
import io
import ssl
from types import SimpleNamespace

import httpx
import pytest

from fewstep.client import Live, LiveError
from fewstep.errors import OutputError
from fewstep.serve import address, certificate, share
from fewstep.serve.address import Address
from fewstep.serve.certificate import own_certificate
from tests.serve.running import running

NAMES = ["localhost", "127.0.0.1", "[::1]", "studio.local"]


def test_a_certificate_is_kept_until_it_lacks_a_name_or_ends(tmp_path, monkeypatch):
    first = own_certificate(NAMES, tmp_path / "new")
    assert first.file.stat().st_mode & 0o777 == 0o600
    assert own_certificate(NAMES[:2], tmp_path / "new") == first
    more = own_certificate([*NAMES, "10.0.0.5"], tmp_path / "new")
    assert more.fingerprint != first.fingerprint and len(more.fingerprint) == 95
    monkeypatch.setattr(certificate, "LEAST_DAYS", certificate.DAYS + 1)
    assert own_certificate(NAMES, tmp_path / "new") != more
    first.file.write_text("nothing")
    assert own_certificate(NAMES, tmp_path / "new").fingerprint
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        own_certificate(NAMES, tmp_path / "file")


def test_clients_that_trust_it_come_in_by_https(other, tmp_path, monkeypatch):
    file = own_certificate(NAMES, tmp_path).file
    with running(other, how={"ssl_certfile": file}, key="a long key") as port:
        trusting = ssl.create_default_context(cafile=file)
        assert httpx.get(f"https://127.0.0.1:{port}/healthz", verify=trusting).status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"https://127.0.0.1:{port}/healthz")
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        with Live(f"https://localhost:{port}", key="a long key", mode="prompt", prompt="a cat", steps=1) as live:
            assert live.newest(20).picture.size == (64, 64)
        with pytest.raises(LiveError, match="cannot be reached"):
            Live(f"http://127.0.0.1:{port}")


def asked(**given):
    usual = {"host": "127.0.0.1", "port": 7860, "name": [], "https": False}
    return argparse.Namespace(**{**usual, **given})


@pytest.mark.parametrize(
    ("given", "outside"),
    [
        ({}, None),
        ({"host": "::1", "name": ["studio.local"]}, None),
        ({"host": "0.0.0.0"}, "http://10.0.0.5:7860"),
        ({"host": "::"}, "http://[fd00::5]:7860"),
        ({"host": "0.0.0.0", "name": ["studio.local"], "https": True}, "https://studio.local:7860"),
        ({"host": "fd00::7"}, "http://[fd00::7]:7860"),
    ],
)
def test_other_devices_are_told_where_they_can_come(given, outside, monkeypatch, tmp_path):
    monkeypatch.setattr(address, "lan_addresses", lambda kind: [{"0.0.0.0": "10.0.0.5", "::": "fd00::5"}[kind]])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = Address.of(asked(**given))
    assert found.outside == outside
    said = " ".join(found.told("null"))
    assert (outside or "null at http://") in said and ("SHA-256" in said) is bool(given.get("https"))


def test_a_terminal_shows_a_qr_code():
    stream = io.StringIO()
    share.say_qr("https://10.0.0.5:7860/#key=abc", stream)
    assert len(stream.getvalue().splitlines()) > 10


def test_this_machines_addresses_are_no_loopback():
    assert not {"127.0.0.1", "::1"} & {one for kind in share.EVERYWHERE for one in share.lan_addresses(kind)}


def test_an_invitation_lets_one_device_in(other):
    place = "https://10.0.0.5:7860"
    with running(other, key=["one key", "another key"], address=place) as port:
        home = f"http://127.0.0.1:{port}"
        assert httpx.post(f"{home}/api/v1/share", json={}).status_code == 401
        mine = {"authorization": "Bearer another key"}
        shared = httpx.post(f"{home}/api/v1/share", json={}, headers=mine).json()
        start, _, word = shared["address"].partition("#key=")
        assert start == f"{place}/" and shared["seconds"] == 600 and "<svg" in shared["qr"] and "key" not in word
        with httpx.Client(base_url=home) as phone:
            assert phone.post("/api/v1/login", json={"key": word}).status_code == 200
            assert phone.get("/api/v1/live/schema").status_code == 200
            assert "another%20key" in next(iter(phone.cookies.jar)).value
        assert httpx.post(f"{home}/api/v1/login", json={"key": word}).status_code == 401  # once


def test_invitations_end(monkeypatch):
    from fewstep.serve import security

    door, clock = security.Door(None, key="k"), SimpleNamespace(now=1.0)
    monkeypatch.setattr(security, "time", SimpleNamespace(monotonic=lambda: clock.now))
    scope = {"type": "http", "path": "/", "headers": [(b"authorization", b"Bearer k")]}
    words = [door.invite(scope, seconds=10) for _ in range(security.INVITATIONS + 1)]
    assert door.login(scope, words[0]) is None and door.login(scope, words[1])
    clock.now = 11.5
    assert door.login(scope, words[2]) is None
    assert security.Door(None).invite(scope, seconds=10) is None


def test_who_listens_alone_shares_nothing(http):
    answer = http.post("/api/v1/share", json={})
    assert answer.status_code == 409 and "--host" in answer.json()["detail"]


def test_without_a_key_the_address_is_shared_as_it_is(other):
    with running(other, address="http://10.0.0.5:7860") as port:
        shared = httpx.post(f"http://127.0.0.1:{port}/api/v1/share", json={}).json()
    assert shared["address"] == "http://10.0.0.5:7860/" and shared["seconds"] is None
