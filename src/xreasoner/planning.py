"""What a recipe needs before it is run: memory by part, tokens, FLOPs, hours and cost, and what would not fit.

Parameters are counted on the meta device, so they are exact. Memory follows the trainer as it is: float32 weights,
gradients and moments, sharded over the cards; bfloat16 copies of what is computed with; what autograd keeps of a
layer, as counted with saved-tensor hooks. Time is FLOPs and bytes over the card's data sheet times a utilisation, and
therefore an estimate: nothing is measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from xreasoner.errors import CheckpointError, RecipeError, UserError
from xreasoner.recipe import Recipe, RLStage, Servers, SFTStage
from xreasoner.registry import nearest

GB = 1e9
PROMPT_TOKENS = 300
"""A question with its prompt and chat template, where the data are not there to be counted."""
RESERVE = 0.08
"""Share of a card's memory that the driver, the kernels' workspaces and fragmentation take."""
UTILISATION = 0.4
"""Share of the data sheet's rate that a well-run dense trainer reaches."""
LOGIT_BYTES = 12
"""Of one logit: in float32, its softmax, and copies in the type that is computed in."""
MOST_ROWS = 256
"""Replies that the engine in this process writes at a time; its cache takes half of the memory that is free."""

CARDS: dict[int, tuple[str, float, float]] = {
    24: ("RTX 4090", 165e12, 1.01e12),
    40: ("A100 40GB", 312e12, 1.56e12),
    48: ("L40S", 362e12, 0.86e12),
    80: ("H100 80GB", 989e12, 3.35e12),
    141: ("H200", 989e12, 4.8e12),
}
"""Memory in GB → name, dense bfloat16 FLOP/s, memory's bytes a second, from the makers' data sheets."""

_VISION: dict[str, Any] = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
_VISION |= {"patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]}
_VISION_3: dict[str, Any] = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "patch_size": 16,
}
_VISION_3 |= {"num_position_embeddings": 2304, "deepstack_visual_indexes": [5, 11, 17]}
PUBLIC: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": {
        "model_type": "qwen2_5_vl",
        "tie_word_embeddings": True,
        "text_config": {
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
        "vision_config": {**_VISION, "out_hidden_size": 2048},
    },
    "Qwen/Qwen2.5-VL-7B-Instruct": {
        "model_type": "qwen2_5_vl",
        "tie_word_embeddings": False,
        "text_config": {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "tie_word_embeddings": False,
        },
        "vision_config": {**_VISION, "out_hidden_size": 3584},
    },
    "Qwen/Qwen3-VL-4B-Instruct": {
        "model_type": "qwen3_vl",
        "tie_word_embeddings": True,
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
        "vision_config": {**_VISION_3, "out_hidden_size": 2560},
    },
}
"""The public configurations of the shipped recipes' models, so that a plan needs no network."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's sizes. Counts are parameters; linear: {a layer's linear: (inputs, outputs)}."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    query: int
    key: int
    vocab: int
    layer: int
    embeddings: int
    head: int
    norm: int
    vision: int
    linear: Mapping[str, tuple[int, int]]

    @property
    def text(self) -> int:
        """Everything but the vision tower and its merger."""
        return self.layers * self.layer + self.embeddings + self.head + self.norm

    @property
    def computed(self) -> int:
        """Parameters that each token is multiplied with, output weights included."""
        return self.layers * sum(a * b for a, b in self.linear.values()) + self.vocab * self.hidden

    @property
    def kv(self) -> int:
        """Numbers that one token leaves in the cache."""
        return 2 * self.layers * self.key


@lru_cache(maxsize=8)
def shape(model: str) -> Shape:
    """The sizes of a model by registered name, folder or hub id, counted on the meta device."""
    import torch
    from transformers import AutoModelForImageTextToText

    config = _config(model)
    with torch.device("meta"):
        built = AutoModelForImageTextToText.from_config(config)
    text, language = config.text_config, built.model.language_model
    counts = {name: parameter.numel() for name, parameter in built.named_parameters()}
    linear = {
        name.rpartition(".")[2]: (module.in_features, module.out_features)
        for name, module in language.layers[0].named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    vision = sum(count for name, count in counts.items() if "visual." in name)
    head = sum(count for name, count in counts.items() if name.startswith("lm_head."))
    layer = sum(parameter.numel() for parameter in language.layers[0].parameters())
    embeddings = language.embed_tokens.weight.numel()
    return Shape(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        heads=text.num_attention_heads,
        query=linear["q_proj"][1],
        key=linear["k_proj"][1],
        vocab=text.vocab_size,
        layer=layer,
        embeddings=embeddings,
        head=head,
        norm=sum(counts.values()) - vision - head - embeddings - layer * text.num_hidden_layers,
        vision=vision,
        linear=linear,
    )


def _config(model: str) -> Any:
    from transformers import AutoConfig

    from xreasoner.models.loading import find

    if model in PUBLIC:
        settings = dict(PUBLIC[model])
        return AutoConfig.for_model(settings.pop("model_type"), **settings)
    try:
        return AutoConfig.from_pretrained(find(model))
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise CheckpointError(f"model {model!r}: its configuration cannot be read: {error}") from None


@dataclass(frozen=True, slots=True)
class Machine:
    """The cards. memory: bytes of each; flops: bfloat16 a second; bandwidth: bytes a second; price: of an hour each.

    logits: how many exist at a time (`training.common.MOST_LOGITS`).
    """

    gpus: int
    memory: float
    name: str
    flops: float
    bandwidth: float
    price: float | None = None
    logits: int = 2**28

    @classmethod
    def of(cls, gpus: int, memory: str, price: float | None = None) -> Machine:
        """From "40GB". The rates are those of the card with the nearest memory."""
        number = memory.upper().removesuffix("IB").removesuffix("B").removesuffix("G")
        try:
            size = float(number)
        except ValueError:
            size = 0.0
        if not 0 < size < math.inf:
            raise UserError(f"--memory {memory!r}: expected a card's memory such as 40GB")
        name, flops, bandwidth = CARDS[min(CARDS, key=lambda known: abs(known - size))]
        return cls(gpus, size * GB, name, flops, bandwidth, price)


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage. memory: bytes on one card by part; peak: their largest sum at one time; tokens and flops in all.

    hours: wall-clock, of training and of rollouts. mends: `--set` changes, or a number of cards, that make it fit;
    None where nothing known does, () where it fits.
    """

    stage: str
    kind: str
    memory: Mapping[str, float]
    peak: float
    tokens: Mapping[str, float]
    flops: float
    hours: Mapping[str, float]
    cost: float | None
    mends: tuple[str, ...] | None


