"""A model that answers every prompt differently, and both ways through its layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from xreasoner.engines import native
from xreasoner.models.loading import Loaded, load


@pytest.fixture(scope="module")
def varied(random_folder: Path) -> Loaded:
    """Weights so large that every prompt is answered differently (the embedded start repeats one token for ever)."""
    found = load(str(random_folder))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in found.model.named_parameters():
            if parameter.dim() >= 2 and "embed_tokens" not in name:
                parameter.normal_(0.0, 0.08)
    return found


@pytest.fixture(params=["native", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small models on a CPU have two ways through the layers; what the engine promises holds on both."""
    if request.param == "torch":
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("no C compiler here")
    return str(request.param)
