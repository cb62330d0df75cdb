"""Chromium for the browser tests. A machine without it fails them: they are never skipped silently."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
NAMES = ("chromium", "google-chrome", "google-chrome-stable", "chrome")


def find_chromium() -> str | None:
    """The path of an installed Chromium or Chrome; None leaves the choice to Playwright's own build."""
    named = os.environ.get("XREASONER_CHROMIUM")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def launch_chromium() -> Iterator[Browser]:
    """A headless Chromium. Fails the test, with the command that installs one, where there is none."""
    with sync_playwright() as playwright:
        path = find_chromium() or playwright.chromium.executable_path
        if not os.access(path, os.X_OK):
            pytest.fail("no Chromium: run scripts/install_test_tools.sh, or set XREASONER_CHROMIUM", pytrace=False)
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()
