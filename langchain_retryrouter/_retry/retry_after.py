"""How long a server asks to be left alone, read from its headers or its sentence.

Sources: `Retry-After` is RFC 9110 section 10.2.3 (seconds or an HTTP date; servers send
fractions, units such as `20s` and ISO 8601 dates too); `retry-after-ms` and
`x-should-retry` are OpenAI's and Azure's; `x-ratelimit-reset-requests` and `-tokens`
(such as `1m30.5s`) are OpenAI's; `anthropic-ratelimit-*-reset` are ISO 8601 dates;
`ratelimit-reset` and `ratelimit: "name";r=0;t=30` are drafts of the IETF's "RateLimit
header fields". As Unix time, `x-ratelimit-reset` is GitHub's in seconds and
OpenRouter's in milliseconds, and some servers send it as `Retry-After`: a number of 1e9
or more is a moment and not a duration.
LiteLLM's proxy hands on what its provider said with `llm_provider-` before each name
(docs.litellm.ai/docs/proxy/response_headers).

What is negative, infinite, not a number, or malformed is ignored. Of several values the
longest counts, since it is used as a floor. The reset headers of a rate limit are read
only where the server named no time itself, and only for a limit that is used up.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple, TypeAlias

from langchain_retryrouter.rate_limits import ServerLimit

Headers: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]

_NUMBER: Final = re.compile(r"\+?(\d+\.?\d*|\.\d+)", re.ASCII)
_DURATION: Final = re.compile(
    r"(?=\d)(?:\d+d)?(?:\d+h)?(?:\d+m(?!s))?(?:\d+(?:\.\d+)?s)?(?:\d+(?:\.\d+)?ms)?",
    re.ASCII,
)
_SPELT_OUT: Final = re.compile(
    r"\d+(?:\.\d+)? (?:milliseconds?|seconds?|secs?|minutes?|mins?|hours?|days?)",
    re.ASCII,
)
# Of several dates in one line each one, with the comma that two of the forms have.
_DATE: Final = re.compile(r"(?:^|,)\s*([A-Za-z]{3,9},?[^,]*:[^,]*)", re.ASCII)
_ISO_DATE: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[^\s,]*", re.ASCII)
# "Please try again in 1m2.5s.", "Please retry after 26 seconds.", "wait 5 minutes"
_AMOUNT: Final = (
    r"\d{1,9}(?:\.\d{1,9})? ?(?:ms|milliseconds?|s|secs?|seconds?|m|mins?|minutes?"
    r"|h|hrs?|hours?|d|days?)(?![a-z])"
)
_AMOUNTS: Final = rf"(?:{_AMOUNT}(?:,? and |,? )?)+"
_WAIT: Final = re.compile(
    r"\b(?:try again|retry|wait|available|resets?)(?: \w+){0,3}?"
    rf":? ~?({_AMOUNTS})"
)
_AFTER: Final = re.compile(r"\bretry[- ]after:? (\d{1,6})(?![\w:-]|\.\d)(?! ?[a-z])")
_UNTIL: Final = re.compile(
    r"\b(?:again|retry|until|resets?|available)(?: \w+){0,3}?:? ?"
    r"(\d{4}-\d\d-\d\dt\d\d:\d\d:\d\d[^\s,)]*)"
)
# Other languages say when to come back, in the words before or after the time.
_ASKS_TO_RETRY: Final = (
    r"erneut|wieder|nochmal|réessay|nouveau|reint[eé]nt|intent|novamente|riprov"
)
_FOREIGN_AMOUNT: Final = re.compile(
    r"(\d{1,9}) ?(?:(s(?:ekunden?|egundos?|econdes?|econdi))"
    r"|(m(?:inuten?|inutos?|inutes?|inuti))|(stunden?|heures?|horas?))\b"
)
_EAST_ASIAN_AMOUNT: Final = re.compile(
    r"(\d{1,9}) ?(?:(秒|초)|(分|분)|(小时|小時|時間|시간))钟?鐘?"
    r"(?:内|之|以)? ?(?:后|後|후)"
)
_HANDED_ON: Final = "llm_provider-"
_UNIT_SECONDS: Final = {
    "d": 86_400.0,
    "h": 3_600.0,
    "m": 60.0,
    "s": 1.0,
    "ms": 0.001,
    "mil": 0.001,
}
# A longer value is not a time but an attack on the parser; one line may hold several.
_LONGEST_VALUE: Final = 64
_LONGEST_LINE: Final = 4 * _LONGEST_VALUE
_LONGEST_SENTENCE: Final = 10_000
_FIRST_MOMENT: Final = 1e9  # 2001 in seconds since the Unix epoch ...
_FIRST_MOMENT_MS: Final = 1e12  # ... and in milliseconds.
_IETF: Final = re.compile(r"(?:^|;)\s*(?P<name>[rtqw])=(?P<value>\d+)", re.ASCII)
# Of its older drafts: `limit=100, remaining=50, reset=30`, and `100;w=60`.
_NAMELESS_FACTS: Final = re.compile(
    r"(?:^|,)\s*(limit|remaining|reset)=(\d{1,15})", re.ASCII
)
_NAMELESS_WINDOW: Final = re.compile(r"(?:^|,)\s*(\d{1,15});\s*w=(\d{1,9})", re.ASCII)
_IETF_FACTS: Final = {"q": "limit", "r": "remaining", "t": "reset", "w": "window"}
# `x-ratelimit-reset-tokens`, `anthropic-ratelimit-input-tokens-reset`, and so on.
_LIMIT: Final = re.compile(
    r"(?:[a-z]+-)*?rate-?limit(?P<by>by[a-z]+)?-(?:(?P<what>[a-z-]+)-)?"
    r"(?P<fact>limit|remaining|reset)(?:-(?P<last>[a-z-]+))?"
)
# Of limits on the tokens of answers alone there is no view.
_KINDS: Final = (
    (re.compile(r"output|audio|image|neuron|connection"), None),
    (re.compile(r"input|prompt"), "input_tokens"),
    (re.compile(r"token|size"), "tokens"),
    (re.compile(r""), "requests"),
)
_WINDOWS: Final = ("second", "minute", "hour", "day")


class ServerAdvice(NamedTuple):
    """What a server's headers say about trying again; None if they do not."""

    retry_after: float | None = None
    should_retry: bool | None = None


