"""Several chat models as one: who answers, what is told, and what is never told."""

import asyncio
import gc
import json
import traceback
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.language_models.fake_chat_models import (
    FakeListChatModel,
    GenericFakeChatModel,
    ParrotFakeChatModel,
)
from langchain_core.messages import AIMessage
from pydantic import Field, ValidationError

from langchain_retryrouter import (
    APIConnectionError,
    APITimeoutError,
    CircuitBreaker,
    ContentFilterError,
    MalformedResponseError,
    RateLimitError,
    RetryPolicy,
    RetryRouter,
    RetryRouterError,
    Route,
    ServerError,
    StreamInterruptedError,
    UnavailableError,
    UnknownError,
)
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Answer,
    Cut,
    Drip,
    ErrorEvent,
    FaultyGateway,
    MalformedEvent,
    RecordedRequest,
    Silence,
    SlowFirstToken,
    Stall,
    Status,
    Step,
    ToolCall,
    Truncate,
)
from tests.support.models import gpt_router

from .conftest import ENOUGH, SHORT, TEXT, Pair, both_ways
from .frames import attempts_of, sum_of, text_of

FILTERED = Status(400, error_code="content_filter")


def told(message: Any) -> list[tuple[str, str]]:
    """Route and outcome of each attempt."""
    return [(one["route"], one["outcome"]) for one in attempts_of(message)]


# --- who answers ---


@both_ways
def test_a_healthy_route_answers_alone(pair: Pair) -> None:
    """Without a fault a router is its first route: same text, usage and model."""
    answer = pair.ask(pair.router(), "hi")
    bare = pair.ask(pair.model(pair.primary, "first"), "hi")

    assert answer.content == bare.content
    assert answer.usage_metadata == bare.usage_metadata
    assert answer.response_metadata["model_name"] == "first"
    assert answer.response_metadata["finish_reason"] == "stop"
    assert told(answer) == [("first", "ok")]
    assert pair.asked() == (2, 0)


@both_ways
def test_when_nobody_can_answer_the_first_route_speaks(pair: Pair) -> None:
    """The first route's error leads, and has the others with it, also a bug."""
    pair.primary.always(Status(429))
    pair.backup.always(Status(503))
    first, second = (
        pair.model(g, n) for g, n in ((pair.primary, "first"), (pair.backup, "second"))
    )
    router = pair.router(routes=[first, second, Raising(error=TypeError("a bug"))])

    with pytest.raises(RateLimitError) as caught:
        pair.ask(router, "hi")

    error = caught.value
    assert (error.route, error.attempts, error.is_retryable) == ("first", 7, False)
    kinds = [type(other) for other in error.others]
    assert kinds == [RateLimitError] * 2 + [UnavailableError] * 3 + [UnknownError]
    notes = "\n".join(error.__notes__)
    assert "no route left" in notes
    assert notes.count("second: UnavailableError") == 1  # It said the same thrice.
    assert pair.asked() == (3, 3)


class Unprintable(Exception):  # noqa: N818 - it is no error of ours
    """An exception whose text and attributes cannot be read."""

    def __str__(self) -> str:
        raise ValueError

    @property
    def reason(self) -> str:
        """As `urllib.error.URLError` has one."""
        raise ValueError


