"""Who is asked, row by row: our models over both gateways, and the peers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import openai
from gpt_router import exceptions as gpt_router
from langchain_core.language_models import BaseLanguageModel
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from langchain_retryrouter import (
    AzureOpenAI,
    GPTRouter,
    GPTRouterModel,
    OpenAI,
    OpenAIChat,
    RetryPolicy,
    RetryRouter,
)
from langchain_retryrouter.testing import FakeClock
from tests.promises.faults import KEY, TOO_LATE, Family, Fault, Meaning

PLENTY: Final = 15.0
"""Seconds of silence that no row comes near to."""


@dataclass(frozen=True)
class Way:
    """One of the four ways to ask."""

    is_async: bool
    is_stream: bool

    def fits(self, fault: Fault) -> bool:
        """Whether `fault` can happen this way."""
        return fault.ways in {"any", "stream" if self.is_stream else "answer"}


WAYS: Final = tuple(
    Way(is_async=a, is_stream=s) for a in (False, True) for s in (False, True)
)


@dataclass(frozen=True)
class Asker:
    """A kind of model.

    Attributes:
        name: What it is called in a failure.
        family: Whose protocol it speaks.
        new: Makes one for an address, with so many retries and so much patience.
        sdk: What the SDK itself raises for a status; None where nobody promises it.
        is_router: Whether it is a `RetryRouter`, which leaves a route that times out.
        edition: Which GPTRouter it is to speak to.
    """

    name: str
    family: Family
    new: Callable[[str, int, float], BaseLanguageModel[Any]]
    sdk: Callable[[int | None], type[Exception] | None]
    is_router: bool = False
    edition: Any = "public"

    def attempts(self, fault: Fault, retries: int) -> int:
        """How often a call with so many retries is to try."""
        if self.is_router and fault.meaning is TOO_LATE:
            return 1  # A route that timed out is left; there is no other.
        if self.family == "gptrouter" and fault.name == "an unknown authority":
            return 1  # A certificate that is wrong now is wrong in a second too.
        return 1 + retries * fault.may_pass

    def owns(self, meaning: Meaning, retries: int) -> bool:
        """Whether a call with so many retries leaves none to others."""
        return retries > 0 and not (self.is_router and meaning is TOO_LATE)


# --- ours ---


def _gpt_router(address: str, retries: int, patience: float) -> GPTRouter:
    return GPTRouter(
        models_priority_list=[GPTRouterModel(name="gpt-4", provider_name="openai")],
        gpt_router_api_base=address,
        gpt_router_api_key=SecretStr(KEY),
        max_retries=retries,
        timeout=(PLENTY, patience),
        clock=FakeClock(),
    )


def _openai(cls: type[OpenAI | OpenAIChat]) -> Callable[[str, int, float], Any]:
    def new(address: str, retries: int, patience: float) -> OpenAI | OpenAIChat:
        return cls(
            base_url=f"{address}/v1",
            api_key=SecretStr(KEY),
            max_retries=retries,
            timeout=(PLENTY, patience),
            clock=FakeClock(),
        )

    return new


def _azure(address: str, retries: int, patience: float) -> AzureOpenAI:
    return AzureOpenAI(
        azure_endpoint=address,
        azure_deployment="mine",
        api_version="2024-10-21",
        api_key=SecretStr(KEY),
        max_retries=retries,
        timeout=(PLENTY, patience),
        clock=FakeClock(),
    )


def chat_openai(address: str, retries: int, patience: float) -> ChatOpenAI:
    """The peer, with HTTP clients of its own."""
    return ChatOpenAI(
        model="gpt-4o",
        base_url=f"{address}/v1",
        api_key=SecretStr(KEY),
        max_retries=retries,
        timeout=patience,
        http_client=openai.DefaultHttpxClient(),
        http_async_client=openai.DefaultAsyncHttpxClient(),
    )


def _router(address: str, retries: int, patience: float) -> RetryRouter:
    return RetryRouter(
        routes=[chat_openai(address, 0, patience)],
        retry_policy=RetryPolicy(max_retries=retries),
        breaker=None,
        clock=FakeClock(),
    )


# --- what the SDKs raise themselves, from their documents ---

_OPENAI: Final = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    409: openai.ConflictError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
}
_GPT_ROUTER: Final = {
    400: gpt_router.GPTRouterBadRequestError,
    401: gpt_router.GPTRouterUnauthorizedError,
    403: gpt_router.GPTRouterForbiddenError,
    406: gpt_router.GPTRouterNotAvailableError,
    429: gpt_router.GPTRouterTooManyRequestsError,
    500: gpt_router.GPTRouterInternalServerError,
    503: gpt_router.GPTRouterNotAvailableError,
}


def _openai_class(status: int | None) -> type[Exception] | None:
    if status is None:
        return openai.APIError
    if status >= 500:
        return openai.InternalServerError
    return _OPENAI.get(status, openai.APIStatusError)


def _gpt_router_class(status: int | None) -> type[Exception] | None:
    return _GPT_ROUTER.get(status or 0)


def _no_class(status: int | None) -> None:
    del status


ASKERS: Final = (
    Asker("GPTRouter, public", "gptrouter", _gpt_router, _gpt_router_class),
    Asker(
        "GPTRouter, hosted",
        "gptrouter",
        _gpt_router,
        _gpt_router_class,
        edition="hosted",
    ),
    Asker("OpenAI", "openai", _openai(OpenAI), _openai_class),
    Asker("OpenAIChat", "openai", _openai(OpenAIChat), _openai_class),
    Asker("AzureOpenAI", "openai", _azure, _openai_class),
    Asker("RetryRouter", "openai", _router, _no_class, is_router=True),
)


class Models:
    """The models of one kind, made when first asked, and one event loop for all."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._made: dict[tuple[str, int, float], Any] = {}
        self._runner = asyncio.Runner()

    def error(
        self, way: Way, fault: Fault, address: str, retries: int
    ) -> Exception | None:
        """What the call raises; None if it brought an answer."""
        key = (address, retries, fault.timeout or PLENTY)
        if key not in self._made:
            self._made[key] = self._asker.new(*key)
        try:
            self._ask(way, self._made[key])
        except Exception as error:  # noqa: BLE001 - it is what is looked at
            return error
        return None

    def _ask(self, way: Way, model: Any) -> None:
        if way.is_async:
            self._runner.run(_drained(model) if way.is_stream else model.ainvoke("hi"))
        elif way.is_stream:
            for _ in model.stream("hi"):
                pass
        else:
            model.invoke("hi")

    def close(self) -> None:
        """Close the HTTP clients that are nobody else's to close, and the loop."""
        for model in self._made.values():
            routes = getattr(model, "routes", None)
            inner = routes[0].model if routes else model
            if isinstance(inner, ChatOpenAI):
                clients: Any = inner.http_client, inner.http_async_client
                clients[0].close()
                self._runner.run(clients[1].aclose())
        self._runner.close()


async def _drained(model: Any) -> None:
    async for _ in model.astream("hi"):
        pass


@contextlib.contextmanager
def models_of(asker: Asker) -> Iterator[Models]:
    """The models of one kind, closed behind the `with`."""
    models = Models(asker)
    try:
        yield models
    finally:
        models.close()