Stage = SFTStage | RLStage


def plan(recipe: Recipe, machine: Machine, length: int | None = None) -> list[StagePlan]:
    """Every stage's plan. length: mean tokens of an example or a reply; the stage's own limits when left out."""
    check_layers(recipe)
    return [plan_stage(recipe, stage, machine, length) for stage in recipe.stages]


def check_layers(recipe: Recipe) -> None:
    """Raise `RecipeError` for a stage that freezes or adapts layers which the model does not have.

    The stage itself would refuse it too, after those before it have been trained.
    """
    for stage in recipe.stages:
        if stage.lower_layers_frozen or stage.lora:
            found = shape(recipe.model)
            if stage.lower_layers_frozen >= found.layers:
                raise RecipeError(
                    f"stages.{stage.name}.lower_layers_frozen: found {stage.lower_layers_frozen}, expected less than "
                    f"the model's {found.layers} layers"
                )
            for target in stage.lora.targets if stage.lora else ():
                if target not in found.linear:
                    known = nearest(target, found.linear)
                    raise RecipeError(f"stages.{stage.name}.lora.targets: no linear layer is named {target!r}; {known}")


def plan_stage(recipe: Recipe, stage: Stage, machine: Machine, length: int | None = None) -> StagePlan:
    found = shape(recipe.model)
    memory = parts(found, stage, machine)
    tokens, flops = work(found, stage, length)
    hours = {"training": flops / (machine.gpus * machine.flops * UTILISATION) / 3600}
    if isinstance(stage, RLStage):
        hours["rollouts"] = _rollout_seconds(found, stage, machine, length) / 3600
    cost = None if machine.price is None else sum(hours.values()) * machine.gpus * machine.price
    largest = peak(memory)
    mends = () if _fits(largest, machine) else _mend(found, stage, machine)
    return StagePlan(stage.name, stage.kind, memory, largest, tokens, flops, hours, cost, mends)


