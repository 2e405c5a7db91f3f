"""The history: what it keeps, finds, gives back and forgets."""

import asyncio
import io
import sqlite3

import httpx
import numpy as np
import pytest
from PIL import Image

from fewstep.errors import OutputError
from fewstep.pipeline import Pipeline
from fewstep.request import Request, request_of
from fewstep.serve.frames import Flag
from fewstep.serve.history import History
from fewstep.serve.jobs import Studio
from tests.serve.running import running
from tests.serve.talking import VALUES, Client, colour
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def pipe():
    return Pipeline(tiny_model("sd15"))


@pytest.fixture(scope="module")
def painted(pipe):
    """Orders with their pictures, by prompt; none was kept yet."""

    async def paint():
        studio, orders = Studio(pipe), {}
        for number, prompt in enumerate(("a red apple", "a Red cat, 50% off", "Äpfel und cats", "")):
            request = Request(prompt, steps=1, seed=number, width=64, height=64, count=1 + (number == 1))
            orders[prompt] = await studio.open(request, owner="me")
            await studio.pictures(orders[prompt], gone=asyncio.Event().wait())
        studio.close()
        return [*orders.values()]

    return asyncio.run(paint())


def found(history, **how):
    return [one.prompt for one in asyncio.run(history.list(**how))]


@pytest.mark.parametrize("full_text", [True, False])
def test_search_finds_prompts_with_all_words(painted, tmp_path, full_text):
    history = History(tmp_path, full_text=full_text)
    for order in painted:
        history.keep(order)
    assert history.full_text is full_text
    assert found(history) == ["", "Äpfel und cats", "a Red cat, 50% off", "a Red cat, 50% off", "a red apple"]
    assert found(history, words="RED") == ["a Red cat, 50% off"] * 2 + ["a red apple"]
    assert found(history, words="cat") == ["Äpfel und cats"] + ["a Red cat, 50% off"] * 2
    assert found(history, words="apple, red!") == ["a red apple"] and found(history, words="50%") != []
    for words in ("%", '"', "*", "dog", "red OR dog", "NEAR(a b)", "' OR 1=1 --", "_" * 9, "prompt:red x"):
        assert found(history, words=words) == []
    assert found(history, words="a " * 500) != []
    history.close()


def test_pages_follow_one_another(painted, tmp_path):
    history = History(tmp_path)
    for order in painted:
        history.keep(order)
    first = asyncio.run(history.list(limit=2))
    rest = asyncio.run(history.list(before=first[-1].number, limit=9))
    assert len(first) == 2 and len(rest) == 3
    assert [one.number for one in (*first, *rest)] == [5, 4, 3, 2, 1]
    history.close()


def test_what_is_kept_paints_the_same_again(painted, tmp_path, pipe):
    history = History(tmp_path)
    history.keep(painted[1])
    second = asyncio.run(history.list())[0]
    assert second.request == {"prompt": "a Red cat, 50% off", "steps": 1, "seed": 2, "width": 64, "height": 64}
    again = pipe(request_of(second.request))
    with Image.open(history.path(second)) as kept:
        assert np.array_equal(np.asarray(kept), np.asarray(again))
        assert kept.info["parameters"] == second.infotext == again.info["parameters"]
    history.close()


def test_above_the_limit_the_oldest_leave(painted, tmp_path):
    history = History(tmp_path)
    history.keep(painted[1])
    sizes = [one.bytes for one in asyncio.run(history.list())]
    history.limit = sum(sizes) + min(sizes) // 2
    history.keep(painted[2])
    assert [one.number for one in asyncio.run(history.list())] == [3, 2]
    assert len([*history.folder.iterdir()]) == 2
    history.close()
    history = History(tmp_path, limit=1)
    assert found(history) == [] and not [*history.folder.iterdir()]
    assert history._total == 0
    history.close()


def test_after_a_crash_files_and_rows_agree(painted, tmp_path):
    history = History(tmp_path)
    for order in painted[:2]:
        history.keep(order)
    oldest = asyncio.run(history.list())[-1]
    history.close()
    history.path(oldest).unlink()
    left = [history.folder / name for name in (f"{'0' * 32}.png", f".{'1' * 32}.png.abc.part")]
    mine = history.folder / "holiday.png"
    for path in (*left, mine):
        path.write_bytes(b"x")
    history = History(tmp_path)
    assert found(history) == ["a Red cat, 50% off"] * 2 and found(history, words="apple") == []
    assert not any(path.exists() for path in left) and mine.exists()
    with pytest.raises(OutputError, match="no other server"):
        History(tmp_path)
    history.close()


def test_prompts_that_were_kept_without_full_text_are_found_with_it(painted, tmp_path):
    history = History(tmp_path, full_text=False)
    history.keep(painted[0])
    history.close()
    history = History(tmp_path)
    assert found(history, words="appl") == ["a red apple"]
    history.close()


