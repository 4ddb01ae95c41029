"""LangChain's conventions over a router whose first route fails."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any, Protocol

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessageChunk
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.runnables import ConfigurableField
from pydantic import BaseModel, SecretStr

from langchain_retryrouter import (
    GPTRouter,
    GPTRouterModel,
    RetryPolicy,
    RetryRouter,
    Route,
    UnavailableError,
)
from langchain_retryrouter.testing import (
    FakeClock,
    FaultyGateway,
    Status,
)
from tests.support.rule_responder import RuleResponder
from tests.unit_tests.conftest import Twin

from .conftest import GPT_4, KEY
from .frames import sum_of

OTHER = GPTRouterModel(name="gpt-4o", provider_name="chat_openai")


class Weather(BaseModel):
    """Get the weather in a city."""

    city: str


@pytest.fixture
def primary() -> Iterator[FaultyGateway]:
    """The provider of the first route: down, unless a test says otherwise."""
    with FaultyGateway(answer=RuleResponder(), gptrouter="hosted") as gateway:
        gateway.always(Status(503))
        yield gateway


@pytest.fixture
def backup() -> Iterator[FaultyGateway]:
    """The provider of the second route."""
    with FaultyGateway(answer=RuleResponder(), gptrouter="hosted") as gateway:
        yield gateway


def model_at(
    gateway: FaultyGateway, model: GPTRouterModel = GPT_4, **fields: Any
) -> GPTRouter:
    return GPTRouter(
        models_priority_list=[model],
        gpt_router_api_base=gateway.url,
        gpt_router_api_key=SecretStr(KEY),
        max_retries=0,
        **fields,
    )


class NewRouter(Protocol):
    """Makes a router of both providers, with these fields besides."""

    def __call__(self, **fields: Any) -> RetryRouter:
        """The router."""


@pytest.fixture
def new_router(
    primary: FaultyGateway, backup: FaultyGateway, fake_clock: FakeClock
) -> NewRouter:
    """Makes routers of the test's providers, on the test's clock."""

    def new_router(**fields: Any) -> RetryRouter:
        settings: dict[str, Any] = {
            "routes": [model_at(primary), model_at(backup, OTHER)],
            "clock": fake_clock,
        }
        return RetryRouter(**{**settings, **fields})

    return new_router


def outcomes(message: Any) -> list[str]:
    attempt_log = message.response_metadata["retryrouter"]
    return [line["outcome"] for line in attempt_log["attempts"]]


FAILED_OVER = ["unavailable"] * 3 + ["ok"]


# Caches.


def test_an_answer_out_of_a_cache_costs_nothing(
    twin: Twin, new_router: NewRouter, primary: FaultyGateway, backup: FaultyGateway
) -> None:
    """What was asked before is not sent again, and its ledger says so."""
    router = new_router(cache=InMemoryCache())

    first = twin.invoke(router, "hi")
    again = twin.invoke(router, "hi")

    assert first.content == again.content == "You said: hi"
    assert outcomes(first) == FAILED_OVER
    assert outcomes(again) == []
    assert (len(primary.requests), len(backup.requests)) == (3, 1)


def test_a_routes_own_cache_answers_for_it(
    twin: Twin, new_router: NewRouter, primary: FaultyGateway, backup: FaultyGateway
) -> None:
    """A model keeps its cache as a route, and the attempt sends nothing."""
    routes = [model_at(backup, OTHER, cache=InMemoryCache()), model_at(primary)]
    router = new_router(routes=routes)

    answers = [twin.invoke(router, "hi") for _ in range(2)]

    assert [answer.content for answer in answers] == ["You said: hi"] * 2
    assert len(backup.requests) == 1


def test_routers_that_differ_do_not_share_what_is_cached(
    twin: Twin, new_router: NewRouter, backup: FaultyGateway
) -> None:
    """Other routes, a route's other options, tools: another answer."""
    cache = InMemoryCache()
    plain = model_at(backup)

    for routes in (
        [plain],
        [model_at(backup, OTHER)],
        [model_at(backup, temperature=0.1)],
        [Route(model=plain, options={"max_tokens": 7})],
    ):
        router = new_router(routes=routes, cache=cache)
        twin.invoke(router, "hi")
    twin.invoke(router.bind_tools([Weather]), "hi")
    twin.invoke(router, "hi", stop=["said"])

    assert len(backup.requests) == 6


# What limits and gathers calls.


