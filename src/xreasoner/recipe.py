"""`Recipe`: everything that determines a run, typed. Reading one reports every problem of it at once."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from xreasoner.errors import RecipeError, XReasonerError
from xreasoner.prompts import PROMPTS
from xreasoner.registry import nearest
from xreasoner.trace import CLOSE
from xreasoner.yaml_lines import Document, YAMLProblemError, read_yaml

_BRITISH = re.compile(r"(?<=[a-z])is(?=(?:e|es|ed|er|ers|ing|ation)(?![a-z]))")


def american(word: str) -> str:
    """A field's name or value in American spelling: `optimiser` is `optimizer`, `normalise_std` `normalize_std`."""
    return _BRITISH.sub("iz", word)


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        populate_by_name=True,
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _american(cls, raw: Any) -> Any:
        """Both spellings of a field are accepted; the American one is its name."""
        if not isinstance(raw, dict):
            return raw
        known = _fields(cls)
        return {_spelled(key, known, raw): value for key, value in raw.items()}


Decay = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**29)]
"""Requests' seeds are made of it, and have 64 bits."""


class DataEntry(_Part):
    """One source of training text."""

    source: str
    """A registered source's name (`openthoughts`, `rows`, `reasoning-gym`, …)."""
    n: int = Field(gt=0)
    """Number of problems to draw; all of them if the data set has fewer."""
    options: dict[str, Any] = {}
    """Options of the source, such as `path`."""
    prompt: str | None = None
    """SFT only: the prompt of this source; default: the stage's."""

    @field_validator("prompt")
    @classmethod
    def _known_prompt(cls, prompt: str | None) -> str | None:
        return None if prompt is None else _check_prompt(prompt)


class AdamW(_Part):
    """The optimizer's settings."""

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
    """Rank of the adapters."""
    alpha: int = Field(32, gt=0)
    """The adapters' output is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of the adapters' input."""
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the frozen weights; the adapters are float32, and the export holds the sums in float32."""
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1
    )
    """Names of the adapted layers in each block."""


class _Stage(_Part):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9+-]*$")
    """Name of the stage and of its folder."""
    from_: str | None = Field(None, alias="from")
    """The stage that it starts from, or `base`; default: the one before it."""
    data: tuple[DataEntry, ...] = Field(min_length=1)
    """Sources of the training text."""
    allowed_domains: tuple[str, ...] = ("general",)
    """A problem of any other domain, or with an image, stops the run."""
    prompt: str
    """Name of the prompt; docs/cli.md lists them."""
    optimizer: AdamW
    """The optimizer's settings."""
    lower_layers_frozen: int = Field(0, ge=0)
    """Number of the language model's first layers that stay frozen; the vision tower and merger always are."""
    embeddings_frozen: bool = False
    """Freeze the language model's embeddings (and its output weights, if they are tied)."""
    lora: LoRA | None = None
    """Train low-rank adapters instead of the weights themselves."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Data type of the computation; weights, gradients and the optimizer's moments are float32 in both."""
    batching: Literal["auto", "padded", "packed"] = "auto"
    """Texts padded to rows of like length, or packed into one row without leaks; auto: packed on a GPU."""
    chunk_tokens: int = Field(8192, gt=0)
    """Tokens of one forward pass, padding included; more are accumulated, which changes no result."""
    activation_checkpointing: bool = False
    """Keep only each layer's input, and compute the layer again in the backward pass."""
    compile: bool = False
    """`torch.compile` each decoder layer: minutes at the start for fewer and larger kernels on a GPU."""
    checkpoint_seconds: float = Field(60.0, gt=0)
    """Seconds between checkpoints."""
    checkpoints_kept: int = Field(2, gt=0)
    """Number of checkpoints kept; an older one is used if the newest is damaged."""

    @field_validator("prompt")
    @classmethod
    def _known_prompt(cls, prompt: str) -> str:
        return _check_prompt(prompt)

    @model_validator(mode="after")
    def _base_in_its_type(self) -> _Stage:
        if self.lora is not None and self.lora.base_dtype == "bfloat16" and self.precision == "float32":
            raise ValueError(
                "lora.base_dtype: bfloat16 weights compute in bfloat16, and precision is float32; set precision: "
                "bfloat16, or lora.base_dtype: float32"
            )
        return self

    @property
    def optimiser(self) -> AdamW:
        """The former spelling of `optimizer`."""
        return self.optimizer