def read_advice(headers: Headers, *, unix_time: float) -> ServerAdvice:
    """What the headers say; `unix_time` is for dates if they have no `Date`."""
    fields, now = _fields_of(headers, unix_time)
    spelled = {value.lower() for value in fields.get("x-should-retry", ())}
    should_retry = False if "false" in spelled else True if "true" in spelled else None
    milliseconds = map(_number, fields.get("retry-after-ms", ()))
    # Gateways put words around it, as Kong's `x-ai-ratelimit-retry-after`.
    named = [n for n in fields if "retry-after" in n and not n.endswith("-ms")]
    waits = [
        *(None if value is None else value / 1000 for value in milliseconds),
        *(_seconds_or_date(value, now) for name in named for value in fields[name]),
        *map(_number, fields.get("x-ratelimit-reset-after", ())),
    ]
    if all(wait is None for wait in waits):
        limits = _limits_in(fields, now).values()
        waits = [one.get("reset") for one in limits if one.get("remaining") == 0]
    return ServerAdvice(_longest(waits), should_retry)


def read_limits(headers: Headers, *, unix_time: float) -> list[ServerLimit]:
    """What the headers of an answer say of the server's limits."""
    limits = []
    for name, facts in _limits_in(*_fields_of(headers, unix_time)).items():
        words = name.lower().replace("_", "-")
        kind = next((kind for pattern, kind in _KINDS if pattern.search(words)), None)
        window = next((_UNIT_SECONDS[n[0]] for n in _WINDOWS if n in words), None)
        if kind is not None and facts and not name.isdecimal():
            limits.append(ServerLimit(kind, **{"window": window, **facts}))
    return limits


def _limits_in(
    fields: Mapping[str, list[str]], now: float
) -> dict[str, dict[str, float]]:
    """What the fields say of each limit, by its name, which may be empty."""
    found: defaultdict[str, dict[str, float]] = defaultdict(dict)
    windows: dict[float, float] = {}  # Of limits without a name.
    for field, text in [(name, text) for name in fields for text in fields[name]]:
        if field in {"ratelimit", "ratelimit-policy", "ratelimit-limit"}:
            windows |= {float(n): float(w) for n, w in _NAMELESS_WINDOW.findall(text)}
        if field == "ratelimit" and (nameless := _NAMELESS_FACTS.findall(text)):
            found[""] |= {fact: float(number) for fact, number in nameless}
        elif field in {"ratelimit", "ratelimit-policy"}:
            for limit in text.split(","):
                said = {_IETF_FACTS[k]: float(n) for k, n in _IETF.findall(limit)}
                found[limit.partition(";")[0].strip()] |= said
        elif match := _LIMIT.fullmatch(field):
            fact, facts = match["fact"], found[_name_in(match)]
            if fact == "reset":
                number = _duration_or_moment(text, now)
            else:
                number = _number(text.partition(",")[0].partition(";")[0].strip())
            if number is not None:  # Of several, the strictest.
                strictest = max if fact == "reset" else min
                facts[fact] = strictest(number, facts.get(fact, number))
    if seconds := windows.get(found[""].get("limit", -1.0)):
        found[""]["window"] = seconds
    return found


