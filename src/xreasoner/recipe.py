"""`Recipe`: everything that determines a run, typed; unknown keys are refused with the nearest name."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from xreasoner.errors import RecipeError
from xreasoner.prompts import PROMPTS
from xreasoner.trace import CLOSE


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, populate_by_name=True, allow_inf_nan=False
    )


Decay = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**29)]
"""Requests' seeds are made of it, and have 64 bits."""


class DataEntry(_Part):
    """One source of training text."""

    source: str
    """A registered source's name (`openthoughts`, `rows`, `reasoning-gym`, …)."""
    n: int = Field(gt=0)
    """How many problems to draw; all where the data set has fewer."""
    options: dict[str, Any] = {}
    """What the source itself takes."""
    prompt: str | None = None
    """SFT only: the prompt of this source, where it is not the stage's."""

    @model_validator(mode="after")
    def _known_prompt(self) -> DataEntry:
        if self.prompt is not None:
            _check_prompt(self.prompt)
        return self


class AdamW(_Part):
    """The optimiser's settings."""

    lr: float = Field(gt=0, lt=1)
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine", "epoch-decay"] = "linear"
    """After the warm-up: constant; linear or cosine to 0; or (SFT) × 0.8 after each epoch (paper, section 3)."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the steps over which the rate rises from 0."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay, of all weights that are trained, norms and biases too."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of the first and second moments."""
    clip: float = Field(1.0, gt=0)
    """Largest gradient norm."""


class LoRA(_Part):
    """Low-rank adapters on the language model's linear layers; the export holds them merged."""

    rank: int = Field(16, gt=0)
    """Their rank."""
    alpha: int = Field(32, gt=0)
    """Their scale is alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of their input."""
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1
    )
    """Which layers of each block."""


class _Stage(_Part):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9+-]*$")
    """The stage's name, which is its folder's too."""
    from_: str | None = Field(None, alias="from")
    """The stage that it goes on from, or `base`; the one before it when left out."""
    data: tuple[DataEntry, ...] = Field(min_length=1)
    """Where its text comes from."""
    allowed_domains: tuple[str, ...] = ("general",)
    """A problem of any other domain, or with a picture, stops the run."""
    prompt: str
    """The prompt's name (prompts.py)."""
    optimiser: AdamW
    """The optimiser."""
    lower_layers_frozen: int = Field(0, ge=0)
    """So many of the language model's first layers stay as they are; the vision tower and merger always do."""
    embeddings_frozen: bool = False
    """The language model's embeddings stay too (and its output weights, where they are the same)."""
    lora: LoRA | None = None
    """Train low-rank adapters instead of the weights themselves."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What is computed in; weights, gradients and the optimiser's moments are float32 in both."""
    batching: Literal["auto", "padded", "packed"] = "auto"
    """Texts padded to rows of like length, or packed into one row without leaks; auto: packed on a GPU."""
    chunk_tokens: int = Field(8192, gt=0)
    """Tokens of one forward pass, padding included; more are accumulated, which changes no result."""
    activation_checkpointing: bool = False
    """Compute each layer twice and keep its input alone."""
    compile: bool = False
    """`torch.compile` each decoder layer: minutes at the start for fewer and larger kernels on a GPU."""
    checkpoint_seconds: float = Field(60.0, gt=0)
    """How often the state is saved."""
    checkpoints_kept: int = Field(2, gt=0)
    """How many of them; an older one is used where the newest is damaged."""

    @model_validator(mode="after")
    def _known_prompt(self) -> _Stage:
        _check_prompt(self.prompt)
        return self


