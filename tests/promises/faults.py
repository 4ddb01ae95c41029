"""What can go wrong between a question and its answer, row by row, and what it means.

The expectations are written down here by hand, from the documents of HTTP, of OpenAI
and of the gateway. Nothing is read out of the package, so that its own tables can be
wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from langchain_core import exceptions as langchain

from langchain_retryrouter import errors
from langchain_retryrouter.testing import (
    Body,
    Cut,
    ErrorEvent,
    ErrorInOk,
    HtmlPage,
    MalformedEvent,
    Status,
    Step,
    Truncate,
)

KEY: Final = "sk-proj-the-0123456789-key-of-all"
"""The key of all models that are asked; servers quote it here and there."""

Family: TypeAlias = Literal["openai", "gptrouter"]
Ways: TypeAlias = Literal["any", "answer", "stream"]


class Meaning(NamedTuple):
    """What a caller is told."""

    ours: type[errors.RetryRouterError]
    langchain: type[langchain.ModelError]
    is_repeated: bool


INVALID = Meaning(
    errors.InvalidRequestError, langchain.ModelInvalidRequestError, is_repeated=False
)
TOO_LONG = Meaning(
    errors.ContextLengthError, langchain.ContextOverflowError, is_repeated=False
)
FILTERED = Meaning(
    errors.ContentFilterError, langchain.ModelInvalidRequestError, is_repeated=False
)
WRONG_KEY = Meaning(
    errors.AuthenticationError, langchain.ModelAuthenticationError, is_repeated=False
)
FORBIDDEN = Meaning(
    errors.PermissionDeniedError,
    langchain.ModelPermissionDeniedError,
    is_repeated=False,
)
UNKNOWN = Meaning(errors.NotFoundError, langchain.ModelNotFoundError, is_repeated=False)
NO_MONEY = Meaning(
    errors.QuotaExceededError, langchain.ModelRateLimitError, is_repeated=False
)
TOO_MANY = Meaning(
    errors.RateLimitError, langchain.ModelRateLimitError, is_repeated=True
)
FAILED = Meaning(errors.ServerError, langchain.ModelAPIError, is_repeated=True)
BUSY = Meaning(errors.UnavailableError, langchain.ModelAPIError, is_repeated=True)
CONFLICT = Meaning(errors.ConflictError, langchain.ModelAPIError, is_repeated=True)
NO_ANSWER = Meaning(
    errors.MalformedResponseError, langchain.ModelAPIError, is_repeated=True
)
TOO_LATE = Meaning(
    errors.APITimeoutError, langchain.ModelTimeoutError, is_repeated=True
)
LOST = Meaning(
    errors.APIConnectionError, langchain.ModelConnectionError, is_repeated=True
)
CUT_OFF = Meaning(
    errors.StreamInterruptedError, langchain.ModelConnectionError, is_repeated=True
)


@dataclass(frozen=True)
class Fault:
    """One row.

    Attributes:
        name: What it is called in a failure.
        step: What the server does; None where there is none (`Nowhere`).
        meaning: What a caller is told.
        facts: Attributes of the error.
        is_repeated: Where headers say otherwise than the meaning.
        ways: Whether it can happen to whole answers, to streams, or to both.
        timeout: Seconds of silence that the model allows; None for plenty.
        or_else: Where HTTP libraries differ in whether they see what is wrong.
    """

    name: str
    step: Step
    meaning: Meaning
    facts: dict[str, Any] = field(default_factory=dict)
    is_repeated: bool | None = None
    ways: Ways = "any"
    timeout: float | None = None
    or_else: Meaning | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is a status with a body that says no more."""
        return self.name.partition(", ")[2] in BODIES and not self.name.startswith(
            "200"
        )

    @property
    def may_be_read(self) -> bool:
        """Whether it may be taken for a document that came in place of a stream."""
        return self.name.startswith("20") or self.or_else is not None

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed a second time."""
        own = self.is_repeated
        return self.meaning.is_repeated if own is None else own

    def __str__(self) -> str:
        """Its name, in a failure."""
        return self.name[:100]


# --- every status with every body that adds nothing to it ---

STATUSES: Final = (
    # Redirects are not followed: the key would go to whoever is named there.
    (300, INVALID),
    (301, INVALID),
    (302, INVALID),
    (303, INVALID),
    (307, INVALID),
    (308, INVALID),
    (400, INVALID),
    (401, WRONG_KEY),
    (402, NO_MONEY),
    (403, FORBIDDEN),
    (404, UNKNOWN),
    (405, INVALID),
    (407, INVALID),
    (408, TOO_LATE),
    (409, CONFLICT),
    (410, UNKNOWN),
    (411, INVALID),
    (412, INVALID),
    (413, INVALID),
    (414, INVALID),
    (415, INVALID),
    (417, INVALID),
    (418, INVALID),
    (421, INVALID),
    (422, INVALID),
    (423, INVALID),
    (424, INVALID),
    (425, BUSY),
    (426, INVALID),
    (428, INVALID),
    (429, TOO_MANY),
    (431, INVALID),
    (451, INVALID),
    (499, INVALID),
    (500, FAILED),
    (501, INVALID),
    (502, FAILED),
    (503, BUSY),
    (504, TOO_LATE),
    (505, INVALID),
    (507, FAILED),
    (508, FAILED),
    (511, FAILED),
    (520, FAILED),
    (522, FAILED),
    (524, FAILED),
    (529, BUSY),
    (530, FAILED),
    (599, FAILED),
)
NOT_ACCEPTABLE: Final = {"openai": INVALID, "gptrouter": BUSY}
"""A 406 is how the gateway's SDK is told that no model of the list is available."""

