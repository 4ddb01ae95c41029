"""What the fields and options of a call come to: on the wire, and in the answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from langchain_retryrouter import (
    CircuitBreaker,
    CircuitOpenError,
    RetryBudget,
    RetryPolicy,
    UnavailableError,
    UnsupportedOptionError,
)
from langchain_retryrouter.testing import (
    STUB_TEXT,
    ErrorEvent,
    FaultyGateway,
    Status,
)
from tests.unit_tests.conftest import Twin

from .conftest import NewModel

NAN = float("nan")


# --- retries ---


@pytest.mark.parametrize(
    ("fields", "requests"),
    [
        ({}, 5),
        ({"max_retries": 1}, 2),
        ({"retry_policy": RetryPolicy(max_retries=2)}, 3),
        ({"retry_policy": {"max_retries": 3}}, 4),
    ],
)
def test_max_retries_is_short_for_a_policy(
    twin: Twin,
    new_llm: NewModel,
    gateway: FaultyGateway,
    fields: dict[str, Any],
    requests: int,
) -> None:
    """`max_retries` or the policy says how often; the field has the number."""
    gateway.always(Status(503))
    llm = new_llm(**fields)

    with pytest.raises(UnavailableError):
        twin.invoke(llm, "hi")

    assert len(gateway.requests) == requests
    assert llm.max_retries == requests - 1


def test_max_retries_and_a_policy_together_are_refused(new_llm: NewModel) -> None:
    """Two numbers of retries are an error that names both."""
    with pytest.raises(ValueError, match=r"max_retries=4 and .*=2 are both"):
        new_llm(max_retries=4, retry_policy=RetryPolicy(max_retries=2))


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({}, 0),
        ({"max_retries": 0}, None),
        ({"retry_policy": RetryPolicy(max_retries=0)}, None),
        ({"gateway_max_retries": 2}, 2),
        ({"gateway_max_retries": 2, "max_retries": 0}, 2),
        ({"gateway_max_retries": 0, "max_retries": 0}, 0),
    ],
)
def test_the_gateway_retries_only_where_we_do_not(
    twin: Twin,
    new_llm: NewModel,
    gateway: FaultyGateway,
    fields: dict[str, Any],
    sent: int | None,
) -> None:
    """The gateway is asked for no retries unless ours are off, or as set."""
    twin.invoke(new_llm(**fields), "hi")
    twin.stream(new_llm(**fields), "hi")

    for request in gateway.requests:
        assert request.payload.get("maxRetries") == sent


def test_a_shared_budget_and_breaker_are_drawn_from(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """Two models with one budget and one breaker share what these remember."""
    gateway.always(Status(503))
    budget = RetryBudget(capacity=28)
    with pytest.raises(UnavailableError) as caught:
        twin.invoke(new_llm(budget=budget), "hi")
    assert caught.value.__notes__[-1].endswith("retry budget empty")
    assert len(gateway.requests) == 3

    breaker = CircuitBreaker(failure_threshold=2)
    for _ in range(2):  # A call counts once, however many of its attempts fail.
        with pytest.raises(UnavailableError):
            twin.invoke(new_llm(breaker=breaker, max_retries=0), "hi")
    with pytest.raises(CircuitOpenError, match="nothing was sent"):
        twin.stream(new_llm(breaker=breaker), "hi")
    assert len(gateway.requests) == 5


# --- what is sent ---


def test_options_go_to_the_provider(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """Fields, then `model_kwargs`, then the call's own options: the last one wins."""
    llm = new_llm(temperature=0.1, model_kwargs={"top_p": 0.2, "max_tokens": 5})

    twin.invoke(llm, "hi", top_p=0.3, user="ann")

    sent = dict(gateway.requests[0].parameters)
    del sent["messages"]
    assert sent == {
        "temperature": 0.1,
        "top_p": 0.3,
        "max_tokens": 5,
        "n": 1,
        "user": "ann",
    }


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_an_unknown_option_is_refused_unless_it_is_meant(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway, way: str
) -> None:
    """What no gateway reads is an error; through `model_kwargs` it is sent."""
    call = getattr(twin, way)
    with pytest.raises(UnsupportedOptionError, match="'of_mine'"):
        call(new_llm(), "hi", of_mine=1)
    assert gateway.requests == []

    call(new_llm(model_kwargs={"of_mine": {"deep": [1, None]}}), "hi")

    assert gateway.requests[0].parameters["of_mine"] == {"deep": [1, None]}


