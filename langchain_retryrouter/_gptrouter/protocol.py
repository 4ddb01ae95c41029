"""The gateway's protocol: options to requests, JSON to responses, events and errors.

Pure: no sockets, no retries, no LangChain messages (see `messages`). The types are the
`gptrouter` package's own, extended where it would lose something. Sources: the
public gateway as seen on the wire, and for newer gateways the payloads of the package.
"""

from __future__ import annotations

import functools
import math
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, Final, NoReturn, TypeAlias

from gpt_router import exceptions, models
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
    with_config,
)
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from langchain_retryrouter import _json, errors
from langchain_retryrouter._gptrouter.connection import (
    GATEWAY_METADATA,
    GatewayConnection,
    GPTRouterModel,
)
from langchain_retryrouter._json import excerpt
from langchain_retryrouter._providers import errors as provider_errors
from langchain_retryrouter._providers.finish_reasons import says_failed
from langchain_retryrouter._retry.call_log import AttemptRecord, Subject
from langchain_retryrouter._retry.call_state import CallState
from langchain_retryrouter._retry.clock import SYSTEM_CLOCK
from langchain_retryrouter._retry.streaming import ChunkInfo
from langchain_retryrouter.errors import RetryRouterError, UnsupportedOptionError
from langchain_retryrouter.failures import ROUTES_OWN, FailureKind

Response: TypeAlias = models.GenerationResponse
"""A whole answer of any client, ours or the SDK's own."""

Event: TypeAlias = models.ChunkedGenerationResponse
"""An event of a stream of any client."""

ModelKey: TypeAlias = tuple[str, str]
"""A model's name, and its provider's."""

# --- requests -----------------------------------------------------------------------

PROVIDER_OPTIONS: Final = frozenset(
    {
        # What the public gateway passes on to the provider.
        *("messages", "prompt", "temperature", "top_p", "n", "stop", "max_tokens"),
        *("presence_penalty", "frequency_penalty", "logit_bias", "user", "functions"),
        *("function_call", "response_format", "tools"),
        # What newer gateways take, as the `gptrouter` package sends it.
        *models.GenerationParams.model_fields,
    }
)
"""Names in `promptParams` that some gateway is known to read."""


class GatewayThinking(models.ExtendedThinking, extra="allow"):
    """The SDK's `ExtendedThinking`, keeping the keys that it would drop."""


class GatewaySearch(models.WebSearchOptions, extra="allow"):
    """The SDK's `WebSearchOptions`, keeping the keys that it would drop."""


class GatewayParams(models.GenerationParams, extra="allow"):
    """The SDK's `GenerationParams`, keeping the options that it would drop."""

    stop: str | list[str] | None = None
    logit_bias: dict[str | int, float] | None = None
    function_call: Any = None
    thinking: GatewayThinking | None = None
    web_search_options: GatewaySearch | None = None


class GatewayRequest(models.ModelGenerationRequest):
    """The SDK's request with `GatewayParams`."""

    prompt_params: GatewayParams = Field(default_factory=GatewayParams)

    @property
    def key(self) -> ModelKey:
        """The names of the model and of its provider."""
        return self.model_name, self.provider_name


def build_requests(
    listed: Iterable[GPTRouterModel], options: Mapping[str, Any]
) -> list[GatewayRequest]:
    """A request for each model, with the options checked and in the gateway's form."""
    options = {n: v if n == "messages" else _to_json(v) for n, v in options.items()}
    call = options.get("function_call")
    if isinstance(call, str):
        # The public gateway answers 500 to a text. "auto" is the provider's default.
        del options["function_call"]
        if call == "none":
            options.pop("functions", None)
        elif call != "auto":
            options["function_call"] = {"name": call}
    try:
        params = GatewayParams(**options)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        reasons = [line["msg"] for line in error.errors() if line["loc"][0] == name]
        shown = reprlib.Repr()
        shown.maxstring = shown.maxother = 200
        value = shown.repr(options[name])
        msg = f"`{name}` cannot be {value}: {', or '.join(reasons)}"
        raise UnsupportedOptionError(msg) from error
    return [
        GatewayRequest(
            model_name=model.name,
            provider_name=model.provider_name,
            order=order,
            prompt_params=params,
        )
        for order, model in enumerate(listed, start=1)
    ]


