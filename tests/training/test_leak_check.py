"""No document of a batch sees another, for every family that a recipe names; a small leak is found in any precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import FAMILIES, small_model
from torch import Tensor

from xreasoner.data.packing import ready_to_pack
from xreasoner.errors import NonFiniteError, TrainingError
from xreasoner.models import attention
from xreasoner.models.loading import Loaded
from xreasoner.training import leak_check

ROWS = [tuple(range(30, 30 + length)) for length in (9, 40, 21, 33, 12)]


def _checks(model: Any, precision: str) -> list[Callable[[], float]]:
    return [
        lambda: leak_check.check_documents(model, ROWS, True, precision),
        lambda: leak_check.check_documents(model, ROWS, False, precision),
        lambda: leak_check.check_shared_prompts(model, ROWS, precision),
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_no_document_sees_another(family: str, precision: str, random_folder: Path, tmp_path: Path) -> None:
    loaded = small_model(family, random_folder, tmp_path)
    ready_to_pack(loaded.model)
    for check in _checks(loaded.model, precision):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            assert check() < leak_check.TOLERANCE[precision]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_leak_below_the_tolerance_is_found(loaded: Loaded, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """A hundredth of what the row would attend to without documents: 5 % of the scale used to be accepted."""
    ready_to_pack(loaded.model)
    attend = attention.document_attention

    def leaky(module: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **settings: Any) -> Any:
        found, weights = attend(module, query, key, value, *rest, **settings)
        if settings.get("documents") is None:
            return found, weights
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return found + 0.01 * (mixed.transpose(1, 2) - found), weights

    monkeypatch.setitem(attention.AttentionInterface._global_mapping, attention.NAME, leaky)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        with pytest.raises(TrainingError, match=r"documents see each other.*set batching: padded"):
            leak_check.check_documents(loaded.model, ROWS, True, precision)
        leak_check.check_documents(loaded.model, ROWS, False, precision)


def test_wrong_positions_are_found(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions that run on through the row move no other document's numbers, but are not those of a text alone."""
    ready_to_pack(loaded.model)
    of = attention.Documents.of

    def running_on(lengths: list[int], device: torch.device) -> attention.Documents:
        found = of(lengths, device)
        return attention.Documents(found.lengths, found.ends, torch.arange(sum(lengths))[None] * 3)

    monkeypatch.setattr(leak_check.Documents, "of", running_on)
    with pytest.raises(TrainingError, match="do not equal the same ones alone"):
        leak_check.check_documents(loaded.model, ROWS, True, "float32")


def test_a_mask_that_hides_nothing_is_found(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    def seen_by_all(model: Any, ids_BT: Tensor, documents: Any = None) -> Tensor:
        mask = torch.zeros(len(ids_BT), 1, ids_BT.shape[1], ids_BT.shape[1])
        hidden: Tensor = model.model.language_model(input_ids=ids_BT, attention_mask=mask).last_hidden_state
        return hidden

    monkeypatch.setattr(leak_check, "hidden_states", seen_by_all)
    for packed in (False, True):
        with pytest.raises(TrainingError, match=r"do not equal|see each other"):
            leak_check.check_documents(loaded.model, ROWS, packed, "float32")


def test_weights_that_are_not_finite_are_named(loaded: Loaded) -> None:
    with torch.no_grad():
        loaded.model.model.language_model.layers[0].mlp.up_proj.weight[0, 0] = torch.inf
    with pytest.raises(NonFiniteError, match=r"before step 1: the weight .*layers\.0\.mlp\.up_proj\.weight is not"):
        leak_check.check_documents(loaded.model, ROWS, False, "float32")
