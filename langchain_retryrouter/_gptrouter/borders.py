"""Foreign errors in the gateway's words: translated once, by table, at the border.

urllib3 and aiohttp are the libraries under `transport`; the SDK's exceptions come from
a client that a user put in our client's place. This file knows classes, not calls.
"""

from __future__ import annotations

import ssl
from types import MappingProxyType
from typing import Any, Final

from gpt_router import exceptions as sdk

from langchain_retryrouter._gptrouter.errors import (
    GPT_ROUTER_ERRORS,
    GPT_ROUTER_STREAM_ERRORS,
)
from langchain_retryrouter.errors import RetryRouterError
from langchain_retryrouter.failures import FailureKind

_NO_CONNECTION = "no connection to the gateway"
_BROKEN = "the connection to the gateway broke"
_NO_HEADERS: Final[Any] = MappingProxyType({})
_SILENT = "no whole answer from the gateway in time"
_UNREAD = "the gateway did not take the request in time"


def from_urllib3(error: Exception) -> RetryRouterError:
    """What an exception of urllib3, or of the socket under it, means."""
    from urllib3 import exceptions  # noqa: PLC0415 - imported by whoever raised `error`

    if isinstance(error, exceptions.ReadTimeoutError | TimeoutError):
        return _timeout(_SILENT, may_have_run=True)
    # `NewConnectionError` is a subclass of `ConnectTimeoutError`, and no timeout.
    if isinstance(error, exceptions.NewConnectionError):
        return _connection(_NO_CONNECTION, error, may_have_run=False)
    if isinstance(error, exceptions.ConnectTimeoutError):
        return _timeout(f"{_NO_CONNECTION} in time", may_have_run=False)
    if isinstance(error, exceptions.ProxyError | exceptions.SSLError):
        return _connection(_NO_CONNECTION, error, may_have_run=False)
    if any(isinstance(arg, TimeoutError) for arg in error.args):
        return _timeout(_UNREAD, may_have_run=True)
    return _connection(_BROKEN, error, may_have_run=True)


def from_aiohttp(error: Exception) -> RetryRouterError:
    """What an exception of aiohttp, or of the socket under it, means."""
    import aiohttp  # noqa: PLC0415 - imported by whoever raised `error`

    if isinstance(error, aiohttp.ClientResponseError):
        # It holds the request's headers, the key among them, and its `repr` shows them.
        bare = error.request_info._replace(headers=_NO_HEADERS)
        error.request_info, error.args = bare, (bare, error.history)
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return _timeout(f"{_NO_CONNECTION} in time", may_have_run=False)
    if isinstance(error, TimeoutError):
        return _timeout(_SILENT, may_have_run=True)
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientHttpProxyError):
        return _connection(_NO_CONNECTION, error, may_have_run=False)
    return _connection(_BROKEN, error, may_have_run=True)


_BY_SDK_CLASS: Final = {
    sdk.GPTRouterBadRequestError: FailureKind.INVALID_REQUEST,
    sdk.GPTRouterNotAvailableError: FailureKind.UNAVAILABLE,
    sdk.GPTRouterUnauthorizedError: FailureKind.AUTHENTICATION,
    sdk.GPTRouterForbiddenError: FailureKind.PERMISSION,
    sdk.GPTRouterInternalServerError: FailureKind.SERVER_ERROR,
    sdk.GPTRouterTooManyRequestsError: FailureKind.RATE_LIMIT,
    sdk.GPTRouterApiTimeoutError: FailureKind.TIMEOUT,
}


def from_sdk(error: Exception) -> RetryRouterError | None:
    """What an exception of the SDK's own client means; None if it is none of its."""
    if isinstance(error, sdk.GPTRouterStreamingError):
        return GPT_ROUTER_STREAM_ERRORS[FailureKind.SERVER_ERROR](str(error))
    for cls, kind in _BY_SDK_CLASS.items():
        if isinstance(error, cls):
            return GPT_ROUTER_ERRORS[kind](str(error))
    return None


def _timeout(message: str, *, may_have_run: bool) -> RetryRouterError:
    return GPT_ROUTER_ERRORS[FailureKind.TIMEOUT](message, may_have_run=may_have_run)


def _connection(
    what: str, error: BaseException, *, may_have_run: bool
) -> RetryRouterError:
    return GPT_ROUTER_ERRORS[FailureKind.CONNECTION](
        f"{what}: {_reason(error)}",
        may_have_run=may_have_run,
        # A certificate that is wrong now is wrong in a second too.
        should_retry=False if _is_certificate_error(error) else None,
    )


def _reason(error: BaseException) -> str:
    """What happened, without the tuples that urllib3's messages are made of."""
    nested = [arg for arg in error.args if isinstance(arg, BaseException)]
    return _reason(nested[-1]) if nested else str(error) or type(error).__name__


def _is_certificate_error(error: BaseException | None) -> bool:
    for _ in range(8):
        if error is None:
            return False
        if any(
            isinstance(e, ssl.SSLCertVerificationError) for e in (error, *error.args)
        ):
            return True
        error = error.__cause__ or error.__context__
    return False
