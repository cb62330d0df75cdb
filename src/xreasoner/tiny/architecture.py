"""The embedded model's shape and how it is initialised so that recall can form."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

HIDDEN = 192
HEADS = 6
KEY_HEADS = 3
HEAD_DIM = HIDDEN // HEADS
ROPE_BASE = 10_000.0
PATCH = 14
MERGE = 2
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
PIXELS = {"min_pixels": 2 * 2 * 28 * 28, "max_pixels": 64 * 28 * 28}


def config(tokenizer: Any) -> Qwen2_5_VLConfig:
    """Qwen2.5-VL's configuration for about 4 million parameters; ids come from the tokenizer."""
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in _TOKENS}
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": HIDDEN,
            "intermediate_size": 512,
            "num_hidden_layers": 6,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KEY_HEADS,
            "max_position_embeddings": 2048,
            "max_window_layers": 6,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_BASE, "mrope_section": [4, 6, 6]},
            "bos_token_id": ids["endoftext"],
            "eos_token_id": ids["im_end"],
            "pad_token_id": ids["endoftext"],
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 320,
            "num_heads": 4,
            "out_hidden_size": HIDDEN,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [0, 1, 2, 3],
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        tie_word_embeddings=True,
    )


_TOKENS = ("endoftext", "im_end", "image_pad", "video_pad", "vision_start", "vision_end")


def build(tokenizer: Any, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A fresh model, float32 on the CPU, initialised by `initialise`."""
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config(tokenizer)).float()
    initialise(model)
    return model


def image_processor() -> Qwen2VLImageProcessorPil:
    """The processor whose pictures keep their size when they are whole cells."""
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=2,
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_STD),
        **PIXELS,
    )


@torch.no_grad()
def initialise(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Start from heads that look back by position, heads that find what follows a match, and heads that copy.

    Without this, recall stays at chance for millions of tokens (docs/log.md).
    """
    language = model.model.language_model
    language.embed_tokens.weight.normal_(0.0, 0.05)
    # 192 orthogonal directions, 32 for what each first-layer head brings along
    brought_HDE = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN)).Q.view(HIDDEN, HEADS, HEAD_DIM).permute(1, 2, 0)
    read_KDE = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN)).Q.view(HIDDEN, HEADS, HEAD_DIM).permute(1, 2, 0)[:KEY_HEADS]
    _look_back(language.layers[0].self_attn, brought_HDE, read_KDE)
    for layer in language.layers[1:]:
        _match_and_copy(layer.self_attn)
    _induce(language.layers[1].self_attn, brought_HDE, read_KDE)


def _look_back(attention: Any, brought_HDE: Tensor, read_KDE: Tensor) -> None:
    """Head h attends to the token h + 1 places back and writes what stands there into directions of its own.

    In the rotate-half layout a constant key bias (a … a | 0 … 0) and a query bias
    (a·cos(o·f_i) | −a·sin(o·f_i)) give the score a²·Σ cos((q − p − o)·f_i), whose peak is the token o places back.
    """
    frequencies = ROPE_BASE ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    a, half = 2.0, HEAD_DIM // 2
    attention.q_proj.weight.mul_(0.3)
    attention.k_proj.weight.mul_(0.3)
    attention.k_proj.bias.copy_(torch.cat([torch.full((half,), a), torch.zeros(half)]).repeat(KEY_HEADS))
    for head, bias in enumerate(attention.q_proj.bias.view(HEADS, HEAD_DIM)):
        angle = (head + 1) * frequencies
        bias.copy_(torch.cat([a * angle.cos(), -a * angle.sin()]))
    attention.v_proj.weight.copy_(read_KDE.reshape(-1, HIDDEN))
    loud = torch.tensor([0.12, 0.12, 0.05, 0.05, 0.05, 0.05])[:, None, None]
    attention.o_proj.weight.copy_((loud * brought_HDE).reshape(-1, HIDDEN).T)


def _match_and_copy(attention: Any) -> None:
    """Queries start as keys, so that a head attends to equal content; outputs start as the values' transpose."""
    keys_KDE = torch.randn(KEY_HEADS, HEAD_DIM, HIDDEN) * (0.7 / math.sqrt(HIDDEN))
    attention.k_proj.weight.copy_(keys_KDE.reshape(-1, HIDDEN))
    attention.q_proj.weight.copy_(keys_KDE.repeat_interleave(HEADS // KEY_HEADS, dim=0).reshape(-1, HIDDEN))
    values_KDE = (
        torch.linalg.qr(torch.randn(HIDDEN, HIDDEN)).Q.view(HIDDEN, HEADS, HEAD_DIM).permute(1, 2, 0)[:KEY_HEADS]
    )
    attention.v_proj.weight.copy_(values_KDE.reshape(-1, HIDDEN))
    attention.o_proj.weight.copy_(0.1 * values_KDE.repeat_interleave(HEADS // KEY_HEADS, dim=0).reshape(-1, HIDDEN).T)


def rotations(seed: int = 0) -> Tensor:
    """Four orthogonal matrices [4, D, D], in which a picture's token keeps its four answers (eyes.py).

    The first is the identity, so that the first answer looks to the language model like the word itself.
    """
    generator = torch.Generator().manual_seed(seed)
    turns = [torch.linalg.qr(torch.randn(HIDDEN, HIDDEN, generator=generator)).Q for _ in range(3)]
    return torch.stack([torch.eye(HIDDEN), *turns])


def _induce(attention: Any, brought_HDE: Tensor, read_KDE: Tensor) -> None:
    """Second layer: heads that find what followed the last time, in text and in a picture.

    Keys of two groups are what stood one and two places before; of the third, what a picture's cell says stands
    before it. Queries are this token, or the one before it.
    """
    strength = 1.5
    keys, queries = (
        attention.k_proj.weight.view(KEY_HEADS, HEAD_DIM, HIDDEN),
        attention.q_proj.weight.view(HEADS, HEAD_DIM, HIDDEN),
    )
    for group in (0, 1):
        keys[group] = strength * brought_HDE[group]
        # the values that heads 0 and 1 of the first layer bring along are read by their shared group 0
        queries[2 * group] = strength * read_KDE[0]
        queries[2 * group + 1] = strength * brought_HDE[0]
    seen = rotations()
    keys[2] = strength * read_KDE[0] @ seen[2].T
    queries[4] = strength * read_KDE[0]
    queries[5] = strength * brought_HDE[0]
    # this token's cell gives its first answer, the cell of the token before its second
    outputs = attention.o_proj.weight.view(HIDDEN, HEADS, HEAD_DIM)
    outputs[:, 5] = seen[1].T @ outputs[:, 5]
