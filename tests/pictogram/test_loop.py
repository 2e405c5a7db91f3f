"""The resumable loop: what a second call does to a run that is as far or further."""

import torch

from pictogram import loop


def run(folder, until, seen):
    weight = torch.nn.Linear(1, 1)
    loop.run("a", lambda i, generator: float(seen.append(i) or 0), {"w": weight}, steps=until, folder=folder)
    return torch.load(folder / "a.checkpoint.pt", weights_only=True)


def test_a_shorter_target_leaves_a_longer_run_alone(tmp_path):
    seen = []
    first = run(tmp_path, 4, seen)
    again = run(tmp_path, 2, seen)
    assert seen == [0, 1, 2, 3] and first["step"] == again["step"] == 4
    assert torch.equal(first["w"]["weight"], again["w"]["weight"])
    assert run(tmp_path, 6, seen)["step"] == 6 and seen[4:] == [4, 5]
