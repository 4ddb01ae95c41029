"""What HTTP libraries raise where an integration has no SDK in between."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import ssl
import urllib.request
from collections.abc import Callable
from typing import Any, TypeAlias

import aiohttp
import httpx
import httpx2
import pytest
import requests
import urllib3

from langchain_retryrouter import errors
from langchain_retryrouter._providers.errors import name_failure
from langchain_retryrouter.testing import (
    Cut,
    FaultyGateway,
    Hangup,
    MalformedEvent,
    Reset,
    Silence,
    Status,
    Step,
)

from .attempts import WALL

PAYLOAD: Any = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
# A time that is never reached, and one that soon is.
AMPLE, SHORT = 5.0, 0.3


Send: TypeAlias = Callable[[str, float], Any]


def with_httpx(library: Any) -> Send:
    def send(url: str, timeout: float) -> Any:
        with library.Client(timeout=timeout, trust_env=False) as client:
            response = client.post(url, json=PAYLOAD)
            response.raise_for_status()
            return response.json()

    return send


def with_httpx_async(library: Any) -> Send:
    def send(url: str, timeout: float) -> Any:
        # Made out here: to read the certificates blocks.
        client = library.AsyncClient(timeout=timeout, trust_env=False)

        async def post() -> Any:
            async with client:
                response = await client.post(url, json=PAYLOAD)
                response.raise_for_status()
                return response.json()

        return asyncio.run(post())

    return send


def with_aiohttp(url: str, timeout: float) -> Any:
    async def send() -> Any:
        limits = aiohttp.ClientTimeout(sock_read=timeout)
        async with (
            aiohttp.ClientSession(timeout=limits) as call_state,
            call_state.post(url, json=PAYLOAD, raise_for_status=True) as response,
        ):
            return await response.json()

    return asyncio.run(send())


def with_requests(url: str, timeout: float) -> Any:
    with requests.Session() as call_state:
        call_state.trust_env = False
        response = call_state.post(url, json=PAYLOAD, timeout=timeout)
        response.raise_for_status()
        return response.json()


def with_urllib3(url: str, timeout: float) -> Any:
    with urllib3.PoolManager(retries=False, timeout=timeout) as pool:
        return pool.request("POST", url, json=PAYLOAD).json()


def with_urllib3_retries(url: str, timeout: float) -> Any:
    with urllib3.PoolManager(retries=urllib3.Retry(0), timeout=timeout) as pool:
        return pool.request("POST", url, json=PAYLOAD).json()


def with_urllib(url: str, timeout: float) -> Any:
    data, headers = json.dumps(PAYLOAD).encode(), {"content-type": "application/json"}
    request = urllib.request.Request(url, data, headers)  # noqa: S310 - the loopback
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=timeout) as response:
        return response.read()


CHECKS_STATUS = {
    "httpx": with_httpx(httpx),
    "httpx2": with_httpx(httpx2),
    "httpx async": with_httpx_async(httpx),
    "httpx2 async": with_httpx_async(httpx2),
    "aiohttp": with_aiohttp,
    "requests": with_requests,
    "urllib": with_urllib,
}
CLIENTS = {
    **CHECKS_STATUS,
    "urllib3": with_urllib3,
    "urllib3 with retries": with_urllib3_retries,
}


def named(
    send: Send, url: str, timeout: float = AMPLE
) -> errors.RetryRouterError | None:
    """What the error of a request means."""
    try:
        answer = send(url, timeout)
    except Exception as error:  # noqa: BLE001 - it is what is looked at
        return name_failure(error, WALL)
    msg = f"it was to fail, and brought {answer}"
    raise AssertionError(msg)


def at(gateway: FaultyGateway) -> str:
    return f"{gateway.openai_url}/chat/completions"


@pytest.mark.parametrize("send", CHECKS_STATUS.values(), ids=CHECKS_STATUS)
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, errors.InvalidRequestError),
        (401, errors.AuthenticationError),
        (429, errors.RateLimitError),
        (500, errors.ServerError),
        (503, errors.UnavailableError),
        (504, errors.APITimeoutError),
    ],
)
def test_a_status_without_an_sdk(
    status: int, error: type[errors.RetryRouterError], send: Send
) -> None:
    """A library's own status error is named, with what its headers say."""
    with FaultyGateway() as gateway:
        gateway.script(Status(status, {"retry-after": "7"}))
        told = named(send, at(gateway))
    assert type(told) is error
    assert told is not None
    assert (told.status_code, told.retry_after) == (status, 7.0)
    assert told.request_id == "req_000001"
    assert told.may_have_run is (status >= 500)


