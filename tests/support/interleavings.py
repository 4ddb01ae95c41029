"""Random operations on shared records, in Redis and in Python, and their invariants."""

import json
import random  # noqa: TID251 - seeded
from typing import Any, Final

import fakeredis
import pytest
import redis

from langchain_retryrouter._shared import BREAKER, BUDGET, Operation, Record
from langchain_retryrouter.stores.redis import script

ACTIONS: Final = (
    *("see", "hold", "pause", "vote", "vote", "retract", "probe", "probe", "probe"),
    *("renew", "cancelled", "succeeded", "failed", "close", "restore"),
)


def random_args(rng: random.Random, leases: dict[str, int], gen: int) -> list[Any]:
    """The arguments of a random action of a random process."""
    me = f"host:{rng.randrange(4)}:x#{rng.randrange(2)}"
    process = me.partition("#")[0]
    lease = leases.get(me, 0) if rng.random() < 0.8 else rng.randrange(5)
    action = rng.choice(ACTIONS)
    pause = rng.choice([0, 500, 2_000, 20_000])
    own: dict[str, list[Any]] = {
        "hold": [pause, rng.randrange(2), "said"],
        "pause": [pause],
        "vote": [process, pause, 5_000, rng.randint(1, 3), rng.randrange(2), "felt"],
        "retract": [process],
        "probe": [gen + rng.choice([0, 0, 0, -1, 1]), rng.randrange(2), 3_000, "lost"],
        "renew": [lease, 3_000],
        "cancelled": [lease],
        "succeeded": [lease],
        "failed": [lease, pause, rng.choice([0, pause])],
        "close": [gen],
        "restore": [
            gen + rng.choice([-1, 0, 1]),
            pause,
            rng.choice([0, pause]),
            "lost",
        ],
    }
    return [action, me, *own.get(action, [])]


def check(
    args: list[Any], reply: list[Any], before: Record, after: Record, now: int
) -> None:
    """What holds for each operation on a breaker, whatever came before."""
    action, me = args[:2]
    assert after.get("gen", 0) >= before.get("gen", 0)
    was_open, is_open = "open_until" in before, "open_until" in after
    if reply[5]:  # A lease was given.
        assert action == "probe"
        assert before.get("lease_until", 0) <= now or before.get("lease_by") == me
        assert reply[5] == before.get("lease_no", 0) + 1 == after["lease_no"]
        assert after["lease_until"] == now + args[4]
        is_due = before.get("open_until", 0) <= now
        is_news = args[2] > before.get("gen", 0)  # Redis was emptied in between.
        assert is_due or is_news or (args[3] and not before.get("probed"))
    if was_open and not is_open:
        holds = before.get("lease_by") == me and before.get("lease_no") == args[2]
        assert (action == "succeeded" and holds) or action == "close"
    if not was_open and is_open and action == "vote":
        voters = {
            f[2:] for f in before if f.startswith("v:") and now - before[f] <= args[4]
        }
        alive = sum(f.startswith("p:") for f in after)
        assert len(voters | {args[2]}) >= (min(args[5], alive) if args[6] else args[5])
    if action in {"succeeded", "failed", "cancelled", "renew"} and (
        before.get("lease_by") != me or before.get("lease_no") != args[2]
    ):
        changed = dict(after.items() ^ before.items())
        assert all(field.startswith("p:") for field in changed)
    if was_open and is_open and action == "hold":
        assert after["open_until"] >= before["open_until"]


class LuaAndPython:
    """Runs an operation in both, on a record each, and compares the replies."""

    def __init__(self, operation: Operation, client: redis.Redis | None = None) -> None:
        self.record: Record = {}
        self._operation = operation
        self._redis = client or fakeredis.FakeRedis(decode_responses=True)
        lua = script(operation)[0].replace("redis.call('TIME')", "{ARGV[3], ARGV[4]}")
        self._lua = self._redis.register_script(lua)
        self.lose()

    def run(self, now: int, args: list[Any]) -> list[Any]:
        reply = self._operation.run(self.record, now, args)
        told = self._lua(
            keys=[self._operation.name],
            args=["news", json.dumps(args), str(now // 1000), str(now % 1000 * 1000)],
        )
        told = json.loads(told)
        assert told == reply or told == pytest.approx(reply)
        return reply

    def lose(self, older: Record | None = None) -> None:
        """Lose the record, as a restart without persistence does; or have an older."""
        self.record.clear()
        self._redis.delete(self._operation.name)
        if older:
            self.record.update(older)
            texts: Any = {field: str(value) for field, value in older.items()}
            self._redis.hset(self._operation.name, mapping=texts)


def run_interleaving(client: redis.Redis, rng: random.Random, count: int) -> int:
    """Run so many operations in both; equal replies, and what `check` says.

    Returns:
        The number of operations.
    """
    breaker, budget = (LuaAndPython(one, client) for one in (BREAKER, BUDGET))
    now, leases = 1_900_000_000_000, dict[str, int]()
    for _ in range(count):
        now += rng.choice([0, 1, 30, 400, 3_000, 12_000])
        if rng.random() < 0.01:
            breaker.lose()
        if rng.random() < 0.1:
            change, before = rng.choice([-14, -5, 1, 20]), dict(budget.record)
            # Some messages come again.
            number = max(1, before.get("s:h:1:x#0", 0) + rng.choice([0, 1, 1]))
            reply = budget.run(now, ["h:1:x#0", number, 500, change, 300])
            assert -500 <= reply[1] <= 500
            if number == before.get("s:h:1:x#0"):
                assert reply[1] == before["tokens"]
            continue
        args = random_args(rng, leases, breaker.record.get("gen", 0))
        before = dict(breaker.record)
        reply = breaker.run(now, args)
        check(args, reply, before, breaker.record, now)
        if reply[5]:
            leases[args[1]] = reply[5]
    left = client.hgetall("breaker")
    assert {field: str(value) for field, value in breaker.record.items()} == left
    assert not left or client.pttl("breaker") > 0
    return count