class SFTStage(_Stage):
    """Supervised fine-tuning on worked responses."""

    kind: Literal["sft"]
    """The kind of stage."""
    style: Literal["chain", "direct"] = "chain"
    """Learn whole chains of thought, or the answers alone (a control)."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the data."""
    batch_examples: int = Field(32, gt=0)
    """Examples in an optimiser step, at most: a pass is parted into steps of like size, so that none is left out."""
    max_length: int = Field(4096, gt=0)
    """Longest example in tokens, prompt included."""
    longer: Literal["drop", "close", "cut"] = "drop"
    """A longer one is dropped, has its thought closed early, or is cut (as the paper did); counted in the manifest."""
    exit_text: str = " </think> "
    """What closes a thought early."""
    kl_to_base: float = Field(0.0, ge=0)
    """Weight of KL(start ‖ model) on the learnt tokens, with the stage's start as the reference."""

    @model_validator(mode="after")
    def _closes(self) -> SFTStage:
        _check_exit_text(self.exit_text)
        return self


class Servers(_Part):
    """vLLM servers that make an RL stage's rollouts, and load its weights from files after each step."""

    urls: tuple[Annotated[str, Field(pattern=r"^https?://[^/]+")], ...] = Field(min_length=1)
    """Their addresses, up to and including /v1."""
    max_staleness: int = Field(0, ge=0, le=1)
    """Steps by which a reply's weights may be behind; 1: the next step's replies are made while this one trains."""
    load_seconds: float = Field(600.0, gt=0)
    """How long a server may take to load weights."""
    patience_seconds: float = Field(120.0, gt=0)
    """For how long no server may answer at all before the run stops."""


