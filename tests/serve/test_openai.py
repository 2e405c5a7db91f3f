"""OpenAI's own client against the server: generate, edit, stream with partials, models, errors."""

import base64
import io

import httpx
import numpy as np
import pytest
from PIL import Image

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server}/v1", api_key="any", max_retries=0)


def opened(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def file_of(image, kind="PNG"):
    stream = io.BytesIO()
    image.save(stream, kind)
    return (f"a.{kind.lower()}", stream.getvalue(), f"image/{kind.lower()}")


def test_generate_is_the_pipelines_picture(client, studio):
    extra = {"seed": 5, "steps": 2, "guidance": 1.5, "negative_prompt": "moon"}
    answer = client.images.generate(prompt="a cat", n=2, size="64x64", extra_body=extra)
    assert answer.size == "64x64" and answer.output_format == "png" and answer.usage.total_tokens > 0
    expected = studio.pipe("a cat", count=2, width=64, height=64, **extra)
    for data, picture in zip(answer.data, expected, strict=True):
        assert np.array_equal(np.asarray(opened(data.b64_json)), np.asarray(picture))
        assert "Negative prompt: moon" in opened(data.b64_json).info["parameters"]


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_formats(client, kind):
    answer = client.images.generate(prompt="a cat", output_format=kind, output_compression=50, extra_body={"steps": 1})
    assert opened(answer.data[0].b64_json).format == kind.upper() and len(answer.data) == 1


def test_edit_with_and_without_a_mask(client):
    image = Image.effect_noise((64, 64), 60).convert("RGB")
    hole = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    hole.paste((0, 0, 0, 0), (0, 0, 32, 64))
    extra = {"seed": 1, "steps": 2, "strength": 1.0}
    painted = client.images.edit(image=file_of(image), mask=file_of(hole), prompt="a dog", extra_body=extra)
    found, before = (np.asarray(one.convert("RGB")).astype(int) for one in (opened(painted.data[0].b64_json), image))
    assert np.array_equal(found[:, 32:], before[:, 32:]) and not np.array_equal(found[:, :32], before[:, :32])
    whole = client.images.edit(image=file_of(image, "WEBP"), prompt="a dog", extra_body={"steps": 1, "seed": 1})
    assert opened(whole.data[0].b64_json).size == (64, 64)


def test_the_images_own_transparency_is_a_mask(client):
    image = Image.new("RGBA", (64, 64), (200, 10, 10, 255))
    image.paste((200, 10, 10, 0), (0, 0, 16, 64))
    answer = client.images.edit(image=file_of(image), prompt="a dog", extra_body={"steps": 1, "strength": 1.0})
    assert (np.asarray(opened(answer.data[0].b64_json).convert("RGB"))[:, 16:] == (200, 10, 10)).all()


def test_several_images_are_edited_one_by_one_the_first_with_the_mask(client):
    colours, extra = ["red", "blue"], {"steps": 2, "seed": 4}
    images = [file_of(Image.new("RGB", (64, 64), colour)) for colour in colours]
    hole = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    hole.paste((0, 0, 0, 0), (0, 0, 32, 64))
    together = client.images.edit(image=images, mask=file_of(hole), prompt="a dog", n=2, extra_body=extra).data
    first = client.images.edit(image=images[0], mask=file_of(hole), prompt="a dog", n=2, extra_body=extra).data
    second = client.images.edit(image=images[1], prompt="a dog", n=2, extra_body=extra).data
    assert [one.b64_json for one in together] == [one.b64_json for one in (*first, *second)]
    events = list(client.images.edit(image=images, prompt="x", stream=True, partial_images=1, extra_body=extra))
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"] * 2
    assert [event.partial_image_index for event in events[::2]] == [0, 0]


@pytest.mark.parametrize("partials", [0, 1, 3])
def test_streams_with_partials(client, partials):
    extra = {"steps": 4, "seed": 3}
    events = list(client.images.generate(prompt="a cat", stream=True, partial_images=partials, extra_body=extra))
    assert [event.type for event in events] == ["image_generation.partial_image"] * partials + [
        "image_generation.completed"
    ]
    assert [event.partial_image_index for event in events[:-1]] == list(range(partials))
    whole = client.images.generate(prompt="a cat", extra_body=extra)
    assert events[-1].b64_json == whole.data[0].b64_json and events[-1].usage.total_tokens > 0
    assert all(opened(event.b64_json).size == (64, 64) for event in events)


def test_an_edit_streams_too(client):
    image = Image.new("RGB", (64, 64), "red")
    events = list(
        client.images.edit(image=file_of(image), prompt="x", stream=True, partial_images=1, extra_body={"steps": 2})
    )
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]


def test_models(client, studio):
    assert [model.id for model in client.models.list()] == [studio.pipe.model.name]
    assert client.models.retrieve(studio.pipe.model.name).object == "model"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-image-1'"):
        client.models.retrieve("gpt-image-1")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"size": "huge"}, "size is 'huge'"),
        ({"size": "9999x9999"}, "from 64 to 2048"),
        ({"n": 11}, "n: "),
        ({"output_format": "gif"}, "output_format is 'gif'"),
        ({"response_format": "url"}, "b64_json"),
        ({"extra_body": {"steps": 0}}, "steps is 0"),
        ({"extra_body": {"steps": "many"}}, "not a whole number"),
        ({"extra_body": {"hires_scale": 2, "hires_upscaler": "/etc/x.onnx"}}, "no upscaler"),
        ({"prompt": "a <lora:../../etc/passwd:1>"}, "is a path"),
        ({"prompt": "a" * 10_001}, "prompt: "),
    ],
)
def test_errors_have_openais_form(client, fields, match):
    with pytest.raises(openai.BadRequestError, match=match) as said:
        client.images.generate(**{"prompt": "a cat", **fields})
    assert said.value.body["type"] == "invalid_request_error" and "Traceback" not in str(said.value)


def test_an_edit_without_a_good_picture(client, server):
    with pytest.raises(openai.BadRequestError, match="not a PNG, JPEG or WebP"):
        client.images.edit(image=("a.png", b"GIF89a", "image/png"), prompt="x")
    with pytest.raises(openai.BadRequestError, match="20 pictures are more than 16"):
        client.images.edit(image=[file_of(Image.new("RGB", (64, 64)))] * 2, prompt="x", n=10)
    answer = httpx.post(f"http://127.0.0.1:{server}/v1/images/edits", data={"prompt": "x"})
    assert answer.status_code == 400 and "No image was sent" in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"null", b'{"prompt": 3}', b'{"prompt": "\\ud800"}'])
def test_bodies_that_are_none(server, body):
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"http://127.0.0.1:{server}/v1/images/generations", content=body, headers=headers)
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"
