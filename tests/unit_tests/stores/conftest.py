"""Processes that share a store: two lanes of one fake Redis, each a process."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import fakeredis
import pytest

from langchain_retryrouter.stores import MemoryStore, RedisStore


class SilentStore(MemoryStore):
    """Takes everything and answers nothing, as while its thread looks up a host."""

    def submit(self, *_: object) -> bool:
        return True


class RefusingStore(MemoryStore):
    """Refuses all, as a replica of Redis does; counts how often it was asked."""

    asked = 0

    def submit(self, *args: Any, **_: object) -> bool:
        self.asked += 1
        args[3](None)
        return True


class AwayStore(MemoryStore):
    """Is away unless `is_up` is set, as Redis is in an outage; so is a pickle of it."""

    is_up = False

    def submit(self, *args: Any) -> bool:
        return self.is_up and super().submit(*args)


class LateStore(MemoryStore):
    """Does what it is asked, and its answers are lost, as those of a slow Redis."""

    is_late = True

    def submit(self, *args: Any) -> bool:
        operation, name, arguments, *on_reply = args
        if not self.is_late:
            return super().submit(*args)
        super().submit(operation, name, arguments)
        for one in on_reply:
            one(None)
        return True


def eventually(happened: Callable[[], object]) -> None:
    """Wait until the threads of the stores have done something."""
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)  # noqa: TID251 - threads need real time


def states(store: RedisStore) -> list[str]:
    """The states of the breakers, as everybody can read them."""
    found = [scope for scope in store.snapshot() if scope.kind == "breaker"]
    return [scope.facts["state"] for scope in found]


def stores_of(server: fakeredis.FakeServer, count: int) -> list[RedisStore]:
    """Stores with a lane each, as different processes have."""
    return [
        RedisStore(fakeredis.FakeRedis(server=server, host=f"of-process-{number}"))
        for number in range(count)
    ]


class Processes(NamedTuple):
    """The stores of two processes, and what they share."""

    one: RedisStore
    other: RedisStore
    server: fakeredis.FakeServer

    def client(self) -> fakeredis.FakeRedis:
        return fakeredis.FakeRedis(server=self.server, decode_responses=True)


@pytest.fixture
def processes() -> Iterator[Processes]:
    server = fakeredis.FakeServer()
    one, other = stores_of(server, 2)
    yield Processes(one, other, server)
    one.close()
    other.close()
