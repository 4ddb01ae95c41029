"""A route: a chat model that can answer, and what a router has to know about it.

A route's model is called below its public methods, by `_generate` and `_stream`: the
run that tracers see, and that callbacks and token counts belong to, is the router's.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import (
    AsyncGenerator,
    Callable,
    Container,
    Generator,
    Iterator,
    Sequence,
)
from typing import Any, Final, Self, cast

from langchain_core.globals import get_llm_cache
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import (
    Runnable,
    RunnableBinding,
    RunnableWithFallbacks,
)
from langchain_core.runnables.retry import RunnableRetry
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from langchain_retryrouter._callbacks import RetryVisibleChatModel
from langchain_retryrouter._providers.history import provider_of
from langchain_retryrouter._providers.integrations import disable_retries
from langchain_retryrouter._router.cost import RouteCost
from langchain_retryrouter.circuit_breaker import CircuitBreaker

_UNHEARD = (
    "has callbacks, which are not called, since the run that handlers see is the"
    " router's; give them to the router"
)

# What LangChain does around a model's `_generate`; the second does that alone, too,
# where there is no run of the model's own.
_PLAIN: Final = (BaseChatModel, RetryVisibleChatModel)
_WAYS: Final = (
    ("_generate_with_cache", "_generate"),
    ("_agenerate_with_cache", "_agenerate"),
)


class Route(BaseModel):
    """One model that can answer.

    Attributes:
        model: Any LangChain chat model, or one with options bound to it.
        name: What ledgers and errors call it; by default the model's own name.
        weight: Its share of the calls under the strategy "weighted".
        supports_prefill: Whether it goes on where a last message of the assistant's
            ends, so that a broken stream can be continued there. Of one that does not,
            and is said to, the caller would get the beginning twice.
        input_price: Money for a million tokens of a prompt, for `explain`.
        output_price: Money for a million tokens of an answer, for `explain` and
            `max_price`.
        breaker: A breaker that it shares with others; by default one of its own, with
            the router's numbers.
        options: Options that every call of this route has.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", frozen=True)

    model: BaseChatModel = Field(repr=False)
    name: str = ""
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    supports_prefill: bool = False
    input_price: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    output_price: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    breaker: CircuitBreaker | None = Field(default=None, repr=False)
    options: dict[str, Any] = Field(default_factory=dict, repr=False)

    _fare: RouteCost = PrivateAttr(RouteCost(""))
    _provider: str = PrivateAttr("")
    _is_plain: bool = PrivateAttr(default=False)

    @model_validator(mode="before")
    @classmethod
    def _unbind(cls, values: Any) -> Any:
        """Take a model that has options bound to it apart."""
        if not isinstance(values, dict):
            return values
        _check_unconfigured(values.get("model"))
        model, options = unbound(values.get("model"))
        if not isinstance(model, BaseChatModel):
            raise TypeError(_why_not(model))
        options |= values.get("options", {})
        return {**values, "model": model, "options": options}

    @model_validator(mode="after")
    def _name_it(self) -> Self:
        if not self.name:
            object.__setattr__(self, "name", model_name_of(self.model))
        self._look_at_model()
        return self

    def _look_at_model(self) -> None:
        """Keep what is alike in each call."""
        self._provider = provider_of(self.model)
        self._is_plain = is_plain(self.model)

    @property
    def route_cost(self) -> RouteCost:
        """What an attempt costs at the most; known once the route is in a router."""
        return self._fare

    @property
    def provider(self) -> str:
        """Who the model's provider is, by the name that its integration gives it."""
        return self._provider

    def retries_disabled(self, name: str) -> Route:
        """This route as `name`, with a model that sends each request once if it can."""
        model, complaint, disabled_retries, requests, waited = disable_retries(
            self.model
        )
        unheard = _UNHEARD if model.callbacks else None
        warnings = tuple(filter(None, (complaint, unheard)))
        route = self.model_copy(update={"model": model, "name": name})
        route._fare = RouteCost(  # noqa: SLF001 - a route's own copy
            name,
            requests,
            waited,
            self.input_price,
            self.output_price,
            self._fare.disabled_retries or disabled_retries,
            warnings,
        )
        return route

    def with_tools(self, tools: Sequence[Any], **kwargs: Any) -> Route:
        """This route, offering `tools` in its provider's own form.

        Raises:
            TypeError: If its model binds them in a way that cannot be routed to.
        """
        given = RunnableBinding(bound=self.model, kwargs=self.options)
        bound = self.model.bind_tools(tools, **kwargs)
        model, options = unbound(bound)
        if not isinstance(model, BaseChatModel):
            msg = f"route {self.name!r} cannot be offered tools: it made {bound!r}"
            raise TypeError(msg)
        options = {**given.kwargs, **options}
        route = self.model_copy(update={"model": model, "options": options})
        route._look_at_model()  # noqa: SLF001 - a route's own copy
        return route

    def generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        options: dict[str, Any],
    ) -> ChatResult:
        """The model's answer, by its own cache and rate limiter."""
        options = self._options(stop, options)
        if self._is_asked_directly(options, async_api=False):
            return self.model._generate(  # noqa: SLF001 - see above
                messages, run_manager=None, **options
            )
        return self.model._generate_with_cache(messages, **options)  # noqa: SLF001

    async def agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        options: dict[str, Any],
    ) -> ChatResult:
        """Async twin of `generate`."""
        options = self._options(stop, options)
        if self._is_asked_directly(options, async_api=True):
            return await self.model._agenerate(  # noqa: SLF001
                messages, run_manager=None, **options
            )
        return await self.model._agenerate_with_cache(  # noqa: SLF001
            messages, **options
        )

    def stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        options: dict[str, Any],
    ) -> Generator[ChatGenerationChunk, None, None]:
        """The chunks of the model's answer; all in one from a model without streams."""
        options = self._options(stop, options)
        if not self._can_stream(options, async_api=False):
            yield from as_chunks(self.generate(messages, None, options))
            return
        if self.model.rate_limiter is not None:
            self.model.rate_limiter.acquire(blocking=True)
        streamed = self.model._stream(messages, **options)  # noqa: SLF001
        chunks = cast("Generator[ChatGenerationChunk, None, None]", streamed)
        with contextlib.closing(chunks):
            yield from chunks

    async def astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        options: dict[str, Any],
    ) -> AsyncGenerator[ChatGenerationChunk, None]:
        """Async twin of `stream`."""
        options = self._options(stop, options)
        if not self._can_stream(options, async_api=True):
            for chunk in as_chunks(await self.agenerate(messages, None, options)):
                yield chunk
            return
        if self.model.rate_limiter is not None:
            await self.model.rate_limiter.aacquire(blocking=True)
        streamed = self.model._astream(messages, **options)  # noqa: SLF001
        chunks = cast("AsyncGenerator[ChatGenerationChunk, None]", streamed)
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    def _options(
        self, stop: list[str] | None, options: dict[str, Any]
    ) -> dict[str, Any]:
        """What the model is told: the call's word goes before the route's own."""
        told = {**self.options, **options}
        if stop is not None or "stop" not in told:
            told["stop"] = stop
        return told

    def _is_asked_directly(self, options: dict[str, Any], *, async_api: bool) -> bool:
        """Whether there is nothing to be done around the model's `_generate`.

        What LangChain makes of an answer it makes of the router's. Of a route it would
        look into the cache, ask the limiter, and stream where the model is told to: as
        much work for each attempt as all of the router's own.
        """
        model = self.model
        has_cache = model.cache is not False and (
            model.cache is not None or get_llm_cache() is not None
        )
        return (
            self._is_plain
            and not has_cache
            and model.rate_limiter is None
            and model.output_version != "v1"
            and not model._should_stream(  # noqa: SLF001 - as below
                async_api=async_api, **options
            )
        )

    def _can_stream(self, options: dict[str, Any], *, async_api: bool) -> bool:
        return self.model._should_stream(  # noqa: SLF001 - who else could say?
            async_api=async_api, **{**options, "stream": True}
        )