class RLStage(_Stage):
    """Reinforcement learning with verifiable rewards: GRPO as the recipe's fields say."""

    kind: Literal["rl"]
    """The kind of stage."""
    steps: int = Field(gt=0)
    """Rollout steps."""
    prompts_per_step: int = Field(32, gt=0)
    """Problems in a step."""
    shuffle: bool = True
    """In an order of its own in each pass; false keeps the files' and sources', which a curriculum needs."""
    max_prompt: int = Field(2048, gt=0)
    """Longest prompt in tokens; problems with a longer one are left out, counted in the manifest."""
    group_size: int = Field(8, gt=1)
    """Rollouts of each problem."""
    minibatches: int = Field(1, gt=0)
    """Optimiser steps on one step's rollouts."""
    epsilon_low: float = Field(0.2, gt=0, lt=1)
    """Clipping below 1."""
    epsilon_high: float = Field(0.28, gt=0)
    """Clipping above 1 (clip-higher)."""
    dual_clip: float | None = Field(3.0, gt=1)
    """Largest ratio that counts at a negative advantage (verl's clip_ratio_c, TRL's delta); null: no such bound."""
    normalise_std: bool = True
    """Divide the advantage by the group's standard deviation."""
    aggregation: Literal["token", "sequence", "constant"] = "token"
    """Mean over all tokens (DAPO), over sequences of token means (GRPO), or sum over a constant (Dr.GRPO)."""
    ratio: Literal["token", "sequence"] = "token"
    """The ratio that is clipped: of each token, or the geometric mean over a reply (GSPO)."""
    kl: float = Field(0.0, ge=0)
    """Weight of the KL term against the stage's start."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """How the KL is estimated (Schulman); k1 with k2's gradient, for its own is 0 on average; k3 at most 10 a token."""
    correction: Literal["none", "token", "sequence"] = "none"
    """Weigh the loss by trainer over engine, of each token or by the geometric mean over a reply, cut off above."""
    correction_cap: float = Field(2.0, gt=1)
    """Where that weight is cut off."""
    temperature: float = Field(1.0, gt=0)
    """Of the rollouts."""
    thinking_budget: int = Field(4096, gt=0)
    """Tokens until the thought is closed for the model."""
    answer_budget: int = Field(64, gt=0)
    """Tokens after the thought."""
    exit_text: str = " </think> <answer>"
    """What closes it; these tokens stay out of the loss."""
    forced: Literal["keep", "zero", "mask"] = "zero"
    """A right answer after a forced exit: its reward is kept, is 0, or is kept and the thought masked."""
    drop_zero_variance: bool = True
    """Groups that are all right or all wrong get no advantage; the loss still divides by all of the step's groups."""
    refills: int = Field(0, ge=0)
    """Rounds of further problems that replace such groups (DAPO's dynamic sampling)."""
    max_idle_steps: int = Field(10, gt=0)
    """Steps in a row in which no group has both right and wrong replies, after which the run stops."""
    overlong: Literal["keep", "mask", "penalise"] = "keep"
    """A truncated reply is a wrong one, is left out of the loss, or long ones lose reward (DAPO, eq. 13)."""
    overlong_buffer: int = Field(0, ge=0)
    """penalise: tokens before the budgets' end over which the loss of reward grows to 1."""
    rollouts: Servers | None = None
    """Where rollouts are made; in this process when left out."""
    format_reward: float = Field(0.0, ge=0, le=1)
    """Added for a well-formed reply; 0 in the paper."""

    @model_validator(mode="after")
    def _consistent(self) -> RLStage:
        _check_exit_text(self.exit_text)
        longest = self.thinking_budget + self.answer_budget
        least, most = (1, longest) if self.overlong == "penalise" else (0, 0)
        buffer = self.overlong_buffer
        if not least <= buffer <= most:
            raise ValueError(
                f"overlong_buffer: found {buffer}, expected {least} to {most} with overlong: {self.overlong}"
            )
        if self.ratio == "sequence" and self.aggregation != "sequence":
            raise ValueError(
                f"ratio: sequence (GSPO) with aggregation: {self.aggregation}, which would weigh a reply's one ratio "
                "by its length; set aggregation: sequence, or ratio: token"
            )
        if self.dual_clip is not None and self.dual_clip <= 1 + self.epsilon_high:
            raise ValueError(
                f"dual_clip: found {self.dual_clip}, expected more than 1 + epsilon_high, {1 + self.epsilon_high:g}; "
                "set dual_clip: 3.0, or null for none"
            )
        if self.refills > 0 and not self.drop_zero_variance:
            raise ValueError(
                f"refills: {self.refills} rounds replace groups that teach nothing, and drop_zero_variance: false "
                "keeps them; set drop_zero_variance: true, or refills: 0"
            )
        if self.minibatches > self.prompts_per_step:
            raise ValueError(
                f"minibatches: found {self.minibatches}, expected at most prompts_per_step, {self.prompts_per_step}; a "
                "group is never split"
            )
        if self.lora is not None and self.lora.dropout > 0:
            raise ValueError("lora.dropout: the trainer would disagree with the engine; set it to 0 in an RL stage")
        if self.rollouts is not None and self.rollouts.max_staleness > 0 and self.correction == "none":
            raise ValueError(
                "rollouts.max_staleness: replies of older weights need a correction; set correction: token"
            )
        if self.correction != "none" and self.temperature != 1:
            raise ValueError(
                f"correction: engines say log-probabilities at temperature 1, which do not weigh replies sampled at "
                f"{self.temperature}; set temperature: 1, or correction: none"
            )
        if self.optimiser.schedule == "epoch-decay":
            raise ValueError("optimiser.schedule: an RL stage has steps and no epochs; set constant, linear or cosine")
        if self.activation_checkpointing and self.batching == "padded":
            raise ValueError("activation_checkpointing: an RL stage can have it packed alone; set batching: packed")
        return self

    @property
    def recomputes_old_logprobs(self) -> bool:
        """Whether the trainer computes the old log-probabilities itself, before a step's first update.

        The engine's own serve where it computes as the trainer does: in this process, which samples in float32, at
        temperature 1. bfloat16 against float32 differs by 2e-3 a token on average, and a ratio over a whole reply is
        then outside GSPO's bounds before anything is learned.
        """
        same_numbers = self.rollouts is None and self.precision == "float32" and self.temperature == 1
        return not same_numbers or self.correction != "none"

    @model_validator(mode="after")
    def _one_prompt(self) -> RLStage:
        for entry in self.data:
            if entry.prompt is not None:
                raise ValueError(f"data: {entry.source} has a prompt of its own; an RL stage asks with one prompt")
        return self


