"""Where the bytes go out: SDK clients that are shared, and the sending of one request.

`SDKResource` and `AsyncSDKResource` are what a model holds as its clients; `create` and
`open_stream`, with their twins, send one request and raise `errors.openai`.
"""

from __future__ import annotations

from langchain_retryrouter._openai.clients.sending import (
    acreate,
    aopen_stream,
    create,
    identified,
    open_stream,
)
from langchain_retryrouter._openai.clients.sharing import (
    AsyncKey,
    AsyncSDKResource,
    MissingResource,
    Resource,
    SDKResource,
)
from langchain_retryrouter._openai.clients.streams import AsyncSDKStream, SDKStream

__all__ = [
    "AsyncKey",
    "AsyncSDKResource",
    "AsyncSDKStream",
    "MissingResource",
    "Resource",
    "SDKResource",
    "SDKStream",
    "acreate",
    "aopen_stream",
    "create",
    "identified",
    "open_stream",
]