def disable_own_retries(routes: list[Route], names: list[str]) -> list[Route]:
    """The routes under these names, quietened; what cannot be is said in a warning."""
    retries_disabled = [
        route.retries_disabled(name) for route, name in zip(routes, names, strict=True)
    ]
    said = [
        f"route {r.name!r} {why}"
        for r in retries_disabled
        for why in r.route_cost.warnings
    ]
    if said:
        # Past the validator and the two `__init__`s, to whoever makes the router.
        warnings.warn("; ".join(said), UserWarning, stacklevel=5)
    return retries_disabled


def _why_not(model: Any) -> str:
    if isinstance(model, RunnableRetry):
        return (
            "a route's model must be the chat model itself, without `with_retry`, whose"
            " retries would multiply with the router's: give the router a RetryPolicy"
        )
    if isinstance(model, RunnableWithFallbacks):
        return (
            "a route's model must be one chat model, without `with_fallbacks`: put the"
            " model and its fallbacks into `routes`, each as a route of its own"
        )
    return (
        f"a route's model must be a LangChain chat model, not {model!r}; chains and"
        " LLMs cannot be routed to"
    )


def _check_unconfigured(model: Any) -> None:
    while isinstance(model, RunnableBinding):
        # Its maker gives `RunnableBinding` the keys of a config, most of them empty.
        lost = [name for name, value in model.config.items() if value]
        if lost or model.config_factories:
            msg = (
                "a route's model cannot have a config or listeners of its own"
                f" ({', '.join(lost) or 'with_listeners'}), since the run is the"
                " router's: use `with_config` or `with_listeners` on the router"
            )
            raise TypeError(msg)
        model = model.bound


def unbound(model: Any) -> tuple[Any, dict[str, Any]]:
    """A model without the options that were bound to it, and these."""
    options: dict[str, Any] = {}
    while isinstance(model, RunnableBinding):
        options = {**model.kwargs, **options}
        model = model.bound
    return model, options


def is_plain(model: BaseChatModel) -> bool:
    """Whether it has LangChain's way to `_generate` and `_agenerate`, and usual ones.

    A model may have a way of its own; one whose `_generate` knows no `run_manager` is
    called without by LangChain, which looks at that in each call.
    """
    return all(
        getattr(type(model), way) in {getattr(cls, way) for cls in _PLAIN}
        and "run_manager" in _parameters_of(getattr(type(model), end))
        for way, end in _WAYS
    )


def _parameters_of(function: Callable[..., Any]) -> Container[str]:
    try:
        return inspect.signature(function).parameters
    except (NameError, ValueError):  # An annotation of Python 3.14 that is only typed.
        return ()


def model_name_of(model: Runnable[Any, Any]) -> str:
    """What a model is called: what it tells tracers, or else its class."""
    told = model._get_ls_params() if isinstance(model, BaseChatModel) else {}  # noqa: SLF001
    return str(told.get("ls_model_name") or type(model).__name__)


def as_chunks(result: ChatResult) -> Iterator[ChatGenerationChunk]:
    """A whole answer in the form of a stream."""
    for generation in result.generations[:1]:
        fields = generation.message.model_dump(exclude={"type"})
        yield ChatGenerationChunk(
            message=AIMessageChunk(**fields), generation_info=generation.generation_info
        )
