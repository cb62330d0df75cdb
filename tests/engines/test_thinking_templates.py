"""Chat templates that open or close the thought, and tags that are tokens: through engines, servers, SFT and scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engines.served import Served
from helpers.thinking import Tags, Template, variant

from xreasoner.completion import Completion
from xreasoner.data import packing
from xreasoner.data.sources import Example, chain
from xreasoner.decisions import decide
from xreasoner.engines.base import Request, Sampling
from xreasoner.engines.openai_engine import OpenAIEngine
from xreasoner.engines.torch_engine import TorchEngine
from xreasoner.grading import judge
from xreasoner.models.loading import Loaded, encode, load
from xreasoner.problem import Problem
from xreasoner.prompts import chat_messages
from xreasoner.recipe import RLStage, load_recipe
from xreasoner.tiny import benchmarks
from xreasoner.trace import CLOSE, OPEN, Splitter
from xreasoner.training.rollouts import judged

PROBLEMS = benchmarks.cell("general", "text", 3, 5)


@pytest.fixture(scope="module")
def opens() -> Loaded:
    """The embedded reasoner under a template that ends in `<think>`."""
    return variant(load("tiny"), "opens")


@pytest.fixture(scope="module", params=["vllm", "somebody"])
def served(opens: Loaded, request: pytest.FixtureRequest) -> Iterator[Served]:
    with Served(opens, owner=request.param) as server:
        yield server


def _requests(sampling: Sampling) -> list[Request]:
    return [Request(chat_messages(problem, "brief"), sampling=sampling) for problem in PROBLEMS]


def _streamed(engine: Any, request: Request) -> tuple[Completion, str, dict[str, str]]:
    """The completion, the text that came in pieces, and what a reader of the stream saw."""
    told: list[str] = []
    ticket = engine.submit(request, on_text=lambda _, text: told.append(text))
    engine.wait([ticket])
    splitter, seen = Splitter(), {"thought": "", "content": ""}
    pieces = [piece for text in told for piece in splitter.feed(text)]
    for label, text in [*pieces, *splitter.close()[0]]:
        seen["thought" if label == "thought" else "content"] += text
    return ticket.completions[0], "".join(told), seen


@pytest.mark.parametrize("budget", [4000, 20, 0])
def test_a_thought_that_the_template_opens_is_a_thought(opens: Loaded, budget: int) -> None:
    engine = TorchEngine(opens)
    for request, problem in zip(_requests(Sampling(thinking_budget=budget, logprobs=True)), PROBLEMS, strict=True):
        ((whole,),) = engine.generate([request])
        streamed, told, seen = _streamed(engine, request)
        assert streamed == whole
        assert whole.text == told
        assert whole.text.startswith("<think>\n")
        assert opens.tokenizer.decode(whole.token_ids[:1]) != OPEN
        assert (seen["thought"], seen["content"]) == (whole.thought, whole.content)
        assert whole.answer or budget == 0
        assert CLOSE not in whole.thought
        assert whole.exit == ("natural" if budget == 4000 else "forced")
        if budget:
            assert judge(problem, whole.text, whole.exit).outcome in ("correct", "wrong")
        closing = len(opens.tokenizer.encode(" </think> <answer>"))
        at = whole.forced.index(True) if True in whole.forced else None
        assert at == (None if budget == 4000 else budget)
        assert whole.forced.count(True) == (0 if at is None else closing)
        assert whole.thought_tokens + whole.answer_tokens == len(whole.token_ids) == len(whole.logprobs)


@pytest.mark.parametrize("budget", [4000, 20])
def test_a_server_with_such_a_template_says_the_same(opens: Loaded, served: Served, budget: int) -> None:
    requests = _requests(Sampling(thinking_budget=budget, logprobs=True))
    engine = OpenAIEngine(served.url, timeout=20)
    found = [group[0] for group in engine.generate(requests)]
    again = [_streamed(engine, request) for request in requests]
    engine.close()
    known = served.owner == "vllm"
    for theirs, (streamed, told, seen), (ours,) in zip(
        found, again, TorchEngine(opens).generate(requests), strict=True
    ):
        if known or budget == 4000:  # elsewhere nobody knows of an open thought until it closes
            assert (theirs.thought, theirs.answer, theirs.exit) == (ours.thought, ours.answer, ours.exit)
        assert told == streamed.text
        assert (seen["thought"], seen["content"]) == (streamed.thought, streamed.content)
        if known:
            assert streamed.text == theirs.text == ours.text
            assert theirs.token_ids == ours.token_ids  # over the forced exit too
            assert theirs.forced == ours.forced
            assert theirs.thought_tokens == ours.thought_tokens
            assert theirs.logprobs == pytest.approx(ours.logprobs, abs=1e-3)
        elif theirs.exit == "forced":
            assert theirs.token_ids == theirs.forced == ()
    continued = [body for body in served.bodies if "prompt" in body or body.get("continue_final_message")]
    if budget == 20 and known:
        assert continued
        assert all(isinstance(body.get("prompt"), list) for body in continued)


def test_option_probabilities_are_those_after_the_thought(opens: Loaded) -> None:
    problem = next(p for p in benchmarks.cell("general", "text", 20, 1) if p.options)
    request = Request(chat_messages(problem, "brief"), sampling=Sampling())
    engine = TorchEngine(opens)
    ((completion,),) = engine.generate([request])
    ours = decide(engine, request, completion, problem.options)
    assert ours.mass > 0.5
    with Served(opens, owner="vllm") as server:
        there = OpenAIEngine(server.url, timeout=20)
        theirs = decide(there, request, completion, problem.options)
        there.close()
    assert theirs.probabilities == pytest.approx(ours.probabilities, abs=1e-3)
    assert theirs.mass == pytest.approx(ours.mass, abs=1e-3)


@pytest.mark.parametrize("tags", ["text", "special", "ordinary"])
@pytest.mark.parametrize("template", ["neither", "opens", "closes"])
def test_sft_writes_the_opening_tag_once(random_folder: Path, template: Template, tags: Tags) -> None:
    loaded = variant(load(str(random_folder)), template, tags)
    tokenizer = loaded.tokenizer
    problem = Problem("p", "How do <think> and </think> work in 3 + 4?", "7", "number")
    response = chain("Three and four.", "It is \\boxed{7}.")
    (item,), _ = packing.tokenise(loaded, [Example(problem, response)], "brief", 500, "drop", " </think> ")
    reply = tokenizer.decode(item.ids[item.prompt : -1])
    assert reply.count(OPEN) == (0 if template == "opens" else 1)
    assert reply.count(CLOSE) == 1
    whole = tokenizer.decode(item.ids)
    tail = whole[whole.rindex("<|im_start|>assistant\n") :]
    assert tail.count(OPEN) == (2 if template == "closes" else 1)
    assert tail.endswith("\nThree and four.\n</think>\nIt is \\boxed{7}.\n<answer>\n7\n</answer><|im_end|>")
    assert problem.question in whole  # nobody edits the user's text
    own = [tokenizer.convert_tokens_to_ids(tag) for tag in (OPEN, CLOSE)]
    learnt = item.ids[item.prompt :]
    if tags == "text":
        assert None in own or own == [tokenizer.unk_token_id] * 2
    else:
        assert learnt.count(own[1]) == 1
        assert learnt.count(own[0]) == (0 if template == "opens" else 1)
    if tags == "special":  # what a user types is text
        template_tags = {"neither": 0, "opens": 0, "closes": 1}[template]
        assert item.ids[: item.prompt].count(own[1]) == template_tags
    direct = Example(problem, "<answer>7</answer>")
    (item,), _ = packing.tokenise(loaded, [direct], "brief", 500, "drop", " </think> ")
    tail = tokenizer.decode(item.ids).rpartition("<|im_start|>assistant\n")[2]
    assert (
        tail.replace("\n", "")
        == {
            "neither": "<answer>7</answer><|im_end|>",
            "opens": "<think></think><answer>7</answer><|im_end|>",
            "closes": "<think></think><answer>7</answer><|im_end|>",
        }[template]
    )


def test_rl_learns_what_the_policy_chose_under_such_a_template(opens: Loaded) -> None:
    stage = next(stage for stage in load_recipe("demo").stages if isinstance(stage, RLStage))
    request = Request(chat_messages(PROBLEMS[0], "brief"), sampling=Sampling(thinking_budget=20, logprobs=True))
    ((completion,),) = TorchEngine(opens).generate([request])
    rollout = judged(stage, opens, PROBLEMS[0], request, completion)
    decode = opens.tokenizer.decode
    assert decode([*rollout.prompt, *completion.token_ids[:-1]]).endswith("assistant\n" + completion.text)
    masked = [token for token, free in zip(completion.token_ids, rollout.free, strict=True) if not free]
    assert decode(masked) == request.sampling.exit_text


class Scripted(TorchEngine):
    """The engine with logits that say a given reply, from its own decoding on."""

    script: tuple[int, ...] = ()

    def _choose(self) -> Any:
        for k, row in enumerate(self._rows):
            at = sum(not forced for forced in row.budget.forced)
            self._logits_BV[k] = -20.0
            self._logits_BV[k, self.script[min(at, len(self.script) - 1)]] = 20.0
        return super()._choose()


@pytest.mark.parametrize("tags", ["text", "special", "ordinary"])
@pytest.mark.parametrize("template", ["neither", "opens", "closes"])
def test_budgets_and_texts_are_right_however_the_tags_are_tokenized(
    random_folder: Path, template: Template, tags: Tags
) -> None:
    loaded = variant(load(str(random_folder)), template, tags)
    engine = Scripted(loaded)
    thought, rest = "a b c d e f", " so <answer>7</answer>"
    begin = "" if template == "opens" else OPEN
    ids = packing.reply_ids(loaded.tokenizer, f"{begin}{thought}</think>{rest}")
    engine.script = (*ids, loaded.tokenizer.eos_token_id)
    request = Request([{"role": "user", "content": "3 + 4"}], sampling=Sampling(thinking_budget=60, answer_budget=40))
    completion, told, seen = _streamed(engine, request)
    assert completion.exit == "natural"
    assert told == completion.text
    assert completion.text == ("<think>\n" if template == "opens" else OPEN) + f"{thought}</think>{rest}"
    assert (completion.thought, completion.answer, completion.content) == (thought, "7", "so 7")
    assert (seen["thought"], seen["content"]) == (thought, "so 7")
    assert completion.token_ids == engine.script
    closing = packing.reply_ids(loaded.tokenizer, f"{begin}{thought}</think>")
    assert completion.thought_tokens == len(closing)
    tight = Request(request.messages, sampling=Sampling(thinking_budget=len(closing) - 1, answer_budget=9))
    ((forced,),) = engine.generate([tight])
    exit_ids = tuple(engine._exit(tight.sampling))
    assert forced.token_ids[len(closing) - 1 :][: len(exit_ids)] == exit_ids
    assert forced.forced.count(True) == len(exit_ids)
    if tags == "special":
        assert loaded.tokenizer.convert_tokens_to_ids(CLOSE) in exit_ids
    assert encode(loaded, request.messages).opening == ("<think>\n" if template == "opens" else "")
