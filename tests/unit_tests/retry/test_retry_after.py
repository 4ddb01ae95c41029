"""What is read from headers that servers, proxies and attackers wrote."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from email.utils import formatdate
from types import MappingProxyType

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from langchain_retryrouter._retry.retry_after import ServerAdvice, read_advice
from langchain_retryrouter.policy import RetryPolicy

# Friday, 15 January 2027, 08:00:00 GMT.
NOW = 1_800_000_000.0


def retry_after(*fields: tuple[str, str]) -> float | None:
    """The seconds that these header fields ask for, read at `NOW`."""
    return read_advice(fields, unix_time=NOW).retry_after


def shown(value: object) -> str:
    """A name for a test, without what would be escaped, and again if asked twice."""
    return ascii(value)[:20].replace("\\", "/")


# --- Retry-After in seconds ---------------------------------------------------------

SECONDS = [
    ("0", 0.0),
    ("1", 1.0),
    ("007", 7.0),
    ("120", 120.0),
    ("86400", 86_400.0),
    ("1.5", 1.5),
    ("0.25", 0.25),
    (".5", 0.5),
    ("5.", 5.0),
    ("+5", 5.0),
    (" 5 ", 5.0),
    ("\t5", 5.0),
    ("1" + "0" * 60, 1e60),
    ("5".zfill(64), 5.0),
    ("5".zfill(65), None),
    # Folded by a proxy: the longest is the floor that satisfies all.
    ("5, 10", 10.0),
    ("10,5", 10.0),
    ("5,", 5.0),
    ("5, never", 5.0),
    ("-5, 3", 3.0),
    # Says nothing.
    ("", None),
    (" ", None),
    (",", None),
    ("-1", None),
    ("-0", None),
    ("-0.5", None),
    ("inf", None),
    ("+inf", None),
    ("-inf", None),
    ("Infinity", None),
    ("nan", None),
    ("1e3", None),
    ("1e999", None),
    ("1_000", None),
    ("0x10", None),
    ("1 000", None),
    ("1.2.3", None),
    (".", None),
    ("+", None),
    ("--5", None),
    ("5s", 5.0),
    ("five", None),
    ("null", None),
    ("True", None),
    ("5\x00", None),
    ("5;q=1", None),
    ('"5"', None),
    # Digits that Python's `float` would take, and no server means.
    ("٣", None),
    ("\uff15", None),
    ("²", None),
    ("१२", None),
    ("1" + "0" * 64, None),
    ("9" * 100_000, None),
    ("1" * 70 + ".5", None),
]


@pytest.mark.parametrize(("value", "seconds"), SECONDS, ids=shown)
def test_seconds(value: str, seconds: float | None) -> None:
    """Whole and broken seconds are read; what is malformed says nothing."""
    assert retry_after(("Retry-After", value)) == seconds


@pytest.mark.parametrize("name", ["retry-after", "RETRY-AFTER", "Retry-after"])
def test_names_have_no_case(name: str) -> None:
    """HTTP/1.1 servers write names as they like, HTTP/2 in lower case."""
    assert retry_after((name, "3")) == 3


def test_a_mapping_will_do() -> None:
    """Headers come as a mapping or as pairs."""
    headers = MappingProxyType({"Retry-After": "3", "x-should-retry": "true"})
    advice = read_advice(headers, unix_time=NOW)
    assert advice == ServerAdvice(retry_after=3.0, should_retry=True)


def test_no_headers_say_nothing() -> None:
    """Without headers there is no advice."""
    assert read_advice({}, unix_time=NOW) == ServerAdvice(None, None)
    assert read_advice([], unix_time=NOW) == ServerAdvice(None, None)


def test_of_repeated_headers_the_longest_counts() -> None:
    """A floor that satisfies every value that was sent."""
    assert (
        retry_after(("Retry-After", "1"), ("retry-after", "7"), ("Retry-After", "3"))
        == 7
    )
    assert retry_after(("Retry-After", "soon"), ("Retry-After", "3")) == 3


# --- retry-after-ms -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("250", 0.25),
        ("1500.5", 1.5005),
        ("0", 0.0),
        ("-250", None),
        ("nan", None),
        ("1e3", None),
        ("", None),
        ("250ms", None),
    ],
)
def test_milliseconds(value: str, seconds: float | None) -> None:
    """`retry-after-ms` counts thousandths, and is read as suspiciously."""
    assert retry_after(("retry-after-ms", value)) == seconds


@pytest.mark.parametrize(
    ("milliseconds", "seconds", "told"),
    [
        ("1500", "1", 1.5),
        ("500", "1", 1.0),
        ("nonsense", "1", 1.0),
        ("500", "later", 0.5),
    ],
)
def test_the_longer_of_both_headers_counts(
    milliseconds: str, seconds: str, told: float
) -> None:
    """A server that rounds its seconds down is held to its milliseconds."""
    fields = (("retry-after-ms", milliseconds), ("retry-after", seconds))
    assert retry_after(*fields) == told
    assert retry_after(*reversed(fields)) == told


# --- Retry-After as a date ----------------------------------------------------------

FOLDED = ("00:30", "01:00", "00:45")
DATES = [
    ("Fri, 15 Jan 2027 08:00:30 GMT", 30.0),
    ("Friday, 15-Jan-27 08:00:30 GMT", 30.0),  # RFC 850, obsolete, to be accepted
    ("Fri Jan 15 08:00:30 2027", 30.0),  # asctime, obsolete, to be accepted
    ("fri, 15 jan 2027 08:00:30 gmt", 30.0),
    ("Fri, 15 Jan 2027 08:00:30 UTC", 30.0),
    ("Fri, 15 Jan 2027 08:00:30 +0000", 30.0),
    ("Fri, 15 Jan 2027 08:00:30 -0000", 30.0),
    ("Fri, 15 Jan 2027 09:00:30 +0100", 30.0),
    ("Fri, 15 Jan 2027 08:00:00 GMT", 0.0),
    ("Fri, 15 Jan 2027 07:00:00 GMT", 0.0),  # past: come at once
    ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
    ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
    ("Sat, 16 Jan 2027 08:00:00 GMT", 86_400.0),
    ("Fri, 15 Jan 2027 08:00:30 GMT, Fri, 15 Jan 2027 08:00:30 GMT", 30.0),  # folded
    (
        "Fri, 15 Jan 2027 08:00:30 GMT, Fri, 15 Jan 2027 08:01:00 GMT",
        60.0,
    ),
    (
        ", ".join(f"Friday, 15-Jan-27 08:{time} GMT" for time in FOLDED),
        60.0,
    ),
    ("5, Fri, 15 Jan 2027 08:00:30 GMT", 30.0),
    ("Fri, 15 Jan 2027 08:00:30 GMT, 45", 45.0),
    ("Fri Jan 15 08:00:30 2027,Friday, 15-Jan-27 08:00:40 GMT", 40.0),
    # Says nothing.
    ("Fri, 31 Feb 2027 08:00:30 GMT", None),
    ("Fri, 15 Jan 2027 25:00:00 GMT", None),
    ("Fri, 15 Foo 2027 08:00:30 GMT", None),
    ("Fri, 15 Jan 99999 08:00:30 GMT", None),
    ("Fri, 15 Jan 2027 08:00:30 +999999999999", None),
    ("15 Jan 2027 08:00:30 GMT", None),
    ("2027-01-15T08:00:30Z", 30),
    ("tomorrow: early", None),
    (":", None),
    ("Fri:", None),
    ("Fri, 15 Jan 2027", None),
]


@pytest.mark.parametrize(("value", "seconds"), DATES)
def test_dates(value: str, seconds: float | None) -> None:
    """All three forms of an HTTP date are read; a past one means now."""
    assert retry_after(("Retry-After", value)) == seconds


@pytest.fixture
def far_from_greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This machine's own time is five hours behind GMT."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "EST+5")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("far_from_greenwich")
@pytest.mark.parametrize(("value", "seconds"), DATES)
def test_dates_are_in_gmt_wherever_we_are(value: str, seconds: float | None) -> None:
    """A date that names no zone is in GMT, and not in its reader's zone."""
    assert retry_after(("Retry-After", value)) == seconds