class SFTStage(_Stage):
    """Supervised fine-tuning on worked responses."""

    kind: Literal["sft"]
    """The kind of stage."""
    style: Literal["chain", "direct"] = "chain"
    """Train on whole chains of thought, or on the answers only (a control)."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the data."""
    batch_examples: int = Field(32, gt=0)
    """Examples in an optimizer step, at most: a pass is parted into steps of like size, so that none is left out."""
    max_length: int = Field(4096, gt=0)
    """Longest example in tokens, prompt included; never more than the model takes."""
    longer: Literal["drop", "close", "cut"] = "drop"
    """A longer one is dropped, has its thought closed early, or is cut (as the paper did); counted in the manifest."""
    exit_text: str = " </think> "
    """Text that ends a thought early."""
    kl_to_base: float = Field(0.0, ge=0)
    """Weight of KL(start ‖ model) on the learnt tokens, with the stage's start as the reference."""

    @field_validator("exit_text")
    @classmethod
    def _closes(cls, text: str) -> str:
        return _check_exit_text(text)


class Servers(_Part):
    """vLLM servers that make an RL stage's rollouts, and load its weights from files after each step."""

    urls: tuple[Annotated[str, Field(pattern=r"^https?://[^/]+")], ...] = Field(min_length=1)
    """Their URLs, up to and including /v1."""
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
    """Shuffle the problems in each pass; false keeps the order of files and sources, which a curriculum needs."""
    max_prompt: int = Field(2048, gt=0)
    """Longest prompt in tokens; problems with a longer one are dropped, counted in the manifest."""
    group_size: int = Field(8, gt=1)
    """Rollouts of each problem."""
    minibatches: int = Field(1, gt=0)
    """Optimizer steps on one step's rollouts."""
    epsilon_low: float = Field(0.2, gt=0, lt=1)
    """Clipping below 1."""
    epsilon_high: float = Field(0.28, gt=0)
    """Clipping above 1 (clip-higher)."""
    dual_clip: float | None = Field(3.0, gt=1)
    """Largest ratio that counts at a negative advantage (verl's clip_ratio_c, TRL's delta); null: no such bound."""
    normalize_std: bool = True
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
    """Sampling temperature of the rollouts."""
    thinking_budget: int = Field(4096, gt=0)
    """Thinking tokens until the engine ends the thought."""
    answer_budget: int = Field(64, gt=0)
    """Tokens after the thought."""
    exit_text: str = " </think> <answer>"
    """Text that ends the thought; its tokens are excluded from the loss."""
    forced: Literal["keep", "zero", "mask"] = "zero"
    """A right answer after a forced exit: its reward is kept, is 0, or is kept and the thought masked."""
    drop_zero_variance: bool = True
    """Groups that are all right or all wrong get no advantage; the loss still divides by all of the step's groups."""
    refills: int = Field(0, ge=0)
    """Rounds of further problems that replace such groups (DAPO's dynamic sampling)."""
    max_idle_steps: int = Field(10, gt=0)
    """Steps in a row in which no group has both right and wrong replies, after which the run stops."""
    overlong: Literal["keep", "mask", "penalize"] = "keep"
    """A truncated reply is a wrong one, is left out of the loss, or long ones lose reward (DAPO, eq. 13)."""
    overlong_buffer: int = Field(0, ge=0)
    """penalize: tokens before the budgets' end over which the loss of reward grows to 1."""
    rollouts: Servers | None = None
    """Servers that generate the rollouts; default: this process."""
    rollout_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights that rollouts are sampled from, here or on servers; auto: that of `precision`."""
    format_reward: float = Field(0.0, ge=0, le=1)
    """Added for a well-formed reply; 0 in the paper."""

    @field_validator("exit_text")
    @classmethod
    def _closes(cls, text: str) -> str:
        return _check_exit_text(text)

    @field_validator("overlong", mode="before")
    @classmethod
    def _spelled(cls, value: Any) -> Any:
        return american(value) if isinstance(value, str) else value

    @property
    def normalise_std(self) -> bool:
        """The former spelling of `normalize_std`."""
        return self.normalize_std

    @property
    def rollouts_in_bfloat16(self) -> bool:
        """Whether rollouts are sampled from bfloat16 weights."""
        return "bfloat16" in (self.rollout_dtype, self.precision if self.rollout_dtype == "auto" else "")

    @property
    def recomputes_old_logprobs(self) -> bool:
        """Whether the trainer computes the old log-probabilities itself, before a step's first update.

        The engine's own serve where it computes as the trainer does: in this process, which samples in float32, at
        temperature 1. bfloat16 against float32 differs by 2e-3 a token on average, and a ratio over a whole reply is
        then outside GSPO's bounds before anything is learned.
        """
        float32 = self.precision == "float32" and not self.rollouts_in_bfloat16
        same_numbers = self.rollouts is None and float32 and self.temperature == 1
        return not same_numbers or self.correction != "none"

    @model_validator(mode="after")
    def _consistent(self) -> RLStage:
        _refuse_all(self._contradictions())
        return self

    def _contradictions(self) -> Iterator[str]:
        """Fields that exclude each other, as `field: message`."""
        longest = self.thinking_budget + self.answer_budget
        least, most = (1, longest) if self.overlong == "penalize" else (0, 0)
        if not least <= self.overlong_buffer <= most:
            yield (
                f"overlong_buffer: found {self.overlong_buffer}, expected {least} to {most} with overlong: "
                f"{self.overlong}"
            )
        if self.ratio == "sequence" and self.aggregation != "sequence":
            yield (
                f"ratio: sequence (GSPO) with aggregation: {self.aggregation}, which would weigh a reply's one ratio "
                "by its length; set aggregation: sequence, or ratio: token"
            )
        if self.dual_clip is not None and self.dual_clip <= 1 + self.epsilon_high:
            yield (
                f"dual_clip: found {self.dual_clip}, expected more than 1 + epsilon_high, {1 + self.epsilon_high:g}; "
                "set dual_clip: 3.0, or null for none"
            )
        if self.refills > 0 and not self.drop_zero_variance:
            yield (
                f"refills: {self.refills} rounds replace groups that teach nothing, and drop_zero_variance: false "
                "keeps them; set drop_zero_variance: true, or refills: 0"
            )
        if self.minibatches > self.prompts_per_step:
            yield (
                f"minibatches: found {self.minibatches}, expected at most prompts_per_step, {self.prompts_per_step}; a "
                "group is never split"
            )
        if self.lora is not None and self.lora.dropout > 0:
            yield "lora.dropout: the trainer would disagree with the engine; set it to 0 in an RL stage"
        if self.rollouts is not None and self.rollouts.max_staleness > 0 and self.correction == "none":
            yield "rollouts.max_staleness: replies of older weights need a correction; set correction: token"
        if self.correction != "none" and self.temperature != 1:
            yield (
                f"correction: engines report log-probabilities at temperature 1, which do not weigh replies sampled at "
                f"{self.temperature}; set temperature: 1, or correction: none"
            )
        if self.optimizer.schedule == "epoch-decay":
            yield "optimizer.schedule: an RL stage has steps and no epochs; set constant, linear or cosine"
        if self.activation_checkpointing and self.batching == "padded":
            yield "activation_checkpointing: in an RL stage it needs packed batches; set batching: packed"
        for k, entry in enumerate(self.data):
            if entry.prompt is not None:
                yield f"data.{k}.prompt: an RL stage asks with one prompt; remove it, and set the stage's prompt"


Stage = Annotated[SFTStage | RLStage, Field(discriminator="kind")]


class Evaluation(_Part):
    """What the base and each stage are measured on, and how: one harness for all."""

    benches: tuple[str, ...] = ()
    """The cells: benchmarks that are measured blind too."""
    reading: tuple[str, ...] = ()
    """Perception: benchmarks that are asked alike at every stage, with `base_prompt` if it is set."""
    others: tuple[str, ...] = ()
    """Further benchmarks."""
    swapped: bool = False
    """Also measure the image cells with another item's image."""
    prompt: str | None = None
    """The prompt under which the base and all stages are asked; default: each benchmark's own."""
    base_prompt: str | None = None
    """The base's own prompt, which makes it a declared control; default: none, the base is asked as the stages are."""
    n: int = Field(500, gt=0)
    """Items per benchmark."""
    seed: Seed = 0
    """Seed of the choice of items."""
    thinking_budget: int = Field(4096, gt=0)
    """Thinking tokens until the engine ends the thought."""
    answer_budget: int = Field(64, gt=0)
    """Tokens after a thought that the engine ended; a reply that ends its thought by itself has both budgets' sum."""
    exit_text: str = " </think> <answer>"
    """Text that ends the thought; the paper's is `</think>`."""
    min_pixels: int | None = Field(None, gt=0)
    """Least image area; default: the model card's 262,144, or the image processor's own if it takes no such images."""
    max_pixels: int | None = Field(None, gt=0)
    """Largest image area; default: as for `min_pixels`."""
    preprocessing: Literal["processor", "qwen-vl-utils"] = "processor"
    """Resize images by the processor alone, or first by qwen-vl-utils, as the card's Transformers snippet does."""

    @field_validator("prompt", "base_prompt")
    @classmethod
    def _known_prompt(cls, prompt: str | None) -> str | None:
        return None if prompt is None else _check_prompt(prompt)

    @field_validator("exit_text")
    @classmethod
    def _closes(cls, text: str) -> str:
        return _check_exit_text(text)

    @model_validator(mode="after")
    def _limits_do_not_cross(self) -> Evaluation:
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels: found {self.min_pixels}, expected at most max_pixels, {self.max_pixels}")
        return self

    @property
    def measures(self) -> bool:
        """Whether it names any benchmark."""
        return bool(self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """All benchmarks that it names."""
        return (*self.benches, *self.reading, *self.others)


class Recipe(_Part):
    """Everything that determines a run."""

    name: str
    """The recipe's name."""
    model: str
    """The base: a registered name, a folder or a hub id."""
    seed: Seed = 0
    """Seed of data order, sampling and initial states."""
    stages: tuple[Stage, ...] = Field(min_length=1)
    """Stages in the order in which they run."""
    evaluation: Evaluation = Field(default_factory=lambda: Evaluation.model_validate({}))
    """What is measured before and after each stage."""

    @model_validator(mode="after")
    def _stages_follow(self) -> Recipe:
        _refuse_all(_stage_names([(stage.name, stage.from_) for stage in self.stages]))
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
"""Fields that say how and not what is computed: a run resumes with others, on other nodes or with less memory."""


def difference(old: Any, new: Any, where: str = "") -> str:
    """The first field in which two dumped recipes differ, with both values; "" where they do not."""
    if isinstance(old, dict) and isinstance(new, dict):
        old = {american(key): value for key, value in old.items()}  # manifests of before have the British spelling
        parts = [(key, old.get(key), new.get(key)) for key in {**old, **new} if key not in HOW]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        parts = [(k, *pair) for k, pair in enumerate(zip(old, new, strict=True))]
    else:
        same = old == new or (isinstance(old, str) and isinstance(new, str) and american(old) == american(new))
        return "" if same else f"{where or 'recipe'}: it was {old!r:.100}, now {new!r:.100}"
    return next(filter(None, (difference(a, b, f"{where}.{key}" if where else str(key)) for key, a, b in parts)), "")


def _refuse_all(problems: Iterator[str]) -> None:
    found = list(problems)
    if found:
        raise ValueError("\n".join(found))


def _stage_names(stages: Sequence[tuple[str, str | None]]) -> Iterator[str]:
    """Problems of the stages' (name, from), as `field: message`."""
    known = ["base"]
    for name, start in stages:
        if name in known:
            yield f"stages: two stages are named {name!r}"
        if name in ("eval", "images"):
            yield f"stages: the name {name!r} is taken by a folder of the run; choose another"
        if start is not None and start not in known:
            yield f"stages.{name}.from: unknown stage {start!r}; {nearest(start, known)}"
        known.append(name)


def _check_prompt(name: str) -> str:
    if name not in PROMPTS:
        raise ValueError(f"unknown prompt {name!r}; {nearest(name, PROMPTS)}")
    return name


def _check_exit_text(text: str) -> str:
    if CLOSE not in text:
        raise ValueError(f"found {text!r}, expected a text with {CLOSE}, which closes the thought")
    return text


def shipped() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    inside = Path(str(files("xreasoner"))) / "recipes"
    folder = inside if inside.is_dir() else Path(__file__).parents[2] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


@dataclass(frozen=True, slots=True)
class _Problem:
    """One thing that is wrong with a recipe. rank: unknown fields first, then missing ones, types, values."""

    rank: int
    place: str
    line: int | None
    message: str


UNKNOWN, MISSING, TYPE, VALUE = range(4)


NameCheck = Callable[[str], object]
"""Raises `XReasonerError` for a name that leads nowhere."""


def load_recipe(
    name: str,
    overrides: Sequence[str] = (),
    check_model: NameCheck | None = None,
    check_benchmark: NameCheck | None = None,
) -> Recipe:
    """Read a recipe by name or path, with `key.sub=value` overrides.

    Args:
        name: a shipped recipe's name, or a path.
        overrides: fields to set, as `--set` takes them.
        check_model: checks the name of the model, so that its problem is reported with those of the fields.
        check_benchmark: the same, for each benchmark.

    Returns:
        The recipe.

    Raises:
        RecipeError: with every problem of the file and of the overrides, each with its field and line.
    """
    document = _read(name)
    changed: dict[tuple[str | int, ...], str] = {}
    problems = [found for override in overrides if (found := _override(document.value, override, changed))]
    document.value = _in_american(document, Recipe, document.value, (), problems)
    problems += _problems(document, changed)
    problems += _name_problems(document, changed, check_model, check_benchmark)
    if not problems:
        return Recipe.model_validate(document.value)
    raise RecipeError(_report(name, problems))


def _name_problems(
    document: Document,
    changed: Mapping[tuple[str | int, ...], str],
    check_model: NameCheck | None,
    check_benchmark: NameCheck | None,
) -> Iterator[_Problem]:
    """The names in a recipe that lead nowhere, whatever else is wrong with it."""
    raw, named = document.value, list[tuple[tuple[str | int, ...], Any, NameCheck]]()
    if check_model is not None:
        named.append((("model",), raw.get("model"), check_model))
    if check_benchmark is not None:
        for field in ("benches", "reading", "others"):
            names = _get(raw.get("evaluation"), field)
            paths = [
                (("evaluation", field, k), each) for k, each in enumerate(names if isinstance(names, list) else ())
            ]
            named += [(path, each, check_benchmark) for path, each in paths]
    for path, found, check in named:
        if not isinstance(found, str):
            continue  # a problem of the field
        try:
            check(found)
        except XReasonerError as error:
            place, line = _where(document, changed, path)
            yield _Problem(VALUE, place, line, str(error))


def _read(name: str) -> Document:
    recipes = shipped()
    path = recipes.get(name, Path(name))
    if path.is_dir():
        raise RecipeError(f"recipe {name!r}: this is a folder; expected a YAML file or a shipped recipe's name")
    try:
        document = read_yaml(path.read_bytes())
    except FileNotFoundError:
        hint = nearest(name, recipes, "shipped recipes are listed by `xreasoner train --help`")
        raise RecipeError(f"recipe {name!r}: no such file, nor a shipped recipe; {hint}") from None
    except OSError as error:
        raise RecipeError(f"recipe {name!r}: cannot be read: {error.strerror}") from None
    except YAMLProblemError as error:
        problems = [_Problem(TYPE, "", line, message) for line, message in error.problems]
        raise RecipeError(_report(name, problems)) from None
    if not isinstance(document.value, dict):
        empty = document.value is None
        found = "the file is empty" if empty else f"found {_shown(document.value)}"
        raise RecipeError(f"recipe {name}: {found}; expected a mapping of fields: name, model, stages")
    return document


def _report(name: str, problems: Sequence[_Problem]) -> str:
    """One problem as one line; several below each other."""
    ordered = sorted(dict.fromkeys(problems), key=lambda problem: (problem.rank, problem.line or 0))
    lines = [
        ": ".join(filter(None, (f"line {each.line}" if each.line else "", each.place, each.message)))
        for each in ordered
    ]
    if len(lines) == 1:
        return f"recipe {name}: {lines[0]}"
    return "\n  ".join([f"recipe {name}: {len(lines)} problems", *lines])


def _override(raw: Any, override: str, changed: dict[tuple[str | int, ...], str]) -> _Problem | None:
    """Set `stages.sft.optimizer.lr=1e-4` in place: list items are named by their position or their `name`."""
    key, sign, value = override.partition("=")
    key = key.strip()
    if not sign or not key:
        expected = "expected key=value, such as seed=1 or stages.sft.epochs=2"
        return _Problem(VALUE, "", None, f"--set {override!r}: {expected}")
    *parents, last = key.split(".")
    path: tuple[str | int, ...] = ()
    for part in parents:
        step = _step(raw, part)
        if step is None:
            hint = f"; {nearest(part, _names(raw))}" if isinstance(raw, list) else ""
            what = f"no item {part!r}{hint}" if isinstance(raw, list) else f"{part!r} is not a mapping"
            return _Problem(VALUE, "", None, f"--set {key}: {what}")
        path, raw = (*path, step), raw.setdefault(step, {}) if isinstance(raw, dict) else raw[int(step)]
    try:
        parsed = read_yaml(value).value
    except YAMLProblemError:
        return _Problem(VALUE, "", None, f"--set {key}: found {value!r}, expected a YAML value")
    slot = _step(raw, last)
    if slot is None or (isinstance(raw, list) and isinstance(raw[int(slot)], dict) and not isinstance(parsed, dict)):
        return _Problem(VALUE, "", None, f"--set {key}: {last!r} is inside a list; name one of its items' fields")
    raw[slot] = parsed
    changed[(*path, slot)] = f"--set {key}"
    return None


def _names(items: Sequence[Any]) -> list[str]:
    """What the items of a list can be called in `--set`."""
    return [str(item.get("name", k)) if isinstance(item, dict) else str(k) for k, item in enumerate(items)]


def _step(raw: Any, part: str) -> str | int | None:
    """The key or position that one part of a `--set` path names."""
    if isinstance(raw, list):
        names = _names(raw)
        return names.index(part) if part in names else int(part) if part.isdecimal() and int(part) < len(raw) else None
    if not isinstance(raw, dict):
        return None
    return next((key for key in raw if american(key) == american(part)), part)


def _fields(part: type[_Part]) -> list[str]:
    return [field.alias or name for name, field in part.model_fields.items()]


def _spelled(key: Any, known: Sequence[str], raw: dict[Any, Any]) -> Any:
    other = american(key) if isinstance(key, str) else key
    return other if key not in known and other in known and other not in raw else key


_PARTS: dict[str, type[_Part]] = {
    "sft": SFTStage,
    "rl": RLStage,
    "data": DataEntry,
    "optimizer": AdamW,
    "lora": LoRA,
    "rollouts": Servers,
    "evaluation": Evaluation,
}
"""What is written under a key of the recipe (for stages, under their kind)."""


def _in_american(
    document: Document, part: type[_Part], raw: Any, path: tuple[str | int, ...], problems: list[_Problem]
) -> Any:
    """The raw recipe with the fields' American names; lines move along. Free-form `options` stay as they are."""
    if isinstance(raw, list):
        return [_in_american(document, part, item, (*path, k), problems) for k, item in enumerate(raw)]
    if not isinstance(raw, dict):
        return raw
    if path[:1] == ("stages",) and len(path) == 2:
        part = _PARTS.get(str(raw.get("kind")), _Stage)
    known, found = _fields(part), {}
    for key, value in raw.items():
        name = _spelled(key, known, raw)
        if name == key and key not in known and american(key) != key and american(key) in raw:
            message = f"is set as {american(key)!r} too; keep one of the two"
            problems.append(
                _Problem(UNKNOWN, _place(document.value, (*path, key)), document.line((*path, key)), message)
            )
            continue
        if name != key:
            moved = {line: at for line, at in document.lines.items() if line[: len(path) + 1] == (*path, key)}
            document.lines |= {(*path, name, *line[len(path) + 1 :]): at for line, at in moved.items()}
        inner = _PARTS.get(name, _Stage if name == "stages" else None)
        found[name] = value if inner is None else _in_american(document, inner, value, (*path, name), problems)
    return found


def _problems(document: Document, changed: dict[tuple[str | int, ...], str]) -> list[_Problem]:
    """Everything that is wrong with a recipe's fields; contradictions too, of the fields that are right."""
    raw, found = document.value, list[_Problem]()
    guessed: list[tuple[str | int, ...]] = []
    for attempt in range(4):  # with what is wrong put right, the rest can be compared
        errors = _errors(raw)
        reported = {problem.place for problem in found}
        for error in errors:
            path = _path(raw, error["loc"])
            if attempt == 0 or error["type"] == "value_error" or path[:2] in guessed:
                found += [p for p in [_problem(document, changed, error)] if p.place not in reported]
            if error["type"].startswith("union_tag"):
                guessed.append(path[:2])
        if not errors:
            break
        raw = _repaired(raw, errors)
    if found:
        named = [(stage.get("name"), stage.get("from")) for stage in _dicts(document.value.get("stages"))]
        names = [(name, start) for name, start in named if isinstance(name, str) and isinstance(start, str | None)]
        found += [_Problem(VALUE, "recipe", None, message) for message in _stage_names(names)]
    return [part for problem in found for part in _parts(document, problem)]


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _errors(raw: Any) -> list[ErrorDetails]:
    try:
        Recipe.model_validate(raw)
    except ValidationError as error:  # a list with wrong items is too short as well, which nobody needs to hear
        return [each for each in error.errors() if not (each["type"] == "too_short" and each["input"])]
    return []


_LIKELY: dict[str, Any] = {
    "name": "unnamed",
    "model": "tiny-base",
    "source": "rows",
    "n": 1,
    "lr": 1e-5,
    "steps": 1,
    "prompt": "paper-train",
    "optimizer": {"lr": 1e-5},
    "data": [{"source": "rows", "n": 1}],
}
"""Values of required fields with which the other fields can be checked against each other."""


def _repaired(raw: Any, errors: Sequence[ErrorDetails]) -> Any:
    """A copy with likely values in place of wrong ones, so that the fields that are right can be compared."""
    raw = copy.deepcopy(raw)
    for error in errors:
        path, inside = _path(raw, error["loc"]), raw
        for key in path[:-1]:
            inside = inside[int(key)] if isinstance(inside, list) else inside.get(key, {})
        if isinstance(inside, dict) and path:
            inside.pop(path[-1], None)
            if error["type"] != "extra_forbidden" and path[-1] in _LIKELY:
                inside[path[-1]] = _LIKELY[str(path[-1])]
        elif isinstance(inside, list) and path[0] == "stages" and len(path) == 2:
            inside[int(path[1])] = _likely_stage(inside[int(path[1])], int(path[1]))
    return raw


def _likely_stage(raw: Any, place: int) -> dict[str, Any]:
    """A stage of the kind that has the most of its fields, for one whose kind is missing or unknown."""
    if not isinstance(raw, dict):
        stage = {name: _LIKELY[name] for name in ("prompt", "optimizer", "data")}
        return {"kind": "sft", "name": f"stage-{place}", **stage}
    kind = max(("sft", "rl"), key=lambda kind: len(set(raw) & set(_fields(_PARTS[kind]))))
    return {**raw, "kind": kind}


def _path(raw: Any, loc: Sequence[str | int]) -> tuple[str | int, ...]:
    """Where an error of pydantic's lies in the raw recipe: without the name of a stage's kind in between."""
    path: tuple[str | int, ...] = ()
    for key in loc:
        if isinstance(raw, dict) and key in ("sft", "rl") and key not in raw and len(path) == 2:
            continue
        path = (*path, key)
        if isinstance(raw, list):
            raw = raw[key] if isinstance(key, int) and key < len(raw) else None
        else:
            raw = raw.get(key) if isinstance(raw, dict) else None
    return path


def _place(raw: Any, path: Sequence[str | int]) -> str:
    """A path as `--set` takes it: stages by their names."""
    parts = []
    for key in path:
        raw = raw[key] if isinstance(raw, list) and isinstance(key, int) and key < len(raw) else _get(raw, key)
        named = isinstance(key, int) and isinstance(raw, dict) and isinstance(raw.get("name"), str)
        parts.append(str(raw["name"] if named else key))
    return ".".join(parts)


def _get(raw: Any, key: str | int) -> Any:
    return raw.get(key) if isinstance(raw, dict) else None


def _problem(document: Document, changed: dict[tuple[str | int, ...], str], error: ErrorDetails) -> _Problem:
    path, kind = _path(document.value, error["loc"]), error["type"]
    if kind.startswith("union_tag"):
        path = (*path, "kind")
    place, line = _where(document, changed, path)
    ranks = {"extra_forbidden": UNKNOWN, "missing": MISSING, "union_tag_not_found": MISSING}
    rank = ranks.get(kind, TYPE if kind.endswith(("_type", "_parsing")) else VALUE)
    return _Problem(rank, place, line, _message(error, path))


def _where(
    document: Document, changed: Mapping[tuple[str | int, ...], str], path: tuple[str | int, ...]
) -> tuple[str, int | None]:
    """(place, line) of a field as messages name it: with the `--set` that wrote it, or the line of the file."""
    place = _place(document.value, path) or "recipe"
    override = next((text for at, text in changed.items() if path[: len(at)] == at), "")
    if override:
        return (override if override.endswith(f" {place}") else f"{override}: {place}"), None
    return place, document.line(path)


def _message(error: ErrorDetails, path: Sequence[str | int]) -> str:
    """What was found, and what was expected."""
    kind, found = error["type"], error["input"]
    if kind == "extra_forbidden":
        return f"unknown field; {_unknown(str(path[-1]), error['loc'][:-1])}"
    if kind == "missing":
        return "is missing"
    if kind == "union_tag_not_found":
        return "is missing; expected sft or rl"
    if kind == "union_tag_invalid":
        stage = found.get("kind") if isinstance(found, dict) else found
        return f"found {stage!r}; {nearest(str(stage), ('sft', 'rl'))}"
    message = error["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return message
    if kind == "literal_error":
        choices = [choice.strip("'") for choice in re.findall(r"'[^']*'", message)]
        return f"found {_shown(found)}; {nearest(str(found), choices)}"
    return f"found {_shown(found)}, expected {_EXPECTED.get(kind) or _expected(message)}"


_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "model_type": "a mapping of fields",
    "model_attributes_type": "a mapping of fields",
    "dict_type": "a mapping",
    "tuple_type": "a list",
}
"""What a kind of pydantic's error stands for."""


def _expected(message: str) -> str:
    message = message.removeprefix("Input should be ")
    size = re.fullmatch(r"Tuple should have (at (?:least|most) \d+ items?) after validation, not .*", message)
    pattern = re.fullmatch(r"String should match pattern '(.*)'", message)
    return size[1] if size else f"text that matches {pattern[1]}" if pattern else message


def _parts(document: Document, problem: _Problem) -> Iterator[_Problem]:
    """The contradictions that a validator reported together, each with the field that it names."""
    lines = problem.message.split("\n")
    for line in lines:
        field = re.match(r"([a-z_]+(?:\.[a-z0-9_+-]+)*): ", line)
        if field is None or problem.rank != VALUE or problem.place.endswith("exit_text"):
            yield _Problem(problem.rank, problem.place, problem.line, line)
            continue
        inside = "" if field[1].startswith("stages") or problem.place == "recipe" else f"{problem.place}."
        at = _locate(document.value, f"{inside}{field[1]}")
        yield _Problem(VALUE, f"{inside}{field[1]}", document.line(at), line[field.end() :])


def _locate(raw: Any, place: str) -> tuple[str | int, ...]:
    """The path of a place such as `stages.sft.lora.dropout`."""
    path: tuple[str | int, ...] = ()
    for part in place.split("."):
        step = _step(raw, part)
        if step is None:
            break
        path, raw = (*path, step), raw[int(step)] if isinstance(raw, list) else _get(raw, step)
    return path


def _shown(value: Any) -> str:
    """A value in a message: containers by their kind, texts cut."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return "nothing" if value is None else f"{value!r:.80}"


def _unknown(field: str, path: Sequence[int | str]) -> str:
    """A hint for an unknown field: the nearest ones of its own part, or the part where it belongs."""
    part = next((_PARTS[str(key)] for key in reversed(path) if key in _PARTS), Recipe)
    for key, other in _PARTS.items():
        if american(field) in _fields(other) and key in _fields(part):
            return f"it belongs under {key}: {key}.{field}"
    return nearest(field, _fields(part), "docs/recipe.md lists the fields")
