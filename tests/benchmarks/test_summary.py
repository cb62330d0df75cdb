"""What the summary says of sight, exits, budgets and protocols, on rows small enough to count by hand."""

from __future__ import annotations

from typing import Any

import pytest

from xreasoner.benchmarks.samples import majority
from xreasoner.benchmarks.store import cluster_of
from xreasoner.benchmarks.summary import (
    budgets,
    exits,
    gains,
    main_rows,
    sampled,
    sight,
    solvable,
    summary_of,
    text_solvable,
)

Row = dict[str, Any]


def row(item: int, right: bool, **more: Any) -> Row:
    named: Row = {"stage": "sft", "model": "m", "bench": "tiny-image-general", "id": str(item), "sample": 0}
    named |= {"condition": "seen", "prompt": "brief", "sampling": "s", "temperature": 0.0, "thinking_budget": 100}
    named |= {"correct": right, "outcome": "correct" if right else "wrong", "exit": "natural", "thought_tokens": 10}
    named |= {"family": "sum", "options": [], "answer_type": "integer", "gold": "1"}
    return {**named, "response": "<answer>1</answer>" if right else "", **more}


def rows(right: str, **more: Any) -> list[Row]:
    """One row a character: "1" is right."""
    return [row(index, mark == "1", **more) for index, mark in enumerate(right)]


def test_sight_compares_with_no_picture_and_with_anothers() -> None:
    seen, blind = rows("1111110000"), rows("1100000000", condition="blind")
    (entry,) = sight({"sft": [*seen, *blind, *rows("1110000000", condition="swapped")]})
    assert (entry["group"], entry["name"], entry["stage"]) == ("cells", "image/general", "sft")
    assert [entry[key]["value"] for key in ("seen", "blind", "swapped")] == [0.6, 0.2, 0.3]
    assert entry["over_blind"]["value"] == pytest.approx(0.4)
    assert entry["over_swapped"]["value"] == pytest.approx(0.3)
    assert entry["over_blind"]["low"] <= 0.4 <= entry["over_blind"]["high"]
    assert (entry["missed"]["value"], entry["missed"]["n"]) == (0.5, 8)
    assert sight({"sft": seen}) == []
    (without,) = sight({"sft": [*seen, *blind]})
    assert without["swapped"] is without["over_swapped"] is None


def test_rows_of_before_there_were_conditions_are_understood() -> None:
    old = [{key: value for key, value in r.items() if key != "condition"} | {"blind": b} for b in (False, True)
           for r in rows("10")]  # fmt: skip
    (entry,) = sight({"sft": old})
    assert entry["seen"]["n"] == entry["blind"]["n"] == 2


def test_the_text_solvable_filter_drops_what_any_stage_solves_each_time() -> None:
    def blind(marks: dict[int, str], stage: str) -> list[Row]:
        sampled = {"condition": "blind", "temperature": 1.0, "sampling": "t", "stage": stage}
        return [row(i, mark == "1", sample=s, **sampled) for i, three in marks.items() for s, mark in enumerate(three)]

    base = [*rows("1010"), *blind({0: "111", 1: "101", 2: "000", 3: "11"}, "base")]
    sft = [*rows("1110"), *blind({0: "000", 1: "000", 2: "111"}, "sft")]
    asked, solved = text_solvable({"base": base, "sft": sft})
    assert {item[1] for item in asked} == {"0", "1", "2"}  # item 3 was sampled twice only
    assert {item[1] for item in solved} == {"0", "2"}
    found = solvable({"base": base, "sft": sft})
    assert [(e["stage"], e["all"]["n"], e["kept"]["n"], e["kept"]["value"]) for e in found] == [
        ("base", 3, 1, 0.0),
        ("sft", 3, 1, 1.0),
    ]
    assert solvable({"sft": [*rows("11"), *rows("11", condition="blind")]}) == []  # greedy, once: no filter


