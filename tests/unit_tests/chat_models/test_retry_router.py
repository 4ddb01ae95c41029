"""Several chat models as one: who answers, what is told, and what is never told."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol

import openai
import pytest
from langchain.chat_models import init_chat_model
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.language_models import FakeListLLM
from langchain_core.language_models.fake_chat_models import (
    FakeListChatModel,
    GenericFakeChatModel,
)
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field, SecretStr, ValidationError

from langchain_retryrouter import (
    APIConnectionError,
    APITimeoutError,
    CircuitBreaker,
    ContentFilterError,
    GPTRouter,
    MalformedResponseError,
    RateLimitError,
    RetryBudget,
    RetryPolicy,
    RetryRouter,
    RetryRouterError,
    Route,
    StreamInterruptedError,
    UnavailableError,
    UnknownError,
)
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Answer,
    Cut,
    FakeClock,
    FaultyGateway,
    MalformedEvent,
    RecordedRequest,
    Reset,
    Silence,
    SlowFirstToken,
    Stall,
    Status,
    Step,
    ToolCall,
    Truncate,
)
from tests.support.rule_responder import RuleResponder
from tests.unit_tests.conftest import Twin

from .conftest import GPT_4
from .frames import sum_of, text_of

TEXT = "one two three four five"
SHORT = 0.2
"""Seconds of a limit that a test waits for."""


@pytest.fixture
def primary() -> Iterator[FaultyGateway]:
    """The provider that is asked first."""
    with FaultyGateway(answer=Answer(TEXT)) as gateway:
        yield gateway


@pytest.fixture
def backup() -> Iterator[FaultyGateway]:
    """The provider that is asked when the first one cannot answer."""
    with FaultyGateway(answer=Answer(TEXT)) as gateway:
        yield gateway


class OneLoopTwin(Twin):
    """A twin whose async calls share one event loop: `ChatOpenAI` outlives none."""

    runner: asyncio.Runner

    def _run(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)


@pytest.fixture
def models() -> list[ChatOpenAI]:
    """The models of a test, whose connections are closed behind it."""
    return []


@pytest.fixture(params=["sync", "async"])
def twin(request: pytest.FixtureRequest, models: list[ChatOpenAI]) -> Iterator[Twin]:
    """The same test body for both twins."""
    twin = OneLoopTwin(is_async=request.param == "async")
    with asyncio.Runner() as runner:
        object.__setattr__(twin, "runner", runner)
        yield twin
        for model in models:
            clients: Any = (model.http_client, model.http_async_client)
            clients[0].close()
            runner.run(clients[1].aclose())


class NewModel(Protocol):
    """Makes a model of a provider."""

    def __call__(self, gateway: FaultyGateway, name: str) -> ChatOpenAI:
        """The model."""


@pytest.fixture
def model_of(models: list[ChatOpenAI]) -> NewModel:
    """Makes models that repeat nothing by themselves."""

    def model_of(gateway: FaultyGateway, name: str) -> ChatOpenAI:
        model = ChatOpenAI(
            model=name,
            base_url=gateway.openai_url,
            api_key=SecretStr("sk-the-key-of-the-tests"),
            max_retries=0,
            stream_usage=True,
            http_client=openai.DefaultHttpxClient(),
            http_async_client=openai.DefaultAsyncHttpxClient(),
        )
        models.append(model)
        return model

    return model_of


class NewRouter(Protocol):
    """Makes a router of both providers, with these fields besides."""

    def __call__(self, **fields: Any) -> RetryRouter:
        """The router."""


@pytest.fixture
def new_router(
    primary: FaultyGateway,
    backup: FaultyGateway,
    fake_clock: FakeClock,
    model_of: NewModel,
) -> NewRouter:
    """Makes routers of the test's providers, on the test's clock."""

    def new_router(**fields: Any) -> RetryRouter:
        settings: dict[str, Any] = {
            "routes": [model_of(primary, "first"), model_of(backup, "second")],
            "clock": fake_clock,
        }
        return RetryRouter(**{**settings, **fields})

    return new_router


def asked(*gateways: FaultyGateway) -> tuple[int, ...]:
    return tuple(len(gateway.requests) for gateway in gateways)


def told(message: Any) -> list[tuple[str, str]]:
    """Route and outcome of each line of the ledger."""
    lines = message.response_metadata["retryrouter"]["attempts"]
    return [(line["route"], line["outcome"]) for line in lines]


def answer_of(twin: Twin, way: str, router: Any, *args: Any) -> Any:
    answer = getattr(twin, way)(router, *args)
    return sum_of(answer) if way == "stream" else answer


# --- who answers ---


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_a_healthy_route_answers_alone(
    twin: Twin,
    new_router: NewRouter,
    primary: FaultyGateway,
    backup: FaultyGateway,
    way: str,
    model_of: NewModel,
) -> None:
    """Without a fault a router is its first route: same text, usage and model."""
    answer = answer_of(twin, way, new_router(), "hi")
    bare = answer_of(twin, way, model_of(primary, "first"), "hi")

    assert answer.content == bare.content
    assert answer.usage_metadata == bare.usage_metadata
    assert answer.response_metadata["model_name"] == "first"
    assert answer.response_metadata["finish_reason"] == "stop"
    assert told(answer) == [("first", "ok")]
    assert asked(primary, backup) == (2, 0)


FAULTS: list[tuple[Step, list[tuple[str, str]], tuple[int, int]]] = [
    (Status(429), [("first", "rate_limit")] * 3 + [("second", "ok")], (3, 1)),
    (Status(500), [("first", "server_error")] * 3 + [("second", "ok")], (3, 1)),
    (Status(503), [("first", "unavailable")] * 3 + [("second", "ok")], (3, 1)),
    (Reset(), [("first", "connection")] * 3 + [("second", "ok")], (3, 1)),
    (
        Status(429, error_code="insufficient_quota"),
        [("first", "quota"), ("second", "ok")],
        (1, 1),
    ),
    (Status(401), [("first", "authentication"), ("second", "ok")], (1, 1)),
    (Status(404), [("first", "not_found"), ("second", "ok")], (1, 1)),
    (
        Status(400, error_code="context_length_exceeded"),
        [("first", "context_overflow"), ("second", "ok")],
        (1, 1),
    ),
    (
        Status(429, {"retry-after": "3600"}),
        [("first", "rate_limit"), ("second", "ok")],
        (1, 1),
    ),
]


@pytest.mark.parametrize("way", ["invoke", "stream"])
@pytest.mark.parametrize(
    ("fault", "attempt_log", "requests"),
    FAULTS,
    ids=[
        "429",
        "500",
        "503",
        "reset",
        "quota",
        "401",
        "404",
        "context",
        "long-retry-after",
    ],
)
def test_a_sick_route_is_followed_by_the_next(
    twin: Twin,
    new_router: NewRouter,
    primary: FaultyGateway,
    backup: FaultyGateway,
    way: str,
    fault: Step,
    attempt_log: list[tuple[str, str]],
    requests: tuple[int, int],
) -> None:
    """The table decides how often the first is asked; then the second one answers."""
    primary.always(fault)

    answer = answer_of(twin, way, new_router(), "hi")

    assert told(answer) == attempt_log
    assert asked(primary, backup) == requests
    assert answer.response_metadata["model_name"] == "second"
    assert answer.response_metadata["retryrouter"]["route"] == "second"
    assert json.loads(json.dumps(answer.response_metadata))


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_a_refusal_is_not_routed_around(
    twin: Twin,
    new_router: NewRouter,
    primary: FaultyGateway,
    backup: FaultyGateway,
    way: str,
) -> None:
    """What a content filter forbids ends the call in the provider's words."""
    primary.always(Status(400, error_code="content_policy_violation"))

    with pytest.raises(ContentFilterError):
        getattr(twin, way)(new_router(), "hi")

    assert asked(primary, backup) == (1, 0)