def build_metadata(
    connection: GatewayConnection, options: Mapping[str, Any]
) -> models.GPTRouterMetadata | None:
    """The gateway metadata of a call: its own options, else the connection's fields."""
    for name in options.keys() & {*GATEWAY_METADATA}:
        value, is_table = options[name], name == "gateway_metadata"
        if not isinstance(value, (dict if is_table else str) | None):
            what = "a dict" if is_table else "a string"
            msg = f"`{name}` must be {what}, not {reprlib.repr(value)}"
            raise UnsupportedOptionError(msg)
    values = {n: options.get(n) or getattr(connection, n) for n in GATEWAY_METADATA}
    if not any(values.values()):
        return None
    metadata = models.GPTRouterMetadata(
        tag=values["tag"],
        history_id=values["history_id"],
        created_by_user_id=values["user_id"],
        appId=values["app_id"],
    )
    return metadata.model_copy(update=values["gateway_metadata"])


def _to_json(value: Any) -> Any:
    """`value` with the SDK's enums and models as JSON has them."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, BaseModel):
        return _to_json(value.model_dump(exclude_none=True))
    if isinstance(value, dict):
        return {name: _to_json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(one) for one in value]
    return value


# --- completion models ----------------------------------------------------------------

# The providers that gateways ask for completions; those for chats are `chat_anthropic`,
# `chat_openai`, and so on.
_COMPLETION_PROVIDERS: Final = frozenset({"anthropic", "openai"})
# Tell the model how to choose its words. An answer without them is an answer still.
_MAY_BE_LOST: Final = frozenset(
    {"messages", "prompt", "max_tokens", "user", "temperature", "n"}
)
_USUAL_TEMPERATURE: Final = 0.7
_HEALTH_CHECK_SECONDS: Final = 300.0


@dataclass(slots=True)
class ObservedModels:
    """What answers have shown of a gateway's models."""

    # Whether the gateway gives it messages, where its provider says otherwise.
    are_chat: dict[ModelKey, bool] = field(default_factory=dict)
    answered_at: dict[ModelKey, float] = field(default_factory=dict)
    # When another one answered, since the gateway holds it for sick.
    skipped_at: dict[ModelKey, float] = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy has no times of this machine: other machines have other clocks."""
        return type(self), (self.are_chat,)


class ModelList:
    """The models that a call may ask: their order, and what is known of them.

    Completion models that would not be given all of the request are left out at once,
    and are then in `skipped`.
    """

    def __init__(
        self,
        requests: list[GatewayRequest],
        observed: ObservedModels,
        now: Callable[[], float],
        *,
        failover: bool,
    ) -> None:
        self.requests = requests
        self.skipped: list[AttemptRecord] = []
        self.warnings: list[str] = []
        self._observed, self._now, self._failover = observed, now, failover
        self._route = ""
        self._begun_with: set[ModelKey] = set()  # The first models of the attempts.
        self._last: ModelKey | None = None  # The list's, from the first failure on.
        self._unnamed = 0  # Failures of one model alone, without its name.
        self._params = requests[0].prompt_params
        self._reader = EventReader()
        if not all(map(self._is_chat, requests)):
            self._skip_completion_models()

    def _skip_completion_models(self) -> None:
        params, tools = self._params, self._tools
        given = params.model_dump(exclude_none=True).keys() - _MAY_BE_LOST
        if params.temperature not in {None, _USUAL_TEMPERATURE}:
            given.add("temperature")
        others = sorted(given - set(self._essential))
        for request in [one for one in self.requests if not self._is_chat(one)]:
            # Of a provider that is not known, only the form of its answers is.
            is_known = request.provider_name in _COMPLETION_PROVIDERS
            lost = self._essential if is_known else tools
            name = f"{request.model_name} ({request.provider_name})"
            what = f"a completion model, which is not given {', '.join(lost or others)}"
            if lost:
                record = AttemptRecord(None, request.model_name, "skipped", reason=what)
                self.skipped.append(record)
                self.warnings.append(f"{name} is skipped: it is {what}")
                self.requests.remove(request)
            elif others:
                self.warnings.append(f"{name} is {what}")
        if not self.requests:
            reason = "; ".join(self.warnings).replace("is skipped: it is", "is")
            msg = (
                f"no model of the list can be asked: {reason}. List a chat model, such"
                " as one of `chat_openai` or `chat_anthropic`; or say"
                " `GPTRouterModel(..., is_chat=True)` if your gateway gives it messages"
            )
            raise UnsupportedOptionError(msg)
        self._put_in_order(self.requests)

    @functools.cached_property
    def _essential(self) -> list[str]:
        """What of a request is lost in one plain prompt, and has to be in an answer."""
        params, names = self._params, ("tools", "functions", "stop")
        found = [name for name in names if getattr(params, name)]
        if params.tool_choice not in (None, "none"):
            found.append("tool_choice")
        if (params.response_format or {}).get("type", "text") != "text":
            found.append("response_format")
        if (params.n or 1) > 1:
            found.append("n")
        for message in params.messages or ():
            if isinstance(message, dict):
                if message.get("role") in {"tool", "function"}:
                    found.append("tool results")
                if message.get("tool_calls") or message.get("function_call"):
                    found.append("tool calls")
                if isinstance(message.get("content"), list):
                    found.append("content blocks")
        return list(dict.fromkeys(found))

    @property
    def _tools(self) -> list[str]:
        return [name for name in self._essential if "tool" in name]

    def new_reader(self) -> EventReader:
        """What reads the events of the next attempt's stream."""
        may_be_empty = not any(map(self._is_chat, self.requests))
        tools = ", ".join(self._tools)
        self._reader = EventReader(may_be_empty=may_be_empty, tools=tools)
        return self._reader

    def route(self) -> str:
        """The model that the next attempt asks: the gateway may skip the first."""
        self._route = self._not_skipped()[0].model_name
        return self._route

    def asked(self, error: RetryRouterError) -> str | None:
        """The model that a failed attempt has asked; None if that is not known."""
        request, _ = self._blame(error)
        return None if request is None else request.model_name

    def should_failover(self, error: RetryRouterError) -> bool:
        """Whether an error that is final for its model leaves another to ask."""
        if not self._failover:
            return False
        request, out = self._blame(error)
        if request is None:
            is_models_own = self._is_models_own(error)
            return is_models_own and self._unnamed + 1 < len(self.requests)
        return 0 < len(out) < len(self.requests)

    def failed(self, error: RetryRouterError, *, is_last_attempt: bool) -> str:
        """Put the models in order for the next attempt; returns who cannot answer.

        The model that failed is asked last, and one that cannot answer no more. If no
        one says which model failed, the first goes to the end, since the gateway asks
        that unless it holds it for sick. Then the last attempt begins at the other end
        of the list: only there the same model cannot be asked again.
        """
        self._learn()
        if not self._failover:
            return ""
        first, (request, out) = self.requests[0], self._blame(error)
        self._last = self._last or self.requests[-1].key
        self._begun_with.add(first.key)
        if len(out) == len(self.requests):
            out = []
        names = ", ".join(one.model_name for one in out)
        if request is None and self._is_models_own(error):
            self._unnamed += 1
            names = f"one of {', '.join(one.model_name for one in self.requests)}"
        place = self.requests.index(request or first) + 1
        ordered = [*self.requests[place:], *reversed(self.requests[:place])]
        if request is None and is_last_attempt and self._last not in self._begun_with:
            ordered.sort(key=lambda one: one.key != self._last)
        self._put_in_order([one for one in ordered if one not in out])
        return names

    def _blame(
        self, error: RetryRouterError
    ) -> tuple[GatewayRequest | None, list[GatewayRequest]]:
        """The model that failed, None if not known; and those that are not asked again.

        It is the model that the stream or the error names, or the first if that is
        known to be asked. What the error is final for is not asked again.
        """
        found = _CANNOT_BE_ASKED.match(error.message)
        name = (found["unknown"] or found["streamless"]) if found else None
        out = [one for one in self.requests if name in one.key]
        # A name without a digit, such as `command`, may be any word.
        words = {w.strip(".:/-") for w in _WORD.findall(error.message)}
        names = {word for word in words if any(map(str.isdigit, word))}
        said = [one for one in self.requests if one.model_name in names]
        request = self._named(self._reader.model) or next(iter([*out, *said]), None)
        if request is None:
            first, *others = self._not_skipped()
            is_well = self._is_recent(self._observed.answered_at, first)
            if not others or (is_well and error.may_have_run):
                request = first
        if request is not None and not out and self._is_models_own(error):
            out = [request]
        return request, out

    def _is_models_own(self, error: RetryRouterError) -> bool:
        """Whether an error is final for its model, and says nothing of the others.

        Only errors that a stream reports are about the model or its provider: a 401 to
        the request itself, for example, is about the gateway's key.
        """
        if self._reader.is_chat is False and self._tools:
            return True
        event = error.body.get("event") if isinstance(error.body, dict) else None
        return event == "error" and error.kind in ROUTES_OWN

    def describe(self, _position: int) -> Subject:
        """What the next attempt asks, for observers."""
        return Subject("chat", "gptrouter", self.requests[0].model_name)

    def answered(
        self, call_state: CallState, number: int, whole: Response | None = None
    ) -> None:
        """Note which model answered an attempt, streamed or `whole`, and what it says.

        What answers is remembered, and noted for the attempt log and the observers.
        """
        reader = self._reader
        if whole is not None and whole.choices:
            reader.model = whole.model
            # A completion model's answer has no role.
            reader.is_chat = whole.choices[0].role is not None or None
        self._learn()
        served, first = self._named(reader.model), self.requests[0]
        # The names of models at Azure are the user's own, and not what answers say.
        if served is not None and (
            served.model_name == reader.model or "azure" not in first.provider_name
        ):
            skipped_at = self._observed.skipped_at
            for request in self.requests[: self.requests.index(served)]:
                skipped_at[request.key] = self._now()
            skipped_at.pop(served.key, None)
            self._observed.answered_at[served.key] = self._now()
            if served.model_name != self._route:
                call_state.name_route(served.model_name)
        if call_state.wants_facts:
            model, usage, reasons = reader.model, reader.usage, [reader.finish_reason]
            if whole is not None:
                model, usage = whole.model, whole.meta and whole.meta.model_dump()
                reasons = [choice.finish_reason for choice in whole.choices]
            facts = {"model": model, "usage": usage, "finish_reasons": reasons}
            call_state.answered(number, **facts)

    def _learn(self) -> None:
        """Remember whether the model that a stream names is a chat model."""
        reader, request = self._reader, self._named(self._reader.model)
        if request is not None and reader.is_chat not in {None, self._is_chat(request)}:
            self._observed.are_chat[request.key] = bool(reader.is_chat)

    def _not_skipped(self) -> list[GatewayRequest]:
        """The models that the gateway may ask, as far as its answers have shown."""
        skipped_at = self._observed.skipped_at
        found = [r for r in self.requests if not self._is_recent(skipped_at, r)]
        return found or self.requests

    def _is_recent(self, seen: Mapping[ModelKey, float], model: GatewayRequest) -> bool:
        recent = self._now() - _HEALTH_CHECK_SECONDS
        return seen.get(model.key, -math.inf) > recent

    def _named(self, model: str | None) -> GatewayRequest | None:
        """The listed model that a provider calls so, maybe with a date behind it."""
        names = [r for r in self.requests if model and model.startswith(r.model_name)]
        return max(names, key=lambda r: len(r.model_name), default=None)

    def _is_chat(self, request: GatewayRequest) -> bool:
        by_provider = request.provider_name not in _COMPLETION_PROVIDERS
        return self._observed.are_chat.get(request.key, by_provider)

    def _put_in_order(self, requests: Sequence[GatewayRequest]) -> None:
        self.requests = [
            request.model_copy(update={"order": order})
            for order, request in enumerate(requests, start=1)
        ]


