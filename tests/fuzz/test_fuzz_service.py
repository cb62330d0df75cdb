"""The running service against its own OpenAPI document, by Schemathesis: no 500, no hang, memory flat."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from fuzz.budget import fuzz
from helpers.memory import assert_memory_is_flat
from hypothesis import strategies as st
from schemathesis.checks import CHECKS
from serving.background import Background

from xreasoner.reasoner import Reasoner
from xreasoner.serving.desk import Limits

REQUEST_SECONDS = 30


@pytest.fixture(scope="module")
def service() -> Iterator[Background]:
    limits = Limits(max_tokens=32)
    with Background(lambda: Reasoner("tiny", thinking_budget=8, answer_budget=4), limits=limits) as running:
        yield running


@pytest.mark.filterwarnings("ignore")  # Schemathesis's own
def test_no_request_is_a_server_error(service: Background) -> None:
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {operation.path for operation in operations} >= {"/v1/chat/completions", "/v1/decisions"}
    checks = [CHECKS.get_one(name) for name in ("not_a_server_error", "content_type_conformance")]

    def call(case: schemathesis.Case) -> None:
        response = case.call(timeout=REQUEST_SECONDS)
        case.validate_response(response, checks=checks)

    good = st.one_of([operation.as_strategy() for operation in operations])
    modes = schemathesis.GenerationMode
    bad = st.one_of([operation.as_strategy(generation_mode=modes.NEGATIVE) for operation in operations])
    with assert_memory_is_flat():
        assert fuzz(call, st.one_of(good, bad), slowest=REQUEST_SECONDS) > 0
    assert service.desk.ready.is_set()
    assert service.desk.error is None
