"""Errors of a call: which class they have, which are retried, and what they say."""

import json
import re
import traceback
from itertools import product
from typing import Any

import pytest
from gpt_router import exceptions as sdk

from langchain_retryrouter import (
    APIConnectionError,
    APITimeoutError,
    AuthenticationError,
    GPTRouterModel,
    InvalidRequestError,
    MalformedResponseError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RetryRouterError,
    ServerError,
    StreamInterruptedError,
    UnavailableError,
)
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Answer,
    Body,
    Cut,
    ErrorEvent,
    ErrorInOk,
    Hangup,
    HtmlPage,
    Reset,
    Silence,
    Status,
    Step,
    Truncate,
)
from tests.support.models import NOWHERE

from .conftest import ENOUGH, KEY, WAYS, Env
from .frames import END, FAREWELL, event, event_stream, text_of, update, whole

EVENT_STREAM = {"content-type": "text/event-stream"}
WRONG = "Something went wrong"
NOT_ASKED = [  # What the gateway refuses before it asks a provider.
    ("Provider with name nope does not exist", NotFoundError),
    ("Model with name gpt-4-0613 does not exist", NotFoundError),
    ("Stream not supported for provider cohere", NotFoundError),
    ("No models available", UnavailableError),
]
# The answer, the class of its error, its status, and its message or a part of it.
Row = tuple[Step, type[RetryRouterError], int | None, str]
RETRIED: list[Row] = [
    (Status(406), UnavailableError, 406, ""),
    (Status(408), APITimeoutError, 408, ""),
    (Status(429), RateLimitError, 429, "429 - You've reached a limit"),
    (Status(500), ServerError, 500, f"500 - {WRONG}"),
    (Status(502), ServerError, 502, f"502 - {WRONG}"),
    (Status(503), UnavailableError, 503, f"503 - {WRONG}"),
    (Status(504), APITimeoutError, 504, ""),
    (HtmlPage(502), ServerError, 502, ""),
    (HtmlPage(200), MalformedResponseError, 200, ""),
    (Hangup(), APIConnectionError, None, ""),
    (Reset(), APIConnectionError, None, ""),
]
RETRIED_ANSWERS: list[Row] = [
    (Body(200, None, body), MalformedResponseError, 200, "")
    for body in (b"", b"[1]", b'"text"', b"{}", b"{", b"\xff", b"[" * 200_000)
]
SLOW = {"code": 429, "message": "slow down"}
RETRIED_ANSWERS += [  # An answer that says of itself that it failed.
    (whole({"text": "par", "finish_reason": "error"}), ServerError, None, "'error'"),
    (whole({"text": "", "error": SLOW}), RateLimitError, None, "slow down"),
    (whole({"text": "par"}, error=SLOW), RateLimitError, None, "slow down"),
]
RETRIED_STREAMS: list[Row] = [
    (event_stream(update("", "error"), END), ServerError, None, "'error'"),
    (event_stream(update(error=SLOW)), RateLimitError, None, "slow down"),
    (event_stream(event("update", {}, error=SLOW)), RateLimitError, None, "slow down"),
    (Truncate(after=0), StreamInterruptedError, None, ""),
    (event_stream(), StreamInterruptedError, None, ""),
    (ErrorEvent("slow", status=429), RateLimitError, 429, "429 slow"),
    (ErrorEvent("oops", status=500), ServerError, 500, "500 oops"),
    (ErrorEvent("Request timed out."), APITimeoutError, None, "Request timed out."),
    (ErrorEvent("Connection error."), APIConnectionError, None, "Connection error."),
]
NO_KEY = (AuthenticationError, None, "")  # In a 200.
WRONG_KEY = (AuthenticationError, 401, "401 no")
FINAL: list[Row] = [
    (Status(400), InvalidRequestError, 400, ""),
    (Status(401), AuthenticationError, 401, "401 - Unauthorized"),
    (Status(403), PermissionDeniedError, 403, ""),
    (Status(404), NotFoundError, 404, ""),
    (Status(422), InvalidRequestError, 422, ""),
    (Body(200, None, '{"error": {"code": 401, "message": "no"}}'), *NO_KEY),
    (Body(200, None, '{"choices": [], "error": {"code": 401}}'), *NO_KEY),
]
FINAL_STREAMS: list[Row] = [
    (ErrorEvent("no", status=401), AuthenticationError, 401, "401 no"),
    (ErrorEvent("bad", status=400), InvalidRequestError, 400, "400 bad"),
    *((ErrorEvent(told), cls, None, told) for told, cls in NOT_ASKED),
    # Other forms of an `error` event.
    (event_stream('event: error\ndata: {"message": "401 no"}'), *WRONG_KEY),
    (event_stream("event: error\ndata: 401 no"), *WRONG_KEY),
    (event_stream('data: {"error": {"message": "401 no"}}'), *WRONG_KEY),
]
FAULTS = [
    *((way, row, True) for way, row in product(WAYS, RETRIED)),
    *((way, row, True) for way, row in product(WAYS[1:], RETRIED_STREAMS)),
    *(("invoke", row, True) for row in RETRIED_ANSWERS),
    *((way, row, False) for way, row in product(WAYS, FINAL)),
    *((way, row, False) for way, row in product(WAYS[1:], FINAL_STREAMS)),
]


