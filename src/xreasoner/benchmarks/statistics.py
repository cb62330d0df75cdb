"""How sure the numbers are: intervals, paired tests, ratios of gains. Numpy only; all functions are pure.

Shapes: N results, C items (clusters), R bootstrap resamples. A bootstrap draws whole items with replacement, so
several samples of one item count as one piece of evidence; its intervals are percentile intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
_CHUNK = 4_000_000


class Estimate(NamedTuple):
    """A value with its interval."""

    value: float
    low: float
    high: float


def _z(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; expected a share between 0 and 1, such as 0.95")
    return NormalDist().inv_cdf(0.5 + level / 2)


def wilson(correct: float, n: int, level: float = 0.95) -> Estimate:
    """Accuracy with Wilson's score interval; for independent items.

    (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n) with p = correct/n. Raises `ValueError` for n = 0.
    """
    if n <= 0 or not 0 <= correct <= n:
        raise ValueError(f"{correct} of {n} correct; expected 0 <= correct <= n and n >= 1")
    z, p = _z(level), correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Estimate(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)))


def by_item(values_N: ArrayLike, items_N: Sequence[Any]) -> tuple[Floats, Floats]:
    """Sums and counts of the values of each item: two arrays of shape (C,), in the order of the items' names.

    Results lie in the order in which they were finished, which no two runs share; a bootstrap must not depend on it.
    """
    values = np.asarray(values_N, dtype=np.float64)
    if values.ndim != 1 or len(values) != len(items_N) or len(values) == 0:
        raise ValueError(f"{values.shape} values for {len(items_N)} items; expected as many as items, and at least one")
    order = {item: index for index, item in enumerate(sorted(dict.fromkeys(items_N), key=repr))}
    index_N = np.fromiter((order[item] for item in items_N), dtype=np.intp, count=len(items_N))
    counts_C = np.bincount(index_N)
    return np.bincount(index_N, weights=values).astype(np.float64), counts_C.astype(np.float64)


@lru_cache(maxsize=4)
def _weights(n_items: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """How often each item is drawn in each resample: (R, C), every row sums to C. Kept: a table asks for few sizes."""
    share = np.full(n_items, 1 / n_items)
    return np.random.default_rng(seed).multinomial(n_items, share, size=resamples)


def _resampled_means(sums_KC: Sequence[Floats], counts_KC: Sequence[Floats], resamples: int, seed: int) -> Floats:
    """Means of K quantities over the same items under the same resamples: (K, R)."""
    n_items = len(sums_KC[0])
    step = max(1, _CHUNK // n_items)
    means = []
    for start in range(0, resamples, step):
        weights_RC = _weights(n_items, min(step, resamples - start), seed + start).astype(np.float64)
        means.append([weights_RC @ s / (weights_RC @ c) for s, c in zip(sums_KC, counts_KC, strict=True)])
    return np.concatenate([np.asarray(part) for part in means], axis=1)


def _percentiles(values_R: Floats, level: float) -> tuple[float, float]:
    low, high = np.quantile(values_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def accuracy(
    correct_N: ArrayLike, items_N: Sequence[Any], level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Accuracy over N results: Wilson's interval for one result an item, and where all results are alike (by items);
    else a bootstrap clustered by item.
    """
    sums_C, counts_C = by_item(correct_N, items_N)
    if len(sums_C) == len(items_N) or sums_C.sum() in (0, counts_C.sum()):
        return wilson(float((sums_C / counts_C).sum()), len(sums_C), level)
    means_R = _resampled_means([sums_C], [counts_C], resamples, seed)[0]
    return Estimate(float(sums_C.sum() / counts_C.sum()), *_percentiles(means_R, level))


def unseen(n: int, level: float = 0.95) -> float:
    """The share that items of a kind may have of which n items show none: Wilson's upper end for 0 of n."""
    return wilson(0, n, level).high


