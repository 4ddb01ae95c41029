"""The gateway's protocol, in words: requests to dicts, dicts to answers and errors.

Pure: dicts and the `gptrouter` package's own types. This file does not know sockets,
retries, or LangChain's messages (those are `messages`' business). Sources: the protocol
as seen on the wire of the public gateway, and the payloads of the `gptrouter` package
for what newer gateways take. What goes out stands in `options`, and what an error means
in `failures`; both are handed on from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gpt_router.models import (
    Choice,
    ChunkedGenerationResponse,
    GenerationResponse,
    Usage,
)
from pydantic import (
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from langchain_retryrouter import _json
from langchain_retryrouter._core.failure import FailureKind
from langchain_retryrouter._core.streaming import Signal
from langchain_retryrouter._gptrouter.failures import (
    excerpt,
    is_opaque,
    json_or_none,
    read_status_error,
    read_stream_error,
    unknown_name,
)
from langchain_retryrouter._gptrouter.options import (
    PROVIDER_OPTIONS,
    GatewayParams,
    GatewayRequest,
    build_params,
    check_options,
)
from langchain_retryrouter._gptrouter.tool_calls import are_calls, is_function_call
from langchain_retryrouter._gptrouter.usage import clean_usage
from langchain_retryrouter.errors import RetryRouterError
from langchain_retryrouter.errors.gpt_router import (
    GPT_ROUTER_ERRORS,
    GPT_ROUTER_STREAM_ERRORS,
)

__all__ = [
    "PROVIDER_OPTIONS",
    "EventReader",
    "GatewayChoice",
    "GatewayEvent",
    "GatewayParams",
    "GatewayRequest",
    "GatewayResponse",
    "build_params",
    "check_options",
    "is_opaque",
    "read_event",
    "read_json",
    "read_reasoning",
    "read_response",
    "read_status_error",
    "unknown_name",
]

_SAID: Final = ("tool_calls", "function_call")
_BESIDE: Final = (("provider", str), ("id", str), ("citations", list))
_REASONING: Final = ("reasoning_content", "reasoning", "thinking")


# What stands beside an answer, which was paid for: where it is odd, it is left out.
_BESIDE_A_CHOICE: Final = {"index": int, "role": str, "citations": list}
_BESIDE_AN_ANSWER: Final = {
    "id": str,
    "model": str,
    "providerId": str,
    "provider_id": str,
    "modelId": str,
    "model_id": str,
    "citations": list,
}


def _without_odd(data: dict[str, Any], forms: Mapping[str, type]) -> dict[str, Any]:
    """`data` without its nulls, and without what has not the form that it must have."""
    return {
        name: value
        for name, value in data.items()
        if value is not None and (name not in forms or isinstance(value, forms[name]))
    }


def _unless_none() -> Any:
    """A field that the SDK's type does not have, and that is not written if unset."""
    return Field(default=None, exclude_if=lambda value: value is None)


class GatewayChoice(Choice):
    """The SDK's `Choice`, tolerant of the nulls that gateways send in a paid answer.

    Attributes:
        tool_calls: In OpenAI's form; None from a gateway that drops them unstreamed.
        reasoning_content: What the model thought before it said `text`.
    """

    index: int = 0
    text: str = ""
    finish_reason: str | None = None  # type: ignore[assignment]
    function_call: dict[str, Any] | None = None
    tool_calls: list[dict[str, Any]] | None = _unless_none()
    reasoning_content: str | None = _unless_none()

    @model_validator(mode="before")
    @classmethod
    def _look_into_the_message(cls, data: Any) -> Any:
        """OpenAI has what was said in `message`, and a gateway may hand that on."""
        if not isinstance(data, dict):
            return data
        told = _without_odd(data, _BESIDE_A_CHOICE)
        reasoning = read_reasoning(data)
        message = data.get("message")
        if isinstance(message, dict):
            said = {key: message[key] for key in _SAID if message.get(key) is not None}
            if isinstance(text := message.get("content"), str):
                said["text"] = text
            told = {**said, **told}
            reasoning = reasoning or read_reasoning(message)
        return {**told, "reasoning_content": reasoning}

    @field_validator("tool_calls", mode="before")
    @classmethod
    def _check_calls(cls, value: Any) -> Any:
        if not are_calls(value):
            msg = "no list of tool calls"
            raise ValueError(msg)
        return value

    @field_validator("function_call", mode="before")
    @classmethod
    def _check_function_call(cls, value: Any) -> Any:
        if not is_function_call(value):
            msg = "no call of a function"
            raise ValueError(msg)
        return value


class GatewayUsage(Usage):
    """The SDK's `Usage` with the details that it would drop."""

    model_config = ConfigDict(extra="allow")


class GatewayResponse(GenerationResponse):
    """The SDK's `GenerationResponse` with the call's ledger.

    Attributes:
        retryrouter: The attempts that the answer took.
    """

    id: str = ""
    model: str = ""
    choices: list[GatewayChoice]  # type: ignore[assignment]
    meta: GatewayUsage | None = None
    citations: list[Any] | None = None
    retryrouter: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_is_odd(cls, data: Any) -> Any:
        return _without_odd(data, _BESIDE_AN_ANSWER) if isinstance(data, dict) else data

    @field_validator("meta", mode="before")
    @classmethod
    def _odd_usage_is_none(cls, value: Any) -> Any:
        # What is there already is no JSON, and is what it should be.
        return value if isinstance(value, Usage) else clean_usage(value) or None


