"""What the gateway does with one request: healthy answers and faults, as plain data.

A script is a row of these. They say what shall happen; how it comes about is decided in
`_plan.py`. Seconds are floats, and every wait ends early when the client leaves or the
gateway stops. `after=N` counts events with content: the opening event without text and
the frames of the protocol are not counted. An answer that is not streamed has no
events; there a fault in the middle comes after the first half of the body.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from langchain_retryrouter.testing.responses import (
    CallPlace,
    FunctionCall,
    Text,
    ToolCall,
    Usage,
)

if TYPE_CHECKING:
    from langchain_retryrouter.testing.requests import RecordedRequest


Headers: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]
"""Header fields; pairs where one is repeated."""

_MULTI_BYTE_TEXT = "Grüße aus Łódź, 日本語 and 🦊"


class Unset(Enum):
    """The type of `UNSET`."""

    UNSET = "unset"

    def __repr__(self) -> str:
        """Short, since it is a default in signatures."""
        return self.name


UNSET: Final = Unset.UNSET
"""As the gateway's responder has it, where None would mean that it is left out."""


class Step:
    """What the gateway does with one request."""

    __slots__ = ()


ScriptedStep: TypeAlias = Step | Callable[["RecordedRequest"], Step]
"""A step, or what picks one when the request is known."""


@dataclass(frozen=True, slots=True)
class Answer(Step):
    """A healthy answer. With nothing given, the one of the gateway's responder."""

    text: Text | Callable[[RecordedRequest], str] | None = None
    """Said word for word (`stop` does not cut it), as often as `n` asks."""
    finish_reason: str | Unset | None = UNSET
    usage: Usage | Unset | None = UNSET
    tool_calls: tuple[ToolCall, ...] = ()
    function_call: FunctionCall | None = None
    model: str | None = None
    id: str | None = None
    unstreamed_calls: CallPlace = "dropped"
    """Where GPTRouter puts the tool calls when nothing is streamed."""
    citations: tuple[str, ...] = ()
    """Of GPTRouter's whole answer; where a stream has them is not known."""
    choice_citations: tuple[Any, ...] = ()
    """Of each choice of GPTRouter's answer: texts or objects."""


HEALTHY: Final = Answer()
"""What answers where no script says anything."""


