"""`OpenAIChat`: a chat model as an LLM, whole on both majors of the SDK."""

import signal
import threading
from contextvars import ContextVar
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.messages import HumanMessage

from langchain_retryrouter import OpenAIChat, errors
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Answer,
    FakeClock,
    FaultyGateway,
    FunctionCall,
    SlowFirstToken,
    Status,
    ToolCall,
)

from .conftest import Env, NewLLM


def test_messages_stand_before_the_prompt(env: Env, method: str) -> None:
    """`prefix_messages`, as dicts or LangChain's, are sent before each prompt."""
    system = {"role": "system", "content": "Be brief."}
    llm = env.new(OpenAIChat, prefix_messages=[system, HumanMessage("Hello!")])
    for prompt in ("hi", "ho"):
        getattr(env, method)(llm, prompt)
    sent = [request.payload["messages"] for request in env.gateway.requests]
    users = [
        [{"role": "user", "content": text} for text in ("Hello!", prompt)]
        for prompt in ("hi", "ho")
    ]
    assert sent == [[system, *said] for said in users]


def test_a_cache_knows_the_messages_before_the_prompt(env: Env) -> None:
    """A prompt behind other messages is not answered from the cache."""
    env.gateway.script(Answer("a"), Answer("b"))
    cache = InMemoryCache()
    models = [
        env.new(OpenAIChat, cache=cache, prefix_messages=[("system", text)])
        for text in ("Be brief.", "Be loud.")
    ]
    assert [env.invoke(llm, "hi") for llm in models * 2] == [*"abab"]
    assert len(env.gateway.requests) == 2


def _said(request: Any) -> str:
    return f"said: {request.payload['messages'][-1]['content']}"


@pytest.mark.parametrize("n", [1, 2])
def test_several_prompts_are_answered_in_order(env: Env, n: int) -> None:
    """Each prompt is a request of its own; answers and usage belong together."""
    env.gateway.always(Answer(text=_said))
    prompts = [f"prompt {number}" for number in range(6)]
    result = env.generate(env.new(OpenAIChat, batch_size=3, n=n), prompts)
    texts = [[g.text for g in generations] for generations in result.generations]
    assert texts == [[f"said: {prompt}"] * n for prompt in prompts]
    assert result.llm_output["token_usage"]["total_tokens"] == 6 * (12 + 3 * n)
    assert len(result.llm_output["retryrouter"]["attempts"]) == 6


def test_prompts_are_asked_together(env: Env) -> None:
    """`batch_size` requests are under way together, and no more."""
    together: list[int] = []

    def step(_: Any) -> SlowFirstToken:
        pending = [r for r in env.gateway.requests if r.outcome == "pending"]
        together.append(len(pending))
        return SlowFirstToken(0.2)

    env.gateway.always(step)
    llm = env.new(OpenAIChat, batch_size=3)
    assert env.batch(llm, ["hi"] * 9) == [STUB_TEXT] * 9
    assert max(together) == 3


def test_after_a_failure_nothing_more_is_asked(env: Env) -> None:
    """When one of several prompts fails for good, those that wait are not sent."""
    env.gateway.script(Status(400))
    env.gateway.always(SlowFirstToken(0.5))
    llm = env.new(OpenAIChat, batch_size=2)
    with pytest.raises(errors.InvalidRequestError):
        env.batch(llm, ["hi"] * 9)
    assert len(env.gateway.requests) <= 2


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_who_interrupts_a_batch_is_heard(
    new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """After Ctrl-C the prompts that wait are not sent, and no thread is left behind."""

    def interrupt(_: Any) -> SlowFirstToken:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return SlowFirstToken(0.3)

    gateway.script(interrupt)
    gateway.always(SlowFirstToken(0.3))
    with pytest.raises(KeyboardInterrupt):
        new_llm(OpenAIChat, batch_size=2).batch(["hi"] * 20)
    for thread in threading.enumerate():
        if "PoolExecutor" in thread.name:
            thread.join(10)
            assert not thread.is_alive()
    assert len(gateway.requests) <= 4


def test_threads_know_the_callers_context(env: Env) -> None:
    """A key that is read from a context variable is the caller's for every prompt."""
    tenant: ContextVar[str] = ContextVar("tenant")
    tenant.set("sk-of-the-tenant")
    llm = env.new(OpenAIChat, api_key=tenant.get)
    env.batch(llm, ["hi"] * 3)
    keys = {request.headers["authorization"] for request in env.gateway.requests}
    assert keys == {"Bearer sk-of-the-tenant"}


async def test_one_failure_ends_the_others(
    new_llm: NewLLM, gateway: FaultyGateway, clock: FakeClock
) -> None:
    """When one of several async requests fails for good, its own error is raised."""

    def step(request: Any) -> Any:
        wrong = request.payload["messages"][-1]["content"] == "wrong"
        return Status(400) if wrong else SlowFirstToken(60)

    gateway.always(step)
    with pytest.raises(errors.InvalidRequestError) as caught:
        await new_llm(OpenAIChat).abatch(["right", "wrong", "right"])
    assert isinstance(caught.value.__cause__, Exception)
    assert caught.value.__context__ is caught.value.__cause__
    await gateway.await_for(lambda g: g.open_connections == 1)
    assert clock.sleeps == []


@pytest.mark.parametrize(
    "answer",
    [
        Answer(tool_calls=(ToolCall("get_weather", ('{"city":', '"Bonn"}')),)),
        Answer(function_call=FunctionCall("get_weather", ("{}",))),
    ],
    ids=["tool", "function"],
)
def test_a_tool_call_is_an_error(env: Env, answer: Any, streaming: bool) -> None:
    """A tool call is an error for an LLM, not an empty text."""
    env.gateway.script(Status(503), answer)
    llm = env.new(OpenAIChat, streaming=streaming)
    with pytest.raises(errors.InvalidRequestError, match=r"'get_weather'.*chat model"):
        env.invoke(llm, "hi")
    assert len(env.gateway.requests) == 2
