"""A failure belongs to its request: whatever raises, every request ends, and the others are answered right."""

from __future__ import annotations

import gc
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
import torch

from xreasoner.engines import failures, scoring, torch_engine
from xreasoner.engines.base import Request, Sampling
from xreasoner.engines.torch_engine import TorchEngine
from xreasoner.errors import EngineError, NonFiniteError, OutOfMemoryError, RequestsError, UserError
from xreasoner.models.loading import Loaded
from xreasoner.prompts import chat_messages
from xreasoner.tiny import benchmarks

Said = list[tuple[int, ...]]


def _requests(n: int, tokens: int = 10, samples: int = 1, temperature: float = 1.0) -> list[Request]:
    problems = benchmarks.cell("general", "image", n // 2, 1) + benchmarks.cell("clinical", "text", n - n // 2, 1)
    return [
        Request(
            chat_messages(problem, "brief"),
            problem.images,
            samples,
            Sampling(temperature=temperature, thinking_budget=tokens + k % 5, answer_budget=0, seed=k),
        )
        for k, problem in enumerate(problems)
    ]


def _said(group: list[Any]) -> Said:
    return [completion.token_ids for completion in group]


def _undisturbed(loaded: Loaded, requests: list[Request]) -> list[Said]:
    return [_said(group) for group in TorchEngine(loaded).generate(requests)]


def _outcomes(engine: TorchEngine, requests: list[Request]) -> list[Said | Exception]:
    tickets = [engine.submit(request) for request in requests]
    engine.wait(tickets)
    return [ticket.error if isinstance(ticket.error, Exception) else _said(ticket.completions) for ticket in tickets]


def _assert_empty(engine: TorchEngine) -> None:
    """Nothing is left of those who ran: no rows, no slots."""
    for _ in range(3):
        engine.step()
    assert not engine.step()
    assert not engine._rows
    assert not engine._waiting
    assert not engine._joining
    assert engine._slots.rows == 0
    if engine._native is not None:
        runner = engine._native
        assert not runner.slots
        assert sorted(runner.free) == list(range(1, runner.rows)) or not runner.rows


def _prompt_fails(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Any], bool]) -> None:
    """What computes prompts raises for some of them."""
    owner, name = (engine, "_prefill") if engine._native is None else (engine._native, "_prompts")
    real = getattr(owner, name)

    def computed(prompts: Any, *more: Any) -> Any:
        if any(wrong(prompt) for prompt in prompts):
            raise IndexError("index out of range in self")
        return real(prompts, *more)

    monkeypatch.setattr(owner, name, computed)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("guilty", [0, 3, 7])
def test_a_prompt_that_cannot_be_computed_ends_its_request_alone(
    varied: Loaded, monkeypatch: pytest.MonkeyPatch, guilty: int
) -> None:
    requests = _requests(8)
    right = _undisturbed(varied, requests)
    engine = TorchEngine(varied)
    bad = engine._encoded(requests[guilty]).input_ids.tolist()
    _prompt_fails(engine, monkeypatch, lambda prompt: prompt.input_ids.tolist() == bad)
    found = _outcomes(engine, requests)
    assert isinstance(found[guilty], IndexError)
    assert [one for k, one in enumerate(found) if k != guilty] == right[:guilty] + right[guilty + 1 :]
    _assert_empty(engine)


