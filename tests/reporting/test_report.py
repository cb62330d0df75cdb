"""The report's page: self-contained, complete, escaped, true to the summary, and honest about what is not there."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fabricated_run import CELLS, STAGES, fabricate, write_json, write_lines
from helpers.browser import launch_chromium
from huggingface_hub import EvalResult, ModelCard
from PIL import Image

from xreasoner.benchmarks.store import read_rows
from xreasoner.errors import DataError, UserError
from xreasoner.reporting import findings, traces, write_report
from xreasoner.reporting.reading import read_runs

SECTIONS = [
    "matrix", "gains", "sight", "exits", "parsers", "curves", "perception", "benchmarks", "frozen", "protocol", "traces"
]  # fmt: skip
HOSTILE = (
    "</script></style><script>document.title='pwned'</script><img src=x onerror=alert(1)>\"'><b id=pwned>&amp; \ud800\0"
)


class Page(HTMLParser):
    """What a browser would find: tags with their attributes, headings' ids, and all text outside of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def ids(self) -> list[str]:
        return [str(attributes["id"]) for _, attributes in self.tags if "id" in attributes]

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def packed(html: str, name: str) -> Any:
    """What the page holds packed under an id: the index, or a chunk of traces."""
    (text,) = re.findall(rf'<script type="text/plain" id="{name}">(.*?)</script>', html)
    return json.loads(gzip.decompress(base64.b64decode(text)))


def scripts(html: str) -> list[str]:
    """The scripts that a browser would run: those without a type of data."""
    return re.findall(r"<script>(.*?)</script>", html, re.S)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return fabricate(tmp_path / "run", n=6)


def change_rows(run: Path, stage: str, **fields: Any) -> None:
    path = run / "eval" / stage / "results.jsonl"
    write_lines(path, [{**row, **fields} for row in read_rows(path)])