# --- responses ----------------------------------------------------------------------

_OF_ERRORS: Final = frozenset({"error", "object", "type"})  # Fields of no whole answer.
REASONING: Final = ("reasoning_content", "reasoning", "thinking")
_COUNTS: Final = ("prompt_tokens", "completion_tokens", "total_tokens")
# More is not a count of tokens, and too large for many a reader.
_LARGEST_COUNT: Final = 2**63 - 1
_MOST_DIGITS: Final = 19
# An answer has been paid for: where metadata has another type, it is left out.
_PARTS: Final = ("tool_calls", "function_call", "refusal")
_CHOICE_METADATA: Final = {"index": int, "role": str, "citations": list}
_TEXTS: Final = ("id", "model", "providerId", "provider_id", "modelId", "model_id")
_RESPONSE_METADATA: Final = {**dict.fromkeys(_TEXTS, str), "citations": list}
_EVENT_METADATA: Final = {"provider": str, "id": str, "citations": list}


def _well_typed(data: dict[str, Any], types: Mapping[str, type]) -> dict[str, Any]:
    """`data` without nulls, and without values that have not their type in `types`."""
    return {
        name: value
        for name, value in data.items()
        if value is not None and (name not in types or isinstance(value, types[name]))
    }


# A field that the SDK's type does not have, and that is not dumped if unset.
_OPTIONAL: Final = Field(exclude_if=lambda value: value is None)
_STRICT: Final = ConfigDict(extra="allow", strict=True)


