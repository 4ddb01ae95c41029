"""Copies of a model: pickled, configured, forked, spawned; and where the key shows."""

from __future__ import annotations

import copy
import logging
import pickle
import traceback
from typing import Any

import pytest
from langchain_core.load import dumps
from langchain_core.runnables import ConfigurableField

from langchain_retryrouter import (
    CircuitBreaker,
    GPTRouter,
    RetryBudget,
    RetryRouterError,
    ServerError,
)
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Body,
    Cut,
    ErrorEvent,
    FaultyGateway,
    HtmlPage,
    Raw,
    Reset,
    Status,
    Step,
)

from .conftest import KEY, Env


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


# --- processes ---


def test_an_error_pickles_on_its_way_out_of_a_process(env: Env) -> None:
    """An error that crosses a process keeps its class, its fields and its notes."""
    env.gateway.always(ErrorEvent("500 oops"))
    with pytest.raises(ServerError) as caught:
        env.stream(env.llm(max_retries=1), "hi")

    again = pickle.loads(pickle.dumps(caught.value))

    assert type(again) is type(caught.value)
    assert (again.status_code, again.attempts) == (500, 2)
    assert again.__notes__ == caught.value.__notes__
    assert again.is_retryable is False


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
