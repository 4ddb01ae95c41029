"""`completion_with_retry` as a user calls it, with our clients or their own."""

import asyncio
import inspect
import ssl
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from langchain_core.outputs import LLMResult
from pydantic import BaseModel

from langchain_retryrouter import OpenAI, OpenAIChat, RetryPolicy, errors
from langchain_retryrouter.llms import openai as module
from langchain_retryrouter.testing import (
    STUB_TEXT,
    FakeClock,
    FaultyGateway,
    Reset,
    Status,
    Truncate,
)

from .conftest import Env, NewLLM, Recorder, choice, in_turn, outcomes, own_clients

COMPLETION: dict[str, Any] = {"model": "m", "prompt": "hi"}
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


_at_both_endpoints = pytest.mark.parametrize(
    ("cls", "asked"), [(OpenAI, COMPLETION), (OpenAIChat, CHAT)]
)


def test_the_functions_are_langchain_communitys() -> None:
    """The signatures are those of langchain-community."""
    for function in (module.completion_with_retry, module.acompletion_with_retry):
        parameters = inspect.signature(function).parameters
        assert list(parameters) == ["llm", "run_manager", "kwargs"]
        assert parameters["run_manager"].default is None
        assert parameters["kwargs"].kind is inspect.Parameter.VAR_KEYWORD
    assert inspect.iscoroutinefunction(module.acompletion_with_retry)


@_at_both_endpoints
def test_the_answer_comes_back(env: Env, cls: Any, asked: dict[str, Any]) -> None:
    """The answer's JSON is returned, its fields as attributes, with the attempt log."""
    env.gateway.script(Status(503), Reset())
    answer = env.complete(module, env.new(cls), **asked, temperature=0.5)
    (choice,) = answer.choices
    assert answer["choices"][0]["finish_reason"] == choice.finish_reason
    text = choice.text if cls is OpenAI else choice.message.content
    assert text == STUB_TEXT
    assert outcomes(answer.retryrouter) == ["unavailable", "connection", "ok"]
    assert [line["route"] for line in answer.retryrouter["attempts"]] == ["m"] * 3
    assert env.gateway.requests[-1].payload == {**asked, "temperature": 0.5}


@_at_both_endpoints
def test_a_stream_comes_back(env: Env, cls: Any, asked: dict[str, Any]) -> None:
    """With `stream=True` chunks come; the one that ends has the attempt log."""
    env.gateway.script(Truncate(0), Status(503))
    chunks = env.complete(module, env.new(cls), **asked, stream=True)
    assert all(chunk.choices[0].logprobs is None for chunk in chunks)
    with_attempt_log = [chunk for chunk in chunks if hasattr(chunk, "retryrouter")]
    assert with_attempt_log == chunks[-1:]
    attempts = outcomes(chunks[-1].retryrouter)
    assert attempts == ["malformed", "unavailable", "ok"]


async def test_a_stream_begins_when_it_is_read(
    new_llm: NewLLM, gateway: FaultyGateway, clock: FakeClock
) -> None:
    """Before its first chunk is asked for, nothing is sent and no deadline runs."""
    llm = new_llm(retry_policy=RetryPolicy(deadline=5))
    chunks = module.completion_with_retry(llm, **COMPLETION, stream=True)
    achunks = await module.acompletion_with_retry(llm, **COMPLETION, stream=True)
    assert inspect.isgenerator(chunks)
    chunks.close()
    assert gateway.requests == []
    clock.advance(60)
    text = "".join([chunk.choices[0].text async for chunk in achunks])
    assert text == STUB_TEXT
    assert inspect.isasyncgen(achunks)


def test_all_methods_go_through_the_functions(
    every: Env, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every method calls the module's functions by name: they can be replaced."""
    run_managers: list[Any] = []
    answer = {"choices": [choice("mine", "stop")]}

    def replaced(_llm: Any, run_manager: Any = None, **kwargs: Any) -> Any:
        run_managers.append(run_manager)
        return [answer] if kwargs.get("stream") else answer

    async def areplaced(_llm: Any, run_manager: Any = None, **kwargs: Any) -> Any:
        run_managers.append(run_manager)
        return in_turn([answer]) if kwargs.get("stream") else answer

    monkeypatch.setattr(module, "completion_with_retry", replaced)
    monkeypatch.setattr(module, "acompletion_with_retry", areplaced)
    llm = every.new()
    assert every.invoke(llm, "hi") == "mine"
    assert every.stream(llm, "hi") == ["mine"]
    assert every.batch(llm, ["hi"]) == ["mine"]
    assert every.invoke(every.new(streaming=True), "hi") == "mine"
    assert len(run_managers) == 4
    assert None not in run_managers


# Somebody's own client.


class Own(list[dict[str, Any]]):
    """The requests of a model with clients of its own, which fail with these first."""

    def __init__(self, *failures: Exception, **fields: Any) -> None:
        super().__init__()
        self._failures = [*failures]
        clients = own_clients(self._answer)
        self.llm = OpenAI(**clients, clock=FakeClock(), **fields)

    def _answer(self, **request: Any) -> Any:
        self.append(request)
        if self._failures:
            raise self._failures.pop(0)
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        answer = {"choices": [choice("own", "stop")], "usage": usage}
        return [answer] if request.get("stream") else answer


def test_a_client_of_the_user_works(
    twin: Any, recorder: Recorder, streaming: bool
) -> None:
    """Any object with `create` is a client: dicts are read, failures retried."""
    lost, late = ConnectionResetError("gone"), TimeoutError("late")
    requests = Own(lost, late, streaming=streaming, callbacks=[recorder])
    result: LLMResult = twin.generate(requests.llm, ["hi"])
    assert result.generations[0][0].text == "own"
    assert result.llm_output is not None
    assert result.llm_output["token_usage"]["total_tokens"] == 2
    attempts = outcomes(result.llm_output["retryrouter"])
    assert attempts == ["connection", "timeout", "ok"]
    assert len(recorder.retries) == 2
    # Nothing was added that its `create` may not know.
    assert [sorted(request) for request in requests] == [sorted(requests[0])] * 3
    assert not {"timeout", "extra_headers"} & requests[0].keys()


REQUEST: Any = None  # The SDK's errors want one, and do without.
ANSWER: Any = SimpleNamespace(request=None, status_code=200, headers={})


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (openai.APITimeoutError(REQUEST), errors.APITimeoutError),
        (openai.APIConnectionError(request=REQUEST), errors.APIConnectionError),
        (
            openai.APIResponseValidationError(ANSWER, None),
            errors.MalformedResponseError,
        ),
        (openai.APIError("odd", REQUEST, body=None), errors.ServerError),
        (ssl.SSLError("broken"), errors.APIConnectionError),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "odd"), errors.MalformedResponseError),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_failures_of_a_client_of_the_user_are_named(
    twin: Any, failure: Exception, error: type[errors.RetryRouterError]
) -> None:
    """The SDK's exceptions, and Python's own of a lost connection, have their error."""
    with pytest.raises(error) as caught:
        twin.invoke(Own(failure, max_retries=0).llm, "hi")
    assert caught.value.__cause__ is failure


