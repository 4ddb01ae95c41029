"""The one reader of provider errors, for GPTRouter, the LLMs and RetryRouter.

`read_response` reads an HTTP answer, `read_event` an event of a stream or the body of a
200, and `read_exception` what an SDK or an integration raised. Each gives an
`ErrorReport`, and `ErrorReport.to_error` makes the exception of it. What a status, a
code and a sentence mean is in `failures.classify`, what an exception below HTTP means
in `_http`, and every form of "wait" in `_retry.retry_after`.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

from langchain_core import exceptions as langchain
from pydantic import ValidationError

from langchain_retryrouter import _json
from langchain_retryrouter._http import (
    CLOSED_LOOP,
    hide_request,
    read_transport_error,
)
from langchain_retryrouter._retry.clock import SYSTEM_CLOCK
from langchain_retryrouter._retry.retry_after import read_advice, read_wait
from langchain_retryrouter._secrets import (
    SHORTEST_SECRET,
    hide_keys,
    mask_with,
    redact_text,
    rewrite,
)
from langchain_retryrouter.errors import (
    BASE_ERRORS,
    ErrorFamily,
    RetryRouterError,
    UnknownError,
)
from langchain_retryrouter.failures import FailureKind, classify, is_retryable

_OK, _REDIRECT, _BAD_REQUEST, _END_OF_STATUSES = 200, 300, 400, 600
_REQUEST_TIMEOUT, _TOO_MANY_REQUESTS, _SERVER_ERROR = 408, 429, 500
_LONGEST_TEXT: Final = 10_000  # Patterns are not searched for in megabytes.
_DEEPEST: Final = 5  # An error inside an error inside ...


class ErrorReport(NamedTuple):
    """What a provider, or a library below, says about a failure.

    The facts are those of `RetryRouterError`. There is no `status_code` for an error
    inside a stream or a 200.
    """

    kind: FailureKind
    message: str
    status_code: int | None = None
    code: str | None = None
    retry_after: float | None = None
    should_retry: bool | None = None
    request_id: str | None = None
    body: Any = None
    may_have_run: bool = True

    def to_error(self, family: ErrorFamily) -> RetryRouterError:
        """The exception for it, of the classes of `family`."""
        facts = self._asdict()
        kind = facts.pop("kind")
        return family.get(kind, BASE_ERRORS[kind])(**facts)


def read_response(
    status_code: int | None,
    headers: Any,
    body: Any,
    fallback: str = "",
    *,
    unix_time: float = 0.0,
) -> ErrorReport:
    """Read an answer that is an error; one inside a stream has no status.

    `headers` are a mapping of any HTTP library, or pairs; `body` is bytes, text, or
    parsed. `fallback` is the message where the body has none.
    """
    body = _json.cut(_parsed(body))
    facts = _facts_in(body)
    names = _names_in(facts)
    headers = _pairs(headers)
    fields = {name.lower(): value for name, value in reversed(headers)}
    if amazons := fields.get("x-amzn-errortype", "").partition(":")[0]:
        names.insert(0, amazons)
    status = meant = status_code
    if status is None or status < _REDIRECT:
        # An error inside a stream or a 200. A 200 with a page is not even that.
        is_error = status is None or _is_error(body)
        meant = _implied_status(names) if is_error else status
        status = None
    elif implied := _implied_status(names, has_status=True):
        # The names of Amazon's say more than its statuses: throttling may be a 400, a
        # failing model is a 424.
        is_sharper = status == _BAD_REQUEST and implied in {401, 402, 403, 404}
        if is_sharper or any(name.endswith("Exception") for name in names):
            meant = implied
    sentence = _shorten(_sentence_in(facts, body), _LONGEST_TEXT)
    raw = _mapping(facts.get("metadata")).get("raw")
    if isinstance(raw, str) and raw:  # OpenRouter hands on its provider's answer.
        sentence = f"{sentence}: {_json.excerpt(raw)}"
    # The page of a proxy or a firewall is not the provider's word.
    text = " ".join(
        part[:_LONGEST_TEXT]
        for part in (sentence or fallback, raw, body)
        if isinstance(part, str) and not _PAGE.search(part[:_LONGEST_TEXT])
    )
    kind = _kind_of(meant, names, text, facts.get("param"), is_event=status is None)
    waits = _waits_in(body, facts, text, unix_time)
    if kind in {FailureKind.QUOTA, FailureKind.RATE_LIMIT}:
        times = set(_GOOGLES_TIMES.findall(json.dumps(body, default=str)))
        is_named = any(classify(meant, name) is FailureKind.QUOTA for name in names)
        if "Day" in times:
            kind = FailureKind.QUOTA
        elif (times or waits) and not is_named:
            kind = FailureKind.RATE_LIMIT
    advice = read_advice(headers, unix_time=unix_time)
    asked = [wait for wait in (advice.retry_after, *waits) if wait is not None]
    # OpenAI's code may be null: it has nothing to say beyond the type then.
    words = [name for name in names if not name.isdecimal()] or names
    code = words[0] if words and facts.get("code", "") is not None else None
    if status is not None:
        if status < _BAD_REQUEST and (place := fields.get("location")):
            place = _json.excerpt(place)
            refused = f"not redirected to {place} with the API key."
            sentence = f"{refused} {sentence}".rstrip()
        if sentence or not fallback:
            sentence = f"Error code: {status} - {sentence or 'an empty body'}"
    return ErrorReport(
        kind=kind,
        message=sentence or fallback,
        status_code=status,
        code=code,
        retry_after=max(asked, default=None),
        should_retry=advice.should_retry,
        request_id=next((fields[n] for n in _REQUEST_IDS if n in fields), None),
        body=body,
        may_have_run=status in {None, _REQUEST_TIMEOUT} or status >= _SERVER_ERROR,
    )


def read_event(data: Any, event: str = "message") -> ErrorReport | None:
    """Read an event of a stream, or the body of a 200; None if it is not an error.

    `data` is bytes, text, a dict, or an object of a generated SDK; `event` is the name
    of the event, or of the field, as llama.cpp's `error: {...}`.
    """
    body = _parsed(data)
    if event == "error" or _is_error(body):
        text, now = "the provider reported an error", SYSTEM_CLOCK.time()
        return read_response(None, {}, body, text, unix_time=now)
    return None


def read_exception(
    error: BaseException, *, unix_time: float, keys: Iterable[str] = ()
) -> ErrorReport | None:
    """Read what an SDK, an HTTP library or an integration raised.

    None if the exception says nothing about a provider. Secrets are taken out of it, as
    by `hide_secrets`.
    """
    report = _read_causes(error, list(_causes(error)), unix_time)
    hide = hide_secrets(error, keys)
    if report is None:
        return None
    message, body = hide(report.message), rewrite(hide, report.body)
    return report._replace(message=message, body=body)


def hide_secrets(
    error: BaseException, keys: Iterable[str] = ()
) -> Callable[[str], str]:
    """Take secrets out of an exception and its causes, since a traceback prints them.

    They are `keys`, those that the requests carried, and what looks like a key. What
    takes them out of a text is returned.
    """
    causes = list(_causes(error))
    secrets = {secret for one in causes for secret in _secrets_of(one)}
    secrets.update(key for key in keys if len(key) >= SHORTEST_SECRET)

    def hide(text: str) -> str:
        text = _shorten(text, _LONGEST_TEXT)
        return hide_keys(redact_text(secrets, text))

    mask_with(hide, error)
    for one in causes:
        hide_request(one, hide)
    return hide


def name_failure(
    error: BaseException, unix_time: float, keys: Iterable[str] = ()
) -> RetryRouterError:
    """The exception of ours for what a model raised; an `UnknownError` for a bug.

    `keys` are the model's, which no text is to show.
    """
    if isinstance(error, RetryRouterError):
        return error
    report, text = None, ""
    with contextlib.suppress(Exception):  # Its own attributes may raise ...
        report = read_exception(error, unix_time=unix_time, keys=keys)
    with contextlib.suppress(Exception):  # ... and its text, which has lost its keys.
        text = f": {error}"
    if report is None:
        return UnknownError(f"{type(error).__name__}{text}")
    return report.to_error(BASE_ERRORS)


# As many idle connections of another event loop as the generated SDKs keep.
MOST_STALE: Final = 100


def is_of_closed_loop(error: BaseException) -> bool:
    """Whether a connection was asked that belongs to an event loop that is closed."""
    return any(
        isinstance(one, RuntimeError) and CLOSED_LOOP in str(one)
        for one in _causes(error)
    )


# --- What is in an answer -----------------------------------------------------------

# The HTTP status that a name stands for, where no status came with it: in a stream, or
# in a 200. A name is compared without "Error", "Exception", case and punctuation.
# Sources: docs.claude.com/en/api/errors; google/rpc/code.proto; the errors of
# InvokeModel and ConverseStream in the API reference of Amazon Bedrock; the classes of
# the generated SDKs, whose names vLLM and LiteLLM send.
_STATUS_BY_NAME: Final = {
    name: status
    for status, names in (
        (400, "badrequest invalidrequest invalidargument failedprecondition"),
        (400, "outofrange validation"),
        (401, "authentication unauthenticated unauthorized expiredtoken"),
        (401, "unrecognizedclient invalidsignature"),
        (402, "billing paymentrequired servicequotaexceeded"),
        (403, "permission permissiondenied accessdenied forbidden"),
        (404, "notfound resourcenotfound"),
        (409, "conflict aborted alreadyexists"),
        (413, "requesttoolarge"),
        (422, "unprocessableentity"),
        (429, "ratelimit ratelimitexceeded toomanyrequests throttling"),
        (429, "resourceexhausted"),
        (499, "cancelled"),
        (500, "api dataloss internal internalserver server unknown model modelstream"),
        (501, "unimplemented"),
        (503, "unavailable serviceunavailable modelnotready"),
        (504, "timeout modeltimeout deadlineexceeded"),
        (529, "overloaded"),
    )
    for name in names.split()
}
_LEAST_SUFFIX: Final = 7
# No wait helps a request that is larger than the limit of a minute.
_NEVER_FITS: Final = re.compile(r"\brequest too large for\b", re.IGNORECASE)
# The kinds that only a field of the request explains.
_CONTENT_PARAM: Final = re.compile(
    r"(?:^|\.)(?:content|prompt|input|text|instructions|system|output|arguments)"
    r"(?:\[\d*\])*$"
)
# Google says "quota" of each limit: the ids of the limits name their times.
_GOOGLES_TIMES: Final = re.compile(r"[a-z]Per(Day|Hour|Minute|Second)(?=[A-Z\W])")
_PAGE: Final = re.compile(
    r"(?is)<(?:!doctype html|html|head|body)\b.*(?:</(?:title|head|h1|body|html)>|…$)"
)
_REQUEST_IDS: Final = (
    *("x-request-id", "request-id", "apim-request-id", "x-ms-request-id"),
    *("x-amzn-requestid", "x-litellm-call-id"),
)
PAYLOADS: Final = frozenset(
    {"choices", "content", "delta", "candidates", "output", "data", "generations"}
)
"""Fields that an answer has, and an error has not."""


def _kind_of(
    status: int | None, names: list[str], text: str, param: Any, *, is_event: bool
) -> FailureKind:
    if _NEVER_FITS.search(text):
        return FailureKind.CONTEXT_OVERFLOW
    if isinstance(param, str) and not _CONTENT_PARAM.search(param):
        names = [name for name in names if name != "string_above_max_length"]
    # The words of an event say more than the status that its names stand for.
    is_open = is_event and (status is None or status >= _SERVER_ERROR)
    read_by = None if is_open else status
    plain = classify(read_by)
    for name in names:
        if (kind := classify(read_by, name)) is not plain:
            return kind
    if status == _TOO_MANY_REQUESTS and "rate_limit_exceeded" in names:
        return plain
    kind = classify(read_by, None, text)
    if kind is plain:
        kind = classify(status)
    if kind is FailureKind.INVALID_REQUEST and param == "model":
        is_an_option = any("unsupported" in name for name in names)
        return kind if is_an_option else FailureKind.NOT_FOUND
    return kind


def _implied_status(names: list[str], *, has_status: bool = False) -> int | None:
    for name in names:
        # OpenRouter, vLLM and LiteLLM put the HTTP status into `code`.
        if re.fullmatch(r"[45]\d\d", name):
            return int(name)
        plain = re.sub("[^a-z]", "", name.lower().rpartition("#")[2])
        plain = re.sub(r"(?:error|exception)+$", "", plain)
        if found := _STATUS_BY_NAME.get(plain):
            return found
        if not has_status:  # DeploymentNotFound, gateway_timeout
            for known, found in _STATUS_BY_NAME.items():
                if len(known) >= _LEAST_SUFFIX and plain.endswith(known):
                    return found
    return _BAD_REQUEST if any(name.startswith("invalid_") for name in names) else None


def _parsed(data: Any) -> Any:
    """Bytes, text and objects of SDKs as plain data, if that is what they hold."""
    if isinstance(data, dict):
        return data
    if isinstance(data, bytes | bytearray | memoryview):
        data = bytes(data).decode("utf-8", "replace")
    if isinstance(data, str) and data.lstrip()[:1] in {"{", "["}:
        with contextlib.suppress(ValueError):
            return _json.read(data)
        if len(data) <= _LONGEST_TEXT:  # A dict's `repr`, as some integrations raise.
            with contextlib.suppress(
                ValueError, SyntaxError, MemoryError, RecursionError
            ):
                return ast.literal_eval(data)
    dump = safe_getattr(data, "model_dump")
    if callable(dump) and not isinstance(data, type):
        with contextlib.suppress(Exception):
            return dump(warnings=False)
    return data


def _is_error(body: Any) -> bool:
    if isinstance(body, list):
        return _is_error(body[0]) if body and isinstance(body[0], Mapping) else False
    if not isinstance(body, Mapping):
        return False
    has_payload = not PAYLOADS.isdisjoint(body)
    if (
        body.get("error")
        or (body.get("errors") and not has_payload)
        or body.get("type") in ("error", "response.failed")
        or body.get("object") == "error"
        or any(one.get("error") for one in _mappings(body.get("choices")))
        or _amazons_name(body)
    ):
        return True
    if has_payload or not _sentence_in(body, None):
        return False
    names = _names_in(body)
    return _implied_status(names) is not None or any(
        classify(None, name) is not FailureKind.SERVER_ERROR for name in names
    )


def _amazons_name(body: Mapping[str, Any]) -> str | None:
    """The name of an error in an event of Amazon's: `{"throttlingException": {}}`."""
    name = str(next(iter(body), ""))
    is_error = len(body) == 1 and name.endswith("Exception")
    return name if is_error and isinstance(body.get(name), Mapping) else None


