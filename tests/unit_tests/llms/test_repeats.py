"""Requests that are sent like the one before, without the SDK composing them anew."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Callable
from typing import Any

import pytest

from langchain_retryrouter import OpenAI, OpenAIChat, errors
from langchain_retryrouter._openai.clients.sharing import http_library
from langchain_retryrouter.llms import openai as module
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Answer,
    Body,
    ErrorInOk,
    FaultyGateway,
    Hangup,
    HtmlPage,
    Raw,
    Reset,
    Silence,
    Status,
    Step,
)

from .conftest import KEY, NewLLM

KEY_OF_A_CALL = "idempotency-key"
COMPLETION: dict[str, Any] = {"model": "m", "prompt": "hi", "as_dicts": True}
MODELS = [OpenAI, OpenAIChat]


@pytest.fixture(params=["sync", "async"])
def asked(request: pytest.FixtureRequest) -> Callable[..., list[Any]]:
    """Calls one after the other, in one event loop where they are async.

    Each is the name of a sync method and its arguments, or a function to be called in
    between; what it returned, or raised, is in the list.
    """
    return _asked if request.param == "sync" else _aasked


def _asked(llm: Any, *calls: Any) -> list[Any]:
    seen: list[Any] = []
    for call in calls:
        try:
            if callable(call):
                seen.append(call())
            elif call == "stream":
                seen.append("".join(llm.stream("hi")))
            elif isinstance(call, dict):
                seen.append(module.completion_with_retry(llm, **call))
            else:
                seen.append(llm.invoke(call))
        except errors.RetryRouterError as error:
            seen.append(error)
    return seen


def _aasked(llm: Any, *calls: Any) -> list[Any]:
    async def run() -> list[Any]:
        seen: list[Any] = []
        for call in calls:
            try:
                if callable(call):
                    seen.append(call())
                elif call == "stream":
                    seen.append("".join([c async for c in llm.astream("hi")]))
                elif isinstance(call, dict):
                    seen.append(await module.acompletion_with_retry(llm, **call))
                else:
                    seen.append(await llm.ainvoke(call))
            except errors.RetryRouterError as error:
                seen.append(error)
        return seen

    return asyncio.run(run())


def without_key(headers: Any) -> dict[str, str]:
    return {name: v for name, v in headers.items() if name.lower() != KEY_OF_A_CALL}


@pytest.mark.parametrize("cls", MODELS)
def test_the_second_request_is_the_first_with_another_key(
    asked: Any, cls: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """What is sent again is what the SDK has composed, header by header."""
    llm = new_llm(cls, default_headers={"x-team": "blue"}, default_query={"v": "1"})
    assert asked(llm, "hi", "hi", "stream", "stream") == [STUB_TEXT] * 4
    for one, other in (gateway.requests[:2], gateway.requests[2:]):
        assert without_key(other.headers) == without_key(one.headers)
        assert (other.path, other.query, other.body) == (one.path, one.query, one.body)
        assert other.headers["x-team"] == "blue"
    keys = {request.headers[KEY_OF_A_CALL] for request in gateway.requests}
    assert len(keys) == 4


def test_the_body_is_the_call_s_own(
    asked: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """Only address and headers are remembered: each prompt arrives as it is."""
    prompts = ["one", "zwei ü \N{SNOWMAN}", 'a "quoted" line\n']
    asked(new_llm(), *prompts)
    assert [r.parameters["prompt"] for r in gateway.requests] == [[p] for p in prompts]


ID = {"x-request-id": "r-1"}
FAULTS = [
    Status(400, headers=ID),
    Status(401, headers=ID, message="Incorrect API key provided"),
    Status(429, headers={"retry-after": "7", **ID}),
    Status(503, headers={"x-should-retry": "false", **ID}),
    Status(307, headers={"location": "http://127.0.0.1:1/", **ID}),
    HtmlPage(502),
    ErrorInOk("overloaded", code="503"),
    Body(body=b"no JSON"),
    Hangup(),
    Reset(),
    Raw(b"nonsense\r\n\r\n"),
]


@pytest.mark.parametrize("call", ["hi", "stream"])
@pytest.mark.parametrize("step", FAULTS, ids=str)
def test_an_error_is_what_the_sdk_makes_of_it(
    asked: Any, new_llm: NewLLM, gateway: FaultyGateway, step: Step, call: str
) -> None:
    """Class, words, facts and cause are those of a request that went through `post`."""
    gateway.script(step, Answer(), step)
    llm = new_llm(max_retries=0)
    through_post, text, repeated = asked(llm, call, call, call)
    assert text == STUB_TEXT
    assert isinstance(through_post, errors.RetryRouterError)
    assert facts(repeated) == facts(through_post)


def facts(error: Any) -> dict[str, Any]:
    """All that an error says, but for what is one request's own."""
    causes = (error.__cause__, getattr(error.__cause__, "__cause__", None))
    return {
        **{n: v for n, v in vars(error).items() if n not in {"request", "response"}},
        "class": type(error),
        "words": str(error),
        "causes": [(type(cause), str(cause)) for cause in causes],
        "holds": {n for n in ("request", "response") if getattr(error, n, None)},
    }


