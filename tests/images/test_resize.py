"""Both of the model card's preprocessing paths: sizes and grids over 200 image sizes and every family's patch size."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from xreasoner.engines.base import Request
from xreasoner.engines.continuing import ContinuingEngine
from xreasoner.engines.info import EngineInfo, known_patch_size
from xreasoner.engines.torch_engine import TorchEngine
from xreasoner.errors import UserError
from xreasoner.images.resize import MAX_TOKENS, MIN_TOKENS, first_size, resized_within
from xreasoner.models.loading import encode, load

_RNG = Random(0)
SIZES = [(_RNG.randint(28, 2400), _RNG.randint(28, 2400)) for _ in range(200)]
RECORDED: list[tuple[int, tuple[int, int], tuple[int, int]]] = [
    (28, (10, 1000), (28, 1008)),
    (28, (1, 1), (56, 56)),
    (28, (13, 1), (224, 28)),
    (28, (30, 30), (56, 56)),
    (28, (640, 480), (644, 476)),
    (28, (1023, 767), (1036, 756)),
    (28, (4032, 3024), (4032, 3024)),
    (28, (6000, 6000), (3584, 3584)),
    (28, (5000, 27), (5012, 28)),
    (28, (42, 42), (56, 56)),
    (28, (14, 70), (28, 140)),
    (32, (10, 1000), (32, 992)),
    (32, (1, 1), (64, 64)),
    (32, (13, 1), (256, 32)),
    (32, (30, 30), (64, 64)),
    (32, (640, 480), (640, 480)),
    (32, (1023, 767), (1024, 768)),
    (32, (4032, 3024), (4032, 3008)),
    (32, (6000, 6000), (4096, 4096)),
    (32, (5000, 27), (4992, 32)),
    (32, (42, 42), (64, 64)),
    (32, (14, 70), (32, 160)),
]
"""Side of an image token, size of an image, and the size that qwen_vl_utils 0.0.14 gives it."""


@pytest.mark.parametrize("side", [28, 32])
def test_the_first_size_is_transformers_own_rule_with_qwen_vl_utils_limits(side: int) -> None:
    token = side * side
    for width, height in SIZES:
        tall, wide = smart_resize(height, width, side, MIN_TOKENS * token, MAX_TOKENS * token)
        assert first_size(width, height, side) == (wide, tall)


@pytest.mark.parametrize(("side", "size", "wanted"), RECORDED)
def test_the_first_size_is_what_qwen_vl_utils_gives(side: int, size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert first_size(*size, side) == wanted


def test_a_side_below_one_token_is_one_token() -> None:
    """Where qwen-vl-utils differs from transformers: it never makes a side 0 before it looks at the area."""
    assert first_size(10, 1000, 28) == (28, 1008)
    with pytest.raises(UserError, match="10 × 2010: expected a side at most 200 times as long"):
        first_size(10, 2010, 28)


def test_both_paths_grids_are_the_rules_over_200_sizes() -> None:
    """The processor's grid after qwen-vl-utils is not its grid without, for about a quarter of the sizes."""
    area, differing = 262_144, 0
    for width, height in SIZES:
        alone = smart_resize(height, width, 28, area, area)
        first = first_size(width, height, 28)
        both = smart_resize(first[1], first[0], 28, area, area)
        differing += alone != both
    assert 0.1 < differing / len(SIZES) < 0.5


@pytest.mark.parametrize("preprocessing", ["processor", "qwen-vl-utils"])
def test_the_engines_encode_by_the_path_that_is_asked_for(preprocessing: Any) -> None:
    loaded = load("tiny-base")
    side = loaded.patch_size
    assert side == 28
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    for width, height in [(95, 301), (113, 60), (83, 210)]:
        image = Image.new("RGB", (width, height), "white")
        prompt = encode(loaded, message, [image], 9_000, 9_000, preprocessing)
        assert prompt.image_grid_thw is not None
        first = first_size(width, height, side) if preprocessing == "qwen-vl-utils" else (width, height)
        tall, wide = smart_resize(first[1], first[0], side, 9_000, 9_000)
        assert (prompt.image_grid_thw[0, 1:] * loaded.image_processor.patch_size).tolist() == [tall, wide]


class _Behind(ContinuingEngine):
    """An engine that runs by itself, of a model with this patch size."""

    def __init__(self, side: int | None) -> None:
        self.side = side
        super().__init__()

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(patch_size=self.side)


@pytest.mark.parametrize(("side", "multiple"), [(28, 28), (32, 32), (None, 28)])
def test_images_for_servers_have_the_models_own_patch_size(side: int | None, multiple: int) -> None:
    engine = _Behind(side)
    image = Image.new("RGB", (701, 433))
    sent = engine._resized(image, Request([], (), min_pixels=262_144, max_pixels=262_144))
    assert sent.width % multiple == sent.height % multiple == 0
    first = engine._resized(image, Request([], (), preprocessing="qwen-vl-utils"))
    assert first.size == first_size(701, 433, multiple)
    assert engine._resized(image, Request([], ())).size == image.size
    engine.close()


def test_what_a_processor_resizes_we_resize_alike() -> None:
    image = Image.effect_noise((301, 95), 90).convert("RGB")
    within = resized_within(image, 9_000, 9_000, 28)
    tall, wide = smart_resize(95, 301, 28, 9_000, 9_000)
    assert within.size == (wide, tall)


def test_a_models_patch_size_is_known_by_its_folder_or_its_name(tmp_path: Path) -> None:
    assert known_patch_size("Qwen/Qwen3-VL-8B-Thinking") == 32
    assert known_patch_size("Qwen/Qwen2.5-VL-7B-Instruct") == known_patch_size("microsoft/X-Reasoner-7B") == 28
    assert known_patch_size("default") is None
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"patch_size": 16, "merge_size": 2}))
    assert known_patch_size(str(tmp_path)) == 32
    info = TorchEngine(load("tiny-base")).info
    assert (info.patch_size, info.supports_logprobs, info.model_name) == (28, True, "tiny-base")
    assert info.context_length
    assert info.max_pixels
