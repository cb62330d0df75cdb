"""Like is compared with like: every field of a protocol, declared controls, and rows of earlier versions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xreasoner import cli
from xreasoner.benchmarks.protocol import ImageSettings, image_fields, protocol_fields
from xreasoner.benchmarks.summary import NOT_COMPARED, gains, main_of, sight, summary_of
from xreasoner.engines.base import Sampling
from xreasoner.reporting import exports, findings
from xreasoner.reporting.page import render
from xreasoner.reporting.reading import read_runs

Row = dict[str, Any]
WriteRun = Callable[..., Path]
DIFFERING: dict[str, Any] = {
    "prompt": {"template_hash": "other", "prompt": "paper-mc"},
    "min_pixels": {"min_pixels": 3136},
    "max_pixels": {"max_pixels": 12_845_056},
    "preprocessing": {"preprocessing": "qwen-vl-utils"},
    "thinking_budget": {"thinking_budget": 2048, "sampling": "t"},
    "answer_budget": {"answer_budget": 64, "sampling": "t"},
    "temperature": {"temperature": 0.3, "sampling": "t"},
    "top_p": {"top_p": 0.9, "sampling": "t"},
    "top_k": {"top_k": 20, "sampling": "t"},
    "exit_text": {"exit_text": " </think> <answer>", "sampling": "t"},
    "exit_on_repeats": {"exit_on_repeats": True, "sampling": "t"},
    "stop": {"stop": ["\n\n"], "sampling": "t"},
    "grader": {"grader": "0123456789ab"},
    "parser": {"parser": "another"},
}


def row(stage: str, item: int, right: bool, bench: str = "tiny-image-general", **more: Any) -> Row:
    sampling = Sampling(thinking_budget=4096, exit_text="</think>")
    named: Row = {"key": f"{stage}/{bench}/{item}/{more}", "stage": stage, "model": stage, "bench": bench}
    named |= {"id": str(item), "sample": 0, "condition": "seen", "prompt": "paper-train", "template_hash": "own"}
    named |= {"sampling": "s", "seed": 0, "picture_hashes": ["a"], "prompt_asked": None}
    named |= protocol_fields(sampling, 1, False) | image_fields(ImageSettings(262_144, 262_144), True)
    named |= {"correct": right, "outcome": "correct" if right else "wrong", "exit": "natural", "thought_tokens": 10}
    named |= {"family": "sum", "options": [], "answer_type": "integer", "gold": "1", "domain": "general"}
    named |= {"modality": bench.split("-")[1], "question": "?", "answer": "1", "thought": "", "extracted": "1"}
    named |= {"prompt_tokens": 1, "answer_tokens": 1, "normalised": "1", "facts": None, "images": [], "image": None}
    return {**named, "response": "<answer>1</answer>", **more}


def rows(stage: str, right: str, **more: Any) -> list[Row]:
    return [row(stage, index, mark == "1", **more) for index, mark in enumerate(right)]


def write_run(folder: Path, **stages: list[Row]) -> Path:
    from json import dumps

    for stage, found in stages.items():
        path = folder / "eval" / stage / "results.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(dumps(each) + "\n" for each in found))
    return folder


def test_equal_protocols_are_compared() -> None:
    (entry,) = gains({"base": rows("base", "0000"), "sft": rows("sft", "1111")})
    assert (entry["difference"], entry["differs"], entry["asked"], entry["control"]) == (1.0, [], "alike", False)


@pytest.mark.parametrize("field", DIFFERING)
def test_a_protocol_that_differs_in_one_field_is_not_compared(field: str) -> None:
    found = summary_of({"base": rows("base", "0000", **DIFFERING[field]), "sft": rows("sft", "1111")})["gains"]
    (entry,) = found
    assert [each["field"] for each in entry["differs"]] == [field]
    assert all(entry[name] is None for name in NOT_COMPARED)
    assert (entry["accuracy_after"], entry["accuracy_before"]) == (1.0, 0.0)
    after, before = entry["differs"][0]["after"], entry["differs"][0]["before"]
    assert after != before
    (line,) = findings.not_compared(found)
    assert line.startswith("Not compared: sft and base on image/general, for they were measured differently")
    assert f"{field} {after} against {before}" in line


def test_another_number_of_samples_is_another_protocol() -> None:
    several = [{**each, "sample": k} for each in rows("sft", "11") for k in range(3)]
    (entry,) = gains({"base": rows("base", "00"), "sft": several})
    assert entry["differs"] == [{"field": "samples", "after": "3", "before": "1"}]
    assert entry["difference"] is None


def test_all_that_differs_is_named_and_the_others_are_adjusted_alone() -> None:
    other = {**DIFFERING["grader"], **DIFFERING["max_pixels"]}
    read = "tiny-image-clinical"
    base = [*rows("base", "0" * 12, **other), *rows("base", "0" * 12, bench=read)]
    found = gains({"base": base, "sft": [*rows("sft", "1" * 12), *rows("sft", "1" * 12, bench=read)]})
    by_cell = {entry["cell"]: entry for entry in found}
    assert [each["field"] for each in by_cell["image/general"]["differs"]] == ["max_pixels", "grader"]
    assert by_cell["image/clinical"]["p_holm"] == by_cell["image/clinical"]["p"]  # the only test there is


def test_pixels_are_no_part_of_a_text_items_protocol() -> None:
    text = {"bench": "tiny-text-general", "picture_hashes": [], **dict.fromkeys(ImageSettings._fields)}
    (entry,) = gains({"base": rows("base", "00", **text), "sft": rows("sft", "11", **text)})
    assert entry["difference"] == 1.0


def test_a_declared_controls_prompt_differs_by_design() -> None:
    direct = {"template_hash": "direct", "prompt": "brief-direct", "control": True}
    (entry,) = gains({"base": rows("base", "0000", **direct), "sft": rows("sft", "1111")})
    assert (entry["difference"], entry["control"], entry["asked"]) == (1.0, True, "prompts differ by design")
    assert [each["field"] for each in entry["differs"]] == ["prompt"]
    assert findings.verdict(entry).endswith("(prompts differ by design)")
    budget = {**direct, **DIFFERING["thinking_budget"]}  # a design excuses the prompt and nothing else
    (entry,) = gains({"base": rows("base", "0000", **budget), "sft": rows("sft", "1111")})
    assert (entry["difference"], entry["control"]) == (None, False)


def test_rows_of_earlier_versions_are_equal_where_both_lack_a_field() -> None:
    def old(found: list[Row]) -> list[Row]:
        new = {"template_hash", "control", "grader", "parser", "exit_text", "top_p", "top_k", "stop", "exit_on_repeats"}
        return [{k: v for k, v in each.items() if k not in new | set(ImageSettings._fields)} for each in found]

    base, sft = rows("base", "0000"), rows("sft", "1111")
    assert gains({"base": old(base), "sft": old(sft)})[0]["difference"] == 1.0
    (mixed,) = gains({"base": old(base), "sft": sft})
    assert mixed["difference"] is None
    assert {"grader", "exit_text", "max_pixels"} <= {each["field"] for each in mixed["differs"]}
    assert "not recorded" in mixed["asked"]
    (direct,) = gains({"base": old(rows("base", "0000", prompt="brief-direct")), "sft": old(sft)})
    assert direct["control"]  # that prompt was the control's


def test_a_ratio_needs_both_sides_measured_alike() -> None:
    text = {"bench": "tiny-text-general", "picture_hashes": [], **dict.fromkeys(ImageSettings._fields)}
    sft = [*rows("sft", "1110"), *rows("sft", "1110", **text)]
    alike = [*rows("base", "0000"), *rows("base", "0000", **text)]
    ratio = {g["kind"]: g for g in gains({"base": alike, "sft": sft})}["ratio"]
    assert ratio["ratio"] == pytest.approx(1.0)
    other = [*rows("base", "0000", **DIFFERING["max_pixels"]), *rows("base", "0000", **text)]
    ratio = {g["kind"]: g for g in gains({"base": other, "sft": sft})}["ratio"]
    assert ratio["ratio"] is None
    assert "not comparable: max_pixels" in findings.ratio(ratio)["note"]


def test_blindness_explains_nothing_where_it_was_asked_otherwise() -> None:
    seen = rows("sft", "1110")
    shown = {"picture_hashes": [], **dict.fromkeys(ImageSettings._fields), "condition": "blind"}
    (entry,) = sight({"sft": [*seen, *rows("sft", "0000", **shown)]})
    assert entry["over_blind"]["value"] == 0.75
    (entry,) = sight({"sft": [*seen, *rows("sft", "0000", **shown, **DIFFERING["temperature"])]})
    assert entry["over_blind"] is None


def test_the_protocol_that_stages_share_is_the_main_one() -> None:
    both = [*rows("sft", "1111"), *rows("sft", "0000", template_hash="x", prompt="brief", prompt_asked="brief")]
    main = main_of({"base": rows("base", "0000"), "sft": both})
    assert {each["prompt"] for each in main["sft"]} == {"paper-train"}
    sizes = [*rows("sft", "111"), *rows("sft", "0000", max_pixels=1_000_000)]
    assert {each["max_pixels"] for each in main_of({"sft": sizes})["sft"]} == {1_000_000}  # one size, the fuller


def test_the_report_says_what_differs_in_one_line(tmp_path: Path) -> None:
    run = write_run(tmp_path, base=rows("base", "0000", **DIFFERING["max_pixels"]), **{"sft": rows("sft", "1111")})
    found = read_runs([run])
    line = (
        "Not compared: sft and base on image/general, for they were measured differently: max_pixels 262144 against "
        "12845056."
    )
    assert line in exports.markdown(found)
    assert "not comparable: max_pixels 262144 against 12845056" in exports.markdown(found)
    assert line in render(found)
    assert "measured differently" in findings.headline(found.summary["gains"])
    gain = next(each for each in exports.as_csv(found).splitlines() if each.startswith("gains,image/general"))
    assert gain.endswith("max_pixels 262144 against 12845056")


def test_a_baseline_with_which_nothing_is_comparable_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = rows("ours", "1111"), rows("theirs", "0000", **DIFFERING["exit_text"])
    write_run(tmp_path / "run", ours=ours, theirs=theirs)
    assert cli.run(["report", str(tmp_path / "run"), "--baseline", "theirs"]) == 2
    said = capfd.readouterr().err
    assert "--baseline theirs: nothing is comparable" in said
    assert "exit_text (ours: '</think>'; theirs: ' </think> <answer>')" in said
    other = [{**each, "id": f"other-{each['id']}"} for each in rows("theirs", "0000")]
    write_run(tmp_path / "apart", ours=ours, theirs=other)
    assert cli.run(["report", str(tmp_path / "apart"), "--baseline", "theirs"]) == 2
    assert "it shares no item with ours" in capfd.readouterr().err
