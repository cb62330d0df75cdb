"""The cluster's scripts parse, and every command of docs/scale.md that is ours takes what it is given."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from xreasoner import cli
from xreasoner.recipe import load_recipe, shipped

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "scale.md").read_text()


def commands() -> list[list[str]]:
    """Our commands of the page's console blocks, and those that torchrun starts, as words behind `xreasoner`."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "))
            if words[0] == "xreasoner":
                found.append(words[1:])
            elif "xreasoner.cli" in words:
                found.append(words[words.index("xreasoner.cli") + 1 :])
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_our_commands_take_what_they_are_given(words: list[str]) -> None:
    command: Any = typer.main.get_command(cli.app)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    context = command.make_context(command.name, list(words))
    if "recipe" in context.params:
        load_recipe(context.params["recipe"], context.params.get("set_") or [])


def test_every_recipe_is_on_the_page() -> None:
    assert set(re.findall(r"^\| `([\w-]+)` \|", PAGE, flags=re.MULTILINE)) == set(shipped())


def test_the_cluster_scripts_parse() -> None:
    folder = ROOT / "recipes" / "cluster"
    bash = shutil.which("bash")
    assert bash is None or subprocess.run([bash, "-n", folder / "slurm.sh"], check=False).returncode == 0
    ast.parse((folder / "ray_job.py").read_text())