class Raising(FakeListChatModel):
    """A model whose own code fails in every way of asking it."""

    error: Any
    responses: list[str] = Field(default_factory=list)

    def _call(self, *_: Any, **__: Any) -> str:
        raise self.error

    def _stream(self, *_: Any, **__: Any) -> Iterator[Any]:
        raise self.error

    async def _astream(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        raise self.error
        yield


@both_ways
@pytest.mark.parametrize(
    "error",
    [
        ValueError("a wrong value"),
        KeyError("choices"),
        OSError("no such file"),
        NotImplementedError("no tools"),
        AssertionError("never"),
        StopIteration("a fake model without answers"),
        asyncio.CancelledError("a task inside the model"),
        Unprintable(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_other_error_of_a_route_is_followed_by_the_next(
    pair: Pair, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    """It has the kind "unknown", is in the log, and is the cause if all routes fail."""
    routes = [Raising(error=error), pair.model(pair.backup, "second")]

    router = pair.router(routes=routes, breaker_settings={"failure_threshold": 1})

    for _ in range(2):  # It says nothing about a provider, and opens no breaker.
        answer = pair.ask(router, "hi")
        assert told(answer) == [("Raising", "unknown"), ("second", "ok")]

    assert "route 'Raising' cannot answer" in caplog.text
    pair.backup.always(Status(503))
    with pytest.raises(UnknownError) as caught:
        pair.ask(pair.router(routes=routes), "hi")
    cause = caught.value.__cause__  # A coroutine makes another error of StopIteration.
    assert error in {cause, cause and cause.__cause__}
    assert isinstance(caught.value.others[-1], UnavailableError)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)], ids=repr)
@both_ways
def test_what_ends_the_program_passes(way: str, error: BaseException) -> None:
    """Ctrl-C and `sys.exit` inside a model are nothing to route around."""
    router = RetryRouter(
        routes=[Raising(error=error), FakeListChatModel(responses=["b"])]
    )
    with pytest.raises(type(error)):
        list(getattr(router, way)("hi"))


@both_ways
def test_an_error_of_the_callers_callback_passes(pair: Pair) -> None:
    """A handler that raises is the caller's own, and another route no cure."""

    class Broken(BaseCallbackHandler):
        raise_error = run_inline = True

        def on_llm_new_token(self, *_: Any, **__: Any) -> None:
            raise LookupError

        def on_chat_model_start(self, *_: Any, **__: Any) -> None:
            if pair.way == "invoke":
                raise LookupError

    with pytest.raises(LookupError):
        pair.ask(pair.router(), "hi", {"callbacks": [Broken()]})
    assert not pair.backup.requests


# --- streams ---


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Cut(after=2), StreamInterruptedError),
        (Cut(after=2, how="rst"), StreamInterruptedError),
        (Truncate(after=2), StreamInterruptedError),
        (MalformedEvent(at=2), MalformedResponseError),
        (ErrorEvent("upstream is gone", after=2), ServerError),
    ],
    ids=["fin", "rst", "clean", "malformed", "error event"],
)
def test_a_part_of_a_stream_is_an_error_or_held_back(
    pair: Pair, fault: Step, error: type[RetryRouterError]
) -> None:
    """With "error" it is told, after a token; with "buffer" the stream is repeated."""
    pair.primary.script(fault, fault)
    chunks: list[Any] = []

    with pytest.raises(error) as caught:
        pair.twin.stream(pair.router(stream_recovery="error"), "hi", into=chunks)

    assert caught.value.delivered == text_of(chunks) != ""
    assert pair.asked() == (1, 0)

    summed = sum_of(pair.twin.stream(pair.router(stream_recovery="buffer"), "hi"))
    whole = pair.twin.invoke(pair.model(pair.primary, "first"), "hi")

    assert summed.content == whole.content
    assert summed.usage_metadata == whole.usage_metadata
    assert pair.asked() == (4, 0)


FIRST_LATE = (Silence(5), {"first_token_timeout": ENOUGH})
# Held back, a stream has its stall limit from the first token on.
STALL_LIMITS = {"stall_timeout": ENOUGH, "first_token_timeout": 4}


