"""The list of models: which one is asked next when one of them cannot answer."""

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
    RetryRouterError,
    ServerError,
)
from langchain_retryrouter.testing import STUB_TEXT, Body, ErrorEvent, Status, Step

from .conftest import GPT_4, Env

NOPE = GPTRouterModel(name="nope", provider_name="chat_openai")
NADA = GPTRouterModel(name="nada", provider_name="chat_openai")
OTHER = GPTRouterModel(name="gpt-4o", provider_name="azure_chat_openai")


def unknown(model: GPTRouterModel) -> ErrorEvent:
    """The gateway's error in a stream; a plain call gets its opaque 500."""
    return ErrorEvent(f"Model with name {model.name} does not exist")


def asked(env: Env) -> list[list[str]]:
    """The models of each request, in their order."""
    return [
        [one["modelName"] for one in sorted(entries, key=lambda one: one["order"])]
        for entries in (request.payload["data"] for request in env.gateway.requests)
    ]


def attempts_of(answer: Any) -> list[tuple[str, str]]:
    """Model and outcome of each attempt."""
    lines = answer.response_metadata["retryrouter"]["attempts"]
    return [(line["route"], line["outcome"]) for line in lines]


def test_a_retry_asks_the_next_model_first(env: Env) -> None:
    """The model that failed is put last: the gateway itself would not fail over."""
    env.gateway.always(Status(503), model=GPT_4.name)

    answer = env.ask("invoke", models_priority_list=[GPT_4, OTHER])

    assert answer.response_metadata["provider_name"] == "azure_chat_openai"
    assert attempts_of(answer) == [("gpt-4-0613", "unavailable"), ("gpt-4o", "ok")]
    orders = [
        [(one["modelName"], one["order"]) for one in request.payload["data"]]
        for request in env.gateway.requests
    ]
    assert orders == [
        [("gpt-4-0613", 1), ("gpt-4o", 2)],
        [("gpt-4o", 1), ("gpt-4-0613", 2)],
    ]


def test_failover_can_be_switched_off(env: Env) -> None:
    """With `failover=False` the order stays, and an unknown model ends the call."""
    env.gateway.script(Status(503))
    env.ask("invoke", models_priority_list=[GPT_4, OTHER], failover=False)
    assert [request.model for request in env.gateway.requests] == ["gpt-4-0613"] * 2

    env.gateway.always(unknown(NOPE), model=NOPE.name)
    with pytest.raises(NotFoundError, match="name nope does not exist"):
        env.ask("stream", models_priority_list=[NOPE, OTHER], failover=False)
    assert len(env.gateway.requests) == 3


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
def test_a_stream_goes_on_at_once_if_only_its_model_cannot_answer(
    env: Env, caplog: pytest.LogCaptureFixture, cause: str
) -> None:
    """An error of one model or its provider: the next is asked, at once and logged."""
    env.gateway.always(ErrorEvent(cause), model=GPT_4.name)

    with caplog.at_level(logging.WARNING, "langchain_retryrouter"):
        answer = env.ask("stream", models_priority_list=[GPT_4, OTHER])

    assert answer.content == STUB_TEXT
    assert asked(env) == [["gpt-4-0613", "gpt-4o"], ["gpt-4o"]]
    (first, _), (second, outcome) = attempts_of(answer)
    assert (first, second, outcome) == ("gpt-4-0613", "gpt-4o", "ok")
    assert env.clock.sleeps == [0.0]
    assert f"gpt-4-0613 cannot answer: {cause}" in caplog.messages


@pytest.mark.parametrize(
    ("step", "outcome"),
    [
        (unknown(NOPE), "server_error"),  # Told by an opaque 500.
        (Body(404, {}, json.dumps({"message": unknown(NOPE).message})), "not_found"),
    ],
    ids=["opaque", "named"],
)
def test_an_unknown_model_does_not_end_a_plain_call(
    env: Env, step: Step, outcome: str
) -> None:
    """If a model is unknown to the gateway, the next model is asked."""
    env.gateway.always(step, model=NOPE.name)

    answer = env.ask("invoke", models_priority_list=[NOPE, OTHER])

    assert answer.content == STUB_TEXT
    assert attempts_of(answer) == [("nope", outcome), ("gpt-4o", "ok")]


