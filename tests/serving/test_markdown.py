"""An answer's Markdown and LaTeX as HTML: it reads well, and nothing in it can run."""

from __future__ import annotations

import time
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xreasoner.serving.markdown import _ATTRIBUTES, _MATH_TAGS, _TEXT_TAGS, MOST_CHARACTERS, render_markdown


class Read(HTMLParser):
    """The tags, attributes and text of some HTML, as a browser's parser sees them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("11", ["p"]),
        ("**11** and *x*", ["p", "strong", "em"]),
        ("# Why\n\n- a\n- b", ["h1", "ul", "li", "li"]),
        ("one\ntwo", ["p", "br"]),
        ("| a | b |\n|---|---|\n| 1 | 2 |", ["table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td"]),
        ("```py\nx = 1\n```", ["pre", "code"]),
        ("[a](https://example.org)", ["p", "a"]),
    ],
)
def test_markdown_is_rendered(text: str, tags: list[str]) -> None:
    assert Read(render_markdown(text)).tags == tags


@pytest.mark.parametrize(
    "text",
    [
        r"So $\frac{1}{2}$.",
        r"So \(\frac{1}{2}\).",
        r"\[ \frac{1}{2} \]",
        "$$\n\\frac{1}{2}\n$$",
        r"So $$\frac{1}{2}$$ it is",
        r"\frac{1}{2}",
        r"\boxed{\frac{1}{2}}",
        r"The answer is \boxed{\frac{1}{2}}.",
        r"$\boxed{\frac{1}{2}}$",
    ],
)
def test_latex_becomes_mathml(text: str) -> None:
    tags = Read(render_markdown(text)).tags
    assert {"math", "mfrac"} <= set(tags)
    assert "code" not in tags


@pytest.mark.parametrize(
    "text", ["It costs $5 and $6.", r"\alpha is the first letter of the alphabet", "5 < 7 & 8 > 2"]
)
def test_text_that_is_no_formula_stays_text(text: str) -> None:
    read = Read(render_markdown(text))
    assert (read.tags, read.text.strip()) == (["p"], text)


def test_a_formula_that_cannot_be_read_is_shown_as_it_is_written() -> None:
    read = Read(render_markdown(r"So $\left( \frac{1}{2}$."))
    assert (read.tags, read.text.strip()) == (["p", "code"], r"So \left( \frac{1}{2}.")
    assert Read(render_markdown("$" + "x" * 5000 + "$")).tags == ["p", "code"]


def test_a_very_long_text_is_shown_as_it_is() -> None:
    assert render_markdown("<" * (MOST_CHARACTERS + 1)).startswith("<pre>&lt;")


@pytest.mark.parametrize(
    "piece", ["$", "[", "*a_", "`", "> ", "\\(", "\\[", "$x$", "![[", "|a", "{", "<", "- ", "\\frac", "&"]
)
def test_a_reply_that_repeats_itself_is_rendered_soon(piece: str) -> None:
    begun = time.process_time()
    for size in (900 * len(piece), MOST_CHARACTERS, 10 * MOST_CHARACTERS):
        render_markdown((piece * size)[:size])
    assert time.process_time() - begun < 3


ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt&colon;alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "![x](https://example.org/x.png)",
    "![x](javascript:alert(1))",
    "<javascript:alert(1)>",
    "[x]: javascript:alert(1)\n\n[x]",
    r"$\href{javascript:alert(1)}{x}$",
    r"$\text{<img src=x onerror=alert(1)>}$",
    r"$\text{</math><script>alert(1)</script>}$",
    r"$\text{&lt;script&gt;alert(1)&lt;/script&gt;}$",
    r"\(\mbox{<svg onload=alert(1)>}\)",
    r"$\color{red;background:url(x)}{x}$",
    r"$\style{position:fixed}{x}$",
    "<style>*{display:none}</style>",
    "<form action=//example.org><input name=key></form>",
    "```<img src=x onerror=alert(1)>\nx\n```",
    "| <script>alert(1)</script> |\n|---|\n| <iframe src=x> |",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=alert(1)&gt;'>",
    '[x](https://example.org "onmouseover=alert(1)")',
    '[x](https://example.org" onmouseover="alert(1))',
]


def assert_safe(html: str) -> None:
    read = Read(html)
    assert set(read.tags) <= {*_TEXT_TAGS, *_MATH_TAGS}
    for tag, name, value in read.attributes:
        assert name in _ATTRIBUTES.get(tag, set()) | ({"rel"} if tag == "a" else set())
        assert name != "href" or value.partition(":")[0].lower() in ("http", "https", "mailto") or ":" not in value


@pytest.mark.parametrize("text", ATTACKS)
def test_nothing_that_runs_gets_through(text: str) -> None:
    assert_safe(render_markdown(text))


pieces = st.sampled_from(
    [*ATTACKS, "$", "$$", "\\(", "\\)", "\\[", "`", "\n", "|", "<", ">", '"', "&", "{", "}", "\\frac", "x^"]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(pieces, st.text(max_size=4)), max_size=8).map("".join))
def test_any_text_is_rendered_and_safe(text: str) -> None:
    assert_safe(render_markdown(text))


def test_text_of_a_formula_is_kept() -> None:
    assert "a < b" in Read(render_markdown(r"$\text{a < b}$")).text.replace("\xa0", " ")
