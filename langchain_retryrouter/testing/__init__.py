"""A provider that fails on cue and a clock that the test moves, to test retries with.

`FaultyGateway` is a real HTTP server on the loopback; steps such as `Status(429)`,
`Reset()` or `Cut(after=3)` tell it what to do with the next requests. `FakeClock` lets
back-off be tested without sleeping. For pytest there are fixtures in
`langchain_retryrouter.testing.fixtures`.
"""

from langchain_retryrouter.testing.clock import FakeClock
from langchain_retryrouter.testing.faults import (
    Answer,
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
    Step,
    Truncate,
)
from langchain_retryrouter.testing.gptrouter_api import stub_embedding
from langchain_retryrouter.testing.requests import RecordedRequest
from langchain_retryrouter.testing.responses import (
    STUB_TEXT,
    Choice,
    Completion,
    FunctionCall,
    Responder,
    StubResponder,
    ToolCall,
    Usage,
    complete,
)
from langchain_retryrouter.testing.rule_responder import RuleResponder
from langchain_retryrouter.testing.server import FaultyGateway

__all__ = [
    "STUB_TEXT",
    "Answer",
    "Body",
    "Choice",
    "Completion",
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
    "Responder",
    "RuleResponder",
    "Silence",
    "SlowFirstToken",
    "SplitCharacter",
    "Stall",
    "Status",
    "Step",
    "StubResponder",
    "ToolCall",
    "Truncate",
    "Usage",
    "complete",
    "stub_embedding",
]
