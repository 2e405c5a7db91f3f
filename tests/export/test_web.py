"""`fewstep export --to web`: what is in the folder, what is refused; tests/browser draws with it."""

import base64
import gzip
import hashlib
import io
import json
import re
import tarfile
import urllib.request

import numpy as np
import onnxruntime as ort
import pytest

pytest.importorskip("onnx")

import fewstep
from fewstep.backends.onnx_session import session_options
from fewstep.cli.main import main
from fewstep.errors import CheckpointError, OutputError
from fewstep.export import runtime, web
from fewstep.infotext import parse
from fewstep.sampling.timesteps import timesteps
from tests.export.golden import FILE, golden
from tests.tiny import tiny_folder

pytestmark = pytest.mark.embedded
TOLERANCE = 0.02
"""Between float32 weights and the page's, which were rounded to half precision once the LoRA was merged."""


def no_network(*_, **__):
    raise AssertionError("the network was asked")


@pytest.fixture(scope="module")
def runtime_folder(tmp_path_factory):
    """Files with the right names: nothing here runs them."""
    folder = tmp_path_factory.mktemp("runtime")
    for name in runtime.runtime_names():
        (folder / name).write_text(name)
    return folder


@pytest.fixture(scope="module")
def page(runtime_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("web") / "page"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(urllib.request, "urlopen", no_network)
        assert main(["export", "--to", "web", "-o", str(out), "--runtime", str(runtime_folder), "--title", "T"]) == 0
    return out


def manifest(page):
    return json.loads((page / "model.json").read_text(encoding="utf-8"))


def close(found, wanted, where=""):
    """The same, numbers to about float32's precision: libraries round sines and logarithms in their own ways."""
    assert type(found) is type(wanted), where
    if isinstance(wanted, dict):
        assert list(found) == list(wanted), where
        for key in wanted:
            close(found[key], wanted[key], f"{where}.{key}")
    elif isinstance(wanted, list) and wanted and isinstance(wanted[0], float):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5, err_msg=where)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for number, pair in enumerate(zip(found, wanted, strict=True)):
            close(*pair, f"{where}[{number}]")
    else:
        assert found == wanted, where


def test_the_numbers_that_the_page_is_tested_with_are_pythons():
    close(json.loads(FILE.read_text(encoding="utf-8")), golden())


def session(page, graph, folder):
    """An exported graph by ONNX Runtime itself, its weights widened as the page widens them."""
    half = np.fromfile(page / manifest(page)["weights"]["file"], "<f2")
    half.astype(np.float32).tofile(folder / "weights")
    target = folder / f"{graph}.onnx"
    target.write_bytes((page / manifest(page)["graphs"][graph]).read_bytes())
    return ort.InferenceSession(str(target), session_options(ort), providers=["CPUExecutionProvider"])


def test_its_networks_are_those_of_the_pipeline_with_the_lora_merged(page, tmp_path):
    model = fewstep.load().model
    text = model.text.encode(["a red apple, 3d"])
    told = model.conditions(text)
    (states,) = session(page, "text_encoder", tmp_path).run(
        ["text_1_BLD"], {"ids_BL": model.text.ids(["a red apple, 3d"])}
    )
    np.testing.assert_allclose(states, text.text_BLD, atol=1e-4)
    (found,) = session(page, "text_kv", tmp_path).run(None, {"text_BLD": text.text_BLD})
    np.testing.assert_allclose(found, told["text_kv_BLK"], atol=TOLERANCE)
    z = np.random.default_rng(0).standard_normal((1, 4, 16, 16)).astype(np.float32)
    inputs = {"z_BCHW": z, "timestep_B": np.array([499], np.float32), **told}
    (found,) = session(page, "unet", tmp_path).run(None, inputs)
    wanted = model.unet(z, np.array([499]), **told)
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE)
    plain = fewstep.load(lora=False).model
    assert abs(plain.unet(z, np.array([499]), **told) - wanted).max() > 10 * TOLERANCE  # the LoRA is in it


