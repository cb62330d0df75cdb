"""Attention in one row of several documents, none of which sees another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "xreasoner_documents"
"""The name under which transformers knows it."""


@dataclass(frozen=True, slots=True)
class Documents:
    """Where the N documents of a row of T tokens lie.

    lengths: of each; ends: [N + 1], int32, the first token of each and T; positions: [1, T], counted in each from 0.
    """

    lengths: tuple[int, ...]
    ends: Tensor
    positions: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Documents:
        ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        positions = torch.cat([torch.arange(length, device=device) for length in lengths])
        return cls(tuple(lengths), ends, positions[None])


def document_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    documents: Documents | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document; what sdpa does where no documents are given.

    query [1, H, T, D]; key and value [1, K, T, D] with K dividing H. Returns [1, T, H, D]. On a GPU in a half type it
    is FlashAttention's form for several lengths; elsewhere one call for each document, so its cost is the sum of the
    documents' squares and not the square of their sum.
    """
    if documents is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **rest)  # type: ignore[no-any-return]
    if query.is_cuda and query.dtype != torch.float32:
        from torch.nn.attention.varlen import varlen_attn  # brings torch's compiler: 1.7 s of every command's start

        longest, (query_THD, key_TKD, value_TKD) = (
            max(documents.lengths),
            (x[0].transpose(0, 1) for x in (query, key, value)),
        )
        found = varlen_attn(
            query_THD,
            key_TKD,
            value_TKD,
            documents.ends,
            documents.ends,
            longest,
            longest,
            scale=scaling,
            window_size=(-1, 0),
            enable_gqa=key.shape[1] != query.shape[1],
        )
        assert isinstance(found, Tensor)
        return found[None], None
    parts = zip(*(torch.split(x, list(documents.lengths), dim=2) for x in (query, key, value)), strict=True)
    found = torch.cat(
        [F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True) for q, k, v in parts],
        dim=2,
    )
    return found.transpose(1, 2), None


AttentionInterface.register(NAME, document_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
