"""How long a server asks to be left alone, read from its headers or its sentence.

Sources: `Retry-After` is RFC 9110 section 10.2.3 (seconds or an HTTP date; servers send
fractions, units such as `20s` and ISO 8601 dates too); `retry-after-ms` and
`x-should-retry` are OpenAI's and Azure's; `x-ratelimit-reset-requests` and `-tokens`
(such as `1m30.5s`) are OpenAI's; `anthropic-ratelimit-*-reset` are ISO 8601 dates;
`ratelimit-reset` and `ratelimit: "name";r=0;t=30` are drafts of the IETF's "RateLimit
header fields". As Unix time, `x-ratelimit-reset` is GitHub's in seconds and
OpenRouter's in milliseconds: a number of 1e9 or more is a moment and not a duration.
LiteLLM's proxy hands on what its provider said with `llm_provider-` before each name
(docs.litellm.ai/docs/proxy/response_headers).

`read_limits` reads the same families for what they say of limits that are not used up.

What is negative, infinite, not a number, or malformed is ignored. Of several values the
longest counts, since it is used as a floor. The reset headers of a rate limit are read
only where the server named no time itself, and only for a limit that is used up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, TypeAlias

from langchain_retryrouter.rate_limits import ServerLimit

Headers: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]

_NUMBER: Final = re.compile(r"\+?(\d+\.?\d*|\.\d+)", re.ASCII)
_DURATION: Final = re.compile(
    r"(?:(?P<d>\d+)d)?(?:(?P<h>\d+)h)?(?:(?P<m>\d+)m(?!s))?"
    r"(?:(?P<s>\d+(?:\.\d+)?)s)?(?:(?P<ms>\d+(?:\.\d+)?)ms)?",
    re.ASCII,
)
# Of several dates in one line each one, with the comma that two of the forms have.
_DATE: Final = re.compile(r"(?:^|,)\s*([A-Za-z]{3,9},?[^,]*:[^,]*)", re.ASCII)
_ISO_DATE: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[^\s,]*", re.ASCII)
# "Please try again in 1m2.5s.", "Please retry after 26 seconds.", "wait 5 minutes"
_AMOUNT: Final = (
    r"(?P<number>\d{1,9}(?:\.\d{1,9})?) ?"
    r"(?P<unit>ms|milliseconds?|s|secs?|seconds?|m|mins?|minutes?|h|hours?|d|days?)"
    r"(?![a-z])"
)
_NAMELESS: Final = re.sub(r"\?P<\w+>", "?:", _AMOUNT)
_WAIT: Final = re.compile(
    r"\b(?:try again|retry|wait|available|resets?)(?: \w+)??"
    rf" ((?:{_NAMELESS}(?:,? and |,? )?)+)"
)
_ONE_AMOUNT: Final = re.compile(_AMOUNT)
_HANDED_ON: Final = "llm_provider-"
_UNIT_SECONDS: Final = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
# A longer value is no time but an attack on the parser; one line may hold several.
_LONGEST_VALUE: Final = 64
_LONGEST_LINE: Final = 4 * _LONGEST_VALUE
_LONGEST_SENTENCE: Final = 10_000
_FIRST_MOMENT: Final = 1e9  # 2001 in seconds since the Unix epoch ...
_FIRST_MOMENT_MS: Final = 1e12  # ... and in milliseconds.
_RESETS: Final = (
    ("x-ratelimit-reset-requests", "x-ratelimit-remaining-requests"),
    ("x-ratelimit-reset-tokens", "x-ratelimit-remaining-tokens"),
    ("x-ratelimit-reset", "x-ratelimit-remaining"),
    ("ratelimit-reset", "ratelimit-remaining"),
    *(
        (f"anthropic-ratelimit-{what}-reset", f"anthropic-ratelimit-{what}-remaining")
        for what in ("requests", "tokens", "input-tokens", "output-tokens")
    ),
)
_IETF: Final = re.compile(r"(?:^|;)\s*(?P<name>[rtqw])=(?P<value>\d+)", re.ASCII)
# Of its older drafts: `limit=100, remaining=50, reset=30`, and `100;w=60`.
_NAMELESS_FACTS: Final = re.compile(
    r"(?:^|,)\s*(limit|remaining|reset)=(\d{1,15})", re.ASCII
)
_NAMELESS_WINDOW: Final = re.compile(r"(?:^|,)\s*(\d{1,15});\s*w=(\d{1,9})", re.ASCII)
_IETF_FACTS: Final = {"q": "limit", "r": "remaining", "t": "reset", "w": "window"}
# `x-ratelimit-reset-tokens`, `anthropic-ratelimit-input-tokens-reset`, and so on.
_LIMIT: Final = re.compile(
    r"(?:x-|anthropic-)?ratelimit-(?:(?P<what>[a-z-]+)-)?"
    r"(?P<fact>limit|remaining|reset)(?:-(?P<last>[a-z-]+))?"
)
# Of limits on the tokens of answers alone there is no view.
_KINDS: Final = (
    (re.compile(r"output|audio|image|neuron|connection"), None),
    (re.compile(r"input|prompt"), "input_tokens"),
    (re.compile(r"token|size"), "tokens"),
    (re.compile(r""), "requests"),
)
_WINDOWS: Final = (
    ("second", 1.0),
    ("minute", 60.0),
    ("hour", 3_600.0),
    ("day", 86_400.0),
)


@dataclass(frozen=True, slots=True)
class ServerAdvice:
    """What a server's headers say about trying again; None if they do not."""

    retry_after: float | None = None
    should_retry: bool | None = None


