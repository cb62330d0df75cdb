"""`xreasoner chat`: a conversation on the terminal. Commands begin with a slash; Ctrl-C stops an answer."""

from __future__ import annotations

import difflib
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
from xreasoner.errors import MediaError, UserError, reason
from xreasoner.media import name_of, pictures
from xreasoner.reasoner import Answer, Reasoner, Stream, located
from xreasoner.talking import Paper, epilogue, show

HELP = """\
/image PATH           show an image with the next message; or write its path in the message
/budget [TOKENS]      show or set the thinking budget
/show-thoughts [on|off]
/new                  start a new conversation
/quit                 leave (or Ctrl-D); Ctrl-C stops a reply"""

_PATH = re.compile(r"""'([^']+)'|"([^"]+)"|((?:\\ |\S)+)""")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")


@dataclass
class Chat:
    """A conversation: its messages and images, and the settings of the next reply."""

    reasoner: Reasoner
    thoughts: bool = True
    budget: int | None = None
    history: list[Message] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)

    def line(self, text: str) -> bool:
        """Handle one line; False to leave. Mistakes are reported, and the conversation continues."""
        try:
            if text.startswith("/") and not _is_file(_first(text)) and not _image_path(text.split()[0])[1]:
                return self._command(*text[1:].partition(" ")[::2])
            if text.strip():
                self._say(text)
        except Exception as error:  # also a defect: a conversation is not lost over one answer
            typer.secho(f"error: {reason(error)}", err=True)
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
            raise UserError("/image: expected an image's path, as in: /image photo.png")
        path = _first(path) if _PATH.fullmatch(path) else path
        pictures([located(path)], self.reasoner.guard)  # is it one?
        self.waiting.append(path)
        typer.secho(f"(image {len(self.waiting)} of the next message)", dim=True)

    def _budget(self, text: str) -> None:
        if text:
            if not text.isdigit():
                raise UserError(f"/budget {text}: expected a whole number of tokens")
            self.budget = int(text)
        tokens = self.reasoner.sampling.thinking_budget if self.budget is None else self.budget
        typer.secho(f"(Thinking budget: {tokens} tokens)", dim=True)

    def _thoughts(self, text: str) -> None:
        if text not in ("", "on", "off"):
            raise UserError(f"/show-thoughts {text}: expected on or off")
        self.thoughts = not self.thoughts if not text else text == "on"
        typer.secho(f"(thoughts are {'shown' if self.thoughts else 'hidden'})", dim=True)

    def _new(self, _: str) -> None:
        self.history, self.images, self.waiting = [], [], []
        typer.secho("(new conversation)", dim=True)

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
    """A message with `<image>` in the places of the image files that it names, and their paths.

    Raises:
        MediaError: for what looks like an image's path where there is no file. Addresses stay text.
    """
    found: list[str] = []

    def mark(match: re.Match[str]) -> str:
        before, path, after = _image_path(match[0])
        if not path:
            return match[0]
        if not _is_file(path):
            raise MediaError(
                f"{name_of(path)}: no such file{_near(path)}; check the path, or omit its ending to mean the word"
            )
        found.append(path)
        return f"{before}<image>{after}"

    return _PATH.sub(mark, text), found


def _image_path(word: str) -> tuple[str, str, str]:
    """(punctuation before, the image path that a word is, punctuation after); "" for another word, or an address."""
    path = _first(word)
    quoted = path != word
    bare = path if quoted or _is_file(path) else path.lstrip("([").rstrip("?!.,;:)]")
    if "://" in path or not bare.lower().endswith(_SUFFIXES) or bare.lower() in _SUFFIXES:
        return "", "", ""
    before, _, after = ("", "", "") if quoted else path.partition(bare)
    return before, bare, after


def _is_file(path: str) -> bool:
    with suppress(OSError, ValueError):
        return Path(path).is_file()
    return False


def _near(path: str) -> str:
    """The file beside it that was meant, perhaps."""
    with suppress(OSError, ValueError):
        names = [each.name for each in Path(path).absolute().parent.iterdir() if each.is_file()]
        close = difflib.get_close_matches(Path(path).name, names, n=1)
        return f" (did you mean {close[0]!r}?)" if close else ""
    return ""


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
