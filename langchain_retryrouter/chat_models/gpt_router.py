"""`GPTRouter`: a chat model over a GPTRouter gateway, retried and failed over.

The module, its class and its functions are named as in langchain-community, so that
moving over takes one word in the imports. A call goes from `_generate` or `_stream` by
`completion_with_retry` to `_retry.engine`, which sends it by `_gptrouter.client`.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Generator,
    Iterator,
    Mapping,
    Sequence,
)
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

from langchain_core import callbacks, outputs
from langchain_core.language_models.base import LangSmithParams, LanguageModelInput
from langchain_core.language_models.chat_models import (
    agenerate_from_stream,
    generate_from_stream,
)
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import (
    BaseModel,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from langchain_retryrouter import _callbacks, _gptrouter
from langchain_retryrouter._base import new_call_state
from langchain_retryrouter._gptrouter import connection
from langchain_retryrouter._gptrouter.connection import (
    DEFAULT_API_BASE_URL,
    GatewayConnection,
    GPTRouterModel,
)
from langchain_retryrouter._prices import listed_prices, load_list
from langchain_retryrouter._retry.clock import SYSTEM_CLOCK
from langchain_retryrouter._retry.engine import Attempt, RetryContext, acall, call
from langchain_retryrouter._retry.streaming import ChunkInfo, astream, stream
from langchain_retryrouter._retry.timeouts import EventSource
from langchain_retryrouter._secrets import refuse_bool
from langchain_retryrouter.errors import RetryRouterError, UnsupportedOptionError
from langchain_retryrouter.rate_limits import Size, approximate_tokens

if TYPE_CHECKING:
    from langchain_retryrouter._gptrouter.protocol import Event, Response
    from langchain_retryrouter.chat_models import _structured

__all__ = [
    "DEFAULT_API_BASE_URL",
    "GPTRouter",
    "GPTRouterModel",
    "acompletion_with_retry",
    "completion_with_retry",
    "get_ordered_generation_requests",
]

logger = logging.getLogger(__name__)

# Loaded late: few models are given tools.
_TOO_LARGE: Final = 2**63  # For a sum that is to be read as a number.
_STRUCTURED: Final = "langchain_retryrouter.chat_models._structured"
_SENT_IF_SET: Final = (
    *("top_p", "frequency_penalty", "presence_penalty", "stop", "reasoning_effort"),
    *("thinking", "web_search_options", "output_config"),
)
_ONE_CHOICE_IN_A_STREAM: Final = (
    "n must be 1 in a stream: the gateway interleaves several answers without telling"
    " them apart. Use `generate` or `invoke` without streaming, or n=1."
)
_ONE_CHOICE_WITH_TOOLS: Final = (
    "n must be 1 in a call with tools: the gateway sends tool calls in streams only,"
    " where it interleaves several answers without telling them apart"
)
_MODELS: Final = TypeAdapter(Annotated[list[GPTRouterModel], Field(min_length=1)])
# Tokens of a prompt and of an answer, and whether a model sees pictures and reasons, as
# models.dev has it, like LangChain's own integrations. Whether the gateway passes on a
# JSON schema, for example, is open.
_PROFILES: Final = {
    name: (most_input, most_output, name != "gpt-4", reasons)
    for reasons, most_input, most_output, names in (
        (False, 8_192, 8_192, "gpt-4"),
        (False, 128_000, 4_096, "gpt-4-turbo"),
        (False, 128_000, 16_384, "gpt-4o gpt-4o-mini"),
        (False, 1_047_576, 32_768, "gpt-4.1 gpt-4.1-mini gpt-4.1-nano"),
        (True, 272_000, 128_000, "gpt-5 gpt-5-mini gpt-5-nano"),
        (True, 1_050_000, 128_000, "gpt-6-luna gpt-6-sol"),
        (True, 200_000, 100_000, "o3 o4-mini"),
        (True, 200_000, 64_000, "claude-haiku-4-5 claude-haiku-4-5-20251001"),
        (True, 200_000, 64_000, "claude-sonnet-4-0"),
        (True, 200_000, 32_000, "claude-opus-4-1 claude-opus-4-1-20250805"),
    )
    for name in names.split()
}


class GPTRouter(GatewayConnection, _callbacks.RetryVisibleChatModel):
    """A chat model over a GPTRouter gateway, with retries and failover.

    The key and the address come from the arguments or from `GPT_ROUTER_API_KEY` and
    `GPT_ROUTER_API_BASE`. The gateway is asked not to retry by itself, and connections
    are pooled. A stream that ends without the gateway's `end` is a
    `StreamInterruptedError`, never a short answer.

    Example:
        ```python
        from langchain_retryrouter import GPTRouter, GPTRouterModel

        llm = GPTRouter(
            models_priority_list=[
                GPTRouterModel(name="gpt-4o", provider_name="chat_openai")
            ]
        )
        llm.invoke("Hello").content
        ```

    The answer's `response_metadata` has `model_name`, `provider_name`, `token_usage`,
    `finish_reason`, and under `retryrouter` the attempts that it took.
    """

    temperature: float | None = Field(default=0.7, allow_inf_nan=False)
    """Sampling temperature; None leaves it to the provider."""
    top_p: float | None = Field(default=None, ge=0, le=1)
    """The share of likely tokens to choose from; None leaves it to the provider."""
    frequency_penalty: float | None = Field(default=None, allow_inf_nan=False)
    """How much a token's past frequency counts against it."""
    presence_penalty: float | None = Field(default=None, allow_inf_nan=False)
    """How much it counts against a token that it has appeared."""
    stop: list[str] | str | None = None
    """Texts at which an answer ends; a call's own `stop` replaces them."""
    reasoning_effort: str | None = None
    """How long a reasoning model thinks, from "none" to "max"; newer gateways."""
    thinking: dict[str, Any] | None = None
    """Extended thinking: {"type": "enabled", "budget_tokens": 1024}; newer gateways."""
    web_search_options: dict[str, Any] | None = None
    """Options of a model that searches the web; newer gateways."""
    output_config: dict[str, Any] | None = None
    """The provider's own options for the form of an answer; newer gateways."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """More options for the provider, sent as they are, known to the gateway or not."""
    streaming: bool = False
    """Whether `invoke` streams inside."""
    n: int = Field(default=1, ge=1)
    """Answers per prompt; more than 1 goes with neither streams nor tools."""
    max_tokens: int | None = Field(default=256, ge=1)
    """Tokens of an answer at the most; None leaves it to the provider."""
    gateway_max_retries: int | None = Field(default=None, ge=0)
    """Retries of the gateway itself; None for 0, or its default (3) if we do not
    retry."""
    gateway_timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds the gateway waits for its provider's headers; None for its 60."""

    @classmethod
    def _provider_options(cls) -> frozenset[str]:
        return _gptrouter.protocol.PROVIDER_OPTIONS

    _refuse_bools = field_validator(
        *("temperature", "top_p", "frequency_penalty", "presence_penalty"),
        *("n", "max_tokens", "gateway_max_retries", "gateway_timeout"),
        mode="wrap",
    )(refuse_bool)

    @field_validator("n")
    @classmethod
    def _check_n(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and info.data.get("streaming"):
            raise ValueError(_ONE_CHOICE_IN_A_STREAM)
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
            **{n: v for n in _SENT_IF_SET if (v := getattr(self, n)) is not None},
            **self.model_kwargs,
        }

    def _resolve_model_profile(self) -> ModelProfile | None:
        """What every model of the list can do; None if one of them is unknown."""
        names = [model.name for model in self.models_priority_list]
        if not _PROFILES.keys() >= set(names):
            return None
        known = [_PROFILES[name] for name in names]
        inputs, outputs_, see_images, reason = zip(*known, strict=True)
        return ModelProfile(
            max_input_tokens=min(inputs),
            max_output_tokens=min(outputs_),
            text_inputs=True,
            image_inputs=all(see_images),
            text_outputs=True,
            reasoning_output=all(reason),
            tool_calling=True,
        )

    def _get_ls_params(
        self, stop: list[str] | None = None, **kwargs: Any
    ) -> LangSmithParams:
        model = kwargs.get("model") or self._models_asked(kwargs)[0].name
        params = super()._get_ls_params(stop=stop, **{**kwargs, "model": model})
        params["ls_provider"] = "gptrouter"
        stops = stop or kwargs.get("stop") or self.stop
        if stops:
            params["ls_stop"] = [stops] if isinstance(stops, str) else stops
        return params

    def get_token_ids(self, text: str) -> list[int]:
        """As many numbers as `text` has tokens, approximately: one for 4 characters."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return list(range(-(-len(text) // 4)))

    def get_num_tokens_from_messages(
        self,
        messages: list[BaseMessage],
        tools: Sequence[_structured.Tool] | None = None,
    ) -> int:
        """The number of tokens of `messages` and `tools`, approximately.

        It is langchain-core's approximate number, since any model of the list may
        answer: about 4 characters a token, and a fixed number for a picture. With
        `custom_get_token_ids`, the texts are counted by that.
        """
        if self.custom_get_token_ids is not None:
            return super().get_num_tokens_from_messages(messages, tools)
        offered: list[Any] = [convert_to_openai_tool(tool) for tool in tools or ()]
        return count_tokens_approximately(messages, tools=offered or None)

    def _models_asked(self, options: dict[str, Any]) -> list[GPTRouterModel]:
        """The models of a call; the options that say so are taken out."""
        models, name = self.models_priority_list, options.pop("model", None)
        if (given := options.pop("models_priority_list", None)) is not None:
            try:
                models = _MODELS.validate_python(given)
            except ValidationError as error:
                msg = (
                    "models_priority_list must be a list of GPTRouterModel(name=...,"
                    f" provider_name=...), at least one, not {given!r}"
                )
                raise ValueError(msg) from error
        if name is None:
            return models
        first = [model for model in models if model.name == name]
        if not first:
            listed = ", ".join(repr(model.name) for model in models)
            msg = (
                f"model={name!r} is not in models_priority_list ({listed}); to ask"
                " another one, give the call a list of its own: models_priority_list="
                f"[GPTRouterModel(name={name!r}, provider_name=...)]"
            )
            raise ValueError(msg)
        return first + [model for model in models if model.name != name]

    def _combine_llm_outputs(
        self, llm_outputs: list[dict[str, Any] | None], /
    ) -> dict[str, Any]:
        combined: dict[str, Any] = {}
        total: dict[str, Any] = {}
        for output in llm_outputs:
            if output is None:
                continue  # The run was answered from a cache, or streamed.
            combined |= {
                key: value for key, value in output.items() if key != "retryrouter"
            }
            total = _sum(total, output.get("token_usage") or {})
        return {**combined, "token_usage": total} if combined else {}

    # --- tools and structured output ---

    def bind_tools(
        self,
        tools: Sequence[_structured.Tool],
        *,
        tool_choice: dict[str, Any] | str | bool | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """This model with `tools` in every call.

        The gateway sends tool calls in streams only, so such a call streams inside and
        still returns one message. The public gateway ignores `tool_choice` and
        `parallel_tool_calls` silently.

        Args:
            tools: Functions, pydantic classes, TypedDicts, `BaseTool`s, or dicts in
                OpenAI's form; an empty list sends no tools.
            tool_choice: A tool's name; "auto"; "none"; "any", "required" or True for
                at least one; or a dict in OpenAI's form.
            strict: Whether the provider has to follow the schema of arguments exactly.
            parallel_tool_calls: Whether there may be several calls in one answer.
            **kwargs: More options of a call.

        Raises:
            ValueError: If `tool_choice` asks for a tool that is not given.
            TypeError: If `tool_choice` has another type.
        """
        structured = importlib.import_module(_STRUCTURED)
        options = structured.tool_options(
            tools, tool_choice, strict=strict, parallel_tool_calls=parallel_tool_calls
        )
        return self.bind(**options, **kwargs)

    def with_structured_output(
        self,
        schema: _structured.Schema | None = None,
        *,
        method: _structured.Method = "function_calling",
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
                to ask for JSON and describe it.
            include_raw: Whether to return a dict of `raw`, `parsed` and
                `parsing_error` instead, and not to raise for what cannot be parsed,
                unless a stream was cut within it.
            strict: Whether the provider has to follow the schema exactly.
            **kwargs: More options of a call.

        Returns:
            A runnable from a prompt to such data. With "function_calling" it gives None
            if there is no readable call: the model may answer in text, above all where
            the gateway ignores `tool_choice`.

        Raises:
            ValueError: For a method that does not exist or does not fit the arguments.
        """
        structured = importlib.import_module(_STRUCTURED)
        return cast(
            "Runnable[LanguageModelInput, dict[str, Any] | BaseModel]",
            structured.structured_model(
                self, schema, method, include_raw=include_raw, strict=strict, **kwargs
            ),
        )

    # --- calls ---

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: callbacks.CallbackManagerForLLMRun | None = None,
        stream: bool | None = None,  # noqa: FBT001 - langchain-community's signature
        **kwargs: Any,
    ) -> outputs.ChatResult:
        if self.streaming if stream is None else stream:
            return generate_from_stream(
                self._stream(messages, stop=stop, run_manager=run_manager, **kwargs)
            )
        providers, params = self._prepare(messages, stop, kwargs, stream=False)
        response = completion_with_retry(self, run_manager=run_manager, **params)
        return _gptrouter.messages.read_result(cast("Response", response), providers)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: callbacks.AsyncCallbackManagerForLLMRun | None = None,
        stream: bool | None = None,  # noqa: FBT001 - langchain-community's signature
        **kwargs: Any,
    ) -> outputs.ChatResult:
        if self.streaming if stream is None else stream:
            return await agenerate_from_stream(
                self._astream(messages, stop=stop, run_manager=run_manager, **kwargs)
            )
        providers, params = self._prepare(messages, stop, kwargs, stream=False)
        response = await acompletion_with_retry(self, run_manager=run_manager, **params)
        return _gptrouter.messages.read_result(cast("Response", response), providers)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: callbacks.CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[outputs.ChatGenerationChunk]:
        providers, params = self._prepare(messages, stop, kwargs, stream=True)
        retried = _callbacks.run_manager_of(
            self, run_manager, callbacks.CallbackManagerForLLMRun
        )
        answer = completion_with_retry(self, run_manager=retried, **params)
        events = cast("Generator[Event, None, None]", answer)
        read = _gptrouter.messages.ChunkReader(providers)
        with contextlib.closing(events):
            for event in events:
                if (chunk := read(event)) is None:
                    continue
                if run_manager is not None:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: callbacks.AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[outputs.ChatGenerationChunk]:
        providers, params = self._prepare(messages, stop, kwargs, stream=True)
        retried = _callbacks.run_manager_of(
            self, run_manager, callbacks.AsyncCallbackManagerForLLMRun
        )
        answer = await acompletion_with_retry(self, run_manager=retried, **params)
        events = cast("AsyncGenerator[Event, None]", answer)
        read = _gptrouter.messages.ChunkReader(providers)
        async with contextlib.aclosing(events):
            async for event in events:
                if (chunk := read(event)) is None:
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
    ) -> tuple[dict[str, str | None], dict[str, Any]]:
        """The providers of a call's models by the models' names, and its parameters."""
        options = dict(options)
        options.pop("stream", None)  # LangChain's: it has chosen the method by it.
        models = self._models_asked(options)
        known = _gptrouter.protocol.PROVIDER_OPTIONS
        if unknown := sorted(options.keys() - known - set(connection.GATEWAY_METADATA)):
            msg = (
                f"the gateway cannot carry {', '.join(map(repr, unknown))}: it would be"
                " lost silently. "
            )
            fields = type(self).model_fields
            own = {*fields, *(field.alias for field in fields.values())}
            msg += (
                "Give it to `GPTRouter(...)`, not to a call."
                if own.issuperset(unknown)
                else "To send it nevertheless, use `GPTRouter(model_kwargs={...})`."
            )
            raise UnsupportedOptionError(msg)
        params = {**self._default_params, **options, "stream": stream}
        params["models_priority_list"] = models
        if stop is not None:
            params["stop"] = stop
        if stream and (params.get("n") or 1) > 1:
            raise ValueError(_ONE_CHOICE_IN_A_STREAM)
        params["messages"] = _gptrouter.messages.build_messages(messages)
        providers: dict[str, str | None] = {}
        for (
            model
        ) in models:  # Of a model at two providers no answer tells which it was.
            first = providers.setdefault(model.name, model.provider_name)
            if first != model.provider_name:
                providers[model.name] = None
        return providers, params


