"""`GPTRouter`: a chat model over a GPTRouter gateway, with one retry owner.

The module, its classes and its functions are named as in langchain-community, so that
moving over takes one word in the imports. What is promised here holds for `GPTRouter`'s
methods and for `completion_with_retry` called directly.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Generator,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any, Final, cast

from gpt_router.models import (
    ChunkedGenerationResponse,
    GenerationResponse,
    GPTRouterMetadata,
)
from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import ModelProfile
from langchain_core.language_models.base import LangSmithParams, LanguageModelInput
from langchain_core.language_models.chat_models import (
    agenerate_from_stream,
    generate_from_stream,
)
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import (
    ChatGeneration,
    ChatGenerationChunk,
    ChatResult,
    Generation,
)
from langchain_core.runnables import Runnable
from pydantic import BaseModel, Field, ValidationInfo, field_validator

from langchain_retryrouter._callbacks import (
    RetryVisibleChatModel,
    anotifier,
    inspected_once,
    notifier,
    run_manager_of,
)
from langchain_retryrouter._gptrouter.bodies import AsyncEvents, SyncEvents
from langchain_retryrouter._gptrouter.borders import from_sdk
from langchain_retryrouter._gptrouter.client import GatewayClient
from langchain_retryrouter._gptrouter.connection import (
    DEFAULT_API_BASE_URL,
    GATEWAY_METADATA,
    GatewayConnection,
    GPTRouterModel,
    put_first,
    read_models,
)
from langchain_retryrouter._gptrouter.errors import GPT_ROUTER_STREAM_ERRORS
from langchain_retryrouter._gptrouter.messages import (
    PROVIDER,
    ChunkReader,
    assemble,
    build_messages,
    read_result,
    take_apart,
)
from langchain_retryrouter._gptrouter.plan import (
    policy_of,
    retry_context,
    take_metadata,
)
from langchain_retryrouter._gptrouter.protocol import (
    EventReader,
    GatewayEvent,
    GatewayRequest,
    GatewayResponse,
    add_usage,
    build_params,
    check_options,
    is_opaque,
    unknown_name,
)
from langchain_retryrouter._retry.call_state import CallState
from langchain_retryrouter._retry.engine import Attempt, acall, call
from langchain_retryrouter._retry.streaming import (
    AEventSource,
    EventSource,
    astream,
    stream,
)
from langchain_retryrouter.chat_models._profiles import profile_of
from langchain_retryrouter.chat_models._structured import (
    Method,
    Schema,
    Tool,
    structured_options,
    structured_parser,
    tool_options,
    with_raw,
)
from langchain_retryrouter.errors import RetryRouterError
from langchain_retryrouter.failures import is_routes_own

__all__ = [
    "DEFAULT_API_BASE_URL",
    "GPTRouter",
    "GPTRouterModel",
    "acompletion_with_retry",
    "completion_with_retry",
    "get_ordered_generation_requests",
]


logger = logging.getLogger(__name__)

_NO_CHOICES_WITH_TOOLS = (
    "n must be 1 in a call with tools: the gateway sends tool calls in streams only,"
    " where it interleaves several answers without telling them apart"
)


class _GatewayCall:
    """What both twins know of a call."""

    def __init__(
        self,
        client: Any,
        requests: Sequence[GatewayRequest],
        options: dict[str, Any],
        *,
        metadata: GPTRouterMetadata | None,
        failover: bool,
    ) -> None:
        """Nothing is sent yet.

        Args:
            client: What sends; ours, or one with the SDK's `generate`.
            requests: A request per model, the preferred one first.
            options: What our own client tells the gateway beside them.
            metadata: What the gateway is told for its own records.
            failover: Whether the next attempt puts a model that failed last.

        Raises:
            ValueError: For several answers with tool calls, which no stream can carry.
        """
        params = requests[0].prompt_params
        asks_for_one = params.n in {None, 1}
        if params.tools and not asks_for_one:
            raise ValueError(_NO_CHOICES_WITH_TOOLS)
        self._client = client
        self._requests = list(requests)
        self._options = options if isinstance(client, GatewayClient) else None
        self._metadata = metadata
        self._failover = failover
        self._streams_inside = bool(params.tools)
        self._never_streams = bool(params.functions)
        self._may_stream_inside = asks_for_one and not self._never_streams

    def route(self) -> str:
        """The model that the next attempt asks first."""
        return self._requests[0].model_name

    def on_failure(self, error: RetryRouterError) -> None:
        """Prepare the next attempt, knowing how the last one failed."""
        if self._may_stream_inside and is_opaque(error):
            self._streams_inside = True
        if not self._failover:
            return
        if self.should_failover(error):
            out = self._cannot_answer(error)
            names = ", ".join(request.model_name for request in out)
            logger.warning("%s cannot answer: %s", names, error)
            asked_next = [one for one in self._requests if one not in out]
        else:
            failed, *others = self._requests
            asked_next = [*others, failed]
        self._requests = [
            request.model_copy(update={"order": order})
            for order, request in enumerate(asked_next, start=1)
        ]

    def should_failover(self, error: RetryRouterError) -> bool:
        """Whether some models are out of the question, and others are not."""
        return self._failover and (
            0 < len(self._cannot_answer(error)) < len(self._requests)
        )

    def _cannot_answer(self, error: RetryRouterError) -> list[GatewayRequest]:
        """Which models an error rules out, however often they were asked.

        A name that the gateway does not know is told. Else only what a stream reports
        is about the model or its provider, and so about the one asked first: a 401 to
        the request itself, say, is about the gateway's key, whoever is asked.
        """
        name = unknown_name(error)
        named = [r for r in self._requests if name in {r.model_name, r.provider_name}]
        if named:
            return named
        told_by_a_stream = type(error) is GPT_ROUTER_STREAM_ERRORS.get(error.kind)
        is_models_own = told_by_a_stream and is_routes_own(error.kind)
        return self._requests[:1] if is_models_own else []

    def _arguments(self, attempt: Attempt, *, is_stream: bool) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "ordered_generation_requests": self._requests,
            "is_stream": is_stream,
        }
        if self._metadata is not None:
            arguments["model_router_metadata"] = self._metadata
        if self._options is not None:
            arguments |= {"timeout": attempt.timeout, **self._options}
            if self._streams_inside:
                # Nobody watches this stream: what limits the answer limits all of it.
                arguments["whole_within"] = attempt.timeout
        return arguments

    @staticmethod
    def with_attempt_log(
        response: GenerationResponse, attempt_log: dict[str, Any]
    ) -> GenerationResponse:
        """The answer, telling the attempts it took where its type has room for it."""
        if isinstance(response, GatewayResponse):
            response.retryrouter = attempt_log
        return response


class GatewayCall(_GatewayCall):
    """One call over a sync client."""

    def send(self, attempt: Attempt) -> GenerationResponse:
        """One attempt's answer."""
        if self._streams_inside:
            with contextlib.closing(self.connect(attempt)) as events:
                return assemble(events)
        with _sdk_errors():
            answer: GenerationResponse = self._client.generate(
                **self._arguments(attempt, is_stream=False)
            )
        return answer

    def connect(self, attempt: Attempt) -> EventSource[ChunkedGenerationResponse]:
        """One attempt's stream."""
        if self._never_streams:
            return BufferedEvents(take_apart(self.send(attempt)))
        with _sdk_errors():
            events = self._client.generate(**self._arguments(attempt, is_stream=True))
        return events if isinstance(events, SyncEvents) else SDKEvents(events)


