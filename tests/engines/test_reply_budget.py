"""The reply budget against a plain reading of its rules, over random replies, cuts, templates, tags and budgets."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xreasoner.completion import Exit
from xreasoner.engines.base import Sampling
from xreasoner.engines.reply_budget import ReplyBudget
from xreasoner.trace import CLOSE, OPEN, Splitter, split, thought_opening

EXIT = [(900, " </"), (901, "think"), (902, ">"), (903, " <answer>")]
EXIT_TEXT = "".join(text for _, text in EXIT)
END = 999
OPENINGS = {"neither": "", "opens": "<think>\n", "closes": ""}
TAGS = {
    "text": {OPEN: ["<", "think", ">"], CLOSE: ["</", "think", ">"]},
    "token": {OPEN: [OPEN], CLOSE: [CLOSE]},  # special or ordinary added tokens: one piece either way
}


@dataclass
class Expected:
    """How a reply ends by the rules. exit: None where the model would write more."""

    opening: str
    pieces: list[str]
    forced: list[bool]
    exit: Exit | None = None

    def closed_at(self) -> int | None:
        """How many pieces it takes to close the thought; None if that is not done."""
        texts = ["".join([self.opening, *self.pieces[:k]]).lstrip() for k in range(len(self.pieces) + 1)]
        return next((k for k, text in enumerate(texts) if text.startswith(OPEN) and CLOSE in text), None)

    @property
    def opened(self) -> bool:
        return "".join([self.opening, *self.pieces]).lstrip().startswith(OPEN)

    @property
    def is_open(self) -> bool:
        return self.opened and self.closed_at() is None

    @property
    def thought_tokens(self) -> int:
        closed_at = self.closed_at()
        return 0 if not self.opened else len([p for p in self.pieces if p]) if closed_at is None else closed_at


def expected(script: list[str], opening: str, sampling: Sampling) -> Expected:
    """The rules, read off the whole reply again and again. script: what the model writes, its end of turn as ""."""
    reply, rest, exit_at = Expected(opening, [], []), list(script), None
    while True:
        sampled = reply.forced.count(False)
        ends_inside = rest[:1] == [""] and sampling.exit_on_end
        if reply.is_open and exit_at is None and (sampled >= sampling.thinking_budget or ends_inside):
            del rest[: bool(ends_inside and sampled < sampling.thinking_budget)]
            reply.pieces += [text for _, text in EXIT]
            reply.forced += [True] * len(EXIT)
            exit_at = sampled
            continue
        total = sampling.thinking_budget + sampling.answer_budget
        if sampled >= (total if exit_at is None else exit_at + sampling.answer_budget):
            reply.exit = "truncated"
            return reply
        if not rest:
            return reply
        reply.pieces.append(rest.pop(0))
        reply.forced.append(False)
        if not reply.pieces[-1]:
            reply.exit = "natural" if exit_at is None else "forced"
            return reply


def by_tokens(script: list[str], opening: str, sampling: Sampling) -> tuple[ReplyBudget, str]:
    """As an engine that decodes does it. Returns the budget, and the text that was streamed."""
    budget, rest, told = ReplyBudget(sampling, opening), list(script), ""
    while budget.ended is None:
        if budget.exit_due:
            budget.force([token for token, _ in EXIT])
        if budget.pending:
            token = budget.pending.pop(0)
            piece = dict(EXIT)[token]
            budget.add_token(token, piece, forced=True)
            budget.write(piece)
        elif not rest:
            break
        elif (piece := rest.pop(0)) == "":
            if budget.must_exit_at_end():
                budget.end_turn()
                continue
            budget.end_token(END, 0.0)
        else:
            budget.add_token(len(budget.ids), piece, 0.0)
            budget.write(piece)
        told += budget.new_text()
    return budget, told + budget.new_text()


def by_chunks(
    script: list[str], cuts: list[int], opening: str, sampling: Sampling, known: bool
) -> tuple[ReplyBudget, str]:
    """As an engine behind a server does it: passes of so many tokens, in chunks, until the server stops."""
    budget, at, told = ReplyBudget(sampling, opening), 0, ""
    while budget.ended is None:
        if budget.exit_due:
            budget.force_text(EXIT if known else None)
            continue
        asked = budget.pass_room()
        begin, finish = budget.sampled, "length"
        part = script[at : at + asked]
        ends = sorted({0, len(part), *(cut for cut in cuts if 0 < cut < len(part))})
        for a, b in pairwise(ends):
            chunk = part[a:b]
            ids = [END if not piece else a + k for k, piece in enumerate(chunk)]
            budget.add_chunk("".join(chunk), len(chunk), ids if known else (), (), chunk)
            told += budget.new_text()
            if "" in chunk and not budget.dropped:
                finish = "stop"
                break
            if budget.interrupts(begin + asked):
                break
        at += budget.sampled - begin  # what was dropped is written again
        if budget.ended is not None or budget.exit_due:
            continue
        if finish == "stop":
            budget.end_turn(counted=True)
        else:
            budget.check_budgets()
        if finish == "length" and not part and budget.ended is None and not budget.exit_due:
            break
    return budget, told + budget.new_text()


def scripts(tags: dict[str, list[str]]) -> st.SearchStrategy[list[str]]:
    words = st.sampled_from([["a"], [" b"], ["<"], [" "], ["\n"], ["<answer>"], ["</answer>"], tags[CLOSE]])
    begin = st.sampled_from([[], tags[OPEN], [" ", *tags[OPEN]]])
    end = st.sampled_from([[], [""]])
    return st.tuples(begin, st.lists(words, max_size=12), end).map(
        lambda p: [*p[0], *(t for w in p[1] for t in w), *p[2]]
    )


budgets = st.tuples(st.integers(0, 12), st.integers(1, 8), st.booleans())


@settings(max_examples=600, deadline=None)
@given(data=st.data(), template=st.sampled_from(sorted(OPENINGS)), tags=st.sampled_from(sorted(TAGS)), budget=budgets)
def test_counts_masks_and_exits_follow_the_rules(
    data: st.DataObject, template: str, tags: str, budget: tuple[int, int, bool]
) -> None:
    script = data.draw(scripts(TAGS[tags]))
    cuts = data.draw(st.lists(st.integers(0, 20), max_size=6))
    sampling = Sampling(thinking_budget=budget[0], answer_budget=budget[1], exit_on_end=budget[2], exit_text=EXIT_TEXT)
    opening = OPENINGS[template]
    rule = expected(script, opening, sampling)
    found, told = by_tokens(script, opening, sampling)
    completion = found.completion(found.ended or "aborted", 0)
    assert found.ended == rule.exit
    assert completion.forced == tuple(rule.forced)
    assert completion.text == opening + "".join(rule.pieces) == told
    assert completion.thought_tokens == rule.thought_tokens
    assert completion.thought_tokens + completion.answer_tokens == len(completion.token_ids)
    whole = split("".join(rule.pieces), opened=bool(opening))
    assert (completion.thought, completion.answer, completion.content) == (whole.thought, whole.answer, whole.content)
    splitter = Splitter()
    streamed = [*splitter.feed(told), *splitter.close()[0]]
    assert "".join(text for label, text in streamed if label != "thought") == completion.content
    for known in (True, False):
        other, text = by_chunks(script, cuts, opening, sampling, known)
        again = other.completion(other.ended or "aborted", 0)
        assert (other.ended, again.text, text) == (rule.exit, completion.text, completion.text)
        if known:
            assert again.forced == completion.forced
            assert again.thought_tokens == completion.thought_tokens
        else:
            assert again.token_ids == again.forced == () or not other.tokens


def test_a_long_solution_after_a_long_thought_is_not_cut() -> None:
    script = [OPEN, *["t"] * 300, CLOSE, *["s"] * 300, "<answer>", "7", "</answer>", ""]
    found, _ = by_tokens(script, "", Sampling(thinking_budget=400, answer_budget=256, exit_text=EXIT_TEXT))
    assert found.ended == "natural"
    assert found.completion("natural", 0).answer == "7"
    found, _ = by_tokens(script, "", Sampling(thinking_budget=300, answer_budget=256, exit_text=EXIT_TEXT))
    assert found.ended == "truncated"  # one total: 556


@pytest.mark.parametrize("opening", ["", "<think>\n"])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("stop", ["So:", "o", ": ", "b c"])
def test_stop_strings_act_on_the_answer_unless_asked_for_in_the_thought(opening: str, inside: bool, stop: str) -> None:
    thought = ["So", ":", " ", "b", " c", " d"]
    script = [*([] if opening else [OPEN]), *thought, CLOSE, " <answer>", *thought, ""]
    sampling = Sampling(stop=(stop,), stop_in_thought=inside, exit_text=EXIT_TEXT)
    found, told = by_tokens(script, opening, sampling)
    completion = found.completion(found.ended or "aborted", 0)
    assert completion.exit == ("forced" if inside else "natural")
    assert told == completion.text
    assert stop not in completion.answer
    assert completion.thought == (
        "So: b c d" if not inside else "So: b c d"[: "So: b c d".index(stop) + len(stop)].strip()
    )
    if not inside:
        assert (
            completion.text
            == opening
            + "".join(script)[: len("".join(script[: script.index(CLOSE) + 2]))]
            + "So: b c d"[: "So: b c d".index(stop)]
        )
    chunked, text = by_chunks(script, [1, 4, 9], opening, sampling, True)
    assert (chunked.ended, chunked.was_forced) == (completion.exit, inside)
    assert text == chunked.text


def test_what_may_be_the_beginning_of_a_stop_string_is_held_back() -> None:
    budget = ReplyBudget(Sampling(stop=("END!",), exit_text=EXIT_TEXT))
    streamed = []
    for piece in ("x E", "N", "D", "ED", "EN", "D!", "more"):
        budget.add_token(0, piece)
        budget.write(piece)
        streamed.append(budget.new_text())
        if budget.ended:
            break
    assert streamed == ["x ", "", "", "ENDED"[:4] + "D" if False else "ENDED", "", ""]
    assert (budget.text, budget.ended) == ("x ENDED", "natural")


@pytest.mark.parametrize(
    ("tail", "opening"),
    [
        ("<|im_start|>assistant\n", ""),
        ("<|im_start|>assistant\n<think>\n", "<think>\n"),
        ("<|im_start|>assistant\n<think>", "<think>"),
        ("<|im_start|>assistant\n<think>\nOkay, ", "<think>\nOkay, "),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
        ("<think>\n\n</think>\n<think>\n", "<think>\n"),
    ],
)
def test_the_template_says_whether_the_thought_is_open(tail: str, opening: str) -> None:
    assert thought_opening(tail) == opening


def test_a_reply_whose_prompt_is_not_known_may_have_begun_inside_the_thought() -> None:
    script = ["a", " b", CLOSE, " <answer>", "7", "</answer>", ""]
    budget = ReplyBudget(Sampling(exit_text=EXIT_TEXT), prompt_known=False)
    budget.add_chunk("".join(script), len(script), (), (), script)
    budget.end_turn()
    found = budget.completion("natural", 0)
    assert (found.text, found.thought, found.answer) == ("<think>a b</think> <answer>7</answer>", "a b", "7")
    assert found.thought_tokens == 3
    streamed = ReplyBudget(Sampling(exit_text=EXIT_TEXT), prompt_known=False)
    streamed.add_chunk("".join(script), len(script), (), (), script)
    told = streamed.new_text()
    assert streamed.completion("natural", 0).text == told == "".join(script)


def test_a_copy_is_not_changed_by_what_follows() -> None:
    budget = ReplyBudget(Sampling(exit_text=EXIT_TEXT))
    budget.add_chunk("<think> a", 2, (1, 2), (-1.0, -2.0))
    saved = budget.copy()
    budget.add_chunk(" b", 1, (3,), (-1.0,))
    assert (saved.text, saved.ids, saved.sampled) == ("<think> a", [1, 2], 2)