@pytest.mark.parametrize("way", ["invoke", "stream"])
@pytest.mark.parametrize("status", [400, 405, 413, 422, 499, 501])
def test_a_bad_request_may_be_right_on_another_route(
    twin: Twin,
    new_router: NewRouter,
    primary: FaultyGateway,
    backup: FaultyGateway,
    caplog: pytest.LogCaptureFixture,
    way: str,
    status: int,
) -> None:
    """With a route left every bad request goes on; if all fail, the first leads."""
    primary.always(Status(status))
    answer = answer_of(twin, way, new_router(), "hi")
    assert told(answer)[-1] == ("second", "ok")
    if status in {400, 422}:
        assert "route 'first' cannot answer" in caplog.text

    backup.always(Status(404))
    with pytest.raises(RetryRouterError) as caught:
        getattr(twin, way)(new_router(), "hi")
    assert (caught.value.route, caught.value.status_code) == ("first", status)
    assert [other.status_code for other in caught.value.others][-1] == 404


def test_the_table_can_be_overruled(
    twin: Twin, new_router: NewRouter, primary: FaultyGateway
) -> None:
    """`failover_on` sends a kind of failure where the caller wants it."""
    primary.always(Status(400, error_code="content_policy_violation"))

    answer = twin.invoke(new_router(failover_on={"content_filter": "failover"}), "hi")

    assert told(answer) == [("first", "content_filter"), ("second", "ok")]


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_when_nobody_can_answer_the_first_route_speaks(
    twin: Twin,
    new_router: NewRouter,
    primary: FaultyGateway,
    backup: FaultyGateway,
    way: str,
) -> None:
    """The first route's error leads, and has the others with it."""
    primary.always(Status(429))
    backup.always(Status(503))

    with pytest.raises(RateLimitError) as caught:
        getattr(twin, way)(new_router(), "hi")

    error = caught.value
    assert (error.route, error.attempts, error.is_retryable) == ("first", 6, False)
    assert {type(other) for other in error.others} == {
        RateLimitError,
        UnavailableError,
    }
    notes = "\n".join(error.__notes__)
    assert "no route left" in notes
    assert "second: UnavailableError" in notes
    assert asked(primary, backup) == (3, 3)


