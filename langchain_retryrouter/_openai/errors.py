"""What goes wrong below the SDK, given its meaning once, at the border, by table.

Whatever `openai`, `httpx` or `httpx2` raises between a request and the end of its
answer leaves here as one of `errors.openai`, with the facts that its response holds.
The original is its `__cause__`, after the key was taken out of what it says: servers,
and h11, quote headers. What is in no table, such as a `TypeError`, is not ours to name.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeVar

import openai

from langchain_retryrouter import _json, errors
from langchain_retryrouter._openai import protocol as wire
from langchain_retryrouter._retry.retry_after import read_advice
from langchain_retryrouter.errors import SHORTEST_SECRET, RetryRouterError, mask
from langchain_retryrouter.failures import FailureKind

_Error = TypeVar("_Error", bound="_SDKFacts")


class _SDKFacts(errors.RetryRouterError):
    """What the SDK's exceptions carry beside the facts that all of ours have."""

    # `Any`: the SDK narrows these per class, to `Literal[429]` and the like.
    status_code: Any
    request: Any = None
    response: Any = None
    param: str | None = None
    type: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """The error without the HTTP objects."""
        kept = {
            name: value
            for name, value in self.__dict__.items()
            if name not in {"request", "response"}
        }
        return _restore_error, (type(self), self.message, kept)


def _restore_error(
    cls: type[_Error], message: str, attributes: dict[str, Any]
) -> _Error:
    error = cls(message)
    error.__dict__.update(attributes)
    return error


class OpenAIAuthenticationError(
    _SDKFacts, errors.AuthenticationError, openai.AuthenticationError
):
    """The key was missing or wrong (401)."""


class OpenAIPermissionDeniedError(
    _SDKFacts, errors.PermissionDeniedError, openai.PermissionDeniedError
):
    """The key is not allowed to do this (403)."""


class OpenAINotFoundError(_SDKFacts, errors.NotFoundError, openai.NotFoundError):
    """There is no such model or endpoint (404)."""


class OpenAIInvalidRequestError(
    _SDKFacts, errors.InvalidRequestError, openai.BadRequestError
):
    """The request was wrong and will be wrong next time (400)."""


class OpenAIUnprocessableEntityError(
    _SDKFacts, errors.InvalidRequestError, openai.UnprocessableEntityError
):
    """The request could be read and not be followed (422)."""


class OpenAIContextLengthError(
    _SDKFacts, errors.ContextLengthError, openai.BadRequestError
):
    """Prompt and answer do not fit into the model's context."""


class OpenAIContentFilterError(
    _SDKFacts, errors.ContentFilterError, openai.BadRequestError
):
    """A content filter refused the prompt or the answer."""


class OpenAIRateLimitError(_SDKFacts, errors.RateLimitError, openai.RateLimitError):
    """Too many requests (429)."""


class OpenAIQuotaExceededError(
    _SDKFacts, errors.QuotaExceededError, openai.RateLimitError
):
    """The quota is used up (`insufficient_quota`)."""


class OpenAIServerError(_SDKFacts, errors.ServerError, openai.InternalServerError):
    """The provider failed (5xx)."""


class OpenAIUnavailableError(
    _SDKFacts, errors.UnavailableError, openai.InternalServerError
):
    """The provider is overloaded or down for now (503, 529)."""


class OpenAIConflictError(_SDKFacts, errors.ConflictError, openai.ConflictError):
    """Another request was in the way (409)."""


class OpenAIMalformedResponseError(
    _SDKFacts, errors.MalformedResponseError, openai.APIResponseValidationError
):
    """An answer came that is not the API's protocol."""


class OpenAITimeoutError(_SDKFacts, errors.APITimeoutError, openai.APITimeoutError):
    """No answer in time."""


class OpenAIStatusTimeoutError(
    _SDKFacts, errors.APITimeoutError, openai.InternalServerError
):
    """The server itself ran out of time (408, 504)."""


