"""Every family that docs/models.md names, small and with random weights: greedy output equals transformers' own.

Also what cannot be run, and is refused in words.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from xreasoner.engines.base import Request, Sampling
from xreasoner.engines.decoding import fits
from xreasoner.engines.torch_engine import TorchEngine
from xreasoner.errors import CheckpointError, UserError
from xreasoner.models.export import export
from xreasoner.models.loading import Loaded, encode, load

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
SEES = {"depth": 2, "num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2}


def _qwen2_vl(ids: dict[str, int], text: dict[str, Any]) -> Any:
    sees = {**SEES, "embed_dim": 32, "hidden_size": 64, "patch_size": 14}
    config = Qwen2VLConfig(text_config={**text, "rope_parameters": ROPE}, vision_config=sees, **ids)
    return Qwen2VLForConditionalGeneration(config), _processor(14)


def _qwen2_5_vl(ids: dict[str, int], text: dict[str, Any]) -> Any:
    sees = {**SEES, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64, "patch_size": 14}
    sees |= {"window_size": 56, "fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(text_config={**text, "rope_parameters": ROPE}, vision_config=sees, **ids)
    return Qwen2_5_VLForConditionalGeneration(config), _processor(14)


_SEES_3 = {
    **SEES,
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": 64,
    "patch_size": 16,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1],
}
_ROPE_3 = {**ROPE, "mrope_interleaved": True}


def _qwen3_vl(ids: dict[str, int], text: dict[str, Any]) -> Any:
    text = {**text, "rope_parameters": _ROPE_3, "head_dim": 16}
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=_SEES_3, **ids)), _processor(
        16
    )


def _qwen3_vl_moe(ids: dict[str, int], text: dict[str, Any]) -> Any:
    text = {**text, "rope_parameters": _ROPE_3, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2}
    config = Qwen3VLMoeConfig(text_config={**text, "moe_intermediate_size": 48}, vision_config=_SEES_3, **ids)
    return Qwen3VLMoeForConditionalGeneration(config), _processor(16)


def _processor(patch: int) -> Any:
    return Qwen2VLImageProcessorPil(patch_size=patch, merge_size=2, min_pixels=4 * 28 * 28, max_pixels=24 * 28 * 28)


FAMILIES = {"qwen2_vl": _qwen2_vl, "qwen2_5_vl": _qwen2_5_vl, "qwen3_vl": _qwen3_vl, "qwen3_vl_moe": _qwen3_vl_moe}


def _loud(model: Any) -> None:
    """Weights so large that every prompt is answered differently, and what a picture shows is heard."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0.0, 0.5 if "embed" in name or "visual" in name else 0.15)