def test_a_limit_of_the_call_goes_through_the_sdk(
    asked: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """An option that a call gives is not overheard because of an earlier request."""
    gateway.script(Answer(), Silence(5))
    llm = new_llm(clock=None, max_retries=0)
    text, error = asked(llm, COMPLETION, {**COMPLETION, "timeout": 0.1})
    assert text["choices"][0]["text"] == STUB_TEXT
    assert isinstance(error, errors.APITimeoutError)


def test_headers_and_queries_of_the_call_are_sent(
    asked: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """They are of this call alone: neither lost, nor remembered for the next one."""
    given = {"extra_headers": {"x-one": "1"}, "extra_query": {"q": "2"}}
    asked(new_llm(), COMPLETION, {**COMPLETION, **given}, COMPLETION)
    seen = [(r.headers.get("x-one"), r.query) for r in gateway.requests]
    assert seen == [(None, ""), ("1", "q=2"), (None, "")]


def test_a_retry_says_which_one_it_is(
    asked: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """The header by which a server counts retries is that of the attempt."""
    gateway.script(Answer(), Status(503))
    asked(new_llm(), "hi", "hi")
    counts = [r.headers["x-stainless-retry-count"] for r in gateway.requests]
    assert counts == ["0", "0", "1"]


def test_a_key_that_is_set_anew_is_sent(
    asked: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """Who changes the SDK's client is heard, though nothing else is asked of it."""
    llm = new_llm()

    def set_anew() -> None:
        for resource in (llm.client, llm.async_client):
            resource.client.api_key = "sk-another-key"

    asked(llm, "hi", "hi", set_anew, "hi")
    keys = [r.headers["authorization"] for r in gateway.requests]
    assert keys == [f"Bearer {KEY}"] * 2 + ["Bearer sk-another-key"]


def test_a_key_that_is_a_function_is_asked_each_time(
    asked: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """A function may return another key for each request."""
    keys = (f"sk-number-{number}" for number in range(9))
    asked(new_llm(api_key=lambda: next(keys)), "hi", "hi", "hi")
    sent = [r.headers["authorization"] for r in gateway.requests]
    assert sent == [f"Bearer sk-number-{number}" for number in range(3)]


def test_who_reads_the_sdk_s_log_finds_every_request(
    asked: Any, new_llm: NewLLM, caplog: pytest.LogCaptureFixture
) -> None:
    """While the SDK's log is open, the SDK sends: it tells of each request."""
    caplog.set_level(logging.DEBUG, logger="openai")
    asked(new_llm(), "hi", "hi", "hi")
    told = [r for r in caplog.records if r.message.lower().startswith("sending http")]
    assert len(told) == 3


def test_who_reads_the_http_library_s_log_finds_every_request(
    asked: Any, new_llm: NewLLM, caplog: pytest.LogCaptureFixture
) -> None:
    """The line that the HTTP library writes for each request stays."""
    caplog.set_level(logging.INFO, logger=http_library().__name__)
    asked(new_llm(), "hi", "hi", "stream")
    told = [r for r in caplog.records if r.message.startswith("HTTP Request: POST")]
    assert len(told) == 3


def test_what_json_cannot_say_is_left_to_the_sdk(
    asked: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """A date in a request is written as the SDK writes it, the second time too."""
    day = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)
    asked(new_llm(model_kwargs={"user": day}), "hi", "hi")
    assert [r.parameters["user"] for r in gateway.requests] == [day.isoformat()] * 2
