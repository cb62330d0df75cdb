"""Intervals and tests against hand-computed values and against what must hold for any data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, norm, t

from xreasoner.benchmarks import statistics

bits = st.lists(st.integers(0, 1), min_size=1, max_size=40)


def test_wilson_agrees_with_the_textbook() -> None:
    p, low, high = statistics.wilson(81, 263)  # Newcombe (1998), table I: 0.3080, 0.2553 to 0.3662
    assert (round(p, 4), round(low, 4), round(high, 4)) == (0.3080, 0.2553, 0.3662)
    assert statistics.wilson(0, 20).low == 0
    assert statistics.wilson(0, 20).high == pytest.approx(0.1611, abs=1e-4)
    with pytest.raises(ValueError, match="n >= 1"):
        statistics.wilson(0, 0)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_narrows(case: tuple[int, int]) -> None:
    correct, n = case
    p, low, high = statistics.wilson(correct, n)
    assert 0 <= low <= p <= high <= 1
    wider = statistics.wilson(correct, n, level=0.99)
    assert wider.low <= low
    assert high <= wider.high


def test_accuracy_clusters_several_samples_of_an_item() -> None:
    correct = [1] * 50 + [0] * 50
    alone = statistics.accuracy(correct, list(range(100)))
    assert alone == statistics.wilson(50, 100)
    ten_items = statistics.accuracy(correct, [i // 10 for i in range(100)])
    assert ten_items.value == 0.5
    assert ten_items.high - ten_items.low > 2 * (alone.high - alone.low)


def test_paired_difference_is_near_the_normal_interval() -> None:
    rng = np.random.default_rng(1)
    before = rng.random(800) < 0.3
    after = before | (rng.random(800) < 0.4)
    found = statistics.paired_difference(after, before, list(range(800)))
    d = after.astype(float) - before
    half = 1.96 * d.std() / math.sqrt(800)
    assert found.value == pytest.approx(d.mean())
    assert found.low == pytest.approx(d.mean() - half, abs=0.006)
    assert found.high == pytest.approx(d.mean() + half, abs=0.006)


@settings(deadline=None, max_examples=40)
@given(bits, st.integers(0, 3))
def test_paired_difference_of_equal_results_is_nothing(results: list[int], seed: int) -> None:
    alike = statistics.paired_difference(results, results, range(len(results)), resamples=50, seed=seed)
    room = statistics.wilson(0, len(results)).high
    assert alike == pytest.approx((0, -room, room))
    flipped = [1 - r for r in results]
    there = statistics.paired_difference(results, flipped, range(len(results)), resamples=50, seed=seed)
    back = statistics.paired_difference(flipped, results, range(len(results)), resamples=50, seed=seed)
    assert there.value == -back.value
    assert there.low == pytest.approx(-back.high)


def test_mcnemar_by_hand() -> None:
    def pairs(gained: int, lost: int, same: int = 5) -> float:
        after = [1] * gained + [0] * lost + [1] * same
        before = [0] * gained + [1] * lost + [1] * same
        return statistics.mcnemar(after, before)

    assert pairs(0, 0) == 1
    assert pairs(5, 0) == pytest.approx(2 / 2**5)
    assert pairs(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 2**10)
    assert pairs(2, 8) == pairs(8, 2)
    assert pairs(3, 3) == 1
    assert 0 < pairs(900, 300) < 1e-60


def test_the_tests_agree_with_scipy_and_statsmodels() -> None:
    """Values of statsmodels 0.14 (mcnemar, multipletests) and scipy 1.16 (permutation_test, bootstrap)."""

    def pairs(lost: int, gained: int) -> float:
        return statistics.mcnemar([0] * lost + [1] * gained + [1] * 9, [1] * lost + [0] * gained + [1] * 9)

    assert pairs(12, 25) == pytest.approx(0.04703102743951604, abs=1e-12)
    assert pairs(3, 11) == pytest.approx(0.057373046875, abs=1e-12)
    differences = [1, 1, 1, 1, 1, 0, -1, 1, 0, 0, 1, 0.5]
    found = statistics.sign_flips(differences, [0] * 12, range(12), resamples=60_000)
    assert found == pytest.approx(0.0390625, abs=0.003)
    bootstrap = statistics.paired_difference([1] * 60 + [0] * 140, [0] * 180 + [1] * 20, range(200), resamples=20_000)
    assert bootstrap.low == pytest.approx(0.115, abs=0.0051)
    assert bootstrap.high == pytest.approx(0.285, abs=0.0051)


def _mathverse_like(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """788 problems in five versions: a problem is easy or hard in all of them."""
    ease_C = rng.beta(0.5, 0.5, size=788)
    return (rng.random((788, 5)) < ease_C[:, None]).ravel().astype(float), np.repeat(np.arange(788), 5), 0.5


def _slake_like(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """96 images with about eleven questions each: what cannot be seen in an image fails several of them."""
    sizes_C = rng.integers(6, 17, size=96)
    ease_N = np.repeat(rng.beta(2.0, 1.0, size=96), sizes_C)
    return (rng.random(len(ease_N)) < ease_N).astype(float), np.repeat(np.arange(96), sizes_C), 2 / 3


@pytest.mark.parametrize("draw", [_mathverse_like, _slake_like])
def test_clustered_intervals_cover_the_truth_about_as_often_as_they_say(draw: Any) -> None:
    """Intervals by item, on the same data, do not."""
    rng, by_cluster, by_item, rounds = np.random.default_rng(11), 0, 0, 1500
    for _ in range(rounds):
        correct, clusters, truth = draw(rng)
        found = statistics.accuracy(correct, clusters.tolist(), resamples=600)
        by_cluster += found.low <= truth <= found.high
        alone = statistics.wilson(correct.sum(), len(correct))
        by_item += alone.low <= truth <= alone.high
    assert 0.93 <= by_cluster / rounds <= 0.97
    assert by_item / rounds < 0.85


def test_the_clustered_bootstrap_is_scipys() -> None:
    rng = np.random.default_rng(4)
    correct, clusters, _ = _slake_like(rng)
    sums, counts = statistics.by_cluster(correct, clusters.tolist())
    theirs = bootstrap(
        (sums, counts),
        lambda s, c, axis: s.sum(axis=axis) / c.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=1 - 2 * float(norm.cdf(t.ppf(0.025, 95) * math.sqrt(96 / 95))),
        n_resamples=20_000,
        rng=1,
    )
    ours = statistics.accuracy(correct, clusters.tolist(), resamples=20_000)
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.002)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.002)


def test_paired_tests_by_cluster_keep_their_level() -> None:
    """Two models that are equally good, right and wrong on whole images: McNemar's test by item rejects too often."""
    rng, by_cluster, by_item, rounds = np.random.default_rng(6), 0, 0, 300
    for _ in range(rounds):
        clusters = np.repeat(np.arange(60), 8)
        shift = np.repeat(rng.integers(-1, 2, size=60), 8) * (rng.random(480) < 0.8)
        after, before = (shift > 0).astype(float), (shift < 0).astype(float)
        by_cluster += statistics.sign_flips(after, before, clusters.tolist(), resamples=499) <= 0.05
        by_item += statistics.mcnemar(after, before) <= 0.05
    assert by_cluster / rounds < 0.09
    assert by_item / rounds > 0.3


