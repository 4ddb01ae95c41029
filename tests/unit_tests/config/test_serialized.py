"""`dumps` and `loads`: a router is written as far as its routes are, without keys."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import FakeListChatModel
from langchain_core.load import dumpd, dumps, load, loads
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from langchain_retryrouter import (
    CircuitBreaker,
    FailureAction,
    FailureKind,
    RateLimit,
    RetryBudget,
    RetryPolicy,
    RetryRouter,
    Route,
    SpendLimit,
)
from langchain_retryrouter.testing import FakeClock

pytestmark = pytest.mark.filterwarnings("ignore:The function `loads? ?` is in beta")

KEY = "sk-proj-0123456789abcdef"
ALLOWED: dict[str, Any] = {
    "allowed_objects": [RetryRouter, Route, ChatOpenAI, ChatAnthropic],
    "valid_namespaces": ["langchain_retryrouter"],
    "secrets_map": {"OPENAI_API_KEY": KEY, "ANTHROPIC_API_KEY": KEY},
}


def routes() -> list[Any]:
    openai = ChatOpenAI(model="gpt-4o", api_key=SecretStr(KEY), temperature=0.5)
    claude = ChatAnthropic(
        model_name="claude-opus-5", api_key=SecretStr(KEY), timeout=None, stop=None
    )
    bound: Any = openai.bind(seed=1)
    prices: dict[str, Any] = {"input_price": 2.0, "output_price": 8.0}
    first = Route(model=bound, name="a", weight=3, **prices)
    return [first, Route(model=claude, **prices)]


@pytest.mark.parametrize("breakers", [None, {"failure_threshold": 7}])
def test_a_router_is_written_and_read(breakers: Any) -> None:
    """Its fields and routes are the same, and its keys come from outside."""
    router = RetryRouter(
        routes=routes(),
        retry_policy=RetryPolicy(max_retries=0, deadline=30.0),
        breaker_settings=breakers,
        strategy="weighted",
        hedge_after=4.0,
        failover_on={"content_filter": "failover"},
    )
    text = dumps(router)
    assert KEY not in text
    again = loads(text, **ALLOWED)
    assert isinstance(again, RetryRouter)
    for name in ("retry_policy", "breaker_settings", "strategy", "hedge_after"):
        assert getattr(again, name) == getattr(router, name)
    assert again.failover_on == {FailureKind.CONTENT_FILTER: FailureAction.FAILOVER}
    first, second = again.routes
    assert (first.name, first.weight, first.input_price) == ("a", 3, 2.0)
    assert first.options == {"seed": 1}
    assert isinstance(first.model, ChatOpenAI)
    assert first.model.openai_api_key == SecretStr(KEY)
    assert first.model.temperature == 0.5
    assert isinstance(second.model, ChatAnthropic)
    assert dumps(again) == text


def test_each_key_of_a_pool_has_its_name() -> None:
    """No two routes are read with the same key, silently or not."""
    other = Route(model=ChatOpenAI(model="o", api_key=SecretStr(KEY)), tier=0)
    openai = ChatOpenAI(model="gpt-4o", api_key=SecretStr(KEY))
    keys = {f"OPENAI_API_KEY_{n}": f"{KEY}{n}" for n in (1, 2, 3)}
    pool = Route.pool(openai, api_keys=[*keys.values()][:2])
    router = RetryRouter(routes=[*pool, other, routes()[1]])
    text = dumps(router)
    assert KEY not in text
    secrets = {**keys, "ANTHROPIC_API_KEY": KEY}
    again = loads(text, **{**ALLOWED, "secrets_map": secrets})
    assert [
        model.openai_api_key.get_secret_value()
        for model in (route.model for route in again.routes[:3])
        if isinstance(model, ChatOpenAI) and isinstance(model.openai_api_key, SecretStr)
    ] == [*keys.values()]
    assert all(dumps(again).count(f'"{name}"') == 1 for name in secrets)
    assert [route.group for route in again.routes] == [
        route.group for route in router.routes
    ]
    with pytest.raises(ValueError, match="of a pool have the same key and address"):
        loads(text, **{**ALLOWED, "secrets_map": dict.fromkeys(secrets, KEY)})


def test_one_key_keeps_its_name() -> None:
    """Addresses of one key, and functions that return a key, need no other name."""
    openai = ChatOpenAI(model="gpt-4o", api_key=SecretStr(KEY))
    pool = Route.pool(openai, base_urls=["http://a/v1", "http://b/v1"])
    text = dumps(RetryRouter(routes=[*pool, routes()[0]]))
    assert text.count('["OPENAI_API_KEY"]') == 3
    claude = routes()[1].model
    functions = [lambda: KEY, lambda: KEY]
    made = RetryRouter(routes=Route.pool(claude, api_keys=functions))
    assert "not_implemented" in dumps(made)


PRICED = routes()[1].model_copy(update={"spend_limit": SpendLimit(5.0)})
NO_DATA: dict[str, dict[str, Any]] = {
    "accept": {"accept": bool},
    "budget": {"budget": RetryBudget()},
    "clock": {"clock": FakeClock()},
    "limit": {"rate_limit": RateLimit(max_concurrency=3)},
    "money": {"spend_limit": SpendLimit(5.0)},
    "money of a route": {
        "routes": [routes()[1].model_copy(update={"spend_limit": PRICED})]
    },
    "class": {"failover_on": {LookupError: "raise"}},
    "function": {"failover_on": [{"quota": "raise"}, lambda _: None]},
    "hook": {"retry_policy": RetryPolicy(on_retry=print)},
    "accept of a route": {"routes": [Route(model=routes()[1].model, accept=bool)]},
    "breaker": {"routes": [Route(model=routes()[1].model, breaker=CircuitBreaker())]},
    "model": {"routes": [FakeListChatModel(responses=["a"])]},
}


@pytest.mark.parametrize("row", NO_DATA)
def test_what_is_no_data_is_not_lost_silently(row: str) -> None:
    """It is written as something that cannot be read, and `load` says so."""
    router = RetryRouter(**{"routes": routes(), **NO_DATA[row]})
    data = dumpd(router)
    assert "not_implemented" in str(data)
    assert KEY not in str(data)
    with pytest.raises(NotImplementedError, match="doesn't implement"):
        load(data, **ALLOWED)


def test_the_key_of_a_cache_is_what_is_asked() -> None:
    """Neither the policy nor the process is in it, but bound tools are."""

    def look_up(word: str) -> str:
        """Look a word up."""
        return word

    def key(router: Any, **fields: Any) -> str:
        model = RetryRouter(routes=routes(), **fields) if router is None else router
        return str(model._get_llm_string())  # noqa: SLF001 - LangChain asks for it

    router = RetryRouter(routes=routes())
    dumpd(router)
    bound: Any = router.bind_tools([look_up])
    assert key(router) == key(None, retry_policy=RetryPolicy(max_retries=0))
    assert "look_up" in key(bound.bound)
    assert "look_up" not in key(router)