@pytest.mark.parametrize(
    ("way", "row", "is_retried"), FAULTS, ids=lambda value: repr(value)[:200]
)
def test_each_fault_has_its_error(
    env: Env, way: str, row: Row, *, is_retried: bool
) -> None:
    """Errors that may pass are retried; all are raised with their class and message."""
    step, cls, status, told = row
    if is_retried:
        env.gateway.script(step)
        assert env.ask(way).content == STUB_TEXT
    before = len(env.gateway.requests)
    env.gateway.always(step)

    with pytest.raises(cls) as caught:
        env.ask(way, max_retries=1)

    error = caught.value
    sent = len(env.gateway.requests) - before
    assert error.attempts == sent == 1 + is_retried
    assert (error.status_code, error.delivered) == (status, "")
    assert told in str(error)
    if isinstance(step, ErrorEvent):
        assert told == str(error)
        assert error.may_have_run is ((told, cls) not in NOT_ASKED)
    elif told.endswith(WRONG):
        assert error.body == {"error": WRONG}
    if isinstance(step, (Hangup, Reset)):
        assert error.may_have_run is True


@pytest.mark.parametrize("way", ["stream", "invoke"])
@pytest.mark.parametrize(
    "said",
    [
        {"event": "error", "message": "429 Too many. Please try again in 20s."},
        {"error": {"message": "Too many. Please try again in 20s.", "code": 429}},
        {"event": "error", "message": "429", "error": {"retry_after": 20}},
    ],
)
def test_the_wait_that_an_error_event_names_is_kept(
    env: Env, way: str, said: dict[str, Any]
) -> None:
    """The gateway hands no Retry-After on, so its provider's sentence has the wait."""
    body = f"data: {json.dumps(said)}\n\n"
    env.gateway.script(Body(200, EVENT_STREAM, body))
    llm = env.llm().bind_tools([{"name": "f", "description": "", "parameters": {}}])
    env.message(way, llm)
    assert [20 <= wait < 25 for wait in env.clock.sleeps] == [True]


def test_waits_grow_and_are_jittered(env: Env) -> None:
    """Waits are random parts of 1.5, 3, 6 and 8 s."""
    env.gateway.always(Status(503))

    with pytest.raises(UnavailableError):
        env.ask("invoke")

    assert env.clock.sleeps == [0.75, 1.5, 3.0, 4.0]


