"""One retry owner: what a router makes of models that repeat by themselves."""

from __future__ import annotations

import asyncio
import copy
import pickle
import re
import warnings
from collections.abc import Callable
from typing import Any

import openai
import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import ParrotFakeChatModel
from langchain_core.runnables import RunnableBinding
from langchain_openai import AzureChatOpenAI, ChatOpenAI
from pydantic import SecretStr

from langchain_retryrouter import GPTRouter, GPTRouterModel, RetryPolicy
from langchain_retryrouter._providers.integrations import (
    RetriesDisabled,
    disable_retries,
)
from langchain_retryrouter._router.cost import RouteCost
from langchain_retryrouter._router.route import Route
from langchain_retryrouter.chat_models.retry_router import RetryRouter
from langchain_retryrouter.testing import FakeClock, FaultyGateway, Status

from .attempts import WAYS, Way, error_of

KEY = SecretStr("sk-any")
# A model's connections end with its answers, so that nobody has to close them.
CLOSE = {"connection": "close"}

NewModel = Callable[[FaultyGateway], Any]


def chat_openai(gateway: FaultyGateway, **fields: Any) -> ChatOpenAI:
    given: dict[str, Any] = {"default_headers": CLOSE, **fields}
    return ChatOpenAI(model="gpt-4o", api_key=KEY, base_url=gateway.openai_url, **given)


def responses_api(gateway: FaultyGateway) -> ChatOpenAI:
    return chat_openai(gateway, use_responses_api=True)


def azure(gateway: FaultyGateway) -> AzureChatOpenAI:
    return AzureChatOpenAI(
        azure_deployment="gpt-4o",
        azure_endpoint=gateway.url,
        api_key=KEY,
        api_version="2024-10-21",
        max_retries=4,
        default_headers=CLOSE,
    )


def anthropic(gateway: FaultyGateway, **fields: Any) -> ChatAnthropic:
    return ChatAnthropic(
        model_name="claude-of-the-tests",
        api_key=KEY,
        base_url=gateway.url,
        timeout=None,
        stop=None,
        default_headers=CLOSE,
        **fields,
    )


def http_of(client: Any) -> Any:
    """The HTTP client, with its connections, that an SDK's client sends over."""
    return client._client  # noqa: SLF001 - there is no other name for it


def clients_of(model: ChatAnthropic) -> list[Any]:
    return [model._client, model._async_client]  # noqa: SLF001 - as in `http_of`


def used_anthropic(gateway: FaultyGateway) -> ChatAnthropic:
    model = anthropic(gateway, max_retries=3)
    assert [client.max_retries for client in clients_of(model)] == [3, 3]
    return model


def half_used_anthropic(gateway: FaultyGateway) -> ChatAnthropic:
    """Its sync client is there, and the async one will be made of the same numbers."""
    model = anthropic(gateway, max_retries=3)
    assert model._client.max_retries == 3  # noqa: SLF001 - as in `http_of`
    return model


def one_model(gateway: FaultyGateway, **fields: Any) -> GPTRouter:
    return several_models(gateway, names=["gpt-4o"], **fields)


def several_models(
    gateway: FaultyGateway, names: tuple[str, ...] | list[str] = ("a", "b"), **f: Any
) -> GPTRouter:
    return GPTRouter(
        models_priority_list=[
            GPTRouterModel(name=name, provider_name="chat_openai") for name in names
        ],
        gpt_router_api_base=gateway.url,
        gpt_router_api_key=KEY,
        clock=FakeClock(),
        **f,
    )


def without_failover(gateway: FaultyGateway) -> GPTRouter:
    return several_models(gateway, failover=False)


def new_router(*models: Any, **fields: Any) -> RetryRouter:
    """A router that repeats once, and knows no breaker."""
    settings: dict[str, Any] = {
        "retry_policy": RetryPolicy(max_retries=1),
        "breaker": None,
        "clock": FakeClock(),
        **fields,
    }
    return RetryRouter(routes=list(models), **settings)


def state_of(model: BaseChatModel) -> dict[str, Any]:
    return {**vars(model), "private": model.__pydantic_private__}


@pytest.fixture
def sick_gateway(faulty_gateway: FaultyGateway) -> FaultyGateway:
    """A provider of all protocols that is overloaded for ever."""
    for path in ("/v1/messages", "/v1/responses"):
        faulty_gateway.respond(path, {})
    faulty_gateway.always(Status(503))
    return faulty_gateway


def fares_of(router: Any) -> list[RouteCost]:
    return [route.route_cost for route in router.routes]


def model_of(router: Any) -> Any:
    return router.routes[0].model