# ---- memory


def parts(found: Shape, stage: Stage, machine: Machine) -> dict[str, float]:
    """Bytes on one card by part."""
    sharded, half = machine.gpus, stage.precision == "bfloat16"
    trained, tokens = trainable(found, stage), pass_tokens(stage)
    memory = {
        "weights": 4 * (found.text + _adapters(found, stage)) / sharded + 4 * found.vision,
        "gradients": 4 * trained / sharded,
        "optimiser": 8 * trained / sharded,
        "activations": activations(found, stage, tokens),
        "one layer back": backward(found, stage, tokens),
        "logits": LOGIT_BYTES * min(machine.logits, tokens * found.vocab) + _head_slope(found, stage),
    }
    if sharded > 1:  # gathered: the embeddings and output weights, and two layers
        memory["gathered weights"] = (2 if half else 4) * (found.embeddings + found.head + found.norm + 2 * found.layer)
        if isinstance(stage, RLStage) and stage.rollouts is None:  # which the engine in the process samples from
            memory["whole copy"] = 4.0 * (found.text + found.vision)
    elif half:
        alone = stage.lora is not None and stage.activation_checkpointing  # frozen weights' copies go with the layer
        memory["bfloat16 copies"] = 2.0 * (found.layer + found.vocab * found.hidden if alone else found.computed)
    if (stage.kl if isinstance(stage, RLStage) else stage.kl_to_base) > 0:
        memory["reference"] = 4 * found.text / sharded + 4 * found.vision
    if isinstance(stage, RLStage) and stage.rollouts is None:
        standing = sum(memory[part] for part in ("weights", "optimiser", "whole copy", "reference") if part in memory)
        rows, reply = _rows(stage, machine), 4.0 * found.kv * _longest(stage)
        room = (machine.memory * (1 - RESERVE) - standing) / 2
        memory["KV cache"] = max(reply * min(stage.group_size, rows), min(reply * rows, room))
    return memory


def peak(memory: Mapping[str, float]) -> float:
    """The largest sum at one time: rollouts and training take turns, and so do the logits and the way back."""
    training = ("gradients", "activations", "gathered weights", "bfloat16 copies")
    turns = ("KV cache", "one layer back", "logits")
    standing = sum(size for part, size in memory.items() if part not in (*training, *turns))
    training_size = sum(memory.get(part, 0.0) for part in training) + max(memory["one layer back"], memory["logits"])
    return standing + max(training_size, memory.get("KV cache", 0.0))


def trainable(found: Shape, stage: Stage) -> int:
    """Parameters that the optimiser holds."""
    if stage.lora is not None:
        return _adapters(found, stage)
    frozen = stage.lower_layers_frozen * found.layer + stage.embeddings_frozen * found.embeddings
    return found.text - frozen


def _adapters(found: Shape, stage: Stage) -> int:
    if stage.lora is None:
        return 0
    sizes = [sum(found.linear[target]) for target in stage.lora.targets if target in found.linear]
    return found.layers * stage.lora.rank * sum(sizes)


def activations(found: Shape, stage: Stage, tokens: int) -> float:
    """Bytes that autograd keeps of `tokens` tokens until the backward pass; of a checkpointed layer, its input."""
    kept = 4 * found.hidden if stage.activation_checkpointing else kept_of_layer(found, stage.precision == "bfloat16")
    return found.layers * tokens * kept


def backward(found: Shape, stage: Stage, tokens: int) -> float:
    """Bytes of one layer's gradients on their way back, and of its activations where they are computed again."""
    half = stage.precision == "bfloat16"
    again = kept_of_layer(found, half) if stage.activation_checkpointing else 0.0
    return tokens * (again + (2 if half else 4) * 3 * found.intermediate)


def kept_of_layer(found: Shape, half: bool) -> float:
    """Bytes that autograd keeps of one token in one layer, counted with saved-tensor hooks (tests compare)."""
    if half:
        wide = 24 * found.hidden + 6 * found.query
        return wide + 4 * found.key + 8 * found.intermediate + 4 * found.heads + 8
    wide = 6 * found.hidden + 2 * found.query
    return 4.0 * (wide + 2 * found.key + 4 * found.intermediate + found.heads + 2)