def test_every_unknown_model_is_named(env: Env) -> None:
    """If no model of the list is known, the error names each, and none is repeated.

    The first model of a plain call fails without a cause, so it is asked again.
    """
    env.gateway.always(unknown(NOPE), model=NOPE.name)
    env.gateway.always(unknown(NADA), model=NADA.name)

    with pytest.raises(NotFoundError, match="name nada does not exist") as caught:
        env.ask("stream", models_priority_list=[NOPE, NADA])
    assert caught.value.__notes__ == [
        "asked in turn: nope (not_found), nada (not_found)"
    ]
    assert asked(env) == [["nope", "nada"], ["nada"]]

    with pytest.raises(NotFoundError, match="name nope does not exist") as caught:
        env.ask("invoke", models_priority_list=[NOPE, NADA])
    assert caught.value.__notes__ == [
        "asked in turn: nope (server_error), nada (not_found), nope (not_found)"
    ]
    assert asked(env)[2:] == [["nope", "nada"], ["nada", "nope"], ["nope"]]


def test_all_models_of_an_unknown_provider_are_left_out(env: Env) -> None:
    """Every model of a provider that the gateway does not know is left out at once."""
    a, b = (GPTRouterModel(name=name, provider_name="nowhere") for name in ("a", "b"))
    env.gateway.always(
        ErrorEvent("Provider with name nowhere does not exist"), model="a"
    )

    answer = env.ask("stream", models_priority_list=[a, b, OTHER])

    assert answer.content == STUB_TEXT
    assert asked(env) == [["a", "b", "gpt-4o"], ["gpt-4o"]]


@pytest.mark.parametrize(
    ("first", "requests"),
    [
        # The gateway may go on to the second by itself, and find that one unknown.
        (unknown(NOPE), [["gpt-4o", "nope"], ["gpt-4o"]]),
        (
            ErrorEvent("503 overloaded"),
            [["gpt-4o", "nope"], ["nope", "gpt-4o"], ["gpt-4o"]],
        ),
    ],
    ids=["at once", "after a retry"],
)
def test_the_model_that_is_named_is_left_out(
    env: Env, first: Step, requests: list[list[str]]
) -> None:
    """The model that is unknown is not asked again, and the others of the list are."""
    env.gateway.always(unknown(NOPE), model=NOPE.name)
    env.gateway.script(first, model=OTHER.name)

    answer = env.ask("stream", models_priority_list=[OTHER, NOPE])

    assert answer.content == STUB_TEXT
    assert asked(env) == requests


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (ErrorEvent("400 Invalid value: 'wizard'"), InvalidRequestError),
        (ErrorEvent("422 bad"), InvalidRequestError),
        (ErrorEvent('[{"path":"/messages"}]'), InvalidRequestError),
        (Status(401), AuthenticationError),  # Of the gateway's key.
    ],
    ids=str,
)
def test_an_error_of_the_request_or_its_key_ends_the_call(
    env: Env, step: Step, expected: type[RetryRouterError]
) -> None:
    """A request or a key that is wrong for every model is sent once."""
    env.gateway.always(step)

    with pytest.raises(expected):
        env.ask("stream", models_priority_list=[GPT_4, OTHER])

    assert len(env.gateway.requests) == 1


def test_models_take_turns_until_the_retries_are_used_up(env: Env) -> None:
    """There are at most `max_retries + 1` requests; the note lists the models asked."""
    env.gateway.always(Status(502))

    with pytest.raises(ServerError) as caught:
        env.ask("invoke", models_priority_list=[GPT_4, OTHER], max_retries=2)

    assert [one[0] for one in asked(env)] == ["gpt-4-0613", "gpt-4o", "gpt-4-0613"]
    assert caught.value.__notes__[0] == (
        "asked in turn: gpt-4-0613 (server_error), gpt-4o (server_error),"
        " gpt-4-0613 (server_error)"
    )
    assert caught.value.__notes__[1].endswith("no retries left")