class AsyncGatewayCall(_GatewayCall):
    """One call over an async client."""

    async def send(self, attempt: Attempt) -> GenerationResponse:
        """One attempt's answer."""
        if self._streams_inside:
            async with contextlib.aclosing(await self.connect(attempt)) as events:
                return assemble([event async for event in events])
        with _sdk_errors():
            answer: GenerationResponse = await self._client.agenerate(
                **self._arguments(attempt, is_stream=False)
            )
        return answer

    async def connect(
        self, attempt: Attempt
    ) -> AEventSource[ChunkedGenerationResponse]:
        """One attempt's stream."""
        if self._never_streams:
            return AsyncBufferedEvents(take_apart(await self.send(attempt)))
        with _sdk_errors():
            events = await self._client.agenerate(
                **self._arguments(attempt, is_stream=True)
            )
        return events if isinstance(events, AsyncEvents) else AsyncSDKEvents(events)


class BufferedEvents:
    """The events of an answer that is here already."""

    def __init__(self, events: Iterator[GatewayEvent]) -> None:
        self._events = events

    def __iter__(self) -> Iterator[GatewayEvent]:
        yield from self._events

    def abort(self) -> None:
        """Nothing is read any longer."""

    def close(self) -> None:
        """Nothing is open any longer."""


class AsyncBufferedEvents:
    """Async twin of `BufferedEvents`."""

    def __init__(self, events: Iterator[GatewayEvent]) -> None:
        self._events = events

    async def __aiter__(self) -> AsyncIterator[GatewayEvent]:
        for event in self._events:
            yield event

    async def aclose(self) -> None:
        """Nothing is open any longer."""