class GatewayEvent(ChunkedGenerationResponse):
    """The SDK's event; on the `end` event also the call's ledger.

    Attributes:
        id: The provider's id of the answer.
        citations: The sources of the answer, where they are told beside `data`.
        retryrouter: The attempts that the answer took.
    """

    id: str | None = None
    citations: list[Any] | None = None
    retryrouter: dict[str, Any] | None = None


# --- what comes back ----------------------------------------------------------------


def read_json(body: bytes, status_code: int) -> dict[str, Any]:
    """The JSON object in the body of a 2xx answer.

    Raises:
        GPTRouterMalformedResponseError: If there is none.
    """
    try:
        data = _json.read_quickly(body)
    except ValueError as error:
        what = f"is not JSON: {excerpt(body)!r}" if body.strip() else "has no body"
        msg = f"the gateway's answer {what}"
        raise _malformed(msg, status_code) from error
    if not isinstance(data, dict):
        msg = f"the gateway's answer is no JSON object: {excerpt(body)!r}"
        raise _malformed(msg, status_code)
    return data


def read_response(data: Mapping[str, Any]) -> GatewayResponse:
    """The answer in a gateway's JSON.

    Raises:
        GPTRouterMalformedResponseError: If it is not of the protocol.
    """
    try:
        response = GatewayResponse.model_validate(data)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        msg = f"the gateway's answer is not of its protocol (at {where!r})"
        raise _malformed(msg, 200) from error
    if not response.choices:
        msg = "the gateway's answer has no choices"
        raise _malformed(msg, 200)
    return response


def read_event(data: bytes) -> GatewayEvent:
    """One JSON event of a stream.

    Raises:
        RetryRouterError: The error that an `error` event reports, or a
            `GPTRouterStreamMalformedResponseError` if it is not of the protocol.
    """
    event = json_or_none(data)
    kind = event.get("event") if isinstance(event, dict) else None
    if not isinstance(kind, str):
        msg = f"an event of the stream is not of the protocol: {excerpt(data)!r}"
        raise GPT_ROUTER_STREAM_ERRORS[FailureKind.MALFORMED](msg)
    kind = kind.lower()
    if kind == "error":
        raise read_stream_error(event)
    content = event.get("data")
    if kind == "update" and not _is_update(content):
        msg = f"an update of the stream is not of the protocol: {excerpt(data)!r}"
        raise GPT_ROUTER_STREAM_ERRORS[FailureKind.MALFORMED](msg)
    beside: dict[str, Any] = {
        name: told
        for name, form in _BESIDE
        if isinstance(told := event.get(name), form)
    }
    # The data of `end` is the string "end", which the SDK's type cannot hold.
    held = content if isinstance(content, dict) else {}
    return GatewayEvent(event=kind, data=held, **beside)


def read_reasoning(data: Mapping[str, Any]) -> str | None:
    """The model's reasoning in a choice or an update, under the name it goes by."""
    for name in _REASONING:
        text = data.get(name)
        if text and isinstance(text, str):
            return text
    return None


def _is_update(content: Any) -> bool:
    """Whether what is read of an update is what it should be; its other keys may be."""
    if not isinstance(content, dict):
        return False
    return (
        _is_text(content.get("text"))
        and _is_text(content.get("finish_reason"))
        and are_calls(content.get("tool_calls"))
        and is_function_call(content.get("function_call"))
    )


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


class EndReader:
    """Tells whether the `end` of one stream is the end of an answer.

    `end` alone does not make an answer whole: a provider whose stream was cut cleanly
    leaves a normal `end`, and as its only trace that no update had a finish reason.
    Completion models' updates have no `finish_reason` key at all.
    """

    __slots__ = ("is_finished",)

    def __init__(self) -> None:
        """At the start of a stream."""
        self.is_finished = False

    def see(self, event: ChunkedGenerationResponse) -> None:
        """Take note of an update: of its finish reason, if it has one."""
        data = event.data
        if "finish_reason" not in data or data["finish_reason"] is not None:
            self.is_finished = True


class EventReader:
    """Tells, for the events of one stream, which is a token and which the end.

    Calls and reasoning are tokens as text is, since they are handed to the caller too;
    only the text is what an interrupted stream is said to have delivered.
    """

    __slots__ = ("_end",)

    def __init__(self) -> None:
        """At the start of a stream."""
        self._end = EndReader()

    def __call__(self, event: ChunkedGenerationResponse) -> Signal:
        """What `event` means."""
        if event.event == "update":
            self._end.see(event)
            data = event.data
            text = data.get("text")
            if text:
                return Signal(text, is_token=True)
            is_token = bool(
                data.get("tool_calls")
                or data.get("function_call")
                or read_reasoning(data)
            )
            return Signal(is_token=is_token)
        if event.event == "end":
            return Signal(is_end=self._end.is_finished, is_last=True)
        return Signal()


def _malformed(message: str, status_code: int) -> RetryRouterError:
    return GPT_ROUTER_ERRORS[FailureKind.MALFORMED](message, status_code=status_code)
