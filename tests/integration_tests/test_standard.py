"""LangChain's standard integration tests of chat models, healthy and with faults."""

from __future__ import annotations

import json
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from langchain_retryrouter.testing import (
    Answer,
    FakeClock,
    FaultyGateway,
    RecordedRequest,
    Step,
)
from tests.support.rule_responder import RuleResponder

from .capabilities import GPTRouterSuite
from .faults import BEFORE_THE_FIRST_TOKEN


class _OverLoopback(GPTRouterSuite):
    """The suite over a `FaultyGateway` and a model that follows rules."""

    gateway: FaultyGateway
    clock: FakeClock
    fields: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(autouse=True)
    def _opened(self, fake_clock: FakeClock) -> Iterator[None]:
        self.clock = fake_clock
        with FaultyGateway(
            answer=RuleResponder(), gptrouter=self.edition
        ) as self.gateway:
            yield

    @property
    def chat_model_params(self) -> dict[str, Any]:
        """The models, at the test's gateway."""
        return {
            **super().chat_model_params,
            **self.fields,
            "gpt_router_api_base": self.gateway.url,
            "gpt_router_api_key": "any",
            "clock": self.clock,
        }


class _Healthy(_OverLoopback):
    """Nothing fails, so no request may be repeated."""

    @pytest.fixture(autouse=True)
    def _healthy(self, _opened: None, downloads: list[bytes]) -> Iterator[None]:
        yield
        requests = self.gateway.requests
        assert {request.step for request in requests} <= {Answer()}
        sent = b"".join(request.body for request in requests)
        assert all(b64encode(fetched) in sent for fetched in downloads)


class TestPublic(_Healthy):
    """The published gateway."""

    edition = "public"


class TestPublicStreaming(_Healthy):
    """The published gateway, where `invoke` streams inside as well."""

    edition = "public"
    fields: ClassVar[dict[str, Any]] = {"streaming": True}


class TestHosted(_Healthy):
    """The hosted gateway, which takes all parameters."""


class TestHostedStreaming(_Healthy):
    """The hosted gateway, where `invoke` streams inside as well."""

    fields: ClassVar[dict[str, Any]] = {"streaming": True}


class TestHostedUnstreamed(_Healthy):
    """The hosted gateway, where a stream is a whole answer in one piece."""

    fields: ClassVar[dict[str, Any]] = {"disable_streaming": True}


class TestThroughFaults(_OverLoopback):
    """Every request fails once before it is answered, and the tests pass."""

    # Some tests ask which model answered, and so the next attempt asks the same one.
    fields: ClassVar[dict[str, Any]] = {"failover": False}

    @pytest.fixture(autouse=True, params=BEFORE_THE_FIRST_TOKEN, ids=str)
    def _failing(self, request: pytest.FixtureRequest, _opened: None) -> Iterator[None]:
        asked: Counter[str] = Counter()

        def fail_first(request: RecordedRequest) -> Step:
            question = json.dumps(request.parameters["messages"])
            asked[question] += 1
            return fault if asked[question] % 2 else Answer()

        fault: Step = request.param
        self.gateway.always(fail_first)
        yield
        steps = Counter(request.step for request in self.gateway.requests)
        assert steps[fault] == steps[Answer()] == len(self.clock.sleeps)
        assert set(steps) <= {fault, Answer()}
