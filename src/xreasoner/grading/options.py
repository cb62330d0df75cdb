"""Which option of a multiple-choice problem a reply chose."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from xreasoner.grading import extraction
from xreasoner.grading.extraction import Reply
from xreasoner.grading.numbers import parse_number
from xreasoner.problem import LABELS

CONFLICT = "conflict"
"""Returned in place of a label where a reply chose two options."""

_ROMAN = tuple("I,II,III,IV,V,VI,VII,VIII,IX,X,XI,XII,XIII,XIV,XV,XVI,XVII,XVIII,XIX,XX".split(","))  # noqa: SIM905
_OWN_LABEL = re.compile(
    r"\s*(?:\(([A-Za-z]{1,5}|\d{1,2})\)|([A-Za-z]{1,5}|\d{1,2})(?:[.)]|(?<=[A-Za-z]):))\s*(?!\d)(?=\S)"
)
_ORDINALS = "first,second,third,fourth,fifth,sixth,seventh,eighth,ninth,tenth,eleventh,twelfth".split(",")  # noqa: SIM905
_SEPARATOR = re.compile(r"^[\s:.)\]},;–—\"'>]*(?:-\s+)?")
_RIGHT = (
    r"\s*,?\s*(?:option|选项|選項)?\s*(?:(?:is|must\s+be|should\s+be|seems|looks|appears(?:\s+to\s+be)?)\s+"
    r"(?:also\s+|clearly\s+|therefore\s+|thus\s+|indeed\s+|definitely\s+)?(?:the\s+|my\s+)?(?:only\s+|single\s+|final\s+)?"
    r"(?:correct|right|best|better|true|proper|answer|most\s+(?:likely|appropriate|plausible|accurate|suitable|consistent))\b"
    r"|(?<=only [A-Z])\s+(?:fits|works|applies|remains|matches|holds|is\s+(?:possible|left|consistent))\b"
    r"|is\s+the\s+(?:only\s+)?(?:option|choice|one)\s+(?:that|which)\s+(?:best\s+)?(?:fits|works|matches|is\s+(?:correct|right|consistent))\b"
    r"|it\s+is(?=\W*(?:$|\n))|fits\s+best\b|makes\s+the\s+most\s+sense\b|[项項]?[是为為]?(?:正确|正確|对的|對的|符合(?:题意|條件|条件|要求))(?!吗|嗎)"
    r"|[がは](?:正しい|正解|正答|適切|答え|最も適切)|[은는이가]\s?(?:정답|맞|옳|올바)"
    r"|(?:\s?[-–—])?\s+(?:верн(?:ый|ая|о|а)|правильн(?:ый|ая|о)|هو\s+الصحيح|هي\s+الصحيحة|صحيح|सही\s+है"
    r"|(?:ist|est|es|è|é|is)\s+(?:richtig|korrekt|correcte?|exacte?|(?:die|la|de|het)\s+(?:richtige|korrekte|bonne|correcta|corretta|correta|juiste)|correct[ao]|corrett[ao]|juist)"
    r"|doğru|jest\s+(?:poprawn|prawidłow)[aey]|là\s+đúng|đúng)(?![^\W\d_]))"
)
_DISMISSED = re.compile(r"[\s:.)\]–—-]*(?:false|wrong|incorrect|not\b|no(?=\s*(?:$|[.,;\n])))", re.IGNORECASE)
_ARTICLE = re.compile(r"(?:(?:it|this|that)\s+(?:is|was)\s+|it's\s+)?(?:(?:an?|the)\s+)?", re.IGNORECASE)
_TOO = re.compile(r",?\s*(?:too|also|as\s+well|and\s+so\s+is)\b")
_REJECTED = re.compile(r"\W*(?:false|incorrect|wrong)\b", re.IGNORECASE)
_COUNTED = re.compile(r"(?:option|choice|answer)\s+(?:number\s+|no\.?\s*|#\s*)?(\d{1,2})[\s.!]*", re.IGNORECASE)
_CALLED = re.compile(
    r"(?:the\s+)?(?:\w+\s+)?(?:option|choice|answer|one)(?:\s+(?:number\s+|no\.?\s*|#\s*)?\d+)?[\s.!]*", re.I
)
_NOT = re.compile(r",?\s+(?:not|rather\s+than|instead\s+of)\b")
_DIGIT = re.compile(r"\d")
_ITEM = re.compile(r"[\s>*•|–—-]*[(\[]?\s*([A-Za-z]{1,5}|\d{1,2})\s*[)\].:|]+\s*(.*)")
"""A line of a copied list: label, text."""
_GROUP = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_ENDING = re.compile(r"(?:\b(?:is|are|equals|be)\b|=)\s*([^=\n]{1,80}?)[\s.]*$")
_SENTENCES = re.compile(r"(?<=[.!])(?<!vs\.)\s+(?![a-z])")
_BEFORE, _AFTER = r"(?<![A-Za-z0-9_À-ɏ'])", r"(?![A-Za-z0-9_À-ɏ]|'(?![dt][ıiuü]r\b))"
"""Where a label may stand; other scripts write no spaces around it."""
_SHORT = 25
"""Words; in a longer reply an option's text that merely occurs does not count as chosen."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options as they are compared. labels: upper case, in order; own: label → normalised text; texts: (text, label),
    the longest first. start, another, listed, right: patterns that read these labels."""

    labels: tuple[str, ...]
    own: dict[str, str]
    texts: tuple[tuple[str, str], ...]
    patterns: Patterns


@dataclass(frozen=True, slots=True)
class Patterns:
    """start: a label at the start and what follows. another: a second label joined to the first. marker: a label that
    begins a line, or is set off in it. named: a label in brackets, or after "option". right: a label that is said to be
    right. whole: nothing but a label. marked: a line that calls a label true or false. case: a label that
    holds only for some ("C for children"). run: labels in a row, to the word that is said of all.
    joined: a label and what joins it to the next ("A和")."""

    start: re.Pattern[str]
    another: re.Pattern[str]
    marker: re.Pattern[str]
    named: re.Pattern[str]
    right: re.Pattern[str]
    whole: re.Pattern[str]
    marked: re.Pattern[str]
    case: re.Pattern[str]
    run: re.Pattern[str]
    joined: re.Pattern[str]


@lru_cache(maxsize=256)
def _patterns(labels: tuple[str, ...]) -> Patterns:
    any_case = "|".join(sorted({x for label in labels for x in (label, label.lower())}, key=lambda x: (-len(x), x)))
    upper = "|".join(sorted(labels, key=lambda label: (-len(label), label)))
    lower = (
        "|".join(sorted((label.lower() for label in labels if label.lower() != label), key=len, reverse=True)) or "(?!)"
    )
    closed = rf"[(\[{{<\"']{{1,3}}\s*({any_case})\s*[)\]}}>\"']+"
    open_ = rf"({upper}){_AFTER}(?!\.[a-z](?:\.|\s))|({lower})(?=\s*[.:)\]}},]\s|\s*[.:)\]]?\s*$|\s+(?:is|because)\b)"
    prefix = (
        r"[\s\"'>*•-]*(?:l'|(?:the|la|le|el|die|der|das|[ao](?=\s+(?:opção|letra|alternativa))|(?-i:[ao](?=\s+[A-Z](?![A-Za-z]))))\s+)?"
        r"(?:(?:option|choice|letter|answer|statement|réponse|respuesta|risposta|resposta|antwort|antwoord|opción|opção|opzione|lettre|letra|alternativa|buchstabe|variante?"
        r"|lettera|seçenek|şık|pilihan|opsi|odpowiedź|optie|вариант(?:\s+ответа)?|буква|ответ|الخيار|الحرف|विकल्प"
        r"|đáp\s+án|phương\s+án|lựa\s+chọn)\s+|(?:选项|選項|選択肢|보기|项目)\s*)?"
    )
    ordinals = "|".join([*_ORDINALS[: len(labels)], "last"])
    rest = (
        rf"(?P<rest>\s+(?:the\s+)?(?:{ordinals})\s+(?:option|choice|answer)\b.*|\s+(?:non|nicht|pas|niet|وليست?|,?\s*а\s+не|und\s+nicht|et\s+(?:non|pas)|y\s+no|e\s+n(?:on|ão)|ve|a\s+nie)\s+(?:{upper}){_AFTER}.*|"
        r"\s*$|'[dt][ıiuü]r\b.*|\s*[:.)\]},;!/&+?–—](?!\d).*|\s*-\s.*|\s*\n.*|\s*[(\[].*"
        r"|(?<=[)\]}>])(?:\s+\S|\d|[^\x00-\x7f]).*|\s+(?:and|or|is|was|because|since|as|for|with|not|but\s+not|rather|instead|by|over|to\s+me|given|due|based|according|here|overall|from|şık\w*|seçene\w*)\b.*|\s+(?=[A-Z]).*|\s*[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af].*)"
    )
    joint = (
        r"\s*(?:,?\s*(?:but|or|and|though|although)\s+(?:it\s+)?(?:could|might|may|possibly|perhaps|maybe)\b"
        r"(?:\s+also)?(?:\s+be)?|\s*\(\s*(?:or|and|maybe|perhaps|possibly)\s+|\s*[.;,]\s*(?:[Oo]r|[Aa]nd)\s+(?:maybe\s+|perhaps\s+)?|\s*(?:[和与或및과와かと]|または|もしくは|あるいは|또는|혹은|或者|还是|還是|أو|или|\b(?:oder|ou|o|veya|atau|hoặc|lub|eller|of|tai|nebo)\b)\s*|,\s*(?:and\s+|or\s+)?(?:maybe\s+|perhaps\s+|possibly\s+)?|/|&|\+|;|\.|\band\b|\bor\b|\bas\s+well\s+as\b|\s)\s*(?:option\s+|choice\s+)?"
    )
    return Patterns(
        start=re.compile(rf"(?i:{prefix})(?:{closed}|{open_}){rest}", re.DOTALL),
        another=re.compile(
            rf"{joint}[(\[{{]?({upper})[)\]}}]?{_AFTER}(?=\s*(?:$|[.,;:!)\]}}/&?\n\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]|and\b|or\b|(?:{upper}){_AFTER}))"
        ),
        named=re.compile(rf"[(\[]\s*({any_case})\s*[)\]]|\b(?i:option|choice)\s+({any_case}){_AFTER}"),
        marker=re.compile(
            rf"(?:^|\n)[\s*•-]*(?:[(\[]({any_case})[)\]]|({any_case})[.):])(?!\d)(?=\s|$)"
            rf"|{_BEFORE}(?:[(\[]({upper})[)\]]|({upper})\s*[:)])(?!\d)(?=\s|$)"
        ),
        right=re.compile(
            rf"(?:{closed}|{_BEFORE}({upper}){_AFTER}|\b((?i:{ordinals}))\s+(?:option|choice|answer|one)\b)"
            rf"(?:\s*[:.)]?\s*\([^()]{{1,80}}\)|\s*\d*\s*(?:(?![不非错錯誤間违違])[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]){{1,12}}?)?(?:{_RIGHT})"
        ),
        marked=re.compile(
            rf"(?:^|\n|[.;,]\s)[\s*•-]*[(\[]?({any_case})(?:[)\].:]+\s*(?:[-–—]\s*)?(?:[^\n()]{{1,80}}?(?:\(|\s[-–—]\s))?|\s+[-–—]\s*)"
            r"((?i:true|correct|right|false|incorrect|wrong|yes|no))\b(?=\s*(?:$|[.,;:)\n]))"
        ),
        case=re.compile(rf"{_BEFORE}({upper}){_AFTER}\s*[:,]?\s*\(?(for|if|when|in)\b"),
        joined=re.compile(rf"{_BEFORE}(?:{upper})[)\]]?\s*(?:[、/和与與及或とや과와]|\band\b|\bor\b)\s*[(\[]?$"),
        run=re.compile(
            rf"(?:\s*(?:[,;/、和與与及]|\band\b|\bor\b)?\s*[(\[]?(?:{upper})[)\]]?{_AFTER})+(?:均|都|皆|也)?"
        ),
        whole=re.compile(rf"(?i:{prefix})[(\[{{\"']?({any_case})[)\]}}\"']?[.:)]?"),
    )


def _labelled(options: tuple[str, ...]) -> tuple[str, ...] | None:
    """The labels that the options' own texts carry ("B: 14", "(ii) two", "2. dog"), where all do, in order."""
    found = []
    for text in options:
        match = _OWN_LABEL.match(text)
        if match is None:
            return None
        found.append((match[1] or match[2]).upper())
    labels = tuple(found)
    known = [LABELS, _ROMAN, [str(n) for n in range(1, 100)], [str(n) for n in range(100)]]
    return labels if any(labels == tuple(each[: len(labels)]) for each in known) else None


