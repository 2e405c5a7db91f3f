"""The live socket by a plain client of the protocol, against a real server."""

import base64
import io
import json

import httpx
import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from fewstep.engine.painter import depth_of
from fewstep.engine.painting import Here
from fewstep.models.family import family_of
from fewstep.serve import seats
from fewstep.serve.frames import Codec, Flag, Kind, Message
from fewstep.serve.limits import Limits
from tests.serve.talking import PROTOCOL, VALUES, Client, colour


@pytest.fixture
def client(server):
    made = Client(server)
    yield made
    made.close()


def test_a_frame_becomes_the_picture_that_the_pipeline_paints(client, studio):
    number = client.frame(colour("red"))
    output = client.output()
    assert (output.source_seq, output.sender_ms, output.kind) == (number, 1000 + number, Kind.OUTPUT)
    assert Flag.FINAL in output.flags and Flag.REFINED not in output.flags
    wanted = studio.pipe("a cat", steps=2, seed=5, image=Image.new("RGB", (64, 64), "red"))
    painted = Image.open(io.BytesIO(output.payload))
    assert np.abs(np.asarray(painted, int) - np.asarray(wanted, int)).max() <= 2
    assert client.until("credit", upto=number)["n"] >= 2


def test_welcome_tells_what_a_page_needs(client):
    welcome = client.welcome
    assert welcome["values"]["prompt"] == "a cat"
    assert welcome["limits"]["size_px"] == 64 and welcome["limits"]["message_bytes"] == 4 * 2**20
    assert set(welcome["schema"]["properties"]) == set(welcome["values"]) - {"keep"}


def test_parameters_hold_from_the_next_picture_on_and_are_echoed(client):
    client.frame(colour("red"))
    first = client.output()
    client.say("params", rev=7, patch={"prompt": "a dog", "strength": 0.9})
    answer = client.until("params_ack")
    assert answer["rev"] == 7 and answer["effective"]["prompt"] == "a dog" and answer["effective"]["strength"] == 0.9
    output = client.output()
    assert output.revision == 7 and output.source_seq == first.source_seq and output.payload != first.payload


@pytest.mark.parametrize(
    "patch",
    [
        *({"steps": 0}, {"steps": 401}, {"prompt": 5}, {"prompt": "a" * 10_001}, {"width": 9000}),
        *({"sampler": "nobody"}, {"wings": 2}, {"loras": [{"name": "../x"}]}, {"keep": True}, 3, None),
    ],
)
def test_parameters_that_cannot_be_are_refused_and_change_nothing(client, patch):
    client.say("params", rev=3, patch=patch)
    error = client.until("error")
    assert error["code"] == "params" and error["rev"] == 3 and error["message"].endswith(".")
    client.frame(colour("red"))
    assert client.output().revision == 0


@pytest.mark.parametrize("values", [{"steps": 401}, {"width": 2048, "height": 2048}])
def test_a_session_has_the_limits_of_orders(server, studio, monkeypatch, values):
    monkeypatch.setattr(studio, "limits", Limits(steps=400, pixels=2**20))
    with pytest.raises(ConnectionClosed, match="4400"):
        Client(server, values={**VALUES, **values})


def test_an_older_revision_is_refused(client):
    client.say("params", rev=3, patch={"steps": 1})
    client.until("params_ack")
    client.say("params", rev=3, patch={"steps": 2})
    assert "revision 3" in client.until("error")["message"]


def test_the_prompt_alone_paints_at_once_and_again_with_every_change(server):
    client = Client(server, mode="prompt")
    assert client.output().source_seq == 0
    client.say("params", rev=1, patch={"prompt": "a tree"})
    assert client.output(lambda output: output.revision == 1).payload != client.outputs[0].payload
    client.close()


def test_an_idle_session_paints_a_better_picture(server):
    client = Client(server, values=VALUES | {"refine": True})
    number = client.frame(colour("blue"))
    first = client.output()
    better = client.output(lambda output: Flag.REFINED in output.flags)
    assert better.source_seq == number and better.payload != first.payload
    client.close()


def test_the_same_frame_is_skipped_and_said(client):
    client.frame(colour("red"))
    client.output()
    number = client.frame(colour("red"))
    assert client.until("skip")["seq"] == number
    assert len(client.outputs) == 1