Stage = Annotated[SFTStage | RLStage, Field(discriminator="kind")]


class Evaluation(_Part):
    """What each stage is measured on."""

    benches: tuple[str, ...] = ()
    """The cells: benchmarks that are asked with the stage's own prompt."""
    reading: tuple[str, ...] = ()
    """Perception: benchmarks asked with `base_prompt` at every stage."""
    others: tuple[str, ...] = ()
    """Further benchmarks, with the stage's own prompt."""
    swapped: bool = False
    """Measure the cells' pictures with another item's picture too."""
    base_prompt: str = "brief-direct"
    """The prompt under which the base, and reading, is asked."""
    n: int = Field(500, gt=0)
    """Items of each benchmark."""
    seed: Seed = 0
    """Which items."""
    thinking_budget: int = Field(4096, gt=0)
    """Tokens until the thought is closed."""
    answer_budget: int = Field(64, gt=0)
    """Tokens after it."""

    @model_validator(mode="after")
    def _known_prompt(self) -> Evaluation:
        _check_prompt(self.base_prompt)
        return self

    @property
    def measures(self) -> bool:
        """Whether it names any benchmark."""
        return bool(self.benches or self.reading or self.others)


class Recipe(_Part):
    """Everything that determines a run."""

    name: str
    """The recipe's name."""
    model: str
    """The base: a registered name, a folder or a hub id."""
    seed: Seed = 0
    """Of data order, sampling and initial states."""
    stages: tuple[Stage, ...] = Field(min_length=1)
    """In order."""
    evaluation: Evaluation = Field(default_factory=lambda: Evaluation.model_validate({}))
    """What is measured before and after each stage."""

    @model_validator(mode="after")
    def _stages_follow(self) -> Recipe:
        known = ["base"]
        for stage in self.stages:
            if stage.name in known:
                raise ValueError(f"stages: two stages are named {stage.name!r}")
            if stage.name in ("eval", "images"):
                raise ValueError(f"stages: the name {stage.name!r} is taken by a folder of the run; choose another")
            if stage.from_ is not None and stage.from_ not in known:
                raise ValueError(
                    f"stages.{stage.name}.from: unknown stage {stage.from_!r}; {_nearest(stage.from_, known)}"
                )
            known.append(stage.name)
        return self

    def parent(self, stage: SFTStage | RLStage) -> str:
        """The name of the stage that this one goes on from."""
        names = ["base", *(s.name for s in self.stages)]
        return stage.from_ or names[names.index(stage.name) - 1]


HOW = (
    "checkpoint_seconds",
    "checkpoints_kept",
    "chunk_tokens",
    "activation_checkpointing",
    "compile",
    "urls",
    "load_seconds",
    "patience_seconds",
    "max_idle_steps",
)
"""Fields that say how and not what is computed: a run goes on with others, on other nodes or with less memory."""


def difference(old: Any, new: Any, where: str = "") -> str:
    """The first field in which two dumped recipes say different things, with both values; "" where they do not."""
    if isinstance(old, dict) and isinstance(new, dict):
        parts = [(key, old.get(key), new.get(key)) for key in {**old, **new} if key not in HOW]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        parts = [(k, *pair) for k, pair in enumerate(zip(old, new, strict=True))]
    else:
        return "" if old == new else f"{where or 'recipe'}: it was {old!r:.100}, now {new!r:.100}"
    return next(filter(None, (difference(a, b, f"{where}.{key}" if where else str(key)) for key, a, b in parts)), "")


def _check_prompt(name: str) -> None:
    if name not in PROMPTS:
        raise ValueError(f"unknown prompt {name!r}; {_nearest(name, list(PROMPTS))}")


def _check_exit_text(text: str) -> None:
    if CLOSE not in text:
        raise ValueError(f"exit_text: found {text!r}, expected a text with {CLOSE}, which closes the thought")


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + "known: " + ", ".join(sorted(known))


