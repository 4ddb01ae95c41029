"""Exceptions of the OpenAI models: one class for each kind of failure.

Each inherits from our error for that kind and from the SDK's closest one, so that an
`except openai.RateLimitError:` goes on working. `TypedErrors` turns what `openai`,
httpx or aiohttp raise into them. The original is the `__cause__`, and the API key is
removed from what it says: servers and HTTP libraries quote headers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final, Self

import openai

from langchain_retryrouter import errors
from langchain_retryrouter._providers import errors as reports
from langchain_retryrouter.errors import RetryRouterError
from langchain_retryrouter.failures import FailureKind


class _SDKFacts(errors.RetryRouterError):
    """The attributes of the SDK's exceptions, in addition to those of our errors."""

    # `Any`: the SDK narrows these per class, to `Literal[429]` and the like.
    status_code: Any
    request: Any = None
    response: Any = None
    param: str | None = None
    type: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        omitted = {"request", "response"}
        kept = {n: value for n, value in vars(self).items() if n not in omitted}
        return type(self), (self.message,), kept


_sdk_error = functools.partial(errors.sdk_error, globals(), "OpenAI")
OPENAI_ERRORS: Final[errors.ErrorFamily] = {
    ours.kind: _sdk_error(ours, _SDKFacts, sdks)
    for ours, sdks in (
        (errors.AuthenticationError, openai.AuthenticationError),
        (errors.PermissionDeniedError, openai.PermissionDeniedError),
        (errors.NotFoundError, openai.NotFoundError),
        (errors.InvalidRequestError, openai.BadRequestError),
        (errors.ContextLengthError, openai.BadRequestError),
        (errors.ContentFilterError, openai.BadRequestError),
        (errors.RateLimitError, openai.RateLimitError),
        (errors.QuotaExceededError, openai.RateLimitError),
        (errors.ServerError, openai.InternalServerError),
        (errors.UnavailableError, openai.InternalServerError),
        (errors.ConflictError, openai.ConflictError),
        (errors.MalformedResponseError, openai.APIResponseValidationError),
        (errors.APITimeoutError, openai.APITimeoutError),
        (errors.APIConnectionError, openai.APIConnectionError),
        (errors.StreamInterruptedError, openai.APIConnectionError),
        (errors.CircuitOpenError, openai.APIConnectionError),
    )
}
# Where the SDK's class for the status is another one than that for the kind.
_STATUS_ERRORS: Final[errors.ErrorFamily] = {
    ours.kind: _sdk_error(ours, _SDKFacts, sdks, name=name)
    for name, ours, sdks in (
        ("StatusTimeoutError", errors.APITimeoutError, openai.InternalServerError),
        (
            "UnprocessableEntityError",
            errors.InvalidRequestError,
            openai.UnprocessableEntityError,
        ),
    )
}


class TypedErrors:
    """A context that raises exceptions as the classes above, without credentials.

    What no provider caused leaves it as it is. `settings` are those of our own SDK
    client, whose credentials are known, or None.
    """

    def __init__(
        self,
        settings: Any,
        unix_time: Callable[[], float],
        read_headers: Callable[[Any], object] | None,
    ) -> None:
        self._settings, self._unix_time = settings, unix_time
        self._read_headers = read_headers
        self.response: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._read_headers is not None:
            response = self.response or reports.safe_getattr(error, "response")
            headers = reports.safe_getattr(response, "headers")
            if headers is not None:
                self._read_headers(headers)
                self._read_headers = None
        if not isinstance(error, Exception):
            return
        if isinstance(error, UnicodeEncodeError) and error.encoding.startswith("utf"):
            msg = (
                f"the request cannot be sent, since UTF-8 cannot encode it ({error})."
                " Remove such characters, halves of surrogate pairs, from the prompt"
            )
            raise errors.UnsupportedOptionError(msg) from error
        typed = self._typed(error)
        secrets = set() if self._settings is None else self._settings.secrets
        reports.hide_secrets(error, secrets)
        if typed is not None and typed is not error:
            reports.hide_secrets(typed, secrets)
            raise typed from error

    def _typed(self, error: Exception) -> RetryRouterError | None:
        # openai 2 wraps an error that was raised while the answer was read.
        is_wrapped = isinstance(error, openai.APIConnectionError)
        for ours in (error, error.__cause__ if is_wrapped else None):
            if isinstance(ours, RetryRouterError):
                self._add_headers(ours)
                return ours
        report = reports.read_exception(error, unix_time=self._unix_time())
        if report is None:
            return None
        status = report.status_code or 0
        has_own_class = {
            FailureKind.TIMEOUT: status >= HTTPStatus.BAD_REQUEST,
            FailureKind.INVALID_REQUEST: status == HTTPStatus.UNPROCESSABLE_ENTITY,
        }.get(report.kind, False)
        typed = report.to_error(_STATUS_ERRORS if has_own_class else OPENAI_ERRORS)
        for name in ("request", "response", "param", "type"):
            if (value := reports.safe_getattr(error, name)) is not None:
                setattr(typed, name, value)
        return typed

    def _add_headers(self, error: RetryRouterError) -> None:
        """Add what the headers say of an error that came inside a 200."""
        response = self.response
        if response is None or getattr(error, "response", None) is not None:
            return
        vars(error).update(response=response, request=response.request)
        report = reports.read_response(
            response.status_code, response.headers, b"", unix_time=self._unix_time()
        )
        for name in ("request_id", "retry_after", "should_retry"):
            if getattr(error, name) is None:
                setattr(error, name, getattr(report, name))