def style_of(gold: str, options: tuple[str, ...]) -> tuple[str, ...]:
    """The labels by which these options are called: their own, else what the gold is one of, else A, B, C, …"""
    own = _labelled(options)
    if own is not None:
        return own
    named = gold.strip(" ().[]:").upper()
    letters = tuple(LABELS[: len(options)])
    romans = _ROMAN[: len(options)]
    return romans if named in romans and named not in letters else letters


@lru_cache(maxsize=4096)
def prepare(options: tuple[str, ...], labels: tuple[str, ...]) -> Options:
    """Options for comparing; a label that every option's own text carries is taken off."""
    carried = _labelled(options) is not None
    texts = [_OWN_LABEL.sub("", text, count=1) if carried else text for text in options]
    own = {label: extraction.normalise(extraction.clean(text)) for label, text in zip(labels, texts, strict=False)}
    clear = [(text, label) for label, text in own.items() if text and text.upper() not in own]
    return Options(labels, own, tuple(sorted(clear, key=lambda pair: -len(pair[0]))), _patterns(labels))


def merged(options: Options, same: frozenset[str]) -> Options:
    """The options with those of one text counted as one, so that the text alone names it."""
    first = min(same, key=options.labels.index)
    texts = tuple((text, label) for text, label in options.texts if label == first or label not in same)
    return replace(options, texts=texts)


