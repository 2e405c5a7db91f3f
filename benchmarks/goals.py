"""The goals of speed, and how each is read out of the documents in benchmarks/results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

FULL = "fewstep full"
Document = Mapping[str, Any]
Found = tuple[str, bool]


@dataclass(frozen=True)
class Goal:
    """`read` takes the documents named here and says what was measured, and whether that is enough."""

    name: str
    race: str
    wanted: str
    documents: tuple[str, ...]
    read: Callable[..., Found]

    def measured(self, documents: Mapping[str, Document]) -> tuple[str, bool | None]:
        """What was found, or why nothing was."""
        found = [documents.get(name) for name in self.documents]
        there = [document for document in found if document is not None]
        if unmeasured := next((one["unmeasured"] for one in there if "unmeasured" in one and not one["races"]), None):
            return f"not measured: {unmeasured}", None
        if len(there) < len(found):
            return "not measured yet", None
        return self.read(*there)


def race_of(document: Document, **facts: Any) -> Mapping[str, Any]:
    """The race of a document with these facts; raises LookupError."""
    for one in document["races"]:
        if all(one.get(name) == value for name, value in facts.items()):
            return one
    raise LookupError(f"'{document['benchmark']}' has no race with {facts}")


def ratio(one: Mapping[str, Any], peer: str) -> float | None:
    """How many times faster than this peer; None where it did not take part."""
    return one["results"].get(peer, {}).get("ratio")


def against(one: Mapping[str, Any], wanted: Mapping[str, float]) -> Found:
    """Ratios against several peers at once."""
    found = {peer: ratio(one, peer) for peer in wanted}
    words = ", ".join(f"{peer} {value:g}x" if value else f"{peer}: not there" for peer, value in found.items())
    return words, all((value or 0) >= wanted[peer] for peer, value in found.items())


def _picture(document: Document) -> Found:
    one = race_of(document, steps=4, batch=1)
    words, enough = against(one, {"diffusers": 4.0})
    if FULL not in one["results"]:
        return words, False
    equal = one["results"]["diffusers"]["median_ms"] / one["results"][FULL]["median_ms"]
    return f"{words}; with the same autoencoder, float32, {equal:.3g}x", enough and equal >= 2.5


def _cold(document: Document) -> Found:
    one = document["races"][0]
    ms = one["results"][one["ours"]]["median_ms"]
    words, enough = against(one, {"diffusers": 6.0})
    return f"{words}; {ms / 1000:.2f} s", enough and ms <= 1200


def _live(document: Document, onnx: Document) -> Found:
    """As the server comes, which takes the fastest that is installed; and by ONNX Runtime alone."""

    def words(rows: list[Mapping[str, Any]]) -> str:
        return "; ".join(f"{row['steps']} steps: {row['fps']:g} fps, {row['dot_p50']:g} ms" for row in rows)

    rows, slower = ([row for row in one["rows"] if row["steps"] in (2, 4)] for one in (document, onnx))
    enough = bool(rows) and all(row["fps"] >= 12 and row["dot_p50"] <= 120 for row in rows)
    return f"{words(rows)}; without OpenVINO {words(slower)}", enough


def _sd15(document: Document, by_hand: Document, half: Document) -> Found:
    """Against OpenVINO by hand in the same float32; against diffusers, which is float32, as it comes with its full
    autoencoder, and in bfloat16 with the same one.
    """
    said, enough = [], True
    for steps in (1, 4):
        wanted = (
            (document, {"diffusers, full autoencoder": 2.0, "diffusers": 0}),
            (by_hand, {"OpenVINO by hand": 1.0}),
            (half, {"diffusers": 2.0, "diffusers bf16": 0}),
        )
        found = [against(race_of(one, steps=steps, batch=1), peers) for one, peers in wanted]
        plain, hand, other = (words for words, _ in found)
        said.append(f"{steps} step{'s' * (steps > 1)}: float32 {plain}, {hand}; bfloat16 {other}")
        enough = enough and all(reached for _, reached in found)
    return "; ".join(said), enough


def _loop(document: Document) -> Found:
    one = race_of(document, steps=4, what="loop")
    ms = one["results"][one["ours"]]["median_ms"]
    return f"{ms:g} ms in 4 steps; diffusers {one['results']['diffusers']['median_ms']:g} ms", ms <= 1


def _lora(*documents: Document) -> Found:
    found = {document["case"]: ratio(document["races"][0], "diffusers") or 0 for document in documents}
    return ", ".join(f"{case} {value:g}x" for case, value in found.items()), min(found.values()) >= 3


def _training(document: Document) -> Found:
    """Against the script as its README calls it, with its encoders left out; the others for the record."""
    one, peer, rest = document["races"][0], "script, cached, checkpointing", ("script, cached", "script")
    speed, memory = ratio(one, peer) or 0, document["memory_above_libraries"][peer]
    words = f"{document['precision']} against {document['script_precision']}, CPU: {speed:g}x, {memory:g}x the memory"
    more = [f"{ratio(one, name):g}x, {document['memory_above_libraries'][name]:g}x" for name in rest]
    return f"{words}; without checkpointing {more[0]}; with its encoders {more[1]}", speed >= 2 and memory <= 0.5


def _gpu(kind: str, eager: float, compiled: float, share: float) -> Callable[[Document], Found]:
    def read(document: Document) -> Found:
        one = race_of(document, steps=4, batch=1, title=f"{kind}, 4 steps, batch 1")
        reached = one["results"][one["ours"]]["floor_share"]
        words, enough = against(one, {"diffusers": eager, "diffusers compiled": compiled})
        return f"{words}; {100 * reached:.0f} % of the floor", enough and reached >= share

    return read


def _users(document: Document) -> Found:
    one = document["races"][0]
    gain = ratio(one, "fewstep, one at a time") or 0
    shares = document["pictures_of_each_user"][one["ours"]]
    return f"{gain:g}x; a user got {min(shares)} to {max(shares)} pictures", gain >= 3 and 2 * min(shares) >= max(
        shares
    )


def _web(document: Document) -> Found:
    first_s, fps = document["first_picture_s"], document["pictures_s"]
    return f"{first_s:g} s, {fps:g} pictures a second", first_s <= 5 and fps >= 2


_LIVE = ("live_page", "live_page-backend-onnx")
_SD15 = ("picture-sd15-tiny", "picture-sd15-tiny-by-hand", "picture-sd15-tiny-bf16")
_SCRIPTS = ("lora_merge-file", "lora_merge-fuse", "lora_merge-weight")
GOALS = (
    Goal("P1", "a warm 4-step picture of the embedded model", "diffusers 4x", ("picture-pictogram",), _picture),
    Goal("P2", "a new process to the PNG on disk", "diffusers 6x, 1.2 s", ("cold_start",), _cold),
    Goal("P3", "live, stroke to picture, 2 to 4 steps", "12 fps, 120 ms", _LIVE, _live),
    Goal("P4", "SD 1.5's size on a CPU", "diffusers 2x, OpenVINO by hand 1x", _SD15, _sd15),
    Goal("P5", "a picture's loop beside its network", "1 ms", ("overhead",), _loop),
    Goal("P6", "a rank-64 LoRA of SD 1.5's size, merged", "diffusers 3x", _SCRIPTS, _lora),
    Goal("P7", "an LCM-LoRA training step", "the script 2x, 0.5x its memory", ("distill_step",), _training),
    Goal(
        "P8",
        "SD 1.5, 512 px, 4 steps, GPU",
        "3x, compiled 1.3x, 40 % of the floor",
        ("gpu",),
        _gpu("sd15", 3, 1.3, 0.4),
    ),
    Goal(
        "P9",
        "SDXL, 1024 px, 4 steps, GPU",
        "2x, compiled 1.2x, 55 % of the floor",
        ("gpu",),
        _gpu("sdxl", 2, 1.2, 0.55),
    ),
    Goal("P10", "8 live users at once, GPU", "3x one at a time, nobody starved", ("users-cuda",), _users),
    Goal("P11", "the embedded model in a browser, no server", "5 s to the first, 2 a second", ("web",), _web),
)
