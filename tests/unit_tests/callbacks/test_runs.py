"""Retries are reported under the run that they belong to, however a model is called."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import pytest
from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableConfig, RunnableLambda

from langchain_retryrouter._callbacks import run_manager_of
from tests.unit_tests.conftest import Twin

from .models import HANDLERS, WAYS, FlakyChatModel, SyncHandler, Way

handlers = pytest.mark.parametrize("handler_class", HANDLERS)
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
HI: list[BaseMessage] = [HumanMessage("hi")]


@handlers
@every_way
def test_each_retry_is_reported_under_its_run(
    twin: Twin, way: Way, handler_class: type[SyncHandler]
) -> None:
    """Handlers of the model, of the call and of both get each retry once, with tags."""
    own, given, both = handler_class(), handler_class(), handler_class()
    model = FlakyChatModel(callbacks=[own, both], tags=["model's"])
    config: RunnableConfig = {"callbacks": [given, both], "tags": ["call"]}
    config["run_id"] = run_id = uuid4()
    way(twin, model, config)
    for handler in (own, given, both):
        assert handler.check_two_retries() == run_id
        assert handler.ends == [run_id]
        assert {"call", "model's"} <= set(handler.tags[run_id])
        assert handler.retry_tags == [handler.tags[run_id]] * 2
    assert config == {"callbacks": [given, both], "run_id": run_id, "tags": ["call"]}


@every_way
def test_callbacks_may_be_a_manager_or_missing(twin: Twin, way: Way) -> None:
    """A manager is not changed by a call."""
    handler = SyncHandler()
    manager = CallbackManager([handler])
    way(twin, FlakyChatModel(), {"callbacks": manager})
    handler.check_two_retries()
    assert manager.handlers == [handler]
    way(twin, FlakyChatModel(), {})


@every_way
def test_a_call_that_succeeds_reports_no_retry(twin: Twin, way: Way) -> None:
    """Its run starts and ends once."""
    handler = SyncHandler()
    way(twin, FlakyChatModel(failures=0), {"callbacks": [handler]})
    assert handler.retries == []
    assert handler.ends == handler.starts
    assert len(handler.starts) == 1


def test_the_calls_of_a_batch_have_their_own_runs(twin: Twin) -> None:
    """Calls at the same time each report under their own run."""
    handler = SyncHandler()
    twin.batch(FlakyChatModel(), ["hi"] * 8, {"callbacks": [handler]})
    assert len(handler.starts) == len(set(handler.starts)) == 8
    assert sorted(handler.retries) == sorted(
        (run_id, number) for run_id in handler.starts for number in (1, 2)
    )


def test_interleaved_streams_have_their_own_runs() -> None:
    """Two streams of one model, read in turns in one thread, do not mix."""
    model, both = FlakyChatModel(), [SyncHandler(), SyncHandler()]
    streams = [model.stream("hi", {"callbacks": [handler]}) for handler in both]
    for _ in range(2):
        for events in streams:
            next(events)
    for events in streams:
        list(events)
    for handler in both:
        handler.check_two_retries()


@handlers
@pytest.mark.parametrize("is_inside", [False, True])
async def test_event_streams_report_retries(
    handler_class: type[SyncHandler], *, is_inside: bool
) -> None:
    """`astream_events` streams the model, also an `ainvoke` inside a function."""
    handler, model = handler_class(), FlakyChatModel()

    async def ask(text: str, config: RunnableConfig) -> Any:
        return (await model.ainvoke(text, config)).content

    chain = RunnableLambda(lambda text: text) | model
    runnable = RunnableLambda(ask) if is_inside else chain
    config: RunnableConfig = {"callbacks": [handler]}
    events = [e async for e in runnable.astream_events("hi", config, version="v2")]
    chunks = [e["data"] for e in events if e["event"] == "on_chat_model_stream"]
    text = "".join(chunk["chunk"].content for chunk in chunks)
    assert text == "Hello"
    handler.check_two_retries()


@pytest.mark.filterwarnings("ignore:.*in beta:Warning")
def test_stream_events_v3_reports_retries() -> None:
    """LangChain's newer protocol hands over a run manager, which is used."""
    handler = SyncHandler()
    config: RunnableConfig = {"callbacks": [handler]}
    events = FlakyChatModel().stream_events("hi", config, version="v3")
    assert "".join(events.text) == "Hello"
    handler.check_two_retries()


