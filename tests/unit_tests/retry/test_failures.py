"""What a status, a code, a sentence mean, and which failures are worth repeating."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_retryrouter.failures import (
    Failure,
    FailureKind,
    classify,
    is_retryable,
    is_routes_own,
)

K = FailureKind

# Every status the table knows by name, and at least one beside each of its edges.
STATUSES = {
    0: K.MALFORMED,
    100: K.MALFORMED,
    200: K.MALFORMED,
    204: K.MALFORMED,
    299: K.MALFORMED,
    300: K.INVALID_REQUEST,
    301: K.INVALID_REQUEST,
    307: K.INVALID_REQUEST,
    399: K.INVALID_REQUEST,
    400: K.INVALID_REQUEST,
    401: K.AUTHENTICATION,
    402: K.QUOTA,
    403: K.PERMISSION,
    404: K.NOT_FOUND,
    405: K.INVALID_REQUEST,
    407: K.INVALID_REQUEST,
    408: K.TIMEOUT,
    409: K.CONFLICT,
    410: K.NOT_FOUND,
    413: K.INVALID_REQUEST,
    418: K.INVALID_REQUEST,
    422: K.INVALID_REQUEST,
    424: K.UNAVAILABLE,
    425: K.UNAVAILABLE,
    426: K.INVALID_REQUEST,
    429: K.RATE_LIMIT,
    431: K.INVALID_REQUEST,
    498: K.UNAVAILABLE,
    499: K.UNAVAILABLE,
    500: K.SERVER_ERROR,
    501: K.INVALID_REQUEST,
    502: K.SERVER_ERROR,
    503: K.UNAVAILABLE,
    504: K.TIMEOUT,
    505: K.INVALID_REQUEST,
    507: K.SERVER_ERROR,
    520: K.SERVER_ERROR,
    524: K.TIMEOUT,
    529: K.UNAVAILABLE,
    599: K.SERVER_ERROR,
    600: K.MALFORMED,
    999: K.MALFORMED,
    -1: K.MALFORMED,
}

# What retries nothing, retries something: the one list of it outside the code.
RETRYABLE = {
    K.RATE_LIMIT: True,
    K.QUOTA: False,
    K.UNAVAILABLE: True,
    K.SERVER_ERROR: True,
    K.CONFLICT: True,
    K.TIMEOUT: True,
    K.CONNECTION: True,
    K.INTERRUPTED: True,
    K.MALFORMED: True,
    K.INVALID_REQUEST: False,
    K.AUTHENTICATION: False,
    K.PERMISSION: False,
    K.NOT_FOUND: False,
    K.CONTEXT_OVERFLOW: False,
    K.CONTENT_FILTER: False,
    K.CIRCUIT_OPEN: False,
    K.UNKNOWN: False,
}

CODES = {
    "insufficient_quota": K.QUOTA,
    "billing_hard_limit_reached": K.QUOTA,
    "billing_not_active": K.QUOTA,
    "context_length_exceeded": K.CONTEXT_OVERFLOW,
    "string_above_max_length": K.CONTEXT_OVERFLOW,
    "content_filter": K.CONTENT_FILTER,
    "content_policy_violation": K.CONTENT_FILTER,
    "invalid_api_key": K.AUTHENTICATION,
    "model_not_found": K.NOT_FOUND,
    "rate_limit_exceeded": K.RATE_LIMIT,
    "server_error": K.SERVER_ERROR,
}

PHRASES = {
    "This model's maximum context length is 8192 tokens.": K.CONTEXT_OVERFLOW,
    "Your input exceeds the context window of this model.": K.CONTEXT_OVERFLOW,
    "Input tokens exceed the configured limit of 272000 tokens.": K.CONTEXT_OVERFLOW,
    "prompt is too long: 215000 tokens > 200000 maximum": K.CONTEXT_OVERFLOW,
    "litellm.ContextWindowExceededError: bad request": K.CONTEXT_OVERFLOW,
    "input length and `max_tokens` exceed context limit: 178959 + 64000 > 200000": (
        K.CONTEXT_OVERFLOW
    ),
    "ValidationException: Input is too long for requested model.": K.CONTEXT_OVERFLOW,
    "The input token count (3475108) exceeds the maximum number of tokens allowed": (
        K.CONTEXT_OVERFLOW
    ),
    "Your credit balance is too low to access the Anthropic API.": K.QUOTA,
    "Output blocked by content filtering policy": K.CONTENT_FILTER,
    "You exceeded your current quota, please check your plan.": K.QUOTA,
    "The response was filtered by Azure OpenAI's content management policy.": (
        K.CONTENT_FILTER
    ),
    "litellm.ContentPolicyViolationError: rejected by our safety system": (
        K.CONTENT_FILTER
    ),
    "/completions: Invalid model name passed in model=m.": K.NOT_FOUND,
}


@pytest.mark.parametrize(("status", "kind"), STATUSES.items())
def test_what_a_status_means(status: int, kind: FailureKind) -> None:
    """Each status has one meaning, and no status is without one."""
    assert classify(status) is kind


@pytest.mark.parametrize("kind", FailureKind)
def test_what_is_repeated(kind: FailureKind) -> None:
    """A kind that is added must say whether another attempt could mend it."""
    assert is_retryable(kind) is RETRYABLE[kind]
    assert Failure(kind).is_retryable is RETRYABLE[kind]


@pytest.mark.parametrize("kind", FailureKind)
@pytest.mark.parametrize("final_error", [None, True, False])
def test_the_servers_verdict_only_forbids(
    kind: FailureKind, final_error: bool | None
) -> None:
    """`x-should-retry: false` ends it; `true` cannot make a wrong request right."""
    failure = Failure(kind, should_retry=final_error)
    assert failure.is_retryable is (RETRYABLE[kind] and final_error is not False)


@pytest.mark.parametrize("kind", FailureKind)
def test_what_one_route_cannot_do_another_may(kind: FailureKind) -> None:
    """A key, a model, a quota, a context: each route has its own."""
    assert is_routes_own(kind) == (
        kind.value
        in {
            "authentication",
            "permission",
            "not_found",
            "quota",
            "context_overflow",
            "unknown",
        }
    )


def test_a_failure_may_have_run_unless_it_is_known_not_to() -> None:
    """Where nothing is known, the work may have been done and charged."""
    assert Failure(K.CONNECTION).may_have_run


# --- sharpened by what the body says ------------------------------------------------


@pytest.mark.parametrize(("code", "kind"), CODES.items())
def test_a_code_inside_a_stream_is_all_there_is(code: str, kind: FailureKind) -> None:
    """Without a status, the provider's code alone says what happened."""
    assert classify(None, code) is kind
    assert classify(None, code, "maximum context length") is kind


