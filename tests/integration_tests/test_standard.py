"""LangChain's standard integration tests of chat models, healthy and with faults."""

import json
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI

from langchain_retryrouter import GPTRouter, RetryRouter, Route
from langchain_retryrouter.testing import (
    Answer,
    Cut,
    FakeClock,
    FaultyGateway,
    RecordedRequest,
    Status,
    Step,
)
from tests.support.models import chat_openai, gpt_router
from tests.support.rule_responder import RuleResponder

from .capabilities import GPTRouterSuite
from .faults import BEFORE_THE_FIRST_TOKEN


def only_answered(gateway: FaultyGateway, downloads: list[bytes]) -> None:
    """Nothing failed at a gateway, and it was sent all pictures and sounds."""
    assert {request.step for request in gateway.requests} <= {Answer()}
    sent = b"".join(request.body for request in gateway.requests)
    assert all(b64encode(fetched) in sent for fetched in downloads)


@contextmanager
def failing_first(
    gateway: FaultyGateway, fault: Step, clock: FakeClock
) -> Iterator[None]:
    """Each question fails once, is waited for, and is then answered."""
    asked: Counter[str] = Counter()

    def fail_first(request: RecordedRequest) -> Step:
        question = json.dumps(request.parameters["messages"])
        asked[question] += 1
        return fault if asked[question] % 2 else Answer()

    gateway.always(fail_first)
    yield
    steps = Counter(request.step for request in gateway.requests)
    assert steps[fault] == steps[Answer()] == len(clock.sleeps)
    assert set(steps) <= {fault, Answer()}


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
        only_answered(self.gateway, downloads)


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
        with failing_first(self.gateway, request.param, self.clock):
            yield


# --- a router ---


class TakesStop(RetryRouter):
    """A router with a `stop` field, as the suite expects of a chat model."""

    def __init__(
        self,
        *,
        routes: Sequence[BaseChatModel],
        stop: list[str] | None = None,
        **fields: Any,
    ) -> None:
        options = {} if stop is None else {"stop": stop}
        super().__init__(
            routes=[Route(model=model, options=options) for model in routes], **fields
        )


class _TwoProviders(GPTRouterSuite):
    """The suite over a router of a `GPTRouter` and a `ChatOpenAI`."""

    gateway: FaultyGateway
    provider: FaultyGateway
    clock: FakeClock
    fields: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(autouse=True)
    def _opened(self, fake_clock: FakeClock) -> Iterator[None]:
        self.clock = fake_clock
        with (
            FaultyGateway(answer=RuleResponder(), gptrouter="hosted") as self.gateway,
            FaultyGateway(answer=RuleResponder()) as self.provider,
        ):
            yield

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return TakesStop

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        """Temperature, `max_tokens` and the like are settings of the routes."""
        return {}

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        """By a tool, which each route offers."""
        return {"method": "function_calling"}

    supports_json_mode = False
    """A router's structured output is always by a tool."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        """Both providers, in the order of the class."""
        return {"routes": self.routes, "clock": self.clock, **self.fields}

    @property
    def routes(self) -> list[BaseChatModel]:
        return [self.by_gateway, self.by_openai]

    @property
    def by_gateway(self) -> GPTRouter:
        """The models of the suite, over GPTRouter's gateway."""
        names = (model.name for model in self.models)
        settings: dict[str, Any] = {"clock": self.clock, "failover": False}
        profile = {"audio_inputs": True}
        return gpt_router(self.gateway, *names, profile=profile, **settings)

    @property
    def by_openai(self) -> ChatOpenAI:
        """A model over OpenAI's API."""
        # The scripted provider takes everything.
        profile = {"audio_inputs": True}
        return chat_openai(self.provider, profile=profile, stream_usage=True)


class TestHealthy(_TwoProviders):
    """The first route answers everything, and the second is never asked."""

    @pytest.fixture(autouse=True)
    def _healthy(self, _opened: None, downloads: list[bytes]) -> Iterator[None]:
        yield
        only_answered(self.gateway, downloads)
        assert not self.provider.requests


class TestWithoutTheFirst(_TwoProviders):
    """The first route is down all the time, and every test passes all the same."""

    @pytest.fixture(autouse=True)
    def _down(self, _opened: None, downloads: list[bytes]) -> Iterator[None]:
        self.gateway.always(Status(503))
        yield
        only_answered(self.provider, downloads)
        # Three requests an answer until the breaker opens; a batch asks in parallel.
        asked, served = len(self.gateway.requests), len(self.provider.requests)
        assert 3 * bool(served) <= asked <= 3 * min(served, 3)


class TestBuffered(_TwoProviders):
    """Each answer is cut after its first token, is repeated, and comes once."""

    fields: ClassVar[dict[str, Any]] = {
        "stream_recovery": "buffer",
        "breaker_settings": None,
    }

    @property
    def routes(self) -> list[BaseChatModel]:
        return [self.by_openai, self.by_gateway]

    @pytest.fixture(autouse=True)
    def _breaking(self, _opened: None) -> Iterator[None]:
        with failing_first(self.provider, Cut(after=1), self.clock):
            yield
        assert not self.gateway.requests
