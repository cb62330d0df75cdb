"""What a stage does and how long it takes: tokens, FLOPs, bytes exchanged, and seconds by what they are spent on."""

from __future__ import annotations

import math

import numpy as np

from xreasoner.planning import memory
from xreasoner.planning.lengths import POINTS, SPREAD, Array, Lengths
from xreasoner.planning.machine import READING, Machine
from xreasoner.planning.memory import PROMPT_TOKENS, Stage
from xreasoner.planning.shape import Shape
from xreasoner.recipe import Recipe, RLStage, SFTStage

DISK = 1e9
"""Bytes a second that a shared file system writes or reads: weights go to rollout servers through files."""
LAUNCHES = 2e-4
"""Seconds for each layer of a decoding step in the engine of this process, which its operators take to be started."""
GPU_SHARE = 0.9
"""Share of its GPU's memory that a rollout server takes (vLLM's default)."""
ADAMW_BYTES = 28
"""Read and written for each trained weight by one update: weight, gradient and both moments."""


def limit_of(stage: Stage) -> tuple[int, str]:
    """The most tokens of an example or a reply, and the fields that say so."""
    if isinstance(stage, SFTStage):
        return stage.max_length, "max_length"
    return stage.thinking_budget + stage.answer_budget, "thinking_budget + answer_budget"


def lengths_of(stage: Stage, mean: int | None = None, spread: float = SPREAD) -> Lengths:
    """The lengths of a stage's examples or replies; without a mean all have the limit."""
    limit, _ = limit_of(stage)
    return Lengths(min(mean or limit, limit), spread, limit)


def count_tokens(stage: Stage, lengths: Lengths) -> dict[str, float]:
    """Tokens by what they are for. A packed reply has a prompt of its own; padded ones of a group share it."""
    if isinstance(stage, SFTStage):
        return {"trained": stage.epochs * sum(entry.n for entry in stage.data) * lengths.mean}
    replies = float(stage.steps * stage.prompts_per_step * stage.group_size)
    prompt = _prompt(stage) / (stage.group_size if stage.batching == "padded" else 1)
    return {"sampled": replies * lengths.mean, "trained": replies * (lengths.mean + prompt)}


def forward_flops(found: Shape, lengths: Lengths) -> float:
    """FLOPs of one token on the way forward: 2 a weight, and attention to half of its text on average."""
    return 2 * found.computed + 2 * found.layers * found.query * lengths.square_over_mean


def passes_of_token(stage: Stage) -> dict[str, float]:
    """How many forward passes' FLOPs each trained token costs, by purpose.

    Backward: 2, or 1 where the weights themselves get no gradient (LoRA).
    """
    backward = 1.0 if stage.lora is not None else 2.0
    found = {"training": 1 + backward + stage.activation_checkpointing}
    if (stage.kl if isinstance(stage, RLStage) else stage.kl_to_base) > 0:
        found["reference"] = 1.0
    if isinstance(stage, RLStage) and stage.recomputes_old_logprobs:
        found["old log-probabilities"] = 1.0
    return found


def training_flops(found: Shape, stage: Stage, lengths: Lengths) -> float:
    """FLOPs of all that the trainer computes in a stage."""
    tokens = count_tokens(stage, lengths)["trained"]
    return tokens * forward_flops(found, lengths) * sum(passes_of_token(stage).values())


def update_count(stage: Stage) -> float:
    """Optimizer steps of a stage."""
    if isinstance(stage, RLStage):
        return stage.steps * stage.minibatches
    return max(1, round(stage.epochs * math.ceil(sum(entry.n for entry in stage.data) / stage.batch_examples)))


def stage_seconds(found: Shape, stage: Stage, machine: Machine, lengths: Lengths) -> dict[str, float]:
    """Wall-clock seconds of a stage by what they are spent on, one after the other."""
    computing = training_flops(found, stage, lengths) / (machine.gpus * machine.flops * machine.utilization)
    moved = ADAMW_BYTES * memory.trainable(found, stage) / machine.gpus / (machine.bandwidth * READING)
    seconds = {"training": computing + update_count(stage) * moved}
    if machine.gpus > 1:
        seconds["communication"] = exposed_seconds(found, stage, machine, lengths, computing)
    if isinstance(stage, RLStage):
        rolling = rollout_seconds(found, stage, machine, lengths)
        if stage.rollouts is not None and stage.rollouts.max_staleness > 0:  # while the step before it trains
            rolling = max(rolling / stage.steps, rolling - sum(seconds.values()))
        seconds["rollouts"] = rolling
        syncing = sync_seconds(found, stage, machine)
        if syncing > 0:
            seconds["weight sync"] = syncing
    return seconds


def exposed_seconds(found: Shape, stage: Stage, machine: Machine, lengths: Lengths, computing: float) -> float:
    """Seconds of exchanging that computation does not hide.

    Layers are gathered and reduced while others compute; embeddings, output weights and the last norm have nothing
    beside them.
    """
    total, alone = exchange_seconds(found, stage, machine, lengths)
    return max(total - computing, alone)


def exchange_seconds(found: Shape, stage: Stage, machine: Machine, lengths: Lengths) -> tuple[float, float]:
    """Seconds of a stage's all-gathers and reduce-scatters, and of those outside the layers.

    Every pass gathers a layer on the way forward and back again, and reduces its gradient in float32.
    """
    passes = update_count(stage) * passes_of_update(stage, machine, lengths)
    size = memory.sizes(stage, machine).computed
    more = len(passes_of_token(stage)) - 1  # without a way back
    trained = memory.trainable(found, stage)
    layers = found.layers * found.layer
    outside = min(trained, found.root) if stage.lora is None and not stage.embeddings_frozen else 0
    gathered = size * (layers * (2 + more) + found.root * (1 + more))
    total = passes * machine.exchange_seconds(gathered + 4 * trained)
    return total, passes * machine.exchange_seconds(size * found.root * (1 + more) + 4 * outside)