@pytest.mark.parametrize(
    ("fault", "limits", "recovery"),
    [
        (*FIRST_LATE, "error"),
        (Drip(seconds=0.05), {"first_token_timeout": ENOUGH}, "error"),
        (*FIRST_LATE, "buffer"),
        (*FIRST_LATE, "continue"),
        (Stall(after=2, seconds=5), STALL_LIMITS, "buffer"),
    ],
)
def test_silence_is_left_at_once(
    pair: Pair, fault: Step, limits: dict[str, Any], recovery: str
) -> None:
    """A route that says nothing in time is asked once, and the next one answers."""
    pair.primary.always(fault)
    policy = RetryPolicy(**limits)
    router = pair.router(retry_policy=policy, stream_recovery=recovery)

    summed = sum_of(pair.twin.stream(router, "hi"))

    assert told(summed) == [("first", "timeout"), ("second", "ok")]
    assert pair.asked() == (1, 1)


# --- continued ---


def no_prefill(request: RecordedRequest) -> Step:
    """Refuses what ends with the assistant's own words."""
    last = request.parameters["messages"][-1]["role"]
    return Status(400) if last == "assistant" else Answer()


def continuing(pair: Pair, **fields: Any) -> RetryRouter:
    """A router, which continues by default; the fields are the second route's."""
    second = Route(model=pair.model(pair.backup, "second"), **fields)
    return pair.router(routes=[pair.model(pair.primary, "first"), second])


@pytest.mark.parametrize(
    ("supports_prefill", "steps", "last_roles"),
    [
        (True, [Answer(" three four five")], ["assistant"]),
        (False, [Answer()], ["user"]),
        (True, [no_prefill, no_prefill], ["assistant", "user"]),
    ],
    ids=["prefill", "anew", "prefill-refused"],
)
def test_a_broken_stream_is_continued(
    pair: Pair, supports_prefill: bool, steps: list[Any], last_roles: list[str]
) -> None:
    """With "continue" another route goes on where the text ends, no word twice."""
    pair.primary.script(Cut(after=2))
    pair.backup.script(*steps)
    router = continuing(pair, supports_prefill=supports_prefill)

    summed = sum_of(pair.twin.stream(router, "hi"))

    assert summed.content == TEXT
    sent = [request.parameters["messages"][-1] for request in pair.backup.requests]
    assert [message["role"] for message in sent] == last_roles
    lines = attempts_of(summed)
    assert [line.get("continued_at") for line in lines] == [None, 7]
    assert ("rejected" in lines[1]) == (len(steps) > 1)
    assert summed.response_metadata["model_name"] == "second"


@pytest.mark.parametrize(
    ("step", "told_of_second"),
    [(Answer("uno dos tres"), "another answer"), (Status(400), "400")],
    ids=["another-answer", "prefill-refused"],
)
def test_the_first_failure_is_told_if_nobody_goes_on(
    pair: Pair, step: Step, told_of_second: str
) -> None:
    """Neither another answer nor a 400 to a continuation, which is ours, hides it."""
    pair.primary.always(Cut(after=2))
    pair.backup.always(step)
    router = continuing(pair, supports_prefill=isinstance(step, Status))
    chunks: list[Any] = []

    with pytest.raises(StreamInterruptedError) as caught:
        pair.twin.stream(router, "hi", into=chunks)

    assert caught.value.route == "first"
    assert caught.value.delivered == text_of(chunks) == "one two"
    assert told_of_second in "".join(map(str, caught.value.others))


def test_a_stream_may_break_more_than_once(pair: Pair) -> None:
    """What two routes said counts together, and is continued by whoever is left."""
    pair.primary.script(Cut(after=1))
    pair.backup.script(Cut(after=3), Answer())

    assert text_of(pair.twin.stream(continuing(pair), "hi")) == TEXT


def test_tool_calls_are_never_continued(pair: Pair) -> None:
    """Half a tool call has no other half elsewhere."""
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    call = ToolCall("look", ('{"a', '": 1}'))
    pair.primary.always(Answer(tool_calls=(call,), finish_reason=None))

    with pytest.raises(StreamInterruptedError):
        pair.twin.stream(continuing(pair), "hi", tools=[tool])

    assert pair.asked() == (1, 0)


# --- hedged ---

LATE = SlowFirstToken(SHORT + ENOUGH)


