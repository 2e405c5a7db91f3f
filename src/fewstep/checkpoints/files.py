"""Reading and writing safetensors and json so that every damaged file is one sentence with its name.

Only safetensors is read: .ckpt, .bin and .pt files are Python pickles, which run code when opened.
torch is imported only where its tensors are asked for: the ONNX Runtime path reads the same files with numpy.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from fewstep.errors import CheckpointError, OutputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl", ".pickle")
_LONGEST_HEADER = 100_000_000
_NUMPY = ("F64", "F32", "F16", "I64", "I32", "I16", "I8", "U8", "BOOL")
_REFUSED = (
    "it is a Python pickle, which can run code when opened. Convert it to .safetensors, or get the safetensors version"
)


def read_json(path: Path) -> dict[str, Any]:
    """A json object from a file; raises CheckpointError when it is missing, unreadable or not an object."""
    check_plain(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"'{path}' is missing: the model folder is incomplete. Copy it again.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"'{path}' cannot be read as json ({_line(error)}). Copy it again.") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"'{path}' holds a json {type(found).__name__} where an object is wanted.")
    return found


def check_plain(path: Path) -> None:
    """Raises CheckpointError for what is there and no file: a folder, or a pipe, which could be waited for forever."""
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a pipe or a device"
        raise CheckpointError(f"'{path}' is {what} and not a file. Give the file itself.")


def check_format(path: Path) -> None:
    """Raises CheckpointError when `path` is missing, empty, a folder, a pickle or not safetensors."""
    if path.suffix.lower() in PICKLES:
        raise CheckpointError(f"'{path}' is refused: {_REFUSED}.")
    check_plain(path)
    try:
        with path.open("rb") as file:
            head = file.read(24)
    except FileNotFoundError:
        raise CheckpointError(f"'{path}' does not exist.") from None
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be opened ({error.strerror}).") from None
    other = head[8:9] != b"{"  # a safetensors file begins with a number, whose bytes may be any of these marks
    if other and head[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise CheckpointError(f"'{path}' is refused: whatever its name says, {_REFUSED}.")
    if other and head.lstrip().startswith(b"<"):
        raise CheckpointError(f"'{path}' is a web page and not the file itself. Download it again.")
    if head.startswith(b"version https://git"):
        raise CheckpointError(f"'{path}' is a Git LFS pointer and not the file itself. Run: git lfs pull")
    if path.suffix.lower() != ".safetensors":
        raise CheckpointError(f"'{path}' is not a .safetensors file.")


def read_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """(name -> shape, metadata) of a safetensors file without reading its weights; raises CheckpointError."""
    check_format(path)
    try:
        with safe_open(path, framework="np") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            return shapes, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from None


def read_tensors(path: Path, *, finite: bool = True, only: Collection[str] | None = None) -> dict[str, Tensor]:
    """All tensors of a safetensors file, or `only` these, mapped from disk on the CPU.

    Raises CheckpointError when the file is missing, truncated, damaged, a pickle, or (finite) holds NaN or infinity.
    """
    check_format(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = [key for key in file.keys() if only is None or key in only]  # noqa: SIM118
            tensors = {key: file.get_tensor(key) for key in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from None
    if finite:
        check_finite(tensors, path)
    return tensors


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a .ckpt or .pt file of weights, without running what else is in it (torch's weights_only).

    A textual inversion's vectors are called emb_params, as in its .safetensors form. Raises CheckpointError when the
    file is missing or holds anything but numbers, texts and tensors.
    """
    import torch

    check_plain(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except FileNotFoundError:
        raise CheckpointError(f"'{path}' does not exist.") from None
    except Exception as error:  # noqa: BLE001 - torch, pickle and zipfile each have their own
        raise CheckpointError(
            f"'{path}' cannot be read as weights alone ({_line(error)}): it is damaged, or runs code. Get a "
            "safetensors version."
        ) from None
    found = found.get("state_dict", found) if isinstance(found, dict) else {}
    if isinstance(vectors := found.get("string_to_param"), dict):
        found = {"emb_params": next(iter(vectors.values()), None)}
    tensors = {str(key): value for key, value in found.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise CheckpointError(f"'{path}' holds no weights by name.")
    return tensors


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def has_numpy_formats(path: Path) -> bool:
    """Has numpy the number formats of this safetensors file (it lacks bfloat16)? Raises CheckpointError."""
    check_format(path)
    try:
        with safe_open(path, framework="np") as file:
            return all(file.get_slice(key).get_dtype() in _NUMPY for key in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from None


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """As `read_tensors`, with numpy and not torch; raises CheckpointError also for bfloat16, which numpy lacks."""
    import numpy as np

    check_format(path)
    try:
        with safe_open(path, framework="np") as file:
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise _damaged(path, error) from None
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CheckpointError(_not_finite(path, name))
    return arrays


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raises CheckpointError naming the first tensor that holds NaN or infinity."""
    for name, tensor in tensors.items():
        if not _is_finite(tensor):
            raise CheckpointError(_not_finite(path, name))


def _not_finite(path: Path, name: str) -> str:
    return (
        f"'{path}' holds values that are not numbers (NaN or infinity) in '{name}': the file is damaged, or its "
        "training diverged. Get it again."
    )


def _is_finite(tensor: Tensor) -> bool:
    import torch

    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    low, high = (tensor.float() if tensor.element_size() == 1 else tensor).aminmax()
    return bool(torch.isfinite(low) and torch.isfinite(high))


def _damaged(path: Path, error: Exception) -> CheckpointError:
    if path.is_file() and _is_short(path):
        return CheckpointError(f"'{path}' is cut short ({path.stat().st_size} bytes): copy or download it again.")
    return CheckpointError(f"'{path}' is not a readable safetensors file ({_line(error)}). Get it again.")


def _is_short(path: Path) -> bool:
    """Is the file shorter than its own header says? Layout: 8 bytes of header length, json header, tensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or size < 8 + length < _LONGEST_HEADER:
            return True
        try:
            header = json.loads(file.read(length) if length < _LONGEST_HEADER else b"")
            return size < 8 + length + max(entry["data_offsets"][1] for key, entry in header.items() if key[:2] != "__")
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return False


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:160] if str(error) else type(error).__name__


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file at once or not at all; raises OutputError when it cannot be written."""
    facts = {"format": "pt"} | {key: str(value) for key, value in (metadata or {}).items()}
    write_whole(path, lambda part: _write_tensors(part, tensors, facts))


_STORED = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "float8_e5m2": "F8_E5M2", "float8_e4m3fn": "F8_E4M3", "int16": "I16",
    "float16": "F16", "bfloat16": "BF16", "int32": "I32", "float32": "F32", "float64": "F64", "int64": "I64",
}  # fmt: skip
"""torch's number formats -> safetensors' names for them, in the order of its own writer, which begins with the last."""


def _write_tensors(part: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """The bytes that safetensors' `save_file` writes, one tensor after another and not all of them in memory twice."""
    import torch

    ranks = {kind: rank for rank, kind in enumerate(_STORED)}
    kinds = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    if unknown := [name for name in tensors if kinds[name] not in ranks]:
        raise OSError(f"safetensors has no number format {kinds[unknown[0]]}, which '{unknown[0]}' has")
    order = sorted(tensors, key=lambda name: (-ranks[kinds[name]], name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(facts.items()))}
    end = 0
    for name in order:
        begin, end = end, end + tensors[name].numel() * tensors[name].element_size()
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _STORED[kinds[name]], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with part.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            tensor = tensors[name].detach().to("cpu").contiguous()
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a json object, indented, keys sorted, at once or not at all; raises OutputError."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a file beside `path` and then puts it in place; nothing half-written stays behind."""
    part = path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        part = Path(name)
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())  # or a machine that loses power could have the new name and not the content
        part.chmod(0o666 & ~_umask())
        part.replace(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"'{path}' cannot be written ({_line(error)}).") from None
    finally:
        if part != path:
            part.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
