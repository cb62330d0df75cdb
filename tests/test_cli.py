"""The commands as a user meets them: mistakes give one clear line and the exit code of their kind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from xreasoner import cli
from xreasoner.errors import CheckpointError, MediaError
from xreasoner.media import picture
from xreasoner.models.export import export
from xreasoner.models.loading import load
from xreasoner.prompts import default_prompt
from xreasoner.reasoner import own_guard
from xreasoner.recipe import load_recipe


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """A command in this process; every test of signals starts one of its own."""

    def put(*arguments: str) -> Result:
        capfd.readouterr()
        code = cli.run(list(arguments))
        return Result(code, *capfd.readouterr())

    return put


def complaint(result: Result, code: int) -> str:
    """The one line on stderr."""
    assert result.code == code, result.err
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("error: ")
    return lines[0]


def process(arguments: list[str], **more: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "xreasoner.cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)  # type: ignore[call-overload,no-any-return]


def wait_for(path: Path, running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.02)


def finish(running: subprocess.Popen[str]) -> Result:
    out, err = running.communicate(timeout=240)
    return Result(running.returncode, out, err)


def test_help_is_there_and_imports_no_torch() -> None:
    program = (
        "import sys; from xreasoner import cli; code = cli.run(['--help']); sys.exit(code or 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    for command in ("demo", "train", "eval", "report", "ask"):
        assert command in result.stdout


def test_no_command_shows_the_help(run: Run) -> None:
    result = run()
    assert result.code == 2
    assert "demo" in result.out + result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--seed", "many"], ["--seed", "integer"]),
        (["demo", "--seed", "-1"], ["--seed"]),
        (["demoo"], ["demoo"]),
        (["train", "demoo"], ["demoo", "did you mean 'demo'"]),
        (["train", "demo", "--set", "stages.sft.optimizer.lr=-1"], ["lr", "-1", "greater than 0"]),
        (["train", "demo", "--set", "stages.sft.epoch=2"], ["epoch", "did you mean 'epochs'"]),
        (["eval", "tiny", "--bench", "easy-vq"], ["easy-vq", "did you mean 'easy-vqa'"]),
        (["eval", "tiny", "--bench", ""], ["no benchmark", "xreasoner benches"]),
        (["eval", "tiny", "--bench", "easy-vqa", "--temperature", "-0.5"], ["--temperature"]),
        (["eval", "tiny", "--bench", "easy-vqa", "--prompt", "breif"], ["breif", "did you mean 'brief'"]),
        (["eval", "no/such/folder", "--bench", "easy-vqa"], ["no/such/folder", "no such folder"]),
        (["ask", "./nowhere", "What is 1 + 1?"], ["./nowhere", "no such folder"]),
        (["ask", "tiny", " "], ["question is empty"]),
        (["ask", "tiny", "What is 1 + 1?", "--prompt", "breif"], ["did you mean 'brief'"]),
        (["ask", "tiny", "What is it?", "--image", "nowhere.png"], ["nowhere.png", "No such file", "PNG"]),
        (["ask", "tiny", "What is it?", "--device", "blah"], ["device 'blah' is not available", "expected cpu"]),
        (["ask", "tiny", "What is it?", "--device", "cuda:99"], ["device 'cuda:99' is not available"]),
        (["ask", "tiny", "What is it?", "--attn-implementation", "mine"], ["attn_implementation 'mine'", "sdpa"]),
        (["serve", "tiny", "tiny-base"], ["tiny tiny-base: expected one model, or servers' addresses"]),
        (["serve", "tiny", "--media-root", "nowhere"], ["nowhere: no such folder"]),
        (["serve", "tiny", "--host", "0.0.0.0"], ["--key", "XREASONER_API_KEY"]),
        (["serve", "tiny", "http://127.0.0.1:9/v1"], ["some are addresses and some are not"]),
        (["batch", "tiny", "-i", "nowhere.jsonl", "-o", "out.jsonl"], ["nowhere.jsonl: no such file"]),
        (["ask", "tiny", "What is it?", "--exit-text", "Enough."], ["exit_text is 'Enough.'", "a text with </think>"]),
        (["eval", "tiny", "--bench", "easy-vqa", "--blind", "--swapped"], ["--blind withholds", "choose one"]),
        (["report", "."], ["holds no results", "xreasoner eval"]),
        (
            ["eval", "tiny", "--bench", "easy-vqa", "--preprocessing", "qwen"],
            ["'qwen'; expected processor or qwen-vl-utils"],
        ),
        (["eval", "tiny", "--bench", "easy-vqa", "--patch-size", "32"], ["--patch-size is for a server's URL"]),
        (["train", "demo", "--set", "evaluation.others=[easy-vq]"], ["easy-vq", "did you mean 'easy-vqa'"]),
        (["train", "demo", "--dry-run", "--set", "evaluation.others=[easy-vq]"], ["did you mean 'easy-vqa'"]),
        (
            ["train", "demo", "--set", "stages.sft+rl.data=[{source: rows, n: 1, options: {path: no.jsonl}}]"],
            ["stages.sft+rl.data.0", "no.jsonl: no such file"],
        ),
        (
            ["train", "demo", "--set", "stages.sft+rl.lower_layers_frozen=6"],
            ["stages.sft+rl.lower_layers_frozen: found 6, expected less than the model's 6 layers"],
        ),
        (
            ["train", "demo", "--dry-run", "--set", "stages.sft+rl.lora.targets=[q_prj]"],
            ["stages.sft+rl.lora.targets", "did you mean 'q_proj'"],
        ),
        (["plan", "demo", "--gpus", "8", "--memory", "lots"], ["--memory", "'lots'", "40GB"]),
        (["plan", "demoo", "--gpus", "8", "--memory", "40GB"], ["did you mean 'demo'"]),
        (["data", "show", "demo", "--set", "stages.sft.data.0.source=tini"], ["tini", "did you mean 'tiny'"]),
        (["data", "decontaminate", "no.jsonl", "--bench", "easy-vqa", "--out", "c"], ["no.jsonl", "no such file"]),
        (["data", "decontaminate", "no.jsonl", "--bench", "easy-vq", "--out", "c"], ["did you mean 'easy-vqa'"]),
        (["data", "distill", "demo", "--teacher", "tiny", "--out", "c", "--stage", "stf"], ["did you mean 'sft'"]),
        (["data", "distill", "demo", "--teacher", "./nowhere", "--out", "c"], ["./nowhere", "no such folder"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it(
    run: Run, arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = complaint(run(*arguments), 2)
    for word in words:
        assert word in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("data", "found"), [(b"this is no picture", "text"), (b"", "an empty file"), (bytes(range(256)), "another kind")]
)
def test_what_is_no_picture_is_named(run: Run, random_folder: Path, tmp_path: Path, data: bytes, found: str) -> None:
    path = tmp_path / "note.png"
    path.write_bytes(data)
    line = complaint(run("ask", str(random_folder), "What is it?", "--image", str(path)), 2)
    assert "note.png" in line
    assert found in line
    assert "expected one of PNG" in line


def test_a_picture_cut_in_half_is_named(tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(MediaError, match=r"half\.png: damaged"):
        picture(path, own_guard())


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_checkpoint_cut_in_half_is_named(run: Run, random_folder: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "half"
    shutil.copytree(random_folder, folder)
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "half" in complaint(run("ask", str(folder), "What is 1 + 1?"), 2)


def test_the_traceback_is_shown_when_asked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="demoo"):
        run("--debug", "train", "demoo")
    monkeypatch.setenv("XREASONER_DEBUG", "1")
    with pytest.raises(ValueError, match="demoo"):
        run("train", "demoo")
    monkeypatch.setenv("XREASONER_DEBUG", "0")
    assert "demoo" in complaint(run("train", "demoo"), 2)


def test_a_defect_of_ours_is_one_line_whose_traceback_can_be_had(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise IndexError("index out of range\nin self")

    monkeypatch.setattr("xreasoner.reasoner.Reasoner.stream", broken)
    monkeypatch.setattr("xreasoner.reasoner.Reasoner.ask", broken)
    line = complaint(run("ask", "tiny", "What is 1 + 1?"), 1)
    assert line.startswith("error: IndexError: index out of range in self (unexpected; ")
    assert "--debug" in line
    with pytest.raises(IndexError):
        run("--debug", "ask", "tiny", "What is 1 + 1?")


def test_a_warning_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def warning(*_: object, **__: object) -> None:
        warnings.warn_explicit("two\nlines", UserWarning, "rl.py", 1, module="xreasoner.training.rl")

    monkeypatch.setattr("xreasoner.checks.check_model", warning)
    assert run("ask", "tiny", "What is 1 + 1?", "--budget", "4").err.splitlines()[0] == "warning: two lines"


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of finite weights whose logits are not, as a float16 copy of a bfloat16 model may be."""
    folder = tmp_path_factory.mktemp("models") / "overflowing"
    loaded = load("tiny")
    with torch.no_grad():
        loaded.model.model.language_model.norm.weight.mul_(1e38)
    return export(loaded.model, loaded.tokenizer, loaded.image_processor, folder)


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", "MODEL", "What is 1 + 1?"],
        ["ask", "MODEL", "What is 1 + 1?", "--json"],
        ["ask", "MODEL", "Is 1 + 1 = 2?", "--option", "yes", "--option", "no"],
        ["eval", "MODEL", "--bench", "tiny-text-general", "--limit", "3", "--prompt", "brief", "--out", "OUT/eval"],
        ["batch", "MODEL", "-i", "OUT/in.jsonl", "-o", "OUT/out.jsonl"],
    ],
    ids=lambda arguments: " ".join(arguments[:4:2]) + " " + arguments[-2],
)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_numbers_that_are_not_finite_are_one_line_from_every_command(
    run: Run, overflowing: Path, tmp_path: Path, arguments: list[str]
) -> None:
    body = {"messages": [{"role": "user", "content": "What is 1 + 1?"}]}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (tmp_path / "in.jsonl").write_text(json.dumps(line) + "\n")
    filled = [each.replace("MODEL", str(overflowing)).replace("OUT", str(tmp_path)) for each in arguments]
    said = run(*filled, "--budget", "16")
    lines = [each for each in said.err.splitlines() if not each.startswith("warning: model ")]
    assert said.code == 1
    assert len(lines) == 1, said.err
    assert lines[0].startswith("error: ")
    assert "not finite" in lines[0]
    assert "dtype" in lines[0]
    if arguments[0] == "batch":
        (answered,) = (tmp_path / "out.jsonl").read_text().splitlines()
        assert json.loads(answered)["response"] is None


