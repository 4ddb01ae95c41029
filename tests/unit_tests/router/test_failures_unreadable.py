"""Answers that bring Python's readers down, to a foreign model, and their name."""

from __future__ import annotations

from typing import Any

import pytest

from langchain_retryrouter._providers.errors import name_failure
from langchain_retryrouter.errors import InvalidRequestError, MalformedResponseError
from langchain_retryrouter.testing import Body, FaultyGateway

from .attempts import WALL, WAYS, Way, ask, failure
from .models import chat_openai

JSON = {"content-type": "application/json"}
EVENTS = {"content-type": "text/event-stream"}
CHOICE = '"index": 0, "finish_reason": "stop"'
HALF = '{"\\ud800": 1, "content": "a", "role": "assistant"}'
DEEP = '{"a":' * 700 + "0" + "}" * 700


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize(
    "document",
    ["[" * 100_000, "9" * 5_000],
    ids=["abyss", "digits"],
)
def test_what_an_sdk_cannot_read_is_the_providers_failure(
    way: Way, document: str
) -> None:
    """An answer is malformed where reading it fails, whatever the SDK raises then."""
    if not way.is_streaming:
        document = document.replace('"delta"', '"message"')
    body = f"data: {document}\n\n" if way.is_streaming else document
    with FaultyGateway() as gateway:
        gateway.script(Body(200, EVENTS if way.is_streaming else JSON, body))
        error = failure(way, chat_openai(gateway))
    assert isinstance(error, MalformedResponseError), error


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_half_of_a_character_is_read_or_malformed(way: Way) -> None:
    """Some versions of what lies below read half of a character, and some fail."""
    said = "delta" if way.is_streaming else "message"
    document = f'{{"choices": [{{{CHOICE}, "{said}": {HALF}}}]}}'
    body = f"data: {document}\n\n" if way.is_streaming else document
    with FaultyGateway() as gateway:
        gateway.script(Body(200, EVENTS if way.is_streaming else JSON, body))
        raised, text = None, "a"
        try:
            text = "".join(part.text for part in ask(way, chat_openai(gateway)))
        except Exception as error:  # noqa: BLE001 - it is what is looked at
            raised = name_failure(error, WALL)
    assert text == "a"
    assert isinstance(raised, MalformedResponseError | InvalidRequestError | None)


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("status", [200, 400, 503])
@pytest.mark.parametrize(
    "error",
    [
        f'{{"message": {DEEP}}}',
        f'{{"message": "odd", "type": {DEEP}}}',
        f'{{"message": "odd", "code": "{"9" * 5_000}"}}',
    ],
    ids=["deep message", "deep type", "digits"],
)
def test_an_odd_error_has_a_name(way: Way, status: int, error: str) -> None:
    """What a provider says of its failure may be odd; that it failed is still known."""
    document = f'{{"error": {error}}}'
    is_event = way.is_streaming and status == 200
    body = f"data: {document}\n\n" if is_event else document
    with FaultyGateway() as gateway:
        gateway.script(Body(status, EVENTS if is_event else JSON, body))
        named: Any = failure(way, chat_openai(gateway))
    assert named is not None
    assert named.status_code in {None, status}
