"""The list of models: who is asked next when one of them cannot answer."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from langchain_retryrouter import (
    AuthenticationError,
    GPTRouterModel,
    InvalidRequestError,
    NotFoundError,
    ServerError,
)
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Body,
    ErrorEvent,
    FaultyGateway,
    Status,
)

from .conftest import GPT_4, Env
from .frames import sum_of, text_of

NOPE = GPTRouterModel(name="nope", provider_name="chat_openai")
NADA = GPTRouterModel(name="nada", provider_name="chat_openai")
OTHER = GPTRouterModel(name="gpt-4o", provider_name="azure_chat_openai")


def unknown(model: GPTRouterModel) -> ErrorEvent:
    """What the gateway tells a stream; a plain call gets its opaque 500."""
    return ErrorEvent(f"Model with name {model.name} does not exist")


def asked(gateway: FaultyGateway) -> list[list[str]]:
    """The models of each request, in their order."""
    return [
        [one["modelName"] for one in sorted(entries, key=lambda one: one["order"])]
        for entries in (request.payload["data"] for request in gateway.requests)
    ]


def told(metadata: dict[str, Any]) -> list[tuple[str, str]]:
    """Model and outcome of each attempt."""
    lines = metadata["retryrouter"]["attempts"]
    return [(line["route"], line["outcome"]) for line in lines]


def test_a_retry_asks_the_next_model_first(env: Env) -> None:
    """The model that failed is put last: the gateway itself would not fail over."""
    env.gateway.always(Status(503), model=GPT_4.name)

    answer = env.invoke(env.llm(models_priority_list=[GPT_4, OTHER]), "hi")

    assert answer.response_metadata["provider_name"] == "azure_chat_openai"
    lines = answer.response_metadata["retryrouter"]["attempts"]
    assert [line["route"] for line in lines] == ["gpt-4-0613", "gpt-4o"]
    assert [line["outcome"] for line in lines] == ["unavailable", "ok"]
    orders = [
        [(one["modelName"], one["order"]) for one in request.payload["data"]]
        for request in env.gateway.requests
    ]
    assert orders == [
        [("gpt-4-0613", 1), ("gpt-4o", 2)],
        [("gpt-4o", 1), ("gpt-4-0613", 2)],
    ]


def test_failover_can_be_switched_off(env: Env) -> None:
    """With `failover=False` every attempt keeps the order of the list."""
    env.gateway.script(Status(503))

    env.invoke(env.llm(models_priority_list=[GPT_4, OTHER], failover=False), "hi")

    assert [request.model for request in env.gateway.requests] == ["gpt-4-0613"] * 2


@pytest.mark.parametrize(
    "cause",
    [
        "Model with name gpt-4-0613 does not exist",
        "Provider with name chat_openai does not exist",
        "401 Incorrect API key provided",
        "403 The project has no access to this model",
        "429 You exceeded your current quota",
        "400 This model's maximum context length is 8192 tokens",
    ],
)
def test_a_stream_goes_on_at_once_when_a_model_is_out_of_the_question(
    env: Env, caplog: pytest.LogCaptureFixture, cause: str
) -> None:
    """What only this model or its provider cannot do: the next one, no wait, a word."""
    env.gateway.always(ErrorEvent(cause), model=GPT_4.name)

    with caplog.at_level(logging.WARNING, "langchain_retryrouter"):
        chunks = env.stream(env.llm(models_priority_list=[GPT_4, OTHER]), "hi")

    assert text_of(chunks) == STUB_TEXT
    assert asked(env.gateway) == [["gpt-4-0613", "gpt-4o"], ["gpt-4o"]]
    (first, _), (second, outcome) = told(sum_of(chunks).response_metadata)
    assert (first, second, outcome) == ("gpt-4-0613", "gpt-4o", "ok")
    assert env.clock.sleeps == [0.0]
    assert f"gpt-4-0613 cannot answer: {cause}" in caplog.messages


def test_an_unknown_model_in_a_plain_call_does_not_stop_it(env: Env) -> None:
    """Behind an opaque 500 the next model is asked, and the unknown one only once."""
    env.gateway.always(unknown(NOPE), model=NOPE.name)

    answer = env.invoke(env.llm(models_priority_list=[NOPE, OTHER]), "hi")

    assert answer.content == STUB_TEXT
    assert told(answer.response_metadata) == [
        ("nope", "server_error"),
        ("gpt-4o", "ok"),
    ]


def test_every_unknown_model_is_named(env: Env) -> None:
    """When no model of the list is known, the error names each, and none is repeated.

    A plain call is told nothing of the first at first, so it comes to it once more.
    """
    env.gateway.always(unknown(NOPE), model=NOPE.name)
    env.gateway.always(unknown(NADA), model=NADA.name)
    llm = env.llm(models_priority_list=[NOPE, NADA])

    with pytest.raises(NotFoundError, match="name nada does not exist") as caught:
        env.stream(llm, "hi")
    assert caught.value.__notes__ == [
        "asked in turn: nope (not_found), nada (not_found)"
    ]
    assert asked(env.gateway) == [["nope", "nada"], ["nada"]]

    with pytest.raises(NotFoundError, match="name nope does not exist") as caught:
        env.invoke(llm, "hi")
    assert caught.value.__notes__ == [
        "asked in turn: nope (server_error), nada (not_found), nope (not_found)"
    ]
    assert asked(env.gateway)[2:] == [["nope", "nada"], ["nada", "nope"], ["nope"]]


def test_an_unknown_provider_takes_its_models_with_it(env: Env) -> None:
    """Every model of a provider that the gateway does not know is left out at once."""
    nowhere = [
        GPTRouterModel(name=name, provider_name="nowhere") for name in ("a", "b")
    ]
    env.gateway.always(
        ErrorEvent("Provider with name nowhere does not exist"), model="a"
    )

    chunks = env.stream(env.llm(models_priority_list=[*nowhere, OTHER]), "hi")

    assert text_of(chunks) == STUB_TEXT
    assert asked(env.gateway) == [["a", "b", "gpt-4o"], ["gpt-4o"]]


def test_the_model_that_is_named_is_left_out_and_not_the_first(env: Env) -> None:
    """The gateway may go on to the second by itself, and find that one unknown."""
    env.gateway.script(unknown(NOPE), model=OTHER.name)

    chunks = env.stream(env.llm(models_priority_list=[OTHER, NOPE]), "hi")

    assert text_of(chunks) == STUB_TEXT
    assert asked(env.gateway) == [["gpt-4o", "nope"], ["gpt-4o"]]


def test_a_gateway_that_names_it_with_a_status_is_understood(env: Env) -> None:
    """A 404 that says which model is unknown is worth as much as a stream's event."""
    body = json.dumps({"message": "Model with name nope does not exist"})
    env.gateway.always(Body(404, {}, body), model=NOPE.name)

    answer = env.invoke(env.llm(models_priority_list=[NOPE, OTHER]), "hi")

    assert told(answer.response_metadata) == [("nope", "not_found"), ("gpt-4o", "ok")]


