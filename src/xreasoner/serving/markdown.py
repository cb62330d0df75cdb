"""Markdown and LaTeX of an answer as HTML that is safe to show.

markdown-it-py reads the Markdown with raw HTML escaped, latex2mathml makes MathML, which browsers draw themselves, and
nh3 lets nothing through but the tags and attributes listed here. The page's content-security-policy allows no script
but the page's own in any case.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any
from xml.etree.ElementTree import tostring

import nh3
from latex2mathml.converter import convert_to_element
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.texmath import texmath_plugin

MOST_CHARACTERS = 20_000
MOST_OPENINGS = 1_000
"""A longer text, or one with more opening brackets, is shown as it is: reading it takes quadratic time."""
MOST_MATH = 2_000
"""Characters of one formula; a longer one is shown as it is written."""

_TEXT_TAGS = (
    *("p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "pre", "code", "em", "strong", "s", "a"),
    *("ul", "ol", "li", "table", "thead", "tbody", "tr", "th", "td"),
)
_MATH_TAGS = (
    *("math", "mrow", "mi", "mn", "mo", "mtext", "ms", "mspace", "mfrac", "msqrt", "mroot", "mstyle", "mpadded"),
    *("mphantom", "menclose", "msub", "msup", "msubsup", "munder", "mover", "munderover", "mmultiscripts"),
    *("mprescripts", "none", "mtable", "mtr", "mtd", "mlabeledtr"),
)
_ATTRIBUTES = {
    "a": {"href", "title"},
    "ol": {"start"},
    "code": {"class"},
    "math": {"display", "xmlns"},
    "mi": {"mathvariant"},
    "mo": {
        "stretchy",
        "fence",
        "form",
        "lspace",
        "rspace",
        "minsize",
        "maxsize",
        "movablelimits",
        "separator",
        "accent",
    },
    "mspace": {"width", "height", "depth", "linebreak"},
    "mfrac": {"linethickness", "bevelled"},
    "mstyle": {"displaystyle", "scriptlevel", "mathvariant"},
    "mpadded": {"width", "height", "depth", "lspace", "voffset"},
    "menclose": {"notation"},
    "mtable": {"columnalign", "rowspacing", "columnspacing", "columnlines", "rowlines", "displaystyle"},
    "mtd": {"columnalign"},
    "mover": {"accent"},
    "munder": {"accentunder"},
}


def render_markdown(text: str) -> str:
    """The HTML of a model's answer.

    Args:
        text: Markdown; formulas stand in `$…$`, `$$…$$`, `\\(…\\)`, `\\[…\\]`, or are the whole text.

    Returns:
        HTML without scripts, styles, images, forms, event handlers, or addresses other than http, https and mailto.
    """
    if len(text) > MOST_CHARACTERS or text.count("[") + text.count("\\(") > MOST_OPENINGS:
        return f"<pre>{html.escape(text)}</pre>"
    formula = _whole_formula(text)
    found = f"<p>{_math(formula, 'inline')}</p>" if formula else _parser().render(_delimited_boxes(text))
    return nh3.clean(
        found,
        tags={*_TEXT_TAGS, *_MATH_TAGS},
        attributes=_ATTRIBUTES,
        url_schemes={"http", "https", "mailto"},
        allowed_classes={},
        link_rel="noopener noreferrer nofollow",
    )


def _delimited_boxes(text: str) -> str:
    """`\\boxed{…}` without delimiters gets them, in a text that has none."""
    if any(mark in text for mark in ("$", "\\(", "\\[", "`")):
        return text
    return re.sub(r"\\boxed\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}", lambda box: f"${box[0]}$", text)


def _whole_formula(text: str) -> str:
    """The text where all of it is one formula without delimiters, as in `\\frac{1}{2}`; else ""."""
    text = text.strip()
    if "\n" in text or "$" in text or "\\(" in text or not re.match(r"\\[a-zA-Z]+\s*[{\[^_\\0-9]", text):
        return ""
    return "" if re.search(r"[a-z]{3,} [a-z]{2,}", re.sub(r"\\[a-zA-Z]+|\{[^{}]*\}", "", text)) else text


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("js-default", {"html": False, "linkify": False, "breaks": True})
    parser.disable("image")
    parser.use(dollarmath_plugin, allow_space=False, allow_digits=False, double_inline=True, allow_labels=False)
    parser.use(texmath_plugin, delimiters="brackets")
    for name in ("math_inline", "math_single"):
        parser.add_render_rule(name, _inline)
    for name in ("math_inline_double", "math_block", "math_block_eqno", "math_block_end"):
        parser.add_render_rule(name, _block)
    return parser


def _inline(_: Any, tokens: Sequence[Token], k: int, options: Mapping[str, Any], env: Any) -> str:
    return _math(tokens[k].content, "inline")


def _block(_: Any, tokens: Sequence[Token], k: int, options: Mapping[str, Any], env: Any) -> str:
    return f"<p>{_math(tokens[k].content, 'block')}</p>"


def _math(latex: str, display: str) -> str:
    """A formula as MathML; what the library cannot read is shown as it is written."""
    if len(latex) <= MOST_MATH:
        try:
            return _mathml(_without_box(latex.strip()), display)
        except Exception:  # the library raises many kinds for what it cannot read
            pass
    return f"<code>{html.escape(latex)}</code>"


def _mathml(latex: str, display: str) -> str:
    """The library writes entities into its texts and leaves them unescaped; here they are characters, and escaped."""
    element = convert_to_element(latex, display=display)
    for part in element.iter():
        part.text = html.unescape(part.text) if part.text else part.text
    return tostring(element, encoding="unicode")


def _without_box(latex: str) -> str:
    """`\\boxed{…}` marks the answer, which is what is shown anyway; the library does not know it."""
    match = re.fullmatch(r"\\(?:f?box|boxed)\s*\{(.*)\}", latex, re.DOTALL)
    return match[1] if match and _is_balanced(match[1]) else latex


def _is_balanced(text: str) -> bool:
    depth = 0
    for character in re.sub(r"\\.", "", text, flags=re.DOTALL):
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0