class SDKEvents:
    """The events of the SDK's own client, which swallows `end`.

    A body that is over then has to do for an end; the reader still asks for a finish
    reason. Nobody can abort a read in there, so limits hold between events only.
    """

    def __init__(self, events: Iterator[ChunkedGenerationResponse]) -> None:
        self._events = events

    def __iter__(self) -> Iterator[ChunkedGenerationResponse]:
        with _sdk_errors():
            yield from self._events
        yield GatewayEvent(event="end", data={})

    def abort(self) -> None:
        """Nothing that could be done."""

    def close(self) -> None:
        if isinstance(self._events, Generator):
            self._events.close()


class AsyncSDKEvents:
    """Async twin of `SDKEvents`."""

    def __init__(self, events: AsyncIterator[ChunkedGenerationResponse]) -> None:
        self._events = events

    async def __aiter__(self) -> AsyncIterator[ChunkedGenerationResponse]:
        with _sdk_errors():
            async for event in self._events:
                yield event
        yield GatewayEvent(event="end", data={})

    async def aclose(self) -> None:
        if isinstance(self._events, AsyncGenerator):
            await self._events.aclose()


@contextlib.contextmanager
def _sdk_errors() -> Iterator[None]:
    try:
        yield
    except RetryRouterError:
        raise
    except Exception as error:
        told = from_sdk(error)
        if told is None:
            raise
        raise told from error


NO_CHOICES_IN_A_STREAM = (
    "n must be 1 in a stream: the gateway interleaves several answers without telling"
    " them apart. Use `generate` or `invoke` without streaming, or n=1."
)

_SENT_IF_SET: Final = (
    "top_p",
    "frequency_penalty",
    "presence_penalty",
    "stop",
    "reasoning_effort",
    "thinking",
    "web_search_options",
    "output_config",
)