def _facts_in(body: Any, depth: int = 0) -> Mapping[str, Any]:
    """The object that describes the error, wherever the provider nests it."""
    body = _parsed(body)
    if isinstance(body, list) and body and depth <= _DEEPEST:  # Google's, of a stream.
        return _facts_in(body[0], depth + 1)
    if depth > _DEEPEST or not isinstance(body, Mapping):
        return {}
    if name := _amazons_name(body):
        return {"code": name, **body[name]}
    for one in _mappings(body.get("choices")):
        if one.get("error"):
            return _facts_in(one, depth + 1)
    for key in ("error", "errors", "response", "detail", "message"):
        if key == "errors" and "message" in body and "code" in body:
            continue  # Google's, which say less than the object around them.
        inner = _parsed(body.get(key))
        if isinstance(inner, list) and inner and isinstance(inner[0], Mapping | str):
            inner = inner[0]
        if isinstance(inner, Mapping) and inner:
            return _facts_in(inner, depth + 1) or inner
        if isinstance(inner, str) and key in {"error", "errors"} and inner:
            return {**body, "message": inner}
    return body


def _names_in(facts: Mapping[str, Any]) -> list[str]:
    """The names of an error, the most exact one first."""
    details = facts.get("details")
    keys = ("status", "error_code", "__type", "error_type", "type")
    found = (
        facts.get("code"),
        _mapping(details).get("error_code"),
        *(one.get("reason") for one in _mappings(details)),
        _mapping(facts.get("innererror")).get("code"),
        *(facts.get(key) for key in keys),
    )
    return [
        str(name)
        for name in found
        if isinstance(name, str | int) and not isinstance(name, bool) and name != ""
    ]


