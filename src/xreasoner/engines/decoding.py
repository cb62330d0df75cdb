"""One more token for every row: straight through the layers of a Qwen-VL language model, over the model's own weights.

transformers' own layers cost more in Python and in copies than a small batch costs in arithmetic. This path computes
the same thing (tests compare it with `generate`, token by token); `fits` says where it may be taken, and any other
model goes through its own forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xreasoner.engines.slots import Slots

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Model types whose layers are those written down here: RMS norms, rotated grouped attention, a gated MLP."""


def fits(model: Any) -> bool:
    """Whether the model is of a family known here, whole on one device, with plain weights and fixed rotations."""
    # in a text stage of training the vision tower is elsewhere
    devices = {parameter.device for name, parameter in model.named_parameters() if "visual." not in name}
    if model.config.model_type not in FAMILIES or len(devices) > 1 or devices == {torch.device("meta")}:
        return False
    language = model.model.language_model
    linears = [module for name, module in language.named_modules() if name.endswith("_proj")] + [model.lm_head]
    plain = all(type(module) is nn.Linear and type(module.weight.data) is Tensor for module in linears)
    return plain and "dynamic" not in language.rotary_emb.rope_type and language.rotary_emb.rope_type != "longrope"


class Decoder:
    """Holds no weights, only the rotations: after a step of training it computes with the new weights."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.language = model.model.language_model
        attention = self.language.layers[0].self_attn
        self.width = attention.head_dim
        self.heads = attention.q_proj.out_features // self.width
        self.groups = attention.k_proj.out_features // self.width
        self.normed = hasattr(attention, "q_norm")
        self.eps = self.language.config.rms_norm_eps
        self.turns_ND = (torch.empty(0), torch.empty(0))

    def step(self, token_B: Tensor, position_B: Tensor, slots: Slots, mask_BS: Tensor) -> Tensor:
        """Logits [B, V] after one token a row; its keys and values go into the slots' column."""
        hidden_BE = F.embedding(token_B, self.language.embed_tokens.weight)
        cos_ND, sin_ND = self.turns(int(position_B.max()), hidden_BE)
        position_B = position_B.to(hidden_BE.device)
        cos_B1D, sin_B1D = cos_ND[position_B].unsqueeze(1), sin_ND[position_B].unsqueeze(1)
        rows = len(token_B)
        mask_M1S = mask_BS[:, None].expand(rows, self.groups, -1).reshape(rows * self.groups, 1, -1)
        for index, layer in enumerate(self.language.layers):
            normed_BE = self._norm(hidden_BE, layer.input_layernorm)
            mixed_BE = self._attend(layer.self_attn, normed_BE, cos_B1D, sin_B1D, mask_M1S, slots, index)
            hidden_BE = hidden_BE + layer.self_attn.o_proj(mixed_BE)
            normed_BE, mlp = self._norm(hidden_BE, layer.post_attention_layernorm), layer.mlp
            gated_BF = F.silu(_linear(mlp.gate_proj, normed_BE)).mul_(_linear(mlp.up_proj, normed_BE))
            hidden_BE = hidden_BE + _linear(mlp.down_proj, gated_BF)
        logits: Tensor = _linear(self.model.lm_head, self._norm(hidden_BE, self.language.norm))
        return logits

    def _attend(
        self, layer: Any, x_BE: Tensor, cos_B1D: Tensor, sin_B1D: Tensor, mask_M1S: Tensor, slots: Slots, index: int
    ) -> Tensor:
        """Grouped attention over the slots; M is rows times groups."""
        rows, groups, width = len(x_BE), self.groups, self.width
        query_BHD = _linear(layer.q_proj, x_BE).view(rows, self.heads, width)
        key_BKD = _linear(layer.k_proj, x_BE).view(rows, groups, width)
        if self.normed:
            query_BHD, key_BKD = self._norm(query_BHD, layer.q_norm), self._norm(key_BKD, layer.k_norm)
        both = torch.cat([query_BHD, key_BKD], dim=1)
        both = torch.addcmul(both * cos_B1D, both.roll(width // 2, -1), sin_B1D)
        value_BKD = _linear(layer.v_proj, x_BE).view(rows, groups, width)
        keys_BKDS, values_BKSD = slots.write(index, both[:, self.heads :], value_BKD)
        query_MGD = both[:, : self.heads].reshape(rows * groups, -1, width)
        scores_MGS = torch.baddbmm(mask_M1S, query_MGD, keys_BKDS.flatten(0, 1), alpha=layer.scaling)
        weights_MGS = torch.softmax(scores_MGS, dim=-1, dtype=torch.float32).to(x_BE.dtype)
        return torch.bmm(weights_MGS, values_BKSD.flatten(0, 1)).view(rows, -1)

    def _norm(self, x: Tensor, norm: Any) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], norm.weight, self.eps)

    def turns(self, last: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines [N, D] of the rotation at each position up to `last`, at least.

        After the prompt time, row and column advance together, so one position turns all of a head. The sign is that
        of `rotate_half`, whose halves `roll` brings to their places.
        """
        known = self.turns_ND[0]
        if last >= len(known) or known.device != like.device or known.dtype != like.dtype:
            rotary = self.language.rotary_emb
            angle = torch.outer(torch.arange(2 * last + 256, device=like.device).float(), rotary.inv_freq.float())
            cos, sin = angle.cos() * rotary.attention_scaling, angle.sin() * rotary.attention_scaling
            self.turns_ND = torch.cat([cos, cos], 1).to(like.dtype), torch.cat([-sin, sin], 1).to(like.dtype)
        return self.turns_ND


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)