class GatewayFields(GatewayConnection, RetryVisibleChatModel):
    """The fields of a `GPTRouter`."""

    temperature: float | None = Field(default=0.7, allow_inf_nan=False)
    """Sampling temperature; None leaves it to the provider."""

    top_p: float | None = Field(default=None, ge=0, le=1)
    """The share of likely tokens to choose from; None leaves it to the provider."""

    frequency_penalty: float | None = Field(default=None, allow_inf_nan=False)
    """How much a token's past frequency counts against it."""

    presence_penalty: float | None = Field(default=None, allow_inf_nan=False)
    """How much a token's having appeared counts against it."""

    stop: list[str] | str | None = None
    """Where an answer ends; a call's own `stop` takes its place."""

    reasoning_effort: str | None = None
    """How long a reasoning model thinks, from "none" to "max"; newer gateways."""

    thinking: dict[str, Any] | None = None
    """Extended thinking: {"type": "enabled", "budget_tokens": 1024}; newer gateways."""

    web_search_options: dict[str, Any] | None = None
    """What a model that searches the web is told about it; newer gateways."""

    output_config: dict[str, Any] | None = None
    """The provider's own settings of the answer's form; newer gateways."""

    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """More for the provider; sent as it is, also what no gateway is known to read."""

    streaming: bool = False
    """Whether `invoke` streams inside."""

    n: int = Field(default=1, ge=1)
    """Answers per prompt; more than 1 goes with neither streams nor tools."""

    max_tokens: int | None = Field(default=256, ge=1)
    """Tokens of an answer at the most; None leaves it to the provider."""

    gateway_max_retries: int | None = Field(default=None, ge=0)
    """Retries of the gateway itself. None: 0 while we retry, else its default (3)."""

    gateway_timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds the gateway gives its provider; None for its default (60)."""

    @classmethod
    def _provider_options(cls) -> frozenset[str]:
        from langchain_retryrouter._gptrouter.protocol import PROVIDER_OPTIONS

        return PROVIDER_OPTIONS

    # A check of the whole model would show all its input, the key included.
    @field_validator("n")
    @classmethod
    def _check_n(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and info.data.get("streaming"):
            raise ValueError(NO_CHOICES_IN_A_STREAM)
        return value

    # --- what LangChain asks ---

    @property
    def _llm_type(self) -> str:
        return "gpt-router-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {
            "models_priority_list": self.models_priority_list,
            **self._default_params,
        }

    @property
    def _default_params(self) -> dict[str, Any]:
        return {
            "max_tokens": self.max_tokens,
            "stream": self.streaming,
            "n": self.n,
            "temperature": self.temperature,
            **{
                name: value
                for name in _SENT_IF_SET
                if (value := getattr(self, name)) is not None
            },
            **self.model_kwargs,
        }

    def _resolve_model_profile(self) -> ModelProfile | None:
        return profile_of([model.name for model in self.models_priority_list])

    def _get_ls_params(
        self, stop: list[str] | None = None, **kwargs: Any
    ) -> LangSmithParams:
        model = kwargs.get("model") or self._models_asked(kwargs)[0].name
        params = super()._get_ls_params(stop=stop, **{**kwargs, "model": model})
        params["ls_provider"] = PROVIDER
        stops = stop or kwargs.get("stop") or self.stop
        if stops:
            params["ls_stop"] = [stops] if isinstance(stops, str) else stops
        return params

    def _models_asked(self, options: dict[str, Any]) -> list[GPTRouterModel]:
        """The models of a call; what its options say of them is taken out of them."""
        models = options.pop("models_priority_list", None)
        models = self.models_priority_list if models is None else read_models(models)
        first = options.pop("model", None)
        return models if first is None else put_first(first, models)

    def _combine_llm_outputs(
        self, llm_outputs: list[dict[str, Any] | None], /
    ) -> dict[str, Any]:
        return add_usage(llm_outputs)

    def _convert_cached_generations(
        self, cache_val: list[Generation]
    ) -> list[ChatGeneration]:
        """What a cache has, saying that this time nothing was sent for it."""
        generations = super()._convert_cached_generations(cache_val)
        for generation in generations:
            message = generation.message
            # A dict of its own: whoever was given the answer before has the old one.
            message.response_metadata = {
                **message.response_metadata,
                "retryrouter": {"attempts": []},
            }
        return generations


class GPTRouter(GatewayFields):
    """A chat model over a GPTRouter gateway, retried until it answers or cannot.

    The key and the address come from the arguments or from `GPT_ROUTER_API_KEY` and
    `GPT_ROUTER_API_BASE`. Retries are ours alone: the gateway is asked not to repeat,
    and the connections are pooled. A stream that ends without the gateway's `end` is a
    `StreamInterruptedError`, never a short answer.

    Example:
        ```python
        from langchain_retryrouter import GPTRouter, GPTRouterModel

        llm = GPTRouter(
            models_priority_list=[
                GPTRouterModel(name="gpt-4o", provider_name="chat_openai"),
            ]
        )
        llm.invoke("Hello").content
        ```

    The answer's `response_metadata` has `model_name`, `provider_name`, `token_usage`,
    `finish_reason`, and under `retryrouter` the attempts that it took.
    """

    def bind_tools(
        self,
        tools: Sequence[Tool],
        *,
        tool_choice: dict[str, Any] | str | bool | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """This model, offered `tools` in every call.

        The gateway sends tool calls in streams only, so such a call streams inside and
        still returns one message. The public gateway knows neither `tool_choice` nor
        `parallel_tool_calls`, and does not say so.

        Args:
            tools: Functions, pydantic classes, TypedDicts, `BaseTool`s, or dicts in
                OpenAI's form; if there are none, nothing is said of tools.
            tool_choice: A tool's name; "auto"; "none"; "any", "required" or True for
                at least one; or a dict in OpenAI's form.
            strict: Whether the provider shall hold arguments to the schema exactly.
            parallel_tool_calls: Whether there may be several calls in one answer.
            **kwargs: More options of a call.

        Raises:
            ValueError: If `tool_choice` asks for a tool that is not given.
            TypeError: If `tool_choice` is of no such type.
        """
        options = tool_options(
            tools, tool_choice, strict=strict, parallel_tool_calls=parallel_tool_calls
        )
        return self.bind(**options, **kwargs)

    def with_structured_output(
        self,
        schema: Schema | None = None,
        *,
        method: Method = "function_calling",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """This model, answering with data of `schema` instead of a message.

        Args:
            schema: A pydantic class, whose objects are returned; or a TypedDict, a JSON
                schema or a tool in OpenAI's form, for which dicts are.
            method: "function_calling", which every gateway carries; "json_schema",
                which the public gateway refuses; or "json_mode", where the prompt has
                to ask for JSON and say what shall be in it.
            include_raw: Whether to return a dict of `raw`, `parsed` and
                `parsing_error` instead, and never to raise for what cannot be parsed.
            strict: Whether the provider shall hold the answer to the schema exactly.
            **kwargs: More options of a call.

        Returns:
            What takes a prompt and gives such data. With "function_calling" it gives
            None where there is no readable call: the model may answer in text, above
            all where the gateway loses `tool_choice`.

        Raises:
            ValueError: For a method that does not exist or does not fit the arguments.
        """
        options = structured_options(schema, method, strict=strict)
        model = self.bind(**{**options, **kwargs})
        parser = structured_parser(schema, method)
        return with_raw(model, parser) if include_raw else model | parser

    @inspected_once
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        stream: bool | None = None,  # noqa: FBT001 - langchain-community's signature
        **kwargs: Any,
    ) -> ChatResult:
        if self.streaming if stream is None else stream:
            return generate_from_stream(
                self._stream(messages, stop=stop, run_manager=run_manager, **kwargs)
            )
        models, params = self._prepare(messages, stop, kwargs, stream=False)
        response = completion_with_retry(
            self, models_priority_list=models, run_manager=run_manager, **params
        )
        return read_result(cast("GenerationResponse", response), _providers(models))

    @inspected_once
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        stream: bool | None = None,  # noqa: FBT001 - langchain-community's signature
        **kwargs: Any,
    ) -> ChatResult:
        if self.streaming if stream is None else stream:
            return await agenerate_from_stream(
                self._astream(messages, stop=stop, run_manager=run_manager, **kwargs)
            )
        models, params = self._prepare(messages, stop, kwargs, stream=False)
        response = await acompletion_with_retry(
            self, models_priority_list=models, run_manager=run_manager, **params
        )
        return read_result(cast("GenerationResponse", response), _providers(models))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        models, params = self._prepare(messages, stop, kwargs, stream=True)
        retried = run_manager_of(self, run_manager, CallbackManagerForLLMRun)
        answer = completion_with_retry(
            self, models_priority_list=models, run_manager=retried, **params
        )
        events = cast("Generator[ChunkedGenerationResponse, None, None]", answer)
        read = ChunkReader(_providers(models))
        with contextlib.closing(events):
            for event in events:
                chunk = read(event)
                if chunk is None:
                    continue
                if run_manager is not None:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        models, params = self._prepare(messages, stop, kwargs, stream=True)
        retried = run_manager_of(self, run_manager, AsyncCallbackManagerForLLMRun)
        answer = await acompletion_with_retry(
            self, models_priority_list=models, run_manager=retried, **params
        )
        events = cast("AsyncGenerator[ChunkedGenerationResponse, None]", answer)
        read = ChunkReader(_providers(models))
        async with contextlib.aclosing(events):
            async for event in events:
                chunk = read(event)
                if chunk is None:
                    continue
                if run_manager is not None:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def _prepare(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        options: Mapping[str, Any],
        *,
        stream: bool,
    ) -> tuple[list[GPTRouterModel], dict[str, Any]]:
        """Which models are asked, and what; fields first, then the call's options."""
        options = dict(options)
        models = self._models_asked(options)
        check_options(name for name in options if name not in GATEWAY_METADATA)
        params = {**self._default_params, **options, "stream": stream}
        if stop is not None:
            if "stop" in self.model_kwargs or "stop" in options:
                msg = "`stop` is given both to the call and to the model; give it once"
                raise ValueError(msg)
            params["stop"] = stop
        if stream and (params.get("n") or 1) > 1:
            raise ValueError(NO_CHOICES_IN_A_STREAM)
        return models, {**params, "messages": build_messages(messages)}


