"""Beside other instrumentation: OpenInference's, and LangSmith by OpenTelemetry."""

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers.langchain import LangChainTracer
from langsmith import Client
from openinference.instrumentation.langchain import LangChainInstrumentor

from langchain_retryrouter import RetryRouter
from langchain_retryrouter.testing import Answer, FakeClock, Status, Usage
from tests.support.models import KEY

from .conftest import MODELS, PROMPT, Env, Recorded

pytestmark = pytest.mark.usefixtures("known_surroundings")

every_model = pytest.mark.parametrize("kind", MODELS)
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