@handlers
@pytest.mark.parametrize("name", ["invoke", "stream", "batch"])
def test_inside_a_chain(
    twin: Twin, name: str, handler_class: type[SyncHandler]
) -> None:
    """The retry belongs to the model's run, and that to the chain's."""
    handler = handler_class()
    prompt = ChatPromptTemplate.from_messages([("human", "{text}")])
    chain = prompt | FlakyChatModel() | StrOutputParser()
    given: Any = {"text": "hi"}
    config: RunnableConfig = {"callbacks": [handler]}
    answer = getattr(twin, name)(chain, [given] if name == "batch" else given, config)
    assert "".join(answer) == "Hello"
    parent = handler.parents[handler.check_two_retries()]
    assert handler.retry_parents == {parent} == {handler.chains[0]}


@every_way
def test_nested_models_have_their_own_runs(twin: Twin, way: Way) -> None:
    """If a model calls another one, each one's retries have its own run."""
    inside, outside = SyncHandler(), SyncHandler()
    inner = FlakyChatModel(failures=1, callbacks=[inside])

    async def aask() -> None:
        await inner.ainvoke("hi")
        [chunk async for chunk in inner.astream("hi")]

    def ask() -> None:
        inner.invoke("hi")
        list(inner.stream("hi"))

    outer = FlakyChatModel(inner=aask if twin.is_async else ask)
    way(twin, outer, {"callbacks": [outside]})
    (own,) = (run_id for run_id in outside.starts if run_id not in inside.starts)
    assert [retry for retry in outside.retries if retry[0] == own] == [
        (own, 1),
        (own, 2),
    ]
    # Three requests of the outer model, each asking the inner one twice.
    assert inside.retries == [(run_id, 1) for run_id in inside.starts]
    assert len(inside.starts) == 6


def test_the_run_manager_of_a_stream() -> None:
    """It is found only for its own model and kind of call, before the first chunk."""
    model, other = FlakyChatModel(), FlakyChatModel()
    found: list[Any] = []

    def look() -> None:
        found.append(run_manager_of(other, None, CallbackManagerForLLMRun))
        found.append(run_manager_of(model, None, AsyncCallbackManagerForLLMRun))
        found.append(run_manager_of(model, given, CallbackManagerForLLMRun))

    given = CallbackManagerForLLMRun(
        run_id=uuid4(), handlers=[], inheritable_handlers=[]
    )
    model.inner = look
    chunks = model.stream("hi", {"callbacks": [SyncHandler()]})
    next(chunks)
    assert found == [None, None, given] * 3
    assert run_manager_of(model, None, CallbackManagerForLLMRun) is None
    assert run_manager_of(model, given, CallbackManagerForLLMRun) is given
    list(chunks)


# --- LangChain's own behaviour, which must not change ---


def test_the_inner_method_works_without_a_run(twin: Twin) -> None:
    """LangChain's `_generate_with_cache` may be called without a run manager."""
    model: Any = FlakyChatModel()
    if twin.is_async:
        result = asyncio.run(model._agenerate_with_cache(HI))  # noqa: SLF001
    else:
        result = model._generate_with_cache(HI)  # noqa: SLF001
    assert result.generations[0].text == "Hello"


def test_an_empty_stream_is_langchains_error(twin: Twin) -> None:
    """A stream without a chunk is refused by langchain-core."""

    class Empty(FlakyChatModel):
        def _stream(self, *_: Any, **__: Any) -> Iterator[ChatGenerationChunk]:
            yield from ()

        async def _astream(
            self, *_: Any, **__: Any
        ) -> AsyncIterator[ChatGenerationChunk]:
            for chunk in list[ChatGenerationChunk]():
                yield chunk

    with pytest.raises(ValueError, match="No generation chunks were returned"):
        twin.stream(Empty(), "hi")


def test_a_model_that_does_not_stream_reports_retries(twin: Twin) -> None:
    """With streaming disabled, `stream` is one `invoke`; a config can be used again."""
    handler = SyncHandler()
    config: RunnableConfig = {"callbacks": [handler]}
    model = FlakyChatModel(disable_streaming=True)
    (chunk,) = twin.stream(model, "hi", config)
    assert chunk.content == "Hello"
    handler.check_two_retries()
    twin.stream(model, "hi", config)
    assert len(set(handler.starts)) == 2