@pytest.mark.parametrize(
    ("first", "second", "attempt_log"),
    [
        (SlowFirstToken(5), None, [("first", "cancelled"), ("second", "ok")]),
        (LATE, Status(503), [("first", "ok"), ("second", "unavailable")]),
        (LATE, SlowFirstToken(5), [("first", "ok"), ("second", "cancelled")]),
        (None, None, [("first", "ok")]),
    ],
    ids=["second-wins", "second-fails", "first-wins", "in-time"],
)
def test_whoever_speaks_first_is_heard(
    pair: Pair,
    first: Step | None,
    second: Step | None,
    attempt_log: list[tuple[str, str]],
) -> None:
    """A stream that says nothing is asked of the next route too, and told once."""
    for gateway, step in ((pair.primary, first), (pair.backup, second)):
        gateway.always(step or Answer())

    hedge_after = SHORT if first else 1e10  # Longer than a thread can wait.
    summed = sum_of(pair.twin.stream(pair.router(hedge_after=hedge_after), "hi"))

    assert summed.content == TEXT
    assert told(summed) == attempt_log
    served = next(route for route, outcome in attempt_log if outcome == "ok")
    assert summed.response_metadata["model_name"] == served
    lines = attempts_of(summed)
    assert [line["route"] for line in lines if "usage" in line] == [served]


@pytest.mark.parametrize(
    ("first", "second", "policy", "error"),
    [
        # The silence ends in a closed connection.
        (Silence(SHORT + ENOUGH), Status(503), {}, APIConnectionError),
        (SlowFirstToken(5), FILTERED, {}, ContentFilterError),
        (Silence(5), Silence(5), {"first_token_timeout": 2 * ENOUGH}, APITimeoutError),
    ],
    ids=["both-fail", "refusal", "both-silent"],
)
def test_a_race_that_nobody_wins(
    pair: Pair,
    first: Step,
    second: Step,
    policy: dict[str, Any],
    error: type[RetryRouterError],
) -> None:
    """The first route's error is told; a refusal ends a race, as the limit does."""
    pair.primary.always(first)
    pair.backup.always(second)
    router = pair.router(
        hedge_after=ENOUGH if policy else SHORT,
        retry_policy=RetryPolicy(max_retries=0, **policy),
    )

    with pytest.raises(error) as caught:
        pair.twin.stream(router, "hi")

    if policy:
        assert "no first token within" in str(caught.value)
    else:
        assert caught.value.route == ("second" if second is FILTERED else "first")
    assert pair.asked() == (1, 1)


def test_the_losers_connection_is_closed(pair: Pair) -> None:
    """In async code the provider sees at once that nobody listens any longer."""
    pair.primary.always(SlowFirstToken(30))

    async def run() -> None:
        chunks = [chunk async for chunk in pair.router(hedge_after=SHORT).astream("hi")]
        assert text_of(chunks) == TEXT
        await pair.primary.await_for(
            lambda gateway: gateway.requests[0].outcome == "client_left"
        )

    asyncio.run(run())
    assert pair.asked() == (1, 1)


# --- memory ---


class Timed(FakeListChatModel):
    """A model whose answers take their time, on the test's clock."""

    clock: Any
    seconds: float

    def _call(self, *_: Any, **__: Any) -> str:
        self.clock.advance(self.seconds)
        return str(self.seconds)


def test_the_fastest_route_is_found_by_its_answers(pair: Pair) -> None:
    """With "least_latency" each route is tried, and then the faster one is asked."""
    routes = [Timed(responses=[""], clock=pair.clock, seconds=s) for s in (2, 1)]
    router = pair.router(routes=routes, strategy="least_latency")

    answers = [pair.twin.invoke(router, "hi").text for _ in range(6)]

    assert sorted(answers[:2]) == ["1.0", "2.0"]
    assert answers[2:] == ["1.0"] * 4


# --- what is seen ---


