"""The embedded model's shape and how it is initialised so that recall can form."""

from __future__ import annotations

import math
from typing import Any

import torch
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
    """Heads that look back by position in the first layer, heads that match content above.

    In the rotate-half layout a constant key bias (a … a | 0 … 0) and a query bias
    (a·cos(o·f_i) | −a·sin(o·f_i)) give the score a²·Σ cos((q − p − o)·f_i), whose peak is the token o places
    back. Above, a head's queries start as its keys, so that it attends to equal content. Without this, recall
    stays at chance for millions of tokens (docs/log.md).
    """
    layers = model.model.language_model.layers
    frequencies = ROPE_BASE ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    a, half = 2.0, HEAD_DIM // 2
    first = layers[0].self_attn
    first.q_proj.weight.mul_(0.3)
    first.k_proj.weight.mul_(0.3)
    first.k_proj.bias.copy_(torch.cat([torch.full((half,), a), torch.zeros(half)]).repeat(KEY_HEADS))
    bias = first.q_proj.bias.view(HEADS, HEAD_DIM)
    for head in range(HEADS):
        angle = (head + 1) * frequencies
        bias[head] = torch.cat([a * angle.cos(), -a * angle.sin()])
    for layer in layers[1:]:
        keys = torch.randn(KEY_HEADS, HEAD_DIM, HIDDEN) * (0.7 / math.sqrt(HIDDEN))
        layer.self_attn.k_proj.weight.copy_(keys.view(-1, HIDDEN))
        queries = keys.repeat_interleave(HEADS // KEY_HEADS, dim=0)
        layer.self_attn.q_proj.weight.copy_(queries.view(-1, HIDDEN))
    model.model.language_model.embed_tokens.weight.normal_(0.0, 0.05)