@with_config(_STRICT)
class OpenAIFunctionCall(TypedDict, total=False):
    """A call of a function, whole or a piece of a stream."""

    name: str | None
    arguments: str | None


@with_config(_STRICT)
class OpenAIToolCall(TypedDict, total=False):
    """A call of a tool, whole or a piece of a stream."""

    index: int | None
    id: str | None
    function: OpenAIFunctionCall | None


@with_config(_STRICT)
class _Update(TypedDict, total=False):
    text: str | None
    finish_reason: str | None
    tool_calls: list[OpenAIToolCall] | None
    function_call: OpenAIFunctionCall | None


_UPDATE: Final = TypeAdapter(_Update)


class GatewayChoice(models.Choice):
    """The SDK's `Choice`, tolerant of nulls; tool calls are in OpenAI's form."""

    index: int = 0
    text: str = ""
    finish_reason: str | None = None  # type: ignore[assignment]
    function_call: OpenAIFunctionCall | None = None
    tool_calls: Annotated[list[OpenAIToolCall] | None, _OPTIONAL] = None
    reasoning_content: Annotated[str | None, _OPTIONAL] = None
    refusal: Annotated[str | None, _OPTIONAL] = None

    @model_validator(mode="before")
    @classmethod
    def _read_message(cls, data: Any) -> Any:
        """Some gateways pass on OpenAI's form, with the answer in `message`."""
        if not isinstance(data, dict):
            return data
        choice = _well_typed(data, _CHOICE_METADATA)
        reasoning = read_reasoning(data)
        message = data.get("message")
        if isinstance(message, dict):
            said = {n: message[n] for n in _PARTS if message.get(n) is not None}
            if (content := message.get("content")) is not None:
                said["text"] = _text_of(content)
            choice = {**said, **choice}
            reasoning = reasoning or read_reasoning(message)
        elif not (reasoning or data.keys() & {"text", *_PARTS}):
            msg = "neither a text nor a call"
            raise ValueError(msg)
        if choice.get("finish_reason") == "":
            del choice["finish_reason"]
        return {**choice, "reasoning_content": reasoning}


