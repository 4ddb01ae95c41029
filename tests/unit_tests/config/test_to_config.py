"""A router as data, without keys: `to_config`, and `dumps` of langchain-core."""

import json
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import yaml
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import FakeListChatModel
from langchain_core.load import dumpd, dumps, load, loads
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from langchain_retryrouter import (
    CircuitBreaker,
    FailureAction,
    FailureKind,
    GPTRouter,
    RateLimit,
    RetryBudget,
    RetryPolicy,
    RetryRouter,
    Route,
    SpendLimit,
)
from langchain_retryrouter.stores import MemoryStore
from langchain_retryrouter.testing import FakeClock
from tests.support.models import gpt_router

pytestmark = pytest.mark.filterwarnings("ignore:The function `loads? ?` is in beta")

KEY = "sk-proj-of-the-environment-1"
OTHER = "sk-proj-of-nobody-at-all-22"


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "KEY_OF_THE_TEAM"):
        monkeypatch.setenv(name, KEY)


def openai(**fields: Any) -> Any:
    return ChatOpenAI(**{"model": "gpt-4o", **fields})


def claude(**fields: Any) -> Any:
    given = {"model_name": "claude-opus-5", "timeout": None, "stop": None, **fields}
    return ChatAnthropic(**given)


def rated(**fields: Any) -> Route:
    """A route with prices."""
    return Route(input_price=2.0, output_price=8.0, **fields)


class Seed(IntEnum):
    FIRST = 1


ROUTERS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": lambda: {"routes": [openai(), claude()]},
    "strings": lambda: {"routes": ["openai:gpt-4o", "anthropic:claude-opus-5"]},
    "arguments": lambda: {
        "routes": [
            openai(temperature=0.5, base_url="http://127.0.0.1:1/v1", timeout=3),
            claude(max_tokens_to_sample=77, base_url="http://127.0.0.1:1"),
        ]
    },
    "routes": lambda: {
        "routes": [
            Route(model=openai(), name="a", weight=3, supports_prefill=False),
            rated(model=claude()),
            claude().bind(seed=1),
        ],
        "strategy": "weighted",
        "max_price": None,
    },
    "fields": lambda: {
        "routes": [openai()],
        "retry_policy": RetryPolicy(max_retries=0, deadline=30.0, jitter=False),
        "breaker_settings": {"failure_threshold": 7},
        "failover_on": {"content_filter": "failover", "length": "retry"},
        "hedge_after": 4.0,
        "seed": 3,
        "stream_recovery": "buffer",
        "tags": ["a"],
        "metadata": {"team": "b"},
    },
    "enumerations": lambda: {
        "routes": [openai().bind(seed=Seed.FIRST)],
        "failover_on": [{"quota": "raise"}, {FailureKind.LENGTH: FailureAction.RETRY}],
    },
    "no breakers": lambda: {"routes": [openai()], "breaker_settings": None},
    "limits": lambda: {
        "routes": [rated(model=openai(), rate_limit=RateLimit(requests_per_minute=60))],
        "rate_limit": RateLimit(max_concurrency=3, name="all"),
        "budget": RetryBudget(capacity=28),
        "max_cost": 0.5,
        "spend_limit": SpendLimit(5.0, per="month", name="team"),
    },
}


@pytest.mark.parametrize("row", ROUTERS)
def test_what_is_written_makes_an_equal_router(row: str) -> None:
    """As JSON and as YAML, too; and its config is the same again."""
    router = RetryRouter(**ROUTERS[row]())
    config = json.loads(json.dumps(router.to_config()))
    assert yaml.safe_load(yaml.safe_dump(router.to_config())) == config
    assert KEY not in str(config)
    again = RetryRouter.from_config(config)
    assert again.to_config() == config
    for name in ("strategy", "retry_policy", "breaker_settings", "failover_on"):
        assert getattr(again, name) == getattr(router, name)
    for one, other in zip(router.routes, again.routes, strict=True):
        for name in ("name", "weight", "options", "identity"):
            assert getattr(one, name) == getattr(other, name)
        assert str(one.rate_limit) == str(other.rate_limit)
    assert str(again.budget) == str(router.budget)


