"""What a server asks for is waited for, in whatever form it asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from random import Random  # noqa: TID251 - the type of seeded dice
from types import SimpleNamespace
from typing import Any, Final

import httpx2
import openai
import pytest
from langchain_openai import ChatOpenAI
from openai import _base_client
from openai._models import FinalRequestOptions
from pydantic import SecretStr

from langchain_retryrouter import (
    GPTRouter,
    GPTRouterEmbeddings,
    GPTRouterModel,
    OpenAI,
    RetryPolicy,
    RetryRouter,
)
from langchain_retryrouter._providers.errors import name_failure
from langchain_retryrouter._retry.call_state import CallState, Retry
from langchain_retryrouter._retry.retry_after import read_advice
from langchain_retryrouter.failures import Failure, FailureKind
from langchain_retryrouter.testing import FakeClock, FaultyGateway, Status
from tests.promises.evidence import Evidence, Length, Promise
from tests.promises.rng import seeded
from tests.unit_tests.conftest import Twin

PROMISE = Promise(
    title="Retry-After is a floor",
    number="0 of 100,000 waits early",
    why=(
        "Who comes back sooner than asked is turned away again, and for longer. The"
        " server asks in every form that there is: seconds, milliseconds, the three"
        " HTTP dates, resets of used-up limits, Google's bodies; repeated, folded, with"
        " rubbish beside it, and by a clock that goes wrong by up to a day."
    ),
)
KEY: Final = SecretStr("any")
EARLY: Final = "early waits in 1,000"
MOST: Final = 60.0
"""What is waited for at the most: the policy's `max_retry_after`."""
WALL: Final = 1_800_000_000.25
"""Our own time, in January 2027."""


@dataclass
class Demand:
    """What a server says, made from what it means.

    Attributes:
        seconds: How long it wants to be left alone.
        headers: How it says so.
    """

    seconds: float
    headers: list[tuple[str, str]] = field(default_factory=list)


class ServerWriter:
    """Thinks of a time, and writes it down in one of the forms.

    Nothing here reads a header: what is demanded is known before it is written.
    """

    def __init__(self, rng: Random, *, always_dated: bool = False) -> None:
        self._dice = rng
        self._is_dated = always_dated or rng.random() < 0.5
        skew = rng.choice([0, 0, -86_400, -61, 1, 3_600, 86_400])
        # Without a `Date` the server's clock is taken to be ours.
        self._now = int(WALL) + skew if self._is_dated else WALL

    def demand(self) -> Demand:
        """One answer's headers, and what they ask for."""
        rng = self._dice
        write = rng.choice([self._told, self._told, self._told, self._reset])
        seconds, headers = write()
        if self._is_dated:
            headers.append(("Date", formatdate(self._now, usegmt=True)))
        headers += rng.sample(RUBBISH, rng.randint(0, 2))
        rng.shuffle(headers)
        return Demand(seconds, [self._dressed(*header) for header in headers])

    def _told(self) -> tuple[float, list[tuple[str, str]]]:
        """What the server names itself: of several values the longest counts."""
        forms = [self._seconds, self._seconds, self._date, self._milliseconds]
        told = [self._dice.choice(forms)() for _ in range(self._dice.choice([1, 1, 2]))]
        headers = [(name, text) for _, name, text in told]
        is_folded = {name for name, _ in headers} == {"Retry-After"}
        if is_folded and self._dice.random() < 0.5:  # By a proxy, into one line.
            headers = [("Retry-After", ", ".join(text for _, text in headers))]
        return max(seconds for seconds, _, _ in told), headers

    def _seconds(self) -> tuple[float, str, str]:
        text = self._number(self._dice.choice([1, 10, 60, 75]))
        return float(text), "Retry-After", text

    def _milliseconds(self) -> tuple[float, str, str]:
        text = self._number(60_000)
        return float(text) / 1000, "Retry-After-Ms", text

    def _date(self) -> tuple[float, str, str]:
        # In GMT, in the three forms of RFC 9110, section 5.6.7.
        moment = int(self._now) + self._dice.randint(0, 75)
        fixed = formatdate(moment, usegmt=True)
        day, number, month, year, clock, _ = fixed.replace(",", "").split()
        text = self._dice.choice(
            [
                fixed,
                f"{LONG_DAYS[day]}, {number}-{month}-{year[2:]} {clock} GMT",
                f"{day} {month} {int(number):2d} {clock} {year}",
            ]
        )
        return max(0.0, moment - self._now), "Retry-After", text

    def _reset(self) -> tuple[float, list[tuple[str, str]]]:
        """A used-up limit, beside one that is not."""
        unit = self._dice.choice(["", "-Requests", "-Tokens"])
        seconds, text = self._dice.choice([self._duration, self._moment])()
        headers = [
            (f"X-RateLimit-Remaining{unit}", "0"),
            (f"X-RateLimit-Reset{unit}", text),
        ]
        if unit == "-Requests":
            headers += [
                ("x-ratelimit-remaining-tokens", "150"),
                ("x-ratelimit-reset-tokens", "6m0s"),
            ]
        return seconds, headers

    def _duration(self) -> tuple[float, str]:
        minutes, tenths = self._dice.randint(0, 1), self._dice.randint(0, 150)
        thousandths = self._dice.randint(0, 999)
        return self._dice.choice(
            [
                (60 * minutes + tenths / 10, f"{minutes}m{tenths / 10}s"),
                (thousandths / 1000, f"{thousandths}ms"),
                (tenths / 10, f"{tenths / 10}"),
            ]
        )

    def _moment(self) -> tuple[float, str]:
        moment = int(self._now) + self._dice.randint(0, 75)
        unit = self._dice.choice(["", "000"])
        return max(0.0, moment - self._now), f"{moment}{unit}"

    def _number(self, most: int) -> str:
        whole = self._dice.randint(0, most)
        broken = f"{whole}.{self._dice.randint(0, 999):03d}"
        return self._dice.choice([str(whole), broken, f"{whole}.", f"0{whole}"])

    def _dressed(self, name: str, text: str) -> tuple[str, str]:
        """The same, as proxies and frameworks hand it on."""
        rng = self._dice
        name = rng.choice([name, name.lower(), name.upper(), name.title()])
        return name, rng.choice(["", "", " ", "\t"]) + text + rng.choice(["", " "])


