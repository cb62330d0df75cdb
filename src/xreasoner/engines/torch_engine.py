"""The in-process engine: continuous batching over slots, with the forced exit in the same slot.

Every request's prompt (text and pictures) is computed once for all its samples, which then take slots (slots.py);
rows that end make room for requests that wait. A picture's placeholders are never sampled: their logits are banned, in
the log-probabilities too. What a sample says follows from its own seed alone, whoever runs beside it.

A failure belongs to its request. Prompts that fail together are tried apart. After a step that fails, the rows are
computed again from their prompts and tokens (noise is bound to positions, so they go on as they would have), at first
all of them, then in halves, those first that have not yet been through a step; a row that fails alone ends its request
with the error. Memory that runs out is met with smaller batches before a request is given up. Only what is no
`Exception` (Ctrl-C) stops the engine.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, Cache, DynamicCache

from xreasoner.completion import Completion, Exit
from xreasoner.engines import failures, native, scoring
from xreasoner.engines.base import GREEDY, Request, Sampling
from xreasoner.engines.decoding import Decoder, fits
from xreasoner.engines.info import EngineInfo
from xreasoner.engines.reply_budget import ReplyBudget
from xreasoner.engines.slots import Slots
from xreasoner.errors import (
    ContextLengthError,
    EngineError,
    NonFiniteError,
    OutOfMemoryError,
    UserError,
    reason,
)
from xreasoner.models.loading import Encoded, Loaded, encode, plain
from xreasoner.trace import CLOSE

log = logging.getLogger("xreasoner.engines")

GOOD_STEPS = 8
"""Steps without a failure after which more rows run together again."""
ROOMY_STEPS = 256
"""The same where memory had run out."""
MOST_FAILURES = 50
"""Steps that fail one after the other until everything is given up: some failure is nobody's."""


def grouped_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Attention of new tokens, without repeating the keys for the heads that share them.

    query [B, H, T, D]; key and value [B, K, S, D] with K dividing H; attention_mask [B, 1, T, S], added.
    Returns [B, T, H, D].
    """
    rows, heads, steps, width = query.shape
    groups = key.shape[1]
    query_BKGTD = query.reshape(rows, groups, heads // groups, steps, width)
    scores = torch.matmul(query_BKGTD, key.unsqueeze(2).transpose(-1, -2)) * scaling + attention_mask.unsqueeze(2)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    mixed_BHTD = torch.matmul(weights, value.unsqueeze(2)).reshape(rows, heads, steps, width)
    return mixed_BHTD.transpose(1, 2), None


def _positions(positions_ABT: Tensor) -> Tensor:
    """As models take them: [3, B, T], or [B, T] where there is one axis."""
    return positions_ABT if len(positions_ABT) > 1 else positions_ABT[0]


AttentionInterface.register("xreasoner_grouped", grouped_attention)


@dataclass(slots=True)
class _Row:
    """One sample on its way."""

    ticket: Ticket
    sample: int
    sampling: Sampling
    noise: failures.Noise
    budget: ReplyBudget
    prefix: int = 0
    """Tokens before those that are decoded together next, and
    read: before those whose text has been written."""
    read: int = 0

    @property
    def tokens(self) -> list[int]:
        return self.budget.ids

    @property
    def ended(self) -> Exit | None:
        return self.budget.ended

    @ended.setter
    def ended(self, exit: Exit) -> None:
        self.budget.ended = exit


class Ticket:
    """A request that was handed to the engine.

    done: set when all n completions are there, or an error is. on_text(sample, text): called with each sample's text
    as it is written; on_done(completions): at the end. Both are called by the thread that drives the engine. sampling:
    the request's, with budgets that fit the model; length: the most tokens that a sample takes, prompt included.
    """

    def __init__(
        self,
        request: Request,
        prompt: Encoded,
        sampling: Sampling,
        exit_tokens: int,
        on_done: Callable[[list[Completion]], None] | None,
        on_text: Callable[[int, str], None] | None,
    ) -> None:
        self.request, self.prompt, self.on_done, self.on_text = request, prompt, on_done, on_text
        self.sampling = sampling
        self.length = len(prompt.input_ids) + sampling.thinking_budget + exit_tokens + sampling.answer_budget
        self.samples: dict[int, Completion] = {}
        self.done = threading.Event()
        self.error: BaseException | None = None
        self.cancelled = False

    @property
    def completions(self) -> list[Completion]:
        """The n completions in order. Raises the request's error, if it has one."""
        if self.error is not None:
            raise self.error
        return [self.samples[k] for k in range(self.request.n)]

    def finish(self) -> None:
        """All samples are there: `on_done` hears of it before those who wait, who also learn whether that failed."""
        if self.on_done is not None:
            self.on_done(self.completions)
        self.done.set()

    def cancel(self) -> None:
        """Its samples end as `aborted` with the engine's next step, and their slots are free."""
        self.cancelled = True


