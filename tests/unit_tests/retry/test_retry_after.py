"""The wait that headers of servers, proxies and attackers ask for."""

import math
import time
from collections.abc import Iterator
from email.utils import formatdate
from types import MappingProxyType

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from langchain_retryrouter import RetryPolicy
from langchain_retryrouter._retry.retry_after import ServerAdvice, read_advice

# Friday, 15 January 2027, 08:00:00 GMT.
NOW = 1_800_000_000.0


def retry_after(*fields: tuple[str, str]) -> float | None:
    """The seconds that these header fields ask for, read at `NOW`."""
    return read_advice(fields, unix_time=NOW).retry_after


def short(value: object) -> str:
    """The name of a test: ASCII, and not too long."""
    return ascii(value)[-64:].replace("\\", "/")


VALUES = [
    ("0", 0.0),
    ("007", 7.0),
    ("1.5", 1.5),
    (".5", 0.5),
    ("5.", 5.0),
    ("+5", 5.0),
    ("\t5 ", 5.0),
    ("5s", 5.0),
    ("999999999", 999_999_999.0),
    # Unix times, in seconds or milliseconds.
    ("1800000030", 30.0),
    ("1800000030250", 30.25),
    ("1799999999", 0.0),
    ("5".zfill(64), 5.0),
    ("5".zfill(65), None),
    # Folded by a proxy: the longest is the floor that satisfies all.
    ("5, 10", 10.0),
    ("10,5", 10.0),
    ("5,", 5.0),
    ("5, never", 5.0),
    ("-5, 3", 3.0),
    ("5, Fri, 15 Jan 2027 08:00:30 GMT", 30.0),
    ("Fri, 15 Jan 2027 08:00:30 GMT, 45", 45.0),
    ("Fri Jan 15 08:00:30 2027,Friday, 15-Jan-27 08:00:40 GMT", 40.0),
    ("Friday, 15-Jan-27 08:00:30 GMT, Friday, 15-Jan-27 08:01:00 GMT", 60.0),
    # Dates, in all forms that RFC 9110 has, and others that servers send.
    ("Fri, 15 Jan 2027 08:00:30 GMT", 30.0),
    ("Friday, 15-Jan-27 08:00:30 GMT", 30.0),
    ("Fri Jan 15 08:00:30 2027", 30.0),
    ("fri, 15 jan 2027 08:00:30 gmt", 30.0),
    ("Fri, 15 Jan 2027 08:00:30 -0000", 30.0),
    ("Fri, 15 Jan 2027 09:00:30 +0100", 30.0),
    ("2027-01-15T08:00:30Z", 30.0),
    ("2027-01-15T08:00:30", 30.0),
    ("Fri, 15 Jan 2027 07:00:00 GMT", 0.0),  # Past: come at once.
    ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
    ("Sat, 16 Jan 2027 08:00:00 GMT", 86_400.0),
    # Malformed.
    *(
        (value, None)
        for value in (
            *("", " ", ",", "-1", "-0", "-0.5", "inf", "-inf", "Infinity", "nan"),
            *("1e3", "1e999", "1_000", "0x10", "1 000", "1.2.3", ".", "+", "--5"),
            *("five", "null", "True", "5\x00", "5;q=1", '"5"', "٣", "\uff15", "²"),
            *("9" * 100_000, "1" * 70 + ".5", "1" + "0" * 64),
            "Fri, 31 Feb 2027 08:00:30 GMT",
            "Fri, 15 Jan 2027 25:00:00 GMT",
            "Fri, 15 Foo 2027 08:00:30 GMT",
            "Fri, 15 Jan 99999 08:00:30 GMT",
            "Fri, 15 Jan 2027 08:00:30 +999999999999",
            "15 Jan 2027 08:00:30 GMT",
            "2027-02-31T08:00:30Z",
            *("tomorrow: early", ":", "Fri:", "Fri, 15 Jan 2027"),
        )
    ),
]


