"""The traces on the page: an index that is searched at once, texts and pictures that are unpacked when looked at.

Both are gzip in base64 inside the page. The order is by rule, in turn from each story, outcome and family, so what
a page of limited size leaves out is what there is most of.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from xreasoner.benchmarks.store import Row, condition_of
from xreasoner.benchmarks.summary import BASES, GROUPS, place_of
from xreasoner.problem import LABELS
from xreasoner.reporting.reading import CELLS, Run

PER_CHUNK = 50
TEXT_BYTES, PICTURE_BYTES = 14_000_000, 8_000_000
THOUGHT_CHARACTERS = 6000
_AS_IS_BYTES, _PICTURE_PIXELS = 3_000, 360


@dataclass(frozen=True, slots=True)
class Item:
    """One problem and its trace at each stage (the first sample). place: ("cells" | "perception" | …, name).

    stories: as of `stories`.
    """

    place: tuple[str, str]
    rows: Mapping[str, Row]
    stories: tuple[str, ...]

    @property
    def label(self) -> str:
        """What the benchmark filter calls its place."""
        return f"reading {self.place[1]}" if self.place[0] == "perception" else self.place[1]

    @property
    def first(self) -> Row:
        """A row with what all stages share: question, options, gold, picture."""
        return next(iter(self.rows.values()))


def predecessors(stages: Sequence[str]) -> dict[str, list[str]]:
    """Against which stages each is held: SFT against every base, RL against SFT, any other model against the bases
    or, without one, the first model; within its own run where there are several.
    """
    found: dict[str, list[str]] = {}
    others = [stage for stage in stages if stage.partition("@")[0] not in (*BASES, "sft", "sft+rl")]
    for stage in stages:
        name, mark, folder = stage.partition("@")
        bases = [own if (own := f"{base}{mark}{folder}") in stages else base for base in BASES]
        bases = [base for base in bases if base in stages]
        if name == "sft+rl" and f"sft{mark}{folder}" in stages:
            found[stage] = [f"sft{mark}{folder}"]
        elif name not in BASES:
            found[stage] = bases or [other for other in others[:1] if other != stage]
    return {stage: before for stage, before in found.items() if before}


def stories(rows: Mapping[str, Row], held_against: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Which stories hold for one item's rows by stage: a stage fixed what all that it is held against had wrong, and
    broke what any of them had right.
    """
    right = {stage: bool(row["correct"]) for stage, row in rows.items()}
    found = []
    for stage, before in held_against.items():
        known = [right[other] for other in before if other in right]
        if known and stage in right and right[stage] != any(known):
            found.append(f"{'fixed' if right[stage] else 'broken'} by {stage}")
    return tuple(found)


def gather(run: Run) -> dict[tuple[str, str], list[Item]]:
    """All items of the run by place, in the order of the results; unseen pictures and further samples are left out."""
    found: dict[tuple[str, str], dict[str, dict[str, Row]]] = {}
    for stage in run.stages:
        for row in run.rows.get(stage, []):
            if condition_of(row) == "seen" and not row.get("sample", 0):
                found.setdefault(place_of(row), {}).setdefault(row["id"], {})[stage] = row
    rank = {cell: index for index, cell in enumerate(CELLS)}
    places = sorted(found, key=lambda place: (GROUPS.index(place[0]), rank.get(place[1], len(CELLS)), place[1]))
    before = predecessors(run.stages)
    return {place: [Item(place, rows, stories(rows, before)) for rows in found[place].values()] for place in places}


def interleave(items: Sequence[Item]) -> list[Item]:
    """All items, one in turn from each story, each stage's outcome and exit, and each family."""
    kinds: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        for kind in _kinds(item):
            kinds.setdefault(kind, []).append(index)
    queues = [iter(kinds[kind]) for kind in sorted(kinds)]
    chosen: dict[int, None] = {}
    while queues:
        for queue in list(queues):
            fresh = next((index for index in queue if index not in chosen), None)
            if fresh is None:
                queues.remove(queue)
            else:
                chosen[fresh] = None
    return [items[index] for index in chosen]


def _kinds(item: Item) -> Iterable[str]:
    yield from (f"0 {story}" for story in item.stories)
    for stage, row in item.rows.items():
        yield f"1 {stage} {row['outcome']}"
        yield f"1 {stage} exit {row['exit']}"
    yield f"2 {item.first['family']}"


def ordered(places: Mapping[tuple[str, str], Sequence[Item]]) -> list[Item]:
    """All items in the page's order: one place after the other, each from the rare to the common."""
    return [item for items in places.values() for item in interleave(items)]


@dataclass(frozen=True, slots=True)
class Packed:
    """The traces as the page holds them: base64 of gzip of JSON (index, chunks), and pictures as data URIs by name.

    texts, pictured: how many items have their texts here, how many of those with a picture have it.
    """

    index: str
    chunks: list[str]
    pictures: dict[str, str]
    items: int
    texts: int
    pictured: int
    with_picture: int