@pytest.mark.parametrize("skew", [-86_400, -60, 0, 60, 86_400])
def test_the_servers_own_date_takes_out_the_skew(skew: float) -> None:
    """A server whose clock goes wrong still means the time between its two dates."""
    assert (
        retry_after(
            ("Date", formatdate(NOW + skew, usegmt=True)),
            ("Retry-After", formatdate(NOW + skew + 30, usegmt=True)),
        )
        == 30
    )


@pytest.mark.parametrize("date", ["", "now", "Fri, 99 Jan 2027 08:00:00 GMT", "0"])
def test_a_date_nobody_can_read_leaves_our_clock(date: str) -> None:
    """Without a usable `Date` our own clock is what a date is compared with."""
    fields = (("Date", date), ("Retry-After", formatdate(NOW + 30, usegmt=True)))
    assert retry_after(*fields) == 30


def test_the_date_does_not_touch_seconds() -> None:
    """Seconds are seconds, whatever the clocks say."""
    assert (
        retry_after(("Date", formatdate(NOW - 500, usegmt=True)), ("Retry-After", "3"))
        == 3
    )


# --- x-ratelimit-reset --------------------------------------------------------------

DURATIONS = [
    ("1m30.5s", 90.5),
    ("20ms", 0.02),
    ("1h2m3s", 3723.0),
    ("6m0s", 360.0),
    ("1s", 1.0),
    ("0s", 0.0),
    ("1h", 3600.0),
    ("1d", 86_400.0),
    ("2d1h", 176_400.0),
    ("1m", 60.0),
    ("1m5ms", 60.005),
    ("17.5ms", 0.0175),
    ("59.999s", 59.999),
    ("3", 3.0),
    ("0.5", 0.5),
    ("", None),
    ("s", None),
    ("ms", None),
    ("-1s", None),
    ("1s1m", None),
    ("1m 30s", None),
    ("1.5h", None),
    ("1e3s", None),
    ("nan", None),
    ("infs", None),
    ("1S", None),
    ("٣s", None),
    ("9" * 70 + "s", None),
]


