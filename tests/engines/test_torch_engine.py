"""The engine against transformers' own generate, and its promises: forced exit, bans, seeds, log-probabilities."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from xreasoner.completion import Completion
from xreasoner.engines import native, slots
from xreasoner.engines.base import Request, Sampling
from xreasoner.engines.torch_engine import TorchEngine, sample
from xreasoner.errors import UserError
from xreasoner.models.loading import Loaded, encode, load
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
    engine = TorchEngine(loaded)
    out = loaded.model.generate(
        **inputs,
        max_new_tokens=most,
        do_sample=False,
        suppress_tokens=engine.banned,
        eos_token_id=sorted(engine.ends),
    )
    found: list[int] = out[0, ids.shape[1] :].tolist()
    return found


def _lengths(requests: list[Request]) -> list[Request]:
    """Prompts of many lengths: every third has a text before it, and every fourth picture is another size."""
    mixed = []
    for k, r in enumerate(requests):
        first = [{"role": "user", "content": "count. " * (k % 37)}, {"role": "assistant", "content": "3 + 4"}]
        images = [i.resize((84 + 28 * (k % 5), 112)) for i in r.images] if k % 4 == 0 else r.images
        mixed.append(Request([*(first if k % 3 == 0 else []), *r.messages], images, r.n, r.sampling))
    return mixed


@pytest.mark.usefixtures("way")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("n", [40, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_greedy_output_equals_transformers_generate(varied: Loaded, n: int) -> None:
    requests = _lengths(_requests(n - 1, Sampling(thinking_budget=24, answer_budget=0)))
    pictures = (*requests[0].images, Image.new("RGB", (84, 56), "red"))
    parts = [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}, {"type": "text", "text": "?"}]
    requests.append(Request([{"role": "user", "content": parts}], pictures, 1, requests[0].sampling))
    ours = [completions[0] for completions in TorchEngine(varied, max_rows=16).generate(requests)]
    theirs = [tuple(_generate(varied, request, 24)) for request in requests]
    assert [completion.token_ids for completion in ours] == theirs
    assert len(set(theirs)) > 0.8 * n  # a model that always says the same would prove nothing
    assert sum(bool(request.images) for request in requests) >= n // 2
    assert len({completion.prompt_tokens for completion in ours}) > n // 4


@pytest.mark.usefixtures("way")
def test_samples_do_not_depend_on_the_crowd(varied: Loaded) -> None:
    """64 requests, each alone, then all together, then joining one another in the middle, in too few slots."""
    requests = [
        Request(r.messages, r.images, 1, Sampling(temperature=1.0, thinking_budget=8 + k % 7, answer_budget=0, seed=k))
        for k, r in enumerate(_lengths(_requests(64, Sampling())))
    ]
    engine = TorchEngine(varied)
    alone = [engine.generate([request])[0][0].token_ids for request in requests]
    assert [group[0].token_ids for group in engine.generate(requests)] == alone
    few = TorchEngine(varied, max_rows=24, max_prompt_tokens=200)
    tickets = []
    for request in requests:
        tickets.append(few.submit(request))
        few.step()
    few.wait(tickets)
    assert [ticket.completions[0].token_ids for ticket in tickets] == alone
    assert len(set(alone)) == 64


@pytest.mark.usefixtures("way")
def test_the_samples_of_a_request_differ_and_stay_the_same(varied: Loaded) -> None:
    sampling = Sampling(temperature=1.0, thinking_budget=10, answer_budget=0, seed=3)
    (request,) = _requests(1, sampling, samples=6)
    first = TorchEngine(varied).generate([request])[0]
    assert len({completion.token_ids for completion in first}) == 6
    assert TorchEngine(varied, max_rows=2).generate([request])[0] == first


def test_pixels_are_honoured_request_by_request(varied: Loaded) -> None:
    engine = TorchEngine(varied)
    content = [{"type": "image"}, {"type": "text", "text": "what"}]
    picture = Image.linear_gradient("L").resize((168, 112))

    def tokens(**limits: int) -> int:
        sampling = Sampling(thinking_budget=4, answer_budget=0)
        request = Request([{"role": "user", "content": content}], [picture], 1, sampling, **limits)
        return engine.generate([request])[0][0].prompt_tokens

    own = tokens()
    assert tokens(max_pixels=28 * 28 * 6) == own - 24 + 6
    assert tokens(min_pixels=28 * 28 * 90) >= own - 24 + 90  # more than the model's own limit allows
    assert tokens(min_pixels=28 * 28 * 6, max_pixels=28 * 28 * 6) == own - 24 + 6
    assert tokens() == own
    for limits in ({"max_pixels": 100}, {"min_pixels": 90_000, "max_pixels": 50_000}, {"min_pixels": 0}):
        with pytest.raises(UserError, match="expected 1 <= min_pixels <= max_pixels"):
            tokens(**limits)


def test_a_request_beyond_the_models_positions_is_cut_or_refused(varied: Loaded, monkeypatch: Any) -> None:
    monkeypatch.setattr(varied.model.config.text_config, "max_position_embeddings", 64)
    engine = TorchEngine(varied)
    engine.ends = set()
    sampling = Sampling(thinking_budget=1000, answer_budget=5)
    messages = [{"role": "user", "content": "3 + 4"}]
    (completion,) = engine.generate([Request(messages, sampling=sampling)])[0]
    assert completion.exit == "truncated"
    exit_tokens = len(varied.tokenizer.encode(sampling.exit_text))
    assert completion.prompt_tokens + len(completion.token_ids) == 64 - exit_tokens
    with pytest.raises(UserError, match=r"the prompt has \d+ tokens and the model takes 64"):
        engine.submit(Request([{"role": "user", "content": "count. " * 40}], sampling=sampling))


def test_the_cache_stays_within_its_bound(varied: Loaded) -> None:
    requests = _sampled(12, 20)
    alone = TorchEngine(varied).generate(requests)
    tight = TorchEngine(varied)
    longest = max(tight._ticket(request, None, None).length for request in requests)
    tight.cache_bytes = 3 * longest * tight._token_bytes
    most = 0
    tickets = [tight.submit(request) for request in requests]
    while tight.step():
        most = max(most, len(tight._rows))
        reserved = len(tight._rows) * max((row.ticket.length for row in tight._rows), default=0)
        assert reserved * tight._token_bytes <= tight.cache_bytes
    assert 1 < most <= 6
    assert [[c.token_ids for c in t.completions] for t in tickets] == [[c.token_ids for c in g] for g in alone]
    many = Request(requests[0].messages, requests[0].images, 4, requests[0].sampling)
    tight.cache_bytes = 3 * tight._ticket(requests[0], None, None).length * tight._token_bytes
    with pytest.raises(UserError, match=r"4 samples of up to .* need .* of cache"):
        tight.submit(many)


def test_an_endless_thought_is_forced_out_and_marked(loaded: Loaded) -> None:
    engine = TorchEngine(loaded)
    queue = loaded.tokenizer.encode("<think> 1 2 3")

    class Prefilled(TorchEngine):
        """The same engine whose replies begin with an open thought."""

        def _row(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            row = super()._row(*args, **kwargs)
            row.budget.pending = list(queue)
            return row

    sampling = Sampling(thinking_budget=12 - len(queue), answer_budget=5, exit_text=" </think> <answer>")
    messages = chat_messages(benchmarks.cell("general", "text", 1, 0)[0], "brief")
    (completion,) = Prefilled(loaded).generate([Request(messages, sampling=sampling)])[0]
    assert completion.exit in ("forced", "truncated")
    assert completion.text.count("</think> <answer>") == 1
    closing = loaded.tokenizer.encode(" </think> <answer>")
    at = completion.forced.index(True, len(queue))  # the begun thought is forced too
    assert completion.token_ids[at : at + len(closing)] == tuple(closing)
    assert all(completion.forced[at : at + len(closing)])
    assert at == 12
    assert completion.thought.startswith("1 2 3")
    assert engine.banned


def test_logprobs_are_those_of_a_full_forward_pass_without_banned_tokens(varied: Loaded) -> None:
    engine, loaded = TorchEngine(varied), varied
    sampling = Sampling(temperature=1.0, thinking_budget=16, answer_budget=0, logprobs=True)
    request = _requests(2, sampling)[1]
    (completion,) = engine.generate([request])[0]
    prompt = encode(loaded, request.messages).input_ids
    ids = torch.cat([prompt, torch.tensor(completion.token_ids)])[None]
    with torch.no_grad():
        logits = loaded.model(input_ids=ids).logits[0].float()
    logits[:, engine.banned] = -torch.inf
    expected = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])[:, 0]
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=1e-4)
    assert not set(completion.token_ids) & set(engine.banned)


def test_banned_tokens_are_never_sampled(loaded: Loaded) -> None:
    pad = loaded.model.config.image_token_id
    with torch.no_grad():
        loaded.model.lm_head.weight[pad] = 50 * loaded.model.lm_head.weight.abs().max()
    sampling = Sampling(temperature=1.0, thinking_budget=20, answer_budget=0)
    for group in TorchEngine(loaded).generate(_requests(4, sampling, samples=4)):
        assert all(pad not in completion.token_ids for completion in group)


def _begun(loaded: Loaded, start: str, sampling: Sampling) -> Completion:
    """A reply whose first tokens are given."""
    queue = loaded.tokenizer.encode(start)

    class Begun(TorchEngine):
        def _row(self, *args: Any) -> Any:
            row = super()._row(*args)
            row.budget.pending = list(queue)
            return row

    engine = Begun(loaded)
    engine.ends = set()
    return engine.generate([Request([{"role": "user", "content": "3 + 4"}], sampling=sampling)])[0][0]


@pytest.mark.parametrize("thinking", [0, 1, 12])
def test_budgets_hold_however_the_thought_ends(varied: Loaded, thinking: int) -> None:
    sampling = Sampling(temperature=1.0, thinking_budget=thinking, answer_budget=7)
    exit_tokens = len(varied.tokenizer.encode(sampling.exit_text))
    forced_out = _begun(varied, "<think>", sampling)
    assert sum(not forced for forced in forced_out.forced[-7:]) == 7
    assert all(forced_out.forced[-7 - exit_tokens : -7])
    by_itself = _begun(varied, "<think> 3 </think>", sampling)
    closed_unopened = _begun(varied, "3 </think>", sampling)
    for one in (by_itself, closed_unopened):  # one total, however much of it the thought took
        assert sum(not forced for forced in one.forced) == thinking + 7
        assert sampling.exit_text not in one.text
    assert {forced_out.exit, by_itself.exit, closed_unopened.exit} == {"truncated"}


def test_an_exit_text_that_closes_nothing_is_refused(loaded: Loaded) -> None:
    request = Request([{"role": "user", "content": "3 + 4"}], sampling=Sampling(exit_text=" so:"))
    with pytest.raises(UserError, match="exit_text ' so:' does not hold </think>"):
        TorchEngine(loaded).generate([request])


def test_a_group_shares_one_prefill_and_is_done_once(varied: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: None)  # tests/engines/test_native.py counts the other way's
    seen: list[tuple[int, ...]] = []
    watch = varied.model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    done: dict[int, list[Completion]] = {}
    requests = _requests(6, Sampling(temperature=1.0, thinking_budget=5, answer_budget=0), samples=4)
    try:
        results = TorchEngine(varied).generate(requests, lambda index, group: done.update({index: list(group)}))
    finally:
        watch.remove()
    longest = max(group[0].prompt_tokens for group in results)
    assert seen[0] == (6, longest)
    assert len(seen) == 1  # the prompts alone: each token after them takes the short way through the layers
    assert [done[index] for index in range(6)] == results
    assert all(len({c.token_ids for c in group}) == 4 for group in results)


def test_a_cache_that_grows_says_the_same(varied: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = _requests(6, Sampling(temperature=1.0, thinking_budget=20, answer_budget=0, logprobs=True))
    monkeypatch.setattr(native, "library", lambda: None)
    roomy = TorchEngine(varied).generate(requests)
    monkeypatch.setattr(slots, "GROWTH", 3)
    assert TorchEngine(varied).generate(requests) == roomy


def test_sampling_follows_the_distribution_and_its_cuts() -> None:
    probs = torch.tensor([0.05, 0.4, 0.25, 0.2, 0.1])
    n = 4000
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n

    def shares(**cuts: Any) -> list[float]:
        drawn = sample(probs.log().expand(n, -1), [Sampling(temperature=1.0, **cuts)] * n, uniform)
        return (drawn.bincount(minlength=5) / n).tolist()

    assert shares() == pytest.approx([0.05, 0.4, 0.25, 0.2, 0.1], abs=1e-3)
    assert shares(top_k=2) == pytest.approx([0, 0.4 / 0.65, 0.25 / 0.65, 0, 0], abs=1e-3)
    assert shares(top_p=0.7) == pytest.approx([0, 0.4 / 0.85, 0.25 / 0.85, 0.2 / 0.85, 0], abs=1e-3)
    assert shares(top_k=2, top_p=0.6) == pytest.approx([0, 1, 0, 0, 0], abs=1e-3)  # 0.4 / 0.65 reaches it alone
    ends = sample(probs.log().expand(2, -1), [Sampling(temperature=1.0)] * 2, torch.tensor([0.0, 1 - 1e-16]))
    assert ends.tolist() == [0, 4]


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.integers(-12, 12).map(lambda k: k / 3), min_size=2, max_size=12, unique=True),
    top_k=st.integers(0, 14),
    top_p=st.sampled_from([0.05, 0.3, 0.5, 0.7, 0.95, 1.0]),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.9]),
)
def test_cuts_are_those_of_transformers(logits: list[float], top_k: int, top_p: float, temperature: float) -> None:
    logits_1V = torch.tensor([logits])
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    theirs = torch.softmax(warpers(None, logits_1V.clone()), -1)[0]
    n = 2000
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    drawn = sample(logits_1V.expand(n, -1).clone(), [sampling] * n, uniform)
    torch.testing.assert_close(drawn.bincount(minlength=len(logits)) / n, theirs, atol=2e-3, rtol=0)


def _sampled(n: int, tokens: int, **more: Any) -> list[Request]:
    return [
        Request(
            r.messages, r.images, 1, Sampling(temperature=1.0, thinking_budget=tokens, answer_budget=0, seed=k, **more)
        )
        for k, r in enumerate(_requests(n, Sampling()))
    ]


def test_a_request_that_joins_late_says_what_it_says_alone(varied: Loaded) -> None:
    requests = [*_sampled(6, 30), *_sampled(6, 9)]
    alone = [TorchEngine(varied).generate([request])[0] for request in requests]
    engine = TorchEngine(varied, max_rows=4)
    tickets = []
    for request in requests:  # each joins the others in the middle of theirs
        tickets.append(engine.submit(request))
        for _ in range(3):
            engine.step()
    engine.wait(tickets)
    assert [[c.token_ids for c in t.completions] for t in tickets] == [[c.token_ids for c in group] for group in alone]
    assert not engine.step()


def test_a_cancelled_request_frees_its_slot_and_says_so(varied: Loaded) -> None:
    engine = TorchEngine(varied, max_rows=2)
    first, second, third = (engine.submit(request) for request in _sampled(3, 40))
    for _ in range(5):
        engine.step()
    assert not third.done.is_set()
    first.cancel()
    engine.step()
    assert [c.exit for c in first.completions] == ["aborted"]
    assert 0 < len(first.completions[0].token_ids) < 40
    third.cancel()
    engine.step()
    assert [c.exit for c in third.completions] == ["aborted"]
    engine.wait([second])
    assert len(second.completions[0].token_ids) == 40
    assert not engine.step()


def test_the_text_comes_in_pieces_that_join_to_it(varied: Loaded) -> None:
    engine = TorchEngine(varied)
    pieces: dict[int, list[str]] = {}
    (request,) = _sampled(1, 60)
    request = Request(request.messages, request.images, 3, request.sampling)
    ticket = engine.submit(request, on_text=lambda sample, text: pieces.setdefault(sample, []).append(text))
    engine.wait([ticket])
    assert ["".join(pieces[k]) for k in range(3)] == [c.text for c in ticket.completions]
    assert all(len(pieces[k]) > 1 for k in range(3))


def test_a_stop_string_ends_the_reply_and_stays_out_of_it(varied: Loaded) -> None:
    (request,) = _sampled(1, 60)
    whole = TorchEngine(varied).generate([request])[0][0].text
    stop = whole[20:23]
    (stopped,) = _sampled(1, 60, stop=(stop,))
    told: list[str] = []
    engine = TorchEngine(varied)
    ticket = engine.submit(stopped, on_text=lambda sample, text: told.append(text))
    engine.wait([ticket])
    (completion,) = ticket.completions
    assert completion.text == whole[: whole.index(stop)] == "".join(told)
    assert completion.exit == "natural"


def test_several_threads_share_the_engine(varied: Loaded) -> None:
    requests = _sampled(8, 20)
    alone = [TorchEngine(varied).generate([request])[0] for request in requests]
    engine = TorchEngine(varied, max_rows=4)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda request: engine.generate([request])[0], requests))
    assert [[c.token_ids for c in group] for group in found] == [[c.token_ids for c in group] for group in alone]


def test_a_callback_that_fails_ends_its_own_request_alone(varied: Loaded) -> None:
    engine = TorchEngine(varied)
    (one,), (two,) = _sampled(1, 20), _sampled(1, 40)

    def full(group: list[Completion]) -> None:
        raise OSError("no space left")

    ticket, failed = engine.submit(two), engine.submit(one, on_done=full)
    engine.wait([failed])
    with pytest.raises(OSError, match="no space"):
        _ = failed.completions
    engine.wait([ticket])
    assert len(ticket.completions[0].token_ids) == 40
    assert len(engine.generate([one])[0][0].token_ids) == 20


def test_a_loop_is_noticed_and_ends_the_thought_when_asked(loaded: Loaded) -> None:
    # the embedded start repeats one token for ever
    plain = _begun(loaded, "<think>", Sampling(thinking_budget=150, answer_budget=4))
    assert plain.repeats
    assert plain.forced.index(True, 8) > 140
    asked = _begun(loaded, "<think>", Sampling(thinking_budget=150, answer_budget=4, exit_on_repeats=True))
    assert asked.repeats
    assert asked.forced.index(True, 8) <= 96


def test_a_turn_that_ends_inside_the_thought_goes_on_to_an_answer_when_asked() -> None:
    engine = TorchEngine(load("tiny"))
    (request,) = _requests(2, Sampling())[1:]
    (whole,) = engine.generate([request])[0]
    end = whole.token_ids[12]
    at = whole.token_ids.index(end)
    engine.ends = {end, *engine.ends}  # so the turn ends in the middle of the thought
    asked = replace(request, sampling=Sampling(exit_on_end=True, logprobs=True))
    texts: list[str] = []
    followed = engine.submit(asked, on_text=lambda _, text: texts.append(text))
    (cut,), (forced,) = engine.generate([request, asked])
    engine.wait([followed])
    assert (cut.exit, cut.answer, cut.token_ids) == ("natural", "", whole.token_ids[: at + 1])
    closing = tuple(engine.loaded.tokenizer.encode(asked.sampling.exit_text))
    assert forced.token_ids[: at + len(closing)] == whole.token_ids[:at] + closing
    assert [k for k, one in enumerate(forced.forced) if one] == list(range(at, at + len(closing)))
    assert (forced.exit, bool(forced.answer)) == ("forced", True)
    assert set(forced.logprobs[at : at + len(closing)]) == {0.0}
    assert "".join(texts) == forced.text == followed.completions[0].text