# --- what can be made quiet ---


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize(
    ("new_model", "of_one_attempt"),
    [
        (chat_openai, 1),
        (responses_api, 1),
        (azure, 1),
        (anthropic, 1),
        (used_anthropic, 1),
        (half_used_anthropic, 1),
        (one_model, 1),
        (without_failover, 1),
        (several_models, 2),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_sick_provider_gets_the_routers_requests_alone(
    sick_gateway: FaultyGateway, new_model: NewModel, of_one_attempt: int, way: Way
) -> None:
    """A 503 for ever costs `max_retries + 1` requests; a list is walked once each."""
    router = new_router(new_model(sick_gateway))
    error = error_of(way, router)
    assert getattr(error, "attempts", None) == 2
    assert len(sick_gateway.requests) == 2 * of_one_attempt
    assert [route_cost.requests for route_cost in fares_of(router)] == [of_one_attempt]


@pytest.mark.parametrize(
    ("new_model", "disabled_retries"),
    [
        (chat_openai, "max_retries=2"),
        (azure, "max_retries=4"),
        (anthropic, "max_retries=2"),
        (used_anthropic, "max_retries=3"),
        (several_models, "max_retries=4"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_users_model_stays_as_it_was(
    faulty_gateway: FaultyGateway, new_model: NewModel, disabled_retries: str
) -> None:
    """A copy is quietened, and it is told what was turned off in it."""
    model = new_model(faulty_gateway)
    before = state_of(model)
    router = new_router(model)
    assert model_of(router) is not model
    assert fares_of(router)[0].disabled_retries == disabled_retries
    assert state_of(model) == before


def test_a_quiet_model_loses_nothing(faulty_gateway: FaultyGateway) -> None:
    """What sends each request once anyway is used as it is, and nothing is told."""
    for model in (
        chat_openai(faulty_gateway, max_retries=0),
        anthropic(faulty_gateway, max_retries=0),
        ParrotFakeChatModel(),
    ):
        assert disable_retries(model) == RetriesDisabled(model)


def test_a_quietened_openai_uses_the_same_connections(
    faulty_gateway: FaultyGateway,
) -> None:
    """The copy sends over the HTTP clients of the user's model."""
    with openai.DefaultHttpxClient() as http_client:
        model = chat_openai(
            faulty_gateway, http_client=http_client, default_headers=None
        )
        router = new_router(model)
        model.invoke("one")
        router.invoke("two")
    first, second = faulty_gateway.requests
    assert first.connection == second.connection
    quietened = model_of(router)
    assert isinstance(quietened, ChatOpenAI)
    assert http_of(quietened.root_client) is http_client
    ours, theirs = quietened.root_async_client, model.root_async_client
    assert http_of(ours) is http_of(theirs)


def test_a_quietened_anthropic_uses_the_same_connections(
    faulty_gateway: FaultyGateway,
) -> None:
    """Clients that were made already share their connections with the copy's."""
    model = used_anthropic(faulty_gateway)
    quietened = disable_retries(model).model
    assert isinstance(quietened, ChatAnthropic)
    for ours, theirs in zip(clients_of(quietened), clients_of(model), strict=True):
        assert (ours.max_retries, theirs.max_retries) == (0, 3)
        assert http_of(ours) is http_of(theirs)


def test_a_gateway_is_told_not_to_repeat(sick_gateway: FaultyGateway) -> None:
    """The gateway's own three retries, its default where we have none, are off."""
    model = one_model(sick_gateway, max_retries=0, gateway_max_retries=2)
    router = new_router(model, one_model(sick_gateway))
    error_of(WAYS[0], router)
    told = [request.json["maxRetries"] for request in sick_gateway.requests]
    assert told == [0, 0, 0, 0]
    assert fares_of(router)[0].disabled_retries == "gateway_max_retries=2"


def test_quietening_never_adds_requests(faulty_gateway: FaultyGateway) -> None:
    """A list that was to be given up after one model is given up after one."""
    once = disable_retries(several_models(faulty_gateway, max_retries=0))
    assert (once.requests, once.disabled_retries) == (1, "")


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda router: pickle.loads(pickle.dumps(router))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_of_a_router_is_quiet_too(
    sick_gateway: FaultyGateway, duplicate: Callable[[RetryRouter], RetryRouter]
) -> None:
    """However a router is duplicated, its models go on sending each request once."""
    model = anthropic(sick_gateway, max_retries=3)
    instant = RetryPolicy(max_retries=1, initial_delay=0)
    router = new_router(model, clock=None, retry_policy=instant)
    again = duplicate(router)
    error_of(WAYS[0], again)
    assert len(sick_gateway.requests) == 2
    assert fares_of(again)[0].disabled_retries == "max_retries=3"


def test_tools_keep_a_model_quiet(sick_gateway: FaultyGateway) -> None:
    """A router with tools is made of the same quiet models."""
    binding = new_router(chat_openai(sick_gateway)).bind_tools(
        [{"title": "look", "description": "Look.", "type": "object", "properties": {}}]
    )
    assert isinstance(binding, RunnableBinding)
    router = binding.bound
    assert isinstance(router, RetryRouter)
    error_of(WAYS[0], router)
    assert len(sick_gateway.requests) == 2
    assert fares_of(router)[0].disabled_retries == "max_retries=2"


def test_a_client_that_is_missing_is_not_missed(sick_gateway: FaultyGateway) -> None:
    """With a key that only a coroutine can tell there is no sync client to quieten."""

    async def key() -> str:
        return "sk-any"

    router = new_router(
        ChatOpenAI(
            model="gpt-4o",
            api_key=key,
            base_url=sick_gateway.openai_url,
            default_headers=CLOSE,
        )
    )
    with pytest.raises(Exception, match="503"):
        asyncio.run(router.ainvoke("hi"))
    assert len(sick_gateway.requests) == 2


# --- what cannot ---


class Repeating(ParrotFakeChatModel):
    """A model of somebody else's that repeats by itself."""

    max_retries: int | None = 6


class OwnClients(ChatAnthropic):
    """A subclass that makes its clients as it likes."""

    @property
    def _client_params(self) -> dict[str, Any]:
        return {}


def test_a_model_that_repeats_is_named_once() -> None:
    """One warning, at whoever makes the router, has route, number, and what to do."""
    models: list[Any] = [Repeating(), Repeating(max_retries=1)]
    with pytest.warns(UserWarning) as told:  # noqa: PT030 - the text is compared below
        router = RetryRouter(routes=models)
    [warning] = told
    assert warning.filename == __file__
    assert str(warning.message) == (
        "route 'Repeating' repeats by itself (max_retries=6), and its retries multiply"
        " with the router's; build that Repeating with max_retries=0; route"
        " 'Repeating-2' repeats by itself (max_retries=1), and its retries multiply"
        " with the router's; build that Repeating with max_retries=0"
    )
    assert [route_cost.requests for route_cost in fares_of(router)] == [7, 2]


@pytest.mark.parametrize("retries", [0, None])
def test_a_model_that_does_not_repeat_is_not_named(retries: int | None) -> None:
    """No retries, or none said, is nothing to warn of."""
    model = Repeating(max_retries=retries)
    assert disable_retries(model) == RetriesDisabled(model)


def test_a_subclass_with_clients_of_its_own_is_named(
    faulty_gateway: FaultyGateway,
) -> None:
    """Where a known class was changed, nobody knows whether the copy is quiet."""
    known = anthropic(faulty_gateway)
    given = known.model_dump(include={"model", "anthropic_api_url"})
    model = OwnClients(**given, api_key=KEY)
    kept, complaint, _, requests, _ = disable_retries(model)
    assert kept is model
    assert complaint is not None
    assert "OwnClients with max_retries=0" in complaint
    assert requests == 3


def test_a_client_that_was_given_is_the_givers(faulty_gateway: FaultyGateway) -> None:
    """A client from outside is left alone: and named, unless it is quiet."""
    own = openai.OpenAI(api_key="any", base_url=faulty_gateway.openai_url)
    model = chat_openai(faulty_gateway, client=own.chat.completions)
    kept, complaint, _, requests, _ = disable_retries(model)
    assert (kept, requests) == (model, 3)
    assert complaint is not None
    assert "a client of its own" in complaint
    silent = own.with_options(max_retries=0).chat.completions
    assert disable_retries(chat_openai(faulty_gateway, client=silent)).complaint is None


def test_a_router_within_a_router_is_named_if_it_repeats() -> None:
    """Its retries multiply with ours, unless it has none."""
    models = [ParrotFakeChatModel(), ParrotFakeChatModel()]
    with pytest.warns(UserWarning, match="up to 4 requests for one attempt"):
        router = new_router(new_router(*models))
    assert fares_of(router)[0].requests == 4
    once = new_router(*models, retry_policy=RetryPolicy(max_retries=0))
    assert fares_of(new_router(once))[0].requests == 2


def test_callbacks_of_a_routes_model_are_named() -> None:
    """They would not be called, since the run that handlers see is the router's."""
    model = ParrotFakeChatModel(callbacks=[BaseCallbackHandler()])
    with pytest.warns(
        UserWarning, match="callbacks, which are not called, since"
    ) as told:
        RetryRouter(routes=[Route(model=model, name="loud")])
    assert "route 'loud'" in str(told[0].message)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        pytest.param(
            ParrotFakeChatModel().with_retry(),
            "give the router a RetryPolicy",
            id="with_retry",
        ),
        pytest.param(
            ParrotFakeChatModel().with_fallbacks([ParrotFakeChatModel()]),
            "each as a route of its own",
            id="with_fallbacks",
        ),
        pytest.param(
            ParrotFakeChatModel().with_config(tags=["x"]),
            "own (tags)",
            id="with_config",
        ),
        pytest.param(
            ParrotFakeChatModel().with_listeners(on_start=print),
            "own (with_listeners)",
            id="with_listeners",
        ),
        pytest.param(
            ParrotFakeChatModel() | str, "must be a LangChain chat model", id="chain"
        ),
    ],
)
def test_what_hides_retries_is_no_route(model: Any, says: str) -> None:
    """A wrapped model is refused with the reason, and with what to do instead."""
    with pytest.raises(TypeError, match=re.escape(says)):
        RetryRouter(routes=[model])


def test_options_that_are_bound_are_no_config() -> None:
    """What `bind` gives is sent; it is neither refused nor warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        router = new_router(ParrotFakeChatModel().bind(seed=1))
    [route] = router.routes
    assert isinstance(route, Route)
    assert route.options == {"seed": 1}
