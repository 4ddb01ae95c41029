"""How the gateway's own words for an error are read."""

from __future__ import annotations

import json

import pytest

from langchain_retryrouter import RetryRouterError
from langchain_retryrouter._gptrouter.protocol import (
    read_event,
    read_status_error,
    unknown_name,
)


@pytest.mark.parametrize(
    ("message", "name"),
    [
        ("Model with name nope does not exist", "nope"),
        ("Provider with name nope does not exist", "nope"),
        ("Model with id 631b2d96 does not exist", "631b2d96"),
        ("Model with name a model of mine does not exist.", "a model of mine"),
        ("No models available", None),
        ("429 Model with name nope does not", None),
        ("The tool says: Model with name nope does not exist", None),
    ],
)
def test_an_unknown_name_is_read_from_the_words(message: str, name: str | None) -> None:
    """The model or provider that the gateway does not know is found."""
    with pytest.raises(RetryRouterError) as caught:
        read_event(json.dumps({"event": "error", "message": message}).encode())
    assert unknown_name(caught.value) == name

    body = json.dumps({"message": message}).encode()
    assert unknown_name(read_status_error(404, {}, body, unix_time=0.0)) == name