def gold_labels(gold: str, options: Options) -> frozenset[str]:
    """The labels that are right: the one that the gold names, or every one whose text it is. None fits: empty."""
    named = gold.strip().strip("()[].:").strip().upper()
    wanted = extraction.normalise(extraction.clean(gold))
    same = frozenset(label for label, text in options.own.items() if text == wanted)
    if named in options.own:
        return frozenset({named})
    if same:
        return same
    match = options.patterns.start.match(gold.strip())
    label = _label(match, options) if match else None
    said = extraction.normalise(_SEPARATOR.sub("", match["rest"])) if match else ""
    return frozenset({label}) if label and said == options.own[label] else frozenset()


def _label(match: re.Match[str], options: Options) -> str | None:
    letter = next((group for name, group in enumerate(match.groups()) if group and group != match["rest"]), "")
    return letter.upper() if letter.upper() in options.own else None


def _starts_with(text: str, option: str) -> bool:
    rest = text[len(option) :]
    return bool(option) and text.startswith(option) and not re.match(r"\w|[.,]\d", rest)


def exact(text: str, options: Options) -> str | None:
    """The option whose text this is, word for word; `CONFLICT` where two options share the text."""
    wanted = extraction.normalise(text)
    found = [label for option, label in options.texts if option == wanted]
    if not found:
        without = wanted[_ARTICLE.match(wanted).end() :]  # type: ignore[union-attr]
        found = [label for option, label in options.texts if without and option == without]
    if not found and wanted[:1].isdigit():  # "1,000" and "1000"; "10.0" and "10" are two texts
        found = [label for option, label in options.texts if _ungrouped(option) == _ungrouped(wanted)]
    if not found and "/" in wanted and (value := parse_number(wanted)) is not None:  # "8/3" and "2 2/3"
        found = [label for option, label in options.texts if "/" in option and parse_number(option) == value]
    return None if not found else found[0] if len(found) == 1 else CONFLICT


