"""How much is read of an answer, and what is not done for a server that asks for it."""

from __future__ import annotations

import gzip
import zlib
from typing import Any

import pytest

from langchain_retryrouter import OpenAI, RetryPolicy, errors
from langchain_retryrouter._openai.clients import bounded_bodies
from langchain_retryrouter.testing import Body, FaultyGateway, Status

from .conftest import NewLLM

ANSWER = b'{"choices":[{"index":0,"text":"hi","finish_reason":"stop"}]}'
JSON = ("content-type", "application/json")


@pytest.fixture
def llm(new_llm: NewLLM) -> Any:
    """One that asks once."""
    return new_llm(OpenAI, retry_policy=RetryPolicy(max_retries=0))


def _raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", gzip.compress(ANSWER)),
        ("deflate", zlib.compress(ANSWER)),
        ("Deflate", _raw_deflate(ANSWER)),
        ("identity", ANSWER),
    ],
    ids=["gzip", "deflate", "raw deflate", "identity"],
)
def test_a_packed_answer_is_read(
    twin: Any, llm: Any, gateway: FaultyGateway, encoding: str, packed: bytes
) -> None:
    """What we ask for we unpack, in both forms that servers call deflate."""
    gateway.script(Body(200, [JSON, ("content-encoding", encoding)], packed))
    assert twin.invoke(llm, "hi") == "hi"
    assert gateway.requests[0].headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip"])
def test_an_encoding_that_nobody_asked_for_is_named(
    twin: Any, llm: Any, gateway: FaultyGateway, encoding: str
) -> None:
    """What cannot be unpacked piece by piece is refused by its name."""
    gateway.script(Body(200, [JSON, ("content-encoding", encoding)], ANSWER))
    with pytest.raises(errors.MalformedResponseError, match=encoding):
        twin.invoke(llm, "hi")


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_an_answer_that_is_too_large_is_left(
    twin: Any,
    llm: Any,
    gateway: FaultyGateway,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    *,
    packed: bool,
) -> None:
    """The limit is named, and holds behind the packing and for error pages too."""
    monkeypatch.setattr(bounded_bodies, "MAX_ANSWER_BYTES", 1000)
    body = b" " * 1001
    fields = [JSON, ("content-encoding", "gzip" if packed else "identity")]
    gateway.script(Body(status, fields, gzip.compress(body) if packed else body))
    with pytest.raises(errors.MalformedResponseError, match="more than 1000 bytes"):
        twin.invoke(llm, "hi")
    assert twin.invoke(llm, "hi")


def test_a_stream_may_be_longer_than_an_answer(
    twin: Any, llm: Any, gateway: FaultyGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a stream each event is measured, however many there are."""
    monkeypatch.setattr(bounded_bodies, "MAX_ANSWER_BYTES", 300)
    monkeypatch.setattr(bounded_bodies, "MAX_EVENT_BYTES", 600)
    assert "".join(twin.stream(llm, "hi"))
    unended = b"data: " + b"a" * 600
    gateway.script(Body(200, {"content-type": "text/event-stream"}, unended))
    with pytest.raises(errors.MalformedResponseError, match="event of more than 600"):
        twin.stream(llm, "hi")


@pytest.mark.parametrize("status", [301, 307, 308])
def test_a_redirect_is_not_followed(
    twin: Any, llm: Any, gateway: FaultyGateway, status: int
) -> None:
    """It would take the prompt to a host of the server's choice; it is named."""
    with FaultyGateway() as other:
        place = f"{other.openai_url}/completions"
        gateway.script(Status(status, {"location": place}, b""))
        with pytest.raises(errors.InvalidRequestError, match=place):
            twin.invoke(llm, "hi")
        assert not other.requests


def test_a_cookie_is_not_sent_back(twin: Any, llm: Any, gateway: FaultyGateway) -> None:
    """Models share their client, so what a server tells one is not for the others."""
    gateway.script(Body(200, [JSON, ("set-cookie", "a=b; path=/")], ANSWER))
    twin.invoke(llm, "hi")
    twin.invoke(llm, "hi")
    assert "cookie" not in gateway.requests[1].headers


@pytest.mark.parametrize("status", [200, 400])
def test_an_error_nested_a_thousand_deep_is_typed(
    twin: Any, llm: Any, gateway: FaultyGateway, status: int
) -> None:
    """No RecursionError comes out of telling what a server has said."""
    deep = b'{"error":{"message":' + b"[" * 900 + b"]" * 900 + b"}}"
    gateway.script(Body(status, [JSON], deep))
    with pytest.raises(errors.RetryRouterError):
        twin.invoke(llm, "hi")


def test_a_number_of_too_many_digits_is_no_json(
    twin: Any, llm: Any, gateway: FaultyGateway
) -> None:
    """An integer that Python refuses to write is refused where it is read."""
    events = b'data: {"choices":[' + b"9" * 5000 + b"]}\n\n"
    gateway.script(Body(200, {"content-type": "text/event-stream"}, events))
    with pytest.raises(errors.MalformedResponseError):
        twin.stream(llm, "hi")
