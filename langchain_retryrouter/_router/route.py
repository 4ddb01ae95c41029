"""A route: a chat model that can answer, and what the router knows about it.

A route's model is called below its public methods, by LangChain's extension points
`_generate`, `_agenerate`, `_stream` and `_astream`: the run that tracers and callbacks
see, and that tokens are counted for, is the router's. What LangChain does around these
methods for each attempt is done here: the model's own cache, and `streaming=True`. Next
to read: `call`, which makes the attempts.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import itertools
import logging
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Final, NamedTuple, Self, TypeAlias, TypeVar

from langchain_core.caches import BaseCache
from langchain_core.globals import get_llm_cache
from langchain_core.language_models.chat_models import (
    BaseChatModel,
    agenerate_from_stream,
    generate_from_stream,
)
from langchain_core.load import Serializable, dumps
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.outputs import (
    ChatGeneration,
    ChatGenerationChunk,
    ChatResult,
    Generation,
)
from langchain_core.runnables import RunnableBinding, RunnableSequence
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import (
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    field_validator,
    model_validator,
)

from langchain_retryrouter._prices import FixedPrices, Prices, listed_prices
from langchain_retryrouter._providers.history import of_its_version
from langchain_retryrouter._providers.integrations import (
    INTEGRATIONS,
    TOKEN_LIMITS,
    Method,
    Reader,
    ToolsRequest,
    disable_retries,
    has_attempts,
    integration_of,
    name_of_tool,
    prefill_of,
    reader_of,
    rebuilt,
    reports_finish_reason,
    takes_key_functions,
    tools_request,
    tracing_params,
)
from langchain_retryrouter._retry.call_log import Subject
from langchain_retryrouter._router.models import (
    KeyFunction,
    bypassed_method,
    init_model,
    model_and_options,
    pool_settings,
    unbound,
)
from langchain_retryrouter._secrets import check_number
from langchain_retryrouter._shared import name_hash
from langchain_retryrouter.circuit_breaker import CircuitBreaker
from langchain_retryrouter.rate_limits import RateLimit, Size, approximate_tokens
from langchain_retryrouter.spend_limits import SpendLimit

logger = logging.getLogger(__name__)

_CALLBACKS_WARNING: Final = (
    "has callbacks, which are not called, since the run that handlers see is the"
    " router's: give them to the router"
)
_NOT_ASKED: Final = "The cache could not be asked for an answer"
_NOT_CACHED: Final = "An answer could not be kept in the cache"
_M = TypeVar("_M", bound=BaseMessage)
# Cached properties of a route that follow from its fields.
_READ: Final = ("reader", "prices", "subject", "_address", "is_own", "scope")
_ADDRESSES: Final = (
    *("openai_api_base", "azure_endpoint", "gpt_router_api_base", "base_url"),
    *("anthropic_api_url", "endpoint_url", "region_name", "location", "api_base"),
)
_URLS: Final = ("openai_api_base", "anthropic_api_url", "base_url")
_IN_FUNCTIONS: Final = {"function", "parameters", "input_schema", "properties"}
_MOST_KEPT: Final = 4  # Models of keys that a function returned.
_pools = itertools.count(1)


@dataclass(frozen=True, slots=True)
class RouteCost:
    """What one attempt on a route costs at most.

    `waited` are seconds between its requests, `disabled_retries` are the model's own
    that were switched off, and `warnings` say what it does that could not be changed.
    """

    requests: int = 1
    waited: float = 0.0
    disabled_retries: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RouteStatus:
    """What a router has found out about a route.

    `cost` is what an attempt costs at most. `by_tool` is the same route asking for an
    object by a tool, which is asked if its provider refuses the format in which it is
    asked first. `unfit` is why it cannot be asked, in a router with tools bound to it,
    and `ignored` an argument of `bind_tools` that its integration drops.
    """

    cost: RouteCost = RouteCost()
    by_tool: Route | None = None
    unfit: str = ""
    ignored: str = ""


Accept: TypeAlias = Callable[..., bool | str | Awaitable[bool | str]]
"""A function of an answer that says whether it is taken: True, False or a reason."""


class Route(Serializable):
    """One model that can answer.

    Attributes:
        model: Any LangChain chat model, or one with options bound to it; or a string
            such as "openai:gpt-5.5" if langchain is installed.
        name: What attempt logs and errors call it; by default the model's own name.
        tier: Routes with the same number are alternatives for one model, such as
            regions or accounts. Calls are balanced among them by their weights, and
            what one of them refuses for its key or its rate limit, another one is asked
            at once. The next tier is asked when none of them can answer. None: the
            route has its place in the list, after the tiers that are listed before it.
        weight: Its share of the calls under the strategy "weighted", within its tier,
            and of the conversations with `affinity`.
        supports_prefill: Whether the model continues a last message of the assistant,
            so that a broken stream can be continued there. By default this is known for
            LangChain's integrations. If this is set and the model does not, the caller
            gets the beginning of the answer twice.
        input_price: Money for a million tokens of a prompt, for `explain`.
        output_price: Money for a million tokens of an answer, for `explain` and
            `max_price`. Without both prices those of `genai-prices` are used, if it is
            installed and knows the model.
        spend_limit: A `SpendLimit` of this route, shared with others or its own.
        rate_limit: A `RateLimit` of this route, shared with others or its own. Its
            waits are outside of the attempt's time limits, and the router asks the next
            route if it is full. A `rate_limit` of the model itself counts as well.
        breaker: A `CircuitBreaker` that this route shares with others; by default it
            has one of its own with the router's `breaker_settings`.
        options: Options that every call of this route has.
        sends_finish_reason: Whether each whole answer of this model names a finish
            reason, so that one without was cut. By default this is known for
            LangChain's integrations, and learned from the first answer that names one.
            Set it to False for a server that never sends one: then the end of its
            stream counts as the end of the answer, also where the stream was cut.
        accept: Judges this route's answers, before `RetryRouter.accept` does.
        api_key_function: A function that returns the key, called for each
            request; see `pool`.
        pool_id: What the routes that `pool` makes have in common.
        source: The string or table of a config that the model was made of.
    """

    # An unknown argument may be a key.
    model_config = ConfigDict(
        arbitrary_types_allowed=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    model: BaseChatModel = Field(repr=False)
    name: str = ""
    tier: int | None = Field(default=None, ge=0)
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    supports_prefill: bool | None = None
    input_price: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    output_price: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    rate_limit: RateLimit | None = Field(default=None, repr=False)
    spend_limit: SpendLimit | None = Field(default=None, exclude=True, repr=False)
    breaker: CircuitBreaker | None = Field(default=None, repr=False)
    options: dict[str, Any] = Field(default_factory=dict, repr=False)
    sends_finish_reason: bool | None = None
    accept: Accept | None = Field(default=None, exclude=True, repr=False)
    api_key_function: KeyFunction | None = Field(default=None, exclude=True, repr=False)
    pool_id: str = Field(default="", repr=False)
    source: dict[str, Any] | None = Field(default=None, exclude=True, repr=False)

    _own_tools: list[Any] = PrivateAttr(default_factory=list)
    # By the hash of the key, so that copies of the route share them.
    _keyed: dict[bytes, tuple[Any, Any]] = PrivateAttr(default_factory=dict)

    @classmethod
    def pool(
        cls,
        model: BaseChatModel | RunnableBinding[Any, Any] | str,
        *,
        api_keys: Sequence[str | SecretStr | KeyFunction] | None = None,
        base_urls: Sequence[str] | None = None,
        name: str = "",
        **fields: Any,
    ) -> list[Route]:
        """Routes to the same model with several keys, addresses, or pairs of both.

        They are balanced like routes of one `tier`. A 401, 402, 403 or 429 of one key
        is followed by the next key at once, and the key is left alone for as long as
        the server asks, or else 5 s after a 429 and five minutes otherwise.

        Example:
            ```python
            RetryRouter(routes=[*Route.pool(gpt, api_keys=[key_1, key_2]), claude])
            ```

        Args:
            model: A chat model with a field for its key and address, or a string such
                as "openai:gpt-5.5". It is made again for each key, with clients of its
                own.
            api_keys: The keys, or functions that return a key, sync or async. They are
                called for each request, so that a key may change. Async functions are
                for async calls.
            base_urls: The addresses; with `api_keys`, one for each key.
            name: What the routes are called, with "#1", "#2" and so on; by default the
                model's own name.
            **fields: Fields of each `Route`, such as `tier` or `input_price`.

        Raises:
            ValueError: The model has no such field, or the lists do not fit.
        """
        settings = pool_settings(api_keys, base_urls)
        if isinstance(model, str):
            key = settings[0].get("api_key")
            key = "a function's" if callable(key) else key  # It is never sent.
            model = init_model(model, **({"api_key": key} if key else {}))
        template = cls.model_validate({"model": model, "name": name})
        bare = template.model
        fields["options"] = {**template.options, **fields.get("options", {})}
        pool_id = f"{template.name}/{next(_pools)}"
        routes = []
        for number, setting in enumerate(settings, 1):
            key = setting.get("api_key")
            own = dict(fields)
            if callable(key) and not takes_key_functions(bare):
                own["api_key_function"] = setting.pop("api_key")
            routes.append(
                cls(
                    model=rebuilt(bare, **setting) if setting else bare,
                    name=f"{template.name}#{number}",
                    pool_id=pool_id,
                    **own,
                )
            )
        return routes

    @functools.cached_property
    def status(self) -> RouteStatus:
        """What its router has found out about it."""
        return RouteStatus()

    def with_status(self, **changes: Any) -> Route:
        """A copy of this route with another status."""
        copy = self.model_copy()
        vars(copy)["status"] = replace(self.status, **changes)
        return copy

    @property
    def models(self) -> list[BaseChatModel]:
        """Its model, and those that were made for the keys of its function."""
        return [self.model, *(model for _, model in self._keyed.values())]

    @property
    def group(self) -> Hashable:
        """What it has in common with its alternatives; None if it has none."""
        return self.tier if self.tier is not None else self.pool_id or None

    def keyed(self) -> Route:
        """This route with the key that its function returns now, if it has one."""
        function = self.api_key_function
        return self if function is None else self._with_key(function())

    async def akeyed(self) -> Route:
        """Async variant: a function that is not async may wait, and gets a thread."""
        function: Any = self.api_key_function
        if function is None:
            return self
        if inspect.iscoroutinefunction(function):
            return self._with_key(await function())
        key = await asyncio.to_thread(function)
        return self._with_key(await key if inspect.isawaitable(key) else key)

    def _with_key(self, key: Any) -> Route:
        secret = key.get_secret_value() if isinstance(key, SecretStr) else key
        if not isinstance(secret, str) or not secret:
            if inspect.iscoroutine(key):
                key.close()
            given = type(key).__name__ if secret else "nothing"
            msg = (
                f"the api_key function of route {self.name!r} returned {given}: it must"
                " return the key as a str; an async function is for async calls"
            )
            raise TypeError(msg)
        digest = blake2b(secret.encode()).digest()
        base, model = self._keyed.get(digest, (None, None))
        if base is not self.model:
            model = disable_retries(rebuilt(self.model, api_key=secret)).model
            self._keyed[digest] = (self.model, model)
            for old in list(self._keyed)[:-_MOST_KEPT]:
                self._keyed.pop(old, None)
        return self.model_copy(update={"model": model, "api_key_function": None})

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Whether LangChain's `dumps` can write it: as far as it can its model."""
        return True

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Where it is public."""
        return ["langchain_retryrouter", "chat_models", "retry_router"]

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """What `dumps` writes besides the fields; `loads` refuses a function."""
        hidden = ("accept", "api_key_function", "spend_limit")
        given = {name: getattr(self, name) for name in hidden}
        return {name: value for name, value in given.items() if value is not None}

    _check_numbers = field_validator(
        "tier", "weight", "input_price", "output_price", mode="wrap"
    )(check_number)

    @model_validator(mode="before")
    @classmethod
    def _unbind(cls, values: Any) -> Any:
        """Take a model that has options bound to it apart."""
        if not isinstance(values, dict):
            return values
        for name in values.keys() & {"api_key", "api_keys"}:
            msg = (
                f"a Route takes no {name}: give the key to its model, or several to"
                " Route.pool(model, api_keys=[...])"
            )
            raise TypeError(msg)
        if isinstance(spec := values.get("model"), str):
            values = {"source": {"model": spec}, **values, "model": init_model(spec)}
        model, options = model_and_options(values.get("model"))
        options |= values.get("options", {})
        return {**values, "model": model, "options": options}

    @model_validator(mode="after")
    def _read_model(self) -> Self:
        if not self.name:
            name = tracing_params(self.model).get("ls_model_name")
            object.__setattr__(self, "name", str(name or type(self.model).__name__))
        self._own_tools = list(self.options.get("tools") or [])
        _ = self._reporting  # One object for all copies, so that they share it.
        return self

    def model_copy(
        self, *, update: Mapping[str, Any] | None = None, deep: bool = False
    ) -> Self:
        """A copy; see `BaseModel.model_copy`. Its prices are those of its own model."""
        copy = super().model_copy(update=update, deep=deep)
        for name in _READ if update else ():
            vars(copy).pop(name, None)
        return copy

    @functools.cached_property
    def _reporting(self) -> set[Method]:
        """The methods whose whole answers are known to name a finish reason."""
        ways: tuple[Method, ...] = ("generate", "stream")
        return {way for way in ways if reports_finish_reason(self.model, way)}

    @functools.cached_property
    def reader(self) -> Reader:
        """What decides about the messages that the model can read."""
        return reader_of(self.model)

    @functools.cached_property
    def prices(self) -> Prices | None:
        """What the tokens of this route cost; None if that is not known."""
        if self.input_price is not None and self.output_price is not None:
            return FixedPrices(self.input_price, self.output_price)
        params = tracing_params(self.model, **self.options)
        urls = (getattr(self.model, name, None) for name in _URLS)
        url = next((one for one in urls if isinstance(one, str)), None)
        return listed_prices(
            params.get("ls_model_name"), params.get("ls_provider"), url
        )

    def prefill(self, text: str) -> AIMessage | None:
        """`text` as the beginning of an answer that the model continues, if it does."""
        kwargs = prefill_of(self.model)
        if self.supports_prefill or (
            self.supports_prefill is None and kwargs is not None
        ):
            return AIMessage(content=text, additional_kwargs=dict(kwargs or {}))
        return None

    @property
    def may_repeat_prefill(self) -> bool:
        """Whether an answer may begin with the prefill, so that it is taken out."""
        # Of a model that the caller says takes one, it is not known.
        return bool(self.supports_prefill) or integration_of(self.model).repeats_prefill

    @functools.cached_property
    def subject(self) -> Subject:
        """What an attempt asks, for observers."""
        named = tracing_params(self.model, **self.options)
        provider, name = named.get("ls_provider") or "", named.get("ls_model_name")
        return Subject("chat", provider, name, sends=not has_attempts(self.model))

    @property
    def identity(self) -> dict[str, Any]:
        """The type, settings and address of the model, for the keys of caches."""
        return {
            "type": self.model._llm_type,  # noqa: SLF001
            **self._address,
            **self.model._identifying_params,  # noqa: SLF001
        }

    @functools.cached_property
    def _address(self) -> dict[str, str]:
        """Tells servers apart, without what a URL may hold."""
        addresses = [getattr(self.model, name, None) for name in _ADDRESSES]
        return {"address": name_hash(*addresses)} if any(addresses) else {}

    @functools.cached_property
    def is_own(self) -> bool:
        """Whether its model is one of this package, with an attempt log."""
        return integration_of(self.model) is INTEGRATIONS["langchain_retryrouter"]

    @functools.cached_property
    def scope(self) -> str:
        """What its breaker is shared under: its name, and a hash of what it asks.

        Of what is the same in all processes: the class, the model's name, the address.
        """
        params = tracing_params(self.model)
        asked = (params.get("ls_provider"), params.get("ls_model_name"))
        return scope_of(self.name, self.model, *asked)

    def needs_reason(self, method: Method) -> bool:
        """Whether an answer without a finish reason was cut."""
        if self.sends_finish_reason is not None:
            return self.sends_finish_reason
        return method in self._reporting

    def learn_reason(self, method: Method) -> None:
        """Remember that this model names a finish reason."""
        self._reporting.add(method)

    def prepared(self, name: str) -> Route:
        """This route as `name`, with a model that sends each request once if it can."""
        disabled = disable_retries(self.model)
        warned = (
            disabled.warning,
            _CALLBACKS_WARNING if self.model.callbacks else "",
            bypassed_method(self.model),
        )
        cost = RouteCost(
            disabled.requests,
            disabled.waited,
            self.status.cost.disabled_retries or disabled.disabled,
            tuple(text for text in warned if text),
        )
        options = {**disabled.options, **self.options}
        update = {"model": disabled.model, "name": name, "options": options}
        return self.model_copy(update=update).with_status(cost=cost)

    def size_of(self, messages: list[BaseMessage], options: Mapping[str, Any]) -> Size:
        """The size of a request to this route."""
        tools = {**self.options, **options}.get("tools")
        tokens = count_tokens_approximately(messages) + approximate_tokens(tools)
        return Size(tokens, self.max_tokens_of(options))

    def max_tokens_of(self, options: Mapping[str, Any]) -> int | None:
        """The most tokens of an answer that a request asks for; None for no limit."""
        asked = {**self.options, **options}
        given = [asked.get(n, getattr(self.model, n, None)) for n in TOKEN_LIMITS]
        return next((n for n in given if type(n) is int and n > 0), None)

    def with_tools(self, tools: Sequence[Any], **kwargs: Any) -> Route:
        """This route, offering `tools` in its provider's form, and its own tools.

        It is a TypeError if its model has no tools, and a ValueError if it cannot
        honour one of these tools or arguments.
        """
        try:
            request = tools_request(self.model, tools, kwargs)
            bound = self._bind_tools(request)
        except NotImplementedError as error:
            msg = (
                f"route {self.name!r} cannot be offered tools: {type(self.model)} has"
                " no bind_tools"
            )
            raise TypeError(msg) from error
        except Exception as error:
            msg = f"route {self.name!r} cannot be offered these tools: {error}"
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(msg) from error
        route = self._bound_to(bound, "be offered tools")
        options = {**route.options, **request.options}
        offered = options.get("tools") or []
        names = {name_of_tool(tool) for tool in offered}
        own = [tool for tool in self._own_tools if name_of_tool(tool) not in names]
        options["tools"] = [*own, *offered]
        if not options["tools"]:
            del options["tools"]  # Providers refuse an empty list.
        route = route.model_copy(update={"options": options})
        return route.with_status(ignored=request.ignored)

    def _bind_tools(self, request: ToolsRequest) -> Any:
        tools, kwargs = request.tools, dict(request.kwargs)
        strict = kwargs.pop("strict", None)
        bind_tools, bound = self.model.bind_tools, None
        if strict is not None:
            with contextlib.suppress(TypeError):
                bound = bind_tools(tools, strict=strict, **kwargs)
        if bound is not None and "strict" not in unbound(bound)[1]:
            kwargs["strict"] = strict
        else:  # An integration that does not know it makes it an option of the call.
            bound = bind_tools(tools, **kwargs)
        if strict and not _is_strict(bound):
            # Every integration takes OpenAI's form; most of them keep what is in it.
            strict_tools = [convert_to_openai_tool(tool, strict=True) for tool in tools]
            bound = bind_tools(strict_tools, **kwargs)
            if not _is_strict(bound):
                msg = f"{type(self.model).__name__} drops strict=True"
                raise ValueError(msg)
        functions = [
            name_of_tool(one)
            for one in unbound(bound)[1].get("tools") or []
            if isinstance(one, dict) and one.get("type") == "function"
        ]
        for tool in tools:
            kind = tool.get("type") if isinstance(tool, dict) else None
            is_own = kind not in {None, "function"} and _IN_FUNCTIONS.isdisjoint(tool)
            if is_own and tool.get("name") in functions:
                # A provider's own tool was bound as a function, which none would run.
                msg = f"{tool!r} is a tool of another provider"
                raise ValueError(msg)
        return bound

    def with_format(
        self,
        schema: Any,
        json_schema: dict[str, Any],
        method: str,
        *,
        strict: bool | None,
    ) -> Route:
        """This route, asking for an object of `schema`, which is `json_schema` in JSON.

        It is a ValueError if its model cannot honour the method or `strict`.
        """
        if method == "auto":
            ask = functools.partial(self.with_format, schema, json_schema)
            if (self.model.profile or {}).get("structured_output"):
                with contextlib.suppress(ValueError):
                    native, by_tool = ask("json_schema", strict=strict), None
                    with contextlib.suppress(ValueError):
                        by_tool = ask("function_calling", strict=strict)
                    return native.with_status(by_tool=by_tool)
            return ask("function_calling", strict=strict)
        options = {} if strict is None else {"strict": strict}
        asked = {"method": method, **options}
        known = inspect.signature(self.model.with_structured_output).parameters
        try:
            if method == "function_calling" and not asked.keys() <= known.keys():
                name = json_schema["title"]
                return self.with_tools([schema], tool_choice=name, **options)
            route = self._asking_natively(schema, asked)
            if method == "function_calling" and "tool_choice" not in route.options:
                # The integration only offers the tool.
                chosen = tools_request(self.model, [], {"tool_choice": "any"})
                route.options.update(chosen.options)
            if route.options.get("response_format") is not schema:
                return route
            # The SDK would parse the answer itself, and lose one that does not fit.
            return self._asking_natively(json_schema, {"strict": True, **asked})
        except (LookupError, NotImplementedError, TypeError, ValueError) as error:
            asks = ", ".join(f"{option}={value!r}" for option, value in asked.items())
            msg = (
                f"route {self.name!r} cannot honour {asks}: {error}; leave it out, so"
                " that each route is asked in its own way"
            )
            raise ValueError(msg) from error

    def _asking_natively(self, schema: Any, asked: dict[str, Any]) -> Route:
        """This route, asking as its model's own `with_structured_output` does."""
        integration = type(self.model).__name__
        structured = self.model.with_structured_output
        known = inspect.signature(structured).parameters
        if unknown := [option for option in asked if option not in known]:
            msg = f"{integration} does not take {unknown[0]}"
            raise ValueError(msg)
        chain = structured(schema, **asked)
        bound = chain.first if isinstance(chain, RunnableSequence) else chain
        route = self._bound_to(bound, f"honour {asked!r}")
        options = dict(route.options)
        # For tracers: the run is the router's, which tells them itself.
        noted = options.pop("ls_structured_output_format", None) or {}
        used = noted.get("kwargs", {}).get("method", asked["method"])
        if used != asked["method"]:
            msg = f"{integration} would use {used!r}"
            raise ValueError(msg)
        return route.model_copy(update={"options": options})

    def _bound_to(self, bound: Any, purpose: str) -> Route:
        model, options = unbound(bound)
        if not isinstance(model, BaseChatModel):
            msg = f"route {self.name!r} cannot {purpose}: its model made {bound!r}"
            raise TypeError(msg)
        update = {"model": model, "options": {**self.options, **options}}
        return self.model_copy(update=update)

    def call_options(
        self, options: dict[str, Any], stop: list[str] | None
    ) -> dict[str, Any]:
        """The options of an attempt: those of the call override the route's own."""
        merged = {**self.options, **options}
        if stop is not None or "stop" not in merged:
            merged["stop"] = stop
        return merged

    def generate(
        self, messages: list[BaseMessage], options: dict[str, Any]
    ) -> tuple[ChatResult, CacheEntry | None]:
        """The model's answer, or its cache's, and where a good one is to be kept."""
        place = self._place_in_cache(messages, options)
        if place is not None and (hit := _look_up(*place)) is not None:
            return ChatResult(generations=_copied(hit, is_free=True)), None
        if self._streaming is True and self._can_stream(options, is_async=False):
            chunks, _ = self.stream(messages, options)
            result = generate_from_stream(chunks)
        else:
            result = self.model._generate(messages, **options)  # noqa: SLF001
        self._convert(result)
        return result, None if place is None else CacheEntry(*place, result)

    async def agenerate(
        self, messages: list[BaseMessage], options: dict[str, Any]
    ) -> tuple[ChatResult, CacheEntry | None]:
        """Async variant of `generate`."""
        place = self._place_in_cache(messages, options)
        if place is not None and (hit := await _alook_up(*place)) is not None:
            return ChatResult(generations=_copied(hit, is_free=True)), None
        if self._streaming is True and self._can_stream(options, is_async=True):
            chunks, _ = await self.astream(messages, options)
            result = await agenerate_from_stream(chunks)
        else:
            result = await self.model._agenerate(messages, **options)  # noqa: SLF001
        self._convert(result)
        return result, None if place is None else CacheEntry(*place, result)

    def stream(
        self, messages: list[BaseMessage], options: dict[str, Any]
    ) -> tuple[Iterator[ChatGenerationChunk], CacheEntry | None]:
        """The chunks of the answer; a single one from a model without streams.

        That one's answer may be kept, as by `generate`.
        """
        if not self._can_stream(options, is_async=False):
            result, entry = self.generate(messages, options)
            return _chunks_of(result), entry
        return self.model._stream(messages, **options), None  # noqa: SLF001

    async def astream(
        self, messages: list[BaseMessage], options: dict[str, Any]
    ) -> tuple[AsyncIterator[ChatGenerationChunk], CacheEntry | None]:
        """Async variant of `stream`."""
        if not self._can_stream(options, is_async=True):
            result, entry = await self.agenerate(messages, options)
            return _achunks_of(result), entry
        return self.model._astream(messages, **options), None  # noqa: SLF001

    def _can_stream(self, options: dict[str, Any], *, is_async: bool) -> bool:
        """Whether the model has streams and nothing switches them off."""
        model = self.model
        ways = ("_stream", "_astream") if is_async else ("_stream",)
        # LangChain's base class has both, which raise.
        has_stream = any(
            getattr(type(model), way) is not getattr(BaseChatModel, way) for way in ways
        )
        if not has_stream or model.disable_streaming is True:
            return False
        if options.get("tools") and (
            model.disable_streaming == "tool_calling"
            or (not is_async and integration_of(model).garbles_streamed_calls)
        ):
            return False
        return self._streaming is not False

    @property
    def _streaming(self) -> Any:
        """What the model's `streaming` was set to; None if it was not."""
        is_set = "streaming" in self.model.model_fields_set
        return getattr(self.model, "streaming", None) if is_set else None

    def _convert(self, result: ChatResult) -> None:
        """Give standard content blocks where the model has `output_version="v1"`."""
        if self.model.output_version == "v1":
            for generation in result.generations:
                generation.message = in_blocks(generation.message)

    def _place_in_cache(
        self, messages: list[BaseMessage], options: dict[str, Any]
    ) -> tuple[BaseCache, tuple[str, str]] | None:
        """The model's cache, and the key of the answer to a request."""
        own = self.model.cache
        cache = own if isinstance(own, BaseCache) else get_llm_cache()
        if cache is None or own is False:
            return None
        prompt = dumps([m.model_copy(update={"id": None}) for m in messages])
        return cache, (prompt, dumps([self.identity, options]))