def contradiction(label: str, text: str, options: Options) -> str:
    """The text behind a letter where it is another option's, or a number that is not the option's; else ""."""
    said = extraction.normalise(_SEPARATOR.sub("", text).split("\n", 1)[0])
    longest = [option for option, _ in options.texts if _starts_with(said, option)][:1]
    if longest:
        return "" if longest[0] == options.own[label] else said
    given, own = parse_number(said), parse_number(options.own[label])
    return said if given is not None and own is not None and given != own else ""


def read(text: str, options: Options) -> tuple[str | None, str]:
    """(label, what stands behind it) of a label at the start ("B", "(B)", "B: 14", "option B because …") or of an
    option's exact text; (`CONFLICT`, "") where two are named, (None, "") for none."""
    found = exact(text, options)
    if found is not None:
        return found, ""
    match = options.patterns.start.match(text)
    label = _label(match, options) if match else None
    if match is None or label is None:
        return None, ""
    rest = match["rest"]
    own = options.own[label]
    said = extraction.collapse(_SEPARATOR.sub("", rest)).casefold()
    a_text = _starts_with(said, own) or extraction.normalise(said) in options.own.values()
    dismissed = _DISMISSED.match(rest) and not a_text
    if dismissed or extraction.denied(text, match.start(), match.start("rest")):
        return None, ""
    behind = said[len(own) :] if _starts_with(said, own) else rest
    second = options.patterns.another.match(behind)
    if second and second[1] != label and not _dismisses(behind, second, options):
        return CONFLICT, ""
    if re.match(r"\s+(?:and|or|is|was)\b", rest) and not re.match(rf"{_RIGHT}", rest) and not _starts_with(said, own):
        return None, ""
    case = re.match(r"\s*[:,]?\s*\(?(for|if|when|in)\b", rest)
    if case and any(each[1] != label for each in options.patterns.case.finditer(rest) if each[2] == case[1]):
        return CONFLICT, ""  # "A for adults; C for children"
    if label in ("A", "I") and re.match(r"\s+[a-z]", rest) and contradiction(label, rest, options):
        return CONFLICT, ""  # "A beta particle": a label, or an article?
    return label, rest


