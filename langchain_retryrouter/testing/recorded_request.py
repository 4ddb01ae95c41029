"""What the gateway saw of one request, and what the protocols make of it.

Only the facts are stored. What follows from them (`model`, `streaming`, ...) is read
when somebody asks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from .steps import Step

Outcome: TypeAlias = Literal["pending", "sent", "faulted", "client_left"]
Endpoint: TypeAlias = Literal[
    "generate", "embeddings", "embeddings-v2", "completions", "chat"
]
ProtocolName: TypeAlias = Literal["gptrouter", "openai"]
Edition: TypeAlias = Literal["public", "hosted"]
"""Which GPTRouter: the public snapshot of its source, or the newer hosted service."""

_ENDPOINTS: dict[str, Endpoint] = {
    "/api/v1/generate": "generate",
    "/api/v1/generate/embeddings": "embeddings",
    "/api/v1/generate/embeddings-v2": "embeddings-v2",
    "/v1/completions": "completions",
    "/v1/chat/completions": "chat",
}
_HOSTED_ONLY: frozenset[Endpoint] = frozenset({"embeddings", "embeddings-v2"})
_AZURE = re.compile(r"/openai/deployments/(?P<name>[^/]+)(?P<rest>/.+)")


@dataclass(frozen=True, slots=True)
class _Route:
    protocol: ProtocolName
    endpoint: Endpoint | None = None
    deployment: str | None = None


@lru_cache(maxsize=1024)
def _route(path: str) -> _Route:
    if azure := _AZURE.fullmatch(path):
        return _Route("openai", _ENDPOINTS.get(f"/v1{azure['rest']}"), azure["name"])
    is_openai = path.startswith(("/v1/", "/openai/"))
    return _Route("openai" if is_openai else "gptrouter", _ENDPOINTS.get(path))


@dataclass(frozen=True)
class RecordedRequest:
    """One request, as it came in."""

    number: int
    """Counted from 1, over the life of the gateway."""
    at: float
    """When its last byte had come, in seconds of `time.monotonic`."""
    connection: int
    """Which TCP connection it came on, counted from 1."""
    method: str
    path: str
    """Without the query."""
    query: str
    headers: Mapping[str, str]
    """Names in lower case; values of a repeated header are joined by `", "`."""
    body: bytes
    step: Step | None = None
    """The step that answered; None while there is none."""
    outcome: Outcome = "pending"
    """How the answer ended.

    `sent`: the caller was given a whole response, be it an answer or an error.
    `faulted`: the step kept something back or garbled it, or the gateway stopped.
    `client_left`: the caller closed the connection before the end.
    """
    gptrouter: Edition = "public"
    """Which GPTRouter the gateway played."""

    @property
    def json(self) -> Any:
        """The body, read as JSON.

        Raises:
            ValueError: The body is not JSON.
        """
        try:
            return json.loads(self.body)
        except ValueError as error:
            msg = f"the body of request {self.number} is not JSON: {self.body[:80]!r}"
            raise ValueError(msg) from error

    @cached_property
    def payload(self) -> Mapping[str, Any]:
        """The body's JSON object; empty when the body is anything else."""
        try:
            body = json.loads(self.body)
        except ValueError:
            return {}
        return body if isinstance(body, dict) else {}

    @property
    def endpoint(self) -> Endpoint | None:
        """Which endpoint was asked, None for one that is not served."""
        endpoint = _route(self.path).endpoint if self.method == "POST" else None
        if endpoint in _HOSTED_ONLY and self.gptrouter != "hosted":
            return None
        return endpoint

    @property
    def protocol(self) -> ProtocolName:
        """Whose protocol the path belongs to; an unknown one is GPTRouter's."""
        return _route(self.path).protocol

    @property
    def deployment(self) -> str | None:
        """The Azure deployment in the path, None when this is not Azure's protocol."""
        return _route(self.path).deployment

    @cached_property
    def entry(self) -> Mapping[str, Any]:
        """The entry of GPTRouter's `data` that comes first, which `order` decides."""
        data = self.payload.get("data")
        entries = (
            [one for one in data if isinstance(one, dict)]
            if isinstance(data, list)
            else []
        )
        return min(entries, key=_order, default={})

    @cached_property
    def parameters(self) -> Mapping[str, Any]:
        """The parameters of the generation, wherever the protocol keeps them."""
        if self.protocol == "openai" or self.endpoint == "embeddings-v2":
            return self.payload
        parameters = self.entry.get("promptParams")
        return parameters if isinstance(parameters, dict) else {}

    @cached_property
    def model(self) -> str | None:
        """The model that was asked: GPTRouter's first one, Azure's deployment."""
        named = (
            self.deployment
            or self.entry.get("modelName")
            or self.entry.get("modelId")
            or self.payload.get("model")
            or self.payload.get("modelName")
        )
        return named if isinstance(named, str) else None

    @cached_property
    def streaming(self) -> bool:
        """Whether a stream was asked for; GPTRouter takes the text `"true"` too."""
        return self.payload.get("stream") in {True, "true"}

    @property
    def closes_connection(self) -> bool:
        """Whether the caller wants no further request on this connection."""
        return "close" in self.headers.get("connection", "").lower()

    def __str__(self) -> str:
        """One line for a log or an error message; the body stays out of it."""
        target = f"{self.method} {self.path}"
        ending = f"{self.step}, {self.outcome}"
        return f"#{self.number} by {self.connection}: {target} {self.model}, {ending}"


def _order(entry: Mapping[str, Any]) -> float:
    try:
        return float(entry.get("order", "inf"))
    except (TypeError, ValueError):
        return float("inf")
