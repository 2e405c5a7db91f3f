"""LoRA layers for training: what they are put on, how they start, how they are switched off."""

import pytest
import torch
from torch import nn

from fewstep.errors import LoraError
from fewstep.models.lora_layers import (
    ADAPTER,
    FAKE,
    TARGETS,
    add_lora,
    base_only,
    lora_state,
    only,
    start_lora,
    targeted,
)
from tests.tiny import tiny_unet


def output(unet):
    generator = torch.Generator().manual_seed(5)
    z_BCHW = torch.randn(1, 4, 8, 8, generator=generator)
    return unet(z_BCHW, torch.tensor([700]), torch.randn(1, 7, 32, generator=generator)).sample


def perturb(parameters):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in parameters:
            parameter += torch.randn(parameter.shape, generator=generator) * 0.1


def flags(unet):
    return {name: parameter.requires_grad for name, parameter in unet.named_parameters()}


def test_targets_are_those_of_the_published_lcm_lora():
    """67.25 M parameters in 556 tensors at rank 64 on SD 1.5's own widths."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    shapes = [unet.get_submodule(name).weight.shape for name in targeted(unet)]
    assert 2 * len(shapes) == 556
    assert sum(64 * (shape[0] + shape[1:].numel()) for shape in shapes) == pytest.approx(67.25e6, rel=1e-3)


def test_nothing_changes_at_the_start_and_only_lora_trains():
    unet = tiny_unet("sd15")
    names, plain = targeted(unet), output(unet)
    weights = {name: unet.get_submodule(name).weight.shape for name in names}
    parameters = add_lora(unet, rank=3, alpha=1.5)
    assert torch.equal(output(unet), plain)
    assert {id(parameter) for parameter in parameters} == {id(p) for p in unet.parameters() if p.requires_grad}
    state = lora_state(unet)
    assert list(state) == names and len(parameters) == 2 * len(names)
    for name, (down, up) in state.items():
        assert down.shape == (3, *weights[name][1:]) and up.shape[:2] == (weights[name][0], 3)
        assert not up.any() and 0 < down.abs().max() <= down[0].numel() ** -0.5


def test_strength_is_alpha_over_rank():
    """One layer by itself against the formula, with an alpha that is no whole number."""
    unet = tiny_unet("sd15")
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    x_BD = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    plain = unet.get_submodule(name)(x_BD)
    perturb(add_lora(unet, rank=4, alpha=2.5, targets=["attn1.to_q"]))
    down, up = lora_state(unet)[name]
    with torch.no_grad():
        assert torch.allclose(unet.get_submodule(name)(x_BD), plain + 2.5 / 4 * x_BD @ down.T @ up.T, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_seed_decides_the_start(dtype):
    def start(seed):
        unet = tiny_unet("sd15").to(dtype)
        torch.rand(seed + 1)
        parameters = add_lora(unet, rank=2, alpha=2, seed=seed)
        assert all(parameter.dtype == torch.float32 for parameter in parameters)
        assert unet.conv_in.weight.dtype == dtype
        return [parameter.detach().clone() for parameter in parameters]

    zero, again, one = start(0), start(0), start(1)
    assert all(map(torch.equal, zero, again)) and not torch.equal(zero[0], one[0])
    assert not torch.equal(zero[0], zero[2])


def test_base_only_is_the_base_and_comes_back():
    unet = tiny_unet("sd15")
    plain = output(unet)
    parameters = add_lora(unet, rank=2, alpha=2)
    perturb(parameters)
    parameters[0].requires_grad_(False)
    student, before = output(unet), flags(unet)
    assert not torch.allclose(student, plain, atol=1e-3)
    with base_only(unet) as teacher:
        assert torch.equal(output(teacher), plain)
        with base_only(unet):
            assert torch.equal(output(unet), plain)
        assert torch.equal(output(unet), plain)
    assert torch.equal(output(unet), student) and flags(unet) == before


def test_base_only_restores_after_an_error():
    unet = tiny_unet("sd15")
    perturb(add_lora(unet, rank=2, alpha=2))
    student, before = output(unet), flags(unet)
    with pytest.raises(ZeroDivisionError), base_only(unet):
        raise ZeroDivisionError
    assert torch.equal(output(unet), student) and flags(unet) == before


def test_gradients_survive_a_teacher_pass_before_backward():
    unet = tiny_unet("sd15")
    parameters = add_lora(unet, rank=2, alpha=2)
    perturb(parameters)
    student = output(unet)
    with base_only(unet), torch.no_grad():
        teacher = output(unet)
    (student - teacher).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in parameters)
    assert unet.conv_in.weight.grad is None


def test_base_only_without_layers():
    unet = tiny_unet("sd15")
    with base_only(unet):
        output(unet)


def test_state_is_a_copy():
    unet = tiny_unet("sd15")
    parameters = add_lora(unet, rank=2, alpha=2, targets=["conv1"])
    state = lora_state(unet)
    perturb(parameters)
    assert not any(up.any() or up.requires_grad for _, up in state.values())
    assert all(isinstance(unet.get_submodule(name).lora_B[ADAPTER], nn.Conv2d) for name in state)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rank": 0}, "A LoRA of rank 0"),
        ({"rank": 2, "targets": ["to_q", "to_r"]}, "target 'to_r' matches no"),
        ({"rank": 2, "targets": []}, "match no linear or convolution layer"),
    ],
)
def test_bad_arguments(arguments, words):
    unet = tiny_unet("sd15")
    before = flags(unet)
    with pytest.raises(LoraError, match=words):
        add_lora(unet, alpha=1, **arguments)
    assert flags(unet) == before


def test_layers_once_and_layers_at_all():
    unet = tiny_unet("sd15")
    with pytest.raises(LoraError, match="carries no LoRA layers"):
        lora_state(unet)
    add_lora(unet, rank=2, alpha=2, targets=TARGETS[:1])
    with pytest.raises(LoraError, match="LoRA layers already"):
        add_lora(unet, rank=2, alpha=2)


def test_of_two_sets_one_is_heard_at_a_time():
    unet = tiny_unet("sd15")
    plain = output(unet)
    parameters = add_lora(unet, rank=2, alpha=2.0, adapters=(ADAPTER, FAKE))
    perturb(parameters)
    before, first = flags(unet), output(unet)
    with only(unet, FAKE):
        second = output(unet)
        with base_only(unet):
            assert torch.equal(output(unet), plain)
        assert torch.equal(output(unet), second)
    assert not torch.allclose(first, second) and torch.equal(output(unet), first) and flags(unet) == before
    assert all(down.shape[0] == 2 for down, _ in lora_state(unet).values())


def test_the_second_set_learns_only_where_it_is_heard():
    unet = tiny_unet("sd15")
    parameters = add_lora(unet, rank=2, alpha=2.0, adapters=(ADAPTER, FAKE))
    perturb(parameters)
    with only(unet, FAKE):
        second = output(unet)
    (second.square().mean() + 0 * output(unet).mean()).backward()
    learnt = {n.split(".")[-2] for n, p in unet.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert learnt == {FAKE}


def test_a_start_is_answered_exactly_whatever_its_alpha_and_smaller_rank():
    unet = tiny_unet()
    add_lora(unet, rank=4, alpha=8, seed=1)
    generator = torch.Generator().manual_seed(3)
    state = {
        name: (
            torch.randn(2, *down.shape[1:], generator=generator),
            torch.randn(len(up), 2, *up.shape[2:], generator=generator),
        )
        for name, (down, up) in lora_state(unet).items()
    }
    start_lora(unet, state)
    for name, (down, up) in lora_state(unet).items():
        wanted = state[name][1].flatten(1) @ state[name][0].flatten(1)
        torch.testing.assert_close(8 / 4 * up.flatten(1) @ down.flatten(1), wanted)
        assert down[2:].abs().sum() > 0  # the rows left over can still learn


def test_a_start_of_a_greater_rank_or_another_module_is_refused():
    unet = tiny_unet()
    add_lora(unet, rank=2, alpha=2)
    name, (down, up) = next(iter(lora_state(unet).items()))
    with pytest.raises(LoraError, match="rank"):
        start_lora(unet, {name: (down.repeat(2, *[1] * (down.ndim - 1)), up)})
    with pytest.raises(LoraError, match="not trained"):
        start_lora(unet, {"nowhere": (down, up)})
