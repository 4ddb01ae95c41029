"""The four models over a gateway that fails on cue, with a clock nobody waits for."""

import asyncio
import functools
import gc
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.outputs import LLMResult
from tenacity import RetryCallState

from langchain_retryrouter import AzureOpenAI, BaseOpenAI, OpenAI, OpenAIChat
from langchain_retryrouter.testing import Body, FakeClock, FaultyGateway
from tests.unit_tests.conftest import Twin

KEY = "sk-the-key-of-the-tests"
JSON = {"content-type": "application/json"}
EVENTS = {"content-type": "text/event-stream"}
COMPLETIONS_MODELS = (BaseOpenAI, OpenAI, AzureOpenAI)
ALL_MODELS = (*COMPLETIONS_MODELS, OpenAIChat)


def choice(text: str, reason: str | None = None, **more: Any) -> dict[str, Any]:
    """A choice that both endpoints' readers understand, whole or streamed."""
    said = {"text": text, "message": {"content": text}, "delta": {"content": text}}
    return {"index": 0, **said, "finish_reason": reason, **more}


def whole(*choices: Any, **more: Any) -> Body:
    return Body(200, JSON, json.dumps({"choices": choices, **more}))


def streamed(*choices: Any) -> Body:
    """A whole stream with one of these choices in each chunk."""
    return events(*({"choices": [one]} for one in choices))


def events(*chunks: Any) -> Body:
    """A stream of these events, up to `[DONE]`."""
    data = [*map(json.dumps, chunks), "[DONE]"]
    return Body(200, EVENTS, "".join(f"data: {one}\n\n" for one in data))


def base_url(cls: Any, url: str) -> dict[str, str]:
    """The field of a model of this class that sends its requests to `url`."""
    return {"azure_endpoint" if issubclass(cls, AzureOpenAI) else "base_url": url}


def own_clients(answer: Callable[..., Any]) -> dict[str, Any]:
    """SDK clients of a user's own, whose `create` returns a stream for a list."""

    def create(**request: Any) -> Any:
        found = answer(**request)
        return (one for one in found) if isinstance(found, list) else found

    async def acreate(**request: Any) -> Any:
        found = answer(**request)
        return in_turn(found) if isinstance(found, list) else found

    clients = {"client": create, "async_client": acreate}
    return {name: SimpleNamespace(create=made) for name, made in clients.items()}


async def in_turn(things: list[Any]) -> AsyncIterator[Any]:
    for thing in things:
        yield thing


def outcomes(attempt_log: Any) -> list[str]:
    return [line["outcome"] for line in attempt_log["attempts"]]


NewLLM = Callable[..., Any]
"""Makes a model of a class and the test's gateway, with these fields besides."""


def collect_garbage() -> None:
    """Collect unused objects, and then those that only they referred to."""
    for _ in range(3):
        gc.collect()


async def in_loop(twin: Any, target: Any, name: str, *args: Any) -> Any:
    """`target.name(...)` in a thread, or `await target.aname(...)` in this loop."""
    if twin.is_async:
        return await getattr(target, f"a{name}")(*args)
    return await asyncio.to_thread(getattr(target, name), *args)


@pytest.fixture
def new_llm(gateway: FaultyGateway, clock: FakeClock) -> NewLLM:
    """Makes models of the test's gateway, on the test's clock."""

    def new_llm(cls: Any = OpenAI, **fields: Any) -> Any:
        settings: dict[str, Any] = {"api_key": KEY, "clock": clock}
        if issubclass(cls, AzureOpenAI):
            settings |= {
                "azure_endpoint": gateway.url,
                "azure_deployment": "my-deployment",
                "api_version": "2024-10-21",
            }
        else:
            settings["base_url"] = gateway.openai_url
        unset = {name for name in settings if fields.get(name, 1) is None}
        given = {**settings, **fields}
        return cls(**{n: v for n, v in given.items() if n not in unset})

    return new_llm


@pytest.fixture(params=ALL_MODELS, ids=lambda cls: cls.__name__)
def any_model(request: pytest.FixtureRequest) -> Any:
    """Each of the four classes."""
    return request.param


@pytest.fixture
def new_any(new_llm: NewLLM, any_model: Any) -> NewLLM:
    """Makes models as `new_llm`, of each of the four classes."""
    return functools.partial(new_llm, any_model)


@pytest.fixture(params=COMPLETIONS_MODELS, ids=lambda cls: cls.__name__)
def new_completions(request: pytest.FixtureRequest, new_llm: NewLLM) -> NewLLM:
    """Makes models as `new_llm`, of each class of `/v1/completions`."""
    return functools.partial(new_llm, request.param)


@dataclass(frozen=True)
class Env(Twin):
    """Sync or async calls, and models of the test's gateway, on the test's clock."""

    gateway: FaultyGateway
    clock: FakeClock
    new: NewLLM


@pytest.fixture
def env(twin: Twin, gateway: FaultyGateway, clock: FakeClock, new_llm: NewLLM) -> Env:
    """Run the test with sync calls and with async calls."""
    return Env(twin.is_async, gateway, clock, new_llm)


@pytest.fixture
def every(env: Env, new_any: NewLLM) -> Env:
    """Run it for each of the four classes as well."""
    return replace(env, new=new_any)


@pytest.fixture
def completions(env: Env, new_completions: NewLLM) -> Env:
    """Run it for each class of `/v1/completions` as well."""
    return replace(env, new=new_completions)


@pytest.fixture(params=[False, True], ids=["whole", "streaming"])
def streaming(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=["invoke", "stream"])
def method(request: pytest.FixtureRequest) -> str:
    """The method of the model that a test calls."""
    return str(request.param)


class Recorder(BaseCallbackHandler):
    """Writes down what a run's callbacks hear."""

    def __init__(self) -> None:
        self.retries: list[RetryCallState] = []
        self.tokens: list[str] = []
        self.token_facts: list[dict[str, Any]] = []
        self.results: list[LLMResult] = []
        self.errors: list[BaseException] = []

    def on_retry(self, retry_state: RetryCallState, **_: Any) -> None:
        self.retries.append(retry_state)

    def on_llm_new_token(self, token: Any, **facts: Any) -> None:
        self.tokens.append(token)
        self.token_facts.append(facts)

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        self.results.append(response)

    def on_llm_error(self, error: BaseException, **_: Any) -> None:
        self.errors.append(error)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()