class GatewayUsage(models.Usage, extra="allow"):
    """The SDK's `Usage`, keeping the details that it would drop."""


class GatewayResponse(models.GenerationResponse):
    """The SDK's `GenerationResponse`, with the call's attempt log as `retryrouter`."""

    id: str = ""
    model: str = ""
    choices: list[GatewayChoice]  # type: ignore[assignment]
    meta: GatewayUsage | None = None
    citations: list[Any] | None = None
    retryrouter: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_malformed_metadata(cls, data: Any) -> Any:
        return _well_typed(data, _RESPONSE_METADATA) if isinstance(data, dict) else data

    @field_validator("meta", mode="before")
    @classmethod
    def _read_meta(cls, value: Any) -> Any:
        return value if isinstance(value, models.Usage) else clean_usage(value) or None


def read_answer(
    status_code: int, headers: Mapping[str, str], body: bytes
) -> dict[str, Any]:
    """The JSON object of an answer.

    Raises:
        RetryRouterError: The status says so, or the body is not a JSON object.
    """
    if status_code != _OK:
        now, empty, first = SYSTEM_CLOCK.time(), "", f"Error code: {status_code} -"
        if status_code < _REDIRECT:
            first = f"the gateway answered {status_code} with"
            empty = f"{first} an empty body"
        report = provider_errors.read_response(
            status_code, headers, body, empty, unix_time=now
        )
        if status_code == _NOT_ACCEPTABLE:
            # The SDK reads a 406 so: no model of the list is available.
            report = report._replace(kind=FailureKind.UNAVAILABLE)
        # The gateway's `error` has only the name of the status.
        said = report.body.get("message") if isinstance(report.body, dict) else None
        said = said if isinstance(said, str) else report.message
        if not said.startswith(first):
            said = f"{first} {said}"
        report = report._replace(message=said, status_code=status_code)
        raise report.to_error(GPT_ROUTER_ERRORS)
    try:
        data = _json.read(body)
    except ValueError as error:
        what = f"is not JSON: {excerpt(body)!r}" if body.strip() else "has no body"
        msg = f"the gateway's answer {what}"
        raise malformed(msg, status_code) from error
    if not isinstance(data, dict):
        msg = f"the gateway's answer is not a JSON object: {excerpt(body)!r}"
        raise malformed(msg, status_code)
    return data


