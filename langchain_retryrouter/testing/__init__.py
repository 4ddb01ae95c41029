"""A provider that fails on cue, and a clock that the test moves, to test retries with.

`FaultyGateway` is a real HTTP server on the loopback; steps such as `Status(429)`,
`Reset()` or `Cut(after=3)` say what happens to the next requests. `FakeClock` lets
tests of back-off run without sleeping. `langchain_retryrouter.testing.fixtures` has
both as pytest fixtures.
"""

from langchain_retryrouter.testing._exchange import (
    STUB_TEXT,
    Answer,
    FunctionCall,
    RecordedRequest,
    Step,
    ToolCall,
    Usage,
)
from langchain_retryrouter.testing._faults import (
    Body,
    Cut,
    Drip,
    ErrorEvent,
    ErrorInOk,
    Hangup,
    HtmlPage,
    MalformedEvent,
    MissingDone,
    Raw,
    Reset,
    Silence,
    SlowFirstToken,
    SplitCharacter,
    Stall,
    Status,
    Truncate,
)
from langchain_retryrouter.testing.clock import FakeClock
from langchain_retryrouter.testing.server import FaultyGateway

__all__ = [
    "STUB_TEXT",
    "Answer",
    "Body",
    "Cut",
    "Drip",
    "ErrorEvent",
    "ErrorInOk",
    "FakeClock",
    "FaultyGateway",
    "FunctionCall",
    "Hangup",
    "HtmlPage",
    "MalformedEvent",
    "MissingDone",
    "Raw",
    "RecordedRequest",
    "Reset",
    "Silence",
    "SlowFirstToken",
    "SplitCharacter",
    "Stall",
    "Status",
    "Step",
    "ToolCall",
    "Truncate",
    "Usage",
]
