"""Kinds of failures, and what follows each of them.

`classify` maps an HTTP status, an error code and a message to a `FailureKind`;
`FAILURE_ACTIONS` maps the kind to what a `RetryRouter` does next. The readers of real
responses and exceptions are in `_providers/errors.py`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Final


class FailureKind(StrEnum):
    """What a failure means, whichever provider reported it; see `error.kind`."""

    RATE_LIMIT = "rate_limit"
    """Too many requests; passes, mostly within seconds."""
    QUOTA = "quota"
    """The quota or the money is used up; waiting does not help."""
    UNAVAILABLE = "unavailable"
    """Overloaded or down for now."""
    SERVER_ERROR = "server_error"
    """The provider failed."""
    CONFLICT = "conflict"
    """Another request was in the way."""
    TIMEOUT = "timeout"
    """No response in time."""
    CONNECTION = "connection"
    """No connection, or a lost one."""
    INTERRUPTED = "interrupted"
    """An answer that stopped before its end."""
    MALFORMED = "malformed"
    """A response that is not an answer, such as an HTML page."""
    REJECTED = "rejected"
    """An answer that does not fit its schema, or that `accept` rejected."""
    LENGTH = "length"
    """An answer that a token limit cut; a failure only if `failover_on` names it."""
    INVALID_REQUEST = "invalid_request"
    """The provider refused the request as wrong."""
    AUTHENTICATION = "authentication"
    """A missing or wrong key."""
    PERMISSION = "permission"
    """The key may not do this."""
    NOT_FOUND = "not_found"
    """No such model or endpoint."""
    CONTEXT_OVERFLOW = "context_overflow"
    """More tokens than the model's context holds."""
    CONTENT_FILTER = "content_filter"
    """A content filter refused the prompt or the answer."""
    CIRCUIT_OPEN = "circuit_open"
    """The circuit breaker refused the call; nothing was sent."""
    SPEND_LIMIT = "spend_limit"
    """There is no money for an attempt: `max_cost`, or a `SpendLimit`."""
    UNKNOWN = "unknown"
    """An exception that is not recognised as a provider's error."""


class FailureAction(StrEnum):
    """What a `RetryRouter` does after a failure."""

    RETRY = "retry"
    """Ask the same route again after a wait; the next one when its retries are used."""
    FAILOVER = "failover"
    """Ask the next route at once."""
    RAISE = "raise"
    """Raise the error."""


FAILURE_ACTIONS: Final[Mapping[FailureKind, FailureAction]] = {
    # Most real 4xx concern one route: its key, quota, region, model, limits, context or
    # parameters. Another attempt on the same route would take as long, or be cut by the
    # same limit, again.
    **dict.fromkeys(FailureKind, FailureAction.FAILOVER),
    FailureKind.RATE_LIMIT: FailureAction.RETRY,
    FailureKind.UNAVAILABLE: FailureAction.RETRY,
    FailureKind.SERVER_ERROR: FailureAction.RETRY,
    FailureKind.CONFLICT: FailureAction.RETRY,
    FailureKind.CONNECTION: FailureAction.RETRY,
    FailureKind.INTERRUPTED: FailureAction.RETRY,
    FailureKind.MALFORMED: FailureAction.RETRY,
    FailureKind.REJECTED: FailureAction.RETRY,
    # A refusal is an answer, and not to be routed around.
    FailureKind.CONTENT_FILTER: FailureAction.RAISE,
}
"""The action for each kind, while there are retries, time and routes left."""

# What passes by itself. At a timeout a router fails over, and a single model retries.
_RETRYABLE: Final = frozenset(
    kind
    for kind, action in FAILURE_ACTIONS.items()
    if action is FailureAction.RETRY or kind is FailureKind.TIMEOUT
)

ROUTES_OWN: Final = frozenset(
    {
        FailureKind.AUTHENTICATION,
        FailureKind.PERMISSION,
        FailureKind.NOT_FOUND,
        FailureKind.QUOTA,
        FailureKind.CONTEXT_OVERFLOW,
        FailureKind.UNKNOWN,
    }
)
"""What is final on its route, and says nothing about other routes."""

