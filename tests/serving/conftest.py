"""One service over the embedded reasoner for all tests here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from serving.background import Background

from xreasoner.reasoner import Reasoner


@pytest.fixture(scope="session")
def reasoner() -> Reasoner:
    return Reasoner("tiny", thinking_budget=160, answer_budget=24)


@pytest.fixture(scope="module")
def service(reasoner: Reasoner) -> Iterator[Background]:
    with Background(lambda: reasoner) as running:
        yield running
