"""Small random models of the families that recipes name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from xreasoner.models.export import export
from xreasoner.models.loading import Loaded, load

TOKENS = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
TOKENS |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}


def _qwen3_vl(random_folder: Path, out: Path) -> Path:
    """Two layers of Qwen3-VL: interleaved rotary sections, normed queries, a tower that feeds several layers."""
    tokenizer = AutoTokenizer.from_pretrained(random_folder)
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [2, 3, 3],
            "mrope_interleaved": True,
        },
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
    }
    vision = {
        **{"depth": 2, "num_heads": 2, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64},
        **{"patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 64},
        "deepstack_visual_indexes": [0, 1],
    }
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in TOKENS.items()}
    torch.manual_seed(0)
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    model = Qwen3VLForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.model.language_model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0.0, 0.08)
    processor = Qwen2VLImageProcessorPil(patch_size=16, merge_size=2, min_pixels=4 * 1024, max_pixels=24 * 1024)
    return export(model, tokenizer, processor, out / "qwen3_vl")


def small_folder(family: str, random_folder: Path, out: Path) -> Path:
    """A folder with a small random model of a family; qwen2_5_vl is the random folder itself."""
    return random_folder if family == "qwen2_5_vl" else _qwen3_vl(random_folder, out)


def small_model(family: str, random_folder: Path, out: Path) -> Loaded:
    """The same, loaded."""
    loaded = load(str(small_folder(family, random_folder, out)))
    assert loaded.model.config.model_type == family
    return loaded


FAMILIES = ("qwen2_5_vl", "qwen3_vl")