@pytest.mark.parametrize(
    "send", [with_httpx(httpx), with_requests], ids=["httpx", "requests"]
)
def test_a_body_that_was_read_sharpens_a_status(send: Send) -> None:
    """What the body says counts where the library keeps it."""
    with FaultyGateway() as gateway:
        gateway.script(Status(400, error_code="context_length_exceeded"))
        told = named(send, at(gateway))
    assert type(told) is errors.ContextLengthError
    assert told.code == "context_length_exceeded"


@pytest.mark.parametrize("send", CLIENTS.values(), ids=CLIENTS)
@pytest.mark.parametrize(
    ("step", "error"),
    [
        (Reset(), errors.APIConnectionError),
        (Hangup(), errors.APIConnectionError),
        (Cut(after=5), errors.APIConnectionError),
        (Silence(), errors.APITimeoutError),
    ],
    ids=repr,
)
def test_a_lost_connection_may_have_run(
    step: Step, error: type[errors.RetryRouterError], send: Send
) -> None:
    """What was sent and not answered is a connection or a timeout, and may have run."""
    with FaultyGateway() as gateway:
        gateway.script(step)
        is_silent = isinstance(step, Silence)
        told = named(send, at(gateway), SHORT if is_silent else AMPLE)
    assert type(told) is error
    assert told is not None
    assert told.may_have_run


@pytest.mark.parametrize("send", CLIENTS.values(), ids=CLIENTS)
def test_a_refused_connection_never_ran(send: Send) -> None:
    """Where nobody listens nothing has run, whichever library says so."""
    with FaultyGateway() as gateway:
        url = at(gateway)
    told = named(send, url)
    assert type(told) is errors.APIConnectionError
    assert not told.may_have_run


JSON_READERS = {name: send for name, send in CLIENTS.items() if name != "urllib"}


@pytest.mark.parametrize("send", JSON_READERS.values(), ids=JSON_READERS)
def test_an_answer_that_is_no_json_is_malformed(send: Send) -> None:
    """Half a document with status 200 is the provider's failure."""
    with FaultyGateway() as gateway:
        gateway.script(MalformedEvent(at=1))
        told = named(send, at(gateway))
    assert type(told) is errors.MalformedResponseError


BUILTINS = [
    (TimeoutError(), errors.APITimeoutError, True),
    (ConnectionResetError(), errors.APIConnectionError, True),
    (BrokenPipeError(), errors.APIConnectionError, True),
    (ConnectionRefusedError(), errors.APIConnectionError, False),
    (socket.gaierror(-2, "no such host"), errors.APIConnectionError, False),
    (ssl.SSLError("eof"), errors.APIConnectionError, True),
    (ssl.SSLCertVerificationError("bad"), errors.APIConnectionError, False),
    (OSError(errno.ENETUNREACH, "no way"), errors.APIConnectionError, False),
    (asyncio.IncompleteReadError(b"", 4), errors.APIConnectionError, True),
    (
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"),
        errors.MalformedResponseError,
        True,
    ),
    (httpx.PoolTimeout("full"), errors.APITimeoutError, False),
    (httpx.ConnectTimeout("slow"), errors.APITimeoutError, False),
    (httpx2.UnsupportedProtocol("ftp"), errors.InvalidRequestError, False),
    (httpx2.DecodingError("gzip"), errors.MalformedResponseError, True),
    (requests.ConnectTimeout(), errors.APITimeoutError, False),
    (requests.exceptions.InvalidURL("x"), errors.InvalidRequestError, False),
    (aiohttp.ConnectionTimeoutError(), errors.APITimeoutError, False),
    (aiohttp.ClientPayloadError("cut"), errors.APIConnectionError, True),
    (urllib3.exceptions.DecodeError("gzip"), errors.MalformedResponseError, True),
]


@pytest.mark.parametrize(("error", "cls", "may_have_run"), BUILTINS, ids=repr)
def test_what_is_told_by_the_class(
    error: Exception, cls: type[errors.RetryRouterError], may_have_run: bool
) -> None:
    """The class of an exception below HTTP says whether the request may have run."""
    told = name_failure(error, WALL)
    assert type(told) is cls
    assert told is not None
    assert told.may_have_run is may_have_run