def read_wait(sentence: str, *, unix_time: float) -> float | None:
    """The seconds that a provider's sentence asks to wait, if it names a time."""
    words = sentence[:_LONGEST_SENTENCE].lower()
    words = re.sub(r"(?<=\d),(?=\d{3}\b)", "", words)
    words = re.sub(r"\b(?:an?|one) (?=second\b|minute\b|hour\b|day\b)", "1 ", words)
    foreign = _EAST_ASIAN_AMOUNT.findall(words)
    if re.search(_ASKS_TO_RETRY, words):
        foreign += _FOREIGN_AMOUNT.findall(words)
    moments = (_timestamp(text.rstrip(".").upper()) for text in _UNTIL.findall(words))
    return _longest(
        [
            *map(_sum, _WAIT.findall(words)),
            *map(float, _AFTER.findall(words)),
            *(max(0.0, one - unix_time) for one in moments if one is not None),
            *(
                float(number) * (1 if seconds else 60 if minutes else 3_600)
                for number, seconds, minutes, _ in foreign
            ),
        ]
    )


def _name_in(match: re.Match[str]) -> str:
    """The name of the limit that a header is about; empty if it has none."""
    return match["by"] or match["what"] or match["last"] or ""


def _fields_of(
    headers: Headers, unix_time: float
) -> tuple[dict[str, list[str]], float]:
    """The values of each header that are not too long, and the server's time."""
    fields: dict[str, list[str]] = {}
    for name, value in headers.items() if isinstance(headers, Mapping) else headers:
        if len(value) <= _LONGEST_LINE:
            field = name.lower().removeprefix(_HANDED_ON)
            fields.setdefault(field, []).append(value.strip())
    # The server's own `Date` takes a skew between the two clocks out of the sum.
    dates = map(_timestamp, fields.get("date", ()))
    return fields, next((date for date in dates if date is not None), unix_time)


def _longest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _number(text: str) -> float | None:
    """A number as servers write it: no minus, no exponent, no `inf` or `nan`."""
    is_number = len(text) <= _LONGEST_VALUE and _NUMBER.fullmatch(text)
    return float(text) if is_number else None


def _seconds_or_date(text: str, now: float) -> float | None:
    # A proxy may fold a repeated header into one line, with dates and numbers in it.
    dates = map(_timestamp, _DATE.findall(text) + _ISO_DATE.findall(text))
    waits = [max(0.0, date - now) for date in dates if date is not None]
    parts = (_duration_or_moment(part.strip(), now) for part in text.split(","))
    return _longest([*waits, *parts])


def _timestamp(text: str) -> float | None:
    if len(text) > _LONGEST_VALUE:
        return None
    try:
        if _ISO_DATE.fullmatch(text):
            moment = datetime.fromisoformat(text)
        # `parsedate_to_datetime` accepts bare numbers and fragments; an HTTP date has
        # both a day's name and a clock time.
        elif ":" in text and text[:1].isalpha():
            moment = parsedate_to_datetime(text)
        else:
            return None
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    # The asctime form names no zone, and every HTTP date is in GMT (section 5.6.7).
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _duration_or_moment(text: str, now: float) -> float | None:
    plain = _number(text)
    if plain is None:
        moment = _timestamp(text)
        if moment is not None:
            return max(0.0, moment - now)
        # ISO 8601 begins a duration with `PT`.
        words = text[2:].lower() if text[:2] == "PT" else text
        is_duration = len(text) <= _LONGEST_VALUE and (
            _DURATION.fullmatch(words) or _SPELT_OUT.fullmatch(words)
        )
        return _sum(words) if is_duration else None
    if plain < _FIRST_MOMENT:
        return plain
    return max(0.0, (plain if plain < _FIRST_MOMENT_MS else plain / 1000) - now)


def _sum(amounts: str) -> float:
    """The seconds of "1m30.5s" or "1 minute and 30 seconds"."""
    found = re.findall(r"([\d.]+) ?(ms|mil|[dhms])", amounts)
    return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in found)
