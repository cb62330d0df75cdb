"""A vision tower in a file takes no memory, and is what it was to whatever reads it."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from xreasoner.models.export import export
from xreasoner.models.freezing import VISION, fingerprint
from xreasoner.models.loading import Loaded
from xreasoner.models.offloading import copy_structure, copy_text_part, copy_with, offload_vision, to_file


def anonymous_bytes() -> int:
    """The process's memory that no file backs."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def _bytes(storages: list[torch.Tensor]) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in storages}


def test_an_offloaded_tower_leaves_memory(loaded: Loaded, tmp_path: Path) -> None:
    size = 64 * 2**20
    visual = loaded.model.model.visual
    torch.ones(7 * 2**20)  # a freed block of 28 MB: from here on smaller ones are kept by glibc when they are freed
    visual.large = nn.ParameterList([nn.Parameter(torch.ones(2**20), requires_grad=False) for _ in range(16)])
    before = anonymous_bytes()
    moved = offload_vision(loaded.model, tmp_path)
    assert moved >= size
    assert before - anonymous_bytes() > 0.95 * size
    assert list(tmp_path.iterdir()) == []  # the file has no name, so nothing stays when the process is killed
    assert sum(float(part.sum()) for part in visual.large) == size // 4


def test_an_offloaded_tower_is_exported_to_the_bit(loaded: Loaded, tmp_path: Path) -> None:
    def written(name: str) -> dict[str, torch.Tensor]:
        folder = export(loaded.model, loaded.tokenizer, loaded.image_processor, tmp_path / name)
        return load_file(folder / "model.safetensors")

    whole, before = written("whole"), fingerprint(sorted(loaded.model.state_dict().items()))
    offload_vision(loaded.model, tmp_path)
    assert fingerprint(sorted(loaded.model.state_dict().items())) == before
    found = written("offloaded")
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())


def test_an_offloaded_tower_still_sees(loaded: Loaded, tmp_path: Path) -> None:
    patches, grid = torch.randn(16, 1176), torch.tensor([[1, 4, 4]])
    before = loaded.model.model.get_image_features(patches, grid).pooler_output[0]
    offload_vision(loaded.model, tmp_path)
    assert torch.equal(loaded.model.model.get_image_features(patches, grid).pooler_output[0], before)


def test_tensors_of_any_type_and_shape_are_kept_in_files(tmp_path: Path) -> None:
    for tensor in (torch.randn(3, 5).bfloat16(), torch.randn(()), torch.empty(0, 4), torch.arange(6).view(2, 3).T):
        found = to_file(tensor, tmp_path)
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)


def test_copies_share_the_tower_alone(loaded: Loaded) -> None:
    model = loaded.model
    tower = [p for name, p in model.named_parameters() if VISION in name]
    text = [p for name, p in model.named_parameters() if VISION not in name]
    copied, empty = copy_text_part(model), copy_structure(model)
    for other in (copied, empty):
        shared = [p for name, p in other.named_parameters() if VISION in name]
        assert all(a is b for a, b in zip(shared, tower, strict=True))
        assert (other.lm_head.weight is other.model.language_model.embed_tokens.weight) == (
            model.lm_head.weight is model.model.language_model.embed_tokens.weight
        )
    theirs = [p for name, p in copied.named_parameters() if VISION not in name]
    assert not _bytes(theirs) & _bytes(text)
    assert all(torch.equal(a, b) for a, b in zip(theirs, text, strict=True))
    assert all(p.is_meta for name, p in empty.named_parameters() if VISION not in name)
    same = copy_with(model, lambda _, parameter: parameter)
    assert all(a is b for a, b in zip(same.parameters(), model.parameters(), strict=True))
    assert same.model.language_model.layers[0] is not model.model.language_model.layers[0]
