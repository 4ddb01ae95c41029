"""`health()`: what the latest attempts say of each route."""

import copy
import json
import pickle
from typing import Any

import pytest

from langchain_retryrouter import RetryPolicy, RetryRouter, RetryRouterError, Route
from langchain_retryrouter.testing import (
    Answer,
    Cut,
    ErrorEvent,
    FakeClock,
    FaultyGateway,
    Status,
)
from tests.support.models import KEY, chat_openai
from tests.unit_tests.conftest import Twin

ONCE = RetryPolicy(max_retries=0)


@pytest.fixture
def router(gateway: FaultyGateway, clock: FakeClock) -> RetryRouter:
    """Two routes at one gateway, told apart by their names."""
    routes = [Route(model=chat_openai(gateway), name=name) for name in ("a", "b")]
    return RetryRouter(routes=routes, retry_policy=ONCE, clock=clock)


def of(router: RetryRouter, name: str) -> dict[str, Any]:
    """The report of one route, which JSON can say."""
    health = json.loads(json.dumps(router.health()))
    found: dict[str, Any] = next(r for r in health["routes"] if r["name"] == name)
    return found


def test_a_new_router_is_healthy(router: RetryRouter, gateway: FaultyGateway) -> None:
    """Nothing is known of any route, and nothing is sent to find out."""
    health = router.health()
    assert health["is_healthy"]
    assert [route["name"] for route in health["routes"]] == ["a", "b"]
    state = {"name": "a", "is_healthy": True, "state": "closed", "open_for": 0.0}
    counts = {"answered": 0, "failed": 0}
    unknown = ("open_until", "last_answer_ago", "last_error", "latency")
    assert of(router, "a") == {**state, **counts, **dict.fromkeys(unknown)}
    assert not gateway.requests


@pytest.mark.parametrize("is_streaming", [False, True], ids=["invoke", "stream"])
def test_each_attempt_is_counted(
    twin: Twin,
    router: RetryRouter,
    gateway: FaultyGateway,
    clock: FakeClock,
    is_streaming: bool,
) -> None:
    """Answers and failures of each route, with the last error's kind and age."""
    gateway.script(Status(503, message="who knows: my prompt"))
    ask = twin.stream if is_streaming else twin.invoke
    ask(router, "my prompt")
    clock.sleep(5)
    first, second = of(router, "a"), of(router, "b")
    assert (first["answered"], first["failed"]) == (0, 1)
    last_error = {"kind": "unavailable", "status_code": 503, "ago": 5.0}
    assert first["last_error"] == last_error
    assert (second["answered"], second["failed"]) == (1, 0)
    assert second["last_answer_ago"] == 5
    assert set(second["latency"]) == {"mean", "p50"}
    text = json.dumps(router.health())
    assert "my prompt" not in text
    assert KEY not in text


def test_an_open_breaker_is_told_with_its_end(
    twin: Twin, router: RetryRouter, gateway: FaultyGateway, clock: FakeClock
) -> None:
    """A route that its breaker keeps out is not healthy until a probe is admitted."""
    gateway.script(Status(429, {"retry-after": "120"}))
    twin.invoke(router, "hi")
    found = of(router, "a")
    assert (found["is_healthy"], found["state"]) == (False, "open")
    assert found["open_for"] == pytest.approx(120, abs=1)  # With the jitter.
    assert found["open_until"] == clock.time() + found["open_for"]
    assert router.health()["is_healthy"]  # The other route is asked.
    clock.sleep(found["open_for"])
    found = of(router, "a")
    assert (found["is_healthy"], found["state"]) == (True, "half_open")


def test_a_refused_key_is_not_healthy_for_a_minute(
    twin: Twin, router: RetryRouter, gateway: FaultyGateway, clock: FakeClock
) -> None:
    """No breaker counts it; later a request may find out whether it was mended."""
    gateway.always(Status(401))
    with pytest.raises(RetryRouterError):
        twin.invoke(router, "hi")
    assert not router.health()["is_healthy"]
    assert of(router, "a")["state"] == "closed"
    clock.sleep(60)
    assert router.health()["is_healthy"]
    gateway.always(Answer("ok"))
    twin.invoke(router, "hi")
    assert of(router, "a")["is_healthy"]


def test_a_stream_that_broke_off_is_a_failure(
    twin: Twin, router: RetryRouter, gateway: FaultyGateway
) -> None:
    """It counts with the kind that its attempt log has."""
    gateway.script(Cut(after=3), ErrorEvent("503 overloaded"))
    with pytest.raises(RetryRouterError):
        twin.stream(router, "hi")
    assert of(router, "a")["last_error"]["kind"] == "interrupted"
    assert of(router, "b")["failed"] == 1


def test_copies_share_what_they_know(
    twin: Twin, router: RetryRouter, gateway: FaultyGateway
) -> None:
    """Bound and copied routers ask the same providers; another process starts anew."""
    gateway.script(Status(503))
    bound = router.bind_tools([])
    twin.invoke(bound, "hi")
    assert of(router, "a")["failed"] == 1
    assert of(router.model_copy(), "b")["answered"] == 1
    health = copy.deepcopy(router.__dict__["_memory"].route_states[0].health)
    assert health.report("a", None, router.clock)["failed"] == 1
    fresh = pickle.loads(pickle.dumps(health))
    assert fresh.report("a", None, router.clock)["failed"] == 0
