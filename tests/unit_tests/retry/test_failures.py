"""The kind of a failure by status, code and message, and which kinds are retried."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_retryrouter import FailureKind as K
from langchain_retryrouter.failures import (
    ROUTES_OWN,
    Failure,
    classify,
    is_retryable,
)

# All statuses that the table names, and at least one beside each of its edges.
STATUSES = {
    status: kind
    for kind, statuses in {
        K.MALFORMED: (-1, 0, 100, 200, 204, 299, 600, 999),
        K.INVALID_REQUEST: (
            *(300, 301, 307, 399, 400, 405, 407, 413, 418, 422, 426, 431, 501, 505),
        ),
        K.AUTHENTICATION: (401,),
        K.QUOTA: (402,),
        K.PERMISSION: (403,),
        K.NOT_FOUND: (404, 410),
        K.TIMEOUT: (408, 504, 524),
        K.CONFLICT: (409,),
        K.RATE_LIMIT: (429,),
        K.UNAVAILABLE: (424, 425, 498, 499, 503, 529),
        K.SERVER_ERROR: (500, 502, 507, 520, 599),
    }.items()
    for status in statuses
}
RETRYABLE = {
    *(K.RATE_LIMIT, K.UNAVAILABLE, K.SERVER_ERROR, K.CONFLICT, K.TIMEOUT),
    *(K.CONNECTION, K.INTERRUPTED, K.MALFORMED, K.REJECTED),
}
OF_THE_ROUTE = {
    *(K.AUTHENTICATION, K.PERMISSION, K.NOT_FOUND, K.QUOTA, K.CONTEXT_OVERFLOW),
    K.UNKNOWN,
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


@pytest.mark.parametrize(("status", "kind"), STATUSES.items())
def test_each_status_has_a_kind(status: int, kind: K) -> None:
    """Every status has one kind, also those that no server should send."""
    assert classify(status) is kind


@pytest.mark.parametrize("kind", K)
def test_which_kinds_are_retried(kind: K) -> None:
    """`x-should-retry: false` forbids a retry; `true` does not allow one."""
    expected = kind in RETRYABLE
    assert is_retryable(kind) is expected
    assert Failure(kind).is_retryable is expected
    assert Failure(kind, should_retry=True).is_retryable is expected
    assert Failure(kind, should_retry=False).is_retryable is False
    assert (kind in ROUTES_OWN) is (kind in OF_THE_ROUTE)
    assert Failure(kind).may_have_run  # By default: the provider may charge for it.


@pytest.mark.parametrize(("code", "kind"), CODES.items())
def test_a_code(code: str, kind: K) -> None:
    """A code decides in a stream; a 4xx is made more exact, but never retryable."""
    assert classify(None, code) is kind
    assert classify(None, code, "maximum context length") is kind
    for status in (400, 403, 413, 422):
        expected = classify(status) if kind in RETRYABLE else kind
        assert classify(status, code) is expected


@pytest.mark.parametrize("code", [None, "", "some_new_code"])
def test_a_sentence(code: str | None) -> None:
    """The message is read where the code is missing or unknown, in any case.

    The wordings of providers are in `tests/unit_tests/data/provider_answers.json`.
    """
    for status in (None, 400, 403, 413, 422):
        for message in ("Your prompt is too long.", "PROMPT IS TOO LONG"):
            assert classify(status, code, message) is K.CONTEXT_OVERFLOW
    assert classify(None, code, "Oh no.") is K.SERVER_ERROR


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("Invalid schema for function 'content_policy'", K.INVALID_REQUEST),
        ("Unknown name \"billing\" at 'tools[0].content_policy'", K.INVALID_REQUEST),
        ("tools[0].properties[daily_limit].type: missing", K.INVALID_REQUEST),
        ("input_schema.properties.rate_limit.type: wrong", K.INVALID_REQUEST),
        ("not a dict, input_value='our content policy'", K.INVALID_REQUEST),
        ("see https://example.com/account/billing", K.INVALID_REQUEST),
        ("The model `content-policy-1` does not exist", K.NOT_FOUND),
        ("upstream failed with code 'insufficient_quota'", K.QUOTA),
        ('stopped with finish_reason "content_filter"', K.CONTENT_FILTER),
        ("error `context_length_exceeded` from upstream", K.CONTEXT_OVERFLOW),
        ("upstream got 'insufficient_quota'", K.QUOTA),
        ("litellm.exceptions.ContentPolicyViolationError: no", K.CONTENT_FILTER),
        ('{"see":"https://a.b/c","code":"insufficient_quota"}', K.QUOTA),
        ("add a payment method at https://example.com/billing", K.QUOTA),
        ("Blocked entity: US_DRIVER_LICENSE by Guardrail: pii", K.CONTENT_FILTER),
    ],
)
def test_what_is_only_quoted_says_nothing(message: str, kind: K) -> None:
    """Names that the caller chose, paths, values and addresses; a code is no such."""
    assert classify(400, None, message) is kind


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        ("insufficient_quota", "", K.QUOTA),
        ("rate_limit_exceeded", "You exceeded your current quota.", K.RATE_LIMIT),
        ("context_length_exceeded", "", K.RATE_LIMIT),
        (None, "maximum context length", K.RATE_LIMIT),
        ("server_error", "", K.RATE_LIMIT),
        (None, "", K.RATE_LIMIT),
    ],
)
def test_a_429_is_a_rate_limit_or_a_quota(
    code: str | None, message: str, kind: K
) -> None:
    """A used-up quota is not retried; nothing else changes a 429."""
    assert classify(429, code, message) is kind


@pytest.mark.parametrize(
    "status", sorted(STATUSES.keys() - {400, 401, 403, 413, 422, 429})
)
def test_no_other_status_is_overruled(status: int) -> None:
    """A 503 stays an outage, whatever the body says; a 500 may be a long prompt."""
    phrase = "you exceeded your current quota, maximum context length"
    kinds = {classify(status, code, phrase) for code in (None, *CODES)}
    assert kinds == {K.CONTEXT_OVERFLOW if status == 500 else STATUSES[status]}


@given(st.none() | st.integers(), st.none() | st.text(), st.text())
def test_any_error_has_a_kind(status: int | None, code: str | None, text: str) -> None:
    """No status, code or message makes `classify` fail."""
    assert classify(status, code, text) in K