@pytest.fixture(params=[False, True], ids=["", "EST"])
def time_zone(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The machine's own time zone, which does not matter."""
    with monkeypatch.context() as patch:
        if request.param:
            patch.setenv("TZ", "EST+5")
            time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("time_zone")
@pytest.mark.parametrize(("value", "seconds"), VALUES, ids=short)
def test_retry_after(value: str, seconds: float | None) -> None:
    """`Retry-After` is seconds or a date in GMT; a malformed value is ignored."""
    assert retry_after(("Retry-After", value)) == seconds


AN_HOUR = {"x-ratelimit-reset-tokens": "1h"}
NO_TOKENS = {"x-ratelimit-remaining-tokens": "0", **AN_HOUR}
NO_REQUESTS = {
    "x-ratelimit-remaining-requests": "0",
    "x-ratelimit-reset-requests": "2s",
}


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({"RETRY-AFTER": "3"}, 3),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "1500.5"}, 1.5005),
        ({"retry-after-ms": "0"}, 0),
        *(
            ({"retry-after-ms": bad}, None)
            for bad in ("-250", "nan", "1e3", "", "250ms")
        ),
        # The longer of both counts, since a server may round its seconds down.
        ({"retry-after-ms": "1500", "retry-after": "1"}, 1.5),
        ({"retry-after-ms": "500", "retry-after": "1"}, 1),
        ({"retry-after-ms": "nonsense", "retry-after": "1"}, 1),
        ({"retry-after-ms": "500", "retry-after": "later"}, 0.5),
        # LiteLLM's proxy hands on its provider's headers under longer names.
        ({"llm_provider-retry-after": "7", "x-litellm-timeout": "9"}, 7),
        ({"LLM_Provider-Retry-After-Ms": "2500", "retry-after": "1"}, 2.5),
        # OpenAI sends resets with every answer; that of a used-up limit is a wait.
        (AN_HOUR, None),
        *(
            ({"x-ratelimit-remaining-tokens": left, **AN_HOUR}, None)
            for left in ("1", "59", "", "-1", "none")
        ),
        ({**NO_TOKENS, **NO_REQUESTS}, 3_600),
        ({"x-ratelimit-remaining-tokens": "150", **AN_HOUR, **NO_REQUESTS}, 2),
        # It counts only if the server names no time itself; 0 is a time.
        ({**NO_TOKENS, "retry-after": "1"}, 1),
        ({**NO_TOKENS, "retry-after": "0"}, 0),
        ({**NO_TOKENS, "retry-after": "soon"}, 3_600),
    ],
    ids=short,
)
def test_the_longest_wait_counts(fields: dict[str, str], seconds: float | None) -> None:
    """Names have no case, milliseconds are exact, and the order does not matter."""
    assert retry_after(*fields.items()) == seconds
    assert retry_after(*reversed(fields.items())) == seconds


def test_headers_are_a_mapping_or_pairs() -> None:
    """Pairs may repeat a name; no headers are no advice."""
    headers = MappingProxyType({"Retry-After": "3", "x-should-retry": "true"})
    expected = ServerAdvice(retry_after=3.0, should_retry=True)
    assert read_advice(headers, unix_time=NOW) == expected
    repeated = [("Retry-After", value) for value in ("1", "7", "soon", "3")]
    assert retry_after(*repeated) == 7
    assert read_advice({}, unix_time=NOW) == ServerAdvice(None, None)
    assert read_advice([], unix_time=NOW) == ServerAdvice(None, None)


@pytest.mark.parametrize("skew", [-86_400, -60, 0, 60, 86_400])
def test_dates_are_on_the_servers_clock(skew: int) -> None:
    """A date or Unix time is compared with the answer's `Date`; seconds are not."""
    date = ("Date", formatdate(NOW + skew, usegmt=True))
    later = int(NOW) + skew + 30
    used_up = ("X-RateLimit-Remaining", "0")
    assert retry_after(date, ("Retry-After", formatdate(later, usegmt=True))) == 30
    assert retry_after(date, used_up, ("X-RateLimit-Reset", str(later))) == 30
    assert retry_after(date, used_up, ("X-RateLimit-Reset", f"{later}000")) == 30
    assert retry_after(date, ("Retry-After", "3")) == 3


