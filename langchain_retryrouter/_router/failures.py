"""What an exception of somebody else's chat model means, given its meaning once.

A router asks models of any integration, so whatever their SDKs raise arrives here raw.
What is a provider's failure becomes one of `errors`, with the facts that its response
holds; what is no provider's failure, such as a bug or a caller's mistake, is not ours
to name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from langchain_core import exceptions as langchain

from langchain_retryrouter._core.failure import FailureKind, is_retryable
from langchain_retryrouter._core.retry_after import read_advice
from langchain_retryrouter._router import masking
from langchain_retryrouter._router.odd_answers import odd_answer
from langchain_retryrouter._router.reports import Report, look, report_in
from langchain_retryrouter._router.transport_errors import Transport, transport_of
from langchain_retryrouter.errors import BASE_ERRORS, RetryRouterError

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


def name_failure(error: Exception, wall: float) -> RetryRouterError | None:
    """What a model's exception means, as one of `errors` with the facts it carries.

    Raise it `from error`. The exception's own texts lose the key that its request
    carried, since a traceback prints them too.

    Args:
        error: What the model raised, caught and with its traceback.
        wall: The seconds since the Unix epoch, to read an HTTP date with.

    Returns:
        `error` itself if it is one of ours, and None if it is no provider's failure:
        that has to reach the caller unchanged.
    """
    if isinstance(error, RetryRouterError):
        return error
    chain = list(_chain(error))
    named = _named(error, chain, wall)
    if named is None:
        return None
    hidden = masking.secrets_of(chain)
    for one in (named, *chain):
        masking.mask(hidden, one)
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
    error: Exception, chain: list[BaseException], wall: float
) -> RetryRouterError | None:
    if kind := _by_sdks_class(error):
        return _from_class(kind, error, chain)
    if report := report_in(error):
        return _from_report(report, error, wall)
    if kind := _by_langchains_class(error):
        return _from_class(kind, error, chain)
    if transport := transport_of(error):
        return _from_transport(transport, error)
    if report := odd_answer(error):
        return _from_report(report, error, wall)
    cause = error.__cause__
    # Somebody said "because of a provider's failure", as langchain-google-genai does.
    return _named(cause, chain, wall) if isinstance(cause, Exception) else None


def _from_report(report: Report, error: Exception, wall: float) -> RetryRouterError:
    advice = read_advice(report.headers, wall=wall)
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
        body=look(error, "body"),
        may_have_run=kind in _ON_THE_WAY or is_retryable(kind),
    )
    says_no = isinstance(error, langchain.ModelError) and not error.is_retryable
    if is_retryable(kind) and (says_no or _is_given_up(error)):
        named.should_retry = False
    return named


def _code_of(error: Exception) -> str | None:
    code = look(error, "code")
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