@pytest.mark.parametrize("way", WAYS)
def test_a_refused_connection_is_retried(env: Env, way: str) -> None:
    """If nothing listens, the call is retried, and the provider cannot have run it."""
    with pytest.raises(APIConnectionError, match="no connection to the gateway") as e:
        env.ask(way, gpt_router_api_base=NOWHERE)

    assert (e.value.attempts, len(env.clock.sleeps)) == (5, 4)
    assert e.value.may_have_run is False
    assert e.value.__cause__ is not None
    assert "HTTPConnection" not in str(e.value)
    assert "refused" in str(e.value) or "Connect" in str(e.value)


@pytest.mark.parametrize("way", WAYS)
def test_a_read_timeout_is_retried(env: Env, way: str) -> None:
    """A server that is silent for longer than `request_timeout` is asked again."""
    env.gateway.always(Silence())

    with pytest.raises(APITimeoutError) as caught:
        env.ask(way, request_timeout=0.1, max_retries=1)

    assert isinstance(caught.value, sdk.GPTRouterApiTimeoutError)
    assert caught.value.attempts == 2
    env.gateway.script(Silence())
    env.gateway.always(Answer())
    answer = env.ask(way, request_timeout=ENOUGH, max_retries=1)
    assert answer.content == STUB_TEXT


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("status", [201, 202, 204])
def test_an_answer_without_a_body_is_an_error(env: Env, status: int, way: str) -> None:
    """A 2xx without a body in place of an answer is an error that says so."""
    env.gateway.always(Body(status))

    with pytest.raises(MalformedResponseError, match=r"no body|empty body"):
        env.ask(way, max_retries=0)


WHOLE = json.dumps({"choices": [{"text": "Hi", "finish_reason": "stop"}]})


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("status", [201, 202, 206])
@pytest.mark.parametrize("body", [WHOLE, "<html>", '{"message": "soon"}', ""])
def test_a_success_that_is_no_200_names_its_status(
    env: Env, status: int, way: str, body: str
) -> None:
    """Whatever its body is: an answer that is not yet made may look like one."""
    env.gateway.always(Body(status, {"content-type": "application/json"}, body))
    with pytest.raises(MalformedResponseError) as caught:
        env.ask(way, max_retries=0)
    assert caught.value.status_code == status
    assert str(caught.value).startswith(f"the gateway answered {status} with ")