@pytest.mark.parametrize(("value", "seconds"), DURATIONS, ids=shown)
@pytest.mark.parametrize("unit", ["-requests", "-tokens", ""])
def test_durations(unit: str, value: str, seconds: float | None) -> None:
    """Resets are durations in Go's way of writing them, or plain seconds."""
    told = retry_after(
        (f"x-ratelimit-remaining{unit}", "0"), (f"x-ratelimit-reset{unit}", value)
    )
    assert told == (None if seconds is None else pytest.approx(seconds))


MOMENTS = [
    ("1800000030", 30.0),
    ("1800000030.25", 30.25),
    ("1800000030000", 30.0),
    ("1800000030250", 30.25),
    ("1800000000", 0.0),
    ("1799999999", 0.0),
    ("1799999999999", 0.0),
    ("1000000000", 0.0),
    ("1000000000000", 0.0),
    ("1800086400", 86_400.0),
    # Below all moments that can be meant, a number is seconds.
    ("999999999", 999_999_999.0),
    ("999999999.5", 999_999_999.5),
]


@pytest.mark.parametrize(("value", "seconds"), MOMENTS)
@pytest.mark.parametrize("unit", ["-requests", "-tokens", ""])
def test_a_reset_may_be_a_moment(unit: str, value: str, seconds: float) -> None:
    """Unix time, in seconds or milliseconds, is no wait of decades; past means now."""
    told = retry_after(
        (f"x-ratelimit-remaining{unit}", "0"), (f"x-ratelimit-reset{unit}", value)
    )
    assert told == pytest.approx(seconds)


@pytest.mark.parametrize("skew", [-86_400, 60])
@pytest.mark.parametrize("factor", [1, 1_000], ids=["seconds", "milliseconds"])
def test_a_moment_is_on_the_servers_clock(skew: int, factor: int) -> None:
    """A reset is compared with the `Date` of the server that named both."""
    fields = (
        ("Date", formatdate(NOW + skew, usegmt=True)),
        ("X-RateLimit-Remaining", "0"),
        ("X-RateLimit-Reset", str(factor * (int(NOW) + skew + 30))),
    )
    assert retry_after(*fields) == 30


def test_seconds_to_wait_are_no_moment() -> None:
    """What the server calls Retry-After is seconds or an HTTP date, however long."""
    assert retry_after(("Retry-After", "1800000030")) == 1_800_000_030


@pytest.mark.parametrize("remaining", ["1", "59", "", "-1", "none", None])
def test_a_reset_counts_only_for_a_used_up_limit(remaining: str | None) -> None:
    """OpenAI sends resets with every answer; only that of a used-up limit is a wait."""
    fields = [("x-ratelimit-reset-tokens", "6m0s")]
    if remaining is not None:
        fields.append(("x-ratelimit-remaining-tokens", remaining))
    assert retry_after(*fields) is None


def test_each_reset_belongs_to_its_own_limit() -> None:
    """A used-up limit of requests says nothing about when tokens are refilled."""
    fields = [
        ("x-ratelimit-remaining-requests", "0"),
        ("x-ratelimit-reset-requests", "2s"),
        ("x-ratelimit-remaining-tokens", "150"),
        ("x-ratelimit-reset-tokens", "6m0s"),
    ]
    assert retry_after(*fields) == 2
    fields[2] = ("x-ratelimit-remaining-tokens", "0")
    assert retry_after(*fields) == 360


