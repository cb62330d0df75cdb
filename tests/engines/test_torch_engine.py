"""The engine against transformers' own generate, and its promises: forced exit, bans, seeds, log-probabilities."""

from __future__ import annotations

import pytest
import torch

from xreasoner.engines.base import Request, Sampling
from xreasoner.engines.torch_engine import TorchEngine
from xreasoner.models.loading import Loaded, encode
from xreasoner.prompts import chat_messages
from xreasoner.tiny import benchmarks


def _requests(n: int, sampling: Sampling, samples: int = 1) -> list[Request]:
    problems = benchmarks.cell("general", "image", n // 2, 1) + benchmarks.cell("clinical", "text", n - n // 2, 1)
    return [Request(chat_messages(p, "brief"), p.images, samples, sampling) for p in problems]


def _generate(loaded: Loaded, request: Request, most: int) -> list[int]:
    prompt = encode(loaded, request.messages, request.images)
    ids = prompt.input_ids[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if prompt.pixel_values is not None:
        inputs["pixel_values"], inputs["image_grid_thw"] = prompt.pixel_values, prompt.image_grid_thw
        inputs["mm_token_type_ids"] = (ids == loaded.model.config.image_token_id).int()
    config = loaded.model.config
    banned = TorchEngine(loaded).banned
    out = loaded.model.generate(
        **inputs, max_new_tokens=most, do_sample=False, suppress_tokens=banned, eos_token_id=config.text_config.eos_token_id
    )
    found: list[int] = out[0, ids.shape[1] :].tolist()
    return found


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_greedy_output_equals_transformers_generate(loaded: Loaded) -> None:
    requests = _requests(48, Sampling(thinking_budget=24, answer_budget=0))
    ours = [completions[0].token_ids for completions in TorchEngine(loaded, max_rows=16).generate(requests)]
    theirs = [tuple(_generate(loaded, request, 24)) for request in requests]
    assert list(ours) == theirs


def test_samples_do_not_depend_on_the_crowd(loaded: Loaded) -> None:
    requests = [
        Request(r.messages, r.images, 2, Sampling(temperature=1.0, thinking_budget=20, answer_budget=0, seed=k))
        for k, r in enumerate(_requests(12, Sampling()))
    ]
    engine = TorchEngine(loaded)
    crowd = engine.generate(requests)
    alone = [engine.generate([request])[0] for request in requests]
    assert [[c.token_ids for c in group] for group in crowd] == [[c.token_ids for c in group] for group in alone]
    assert any(group[0].token_ids != group[1].token_ids for group in crowd)


def test_an_endless_thought_is_forced_out_and_marked(loaded: Loaded) -> None:
    engine = TorchEngine(loaded)
    queue = loaded.tokenizer.encode("<think> 1 2 3")

    class Prefilled(TorchEngine):
        """The same engine whose replies begin with an open thought."""

        def _row(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            row = super()._row(*args, **kwargs)
            row.queue = list(queue)
            return row

    sampling = Sampling(thinking_budget=12, answer_budget=5, exit_text=" </think> <answer>")
    (completion,) = Prefilled(loaded).generate([Request(chat_messages(benchmarks.cell("general", "text", 1, 0)[0], "brief"), sampling=sampling)])[0]
    assert completion.exit in ("forced", "truncated")
    assert completion.text.count("</think> <answer>") == 1
    closing = loaded.tokenizer.encode(" </think> <answer>")
    at = len(completion.token_ids) - completion.token_ids[::-1].index(closing[-1]) - len(closing)
    assert completion.token_ids[at : at + len(closing)] == tuple(closing)
    assert all(completion.forced[at : at + len(closing)])
    assert at == 12
    assert completion.thought.startswith("1 2 3")
    assert engine.banned


def test_logprobs_are_those_of_a_full_forward_pass_without_banned_tokens(loaded: Loaded) -> None:
    engine = TorchEngine(loaded)
    sampling = Sampling(temperature=1.0, thinking_budget=16, answer_budget=0, logprobs=True)
    request = _requests(2, sampling)[1]
    (completion,) = engine.generate([request])[0]
    prompt = encode(loaded, request.messages).input_ids
    ids = torch.cat([prompt, torch.tensor(completion.token_ids)])[None]
    with torch.no_grad():
        logits = loaded.model(input_ids=ids).logits[0].float()
    logits[:, engine.banned] = -torch.inf
    expected = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])[:, 0]
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=2e-4, rtol=2e-4)
    assert not set(completion.token_ids) & set(engine.banned)


def test_banned_tokens_are_never_sampled(loaded: Loaded) -> None:
    pad = loaded.model.config.image_token_id
    with torch.no_grad():
        loaded.model.lm_head.weight[pad] = 50 * loaded.model.lm_head.weight.abs().max()
    sampling = Sampling(temperature=1.0, thinking_budget=20, answer_budget=0)
    for group in TorchEngine(loaded).generate(_requests(4, sampling, samples=4)):
        assert all(pad not in completion.token_ids for completion in group)
