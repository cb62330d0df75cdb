"""The store and the runner: nothing lost, nothing run twice, numbers that follow from the rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from xreasoner import registry, trace
from xreasoner.benchmarks.running import evaluate, gains, group_of, summarise
from xreasoner.benchmarks.store import ResultStore, latest, read_rows, save_picture
from xreasoner.completion import Completion
from xreasoner.engines.base import Request, Sampling
from xreasoner.errors import DataError, UserError, XReasonerError
from xreasoner.problem import Problem


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


class Adder:
    """Completes "What is I + 1?", rightly below `limit`; stops as if killed after `stop_after` requests."""

    name = "adder"

    def __init__(self, limit: int, stop_after: int | None = None) -> None:
        self.limit, self.stop_after, self.seen = limit, stop_after, list[Request]()

    def generate(
        self, requests: Sequence[Request], on_done: Callable[[int, list[Completion]], None] | None = None
    ) -> list[list[Completion]]:
        done = []
        for index in reversed(range(len(requests))):
            if self.stop_after is not None and len(self.seen) == self.stop_after:
                raise KeyboardInterrupt
            self.seen.append(requests[index])
            done.append([self.complete(requests[index]) for _ in range(requests[index].n)])
            assert on_done is not None
            on_done(index, done[-1])
        return done[::-1]

    def complete(self, request: Request) -> Completion:
        text = request.messages[0]["content"][-1]["text"]
        number = int(text.split()[2])
        value = number + 1 if number < self.limit else 999
        answer = f"{'B' if number < self.limit else 'A'}: {value}" if "B: " in text else str(value)
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
    run(engine, tmp_path, blind=True)
    assert len(engine.seen) == 20
    assert all(not r.images and r.messages[0]["content"][0]["type"] == "text" for r in engine.seen)
    summary = summarise(read_rows(tmp_path / "eval" / "sft" / "results.jsonl"))
    cell = summary["cells"]["image/general"]
    assert (cell["accuracy"], cell["n"], cell["blind"]) == (0.8, 20, 0.2)
    assert cell["low"] < 0.8 < cell["high"]
    assert cell["outcomes"] == {"correct": 16, "wrong": 4}
    assert cell["families"]["sum"] == {"accuracy": 0.8, "n": 10, "blind": 0.2}
    assert "blind" not in summary["cells"]["text/general"]


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
    with pytest.raises(DataError, match=r"results\.jsonl, line 2"):
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