def _sentence_in(facts: Mapping[str, Any], body: Any) -> str:
    for key in ("message", "Message", "detail", "msg", "title"):
        if isinstance(sentence := facts.get(key), str) and sentence:
            return sentence
    if isinstance(body, str):
        return _json.excerpt(body)
    is_shown = isinstance(body, Mapping) or (isinstance(body, list) and not facts)
    return json.dumps(body, default=str) if body and is_shown else ""


# Fields of a body, and the header that says the same.
_WAIT_FIELDS: Final = {
    "retry_after": "retry-after",
    "retry_after_seconds": "retry-after",
    "retry_after_secs": "retry-after",
    "retryAfter": "retry-after",
    "retryAfterSeconds": "retry-after",
    "resets_in_seconds": "retry-after",
    "retry_after_ms": "retry-after-ms",
    "retryAfterMs": "retry-after-ms",
}


def _waits_in(
    body: Any, facts: Mapping[str, Any], text: str, unix_time: float
) -> list[float | None]:
    """The seconds to wait that the body names; None for a form that is not known."""
    nested = (facts.get(name) for name in ("metadata", "details", "parameters"))
    places = (_mapping(body), facts, *map(_mapping, nested))
    delays: list[tuple[str, Any]] = []
    for one in _mappings(facts.get("details")):
        # Google's RetryInfo: google/rpc/error_details.proto.
        delay = one.get("retryDelay")
        delays.append(("retry-after", _mapping(delay).get("seconds", delay)))
    delays += [
        (header, fields.get(name))
        for fields in places
        for name, header in _WAIT_FIELDS.items()
    ]
    headers = [_pairs(_mapping(fields.get("headers"))) for fields in places]
    headers += [[(header, str(said))] for header, said in delays if said is not None]
    waits = [
        read_advice(one, unix_time=unix_time).retry_after for one in headers if one
    ]
    wait = read_wait(text, unix_time=unix_time)
    return waits if wait is None else [*waits, wait]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    items = value if isinstance(value, list) else ()
    return [one for one in items if isinstance(one, Mapping)]


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


