"""How long a server asks to be left alone, read from its headers.

Sources: `Retry-After` is RFC 9110 section 10.2.3 (seconds or an HTTP date; servers
send fractions too); `retry-after-ms` and `x-should-retry` are OpenAI's and Azure's;
`x-ratelimit-reset-requests` and `-tokens` (such as `1m30.5s`) are OpenAI's. As Unix
time, `x-ratelimit-reset` is GitHub's in seconds and OpenRouter's in milliseconds: a
number of 1e9 or more is such a moment, since nobody is told to wait for 30 years.
LiteLLM's proxy hands on what its provider said with `llm_provider-` before each name
(docs.litellm.ai/docs/proxy/response_headers).

The reader is suspicious: what is negative, infinite, not a number, or malformed says
nothing. Of several values the longest counts, since the answer is used as a floor; the
`x-ratelimit-reset` family is asked only where the server named no time itself, and only
for a limit that it says is used up. This file does not know what is done with the
answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final, TypeAlias

Headers: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]

_NUMBER: Final = re.compile(r"\+?(\d+\.?\d*|\.\d+)", re.ASCII)
_DURATION: Final = re.compile(
    r"(?:(?P<d>\d+)d)?(?:(?P<h>\d+)h)?(?:(?P<m>\d+)m(?!s))?"
    r"(?:(?P<s>\d+(?:\.\d+)?)s)?(?:(?P<ms>\d+(?:\.\d+)?)ms)?",
    re.ASCII,
)
# Of several dates in one line each one, with the comma that two of the forms have.
_DATE: Final = re.compile(r"(?:^|,)\s*([A-Za-z]{3,9},?[^,]*:[^,]*)", re.ASCII)
_HANDED_ON: Final = "llm_provider-"
_UNIT_SECONDS: Final = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
# A longer value is no time but an attack on the parser; one line may hold several.
_LONGEST_VALUE: Final = 64
_LONGEST_LINE: Final = 4 * _LONGEST_VALUE
_FIRST_MOMENT: Final = 1e9  # 2001 in seconds since the Unix epoch ...
_FIRST_MOMENT_MS: Final = 1e12  # ... and in milliseconds.
_RESETS: Final = (
    ("x-ratelimit-reset-requests", "x-ratelimit-remaining-requests"),
    ("x-ratelimit-reset-tokens", "x-ratelimit-remaining-tokens"),
    ("x-ratelimit-reset", "x-ratelimit-remaining"),
)


@dataclass(frozen=True, slots=True)
class ServerAdvice:
    """What a server's headers say about trying again.

    Attributes:
        retry_after: Seconds to stay away for at least; None if nothing usable is said.
        should_retry: The verdict of `x-should-retry`; None if there is none.
    """

    retry_after: float | None = None
    should_retry: bool | None = None


def read_advice(headers: Headers, *, unix_time: float) -> ServerAdvice:
    """What the headers of a failed answer say about when and whether to come back.

    Args:
        headers: The response's headers; pairs may repeat a name, case does not matter.
        unix_time: The time now in seconds since the Unix epoch, for an HTTP date in an
            answer that has no `Date` of its own.
    """
    fields = _collect(headers)
    return ServerAdvice(
        retry_after=_read_retry_after(fields, unix_time),
        should_retry=_read_verdict(fields.get("x-should-retry", ())),
    )


def _collect(headers: Headers) -> dict[str, list[str]]:
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    fields: dict[str, list[str]] = {}
    for name, value in pairs:
        if len(value) <= _LONGEST_LINE:
            field = name.lower().removeprefix(_HANDED_ON)
            fields.setdefault(field, []).append(value.strip())
    return fields


def _read_verdict(values: Iterable[str]) -> bool | None:
    told = {value.lower() for value in values}
    if "false" in told:
        return False
    return True if "true" in told else None


def _read_retry_after(
    fields: Mapping[str, list[str]], unix_time: float
) -> float | None:
    # The server's own `Date` takes a skew between the two clocks out of the sum.
    dates = [_timestamp(value) for value in fields.get("date", ())]
    now = next((date for date in dates if date is not None), unix_time)
    told = [
        *(_milliseconds(value) for value in fields.get("retry-after-ms", ())),
        *(_seconds_or_date(value, now) for value in fields.get("retry-after", ())),
    ]
    return _longest(told) if any(v is not None for v in told) else _reset(fields, now)


def _reset(fields: Mapping[str, list[str]], now: float) -> float | None:
    return _longest(
        _duration_or_moment(value, now)
        for reset, remaining in _RESETS
        if "0" in fields.get(remaining, ())
        for value in fields.get(reset, ())
    )


def _longest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _number(text: str) -> float | None:
    """A number as servers write it: no minus, no exponent, no `inf` or `nan`."""
    is_number = len(text) <= _LONGEST_VALUE and _NUMBER.fullmatch(text)
    return float(text) if is_number else None


def _milliseconds(text: str) -> float | None:
    value = _number(text)
    return None if value is None else value / 1000


def _seconds_or_date(text: str, now: float) -> float | None:
    # A proxy may fold a repeated header into one line, with dates and numbers in it.
    moments = [_timestamp(date) for date in _DATE.findall(text)]
    return _longest(
        [
            *(max(0.0, moment - now) for moment in moments if moment is not None),
            *(_number(part.strip()) for part in text.split(",")),
        ]
    )


def _timestamp(text: str) -> float | None:
    # `parsedate_to_datetime` accepts bare numbers and fragments; an HTTP date has both
    # a day's name and a clock time.
    if ":" not in text or not text[:1].isalpha() or len(text) > _LONGEST_VALUE:
        return None
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    # The asctime form names no zone, and every HTTP date is in GMT (section 5.6.7).
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _duration_or_moment(text: str, now: float) -> float | None:
    plain = _number(text)
    if plain is None:
        return _duration(text)
    if plain < _FIRST_MOMENT:
        return plain
    return max(0.0, (plain if plain < _FIRST_MOMENT_MS else plain / 1000) - now)


def _duration(text: str) -> float | None:
    match = _DURATION.fullmatch(text)
    if match is None or not 0 < len(text) <= _LONGEST_VALUE:
        return None
    return sum(
        float(amount) * _UNIT_SECONDS[unit]
        for unit, amount in match.groupdict().items()
        if amount is not None
    )
