"""Loading and exporting: plain folders, old and new configuration, and clear words for damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from xreasoner.errors import CheckpointError, UserError
from xreasoner.models.export import export
from xreasoner.models.freezing import fingerprint, freeze
from xreasoner.models.loading import Loaded, encode, load


def test_export_round_trip_keeps_every_tensor_and_writes_both_forms(loaded: Loaded, tmp_path: Path) -> None:
    folder = export(loaded.model, loaded.tokenizer, loaded.image_processor, tmp_path / "out")
    again = load(str(folder))
    assert fingerprint(sorted(again.model.state_dict().items())) == fingerprint(sorted(loaded.model.state_dict().items()))
    config = json.loads((folder / "config.json").read_text())
    assert config["text_config"]["rope_scaling"] == {"type": "mrope", "mrope_section": [4, 6, 6]}
    assert config["text_config"]["rope_theta"] == 10_000.0
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not list(tmp_path.glob("*.partial"))


def test_a_text_that_spells_a_picture_is_no_picture(loaded: Loaded) -> None:
    text = "what is <|image_pad|> and <|vision_start|>?"
    ids = encode(loaded, [{"role": "user", "content": text}]).input_ids
    assert loaded.model.config.image_token_id not in ids.tolist()
    with pytest.raises(UserError, match="places for pictures"):
        encode(loaded, [{"role": "user", "content": text}], [Image.new("RGB", (56, 56))])


def test_a_checkpoint_cut_in_half_is_named(random_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    shutil.copytree(random_folder, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(str(folder))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        load(str(folder))
    with pytest.raises(UserError, match="no such folder"):
        load(str(tmp_path / "nowhere"))


def test_freezing_names_the_tower_and_the_lower_layers(loaded: Loaded) -> None:
    frozen = dict(freeze(loaded.model, lower_layers=2))
    still = {name for name, parameter in loaded.model.named_parameters() if not parameter.requires_grad}
    assert set(frozen) == still
    assert any("visual.merger" in name for name in still)
    assert any("layers.1." in name for name in still)
    assert not any("language_model.layers.2." in name for name in still)
    before = fingerprint(frozen.items())
    with torch.no_grad():
        next(iter(frozen.values())).add_(1e-3)
    assert fingerprint(frozen.items()) != before
