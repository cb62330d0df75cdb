"""Small models on a CPU: prompts and decoding in C (decoder.c), compiled by the machine's own compiler at first use.

A model whose weights fit a processor's caches spends its time between operators, not in them. Here a unit of work (a
prompt, or some rows' next tokens) goes through all layers in one thread; rows have their own columns, so nothing is
padded; what all prompts begin with is computed once. What a text's numbers are does not depend on what is computed
beside it, to the last bit (pictures go through their tower together, in torch). `fits` says where this holds;
everything else goes through torch (decoding.py, slots.py).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import mmap
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xreasoner.engines import decoding
from xreasoner.engines.scoring import common
from xreasoner.models.loading import Encoded, Loaded

FAMILIES = ("qwen2_vl", "qwen2_5_vl")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")
LARGEST = 64 * 2**20
"""Bytes of weights up to which this pays: above, products fill the time, and torch's use all threads for one row."""
UNIT = 16
"""Rows of a unit, at most: larger ones are no faster, and threads that are disturbed share smaller ones better."""
SHARED = 8
"""Tokens from which on a common beginning is worth a computation of its own."""
GROWTH = 64
"""Columns by which the cache grows: whole vectors, which decoder.c reads to their end."""
ROWS = 256
"""Rows that are set aside; memory is taken by those that have been used."""


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("layers", "hidden", "heads", "groups", "width", "inner", "vocab")),
        *((name, ctypes.c_int64) for name in ("row", "columns")),
        *((name, ctypes.c_float) for name in ("eps", "scaling")),
    ]


_PACKED = {
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
_PLAIN = {
    "norm_in": "input_layernorm.weight",
    "norm_out": "post_attention_layernorm.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
}


class _Layer(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("norm_in", "norm_out", *_PACKED, "q_bias", "k_bias", "v_bias", "keys", "values")
    ]


@functools.cache
def library() -> ctypes.CDLL | None:
    """decoder.c, compiled for this processor and kept in the user's cache folder; None where that cannot be had.

    XREASONER_NATIVE=0 turns it off.
    """
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if os.environ.get("XREASONER_NATIVE") == "0" or compiler is None or platform.system() != "Linux":
        return None
    source = resources.files("xreasoner.engines").joinpath("decoder.c").read_bytes()
    said = Path("/proc/cpuinfo").read_text().splitlines()
    processor = sorted({line for line in said if line.startswith(("model", "flags", "CPU part", "Features"))})
    key = hashlib.sha256(repr((source, FLAGS, compiler, processor)).encode()).hexdigest()[:16]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xreasoner"
    try:
        kept = home / f"decoder-{key}.so"
        if not kept.exists():
            _compile(compiler, source, home, kept)
        made = ctypes.CDLL(str(kept))
    except (OSError, subprocess.SubprocessError):
        return None  # torch computes the same
    made.packed_size.restype = made.scratch_size.restype = made.lanes.restype = ctypes.c_int64
    return made


def _compile(compiler: str, source: bytes, home: Path, kept: Path) -> None:
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=home) as aside:
        made = Path(aside) / kept.name
        command = [compiler, *FLAGS, "-x", "c", "-", "-o", str(made)]
        subprocess.run(command, input=source, check=True, capture_output=True, timeout=60)
        made.replace(kept)


def fits(model: Any) -> bool:
    """Whether the model is a small Qwen2-VL or Qwen2.5-VL, whole on a CPU in float32, and there is a compiler."""
    if model.config.model_type not in FAMILIES or not decoding.fits(model):
        return False
    language = model.model.language_model
    weights = list(language.parameters())
    if sum(weight.nbytes for weight in weights) > LARGEST:
        return False
    if any(weight.device.type != "cpu" or weight.dtype != torch.float32 for weight in weights):
        return False
    c = language.config
    if c.hidden_act != "silu" or any(layer.self_attn.o_proj.bias is not None for layer in language.layers):
        return False
    found = library()
    sizes = (language.layers[0].self_attn.head_dim, c.hidden_size, c.intermediate_size)
    return found is not None and all(size % found.lanes() == 0 for size in sizes)


