"""The report's page: self-contained, complete, escaped, true to the summary, and honest about what is not there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fabricated_run import CELLS, STAGES, fabricate, write_json, write_lines
from PIL import Image

from xreasoner.benchmarks.store import read_rows
from xreasoner.errors import DataError, UserError
from xreasoner.reporting import findings, traces, write_report
from xreasoner.reporting.reading import read_run

SECTIONS = ["matrix", "gains", "curves", "perception", "benchmarks", "frozen", "protocol", "traces"]
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
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.S)
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
    for words in ("blind floor", "Image gain ÷ text gain", "How rollouts ended", "Clipped share", "equal ✓", "Wilson"):
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
    page = Page(write_report(small).read_text(encoding="utf-8"))
    assert page.count("script") == before.count("script") == 1
    assert page.count("style") == 1
    assert all(attributes.get("id") != "pwned" for _, attributes in page.tags)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "<img src=x onerror=alert(1)>\"'><b id=pwned>&amp; ?" in page.text


@pytest.mark.parametrize("stages", [("base",), ("base", "sft"), ("base", "base-direct"), STAGES[:3]])
def test_stages_that_are_missing_are_left_out(tmp_path: Path, stages: tuple[str, ...]) -> None:
    html = write_report(fabricate(tmp_path / "run", n=6, stages=stages)).read_text(encoding="utf-8")
    shown = set(re.findall(r'data-number="cells (\S+) ', html))
    assert shown == set(stages)
    assert "sft+rl" not in Page(html).text
    assert [name for name in Page(html).ids() if name in SECTIONS] == SECTIONS
    if "sft" not in stages:
        assert "nothing can be said of post-training" in html


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
    cells = [f"{100 * entry['accuracy']:.1f}" for entry in read_run(small).summary["cells"]["sft"].values()]
    assert len(cells) == 4
    assert all(cell in page.text and cell in wanted for cell in cells)


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
    assert [path.name for path in first.parent.iterdir()] == ["a.html"]


def test_every_filter_that_has_items_shows_some(run: Path) -> None:
    loaded = read_run(run)
    places = traces.gather(loaded)
    shown = [item for item, _ in traces.pick(loaded, places)]
    for place, items in places.items():
        visible = [item for item in shown if item.place == place]
        assert len(visible) == min(len(items), traces.PER_CELL if place[0] == "cells" else traces.PER_OTHER)
        for story in traces.STORIES:
            assert any(story in i.stories for i in items) == any(story in i.stories for i in visible), (place, story)
        if place[0] == "cells":
            for stage in STAGES:
                assert {i.rows[stage]["outcome"] for i in items} == {i.rows[stage]["outcome"] for i in visible}
    assert {place[1] for place in places if place[0] == "cells"} == set(CELLS)


@pytest.mark.parametrize(
    ("right", "wanted"),
    [
        ({"base": 0, "base-direct": 0, "sft": 1, "sft+rl": 0}, ("fixed-by-sft", "broken-by-rl")),
        ({"base": 0, "base-direct": 1, "sft": 1, "sft+rl": 1}, ()),
        ({"base": 0, "base-direct": 1, "sft": 0, "sft+rl": 1}, ("broken-by-sft", "fixed-by-rl")),
        ({"base": 0, "sft": 1}, ("fixed-by-sft",)),
        ({"sft": 0, "sft+rl": 1}, ("fixed-by-rl",)),
        ({"base": 1}, ()),
    ],
)
def test_stories(right: dict[str, int], wanted: tuple[str, ...]) -> None:
    assert traces.stories({stage: {"correct": bool(value)} for stage, value in right.items()}) == wanted


def test_long_traces_and_big_pictures_stay_under_the_cap(small: Path) -> None:
    noise = Image.effect_noise((900, 900), 90).convert("RGB")
    for path in (small / "images").iterdir():
        noise.save(path)
    for stage in STAGES:
        change_rows(small, stage, thought="<" * 50_000, question="&" * 50_000)
    path = write_report(small)
    assert 1_000_000 < path.stat().st_size < 5_000_000
    assert "data:image/jpeg;base64," in path.read_text(encoding="utf-8")
    assert "44000 characters left out" in path.read_text(encoding="utf-8")


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
    assert "raised accuracy on pictures: general from 20.0 to 50.0\u00a0% (+30.0 points" in findings.headline([up])
    assert "made no distinguishable difference to accuracy on pictures" in findings.headline([flat])
    assert "lowered accuracy" in findings.headline([down])
    assert "−10.0 points" in findings.headline([down])
    other = gain("image/clinical", 0.2, 0.21, 0.05)
    assert "did not move alike" not in findings.headline([up])
    mixed = findings.headline([other, up])
    assert mixed.index("general") < mixed.index("clinical")
    assert "not distinguishable" in mixed
    assert "raised" not in mixed
    blind = findings.headline([gain("image/general", 0.2, 0.5, 0.02, above_blind=-0.01)])
    assert "no better than without the picture" in blind
    assert "+30.0 (general) points" in findings.headline([up, gain("text/general", 0.2, 0.5, 0.02)])


def test_a_difference_is_doubted_for_its_interval_or_its_size() -> None:
    assert findings.doubt(gain("image/general", 0.2, 0.21, 0.02)) == "the interval covers 0"
    assert "smallest difference" in findings.doubt(gain("image/general", 0.2, 0.22, 0.01))
    assert findings.doubt(gain("image/general", 0.2, 0.3, 0.02)) == ""


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """<script>
const form = document.getElementById("filters"), button = document.querySelector("button[data-story]");
const seen = () => [...document.querySelectorAll("details.item")].filter((item) => !item.hidden);
button.click();
const told = seen().every((item) => item.dataset.stories.includes(button.dataset.story));
form.reset(); form.elements.stage.value = "sft"; form.elements.outcome.value = "wrong";
form.dispatchEvent(new Event("change"));
const wrong = seen().length, all = document.querySelectorAll("details.item").length;
for (const part of document.querySelectorAll("details")) part.open = true;
const root = document.documentElement;
parent.document.title = JSON.stringify(
  {inner: innerWidth, room: root.clientWidth, wide: root.scrollWidth, told, wrong, all});