def test_the_page_asks_for_nothing_from_outside(html: str) -> None:
    page = Page(html)
    for tag, attributes in page.tags:
        assert (attributes.get("src") or "data:").startswith("data:"), tag
        assert (attributes.get("href") or "#").startswith(("#", "data:")), tag
        assert not {"srcset", "action", "formaction", "poster", "data", "ping"} & set(attributes), tag
    assert not {"iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.S)
    (script,) = scripts(html)
    assert not re.search(r"url\(|@import", style)
    assert not re.search(r"fetch|XMLHttpRequest|import|WebSocket|sendBeacon|https?:", script)
    assert "default-src 'none'" in html


def test_every_section_is_there_and_every_link_leads_somewhere(html: str) -> None:
    page = Page(html)
    ids = page.ids()
    assert [name for name in ids if name in SECTIONS] == SECTIONS
    assert len(ids) == len(set(ids))
    links = {str(attributes["href"])[1:] for tag, attributes in page.tags if tag == "a"}
    assert set(SECTIONS) <= links <= set(ids)
    for words in (
        "blind floor",
        "Smallest difference that these samples can show",
        "swapped",
        "Image gain ÷ text gain",
        "How rollouts ended",
        "Clipped share",
        "equal ✓",
        "Wilson",
    ):
        assert words in page.text
    assert page.count("svg") > 40


def test_the_numbers_are_those_of_the_summary(run: Path, html: str) -> None:
    summary = json.loads((run / "summary.json").read_text())
    pattern = r'data-number="(\w+) (\S+) (\S+)"><b>([\d.]+)</b> <span class="range">([\d.]+)–([\d.]+)</span>'
    blind = r'(?:<span class="range block">blind ([\d.]+)</span>)?'
    found = {match[:3]: match[3:] for match in re.findall(pattern + blind, html)}
    groups = [summary[group] for group in ("cells", "perception", "benchmarks")]
    assert len(found) == sum(len(names) for group in groups for names in group.values())
    for (group, stage, name), shown in found.items():
        entry = summary[group][stage][name]
        wanted = [f"{100 * entry[key]:.1f}" for key in ("accuracy", "low", "high")]
        assert list(shown) == [*wanted, f"{100 * entry['blind']:.1f}" if "blind" in entry else ""]
    text = Page(html).text
    for gain in summary["gains"]:
        if gain["kind"] != "ratio":
            assert findings.interval(gain["low"], gain["high"]) in text
    ratios = [gain for gain in summary["gains"] if gain["kind"] == "ratio" and gain["after"] == "sft+rl"]
    (ratio,) = [gain for gain in ratios if gain["domain"] == "general"]
    assert f"{ratio['ratio']:.2f}" in text
    assert f"{ratio['low']:.2f} to {ratio['high']:.2f}" in text


def test_traces_cannot_break_out(small: Path) -> None:
    before = Page(write_report(small).read_text(encoding="utf-8"))
    for stage in STAGES:
        fields = ("question", "gold", "thought", "answer", "outcome", "exit", "facts", "family", "response")
        change_rows(small, stage, options=[HOSTILE], **dict.fromkeys(fields, HOSTILE))
    html = write_report(small).read_text(encoding="utf-8")
    page = Page(html)
    assert page.count("script") == before.count("script")
    assert len(scripts(html)) == page.count("style") == 1
    assert all(attributes.get("id") != "pwned" for _, attributes in page.tags)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    chunk = packed(html, "chunk-0")
    assert "<img src=x onerror=alert(1)>\"'><b id=pwned>&amp; ?" in chunk[0]["traces"]["sft"]["thought"]
    assert HOSTILE[:40] in packed(html, "index")["items"][0][1]


@pytest.mark.parametrize("stages", [("base",), ("base", "sft"), ("base", "base-direct"), STAGES[:3]])
def test_stages_that_are_missing_are_left_out(tmp_path: Path, stages: tuple[str, ...]) -> None:
    html = write_report(fabricate(tmp_path / "run", n=6, stages=stages)).read_text(encoding="utf-8")
    shown = set(re.findall(r'data-number="cells (\S+) ', html))
    assert shown == set(stages)
    assert "sft+rl" not in Page(html).text
    assert [name for name in Page(html).ids() if name in SECTIONS] == SECTIONS
    if "sft" not in stages:
        assert "post-training cannot be judged" in html


def test_a_summary_alone_makes_a_page(small: Path) -> None:
    for path in small.iterdir():
        if path.name != "summary.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = Page(write_report(small).read_text(encoding="utf-8"))
    assert [name for name in page.ids() if name in SECTIONS] == SECTIONS
    assert "No result is stored" in page.text
    assert "results not in this folder" in page.text


def test_results_alone_make_a_page(small: Path) -> None:
    wanted = Page(write_report(small).read_text(encoding="utf-8")).text
    (small / "summary.json").unlink()
    page = Page(write_report(small).read_text(encoding="utf-8"))
    cells = [f"{100 * entry['accuracy']:.1f}" for entry in read_runs([small]).summary["cells"]["sft"].values()]
    assert len(cells) == 4
    assert all(cell in page.text and cell in wanted for cell in cells)


def test_a_run_that_was_only_trained_has_its_curves_and_its_proof(small: Path) -> None:
    """A recipe without benchmarks, or a run whose first measurement is still to come."""
    shutil.rmtree(small / "eval")
    (small / "summary.json").unlink()
    page = Page(write_report(small).read_text(encoding="utf-8"))
    for said in ("No cell has been evaluated yet", "Gradient norm", "pass@k of the groups", "equal ✓"):
        assert said in page.text


def test_a_place_that_no_page_can_have_is_refused(small: Path) -> None:
    for place in (small, small / "page.md", small / "page.csv"):  # the Markdown would lie over the page
        with pytest.raises(UserError, match=r"--out .*: expected the page's file, such as .*\.html"):
            write_report(small, place)


def test_no_run_and_damaged_files_are_named(tmp_path: Path, small: Path) -> None:
    with pytest.raises(UserError, match=r"holds no results"):
        write_report(tmp_path)
    with (small / "sft" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 181, "lo')
    write_report(small)
    (small / "summary.json").write_text('{"cells": ')
    with pytest.raises(DataError, match=r"summary\.json: not JSON"):
        write_report(small)


def test_the_same_folder_gives_the_same_page(small: Path, tmp_path: Path) -> None:
    first = write_report(small, tmp_path / "elsewhere" / "a.html")
    assert first == tmp_path / "elsewhere" / "a.html"
    assert first.read_bytes() == write_report(small).read_bytes()
    assert sorted(path.name for path in first.parent.iterdir()) == ["a.card.md", "a.csv", "a.html", "a.md"]


def test_every_trace_is_on_the_page_and_the_rare_come_first(run: Path, html: str) -> None:
    loaded = read_runs([run])
    places = traces.gather(loaded)
    index = packed(html, "index")
    assert len(index["items"]) == sum(map(len, places.values()))
    chunks = {number: packed(html, f"chunk-{number}") for number in range(-(-len(index["items"]) // index["size"]))}
    for item in index["items"]:
        identity, _, label, family, stories, rows, place = item
        (found,) = [i for items in places.values() for i in items if (i.first["id"], i.label) == (
            identity, index["labels"][label])]  # fmt: skip
        assert found.first["family"] == index["families"][family]
        assert found.stories == tuple(index["stories"][story] for story in stories)
        detail = chunks[place // index["size"]][place % index["size"]]
        assert detail["gold"] == found.first["gold"]
        for stage, row in zip(index["stages"], rows, strict=True):
            wanted = found.rows[stage]
            assert (index["outcomes"][row[0]], index["exits"][row[1]]) == (wanted["outcome"], wanted["exit"])
            assert detail["traces"][stage]["thought"] == wanted["thought"]
            assert detail["traces"][stage]["mark"] in detail["traces"][stage]["answer"]
    kinds = len({kind for item in places["cells", "text/general"] for kind in traces._kinds(item)})
    first = traces.interleave(places["cells", "text/general"])[:kinds]
    assert {story for item in first for story in item.stories} == {
        story for item in places["cells", "text/general"] for story in item.stories
    }
    assert {place[1] for place in places if place[0] == "cells"} == set(CELLS)


@pytest.mark.parametrize(
    ("right", "wanted"),
    [
        ({"base": 0, "base-direct": 0, "sft": 1, "sft+rl": 0}, ("fixed by sft", "broken by sft+rl")),
        ({"base": 0, "base-direct": 1, "sft": 1, "sft+rl": 1}, ()),
        ({"base": 0, "base-direct": 1, "sft": 0, "sft+rl": 1}, ("broken by sft", "fixed by sft+rl")),
        ({"base": 0, "sft": 1}, ("fixed by sft",)),
        ({"sft": 0, "sft+rl": 1}, ("fixed by sft+rl",)),
        ({"base": 1}, ()),
        ({"base": 1, "ours": 0, "theirs": 1}, ("broken by ours",)),
        ({"a": 0, "b": 1}, ("fixed by b",)),
        ({"base": 0, "sft": 0, "base@two": 1, "sft@two": 0}, ("broken by sft@two",)),
    ],
)
def test_stories(right: dict[str, int], wanted: tuple[str, ...]) -> None:
    rows = {stage: {"correct": bool(value)} for stage, value in right.items()}
    assert traces.stories(rows, traces.predecessors(list(right))) == wanted


def test_long_traces_and_big_pictures_stay_under_the_cap(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.effect_noise((900, 900), 90).convert("RGB").save(small / "noise.png")
    for path in (small / "images").iterdir():
        shutil.copy(small / "noise.png", path)
    for stage in STAGES:
        change_rows(small, stage, thought="<" * 50_000, question="&" * 50_000)
    monkeypatch.setattr(traces, "PICTURE_BYTES", 200_000)
    monkeypatch.setattr(traces, "TEXT_BYTES", 4000)
    monkeypatch.setattr(traces, "PER_CHUNK", 4)
    path = write_report(small)
    html = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 600_000
    assert "data:image/webp;base64," in html
    assert "44000 characters left out" in packed(html, "chunk-0")[0]["traces"]["sft"]["thought"]
    places = [item[6] for item in packed(html, "index")["items"]]
    assert places.count(-1) == len(places) - 4 * html.count('id="chunk-')
    assert re.search(rf"{len(places)} items can be filtered, \d+ opened", html)
    assert re.search(r"\d+ of \d+ images are here", html)


def test_a_picture_outside_of_the_run_is_not_read(small: Path) -> None:
    Image.new("RGB", (4, 4)).save(small.parent / "secret.png")
    (small / "images" / "broken.png").write_text("no picture")
    assert traces.picture_uri(small, "../secret.png") is None
    assert traces.picture_uri(small, "images/broken.png") is None
    assert traces.picture_uri(small, "images/none.png") is None
    inside = next(path for path in (small / "images").iterdir() if path.name != "broken.png")
    assert str(traces.picture_uri(small, f"images/{inside.name}")).startswith("data:image/png;base64,")


def test_a_tower_that_moved_is_said_to_have_moved(small: Path) -> None:
    for stage, after in (("sft", "cd34" * 16), ("sft+rl", None)):
        write_json(small / stage / "manifest.json", {"frozen": {"tensors": 41, "before": "ab12" * 16, "after": after}})
    html = write_report(small).read_text(encoding="utf-8")
    verdicts = dict(re.findall(r'data-frozen="(\S+)">.*?<b class="\w+">([^<]+)</b>', html))
    assert verdicts == {"base-direct": "equal ✓", "sft": "differs ✗", "sft+rl": "not finished"}
    assert "from no picture" not in html


def gain(cell: str, before: float, after: float, half: float, **more: float) -> dict[str, Any]:
    d = after - before
    named = {"kind": "cell", "cell": cell, "after": "sft", "before": "base", "n": 500, "detectable": 0.03}
    numbers = {"accuracy_before": before, "accuracy_after": after, "difference": d, "low": d - half, "high": d + half}
    return {**named, **numbers, **more}


def test_the_headline_says_no_more_than_the_numbers() -> None:
    up, flat, down = (gain("image/general", 0.2, after, 0.02) for after in (0.5, 0.21, 0.1))
    assert "raised accuracy on images: general from 20.0 to 50.0\u00a0% (+30.0 points" in findings.headline([up])
    assert "made no distinguishable difference to accuracy on images" in findings.headline([flat])
    assert "lowered accuracy" in findings.headline([down])
    assert "−10.0 points" in findings.headline([down])
    other = gain("image/clinical", 0.2, 0.21, 0.05)
    assert "changed in different directions" not in findings.headline([up])
    mixed = findings.headline([other, up])
    assert mixed.index("general") < mixed.index("clinical")
    assert "not distinguishable" in mixed
    assert "raised" not in mixed
    blind = findings.headline([gain("image/general", 0.2, 0.5, 0.02, above_blind=-0.01)])
    assert "no better than without the image" in blind
    assert "+30.0 (general) points" in findings.headline([up, gain("text/general", 0.2, 0.5, 0.02)])


def test_losses_are_named_beside_the_gains_largest_first() -> None:
    cell = gain("image/general", 0.2, 0.5, 0.02)
    small = {**gain("easy-vqa", 0.30, 0.26, 0.01), "kind": "benchmark"}
    large = {**gain("gym-held-out", 0.4, 0.1, 0.02), "kind": "benchmark"}
    flat = {**gain("slake", 0.4, 0.39, 0.05), "kind": "benchmark"}
    ratio = {**gain("general", 0.4, 0.1, 0.02), "kind": "ratio"}
    found = findings.losses([cell, small, large, flat, ratio])
    assert [tile["label"] for tile in found] == ["gym-held-out", "easy-vqa"]
    sentence = findings.losses_sentence(found)
    assert sentence.startswith("Got worse: gym-held-out −30.0 points (")
    assert "; easy-vqa −4.0 points (" in sentence
    assert findings.losses_sentence(findings.losses([cell, flat])) == ""


def test_what_got_worse_stands_before_the_matrix(run: Path, html: str) -> None:
    names = [tile["label"] for tile in findings.losses(json.loads((run / "summary.json").read_text())["gains"])]
    place = html.index('id="losses"')
    assert place < html.index('id="matrix"')
    shown = html[place : html.index('id="matrix"')]
    assert all(f"<dt>{name}</dt>" in shown for name in names)
    assert names or "Nothing that was measured got worse" in shown


def test_swapped_images_are_named_only_where_they_were_measured(small: Path) -> None:
    assert re.search(r"<th[^>]*>Swapped</th>", write_report(small).read_text(encoding="utf-8"))
    for stage in STAGES:
        path = small / "eval" / stage / "results.jsonl"
        write_lines(path, [row for row in read_rows(path) if row["condition"] != "swapped"])
    (small / "summary.json").unlink()
    html = write_report(small).read_text(encoding="utf-8")
    assert re.search(r"<th[^>]*>Blind</th>", html)
    assert "swapped" not in Page(html).text.lower()


def test_other_models_side_by_side_are_not_called_post_training() -> None:
    models = {"after": "phi", "before": "llava"}
    told = findings.headline([{**gain("image/general", 0.5, 0.2, 0.02), **models}])
    assert told.startswith("Compared with llava, phi lowered accuracy on images: general from 50.0 to 20.0")
    text = findings.headline([{**gain("text/general", 0.5, 0.2, 0.02), **models}])
    assert text.startswith("Compared with llava, phi")
    trained = {**gain("image/general", 0.2, 0.5, 0.02), "after": "mine", "before": "base-direct"}
    assert findings.headline([trained]).startswith("Post-training on text alone (mine) raised")


def test_a_difference_is_doubted_for_its_interval_or_its_size() -> None:
    assert findings.doubt(gain("image/general", 0.2, 0.21, 0.02)) == "the interval covers 0"
    assert "smallest difference" in findings.doubt(gain("image/general", 0.2, 0.22, 0.01))
    assert findings.doubt(gain("image/general", 0.2, 0.3, 0.02)) == ""


def test_a_difference_that_does_not_survive_holm_is_doubted() -> None:
    assert findings.doubt(gain("image/general", 0.2, 0.3, 0.02, p=0.01, p_holm=0.2)).startswith("Holm’s p is 0.2")
    assert findings.doubt(gain("image/general", 0.2, 0.3, 0.02, p=1e-6, p_holm=1e-5)) == ""


def test_what_the_sample_can_show_stands_before_the_numbers(html: str) -> None:
    text = Page(html).text
    assert 0 < text.index("Smallest difference that these samples can show") < text.index("Post-training on text alone")
    gains = [gain("image/general", 0.2, 0.3, 0.02, detectable=d) for d in (0.05, 0.07)]
    assert "±5.0 to ±7.0 points (500 items a comparison, power 0.8)" in findings.can_show(gains)
    assert findings.can_show([]) == ""


def test_several_budgets_of_one_folder_are_a_curve(small: Path) -> None:
    path = small / "eval" / "sft" / "results.jsonl"
    rows = [row for row in read_rows(path) if row["bench"] == "tiny-text-general"]
    less = [{**r, "key": r["key"] + "8", "sampling": "8", "thinking_budget": 8, "exit": "forced"} for r in rows]
    with path.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in less))
    page = Page(write_report(small).read_text(encoding="utf-8"))
    (told,) = [str(a["aria-label"]) for t, a in page.tags if "by thinking budget" in str(a.get("aria-label"))]
    assert re.match(r"text/general, accuracy by thinking budget: sft: 8 tokens [\d.]+ %, 112 tokens [\d.]+ %$", told)
    assert "| text/general | sft | 8 |" in (small / "report.md").read_text()


def test_several_samples_of_an_item_are_averaged_voted_and_passed(small: Path) -> None:
    path = small / "eval" / "sft" / "results.jsonl"
    rows = [row for row in read_rows(path) if row["bench"] == "tiny-text-general"]
    drawn = [
        {**row, "key": f"{row['key']}/{k}", "sampling": "t", "temperature": 1.0, "sample": k, "correct": k < 1,
         "outcome": "correct" if k < 1 else "wrong", "extracted": f"{k}"}
        for row in rows for k in range(4)
    ]  # fmt: skip
    with path.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in drawn))
    html = write_report(small).read_text(encoding="utf-8")
    assert "Several samples an item" in html
    assert re.search(r"1: <b>25.0</b> <span.*2: <b>50.0</b> <span.*4: <b>100.0</b> <span", html)
    told = next(line for line in (small / "report.md").read_text().splitlines() if ", 4: 100.0 (" in line)
    assert told.startswith(f"| text/general | sft | {len(rows)} | 4 | 25.0 (")
    with (small / "report.csv").open(newline="") as file:
        lines = {line["quantity"]: float(line["value"]) for line in csv.DictReader(file) if line["table"] == "samples"}
    assert lines == {"average": 0.25, "majority": 0.25, "pass: 1": 0.25, "pass: 2": 0.5, "pass: 4": 1.0}


def test_several_runs_make_one_report(tmp_path: Path) -> None:
    first, second = fabricate(tmp_path / "one", n=12), fabricate(tmp_path / "two", n=12)
    for stage in ("sft", "sft+rl"):
        change_rows(second, stage, model=f"other {stage}")
    again = second / "eval" / "base" / "results.jsonl"
    fresh = {**read_rows(again)[0], "key": "fresh", "id": "general-9-9"}
    write_lines(again, [*read_rows(again), fresh])
    html = write_report([first, second], tmp_path / "both.html").read_text(encoding="utf-8")
    run = read_runs([first, second])
    assert run.stages == ("base", "base-direct", "sft", "sft+rl", "sft@two", "sft+rl@two")
    assert len(run.rows["base"]) == 1 + len(run.rows["sft@two"])  # a sample that lies in both folders counts once
    page = Page(html)
    assert "sft@two" in page.text
    compared = {(g["after"], g["before"]) for g in run.summary["gains"] if g["kind"] == "cell"}
    assert {("sft@two", "sft"), ("sft+rl@two", "sft@two")} < compared
    assert any(after == "sft@two" and before.startswith("base") for after, before in compared)
    assert set(run.metrics) == {"base-direct", "sft", "sft+rl", "sft@two", "sft+rl@two"}
    with pytest.raises(UserError, match="given twice"):
        write_report([first, first])


def test_markdown_and_csv_hold_the_summarys_numbers(run: Path, html: str) -> None:
    summary, text = read_runs([run]).summary, (run / "report.md").read_text()
    with (run / "report.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    cells = {(line["stage"], line["place"]): float(line["value"]) for line in lines if line["table"] == "cells"}
    for stage, entries in summary["cells"].items():
        for name, entry in entries.items():
            assert cells[stage, name] == pytest.approx(entry["accuracy"])
            assert f"{100 * entry['accuracy']:.1f} ({100 * entry['low']:.1f}" in text
    differences = [line for line in lines if line["quantity"].startswith("difference")]
    compared = [gain for gain in summary["gains"] if gain["kind"] != "ratio"]
    assert [float(line["p_holm"]) for line in differences] == pytest.approx([gain["p_holm"] for gain in compared])
    for table in ("sight", "exits", "parsers"):
        assert any(line["table"] == table for line in lines)
    for title in ("Gains", "Did the images matter?", "How replies ended", "How much is the parser’s"):
        assert f"## {title}" in text
    widths = {line.count(" | ") for line in re.findall(r"(?s)## Gains\n\n.*?\n\n(.*?)\n\n", text)[0].splitlines()[2:]}
    assert len(widths) == 1


def test_the_model_card_is_read_by_the_hubs_own_library(run: Path, html: str) -> None:
    card = ModelCard((run / "report.card.md").read_text())
    found = {result.dataset_name: result for result in card.data.eval_results or []}
    summary = read_runs([run]).summary
    wanted = summary["cells"]["sft+rl"]["image/general"]
    result = found["tiny-image-general"]
    assert isinstance(result, EvalResult)
    assert result.metric_value == pytest.approx(100 * wanted["accuracy"], abs=0.006)
    assert result.metric_args["n"] == wanted["n"]
    assert result.task_type == "image-text-to-text"
    assert found["tiny-text-general"].task_type == "text-generation"
    assert card.data.model_name == "demo-sft-rl"
    assert len(found) == sum(len(summary[group]["sft+rl"]) for group in ("cells", "perception", "benchmarks"))


READY = "html[data-ready]"
"""A selector: the page's policy forbids the eval by which `wait_for_function` asks a second time."""


@pytest.fixture
def browser() -> Iterator[Any]:
    with launch_chromium() as browser:
        yield browser


@contextmanager
def opened(browser: Any, path: Path, width: int = 1280) -> Iterator[Any]:
    """The page after its traces were unpacked; at the end it must have neither complained nor asked for anything."""
    page, complaints = browser.new_page(viewport={"width": width, "height": 844}), list[str]()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector(READY, state="attached", timeout=20_000)
    yield page
    page.close()
    assert [c for c in complaints if c != path.as_uri() and not c.startswith(("data:", "blob:"))] == []


@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser_nothing_overflows(browser: Any, small: Path, width: int) -> None:
    change_rows(small, "sft", thought=HOSTILE)
    with opened(browser, write_report(small), width) as page:
        page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
        page.wait_for_selector(".trace")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.title() == "Transfer report: demo"


def test_the_traces_can_be_filtered_and_read(browser: Any, run: Path, html: str) -> None:
    with opened(browser, run / "report.html") as page:
        wanted = packed(html, "index")
        stage, outcome = wanted["stages"].index("sft"), wanted["outcomes"].index("wrong")
        page.select_option("[name=stage]", "sft")
        page.select_option("[name=outcome]", "wrong")
        wrong = sum(item[5][stage][0] == outcome for item in wanted["items"])
        assert page.inner_text("#count") == f"{wrong} of {len(wanted['items'])} items"
        page.click("#filters button[type=reset]")
        page.wait_for_selector(f"#count:text('{len(wanted['items'])} of')")
        button = page.locator("button[data-story='fixed by sft'][data-bench='image/general']")
        fixed = int(button.inner_text())
        button.click()
        assert page.inner_text("#count").startswith(f"{fixed} of ")
        line = page.locator("details.item").first
        assert "fixed by sft" in line.get_attribute("data-stories").split("|")
        line.click()
        page.wait_for_selector(".trace")
        right = page.locator(".trace[data-stage=sft]")
        assert "correct ✓" in right.inner_text()
        assert right.locator("mark").count() == 1
        assert page.locator(".problem img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
        page.fill("[name=words]", "no such words anywhere")
        assert page.inner_text("#count") == "No item matches; loosen a filter."


def test_twenty_thousand_traces_are_fast(browser: Any, tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", n=40, stages=("base", "sft"))
    for stage in ("base", "sft"):
        path = run / "eval" / stage / "results.jsonl"
        seen = [row for row in read_rows(path) if row["condition"] == "seen"]
        copies = range(-(-10_000 // len(seen)))
        more = [{**r, "id": f"{r['id']}-{copy}", "key": f"{r['key']}-{copy}"} for copy in copies for r in seen]
        write_lines(path, [{**r, "thought": f"{r['thought']} {r['id']} " * 4} for r in more[:10_000]])
    path = write_report(run)
    assert path.stat().st_size < 8_000_000
    with opened(browser, path) as page:
        assert len(packed(path.read_text(), "index")["items"]) == 10_000  # two traces each
        ready = float(page.get_attribute("html", "data-ready"))
        assert ready < 5_000, "milliseconds from the start of loading until filters answer"
        filtering = """() => { const start = performance.now();
          document.querySelector("[name=outcome]").value = "wrong";
          document.getElementById("filters").dispatchEvent(new Event("input"));
          return performance.now() - start; }"""
        assert page.evaluate(filtering) < 500