class Unprintable(Exception):  # noqa: N818 - it is no error of ours
    """An exception whose text and attributes cannot be read."""

    def __str__(self) -> str:
        """Its text raises."""
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


@pytest.mark.parametrize("way", ["invoke", "stream"])
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a token provider failed"),
        ValueError("a wrong value"),
        KeyError("choices"),
        TypeError("unexpected keyword argument 'seed'"),
        AttributeError("'NoneType' object has no attribute 'get'"),
        OSError("no such file"),
        ImportError("pip install somepackage"),
        NotImplementedError("no tools"),
        AssertionError("never"),
        StopIteration("a fake model without answers"),
        asyncio.CancelledError("a task inside the model"),
        Unprintable(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_other_error_of_a_route_is_followed_by_the_next(
    twin: Twin,
    new_router: NewRouter,
    model_of: NewModel,
    backup: FaultyGateway,
    caplog: pytest.LogCaptureFixture,
    way: str,
    error: BaseException,
) -> None:
    """It has the kind "unknown", is in the log, and is the cause if all routes fail."""
    routes = [Raising(error=error), model_of(backup, "second")]

    answer = answer_of(twin, way, new_router(routes=routes), "hi")

    assert told(answer) == [("Raising", "unknown"), ("second", "ok")]
    assert "route 'Raising' cannot answer" in caplog.text
    backup.always(Status(503))
    with pytest.raises(UnknownError) as caught:
        getattr(twin, way)(new_router(routes=routes), "hi")
    cause = caught.value.__cause__  # A coroutine makes another error of StopIteration.
    assert error in {cause, cause and cause.__cause__}
    assert isinstance(caught.value.others[-1], UnavailableError)


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_a_later_routes_bug_hides_no_providers_failure(
    twin: Twin,
    new_router: NewRouter,
    model_of: NewModel,
    primary: FaultyGateway,
    way: str,
) -> None:
    """The first route's failure leads, whatever the others raise."""
    primary.always(Status(503))
    routes = [model_of(primary, "first"), Raising(error=TypeError("a bug"))]

    with pytest.raises(UnavailableError) as caught:
        getattr(twin, way)(new_router(routes=routes), "hi")

    assert [type(other) for other in caught.value.others][-1] is UnknownError


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)], ids=repr)
@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_what_ends_the_program_passes(
    new_router: NewRouter, way: str, error: BaseException
) -> None:
    """Ctrl-C and `sys.exit` inside a model are nothing to route around."""
    router = new_router(
        routes=[Raising(error=error), FakeListChatModel(responses=["b"])]
    )
    with pytest.raises(type(error)):
        list(getattr(router, way)("hi"))


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_an_error_of_the_callers_callback_passes(
    twin: Twin, new_router: NewRouter, backup: FaultyGateway, way: str
) -> None:
    """A handler that raises is the caller's own, and another route no cure."""

    class Broken(BaseCallbackHandler):
        raise_error = True
        run_inline = True

        def on_llm_new_token(self, *_: Any, **__: Any) -> None:
            msg = "the caller's own"
            raise LookupError(msg)

        def on_chat_model_start(self, *_: Any, **__: Any) -> None:
            if way == "invoke":
                self.on_llm_new_token()

    with pytest.raises(LookupError, match="the caller's own"):
        getattr(twin, way)(new_router(), "hi", {"callbacks": [Broken()]})
    assert len(backup.requests) == 0


# --- streams ---


@pytest.mark.parametrize(
    "fault",
    [Cut(after=2), Cut(after=2, how="rst"), Truncate(after=2), MalformedEvent(at=2)],
    ids=["fin", "rst", "clean", "malformed"],
)
def test_a_stream_that_breaks_tells_what_was_delivered(
    twin: Twin, new_router: NewRouter, primary: FaultyGateway, fault: Step
) -> None:
    """With "error" nothing is repeated after a token, and a part is no whole."""
    primary.script(fault)
    chunks: list[Any] = []

    router = new_router(stream_recovery="error")
    with pytest.raises((StreamInterruptedError, MalformedResponseError)) as caught:
        twin.stream(router, "hi", into=chunks)

    assert caught.value.delivered == text_of(chunks) != ""
    assert len(primary.requests) == 1