@pytest.mark.parametrize(("told", "seconds"), [("1", 1.0), ("0", 0.0), ("soon", 360.0)])
def test_a_reset_is_asked_last(told: str, seconds: float) -> None:
    """What the server names itself, be it zero, is not overruled by a reset."""
    reset = [
        ("x-ratelimit-remaining-tokens", "0"),
        ("x-ratelimit-reset-tokens", "6m0s"),
    ]
    assert retry_after(*reset, ("Retry-After", told)) == seconds


def test_the_gateways_own_429() -> None:
    """The gateway's used-up quota says a day, in both of its headers."""
    assert (
        retry_after(
            ("x-ratelimit-limit", "10"),
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", "86400"),
            ("retry-after", "86396"),
        )
        == 86_396
    )


def test_what_a_proxy_hands_on_is_read() -> None:
    """LiteLLM's proxy puts a word before the names of its provider's headers."""
    assert (
        retry_after(("llm_provider-retry-after", "7"), ("x-litellm-timeout", "9")) == 7
    )
    both = (("LLM_Provider-Retry-After-Ms", "2500"), ("retry-after", "1"))
    assert retry_after(*both) == 2.5
    handed_on = [("llm_provider-x-should-retry", "false")]
    assert read_advice(handed_on, unix_time=NOW).should_retry is False


# --- x-should-retry -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "final_error"),
    [
        ([], None),
        (["true"], True),
        (["false"], False),
        (["TRUE"], True),
        ([" False "], False),
        (["true", "false"], False),
        (["false", "true"], False),
        (["1"], None),
        (["0"], None),
        (["no"], None),
        ([""], None),
        (["maybe", "true"], True),
        (["false" * 100], None),
    ],
)
def test_the_servers_verdict(values: list[str], final_error: bool | None) -> None:
    """A clear word counts, and of two contrary ones the cautious."""
    fields = [("X-Should-Retry", value) for value in values]
    assert read_advice(fields, unix_time=NOW).should_retry is final_error


# --- whatever comes -----------------------------------------------------------------

NAMES = [
    "retry-after",
    "Retry-After-Ms",
    "date",
    "x-should-retry",
    "x-ratelimit-reset",
    "x-ratelimit-remaining",
    "x-ratelimit-reset-tokens",
    "x-ratelimit-remaining-tokens",
]
DATE_PARTS = st.sampled_from(
    [
        "Fri,",
        "Friday,",
        "15",
        "15-Jan-27",
        "Jan",
        "2027",
        "0001",
        "9999",
        "08:00:30",
        "24:60:61",
        "GMT",
        "+2359",
        "-2359",
        "+0000",
        "-0000",
        "EST",
        ",",
        "99",
    ]
)
VALUES = st.one_of(
    st.text(max_size=80),
    st.from_regex(r"[+-]?[0-9.,\s]{0,70}[a-z]{0,3}"),
    st.lists(DATE_PARTS, max_size=8).map(" ".join),
    st.floats().map(repr),
    st.sampled_from(["0", "1m30.5s", "20ms", "Mon, 01 Jan 0101 00:00:00 +2359"]),
)


@example([("retry-after", "Fri, 01 Jan 0101 00:00:00 +2359")], 0.0, 1, 0.5)
@example([("retry-after", "Fri, 31 Dec 9999 23:59:59 -2359")], 1e300, 1, 0.5)
@given(
    st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=6),
    st.floats(0, 1e10),
    st.integers(1, 20),
    st.floats(0, 1, exclude_max=True),
)
def test_no_header_can_break_a_wait(
    fields: list[tuple[str, str]], unix_time: float, retry: int, random: float
) -> None:
    """Whatever is sent: a finite time of 0 or more or none, and a floor kept."""
    told = read_advice(fields, unix_time=unix_time).retry_after
    assert told is None or (math.isfinite(told) and math.copysign(1, told) == 1)
    wait = RetryPolicy().delay(retry, random, told)
    assert math.isfinite(wait)
    assert wait >= (told or 0.0)


@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_any_number_of_seconds_is_read_exactly(one: float, other: float) -> None:
    """A number written out in full comes back as it is, and of two the larger."""
    fields = [("retry-after", f"{number:.17f}") for number in (one, other)]
    assert retry_after(*fields) == pytest.approx(max(one, other), abs=1e-15)
