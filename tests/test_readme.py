"""Every command that the README shows is run, or, where it takes long, is shown to be there."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from xreasoner import cli
from xreasoner.models.loading import find
from xreasoner.reasoner import Reasoner
from xreasoner.recipe import load_recipe
from xreasoner.registry import MODELS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    """The commands of the console and bash blocks, without their prompts."""
    found = []
    for kind, block in re.findall(r"^```(console|bash)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL):
        lines = [line for line in block.splitlines() if line and not line.startswith("#")]
        found += [line.removeprefix("$ ") for line in lines if kind == "bash" or line.startswith("$ ")]
    return found


MAKE = [line for line in commands() if line.startswith("make ")]
OURS = [line for line in commands() if line.startswith("xreasoner ")]
SHOWN = "\n".join(f"{line}: {rest}" for line, rest in re.findall(r"^- `(xreasoner eval .*?)`: (.*)$", README, re.M))
"""What the README says that its evaluations give, a line each."""
USAGE = re.findall(r"^\| `(xreasoner .*?)` \|", README, flags=re.MULTILINE)


def test_every_command_is_checked_below() -> None:
    assert MAKE
    assert OURS
    assert set(commands()) == {*MAKE, *OURS}


@pytest.mark.parametrize("line", MAKE)
def test_make_knows_the_target(line: str) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    result = subprocess.run([make, "-n", *shlex.split(line)[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert ".venv/bin/" in result.stdout


def _needs_missing_checkpoint(words: list[str]) -> str:
    """The reason to skip a command: a shipped model that this copy has not."""
    named = [load_recipe("demo").model if word == "demo" else word for word in words]
    for name in named:
        if name in MODELS:
            module, function = MODELS[name].split(":")
            folder = getattr(__import__(module, fromlist=[function]), function)()
            if not folder.is_dir():
                return f"the checkpoint {name!r} is not in this copy; `make base` and `make demo` make it"
            find(name)
    return ""


@pytest.mark.parametrize("line", OURS)
def test_the_command_runs(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(line)[1:]
    reason = _needs_missing_checkpoint(words)
    if reason:
        pytest.skip(reason)
    monkeypatch.chdir(tmp_path)
    code = cli.run(words)
    output = capfd.readouterr()
    assert code == 0, output.err
    assert output.out.strip()
    for name, percent in re.findall(
        r"`([\w-]+)` (\d+\.\d) %", "".join(re.findall(rf"^{re.escape(line)}: (.*)$", SHOWN, re.M))
    ):
        assert re.search(rf"^{name} +8 +{re.escape(percent)} ", output.out, re.MULTILINE), output.out


@pytest.mark.parametrize("usage", USAGE)
def test_usage_names_real_options(usage: str) -> None:
    _, name, *rest = usage.split()
    group: Any = typer.main.get_command(cli.app)
    parameters = group.commands[name].params
    options = {option for parameter in parameters for option in parameter.opts}
    assert set(re.findall(r"--[\w-]+", usage)) <= options
    positional = [parameter for parameter in parameters if parameter.param_type_name == "argument"]
    plain = re.sub(r"\[[^\]]*\]|-{1,2}[\w-]+ \S+", "", " ".join(rest))  # no options, nor their values
    assert sum(word.isupper() for word in plain.split()) == len(positional)


def test_usage_shows_every_command() -> None:
    group: Any = typer.main.get_command(cli.app)
    assert [usage.split()[1] for usage in USAGE] == list(group.commands)


@pytest.fixture(scope="module")
def reasoner() -> Reasoner:
    return Reasoner("tiny")


def test_the_answer_that_is_shown_is_the_real_one(reasoner: Reasoner) -> None:
    ask, shown = re.findall(r"^```console\n\$ (xreasoner ask [^\n]*)\n```\n\n```text\n(.*?)^```", README, re.M | re.S)[
        0
    ]
    answer = reasoner.ask(shlex.split(ask)[3])
    assert shown.splitlines() == [*answer.thought.splitlines(), answer.answer]


def test_the_mistake_that_is_told_is_made(reasoner: Reasoner) -> None:
    assert "the total of Ana and Cara, it adds them, goes one step too far and says 54" in README.replace("\n", " ")
    answer = reasoner.ask("Ana has 14, Ben has 9, Cara has 20. What is the total of Ana and Cara?")
    assert answer.answer == "54"
    assert "34 + Cara 20 = 54" in answer.thought


def test_the_python_example_runs() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    *lines, last = block.strip().splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    answer, thought, exit_, probabilities, usage = eval(last, names)
    assert answer in ("Ana", "Ben", "Cara")
    assert thought
    assert exit_ in ("natural", "forced")
    assert list(probabilities) == ["Ana", "Ben", "Cara"]
    assert sum(probabilities.values()) == pytest.approx(1)
    assert usage.prompt_tokens > 0
