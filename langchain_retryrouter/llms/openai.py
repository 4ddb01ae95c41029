"""OpenAI's and Azure's models as LangChain LLMs, drop-in for langchain-community's.

`completion_with_retry` and its twin are where every request of these classes goes
through, and can be called as they are. Here stands how the classes compose a request
and what becomes of the answer; how it is sent stands in `_exchange`, what an answer
means in `_openai.wire`, and the fields of the connection in `_connection`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import warnings
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Generator,
    Iterator,
    Mapping,
)
from typing import Any, ClassVar, Final, ParamSpec, TypeVar, cast

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import BaseMessage, convert_to_openai_messages
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from pydantic import Field

from langchain_retryrouter._callbacks import anotifier, notifier
from langchain_retryrouter._openai import protocol as wire
from langchain_retryrouter._openai.clients.sending import (
    acreate,
    aopen_stream,
    create,
    identified,
    open_stream,
)
from langchain_retryrouter._openai.clients.streams import AsyncSDKStream, SDKStream
from langchain_retryrouter._openai.errors import OPENAI_ERRORS, from_problem
from langchain_retryrouter._openai.protocol import add_usage, update_token_usage
from langchain_retryrouter._retry import engine, streaming
from langchain_retryrouter._retry.call_state import CallState
from langchain_retryrouter._retry.clock import SYSTEM_CLOCK
from langchain_retryrouter._retry.engine import Attempt, RetryContext
from langchain_retryrouter._retry.streaming import ChunkInfo
from langchain_retryrouter._retry.timeouts import agather_bounded, gather_bounded
from langchain_retryrouter.llms._connection import (
    AzureConnection,
    OpenAIConnection,
    aclosing,
    add_stop,
    closing,
)
from langchain_retryrouter.llms._context_sizes import context_size
from langchain_retryrouter.policy import effective_policy

__all__ = [
    "AzureOpenAI",
    "BaseOpenAI",
    "OpenAI",
    "OpenAIChat",
    "acompletion_with_retry",
    "completion_with_retry",
    "update_token_usage",
]


def answer(
    llm: OpenAIConnection,
    run_manager: CallbackManagerForLLMRun | None,
    request: Mapping[str, Any],
    *,
    as_dicts: bool,
) -> Any:
    """The answer to a request, repeated while the model's policy allows.

    Args:
        llm: The model.
        run_manager: Told of each retry.
        request: The keyword arguments of the SDK's `create`.
        as_dicts: Whether plain data will do.
    """
    plan = _plan(llm, request)
    unix_time = plan.clock.time
    request = identified(llm.client, request)

    def send(attempt: Attempt) -> Any:
        client = llm.client
        return create(client, request, attempt, unix_time, as_dicts=as_dicts)

    found = engine.call(plan, send, notifier(run_manager))
    return wire.attach_attempt_log(found, plan.call_state.attempt_log())


async def aanswer(
    llm: OpenAIConnection,
    run_manager: AsyncCallbackManagerForLLMRun | None,
    request: Mapping[str, Any],
    *,
    as_dicts: bool,
) -> Any:
    """Async twin of `answer`."""
    plan = _plan(llm, request)
    unix_time = plan.clock.time
    request = identified(llm.async_client, request)

    async def send(attempt: Attempt) -> Any:
        client = llm.async_client
        return await acreate(client, request, attempt, unix_time, as_dicts=as_dicts)

    found = await engine.acall(plan, send, anotifier(run_manager))
    return wire.attach_attempt_log(found, plan.call_state.attempt_log())


def stream(
    llm: OpenAIConnection,
    run_manager: CallbackManagerForLLMRun | None,
    request: Mapping[str, Any],
    *,
    as_dicts: bool,
) -> Generator[Any, None, None]:
    """The chunks of a stream that is repeated until its first token; as `answer`."""
    plan = _plan(llm, request)
    unix_time = plan.clock.time
    request = identified(llm.client, request)
    source: SDKStream

    def connect(attempt: Attempt) -> SDKStream:
        nonlocal source
        client = llm.client
        source = open_stream(client, request, attempt, unix_time, as_dicts=as_dicts)
        return source

    def read(chunk: Any) -> ChunkInfo:
        return source.reader(chunk)

    chunks = streaming.stream(plan, connect, lambda: read, notifier(run_manager))
    with contextlib.closing(chunks):
        for chunk in chunks:
            ends = chunk is source.reader.ending
            yield (
                wire.attach_attempt_log(chunk, plan.call_state.attempt_log())
                if ends
                else chunk
            )


async def astream(
    llm: OpenAIConnection,
    run_manager: AsyncCallbackManagerForLLMRun | None,
    request: Mapping[str, Any],
    *,
    as_dicts: bool,
) -> AsyncGenerator[Any, None]:
    """Async twin of `stream`."""
    plan = _plan(llm, request)
    unix_time = plan.clock.time
    request = identified(llm.async_client, request)
    source: AsyncSDKStream

    async def connect(attempt: Attempt) -> AsyncSDKStream:
        nonlocal source
        client = llm.async_client
        source = await aopen_stream(
            client, request, attempt, unix_time, as_dicts=as_dicts
        )
        return source

    def read(chunk: Any) -> ChunkInfo:
        return source.reader(chunk)

    chunks = streaming.astream(plan, connect, lambda: read, anotifier(run_manager))
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            ends = chunk is source.reader.ending
            yield (
                wire.attach_attempt_log(chunk, plan.call_state.attempt_log())
                if ends
                else chunk
            )


def _plan(llm: OpenAIConnection, request: Mapping[str, Any]) -> RetryContext:
    clock = llm.clock or SYSTEM_CLOCK
    call_state = CallState(
        effective_policy(llm.retry_policy, llm.max_retries),
        budget=llm.budget,
        breaker=llm.breaker,
        time=clock,
    )
    route = request.get("model") or llm.model_name
    return RetryContext(
        call_state,
        errors=OPENAI_ERRORS,
        clock=clock,
        route=lambda: route,
        rate_limiter=llm.rate_limiter,
    )


# Chat models by name, fine-tunes of them too: `/v1/completions` serves none of them.
CHAT_MODEL = re.compile(
    r"(ft:)?(gpt-3\.5-turbo|gpt-[4-9]|chatgpt-|o\d)(?!.*-instruct)", re.ASCII
)


class CompletionsModel(OpenAIConnection):
    """The fields and the requests of a model of `/v1/completions`."""

    temperature: float = 0.7
    """What sampling temperature to use."""
    max_tokens: int | None = 256
    """Tokens of an answer at the most; -1 for as many as fit behind the prompt."""
    top_p: float = 1
    """Total probability mass of tokens to consider at each step."""
    frequency_penalty: float = 0
    """Penalizes repeated tokens according to frequency."""
    presence_penalty: float = 0
    """Penalizes repeated tokens."""
    n: int = 1
    """Answers for each prompt."""
    best_of: int = 1
    """Answers to generate, of which the best `n` are returned."""
    logit_bias: dict[str, float] | None = None
    """Changes how likely each token is."""
    seed: int | None = None
    """Makes the sampling as repeatable as the provider can."""
    logprobs: int | None = None
    """How many likely tokens to report at each step, with their probabilities."""

    # Not `lc_secrets` itself: LangChain asks each base class for it; the last wins.
    _secrets: ClassVar[dict[str, str]] = {"openai_api_key": "OPENAI_API_KEY"}

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """LangChain can save it; the key is left out."""
        return True

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """LangChain's own name for these classes, as in langchain-community."""
        return ["langchain", "llms", "openai"]

    @property
    def lc_secrets(self) -> dict[str, str]:
        """Which fields are left out when LangChain saves the model."""
        return self._secrets

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """What LangChain saves although it may come from the environment."""
        named = ("openai_api_base", "openai_organization")
        said = {name: getattr(self, name) for name in named if getattr(self, name)}
        return {**super().lc_attributes, **said}

    @property
    def _llm_type(self) -> str:
        return "openai"

    def _check_numbers(self) -> None:
        super()._check_numbers()
        asked = {"n": self.n, "best_of": self.best_of}
        wire.refuse_several(asked, streaming=self.streaming)
        if self.max_tokens is not None and self.max_tokens < -1:
            msg = f"max_tokens must be -1, 0 or more, or None, not {self.max_tokens}"
            raise ValueError(msg)

    @property
    def _default_params(self) -> dict[str, Any]:
        optional = {
            "max_tokens": self.max_tokens,
            "logit_bias": self.logit_bias,
            "seed": self.seed,
            "logprobs": self.logprobs,
            "extra_body": self.extra_body,
            # Azure's gpt-35-turbo does not know it.
            "best_of": self.best_of if self.best_of > 1 else None,
        }
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "n": self.n,
            **{name: value for name, value in optional.items() if value is not None},
            **self.model_kwargs,
        }

    def _requests(
        self, prompts: list[str], stop: list[str] | None, options: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        params = {**self._invocation_params, **options}
        batches = self.get_sub_prompts(params, prompts, stop)
        return [{"prompt": batch, **params} for batch in batches]

    def get_sub_prompts(
        self, params: dict[str, Any], prompts: list[str], stop: list[str] | None = None
    ) -> list[list[str]]:
        """The prompts of each request; `stop` and `max_tokens` in `params` are settled.

        Args:
            params: The request's parameters; changed in place.
            prompts: All prompts of the call.
            stop: Where an answer ends.

        Raises:
            ValueError: If `stop` is in `params` too, or `max_tokens=-1` stands beside
                several prompts.
        """
        add_stop(params, stop)
        if params.get("max_tokens") == -1:
            if len(prompts) != 1:
                msg = (
                    "max_tokens=-1 fills the context behind one prompt, and there are"
                    f" {len(prompts)}: give a number"
                )
                raise ValueError(msg)
            params["max_tokens"] = self.max_tokens_for_prompt(prompts[0])
        size = self.batch_size
        return [prompts[at : at + size] for at in range(0, len(prompts), size)]

    # Tokens.

    @staticmethod
    def modelname_to_contextsize(modelname: str) -> int:
        """Tokens that fit into the context of a model, prompt and answer together.

        Raises:
            ValueError: If the model is not known.
        """
        return context_size(modelname)

    @property
    def max_context_size(self) -> int:
        """Tokens that fit into the context of this model."""
        return self.modelname_to_contextsize(self.model_name)

    def max_tokens_for_prompt(self, prompt: str) -> int:
        """Tokens that are left for the answer behind `prompt`."""
        return self.max_context_size - self.get_num_tokens(prompt)


_PARAMETERS: Final = (
    "temperature",
    "max_tokens",
    "top_p",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "seed",
    "logprobs",
    "top_logprobs",
    "extra_body",
)


class ChatModel(OpenAIConnection):
    """The fields and the requests of a model of `/v1/chat/completions`, as an LLM."""

    model_name: str = Field(default="gpt-3.5-turbo", alias="model")
    """Name of the model."""
    max_retries: int = 6
    """Further attempts after the first. When given, it wins over the policy's."""
    prefix_messages: list[Any] = Field(default_factory=list)
    """Messages that stand before each prompt, as dicts or LangChain's."""
    temperature: float | None = None
    """What sampling temperature to use; None for the provider's own."""
    max_tokens: int | None = None
    """Tokens of an answer at the most; -1 or None for no limit but the provider's."""
    top_p: float | None = None
    """Total probability mass of tokens to consider at each step."""
    frequency_penalty: float | None = None
    """Penalizes repeated tokens according to frequency."""
    presence_penalty: float | None = None
    """Penalizes repeated tokens."""
    n: int = 1
    """Answers for each prompt."""
    logit_bias: dict[str, float] | None = None
    """Changes how likely each token is."""
    seed: int | None = None
    """Makes the sampling as repeatable as the provider can."""
    logprobs: bool | None = None
    """Whether to report the probability of each token."""
    top_logprobs: int | None = None
    """How many likely tokens to report at each step; needs `logprobs`."""

    @property
    def _llm_type(self) -> str:
        return "openai-chat"

    @property
    def _resource_path(self) -> str:
        return "chat.completions"

    @property
    def _at_once(self) -> int:
        return self.batch_size

    def _check_numbers(self) -> None:
        super()._check_numbers()
        wire.refuse_several({"n": self.n}, streaming=self.streaming)

    @property
    def _default_params(self) -> dict[str, Any]:
        named = {name: getattr(self, name) for name in _PARAMETERS}
        named["n"] = self.n if self.n > 1 else None
        given = {name: value for name, value in named.items() if value is not None}
        return {**given, **self.model_kwargs}

    def _requests(
        self, prompts: list[str], stop: list[str] | None, options: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        params = {**self._invocation_params, **options}
        add_stop(params, stop)
        if params.get("max_tokens") == -1:
            del params[
                "max_tokens"
            ]  # This endpoint has no limit unless it is told one.
        prefix = [_plain(message) for message in self.prefix_messages]
        asked = [{"role": "user", "content": prompt} for prompt in prompts]
        return [{"messages": [*prefix, message], **params} for message in asked]


def _plain(message: Any) -> Any:
    is_langchain = isinstance(message, BaseMessage)
    return convert_to_openai_messages(message) if is_langchain else message


P = ParamSpec("P")
R = TypeVar("R")


def completion_with_retry(
    llm: BaseOpenAI | OpenAIChat,
    run_manager: CallbackManagerForLLMRun | None = None,
    *,
    as_dicts: bool = False,
    **kwargs: Any,
) -> Any:
    """The SDK's answer to one request, repeated while the model's policy allows.

    The answer, or the chunk that ends a stream, carries the call's ledger as its field
    `retryrouter`.

    Args:
        llm: The model; `llm.client.create` sends the request.
        run_manager: Told of each retry, through its `on_retry`.
        as_dicts: Whether plain dicts will do in place of the SDK's objects, which cost
            more than half of a call. What a client of your own returns stays as it is.
        **kwargs: The keyword arguments of `create`. With `stream=True` you get a
            generator of chunks, which sends the request when the first one is asked
            for, and repeats it until that one is handed over.

    Raises:
        RetryRouterError: The last attempt's error, an SDK error by its class too.
    """
    if kwargs.get("stream"):
        return stream(llm, run_manager, kwargs, as_dicts=as_dicts)
    return answer(llm, run_manager, kwargs, as_dicts=as_dicts)


async def acompletion_with_retry(
    llm: BaseOpenAI | OpenAIChat,
    run_manager: AsyncCallbackManagerForLLMRun | None = None,
    *,
    as_dicts: bool = False,
    **kwargs: Any,
) -> Any:
    """Async twin of `completion_with_retry`: `llm.async_client.create` is awaited."""
    if kwargs.get("stream"):
        return astream(llm, run_manager, kwargs, as_dicts=as_dicts)
    return await aanswer(llm, run_manager, kwargs, as_dicts=as_dicts)


def _raise_for(problem: wire.Problem | None, attempts: int = 1) -> None:
    if problem is not None:
        raise from_problem(problem, attempts)


def _with_attempt_log(method: Callable[P, R]) -> Callable[P, R]:
    """`method`, whose signature is known: langchain-core asks for it in each call."""
    vars(method)["__signature__"] = inspect.signature(method)
    return method


class OpenAILLM(OpenAIConnection):
    """How prompts become an `LLMResult`, at both endpoints."""

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        request = self._stream_request(prompt, stop, kwargs)
        reader = wire.ChunkReader()
        chunks = self._complete(run_manager, request)
        with closing(chunks):
            for raw in chunks:
                chunk = reader.read(raw)
                if run_manager:
                    run_manager.on_llm_new_token(chunk.text, **self._told(chunk))
                yield chunk
        _raise_for(reader.problem)

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        request = self._stream_request(prompt, stop, kwargs)
        reader = wire.ChunkReader()
        chunks = await self._acomplete(run_manager, request)
        async with aclosing(chunks):
            async for raw in chunks:
                chunk = reader.read(raw)
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, **self._told(chunk))
                yield chunk
        _raise_for(reader.problem)

    @_with_attempt_log
    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        if kwargs.pop("stream", self.streaming):
            streams = [self._stream(p, stop, run_manager, **kwargs) for p in prompts]
            answers = [wire.join(list(chunks)) for chunks in streams]
        else:
            requests = self._whole_requests(prompts, stop, kwargs)
            send = functools.partial(self._complete, run_manager)
            raws = gather_bounded(send, requests, self._at_once)
            answers = [self._read(raw) for raw in raws]
        return self._result(answers, prompts, kwargs)

    @_with_attempt_log
    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        if kwargs.pop("stream", self.streaming):
            streams = [self._astream(p, stop, run_manager, **kwargs) for p in prompts]
            answers = [wire.join([c async for c in chunks]) for chunks in streams]
        else:
            requests = self._whole_requests(prompts, stop, kwargs)
            send = functools.partial(self._acomplete, run_manager)
            raws = await agather_bounded(send, requests, self._at_once)
            answers = [self._read(raw) for raw in raws]
        return self._result(answers, prompts, kwargs)

    def _complete(
        self, run_manager: CallbackManagerForLLMRun | None, request: Mapping[str, Any]
    ) -> Any:
        # By its name in the module, so that whoever replaces it there is heard.
        llm = cast("BaseOpenAI | OpenAIChat", self)
        return completion_with_retry(llm, run_manager, as_dicts=True, **request)

    async def _acomplete(
        self,
        run_manager: AsyncCallbackManagerForLLMRun | None,
        request: Mapping[str, Any],
    ) -> Any:
        llm = cast("BaseOpenAI | OpenAIChat", self)
        return await acompletion_with_retry(llm, run_manager, as_dicts=True, **request)

    # What is asked.

    def _whole_requests(
        self, prompts: list[str], stop: list[str] | None, options: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """The keyword arguments of `create` for requests that are not streamed."""
        requests = self._requests(prompts, stop, options)
        for request in requests:
            wire.refuse_several(request, streaming=False)
            request.pop("stream_options", None)  # Refused where nothing is streamed.
        return requests

    def _stream_request(
        self, prompt: str, stop: list[str] | None, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The keyword arguments of `create` for a stream of the answer to `prompt`."""
        (request,) = self._requests([prompt], stop, options)
        wire.refuse_several(request, streaming=True)
        if "prompt" in request:
            request["prompt"] = prompt  # Not every server streams for a list.
        if self.stream_usage:
            request.setdefault("stream_options", {"include_usage": True})
        return {**request, "stream": True}

    # What becomes of the answers.

    def _read(self, raw: Any) -> wire.Answer:
        answer = wire.read_answer(raw)
        _raise_for(answer.problem, len(answer.attempt_log.get("attempts", ())))
        return answer

    def _told(self, chunk: GenerationChunk) -> dict[str, Any]:
        """What callbacks hear beside the text of a chunk."""
        info = chunk.generation_info or {}
        return {
            "chunk": chunk,
            "verbose": self.verbose,
            "logprobs": info.get("logprobs"),
        }

    def _result(
        self, answers: list[wire.Answer], prompts: list[str], options: Mapping[str, Any]
    ) -> LLMResult:
        result = self.create_llm_result(
            [choice for answer in answers for choice in answer.choices],
            prompts,
            {**self._invocation_params, **options},
            functools.reduce(add_usage, (a.usage for a in answers), {}),
            system_fingerprint=next(
                (a.system_fingerprint for a in answers if a.system_fingerprint), None
            ),
        )
        attempts = [line for a in answers for line in a.attempt_log.get("attempts", ())]
        attempt_log = {wire.ATTEMPT_LOG: {"attempts": attempts}}
        result.llm_output = {**(result.llm_output or {}), **attempt_log}
        return result

    def create_llm_result(
        self,
        choices: Any,
        prompts: list[str],
        params: dict[str, Any],
        token_usage: dict[str, Any],
        *,
        system_fingerprint: str | None = None,
    ) -> LLMResult:
        """The `LLMResult` of the choices of all prompts, in the prompts' order."""
        n = params.get("n") or 1
        generations = [
            [
                Generation(
                    text=choice["text"],
                    generation_info={
                        "finish_reason": choice.get("finish_reason"),
                        "logprobs": choice.get("logprobs"),
                    },
                )
                for choice in choices[at * n : (at + 1) * n]
            ]
            for at in range(len(prompts))
        ]
        llm_output = {"token_usage": token_usage, "model_name": self.model_name}
        if system_fingerprint:
            llm_output["system_fingerprint"] = system_fingerprint
        return LLMResult(generations=generations, llm_output=llm_output)


class BaseOpenAI(CompletionsModel, OpenAILLM):
    """The models of `/v1/completions`; `OpenAI` and `AzureOpenAI` are made of it."""

    def __new__(cls, **data: Any) -> Any:
        """A model of this class, or an `OpenAIChat` where a chat model is named."""
        name = str(data.get("model") or data.get("model_name") or "")
        if not issubclass(cls, AzureConnection) and CHAT_MODEL.match(name):
            warnings.warn(
                f"{name!r} is a chat model, and /v1/completions does not serve it: you"
                " get an OpenAIChat. To do without this warning, construct OpenAIChat.",
                stacklevel=2,
            )
            return OpenAIChat(**data)
        return super().__new__(cls)


class OpenAI(BaseOpenAI):
    """A model of OpenAI's `/v1/completions`, or of a server that speaks like it.

    Example:
        ```python
        llm = OpenAI(model="gpt-3.5-turbo-instruct", max_retries=4)
        llm.invoke("Once upon a time")
        ```
    """


class AzureOpenAI(AzureConnection, BaseOpenAI):
    """A completions deployment on Azure.

    Example:
        ```python
        llm = AzureOpenAI(
            azure_endpoint="https://example-resource.azure.openai.com/",
            azure_deployment="my-instruct",
            api_version="2024-10-21",
        )
        ```
    """

    _secrets: ClassVar[dict[str, str]] = {
        "openai_api_key": "AZURE_OPENAI_API_KEY",
        "azure_ad_token": "AZURE_OPENAI_AD_TOKEN",
    }

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """What LangChain saves although it may come from the environment."""
        return {
            **super().lc_attributes,
            "openai_api_type": self.openai_api_type,
            "openai_api_version": self.openai_api_version,
        }

    @property
    def _llm_type(self) -> str:
        return "azure"

    @property
    def _invocation_params(self) -> dict[str, Any]:
        # The SDK makes a path of it, where the address names no deployment.
        model = self.deployment_name or self.model_name
        return {**super()._invocation_params, "model": model}

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {"deployment_name": self.deployment_name, **super()._identifying_params}

    def _get_ls_params(
        self, stop: list[str] | None = None, **kwargs: Any
    ) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "azure"
        params["ls_model_name"] = self._invocation_params["model"]
        return params


class OpenAIChat(ChatModel, OpenAILLM):
    """A model of `/v1/chat/completions` as an LLM: text in, text out.

    Each prompt is a request of its own, and `batch_size` of them are under way at the
    same time: in threads, or in tasks where the call is async.

    Example:
        ```python
        llm = OpenAIChat(
            model="gpt-4o-mini",
            prefix_messages=[
                {"role": "system", "content": "Answer in one word."},
            ],
        )
        ```
    """
