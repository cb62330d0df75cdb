"""The plan beside published runs: what they took, what the plan says, and the error (`make plan-check`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from xreasoner.planning import work
from xreasoner.planning.lengths import SPREAD, Lengths
from xreasoner.planning.machine import Machine
from xreasoner.planning.shape import shape
from xreasoner.recipe import Recipe, RLStage, load_recipe

EASYR1 = "https://github.com/hiyouga/EasyR1/blob/main/assets/baselines.md"
PAPER = "arXiv 2505.03981"
SEQUENCES = 512 * 5
"""EasyR1's default step: 512 prompts with 5 rollouts each, in four updates."""


@dataclass(frozen=True, slots=True)
class Published:
    """One run. value and plan in the unit; assumed: what the source leaves open, and how it was set."""

    name: str
    source: str
    unit: str
    value: float
    plan: Callable[[], float]
    assumed: str

    @property
    def error(self) -> float:
        """(plan − published) / published."""
        return self.plan() / self.value - 1


def _machine(gpus: int, name: str) -> Machine:
    return Machine.of(gpus, gpu=name)


def _paper_sft(gpus: int) -> float:
    recipe = load_recipe("x-reasoner-7b")
    return _hours(recipe, 0, _machine(gpus, "A100 40GB"), None)


def _paper_rl() -> float:
    recipe = load_recipe("x-reasoner-7b")
    return _hours(recipe, 1, _machine(32, "A100 40GB"), 1300)


def _hours(recipe: Recipe, k: int, machine: Machine, mean: int | None) -> float:
    stage = recipe.stages[k]
    lengths = work.lengths_of(stage, mean)
    return sum(work.stage_seconds(shape(recipe.model), stage, machine, lengths).values()) / 3600


def _easyr1(model: str, gpu: str, tokens_per_second: float, seconds: float) -> Callable[[], float]:
    """Seconds of a step. Its tokens are the published rate times the published time."""

    def plan() -> float:
        machine = _machine(8, gpu)
        stage = _easyr1_stage()
        sequence = tokens_per_second * 8 * seconds / SEQUENCES
        limit = stage.thinking_budget + stage.answer_budget
        lengths = Lengths(sequence - min(300, stage.max_prompt), SPREAD, limit)
        seconds_by_part = work.stage_seconds(shape(model), stage, machine, lengths)
        return sum(value for part, value in seconds_by_part.items() if part != "weight sync")  # theirs stay in memory

    return plan


def _easyr1_stage() -> RLStage:
    """examples/config.yaml as an RL stage of one step; its vLLM runs on the trainer's GPUs, in turns with it."""
    fields = {
        **{"name": "rl", "kind": "rl", "prompt": "brief", "data": [{"source": "rows", "n": 2100}], "steps": 1},
        **{"prompts_per_step": 512, "group_size": 5, "minibatches": 4, "kl": 0.01, "precision": "bfloat16"},
        **{"batching": "packed", "activation_checkpointing": True, "chunk_tokens": 4 * 675, "max_prompt": 2048},
        **{"thinking_budget": 2000, "answer_budget": 48, "optimizer": {"lr": 1e-6, "weight_decay": 0.01}},
        "rollouts": {"urls": [f"http://gpu{k}/v1" for k in range(8)]},
    }
    stage = Recipe.model_validate({"name": "easyr1", "model": "tiny-base", "stages": [fields]}).stages[0]
    assert isinstance(stage, RLStage)
    return stage


_TOKENS = "tokens of a step are its rate × its time, prompts have 300; not counted: training the tower, offloading, "
_TOKENS += "validation and checkpoints every five steps"
_RUNS = (
    ("7B GRPO, 8 × H100 80GB, micro-batch 4", "Qwen/Qwen2.5-VL-7B-Instruct", "H100 80GB", 1200, 180),
    ("7B GRPO, 8 × H100 80GB, micro-batch 10", "Qwen/Qwen2.5-VL-7B-Instruct", "H100 80GB", 1400, 170),
    ("7B GRPO, 8 × L20 48GB", "Qwen/Qwen2.5-VL-7B-Instruct", "L20", 410, 580),
    ("3B GRPO, 8 × H100 80GB", "Qwen/Qwen2.5-VL-3B-Instruct", "H100 80GB", 1200, 180),
)

RUNS: tuple[Published, ...] = (
    Published(
        "X-Reasoner-7B SFT, 32 × A100 40GB (appendix)", PAPER, "h", 8.0, lambda: _paper_sft(32),
        "every example has the 4,096 tokens that it is cut at",
    ),
    Published(
        "X-Reasoner-7B SFT, 8 × A100 40GB (main text)", PAPER, "h", 8.0, lambda: _paper_sft(8),
        "the same; the two hardware statements exclude each other",
    ),
    Published(
        "X-Reasoner-7B RL, 32 × A100 40GB", PAPER, "h", 56.0, _paper_rl,
        "three passes, though it was stopped earlier; replies of 1,300 tokens; rollouts as in this trainer",
    ),
    *(
        Published(f"EasyR1 {name}", EASYR1, "s a step", float(seconds), _easyr1(model, gpu, rate, seconds), _TOKENS)
        for name, model, gpu, rate, seconds in _RUNS
    ),
)  # fmt: skip
"""verl itself publishes scores of Qwen2.5-VL-7B and no step times; EasyR1 is its branch for vision-language models."""


def told() -> str:
    """The table as Markdown."""
    rows = ["| run | source | published | plan | error | assumed |", "|---|---|---|---|---|---|"]
    for run in RUNS:
        value = run.plan()
        rows.append(
            f"| {run.name} | {run.source} | {run.value:g} {run.unit} | {value:.1f} {run.unit} "
            f"| {100 * (value / run.value - 1):+.0f} % | {run.assumed} |"
        )
    return "\n".join(rows)