def _look_up(cache: BaseCache, key: tuple[str, str]) -> Sequence[Generation] | None:
    """What a cache has; one that cannot be asked has nothing, and fails no route."""
    try:
        return cache.lookup(*key)
    except Exception:
        logger.warning(_NOT_ASKED, exc_info=True)
        return None


async def _alook_up(
    cache: BaseCache, key: tuple[str, str]
) -> Sequence[Generation] | None:
    """Async variant of `_look_up`."""
    try:
        return await cache.alookup(*key)
    except Exception:
        logger.warning(_NOT_ASKED, exc_info=True)
        return None


class CacheEntry(NamedTuple):
    """An answer that a cache is to keep, if it is found to be good."""

    cache: BaseCache
    key: tuple[str, str]
    result: ChatResult

    def update(self) -> None:
        """Keep it; the caller gets the answer also if the cache cannot."""
        try:
            self.cache.update(*self.key, _copied(self.result.generations))
        except Exception:
            logger.warning(_NOT_CACHED, exc_info=True)

    async def aupdate(self) -> None:
        """Async variant of `update`."""
        try:
            await self.cache.aupdate(*self.key, _copied(self.result.generations))
        except Exception:
            logger.warning(_NOT_CACHED, exc_info=True)


def in_blocks(message: _M) -> _M:
    """A message whose content is LangChain's standard blocks, as of a v1 model."""
    message = of_its_version(message)
    metadata = {**message.response_metadata, "output_version": "v1"}
    update = {"content": message.content_blocks, "response_metadata": metadata}
    return message.model_copy(update=update)


