"""ComfyUI's graph of nodes: the first sampler that the picture comes from, and what is wired to it.

A graph is {id: {"class_type": name, "inputs": {name: value or [id, output]}}}, in the chunk `prompt`, or in the EXIF
field Make or Model of WebP behind "prompt:". Nodes are known by the names of their inputs rather than by their own, as
there are thousands of kinds. Walks keep what they have seen, so that a graph with cycles, with missing nodes or with
lists where numbers should be ends like any other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fewstep.foreign.documents import loaded, number_of, size_of, text_of, told
from fewstep.foreign.names import lora_tag
from fewstep.infotext import Infotext

_OUTPUT = re.compile(r"save|preview|output|display", re.IGNORECASE)
_START = re.compile(r"latent_image|latent|samples|images?|pixels|init_image|basic_pipe|optional_latent|mask")
_HOW = re.compile(r"sigmas|sampler|noise|guider|seed|noise_seed|steps|cfg|sampler_name|scheduler|denoise")
_TO_MODEL = re.compile(r"model|guider|lora_stack|basic_pipe")
_NOT_TEXT = re.compile(r"clip.*|model|vae|control_net.*|image.*|latent.*|samples|mask.*|pixels|delimiter|separator")
_TEXT = re.compile(r"(?:text|string|prompt|value|populated|opt_text)(?!_en|_cl).*")
_VALUES = ("value", "seed", "noise_seed", "int", "float", "number", "string", "text", "Number", "Value", "Text")
_SPREADS = {
    "KarrasScheduler": "karras",
    "ExponentialScheduler": "exponential",
    "PolyexponentialScheduler": "polyexponential",
    "AlignYourStepsScheduler": "align your steps",
    "BetaSamplingScheduler": "beta",
    "SDTurboScheduler": "sgm uniform",
}
_ORDINARY = re.compile(
    r"KSampler.*|SamplerCustom.*|.*Loader.*|CLIP.*|VAE.*|Empty.*|Save.*|Preview.*|.*Guider|.*Scheduler|RandomNoise|"
    r"Conditioning.*|ModelSampling.*|LoadImage.*|.*(?:Primitive|Text|String|Seed|Int|Float|Constant|Note|Reroute).*"
)


def graph(texts: Mapping[str, str]) -> Infotext | None:
    """What a graph says of its picture; None where there is none, or no sampler in it."""
    exif = [texts.get(key, "") for key in ("Make", "Model", "ImageDescription")]
    for text in (texts.get("prompt"), *(text[7:] for text in exif if text[:7].lower() == "prompt:")):
        document = loaded(text)
        nodes = {key: node for key, value in (document or {}).items() if (node := _node(value))}
        if nodes and (info := _Graph(nodes).infotext()) is not None:
            return info
    return None


@dataclass(frozen=True)
class _Node:
    kind: str
    inputs: Mapping[str, Any]


def _node(value: Any) -> _Node | None:
    if not isinstance(value, dict) or not isinstance(value.get("inputs"), dict):
        return None
    return _Node(text_of(value.get("class_type")), value["inputs"])


def _is_sampler(node: _Node) -> bool:
    named = "sampler" in node.kind.lower() and {"latent_image", "guider", "positive"} & set(node.inputs)
    return bool(named) or {"steps", "cfg", "sampler_name"} <= set(node.inputs)


class _Graph:
    """The nodes by their ids, and the walks over them."""

    def __init__(self, nodes: Mapping[str, _Node]) -> None:
        self.nodes = nodes

    def linked(self, value: Any) -> str | None:
        """The id of the node that an input is wired to."""
        if isinstance(value, list) and len(value) == 2 and isinstance(value[0], (str, int)):
            return key if (key := str(value[0])) in self.nodes else None
        return None

    def walk(
        self, starts: Iterable[str], along: re.Pattern[str] | None = None, seen: set[str] | None = None
    ) -> Iterator[str]:
        """The nodes, and all that they come from through inputs of these names, nearest first, none that was seen."""
        waiting, seen = list(starts), set() if seen is None else seen
        for key in waiting:
            if key in seen:
                continue
            seen.add(key)
            yield key
            inputs = self.nodes[key].inputs.items()
            wired = (self.linked(value) for name, value in inputs if along is None or along.fullmatch(name))
            waiting += [source for source in wired if source is not None]

    def infotext(self) -> Infotext | None:
        """The settings of the sampler that the picture begins with."""
        reached = self._reached()
        samplers = [key for key in reached if _is_sampler(self.nodes[key])]
        if not samplers:
            return None
        base, seen = samplers[0], set()
        while (earlier := self._earlier(base, seen)) is not None:
            base = earlier
        kinds = {self.nodes[key].kind for key in reached if key not in samplers}
        others = sorted(kind for kind in kinds if not _ORDINARY.fullmatch(kind) and not _OUTPUT.search(kind))
        settings = self._settings(base, reached)
        settings |= {"Sampling passes": str(len(samplers)) if len(samplers) > 1 else "", "Nodes": ", ".join(others)}
        prompts = {"prompt": self.prompt(base, "positive"), "negative_prompt": self.prompt(base, "negative")}
        return told("ComfyUI", {}, {}, loras=self._loras(base), **settings, **prompts)

    def _reached(self) -> list[str]:
        """The nodes that a picture is made of, from the outputs back; all of them where no sampler is behind one."""
        found = list(self.walk(key for key, node in self.nodes.items() if _OUTPUT.search(node.kind)))
        return found if any(_is_sampler(self.nodes[key]) for key in found) else list(self.nodes)

    def _earlier(self, sampler: str, seen: set[str]) -> str | None:
        """The nearest sampler that this one's start comes from."""
        seen.discard(sampler)
        behind = self.walk([sampler], _START, seen)
        return next((key for key in behind if key != sampler and _is_sampler(self.nodes[key])), None)

    def _behind(self, key: str, along: re.Pattern[str]) -> list[_Node]:
        return [self.nodes[found] for found in self.walk([key], along)]

    def _settings(self, base: str, reached: list[str]) -> dict[str, str]:
        how, nodes = self._behind(base, _HOW), [self.nodes[key] for key in reached]
        to_model, start = self._behind(base, _TO_MODEL), self._behind(base, _START)
        width, height = (self.first(start, side, number=True) for side in ("width", "height"))
        stop = number_of(self.first(nodes, "stop_at_clip_layer", number=True), -1)
        picture = self.first([node for node in start if "load" in node.kind.lower()], "image")
        spread = next((_SPREADS[node.kind] for node in how if node.kind in _SPREADS), "")
        named = next((node.kind.removeprefix("Sampler") for node in how if re.match(r"Sampler[A-Z]", node.kind)), "")
        own = "" if named.startswith("Custom") else named
        return {
            "Steps": self.first(how, "steps", number=True),
            "Sampler": self.first(how, "sampler_name") or own,
            "Schedule type": self.first(how, "scheduler") or spread,
            "CFG scale": self.first(how, "cfg", number=True),
            "Seed": self.first(how, "seed", "noise_seed", number=True),
            "Size": size_of(width, height),
            "Model": self.first(to_model, "ckpt_name", "unet_name", "model_name", "base_ckpt_name"),
            "VAE": self.first(nodes, "vae_name"),
            "Denoising strength": self.first(how, "denoise", number=True) if picture else "",
            "Clip skip": text_of(-stop) if stop < -1 else "",
            "Init image": picture,
            "RNG": "CPU",
        }

    def first(self, nodes: list[_Node], *names: str, number: bool = False) -> str:
        """The text of the first of these inputs that says something, in the order of the nodes."""
        for node in nodes:
            for name in names:
                if found := self.value(node.inputs.get(name), name, number=number):
                    return found
        return ""

    def value(self, value: Any, name: str, *, number: bool) -> str:
        """An input's own value, or that of the node it is wired to; "" where it is of another kind."""
        seen: set[str] = set()
        while (source := self.linked(value)) is not None and source not in seen:
            seen.add(source)
            inputs = self.nodes[source].inputs
            value = next((inputs[key] for key in (name, *_VALUES) if key in inputs), None)
        if isinstance(value, dict):  # some extensions wrap a file's name
            value = value.get("content")
        right = isinstance(value, (int, float)) if number else isinstance(value, str)
        return text_of(value) if right and not isinstance(value, bool) else ""

    def prompt(self, base: str, side: str) -> str:
        """The texts behind a sampler's positive or negative input, in their order, joined by commas."""
        sampler = self.nodes[base]
        guided = [node for node in self._behind(base, re.compile("guider")) if side in node.inputs]
        begin = sampler.inputs.get(side, guided[0].inputs[side] if guided else None)
        if begin is None and side == "positive":
            guider = self.linked(sampler.inputs.get("guider"))
            begin = self.nodes[guider].inputs.get("conditioning") if guider else None
        if isinstance(begin, str):
            return text_of(begin)
        texts, waiting, seen = [], [begin], set()
        while waiting:
            value = waiting.pop()
            if isinstance(value, str):
                texts.append(text_of(value).strip())
            elif (source := self.linked(value)) is not None and source not in seen:
                seen.add(source)
                waiting += reversed(_texts(self.nodes[source], side))
        return ", ".join(dict.fromkeys(filter(None, texts)))

    def _loras(self, base: str) -> list[str]:
        found: list[str] = []
        for node in self._behind(base, _TO_MODEL):
            inputs = node.inputs
            if name := self.value(inputs.get("lora_name"), "lora_name", number=False):
                unet = number_of(self.value(inputs.get("strength_model"), "strength_model", number=True))
                text = number_of(self.value(inputs.get("strength_clip"), "strength_clip", number=True), unet)
                found.append(lora_tag(name, unet, text))
            rows = [row for row in inputs.values() if isinstance(row, dict) and row.get("on") is True]
            found += [lora_tag(text_of(row.get("lora")), number_of(row.get("strength"))) for row in rows]
        return found[::-1]


_SIDES: dict[str, Callable[[str], bool]] = {
    "positive": lambda name: "negative" not in name,
    "negative": lambda name: "positive" not in name,
}


def _texts(node: _Node, side: str) -> list[Any]:
    """The inputs of a node that a prompt is made of: its texts, else everything that may lead to one."""
    if "ZeroOut" in node.kind:
        return []
    inputs = {name: value for name, value in node.inputs.items() if _SIDES[side](name)}
    texts = [value for name, value in inputs.items() if _TEXT.fullmatch(name) or side in name]
    if any(isinstance(value, str) and value for value in texts):
        return texts
    return [value for name, value in inputs.items() if isinstance(value, list) and not _NOT_TEXT.fullmatch(name)]
