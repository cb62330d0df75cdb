"""The commands as a user meets them: mistakes give one clear line and the exit code of their kind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "xreasoner.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=240, check=False)


def complaint(result: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line on stderr; no traceback."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_help_is_there() -> None:
    result = run("--help")
    assert result.returncode == 0
    for command in ("demo", "train", "eval", "report", "ask"):
        assert command in result.stdout


def test_a_text_file_is_no_picture(random_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "note.png"
    text.write_text("this is no picture")
    line = complaint(run("ask", str(random_folder), "What is it?", "--image", str(text)), 2)
    assert "note.png" in line
    assert "PNG" in line


def test_an_empty_question(random_folder: Path) -> None:
    assert "empty" in complaint(run("ask", str(random_folder), "  "), 2)


def test_a_negative_learning_rate(tmp_path: Path) -> None:
    result = run("train", "demo", "--set", "stages.sft.optimiser.lr=-1", "--out", str(tmp_path / "run"))
    line = complaint(result, 2)
    assert "lr" in line
    assert "-1" in line
    assert not (tmp_path / "run").exists()


def test_an_unknown_benchmark_names_the_nearest(random_folder: Path, tmp_path: Path) -> None:
    line = complaint(run("eval", str(random_folder), "--bench", "easy-vq", "--out", str(tmp_path)), 2)
    assert "easy-vqa" in line


def test_a_checkpoint_cut_in_half(random_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    shutil.copytree(random_folder, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "half" in complaint(run("ask", str(folder), "What is 1 + 1?"), 1)


def test_a_report_of_nothing(tmp_path: Path) -> None:
    assert "summary.json" in complaint(run("report", str(tmp_path)), 2)


def test_ask_gives_json(random_folder: Path) -> None:
    result = run("ask", str(random_folder), "What is 1 + 1?", "--option", "1", "--option", "2", "--json", "--prompt", "brief")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["exit"] in ("natural", "forced", "truncated")
    assert found["prompt_tokens"] > 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_one_line(tmp_path: Path, random_folder: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "eval").mkdir()
    (out / "eval" / random_folder.name).mkdir()
    (out / "eval" / random_folder.name / "results.jsonl").symlink_to("/dev/full")
    result = run("eval", str(random_folder), "--bench", "gym-train", "--limit", "2", "--out", str(out), "--budget", "8")
    assert "space" in complaint(result, 1).lower()


def mini_demo(folder: Path, out: Path) -> list[str]:
    data = "[{source: tiny, n: 40}]"
    settings = [
        f"model={folder}",
        "evaluation.n=4",
        "evaluation.thinking_budget=16",
        "evaluation.answer_budget=8",
        f"stages.base-direct.data={data}",
        f"stages.sft.data={data}",
        f"stages.sft+rl.data={data}",
        "stages.base-direct.batch_examples=8",
        "stages.sft.batch_examples=8",
        "stages.sft+rl.steps=2",
        "stages.sft+rl.prompts_per_step=2",
        "stages.sft+rl.thinking_budget=16",
    ]
    return ["demo", "--out", str(out), *(part for setting in settings for part in ("--set", setting))]


def test_a_killed_demo_resumes_and_another_seed_is_refused(random_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    arguments = mini_demo(random_folder, out)
    for number, marker in ((signal.SIGINT, "base-direct"), (signal.SIGKILL, "sft")):
        process = subprocess.Popen([sys.executable, "-m", "xreasoner.cli", *arguments], env={**os.environ})
        deadline = time.monotonic() + 120
        while not (out / marker / "manifest.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(timeout=60) == (130 if number == signal.SIGINT else -signal.SIGKILL)
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    assert "report.html" in result.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["cells"]) == ["base", "base-direct", "sft", "sft+rl"]
    for stage in summary["cells"].values():
        assert set(stage) == {"text/general", "text/clinical", "image/general", "image/clinical"}
        assert all(cell["n"] == 4 for cell in stage.values())
    rows = [json.loads(line) for line in (out / "eval" / "base" / "results.jsonl").read_text().splitlines()]
    assert len({row["key"] for row in rows}) == len(rows)
    assert (out / "report.html").stat().st_size > 10_000
    assert (out / "sft+rl" / "export" / "model.safetensors").exists()
    assert "another" in complaint(run(*arguments, "--seed", "5"), 2)
