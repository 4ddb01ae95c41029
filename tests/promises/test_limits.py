"""Rate limits: all of a limit is used and no more, by one process or by many."""

import asyncio
import random  # noqa: TID251 - seeded
import statistics
import time
from typing import Any

import pytest

from langchain_retryrouter import RateLimit
from langchain_retryrouter.failures import Failure, FailureKind
from langchain_retryrouter.rate_limits import Size
from langchain_retryrouter.stores import RedisStore
from tests.promises.conftest import Figures
from tests.promises.harness import VirtualClock, let_pass, run
from tests.support.fleet import each, fleet
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.timeout(1_800)
REFUSED = Failure(FailureKind.RATE_LIMIT, status_code=429, may_have_run=False)


@pytest.mark.parametrize("strict", [False, True], ids=["leases", "strict"])
def test_a_fleet_keeps_a_limit(
    redis_server: RedisServer, figures: Figures, *, is_long: bool, strict: bool
) -> None:
    """Twice as much is wanted as there is; all of it is used, and shared fairly."""
    processes, a_second, seconds = (64, 600, 60) if is_long else (4, 60, 12)
    numbers: dict[str, Any] = {"requests_per_minute": 60 * a_second, "strict": strict}
    wanted = 1_280 / 600 * a_second / processes
    with fleet(processes) as workers:
        each(workers, "limit", redis_server.url, numbers)
        begin = time.monotonic() + 1.0
        for worker in workers:
            worker.send("admit_for", begin, begin + 2 + seconds, wanted)
        admitted = [worker.receive(seconds + 60) for worker in workers]
    # Before, processes start, and the first call of each does not wait.
    counts = [sum(at >= begin + 2 for at in times) for times in admitted]
    share = sum(counts) / (a_second * seconds)
    fair = sum(counts) / processes
    kind = "strict" if strict else "leases"
    figures.at_most(1.02, share, f"of the limit is used, {kind}: at most")
    figures.at_least(0.97, share, f"of the limit is used, {kind}: at least")
    figures.at_most(2, max(counts) / fair, f"times the fair share, {kind}: at most")
    figures.at_least(0.5, min(counts) / fair, f"times the fair share, {kind}: at least")
    if is_long:
        whole = sum(at < begin + 60 for times in admitted for at in times)
        share = whole / (a_second * 60)
        figures.at_most(1.02, share, f"of the limit in the first minute, {kind}")


class Provider:
    """Counts the tokens of a minute in a bucket, as OpenAI and Anthropic do."""

    def __init__(self, clock: VirtualClock, per_minute: float) -> None:
        self._clock, self._rate = clock, per_minute / 60
        self._level = self._capacity = per_minute
        self._read = 0.0
        self.refused = self.asked = 0
        self.tokens = 0.0

    def admits(self, tokens: float) -> bool:
        now = self._clock.monotonic()
        gained = (now - self._read) * self._rate
        self._level, self._read = min(self._capacity, self._level + gained), now
        self.asked += 1
        if tokens > self._level:
            self.refused += 1
            return False
        self._level -= tokens
        self.tokens += tokens if now <= 120 else 0
        return True


@pytest.mark.parametrize("bias", [0.5, 1.0, 1.5], ids=["half", "right", "more"])
def test_tokens_are_used_up_though_estimates_are_wrong(
    bias: float, figures: Figures, *, is_long: bool
) -> None:
    """Each request uses between half and one and a half times what is expected."""
    per_minute = 600_000.0

    async def main() -> Provider:
        clock = VirtualClock(7)
        provider = Provider(clock, per_minute)
        limit = RateLimit(tokens_per_minute=per_minute, clock=clock)
        rng = random.Random(7)  # noqa: S311 - seeded

        async def worker() -> None:
            while clock.monotonic() < 120:
                size = Size(rng.randrange(200, 2_000), rng.choice([None, 500, 4_000]))
                one = await limit.areserve(size)
                assert one is not None
                assert size.prompt is not None
                wrong = bias * rng.uniform(0.5, 1.5)
                used = round(size.prompt * wrong), round(250 * wrong)
                if not provider.admits(sum(used)):
                    one.failed(REFUSED)
                    continue
                await let_pass(rng.uniform(0.5, 3.0))
                one.used = used
                one.succeeded()

        await asyncio.gather(*(worker() for _ in range(200 if is_long else 60)))
        return provider

    provider = run(main())
    share = provider.tokens / (2 * per_minute)
    figures.at_most(1.02, share, "of the tokens of two minutes are used: at most")
    figures.at_least(0.97, share, "of the tokens of two minutes are used: at least")
    refused = provider.refused / provider.asked
    figures.at_most(0.001, refused, "of the requests are refused")


def test_a_turn_is_cheap(
    redis_server: RedisServer, figures: Figures, *, is_long: bool
) -> None:
    """To reserve and to settle, where there is room."""
    store = RedisStore(redis_server.url, namespace="turns")
    million = {"requests_per_minute": 6e7, "tokens_per_minute": 6e9}
    limits = {
        "alone": RateLimit(**million, max_concurrency=100),  # type: ignore[arg-type] # numbers
        "shared": RateLimit(**million, name="turns", store=store),  # type: ignore[arg-type] # as above
    }
    for name, limit in limits.items():
        seconds = []
        for _ in range(20_000 if is_long else 2_000):
            began = time.perf_counter()
            one = limit.reserve(Size(100, 100))
            seconds.append(time.perf_counter() - began)
            assert one is not None
            one.succeeded()
        micro = 1e6 * statistics.median(seconds)
        figures.timed(100, micro, f"µs for a turn at a limit, {name} (median)")
    store.close()
