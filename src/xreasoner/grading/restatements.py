"""No, said by denying what a yes/no question asks about: "There is no sign of effusion." to "Is there an effusion?".

The denial counts only where it is of the very thing that was asked about, in plain words: a second negation, a hedge, a
condition or another finding makes it no answer.
"""

from __future__ import annotations

import re

_EVIDENCE = (
    r"(?:(?:any|visible|radiographic|radiological|imaging|clinical)\s+)*"
    r"(?:signs?|evidence|indications?|traces?|suggestions?|hints?|features?|findings?|symptoms?|proof|presence|history)"
    r"\s+(?:of|for|suggesting|suggestive\s+of|indicating)\s+"
)
_SEEN = (
    r"(?:present|seen|visible|visuali[sz]ed|noted|identified|observed|evident|detected|shown|found|demonstrated|there"
    r"|apparent|appreciated|depicted|reported|described)"
)
_IS = r"(?:is|are|was|were|can\s+be|could\s+be)"
_SHOW = (
    r"(?:show|have|has|contain|reveal|demonstrate|suggest|exhibit|indicate|display|depict|present\s+with|report|include"
    r"|suffer\s+from|see|detect|identify|observe|find|note)"
)
_NOT = r"(?:not|n't)"
_ITS = r"(?:(?:an?|any|the)\s+)?"

_EXPLICIT = (
    re.compile(rf"\b(?:no|without)\s+(?:any\s+)?{_EVIDENCE}{_ITS}(?P<what>.+)"),
    re.compile(rf"\b(?:{_IS}|do|does|did)\s*{_NOT}\s+(?:{_SHOW}\s+)?(?:any\s+)?{_EVIDENCE}{_ITS}(?P<what>.+)"),
    re.compile(rf"\bnegative\s+for\s+(?:{_EVIDENCE})?{_ITS}(?P<what>.+)"),
    re.compile(rf"\bden(?:y|ies|ied)\s+(?:having\s+)?(?:{_EVIDENCE})?{_ITS}(?P<what>.+)"),
)
"""Denials that say by themselves that something was looked for."""
_PLAIN = (
    re.compile(rf"\bthere\s+{_IS}\s*(?:no|{_NOT})\s+{_ITS}(?P<what>.+)"),
    re.compile(rf"^\W*(?:overall,\s+)?no\s+(?P<what>.+?)(?:\s+{_IS}\s+{_SEEN}.*|\s+{_SEEN}.*)?$"),
    re.compile(rf"\b(?:free\s+(?:of|from)|absence\s+of|without|lacks?|lacking|devoid\s+of)\s+{_ITS}(?P<what>.+)"),
    re.compile(rf"\b{_SHOW}(?:s|ed|es)?\s+no\s+{_ITS}(?P<what>.+)"),
    re.compile(rf"\b(?:do|does|did|can|could)(?:\s*{_NOT}|not)\s+{_SHOW}\s+{_ITS}(?P<what>.+)"),
    re.compile(
        rf"^\W*(?:(?:an?|any|the)\s+)?(?P<what>.+?)\s+(?:{_IS}\s*{_NOT}|can\s*not\s+be|can't\s+be)\s+(?:be\s+)?{_SEEN}\b.*$"
    ),
    re.compile(rf"^\W*(?:(?:an?|any|the)\s+)?(?P<what>.+?)\s+{_IS}\s+absent\b.*$"),
)
_ASKED = (
    re.compile(rf"^{_IS}\s+there\s+(?P<what>.+)$"),
    re.compile(rf"^(?:do|does|did)\s+.+?\s+{_SHOW}\s+(?P<what>.+)$"),
    re.compile(rf"^(?:can|could|do|did)\s+(?:you|we|one|i)\s+{_SHOW}\s+(?P<what>.+)$"),
    re.compile(rf"^(?:is|are|was|were|can|could)\s+(?P<what>.+?)\s+(?:be\s+)?{_SEEN}\b.*$"),
)
_NOUNS_END = re.compile(
    r"\s+(?:in|on|at|of|with|within|from|near|around|along|above|below|over|under|by|to|for|that|which|is|are|was|were"
    rf"|{_SEEN})\b.*$"
)
_UNSURE = re.compile(
    r"\b(?:not|no|never|none|neither|nor|without|absence|absent|lack\w*|free|negative|den(?:y|ies|ied)|cannot|can't"
    r"|rul\w+\s+out|exclu\w+|doubt\w*|unlikely|fail\w*|hardly|barely|except|but|however|although|though|unless|if|whether"
    r"|only|other|apart|may|might|could|possibl\w+|perhaps|unclear|uncertain|difficult|limited|hard|instead|longer"
    r"|while|whereas|mistake\w*|wrong|false|incorrect|untrue|suppose|assume|says?|said|claims?|yes|initially|reason|way"
    r"|question|more|less|significant\w*|definite\w*|convincing|until|before|after|previous\w*|prior"
    r"|old|former\w*|earlier|past|then|ago|last|initial\w*|one|yet|sure|certain|certainty|proven?|confirm\w*|conclusive\w*|impossible|sufficient|enough)\b|n't\b|\?"
)
_GENERIC = frozenset(
    "a an the any visible this that these those of in on at for to here there image images picture photo photograph"  # noqa: SIM905
    " scan radiograph xray x-ray x ray film study ct mri view shown given provided current is are was were be his her"
    " their its patient and s evidence sign signs".split()
)
_WORDS = re.compile(r"[^\W_]+(?:-[^\W_]+)*")
_MODALITY = re.compile(
    r"\b(?:chest|abdominal|head|brain|frontal|lateral)\s+(?=x-?ray|radiograph|film|ct\b|mri|scan|image)"
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_LONGEST = 400
_LEAD = re.compile(
    r"^(?:(?:so|thus|therefore|hence|overall|in\s+summary|in\s+conclusion|based\s+on\s+the\s+\w+|(?:final\s+)?answer)\b[\s,:]*)+"
)
_ELLIPTIC = re.compile(
    r"(?:there|it|he|she|they|this|that)\s+(?:is|are|was|were|do|does|did|has|have)(?:n't|\s+not)(?:\s+any)?[\s.!]*"
)
_CLOSED = re.compile(r"^(?:is|are|was|were|do|does|did|has|have|can|could)\s")


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "is", "us")) else word


