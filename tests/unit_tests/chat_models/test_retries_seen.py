"""`on_retry` is called for each request of a call but the first, however it is called.

The server counts the requests. Each handler gets each retry once, with the id of its
run, after the failed attempt and before the wait.
"""

import asyncio
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, cast
from uuid import UUID

import pytest
from langchain_core._api import LangChainBetaWarning
from langchain_core.callbacks import (
    AsyncCallbackHandler,
    AsyncCallbackManager,
    BaseCallbackHandler,
    CallbackManager,
)
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from tenacity import RetryCallState

from langchain_retryrouter import (
    APIConnectionError,
    GPTRouter,
    RateLimit,
    RateLimitError,
    RetryRouter,
    UnavailableError,
)
from langchain_retryrouter.chat_models import gpt_router
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Answer,
    FakeClock,
    FaultyGateway,
    RecordedRequest,
    Reset,
    Status,
    Step,
)
from tests.unit_tests.conftest import Twin

from .conftest import GPT_4, Env, NewModel


class Diary:
    """Events of runs in order, and how many requests and waits came before each."""

    def __init__(self, gateway: FaultyGateway, clock: FakeClock) -> None:
        self.gateway = gateway
        self.clock = clock
        self.entries: list[tuple[str, UUID]] = []
        self.states: list[RetryCallState] = []
        self.requests: list[int] = []
        self.sleeps: list[int] = []

    def write(self, event: str, run_id: UUID) -> None:
        self.entries.append((event, run_id))

    def write_retry(self, state: RetryCallState, run_id: UUID) -> None:
        self.write("retry", run_id)
        self.states.append(state)
        self.requests.append(len(self.gateway.requests))
        self.sleeps.append(len(self.clock.sleeps))

    def of(self, event: str) -> list[UUID]:
        return [run_id for name, run_id in self.entries if name == event]

    @property
    def events(self) -> list[str]:
        return [name for name, _ in self.entries]


class Watcher(BaseCallbackHandler):
    """A sync handler that keeps a diary."""

    def __init__(self, diary: Diary) -> None:
        self.diary = diary

    def on_chat_model_start(self, *_: Any, run_id: UUID, **__: Any) -> None:
        self.diary.write("start", run_id)

    def on_retry(self, retry_state: RetryCallState, *, run_id: UUID, **_: Any) -> None:
        self.diary.write_retry(retry_state, run_id)

    def on_llm_end(self, *_: Any, run_id: UUID, **__: Any) -> None:
        self.diary.write("end", run_id)


class AsyncWatcher(AsyncCallbackHandler):
    """An async handler that keeps a diary, slowly."""

    def __init__(self, diary: Diary) -> None:
        self.diary = diary

    async def on_chat_model_start(self, *_: Any, run_id: UUID, **__: Any) -> None:
        self.diary.write("start", run_id)

    async def on_retry(
        self, retry_state: RetryCallState, *, run_id: UUID, **_: Any
    ) -> None:
        for _turn in range(20):
            await FakeClock().asleep(1)
        self.diary.write_retry(retry_state, run_id)

    async def on_llm_end(self, *_: Any, run_id: UUID, **__: Any) -> None:
        self.diary.write("end", run_id)


PROMPTS = ["one", "two", "three"]


@pytest.fixture
def diary(gateway: FaultyGateway, clock: FakeClock) -> Diary:
    return Diary(gateway, clock)


@pytest.fixture(params=[Watcher, AsyncWatcher], ids=["sync-handler", "async-handler"])
def watcher(request: pytest.FixtureRequest, diary: Diary) -> BaseCallbackHandler:
    """A handler of either kind, in sync and in async calls."""
    handler: BaseCallbackHandler = request.param(diary)
    return handler


# --- the ways through LangChain ---

ERRORS = [UnavailableError, APIConnectionError, RateLimitError]
Way = Callable[[Twin, Runnable[Any, Any], RunnableConfig], Any]


def _stream_events(twin: Twin, llm: Runnable[Any, Any], config: RunnableConfig) -> None:
    async def read() -> None:
        events: Any = await llm.astream_events("hi", config, version="v3")
        await events
        # `on_llm_end` is called by a task that the message does not wait for.
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LangChainBetaWarning)
        if twin.is_async:
            asyncio.run(read())
        else:
            events: Any = llm.stream_events("hi", config, version="v3")
            list(events)


