"""What a reply states as its answer: rules that all answer types share.

A reply is cut down to the words that may answer (`read_reply`), and what it declares there is listed
(`declarations`): the last declaration that is neither denied, nor supposed, nor somebody else's, wins.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from xreasoner import trace
from xreasoner.grading.characters import plain

_LEAKED_TURN = re.compile(
    r"<\|[^|>\s]{1,40}\|>|<｜[^｜>\s]{1,40}｜>|</s>|<eos>|<(?:start|end)_of_turn>|\[/?INST\]"
    r"|\n[ \t]{0,8}(?:#{1,6}[ \t]*)?(?:user|human|assistant|system|instruction"
    r"|(?:next\s+)?question(?:\s+\d+)?|q\d*|problem\s+\d+)\s*:"
    r"|\n[ \t]*(?:user|human)[ \t]*\n|\n[ \t]*\n[ \t]{0,8}(?:#{1,6}[ \t]*)?(?P<another>problem)\s*:",
    re.IGNORECASE,
)
_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|textsf|texttt|mathrm|mathbf|mathit|mathsf|boldsymbol|operatorname|mbox|emph|underline)"
    r"\s*\{([^{}]*)\}"
)
_TIE = re.compile(r"(?<!~)~(?=[A-Za-z]|\d+\s*/\s*\d)")
_POWER = re.compile(r"(?<=[\d)])\*\*(?=[\d(])")
_MARKUP = re.compile(
    r"\*\*|__|`{1,3}(?:\w+\n)?|\\?\$|(?<!\\)\\[()\[\]]|(?<!\\)\\[,;:! ]|\\(?:left|right|displaystyle)\b"
    r"|</?(?:strong|em|u|mark|code|p|span|br|answer)\s*/?>",
    re.IGNORECASE,
)
_ODD_BOX = re.compile(r"(?:\x08|(?<![\\\w])b)oxed\s*(?=\{)")
_BARE_BOX = re.compile(r"\\boxed\s+([A-Za-z\d]+)(?![\w{])")
_PAIRED = re.compile(r"<([bi])>([^<]*)</\1>", re.IGNORECASE)  # in pairs only: "<B>" alone is a label in brackets
_STRUCK = re.compile(r"~~[^~\n]*~~")
_STARRED = re.compile(r"(?<![\w*])\*([^*\n]+)\*(?![\w*])|(?<!\w)_([^_\n]+)_(?!\w)")
_GSM_MARK = re.compile(r"^####[ \t]*(?=[-+$\d.])", re.MULTILINE)
_HEADING = re.compile(r"^#{1,6}[ \t]+", re.MULTILINE)
_SPACES = re.compile(r"\s+")
_GAP = re.compile(r"(?<!\\)\\[,;: ]\s*(?=[A-Za-z]|\d{1,2}\s*/\s*\d)")
_GROUPED = re.compile(r"(?<=\d),\s*\\!\s*(?=\d{3})")
_COURTESY = re.compile(
    r"(?:\n|(?<=[.!])\s)\s*(?:(?:please\s+)?(?:let\s+me\s+know\s+if|feel\s+free\s+to)\b[^\n\d.!]*"
    r"|(?:i\s+)?hope\s+(?:this|that|it)\s+(?:helps?|is\s+(?:correct|right|clear|helpful)|was\s+helpful)"
    r"|this\s+(?:solves|completes|answers)\s+(?:the|your)\s+(?:problem|question|task))[.!\s]*$",
    re.IGNORECASE,
)
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{")
_JOINED = re.compile(r"[\s$]*(?:,|/|;|\bor\b|\band\b)[\s$]*", re.IGNORECASE)
_ABOUT = re.compile(r"[\s$]*(?:≈|\\approx)[\s$]*")
_ADVERB = (
    r"(?:(?:therefore|thus|then|clearly|definitely|most|very|probably|likely|simply|indeed|hence|still|actually|donc"
    r"|also|somit|daher|damit|folglich|quindi|pertanto|dunque|portanto|logo|entonces|dus|alltså)\s+)*"
)
_CUE = re.compile(
    r"(?:\b(?:answers?|ans|solution|result|(?:final_)?decision|verdict|antwort|lösung|réponse|respuesta|risposta|resposta|jawaban(?:nya)?|cevap|odpowiedź"
    r"|antwoord|svar(?:et)?|ответ|đáp\s+án(?:\s+đúng)?|(?:richtige|korrekte)\s+(?:option|variante|wahl)|(?:alternativa|opção|opción|opzione|letra|lettre)\s+(?:corr?ecta|corretta|correta|correcte|certa|giusta)|(?:correct|best|right|final|chosen|selected|remaining|my)\s+(?:option|choice|letter|one|pick|selection)"
    r"|the\s+(?:option|choice|letter)|(?:most\s+(?:likely|probable)|correct|best|final)\s+diagnosis|conclusion|(?:best\s+)?guess)\b"
    r"(?:\s+(?:choice|option|letter|correct[ae]?|corr?etta|correta|final[e]?|giusta|justa|certa|exacta|exacte|yang\s+benar|here|then))?"
    r"(?:,\s(?!(?:if|unless|when|whether|says?|some|many)\b)[^.:,;\n]{1,60},)?"
    r"(?:\s+(?:that\s+)?(?:I|we)\s+(?:get|got|find|found|obtain|chose|give))?(?:\s+(?:to|for|of)\s[^.:\n]{0,60}?)?[\"']?\s*"
    rf"(?:[:=]|\s[-–—]\s|->|→|⇒|\b(?:is|was|turns\s+out\s+to\s+be|(?:must|should|would|could|might|may|will|can\s+only|has\s+to)\s+{_ADVERB}be"
    rf"|seems(?:\s+to\s+be)?|appears\s+to\s+be|adalah|lautet|beträgt|ist|est|es|é|è|är|er|là|este)\b)"
    r"|(?:正确的|答案|答え|正解|정답|답|الإجابة(?:\s+الصحيحة)?|الجواب(?:\s+الصحيح)?|الخيار\s+الصحيح|उत्तर|正答|คำตอบ(?:ที่ถูกต้อง)?|(?:ה)?תשובה(?:\s+הנכונה)?|(?:最も)?(?:正しい|適切な)(?:の|もの|選択肢))\]?\s?(?:应该|應該|应|應|可能|很可能|最可能|大概|显然|只能|就|一定)?(?:คือ|היא|הוא|是|为|為|は|은|는|هي|هو|है|:|=|ist)?"
    r"|\b(?:(?:правильн|верн)(?:ым|ой)\s+(?:ответом\s+)?(?:является|будет)|(?:правильн|верн)(?:ый|ая)\s+(?:ответ|вариант(?:\s+ответа)?|буква)|(?:верен|правилен)\s+(?:ответ|вариант))\s*[:–—-]?"
    r"|\b(?:richtig|korrekt)\s+(?:ist|wäre)\b|\bist\s+die\s+(?:(?:richtige|korrekte)\s+)?(?:antwort|lösung)\b"
    r"|\b(?:răspunsul?|vastaus|odpověď|odpoveď|válasz|απάντηση|відповідь|отговор(?:ът)?|одговор|پاسخ)(?:\s+(?:corect|helyes|صحیح))?"
    r"\s*(?::|\b(?:este|on|je|είναι|е)\b|[–—-](?=\s))\s*(?:(?:το|η)\s+)?"
    r"|\b(?:odpowiedź\s+to|odpowiedzią\s+jest|ответом\s+является|ответ\s*[–—-](?=\s)|doğru\s+(?:cevap|yanıt|seçenek)(?!\w))\s?:?"
    rf"|\b(?:option|choice|pick|selection|selected|final|best|correct|total)[\"']?\s*:)\s*{_ADVERB}[\s:]*",
    re.IGNORECASE,
)
_CHINESE_CHOICE = re.compile(r"(?:故|应|應|所以|因此|我)?(?:选择|選擇|选项|選項|选|選)(?:是|为|為|:)?\s*")
_TITLE = re.compile(r"(?:^|\n)\W{0,6}(?:the\s+)?(?:final\s+|correct\s+)?(?:answer|conclusion)\W{0,6}\n+", re.IGNORECASE)
_WEAK_CUE = re.compile(
    r"\b(?:I|we)(?:'d|'ll|\s+would|\s+will|\s+shall)?\s+(?:therefore\s+|thus\s+|will\s+)?"
    r"(?:choose|pick|select|chose|picked|selected|answer|conclude|go\s+with|went\s+with|opt\s+for|settle\s+on|go\s+for"
    r"|lean\s+towards?"
    r"|say|vote\s+for|think|believe|guess)\b(?:\s+(?:that|it\s+is|it's))?\s*:?\s*"
    rf"|\b(?:it|this|that)(?:'s|\s+(?:is|was|(?:must|should|could|might|may|can\s+only|has\s+to)\s+be|seems\s+to\s+be))"
    rf"\s+{_ADVERB}"
    r"|\blet(?:'s|\s+us)\s+(?:go\s+with|choose|pick|select|say)\s+"
    r"|\bif\s+(?:I|we)\s+(?:had|have)\s+to\s+(?:guess|choose|pick|answer|say),?\s+"
    r"|\bwill\s+(?:go\s+with|choose|pick|select|answer)\s+|\b(?:looks|seems)\s+like\s+"
    r"|\b(?:going\s+with|leaning\s+towards?|(?:settled|decided)\s+(?:on|for))\s+|而是\s*|(?:因此|所以)(?:应该|应)?(?:是|为)\s*|(?<=,)\s*(?:而)?(?:应该|应当|应)(?:是|为|选)\s*|\bc'est\s+|(?:不|否),\s*(?:应该)?是|(?:ではなく|でなく|아니라)[,、]?\s*|\bchọn\s+|\b(?:выбираю|выбираем|ich\s+wähle|wir\s+wählen|je\s+choisis|elijo|elegimos|escolho|scelgo|ik\s+kies|seçiyorum|wybieram|saya\s+memilih|[أا]ختار)\s+|\b(?:corresponds?\s+to|match(?:es)?|points?\s+to|consistent\s+with|supports?|suggests?|indicates?|favou?rs?|(?:I|we)\s+(?:find|found|get|got))\s+(?=(?:the\s+)?(?:option|choice|answer)\b|[(\[]?[A-Z][)\]]?\W*(?:$|\n))"
    r"|(?:^|\n)\s*(?:∴|=>|->|→|⇒)\s*|\b(?:no|yes),\s+(?=\S{1,12}\s*(?:$|\n))"
    r"|(?:^|[.,:;!?\n])\s*(?:so|thus|hence|therefore|finally|ultimately|consequently|in\s+conclusion|answer)\b[,:]?\s*"
    r"|\b(?:no,?\s+)?(?:wait|actually|correction|rather|sorry|i\s+mean)\b[,:.!]?\s*(?:no,?\s+(?=\w))?"
    r"|\b(?:not|nicht|no\s+es|non\s+è|não\s+é|pas|не|niet|nie)\s+\S{1,40}?,?\s+(?:but|sondern|sino|mais|ma|mas\s+sim|mas|а|maar|lecz)\s+(?:rather\s+)?|\b(?:leaving|leaves)\s+(?:us\s+with\s+|only\s+|just\s+)?",
    re.IGNORECASE,
)
_TAG = re.compile(
    r"(?:<|&lt;)\s*(/?)\s*((?:seed:)?think(?:ing)?|thought|reasoning|(?:final_)?answer)(?:\s[^<>&]{0,40})?\s*(?:>|&gt;)",
    re.IGNORECASE,
)
_FOREIGN = re.compile(
    r"<\|(?:begin|end)_of_(?:thought|solution|box)\|>|◁/?think▷|\[/?THINK\]"
    r"|(?:<\|end\|>)?(?:<\|start\|>assistant)?<\|channel\|>(?:final|analysis|commentary)[^<|]{0,40}<\|message\|>"
)
"""Other models' tags: OpenThinker's, GLM's, Kimi's, Magistral's, Harmony's channels."""
_ANSWER_AT_END = re.compile(r"<answer>((?:(?!<answer>).)*)</answer>\s*$", re.DOTALL)
CERTAINLY = re.compile(
    r"\b(?:no|without(?:\s+any)?|not?\s+in)\s+(?:doubt|question)\b|\bnot\s+only\b"
    r"|\b(?:by|after)\s+(?:the\s+)?(?:process\s+of\s+)?elimination\b",
    re.IGNORECASE,
)
_DENIAL = re.compile(
    r"\b(?:not|never|cannot|neither|nor|no|without|incorrect|wrong(?:ly)?|false(?:ly)?|instead\s+of|rather\s+than|(?:more\s+\w+|better)\s+than|unlike"
    r"|unlikely|doubt(?:s|ful)?|(?:all|any\w*|every\w*)\s+(?:but|except)|except\s+for|absence\s+of|initial(?:ly)?|originally|previous(?:ly)?|earlier|at\s+first|naive(?:ly)?|tempting"
    r"|(?:common|popular|typical|usual|frequent|over|(?:history|risk|possibility)\s+of)(?=\s*$)|exclud\w+|eliminat\w+|rul(?:e|es|ed|ing)\s+out|common\s+(?:mistake|error)|kein|nicht)\b|n't\b|[不非]",
    re.IGNORECASE,
)
_OTHERS_VIEW = re.compile(
    r"(?<!\bi )(?<!\bwe )\b(?:claim(?:s|ed)?|says|said|thinks|thought|argue[sd]?|believes"
    r"|(?:would|might|may)\s+(?:say|think)|tempted\s+to)\b|\bi\s+(?:first\s+)?thought\b",
    re.IGNORECASE,
)
_SUPPOSED = re.compile(
    r"\b(?:if|unless|whether|suppose|assume|imagine|were\s+it|had\s+it|in\s+case|otherwise)\b|如果|若", re.IGNORECASE
)
_DENIED_AFTER = re.compile(
    r"\W{0,3}(?:,\s*)?(?:(?:is|was|are|were|be|seems?)\s+(?:clearly\s+|therefore\s+|also\s+|definitely\s+|very\s+)?"
    r"(?:not|never|incorrect|wrong|false|excluded|ruled\s+out|eliminated|impossible|unlikely|less\s+likely|a\s+(?:common\s+)?distractor"
    r"|a\s+common\s+(?:mistake|error)|out)\b"
    r"|(?:is|was|does|do|did|can|could)n't\b|(?:does|do|did|cannot|can)\s*not\b|(?:is|are|was)?\s*(?:only\s+)?(?:if|unless)\b"
    r"|(?:was|is)\s+considered,?\s+but\b|would\s+be\s+(?:wrong|incorrect|false)\b"
    r"|(?:must|should|could|can|may)\s+(?:still\s+)?be\s+(?:considered|excluded|rejected|eliminated|ruled\s+out)\b|不(?!是\s*[A-Z](?![A-Za-z])|,)|错|錯|有误|有誤|[はが]?\s?(?:正しく|適切で)?(?:ではな(?!く)|ではあり|じゃな(?!く)|くな|くあり)"
    r"|は(?:誤り|間違|不正解|不適切|違)|[이가은는]?\s?(?:정답[이은]?\s?)?(?:아니(?!라)|아닙|아님|틀|오답|잘못)"
    r"|(?:\s?[-–—])?\s*(?:неверн|неправильн|ошибочн|не\s(?![^.;\n]{1,40},\s*а\s)|не$|خاطئ|خطأ|غير\s+صحيح|ليس|गलत|नहीं|सही\s+नहीं"
    r"|(?:ist|est|es|è|é)\s+(?:falsch|nicht|faux|fausse|incorrect|inexact|incorrecta|falsa?|sbagliat|errat|errad|incorret)"
    r"|(?:n'est\s+pas|no\s+es|non\s+è|não\s+é)\b(?![^.;\n]{1,40}\b(?:mais|sino|ma|mas|bensì|sim)\b)|yanlış|değil|nie\s+jest|không\s+(?:đúng|phải)|sai\b))",
    re.IGNORECASE,
)
_CLAUSE = re.compile(
    r"[.;!?,\n]|(?<!thing )(?<!\ball )\bbut\b|\bso\b|\btherefore\b|\bthus\b|\bhence\b|\bleaving\b|\bleaves\b|而是|所以",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[.;!?\n。](?:\s|$)|\bbut\b|\bso\b|\btherefore\b|\bthus\b|\bhence\b|所以", re.IGNORECASE)
_NEGATIVE_START = re.compile(
    r"\W*(?:it\s+is\s+|it's\s+|that\s+)?(?:definitely\s+|certainly\s+|probably\s+|clearly\s+)?"
    r"(?:(?:not|never|neither|nor|isn't|wasn't)\b|不)",
    re.IGNORECASE,
)
_QUOTED = re.compile(r'\s*"([^"]+)"')
_BUT = re.compile(r"\bbut\s+(?:rather\s+)?|\brather,?\s+|\binstead,?\s+|而是", re.IGNORECASE)
_FILLER = re.compile(
    r"[\s:]*(?:(?:it\s+is|it's|it\s+must\s+be|that|i\s+(?:think|believe|guess|would\s+say|am\s+sure)|probably|likely|maybe"
    r"|perhaps|most\s+likely|clearly|definitely|certainly|surely|for\s+sure|of\s+course|obviously|simply|therefore|thus|indeed|actually|about"
    r"|approximately|roughly|exactly|≈|~|just|only)\b[\s,:]*)+",
    re.IGNORECASE,
)
_RETRACTED = re.compile(
    r"\b(?:that|this|it)(?:'s|\s+is|\s+was)\s+(?:wrong|incorrect|not\s+(?:right|correct)|a\s+mistake|an\s+error|mistaken)\b"
    r"|\bscratch\s+that\b|\bi\s+(?:made\s+(?:a\s+mistake|an\s+error)|was\s+(?:wrong|mistaken)\b(?!\s+to)|take\s+(?:that|it)\s+back)|\b(?:actually|wait|hmm),?\s+no\W*$"
    r"|\b(?:it|this|that|the\s+answer)\s+(?:could|might|may)\s+also\s+be\b(?!\s+\w+ed\b)"
    r"|\blet\s+me\s+(?:reconsider|start\s+over|redo)\b|\bon\s+second\s+thought\b",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\b(?:i\s+(?:can't|cannot|can\s+not|am\s+unable|am\s+not\s+able|won't|will\s+not|must\s+decline|don't\s+know)"
    r"|i'm\s+(?:unable|not\s+able|sorry)|(?:unable|not\s+possible|impossible)\s+to\s+"
    r"(?:answer|determine|tell|say|help|assist)|cannot\s+be\s+(?:determined|answered))\b",
    re.IGNORECASE,
)
_SCRIPT = re.compile(r"(\^)\{(\w+)\}|_\{?(\w+)\}?")
_HALF = re.compile(r"\\[cdt]?frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
_DEGREE = re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-z]))")
_INTERROGATIVE = ("吗", "嗎", "ですか", "でしょうか", "까")
_SENTENCE_END = re.compile(r"[^.!?\n]{0,200}([.!?\n]|$)")
_ROLE = re.compile(r"^\s*(?:assistant|ai|model)\s*:\s*", re.IGNORECASE)
_BLANKS = re.compile(r"\s{3,}")
LAST, _LONGEST, _READ = 60, 4000, 20_000
"""Bounds on time, for replies that go round in circles: how many declarations of a kind are read (the last ones), how
many characters of one, and how many characters of an answer (its end)."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The part of a reply that may answer. content: cleaned text. tagged: it stood in <answer> tags.
    reached: the reply got as far as an answer (the thought was closed, or none was opened)."""

    content: str
    tagged: bool
    reached: bool


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a reply declares. start: where in the text. content: what is declared, to the end of the line (a box: all
    of it). strong: by a word such as "answer" or by a box; weak ones ("it is …", "so …") need an exact form."""

    start: int
    content: str
    strong: bool
    boxed: bool = False


