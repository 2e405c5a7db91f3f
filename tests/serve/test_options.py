"""Options that are posted hold for later orders; what is not known is kept and changes nothing."""

import base64
import io
import json

import httpx
import pytest
from PIL import Image

from fewstep.errors import RequestError
from fewstep.serve.a1111_options import DEFAULTS, ROOM, Options, fields_of

ORDER = {"prompt": "a (cat:1.2)", "steps": 2, "cfg_scale": 1, "seed": 5, "width": 64, "height": 64}
ORDER |= {"sampler_name": "Euler a"}


@pytest.fixture
def http(server):
    with httpx.Client(base_url=f"http://127.0.0.1:{server}", timeout=60) as client:
        yield client
        client.post("/sdapi/v1/options", json=dict.fromkeys(client.get("/sdapi/v1/options").json()))


def text_of(http, **more):
    answer = http.post("/sdapi/v1/txt2img", json={**ORDER, **more})
    picture = Image.open(io.BytesIO(base64.b64decode(answer.json()["images"][0])))
    return picture.info["parameters"]


def test_later_orders_heed_the_options_and_their_own_settings_win(http):
    before = text_of(http)
    assert "Clip skip" not in before and "ENSD" not in before
    posted = {"CLIP_stop_at_last_layers": 2, "eta_noise_seed_delta": 31337}
    assert http.post("/sdapi/v1/options", json=posted).json() is None
    assert posted.items() <= http.get("/sdapi/v1/options").json().items()
    assert "Clip skip: 2" in text_of(http) and "ENSD: 31337" in text_of(http)
    own = text_of(http, override_settings={"CLIP_stop_at_last_layers": 1})
    assert "Clip skip" not in own and "ENSD: 31337" in own
    assert "Clip skip: 2" in text_of(http)
    stay = {"override_settings": {"CLIP_stop_at_last_layers": 3}, "override_settings_restore_afterwards": False}
    text_of(http, **stay)
    assert "Clip skip: 3" in text_of(http)


def test_the_policy_holds_for_later_orders(http, studio, monkeypatch):
    from dataclasses import replace

    few = replace(studio.pipe.model.sampling, sampler="lcm", table="linspace-lcm", steps=4, guidance=1.0)
    monkeypatch.setattr(studio.pipe.model, "sampling", few)
    assert "Steps: 4" in text_of(http, steps=9)
    http.post("/sdapi/v1/options", json={"fewstep_policy": "respect"})
    assert "Steps: 9" in text_of(http, steps=9)
    assert "Steps: 4" in text_of(http, steps=9, override_settings={"fewstep_policy": "clamp"})


def test_all_options_may_be_posted_back_with_more(http):
    options = http.get("/sdapi/v1/options").json()
    more = {**options, "img2img_fix_steps": True, "sd_checkpoint_hash": "0000000000", "nested": {"a": [1]}}
    assert http.post("/sdapi/v1/options", json=more).status_code == 200
    found = http.get("/sdapi/v1/options").json()
    assert found == {**more, "sd_checkpoint_hash": options["sd_checkpoint_hash"]}
    http.post("/sdapi/v1/options", json={"nested": None, "img2img_fix_steps": None})


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"CLIP_stop_at_last_layers": 13}, "CLIP_stop_at_last_layers: .* from 1 to 12"),
        ({"CLIP_stop_at_last_layers": "two"}, "not a whole number"),
        ({"eta_noise_seed_delta": -1}, "eta_noise_seed_delta: .* from 0"),
        ({"fewstep_policy": ["clamp"]}, "one of: clamp, respect"),
        ({"sd_model_checkpoint": 5}, "not text"),
        ({"x": "y" * ROOM}, "Send fewer"),
    ],
)
def test_bad_values_change_nothing(given, match):
    options = Options()
    with pytest.raises(RequestError, match=match):
        options.keep({"eta_noise_seed_delta": 5, **given})
    assert options.kept == DEFAULTS
    if "x" not in given:
        with pytest.raises(RequestError, match=match):
            options.heeded({"override_settings": given})


def test_whole_numbers_may_come_as_floats_and_null_is_the_default():
    options = Options()
    options.keep({"CLIP_stop_at_last_layers": 2.0, "mine": 1})
    assert fields_of(options.heeded({}))["clip_skip"] == 2
    options.keep({"CLIP_stop_at_last_layers": None, "mine": None})
    assert fields_of(options.heeded({"override_settings": {"CLIP_stop_at_last_layers": None}}))["clip_skip"] == 1


def test_bad_options_are_answered_400(http):
    answer = http.post("/sdapi/v1/options", json={"fewstep_policy": "sometimes"})
    assert answer.status_code == 400 and "clamp" in answer.json()["detail"]
    answer = http.post("/sdapi/v1/txt2img", json={**ORDER, "override_settings": {"CLIP_stop_at_last_layers": 99}})
    assert answer.status_code == 400 and json.dumps(answer.json())
