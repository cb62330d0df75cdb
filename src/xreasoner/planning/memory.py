"""Bytes on one GPU (or in one process on a CPU) by part, in each phase of a step; and a machine's main memory.

The largest sum of a phase is the peak. Formulas follow the trainer (docs/scale.md, "What is in memory when");
`make plan-check` prints them beside measured resident memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from xreasoner.planning.machine import GB, PER_NODE, Machine
from xreasoner.planning.shape import Shape
from xreasoner.recipe import RLStage, SFTStage

Stage = SFTStage | RLStage

PROMPT_TOKENS = 300
"""A question with its prompt and chat template, where the data are not there to be counted."""
LOGIT_BYTES = 12
"""Of one logit: in float32, its softmax, and copies in the type that is computed in."""
LEAST_ROWS = 128
"""Tokens whose logits are made at a time, at least."""
MOST_ROWS = 256
"""Replies that the engine in this process writes at a time; its cache takes half of the memory that is free."""
PARTS = 4
"""Calls of the model for the replies of a padded pass, after that for their prompts (`training.rl.PARTS`)."""
LAYERS_GATHERED = 3
"""Layers whose weights are whole on a GPU at once: the one that computes, the next one, and its receive buffer."""
PROCESS = 1.5 * GB
"""Main memory of one Python process with torch and its libraries."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of one number, by what it is.

    base: weights that do not train. computed: weights as they are multiplied with. stream: the residual stream.
    """

    base: int
    computed: int
    stream: int


def sizes(stage: Stage, machine: Machine) -> Sizes:
    """What a stage's precision means. One process computes under autocast, whose residual stream stays in float32;
    sharded models compute wholly in bfloat16."""
    half = stage.precision == "bfloat16"
    computed = 2 if half else 4
    base = 2 if stage.lora is not None and stage.lora.base_dtype == "bfloat16" else 4
    return Sizes(base=base, computed=computed, stream=computed if machine.gpus > 1 else 4)


def phases(found: Shape, stage: Stage, machine: Machine) -> dict[str, dict[str, float]]:
    """{phase: {part: bytes on one GPU}}."""
    standing = standing_parts(found, stage, machine)
    result = {
        "forward and backward": {**standing, **training_parts(found, stage, machine)},
        "optimizer step": {**standing, **update_parts(found, stage, machine)},
    }
    if isinstance(stage, RLStage) and stage.rollouts is None:
        result["rollouts"] = {**standing, **rollout_parts(found, stage, machine)}
    return result


def peak(memory: Mapping[str, Mapping[str, float]]) -> float:
    """The largest sum of a phase."""
    return max(sum(parts.values()) for parts in memory.values())


def largest_phase(memory: Mapping[str, Mapping[str, float]]) -> str:
    """The phase that needs the most."""
    return max(memory, key=lambda phase: sum(memory[phase].values()))


def standing_parts(found: Shape, stage: Stage, machine: Machine) -> dict[str, float]:
    """What is there in every phase. The vision tower is not: a text stage keeps it in a file."""
    ranks, trained, adapters = machine.gpus, trainable(found, stage), adapter_count(found, stage)
    base = sizes(stage, machine).base
    memory = {
        "weights": (base * found.text + 4 * adapters) / ranks,
        "optimizer states": 8 * trained / ranks,
    }
    if (stage.kl if isinstance(stage, RLStage) else stage.kl_to_base) > 0:
        memory["reference"] = base * found.text / ranks
    return memory


def training_parts(found: Shape, stage: Stage, machine: Machine) -> dict[str, float]:
    """What the forward and backward passes take besides: the most of the pass's beginning and end."""
    tokens, size = pass_tokens(stage), sizes(stage, machine)
    trained = trainable(found, stage)
    memory = {
        "gradients": 4 * trained / machine.gpus,
        "activations": activations(found, stage, machine, tokens),
        **copies(found, stage, machine),
    }
    turns = {
        "logits": LOGIT_BYTES * logits_at_once(found, machine, tokens)
        + (2 * found.vocab * found.hidden if size.computed < size.stream else 0)  # cast for the product with the slope
        + head_gradients(found, stage, machine),
        "one layer backward": layer_backward(found, stage, machine, tokens) + head_gradients(found, stage, machine) / 2,
    }
    largest = max(turns, key=lambda part: turns[part])
    memory[largest] = turns[largest]
    if machine.gpus > 1:
        memory["gradients being reduced"] = (size.computed + 4.0) * 2 * found.layer * (stage.lora is None)
    return memory


