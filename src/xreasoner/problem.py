"""`Problem`: one thing to solve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL.Image import Image

AnswerType = Literal["choice", "yesno", "integer", "number", "quantity", "latex", "list", "text", "gym"]
Modality = Literal["text", "image"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with its gold answer.

    question: the text that the model sees; `prompts.chat_messages` says where the pictures, if any, stand.
    gold: the answer as text. For `choice` it is the label ("A", "B", …) of the right option, or its text.
    options: the option texts in the order of their labels A, B, C, …; empty when the answer is free. Where all of
        them carry labels of their own ("(i) one"), these are the labels.
    images: RGB pictures, in the order in which they are shown.
    domain: "general", "clinical", or whatever the source names.
    cluster: what it shares with other problems that are right or wrong together (the problem of which it is one
        version, the scene); "" where it shares nothing but, perhaps, its images.
    family: the kind of problem inside the source ("sum", "lookup", a reasoning-gym data set's name).
    meta: what the scorer needs beyond the gold ("precision": decimal places to which numbers are rounded, where the
        data set has one; for `gym`: {"name", "entry"}), and what a report may show
        ("facts": the transcription of the picture or text).
    """

    id: str
    question: str
    gold: str
    answer_type: AnswerType
    options: tuple[str, ...] = ()
    images: tuple[Image, ...] = ()
    domain: str = "general"
    modality: Modality = "text"
    source: str = ""
    family: str = ""
    cluster: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise ValueError(f"problem {self.id!r}: the question is empty; expected some text")

    def without_images(self) -> Problem:
        """The same problem with its pictures taken away: what a blind model sees (same id, modality, gold)."""
        from dataclasses import replace

        return replace(self, images=())


LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
