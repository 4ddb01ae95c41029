"""Spans equal the server's requests, also beside OpenInference and LangSmith."""

import asyncio
import functools
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID

import pytest
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.embeddings import Embeddings
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers.langchain import LangChainTracer
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langsmith import Client
from openinference.instrumentation.langchain import LangChainInstrumentor
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import StatusCode
from pydantic import PrivateAttr, SecretStr

from langchain_retryrouter import (
    ContextLengthError,
    EmbeddingsRoute,
    EmbeddingsRouter,
    OpenAI,
    RetryPolicy,
    RetryRouter,
    RetryRouterError,
    Route,
)
from langchain_retryrouter.otel import instrument
from langchain_retryrouter.testing import (
    Answer,
    Cut,
    FakeClock,
    FaultyGateway,
    Silence,
    Stall,
    Status,
    Usage,
)
from tests.support.models import KEY

from .conftest import (
    MODELS,
    PROMPT,
    Env,
    Recorded,
    chat_openai,
    embeddings,
    gpt_router,
    llm,
    router_of,
)

every_model = pytest.mark.parametrize("kind", MODELS)
WAYS = ("invoke", "stream", "batch")


@every_model
@pytest.mark.parametrize("way", WAYS)
def test_a_call_is_a_span_and_each_request_one_below_it(
    env: Env, kind: str, way: str
) -> None:
    """Requests and CLIENT spans agree in number, order, model and outcome."""
    env.gateway.script(Status(503), Status(429), Answer("Yes", usage=Usage(11, 7)))
    model = env.model(kind)
    with env.tracers.get_tracer("users").start_as_current_span("user") as user:
        env.run(model, way)

    assert len(env.attempts) == len(env.gateway.requests) == 3
    assert env.values("gen_ai.request.model") == [
        request.model for request in env.gateway.requests
    ]
    assert env.values("error.type") == ["unavailable", "rate_limit", None]
    assert env.values("retryrouter.outcome") == ["unavailable", "rate_limit", "ok"]
    assert env.values("http.response.status_code") == [503, 429, None]
    assert env.values("retryrouter.attempt") == [1, 2, 3]
    assert env.values("http.request.resend_count") == [None, 1, 2]
    assert env.values("gen_ai.usage.input_tokens") == [None, None, 11]
    assert env.values("gen_ai.usage.output_tokens") == [None, None, 7]
    answered = env.gateway.requests[-1].model
    assert env.values("gen_ai.response.model") == [None, None, answered]
    assert env.values("gen_ai.response.finish_reasons") == [None, None, ("stop",)]
    call = env.call
    assert env.values("gen_ai.response.model", call) == [answered]
    assert call.name == env.attempts[-1].name
    assert call.parent is not None
    assert call.parent.span_id == user.get_span_context().span_id
    for attempt in env.attempts:
        assert attempt.parent is not None
        assert attempt.parent.span_id == call.context.span_id
    assert env.values("retryrouter.attempts", call) == [3]
    assert env.values("gen_ai.usage.input_tokens", call) == [None]
    assert call.status.status_code is StatusCode.UNSET
    ended = [span.name for span in env.finished]
    assert ended[-2:] == [call.name, "user"]


@pytest.mark.parametrize("way", ["documents", "query"])
def test_requests_for_embeddings_have_spans(env: Env, way: str) -> None:
    """Embeddings are traced as well, by an operation of their own."""
    with FaultyGateway(gptrouter="hosted") as gateway:
        gateway.script(Status(503))
        model = embeddings(gateway, env.clock)
        given = [PROMPT] if way == "documents" else PROMPT
        env.twin.call(model, f"embed_{way}", given)
        assert len(env.attempts) == len(gateway.requests) == 2
    assert env.values("gen_ai.operation.name") == ["embeddings"] * 2
    assert env.call.name == "embeddings text-embedding-3-small"
    assert env.total("gen_ai.client.embeddings.duration") == 1


