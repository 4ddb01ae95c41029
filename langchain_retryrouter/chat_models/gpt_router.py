"""`GPTRouter`: a chat model over a GPTRouter gateway, with one retry owner.

The module, its classes and its functions are named as in langchain-community, so that
moving over takes one word in the imports. What is promised here holds for `GPTRouter`'s
methods and for `completion_with_retry` called directly.
"""

from __future__ import annotations

import contextlib
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Generator,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any, cast

from gpt_router.models import ChunkedGenerationResponse, GenerationResponse
from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models.base import LanguageModelInput
from langchain_core.language_models.chat_models import (
    agenerate_from_stream,
    generate_from_stream,
)
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from pydantic import BaseModel

from langchain_retryrouter._callbacks import anotifier, notifier, run_manager_of
from langchain_retryrouter._core.session import RetrySession
from langchain_retryrouter._drive import acall, astream, call, stream
from langchain_retryrouter._gateway_connection import (
    DEFAULT_API_BASE_URL,
    GATEWAY_METADATA,
    GPTRouterModel,
)
from langchain_retryrouter._gptrouter.messages import (
    ChunkReader,
    build_messages,
    read_result,
)
from langchain_retryrouter._gptrouter.options import (
    GatewayRequest,
    build_params,
    check_options,
)
from langchain_retryrouter._gptrouter.wire import EventReader, GatewayEvent
from langchain_retryrouter.chat_models._exchange import AsyncExchange, Exchange
from langchain_retryrouter.chat_models._gateway_fields import (
    NO_CHOICES_IN_A_STREAM,
    GatewayFields,
)
from langchain_retryrouter.chat_models._structured import (
    Method,
    Schema,
    Tool,
    structured_options,
    structured_parser,
    tool_options,
    with_raw,
)

__all__ = [
    "DEFAULT_API_BASE_URL",
    "GPTRouter",
    "GPTRouterModel",
    "acompletion_with_retry",
    "completion_with_retry",
    "get_ordered_generation_requests",
]


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
    settings = llm._exchange_settings(kwargs)  # noqa: SLF001 - the model's other half
    requests = get_ordered_generation_requests(models_priority_list, **kwargs)
    exchange = Exchange(llm.client, requests, **settings)
    plan = llm._plan(exchange)  # noqa: SLF001 - the other half of the model
    if is_stream:
        events = stream(plan, exchange.connect, EventReader, notifier(run_manager))
        return _with_ledger(events, plan.session)
    response = call(plan, exchange.send, notifier(run_manager))
    return exchange.signed(response, plan.session.ledger())


async def acompletion_with_retry(
    llm: GPTRouter,
    models_priority_list: list[GPTRouterModel],
    run_manager: AsyncCallbackManagerForLLMRun | None = None,
    **kwargs: Any,
) -> GenerationResponse | AsyncGenerator[ChunkedGenerationResponse, None]:
    """Async twin of `completion_with_retry`."""
    is_stream = bool(kwargs.pop("stream", False))
    settings = llm._exchange_settings(kwargs)  # noqa: SLF001 - the model's other half
    requests = get_ordered_generation_requests(models_priority_list, **kwargs)
    exchange = AsyncExchange(llm.client, requests, **settings)
    plan = llm._plan(exchange)  # noqa: SLF001 - the other half of the model
    if is_stream:
        events = astream(plan, exchange.connect, EventReader, anotifier(run_manager))
        return _awith_ledger(events, plan.session)
    response = await acall(plan, exchange.send, anotifier(run_manager))
    return exchange.signed(response, plan.session.ledger())


def _with_ledger(
    events: Generator[ChunkedGenerationResponse, None, None], session: RetrySession
) -> Generator[ChunkedGenerationResponse, None, None]:
    with contextlib.closing(events):
        for event in events:
            yield _signed_end(event, session)


async def _awith_ledger(
    events: AsyncGenerator[ChunkedGenerationResponse, None], session: RetrySession
) -> AsyncGenerator[ChunkedGenerationResponse, None]:
    async with contextlib.aclosing(events):
        async for event in events:
            yield _signed_end(event, session)


def _signed_end(
    event: ChunkedGenerationResponse, session: RetrySession
) -> ChunkedGenerationResponse:
    if event.event == "end" and isinstance(event, GatewayEvent):
        event.retryrouter = session.ledger()
    return event


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

    def _exchange_settings(self, options: dict[str, Any]) -> dict[str, Any]:
        """How the gateway is asked; what `options` say of it is taken out of them."""
        max_retries = self.gateway_max_retries
        if max_retries is None and self._policy.max_retries:
            max_retries = 0  # One retry owner.
        told = {
            "gateway_timeout": self.gateway_timeout,
            "gateway_max_retries": max_retries,
        }
        return {
            "options": told,
            "metadata": self._take_metadata(options),
            "failover": self.failover,
        }


def _providers(models: list[GPTRouterModel]) -> dict[str, str]:
    return {model.name: model.provider_name for model in models}
