"""How certain the numbers are: intervals, paired tests, ratios of gains. All functions are pure.

Shapes: N results, C clusters, R bootstrap resamples, S strata. A cluster is what was drawn independently: an item with
all its samples, or all items about one image or one problem. Inference is by cluster throughout: a bootstrap draws
whole clusters with replacement (expanded percentile intervals), a permutation test flips their signs together. Of
MathVerse's 3,940 items there are 788 problems; "95 %" intervals that count items cover the truth 72 % of the time.

A mean may be macro-averaged over strata (the benchmarks of a cell): the mean of the strata's means, each stratum
resampled by itself. Wilson's interval, McNemar's test and Holm's adjustment are statsmodels' and SciPy's; the
clustered bootstrap, which draws several quantities together, is ours and is tested against `scipy.stats.bootstrap`.
"""

from __future__ import annotations

import math
from collections import Counter
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


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; expected a share between 0 and 1, such as 0.95")


def _z(level: float) -> float:
    _check_level(level)
    return NormalDist().inv_cdf(0.5 + level / 2)


def wilson(correct: float, n: int, level: float = 0.95) -> Estimate:
    """Accuracy with Wilson's score interval, for independent results.

    Args:
        correct: how many are right; a sum of shares is allowed.
        n: how many there are, at least 1.
        level: the interval's nominal coverage.

    Raises:
        ValueError: for n = 0, or correct outside 0 to n.
    """
    from statsmodels.stats.proportion import proportion_confint  # seconds to import

    if n <= 0 or not 0 <= correct <= n:
        raise ValueError(f"{correct} of {n} correct; expected 0 <= correct <= n and n >= 1")
    _check_level(level)
    p = correct / n
    low, high = proportion_confint(correct, n, alpha=1 - level, method="wilson")
    return Estimate(p, min(p, max(0.0, float(low))), max(p, min(1.0, float(high))))


def by_cluster(values_N: ArrayLike, clusters_N: Sequence[Any]) -> tuple[Floats, Floats]:
    """Sums and counts of the values of each cluster: two arrays of shape (C,), in the order of the clusters' names.

    Results lie in the order in which they were finished, which no two runs share; a bootstrap must not depend on it.
    """
    values = np.asarray(values_N, dtype=np.float64)
    if values.ndim != 1 or len(values) != len(clusters_N) or len(values) == 0:
        raise ValueError(
            f"{values.shape} values for {len(clusters_N)} clusters; expected one cluster a value, and at least one"
        )
    order = {name: index for index, name in enumerate(sorted(dict.fromkeys(clusters_N), key=repr))}
    index_N = np.fromiter((order[name] for name in clusters_N), dtype=np.intp, count=len(clusters_N))
    counts_C = np.bincount(index_N)
    return np.bincount(index_N, weights=values).astype(np.float64), counts_C.astype(np.float64)