@every_model
def test_an_attempt_ends_before_the_wait_for_the_next(env: Env, kind: str) -> None:
    """While a call waits, the span of the attempt that failed has been exported."""
    ended: list[int] = []

    class Watching(FakeClock):
        def sleep(self, seconds: float) -> None:
            ended.append(len(env.finished))
            super().sleep(seconds)

    env.gateway.script(*[Status(503)] * 3)
    env.run(MODELS[kind](env.gateway, Watching()), "invoke")
    assert ended == [1, 2, 3]
    waits = env.values("retryrouter.wait")
    assert waits[-1] is None
    assert any(waits)
    assert env.values("retryrouter.wait", env.call) == [
        sum(wait or 0.0 for wait in waits)
    ]


@every_model
@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_a_failed_call_says_so(env: Env, kind: str, way: str) -> None:
    """A call that fails has the kind of its error, and no message."""
    env.gateway.always(Status(401))
    with pytest.raises(RetryRouterError):
        env.run(kind, way)
    assert len(env.attempts) == len(env.gateway.requests)
    call = env.call
    assert env.values("error.type", call) == ["authentication"]
    assert call.status.status_code is StatusCode.ERROR
    assert call.status.description == "authentication"


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_a_prompt_that_is_too_long_for_all_routes_is_a_failed_call(
    env: Env, way: str
) -> None:
    """Nothing is sent, and the call has its span and its events."""
    model = chat_openai(env.gateway, "gpt-4o", profile={"max_input_tokens": 10})
    router = RetryRouter(routes=[model, model])
    with pytest.raises(ContextLengthError):
        getattr(env.twin, way)(router, "word " * 100)
    assert env.attempts == []
    assert env.values("error.type", env.call) == ["context_overflow"]
    assert [event.name for event in env.call.events] == [
        "retryrouter.route_skipped"
    ] * 2


@pytest.mark.parametrize("kind", ["GPTRouter", "router of ChatOpenAIs", "OpenAIChat"])
def test_a_stream_that_is_closed_early_has_ended_spans(env: Env, kind: str) -> None:
    """Closing a stream ends the call's span and its attempt's, as cancelled."""
    env.gateway.script(Status(503), Stall(after=1, seconds=30))
    model = env.model(kind)

    async def first() -> None:
        chunks = model.astream(PROMPT)
        await anext(chunks)
        await chunks.aclose()
        for route in getattr(model, "routes", ()):
            # An older langchain-openai leaves the connection of such a stream open.
            await route.model.root_async_client.close()

    if env.twin.is_async:
        asyncio.run(first())
    else:
        chunks = model.stream(PROMPT)
        next(chunks)
        chunks.close()
    assert env.values("retryrouter.outcome") == ["unavailable", "cancelled"]
    assert env.values("retryrouter.outcome", env.call) == ["cancelled"]


@pytest.mark.parametrize("kind", ["GPTRouter", "router of ChatOpenAIs", "OpenAIChat"])
async def test_a_cancelled_call_has_ended_spans(
    gateway: FaultyGateway, clock: FakeClock, recorded: Recorded, kind: str
) -> None:
    """Cancelling a task ends the call's span and its attempt's."""
    gateway.always(Silence())
    task = asyncio.create_task(MODELS[kind](gateway, clock).ainvoke(PROMPT))
    await gateway.await_for(lambda gateway: bool(gateway.requests))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert recorded.values("retryrouter.outcome") == ["cancelled"]
    assert recorded.values("retryrouter.outcome", recorded.call) == ["cancelled"]


class Failing(SpanProcessor):
    """A span processor that raises in one of its methods."""

    def __init__(self, method: str) -> None:
        self.method = method

    def on_start(self, *_: Any, **__: Any) -> None:
        self._fail("on_start")

    def on_end(self, *_: Any) -> None:
        self._fail("on_end")

    def _fail(self, method: str) -> None:
        if method == self.method:
            raise RuntimeError(method)


