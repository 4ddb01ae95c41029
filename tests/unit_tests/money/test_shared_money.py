"""A spend limit that several processes share over a store."""

from __future__ import annotations

import pickle
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fakeredis
import pytest
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from langchain_retryrouter import RetryRouter, Route, SpendLimit, SpendLimitError
from langchain_retryrouter.spend_limits import Price, Shortage, SpendReservation
from langchain_retryrouter.stores import MemoryStore, RedisStore
from langchain_retryrouter.testing import FakeClock, FaultyGateway

COST = (11 * 100 + 5 * 1000) / 1_000_000


@pytest.fixture(params=["memory", "redis"])
def stores(request: pytest.FixtureRequest) -> Iterator[list[Any]]:
    """Four stores of the same records, as four processes have."""
    if request.param == "memory":
        yield [MemoryStore()] * 4
        return
    server = fakeredis.FakeServer()
    made = [RedisStore(fakeredis.FakeRedis(server=server)) for _ in range(4)]
    yield made
    for store in made:
        store.close()


def eventually(happened: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait until the threads of the stores have done something."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)  # noqa: TID251 - threads need real time


def reserved(limit: SpendLimit, estimate: float) -> SpendReservation:
    """A reservation, once the store has leased the money."""
    found: list[SpendReservation] = []

    def is_there() -> bool:
        one = limit.reserve(Price(estimate, estimate))
        found.extend([one] if isinstance(one, SpendReservation) else [])
        return bool(found)

    eventually(is_there)
    return found[0]


def test_64_callers_of_four_processes_stay_below_the_limit(
    gateway: FaultyGateway, stores: list[Any]
) -> None:
    """The processes spend the amount together, and none of them goes beyond it."""
    limits = [SpendLimit(20.5 * COST, name="team", store=store) for store in stores]
    model = ChatOpenAI(
        model="own",
        base_url=gateway.openai_url,
        api_key=SecretStr("any"),
        default_headers={"connection": "close"},
        max_completion_tokens=10,
    )
    routers = [
        RetryRouter(
            routes=[Route(model=model, input_price=100, output_price=1000)],
            spend_limit=limit,
        )
        for limit in limits
    ]

    def ask(number: int) -> str:
        try:
            routers[number % 4].invoke("hi")
        except SpendLimitError:
            return "refused"
        return "ok"

    with ThreadPoolExecutor(64) as pool:
        outcomes = Counter(pool.map(ask, range(64)))
    assert outcomes["ok"] == len(gateway.requests)
    assert 12 <= outcomes["ok"] <= 20


def test_what_one_process_spends_is_missing_in_the_others(stores: list[Any]) -> None:
    """Each process knows what is left, and gives back what it has not used."""
    one, other = (SpendLimit(10, name="x", store=store) for store in stores[:2])
    reserved(one, 6).settle(6)
    eventually(lambda: other.left <= 4)
    reasons: list[str] = []

    def is_refused() -> bool:
        one = other.reserve(Price(5, 5))
        assert isinstance(one, Shortage)
        reasons.append(one.reason)
        return one.wait > 1

    eventually(is_refused)
    assert "it resets in" in reasons[-1]
    reserved(other, 3).settle(1)
    eventually(lambda: 6.9 < one.spent < 7.5 and other.left > 2)


def test_an_under_estimate_is_charged_to_all(stores: list[Any]) -> None:
    """What an attempt cost beyond its estimate is missing in the other processes."""
    one, other = (SpendLimit(10, name="x", store=store) for store in stores[:2])
    reserved(one, 1).settle(9.5)
    eventually(lambda: other.left < 1)


def test_a_new_period_begins_in_all_processes() -> None:
    """The money of a period is leased anew, and what is late counts in the old one."""
    clock = FakeClock(unix_time=1_800_000_000)
    store = MemoryStore(clock=clock)
    one, other = (
        SpendLimit(10, per="hour", name="x", store=store, clock=clock) for _ in "ab"
    )
    late = reserved(one, 2)
    reserved(other, 7).settle(8)
    clock.advance(3600)
    assert (one.left, other.left) == (10, 10)
    late.settle(2)
    assert one.spent == 0
    reserved(other, 9).settle(9)


def test_a_store_that_is_away_leaves_each_process_its_share() -> None:
    """Without its store a process spends no more than its share of what was left."""
    server = fakeredis.FakeServer()
    stores = [RedisStore(fakeredis.FakeRedis(server=server)) for _ in "ab"]
    limits = [SpendLimit(10, name="x", store=store) for store in stores]
    eventually(lambda: [len(one.processes) for one in stores[0].snapshot()] == [2])
    for limit in limits:
        reserved(limit, 1).settle(1)
    server.connected = False
    eventually(lambda: not any(store.is_up for store in stores))
    for limit in limits:
        assert isinstance(limit.reserve(Price(3, 3)), SpendReservation)
        assert not isinstance(limit.reserve(Price(3, 3)), SpendReservation)
    for store in stores:
        store.close()


def test_a_pickle_finds_its_store_again(stores: list[Any]) -> None:
    """Another process gets no lease by a pickle, but asks for its own."""
    limit = SpendLimit(10, name="x", store=stores[0])
    reserved(limit, 4).settle(4)
    if isinstance(stores[0], RedisStore):
        return
    loaded = pickle.loads(pickle.dumps(limit))
    assert loaded.left == 10  # Of a store of its own, which is empty.


def test_a_shared_limit_needs_a_name() -> None:
    """A store without a name, or something else as a store, is an error."""
    with pytest.raises(ValueError, match="needs a name"):
        SpendLimit(1, store=MemoryStore())
    with pytest.raises(ValueError, match="store must be a RedisStore") as caught:
        SpendLimit(1, name="x", store="redis://:secret@localhost")  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)
