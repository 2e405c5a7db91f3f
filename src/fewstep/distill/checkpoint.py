"""The checkpoint file of a run: two newest ones, each with a checksum, and never a moment without a whole one.

    state.safetensors            the newest
    state.previous.safetensors   the one before, taken where the newest is damaged
    state.next.safetensors       there only while one takes the other's place

A new checkpoint is written whole beside the others before any is moved, so a process killed at any moment leaves the
last finished one; `settle` sees which that is.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from fewstep.checkpoints.files import write_safetensors
from fewstep.errors import RecipeError

STATE, PREVIOUS, NEXT = "state.safetensors", "state.previous.safetensors", "state.next.safetensors"
_SUM = "sha256"
_Tensors = Mapping[str, torch.Tensor]


def write_state(folder: Path, tensors: _Tensors, metadata: Mapping[str, str]) -> Path:
    """Put a new checkpoint in place; the one that was the newest is kept as the one before."""
    write_summed(folder / NEXT, tensors, metadata)
    if (folder / STATE).is_file():
        (folder / STATE).replace(folder / PREVIOUS)
    return (folder / NEXT).replace(folder / STATE)


def write_summed(path: Path, tensors: _Tensors, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, at once or not at all, with the checksum of all that it says."""
    total = checksum(list(tensors), tensors.__getitem__, metadata)
    write_safetensors(path, tensors, {**metadata, _SUM: total})


def read_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the metadata of a checkpoint file. Raises RecipeError when it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise RecipeError(f"The checkpoint '{path}' cannot be read ({error}). Delete it and begin again.") from error


def settle(folder: Path) -> str | None:
    """Make the newest undamaged checkpoint the folder's `state.safetensors`, and sweep up what a killed process left.

    Returns a sentence where a damaged one was passed over. Raises RecipeError when there is none, or none is whole.
    """
    for left in folder.glob(".*.part"):
        left.unlink()
    found = [folder / name for name in (NEXT, STATE, PREVIOUS) if (folder / name).is_file()]
    if not found:
        raise RecipeError(f"There is no checkpoint in '{folder}' to resume. Leave --resume out to begin.")
    damage: list[str] = []
    for path in found:
        if fault := damage_of(path):
            damage.append(f"'{path}' is damaged ({fault})")
            continue
        path.replace(folder / STATE)
        return f"{'; '.join(damage)}. Going on from the checkpoint before it." if damage else None
    raise RecipeError(f"The checkpoint cannot be read: {'; '.join(damage)}. Delete the folder and begin again.")


def is_state(folder: Path) -> bool:
    """Whether the folder holds a checkpoint, damaged or not."""
    return any((folder / name).is_file() for name in (NEXT, STATE, PREVIOUS))


def forget(folder: Path) -> None:
    """Delete the checkpoints of a finished run."""
    for name in (NEXT, STATE, PREVIOUS):
        (folder / name).unlink(missing_ok=True)


def damage_of(path: Path) -> str | None:
    """What is wrong with a checkpoint file, or None. One of an earlier version, without a checksum, is believed."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if "step" not in metadata:
                return "it does not say its step"
            wanted = metadata.get(_SUM)
            fine = wanted is None or wanted == checksum(list(file.keys()), file.get_tensor, metadata)
            return None if fine else "its checksum is another"
    except (OSError, SafetensorError, ValueError) as error:
        return str(error).splitlines()[0]


def checksum(names: list[str], tensor_of: Callable[[str], torch.Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 over metadata, names, formats, shapes and numbers, whatever their order in the file."""
    facts = {name: text for name, text in metadata.items() if name not in (_SUM, "format")}
    total = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(names):
        tensor = tensor_of(name).detach().cpu().contiguous()
        total.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