def collapse(text: str) -> str:
    """Whitespace runs become one space; none at the ends."""
    return _SPACES.sub(" ", text).strip()


def _with_slash(match: re.Match[str]) -> str:
    """`\\frac{2}{3}` as `2/3`; of a mixed number as ` 2/3`."""
    glued = match.string[: match.start()][-1:].isdigit()
    return f"{' ' if glued else ''}{match[1] or match[2]}/{match[3] or match[4]}"


def normalise(text: str) -> str:
    """How texts are compared: casefolded, whitespace collapsed, quotes and trailing punctuation stripped, an index
    written plainly (H_{2}O is H2O, m^{2} is m^2), a fraction of figures with a slash."""
    text = _SCRIPT.sub(lambda match: match[1] + match[2] if match[1] else match[3], _HALF.sub(_with_slash, text))
    return collapse(text).casefold().strip("\"' ").rstrip(".,;:!? \"'")


def own_words(text: str) -> str:
    """The text up to a leaked chat turn or an invented next question; what looks so inside a thought stays."""
    for match in _LEAKED_TURN.finditer(text):
        head, tail = text[: match.start()], text[match.end() :].partition(trace.OPEN)[0]
        thinking = trace.CLOSE not in head and (trace.OPEN in head or trace.CLOSE in tail)
        restated = match["another"] and _CUE.search(head) is None  # the problem, before it is answered
        if head.strip() and not thinking and not restated:
            return head
    return text


