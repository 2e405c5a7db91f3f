"""The Hub, without it: what is asked for, what the cache is for, and what is said when neither helps."""

import pytest

from fewstep.checkpoints.hub import wanted_files, weight_names
from fewstep.checkpoints.load import load_model
from fewstep.errors import CheckpointError
from tests.tiny import tiny_folder

UNET = "unet/diffusion_pytorch_model.safetensors"


class FakeHub:
    """Stands for huggingface_hub: knows one model, is reachable or not, has it cached or not."""

    def __init__(self, monkeypatch, *, online, cached):
        import huggingface_hub
        from huggingface_hub.errors import LocalEntryNotFoundError

        self.asked = []

        def snapshot(name, *, allow_patterns=None, local_files_only=False):
            self.asked.append((name, local_files_only, allow_patterns))
            if local_files_only and not cached:
                raise LocalEntryNotFoundError("nothing cached")
            return str(tiny_folder("sd15"))

        def info(self, name, *, timeout):
            if not online:
                raise OSError("Name or service not known\nand more")
            root = tiny_folder("sd15")
            files = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
            return type("Info", (), {"siblings": [type("F", (), {"rfilename": name}) for name in files]})

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


def test_the_hub_is_asked_for_one_set_of_files(monkeypatch):
    hub = FakeHub(monkeypatch, online=True, cached=False)
    assert load_model("owner/name", device="cpu").name == "owner/name"
    ((name, local, patterns),) = hub.asked
    assert (name, local) == ("owner/name", False)
    assert UNET in patterns and "model_index.json" in patterns and "tokenizer/merges.txt" in patterns


def test_the_cached_copy_serves_when_the_hub_is_out_of_reach(monkeypatch):
    hub = FakeHub(monkeypatch, online=False, cached=True)
    assert load_model("owner/name", device="cpu").family.name == "sd15"
    assert hub.asked == [("owner/name", True, None)]


def test_out_of_reach_and_not_cached_is_one_sentence(monkeypatch):
    FakeHub(monkeypatch, online=False, cached=False)
    with pytest.raises(CheckpointError, match=r"'owner/name' is neither.*Name or service not known") as caught:
        load_model("owner/name", device="cpu")
    assert "\n" not in str(caught.value)


def test_a_local_folder_comes_before_the_hub(monkeypatch, tmp_path):
    hub = FakeHub(monkeypatch, online=True, cached=True)
    tiny_folder("sdxl", into=tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    assert load_model("owner/name", device="cpu").family.name == "sdxl"
    assert hub.asked == []


def test_which_files_are_wanted():
    names = [
        "model_index.json",
        "v1-5-pruned.safetensors",
        "README.md",
        "unet/config.json",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "safety_checker/model.safetensors",
        "tokenizer/vocab.json",
        "scheduler/scheduler_config.json",
    ]
    assert set(wanted_files("a/b", names)) == {names[i] for i in (0, 3, 5, 8, 9, 11, 12)}
    with pytest.raises(CheckpointError, match="no model_index"):
        wanted_files("a/b", names[1:])


def test_a_shard_that_is_missing_is_no_set():
    assert weight_names(["model-00001-of-00002.safetensors"], "model") == []
