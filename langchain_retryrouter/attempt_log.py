"""`AttemptLog`: what a call did, to read, to draw and to add up.

The log itself is plain data, and stands in `response_metadata["retryrouter"]` of an
answer and in `attempt_log` of an error. This module only reads it; it imports neither
LangChain nor rich, and draws as text, as rich's text or as SVG.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

__all__ = ["AttemptLog", "AttemptSummary"]

KEY: Final = "retryrouter"
_MOST_NODES: Final = 10_000  # Of an object that is searched for a log.
_LARGEST: Final = 1e15  # Of a number that is drawn.
_BAR: Final = 36  # Characters of a bar in a line of text.
# Where messages, results and runs of LangSmith have the log, or say what happened.
_FIELDS: Final = (
    *("response_metadata", "llm_output", "generations", "message", "generation_info"),
    *("outputs", "events", "start_time", "end_time", "error", "run_type"),
)
# The colours of bars, and their characters in plain text. Both on white and on black,
# they have a contrast of 3 to 1 at least.
_BARS: Final = {
    "ok": ("#2c9a4b", "="),
    "failed": ("#dc5b4b", "x"),
    "cancelled": ("#868d95", "~"),
}
_WAIT_COLOUR, _MARK_COLOUR = "#b7791f", "#8b6fd0"
# Of a bar, for the page's script.
_PAGE_FIELDS: Final = (
    *("number", "route", "outcome", "began", "seconds", "wait", "limiter_wait"),
    "facts",
)


@dataclass(frozen=True, slots=True)
class AttemptSummary:
    """What many calls did in all; `str()` says it in a few lines.

    Attributes:
        calls: Calls, answered or not.
        answered: Calls that have an answer.
        attempts: Requests sent.
        waited: Seconds waited between attempts, added up over the calls.
        cost: Money, added up as far as it is known; None if it is for no call.
        cost_is_estimate: Whether part of that is an estimate.
        without_cost: Calls that sent something of which the cost is not known.
        failures: Attempts that failed, by kind, and calls that ended with an error that
            has no log, by the error's class.
        routes: Answers by the route that gave them.
    """

    calls: int = 0
    answered: int = 0
    attempts: int = 0
    waited: float = 0.0
    cost: float | None = None
    cost_is_estimate: bool = False
    without_cost: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    routes: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """The numbers, and the failures and routes if there are any."""
        first = f"{_count(self.calls, 'call')}, {self.answered} answered"
        first += f", {_count(self.attempts, 'attempt')}, {_seconds(self.waited)} waited"
        if self.cost is not None:
            first += f", cost {_money(self.cost, is_estimate=self.cost_is_estimate)}"
        if self.cost is not None and self.without_cost:
            first += f" without {_count(self.without_cost, 'call')} of unknown cost"
        lines = [first]
        for title, counts in (("failures", self.failures), ("routes", self.routes)):
            if counts:
                said = ", ".join(f"{one_line(one)} {n}" for one, n in counts.items())
                lines.append(f"{title}: {said}")
        return "\n".join(lines)


class AttemptLog:
    """The attempts of one call, with times, waits, outcomes and cost.

    `print()` shows a timeline, in colours by rich; a notebook draws it.

    Example:
        ```python
        message = router.invoke("Hello")
        print(AttemptLog(message))
        ```

    Args:
        source: A message, an `LLMResult` or `ChatResult`, an error of this package, a
            run of LangSmith, or the log itself: the dict that
            `response_metadata["retryrouter"]` is, or JSON, as data or as text, that
            contains it. A run that failed has no log; its attempts are those that its
            retry events tell.

    Raises:
        ValueError: There is no log in it.
    """

    def __init__(self, source: Any) -> None:
        """Find the log in `source`."""
        found = _find(source)
        if found is None:
            msg = (
                f"no attempt log in {type(source).__name__} {one_line(source)}: give an"
                " answer or an error of a model of this package, or the dict in"
                " response_metadata['retryrouter']"
            )
            raise ValueError(msg)
        self._log = dict(found)
        self.attempts: list[dict[str, Any]] = self._log["attempts"]
        if wrong := [line for line in self.attempts if not isinstance(line, dict)]:
            msg = f"an attempt must be an object, not {one_line(wrong[0])}"
            raise ValueError(msg)

    @property
    def _sent(self) -> list[dict[str, Any]]:
        return [line for line in self.attempts if line.get("attempt") is not None]

    @property
    def outcome(self) -> str:
        """`ok`, or the kind of the last failure; `cached` if nothing was to be sent."""
        sent = [str(line.get("outcome")) for line in self._sent]
        skipped = [str(line.get("outcome")) for line in self.attempts]
        return "ok" if "ok" in sent else (sent or skipped or ["cached"])[-1]

    @property
    def route(self) -> str | None:
        """The route that answered, or was asked last."""
        names = [line["route"] for line in self._sent if line.get("route")]
        name = self._log.get("route") or (names[-1] if names else None)
        return None if name is None else str(name)

    @property
    def seconds(self) -> float:
        """Seconds from the call's start to the end of its last attempt."""
        return max((bar.end for bar in self._bars()), default=0.0)

    @property
    def waited(self) -> float:
        """Seconds waited between the attempts."""
        return sum(_number(line.get("wait")) for line in self.attempts)

    @property
    def cost(self) -> float | None:
        """Money for all attempts; None if that of any is not known."""
        cost = self._log.get("cost")
        return None if cost is None else _number(cost)

    @property
    def cost_is_estimate(self) -> bool:
        """Whether the cost of any attempt is an estimate."""
        return bool(self._log.get("cost_is_estimate"))

    def as_dict(self) -> dict[str, Any]:
        """The log as JSON-able data."""
        return self._log

    def to_json(self) -> str:
        """The log as a line of JSON, for a file that `retryrouter trace` reads."""
        return json.dumps(self._log, default=str)

    @staticmethod
    def summarize(results: Any) -> AttemptSummary:
        """Add up calls: what `batch(..., return_exceptions=True)` returns, or logs.

        Args:
            results: Answers and errors, or anything else that `AttemptLog` takes; one
                alone is one call. What has no log is a call without attempts.
        """
        # Messages and results can be iterated over, too: by their fields.
        is_one = isinstance(results, Mapping | str | bytes) or not isinstance(
            results, Iterable
        )
        if is_one or hasattr(results, "model_dump"):
            results = [results]
        failures: Counter[str] = Counter()
        routes: Counter[str] = Counter()
        costs: list[float] = []
        calls = answered = attempts = without_cost = 0
        waited, is_estimate = 0.0, False
        for result in results:
            calls += 1
            is_error = isinstance(result, BaseException)
            try:
                log = AttemptLog(result)
            except ValueError:
                answered += not is_error
                failures.update([type(result).__name__] if is_error else [])
                continue
            has_answer = log.outcome in {"ok", "cached"} and not is_error
            answered += has_answer
            sent = sum(line.get("attempt") is not None for line in log.attempts)
            attempts += sent
            waited += log.waited
            outcomes = [str(line.get("outcome")) for line in log.attempts]
            failures.update(
                one for one in outcomes if one not in {"ok", "cancelled", "skipped"}
            )
            routes.update([log.route] if has_answer and log.route else [])
            if log.cost is not None:
                costs.append(log.cost)
                is_estimate = is_estimate or log.cost_is_estimate
            else:
                without_cost += bool(sent)
        return AttemptSummary(
            calls=calls,
            answered=answered,
            attempts=attempts,
            waited=waited,
            cost=sum(costs) if costs else None,
            cost_is_estimate=is_estimate,
            without_cost=without_cost,
            failures=dict(failures.most_common()),
            routes=dict(routes.most_common()),
        )

    # --- to look at ---

    def _headline(self) -> str:
        said = [_seconds(self.seconds), _count(len(self._sent), "attempt")]
        if self.waited:
            said.append(f"{_seconds(self.waited)} waited")
        if self.cost is not None:
            money = _money(self.cost, is_estimate=self.cost_is_estimate)
            said.append(f"cost {money}")
        by = f" from {one_line(self.route, 200)}" if self.route and self._sent else ""
        return f"{one_line(self.outcome)}{by}: {', '.join(said)}"

    def _bars(self) -> list[_Bar]:
        bars: list[_Bar] = []
        following = 0.0  # Where an attempt begins whose log does not say so.
        for line in self.attempts:
            began = line.get("began")
            bar = _Bar(line, following if began is None else _number(began))
            following = bar.end + bar.wait
            bars.append(bar)
        return bars

    def __str__(self) -> str:
        """The timeline in plain text."""
        rows = [self._headline()]
        rows += [f"{label}  {bar}  {said}" for label, bar, said, _ in self._rows()]
        return "\n".join(row.rstrip() for row in rows)

    def __repr__(self) -> str:
        """The call in one line."""
        return f"<{type(self).__name__} {self._headline()}>"

    def _rows(self, columns: int = 0) -> Iterator[tuple[str, str, str, _Bar]]:
        """Label, bar and facts of each line, as text in so many columns if it can."""
        bars, length = self._bars(), _BAR
        width = min(40, max((len(bar.route) for bar in bars), default=0))
        if columns:
            width = min(width, max(8, columns // 4))
            facts = max((len(bar.facts) for bar in bars), default=0)
            length = min(_BAR, max(_BAR // 3, columns - width - facts - 9))
        scale = length / (max((bar.end + bar.wait for bar in bars), default=0) or 1)
        for bar in bars:
            start = min(length - 1, round(bar.began * scale))
            held = min(start, round(bar.limiter_wait * scale))
            end = max(start + 1, round(bar.end * scale))
            drawn = " " * (start - held) + ":" * held + bar.character * (end - start)
            drawn += "." * (round((bar.end + bar.wait) * scale) - end)
            label = f"{bar.number:>3}  {one_line(bar.route, width):<{width}}"
            yield label, f"{drawn:<{length}}"[:length], bar.facts, bar

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[Text]:
        """The timeline in colours; called by rich."""
        del console
        from rich.text import Text  # noqa: PLC0415 - rich calls this, so it is there

        yield Text(self._headline(), "bold")
        for label, drawn, facts, bar in self._rows(options.max_width):
            row = Text(f"{label}  ", no_wrap=True, overflow="ellipsis")
            for character in drawn:
                filled = {bar.character: "━" if bar.is_sent else "◆", ".": "·"}
                colour = _WAIT_COLOUR if character in ".:" else bar.colour
                row.append(filled.get(character, character), colour)
            row.append(f"  {facts}")
            yield row

    def _repr_html_(self) -> str:
        """The timeline as HTML with an SVG inside; notebooks call this."""
        return (
            f'<div style="font: 13px system-ui, sans-serif">{escape(self._headline())}'
            f"<br>{self.svg()}</div>"
        )

    def svg(self) -> str:
        """The timeline as an SVG element, whose text has the colour of the page's."""
        bars, row, left, right, width = self._bars(), 22, 150, 300, 940
        total = max((bar.end + bar.wait for bar in bars), default=0.0) or 1.0
        scale, height = (width - left - right) / total, row * len(bars) + 20
        look = f'style="max-width: {width}px; width: 100%" font-size="12"'
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
            f' {look} font-family="system-ui, sans-serif" fill="currentColor"',
            f' role="img"><title>{escape(self._headline())}</title>',
        ]
        for index, bar in enumerate(bars):
            y = row * index
            x = left + bar.began * scale
            end = left + bar.end * scale
            name = one_line(bar.route, 19)
            parts.append(
                f"<g><title>{escape(bar.facts)}</title>"
                f'<text x="0" y="{y + 15}" opacity="0.6">{escape(bar.number)}</text>'
                f'<text x="18" y="{y + 15}">{escape(name)}</text>'
            )
            if bar.limiter_wait:
                start = max(left, x - bar.limiter_wait * scale)
                parts.append(_line(start, x, y + 11, _MARK_COLOUR, "1 3"))
            if bar.is_sent:
                parts.append(
                    f'<rect x="{x:.1f}" y="{y + 4}" rx="2" height="14"'
                    f' width="{max(2.0, end - x):.1f}" fill="{bar.colour}"/>'
                )
            else:
                parts.append(
                    f'<path d="M{x:.1f} {y + 4}l7 7l-7 7l-7 -7z" fill="none"'
                    f' stroke="{_MARK_COLOUR}" stroke-width="2"/>'
                )
            if bar.wait:
                until = left + (bar.end + bar.wait) * scale
                parts.append(_line(end + 1, until, y + 11, _WAIT_COLOUR, "5 4"))
            at = width - right + 12
            parts.append(f'<text x="{at}" y="{y + 15}">{escape(bar.short)}</text></g>')
        parts.append(
            f'<g opacity="0.6"><text x="{left}" y="{height - 4}">0 s</text>'
            f'<text x="{width - right}" y="{height - 4}" text-anchor="end">'
            f"{_seconds(total)}</text></g></svg>"
        )
        return "".join(parts)

    def page_data(self, line: int) -> dict[str, Any]:
        """The call as the page of `retryrouter trace` has it, from so-numbered line."""
        return {
            "line": line,
            "outcome": one_line(self.outcome),
            "said": self._headline().removeprefix(one_line(self.outcome)),
            "seconds": self.seconds,
            "waited": self.waited,
            "cost": self.cost,
            "about": self.cost_is_estimate,
            "bars": [
                {name: getattr(bar, name) for name in _PAGE_FIELDS}
                for bar in self._bars()
            ],
        }


def read_logs(lines: Iterable[str | bytes]) -> Iterator[tuple[int, AttemptLog | str]]:
    """The logs of a file, with the numbers of their lines; a text says what is wrong.

    A line is a log as `AttemptLog.to_json` writes it, or JSON that contains one: a
    message, a result, a run of LangSmith. Empty lines are passed over.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield number, AttemptLog(json.loads(line))
        except (ValueError, RecursionError) as error:
            is_json = not isinstance(error, json.JSONDecodeError | UnicodeDecodeError)
            yield number, f"{error}" if is_json else f"it is not JSON: {error}"


def trace_page(logs: Iterable[tuple[int, AttemptLog]]) -> str:
    """A self-contained HTML page of calls, with filters; loads nothing."""
    data = [log.page_data(number) for number, log in logs]
    # A script ends at `</script`, and hides what follows `<!--`, in a string too.
    written = json.dumps(data, separators=(",", ":")).replace("<", r"\u003c")
    page = Path(__file__).with_name("_trace.html").read_text(encoding="utf-8")
    return page.replace("@DATA@", written)


class _Bar:
    """One line of a log, ready to be drawn."""

    def __init__(self, line: Mapping[str, Any], began: float) -> None:
        self.began, self.seconds = began, _number(line.get("seconds"))
        self.end = began + self.seconds
        self.wait = _number(line.get("wait"))
        self.limiter_wait = _number(line.get("limiter_wait"))
        self.route = one_line(str(line.get("route") or ""), 200)
        self.outcome = one_line(str(line.get("outcome") or "?"))
        self.is_sent = line.get("attempt") is not None
        self.number = one_line(line["attempt"], 9) if self.is_sent else ""
        self.colour, self.character = _BARS.get(self.outcome, _BARS["failed"])
        if not self.is_sent:
            self.colour, self.character = _MARK_COLOUR, "!"
        status, cost = line.get("status_code"), line.get("cost")
        said = [
            self.outcome + (f" {one_line(status, 20)}" if status is not None else "")
        ]
        if self.is_sent:
            said.append(_seconds(self.seconds))
        if cost is not None:
            is_estimate = bool(line.get("cost_is_estimate"))
            said.append(_money(_number(cost), is_estimate=is_estimate))
        if self.limiter_wait:
            said.append(f"limiter {_seconds(self.limiter_wait)}")
        if self.wait:
            said.append(f"wait {_seconds(self.wait)}")
        self.short = ", ".join(said)
        if line.get("reason"):
            said.append(one_line(line["reason"], 80))
        self.facts = ", ".join(said)


def _find(source: Any) -> Mapping[str, Any] | None:
    """The outermost log in a source: that of a router, and not those of its routes."""
    if isinstance(source, str | bytes):
        try:
            source = json.loads(source)
        except (ValueError, RecursionError):
            return None
    if isinstance(source, AttemptLog):
        return source.as_dict()
    if isinstance(source, BaseException):
        source = {KEY: getattr(source, "attempt_log", None)}
    elif not isinstance(source, Mapping | list):
        # A message; the results of LangChain; a run of LangSmith.
        source = {n: getattr(source, n) for n in _FIELDS if hasattr(source, n)}
    elif isinstance(source, Mapping) and isinstance(source.get("attempts"), list):
        return source
    pending, seen = deque([source]), 0
    while pending and seen < _MOST_NODES:
        node, seen = pending.popleft(), seen + 1
        if isinstance(node, Mapping):
            log = node.get(KEY)
            if isinstance(log, Mapping) and isinstance(log.get("attempts"), list):
                return log
            pending.extend(node.values())
        elif isinstance(node, list | tuple):
            pending.extend(node)
        else:  # An answer of a chat model has a `message`, one of an LLM has the last.
            names = ("message", "response_metadata", "generation_info")
            pending.extend(getattr(node, name) for name in names if hasattr(node, name))
    return _of_events(source) if isinstance(source, Mapping) else None


def _of_events(run: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The attempts that the retry events of a run of LangSmith tell, as a log."""
    began, ended = _time(run, "start_time"), _time(run, "end_time")
    if began is None or run.get("run_type") not in {"llm", "chat_model"}:
        return None
    ends: list[tuple[str, float | None, float]] = []
    slept = 0.0
    for event in run.get("events") or ():
        if isinstance(event, Mapping) and event.get("name") == "retry":
            facts = event.get("kwargs")
            facts = facts if isinstance(facts, Mapping) else {}
            slept = max(slept, _number(facts.get("slept")))  # With the coming wait.
            ends.append((str(facts.get("exception_type")), _time(event, "time"), slept))
    ends.append(("failed" if run.get("error") else "ok", ended, slept))
    lines: list[dict[str, Any]] = []
    start, before = began, 0.0
    for number, (outcome, moment, slept) in enumerate(ends, start=1):
        end = start if moment is None else max(start, moment)
        line = {"attempt": number, "outcome": outcome, "began": start - began}
        lines.append({**line, "seconds": end - start, "wait": slept - before})
        start, before = end + slept - before, slept
    return {"attempts": lines}


def _time(of: Mapping[str, Any], name: str) -> float | None:
    value = of.get(name)
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        return None
    return moment.timestamp() if isinstance(moment, datetime) else None


def _number(value: Any) -> float:
    """A number of a log, which may come from a file; 0 for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 < value < _LARGEST else 0.0


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _money(cost: float, *, is_estimate: bool) -> str:
    digits = format(Decimal(f"{cost:.4g}"), "f")  # Without an exponent.
    return f"{'about ' * is_estimate}{digits}"


def one_line(value: Any, most: int = 60) -> str:
    """A value in one line, without what XML cannot carry or a terminal obeys."""
    text = " ".join(str(value).split()) if isinstance(value, str) else repr(value)
    text = "".join(one if one.isprintable() else "�" for one in text[: most + 1])
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _line(x: float, until: float, y: float, colour: str, dashes: str) -> str:
    return (
        f'<path d="M{x:.1f} {y}H{max(x, until):.1f}" fill="none" stroke="{colour}"'
        f' stroke-width="2" stroke-dasharray="{dashes}"/>'
    )