def _pairs(headers: Any) -> list[tuple[str, str]]:
    """The headers of any HTTP library as pairs of texts."""
    items = safe_getattr(headers, "multi_items") or safe_getattr(headers, "items")
    pairs: Any = items() if callable(items) else headers
    found = []
    for pair in pairs if isinstance(pairs, Iterable) else ():
        match pair:
            case [
                str() | bytes() as name,
                str() | bytes() | int() | float() as value,
            ] if name:
                found.append((_latin(name), _latin(value)))
    return found


def _latin(value: str | bytes | float) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


# --- What is in an exception --------------------------------------------------------

# LangChain's own tree. What stands above is a special case of what stands below.
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
# They know more than the status that they carry: LangChain's, LiteLLM's, and openai's.
_BY_EXACT_NAME: Final = {
    "ContextOverflowError": FailureKind.CONTEXT_OVERFLOW,
    "ContextWindowExceededError": FailureKind.CONTEXT_OVERFLOW,
    "ContentPolicyViolationError": FailureKind.CONTENT_FILTER,
    "ContentFilterFinishReasonError": FailureKind.CONTENT_FILTER,
    "LengthFinishReasonError": FailureKind.LENGTH,
    "ModelRefusalError": FailureKind.CONTENT_FILTER,
    "MidStreamFallbackError": FailureKind.INTERRUPTED,
}
_STATUS_IN_TEXT: Final = (
    re.compile(  # "API error 429: {...}", "HTTP 502 ...", and ChatNVIDIA's "[503] ..."
        r"(?is)(?:\[|.{0,100}?\b(?:error|http|status)(?:[ _]?code)?\W{1,3})"
        r"(?P<status>[45]\d\d)\b[\]\s:-]*(?P<body>.*)"
    ),
    re.compile(  # ChatWatsonx's
        r"(?s)Request failed with: \(?(?P<body>.*?)\s\(?(?P<status>[45]\d\d)\)\s*$"
    ),
)
# langchain-openai raises the errors of the Responses API as the text of an object, or
# with its code in front.
_REPR: Final = re.compile(r"\bcode='(?P<code>\w+)',? message=['\"](?P<message>.*)")
_CODE_FIRST: Final = re.compile(r"(?P<code>[a-z]+(?:_[a-z]+)+): (?P<message>.*)")
_NO_ANSWER: Final = re.compile(
    r"no generations? found|no generation chunks|no data received|no 'output' key"
    r"|received (?:an )?empty|empty (?:stream|response)|null value for .choices"
    r"|missing .choices. key|unexpected response type|while decoding a json"
    r"|digits\) for integer string|\[###\] unknown error"
    r"|unfinished stream|only parse array of json|the json object must be"
    r"|'nonetype' object|of type 'nonetype'"
    r"|'(?:str|list|int|float|bool)' object (?:is not|does not|has no)"
    r"|must be a mapping, not|(?:list|string) indices must be",
    re.IGNORECASE,
)
# The words of gRPC's core for a lost connection, which has the code UNAVAILABLE.
_GRPC_LOST: Final = re.compile(
    r"(?i)(failed to connect to all addresses|(?:dns|name) resolution)"
    r"|socket closed|connection reset|recvmsg|broken pipe|goaway|connection refused"
)
_OF_ANSWERS: Final = re.compile(  # The titles of pydantic's models.
    r"^(?!.*(?:Request|Input|Params|Config))"
    r"(?:.*(?:Response|Completion|Chunk|Candidate|Event|Unmarshaller)"
    r"|AIMessage|ChatMessage|ChatGeneration|ChatResult)"
)


