"""The interface described: an OpenAPI document that says what is true here, and a page made from it without scripts.

FastAPI's own page takes its scripts from another site, which the content policy of this server forbids.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse, Response

Document = dict[str, Any]
PAINTING = ("/txt2img", "/img2img", "/generations", "/edits")
ERRORS = {
    "400": "A value is not allowed; the sentence says which, and what is.",
    "401": "The server wants its key.",
    "413": "The body is too large.",
    "422": "The order has not the form that is described here.",
    "429": "The queue is full. Retry-After says when to come again.",
    "503": "The job waited too long, or the server is shutting down. Retry-After says when to come again.",
    "4XX": "Refused: the sentence says why.",
    "5XX": "It could not be done: the sentence says why.",
}
DETAIL = {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]}
_TEXT = {"type": "string"}
_MAYBE = {"type": ["string", "null"]}
OPENAI = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {"message": _TEXT, "type": _TEXT, "param": _MAYBE, "code": _MAYBE},
            "required": ["message", "type"],
        }
    },
    "required": ["error"],
}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
body { background: #fff; } a { color: #0645ad; } code { font-size: .95em; } td, th { padding: .2rem .8rem .2rem 0; }
th, td { text-align: left; vertical-align: top; border-bottom: 1px solid #8884; } h3 { margin: 2rem 0 .3rem; }
.method { text-transform: uppercase; font-weight: bold; } table { border-collapse: collapse; margin: .5rem 0; }
@media (prefers-color-scheme: dark) { body { background: #16181c; color: #ddd; } a { color: #8ab4f8; } }
"""


def describe(app: FastAPI) -> None:
    """Give the application its document and its page."""
    plain: Callable[[], Document] = app.openapi
    found: Document = {}

    def document() -> Document:
        if not found:
            found.update(_completed(plain()))
        return found

    app.openapi = document
    routes = APIRouter(include_in_schema=False)

    @routes.get("/docs", response_class=HTMLResponse)
    async def docs() -> HTMLResponse:
        return HTMLResponse(await asyncio.to_thread(lambda: page(document())))

    @routes.get("/docs.css")
    async def style() -> Response:
        return Response(STYLE, media_type="text/css")

    app.include_router(routes)


def _completed(document: Document) -> Document:
    """With the answers that every route has when something is wrong, and the two ways to bring a key."""
    parts = document.setdefault("components", {})
    for name in ("HTTPValidationError", "ValidationError"):  # our sentences have another form
        parts.get("schemas", {}).pop(name, None)
    parts.setdefault("schemas", {}).update(Detail=DETAIL, OpenAIError=OPENAI)
    schemes = {"bearer": {"type": "http", "scheme": "bearer"}, "basic": {"type": "http", "scheme": "basic"}}
    parts["securitySchemes"] = schemes
    document["security"] = [{}, *({name: []} for name in schemes)]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _add_errors(path, method, operation)
    return document


def _add_errors(path: str, method: str, operation: Document) -> None:
    answers, openai = operation["responses"], path.startswith("/v1/")
    wrong = answers.pop("422", None)
    codes = ["401", *(["400", "413"] if method == "post" else []), *(["400" if openai else "422"] if wrong else [])]
    schema = {"$ref": f"#/components/schemas/{'OpenAIError' if openai else 'Detail'}"}
    for code in [*codes, *(["429", "503"] if path.endswith(PAINTING) else []), "4XX", "5XX"]:
        content = {"application/json": {"schema": schema}}
        answers.setdefault(code, {"description": ERRORS[code], "content": content})
    operation["responses"] = dict(sorted(answers.items()))


def page(document: Document) -> str:
    """The document as HTML."""
    info, groups = document["info"], _by_tag(document)
    links = " · ".join(f'<a href="#{escape(tag)}">{escape(tag)}</a>' for tag in groups)
    schemas: Mapping[str, Any] = document["components"]["schemas"]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="/docs.css">',
        f"<title>{escape(info['title'])} API</title></head><body><main>",
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
        f'<p>{links} · <a href="#schemas">schemas</a> · <a href="/openapi.json">openapi.json</a></p>',
    ]
    for tag, operations in groups.items():
        parts.append(f'<h2 id="{escape(tag)}">{escape(tag)}</h2>')
        parts += [_operation(*each) for each in operations]
    parts.append('<h2 id="schemas">schemas</h2>')
    parts += [f'<h3 id="schema-{escape(name)}">{escape(name)}</h3>{_fields(one)}' for name, one in schemas.items()]
    return "".join([*parts, "</main></body></html>"])


def _by_tag(document: Document) -> dict[str, list[tuple[str, str, Document]]]:
    groups: dict[str, list[tuple[str, str, Document]]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            groups.setdefault(operation.get("tags", ["server"])[0], []).append((method, path, operation))
    return groups


def _operation(method: str, path: str, operation: Document) -> str:
    about = escape(operation.get("description") or operation.get("summary", ""))
    parts = [f'<h3><span class="method">{method}</span> <code>{escape(path)}</code></h3><p>{about}</p>']
    rows = [
        (one["name"], _kind(one["schema"]), one.get("description", one["schema"].get("description", "")))
        for one in operation.get("parameters", ())
    ]
    parts += [_table(("parameter", "type", ""), rows)] if rows else []
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(
            f"<p>Body, <code>{escape(kind)}</code>: {_kind(content['schema'])}</p>{_fields(content['schema'])}"
        )
    answers = [(code, _answers(one), one["description"]) for code, one in operation["responses"].items()]
    return "".join([*parts, _table(("answer", "", ""), answers)])


def _answers(answer: Document) -> str:
    return ", ".join(
        f"{escape(kind)} {_kind(one.get('schema', {}))}" for kind, one in answer.get("content", {}).items()
    )


def _fields(schema: Document) -> str:
    needed = schema.get("required", ())
    rows = [
        (f"{name}{' *' if name in needed else ''}", _kind(one), one.get("description", ""))
        for name, one in schema.get("properties", {}).items()
    ]
    return _table(("field", "type", ""), rows) if rows else ""


def _kind(schema: Document) -> str:
    """A type in words, as HTML: `array of <a>Summary</a>`, `integer from 1 to 200`."""
    if reference := schema.get("$ref"):
        name = escape(reference.rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    if several := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_kind(one) for one in several)
    kind = schema.get("type", "anything")
    kind = kind if isinstance(kind, str) else " or ".join(kind)
    if kind == "array":
        return f"array of {_kind(schema.get('items', {}))}"
    return escape(" ".join([kind, *_limits(schema)]))


def _limits(schema: Document) -> Iterator[str]:
    if "enum" in schema:
        yield "(" + ", ".join(map(str, schema["enum"])) + ")"
    for key, word in (
        ("minimum", "from"),
        ("exclusiveMinimum", "above"),
        ("maximum", "to"),
        ("maxLength", "of at most"),
    ):
        if key in schema:
            yield f"{word} {schema[key]:.10g}"
    if "default" in schema and schema["default"] not in (None, ""):
        yield f"[{schema['default']}]"


def _table(head: tuple[str, ...], rows: list[tuple[str, str, str]]) -> str:
    """Types are HTML already, names and descriptions are not."""
    titles = "".join(f"<th>{title}</th>" for title in head)
    lines = [
        f"<tr><td><code>{escape(name)}</code></td><td>{kind}</td><td>{escape(text)}</td></tr>"
        for name, kind, text in rows
    ]
    return f"<table><tr>{titles}</tr>{''.join(lines)}</table>"
