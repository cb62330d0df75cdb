"""The page in Debian's Chromium, as a person uses it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.browser import launch_chromium
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from serving.background import QUESTION, Background
from serving.test_markdown import ATTACKS

from xreasoner.reasoner import Reasoner
from xreasoner.tiny.benchmarks import cell


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launch_chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, service: Background) -> Iterator[Page]:
    found = browser.new_page(viewport={"width": 1000, "height": 800})
    found.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    problems: list[Any] = []
    found.on("console", lambda said: problems.append(said.text) if "Content Security" in said.text else None)
    found.on("pageerror", lambda error: problems.append(error))
    found.on(
        "request",
        lambda sent: None if sent.url.startswith((service.url, "data:", "blob:")) else problems.append(sent.url),
    )
    found.goto(service.url)
    expect(found.locator("#model.ready")).to_have_text("tiny")
    yield found
    found.close()
    assert not problems


def ask(page: Page, question: str = QUESTION) -> None:
    page.fill("#question", question)
    page.keyboard.press("Enter")


def test_a_question_by_keyboard(page: Page, reasoner: Reasoner) -> None:
    ask(page)
    expect(page.locator("article .answer")).to_have_text("11")
    expect(page.locator("#question")).to_be_focused()
    thought = page.locator("article .thought")
    expect(thought.locator(".count")).to_have_text(re.compile(r"^\d+ of 160 tokens$"))
    expect(thought.locator("p")).to_be_hidden()
    thought.locator("summary").click()
    expect(thought.locator("p")).to_have_text(reasoner.ask(QUESTION).thought)
    expect(page.locator("article .copy")).to_be_visible()


def test_a_picture_with_options(page: Page, tmp_path: Path) -> None:
    problem = next(p for p in cell("general", "image", 8, 5) if p.options)
    problem.images[0].save(tmp_path / "table.png")
    page.set_input_files("#files", tmp_path / "table.png")
    expect(page.locator("#pictures img")).to_have_count(1)
    page.click("#option")
    for option in problem.options:
        page.keyboard.type(option)
        page.keyboard.press("Enter")
    ask(page, problem.question)
    expect(page.locator("article .shown img")).to_have_count(1)
    rows = page.locator("article .bars tr")
    expect(rows).to_have_count(len(problem.options))
    shares = [float(text.removesuffix(" %")) for text in rows.locator("td:last-child").all_inner_texts()]
    assert sum(shares) == pytest.approx(100, abs=0.5)


def test_a_picture_is_pasted_and_taken_back(page: Page) -> None:
    page.evaluate(
        """async () => {
            const canvas = new OffscreenCanvas(40, 40);
            canvas.getContext("2d").fillRect(0, 0, 40, 40);
            const data = new DataTransfer();
            data.items.add(new File([await canvas.convertToBlob()], "a.png", { type: "image/png" }));
            dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
            dispatchEvent(new DragEvent("drop", { dataTransfer: data, cancelable: true }));
        }"""
    )
    expect(page.locator("#pictures img")).to_have_count(2)
    page.get_by_label("Remove image 1").click()
    expect(page.locator("#pictures img")).to_have_count(1)


def test_a_picture_that_is_still_being_read_goes_with_its_question(page: Page, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "slow.png")
    page.evaluate(
        """() => {
            const read = FileReader.prototype.readAsDataURL;
            FileReader.prototype.readAsDataURL = function (file) { setTimeout(() => read.call(this, file), 500); };
        }"""
    )
    page.set_input_files("#files", tmp_path / "slow.png")
    ask(page)
    page.keyboard.press("Enter")
    expect(page.locator("article .shown img")).to_have_count(1)
    expect(page.locator("#pictures img")).to_have_count(0)
    expect(page.locator("article")).to_have_count(1)


def test_a_file_that_is_no_picture_is_said(page: Page, tmp_path: Path) -> None:
    (tmp_path / "report.pdf").write_bytes(b"%PDF-1.7")
    page.set_input_files("#files", tmp_path / "report.pdf")
    expect(page.locator("#refused[role=alert]")).to_contain_text("report.pdf")
    cell("general", "image", 1, 5)[0].images[0].save(tmp_path / "table.png")
    page.set_input_files("#files", tmp_path / "table.png")
    expect(page.locator("#refused")).to_be_hidden()
    expect(page.locator("#pictures img")).to_have_count(1)


def test_a_bar_of_100_per_cent_stays_on_one_line(page: Page) -> None:
    page.evaluate(
        "add({question: 'Who?', pictures: [], options: [], thought: 'x', answer: 'Ana', tokens: 1, exit: 'natural', "
        "bars: [{label: 'A', text: 'Ana', probability: 1}, {label: 'B', text: 'Ben', probability: 0}], mass: 1})"
    )
    heights = [row.bounding_box()["height"] for row in page.locator("article .bars tr").all()]  # type: ignore[index]
    assert heights[0] == heights[1]


def test_stop(page: Page, reasoner: Reasoner, monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = reasoner.engine
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: (time.sleep(0.05), step())[1])  # a larger model's pace
    page.click("#settings summary")
    page.fill("#thinking", "900")
    page.fill("#temperature", "2")
    page.keyboard.press("Escape")
    ask(page, "Say as much as you can of anything.")
    page.click("#stop")
    expect(page.locator("article .note")).to_have_text("Stopped.")
    expect(page.locator("#send")).to_be_visible()


def test_an_error_in_words(page: Page, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    page.set_input_files("#files", tmp_path / "broken.png")
    ask(page)
    expect(page.locator("article .note.bad[role=alert]")).to_contain_text("mage")
    expect(page.locator("#send")).to_be_visible()


def test_a_reload_keeps_the_conversation(page: Page) -> None:
    ask(page)
    expect(page.locator("article .answer")).to_have_text("11")
    page.reload()
    expect(page.locator("article .answer")).to_have_text("11")
    expect(page.locator("article .asked p")).to_have_text(QUESTION)
    page.click("#new")
    expect(page.locator("article")).to_have_count(0)
    page.reload()
    expect(page.locator("article")).to_have_count(0)


def test_a_picture_too_large_to_keep_takes_nothing_else_with_it(page: Page, tmp_path: Path) -> None:
    ask(page)
    expect(page.locator("article .answer")).to_have_text("11")
    noise = np.random.default_rng(0).integers(0, 256, (1300, 1300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    page.set_input_files("#files", tmp_path / "large.png")
    ask(page, "What is it?")
    expect(page.locator("article")).to_have_count(2)
    expect(page.locator("#send")).to_be_visible(timeout=20_000)
    page.reload()
    expect(page.locator("article")).to_have_count(2)
    expect(page.locator("article .answer").first).to_have_text("11")
    expect(page.locator("article .shown").last).to_have_text("an image, too large to keep")


def test_a_narrow_screen(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    ask(page, QUESTION + " " + "x" * 200)
    expect(page.locator("#send")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for name in ("#send", "#pick", "#option", "#new"):
        box = page.locator(name).bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360


def turn(page: Page, answer: str) -> None:
    """A turn as if the model had answered so."""
    page.evaluate(
        "answer => add({question: 'Why?', pictures: [], options: [], thought: '', answer, tokens: 1, exit: 'natural'})",
        answer,
    )


def test_an_answer_is_rendered(page: Page) -> None:
    turn(page, "It is **11**, or $\\frac{22}{2}$.\n\n| a |\n|---|\n| 1 |")
    answer = page.locator("article .answer.rendered")
    expect(answer.locator("strong")).to_have_text("11")
    expect(answer.locator("math mfrac")).to_have_count(1)
    expect(answer.locator("td")).to_have_text("1")
    above, below = (answer.locator("mfrac > mrow").nth(k).bounding_box() for k in range(2))
    assert above
    assert below
    assert above["y"] + above["height"] <= below["y"] + 1, "MathML is not drawn as a fraction"


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_answer_runs_anything(page: Page, attack: str) -> None:
    """The fixture sees to it that no request leaves and no policy is violated."""
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    turn(page, attack + " **end**")
    expect(page.locator("article .answer.rendered")).to_be_visible()
    assert page.locator(".answer :is(script, img, iframe, style, form, input, svg)").count() == 0
    assert page.evaluate(
        "[...document.querySelectorAll('.answer *')].every(e => [...e.attributes].every(a => !a.name.startsWith('on')))"
    )
    assert not dialogs


def test_the_conversation_goes_with_the_question_by_default(page: Page) -> None:
    bodies: list[Any] = []
    page.on("request", lambda sent: bodies.append(sent.post_data_json) if "completions" in sent.url else None)
    switch = page.get_by_role("switch", name="Remember")
    expect(switch).to_be_visible()
    expect(switch).to_be_checked()
    for number in (1, 2):
        ask(page)
        expect(page.locator("article .answer.rendered")).to_have_count(number)
    switch.click()
    ask(page)
    expect(page.locator("article .answer.rendered")).to_have_count(3)
    roles = [[message["role"] for message in body["messages"]] for body in bodies]
    assert roles == [["user"], ["user", "assistant", "user"], ["user"]]
    page.reload()
    expect(page.get_by_role("switch", name="Remember")).not_to_be_checked()


def test_a_conversation_that_no_longer_fits_is_left_out_and_said(page: Page) -> None:
    page.evaluate(
        "state.turns.push({question: 'x '.repeat(9000), pictures: [], options: [], thought: '', answer: 'y', "
        "tokens: 1, exit: 'natural'})"
    )
    ask(page)
    expect(page.locator("article .answer")).to_have_text("11")
    expect(page.locator("article .note")).to_contain_text("The conversation is too long for the model")


def test_an_example_fills_the_form(page: Page, reasoner: Reasoner) -> None:
    page.get_by_role("button", name="total distance").click()
    expect(page.locator("#options input")).to_have_count(4)
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("article .answer")).to_have_text("39")
    page.click("#new")
    page.get_by_role("button", name="circles").click()
    expect(page.locator("#pictures img")).to_have_count(1)
    expect(page.locator("#options input")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_sign_in_page_is_styled_in_both_color_schemes(browser: Browser, reasoner: Reasoner, scheme: Any) -> None:
    with Background(lambda: reasoner, key="s3cret") as running:
        page = browser.new_page(color_scheme=scheme)
        page.goto(running.url)
        ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        ink = page.evaluate("getComputedStyle(document.body).color")
        assert _lightness(ground) > 230 if scheme == "light" else _lightness(ground) < 40
        assert abs(_lightness(ground) - _lightness(ink)) > 150
        assert page.locator("main").bounding_box()["width"] < 500  # type: ignore[index]
        page.close()


def _lightness(color: str) -> float:
    channels = [int(number) for number in re.findall(r"\d+", color)[:3]]
    return sum(channels) / 3


def test_signing_in(browser: Browser, reasoner: Reasoner) -> None:
    with Background(lambda: reasoner, key="s3cret") as running:
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.goto(running.url)
        page.fill("input[name=key]", "wrong")
        page.click("button")
        expect(page.locator("[role=alert]")).to_have_text("Wrong API key. Check it and try again.")
        page.fill("input[name=key]", "s3cret")
        page.click("button")
        expect(page.locator("#model.ready")).to_have_text("tiny")
        ask(page)
        expect(page.locator("article .answer")).to_have_text("11")
        page.close()
