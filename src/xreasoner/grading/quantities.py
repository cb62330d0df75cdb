"""Quantities: a number with its unit."""

from __future__ import annotations

import re
from fractions import Fraction

from xreasoner.grading.numbers import read_number

_COPULA = re.compile(r"\s*(?:です|でした|である|だ|입니다|이다|이에요|예요|है|हैं)[\s.]*$")
"""What Japanese, Korean and Hindi put behind the unit."""


def read_quantity(text: str) -> tuple[Fraction, str] | None:
    """(value, unit as written) of a number with a unit that is the whole text; the unit may be ""."""
    found = read_number(text)
    if found is None:
        return None
    unit = found[1].strip().rstrip(".").strip()
    return found[0], unit if unit.isascii() else _COPULA.sub("", unit)
