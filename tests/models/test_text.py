"""Our text encoding against diffusers' own, and against a text model with its last layer cut off."""

import copy

import pytest
import torch

from fewstep.checkpoints.folder import load_tokenizer
from fewstep.errors import CheckpointError, RequestError
from fewstep.models.text import Text, TextEncoder
from tests.tiny import tiny_folder, tiny_model, tiny_text

PROMPTS = ["a cat", "", "a photo of a red apple, on the moon!" * 12]


@pytest.fixture(scope="module")
def models():
    return {kind: tiny_model(kind) for kind in ("sd15", "sd2", "sdxl")}


def from_diffusers(kind):
    import diffusers

    name = "StableDiffusionXLPipeline" if kind == "sdxl" else "StableDiffusionPipeline"
    return getattr(diffusers, name).from_pretrained(str(tiny_folder(kind)), local_files_only=True)


@pytest.mark.parametrize("kind", ["sd15", "sd2"])
def test_one_encoder_equals_diffusers(models, kind):
    expected, _ = from_diffusers(kind).encode_prompt(PROMPTS, "cpu", 1, False)
    text = models[kind].text.encode(PROMPTS)
    torch.testing.assert_close(text.text_BLD, expected)
    assert text.pooled_BD is None
    assert text.text_BLD.shape == (3, 77, models[kind].family.cross_attention_dim)


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_two_encoders_equal_diffusers(models, clip_skip):
    expected, negative, pooled, negative_pooled = from_diffusers("sdxl").encode_prompt(
        PROMPTS, device="cpu", do_classifier_free_guidance=True, clip_skip=clip_skip - 1
    )
    text = models["sdxl"].text.encode(PROMPTS, clip_skip=clip_skip)
    torch.testing.assert_close(text.text_BLD, expected)
    torch.testing.assert_close(text.pooled_BD, pooled)
    empty = models["sdxl"].text.encode_negative([""] * 3, clip_skip=clip_skip)
    assert torch.equal(empty.text_BLD, negative) and torch.equal(empty.pooled_BD, negative_pooled)


def test_clip_skip_2_is_the_model_without_its_last_layer(models):
    text = models["sd15"].text
    cut = copy.deepcopy(text.encoders[0])
    core = getattr(cut, "text_model", cut)
    core.encoder.layers = core.encoder.layers[:-1]
    shorter = TextEncoder([cut], text.tokenizers)
    torch.testing.assert_close(text.encode(PROMPTS, clip_skip=2).text_BLD, shorter.encode(PROMPTS).text_BLD)


@pytest.mark.parametrize(("kind", "clip_skip"), [("sd15", 0), ("sd15", 4), ("sdxl", 3), ("sd15", -1)])
def test_clip_skip_out_of_range(models, kind, clip_skip):
    with pytest.raises(RequestError, match="clip_skip"):
        models[kind].text.encode(["a cat"], clip_skip=clip_skip)


def test_negative_convention(models):
    mixed = models["sdxl"].text.encode_negative(["", "a cat"])
    assert not mixed.text_BLD[0].any() and not mixed.pooled_BD[0].any()
    assert torch.equal(mixed.text_BLD[1], models["sdxl"].text.encode(["", "a cat"]).text_BLD[1])
    ordinary = models["sd15"].text
    assert torch.equal(ordinary.encode_negative([""]).text_BLD, ordinary.encode([""]).text_BLD)


def test_what_is_beyond_77_positions_changes_nothing(models):
    text = models["sd15"].text
    long, longer = text.encode(["cat " * 75, "cat " * 75 + "dog"]).text_BLD
    assert torch.equal(long, longer)


def test_rows_cat_expand(models):
    text = models["sdxl"].text.encode(["a cat", "a dog"])
    assert torch.equal(text.rows([1, 0, 1]).text_BLD, text.text_BLD[[1, 0, 1]])
    assert torch.equal(Text.cat([text, text]).pooled_BD, text.pooled_BD.repeat(2, 1))
    assert len(text.rows([0]).expand(3)) == 3
    assert text.to(torch.float16).pooled_BD.dtype == torch.float16
    with pytest.raises(ValueError, match="2 prompts for 3 items"):
        text.expand(3)


def test_a_tokenizer_of_another_model_is_refused():
    tokenizer = load_tokenizer(tiny_folder("sd15"), "tokenizer")
    encoder = tiny_text()
    encoder.config.vocab_size = 49408
    with pytest.raises(CheckpointError, match=r"534 tokens but .* has 49408"):
        TextEncoder([encoder], [tokenizer])