_JSON: Final = "application/json"
_SENTENCE: Final = "No luck today."
_PAGE: Final = f"<!doctype html><title>Oh</title><h1>{_SENTENCE}</h1><p>nginx</p>"


def _json(data: Any) -> tuple[str, bytes]:
    return _JSON, json.dumps(data).encode()


BODIES: Final[dict[str, tuple[str, bytes]]] = {
    "OpenAI's": _json(
        {"error": {"message": _SENTENCE, "type": "x", "param": None, "code": None}}
    ),
    "a text as error": _json({"error": _SENTENCE}),
    "a list as error": _json({"error": [_SENTENCE, 7]}),
    "null as error": _json({"error": None}),
    "a number as code": _json({"error": {"message": _SENTENCE, "code": 12}}),
    "a word as code": _json({"error": {"message": _SENTENCE, "code": "oh_no"}}),
    "an object as code": _json({"error": {"message": {"a": 1}, "code": {"b": 2}}}),
    "no error": _json({"status": "sad"}),
    "the gateway's": _json({"message": _SENTENCE, "statusCode": 7}),
    "FastAPI's": _json({"detail": [{"loc": ["body"], "msg": _SENTENCE}]}),
    "nested": _json({"error": {"error": {"error": {"message": _SENTENCE}}}}),
    "a list": _json([{"error": {"message": _SENTENCE}}]),
    "a text": _json(_SENTENCE),
    "null": _json(None),
    "too deep": (_JSON, b"[" * 5_000 + b"]" * 5_000),
    "truncated": (_JSON, b'{"error": {"message": "No lu'),
    "empty": (_JSON, b""),
    "a page": ("text/html; charset=utf-8", _PAGE.encode()),
    "plain text": ("text/plain", _SENTENCE.encode()),
    "Latin-1": ("text/plain; charset=iso-8859-1", "Kein Glück.".encode("latin-1")),
    "Latin-1 as JSON": (_JSON, '{"error": "Kein Glück."}'.encode("latin-1")),
    "no type at all": ("", b"\x00\xff\xfe\x80"),
}


