"""Log-probabilities of given continuations: what `Engine.score` means, and how the torch engine computes it.

A text is not a row of tokens: after `<answer>` one tokenizer goes on with `A`, another has `>A` in one piece. So what
was given and the continuation are tokenised together, and all continuations are scored from the first token in which
one of them differs from what was given alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xreasoner.engines.base import Request
from xreasoner.engines.slots import MASKED
from xreasoner.errors import UserError
from xreasoner.models.loading import Encoded

if TYPE_CHECKING:
    from xreasoner.engines.torch_engine import TorchEngine


def common(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens the rows begin with in common."""
    return next((k for k, column in enumerate(zip(*rows, strict=False)) if len(set(column)) > 1), min(map(len, rows)))


def parted(
    tokenise: Callable[[str], list[int]], given: str, continuations: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    """The tokens that all continuations share with `given`, and each one's tokens behind them.

    Raises `UserError` for an empty continuation.
    """
    if not all(continuations):
        raise UserError("a continuation to score is empty; expected some text")
    whole = [tokenise(given + continuation) for continuation in continuations]
    shared = common([tokenise(given), *whole])
    return whole[0][:shared], [ids[shared:] for ids in whole]


def score(engine: TorchEngine, request: Request, given: str, continuations: Sequence[str]) -> list[float]:
    """See `engines.base.Engine.score`. Waits for the step that runs, and computes the prompt once."""
    if not continuations:
        return []
    tokenizer = engine.loaded.tokenizer
    shared, tails = parted(lambda text: tokenizer.encode(text, add_special_tokens=False), given, continuations)
    prompt = _longer(engine._encoded(request), shared)
    with engine._driving, torch.inference_mode():
        first_1V, cache, _, next_1 = engine._prefill([prompt])
        after_TV = _logprobs(engine, _tree(engine, cache, tails, int(next_1[0])))
        first_1V = _logprobs(engine, first_1V)
    found, at = [], 0
    for tail in tails:
        rows_LV = torch.cat([first_1V, after_TV[at : at + len(tail) - 1]])
        found.append(float(rows_LV.gather(1, torch.tensor(tail)[:, None]).sum()))
        at += len(tail)
    return found


def _longer(prompt: Encoded, ids: Sequence[int]) -> Encoded:
    """A prompt with the beginning of the reply behind it."""
    begin = int(prompt.position_ids.max()) + 1
    positions_3T = torch.arange(begin, begin + len(ids)).expand(3, -1)
    return Encoded(
        torch.cat([prompt.input_ids, torch.tensor(ids, dtype=torch.long)]),
        torch.cat([prompt.position_ids, positions_3T], dim=1),
        prompt.pixel_values,
        prompt.image_grid_thw,
    )


def _logprobs(engine: TorchEngine, logits_TV: Tensor) -> Tensor:
    """As when sampling: tokens that are never sampled have no share."""
    logits_TV = logits_TV.float()
    logits_TV[:, engine.banned] = -torch.inf
    return torch.log_softmax(logits_TV, dim=-1).cpu()


def _tree(engine: TorchEngine, cache: Any, tails: Sequence[Sequence[int]], begin: int) -> Tensor:
    """Logits [T, V] after each of the T tokens of all tails, which stand in one row and do not see each other."""
    model, device, dtype = engine.loaded.model, engine.loaded.device, engine._slots.dtype
    past = cache.get_seq_length()
    tail_T = torch.tensor([k for k, tail in enumerate(tails) for _ in tail])
    place_T = torch.tensor([place for tail in tails for place in range(len(tail))])
    hidden_TT = (tail_T[:, None] != tail_T) | (place_T[:, None] < place_T)
    mask_TS = torch.cat(
        [torch.zeros(len(tail_T), past), torch.zeros(hidden_TT.shape).masked_fill_(hidden_TT, MASKED)], 1
    )
    ids_T = torch.tensor([token for tail in tails for token in tail], device=device)
    output = model.model.language_model(
        inputs_embeds=model.get_input_embeddings()(ids_T[None]),
        position_ids=(begin + place_T).to(device).expand(3, 1, -1),
        attention_mask=mask_TS[None, None].to(device, dtype),
        past_key_values=cache,
        use_cache=True,
    )
    logits_TV: Tensor = model.lm_head(output.last_hidden_state[0])
    return logits_TV