@pytest.mark.parametrize(
    "fault",
    [Cut(after=2), Cut(after=2, how="rst"), Truncate(after=2), MalformedEvent(at=2)],
    ids=["fin", "rst", "clean", "malformed"],
)
def test_a_stream_that_is_held_back_is_repeated(
    twin: Twin,
    new_router: NewRouter,
    primary: FaultyGateway,
    backup: FaultyGateway,
    fault: Step,
    model_of: NewModel,
) -> None:
    """With "buffer" the caller gets the whole answer, whatever became of the first."""
    primary.script(fault)

    summed = sum_of(twin.stream(new_router(stream_recovery="buffer"), "hi"))
    whole = twin.invoke(model_of(primary, "first"), "hi")

    assert summed.content == whole.content
    assert summed.usage_metadata == whole.usage_metadata
    assert asked(primary, backup) == (3, 0)


@pytest.mark.parametrize("recovery", ["error", "buffer", "continue"])
def test_silence_before_the_first_token_is_left_at_once(
    twin: Twin,
    new_router: NewRouter,
    primary: FaultyGateway,
    backup: FaultyGateway,
    recovery: str,
) -> None:
    """A route that says nothing in time is asked once, and the next one answers."""
    primary.always(Silence(5))
    policy = RetryPolicy(first_token_timeout=SHORT)
    router = new_router(retry_policy=policy, stream_recovery=recovery)

    summed = sum_of(twin.stream(router, "hi"))

    assert told(summed) == [("first", "timeout"), ("second", "ok")]
    assert asked(primary, backup) == (1, 1)


def test_a_stream_that_stalls_while_held_back_is_left(
    twin: Twin, new_router: NewRouter, primary: FaultyGateway
) -> None:
    """With "buffer" the stall limit holds from the first token on, and fails over."""
    primary.always(Stall(after=2, seconds=5))
    policy = RetryPolicy(stall_timeout=SHORT, first_token_timeout=4)
    router = new_router(retry_policy=policy, stream_recovery="buffer")

    summed = sum_of(twin.stream(router, "hi"))

    assert told(summed) == [("first", "timeout"), ("second", "ok")]


# --- continued ---


def no_prefill(request: RecordedRequest) -> Step:
    """Refuses what ends with the assistant's own words."""
    last = request.parameters["messages"][-1]["role"]
    return Status(400) if last == "assistant" else Answer()


@pytest.fixture
def continuing(
    new_router: NewRouter,
    model_of: NewModel,
    primary: FaultyGateway,
    backup: FaultyGateway,
) -> NewRouter:
    """Makes routers, which continue by default; the fields are the second route's."""

    def continuing(**fields: Any) -> RetryRouter:
        second = Route(model=model_of(backup, "second"), **fields)
        return new_router(routes=[model_of(primary, "first"), second])

    return continuing


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
    twin: Twin,
    continuing: NewRouter,
    primary: FaultyGateway,
    backup: FaultyGateway,
    supports_prefill: bool,
    steps: list[Any],
    last_roles: list[str],
) -> None:
    """With "continue" another route goes on where the text ends, no word twice."""
    primary.script(Cut(after=2))
    backup.script(*steps)
    router = continuing(supports_prefill=supports_prefill)

    summed = sum_of(twin.stream(router, "hi"))

    assert summed.content == TEXT
    sent = [request.parameters["messages"][-1] for request in backup.requests]
    assert [message["role"] for message in sent] == last_roles
    lines = summed.response_metadata["retryrouter"]["attempts"]
    assert [line.get("continued_at") for line in lines] == [None, 7]
    assert ("rejected" in lines[1]) == (len(steps) > 1)
    assert summed.response_metadata["model_name"] == "second"


def test_another_answer_is_not_stitched_to_the_first(
    twin: Twin, continuing: NewRouter, primary: FaultyGateway, backup: FaultyGateway
) -> None:
    """An answer that begins otherwise cannot go on; the first failure is told."""
    primary.always(Cut(after=2))
    backup.always(Answer("uno dos tres"))
    router = continuing()
    chunks: list[Any] = []

    with pytest.raises(StreamInterruptedError) as caught:
        twin.stream(router, "hi", into=chunks)

    assert caught.value.route == "first"
    assert caught.value.delivered == text_of(chunks) == "one two"
    assert "another answer" in "".join(map(str, caught.value.others))


def test_a_prefill_that_is_refused_never_hides_the_first_failure(
    twin: Twin, continuing: NewRouter, primary: FaultyGateway, backup: FaultyGateway
) -> None:
    """A 400 to a continuation is ours; the error is that of the stream that broke."""
    primary.always(Cut(after=2))
    backup.always(Status(400))
    router = continuing(supports_prefill=True)

    with pytest.raises(StreamInterruptedError) as caught:
        twin.stream(router, "hi")

    assert caught.value.route == "first"
    assert caught.value.delivered == "one two"


