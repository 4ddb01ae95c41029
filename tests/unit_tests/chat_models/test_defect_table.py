"""What langchain-community's `GPTRouter` gets wrong, row by row, and what is right.

The rows are those of a table of measurements: langchain-community 0.4.2 and gptrouter
1.0.13 against the real gateway. A letter and a number name a row; each test gives the
behaviour that a user of that row expected.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from typing import Any

import pytest
from gpt_router import exceptions as sdk
from gpt_router.models import GPTRouterMetadata
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.load import dumps
from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_core.outputs import LLMResult
from tenacity import RetryCallState

from langchain_retryrouter import (
    APIConnectionError,
    APITimeoutError,
    AuthenticationError,
    InvalidRequestError,
    MalformedResponseError,
    NotFoundError,
    RateLimitError,
    RetryPolicy,
    RetryRouterError,
    ServerError,
    StreamInterruptedError,
    UnavailableError,
    UnsupportedOptionError,
)
from langchain_retryrouter.chat_models import gpt_router
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Answer,
    Body,
    Cut,
    ErrorEvent,
    FakeClock,
    FaultyGateway,
    Hangup,
    HtmlPage,
    Reset,
    Silence,
    Status,
    Step,
    Truncate,
)

from .conftest import GPT_4, KEY, NewModel

WHOLE_USAGE = {"input_tokens": 11, "output_tokens": 5, "total_tokens": 16}
# In a stream the gateway sends an estimate of its own.
STREAM_USAGE = {"input_tokens": 8, "output_tokens": 5, "total_tokens": 13}
EXACT = RetryPolicy(jitter=False)


def text_of(chunks: list[Any]) -> str:
    return "".join(str(chunk.content) for chunk in chunks)


def sum_of(chunks: list[Any]) -> AIMessageChunk:
    first, *others = chunks
    assert isinstance(first, AIMessageChunk)
    return first.__add__(others)


def asked(gateway: FaultyGateway) -> list[bool]:
    """Of each request, whether it asked for a stream."""
    return [request.streaming for request in gateway.requests]


def event_stream(*frames: str) -> Body:
    """A stream of exactly these frames."""
    body = "".join(f"{frame}\n\n" for frame in frames)
    return Body(200, {"content-type": "text/event-stream"}, body)


def update(text: str, finish_reason: str | None = None) -> str:
    data = {"text": text, "finish_reason": finish_reason}
    return "data: " + json.dumps({"event": "update", "data": data})


END = 'data: {"event":"end","data":"end"}'
FAREWELL = "event: end\ndata: Stream closed"


# --- A: answers ---


def test_a1_a2_m1_m2_an_answer_has_text_usage_and_json_metadata(
    twin: Any, new_llm: NewModel
) -> None:
    """An answer has its text, its usage, and metadata that JSON and `dumps` can carry."""
    answer = twin.invoke(new_llm(), "hi")

    assert answer.content == STUB_TEXT
    assert answer.usage_metadata == WHOLE_USAGE
    metadata = answer.response_metadata
    assert metadata["token_usage"]["total_tokens"] == 16
    assert json.loads(json.dumps(metadata)) == metadata
    written = json.loads(dumps(answer))
    assert written["type"] == "constructor"
    assert written["kwargs"]["response_metadata"] == metadata


def test_a3_a4_a_stream_has_text_usage_and_model(twin: Any, new_llm: NewModel) -> None:
    """The chunks of a stream add up to the text, its usage and the model that said it."""
    message = sum_of(twin.stream(new_llm(), "hi"))

    assert message.content == STUB_TEXT
    assert message.usage_metadata == STREAM_USAGE
    assert message.response_metadata["model_name"] == "gpt-4-0613"
    assert message.response_metadata["provider_name"] == "chat_openai"
    assert message.response_metadata["model_id"].startswith("631b2d96-")
    assert message.response_metadata["provider_id"].startswith("7dc8712a-")
    assert message.response_metadata["finish_reason"] == "stop"


class Ends(BaseCallbackHandler):
    """Keeps what `on_llm_end` was told."""

    def __init__(self) -> None:
        self.results: list[LLMResult] = []

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        self.results.append(response)


def test_a5_two_choices_are_two_generations_with_usage(
    twin: Any, new_llm: NewModel
) -> None:
    """`n=2` gives two generations, and both the result and the callback have the usage."""
    ends = Ends()

    result = twin.generate(new_llm(n=2), [[HumanMessage("hi")]], callbacks=[ends])

    assert [generation.text for generation in result.generations[0]] == [STUB_TEXT] * 2
    usage = {"completion_tokens": 10, "prompt_tokens": 11, "total_tokens": 21}
    assert result.llm_output["token_usage"] == usage
    assert result.llm_output["model_name"] == "gpt-4-0613"
    [told] = ends.results
    assert told.llm_output is not None
    assert told.llm_output["token_usage"] == usage


def test_a6_two_choices_in_a_stream_are_refused(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """A stream with `n=2`, whose choices nobody could tell apart, is refused unsent."""
    with pytest.raises(ValueError, match="n must be 1 in a stream"):
        twin.stream(new_llm(n=2), "hi")
    with pytest.raises(ValueError, match="n must be 1 in a stream"):
        twin.stream(new_llm(), "hi", n=2)

    assert gateway.requests == []


# --- B and I: options ---


def test_b1_b2_stop_is_sent_and_cuts(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """`stop` reaches the provider, and the answer ends before it."""
    assert twin.invoke(new_llm(), "hi", stop=["stub"]).content == "Hello from the "
    assert text_of(twin.stream(new_llm(), "hi", stop=["stub"])) == "Hello from the "
    bound = new_llm().bind(stop=["from"])
    assert twin.invoke(bound, "hi").content == "Hello "

    assert [request.parameters["stop"] for request in gateway.requests] == [
        ["stub"],
        ["stub"],
        ["from"],
    ]


@pytest.mark.parametrize("option", ["seed", "top_k"])
def test_b4_what_cannot_be_carried_is_an_error(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway, option: str
) -> None:
    """An option that no gateway reads is an error that names it, and nothing is sent."""
    with pytest.raises(UnsupportedOptionError, match=f"'{option}'.*model_kwargs"):
        twin.invoke(new_llm(), "hi", **{option: 7})
    with pytest.raises(UnsupportedOptionError, match=f"'{option}'"):
        twin.stream(new_llm(), "hi", **{option: 7})

    assert gateway.requests == []


def test_b4_what_can_be_carried_is_sent(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """`logit_bias`, which the SDK drops without a word, is sent; so are `model_kwargs`."""
    twin.invoke(new_llm(), "hi", logit_bias={"50256": -100})
    twin.invoke(new_llm(model_kwargs={"seed": 7}), "hi")

    with_bias, with_seed = (request.parameters for request in gateway.requests)
    assert with_bias["logit_bias"] == {"50256": -100}
    assert with_seed["seed"] == 7


def test_b6_i3_i4_gateway_settings_can_be_set(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """The gateway's own timeout, retries and metadata have a place, and are sent."""
    llm = new_llm(gateway_timeout=2.5, gateway_max_retries=2)
    llm.client.additional_metadata = GPTRouterMetadata(tag="night", history_id="h1")

    twin.invoke(llm, "hi")
    twin.stream(llm, "hi")

    for request in gateway.requests:
        assert request.payload["timeout"] == 2500
        assert request.payload["maxRetries"] == 2
        assert request.payload["tag"] == "night"
        assert request.payload["historyId"] == "h1"