class Said(BaseModel):
    """An answer and its choice in a class of the user's own, without other fields."""

    text: str = ""
    finish_reason: str | None = None
    choices: list["Said"] = []


def test_answers_of_another_class_are_read(twin: Any) -> None:
    """A pydantic object is an answer, although its class cannot hold the log."""
    answer = Said(choices=[Said(text="own", finish_reason="stop")])
    llm = OpenAI(**own_clients(lambda **kw: [answer] if kw.get("stream") else answer))
    assert twin.invoke(llm, "hi") == "".join(twin.stream(llm, "hi")) == "own"


def test_a_client_of_the_user_needs_no_key() -> None:
    """A model with its own clients needs no key; a missing one says so when used."""
    assert Own().llm.openai_api_key is None
    half = OpenAI(client=Own().llm.client)
    assert half.invoke("hi") == "own"
    with pytest.raises(openai.OpenAIError, match="Missing credentials"):
        asyncio.run(half.ainvoke("hi"))


class SlowStream(threading.Event):
    """Its first chunk never comes, until it is closed from another thread."""

    close = threading.Event.set

    def __iter__(self) -> Iterator[Any]:
        self.wait(10)
        msg = "closed"
        raise ConnectionError(msg)
        yield


def test_a_stream_of_the_user_is_ended_by_its_close() -> None:
    """Where there is no socket to shut down, a stream that is overdue is closed."""
    policy = RetryPolicy(first_token_timeout=0.05, max_retries=0)
    client = SimpleNamespace(create=lambda **_: SlowStream())
    with pytest.raises(errors.APITimeoutError, match="no first token"):
        list(OpenAI(client=client, retry_policy=policy).stream("hi"))


def test_a_limit_reaches_a_client_of_the_user(twin: Any) -> None:
    """An attempt with a limit hands it to `create` as `timeout`."""
    requests = Own(retry_policy=RetryPolicy(deadline=7))
    twin.invoke(requests.llm, "hi", timeout=30)
    twin.invoke(requests.llm, "hi", timeout=(1, 30))
    limits = [request["timeout"].as_dict() for request in requests]
    seven = dict.fromkeys(("connect", "read", "write", "pool"), 7)
    assert limits == [seven, {**seven, "connect": 1}]


def test_raw_responses_pass(new_llm: NewLLM) -> None:
    """What is no completion, such as a raw response, is handed through as it is."""
    llm = new_llm()
    llm.client = llm.client.with_raw_response
    raw = module.completion_with_retry(llm, **COMPLETION)
    assert raw.parse().choices[0].text == STUB_TEXT


def test_a_failure_of_another_kind_is_not_ours(twin: Any) -> None:
    """A mistake in somebody's client comes out as it is, at once."""
    requests = Own(KeyError("a mistake"))
    with pytest.raises(KeyError, match="a mistake"):
        twin.invoke(requests.llm, "hi")
    assert len(requests) == 1


def test_a_stream_that_stops_short_of_a_client_of_the_user(twin: Any) -> None:
    """A truncated stream is an error whoever's client it came from."""
    llm = OpenAI(**own_clients(lambda **_: [{"choices": [choice("ow")]}]))
    with pytest.raises(errors.StreamInterruptedError) as caught:
        twin.stream(llm, "hi")
    assert caught.value.delivered == "ow"


def test_token_usage_is_updated_in_place() -> None:
    """`update_token_usage` adds what the keys name, as langchain-community's does."""
    usage: dict[str, Any] = {"total_tokens": 1}
    response = {"usage": {"total_tokens": 2, "prompt_tokens": None, "else": 3}}
    module.update_token_usage({"total_tokens", "prompt_tokens"}, response, usage)
    assert usage == {"total_tokens": 3, "prompt_tokens": 0}
    module.update_token_usage({"total_tokens"}, {"usage": None}, usage)
    assert usage["total_tokens"] == 3
