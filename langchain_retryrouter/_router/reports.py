"""What a provider said when it refused or failed, read from an exception's shape.

The SDKs of OpenAI, Anthropic, Groq and others are made by one generator (`status_code`,
`response`, `body`); google-genai says `code`, `status` and `details`, aiohttp `status`
and `headers`, botocore has a dict in `response`, gRPC a method `code()`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from langchain_retryrouter import _json
from langchain_retryrouter._core.failure import FailureKind, classify

# A name that a provider gives an error, and the status that it documents for it. It
# counts where there is no status: inside a stream, or inside a 200.
_STATUS_BY_NAME: Final = {
    # Anthropic: docs.claude.com/en/api/errors.
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
    # Google and gRPC: the mapping in google/rpc/code.proto.
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ABORTED": 409,
    "ALREADY_EXISTS": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 500,
    "DATA_LOSS": 500,
    "INTERNAL": 500,
    "UNKNOWN": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
# Amazon Bedrock's names say more than its statuses: a failing model is a 424 there, and
# in the middle of a stream there is none. Source: the errors of InvokeModel and
# ConverseStream in its API reference. In lower case: a stream's begin with a small
# letter.
_STATUS_BY_AMAZONS_NAME: Final = {
    "throttlingexception": 429,
    "toomanyrequestsexception": 429,
    "modelnotreadyexception": 503,
    "modelerrorexception": 500,
    "modelstreamerrorexception": 500,
    "modeltimeoutexception": 504,
    "internalserverexception": 500,
    "serviceunavailableexception": 503,
    "servicequotaexceededexception": 402,
    "validationexception": 400,
    "accessdeniedexception": 403,
    "expiredtokenexception": 401,
    "unrecognizedclientexception": 401,
    "invalidsignatureexception": 401,
    "resourcenotfoundexception": 404,
}
_REQUEST_IDS: Final = (
    "x-request-id",
    "request-id",
    "apim-request-id",
    "x-ms-request-id",
    "x-amzn-requestid",
)
_OK, _REDIRECT, _BAD_REQUEST, _END_OF_STATUSES = 200, 300, 400, 600
_REQUEST_TIMEOUT, _SERVER_ERROR = 408, 500
_EXCERPT = 200
_DIGITS = 3  # Of a status; what is longer may be too long for `int`.


@dataclass(frozen=True, slots=True)
class Report:
    """What a provider said.

    Attributes:
        kind: What it means.
        message: The provider's sentence.
        status_code: The HTTP status, where that reported it.
        code: The provider's machine-readable name of the error.
        body: The body of the answer, parsed where it was JSON.
        headers: The answer's header fields.
    """

    kind: FailureKind
    message: str
    status_code: int | None = None
    code: str | None = None
    body: Any = None
    headers: list[tuple[str, str]] = field(default_factory=list)

    @property
    def may_have_run(self) -> bool:
        """Whether the provider may have done the work."""
        status = self.status_code
        return status is None or status >= _SERVER_ERROR or status == _REQUEST_TIMEOUT

    @property
    def request_id(self) -> str | None:
        """The provider's id of the request."""
        told = {name.lower(): value for name, value in reversed(self.headers)}
        return next((told[name] for name in _REQUEST_IDS if name in told), None)


def report_in(error: BaseException) -> Report | None:
    """The provider's report that `error` carries; None if it carries none."""
    response = look(error, "response")
    if isinstance(response, Mapping):
        return _amazons(response, str(error))
    status = _status_of(error, response)
    headers = _headers_of(error, response)
    if status is not None:
        return _read(status, _body_of(error, response), headers, str(error))
    if name := _grpcs_name(error):
        return _read(_STATUS_BY_NAME.get(name, 500), {"code": name}, [], _said(error))
    if _is_sdks(error):
        body = look(error, "body")
        return _read(None, str(error) if body is None else body, headers, str(error))
    return None


def read_reported(body: Any) -> Report:
    """An error that came inside a 200 or as an event of a stream."""
    return _read(None, body, [], "the provider reported an error")


def look(thing: Any, name: str) -> Any:
    """An attribute; None where there is none, or where asking for it is an error."""
    with contextlib.suppress(Exception):  # httpx raises RuntimeError for `request`.
        return getattr(thing, name, None)
    return None


def _read(
    status: int | None, body: Any, headers: list[tuple[str, str]], fallback: str
) -> Report:
    body = _json.cut(body)
    facts = _facts_in(body)
    told = _sentence(facts, body)
    names = list(_names_in(facts))
    text = f"{told} {body}" if isinstance(body, str) else told
    meant = status or _implied_status(names)
    if status is not None and status < _REDIRECT:
        # The 200 with which a stream began, and then an event reported an error.
        status, meant = None, _implied_status(names) if facts else status
    kind = _kind_of(meant, names, text or fallback)
    delay = _googles_delay(facts)
    if delay is not None:
        headers = [*headers, ("retry-after", delay)]
        if kind is FailureKind.QUOTA and "PerDay" not in str(body):
            # Google says "quota" of a limit per minute too, and when it is over.
            kind = FailureKind.RATE_LIMIT
    return Report(
        kind=kind,
        message=f"Error code: {status} - {told}"
        if told and status
        else told or fallback,
        status_code=status,
        code=_code_in(facts, names),
        body=body,
        headers=headers,
    )


def _kind_of(status: int | None, names: list[str], text: str) -> FailureKind:
    plain = classify(status)
    kinds = (classify(status, name, text) for name in names or [""])
    return next((kind for kind in kinds if kind is not plain), plain)


