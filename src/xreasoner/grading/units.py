"""Units of measurement by name: `pint`'s own, and what other languages call them."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from itertools import product
from typing import Any

_ALLOWED = re.compile(r"[A-Za-zµ°ÅΩ%][\w µ°ÅΩ%/·*^()-]{0,31}")
_EXPONENTS = re.compile(r"\^\s*[{(]?\s*(-?\d)\s*[})]?|(?<=[A-Za-zµ])(-?\d)(?!\d)")
_DEGREES = re.compile(
    r"(?:\^?\s*\{?\s*(?:\\circ|°)\s*\}?|\bdegrees?\b|\bdeg\b)\s*(C|F|Celsius|Fahrenheit)?\b", re.IGNORECASE
)

_PREFIXED = (
    # (prefixes, bases, endings): every combination is a name
    (
        "千=k 毫=m 厘=c 釐=c 分=d 微=µ 纳=n 奈=n 兆=M 吉=G 皮=p 百=h",
        "米=m 克=g 升=L 秒=s 瓦=W 瓦特=W 伏=V 伏特=V 安=A 安培=A 焦=J 焦耳=J 牛=N 牛顿=N 牛頓=N 帕=Pa 帕斯卡=Pa"
        " 赫兹=Hz 赫茲=Hz 赫=Hz 欧姆=ohm 歐姆=ohm 欧=ohm 摩尔=mol 摩爾=mol 卡=cal 特斯拉=T 库仑=C 电子伏特=eV",
        "",
    ),
    (
        "キロ=k センチ=c ミリ=m マイクロ=µ ナノ=n デシ=d メガ=M ギガ=G ヘクト=h",
        "メートル=m グラム=g リットル=L 秒=s ワット=W ボルト=V アンペア=A ジュール=J ニュートン=N パスカル=Pa"
        " ヘルツ=Hz オーム=ohm モル=mol カロリー=cal ケルビン=K",
        "",
    ),
    (
        "킬로=k 센티=c 밀리=m 마이크로=µ 나노=n 데시=d 메가=M 기가=G",
        "미터=m 그램=g 리터=L 초=s 와트=W 볼트=V 암페어=A 줄=J 뉴턴=N 파스칼=Pa 헤르츠=Hz 옴=ohm 몰=mol 칼로리=cal",
        "",
    ),
    (
        "кило=k санти=c милли=m микро=µ нано=n деци=d мега=M гига=G гекто=h",
        "метр=m грамм=g литр=L секунд=s ватт=W вольт=V ампер=A джоул=J ньютон=N паскал=Pa герц=Hz ом=ohm мол=mol"
        " калори=cal",
        "а ов ы е у ах ами ь я ей и ю й",
    ),
    (
        "к=k с=c м=m мк=µ н=n д=d М=M г=h",
        "м=m г=g л=L с=s сек=s Вт=W В=V А=A Дж=J Н=N Па=Pa Гц=Hz Ом=ohm моль=mol кал=cal",
        "",
    ),
    (
        "كيلو=k سنتي=c سنتيم=c ملي=m مللي=m ميكرو=µ نانو=n",
        "متر=m مترا=m تر=m غرام=g جرام=g لتر=L ثانية=s واط=W فولت=V",
        "",
    ),
    (
        "किलो=k सेंटी=c सेन्टी=c मिली=m माइक्रो=µ नैनो=n",
        "मीटर=m ग्राम=g लीटर=L सेकंड=s सेकेंड=s वाट=W वोल्ट=V जूल=J न्यूटन=N",
        "",
    ),
    (
        "kilo=k quilo=k quiló=k kiló=k chilo=k zenti=c centi=c centí=c santi=c senti=c sentí=c milli=m mili=m milí=m"
        " mikro=µ micro=µ micró=µ dezi=d déci=d deci=d decí=d mega=M hekto=h hecto=h",
        "meter=m metern=m metro=m metros=m metri=m mètre=m mètres=m metre=m metres=m metr=m metry=m metrów=m metra=m"
        " gramm=g gramme=g grammes=g grammo=g grammi=g gramo=g gramos=g grama=g gramas=g gram=g gramy=g gramów=g"
        " liter=L litern=L litre=L litres=L litro=L litros=L litri=L litr=L litry=L litrów=L litra=L"
        " sekunde=s sekunden=s seconde=s secondes=s seconden=s segundo=s segundos=s secondo=s secondi=s sekund=s"
        " sekunda=s sekundy=s saniye=s detik=s watt=W volt=V voltios=V vatios=W joule=J joules=J julios=J newton=N"
        " newtons=N newtonów=N pascal=Pa hertz=Hz ohm=ohm ampere=A amperios=A",
        "",
    ),
    ("", "mét=m xăng-ti-mét=cm ki-lô-mét=km mi-li-mét=mm giây=s phút=min giờ=h gam=g lít=L", ""),
)
_OTHERS = (
    "公里=km 公斤=kg 公分=cm 公尺=m 公克=g 公升=L 公吨=tonne 吨=tonne 噸=tonne"
    " 小时=hour 小時=hour 个小时=hour 钟头=hour"
    " 時間=hour 分钟=min 分鐘=min 分=min 秒钟=s 秒鐘=s 天=day 日=day 日間=day 周=week 星期=week 週間=week 个月=month"
    " ヶ月=month か月=month 年=year 年間=year 度=degree 摄氏度=degC 攝氏度=degC 华氏度=degF トン=tonne"
    " 시간=hour 분=min 분간=min 일=day 주=week 개월=month 년=year 도=degree 톤=tonne 섭씨도=degC"
    " ч=hour час=hour часа=hour часов=hour мин=min минута=min минуты=min минут=min дн=day день=day дня=day дней=day"
    " сутки=day суток=day неделя=week недели=week недель=week год=year года=year лет=year т=tonne тонн=tonne"
    " тонны=tonne тонна=tonne градус=degree градуса=degree градусов=degree"
    " كم=km سم=cm مم=mm كجم=kg كغ=kg كلغ=kg غ=g جم=g ملغ=mg مجم=mg مل=mL ل=L ث=s ثوان=s ثواني=s دقيقة=min دقائق=min"
    " ساعة=hour ساعات=hour يوم=day أيام=day أمتار=m سنتيمتر=cm سنتيمترا=cm كيلومتر=km درجة=degree"
    " किमी=km सेमी=cm मिमी=mm किग्रा=kg मिग्रा=mg मिली=mL घंटा=hour घंटे=hour मिनट=min दिन=day वर्ष=year"
    " minute=min minuten=min minutes=min minuto=min minutos=min minuti=min minuut=min minut=min minuta=min minuty=min"
    " dakika=min menit=min stunde=hour stunden=hour heure=hour heures=hour hora=hour horas=hour ore=hour ora=hour"
    " uur=hour uren=hour godzina=hour godziny=hour godzin=hour saat=hour jam=hour tag=day tage=day tagen=day jour=day"
    " jours=day día=day días=day dia=day dias=day giorno=day giorni=day dagen=day dni=day gün=day hari=day"
    " woche=week wochen=week semaine=week semaines=week semana=week semanas=week settimana=week settimane=week"
    " monat=month monate=month mois=month meses=month mesi=month jahr=year jahre=year jahren=year années=year"
    " année=year ans=year año=year años=year ano=year anos=year anno=year anni=year tahun=year yıl=year"
    " grad=degree degré=degree degrés=degree grado=degree grados=degree graus=degree grau=degree gradi=degree"
    " tonne=tonne tonnen=tonne tonnes=tonne toneladas=tonne tonnellate=tonne"
)
_SQUARED = "平方 제곱 квадратных квадратный квадратные кв. кв quadrat quadratischer vierkante مربع वर्ग".split()  # noqa: SIM905
_CUBED = "立方 세제곱 кубических кубический кубические куб. куб kubik kubieke مكعب घन".split()  # noqa: SIM905
_SQUARED_BEHIND = "carré carrés cuadrado cuadrados quadrado quadrados quadrato quadrati kare مربع".split()  # noqa: SIM905
_CUBED_BEHIND = "cube cubes cúbico cúbicos cubo cubos cubi küp مكعب".split()  # noqa: SIM905
_PER = re.compile(
    r"\s*(?:/|每|毎|\bpro\b|\bpar\b|\bpor\b|\bper\b|\bal\b|(?<=\s)в(?=\s)|\bna\b|\bprzez\b)\s*", re.IGNORECASE
)
_RAISED = re.compile(r"(.*?)\s*\^\s*\{?\s*([-\d])\s*\}?")


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(name, symbol) for name, _, symbol in (each.partition("=") for each in text.split())]


@lru_cache(maxsize=1)
def _names() -> dict[str, str]:
    """Every foreign name → pint's symbol. Symbols keep their case (м and М differ), words are also found casefolded."""
    found: dict[str, str] = {}
    for prefixes, bases, endings in _PREFIXED:
        for (before, prefix), (base, symbol), ending in product(
            [("", ""), *_pairs(prefixes)], _pairs(bases), ["", *endings.split()]
        ):
            found.setdefault(before + base + ending, prefix + symbol)
    return found | dict(_pairs(_OTHERS))


