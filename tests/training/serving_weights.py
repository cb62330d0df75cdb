"""A process that serves a model over HTTP and loads new weights from files, as vLLM does."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from engines.served import LOCK, Served, _Handler

from xreasoner.models.loading import load


class _Loading(_Handler):
    def do_POST(self) -> None:  # noqa: N802
        if self.path.endswith(("/completions", "/tokenize", "/detokenize")):
            return super().do_POST()
        body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        if self.path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            folder = Path(body["kwargs"]["weights_path"])
            with LOCK, torch.no_grad():
                self.server.loaded.model.load_state_dict(load(str(folder)).model.state_dict())
            print(f"loaded {folder.name}", flush=True)
        self._json(200, {"results": [None]})


def main(model: str, pause: str = "0") -> None:
    torch.set_num_threads(1)
    server = Served(load(model), owner="vllm", pause=float(pause))
    server.RequestHandlerClass = _Loading
    print(server.url, flush=True)
    server._thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