def test_design_effect_of_copies_and_of_independent_results() -> None:
    rng = np.random.default_rng(8)
    values = rng.integers(0, 2, size=300).astype(float)
    copies = np.repeat(values, 5)
    assert statistics.design_effect(copies, np.repeat(np.arange(300), 5).tolist()) == pytest.approx(5, rel=0.01)
    assert statistics.design_effect(values, list(range(300))) == pytest.approx(1, abs=0.01)
    assert statistics.design_effect([1.0] * 9, [0, 1, 2] * 3) == 1
    single = statistics.detectable_paired(1500, 0.2)
    clustered = statistics.detectable_paired(1500, 0.2, clusters=300, design=5.0)
    assert clustered == pytest.approx(single * math.sqrt(5))
    with pytest.raises(ValueError, match="clusters"):
        statistics.detectable_paired(10, 0.2, clusters=11)


def test_a_macro_mean_weighs_benchmarks_alike() -> None:
    rng = np.random.default_rng(9)
    large, small = (rng.random(2000) < 0.8).astype(float), (rng.random(100) < 0.2).astype(float)
    values, strata = np.concatenate([large, small]), ["large"] * 2000 + ["small"] * 100
    found = statistics.macro_mean(values, list(range(2100)), strata)
    assert found.value == pytest.approx((large.mean() + small.mean()) / 2)
    half = 1.96 * math.sqrt(large.var() / 2000 + small.var() / 100) / 2
    assert found.low == pytest.approx(found.value - half, abs=0.006)
    assert found.high == pytest.approx(found.value + half, abs=0.006)
    one = statistics.macro_mean(small, list(range(100)), ["small"] * 100)
    assert one == pytest.approx(statistics.paired_difference(small, np.zeros(100), list(range(100))))
    alike = statistics.macro_mean([1.0] * 8, list(range(8)), ["a"] * 4 + ["b"] * 4)
    assert alike.low < 0.8