class OpenAIConnectionError(
    _SDKFacts, errors.APIConnectionError, openai.APIConnectionError
):
    """No connection to the provider, or it was lost."""


class OpenAIStreamInterruptedError(
    _SDKFacts, errors.StreamInterruptedError, openai.APIConnectionError
):
    """The stream ended before every choice had its finish reason."""


class OpenAICircuitOpenError(
    _SDKFacts, errors.CircuitOpenError, openai.APIConnectionError
):
    """The circuit breaker is open: nothing was sent."""


OPENAI_ERRORS: Final[errors.ErrorFamily] = {
    cls.kind: cls
    for cls in (
        OpenAIAuthenticationError,
        OpenAIPermissionDeniedError,
        OpenAINotFoundError,
        OpenAIInvalidRequestError,
        OpenAIContextLengthError,
        OpenAIContentFilterError,
        OpenAIRateLimitError,
        OpenAIQuotaExceededError,
        OpenAIServerError,
        OpenAIUnavailableError,
        OpenAIConflictError,
        OpenAIMalformedResponseError,
        OpenAITimeoutError,
        OpenAIConnectionError,
        OpenAIStreamInterruptedError,
        OpenAICircuitOpenError,
    )
}


def _openai_error(
    cls: type[errors.RetryRouterError], sdk: type[openai.APIStatusError]
) -> type[errors.RetryRouterError]:
    """`cls`, or a sister of it that the SDK's class for a status catches too."""
    if issubclass(cls, sdk):
        return cls
    name = cls.__name__.removesuffix("Error") + sdk.__name__
    namespace = {"__module__": __name__, "__doc__": cls.__doc__}
    sister = type(name, (cls, sdk), namespace)
    globals()[name] = sister  # A pickle finds a class by its name.
    return sister


# The kinds that the body of an answer can make of a status.
_SHARPER: Final = (
    FailureKind.AUTHENTICATION,
    FailureKind.NOT_FOUND,
    FailureKind.INVALID_REQUEST,
    FailureKind.CONTEXT_OVERFLOW,
    FailureKind.CONTENT_FILTER,
    FailureKind.QUOTA,
)

OPENAI_STATUS_ERRORS: Final[
    Mapping[tuple[int, FailureKind], type[errors.RetryRouterError]]
] = {
    **{
        (status, kind): _openai_error(OPENAI_ERRORS[kind], sdk)
        for status, sdk in (
            (400, openai.BadRequestError),
            (403, openai.PermissionDeniedError),
            (422, openai.UnprocessableEntityError),
        )
        for kind in _SHARPER
        if (status, kind) != (422, FailureKind.INVALID_REQUEST)
    },
    **dict.fromkeys(
        [(501, FailureKind.INVALID_REQUEST), (505, FailureKind.INVALID_REQUEST)],
        _openai_error(OpenAIInvalidRequestError, openai.InternalServerError),
    ),
    (408, FailureKind.TIMEOUT): OpenAIStatusTimeoutError,
    (422, FailureKind.INVALID_REQUEST): OpenAIUnprocessableEntityError,
    (504, FailureKind.TIMEOUT): OpenAIStatusTimeoutError,
}
"""Where a status has a class of its own in the SDK, and the answer means another.

An `except` clause for either catches it.
"""


_HTTP_LIBRARIES: Final = ("httpx", "httpx2")
_SECRET_HEADERS: Final = ("authorization", "api-key", "proxy-authorization")
_REQUEST_IDS: Final = (
    "x-request-id",
    "apim-request-id",
    "x-ms-request-id",
    "x-litellm-call-id",
)

_BAD_REQUEST, _REQUEST_TIMEOUT, _SERVER_ERROR = 400, 408, 500


class _Transport(NamedTuple):
    """What an exception below HTTP means, and whether the request may have run."""

    kind: FailureKind
    may_have_run: bool


def _not_sent(kind: FailureKind) -> _Transport:
    return _Transport(kind, may_have_run=False)


def _lost(kind: FailureKind) -> _Transport:
    return _Transport(kind, may_have_run=True)


