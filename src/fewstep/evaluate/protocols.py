"""The published ways to measure, each under its name: figures of two of them must never stand in one column.

A protocol fixes how many pictures, of which size, how they are cropped and resized, which features and which
reference. What the sources leave open is said in `note`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fewstep.errors import RequestError
from fewstep.evaluate.features import Features
from fewstep.evaluate.resize import patch, squared


@dataclass(frozen=True)
class Protocol:
    """`count` pictures of `size_px`, brought to `resize_px` (None: as they are), by the Inception behind `convention`.

    `reference_count` pictures make the reference (None: any number); `patch` adds the FID of the middle 299 px of the
    full picture; `prefix` goes before prompts for the CLIP score. `count` None: as many as the user draws, stated.
    """

    name: str
    count: int | None
    size_px: int | None
    resize_px: int | None
    convention: str
    reference: str
    reference_count: int | None = None
    patch: bool = False
    prefix: str = ""
    source: str = ""
    note: str = ""

    def features(self, inception: Callable[[str], Features]) -> tuple[Features, ...]:
        """The official features behind this protocol's crops; `inception` makes them for a convention."""
        plain = inception(self.convention)
        size = self.resize_px
        whole = plain if size is None else plain.through(lambda picture: squared(picture, size))
        return (whole, plain.through(patch, prefix="patch ")) if self.patch else (whole,)

    def check(self, *, count: int, size_px: tuple[int, int] | None = None) -> None:
        """Raises RequestError when the pictures are not as many or not as large as the protocol says."""
        if self.count is not None and count != self.count:
            raise RequestError(
                f"The protocol {self.name} is of {self.count} pictures, not {count}: "
                "figures of another number must not be compared with it."
            )
        if self.size_px is not None and size_px is not None and size_px != (self.size_px, self.size_px):
            raise RequestError(
                f"The protocol {self.name} is of pictures of {self.size_px} x {self.size_px} px; "
                f"these have {size_px[0]} x {size_px[1]}."
            )

    @property
    def line(self) -> str:
        """One sentence for above a table."""
        parts = [f"{self.count} pictures" if self.count else "as many pictures as stated"]
        parts += [f"{self.size_px} px"] if self.size_px else []
        parts += [f"middle square, Lanczos to {self.resize_px} px"] if self.resize_px else []
        parts += [f"Inception behind the '{self.convention}' resize", f"against {self.reference}"]
        return f"Protocol {self.name}: {', '.join(parts)}."


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "coco30k-2014",
            30_000,
            512,
            256,
            "clean",
            "all 40,504 pictures of COCO val2014",
            reference_count=40_504,
            prefix="A photo depicts ",
            source="GigaGAN's evaluation as used by DMD2 and SiD-LSG",
            note="their CLIP score is the bare cosine; here it is times 100",
        ),
        Protocol(
            "coco10k-sdxl",
            10_000,
            1024,
            512,
            "clean",
            "the 10,000 COCO pictures of the same captions",
            reference_count=10_000,
            patch=True,
            prefix="A photo depicts ",
            source="DMD2, table 2; patch FID: SDXL-Lightning",
        ),
        Protocol(
            "coco5k-2017",
            5_000,
            512,
            512,
            "clean",
            "the 5,000 pictures of COCO val2017",
            reference_count=5_000,
            source="ADD, InstaFlow",
            note="the papers do not state their resize; figures of theirs are comparable with care only",
        ),
        Protocol(
            "mjhq30k",
            30_000,
            1024,
            None,
            "clean",
            "the 30,000 pictures of MJHQ-30K",
            reference_count=30_000,
            source="Playground v2, by clean-fid",
        ),
        Protocol(
            "fid-teacher",
            None,
            None,
            None,
            "clean",
            "the teacher's own pictures of the same prompts from other seeds",
            source="FID-SD of PCM, FID-T of SenseFlow",
            note="depends on N, which is in every row; the teacher's own row is the floor",
        ),
    )
}


def protocol_named(name: str) -> Protocol:
    """Raises RequestError for an unknown name.

    >>> protocol_named("coco30k-2014").count
    30000
    """
    if name not in PROTOCOLS:
        raise RequestError(f"'{name}' is no protocol known here; choose among {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]