def passes_of_update(stage: Stage, machine: Machine, lengths: Lengths) -> int:
    """Forward passes that each rank makes for one optimizer step."""
    tokens = count_tokens(stage, lengths)["trained"] / update_count(stage) / machine.gpus
    return max(1, math.ceil(tokens / memory.pass_tokens(stage)))


def sync_seconds(found: Shape, stage: RLStage, machine: Machine) -> float:
    """Seconds in which the engine or the servers get each step's weights."""
    size = memory.sync_bytes(found, stage)
    gathering = machine.exchange_seconds(size)
    if stage.rollouts is not None:  # written once, read by all servers at the same time
        gathering += 2 * memory.rollout_bytes(stage) * (found.text + found.vision) / DISK
    return stage.steps * gathering


def rollout_seconds(found: Shape, stage: RLStage, machine: Machine, lengths: Lengths) -> float:
    """Seconds of all rollouts: a step's end with the longest reply of all GPUs."""
    replies = stage.prompts_per_step * stage.group_size
    gpus = machine.gpus if stage.rollouts is None else len(stage.rollouts.urls)
    share = -(-replies // gpus)
    size = memory.rollout_bytes(stage)
    rows = max(1, min(share, rollout_rows(found, stage, machine, lengths)))
    seconds = decode_seconds(
        found, machine, lengths, share, rows, size, lengths.expected_longest(replies), stage.rollouts is None
    )
    prompts = -(-stage.prompts_per_step // gpus) * _prompt(stage)
    return stage.steps * (seconds + prompts * 2 * found.computed / (machine.flops * machine.utilization))


def rollout_rows(found: Shape, stage: RLStage, machine: Machine, lengths: Lengths) -> int:
    """Replies that one GPU's cache holds at a time; 0 or less where it has no room."""
    size = memory.rollout_bytes(stage)
    if stage.rollouts is None:
        room = memory.cache_room(found, stage, machine)
        return min(memory.MOST_ROWS, int(room / (size * found.kv * memory.longest(stage))))
    room = server_room(found, machine)
    return int(room / (size * found.kv * (_prompt(stage) + lengths.mean)))


def server_room(found: Shape, machine: Machine) -> float:
    """Bytes that a rollout server has for its cache."""
    return machine.memory * GPU_SHARE - 2.0 * (found.text + found.vision)


def decode_seconds(
    found: Shape,
    machine: Machine,
    lengths: Lengths,
    replies: int,
    rows: int,
    size: float,
    until: float,
    in_process: bool,
) -> float:
    """Seconds in which one GPU writes replies.

    Each step reads the weights and the live cache, or multiplies, whichever takes longer. While replies wait, all
    places are taken; then they end one by one.

    Args:
        found: the model's sizes.
        machine: whose rates count.
        lengths: of the replies.
        replies: how many.
        rows: how many at a time.
        size: bytes of a weight and of a number in the cache.
        until: tokens of the last reply to end.
        in_process: by the engine in this process, which starts every operator from Python.

    Returns:
        The seconds.
    """
    weights = size * (found.text - (found.embeddings if found.head else 0))

    def step(active: Array, length: Array) -> Array:
        reading = (weights + size * found.kv * active * (PROMPT_TOKENS + length)) / (machine.bandwidth * READING)
        computing = 2 * found.computed * active / (machine.flops * machine.utilization)
        starting = LAUNCHES * found.layers if in_process else 0.0
        slower: Array = np.maximum(reading, computing) + starting
        return slower

    full = step(np.array([float(rows)]), np.array([lengths.mean / 2]))[0]
    waiting = max(0, replies - rows) * lengths.mean / rows * full
    grid = np.linspace(0, until, POINTS)
    active = np.maximum(1.0, rows * lengths.longer_than(grid))
    return float(waiting + np.trapezoid(step(active, grid), grid))


def evaluation_work(recipe: Recipe, mean: int | None = None, spread: float = SPREAD) -> tuple[int, Lengths]:
    """Replies that the recipe's evaluation asks for in all (of the base and of every stage), and their lengths."""
    from xreasoner.benchmarks.table import TABLE

    settings = recipe.evaluation
    items = 0
    for name in settings.names:
        count = TABLE[name].count if name in TABLE else None
        known = count if isinstance(count, int) else max(count) if count else settings.n
        items += min(settings.n, known)
    limit = settings.thinking_budget + settings.answer_budget
    return items * (1 + len(recipe.stages)), Lengths(min(mean or limit, limit), spread, limit)


def evaluation_seconds(
    found: Shape, recipe: Recipe, machine: Machine, mean: int | None = None, spread: float = SPREAD
) -> float:
    """Seconds of all measurements, which rank 0 makes on one GPU in bfloat16."""
    replies, lengths = evaluation_work(recipe, mean, spread)
    if replies == 0:
        return 0.0
    room = (machine.usable - 2.0 * (found.text + found.vision)) / 2
    rows = max(1, min(memory.MOST_ROWS, int(room / (2 * found.kv * (PROMPT_TOKENS + lengths.limit)))))
    until = lengths.expected_longest(replies)
    return decode_seconds(found, machine, lengths, replies, min(rows, replies), 2, until, in_process=True)


def _prompt(stage: RLStage) -> int:
    return min(PROMPT_TOKENS, stage.max_prompt)
