"""A `GPTRouter` itself: its fields, its client, its copies, and its key."""

import asyncio
import copy
import inspect
import logging
import pickle
import time
import traceback
from typing import Any

import pytest
from gpt_router.client import GPTRouterClient
from gpt_router.models import ImageGenerationRequest, ModelGenerationRequest
from langchain_core.load import dumpd, dumps, loads
from langchain_core.runnables import ConfigurableField
from pydantic import SecretStr, ValidationError

from langchain_retryrouter import (
    APITimeoutError,
    CircuitBreaker,
    GPTRouter,
    RateLimit,
    RateLimitError,
    RetryBudget,
    RetryPolicy,
    RetryRouterError,
    ServerError,
)
from langchain_retryrouter.stores import MemoryStore
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Answer,
    Body,
    Cut,
    ErrorEvent,
    FakeClock,
    FaultyGateway,
    HtmlPage,
    Raw,
    Reset,
    SlowFirstToken,
    Stall,
    Status,
    Step,
    Truncate,
)

from .conftest import ENOUGH, GPT_4, KEY, SHORT, Env, NewModel

NAN, INF = float("nan"), float("inf")


# --- construction ---


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("models_priority_list", [], "at least 1 item"),
        ("models_priority_list", None, "valid list"),
        *(
            ("models_priority_list", [{"name": name, "provider_name": provider}], told)
            for name, provider, told in (("a", "", "provider_name"), ("", "a", "name"))
        ),
        *(
            ("models_priority_list", [{"name": "a", "provider_name": "b", odd: 1}], odd)
            for odd in ("is_chatt", "provider", "x")
        ),
        ("gpt_router_api_base", "ftp://gateway", "http:// or https://"),
        ("gpt_router_api_base", "127.0.0.1:8000", "http:// or https://"),
        ("gpt_router_api_base", "http://", "with a host"),
        ("gpt_router_api_base", "http://gateway:port", "'http://gateway:port'"),
        ("gpt_router_api_base", "http://gateway:99999", "out of range"),
        ("gpt_router_api_base", "http://[::1", "Invalid IPv6"),
        ("gpt_router_api_base", "http://gate way", "http:// or https://"),
        ("gpt_router_api_base", "http://gateway\n", "http:// or https://"),
        ("gpt_router_api_base", "http://gateway/?key=1", "http:// or https://"),
        ("gpt_router_api_key", f"{KEY}\n", "strip it"),
        ("gpt_router_api_key", "sk-sécret", "strip it"),
        ("gpt_router_api_key", 123, "valid string"),
        ("temperature", NAN, "finite number"),
        ("temperature", "hot", "'hot'"),
        ("n", 0, "greater than or equal to 1"),
        ("max_tokens", 0, "greater than or equal to 1"),
        ("max_retries", -1, "0 or more, not -1"),
        ("max_retries", 2.5, "2.5"),
        ("max_retries", None, "0 or more, not None"),
        ("max_retries", True, "0 or more, not True"),
        ("request_timeout", 0, "above 0"),
        ("request_timeout", -1.0, "above 0"),
        ("request_timeout", NAN, "None for no limit"),
        ("request_timeout", INF, "None for no limit"),
        ("request_timeout", (1, 0), "a pair"),
        ("request_timeout", (1, 2, 3), "at most 2 items"),
        ("timeout", NAN, "None for no limit"),
        ("gateway_timeout", 0, "greater than 0"),
        ("gateway_timeout", INF, "finite number"),
        ("gateway_max_retries", -1, "greater than or equal to 0"),
        ("retry_policy", {"max_retries": "many"}, "retry_policy.max_retries"),
        ("budget", 500, "RetryBudget"),
        ("breaker", True, "CircuitBreaker"),
        ("clock", time, "Clock"),
        ("proxy", "socks5://user:password@127.0.0.1:1", "http:// or https://"),
        ("proxy", "127.0.0.1:1", "http:// or https://"),
        ("client", 5, "like the SDK's GPTRouterClient, not"),
        ("client", "http://127.0.0.1", "like the SDK's GPTRouterClient, not"),
    ],
)
def test_a_bad_value_is_refused_at_construction(
    new_llm: NewModel, field: str, value: Any, told: str
) -> None:
    """A value that no call could use is refused by name, and no secret is shown."""
    with pytest.raises(ValidationError) as caught:
        new_llm(**{field: value})

    error = caught.value
    [where] = {one["loc"][0] for one in error.errors()}
    assert where == field
    assert told in str(error)
    assert KEY not in str(error) + repr(error) + error.json() + repr(error.errors())
    assert "password" not in str(error)