def _blank(match: re.Match[str]) -> str:
    return "\n\n" if "\n" in match[0] else "  "


def clean(text: str) -> str:
    """Plain characters, and no Markdown, HTML emphasis or LaTeX wrappers (`\\boxed` stays: it declares)."""
    text = _BLANKS.sub(_blank, plain(text[-_READ:]))
    text = _TIE.sub(" ", text) if "~" in text and ("\\" in text or "$" in text) else text
    for _ in range(3 if "\\" in text else 0):  # wrappers nest
        text = _WRAPPER.sub(r"\1", text)
    text = (
        _DEGREE.sub("°", _GROUPED.sub(",", _ROLE.sub("", text)))
        .replace("{,}", ",")
        .replace("\\%", "%")
        .replace("\\quad", " ")
    )
    if "oxed" in text:  # its backslash lost, or its braces
        text = _BARE_BOX.sub(r"\\boxed{\1}", _ODD_BOX.sub(r"\\boxed", text))
    text = _STRUCK.sub(" ", _PAIRED.sub(r"\2", text))
    text = _HEADING.sub("", _GSM_MARK.sub("Answer: ", _MARKUP.sub("", _GAP.sub(" ", _POWER.sub("^", text)))))
    text = _STARRED.sub(lambda match: match[1] or match[2], text).strip().rstrip("\\").rstrip()
    return _COURTESY.sub("", text)  # "I hope it is correct." is no answer


