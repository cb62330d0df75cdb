"""What a recipe's stages will see, before anything is trained: text, token ids, what is learnt, lengths, the batch.

The tokenizer and the configuration are enough: a model of any size is shown without its weights.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import yaml
from rich.text import Text
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from xreasoner import planning
from xreasoner.data import packing
from xreasoner.data.packing import Tokens
from xreasoner.errors import CheckpointError, RecipeError, UserError
from xreasoner.models.loading import Loaded, encode, find
from xreasoner.planning import Machine
from xreasoner.prompts import chat_messages
from xreasoner.recipe import Recipe, RLStage, SFTStage
from xreasoner.training.common import MOST_LOGITS
from xreasoner.training.run import rl_data, sft_examples

PROMPT, LEARNT, OVER = "dim", "bold green", "red"
_UNLIMITED = 10**9


def reader(model: str) -> Loaded:
    """A model's tokenizer and configuration; its weights stay on the meta device. Raises `CheckpointError`."""
    where = find(model)
    try:
        with torch.device("meta"):
            built = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(where))
        return Loaded(built, AutoTokenizer.from_pretrained(where), None, where, model)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"model {model!r}: its tokenizer cannot be read: {reason}; fetch it with `hf download {model}`"
        ) from None


def dry_run(recipe: Recipe) -> Iterator[Text]:
    """The resolved recipe, its plan on this machine, and each stage's data with its first batch."""
    resolved = recipe.model_dump(mode="json", by_alias=True)
    yield Text(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True, width=120).rstrip())
    machine = this_machine()
    yield Text("\n" + planning.told(planning.plan(recipe, machine), recipe, machine, None))
    yield from shown(recipe, examples=1)


def this_machine() -> Machine:
    """The cards here, as many as `torchrun` started processes; without any, the machine's own memory."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
        return replace(Machine.of(ranks, f"{memory / 1e9:.0f}GB"), memory=float(memory))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(1, float(memory), "this machine's CPU", 1e11, 2e10, logits=MOST_LOGITS["cpu"], cpu=True)


def shown(recipe: Recipe, examples: int = 2, limit: int | None = None) -> Iterator[Text]:
    """Every stage's first examples, lengths and first batch. limit: rows taken of each source, all when None."""
    yield Text(f"\n{recipe.name}: {recipe.model}, seed {recipe.seed}", style="bold")
    loaded = reader(recipe.model)
    for stage in recipe.stages:
        data = tuple(entry.model_copy(update={"n": min(entry.n, limit or entry.n)}) for entry in stage.data)
        part = stage.model_copy(update={"data": data})
        yield Text(f"\n== {stage.name} ({stage.kind}), from {recipe.parent(stage)}", style="bold")
        if limit is not None and any(entry.n > limit for entry in stage.data):
            yield Text(f"(at most {limit:,} rows of each source; --limit takes more)")
        if isinstance(part, SFTStage):
            yield from _sft(part, loaded, recipe.seed, examples)
        else:
            yield from _rl(part, loaded, recipe.seed, examples)


def _sft(stage: SFTStage, loaded: Loaded, seed: int, examples: int) -> Iterator[Text]:
    found, limit = sft_examples(stage, seed), min(stage.max_length, loaded.positions)
    whole, _ = packing.tokenise(loaded, found, stage.prompt, _UNLIMITED, "drop", stage.exit_text)
    kept: list[Tokens] = []
    counts = Counter[str]()
    for example, item in zip(found, whole, strict=True):
        items = [item]
        if len(item.ids) > limit:
            items, _ = packing.tokenise(loaded, [example], stage.prompt, limit, stage.longer, stage.exit_text)
            counts[stage.longer if items else "drop"] += 1
        kept += items
    for item in kept[:examples]:
        yield from _example(loaded, item)
    yield histogram([len(item.ids) for item in whole], limit)
    done = {"drop": "dropped", "close": "closed early", "cut": "cut"}
    over = ", ".join(f"{count:,} {done[name]}" for name, count in counts.items()) or "none"
    yield Text(f"longer than max_length {limit:,} (longer: {stage.longer}): {over} of {len(whole):,}")
    if not kept:
        raise RecipeError(f"stage {stage.name}: no example is left under max_length {limit}")
    batch = packing.schedule([len(item.ids) for item in kept], stage.batch_examples, stage.epochs, seed)[0]
    tokens, learnt = sum(len(kept[i].ids) for i in batch), sum(len(kept[i].ids) - kept[i].prompt for i in batch)
    yield Text(f"first batch: {len(batch)} examples, {tokens:,} tokens, {learnt:,} learnt; examples {batch}")


def _rl(stage: RLStage, loaded: Loaded, seed: int, examples: int) -> Iterator[Text]:
    problems, _ = rl_data(stage, seed)
    kept, counts = packing.askable(loaded, problems, stage.prompt, stage.max_prompt, stage.exit_text)
    for problem in problems[:examples]:
        ids = encode(loaded, chat_messages(problem, stage.prompt)).input_ids.tolist()
        yield from _example(loaded, Tokens(tuple(ids), len(ids)))
        yield Text(f"gold ({problem.answer_type}): {problem.gold}")
    yield histogram(counts, stage.max_prompt)
    dropped = len(problems) - len(kept)
    yield Text(f"longer than max_prompt {stage.max_prompt:,}, left out: {dropped:,} of {len(problems):,}")
    count = stage.prompts_per_step * stage.group_size
    longest = stage.thinking_budget + stage.answer_budget
    yield Text(f"a step: {stage.prompts_per_step} of {len(kept):,} problems, {count} rollouts of at most {longest:,}")


def _example(loaded: Loaded, item: Tokens) -> Iterator[Text]:
    """The text and the ids, what is learnt in colour and between ⟦ and ⟧."""
    prompt, learnt = item.ids[: item.prompt], item.ids[item.prompt :]

    def both(before: str, after: str) -> Text:
        text = Text().append(before, style=PROMPT)
        return text.append("⟦", style="bold").append(after, style=LEARNT).append("⟧", style="bold") if after else text

    yield both(loaded.tokenizer.decode(prompt), loaded.tokenizer.decode(learnt) if learnt else "")
    yield both(f"ids: {_joined(prompt)} ", _joined(learnt))


def _joined(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))


def histogram(lengths: Sequence[int], limit: int | None = None, bins: int = 12) -> Text:
    """Lengths in tokens as bars; those over the limit in another colour, parted where it lies."""
    width = max(1, -(-(max(lengths) + 1) // bins))
    if limit is not None and max(lengths) > limit:
        width = max(1, -(-limit // max(1, round(bins * limit / max(lengths)))))
    edge = limit + 1 if limit is not None else None
    counts: Any = Counter(
        (length > limit, length // width) if limit else (False, length // width) for length in lengths
    )
    most, text = max(counts.values()), Text("tokens         examples\n")
    for (over, b), count in sorted(counts.items(), key=lambda pair: (pair[0][1], pair[0][0])):
        low, high = b * width, (b + 1) * width - 1
        if edge is not None:
            low, high = (max(low, edge), high) if over else (low, min(high, edge - 1))
        line = f"{low:>6}–{high:<6} {count:>9} {'█' * max(1, round(40 * count / most))}"
        text.append(line + (" over the limit" if over else "") + "\n", style=OVER if over else "")
    text.rstrip()
    return text
