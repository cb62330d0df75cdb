"""What `ask` and `chat` read and show: the thought dim, the answer bright, as they are written."""

from __future__ import annotations

import os
import re
import select
import stat
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import typer

from xreasoner.errors import UserError
from xreasoner.reasoner import Answer, Piece

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What moves the cursor or commands the terminal; a reply is text, whatever the model or a server writes."""


WAIT_SECONDS = 2.0
"""After which a command that waits for standard input says so."""
MAX_INPUT = 2**20
"""Bytes of standard input: far beyond any model's context."""


def read_question(question: str | None) -> str:
    """The question: the argument, standard input (`-`, or no argument), or both where a file or pipe comes with it."""
    if question in (None, "-"):
        if sys.stdin.isatty() and question is None:
            raise UserError('no question; expected some text, as in: xreasoner ask tiny "What is 3 + 4?"')
        return _read_stdin()
    piped = _read_stdin() if _is_piped() else ""
    return "\n\n".join(part for part in (str(question), piped) if part.strip()) or str(question)


def _is_piped() -> bool:
    """Whether standard input is a pipe or a file; a terminal, /dev/null and a service's socket are not."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _read_stdin() -> str:
    """All of standard input as text. Raises `UserError` for what is not text."""
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        return sys.stdin.read().strip()
    if _is_piped() and not select.select([stream], [], [], WAIT_SECONDS)[0]:
        typer.secho("waiting for standard input; Ctrl-D ends it, < /dev/null skips it", err=True, dim=True)
    data = stream.read(MAX_INPUT + 1)
    if len(data) > MAX_INPUT:
        raise UserError(f"standard input has more than {MAX_INPUT:,} bytes; expected a question")
    try:
        return str(data.decode("utf-8-sig")).strip()
    except UnicodeDecodeError as error:
        raise UserError(
            f"standard input is not UTF-8 text (byte {error.start}); expected a question, and images by --image"
        ) from None


def as_mapping(answer: Answer, full: bool = False) -> dict[str, Any]:
    """An answer for JSON. full: also the whole text, token ids, log-probs and which tokens were forced."""
    usage = asdict(answer.usage)
    found: dict[str, Any] = {"answer": answer.answer, "thought": answer.thought, "exit": answer.exit, "usage": usage}
    if answer.option_probabilities is not None:
        found |= {"option_probabilities": answer.option_probabilities, "mass": answer.mass}
    return {**found, **{k: v for k, v in asdict(answer.completion).items() if k not in found}} if full else found


class Paper:
    """Writes pieces; a change from thought to answer begins a line, and space at the ends of both is omitted."""

    def __init__(self, thoughts: bool = True, thoughts_to_stderr: bool = False) -> None:
        self.thoughts, self.thoughts_to_stderr = thoughts, thoughts_to_stderr
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
                typer.echo(err=self._to_stderr)
            self.label, self._space, text = piece.label, "", text.lstrip()
        shown = (self._space + text).rstrip()
        self._space = (self._space + text)[len(shown) :]
        if shown:
            is_thought = piece.label == "thought"
            typer.secho(shown, nl=False, err=self._to_stderr, dim=is_thought, bold=not is_thought)

    @property
    def _to_stderr(self) -> bool:
        return self.thoughts_to_stderr and self.label == "thought"

    def end(self) -> None:
        if self.label:
            typer.echo(err=self._to_stderr)


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
        early = "thinking was ended early: at its budget, or where the model stopped inside it"
        notes.append(early if answer.exit == "forced" else "cut off at the answer budget")
    if answer.option_probabilities:
        shares = ", ".join(f"{option} {100 * share:.0f} %" for option, share in answer.option_probabilities.items())
        notes.append(f"{shares} (options hold {100 * (answer.mass or 0):.0f} % of the probability)")
    return f"({'; '.join(notes)})" if notes else ""
