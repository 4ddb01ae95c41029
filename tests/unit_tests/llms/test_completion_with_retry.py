"""`completion_with_retry` as a user calls it, with our clients or their own."""

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

from .conftest import KEY, Env, NewLLM, Recorder, choice, in_loop, outcomes

COMPLETION: dict[str, Any] = {"model": "m", "prompt": "hi"}
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(params=[OpenAI, OpenAIChat])
def cls(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_the_module_is_langchain_communitys() -> None:
    """Names and signatures of the module are those of langchain-community."""
    assert sorted(module.__all__) == [
        "AzureOpenAI",
        "BaseOpenAI",
        "OpenAI",
        "OpenAIChat",
        "acompletion_with_retry",
        "completion_with_retry",
        "update_token_usage",
    ]
    for function in (module.completion_with_retry, module.acompletion_with_retry):
        parameters = inspect.signature(function).parameters
        assert list(parameters) == ["llm", "run_manager", "kwargs"]
        assert parameters["run_manager"].default is None
        assert parameters["kwargs"].kind is inspect.Parameter.VAR_KEYWORD
    assert inspect.iscoroutinefunction(module.acompletion_with_retry)


def test_the_answer_comes_back(env: Env, cls: Any) -> None:
    """The answer's JSON is returned, its fields as attributes, with the attempt log."""
    request = CHAT if cls is OpenAIChat else COMPLETION
    env.gateway.script(Status(503), Reset())
    answer = env.complete(module, env.new(cls), **request, temperature=0.5)
    (choice,) = answer.choices
    assert answer["choices"][0]["finish_reason"] == choice.finish_reason
    text = choice.text if cls is OpenAI else choice.message.content
    assert text == STUB_TEXT
    assert outcomes(answer.retryrouter) == ["unavailable", "connection", "ok"]
    assert [line["route"] for line in answer.retryrouter["attempts"]] == ["m"] * 3
    assert env.gateway.requests[-1].payload == {**request, "temperature": 0.5}


def test_a_stream_comes_back(env: Env, cls: Any) -> None:
    """With `stream=True` chunks come; the one that ends has the attempt log."""
    request = CHAT if cls is OpenAIChat else COMPLETION
    env.gateway.script(Truncate(0), Status(503))
    chunks = env.complete(module, env.new(cls), **request, stream=True)
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
        return _aiter([answer]) if kwargs.get("stream") else answer

    monkeypatch.setattr(module, "completion_with_retry", replaced)
    monkeypatch.setattr(module, "acompletion_with_retry", areplaced)
    llm = every.new()
    assert every.invoke(llm, "hi") == "mine"
    assert every.stream(llm, "hi") == ["mine"]
    assert every.batch(llm, ["hi"]) == ["mine"]
    assert every.invoke(every.new(streaming=True), "hi") == "mine"
    assert len(run_managers) == 4
    assert None not in run_managers


async def _aiter(things: list[Any]) -> AsyncIterator[Any]:
    for thing in things:
        yield thing


# Somebody's own client.


class OwnClient:
    """Has `create` as the SDK's resource has, and raises these failures first."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.requests: list[dict[str, Any]] = []

    def _answer(self, request: dict[str, Any]) -> Any:
        self.requests.append(request)
        if self.failures:
            raise self.failures.pop(0)
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return {"choices": [choice("own", "stop")], "usage": usage}

    def create(self, **request: Any) -> Any:
        answer = self._answer(request)
        return iter([answer]) if request.get("stream") else answer


class OwnAsyncClient(OwnClient):
    """Async variant of `OwnClient`."""

    async def create(self, **request: Any) -> Any:
        answer = self._answer(request)
        return _aiter([answer]) if request.get("stream") else answer


class SlowStream:
    """Its first chunk never comes, until it is closed from another thread."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[Any]:
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
    client = SimpleNamespace(create=lambda **_: SlowStream())
    with pytest.raises(errors.APITimeoutError, match="no first token"):
        list(OpenAI(client=client, retry_policy=policy).stream("hi"))


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
    lost, late = ConnectionResetError("gone"), TimeoutError("late")
    llm = own_model(lost, late, streaming=streaming, callbacks=[recorder])
    result: LLMResult = twin.generate(llm, ["hi"])
    assert result.generations[0][0].text == "own"
    assert result.llm_output is not None
    assert result.llm_output["token_usage"]["total_tokens"] == 2
    attempts = outcomes(result.llm_output["retryrouter"])
    assert attempts == ["connection", "timeout", "ok"]
    assert len(recorder.retries) == 2
    requests = client_of(llm, twin).requests
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


async def test_the_sdks_own_resource_is_a_client(
    twin: Any, gateway: FaultyGateway, clock: FakeClock
) -> None:
    """A resource of the user's own SDK client is used as it is."""
    settings: Any = {"api_key": KEY, "base_url": gateway.openai_url, "max_retries": 0}
    gateway.script(Status(503))
    with openai.OpenAI(**settings) as client:
        async with openai.AsyncOpenAI(**settings) as async_client:
            own: dict[str, Any] = {"client": client.completions}
            own["async_client"] = async_client.completions
            llm = OpenAI(**own, clock=clock, api_key=KEY)
            assert await in_loop(twin, llm, "invoke", "hi") == STUB_TEXT
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

    async def create(**_: Any) -> Any:
        return _aiter([{"choices": [choice("ow")]}])

    llm = OpenAI(
        client=SimpleNamespace(create=lambda **_: iter([{"choices": [choice("ow")]}])),
        async_client=SimpleNamespace(create=create),
    )
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
