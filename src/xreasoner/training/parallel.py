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
from torch.distributed.tensor import DTensor, distribute_tensor

from xreasoner.models.freezing import VISION
from xreasoner.models.offloading import copy_structure


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


def shard(model: Any, precision: str) -> Any:
    """A copy of rank 0's model, sharded over the ranks' GPUs: its decoder layers, then the root.

    The weights go out one by one, so that no GPU ever holds the model whole, and no host but rank 0's. The vision tower
    is not sharded and stays where it is: training on text never computes with it.

    Args:
        model: rank 0's with its weights, on its CPU; the other ranks' have theirs on the meta device.
        precision: bfloat16: the shards stay in their own type, float32 masters where they are trained, are gathered in
            bfloat16, and their gradients summed in float32.

    Returns:
        The sharded model.
    """
    half = torch.bfloat16 if precision == "bfloat16" else None
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32)
    sharded = copy_structure(model)
    tower, sharded.model.visual = sharded.model.visual, torch.nn.Identity()
    for layer in sharded.model.language_model.layers:
        fully_shard(layer, mp_policy=policy)
    fully_shard(sharded, mp_policy=policy)
    sharded.to_empty(device=device())
    _receive(model, sharded)
    sharded.model.visual = tower
    sharded.run_in_forward = MethodType(_call, sharded)
    register_fsdp_forward_method(sharded, "run_in_forward")
    return sharded


@torch.no_grad()
def _receive(model: Any, sharded: Any) -> None:
    """Fill the shards, and the buffers, from rank 0's model."""
    whole_tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, buffer in sharded.named_buffers():
        buffer.copy_(_broadcast(whole_tensors[name], buffer))
    for name, parameter in sharded.named_parameters():
        full = _broadcast(whole_tensors[name].detach(), parameter)
        own = distribute_tensor(full, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.to_local().copy_(own.to_local())


def _broadcast(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Rank 0's tensor on this rank's device; the other ranks' is like the one to be filled."""
    if rank() == 0:
        found = tensor.to(device()).contiguous()
    else:
        found = torch.empty(like.shape, dtype=like.dtype, device=device())
    dist.broadcast(found, src=0)
    return found


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
def copy_weights(model: Any, replica: Any, frozen: bool = False) -> None:
    """Put a sharded model's trained weights into a whole copy of it; every rank must call.

    Args:
        model: the sharded model.
        replica: the copy; None on ranks that have none.
        frozen: copy the frozen text weights too. The vision tower is never copied.
    """
    if replica is model:
        return
    copies = {} if replica is None else dict(replica.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or (frozen and VISION not in name):
            gathered = whole(parameter.detach())
            if name in copies:
                copies[name].copy_(gathered)


def copy_buffers(model: Any, copied: Any) -> None:
    """Put a model's text buffers, such as its rotary frequencies, into a copy, whose own may be on the meta device."""
    for name, buffer in model.named_buffers():
        if VISION not in name and buffer is not None:
            holder, _, last = name.rpartition(".")
            setattr(copied.get_submodule(holder), last, buffer.clone())