def copies(found: Shape, stage: Stage, machine: Machine) -> dict[str, float]:
    """Weights in the form that they are computed in, beside the ones that are kept."""
    size = sizes(stage, machine)
    if machine.gpus > 1:
        gathered = found.root + LAYERS_GATHERED * found.layer
        return {"gathered weights": float(size.computed * gathered)}
    if size.computed == 4:
        return {}
    if stage.lora is not None and size.base == 2:
        return {"bfloat16 copies": 2.0 * adapter_count(found, stage)}
    alone = stage.lora is not None and stage.activation_checkpointing  # frozen weights' copies go with the layer
    if alone:
        return {"bfloat16 copies": 2.0 * (found.layer + found.vocab * found.hidden)}
    calls = 1
    if isinstance(stage, RLStage) and stage.lora is not None and not packs(stage, machine):
        calls += min(PARTS, stage.group_size)  # autocast keeps a copy of frozen weights for every call
    return {"bfloat16 copies": 2.0 * found.computed * calls}


def update_parts(found: Shape, stage: Stage, machine: Machine) -> dict[str, float]:
    """What AdamW takes besides: gradients, and a temporary of the trained weights' size (on a CPU, of one tensor's)."""
    trained = trainable(found, stage)
    tensor = min(trained, max(found.embeddings, *(a * b for a, b in found.linear.values())))
    return {
        "gradients": 4 * trained / machine.gpus,
        "AdamW's temporaries": 8.0 * tensor if machine.cpu else 4 * trained / machine.gpus,
    }


def rollout_parts(found: Shape, stage: RLStage, machine: Machine) -> dict[str, float]:
    """What the engine in this process takes: the copy that it samples from, its cache, and the rows' logits."""
    rows = rows_at_once(stage, machine)
    return {
        "rollout copy": rollout_copy(found, stage, machine),
        "KV cache": cache_bytes(found, stage, machine),
        "logits": float(LOGIT_BYTES * rows * found.vocab),
    }


def rollout_copy(found: Shape, stage: RLStage, machine: Machine) -> float:
    """Bytes of the text weights that rollouts are sampled from, where the trainer's own do not serve: these are
    sharded, or of another type (`training.common.ready`)."""
    size = rollout_bytes(stage)
    if machine.gpus == 1 and size == sizes(stage, machine).base:
        return 0.0
    return float(size * (found.text + adapter_count(found, stage)))


def cache_bytes(found: Shape, stage: RLStage, machine: Machine) -> float:
    """Of the rows that run together, and no more than there is room for."""
    reply = float(rollout_bytes(stage) * found.kv * longest(stage))
    return max(0.0, min(reply * rows_at_once(stage, machine), cache_room(found, stage, machine)))


def cache_room(found: Shape, stage: RLStage, machine: Machine) -> float:
    """What the engine's cache may take; less than 0 where the rest does not fit.

    The engine takes half of what is free when it is made, which is before AdamW's moments are.
    """
    standing, copied = standing_parts(found, stage, machine), rollout_copy(found, stage, machine)
    left = machine.usable - sum(standing.values()) - copied
    return min((left + standing["optimizer states"]) / 2, left)


def rollout_bytes(stage: RLStage) -> int:
    """Bytes of a number in what rollouts are computed in, here or on servers."""
    halved = stage.lora is not None and stage.lora.base_dtype == "bfloat16"
    return 2 if stage.rollouts_in_bfloat16 or halved else 4


def sync_bytes(found: Shape, stage: RLStage) -> float:
    """Bytes of the weights that all ranks put together after each step."""
    return 4.0 * (found.text if stage.lora is None else adapter_count(found, stage))