@pytest.mark.parametrize("value", [NAN, object(), {1, 2}])
def test_what_is_no_json_is_refused(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway, value: Any
) -> None:
    """An option that JSON cannot say is an error before anything is sent."""
    with pytest.raises(UnsupportedOptionError, match="cannot be written as JSON"):
        twin.invoke(new_llm(model_kwargs={"of_mine": value}), "hi")

    assert gateway.requests == []


def test_stop_is_given_once(twin: Twin, new_llm: NewModel) -> None:
    """`stop` in the model and in the call is a contradiction, and told as one."""
    llm = new_llm(model_kwargs={"stop": ["a"]})

    with pytest.raises(ValueError, match="give it once"):
        twin.invoke(llm, "hi", stop=["b"])


@pytest.mark.parametrize(("seconds", "sent"), [(2.5, 2500), (0.0001, 1), (None, None)])
def test_the_gateway_s_timeout_is_in_milliseconds(
    twin: Twin,
    new_llm: NewModel,
    gateway: FaultyGateway,
    seconds: float | None,
    sent: int | None,
) -> None:
    """`gateway_timeout` is seconds here and milliseconds on the wire, never 0."""
    twin.invoke(new_llm(gateway_timeout=seconds), "hi")

    assert gateway.requests[0].payload.get("timeout") == sent


# --- what comes back ---


@pytest.mark.parametrize("way", ["invoke", "stream", "n=2", "streams inside"])
def test_all_metadata_is_json(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway, way: str
) -> None:
    """`response_metadata` can be written as JSON, the ledger of attempts included."""
    gateway.script(Status(500))
    if way == "stream":
        first, *others = twin.stream(new_llm(), "hi")
        messages = [first.__add__(others)]
    elif way == "n=2":
        result = twin.generate(new_llm(n=2), [[HumanMessage("hi")]])
        messages = [generation.message for generation in result.generations[0]]
    else:
        messages = [twin.invoke(new_llm(), "hi")]

    for message in messages:
        metadata = message.response_metadata
        assert json.loads(json.dumps(metadata)) == metadata
        failed, answered = metadata["retryrouter"]["attempts"]
        assert (failed["outcome"], failed["status_code"]) == ("server_error", 500)
        assert failed["wait"] > 0
        assert answered["outcome"] == "ok"
        assert metadata["model_name"] == "gpt-4-0613"
        assert metadata["provider_name"] == "chat_openai"
        assert metadata["finish_reason"] == "stop"


def test_an_answer_that_streamed_inside_is_like_any_other(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """After an opaque 500 the attempt streams inside; the caller sees no difference."""
    gateway.script(Status(500))
    inside = twin.invoke(new_llm(), "hi")
    whole = twin.invoke(new_llm(), "hi")

    assert [request.streaming for request in gateway.requests] == [False, True, False]
    assert inside.content == whole.content
    own = {"retryrouter", "id", "token_usage"}  # A stream's usage is an estimate.
    assert set(inside.response_metadata) == set(whole.response_metadata)
    for name in set(whole.response_metadata) - own:
        assert inside.response_metadata[name] == whole.response_metadata[name], name


def test_a_broken_stream_inside_is_repeated(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """A stream inside has delivered nothing to the caller, so it can be repeated."""
    gateway.script(Status(500), ErrorEvent("Premature close", after=2))

    answer = twin.invoke(new_llm(), "hi")

    assert answer.content == STUB_TEXT
    outcomes = [
        line["outcome"] for line in answer.response_metadata["retryrouter"]["attempts"]
    ]
    assert outcomes == ["server_error", "interrupted", "ok"]