def test_a_stream_may_break_more_than_once(
    twin: Twin, continuing: NewRouter, primary: FaultyGateway, backup: FaultyGateway
) -> None:
    """What two routes said counts together, and is continued by whoever is left."""
    primary.script(Cut(after=1))
    backup.script(Cut(after=3), Answer())
    router = continuing()

    assert text_of(twin.stream(router, "hi")) == TEXT


def test_tool_calls_are_never_continued(
    twin: Twin, continuing: NewRouter, primary: FaultyGateway, backup: FaultyGateway
) -> None:
    """Half a tool call has no other half elsewhere."""
    call = ToolCall("look", ('{"a', '": 1}'))
    primary.always(Answer(tool_calls=(call,), finish_reason=None))
    router = continuing()

    with pytest.raises(StreamInterruptedError):
        twin.stream(router, "hi", tools=[TOOL])

    assert asked(primary, backup) == (1, 0)


# --- hedged ---


@pytest.mark.parametrize(
    ("first", "second", "attempt_log"),
    [
        (SlowFirstToken(5), None, [("first", "cancelled"), ("second", "ok")]),
        (
            SlowFirstToken(3 * SHORT),
            Status(503),
            [("first", "ok"), ("second", "unavailable")],
        ),
        (
            SlowFirstToken(3 * SHORT),
            SlowFirstToken(5),
            [("first", "ok"), ("second", "cancelled")],
        ),
        (None, None, [("first", "ok")]),
    ],
    ids=["second-wins", "second-fails", "first-wins", "in-time"],
)
def test_whoever_speaks_first_is_heard(
    twin: Twin,
    new_router: NewRouter,
    primary: FaultyGateway,
    backup: FaultyGateway,
    first: Step | None,
    second: Step | None,
    attempt_log: list[tuple[str, str]],
) -> None:
    """A stream that says nothing is asked of the next route too, and told once."""
    for gateway, step in ((primary, first), (backup, second)):
        gateway.always(step or Answer())

    summed = sum_of(twin.stream(new_router(hedge_after=SHORT), "hi"))

    assert summed.content == TEXT
    assert told(summed) == attempt_log
    served = next(route for route, outcome in attempt_log if outcome == "ok")
    assert summed.response_metadata["model_name"] == served
    lines = summed.response_metadata["retryrouter"]["attempts"]
    assert [line["route"] for line in lines if "usage" in line] == [served]


def test_when_both_fail_the_first_speaks(
    twin: Twin, new_router: NewRouter, primary: FaultyGateway, backup: FaultyGateway
) -> None:
    """A race that nobody wins is lost with the first route's error."""
    primary.always(Silence(3 * SHORT))  # which ends in a closed connection
    backup.always(Status(503))
    router = new_router(hedge_after=SHORT, retry_policy=RetryPolicy(max_retries=0))

    with pytest.raises(APIConnectionError) as caught:
        twin.stream(router, "hi")

    assert caught.value.route == "first"
    assert asked(primary, backup) == (1, 1)


def test_the_losers_connection_is_closed(
    new_router: NewRouter,
    models: list[ChatOpenAI],
    primary: FaultyGateway,
    backup: FaultyGateway,
) -> None:
    """In async code the provider sees at once that nobody listens any longer."""
    primary.always(SlowFirstToken(30))

    async def run() -> None:
        chunks = [chunk async for chunk in new_router(hedge_after=SHORT).astream("hi")]
        assert text_of(chunks) == TEXT
        await primary.await_for(
            lambda gateway: gateway.requests[0].outcome == "client_left"
        )
        for model in models:
            client: Any = model.http_async_client
            await client.aclose()

    asyncio.run(run())
    assert asked(primary, backup) == (1, 1)


def test_a_hedged_stream_keeps_its_limits(
    twin: Twin, new_router: NewRouter, primary: FaultyGateway, backup: FaultyGateway
) -> None:
    """When both say nothing the first-token limit ends the attempt, for both."""
    primary.always(Silence(5))
    backup.always(Silence(5))
    policy = RetryPolicy(max_retries=0, first_token_timeout=5 * SHORT)
    router = new_router(hedge_after=2 * SHORT, retry_policy=policy)

    with pytest.raises(APITimeoutError, match="no first token within"):
        twin.stream(router, "hi")

    assert asked(primary, backup) == (1, 1)


# --- memory ---


def test_a_route_that_is_down_is_left_alone(
    twin: Twin,
    new_router: NewRouter,
    primary: FaultyGateway,
    backup: FaultyGateway,
    fake_clock: FakeClock,
) -> None:
    """Once its breaker is open a route gets a probe now and then, then all again."""
    primary.always(Status(503))
    settings = {"failure_threshold": 3, "recovery_time": 30, "recovery_jitter": 0.0}
    router = new_router(breaker_settings=settings)

    for _ in range(5):
        twin.invoke(router, "hi")
    assert asked(primary, backup) == (3 + 3 + 1, 5)

    fake_clock.advance(31)
    twin.invoke(router, "hi")
    assert asked(primary, backup) == (8, 6)

    fake_clock.advance(31)
    primary.always(Answer())
    answers = [twin.invoke(router, "hi") for _ in range(2)]
    assert [told(answer) for answer in answers] == [[("first", "ok")]] * 2


