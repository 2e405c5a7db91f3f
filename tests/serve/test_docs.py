"""The page that describes the interface needs no script and no other site; the document says what is true."""

import re
from html.parser import HTMLParser

import httpx
import pytest

from fewstep.serve.docs import page


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=f"http://127.0.0.1:{server}", timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def document(http):
    return http.get("/openapi.json").json()


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def of(self, name):
        return {value for key, value in self.attributes if key == name}


def test_the_page_works_under_the_policy(http):
    answer = http.get("/docs")
    assert answer.status_code == 200 and "default-src 'self'" in answer.headers["content-security-policy"]
    read = Page(answer.text)
    assert not read.open and not {"script", "style", "iframe", "img"} & read.tags
    assert not [name for name, _ in read.attributes if name == "style" or name.startswith("on")]
    links = read.of("href")
    assert {link[1:] for link in links if link.startswith("#")} <= read.of("id")
    own = {link for link in links if not link.startswith("#")}
    assert own == {"/docs.css", "/openapi.json"} and all(http.get(link).status_code == 200 for link in own)
    assert (
        http.get("/docs.css").headers["content-type"].startswith("text/css") and http.get("/redoc").status_code == 404
    )


def test_the_page_has_every_route_and_every_field(http, document):
    text = http.get("/docs").text
    for path, operations in document["paths"].items():
        assert f"<code>{path}</code>" in text and all(f'"method">{method}<' in text for method in operations)
    for name in ("hr_scale", "init_images", "force_task_id", "fewstep_policy", "partial_images", "eta_relative"):
        assert f"<code>{name}" in text
    assert "integer from 1 to 1000" in text


def test_what_is_described_is_escaped(document):
    evil = "<script>alert(1)</script>"
    operation = {"description": evil, "responses": {"200": {"description": evil}}, "tags": [evil]}
    operation["parameters"] = [{"name": evil, "schema": {"type": evil, "default": evil}}]
    text = page({**document, "paths": {f"/{evil}": {"get": operation}}, "info": {"title": evil, "version": evil}})
    assert "<script" not in text and text.count("&lt;script&gt;") >= 8


def test_every_operation_says_something_and_every_reference_is_there(document):
    schemas = document["components"]["schemas"]
    found = set(re.findall(r'"#/components/schemas/([^"]+)"', httpx.Response(200, json=document).text))
    assert found <= set(schemas) and "HTTPValidationError" not in schemas
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation.get("description") or operation.get("summary"), path
            assert "401" in operation["responses"]


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("GET", "/sdapi/v1/progress?skip_current_image=perhaps", None, "422"),
        ("POST", "/sdapi/v1/txt2img", {"prompt": 5}, "400"),
        ("POST", "/sdapi/v1/txt2img", [], "422"),
        ("POST", "/v1/images/generations", {}, "400"),
        ("GET", "/v1/models/nothing", None, "404"),
    ],
)
def test_errors_have_the_form_that_is_described(http, document, method, path, body, code):
    answer = http.request(method, path, json=body)
    assert str(answer.status_code) == code
    described = document["paths"]["/v1/models/{name}" if "models" in path else path.partition("?")[0]][method.lower()]
    assert code in described["responses"]
    form = "OpenAIError" if path.startswith("/v1/") else "Detail"
    assert set(answer.json()) == set(document["components"]["schemas"][form]["required"])


def test_orders_are_described_from_the_fields_of_a_request(document):
    def order(path):
        return document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]

    plain, started = order("/sdapi/v1/txt2img"), order("/sdapi/v1/img2img")
    assert (plain["properties"]["steps"]["minimum"], plain["properties"]["steps"]["maximum"]) == (1, 1000)
    assert "init_images" not in plain["properties"] and started["required"] == ["init_images"]
    assert plain["additionalProperties"] is True
    form = document["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert {"prompt", "image", "mask", "n"} <= set(form["properties"])
