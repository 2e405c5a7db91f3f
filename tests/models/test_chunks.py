"""Long and weighted prompts and embeddings, against encoding by hand with transformers."""

import copy

import pytest
import torch

from fewstep.errors import RequestError
from fewstep.models.chunks import Vector, chunks
from fewstep.models.text import TextEncoder
from tests.tiny import tiny_model

IDS = {",": 0, "a": 1, "b": 2}


def letters(text):
    return [IDS[letter] for letter in text if letter != " "]


def cut(prompt, room=75, **how):
    return [
        "".join(",ab"[token] if isinstance(token, int) else "*" for token in chunk.ids)
        for chunk in chunks(prompt, letters, room=room, **how)
    ]


@pytest.fixture(scope="module")
def models():
    return {kind: tiny_model(kind) for kind in ("sd15", "sd2", "sdxl")}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", [""]),
        ("a" * 75, ["a" * 75]),
        ("a" * 76, ["a" * 75, "a"]),
        ("a" * 60 + "," + "b" * 20, ["a" * 60 + ",", "b" * 20]),  # back to the comma, 15 tokens ago
        ("a" * 55 + "," + "b" * 20, ["a" * 55 + ",", "b" * 20]),  # 20 ago
        ("a" * 54 + "," + "b" * 21, ["a" * 54 + "," + "b" * 20, "b"]),  # 21 ago: too far
        ("a" * 74 + ",b", ["a" * 74 + ",", "b"]),
        ("a" * 60 + "," + "b" * 14 + ",a", ["a" * 60 + "," + "b" * 14, ",a"]),  # a comma comes: nothing is torn
        ("a BREAK b", ["a", "b"]),
        ("BREAK a", ["", "a"]),
        ("a BREAK", ["a"]),
        ("a BREAK BREAK b", ["a", "", "b"]),
        ("BREAK", [""]),
    ],
)  # fmt: skip
def test_where_chunks_end(prompt, expected):
    assert cut(prompt) == expected


def test_weights_go_with_their_tokens():
    first, second = chunks("a" * 70 + ",(bb:2)bbb", letters, room=74)
    assert first.weights == [1.0] * 71 and second.weights == [2.0, 2.0, 1.0, 1.0, 1.0]


def test_embeddings_are_not_torn():
    assert cut("a" * 73 + " x b", counts={"x": 3}) == ["a" * 73, "***b"]
    assert cut("a" * 68 + ",bbbbb x", counts={"x": 3}) == ["a" * 68 + ",bbbbb", "***"]  # not full: nothing goes back
    (chunk,) = chunks("a X (x:2)b", letters, room=75, counts={"x": 2})
    assert chunk.ids == [1, Vector("x", 0), Vector("x", 1), Vector("x", 0), Vector("x", 1), 2]
    assert chunk.weights == [1, 1, 1, 2, 2, 1]
    with pytest.raises(RequestError, match="An embedding of 76 vectors does not fit into the 75 tokens"):
        cut("x", counts={"x": 76})


def test_a_name_counts_only_as_a_word_and_the_longest_first():
    assert cut("aa a ba", counts={"a": 1}) == ["aa*ba"]
    assert cut("a-b", counts={"a": 1, "a-b": 2}) == ["**"]


@pytest.mark.parametrize("kind", ["sd15", "sd2", "sdxl"])
@pytest.mark.parametrize("prompt", ["", "a cat", "cat " * 75])
@pytest.mark.parametrize("clip_skip", [1, 2])
def test_a_plain_prompt_is_what_it_always_was(models, kind, prompt, clip_skip):
    text = models[kind].text
    plain, found = text.encode([prompt], clip_skip=clip_skip), text.encode_prompt(prompt, clip_skip=clip_skip)
    assert torch.equal(plain.text_BLD, found.text_BLD)
    assert plain.pooled_BD is None or torch.equal(plain.pooled_BD, found.pooled_BD)
    negative = text.encode_prompt(prompt, negative=True).text_BLD
    assert torch.equal(negative, text.encode_negative([prompt]).text_BLD)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_chunks_stand_one_after_the_other(models, kind):
    text = models[kind].text
    found = text.encode_prompt("cat " * 75 + "a dog BREAK moon")
    apart = text.encode(["cat " * 75, "a dog", "moon"])
    torch.testing.assert_close(found.text_BLD[0], apart.text_BLD.flatten(0, 1))
    assert found.text_BLD.shape[1] == 3 * 77
    if kind == "sdxl":
        torch.testing.assert_close(found.pooled_BD, apart.pooled_BD[:1])


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_weights_multiply_the_states(models, kind):
    text = models[kind].text
    plain_LD = text.encode(["a cat dog"]).text_BLD[0]
    weights_L = torch.ones(77)
    weights_L[2], weights_L[3] = 1.5, 1 / 1.1  # after the start mark and "a"
    multiplied_LD = plain_LD * weights_L[:, None]
    prompt = "a (cat:1.5)[dog]"
    torch.testing.assert_close(text.encode_prompt(prompt, emphasis="no norm").text_BLD[0], multiplied_LD)
    assert torch.equal(text.encode_prompt(prompt, emphasis="ignore").text_BLD[0], plain_LD)
    literal = text.encode_prompt(prompt, emphasis="none").text_BLD
    torch.testing.assert_close(literal, text.encode([prompt]).text_BLD)
    widths = [encoder.config.hidden_size for encoder in text.encoders]
    restored = [
        after * (before.mean() / after.mean())
        for before, after in zip(plain_LD.split(widths, 1), multiplied_LD.split(widths, 1), strict=True)
    ]
    torch.testing.assert_close(text.encode_prompt(prompt).text_BLD[0], torch.cat(restored, 1), rtol=1e-4, atol=1e-5)


def test_the_mean_is_restored_chunk_by_chunk(models):
    text = models["sd15"].text
    found = text.encode_prompt("a cat BREAK (dog:2)").text_BLD[0]
    torch.testing.assert_close(found[:77], text.encode(["a cat"]).text_BLD[0])
    torch.testing.assert_close(found[77:].mean(), text.encode(["dog"]).text_BLD[0].mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_an_embedding_is_more_rows_of_the_table_of_tokens(models, kind):
    text = models[kind].text
    generator = torch.Generator().manual_seed(0)
    names = ("text_encoder", "text_encoder_2")[: len(text.encoders)]
    vectors = {
        name: torch.randn(2, encoder.config.hidden_size, generator=generator)
        for name, encoder in zip(names, text.encoders, strict=True)
    }
    taught = []
    for name, encoder in zip(names, text.encoders, strict=True):
        encoder = copy.deepcopy(encoder)
        table = encoder.get_input_embeddings()
        ids = text.tokenizers[0](["moon apple"], add_special_tokens=False).input_ids[0]
        table.weight.data[ids] = vectors[name]
        taught.append(encoder)
    expected = TextEncoder(taught, text.tokenizers).encode(["a moon apple cat"])
    found = text.encode_prompt("a My-Word cat", embeddings={"my-word": vectors})
    torch.testing.assert_close(found.text_BLD, expected.text_BLD)
    after = text.encode_prompt("a cat")
    assert torch.equal(after.text_BLD, text.encode(["a cat"]).text_BLD)  # nothing stays behind


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_an_embedding_of_another_family_is_refused(models, kind):
    width = models[kind].text.encoders[0].config.hidden_size
    bad = {"text_encoder": torch.zeros(1, width + (kind == "sd15"))}
    with pytest.raises(RequestError, match="'x' has the width .* made for another family"):
        models[kind].text.encode_prompt("x", embeddings={"x": bad})