def test_the_manifest_names_files_that_are_there_and_says_how_to_sample(page):
    found = manifest(page)
    names = [*found["graphs"].values(), found["weights"]["file"], found["tokenizer"]["file"]]
    names += [engine[kind] for engine in found["runtime"].values() for kind in ("script", "loader", "wasm")]
    assert all((page / name).is_file() for name in names)
    assert found["weights"]["bytes"] == (page / found["weights"]["file"]).stat().st_size
    assert (found["title"], found["steps"], found["sampler"], found["guidance"]) == ("T", 4, "lcm", 1.0)
    assert found["timesteps"][99][3] == list(timesteps("linspace-lcm", 4))
    assert found["timesteps"][49][7] == list(timesteps("linspace-lcm", 8, strength=0.5))
    assert found["timesteps"][9] == [
        [*timesteps("linspace-lcm", n, strength=0.1)] if n <= 5 else [] for n in range(1, 9)
    ]
    tokenizer = json.loads((page / found["tokenizer"]["file"]).read_text(encoding="utf-8"))
    assert tokenizer == json.loads(fewstep.load().model.text.words.to_str())


def test_its_pictures_record_what_those_of_generate_record(page):
    picture = fewstep.load()("a red apple, 3d", seed=7, steps=1)
    recorded = parse(picture.info["parameters"]).settings
    found = manifest(page)["settings"]
    assert [key for key, _ in found if key not in ("Denoising strength", "VAE Encoder")] == list(recorded)
    filled = {"Steps", "CFG scale", "Seed", "Denoising strength", "VAE Encoder", "Device"}
    assert {key for key, value in found if value is None} == filled
    assert all(recorded[key] == value for key, value in found if value is not None)


def test_the_service_worker_knows_the_page_and_a_version_that_changes(page, runtime_folder, tmp_path, capsys):
    other = tmp_path / "other"
    command = ["export", "--to", "web", "-o", str(other), "--runtime", str(runtime_folder), "--steps", "2", "--json"]
    assert main(command) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["folder"], facts["steps"], facts["model"]) == (str(other), 2, "pictogram")
    sizes = [file.stat().st_size for file in other.rglob("*") if file.is_file()]
    assert (facts["bytes"], facts["files"]) == (sum(sizes), len(sizes))
    one, two = (
        json.loads(re.match(r"self\.FEWSTEP = (.*);\n", (folder / "sw.js").read_text())[1]) for folder in (page, other)
    )
    assert one["version"] != two["version"]
    files = {file.relative_to(page).as_posix() for file in page.rglob("assets/*")}
    assert set(one["shell"]) == {"./", "index.html", *files}


def test_nothing_is_overwritten_but_an_earlier_page_by_force(page, runtime_folder, tmp_path, capsys):
    out = tmp_path / "page"
    command = ["export", "--to", "web", "-o", str(out), "--runtime", str(runtime_folder)]
    out.mkdir()
    (out / "diary.txt").write_text("mine")
    assert main(command) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*command, "--force"]) == 2
    assert "no page of ours" in capsys.readouterr().err
    assert [file.name for file in tmp_path.rglob("*.*")] == ["diary.txt"]
    (out / "diary.txt").unlink()
    assert main([*command, "-q"]) == 0
    before = (out / "model.json").read_bytes()
    assert main([*command, "--steps", "9", "--force"]) == 2
    assert "1 to 8 steps" in capsys.readouterr().err
    assert (out / "model.json").read_bytes() == before
    assert main([*command, "--steps", "1", "--force"]) == 0
    assert "python -m http.server" in capsys.readouterr().out
    assert manifest(out)["steps"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


def test_another_model_needs_a_few_step_way_of_sampling_and_keeps_its_folder(runtime_folder, tmp_path, capsys):
    model, out = tiny_folder("pictogram", into=tmp_path / "tiny"), tmp_path / "page"
    command = ["export", str(model), "--to", "web", "-o", str(out), "--runtime", str(runtime_folder)]
    before = {path: path.stat().st_mtime_ns for path in model.rglob("*")}
    assert main(command) == 2
    assert "Give a few-step LoRA with --lora" in capsys.readouterr().err
    sampling = {"sampler": "tcd", "steps": 3, "guidance": 1.0, "table": "trailing"}
    (model / "fewstep.json").write_text(json.dumps(sampling))
    before = {path: path.stat().st_mtime_ns for path in model.rglob("*")}
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in model.rglob("*")} == before
    found = manifest(out)
    assert (found["title"], found["sampler"], found["steps"]) == ("tiny", "tcd", 3)
    assert found["timesteps"][99][2] == list(timesteps("trailing", 3))


