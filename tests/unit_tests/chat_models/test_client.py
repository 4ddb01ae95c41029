"""`llm.client`: a client of the SDK's class, or one that the user gives."""

import copy
import inspect
import logging
import pickle
import traceback
from typing import Any

import pytest
from gpt_router.client import GPTRouterClient
from gpt_router.models import ImageGenerationRequest
from langchain_core.load import dumps
from langchain_core.runnables import ConfigurableField

from langchain_retryrouter import (
    CircuitBreaker,
    GPTRouter,
    RateLimitError,
    RetryBudget,
    RetryRouterError,
    ServerError,
)
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Answer,
    Body,
    Cut,
    ErrorEvent,
    FaultyGateway,
    HtmlPage,
    Raw,
    Reset,
    Status,
    Step,
    Truncate,
)

from .conftest import KEY, Env, NewModel


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