def rate_limits_of(route: Any) -> list[RateLimit]:
    """The limits of a route and of its model, which the router waits for.

    A wait inside of the model would count as its provider's silence.
    """
    own = (route.rate_limit, getattr(route.model, "rate_limit", None))
    return [limit for limit in own if isinstance(limit, RateLimit)]


def scope_of(name: str, model: Any, *asked: Any) -> str:
    """What a route's breaker and limits are shared under, the same in all processes."""
    addresses = [getattr(model, one, None) for one in _ADDRESSES]
    return f"{name} {name_hash(type(model).__name__, *asked, *addresses)}"


def router_scope(scopes: Iterable[str]) -> str:
    """What a router's own budget and limits are shared under: a hash of its routes.

    In whichever order it asks them.
    """
    return f"router {name_hash(*sorted(scopes))}"


def _is_strict(bound: Any) -> bool:
    return "'strict': True" in repr(unbound(bound)[1].get("tools"))


def _copied(
    generations: Sequence[Generation], *, is_free: bool = False
) -> list[ChatGeneration]:
    """Generations of a cache with metadata of their own, which the router adds to.

    Without the attempt log of a model of our own: what was sent then is not sent again.
    """
    copies = []
    for generation in generations:
        if isinstance(generation, ChatGeneration):
            message = generation.message.model_copy()
            message.response_metadata = dict(message.response_metadata)
            message.response_metadata.pop("retryrouter", None)
            if is_free and isinstance(message, AIMessage) and message.usage_metadata:
                # As langchain-core's own: an answer of a cache costs nothing.
                free: Any = {**message.usage_metadata, "total_cost": 0}
                message.usage_metadata = free
            copies.append(generation.model_copy(update={"message": message}))
        else:
            copies.append(ChatGeneration(message=AIMessage(generation.text)))
    return copies


async def _achunks_of(result: ChatResult) -> AsyncIterator[ChatGenerationChunk]:
    for chunk in _chunks_of(result):
        yield chunk


def _chunks_of(result: ChatResult) -> Iterator[ChatGenerationChunk]:
    """A whole answer in the form of a stream."""
    for generation in result.generations[:1]:
        fields = generation.message.model_dump(exclude={"type"})
        # Some integrations name the finish reason for the result as a whole.
        info = {**(result.llm_output or {}), **(generation.generation_info or {})}
        info.pop("retryrouter", None)  # The attempt log of a model of our own.
        yield ChatGenerationChunk(
            message=AIMessageChunk(**fields), generation_info=info
        )
