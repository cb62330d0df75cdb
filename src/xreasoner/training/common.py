"""What both stages share: the model made ready, the optimiser and its schedule, metrics on disk, bookkeeping."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from xreasoner.data.packing import ready_to_pack
from xreasoner.errors import NonFiniteError
from xreasoner.models.loading import Loaded
from xreasoner.models.offloading import copy_text_part
from xreasoner.recipe import AdamW, RLStage, SFTStage
from xreasoner.training import checkpoints, parallel
from xreasoner.training.replicas import Replica

Progress = Callable[[str, int, int, dict[str, Any]], None]
"""Called as progress(stage, step, total, metrics)."""


MOST_LOGITS = {"cpu": 2**21, "cuda": 2**28}
"""Logits that exist at a time: 1 GiB on a GPU; on a CPU 8 MiB, which its caches hold and nobody has to clear first."""
LEAST_ROWS = 128
"""Tokens whose logits are made at a time, at least: fewer make the products slow."""


@dataclass(frozen=True, slots=True)
class Learner:
    """A model made ready for a stage.

    loaded: it, sharded where there are several ranks. replica: a whole copy of it (itself in one process), which the
    export is written from; its weights are on the meta device on ranks other than 0. reference: it as it was before the
    stage, frozen and likewise sharded, which a KL holds it to; else None. packed: batches are packed rows. sampler: the
    copy that the engine in this process samples from; None where that is the model itself, or servers sample.
    """

    loaded: Loaded
    replica: Loaded
    reference: Any
    packed: bool
    precision: str
    sampler: Replica | None = None

    @property
    def model(self) -> Any:
        return self.loaded.model

    def computing(self) -> AbstractContextManager[Any]:
        """bfloat16 where the stage asks for it; a sharded model sees to that itself."""
        if self.precision == "float32" or isinstance(self.model, FSDPModule):
            return nullcontext()
        return torch.autocast(self.loaded.device.type, torch.bfloat16)

    def most_logits(self) -> int:
        return max(MOST_LOGITS[self.loaded.device.type], LEAST_ROWS * len(self.model.lm_head.weight))


def packs(stage: SFTStage | RLStage, device: torch.device) -> bool:
    """Whether a stage's batches are packed rows. RL shares prompts in padded ones, which needs a cache, which a layer
    that is computed twice cannot fill."""
    if stage.batching != "auto":
        return stage.batching == "packed"
    return device.type == "cuda" or (isinstance(stage, RLStage) and stage.activation_checkpointing)


def ready(stage: SFTStage | RLStage, loaded: Loaded) -> Learner:
    """Make a frozen model ready: packed attention, activation checkpointing, compiled and sharded layers.

    Of several ranks, rank 0 brings the model on its CPU, whence its shards go to the GPUs (`parallel.shard`); it keeps
    that copy, which the export is written from. A GPU has a whole copy of the text weights only while the engine in
    this process samples from it (`replicas.Replica`).
    """
    model, alone = loaded.model, parallel.size() == 1
    packed = packs(stage, loaded.device if alone else parallel.device())
    if packed:
        ready_to_pack(model)
    referred = (stage.kl if isinstance(stage, RLStage) else stage.kl_to_base) > 0
    sampler = _sampler(stage, loaded) if isinstance(stage, RLStage) and stage.rollouts is None else None
    reference = copy_text_part(model) if referred and alone else None
    if not alone:
        model, whole = parallel.shard(model, stage.precision), model
        reference = parallel.shard(whole, stage.precision) if referred else None
    if sampler is not None:
        parallel.copy_buffers(model, sampler.loaded.model)
    if reference is not None:
        reference.requires_grad_(False)
    if stage.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if stage.compile:
        for layer in model.model.language_model.layers:
            layer.compile(dynamic=True)
    return Learner(replace(loaded, model=model), loaded, reference, packed, stage.precision, sampler)


def _sampler(stage: RLStage, loaded: Loaded) -> Replica | None:
    """The copy to sample from; None where the model itself has the rollouts' type, in one process."""
    dtype = torch.bfloat16 if stage.rollouts_in_bfloat16 else torch.float32
    if parallel.size() > 1:
        return Replica.of(loaded, dtype, parallel.device())
    halved = stage.lora is not None and stage.lora.base_dtype == "bfloat16"
    return None if halved == (dtype == torch.bfloat16) else Replica.of(loaded, dtype, loaded.device)


