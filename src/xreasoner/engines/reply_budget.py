"""The state of one reply while it is written: is the thought open, what do the budgets leave, and how does it end?

Every engine feeds one `ReplyBudget` a reply, token by token or chunk by chunk, and asks it what comes next. It holds
no model and does no I/O, so one set of rules decides for all engines, in this order:

1. **Where the thought begins.** A chat template may open the thought itself (its prompt ends in `<think>`); then the
   reply's first token is inside the thought, and `opening` is the tag that the prompt wrote. Otherwise the reply opens
   it if `<think>` is the first thing that it writes. A reply that begins with anything else has no thought, and so it
   is after a template that closes an empty one (`<think>\n\n</think>`), unless the reply opens another.
2. **Where it ends.** At the first `</think>`, as in `trace.Splitter`.
3. **Budgets** count the tokens that the model chose. Inside the thought there is room for `thinking_budget` tokens. A
   reply that closes its thought by itself, or has none, has one total: `thinking_budget + answer_budget`. After a
   forced exit there is room for `answer_budget` tokens more.
4. **The forced exit.** An open thought is closed by `exit_text` where the thinking budget is used up, where the thought
   repeats itself (`exit_on_repeats`), where the turn ends inside it (`exit_on_end`), or at a stop string
   (`stop_in_thought`). The exit text's tokens are marked: the policy did not choose them. It happens once a reply.
5. **Stop strings** end the answer: they are looked for behind the thought and behind the exit text only.
6. **The exit.** `natural`, or `forced` after a forced exit, where the turn ended or a stop string did; `truncated`
   where a budget ran out behind the thought.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from xreasoner.completion import Completion, Exit
from xreasoner.engines.base import Sampling
from xreasoner.trace import CLOSE, OPEN, repeats, split

State = Literal["begin", "open", "closed", "none"]
"""begin: nothing but spaces, or the beginning of `<think>`, so far. none: the reply has no thought."""

REPEATS_EVERY = 32
"""Tokens between two looks for a loop."""


@dataclass(slots=True)
class ReplyBudget:
    """One reply. Lists have an entry a token, forced ones included, where the engine knows the tokens.

    Args:
        sampling: The budgets, the exit text and the stop strings.
        opening: The text with which the prompt opened the thought, if it did. The reply's text begins with it, so
            that the text alone says what is thought; the reply's tokens do not have it.
        prompt_known: False behind a server that does not say what its chat template writes. A reply that begins
            without `<think>` may then be a thought all the same, which its `</think>` shows.
    """

    sampling: Sampling
    opening: str = ""
    prompt_known: bool = True
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    forced: list[bool] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    """Tokens of the exit text that are still to be written; the engine takes them in place of sampling."""
    ids_known: bool = True
    """False as soon as a token came without its id, or the text was tokenized again."""
    tokens: int = 0
    """All tokens so far, forced ones included where they are known."""
    sampled: int = 0
    """Tokens that the model chose, the end of the turn included."""
    state: State = "begin"
    was_forced: bool = False
    exit_due: bool = False
    """The thought must be closed now, by `force` or `force_text`."""
    ended: Exit | None = None
    text: str = ""
    told: int = 0
    """How much of the text has been handed on."""
    dropped: bool = False
    """The last chunk went beyond a stop string or a budget, and so did the end of the turn, if it was there."""
    broke_off: bool = False
    """The turn ended inside the thought."""
    opening_missed: bool = False
    """The reply closed a thought that it did not open: the prompt, which is not known, must have."""
    _head: str = ""
    _tail: str = ""
    _thought_tokens: int = 0
    _sampled_at_exit: int = 0
    _answer_at: int = -1
    _units: list[int | str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.text = self.opening
        if self.opening:
            self.state = "open"
            self.exit_due = self.sampling.thinking_budget <= 0

    def copy(self) -> ReplyBudget:
        """The same state, to return to."""
        lists = ("ids", "logprobs", "forced", "pending", "_units")
        found = copy.copy(self)
        for name in lists:
            setattr(found, name, [*getattr(self, name)])
        return found

    # --- what there is room for --------------------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """Whether the next token would be inside the thought."""
        return self.state == "open"

    @property
    def thought_tokens(self) -> int:
        """Tokens of the thought so far, up to and including the one that closes it."""
        return self.tokens if self.state == "open" else self._thought_tokens

    def room(self) -> int:
        """Tokens that the model may choose until a budget ends."""
        sampling = self.sampling
        if self.was_forced:
            return sampling.answer_budget - (self.sampled - self._sampled_at_exit)
        if self.state == "open":
            return sampling.thinking_budget - self.sampled
        return sampling.thinking_budget + sampling.answer_budget - self.sampled

    def pass_room(self) -> int:
        """Tokens to ask a server for: a reply that may still open its thought is asked for a thinking budget."""
        thinking = self.sampling.thinking_budget - self.sampled
        return thinking if self.state == "begin" and not self.was_forced and thinking > 0 else self.room()

    # --- what the model writes ---------------------------------------------------------------------------------------

    def add_token(self, token: int, piece: str, logprob: float = 0.0, forced: bool = False) -> None:
        """Write one token down. piece: its text, as far as a token alone has one."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.forced.append(forced)
        self.tokens += 1
        if forced:
            self._follow(piece)
            if not self.pending:
                self.check_budgets()
            return
        self.sampled += 1
        if self.state != "closed":
            self._units.append(token)
            self._follow(piece)
        self.check_budgets()

    def add_chunk(
        self,
        text: str,
        tokens: int,
        ids: Sequence[int] = (),
        logprobs: Sequence[float] = (),
        pieces: Sequence[str] = (),
    ) -> None:
        """Write down text that stands for some tokens. pieces: the text of each, where the engine knows it.

        Without the pieces, a chunk that closes the thought counts as thought as a whole. Budgets are left to
        `interrupts` and `check_budgets`: the end of the turn, of which the engine hears later, comes first.
        """
        if len(pieces) == tokens > 1 and "".join(pieces) == text and len(ids) in (0, tokens):
            for k, piece in enumerate(pieces):  # what stands behind a stop string or a budget's end is dropped
                if k and self.interrupts(self.sampled + 1):
                    self.dropped = True
                    return
                self.add_chunk(piece, 1, ids[k : k + 1], logprobs[k : k + 1])
            return
        self.dropped = False
        self.ids_known &= len(ids) == tokens
        self.ids += ids
        self.logprobs += logprobs
        self.forced += [False] * len(ids)
        self.tokens += tokens
        self.sampled += tokens
        if self.state != "closed":
            self._units += ids or ([text] if text else [])
            self._follow(text)
        self.write(text)

    def write(self, text: str) -> None:
        """Add text that is settled, and end the reply, or its thought, at a stop string."""
        self.text += text
        if self.sampling.stop:
            self._look_for_stops(len(text))

    def end_turn(self, counted: bool = False) -> None:
        """The model ended its turn. counted: the token that did so is the last of those written down.

        Inside a thought that must lead to an answer (`exit_on_end`) the end is taken back, and the exit is due.
        """
        counted = counted and self.ids_known and bool(self.ids)
        self.tokens -= counted  # the end of a turn belongs to no thought
        if self.must_exit_at_end():
            self.broke_off = self.exit_due = True
            if counted:
                del self.ids[-1:], self.logprobs[-1:], self.forced[-1:]
                self.sampled -= 1
            return
        self._end()

    def must_exit_at_end(self) -> bool:
        """Whether the end of the turn, now, would be that of a thought that must lead to an answer."""
        return self.state == "open" and self.sampling.exit_on_end and not self.was_forced

    def end_token(self, token: int, logprob: float) -> None:
        """Write down the token with which the model ended its turn; it belongs to no thought."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.forced.append(False)
        self.sampled += 1
        self._end()

    def _follow(self, piece: str) -> None:
        """Follow the tags through the next piece of text."""
        if self.state == "closed" or (self.state == "none" and self.prompt_known):
            return
        if self.state == "begin":
            self._head += piece
            start = self._head.lstrip()
            if OPEN.startswith(start) and start != OPEN:
                return
            self.state = "open" if start.startswith(OPEN) else "none"
            self._tail, piece = "", start.removeprefix(OPEN)
        tail = self._tail + piece
        if ">" in piece and CLOSE in tail:
            if self.state == "none":
                if self.prompt_known:
                    return
                self.opening_missed = True
            self._thought_tokens = self.tokens
            self.state = "closed"
            return
        self._tail = tail[-len(CLOSE) :]

    def check_budgets(self) -> None:
        """End the reply, or its thought, where a budget is used up or the thought repeats itself."""
        if self.ended is not None or self.exit_due or self.pending:
            return
        if self.room() <= 0:
            if self.state == "open" and not self.was_forced:
                self.exit_due = True
            else:
                self.ended = "truncated"
        elif self.loops():
            self.exit_due = True

    def loops(self) -> bool:
        """Whether the thought repeats itself, where the request asked to end it then; looked at now and then."""
        wanted = self.sampling.exit_on_repeats and self.state == "open" and not self.was_forced
        return wanted and bool(self._units) and len(self._units) % REPEATS_EVERY == 0 and repeats(self._units)

    def interrupts(self, asked: int) -> bool:
        """Whether an engine that was asked for tokens up to this many has to be stopped before it gets there."""
        spent = self.sampled < asked and (self.room() <= 0 or self.loops())
        return self.ended is not None or self.exit_due or spent

    def open_thought(self, opening: str, prompt_known: bool) -> None:
        """Say what the prompt has written, before the reply's first token."""
        self.opening, self.prompt_known = opening, prompt_known
        self.__post_init__()

    @property
    def written(self) -> str:
        """The text without what the prompt wrote."""
        return self.text.removeprefix(self.opening)

    def correct(self, sampled: int, thought: int | None) -> None:
        """Take a server's count at the end of a pass for the right one, where the tokens themselves are not known.

        Args:
            sampled: Tokens of all passes.
            thought: Tokens of the thought, where the server says.
        """
        if self.ids_known and self.ids:
            return
        self.tokens += sampled - self.sampled
        self.sampled = sampled
        if thought is not None:
            self._thought_tokens = thought
            self.state = "closed" if self.state == "open" else self.state
        self.tokens = max(self.tokens, self.thought_tokens)

    # --- what the engine writes --------------------------------------------------------------------------------------

    def force(self, exit_ids: Sequence[int]) -> None:
        """Close the thought: these tokens are to be written next, one by one (`add_token` with `forced`)."""
        self.pending = list(exit_ids)
        self._begin_exit()

    def force_text(self, exit_tokens: Sequence[tuple[int, str]] | None) -> None:
        """Close the thought at once. exit_tokens: id and text of each of the exit text's tokens, None if unknown."""
        self._begin_exit()
        self.pending = [token for token, _ in exit_tokens or ()]
        for token, piece in exit_tokens or ():
            self.add_token(token, piece, forced=True)
        self.pending = []
        self.ids_known &= exit_tokens is not None
        self._follow(self.sampling.exit_text if self.state == "open" else "")
        self.text += self.sampling.exit_text
        self._answer_at = len(self.text)
        self.check_budgets()

    def _begin_exit(self) -> None:
        self.was_forced, self.exit_due = True, False
        self._sampled_at_exit = self.sampled

    # --- stop strings and streaming ----------------------------------------------------------------------------------

    def _look_for_stops(self, new: int) -> None:
        """Cut the text at the first stop string in the answer; one in the thought, if asked for, ends that."""
        begin = self._stops_from()
        if begin < 0:
            return
        longest = max(map(len, self.sampling.stop))
        begin = max(begin, len(self.text) - new - longest + 1)
        cuts = [at for stop in self.sampling.stop if (at := self.text.find(stop, begin)) >= 0]
        if not cuts:
            return
        if self.state == "open":
            self.exit_due = self.ended is None  # its tokens are in the context, so it stays in the thought
        else:
            self.text = self.text[: min(cuts)]
            self._end()

    def _stops_from(self) -> int:
        """Where in the text stop strings count from; -1: nowhere yet."""
        if self.pending or self.state == "begin":
            return -1
        if self.was_forced:
            if self._answer_at < 0:  # the exit text's last token has just been written
                self._answer_at = len(self.text)
            return self._answer_at
        if self.state == "none":
            return 0
        if self.state == "open":
            thought = len(self.opening) or self.text.find(OPEN) + len(OPEN)
            return thought if self.sampling.stop_in_thought else -1
        at = self.text.find(CLOSE, len(self.opening))
        return at + len(CLOSE) if at >= 0 else -1

    def new_text(self) -> str:
        """The text that has been settled since the last call; what may be the beginning of a stop string is not."""
        settled = len(self.text)
        held = self.sampling.stop and self.ended is None and self.state != "open"
        if held and (begin := self._stops_from()) >= 0:
            longest = min(max(map(len, self.sampling.stop)) - 1, settled - begin)
            ends = (n for n in range(longest, 0, -1) if self.text.endswith(tuple(s[:n] for s in self.sampling.stop)))
            settled -= next(ends, 0)
        new = self.text[self.told : settled]
        self.told = max(self.told, settled)
        return new

    # --- how it ends -------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        self.ended = "forced" if self.was_forced else "natural"
        self.exit_due = False

    def completion(self, exit: Exit, prompt_tokens: int, text: str | None = None) -> Completion:
        """The reply as a whole. text: its text, where it has not been written here.

        A reply that turned out to have begun inside a thought gets the opening tag, unless it was streamed without.
        """
        text = self.text if text is None else text
        if self.opening_missed and not self.told:
            text = OPEN + text
        trace, known = split(text), self.ids_known
        return Completion(
            text=text,
            token_ids=tuple(self.ids) if known else (),
            logprobs=tuple(self.logprobs) if self.sampling.logprobs and (known or not self.was_forced) else (),
            forced=tuple(self.forced) if known else (),
            thought=trace.thought,
            answer=trace.answer,
            exit=exit,
            prompt_tokens=prompt_tokens,
            thought_tokens=self.thought_tokens,
            answer_tokens=(len(self.ids) if known else self.tokens) - self.thought_tokens,
            repeats=repeats(self._units),
        )