def get_ordered_generation_requests(
    models_priority_list: list[GPTRouterModel], **kwargs: Any
) -> list[_gptrouter.protocol.GatewayRequest]:
    """What the SDK's client sends for a list of models: a request for each, in order.

    Args:
        models_priority_list: The models, the preferred one first.
        **kwargs: What the provider is asked, such as `messages` and `temperature`;
            `stream`, which is for the gateway, is left out.

    Raises:
        UnsupportedOptionError: For a value that no gateway takes, by its name.
    """
    kwargs.pop("stream", None)
    return _gptrouter.protocol.build_requests(models_priority_list, kwargs)


def completion_with_retry(
    llm: GPTRouter,
    models_priority_list: list[GPTRouterModel],
    run_manager: callbacks.CallbackManagerForLLMRun | None = None,
    **kwargs: Any,
) -> _gptrouter.protocol.Response | Generator[_gptrouter.protocol.Event, None, None]:
    """The gateway's answer, with retries that `run_manager` sees.

    Args:
        llm: The model whose client, policy, budget and breaker are used.
        models_priority_list: The models to ask, the preferred one first.
        run_manager: Its `on_retry` is called for each retry, before the wait.
        **kwargs: What the provider is asked, such as `messages`, and gateway metadata,
            such as `tag`; with `stream=True` the answer is a generator of events.

    Returns:
        The answer; its `retryrouter` has the attempts it took. With `stream=True` the
        events up to and with `end`; nothing is sent before the first `next`, and the
        call is repeated until its first token has been handed over.

    Raises:
        RetryRouterError: The last attempt's own error, with a note saying why there was
            no further one. A stream raises it from `next`.
        UnsupportedOptionError: For a value that no gateway takes, by its name.
        ValueError: For `n` above 1 with tools, which no stream can carry.
    """
    is_stream = bool(kwargs.pop("stream", False))
    requests = _GatewayCall(llm, models_priority_list, kwargs, run_manager)
    notify = _callbacks.Notifier(run_manager)
    if is_stream:
        new_reader = requests.new_stream_reader
        return stream(requests.context, requests.connect, new_reader, notify)
    response = call(requests.context, requests.send, notify)
    if hasattr(response, "retryrouter"):  # The SDK's own type has no such field.
        response.retryrouter = requests.context.call_state.attempt_log()
    return response