WAYS: dict[str, Way] = {
    "invoke": lambda twin, llm, config: twin.invoke(llm, "hi", config),
    "stream": lambda twin, llm, config: twin.stream(llm, "hi", config),
    "unstreamed stream": lambda twin, llm, config: twin.stream(
        cast("GPTRouter", llm).model_copy(update={"disable_streaming": True}),
        "hi",
        config,
    ),
    "batch": lambda twin, llm, config: twin.batch(llm, ["hi"], config),
    "generate": lambda twin, llm, config: twin.generate(
        llm, [[HumanMessage("hi")]], **config
    ),
    "generate_prompt": lambda twin, llm, config: twin.call(
        llm, "generate_prompt", [ChatPromptTemplate(["hi"]).invoke({})], **config
    ),
    "stream_events v3": _stream_events,
    "chain invoke": lambda twin, llm, config: twin.invoke(chain(llm), "hi", config),
    "chain stream": lambda twin, llm, config: twin.stream(chain(llm), "hi", config),
    "chain batch": lambda twin, llm, config: twin.batch(chain(llm), ["hi"], config),
}


def chain(llm: Runnable[Any, Any]) -> Runnable[Any, Any]:
    return ChatPromptTemplate(["{question}"]) | llm | StrOutputParser()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_calling_reports_its_retries(
    env: Env, diary: Diary, watcher: BaseCallbackHandler, way: str, streaming: bool
) -> None:
    """`on_retry` comes for each request but the first, in order, before its wait."""
    env.gateway.script(Status(503), Reset(), Status(429))

    WAYS[way](env, env.llm(streaming=streaming), {"callbacks": [watcher]})

    assert len(env.gateway.requests) == 4
    assert diary.events == ["start", *["retry"] * 3, "end"]
    assert len({run_id for _, run_id in diary.entries}) == 1
    assert [state.attempt_number for state in diary.states] == [1, 2, 3]
    # A state that a handler keeps does not change with the next attempt.
    outcomes = [state.outcome for state in diary.states]
    kept = [type(one.exception()) for one in outcomes if one is not None]
    for error, expected in zip(kept, ERRORS, strict=True):
        assert issubclass(error, expected)
    assert diary.requests == [1, 2, 3]
    assert diary.sleeps == [0, 1, 2]
    waits = [state.next_action.sleep for state in diary.states if state.next_action]
    assert waits == env.clock.sleeps


def failing_first(times: dict[str, int]) -> Callable[[RecordedRequest], Step]:
    """Each prompt fails this many times before it is answered."""
    left = Counter(times)

    def step(request: RecordedRequest) -> Step:
        prompt = request.parameters["messages"][0]["content"]
        left[prompt] -= 1
        return Status(503) if left[prompt] >= 0 else Answer(f"to {prompt}")

    return step


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("way", ["batch", "chain", "generate"])
def test_each_run_of_a_batch_has_its_own_retries(
    env: Env, diary: Diary, watcher: BaseCallbackHandler, way: str, streaming: bool
) -> None:
    """In a batch each retry belongs to the run that was repeated, and to no other."""
    failures = {"one": 0, "two": 1, "three": 3}
    env.gateway.always(failing_first(failures))
    llm = env.llm(streaming=streaming)

    if way == "generate":
        prompts = [[HumanMessage(prompt)] for prompt in PROMPTS]
        env.generate(llm, prompts, callbacks=[watcher])
    else:
        runnable = chain(llm) if way == "chain" else llm
        env.batch(runnable, PROMPTS, {"callbacks": [watcher]})

    assert len(env.gateway.requests) == 3 + 4
    retries = Counter(diary.of("retry"))
    assert sorted(retries[run_id] for run_id in diary.of("start")) == [0, 1, 3]
    assert sorted(map(str, diary.of("end"))) == sorted(map(str, diary.of("start")))


# --- where handlers come from ---


