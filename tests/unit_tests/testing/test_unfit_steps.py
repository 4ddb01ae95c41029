"""Steps that cannot be carried out are errors, never ordinary answers."""

from __future__ import annotations

from typing import Any

import pytest

from langchain_retryrouter.testing import (
    Body,
    Cut,
    Drip,
    ErrorEvent,
    FaultyGateway,
    HtmlPage,
    MalformedEvent,
    MissingDone,
    Raw,
    Silence,
    SlowFirstToken,
    SplitCharacter,
    Stall,
    Status,
    Step,
    Truncate,
)

from .wire_client import (
    CHAT,
    GENERATE,
    chat,
    generate,
    post,
)


def test_split_characters_need_characters(faulty_gateway: FaultyGateway) -> None:
    """A text that is too plain for the step is an error, not an ordinary answer."""
    faulty_gateway.script(SplitCharacter("plain"))
    assert post(faulty_gateway, CHAT, chat()).status == 500
    _stop_complains(faulty_gateway, "no character of several bytes")


@pytest.mark.parametrize(
    "step",
    [Cut(6), Truncate(6), Stall(6, 0), MalformedEvent(6), ErrorEvent("no", after=6)],
)
def test_too_late_in_the_stream(faulty_gateway: FaultyGateway, step: Step) -> None:
    """A fault after the end of the answer is an error, not a healthy answer."""
    faulty_gateway.script(step)
    reply = post(faulty_gateway, GENERATE, generate(stream=True))
    assert (reply.status, b"5 events to count" in reply.body) == (500, True)
    _stop_complains(faulty_gateway, "5 events to count")


def test_missing_done_needs_a_stream(faulty_gateway: FaultyGateway) -> None:
    """Where nothing can be missing, the step is an error."""
    faulty_gateway.script(MissingDone())
    assert post(faulty_gateway, CHAT, chat()).status == 500
    _stop_complains(faulty_gateway, "only a stream has a last frame")


def _stop_complains(gateway: FaultyGateway, why: str) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc((ValueError, TypeError), match=why)):
        gateway.stop()


_IMPOSSIBLE: list[tuple[type[Step], dict[str, Any], str]] = [
    (Status, {"code": 99}, "99"),
    (Status, {"code": 600}, "600"),
    (Body, {"status": 100}, "100"),
    (HtmlPage, {"status": 0}, "0"),
    (ErrorEvent, {"message": "x", "status": 7}, "7"),
    (ErrorEvent, {"message": "x", "after": -1}, "-1"),
    (Silence, {"seconds": -0.1}, "-0.1"),
    (SlowFirstToken, {"seconds": float("nan")}, "nan"),
    (Stall, {"after": 0, "seconds": float("inf")}, "inf"),
    (Stall, {"after": -1, "seconds": 0}, "-1"),
    (Cut, {"after": -1}, "-1"),
    (Cut, {"after": 1, "how": "bang"}, "bang"),
    (Raw, {"data": b"", "how": "bang"}, "bang"),
    (Truncate, {"after": -2}, "-2"),
    (MalformedEvent, {"at": 0}, "0"),
    (Drip, {"seconds": -1}, "-1"),
    (Drip, {"size": 0}, "0"),
]


@pytest.mark.parametrize(
    ("kind", "given", "named"),
    _IMPOSSIBLE,
    ids=[f"{kind.__name__}{given}" for kind, given, _ in _IMPOSSIBLE],
)
def test_steps_that_cannot_be(
    kind: type[Step], given: dict[str, Any], named: str
) -> None:
    """A step that cannot be carried out is refused where it is written, and named."""
    with pytest.raises(ValueError, match=named):
        kind(**given)