def test_bound_copies_share_what_is_remembered(
    twin: Twin, new_router: NewRouter, primary: FaultyGateway, backup: FaultyGateway
) -> None:
    """A router with tools bound knows of the outage that the bare one met."""
    primary.always(Status(503))
    router = new_router(breaker_settings={"failure_threshold": 1})
    twin.invoke(router, "hi")

    bound = router.bind_tools([TOOL])
    twin.invoke(bound, "hi")
    twin.invoke(copy.copy(router), "hi")

    assert asked(primary, backup) == (1, 3)


def test_retries_are_bought_and_failovers_are_not(
    twin: Twin, new_router: NewRouter, primary: FaultyGateway, backup: FaultyGateway
) -> None:
    """With an empty budget the next route is asked at once."""
    primary.always(Status(503))

    answer = twin.invoke(new_router(budget=RetryBudget(capacity=1)), "hi")

    assert told(answer) == [("first", "unavailable"), ("second", "ok")]
    assert asked(primary, backup) == (1, 1)


@pytest.mark.parametrize(
    ("strategy", "weights"),
    [("round_robin", (1, 1)), ("weighted", (1, 3)), ("least_latency", (1, 1))],
)
def test_a_strategy_spreads_the_calls_and_can_be_repeated(
    twin: Twin,
    new_router: NewRouter,
    primary: FaultyGateway,
    backup: FaultyGateway,
    strategy: str,
    weights: tuple[float, float],
    model_of: NewModel,
) -> None:
    """Both routes get calls, and with the same seed the same ones."""

    def served() -> list[str]:
        routes = [
            Route(model=model_of(gateway, name), weight=weight)
            for gateway, name, weight in zip(
                (primary, backup), ("first", "second"), weights, strict=True
            )
        ]
        router = new_router(routes=routes, strategy=strategy, seed=7)
        answers = [twin.invoke(router, "hi") for _ in range(12)]
        return [answer.response_metadata["retryrouter"]["route"] for answer in answers]

    first = served()
    assert set(first) == {"first", "second"}
    if strategy != "least_latency":  # which goes by measured times
        assert served() == first


# --- what is seen ---


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_every_retry_and_failover_is_seen(
    twin: Twin, new_router: NewRouter, primary: FaultyGateway, way: str
) -> None:
    """`on_retry` fires once between any two requests, with the error that was met."""
    seen: list[str] = []

    class Seen(BaseCallbackHandler):
        def on_retry(self, retry_state: Any, **_: Any) -> None:
            seen.append(type(retry_state.outcome.exception()).__name__)

    primary.always(Status(503))
    getattr(twin, way)(new_router(), "hi", {"callbacks": [Seen()]})

    assert seen == ["UnavailableError"] * 3


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_usage_is_counted_once_and_for_whoever_served(
    twin: Twin, new_router: NewRouter, primary: FaultyGateway, way: str
) -> None:
    """The totals are the server's, under the name of the model that answered."""
    usage = UsageMetadataCallbackHandler()
    router = new_router()
    first = answer_of(twin, way, router, "hi", {"callbacks": [usage]})
    primary.always(Status(503))
    second = answer_of(twin, way, router, "hi", {"callbacks": [usage]})

    assert {
        name: counted["total_tokens"] for name, counted in usage.usage_metadata.items()
    } == {
        "first": first.usage_metadata["total_tokens"],
        "second": second.usage_metadata["total_tokens"],
    }
    lines = second.response_metadata["retryrouter"]["attempts"]
    assert [line.get("usage", {}).get("total_tokens") for line in lines] == [
        None,
        None,
        None,
        second.usage_metadata["total_tokens"],
    ]


def test_a_batch_keeps_its_order(
    twin: Twin, new_router: NewRouter, primary: FaultyGateway
) -> None:
    """Calls of a batch fail over each for itself."""
    primary.always(Status(503))
    answers = twin.batch(new_router(), ["a", "b", "c"])
    assert [answer.content for answer in answers] == [TEXT] * 3


# --- any chat model ---


def test_models_without_streams_or_ends_are_routes_too(
    twin: Twin, new_router: NewRouter
) -> None:
    """Of a model that never tells the end, the end of its iterator is the end."""
    fake = GenericFakeChatModel(messages=iter([AIMessage("one two")] * 2))
    listed = FakeListChatModel(responses=["three"])

    streamed = sum_of(twin.stream(new_router(routes=[fake]), "hi"))
    whole = twin.invoke(new_router(routes=[listed]), "hi")

    assert streamed.content == "one two"
    assert whole.content == "three"
    assert told(streamed) == [("GenericFakeChatModel", "ok")]


