"""`make bench-evaluation`: grading and speed beside the peers, in one run on one machine.

    python benchmarks/evaluation.py [grading] [text] [image] [--items N] [--out DIR]

Three parts, each resumable: what OUT/PART.json holds is not measured again. The peers run in .venv-peers and .venv-lmms
(`make peers`), in processes of their own, one at a time and with the same number of threads (THREADS, or one a core).

grading  the hard cases through our grader, math-verify alone, lm-eval's filters and Inspect's scorers
text     the same items through `xreasoner eval`'s code and lm-eval's hf backend at the batch size that suits it best
image    the same items through ours, lmms-eval's Qwen2.5-VL, and transformers.generate in the loop that it and
         VLMEvalKit (one item at a time) use

Ours and each peer take turns for ROUNDS rounds, each time in a fresh process that has answered WARM items before the
clock starts. A ratio is taken within a round; the table has medians, and the ratios' smallest and largest.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
LMMS = ROOT / ".venv-lmms" / "bin" / "python"
CASES = ROOT / "tests" / "grading" / "extraction_examples.jsonl"
MODEL, PROMPT, THINKING, ANSWER = "tiny", "brief", 160, 64
THREADS = int(os.environ.get("THREADS") or os.cpu_count() or 1)
SWEEP = (1, 8, 32, 64, 128)
ROUNDS, WARM = 3, 64
Result = dict[str, Any]


def peer(task: str, given: Mapping[str, Any]) -> Result:
    """Run one task of evaluation_peers.py in its peer's environment; its last line is the result."""
    python = LMMS if task == "lmms-eval" else PEERS
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(given, file)
        file.flush()
        command = [str(python), str(ROOT / "benchmarks" / "evaluation_peers.py"), task, file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{task} failed in {python.parents[1].name}:\n{done.stderr[-3000:]}")
    found: Result = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def read_cases() -> list[Result]:
    return [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines() if line]


def grading(items: int, out: Path) -> Result:
    """Of each grader: share of cases judged as expected, false credits, and seconds."""
    cases = read_cases()
    found = {"ours (xreasoner grade)": _ours(cases, out)}
    found |= peer("grade", {"cases": cases})["graders"]
    return {"cases": len(cases), "graders": {name: _score(cases, entry) for name, entry in found.items()}}


def _ours(cases: Sequence[Result], out: Path) -> Result:
    """The verdicts of `xreasoner grade`, the command that anybody re-scores with."""
    asked, graded = out / "cases.jsonl", out / "cases.graded.jsonl"
    asked.write_text("".join(json.dumps(case) + "\n" for case in cases), encoding="utf-8")
    command = [sys.executable, "-m", "xreasoner.cli", "grade", str(asked), "--out", str(graded)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"xreasoner grade failed:\n{done.stderr[-2000:]}")
    lines = graded.read_text(encoding="utf-8").splitlines()
    return {"correct": [json.loads(line)["correct"] for line in lines], "seconds": seconds}


def _score(cases: Sequence[Result], entry: Mapping[str, Any]) -> Result:
    pairs = list(zip(cases, entry["correct"], strict=True))
    return {
        "right": sum(case["expected_correct"] == bool(found) for case, found in pairs),
        "false_credit": sum(bool(found) and not case["expected_correct"] for case, found in pairs),
        "n": len(pairs),
        "seconds": round(entry["seconds"], 3),
    }


def problems(bench: str, items: int) -> list[Any]:
    from xreasoner.registry import BENCHMARKS, resolve

    found: list[Any] = resolve(BENCHMARKS, "benchmark", bench)(items, 0)
    return found


def accuracy(asked: Sequence[Any], replies: Sequence[str]) -> float:
    """Share right under our grader: the same for everybody's replies."""
    from xreasoner.grading import judge

    return sum(judge(problem, text).correct for problem, text in zip(asked, replies, strict=True)) / len(asked)


def fresh(measure: Callable[..., Result], *given: Any) -> Result:
    """`measure(*given)` in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *given).result()


def ours(bench: str, items: int) -> Result:
    """`xreasoner eval`'s own code on a fresh folder: generation, judging and storing. Loading is left out, and so is
    drawing the items, which the peers are handed.
    """
    import torch

    from xreasoner.benchmarks.running import evaluate
    from xreasoner.engines.base import Sampling
    from xreasoner.engines.torch_engine import TorchEngine
    from xreasoner.models.loading import load

    torch.set_num_threads(THREADS)
    sampling = Sampling(thinking_budget=THINKING, answer_budget=ANSWER)
    named: Result = {"stage": "bench", "model_hash": "bench", "prompt": PROMPT, "seed": 0, "sampling": sampling}
    with tempfile.TemporaryDirectory() as folder:
        engine = TorchEngine(load(MODEL))
        evaluate(engine, [bench], Path(folder) / "warm", n=min(WARM, items), **named)
        start = time.perf_counter()
        problems(bench, items)
        drawing = time.perf_counter() - start
        start = time.perf_counter()
        rows = evaluate(engine, [bench], Path(folder) / "run", n=items, **named)
        seconds = time.perf_counter() - start - drawing
    return {"seconds": seconds, "accuracy": sum(row["correct"] for row in rows) / len(rows)}


def rounds(asked: Sequence[Any], own: Callable[[], Result], peers: Mapping[str, Callable[[], Result]]) -> Result:
    """Ours and the peers in turn: of each the median of items a second, and of the ratios to ours within a round."""
    n, speeds, found = len(asked), dict[str, list[float]](), dict[str, Result]()
    for _ in range(ROUNDS):
        for name, measure in {"ours": own, **peers}.items():
            run = measure()
            right = run["accuracy"] if "accuracy" in run else accuracy(asked, run["replies"])
            speeds.setdefault(name, []).append(n / run["seconds"])
            found[name] = {"items": n, "accuracy": right}
            print(f"{name}: {n / run['seconds']:.2f} items/s, {right:.1%} right", flush=True)
    for name, entry in found.items():
        ratios = [our / their for our, their in zip(speeds["ours"], speeds[name], strict=True)]
        entry |= {"speeds": speeds[name], "items_per_s": median(speeds[name])}
        entry |= {"ratio": median(ratios), "low": min(ratios), "high": max(ratios)}
    return found


def text(items: int, out: Path) -> Result:
    """Ours beside lm-eval's hf backend, whose batch size is chosen by a sweep on fewer items."""
    from xreasoner.models.loading import find
    from xreasoner.prompts import render

    bench = "tiny-text-general"
    asked = problems(bench, items)
    rows = [{"prompt": render(problem, PROMPT), "gold": problem.gold} for problem in asked]
    given = {"model": find(MODEL), "max_new_tokens": THINKING + ANSWER, "threads": THREADS}

    def lm_eval(batch: int, n: int) -> Result:
        return peer("lm-eval", {**given, "rows": rows[:n], "batch": batch, "warm": min(WARM, n)})

    sweep = {}
    for size in (size for size in SWEEP if size <= items):
        n = min(items, max(64, size))
        sweep[size] = n / lm_eval(size, n)["seconds"]
        print(f"lm-eval, batch {size}: {sweep[size]:.2f} items/s", flush=True)
    best = max(sweep, key=lambda size: sweep[size])
    found = rounds(
        asked, lambda: fresh(ours, bench, items), {f"lm-eval hf, batch {best}": lambda: lm_eval(best, items)}
    )
    return {"bench": bench, "sweep": sweep, **found}


def image(items: int, out: Path) -> Result:
    """Ours beside transformers.generate, one item after the other (VLMEvalKit) and in padded batches, and lmms-eval."""
    bench = "tiny-image-general"
    asked = problems(bench, items)

    def lmms_eval(batch: int, n: int) -> Result:
        with tempfile.TemporaryDirectory() as folder:
            return peer("lmms-eval", _pictured(asked[:n], batch, Path(folder)))

    sweep = {}
    for size in (size for size in SWEEP if size <= items):
        n = min(items, max(64, size))
        sweep[size] = n / lmms_eval(size, n)["seconds"]
        print(f"lmms-eval, batch {size}: {sweep[size]:.2f} items/s", flush=True)
    best = max(sweep, key=lambda size: sweep[size])
    peers = {
        f"lmms-eval's Qwen2.5-VL, batch {best}": lambda: lmms_eval(best, items),
        "`transformers.generate`, batch 1": lambda: fresh(generate_loop, bench, items, 1),
        f"`transformers.generate`, batch {best}": lambda: fresh(generate_loop, bench, items, best),
    }
    return {"bench": bench, "sweep": sweep, **rounds(asked, lambda: fresh(ours, bench, items), peers)}


def _pictured(asked: Sequence[Any], batch: int, folder: Path) -> Result:
    """What lmms-eval is handed; pictures lie in the folder."""
    from xreasoner.models.loading import find
    from xreasoner.prompts import render

    rows: list[Result] = []
    for n, problem in enumerate(asked):
        paths = [str(folder / f"{n}-{k}.png") for k in range(len(problem.images))]
        for path, picture in zip(paths, problem.images, strict=True):
            picture.save(path)
        rows.append({"prompt": render(problem, PROMPT), "images": paths})
    size = json.loads((Path(find(MODEL)) / "preprocessor_config.json").read_text())["size"]
    pixels = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    given = {"model": find(MODEL), "max_new_tokens": THINKING + ANSWER, "threads": THREADS, "batch": batch}
    return {**given, "warm": min(WARM, len(rows)), "pixels": pixels, "rows": rows}


def generate_loop(bench: str, items: int, batch: int) -> Result:
    """Replies by `model.generate`, batch by batch in the order of the items, padded on the left."""
    import torch

    from xreasoner.models.loading import load
    from xreasoner.prompts import chat_messages

    torch.set_num_threads(THREADS)
    loaded, asked = load(MODEL), problems(bench, items)

    def answer(some: Sequence[Any]) -> list[str]:
        inputs = _inputs(loaded, [(chat_messages(problem, PROMPT), problem.images) for problem in some])
        with torch.inference_mode():
            ids = loaded.model.generate(**inputs, max_new_tokens=THINKING + ANSWER, do_sample=False)
        new = ids[:, inputs["input_ids"].shape[1] :]
        return list(loaded.tokenizer.batch_decode(new, skip_special_tokens=True))

    answer(asked[: min(batch, WARM)])
    replies, start = list[str](), time.perf_counter()
    for first in range(0, items, batch):
        replies += answer(asked[first : first + batch])
    return {"replies": replies, "seconds": time.perf_counter() - start}


def _inputs(loaded: Any, asked: Sequence[tuple[Any, Any]]) -> Result:
    """What the model's own processor would return (it needs torchvision; its parts do not)."""
    import torch

    from xreasoner.models.loading import encode

    encoded = [encode(loaded, messages, images) for messages, images in asked]
    longest, pad = max(len(e.input_ids) for e in encoded), loaded.tokenizer.pad_token_id
    ids = torch.full((len(encoded), longest), pad)
    mask = torch.zeros((len(encoded), longest), dtype=torch.long)
    for row, e in enumerate(encoded):
        ids[row, longest - len(e.input_ids) :] = e.input_ids
        mask[row, longest - len(e.input_ids) :] = 1
    found: Result = {"input_ids": ids, "attention_mask": mask}
    pictures = [e for e in encoded if e.pixel_values is not None]
    if pictures:
        found["pixel_values"] = torch.cat([e.pixel_values for e in pictures])
        found["image_grid_thw"] = torch.cat([e.image_grid_thw for e in pictures])
        found["mm_token_type_ids"] = (ids == loaded.model.config.image_token_id).long()
    return found


PARTS: dict[str, Callable[[int, Path], Result]] = {"grading": grading, "text": text, "image": image}


def table(out: Path) -> str:
    """What has been measured so far, as Markdown."""
    parts = ["# Evaluation beside the peers"]
    for name in PARTS:
        path = out / f"{name}.json"
        if path.exists():
            parts.append(_part(name, json.loads(path.read_text())))
    return "\n\n".join(parts) + "\n"


def _part(name: str, found: Mapping[str, Any]) -> str:
    if name == "grading":
        lines = ["| grader | right | false credit | seconds |", "|---|---|---|---|"]
        for grader, e in found["graders"].items():
            lines.append(f"| {grader} | {e['right']} of {e['n']} | {e['false_credit']} | {e['seconds']:.2f} |")
        return "\n".join([f"## The {found['cases']} hard cases\n", *lines])
    lines = ["| | items a second | accuracy | times ours is faster (smallest–largest) |", "|---|---|---|---|"]
    for name, e in found.items():
        if isinstance(e, Mapping) and "items_per_s" in e:
            faster = "" if name == "ours" else f"{e['ratio']:.2f} ({e['low']:.2f}–{e['high']:.2f})"
            lines.append(f"| {name} | {e['items_per_s']:.1f} | {100 * e['accuracy']:.1f} % | {faster} |")
    sweep = ", ".join(f"{size}: {speed:.1f}" for size, speed in found["sweep"].items())
    title = f"## {found['bench']}, {found['threads']} threads, {found['ours']['items']} items"
    return "\n".join([f"{title}\n", *lines, f"\nThe peer's sweep, items a second by batch: {sweep}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"any of {', '.join(PARTS)}; all when left out")
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench-evaluation")
    given = parser.parse_args()
    unknown = [part for part in given.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; known: {', '.join(PARTS)}")
    for python in (PEERS, LMMS):
        if not python.exists():
            parser.error(f"{python} is missing; make it with `make peers`")
    given.out.mkdir(parents=True, exist_ok=True)
    for part in given.parts or PARTS:
        path = given.out / f"{part}.json"
        if path.exists():
            print(f"{part}: measured already ({path}); delete it to measure again")
            continue
        found = {**PARTS[part](given.items, given.out), "threads": THREADS}
        aside = path.with_suffix(".part")
        aside.write_text(json.dumps(found, indent=1))
        aside.replace(path)
    (given.out / "evaluation.md").write_text(table(given.out))
    print(table(given.out))


if __name__ == "__main__":
    main()
