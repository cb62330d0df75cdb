"""How a number was measured, and whether two numbers were measured alike.

Every stored row carries its protocol. Two stages are compared only where the protocols of their rows are equal; where
they are not, the report says in which fields they differ. The one exception is a declared control: a model that is
asked with a prompt of its own by design (a base that cannot think, a stage trained on bare answers).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

from xreasoner.benchmarks.store import Row
from xreasoner.engines.base import Preprocessing, Sampling
from xreasoner.grading.version import grader_version

PARSER = "xreasoner"
"""Whose rules read the answer out of a reply: the grader's own, in training and evaluation alike."""
NOT_RECORDED = "not recorded"
SAMPLING = ("thinking_budget", "answer_budget", "temperature", "top_p", "top_k", "exit_text", "exit_on_repeats", "stop")
"""The fields of `Sampling` that a row stores; seeds draw the items and the noise and are no part of a protocol."""
BY_DESIGN = "prompts differ by design"


class ImageSettings(NamedTuple):
    """How images are resized before a model sees them.

    Attributes:
        min_pixels: Least area in pixels; None: the image processor's own.
        max_pixels: Largest area in pixels; None: the image processor's own.
        preprocessing: Which of the model card's two ways; see `engines.base.Request`.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    preprocessing: Preprocessing = "processor"


class Difference(NamedTuple):
    """One field in which two protocols differ, with both values as text."""

    field: str
    after: str
    before: str

    def __str__(self) -> str:
        return f"{self.field} {self.after} against {self.before}"


def template_hash(template: str) -> str:
    """A hash of a prompt's template, in its form with or without options; the item is no part of it."""
    return hashlib.sha256(template.encode()).hexdigest()[:12]


def protocol_fields(sampling: Sampling, samples: int, control: bool) -> Row:
    """The fields of a row that are the same for all items of a measurement."""
    fields: Row = {name: getattr(sampling, name) for name in SAMPLING}
    fields["stop"] = list(sampling.stop)
    return {**fields, "samples": samples, "control": control, "grader": grader_version(), "parser": PARSER}


def image_fields(images: ImageSettings, has_images: bool) -> Row:
    """The fields of a row that say how its images were resized; None for an item that is asked without images."""
    return {name: value if has_images else None for name, value in images._asdict().items()}


def differences(after: Sequence[Row], before: Sequence[Row]) -> list[Difference]:
    """The fields in which the protocols of two sets of rows differ, for the same items.

    A field that neither has (rows of earlier versions) counts as equal; one that only one of them has does not.
    """
    found = []
    for name, read in _READERS.items():
        values = [_distinct(rows, read) for rows in (after, before)]
        if values[0].keys() != values[1].keys():
            found.append(Difference(name, *(_shown(each) for each in values)))
    return found


def is_control(rows: Sequence[Row]) -> bool:
    """Whether rows are those of a declared control. Earlier versions declared none: there it is a direct prompt."""
    return bool(rows) and all(row.get("control", str(row["prompt"]).endswith("-direct")) for row in rows)


def by_design(found: Sequence[Difference], after: Sequence[Row], before: Sequence[Row]) -> bool:
    """Whether the protocols differ in nothing but the prompt of a declared control."""
    return {each.field for each in found} == {"prompt"} and (is_control(after) or is_control(before))


def _distinct(rows: Sequence[Row], read: Callable[[Row], Sequence[tuple[Hashable, str]]]) -> dict[Hashable, str]:
    """The values that rows have in a field, with how each is shown."""
    return dict(pair for row in rows for pair in read(row))


def _shown(values: Mapping[Hashable, str]) -> str:
    return ", ".join(sorted(dict.fromkeys(values.values()))) or "none"


def _field(name: str) -> Callable[[Row], Sequence[tuple[Hashable, str]]]:
    def read(row: Row) -> Sequence[tuple[Hashable, str]]:
        if name not in row:
            return [(NOT_RECORDED, NOT_RECORDED)]
        value = row[name]
        shown = repr(value) if isinstance(value, str | list) else "the processor's own" if value is None else str(value)
        return [(tuple(value) if isinstance(value, list) else value, shown)]

    return read


def _prompt(row: Row) -> Sequence[tuple[Hashable, str]]:
    """The template's hash; of rows of earlier versions, which have none, the prompt's name."""
    name = str(row["prompt"])
    hashed = row.get("template_hash")
    return [(name, name) if hashed is None else (hashed, f"{name} ({hashed[:6]})")]


def _of_images(name: str) -> Callable[[Row], Sequence[tuple[Hashable, str]]]:
    """A field of rows with images; others do not have it."""
    read = _field(name)
    return lambda row: read(row) if has_images(row) else []


def has_images(row: Row) -> bool:
    """Whether the model was shown an image."""
    return bool(row.get("picture_hashes") or row.get("images") or row.get("image"))


def samples_per_item(rows: Sequence[Row]) -> int:
    """The most samples of any item."""
    return max(Counter((row["bench"], row["id"]) for row in rows).values(), default=0)


_READERS: dict[str, Callable[[Row], Sequence[tuple[Hashable, str]]]] = {
    "prompt": _prompt,
    **{name: _of_images(name) for name in ImageSettings._fields},
    **{name: _field(name) for name in (*SAMPLING, "grader", "parser")},
}


def compare(after: Sequence[Row], before: Sequence[Row]) -> list[Difference]:
    """`differences`, and in how many samples an item has."""
    found = differences(after, before)
    counts = [samples_per_item(rows) for rows in (after, before)]
    return found if counts[0] == counts[1] else [*found, Difference("samples", *map(str, counts))]