def test_a_missing_key_is_told_with_its_variable(gateway: FaultyGateway) -> None:
    """Without a key the error names its variable, and shows nothing that was given."""
    with pytest.raises(ValidationError, match="GPT_ROUTER_API_KEY") as caught:
        GPTRouter(
            models_priority_list=[GPT_4],
            gpt_router_api_base=gateway.url,
            proxy="http://ann:secret@127.0.0.1:1",
        )

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("requst_timeout", "no argument 'requst_timeout'; did you mean 'request_ti"),
        ("maxretries", "did you mean 'max_retries'"),
        ("temprature", "did you mean 'temperature'"),
        ("seed", "put it into `model_kwargs`"),
        ("callback_manager", "no argument 'callback_manager'"),
    ],
)
def test_an_unknown_argument_is_refused(
    new_llm: NewModel, name: str, told: str
) -> None:
    """A misspelt argument is refused with a suggestion, and without the key."""
    with pytest.raises(TypeError, match=told) as caught:
        new_llm(**{name: 5})

    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"user": "ann", "model_kwargs": {"user": "bob"}},
        {"api_key": "sk-2"},
        {"base_url": "http://127.0.0.1:1"},
        {"stop": ["a"], "stop_sequences": ["b"]},
    ],
    ids=["user", "key", "address", "stop"],
)
def test_two_values_for_one_argument_are_refused(
    new_llm: NewModel, arguments: dict[str, Any]
) -> None:
    """Of two values for one thing one would be lost, so that is an error."""
    with pytest.raises(TypeError, match="is given twice"):
        new_llm(**arguments)


def test_max_retries_and_a_policy_together_are_refused(new_llm: NewModel) -> None:
    """Two numbers of retries are an error that names both."""
    with pytest.raises(ValueError, match=r"max_retries=4 and .*=2 are both"):
        new_llm(max_retries=4, retry_policy=RetryPolicy(max_retries=2))

    # In a copy, whose fields are not checked, it is the call that refuses them.
    copied = new_llm(max_retries=1).model_copy(update={"retry_policy": RetryPolicy()})
    with pytest.raises(ValueError, match=r"max_retries=1 and .*=2 are both"):
        copied.invoke("hi")
    copied = new_llm().model_copy(update={"retry_policy": RetryPolicy(deadline=9)})
    assert copied.invoke("hi").content == STUB_TEXT


def test_the_names_of_other_integrations_are_taken(env: Env) -> None:
    """Key, address, time limit and stops have LangChain's usual names as well."""
    arguments: dict[str, Any] = {
        "api_key": "sk-1",
        "base_url": env.gateway.url,
        "timeout": 5,
        "stop_sequences": ["stub"],
    }
    llm = GPTRouter(models_priority_list=[GPT_4], **arguments)

    assert llm.gpt_router_api_key == SecretStr("sk-1")
    assert llm.request_timeout == 5
    assert env.invoke(llm, "hi").content == "Hello from the "
    assert env.gateway.requests[0].parameters["stop"] == ["stub"]