@pytest.mark.parametrize("way", ["invoke", "stream", "chain stream"])
@pytest.mark.parametrize(
    "place", ["constructor", "config", "both", "with_config", "manager"]
)
def test_a_handler_gets_each_event_once(
    env: Env, diary: Diary, watcher: BaseCallbackHandler, place: str, way: str
) -> None:
    """A handler of the model, of the call or of both gets each event once."""
    env.gateway.script(Status(503))
    given = [watcher]
    in_model = place in {"constructor", "both"}
    llm: Runnable[Any, Any] = env.llm(callbacks=given if in_model else None)
    if place == "with_config":
        llm = llm.with_config(callbacks=given)

    in_config = place in {"config", "both"}
    config: RunnableConfig = {"callbacks": given} if in_config else {}
    manager = CallbackManager(given, given)
    if place == "manager":
        config = {"callbacks": manager}
    WAYS[way](env, llm, config)

    assert diary.events == ["start", "retry", "end"]
    assert manager.handlers == given


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_the_config_of_the_caller_is_kept_and_not_changed(
    env: Env, diary: Diary, way: str
) -> None:
    """The run has the id, tags and metadata of a config, which can be used again."""
    env.gateway.always(failing_first({"hi": 2}))
    told: list[dict[str, Any]] = []

    class Notes(Watcher):
        def on_chat_model_start(self, *args: Any, run_id: UUID, **rest: Any) -> None:
            super().on_chat_model_start(*args, run_id=run_id, **rest)
            told.append({"run_id": run_id, **rest})

        def on_retry(self, *_: Any, **facts: Any) -> None:
            told.append(facts)

    handlers: list[BaseCallbackHandler] = [Notes(diary)]
    config: RunnableConfig = {"callbacks": handlers, "tags": ["mine"]}
    config["metadata"] = {"who": "me"}
    run_id = UUID(int=7)

    WAYS[way](env, env.llm(), {**config, "run_id": run_id})
    started, first, second = told
    assert started["run_id"] == first["run_id"] == second["run_id"] == run_id
    assert started["tags"] == first["tags"] == second["tags"] == ["mine"]
    assert started["metadata"]["who"] == "me"
    assert first["parent_run_id"] is None

    WAYS[way](env, env.llm(), config)
    WAYS[way](env, env.llm(), config)
    assert config == {
        "callbacks": handlers,
        "tags": ["mine"],
        "metadata": {"who": "me"},
    }
    assert len(handlers) == 1
    assert len(set(diary.of("start"))) == 3


# --- handlers that raise, or do not listen ---


class Broken(Watcher):
    """Raises from `on_retry`, and asks LangChain to let that out."""

    raise_error = True

    def on_retry(self, *args: Any, **kwargs: Any) -> None:
        super().on_retry(*args, **kwargs)
        msg = "this handler is broken"
        raise RuntimeError(msg)

    def on_custom_event(self, *_: Any, run_id: UUID, **__: Any) -> None:
        self.diary.write("limited", run_id)
        msg = "this handler is broken"
        raise RuntimeError(msg)