def plain_status(family: Family) -> Iterator[Fault]:
    """Every status with every body: what a body leaves open, the status decides."""
    for status, meaning in (*STATUSES, (406, NOT_ACCEPTABLE[family])):
        for body, (kind, content) in BODIES.items():
            headers = {"content-type": kind} if kind else {}
            step = Body(status, headers, content)
            yield Fault(f"{status}, {body}", step, meaning, {"status_code": status})


# --- a status whose body says more ---


def said(status: int, meaning: Meaning, body: Any, **facts: Any) -> Fault:
    """A status with this body, as JSON or as text."""
    shown = body if isinstance(body, str) else json.dumps(body)
    step = Status(status, body=body)
    return Fault(f"{status} {shown}", step, meaning, {"status_code": status, **facts})


def coded(status: int, code: str, meaning: Meaning) -> Fault:
    """A status with a code in OpenAI's form."""
    body = {"error": {"message": _SENTENCE, "type": "x", "param": None, "code": code}}
    return said(status, meaning, body, code=code)


def worded(status: int, message: str, meaning: Meaning) -> Fault:
    """A status with nothing but a sentence, in OpenAI's form."""
    return said(status, meaning, {"error": {"message": message}})


_CONTEXT: Final = "This model's maximum context length is 8192 tokens. You asked for 9."
_QUOTA: Final = "You exceeded your current quota, please check your plan."
SHARPENED: Final = (
    coded(400, "context_length_exceeded", TOO_LONG),
    coded(400, "string_above_max_length", TOO_LONG),
    coded(413, "context_length_exceeded", TOO_LONG),
    coded(422, "context_length_exceeded", TOO_LONG),
    coded(400, "content_filter", FILTERED),
    coded(400, "content_policy_violation", FILTERED),
    coded(403, "content_filter", FILTERED),
    coded(422, "content_filter", FILTERED),
    coded(400, "model_not_found", UNKNOWN),
    coded(403, "model_not_found", UNKNOWN),
    coded(404, "model_not_found", UNKNOWN),
    coded(400, "invalid_api_key", WRONG_KEY),
    coded(401, "invalid_api_key", WRONG_KEY),
    coded(403, "invalid_api_key", WRONG_KEY),
    coded(429, "insufficient_quota", NO_MONEY),
    coded(429, "billing_hard_limit_reached", NO_MONEY),
    coded(429, "billing_not_active", NO_MONEY),
    coded(403, "insufficient_quota", NO_MONEY),
    coded(400, "billing_hard_limit_reached", NO_MONEY),
    coded(429, "rate_limit_exceeded", TOO_MANY),
    # A code does not overrule what its status says for certain.
    coded(401, "context_length_exceeded", WRONG_KEY),
    coded(404, "insufficient_quota", UNKNOWN),
    coded(400, "rate_limit_exceeded", INVALID),
    coded(400, "server_error", INVALID),
    coded(429, "context_length_exceeded", TOO_MANY),
    coded(500, "context_length_exceeded", FAILED),
    coded(503, "insufficient_quota", BUSY),
    worded(400, _CONTEXT, TOO_LONG),
    worded(413, _CONTEXT, TOO_LONG),
    worded(400, "prompt is too long: 215000 tokens > 200000 maximum", TOO_LONG),
    worded(400, "Your input exceeds the context window of this model.", TOO_LONG),
    worded(400, "Input tokens exceed the configured limit of 272000.", TOO_LONG),
    worded(400, "The response was filtered: content management policy.", FILTERED),
    worded(400, "Output blocked by content filtering policy", FILTERED),
    worded(400, "Your credit balance is too low to access the API.", NO_MONEY),
    worded(429, _QUOTA, NO_MONEY),
    worded(400, "/chat/completions: Invalid model name passed in model=x", UNKNOWN),
    said(403, FORBIDDEN, "x" * 170 + f" Bearer {KEY}"),
    worded(429, _CONTEXT, TOO_MANY),
    worded(500, _CONTEXT, FAILED),
    said(400, TOO_LONG, {"error": _CONTEXT}),
    said(429, NO_MONEY, {"error": _QUOTA}),
    said(400, TOO_LONG, {"message": _CONTEXT}),
    said(429, NO_MONEY, {"message": _QUOTA}),
    said(400, TOO_LONG, _CONTEXT),
    said(429, NO_MONEY, f"<html><body>{_QUOTA}</body></html>"),
    # Who quotes the key.
    said(401, WRONG_KEY, {"error": {"message": f"Incorrect API key: {KEY}."}}),
    said(401, WRONG_KEY, {"error": {"message": "No.", "seen": [{"key": KEY}]}}),
    said(401, WRONG_KEY, {"message": f"The key {KEY} is not known", "key": KEY}),
    said(403, FORBIDDEN, f"<html><body>Bearer {KEY} may not.</body></html>"),
    said(500, FAILED, {"error": f"headers: Bearer {KEY}"}),
)


