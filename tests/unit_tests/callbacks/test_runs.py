"""Every retry is told under its run, whichever way the model is called."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from langchain_core.callbacks import CallbackManager
from langchain_core.runnables import RunnableConfig, RunnableLambda

from tests.unit_tests.conftest import Twin

from .diaries import HANDLERS, Handler, SyncHandler
from .flaky_model import FlakyChatModel
from .ways_in import WAYS, Way

handlers = pytest.mark.parametrize("handler_class", HANDLERS)
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@handlers
@every_way
def test_every_way_in_is_seen(
    twin: Twin, way: Way, handler_class: type[Handler]
) -> None:
    """Requests minus one, in order, under the run that `on_chat_model_start` named."""
    handler = handler_class()
    way(twin, FlakyChatModel(), {"callbacks": [handler]})
    (run_id,) = handler.diary.starts
    assert handler.diary.retries == [(run_id, 1), (run_id, 2)]
    assert handler.diary.ends == [run_id]


@every_way
def test_a_models_own_handlers_see_it(twin: Twin, way: Way) -> None:
    """Handlers of the model, of the call, and of both, see each retry once."""
    own, given, both = SyncHandler(), SyncHandler(), SyncHandler()
    way(twin, FlakyChatModel(callbacks=[own, both]), {"callbacks": [given, both]})
    for handler in (own, given, both):
        (run_id,) = handler.diary.starts
        assert handler.diary.retries == [(run_id, 1), (run_id, 2)]
        assert handler.diary.ends == [run_id]


@every_way
def test_a_callback_manager_will_do(twin: Twin, way: Way) -> None:
    """Callbacks may come as a manager, which is not changed by it."""
    handler = SyncHandler()
    manager = CallbackManager([handler])
    way(twin, FlakyChatModel(), {"callbacks": manager})
    (run_id,) = handler.diary.starts
    assert handler.diary.retries == [(run_id, 1), (run_id, 2)]
    assert manager.handlers == [handler]


@every_way
def test_tags_come_along(twin: Twin, way: Way) -> None:
    """A retry has the tags of its run, those of the call and those of the model."""
    handler = SyncHandler()
    model = FlakyChatModel(tags=["of the model"])
    way(twin, model, {"callbacks": [handler], "tags": ["of the call"]})
    (run_id,) = handler.diary.starts
    assert {"of the call", "of the model"} <= set(handler.diary.tags[run_id])
    assert handler.diary.retry_tags == [handler.diary.tags[run_id]] * 2


@every_way
def test_a_run_id_that_is_given_is_kept(twin: Twin, way: Way) -> None:
    """Who names the run in the config finds its retries under that name."""
    handler, run_id = SyncHandler(), uuid4()
    config: RunnableConfig = {"callbacks": [handler], "run_id": run_id}
    way(twin, FlakyChatModel(), config)
    assert handler.diary.starts == [run_id]
    assert handler.diary.retries == [(run_id, 1), (run_id, 2)]
    assert config == {"callbacks": [handler], "run_id": run_id}


@every_way
def test_a_call_that_succeeds_tells_nothing(twin: Twin, way: Way) -> None:
    """No failure, no retry, no event; and the run is announced and ended once."""
    handler = SyncHandler()
    way(twin, FlakyChatModel(failures=0), {"callbacks": [handler]})
    assert handler.diary.retries == []
    assert handler.diary.ends == handler.diary.starts
    assert len(handler.diary.starts) == 1


@every_way
def test_without_handlers_it_works_too(twin: Twin, way: Way) -> None:
    """Nobody has to watch."""
    way(twin, FlakyChatModel(), {})


def test_a_whole_batch_keeps_its_runs_apart(twin: Twin) -> None:
    """Calls at the same time each find their own run."""
    handler = SyncHandler()
    twin.batch(FlakyChatModel(), ["hi"] * 8, {"callbacks": [handler]})
    diary = handler.diary
    assert len(diary.starts) == len(set(diary.starts)) == 8
    assert sorted(diary.retries) == sorted(
        (run_id, number) for run_id in diary.starts for number in (1, 2)
    )


def test_interleaved_streams_keep_their_runs_apart() -> None:
    """Two streams of one model, read by turns in one thread, do not mix."""
    model, handlers = FlakyChatModel(), [SyncHandler(), SyncHandler()]
    streams = [model.stream("hi", {"callbacks": [handler]}) for handler in handlers]
    for _ in range(2):
        for events in streams:
            next(events)
    for events in streams:
        list(events)
    for handler in handlers:
        (run_id,) = handler.diary.starts
        assert handler.diary.retries == [(run_id, 1), (run_id, 2)]


@handlers
async def test_event_streams_are_seen(handler_class: type[Handler]) -> None:
    """`astream_events` attaches a streaming handler, and retries are seen."""
    handler = handler_class()
    chain = RunnableLambda(lambda text: text) | FlakyChatModel()
    config: RunnableConfig = {"callbacks": [handler]}
    events = [e async for e in chain.astream_events("hi", config, version="v2")]
    text = "".join(
        e["data"]["chunk"].content
        for e in events
        if e["event"] == "on_chat_model_stream"
    )
    assert text == "Hello"
    (run_id,) = handler.diary.starts
    assert handler.diary.retries == [(run_id, 1), (run_id, 2)]


@handlers
async def test_a_call_inside_an_event_stream_is_seen(
    handler_class: type[Handler],
) -> None:
    """`ainvoke` within `astream_events` streams inside, without a run manager."""
    handler, model = handler_class(), FlakyChatModel()

    async def ask(text: str, config: RunnableConfig) -> Any:
        return (await model.ainvoke(text, config)).content

    events = [
        event
        async for event in RunnableLambda(ask).astream_events(
            "hi", {"callbacks": [handler]}, version="v2"
        )
    ]
    assert any(event["event"] == "on_chat_model_stream" for event in events)
    (run_id,) = handler.diary.starts
    assert handler.diary.retries == [(run_id, 1), (run_id, 2)]


@pytest.mark.filterwarnings("ignore:.*in beta:Warning")
def test_the_protocol_of_events_is_seen() -> None:
    """LangChain's `stream_events` hands a run manager over, and that one is used."""
    handler = SyncHandler()
    events = FlakyChatModel().stream_events(
        "hi", {"callbacks": [handler]}, version="v3"
    )
    assert "".join(events.text) == "Hello"
    (run_id,) = handler.diary.starts
    assert handler.diary.retries == [(run_id, 1), (run_id, 2)]