def rows_at_once(stage: RLStage, machine: Machine) -> int:
    """Replies that one GPU writes at a time, where its cache has room for them."""
    return min(MOST_ROWS, -(-stage.prompts_per_step * stage.group_size // machine.gpus))


def trainable(found: Shape, stage: Stage) -> int:
    """Parameters that the optimizer holds."""
    if stage.lora is not None:
        return adapter_count(found, stage)
    frozen = stage.lower_layers_frozen * found.layer + stage.embeddings_frozen * found.embeddings
    return found.text - frozen


def adapter_count(found: Shape, stage: Stage) -> int:
    """Parameters of the LoRA adapters."""
    if stage.lora is None:
        return 0
    widths = [sum(found.linear[target]) for target in stage.lora.targets if target in found.linear]
    return found.layers * stage.lora.rank * sum(widths)


def activations(found: Shape, stage: Stage, machine: Machine, tokens: int) -> float:
    """Bytes that autograd keeps of `tokens` tokens until the backward pass; of a checkpointed layer, its input."""
    stream = sizes(stage, machine).stream
    kept = float(stream * found.hidden) if stage.activation_checkpointing else kept_of_layer(found, stage, machine)
    last = 4 * stream * found.hidden  # the last norm and its result
    return tokens * (found.layers * kept + last)


def layer_backward(found: Shape, stage: Stage, machine: Machine, tokens: int) -> float:
    """Bytes of one layer's gradients on their way back, and of its activations where they are computed again."""
    size = sizes(stage, machine)
    again = kept_of_layer(found, stage, machine) if stage.activation_checkpointing else 0.0
    autocast = size.computed < size.stream
    # adapters are float32: under autocast their inputs and gradients are cast
    wide = 16 if stage.lora is not None and autocast else 3 * size.computed
    return tokens * (again + wide * found.intermediate + 2 * size.stream * found.hidden)


def kept_of_layer(found: Shape, stage: Stage, machine: Machine) -> float:
    """Bytes that autograd keeps of one token in one layer, counted with saved-tensor hooks (tests compare).

    Autocast keeps float32 and bfloat16 forms of what a sharded model has in bfloat16 alone. Under LoRA the norms'
    weights need no input, and each adapter's small product is kept. On a CPU packed documents go through attention one
    by one, and their results are put together in a copy.
    """
    size, wide, query = sizes(stage, machine), found.hidden, found.query
    if size.computed == 4:
        kept = 4 * (6 * wide + 2 * query + 2 * found.key + 4 * found.intermediate + found.heads + 2)
        norms = 8 * wide
    else:
        autocast = size.stream == 4
        kept = (24 if autocast else 16) * wide + (6 if autocast else 4) * query
        kept += 4 * found.key + 8 * found.intermediate + 4 * found.heads + 8
        norms = (6 if autocast else 4) * wide
    if machine.cpu and packs(stage, machine):
        kept += size.computed * query
    if isinstance(stage, RLStage) and not packs(stage, machine):
        # a prompt's keys and values are put before each reply's, and repeated for the heads that share them
        kept += 2 * size.computed * (query + found.key)
    if stage.lora is not None:
        kept += size.computed * stage.lora.rank * len(stage.lora.targets) - norms
    return float(kept)


def packs(stage: Stage, machine: Machine) -> bool:
    """Whether batches are packed rows (`training.common.packs`)."""
    if stage.batching != "auto":
        return stage.batching == "packed"
    return not machine.cpu or (isinstance(stage, RLStage) and stage.activation_checkpointing)


def logits_at_once(found: Shape, machine: Machine, tokens: int) -> int:
    """Logits that exist at a time (`training.common.Learner.most_logits`)."""
    return min(max(machine.logits, LEAST_ROWS * found.vocab), tokens * found.vocab)


def head_gradients(found: Shape, stage: Stage, machine: Machine) -> float:
    """Bytes of the output weights' gradient, made beside the logits, and of its product with the loss's slope."""
    moved = stage.lora is None and not (stage.embeddings_frozen and found.head == 0)
    size = sizes(stage, machine).computed if machine.gpus > 1 else 4
    return 2.0 * size * found.vocab * found.hidden * moved


def longest(stage: Stage) -> int:
    """The most tokens of one text."""
    if isinstance(stage, SFTStage):
        return stage.max_length
    return min(PROMPT_TOKENS, stage.max_prompt) + stage.thinking_budget + stage.answer_budget


def pass_tokens(stage: Stage) -> int:
    """The most tokens of one forward pass: the recipe's, but no less than what cannot be split."""
    return max(stage.chunk_tokens, longest(stage))


# ---- main memory


def host_memory(found: Shape, stage: Stage, machine: Machine) -> dict[str, float]:
    """Bytes in the main memory of the machine with rank 0 by part.

    Rank 0 reads the weights and keeps them for the export; the other ranks get their shards from it. A CPU's training
    comes on top. Pages of mapped files (the vision tower) are the operating system's to drop.
    """
    ranks = min(machine.gpus, PER_NODE)
    whole = float(sizes(stage, machine).base * found.text + 4 * adapter_count(found, stage))
    memory = {"processes": PROCESS * ranks}
    if machine.cpu:
        return (
            memory
            | {"training": ranks * peak(phases(found, stage, machine))}
            | ({"rank 0's copy": whole} if ranks > 1 else {})
        )
    if machine.gpus > 1:
        memory["rank 0's copy"] = whole
    else:
        memory["weights being loaded"] = whole
    if isinstance(stage, RLStage) and stage.rollouts is not None:
        memory["weights for servers"] = float(rollout_bytes(stage) * found.text)
    return memory
