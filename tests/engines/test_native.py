"""Prompts and decoding in C: torch's numbers, whoever is beside them, and none of it where it cannot be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from xreasoner.engines import native
from xreasoner.engines.base import Request, Sampling
from xreasoner.engines.torch_engine import TorchEngine
from xreasoner.models.loading import Loaded, load
from xreasoner.prompts import chat_messages
from xreasoner.tiny import benchmarks

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C compiler here")
SAID = Sampling(temperature=1.0, thinking_budget=12, answer_budget=0, logprobs=True)


@pytest.fixture
def shaken(random_folder: Path) -> Loaded:
    """Weights so large that every prompt is answered differently."""
    found = load(str(random_folder))
    _shake(found, 0)
    return found


def _shake(loaded: Loaded, seed: int) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if parameter.dim() >= 2 and "embed_tokens" not in name:
                parameter.normal_(0.0, 0.08)


def _requests(n: int, sampling: Sampling = SAID, samples: int = 1) -> list[Request]:
    problems = benchmarks.cell("general", "image", n // 2, 1) + benchmarks.cell("clinical", "text", n - n // 2, 1)
    return [Request(chat_messages(p, "brief"), p.images, samples, sampling) for p in problems]


def _said(engine: TorchEngine, requests: list[Request]) -> list[Any]:
    return [[(c.token_ids, c.logprobs) for c in group] for group in engine.generate(requests)]


def _torch(loaded: Loaded) -> TorchEngine:
    engine = TorchEngine(loaded)
    assert engine._native is not None
    engine._native = None
    return engine


def test_the_numbers_are_those_of_torch(shaken: Loaded) -> None:
    """Also over more columns than are set aside at first, and with biases that are not nothing."""
    with torch.no_grad():
        for layer in shaken.model.model.language_model.layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                projection.bias.normal_(0.0, 0.3)
            layer.input_layernorm.weight.uniform_(0.5, 1.5)
    requests = _requests(8, Sampling(thinking_budget=180, answer_budget=0, logprobs=True))
    engine = TorchEngine(shaken)
    engine.ends = set()
    other = _torch(shaken)
    other.ends = set()
    for ours, theirs in zip(engine.generate(requests), other.generate(requests), strict=True):
        assert len(ours[0].token_ids) == 180
        assert ours[0].token_ids == theirs[0].token_ids
        assert ours[0].logprobs == pytest.approx(theirs[0].logprobs, abs=2e-5)
    assert engine._native is not None
    assert engine._native.columns > 192


def test_a_reply_to_a_text_is_the_same_to_the_last_bit_whoever_is_beside_it(shaken: Loaded) -> None:
    requests = [request for request in _requests(48) if not request.images]
    alone = [_said(TorchEngine(shaken), [request])[0] for request in requests]
    assert _said(TorchEngine(shaken), requests) == alone
    few = TorchEngine(shaken, max_rows=5, max_prompt_tokens=150)
    assert _said(few, requests) == alone
    assert _said(few, requests[::-1]) == alone[::-1]


def test_what_prompts_begin_with_is_computed_once(shaken: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    forward = native.Native._forward

    def counted(self: native.Native, units: Any, *rest: Any, **more: Any) -> None:
        if len(rest) > 6:  # prompts, not decoding
            computed.append(int(units[-1]))
        forward(self, units, *rest, **more)

    monkeypatch.setattr(native.Native, "_forward", counted)
    requests = _requests(6, samples=4)
    engine = TorchEngine(shaken)
    results = engine.generate(requests)
    assert engine._native is not None
    shared = len(engine._native.prefix)
    assert shared >= native.SHARED  # the template and its system prompt
    assert computed == [shared, sum(group[0].prompt_tokens - shared for group in results)]
    assert all(len({c.token_ids for c in group}) == 4 for group in results)
    question = [{"role": "user", "content": "count " * 40 + "and tell"}]
    assert _said(engine, [Request(question, (), 1, SAID)]) == _said(
        TorchEngine(shaken), [Request(question, (), 1, SAID)]
    )


def test_weights_that_were_trained_are_the_ones_that_answer(shaken: Loaded) -> None:
    engine = TorchEngine(shaken)
    before = _said(engine, _requests(4))
    _shake(shaken, 1)
    after = _said(engine, _requests(4))
    assert after != before
    assert after == _said(TorchEngine(shaken), _requests(4))
    step = torch.optim.AdamW(shaken.model.parameters(), lr=1e-2)
    for parameter in shaken.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    step.step()
    assert _said(engine, _requests(4)) == _said(TorchEngine(shaken), _requests(4)) != after


def test_where_nothing_can_be_compiled_torch_computes(
    shaken: Loaded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def engine() -> TorchEngine:
        native.library.cache_clear()
        return TorchEngine(shaken)

    expected = [group[0].token_ids for group in engine().generate(_requests(2))]
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    broken = tmp_path / "bin"
    broken.mkdir()
    (broken / "cc").write_text("#!/bin/sh\nexit 1\n")
    (broken / "cc").chmod(0o755)
    for name, value in (
        ("XREASONER_NATIVE", "0"),
        ("XDG_CACHE_HOME", str(blocked)),
        ("PATH", str(tmp_path / "nothing")),
        ("PATH", f"{broken}:/usr/bin"),
    ):
        with monkeypatch.context() as changed:
            changed.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
            changed.setenv(name, value)
            other = engine()
            assert other._native is None, name
            assert [group[0].token_ids for group in other.generate(_requests(2))] == expected
    with monkeypatch.context() as changed:
        changed.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        assert engine()._native is not None
        assert len(list((tmp_path / "cache/xreasoner").iterdir())) == 1
    native.library.cache_clear()
