"""What an exception of somebody else's chat model means, given its meaning once.

A router asks models of any integration, so whatever their SDKs raise arrives here raw.
What is a provider's failure becomes one of `errors`, with the facts that its response
holds; what is no provider's failure, such as a bug or a caller's mistake, is not ours
to name.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any, Final
from urllib.parse import parse_qsl

from langchain_core import exceptions as langchain

from langchain_retryrouter import _json
from langchain_retryrouter._http.errors import Transport, transport_of
from langchain_retryrouter._retry.retry_after import read_advice
from langchain_retryrouter.errors import (
    BASE_ERRORS,
    MASK,
    SHORTEST_SECRET,
    RetryRouterError,
    mask_one,
)
from langchain_retryrouter.errors import (
    redact_text as hide_secrets,
)
from langchain_retryrouter.failures import FailureKind, classify, is_retryable

_SECRET_HEADERS: Final = frozenset(
    {
        "authorization",
        "api-key",
        "x-api-key",
        "x-goog-api-key",
        "ocp-apim-subscription-key",
        "proxy-authorization",
    }
)
_SECRET_PARAMETERS: Final = frozenset({"key", "api_key", "api-key", "access_token"})
# For errors that carry no request: keys that say by their beginning what they are.
_LOOKS_SECRET: Final = re.compile(
    r"\b(?:sk-|gsk_|xai-|pplx-|hf_|r8_)(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{16,}"
    r"|\bAIza[A-Za-z0-9_-]{30,}"
    r"|(?<=\bBearer )[A-Za-z0-9._~+/-]{8,}=*"
)


def secrets_of(errors: list[BaseException]) -> set[str]:
    """What the requests of these errors carried that must not be shown."""
    return {
        secret
        for error in errors
        for request in _requests_of(error)
        for secret in _secrets_in(request)
        if len(secret) >= SHORTEST_SECRET
    }


def mask(secrets: set[str], error: BaseException) -> None:
    """Take `secrets`, and what looks like one, out of what an SDK's own error says.

    A traceback prints it.
    """
    mask_one(error, lambda text: _LOOKS_SECRET.sub(MASK, hide_secrets(secrets, text)))


def _requests_of(error: BaseException) -> Iterator[Any]:
    response = safe_getattr(error, "response")
    for request in (
        safe_getattr(error, "request"),
        safe_getattr(error, "request_info"),  # aiohttp's
        safe_getattr(response, "request"),
    ):
        if request is not None:
            yield request


def _secrets_in(request: Any) -> Iterator[str]:
    headers = safe_getattr(request, "headers")
    for name, value in headers.items() if hasattr(headers, "items") else ():
        if str(name).lower() in _SECRET_HEADERS and str(value).split():
            yield str(value).split()[-1]
    query = str(safe_getattr(request, "url") or "").partition("?")[2]
    for name, value in parse_qsl(query):
        if name.lower() in _SECRET_PARAMETERS:
            yield value


_ODD: Final = (AttributeError, IndexError, KeyError, TypeError, ValueError)

_READERS: Final = frozenset(
    {
        # langchain-openai, and its copies.
        "_create_chat_result",
        "_convert_chunk_to_generation_chunk",
        "_convert_chunk_to_message_chunk",
        "_convert_delta_to_message_chunk",
        "_construct_lc_result_from_responses_api",
        "_convert_responses_chunk_to_generation_chunk",
        # langchain-anthropic.
        "_format_output",
        "_make_message_chunk_from_anthropic_event",
    }
)
_RESPONSES_READERS: Final = frozenset(
    {
        "_construct_lc_result_from_responses_api",
        "_convert_responses_chunk_to_generation_chunk",
    }
)
# These run the stream inside, and with it all that may be wrong on the way to it: only
# what they raise themselves says that the stream was empty.
_COLLECTORS: Final = frozenset({"generate_from_stream", "agenerate_from_stream"})
_INTEGRATION: Final = "langchain_"
_CODE_FIRST: Final = re.compile(r"^(?:code=')?(?P<code>[a-z_]+)(?:'|:) ")


def unparseable_response(error: Exception) -> ProviderError | None:
    """What was wrong with the answer that made an integration raise `error`.

    None where it was not the answer: a caller's mistake, or a bug.
    """
    if _json.is_unreadable(error):
        return _malformed(error)
    if not isinstance(error, _ODD) or _is_callers_schema(error):
        return None
    frames = list(_frames(error.__traceback__))
    readers = {f.f_code.co_name for f in frames if _is_integrations(f)} & _READERS
    if readers:
        return _reported_in(error, readers) or _malformed(error)
    if frames and frames[-1].f_code.co_name in _COLLECTORS:
        return _malformed(error)
    is_odd = _is_scalar_event(error) or (bool(frames) and _is_dump(frames[-1]))
    return _malformed(error) if is_odd else None


def _reported_in(error: Exception, readers: set[str]) -> ProviderError | None:
    """The provider's own error, of an answer that was nothing else.

    langchain-openai raises `ValueError(response["error"])` for it, and for the
    Responses API the error as one text, its code first.
    """
    if type(error) is not ValueError or not error.args:
        return None
    told = error.args[0]
    dump = getattr(told, "model_dump", None)
    body = dump(warnings=False) if callable(dump) else told
    if isinstance(body, Mapping):
        return read_reported(dict(body))
    if not (isinstance(body, str) and readers & _RESPONSES_READERS):
        return None
    code = _CODE_FIRST.match(body)
    return read_reported({"message": body, "code": code["code"] if code else None})


def _malformed(error: Exception) -> ProviderError:
    said = (
        str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    )
    return ProviderError(
        FailureKind.MALFORMED,
        f"the provider's answer could not be read ({type(error).__name__}: {said})",
    )


def _frames(traceback: TracebackType | None) -> Iterator[FrameType]:
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _is_integrations(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).startswith(_INTEGRATION)


def _is_scalar_event(error: Exception) -> bool:
    """Whether an event of a stream was JSON, and no object: `data: 42`.

    The SDKs hand on the bare value, and an integration asks it for its fields.
    """
    return (
        isinstance(error, AttributeError)
        and error.name == "model_dump"
        and isinstance(error.obj, str | int | float | list | None)
    )


def _is_dump(frame: FrameType) -> bool:
    """Whether it is an answer, as the SDK has it, that would not become plain data.

    It holds what JSON may say and nobody can write, such as half a character. The
    generated SDKs keep the types of their answers in `types`.
    """
    written = frame.f_locals.get("self")
    return frame.f_code.co_name == "model_dump" and (
        ".types." in type(written).__module__
    )


def _is_callers_schema(error: Exception) -> bool:
    """Whether an answer came that does not fit into the caller's pydantic class.

    The provider did its work then; the model's words are the caller's to judge.
    """
    title: Any = safe_getattr(error, "title")
    if not isinstance(error, ValueError) or not hasattr(error, "errors"):
        return False
    return isinstance(title, str) and not title.startswith(_MESSAGES)


_MESSAGES: Final = ("AIMessage", "ChatMessage", "ChatGeneration", "ChatResult")


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
class ProviderError:
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


def report_in(error: BaseException) -> ProviderError | None:
    """The provider's report that `error` carries; None if it carries none."""
    response = safe_getattr(error, "response")
    if isinstance(response, Mapping):
        return _amazons(response, str(error))
    status = _status_of(error, response)
    headers = _headers_of(error, response)
    if status is not None:
        return _read(status, _body_of(error, response), headers, str(error))
    if name := _grpcs_name(error):
        return _read(_STATUS_BY_NAME.get(name, 500), {"code": name}, [], _said(error))
    if _is_sdks(error):
        body = safe_getattr(error, "body")
        return _read(None, str(error) if body is None else body, headers, str(error))
    return None