def _longest(stage: Stage) -> int:
    if isinstance(stage, SFTStage):
        return stage.max_length
    return PROMPT_TOKENS + stage.thinking_budget + stage.answer_budget


def pass_tokens(stage: Stage) -> int:
    """The most tokens of one forward pass: the recipe's, but no less than what cannot be parted."""
    if isinstance(stage, SFTStage):
        return max(stage.chunk_tokens, stage.max_length)
    packed = stage.batching == "packed" or stage.activation_checkpointing
    replies = stage.group_size * (_longest(stage) if packed else _longest(stage) - PROMPT_TOKENS)
    return max(stage.chunk_tokens, replies + (0 if packed else PROMPT_TOKENS))


def _rows(stage: RLStage, machine: Machine) -> int:
    """Replies that one card writes at a time, where its cache has room for them."""
    return min(MOST_ROWS, -(-stage.prompts_per_step * stage.group_size // machine.gpus))


def _head_slope(found: Shape, stage: Stage) -> float:
    """Bytes of the output weights' gradient, which is made beside the logits."""
    moved = stage.lora is None and not (stage.embeddings_frozen and found.head == 0)
    return 4.0 * found.vocab * found.hidden * moved


def _fits(size: float, machine: Machine) -> bool:
    return size <= machine.memory * (1 - RESERVE)


def _mend(found: Shape, stage: Stage, machine: Machine) -> tuple[str, ...] | None:
    """The fewest known changes, cheapest first, that make a stage fit."""
    taken: list[tuple[str, Stage, Machine]] = []
    now, cards = stage, machine
    for name, changed, machines in _changes(stage, machine):
        now, cards = now.model_copy(update=changed), machines or cards
        taken.append((name, now, cards))
        if _fits(peak(parts(found, now, cards)), cards):
            return _needed(found, stage, machine, [name for name, _, _ in taken])
    return None


def _changes(stage: Stage, machine: Machine) -> Iterator[tuple[str, dict[str, Any], Machine | None]]:
    where = f"--set stages.{stage.name}"
    if stage.precision == "float32":
        yield f"{where}.precision=bfloat16", {"precision": "bfloat16"}, None
    if not stage.activation_checkpointing:
        changed = {"activation_checkpointing": True} | ({"batching": "packed"} if stage.kind == "rl" else {})
        yield " ".join(f"{where}.{k}={str(v).lower()}" for k, v in changed.items()), changed, None
    least = pass_tokens(stage.model_copy(update={"chunk_tokens": 1}))
    if stage.chunk_tokens > least:
        yield f"{where}.chunk_tokens={least}", {"chunk_tokens": least}, None
    if isinstance(stage, RLStage) and stage.rollouts is None:
        address = "http://HOST:8000/v1"  # of `vllm serve` on another card
        yield (
            f"{where}.rollouts='{{urls: [\"{address}\"]}}'",
            {"rollouts": Servers.model_validate({"urls": [address]})},
            None,
        )
    for gpus in (machine.gpus * 2**k for k in range(1, 6)):
        yield f"--gpus {gpus}", {}, replace(machine, gpus=gpus)


def _needed(found: Shape, stage: Stage, machine: Machine, names: list[str]) -> tuple[str, ...]:
    """The changes without those that are not needed."""
    changes = [change for change in _changes(stage, machine) if change[0] in names]
    for change in [c for c in changes if c[2] is None] + [c for c in changes if c[2] is not None][:-1]:
        rest = [c for c in changes if c is not change]
        now, cards = stage, machine
        for _, changed, machines in rest:
            now, cards = now.model_copy(update=changed), machines or cards
        if _fits(peak(parts(found, now, cards)), cards):
            changes = rest
    return tuple(name for name, _, _ in changes)


# ---- work


def work(found: Shape, stage: Stage, length: int | None = None) -> tuple[dict[str, float], float]:
    """Tokens by what they are for, and the FLOPs of training."""
    if isinstance(stage, SFTStage):
        mean = min(length or stage.max_length, stage.max_length)
        tokens = {"trained": stage.epochs * sum(entry.n for entry in stage.data) * mean}
        return tokens, tokens["trained"] * _token_flops(found, stage, mean)
    mean = min(length or 10**9, stage.thinking_budget + stage.answer_budget)
    replies = float(stage.steps * stage.prompts_per_step * stage.group_size)
    tokens = {"sampled": replies * mean, "trained": replies * (mean + PROMPT_TOKENS / stage.group_size)}
    reference = 1 / 3 if stage.kl > 0 else 0
    return tokens, tokens["trained"] * _token_flops(found, stage, mean) * (1 + reference)


def _token_flops(found: Shape, stage: Stage, mean: float) -> float:
    """FLOPs of one token: 2 a parameter forward, 4 backward (2 without the weights' gradients), and attention."""
    forward = 2 * found.computed + 2 * found.layers * found.query * mean
    backward = forward if stage.lora is not None else 2 * forward
    return forward * (2 if stage.activation_checkpointing else 1) + backward


def _rollout_seconds(found: Shape, stage: RLStage, machine: Machine, length: int | None) -> float:
    """Decoding reads the weights and the live cache for each token: bytes over bandwidth, for every round of rows.

    In this process in float32; on servers in bfloat16, one card each of the same kind.
    """
    mean = min(length or 10**9, stage.thinking_budget + stage.answer_budget)
    cards, size = (machine.gpus, 4.0) if stage.rollouts is None else (len(stage.rollouts.urls), 2.0)
    share = -(-stage.prompts_per_step * stage.group_size // cards)
    weights = size * (found.text - (found.embeddings if found.head else 0))
    room = machine.memory * (1 - RESERVE) - weights if stage.rollouts else parts(found, stage, machine)["KV cache"]
    rows = min(share, max(1, int(room / (size * found.kv * _longest(stage)))))
    reading = (weights + size * found.kv * rows * (PROMPT_TOKENS + mean / 2)) / machine.bandwidth
    return stage.steps * mean * reading * -(-share // rows) / UTILISATION


# ---- telling


def told(plans: list[StagePlan], recipe: Recipe, machine: Machine, length: int | None) -> str:
    """The plan as text, with its assumptions."""
    found = shape(recipe.model)
    total = found.text + found.vision
    cards = f"{machine.gpus} × {machine.name} ({machine.memory / GB:.0f} GB)"
    lines = [
        f"{recipe.name}: {recipe.model}, {total:,} parameters "
        f"({found.text:,} language model, {found.vision:,} vision tower, frozen) on {cards}"
    ]
    for each in plans:
        lines += _stage_lines(each, machine)
    mean = f"{length:,} tokens" if length else "the recipe's limits, so the work is an upper bound (--length)"
    rates = f"{machine.name}'s {machine.flops / 1e12:.0f} TFLOP/s and {machine.bandwidth / 1e12:.2f} TB/s"
    lines.append(
        f"\nAn estimate, not measured. Assumed: mean length {mean}; {100 * UTILISATION:.0f} % of {rates}; "
        f"{100 * RESERVE:.0f} % of the memory kept free."
    )
    return "\n".join(lines)


def _stage_lines(each: StagePlan, machine: Machine) -> list[str]:
    lines = [f"\n{each.stage} ({each.kind})"]
    lines += [f"  {part:<18}{size / GB:>9.2f} GB a card" for part, size in each.memory.items()]
    verdict = "fits" if each.mends == () else f"does NOT fit in {machine.memory / GB:.0f} GB"
    lines.append(f"  {'at the most':<18}{each.peak / GB:>9.2f} GB a card: {verdict}")
    if each.mends:
        lines.append(f"  it fits with: {'  '.join(each.mends)}")
    elif each.mends is None:
        largest = max(each.memory, key=lambda part: each.memory[part])
        lines.append(f"  no change of this recipe makes it fit: {largest} alone is {each.memory[largest] / GB:.1f} GB")
    lines += [f"  tokens {name:<11}{count:>13.3g}" for name, count in each.tokens.items()]
    lines.append(f"  {'FLOPs':<18}{each.flops:>13.3g}")
    hours = " + ".join(f"{value:.1f} {name}" for name, value in each.hours.items())
    lines.append(f"  {'hours':<18}{sum(each.hours.values()):>13.1f}" + (f" ({hours})" if len(each.hours) > 1 else ""))
    if each.cost is not None:
        lines.append(f"  {'cost':<18}{each.cost:>13,.0f}")
    return lines
