"""Numbers as exact fractions: no tolerance, no rounding but the data set's own."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_POWER = r"(?:\s*(?:\\times|\\cdot|×|x|\*)\s*10\s*(?:\^|\*\*)?\s*\{?([-+−]?\d{1,3})\}?|[eE]([-+]?\d{1,3})(?![\d.]))"
_NUMBER = re.compile(rf"([-+−]?)\s*({_PLAIN})(?:{_POWER}|\s*/\s*(\d+))?")
_FRACTION = re.compile(r"([-+−]?)\s*\\[dt]?frac\s*\{\s*([-+−]?\d+)\s*\}\s*\{\s*(\d+)\s*\}")
_NAMED = re.compile(r"(?:[A-Za-z]\w{0,11}\s*)?=\s*")
_TWO = re.compile(r"(?<![\w.])([-+−]?\d+(?:\.\d+)?)\s*(?:,|;|\bor\b|\band\b)\s*([-+−]?\d+(?:\.\d+)?)(?![\w.]\d)")
_LIMIT = 200
"""Characters; a longer run of digits is no answer, and costs time."""


def _signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign in ("-", "−") and sign else value


def read_number(text: str) -> tuple[Fraction, str] | None:
    """A number at the start of the text and what follows it, or None.

    Reads 1,234; -3.5; 6.02e23; 6.02 \\times 10^{23}; 3/4; \\frac{3}{4}; a name before an equals sign is passed over.
    """
    text = text.strip()
    named = _NAMED.match(text)
    text = text[named.end() :] if named else text
    match = _FRACTION.match(text)
    if match is not None and match.end() <= _LIMIT:
        below = int(match[3])
        top = Fraction(int(match[2].replace("−", "-")))
        return (_signed(match[1], top / below), text[match.end() :]) if below else None
    match = _NUMBER.match(text)
    if match is None or match.end() > _LIMIT:
        return None
    sign, digits, power, exponent, below_text = match.groups()
    value = Fraction(Decimal(digits.replace(",", "")))
    if power or exponent:
        value *= Fraction(10) ** int((power or exponent).replace("−", "-"))
    if below_text:
        if not int(below_text):
            return None
        value /= int(below_text)
    return _signed(sign, value), text[match.end() :]


def parse_number(text: str) -> Fraction | None:
    """The number that the whole text is (a final stop aside), or None."""
    found = read_number(text)
    return found[0] if found is not None and not found[1].strip(" .") else None


def two_numbers(text: str) -> bool:
    """Does the text give two different numbers as if either would do ("4 or 5", "4, 5")?"""
    return any(match[1] != match[2] for match in _TWO.finditer(text))


def shown(value: Fraction) -> str:
    """`14`, `2.5`, `6.02E+23`, or `1/3` where no short decimal is exact."""
    if value.denominator == 1 and abs(value.numerator) < 10**18:
        return str(value.numerator)
    decimal = (Decimal(value.numerator) / Decimal(value.denominator)).normalize()
    exact = Fraction(decimal) == value or value.denominator == 1
    return str(decimal) if exact else str(value)