def _causes(
    step: BaseException | None, *, deep: bool = False
) -> Iterator[BaseException]:
    """An exception, and what it was raised `from`; `deep`: or in place of.

    Of a group it is the first exception in it, as a client with tasks raises one.
    """
    seen: set[int] = set()
    while step is not None and id(step) not in seen:
        seen.add(id(step))
        yield step
        inner = step.exceptions[0] if isinstance(step, BaseExceptionGroup) else None
        step = step.__cause__ or inner or (step.__context__ if deep else None)


def _read_causes(
    error: BaseException, causes: list[BaseException], unix_time: float
) -> ErrorReport | None:
    """The most exact report: an answer's, a transport's, or that of a class."""
    # What an integration's own exception was raised in place of. The context of one of
    # Python's exceptions may be anything that the caller handles.
    is_own = type(error).__module__ != "builtins" or error.__suppress_context__
    has_context = is_own and error.__cause__ is None
    contexts = list(_causes(error.__context__ if has_context else None))
    report, below = None, causes
    for place, one in enumerate(causes, 1):
        if report := _read_answer(one, unix_time):
            below = causes[place:]
            break
    if report is None or (
        # LiteLLM makes a 500 without a body of a lost connection.
        not report.body and (report.status_code or 0) >= _SERVER_ERROR
    ):
        if report and contexts:
            below = list(_causes(error.__context__, deep=True))
        report = _read_transport(error, (*below, *contexts)) or report
    for one in causes if report is None else ():
        kind = _kind_by_class(one)
        report = report or (_from_class(kind, one) if kind else _read_text(one))
    for one in contexts if report is None else ():
        report = report or _read_answer(one, unix_time)
    names = (cls.__name__ for cls in type(error).__mro__)
    exact = next((_BY_EXACT_NAME[n] for n in names if n in _BY_EXACT_NAME), None)
    if report is None:
        return _from_class(exact, error) if exact else None
    by_class = _kind_by_class(error)
    if exact:
        report = report._replace(kind=exact)
    elif report.kind is FailureKind.INVALID_REQUEST and by_class in {
        FailureKind.AUTHENTICATION,
        FailureKind.PERMISSION,
        FailureKind.NOT_FOUND,
    }:
        report = report._replace(kind=by_class)
    if getattr(error, "__dict__", {}).get("is_retryable") is False:  # Given up.
        report = report._replace(should_retry=False)
    return report


