"""`GPTRouter`: a chat model over a GPTRouter gateway, with one retry owner.

The module, its classes and its functions are named as in langchain-community, so that
moving over takes one word in the imports. What is promised here holds for `GPTRouter`'s
methods and for `completion_with_retry` called directly.

Importing it costs little more than LangChain: what makes calls stands in
`_gateway_calls`, and is loaded with the first model.
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
from typing import TYPE_CHECKING, Any, Self, cast

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

from langchain_retryrouter._callbacks import inspected_once, run_manager_of
from langchain_retryrouter._gateway_connection import (
    DEFAULT_API_BASE_URL,
    GATEWAY_METADATA,
    GPTRouterModel,
)
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

if TYPE_CHECKING:
    from gpt_router.models import ChunkedGenerationResponse, GenerationResponse

    # Bound by `_load_calls`, as if they had been imported here.
    from langchain_retryrouter.chat_models._gateway_calls import (  # noqa: TC004
        ChunkReader,
        acompletion_with_retry,
        build_messages,
        check_options,
        completion_with_retry,
        get_ordered_generation_requests,
        read_result,
    )

__all__ = [
    "DEFAULT_API_BASE_URL",
    "GPTRouter",
    "GPTRouterModel",
    "acompletion_with_retry",
    "completion_with_retry",
    "get_ordered_generation_requests",
]


def _load_calls() -> None:
    """Bind the names of `_gateway_calls`; one that was replaced stays replaced."""
    from langchain_retryrouter.chat_models import _gateway_calls  # noqa: PLC0415

    for name in _gateway_calls.__all__:
        globals().setdefault(name, getattr(_gateway_calls, name))


if not TYPE_CHECKING:  # A checker sees the names above, and no others.

    def __getattr__(name: str) -> Any:
        """Load what makes calls when one of its public names is used (PEP 562)."""
        if name not in __all__:
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        _load_calls()
        return globals()[name]


def __dir__() -> list[str]:
    """What is here, loaded or not."""
    return sorted({*globals(), *__all__})


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

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """A model, however it is made: by its class, from a pickle, or as a copy."""
        _load_calls()  # Now, for its first call may be inside an event loop.
        return super().__new__(cls)

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