@pytest.mark.parametrize("name", ["http_proxy", "all_proxy"])
def test_an_unusable_proxy_of_the_environment_is_told(
    new_llm: NewModel, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A proxy of an unsupported kind is refused, without showing its password."""
    monkeypatch.setenv(name, "socks5://user:password@127.0.0.1:1")

    with pytest.raises(ValidationError, match=r"'socks5'.*no_proxy") as caught:
        new_llm()
    assert "password" not in str(caught.value)

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    new_llm()


def test_what_is_given_wins_over_the_environment(
    new_llm: NewModel, gateway: FaultyGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment's key and address are used only if none is given."""
    monkeypatch.setenv("GPT_ROUTER_API_KEY", "sk-of-the-environment")
    monkeypatch.setenv("GPT_ROUTER_API_BASE", "http://127.0.0.1:1")

    new_llm().invoke("hi")
    new_llm(gpt_router_api_key=SecretStr("sk-a-secret")).invoke("hi")
    GPTRouter(
        models_priority_list=[GPT_4],
        gpt_router_api_base=gateway.url,
        gpt_router_api_key=SecretStr(""),
    ).invoke("hi")

    keys = [request.headers["ws-secret"] for request in gateway.requests]
    assert keys == [KEY, "sk-a-secret", "sk-of-the-environment"]


LOADED: dict[str, Any] = {
    "allowed_objects": [GPTRouter],
    "valid_namespaces": ["langchain_retryrouter"],
    "secrets_map": {"GPT_ROUTER_API_KEY": "sk-of-the-loader"},
}


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
def test_a_model_can_be_written_and_loaded(
    new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """`langchain_core.load` writes a model without its secrets, and loads it again."""
    policy = RetryPolicy(max_retries=1, deadline=9.0)
    fields = {"request_timeout": (1, 2), "gateway_timeout": 3.0, "clock": None}
    written = dumps(new_llm(retry_policy=policy, trace_attempts=False, **fields))
    again = loads(written, **LOADED)

    assert KEY not in written
    assert (again.retry_policy, again.request_timeout) == (policy, (1.0, 2.0))
    assert again.trace_attempts is False
    assert again.models_priority_list == [GPT_4]
    assert again.invoke("hi").content == STUB_TEXT
    assert gateway.requests[-1].headers["ws-secret"] == "sk-of-the-loader"
    assert gateway.requests[-1].payload["timeout"] == 3000


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
def test_a_written_model_says_what_it_lacks(new_llm: NewModel) -> None:
    """Objects that models share are not lost silently: `load` refuses the model."""
    shared = {
        "budget": RetryBudget(),
        "breaker": CircuitBreaker(),
        "clock": FakeClock(),
    }
    shared |= {"store": MemoryStore(), "rate_limit": RateLimit(max_concurrency=3)}
    llm = new_llm(**shared)
    kwargs = dumpd(llm)["kwargs"]
    assert {kwargs[name]["type"] for name in shared} == {"not_implemented"}
    with pytest.raises(NotImplementedError, match="doesn't implement"):
        loads(dumps(llm), **LOADED)
    again = loads(dumps(llm), ignore_unserializable_fields=True, **LOADED)
    assert {getattr(again, name) for name in shared} == {None}


# --- the client ---


def test_the_client_is_the_sdks(new_llm: NewModel) -> None:
    """`llm.client` is a `GPTRouterClient`, with its attributes and methods."""
    client = new_llm(request_timeout=7).client

    assert isinstance(client, GPTRouterClient)
    assert (client.api_key, client.request_timeout) == (KEY, 7)
    for name, method in inspect.getmembers(GPTRouterClient, inspect.isfunction):
        if not name.startswith("_"):
            assert inspect.iscoroutinefunction(method) is inspect.iscoroutinefunction(
                getattr(client, name)
            ), name


@pytest.mark.usefixtures("old_ways")
async def test_the_sdks_other_methods_work(
    new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """The SDK's methods for embeddings and images work on our client."""
    vectors = {"choices": [{"embedding": [0.5, 0.25]}]}
    images = {"response": [{"url": "https://example.com/made.png"}]}
    gateway.respond("/api/v1/generate/embeddings-v2", vectors)
    gateway.respond("/api/v1/generate/generate-image", images)
    client = new_llm().client

    answer = await client.agenerate_embeddings_v2(input=["hi"], model_name="ada")
    [image] = await client.agenerate_images(
        image_generation_request=ImageGenerationRequest.model_validate(
            {"model": "sd", "imageVendor": "stability", "prompt": "a cat"}
        )
    )

    assert [choice.embedding for choice in answer.choices] == [[0.5, 0.25]]
    assert image.url == "https://example.com/made.png"
    assert [r.headers["ws-secret"] for r in gateway.requests] == [KEY, KEY]


def test_streams_have_a_limit_of_their_own_in_the_sdk(env: Env) -> None:
    """The client's `stream_read_timeout` limits the silence of streams alone."""
    llm = env.llm(clock=None, max_retries=0)
    llm.client.stream_read_timeout = SHORT
    env.gateway.always(SlowFirstToken(ENOUGH))

    assert env.invoke(llm, "hi").content == STUB_TEXT
    with pytest.raises(APITimeoutError):
        env.stream(llm, "hi")


async def test_the_sdks_signal_ends_a_stream(
    new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """Once `stop_stream_signal` is set, no event follows, and the connection ends."""
    parameters = {"messages": [{"role": "user", "content": "hi"}]}
    named = {"model_name": "m", "provider_name": "p", "order": 1}
    asked = {**named, "prompt_params": parameters}
    signal, seen = asyncio.Event(), list[Any]()
    gateway.always(Stall(after=1, seconds=30))

    events = await new_llm().client.agenerate(
        ordered_generation_requests=[ModelGenerationRequest.model_validate(asked)],
        is_stream=True,
        stop_stream_signal=signal,
    )
    async for event in events:
        seen.append(event)
        signal.set()

    assert len(seen) == 1
    await gateway.await_for(lambda one: one.open_connections == 0)


@pytest.mark.usefixtures("old_ways")
def test_the_sdks_own_client_can_be_given(env: Env) -> None:
    """A client of the user is called in its own way, and retried as ours is."""
    client = GPTRouterClient(env.gateway.url, KEY)
    llm = env.llm(client=client, max_retries=1, tag="nightly")
    assert llm.client is client

    env.gateway.script(Status(503), Answer(), ErrorEvent("oops"), Answer())
    assert env.invoke(llm, "hi").content == STUB_TEXT
    chunks = env.stream(llm, "hi")

    assert "".join(chunk.content for chunk in chunks) == STUB_TEXT
    assert len(env.clock.sleeps) == 2
    assert "maxRetries" not in env.gateway.requests[0].json
    assert env.gateway.requests[0].payload["tag"] == "nightly"


@pytest.mark.usefixtures("old_ways")
def test_errors_of_the_sdks_own_client_have_our_classes(env: Env) -> None:
    """Errors of a user's client are raised as ours, with the SDK's as their cause."""
    llm = env.llm(client=GPTRouterClient(env.gateway.url, KEY), max_retries=0)

    env.gateway.always(Status(429))
    with pytest.raises(RateLimitError) as caught:
        env.invoke(llm, "hi")
    assert type(caught.value.__cause__).__name__ == "GPTRouterTooManyRequestsError"

    env.gateway.always(ErrorEvent("oops", after=1))
    with pytest.raises(ServerError, match="oops") as broken:
        env.stream(llm, "hi")
    assert broken.value.delivered == "Hello"

    env.gateway.always(Truncate(after=1))
    with pytest.raises(Exception, match="ended before the answer was complete"):
        env.stream(llm, "hi")


# --- copies ---


def pickled(llm: GPTRouter) -> Any:
    return pickle.loads(pickle.dumps(llm))


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, GPTRouter.model_copy, pickled],
    ids=lambda f: f.__name__,
)
def test_a_copy_answers(env: Env, duplicate: Any) -> None:
    """A copy has the key, and shares budget and breaker unless it was pickled."""
    budget, breaker = RetryBudget(capacity=28), CircuitBreaker()
    llm = env.llm(clock=None, budget=budget, breaker=breaker)
    env.invoke(llm, "hi")

    again = duplicate(llm)

    assert again is not llm
    assert (again.budget is budget) is (duplicate is not pickled)
    assert (again.breaker is breaker) is (duplicate is not pickled)
    assert isinstance(again.budget, RetryBudget)
    assert isinstance(again.breaker, CircuitBreaker)
    assert env.invoke(again, "hi").content == STUB_TEXT
    assert env.gateway.requests[-1].headers["ws-secret"] == KEY


def test_configured_copies_use_their_own_settings(env: Env) -> None:
    """With `configurable_fields` another key or address is used."""
    llm = env.llm().configurable_fields(
        gpt_router_api_key=ConfigurableField(id="key"),
        gpt_router_api_base=ConfigurableField(id="base"),
        temperature=ConfigurableField(id="temperature"),
    )

    env.invoke(llm, "hi", {"configurable": {"key": "sk-of-a-tenant"}})
    env.invoke(llm, "hi", {"configurable": {"temperature": 0.1}})
    with FaultyGateway() as other:
        env.invoke(llm, "hi", {"configurable": {"base": other.url}})
        assert len(other.requests) == 1

    first, second = env.gateway.requests
    assert first.headers["ws-secret"] == "sk-of-a-tenant"
    assert second.headers["ws-secret"] == KEY
    assert second.parameters["temperature"] == 0.1


# --- the key ---

STEPS: dict[str, Step] = {
    "401": Status(401),
    "500": Status(500),
    "reset": Reset(),
    "page": HtmlPage(502),
    "cut": Cut(after=1),
    "late event": ErrorEvent("400 wrong", after=1),
    "malformed": Body(200, {"content-type": "text/event-stream"}, "data: {}\n\n"),
    # Answers that quote the key.
    "facts": Status(401, body={"message": f"{KEY} is not known", "key": KEY}),
    "excerpt": Status(403, body="x" * 180 + f" {KEY}"),
    "event": ErrorEvent(f"401 Incorrect API key provided: {KEY}"),
    "quoting page": Body(200, {"content-type": "text/html"}, f"<html>{KEY}</html>"),
    "garbage": Raw(b"HTTP/1.1 abc OK\r\n\r\n"),
}


@pytest.mark.parametrize("name", STEPS)
def test_nothing_shows_the_key(
    env: Env, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Errors, notes, tracebacks, pickles and every log are without the key."""
    env.gateway.always(STEPS[name])
    llm = env.llm(max_retries=1)

    with caplog.at_level(logging.DEBUG):
        for call in (env.invoke, env.stream):
            with pytest.raises(RetryRouterError) as caught:
                call(llm, "hi")
            error = caught.value
            told = [*traceback.format_exception(error), repr(error.__cause__)]
            told += [repr(error), str(error), repr(vars(error))]
            told.append(repr(getattr(error.__cause__, "args", "")))
            assert KEY[:12] not in "".join(told)
            assert KEY.encode() not in pickle.dumps(error)

    assert env.gateway.requests[0].headers["ws-secret"] == KEY
    assert KEY not in caplog.text
    assert KEY not in repr(llm) + str(llm) + dumps(llm) + repr(llm.model_dump())
    assert KEY not in repr(llm.client) + repr(vars(llm)) + repr(vars(llm.client))