@lru_cache(maxsize=4)
def _weights(n_clusters: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """How often each cluster is drawn in each resample: (R, C), rows sum to C. Kept: a table asks for few sizes."""
    share = np.full(n_clusters, 1 / n_clusters)
    return np.random.default_rng(seed).multinomial(n_clusters, share, size=resamples)


def _resampled_means(sums_KC: Sequence[Floats], counts_KC: Sequence[Floats], resamples: int, seed: int) -> Floats:
    """Means of K quantities over the same clusters under the same resamples: (K, R)."""
    n_clusters = len(sums_KC[0])
    step = max(1, _CHUNK // n_clusters)
    means = []
    for start in range(0, resamples, step):
        weights_RC = _weights(n_clusters, min(step, resamples - start), seed + start).astype(np.float64)
        means.append([weights_RC @ s / (weights_RC @ c) for s, c in zip(sums_KC, counts_KC, strict=True)])
    return np.concatenate([np.asarray(part) for part in means], axis=1)


def _percentiles(values_R: Floats, level: float, clusters: int) -> tuple[float, float]:
    """The expanded percentile interval (Hesterberg 2015, section 5.1): percentiles that would give Student's interval
    where the values are normal, since a bootstrap of few clusters is too narrow.
    """
    tail = (1 - level) / 2
    if clusters > 1:
        tail = NormalDist().cdf(_student_quantile(tail, clusters - 1) * math.sqrt(clusters / (clusters - 1)))
    low, high = np.quantile(values_R, [tail, 1 - tail])
    return float(low), float(high)


@lru_cache(maxsize=1024)
def _student_quantile(tail: float, degrees: int) -> float:
    from scipy.special import stdtrit  # half a second to import

    return float(stdtrit(degrees, tail))


def accuracy(
    correct_N: ArrayLike, clusters_N: Sequence[Any], level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Accuracy over N results: Wilson's interval for one result a cluster, and where all results are alike (with the
    number of clusters as n); else a bootstrap by cluster.
    """
    sums_C, counts_C = by_cluster(correct_N, clusters_N)
    if len(sums_C) == len(clusters_N) or sums_C.sum() in (0, counts_C.sum()):
        return wilson(float((sums_C / counts_C).sum()), len(sums_C), level)
    means_R = _resampled_means([sums_C], [counts_C], resamples, seed)[0]
    return Estimate(float(sums_C.sum() / counts_C.sum()), *_percentiles(means_R, level, len(sums_C)))


def macro_mean(
    values_N: ArrayLike,
    clusters_N: Sequence[Any],
    strata_N: Sequence[Any],
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """The mean of the strata's means, each stratum resampled by itself; with one stratum, its mean.

    Strata whose values are all alike have no spread to draw from; they contribute their mean and, as in
    `paired_difference`, the room that their clusters leave for others.
    """
    strata = sorted(dict.fromkeys(strata_N), key=repr)
    means, spread_R, room, fewest = [], np.zeros(resamples), 0.0, len(clusters_N)
    values = np.asarray(values_N, dtype=np.float64)
    for k, stratum in enumerate(strata):
        member_N = [index for index, name in enumerate(strata_N) if name == stratum]
        sums_C, counts_C = by_cluster(values[member_N], [clusters_N[index] for index in member_N])
        means.append(float(sums_C.sum() / counts_C.sum()))
        fewest = min(fewest, len(sums_C))
        if np.ptp(sums_C / counts_C) == 0:
            room += unseen(len(sums_C), level) ** 2
        spread_R += _resampled_means([sums_C], [counts_C], resamples, seed + k * resamples)[0]
    value = float(np.mean(means))
    low, high = _percentiles(spread_R / len(strata), level, fewest)
    half = math.sqrt(room) / len(strata)
    return Estimate(value, value - math.hypot(value - low, half), value + math.hypot(high - value, half))


def macro_f1(golds_N: Sequence[str], predictions_N: Sequence[str], answers: Sequence[str]) -> float:
    """The mean over the answers of F1 = 2·TP / (2·TP + FP + FN); a prediction that is none of them is a miss."""
    scores = []
    for answer in answers:
        pairs = [(gold == answer, guess == answer) for gold, guess in zip(golds_N, predictions_N, strict=True)]
        hits, errors = sum(g and p for g, p in pairs), sum(g != p for g, p in pairs)
        scores.append(2 * hits / (2 * hits + errors) if hits or errors else 0.0)
    return sum(scores) / len(scores)


def unseen(n: int, level: float = 0.95) -> float:
    """The share that clusters of a kind may have of which n clusters show none: Wilson's upper end for 0 of n."""
    return wilson(0, n, level).high


def paired_difference(
    after_N: ArrayLike,
    before_N: ArrayLike,
    clusters_N: Sequence[Any],
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Mean of after − before over paired results, with a bootstrap interval by cluster.

    after_N, before_N: results of the same items in the same order; clusters_N: the cluster of each. Clusters that all
    differ alike (or not at all) have no spread to draw from: the interval then leaves room for the `unseen` others.
    """
    after, before = _pairs(after_N, before_N)
    sums_C, counts_C = by_cluster(after - before, clusters_N)
    value = float(sums_C.sum() / counts_C.sum())
    if np.ptp(sums_C / counts_C) == 0:
        room = unseen(len(sums_C), level)
        return Estimate(value, value - room * (1 + value), value + room * (1 - value))
    means_R = _resampled_means([sums_C], [counts_C], resamples, seed)[0]
    return Estimate(value, *_percentiles(means_R, level, len(sums_C)))


def _pairs(after_N: ArrayLike, before_N: ArrayLike) -> tuple[Floats, Floats]:
    after, before = np.asarray(after_N, dtype=np.float64), np.asarray(before_N, dtype=np.float64)
    if after.shape != before.shape:
        raise ValueError(f"{after.shape} results after, {before.shape} before; expected pairs")
    return after, before


def mcnemar(after_N: ArrayLike, before_N: ArrayLike) -> float:
    """Exact two-sided p of McNemar's test on paired right/wrong results, one pair a cluster.

    With b pairs only right after and c only right before, it is the binomial test of min(b, c) of b + c at ½.
    """
    from scipy.stats import binomtest  # a second to import

    after, before = _pairs(after_N, before_N)
    gained, lost = int(((after > 0) & (before == 0)).sum()), int(((before > 0) & (after == 0)).sum())
    return float(binomtest(min(gained, lost), gained + lost, 0.5).pvalue) if gained + lost else 1.0


def sign_flips(
    after_N: ArrayLike,
    before_N: ArrayLike,
    clusters_N: Sequence[Any],
    strata_N: Sequence[Any] | None = None,
    resamples: int = 9999,
    seed: int = 0,
) -> float:
    """Two-sided p of a paired permutation test by cluster; the counterpart of McNemar's for clustered pairs.

    Each cluster's summed difference gets a random sign: p = (1 + #{|T*| ≥ |T|}) / (1 + resamples), T the sum over
    clusters. Its large-sample form is the test of clustered matched pairs of Durkalski et al. (2003),
    (Σ(b−c))² / Σ(b−c)² with sums over clusters. strata_N: T is the sum of the strata's means.
    """
    after, before = _pairs(after_N, before_N)
    differences = after - before
    if strata_N is not None:
        sizes = Counter(strata_N)
        differences = differences / np.asarray([sizes[name] for name in strata_N])
    sums_C = by_cluster(differences, clusters_N)[0]
    rng, seen, step = np.random.default_rng(seed), 0, max(1, _CHUNK // len(sums_C))
    limit = abs(float(sums_C.sum())) * (1 - 1e-9) - 1e-12
    for start in range(0, resamples, step):
        signs_RC = rng.integers(0, 2, size=(min(step, resamples - start), len(sums_C))) * 2.0 - 1.0
        seen += int((np.abs(signs_RC @ sums_C) >= limit).sum())
    return (1 + seen) / (1 + resamples)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given."""
    from statsmodels.stats.multitest import multipletests  # seconds to import

    return [float(p) for p in multipletests(p_values, method="holm")[1]] if len(p_values) else []


def gain_ratio(
    image_gain_N: ArrayLike,
    image_clusters_N: Sequence[Any],
    text_gain_M: ArrayLike,
    text_clusters_M: Sequence[Any],
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Mean image gain ÷ mean text gain, with a bootstrap interval by cluster.

    The gains are after − before for each result. Where both sides have the same clusters, they are drawn together,
    else apart. The interval is (−inf, inf) where the text gain's own interval holds 0: a ratio over a gain that
    may be nothing says nothing; the value is NaN where the text gain is 0.
    """
    image, text = by_cluster(image_gain_N, image_clusters_N), by_cluster(text_gain_M, text_clusters_M)
    same = set(image_clusters_N) == set(text_clusters_M)
    if same:
        image_R, text_R = _resampled_means([image[0], text[0]], [image[1], text[1]], resamples, seed)
    else:
        image_R = _resampled_means([image[0]], [image[1]], resamples, seed)[0]
        text_R = _resampled_means([text[0]], [text[1]], resamples, seed + resamples)[0]
    text_gain = float(text[0].sum() / text[1].sum())
    value = float(image[0].sum() / image[1].sum()) / text_gain if text_gain else math.nan
    low, high = _percentiles(text_R, level, len(text[0]))
    if low <= 0 <= high:
        return Estimate(value, -math.inf, math.inf)
    keep_R = np.sign(text_R) == np.sign(text_gain)
    return Estimate(value, *_percentiles(image_R[keep_R] / text_R[keep_R], level, len(image[0])))


def design_effect(values_N: ArrayLike, clusters_N: Sequence[Any]) -> float:
    """How many times larger the variance of the mean is than if all results were independent; at least 1.

    The cluster-robust variance, C/(C−1) · Σ_c (Σ_i (x_i − x̄))² / N², over the ordinary one, Σ_i (x_i − x̄)² / N².
    1 where it cannot be told: one cluster, or no spread.
    """
    values = np.asarray(values_N, dtype=np.float64)
    residuals = values - values.mean()
    ordinary = float((residuals**2).sum())
    sums_C = by_cluster(residuals, clusters_N)[0]
    if len(sums_C) < 2 or ordinary == 0:
        return 1.0
    return max(1.0, float((sums_C**2).sum()) * len(sums_C) / (len(sums_C) - 1) / ordinary)


def detectable_paired(
    n: int,
    discordant: float,
    power: float = 0.8,
    level: float = 0.95,
    clusters: int | None = None,
    design: float = 1.0,
) -> float:
    """The smallest paired difference that n items show with this power: (z_{level} + z_{power})·√(D·d/n).

    discordant: d, the share of items on which the two differ; it bounds the variance of a paired difference, and is
    taken to be at least what the clusters leave `unseen`: no difference seen is not none to be seen. clusters: how
    many there are (default: n). design: D, the `design_effect`.
    """
    clusters = n if clusters is None else clusters
    if n <= 0 or not 0 <= discordant <= 1 or not 0 < power < 1 or not 1 <= clusters <= n:
        raise ValueError(
            f"n={n}, clusters={clusters}, discordant={discordant}, power={power}; "
            "expected 1 <= clusters <= n, and shares"
        )
    share = max(discordant, unseen(clusters, level))
    return (_z(level) + NormalDist().inv_cdf(power)) * math.sqrt(design * share / n)