@both_ways
def test_usage_is_counted_once_and_for_whoever_served(pair: Pair) -> None:
    """The totals are the server's, under the name of the model that answered."""
    usage = UsageMetadataCallbackHandler()
    router = pair.router()
    first = pair.ask(router, "hi", {"callbacks": [usage]})
    pair.primary.always(Status(503))
    second = pair.ask(router, "hi", {"callbacks": [usage]})

    for name, answer in ("first", first), ("second", second):
        tokens = answer.usage_metadata["total_tokens"]
        assert usage.usage_metadata[name]["total_tokens"] == tokens
    assert len(usage.usage_metadata) == 2
    lines = attempts_of(second)
    counted = [line.get("usage", {}).get("total_tokens") for line in lines]
    assert counted == [None] * 3 + [second.usage_metadata["total_tokens"]]


# --- any chat model ---


@both_ways
def test_models_without_streams_or_ends_are_routes_too(pair: Pair) -> None:
    """Of a model that never tells the end, the end of its iterator is the end."""
    endless = GenericFakeChatModel(messages=iter([AIMessage("one two")]))
    for model in (endless, ParrotFakeChatModel()):
        answer = pair.ask(pair.router(routes=[model]), "one two")
        assert answer.content == "one two"
        assert told(answer) == [(type(model).__name__, "ok")]


@both_ways
def test_a_gptrouter_is_a_route(pair: Pair) -> None:
    """Its own attempt log is kept inside the line of the attempt that asked it."""
    with FaultyGateway() as gateway:
        gateway.script(Status(503))
        inner = gpt_router(gateway, "gpt-4", max_retries=0)
        routes = [inner, FakeListChatModel(responses=["no"])]
        answer = pair.ask(pair.router(routes=routes), "hi")
    assert answer.content == STUB_TEXT
    failed, line = attempts_of(answer)
    assert failed["outcome"] == "unavailable"
    assert [one["outcome"] for one in line["inside"]["attempts"]] == ["ok"]


def test_options_that_are_bound_to_a_model_stay_with_it(pair: Pair) -> None:
    """A route's own options go to its provider, and a call's options to all."""
    pair.primary.always(Status(404))
    router = pair.router(
        routes=[
            pair.model(pair.primary, "first").bind(top_p=0.1),
            Route(model=pair.model(pair.backup, "second"), options={"top_p": 0.2}),
        ]
    )

    pair.twin.invoke(router, "hi", stop=["five"], user="ann")

    sent = [gateway.requests[0].parameters for gateway in (pair.primary, pair.backup)]
    assert [one["top_p"] for one in sent] == [0.1, 0.2]
    assert [(one["stop"], one["user"]) for one in sent] == [(["five"], "ann")] * 2


def test_a_history_of_another_provider_survives(pair: Pair) -> None:
    """What only its author can read is left out on the way, and the ledger says so."""
    thought = {"type": "thinking", "thinking": "hm", "signature": "c2lnbmVk"}
    said = {"type": "text", "text": "Oslo."}
    told_by_claude = AIMessage(
        content=[thought, said], response_metadata={"model_provider": "anthropic"}
    )

    answer = pair.twin.invoke(pair.router(), ["Where?", told_by_claude, "Why?"])

    sent = pair.primary.requests[0].parameters["messages"]
    assert "hm" not in json.dumps(sent)
    assert "Oslo." in json.dumps(sent)
    assert told_by_claude.content == [thought, said]
    (line,) = attempts_of(answer)
    assert line["left_out"] == ["thinking"]


# --- construction ---


