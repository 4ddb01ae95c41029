"""Keys that must not be shown: what a request carried, out of what an error says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import parse_qsl

from langchain_retryrouter._router.reports import look
from langchain_retryrouter.errors import masking
from langchain_retryrouter.errors.masking import MASK, SHORTEST_SECRET

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
    masking.mask_one(
        error, lambda text: _LOOKS_SECRET.sub(MASK, masking.hidden(secrets, text))
    )


def _requests_of(error: BaseException) -> Iterator[Any]:
    response = look(error, "response")
    for request in (
        look(error, "request"),
        look(error, "request_info"),  # aiohttp's
        look(response, "request"),
    ):
        if request is not None:
            yield request


def _secrets_in(request: Any) -> Iterator[str]:
    headers = look(request, "headers")
    for name, value in headers.items() if hasattr(headers, "items") else ():
        if str(name).lower() in _SECRET_HEADERS and str(value).split():
            yield str(value).split()[-1]
    query = str(look(request, "url") or "").partition("?")[2]
    for name, value in parse_qsl(query):
        if name.lower() in _SECRET_PARAMETERS:
            yield value
