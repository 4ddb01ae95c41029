"""`completion_with_retry` as a user calls it, with our clients or their own."""

from __future__ import annotations

import asyncio
import inspect
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from langchain_core.outputs import LLMResult

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

from .conftest import KEY, NewLLM, Recorder

COMPLETION: dict[str, Any] = {"model": "m", "prompt": "hi"}
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_the_signatures() -> None:
    """Both functions are called as langchain-community's are."""
    for function in (module.completion_with_retry, module.acompletion_with_retry):
        parameters = inspect.signature(function).parameters
        assert list(parameters) == ["llm", "run_manager", "kwargs"]
        assert parameters["run_manager"].default is None
        assert parameters["kwargs"].kind is inspect.Parameter.VAR_KEYWORD
    assert inspect.iscoroutinefunction(module.acompletion_with_retry)


@pytest.mark.parametrize(
    ("cls", "request_"), [(OpenAI, COMPLETION), (OpenAIChat, CHAT)]
)
def test_the_sdks_answer_comes_back(
    twin: Any,
    new_llm: NewLLM,
    gateway: FaultyGateway,
    cls: Any,
    request_: dict[str, Any],
) -> None:
    """The answer's JSON is returned, its fields as attributes, with the attempt log."""
    gateway.script(Status(503), Reset())
    answer = twin.complete(module, new_llm(cls), **request_, temperature=0.5)
    assert answer["choices"][0]["finish_reason"] == answer.choices[0].finish_reason
    choice = answer.choices[0]
    text = choice.text if cls is OpenAI else choice.message.content
    assert text == STUB_TEXT
    outcomes = [line["outcome"] for line in answer.retryrouter["attempts"]]
    assert outcomes == ["unavailable", "connection", "ok"]
    assert [line["route"] for line in answer.retryrouter["attempts"]] == ["m"] * 3
    assert gateway.requests[-1].payload == {**request_, "temperature": 0.5}


@pytest.mark.parametrize(
    ("cls", "request_"), [(OpenAI, COMPLETION), (OpenAIChat, CHAT)]
)
def test_a_stream_comes_back(
    twin: Any,
    new_llm: NewLLM,
    gateway: FaultyGateway,
    cls: Any,
    request_: dict[str, Any],
) -> None:
    """With `stream=True` chunks come; the one that ends has the attempt log."""
    gateway.script(Truncate(0), Status(503))
    chunks = twin.complete(module, new_llm(cls), **request_, stream=True)
    assert all(chunk.choices[0].logprobs is None for chunk in chunks)
    with_attempt_log = [chunk for chunk in chunks if hasattr(chunk, "retryrouter")]
    assert with_attempt_log == chunks[-1:]
    outcomes = [line["outcome"] for line in chunks[-1].retryrouter["attempts"]]
    assert outcomes == ["malformed", "unavailable", "ok"]


def test_nothing_is_sent_before_the_first_chunk_is_asked_for(
    new_llm: NewLLM, gateway: FaultyGateway
) -> None:
    """A generator that nobody reads costs nothing, and its time does not run."""
    chunks = module.completion_with_retry(new_llm(), **COMPLETION, stream=True)
    achunks = asyncio.run(
        module.acompletion_with_retry(new_llm(), **COMPLETION, stream=True)
    )
    assert inspect.isgenerator(chunks)
    assert inspect.isasyncgen(achunks)
    chunks.close()
    assert gateway.requests == []


def test_the_deadline_of_a_stream_begins_with_it(
    new_llm: NewLLM, clock: FakeClock
) -> None:
    """Time that passes before the first chunk is asked for is not the call's."""
    llm = new_llm(retry_policy=RetryPolicy(deadline=5))
    chunks = module.completion_with_retry(llm, **COMPLETION, stream=True)
    clock.advance(60)
    assert "".join(chunk.choices[0].text for chunk in chunks) == STUB_TEXT


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_comes_out_typed(
    twin: Any, new_llm: NewLLM, gateway: FaultyGateway, stream: bool
) -> None:
    """What is raised is the typed error, as from the model's own methods."""
    gateway.always(Status(401))
    with pytest.raises(errors.AuthenticationError):
        twin.complete(module, new_llm(), **COMPLETION, stream=stream)


