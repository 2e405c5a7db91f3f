"""Requests as other programs' clients send them, replayed: tests/clients/requests/*.json, one session a file.

A request names what its answer is to be: its `status` (200 where none is named), and CHECKS below by their names: parts
of JSON, keys, pictures and what A1111's info says. In bodies $PNG and its kin stand for pictures, {"$keep": name} for
an answer that was kept, $LASTIMAGE for the last picture.
"""

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from tests.serve.pictures import file_of, text_of

SESSIONS = sorted((Path(__file__).parent / "requests").glob("*.json"))


def painted():
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    mask = Image.new("RGB", (64, 64))
    mask.paste("white", (0, 0, 32, 64))
    words = {"$PNG": text_of(file_of(noise)), "$MASK": text_of(file_of(mask))}
    return words | {
        f"$DATA{name}": f"data:image/png;base64, {words[f'${of}']}" for name, of in (("", "PNG"), ("MASK", "MASK"))
    }


def filled(value, words, kept):
    if isinstance(value, dict):
        more = kept[value["$keep"]] if "$keep" in value else {}
        return {**more, **{key: filled(entry, words, kept) for key, entry in value.items() if key != "$keep"}}
    if isinstance(value, list):
        return [filled(entry, words, kept) for entry in value]
    return words.get(value, value) if isinstance(value, str) else value


def within(part, whole):
    """Whether every entry of a part is in the whole, at any depth."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(key in whole and within(part[key], whole[key]) for key in part)
    return part == whole


def pictures_of(answer):
    texts = answer.get("images") or ([answer["image"]] if "image" in answer else [])
    return [Image.open(io.BytesIO(base64.b64decode(text, validate=True))) for text in texts]


def info_of(answer):
    return json.loads(answer["info"])


CHECKS = {
    "equals": lambda wanted, answer: answer == wanted,
    "has": within,
    "keys": lambda wanted, answer: set(wanted) <= set(answer),
    "without": lambda wanted, answer: not set(wanted) & set(answer),
    "list": lambda wanted, answer: isinstance(answer, list),
    "each": lambda wanted, answer: answer and all(set(wanted) <= set(entry) for entry in answer),
    "first": lambda wanted, answer: within(wanted, answer[0]),
    "detail": lambda wanted, answer: wanted in answer["detail"],
    "contains": lambda wanted, answer: wanted in answer["info"],
    "images": lambda wanted, answer: len(pictures_of(answer)) == wanted,
    "size": lambda wanted, answer: {image.size for image in pictures_of(answer)} == {tuple(wanted)},
    "text": lambda wanted, answer: all(wanted in image.info["parameters"] for image in pictures_of(answer)),
    "data": lambda wanted, answer: len(answer["data"]) == wanted and all(entry["b64_json"] for entry in answer["data"]),
    "info": lambda wanted, answer: within(wanted, info_of(answer)),
    "infokeys": lambda wanted, answer: set(wanted) <= set(info_of(answer)),
    "said": lambda wanted, answer: set(wanted) <= set(info_of(answer)["extra_generation_params"].values()),
}
NOTES = {"get", "post", "body", "status", "keep"}


@pytest.mark.parametrize("session", SESSIONS, ids=lambda path: path.stem)
def test_a_recorded_session(http, session):
    record, words, kept = json.loads(session.read_text(encoding="utf-8")), painted(), {}
    for number, wanted in enumerate(record["requests"]):
        method = "get" if "get" in wanted else "post"
        more = {"json": filled(wanted["body"], words, kept)} if "body" in wanted else {}
        reply = http.request(method, wanted[method], headers=record["headers"], **more)
        where = f"{session.stem} {number}: {method} {wanted[method]}: {reply.text[:300]}"
        assert reply.status_code == wanted.get("status", 200), where
        answer = kept[wanted.get("keep")] = reply.json()
        for name in set(wanted) - NOTES:
            assert CHECKS[name](wanted[name], answer), f"{name} of {where}"
        if "images" in wanted:
            words["$LASTIMAGE"] = f"data:image/png;base64,{answer['images'][0]}"


def test_the_checks_see_what_is_wrong():
    good = {"images": [painted()["$PNG"]], "info": '{"seed": 1, "extra_generation_params": {}}', "detail": "x"}
    for name, wrong in {
        "equals": {}, "has": {"detail": "y"}, "keys": ["a"], "without": ["info"], "list": True, "detail": "y",
        "images": 2, "size": [8, 8], "info": {"seed": 2}, "infokeys": ["x"], "said": ["x"], "contains": "y",
    }.items():  # fmt: skip
        assert not CHECKS[name](wrong, good), name
    assert not CHECKS["each"](["a"], [{"b": 1}]) and not CHECKS["first"]({"a": 1}, [{"a": 2}])
    assert not CHECKS["data"](1, {"data": []})