_BY_STATUS: Final = {
    401: FailureKind.AUTHENTICATION,
    402: FailureKind.QUOTA,
    403: FailureKind.PERMISSION,
    404: FailureKind.NOT_FOUND,
    408: FailureKind.TIMEOUT,
    409: FailureKind.CONFLICT,
    410: FailureKind.NOT_FOUND,
    424: FailureKind.UNAVAILABLE,  # Azure's and Amazon's, of a model that failed.
    425: FailureKind.UNAVAILABLE,
    429: FailureKind.RATE_LIMIT,
    446: FailureKind.CONTENT_FILTER,  # Guardrails of Portkey and WSO2.
    498: FailureKind.UNAVAILABLE,  # Groq's, of a tier without capacity.
    499: FailureKind.UNAVAILABLE,  # Google's CANCELLED.
    # 501 and 505 say that the server will never do it.
    501: FailureKind.INVALID_REQUEST,
    503: FailureKind.UNAVAILABLE,
    504: FailureKind.TIMEOUT,
    505: FailureKind.INVALID_REQUEST,
    524: FailureKind.TIMEOUT,  # Cloudflare's, of an origin that did not answer.
    529: FailureKind.UNAVAILABLE,
}
_BY_HUNDREDS: Final = {
    # A redirect is never followed, since it would take the key to another host: it says
    # that the address is wrong, and will be next time.
    3: FailureKind.INVALID_REQUEST,
    4: FailureKind.INVALID_REQUEST,
    5: FailureKind.SERVER_ERROR,
}

# What a code or a sentence may say more exactly than the status.
_SHARPENED: Final[Mapping[int, frozenset[FailureKind]]] = {
    # Never a server error.
    **dict.fromkeys(
        (400, 403, 412, 413, 422, 451),
        frozenset(FailureKind) - _RETRYABLE | {FailureKind.MALFORMED},
    ),
    401: frozenset({FailureKind.QUOTA}),
    424: frozenset({FailureKind.CONTENT_FILTER}),  # Cloudflare's AI Gateway.
    429: frozenset({FailureKind.QUOTA, FailureKind.RATE_LIMIT}),
    500: frozenset({FailureKind.CONTEXT_OVERFLOW}),  # Ollama's.
}

# Codes that say something else than their words.
_BY_CODE: Final = {
    "string_above_max_length": FailureKind.CONTEXT_OVERFLOW,
    "invalid_prompt": FailureKind.CONTENT_FILTER,
    "data_inspection_failed": FailureKind.CONTENT_FILTER,
    "rate_limit_exceeded": FailureKind.RATE_LIMIT,
    "server_error": FailureKind.SERVER_ERROR,
    # Groq's 400s, of a model that wrote no valid JSON.
    "tool_use_failed": FailureKind.MALFORMED,
    "json_validate_failed": FailureKind.MALFORMED,
}

