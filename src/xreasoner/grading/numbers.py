"""Numbers as exact fractions: no tolerance, no rounding but the data set's own."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction

from xreasoner.grading import extraction, units
from xreasoner.grading.extraction import Reply

CONFLICT = "conflict"
"""Returned in place of a numeral where a reply gives two."""

_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?:'\d{3})+(?!\d)|\d{1,3}(?: \d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_POWER = (
    r"(?:\s*(?:\\times|\\cdot|×|·|x|\*)\s*10\s*(?:\^|\*\*)?\s*\{?\s*([-+]?\d{1,3})\s*\}?|[eE]([-+]?\d{1,3})(?![\d.]))"
)
_SIGN = r"(?:(?:USD|EUR|GBP|US\$)\s*)?([-+]?)\s*[€£¥₹]?\s*"
_NUMBER = re.compile(rf"{_SIGN}({_PLAIN})(?:{_POWER}|\s*/\s*(\d+)|(\s+(?:and\s+)?)(\d+)\s*/\s*(\d+))?")
_INTEGER_POWER = re.compile(r"([-+]?)\s*(\d{1,4})\s*\^\s*(?:\{\s*([-+]?\d{1,3})\s*\}|([-+]?\d{1,3}))")
_FRACTION = re.compile(
    r"([-+]?)\s*(\d*)\s*(?:(?<=\d\s)and\s+)?\\[cdt]?frac\s*"
    r"(?:\{\s*([-+]?\d+)\s*\}|(\d))\s*(?:\{\s*([-+]?\d+)\s*\}|(\d))"
)
_NAMED = re.compile(r"(?:\\?[A-Za-zθπαβγλµ]\w{0,11}(?:_\{?\w+\}?)?(?:\([^()]{1,12}\))?\s*)?(?:=|≈|\\approx)\s*")
_JOINED = re.compile(
    r"\s*(?:,|;|/|-|–|—|±|\\pm|\bor\b|\band\b|\bto\b|\+/-)\s*(?:[A-Za-z]\w{0,8}\s*=\s*)?[-+]?\s*[\d.]", re.I
)
_TAKEN_BACK = re.compile(
    r"[\s,.;:–—(-]*\b(?:no|wait|actually|sorry|correction|or\s+rather|i\s+mean|make\s+that)\b[\s,:.]*(?:it'?s\s+)?[-+]?[\d.\\]",
    re.I,
)
_UNIT = re.compile(r"[^\W\d_°][^\W\d_]*|[^\W\d_°][^\d_=<>+,;:\"]{0,39}|°[A-Za-z]?|[€£¥₹]")
_CUT = re.compile(
    r"(?:[.;!]?\s*\n|[.;!)]\s+|,\s+(?!\d)|[\s.]+\(|\s+(?:because|since|as|which|where|when|so|after|left|every|each)\b"
    r"|(?<=[^\x00-\x7f])\s*(?:です|でした|である|입니다|이다|이에요|예요|있습니다|है|हैं)"
    r"|\s+in\s+total\b|\s+more\s*$|\s*\}\s*$|\s+(?:at|for|from|in|on)\s+the\b|\s+of\s+(?:them|these|those|us)\b|\s+to\s+(?=[a-z]{2,}\s+(?:an?|the|all|each|his|her|their|it|them|there|home|here)\b))"
)
_SCALE = re.compile(
    r"\b(?:hundreds?|thousands?|millions?|billions?|trillions?|dozens?|pairs?|half|percent|per\s?cent|k|mn|bn|times"
    r"|squared|cubed|factorial|minus|plus|or|and|to|if|but|not|more|less|fewer|over|under|of|%|halves|thirds?"
    r"|(?:four|fif|six|seven|eigh|nin|ten)ths?|тыс\w*|миллион\w*|млн|миллиард\w*|млрд|дюжин\w*|процент\w*|пар[аы]?"
    r"|ألف|آلاف|مليون|ملايين|مليار|دزينة|हज़ार|हजार|लाख|करोड़|दर्जन|प्रतिशत|tausend|million(?:en|es|i)|mio|mrd"
    r"|milliarden?|milliards?|dutzend|mille|milliers?|douzaines?|mil|millón|millones|docenas?|mila|milioni|miliardi"
    r"|dozzin[ae]|mil(?:hão|hões)|dúzias?|ribu|juta|miliar|lusin|milyon|milyar|düzine|duizend|miljoen|miljard"
    r"|dozijn|tysi[ąęa]c\w*|milion\w*|miliard\w*|tuzin\w*|nghìn|ngàn|triệu|tỷ|prozent|pour\s+cent|por\s*cien(?:to)?"
    r"|por\s*cento|per\s*cento|persen|procent\w*|mal|fois|veces|oder|ou|oppure|и|или|أو|و|या|atau|veya|lub|und|et)\b"
    r"|%|[\^]",
    re.IGNORECASE,
)
_LETTER_UNITS = "mgsLlVANJWKCFhTH°€£¥"
"""Units of one letter; any other letter behind a number is a variable."""
_IDEOGRAPHIC = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]{1,10}")
_NOT_A_COUNTER = re.compile(
    "[万萬亿億兆千百十倍半余餘多割成打点點和或与與及到至不非约約以未超近〜만억천백배반과와또々]|分之|左右|에서|から|または|そして|して|ない|ずつ|以|퍼센트|パーセント|ダース"
)
"""What makes a Chinese, Japanese or Korean word behind a number more than a unit or counter: scales and joints."""
_PART_OF = re.compile(r"^\s+of\s+(?:an?|the|his|her|its|their)\s+[a-z]+(?=[\s.]*$)")
_OF_WHAT = re.compile(r"(?<=[a-z]{3})\s+of\s+(?:the\s+)?[a-z]+(?:\s[a-z]+)?$")
_FIRST_SENTENCE = re.compile(r"[.!;]\s+(?=[A-Z(])")
_SUM = re.compile(r"[\d.\s]+[-+*/×·][-+*/×·().\d\s]*")
_WIDE_SCALES = {"万": 10**4, "萬": 10**4, "만": 10**4, "亿": 10**8, "億": 10**8, "억": 10**8, "千": 1000, "천": 1000}
_WIDE_SCALED = re.compile(r"\s*(?:[万萬만亿億억]|千(?![克米瓦卡焦帕伏赫安牛电升])|천)(?![万萬만亿億억千천百백十])")
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PERCENT = re.compile(
    r"\s*(?:%|(?:percent|per\s?cent|pct|prozent|pour\s+cent|por\s+ciento|por\s+cento|per\s+cento|persen|procent"
    r"|процент(?:а|ов)?)\b|パーセント|퍼센트)(?!\s*points?\b)",
    re.IGNORECASE,
)
_SCALED = re.compile(rf"\s+({'|'.join(_SCALES)})\b", re.IGNORECASE)
_SMALL = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()  # noqa: SIM905
_SMALL += ["seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_UNDER_100 = rf"(?:(?:{'|'.join(_TENS)})(?:[-\s](?:{'|'.join(_SMALL[1:10])}))?|{'|'.join(_SMALL)})\b"
_UNDER_1000 = rf"(?:(?:(?:a|{'|'.join(_SMALL[1:10])})\s+hundred(?:\s+(?:and\s+)?{_UNDER_100})?)|{_UNDER_100})"
_ENDING = re.compile(
    r".*(?:\b(?:is|are|be|equals|makes|leaves|gives|get|got|was|were|(?:comes?|came|amounts?|adds?\s+up)\s+to|total(?:s|ing)?|has|have|cost|costs|pay|pays|earns?|earned|spent|spends|needs?|takes?|took|saved?|saves|sold|made|counts?|counted|see|find|found|bought|paid|weighs?|beträgt|ist|est|es|sind|sont|son|sono|равен|равно|равна)\b|=|共有?|[有是为為]|等于|等於)"
    rf"\s*(?:only\s+|exactly\s+|about\s+|approximately\s+|roughly\s+|(?:him|her|them|me|us|you|it)\s+)?((?:[-+]\s*)?[€£¥]?[\d.\\][^=\n]*|(?:{_UNDER_1000}))$",
    re.DOTALL,
)
_WORDS = re.compile(
    rf"(minus\s+|negative\s+)?(?:({_UNDER_1000})\s+thousand\b)?(?:,?\s*(?:and\s+)?({_UNDER_1000}))?[\s.!]*",
    re.IGNORECASE,
)
_PART_NAMES = {"half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7}
_PART_NAMES |= {"eighth": 8, "ninth": 9, "tenth": 10}
_PARTS = re.compile(
    rf"(?:({_UNDER_1000}|\d{{1,3}})\s+and\s+)?(?:(an?|{'|'.join(_SMALL[1:10])})[\s-])({'|'.join(_PART_NAMES)})s?[\s.!]*",
    re.IGNORECASE,
)
_CURRENCY = re.compile(r"(?:USD|EUR|GBP|JPY|CNY|RMB)")
_LIMIT = 200
"""Characters; a longer run of digits is no answer, and costs time."""


def _in_words(text: str) -> int | None:
    """The number that the whole text spells ("forty-two", "one hundred and five", "三"), or None."""
    sign = unicodedata.numeric(text, None) if len(text) == 1 else None
    if sign is not None and sign == int(sign):
        return int(sign)
    match = _WORDS.fullmatch(text.strip())
    if match is None or not (match[2] or match[3]):
        return None
    value = 1000 * _under_1000(match[2] or "") + _under_1000(match[3] or "")
    return -value if match[1] else value


def _fraction_in_words(text: str) -> Fraction | None:
    """The fraction that the whole text spells ("two and a half", "three quarters"), or None."""
    match = _PARTS.fullmatch(text.strip())
    if match is None:
        return None
    whole, above, below = (each.lower() if each else "" for each in match.groups())
    count = 1 if above in ("a", "an", "") else _under_1000(above)
    value = Fraction(int(whole) if whole.isdecimal() else _under_1000(whole)) + Fraction(
        count, _PART_NAMES[below.rstrip("s")]
    )
    return value if count < _PART_NAMES[below.rstrip("s")] else None


def _under_1000(text: str) -> int:
    value = 0
    for word in re.findall(r"[a-z]+", text.lower()):
        if word == "hundred":
            value *= 100
        elif word in _TENS:
            value += 10 * _TENS.index(word) + 20
        elif word != "and":
            value += _SMALL.index(word) if word in _SMALL else 1  # "a hundred"
    return value


def _signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign == "-" else value


def _fraction(text: str) -> tuple[Fraction, str] | None:
    match = _FRACTION.match(text)
    if match is None or match.end() > _LIMIT:
        return None
    above, below = Fraction(match[3] or match[4]), int(match[5] or match[6])
    if not below:
        return None
    if "and" in match[0] and above >= below:  # two numbers
        return None
    whole = int(match[2] or 0)
    return _signed(match[1], whole + above / below), text[match.end() :]


def read_number(text: str) -> tuple[Fraction, str] | None:
    """A number at the start of the text and what follows it, or None.

    Reads 1,234; 10 080; -3.5; 6.02e23; 6.02 \\times 10^{23}; 10^{-3}; 3/4; 1 3/4; \\frac{3}{4}; \\frac12; €5;
    3 million; 5 % (a twentieth); a name before an equals sign is passed over.
    """
    text = text.strip()
    named = _NAMED.match(text)
    text = text[named.end() :] if named else text
    found = _fraction(text)
    if found is not None:
        return found
    power_of = _INTEGER_POWER.match(text)
    if power_of is not None:
        base, raised = int(power_of[2]), int(power_of[3] or power_of[4])
        return (_signed(power_of[1], Fraction(base) ** raised), text[power_of.end() :]) if base else None
    match = _NUMBER.match(text)
    if match is None or match.end() > _LIMIT:
        return None
    sign, digits, power, exponent, below, mixed, mixed_above, mixed_below = match.groups()
    end = match.end()
    if mixed and mixed.strip() and int(mixed_above) >= int(mixed_below):  # "2 and 5/3" are two numbers
        end, mixed_below = match.start(6), None
    value = Fraction(Decimal(re.sub("[, ']", "", digits)))
    if power or exponent:
        value *= Fraction(10) ** int(power or exponent)
    for divisor in (below, mixed_below):
        if divisor and not int(divisor):
            return None
    if below:
        value /= int(below)
    if mixed_below:
        value += Fraction(int(mixed_above), int(mixed_below))
    scale = _SCALED.match(text, end)
    if scale is not None:
        return _signed(sign, value * _SCALES[scale[1].lower()]), text[scale.end() :]
    if not text.isascii() and (wide := _WIDE_SCALED.match(text, end)):
        return _signed(sign, value * _WIDE_SCALES[wide[0].strip()]), text[wide.end() :]
    percent = _PERCENT.match(text, end)
    if percent is not None:
        return _signed(sign, value / 100), text[percent.end() :]
    return _signed(sign, value), text[end:]


def without_percent(text: str) -> str:
    """The text without its percent signs and words, for two that both count in hundredths."""
    return _PERCENT.sub("", text)


def parse_number(text: str) -> Fraction | None:
    """The number that the whole text is (a final stop aside), or None."""
    found = read_number(text)
    return found[0] if found is not None and not found[1].strip(" .") else None


def is_unit(text: str) -> bool:
    """May this stand behind a number without changing it ("km", "apples", "m/s^2"), unlike "dozen" or "percent"?"""
    if not text.isascii():
        word = text.strip(" .,")
        if _IDEOGRAPHIC.match(word) or units.in_english(word):
            whole = _IDEOGRAPHIC.fullmatch(word) is not None and _NOT_A_COUNTER.search(word) is None
            return whole or units.in_english(word) is not None
    plain = re.sub(r"(?<=[A-Za-z])(?:\^\s*\{?-?[1-4]\}?|-?[1-4](?!\w))", "", text).strip().strip(".")
    if len(plain) == 1:
        return plain in _LETTER_UNITS
    if plain in ("st", "nd", "rd", "th"):
        return False
    plain = _OF_WHAT.sub("", plain)
    return not plain or (
        _UNIT.fullmatch(plain) is not None and _SCALE.search(plain) is None and len(plain.split()) <= 4
    )


def _after_equals(text: str) -> str | None:
    """What stands behind the last equals sign, where only figures stand before it or there are several; None where the
    text gives several equations."""
    left, _, right = text.partition("=")
    if text.count("=") < 2:
        if right and _SUM.fullmatch(right) and parse_number(left) is not None:  # "42 = 6 × 7"
            return left
        return right if right and _SUM.fullmatch(left) else text
    return None if re.search(r"\bor\b|\band\b|[,;]", text) else text.rpartition("=")[2]


def numeral(text: str, exclaims: bool = False) -> str | None:
    """The number at the start of the text as written, where nothing behind it changes it; `CONFLICT` where another
    number is joined to it ("4 or 5", "4-5"); None for none. exclaims: a "!" behind it is no factorial."""
    text = text.strip()
    after = _after_equals(text)
    if after is None:
        return CONFLICT
    text = after.strip()
    if (spelt := _in_words(text)) is not None:
        return str(spelt)
    if (part := _fraction_in_words(text)) is not None:
        return str(part)
    while text and text[0] in "([{" and text[-1:] in ")]}.":
        text = text[1:].rstrip(".")[:-1].strip()
    found = read_number(text)
    if found is None:
        return None
    rest = found[1]
    if _JOINED.match(rest) or _TAKEN_BACK.match(rest):
        return CONFLICT
    if "/" in text[: len(text) - len(rest)]:
        rest = _PART_OF.sub("", rest)
    if exclaims:
        rest = re.sub(r"^!", ".", rest)
    cut = _CUT.search(rest)
    shown = text[: len(text) - len(found[1])].strip() if found[1] else text
    unit = rest[: cut.start()] if cut else rest
    glued = unit[:1].isalpha()
    unit = unit.strip().rstrip(".")
    return shown if is_unit(unit) and not (glued and _unheard_of(unit)) else None


def _unheard_of(unit: str) -> bool:
    """Is this, written without a space behind a number, no unit ("5abc")?"""
    return _CURRENCY.fullmatch(unit) is None and _IDEOGRAPHIC.match(unit) is None and not units.is_known(unit)


def stated_number(reply: Reply) -> str | None:
    """The numeral that the reply gives, `CONFLICT` for two, None for none."""
    text = extraction.unboxed(reply.content)
    one_piece = re.search(r"[.;!?]\s|\n|,\s+(?:so|thus|hence|therefore)\b", text.strip()) is None
    found = numeral(extraction.bare(text)) if one_piece else None
    if found is not None:
        return found
    for declaration in extraction.declarations(text):
        content = _FIRST_SENTENCE.split(extraction.bare(declaration.content), maxsplit=1)[0]
        said = numeral(content, exclaims=not declaration.boxed)
        if said is None and declaration.strong:
            ending = _ENDING.match(content.rstrip(" .!")[-300:])
            said = numeral(ending[1], exclaims=True) if ending else None
        if said is not None:
            return None if extraction.retracted(text, declaration.start) else said
    return _concluded(text)


def _concluded(text: str) -> str | None:
    """The number with which the last line ends, where it says what something is or comes to ("the sum is 14")."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines or lines[-1].endswith("?"):
        return None
    last = lines[-1].rstrip(" .!")
    if len(lines) > 1 and (alone := numeral(last, exclaims=True)) is not None:
        return alone if read_number(lines[-2]) is None else CONFLICT
    ending = _ENDING.match(last[-300:])
    if ending is None or extraction.denied(last[-300:], ending.start(1), ending.end()):
        return CONFLICT if len(text.split()) <= 12 and two_numbers(text) else None
    return numeral(ending[1], exclaims=True)


_TWO = re.compile(r"(?<![\w.])([-+]?\d+(?:\.\d+)?)\s*(?:,|;|\bor\b|\band\b)\s*([-+]?\d+(?:\.\d+)?)(?![\w.]\d)")


def two_numbers(text: str) -> bool:
    """Does the text give two different numbers as if either would do ("4 or 5", "4, 5")?"""
    return any(match[1] != match[2] for match in _TWO.finditer(text))


def rounded(value: Fraction, places: int) -> float:
    """As MathVista's own rule rounds: Python's `round` of the nearest double."""
    return round(float(value), places)


def shown(value: Fraction) -> str:
    """`14`, `2.5`, `6.02E+23`, or `1/3` where no short decimal is exact."""
    if value.denominator == 1 and abs(value.numerator) < 10**18:
        return str(value.numerator)
    decimal = (Decimal(value.numerator) / Decimal(value.denominator)).normalize()
    exact = Fraction(decimal) == value or value.denominator == 1
    return str(decimal) if exact else str(value)