# --- what the headers say ---


def advised(
    status: int,
    meaning: Meaning,
    header: tuple[str, str],
    retry_after: float | None,
    *,
    is_repeated: bool | None = None,
) -> Fault:
    """A status with a header that says when to come back, or whether to."""
    name = f"{status}, {': '.join(header)}"
    facts = {"status_code": status, "retry_after": retry_after}
    step = Status(status, (header, ("date", "Fri, 15 Jan 2027 08:00:00 GMT")))
    return Fault(name, step, meaning, facts, is_repeated)


ADVISED: Final = (
    advised(429, TOO_MANY, ("retry-after", "7"), 7.0),
    advised(429, TOO_MANY, ("Retry-After", "0"), 0.0),
    advised(429, TOO_MANY, ("retry-after", "1.5"), 1.5),
    advised(429, TOO_MANY, ("retry-after-ms", "250"), 0.25),
    advised(429, TOO_MANY, ("retry-after", "Fri, 15 Jan 2027 08:00:30 GMT"), 30.0),
    advised(429, TOO_MANY, ("retry-after", "Fri, 15 Jan 2027 07:00:00 GMT"), 0.0),
    advised(503, BUSY, ("retry-after", "3"), 3.0),
    advised(500, FAILED, ("retry-after", "3"), 3.0),
    advised(408, TOO_LATE, ("retry-after", "3"), 3.0),
    advised(409, CONFLICT, ("retry-after", "3"), 3.0),
    advised(400, INVALID, ("retry-after", "3"), 3.0),
    *(
        advised(429, TOO_MANY, ("retry-after", nonsense), None)
        for nonsense in ("soon", "-5", "nan", "inf", "1e9", "0x10", "7 s", "")
    ),
    # Longer than a call is willing to wait (60 s).
    advised(429, TOO_MANY, ("retry-after", "61"), 61.0, is_repeated=False),
    advised(429, TOO_MANY, ("retry-after", "86400"), 86400.0, is_repeated=False),
    advised(503, BUSY, ("retry-after", "3600"), 3600.0, is_repeated=False),
    advised(
        429,
        TOO_MANY,
        ("retry-after", "Sat, 16 Jan 2027 08:00:00 GMT"),
        86400.0,
        is_repeated=False,
    ),
    advised(500, FAILED, ("x-should-retry", "false"), None, is_repeated=False),
    advised(429, TOO_MANY, ("x-should-retry", "false"), None, is_repeated=False),
    advised(503, BUSY, ("x-should-retry", "true"), None),
    advised(400, INVALID, ("x-should-retry", "true"), None),
    advised(401, WRONG_KEY, ("x-should-retry", "true"), None),
)


# --- a 200 that is no answer ---