def _read_transport(
    error: BaseException, chain: Iterable[BaseException]
) -> ErrorReport | None:
    """What the first exception below HTTP means for `error`; None if there is none."""
    for one in chain:
        if failure := read_transport_error(one):
            if failure.kind is FailureKind.MALFORMED:
                return _malformed(one)
            inner = one.__cause__ or one
            said = f"{type(inner).__name__}: {inner}".removesuffix(": ")
            if inner is not error:
                said = f"{str(error).rstrip('.')} ({said})"
            return ErrorReport(
                failure.kind,
                said,
                should_retry=failure.should_retry,
                may_have_run=failure.may_have_run,
            )
    return None


def _read_answer(error: BaseException, unix_time: float) -> ErrorReport | None:
    """The provider's answer that `error` carries; None if it carries none."""
    text, module = str(error), type(error).__module__
    response = safe_getattr(error, "response")
    if isinstance(response, Mapping):  # Amazon's
        facts = response.get("Error")
        if not isinstance(facts, Mapping):
            return None
        answer = _mapping(response.get("ResponseMetadata"))
        message = str(facts.get("Message") or text)
        body: Any = {"code": str(facts.get("Code") or "") or None, "message": message}
        status, headers = answer.get("HTTPStatusCode"), answer.get("HTTPHeaders")
        report = read_response(status, headers, body, unix_time=unix_time)
        return report._replace(message=message, body=dict(response))
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & {"APIConnectionError", "APIResponseValidationError"}:
        return None
    below = {cls.__name__ for cls in type(error.__cause__).__mro__}
    # aiohttp's status 400 is for what is not HTTP, another one is that of a proxy.
    if "HttpProcessingError" in below or "ClientHttpProxyError" in names:
        return None
    is_sdks = ("APIError" in names and hasattr(error, "body")) or (
        "ResponseError" in names and module.startswith("ollama")
    )
    code, details = safe_getattr(error, "code"), safe_getattr(error, "details")
    is_grpc = callable(code) and module.startswith("grpc")
    status = _status_of(error, response, is_sdks=is_sdks)
    fallback, body = text, None
    if status is not None:
        body = _body_of(error, response)
    elif is_grpc:
        name = str(safe_getattr(code(), "name"))
        status = _implied_status([name]) or _SERVER_ERROR
        said = details() if callable(details) else None
        body = {"code": name, "message": said or text}
    elif is_sdks:  # Raised for an event of a stream.
        body = safe_getattr(error, "body")
        body = text if body is None else body
    elif match := next(
        filter(None, (one.match(text) for one in _STATUS_IN_TEXT)), None
    ):
        status, body, fallback = int(match["status"]), match["body"].strip(), ""
    else:
        return None
    headers = _headers_of(error, response, status)
    report = read_response(status, headers, body, fallback, unix_time=unix_time)
    is_grpc = is_grpc or safe_getattr(error, "grpc_status_code") is not None
    lost = _GRPC_LOST.search(report.message)
    if is_grpc and lost and report.kind is FailureKind.UNAVAILABLE:
        may_have_run = lost[1] is None
        return report._replace(kind=FailureKind.CONNECTION, may_have_run=may_have_run)
    return report


