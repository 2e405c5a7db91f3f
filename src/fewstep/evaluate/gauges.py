"""Open the measuring models that a user has files of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fewstep.checkpoints.measures import load_clip, load_inception
from fewstep.errors import RequestError
from fewstep.evaluate.features import Features, clip_features, inception_features, judge_features
from fewstep.evaluate.judge import Judge
from fewstep.evaluate.measure import Gauges
from fewstep.evaluate.preference import Score, clip_score, hps_score, image_reward, pick_score
from fewstep.evaluate.protocols import Protocol
from fewstep.evaluate.reference import Reference, read_reference


@dataclass(frozen=True)
class Files:
    """Local files of measuring models; None leaves one out. `prefix` goes before prompts for the CLIP score."""

    inception: Path | None = None
    clip: Path | None = None
    pickscore: Path | None = None
    hps: Path | None = None
    image_reward: Path | None = None
    resize: str | None = None
    prefix: str | None = None


def open_gauges(files: Files, *, judge: Judge | None, protocol: Protocol | None = None, device: str = "cpu") -> Gauges:
    """All models of `files`; under a protocol only its own features, and CLIP for the score alone.

    Raises:
        CheckpointError: a file is missing or not what it should be.
        RequestError: the protocol needs the Inception and there is none, or another resize is asked for.
    """
    if protocol is not None and files.inception is None:
        raise RequestError(f"The protocol {protocol.name} is defined by the FID's Inception; give it with --inception.")
    if protocol is not None and files.resize not in (None, protocol.convention):
        raise RequestError(
            f"The protocol {protocol.name} resizes by '{protocol.convention}', not by '{files.resize}'; leave one out."
        )
    features: list[Features] = [] if protocol is not None or judge is None else [judge_features(judge)]
    if files.inception is not None:
        features += _inception(files, protocol, device)
    scores, towers = _scores(files, protocol, device)
    return Gauges((*features, *(towers if protocol is None else ())), scores, None if protocol is not None else judge)


def _inception(files: Files, protocol: Protocol | None, device: str) -> tuple[Features, ...]:
    network = load_inception(files.inception or "", device=device)

    def behind(convention: str) -> Features:
        return inception_features(network, convention=convention, device=device)

    return (behind(files.resize or "clean"),) if protocol is None else protocol.features(behind)


def _scores(files: Files, protocol: Protocol | None, device: str) -> tuple[tuple[Score, ...], tuple[Features, ...]]:
    scores: list[Score] = []
    towers: list[Features] = []
    if files.clip is not None:
        clip = load_clip(files.clip, device=device)
        prefix = files.prefix if files.prefix is not None else protocol.prefix if protocol is not None else ""
        scores.append(clip_score(clip, prefix=prefix))
        towers.append(clip_features(clip))
    if files.pickscore is not None:
        scores.append(pick_score(load_clip(files.pickscore, device=device)))
    if files.hps is not None:
        scores.append(hps_score(load_clip(files.hps, device=device)))
    if files.image_reward is not None:
        config = files.image_reward.with_name("med_config.json")
        scores.append(image_reward(files.image_reward, config, device=device))
    return tuple(scores), tuple(towers)


def for_moments(gauges: Gauges) -> Features:
    """The network that a file of moments is of: the Inception where there is one."""
    official = [read for read in gauges.features if read.network == "inception"]
    return (official or list(gauges.features))[0]


def read_references(path: Path, gauges: Gauges, protocol: Protocol | None = None) -> dict[str, Reference]:
    """The reference in every network's features, by their keys; a file of moments only in those of `for_moments`.

    Raises:
        RequestError: as of `read_reference`.
        ImageError: as of `read_reference`.
    """
    count, name = (None, "none") if protocol is None else (protocol.reference_count, protocol.name)
    chosen = (for_moments(gauges),) if path.suffix.lower() == ".npz" else gauges.features
    return {read.key: read_reference(path, read, count=count, protocol=name) for read in chosen}