def read_reported(body: Any) -> ProviderError:
    """An error that came inside a 200 or as an event of a stream."""
    return _read(None, body, [], "the provider reported an error")


def safe_getattr(thing: Any, name: str) -> Any:
    """An attribute; None where there is none, or where asking for it is an error."""
    with contextlib.suppress(Exception):  # httpx raises RuntimeError for `request`.
        return getattr(thing, name, None)
    return None


def _read(
    status: int | None, body: Any, headers: list[tuple[str, str]], fallback: str
) -> ProviderError:
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
    return ProviderError(
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
    for body in (safe_getattr(error, "body"), safe_getattr(error, "details")):
        if isinstance(body, Mapping | list) or (isinstance(body, str) and body):
            return body
    # `content` would read from the socket where nobody has read yet.
    content = safe_getattr(response, "_content")
    if not isinstance(content, bytes) or not content:
        return None
    try:
        return _json.read(content)
    except ValueError:
        return content.decode("utf-8", "replace")


# The status and the headers.


def _status_of(error: BaseException, response: Any) -> int | None:
    own = safe_getattr(error, "status_code")
    if _is_status(own, _OK):
        return int(own)
    if _is_sdks(error):
        return None  # Its `code` is the provider's: openai 2 leaves a number one.
    # langchain-openai hangs the response, a 200, on whatever goes wrong later.
    others = (
        safe_getattr(response, "status_code"),
        safe_getattr(error, "status"),
        safe_getattr(error, "code"),
    )
    return next((int(one) for one in others if _is_status(one, _REDIRECT)), None)


def _is_status(value: Any, least: int) -> bool:
    return (
        isinstance(value, int)
        and not isinstance(value, bool)
        and least <= value < _END_OF_STATUSES
    )


def _headers_of(error: BaseException, response: Any) -> list[tuple[str, str]]:
    headers = safe_getattr(response, "headers") or safe_getattr(error, "headers")
    items = safe_getattr(headers, "multi_items") or safe_getattr(headers, "items")
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


def _amazons(response: Mapping[str, Any], fallback: str) -> ProviderError | None:
    facts, answer = response.get("Error"), response.get("ResponseMetadata")
    if not isinstance(facts, Mapping):
        return None
    answer = answer if isinstance(answer, Mapping) else {}
    status, name = answer.get("HTTPStatusCode"), str(facts.get("Code") or "")
    headers = answer.get("HTTPHeaders")
    text = str(facts.get("Message") or fallback)
    meant = _STATUS_BY_AMAZONS_NAME.get(name.lower(), status)
    return ProviderError(
        kind=classify(meant, None, text),
        message=text,
        status_code=status,
        code=name or None,
        body=dict(response),
        headers=list(headers.items()) if isinstance(headers, Mapping) else [],
    )


def _grpcs_name(error: BaseException) -> str | None:
    code = safe_getattr(error, "code")
    if not callable(code) or not type(error).__module__.startswith("grpc"):
        return None
    name = safe_getattr(code(), "name")
    return name if isinstance(name, str) else None


def _said(error: BaseException) -> str:
    details = safe_getattr(error, "details")
    said = details() if callable(details) else None
    return said if isinstance(said, str) else str(error)


# LangChain's own tree, for an error that carries no status.
_BY_LANGCHAINS_CLASS: Final = (
    (langchain.ContextOverflowError, FailureKind.CONTEXT_OVERFLOW),
    (langchain.ModelAuthenticationError, FailureKind.AUTHENTICATION),
    (langchain.ModelPermissionDeniedError, FailureKind.PERMISSION),
    (langchain.ModelNotFoundError, FailureKind.NOT_FOUND),
    (langchain.ModelInvalidRequestError, FailureKind.INVALID_REQUEST),
    (langchain.ModelRateLimitError, FailureKind.RATE_LIMIT),
    (langchain.ModelTimeoutError, FailureKind.TIMEOUT),
    (langchain.ModelConnectionError, FailureKind.CONNECTION),
    (langchain.ModelError, FailureKind.SERVER_ERROR),
)
# The classes of the generated SDKs (OpenAI, Anthropic, Groq, ...), by their names. What
# stands above is a special case of what stands below.
_BY_SDKS_CLASS: Final = (
    ("APITimeoutError", FailureKind.TIMEOUT),
    ("APIConnectionError", FailureKind.CONNECTION),
    ("APIResponseValidationError", FailureKind.MALFORMED),
    # An object was to be read out of an answer that was filtered.
    ("ContentFilterFinishReasonError", FailureKind.CONTENT_FILTER),
)
# They know more than the 400 that they carry: LangChain's, and LiteLLM's.
_EXACT_CLASSES: Final = (
    ("ContextOverflowError", FailureKind.CONTEXT_OVERFLOW),
    ("ContextWindowExceededError", FailureKind.CONTEXT_OVERFLOW),
    ("ContentPolicyViolationError", FailureKind.CONTENT_FILTER),
)
_ON_THE_WAY: Final = frozenset({FailureKind.TIMEOUT, FailureKind.CONNECTION})


def name_failure(error: Exception, unix_time: float) -> RetryRouterError | None:
    """What a model's exception means, as one of `errors` with the facts it carries.

    Raise it `from error`. The exception's own texts lose the key that its request
    carried, since a traceback prints them too.

    Args:
        error: What the model raised, caught and with its traceback.
        unix_time: The seconds since the Unix epoch, to read an HTTP date with.

    Returns:
        `error` itself if it is one of ours, and None if it is no provider's failure:
        that has to reach the caller unchanged.
    """
    if isinstance(error, RetryRouterError):
        return error
    chain = list(_chain(error))
    named = _named(error, chain, unix_time)
    if named is None:
        return None
    redact_text = secrets_of(chain)
    for one in (named, *chain):
        mask(redact_text, one)
    return named


def _chain(error: BaseException) -> Iterator[BaseException]:
    """`error`, and what it was raised `from`."""
    seen: set[int] = set()
    step: BaseException | None = error
    while step is not None and id(step) not in seen:
        seen.add(id(step))
        yield step
        step = step.__cause__


def _named(
    error: Exception, chain: list[BaseException], unix_time: float
) -> RetryRouterError | None:
    if kind := _by_sdks_class(error):
        return _from_class(kind, error, chain)
    if report := report_in(error):
        return _from_report(report, error, unix_time)
    if kind := _by_langchains_class(error):
        return _from_class(kind, error, chain)
    if transport := transport_of(error):
        return _from_transport(transport, error)
    if report := unparseable_response(error):
        return _from_report(report, error, unix_time)
    cause = error.__cause__
    # Somebody said "because of a provider's failure", as langchain-google-genai does.
    return _named(cause, chain, unix_time) if isinstance(cause, Exception) else None


def _from_report(
    report: ProviderError, error: Exception, unix_time: float
) -> RetryRouterError:
    advice = read_advice(report.headers, unix_time=unix_time)
    return BASE_ERRORS[_sharpened(report.kind, error)](
        report.message,
        status_code=report.status_code,
        retry_after=advice.retry_after,
        should_retry=False if _is_given_up(error) else advice.should_retry,
        request_id=report.request_id,
        code=report.code,
        body=report.body,
        may_have_run=report.may_have_run,
    )


def _sharpened(kind: FailureKind, error: Exception) -> FailureKind:
    names = _names_of(error)
    return next((exact for name, exact in _EXACT_CLASSES if name in names), kind)


def _is_given_up(error: Exception) -> bool:
    """Whether somebody marked this very error as not to be tried again."""
    return vars(error).get("is_retryable") is False


def _names_of(error: Exception) -> set[str]:
    return {cls.__name__ for cls in type(error).__mro__}


def _by_sdks_class(error: Exception) -> FailureKind | None:
    names = _names_of(error)
    return next((kind for name, kind in _BY_SDKS_CLASS if name in names), None)


def _by_langchains_class(error: Exception) -> FailureKind | None:
    return next(
        (kind for cls, kind in _BY_LANGCHAINS_CLASS if isinstance(error, cls)), None
    )


def _from_class(
    kind: FailureKind, error: Exception, chain: list[BaseException]
) -> RetryRouterError:
    """The error for what a class says; of the way there, its cause says more."""
    if kind in _ON_THE_WAY:
        for cause in chain[chain.index(error) + 1 :]:
            if transport := transport_of(cause):
                return _from_transport(transport, cause, str(error))
    named = BASE_ERRORS[kind](
        _detail(error),
        code=_code_of(error),
        body=safe_getattr(error, "body"),
        may_have_run=kind in _ON_THE_WAY or is_retryable(kind),
    )
    says_no = isinstance(error, langchain.ModelError) and not error.is_retryable
    if is_retryable(kind) and (says_no or _is_given_up(error)):
        named.should_retry = False
    return named


def _code_of(error: Exception) -> str | None:
    code = safe_getattr(error, "code")
    return code if isinstance(code, str) else None


def _from_transport(
    transport: Transport, error: BaseException, what: str = ""
) -> RetryRouterError:
    detail = _detail(error)
    message = f"{what.rstrip('.')} ({detail})" if what else detail
    return BASE_ERRORS[transport.kind](message, may_have_run=transport.may_have_run)


def _detail(error: BaseException) -> str:
    said = str(error)
    return type(error).__name__ + (f": {said}" if said else "")