@dataclass(frozen=True, slots=True)
class Status(Step):
    """An answer with this status; unless given, its body is the protocol's own."""

    code: int
    headers: Headers | None = None
    body: Any = None
    """Bytes or text as they are, all else as JSON."""
    error_code: str | None = None
    message: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be a final status."""
        _require_status(self, self.code)
        object.__setattr__(self, "headers", pairs_of(self.headers))


@dataclass(frozen=True, slots=True)
class Body(Step):
    """Exactly these headers and this body; only `content-length` is added."""

    status: int = 200
    headers: Headers | None = None
    body: bytes | str = b""

    def __post_init__(self) -> None:
        """Refuse what cannot be a final status."""
        _require_status(self, self.status)
        object.__setattr__(self, "headers", pairs_of(self.headers))


@dataclass(frozen=True, slots=True)
class HtmlPage(Step):
    """An HTML error page, as a proxy in between sends it."""

    status: int = 502

    def __post_init__(self) -> None:
        """Refuse what cannot be a final status."""
        _require_status(self, self.status)


@dataclass(frozen=True, slots=True)
class Raw(Step):
    """Exactly these bytes, status line and framing included."""

    data: bytes
    close: bool = True
    """Whether the connection is closed after them."""
    how: Literal["fin", "rst"] = "fin"
    """How it is closed."""

    def __post_init__(self) -> None:
        """Refuse unknown endings."""
        _require_ending(self, self.how)


@dataclass(frozen=True, slots=True)
class Reset(Step):
    """A TCP reset (RST) before a byte is sent."""


@dataclass(frozen=True, slots=True)
class Hangup(Step):
    """An orderly end of the connection (FIN) before a byte is sent."""


@dataclass(frozen=True, slots=True)
class Silence(Step):
    """The request is taken and nothing said; after `seconds` comes a FIN."""

    seconds: float = 120.0

    def __post_init__(self) -> None:
        """Refuse times that cannot be waited."""
        _require_seconds(self, self.seconds)


@dataclass(frozen=True, slots=True)
class SlowFirstToken(Step):
    """A whole answer, late: of a stream, the headers come at once."""

    seconds: float

    def __post_init__(self) -> None:
        """Refuse times that cannot be waited."""
        _require_seconds(self, self.seconds)


@dataclass(frozen=True, slots=True)
class Stall(Step):
    """A whole answer that stands still for `seconds` after `after` events."""

    after: int
    seconds: float

    def __post_init__(self) -> None:
        """Refuse times that cannot be waited and counts below zero."""
        _require_count(self, self.after, at_least=0)
        _require_seconds(self, self.seconds)


@dataclass(frozen=True, slots=True)
class Cut(Step):
    """The connection ends after `after` events, the body unfinished: FIN or RST."""

    after: int
    how: Literal["fin", "rst"] = "fin"

    def __post_init__(self) -> None:
        """Refuse counts below zero and unknown endings."""
        _require_count(self, self.after, at_least=0)
        _require_ending(self, self.how)


@dataclass(frozen=True, slots=True)
class Truncate(Step):
    """The body ends cleanly after `after` events, without any end mark."""

    after: int

    def __post_init__(self) -> None:
        """Refuse counts below zero."""
        _require_count(self, self.after, at_least=0)


@dataclass(frozen=True, slots=True)
class MalformedEvent(Step):
    """A whole stream whose event number `at`, counted from 1, is not JSON."""

    at: int

    def __post_init__(self) -> None:
        """Refuse positions before the first event."""
        _require_count(self, self.at, at_least=1)


@dataclass(frozen=True, slots=True)
class ErrorEvent(Step):
    """An error inside the stream, after `after` events, in the asked protocol.

    Without streaming it is what the protocol makes of such an error: GPTRouter's opaque
    500, or an OpenAI error with `status`, 500 if there is none.
    """

    message: str
    after: int = 0
    status: int | None = None
    code: str | None = None

    def __post_init__(self) -> None:
        """Refuse counts below zero and what cannot be a final status."""
        _require_count(self, self.after, at_least=0)
        if self.status is not None:
            _require_status(self, self.status)


@dataclass(frozen=True, slots=True)
class ErrorInOk(Step):
    """A 200 whose JSON body is an error; never a stream, whatever was asked."""

    message: str
    code: str | None = None


@dataclass(frozen=True, slots=True)
class Drip(Step):
    """A whole healthy answer in writes of `size` bytes, `seconds` apart."""

    seconds: float = 0.0
    size: int = 1

    def __post_init__(self) -> None:
        """Refuse times that cannot be waited and empty writes."""
        _require_seconds(self, self.seconds)
        _require_count(self, self.size, at_least=1)


@dataclass(frozen=True, slots=True)
class SplitCharacter(Step):
    """A whole healthy answer, every character of several bytes torn apart.

    The pieces are chunks of the HTTP body too, so a client sees them apart even when
    TCP joins the writes.
    """

    text: Text = _MULTI_BYTE_TEXT


@dataclass(frozen=True, slots=True)
class MissingDone(Step):
    """A whole stream without its last frame.

    That is OpenAI's `[DONE]`, or GPTRouter's `event: end`, which is no mark of success:
    its JSON event `end` is sent.
    """


def pairs_of(headers: Headers | None) -> tuple[tuple[str, str], ...]:
    """The header fields as pairs, in their order."""
    if headers is None:
        return ()
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return tuple((name, value) for name, value in pairs)


def _require_seconds(step: Step, seconds: float) -> None:
    if not (math.isfinite(seconds) and seconds >= 0):
        msg = f"{step}: seconds must be zero or more, and finite"
        raise ValueError(msg)


def _require_count(step: Step, count: int, *, at_least: int) -> None:
    if count < at_least:
        msg = f"{step}: {count} is too small, the least is {at_least}"
        raise ValueError(msg)


def _require_ending(step: Step, how: str) -> None:
    if how not in {"fin", "rst"}:
        msg = f"{step}: how must be 'fin' or 'rst'"
        raise ValueError(msg)


_FIRST_FINAL_STATUS, _LAST_STATUS = 200, 599


def _require_status(step: Step, status: int) -> None:
    if not _FIRST_FINAL_STATUS <= status <= _LAST_STATUS:
        msg = f"{step}: {status} is no final HTTP status, use one from 200 to 599"
        raise ValueError(msg)
