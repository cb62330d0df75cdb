"""What `ask` and `chat` show: the thought dim, the answer bright, as they are written."""

from __future__ import annotations

import re
from collections.abc import Iterable

import typer

from xreasoner.reasoner import Answer, Piece

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What moves the cursor or commands the terminal; a reply is text, whatever the model or a server writes."""


class Paper:
    """Writes pieces; a change from thought to answer begins a line, and space at the ends of both is left out."""

    def __init__(self, thoughts: bool = True) -> None:
        self.thoughts = thoughts
        self.label = ""
        self._space = ""

    def write(self, piece: Piece) -> None:
        if piece.label == "thought" and not self.thoughts:
            return
        text = _CONTROL.sub("", piece.text)
        if piece.label != self.label:
            if not text.strip():
                return
            if self.label:
                typer.echo()
            self.label, self._space, text = piece.label, "", text.lstrip()
        shown = (self._space + text).rstrip()
        self._space = (self._space + text)[len(shown) :]
        if shown:
            typer.secho(shown, nl=False, dim=piece.label == "thought", bold=piece.label == "answer")

    def end(self) -> None:
        if self.label:
            typer.echo()


def show(pieces: Iterable[Piece], paper: Paper) -> None:
    """Write pieces as they come; what was written is ended with a line break whatever happens."""
    try:
        for piece in pieces:
            paper.write(piece)
    finally:
        paper.end()


def epilogue(answer: Answer) -> str:
    """A line below the answer: why there is none, or how sure the model is of each option. "" for nothing to say."""
    notes = []
    if not answer.answer:
        notes.append(f"no answer: {answer.exit}")
    elif answer.exit != "natural":
        early = "the thought was closed early: at its budget, or where it broke off"
        notes.append(early if answer.exit == "forced" else "the answer budget ended it")
    if answer.option_probabilities:
        shares = ", ".join(f"{option} {100 * share:.0f} %" for option, share in answer.option_probabilities.items())
        notes.append(f"{shares} (of {100 * (answer.mass or 0):.0f} %)")
    return f"({'; '.join(notes)})" if notes else ""