@pytest.mark.parametrize("way", WAYS)
def test_a_redirect_without_a_body_is_told_in_one_sentence(env: Env, way: str) -> None:
    """The message ends with its last word."""
    env.gateway.always(Body(307, {"location": "http://elsewhere/"}))
    with pytest.raises(InvalidRequestError) as caught:
        env.ask(way)
    assert str(caught.value) == (
        "Error code: 307 - not redirected to http://elsewhere/ with the API key."
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_body_in_another_encoding_is_malformed(
    env: Env, way: str, *, is_stream: bool
) -> None:
    """By sync calls and by async ones, and without a status that the server never had.

    The HTTP library of async calls puts one before its message.
    """
    kind = "text/event-stream" if is_stream else "application/json"
    headers = {"content-type": kind, "content-encoding": "gzip"}
    env.gateway.always(Body(200, headers, "not compressed"))
    with pytest.raises(MalformedResponseError) as caught:
        env.ask(way, max_retries=0)
    assert caught.value.status_code is None
    begins = r"the connection to the gateway broke: (Error -3|Can not decode) "
    assert re.match(begins, str(caught.value))


# --- streams that break ---

AZURES_FIRST = 'data: {"event":"update","data":{"text":""}}'
ODD_ERRORS = [
    '{"event":"error"}',
    '{"event":"error","message":null}',
    '{"event":"ERROR","message":"oops"}',
]


def frame(said: str) -> bytes:
    return f"{update(said)}\n\n".encode()


ONE_UPDATE = 'data: {"event":"update","data":{%s}}'
BROKEN: dict[str, tuple[Step, type[Exception]]] = {
    "fin": (Cut(after=2, how="fin"), StreamInterruptedError),
    "rst": (Cut(after=2, how="rst"), StreamInterruptedError),
    "clean end": (Truncate(after=2), StreamInterruptedError),
    "upstream fin": (ErrorEvent("Premature close", after=2), StreamInterruptedError),
    "upstream rst": (ErrorEvent("read ECONNRESET", after=2), StreamInterruptedError),
    "no reason": (Answer("Hello from", finish_reason=None), StreamInterruptedError),
    # Azure's first update has no `finish_reason` key, and finishes nothing.
    "azure": (
        event_stream(AZURES_FIRST, update("Hello from"), END),
        StreamInterruptedError,
    ),
    **{
        name: (event_stream(*frames, END), StreamInterruptedError)
        for name, frames in {
            "no model": [ONE_UPDATE % '"text":"Hello from","model":null'],
            "an empty model": [ONE_UPDATE % '"text":"Hello from","model":""'],
            "no key after a null": [update("Hello"), ONE_UPDATE % '"text":" from"'],
            "a token after a reason": [update("Hello", "stop"), update(" from")],
            "one after a reason without its key": [
                update("Hello", "stop"),
                ONE_UPDATE % '"text":" from"',
            ],
        }.items()
    },
    **{
        event: (
            event_stream(update("Hello from"), f"data: {event}", FAREWELL),
            ServerError,
        )
        for event in ODD_ERRORS
    },
    **{
        str(junk): (
            Body(200, EVENT_STREAM, frame("Hello from") + junk + frame(" there")),
            MalformedResponseError,
        )
        for junk in (b"<html>\r\n<hr>", b"\x81\x07", b":\x81")
    },
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_stream_that_breaks_is_an_error_and_is_not_sent_again(
    env: Env, broken: str
) -> None:
    """After its first token a broken stream raises with the text that was delivered."""
    step, expected = BROKEN[broken]
    env.gateway.always(step)
    chunks: list[Any] = []

    with pytest.raises(expected) as caught:
        env.stream(env.llm(), "hi", into=chunks)

    assert text_of(chunks) == caught.value.delivered == "Hello from"  # type: ignore[attr-defined]
    assert isinstance(caught.value, sdk.GPTRouterStreamingError) is (
        expected is StreamInterruptedError
    )
    assert len(env.gateway.requests) == 1


@pytest.mark.parametrize("way", WAYS)
def test_an_error_says_whether_any_attempt_may_have_run(env: Env, way: str) -> None:
    """A refused last attempt does not hide that the one before it may have run."""
    env.gateway.script(Hangup(), Status(401))
    with pytest.raises(AuthenticationError) as caught:
        env.ask(way)
    assert (caught.value.attempts, caught.value.may_have_run) == (2, True)

    env.gateway.script(Status(429), Status(401))
    with pytest.raises(AuthenticationError) as caught:
        env.ask(way)
    assert (caught.value.attempts, caught.value.may_have_run) == (2, False)


@pytest.mark.parametrize("way", WAYS)
def test_a_key_is_not_shown_by_a_200(env: Env, way: str) -> None:
    """A gateway that quotes the key in an answer does not bring it into a trace."""
    env.gateway.always(ErrorInOk(f"invalid: {KEY}."))
    with pytest.raises(RetryRouterError) as caught:
        env.ask(way)
    shown = f"{caught.value.body} {''.join(traceback.format_exception(caught.value))}"
    assert "invalid: ***." in shown
    assert KEY not in shown


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("provider", ["anthropic", "openai"])
def test_an_empty_answer_of_a_completion_model_is_an_answer(
    env: Env, way: str, provider: str
) -> None:
    """A stream of theirs has no update then, and is not an interrupted one."""
    env.gateway.always(Answer(text=""))
    model = GPTRouterModel(name="claude-2", provider_name=provider)

    answer = env.ask(way, models_priority_list=[model])

    assert (answer.content, answer.response_metadata["model_name"]) == ("", "claude-2")
    assert len(env.gateway.requests) == 1
