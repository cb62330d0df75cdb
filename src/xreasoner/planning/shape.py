"""A model's sizes, counted on the meta device from its configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from xreasoner.errors import CheckpointError, UserError

_VISION: dict[str, Any] = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
_VISION |= {"patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]}
_VISION_3: dict[str, Any] = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "patch_size": 16,
}
_VISION_3 |= {"num_position_embeddings": 2304, "deepstack_visual_indexes": [5, 11, 17]}
PUBLIC: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": {
        "model_type": "qwen2_5_vl",
        "tie_word_embeddings": True,
        "text_config": {
            "max_position_embeddings": 128_000,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
        "vision_config": {**_VISION, "out_hidden_size": 2048},
    },
    "Qwen/Qwen2.5-VL-7B-Instruct": {
        "model_type": "qwen2_5_vl",
        "tie_word_embeddings": False,
        "text_config": {
            "max_position_embeddings": 128_000,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "tie_word_embeddings": False,
        },
        "vision_config": {**_VISION, "out_hidden_size": 3584},
    },
    "Qwen/Qwen3-VL-4B-Instruct": {
        "model_type": "qwen3_vl",
        "tie_word_embeddings": True,
        "text_config": {
            "max_position_embeddings": 262_144,
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
        "vision_config": {**_VISION_3, "out_hidden_size": 2560},
    },
}
PUBLIC["microsoft/X-Reasoner-7B"] = PUBLIC["Qwen/Qwen2.5-VL-7B-Instruct"]
"""The public configurations of the shipped recipes' models, so that a plan needs no network."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's sizes. Counts are parameters.

    layer: of one layer. head: output weights that are not the embeddings. vision: the tower with its merger.
    positions: tokens that the model takes. linear: {a layer's linear: (inputs, outputs)}.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    query: int
    key: int
    vocab: int
    layer: int
    embeddings: int
    head: int
    norm: int
    vision: int
    positions: int
    linear: Mapping[str, tuple[int, int]]

    @property
    def text(self) -> int:
        """Everything but the vision tower and its merger."""
        return self.layers * self.layer + self.embeddings + self.head + self.norm

    @property
    def root(self) -> int:
        """Parameters outside the layers: embeddings, output weights of their own if any, the last norm."""
        return self.embeddings + self.head + self.norm

    @property
    def computed(self) -> int:
        """Parameters that each token is multiplied with, output weights included."""
        return self.layers * sum(a * b for a, b in self.linear.values()) + self.vocab * self.hidden

    @property
    def kv(self) -> int:
        """Numbers that one token leaves in the cache."""
        return 2 * self.layers * self.key


@lru_cache(maxsize=8)
def shape(model: str) -> Shape:
    """The sizes of a model by registered name, folder or hub id, counted on the meta device."""
    import torch
    from transformers import AutoModelForImageTextToText

    config = _config(model)
    with torch.device("meta"):
        built = AutoModelForImageTextToText.from_config(config)
    text, language = config.text_config, built.model.language_model
    counts = {name: parameter.numel() for name, parameter in built.named_parameters()}
    linear = {
        name.rpartition(".")[2]: (module.in_features, module.out_features)
        for name, module in language.layers[0].named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    vision = sum(count for name, count in counts.items() if "visual." in name)
    head = sum(count for name, count in counts.items() if name.startswith("lm_head."))
    layer = sum(parameter.numel() for parameter in language.layers[0].parameters())
    embeddings = language.embed_tokens.weight.numel()
    return Shape(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        heads=text.num_attention_heads,
        query=linear["q_proj"][1],
        key=linear["k_proj"][1],
        vocab=text.vocab_size,
        layer=layer,
        embeddings=embeddings,
        head=head,
        norm=sum(counts.values()) - vision - head - embeddings - layer * text.num_hidden_layers,
        vision=vision,
        positions=text.max_position_embeddings,
        linear=linear,
    )


def _config(model: str) -> Any:
    from transformers import AutoConfig

    from xreasoner.models.loading import find

    if model in PUBLIC:
        settings = dict(PUBLIC[model])
        return AutoConfig.for_model(settings.pop("model_type"), **settings)
    try:
        return AutoConfig.from_pretrained(find(model))
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise CheckpointError(f"model {model!r}: its configuration cannot be read: {error}") from None
