"""Faults that the bench has no scenario for, and callers meet all the same."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from langchain_openai import ChatOpenAI
from openai import DefaultAsyncHttpxClient, DefaultHttpxClient
from pydantic import SecretStr

from benchmarks.failover.provider import TEXT
from benchmarks.peers import asked
from langchain_retryrouter import RetryPolicy, RetryRouter
from langchain_retryrouter.testing import (
    Answer,
    Cut,
    Drip,
    ErrorEvent,
    FakeClock,
    FaultyGateway,
    Raw,
    Step,
    Truncate,
)

_SOON = 1.0
"""Seconds that a first token may take, and a silence may last."""

_STREAMS = ["astream", "stream"]

streams_only = pytest.mark.parametrize("way", _STREAMS)


@dataclass
class Providers:
    """A primary, a backup, and the models over both."""

    primary: FaultyGateway
    backup: FaultyGateway

    def __post_init__(self) -> None:
        self.models = [
            ChatOpenAI(
                model=name,
                base_url=gateway.openai_url,
                api_key=SecretStr("any"),
                timeout=10,
                # Those that `ChatOpenAI` shares would outlive the test and its port.
                http_client=DefaultHttpxClient(verify=False),
                http_async_client=DefaultAsyncHttpxClient(verify=False),
            )
            for name, gateway in (("first", self.primary), ("second", self.backup))
        ]

    async def aclose(self) -> None:
        """Close the connections of the models."""
        for model in self.models:
            await model.root_async_client.close()
            model.root_client.close()

    def router(self, **fields: Any) -> RetryRouter:
        """A router over both; a held back stream unless `fields` say otherwise."""
        policy = RetryPolicy(
            first_token_timeout=_SOON, stall_timeout=_SOON, initial_delay=0.1
        )
        return RetryRouter(
            **{
                "routes": self.models,
                "retry_policy": policy,
                "stream_recovery": "buffer",
                **fields,
            }
        )

    @property
    def asked(self) -> tuple[int, int]:
        """How many requests the primary has seen, and the backup."""
        return len(self.primary.requests), len(self.backup.requests)


async def _ask(router: RetryRouter, way: str) -> str:
    ask = asked(router, is_sync=not way.startswith("a"))
    return (await ask("Say it.", way.endswith("stream"))).text


@pytest.fixture
async def providers() -> AsyncIterator[Providers]:
    async with (
        FaultyGateway(answer=Answer(TEXT)) as primary,
        FaultyGateway(answer=Answer(TEXT)) as backup,
    ):
        providers = Providers(primary, backup)
        yield providers
        await providers.aclose()


@streams_only
@pytest.mark.parametrize(
    "step",
    [Truncate(after=40), ErrorEvent("upstream is gone", after=20), Cut(30, how="rst")],
    ids=["clean-end", "error-event", "reset"],
)
async def test_a_stream_that_breaks_in_any_way_is_continued(
    way: str, providers: Providers, step: Step
) -> None:
    """Whatever ends it too early, the rest is asked for elsewhere and joins on."""
    providers.primary.always(step)
    assert await _ask(providers.router(stream_recovery="continue"), way) == TEXT
    assert providers.asked == (1, 1)


@streams_only
@pytest.mark.parametrize("after", [0, 20])
async def test_an_error_inside_a_stream_is_a_failure(
    way: str, providers: Providers, fake_clock: FakeClock, after: int
) -> None:
    """A 200 that turns into an error, at once or later, ends in the whole answer."""
    providers.primary.always(ErrorEvent("upstream is gone", after=after))
    assert await _ask(providers.router(clock=fake_clock), way) == TEXT
    assert providers.asked == (3, 1)


@streams_only
@pytest.mark.parametrize("last", [b"", b"0\r\n\r\n"], ids=["cut-off", "cleanly-ended"])
async def test_half_a_character_is_never_handed_over(
    way: str, providers: Providers, fake_clock: FakeClock, last: bytes
) -> None:
    """A stream that dies inside a character leaves no trace in the whole answer."""
    said = '{"choices":[{"index":0,"delta":{"content":"Gr\u00fc'.encode()
    data = b"data: " + said[:-1]
    # It closes, and says so: a client that kept the connection might race its end.
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    head += b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    body = b"%x\r\n%b\r\n" % (len(data), data)
    providers.primary.always(Raw(head + body + last))
    assert await _ask(providers.router(clock=fake_clock), way) == TEXT
    assert providers.asked == (3, 1)


@streams_only
async def test_a_stream_that_drips_too_slowly_is_left(
    way: str, providers: Providers
) -> None:
    """Bytes that never become a token do not keep a caller waiting."""
    providers.primary.always(Drip(seconds=0.05))
    assert await _ask(providers.router(), way) == TEXT
    assert providers.asked == (1, 1)