_CONTEXT: Final = r"(?:context|model) ?(?:length|window|size|limit)"
_STOPPED: Final = (
    r"(?:block|interven|violat|reject|trigger|tripwire|fail|denied (?:by|the)|detect"
    r"|refus|stopp|filter|flagg|unsafe|harmful|not (?:pass|allow|permit))"
)
# What providers write, in lower case; a code is read as words, so that
# `model_not_found` is "model not found". Each alternative is one or several wordings
# that tests/unit_tests/data/provider_answers.json shows. The first match counts.
_BY_WORDS: Final = (
    (
        FailureKind.CONTEXT_OVERFLOW,
        (
            rf"{_CONTEXT}.{{0,60}}(?:exceed|overflow|too (?:long|large)|maximum)",
            rf"(?:exceed|overflow|longer than|maximum).{{0,60}}{_CONTEXT}",
            r"context the overflows|prompt 超长",
            r"(?:prompt|inputs?|messages?) (?:is|are) too (?:long|large)",
            r"too (?:long|large) for .{0,80}\bmodel\b",
            r"\brequest too large for\b",
            r"max(?:imum)? (?:prompt|input) length",
            r"(?:prompt|input|messages?) exceeds? (?:the )?max(?:imum)? length",
            r"tokens? count.{0,30}only supports",
            r"(?:input|prompt|total).{0,40}tokens?\b.{0,40}exceed",
            r"exceed.{0,40}(?:number of tokens|model token limit)",
            r"too many (?:input )?tokens:",
            r"must have less than \d+ tokens",
            r"max.new.tokens` must be <=",
            r"reduce (?:the length of|your) (?:the )?(?:message|prompt|input)",
            r"range of input length",
        ),
    ),
    (
        FailureKind.CONTENT_FILTER,
        (
            r"content ?(?:management |filtering |exists )?(?:polic|filter|risk)",
            r"policy ?violation|usage (?:guideline|polic)",
            r"safety system",
            r"(?:input|prompt|request|message|content).{0,60}\bflagged",
            r"(?:inappropriate|unsafe|sensitive|harmful|nsfw)(?: or \w+)? content",
            r"sensitive information|\b(?:in|out)put (?:new )?sensitive|敏感内容",
            r"requires moderation|(?:by|violat\w*.{0,40}) moderation|model armor",
            r"violat\w*.{0,40}(?:polic|guideline)|\bcensor",
            r"(?:prompt|response|output) (?:was |is )?blocked",
            r"审核不通过|违禁|违规|inhaltsrichtlinie|コンテンツポリシー",
            rf"{_STOPPED}.{{0,80}}\bguardrail|\bguardrail.{{0,80}}{_STOPPED}",
        ),
    ),
    (
        FailureKind.QUOTA,
        (
            r"exceeded (?:your )?current quota|\bfree (?:\w+ )?quota",
            r"(?:insufficient|not enough) (?:quota|balance|credit|fund)",
            r"balance.{0,30}insufficient|overdue|余额不足|欠费",
            r"key limit exceeded \(",
            # What is given once, or for a day or longer, and is used up.
            r"(?:credit|balance).{0,30}(?:too low|exhausted|depleted|\$0)",
            r"(?:credits|trial|free tier).{0,30}(?:exhausted|used up|expired)",
            r"(?:out of|any|enough|used (?:all|up)|depleted)(?: \w+){0,4} credits",
            r"used up(?: \w+){0,4} (?:allocation|allowance)",
            r"(?:spend(?:ing)?|usage|credit) (?:limit|quota)",
            r"\bbilling\b",
            r"payment (?:required|method)",
            r"quota reached|budget (?:has been )?exceeded|arrearage|good standing",
            r"(?:per|/)[ -]?(?:day|week|month|24 ?h)|\b[rt]pd\b",
            r"\b(?:daily|weekly|monthly|today's) .{0,30}(?:limit|quota|allo[cw])",
        ),
    ),
    (
        FailureKind.AUTHENTICATION,
        (
            r"api[ -]?key.{0,30}(?:not valid|invalid|expired|incorrect|missing)",
            r"api[ -]?key not found|security token.{0,30}(?:invalid|expired)",
            r"(?:invalid|incorrect|expired|missing|no) (?:api[ -]?key|auth)",
            r"(?:invalid|incorrect|expired|missing|no) credentials",
            r"authentication (?:failed|fails)",
        ),
    ),
    (
        FailureKind.PERMISSION,
        (
            r"(?:location|country|region).{0,30}not (?:supported|available)",
            r"unsupported country",
        ),
    ),
    (
        FailureKind.NOT_FOUND,
        (
            r"\bmodel.{0,100}?\b(?:not exist|not found|no longer|decommissioned)",
            r"\bmodel.{0,100}?\b(?:been|is|was) (?:deprecated|retired|removed)",
            r"\bmodel (?:`[^`]+` |'[^']+' )?(?:is )?not (?:supported|available)",
            r"(?:invalid|unknown|unsupported|no such) model(?: name| id|:|$)",
            r"not a valid model|model identifier is invalid",
            r"unavailable model|模型不存在",
        ),
    ),
    # An error without a status, as inside a stream, may be one that passes.
    (FailureKind.RATE_LIMIT, (r"rate limit|too many requests|throttl",)),
    (
        FailureKind.UNAVAILABLE,
        (r"overloaded|capacity|is busy|slow down|loading",),
    ),
)
_SHORT_WINDOW: Final = r"(?:per|/) ?(?:sec(?:ond)?|min(?:ute)?|hour)\b|\d (?:rpm|tpm)\b"
# What a sentence only quotes: names that the caller chose, such as a function's or a
# schema's, paths of fields, what was sent, and addresses.
_QUOTED: Final = (
    r"\b((?:function|tool|schema|response_format|named?|title|field|propert(?:y|ies)"
    r"|param(?:eter)?|argument|model|class|object|for|at) )(['\"`])[^\s'\"`]+\2"
    r"|\b\w+(?:\[[^\]\s]{0,80}\])?(?:\.(?!\w+(?:error|exception)\b)[\w\[\]]+){2,}(?!\w)"
    r"|(?<=\w)\[[^\]\s]{1,80}\]|\binput_value=[^\n]*|https?://[^\s'\"<>\\]+"
    # What a validator shows of the request: all of it, with the prompt.
    r"|['\"]input['\"]: [^\n]*|\binput: [\[{][^\n]*|\bon instance:[\s\S]*"
    r"|['\"](?:messages|role)['\"]: ?[\[\"'][^\n]*|\binvalid value: '[^'\n]*'"
)
# The filter itself is in trouble, or what is refused is an account, a setting or a name
# and not what was said: another route may answer.
_NOT_WHAT_WAS_SAID: Final = (
    r"\baccount.{0,60}(?:suspend|flagg|restrict|disabl|block|bann|terminat|pattern)"
    r"|\b(?:fair|acceptable) usage|\bby your organi[sz]ation|\bnot found\b"
    r"|\b(?:unknown|unrecogni[sz]ed|unsupported|unexpected|extra) (?:request )?"
    r"(?:param|arg|field|propert|key|option|inputs? |tool|function)"
    r"|\bnot (?:configured|enabled|supported)\b"
    r"|connection (?:refused|reset|error)|\btimed? ?out"
    r"|\bfailed to (?:appl|connect|evaluat|execut|initiali|load|reach|respond|run)"
    r"|\b(?:org(?:ani[sz]ation)?|network|security|access|iam|quota|routing|egress)"
    r" polic(?:y|ies)"
)
# A limit of the answer's length, and not of what it answers: Amazon's, and Groq's.
_OF_THE_OUTPUT: Final = (
    r"maximum tokens you requested|\bmax (?:completion |output )?tokens\W? must be"
)
_LONGEST_TEXT: Final = 10_000


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed attempt: the facts of a `RetryRouterError`, for decisions."""

    kind: FailureKind
    status_code: int | None = None
    retry_after: float | None = None
    should_retry: bool | None = None
    may_have_run: bool = True

    @property
    def is_retryable(self) -> bool:
        """Whether the same request on the same route may succeed later."""
        # `x-should-retry: true` cannot make a wrong request right.
        return is_retryable(self.kind) and self.should_retry is not False


@functools.cache
def _patterns() -> tuple[tuple[FailureKind, re.Pattern[str]], ...]:
    """`_BY_WORDS`, compiled at the first failure, and not when all is imported."""
    return tuple((kind, re.compile("|".join(words))) for kind, words in _BY_WORDS)


def is_retryable(kind: FailureKind) -> bool:
    """Whether another attempt on the same route may succeed after such a failure."""
    return kind in _RETRYABLE


def classify(
    status_code: int | None, code: str | None = None, message: str = ""
) -> FailureKind:
    """The meaning of an HTTP status, sharpened by what the body says.

    There is no status for an error inside a stream. The provider's sentence is read
    where its code, such as `insufficient_quota`, says nothing that is known.
    """
    code = code or ""
    message = re.sub(_QUOTED, r"\1\2…\2", message[:_LONGEST_TEXT].lower())
    for kind in _kinds_said(status_code, code, message):
        if status_code is None or kind in _SHARPENED.get(status_code, ()):
            return kind
    if status_code is None:
        return FailureKind.SERVER_ERROR
    # A status that is not an HTTP error, such as an unexpected 2xx, has no answer.
    by_hundreds = _BY_HUNDREDS.get(status_code // 100, FailureKind.MALFORMED)
    return _BY_STATUS.get(status_code, by_hundreds)


def _kinds_said(
    status_code: int | None, code: str, message: str
) -> Iterator[FailureKind]:
    """What a code and a sentence mean, the most exact first."""
    if code.lower() in _BY_CODE:
        yield _BY_CODE[code.lower()]
    code = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", code).lower()
    # Of a key without money a 401 says so by its code.
    for text in (code,) if status_code == HTTPStatus.UNAUTHORIZED else (code, message):
        words = text.replace("_", " ")
        for kind, pattern in _patterns():
            if kind is FailureKind.QUOTA and re.search(_SHORT_WINDOW, words):
                continue  # A limit per minute passes, whatever the sentence calls it.
            if status_code is not None and is_retryable(kind):
                continue
            if kind is FailureKind.CONTEXT_OVERFLOW and re.search(
                _OF_THE_OUTPUT, words
            ):
                continue
            if kind is FailureKind.CONTENT_FILTER and re.search(
                _NOT_WHAT_WAS_SAID, words
            ):
                continue
            if pattern.search(words):
                yield kind