def test_without_the_forced_exit_closed_thoughts_count_as_cut() -> None:
    found = [row(0, True), row(1, True, exit="forced"), row(2, False, exit="forced"), row(3, False, exit="truncated")]
    found = [{**r, "thought_tokens": 10 * (i + 1)} for i, r in enumerate(found)]
    (entry,) = exits({"sft": found})
    assert (entry["natural"], entry["forced"], entry["truncated"]) == (0.25, 0.5, 0.25)
    assert (entry["with_exit"]["value"], entry["without_exit"]["value"]) == (0.5, 0.25)
    assert entry["gained"]["value"] == pytest.approx(0.25)
    assert entry["accuracy_by_exit"] == {"natural": 1.0, "forced": 0.5, "truncated": 0.0}
    assert entry["thought_tokens"] == {"mean": 25, "median": 30, "p90": 40}


def test_several_samples_are_averaged_voted_and_passed() -> None:
    drawn = {"temperature": 1.0, "sampling": "t", "normalised": "7"}
    marks = {0: "11", 1: "10", 2: "00"}
    several = [row(i, mark == "1", sample=s, **drawn) for i, two in marks.items() for s, mark in enumerate(two)]
    cut = row(3, True, **drawn)  # its other sample is missing
    (entry,) = sampled({"sft": [*rows("0000"), *several, cut], "base": rows("1111")})
    assert (entry["name"], entry["stage"], entry["samples"], entry["n"]) == ("image/general", "sft", 2, 3)
    assert entry["average"]["value"] == pytest.approx(0.5)
    assert entry["average"]["low"] < 0.5 < entry["average"]["high"]
    for found, value in ((entry["majority"], 0.5), (entry["pass"]["1"], 0.5), (entry["pass"]["2"], 2 / 3)):
        assert found["value"] == pytest.approx(value)
        assert found["low"] < value < found["high"]


def test_the_budget_curve_is_over_shared_items() -> None:
    short = [row(i, i < 1, thinking_budget=8, sampling="8", exit="forced") for i in range(4)]
    long = [row(i, i < 3, thinking_budget=64, sampling="64") for i in range(3)]
    (entry,) = budgets({"sft": [*short, *long]})
    assert [(p["budget"], p["n"], round(p["accuracy"], 3), p["forced"]) for p in entry["points"]] == [
        (8, 3, 0.333, 1.0),
        (64, 3, 1.0, 0.0),
    ]
    assert [p["without_exit"] for p in entry["points"]] == [0.0, 1.0]
    assert budgets({"sft": long}) == []


def test_the_main_protocol_has_the_most_items_then_greedy_then_the_last() -> None:
    few, many = rows("11", sampling="a"), rows("000", sampling="b")
    assert main_rows([*few, *many]) == main_rows([*many, *few]) == many
    sampled = [*rows("111", sampling="c", temperature=1.0), *rows("111", sampling="c", temperature=1.0, sample=1)]
    assert main_rows([*many, *sampled]) == many
    later = rows("111", sampling="d")
    assert main_rows([*many, *later]) == later
    retrained = rows("1", model="new")
    assert main_rows([*many, *retrained]) == retrained
    blind = rows("01", condition="blind")
    assert main_rows([*many, *blind]) == [*many, *blind]


def test_models_of_other_names_are_held_against_the_base_or_the_first() -> None:
    results = {"base": rows("1100"), "ours": rows("1110"), "theirs": rows("0000")}
    pairs = [(g["after"], g["before"]) for g in gains(results)]
    assert pairs == [("ours", "base"), ("theirs", "base")]
    pairs = [(g["after"], g["before"]) for g in gains({"a": rows("11"), "b": rows("10")})]
    assert pairs == [("b", "a")]


def test_a_second_run_is_compared_within_itself_and_with_the_first() -> None:
    results = {"base": rows("0000"), "sft": rows("1100"), "base@two": rows("0001"), "sft@two": rows("1111")}
    pairs = {(g["after"], g["before"]): g["difference"] for g in gains(results) if g["kind"] == "cell"}
    assert pairs == {("sft", "base"): 0.5, ("sft@two", "base@two"): 0.75, ("base@two", "base"): 0.25,
                     ("sft@two", "sft"): 0.5}  # fmt: skip
    shared = {"base": rows("0000"), "sft": rows("1100"), "sft@two": rows("1111")}
    pairs = {(g["after"], g["before"]): g["difference"] for g in gains(shared) if g["kind"] == "cell"}
    assert pairs == {("sft", "base"): 0.5, ("sft@two", "base"): 1.0, ("sft@two", "sft"): 0.5}