FILE = """\
[[routes]]
model = "openai:gpt-4o"
api_key_env = "KEY_OF_THE_TEAM"
params = { temperature = 0.5, base_url_env = "URL" }

[[routes]]
model_env = "SPEC"
base_urls_env = ["URL", "OTHER_URL"]
"""


def test_what_a_file_says_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the names of its variables, and what was changed since."""
    monkeypatch.setenv("URL", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("OTHER_URL", "http://127.0.0.1:2/v1")
    monkeypatch.setenv("SPEC", "anthropic:claude-opus-5")
    path = tmp_path / "router.toml"
    path.write_text(FILE)
    router = RetryRouter.from_config(path, hedge_after=3.0)
    assert router.to_config() == {
        "hedge_after": 3.0,
        "routes": [
            {
                "model": "openai:gpt-4o",
                "api_key_env": "KEY_OF_THE_TEAM",
                "params": {"temperature": 0.5, "base_url_env": "URL"},
                "name": "gpt-4o",
            },
            {
                "model_env": "SPEC",
                "base_urls_env": ["URL", "OTHER_URL"],
                "name": "claude-opus-5",
            },
        ],
    }


def test_a_model_that_was_replaced_is_named() -> None:
    """The config of the old one would be written."""
    router = RetryRouter.from_config({"routes": ["openai:gpt-4o"]})
    other = router.routes[0].model_copy(update={"model": openai(temperature=0.7)})
    with pytest.raises(ValueError, match="the model of 'gpt-4o' is not the config's"):
        RetryRouter(routes=[other]).to_config()


def test_where_a_store_is_is_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was given; an address with a password must be in a variable."""
    address = "redis://:a-long-password@127.0.0.1:1/0"
    monkeypatch.setenv("REDIS_URL", address)
    routes = [{"model": "openai:gpt-4o", "name": "gpt-4o"}]
    for store in ({"store_env": "REDIS_URL"}, {"store": "redis://127.0.0.1:1/0"}):
        with RetryRouter.from_config({**store, "routes": routes}) as router:
            assert "127.0.0.1" in repr(router.store)
            assert router.to_config() == {**store, "routes": routes}
    limit = {"requests_per_minute": 5}
    config = {
        "store_env": "REDIS_URL",
        "budget": {"capacity": 4},
        "rate_limit": {**limit, "name": "all"},
        "spend_limit": {"amount": 5.0},
        "routes": [
            {
                **routes[0],
                "rate_limit": limit,
                "spend_limit": {"amount": 2.0, "per": "hour", "name": "team"},
            }
        ],
    }
    with RetryRouter.from_config(config) as router:
        assert router.to_config() == config
        for money in (router.spend_limit, router.routes[0].spend_limit):
            assert money is not None
            assert money.is_shared
    with pytest.raises(ValueError, match=r"store: a config must.*store_env = 'NAME'"):
        RetryRouter.from_config({"store": address, "routes": routes})
    with pytest.raises(ValueError, match="store: is not data") as refused:
        RetryRouter(routes=[openai()], store=MemoryStore()).to_config()
    assert "password" not in str(refused.value)


