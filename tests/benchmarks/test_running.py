"""The store and the runner: nothing lost, nothing run twice, numbers that follow from the rows."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from xreasoner import registry, trace
from xreasoner.benchmarks import parsers
from xreasoner.benchmarks.running import evaluate, swaps
from xreasoner.benchmarks.samples import ensemble, pass_at
from xreasoner.benchmarks.store import ResultStore, latest, read_rows, sampling_key, save_picture
from xreasoner.benchmarks.summary import gains, group_of, summarise
from xreasoner.completion import Completion
from xreasoner.engines.base import Request, Sampling
from xreasoner.engines.info import EngineInfo
from xreasoner.errors import DataError, EngineError, UserError, XReasonerError
from xreasoner.grading.rescoring import grade_file
from xreasoner.problem import Problem
from xreasoner.prompts import PROMPTS


def problems_of(modality: str, domain: str, n: int, seed: int) -> list[Problem]:
    """Multiple choice and numeric items together; text and image share their ids, as a world's cells do."""
    return [
        Problem(
            id=f"{domain}-{seed}-{i}",
            question=f"What is {i} + 1?",
            gold="B" if i % 2 else str(i + 1),
            answer_type="choice" if i % 2 else "integer",
            options=(str(i), str(i + 1)) if i % 2 else (),
            images=(Image.new("RGB", (4, 4), (i, 0, 0)),) if modality == "image" else (),
            domain=domain,
            modality="image" if modality == "image" else "text",
            family="choice" if i % 2 else "sum",
            meta={"facts": f"n {i}"},
        )
        for i in range(n)
    ]


def image_general(n: int, seed: int) -> list[Problem]:
    return problems_of("image", "general", n, seed)


def text_general(n: int, seed: int) -> list[Problem]:
    return problems_of("text", "general", n, seed)


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, function in (("tiny-image-general", "image_general"), ("tiny-text-general", "text_general")):
        monkeypatch.setitem(registry.BENCHMARKS, name, f"{__name__}:{function}")


class Slip:
    """A request that was handed over."""

    def __init__(self, request: Request, on_done: Callable[[list[Completion]], None] | None) -> None:
        self.request, self.on_done, self.done = request, on_done, threading.Event()
        self.completions: list[Completion] = []

    def cancel(self) -> None:
        self.done.set()


class Adder:
    """Completes "What is I + 1?", rightly below `limit`; stops as if killed after `stop_after` requests."""

    name = "adder"
    info = EngineInfo(model_name="adder")

    def __init__(self, limit: int, stop_after: int | None = None) -> None:
        self.limit, self.stop_after, self.seen = limit, stop_after, list[Request]()
        self.waiting: list[Slip] = []

    def submit(
        self,
        request: Request,
        on_done: Callable[[list[Completion]], None] | None = None,
        on_text: Callable[[int, str], None] | None = None,
    ) -> Slip:
        self.waiting.append(Slip(request, on_done))
        return self.waiting[-1]

    def step(self) -> bool:
        """One request, the last that came."""
        while self.waiting and self.waiting[-1].done.is_set():
            self.waiting.pop()
        if not self.waiting:
            return False
        if self.stop_after is not None and len(self.seen) == self.stop_after:
            raise KeyboardInterrupt
        slip = self.waiting.pop()
        self.seen.append(slip.request)
        slip.completions = [self.complete(slip.request) for _ in range(slip.request.n)]
        slip.done.set()
        if slip.on_done:
            slip.on_done(slip.completions)
        return True

    def generate(self, requests: Any, on_done: Any = None) -> Any:
        raise NotImplementedError

    wait = score = generate

    def complete(self, request: Request) -> Completion:
        text = request.messages[0]["content"][-1]["text"]
        number = int(text.split()[2])
        value = number + 1 if number < self.limit else number
        answer = f"{'B' if value > number else 'A'}: {value}" if "B: " in text else str(value)
        reply = f"<think> adding. </think> <answer>{answer}</answer>"
        split = trace.split(reply)
        return Completion(reply, (1,), (), (False,), split.thought, split.answer, "natural", 9, 3, 2)


def run(engine: Adder, out: Path, stage: str = "sft", **changed: Any) -> list[dict[str, Any]]:
    settings: dict[str, Any] = {"model_hash": "m", "prompt": "brief", "n": 20, "seed": 3, "sampling": Sampling()}
    return evaluate(engine, ["tiny-image-general", "tiny-text-general"], out, stage=stage, **{**settings, **changed})


