"""Train the tokenizer: CLIP-style byte-level BPE with 4,096 entries on captions and picture-set keywords.

python -m pictogram.tokenizer         # -> build/pictogram/model/tokenizer
"""

import json
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from pictogram.fetch import BUILD, package
from pictogram.scenes import compose, load_cutouts, trained

ENTRIES = 4096
START, END = "<|startoftext|>", "<|endoftext|>"
#: CLIP's split pattern (Radford et al. 2021, byte-pair encoding of lower-cased text).
PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def corpus() -> list[str]:
    """Captions as training sees them, and every keyword of the emoji lists."""
    rng, cutouts, pairs = np.random.default_rng(0), load_cutouts(BUILD / "cutouts.npz"), trained()
    captions = [compose(cutouts, rng, pairs).caption for _ in range(4000)]
    keywords = json.loads((package("emojilib@4.0.3", cache=Path("build/npm")) / "dist/emoji-en-US.json").read_text())
    return captions + [" ".join(words).replace("_", " ") for words in keywords.values()]


def train(lines: list[str]) -> Tokenizer:
    """A byte-level BPE whose words end in `</w>`."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PATTERN), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=ENTRIES - 2,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def write(tokenizer: Tokenizer, folder: Path) -> None:
    """vocab.json (bytes, bytes with `</w>`, merges, specials last), merges.txt and tokenizer_config.json."""
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = merges[: ENTRIES - 2 - 2 * len(alphabet)]
    words = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(pair) for pair in merges), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
        "model_max_length": 77,
        "add_prefix_space": False,
        "do_lower_case": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    """Train and write."""
    write(train(corpus()), BUILD / "model" / "tokenizer")


if __name__ == "__main__":
    main()