Fields: TypeAlias = Callable[[], dict[str, Any]]
# What `to_config` says of fields that `dumps` cannot write either.
LOST: dict[str, Fields] = {
    "accept: is not data": lambda: {"accept": bool},
    "clock: is not data": lambda: {"clock": FakeClock()},
    "failover_on: is not data": lambda: {"failover_on": {LookupError: "raise"}},
    "config: failover_on: is not": lambda: {"failover_on": [{"quota": "raise"}, id]},
    "retry_policy: is not data": lambda: {"retry_policy": RetryPolicy(on_retry=print)},
    r"routes\[0\].accept: is not data": lambda: {
        "routes": [Route(model=claude(), accept=bool)]
    },
    r"routes\[0\].breaker: is not data": lambda: {
        "routes": [Route(model=openai(), breaker=CircuitBreaker())]
    },
    "FakeListChatModel has no 'provider:model'": lambda: {
        "routes": [FakeListChatModel(responses=["a"])]
    },
}
# What makes another model than the config would.
ONLY_IN_A_MODEL: dict[str, Callable[[], Any]] = {
    "openai_api_key is not in the": lambda: openai(api_key=SecretStr(OTHER)),
    r"routes\[0\].model: ChatOpenAI.rate_limiter is not data": lambda: openai(
        rate_limiter=InMemoryRateLimiter()
    ),
    r"routes\[0\]: is of a pool": lambda: Route.pool(
        openai(), base_urls=["http://a", "http://b"]
    ),
    "authorization: a config must not contain keys": lambda: openai(
        default_headers={"authorization": OTHER}
    ),
    r"routes\[0\].options: contain values that are not plain data": lambda: (
        openai().bind(response_format=RetryPolicy)
    ),
}
# What a config has, and `dumps` cannot write, since others may share it.
SHARED: dict[str, Fields] = {
    "budget": lambda: {"budget": RetryBudget()},
    "limit": lambda: {"rate_limit": RateLimit(max_concurrency=3)},
    "limit of a model": lambda: {
        "routes": [gpt_router("http://h", "a", rate_limit=RateLimit(max_concurrency=3))]
    },
    "money": lambda: {"spend_limit": SpendLimit(5.0)},
    "money of a route": lambda: {
        "routes": [rated(model=claude(), spend_limit=SpendLimit(5.0))]
    },
}


@pytest.mark.parametrize("says", LOST)
def test_what_cannot_be_written_is_named(says: str) -> None:
    """Nothing is left out of a config silently."""
    with pytest.raises(ValueError, match=says):
        RetryRouter(**{"routes": [openai()], **LOST[says]()}).to_config()


@pytest.mark.parametrize("says", ONLY_IN_A_MODEL)
def test_what_only_a_model_has_is_named(says: str) -> None:
    """No key is in the message."""
    with pytest.raises(ValueError, match=says) as refused:
        RetryRouter(routes=[ONLY_IN_A_MODEL[says]()]).to_config()
    assert OTHER not in str(refused.value)


@pytest.mark.parametrize("row", [*LOST, *SHARED])
def test_what_cannot_be_dumped_is_not_loaded(row: str) -> None:
    """What `dumps` cannot write is written so that `load` says so."""
    fields = {"routes": [rated(model=openai())], **{**LOST, **SHARED}[row]()}
    data = dumpd(RetryRouter(**fields))
    assert "not_implemented" in str(data)
    assert KEY not in str(data)
    with pytest.raises(NotImplementedError, match="doesn't implement"):
        load(data, **ALLOWED)


LIMITS: dict[str, Callable[..., Any]] = {
    "rate_limit": lambda **fields: RateLimit(requests_per_minute=60, **fields),
    "spend_limit": lambda **fields: SpendLimit(5.0, **fields),
}


@pytest.mark.parametrize("field", LIMITS)
@pytest.mark.parametrize("first", ["router", "route"])
def test_what_is_shared_needs_a_name(field: str, first: str) -> None:
    """Without one, two tables would make two limits of one, and so twice the limit."""

    def share(limit: Any) -> RetryRouter:
        given: dict[str, Any] = {field: limit}
        is_above = first == "router"
        one = rated(model=openai(), **({} if is_above else given))
        other = rated(model=claude(), **given)
        return RetryRouter(routes=[one, other], **(given if is_above else {}))

    with pytest.raises(ValueError, match=rf"routes\[1\].{field}: is also") as refused:
        share(LIMITS[field]()).to_config()
    assert "give it a name, as in name='account'" in str(refused.value)
    again = RetryRouter.from_config(share(LIMITS[field](name="account")).to_config())
    above = again if first == "router" else again.routes[0]
    assert getattr(above, field) is getattr(again.routes[1], field)


def test_limits_of_one_name_are_one() -> None:
    """Two routes of one account share its limit; other numbers are a mistake."""
    limit = {"name": "account", "requests_per_minute": 60}
    table = {"model": "openai:gpt-4o", "rate_limit": limit}
    router = RetryRouter.from_config({"routes": [table, table]})
    first, second = router.routes
    assert first.rate_limit is second.rate_limit
    assert isinstance(first.rate_limit, RateLimit)
    other = {**table, "rate_limit": {**limit, "requests_per_minute": 61}}
    with pytest.raises(ValueError, match="'account' has other numbers elsewhere"):
        RetryRouter.from_config({"routes": [table, other]})