def test_rows_say_what_was_asked_and_judged(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    rows = run(Adder(10), tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 40) for done in range(41)]
    assert [row["bench"] for row in rows] == ["tiny-image-general"] * 20 + ["tiny-text-general"] * 20
    for row in rows:
        number = int(row["question"].split()[2])
        assert row["correct"] is (number < 10)
        assert row["outcome"] == ("correct" if number < 10 else "wrong")
        assert row["thought"].strip() == "adding."
        assert row["facts"] == f"n {number}"
        assert row["cell"] == ("image/general" if row["modality"] == "image" else "text/general")
    with Image.open(tmp_path / rows[7]["image"]) as picture:
        assert picture.getpixel((0, 0)) == (7, 0, 0)
    assert rows[20]["image"] is None
    assert read_rows(tmp_path / "eval" / "sft" / "results.jsonl").__len__() == 40


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Adder(10, stop_after=15), tmp_path)
    path = tmp_path / "eval" / "sft" / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-40])  # the kill cut the last line
    again = Adder(10)
    rows = run(again, tmp_path)
    assert len(again.seen) == 26
    assert rows == run(Adder(10, stop_after=0), tmp_path)  # nothing is left to run
    lines = path.read_text().splitlines()
    assert len(lines) == 40
    assert len({json.loads(line)["key"] for line in lines}) == 40


@pytest.mark.parametrize(
    "changed",
    [{"model_hash": "other"}, {"prompt": "brief-direct"}, {"seed": 4}, {"sampling": Sampling(temperature=1)}],
)
def test_another_setting_is_run_again(tmp_path: Path, changed: dict[str, Any]) -> None:
    run(Adder(10), tmp_path)
    engine = Adder(20)
    assert all(row["correct"] for row in run(engine, tmp_path, **changed))
    assert len(engine.seen) == 40
    newest = latest(read_rows(tmp_path / "eval" / "sft" / "results.jsonl"))
    assert len(newest) == (40 if changed.keys() & {"model_hash", "sampling"} else 80)


def test_blind_runs_withhold_the_pictures_and_give_the_floor(tmp_path: Path) -> None:
    run(Adder(16), tmp_path)
    engine = Adder(4)
    run(engine, tmp_path, condition="blind")
    assert len(engine.seen) == 20
    assert all(not r.images and r.messages[0]["content"][0]["type"] == "text" for r in engine.seen)
    summary = summarise(read_rows(tmp_path / "eval" / "sft" / "results.jsonl"))
    cell = summary["cells"]["image/general"]
    assert (cell["accuracy"], cell["n"], cell["blind"]) == (0.8, 20, 0.2)
    assert cell["low"] < 0.8 < cell["high"]
    assert cell["outcomes"] == {"correct": 16, "wrong": 4}
    assert cell["families"]["sum"] == {"accuracy": 0.8, "n": 10, "blind": 0.2}
    assert "blind" not in summary["cells"]["text/general"]


def test_swapped_runs_show_another_items_picture(tmp_path: Path) -> None:
    engine = Adder(4)
    rows = run(engine, tmp_path, condition="swapped")
    assert len(engine.seen) == len(rows) == 20
    assert {row["condition"] for row in rows} == {"swapped"}
    shown = {}
    for request in engine.seen:
        number = int(request.messages[0]["content"][-1]["text"].split()[2])
        shown[number] = request.images[0].getpixel((0, 0))[0]
    assert all(number != pixel for number, pixel in shown.items())
    assert sorted(shown.values()) == list(range(20))
    assert swaps(image_general(20, 3)) == swaps(image_general(20, 3)[::-1])
    assert swaps(image_general(1, 3)) == {}
    again = Adder(4)
    run(again, tmp_path, condition="swapped")
    assert not again.seen


def test_gains_are_paired_and_over_the_better_base(tmp_path: Path) -> None:
    limits = {"base": 2, "base-direct": 4, "sft": 14, "sft+rl": 18}
    results = {stage: run(Adder(limit), tmp_path, stage) for stage, limit in limits.items()}
    found = gains(results)
    differences = [e for e in found if e["kind"] == "cell" and e["cell"] == "image/general"]
    assert [(e["after"], e["before"], round(e["difference"], 9)) for e in differences] == [
        ("sft", "base-direct", 0.5),
        ("sft+rl", "base-direct", 0.7),
        ("sft+rl", "sft", 0.2),
    ]
    assert differences[0]["p"] == pytest.approx(2 / 2**10)
    assert all(e["low"] <= e["difference"] <= e["high"] for e in differences)
    ratios = [e for e in found if e["kind"] == "ratio"]
    assert [(e["domain"], e["after"], e["ratio"]) for e in ratios] == [("general", "sft", 1), ("general", "sft+rl", 1)]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_several_samples_are_rows_of_their_own(tmp_path: Path) -> None:
    rows = run(Adder(10), tmp_path, samples=3, sampling=Sampling(temperature=1))
    assert [row["sample"] for row in rows[:6]] == [0, 1, 2, 0, 1, 2]
    cell = summarise(rows)["cells"]["text/general"]
    assert (cell["n"], cell["accuracy"]) == (60, 0.5)
    assert cell["high"] - cell["low"] > 0.35  # as sure as 20 items, not as 60


