"""Are two mathematical answers the same? Run as a program it answers one question a line, in a process of its own.

Lists, pairs, intervals, sets, matrices, equations and inequalities are taken apart here, by what their brackets say;
math-verify reads the expressions that are left, and what it read is checked: every number and letter of the source
must be in it, and two expressions are equal only where they agree to 30 digits. That catches what its own comparison
gets wrong (`1/2^{99}` and `1/2^{98}`; `1 - 1/e` read as `1`; any two linear equations; a list with one member right).

The program stands alone: it imports nothing of this package, so that a worker starts fast. Its limit is CPU time and
is kept by the kernel (SIGPROF ends the process), so neither a busy machine nor a power tower that computes inside one
call can bend it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

Sameness = Literal["equal", "different", "unparsed"]
MEMORY = 3 * 1024**3
"""Bytes of address space that a worker may take."""
_DIGITS = 30
_LONGEST = 2000
"""Characters; a longer expression is not parsed."""
_DEGREE = r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree|°)"


def _recurring(match: re.Match[str]) -> str:
    """`0.1\\overline{6}` as the fraction that it is."""
    whole, fixed, again = match.groups()
    value = int(whole + fixed + again) - int(whole + fixed)
    return rf"\frac{{{value}}}{{{10 ** len(fixed + again) - 10 ** len(fixed)}}}"


def _mixed(match: re.Match[str]) -> str:
    """`2 2/3` as the sum that it is; `2 5/3` is left as it is."""
    whole, above, below = match.groups()
    return rf"({whole}+\frac{{{above}}}{{{below}}})" if 0 < int(above) < int(below) else match[0]


_COMMON: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"\\(?:text|mbox|mathrm|textbf|mathbf)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\x0c(?=rac)"), r"\\f"),
    (re.compile(r"(?<=\d)(?:\{,\}|,\s*\\!\s*)(?=\d)"), ""),
    (re.compile(r"\\[dtc]frac"), r"\\frac"),
    (re.compile(r"(?<!\\)\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits|,|;|:|!| |quad|qquad)(?![a-zA-Z])"), " "),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*(\d)\s*\{"), r"\\frac{\1}{"),
    (re.compile(r"(\\frac\s*\{[^{}]*\})\s*(\d)"), r"\1{\2}"),
    (re.compile(r"(?<![\d^_{}.])(\d+)\s*(\\frac\s*\{\d+\}\s*\{\d+\})"), r"(\1+\2)"),  # a mixed number
    (re.compile(r"(?<![\w^}.,/)\]\\])(?<!(?<!\\)\{)(\d{1,9})\s+([1-9]\d{0,8})\s*/\s*(\d{1,9})(?![\w.])"), _mixed),
    (re.compile(r"(?<![\d.,/])\d{1,3}(?: \d{3})+(?!\d)"), lambda match: match[0].replace(" ", "")),
    (re.compile(r"\\sqrt\s*(\d|[a-zA-Z](?![a-zA-Z]))"), r"\\sqrt{\1}"),
    (
        re.compile(rf"(\\(?:sin|cos|tan|cot|sec|csc))\s*\(?\s*(\d{{1,9}}){_DEGREE}\s*\)?"),
        r"\1(\\frac{\2\\pi}{180})",
    ),
    (re.compile(r"(\d{1,20})\.(\d{0,20})\\(?:overline|bar|dot)\s*\{(\d{1,20})\}"), _recurring),
    (re.compile(r"\\varnothing|∅|\\\{\s*\\\}"), r"\\emptyset"),
    (re.compile(r"\^?\s*\{?\s*(?:\\circ|\\degree|°|掳)\s*\}?"), ""),
    (re.compile(r"\\(?:leqslant|leq)(?![a-z])|≤|<="), r"\\le"),
    (re.compile(r"\\(?:geqslant|geq)(?![a-z])|≥|>="), r"\\ge"),
    (re.compile(r"\\neq|≠|(?<![\w)])!="), r"\\ne"),
    (re.compile(r"\\lt(?![a-z])"), "<"),
    (re.compile(r"\\gt(?![a-z])"), ">"),
    (re.compile(r"\^\s*\{?\s*\\prime\s*\}?"), "'"),
    (re.compile(r"_\{(\w)\}"), r"_\1"),
    (re.compile(r"^\s*(?:\\approx|≈)"), ""),
    (re.compile(r"(?<=[\d}])\s*(?:percent(?:age(?!\s*point))?|per\s?cent|pct)\b"), "%"),
    (re.compile(r"(?<![\w.])(\d+(?:\.\d+)?|\\frac\s*\{\d+\}\s*\{\d+\})\s*\\?%"), r"\\frac{\1}{100}"),
    (re.compile(r"(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![\\a-zA-Z])(sqrt(?=\s*\{)|(?:sin|cos|tan|log|ln)(?=\s*\()|pi(?![a-zA-Z]))"), r"\\\1 "),
    (re.compile(r"^\s*\[\s*(\\begin\{array\}.*\\end\{array\})\s*\]\s*$", re.DOTALL), r"\1"),
    (re.compile("π"), r"\\pi "),
    (re.compile("∞"), r"\\infty "),
    (re.compile("√"), r"\\sqrt"),
    (re.compile("±"), r"\\pm "),
    (re.compile("∪"), r"\\cup "),
    (re.compile("×|·"), r"\\cdot "),
)
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
_BOX = re.compile(r"\s*\\(?:boxed|fbox)\s*\{(.*)\}\s*", re.DOTALL)
_SEPARATOR = re.compile(r"\s*(?:,|;|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z]))\s*")
_LENGTH = r"(?:m?\s*\\(?:angle|triangle)\s*)?\|?[A-Z]{1,4}\|?(?![a-zA-Z])"
_NAME = re.compile(
    rf"\s*(?:\(\s*[a-zA-Z](?:\s*,\s*[a-zA-Z])+\s*\)|{_LENGTH}|\\frac\s*\{{{_LENGTH}\}}\s*\{{{_LENGTH}\}})\s*="
    r"|\s*(?:\\[a-zA-Z]+|[a-zA-Z])(?:_\{?\w+\}?)?(?:\^\{?-1\}?)?\s*(?:\(\s*[a-zA-Z](?:\s*,\s*[a-zA-Z])*\s*\))?\s*(?:=|\\in(?![a-z])|\\approx)"
)
_RATIO = re.compile(r"\s*[a-zA-Z](?:_\{?\w+\}?)?(?:\s*:\s*[a-zA-Z](?:_\{?\w+\}?)?)+\s*=")
_UNIT = re.compile(
    r"(.*(?:[\d)}]|\\pi(?=\s)))\s*(?<![\\a-zA-Z])((?:[a-zA-Z]{2,}|[a-zA-Z](?=/))[a-zA-Z ./]*(?:\^\s*\{?\d\}?)?)\s*",
    re.DOTALL,
)
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}")
_MATRIX = re.compile(r"\s*\\begin\{([bpvBV]?matrix|array)\}(?:\{[^}]*\})?(.*)\\end\{\1\}\s*", re.DOTALL)
_RELATION = re.compile(r"\\(?:le|ge|ne)(?![a-zA-Z])|[<>]|\\lt(?![a-z])|\\gt(?![a-z])")
_FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "\\ne": "\\ne", "\\lt": ">", "\\gt": "<"}
_FRACTION = re.compile(r"([-+]?)\s*\\frac\s*\{\s*([-+]?\d+)\s*\}\s*\{\s*([-+]?\d+)\s*\}")
_NUMBER = re.compile(r"[-+]?\s*(?:\d+(?:\.\d*)?|\.\d+)(?:\s*/\s*\d+)?")
_BESIDE = re.compile(r"\d[})]?\s+\d+\s*/\s*\d")
"""A number before a fraction that is no mixed number (`2^3 1/2`): a sum, a product, or two answers?"""
_LIMIT_DIGITS = 300
_LOOSE = re.compile(r"(?<![a-zA-Z\d])\s+|\s+(?![a-zA-Z\d])|(?<=[a-zA-Z])\s+(?=\d)|(?<=\d)\s+(?=[a-zA-Z])")


def normal(text: str) -> str:
    """One way of writing for what LaTeX writes in several; no dollars, boxes, degree signs or spaces at the ends."""
    text = text.strip().strip("$").strip()
    while (box := _BOX.fullmatch(text)) is not None:
        text = box[1]
    for pattern, plain in _COMMON:
        text = pattern.sub(plain, text)
    text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    return re.sub(r"\s+", " ", text).strip().rstrip(".,").strip()


def _squeezed(text: str) -> str:
    """Without spaces, but for those between two words or two numbers ("2 3" is not 23)."""
    return _LOOSE.sub("", text).replace("{}", "")


def simple_number(text: str) -> Fraction | None:
    """The value of a plain integer, decimal or fraction (`3/4`, `\\frac{3}{4}`), else None."""
    text = text.strip()
    if len(text) > _LIMIT_DIGITS:
        return None
    match = _FRACTION.fullmatch(text)
    if match is not None:
        return (-1 if match[1] == "-" else 1) * Fraction(int(match[2]), int(match[3])) if int(match[3]) else None
    if _NUMBER.fullmatch(text) is None:
        return None
    above, _, below = text.replace(" ", "").partition("/")
    return Fraction(above) / int(below or 1) if int(below or 1) else None


def _split(text: str, at: re.Pattern[str]) -> list[str]:
    """Split where the pattern matches outside of all brackets."""
    parts, depth, start, position = [], 0, 0, 0
    while position < len(text):
        sign = text[position]
        match = at.match(text, position) if depth == 0 else None
        if match is not None and match.end() > position:
            parts.append(text[start : match.start()])
            start = position = match.end()
            continue
        depth += (sign in "([{") - (sign in ")]}" and depth > 0)
        position += 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def _enclosed(text: str) -> bool:
    """Is the whole text one pair of brackets, of whatever kinds (`(0, 1]` too)?"""
    depth = 0
    for position, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if depth == 0:
            return position == len(text) - 1 and text[0] in "(["
    return False


def _unnamed(text: str) -> str:
    """Without the name in front (`x =`, `f(x) =`, `x \\in`), the last of a chain of equals (`a = 2 + 3 = 5`)."""
    match = _NAME.match(text)
    rest = text[match.end() :] if match else text
    if match and "=" in rest and not _SEPARATOR.search(rest):
        rest = rest.rpartition("=")[2]
    return rest.strip()


Shape = tuple[str, list[str]]


def shape(text: str) -> Shape:
    """What an answer is: (("one" | "set" | "named" | "union" | brackets such as "(]"), its parts)."""
    whole = _unnamed(text)
    if whole.startswith("\\{") and whole.endswith("\\}"):
        return "set", _split(whole[2:-2], _SEPARATOR)
    union = _split(whole, re.compile(r"\\cup(?![a-zA-Z])"))
    if len(union) > 1:
        return "union", union
    if _enclosed(whole):
        parts = _split(whole[1:-1], re.compile(r"\s*[,;]\s*"))
        return (whole[0] + whole[-1], parts) if len(parts) > 1 else ("one", [whole])
    raw = _split(text, _SEPARATOR)
    names = [match[0] for match in map(_NAME.match, raw) if match]
    if 1 < len(raw) == len(set(names)):  # "a = 1, b = 2": which is which matters
        return "named", raw
    parts = [_unnamed(part) for part in _split(whole, _SEPARATOR)]
    expanded = [each for part in parts for each in _both_signs(part)]
    return ("set", expanded) if len(expanded) > 1 else ("one", expanded or [whole])


def _both_signs(text: str) -> list[str]:
    if not re.search(r"\\pm(?![a-zA-Z])", text):
        return [text]
    upper = re.sub(r"\\mp(?![a-zA-Z])", "-", re.sub(r"\\pm(?![a-zA-Z])", "+", text))
    lower = re.sub(r"\\mp(?![a-zA-Z])", "+", re.sub(r"\\pm(?![a-zA-Z])", "-", text))
    return [upper.strip().lstrip("+"), lower.strip()]


def compare(gold: str, given: str) -> Sameness:
    """Whether the given answer is the gold; "unparsed" where the given one cannot be read.

    Clock times and ratios are compared as they are written.
    """
    gold, given = normal(gold), normal(given)
    if _squeezed(gold) == _squeezed(given):
        return "equal"
    if not given or max(len(gold), len(given)) > _LONGEST or _BESIDE.search(given):
        return "unparsed"
    if ":" in gold or ":" in given:
        return _ratios(gold, given)
    interval = _interval(gold)
    if interval and _enclosed(given):
        gold = interval
    named = [_NAME.match(text) for text in (gold, given)]
    if (
        "=" in gold
        and "=" in given
        and (named[0] is None) != (named[1] is None)
        and not _SEPARATOR.search(gold + given)
    ):
        return _equations(gold, given)
    names = [_squeezed(match[0]).rstrip("=") for match in named if match and match[0].endswith("=")]
    shapes = shape(gold), shape(given)
    kinds = {kind for kind, _ in shapes}
    if len(names) == 2 and names[0] != names[1] and kinds not in ({"named"}, {"named", "()"}):
        return "different"
    return _parts(*shapes)


def _ratios(gold: str, given: str) -> Sameness:
    """Ratios are compared as they are written, but for a name in front ("a : b = 7 : 32")."""
    names = [_RATIO.match(text) for text in (gold, given)]
    bare = [text[name.end() :] if name else text for text, name in zip((gold, given), names, strict=True)]
    if not any(names) or (all(names) and _squeezed(names[0][0]) != _squeezed(names[1][0])):  # type: ignore[index]
        return "different"
    return compare(*bare)


def _interval(text: str) -> str:
    """The interval that a chain of inequalities is ("0 < x \\le 1"), or ""."""
    sides = [side.strip() for side in _RELATION.split(text)]
    signs = [sign.strip() for sign in _RELATION.findall(text)]
    if len(sides) != 3 or not set(signs) <= {"<", "\\le"} or _NAME.fullmatch(f"{sides[1]} =") is None:
        return ""
    return f"{'(' if signs[0] == '<' else '['}{sides[0]}, {sides[2]}{')' if signs[1] == '<' else ']'}"


def _parts(gold: Shape, given: Shape) -> Sameness:
    if len(gold[1]) != len(given[1]):
        return "different"
    if {gold[0], given[0]} == {"named", "set"}:  # "1, 2" for "a = 1, b = 2": in the same order
        return _all([compare(a, b) for a, b in zip(gold[1], given[1], strict=True)])
    if {gold[0], given[0]} == {"named", "()"}:  # "x = 2, y = 3" and "(2, 3)"
        named = gold[1] if gold[0] == "named" else given[1]
        names = [_squeezed(part.partition("=")[0]) for part in named]
        if names == sorted(names):
            return _all([compare(_unnamed(a), _unnamed(b)) for a, b in zip(gold[1], given[1], strict=True)])
    if gold[0] != given[0]:
        return "different"
    if gold[0] == "one":
        return _one(gold[1][0], given[1][0])
    if gold[0] in ("set", "union", "named"):
        return _unordered(gold[1], given[1])
    return _all([compare(a, b) for a, b in zip(gold[1], given[1], strict=True)])


def _all(found: list[Sameness]) -> Sameness:
    return "different" if "different" in found else "unparsed" if "unparsed" in found else "equal"


def _unordered(gold: list[str], given: list[str]) -> Sameness:
    left, unread = list(given), False
    for wanted in gold:
        for at, said in enumerate(left):
            found = compare(wanted, said)
            unread = unread or found == "unparsed"
            if found == "equal":
                del left[at]
                break
        else:
            return "unparsed" if unread else "different"
    return "equal"


def _one(gold: str, given: str) -> Sameness:
    """Two answers of one part: a number, a word, a matrix, an equation, an inequality or an expression."""
    a, b = simple_number(gold), simple_number(given)
    if a is not None and b is not None:
        return "equal" if a == b else "different"
    for pattern, rule in ((_MATRIX, _matrices), (_RELATION, _relations)):
        if pattern.search(gold) or pattern.search(given):
            return rule(gold, given)
    (gold, gold_unit), (given, given_unit) = _without_unit(gold), _without_unit(given)
    if gold_unit and given_unit and gold_unit != given_unit:
        return "different"
    if (gold_unit or given_unit) and gold and given:
        return _one(gold, given)
    if _WORD.search(gold) or _WORD.search(given):
        return "equal" if _letters(gold) == _letters(given) else "different"
    if ("=" in gold) != ("=" in given) or gold.count("'") != given.count("'"):  # f'(x) is read as f(x)
        return "different"
    if "=" in gold:
        return _equations(gold, given)
    return _expressions(gold, given)


def _letters(text: str) -> str:
    text = text[1:-1] if _enclosed(text) else text
    return re.sub(r"\s+", " ", text).strip().casefold()


def _without_unit(text: str) -> tuple[str, str]:
    """(number or expression, unit) of "864 inches^2"; letters of one are variables, never a unit."""
    match = _UNIT.fullmatch(text)
    return (match[1].strip(), re.sub(r"[ .{}]", "", match[2]).casefold()) if match else (text, "")


def _matrices(gold: str, given: str) -> Sameness:
    a, b = _MATRIX.fullmatch(gold), _MATRIX.fullmatch(given)
    if a is None or b is None:
        return "different"
    rows = [[row.split("&") for row in m[2].split("\\\\") if row.strip()] for m in (a, b)]
    if [len(row) for row in rows[0]] != [len(row) for row in rows[1]]:
        return "different"
    cells = [[cell for row in each for cell in row] for each in rows]
    return _all([compare(x, y) for x, y in zip(*cells, strict=True)])


def _relations(gold: str, given: str) -> Sameness:
    """Inequalities are the same where they have the same sides and signs, read from either end."""
    sides = [[side.strip() for side in _RELATION.split(text)] for text in (gold, given)]
    signs = [[sign.strip() for sign in _RELATION.findall(text)] for text in (gold, given)]
    if len(sides[0]) != len(sides[1]) or len(sides[0]) < 2:
        return "different"
    if signs[0] == signs[1]:
        found = _all([compare(a, b) for a, b in zip(*sides, strict=True)])
        if found != "different":
            return found
    flipped = signs[0] == [_FLIPPED[sign] for sign in reversed(signs[1])]
    if (
        flipped
        and (found := _all([compare(a, b) for a, b in zip(sides[0], reversed(sides[1]), strict=True)])) != "different"
    ):
        return found
    return _rearranged(sides, signs[0] == signs[1], flipped) if len(sides[0]) == 2 else "different"


def _rearranged(sides: list[list[str]], alike: bool, flipped: bool) -> Sameness:
    """One inequality is the other where left minus right is the same ("x - 1 < 0"), or its negative ("-x > -1")."""
    lefts, rights = (_readable(sides[0][at], sides[1][at]) for at in (0, 1))
    if isinstance(lefts, str) or isinstance(rights, str):
        return "unparsed" if "unparsed" in (lefts, rights) else "different"
    gold, given = lefts[0] - rights[0], lefts[1] - rights[1]
    same = (alike and _agree(gold, given)) or (flipped and _agree(gold, -given))
    return "equal" if same else "different"


class UnreadableError(Exception):
    """An expression that math-verify does not read, or of which it reads only a part."""


def _parsed(text: str) -> Any:
    """What math-verify makes of one expression: a sympy expression. Raises `UnreadableError`."""
    import sympy
    from math_verify import LatexExtractionConfig, parse

    latex = re.sub(r"(?<!\\)%", r"\\%", text)
    found = parse(f"${latex}$", extraction_config=[LatexExtractionConfig()], parsing_timeout=None)
    if not found or not isinstance(found[0], sympy.Expr):
        raise UnreadableError(text)
    return found[0]


def _whole(text: str, expression: Any) -> bool:
    """Was all of the text read? A letter must be in the expression; a number too, or changing it changes what is read
    (`\\frac{6}{2}` comes out as 3)."""
    shown = str(expression)
    bare = re.sub(r"\\(?:[a-zA-Z]+|.)", lambda match: " " * len(match[0]), text)
    if any(letter.casefold() not in shown.casefold() for letter in set(re.findall(r"[a-zA-Z]", bare)) - set("eEiI")):
        return False
    seen = {run.strip("0") for run in re.findall(r"\d+", shown)} | {""}
    for match in re.finditer(r"\d+", bare):
        if match[0].strip("0") not in seen:
            number = int(match[0][:200])
            changed = (f"{text[: match.start()]}{number + step}{text[match.end() :]}" for step in (1, 2))
            if all(str(_parsed(each)) == shown for each in changed):
                return False
    return True


@lru_cache(maxsize=4096)
def _read(text: str) -> Any:
    """The expression with exact numbers. Raises `UnreadableError`, or what sympy raises."""
    import sympy

    number = simple_number(text)
    if number is not None:
        return sympy.Rational(number.numerator, number.denominator)
    found = _parsed(text)
    if not _whole(text, found):
        raise UnreadableError(text)
    exact = found.replace(lambda each: each.is_Float, lambda each: sympy.Rational(str(each))).doit()
    names = {symbol: sympy.Symbol(symbol.name) for symbol in exact.free_symbols}
    return exact.xreplace(names).subs({sympy.Symbol("e"): sympy.E, sympy.Symbol("i"): sympy.I})


def _readable(gold: str, given: str) -> tuple[Any, Any] | Sameness:
    """Both expressions, or what follows from one that cannot be read: words are compared as they are written."""
    try:
        wanted = _read(gold)
    except Exception:  # latex2sympy raises many kinds; an unreadable gold is only equal to itself
        return "different"
    try:
        return wanted, _read(given)
    except Exception:
        return "unparsed"


def _expressions(gold: str, given: str) -> Sameness:
    found = _readable(gold, given)
    return found if isinstance(found, str) else "equal" if _agree(*found) else "different"


def _equations(gold: str, given: str) -> Sameness:
    """Equations are the same where their differences (left minus right) are in one constant ratio."""
    differences = []
    for text in (gold, given):
        left, _, right = text.partition("=")
        if "=" in right:
            return "different"
        differences.append((left, right))
    (a, b), (c, d) = differences
    lefts, rights = _readable(a, c), _readable(b, d)
    if isinstance(lefts, str) or isinstance(rights, str):
        return "unparsed" if "unparsed" in (lefts, rights) else "different"
    import sympy

    ratio = sympy.simplify((lefts[0] - rights[0]) / (lefts[1] - rights[1]))
    return "equal" if ratio.is_number and ratio.is_finite and not ratio.is_zero else "different"


def _agree(a: Any, b: Any) -> bool:
    """Equal to 30 digits at points of every sign. Where a root or logarithm is not real for negative values, the
    positive ones decide (so `\\sqrt{1/n}` is `1/\\sqrt{n}`, and `x` is not `\\sqrt{x^2}`)."""
    import sympy

    if a == b:
        return True
    names = sorted(a.free_symbols | b.free_symbols, key=str)
    if a.free_symbols != b.free_symbols:
        return bool(sympy.simplify(a - b) == 0)
    if not names:
        return _close(a, b, {})
    for sign in (1, -1):
        for k in (3, 11):
            point = {name: sign * sympy.Rational(k + 5 * at, 7 + at) for at, name in enumerate(names)}
            if sign < 0 and not all(each.subs(point).evalf(_DIGITS).is_real for each in (a, b)):
                continue
            if not _close(a, b, point):
                return False
    return True


def _close(a: Any, b: Any, point: dict[Any, Any]) -> bool:
    import sympy

    a, b = a.subs(point), b.subs(point)
    if a == b:
        return True
    x, y = a.evalf(_DIGITS), b.evalf(_DIGITS)
    if not (x.is_number and y.is_number) or not (x.is_finite and y.is_finite):
        return False
    if x == 0 or y == 0 or (a.is_Rational and b.is_Rational):
        return bool(sympy.simplify(a - b) == 0)
    if not abs((x - y) / y) < sympy.Float(10) ** (5 - _DIGITS):
        return False
    parts = (a - b).evalf(10, maxn=400).as_real_imag()  # 10^{100} + \pi is not 10^{100}
    return all(part == 0 or getattr(part, "_prec", 2) == 1 for part in parts)


def _guard(seconds: float) -> None:
    """A core's worth of seconds for the case that begins now, and a cap on memory; the kernel enforces both."""
    import signal

    signal.setitimer(signal.ITIMER_PROF, seconds)


def _answer(compare_: Callable[[str, str], Sameness], line: str, seconds: float) -> str:
    gold, given = json.loads(line)
    _guard(seconds)
    try:
        return compare_(gold, given)
    except RecursionError:
        return "unparsed"
    except MemoryError:
        return "memory"
    except Exception as error:  # sympy raises many kinds; the grader's verdict names it
        return f"failed: {type(error).__name__}: {error}"[:200]
    finally:
        _guard(0)


def main() -> None:
    """Answer `[gold, given]` lines from standard input until it ends. The first line written is "ready"."""
    import contextlib
    import logging
    import resource

    logging.disable(logging.CRITICAL)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.set_int_max_str_digits(20000)
    seconds = float(sys.argv[1])
    compare(r"\frac{x}{2}", "x/3")  # imports and warms the reader before the clock runs
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(compare, line, seconds)), flush=True)


if __name__ == "__main__":
    main()