def test_a_pool_of_keys_is_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each key has a variable of its own; one table makes all routes, and back."""
    monkeypatch.setenv("SECOND_KEY", OTHER)
    table = {
        "model": "openai:gpt-4o",
        "name": "team",
        "api_keys_env": ["KEY_OF_THE_TEAM", "SECOND_KEY"],
        "tier": 1,
    }
    config = {"routes": [table, {"model": "openai:gpt-4o", "name": "gpt-4o"}]}
    router = RetryRouter.from_config(config)
    assert [route.name for route in router.routes] == ["team#1", "team#2", "gpt-4o"]
    models: list[Any] = [route.model for route in router.routes]
    keys = [model.openai_api_key.get_secret_value() for model in models]
    assert keys == [KEY, OTHER, KEY]
    assert router.to_config() == config
    for name, says in {
        "api_keys": r"routes\[0\].api_keys\[1\]: a config must not contain keys",
        "api_keys_env": r"api_keys_env\[1\]: must be the name of an environment",
    }.items():
        wrong = {**table, name: ["KEY_OF_THE_TEAM", "sk-proj-literal-22"]}
        with pytest.raises(ValueError, match=says) as refused:
            RetryRouter.from_config({"routes": [wrong]})
        assert "sk-proj-literal-22" not in str(refused.value)
    same = {**table, "api_keys_env": ["KEY_OF_THE_TEAM"] * 2}
    with pytest.raises(ValueError, match=r"\[0\].api_keys_env: api_keys has an entry"):
        RetryRouter.from_config({"routes": [same]})


# --- `dumps` and `loads` ---

KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GPT_ROUTER_API_KEY")
ALLOWED: dict[str, Any] = {
    "allowed_objects": [RetryRouter, Route, ChatOpenAI, ChatAnthropic, GPTRouter],
    "valid_namespaces": ["langchain_retryrouter"],
    "secrets_map": dict.fromkeys(KEYS, KEY),
}


def routes() -> list[Any]:
    model = openai(api_key=SecretStr(KEY), temperature=0.5)
    bound: Any = model.bind(seed=1)
    first = rated(model=bound, name="a", weight=3)
    return [first, rated(model=claude(api_key=SecretStr(KEY)))]


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
    other = Route(model=openai(model="o", api_key=SecretStr(KEY)), tier=0)
    model = openai(api_key=SecretStr(KEY))
    keys = {f"OPENAI_API_KEY_{n}": f"{KEY}{n}" for n in (1, 2, 3)}
    pool = Route.pool(model, api_keys=[*keys.values()][:2])
    router = RetryRouter(routes=[*pool, other, routes()[1]])
    text = dumps(router)
    assert KEY not in text
    secrets = {**keys, "ANTHROPIC_API_KEY": KEY}
    again = loads(text, **{**ALLOWED, "secrets_map": secrets})
    assert [
        one.openai_api_key.get_secret_value()
        for one in (route.model for route in again.routes[:3])
        if isinstance(one, ChatOpenAI) and isinstance(one.openai_api_key, SecretStr)
    ] == [*keys.values()]
    assert all(dumps(again).count(f'"{name}"') == 1 for name in secrets)
    assert [route.group for route in again.routes] == [
        route.group for route in router.routes
    ]
    with pytest.raises(ValueError, match="of a pool have the same key and address"):
        loads(text, **{**ALLOWED, "secrets_map": dict.fromkeys(secrets, KEY)})


def test_one_key_keeps_its_name() -> None:
    """Addresses of one key, and functions that return a key, need no other name."""
    model = openai(api_key=SecretStr(KEY))
    pool = Route.pool(model, base_urls=["http://a/v1", "http://b/v1"])
    text = dumps(RetryRouter(routes=[*pool, routes()[0]]))
    assert text.count('["OPENAI_API_KEY"]') == 3
    claude = routes()[1].model
    functions = [lambda: KEY, lambda: KEY]
    made = RetryRouter(routes=Route.pool(claude, api_keys=functions))
    assert "not_implemented" in dumps(made)


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