@pytest.mark.parametrize(("phrase", "kind"), PHRASES.items())
@pytest.mark.parametrize("code", [None, "", "some_new_code"])
def test_a_phrase_speaks_where_no_code_does(
    phrase: str, kind: FailureKind, code: str | None
) -> None:
    """A sentence is read where the code is missing, or one that nobody knows."""
    assert classify(None, code, phrase) is kind
    assert classify(None, code, phrase.upper()) is kind


@pytest.mark.parametrize("status", [400, 403, 413, 422])
@pytest.mark.parametrize(("code", "kind"), CODES.items())
def test_a_code_sharpens_a_refusal(status: int, code: str, kind: FailureKind) -> None:
    """A 4xx is sharpened by its code, but never into something worth repeating."""
    expected = classify(status) if RETRYABLE[kind] else kind
    assert classify(status, code) is expected


@pytest.mark.parametrize("status", [400, 403, 413, 422])
@pytest.mark.parametrize(("phrase", "kind"), PHRASES.items())
def test_a_phrase_sharpens_a_refusal(
    status: int, phrase: str, kind: FailureKind
) -> None:
    """A 4xx without a code is sharpened by its sentence."""
    assert classify(status, None, phrase) is kind


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        ("insufficient_quota", "", K.QUOTA),
        ("billing_not_active", "", K.QUOTA),
        (None, "You exceeded your current quota.", K.QUOTA),
        ("rate_limit_exceeded", "You exceeded your current quota.", K.RATE_LIMIT),
        ("context_length_exceeded", "", K.RATE_LIMIT),
        (None, "maximum context length", K.RATE_LIMIT),
        ("server_error", "", K.RATE_LIMIT),
        (None, "", K.RATE_LIMIT),
    ],
)
def test_a_429_is_a_pace_or_an_empty_purse(
    code: str | None, message: str, kind: FailureKind
) -> None:
    """Quota is not a rate limit; nothing else turns a 429 into something else."""
    assert classify(429, code, message) is kind


@pytest.mark.parametrize(
    "status", [s for s in STATUSES if s not in {400, 401, 403, 413, 422, 429}]
)
def test_no_other_status_is_overruled(status: int) -> None:
    """A 401 stays a 401, and a 500 a 500, whatever the body says."""
    phrase = "you exceeded your current quota, maximum context length"
    told = {classify(status, code, phrase) for code in (None, *CODES)}
    assert told == {STATUSES[status]}


@pytest.mark.parametrize(("code", "message"), [(None, ""), ("", ""), ("new", "Oh no.")])
def test_an_error_nobody_knows_inside_a_stream(code: str | None, message: str) -> None:
    """An error without status, known code or phrase is the server's."""
    assert classify(None, code, message) is K.SERVER_ERROR


@given(st.none() | st.integers(), st.none() | st.text(), st.text())
def test_everything_has_a_meaning(
    status: int | None, code: str | None, text: str
) -> None:
    """No status, code or sentence is without a meaning, and none breaks the reader."""
    assert classify(status, code, text) in FailureKind
