"""How long texts are: a lognormal distribution cut at a limit. A batch of rollouts ends with its longest reply."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

SPREAD = 0.7
"""Standard deviation of reply lengths over their mean, by default: at a mean of 979 tokens the longest of 128 replies
has 4,280."""
POINTS = 400
"""Lengths at which a distribution is looked at."""

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a text.

    mean: of the texts as they are, cut at `limit`. spread: standard deviation over mean before the cut. limit: the
    most; those that would be longer have it.
    """

    mean: float
    spread: float
    limit: int

    def longer_than(self, length: Array) -> Array:
        """The share of texts with more than so many tokens."""
        middle = self._middle()
        share = np.ones_like(length) if middle is None else _tail((np.log(np.maximum(length, 1e-9)) - middle) / self._s)
        return np.where(length < self.limit, share, 0.0)

    def expected_longest(self, count: float) -> float:
        """The mean length of the longest of so many texts."""
        grid = np.linspace(0, self.limit, POINTS)
        return float(np.trapezoid(1 - (1 - self.longer_than(grid)) ** count, grid))

    @property
    def square_over_mean(self) -> float:
        """E[L²] / E[L]: the length that the average token's text has, which is what attention costs."""
        grid = np.linspace(0, self.limit, POINTS)
        return float(np.trapezoid(2 * grid * self.longer_than(grid), grid)) / self.mean

    @property
    def _s(self) -> float:
        return math.sqrt(
            math.log(1 + max(self.spread, 1e-3) ** 2)
        )  # as good as equal: their logarithms are divided by it

    def _middle(self) -> float | None:
        """The logarithm of the median before the cut; None where all texts have the limit."""
        return _log_median(self.mean, self._s, self.limit)


def _tail(z: Array) -> Array:
    """1 − Φ(z)."""
    from scipy.special import ndtr

    found: Array = ndtr(-z)
    return found


@lru_cache(maxsize=64)
def _log_median(mean: float, s: float, limit: int) -> float | None:
    """By bisection: the mean after the cut grows with the median."""
    if mean >= 0.99 * limit:
        return None
    low, high = math.log(mean) - s * s - 1, math.log(limit) + 8 * s
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _mean_cut(middle, s, limit) < mean else (low, middle)
    return (low + high) / 2


def _mean_cut(middle: float, s: float, limit: int) -> float:
    """E[min(L, limit)] of a lognormal."""
    edge = (math.log(limit) - middle) / s
    below, above = 0.5 * math.erfc((s - edge) / math.sqrt(2)), 0.5 * math.erfc(edge / math.sqrt(2))
    return math.exp(middle + s * s / 2) * below + limit * above