@pytest.mark.parametrize("option", ["timeout", "maxRetries", "max_retries"])
def test_b6_i3_i4_settings_given_to_a_call_are_not_lost(
    twin: Any, new_llm: NewModel, option: str
) -> None:
    """A setting of the model that is handed to a call is an error, not dropped."""
    with pytest.raises(UnsupportedOptionError, match=f"'{option}'"):
        twin.invoke(new_llm(), "hi", **{option: 1})


def test_i5_no_limit_of_tokens(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """`max_tokens=None` sends no limit at all: the gateway would make 0 of a null."""
    twin.invoke(new_llm(max_tokens=None), "hi")
    twin.stream(new_llm(), "hi", max_tokens=None)

    for request in gateway.requests:
        assert "max_tokens" not in request.parameters


@pytest.mark.parametrize("streaming", [False, True])
def test_i1_i2_a_read_timeout_is_typed_and_retried(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway, *, streaming: bool
) -> None:
    """A server that is silent for longer than `request_timeout` is asked again."""
    gateway.always(Silence())
    llm = new_llm(request_timeout=0.1, max_retries=1, streaming=streaming)

    with pytest.raises(APITimeoutError) as caught:
        twin.invoke(llm, "hi")

    assert isinstance(caught.value, sdk.GPTRouterApiTimeoutError)
    assert caught.value.attempts == 2
    gateway.script(Silence(), Answer())
    gateway.always(Answer())
    assert twin.invoke(llm, "hi").content == STUB_TEXT


# --- D: characters ---


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\r"])
def test_d2_unicode_line_ends_are_text(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway, character: str
) -> None:
    """What Unicode calls a line end is text, in a stream too, and nothing vanishes."""
    pieces = (f"one{character}", f"{character}two", "three")
    gateway.always(Answer(pieces))

    assert text_of(twin.stream(new_llm(), "hi")) == "".join(pieces)
    assert twin.invoke(new_llm(), "hi").content == "".join(pieces)


# --- E: errors that the gateway tells ---


def test_e1_a_quota_for_the_day_fails_fast(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway, clock: FakeClock
) -> None:
    """A 429 that asks for a day's patience is out at once, and says the number."""
    gateway.always(Status(429, {"retry-after": "86400"}))

    with pytest.raises(RateLimitError) as caught:
        twin.invoke(new_llm(), "hi")

    assert isinstance(caught.value, sdk.GPTRouterTooManyRequestsError)
    assert caught.value.retry_after == 86400
    assert len(gateway.requests) == 1
    assert clock.sleeps == []
    assert caught.value.__notes__ == [
        "gave up after 1 attempt, 0.0 s waited:"
        " Retry-After of 86400 s is above max_retry_after of 60 s"
    ]
    assert caught.value.is_retryable is False


def test_e4_retry_after_is_waited_for(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway, clock: FakeClock
) -> None:
    """`Retry-After: 1` is waited for: 1 s, not 4."""
    gateway.script(Status(429, {"retry-after": "1"}))

    assert twin.invoke(new_llm(retry_policy=EXACT), "hi").content == STUB_TEXT

    assert clock.sleeps == [1.0]


def test_e2_a_429_in_a_stream_is_retried(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """A stream that is answered 429 is asked again, and after that told as 429."""
    gateway.script(Status(429))

    assert text_of(twin.stream(new_llm(), "hi")) == STUB_TEXT

    gateway.always(Status(429))
    with pytest.raises(RateLimitError, match="429: You've reached a limit"):
        twin.stream(new_llm(max_retries=1), "hi")
    assert len(gateway.requests) == 4


def test_e11_a_401_in_a_stream_is_told(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """A stream that is answered 401 says so, at once."""
    gateway.always(Status(401))

    with pytest.raises(AuthenticationError, match="401: Unauthorized") as caught:
        twin.stream(new_llm(), "hi")

    assert isinstance(caught.value, sdk.GPTRouterUnauthorizedError)
    assert len(gateway.requests) == 1


def test_e6_an_unknown_model_is_named(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """Behind an opaque 500 an unknown model is found by one stream, and no more."""
    gateway.always(ErrorEvent("Model with name nope does not exist"))

    with pytest.raises(NotFoundError, match="Model with name nope does not exist"):
        twin.invoke(new_llm(), "hi")

    assert asked(gateway) == [False, True]


def test_e8_n11_retries_do_not_multiply(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """`max_retries=3` against a failing provider is 4 requests, none of them repeated."""
    gateway.always(Status(500))

    with pytest.raises(ServerError) as caught:
        twin.invoke(new_llm(max_retries=3), "hi")

    assert isinstance(caught.value, sdk.GPTRouterInternalServerError)
    assert [request.payload["maxRetries"] for request in gateway.requests] == [0] * 4


def test_e9_a_transient_error_event_is_retried(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """A stream whose first event is a passing error is asked again."""
    gateway.script(ErrorEvent("slow down", status=429), ErrorEvent("Connection error."))

    assert text_of(twin.stream(new_llm(), "hi")) == STUB_TEXT

    assert len(gateway.requests) == 3


@pytest.mark.parametrize(
    ("message", "status", "expected", "requests"),
    [
        ("wrong key", 401, AuthenticationError, 1),
        ("bad request", 400, InvalidRequestError, 1),
        ("slow down", 429, RateLimitError, 2),
        ("oops", 500, ServerError, 2),
        ("Request timed out.", None, APITimeoutError, 2),
        ("Connection error.", None, APIConnectionError, 2),
        ("No models available", None, UnavailableError, 2),
        ("Provider with name nope does not exist", None, NotFoundError, 1),
    ],
)
def test_e7_e9_an_error_event_is_typed_and_reads_the_same(
    twin: Any,
    new_llm: NewModel,
    gateway: FaultyGateway,
    message: str,
    status: int | None,
    expected: type[RetryRouterError],
    requests: int,
) -> None:
    """An error event is its own class and a `GPTRouterStreamingError`, in both twins."""
    gateway.always(ErrorEvent(message, status=status))

    with pytest.raises(expected) as caught:
        twin.stream(new_llm(max_retries=1), "hi")

    assert str(caught.value) == (message if status is None else f"{status} {message}")
    assert isinstance(caught.value, sdk.GPTRouterStreamingError)
    assert caught.value.status_code == status
    assert len(gateway.requests) == requests


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (500, sdk.GPTRouterInternalServerError),
        (502, sdk.GPTRouterInternalServerError),
        (503, sdk.GPTRouterNotAvailableError),
    ],
)
def test_e13_a_5xx_to_a_stream_is_retried(
    twin: Any,
    new_llm: NewModel,
    gateway: FaultyGateway,
    status: int,
    expected: type[Exception],
) -> None:
    """A stream that is answered 5xx is asked again, and its error is the SDK's too."""
    gateway.script(Status(status))

    assert text_of(twin.stream(new_llm(), "hi")) == STUB_TEXT

    gateway.always(Status(status))
    with pytest.raises(ServerError, match=f"{status}: Something went wrong") as caught:
        twin.stream(new_llm(max_retries=0), "hi")
    assert isinstance(caught.value, expected)
    assert caught.value.body == {"error": "Something went wrong"}


def test_e14_a_503_is_retried(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway, clock: FakeClock
) -> None:
    """A 503 is followed by another attempt after half a second, not after four."""
    gateway.script(Status(503))

    assert twin.invoke(new_llm(retry_policy=EXACT), "hi").content == STUB_TEXT

    assert clock.sleeps == [0.5]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("status", "expected", "requests"),
    [
        (400, InvalidRequestError, 1),
        (403, RetryRouterError, 1),
        (404, NotFoundError, 1),
        (406, UnavailableError, 2),
        (408, APITimeoutError, 2),
        (422, InvalidRequestError, 1),
        (502, ServerError, 2),
        (504, APITimeoutError, 2),
    ],
)
def test_e15_e16_f6_every_status_is_typed(
    twin: Any,
    new_llm: NewModel,
    gateway: FaultyGateway,
    status: int,
    expected: type[RetryRouterError],
    requests: int,
    *,
    streaming: bool,
) -> None:
    """Each status has its class, and what may pass is asked again."""
    gateway.always(Status(status))

    with pytest.raises(expected) as caught:
        twin.invoke(new_llm(max_retries=1, streaming=streaming), "hi")

    assert caught.value.status_code == status
    assert len(gateway.requests) == requests


# --- F: no answer, or none of the gateway's ---


@pytest.mark.parametrize("streaming", [False, True])
def test_f1_f2_f3_a_refused_connection_is_typed_and_retried(
    twin: Any, new_llm: NewModel, clock: FakeClock, *, streaming: bool
) -> None:
    """Where nobody listens is tried again, and the provider has certainly not run."""
    with FaultyGateway() as gone:
        url = gone.url

    with pytest.raises(APIConnectionError) as caught:
        twin.invoke(new_llm(gpt_router_api_base=url, streaming=streaming), "hi")

    assert caught.value.attempts == 5
    assert len(clock.sleeps) == 4
    assert caught.value.may_have_run is False
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("step", "expected", "status"),
    [
        pytest.param(HtmlPage(502), ServerError, 502, id="f4-502-html"),
        pytest.param(HtmlPage(200), MalformedResponseError, 200, id="f9-200-html"),
        pytest.param(Body(200), MalformedResponseError, 200, id="f11-empty-200"),
        pytest.param(Body(200, None, "[1]"), MalformedResponseError, 200, id="list"),
        pytest.param(Body(200, None, "{}"), MalformedResponseError, 200, id="no-keys"),
    ],
)
def test_f4_f9_f11_what_is_no_answer_is_typed_and_retried(
    twin: Any,
    new_llm: NewModel,
    gateway: FaultyGateway,
    step: Step,
    expected: type[RetryRouterError],
    status: int,
) -> None:
    """An answer that is not the gateway's keeps its status, and is asked for again."""
    gateway.script(step)
    assert twin.invoke(new_llm(), "hi").content == STUB_TEXT

    gateway.always(step)
    with pytest.raises(expected) as caught:
        twin.invoke(new_llm(max_retries=1), "hi")
    assert caught.value.status_code == status
    assert caught.value.attempts == 2


def test_f5_a_502_page_to_a_stream_is_typed_and_retried(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """A stream that a proxy answers with its error page is asked again."""
    gateway.script(HtmlPage(502))
    assert text_of(twin.stream(new_llm(), "hi")) == STUB_TEXT

    gateway.always(HtmlPage(502))
    with pytest.raises(ServerError, match="502: <html>") as caught:
        twin.stream(new_llm(max_retries=1), "hi")
    assert caught.value.attempts == 2


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("step", [Hangup(), Reset()], ids=["fin", "rst"])
def test_f7_a_connection_closed_before_a_byte_is_retried(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway, step: Step, *, streaming: bool
) -> None:
    """A server that closes before a byte is asked again; it may have run the request."""
    llm = new_llm(max_retries=1, streaming=streaming)
    gateway.script(step)
    assert twin.invoke(llm, "hi").content == STUB_TEXT

    gateway.always(step)
    with pytest.raises(APIConnectionError) as caught:
        twin.invoke(llm, "hi")
    assert caught.value.may_have_run is True


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        pytest.param(HtmlPage(200), MalformedResponseError, id="f10-html"),
        pytest.param(Truncate(after=0), StreamInterruptedError, id="g9-no-events"),
        pytest.param(event_stream(), StreamInterruptedError, id="g9-no-bytes"),
    ],
)
def test_f10_g9_a_stream_that_is_none_is_an_error_of_the_gateway(
    twin: Any,
    new_llm: NewModel,
    gateway: FaultyGateway,
    step: Step,
    expected: type[RetryRouterError],
) -> None:
    """A 200 without a single event is asked for again, and then typed."""
    gateway.script(step)
    assert text_of(twin.stream(new_llm(), "hi")) == STUB_TEXT

    gateway.always(step)
    with pytest.raises(expected) as caught:
        twin.stream(new_llm(max_retries=1), "hi")
    assert caught.value.attempts == 2
    assert caught.value.delivered == ""


# --- G: streams that end too early ---


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(Cut(after=2, how="fin"), id="g1-fin"),
        pytest.param(Cut(after=2, how="rst"), id="g2-rst"),
        pytest.param(Truncate(after=2), id="g3-g10-clean"),
        pytest.param(ErrorEvent("Premature close", after=2), id="g4-upstream"),
        pytest.param(ErrorEvent("read ECONNRESET", after=2), id="g4-upstream-rst"),
    ],
)
def test_g1_to_g4_g10_a_stream_that_breaks_off_is_an_error(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway, step: Step
) -> None:
    """A stream without `end` raises what was delivered, and is never sent again."""
    gateway.always(step)
    chunks: list[Any] = []

    with pytest.raises(StreamInterruptedError) as caught:
        twin.stream(new_llm(), "hi", into=chunks)

    assert text_of(chunks) == caught.value.delivered == "Hello from"
    assert isinstance(caught.value, sdk.GPTRouterStreamingError)
    assert len(gateway.requests) == 1