class _Gate(BaseRateLimiter):
    """Admits every request, and counts them."""

    def __init__(self) -> None:
        self.passed = 0

    def acquire(self, *, blocking: bool = True) -> bool:
        del blocking
        self.passed += 1
        return True

    async def aacquire(self, *, blocking: bool = True) -> bool:
        return self.acquire(blocking=blocking)


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_a_routes_limiter_is_asked_before_each_of_its_attempts(
    twin: Twin,
    new_router: NewRouter,
    primary: FaultyGateway,
    backup: FaultyGateway,
    way: str,
) -> None:
    """A limit belongs to a provider: each request of its route passes it, no other."""
    gates = [_Gate() for _ in range(3)]
    router = new_router(
        routes=[
            model_at(primary, rate_limiter=gates[0]),
            model_at(backup, OTHER, rate_limiter=gates[1]),
        ],
        rate_limiter=gates[2],
    )

    getattr(twin, way)(router, "hi")

    assert [gate.passed for gate in gates] == [3, 1, 1]
    assert (len(primary.requests), len(backup.requests)) == (3, 1)


# Chains.


def test_a_field_can_be_configured_for_a_call(
    twin: Twin, new_router: NewRouter, primary: FaultyGateway
) -> None:
    """`configurable_fields` hands a call another policy."""
    router = new_router().configurable_fields(retry_policy=ConfigurableField("policy"))

    once = {"configurable": {"policy": RetryPolicy(max_retries=0)}}
    answer = twin.invoke(router, "hi", once)

    assert outcomes(answer) == ["unavailable", "ok"]
    assert len(primary.requests) == 1


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_words_to_stop_at_can_be_bound_to_a_route(
    twin: Twin,
    new_router: NewRouter,
    primary: FaultyGateway,
    backup: FaultyGateway,
    way: str,
) -> None:
    """A route's own `stop` is sent, and a call's goes before it."""
    router = new_router(
        routes=[
            model_at(primary).bind(stop=["one"]),
            Route(model=model_at(backup), options={"stop": ["two"]}),
        ],
        breaker_settings=None,
    )

    getattr(twin, way)(router, "hi")
    getattr(twin, way)(router, "hi", stop=["three"])

    for gateway, own in ((primary, "one"), (backup, "two")):
        sent = [request.parameters["stop"] for request in gateway.requests]
        half = len(sent) // 2
        assert sent == [[own]] * half + [["three"]] * half


# Streams.


@pytest.mark.parametrize("where", ["router", "route"])
def test_what_is_not_streamed_is_one_answer(
    twin: Twin,
    new_router: NewRouter,
    primary: FaultyGateway,
    backup: FaultyGateway,
    where: str,
) -> None:
    """`disable_streaming` holds for the router as for each route of its own."""
    own: dict[str, Any] = {"disable_streaming": True} if where == "route" else {}
    router = new_router(
        routes=[model_at(primary, **own), model_at(backup, OTHER, **own)],
        disable_streaming=where == "router",
    )

    chunks = twin.stream(router.bind_tools([Weather]), "Weather('Oslo')")
    whole = sum_of(chunks)

    assert all(isinstance(chunk, AIMessageChunk) for chunk in chunks)
    assert chunks[-1].chunk_position == "last"
    assert [call["args"] for call in whole.tool_calls] == [{"city": "Oslo"}]
    assert whole.usage_metadata is not None
    assert outcomes(whole) == FAILED_OVER


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_content_can_be_asked_for_in_blocks(
    twin: Twin, new_router: NewRouter, way: str
) -> None:
    """With `output_version="v1"` a router's content is standard blocks."""
    answer = getattr(twin, way)(new_router(output_version="v1"), "hi")
    if way == "stream":
        answer = sum_of(answer)

    (block,) = answer.content
    assert (block["type"], block["text"]) == ("text", "You said: hi")
    assert answer.response_metadata["output_version"] == "v1"
    assert outcomes(answer) == FAILED_OVER


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
def test_events_of_blocks_come_once(twin: Twin, new_router: NewRouter) -> None:
    """`stream_events` v3 shows nothing of the route that failed."""
    router, events = new_router(), []

    async def follow() -> list[Any]:
        return [
            event async for event in await router.astream_events("hi", version="v3")
        ]

    if twin.is_async:
        events = asyncio.run(follow())
    else:
        events = list(router.stream_events("hi", version="v3"))

    kinds = Counter(event["event"] for event in events)
    deltas = [e["delta"] for e in events if e["event"] == "content-block-delta"]
    assert "".join(delta["text"] for delta in deltas) == "You said: hi"
    assert kinds["message-start"] == kinds["message-finish"] == 1


# Errors.


def test_what_a_route_says_of_its_own_end_is_under_its_name(
    twin: Twin, new_router: NewRouter, backup: FaultyGateway
) -> None:
    """A `GPTRouter` gives up an attempt, and only the router gives up the call."""
    backup.always(Status(429))

    with pytest.raises(UnavailableError) as caught:
        twin.invoke(new_router(), "hi")

    ends = [note.split(",")[0] for note in caught.value.__notes__ if "gave up" in note]
    assert ends == [
        "gpt-4-0613: gave up after 1 attempt",
        "gpt-4o: gave up after 1 attempt",
        "gave up after 6 attempts",
    ]
