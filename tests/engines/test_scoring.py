"""Scores of continuations against a full forward pass of each, and where tokens cross the border of what was given."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import cache_utils

from xreasoner.engines import scoring
from xreasoner.engines.base import Request, Sampling
from xreasoner.engines.scoring import common, parted
from xreasoner.engines.torch_engine import TorchEngine
from xreasoner.errors import UserError
from xreasoner.models.loading import Loaded, encode
from xreasoner.prompts import chat_messages
from xreasoner.tiny import benchmarks

GIVEN = "<think> Ana 14. </think> <answer>"
CONTINUATIONS = ["A: Ana", " A: Ana", "B", " B</answer>", "Ben has 14 and more"]


def _request(modality: str) -> Request:
    (problem,) = benchmarks.cell("general", modality, 1, 3)
    return Request(chat_messages(problem, "brief"), problem.images, 1, Sampling())


def _whole(loaded: Loaded, request: Request, given: str, continuation: str) -> float:
    """The same by one forward pass of the whole text."""
    prompt = encode(loaded, request.messages, request.images)
    before = loaded.tokenizer.encode(given)
    after = loaded.tokenizer.encode(given + continuation)
    assert after[: len(before)] == before
    ids = torch.cat([prompt.input_ids, torch.tensor(after)])[None]
    inputs = {"input_ids": ids}
    if prompt.pixel_values is not None:
        inputs |= {"pixel_values": prompt.pixel_values, "image_grid_thw": prompt.image_grid_thw}
        inputs["mm_token_type_ids"] = (ids == loaded.model.config.image_token_id).int()
    with torch.no_grad():
        logits = loaded.model(**inputs).logits[0].float()
    logits[:, TorchEngine(loaded).banned] = -torch.inf
    logprobs = torch.log_softmax(logits, -1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
    return float(logprobs[len(prompt.input_ids) + len(before) - 1 :].sum())


@pytest.mark.parametrize("modality", ["text", "image"])
@pytest.mark.parametrize("given", [GIVEN, ""])
def test_scores_are_those_of_full_forward_passes(
    loaded: Loaded, modality: str, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if parameter.dim() >= 2 and "embed_tokens" not in name:
                parameter.normal_(0.0, 0.08)
    request = _request(modality)
    expected = [_whole(loaded, request, given, continuation) for continuation in CONTINUATIONS]
    found = TorchEngine(loaded).score(request, given, CONTINUATIONS)
    assert found == pytest.approx(expected, abs=2e-4)
    monkeypatch.setattr(scoring, "TOGETHER", 4)  # in several parts, some of a single continuation
    assert TorchEngine(loaded).score(request, given, CONTINUATIONS) == pytest.approx(expected, abs=2e-4)
    assert len({round(score, 2) for score in found}) == len(found)


def test_the_prompt_is_computed_once(loaded: Loaded) -> None:
    seen: list[int] = []
    watch = loaded.model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    try:
        TorchEngine(loaded).score(_request("text"), GIVEN, CONTINUATIONS)
    finally:
        watch.remove()
    assert len(seen) == 2
    assert seen[1] < 50


def test_scoring_asks_nothing_of_transformers_that_goes_away(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its warning stood on the terminal below an answer with options."""
    warned: list[str] = []
    monkeypatch.setattr(cache_utils.logger, "warning_once", warned.append)
    TorchEngine(loaded).score(_request("text"), GIVEN, CONTINUATIONS)
    assert warned == []


def test_scoring_leaves_those_who_run_alone(loaded: Loaded) -> None:
    request = Request(
        _request("text").messages, sampling=Sampling(temperature=1.0, thinking_budget=20, answer_budget=0)
    )
    alone = TorchEngine(loaded).generate([request])[0][0].token_ids
    engine = TorchEngine(loaded)
    ticket = engine.submit(request)
    for _ in range(5):
        engine.step()
    engine.score(_request("image"), GIVEN, CONTINUATIONS)
    engine.wait([ticket])
    assert ticket.completions[0].token_ids == alone


def test_an_empty_continuation_is_refused(loaded: Loaded) -> None:
    with pytest.raises(UserError, match="empty"):
        TorchEngine(loaded).score(_request("text"), GIVEN, ["A", ""])


def _merging() -> Tokenizer:
    """A tokenizer of the kind of Qwen's, in which `>A`, ` A` and `A` are three tokens and `14` is one."""
    pieces = ["<answer", ">", ">A", ">B", "A", " A", "B", " B", ":", " yes", " no", "1", "14", "4"]
    tokenizer = Tokenizer(WordLevel({piece: k for k, piece in enumerate(pieces)}, unk_token=">"))
    pattern = "|".join(sorted(map(_escape, pieces), key=len, reverse=True))
    from tokenizers import Regex

    tokenizer.pre_tokenizer = Split(Regex(pattern), "isolated")
    return tokenizer


def _escape(text: str) -> str:
    import re

    return re.escape(text)


def test_tokens_that_cross_the_border_are_scored_from_the_one_that_differs() -> None:
    tokenizer = _merging()

    def tokenise(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text).ids
        return ids

    def texts(rows: list[list[int]]) -> list[list[str]]:
        return [[tokenizer.id_to_token(token) for token in row] for row in rows]

    shared, tails = parted(tokenise, "<answer>", ["A: yes", " A: yes", "B"])
    assert texts([shared]) == [["<answer"]]
    assert texts(tails) == [[">A", ":", " yes"], [">", " A", ":", " yes"], [">B"]]
    shared, tails = parted(tokenise, "<answer>", [" A: yes", " B"])
    assert texts([shared]) == [["<answer", ">"]]
    assert texts(tails) == [[" A", ":", " yes"], [" B"]]
    shared, tails = parted(tokenise, "<answer>A:1", ["4", " yes"])  # 14 is one token, 1 and 4 are two
    assert texts(tails) == [["14"], ["1", " yes"]]


@given(st.lists(st.lists(st.integers(0, 2), max_size=5), min_size=1, max_size=4))
def test_the_common_beginning(rows: list[list[int]]) -> None:
    n = common(rows)
    assert all(row[:n] == rows[0][:n] for row in rows)
    assert n == min(map(len, rows)) or len({row[n] for row in rows}) > 1


def test_what_is_longer_than_the_model_takes_is_refused(loaded: Loaded) -> None:
    most = loaded.text_config.max_position_embeddings
    with pytest.raises(UserError, match=f"the model takes {most}"):
        TorchEngine(loaded).score(_request("text"), GIVEN, ["A", "x y " * most])