def _implied_status(names: list[str]) -> int | None:
    for name in names:
        # OpenRouter, vLLM and LiteLLM put the HTTP status into `code`.
        if (
            len(name) == _DIGITS
            and name.isdecimal()
            and _BAD_REQUEST <= int(name) < _END_OF_STATUSES
        ):
            return int(name)
        if found := _STATUS_BY_NAME.get(name):
            return found
    return None


# The body.


def _facts_in(body: Any) -> Mapping[str, Any]:
    """The object that holds the error, wherever the provider nests it."""
    if isinstance(body, list) and body:  # Google's, of a stream.
        return _facts_in(body[0])
    if not isinstance(body, Mapping):
        return {}
    inner = body.get("error")
    if isinstance(inner, Mapping):
        return inner
    return {**body, "message": inner} if isinstance(inner, str) else body


def _names_in(facts: Mapping[str, Any]) -> Iterator[str]:
    """The names of an error, the most exact one first."""
    details = facts.get("details")
    exact = details.get("error_code") if isinstance(details, Mapping) else None
    for name in (facts.get("code"), exact, facts.get("status"), facts.get("type")):
        if isinstance(name, str | int) and not isinstance(name, bool) and name != "":
            yield str(name)


def _code_in(facts: Mapping[str, Any], names: list[str]) -> str | None:
    if "code" in facts and facts["code"] is None:
        return None  # OpenAI's, which has nothing to say beyond the type.
    words = (name for name in names if not name.isdecimal())
    return next(words, next(iter(names), None))


def _googles_delay(facts: Mapping[str, Any]) -> str | None:
    """The seconds in Google's `RetryInfo`, which it has instead of a header.

    Source: google/rpc/error_details.proto; a duration in JSON is such as `34.07s`.
    """
    details = facts.get("details")
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, Mapping) and str(detail.get("@type")).endswith(
            "google.rpc.RetryInfo"
        ):
            return str(detail.get("retryDelay")).removesuffix("s")
    return None


def _sentence(facts: Mapping[str, Any], body: Any) -> str:
    told = facts.get("message") or facts.get("detail") or facts.get("Message")
    if isinstance(told, str):
        return told
    if isinstance(body, str):
        return _excerpt(body)
    return json.dumps(body, default=str) if isinstance(body, Mapping) else ""


def _excerpt(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _EXCERPT else f"{words[:_EXCERPT]}…"


def _body_of(error: BaseException, response: Any) -> Any:
    for body in (look(error, "body"), look(error, "details")):
        if isinstance(body, Mapping | list) or (isinstance(body, str) and body):
            return body
    # `content` would read from the socket where nobody has read yet.
    content = look(response, "_content")
    if not isinstance(content, bytes) or not content:
        return None
    try:
        return _json.read(content)
    except ValueError:
        return content.decode("utf-8", "replace")


# The status and the headers.


def _status_of(error: BaseException, response: Any) -> int | None:
    own = look(error, "status_code")
    if _is_status(own, _OK):
        return int(own)
    if _is_sdks(error):
        return None  # Its `code` is the provider's: openai 2 leaves a number one.
    # langchain-openai hangs the response, a 200, on whatever goes wrong later.
    others = (look(response, "status_code"), look(error, "status"), look(error, "code"))
    return next((int(one) for one in others if _is_status(one, _REDIRECT)), None)


def _is_status(value: Any, least: int) -> bool:
    return (
        isinstance(value, int)
        and not isinstance(value, bool)
        and least <= value < _END_OF_STATUSES
    )


def _headers_of(error: BaseException, response: Any) -> list[tuple[str, str]]:
    headers = look(response, "headers") or look(error, "headers")
    items = look(headers, "multi_items") or look(headers, "items")
    pairs = items() if callable(items) else ()
    texts = [(_text(name), _text(value)) for name, value in pairs]
    return [(name, value) for name, value in texts if name and value is not None]


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):  # As they came from the socket.
        return value.decode("latin-1")
    return value if isinstance(value, str) else None


def _is_sdks(error: BaseException) -> bool:
    """Whether an SDK raised it for an event of a stream, and so without a status.

    That is `APIError` of the generated SDKs, and Ollama's `ResponseError`.
    """
    names = {cls.__name__ for cls in type(error).__mro__}
    return ("APIError" in names and hasattr(error, "body")) or (
        "ResponseError" in names and type(error).__module__.startswith("ollama")
    )


# Amazon and gRPC.


def _amazons(response: Mapping[str, Any], fallback: str) -> Report | None:
    facts, answer = response.get("Error"), response.get("ResponseMetadata")
    if not isinstance(facts, Mapping):
        return None
    answer = answer if isinstance(answer, Mapping) else {}
    status, name = answer.get("HTTPStatusCode"), str(facts.get("Code") or "")
    headers = answer.get("HTTPHeaders")
    text = str(facts.get("Message") or fallback)
    meant = _STATUS_BY_AMAZONS_NAME.get(name.lower(), status)
    return Report(
        kind=classify(meant, None, text),
        message=text,
        status_code=status,
        code=name or None,
        body=dict(response),
        headers=list(headers.items()) if isinstance(headers, Mapping) else [],
    )


def _grpcs_name(error: BaseException) -> str | None:
    code = look(error, "code")
    if not callable(code) or not type(error).__module__.startswith("grpc"):
        return None
    name = look(code(), "name")
    return name if isinstance(name, str) else None


def _said(error: BaseException) -> str:
    details = look(error, "details")
    said = details() if callable(details) else None
    return said if isinstance(said, str) else str(error)