def test_all_methods_go_through_the_functions(
    twin: Any, new_any: NewLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every method calls the module's functions by name: they can be replaced."""
    calls: list[dict[str, Any]] = []

    def replaced(_llm: Any, run_manager: Any = None, **kwargs: Any) -> Any:
        calls.append({"run_manager": run_manager, **kwargs})
        choice = {"text": "mine", "message": {"content": "mine"}, "index": 0}
        chunk = {"text": "mine", "delta": {"content": "mine"}, "index": 0}
        ended = {"finish_reason": "stop"}
        if kwargs.get("stream"):
            return [{"choices": [{**chunk, **ended}]}]
        return {"choices": [{**choice, **ended}]}

    async def areplaced(llm: Any, run_manager: Any = None, **kwargs: Any) -> Any:
        answer = replaced(llm, run_manager, **kwargs)
        return _aiter(answer) if kwargs.get("stream") else answer

    monkeypatch.setattr(module, "completion_with_retry", replaced)
    monkeypatch.setattr(module, "acompletion_with_retry", areplaced)
    llm = new_any()
    assert twin.invoke(llm, "hi") == "mine"
    assert twin.stream(llm, "hi") == ["mine"]
    assert twin.batch(llm, ["hi"]) == ["mine"]
    assert twin.invoke(new_any(streaming=True), "hi") == "mine"
    assert len(calls) == 4
    assert all(call["run_manager"] is not None for call in calls)


async def _aiter(things: list[Any]) -> AsyncIterator[Any]:
    for thing in things:
        yield thing


# Somebody's own client.


class OwnClient:
    """Has `create` as the SDK's resource has, and fails as often as it is told."""

    def __init__(self, *failures: Exception) -> None:
        """These failures come first."""
        self.failures = list(failures)
        self.requests: list[dict[str, Any]] = []

    def _answer(self, request: dict[str, Any]) -> Any:
        self.requests.append(request)
        if self.failures:
            raise self.failures.pop(0)
        choice = {"index": 0, "text": "own", "finish_reason": "stop", "logprobs": None}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return {"choices": [choice], "usage": usage}

    def create(self, **request: Any) -> Any:
        """An answer as plain dicts."""
        answer = self._answer(request)
        return iter([answer]) if request.get("stream") else answer


class OwnAsyncClient(OwnClient):
    """Async variant of `OwnClient`."""

    async def create(self, **request: Any) -> Any:
        """An answer as plain dicts."""
        answer = self._answer(request)
        return _aiter([answer]) if request.get("stream") else answer


class SlowClient(OwnClient):
    """Streams that say nothing until they are closed, from another thread too."""

    def create(self, **_: Any) -> Any:
        """Such a stream."""
        return SlowStream()


class SlowStream:
    """Its first chunk never comes."""

    def __init__(self) -> None:
        """Open."""
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[Any]:
        """Nothing, and then a connection that is gone."""
        self.closed.wait(10)
        msg = "closed"
        raise ConnectionError(msg)
        yield

    def close(self) -> None:
        """Let the reader go."""
        self.closed.set()


def test_a_stream_of_the_user_is_ended_by_its_close() -> None:
    """Where there is no socket to shut down, a stream that is overdue is closed."""
    policy = RetryPolicy(first_token_timeout=0.05, max_retries=0)
    llm = OpenAI(client=SlowClient(), retry_policy=policy)
    with pytest.raises(errors.APITimeoutError, match="no first token"):
        list(llm.stream("hi"))


def own_model(*failures: Exception, **fields: Any) -> OpenAI:
    """A model with clients of its own, and no key."""
    return OpenAI(
        client=OwnClient(*failures),
        async_client=OwnAsyncClient(*failures),
        clock=FakeClock(),
        **fields,
    )


def client_of(llm: Any, twin: Any) -> OwnClient:
    """The client that the sync or async call uses."""
    client = llm.async_client if twin.is_async else llm.client
    assert isinstance(client, OwnClient)
    return client


def test_a_client_of_the_user_works(
    twin: Any, recorder: Recorder, streaming: bool
) -> None:
    """Any object with `create` is a client: dicts are read, failures retried."""
    lost = ConnectionResetError("gone")
    late = TimeoutError("late")
    llm = own_model(lost, late, streaming=streaming, callbacks=[recorder])
    result: LLMResult = twin.generate(llm, ["hi"])
    assert result.generations[0][0].text == "own"
    assert result.llm_output is not None
    assert result.llm_output["token_usage"]["total_tokens"] == 2
    attempts = result.llm_output["retryrouter"]["attempts"]
    outcomes = [line["outcome"] for line in attempts]
    assert outcomes == ["connection", "timeout", "ok"]
    assert len(recorder.retries) == 2
    requests = client_of(llm, twin).requests
    # Nothing was added that its `create` may not know.
    assert [sorted(request) for request in requests] == [sorted(requests[0])] * 3
    assert "timeout" not in requests[0]
    assert "extra_headers" not in requests[0]


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
    llm = own_model(failure, max_retries=0)
    with pytest.raises(error) as caught:
        twin.invoke(llm, "hi")
    assert caught.value.__cause__ is failure


def test_a_client_of_the_user_needs_no_key() -> None:
    """A model with its own clients needs no key; a missing one says so when used."""
    assert own_model().openai_api_key is None
    half = OpenAI(client=OwnClient())
    assert half.invoke("hi") == "own"
    with pytest.raises(openai.OpenAIError, match="Missing credentials"):
        asyncio.run(half.ainvoke("hi"))


def test_a_limit_reaches_a_client_of_the_user(twin: Any) -> None:
    """An attempt with a limit hands it to `create` as `timeout`."""
    llm = own_model(retry_policy=RetryPolicy(deadline=7))
    twin.invoke(llm, "hi", timeout=30)
    twin.invoke(llm, "hi", timeout=(1, 30))
    timeouts = [request["timeout"] for request in client_of(llm, twin).requests]
    assert [(t.connect, t.read, t.write, t.pool) for t in timeouts] == [
        (7, 7, 7, 7),
        (1, 7, 7, 7),
    ]


def test_the_sdks_own_resource_is_a_client(
    twin: Any, gateway: FaultyGateway, clock: FakeClock
) -> None:
    """A resource of the user's own SDK client is used as it is."""
    settings: Any = {"api_key": KEY, "base_url": gateway.openai_url, "max_retries": 0}

    async def acall() -> str:
        async with openai.AsyncOpenAI(**settings) as client:
            llm = OpenAI(async_client=client.completions, clock=clock, api_key=KEY)
            return await llm.ainvoke("hi")

    gateway.script(Status(503))
    if twin.is_async:
        assert asyncio.run(acall()) == STUB_TEXT
    else:
        with openai.OpenAI(**settings) as client:
            llm = OpenAI(client=client.completions, clock=clock, api_key=KEY)
            assert llm.invoke("hi") == STUB_TEXT
    assert len(gateway.requests) == 2


def test_raw_responses_pass(new_llm: NewLLM) -> None:
    """What is no completion, such as a raw response, is handed through as it is."""
    llm = new_llm()
    llm.client = llm.client.with_raw_response
    raw = module.completion_with_retry(llm, **COMPLETION)
    assert raw.parse().choices[0].text == STUB_TEXT


def test_a_failure_of_another_kind_is_not_ours(twin: Any) -> None:
    """A mistake in somebody's client comes out as it is, at once."""
    llm = own_model(KeyError("a mistake"))
    with pytest.raises(KeyError, match="a mistake"):
        twin.invoke(llm, "hi")
    assert len(client_of(llm, twin).requests) == 1


def test_a_stream_that_stops_short_of_a_client_of_the_user(twin: Any) -> None:
    """A truncated stream is an error whoever's client it came from."""

    class Short(OwnClient):
        def create(self, **_: Any) -> Iterator[Any]:
            return iter([{"choices": [{"index": 0, "text": "ow"}]}])

    class AShort(OwnClient):
        async def create(self, **_: Any) -> AsyncIterator[Any]:
            return _aiter([{"choices": [{"index": 0, "text": "ow"}]}])

    llm = OpenAI(client=Short(), async_client=AShort())
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


def test_what_the_module_offers() -> None:
    """The names of langchain-community's module are here."""
    assert sorted(module.__all__) == [
        "AzureOpenAI",
        "BaseOpenAI",
        "OpenAI",
        "OpenAIChat",
        "acompletion_with_retry",
        "completion_with_retry",
        "update_token_usage",
    ]