def _providers(models: list[GPTRouterModel]) -> dict[str, str]:
    return {model.name: model.provider_name for model in models}


def get_ordered_generation_requests(
    models_priority_list: list[GPTRouterModel], **kwargs: Any
) -> list[GatewayRequest]:
    """What the SDK's client sends for a list of models: a request for each, in order.

    Args:
        models_priority_list: The models, the preferred one first.
        **kwargs: What the provider is asked, such as `messages` and `temperature`;
            `stream`, which is the gateway's to know, is left out.

    Raises:
        UnsupportedOptionError: For a value that no gateway takes, by its name.
    """
    kwargs.pop("stream", None)
    params = build_params(kwargs)
    return [
        GatewayRequest(
            model_name=model.name,
            provider_name=model.provider_name,
            order=order,
            prompt_params=params,
        )
        for order, model in enumerate(models_priority_list, start=1)
    ]


def completion_with_retry(
    llm: GPTRouter,
    models_priority_list: list[GPTRouterModel],
    run_manager: CallbackManagerForLLMRun | None = None,
    **kwargs: Any,
) -> GenerationResponse | Generator[ChunkedGenerationResponse, None, None]:
    """The gateway's answer, with retries that `run_manager` sees.

    Args:
        llm: The model whose client, policy, budget and breaker are used.
        models_priority_list: The models to ask, the preferred one first.
        run_manager: Told of each retry (`on_retry`) before its wait.
        **kwargs: What the provider is asked, such as `messages`, and what the gateway
            is told for its records, such as `tag`; with `stream=True` the answer is a
            generator of events.

    Returns:
        The answer; its `retryrouter` tells the attempts it took. With `stream=True`
        the events up to and with `end`; nothing is sent before the first `next`, and
        the call is repeated until its first token has been handed over.

    Raises:
        RetryRouterError: The last attempt's own error, with a note saying why there was
            no further one. A stream raises it from `next`.
        UnsupportedOptionError: For a value that no gateway takes, by its name.
        ValueError: For `n` above 1 with tools, which no stream can carry.
    """
    is_stream = bool(kwargs.pop("stream", False))
    settings = _take_settings(llm, kwargs)
    requests = get_ordered_generation_requests(models_priority_list, **kwargs)
    exchange = GatewayCall(llm.client, requests, **settings)
    plan = retry_context(llm, exchange)
    if is_stream:
        events = stream(plan, exchange.connect, EventReader, notifier(run_manager))
        return _with_attempt_log(events, plan.call_state)
    response = call(plan, exchange.send, notifier(run_manager))
    return exchange.with_attempt_log(response, plan.call_state.attempt_log())


