"""The in-process engine: batched generation over a preallocated cache, with the forced exit in the same slot.

Requests of like length are generated together, left-padded, so that all rows write the same column of the cache.
A request's prompt (text and pictures) is computed once for all its samples. Rows that have ended are squeezed
out now and then. A picture's placeholders are never sampled: their logits are banned, in the log-probabilities too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, Cache
from transformers.cache_utils import DynamicLayer

from xreasoner.completion import Completion, Exit
from xreasoner.engines.base import Request, Sampling
from xreasoner.errors import UserError
from xreasoner.models.loading import Encoded, Loaded, encode
from xreasoner.trace import CLOSE, OPEN, split

MASKED = torch.finfo(torch.float32).min
GROWTH = 256
"""Columns by which the cache grows: a budget of thousands of tokens is not paid for before it is used."""


def grouped_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Attention of one new token a row, without repeating the keys for the heads that share them.

    query [B, H, 1, D]; key and value [B, K, S, D] with K dividing H; attention_mask [B, 1, 1, S], added.
    Returns [B, 1, H, D].
    """
    rows, heads, steps, width = query.shape
    assert steps == 1
    groups = key.shape[1]
    query_BKGD = query.view(rows, groups, heads // groups, width)
    scores = torch.matmul(query_BKGD, key.transpose(-1, -2)) * scaling + attention_mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    return torch.matmul(weights, value).reshape(rows, 1, heads, width), None


AttentionInterface.register("xreasoner_grouped", grouped_attention)


class _Layer(DynamicLayer):  # type: ignore[misc]  # transformers is not checked
    """One layer's keys and values [B, K, S, D], with spare columns behind the `length` that are in use."""

    def __init__(self, spare: int) -> None:
        super().__init__()
        self.spare = min(spare, GROWTH)
        self.length = 0
        self.is_initialized = False

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        end = self.length + key_states.shape[2]
        if not self.is_initialized:
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
            self.is_initialized = True
        if end > self.keys.shape[2]:
            self.keys, self.values = (self._copied(old, end + self.spare, None) for old in (self.keys, self.values))
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.length

    def keep(self, rows: Tensor) -> None:
        """Keep these rows, in this order, possibly several times."""
        columns = self.keys.shape[2]
        self.keys, self.values = (self._copied(old, columns, rows) for old in (self.keys, self.values))

    def _copied(self, old: Tensor, columns: int, rows: Tensor | None) -> Tensor:
        used = old[:, :, : self.length]
        used = used if rows is None else used.index_select(0, rows)
        new = old.new_empty(used.shape[0], used.shape[1], columns, used.shape[3])
        new[:, :, : self.length] = used
        return new


@dataclass(slots=True)
class _Row:
    """One sample on its way."""

    request: int
    sample: int
    sampling: Sampling
    prompt_tokens: int
    noise: np.random.Generator
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    forced: list[bool] = field(default_factory=list)
    queue: list[int] = field(default_factory=list)
    head: str = ""
    tail: str = ""
    thought_tokens: int = 0
    closed: bool = False
    was_forced: bool = False
    ended: Exit | None = None

    @property
    def opened(self) -> bool:
        return self.head.lstrip().startswith(OPEN)


class TorchEngine:
    """Generates with a model that is in this process, sharing its weights with whoever trains it.

    max_rows: samples that run together. max_prompt_tokens: prompt tokens, padding included, that are computed
    together. Neither changes what a sample says, beyond rounding.
    """

    name = "torch"

    def __init__(self, loaded: Loaded, max_rows: int = 256, max_prompt_tokens: int = 65_536) -> None:
        self.loaded = loaded
        self.max_rows = max_rows
        self.max_prompt_tokens = max_prompt_tokens
        config, tokenizer = loaded.model.config, loaded.tokenizer
        special = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
        named = [tokenizer.convert_tokens_to_ids(token) for token in special]
        self.banned = sorted({i for i in [*named, config.image_token_id, config.video_token_id] if i is not None})
        ends = {tokenizer.eos_token_id, *(tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>"))}
        self.ends = {i for i in ends if i is not None}
        self._pieces: dict[int, str] = {}

    def generate(
        self,
        requests: Sequence[Request],
        on_done: Callable[[int, list[Completion]], None] | None = None,
    ) -> list[list[Completion]]:
        """See `engines.base.Engine`. Raises `UserError` for an exit text that does not close the thought."""
        for request in requests:
            if CLOSE not in request.sampling.exit_text:
                raise UserError(f"exit_text {request.sampling.exit_text!r} does not hold {CLOSE}; expected it to")
        encoded = [encode(self.loaded, request.messages, request.images) for request in requests]
        lengths = [len(prompt.input_ids) for prompt in encoded]
        results: list[list[Completion]] = [[] for _ in requests]
        for batch in self._batches(lengths, requests):
            self._run(batch, requests, encoded, results, on_done)
        return results

    def _batches(self, lengths: Sequence[int], requests: Sequence[Request]) -> list[list[int]]:
        """Neighbours in length, within `max_rows` and `max_prompt_tokens`; one request is never parted."""
        batches: list[list[int]] = [[]]
        rows = 0
        for index in sorted(range(len(requests)), key=lambda i: lengths[i]):
            wide = (len(batches[-1]) + 1) * lengths[index] > self.max_prompt_tokens
            if batches[-1] and (wide or rows + requests[index].n > self.max_rows):
                batches.append([])
                rows = 0
            batches[-1].append(index)
            rows += requests[index].n
        return [batch for batch in batches if batch]

    @torch.inference_mode()
    def _run(
        self,
        batch: Sequence[int],
        requests: Sequence[Request],
        encoded: Sequence[Encoded],
        results: list[list[Completion]],
        on_done: Callable[[int, list[Completion]], None] | None,
    ) -> None:
        rows = [self._row(i, sample, requests[i], encoded[i]) for i in batch for sample in range(requests[i].n)]
        waiting = {i: requests[i].n for i in batch}
        spare = max(self._room(requests[i].sampling) for i in batch)
        cache = Cache(layers=[_Layer(spare) for _ in range(self._text_config().num_hidden_layers)])
        logits_BV, mask_BS, next_B = self._prefill([encoded[i] for i in batch], cache)
        repeat = torch.tensor([k for k, i in enumerate(batch) for _ in range(requests[i].n)])
        logits_BV, mask_BS, next_B = logits_BV[repeat], mask_BS[repeat], next_B[repeat]
        self._keep(cache, repeat)
        while True:
            running = [row for row in rows if row.ended is None]
            token_B = self._choose(rows, logits_BV)
            for row in running:
                if row.ended is not None:
                    self._finish(row, requests, results, waiting, on_done)
            alive = [k for k, row in enumerate(rows) if row.ended is None]
            if not alive:
                return
            if len(alive) < 0.8 * len(rows):  # squeezing copies the cache, so ended rows ride along for a while
                kept = torch.tensor(alive)
                rows = [rows[k] for k in alive]
                token_B, next_B, mask_BS = token_B[kept], next_B[kept], mask_BS[kept]
                self._keep(cache, kept)
            mask_BS = torch.cat([mask_BS, mask_BS.new_zeros(len(rows), 1)], dim=1)
            logits_BV = self._decode(token_B, next_B, mask_BS, cache)
            next_B = next_B + 1

    def _text_config(self) -> Any:
        return self.loaded.model.model.language_model.config

    def _keep(self, cache: Cache, rows: Tensor) -> None:
        for layer in cache.layers:
            layer.keep(rows.to(layer.keys.device))

    def _room(self, sampling: Sampling) -> int:
        return sampling.thinking_budget + sampling.answer_budget + len(self._exit(sampling)) + 1

    def _exit(self, sampling: Sampling) -> list[int]:
        ids: list[int] = self.loaded.tokenizer.encode(sampling.exit_text, add_special_tokens=False)
        return ids

    def _row(self, request: int, sample: int, asked: Request, prompt: Encoded) -> _Row:
        sampling = asked.sampling
        noise = np.random.default_rng([sampling.seed, sample])  # its own stream: the crowd does not matter
        return _Row(request, sample, sampling, len(prompt.input_ids), noise)

    def _prefill(self, prompts: Sequence[Encoded], cache: Cache) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, V] after each prompt, the mask [B, S] to add, and each row's next position [B]."""
        model, device = self.loaded.model, self.loaded.device
        width = max(len(prompt.input_ids) for prompt in prompts)
        ids_BT = torch.zeros(len(prompts), width, dtype=torch.long)
        positions_3BT = torch.zeros(3, len(prompts), width, dtype=torch.long)
        pad_BT = torch.ones(len(prompts), width, dtype=torch.bool)
        for k, prompt in enumerate(prompts):
            start = width - len(prompt.input_ids)
            ids_BT[k, start:] = prompt.input_ids
            positions_3BT[:, k, start:] = prompt.position_ids
            pad_BT[k, start:] = False
        embedded = model.get_input_embeddings()(ids_BT.to(device))
        patches = [prompt.pixel_values for prompt in prompts if prompt.pixel_values is not None]
        if patches:
            pixels = torch.cat(patches).to(device, embedded.dtype)
            grids = torch.cat([p.image_grid_thw for p in prompts if p.image_grid_thw is not None]).to(device)
            merged = model.model.visual(pixels, grid_thw=grids).pooler_output.to(embedded.dtype)
            places = (ids_BT == model.config.image_token_id).to(device).unsqueeze(-1)
            embedded = embedded.masked_scatter(places, merged)
        later_TT = torch.ones(width, width, dtype=torch.bool).triu(1)
        hidden_BTT = (later_TT | pad_BT[:, None, :]) & ~torch.eye(width, dtype=torch.bool)
        mask = torch.zeros(len(prompts), 1, width, width).masked_fill_(hidden_BTT[:, None], MASKED)
        output = model.model.language_model(
            inputs_embeds=embedded,
            position_ids=positions_3BT.to(device),
            attention_mask=mask.to(device, embedded.dtype),
            past_key_values=cache,
            use_cache=True,
        )
        logits = model.lm_head(output.last_hidden_state[:, -1])
        mask_BS = torch.zeros(len(prompts), width).masked_fill_(pad_BT, MASKED).to(device, embedded.dtype)
        return logits, mask_BS, positions_3BT.amax(dim=(0, 2)) + 1

    def _decode(self, token_B: Tensor, next_B: Tensor, mask_BS: Tensor, cache: Cache) -> Tensor:
        """Logits [B, V] after one more token a row."""
        model, device = self.loaded.model, self.loaded.device
        config = self._text_config()
        before = config._attn_implementation
        config._attn_implementation = "xreasoner_grouped"
        try:
            output = model.model.language_model(
                inputs_embeds=model.get_input_embeddings()(token_B.to(device)[:, None]),
                position_ids=next_B.to(device)[None, :, None].expand(3, -1, 1),
                attention_mask=mask_BS[:, None, None, :],
                past_key_values=cache,
                use_cache=True,
            )
        finally:
            config._attn_implementation = before
        logits: Tensor = model.lm_head(output.last_hidden_state[:, -1])
        return logits

    def _choose(self, rows: Sequence[_Row], logits_BV: Tensor) -> Tensor:
        """The next token of each row [B], written down in the row; decides which rows end."""
        logits_BV = logits_BV.float()
        logits_BV[:, self.banned] = -torch.inf
        token_B = logits_BV.argmax(dim=-1)
        sampled = [
            k for k, row in enumerate(rows) if row.sampling.temperature > 0 and not row.queue and row.ended is None
        ]
        if sampled:
            uniform = torch.tensor([rows[k].noise.random() for k in sampled], dtype=torch.float64)
            token_B[sampled] = sample(
                logits_BV[sampled], [rows[k].sampling for k in sampled], uniform.to(logits_BV.device)
            )
        forced = [bool(row.queue) for row in rows]
        for k, row in enumerate(rows):
            if row.queue:
                token_B[k] = row.queue.pop(0)
        logprob_B = [0.0] * len(rows)
        if any(row.sampling.logprobs for row in rows):
            logprob_B = torch.log_softmax(logits_BV, dim=-1).gather(1, token_B[:, None])[:, 0].tolist()
        for row, token, logprob, was_forced in zip(rows, token_B.tolist(), logprob_B, forced, strict=True):
            if row.ended is None:
                self._append(row, token, 0.0 if was_forced else logprob, was_forced)
        return token_B.cpu()

    def _append(self, row: _Row, token: int, logprob: float, forced: bool) -> None:
        """Write one token down; close the thought, force the exit, or end the row where a budget says so."""
        sampling = row.sampling
        row.tokens.append(token)
        row.logprobs.append(logprob)
        row.forced.append(forced)
        if token in self.ends and not forced:
            row.ended = "forced" if row.was_forced else "natural"
            return
        piece = self._piece(token)
        if len(row.head) < 16:
            row.head += piece
        if not row.closed:
            row.thought_tokens += 1
            row.tail += piece
            row.closed = CLOSE in row.tail
            row.tail = row.tail[-len(CLOSE) :]
        if row.queue:
            return
        total = len(row.tokens)
        if not row.opened and total >= sampling.thinking_budget + sampling.answer_budget:
            row.ended = "truncated"
        elif row.closed:
            answered = total - row.thought_tokens - sum(row.forced[row.thought_tokens :])
            if answered >= sampling.answer_budget:
                row.ended = "truncated"
        elif row.opened and total >= sampling.thinking_budget:
            row.queue = self._exit(sampling)
            row.was_forced = True

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = self.loaded.tokenizer.decode([token])
        return self._pieces[token]

    def _finish(
        self,
        row: _Row,
        requests: Sequence[Request],
        results: list[list[Completion]],
        waiting: dict[int, int],
        on_done: Callable[[int, list[Completion]], None] | None,
    ) -> None:
        assert row.ended is not None
        text = self.loaded.tokenizer.decode(row.tokens, skip_special_tokens=True)
        trace = split(text)
        completion = Completion(
            text=text,
            token_ids=tuple(row.tokens),
            logprobs=tuple(row.logprobs) if row.sampling.logprobs else (),
            forced=tuple(row.forced),
            thought=trace.thought,
            answer=trace.answer if row.ended != "truncated" or trace.closed else "",
            exit=row.ended,
            prompt_tokens=row.prompt_tokens,
            thought_tokens=row.thought_tokens if row.opened or row.closed else 0,
            answer_tokens=len(row.tokens) - (row.thought_tokens if row.opened or row.closed else 0),
        )
        done = results[row.request]
        if not done:
            done.extend([completion] * requests[row.request].n)  # each sample then takes its own place
        done[row.sample] = completion
        waiting[row.request] -= 1
        if not waiting[row.request] and on_done:
            on_done(row.request, done)


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
    """Zero all but the top_k likeliest tokens and the smallest set whose mass reaches top_p."""
    ordered_V, index_V = probs_V.sort(descending=True)
    keep_V = ordered_V.cumsum(0) - ordered_V < sampling.top_p
    if sampling.top_k > 0:
        keep_V[sampling.top_k :] = False
    return torch.zeros_like(probs_V).scatter(0, index_V[keep_V], ordered_V[keep_V])