def make_optimiser(model: Any, settings: AdamW) -> torch.optim.AdamW:
    """AdamW over the parameters that train; frozen ones stay outside, where weight decay cannot reach them."""
    moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(moving, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)


def rate(settings: AdamW, step: int, total: int, epochs: float = 1.0) -> float:
    """Learning rate of a step counted from 0."""
    warm = settings.warmup * total
    if step < warm:
        return settings.lr * (step + 1) / (warm + 1)
    left = (total - step) / max(1.0, total - warm)
    factor = {
        "constant": 1.0,
        "linear": left,
        "cosine": 0.5 * (1 - math.cos(math.pi * left)),
        "epoch-decay": 0.8 ** math.floor(step * epochs / total),
    }[settings.schedule]
    return settings.lr * factor


@dataclass(frozen=True, slots=True)
class StepContext:
    """Where training is, for what an error reports.

    stage: its name. step: counted from 1. out: the stage's folder. saved: the newest checkpoint's step, or 0.
    """

    stage: str
    step: int
    out: Path
    saved: int = 0

    def check_finite(self, model: Any, values: Mapping[str, Tensor | None], rows: Sequence[int], batch: Any) -> None:
        """Raise `NonFiniteError` for the first value that is NaN or infinite, with the batch saved beside the metrics.

        Args:
            model: whose weights are looked through when a value is not finite.
            values: by name, in the order in which they are computed; None where there is none. Of values [B, T] the
                error names the rows concerned.
            rows: the micro-batch's rows, as positions in the step's batch.
            batch: what is saved.
        """
        for name, value in values.items():
            if value is None or bool(torch.isfinite(value.detach()).all()):
                continue
            if value.dim() == 2 and len(value) == len(rows):
                rows = [row for row, own in zip(rows, value.isfinite().all(dim=1).tolist(), strict=True) if not own]
            raise self.non_finite(model, name, rows, batch)

    def non_finite(self, model: Any, name: str, rows: Sequence[int], batch: Any) -> NonFiniteError:
        """The error for a value by this name, such as `loss`."""
        several = parallel.size() > 1
        path = self.out / (f"offending-batch-rank-{parallel.rank()}.pt" if several else "offending-batch.pt")
        torch.save(batch, path)
        shown = ", ".join(map(str, rows[:8])) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
        broken = None if several else first_non_finite(model)
        # sharded weights are looked through by all ranks together or not at all
        cause = "the weights are finite, so the batch or the step size is the cause: set precision: float32, or lower "
        cause += "optimizer.lr"
        if several:
            cause = "set precision: float32, or lower optimizer.lr"
        if broken is not None:
            cause = f"the weight {broken} is not finite: check the model that the stage starts from, set precision: "
            cause += "float32, or lower optimizer.lr"
        kept = f"the checkpoint of step {self.saved} is kept" if self.saved else "no checkpoint was saved yet"
        return NonFiniteError(
            f"stage {self.stage}, step {self.step}: non-finite {name} (micro-batch rows {shown}; saved in {path}"
            f"); {cause}; {kept}"
        )


def first_non_finite(model: Any) -> str | None:
    """The name of the first weight that holds a NaN or an infinity, or None."""
    return next((name for name, weight in model.named_parameters() if not bool(torch.isfinite(weight).all())), None)


def update(
    model: Any,
    optimiser: torch.optim.Optimizer,
    lr: float,
    clip: float,
    context: StepContext,
    rows: Sequence[int],
    batch: Any,
) -> float:
    """One optimizer step; returns the gradient's norm before clipping.

    Raises:
        NonFiniteError: the gradient is not finite; no weight has moved, and the batch is saved.
    """
    moving = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    norm = parallel.whole(torch.nn.utils.clip_grad_norm_(moving, clip))
    if not bool(torch.isfinite(norm)):
        raise context.non_finite(model, "gradient's norm", rows, batch)
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return norm.item()


