"""OpenAI's and Azure's models as LangChain LLMs, drop-in for langchain-community's.

`completion_with_retry` and its twin are where every request of these classes goes
through, and can be called as they are. Here stands how the classes compose a request
and what becomes of the answer; how it is sent stands in `_exchange`, what an answer
means in `_openai.wire`, and the fields of the connection in `_connection`.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, ClassVar, ParamSpec, TypeVar, cast

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models.base import LangSmithParams, LanguageModelInput
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.runnables import RunnableConfig

from langchain_retryrouter._drive import ain_order, enter, in_order
from langchain_retryrouter._openai import wire
from langchain_retryrouter._openai.failures import from_problem
from langchain_retryrouter._openai.usage import add_usage, update_token_usage
from langchain_retryrouter.llms._azure import AzureConnection
from langchain_retryrouter.llms._chat import ChatModel
from langchain_retryrouter.llms._closing import aclosing, closing
from langchain_retryrouter.llms._completions import CHAT_MODEL, CompletionsModel
from langchain_retryrouter.llms._connection import OpenAIConnection
from langchain_retryrouter.llms._exchange import aanswer, answer, astream, stream

P = ParamSpec("P")
R = TypeVar("R")

__all__ = [
    "AzureOpenAI",
    "BaseOpenAI",
    "OpenAI",
    "OpenAIChat",
    "acompletion_with_retry",
    "completion_with_retry",
    "update_token_usage",
]


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


def _signed(method: Callable[P, R]) -> Callable[P, R]:
    """`method`, whose signature is known: langchain-core asks for it in each call."""
    vars(method)["__signature__"] = inspect.signature(method)
    return method


class OpenAILLM(OpenAIConnection):
    """How prompts become an `LLMResult`, at both endpoints."""

    async def ainvoke(
        self,
        input: LanguageModelInput,  # noqa: A002 - LangChain's name
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> str:
        """The answer; see `BaseLLM.ainvoke`."""
        await enter()
        return await super().ainvoke(input, config, stop=stop, **kwargs)

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

    @_signed
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
            raws = in_order(send, requests, self._at_once)
            answers = [self._read(raw) for raw in raws]
        return self._result(answers, prompts, kwargs)

    @_signed
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
            raws = await ain_order(send, requests, self._at_once)
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
        _raise_for(answer.problem, len(answer.ledger.get("attempts", ())))
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
        attempts = [line for a in answers for line in a.ledger.get("attempts", ())]
        ledger = {wire.LEDGER: {"attempts": attempts}}
        result.llm_output = {**(result.llm_output or {}), **ledger}
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
