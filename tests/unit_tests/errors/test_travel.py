"""Errors cross processes and are copied: every fact comes along, and no key does."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from langchain_retryrouter.errors import RetryRouterError, UnsupportedOptionError

from .families import ALL_CLASSES, OPENAI_CLASSES

KEY = "sk-very-secret"

FACTS: dict[str, Any] = {
    "status_code": 429,
    "retry_after": 1.5,
    "should_retry": True,
    "request_id": "req_123",
    "code": "rate_limit_exceeded",
    "body": {"error": {"message": "slow down"}},
    "may_have_run": False,
}
LEARNED: dict[str, Any] = {
    "route": "gpt-4",
    "attempts": 3,
    "delivered": "Hel\u2028lo",
    "is_retryable": False,
}


def through_pickle(error: Exception) -> Any:
    """The error as another process sees it."""
    return pickle.loads(pickle.dumps(error))


def full_error(cls: type[RetryRouterError]) -> RetryRouterError:
    """An error of which everything is known."""
    error = cls("slow down", **FACTS)
    for name, value in LEARNED.items():
        setattr(error, name, value)
    error.add_note("gave up after 3 attempts")
    return error


travels = pytest.mark.parametrize("travel", [through_pickle, copy.copy, copy.deepcopy])


@travels
@pytest.mark.parametrize("cls", [RetryRouterError, *ALL_CLASSES])
def test_every_fact_comes_along(
    cls: type[RetryRouterError], travel: Callable[[Exception], Any]
) -> None:
    """Class, message, facts, notes, and what was learned survive pickle and copy."""
    error = full_error(cls)
    other = travel(error)
    assert other is not error
    assert type(other) is cls
    assert str(other) == other.message == "slow down"
    assert {name: getattr(other, name) for name in FACTS} == FACTS
    assert {name: getattr(other, name) for name in LEARNED} == LEARNED
    assert other.__notes__ == ["gave up after 3 attempts"]
    assert other.failure == error.failure


@pytest.mark.parametrize("cls", ALL_CLASSES)
def test_every_protocol_will_do(cls: type[RetryRouterError]) -> None:
    """Nobody is bound to the newest pickle protocol."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        other = pickle.loads(pickle.dumps(full_error(cls), protocol))
        assert vars(other) == vars(full_error(cls)), protocol


class HTTPObject:
    """What an SDK keeps: it cannot be pickled, and it knows the key."""

    headers = {"authorization": f"Bearer {KEY}"}  # noqa: RUF012 - as good as frozen

    def __init__(self) -> None:
        """With the key on the object as well."""
        self.key = KEY

    def __reduce__(self) -> tuple[Any, ...]:
        """Refuse, as objects with sockets do."""
        msg = "cannot pickle a socket"
        raise TypeError(msg)


@travels
@pytest.mark.parametrize("cls", OPENAI_CLASSES)
def test_the_http_objects_stay_behind(
    cls: type[RetryRouterError], travel: Callable[[Exception], Any]
) -> None:
    """Request and response, which know the key and a socket, do not travel."""
    error: Any = full_error(cls)
    error.request = error.response = HTTPObject()
    error.param, error.type = "messages", "invalid_request_error"
    other = travel(error)
    assert other.request is None
    assert other.response is None
    assert (other.param, other.type) == ("messages", "invalid_request_error")
    assert KEY not in repr(vars(other))
    assert error.request is error.response is not None


@pytest.mark.parametrize("cls", OPENAI_CLASSES)
def test_a_pickle_has_no_key(cls: type[RetryRouterError]) -> None:
    """The bytes that leave the process do not contain the key."""
    error: Any = full_error(cls)
    error.request = error.response = HTTPObject()
    assert KEY.encode() not in pickle.dumps(error)
    assert KEY not in f"{error} {error!r}"


def test_an_unsupported_option_travels_too() -> None:
    """The one error outside the tree is a plain `ValueError` and travels like one."""
    other = through_pickle(UnsupportedOptionError("seed cannot be sent"))
    assert type(other) is UnsupportedOptionError
    assert str(other) == "seed cannot be sent"
