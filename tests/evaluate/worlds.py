"""Small labels and a random judge for the tests."""

from pathlib import Path

import torch

from fewstep.evaluate.judge import Background, Labels, Network, Shape, save_judge

LABELS = Labels(
    concepts=("cat", "red apple", "apple"),
    phrases=("a cat", "a red apple", "an apple"),
    styles=("3d", "flat"),
    backgrounds={
        "white": Background("on a white background", (255, 255, 255)),
        "red": Background("on a red background", (214, 45, 50)),
        "blue": Background("on a blue background", (55, 110, 220)),
        "night": Background("at night"),
    },
    held_out_styles=(("cat", "flat"),),
    held_out_backgrounds=(("apple", "red"), ("apple", "night")),
)
SHAPE = Shape(size_px=16, widths=(4, 8), features=6)


def write_judge(folder: Path, *, seed: int = 0) -> Path:
    """A random judge of three concepts and two styles."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(SHAPE, concepts=3, styles=2)
    save_judge(network, folder, shape=SHAPE, labels=LABELS, ceilings={"x": {"top1": 0.5}})
    return folder