def _dismisses(text: str, second: re.Match[str], options: Options) -> bool:
    """Does a sentence of its own reject the labels that it begins with ("(D). (A)(B)(C) are wrong")?"""
    run = options.patterns.run.match(text, second.start(1))
    return "." in text[: second.start(1)] and run is not None and extraction.denied(text, second.start(1), run.end())


def _ordinal(text: str, options: Options) -> str | None:
    match = re.match(r"\s*(?:the\s+)?(\w+)(?:\s+(?:option|choice|answer|one)\b|[\s.!]*$)", text, re.IGNORECASE)
    word = match[1].lower() if match else ""
    counted = _COUNTED.fullmatch(text.strip())
    if (
        counted
        and 0 < int(counted[1]) <= len(options.labels)
        and not any(_DIGIT.search(own) for own, _ in options.texts)
    ):
        return options.labels[int(counted[1]) - 1]
    if word == "last":
        return options.labels[-1]
    return options.labels[_ORDINALS.index(word)] if word in _ORDINALS[: len(options.labels)] else None


def _ungrouped(text: str) -> str:
    return _GROUP.sub("", text)


def _shorter(content: str) -> tuple[str, str]:
    """The first sentence, and what stands before "not …" ("pneumothorax, not asthma")."""
    return content.split(". ", 1)[0], _NOT.split(content, maxsplit=1)[0]


def _declared(text: str, options: Options) -> tuple[int, str | None, str]:
    """(where, label, what stands behind it) of the last option that the text declares or says to be right."""
    last: tuple[int, str | None, str] = (-1, None, "")
    for declaration in extraction.declarations(text):
        content = declaration.content
        for said in dict.fromkeys((content, extraction.bare(content), *_shorter(content))):
            label, rest = read(said, options)
            label = label or (_ordinal(said, options) if declaration.strong else None)
            if label is not None:
                last = (declaration.start, label, rest)
                break
        if last[1] is not None:
            break
    for match in list(options.patterns.right.finditer(text))[-extraction.LAST :]:
        if match.start() > last[0] and not extraction.denied(text, match.start(), match.end()):
            word = next(group for group in match.groups() if group)
            label = _ordinal(f"{word} option", options) if word.lower() in (*_ORDINALS, "last") else word.upper()
            joined = options.patterns.joined.search(text[max(0, match.start() - 12) : match.start()])
            too = joined or "also" in match[0] or _TOO.match(text, match.end())
            last = (match.start(), CONFLICT if too else label, "")
    return last