def _status_of(error: BaseException, response: Any, *, is_sdks: bool) -> int | None:
    own = _as_status(safe_getattr(error, "status_code"), _OK)
    if own is not None or is_sdks:
        return own  # An SDK's `code` is the provider's: openai 2 leaves a number one.
    # langchain-openai hangs the response, a 200, on whatever goes wrong later.
    places = [(response, "status_code"), (response, "status")]
    places += [(error, "http_status"), (error, "status")]
    # aiohttp's TransferEncodingError has the code 400, and is a cut body.
    evidence = ("headers", "response", "details", "errors")
    if any(safe_getattr(error, name) is not None for name in evidence):
        places.append((error, "code"))
    found = (_as_status(safe_getattr(one, name), _REDIRECT) for one, name in places)
    return next((status for status in found if status is not None), None)


def _as_status(value: Any, least: int) -> int | None:
    """The HTTP status that a value is, as a number or as text, from `least` on."""
    if isinstance(value, str) and re.fullmatch("[1-5][0-9]{2}", value):
        value = int(value)
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return int(value) if is_number and least <= value < _END_OF_STATUSES else None


def _headers_of(error: BaseException, response: Any, status: int | None) -> Any:
    found = [
        safe_getattr(response, "headers"),
        safe_getattr(error, "headers"),
        safe_getattr(error, "litellm_response_headers"),
    ]
    # Ollama's are only in what its error was raised in place of.
    context = safe_getattr(error.__context__, "response")
    if status is not None and safe_getattr(context, "status_code") == status:
        found.append(safe_getattr(context, "headers"))
    return next(filter(None, map(_pairs, found)), {})


def _body_of(error: BaseException, response: Any) -> Any:
    details = safe_getattr(error, "details")
    for body in (safe_getattr(error, "body"), details):
        if isinstance(body, Mapping) or (isinstance(body, str | list) and body):
            if body is details and isinstance(body, list):  # google-api-core's
                message = safe_getattr(error, "message") or str(error)
                return {"message": message, "details": [_plain(one) for one in body]}
            return body
    raw = safe_getattr(response, "raw")
    if raw is None or safe_getattr(raw, "closed") is True:
        # Read already: requests would read from the socket otherwise.
        content = safe_getattr(response, "content")
        if isinstance(content, bytes) and content:
            return content
    return _object_in(str(error))


def _object_in(text: str) -> Mapping[str, Any] | None:
    """The JSON object, or the `repr` of a dict, with which a text ends."""
    begin = text.find("{")
    body = _parsed(text[begin:]) if begin >= 0 else None
    return body if isinstance(body, Mapping) else None