def read_advice(headers: Headers, *, unix_time: float) -> ServerAdvice:
    """What the headers of a failed answer say about when and whether to come back.

    `unix_time` is for an HTTP date in an answer that has no `Date` of its own.
    """
    fields = _fields_of(headers)
    spelled = {value.lower() for value in fields.get("x-should-retry", ())}
    return ServerAdvice(
        retry_after=_read_retry_after(fields, _now(fields, unix_time)),
        should_retry=(
            False if "false" in spelled else True if "true" in spelled else None
        ),
    )


def read_limits(headers: Headers, *, unix_time: float) -> list[ServerLimit]:
    """What the headers of an answer say of the server's limits."""
    fields = _fields_of(headers)
    now = _now(fields, unix_time)
    found: dict[str, dict[str, float]] = {}
    windows: dict[float, float] = {}  # Of limits without a name.
    for field, text in [(name, text) for name in fields for text in fields[name]]:
        if field in {"ratelimit", "ratelimit-policy", "ratelimit-limit"}:
            windows |= {float(n): float(w) for n, w in _NAMELESS_WINDOW.findall(text)}
        if field == "ratelimit" and (facts := dict(_NAMELESS_FACTS.findall(text))):
            numbers = {fact: float(number) for fact, number in facts.items()}
            found.setdefault("", {}).update(numbers)
        elif field in {"ratelimit", "ratelimit-policy"}:
            for limit in text.split(","):
                said = {_IETF_FACTS[k]: float(n) for k, n in _IETF.findall(limit)}
                found.setdefault(limit.partition(";")[0].strip(), {}).update(said)
        elif match := _LIMIT.fullmatch(field):
            what, fact = match["what"] or match["last"] or "", match["fact"]
            number = _number(text.partition(",")[0].partition(";")[0].strip())
            if fact == "reset":
                number = _duration_or_moment(text, now)
            if number is not None:
                found.setdefault(what, {})[fact] = number
    limits = []
    for what, of_one in found.items():
        if what.isdecimal():
            continue
        if not what and (seconds := windows.get(of_one.get("limit", -1.0))):
            of_one["window"] = seconds
        words = what.lower().replace("_", "-")
        kind = next((kind for pattern, kind in _KINDS if pattern.search(words)), None)
        window = next((n for word, n in _WINDOWS if word in words), None)
        if kind is not None and of_one:
            limits.append(
                ServerLimit(
                    kind,
                    of_one.get("limit"),
                    of_one.get("remaining"),
                    of_one.get("reset"),
                    of_one.get("window", window),
                )
            )
    return limits


def read_wait(sentence: str) -> float | None:
    """The seconds that a provider's sentence asks to wait, if it names a time."""
    waits = _WAIT.findall(sentence[:_LONGEST_SENTENCE].lower())
    return _longest(
        sum(
            float(number) * _UNIT_SECONDS["ms" if unit.startswith("mil") else unit[0]]
            if unit != "ms"
            else float(number) / 1000
            for number, unit in _ONE_AMOUNT.findall(wait)
        )
        for wait in waits
    )


def _fields_of(headers: Headers) -> dict[str, list[str]]:
    """The values of each header, without those that are too long."""
    fields: dict[str, list[str]] = {}
    for name, value in headers.items() if isinstance(headers, Mapping) else headers:
        if len(value) <= _LONGEST_LINE:
            field = name.lower().removeprefix(_HANDED_ON)
            fields.setdefault(field, []).append(value.strip())
    return fields


def _now(fields: Mapping[str, list[str]], unix_time: float) -> float:
    # The server's own `Date` takes a skew between the two clocks out of the sum.
    dates = (_timestamp(value) for value in fields.get("date", ()))
    return next((date for date in dates if date is not None), unix_time)


def _read_retry_after(fields: Mapping[str, list[str]], now: float) -> float | None:
    milliseconds = (_number(value) for value in fields.get("retry-after-ms", ()))
    waits = [
        *(None if value is None else value / 1000 for value in milliseconds),
        *(_seconds_or_date(value, now) for value in fields.get("retry-after", ())),
        *(_number(value) for value in fields.get("x-ratelimit-reset-after", ())),
    ]
    if any(wait is not None for wait in waits):
        return _longest(waits)
    # Without those, the end of the limit that is used up.
    waits = [
        _duration_or_moment(value, now)
        for reset, remaining in _RESETS
        if "0" in fields.get(remaining, ())
        for value in fields.get(reset, ())
    ]
    for line in fields.get("ratelimit", ()):
        for limit in line.split(","):
            ietf = dict(_IETF.findall(limit))
            waits.append(_number(ietf.get("t", "")) if ietf.get("r") == "0" else None)
        facts = dict(_NAMELESS_FACTS.findall(line))
        if facts.get("remaining") == "0":
            waits.append(_number(facts.get("reset", "")))
    return _longest(waits)


def _longest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _number(text: str) -> float | None:
    """A number as servers write it: no minus, no exponent, no `inf` or `nan`."""
    is_number = len(text) <= _LONGEST_VALUE and _NUMBER.fullmatch(text)
    return float(text) if is_number else None


def _seconds_or_date(text: str, now: float) -> float | None:
    # A proxy may fold a repeated header into one line, with dates and numbers in it.
    dates = [*_DATE.findall(text), *_ISO_DATE.findall(text)]
    moments = [_timestamp(date) for date in dates]
    parts = [part.strip() for part in text.split(",")]
    return _longest(
        [
            *(max(0.0, moment - now) for moment in moments if moment is not None),
            *(_number(part) for part in parts),
            *(_duration(part) for part in parts),
        ]
    )


def _timestamp(text: str) -> float | None:
    if _ISO_DATE.fullmatch(text) and len(text) <= _LONGEST_VALUE:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            return None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
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
        moment = _timestamp(text)
        return _duration(text) if moment is None else max(0.0, moment - now)
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
