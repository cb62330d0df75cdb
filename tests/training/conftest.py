"""A smaller random model: of these tests most time goes into saving, sharding and stepping through every tensor."""

from __future__ import annotations

from pathlib import Path

import pytest

from xreasoner.models.export import export
from xreasoner.models.loading import load

LAYERS = 2


@pytest.fixture(scope="session")
def random_folder(random_folder: Path) -> Path:
    """The random folder with the first layers alone, of the language model and of the tower."""
    loaded = load(str(random_folder))
    language, tower = loaded.model.model.language_model, loaded.model.model.visual
    language.layers, tower.blocks = language.layers[:LAYERS], tower.blocks[:LAYERS]
    language.config.num_hidden_layers = tower.config.depth = LAYERS
    language.config.layer_types = language.config.layer_types[:LAYERS]
    tower.config.fullatt_block_indexes = list(range(LAYERS))
    return export(loaded.model, loaded.tokenizer, loaded.image_processor, random_folder.with_name("small"))