def test_a_gptrouter_is_a_route(twin: Twin, new_router: NewRouter) -> None:
    """Its own ledger is kept inside the line of the attempt that asked it."""
    with FaultyGateway() as gateway:
        gateway.script(Status(503))
        inner = GPTRouter(
            models_priority_list=[GPT_4],
            gpt_router_api_base=gateway.url,
            gpt_router_api_key=SecretStr("sk"),
            max_retries=0,
        )
        router = new_router(routes=[inner, FakeListChatModel(responses=["no"])])
        for answer in (twin.invoke(router, "hi"), sum_of(twin.stream(router, "hi"))):
            assert answer.content == STUB_TEXT
            line = answer.response_metadata["retryrouter"]["attempts"][-1]
            assert [one["outcome"] for one in line["inside"]["attempts"]] == ["ok"]


def test_options_that_are_bound_to_a_model_stay_with_it(
    twin: Twin,
    new_router: NewRouter,
    primary: FaultyGateway,
    backup: FaultyGateway,
    model_of: NewModel,
) -> None:
    """A route's own options go to its provider, and a call's options to all."""
    primary.always(Status(404))
    router = new_router(
        routes=[
            model_of(primary, "first").bind(top_p=0.1),
            Route(model=model_of(backup, "second"), options={"top_p": 0.2}),
        ]
    )

    twin.invoke(router, "hi", stop=["five"], user="ann")

    sent = [gateway.requests[0].parameters for gateway in (primary, backup)]
    assert [one["top_p"] for one in sent] == [0.1, 0.2]
    assert [(one["stop"], one["user"]) for one in sent] == [(["five"], "ann")] * 2


def test_a_history_of_another_provider_survives(
    twin: Twin, new_router: NewRouter, primary: FaultyGateway
) -> None:
    """What only its author can read is left out on the way, and the ledger says so."""
    thought = {"type": "thinking", "thinking": "hm", "signature": "c2lnbmVk"}
    said = {"type": "text", "text": "Oslo."}
    told_by_claude = AIMessage(
        content=[thought, said], response_metadata={"model_provider": "anthropic"}
    )

    answer = twin.invoke(new_router(), ["Where?", told_by_claude, "Why?"])

    sent = primary.requests[0].parameters["messages"]
    assert "hm" not in json.dumps(sent)
    assert "Oslo." in json.dumps(sent)
    assert told_by_claude.content == [thought, said]
    (line,) = answer.response_metadata["retryrouter"]["attempts"]
    assert line["left_out"] == ["thinking"]


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_tools_are_offered_in_each_providers_form(
    twin: Twin,
    new_router: NewRouter,
    way: str,
    model_of: NewModel,
) -> None:
    """Every route gets the tools, and the calls come back through whichever serves."""
    with (
        FaultyGateway(answer=RuleResponder()) as openai,
        FaultyGateway(answer=RuleResponder(), gptrouter="hosted") as hosted,
    ):
        openai.always(Status(503))
        inner = GPTRouter(
            models_priority_list=[GPT_4],
            gpt_router_api_base=hosted.url,
            gpt_router_api_key=SecretStr("sk"),
        )
        router = new_router(routes=[model_of(openai, "first"), inner])

        answer = answer_of(
            twin, way, router.bind_tools([TOOL], tool_choice="any"), "look at 'Oslo'"
        )

    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("look", {"at": "Oslo"})
    assert [name for name, _ in told(answer)] == ["first"] * 3 + ["gpt-4-0613"]


def test_structured_output_survives_a_failover(
    twin: Twin,
    new_router: NewRouter,
    model_of: NewModel,
) -> None:
    """`with_structured_output` works over whichever route answers."""
    with FaultyGateway(answer=RuleResponder()) as gateway:
        gateway.script(Status(401))
        router = new_router(
            routes=[model_of(gateway, "first"), model_of(gateway, "second")]
        )
        told = twin.invoke(router.with_structured_output(Seat), "row 7, in JSON")

    assert told == Seat(row=7)


class Seat(BaseModel):
    """A seat."""

    row: int


TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look at a place.",
        "parameters": {
            "type": "object",
            "properties": {"at": {"type": "string"}},
            "required": ["at"],
        },
    },
}


