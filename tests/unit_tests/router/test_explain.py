"""What a call costs at most: routes that send once, and `RetryRouter.explain`."""

import asyncio
import copy
import itertools
import math
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from langchain.chat_models import init_chat_model
from langchain_anthropic import ChatAnthropic
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel, FakeListLLM
from langchain_core.language_models.fake_chat_models import ParrotFakeChatModel
from langchain_core.runnables import ConfigurableField
from langchain_openai import AzureChatOpenAI
from pydantic import SecretStr

from langchain_retryrouter import (
    APITimeoutError,
    AuthenticationError,
    GPTRouter,
    RateLimitError,
    RetryPolicy,
    RetryRouter,
    RetryRouterError,
    Route,
    UnavailableError,
)
from langchain_retryrouter.testing import FakeClock, FaultyGateway, Status
from tests.support.models import CLOSE, KEY, chat_openai, gpt_router

from .anthropic_wire import chat_anthropic
from .attempts import WAYS, Way, error_of, every_way, of_package, router_of

NewModel = Callable[[FaultyGateway], Any]


def azure(gateway: FaultyGateway) -> AzureChatOpenAI:
    return AzureChatOpenAI(
        azure_deployment="gpt-4o",
        azure_endpoint=gateway.url,
        api_key=SecretStr(KEY),
        api_version="2024-10-21",
        max_retries=4,
        default_headers=CLOSE,
    )


def anthropic(gateway: FaultyGateway, **fields: Any) -> ChatAnthropic:
    return chat_anthropic(gateway, **{"max_retries": 3, **fields})


def gateway_list(gateway: FaultyGateway, *names: str, **fields: Any) -> GPTRouter:
    return gpt_router(gateway, *(names or "ab"), clock=FakeClock(), **fields)


new_router = partial(router_of, retries=1)


@pytest.fixture
def sick_gateway(faulty_gateway: FaultyGateway) -> FaultyGateway:
    """A provider of all protocols that is overloaded for ever."""
    for path in ("/v1/messages", "/v1/responses"):
        faulty_gateway.respond(path, {})
    faulty_gateway.always(Status(503))
    return faulty_gateway


# --- what can be switched off ---


# How a model is made, the requests of one attempt, and what is switched off.
ONCE: dict[str, tuple[NewModel, int, str]] = {
    "openai": (chat_openai, 1, "max_retries=2"),
    "responses": (partial(chat_openai, use_responses_api=True), 1, "max_retries=2"),
    "azure": (azure, 1, "max_retries=4"),
    "anthropic": (anthropic, 1, "max_retries=3"),
    "one model": (lambda gateway: gateway_list(gateway, "a"), 1, "max_retries=4"),
    "a list": (gateway_list, 2, "max_retries=4"),
    "no failover": (partial(gateway_list, failover=False), 1, "max_retries=4"),
    # A list that was to be given up after one model is given up after one.
    "given up": (partial(gateway_list, max_retries=0), 1, ""),
    "told to repeat": (partial(gateway_list, gateway_max_retries=2), 2, ""),
    "a router": (lambda gateway: router_of(chat_openai(gateway)), 1, ""),
}


@every_way
@pytest.mark.parametrize("name", ONCE)
def test_a_sick_provider_gets_the_routers_requests_alone(
    sick_gateway: FaultyGateway,
    name: str,
    way: Way,
) -> None:
    """A 503 for ever costs `max_retries + 1` requests, as `explain` says."""
    new_model, of_one_attempt, disabled = ONCE[name]
    router = new_router(new_model(sick_gateway))
    error = error_of(way, router)
    assert getattr(error, "attempts", None) == 2
    assert len(sick_gateway.requests) == 2 * of_one_attempt
    # The gateway's own three retries, its default where we have none, are off.
    assert {one.json.get("maxRetries", 0) for one in sick_gateway.requests} == {0}
    (cost,) = router.explain().routes
    assert cost.requests == 2 * of_one_attempt
    assert f"{disabled} switched off" in cost.remark or not disabled


@pytest.mark.parametrize(
    ("new_model", "requests"),
    [(chat_openai, 3), (anthropic, 4)],
    ids=["openai", "claude"],
)
def test_the_users_model_goes_on_repeating(
    sick_gateway: FaultyGateway, new_model: NewModel, requests: int
) -> None:
    """The retries of a copy are switched off, not those of the model handed over."""
    sick_gateway.always(Status(503, {"retry-after-ms": "1"}))
    model = new_model(sick_gateway)
    new_router(model)
    with pytest.raises(Exception, match="503"):
        model.invoke("hi")
    assert len(sick_gateway.requests) == requests