@pytest.mark.parametrize("step", [Cut(after=2), Truncate(after=2)])
def test_g3_g10_a_stream_inside_invoke_is_not_cut_short_either(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway, step: Step
) -> None:
    """`streaming=True` does not make a short answer of a stream that broke off."""
    gateway.always(step)

    with pytest.raises(StreamInterruptedError):
        twin.invoke(new_llm(streaming=True), "hi")


def test_g5_an_upstream_that_stopped_early_is_flagged(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """An `end` without any finish reason is the trace of a provider that was cut."""
    gateway.always(Answer("Hello from", finish_reason=None))
    chunks: list[Any] = []

    with pytest.raises(StreamInterruptedError) as caught:
        twin.stream(new_llm(), "hi", into=chunks)

    assert text_of(chunks) == caught.value.delivered == "Hello from"


# --- H: on_retry ---


class Retries(BaseCallbackHandler):
    """Keeps what each `on_retry` was told, and what had been sent by then."""

    def __init__(self, gateway: FaultyGateway) -> None:
        self.gateway = gateway
        self.seen: list[tuple[int, BaseException | None, float, int]] = []

    def on_retry(self, retry_state: RetryCallState, **_: Any) -> None:
        assert retry_state.outcome is not None
        assert retry_state.next_action is not None
        self.seen.append(
            (
                retry_state.attempt_number,
                retry_state.outcome.exception(),
                retry_state.next_action.sleep,
                len(self.gateway.requests),
            )
        )


def test_h1_h2_on_retry_is_the_same_in_both_twins(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway, clock: FakeClock
) -> None:
    """`on_retry` tells the failed attempt, its exception and the wait, before the wait."""
    gateway.script(Status(503), Status(429))
    retries = Retries(gateway)

    twin.invoke(new_llm(), "hi", config={"callbacks": [retries]})

    first, second = retries.seen
    assert (first[0], second[0]) == (1, 2)
    assert isinstance(first[1], UnavailableError)
    assert isinstance(second[1], RateLimitError)
    assert [first[2], second[2]] == clock.sleeps
    assert (first[3], second[3]) == (1, 2)


async def test_h3_a_slow_async_on_retry_is_awaited(
    new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """An async handler that takes its time is done before the next request is sent."""
    gateway.script(Status(503))
    done: list[int] = []

    class Slow(AsyncCallbackHandler):
        async def on_retry(self, retry_state: RetryCallState, **_: Any) -> None:
            await gateway.await_for(lambda _: len(gateway.requests) == 1)
            for _ in range(100):
                await self.turn()
            done.append(len(gateway.requests))

        @staticmethod
        async def turn() -> None:
            await FakeClock().asleep(1)

    await new_llm().ainvoke("hi", config={"callbacks": [Slow()]})

    assert done == [1]
    assert len(gateway.requests) == 2


# --- J: odd events ---


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param('data: {"event":"error"}', id="j1-no-message"),
        pytest.param('data: {"event":"error","message":null}', id="j1-null"),
        pytest.param('data: {"event":"ERROR","message":"oops"}', id="j2-capitals"),
    ],
)
def test_j1_j2_an_error_event_is_an_error_however_it_is_written(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway, frame: str
) -> None:
    """An error event without a message, or in capitals, is not swallowed."""
    gateway.always(event_stream(update("Hello"), frame, FAREWELL))
    chunks: list[Any] = []

    with pytest.raises(ServerError) as caught:
        twin.stream(new_llm(), "hi", into=chunks)

    assert text_of(chunks) == caught.value.delivered == "Hello"
    assert isinstance(caught.value, sdk.GPTRouterStreamingError)