def accumulate(loss: Tensor) -> None:
    """Add a part of the step's loss to the gradient; a sharded model's gradient is the mean over the ranks."""
    (loss if parallel.size() == 1 else loss * parallel.size()).backward()  # type: ignore[no-untyped-call]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block ends: a step is taken whole or not at all, and so is what is saved.

    Of several ranks all stop where one is told to.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[tuple[int, FrameType | None]] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = {number: handler for number, handler in before.items() if callable(handler)}
    for awaited in handlers:
        signal.signal(awaited, lambda number, frame: waiting.append((number, frame)))
    try:
        yield
    finally:
        for received, handler in handlers.items():
            signal.signal(received, handler)
    if parallel.size() > 1:
        if parallel.agreed(bool(waiting)):
            raise KeyboardInterrupt
        return
    for number, frame in waiting[:1]:
        handlers[signal.Signals(number)](number, frame)


class Journal:
    """metrics.jsonl (each step once, also after a resume), checkpoints, and the clock of one stage.

    kept: what else the stage wants back after a resume; settle is called before it is saved. Rank 0 alone writes
    metrics; all ranks call everything.
    """

    def __init__(self, out: Path, model: Any, optimiser: torch.optim.Optimizer, stage: SFTStage | RLStage) -> None:
        self.out, self.model, self.optimiser, self.stage = out, model, optimiser, stage
        self.step, self.seconds, self.saved = 0, 0.0, time.monotonic()
        self.saved_step = 0
        self.kept: dict[str, Any] = {}
        self.settle: Callable[[], None] = lambda: None

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one; later lines of metrics.jsonl are dropped."""
        tensors = self._tensors()
        with torch.no_grad():
            state = checkpoints.load(self.out / "checkpoints", tensors)
        if state is not None:
            self.step, self.seconds, self.kept = state["step"], state["seconds"], {**self.kept, **state["kept"]}
            self.saved_step = self.step
            checkpoints.restore_rng(state["rng"])
        if parallel.rank() == 0:
            path = self.out / "metrics.jsonl"
            kept = [line for line in _lines(path) if line["step"] <= self.step]
            aside = path.with_suffix(".partial")
            aside.write_text("".join(json.dumps(line) + "\n" for line in kept))
            os.replace(aside, path)

    def write(self, metrics: dict[str, Any]) -> None:
        """One finished step: its line, and a checkpoint when it is time."""
        self.step += 1
        if parallel.rank() == 0:
            with (self.out / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": self.step, **metrics}) + "\n")
        self.seconds += metrics["seconds"]
        if parallel.agreed(time.monotonic() - self.saved > self.stage.checkpoint_seconds):
            self.save()

    def save(self) -> None:
        """A checkpoint of what is now; before the first step there is nothing to lose."""
        if self.step:
            self.check_weights()
            self.settle()
            rest = {"seconds": self.seconds, "kept": self.kept}
            folder = self.out / "checkpoints"
            checkpoints.save(folder, self.step, self._tensors(), rest, self.stage.checkpoints_kept)
            self.saved_step = self.step
        self.saved = time.monotonic()

    def context(self) -> StepContext:
        """Where training is, during the next step."""
        return StepContext(self.stage.name, self.step + 1, self.out, self.saved_step)

    def check_weights(self) -> None:
        """Raise `NonFiniteError` for a trained weight that is NaN or infinite, so that no good checkpoint gives way."""
        broken = next((name for name, tensor in self._tensors().items() if not _finite(tensor)), None)
        if parallel.agreed(broken is not None):
            kept = f"the checkpoint of step {self.saved_step} is kept" if self.saved_step else "nothing was saved"
            raise NonFiniteError(
                f"stage {self.stage.name}, step {self.step}: {broken or 'a weight of another rank'} is not finite "
                f"after the update; set precision: float32, or lower optimizer.lr; {kept}"
            )

    def _tensors(self) -> dict[str, Tensor]:
        """Every trained tensor and its AdamW state, by name; they are the ones that train, not copies."""
        found = {}
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            state = self.optimiser.state[parameter]
            if not state:  # as AdamW itself begins
                state["step"] = torch.tensor(0.0)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            found[f"parameters/{name}"] = parameter.detach()
            found |= {f"{kind}/{name}": value.detach() for kind, value in state.items()}
        return found


def _finite(tensor: Tensor) -> bool:
    """Whether this rank's part of a tensor is finite."""
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return bool(torch.isfinite(own).all())


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file; a last line that a kill cut short is left out, and all after a damaged one."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            read = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(read, dict) or "step" not in read:
            break
        found.append(read)
    return found
