"""The only room that waits.

`call`/`acall` run one request until it succeeds, is final, or the policy is exhausted;
`stream`/`astream` do the same up to the first token, and from then on only watch;
`in_order` keeps several calls under way, and `enter` lets a crowd of them into an event
loop a few at a time. The loop, which the first failure starts, is
tenacity's; what it asks (`retry=`, `wait=`, `before_sleep=`) is answered by the call's
`RetrySession`. The room counts attempts, waits, and reports; it does not know messages,
HTTP, or providers. What to send is handed in as a function of an `Attempt`.

Sync and async are one program: everything that thinks stands in `steering`.
"""

from __future__ import annotations

from langchain_retryrouter._drive.calls import acall, call
from langchain_retryrouter._drive.clock import SYSTEM_CLOCK, Clock
from langchain_retryrouter._drive.concurrency import ain_order, in_order
from langchain_retryrouter._drive.steering import ANotify, Attempt, Notify, Plan
from langchain_retryrouter._drive.streams import (
    AEventSource,
    EventSource,
    astream,
    stream,
)
from langchain_retryrouter._drive.turnstile import enter

__all__ = [
    "SYSTEM_CLOCK",
    "AEventSource",
    "ANotify",
    "Attempt",
    "Clock",
    "EventSource",
    "Notify",
    "Plan",
    "acall",
    "ain_order",
    "astream",
    "call",
    "enter",
    "in_order",
    "stream",
]