def paired_difference(
    after_N: ArrayLike,
    before_N: ArrayLike,
    items_N: Sequence[Any],
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Mean of after − before over paired results, with a bootstrap interval clustered by item.

    after_N, before_N: results of the same items in the same order; items_N: the id of each. Items that all differ alike
    (or not at all) have no spread to draw from: the interval then leaves room for the `unseen` others.
    """
    after, before = np.asarray(after_N, dtype=np.float64), np.asarray(before_N, dtype=np.float64)
    if after.shape != before.shape:
        raise ValueError(f"{after.shape} results after, {before.shape} before; expected pairs")
    sums_C, counts_C = by_item(after - before, items_N)
    value = float(sums_C.sum() / counts_C.sum())
    if np.ptp(sums_C / counts_C) == 0:
        room = unseen(len(sums_C), level)
        return Estimate(value, value - room * (1 + value), value + room * (1 - value))
    means_R = _resampled_means([sums_C], [counts_C], resamples, seed)[0]
    return Estimate(value, *_percentiles(means_R, level))


def mcnemar(after_N: ArrayLike, before_N: ArrayLike) -> float:
    """Exact two-sided p of McNemar's test on paired right/wrong results, one pair an item.

    With b pairs only right after and c only right before: p = min(1, 2·P(X ≤ min(b, c))), X ~ Binomial(b+c, ½).
    """
    after, before = np.asarray(after_N, dtype=bool), np.asarray(before_N, dtype=bool)
    if after.shape != before.shape:
        raise ValueError(f"{after.shape} results after, {before.shape} before; expected pairs")
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    n, k = gained + lost, min(gained, lost)
    tail = sum(math.comb(n, i) for i in range(k + 1))
    return min(1.0, 2 * tail / 2**n) if n else 1.0


def sign_flips(
    after_N: ArrayLike, before_N: ArrayLike, items_N: Sequence[Any], resamples: int = 9999, seed: int = 0
) -> float:
    """Two-sided p of a paired permutation test by item, for items with several samples (or scores between 0 and 1).

    Each item's summed difference gets a random sign: p = (1 + #{|T*| ≥ |T|}) / (1 + resamples), T the sum over items.
    """
    differences = np.asarray(after_N, dtype=np.float64) - np.asarray(before_N, dtype=np.float64)
    sums_C = by_item(differences, items_N)[0]
    rng, seen, step = np.random.default_rng(seed), 0, max(1, _CHUNK // len(sums_C))
    limit = abs(float(sums_C.sum())) - 1e-9
    for start in range(0, resamples, step):
        signs_RC = rng.integers(0, 2, size=(min(step, resamples - start), len(sums_C))) * 2.0 - 1.0
        seen += int((np.abs(signs_RC @ sums_C) >= limit).sum())
    return (1 + seen) / (1 + resamples)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: the i-th smallest of m times (m − i + 1), never falling."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def gain_ratio(
    image_gain_N: ArrayLike,
    image_items_N: Sequence[Any],
    text_gain_M: ArrayLike,
    text_items_M: Sequence[Any],
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Mean image gain ÷ mean text gain, with a bootstrap interval.

    The gains are after − before for each result. Where both sides have the same items, they are drawn together,
    else apart. The interval is (−inf, inf) where the text gain's own interval holds 0: a ratio over a gain that
    may be nothing says nothing; the value is NaN where the text gain is 0.
    """
    image, text = by_item(image_gain_N, image_items_N), by_item(text_gain_M, text_items_M)
    same = set(image_items_N) == set(text_items_M)
    if same:
        image_R, text_R = _resampled_means([image[0], text[0]], [image[1], text[1]], resamples, seed)
    else:
        image_R = _resampled_means([image[0]], [image[1]], resamples, seed)[0]
        text_R = _resampled_means([text[0]], [text[1]], resamples, seed + resamples)[0]
    text_gain = float(text[0].sum() / text[1].sum())
    value = float(image[0].sum() / image[1].sum()) / text_gain if text_gain else math.nan
    low, high = _percentiles(text_R, level)
    if low <= 0 <= high:
        return Estimate(value, -math.inf, math.inf)
    keep_R = np.sign(text_R) == np.sign(text_gain)
    return Estimate(value, *_percentiles(image_R[keep_R] / text_R[keep_R], level))


def detectable_paired(n: int, discordant: float, power: float = 0.8, level: float = 0.95) -> float:
    """The smallest paired difference that n items show with this power: (z_{level} + z_{power})·√(d/n).

    discordant: d, the share of items on which the two differ; it bounds the variance of a paired difference, and is
    taken to be at least what n items leave `unseen`: no difference seen is not none to be seen.
    """
    if n <= 0 or not 0 <= discordant <= 1 or not 0 < power < 1:
        raise ValueError(f"n={n}, discordant={discordant}, power={power}; expected n >= 1 and shares")
    share = max(discordant, unseen(n, level))
    return (_z(level) + NormalDist().inv_cdf(power)) * math.sqrt(share / n)