def priced(*prices: float) -> list[Route]:
    """Routes with these prices of an answer."""
    fake = FakeListChatModel(responses=["a"])
    return [Route(model=fake, name=f"for-{p}", output_price=p) for p in prices]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({"routes": []}, "at least 1 item"),
    "number": ({"routes": 5}, "a list of chat models or Routes, not 5"),
    "strategy": ({"strategy": "best"}, "'priority', 'weighted', 'least_latency'"),
    "kind": ({"failover_on": {"bad_luck": "failover"}}, "failover_on"),
    "price": ({"max_price": 1.0}, "route 'first' has no output_price"),
    "dear": (
        {"routes": priced(1, 60), "max_price": 10},
        "'for-60' has an output_price of 60, and max_price is 10",
    ),
    "unknown": ({"failover": 3}, "no 'failover'; did you mean 'failover_on'"),
    "timeout": ({"timeout": 30}, r"RetryPolicy\(attempt_timeout=30\)"),
    "fallbacks": ({"fallbacks": []}, "give them as routes"),
    "temperature": ({"temperature": 0}, "give it to the models of the routes"),
    "policy": ({"retry_policy": {"retries": 3}}, "did you mean 'max_retries'"),
    "max_retries": ({"max_retries": 3}, r"retry_policy=RetryPolicy\(max_retries=3\)"),
    "breaker": (
        {"breaker": CircuitBreaker()},
        "breaker_settings={'failure_threshold': 5}",
    ),
    "breaker-object": (
        {"breaker_settings": CircuitBreaker()},
        "must be numbers of CircuitBreaker",
    ),
    "breaker-name": ({"breaker_settings": {"threshold": 5}}, "'threshold'"),
    "breaker-value": (
        {"breaker_settings": {"failure_threshold": 0}},
        "failure_threshold must be",
    ),
}


@pytest.mark.parametrize("row", REFUSED)
def test_what_cannot_be_routed_is_refused(pair: Pair, row: str) -> None:
    """A router that could not do what it is told is not built."""
    fields, error = REFUSED[row]
    with pytest.raises(ValidationError, match=error):
        pair.router(**fields)
    pair.router(routes=priced(1), max_price=10)


class Closable(FakeListChatModel):
    """A model that notes what closes it."""

    responses: list[str] = Field(default_factory=lambda: ["a"])
    closed: list[str] = Field(default_factory=list)

    def close(self) -> None:
        self.closed.append("close")


class AsyncClosable(Closable):
    """A model with an async client as well."""

    async def aclose(self) -> None:
        self.closed.append("aclose")


def test_closing_a_router_closes_its_models(pair: Pair) -> None:
    """`close`, `aclose`, `with` and `async with` call what the models offer."""
    models = [FakeListChatModel(responses=["a"]), Closable(), AsyncClosable()]
    router = pair.router(routes=models)

    async def close() -> None:
        async with router as entered:
            assert entered is router
        await router.aclose()

    with router as entered:
        assert entered is router
    router.close()
    asyncio.run(close())
    closed = [vars(route.model).get("closed") for route in router.routes]
    assert closed == [None, ["close"] * 4, ["close"] * 2 + ["aclose"] * 2]


class Careless(FakeListChatModel):
    """Its stream breaks off with an open response, as huggingface_hub's does."""

    opened: list[Any] = Field(default_factory=list)

    def _stream(self, *_: Any, **__: Any) -> Any:
        yield from ()
        response = type("Response", (), {})()
        self.opened.append(weakref.ref(response))
        msg = "the provider reported an error"
        raise ValueError(msg)


def test_an_open_response_does_not_wait_for_the_garbage_collection() -> None:
    """A collection may close it while a pool of httpcore holds its lock, and hang."""
    careless, backup = Careless(responses=[]), FakeListChatModel(responses=["Hello"])
    router = RetryRouter(routes=[careless, backup])
    gc.disable()
    try:
        assert sum_of(list(router.stream("hi"))).content == "Hello"
        with pytest.raises(RetryRouterError) as caught:
            list(RetryRouter(routes=[careless]).stream("hi"))
        assert [response() for response in careless.opened] == [None] * 2
    finally:
        gc.enable()
    assert "in _stream" in "".join(traceback.format_exception(caught.value))