def test_every_comparison_has_a_p_and_holms() -> None:
    found = gains({"base": rows("0" * 12), "sft": rows("1" * 12), "sft+rl": rows("1" * 9 + "000")})
    assert [(g["after"], g["before"], g["test"]) for g in found] == [
        ("sft", "base", "McNemar, exact"),
        ("sft+rl", "base", "McNemar, exact"),
        ("sft+rl", "sft", "McNemar, exact"),
    ]
    assert found[0]["p"] == pytest.approx(2 / 2**12)
    assert min(g["p_holm"] for g in found) == pytest.approx(3 * min(g["p"] for g in found))
    assert all(g["p"] <= g["p_holm"] <= 1 for g in found)
    sampled = [row(i, (i + s) % 3 > 0, sample=s) for i in range(12) for s in range(3)]
    (several,) = gains({"base": [{**r, "correct": False} for r in sampled], "sft": sampled})
    assert several["test"] == "sign flips by cluster"


def test_the_summary_holds_all_of_it() -> None:
    found = summary_of({"base": rows("01"), "sft": [*rows("11"), *rows("10", condition="blind")]})
    assert set(found) == {
        "cells",
        "perception",
        "benchmarks",
        "gains",
        "sight",
        "solvable",
        "exits",
        "samples",
        "budgets",
        "parsers",
    }
    assert found["cells"]["sft"]["image/general"]["blind"] == 0.5
    assert [entry["stage"] for entry in found["parsers"]] == ["base", "sft"]