async def acompletion_with_retry(
    llm: GPTRouter,
    models_priority_list: list[GPTRouterModel],
    run_manager: callbacks.AsyncCallbackManagerForLLMRun | None = None,
    **kwargs: Any,
) -> _gptrouter.protocol.Response | AsyncGenerator[_gptrouter.protocol.Event, None]:
    """Async variant of `completion_with_retry`."""
    is_stream = bool(kwargs.pop("stream", False))
    requests = _GatewayCall(llm, models_priority_list, kwargs, run_manager)
    notify = _callbacks.AsyncNotifier(run_manager)
    if is_stream:
        new_reader = requests.new_stream_reader
        return astream(requests.context, requests.aconnect, new_reader, notify)
    response = await acall(requests.context, requests.asend, notify)
    if hasattr(response, "retryrouter"):
        response.retryrouter = requests.context.call_state.attempt_log()
    return response


class _GatewayCall:
    """One call: the requests of its next attempt, and how they are sent."""

    def __init__(
        self,
        llm: GPTRouter,
        models: list[GPTRouterModel],
        options: dict[str, Any],
        run_manager: _callbacks.AnyRunManager | None,
    ) -> None:
        own = {name: options.pop(name, None) for name in connection.GATEWAY_METADATA}
        self._llm, self._options, self._client = llm, options, llm.client
        if not isinstance(llm.client, _gptrouter.client.GatewayClient):
            self._client = _gptrouter.client.SDKClient(llm.client)
        observed = self._client.observed
        for model in models:
            if model.is_chat is not None:
                observed.are_chat[model.name, model.provider_name] = model.is_chat
        requests = get_ordered_generation_requests(models, **options)
        params = requests[0].prompt_params
        asks_for_one = params.n in {None, 1}
        if params.tools and not asks_for_one:
            raise ValueError(_ONE_CHOICE_WITH_TOOLS)
        clock = llm.clock or SYSTEM_CLOCK
        self._models = _gptrouter.protocol.ModelList(
            requests, observed, clock.monotonic, failover=llm.failover
        )
        self._metadata = _gptrouter.protocol.build_metadata(llm, own)
        for message in self._models.warnings:
            if message not in observed.warned:
                observed.warned.add(message)
                logger.warning(message)
        self.new_reader = self._models.new_reader
        call_state = new_call_state(llm, self._models.describe, self._size)
        self.context = RetryContext(
            call_state,
            errors=_gptrouter.protocol.GPT_ROUTER_ERRORS,
            route=self._models.route,
            asked=self._models.asked,
            on_failure=self.on_failure,
            should_failover=self._models.should_failover,
            on_last=self.on_last,
        )
        call_state.records += self._models.skipped
        _callbacks.observe_run(
            call_state, run_manager, trace_attempts=llm.trace_attempts
        )
        if load_list():
            prices: dict[str | None, Any] = {}
            for model in models:
                listed = listed_prices(model.name, model.provider_name)
                prices.setdefault(model.name, listed)
            # Of a failed attempt it may not be known which model was asked.
            prices[None] = prices[models[0].name]
            call_state.prices = prices
        self._gateway_max_retries = llm.gateway_max_retries
        if self._gateway_max_retries is None and call_state.policy.max_retries:
            self._gateway_max_retries = 0  # Or one call would be retried twice over.
        # The public gateway drops tool calls unstreamed, and function calls streamed.
        self._has_tools = self._streams_inside = bool(params.tools)
        self._never_streams = bool(params.functions) and not self._streams_inside
        self._may_stream_inside = asks_for_one and not self._never_streams

    def _size(self, _position: int) -> Size:
        names = ("messages", "prompt", "tools", "functions")
        prompt = approximate_tokens([self._options.get(name) for name in names])
        most = self._options.get("max_tokens")
        return Size(prompt, most and most * (self._options.get("n") or 1))

    def on_failure(self, error: RetryRouterError) -> None:
        """Prepare the next attempt."""
        if self._may_stream_inside and _gptrouter.protocol.is_opaque(error):
            self._streams_inside = True  # The gateway tells a stream the cause.
        state = self.context.call_state
        is_last_attempt = state.attempts + 1 >= state.policy.max_attempts
        if names := self._models.failed(error, is_last_attempt=is_last_attempt):
            logger.warning("%s cannot answer: %s", names, error)

    def on_last(self, event: Event) -> None:
        """Give the end of a stream the attempt log."""
        call_state = self.context.call_state
        self._models.answered(call_state, call_state.attempt)
        cast("Any", event).retryrouter = call_state.attempt_log()

    def new_stream_reader(self) -> Callable[[Event], ChunkInfo]:
        """What reads a stream whose events are handed over as they come."""
        read = self.new_reader()
        if not self._has_tools:
            return read
        calls = _gptrouter.messages.CallReader()

        def read_and_check(event: Event) -> ChunkInfo:
            info = read(event)
            if event.event == "update":
                calls.read(event.data.get("tool_calls"))
            elif info.is_end:  # Else the answer was cut, whatever its calls are.
                calls.check(read.finish_reason)
            return info

        return read_and_check

    # --- sending ---

    def send(self, attempt: Attempt) -> Response:
        """One attempt's answer; the model that has sent it is in the attempt log."""
        response: Response
        if self._streams_inside:
            with contextlib.closing(self.connect(attempt)) as events:
                response = _gptrouter.messages.assemble(events, self.new_reader())
            self._models.answered(self.context.call_state, attempt.number)
        else:
            response = self._client.generate(**self._request(attempt, is_stream=False))
            self._models.answered(self.context.call_state, attempt.number, response)
        return response

    async def asend(self, attempt: Attempt) -> Response:
        response: Response
        if self._streams_inside:
            async with contextlib.aclosing(await self.aconnect(attempt)) as events:
                all_events = [event async for event in events]
            response = _gptrouter.messages.assemble(all_events, self.new_reader())
            self._models.answered(self.context.call_state, attempt.number)
        else:
            request = self._request(attempt, is_stream=False)
            response = await self._client.agenerate(**request)
            self._models.answered(self.context.call_state, attempt.number, response)
        return response

    def connect(self, attempt: Attempt) -> EventSource[Event]:
        if self._never_streams:
            return _gptrouter.messages.take_apart(self.send(attempt))
        events = self._client.generate(**self._request(attempt, is_stream=True))
        return cast("EventSource[Event]", events)

    async def aconnect(self, attempt: Attempt) -> AsyncGenerator[Event, None]:
        if self._never_streams:
            return self._ataken_apart(await self.asend(attempt))
        events = await self._client.agenerate(**self._request(attempt, is_stream=True))
        return cast("AsyncGenerator[Event, None]", events)

    async def _ataken_apart(self, response: Response) -> AsyncGenerator[Event, None]:
        for event in _gptrouter.messages.take_apart(response):
            yield event

    def _request(self, attempt: Attempt, *, is_stream: bool) -> dict[str, Any]:
        return {
            "ordered_generation_requests": self._models.requests,
            "is_stream": is_stream,
            "model_router_metadata": self._metadata,
            "timeout": attempt.timeout,
            "read_headers": attempt.read_headers,
            "gateway_timeout": self._llm.gateway_timeout,
            "gateway_max_retries": self._gateway_max_retries,
        }


def _sum(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers added up, at any depth; of what cannot be added, the last."""
    total = dict(left)
    for name, value in right.items():
        before: Any = total.get(name)
        if isinstance(before, dict) and isinstance(value, dict):
            total[name] = _sum(before, value)
        elif all(
            type(one) in {int, float} and abs(one) < _TOO_LARGE  # Not True.
            for one in (before, value)
        ):
            total[name] = before + value
        else:
            total[name] = value
    return total