def _lone(lines: list[str], text: str, options: Options) -> str | None:
    """The label that stands alone on the first or the last line of a reply (or in its first or last sentence)."""
    found = {}
    for line, beside in ((lines[0], lines[1]), (lines[-1], lines[-2])):
        label, rest = read(line, options)
        own = label in options.own and extraction.normalise(_SEPARATOR.sub("", rest)) in ("", options.own[label or ""])
        if (
            label is not None
            and (own or line is lines[0])
            and not _REJECTED.match(rest)
            and not options.patterns.whole.fullmatch(beside)
        ):
            found[line] = label
    others = _listed(text, options)
    if len(set(found.values())) != 1:
        return CONFLICT if found else None
    label = next(iter(found.values()))
    return CONFLICT if others - {label} else label


def _marked(text: str, options: Options) -> str | None:
    """The one label of several that the text calls true ("A: no. B: yes.")."""
    marked = options.patterns.marked.findall(text)
    right = {label.upper() for label, word in marked if word.lower() in ("true", "correct", "right", "yes")}
    if not right or len(marked) < 2 or any(word.lower() in options.own.values() for _, word in marked):
        return None
    return right.pop() if len(right) == 1 else CONFLICT


def _concluded(line: str, options: Options) -> str | None:
    """The option with whose label and text a line ends ("the most likely cause is B) Asthma")."""
    ending = _ENDING.search(line)
    label, rest = read(ending[1], options) if ending else (None, "")
    if ending is None or label not in options.own or extraction.denied(line, ending.start(1), ending.end()):
        return None
    return label if rest and extraction.normalise(_SEPARATOR.sub("", rest)) == options.own[label] else None


def _listed(text: str, options: Options) -> set[str]:
    """The labels that the text lists ("A: …", "(B) …"), but for those that it denies in the same line."""
    found = set()
    for match in list(options.patterns.marker.finditer(text))[-extraction.LAST :]:
        begin = match.end() - len(match[0].lstrip())
        behind = text[match.end() :].split("\n", 1)[0]
        merely_compared = re.match(r"\s*would\s+(?!be\b)", behind)  # "Asthma (A) would show …"
        if not (extraction.denied(text, begin, match.end()) or extraction.negates(behind) or merely_compared):
            found.add(next(group for group in match.groups() if group).upper())
    return found


def _opening(text: str, options: Options) -> str | None:
    """The option with whose text the reply begins, a pause behind it ("No, it is not.")."""
    said = extraction.collapse(text).casefold()
    label = next((label for option, label in options.texts if re.match(rf"{re.escape(option)}[,.;:]\s", said)), None)
    return CONFLICT if label and _quoted(text, options) not in (None, label) else label


def _quoted(text: str, options: Options) -> str | None:
    """The one option whose text stands in the reply; a longer option's text hides a shorter one inside it."""
    said = extraction.collapse(text).casefold()
    both = {exact(part, options) for part in re.split(r"\s*(?:,|/|;|\bor\b|\band\b|\bvs\b\.?|\bversus\b)\s*", said)}
    if None not in both and len(both) > 1:
        return CONFLICT
    ending = _ENDING.search(said)
    found = set()
    for option, label in options.texts:
        if len(option) < 3 or parse_number(option) is not None:
            if ending and extraction.normalise(ending[1]) == option and not extraction.denied(said, *ending.span()):
                found.add(label)
            continue
        for match in re.finditer(rf"(?<![\w.,-]){re.escape(option)}(?!\w|-\w|[.,]\d)", said):
            if not extraction.denied(said, match.start(), match.end()):
                found.add(label)
            said = said[: match.start()] + " " * len(option) + said[match.end() :]
    for match in options.patterns.named.finditer(text):
        if found and not extraction.denied(text, match.start(), match.end()):
            found.add((match[1] or match[2]).upper())
    return None if not found else found.pop() if len(found) == 1 else CONFLICT