LONG_DAYS: Final = {
    "Mon": "Monday",
    "Tue": "Tuesday",
    "Wed": "Wednesday",
    "Thu": "Thursday",
    "Fri": "Friday",
    "Sat": "Saturday",
    "Sun": "Sunday",
}
RUBBISH: Final = [
    ("Retry-After", "soon"),
    ("Retry-After", "-1"),
    ("Retry-After", "nan"),
    ("Retry-After-Ms", "inf"),
    ("Retry-After", "Fri, 31 Feb 2027 08:00:30 GMT"),
    ("X-Request-Id", "Retry-After: 1"),
]


def is_early(demand: Demand, retry_after: float | None, rng: Random) -> bool:
    """Whether a call would come back before it may, by what was read.

    Raises:
        AssertionError: It gives up where it could wait; that is no way to be on time.
    """
    clock = FakeClock(random=rng.choice([0.0, rng.random()]))
    call_state = CallState(RetryPolicy(), time=clock)
    call_state.admit()
    decision = call_state.failed(Failure(FailureKind.RATE_LIMIT, 429, retry_after))
    if isinstance(decision, Retry):
        return decision.delay < demand.seconds - 1e-6
    assert demand.seconds > MOST, f"{demand}: {decision}"
    return False


def test_no_wait_is_early(evidence: Evidence, length: Length) -> None:
    """Whatever form a server finds for it, nobody is back before that time."""
    cases, seed = length.of(short=3_000, long=100_000), 2027
    rng = seeded(seed)
    early = []
    for _ in range(cases):
        demand = ServerWriter(rng).demand()
        told = read_advice(demand.headers, unix_time=WALL).retry_after
        if is_early(demand, told, rng):
            early.append((demand, told))
    assert not early, f"seed {seed}: {early[:3]}"
    evidence.exactly(0, 1000 * len(early) / cases, EARLY)
    evidence.counted(cases, "demands of servers")


class GoogleError(Exception):
    """Shaped as google-genai's `APIError`."""

    def __init__(self, delay: str) -> None:
        super().__init__("429 RESOURCE_EXHAUSTED")
        self.code, self.status = 429, "RESOURCE_EXHAUSTED"
        info = {"@type": "type.googleapis.com/google.rpc.RetryInfo"}
        told = {"code": 429, "status": self.status, "message": "Slow down."}
        self.details = {"error": {**told, "details": [{**info, "retryDelay": delay}]}}


class RawError(Exception):
    """Carries its headers as they came from the socket."""

    def __init__(self, headers: list[tuple[str, str]]) -> None:
        super().__init__("429")
        self.status = 429
        self.headers = {name.encode(): text.encode() for name, text in headers}