def test_j3_the_end_event_is_seen(twin: Any, new_llm: NewModel) -> None:
    """Who reads the events themselves gets the `end` event, and knows it was whole."""
    events = twin.complete(
        gpt_router,
        new_llm(),
        [GPT_4],
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
    )

    assert [event.event for event in events[-3:]] == ["meta", "generation_source", "end"]


def test_j5_an_event_of_several_data_lines_is_joined(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """The `data` lines of one event are one event."""
    split = 'data: {"event":"update",\ndata: "data":{"text":"Hello",\ndata: "finish_reason":"stop"}}'
    gateway.script(event_stream(split, END, FAREWELL))

    assert text_of(twin.stream(new_llm(), "hi")) == "Hello"


# --- K: odd answers ---


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        pytest.param({"text": None, "finish_reason": "stop"}, "", id="k1-text"),
        pytest.param({"text": "Hi", "finish_reason": None}, "Hi", id="k2-reason"),
        pytest.param({"text": "Hi"}, "Hi", id="k2-no-reason"),
    ],
)
@pytest.mark.parametrize(
    "rest",
    [
        {"id": "1", "model": "gpt-4-0613"},
        {"id": None, "model": None, "meta": {"usage": {"prompt_tokens": "many"}}},
        {},
    ],
    ids=["whole", "odd", "bare"],
)
def test_k1_k2_nulls_in_a_paid_answer_are_tolerated(
    twin: Any,
    new_llm: NewModel,
    gateway: FaultyGateway,
    choice: dict[str, Any],
    rest: dict[str, Any],
    text: str,
) -> None:
    """Nulls and gaps beside the text do not throw away an answer that was paid for."""
    answer = {"choices": [{"index": 0, **choice}], **rest}
    gateway.always(Status(200, None, answer))

    assert twin.invoke(new_llm(max_retries=0), "hi").content == text


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("status", [202, 204])
def test_k6_no_content_is_a_clear_error(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway, status: int, *, streaming: bool
) -> None:
    """A 204 instead of an answer is an error that says so."""
    gateway.always(Body(status))
    llm = new_llm(max_retries=0, streaming=streaming)

    with pytest.raises(MalformedResponseError, match="no answer|no body"):
        twin.invoke(llm, "hi")


