"""Answers that are JSON, and not quite OpenAI's: read, or refused with a type."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from langchain_retryrouter import (
    MalformedResponseError,
    OpenAIChat,
    RetryPolicy,
    RetryRouterError,
)
from langchain_retryrouter.testing import Body, FaultyGateway
from tests.unit_tests.conftest import Twin

from .conftest import EVENTS, JSON, NewLLM, choice, streamed

ABYSS = "[" * 100_000
DEEP = "[" * 300 + "]" * 300
DIGITS = "9" * 5_000
ONCE = RetryPolicy(max_retries=0)


def answer(said: str = '"content": "Hello"', beside: str = '"usage": {}') -> str:
    choice = f'{{"index": 0, "finish_reason": "stop", "message": {{{said}}}}}'
    return f'{{"choices": [{choice}], {beside}}}'


def chunk(delta: str, reason: str = "null", beside: str = '"id": "x"') -> str:
    choice = f'{{"index": 0, "finish_reason": {reason}, "delta": {{{delta}}}}}'
    return f'data: {{"choices": [{choice}], {beside}}}\n\n'


@pytest.fixture
def llm(new_llm: NewLLM) -> Any:
    """A model that asks once."""
    return new_llm(OpenAIChat, retry_policy=ONCE)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (JSON, ABYSS),
        (JSON, answer(beside=f'"usage": {DEEP}')),
        (JSON, answer(beside=f'"created": {DIGITS}')),
        (JSON, answer().replace('"stop"', "13")),
        (JSON, answer().replace('"stop"', '{"why": "stop"}')),
        (EVENTS, f"data: {ABYSS}\n\n"),
        (EVENTS, f"data: {DIGITS}\n\n"),
        (EVENTS, chunk('"content": "Hello"', beside=f'"id": {DEEP}')),
        (EVENTS, chunk('"content": "Hello"', reason="13")),
    ],
    ids=[
        *("abyss", "deep", "digits", "reason 13", "reason in an object"),
        *("event abyss", "event digits", "event deep", "event reason"),
    ],
)
def test_what_cannot_be_read_is_malformed(
    twin: Twin, llm: Any, gateway: FaultyGateway, headers: dict[str, str], body: str
) -> None:
    """An answer or event that Python's reader cannot read is a typed error."""
    gateway.script(Body(200, headers, body))
    call = twin.stream if headers is EVENTS else twin.invoke
    with pytest.raises(MalformedResponseError) as caught:
        call(llm, "hi")
    assert caught.value.attempts == 1


@pytest.mark.parametrize("status", [200, 400, 503])
@pytest.mark.parametrize(
    "error",
    [
        f'{{"code": "{DIGITS}", "message": "odd"}}',
        f'{{"code": 503, "message": {"[" * 700 + "]" * 700}}}',
    ],
    ids=["digits", "deep"],
)
def test_an_unexpected_error_is_a_typed_error(
    twin: Twin, llm: Any, gateway: FaultyGateway, status: int, error: str
) -> None:
    """Whatever a server puts into its error, what leaves can be caught by its class."""
    gateway.script(Body(status, JSON, f'{{"error": {error}}}'))
    with pytest.raises(RetryRouterError) as caught:
        twin.invoke(llm, "hi")
    assert json.dumps(caught.value.body)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ("7", {}),
        ('"7"', {}),
        ("[1]", {}),
        ('{"total_tokens": -1, "a": 1e999, "b": NaN, "c": "x"}', {}),
        (f'{{"total_tokens": 1{"0" * 400}, "cost": 0.5}}', {"cost": 0.5}),
        ('{"details": {"cached": 2, "odd": -2}}', {"details": {"cached": 2}}),
    ],
)
def test_what_is_no_count_is_left_out(
    twin: Twin, llm: Any, gateway: FaultyGateway, usage: str, expected: dict[str, Any]
) -> None:
    """An answer that was paid for is not lost over an odd number beside it."""
    gateway.script(Body(200, JSON, answer(beside=f'"usage": {usage}')))
    result = twin.generate(llm, ["hi"])
    assert result.generations[0][0].text == "Hello"
    assert result.llm_output["token_usage"] == expected


def test_counts_of_two_forms_are_added_up(
    twin: Twin, llm: Any, gateway: FaultyGateway
) -> None:
    """A name that has details in one answer and a number in another is not an error."""
    gateway.script(
        Body(200, JSON, answer(beside='"usage": {"a": {"b": 1}, "c": 1}')),
        Body(200, JSON, answer(beside='"usage": {"a": 2, "c": {"d": 3}}')),
    )
    llm.batch_size = 1
    result = twin.generate(llm, ["hi", "ho"])
    assert result.llm_output["token_usage"] == {"a": 2, "c": {"d": 3}}


def test_unexpected_probabilities_do_not_keep_chunks_apart(
    twin: Twin, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """Probabilities that cannot be joined are left out of a stream; its text is not."""
    told = [{"tokens": ["a"], "odd": 1}, ["a"], 7, {"tokens": ["b"], "odd": "x"}]
    chunks = [choice("a", logprobs=one) for one in told]
    gateway.script(streamed(*chunks, choice("", "stop")))
    (only,) = twin.generate(new_llm(streaming=True), ["hi"]).generations[0]
    assert only.text == "aaaa"
    assert only.generation_info["logprobs"] == {"tokens": ["a", "b"]}


def test_half_a_character_in_an_object_of_the_user(twin: Twin) -> None:
    """The SDK's objects may hold what cannot be written: a typed error, or the text."""
    facts: dict[str, Any] = {"choices": [{"message": {"content": "a"}}], "\ud800": 1}
    answer = openai.types.chat.ChatCompletion.construct(**facts)

    async def create(**_: Any) -> Any:
        return answer

    own = SimpleNamespace(create=lambda **_: answer), SimpleNamespace(create=create)
    llm = OpenAIChat(client=own[0], async_client=own[1])
    try:
        assert twin.invoke(llm, "hi") == "a"
    except RetryRouterError as error:  # By some versions of pydantic.
        with pytest.raises(MalformedResponseError, match="cannot be read"):
            raise error from None
