"""What a server asks for is waited for, in whatever form it asks."""

from __future__ import annotations

import asyncio
import random  # noqa: TID251 - seeded
from email.utils import formatdate
from typing import Final

import pytest

from langchain_retryrouter import RetryPolicy
from langchain_retryrouter.testing import FakeClock, FaultyGateway, Status
from tests.promises.conftest import Figures, Twin
from tests.promises.models import ALL, aask, ask, new_model

MOST: Final = 60.0
"""The longest wait: the policy's `max_retry_after`."""

EARLY: Final = "waits shorter than the server asked for"
LONG_DAYS: Final = {
    name[:3]: name
    for name in (
        *("Monday", "Tuesday", "Wednesday", "Thursday"),
        *("Friday", "Saturday", "Sunday"),
    )
}
RUBBISH: Final = (
    ("Retry-After", "soon"),
    ("Retry-After", "-1"),
    ("Retry-After", "nan"),
    ("Retry-After-Ms", "inf"),
    ("Retry-After", "Fri, 31 Feb 2027 08:00:30 GMT"),
    ("X-Request-Id", "Retry-After: 1"),
)


class ServerWriter:
    """Decides on a pause, and writes it down in one of the forms that servers use.

    Nothing here reads a header: what is asked for is known before it is written. The
    server's own clock is wrong by up to a day, which its `Date` header shows.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = 1_800_000_000 + rng.choice([0, 0, -86_400, -61, 1, 3_600, 86_400])

    def demand(self) -> tuple[float, list[tuple[str, str]]]:
        """Seconds to wait, and the headers of the answer."""
        rng = self.rng
        forms = ("seconds", "milliseconds", "date", "reset")
        seconds, headers = getattr(self, rng.choice(forms))()
        if rng.random() < 0.2:  # The longer of two counts.
            other, repeated = self.seconds()
            if not headers[0][0].startswith("X-"):
                seconds = max(seconds, other)
                headers = [*headers, *repeated]
        headers.append(("Date", formatdate(self.now, usegmt=True)))
        headers += rng.sample(RUBBISH, rng.randint(0, 2))
        rng.shuffle(headers)
        case = rng.choice(("title", "lower", "upper"))
        return seconds, [(getattr(name, case)(), text) for name, text in headers]

    def seconds(self) -> tuple[float, list[tuple[str, str]]]:
        """`Retry-After: 12`, `12.5`, `012`."""
        text = self.number(self.rng.choice([1, 10, 60, 75]))
        return float(text), [("Retry-After", text)]

    def milliseconds(self) -> tuple[float, list[tuple[str, str]]]:
        """`Retry-After-Ms: 1200`."""
        text = self.number(60_000)
        return float(text) / 1000, [("Retry-After-Ms", text)]

    def date(self) -> tuple[float, list[tuple[str, str]]]:
        """One of the three forms of RFC 9110, section 5.6.7."""
        moment = self.now + self.rng.randint(0, 75)
        fixed = formatdate(moment, usegmt=True)
        day, number, month, year, clock, _ = fixed.replace(",", "").split()
        text = self.rng.choice(
            [
                fixed,
                f"{LONG_DAYS[day]}, {number}-{month}-{year[2:]} {clock} GMT",
                f"{day} {month} {int(number):2d} {clock} {year}",
            ]
        )
        return float(moment - self.now), [("Retry-After", text)]

    def reset(self) -> tuple[float, list[tuple[str, str]]]:
        """The end of a used-up limit, as a duration or a Unix time."""
        unit = self.rng.choice(["", "-Requests", "-Tokens"])
        minutes, seconds = self.rng.randint(0, 1), self.rng.randint(0, 150) / 10
        moment = self.now + self.rng.randint(0, 75)
        pause, text = self.rng.choice(
            [
                (60 * minutes + seconds, f"{minutes}m{seconds}s"),
                (seconds, f"{seconds}"),
                (0.25, "250ms"),
                (float(moment - self.now), str(moment)),
                (float(moment - self.now), f"{moment}000"),
            ]
        )
        return pause, [
            (f"X-RateLimit-Remaining{unit}", "0"),
            (f"X-RateLimit-Reset{unit}", text),
        ]

    def number(self, most: int) -> str:
        """A number as servers write it."""
        whole = self.rng.randint(0, most)
        broken = f"{whole}.{self.rng.randint(0, 999):03d}"
        return self.rng.choice([str(whole), broken, f"{whole}.", f"0{whole}"])


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ALL)
def test_no_wait_is_early(
    name: str, twin: Twin, figures: Figures, *, is_long: bool
) -> None:
    """From the bytes on the wire to the wait: each class holds what it was told."""
    cases, early = 2_500 if is_long else 40, list[object]()
    rng, clock = random.Random(name), FakeClock(random=0.0)  # noqa: S311
    with FaultyGateway(gptrouter="hosted", keep_requests=0) as gateway:
        policy = RetryPolicy(failover_after_wait=MOST)  # A router waits, too.
        model = new_model(name, gateway, clock=clock, retry_policy=policy)
        for _ in range(cases):
            seconds, headers = ServerWriter(rng).demand()
            if seconds > MOST:
                continue
            gateway.script(Status(429, headers))
            waits = len(clock.sleeps)
            asyncio.run(aask(model)) if twin.is_async else ask(model)
            (wait,) = clock.sleeps[waits:]
            if wait < seconds - 1e-6:
                early.append((seconds, headers, wait))
    assert not early, early[:3]
    figures.exactly(0, len(early), EARLY)
    figures.counted(len(clock.sleeps), "waits")
