"""The cluster's scripts parse, and every command of docs/scale.md that is ours takes what it is given."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import time
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


FAKES = {
    "scontrol": 'if [ "$1" = show ]; then echo n1; echo n2; else echo "$*" >> "$LOG"; fi',
    "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
    "vllm": 'trap "echo server stopped >> $LOG" TERM; sleep 4',
    "curl": "exit 0",
    "torchrun": 'trap "sleep 1; echo saved >> $LOG; exit 1" TERM; echo "$*" >> "$LOG"; sleep 30 & wait',
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_at_its_time_limit_a_slurm_job_saves_and_is_queued_again(tmp_path: Path) -> None:
    """Slurm, vLLM and torchrun are stood in for; the signal reaches the batch shell alone, as `B:` asks for."""
    script, log = ROOT / "recipes" / "cluster" / "slurm.sh", tmp_path / "log"
    assert "#SBATCH --signal=B:TERM@600" in script.read_text()
    for name, body in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    settings = {"LOG": str(log), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "TRAINERS": "1", "GPUS": "1"}
    path = f"{tmp_path}:{os.environ['PATH']}"
    job = subprocess.Popen(["bash", str(script)], env={**os.environ, **settings, "PATH": path}, cwd=tmp_path)
    deadline = time.monotonic() + 30
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)  # from the start of the training to the shell's trap
    job.terminate()
    assert job.wait(timeout=30) != 0
    begun, *then = log.read_text().splitlines()
    assert "--shutdown-timeout=540" in begun
    assert "stages.sft+rl.rollouts={urls: [http://n2:8000/v1]}" in begun
    assert then == ["saved", "requeue 7"]


def test_the_cluster_scripts_parse() -> None:
    folder = ROOT / "recipes" / "cluster"
    bash = shutil.which("bash")
    assert bash is None or subprocess.run([bash, "-n", folder / "slurm.sh"], check=False).returncode == 0
    ast.parse((folder / "ray_job.py").read_text())