def test_an_unknown_second_model_is_left_out(env: Env) -> None:
    """A model that turns out to be unknown is not asked again; the first one is."""
    env.gateway.always(unknown(NOPE), model=NOPE.name)
    env.gateway.script(ErrorEvent("503 overloaded"), model=OTHER.name)

    chunks = env.stream(env.llm(models_priority_list=[OTHER, NOPE]), "hi")

    assert text_of(chunks) == STUB_TEXT
    assert asked(env.gateway) == [["gpt-4o", "nope"], ["nope", "gpt-4o"], ["gpt-4o"]]


@pytest.mark.parametrize(
    "cause", ["400 Invalid value: 'wizard'", "422 bad", '[{"path":"/messages"}]']
)
def test_the_requests_own_fault_goes_nowhere(env: Env, cause: str) -> None:
    """A request that is wrong is wrong for every model, and is sent once."""
    env.gateway.always(ErrorEvent(cause))

    with pytest.raises(InvalidRequestError):
        env.stream(env.llm(models_priority_list=[GPT_4, OTHER]), "hi")

    assert len(env.gateway.requests) == 1


def test_a_wrong_gateway_key_goes_nowhere(env: Env) -> None:
    """A 401 to the request itself is about our key: no model of the list will do."""
    env.gateway.always(Status(401))

    with pytest.raises(AuthenticationError):
        env.stream(env.llm(models_priority_list=[GPT_4, OTHER]), "hi")

    assert len(env.gateway.requests) == 1


def test_without_failover_an_unknown_model_ends_the_call(env: Env) -> None:
    """With `failover=False` nobody takes the place of an unknown model."""
    env.gateway.always(unknown(NOPE), model=NOPE.name)
    llm = env.llm(models_priority_list=[NOPE, OTHER], failover=False)

    with pytest.raises(NotFoundError, match="name nope does not exist"):
        env.stream(llm, "hi")

    assert len(env.gateway.requests) == 1


def test_models_take_turns_until_the_retries_are_used_up(env: Env) -> None:
    """Requests never exceed `max_retries + 1`, and the note tells who was asked."""
    env.gateway.always(Status(502))
    llm = env.llm(models_priority_list=[GPT_4, OTHER], max_retries=2)

    with pytest.raises(ServerError) as caught:
        env.invoke(llm, "hi")

    first, second, third = (models[0] for models in asked(env.gateway))
    assert (first, second, third) == ("gpt-4-0613", "gpt-4o", "gpt-4-0613")
    assert caught.value.__notes__[0] == (
        "asked in turn: gpt-4-0613 (server_error), gpt-4o (server_error),"
        " gpt-4-0613 (server_error)"
    )
    assert caught.value.__notes__[1].endswith("no retries left")