def _plain(detail: Any) -> Any:
    """A detail of gRPC's, an object of protobuf, as it would be in JSON."""
    if isinstance(detail, Mapping):
        return detail
    plain: dict[str, Any] = {"@type": type(detail).__name__}
    if isinstance(reason := safe_getattr(detail, "reason"), str):
        plain["reason"] = reason
    delay = safe_getattr(detail, "retry_delay")
    seconds, nanos = safe_getattr(delay, "seconds"), safe_getattr(delay, "nanos")
    if isinstance(seconds, int):
        plain["retryDelay"] = f"{seconds + (nanos or 0) / 1e9}s"
    violations = safe_getattr(detail, "violations") or ()
    plain["violations"] = [str(violation) for violation in violations]
    return plain


def _kind_by_class(error: BaseException) -> FailureKind | None:
    found = (kind for cls, kind in _BY_LANGCHAINS_CLASS if isinstance(error, cls))
    return next(found, None)


def _from_class(kind: FailureKind, error: BaseException) -> ErrorReport:
    code = safe_getattr(error, "code")
    says_no = isinstance(error, langchain.ModelError) and not error.is_retryable
    return ErrorReport(
        kind=kind,
        message=f"{type(error).__name__}: {error}".removesuffix(": "),
        code=code if isinstance(code, str) else None,
        body=safe_getattr(error, "body"),
        should_retry=False if says_no and is_retryable(kind) else None,
        may_have_run=is_retryable(kind),
    )


def _read_text(error: BaseException) -> ErrorReport | None:
    """What an exception without any facts says by its text or its arguments."""
    text, argument = str(error), error.args[0] if error.args else None
    body = argument if isinstance(argument, str) else _parsed(argument)
    is_object = isinstance(body, Mapping)
    body = body if is_object else _object_in(text)
    if is_object or (body is not None and text.startswith("{")):
        return read_event({"error": body})  # ChatOpenAI's, and Hugging Face's
    reason = safe_getattr(error, "reason")  # ChatWatsonx's
    for inner in (body, _parsed(reason) if isinstance(reason, str) else None):
        if report := read_event(inner):
            return report
    if isinstance(error, ValueError) and (match := _REPR.search(text)):
        return read_event({"error": {**match.groupdict(), "message": text}})
    if type(error) is ValueError and (match := _CODE_FIRST.match(text)):
        said = {"code": match["code"], "message": text}
        if _is_error(said):
            return read_event({"error": said})
    if isinstance(error, ValidationError):
        is_unreadable = bool(_OF_ANSWERS.search(error.title))
    elif isinstance(error, AttributeError):
        # What is JSON and not the expected object: an event, a choice, a whole answer.
        is_json = isinstance(error.obj, str | int | float | list | dict | None)
        is_unreadable = is_json and error.name is not None
    else:
        is_serializers = type(error).__name__ == "PydanticSerializationError"
        is_unreadable = is_serializers or bool(_NO_ANSWER.search(text))
    return _malformed(error) if is_unreadable else None


def _malformed(error: BaseException) -> ErrorReport:
    what = f"{type(error).__name__}: {error}"
    message = f"the provider's answer could not be read ({what})"
    return ErrorReport(FailureKind.MALFORMED, message)


def safe_getattr(thing: Any, name: str) -> Any:
    """An attribute; None if there is none, or if asking for it raises."""
    with contextlib.suppress(Exception):  # httpx raises RuntimeError for `request`.
        return getattr(thing, name, None)
    return None


# --- Secrets ------------------------------------------------------------------------

_SECRET_HEADER: Final = re.compile(
    r"(?:proxy-)?authorization|.*(?:api|subscription)-key"
)


def _secrets_of(error: BaseException) -> Iterator[str]:
    """What the request of an exception carried that must not be shown."""
    response = safe_getattr(error, "response")
    for request in (
        safe_getattr(error, "request"),
        safe_getattr(error, "request_info"),  # aiohttp's
        safe_getattr(response, "request"),
    ):
        found = [
            str(value).split()[-1]
            for name, value in _pairs(safe_getattr(request, "headers"))
            if _SECRET_HEADER.fullmatch(name.lower()) and value.split()
        ]
        query = str(safe_getattr(request, "url") or "").partition("?")[2]
        found += [
            value
            for name, value in parse_qsl(query)
            if name.lower() in ("key", "api_key", "api-key", "access_token")
        ]
        yield from (secret for secret in found if len(secret) >= SHORTEST_SECRET)