def test_numbers_that_are_not_finite_are_said_by_chat_and_service(overflowing: Path) -> None:
    chat = subprocess.Popen(
        [sys.executable, "-m", "xreasoner.cli", "chat", str(overflowing), "--budget", "16"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    serving = process(["serve", str(overflowing), "--port", "0", "--budget", "16"])
    try:
        _, err = chat.communicate("What is 1 + 1?\n/quit\n", timeout=120)
        assert sum("not finite" in line for line in err.splitlines()) == 1, err
        assert "Traceback" not in err
        assert serving.stdout is not None
        loading = next(line for line in serving.stdout if "http://" in line)
        url = "http://" + loading.partition("http://")[2].partition("/")[0]
        body = json.dumps({"messages": [{"role": "user", "content": "What is 1 + 1?"}]}).encode()
        asked = urllib.request.Request(url + "/v1/chat/completions", body, {"content-type": "application/json"})
        deadline = time.monotonic() + 60
        while True:
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(asked, timeout=60)
            with caught.value as refused:
                said = refused.read().decode()
            if caught.value.code != 503 or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        assert caught.value.code == 500
        assert "not finite" in said
        assert "dtype" in said
    finally:
        serving.terminate()
        _, err = serving.communicate(timeout=60)
    assert "Traceback" not in err


@pytest.mark.parametrize("command", [["train", "demo"], ["demo"]])
def test_a_folder_that_holds_no_run_is_refused(run: Run, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "note").touch()
    line = complaint(run(*command, "--out", str(tmp_path)), 2)
    assert f"{tmp_path} is not empty and holds no run to resume; choose another --out" in line


@pytest.mark.parametrize("command", [["train", "demo"], ["train", "demo", "--resume"], ["demo"]])
def test_the_folder_of_another_recipe_is_refused_at_once(run: Run, tmp_path: Path, command: list[str]) -> None:
    other = load_recipe("x-reasoner-3b").model_dump(mode="json", by_alias=True)
    stage = {"recipe": {name: value for name, value in other.items() if name != "evaluation"}, "done": True}
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "manifest.json").write_text(json.dumps(stage))
    before = sorted(tmp_path.rglob("*"))
    line = complaint(run(*command, "--out", str(tmp_path)), 2)
    assert "holds a run of another recipe (name: it was 'x-reasoner-3b', now 'demo')" in line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_where_a_folder_should_be(run: Run, random_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.touch()
    line = complaint(run("demo", "--set", f"model={random_folder}", "--out", str(path)), 2)
    assert "taken already exists and is a file; choose another --out" in line
    assert "taken already exists" in complaint(run("train", "demo", "--out", str(path)), 2)
    assert path.is_file()


def test_a_damaged_manifest_is_named_and_stays(run: Run, random_folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "manifest.json"
    damaged.write_text('{"recipe": {"na')
    line = complaint(run("demo", "--set", f"model={random_folder}", "--out", str(tmp_path)), 2)
    assert "manifest.json is damaged" in line
    assert damaged.read_text() == '{"recipe": {"na'


def test_ask_with_a_picture_gives_json(run: Run, random_folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.new("RGB", (112, 112), "white").save(picture)
    arguments = ["ask", str(random_folder), "What is it?", "--json", "--prompt", "brief", "--budget", "8"]
    blind = run(*arguments, "--option", "1", "--option", "2")
    seen = run(*arguments, "--option", "1", "--option", "2", "--image", str(picture))
    assert seen.code == 0, seen.err
    assert not seen.err
    found = json.loads(seen.out)
    assert found["exit"] in ("natural", "forced", "truncated")
    assert found["usage"]["prompt_tokens"] > json.loads(blind.out)["usage"]["prompt_tokens"] > 10
    assert set(found) == {"answer", "thought", "exit", "usage", "option_probabilities", "mass"}


def test_a_sentence_of_the_users_own_closes_the_thought(run: Run, random_folder: Path, tmp_path: Path) -> None:
    own = " That is enough. </think> <answer>"
    asked = run(
        "ask", "tiny", "What is 3 + 4?", "--json", "--full", "--budget", "4", "--exit-text", own, "--exit-on-repeats"
    )
    found = json.loads(asked.out)
    assert own in found["text"]
    assert found["thought"].endswith("That is enough.")
    place = ["--bench", "tiny-text-general", "--limit", "2", "--out", str(tmp_path), "--budget", "2"]
    assert run("eval", "tiny", *place, "--exit-text", own).code == 0
    rows = [json.loads(line) for line in (tmp_path / "eval/tiny/results.jsonl").read_text().splitlines()]
    assert all(own in row["response"] for row in rows if row["exit"] == "forced")
    assert {row["exit"] for row in rows} <= {"forced", "truncated"}


def test_the_prompt_is_the_one_a_model_was_trained_with(random_folder: Path, tmp_path: Path) -> None:
    assert default_prompt("tiny", []) == "brief"
    assert default_prompt("tiny-base", []) == "brief-direct"
    assert default_prompt(str(random_folder), ["1", "2"]) == "card-mc-vllm"
    assert default_prompt(str(random_folder), []) == "paper-train"
    (tmp_path / "manifest.json").write_text('{"prompt": "brief"}')
    assert default_prompt(str(tmp_path / "export"), []) == "brief"  # as exports of earlier versions have it
    (tmp_path / "manifest.json").write_text('{"prompt": ')
    with pytest.raises(CheckpointError, match="--prompt"):
        default_prompt(str(tmp_path / "export"), [])


def test_eval_prints_a_line_each_and_keeps_the_replies(run: Run, random_folder: Path, tmp_path: Path) -> None:
    benches = "tiny-text-general,tiny-image-clinical"
    arguments = ["eval", str(random_folder), "--bench", benches, "--limit", "3", "--budget", "8", "--prompt", "brief"]
    result = run(*arguments, "--samples", "2", "--temperature", "1", "--out", str(tmp_path))
    assert result.code == 0, result.err
    rows = [line.split() for line in result.out.splitlines()]
    assert [row[:2] for row in rows if row and row[0] in benches.split(",")] == [
        [name, "3"] for name in benches.split(",")
    ]
    rows = (tmp_path / "eval" / random_folder.name / "results.jsonl").read_text().splitlines()
    assert len(rows) == 12


def test_conditions_budgets_and_logs_of_one_folder_make_a_report(run: Run, random_folder: Path, tmp_path: Path) -> None:
    arguments = ["eval", str(random_folder), "--bench", "tiny-image-general", "--limit", "4", "--out", str(tmp_path)]
    for more in (["--budget", "4"], ["--budget", "8"], ["--budget", "8", "--swapped"]):
        assert run(*arguments, *more).code == 0
    sampled = run(*arguments, "--budget", "8", "--blind", "--samples", "3", "--temperature", "1", "--inspect-log")
    assert sampled.out.splitlines()[-1] == f"logs: {tmp_path / 'inspect'}"
    assert len(list((tmp_path / "inspect").iterdir())) == 3  # seen, blind, swapped
    assert run("report", str(tmp_path), "--out", str(tmp_path / "all.html")).code == 0
    text = (tmp_path / "all.md").read_text()
    for title in ("Did the images matter?", "Without the text-solvable items", "Accuracy by thinking budget"):
        assert f"## {title}" in text
    (line,) = [line for line in text.splitlines() if line.startswith(f"| image/general | {random_folder.name} | 8 |")]
    assert "n 4" in line


SMALL = [
    "stages.base-direct.data=[{source: tiny, n: 40}]",
    "stages.sft.data=[{source: tiny, n: 40}]",
    "stages.sft+rl.data=[{source: tiny, n: 40}]",
    "stages.base-direct.batch_examples=8",
    "stages.sft.batch_examples=8",
    "stages.sft+rl.steps=2",
    "stages.sft+rl.prompts_per_step=2",
    "stages.sft+rl.thinking_budget=16",
    "evaluation.n=4",
    "evaluation.thinking_budget=16",
    "evaluation.answer_budget=8",
]


def small(command: list[str], folder: Path, out: Path) -> list[str]:
    """A command with the demo's recipe on a random model, small."""
    changes = [part for change in [f"model={folder}", *SMALL] for part in ("--set", change)]
    return [*command, "--out", str(out), *changes]


def test_a_dry_run_writes_nothing(run: Run, random_folder: Path, tmp_path: Path) -> None:
    result = run(*small(["train", "demo", "--dry-run"], random_folder, tmp_path / "run"))
    assert result.code == 0, result.err
    for stage in ("base-direct", "sft", "sft+rl"):
        assert f"== {stage}" in result.out
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no file size limits")
def test_a_disk_that_takes_no_more_is_one_line_and_what_was_saved_stays(random_folder: Path, tmp_path: Path) -> None:
    """A limit on the size of a file refuses writes as a full disk does, and harms nobody else."""

    def narrow() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))

    out = tmp_path / "run"
    arguments = small(["train", "demo"], random_folder, out)
    result = finish(process([*arguments, "--set", "stages.base-direct.checkpoint_seconds=1e-6"], preexec_fn=narrow))
    line = complaint(result, 1)
    assert "large" in line.lower() or "space" in line.lower(), line
    assert json.loads((out / "base-direct" / "manifest.json").read_text())["stage"] == "base-direct"
    assert not list(out.rglob("step-*"))


@pytest.mark.filterwarnings("ignore:.*no group has both right and wrong replies")  # random weights learn nothing
def test_a_killed_demo_resumes_and_another_seed_is_refused(run: Run, random_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    arguments = small(["demo"], random_folder, out)
    for number, marker in ((signal.SIGTERM, "eval/base/results.jsonl"), (signal.SIGKILL, "sft/metrics.jsonl")):
        running = process(arguments, env={**os.environ})
        wait_for(out / marker, running)
        running.send_signal(number)
        stopped = finish(running)
        if number == signal.SIGTERM:
            assert stopped.code == 130, stopped.err
            assert stopped.err.splitlines() == ["stopped; the same command resumes"]
    kept = (out / "eval" / "base" / "results.jsonl").read_text()
    result = run(*arguments)
    assert result.code == 0, result.err
    assert (out / "eval" / "base" / "results.jsonl").read_text() == kept
    _check_folder(out, result)
    assert "seed" in complaint(run(*arguments, "--seed", "5"), 2)


def _check_folder(out: Path, result: Result) -> None:
    """Everything that a finished demo promises."""
    stages = ["base", "base-direct", "sft", "sft+rl"]
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["cells"]) == stages
    for stage in summary["cells"].values():
        assert set(stage) == {"text/general", "text/clinical", "image/general", "image/clinical"}
        assert all(cell["n"] == 4 for cell in stage.values())
        assert "blind" in stage["image/general"]
    rows = [json.loads(line) for line in (out / "eval" / "base" / "results.jsonl").read_text().splitlines()]
    assert len({row["key"] for row in rows}) == len(rows)
    manifest = json.loads((out / "manifest.json").read_text())
    assert list(manifest["evaluated"]) == stages
    for name in stages[1:]:
        frozen = manifest["stages"][name]["frozen"]
        assert frozen["before"] == frozen["after"]
        assert manifest["stages"][name]["data_sha256"]
    assert (out / "report.html").stat().st_size > 10_000
    assert (out / "sft+rl" / "export" / "model.safetensors").exists()
    for promised in ("report.html", "sft+rl/export", "xreasoner ask", "text/general"):
        assert promised in result.out


def test_a_plan_needs_no_weights_and_no_network(run: Run) -> None:
    arguments = ["plan", "x-reasoner-7b", "--gpus", "32", "--memory", "40GB", "--price", "1.5", "--length", "3000"]
    result = run(*arguments)
    assert result.code == 0, result.err
    for promised in (
        "8,292,166,656 parameters",
        "optimizer states",
        "activations",
        "logits",
        "KV cache",
        "FLOPs",
        "cost",
    ):
        assert promised in result.out
    lower = run(*arguments, "--set", "stages.sft.epochs=1")
    assert lower.out != result.out


def test_data_are_decontaminated_and_distilled(run: Run, tmp_path: Path) -> None:
    from xreasoner.benchmarks.easyvqa import easy_vqa

    question = easy_vqa(1, 0)[0].question
    rows = [{"question": f"Look: {question}", "gold": "yes"}, {"question": "What is 1 + 1?", "gold": "2"}]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    clean = tmp_path / "clean"
    found = run("data", "decontaminate", str(data), "--bench", "easy-vqa", "--out", str(clean), "--n", "5")
    assert found.code == 0, found.err
    assert "1 of 2 rows dropped" in found.out
    assert "1 + 1" in (clean / "clean.jsonl").read_text()
    chains = tmp_path / "chains.jsonl"
    source = f"stages.sft+rl.data=[{{source: rows, n: 5, options: {{path: {clean / 'clean.jsonl'}}}}}]"
    arguments = ["data", "distill", "demo", "--set", source, "--teacher", "tiny", "--out", str(chains)]
    made = run(*arguments, "--samples", "2", "--budget", "40", "--answer-budget", "8")
    assert made.code == 0, made.err
    assert "of 1 problems" in made.out
    assert chains.exists()