# Read from top to bottom: what stands above is a special case of what stands below.
_TRANSPORT: Final = (
    (("ConnectTimeout", "PoolTimeout"), _not_sent(FailureKind.TIMEOUT)),
    (("TimeoutException",), _lost(FailureKind.TIMEOUT)),
    (("ConnectError", "ProxyError"), _not_sent(FailureKind.CONNECTION)),
    # A wrong address, or a header that cannot be written, now or later.
    (
        ("UnsupportedProtocol", "LocalProtocolError", "InvalidURL"),
        _not_sent(FailureKind.INVALID_REQUEST),
    ),
    (("DecodingError",), _lost(FailureKind.MALFORMED)),
    (("RequestError", "StreamError"), _lost(FailureKind.CONNECTION)),
)
_BUILTIN: Final = (
    ((json.JSONDecodeError, UnicodeError), _lost(FailureKind.MALFORMED)),
    ((TimeoutError,), _lost(FailureKind.TIMEOUT)),
    ((ConnectionError, ssl.SSLError), _lost(FailureKind.CONNECTION)),
)


@contextlib.contextmanager
def typed_errors(unix_time: Callable[[], float], resource: Any) -> Iterator[None]:
    """Within it, what goes wrong below the SDK is raised as one of `errors.openai`.

    Args:
        unix_time: The seconds since the Unix epoch, to read an HTTP date with.
        resource: What sends, and knows the key that must not be shown.
    """
    try:
        yield
    except RetryRouterError as error:
        _add_facts(error, unix_time())
        mask(_secrets_of(error, resource), error)
        raise
    except Exception as error:
        named = _named(error, unix_time)
        if named is None:
            raise
        secrets = _secrets_of(error, resource)
        mask(secrets, named)
        mask(secrets, error)
        raise named from error


def from_problem(
    problem: wire.Problem, attempts: int = 1, response: Any = None
) -> RetryRouterError:
    """The error for what is wrong with an answer that came with status 200.

    Args:
        problem: What is wrong.
        attempts: How many requests it took.
        response: The HTTP library's response, where it is at hand.
    """
    error = OPENAI_ERRORS[problem.kind](
        problem.message, code=problem.code, body=problem.body
    )
    error.attempts = attempts
    if response is not None:
        facts = {"response": response, "request": response.request}
        vars(error).update(facts)
    return error


def from_page(response: Any) -> RetryRouterError:
    """The error for a document that came where a stream was asked for.

    Args:
        response: The HTTP library's response, its body already read.
    """
    try:
        body = _json.read(response.content)
    except ValueError:
        body = None
    error = body.get("error") if isinstance(body, Mapping) else None
    problem = (
        wire.reported(error)
        if error
        else wire.malformed(f"no stream, but {wire.excerpt(response.text)}")
    )
    return from_problem(problem, response=response)


def _named(error: Exception, unix_time: Callable[[], float]) -> RetryRouterError | None:
    if isinstance(error, openai.APIStatusError):
        return _with_sdk_facts(_from_status(error, unix_time()), error)
    if isinstance(error, openai.APIConnectionError):
        return _with_sdk_facts(_from_connection(error), error)
    if isinstance(error, openai.APIResponseValidationError):
        return _with_sdk_facts(from_problem(wire.malformed(error.message)), error)
    if isinstance(error, openai.APIError):
        problem = wire.reported(error.message if error.body is None else error.body)
        return _with_sdk_facts(from_problem(problem), error)
    transport = _transport_of(error)
    if transport is None and _json.is_unreadable(error):
        transport = _lost(FailureKind.MALFORMED)
    return None if transport is None else _from_transport(transport, error)


