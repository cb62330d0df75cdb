"""Logs that Inspect AI opens: what we write ourselves, and, where it is installed, what the package reads."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from fabricated_run import fabricate

from xreasoner.benchmarks.store import condition_of, read_rows
from xreasoner.errors import UserError
from xreasoner.reporting.inspect_log import write_logs

PEERS = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"
READER = """
import json, sys
from inspect_ai.log import list_eval_logs, read_eval_log
found = {}
for info in list_eval_logs(sys.argv[1]):
    log = read_eval_log(info.name, resolve_attachments=True)
    first = log.samples[0]
    assert all(c.image.startswith("data:image/png") for c in first.input[0].content if c.type == "image")
    found[f"{log.eval.model}/{log.eval.task}"] = {
        "status": log.status, "n": len(log.samples), "asked_in": first.input[0].text,
        "right": sum(s.scores["xreasoner"].value == "C" for s in log.samples),
        "accuracy": log.results.scores[0].metrics["accuracy"].value, "ids": [s.id for s in log.samples],
        "kinds": [c.type for c in first.messages[-1].content], "asked": [c.type for c in first.input[0].content],
        "completion": first.output.completion, "tokens": first.output.usage.total_tokens, "header": info.task,
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate(tmp_path_factory.mktemp("run"), n=5, stages=("base", "sft"))


def test_a_log_holds_what_the_store_holds(run: Path, tmp_path: Path) -> None:
    files = write_logs([run], tmp_path)
    rows = read_rows(run / "eval" / "sft" / "results.jsonl")
    logs = [json.loads(path.read_text()) for path in files]
    own = [log for log in logs if log["eval"]["model"] == "xreasoner/sft"]
    assert sum(len(log["samples"]) for log in own) == len(rows)
    assert {(log["eval"]["dataset"]["name"], log["eval"]["metadata"]["condition"]) for log in own} == {
        (row["bench"], condition_of(row)) for row in rows
    }
    (log,) = [log for log in own if log["eval"]["task"] == "tiny-image-general"]
    sample, row = log["samples"][0], rows[[row["bench"] for row in rows].index("tiny-image-general")]
    assert (sample["id"], sample["target"]) == (row["id"], row["gold"])
    assert sample["scores"]["xreasoner"]["value"] == ("C" if row["correct"] else "I")
    (name,) = sample["attachments"]
    assert sample["input"][0]["content"][0]["image"] == f"attachment://{name}"
    assert sample["attachments"][name].startswith("data:image/png;base64,")
    assert write_logs([run], tmp_path) == files  # the same names again


def test_only_the_stages_asked_for_are_written(run: Path, tmp_path: Path) -> None:
    models = {json.loads(path.read_text())["eval"]["model"] for path in write_logs([run], tmp_path, ["base"])}
    assert models == {"xreasoner/base"}
    with pytest.raises(UserError, match="no results"):
        write_logs([tmp_path / "nothing"], tmp_path)


@pytest.mark.peers
def test_inspects_own_reader_opens_the_logs(run: Path, tmp_path: Path) -> None:
    files = write_logs([run], tmp_path)
    result = subprocess.run([PEERS, "-c", READER, tmp_path], capture_output=True, text=True, check=False, timeout=200)
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout)
    assert len(found) == len(files)
    rows = [row for row in read_rows(run / "eval" / "sft" / "results.jsonl") if condition_of(row) == "seen"]
    for bench in {row["bench"] for row in rows}:
        members = [row for row in rows if row["bench"] == bench]
        log = found[f"xreasoner/sft/{bench}"]
        assert (log["status"], log["n"], log["header"]) == ("success", len(members), bench)
        assert log["right"] == sum(row["correct"] for row in members)
        assert log["accuracy"] == pytest.approx(log["right"] / len(members))
        assert log["ids"] == [row["id"] for row in members]
        assert log["asked_in"].startswith(members[0]["question"])
        assert log["asked_in"].endswith("Think, then answer." if members[0]["prompt"] == "brief" else "Answer.")
        assert log["completion"] == members[0]["answer"]
        assert log["kinds"] == (["reasoning", "text"] if members[0]["thought"] else ["text"])
        assert log["asked"] == (["image", "text"] if members[0]["image"] else ["text"])