def _memory(*shape: int) -> Tensor:
    """Numbers not yet written, in large pages: with small ones the first touch of each, and finding it, takes longer
    than the arithmetic."""
    size = int(np.prod(shape))
    memory = mmap.mmap(-1, max(4 * size, 1))
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32, count=size).view(shape)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class Native:
    """The rows of an engine, their keys and values, and what computes them.

    Weights are packed again when they have changed (looked at with each new prompt). The first row of the cache holds
    what prompts have begun with; every other row belongs to a sample, whose columns begin at 0.
    """

    def __init__(self, loaded: Loaded) -> None:
        found = library()
        assert found is not None
        self.library, self.model = found, loaded.model
        self.language = loaded.model.model.language_model
        self.placeholders = torch.tensor(loaded.placeholders)
        self.turns = decoding.Decoder(loaded.model).turns
        attention, config = self.language.layers[0].self_attn, self.language.config
        self.width, layers = attention.head_dim, len(self.language.layers)
        self.shape = _Shape(
            layers=layers,
            hidden=config.hidden_size,
            heads=attention.q_proj.out_features // self.width,
            groups=attention.k_proj.out_features // self.width,
            width=self.width,
            inner=config.intermediate_size,
            vocab=loaded.model.lm_head.out_features,
            eps=config.rms_norm_eps,
            scaling=attention.scaling,
        )
        self._stamp: list[tuple[int, int]] = []
        self._layers = (_Layer * layers)()
        self._working = torch.empty(0)
        self.clear()

    def clear(self) -> None:
        """No rows, no columns."""
        self.keys: list[Tensor] = [torch.empty(0, self.shape.groups, self.width, 0)] * self.shape.layers
        self.values: list[Tensor] = [torch.empty(0, self.shape.groups, 0, self.width)] * self.shape.layers
        self.rows = self.columns = self.used = 0
        self.slots: list[int] = []
        """Each of the engine's rows' row of the cache."""
        self.free: list[int] = []
        self.length = np.zeros(0, dtype=np.int64)
        """Columns in use, by row of the cache."""
        self.prefix: list[int] = []
        self._before: list[int] = []

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows alone, in this order; nothing is copied."""
        stay = [self.slots[k] for k in rows]
        self.free += sorted(set(self.slots) - set(stay), reverse=True)
        self.slots = stay

    def seat(self, prompts: Sequence[Encoded], repeat: Sequence[int], places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Row places[j] begins with prompt repeat[j]; places are rows that have ended, and new ones at the end.

        Returns logits [P, V] after each prompt, and the next positions [P].
        """
        self._pack()
        lengths = [len(prompt.input_ids) for prompt in prompts]
        self._room(len(self.slots) + len(places) + 1, max(lengths) + 1)
        known = len(self.slots)
        new = self.free[len(self.free) - sum(place >= known for place in places) :][::-1]
        slot = [self.slots[place] if place < known else new[place - known] for place in places]
        prefix = self._shared(prompts)
        mine: list[list[int]] = [[] for _ in prompts]
        for own, prompt in zip(slot, repeat, strict=True):
            mine[prompt].append(own)
        logits_PV = self._prompts(prompts, mine, prefix)
        next_P = torch.stack([prompt.position_ids.amax() + 1 for prompt in prompts])
        # only now do the rows exist: a prompt that fails leaves none behind
        for own, prompt in zip(slot, repeat, strict=True):
            self.length[own] = lengths[prompt]
        if new:
            del self.free[-len(new) :]
            self.slots += new
            self.used = max(self.used, max(new) + 1)
        return logits_PV, next_P

    def decode(self, token_B: Tensor, position_B: Tensor, alive: Sequence[int]) -> Tensor:
        """Logits [B, V] after one token more in each of the rows `alive`; those of other rows are anything."""
        slots = np.array([self.slots[k] for k in alive])
        self._room(0, int(self.length[slots].max()) + 1)
        column, everyone = self.length[slots], len(alive) == len(token_B)
        if not everyone:
            token_B, position_B = token_B[list(alive)], position_B[list(alive)]
        cos_ND, sin_ND = self.turns(int(position_B.max()), self.language.embed_tokens.weight)
        hidden_NE = F.embedding(token_B, self.language.embed_tokens.weight)
        size = min(UNIT, -(-len(slots) // torch.get_num_threads()))
        units = [*range(0, len(slots), size), len(slots)]
        logits_NV = hidden_NE.new_empty(len(slots), self.shape.vocab)
        self._forward(units, hidden_NE, slots, column, cos_ND[position_B], sin_ND[position_B], logits_NV)
        self.length[slots] += 1
        if everyone:
            return logits_NV
        logits_BV = logits_NV.new_zeros(len(self.slots), self.shape.vocab)
        logits_BV[list(alive)] = logits_NV
        return logits_BV

    def _shared(self, prompts: Sequence[Encoded]) -> int:
        """How many columns all of the prompts share with the cache's first row, which is computed anew if that pays."""
        texts = [self._text(prompt) for prompt in prompts]
        others = [*texts, self._before] if self._before else texts
        known = common([self.prefix, *texts])
        shared = common(others) if len(others) > 1 else 0
        self._before = texts[0]
        if shared >= SHARED and known < shared / 2:
            self.prefix = []  # until the row is written whole
            self._prompts([_beginning(prompts[0], shared)], [[0]], 0)
            self.prefix, known = texts[0][:shared], shared
        return known if known >= SHARED else 0

    def _text(self, prompt: Encoded) -> list[int]:
        """What stands before a prompt's first picture and its last token."""
        pictures = torch.isin(prompt.input_ids, self.placeholders).nonzero()
        end = int(pictures[0]) if len(pictures) else len(prompt.input_ids) - 1
        ids: list[int] = prompt.input_ids[:end].tolist()
        return ids

    def _prompts(self, prompts: Sequence[Encoded], slots: Sequence[Sequence[int]], prefix: int) -> Tensor:
        """Logits [P, V] after prompts that go into slots[k]; `prefix` columns are those of the cache's first row."""
        ids_N = torch.cat([prompt.input_ids[prefix:] for prompt in prompts])
        position_AN = torch.cat([prompt.position_ids[:, prefix:] for prompt in prompts], dim=1)
        hidden_NE = F.embedding(ids_N, self.language.embed_tokens.weight)
        names = {name for prompt in prompts for name in prompt.pictures}
        pictures = {name: torch.cat([p.pictures[name] for p in prompts if name in p.pictures]) for name in names}
        if pictures:
            seen = self.model.model.get_image_features(**pictures).pooler_output
            hidden_NE[torch.isin(ids_N, self.placeholders)] = torch.cat(list(seen))
        cos_1ND, sin_1ND = self.language.rotary_emb(hidden_NE, position_AN[:, None])
        lengths = [len(prompt.input_ids) - prefix for prompt in prompts]
        row = np.repeat([own[0] for own in slots], lengths)
        column = np.concatenate([np.arange(prefix, prefix + length) for length in lengths])
        logits_PV = hidden_NE.new_empty(len(prompts), self.shape.vocab)
        copies = [list(own[1:]) for own in slots]
        units = [0, *np.cumsum(lengths)]
        self._forward(units, hidden_NE, row, column, cos_1ND[0], sin_1ND[0], logits_PV, prefix, copies)
        return logits_PV

    def _forward(
        self,
        units: Sequence[int],
        hidden_NE: Tensor,
        row_N: Any,
        column_N: Any,
        cos_ND: Tensor,
        sin_ND: Tensor,
        logits: Tensor,
        prefix: int = 0,
        copies: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """See `forward` in decoder.c."""
        threads = torch.get_num_threads() if len(units) > 2 else 1
        scratch = self._scratch(threads * self.library.scratch_size(ctypes.byref(self.shape)))
        flat = [slot for own in copies or () for slot in own]
        copied = np.cumsum([0, *map(len, copies or ())])
        numbers = [np.ascontiguousarray(x, dtype=np.int64) for x in (units, row_N, column_N, copied, flat)]
        units_, row_, column_, copied_, copies_ = (ctypes.c_void_p(x.ctypes.data) for x in numbers)
        norm, head = self.language.norm.weight, self._head
        cos_ND, sin_ND = cos_ND.contiguous(), sin_ND.contiguous()
        address = [ctypes.c_void_p(x.data_ptr()) for x in (norm, head, hidden_NE, cos_ND, sin_ND, logits, scratch)]
        norm_, head_, hidden_, cos_, sin_, logits_, scratch_ = address
        count, flag = ctypes.c_int64(len(units) - 1), ctypes.c_int64(copies is not None)
        self.library.forward(
            ctypes.byref(self.shape), self._layers, norm_, head_, count, units_, hidden_, row_, column_, cos_, sin_,
            flag, ctypes.c_int64(prefix), copied_, copies_, logits_, scratch_, ctypes.c_int64(threads),
        )  # fmt: skip

    def _scratch(self, size: int) -> Tensor:
        """Working memory, kept from call to call."""
        if self._working.numel() < size:
            self._working = _memory(size)
        return self._working

    def _pack(self) -> None:
        """Pack the weights, if they are not those that are packed."""
        weights = [*self.language.parameters(), self.model.lm_head.weight]
        stamp = [(weight.data_ptr(), weight._version) for weight in weights]
        if stamp == self._stamp:
            return
        self._kept: list[Tensor] = []
        for layer, into in zip(self.language.layers, self._layers, strict=True):
            for name, path in _PACKED.items():
                setattr(into, name, self._packed(layer.get_parameter(path)).data_ptr())
            for name, path in _PLAIN.items():
                setattr(into, name, _address(_parameter(layer, path)))
        self._head = self._packed(self.model.lm_head.weight)
        self._stamp, self.prefix = stamp, []

    def _packed(self, weight: Tensor) -> Tensor:
        out, into = (ctypes.c_int64(size) for size in weight.shape)
        packed = _memory(self.library.packed_size(out, into))
        self.library.pack(ctypes.c_void_p(weight.data_ptr()), out, into, ctypes.c_void_p(packed.data_ptr()))
        self._kept.append(packed)
        return packed

    def _room(self, rows: int, columns: int) -> None:
        """Allocate for so many rows and columns, and some more."""
        if rows <= self.rows and columns <= self.columns:
            return
        tall = self.rows if rows <= self.rows else max(rows, self.rows + ROWS)
        wide = self.columns if columns <= self.columns else -(-(columns + GROWTH // 2) // GROWTH) * GROWTH
        groups, width, old = self.shape.groups, self.width, slice(0, self.columns)
        every = _memory(len(self._layers), 2, tall * groups * width * wide)
        for index, into in enumerate(self._layers):
            keys, values = (
                every[index, 0].view(tall, groups, width, wide),
                every[index, 1].view(tall, groups, wide, width),
            )
            keys[: self.used, ..., old] = self.keys[index][: self.used]
            values[: self.used, :, old] = self.values[index][: self.used]
            self.keys[index], self.values[index] = keys, values
            into.keys, into.values = keys.data_ptr(), values.data_ptr()
        self.free = [*reversed(range(max(self.rows, 1), tall)), *self.free]
        self.length = np.concatenate([self.length, np.zeros(tall - self.rows, dtype=np.int64)])
        self.rows, self.columns = tall, wide
        self.shape.columns, self.shape.row = wide, groups * width * wide


def _parameter(module: Any, path: str) -> Tensor | None:
    owner, _, name = path.rpartition(".")
    found: Tensor | None = getattr(module.get_submodule(owner), name)
    return found


def _beginning(prompt: Encoded, length: int) -> Encoded:
    return Encoded(prompt.input_ids[:length], prompt.position_ids[:, :length], None, None)
