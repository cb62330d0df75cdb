"""Training's speed and memory beside TRL's, in one run: `make bench-training`.

Each measurement is a process of its own, one after the other, so that its peak memory is its own; TRL's run in TRL's
environment. All have the same model, examples or prompts, precision, and number of threads. Ratios are what counts: a
machine that does other work beside this one slows all of them. With `--rounds` ours and TRL's take turns, a ratio is
taken within a round, and its median told with the smallest and largest. `--gpu` measures the shapes of 3B and 7B.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).parents[1]
TRL_PYTHON = ROOT / ".venv-trl" / "bin" / "python"
FULL = {"rows": 8, "row": 1024, "steps": 4, "prompts": 16, "group": 8, "reply": 64, "rl_steps": 3}
QUICK = {"rows": 2, "row": 256, "steps": 2, "prompts": 2, "group": 4, "reply": 16, "rl_steps": 2}
WIDTHS = {"1M": (128, 4), "3M": (192, 6), "10M": (320, 8), "30M": (512, 10)}
LENGTHS = (256, 1024, 2048, 8192)
QWEN = {  # hidden, layers, heads, key heads, intermediate, tied: the published configurations
    "3b": (2048, 36, 16, 2, 11008, True),
    "7b": (3584, 28, 28, 4, 18944, False),
}
VOCABULARY = 151_936


def examples(sizes: dict[str, int], vocabulary: int) -> list[tuple[list[int], int]]:
    """(ids, prompt's length) of chains of 100 to 400 tokens, shorter where rows are: a step's worth."""
    rng, found, left = Random(0), [], sizes["rows"] * sizes["row"]
    longest = min(400, sizes["row"] // 2)
    while left >= longest:
        length = rng.randint(longest // 4, longest)
        found.append(([rng.randrange(20, vocabulary) for _ in range(length)], length // 4))
        left -= length
    return found


# --- ours ------------------------------------------------------------------------------------------------------------


def sft_ours(sizes: dict[str, int], folder: str) -> dict[str, Any]:
    from xreasoner.data.packing import Tokens
    from xreasoner.models.freezing import freeze
    from xreasoner.models.loading import load
    from xreasoner.recipe import SFTStage
    from xreasoner.training.common import ready
    from xreasoner.training.sft import train_sft

    loaded = load(folder)
    freeze(loaded.model)
    data = [Tokens(tuple(ids), prompt) for ids, prompt in examples(sizes, len(loaded.tokenizer))]
    batch = {"batch_examples": len(data), "epochs": sizes["steps"] + 1, "batching": "packed"}
    stage = SFTStage.model_validate({**_stage("sft"), **batch, "chunk_tokens": 2 * sizes["row"]})
    seconds: list[float] = []
    begin = time.monotonic()

    def progress(*_: Any) -> None:
        nonlocal begin
        seconds.append(time.monotonic() - begin)
        begin = time.monotonic()

    with tempfile.TemporaryDirectory() as out:
        train_sft(stage, ready(stage, loaded), data, Path(out), 0, progress)
    return {"tokens_per_s": sum(len(item.ids) for item in data) / median(seconds[1:])}


def rl_ours(sizes: dict[str, int], folder: str) -> dict[str, Any]:
    from xreasoner.engines.torch_engine import TorchEngine
    from xreasoner.models.freezing import freeze
    from xreasoner.models.loading import load
    from xreasoner.problem import Problem
    from xreasoner.recipe import RLStage
    from xreasoner.training.common import ready
    from xreasoner.training.rl import train_rl
    from xreasoner.training.rollouts import Asking, InProcess

    loaded = load(folder)
    freeze(loaded.model)
    data = [Problem(str(k), text, "1", "integer") for k, text in enumerate(prompts(sizes))]
    changes = {
        "steps": sizes["rl_steps"] + 1,
        "prompts_per_step": sizes["prompts"],
        "group_size": sizes["group"],
        "thinking_budget": sizes["reply"] - 8,
        "answer_budget": 8,
        "drop_zero_variance": False,
        "max_idle_steps": sizes["rl_steps"] + 2,  # the time is measured, not what is learned
    }
    stage = RLStage.model_validate({**_stage("rl"), **changes})
    learner, found = ready(stage, loaded), []
    engine = TorchEngine(loaded)
    engine.ends = set()  # every reply has its full length, as TRL's have
    with tempfile.TemporaryDirectory() as out, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "stage rl, step .*: no group has both right and wrong replies")
        source = InProcess(Asking(stage, loaded, data, 0), learner, engine)
        train_rl(stage, learner, source, Path(out), 0, lambda *_: None)
        found = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    return {"seconds": median([line["seconds"] for line in found[1:]]), "reply_tokens": found[-1]["length"]}


def rl_ours_short(sizes: dict[str, int], folder: str) -> dict[str, Any]:
    """Replies as long as TRL's continuous batching leaves them on average, for it knows no least length."""
    return rl_ours({**sizes, "reply": sizes["reply"] * 40 // 64}, folder)


def _stage(kind: str) -> dict[str, Any]:
    shared = {"name": kind, "kind": kind, "prompt": "brief", "checkpoint_seconds": 1e9}
    return {**shared, "data": [{"source": "jsonl", "n": 1}], "optimiser": {"lr": 1e-5, "schedule": "constant"}}


def prompts(sizes: dict[str, int]) -> list[str]:
    names = ("Ana", "Ben", "Cara", "Dan", "Eve")
    rng = Random(1)
    facts = [", ".join(f"{name} has {rng.randint(2, 99)}" for name in names) for _ in range(sizes["prompts"])]
    return [f"{fact}. What is the total of Ana and Eve?" for fact in facts]


# --- TRL, in its own environment -------------------------------------------------------------------------------------


def sft_trl(sizes: dict[str, int], folder: str, packing: bool = True) -> dict[str, Any]:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = _transformers(folder)
    data = examples(sizes, len(tokenizer))
    rows = [{"input_ids": ids, "completion_mask": [0] * prompt + [1] * (len(ids) - prompt)} for ids, prompt in data]
    settings = SFTConfig(
        max_length=sizes["row"],
        packing=packing,
        per_device_train_batch_size=sizes["rows"] if packing else len(data),
        num_train_epochs=sizes["steps"] + 1,
        completion_only_loss=True,
        shuffle_dataset=False,
        **_settings(),
    )
    clock = _clock()
    trainer = SFTTrainer(model, settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.add_callback(clock)
    trainer.train()
    steps = max(1, round(len(clock.seconds) / (sizes["steps"] + 1)))  # packing may need a row more
    passes = [sum(clock.seconds[k : k + steps]) for k in range(steps, len(clock.seconds), steps)]
    return {"tokens_per_s": sum(len(ids) for ids, _ in data) / median(passes)}


def sft_trl_padded(sizes: dict[str, int], folder: str) -> dict[str, Any]:
    return sft_trl(sizes, folder, packing=False)


def rl_trl(sizes: dict[str, int], folder: str, continuous: bool = False) -> dict[str, Any]:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = _transformers(folder)
    size, rng = sizes["prompts"] * sizes["group"], Random(2)
    settings = GRPOConfig(
        num_generations=sizes["group"],
        per_device_train_batch_size=size,
        steps_per_generation=1,
        max_completion_length=sizes["reply"],
        generation_kwargs={"min_new_tokens": sizes["reply"]},
        temperature=1.0,
        beta=0.0,
        max_steps=sizes["rl_steps"] + 1,
        use_transformers_continuous_batching=continuous,
        **_settings(),
    )
    lengths: list[int] = []

    def reward(completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths.extend(map(len, completion_ids))
        return [float(rng.random() < 0.5) for _ in completions]

    clock = _clock()
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in prompts(sizes)]
    trainer = GRPOTrainer(model, reward, settings, Dataset.from_list(rows), processing_class=tokenizer)
    trainer.add_callback(clock)
    trainer.train()
    return {"seconds": median(clock.seconds[1:]), "reply_tokens": sum(lengths) / len(lengths)}


def rl_trl_continuous(sizes: dict[str, int], folder: str) -> dict[str, Any]:
    return rl_trl(sizes, folder, continuous=True)


def _transformers(folder: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("visual." not in name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or "<|endoftext|>"
    return model, tokenizer


def _settings() -> dict[str, Any]:
    quiet = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    plain = {"bf16": False, "gradient_checkpointing": False, "use_cpu": True, "seed": 0}
    return {**quiet, **plain, "learning_rate": 1e-5, "output_dir": tempfile.mkdtemp()}


def _clock() -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.last = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.last = self.last or time.monotonic()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            now = time.monotonic()
            self.seconds.append(now - self.last)
            self.last = now

    return Clock()


# --- cost against size, and GPUs -------------------------------------------------------------------------------------


def matrix_rate(device: str = "cpu", size: int = 2048, half: bool = False) -> float:
    """FLOP/s of a matrix product: float32 on a CPU, bfloat16 where `half`."""
    import torch

    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if half else torch.float32)
    times = []
    for _ in range(6):
        begin = time.monotonic()
        (a @ a).sum().item()
        times.append(time.monotonic() - begin)
    return 2 * size**3 / median(times[1:])


def shaped(width: int, layers: int, heads: int, keys: int, inner: int, tied: bool, vocabulary: int, device: str) -> Any:
    """A Qwen2.5-VL with random weights, whose tower is as small as it can be: text never calls it."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    size = width // heads
    sections = [size // 8, size // 16 * 3, size // 2 - size // 8 - size // 16 * 3]
    text = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "intermediate_size": inner,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 32_768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections},
    }
    vision = {"depth": 1, "hidden_size": 64, "num_heads": 4, "intermediate_size": 64, "out_hidden_size": width}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)
    with torch.device(device):
        return Qwen2_5_VLForConditionalGeneration(config).float()


def step_cost(model: Any, length: int, rows: int, precision: str, checkpointing: bool, most: int) -> dict[str, float]:
    """Seconds of a training step (forward, backward, AdamW) on one packed row of `rows` documents, and its FLOPs."""
    import torch

    from xreasoner.data.packing import Tokens, ready_to_pack
    from xreasoner.training.sft import summed_loss

    device = next(model.parameters()).device
    ready_to_pack(model)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    moving = [p for name, p in model.named_parameters() if "visual." not in name]
    optimiser = torch.optim.AdamW(moving, lr=1e-6)
    data = [Tokens(tuple(Random(k).choices(range(100), k=length)), 1) for k in range(rows)]
    seconds = []
    for _ in range(3):
        begin = time.monotonic()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = summed_loss(model, None, data, True, most)[0] / (length * rows)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        loss.item()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.monotonic() - begin)
    config = model.config.text_config
    weights = sum(p.numel() for p in moving) - (0 if config.tie_word_embeddings else model.lm_head.weight.numel())
    tokens = length * rows
    # two FLOPs a weight and token, three times (forward, and twice backward); causal attention: half of a square
    flops = 6 * weights * tokens + 6 * config.num_hidden_layers * config.hidden_size * length * tokens
    return {"tokens_per_s": tokens / min(seconds[1:]), "flops_per_s": flops / min(seconds[1:]), "weights": weights}


def sizes_ours(sizes: dict[str, int], folder: str) -> dict[str, Any]:
    """Tokens a second for models of 1M to 30M weights and for documents of 256 to 8,192 tokens."""
    quick = sizes is QUICK or sizes["row"] == QUICK["row"]
    rate, found = matrix_rate(size=512 if quick else 2048), []
    for name, (width, layers) in list(WIDTHS.items())[: 1 if quick else None]:
        for length in LENGTHS[: 1 if quick else None]:
            if name != "3M" and length != 1024 and not quick:
                continue  # a row and a column of the table
            heads = width // 64 if width % 64 == 0 else width // 32
            keys = heads // 2 if heads % 2 == 0 else 1
            model = shaped(width, layers, heads, keys, width * 8 // 3, True, 1168, "cpu")
            cost = step_cost(model, length, max(1, min(8192, 8 * length) // length), "float32", False, 2**25)
            found.append({"size": name, "length": length, **cost, "share": cost["flops_per_s"] / rate})
    return {"matrix_flops_per_s": rate, "table": found}


def gpu_ours(sizes: dict[str, int], folder: str) -> dict[str, Any]:
    """Qwen2.5-VL-3B and 7B with random weights in bfloat16, rows of 8k and 16k packed from documents of 2k to 4k.

    7B trains 8 of its 28 layers' worth on one card (its masters and moments need 122 GB): the share of the matrix rate
    is what is looked for. Without a GPU the same lines run on a small shape.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rate = matrix_rate(device, 8192 if device == "cuda" else 512, half=device == "cuda")
    found = []
    for name, (width, layers, heads, keys, inner, tied) in QWEN.items():
        shape = (width, 8 if name == "7b" else layers, heads, keys, inner, tied, VOCABULARY)
        if device == "cpu":
            shape = (128, 2, 4, 2, 256, tied, 512)
        for row in (8192, 16_384) if device == "cuda" else (256,):
            model = shaped(*shape, device)
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            cost = step_cost(model, row // 4, 4, "bfloat16", True, 2**28 if device == "cuda" else 2**25)
            peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
            found.append({"shape": name, "layers": shape[1], "row": row, **cost, "share": cost["flops_per_s"] / rate})
            found[-1]["peak_gb"] = peak / 1e9
            del model
    card = torch.cuda.get_device_name() if device == "cuda" else f"CPU ({platform.processor() or platform.machine()})"
    return {"device": card, "matrix_flops_per_s": rate, "table": found}


# --- the run ---------------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[dict[str, int], str], dict[str, Any]]] = {
    part.__name__: part
    for part in (
        sft_ours,
        sft_trl,
        sft_trl_padded,
        rl_ours,
        rl_ours_short,
        rl_trl,
        rl_trl_continuous,
        sizes_ours,
        gpu_ours,
    )
}


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def measure(part: str, sizes: dict[str, int], folder: str, threads: int) -> dict[str, Any]:
    """One part in a process of its own; what it found with its peak memory in MB, or why it failed."""
    python = str(TRL_PYTHON) if "trl" in part else sys.executable
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": str(threads)}
    environment |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    command = [python, __file__, "--part", part, "--folder", folder, "--sizes", json.dumps(sizes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else str(done.returncode)}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def run(part: str, sizes: dict[str, int], folder: str) -> None:
    """What the process of a part does: its result as the last line."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    found = PARTS[part](sizes, folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**found, "peak_mb": peak}))


def middle(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The round of the median, with every round's value."""
    key = next((key for key in ("tokens_per_s", "seconds") if all(key in found for found in rounds)), None)
    if key is None:
        return rounds[0]
    values = [found[key] for found in rounds]
    return {**rounds[values.index(median(values))], "rounds": values}


def table(found: dict[str, dict[str, Any]]) -> str:
    """What was found, as text: ratios first."""
    lines = [f"{name:18} {json.dumps({k: v for k, v in part.items() if k != 'table'})}" for name, part in found.items()]
    for one, other, key, bar in (
        ("sft_ours", "sft_trl", "tokens_per_s", 3),
        ("sft_ours", "sft_trl_padded", "tokens_per_s", 0),
        ("rl_trl", "rl_ours", "seconds", 3),
        ("rl_trl_continuous", "rl_ours", "seconds", 8),
        ("rl_trl_continuous", "rl_ours_short", "seconds", 8),
    ):
        if key in found.get(one, {}) and key in found.get(other, {}):
            asked = f" (asked: {bar})" if bar else ""
            rounds = [found[name].get("rounds", [found[name][key]]) for name in (one, other)]
            ratios = [a / b for a, b in zip(*rounds, strict=True)]
            spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
            lines.append(f"ratio {one}/{other}: {median(ratios):.2f}{spread}{asked}")
    for part in found.values():
        for row in part.get("table", []):
            lines.append("  ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()))
    return "\n".join(lines)


def draw(found: dict[str, Any], path: Path) -> None:
    """Tokens a second against size and against length, beside what the machine's matrix rate would allow."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows, rate = found["table"], found["matrix_flops_per_s"]
    by_size = [row for row in rows if row["length"] == 1024]
    by_length = [row for row in rows if row["size"] == "3M"]
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, part, key, label in (
        (axes[0], by_size, "weights", "weights of the language model, documents of 1,024 tokens"),
        (axes[1], by_length, "length", "tokens of a document, 3M"),
    ):
        across = [row[key] for row in part]
        axis.plot(across, [row["tokens_per_s"] for row in part], "o-", color="#2563eb", label="measured")
        ceiling = [row["tokens_per_s"] / row["share"] for row in part]
        axis.plot(across, ceiling, "--", color="#94a3b8", label="at the matrix rate")
        for row, x in zip(part, across, strict=True):
            axis.annotate(
                f"{row['share']:.0%}", (x, row["tokens_per_s"]), (0, -13), textcoords="offset points", ha="center"
            )
        axis.set(xscale="log", yscale="log", xlabel=label)
        axis.set_xticks(across, [f"{x / 1e6:.1f}M" if key == "weights" else f"{x:,}" for x in across], minor=False)
        axis.xaxis.minorticks_off()
        axis.margins(0.08, 0.15)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("tokens a second")
    axes[0].legend(frameon=False)
    figure.suptitle(f"A training step in float32; matrix rate {rate / 1e9:.0f} GFLOP/s", fontsize=10)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run?")
    parser.add_argument("--gpu", action="store_true", help="only the shapes of 3B and 7B")
    parser.add_argument("--only", help="parts, separated by commas")
    parser.add_argument("--rounds", type=int, default=1, help="how often ours and TRL's are measured, in turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="a JSON file for what was found")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--sizes", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        return run(args.part, args.sizes, args.folder)
    sizes = QUICK if args.quick else FULL
    folder = str(ROOT / "src" / "xreasoner" / "tiny" / "base")
    parts = args.only.split(",") if args.only else ["gpu_ours"] if args.gpu else [p for p in PARTS if p != "gpu_ours"]
    if any("trl" in part for part in parts) and not TRL_PYTHON.exists():
        print("no environment for TRL, whose parts are left out; make test-trl makes it", file=sys.stderr)
        parts = [part for part in parts if "trl" not in part]
    measured: dict[str, list[dict[str, Any]]] = {part: [] for part in parts}
    for k in range(args.rounds):
        for part in parts if k == 0 else [part for part in parts if part not in ("sizes_ours", "gpu_ours")]:
            measured[part].append(measure(part, sizes, folder, args.threads))
            print(part, json.dumps(measured[part][-1])[:300], file=sys.stderr, flush=True)
    found = {part: middle(rounds) for part, rounds in measured.items()}
    if args.out:
        args.out.write_text(json.dumps({"sizes": sizes, "threads": args.threads, "found": found}, indent=1) + "\n")
        if "table" in found.get("sizes_ours", {}) and not args.quick:
            draw(found["sizes_ours"], args.out.with_suffix(".png"))
    print(table(found))


if __name__ == "__main__":
    main()