def test_items_of_one_cluster_are_one_piece_of_evidence() -> None:
    """Five versions of each problem, right or wrong together."""
    base = [row(i, False, cluster=str(i // 5)) for i in range(40)]
    sft = [row(i, i // 5 < 5, cluster=str(i // 5)) for i in range(40)]
    (entry,) = [e for e in gains({"base": base, "sft": sft}) if e["kind"] == "cell"]
    alone = [[{**r, "cluster": r["id"]} for r in rows] for rows in (base, sft)]
    (single,) = [e for e in gains({"base": alone[0], "sft": alone[1]}) if e["kind"] == "cell"]
    assert (entry["n"], entry["clusters"], entry["test"]) == (40, 8, "sign flips by cluster")
    assert entry["p"] == pytest.approx(2 / 2**5, abs=0.02)  # five problems gained, not 25 items
    assert single["p"] < 1e-6
    assert entry["high"] - entry["low"] > 2 * (single["high"] - single["low"])
    assert entry["detectable"] > 1.5 * single["detectable"]
    described = summary_of({"sft": sft})["cells"]["sft"]["image/general"]
    assert described["clusters"] == 8


def test_rows_written_before_clusters_are_clustered_by_their_images() -> None:
    def old(item: int, bench: str) -> Row:
        return row(item, True, bench=bench, picture_hashes=["x"])

    assert cluster_of(old(1, "slake")) == "x"
    assert cluster_of(old(1, "tiny-image-general")) == "1"
    assert cluster_of({**old(1, "slake"), "cluster": "c"}) == "c"


def declared(bench: str, domain: str, right: str, **more: Any) -> list[Row]:
    return rows(right, bench=bench, domain=domain, modality="text", **more)


def test_a_cell_is_the_mean_of_disjoint_benchmarks() -> None:
    """Three of MMLU-Pro's items are its health items, measured as a benchmark of their own as well."""
    results = [
        *declared("mmlu-pro", "general", "0001111111"),
        *declared("gsm8k", "general", "10"),
        *declared("mmlu-pro-health", "clinical", "000"),
        *declared("medqa", "clinical", "1111"),
        *declared("medqa-5", "clinical", "0000"),
    ]
    cells = summary_of({"base": results})["cells"]["base"]
    assert (cells["text/general"]["accuracy"], cells["text/general"]["n"]) == (0.75, 9)  # (7 of 7, and 1 of 2) / 2
    assert (cells["text/clinical"]["accuracy"], cells["text/clinical"]["n"]) == (0.5, 7)
    after = [{**r, "correct": True} for r in results]
    (gain, *_) = [e for e in gains({"base": results, "sft": after}) if e["cell"] == "text/general"]
    assert gain["difference"] == pytest.approx(0.25)


def test_a_ratio_has_one_control_above_and_below() -> None:
    """base is better at images, base-direct at text; together base-direct is."""
    sides = {"base": ("1100", "0000"), "base-direct": ("1000", "1110"), "sft": ("1111", "1111")}
    results = {
        stage: [*rows(image, stage=stage), *rows(text, stage=stage, bench="tiny-text-general")]
        for stage, (image, text) in sides.items()
    }
    (ratio,) = [e for e in gains(results) if e["kind"] == "ratio"]
    assert ratio["before"] == "base-direct"
    assert ratio["ratio"] == pytest.approx(0.75 / 0.25)


def test_missed_items_are_the_same_for_every_stage() -> None:
    base = [*rows("1111", stage="base"), *rows("1000", stage="base", condition="blind")]
    sft = [*rows("1111"), *rows("0100", condition="blind")]
    assert [entry["missed"]["n"] for entry in sight({"base": base, "sft": sft})] == [2, 2]


def test_more_blind_samples_do_not_change_what_is_solvable_without_the_image() -> None:
    def blind(marks: str) -> list[Row]:
        return [
            row(0, mark == "1", sample=s, condition="blind", temperature=1.0, sampling="t")
            for s, mark in enumerate(marks)
        ]

    assert text_solvable({"base": blind("111")}) == text_solvable({"base": blind("11100")})


def test_votes_go_to_answers_and_not_to_spellings() -> None:
    def reply(sample: int, answer: str, right: bool) -> Row:
        return row(0, right, sample=sample, answer_type="number", normalised=answer, extracted=answer, question="?")

    votes = [reply(0, "1", True), reply(1, "1", True), reply(2, "8", False), reply(3, "8.0", False)]
    assert majority([*votes, reply(4, "8.00", False)]) == 0
    assert majority([*votes, reply(4, "9", False)]) == 0.5


def test_closed_and_open_questions_are_two_numbers_and_a_cell_counts_the_closed() -> None:
    clinical = {"bench": "slake", "domain": "clinical", "modality": "image"}
    closed = rows("1100", **clinical, family="closed")
    free = [
        row(9, False, **clinical, family="open", gold="left upper lobe", answer="the left lobe", answer_type="text")
    ]
    summary = summary_of({"sft": [*closed, *free]})
    found = summary["benchmarks"]["sft"]
    assert set(found) == {"slake (closed)", "slake (open)"}
    assert found["slake (open)"]["recall"] == pytest.approx(2 / 3)
    assert (found["slake (open)"]["accuracy"], found["slake (closed)"]["accuracy"]) == (0, 0.5)
    assert "recall" not in found["slake (closed)"]
    assert summary["cells"]["sft"]["image/clinical"]["accuracy"] == 0.5


def test_pubmedqa_has_macro_f1() -> None:
    golds, replies = ["yes", "yes", "no", "maybe"], ["yes", "no", "no", "yes"]
    results = [
        row(i, gold == reply, bench="pubmedqa", domain="clinical", modality="text", gold=gold, normalised=reply)
        for i, (gold, reply) in enumerate(zip(golds, replies, strict=True))
    ]
    found = summary_of({"sft": results})["benchmarks"]["sft"]["pubmedqa"]
    assert found["accuracy"] == 0.5
    assert found["macro_f1"] == pytest.approx((0.5 + 2 / 3 + 0) / 3)


def test_mmmu_pro_is_the_mean_of_its_two_settings() -> None:
    image = {"domain": "general", "modality": "image"}
    results = [
        *rows("1111", bench="mmmu-pro-10", **image),
        *rows("10", bench="mmmu-pro-vision", **image),
        *rows("00", bench="mmmu-pro-4", **image),
    ]
    found = summary_of({"sft": results})
    assert found["benchmarks"]["sft"]["mmmu-pro"]["accuracy"] == 0.75
    assert len(found["benchmarks"]["sft"]) == 4
    assert found["cells"]["sft"]["image/general"]["accuracy"] == 1  # the same items are asked in each of them
