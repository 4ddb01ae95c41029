"""OpenAI's and Azure's models as LangChain LLMs, drop-in for langchain-community's.

All requests go through `completion_with_retry` or `acompletion_with_retry`, which can
be called directly too. Read next: `_retry.engine` retries, `_openai.client` sends, and
`_openai.protocol` reads the answer. The fields of the connection are in `_connection`.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import re
import warnings
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterator,
    Mapping,
)
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from langchain_core import callbacks
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import convert_to_openai_messages
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from pydantic import Field, PrivateAttr, SecretStr, field_validator

from langchain_retryrouter._base import new_call_state
from langchain_retryrouter._callbacks import (
    AnyRunManager,
    AsyncNotifier,
    Notifier,
    observe_run,
)
from langchain_retryrouter._openai import client, protocol
from langchain_retryrouter._openai.errors import OPENAI_ERRORS
from langchain_retryrouter._openai.protocol import ATTEMPT_LOG, update_token_usage
from langchain_retryrouter._prices import listed_prices, load_list, write_costs
from langchain_retryrouter._retry import engine, streaming
from langchain_retryrouter._retry.call_log import Subject
from langchain_retryrouter._retry.timeouts import agather_bounded, gather_bounded
from langchain_retryrouter._secrets import refuse_bool
from langchain_retryrouter._shared import require
from langchain_retryrouter.errors import InvalidRequestError
from langchain_retryrouter.failures import FailureKind
from langchain_retryrouter.llms._connection import (
    CONTEXT_SIZES,
    OpenAIConnection,
    Secret,
    first_env,
    unhide,
)
from langchain_retryrouter.rate_limits import Size, approximate_tokens

__all__ = [
    "AzureOpenAI",
    "BaseOpenAI",
    "OpenAI",
    "OpenAIChat",
    "acompletion_with_retry",
    "completion_with_retry",
    "update_token_usage",
]

# Chat models by name, fine-tunes of them too: `/v1/completions` serves none of them.
CHAT_MODEL: Final = re.compile(
    r"(ft:)?(gpt-3\.5-turbo|gpt-([4-9]|\d\d)|chatgpt-|o\d)(?!.*-instruct)", re.ASCII
)
_SNAPSHOT: Final = re.compile(r"-\d{4}-\d{2}-\d{2}$")
_AZURE_USER_AGENT: Final = "langchain-retryrouter-python-azure-openai"
_SECRET_NAME: Final = re.compile("auth|key|token|secret|cookie|password", re.IGNORECASE)
_PENALTIES: Final = ("frequency_penalty", "presence_penalty")
# These refuse `max_tokens`: the limit includes the tokens of their reasoning.
_COUNTS_REASONING: Final = re.compile(r"(ft:|openai/)?(gpt-([5-9]|\d\d)|o\d)", re.ASCII)
# How servers refuse a list of prompts: Ollama, DeepSeek, LM Studio, Together, ...
_WANTS_STRING: Final = re.compile(
    r"\b(?:array|list|sequence)\b|(?:be|valid|expected|type) (?:a )?str(?:ing)?\b",
    re.IGNORECASE,
)
_chunk_info = operator.attrgetter("info")  # What an event of a stream means.


class _Call:
    """One call: its request, and how an attempt sends it."""

    def __init__(
        self,
        llm: OpenAIConnection,
        resource: Any,
        request: Mapping[str, Any],
        run_manager: AnyRunManager | None,
    ) -> None:
        route = str(request.get("model") or llm.model_name)  # Any JSON is sent.
        operation = "chat" if "messages" in request else "text_completion"
        subject = Subject(operation, llm.ls_provider, route)
        call_state = self._call_state = new_call_state(
            llm, lambda _: subject, lambda _: _size_of(request)
        )
        if load_list():
            prices = listed_prices(route, llm.ls_provider, llm.openai_api_base)
            call_state.prices = {route: prices}
        observe_run(call_state, run_manager, trace_attempts=llm.trace_attempts)
        self.context = engine.RetryContext(
            call_state,
            errors=OPENAI_ERRORS,
            route=lambda: route,
            rate_limiters=(llm.rate_limiter,),
        )
        self.request = client.SDKRequest(resource, request, call_state.clock.time)
        self._is_logged = False
        # A chunk with the usage follows the end of such a stream.
        asked = request.get("stream_options")
        self._is_counted_late = isinstance(asked, Mapping) and asked.get(
            "include_usage"
        )
        self._end: Any = None  # The chunk of the end, until its usage is known.

    def send(self, attempt: engine.Attempt) -> Any:
        return self._noted(self.request.create(attempt), attempt.number)

    async def asend(self, attempt: engine.Attempt) -> Any:
        return self._noted(await self.request.acreate(attempt), attempt.number)

    def _noted(self, answer: Any, attempt: int) -> Any:
        """An answer or chunk, that the observers have seen."""
        if self._call_state.wants_facts and (facts := protocol.facts_of(answer)):
            self._call_state.answered(attempt, **facts)
        return answer

    def chunks(self, event: protocol.ClassifiedChunk) -> Iterator[Any]:
        """The chunks to hand over; that with which the answer ends has the log."""
        self._noted(event.chunk, self._call_state.attempt)
        yield from self.held_end()
        if not event.info.is_end or self._is_logged:
            yield event.chunk
            return
        self._is_logged, self._end = True, event.chunk
        if not self._is_counted_late or "usage" in protocol.facts_of(event.chunk):
            yield from self.held_end()

    def held_end(self) -> Iterator[Any]:
        """The chunk of the end, with the attempt log, if it is held back."""
        end, self._end = self._end, None
        if end is not None:
            yield self.logged(end)

    def logged(self, thing: Any) -> Any:
        """An answer, or a chunk, with the attempt log."""
        return protocol.attach_attempt_log(thing, self._call_state.attempt_log())


def _size_of(request: Mapping[str, Any]) -> Size:
    """The size of a request, which may have several prompts."""
    names = ("prompt", "messages", "tools", "suffix")
    answers = max(request.get("n") or 1, request.get("best_of") or 1)
    most = request.get("max_tokens") or request.get("max_completion_tokens") or 0
    return Size(
        approximate_tokens([request.get(name) for name in names]),
        most * answers * protocol.count_prompts(request) if most > 0 else None,
    )


def completion_with_retry(
    llm: OpenAILLM,
    run_manager: callbacks.CallbackManagerForLLMRun | None = None,
    **kwargs: Any,
) -> Any:
    """The answer to one request, retried while the model's policy allows.

    Args:
        llm: The model; its `client.create` sends the request.
        run_manager: Its `on_retry` is called before each retry.
        **kwargs: The keyword arguments of `create`.

    Returns:
        The answer's JSON object, whose fields are attributes too; its field
        `retryrouter` holds the attempt log. With `stream=True`, a generator of such
        chunks; the last one has the attempt log. It sends the request when the first
        chunk is asked for, and retries until that one is handed over. With a client of
        your own, what its `create` returns.

    Raises:
        RetryRouterError: The last attempt's error, an SDK error by its class too.
    """
    if kwargs.get("stream"):
        return _stream_with_retry(llm, run_manager, kwargs)
    one = _Call(llm, llm.client, kwargs, run_manager)
    return one.logged(engine.call(one.context, one.send, Notifier(run_manager)))


async def acompletion_with_retry(
    llm: OpenAILLM,
    run_manager: callbacks.AsyncCallbackManagerForLLMRun | None = None,
    **kwargs: Any,
) -> Any:
    """Async variant of `completion_with_retry`; it awaits `llm.async_client.create`."""
    if kwargs.get("stream"):
        return _astream_with_retry(llm, run_manager, kwargs)
    one = _Call(llm, llm.async_client, kwargs, run_manager)
    notify = AsyncNotifier(run_manager)
    return one.logged(await engine.acall(one.context, one.asend, notify))


def _stream_with_retry(
    llm: OpenAIConnection,
    run_manager: callbacks.CallbackManagerForLLMRun | None,
    kwargs: Mapping[str, Any],
) -> Generator[Any, None, None]:
    one, notify = _Call(llm, llm.client, kwargs, run_manager), Notifier(run_manager)
    connect = one.request.open_stream
    events = streaming.stream(one.context, connect, lambda: _chunk_info, notify)
    with contextlib.closing(events):
        for event in events:
            yield from one.chunks(event)
        yield from one.held_end()


async def _astream_with_retry(
    llm: OpenAIConnection,
    run_manager: callbacks.AsyncCallbackManagerForLLMRun | None,
    kwargs: Mapping[str, Any],
) -> AsyncGenerator[Any, None]:
    one = _Call(llm, llm.async_client, kwargs, run_manager)
    notify = AsyncNotifier(run_manager)
    connect = one.request.aopen_stream
    events = streaming.astream(one.context, connect, lambda: _chunk_info, notify)
    async with contextlib.aclosing(events):
        async for event in events:
            for chunk in one.chunks(event):
                yield chunk
        for chunk in one.held_end():
            yield chunk


class OpenAILLM(OpenAIConnection):
    """How prompts become requests, and answers an `LLMResult`, at both endpoints."""

    n: int = 1
    """Answers for each prompt."""
    logit_bias: dict[str, float] | None = None
    """Changes how likely each token is."""
    seed: int | None = None
    """Makes the sampling as repeatable as the provider can."""

    _refuse_bools = field_validator(
        *("n", "seed", "best_of", "batch_size", "max_tokens", "temperature", "top_p"),
        *(*_PENALTIES, "top_logprobs"),
        mode="wrap",
        check_fields=False,
    )(refuse_bool)

    # Whether one request takes several prompts; until the server refuses a list.
    _reads_list: bool = PrivateAttr(default=True)

    # Requests.

    # The fields that are sent unless they are None, and the one unless it is 1.
    _sent: ClassVar[tuple[str, ...]]
    _sent_above_one: ClassVar[str]

    @property
    def _default_params(self) -> dict[str, Any]:
        """The parameters of every request."""
        sent = {name: getattr(self, name) for name in self._sent}
        params = {name: value for name, value in sent.items() if value is not None}
        if (count := getattr(self, self._sent_above_one)) > 1:
            params[self._sent_above_one] = count
        return {**params, **self.model_kwargs}

    @property
    def _invocation_params(self) -> dict[str, Any]:
        """The parameters of every request, including the model's name."""
        return {"model": self.model_name, **self._default_params}

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {"model_name": self.model_name, **self._default_params}

    def _get_ls_params(
        self, stop: list[str] | None = None, **kwargs: Any
    ) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = self.ls_provider
        return params

    def _params(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a call; an option of None takes the model's own out."""
        params = {**self._invocation_params, **options}
        return {n: v for n, v in params.items() if n not in options or v is not None}

    def _requests(
        self, prompts: list[str], stop: list[str] | None, options: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """The keyword arguments of `create` for each request that `prompts` take."""
        raise NotImplementedError

    def _check_numbers(self) -> None:
        size, most = self.batch_size, getattr(self, "max_tokens", None)
        require("batch_size", size, "1 or more", is_met=size >= 1)
        is_met = most is None or most >= -1
        require("max_tokens", most, "-1, 0 or more, or None", is_met=is_met)
        asked = {"n": self.n, "best_of": getattr(self, "best_of", None)}
        protocol.check_choices(asked, streaming=self.streaming)

    def _whole_requests(
        self, prompts: list[str], stop: list[str] | None, options: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        requests = self._requests(prompts, stop, options)
        for request in requests:
            protocol.check_choices(request, streaming=False)
            request.pop("stream_options", None)  # The API refuses it without a stream.
        return requests

    @contextlib.contextmanager
    def _splitting(
        self, requests: list[dict[str, Any]], error: InvalidRequestError
    ) -> Iterator[None]:
        """Send prompts one by one from here on, if `error` says that lists are refused.

        Any other error is raised.
        """
        has_list = any(isinstance(one.get("prompt"), list) for one in requests)
        is_refused = error.kind is FailureKind.INVALID_REQUEST and has_list
        if not (is_refused and _WANTS_STRING.search(error.message)):
            raise error
        self._reads_list = False
        try:
            yield
        except InvalidRequestError:
            self._reads_list = True  # The list was not what is refused.
            raise

    def _stream_request(
        self, prompt: str, stop: list[str] | None, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        (request,) = self._requests([prompt], stop, options)
        protocol.check_choices(request, streaming=True)
        if self.stream_usage:
            request.setdefault("stream_options", {"include_usage": True})
        return {**request, "stream": True}

    # Calls. The functions of this module are called by name, so that replacing them
    # has an effect.

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: callbacks.CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        if kwargs.pop("stream", self.streaming):
            streams = [self._stream(p, stop, run_manager, **kwargs) for p in prompts]
            answers = [protocol.join(chunks) for chunks in streams]
            return self._result(answers, prompts, kwargs)

        def send(request: dict[str, Any]) -> Any:
            return completion_with_retry(self, run_manager, **request)

        requests = self._whole_requests(prompts, stop, kwargs)
        at_once = 1 if self._reads_list else self.batch_size
        try:
            found = gather_bounded(send, requests, at_once)
        except InvalidRequestError as error:
            with self._splitting(requests, error):
                return self._generate(prompts, stop, run_manager, **kwargs)
        return self._result([*map(protocol.read_answer, found)], prompts, kwargs)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: callbacks.AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        if kwargs.pop("stream", self.streaming):
            streams = [self._astream(p, stop, run_manager, **kwargs) for p in prompts]
            answers = [protocol.join([c async for c in chunks]) for chunks in streams]
            return self._result(answers, prompts, kwargs)

        async def send(request: dict[str, Any]) -> Any:
            return await acompletion_with_retry(self, run_manager, **request)

        requests = self._whole_requests(prompts, stop, kwargs)
        at_once = 1 if self._reads_list else self.batch_size
        try:
            found = await agather_bounded(send, requests, at_once)
        except InvalidRequestError as error:
            with self._splitting(requests, error):
                return await self._agenerate(prompts, stop, run_manager, **kwargs)
        return self._result([*map(protocol.read_answer, found)], prompts, kwargs)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: callbacks.CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        request = self._stream_request(prompt, stop, kwargs)
        reader = protocol.ChunkTranslator()
        chunks = completion_with_retry(self, run_manager, **request)
        with contextlib.ExitStack() as stack:
            if hasattr(chunks, "close"):
                stack.callback(chunks.close)
            for raw in chunks:
                chunk = reader.read(raw)
                if run_manager:
                    run_manager.on_llm_new_token(chunk.text, **self._token_facts(chunk))
                yield chunk
        reader.finish()

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: callbacks.AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        request = self._stream_request(prompt, stop, kwargs)
        reader = protocol.ChunkTranslator()
        chunks = await acompletion_with_retry(self, run_manager, **request)
        async with contextlib.AsyncExitStack() as stack:
            if hasattr(chunks, "aclose"):
                stack.push_async_callback(chunks.aclose)
            async for raw in chunks:
                chunk = reader.read(raw)
                if run_manager:
                    facts = self._token_facts(chunk)
                    await run_manager.on_llm_new_token(chunk.text, **facts)
                yield chunk
        reader.finish()

    # Answers.

    def _token_facts(self, chunk: GenerationChunk) -> dict[str, Any]:
        """The arguments of `on_llm_new_token` after the text."""
        logprobs = (chunk.generation_info or {}).get("logprobs")
        return {"chunk": chunk, "verbose": self.verbose, "logprobs": logprobs}

    def _result(
        self,
        answers: list[protocol.CompletionResult],
        prompts: list[str],
        options: Mapping[str, Any],
    ) -> LLMResult:
        fingerprints = (answer.system_fingerprint for answer in answers)
        result = self.create_llm_result(
            [choice for answer in answers for choice in answer.choices],
            prompts,
            {"n": self.n, **options},
            functools.reduce(protocol.add_usage, (one.usage for one in answers), {}),
            system_fingerprint=next(filter(None, fingerprints), None),
        )
        logs = (answer.attempt_log.get("attempts", ()) for answer in answers)
        attempts = {"attempts": [attempt for log in logs for attempt in log]}
        write_costs(attempts)
        result.llm_output = {**(result.llm_output or {}), ATTEMPT_LOG: attempts}
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
        n, names = params.get("n") or 1, ("finish_reason", "logprobs")
        found = [
            Generation(text=one["text"], generation_info={k: one.get(k) for k in names})
            for one in choices
        ]
        generations = [found[at * n : (at + 1) * n] for at in range(len(prompts))]
        llm_output = {"token_usage": token_usage, "model_name": self.model_name}
        if system_fingerprint:
            llm_output["system_fingerprint"] = system_fingerprint
        return LLMResult(generations=generations, llm_output=llm_output)


class BaseOpenAI(OpenAILLM):
    """The models of `/v1/completions`: the base of `OpenAI` and `AzureOpenAI`."""

    temperature: float = 0.7
    """The sampling temperature."""
    max_tokens: int | None = 256
    """The most tokens of an answer; -1 for as many as fit behind the prompt."""
    top_p: float = 1
    """Total probability mass of tokens to consider at each step."""
    frequency_penalty: float = 0
    """Penalizes repeated tokens according to frequency."""
    presence_penalty: float = 0
    """Penalizes repeated tokens."""
    best_of: int = 1
    """Answers to generate; the best `n` of them are returned."""
    logprobs: int | None = None
    """How many likely tokens to report at each step, with their probabilities."""

    _refuse_bool = field_validator("logprobs", mode="wrap")(refuse_bool)
    _sent: ClassVar = (
        *("temperature", "top_p", *_PENALTIES, "n", "max_tokens", "logit_bias"),
        *("seed", "logprobs", "extra_body"),
    )
    _sent_above_one: ClassVar = "best_of"  # Azure's gpt-35-turbo does not know it.

    # Not `lc_secrets` itself: LangChain asks each base class for it; the last wins.
    _secrets: ClassVar[dict[str, str]] = {"openai_api_key": "OPENAI_API_KEY"}

    def __new__(cls, **data: Any) -> Any:
        """A model of this class, or an `OpenAIChat` for the name of a chat model."""
        name = str(data.get("model") or data.get("model_name") or "")
        if not issubclass(cls, AzureOpenAI) and CHAT_MODEL.match(name):
            warnings.warn(
                f"{name!r} is a chat model, and /v1/completions does not serve it: you"
                " get an OpenAIChat. To avoid this warning, construct OpenAIChat.",
                stacklevel=2,
            )
            return OpenAIChat(**data)
        return super().__new__(cls)

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """LangChain can save the model; the key is left out."""
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
        """What LangChain saves although it may come from the environment, or secret.

        Of a secret, the rest is saved; of what is not data, that it is missing.
        """
        names = ["openai_api_base", "openai_organization", "rate_limiter"]
        names += ["openai_api_type", "openai_api_version"]  # Of Azure.
        headers = (self.default_headers or {}).items()
        saved = {
            **super().lc_attributes,
            **{name: getattr(self, name, None) for name in names},
            "openai_proxy": re.sub(r"(?<=//)[^/@]*@", "", self.openai_proxy or ""),
            "default_headers": {n: v for n, v in headers if not _SECRET_NAME.search(n)},
        }
        return {name: v for name, v in saved.items() if v or v is False}

    @property
    def _llm_type(self) -> str:
        return "openai"

    def _requests(
        self, prompts: list[str], stop: list[str] | None, options: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        params = self._params(options)
        batches = self.get_sub_prompts(params, prompts, stop)
        # Some servers, such as Ollama, refuse a list.
        return [
            {"prompt": batch[0] if len(batch) == 1 else batch, **params}
            for batch in batches
        ]

    def get_sub_prompts(
        self, params: dict[str, Any], prompts: list[str], stop: list[str] | None = None
    ) -> list[list[str]]:
        """The prompts of each request; sets `stop` and `max_tokens` in `params`.

        Args:
            params: The request's parameters; changed in place.
            prompts: All prompts of the call.
            stop: Strings at which an answer ends.

        Raises:
            ValueError: If `max_tokens=-1` is given with several prompts.
        """
        if stop is not None:
            params["stop"] = stop
        if params.get("max_tokens") == -1:
            if len(prompts) != 1:
                msg = (
                    "max_tokens=-1 fills the context behind one prompt, and there are"
                    f" {len(prompts)}: give a number"
                )
                raise ValueError(msg)
            # At least 1: what does not fit is for the provider to say.
            params["max_tokens"] = max(1, self.max_tokens_for_prompt(prompts[0]))
        size = self.batch_size if self._reads_list else 1
        return [prompts[at : at + size] for at in range(0, len(prompts), size)]

    @staticmethod
    def modelname_to_contextsize(modelname: str) -> int:
        """Tokens that fit into the context of a model, prompt and answer together.

        A snapshot or fine-tune has its base's context. Fine-tunes are called
        `ft:davinci-002:org::id`, and were called `ada:ft-your-org:name`.

        Raises:
            ValueError: If the model is not known.
        """
        base = modelname.partition(":")[0] if "ft-" in modelname else modelname
        if modelname.startswith("ft:"):
            base = modelname.split(":")[1]
        size = CONTEXT_SIZES.get(base) or CONTEXT_SIZES.get(_SNAPSHOT.sub("", base))
        if size is None:
            msg = (
                f"Unknown model: {modelname!r}, so how much fits into its context is"
                " not known: set max_tokens to a number. Known models are:"
                f" {', '.join(CONTEXT_SIZES)}"
            )
            raise ValueError(msg)
        return size

    @property
    def max_context_size(self) -> int:
        """Tokens that fit into the context of this model."""
        return self.modelname_to_contextsize(self.model_name)

    def max_tokens_for_prompt(self, prompt: str) -> int:
        """Tokens that are left for the answer behind `prompt`."""
        return self.max_context_size - self.get_num_tokens(prompt)


class OpenAI(BaseOpenAI):
    """A model of OpenAI's `/v1/completions`, or of a compatible server.

    Example:
        ```python
        llm = OpenAI(model="gpt-3.5-turbo-instruct", max_retries=4)
        llm.invoke("Once upon a time")
        ```
    """


class AzureOpenAI(BaseOpenAI):
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

    ls_provider: ClassVar[str] = "azure"
    _sdk_class: ClassVar[str] = "AzureOpenAI"

    azure_endpoint: str | None = Field(
        default_factory=first_env("AZURE_OPENAI_ENDPOINT")
    )
    """The resource, such as `https://example-resource.azure.openai.com/`. From
    `AZURE_OPENAI_ENDPOINT` if it is not given."""
    deployment_name: str | None = Field(default=None, alias="azure_deployment")
    """The deployment that answers; `model_name` if it is not given."""
    openai_api_version: str | None = Field(
        default_factory=first_env("OPENAI_API_VERSION"), alias="api_version"
    )
    """The version of the API. From `OPENAI_API_VERSION` if it is not given."""
    openai_api_key: Secret | None = Field(
        default_factory=first_env(
            "AZURE_OPENAI_API_KEY", "OPENAI_API_KEY", kind=SecretStr
        ),
        alias="api_key",
    )
    """From `AZURE_OPENAI_API_KEY`, then `OPENAI_API_KEY`, if it is not given."""
    openai_api_base: str | None = Field(
        default_factory=first_env("OPENAI_API_BASE"), alias="base_url"
    )
    """The address up to `/openai` or the deployment; better give `azure_endpoint`."""
    azure_ad_token: Secret | None = Field(
        default_factory=first_env("AZURE_OPENAI_AD_TOKEN", kind=SecretStr)
    )
    """A Microsoft Entra token. From `AZURE_OPENAI_AD_TOKEN` if it is not given."""
    azure_ad_token_provider: Callable[[], str] | None = None
    """Returns an Entra token; called before each request, async ones too if there is no
    `azure_ad_async_token_provider`."""
    azure_ad_async_token_provider: Callable[[], Awaitable[str]] | None = None
    """Returns an Entra token; awaited before each async request."""
    openai_api_type: str | None = Field(
        default_factory=lambda: first_env("OPENAI_API_TYPE")() or "azure"
    )
    """Kept for old code; it has no effect."""
    validate_base_url: bool = True
    """Whether an `openai_api_base` that is not an Azure address is made one."""

    def _check_account(self) -> None:
        if not (self.azure_endpoint or self.openai_api_base):
            what, name = "address: pass azure_endpoint=...", "AZURE_OPENAI_ENDPOINT"
        elif not self.openai_api_version:
            what, name = "API version: pass api_version=...", "OPENAI_API_VERSION"
        elif not any(self._credentials(is_async=kind) for kind in (False, True)):
            what = "credentials: pass api_key=..., azure_ad_token=... or"
            what += " azure_ad_token_provider=..."
            name = "AZURE_OPENAI_API_KEY or AZURE_OPENAI_AD_TOKEN"
        else:
            return
        msg = f"no {what}, or set the variable {name}"
        raise ValueError(msg)

    def _choose_account(self) -> None:
        """Choose one address and one identity: the SDK refuses two.

        A given field goes before an environment variable.
        """
        self._choose("openai_api_base", "azure_endpoint")
        self._choose("azure_ad_token_provider", "azure_ad_token")
        if self._is_given("openai_api_key") and not self._is_given("azure_ad_token"):
            self.azure_ad_token = None
        base = self.openai_api_base
        if not (base and self.validate_base_url):
            return
        is_complete = "/openai" in urlsplit(base).path
        address = base if is_complete else base.rstrip("/") + "/openai"
        if self.deployment_name and "/deployments/" not in address:
            address = f"{address.rstrip('/')}/deployments/{self.deployment_name}"
        if address != base:
            warnings.warn(
                f"openai_api_base {base!r} is taken as {address!r}; give"
                " azure_endpoint=... and azure_deployment=... instead",
                stacklevel=5,
            )
        self.openai_api_base = address

    def _choose(self, name: str, other: str) -> None:
        if getattr(self, name) is None or getattr(self, other) is None:
            return
        if self._is_given(name) and self._is_given(other):
            msg = f"{name} and {other} are both given: choose one"
            raise ValueError(msg)
        setattr(self, other if self._is_given(name) else name, None)

    def _is_given(self, name: str) -> bool:
        return name in self.model_fields_set and getattr(self, name) is not None

    def _missing_for_sync(self) -> str:
        if not self._credentials(is_async=False):
            return (
                "no credentials for sync calls: pass azure_ad_token_provider=..."
                " in addition to azure_ad_async_token_provider"
            )
        return ""

    def _client_options(self, *, is_async: bool) -> dict[str, Any]:
        options = super()._client_options(is_async=is_async)
        headers = {"User-Agent": _AZURE_USER_AGENT, **(self.default_headers or {})}
        options |= {"api_version": self.openai_api_version, "default_headers": headers}
        if self.azure_endpoint:
            del options["base_url"]
            options["azure_endpoint"] = self.azure_endpoint
            if self.deployment_name:
                options["azure_deployment"] = self.deployment_name
        return options

    def _credentials(self, *, is_async: bool) -> dict[str, Any]:
        provider: Any = self.azure_ad_token_provider
        if is_async and self.azure_ad_async_token_provider is not None:
            provider = self.azure_ad_async_token_provider
        if provider is not None:
            return {"azure_ad_token_provider": provider}
        if self.azure_ad_token is not None:
            return {"azure_ad_token": unhide(self.azure_ad_token)}
        if self.openai_api_key is not None:
            return super()._credentials(is_async=is_async)
        return {}

    _secrets: ClassVar[dict[str, str]] = {
        "openai_api_key": "AZURE_OPENAI_API_KEY",
        "azure_ad_token": "AZURE_OPENAI_AD_TOKEN",
    }

    @property
    def _llm_type(self) -> str:
        return "azure"

    @property
    def _invocation_params(self) -> dict[str, Any]:
        # The SDK puts it into the path, where the address names no deployment.
        model = self.deployment_name or self.model_name
        return {**super()._invocation_params, "model": model}

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {"deployment_name": self.deployment_name, **super()._identifying_params}

    def _get_ls_params(
        self, stop: list[str] | None = None, **kwargs: Any
    ) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_model_name"] = self._invocation_params["model"]
        return params


class OpenAIChat(OpenAILLM):
    """A model of `/v1/chat/completions` as an LLM: text in, text out.

    Each prompt is a request of its own, and `batch_size` of them are sent at the same
    time: in threads, or in tasks if the call is async.

    Example:
        ```python
        llm = OpenAIChat(
            model="gpt-4o-mini",
            prefix_messages=[{"role": "system", "content": "Answer in one word."}],
        )
        ```
    """

    model_name: str = Field(default="gpt-3.5-turbo", alias="model")
    """Name of the model."""
    max_retries: int = 6
    """Further attempts after the first: short for
    `retry_policy=RetryPolicy(max_retries=...)`. Give one of both."""
    prefix_messages: list[Any] = Field(default_factory=list)
    """Messages before each prompt, as dicts or LangChain's."""
    temperature: float | None = None
    """The sampling temperature; None for the provider's own."""
    max_tokens: int | None = None
    """The most tokens of an answer; -1 or None for no limit but the provider's. Sent as
    `max_completion_tokens` to models that refuse `max_tokens`."""
    top_p: float | None = None
    """Total probability mass of tokens to consider at each step."""
    frequency_penalty: float | None = None
    """Penalizes repeated tokens according to frequency."""
    presence_penalty: float | None = None
    """Penalizes repeated tokens."""
    logprobs: bool | None = None
    """Whether to report the probability of each token."""
    top_logprobs: int | None = None
    """How many likely tokens to report at each step; needs `logprobs`."""

    _sent: ClassVar = (
        *("temperature", "max_tokens", "top_p", *_PENALTIES, "logit_bias", "seed"),
        *("logprobs", "top_logprobs", "extra_body"),
    )
    _sent_above_one: ClassVar = "n"
    _reads_list: bool = PrivateAttr(default=False)
    _resource_path: ClassVar[str] = "chat.completions"

    @property
    def _llm_type(self) -> str:
        return "openai-chat"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        # A cache has one answer for each prompt behind the same messages.
        prefix = {"prefix_messages": self._prefix} if self.prefix_messages else {}
        return {**super()._identifying_params, **prefix}

    @property
    def _prefix(self) -> list[dict[str, Any]]:
        """The messages before each prompt, as the API wants them."""
        return [
            one if isinstance(one, dict) else convert_to_openai_messages([one])[0]
            for one in self.prefix_messages
        ]

    def _params(self, options: Mapping[str, Any]) -> dict[str, Any]:
        params = super()._params(options)
        names = {"max_tokens", "max_completion_tokens"}  # Of one parameter.
        if given := names & options.keys():
            for name in names - given:
                params.pop(name, None)  # The model's own.
        if names <= params.keys():
            msg = "max_tokens and max_completion_tokens are both given: give one"
            raise ValueError(msg)
        return params

    def _requests(
        self, prompts: list[str], stop: list[str] | None, options: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        params = self._params(options)
        if stop is not None:
            params["stop"] = stop
        if "max_tokens" in params:
            max_tokens = params.pop("max_tokens")
            wants_other = _COUNTS_REASONING.match(str(params.get("model")))
            if max_tokens != -1:
                name = "max_completion_tokens" if wants_other else "max_tokens"
                params[name] = max_tokens
        prefix = self._prefix
        return [
            {"messages": [*prefix, {"role": "user", "content": prompt}], **params}
            for prompt in prompts
        ]