def test_a_mask_keeps_what_is_black(client):
    client.frame(colour("white"), kind=Kind.MASK)
    client.frame(colour("red"))
    everywhere = np.asarray(Image.open(io.BytesIO(client.output().payload)), int)
    half = Image.new("L", (64, 64))
    half.paste(255, (0, 0, 32, 64))
    stream = io.BytesIO()
    half.save(stream, "PNG")
    client.frame(stream.getvalue(), kind=Kind.MASK)
    client.frame(colour("red"))
    kept = np.asarray(Image.open(io.BytesIO(client.output().payload)), int)
    assert np.abs(kept[:, 48:] - [255, 0, 0]).max() <= 8
    assert np.abs(everywhere[:, 48:] - [255, 0, 0]).max() > 8


def test_a_snapshot_brings_its_settings(client, server):
    client.say("snapshot")
    assert "no picture yet" in client.until("error")["message"]
    client.frame(colour("green"))
    output = client.output()
    client.say("snapshot")
    snapshot = client.until("snapshot")
    assert snapshot["seq"] == output.seq and "Seed: 5" in snapshot["infotext"]
    png = Image.open(io.BytesIO(base64.b64decode(snapshot["png"])))
    assert png.info["parameters"] == snapshot["infotext"]


def test_nothing_is_painted_while_paused(client):
    client.say("pause", on=True)
    client.frame(colour("red"))
    client.until("stats")
    assert not client.outputs
    client.say("pause", on=False)
    assert client.output().source_seq == 1


def test_a_session_that_moves_by_itself_stands_still_while_paused(server):
    client = Client(server, values=VALUES | {"noise": "walk", "noise_speed": 0.5})
    client.frame(colour("red"))
    client.output()
    client.output()
    client.say("pause", on=True)
    client.until("stats")
    count = len(client.outputs)
    client.until("stats")
    assert len(client.outputs) <= count + 1  # one may have been in the making
    client.close()


def test_the_resume_token_brings_parameters_and_seed_back(server):
    client = Client(server)
    client.say("params", rev=2, patch={"prompt": "a boat"})
    client.until("params_ack")
    client.socket.close()
    again = Client(server, resume_token=client.welcome["resume_token"], values={})
    assert again.welcome["session"] == client.welcome["session"]
    assert again.welcome["values"]["prompt"] == "a boat" and again.welcome["rev"] == 2
    again.close()
    other = Client(server, resume_token=client.welcome["resume_token"])
    assert other.welcome["session"] != client.welcome["session"]
    other.close()


def test_a_client_that_comes_back_may_want_other_frames(server):
    client = Client(server, codecs=["png"], mode="camera")
    client.frame(colour("red"))
    client.frame(colour("blue"))
    assert client.output(lambda output: output.source_seq == 2).codec is Codec.PNG
    client.socket.close()
    token = client.welcome["resume_token"]
    again = Client(server, resume_token=token, codecs=["webp"], mode="canvas", fps=5)
    assert again.output().codec is Codec.WEBP  # the last one, again
    number = again.frame(colour("#0000fd"))  # on a canvas every pixel counts, and numbers may begin anew
    assert again.output(lambda output: output.source_seq == number).codec is Codec.WEBP
    again.socket.close()
    words = Client(server, resume_token=token, mode="prompt")
    assert words.output(lambda output: output.source_seq == 0)
    words.close()


def test_a_bad_hello_of_a_client_that_comes_back_ends_no_session(server, studio, monkeypatch):
    client = Client(server)
    client.frame(colour("red"))
    client.output()
    client.socket.close()
    token = client.welcome["resume_token"]
    with monkeypatch.context() as patch:
        patch.setattr(studio, "limits", Limits(steps=1))
        with pytest.raises(ConnectionClosed, match="4400"):
            Client(server, resume_token=token)
    again = Client(server, resume_token=token)
    assert again.welcome["session"] == client.welcome["session"]
    again.close()


@pytest.mark.parametrize(
    "data", [b"", b"x", b"\x01" * 24, Message(Kind.OUTPUT, Codec.PNG, 1, b"x").packed(), b"\x09" + bytes(40)]
)
def test_a_bad_message_is_answered_and_the_session_goes_on(client, data):
    client.socket.send(data)
    assert client.until("error")["code"] in ("protocol", "frame")
    client.frame(colour("red"))
    assert client.output()


def test_a_frame_that_is_no_picture_is_named(client):
    number = client.frame(b"GIF89a and nothing else")
    error = client.until("error")
    assert (error["code"], error["seq"]) == ("frame", number) and "PNG" in error["message"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"type": "fly"}', '{"type": "ack", "seq": -1}', "[" * 60_000])