# --- L, M and the rows without a letter ---


@pytest.mark.parametrize("ending", ["", "/", "/api", "/api/"])
def test_l1_the_address_may_end_as_it_likes(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway, ending: str
) -> None:
    """With or without `/api`, with or without a slash: the same endpoint."""
    twin.invoke(new_llm(gpt_router_api_base=gateway.url + ending), "hi")

    assert gateway.requests[0].path == "/api/v1/generate"


def test_m3_the_key_is_not_shown(new_llm: NewModel) -> None:
    """Neither `repr` nor `dumps` shows the key, of the model or of its client."""
    llm = new_llm()

    for shown in (repr(llm), str(llm), dumps(llm), repr(llm.client), repr(vars(llm))):
        assert KEY not in shown
    assert KEY not in repr(vars(llm.client))


def test_the_package_brings_all_it_imports() -> None:
    """A fresh interpreter imports the module without a warning, tenacity included."""
    command = "import langchain_retryrouter.chat_models.gpt_router"

    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-W", "error", "-c", command], capture_output=True, check=False
    )

    assert done.stderr.decode() == ""
    assert done.returncode == 0


def test_a_stream_request_warns_of_nothing(twin: Any, new_llm: NewModel) -> None:
    """A call makes no warning of any kind, streamed or not."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        twin.stream(new_llm(), "hi")
        twin.invoke(new_llm(), "hi")

    assert [str(warning.message) for warning in caught] == []


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("max_retries", [0, 1, 2, 4])
def test_max_retries_counts_retries(
    twin: Any,
    new_llm: NewModel,
    gateway: FaultyGateway,
    max_retries: int,
    *,
    streaming: bool,
) -> None:
    """`max_retries=4` is one request and four retries; 0 is one request."""
    gateway.always(Status(503))

    with pytest.raises(UnavailableError):
        twin.invoke(new_llm(max_retries=max_retries, streaming=streaming), "hi")

    assert len(gateway.requests) == max_retries + 1


def test_waits_grow_and_are_jittered(
    twin: Any, new_llm: NewModel, gateway: FaultyGateway, clock: FakeClock
) -> None:
    """Waits are random parts of 0.5, 1, 2 and 4 s, where four seconds each were usual."""
    gateway.always(Status(503))

    with pytest.raises(UnavailableError):
        twin.invoke(new_llm(), "hi")

    assert clock.sleeps == [0.25, 0.5, 1.0, 2.0]
