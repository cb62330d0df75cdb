"""Which traces the page shows, and how: chosen by rule, the same for the same results."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import escape
from PIL import Image, UnidentifiedImageError

from xreasoner.benchmarks.store import Row, condition_of
from xreasoner.benchmarks.summary import BASES, GROUPS, group_of
from xreasoner.reporting.reading import CELLS, Run

PER_CELL, PER_OTHER = 40, 12
PAGE_BYTES = 4_200_000
THOUGHT_CHARACTERS = 6000
_AS_IS_BYTES = 64_000

STORIES = {
    "fixed-by-sft": "fixed by SFT",
    "broken-by-sft": "broken by SFT",
    "fixed-by-rl": "fixed by RL",
    "broken-by-rl": "broken by RL",
}
"""What happened to an item from stage to stage: its name in the page's filters, and in words."""


@dataclass(frozen=True, slots=True)
class Item:
    """One problem and its trace at each stage (the first sample). place: ("cells" | "perception" | …, name)."""

    place: tuple[str, str]
    rows: Mapping[str, Row]
    stories: tuple[str, ...]

    @property
    def label(self) -> str:
        """What the cell filter calls its place."""
        return f"reading {self.place[1]}" if self.place[0] == "perception" else self.place[1]

    @property
    def first(self) -> Row:
        """A row with what all stages share: question, options, gold, picture."""
        return next(iter(self.rows.values()))


def stories(rows: Mapping[str, Row]) -> tuple[str, ...]:
    """Which stories hold for one item's rows by stage.

    SFT fixed what every base that answered had wrong, and broke what any of them had right; RL is held against SFT.
    """
    right = {stage: bool(row["correct"]) for stage, row in rows.items()}
    bases = [right[stage] for stage in BASES if stage in right]
    found = []
    if bases and "sft" in right:
        if right["sft"] and not any(bases):
            found.append("fixed-by-sft")
        if not right["sft"] and any(bases):
            found.append("broken-by-sft")
    if "sft" in right and "sft+rl" in right and right["sft"] != right["sft+rl"]:
        found.append("fixed-by-rl" if right["sft+rl"] else "broken-by-rl")
    return tuple(found)


def gather(run: Run) -> dict[tuple[str, str], list[Item]]:
    """All items of the run by place, in the order of the results; blind rows and further samples are left out."""
    found: dict[tuple[str, str], dict[str, dict[str, Row]]] = {}
    for stage in run.stages:
        for row in run.rows.get(stage, []):
            if condition_of(row) == "seen" and not row.get("sample", 0):
                found.setdefault(group_of(row["bench"]), {}).setdefault(row["id"], {})[stage] = row
    rank = {cell: index for index, cell in enumerate(CELLS)}
    places = sorted(found, key=lambda place: (GROUPS.index(place[0]), rank.get(place[1], len(CELLS)), place[1]))
    return {place: [Item(place, rows, stories(rows)) for rows in found[place].values()] for place in places}


def choose(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many, one in turn from each story, each stage's outcome and exit, and each family."""
    kinds: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        for kind in _kinds(item):
            kinds.setdefault(kind, []).append(index)
    queues = [iter(kinds[kind]) for kind in sorted(kinds)]
    chosen: dict[int, None] = {}
    while queues and len(chosen) < most:
        for queue in list(queues):
            fresh = next((index for index in queue if index not in chosen), None)
            if fresh is None:
                queues.remove(queue)
            elif len(chosen) < most:
                chosen[fresh] = None
    return [items[index] for index in chosen]


def _kinds(item: Item) -> Iterable[str]:
    yield from (f"0 {story}" for story in item.stories)
    for stage, row in item.rows.items():
        yield f"1 {stage} {row['outcome']}"
        yield f"1 {stage} exit {row['exit']}"
    yield f"2 {item.first['family']}"


def pick(run: Run, places: Mapping[tuple[str, str], Sequence[Item]]) -> list[tuple[Item, str | None]]:
    """The items to show, each with its picture as a data URI; fewer of each place where the page would grow too big."""
    queues = [choose(items, PER_CELL if place[0] == "cells" else PER_OTHER) for place, items in places.items()]
    shown: list[list[tuple[Item, str | None]]] = [[] for _ in queues]
    left = PAGE_BYTES
    for turn in range(max(map(len, queues), default=0)):
        for queue, kept in zip(queues, shown, strict=True):
            if turn < len(queue):
                uri = picture_uri(run.folder, queue[turn].first.get("image"))
                left -= _bytes(queue[turn]) + len(uri or "")
                if left < 0:
                    return [pair for kept in shown for pair in kept]
                kept.append((queue[turn], uri))
    return [pair for kept in shown for pair in kept]


def _bytes(item: Item) -> int:
    """About how much an item takes on the page, markup included, its picture left out."""
    fields = [str(item.first.get(name) or "") for name in ("question", "options", "gold", "facts")] * 2
    for row in item.rows.values():
        fields += [clip(row["thought"]), clip(row["answer"], 800), "markup" * 150]
    return sum(len(str(escape(text)).encode("utf-8", "replace")) for text in fields)


def clip(text: str, most: int = THOUGHT_CHARACTERS) -> str:
    """A long text without its middle, with a note of how much is left out."""
    if len(text) <= most:
        return text
    head, tail = most * 2 // 3, most // 3
    return f"{text[:head]}\n[… {len(text) - head - tail} characters left out; results.jsonl has them …]\n{text[-tail:]}"


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
            data, kind = _smaller(data), "jpeg"
        except (UnidentifiedImageError, OSError):
            return None
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _smaller(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as picture:
        small = picture.convert("RGB")
    small.thumbnail((448, 448))
    small.save(buffer, format="JPEG", quality=80)
    return buffer.getvalue()