@pytest.mark.parametrize("date", ["", "now", "Fri, 99 Jan 2027 08:00:00 GMT", "0"])
def test_without_a_usable_date_the_system_clock_counts(date: str) -> None:
    """A `Date` that cannot be read is ignored."""
    fields = (("Date", date), ("Retry-After", formatdate(NOW + 30, usegmt=True)))
    assert retry_after(*fields) == 30


RESETS = [
    ("1m30.5s", 90.5),
    ("20ms", 0.02),
    ("1h2m3s", 3723.0),
    ("6m0s", 360.0),
    ("2d1h", 176_400.0),
    ("1m5ms", 60.005),
    ("0s", 0.0),
    ("0.5", 0.5),
    # Unix times in seconds or milliseconds; a past one means now.
    ("1800000030.25", 30.25),
    ("1800000030250", 30.25),
    ("1799999999", 0.0),
    ("1799999999999", 0.0),
    ("1000000000", 0.0),
    ("999999999.5", 999_999_999.5),  # A smaller number is seconds.
    *(
        (bad, None)
        for bad in (
            *("", "s", "ms", "-1s", "1s1m", "1m 30s", "1.5h", "1e3s", "nan", "infs"),
            *("1S", "٣s", "9" * 70 + "s"),
        )
    ),
]


@pytest.mark.parametrize(("value", "seconds"), RESETS, ids=short)
@pytest.mark.parametrize("unit", ["-requests", "-tokens", "-tokens-day", ""])
def test_a_reset_is_a_duration_or_a_moment(
    unit: str, value: str, seconds: float | None
) -> None:
    """The reset of a used-up rate limit is the wait."""
    told = retry_after(
        (f"x-ratelimit-remaining{unit}", "0"), (f"x-ratelimit-reset{unit}", value)
    )
    assert told == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("values", "should_retry"),
    [
        ([], None),
        (["TRUE"], True),
        ([" False "], False),
        (["true", "false"], False),
        (["false", "true"], False),
        *(([odd], None) for odd in ("1", "0", "no", "", "false" * 100)),
        (["maybe", "true"], True),
    ],
)
@pytest.mark.parametrize("name", ["X-Should-Retry", "llm_provider-x-should-retry"])
def test_x_should_retry(
    name: str, values: list[str], *, should_retry: bool | None
) -> None:
    """Only `true` and `false` count, and `false` wins over `true`."""
    fields = [(name, value) for value in values]
    assert read_advice(fields, unix_time=NOW).should_retry is should_retry


# --- any input ---

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
DATE_PARTS = (
    *("Fri,", "Friday,", "15", "15-Jan-27", "Jan", "2027", "0001", "9999", "08:00:30"),
    *("24:60:61", "GMT", "+2359", "-2359", "+0000", "-0000", "EST", ",", "99"),
)
ANY_VALUE = st.one_of(
    st.text(max_size=80),
    st.from_regex(r"[+-]?[0-9.,\s]{0,70}[a-z]{0,3}"),
    st.lists(st.sampled_from(DATE_PARTS), max_size=8).map(" ".join),
    st.floats().map(repr),
    st.sampled_from(["0", "1m30.5s", "20ms", "Mon, 01 Jan 0101 00:00:00 +2359"]),
)


@example([("retry-after", "Fri, 01 Jan 0101 00:00:00 +2359")], 0.0, 1, 0.5)
@example([("retry-after", "Fri, 31 Dec 9999 23:59:59 -2359")], 1e300, 1, 0.5)
@given(
    st.lists(st.tuples(st.sampled_from(NAMES), ANY_VALUE), max_size=6),
    st.floats(0, 1e10),
    st.integers(1, 20),
    st.floats(0, 1, exclude_max=True),
)
def test_no_header_can_break_a_wait(
    fields: list[tuple[str, str]], unix_time: float, retry: int, random: float
) -> None:
    """Whatever is sent, the wait is finite, and not shorter than what was read."""
    told = read_advice(fields, unix_time=unix_time).retry_after
    assert told is None or (math.isfinite(told) and math.copysign(1, told) == 1)
    wait = RetryPolicy().delay(retry, random, told)
    assert math.isfinite(wait)
    assert wait >= (told or 0.0)
