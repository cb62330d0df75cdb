"""The torch engine's memory: keys and values of the rows that run, in slots of one preallocated cache.

All rows write the same column. A prompt is computed apart and its keys and values are laid into the columns just
before that one, so a row may join while others are in the middle of theirs; where a row begins, its mask says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

MASKED = torch.finfo(torch.float32).min
GROWTH = 256
"""Columns by which the cache grows: a budget of thousands of tokens is not paid for before it is used."""


class _Layer(DynamicLayer):  # type: ignore[misc]  # transformers is not checked
    """One layer's keys [R, K, D, C] and values [R, K, C, D]: R rows and C columns are allocated.

    Which are in use, `slots` says. Keys lie with their columns side by side, as the product with a query reads them.
    """

    def __init__(self, slots: Slots, index: int) -> None:
        super().__init__()
        self.slots, self.index = slots, index
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one token's keys and values [B, K, 1, D] at the slots' column; returns all of the rows in use."""
        keys_BKDS, values_BKSD = self.slots.write(self.index, key_states[:, :, 0], value_states[:, :, 0])
        return keys_BKDS.transpose(2, 3), values_BKSD

    def get_seq_length(self) -> int:
        return self.slots.end - self.slots.begin


class Slots:
    """Rows [0, rows) and columns [begin, end) are in use; the next token of every row is written at column `end`.

    mask: [R, C], added to the attention's scores: 0 where the row has a token, else the smallest float.
    """

    def __init__(self, layers: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rows = self.begin = self.end = 0
        self.dtype, self.device = dtype, device
        self.mask = torch.empty(0, 0, dtype=dtype, device=device)
        self.layers = [_Layer(self, index) for index in range(layers)]
        self.cache = Cache(layers=self.layers)
        self.first: list[int] = []
        """Each row's first column."""
        self.spoiled = False
        """Some row's numbers were not finite: a NaN that a mask hides still spoils every sum that it is part of."""
        self.sound = True
        """False while rows are being changed: where that failed in the middle, nothing here can be trusted."""

    def seat(self, prompts: Cache, pads: Sequence[int], repeat: Sequence[int], places: Sequence[int]) -> None:
        """Row places[j] begins with prompt repeat[j]; places are rows that have ended, and new ones at the end.

        prompts: keys and values [P, K, W, D] of P prompts, padded on the left; pads: how many columns of each are
        padding.
        """
        self.sound = False
        width = prompts.layers[0].keys.shape[2]
        rows = max(self.rows, max(places) + 1)
        self._make_room(rows, width, prompts)
        chosen, new = torch.tensor(repeat, device=self.device), torch.tensor(places, device=self.device)
        old = slice(self.end - width, self.end)
        for layer, prompt in zip(self.layers, prompts.layers, strict=True):
            picked, put = chosen.to(prompt.keys.device), new.to(layer.keys.device)
            if self.spoiled:
                layer.keys[put] = layer.values[put] = 0
            layer.keys[put, :, :, old] = prompt.keys.index_select(0, picked).transpose(2, 3)
            layer.values[put, :, old] = prompt.values.index_select(0, picked)
        self.first += [0] * (rows - self.rows)
        for place, prompt_index in zip(places, repeat, strict=True):
            self.first[place] = self.end - width + pads[prompt_index]
        first_B1 = torch.tensor([self.first[place] for place in places], device=self.device)[:, None]
        column_C = torch.arange(self.mask.shape[1], device=self.device)
        lowest = torch.finfo(self.dtype).min
        self.mask[new] = self.mask.new_zeros(len(places), len(column_C)).masked_fill_(column_C < first_B1, lowest)
        self.rows = rows
        self.begin = min(self.first)
        self.sound = True

    def write(self, layer: int, key_BKD: Tensor, value_BKD: Tensor) -> tuple[Tensor, Tensor]:
        """Write one token a row at the column; returns the layer's keys [B, K, D, S] and values [B, K, S, D]."""
        kept, rows, end = self.layers[layer], self.rows, self.end
        kept.keys[:rows, :, :, end] = key_BKD
        kept.values[:rows, :, end] = value_BKD
        return kept.keys[:rows, :, :, self.begin : end + 1], kept.values[:rows, :, self.begin : end + 1]

    def advance(self) -> None:
        """The token at column `end` is written in every row."""
        self.end += 1

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows alone, in this order."""
        if not rows:
            self.rows, self.first = 0, []
            self.begin = self.end
            return
        chosen = torch.tensor(rows, device=self.device)
        span = slice(self.begin, self.end)
        for layer in self.layers:
            picked = chosen.to(layer.keys.device)
            layer.keys[: len(rows), :, :, span] = layer.keys[..., span].index_select(0, picked)
            layer.values[: len(rows), :, span] = layer.values[:, :, span].index_select(0, picked)
        self.mask[: len(rows)] = self.mask.index_select(0, chosen)
        self.first = [self.first[k] for k in rows]
        self.rows, self.begin = len(rows), min(self.first)

    def open_column(self) -> Tensor:
        """Make sure that there is a column to write; returns the mask [B, S] that the next token is computed with."""
        if self.end >= self.mask.shape[1]:
            self._move(self.mask.shape[0], self.end - self.begin + GROWTH, self.end - self.begin)
        return self.mask[: self.rows, self.begin : self.end + 1]

    def _make_room(self, rows: int, width: int, prompts: Cache) -> None:
        """Allocate for so many rows, and so that `width` columns lie before the next one."""
        if not self.mask.numel():
            for layer, prompt in zip(self.layers, prompts.layers, strict=True):
                layer.keys = prompt.keys.new_empty(0, prompt.keys.shape[1], prompt.keys.shape[3], 0)
                layer.values = prompt.values.new_empty(0, prompt.values.shape[1], 0, prompt.values.shape[3])
        span = max(self.end - self.begin, width) if self.rows else width
        tall, wide = self.mask.shape
        if rows > tall or self.end < width:
            self._move(max(rows, min(2 * tall, rows + 64)), max(wide, span + GROWTH), span)
        elif not self.rows:
            self.begin = self.end = width  # nobody is there: start again at the left

    def _move(self, rows: int, columns: int, end: int) -> None:
        """A new allocation in which the columns in use end at `end`."""
        span = self.end - self.begin if self.rows else 0
        used, place = slice(self.begin, self.begin + span), slice(end - span, end)
        for layer in self.layers:
            keys = layer.keys.new_zeros(rows, *layer.keys.shape[1:3], columns)
            keys[: self.rows, :, :, place] = layer.keys[: self.rows, :, :, used]
            values = layer.values.new_zeros(rows, layer.values.shape[1], columns, layer.values.shape[3])
            values[: self.rows, :, place] = layer.values[: self.rows, :, used]
            layer.keys, layer.values = keys, values
        mask = torch.zeros(rows, columns, dtype=self.dtype, device=self.device)
        mask[: self.rows, place] = self.mask[: self.rows, used]
        mask[: self.rows, : end - span] = torch.finfo(self.dtype).min
        shift = end - span - self.begin
        self.first = [column + shift for column in self.first]
        self.begin, self.end, self.mask = end - span, end, mask