def test_a_model_that_sends_once_is_used_as_it_is(
    faulty_gateway: FaultyGateway,
) -> None:
    """There is no copy, and nothing is said, where nothing has to be switched off."""
    for model in (
        chat_openai(faulty_gateway, max_retries=0),
        anthropic(faulty_gateway, max_retries=0),
        own_client(faulty_gateway, retries=0),
        ParrotFakeChatModel(),
        Repeating(max_retries=0),
        Repeating(max_retries=None),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            router = new_router(model)
        assert router.routes[0].model is model
        assert router.explain().routes[0].remark == ""


def test_an_openai_route_uses_the_models_connections(
    faulty_gateway: FaultyGateway,
) -> None:
    """The copy sends over the HTTP client of the user's model."""
    with openai.DefaultHttpxClient() as http_client:
        model = chat_openai(
            faulty_gateway, http_client=http_client, default_headers=None
        )
        router = new_router(model)
        model.invoke("one")
        router.invoke("two")
    first, second = faulty_gateway.requests
    assert first.connection == second.connection


LOOK = {"title": "look", "description": "Look.", "type": "object", "properties": {}}


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.copy,
        copy.deepcopy,
        lambda router: pickle.loads(pickle.dumps(router)),
        lambda router: router.bind_tools([LOOK]).bound,
    ],
    ids=["copy", "deepcopy", "pickle", "tools"],
)
def test_a_copy_of_a_router_sends_once_too(
    sick_gateway: FaultyGateway, duplicate: Callable[[RetryRouter], RetryRouter]
) -> None:
    """However a router is duplicated, its models go on sending each request once."""
    instant = RetryPolicy(max_retries=1, initial_delay=0)
    router = new_router(anthropic(sick_gateway), clock=None, retry_policy=instant)
    again = duplicate(router)
    error_of(WAYS[0], again)
    assert len(sick_gateway.requests) == 2
    assert "max_retries=3 switched off" in str(again.explain())


def test_a_model_without_a_sync_client_is_a_route(sick_gateway: FaultyGateway) -> None:
    """With a key that only a coroutine can tell there is only an async client."""

    async def key() -> str:
        return "sk-any"

    router = new_router(chat_openai(sick_gateway, api_key=key))
    with pytest.raises(Exception, match="503"):
        asyncio.run(router.ainvoke("hi"))
    assert len(sick_gateway.requests) == 2


# --- what cannot be switched off ---


class Repeating(ParrotFakeChatModel):
    """A model of an unknown package that repeats by itself."""

    max_retries: int | None = 6


class OwnArguments(ChatAnthropic):
    """A subclass that cannot be made again with the fields of its class."""

    def __init__(self, gateway: Any) -> None:
        fields: dict[str, Any] = {"model": "m", "api_key": KEY, "base_url": gateway.url}
        super().__init__(**fields)


class OwnRetries(OwnArguments):
    """A subclass that can, and that takes no other number of retries."""

    def __init__(self, gateway: Any = None, **_: Any) -> None:
        super().__init__(gateway or SimpleNamespace(url="http://127.0.0.1"))


def test_a_model_that_repeats_is_named_in_one_warning() -> None:
    """It has route, number and what to do, and points at the code with the router."""
    models: list[Any] = [Repeating(), Repeating(max_retries=1)]
    with pytest.warns(UserWarning) as told:  # noqa: PT030 - the text is compared below
        router = RetryRouter(routes=models)
    [warning] = told
    assert warning.filename == __file__
    for text in (
        "route 'Repeating' repeats by itself (max_retries=6)",
        "route 'Repeating-2' repeats by itself (max_retries=1)",
        "build it with max_retries=0",
    ):
        assert text in str(warning.message)
    assert [cost.requests for cost in router.explain().routes] == [21, 6]


def own_client(gateway: FaultyGateway, retries: int = 2) -> Any:
    """A model with a client that the user has made."""
    own = openai.OpenAI(api_key="any", base_url=gateway.openai_url, max_retries=retries)
    client = own.chat.completions
    return chat_openai(gateway, client=client, max_retries=retries)


@pytest.mark.parametrize(
    ("new_model", "says"),
    [
        (OwnArguments, r"max_retries=2.*\(OwnArguments\)"),
        (OwnRetries, r"max_retries=2.*\(OwnRetries\)"),
        (own_client, "given a client of its own"),
    ],
)
def test_what_cannot_be_made_again_is_named_and_used_as_it_is(
    faulty_gateway: FaultyGateway, new_model: Any, says: str
) -> None:
    """A subclass with other arguments, and a client of the user's own."""
    model = new_model(faulty_gateway)
    with pytest.warns(UserWarning, match=says):
        router = new_router(model)
    assert router.routes[0].model is model
    assert router.explain().routes[0].requests == 6