@pytest.mark.parametrize("is_inline", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_broken_handler_breaks_nothing(
    env: Env, caplog: pytest.LogCaptureFixture, way: str, is_inline: bool
) -> None:
    """Its exception is logged; the call and the other handlers go on."""
    env.gateway.script(Status(503), Reset())
    diaries = [Diary(env.gateway, env.clock) for _ in range(3)]
    handlers = [Broken(diaries[0]), Watcher(diaries[1]), AsyncWatcher(diaries[2])]
    handlers[0].run_inline = is_inline

    WAYS[way](env, env.llm(), {"callbacks": handlers})

    events = ["start", "retry", "retry", "end"]
    assert [diary.events for diary in diaries] == [events] * 3
    logged = [r for r in caplog.records if "failed in on_retry" in r.getMessage()]
    assert [type(r.exc_info[1]) for r in logged if r.exc_info] == [RuntimeError] * 2


def test_a_broken_handler_breaks_no_wait_for_a_rate_limit(
    env: Env, diary: Diary, caplog: pytest.LogCaptureFixture
) -> None:
    """The custom event `rate_limit_wait` fails no call either."""
    limit = RateLimit(requests_per_minute=60, clock=env.clock)
    llm = env.llm(rate_limit=limit, callbacks=[Broken(diary)])
    env.invoke(llm, "hi")
    env.invoke(llm, "hi")
    assert diary.events == ["start", "end", "start", "limited", "end"]
    assert "failed in on_custom_event" in caplog.text


def test_ignore_retry_is_respected(env: Env, diary: Diary) -> None:
    """A handler with `ignore_retry` gets no retries, and the others do."""

    class Ignoring(Watcher):
        ignore_retry = True

    env.gateway.script(Status(503))
    other = Diary(env.gateway, env.clock)
    env.stream(env.llm(), "hi", {"callbacks": [Ignoring(diary), Watcher(other)]})
    assert diary.events == ["start", "end"]
    assert other.events == ["start", "retry", "end"]


# --- completion_with_retry ---

MESSAGES = [{"role": "user", "content": "hi"}]


def run_managers(twin: Twin, handlers: list[BaseCallbackHandler]) -> Any:
    """The run manager of a run just started, sync or async."""
    serialized: dict[str, Any] = {}
    prompt: list[list[BaseMessage]] = [[HumanMessage("hi")]]
    if not twin.is_async:
        return CallbackManager(handlers).on_chat_model_start(serialized, prompt)[0]
    manager = AsyncCallbackManager(handlers)

    async def start() -> Any:
        return (await manager.on_chat_model_start(serialized, prompt))[0]

    return asyncio.run(start())


@pytest.mark.parametrize("stream", [False, True])
def test_completion_with_retry_reports_to_its_run_manager(
    env: Env, diary: Diary, watcher: BaseCallbackHandler, stream: bool
) -> None:
    """Called directly, the function reports retries to the run manager it was given."""
    env.gateway.script(Status(503), Status(429))
    manager = run_managers(env, [watcher])

    answer = env.complete(
        gpt_router, env.llm(), [GPT_4], manager, messages=MESSAGES, stream=stream
    )

    assert answer
    assert diary.events == ["start", "retry", "retry"]
    assert {run_id for _, run_id in diary.entries} == {manager.run_id}


class OwnManager:
    """A run manager of a caller that has `on_retry` and nothing else."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error
        self.attempts: list[int] = []

    def on_retry(self, retry_state: RetryCallState) -> Any:
        self.attempts.append(retry_state.attempt_number)
        if self._error is not None:
            raise self._error


class AsyncOwnManager(OwnManager):
    """Async variant of `OwnManager`."""

    async def on_retry(self, retry_state: RetryCallState) -> None:
        await FakeClock().asleep(1)
        super().on_retry(retry_state)


@pytest.mark.parametrize("error", [None, RuntimeError("broken")])
def test_any_run_manager_with_on_retry_will_do(
    env: Env, caplog: pytest.LogCaptureFixture, error: Exception | None
) -> None:
    """`completion_with_retry` takes one; it may be missing, and it may fail."""
    env.gateway.script(Status(503), Status(503), Answer(), Status(503))
    manager = (AsyncOwnManager if env.is_async else OwnManager)(error)
    for given in (manager, None):
        answer = env.complete(gpt_router, env.llm(), [GPT_4], given, messages=MESSAGES)
        assert answer.choices
    assert manager.attempts == [1, 2]
    assert caplog.text.count("failed in on_retry") == 2 * (error is not None)


# --- many at once ---


def test_interleaved_streams_have_their_own_runs(env: Env) -> None:
    """Streams of one model, read in turns in one thread or task, do not mix."""
    env.gateway.script(*[Status(503)] * 3)
    llm, diaries = env.llm(), [Diary(env.gateway, env.clock) for _ in range(2)]
    configs: list[RunnableConfig] = [{"callbacks": [Watcher(one)]} for one in diaries]

    def read() -> None:
        streams = [llm.stream("hi", config) for config in configs]
        for chunks in streams * 2:
            next(chunks)
        for chunks in streams:
            list(chunks)

    async def aread() -> None:
        streams = [llm.astream("hi", config) for config in configs]
        for chunks in streams * 2:
            await anext(chunks)
        for chunks in streams:
            _ = [chunk async for chunk in chunks]

    asyncio.run(aread()) if env.is_async else read()
    assert diaries[0].events == ["start", "retry", "retry", "retry", "end"]
    assert diaries[1].events == ["start", "end"]


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_a_model_that_a_router_asks_for_its_judgement_has_its_own_run(
    env: Env, diary: Diary, way: str
) -> None:
    """The retries of a call inside another call are those of its own run."""
    judges = Diary(env.gateway, env.clock)
    judge = env.llm(callbacks=[Watcher(judges)])

    def accept(message: AIMessage) -> bool:
        return bool(judge.invoke(message.text).text and list(judge.stream("?")))

    async def aaccept(message: AIMessage) -> bool:
        said = await judge.ainvoke(message.text)
        return bool(said.text and [chunk async for chunk in judge.astream("?")])

    failing = [Status(503), Answer()]
    env.gateway.script(*failing * 3)
    judged = aaccept if env.is_async else accept
    router = RetryRouter(routes=[env.llm()], accept=judged, clock=env.clock)
    getattr(env, way)(router, "hi", {"callbacks": [Watcher(diary)]})

    assert diary.events == ["start", "retry", "end"]
    assert judges.events == ["start", "retry", "end"] * 2


@pytest.mark.parametrize("is_inside", [False, True])
async def test_event_streams_report_retries(
    new_llm: NewModel,
    gateway: FaultyGateway,
    diary: Diary,
    watcher: BaseCallbackHandler,
    is_inside: bool,
) -> None:
    """`astream_events` streams the model, also an `ainvoke` inside a function."""
    gateway.script(Status(503))
    llm = new_llm()

    async def ask(text: str, config: RunnableConfig) -> Any:
        return (await llm.ainvoke(text, config)).content

    runnable: Runnable[Any, Any] = (
        RunnableLambda(ask) if is_inside else RunnableLambda(lambda text: text) | llm
    )
    config: RunnableConfig = {"callbacks": [watcher]}
    events = [e async for e in runnable.astream_events("hi", config, version="v2")]
    data = [e["data"] for e in events if e["event"] == "on_chat_model_stream"]
    assert "".join(one["chunk"].content for one in data) == STUB_TEXT
    assert diary.events == ["start", "retry", "end"]
