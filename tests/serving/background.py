"""A service in a thread of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import uvicorn

from xreasoner.media import Guard
from xreasoner.reasoner import Reasoner
from xreasoner.serving.app import create_app
from xreasoner.serving.desk import Desk, Limits
from xreasoner.serving.door import LOOPBACK
from xreasoner.serving.metrics import Metrics
from xreasoner.serving.run import _listen

QUESTION = "Ana has 14, Ben has 9, Cara has 20. By how much does the highest score exceed the lowest?"


class Background:
    def __init__(self, opened: Callable[[], Reasoner], **options: Any) -> None:
        self._listening = _listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.desk = Desk(opened, options.pop("limits", None) or Limits(), Metrics())
        guard, key = options.pop("guard", None) or Guard(), options.pop("key", None)
        app = create_app(self.desk, guard, options.pop("hosts", LOOPBACK), key, **options)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5, backlog=1024)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listening]}, daemon=True)

    def __enter__(self) -> Background:
        self._thread.start()
        while not self._server.started or not self.desk.ready.wait(60):
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        self._listening.close()