async def acompletion_with_retry(
    llm: GPTRouter,
    models_priority_list: list[GPTRouterModel],
    run_manager: AsyncCallbackManagerForLLMRun | None = None,
    **kwargs: Any,
) -> GenerationResponse | AsyncGenerator[ChunkedGenerationResponse, None]:
    """Async twin of `completion_with_retry`."""
    is_stream = bool(kwargs.pop("stream", False))
    settings = _take_settings(llm, kwargs)
    requests = get_ordered_generation_requests(models_priority_list, **kwargs)
    exchange = AsyncGatewayCall(llm.client, requests, **settings)
    plan = retry_context(llm, exchange)
    if is_stream:
        events = astream(plan, exchange.connect, EventReader, anotifier(run_manager))
        return _awith_attempt_log(events, plan.call_state)
    response = await acall(plan, exchange.send, anotifier(run_manager))
    return exchange.with_attempt_log(response, plan.call_state.attempt_log())


def _with_attempt_log(
    events: Generator[ChunkedGenerationResponse, None, None], call_state: CallState
) -> Generator[ChunkedGenerationResponse, None, None]:
    with contextlib.closing(events):
        for event in events:
            yield _signed_end(event, call_state)


async def _awith_attempt_log(
    events: AsyncGenerator[ChunkedGenerationResponse, None], call_state: CallState
) -> AsyncGenerator[ChunkedGenerationResponse, None]:
    async with contextlib.aclosing(events):
        async for event in events:
            yield _signed_end(event, call_state)


def _signed_end(
    event: ChunkedGenerationResponse, call_state: CallState
) -> ChunkedGenerationResponse:
    if event.event == "end" and isinstance(event, GatewayEvent):
        event.retryrouter = call_state.attempt_log()
    return event


def _take_settings(llm: GPTRouter, options: dict[str, Any]) -> dict[str, Any]:
    """How the gateway is asked; what `options` say of it is taken out of them."""
    max_retries = llm.gateway_max_retries
    if max_retries is None and policy_of(llm).max_retries:
        max_retries = 0  # One retry owner.
    told = {
        "gateway_timeout": llm.gateway_timeout,
        "gateway_max_retries": max_retries,
    }
    return {
        "options": told,
        "metadata": take_metadata(llm, options),
        "failover": llm.failover,
    }
