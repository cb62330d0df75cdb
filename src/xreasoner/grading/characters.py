"""One alphabet: what models write in other scripts, widths and styles, in the characters that the rules read."""

from __future__ import annotations

import re
import unicodedata

_SAME = {
    "【": "[", "】": "]", "〔": "[", "〕": "]", "「": "[", "」": "]", "『": "[", "』": "]", "〈": "(", "〉": ")",
    "《": "(", "》": ")", "⟨": "(", "⟩": ")", "〖": "[", "〗": "]", "｢": "[", "｣": "]", "﴾": '"', "﴿": '"',
    "«": '"', "»": '"', "‹": "'", "›": "'", "。": ". ", "｡": ". ", "．": ".",
    "、": ",", "，": ",", "：": ":", "；": ";",
    "“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "−": "-", "‐": "-", "‑": "-", "﹣": "-", "⁄": "/", "∕": "/",
    "٫": ".", "٬": ",", "٪": "%", "؟": "?", "،": ",", "।": ".", "∗": "*", "⋅": "·", "∙": "·",
    "\u00a0": " ", "\u202f": " ", "\u3000": " ", "\u205f": " ", "μ": "µ", "Ω": "Ω",
}  # fmt: skip
_THIN = dict.fromkeys(range(0x2002, 0x200B), " ")
_NOTHING = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u00ad\ufe0f"))
_RAISED = {ord(sign): plain for sign, plain in zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-", strict=True)}
_LOWERED = {ord(sign): plain for sign, plain in zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True)}
_INDEX = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_MINUS = re.compile(r"(?:^|(?<=[\s(=:$]))[–—](?=\d)")
_EXPONENT = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_WIDE_STOP = re.compile(r"(?<!\d)．")
_SPLIT_FRACTION = re.compile("(\\d?)[ ]?([⁰¹²³⁴⁵⁶⁷⁸⁹]+)[/⁄∕]([₀₁₂₃₄₅₆₇₈₉]+)")
_VULGAR = re.compile("(\\d?)([¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])")
_TICKED = re.compile(r"(?<![A-Za-z])[(\[]?([A-Z])[)\].:]{0,2}[ \t]*(?:([✓✔✅☑])|[✗✘❌✖])(?![A-Za-z])")
_TICKED_LINE = re.compile(r"(?m)^[\s*•-]*[(\[]?([A-Z])[)\].:]+[ \t]+[^\n✓✔✅☑✗✘❌✖]{1,80}(?:([✓✔✅☑])|[✗✘❌✖])[ \t]*$")
"""A line of a list of options with a tick or cross at its end."""
_TABLE: dict[int, str | None] = {**{ord(sign): plain for sign, plain in _SAME.items()}, **_THIN, **_NOTHING}


def _one(sign: str) -> str:
    """A digit of any script as 0–9; full-width, circled and mathematical letters as ASCII; all else as it is."""
    digit = unicodedata.decimal(sign, None)
    if digit is not None:
        return str(digit)
    code = ord(sign)
    if 0xFF01 <= code <= 0xFF5E or 0x1D400 <= code <= 0x1D7FF or 0xFE50 <= code <= 0xFE6B or 0x249C <= code <= 0x24B5:
        return unicodedata.normalize("NFKC", sign)
    if 0x24B6 <= code <= 0x24E9 or 0x2460 <= code <= 0x2473:  # circled letters and numbers
        return f"({unicodedata.normalize('NFKC', sign)})"
    for first in (0x1F130, 0x1F150, 0x1F170):  # squared and black letters
        if first <= code < first + 26:
            return f"({chr(ord('A') + code - first)})"
    return "" if code > 0x2300 and unicodedata.category(sign) == "So" else sign  # emoji


def _small_fraction(match: re.Match[str]) -> str:
    """`2²⁄₃` as `2 2/3`."""
    whole, above, below = match[1], match[2].translate(_RAISED), match[3].translate(_LOWERED)
    return f"{whole}{' ' if whole else ''}{above}/{below}"


def plain(text: str) -> str:
    """The text in plain characters. A raised number becomes a power (`10²³` → `10^{23}`), a lowered
    one an index, ½ becomes 1/2, a dash in front of a number its sign, a tick or cross behind a label a word."""
    if text.isascii():
        return text
    if "．" in text:
        text = _WIDE_STOP.sub(". ", text)
    text = _SPLIT_FRACTION.sub(_small_fraction, text)
    text = _EXPONENT.sub(lambda match: f"^{{{match[0].translate(_RAISED)}}}", text.translate(_TABLE))
    if len(_TICKED_LINE.findall(text)) > 1:
        text = _TICKED_LINE.sub(lambda match: f"\n{match[1]}: {'' if match[2] else 'in'}correct\n", text)
    text = _TICKED.sub(lambda match: f"\n{match[1]}: {'' if match[2] else 'in'}correct\n", text)
    text = _MINUS.sub("-", _INDEX.sub(lambda match: f"_{{{match[0].translate(_LOWERED)}}}", text))
    if _VULGAR.search(text):
        text = _VULGAR.sub(lambda m: m[1] + (" " if m[1] else "") + unicodedata.normalize("NFKC", m[2]), text)
        text = text.translate(_TABLE)  # NFKC writes a fraction with its own slash
    return "".join(sign if sign.isascii() else _one(sign) for sign in text)