def _words(text: str) -> list[str]:
    """The words that carry meaning, a plural as its singular."""
    said = _MODALITY.sub("", text.replace("-sided", ""))
    return [_singular(word) for word in _WORDS.findall(said) if word not in _GENERIC]


def _asked(question: str) -> tuple[str, frozenset[str]] | None:
    """(the noun, all words) of what a question asks the presence of; None for a question of another kind."""
    sentences = [each for each in _SENTENCE.split(question.casefold().strip()) if each.endswith("?")]
    if len(sentences) != 1:
        return None
    text = sentences[0].rstrip("? ")
    text = re.sub(r"^(?:[^,?]{1,60},\s*)(?=(?:is|are|was|were|do|does|did|can|could)\s)", "", text)
    if _UNSURE.search(text.replace("could", "can")) or re.search(r"\b(?:or|and|both|either)\b|,", text):
        return None
    match = next((found for pattern in _ASKED if (found := pattern.match(text))), None)
    if match is None:
        return None
    what = re.sub(rf"^{_ITS}(?:{_EVIDENCE})?{_ITS}", "", match["what"])
    nouns = _words(_NOUNS_END.sub("", what))
    return (nouns[-1], frozenset(_words(text))) if nouns else None


def _denied_in(sentence: str, patterns: tuple[re.Pattern[str], ...]) -> list[list[str]]:
    """The things that a sentence denies, each as its words; [] for none or where it is not that plain."""
    for pattern in patterns:
        match = pattern.search(sentence)
        if match is None:
            continue
        what = match["what"].rstrip(" .!")
        if len(_UNSURE.findall(re.sub(r"\bnor\b", "or", sentence))) != 1:  # the denial's own word, and no other
            return []
        listed = re.split(r"\s*,\s*(?:or\s+)?|\s+or\s+", what) if " or " in what or " nor " in what else [what]
        if any("," in each for each in listed):
            return []
        return [words for each in listed if (words := _words(re.sub(rf"(?:\s+{_IS})?\s+{_SEEN}\b.*$", "", each)))]
    return []


def denies(text: str, question: str) -> bool:
    """Does a short reply deny what the question asks the presence of, and nothing more?

    Where no question is known ("" or "?") only a denial that names what was looked for counts ("no sign of …",
    "negative for …").
    """
    if len(text) > _LONGEST or "?" in text:
        return False
    sentences = [_LEAD.sub("", each.strip()) for each in _SENTENCE.split(text.casefold()) if each.strip()]
    if question.strip() in ("", "?"):
        found = _denied_in(sentences[0], _EXPLICIT) if len(sentences) == 1 else []
        return len(found) == 1 and not re.search(r"normal|differ|chang|\band\b", " ".join(found[0]) + sentences[0])
    asked = _asked(question)
    if asked is None:
        return False
    noun, words = asked
    if len(sentences) == 1 and _ELLIPTIC.fullmatch(sentences[0]) and _CLOSED.match(question.casefold().strip()):
        return True
    denials = 0
    for sentence in sentences:
        denied = any(noun in each and words.issuperset(each) for each in _denied_in(sentence, _EXPLICIT + _PLAIN))
        if noun in _words(sentence) and not denied:
            return False
        denials += denied
    return denials > 0