NO_ANSWERS: Final = (
    *(
        Fault(f"200, {name}", Body(200, {"content-type": kind}, content), NO_ANSWER)
        for name, (kind, content) in BODIES.items()
        if name in {"truncated", "empty", "a page", "plain text", "Latin-1", "null"}
        or name in {"no error", "a list", "a text", "no type at all", "too deep"}
    ),
    Fault("200, {}", Body(200, {"content-type": _JSON}, b"{}"), NO_ANSWER),
    Fault("200, choices: null", Status(200, body={"choices": None}), NO_ANSWER),
    Fault("200, HtmlPage", HtmlPage(200), NO_ANSWER),
    Fault("204", Body(204), NO_ANSWER),
    Fault("half a document", Truncate(0), NO_ANSWER, ways="answer"),
)
BROKEN_STREAMS: Final = (
    Fault("cut before a token: FIN", Cut(0), LOST, ways="stream"),
    Fault("cut before a token: RST", Cut(0, "rst"), LOST, ways="stream"),
    Fault("an event that is no JSON", MalformedEvent(1), NO_ANSWER, ways="stream"),
)


def reported(
    message: str, meaning: Meaning, status: int | None = None, code: str | None = None
) -> Fault:
    """An error that is an event of a stream, before its first token."""
    step = ErrorEvent(message, status=status, code=code)
    return Fault(f"event: {message}, {status}, {code}", step, meaning, ways="stream")


ONLY_OPENAI: Final = (
    reported("Rate limit reached.", TOO_MANY, 429),
    reported("Out of money.", NO_MONEY, 429, "insufficient_quota"),
    reported("Too long.", TOO_LONG, 400, "context_length_exceeded"),
    reported("You asked for the impossible.", INVALID, 400),
    reported("The server had an error.", FAILED, 500),
    reported(f"Wrong key {KEY}.", WRONG_KEY, 401, "invalid_api_key"),
    Fault("200, an error in it", ErrorInOk("The engine is overloaded."), FAILED),
    Fault(
        "200, no money in it", ErrorInOk("None.", code="insufficient_quota"), NO_MONEY
    ),
    *(
        Fault(f"200, {error}", Status(200, body={"error": error}), meaning)
        for error, meaning in (
            ({"message": _SENTENCE, "code": "400"}, INVALID),
            ({"message": _SENTENCE, "code": 400}, INVALID),
            ({"message": _SENTENCE, "code": 503}, BUSY),
            ({"message": _CONTEXT, "type": "invalid_request_error"}, TOO_LONG),
        )
    ),
)
ONLY_GPTROUTER: Final = (
    reported("Request timed out.", TOO_LATE),
    reported("Connection error.", LOST),
    reported("Premature close", CUT_OFF),
    reported("read ECONNRESET", CUT_OFF),
    reported("terminated", CUT_OFF),
    reported("Provider with name x does not exist", UNKNOWN),
    reported("Model with name x does not exist", UNKNOWN),
    reported("No models available", BUSY),
    reported('[{"path": "/messages", "message": "Expected array"}]', INVALID),
    reported("429 Rate limit reached for requests", TOO_MANY),
    reported(f"429 {_QUOTA}", NO_MONEY),
    reported("500 The server had an error", FAILED),
    reported("503 Overloaded", BUSY),
    reported("401 Incorrect API key provided", WRONG_KEY),
    reported(f"400 {_CONTEXT}", TOO_LONG),
    reported(f"401 Incorrect API key provided: {KEY}", WRONG_KEY),
    reported("Something else", FAILED),
    said(500, FAILED, {"error": "Something went wrong"}),
    said(401, WRONG_KEY, {"error": "Unauthorized"}),
    said(404, UNKNOWN, {"message": "Model with name x does not exist"}),
    said(429, TOO_MANY, {"message": "Rate limit exceeded, retry in 1 minute"}),
)


def answered(family: Family) -> Iterable[Fault]:
    """All rows in which a server answers with HTTP, as far as it gets."""
    own = ONLY_OPENAI if family == "openai" else ONLY_GPTROUTER
    yield from plain_status(family)
    yield from (*SHARPENED, *ADVISED, *NO_ANSWERS, *BROKEN_STREAMS, *own)
