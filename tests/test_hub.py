"""Files of the hub that may be there or not, as a hub's server and its cache give them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from xreasoner.errors import CheckpointError
from xreasoner.hub import optional_hub_file
from xreasoner.models.loading import load

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "/somebody/adapter/resolve/main/adapter_config.json": {"base_model_name_or_path": "Qwen/Qwen2.5-VL-3B-Instruct"},
    "/somebody/both/resolve/main/adapter_config.json": {"base_model_name_or_path": "Qwen/Qwen2.5-VL-3B-Instruct"},
    "/somebody/both/resolve/main/config.json": {"model_type": "qwen2_5_vl"},
}


class Hub(BaseHTTPRequestHandler):
    """The few answers of a hub that matter here."""

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, whole: bool) -> None:
        found = FILES.get(self.path)
        body = json.dumps(found or {}).encode()
        self.send_response(404 if found is None else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{abs(hash(self.path)):040x}"')
        self.send_header("Content-Length", str(len(body)))
        if found is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if whole:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    optional_hub_file.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    address = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address)
    yield server
    server.shutdown()
    server.server_close()
    optional_hub_file.cache_clear()


def test_a_hub_id_that_is_an_adapter_is_refused_with_its_base(hub: ThreadingHTTPServer) -> None:
    with pytest.raises(CheckpointError, match=r"is an adapter and no model: its base is Qwen/Qwen2\.5-VL-3B-Instruct"):
        load("somebody/adapter")
    with pytest.raises(CheckpointError, match=r"an adapter for Qwen/.* lies beside the model's weights"):
        load("somebody/both")


def test_a_file_that_the_hub_lacks_is_none(hub: ThreadingHTTPServer) -> None:
    assert optional_hub_file("somebody/both", "xreasoner.json") is None
    found = optional_hub_file("somebody/both", "config.json")
    assert found is not None
    assert json.loads(found.read_text()) == {"model_type": "qwen2_5_vl"}


def test_offline_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    optional_hub_file.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    assert optional_hub_file("nobody/nothing", "xreasoner.json") is None
    assert time.monotonic() - started < 10
    optional_hub_file.cache_clear()
