"""A copy of the policy for rollouts: whole, in the rollouts' type, and in memory only while they are made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from xreasoner.models.freezing import VISION
from xreasoner.models.loading import Loaded
from xreasoner.models.offloading import copy_with
from xreasoner.training import parallel


@dataclass(frozen=True, slots=True)
class Replica:
    """The model that an engine in this process samples from, where that is not the trained one itself.

    loaded: its text weights have memory between `fill` and `release`. Its vision tower is the trained model's, which
    rollouts on text never compute with.
    """

    loaded: Loaded

    @classmethod
    def of(cls, loaded: Loaded, dtype: torch.dtype, device: torch.device) -> Replica:
        """A replica of a model in another type or place, without memory yet."""

        def emptied(name: str, parameter: Parameter) -> Parameter:
            if VISION in name:
                return parameter
            return Parameter(torch.empty(parameter.shape, dtype=dtype, device=device), requires_grad=False)

        model = copy_with(loaded.model, emptied)
        found = cls(replace(loaded, model=model))
        found.release()
        return found

    def allocate(self) -> None:
        """Give the text weights memory; what they hold is undefined."""
        for weight in self._weights():
            weight.untyped_storage().resize_(weight.numel() * weight.element_size())

    def fill(self, model: Any) -> None:
        """Copy the trained model's weights; every rank must call."""
        self.allocate()
        parallel.copy_weights(model, self.loaded.model, frozen=True)

    def release(self) -> None:
        """Free the text weights' memory."""
        for weight in self._weights():
            weight.untyped_storage().resize_(0)

    def _weights(self) -> list[Tensor]:
        return [parameter.data for name, parameter in self.loaded.model.named_parameters() if VISION not in name]
