"""Random measuring networks in the published files' layouts."""

import json
from pathlib import Path

import torch

from tests.tiny import _vocabulary, write_tokenizer


def inception_weights(seed=0):
    """A state dict of the FID Inception: small random weights that keep its activations finite."""
    from fewstep.models.inception import Inception

    with torch.device("meta"):
        shapes = {name: value.shape for name, value in Inception().state_dict().items()}
    generator, weights = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith("running_var") or name.endswith("bn.weight"):
            weights[name] = torch.ones(shape)
        else:
            scale = 0.05 if len(shape) < 2 else (2 / torch.Size(shape[1:]).numel()) ** 0.5
            weights[name] = torch.randn(shape, generator=generator) * scale
    return weights


def write_clip(folder: Path, *, seed=0, size_px=32, scale=2.0) -> Path:
    """A random CLIP folder with a hand-made tokenizer."""
    from transformers import CLIPConfig, CLIPModel

    count = len(_vocabulary()[0])
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    marks = {"bos_token_id": count - 2, "eos_token_id": count - 1, "pad_token_id": count - 1}
    config = CLIPConfig(
        text_config=tower | marks | {"vocab_size": count, "max_position_embeddings": 77},
        vision_config=tower | {"image_size": size_px, "patch_size": 8},
        projection_dim=16,
        logit_scale_init_value=scale,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        CLIPModel(config).eval().save_pretrained(folder)
    write_tokenizer(folder)
    sight = {"size": {"shortest_edge": size_px}, "crop_size": {"height": size_px, "width": size_px}, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(sight | {"image_processor_type": "CLIPImageProcessor"}))
    return folder
