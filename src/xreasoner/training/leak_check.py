"""Proof, before step 1, that no document of a batch sees another.

Two checks on three of the stage's own documents. The exact one changes one document's tokens: shapes and kernels stay
the same, so the hidden states of every other document must stay equal to the bit, in any precision. The approximate
one compares each document in the batch with itself alone, which also covers its positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from xreasoner.data.packing import flat, hidden_states, pad
from xreasoner.errors import NonFiniteError, TrainingError
from xreasoner.models.attention import Documents
from xreasoner.training.common import first_non_finite
from xreasoner.training.rl import reply_states

Ids = Sequence[int]
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest difference between a document alone and in a batch, as a share of the largest hidden state, by precision."""


@torch.no_grad()
def check_documents(model: Any, rows: Sequence[Ids], packed: bool, precision: str) -> float:
    """Check a padded batch or a packed row, as SFT and packed RL compute them.

    Args:
        model: the model; its attention takes documents already where rows are packed.
        rows: token ids of the stage's texts; the shortest, middle and longest of the first 64 are used.
        packed: whether the stage packs.
        precision: what is computed in.

    Returns:
        The largest relative difference between a document alone and in the batch.

    Raises:
        TrainingError: a document's hidden states depend on another document.
    """
    device = _device(model)
    documents = pick_three(rows)
    lengths = [len(row) for row in documents]

    def states(rows: Sequence[Ids]) -> list[Tensor]:
        if packed:
            found = hidden_states(model, flat(rows, device), Documents.of(lengths, device))
            return list(torch.split(found[0], lengths))
        found = hidden_states(model, pad(rows, device))
        return [found[k, :length] for k, length in enumerate(lengths)]

    alone = [hidden_states(model, pad([row], device))[0] for row in documents]
    readers = [{k} for k in range(len(documents))]
    return _check(model, states, documents, readers, alone, TOLERANCE[precision])


@torch.no_grad()
def check_shared_prompts(model: Any, prompts: Sequence[Ids], precision: str) -> float:
    """Check padded RL, where two replies share a computed prompt; the replies are made of the prompts' own tokens.

    Args:
        model: the model.
        prompts: token ids of the stage's prompts.
        precision: what is computed in.

    Returns:
        The largest relative difference between a reply alone and in the batch.

    Raises:
        TrainingError: a reply's hidden states depend on another reply or on another group's prompt.
    """
    device = _device(model)
    first, *_, last = pick_three(prompts)
    replies = [ids[: max(2, len(ids) // part)] for ids in (first, last) for part in (1, 2)]
    lengths = [len(ids) for ids in replies]

    def states(documents: Sequence[Ids]) -> list[Tensor]:
        found = reply_states(model, documents[:2], pad(documents[2:], device), lengths, (0, 0, 1, 1), 2)
        return [found[k, :length] for k, length in enumerate(lengths)]

    texts = [(prompt, replies[2 * group + k]) for group, prompt in enumerate((first, last)) for k in range(2)]
    alone = [hidden_states(model, pad([[*prompt, *reply]], device))[0, len(prompt) - 1 : -1] for prompt, reply in texts]
    readers = [{0, 1}, {2, 3}, *({k} for k in range(4))]
    return _check(model, states, [first, last, *replies], readers, alone, TOLERANCE[precision])


def pick_three(rows: Sequence[Ids]) -> list[Ids]:
    """The shortest, the middle and the longest of the first 64."""
    ordered = sorted(rows[:64], key=len)
    return [ordered[0], ordered[len(ordered) // 2], ordered[-1]]


def _device(model: Any) -> torch.device:
    device: torch.device = model.get_input_embeddings().weight.device  # the vision tower is elsewhere
    return device


def _check(
    model: Any,
    states: Callable[[Sequence[Ids]], list[Tensor]],
    documents: Sequence[Ids],
    readers: Sequence[set[int]],
    alone: Sequence[Tensor],
    tolerance: float,
) -> float:
    """Both checks; readers[k] are the outputs that may depend on document k."""
    batched = states(documents)
    if not all(bool(torch.isfinite(found).all()) for found in batched):
        broken = first_non_finite(model)
        cause = "set precision: float32" if broken is None else f"the weight {broken} is not; check the model's files"
        raise NonFiniteError(f"the model's hidden states are not finite before step 1: {cause}")
    for k, document in enumerate(documents):
        changed = states([*documents[:k], _other_tokens(model, document), *documents[k + 1 :]])
        for other in range(len(batched)):
            if other not in readers[k]:
                _check_unmoved(model, batched[other], changed[other], tolerance)
    gap = max(_relative(found, expected) for found, expected in zip(batched, alone, strict=True))
    if not gap <= tolerance:
        raise TrainingError(
            f"batched examples do not equal the same ones alone: relative difference {gap:.2g}, expected below "
            f"{tolerance}; check the attention implementation ({model.config._attn_implementation})"
        )
    return gap


def _check_unmoved(model: Any, before: Tensor, after: Tensor, tolerance: float) -> None:
    """Raise `TrainingError` where another document's tokens moved these hidden states.

    Experts compute the tokens that are routed to them together, so that there the shapes change with the tokens.
    """
    if torch.equal(before, after):
        return
    gap = _relative(after, before)
    if "moe" in model.config.model_type and gap <= tolerance:
        return
    raise TrainingError(
        f"documents see each other: other tokens in one move another's hidden states by {gap:.2g} of their scale, "
        f"expected 0; check the attention implementation ({model.config._attn_implementation}), or set batching: padded"
    )


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _other_tokens(model: Any, ids: Ids) -> list[int]:
    """As many tokens, each another one."""
    size = len(model.get_input_embeddings().weight)
    return [(token + 1) % size for token in ids]