@every_model
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["on_start", "on_end"])
def test_a_failing_span_processor_fails_no_call(
    env: Env, caplog: pytest.LogCaptureFixture, kind: str, way: str, method: str
) -> None:
    """What telemetry raises is logged, and the call is answered and counted."""
    env.tracers.add_span_processor(Failing(method))
    env.gateway.script(Status(503))
    env.run(kind, way)
    assert len(env.gateway.requests) == 2
    assert f"RuntimeError: {method}" in caplog.text
    if method == "on_end":
        assert env.total("gen_ai.client.inference.duration") == 1
        assert env.total("retryrouter.attempt.duration") == 2


def test_an_error_of_the_callers_function_is_other(env: Env) -> None:
    """A call that an error of the caller's own function ends has failed, too."""

    def accept(_message: Any) -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        env.twin.invoke(env.router(gpt_router, accept=accept), PROMPT)
    assert env.values("error.type", env.call) == ["_OTHER"]


def test_a_broken_stream_is_an_attempt_that_failed(env: Env) -> None:
    """A stream that breaks after its first token ends attempt and call as failures."""
    env.gateway.script(Cut(after=2))
    with pytest.raises(RetryRouterError):
        env.twin.stream(gpt_router(env.gateway, clock=env.clock), PROMPT)
    assert env.values("error.type") == ["interrupted"]
    assert env.values("error.type", env.call) == ["interrupted"]


def test_a_continued_stream_is_one_call(env: Env) -> None:
    """Both attempts are below one span, which has an event of the continuation."""
    env.gateway.script(Cut(after=2))
    router = env.router(chat_openai, stream_recovery="continue")
    env.twin.stream(router, PROMPT)
    assert len(env.attempts) == len(env.gateway.requests) == 2
    assert env.values("error.type") == ["interrupted", None]
    assert env.values("error.type", env.call) == [None]
    events = {event.name: dict(event.attributes or {}) for event in env.call.events}
    assert events["retryrouter.continued"]["retryrouter.route"] == "second"


