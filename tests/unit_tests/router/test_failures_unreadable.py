"""Answers that bring Python's readers down, to a foreign model, and their name."""

from __future__ import annotations

from typing import Any

import pytest

from langchain_retryrouter.errors import MalformedResponseError
from langchain_retryrouter.testing import Body, FaultyGateway

from .attempts import WAYS, Way, failure
from .models import chat_openai

JSON = {"content-type": "application/json"}
EVENTS = {"content-type": "text/event-stream"}
CHOICE = '"index": 0, "finish_reason": "stop"'
DEEP = '{"a":' * 700 + "0" + "}" * 700


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize(
    "document",
    [
        "[" * 100_000,
        "9" * 5_000,
        f'{{"choices": [{{{CHOICE}, "delta": {{"\\ud800": 1, "content": "a"}}}}]}}',
    ],
    ids=["abyss", "digits", "half of a character"],
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