def boxes(text: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of the last boxes (`\\boxed{…}`) whose braces balance, in order."""
    found = []
    for match in list(_BOX.finditer(text))[-LAST:]:
        depth = 1
        for at in range(match.end(), min(len(text), match.end() + _LONGEST)):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if not depth:
                found.append((match.start(), at + 1, text[match.end() : at].strip()))
                break
    return found


def unboxed(text: str) -> str:
    """The content of the box where the whole text is one, else the text."""
    whole = text.strip().rstrip(".: ")
    found = boxes(whole)
    return found[0][2] if found and found[0][:2] == (0, len(whole)) else text


def _since(pattern: re.Pattern[str], text: str) -> str:
    cuts = [match.end() for match in pattern.finditer(text)]
    return text[cuts[-1] if cuts else 0 :]


def denied(text: str, start: int, end: int) -> bool:
    """Is what stands at text[start:end] negated, only supposed, asked, or somebody else's view?"""
    before = CERTAINLY.sub("", text[max(0, start - 160) : start])
    clause, sentence = _since(_CLAUSE, before), _since(_SENTENCE, before)
    if _DENIAL.search(clause) or _OTHERS_VIEW.search(clause) or _SUPPOSED.search(sentence):
        return True
    return bool(_DENIED_AFTER.match(text, end)) or asked(text, end)


def negates(text: str) -> bool:
    """Does the text hold a word of negation?"""
    return _DENIAL.search(text) is not None


def asked(text: str, end: int) -> bool:
    """Does the sentence that goes on at `end` finish with a question mark?"""
    match = _SENTENCE_END.match(text, end)
    return match is not None and (match[1] == "?" or match[0].rstrip(" .\n").endswith(_INTERROGATIVE))


def retracted(text: str, start: int) -> bool:
    """Does the text, from `start` on, take back what it said?"""
    return _RETRACTED.search(text, start) is not None


def payload(text: str, start: int) -> str | None:
    """What a declaration that begins at `start` declares: the rest of its line, or the next line where that is empty.

    Of "not A but B" it is "B"; of "not A" nothing.
    """
    content = text[start : start + _LONGEST].lstrip().split("\n", 1)[0]
    negative = _NEGATIVE_START.match(content)
    if negative is not None:
        but = _BUT.search(content)
        return content[but.end() :].strip() if but else None
    quoted = _QUOTED.match(content)
    return (quoted[1] if quoted else content).strip() or None


def bare(content: str) -> str:
    """A declaration's content without its fillers ("I think it is", "probably")."""
    match = _FILLER.match(content)
    return content[match.end() :] if match else content


def _boxed(text: str) -> list[Declaration]:
    """Boxes as declarations; boxes that are joined ("\\boxed{A} or \\boxed{B}") are one."""
    found: list[Declaration] = []
    last = -1
    for start, end, content in boxes(text):
        if denied(text, start, end):
            continue
        if found and last >= 0 and _ABOUT.fullmatch(text[last:start]):
            continue  # a rounded value behind the exact one
        joiner = _JOINED.fullmatch(text[last:start]) if last >= 0 else None
        if joiner and found:
            content = f"{found.pop().content}{joiner[0].strip().join('  ')}{content}"
        found.append(Declaration(start, content, True, True))
        last = end
    return found


def declarations(text: str) -> list[Declaration]:
    """What the text declares as its answer, the last declaration first.

    Negated, supposed, asked and reported ones are left out ("the answer is not A", "if the answer is A").
    """
    found = _boxed(text) if "\\" in text else []
    taken = {declaration.start for declaration in found}
    for pattern, strong in ((_CUE, True), (_CHINESE_CHOICE, True), (_TITLE, True), (_WEAK_CUE, False)):
        for match in list(pattern.finditer(text))[-LAST:]:
            content = payload(text, match.end())
            begin = match.end() - len(match[0].lstrip(" .,:;!?\n"))
            if content is None or content in ("", "{") or denied(text, begin, begin):
                continue
            at = match.end() if strong else match.end() - 1
            inner = boxes(content)
            if inner and inner[0][0] < 3:  # "the answer is \boxed{…}" is the box
                continue
            if at not in taken:
                found.append(Declaration(at, content, strong))
    return sorted(found, key=lambda declaration: declaration.start, reverse=True)


def refuses(text: str) -> bool:
    """Does a short reply decline to answer?"""
    return len(text) < 400 and _REFUSAL.search(text) is not None


def _tag(match: re.Match[str]) -> str:
    name = "answer" if match[2].lower().endswith("answer") else "think"
    return f"<{match[1]}{name}>"


def _foreign(match: re.Match[str]) -> str:
    if "solution" in match[0]:
        return ""
    if "box" in match[0]:
        return trace.ANSWER_CLOSE if "end" in match[0] else trace.ANSWER_OPEN
    if "channel" in match[0]:
        return trace.CLOSE if "final" in match[0] else trace.OPEN
    return trace.CLOSE if "/" in match[0] or "end" in match[0] else trace.OPEN


def read_reply(text: str, cut: bool) -> Reply:
    """Split a reply (`trace.split`) and clean the part that may answer.

    cut: the completion was stopped from outside; what it holds counts only where a closed <answer> stands. So it
    is with a thought that never ends: only a closed <answer> at the very end counts.
    """
    text = own_words(_TAG.sub(_tag, _FOREIGN.sub(_foreign, text)))
    split = trace.split(text)
    again = trace.OPEN in text.rpartition(trace.CLOSE)[2]
    if again or not split.closed:
        ending = _ANSWER_AT_END.search(text)
        return Reply(clean(ending[1]), True, True) if ending else Reply("", False, False)
    finished = split.tagged and trace.ANSWER_CLOSE in text.rpartition(trace.ANSWER_OPEN)[2]
    return Reply(clean(split.answer), split.tagged, finished or not cut)