def without_copied_list(text: str, options: Options) -> str:
    """The text without copies of the question's list of options, each with its own text and in order; "" where nothing
    else is there. A copy chooses nothing, and must not hide the letter behind it."""
    if not all(options.own.values()) or len(options.own) < 2:
        return text
    if text.count("\n") >= len(options.labels) - 1:
        text = _without_copied_lines(text, options)
    if len(text) > sum(map(len, options.own.values())) and _in_order(text, options):
        text = _copied_in_line(tuple(options.own.items())).sub("\n", text)
    return text.strip()


def _without_copied_lines(text: str, options: Options) -> str:
    lines = text.split("\n")
    kept: list[str] = []
    while lines:
        end = _copied_lines(lines, options)
        if not end:
            kept.append(lines.pop(0))
        del lines[:end]
    return "\n".join(kept)


def _copied_lines(lines: list[str], options: Options) -> int:
    """How many lines a copy of the options takes that begins at the first line; 0 for none."""
    place = 0
    for number, line in enumerate(lines, 1):
        if not line.strip() and place:
            continue
        label = options.labels[place]
        item = _ITEM.match(line)
        labelled = item is not None and item[1].upper() == label
        said = item[2] if item is not None and labelled else line
        if extraction.normalise(said.strip(" |")) != options.own[label]:
            return 0
        place += 1
        if place == len(options.labels):
            return number
    return 0


def _in_order(text: str, options: Options) -> bool:
    """Do the options' texts all stand in the text, in order? A cheap look before a pattern is made."""
    said, at = text.casefold(), 0
    for option in options.own.values():
        at = said.find(option, at)
        if at < 0:
            return False
        at += len(option)
    return True


@lru_cache(maxsize=256)
def _copied_in_line(own: tuple[tuple[str, str], ...]) -> re.Pattern[str]:
    items = (
        rf"[(\[]?\s*{label}\s*[)\].:]+\s*{re.escape(text)}(?![\w/])(?!\.\d)[\s,;.|/*•-]{{0,8}}" for label, text in own
    )
    return re.compile(rf"{_BEFORE}{''.join(items)}", re.IGNORECASE)


def chosen(reply: Reply, options: Options) -> tuple[str | None, str]:
    """(label, what stands behind it) of the option that the reply chose; (`CONFLICT`, "") for two, (None, "") for none.

    In order: the whole reply is an option's text; the last declaration, unless it is taken back; a label at the start
    of a tagged or one-line reply; a label alone on the first or last line; in short replies an option's text.
    """
    text = without_copied_list(extraction.unboxed(reply.content), options)
    if not text:
        return CONFLICT, ""
    found = exact(text, options)
    if found is not None:
        return found, ""
    start, label, rest = _declared(text, options)
    if label is not None:
        return (None, "") if extraction.retracted(text, start) else (label, rest)
    lines = "\n" in text
    if reply.tagged or not lines:
        label, rest = read(text, options)
        if label is None:
            label, rest = read(extraction.bare(text), options)
        if label is None and _CALLED.fullmatch(text.strip()):
            label = _ordinal(text, options)
        if label in options.own and _listed(text, options) - {label}:
            label = CONFLICT
    parts = [part.strip() for part in text.split("\n") if part.strip()] if lines else _SENTENCES.split(text)
    if label is None and lines:
        label, rest = _concluded(parts[-1], options), ""
    if label is None:
        label, rest = _marked(text, options), ""
    if label is None and len(parts) > 1:
        label, rest = _lone(parts, text, options), ""
    if label is None and not lines:
        label, rest = _opening(text, options), ""
    if label is not None and extraction.retracted(text, 0):
        return None, ""
    if label is None and len(text.split()) <= _SHORT:
        label, rest = _quoted(text, options), ""
    return label, rest