def test_what_is_no_history_is_left_alone(tmp_path):
    (tmp_path / "history.sqlite").write_bytes(b"my diary" * 100)
    with pytest.raises(OutputError, match="cannot hold the history"):
        History(tmp_path)
    assert (tmp_path / "history.sqlite").read_bytes() == b"my diary" * 100
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("PRAGMA user_version = 99")
    other.close()
    (tmp_path / "other.sqlite").rename(tmp_path / "history.sqlite")
    with pytest.raises(OutputError, match="version 99"):
        History(tmp_path)


def test_a_full_disk_does_not_stop_the_painting(painted, tmp_path, monkeypatch):
    from fewstep.serve import history as file

    history = History(tmp_path)

    def full(path, write):
        raise OutputError("no space left")

    monkeypatch.setattr(file, "write_atomically", full)
    for _ in range(file.WAITING + 5):
        history.keep(painted[0])
    assert found(history) == []
    monkeypatch.undo()
    history.keep(painted[0])
    assert found(history) == ["a red apple"]
    history.close()


@pytest.fixture(scope="module")
def http(pipe, tmp_path_factory):
    studio = Studio(pipe, history=History(tmp_path_factory.mktemp("history")))
    with running(studio) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client


def test_over_http(http):
    order = {"prompt": "a tall tree", "steps": 1, "n_iter": 2, "width": 64, "height": 64, "seed": 3}
    answer = http.post("/sdapi/v1/txt2img", json=order)
    listed = http.get("/api/v1/history", params={"q": "tree", "limit": 1}).json()
    one = listed["pictures"][0]
    assert one["job"] == answer.headers["x-task-id"] and one["prompt"] == "a tall tree" and listed["next"] == 2
    rest = http.get("/api/v1/history", params={"before": listed["next"]}).json()
    assert len(rest["pictures"]) == 1 and rest["next"] is None
    whole = http.get(f"/api/v1/history/{one['id']}").json()
    assert whole["request"]["seed"] == 4 and whole["infotext"].startswith("a tall tree\n")
    picture = http.get(one["picture"])
    assert picture.headers["content-type"] == "image/png" and picture.headers["x-content-type-options"] == "nosniff"
    assert Image.open(io.BytesIO(picture.content)).info["parameters"] == whole["infotext"]
    assert http.delete(f"/api/v1/history/{one['id']}").status_code == 204
    for path in (f"/{one['id']}", f"/{one['id']}.png"):
        assert http.get(f"/api/v1/history{path}").status_code == 404
    assert http.delete(f"/api/v1/history/{one['id']}").status_code == 404
    assert http.delete(rest["pictures"][0]["picture"].removesuffix(".png")).status_code == 204


def kept_live(http):
    return [one for one in http.get("/api/v1/history").json()["pictures"] if one["job"] == "live"]


def test_live_pictures_are_kept_where_that_is_asked_for(http):
    client = Client(http.base_url.port, values=VALUES | {"refine": True})
    assert "keep" in client.welcome["schema"]["properties"]
    client.frame(colour("red"))
    client.output(lambda output: Flag.REFINED in output.flags)
    client.say("snapshot")
    client.until("snapshot")
    assert kept_live(http) == []
    client.say("params", rev=1, patch={"keep": True, "prompt": "a boat"})
    client.output(lambda output: Flag.REFINED in output.flags and output.revision == 1)
    client.say("snapshot")  # of the refined one, which is kept already
    client.until("snapshot")
    client.say("params", rev=2, patch={"refine": False, "prompt": "a tree"})
    client.output(lambda output: output.revision == 2)
    client.say("snapshot")
    snapshot = client.until("snapshot")
    client.close()
    tree, boat = (http.get(f"/api/v1/history/{one['id']}").json() for one in kept_live(http))
    assert tree["infotext"] == snapshot["infotext"] and tree["request"]["prompt"] == "a tree" and tree["from_picture"]
    assert boat["request"]["seed"] == 5 and boat["request"]["steps"] == 8 and boat["prompt"] == "a boat"


@pytest.mark.parametrize(
    "name", ["../history.sqlite", "..%2Fhistory.sqlite", "%2e%2e", "history.sqlite", "'", "0" * 32, "A" * 32, "%00"]
)
def test_no_path_is_an_id(http, name):
    for path in (name, f"{name}.png"):
        answer = http.get(f"/api/v1/history/{path}")
        assert answer.status_code == 404 and answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=201", "before=-1", "before=x", f"before={2**63}", "q=" + "a" * 1001]
)
def test_bad_questions(http, query):
    assert http.get(f"/api/v1/history?{query}").status_code == 422


def test_a_server_without_history_has_no_such_route(server):
    assert httpx.get(f"http://127.0.0.1:{server}/api/v1/history").status_code == 404
