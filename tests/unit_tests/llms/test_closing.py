"""`close`, `aclose` and `with`: a connection is closed by its last user."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import openai

from langchain_retryrouter import OpenAI
from langchain_retryrouter.testing import STUB_TEXT, FaultyGateway

from .conftest import NewLLM, collect_garbage, in_loop


async def all_closed(gateway: FaultyGateway) -> None:
    """Wait, in the running loop, until the gateway has no connection."""
    await gateway.await_for(lambda g: g.open_connections == 0)


async def test_with_closes_the_connections(
    twin: Any, new_any: NewLLM, gateway: FaultyGateway
) -> None:
    """After the `with` no connection is open, while the model still exists."""
    llm = new_any()
    with contextlib.ExitStack() as stack:
        if not twin.is_async:
            stack.enter_context(llm)
        async with llm if twin.is_async else contextlib.nullcontext():
            assert await in_loop(twin, llm, "invoke", "hi") == STUB_TEXT
            assert gateway.open_connections == 1
    await all_closed(gateway)
    assert llm.client is not None


async def test_the_last_one_closes(
    twin: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """A client that another model uses stays open until that one is closed, too."""
    first, second = new_llm(), new_llm(n=2)
    await in_loop(twin, first, "invoke", "hi")
    await in_loop(twin, second, "invoke", "hi")
    await in_loop(twin, first, "close")
    assert await in_loop(twin, second, "invoke", "hi") == STUB_TEXT
    assert gateway.connections == 1
    await in_loop(twin, second, "close")
    await all_closed(gateway)


async def test_a_closed_model_can_be_used_again(
    twin: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """A call after `close` opens a new connection, and can be closed again."""
    llm = new_llm()
    for number in range(1, 4):
        assert await in_loop(twin, llm, "invoke", "hi") == STUB_TEXT
        assert gateway.connections == number
        await in_loop(twin, llm, "close")
        await in_loop(twin, llm, "close")
        await all_closed(gateway)


def test_close_of_an_unused_model_makes_no_client(
    twin: Any, new_any: NewLLM, gateway: FaultyGateway
) -> None:
    """To close a model that made no call is no error, and connects to nothing."""
    twin.call(new_any(), "close")
    assert gateway.connections == 0


def test_a_copy_may_be_closed_by_itself(new_llm: NewLLM) -> None:
    """A copy that was closed leaves the model usable."""
    llm = new_llm()
    llm.invoke("hi")
    copy.deepcopy(llm).close()
    assert llm.invoke("hi") == STUB_TEXT


async def test_a_client_of_the_user_stays_open(
    twin: Any, new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """The user's own HTTP client is used, and closed by nobody else."""
    kinds = (openai.DefaultHttpxClient, openai.DefaultAsyncHttpxClient)
    http_client: Any = kinds[twin.is_async](headers={"x-mine": "yes"})
    name = "http_async_client" if twin.is_async else "http_client"
    llm = new_llm(**{name: http_client})
    assert await in_loop(twin, llm, "invoke", "hi") == STUB_TEXT
    assert await in_loop(twin, new_llm(), "invoke", "hi") == STUB_TEXT
    sent = [request.headers.get("x-mine") for request in gateway.requests]
    assert sent == ["yes", None]
    await in_loop(twin, llm, "close")
    del llm
    collect_garbage()
    assert not http_client.is_closed
    closing = http_client.aclose() if twin.is_async else http_client.close()
    if closing is not None:
        await closing


def test_an_sdk_client_of_the_user_stays_open(gateway: FaultyGateway) -> None:
    """An SDK client that was handed in is not closed with the model."""
    with openai.OpenAI(api_key="any", base_url=gateway.openai_url) as client:
        with OpenAI(client=client.completions, api_key="any") as llm:
            assert llm.invoke("hi") == STUB_TEXT
        assert not client.is_closed()