class Seen(ChatOpenAI):
    """Notes the span that is current where it sends its request."""

    spans: Any

    def _note(self) -> None:
        span = trace.get_current_span().get_span_context().span_id
        self.spans[self.model_name] = span

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        self._note()
        yield from super()._stream(*args, **kwargs)

    async def _astream(
        self, *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        self._note()
        async for chunk in super()._astream(*args, **kwargs):
            yield chunk


def test_hedged_streams_have_a_span_each(env: Env) -> None:
    """The second stream's span begins while the first one's is open; events say so.

    Each is current where its request is sent.
    """
    env.gateway.script(Silence(), model="gpt-4")
    spans: dict[str, int] = {}

    seen = functools.partial(chat_openai, cls=Seen, spans=spans)
    env.twin.stream(router_of(env.gateway, None, seen, hedge_after=0.1), PROMPT)
    assert env.values("gen_ai.request.model") == ["gpt-4", "gpt-4o"]
    assert env.values("retryrouter.outcome") == ["cancelled", "ok"]
    first, second = env.attempts
    assert (second.start_time or 0) < (first.end_time or 0)
    assert spans == {"gpt-4": first.context.span_id, "gpt-4o": second.context.span_id}
    names = [event.name for event in env.call.events]
    assert names == ["retryrouter.hedge_began", "retryrouter.hedge_settled"]
    assert env.values("retryrouter.route", env.call) == ["second"]


def test_breakers_and_skipped_routes_are_events(env: Env) -> None:
    """The call that opens a breaker says so, and the next one that it was skipped."""
    env.gateway.always(Status(503), model="gpt-4")
    router = env.router(
        gpt_router,
        breaker_settings={"failure_threshold": 1},
        retry_policy=RetryPolicy(max_retries=0),
    )
    env.twin.invoke(router, PROMPT)
    env.twin.invoke(router, PROMPT)
    found = [
        {event.name: dict(event.attributes or {}) for event in call.events}
        for call in env.calls
    ]
    route = {"retryrouter.route": "first"}
    assert found == [
        {"retryrouter.breaker_changed": {**route, "retryrouter.now": "open"}},
        {"retryrouter.route_skipped": {**route, "retryrouter.reason": "circuit_open"}},
    ]


@pytest.mark.parametrize("limit", [None, 30.0])
@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_spans_made_inside_a_model_are_children_of_the_attempt(
    env: Env, limit: float | None, way: str
) -> None:
    """The attempt is current where the request is sent, also in a worker thread."""
    seen: list[tuple[int, str]] = []

    def key() -> str:
        current = trace.get_current_span().get_span_context().span_id
        seen.append((current, threading.current_thread().name))
        return KEY

    with FaultyGateway() as gateway:
        gateway.script(Status(503))
        model = OpenAI(
            base_url=gateway.openai_url,
            api_key=key,
            clock=FakeClock(),
            retry_policy=RetryPolicy(
                attempt_timeout=limit, first_token_timeout=limit, max_retries=2
            ),
        )
        env.run(model, way)
        assert not trace.get_current_span().get_span_context().is_valid
    spans = [attempt.context.span_id for attempt in env.attempts]
    assert list(dict.fromkeys(span for span, _ in seen)) == spans
    assert len(spans) == 2
    in_worker = any("retryrouter-worker" in thread for _, thread in seen)
    assert in_worker is (limit is not None and not env.twin.is_async)


def test_a_nested_router_has_spans_and_its_attempts_below(env: Env) -> None:
    """CLIENT spans equal the requests also where a route is a router itself."""
    env.gateway.script(Status(401), Answer("Yes", usage=Usage(11, 7)))
    policy = RetryPolicy(max_retries=0)
    inner = env.router(gpt_router, retry_policy=policy)
    outer = RetryRouter(routes=[Route(model=inner, name="inner")], clock=env.clock)
    env.twin.invoke(outer, PROMPT)
    assert len(env.attempts) == len(env.gateway.requests) == 2
    tokens = env.values("gen_ai.usage.input_tokens")
    assert sum(count or 0 for count in tokens) == 11
    assert env.total("gen_ai.client.inference.usage.input_tokens") == 11


def test_a_judge_inside_accept_is_a_call_of_its_own(env: Env) -> None:
    """A model that judges answers is traced below the attempt that it judges."""
    judge = gpt_router(env.gateway, "judge", max_retries=0)

    async def ajudged(_message: Any) -> bool:
        return bool((await judge.ainvoke("Is it good?")).content)

    def judged(_message: Any) -> bool:
        return bool(judge.invoke("Is it good?").content)

    accept = ajudged if env.twin.is_async else judged
    router = env.router(gpt_router, accept=accept)
    env.twin.invoke(router, PROMPT)
    assert len(env.attempts) == len(env.gateway.requests) == 2
    inner, outer = env.calls
    assert inner.name == "chat judge"
    assert inner.parent is not None
    assert inner.parent.span_id == env.attempts[0].context.span_id
    assert outer.name == "chat gpt-4"


@every_model
def test_threads_and_batches_keep_their_parents(env: Env, kind: str) -> None:
    """Each call of a batch is a child of the span that was current."""
    with env.tracers.get_tracer("users").start_as_current_span("user") as user:
        env.twin.batch(env.model(kind), ["a", "b"])
    assert len(env.attempts) == len(env.gateway.requests)
    parents = {call.parent.span_id for call in env.calls if call.parent}
    assert parents == {user.get_span_context().span_id}


@every_model
def test_neither_prompts_nor_keys_are_recorded(env: Env, kind: str) -> None:
    """Spans and metrics have no text of prompts, answers or errors, and no key."""
    env.gateway.script(Status(503, body={"error": {"message": f"{KEY} {PROMPT}"}}))
    env.gateway.always(Answer("the secret of the answer"))
    model = env.model(kind)
    env.run(model, "invoke")
    env.run(model, "stream")
    assert len(env.attempts) == 3
    for secret in (KEY, "secret of the"):
        assert secret not in env.everything


@pytest.mark.parametrize("model", [123, ["a"], {"a": 1}])
def test_a_models_name_of_another_type_is_the_servers_to_refuse(
    env: Env, model: Any
) -> None:
    """Whatever is given as a model is sent, and recorded as text."""
    made = llm("OpenAI", env.gateway, env.clock)
    with pytest.raises(RetryRouterError) as caught:
        env.twin.invoke(made, PROMPT, model=model)
    assert caught.value.kind.value == "invalid_request"
    assert env.values("gen_ai.request.model") == [str(model)]


def test_instrumenting_twice_records_once(env: Env) -> None:
    """The later call takes the place of the earlier one, which ends nothing then."""
    first = instrument(env.tracers, env.meters)
    second = instrument(env.tracers, env.meters)
    first.uninstrument()
    model = gpt_router(env.gateway, clock=env.clock)
    env.twin.invoke(model, PROMPT)
    assert len(env.attempts) == 1
    second.uninstrument()
    second.uninstrument()
    env.twin.invoke(model, PROMPT)
    assert len(env.attempts) == 1


def test_a_request_that_is_sent_again_in_another_form_has_its_own_span(
    env: Env,
) -> None:
    """A prefill that the provider refuses costs a request more, and no attempt."""
    env.gateway.script(Cut(after=2), Status(400))
    routes = [
        Route(model=chat_openai(env.gateway, name), supports_prefill=True)
        for name in ("first", "second")
    ]
    router = RetryRouter(routes=routes, stream_recovery="continue", clock=env.clock)
    env.twin.stream(router, PROMPT)
    assert len(env.attempts) == len(env.gateway.requests) == 3
    assert env.values("retryrouter.attempt") == [1, 2, 2]
    assert env.values("http.request.resend_count") == [None, 1, 2]
    assert env.values("error.type") == ["interrupted", "invalid_request", None]


class Stale(ChatOpenAI):
    """Fails once after its request, as on a connection of a closed event loop."""

    _is_stale: bool = PrivateAttr(default=True)

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        return self._checked(super()._generate(*args, **kwargs))

    async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
        return self._checked(await super()._agenerate(*args, **kwargs))

    def _checked(self, result: ChatResult) -> ChatResult:
        was_stale, self._is_stale = self._is_stale, False
        if was_stale:
            msg = "Event loop is closed"
            raise RuntimeError(msg)
        return result


def test_a_request_on_a_connection_of_a_closed_loop_has_its_own_span(env: Env) -> None:
    """It is sent again within the attempt, and a server may have seen it."""
    model = chat_openai(env.gateway, "gpt-4o", cls=Stale)
    env.twin.invoke(RetryRouter(routes=[model], clock=env.clock), PROMPT)
    assert len(env.attempts) == len(env.gateway.requests) == 2
    assert env.values("retryrouter.attempt") == [1, 1]
    assert env.values("error.type") == ["connection", None]


@pytest.mark.parametrize("kind", ["OpenAIEmbeddings", "GPTRouterEmbeddings"])
def test_a_router_of_embeddings_has_spans(env: Env, kind: str) -> None:
    """Its requests have a span each, whatever makes the embeddings."""
    with FaultyGateway(gptrouter="hosted") as gateway:
        gateway.script(Status(503))
        model: Embeddings = embeddings(gateway, env.clock)
        if kind == "OpenAIEmbeddings":
            model = OpenAIEmbeddings(
                model="text-embedding-3-small",
                base_url=gateway.openai_url,
                api_key=SecretStr(KEY),
                check_embedding_ctx_length=False,
                default_headers={"connection": "close"},
            )
        routes = [
            EmbeddingsRoute(model=model, name=name) for name in ("first", "second")
        ]
        policy = RetryPolicy(max_retries=0)
        router = EmbeddingsRouter(routes=routes, clock=env.clock, retry_policy=policy)
        env.twin.call(router, "embed_documents", ["a", "b"])
        assert len(env.attempts) == len(gateway.requests) == 2
    assert env.values("retryrouter.route") == ["first", "second"]
    assert env.values("gen_ai.request.model") == ["text-embedding-3-small"] * 2
    assert len(env.calls) == 1


def test_without_the_extra_a_clear_error_says_what_to_install() -> None:
    """The package loads no OpenTelemetry by itself, and says what the module needs."""
    script = (
        "import sys\n"
        "sys.modules['opentelemetry'] = None\n"
        "import langchain_retryrouter._retry.engine\n"
        "assert 'langchain_retryrouter.otel' not in sys.modules\n"
        "import langchain_retryrouter.otel\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "install langchain-retryrouter[otel]" in ran.stderr


pytestmark = pytest.mark.usefixtures("known_surroundings")

ways = pytest.mark.parametrize("way", ["invoke", "stream", "batch"])


@pytest.fixture
def openinference(recorded: Recorded) -> Iterator[None]:
    """Instrument LangChain as OpenInference does."""
    instrumentor = LangChainInstrumentor()
    instrumentor.instrument(tracer_provider=recorded.tracers, skip_dep_check=True)
    yield
    instrumentor.uninstrument()


@pytest.mark.usefixtures("openinference")
@every_model
@ways
def test_calls_are_below_openinferences_span_of_the_model(
    env: Env, kind: str, way: str
) -> None:
    """One tree: chain, model, call, attempts; tokens once in each of both layers."""
    env.gateway.script(Status(503), Answer("Yes", usage=Usage(11, 7)))
    model = env.model(kind)
    env.run(RunnableLambda(lambda prompt: prompt) | model, way)

    kinds = env.values("openinference.span.kind", *env.finished)
    outer = env.finished[kinds.index("LLM")]
    assert kinds.count("LLM") == 1
    assert env.call.parent is not None
    assert env.call.parent.span_id == outer.context.span_id
    assert len(env.attempts) == len(env.gateway.requests) == 2
    assert len({span.context.trace_id for span in env.finished}) == 1
    assert env.values("gen_ai.usage.input_tokens") == [None, 11]
    counted = env.values("llm.token_count.prompt", *env.finished)
    assert [count for count in counted if count is not None] in ([11], [])


class Runs(AsyncCallbackHandler):
    """Keeps the runs that it is told of, by sync and async calls."""

    def __init__(self) -> None:
        self.names: dict[UUID, str] = {}
        self.parents: dict[str, UUID | None] = {}
        self.told: list[tuple[str, str]] = []
        self.models: list[UUID] = []
        self.text = ""

    async def on_chat_model_start(self, *_: Any, run_id: UUID, **__: Any) -> None:
        self.models.append(run_id)

    on_llm_start = on_chat_model_start

    async def on_chain_start(
        self,
        serialized: Any,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        del serialized
        self.names[run_id] = kwargs["name"]
        self.parents[kwargs["name"]] = parent_run_id
        self.told.append(("start", kwargs["name"]))
        self.text += repr(inputs)

    async def on_chain_end(self, outputs: Any, *, run_id: UUID, **_: Any) -> None:
        self.told.append((outputs["outcome"], self.names[run_id]))
        self.text += repr(outputs)

    async def on_chain_error(
        self, error: BaseException, *, run_id: UUID, **_: Any
    ) -> None:
        self.told.append((str(error), self.names[run_id]))


@every_model
@ways
@pytest.mark.parametrize("is_the_models", [False, True])
def test_attempts_are_runs_if_the_model_says_so(
    env: Env, kind: str, way: str, is_the_models: bool
) -> None:
    """With `trace_attempts=True` each attempt is a run of a chain below the model's.

    A handler that the model was made with gets each once, too.
    """
    env.gateway.script(Status(503, body={"error": {"message": PROMPT}}))
    runs = Runs()
    update = {"trace_attempts": True, "callbacks": [runs] * is_the_models}
    model = env.model(kind).model_copy(update=update)
    env.run(model, way, {"callbacks": [runs]})
    first, second = runs.parents
    assert first.startswith("attempt 1: ")
    assert second.startswith("attempt 2: ")
    assert runs.told == [
        ("start", first),
        ("unavailable, status 503", first),
        ("start", second),
        ("ok", second),
    ]
    assert set(runs.parents.values()) == set(runs.models)
    assert PROMPT not in runs.text


class SlowRuns(Runs):
    """Takes its time for the start of one attempt's run."""

    def __init__(self, attempt: int) -> None:
        super().__init__()
        self.slow = f"attempt {attempt}: "
        self.is_starting, self.may_go_on = asyncio.Event(), asyncio.Event()

    async def on_chain_start(self, *args: Any, **kwargs: Any) -> None:
        await super().on_chain_start(*args, **kwargs)
        if kwargs["name"].startswith(self.slow):
            self.is_starting.set()
            await self.may_go_on.wait()


@pytest.mark.parametrize("attempt", [1, 2])
async def test_a_cancelled_call_leaves_no_run_open(attempt: int) -> None:
    """Also if it is cancelled while a handler is told that the attempt begins.

    The second attempt is a hedge, of which handlers hear at the end of the stream.
    """
    runs, slow = SlowRuns(attempt), FakeListChatModel(responses=["late"], sleep=60)
    routes = [slow, FakeListChatModel(responses=["hello"])]
    router = RetryRouter(routes=routes, hedge_after=0.01, trace_attempts=True)

    async def call() -> None:
        _ = [one async for one in router.astream("hi", {"callbacks": [runs]})]

    task = asyncio.create_task(call())
    await runs.is_starting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    runs.may_go_on.set()
    for _ in range(20):
        await FakeClock().asleep(0)
    names = [name for event, name in runs.told if event == "start"]
    assert len(names) == attempt
    assert sorted(name for event, name in runs.told if event != "start") == names


@ways
def test_attempts_are_no_runs_otherwise(env: Env, way: str) -> None:
    """By default handlers see one run, as ever."""
    env.gateway.script(Status(503))
    runs = Runs()
    env.run("GPTRouter", way, {"callbacks": [runs]})
    assert runs.told == []
    assert len(runs.models) == 1


@pytest.fixture
def langsmith(recorded: Recorded) -> Iterator[LangChainTracer]:
    """LangSmith's tracer in a mode in which it exports by OpenTelemetry."""
    client = Client(
        api_url="http://127.0.0.1:1",
        api_key="ls-key",
        tracing_mode="otel",
        otel_tracer_provider=recorded.tracers,
    )
    yield LangChainTracer(client=client, project_name="tests")
    client.close()


@every_model
@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_langsmith_shows_attempts_where_it_loses_events(
    env: Env, langsmith: LangChainTracer, kind: str, way: str
) -> None:
    """In OpenTelemetry mode there is a span for each attempt, and tokens count once."""
    env.gateway.script(Status(503), Answer("Yes", usage=Usage(11, 7)))
    env.run(kind, way, {"callbacks": [langsmith]})
    langsmith.wait_for_futures()
    assert langsmith.client is not None
    langsmith.client.flush()
    theirs = [
        span
        for span in env.finished
        if span.instrumentation_scope and span.instrumentation_scope.name == "langsmith"
    ]
    names = [span.name for span in theirs if span.name.startswith("attempt ")]
    assert [name.split(":")[0] for name in sorted(names)] == ["attempt 1", "attempt 2"]
    tokens = env.values("gen_ai.usage.input_tokens", *theirs)
    assert [count for count in tokens if count] in ([11], [])
    assert KEY not in env.everything