def measured(n: int, seed: int) -> list[Problem]:
    return [Problem("m", "What is 0 + 1?", "1.2", "number", meta={"precision": 1})]


def test_a_row_carries_the_places_that_its_data_set_rounds_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the live verdict, `xreasoner grade` and MathVista's own rule round alike."""

    class Measuring(Adder):
        def complete(self, request: Request) -> Completion:
            return replace(super().complete(request), text="<answer>1.24</answer>")

    monkeypatch.setitem(registry.BENCHMARKS, "measured", f"{__name__}:measured")
    settings: dict[str, Any] = {"model_hash": "m", "prompt": "brief", "n": 1, "seed": 0, "sampling": Sampling()}
    (found,) = evaluate(Measuring(10), ["measured"], tmp_path, stage="sft", **settings)
    assert found["outcome"] == "correct"
    stored = tmp_path / "eval" / "sft" / "results.jsonl"
    assert grade_file(stored, tmp_path / "again.jsonl", print).correct == 1
    without = tmp_path / "without.jsonl"
    without.write_text(json.dumps({**read_rows(stored)[0], "meta": {}}))
    assert grade_file(without, tmp_path / "exact.jsonl", print).correct == 0
    rule = next(rule for rule in parsers.RULES if rule.name == "MathVista")
    assert rule.read(parsers.case_of(found)).value == 1


def test_groups_and_unknown_names(tmp_path: Path) -> None:
    assert group_of("tiny-read-image-clinical") == ("perception", "image/clinical")
    assert group_of("tiny-text-general") == ("cells", "text/general")
    assert group_of("gym-held-out") == ("benchmarks", "gym-held-out")
    with pytest.raises(UserError, match="did you mean 'tiny-text-general'"):
        evaluate(
            Adder(1), ["tiny-text-genral"], tmp_path, stage="s", model_hash="m", prompt="brief", n=1, seed=0,
            sampling=Sampling(),
        )  # fmt: skip


