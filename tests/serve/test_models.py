"""Several models: names, never paths; loaded on demand within a budget, painted by the one that was planned with."""

import asyncio
import hashlib
import json
import shutil
import threading
import weakref
from functools import cache

import httpx
import pytest

import fewstep
from fewstep.checkpoints.load import load_stored
from fewstep.checkpoints.save_single import save_single
from fewstep.errors import CheckpointError, RequestError
from fewstep.pipeline import Pipeline
from fewstep.request import Request
from fewstep.serve import models as models_file
from fewstep.serve.jobs import Studio
from fewstep.serve.models import Models, NoRoomError, UnknownModelError
from tests.serve.running import running, wait_until
from tests.tiny import tiny_folder, tiny_model

ORDER = {"prompt": "a cat", "steps": 2, "cfg_scale": 1, "seed": 5, "width": 64, "height": 64, "sampler_name": "Euler"}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder with a file, a model folder, one more below, and what is no model."""
    root = tmp_path_factory.mktemp("models")
    save_single(load_stored(tiny_folder("sd2")), root / "two.safetensors")
    shutil.copytree(tiny_folder("sd15"), root / "quick")
    (root / "more").mkdir()
    shutil.copy(root / "two.safetensors", root / "more" / "two.safetensors")
    (root / "broken.safetensors").write_bytes(b"no")
    (root / "old.ckpt").write_bytes(b"pickle")
    shutil.copy(root / "two.safetensors", root / ".hidden.safetensors")
    return root


@pytest.fixture(scope="module")
def first():
    return Pipeline(tiny_model("sd15"))


@pytest.fixture
def made(shelf, first):
    return Models(first, shelf, load=cache(fewstep.load), budget=10**9)


def names(models):
    return [entry.name for entry in models.list()]


def test_the_index_lists_models_and_nothing_else(made):
    assert names(made) == [made.first.name, "two", "two (more)", "quick"]
    assert [entry.file for entry in made.list()[1:]] == ["two.safetensors", "two.safetensors", "quick"]
    assert all(entry.title == entry.file and entry.pipe is None for entry in made.list()[1:])


def test_a_model_has_four_names(made, shelf):
    whole = hashlib.sha256((shelf / "two.safetensors").read_bytes()).hexdigest()
    for wanted in ("two", "two.safetensors", "two.safetensors [0123456789]", whole[:8], whole[:10], whole):
        assert asyncio.run(made.find(wanted)).name == "two"
    assert made.entries["two"].title == f"two.safetensors [{whole[:10]}]"
    made.hash_all()
    wait_until(lambda: all(entry.digest for entry in made.list()))
    with pytest.raises(UnknownModelError):  # now that the hashes are known, another one does not fit
        asyncio.run(made.find("two.safetensors [0123456789]"))


@pytest.mark.parametrize(
    "wanted", ["", "../two", "more/two.safetensors", "/etc/passwd", "old.ckpt", "broken", "0" * 10]
)
def test_no_path_and_nothing_else_is_a_name(made, wanted, shelf):
    for text in (wanted, str(shelf / "two.safetensors")):
        with pytest.raises(UnknownModelError, match="There is 'tiny-sd15'") as said:
            asyncio.run(made.find(text))
        assert "/" not in str(said.value).replace(text[:80], "")


def test_hashes_are_made_on_a_thread_of_their_own(made, monkeypatch):
    gate, where = threading.Event(), []
    true_hash = models_file.model_hash

    def slow(path):
        where.append(threading.current_thread())
        assert gate.wait(10)
        return true_hash(path)

    monkeypatch.setattr(models_file, "model_hash", slow)
    made.hash_all()
    assert made.list()[1].title == "two.safetensors"
    gate.set()
    wait_until(lambda: all(entry.digest for entry in made.list()))
    assert threading.main_thread() not in where and len(where) == 3


def test_a_model_is_loaded_once_however_many_ask(made, monkeypatch):
    calls, load = [], made.load
    monkeypatch.setattr(made, "load", lambda path: calls.append(threading.current_thread()) or load(path))

    async def ask():
        return await asyncio.gather(*(made.pipe_of("two") for _ in range(5)))

    pipes = asyncio.run(ask())
    assert all(pipe is pipes[0] for pipe in pipes) and len(calls) == 1 and calls[0] is not threading.main_thread()
    assert asyncio.run(made.pipe_of()) is made.first.pipe


def test_the_one_whose_use_is_longest_ago_leaves_and_none_in_use(made):
    def loaded():
        return {entry.name for entry in made.loaded} - {made.first.name}

    async def ask(*names):
        for name in names:
            await made.pipe_of(name)

    sizes = {entry.name: entry.size for entry in made.list()}
    made.budget, made.wait_s = sum(sizes.values()) - 1, 0.01  # one too many
    asyncio.run(ask("two", "quick", "two", "two (more)"))
    assert loaded() == {"two", "two (more)"}
    two = made.entries["two"].pipe
    with made.holding(two):
        asyncio.run(ask("two (more)", "quick"))
        assert loaded() == {"two", "quick"} and made.entries["two"].pipe is two
        with made.holding(made.entries["quick"].pipe), pytest.raises(NoRoomError, match="in use"):
            asyncio.run(ask("two (more)"))
    asyncio.run(made.unload())
    assert loaded() == set() and made.first.pipe is not None
    made.budget = made.first.size + 1
    with pytest.raises(RequestError, match="more --models-memory"):
        asyncio.run(ask("quick"))


def test_who_asks_while_others_are_in_use_waits_for_their_memory(made):
    made.budget = made.first.size + made.entries["two"].size

    async def ask():
        two = await made.pipe_of("two")
        with made.holding(two):
            waiting = asyncio.create_task(made.pipe_of("two (more)"))
            await asyncio.sleep(0.1)
            assert await made.pipe_of("two") is two and not waiting.done()  # what is loaded waits for nobody
        return await waiting

    assert asyncio.run(ask()) is made.entries["two (more)"].pipe
    assert made.entries["two"].pipe is None


def test_the_first_one_leaves_too_where_it_can_come_back(shelf):
    def again():
        return Pipeline(tiny_model("sd15"))

    made = Models(again(), shelf, load=cache(fewstep.load), again=again, budget=1)
    studio, size = Studio(made.first.pipe, models=made), made.first.size
    made.budget, before = max(size, made.entries["two"].size), studio.pipe.plan(Request("a cat", seed=1))

    async def ask():
        two = await made.pipe_of("two")
        assert made.first.pipe is None and studio.pipe.model.name == made.first.name
        assert studio.pipe.plan(Request("a cat", seed=1)) == before
        with made.holding(two), pytest.raises(NoRoomError):
            made.wait_s = 0.01
            await made.pipe_of()
        order = await studio.open(Request("a cat", steps=1, width=64, height=64), owner="me")
        assert made.entries["two"].pipe is None and order.pipe is made.first.pipe
        (picture,) = await studio.pictures(order, gone=asyncio.Event().wait())
        assert picture.size == (64, 64)
        made.budget = min(size, made.entries["two"].size) - 1
        with pytest.raises(RequestError, match="takes .* GB, but"):
            await made.pipe_of("two")
        await made.unload()
        assert made.loaded == [] and (await made.pipe_of()) is made.first.pipe  # alone, whatever it takes

    asyncio.run(ask())
    studio.close()


def test_an_outline_paints_nothing():
    with pytest.raises(RuntimeError, match="it only plans"):
        Pipeline(tiny_model("sd15")).outline()("a cat")


def test_what_cannot_be_loaded_says_no_path(made, shelf, tmp_path):
    folder = tmp_path / "bad"
    shutil.copytree(shelf / "quick", folder / "bent")
    (folder / "bent" / "unet" / "config.json").write_text("{}")
    made.folder = folder
    made.scan()
    with pytest.raises(CheckpointError, match="'bent' cannot be loaded") as said:
        asyncio.run(made.pipe_of("bent"))
    assert str(tmp_path) not in str(said.value)


def test_a_rescan_sees_what_is_new_changed_and_gone(made, shelf, tmp_path):
    made.folder = tmp_path
    made.scan()
    assert len(made.list()) == 1
    shutil.copytree(shelf / "quick", tmp_path / "a")
    made.scan()
    pipe = asyncio.run(made.pipe_of("a"))
    made.scan()
    assert made.entries["a"].pipe is pipe
    (tmp_path / "a" / "unet" / "diffusion_pytorch_model.safetensors").touch()
    made.scan()
    assert made.entries["a"].pipe is None


@pytest.fixture(scope="module")
def many(shelf):
    studio = Studio(first := Pipeline(tiny_model("sd15")), models=Models(first, shelf, load=fewstep.load, budget=10**9))
    with running(studio) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield studio, client


def model_of(client, **more):
    answer = client.post("/sdapi/v1/txt2img", json={**ORDER, **more})
    return answer.status_code, json.loads(answer.json().get("info", "{}")).get("sd_model_name")


def test_a1111_clients_choose_a_model(many):
    studio, client = many
    wait_until(lambda: all(entry.digest for entry in studio.models.list()))
    listed = {one["model_name"]: one for one in client.get("/sdapi/v1/sd-models").json()}
    two = listed["two"]
    assert two["title"] == f"two.safetensors [{two['hash']}]" and two["filename"] == "two.safetensors"
    first = client.get("/sdapi/v1/options").json()
    assert model_of(client) == (200, studio.models.first.name)
    assert client.post("/sdapi/v1/options", json={"sd_model_checkpoint": two["title"]}).status_code == 200
    options = client.get("/sdapi/v1/options").json()
    assert (options["sd_model_checkpoint"], options["sd_checkpoint_hash"]) == (two["title"], two["hash"])
    assert model_of(client) == (200, "two") and studio.models.entries["two"].pipe is not None
    assert model_of(client, override_settings={"sd_model_checkpoint": "quick"}) == (200, "quick")
    assert model_of(client, override_settings={"sd_model_checkpoint": "../two"})[0] == 404
    weights = weakref.ref(studio.models.entries["two"].pipe.model.unet)
    assert client.post("/sdapi/v1/unload-checkpoint").status_code == 200
    assert studio.models.entries["two"].pipe is None
    wait_until(lambda: weights() is None)  # no job that is remembered keeps it
    assert client.post("/sdapi/v1/reload-checkpoint").status_code == 200
    assert studio.models.entries["two"].pipe is not None
    assert client.post("/sdapi/v1/options", json=first).status_code == 200
    assert model_of(client) == (200, studio.models.first.name)
    assert client.post("/sdapi/v1/refresh-checkpoints").status_code == 200


def test_openai_clients_choose_a_model(many):
    openai = pytest.importorskip("openai")
    studio, client = many
    how = {"base_url": str(client.base_url.join("/v1")), "api_key": "any", "max_retries": 0}
    api = openai.OpenAI(**how)
    assert [model.id for model in api.models.list()] == names(studio.models)
    assert api.models.retrieve("two").id == "two"
    few = {"steps": 1, "seed": 1}
    texts = {
        name: api.images.generate(prompt="a cat", model=name, size="64x64", extra_body=few).data[0].b64_json
        for name in ("two", "dall-e-3", "gpt-image-1", studio.models.first.name)
    }
    assert len(set(texts.values())) == 2 and texts["dall-e-3"] == texts["gpt-image-1"] != texts["two"]
    with pytest.raises(openai.NotFoundError, match="no model 'nothing'"):
        api.images.generate(prompt="a cat", model="nothing")


def test_a_job_runs_on_the_pipe_it_was_planned_with(many):
    studio, _ = many

    async def paint():
        from fewstep.request import Request

        pipe = await studio.pipe_of("two")
        order = await studio.open(Request("a cat", steps=2, seed=1, width=64, height=64), owner="me", pipe=pipe)
        await studio.models.unload()
        again = await studio.pipe_of("two")
        return pipe, again, await studio.pictures(order, gone=asyncio.Event().wait())

    pipe, again, pictures = asyncio.run(paint())
    assert again is not pipe and pictures[0].info["parameters"].count("Model: two") == 1