@dataclass(slots=True, eq=False)
class _Group:
    """Rows that begin with the same prompt: all samples of a request, or one that is computed again."""

    prompt: Encoded
    rows: list[_Row]

    @property
    def ticket(self) -> Ticket:
        return self.rows[0].ticket


class TorchEngine:
    """Generates with a model that is in this process, sharing its weights with whoever trains it.

    max_rows: samples that run together. max_prompt_tokens: prompt tokens, padding included, that are computed
    together; None: what suits the device. Neither changes what a sample says, beyond rounding. cache_bytes: for keys
    and values; None: half of a GPU's free memory, or a quarter of the machine's. Any thread may submit; one at a time
    drives.

    A request that goes beyond the model's positions (`max_position_embeddings`) has its budgets cut to what its
    prompt leaves, thinking first; a prompt that leaves no room for an answer is refused.
    """

    name = "torch"

    def __init__(
        self,
        loaded: Loaded,
        max_rows: int = 256,
        max_prompt_tokens: int | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        self.loaded = loaded
        self.max_rows = max_rows
        # a CPU computes what fits its caches fastest
        self.max_prompt_tokens = max_prompt_tokens or (2048 if loaded.device.type == "cpu" else 65_536)
        self.cache_bytes = cache_bytes or _spare_bytes(loaded.device)
        self.banned, self.ends = _banned(loaded), _ends(loaded)
        self.hidden = frozenset({*self.banned, *self.ends, loaded.tokenizer.pad_token_id})
        self._pieces: dict[int, str] = {}
        self._waiting: deque[_Group] = deque()
        self._joining: list[_Group] = []
        self._limit: int | None = None
        """Rows at most, for some time after a failure."""
        self._good_steps, self._patience, self._failures = 0, GOOD_STEPS, 0
        self._cleared: set[int] = set()
        """Rows (by id) that have been through a whole step since the last one that failed."""
        self._driving = threading.RLock()
        self._is_stepping = False
        self._native = native.Native(loaded) if native.fits(loaded.model) else None
        self._decoder = Decoder(loaded.model) if fits(loaded.model) else None
        self._clear()

    @property
    def info(self) -> EngineInfo:
        """See `engines.base.Engine`."""
        return _info_of(self.loaded)

    def _clear(self) -> None:
        weight = self.loaded.model.get_input_embeddings().weight
        text = self.loaded.text_config
        self._slots = Slots(text.num_hidden_layers, weight.dtype, self.loaded.device)
        if self._native is not None:
            self._native.clear()
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        self._token_bytes = 2 * text.num_hidden_layers * heads * width * weight.element_size()
        self._rows: list[_Row] = []
        self._logits_BV = torch.empty(0)
        self._next_B = torch.empty(0, dtype=torch.long)

    def generate(
        self,
        requests: Sequence[Request],
        on_done: Callable[[int, list[Completion]], None] | None = None,
    ) -> list[list[Completion]]:
        """See `engines.base.Engine`."""
        outcomes: list[Ticket | Exception] = []
        for i, request in enumerate(requests):
            told = None if on_done is None else lambda group, i=i: on_done(i, group)
            try:
                outcomes.append(self._ticket(request, told, None))
            except Exception as error:
                outcomes.append(error)
        tickets = [one for one in outcomes if isinstance(one, Ticket)]
        # neighbours in length are computed together, with little padding
        self._waiting.extend(map(self._group, sorted(tickets, key=lambda ticket: len(ticket.prompt.input_ids))))
        try:
            self.wait(tickets)
        except BaseException:
            for ticket in tickets:
                ticket.cancel()
            raise
        return failures.results(outcomes)

    def submit(
        self,
        request: Request,
        on_done: Callable[[list[Completion]], None] | None = None,
        on_text: Callable[[int, str], None] | None = None,
    ) -> Ticket:
        """Put a request into the queue; somebody must `step` or `wait`. Raises `UserError` for a bad request."""
        ticket = self._ticket(request, on_done, on_text)
        self._waiting.append(self._group(ticket))
        return ticket

    def score(self, request: Request, given: str, continuations: Sequence[str]) -> list[float]:
        """See `engines.base.Engine`."""
        return scoring.score(self, request, given, continuations)

    def _encoded(self, request: Request) -> Encoded:
        if CLOSE not in request.sampling.exit_text:
            raise UserError(f"exit_text {request.sampling.exit_text!r} does not hold {CLOSE}; expected it to")
        try:
            return encode(
                self.loaded,
                request.messages,
                request.images,
                request.min_pixels,
                request.max_pixels,
                request.preprocessing,
            )
        except Exception as error:
            if not failures.is_out_of_memory(error):
                raise
            failures.release_memory(error, self.loaded.device)
            raise OutOfMemoryError(
                f"out of memory while {len(request.images)} images and the text were encoded; lower max_pixels, or "
                "send fewer images"
            ) from error

    def _ticket(
        self,
        request: Request,
        on_done: Callable[[list[Completion]], None] | None,
        on_text: Callable[[int, str], None] | None,
    ) -> Ticket:
        """The request with its prompt and budgets that fit. Raises `UserError` where none do."""
        prompt = self._encoded(request)
        exit_tokens = len(self._exit(request.sampling))
        limit = self.loaded.positions
        room = limit - len(prompt.input_ids) - exit_tokens
        if room < 1:
            raise ContextLengthError(
                f"the prompt has {len(prompt.input_ids)} tokens and the model takes {limit}, of which the exit text "
                f"and an answer need {exit_tokens + 1}; shorten it, or lower max_pixels if images take the room"
            )
        answer = min(request.sampling.answer_budget, room)
        thinking = min(request.sampling.thinking_budget, room - answer)
        sampling = replace(request.sampling, answer_budget=answer, thinking_budget=thinking)
        ticket = Ticket(request, prompt, sampling, exit_tokens, on_done, on_text)
        if request.n * ticket.length * self._token_bytes > self.cache_bytes:
            raise UserError(
                f"{request.n} samples of up to {ticket.length} tokens need "
                f"{request.n * ticket.length * self._token_bytes / 2**30:.1f} GiB of cache and there are "
                f"{self.cache_bytes / 2**30:.1f}; ask for fewer samples or smaller budgets"
            )
        return ticket

    def wait(self, tickets: Sequence[Ticket]) -> None:
        """Drive the engine, or let the thread that does, until these tickets are done."""
        for ticket in tickets:
            while not ticket.done.is_set():
                if self._driving.acquire(timeout=0.02):
                    try:
                        self._step()
                    finally:
                        self._driving.release()

    def step(self) -> bool:
        """One token for every row that runs; False when there is nothing to do."""
        with self._driving:
            return self._step()

    def release(self) -> None:
        """Free the memory for keys and values, until there are requests again; nothing may be running."""
        with self._driving:
            self._clear()

    @torch.inference_mode()
    def _step(self) -> bool:
        if self._is_stepping:  # the lock lets its own thread in again
            raise EngineError("a callback waits for the engine that calls it; hand requests in with submit instead")
        self._is_stepping = True
        try:
            return self._advance()
        except Exception as error:
            try:
                self._recover(error)
            except Exception as worse:
                self._fail(worse)
            return True
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            self._is_stepping = False

    def _advance(self) -> bool:
        """A step in which nothing fails that is not known to be one request's failure."""
        self._cancel()
        self._admit()
        if not self._rows:
            return bool(self._waiting)
        self._refuse_non_finite()
        token_B = self._choose()
        self._finish_ended()
        token_B = token_B[self._squeeze(0.2)]
        if self._rows:
            self._logits_BV = self._decode(token_B)
        self._succeeded()
        return True

    def _finish_ended(self) -> None:
        for row in self._rows:
            if row.ended is not None and row.sample not in row.ticket.samples and row.ticket.error is None:
                with self._blaming(row.ticket):
                    self._finish(row)

    def _cancel(self) -> None:
        for row in self._rows:
            if row.ticket.cancelled and row.ended is None:
                row.ended = "aborted"
        self._finish_ended()
        for group in [group for group in list(self._waiting) if group.ticket.cancelled]:
            self._waiting.remove(group)
            for row in group.rows:
                row.ended = "aborted"
                with self._blaming(row.ticket):
                    self._finish(row)

    # --- failures: whose they are, and how the others go on -----------------------------------------------------------

    @contextmanager
    def _blaming(self, ticket: Ticket) -> Iterator[None]:
        """What fails here is this request's failure, and no other's."""
        try:
            yield
        except Exception as error:
            self._end(ticket, error)

    def _end(self, ticket: Ticket, error: Exception) -> None:
        """The request alone has failed: whoever waits for it is told, and its rows make room."""
        failures.release_memory(error, self.loaded.device)
        if failures.is_out_of_memory(error) and not isinstance(error, OutOfMemoryError):
            images = len(ticket.request.images)
            error = failures.out_of_memory(error, len(ticket.prompt.input_ids), images, ticket.length)
        own = [row for row in self._rows if row.ticket is ticket]
        waiting = [group for group in list(self._waiting) if group.ticket is ticket]
        for row in (*own, *(row for group in (*waiting, *self._joining) for row in group.rows)):
            if row.ticket is ticket and row.ended is None:
                row.ended = "aborted"
        for group in waiting:
            self._waiting.remove(group)
        ticket.error = error
        ticket.done.set()

    def _recover(self, error: Exception) -> None:
        """A step has failed, and nobody knows for whom: all rows are computed again, in smaller and smaller numbers."""
        self._failures += 1
        short = failures.is_out_of_memory(error)
        failures.release_memory(error, self.loaded.device)
        self._finish_ended()
        self._take_back_joining()
        seated = [row for row in self._rows if row.ended is None]
        log.warning("a step of %d rows failed and is repeated: %s", len(seated), reason(error))
        if self._failures > MOST_FAILURES:
            self._fail(error)
        elif not seated and self._waiting and self._failures > 1:
            self._end(self._waiting[0].ticket, error)
        elif len(seated) == 1 and self._failures > 1:
            self._end(seated[0].ticket, error)
            self._limit, self._failures = None, 0
            self._clear()
        else:
            if self._failures > 1 or short:
                self._limit, self._good_steps = max(1, len(seated) // 2), 0
                self._patience = ROOMY_STEPS if short else GOOD_STEPS
            self._displace(sorted(seated, key=lambda row: id(row) in self._cleared))
        self._cleared.clear()

    def _displace(self, rows: Sequence[_Row]) -> None:
        """Empty the cache; these rows come first among those that wait, each with its tokens behind its prompt."""
        groups = []
        for row in rows:
            with self._blaming(row.ticket):
                groups.append(_Group(scoring.longer(row.ticket.prompt, row.tokens), [row]))
        self._waiting.extendleft(reversed(groups))
        self._clear()

    def _take_back_joining(self) -> None:
        """Groups that were about to be seated wait again, but for the rows that are."""
        placed = {id(row) for row in (*self._rows, *(row for group in self._waiting for row in group.rows))}
        for group in reversed(self._joining):
            rows = [row for row in group.rows if row.ended is None and id(row) not in placed]
            if rows:
                self._waiting.appendleft(_Group(group.prompt, rows))
        self._joining = []

    def _succeeded(self) -> None:
        """A step has gone well; by and by as many rows run together as before."""
        if self._failures == 0 and self._limit is None:
            return
        self._failures = 0
        self._cleared.update(id(row) for row in self._rows)
        self._good_steps += 1
        if self._limit is not None and self._good_steps >= self._patience:
            self._limit, self._good_steps = 2 * self._limit, 0
            if self._limit >= self.max_rows:
                self._limit = None
                self._cleared.clear()

    def _fail(self, error: BaseException) -> None:
        """Whoever waits is told; the engine starts again with empty slots. Any thread may call it."""
        with self._driving:  # memory must not be freed while another thread's step computes in it
            waiting = [*self._waiting, *self._joining]
            tickets = [*(row.ticket for row in self._rows), *(group.ticket for group in waiting)]
            self._waiting.clear()
            self._joining, self._limit, self._failures = [], None, 0
            self._clear()
        for ticket in tickets:
            if not ticket.done.is_set():
                ticket.error = failures.stopped(error)
                ticket.done.set()

    def _refuse_non_finite(self) -> None:
        """End the requests whose logits are not finite (`failures.finite`)."""
        good = failures.finite(self._logits_BV)
        if all(good):
            return
        for k, row in enumerate(self._rows):
            if not good[k] and row.ended is None:
                self._slots.spoiled = True
                self._end(row.ticket, self._non_finite(row, float(self._logits_BV[k].max())))

    def _non_finite(self, row: _Row, value: float) -> NonFiniteError:
        """Where a row's numbers went wrong."""
        prompt, images = row.ticket.prompt, len(row.ticket.request.images)
        said = f"every logit is {value}" if value - value == 0 else f"the largest logit is {value}"
        if row.tokens:
            where = f"after token {len(row.tokens)} of sample {row.sample} {said}"
        else:
            where = f"after the prompt of {len(prompt.input_ids)} tokens{f' and {images} images' * (images > 0)} {said}"
            with suppress(Exception):
                where += self._blind_spot(prompt)
        return failures.non_finite(where)

    def _blind_spot(self, prompt: Encoded) -> str:
        """Whether it is the images' features that are not finite."""
        if not prompt.pictures or not hasattr(self.loaded.model.model, "get_image_features"):
            return ""
        pictures = {name: tensor.to(self.loaded.device) for name, tensor in prompt.pictures.items()}
        features = self.loaded.model.model.get_image_features(**pictures).pooler_output
        bad = [k for k, one in enumerate(features, 1) if not one.isfinite().all()]
        return f" (the vision tower's features of image {bad[0]} are not finite)" if bad else ""

    # --- who runs ----------------------------------------------------------------------------------------------------

    @staticmethod
    def _alive(group: _Group) -> bool:
        return any(row.ended is None for row in group.rows)

    def _group(self, ticket: Ticket) -> _Group:
        return _Group(ticket.prompt, [self._row(ticket, sample) for sample in range(ticket.request.n)])

    def _most_rows(self) -> int:
        return self.max_rows if self._limit is None else self._limit

    def _admit(self) -> None:
        """Seat requests that wait, if there is room: at once in a half-empty house, else a good few at a time."""
        most, running = self._most_rows(), sum(row.ended is None for row in self._rows)
        if running > most // 2 and most - running < most // 8:
            return
        while chosen := self._next_few():
            self._join(chosen)
            self._joining = []

    def _next_few(self) -> list[_Group]:
        """The first of those that wait, as many as fit the rows, the cache, and one computation of prompts.

        A request with more samples than there are rows runs alone.
        """
        alive = [row.ticket.length for row in self._rows if row.ended is None]
        rows, longest, widest = len(alive), max(alive, default=0), 0
        while self._waiting:
            group = self._waiting[0]
            rows, longest = rows + len(group.rows), max(longest, group.ticket.length)
            widest = max(widest, len(group.prompt.input_ids))
            tight = rows > self._most_rows() or rows * longest * self._token_bytes > self.cache_bytes
            chosen = self._joining
            if (tight and (chosen or alive)) or (chosen and not self._together(chosen, group, widest)):
                break
            self._joining = [*chosen, group]
            self._waiting.popleft()
        return self._joining

    def _together(self, chosen: Sequence[_Group], group: _Group, widest: int) -> bool:
        """Whether a prompt can be computed with these; pictures of models outside `QWEN_VL` are computed alone."""
        alone = any(g.prompt.pictures and self.loaded.processor is not None for g in (*chosen, group))
        return not alone and (len(chosen) + 1) * widest <= self.max_prompt_tokens

    def _join(self, groups: Sequence[_Group]) -> None:
        """Seat groups. Those that fail together are tried apart, until it is known whose failure it is."""
        groups = [group for group in groups if self._alive(group)]
        if not groups:
            return
        try:
            self._seat(groups)
            return
        except Exception as error:
            failure = error
        short = failures.is_out_of_memory(failure)
        failures.release_memory(failure, self.loaded.device)
        alive = [row for row in self._rows if row.ended is None]
        parts = _halves(groups, short)
        if short and len(groups) > 1:
            tokens = sum(len(group.prompt.input_ids) for group in groups)
            log.warning("out of memory while %d prompt tokens were computed together; fewer are tried", tokens)
            self.max_prompt_tokens = max(1, min(self.max_prompt_tokens, tokens) // 2)
        elif short and alive and not parts:  # it may fit when others have ended
            self._limit, self._good_steps, self._patience = len(alive), 0, ROOMY_STEPS
            self._waiting.extendleft(groups)
        elif not parts:
            failures.describe(failure, "while the request's prompt was computed")
            self._end(groups[0].ticket, failure)
        if not self._sound():
            self._displace(alive)
        for part in parts:
            self._join(part)

    def _sound(self) -> bool:
        """Whether rows and cache still belong together."""
        if self._native is not None:
            return len(self._native.slots) == len(self._rows)
        return self._slots.sound and self._slots.rows == len(self._rows)

    def _seat(self, groups: Sequence[_Group]) -> None:
        """Compute the groups' prompts and give each of their rows a slot, first those of rows that have ended."""
        prompts = [group.prompt for group in groups]
        rows = [(k, row) for k, group in enumerate(groups) for row in group.rows if row.ended is None]
        repeat = [k for k, _ in rows]
        if all(row.ended is not None for row in self._rows):
            self._squeeze(0.0)  # an empty house begins at the left again
        before = len(self._rows)
        places = [k for k, row in enumerate(self._rows) if row.ended is not None]
        places = [*places, *range(before, before + len(repeat))][: len(repeat)]
        if self._native is not None:
            logits_PV, next_P = self._native.seat(prompts, repeat, places)
        else:
            logits_PV, cache, pads, next_P = self._prefill(prompts)
            self._slots.seat(cache, pads, repeat, places)
        logits_BV, next_B = logits_PV[repeat], next_P[repeat]
        if before:
            again = sum(place < before for place in places)
            self._logits_BV[places[:again]], self._next_B[places[:again]] = logits_BV[:again], next_B[:again]
            logits_BV = torch.cat([self._logits_BV, logits_BV[again:]])
            next_B = torch.cat([self._next_B, next_B[again:]])
        # all at once: what failed before this line has left the rows as they were
        self._logits_BV, self._next_B = logits_BV, next_B
        for place, (_, row) in zip(places, rows, strict=True):
            self._rows[place : place + 1] = [row]

    def _squeeze(self, share: float) -> list[int]:
        """Take out the rows that have ended, if they are more than a share of all (it costs a copy of the cache).

        Returns the rows that stay, by their old places.
        """
        alive = [k for k, row in enumerate(self._rows) if row.ended is None]
        if alive and len(alive) >= (1 - share) * len(self._rows):
            return list(range(len(self._rows)))
        (self._native or self._slots).keep(alive)
        self._rows = [self._rows[k] for k in alive]
        self._next_B, self._logits_BV = self._next_B[alive], self._logits_BV[alive]
        return alive

    def _exit(self, sampling: Sampling) -> list[int]:
        ids: list[int] = self.loaded.tokenizer.encode(plain(self.loaded, sampling.exit_text), add_special_tokens=False)
        return ids

    def _row(self, ticket: Ticket, sample: int) -> _Row:
        sampling = ticket.sampling
        row = _Row(
            ticket,
            sample,
            sampling,
            failures.Noise(sampling.seed, sample),
            ReplyBudget(sampling, ticket.prompt.opening),
        )
        self._force_if_due(row)
        return row

    def _force_if_due(self, row: _Row) -> None:
        if row.budget.exit_due:
            row.budget.force(self._exit(row.sampling))

    def _prefill(self, prompts: Sequence[Encoded]) -> tuple[Tensor, DynamicCache, list[int], Tensor]:
        """Logits [P, V] after each prompt, keys and values, columns of padding, and the next positions [P]."""
        cache = DynamicCache()
        device = self.loaded.device
        width = max(len(prompt.input_ids) for prompt in prompts)
        ids_PT = torch.zeros(len(prompts), width, dtype=torch.long)
        positions_APT = torch.zeros(len(prompts[0].position_ids), len(prompts), width, dtype=torch.long)
        real_PT = torch.zeros(len(prompts), width, dtype=torch.long)
        for k, prompt in enumerate(prompts):
            start = width - len(prompt.input_ids)
            ids_PT[k, start:] = prompt.input_ids
            positions_APT[:, k, start:] = prompt.position_ids
            real_PT[k, start:] = 1
        names = {name for prompt in prompts for name in prompt.pictures}
        pictures = {n: torch.cat([p.pictures[n] for p in prompts if n in p.pictures]).to(device) for n in names}
        output = self.loaded.model(
            input_ids=ids_PT.to(device),
            attention_mask=real_PT.to(device),
            position_ids=_positions(positions_APT).to(device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **pictures,
        )
        pads = (width - real_PT.sum(dim=1)).tolist()
        return output.logits[:, -1], cache, pads, positions_APT.amax(dim=(0, 2)) + 1

    def _decode(self, token_B: Tensor) -> Tensor:
        """Logits [B, V] after one more token a row."""
        if self._native is not None:
            alive = [k for k, row in enumerate(self._rows) if row.ended is None]
            logits = self._native.decode(token_B, self._next_B, alive)
            self._next_B = self._next_B + 1
            return logits
        mask_BS = self._slots.open_column()
        if self._decoder is not None:
            logits = self._decoder.step(token_B.to(self.loaded.device), self._next_B, self._slots, mask_BS)
        else:
            axes = 3 if self.loaded.processor is None else 1
            position_AB1 = self._next_B[None, :, None].expand(axes, -1, 1)
            logits = self.extend(token_B[:, None], position_AB1, mask_BS[:, None, None, :], self._slots.cache)[:, -1]
        self._slots.advance()
        self._next_B = self._next_B + 1
        return logits

    def extend(self, ids_BT: Tensor, positions_ABT: Tensor, mask_B1TS: Tensor, cache: Cache) -> Tensor:
        """Logits [B, T, V] of T more tokens a row by the model's own forward pass, under a mask that is added."""
        device, config = self.loaded.device, self.loaded.text_config
        before = config._attn_implementation
        config._attn_implementation = "xreasoner_grouped"
        try:
            output = self.loaded.model(
                input_ids=ids_BT.to(device),
                position_ids=_positions(positions_ABT).to(device),
                attention_mask=mask_B1TS.to(device),
                past_key_values=cache,
                use_cache=True,
            )
        finally:
            config._attn_implementation = before
        logits: Tensor = output.logits
        return logits

    def _choose(self) -> Tensor:
        """The next token of each row [B], written down in the row; decides which rows end."""
        rows, logits_BV = self._rows, self._logits_BV.float()
        logits_BV[:, self.banned] = -torch.inf
        token_B = logits_BV.argmax(dim=-1)
        sampled = [
            k
            for k, row in enumerate(rows)
            if row.sampling.temperature > GREEDY and row.ended is None and not row.budget.pending
        ]
        if sampled:
            numbers = [rows[k].noise.at(len(rows[k].tokens)) for k in sampled]
            uniform = torch.tensor(numbers, dtype=torch.float64)
            token_B[sampled] = sample(
                logits_BV[sampled], [rows[k].sampling for k in sampled], uniform.to(logits_BV.device)
            )
        for k, row in enumerate(rows):
            if row.budget.pending:
                token_B[k] = row.budget.pending[0]
        logprob_B = [0.0] * len(rows)
        if any(row.sampling.logprobs for row in rows):
            logprob_B = torch.log_softmax(logits_BV, dim=-1).gather(1, token_B[:, None])[:, 0].tolist()
        for k, (row, token) in enumerate(zip(rows, token_B.tolist(), strict=True)):
            if row.ended is not None:
                continue
            with self._blaming(row.ticket):
                written = self._append(row, token, logprob_B[k])
                if written != token:
                    token_B[k] = written
                self._tell(row)
                self._force_if_due(row)
        return token_B.cpu()

    def _append(self, row: _Row, token: int, logprob: float) -> int:
        """Write one token down. Returns it, or the exit text's first where the turn ended inside the thought."""
        budget = row.budget
        if token in self.ends and not budget.pending:
            if not budget.must_exit_at_end():
                budget.end_token(token, logprob)
                return token
            budget.end_turn()
            self._force_if_due(row)
        if budget.pending:
            token = budget.pending.pop(0)
            budget.add_token(token, self._piece(token), forced=True)
        else:
            budget.add_token(token, self._piece(token), logprob)
        return token

    def _tell(self, row: _Row) -> None:
        """Write down the text that is settled, and hand it on."""
        budget, told = row.budget, row.ticket.on_text
        if told is None and not row.sampling.stop:
            return
        text = self._text(budget.ids[row.prefix :])
        if budget.ended is None and text.endswith("\ufffd"):
            return  # the rest of a character is still to come
        budget.write(text[len(self._text(budget.ids[row.prefix : row.read])) :])
        row.prefix, row.read = row.read, len(budget.ids)
        new = budget.new_text()
        if told is not None and new:
            told(row.sample, new)

    def _text(self, ids: Sequence[int]) -> str:
        """The text of tokens, without the ends of turns and what stands for images; tags may be special tokens."""
        text: str = self.loaded.tokenizer.decode([i for i in ids if i not in self.hidden], skip_special_tokens=False)
        return text

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = self.loaded.tokenizer.decode([token])
        return self._pieces[token]

    def _finish(self, row: _Row) -> None:
        """The row's completion, handed to its ticket."""
        assert row.ended is not None
        ticket = row.ticket
        budget = row.budget
        text = budget.text if row.sampling.stop else budget.opening + self._text(budget.ids)
        ticket.samples[row.sample] = budget.completion(row.ended, len(ticket.prompt.input_ids), text)
        if len(ticket.samples) == ticket.request.n:
            ticket.finish()


def _halves(groups: Sequence[_Group], rows_too: bool) -> list[Sequence[_Group]]:
    """The groups in two parts, or, where there is one, its rows in two; [] where nothing is left to part."""
    middle = len(groups) // 2
    if middle:
        return [groups[:middle], groups[middle:]]
    prompt, rows = groups[0].prompt, groups[0].rows
    middle = len(rows) // 2
    return [[_Group(prompt, rows[:middle])], [_Group(prompt, rows[middle:])]] if rows_too and middle else []


def _info_of(loaded: Loaded) -> EngineInfo:
    """What is known of a model that is in this process."""
    has_grids = loaded.processor is None
    size = dict(loaded.image_processor.size) if has_grids else {}
    return EngineInfo(
        model_name=loaded.name,
        context_length=loaded.positions if loaded.positions < 1 << 60 else None,
        min_pixels=size.get("shortest_edge"),
        max_pixels=size.get("longest_edge"),
        patch_size=loaded.patch_size,
        supports_logprobs=True,
    )


def _banned(loaded: Loaded) -> list[int]:
    """What stands for pictures in a prompt is no word of a reply."""
    tokens = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
    return sorted({*_ids(loaded, tokens), *loaded.placeholders})


def _ends(loaded: Loaded) -> set[int]:
    """The tokens that end a reply: the tokenizer's and the model's own, and those of Qwen's template."""
    own = loaded.model.generation_config.eos_token_id
    ends = {loaded.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    return {*_ids(loaded, ("<|im_end|>", "<|endoftext|>")), *(ends - {None})}


def _ids(loaded: Loaded, tokens: Sequence[str]) -> set[int]:
    found = {loaded.tokenizer.convert_tokens_to_ids(token) for token in tokens}
    return found - {None, loaded.tokenizer.unk_token_id}


def _spare_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


def sample(logits_BV: Tensor, samplings: Sequence[Sampling], uniform_B: Tensor) -> Tensor:
    """Token ids [B] by the inverse of the cumulative distribution, after temperature, top-k and top-p."""
    temperature_B1 = torch.tensor([[s.temperature] for s in samplings], device=logits_BV.device)
    probs_BV = torch.softmax(logits_BV / temperature_B1, dim=-1)
    if any(s.top_p < 1 or s.top_k > 0 for s in samplings):
        probs_BV = torch.stack([_cut(probs_V, s) for probs_V, s in zip(probs_BV, samplings, strict=True)])
    total_BV = probs_BV.double().cumsum(-1)
    chosen_B1 = torch.searchsorted(total_BV, uniform_B[:, None] * total_BV[:, -1:], right=True)
    return chosen_B1[:, 0].clamp_max(logits_BV.shape[1] - 1)


def _cut(probs_V: Tensor, sampling: Sampling) -> Tensor:
    """Zero all but the top_k likeliest tokens and their equals, and then all but the smallest set whose share of what
    is left reaches top_p: in this order, as Transformers and vLLM do it.
    """
    ordered_V, index_V = probs_V.sort(descending=True, stable=True)
    if sampling.top_k > 0:
        ordered_V[ordered_V < ordered_V[min(sampling.top_k, len(ordered_V)) - 1]] = 0
        ordered_V = ordered_V / ordered_V.sum()
    keep_V = ordered_V.cumsum(0) - ordered_V < sampling.top_p
    return torch.zeros_like(probs_V).scatter(0, index_V[keep_V], ordered_V[keep_V])
