"""Everyday jobs as a new user does them, mistakes included."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from xreasoner import cli
from xreasoner.checks import check_all, check_device, check_hub, check_model, check_output
from xreasoner.errors import UserError
from xreasoner.registry import BENCHMARKS, nearest
from xreasoner.reporting.reading import read_runs

QUESTION = "Ana has 14, Ben has 9, Cara has 20. By how much does the highest score exceed the lowest?"
Output = tuple[int, str, str]


def command(*arguments: str, stdin: str | None = None, cwd: Path | None = None) -> Output:
    """A command in a process of its own, without a hub."""
    env = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": "/nonexistent"}
    given = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
    call = [sys.executable, "-m", "xreasoner.cli", *arguments]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120, cwd=cwd, env=env, check=False, **given)  # type: ignore[call-overload]
    return done.returncode, done.stdout, done.stderr


def test_ask_separates_answer_and_thought_and_reads_standard_input() -> None:
    code, out, err = command("ask", "tiny", "-", stdin=QUESTION)
    assert (code, out) == (0, "11\n")
    assert "20 - 9 = 11" in err
    code, out, err = command("ask", "tiny", "By how much does the highest score exceed the lowest?", "--thought",
                             stdin="Ana has 14, Ben has 9, Cara has 20.")  # fmt: skip
    assert code == 0
    assert out.splitlines()[-1].isdigit()
    assert len(out.splitlines()) == 2
    assert "highest" not in err


def test_json_is_compact_and_has_usage(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["ask", "tiny", QUESTION, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert list(found) == ["answer", "thought", "exit", "usage"]
    assert set(found["usage"]) >= {"prompt_tokens", "thought_tokens", "answer_tokens"}
    assert cli.run(["ask", "tiny", QUESTION, "--json", "--full", "--no-thought"]) == 0
    assert {"text", "token_ids", "logprobs"} <= set(json.loads(capfd.readouterr().out))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ask", "tinny", QUESTION], "did you mean 'tiny'"),
        (["ask", "nobody/nothing", QUESTION], "127.0.0.1 cannot be reached: run `hf download nobody/nothing`"),
        (["ask", "http://", QUESTION], "not an address"),
        (["eval", "tiny", "--bench", "easy-vqa,esy-vqa,easy-vq"], "2 problems"),
        (["eval", "tiny", "--bench", "easy-vqa", "--data", "."], "comes with the package and reads no data"),
        (["eval", "tiny", "--bench", "easy-vqa", "--out", "/proc/x"], "cannot write /proc/x"),
        (["eval", "tiny", "--bench", "easy-vqa", "--name", "a/b"], "--name 'a/b'"),
        (["eval", "tiny", "--bench", "easy-vqa", "--dtype", "bf16"], "dtype 'bf16'"),
        (["eval", "tiny", "--bench", "easy-vqa", "--engine", "tgi"], "engine 'tgi'"),
        (["chat", "tiny", "--prompt", "breif"], "did you mean 'brief'"),
        (["train", "demo", "--set", "model=no/where/at/all"], "no such folder"),
        (["demo", "--out", "/proc/x"], "cannot write /proc/x"),
    ],
)
def test_a_mistake_is_reported_before_anything_is_loaded(arguments: list[str], said: str, tmp_path: Path) -> None:
    program = (
        "import sys; from xreasoner import cli; code = cli.run(sys.argv[1:]); "
        "print('loaded', [m for m in ('torch', 'transformers') if m in sys.modules]); sys.exit(code)"
    )
    env = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(tmp_path)}
    begun = time.monotonic()
    call = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(call, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=env, check=False)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "loaded []" in done.stdout
    assert time.monotonic() - begun < 10  # a second on a machine that does nothing else
    assert not list(tmp_path.iterdir())


def test_several_mistakes_are_reported_together(capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["ask", "tinny", QUESTION, "--image", "no.png", "--prompt", "breif", "--device", "gpu", "--option", "a"]
    assert cli.run(arguments) == 2
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "error: 5 problems"
    for said in ("tinny", "no.png", "breif", "'gpu'", "two or more"):
        assert sum(said in line for line in lines[1:]) == 1, lines


def test_the_hub_is_asked_once_and_briefly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        check_hub("a/b")
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").touch()
    check_model("a/b")


def test_outputs_name_their_real_cause(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, said in (
        (tmp_path / "file" / "x", "is a file"),
        (tmp_path, "is a folder"),
        (Path("/proc/x.html"), "/proc"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            check_output(path)
        assert "make room" not in str(caught.value)
    check_output(tmp_path / "new" / "deep" / "report.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_names_are_suggested_by_threes() -> None:
    many = [*BENCHMARKS, "mmmu", "gsm8k"]
    hint = nearest("tiny-text", many, "`xreasoner benches` lists them")
    assert hint.count("'") <= 6
    assert hint.endswith("`xreasoner benches` lists them")
    assert nearest("zzz", many, "`xreasoner benches` lists them") == "`xreasoner benches` lists them"
    assert nearest("Brief", ["brief", "brief-direct"]).startswith("did you mean 'brief'")
    assert len(nearest("q", [f"name-{k}" for k in range(50)])) < 60


def test_checks_collect_and_devices_are_known() -> None:
    with pytest.raises(UserError, match="2 problems"):
        check_all([lambda: check_device("gpu"), lambda: check_model("tinny"), lambda: check_device("cpu")])


def evaluate(folder: Path, out: Path, *more: str) -> int:
    place = ["--bench", "tiny-text-general", "--limit", "8", "--budget", "8", "--out", str(out)]
    return cli.run(["eval", str(folder), *place, *more])


def test_stages_of_one_folder_are_compared_with_what_is_meant(
    random_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from xreasoner.models.loading import find

    out = tmp_path / "out"
    for name, model in (("z-before", find("tiny-base")), ("after", find("tiny"))):
        shutil.copytree(model, tmp_path / name)
        assert evaluate(tmp_path / name, out) == 0
    run = read_runs([out])
    assert (run.baseline, run.reason) == ("z-before", "by its name")
    assert {(gain["after"], gain["before"]) for gain in run.summary["gains"]} == {("after", "z-before")}
    assert read_runs([out], "after").summary["gains"][0]["after"] == "z-before"
    with pytest.raises(UserError, match=r"--baseline afer: .*did you mean 'after'"):
        read_runs([out], "afer")

    other = tmp_path / "b" / "after"
    shutil.copytree(random_folder, other)
    before = (out / "eval" / "after" / "results.jsonl").read_bytes()
    capfd.readouterr()
    assert evaluate(other, out) == 2
    assert "holds results of another model under the name 'after'" in capfd.readouterr().err
    assert (out / "eval" / "after" / "results.jsonl").read_bytes() == before
    report = ["report", str(out), "--baseline", "random", "--out", str(tmp_path / "r.html")]
    assert evaluate(other, out, "--name", "random") == 0  # without settings of its own: the model card's
    capfd.readouterr()
    assert cli.run(report) == 2
    assert "--baseline random: nothing is comparable with it" in capfd.readouterr().err
    shutil.copy(tmp_path / "after" / "xreasoner.json", other)
    assert evaluate(other, out, "--name", "random") == 0
    assert cli.run(report) == 0
    assert "Compared with random" in (tmp_path / "r.html").read_text()
    assert evaluate(tmp_path / "after", out) == 0  # the same model again is no other model


def test_a_large_budget_is_cut_with_a_word(
    random_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(random_folder, tmp_path, "--budget", "100000", "--limit", "1") == 0
    assert "warning: thinking budget 100,000 reduced to 1,024 tokens" in capfd.readouterr().err


def test_an_image_that_is_text_is_reported_with_other_mistakes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_text("no image")
    Image.new("RGB", (40, 40)).save(tmp_path / "b.png")
    arguments = ["--image", str(tmp_path / "b.png"), "--image", str(tmp_path / "a.png")]
    assert cli.run(["ask", "tiny", "What is it?", *arguments]) == 2
    assert "a.png" in capfd.readouterr().err
