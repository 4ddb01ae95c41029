"""What a stream that another route continues is made of."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk

from langchain_retryrouter import Route

from .attempts import WAYS, Way, ask
from .test_finish_reasons import Scripted, router_of

STREAMS = [way for way in WAYS if way.is_streaming]


class Recording(Scripted):
    """Keeps the messages that it was sent."""

    sent: list[list[BaseMessage]]

    def _stream(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
        self.sent.append(messages)
        return super()._stream(messages, *args, **kwargs)


def summed(chunks: list[ChatGenerationChunk]) -> ChatGenerationChunk:
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    return total


@pytest.mark.parametrize("way", STREAMS, ids=str)
@pytest.mark.parametrize("rest", ["two", " two", "\n two"], ids=repr)
@pytest.mark.parametrize("said", ["one \n", "one "], ids=repr)
def test_a_prefill_never_ends_in_white_space(way: Way, said: str, rest: str) -> None:
    """Providers refuse that; the space is not delivered twice if it comes again."""
    first = Scripted(chunks=[AIMessageChunk(content=said)], breaks=True)
    second = Recording(
        chunks=[
            AIMessageChunk(content=rest),
            AIMessageChunk(
                content=" three", response_metadata={"finish_reason": "stop"}
            ),
        ],
        sent=[],
    )
    router = router_of(
        first, Route(model=second, supports_prefill=True), stream_recovery="continue"
    )

    text = "".join(chunk.text for chunk in ask(way, router))

    (messages,) = router.routes[1].model.sent  # type: ignore[attr-defined]
    assert messages[-1].content == "one"
    assert text.split() == ["one", "two", "three"]
    assert text.startswith(said)


@pytest.mark.parametrize("way", STREAMS, ids=str)
def test_the_metadata_is_that_of_the_attempt_that_ended(way: Way) -> None:
    """Names of the model that was interrupted are not joined with the other's."""
    first = Scripted(
        chunks=[
            AIMessageChunk(
                content="one ",
                response_metadata={"model_name": "m-1", "model_provider": "openai"},
            )
        ],
        breaks=True,
    )
    second = Scripted(
        chunks=[
            AIMessageChunk(
                content="one two",
                response_metadata={
                    "model_name": "m-2",
                    "model_provider": "anthropic",
                    "stop_reason": "end_turn",
                },
            )
        ]
    )
    router = router_of(first, second, stream_recovery="continue")

    answer = summed(ask(way, router)).message

    metadata = answer.response_metadata
    assert answer.text == "one two"
    assert (metadata["model_name"], metadata["stop_reason"]) == ("m-2", "end_turn")
    assert metadata["model_provider"] == "openai"
    assert metadata["retryrouter"]["attempts"][1]["continued_at"] == 4
