"""`close`, `aclose` and `with`: connections end when their last user says so."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import openai

from langchain_retryrouter import OpenAI
from langchain_retryrouter.testing import STUB_TEXT, FaultyGateway

from .conftest import NewLLM


def test_with_closes_the_connections(
    any_model: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """Behind the `with` no connection is open, while the model still exists."""
    with new_llm(any_model) as llm:
        assert llm.invoke("hi") == STUB_TEXT
        assert gateway.open_connections == 1
    gateway.wait_for(lambda g: g.open_connections == 0)
    assert llm.client is not None


def test_async_with_closes_the_connections(
    any_model: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """Async variant of the test above, while the loop goes on."""

    async def call() -> None:
        async with new_llm(any_model) as llm:
            assert await llm.ainvoke("hi") == STUB_TEXT
            assert gateway.open_connections == 1
        await gateway.await_for(lambda g: g.open_connections == 0)
        assert llm.async_client is not None

    asyncio.run(call())


def test_the_last_one_closes(new_llm: NewLLM, gateway: FaultyGateway) -> None:
    """A client that another model uses stays open until that one is closed, too."""
    first, second = new_llm(), new_llm(n=2)
    first.invoke("hi")
    second.invoke("hi")
    first.close()
    assert second.invoke("hi") == STUB_TEXT
    assert gateway.connections == 1
    second.close()
    gateway.wait_for(lambda g: g.open_connections == 0)


def test_the_last_one_closes_in_its_loop(
    new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """Async variant of the test above."""

    async def call() -> None:
        first, second = new_llm(), new_llm(n=2)
        await first.ainvoke("hi")
        await second.ainvoke("hi")
        await first.aclose()
        assert await second.ainvoke("hi") == STUB_TEXT
        assert gateway.connections == 1
        await second.aclose()
        await gateway.await_for(lambda g: g.open_connections == 0)

    asyncio.run(call())


def test_a_closed_model_can_be_used_again(
    new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """A call after `close` opens a new connection, and can be closed again."""
    llm = new_llm()
    for number in range(1, 4):
        assert llm.invoke("hi") == STUB_TEXT
        assert gateway.connections == number
        llm.close()
        llm.close()
        gateway.wait_for(lambda g: g.open_connections == 0)


def test_a_closed_model_can_be_used_again_in_its_loop(
    new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """Async variant of the test above."""

    async def call() -> None:
        llm = new_llm()
        for number in range(1, 4):
            assert await llm.ainvoke("hi") == STUB_TEXT
            assert gateway.connections == number
            await llm.aclose()
            await llm.aclose()
            await gateway.await_for(lambda g: g.open_connections == 0)

    asyncio.run(call())


def test_a_stream_under_way_is_not_needed_to_close(
    new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """A stream that nobody read to its end holds nothing up."""
    with new_llm() as llm:
        chunks = llm.stream("hi")
        next(chunks)
        chunks.close()
    gateway.wait_for(lambda g: g.open_connections == 0)


def test_nothing_is_closed_that_was_never_used(
    twin: Any, any_model: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """To close a model that made no call makes no client, and is no error."""
    twin.call(new_llm(any_model), "close")
    assert gateway.connections == 0


def test_a_copy_may_be_closed_by_itself(new_llm: NewLLM) -> None:
    """A copy that was closed leaves the model usable."""
    llm = new_llm()
    llm.invoke("hi")
    copy.deepcopy(llm).close()
    assert llm.invoke("hi") == STUB_TEXT


def test_what_is_the_users_stays_open(new_llm: NewLLM, gateway: FaultyGateway) -> None:
    """An HTTP client or a whole client that was handed in is not ours to close."""
    with openai.DefaultHttpxClient() as http_client:
        with new_llm(http_client=http_client) as llm:
            llm.invoke("hi")
        assert not http_client.is_closed
        assert gateway.open_connections == 1
    with openai.OpenAI(api_key="any", base_url=gateway.openai_url) as client:
        with OpenAI(client=client.completions, api_key="any") as llm:
            assert llm.invoke("hi") == STUB_TEXT
        assert not client.is_closed()


def test_what_is_the_users_stays_open_in_its_loop(
    new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """Async variant of the test above."""

    async def call() -> None:
        async with openai.DefaultAsyncHttpxClient() as http_client:
            async with new_llm(http_async_client=http_client) as llm:
                await llm.ainvoke("hi")
            assert not http_client.is_closed
            assert gateway.open_connections == 1

    asyncio.run(call())
