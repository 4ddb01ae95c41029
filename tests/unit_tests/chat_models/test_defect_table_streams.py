"""The defect table's rows G, H, J and K: streams, retries told, and odd answers.

See `test_defect_table.py` for what the table is.
"""

from __future__ import annotations

from typing import Any

import pytest
from gpt_router import exceptions as sdk
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from tenacity import RetryCallState

from langchain_retryrouter import (
    APIConnectionError,
    GPTRouterModel,
    MalformedResponseError,
    ServerError,
    StreamInterruptedError,
)
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Answer,
    Body,
    Cut,
    ErrorEvent,
    FakeClock,
    FaultyGateway,
    Status,
    Step,
    Truncate,
)
from tests.unit_tests.conftest import Twin

from .conftest import GPT_4, NewModel
from .frames import END, FAREWELL, event_stream, text_of, update

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
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway, step: Step
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
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway, step: Step
) -> None:
    """`streaming=True` does not make a short answer of a stream that broke off."""
    gateway.always(step)

    with pytest.raises(StreamInterruptedError):
        twin.invoke(new_llm(streaming=True), "hi")


def test_g5_an_upstream_that_stopped_early_is_flagged(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway
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


async def test_h3_a_slow_async_on_retry_is_awaited(
    new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """An async handler that takes its time is done before the next request is sent."""
    gateway.script(Status(503))
    done: list[int] = []

    class Slow(AsyncCallbackHandler):
        async def on_retry(self, *_: Any, **__: Any) -> None:
            for _turn in range(100):
                await FakeClock().asleep(1)
            done.append(len(gateway.requests))

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
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway, frame: str
) -> None:
    """An error event without a message, or in capitals, is not swallowed."""
    gateway.always(event_stream(update("Hello"), frame, FAREWELL))
    chunks: list[Any] = []

    with pytest.raises(ServerError) as caught:
        twin.stream(new_llm(), "hi", into=chunks)

    assert text_of(chunks) == caught.value.delivered == "Hello"


def test_j5_an_event_of_several_data_lines_is_joined(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """The `data` lines of one event are one event."""
    lines = [
        '{"event":"update",',
        '"data":{"text":"Hello",',
        '"finish_reason":"stop"}}',
    ]
    split = "\n".join(f"data: {line}" for line in lines)
    gateway.script(event_stream(split, END, FAREWELL))

    assert text_of(twin.stream(new_llm(), "hi")) == "Hello"


@pytest.mark.parametrize("junk", [b"<html>\r\n<hr>", b"\x81\x07", b":\x81"], ids=str)
def test_what_runs_into_an_event_takes_no_word_along(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway, junk: bytes
) -> None:
    """A proxy's page, or noise, before an event is an error, not an event less."""
    frames = [update("Hello"), update(" there", "stop"), END, FAREWELL]
    first, *others = [f"{frame}\n\n".encode() for frame in frames]
    body = b"".join([first, junk, *others])
    gateway.script(Body(200, {"content-type": "text/event-stream"}, body))
    chunks: list[Any] = []

    with pytest.raises(MalformedResponseError) as caught:
        twin.stream(new_llm(), "hi", into=chunks)

    assert text_of(chunks) == caught.value.delivered == "Hello"


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
    twin: Twin,
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
    twin: Twin,
    new_llm: NewModel,
    gateway: FaultyGateway,
    status: int,
    *,
    streaming: bool,
) -> None:
    """A 204 instead of an answer is an error that says so."""
    gateway.always(Body(status))
    llm = new_llm(max_retries=0, streaming=streaming)

    with pytest.raises(MalformedResponseError, match=r"no answer|no body"):
        twin.invoke(llm, "hi")


# --- what the real gateway showed ---


def test_half_an_answer_behind_azure_is_an_error(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """Azure's first update has no `finish_reason` key, and finishes nothing."""
    gateway.always(
        event_stream(
            'data: {"event":"update","data":{"text":""}}',
            update("Pay 100"),
            END,
        )
    )

    with pytest.raises(StreamInterruptedError) as caught:
        twin.stream(new_llm(), "hi")

    assert caught.value.delivered == "Pay 100"


def test_a_completion_model_names_itself_and_its_provider(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """An update with `model` is a completion model's: finished, and named."""
    gateway.always(
        event_stream(
            'data: {"event":"update","data":{"text":"Hi","model":"claude-2.1"}}',
            'data: {"event":"meta","data":{"text":"Hi"}}',
            END,
        )
    )
    models = [GPT_4, GPTRouterModel(name="claude-2", provider_name="anthropic")]
    llm = new_llm(models_priority_list=models)

    chunks = twin.stream(llm, "hi")
    metadata: dict[str, Any] = {}
    for chunk in chunks:
        metadata |= chunk.response_metadata

    assert text_of(chunks) == "Hi"
    assert metadata["model_name"] == "claude-2.1"
    assert metadata["provider_name"] == "anthropic"


def test_an_empty_finish_reason_is_none(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """The gateway writes a provider's null as an empty text; it is not handed on."""
    body = {"choices": [{"index": 0, "text": "Hi", "finish_reason": ""}]}
    gateway.respond("/api/v1/generate", body)

    message = twin.invoke(new_llm(), "hi")

    assert message.content == "Hi"
    assert "finish_reason" not in message.response_metadata


def test_a_provider_that_cannot_stream_is_left(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """A provider without streams is asked once, and the list's next model answers."""
    cohere = GPTRouterModel(name="command", provider_name="cohere")
    chunks = twin.stream(new_llm(models_priority_list=[cohere, GPT_4]), "hi")

    assert text_of(chunks) == STUB_TEXT
    asked = [len(request.payload["data"]) for request in gateway.requests]
    assert asked == [2, 1]


def test_no_connection_is_told_without_the_objects_of_a_library(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """The message says what the system said, and names no class."""
    gateway.stop()

    with pytest.raises(APIConnectionError, match="no connection to the gateway") as e:
        twin.invoke(new_llm(max_retries=0), "hi")

    assert "HTTPConnection" not in str(e.value)
    assert "refused" in str(e.value) or "Connect" in str(e.value)