def read_response(data: Mapping[str, Any]) -> GatewayResponse:
    """The answer in a gateway's JSON."""
    choices = data.get("choices")
    parts = [data, *choices] if isinstance(choices, list) else []
    names = {name for one in parts if isinstance(one, dict) for name in one}
    if not choices or not names.isdisjoint(_OF_ERRORS):
        report = provider_errors.read_event(data)
        if report is not None:
            raise report.to_error(GPT_ROUTER_ERRORS)
    try:
        response = GatewayResponse.model_validate(data)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        msg = f"the gateway's answer is not of its protocol (at {where!r})"
        raise malformed(msg, _OK) from error
    if not response.choices:
        msg = "the gateway's answer has no choices"
        raise malformed(msg, _OK)
    for choice in response.choices:
        _check_reason(choice.finish_reason)
    return response


def _check_reason(reason: str | None) -> None:
    """Raise if a provider ended an answer because it failed."""
    if reason and reason != "stop" and says_failed(reason):
        msg = f"the provider ended the answer with finish_reason {reason!r}"
        raise GPT_ROUTER_ERRORS[FailureKind.SERVER_ERROR](msg)


def clean_usage(meta: Any) -> dict[str, Any]:
    """The count of tokens, flat or under `usage`, without what is not a count."""
    nested = meta.get("usage") if isinstance(meta, dict) else None
    usage = nested if isinstance(nested, dict) else meta
    if not isinstance(usage, dict):
        return {}
    counts = {name: read_count(usage.get(name)) for name in _COUNTS}
    return {n: v for n, v in {**usage, **counts}.items() if v is not None}


def read_count(value: Any) -> int | None:
    """`value` as a number of tokens; None if it is not a number."""
    if type(value) is int:  # As nearly all are; not True, which is an int too.
        return value if 0 <= value <= _LARGEST_COUNT else None
    if isinstance(value, str) and value.isdecimal() and len(value) <= _MOST_DIGITS:
        return read_count(int(value))
    if isinstance(value, float) and value.is_integer():
        return read_count(int(value))
    return None


def read_reasoning(data: Mapping[str, Any]) -> str | None:
    """The model's reasoning in a choice or an update, under any of its names."""
    for name in REASONING:
        text = data.get(name)
        if text and isinstance(text, str):
            return text
    content = data.get("content")  # Mistral's thoughts are parts of it.
    parts = content if isinstance(content, list) else ()
    thoughts = [part.get("thinking") for part in parts if isinstance(part, dict)]
    texts = [text for one in thoughts if isinstance(text := _text_of(one), str)]
    return "".join(texts) or None


def _text_of(content: Any) -> Any:
    """The text of a content that may be a list of parts; any other as it is."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") if isinstance(part, dict) else part for part in content]
    return "".join(text for text in texts if isinstance(text, str))


# --- events -------------------------------------------------------------------------


class GatewayEvent(models.ChunkedGenerationResponse):
    """The SDK's event; the `end` event has the attempt log as `retryrouter`."""

    id: str | None = None
    citations: list[Any] | None = None
    retryrouter: dict[str, Any] | None = None


def read_event(data: bytes, frame: bytes) -> GatewayEvent | None:
    """One JSON event of a stream; raises the error that an `error` event reports.

    `frame` is the name of the frame that has it, `message` if it has none. None for
    other frames that are not events: the last one, `end`, which comes after errors too,
    or a heartbeat. A heartbeat without a name has no data, or the type `ping`.
    """
    try:
        event = _json.read(data)
    except ValueError:
        event = None
    kind = event.get("event") if isinstance(event, dict) else None
    if not isinstance(kind, str):
        said = event if isinstance(event, dict) else {"message": excerpt(data)}
        is_ping = said.get("type") == "ping" and not said.keys() & {"error", "data"}
        if frame == b"message" and (is_ping or not data.strip()):
            return None
        if frame == b"error" or (said is event and provider_errors.read_event(event)):
            raise read_error_event(said)
        if frame != b"message" and (event is not None or not data.startswith(b"{")):
            return None
        msg = f"an event of the stream is not of the protocol: {excerpt(data)!r}"
        raise malformed(msg)
    kind = kind.lower()
    if kind == "error":
        raise read_error_event(event)
    content = event.get("data")
    if kind == "update":
        try:
            _UPDATE.validate_python(content)
        except ValidationError as error:
            msg = f"an update of the stream is not of the protocol: {excerpt(data)!r}"
            raise malformed(msg) from error
        if failed := event.get("error") or content.get("error"):
            raise read_error_event({"error": failed})
    metadata: dict[str, Any] = {}
    for name, type_ in _EVENT_METADATA.items():
        if isinstance(value := event.get(name), type_):
            metadata[name] = value
    # The data of `end` is the string "end", which the SDK's type cannot hold.
    held = content if isinstance(content, dict) else {}
    return GatewayEvent(event=kind, data=held, **metadata)


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