def _from_status(error: openai.APIStatusError, unix_time: float) -> RetryRouterError:
    status, headers = error.status_code, error.response.headers
    advice = read_advice(list(headers.multi_items()), unix_time=unix_time)
    body = _json.cut(error.body)
    facts = body if isinstance(body, Mapping) else {}
    said = _sentence(body)
    # Of a page, `said` is an excerpt; its meaning may stand further down.
    text = body if isinstance(body, str) else said
    if (place := headers.get("location")) and status < _BAD_REQUEST:
        said = f"not followed to {wire.excerpt(place)}, the key stays here: {said}"
    kind = wire.kind_of(status, facts, text)
    cls = OPENAI_STATUS_ERRORS.get((status, kind), OPENAI_ERRORS[kind])
    return cls(
        f"Error code: {status} - {said}",
        status_code=status,
        retry_after=advice.retry_after,
        should_retry=advice.should_retry,
        request_id=_request_id_in(headers),
        code=wire.code_in(facts),
        body=body,
        may_have_run=status >= _SERVER_ERROR or status == _REQUEST_TIMEOUT,
    )


def _request_id_in(headers: Mapping[str, str]) -> str | None:
    return next((headers[name] for name in _REQUEST_IDS if name in headers), None)


def _add_facts(error: RetryRouterError, unix_time: float) -> None:
    """What the headers say of an error that came inside a 200."""
    headers = getattr(getattr(error, "response", None), "headers", None)
    if headers is None:
        return
    advice = read_advice(list(headers.multi_items()), unix_time=unix_time)
    error.request_id = error.request_id or _request_id_in(headers)
    if error.retry_after is None:
        error.retry_after = advice.retry_after
    if error.should_retry is None:
        error.should_retry = advice.should_retry


def _sentence(body: Any) -> str:
    if isinstance(body, Mapping):
        said = body.get("message") or body.get("detail") or body
        return said if isinstance(said, str) else json.dumps(said, default=str)
    return wire.excerpt(body)


def _from_connection(error: openai.APIConnectionError) -> RetryRouterError:
    is_timeout = isinstance(error, openai.APITimeoutError)
    unknown = _lost(FailureKind.TIMEOUT if is_timeout else FailureKind.CONNECTION)
    cause = error.__cause__
    if isinstance(cause, RetryRouterError):
        return cause  # Found while the answer was read, and wrapped by openai 2.
    if cause is None:
        return _from_transport(unknown, error)
    return _from_transport(_transport_of(cause) or unknown, cause, error.message)


def _transport_of(error: BaseException) -> _Transport | None:
    for names, transport in _TRANSPORT:
        if isinstance(error, tuple(_http_classes(names))):
            return transport
    return next((t for classes, t in _BUILTIN if isinstance(error, classes)), None)


def _http_classes(names: Iterable[str]) -> Iterator[type[BaseException]]:
    """The classes of these names, of each HTTP library that somebody has imported."""
    for module in (sys.modules.get(library) for library in _HTTP_LIBRARIES):
        for name in names:
            if found := getattr(module, name, None):
                yield found


def _from_transport(
    transport: _Transport, error: BaseException, what: str = ""
) -> RetryRouterError:
    said = str(error)
    detail = type(error).__name__ + (f": {said}" if said else "")
    message = f"{what.rstrip('.')} ({detail})" if what else detail
    return OPENAI_ERRORS[transport.kind](message, may_have_run=transport.may_have_run)


def _with_sdk_facts(error: RetryRouterError, original: Exception) -> RetryRouterError:
    for name in ("request", "response", "param", "type"):
        value = getattr(original, name, None)
        if value is not None:
            setattr(error, name, value)
    return error


# The key.


def _secrets_of(error: Exception, resource: Any) -> set[str]:
    """What the request's headers, or the SDK's client, say that must not be shown."""
    headers: Any = {}
    with contextlib.suppress(RuntimeError):  # httpx raises one where there is none.
        headers = getattr(getattr(error, "request", None), "headers", {})
    client = getattr(resource, "_client", None)
    values = [headers.get(name) for name in _SECRET_HEADERS]
    values += [getattr(client, "api_key", None)]
    words = [value.split() for value in values if isinstance(value, str)]
    return {found[-1] for found in words if found and len(found[-1]) >= SHORTEST_SECRET}
