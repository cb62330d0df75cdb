"""`chat` as a person meets it: through a terminal, with Ctrl-C and Ctrl-D."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from engines.served import Served
from PIL import Image

from xreasoner.chatting import Chat, marked
from xreasoner.models.loading import load
from xreasoner.reasoner import Answer, Piece, Reasoner
from xreasoner.talking import Paper, epilogue

QUESTION = "Ana has 14, Ben has 9, Cara has 20. By how much does the highest score exceed the lowest?"


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *arguments: str, cwd: Path | None = None) -> None:
        self.main, inner = pty.openpty()
        command = [sys.executable, "-m", "xreasoner.cli", *arguments]
        env = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
        self.process = subprocess.Popen(
            command, stdin=inner, stdout=inner, stderr=inner, cwd=cwd, env=env, start_new_session=True, close_fds=True
        )
        os.close(inner)
        self.text = ""

    def until(self, words: str, seconds: float = 90) -> str:
        """What came up to these words, and they; colours and moves of the cursor left out."""
        deadline = time.monotonic() + seconds
        while words not in self.text:
            left = deadline - time.monotonic()
            assert left > 0, f"{words!r} did not come: {self.text!r}"
            if select.select([self.main], [], [], left)[0]:
                try:
                    data = os.read(self.main, 65536)
                except OSError:
                    data = b""
                assert data, f"it ended before {words!r}: {self.text!r}"
                self.text += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", data.decode(errors="replace"))
        at = self.text.index(words) + len(words)
        found, self.text = self.text[:at], self.text[at:]
        return found

    def say(self, line: str) -> None:
        os.write(self.main, line.encode() + b"\n")

    def interrupt(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def interrupt_prompt(self, words: str) -> None:
        """readline misses a signal that comes just before it waits for a key, which no person would send."""
        for _ in range(20):
            self.interrupt()
            ready = select.select([self.main], [], [], 1.0)[0]
            if ready:
                break
        self.until(words)

    def end(self) -> int:
        code = self.process.wait(30)
        os.close(self.main)
        return code


@pytest.fixture(scope="module")
def tiny() -> Reasoner:
    return Reasoner("tiny")


@pytest.fixture
def served(tiny: Reasoner) -> Iterator[Served]:
    with Served(load("tiny"), pause=0.02) as server:
        yield server


def test_a_conversation_on_a_terminal(served: Served, tiny: Reasoner, tmp_path: Path) -> None:
    Image.new("RGB", (56, 56), "red").save(tmp_path / "red table.png")
    chat = Terminal("chat", served.url, cwd=tmp_path)
    expected = tiny.ask(QUESTION)
    chat.until("> ")
    chat.say(QUESTION)
    shown = chat.until("\n> ")
    assert expected.thought in shown
    assert f"\n{expected.answer}\n" in shown

    chat.say(QUESTION)
    chat.until("Ana 14")
    begun = time.monotonic()
    chat.interrupt()  # stops the answer …
    chat.until("(stopped)")
    assert time.monotonic() - begun < 5
    chat.until("> ")
    chat.interrupt_prompt("(Ctrl-D leaves)")  # … and at the prompt says how to leave
    chat.until("> ")

    chat.say("/budget 8")
    chat.until("(Thinking budget: 8 tokens)")
    chat.say(QUESTION)
    chat.until("(thinking was ended early: at its budget, or where the model stopped inside it)")
    chat.say("/show-thoughts off")
    chat.until("(thoughts are hidden)")
    chat.say(QUESTION)
    shown = chat.until("(thinking was ended early: at its budget, or where the model stopped inside it)")
    assert "Ana 14" not in shown.partition("lowest?")[2]

    chat.say("what is in 'red table.png' ?")
    chat.until("(thinking was ended early")
    content = served.bodies[-1]["messages"][-2]["content"]
    assert [part["type"] for part in content] == ["text", "image_url", "text"]
    assert [message["role"] for message in served.bodies[-1]["messages"]][:4] == ["user", "assistant"] * 2
    chat.say("/image nowhere.png")
    chat.until("No such file")
    chat.say("/magic")
    chat.until("unknown command /magic; expected one of /image")
    chat.until("> ")
    os.write(chat.main, b"\x04")
    assert chat.end() == 0


def test_an_answer_that_does_not_come_can_be_stopped(tiny: Reasoner) -> None:
    with Served(load("tiny"), "hang") as served:
        chat = Terminal("chat", served.url)
        chat.until("> ")
        chat.say(QUESTION)
        while not served.bodies:
            time.sleep(0.02)
        chat.interrupt()
        chat.until("(stopped)")
        chat.until("> ")
        os.write(chat.main, b"\x04")
        assert chat.end() == 0


def test_what_was_said_is_sent_again_but_for_thoughts(tiny: Reasoner, capsys: pytest.CaptureFixture[str]) -> None:
    chat = Chat(tiny, budget=10)
    assert chat.line("Ana has 14 and Ben has 9. Who has more?")
    (user, assistant) = chat.history
    assert user["role"] == "user"
    assert "<think>" not in assistant["content"]
    assert chat.line("   ")
    assert len(chat.history) == 2
    assert chat.line("Sure?")
    assert len(chat.history) == 4
    assert chat.line("/new")
    assert chat.history == []
    assert chat.line("/budget many")
    assert "expected a whole number" in capsys.readouterr().err
    assert chat.line("/show-thoughts maybe")
    assert not chat.line("/quit")


def test_pictures_stay_with_the_conversation(tiny: Reasoner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one.png", "two.png"):
        Image.new("RGB", (56, 56), "red").save(name)
    chat = Chat(tiny, budget=6)
    chat.line("/image one.png")
    chat.line("Is this like two.png ?")
    (content,) = (message["content"] for message in chat.history if message["role"] == "user")
    assert [part["type"] for part in content] == ["image", "text", "image", "text"]
    assert len(chat.images) == 2
    assert chat.waiting == []
    chat.line("And now?")
    assert len(chat.images) == 2
    assert len(chat.history) == 4


def test_paths_in_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "a b.JPG"):
        (tmp_path / name).touch()
    (tmp_path / "notes.txt").touch()
    assert marked("what is a.png ?") == ("what is <image> ?", ["a.png"])
    assert marked("'a b.JPG' or \"a.png\"") == ("<image> or <image>", ["a b.JPG", "a.png"])
    assert marked(r"a\ b.JPG here") == ("<image> here", ["a b.JPG"])
    assert marked("it's in notes.txt, or (a.png)?") == ("it's in notes.txt, or (<image>)?", ["a.png"])
    assert marked("is it in a.png?") == ("is it in <image>?", ["a.png"])
    assert marked("see https://example.org/b.png, or .png") == ("see https://example.org/b.png, or .png", [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("aa.png what is this", "aa.png: no such file (did you mean 'a.png'?)"),
        ("it's b.JPEG, is it?", "b.JPEG: no such file"),
        ("'my photo.webp' what is this", "my photo.webp: no such file"),
        ("/no/folder/x.gif", "/no/folder/x.gif: no such file"),
        ("x" * 5000 + ".png", "x…"),
    ],
)
def test_what_looks_like_an_image_and_is_not_there_is_an_error(
    tiny: Reasoner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").touch()
    chat = Chat(tiny)
    assert chat.line(text)
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert said in err
    assert len(err) < 400
    assert not chat.history


def test_a_dropped_path_is_no_command(
    tiny: Reasoner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Terminals write a file that is dropped on them with its spaces escaped."""
    Image.new("RGB", (40, 40)).save(tmp_path / "a b.png")
    dropped, asked = f"{tmp_path}/a\\ b.png", list[object]()
    chat = Chat(tiny)
    monkeypatch.setattr(chat, "_say", asked.append)
    assert chat.line(f"{dropped} What is it?")
    assert chat.line(f"/image {dropped}")
    assert (asked, chat.waiting) == ([f"{dropped} What is it?"], [f"{tmp_path}/a b.png"])
    for wrong, said in (("/image", "expected an image's path"), ("/" + "x" * 5000, "unknown command /xxx")):
        assert chat.line(wrong)
        assert said in capsys.readouterr().err


def test_a_reply_does_not_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    paper = Paper()
    paper.write(Piece("answer", "a\x1b]0;title\x07b\x9b2J\r\n\tc"))
    paper.end()
    assert capsys.readouterr().out == "a]0;titleb2J\n\tc\n"


def test_space_around_thought_and_answer_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    paper = Paper()
    for label, text in (
        ("thought", "  a"),
        ("thought", " \n"),
        ("thought", "b \n"),
        ("answer", "\n"),
        ("answer", " 7 "),
    ):
        paper.write(Piece(label, text))  # type: ignore[arg-type]
    paper.end()
    assert capsys.readouterr().out == "a \nb\n7\n"


def test_the_line_below_an_answer(tiny: Reasoner) -> None:
    answer = tiny.ask(QUESTION, thinking_budget=5)
    assert epilogue(answer) == "(thinking was ended early: at its budget, or where the model stopped inside it)"
    assert epilogue(tiny.ask(QUESTION)) == ""
    sure = Answer("", answer.completion, {"yes": 0.9, "no": 0.1}, 0.5)
    assert "yes 90 %, no 10 % (options hold 50 % of the probability)" in epilogue(sure)