def _folder(kind: str, random_folder: Path, out: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(random_folder)
    names = ("image_token", "video_token", "vision_start_token", "vision_end_token")
    marks = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(mark) for name, mark in zip(names, marks, strict=True)}
    torch.manual_seed(0)
    text = {**TEXT, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    model, image_processor = FAMILIES[kind](ids, text)
    _loud(model)
    return export(model, tokenizer, image_processor, out / kind)


def _requests(budget: int) -> list[Request]:
    """Text, a picture, two pictures apart, of unlike lengths and sizes."""
    found = []
    for k in range(12):
        words = {"type": "text", "text": " ".join(["milk 12", "3 + 4", "who is taller", "no"][: k % 4 + 1]) + f" {k} ?"}
        sizes = [(56 + 28 * (k % 3), 84 + 20 * (k % 4))] * (k % 3)
        pictures = [Image.linear_gradient("L").rotate(40 * k + 90 * j).resize(s) for j, s in enumerate(sizes)]
        parts = [part for _ in pictures for part in ({"type": "image"}, words)] or [words]
        sampling = Sampling(thinking_budget=budget, answer_budget=0, logprobs=True)
        found.append(Request([{"role": "user", "content": parts}], pictures, 1, sampling))
    return found


def _transformers(loaded: Loaded, request: Request, budget: int) -> tuple[int, ...]:
    prompt = encode(loaded, request.messages, request.images)
    ids = prompt.input_ids[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **prompt.pictures}
    if loaded.processor is None and prompt.pictures:
        inputs["mm_token_type_ids"] = (ids == loaded.model.config.image_token_id).int()
    engine = TorchEngine(loaded)
    out = loaded.model.generate(
        **inputs,
        max_new_tokens=budget,
        do_sample=False,
        suppress_tokens=engine.banned or None,
        eos_token_id=sorted(engine.ends),
        pad_token_id=0,
    )
    return tuple(out[0, ids.shape[1] :].tolist())


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", FAMILIES)
def test_greedy_output_of_every_family_equals_transformers(kind: str, random_folder: Path, tmp_path: Path) -> None:
    loaded = load(str(_folder(kind, random_folder, tmp_path)))
    assert loaded.model.config.model_type == kind
    assert fits(loaded.model) == (kind != "qwen3_vl_moe")
    requests = _requests(16)
    ours = [group[0].token_ids for group in TorchEngine(loaded, max_rows=5).generate(requests)]
    assert ours == [_transformers(loaded, request, 16) for request in requests]
    assert len(set(ours)) > 8
    blind = [Request(r.messages, [Image.new("RGB", i.size) for i in r.images], 1, r.sampling) for r in requests]
    seen = [a != b[0].token_ids for a, b in zip(ours, TorchEngine(loaded).generate(blind), strict=True)]
    assert sum(seen) >= 6  # the pictures are looked at
    assert not any(changed for changed, request in zip(seen, requests, strict=True) if not request.images)


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_models_own_forward_pass_decodes_the_same(kind: str, random_folder: Path, tmp_path: Path) -> None:
    loaded = load(str(_folder(kind, random_folder, tmp_path)))
    engine, other = TorchEngine(loaded), TorchEngine(loaded)
    other._native = other._decoder = None
    for (ours,), (theirs,) in zip(engine.generate(_requests(16)), other.generate(_requests(16)), strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_that_was_asked_for_is_used(attention: str, random_folder: Path, tmp_path: Path) -> None:
    loaded = load(str(_folder("qwen2_5_vl", random_folder, tmp_path)), attn_implementation=attention)
    assert loaded.model.config._attn_implementation == attention
    requests = _requests(8)
    ours = [group[0].token_ids for group in TorchEngine(loaded).generate(requests)]
    assert ours == [_transformers(loaded, request, 8) for request in requests]
    assert loaded.text_config._attn_implementation == attention


def test_bfloat16_and_a_device_map_load_and_run(random_folder: Path, tmp_path: Path) -> None:
    folder = str(_folder("qwen2_5_vl", random_folder, tmp_path))
    loaded = load(folder, dtype=torch.bfloat16, device_map="auto")
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.device.type in ("cpu", "cuda")
    replies = [group[0].token_ids for group in TorchEngine(loaded).generate(_requests(8))]
    assert all(0 < len(reply) <= 8 for reply in replies)
    assert len(set(replies)) > 6


def test_a_model_that_is_split_over_devices_takes_its_own_forward_pass(random_folder: Path, tmp_path: Path) -> None:
    folder = str(_folder("qwen2_5_vl", random_folder, tmp_path))
    whole, split = load(folder), load(folder)
    cpu_offload(split.model, torch.device("cpu"))  # weights come when a layer is called, as over two GPUs
    assert not fits(split.model)
    ours = [group[0].token_ids for group in TorchEngine(split).generate(_requests(8))]
    assert ours == [group[0].token_ids for group in TorchEngine(whole).generate(_requests(8))]


def test_what_cannot_be_had_is_refused_in_words(random_folder: Path, tmp_path: Path) -> None:
    folder = _folder("qwen2_5_vl", random_folder, tmp_path)
    with pytest.raises(UserError, match=r"cannot be loaded here: FlashAttention2 .*not"):
        load(str(folder), attn_implementation="flash_attention_2")
    config = folder / "config.json"
    whole = json.loads(config.read_text())

    def refused(change: dict[str, Any], match: str) -> None:
        config.write_text(json.dumps(change))
        with pytest.raises(CheckpointError, match=match):
            load(str(folder))

    layers = ["full_attention", "sliding_attention", "full_attention"]
    sliding = {**whole["text_config"], "use_sliding_window": True, "sliding_window": 8, "layer_types": layers}
    refused({**whole, "text_config": sliding}, "has sliding_attention; .*expected full attention in every layer")
    refused({**whole, "model_type": "qwen2"}, "is of type 'qwen2'; expected a vision-language model")
    refused({**whole, "model_type": "no_such_model"}, "cannot be loaded")
    remote = {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForImageTextToText": "evil.Model"}}
    refused({**remote, "model_type": "evil"}, "wants to run code that came with it, which is never done")
    config.write_text(json.dumps(whole))
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no weights; expected model\.safetensors"):
        load(str(folder))


def test_a_model_without_a_chat_template_is_refused(random_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(random_folder, folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="has no chat template"):
        load(str(folder))


def _llava(random_folder: Path, folder: Path) -> Path:
    """Another house's model: one vector a patch, positions on one axis, its own processor."""
    tokenizer = AutoTokenizer.from_pretrained(random_folder)
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    sees = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=56, patch_size=14
    )
    text = {**TEXT, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    config = LlavaConfig(vision_config=sees, text_config=LlamaConfig(**text), image_token_id=image)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0.0, 0.15)
    shown = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    template = tokenizer.chat_template
    processor = LlavaProcessor(
        shown,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=template,
        image_token="<|image_pad|>",
        num_additional_image_tokens=1,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_another_houses_model_runs_with_its_own_processor(random_folder: Path, tmp_path: Path) -> None:
    loaded = load(str(_llava(random_folder, tmp_path / "llava")))
    requests = _requests(12)
    ours = [group[0].token_ids for group in TorchEngine(loaded, max_rows=5).generate(requests)]
    assert ours == [_transformers(loaded, request, 12) for request in requests]
    blind = [Request(r.messages, [Image.new("RGB", i.size) for i in r.images], 1, r.sampling) for r in requests]
    assert sum(a != b[0].token_ids for a, b in zip(ours, TorchEngine(loaded).generate(blind), strict=True)) >= 6
    with pytest.raises(UserError, match="llava resizes images in its own way"):
        encode(loaded, requests[1].messages, requests[1].images, max_pixels=50_000)
    with pytest.raises(UserError, match="places for images"):
        encode(loaded, requests[1].messages)
