"""`llm.client`: a client of the SDK's class, or one that the user gives."""

from __future__ import annotations

import inspect

import pytest
from gpt_router.client import GPTRouterClient
from gpt_router.models import GPTRouterMetadata, ImageGenerationRequest

from langchain_retryrouter import RateLimitError, ServerError
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Answer,
    ErrorEvent,
    FaultyGateway,
    Status,
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


def test_metadata_of_a_client_survives_a_copy(
    new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """Gateway metadata of a client is kept when another model is given the client."""
    llm = new_llm()
    llm.client.additional_metadata = GPTRouterMetadata(tag="night")

    new_llm(client=llm.client, temperature=0.0).invoke("hi")

    assert gateway.requests[0].payload["tag"] == "night"


@pytest.mark.usefixtures("old_ways")
def test_the_sdks_own_client_can_be_given(env: Env) -> None:
    """A client of the user is called in its own way, and retried as ours is."""
    llm = env.llm(client=GPTRouterClient(env.gateway.url, KEY), max_retries=1)
    assert type(llm.client) is GPTRouterClient

    env.gateway.script(Status(503), Answer(), ErrorEvent("oops"), Answer())
    assert env.invoke(llm, "hi").content == STUB_TEXT
    chunks = env.stream(llm, "hi")

    assert "".join(chunk.content for chunk in chunks) == STUB_TEXT
    assert len(env.clock.sleeps) == 2
    assert "maxRetries" not in env.gateway.requests[0].json


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