class EventReader:
    """Says of each event of one stream whether it is a token, and whether the end.

    The `end` event alone does not make an answer complete: a provider whose stream was
    cut cleanly leaves a normal `end` too, but no finish reason. The updates of
    completion models have no `finish_reason` key at all; they carry `model` instead,
    and if only such models were asked (`may_be_empty`), an answer needs no update. A
    token after a finish reason takes it back.

    An answer that did not see `tools` of its request is an error.
    """

    def __init__(self, *, may_be_empty: bool = False, tools: str = "") -> None:
        # Whether it is finished; None if an end without any update would be complete.
        self._is_finished = None if may_be_empty else False
        self._tools = tools
        # The model that answers, and whether it is a chat model, once an event says so.
        self.model: str | None = None
        self.is_chat: bool | None = None
        self.usage: Any = None
        self.finish_reason: str | None = None

    def __call__(self, event: models.ChunkedGenerationResponse) -> ChunkInfo:
        data = event.data
        if event.event == "update":
            text = data.get("text") or ""
            # Calls and reasoning are tokens too: the caller is handed them.
            is_more = not text and any(data.get(name) for name in _PARTS)
            is_token = bool(text or is_more or read_reasoning(data))
            reason: str | None = None
            if "finish_reason" in data:
                self.is_chat = True
                _check_reason(reason := _text_or_none(data["finish_reason"]))
                is_finished = bool(data["finish_reason"])
            elif is_finished := bool(_text_or_none(data.get("model"))):
                self.model, self.is_chat = data["model"], False
                if self._tools and text and not data.get("tool_calls"):
                    msg = (
                        f"{self.model} answers as a completion model: the gateway gave"
                        " it one plain prompt, without the"
                        f" {self._tools} of the request"
                    )
                    raise GPT_ROUTER_ERRORS[FailureKind.INVALID_REQUEST](msg)
            if is_finished or is_token or self._is_finished is None:
                self._is_finished, self.finish_reason = is_finished, reason
            return ChunkInfo(text, is_token)
        if event.event == "end":
            return ChunkInfo(is_end=self._is_finished is not False, is_last=True)
        if event.event == "meta":
            self.model = self.model or _text_or_none(data.get("model"))
            self.usage = data.get("usage") or self.usage
        return ChunkInfo()


# --- errors -------------------------------------------------------------------------

# What the SDK's client raises in the same place, so that `except` clauses written for
# either catch ours. Where the SDK has no class, as for a lost connection, it is ours.
_SDK_CLASSES: Final[dict[type[errors.RetryRouterError], type[Exception]]] = {
    errors.AuthenticationError: exceptions.GPTRouterUnauthorizedError,
    errors.PermissionDeniedError: exceptions.GPTRouterForbiddenError,
    errors.InvalidRequestError: exceptions.GPTRouterBadRequestError,
    errors.ContextLengthError: exceptions.GPTRouterBadRequestError,
    errors.ContentFilterError: exceptions.GPTRouterBadRequestError,
    errors.RateLimitError: exceptions.GPTRouterTooManyRequestsError,
    errors.QuotaExceededError: exceptions.GPTRouterTooManyRequestsError,
    errors.ServerError: exceptions.GPTRouterInternalServerError,
    errors.UnavailableError: exceptions.GPTRouterNotAvailableError,
    errors.MalformedResponseError: exceptions.GPTRouterInternalServerError,
    errors.APITimeoutError: exceptions.GPTRouterApiTimeoutError,
    errors.CircuitOpenError: exceptions.GPTRouterNotAvailableError,
    errors.StreamInterruptedError: exceptions.GPTRouterStreamingError,
}
SDK_KINDS: Final = {
    # Of several kinds with one class of the SDK, the first.
    **{theirs: ours.kind for ours, theirs in reversed(_SDK_CLASSES.items())},
    exceptions.GPTRouterStreamingError: FailureKind.SERVER_ERROR,
}
"""What the exceptions of the SDK's own client mean."""

