"""Faults as steps of a `FaultyGateway`'s script, and their errors."""

from typing import Final

from langchain_retryrouter import (
    MalformedResponseError,
    RetryRouterError,
    StreamInterruptedError,
)
from langchain_retryrouter.testing import (
    Cut,
    ErrorEvent,
    Hangup,
    HtmlPage,
    MalformedEvent,
    Reset,
    Status,
    Step,
    Truncate,
)

BEFORE_THE_FIRST_TOKEN: Final[list[Step]] = [
    Status(429, {"retry-after": "1"}),
    Status(500),
    Status(503),
    HtmlPage(502),
    Reset(),
    Hangup(),
    ErrorEvent("429 stub upstream error 429"),
    Cut(after=0),
    Cut(after=0, how="rst"),
    Truncate(after=0),
    MalformedEvent(at=1),
]

AFTER_THE_FIRST_TOKEN: Final[dict[Step, type[RetryRouterError]]] = {
    Cut(after=1): StreamInterruptedError,
    Cut(after=1, how="rst"): StreamInterruptedError,
    Truncate(after=1): StreamInterruptedError,
    ErrorEvent("Premature close", after=1): StreamInterruptedError,
    MalformedEvent(at=2): MalformedResponseError,
}
"""And the error that a caller gets who has received that token."""
