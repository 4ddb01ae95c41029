"""What a stream that another route continues is made of."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk

from langchain_retryrouter import Route, StreamInterruptedError

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


# --- which models take a prefill ---


class Named(Recording):
    """A model of some package, with a name."""

    model: str = ""
    max_retries: int = 0

    @property
    def _llm_type(self) -> str:
        return "named"

    def _get_ls_params(self, stop: Any = None, **kwargs: Any) -> Any:
        return {**super()._get_ls_params(stop, **kwargs), "ls_model_name": self.model}


def of_package(package: str, name: str, text: str, **fields: Any) -> Named:
    """A model that counts as one of this package and says `text`."""
    cls = type("Chat", (Named,), {"__module__": f"{package}.chat_models"})
    end = AIMessageChunk(content=text, response_metadata={"finish_reason": "stop"})
    return cls(model=name, chunks=[end], sent=[], **fields)  # type: ignore[no-any-return]


def continued(way: Way, second: Named, **fields: Any) -> tuple[str, list[str]]:
    """The text of a stream that breaks after "one ", and the last message sent on."""
    first = Scripted(chunks=[AIMessageChunk(content="one ")], breaks=True)
    router = router_of(first, second, stream_recovery="continue", **fields)
    text = "".join(chunk.text for chunk in ask(way, router))
    sent = router.routes[1].model.sent  # type: ignore[attr-defined]
    return text, [messages[-1].type for messages in sent]


@pytest.mark.parametrize("way", STREAMS, ids=str)
@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("langchain_anthropic", "claude-3-7-sonnet-latest"),
        ("langchain_anthropic", "claude-opus-4-20250514"),
        ("langchain_anthropic", "claude-sonnet-4-0"),
        ("langchain_anthropic", "claude-haiku-4-5-20251001"),
        ("langchain_aws", "us.anthropic.claude-sonnet-4-5-20250929-v1:0"),
        ("langchain_aws", "amazon.nova-pro-v1:0"),
        ("langchain_mistralai", "mistral-large-latest"),
        ("langchain_ollama", "llama3"),
    ],
)
def test_a_model_that_takes_a_prefill_gets_one(
    way: Way, package: str, name: str
) -> None:
    """It is known for LangChain's integrations, without a setting."""
    second = of_package(package, name, "two")
    assert continued(way, second) == ("one two", ["ai"])


@pytest.mark.parametrize("way", STREAMS, ids=str)
@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("langchain_anthropic", "claude-opus-4-6"),
        ("langchain_anthropic", "claude-sonnet-4-6-20260217"),
        ("langchain_anthropic", "claude-opus-5"),
        ("langchain_aws", "us.anthropic.claude-opus-4-6-v1"),
        ("langchain_aws", "meta.llama3-3-70b-instruct-v1:0"),
        ("langchain_openai", "gpt-4o"),
        ("langchain_google_genai", "gemini-2.5-pro"),
    ],
)
def test_other_models_are_asked_for_the_whole_answer(
    way: Way, package: str, name: str
) -> None:
    """Claude 4.6 and later answer a prefill with a 400, and OpenAI begins anew."""
    second = of_package(package, name, "one two")
    assert continued(way, second) == ("one two", ["human"])


@pytest.mark.parametrize("way", STREAMS, ids=str)
@pytest.mark.parametrize(
    ("text", "whole"),
    [("one two", "one two"), ("one", "one "), ("", "one "), ("on two", "one on two")],
    ids=["repeated", "repeated-and-over", "over", "looks-alike"],
)
def test_what_follows_a_prefill(way: Way, text: str, whole: str) -> None:
    """Mistral repeats the prefill; an answer may have lacked nothing but its end."""
    second = of_package("langchain_mistralai", "m", text)
    if text == "one":
        with pytest.raises(StreamInterruptedError):
            continued(way, second)
        return
    assert continued(way, second)[0] == whole
    assert second.sent[0][-1].additional_kwargs == {"prefix": True}
