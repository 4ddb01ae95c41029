"""Requests that are sent like the one before, without the SDK composing them anew."""

from __future__ import annotations

import asyncio
import datetime as dt
import gzip
import logging
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from langchain_retryrouter import OpenAI, OpenAIChat, errors
from langchain_retryrouter._openai.clients import aio_transport, bounded_bodies
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
from tests.unit_tests.chat_models.relays import Proxy

from .conftest import KEY, NewLLM

KEY_OF_A_CALL = "idempotency-key"
COMPLETION: dict[str, Any] = {"model": "m", "prompt": "hi", "as_dicts": True}
MODELS = [OpenAI, OpenAIChat]


@pytest.fixture(params=["sync", "async", "async by aiohttp's session"])
def asked(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[Any]]:
    """Calls one after the other, in one event loop where they are async.

    Each is the name of a sync method and its arguments, or a function to be called in
    between; what it returned, or raised, is in the list.
    """
    if request.param == "async by aiohttp's session":
        monkeypatch.setattr(aio_transport, "CAN_POST_LEANLY", False)
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


# What comes back, where neither the SDK nor the HTTP library reads it.

SAID = b'{"choices":[{"index":0,"text":"said","finish_reason":"stop"}]}'
JSON = ("content-type", "application/json")


def body(data: bytes = SAID, encoding: str = "identity") -> Body:
    return Body(200, [JSON, ("content-encoding", encoding)], data)


@pytest.mark.parametrize(
    "said",
    [body(gzip.compress(SAID), "gzip"), body(zlib.compress(SAID), "deflate"), body()],
    ids=["gzip", "deflate", "identity"],
)
def test_a_packed_answer_is_read(
    asked: Any, new_llm: NewLLM, gateway: FaultyGateway, said: Body
) -> None:
    """What the first request asks for, the next ones ask for and unpack as well."""
    gateway.always(said)
    assert asked(new_llm(), "hi", "hi") == ["said"] * 2


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (body(b" " * 1001), "more than 1000 bytes"),
        (body(gzip.compress(b" " * 1001), "gzip"), "more than 1000 bytes"),
        (body(encoding="br"), "'br', which nobody asked for"),
    ],
    ids=["too large", "too large when unpacked", "not asked for"],
)
def test_an_answer_that_is_left_costs_its_connection_alone(
    asked: Any,
    new_llm: NewLLM,
    gateway: FaultyGateway,
    monkeypatch: pytest.MonkeyPatch,
    said: Body,
    words: str,
) -> None:
    """The limits of answers hold, and the call behind one that broke them goes well."""
    monkeypatch.setattr(bounded_bodies, "MAX_ANSWER_BYTES", 1000)
    gateway.script(Answer(), said, Answer())
    before, left, after = asked(new_llm(max_retries=0), "hi", "hi", "hi")
    assert (before, after) == (STUB_TEXT, STUB_TEXT)
    assert isinstance(left, errors.MalformedResponseError)
    assert words in str(left)


def test_an_answer_that_stands_still_has_its_limit(
    asked: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """The time for a read is that of the client, in the middle of a body too."""
    half = b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{"
    gateway.script(Answer(), Silence(5), Answer(), Raw(half, close=False))
    llm = new_llm(clock=None, max_retries=0, timeout=0.2)
    text, silent, again, cut = asked(llm, "hi", "hi", "hi", "hi")
    assert (text, again) == (STUB_TEXT, STUB_TEXT)
    for error in (silent, cut):
        assert isinstance(error, errors.APITimeoutError)
        assert error.may_have_run


async def test_a_cancelled_call_hangs_up_at_once(
    new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """Who leaves before the answer takes the connection along."""
    gateway.script(Answer(), Silence(5))
    llm = new_llm(clock=None)
    assert await llm.ainvoke("hi") == STUB_TEXT
    call = asyncio.create_task(llm.ainvoke("hi"))
    await asyncio.to_thread(
        gateway.wait_for, lambda gateway: len(gateway.requests) == 2
    )
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()
    await asyncio.to_thread(
        gateway.wait_for, lambda gateway: not gateway.open_connections
    )


def test_every_request_passes_the_proxy(
    asked: Any, new_llm: NewLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way that the first request took is that of the next ones."""
    with Proxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        assert asked(new_llm(), "hi", "hi") == [STUB_TEXT] * 2
        assert len(proxy.asked) == 2


def test_what_only_the_http_library_writes_it_writes_each_time(
    asked: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """A tab may stand in a header, and comes by it as it did the first time."""
    llm = new_llm(default_headers={"x-team": "light\tblue"})
    with_key = {"extra_headers": {"Idempotency-Key": "one\ttwo"}}
    asked(llm, COMPLETION, COMPLETION)
    asked(new_llm(), COMPLETION, {**COMPLETION, **with_key})
    assert [r.headers.get("x-team") for r in gateway.requests[:2]] == [
        "light\tblue"
    ] * 2
    assert gateway.requests[3].headers[KEY_OF_A_CALL] == "one\ttwo"


def test_no_header_can_be_two(
    asked: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """A line end in a call's key is refused, whoever would have written it."""
    with_key = {"extra_headers": {"Idempotency-Key": "one\r\nx-two: 2"}}
    _, error = asked(new_llm(max_retries=0), COMPLETION, {**COMPLETION, **with_key})
    assert isinstance(error, errors.InvalidRequestError)
    assert len(gateway.requests) == 1


async def test_who_listens_to_the_http_client_hears_every_request(
    new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """A hook that somebody has put into our client is called for repeats, too."""
    llm = new_llm()
    heard: list[str] = []

    async def listen(request: Any) -> None:
        heard.append(request.url.path)

    llm.async_client.client._client.event_hooks["request"].append(listen)  # noqa: SLF001
    for _ in range(3):
        assert await llm.ainvoke("hi") == STUB_TEXT
    assert heard == ["/v1/completions"] * 3
    assert len(gateway.requests) == 3


@pytest.mark.parametrize(
    "step",
    [Status(429, headers=ID), ErrorInOk("overloaded", code="503"), body(b"no JSON")],
    ids=["status", "in a 200", "no JSON"],
)
def test_an_error_holds_the_http_library_s_objects(
    asked: Any, new_llm: NewLLM, gateway: FaultyGateway, step: Step
) -> None:
    """Request and response are whole, and as they are when they went through `post`."""
    gateway.script(step, Answer(), step)
    first, _, repeated = asked(new_llm(max_retries=0), "hi", "hi", "hi")
    for error in (first, repeated):
        assert type(error.response) is http_library().Response
        assert type(error.request) is http_library().Request
    assert told_by(repeated) == told_by(first)


def told_by(error: Any) -> dict[str, Any]:
    """What stands in an error's request and response, but for a call's own."""
    request, response = error.request, error.response
    headers = without_key(request.headers)
    return {
        "asked": (request.method, str(request.url), headers, request.content),
        "status": (response.status_code, response.reason_phrase, response.http_version),
        "headers": dict(response.headers),
        "said": (response.content, response.text),
        "of": response.request is request,
    }