def test_models_that_do_not_fit_are_refused(runtime_folder, tmp_path, monkeypatch):
    pipe = fewstep.load()
    sessions = pipe.model.sessions
    weights = sessions.merged_weights
    monkeypatch.setattr(sessions, "merged_weights", lambda graph: {k: v * 1e9 for k, v in weights(graph).items()})
    with pytest.raises(CheckpointError, match="too large for half precision"):
        web.export_web(pipe, tmp_path / "page", runtime=runtime_folder)
    monkeypatch.setattr(web, "MOST_WEIGHTS", 1000)
    with pytest.raises(CheckpointError, match="a browser has room for 1,000"):
        web.export_web(pipe, tmp_path / "page", runtime=runtime_folder)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- ONNX Runtime Web


def tarball(names):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name in (*names, "../../evil.mjs"):
            content = name.encode()
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


class Answer(io.BytesIO):
    def __init__(self, content):
        super().__init__(content)
        self.headers = {"content-length": str(len(content))}


@pytest.fixture
def npm(monkeypatch):
    """A registry with one package; `asked` gathers the addresses."""
    asked, content = [], tarball(runtime.runtime_names())
    monkeypatch.setenv("npm_config_registry", "https://npm.example.org/")
    monkeypatch.setattr(urllib.request, "urlopen", lambda address, timeout: asked.append(address) or Answer(content))
    monkeypatch.setattr(runtime, "SHA512", base64.b64encode(hashlib.sha512(content).digest()).decode())
    return asked


def test_the_runtime_is_fetched_once_checked_and_only_what_is_needed_is_kept(npm, tmp_path):
    cache = tmp_path / "cache" / "files"
    steps = list(runtime.fetch_runtime(cache))
    assert steps and steps[-1][0] == steps[-1][1]
    assert npm == [f"https://npm.example.org/onnxruntime-web/-/onnxruntime-web-{runtime.VERSION}.tgz"]
    assert {file.name for file in tmp_path.rglob("*") if file.is_file()} == set(runtime.runtime_names())
    assert runtime.runtime_in(cache) == cache
    assert list(runtime.fetch_runtime(cache)) == [] and len(npm) == 1


def test_another_content_is_refused_and_nothing_kept(npm, tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "SHA512", "other")
    with pytest.raises(OutputError, match="its checksum differs"):
        list(runtime.fetch_runtime(tmp_path / "files"))
    assert not list(tmp_path.iterdir())


def test_a_registry_without_https_is_not_asked(npm, tmp_path, monkeypatch):
    monkeypatch.setenv("npm_config_registry", "http://npm.example.org")
    with pytest.raises(OutputError, match="not an https address"):
        list(runtime.fetch_runtime(tmp_path / "files"))
    assert not npm


def test_without_a_network_one_sentence_says_what_to_do(tmp_path, monkeypatch, capsys):
    def offline(*_, **__):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["export", "--to", "web", "-o", str(tmp_path / "page")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "npm pack onnxruntime-web@" in said and "--runtime" in said
    assert not (tmp_path / "page").exists()


def test_a_folder_that_is_not_the_runtime_is_refused(tmp_path):
    with pytest.raises(OutputError, match=r"has no ort\.wasm\.min\.mjs"):
        runtime.runtime_in(tmp_path)


def test_the_registry_is_npms_own_choice(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert runtime.registry({}) == "https://registry.npmjs.org"
    (tmp_path / ".npmrc").write_text("fund=false\nregistry = https://mirror.example.org/npm/\n")
    assert runtime.registry({}) == "https://mirror.example.org/npm"


# ---------------------------------------------------------------- the built page


def test_the_built_page_has_nothing_inline_nothing_from_elsewhere_and_is_small():
    index = (web.STATIC / "index.html").read_text()
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*\ssrc=)", index)
    assert "default-src 'none'" in index and "unsafe-inline" not in index
    for file in web.STATIC.rglob("*.[hjcs]*"):
        assert not set(re.findall(r"https?://[\w.]+", file.read_text())) - {"http://www.w3.org"}, file.name
    assert sum(len(gzip.compress(file.read_bytes(), 9)) for file in web.STATIC.rglob("*.*")) < 60_000