def test_a_router_reads_what_is_no_header(evidence: Evidence, length: Length) -> None:
    """Google's delay in a body, and headers in bytes, are a server's word as well."""
    cases, seed = length.of(short=500, long=5_000), 2028
    rng = seeded(seed)
    early = 0
    for _ in range(cases):
        seconds = rng.randint(0, 7_500) / 100
        raw = [("Retry-After", str(seconds))]
        for error in (GoogleError(f"{seconds}s"), RawError(raw)):
            named = name_failure(error, WALL)
            assert named is not None
            early += is_early(Demand(seconds, raw), named.retry_after, rng)
    assert not early, f"seed {seed}: {early} of {2 * cases} waits early"
    evidence.exactly(0, 1000 * early / (2 * cases), EARLY)
    evidence.counted(2 * cases, "demands of servers")


# --- over HTTP, all classes ---


def gpt_router(gateway: FaultyGateway, clock: FakeClock) -> Any:
    return GPTRouter(**gateway_settings(gateway, clock))


def embeddings(gateway: FaultyGateway, clock: FakeClock) -> Any:
    return GPTRouterEmbeddings(**gateway_settings(gateway, clock))


def gateway_settings(gateway: FaultyGateway, clock: FakeClock) -> dict[str, Any]:
    return {
        "models_priority_list": [GPTRouterModel(name="m", provider_name="p")],
        "gpt_router_api_base": gateway.url,
        "gpt_router_api_key": KEY,
        "clock": clock,
    }


def openai_llm(gateway: FaultyGateway, clock: FakeClock) -> Any:
    return OpenAI(base_url=gateway.openai_url, api_key=KEY, clock=clock)


def retry_router(gateway: FaultyGateway, clock: FakeClock) -> Any:
    model = ChatOpenAI(
        model="gpt-4o",
        base_url=gateway.openai_url,
        api_key=KEY,
        default_headers={"connection": "close"},
    )
    return RetryRouter(routes=[model], clock=clock)


@pytest.mark.parametrize(
    "new_model", [gpt_router, embeddings, openai_llm, retry_router]
)
def test_no_class_comes_back_early(
    new_model: Callable[[FaultyGateway, FakeClock], Any],
    twin: Twin,
    evidence: Evidence,
    length: Length,
) -> None:
    """From the bytes on the wire to the wait: each class holds what it was told."""
    cases, seed = length.of(short=10, long=250), 2029
    rng, clock = seeded(seed), FakeClock(random=0.0)
    early = 0
    with FaultyGateway(gptrouter="hosted") as gateway:
        model = new_model(gateway, clock)
        for _ in range(cases):
            # Dated, since the clock of this machine is not the one of the test.
            demand = ServerWriter(rng, always_dated=True).demand()
            if demand.seconds > MOST:
                continue
            gateway.script(Status(429, demand.headers))
            waits = len(clock.sleeps)
            if new_model is embeddings:
                twin.call(model, "embed_query", "Hello?")
            else:
                twin.invoke(model, "Hello?")
            (wait,) = clock.sleeps[waits:]
            early += wait < demand.seconds - 1e-6
            evidence.counted(1, "of them over HTTP")
    assert not early, f"seed {seed}: {early} of {cases} waits early"
    evidence.exactly(0, 1000 * early / cases, EARLY)


# --- the peers ---


def test_what_the_openai_sdk_does(
    evidence: Evidence, length: Length, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK reads the same headers, by the rules that it ships."""
    cases, rng = length.of(short=1_000, long=20_000), seeded(2027)
    # The SDK asks the machine for the time; it is told the same as we are.
    monkeypatch.setattr(_base_client, "time", SimpleNamespace(time=lambda: WALL))
    early = 0
    with openai.OpenAI(api_key="any", base_url="http://127.0.0.1:9") as sdk:
        options = FinalRequestOptions(method="post", url="/chat/completions")
        for _ in range(cases):
            demand = ServerWriter(rng).demand()
            answer = httpx2.Response(429, headers=demand.headers)
            if sdk._should_retry(answer):  # noqa: SLF001 - as it ships
                wait = sdk._calculate_retry_timeout(  # noqa: SLF001 - as it ships
                    2, options, answer.headers
                )
                early += wait < demand.seconds - 1e-6
    evidence.peer("openai", 1000 * early / cases, EARLY)


def test_what_langchain_community_does(evidence: Evidence, length: Length) -> None:
    """Its GPTRouter waits for 4 s, whatever it is told."""
    cases, rng = length.of(short=1_000, long=20_000), seeded(2027)
    early = sum(ServerWriter(rng).demand().seconds > 4 for _ in range(cases))
    evidence.peer("langchain-community", 1000 * early / cases, EARLY)