GPT_ROUTER_ERRORS: Final[errors.ErrorFamily] = {
    **errors.BASE_ERRORS,
    **{
        ours.kind: errors.sdk_error(globals(), "GPTRouter", ours, theirs)
        for ours, theirs in _SDK_CLASSES.items()
    },
}
"""The classes of errors about a gateway, by kind."""

# It checks its models every 5 minutes, and says so too of a model that is listed with
# another provider's name, so another attempt soon would get the same.
_NO_MODELS: Final = "no models available"
# The public gateway's own words in `error` events, compared in lower case, and whether
# it may have asked a provider before.
_MESSAGES: Final = (
    (r"\w+ with (?:name|id) .* does not exist", FailureKind.NOT_FOUND, False),
    # Another model of the list may stream; this one never will.
    (r"stream not supported for provider", FailureKind.NOT_FOUND, False),
    (_NO_MODELS, FailureKind.UNAVAILABLE, False),
    (r"request timed out", FailureKind.TIMEOUT, True),
    (r"connection error", FailureKind.CONNECTION, True),
    (r"premature close|read econnreset|terminated", FailureKind.INTERRUPTED, True),
    (r'\[\s*\{[\s\S]*"path"', FailureKind.INVALID_REQUEST, True),
)
_LEADING_STATUS: Final = re.compile(r"^([1-5]\d\d)\b")
_CANNOT_BE_ASKED: Final = re.compile(
    r"^(?:Error code: )?(?:[1-5]\d\d:? (?:- )?)?"  # The status comes first.
    r"(?:(?:provider|model) with (?:name|id) (?P<unknown>.+) does not exist"
    r"|stream not supported for provider (?P<streamless>[\w-]+))",
    re.IGNORECASE,
)
_WORD: Final = re.compile(r"[\w./:-]+")
_OK: Final = 200
_REDIRECT: Final = 300
_NOT_ACCEPTABLE: Final = 406
_OPAQUE: Final = (500, {"error": "Something went wrong"})


def read_error_event(event: Mapping[str, Any]) -> RetryRouterError:
    """The error that an `error` event reports, classified by its message."""
    text, body = "the gateway reported an error without a message", dict(event)
    now = SYSTEM_CLOCK.time()

    def read(status_code: int | None) -> provider_errors.ErrorReport:
        return provider_errors.read_response(status_code, (), body, text, unix_time=now)

    report, message = read(None), event.get("message")
    if not isinstance(message, str):
        message = report.message
    # The gateway puts its provider's status before the message.
    status = _LEADING_STATUS.match(message)
    status_code = int(status[1]) if status else None
    if status_code is not None:
        report = read(status_code)
    words = message.lower()
    known = (row[1:] for row in _MESSAGES if re.match(row[0], words))
    kind, may_have_run = next(known, (report.kind, True))
    report = report._replace(
        kind=kind,
        message=message,
        status_code=status_code,
        body=body,
        may_have_run=may_have_run,
        should_retry=False if words.startswith(_NO_MODELS) else report.should_retry,
    )
    return report.to_error(GPT_ROUTER_ERRORS)


def raise_no_stream(
    status_code: int, headers: Mapping[str, str], body: bytes
) -> NoReturn:
    """Raise the error for an answer that is not a stream of events."""
    if status_code != _OK:
        read_answer(status_code, headers, body)
    if (report := provider_errors.read_event(body)) is not None:
        raise report.to_error(GPT_ROUTER_ERRORS)
    what = repr(excerpt(body)) if body else "no body"
    msg = f"the gateway answered {status_code} without a stream of events: {what}"
    raise malformed(msg, status_code)


def malformed(message: str, status_code: int | None = None) -> RetryRouterError:
    """The error for a response that is not of the protocol."""
    return GPT_ROUTER_ERRORS[FailureKind.MALFORMED](message, status_code=status_code)


def interrupted() -> RetryRouterError:
    """The error for a stream that is over before its answer is complete."""
    msg = "the stream ended before the answer was complete"
    return GPT_ROUTER_ERRORS[FailureKind.INTERRUPTED](msg)


def is_opaque(error: RetryRouterError) -> bool:
    """Whether the gateway hides a cause that it would tell in a stream."""
    return (error.status_code, error.body) == _OPAQUE