def test_a_router_within_a_router_is_named_if_it_repeats() -> None:
    """Its retries multiply with the outer router's, unless it has none."""
    models = [ParrotFakeChatModel(), ParrotFakeChatModel()]
    with pytest.warns(UserWarning, match="up to 4 requests for one attempt"):
        router = new_router(new_router(*models))
    assert router.explain().requests == 8
    once = new_router(*models, retries=0)
    assert new_router(once).explain().requests == 4


def fake_of(package: str, **fields: Any) -> Any:
    types = {name: type(value) for name, value in fields.items()}
    cls = of_package(package, FakeListChatModel, __annotations__=types, **fields)
    return cls(responses=["a"], **fields)


def boto(attempts: int) -> SimpleNamespace:
    """What a client of Amazon's says about its retries."""
    config = SimpleNamespace(retries={"total_max_attempts": attempts})
    return SimpleNamespace(meta=SimpleNamespace(config=config))


@pytest.mark.parametrize(
    ("package", "fields", "advice"),
    [
        ("langchain_aws", {}, "total_max_attempts"),
        ("langchain_aws", {"client": boto(5)}, "total_max_attempts"),
        ("langchain_aws", {"client": boto(1)}, None),
        # Made of the key by the model itself, so it is made again.
        (
            "langchain_aws",
            {"client": boto(5), "aws_access_key_id": "a", "max_retries": 3},
            None,
        ),
        ("langchain_mistralai", {"max_retries": 5}, None),
        ("langchain_mistralai", {"max_retries": 1}, None),
        ("langchain_google_genai", {"max_retries": 1}, None),
        ("langchain_of_tomorrow", {"max_retries": 1}, "build it with max_retries=0"),
    ],
    ids=str,
)
def test_the_advice_is_that_of_the_package(
    package: str, fields: dict[str, Any], advice: str | None
) -> None:
    """Each package's own way to send once is known, and told where it is not taken."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        new_router(fake_of(package, **fields))
    assert len(told) == (advice is not None)
    assert all(advice and advice in str(one.message) for one in told)


@pytest.mark.parametrize(
    ("package", "option", "value"),
    [
        ("langchain_cohere", "request_options", {"max_retries": 0}),
        ("langchain_litellm", "max_retries", 0),
        ("langchain_openrouter", "retries", None),
    ],
)
def test_retries_are_switched_off_by_an_option_of_the_call(
    package: str, option: str, value: Any
) -> None:
    """Where that is the package's public way, each call has the option."""
    router = new_router(fake_of(package))
    assert router.routes[0].options == {option: value}
    assert f"{option} of each call switched off" in str(router.explain())


