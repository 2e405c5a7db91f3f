"""OpenAI's own client, where tests/serve/test_openai.py does not go: keys, limits, several pictures, refusals."""

import base64
import io

import httpx
import numpy as np
import pytest
from PIL import Image

from fewstep.engine.work import BusyError
from fewstep.serve.jobs import Studio
from tests.serve.null import NullPipeline
from tests.serve.pictures import file_of
from tests.serve.running import running

openai = pytest.importorskip("openai")
NOISE = Image.effect_noise((64, 64), 80).convert("RGB")


def client_of(port, key="any"):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0)


@pytest.fixture(scope="module")
def client(server):
    return client_of(server)


def opened(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def png(image):
    return ("a.png", file_of(image), "image/png")


@pytest.mark.parametrize(
    ("size", "found"), [("auto", (64, 64)), ("128x64", (128, 64)), ("72x100", (72, 96)), (None, (64, 64))]
)
def test_sizes(client, size, found):
    answer = client.images.generate(prompt="a cat", **({"size": size} if size else {}))
    assert opened(answer.data[0].b64_json).size == found and answer.size == "{}x{}".format(*found)


@pytest.mark.parametrize(
    "size", ["64", "64x", "x64", "-64x64", "64x64x64", "1e3x64", "0x0", "63x63", "99999x64", " 64x64"]
)
def test_sizes_that_are_none(client, size):
    with pytest.raises(openai.BadRequestError) as said:
        client.images.generate(prompt="a cat", size=size)
    assert said.value.body["type"] == "invalid_request_error"


def test_n_pictures_differ_and_are_those_asked_alone(client):
    extra = {"seed": 40, "steps": 2}
    several = client.images.generate(prompt="a cat", n=3, extra_body=extra).data
    alone = client.images.generate(prompt="a cat", extra_body={**extra, "seed": 42}).data[0]
    assert len({entry.b64_json for entry in several}) == 3
    assert np.array_equal(np.asarray(opened(several[2].b64_json)), np.asarray(opened(alone.b64_json)))


@pytest.mark.parametrize(("kind", "mime"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_formats_and_compression(client, kind, mime):
    how = {"prompt": "a cat", "size": "256x256", "output_format": kind, "extra_body": {"seed": 1, "steps": 1}}
    sizes = []
    for compression in (10, 95):
        answer = client.images.generate(**how, output_compression=compression)
        assert answer.output_format == kind and opened(answer.data[0].b64_json).format == mime
        sizes.append(len(answer.data[0].b64_json))
    assert sizes[0] < sizes[1] or kind == "png"


def test_an_edit_of_several(client):
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 64, 16))
    extra = {"seed": 1, "steps": 2, "strength": 1.0}
    answer = client.images.edit(image=png(NOISE), mask=png(mask), prompt="a dog", n=2, size="64x64", extra_body=extra)
    one, other = (np.asarray(opened(entry.b64_json).convert("RGB")) for entry in answer.data)
    assert np.array_equal(one[16:], np.asarray(NOISE)[16:]) and np.array_equal(other[16:], one[16:])
    assert not np.array_equal(one[:16], other[:16])


def test_one_image_in_a_list_is_one(client):
    assert len(client.images.edit(image=[png(NOISE)], prompt="a dog").data) == 1
    assert len(client.images.edit(image=[png(NOISE)] * 3, prompt="a dog", n=2).data) == 6


@pytest.mark.parametrize("edit", [False, True])
def test_four_steps_stream_three_partials_and_the_picture(client, edit):
    how = {"prompt": "a cat", "stream": True, "partial_images": 3, "extra_body": {"steps": 4, "seed": 3}}
    if edit:
        how["extra_body"]["strength"] = 1.0
    events = list(client.images.edit(image=png(NOISE), **how) if edit else client.images.generate(**how))
    name = "image_edit" if edit else "image_generation"
    assert [event.type for event in events] == [f"{name}.partial_image"] * 3 + [f"{name}.completed"]
    assert [event.partial_image_index for event in events[:3]] == [0, 1, 2]
    assert (
        len({event.b64_json for event in events}) == 4 and events[3].usage.total_tokens == events[3].usage.input_tokens
    )


def test_several_stream_each(client):
    events = list(client.images.generate(prompt="a cat", n=2, stream=True, partial_images=1, extra_body={"steps": 4}))
    assert (
        sorted(event.type for event in events)
        == ["image_generation.completed"] * 2 + ["image_generation.partial_image"] * 2
    )


def test_keys_and_large_bodies(tmp_path):
    studio = Studio(NullPipeline(tmp_path))
    with running(studio, key="s3cret", body_limit=20_000) as port:
        assert client_of(port, "s3cret").images.generate(prompt="a cat").data
        with pytest.raises(openai.AuthenticationError) as said:
            client_of(port, "guess").images.generate(prompt="a cat")
        assert said.value.code == "invalid_api_key" and "key" in said.value.body["message"]
        with pytest.raises(openai.APIStatusError, match="more than 20000 bytes") as said:
            client_of(port, "s3cret").images.edit(image=png(Image.effect_noise((256, 256), 90)), prompt="x")
        assert said.value.status_code == 413


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_server(client, studio, monkeypatch, stream):
    def full(work):
        raise BusyError("64 pictures are waiting already. Try again in 2.5 s.", 2.5)

    monkeypatch.setattr(studio.engine, "submit", full)
    with pytest.raises(openai.RateLimitError, match="Try again in 2.5 s") as said:
        client.images.generate(prompt="a cat", stream=stream)
    assert said.value.response.headers["retry-after"] == "3" and said.value.body["type"] == "rate_limit_error"


@pytest.mark.parametrize(
    ("path", "status"), [("/v1/images/nothing", 404), ("/v1/models/x/y", 404), ("/v1/images/generations", 405)]
)
def test_what_is_not_there_has_openais_form(server, path, status):
    answer = httpx.get(f"http://127.0.0.1:{server}{path}")
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("fields", "files"),
    [
        ({"prompt": "x", "n": "many"}, {"image": b""}),
        ({"prompt": "x", "n": "11"}, "good"),
        ({"prompt": "x", "steps": "many"}, "good"),
        ({"prompt": "x", "size": "big"}, "good"),
        ({"prompt": "x", "mask": "a text"}, {}),
        ({}, "good"),
    ],
)
def test_forms_that_are_wrong(server, fields, files):
    files = {"image": png(NOISE)} if files == "good" else files
    answer = httpx.post(f"http://127.0.0.1:{server}/v1/images/edits", data=fields, files=files)
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"
