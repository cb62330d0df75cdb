"""Log-probabilities of given continuations: what `Engine.score` means, and how the torch engine computes it.

A text is not a row of tokens: after `<answer>` one tokenizer goes on with `A`, another has `>A` in one piece. So what
was given and the continuation are tokenised together, and all continuations are scored from the first token in which
one of them differs from what was given alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xreasoner.engines import failures
from xreasoner.engines.base import Request
from xreasoner.engines.failures import finite
from xreasoner.engines.slots import MASKED
from xreasoner.errors import UserError
from xreasoner.models.loading import Encoded, plain

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
    """See `engines.base.Engine.score`. Waits for the step that runs, and computes the prompt once.

    Replies go on between two parts of `TOGETHER` tokens, or of fewer where memory runs out. Raises `UserError` for what
    is longer than the model takes, and `NonFiniteError` for logits that are not finite.
    """
    if not continuations:
        return []
    encode, prompt = engine.loaded.tokenizer.encode, engine._encoded(request)
    shared, tails = parted(
        lambda text: encode(plain(engine.loaded, text), add_special_tokens=False),
        given.removeprefix(prompt.opening),
        continuations,
    )
    prompt = longer(prompt, shared)
    past, longest = len(prompt.input_ids), max(map(len, tails))
    most = engine.loaded.positions
    if past + longest > most:
        raise UserError(
            f"prompt and reply have {past} tokens, a continuation to score {longest}, and the model takes {most}"
        )
    with engine._driving, torch.inference_mode():
        first_1V, cache, _, next_1 = engine._prefill([prompt])
        first_1V = _logprobs(engine, first_1V, lambda _: f"after the prompt and the reply so far, {past} tokens")
    found: list[float] = []
    parts = deque(_parts(tails))
    while parts:
        part = parts.popleft()
        try:
            with engine._driving, torch.inference_mode():
                after_TV = _tree(engine, cache, part, int(next_1[0]), len(prompt.position_ids))
                after_TV = _logprobs(engine, after_TV, partial(_place, part, len(found)))
        except Exception as error:
            if not failures.is_out_of_memory(error) or len(part) < 2:
                raise
            failures.release_memory(error, engine.loaded.device)
            cache.crop(past)
            parts.extendleft((part[len(part) // 2 :], part[: len(part) // 2]))
            continue
        at = 0
        for tail in part:
            rows_LV = torch.cat([first_1V, after_TV[at : at + len(tail) - 1]])
            found.append(float(rows_LV.gather(1, torch.tensor(tail)[:, None]).sum()))
            at += len(tail)
        cache.crop(-at)
        time.sleep(0.001)  # a lock is not fair: whoever waits for it has it now
    return found


def _place(part: Sequence[list[int]], before: int, row: int) -> str:
    """Which continuation, counted from 1, the row's token belongs to."""
    tokens = [(number, at) for number, tail in enumerate(part, before + 1) for at in range(1, len(tail) + 1)]
    return "after token {1} of continuation {0}".format(*tokens[row])


TOGETHER = 1024
"""Tokens of continuations that are computed together: their mask has the square of it."""


def _parts(tails: Sequence[list[int]]) -> list[list[list[int]]]:
    """The tails in order, in parts of at most `TOGETHER` tokens, or of one tail."""
    found: list[list[list[int]]] = [[]]
    for tail in tails:
        if found[-1] and sum(map(len, found[-1])) + len(tail) > TOGETHER:
            found.append([])
        found[-1].append(tail)
    return found


def longer(prompt: Encoded, ids: Sequence[int]) -> Encoded:
    """A prompt with the beginning of the reply behind it."""
    begin = int(prompt.position_ids.max()) + 1
    positions_AT = torch.arange(begin, begin + len(ids)).expand(len(prompt.position_ids), -1)
    return replace(
        prompt,
        input_ids=torch.cat([prompt.input_ids, torch.tensor(ids, dtype=torch.long)]),
        position_ids=torch.cat([prompt.position_ids, positions_AT], dim=1),
    )


def _logprobs(engine: TorchEngine, logits_TV: Tensor, where: Callable[[int], str]) -> Tensor:
    """As when sampling: tokens that are never sampled have no share. Raises `NonFiniteError` that says where."""
    logits_TV = logits_TV.float()
    good = finite(logits_TV)
    if not all(good):
        row = good.index(False)
        raise failures.non_finite(f"{where(row)} the largest logit is {float(logits_TV[row].max())}")
    logits_TV[:, engine.banned] = -torch.inf
    return torch.log_softmax(logits_TV, dim=-1).cpu()


def _tree(engine: TorchEngine, cache: Any, tails: Sequence[Sequence[int]], begin: int, axes: int) -> Tensor:
    """Logits [T, V] after each of the T tokens of all tails, which stand in one row and do not see each other."""
    past = cache.get_seq_length()
    tail_T = torch.tensor([k for k, tail in enumerate(tails) for _ in tail])
    place_T = torch.tensor([place for tail in tails for place in range(len(tail))])
    hidden_TT = (tail_T[:, None] != tail_T) | (place_T[:, None] < place_T)
    mask_TS = torch.cat(
        [torch.zeros(len(tail_T), past), torch.zeros(hidden_TT.shape).masked_fill_(hidden_TT, MASKED)], 1
    )
    ids_T = torch.tensor([token for tail in tails for token in tail])
    positions_A1T = (begin + place_T).expand(axes, 1, -1)
    return engine.extend(ids_T[None], positions_A1T, mask_TS[None, None].to(engine.loaded.model.dtype), cache)[0]