def test_clients_of_a_generated_sdk_are_copied_without_retries(
    faulty_gateway: FaultyGateway,
) -> None:
    """Of any package: `with_options` shares the connections of the user's client."""
    client = openai.OpenAI(
        api_key="any", base_url=faulty_gateway.openai_url, max_retries=4
    )
    model = fake_of("langchain_of_tomorrow", client=client, max_retries=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        router = new_router(model)
    used: Any = router.routes[0].model
    assert (used.client.max_retries, used.max_retries) == (0, 0)
    assert (client.max_retries, model.max_retries) == (4, 4)


def test_callbacks_of_a_routes_model_are_named() -> None:
    """They would not be called, since the run that handlers see is the router's."""
    model = ParrotFakeChatModel(callbacks=[BaseCallbackHandler()])
    with pytest.warns(UserWarning, match="route 'loud' has callbacks, which are not"):
        RetryRouter(routes=[Route(model=model, name="loud")])


PARROT: Any = ParrotFakeChatModel()
NO_ROUTES: dict[str, tuple[Any, str]] = {
    "with_retry": (PARROT.with_retry(), "give the router a RetryPolicy"),
    "with_fallbacks": (PARROT.with_fallbacks([PARROT]), "each as a route of its own"),
    "with_config": (PARROT.with_config(tags=["x"]), "own (tags)"),
    "with_listeners": (PARROT.with_listeners(on_start=print), "own (with_listeners)"),
    "configurable_fields": (
        PARROT.configurable_fields(disable_streaming=ConfigurableField("x")),
        "each model that may be chosen into `routes`",
    ),
    "init_chat_model": (init_chat_model(), "name the model there"),
    "chain": (PARROT | str, "must be a LangChain chat model"),
    "llm": (FakeListLLM(responses=["a"]), "must be a LangChain chat model"),
    "number": (5, "must be a LangChain chat model, not 5"),
}


@pytest.mark.parametrize(("model", "says"), NO_ROUTES.values(), ids=NO_ROUTES)
def test_what_is_no_plain_chat_model_is_no_route(model: Any, says: str) -> None:
    """It would hide retries, or a choice: it is refused, and what to do is said."""
    with pytest.raises(TypeError, match=re.escape(says)):
        RetryRouter(routes=[model])


def test_prices_and_tokens_give_money() -> None:
    """A route's prices are for a million tokens, and each request may be charged."""
    model = ParrotFakeChatModel()
    routes = [
        Route(model=model, name="cheap", input_price=1, output_price=2),
        Route(model=model, name="dear", input_price=10, output_price=20),
    ]
    router = router_of(*routes)
    said = router.explain(input_tokens=1000, output_tokens=500)
    assert said.money == pytest.approx(0.002 + 0.02)
    assert "cheap          1   0.0 s  0.0020\n" in str(said)
    for counts in ({"input_tokens": 0}, {"output_tokens": 5}):
        with pytest.raises(ValueError, match="the money needs both counts"):
            router.explain(**counts)


def test_a_buffered_stream_has_no_early_token() -> None:
    """`first_token_timeout` bounds the first token only where it is handed over."""
    policy = RetryPolicy(first_token_timeout=5, max_retries=0)
    model = ParrotFakeChatModel()
    assert new_router(model, retry_policy=policy).explain().first_token == 5
    buffered = new_router(model, retry_policy=policy, stream_recovery="buffer")
    assert buffered.explain().first_token is None


def test_time_limits_of_attempts_limit_the_call() -> None:
    """Without a deadline, a call without a stream ends when its attempts have ended."""
    models = [ParrotFakeChatModel(), ParrotFakeChatModel()]
    policy = RetryPolicy(attempt_timeout=10, max_retries=1)
    said = router_of(*models, retry_policy=policy).explain()
    assert said.seconds == 2 * (2 * 10 + policy.explain().waited)
    assert f"without a stream: within {said.seconds:.1f} s" in str(said)
    unlimited = RetryPolicy(attempt_timeout=math.inf)
    assert router_of(*models, retry_policy=unlimited).explain().seconds is None
    brief = RetryPolicy(attempt_timeout=10, deadline=30)
    assert router_of(*models, retry_policy=brief).explain().seconds == 30


class Failing(FakeListChatModel):
    """A model at an address that fails, each time with the next error of a cycle."""

    api_key: str = "k"
    base_url: str = "https://a"
    errors: Iterator[type[RetryRouterError]]
    asked: list[str]

    def _call(self, *_: Any, **__: Any) -> str:
        self.asked.append(self.base_url)
        msg, pause = "no", 1.0 + 29.0 * (len(self.asked) % 3 == 0)
        raise next(self.errors)(msg, retry_after=pause)


CAUSES = (RateLimitError, UnavailableError, AuthenticationError, APITimeoutError)
KINDS = ("rate_limit", "unavailable", "server_error", "conflict", "connection")
ALL_FAILOVER = dict.fromkeys((*KINDS, "interrupted", "malformed"), "failover")


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize("keys", [(1, 1), (3, 2)], ids=str)
@pytest.mark.parametrize("fields", [{}, {"failover_on": ALL_FAILOVER}], ids=["", "own"])
def test_no_call_sends_more_than_explain_says(
    keys: tuple[int, ...], retries: int, fields: dict[str, Any], *, is_async: bool
) -> None:
    """With retries, a key that has to pause and a route that was left are asked again.

    Without, each is asked once.
    """
    most = 0
    for causes in itertools.product(CAUSES, repeat=3):
        asked: list[str] = []
        errors = itertools.cycle(causes)
        routes: list[Any] = []
        for number, own in enumerate(keys):
            model = Failing(
                responses=[""], base_url=f"https://{number}", errors=errors, asked=asked
            )
            names = [f"k{n}" for n in range(own)]
            routes.append(Route.pool(model, api_keys=names) if own > 1 else model)
        router = RetryRouter(
            routes=routes,
            retry_policy=RetryPolicy(max_retries=retries),
            clock=FakeClock(),
            stream_recovery="error",
            **fields,
        )
        for route in router.routes:  # pydantic has copied the list.
            vars(route.model).update(asked=asked, errors=errors)
        with pytest.raises(RetryRouterError):
            asyncio.run(router.ainvoke("hi")) if is_async else router.invoke("hi")
        most = max(most, len(asked))
    worst = router.explain()
    assert worst.requests == (retries + 1) * sum(keys)
    assert most <= worst.requests
    assert (most > sum(keys)) is (retries > 0)
