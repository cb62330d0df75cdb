"""`xreasoner chat`: a conversation on the terminal. Commands begin with a slash; Ctrl-C stops an answer."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import typer
from PIL.Image import Image

from xreasoner.engines.base import Message
from xreasoner.errors import UserError, XReasonerError
from xreasoner.media import pictures
from xreasoner.reasoner import Answer, Reasoner, Stream, located
from xreasoner.talking import Paper, epilogue, show

HELP = """\
/image PATH           show a picture with the next message; or write its path in the message
/budget [TOKENS]      how long it may think
/show-thoughts [on|off]
/new                  forget the conversation
/quit                 leave (or Ctrl-D); Ctrl-C stops an answer"""

_PATH = re.compile(r"""'([^']+)'|"([^"]+)"|((?:\\ |\S)+)""")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")


@dataclass
class Chat:
    """A conversation: what was said, with its pictures, and how the next answer is to be."""

    reasoner: Reasoner
    thoughts: bool = True
    budget: int | None = None
    history: list[Message] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)

    def line(self, text: str) -> bool:
        """One line of the user's; False to leave. Mistakes are said, and the conversation goes on."""
        try:
            if text.startswith("/") and not os.path.isfile(_first(text)):  # Path raises for what is too long
                return self._command(*text[1:].partition(" ")[::2])
            if text.strip():
                self._say(text)
        except XReasonerError as error:
            typer.secho(f"error: {error}", err=True)
        return True

    def _command(self, name: str, value: str) -> bool:
        commands: dict[str, Callable[[str], None]] = {
            "image": self._image,
            "budget": self._budget,
            "show-thoughts": self._thoughts,
            "new": self._new,
            "help": lambda _: typer.echo(HELP),
        }
        if name in ("quit", "exit"):
            return False
        if name not in commands:
            raise UserError(f"unknown command /{name}; expected one of /{', /'.join(commands)}, /quit")
        commands[name](value.strip())
        return True

    def _image(self, path: str) -> None:
        if not path:
            raise UserError("/image: expected a picture's path, as in: /image photo.png")
        path = _first(path) if _PATH.fullmatch(path) else path
        pictures([located(path)], self.reasoner.guard)  # is it one?
        self.waiting.append(path)
        typer.secho(f"(picture {len(self.waiting)} of the next message)", dim=True)

    def _budget(self, text: str) -> None:
        if text:
            if not text.isdigit():
                raise UserError(f"/budget {text}: expected a whole number of tokens")
            self.budget = int(text)
        tokens = self.reasoner.sampling.thinking_budget if self.budget is None else self.budget
        typer.secho(f"(it may think for {tokens} tokens)", dim=True)

    def _thoughts(self, text: str) -> None:
        if text not in ("", "on", "off"):
            raise UserError(f"/show-thoughts {text}: expected on or off")
        self.thoughts = not self.thoughts if not text else text == "on"
        typer.secho(f"(thoughts are {'shown' if self.thoughts else 'hidden'})", dim=True)

    def _new(self, _: str) -> None:
        self.history, self.images, self.waiting = [], [], []
        typer.secho("(a new conversation)", dim=True)

    def _say(self, text: str) -> None:
        question, named = marked(text)
        question = "<image>" * len(self.waiting) * bool(named) + question
        more: dict[str, Any] = {} if self.budget is None else {"thinking_budget": self.budget}
        stream = self.reasoner.stream(
            question, [*self.waiting, *named], history=self.history, history_images=self.images, **more
        )
        with _stopping(stream):
            show(stream, Paper(self.thoughts))
        answer = stream.answer
        note = "stopped" if answer.exit == "aborted" else epilogue(answer).strip("()")
        if note:
            typer.secho(f"({note})", dim=True)
        self._remember(stream, question, answer)

    def _remember(self, stream: Stream, question: str, answer: Answer) -> None:
        """Earlier turns are sent as they were written, without prompt and thought, as the service does."""
        self.history.append(_as_written(question, len(stream.request.images) - len(self.images)))
        self.history.append({"role": "assistant", "content": answer.answer or "(no answer)"})
        self.images = list(stream.request.images)
        self.waiting = []


def _as_written(question: str, count: int) -> Message:
    """The user's message without the prompt; its `count` images stand at their marks, or else first."""
    texts = question.split("<image>")
    if len(texts) != count + 1:
        texts = [*[""] * count, question]
    parts: list[dict[str, Any]] = [{"type": "text", "text": texts[0]}]
    for text in texts[1:]:
        parts += [{"type": "image"}, {"type": "text", "text": text}]
    return {"role": "user", "content": [part for part in parts if part.get("text") != ""]}


def _first(text: str) -> str:
    """The path that a text begins with: quoted, or its spaces escaped, as terminals write what is dropped there."""
    found = _PATH.match(text)
    return next(group for group in found.groups() if group).replace("\\ ", " ") if found else ""


def marked(text: str) -> tuple[str, list[str]]:
    """A message with `<image>` in the places of the picture files that it names, and their paths."""
    found: list[str] = []

    def mark(match: re.Match[str]) -> str:
        path = _first(match[0])
        with suppress(OSError, ValueError):
            if path.lower().endswith(_SUFFIXES) and Path(path).is_file():
                found.append(path)
                return "<image>"
        return match[0]

    return _PATH.sub(mark, text), found


@contextmanager
def _stopping(stream: Stream) -> Iterator[None]:
    """The first Ctrl-C ends the answer; a second one, the program."""

    def stop(number: int, frame: FrameType | None) -> None:
        stream.cancel()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def converse(chat: Chat) -> None:
    """Read lines until the user leaves."""
    with suppress(ImportError):
        import readline  # noqa: F401  # arrow keys and earlier lines
    interactive = sys.stdin.isatty()
    if interactive:
        typer.secho(f"{chat.reasoner.model}: /help for commands, Ctrl-D to leave", dim=True)
    while True:
        try:
            text = input("> " if interactive else "")
        except EOFError:
            break
        except KeyboardInterrupt:
            typer.echo("\n(Ctrl-D leaves)")
            continue
        if not chat.line(text):
            break
