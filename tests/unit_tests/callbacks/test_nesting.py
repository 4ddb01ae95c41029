"""Models inside chains, and inside each other: whose run is it?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import pytest
from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableConfig

from langchain_retryrouter._callbacks import run_manager_of
from tests.unit_tests.conftest import Twin

from .diaries import HANDLERS, Handler, SyncHandler
from .flaky_model import FlakyChatModel
from .ways_in import WAYS, Way

handlers = pytest.mark.parametrize("handler_class", HANDLERS)
HI: list[BaseMessage] = [HumanMessage("hi")]
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@handlers
@pytest.mark.parametrize("name", ["invoke", "stream", "batch"])
def test_inside_a_chain(twin: Twin, name: str, handler_class: type[Handler]) -> None:
    """In a chain, a retry is told under the model's run, and that under its chain."""
    handler = handler_class()
    prompt = ChatPromptTemplate.from_messages([("human", "{text}")])
    chain = prompt | FlakyChatModel() | StrOutputParser()
    given: Any = {"text": "hi"}
    config: RunnableConfig = {"callbacks": [handler]}
    answer = getattr(twin, name)(chain, [given] if name == "batch" else given, config)
    assert "".join(answer) == "Hello"
    diary = handler.diary
    (run_id,) = diary.starts
    assert diary.retries == [(run_id, 1), (run_id, 2)]
    assert diary.retry_parents == {diary.parents[run_id]} == {diary.chains[0]}


@every_way
def test_two_models_nested_do_not_mix(twin: Twin, way: Way) -> None:
    """A model that asks another one: each retry is told under its own model's run."""
    inside = SyncHandler()
    inner = FlakyChatModel(failures=1, callbacks=[inside])

    async def ask() -> None:
        await inner.ainvoke("hi")
        [chunk async for chunk in inner.astream("hi")]

    def ask_sync() -> None:
        inner.invoke("hi")
        list(inner.stream("hi"))

    outside = SyncHandler()
    outer = FlakyChatModel(inner=ask if twin.is_async else ask_sync)
    way(twin, outer, {"callbacks": [outside]})
    own = [
        run_id for run_id in outside.diary.starts if run_id not in inside.diary.starts
    ]
    assert [retry for retry in outside.diary.retries if retry[0] in own] == [
        (own[0], 1),
        (own[0], 2),
    ]
    # Three requests of the outer model, each asking the inner one twice.
    assert len(own) == 1
    assert inside.diary.retries == [(run_id, 1) for run_id in inside.diary.starts]
    assert len(inside.diary.starts) == 6


def test_a_run_is_not_anothers() -> None:
    """What was announced for one model is not found by another, nor after the start."""
    model, other = FlakyChatModel(), FlakyChatModel()
    found: list[Any] = []

    def safe_getattr() -> None:
        found.append(run_manager_of(other, None, CallbackManagerForLLMRun))
        found.append(run_manager_of(model, None, AsyncCallbackManagerForLLMRun))

    model.inner = safe_getattr
    handler = SyncHandler()
    chunks = model.stream("hi", {"callbacks": [handler]})
    next(chunks)
    assert found == [None] * 6
    assert run_manager_of(model, None, CallbackManagerForLLMRun) is None
    list(chunks)


def test_a_run_manager_that_is_given_wins() -> None:
    """What langchain-core hands over is used as it is."""
    given = CallbackManagerForLLMRun(
        run_id=uuid4(), handlers=[], inheritable_handlers=[]
    )
    found: list[Any] = []
    model = FlakyChatModel(failures=0)
    model.inner = lambda: found.append(
        run_manager_of(model, given, CallbackManagerForLLMRun)
    )
    list(model.stream("hi"))
    assert found == [given]
    assert run_manager_of(model, given, CallbackManagerForLLMRun) is given


# --- what else the detour must not change -------------------------------------------


def test_without_a_run_nothing_is_announced(twin: Twin) -> None:
    """LangChain's inner method may be called without a run; there is nobody to tell."""
    model: Any = FlakyChatModel()
    if twin.is_async:
        result = asyncio.run(model._agenerate_with_cache(HI))  # noqa: SLF001
    else:
        result = model._generate_with_cache(HI)  # noqa: SLF001
    assert result.generations[0].text == "Hello"


def test_an_empty_stream_is_langchains_error(twin: Twin) -> None:
    """A stream without a chunk is refused by langchain-core, as without us."""

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


def test_a_model_that_does_not_stream_falls_back(twin: Twin) -> None:
    """With streaming disabled, `stream` is one `invoke`, and its retries are seen."""
    handler = SyncHandler()
    model = FlakyChatModel(disable_streaming=True)
    (chunk,) = twin.stream(model, "hi", {"callbacks": [handler]})
    assert chunk.content == "Hello"
    (run_id,) = handler.diary.starts
    assert handler.diary.retries == [(run_id, 1), (run_id, 2)]


def test_a_callers_config_is_not_changed(twin: Twin) -> None:
    """A config can be used for the next call: each gets a run of its own."""
    handler = SyncHandler()
    config: RunnableConfig = {"callbacks": [handler], "tags": ["mine"]}
    for _ in range(2):
        twin.stream(FlakyChatModel(), "hi", config)
    assert config == {"callbacks": [handler], "tags": ["mine"]}
    assert len(set(handler.diary.starts)) == 2
