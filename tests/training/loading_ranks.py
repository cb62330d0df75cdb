"""How much host memory each of two ranks takes to load and shard a model: run under `torchrun`."""

from __future__ import annotations

import json
import re
import sys
import threading
from pathlib import Path

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from xreasoner.models.export import export
from xreasoner.models.freezing import freeze
from xreasoner.models.loading import load
from xreasoner.models.offloading import offload_vision
from xreasoner.recipe import SFTStage
from xreasoner.training import parallel
from xreasoner.training.common import ready
from xreasoner.training.run import _load

STAGE = SFTStage.model_validate(
    {"kind": "sft", "name": "sft", "prompt": "brief", "optimizer": {"lr": 1e-4}, "data": [{"source": "rows", "n": 1}]}
)


def _anonymous() -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


class Peak(threading.Thread):
    """The most memory of this process, above what it had at the start."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.start_bytes = self.most = _anonymous()
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.002):
            self.most = max(self.most, _anonymous())


def make_large(folder: str, out: Path) -> Path:
    """A model of the same family with about 200 MB of text weights."""
    loaded = load(folder)
    config = loaded.model.config
    config.text_config.intermediate_size, config.text_config.num_hidden_layers = 8_000, 10
    config.text_config.layer_types = ["full_attention"] * 10
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    return export(model, loaded.tokenizer, loaded.image_processor, out / "large")


def main(folder: str, out: str) -> None:
    with parallel.world():
        if parallel.rank() == 0:
            make_large(folder, Path(out))
        parallel.barrier()
        load(folder)  # whatever is imported and set aside once
        peak = Peak()
        peak.start()
        loaded = _load(STAGE, str(Path(out) / "large"))
        freeze(loaded.model)
        offload_vision(loaded.model, Path(out))
        learner = ready(STAGE, loaded)
        peak.ended.set()
        peak.join()
        named = {
            name: parallel.whole(p.detach()) for name, p in learner.model.named_parameters() if "visual." not in name
        }
        expected = load(str(Path(out) / "large")).model.state_dict()
        found = {
            "whole": sum(4 * tensor.numel() for tensor in named.values()),
            "peak": peak.most - peak.start_bytes,
            "equal": all(torch.equal(tensor, expected[name]) for name, tensor in named.items()),
        }
        (Path(out) / f"rank-{parallel.rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