@pytest.mark.usefixtures("way")
def test_a_row_that_always_fails_is_found_and_the_others_go_on_as_they_would_have(
    varied: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = _requests(9, 20)
    right = _undisturbed(varied, requests)
    engine = TorchEngine(varied)
    decode = engine._decode
    tickets = [engine.submit(request) for request in requests]
    guilty = tickets[5]

    def decoded(token_B: Any) -> Any:
        if any(row.ticket is guilty and row.ended is None and len(row.tokens) > 4 for row in engine._rows):
            raise RuntimeError("device-side assert")
        return decode(token_B)

    monkeypatch.setattr(engine, "_decode", decoded)
    engine.wait(tickets)
    assert isinstance(guilty.error, RuntimeError)
    others = [(ticket, one) for ticket, one in zip(tickets, right, strict=True) if ticket is not guilty]
    assert [_said(ticket.completions) for ticket, _ in others] == [one for _, one in others]
    _assert_empty(engine)


@pytest.mark.usefixtures("way")
def test_decoding_that_never_works_ends_every_request(varied: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = _requests(6, samples=2)
    right = _undisturbed(varied, requests)
    engine = TorchEngine(varied)

    def broken(token_B: Any) -> Any:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(engine, "_decode", broken)
    found = _outcomes(engine, requests)
    assert isinstance(found[0], RuntimeError)
    # computing the rows again is a step too, so those that wait longest may come to their end
    assert all(isinstance(one, RuntimeError) or one == right[k] for k, one in enumerate(found))
    _assert_empty(engine)


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("can't allocate memory: you")]
)
def test_memory_that_runs_out_makes_batches_smaller(
    varied: Loaded, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """No more than 3 rows run together, and no more than 2 prompts are computed together."""
    requests = _requests(5, 8, samples=2)
    right = _undisturbed(varied, requests)
    engine = TorchEngine(varied)
    decode, most = engine._decode, 0
    owner, name = (engine, "_prefill") if engine._native is None else (engine._native, "_prompts")
    prefill = getattr(owner, name)

    def decoded(token_B: Any) -> Any:
        nonlocal most
        if len(token_B) > 3:
            raise error
        most = max(most, len(token_B))
        return decode(token_B)

    def computed(prompts: Any, *more: Any) -> Any:
        if len(prompts) > 2:
            raise error
        return prefill(prompts, *more)

    monkeypatch.setattr(engine, "_decode", decoded)
    monkeypatch.setattr(owner, name, computed)
    assert _outcomes(engine, requests) == right
    assert most in (2, 3)
    _assert_empty(engine)


@pytest.mark.usefixtures("way")
def test_rows_that_do_not_fit_beside_others_wait_for_them(varied: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = _requests(5, 8)
    right = _undisturbed(varied, requests)
    engine = TorchEngine(varied)
    seat = engine._seat

    def seated(groups: Any) -> None:
        running = sum(row.ended is None for row in engine._rows)
        if running + sum(len(group.rows) for group in groups) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        seat(groups)

    monkeypatch.setattr(engine, "_seat", seated)
    assert _outcomes(engine, requests) == right
    _assert_empty(engine)


@pytest.mark.usefixtures("way")
def test_a_request_that_does_not_fit_alone_says_what_to_lower(varied: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = _requests(4)
    right = _undisturbed(varied, requests)
    engine = TorchEngine(varied)
    owner, name = (engine, "_prefill") if engine._native is None else (engine._native, "_prompts")
    prefill = getattr(owner, name)

    def computed(prompts: Any, *more: Any) -> Any:
        if any(prompt.pictures for prompt in prompts):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return prefill(prompts, *more)

    monkeypatch.setattr(owner, name, computed)
    found = _outcomes(engine, requests)
    assert all(isinstance(one, OutOfMemoryError) for one in found[:2])
    assert found[2:] == right[2:]
    assert "1 image" in str(found[0])
    assert "lower max_pixels" in str(found[0])
    _assert_empty(engine)


def test_images_too_large_to_encode_say_what_to_lower(varied: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(torch_engine, "encode", full)
    with pytest.raises(OutOfMemoryError, match="lower max_pixels"):
        TorchEngine(varied).submit(_requests(1)[0])


# --- numbers that are not finite -------------------------------------------------------------------------------------


@contextmanager
def _poisoned(loaded: Loaded, token: int, value: float = float("nan")) -> Iterator[None]:
    """One token's embedding is no number, for some time (not at load, where that is refused); its output row stays."""
    weight, head = loaded.model.get_input_embeddings().weight, loaded.model.lm_head
    tied, before = head.weight, weight[token].detach().clone()
    head.weight = torch.nn.Parameter(tied.detach().clone())
    with torch.no_grad():
        weight[token] = value
    try:
        yield
    finally:
        head.weight = tied
        with torch.no_grad():
            weight[token] = before


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_end_the_request_and_spoil_no_other(varied: Loaded, value: float) -> None:
    """Slots are used again where a request was refused, after its prompt or in the middle of its reply."""
    requests = _requests(12, 14)
    right = _undisturbed(varied, requests)
    engine = TorchEngine(varied, max_rows=4)
    prompts = [set(engine._encoded(request).input_ids.tolist()) for request in requests]
    counts = [
        (sum(token in said for said in prompts), {k for k, said in enumerate(right) if token in said[0][:-1]}, token)
        for token in {token for said in right for token in said[0]}
    ]
    written = next((where, token) for seen, where, token in counts if not seen and 0 < len(where) < 4)
    only = [token for token in set.union(*prompts) if sum(token in ids for ids in prompts) == 1]
    asked = next(token for token in only if not any(token in said[0] for said in right))
    for token, where in ((written[1], written[0]), (asked, {k for k in range(12) if asked in prompts[k]})):
        with _poisoned(varied, token, value):
            found = _outcomes(engine, requests)
        assert {k for k, one in enumerate(found) if isinstance(one, NonFiniteError)} == where
        assert all(found[k] == right[k] for k in range(12) if k not in where)
        message = str(found[min(where)])
        assert ("after token" in message) == (token == written[1])
        assert "dtype=float32" in message
    assert _outcomes(engine, requests) == right
    _assert_empty(engine)


@pytest.mark.usefixtures("way")
def test_an_image_whose_features_are_not_finite_is_named(varied: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = _requests(4)
    engine = TorchEngine(varied)
    right = _undisturbed(varied, requests)
    bias = varied.model.model.visual.patch_embed.proj.weight
    before = bias.detach().clone()
    with torch.no_grad():
        bias[0] = torch.nan
    found = _outcomes(engine, requests)
    with torch.no_grad():
        bias.copy_(before)
    assert all("features of image 1 are not finite" in str(one) for one in found[:2])
    assert found[2:] == right[2:]


@pytest.mark.parametrize("layer", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj"])
@pytest.mark.usefixtures("way")
def test_no_layer_swallows_what_is_not_finite(varied: Loaded, layer: str) -> None:
    weight = varied.model.model.language_model.layers[0].get_submodule(layer).weight
    before = weight.detach().clone()
    for value in (torch.nan, torch.inf, 3e38):
        with torch.no_grad():
            weight[:] = value
        try:
            found = _outcomes(TorchEngine(varied), _requests(2))
        finally:
            with torch.no_grad():
                weight.copy_(before)
        assert all(isinstance(one, NonFiniteError) for one in found), value


def test_scores_that_are_not_finite_are_an_error(varied: Loaded) -> None:
    engine = TorchEngine(varied)
    (request,) = _requests(1)
    good = engine.score(request, "", ["3", "4"])
    token = engine.loaded.tokenizer.encode("3", add_special_tokens=False)[0]
    asked = engine._encoded(request).input_ids[0].item()
    for poisoned, given in ((token, ["3 4", "4"]), (asked, ["3", "4"])):
        with _poisoned(varied, poisoned), pytest.raises(NonFiniteError, match=r"continuation|prompt"):
            engine.score(request, "", given)
    assert engine.score(request, "", ["3", "4"]) == good


# --- whatever raises, wherever and whenever ---------------------------------------------------------------------------


class InjectedError(Exception):
    pass


def _sites(engine: TorchEngine) -> list[tuple[Any, str]]:
    """(owner, name) of what a step calls."""
    own = [
        "_advance", "_cancel", "_admit", "_next_few", "_together", "_join", "_seat", "_squeeze", "_choose", "_append",
        "_tell", "_finish", "_finish_ended", "_refuse_non_finite", "_succeeded", "_sound", "_most_rows", "_decode",
        "_exit", "_row", "_loops", "_piece",
    ]  # fmt: skip
    found: list[tuple[Any, str]] = [(engine, name) for name in own if hasattr(engine, name)]
    found += [(torch_engine, "sample"), (torch_engine, "repeats"), (torch_engine, "split")]
    found += [(engine.loaded.tokenizer, "decode"), (engine.loaded.tokenizer, "encode"), (torch_engine, "encode")]
    if engine._native is not None:
        names = ("seat", "decode", "keep", "_room", "_pack", "_shared", "_prompts", "_forward", "_scratch", "turns")
        return [*found, *((engine._native, name) for name in names), (engine.loaded.model.model, "get_image_features")]
    found += [(engine, "_prefill"), (engine.loaded.model, "forward"), (engine.loaded.model.model.visual, "forward")]
    found += [(engine._decoder, "step"), (engine._decoder, "turns"), (engine._decoder, "_attend")]
    slots = torch_engine.Slots
    return found + [(slots, n) for n in ("seat", "write", "keep", "advance", "open_column", "_make_room", "_move")]


@contextmanager
def _raising(owner: Any, name: str, calls: int, times: int, late: bool, error: Exception) -> Iterator[list[int]]:
    """The function raises at its `calls`-th call and so many after it, before or after its work."""
    had, real = name in vars(owner), getattr(owner, name)
    count = [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        hit = calls <= count[0] < calls + times
        if hit and not late:
            raise error
        found = real(*args, **kwargs)
        if hit:
            raise error
        return found

    setattr(owner, name, wrapped)
    try:
        yield count
    finally:
        if had:
            setattr(owner, name, real)
        else:
            delattr(owner, name)


def _trial(engine: TorchEngine, requests: list[Request], right: list[Said], rng: random.Random, site: Any) -> int:
    """One injection under load: some requests are there at the beginning, others come later. Returns who failed."""
    owner, name = site
    error = rng.choice([InjectedError("injected"), torch.OutOfMemoryError("CUDA out of memory"), KeyError("x")])
    texts: list[list[str]] = [[] for _ in requests]
    begun: list[tuple[int, Any]] = []
    refused = 0
    with _raising(owner, name, rng.randint(1, 40), rng.choice([1, 1, 1, 2, 5]), rng.random() < 0.4, error):
        for k, request in enumerate(requests):
            told = None if k % 3 else lambda sample, text, k=k: sample or texts[k].append(text)
            try:
                begun.append((k, engine.submit(request, on_text=told)))
            except (type(error), OutOfMemoryError):
                refused += 1
            for _ in range(rng.randint(0, 3)):
                engine.step()
        engine.wait([ticket for _, ticket in begun])
    failed = 0
    for k, ticket in begun:
        if ticket.error is None:
            assert _said(ticket.completions) == right[k], (owner, name, error)
            assert k % 3 or "".join(texts[k]) == ticket.completions[0].text
        else:
            assert isinstance(ticket.error, (type(error), OutOfMemoryError)), (owner, name, ticket.error)
            failed += 1
    engine.max_prompt_tokens = 2048
    return failed + refused


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_whatever_raises_every_request_ends_and_the_others_are_right(varied: Loaded, rounds: int) -> None:
    """The short form takes every fourth place where something may raise."""
    rng = random.Random(rounds)
    requests = [replace(request, n=1 + k % 2) for k, request in enumerate(_requests(6, 9))]
    requests[1] = replace(requests[1], sampling=replace(requests[1].sampling, exit_on_repeats=True, answer_budget=3))
    right = _undisturbed(varied, requests)
    engine = TorchEngine(varied, max_rows=7)
    failed = trials = 0
    resident: list[int] = []
    for _ in range(rounds):
        for site in _sites(engine)[:: 1 if rounds > 1 else 4]:
            failed += _trial(engine, requests, right, rng, site)
            trials += 1
            _assert_empty(engine)
        gc.collect()
        resident.append(_resident())
        assert [_said(group) for group in engine.generate(requests)] == right
    assert failed < 0.35 * trials * len(requests)  # most of what happens once is nobody's, and is repeated
    assert rounds < 10 or resident[-1] - resident[len(resident) // 4] < 32 * 2**20


def test_ctrl_c_stops_the_engine_and_leaves_nobody_waiting(varied: Loaded) -> None:
    for site, call in (("_seat", 1), ("_decode", 1), ("_choose", 2), ("_finish", 2), ("_next_few", 2)):
        engine = TorchEngine(varied)
        tickets = [engine.submit(request) for request in _requests(4)]
        stop = KeyboardInterrupt()
        with _raising(engine, site, call, 1, False, stop), suppress(KeyboardInterrupt):  # type: ignore[arg-type]
            engine.wait(tickets)
            pytest.fail("Ctrl-C was swallowed")
        assert all(ticket.done.is_set() for ticket in tickets), site
        _assert_empty(engine)


def test_a_thread_that_waits_learns_of_a_failure_in_another(varied: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine(varied)
    (first, second) = _requests(2, 30)

    def full(_: Any) -> None:
        raise OSError("no space left")

    one, two = engine.submit(first, on_done=full), engine.submit(second)
    threads = [threading.Thread(target=engine.wait, args=([ticket],)) for ticket in (one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    with pytest.raises(OSError, match="no space"):
        _ = one.completions
    assert two.error is None


@pytest.mark.usefixtures("way")
def test_an_engine_may_be_failed_from_other_threads_while_it_computes(varied: Loaded) -> None:
    engine, requests = TorchEngine(varied), _requests(8, 20)
    right = _undisturbed(varied, requests)
    ended = threading.Event()

    def disturb() -> None:
        while not ended.wait(0.005):
            engine._fail(RuntimeError("cut"))

    threads = [threading.Thread(target=disturb) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        outcomes = [outcome for _ in range(6) for outcome in _outcomes(engine, requests)]
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert all(isinstance(outcome, RuntimeError) or outcome in right for outcome in outcomes)
    assert _outcomes(engine, requests) == right
    _assert_empty(engine)


def test_a_callback_that_waits_for_the_engine_that_calls_it_is_refused(varied: Loaded) -> None:
    engine, (first, second) = TorchEngine(varied), _requests(2)
    one, two = engine.submit(first, on_done=lambda _: engine.wait([two])), engine.submit(second)
    engine.wait([one, two])
    assert isinstance(one.error, EngineError)
    assert two.error is None


def test_generate_names_the_requests_that_failed_after_the_others_were_delivered(varied: Loaded) -> None:
    requests = _requests(4)
    requests[2] = replace(requests[2], images=_requests(2)[0].images)  # a picture without a place
    delivered: dict[int, Said] = {}
    with pytest.raises(RequestsError, match=r"request 2: .*images.*3 of 4 were finished") as caught:
        TorchEngine(varied).generate(requests, on_done=lambda k, group: delivered.update({k: _said(group)}))
    assert isinstance(caught.value.failures[2], UserError)
    assert caught.value.exit_code == 2
    right = _undisturbed(varied, [request for k, request in enumerate(requests) if k != 2])
    assert [delivered[k] for k in (0, 1, 3)] == right
    with pytest.raises(UserError, match="images"):
        TorchEngine(varied).generate([requests[2]])


def test_rows_computed_again_draw_the_numbers_they_would_have(varied: Loaded) -> None:
    noise, again = failures.Noise(3, 1), failures.Noise(3, 1)
    first = [noise.at(k) for k in (0, 1, 5)]
    assert [again.at(k) for k in (0, 0, 1, 1, 5, 5)] == [one for one in first for _ in range(2)]


def test_scoring_goes_on_in_smaller_parts_where_memory_runs_out(
    varied: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TorchEngine(varied)
    (request,) = _requests(1)
    options = [str(k) for k in range(7)]
    right = engine.score(request, "", options)
    real = scoring._tree

    def tree(engine: Any, cache: Any, tails: Any, *more: Any) -> Any:
        if len(tails) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(engine, cache, tails, *more)

    monkeypatch.setattr(scoring, "_tree", tree)
    assert engine.score(request, "", options) == pytest.approx(right, abs=1e-4)
