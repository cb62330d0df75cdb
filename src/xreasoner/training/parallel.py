"""One process or several under `torchrun`: who writes, what is summed, and how the model is sharded (FSDP2).

Every function does the plain thing in a single process. Several ranks compute what one would: each takes its share of
a batch, and losses are divided by counts over the whole of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from xreasoner.models.freezing import VISION


@contextmanager
def world() -> Iterator[None]:
    """Join the ranks that `torchrun` started, if it did, and leave them at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def size() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0; rank 0 alone writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def device() -> torch.device:
    """Where this rank computes."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def barrier() -> None:
    """Wait until every rank is here."""
    if size() > 1:
        dist.barrier()


def totals(values: Sequence[float]) -> list[float]:
    """Each value's sum over the ranks."""
    if size() == 1:
        return list(values)
    found = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(found)
    return [float(value) for value in found]


def agreed(wish: bool) -> bool:
    """True on every rank where any rank wishes it."""
    return wish if size() == 1 else totals([float(wish)])[0] > 0


def told(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gathered(items: list[Any]) -> list[Any]:
    """All ranks' items, dealt out as `share` deals them: item k is rank (k mod size)'s."""
    if size() == 1:
        return items
    found: list[list[Any]] = [[] for _ in range(size())]
    dist.all_gather_object(found, items)
    longest = max(map(len, found))
    return [part[k] for k in range(longest) for part in found if k < len(part)]


def share(items: Sequence[Any], of: int | None = None) -> list[Any]:
    """This rank's items (or another's), dealt out like cards."""
    return list(items[(rank() if of is None else of) :: size()])


def shard(model: Any, precision: str) -> None:
    """Shard the decoder layers, then the root, in place; the vision tower stays whole on every rank.

    A model on the CPU moves to the rank's card layer by layer, so that the card never holds it whole.
    bfloat16: the shards are float32 masters, gathered in bfloat16, their gradients summed in float32.
    """
    half = torch.bfloat16 if precision == "bfloat16" else None
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32)
    tower = {parameter for name, parameter in model.named_parameters() if VISION in name}
    for layer in model.model.language_model.layers:
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy, ignored_params=tower)
    for parameter in tower:
        parameter.data = parameter.data.to(device())
    model.run_in_forward = MethodType(_call, model)
    register_fsdp_forward_method(model, "run_in_forward")


def _call(model: Any, function: Callable[..., Any], *args: Any) -> Any:
    return function(model, *args)


def forward(model: Any, function: Callable[..., Any], *args: Any) -> Any:
    """function(model, *args), with the root's weights gathered around it where the model is sharded.

    Whatever of the result carries a gradient must be a tensor or a tuple of them. Where none is wanted, the root's
    weights are parted again: a later pass that found them gathered would lose a part of their gradient.
    """
    if isinstance(model, FSDPModule):
        sharded: Any = model
        found = sharded.run_in_forward(function, *args)
        if not torch.is_grad_enabled():
            sharded.reshard()
        return found
    return function(model, *args)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor put together from its shards; every rank must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def copy_weights(model: Any, replica: Any) -> None:
    """Put a sharded model's trained weights into a whole copy of it (None: of other ranks); every rank must call."""
    if replica is model:
        return
    copies = {} if replica is None else dict(replica.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            gathered = whole(parameter.detach())
            if name in copies:
                copies[name].copy_(gathered)