# --- construction ---


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"routes": []}, "at least 1 item"),
        ({"routes": 5}, "a list of chat models or Routes, not 5"),
        ({"strategy": "best"}, "'priority', 'weighted', 'least_latency'"),
        ({"failover_on": {"bad_luck": "failover"}}, "failover_on"),
        ({"max_price": 1.0}, "route 'first' has no output_price"),
        ({"retries": 3}, "retries"),
        ({"max_retries": 3}, r"retry_policy=RetryPolicy\(max_retries=3\)"),
        ({"breaker": CircuitBreaker()}, "breaker_settings={'failure_threshold': 5}"),
        ({"breaker_settings": CircuitBreaker()}, "must be numbers of CircuitBreaker"),
        ({"breaker_settings": {"threshold": 5}}, "'threshold'"),
        ({"breaker_settings": {"failure_threshold": 0}}, "failure_threshold must be"),
    ],
    ids=[
        "none",
        "number",
        "strategy",
        "kind",
        "price",
        "unknown",
        "max_retries",
        "breaker",
        "breaker-object",
        "breaker-name",
        "breaker-value",
    ],
)
def test_what_cannot_be_routed_is_refused(
    new_router: NewRouter, fields: dict[str, Any], error: str
) -> None:
    """A router that could not do what it is told is not built."""
    with pytest.raises(ValidationError, match=error):
        new_router(**fields)


@pytest.mark.parametrize(
    ("model", "advice"),
    [
        (5, "must be a LangChain chat model"),
        (FakeListLLM(responses=["a"]), "must be a LangChain chat model"),
        (RunnableLambda(str), "must be a LangChain chat model"),
        ("openai:gpt-4o", r"init_chat_model\('openai:gpt-4o'\)"),
        (init_chat_model(), "name the model there"),
    ],
    ids=["number", "llm", "chain", "name", "configurable"],
)
def test_what_is_no_chat_model_is_no_route(
    new_router: NewRouter, model: Any, advice: str
) -> None:
    """What cannot be routed to is refused with what to do instead."""
    with pytest.raises(TypeError, match=advice):
        new_router(routes=[model])


def test_a_route_without_tools_is_named(new_router: NewRouter) -> None:
    """`bind_tools` says which route has none."""
    router = new_router(routes=[FakeListChatModel(responses=["a"])])
    with pytest.raises(TypeError, match="route 'FakeListChatModel' cannot be offered"):
        router.bind_tools([TOOL])


class Closable(FakeListChatModel):
    """A model with something to close, in both ways or in one."""

    responses: list[str] = Field(default_factory=lambda: ["a"])
    closed: list[str] = Field(default_factory=list)

    def close(self) -> None:
        """Close the sync client."""
        self.closed.append("close")


class AsyncClosable(Closable):
    """A model with an async client as well."""

    async def aclose(self) -> None:
        """Close the async client."""
        self.closed.append("aclose")


def test_closing_a_router_closes_its_models(new_router: NewRouter) -> None:
    """`close`, `aclose`, `with` and `async with` call what the models offer."""
    closed: list[str] = []
    models = [
        FakeListChatModel(responses=["a"]),
        Closable(closed=closed),
        AsyncClosable(closed=closed),
    ]
    router = new_router(routes=models)
    closed = router.routes[1].model.closed  # type: ignore[attr-defined]
    router.routes[2].model.closed = closed  # type: ignore[attr-defined]

    async def close() -> None:
        async with router as entered:
            assert entered is router
        await router.aclose()

    with router as entered:
        assert entered is router
    router.close()
    assert closed == ["close"] * 4
    closed.clear()
    asyncio.run(close())
    assert closed == ["close", "aclose"] * 2


def test_no_route_is_dearer_than_it_may_be(new_router: NewRouter) -> None:
    """With `max_price` a dear route is refused at once, not found on the bill."""
    fake = FakeListChatModel(responses=["a"])
    cheap, dear = (
        Route(model=fake, name=f"for-{price}", output_price=price) for price in (1, 60)
    )
    assert new_router(routes=[cheap], max_price=10).max_price == 10
    with pytest.raises(ValidationError, match="'for-60' has an output_price of 60"):
        new_router(routes=[cheap, dear], max_price=10)


def test_routes_of_one_name_are_told_apart(new_router: NewRouter) -> None:
    """A ledger with two routes of one name would say nothing."""
    fakes = [FakeListChatModel(responses=["a"]) for _ in range(3)]
    names = [route.name for route in new_router(routes=fakes).routes]
    assert names == [
        "FakeListChatModel",
        "FakeListChatModel-2",
        "FakeListChatModel-3",
    ]


def test_a_router_travels(twin: Twin, primary: FaultyGateway) -> None:
    """A pickle has its routes and numbers, and remembers nothing of outages."""
    inner = GPTRouter(
        models_priority_list=[GPT_4],
        gpt_router_api_base=primary.url,
        gpt_router_api_key=SecretStr("sk"),
    )
    router = pickle.loads(pickle.dumps(RetryRouter(routes=[inner])))
    assert twin.invoke(router, "hi").content == TEXT
    assert "sk" not in repr(router).replace("task", "")
