"""Quantities with units, compared as exact fractions after conversion (`pint`)."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from xreasoner.grading.numbers import read_number

_ALLOWED = re.compile(r"[A-Za-zµ°ÅΩ%][\w µ°ÅΩ%/·*^()-]{0,31}")
_EXPONENTS = re.compile(r"\^\s*[{(]?\s*(-?\d)\s*[})]?|(?<=[A-Za-zµ])(-?\d)(?!\d)")
_DEGREES = re.compile(
    r"(?:\^?\s*\{?\s*(?:\\circ|°)\s*\}?|\bdegrees?\b|\bdeg\b)\s*(C|F|Celsius|Fahrenheit)?\b", re.IGNORECASE
)


@lru_cache(maxsize=1)
def _registry() -> Any:
    import pint

    return pint.UnitRegistry(non_int_type=Fraction, autoconvert_offset_to_baseunit=True)


@lru_cache(maxsize=4096)
def _unit(text: str) -> Any:
    """The unit of this name, or None for one that nobody knows. Only short names get as far as pint's reader."""
    degrees = _DEGREES.fullmatch(text.strip())
    if degrees:
        scale = (degrees[1] or "").casefold()[:1]
        text = {"c": "degC", "f": "degF", "": "degree"}[scale]
    text = _EXPONENTS.sub(lambda match: f"**{match[1] or match[2]}", text.replace("·", "*").replace("\\cdot", "*"))
    if not _ALLOWED.fullmatch(text.replace("**", "^")) or text.count("**") > 4 or re.search(r"\*\*-?\d\s*\*\*", text):
        return None
    try:
        return _registry().Unit(text)
    except Exception:  # pint raises many kinds on names that it does not know
        return None


def is_known(unit: str) -> bool:
    """Is this the name of a unit?"""
    return _unit(unit) is not None


def read_quantity(text: str) -> tuple[Fraction, str] | None:
    """(value, unit as written) of a number with a unit that is the whole text; the unit may be ""."""
    found = read_number(text)
    if found is None:
        return None
    unit = found[1].strip().rstrip(".").replace("\\", "\\").strip()
    return found[0], unit


def in_units_of(value: Fraction, unit: str, wanted: str) -> Fraction | None:
    """The value in the wanted unit; None where the units are unknown or of different dimensions.

    Names that pint does not know are equal only to themselves ("12 apples").
    """
    if unit.casefold() == wanted.casefold() and (_unit(unit) is None or unit == wanted):
        return value
    given, gold = _unit(unit), _unit(wanted)
    if given is None or gold is None:
        return None
    try:
        converted = _registry().Quantity(value, given).to(gold).magnitude
    except Exception:  # DimensionalityError, OffsetUnitCalculusError, …: not the same kind of quantity
        return None
    return converted if isinstance(converted, Fraction) else Fraction(converted)