def test_wilson_mcnemar_and_holm_by_their_formulas() -> None:
    z = 1.959963984540054
    for correct, n in ((0, 3), (7, 9), (400, 1000)):
        p = correct / n
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        assert statistics.wilson(correct, n)[1:] == pytest.approx((max(0, centre - half), centre + half))


def test_holm_agrees_with_statsmodels_and_orders() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005, 0.2]) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.2])
    assert statistics.holm([]) == []
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]


@settings(deadline=None, max_examples=15)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_never_lowers_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = statistics.holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    assert sorted(adjusted) == [adjusted[i] for i in order]


def test_sign_flips_count_items_and_not_samples() -> None:
    after, items = [1] * 30, [i // 10 for i in range(30)]
    assert statistics.sign_flips(after, [0] * 30, items) == pytest.approx(0.25, abs=0.02)  # 2 of 2³ sign patterns
    assert statistics.sign_flips(after, after, items) == 1


def test_items_that_are_all_alike_are_no_certainty() -> None:
    """A bootstrap of six items that were never right says 0 to 0."""
    several = [item for item in range(6) for _ in range(4)]
    assert statistics.accuracy([0] * 24, several) == statistics.wilson(0, 6)
    assert statistics.accuracy([1] * 24, several) == statistics.wilson(6, 6)
    fixed = statistics.paired_difference([1] * 6, [0] * 6, range(6))
    assert fixed == pytest.approx((1, 1 - 2 * statistics.wilson(0, 6).high, 1))
    assert statistics.detectable_paired(6, 0.0) > 0.6
    assert statistics.detectable_paired(10_000, 0.0) < 0.001
    assert statistics.detectable_paired(500, 0.02) == pytest.approx(2.8016 * math.sqrt(0.02 / 500), abs=1e-5)


def test_the_order_in_which_results_were_finished_changes_nothing() -> None:
    rng = np.random.default_rng(5)
    text = rng.random(60).round()
    image, order = text * rng.random(60).round(), rng.permutation(60)
    items = [("bench", f"item-{i}") for i in range(60)]
    other = [items[i] for i in order]
    assert statistics.paired_difference(image, text, items) == statistics.paired_difference(
        image[order], text[order], other
    )
    together = statistics.gain_ratio(image, items, text, items)
    assert statistics.gain_ratio(image[order], other, text, items) == together  # still the same items, drawn together


def test_gain_ratio_of_scaled_gains() -> None:
    rng = np.random.default_rng(2)
    text = (rng.random(600) < 0.6).astype(float)
    image = text * (rng.random(600) < 0.75)
    found = statistics.gain_ratio(image, range(600), text, range(600))
    assert found.value == pytest.approx(image.sum() / text.sum())
    assert found.low < 0.75 < found.high
    apart = statistics.gain_ratio(image, range(600), text, range(1000, 1600))
    assert apart.value == found.value
    assert apart.high - apart.low > found.high - found.low  # items in common make the ratio surer


def test_gain_ratio_says_nothing_where_text_gained_nothing() -> None:
    text = [1, -1] * 50
    found = statistics.gain_ratio([1.0] * 100, range(100), text, range(100))
    assert math.isnan(found.value)
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_detectable_difference_is_detected_about_as_often_as_it_says() -> None:
    n, discordant = 500, 0.3
    smallest = statistics.detectable_paired(n, discordant)
    assert smallest == pytest.approx(2.8016 * math.sqrt(0.3 / 500), abs=1e-4)
    rng, hits = np.random.default_rng(3), 0
    for _ in range(300):
        u = rng.random(n)
        after = u < (discordant + smallest) / 2
        before = (u >= (discordant + smallest) / 2) & (u < discordant)
        hits += statistics.mcnemar(after, before) < 0.05
    assert 0.70 < hits / 300 < 0.90


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="pairs"):
        statistics.paired_difference([1, 0], [1], ["a", "b"])
    with pytest.raises(ValueError, match="one cluster a value"):
        statistics.accuracy([1, 0], ["a"])
    with pytest.raises(ValueError, match="level"):
        statistics.wilson(1, 2, level=95)
