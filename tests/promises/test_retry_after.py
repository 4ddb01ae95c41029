"""A wait is never shorter than the server asks for, in whatever form it asks."""

from __future__ import annotations

import asyncio
import random  # noqa: TID251 - seeded
import time
from email.utils import formatdate
from typing import Final

import pytest

from langchain_retryrouter import RetryPolicy
from langchain_retryrouter.testing import FakeClock, FaultyGateway, Status
from tests.promises.conftest import Figures, Twin
from tests.promises.models import ALL, aask, ask, new_model

RUBBISH: Final = (
    *(("Retry-After", one) for one in ("soon", "-1", "nan", "Fri, 31 Feb 2027")),
    ("Retry-After-Ms", "inf"),
    ("X-Request-Id", "Retry-After: 1"),
)


def demand(rng: random.Random) -> tuple[float, list[tuple[str, str]]]:
    """Seconds to wait, and headers that ask for them in one of the forms of servers.

    The server's own clock is wrong by up to a day, which its `Date` header shows.
    """
    now = 1_800_000_000 + rng.choice([0, 0, -86_400, -61, 1, 3_600, 86_400])
    pause, later = rng.randint(0, 75), rng.randint(0, 150) / 10
    moment, wait = now + pause, number(rng, rng.choice([1, 10, 60, 75]))
    milliseconds, unit = number(rng, 60_000), rng.choice(["", "-Requests", "-Tokens"])
    then = time.gmtime(moment)
    forms: dict[str, list[tuple[float, str]]] = {
        "Retry-After": [
            (float(wait), wait),
            (pause, formatdate(moment, usegmt=True)),  # RFC 9110, section 5.6.7.
            (pause, time.strftime("%A, %d-%b-%y %H:%M:%S GMT", then)),
            (pause, time.strftime("%a %b %e %H:%M:%S %Y", then)),
        ],
        "Retry-After-Ms": [(float(milliseconds) / 1000, milliseconds)],
        f"X-RateLimit-Reset{unit}": [
            (60 + later, f"1m{later}s"),
            (later, f"{later}"),
            (0.25, "250ms"),
            (pause, str(moment)),
            (pause, f"{moment}000"),
        ],
    }
    name = rng.choice(list(forms))
    seconds, text = rng.choice(forms[name])
    headers = [(name, text), ("Date", formatdate(now, usegmt=True))]
    if name.startswith("X-"):
        headers.append((f"X-RateLimit-Remaining{unit}", "0"))
    elif rng.random() < 0.2:  # The longer of two counts.
        other = number(rng, 60)
        seconds = max(seconds, float(other))
        headers.append(("Retry-After", other))
    headers += rng.sample(RUBBISH, rng.randint(0, 2))
    rng.shuffle(headers)
    case = rng.choice(("title", "lower", "upper"))
    return seconds, [(getattr(name, case)(), text) for name, text in headers]


def number(rng: random.Random, most: int) -> str:
    """A number as servers write it."""
    whole = rng.randint(0, most)
    fraction = f"{whole}.{rng.randint(0, 999):03d}"
    return rng.choice([str(whole), fraction, f"{whole}.", f"0{whole}"])


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ALL)
def test_no_wait_is_early(
    name: str, twin: Twin, figures: Figures, *, is_long: bool
) -> None:
    """Each class waits as long as the headers of a response over HTTP ask for."""
    cases, early = 2_500 if is_long else 40, list[object]()
    rng, clock = random.Random(name), FakeClock(random=0.0)  # noqa: S311
    with FaultyGateway(gptrouter="hosted", keep_requests=0) as gateway:
        policy = RetryPolicy(failover_after_wait=60)  # A router waits, too.
        model = new_model(name, gateway, clock=clock, retry_policy=policy)
        for _ in range(cases):
            seconds, headers = demand(rng)
            if seconds > policy.max_retry_after:
                continue
            gateway.script(Status(429, headers))
            waits = len(clock.sleeps)
            asyncio.run(aask(model)) if twin.is_async else ask(model)
            (wait,) = clock.sleeps[waits:]
            if wait < seconds - 1e-6:
                early.append((seconds, headers, wait))
    assert not early, early[:3]
    figures.exactly(0, len(early), "waits shorter than the server asked for")
    figures.counted(len(clock.sleeps), "waits")
