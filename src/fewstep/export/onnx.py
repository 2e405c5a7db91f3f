"""The graphs of a diffusers folder without weights, in its sub-folder `onnx`: made once, not when they are wanted.

export_graphs(Path("pictogram"))     needs the `onnx` package (pip install "fewstep[export]"), not torch
"""

from pathlib import Path

from fewstep.checkpoints.arrays import part_shapes
from fewstep.checkpoints.complete import describe_model
from fewstep.checkpoints.hub import PARTS
from fewstep.graphs.write import model_graphs, write_graphs


def export_graphs(folder: Path) -> Path:
    """Writes the graphs of a diffusers folder into its sub-folder `onnx` and returns that.

    Raises:
        CheckpointError: the folder is incomplete, or one of its networks is not known here.
        OutputError: the files cannot be written.
    """
    configs = describe_model(folder).configs
    shapes = {part: part_shapes(folder, part) for part in PARTS if part in configs}
    return write_graphs(model_graphs(configs, shapes), folder / "onnx")