</script></body>"""


def dump(path: Path, profile: Path, width: int) -> str:
    """The page's document after its scripts ran, as Chromium writes it."""
    quiet = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
    quiet += ["disable-component-update", "disable-sync", f"user-data-dir={profile}", f"window-size={width},900"]
    command = [str(CHROMIUM), "--headless", *(f"--{flag}" for flag in quiet), "--dump-dom", path.as_uri()]
    return subprocess.run(command, capture_output=True, timeout=120, check=True).stdout.decode("utf-8", "replace")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium) to lay the page out")
def test_in_a_browser_nothing_overflows_and_the_filters_work(small: Path, tmp_path: Path) -> None:
    change_rows(small, "sft", thought=HOSTILE)
    path = write_report(small)
    shown = dump(path, tmp_path / "profile", 1280)
    assert re.search(r'id="count" role="status">(\d+) of \1 items<', shown)
    assert "<title>Transfer report: demo</title>" in shown
    html = path.read_text(encoding="utf-8")
    probed = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html).replace("</body>", PROBE)
    phone = tmp_path / "phone.html"  # a frame: the browser's own window is never narrower than 500 pixels
    frame = f'<title></title><iframe style="width:390px;height:844px;border:0" srcdoc="{escape(probed)}"></iframe>'
    phone.write_text(f'<!doctype html><meta charset="utf-8">{frame}', encoding="utf-8")
    (title,) = re.findall(r"<title>(.*?)</title>", dump(phone, tmp_path / "profile", 1280).partition("<iframe")[0])
    state = json.loads(title)
    assert state["inner"] == 390
    assert state["wide"] <= state["room"], state
    assert state["told"]
    assert 0 < state["wrong"] < state["all"], state
