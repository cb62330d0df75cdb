"""What engines do with failures: whose they are, whether memory ran out, and what many requests together report."""

from __future__ import annotations

import gc
import math
import traceback
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from xreasoner.completion import Completion
from xreasoner.errors import EngineError, NonFiniteError, OutOfMemoryError, RequestsError, XReasonerError

_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "failed to allocate",
    "alloc_failed",
)
DTYPE_ADVICE = "try dtype=float32 (or bfloat16, whose range is that of float32), and check the checkpoint's weights"


class Handle(Protocol):
    """The part of a request's handle that `results` reads."""

    error: BaseException | None

    @property
    def completions(self) -> list[Completion]: ...


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or in the machine: a smaller batch may fit."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError | OSError) and any(words in text for words in _OUT_OF_MEMORY)


def release_memory(error: BaseException, device: torch.device) -> None:
    """Let go of the tensors that the frames of a failed computation hold, so that a retry has their memory."""
    seen: set[int] = set()
    chain: BaseException | None = error
    while chain is not None and id(chain) not in seen:
        seen.add(id(chain))
        traceback.clear_frames(chain.__traceback__)
        chain = chain.__cause__ or chain.__context__
    if is_out_of_memory(error):
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def out_of_memory(error: BaseException, prompt_tokens: int, images: int, length: int) -> OutOfMemoryError:
    """The error of a request that did not fit even alone: what it needed, and what to lower."""
    shown = f" and {images} image{'s' * (images > 1)}" if images else ""
    lower = "max_pixels or the number of images, " if images else ""
    text = " ".join(str(error).split())[:200] or type(error).__name__
    found = OutOfMemoryError(
        f"out of memory for one request alone, whose prompt has {prompt_tokens} tokens{shown} and which takes up to "
        f"{length} tokens ({text}); lower {lower}the thinking budget or the prompt's length, or use a smaller dtype "
        "(bfloat16) or more memory"
    )
    found.__cause__ = error
    return found


def non_finite(where: str) -> NonFiniteError:
    """The error for numbers that are not finite. where: which numbers, of which request and token."""
    return NonFiniteError(f"the model's numbers are not finite: {where}; {DTYPE_ADVICE}")


def finite(logits_BV: Tensor) -> list[bool]:
    """Whether each row's logits [B, V] are numbers to choose by.

    NaN, +infinity, and the same value everywhere are not: the last is what sums that overflow before a norm leave. One
    -infinity among other values is: its token has no chance, as banned ones have none.
    """
    if logits_BV.device.type == "cpu" and logits_BV.dtype == torch.float32:
        values: Any = logits_BV.numpy()  # where a step is short, torch's operators would be a share of it
        low, high = values.min(axis=-1), values.max(axis=-1)
    else:
        low, high = logits_BV.aminmax(dim=-1)
    # a comparison with NaN is false
    good: list[bool] = ((low < high) & (high < math.inf)).tolist()
    return good


def check_logprobs(logprobs: Sequence[float], where: str) -> None:
    """Raise `NonFiniteError` for a log-probability that is NaN or +infinity; -infinity is a probability of zero."""
    for k, value in enumerate(logprobs):
        if math.isnan(value) or value == math.inf:
            raise non_finite(f"log-probability {k + 1} of {len(logprobs)} {where} is {value}")


def results(outcomes: Sequence[Handle | Exception]) -> list[list[Completion]]:
    """What `generate` returns once all of its requests have ended; an exception stands for one that never began.

    Raises:
        Exception: the first request's own error, where all failed in the same way.
        RequestsError: some of many failed; it names them.
    """
    failed: dict[int, Exception] = {}
    for k, outcome in enumerate(outcomes):
        error = outcome if isinstance(outcome, Exception) else outcome.error
        if isinstance(error, Exception):
            failed[k] = error
        elif error is not None:
            raise error
    if failed and len(failed) == len(outcomes) and len({type(error) for error in failed.values()}) == 1:
        raise failed[0]  # of one request, or what befell them all: a dead server, weights that are NaN
    if failed:
        raise RequestsError(failed, len(outcomes))
    return [outcome.completions for outcome in outcomes if not isinstance(outcome, Exception)]


def stopped(error: BaseException) -> Exception:
    """What those learn who wait for an engine that was stopped: Ctrl-C is its thread's alone, not theirs."""
    return error if isinstance(error, Exception) else EngineError(f"the engine was stopped ({type(error).__name__})")


def describe(error: Exception, where: str) -> None:
    """Add where an error happened, for those whose message says nothing of the request."""
    if not isinstance(error, XReasonerError) and where not in getattr(error, "__notes__", ()):
        error.add_note(where)


class Noise:
    """The uniform numbers that one sample is drawn with: one for each position at which a token is sampled.

    Asked again for the same position it gives the same number, so a step that is repeated after a failure draws the
    same token.
    """

    def __init__(self, *seed: int) -> None:
        self._generator: Any = np.random.default_rng(list(seed))
        self._position, self._number = -1, 0.0

    def at(self, position: int) -> float:
        """The number for a position; positions are asked for in order, and only where a token is sampled."""
        if position != self._position:
            self._position, self._number = position, self._generator.random()
        return self._number