def pack(run: Run, items: Sequence[Item]) -> Packed:
    """The items for the page. Where it would grow too big, texts and pictures end at a limit; the index never does."""
    turns = _in_turns(items)
    pictures = _pictures(run.folders, [items[index] for index in turns])
    chunks, place_of, size = list[str](), dict[int, int](), 0
    for start in range(0, len(turns), PER_CHUNK):
        some = turns[start : start + PER_CHUNK]
        chunk = _squeeze([_detail(items[index]) for index in some])
        size += len(chunk)
        if size > TEXT_BYTES:
            break
        place_of |= {index: start + offset for offset, index in enumerate(some)}
        chunks.append(chunk)
    names = [item.first.get("image") for item in items]
    index = _squeeze(_index(run.stages, items, place_of))
    pictured = sum(name in pictures for name in names)
    return Packed(index, chunks, pictures, len(items), len(place_of), pictured, sum(map(bool, names)))


def _in_turns(items: Sequence[Item]) -> list[int]:
    """Positions of the items, one place after the other in turn, each in its order: who is served first."""
    queues: dict[tuple[str, str], list[int]] = {}
    for index, item in enumerate(items):
        queues.setdefault(item.place, []).append(index)
    ranked = [(turn, index) for queue in queues.values() for turn, index in enumerate(queue)]
    return [index for _, index in sorted(ranked)]


def _squeeze(value: Any) -> str:
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()


def _index(stages: Sequence[str], items: Sequence[Item], place_of: Mapping[int, int]) -> dict[str, Any]:
    """What filters need of every item, as lists of numbers into shared lists of words."""
    words: dict[str, dict[str, int]] = {name: {} for name in ("labels", "families", "stories", "outcomes", "exits")}

    def number(kind: str, word: str) -> int:
        return words[kind].setdefault(word, len(words[kind]))

    lines = [
        [
            str(item.first["id"]),
            clip((item.first["question"].strip() or "—").splitlines()[-1], 180),
            number("labels", item.label),
            number("families", str(item.first["family"])),
            [number("stories", story) for story in item.stories],
            [
                [number("outcomes", row["outcome"]), number("exits", row["exit"])] if (row := item.rows.get(s)) else 0
                for s in stages
            ],
            place_of.get(index, -1),
        ]
        for index, item in enumerate(items)
    ]
    return {
        "stages": list(stages),
        "size": PER_CHUNK,
        **{kind: list(found) for kind, found in words.items()},
        "items": lines,
    }


def _detail(item: Item) -> dict[str, Any]:
    """What the page shows of an item that is opened."""
    first = item.first
    return {
        "question": clip(first["question"], 4000),
        "options": [f"{LABELS[i : i + 1]}  {option}" for i, option in enumerate(first["options"])],
        "gold": str(first["gold"]),
        "facts": str(first.get("facts") or ""),
        "image": first.get("image") or "",
        "traces": {stage: _trace(row) for stage, row in item.rows.items()},
    }


def _trace(row: Row) -> dict[str, Any]:
    """One reply. mark: the extracted answer where it stands in the answer as it is shown, else ""."""
    answer = row["answer"] or row["response"].rpartition("</think>")[2]
    answer = clip(answer.strip(), 1200)
    return {
        "thought": clip(row["thought"]),
        "answer": answer,
        "mark": row["extracted"] if row["extracted"] and row["extracted"] in answer else "",
        "tokens": [row["prompt_tokens"], row["thought_tokens"], row["answer_tokens"]],
    }


def clip(text: str, most: int = THOUGHT_CHARACTERS) -> str:
    """A long text without its middle, with a note of how much is left out."""
    if len(text) <= most:
        return text
    head, tail = most * 2 // 3, most // 3
    return f"{text[:head]}\n[… {len(text) - head - tail} characters left out; results.jsonl has them …]\n{text[-tail:]}"


def _pictures(folders: Sequence[Path], items: Iterable[Item]) -> dict[str, str]:
    """Each item's picture as a data URI by its name, in order, until there is no more room."""
    found: dict[str, str] = {}
    left = PICTURE_BYTES
    for name in dict.fromkeys(item.first.get("image") for item in items):
        uri = next(filter(None, (picture_uri(folder, name) for folder in folders)), None)
        if name and uri:
            left -= len(uri)
            if left < 0:
                break
            found[name] = uri
    return found


def picture_uri(folder: Path, name: str | None) -> str | None:
    """A picture of the run as a data URI, made smaller where it is big; None where it cannot be read."""
    if not name:
        return None
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        return None
    data, kind = path.read_bytes(), "png"
    if len(data) > _AS_IS_BYTES or not data.startswith(b"\x89PNG"):
        try:
            data, kind = _smaller(data), "webp"
        except (UnidentifiedImageError, OSError):
            return None
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _smaller(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as picture:
        small = picture.convert("RGB")
    small.thumbnail((_PICTURE_PIXELS, _PICTURE_PIXELS))
    small.save(buffer, format="WEBP", quality=72, method=1)
    return buffer.getvalue()