def test_a_bad_text_is_answered_and_the_session_goes_on(client, text):
    client.socket.send(text)
    assert client.until("error")["code"] == "protocol"
    client.frame(colour("red"))
    assert client.output()


@pytest.mark.parametrize(
    "hello", [{"mode": "dance"}, {"fps": 0}, {"fps": "30"}, {"codecs": ["gif"]}, {"values": {"steps": 99}}]
)
def test_a_bad_hello_ends_the_connection_with_a_sentence(server, hello):
    with connect(f"ws://127.0.0.1:{server}/api/v1/live", subprotocols=[PROTOCOL]) as socket:
        socket.send(json.dumps({"type": "hello", **hello}))
        assert json.loads(socket.recv(10))["message"].endswith(".")
        with pytest.raises(ConnectionClosed):
            socket.recv(10)


def test_another_subprotocol_and_another_site_are_refused(server):
    address = f"ws://127.0.0.1:{server}/api/v1/live"
    with pytest.raises(InvalidStatus):
        connect(address, subprotocols=["other"])
    with pytest.raises(InvalidStatus):
        connect(address, subprotocols=[PROTOCOL], origin="http://evil.example")


def test_mjpeg_shows_the_pictures(client, server):
    client.frame(colour("red"))
    client.output()
    with httpx.stream("GET", f"http://127.0.0.1:{server}/live/{client.welcome['session']}.mjpg") as answer:
        assert answer.headers["content-type"].startswith("multipart/x-mixed-replace")
        seen = b""
        for chunk in answer.iter_bytes():
            seen += chunk
            if seen.count(b"--fewstep") == 2:
                break
    _head, _, body = seen.partition(b"\r\n\r\n")
    assert Image.open(io.BytesIO(body.partition(b"\r\n--fewstep")[0])).size == (64, 64)
    assert httpx.get(f"http://127.0.0.1:{server}/live/nobody.mjpg").status_code == 404


def test_the_schema_is_served_with_first_values(server):
    found = httpx.get(f"http://127.0.0.1:{server}/api/v1/live/schema").json()
    assert found["defaults"]["width"] == found["size_px"] == 64
    assert set(found["schema"]["properties"]) == set(found["defaults"]) - {"keep"}  # there is no history


def test_tickets_are_given_to_those_inside(server):
    answer = httpx.post(f"http://127.0.0.1:{server}/api/v1/live/tickets", json={})
    assert answer.status_code == 200 and len(answer.json()["ticket"]) > 20


def test_a_pipeline_that_paints_together_is_measured_and_has_its_depth(server, studio, monkeypatch):
    from fewstep.engine.pace import Pace

    if not isinstance(studio.painting, Here):
        pytest.skip("workers share calls among their sessions, not among one session's frames")
    monkeypatch.setattr(studio.pipe, "batch", 4)
    monkeypatch.setattr(studio.painting.network, "_room", 1)  # as it was, afterwards
    monkeypatch.setattr(studio.painting, "_paces", {studio.pipe: Pace({1: 0.02, 2: 0.021, 4: 0.022}, 0.0, (64, 64))})
    seen = []
    monkeypatch.setattr(seats, "depth_of", lambda *how: seen.append(depth_of(*how)) or seen[-1])
    client = Client(server, fps=30, values=VALUES | {"steps": 4, "guidance": 1})
    client.say("params", rev=1, patch={"steps": 1})
    client.until("params_ack")
    assert seen == [4, 1]
    client.frame(colour("red"))
    assert client.output().revision == 1
    client.close()


def test_a_session_begins_with_its_models_own_strength(client):
    assert client.welcome["values"]["strength"] == 0.6
    assert seats.first_fields(family_of({"cross_attention_dim": 160})).request.strength == 0.2
    for rev, (asked, found) in enumerate([(0.3, 0.3), (None, 0.6)], 1):
        client.say("params", rev=rev, patch={"strength": asked})
        assert client.until("params_ack")["effective"]["strength"] == found


@pytest.mark.parametrize(("strength", "steps"), [(0.15, 7), (1, 8)])
def test_the_better_picture_has_as_many_steps_as_its_strength_has(studio, strength, steps):
    from fewstep.serve.seats import Hello, better, first_fields

    fields = first_fields(studio.pipe.model.family).patched(
        {"strength": strength, "steps": 4, "sampler": "lcm", "schedule": "linspace-lcm"}
    )
    assert better(studio.pipe, Hello(), fields, studio.limits).request.steps == steps
    assert better(studio.pipe, Hello(), fields.patched({"refine": False}), studio.limits) is None