def shipped() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    inside = Path(str(files("xreasoner"))) / "recipes"
    folder = inside if inside.is_dir() else Path(__file__).parents[2] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or path, with `key.sub=value` overrides. Raises `RecipeError` that names the field."""
    recipes = shipped()
    path = recipes.get(name, Path(name))
    if not path.is_file():
        raise RecipeError(f"recipe {name!r}: no such file, nor a shipped recipe; {_nearest(name, list(recipes))}")
    try:
        raw = _unshared(yaml.load(path.read_text(encoding="utf-8"), _Once))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"recipe {path}: line {line}: not YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise RecipeError(f"recipe {path}: not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"recipe {path}: found {type(raw).__name__}, expected a mapping of fields")
    for override in overrides:
        _override(raw, override)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(f"recipe {path}: {_first(error)}") from None


class _Once(yaml.SafeLoader):
    """YAML in which a mapping has each key once; by itself the last one wins, silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} stands twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _unshared(raw: Any) -> Any:
    """A copy in which YAML's `&anchor` and `*alias` are two things, so that an override of one leaves the other."""
    if isinstance(raw, dict):
        return {key: _unshared(value) for key, value in raw.items()}
    return [_unshared(value) for value in raw] if isinstance(raw, list) else raw


def _override(raw: Any, override: str) -> None:
    """Set `stages.sft.optimiser.lr=1e-4`: list items are named by their position or their `name`."""
    key, sign, value = override.partition("=")
    if not sign:
        raise RecipeError(f"--set {override!r}: expected key=value, such as seed=1 or stages.sft.epochs=2")
    *parents, last = key.split(".")
    for part in parents:
        raw = _child(raw, part, key)
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise RecipeError(f"--set {key}: found {value!r}, expected a YAML value") from None
    if isinstance(parsed, str):
        with contextlib.suppress(ValueError):
            parsed = float(parsed)  # YAML 1.1 takes 1e-4 for a string
    if not isinstance(raw, dict):
        raise RecipeError(f"--set {key}: {last!r} is inside a list; name one of its items' fields")
    raw[last] = parsed


def _child(raw: Any, part: str, key: str) -> Any:
    if isinstance(raw, list):
        found = [
            item
            for i, item in enumerate(raw)
            if str(i) == part or (isinstance(item, dict) and item.get("name") == part)
        ]
        if found:
            return found[0]
        raise RecipeError(f"--set {key}: no item {part!r}")
    if isinstance(raw, dict):
        return raw.setdefault(part, {})
    raise RecipeError(f"--set {key}: {part!r} is not a mapping")


_PARTS: dict[str, type[_Part]] = {
    "sft": SFTStage,
    "rl": RLStage,
    "data": DataEntry,
    "optimiser": AdamW,
    "lora": LoRA,
    "rollouts": Servers,
    "evaluation": Evaluation,
}
"""What stands under a key of the recipe (for stages, under their kind)."""


def _fields(part: type[_Part]) -> list[str]:
    return [field.alias or name for name, field in part.model_fields.items()]


def _unknown(field: str, path: Sequence[int | str]) -> str:
    """A hint for an unknown field: the nearest one of its own part, or the part where it belongs."""
    part = next((_PARTS[str(key)] for key in reversed(path) if key in _PARTS), Recipe)
    for key, other in _PARTS.items():
        if field in _fields(other) and key in _fields(part):
            return f"it belongs under {key}: {key}.{field}"
    return _nearest(field, _fields(part))


def _first(error: ValidationError) -> str:
    """The first complaint, in words: field, what was found, what was expected."""
    complaint = error.errors()[0]
    where = ".".join(str(part) for part in complaint["loc"]) or "recipe"
    if complaint["type"] == "extra_forbidden":
        return f"{where}: unknown field; {_unknown(str(complaint['loc'][-1]), complaint['loc'][:-1])}"
    if complaint["type"] == "missing":
        return f"{where}: is missing"
    return f"{where}: {complaint['msg'].removeprefix('Value error, ')}; found {complaint['input']!r}"[:400]