def _named(word: str) -> str | None:
    """pint's name for one foreign unit, a power included ("平方米", "Quadratmeter", "mètres carrés")."""
    word = word.strip()
    raised = _RAISED.fullmatch(word)
    if raised:
        base = _named(raised[1])
        return base and f"{base}^{raised[2]}"
    names = _names()
    if (plain := names.get(word) or names.get(word.casefold())) is not None:
        return plain
    small = word.casefold()
    for power, before, behind in ((2, _SQUARED, _SQUARED_BEHIND), (3, _CUBED, _CUBED_BEHIND)):
        rests = [small.removeprefix(each) for each in before if small.startswith(each)]
        rests += [small.removesuffix(each) for each in behind if small.endswith(each)]
        found = next((name for rest in rests if (name := names.get(rest.strip()))), None)
        if found is not None:
            return f"{found}^{power}"
    return None


@lru_cache(maxsize=4096)
def in_english(text: str) -> str | None:
    """pint's name of a unit that is written in another language ("厘米", "km/Stunde"), or None."""
    parts = _PER.split(text.strip())
    if not 1 <= len(parts) <= 2 or len(text) > 40:
        return None
    found = [_named(part) or (part if part.isascii() and _ALLOWED.fullmatch(part) else None) for part in parts]
    return None if None in found or found == parts else "/".join(each for each in found if each)


@lru_cache(maxsize=1)
def _registry() -> Any:
    import pint

    return pint.UnitRegistry(non_int_type=Fraction, autoconvert_offset_to_baseunit=True)


@lru_cache(maxsize=4096)
def _unit(text: str) -> Any:
    """The unit of this name, or None for one that nobody knows. Only short names get as far as pint's reader."""
    found = _parsed(text)
    if found is None and (name := in_english(text)) is not None:
        return _parsed(name)
    return found


def _parsed(text: str) -> Any:
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