def test_the_store_refuses_a_damaged_middle_and_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"key": "a"}\n{"key": \n{"key": "b"}\n')
    with pytest.raises(DataError, match=rf"{path}, line 2: .*delete that line, the others are kept"):
        ResultStore(path)


def test_a_disk_that_refuses_is_reported_and_keeps_what_is_there(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results.jsonl")
    store.append([{"key": "a"}])
    (tmp_path / "file").write_text("")
    with pytest.raises(XReasonerError, match="cannot write"):
        ResultStore(tmp_path / "file" / "results.jsonl").append([{"key": "b"}])
    assert ResultStore(tmp_path / "results.jsonl").done() == {"a"}


def test_equal_pictures_are_one_file(tmp_path: Path) -> None:
    first = save_picture(Image.new("RGB", (3, 5), "red"), tmp_path)
    assert save_picture(Image.new("RGB", (3, 5), "red"), tmp_path) == first
    assert save_picture(Image.new("RGB", (5, 3), "red"), tmp_path) != first
    assert len(list((tmp_path / "images").iterdir())) == 2


def test_more_samples_run_only_what_is_missing(tmp_path: Path) -> None:
    run(Adder(10), tmp_path, samples=2, sampling=Sampling(temperature=1))
    before = (tmp_path / "eval" / "sft" / "results.jsonl").read_bytes()
    engine = Adder(20)
    rows = run(engine, tmp_path, samples=5, sampling=Sampling(temperature=1))
    assert len(engine.seen) == 40 * 3
    assert (tmp_path / "eval" / "sft" / "results.jsonl").read_bytes().startswith(before)
    assert len({row["key"] for row in rows}) == len(rows) == 200
    assert len({row["sample_seed"] for row in rows}) == 200
    alone = run(Adder(20), tmp_path / "alone", samples=5, sampling=Sampling(temperature=1))
    assert [row["sample_seed"] for row in alone] == [row["sample_seed"] for row in rows]


def test_another_picture_or_another_text_is_another_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(Adder(20), tmp_path)

    def repainted(n: int, seed: int) -> list[Problem]:
        return [
            replace(p, images=(Image.new("RGB", (4, 4), "white"),)) for p in problems_of("image", "general", n, seed)
        ]

    monkeypatch.setattr(sys.modules[__name__], "image_general", repainted)
    engine = Adder(20)
    run(engine, tmp_path)
    assert len(engine.seen) == 20
    monkeypatch.setitem(PROMPTS, "brief", "{question}{options_lines}\nThink hard.")
    engine = Adder(20)
    run(engine, tmp_path)
    assert len(engine.seen) == 40


def test_items_that_fail_are_named_and_lose_nothing(tmp_path: Path) -> None:
    class Failing(Adder):
        def submit(self, request: Request, *told: Any) -> Slip:
            if "What is 7 + 1?" in request.messages[0]["content"][-1]["text"]:
                raise EngineError("the server is gone")
            return super().submit(request, *told)

    with pytest.raises(
        XReasonerError, match=r"item tiny-image-general/general-3-7: the server is gone \(and 1 more\); the 38"
    ):
        run(Failing(20), tmp_path)
    engine = Adder(20)
    assert len(run(engine, tmp_path)) == 40
    assert len(engine.seen) == 2


def test_a_sample_that_fails_in_any_way_is_written_down_as_an_error_and_ends_no_other(tmp_path: Path) -> None:
    class Failing(Adder):
        def submit(self, request: Request, *told: Any) -> Slip:
            if "What is 7 + 1?" in request.messages[0]["content"][-1]["text"]:
                raise IndexError("index out of range")
            return super().submit(request, *told)

    with pytest.raises(XReasonerError, match=r"IndexError: index out of range \(and 1 more\); the 38"):
        run(Failing(20), tmp_path)
    path = tmp_path / "eval" / "sft" / "errors.jsonl"
    errors = read_rows(path)
    assert [(row["outcome"], row["note"]) for row in errors] == [("error", "IndexError: index out of range")] * 2
    results = read_rows(path.with_name("results.jsonl"))
    assert len(results) == 38
    assert not {row["key"] for row in errors} & {row["key"] for row in results}
    assert len(run(Adder(20), tmp_path)) == 40
    assert not path.exists()


def test_two_stores_on_one_file_see_each_others_rows(tmp_path: Path) -> None:
    first, second = (ResultStore(tmp_path / "results.jsonl") for _ in range(2))
    first.append([{"key": "a"}, {"key": "b"}])
    second.append([{"key": "b"}, {"key": "c"}])
    first.append([{"key": "c"}])
    assert [row["key"] for row in read_rows(tmp_path / "results.jsonl")] == ["a", "b", "c"]


def test_greedy_has_no_seed() -> None:
    assert sampling_key(Sampling(seed=1)) == sampling_key(Sampling(seed=2))
    assert sampling_key(Sampling(0.3, seed=1)) != sampling_key(Sampling(0.3, seed=2))


def row(item: str, sample: int, correct: bool, said: str = "", outcome: str = "") -> dict[str, Any]:
    outcome = outcome or ("correct" if correct else "wrong")
    return {"bench": "b", "id": item, "sample": sample, "correct": correct, "outcome": outcome, "extracted": said}


def test_ensembles() -> None:
    rows = [row("x", 0, True), row("x", 1, False, "p"), row("x", 2, True), row("x", 3, False, "q")]
    rows += [row("y", 0, True), row("y", 1, False, "p"), row("y", 2, False, "P"), row("y", 3, False, "", "truncated")]
    rows += [
        row("z", 0, True),
        row("z", 1, False, "p"),
        row("z", 2, False, "", "unparsed"),
        row("z", 3, False, "", "error"),
    ]
    found = ensemble([*rows, row("half", 0, True)])
    assert (found["samples"], found["incomplete"]) == (4, 1)
    assert found["average"] == pytest.approx((2 + 1 + 1) / 12)
    assert found["majority"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert found["pass"] == {1: pytest.approx(1 / 3), 2: pytest.approx((5 / 6 + 0.5 + 0.5) / 3), 4: 1.0}


def test_pass_at_k_is_the_mean_over_all_subsets() -> None:
    for n in range(1, 7):
        for right in range(n + 1):
            marks = [k < right for k in range(n)]
            for k in range(1, n + 1):
                subsets = list(combinations(marks, k))
                assert pass_at(k, n, right) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    with pytest.raises(ValueError, match="pass@3 of 2 samples"):
        pass_at(3, 2, 1)
