"""OpenTelemetry: spans of calls and attempts, and metrics.

`instrument` has each call observed by a `_CallTelemetry`, see `CallObserver` in
`_retry.call_state`. The page `docs/observability.md` lists what is recorded. No prompt,
answer, key or error message is, and label values are bounded: routes and models come
from the configuration, outcomes from `FailureKind`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

from langchain_retryrouter import __version__
from langchain_retryrouter._retry.call_log import AttemptRecord, CallObserver, Subject
from langchain_retryrouter._retry.call_state import OBSERVERS, CallState
from langchain_retryrouter._shared import Locked
from langchain_retryrouter.circuit_breaker import BreakerState, CircuitBreaker
from langchain_retryrouter.errors import RetryRouterError
from langchain_retryrouter.failures import Failure
from langchain_retryrouter.policy import RetryBudget
from langchain_retryrouter.rate_limits import RateLimit

try:
    from opentelemetry import context, metrics, trace
except ImportError as error:
    msg = (
        "langchain_retryrouter.otel needs the package opentelemetry-api: install"
        " langchain-retryrouter[otel]"
    )
    raise ImportError(msg) from error

logger = logging.getLogger(__name__)

__all__ = ["METRICS", "Instrumentation", "instrument"]

# --- names --------------------------------------------------------------------------

# As in semantic-conventions-genai v0.1.0, where all of `gen_ai.*` is "Development".
_SCOPE: Final = "langchain_retryrouter"
_RESPONSE_MODEL: Final = "gen_ai.response.model"
_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
_ERROR_TYPE: Final = "error.type"
# What the conventions have no name for.
_ROUTE: Final = "retryrouter.route"
_OUTCOME: Final = "retryrouter.outcome"
_WAIT: Final = "retryrouter.wait"
_LIMIT: Final = "retryrouter.limit"
_EVENTS: Final = {
    "breaker": "retryrouter.breaker_changed",
    "skipped": "retryrouter.route_skipped",
    "hedge_began": "retryrouter.hedge_began",
    "hedge_settled": "retryrouter.hedge_settled",
    "continued": "retryrouter.continued",
    "limited": "retryrouter.limit_rejected",
}
_OTHER: Final = "_OTHER"
# LangChain's names of providers where the conventions have others.
_PROVIDERS: Final = {
    "amazon_bedrock": "aws.bedrock",
    "azure": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "google_genai": "gcp.gemini",
    "google_vertexai": "gcp.vertex_ai",
    "ibm": "ibm.watsonx.ai",
    "mistral": "mistral_ai",
    "mistralai": "mistral_ai",
    "xai": "x_ai",
}


class Metric(NamedTuple):
    """Name, unit and meaning of a metric; `kind` is what the meter calls it."""

    name: str
    kind: str
    unit: str
    description: str


_METRICS: Final = """
call histogram s gen_ai.client.inference.duration A call with all attempts and waits.
embeddings histogram s gen_ai.client.embeddings.duration The same of embeddings.
attempt histogram s retryrouter.attempt.duration An attempt.
input counter {token} gen_ai.client.inference.usage.input_tokens Of attempts.
output counter {token} gen_ai.client.inference.usage.output_tokens Of attempts.
cost counter {money} retryrouter.cost Money of attempts.
wait counter s retryrouter.wait.time Waits between attempts.
limiter_wait counter s retryrouter.limiter_wait.time Waits for rate limits.
skipped counter {route} retryrouter.route.skipped Routes that were not asked.
limited counter {request} retryrouter.limit.rejections Kept from a route by a limit.
breaker gauge {state} retryrouter.breaker.state 0 closed, 1 half open, 2 open.
budget gauge {token} retryrouter.budget.tokens Left in a retry budget.
available gauge {unit} retryrouter.limit.available What of a rate limit is left now.
in_flight gauge {request} retryrouter.limit.in_flight Under a rate limit.
waiting gauge {request} retryrouter.limit.waiting Waiting for a rate limit.
"""
METRICS: Final = {
    key: Metric(name, kind, unit, description)
    for key, kind, unit, name, description in (
        line.split(None, 4) for line in _METRICS.strip().splitlines()
    )
}
"""All metrics, by the names that this module uses."""

_SECONDS: Final = [0.01 * 2**power for power in range(14)]  # As the conventions say.

# --- what is read when metrics are collected ----------------------------------------

# What gauges show, with the name that it has in a label.
_gauged: weakref.WeakKeyDictionary[CircuitBreaker | RetryBudget | RateLimit, str]
_gauged = weakref.WeakKeyDictionary()
_STATES: Final = (BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN)
Labels: TypeAlias = tuple[tuple[str, str], ...]


def _observe(key: str, _options: Any) -> list[metrics.Observation]:
    """The observations of a gauge, while there is an instrumentation."""
    levels: dict[Labels, list[float]] = {}
    for one, name in list(_gauged.items()) if OBSERVERS else ():
        found: dict[Labels, float] = {}
        if key == "breaker" and isinstance(one, CircuitBreaker):
            found = {((_ROUTE, name),): _STATES.index(one.state)}
        elif key == "budget" and isinstance(one, RetryBudget):
            found = {(("retryrouter.budget", name),): one.tokens}
        elif key == "available" and isinstance(one, RateLimit):
            for kind, level in one.available().items():
                found[(_LIMIT, name), ("retryrouter.limit.kind", kind)] = level
        elif key in {"in_flight", "waiting"} and isinstance(one, RateLimit):
            found = {((_LIMIT, name),): getattr(one, key)}
        for labels, level in found.items():
            levels.setdefault(labels, []).append(level)
    # What stands for several that share a name.
    choose = {"breaker": max, "budget": min, "available": min}.get(key, sum)
    return [metrics.Observation(choose(of), dict(one)) for one, of in levels.items()]


class _Values(Locked):
    """What was counted for one meter provider, until it collects.

    The SDK's own instruments take ten times as long: that is left to the collection.
    """

    def __init__(self) -> None:
        super().__init__()
        self._totals: dict[str, dict[Labels, float]] = {}
        self._recorded: deque[tuple[metrics.Histogram, float, Labels]] = deque()

    def forked(self) -> None:
        """Leave to the parent what is not handed over."""
        super().forked()
        self._recorded.clear()

    def add(self, key: str, value: float, labels: Labels) -> None:
        with self._lock:
            totals = self._totals.setdefault(key, {})
            totals[labels] = totals.get(labels, 0) + value

    def record(
        self, histogram: metrics.Histogram, value: float, labels: Labels
    ) -> None:
        self._recorded.append((histogram, value, labels))
        if len(self._recorded) >= _MOST_RECORDED:
            self._hand_over()

    def observe(self, key: str, _options: Any) -> list[metrics.Observation]:
        """The observations of a counter; called when metrics are collected."""
        self._hand_over()
        with self._lock:
            totals = list(self._totals.get(key, {}).items())
        return [metrics.Observation(value, dict(labels)) for labels, value in totals]

    def _hand_over(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                histogram, value, labels = self._recorded.popleft()
                histogram.record(value, dict(labels))


_values: weakref.WeakKeyDictionary[metrics.MeterProvider, _Values]
_values = weakref.WeakKeyDictionary()
_values_of_global: Final = _Values()
_MOST_RECORDED: Final = 1_000

# --- one call -----------------------------------------------------------------------

_CURRENT: Final = context.create_key("langchain-retryrouter-attempt")
_LONGEST_NAME: Final = 200
_MOST_NAMES: Final = 200  # Different label values, and models that are remembered.


class _Model(NamedTuple):
    """What spans and metrics say of a model that is asked."""

    span_name: str
    attributes: dict[str, str]
    labels: Labels
    duration: str  # The metric of its calls.


@dataclass(slots=True)
class _Attempt:
    """An attempt, until its span has ended: that is when all is known of it."""

    record: AttemptRecord
    subject: Subject
    span: trace.Span | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    ended_at: int = 0


class _CallTelemetry(CallObserver):
    """The spans and metrics of one call; if it is not sampled, it is one span."""

    def __init__(self, shared: Instrumentation, call: CallState) -> None:
        self._shared, self._call = shared, call
        self._attempts: dict[int, _Attempt] = {}
        self._requests = 0
        self._served: _Attempt | None = None
        self._subject = call.describe(call.position)
        parent = _context_of(call.run)
        name, attributes, _, _ = shared.model(self._subject)
        self._span = shared.tracer.start_span(name, parent, attributes=attributes)
        self._is_recording = self._span.is_recording()
        self._context = parent  # That of the span, where there are spans below it.
        if self._is_recording:
            self._context = trace.set_span_in_context(self._span, parent)

    def attempt_began(self, record: AttemptRecord) -> None:
        self._end_attempts()
        if record.number is not None:
            subject = self._call.describe(record.position)
            self._attempts[record.number] = attempt = _Attempt(record, subject)
            if self._is_recording:
                attempt.span = self._start(subject, record.number)

    def _start(self, subject: Subject, number: int) -> trace.Span:
        """The span of a request, with the number of those before it."""
        name, attributes, _, _ = self._shared.model(subject)
        own: dict[str, Any] = {**attributes, "retryrouter.attempt": number}
        if self._requests:
            own["http.request.resend_count"] = self._requests
        self._requests += subject.sends
        kind = trace.SpanKind.CLIENT if subject.sends else trace.SpanKind.INTERNAL
        return self._shared.tracer.start_span(name, self._context, kind, own)

    def resent(self, number: int, failure: Failure) -> None:
        attempt = self._attempts.get(number)
        if attempt is not None and attempt.span is not None:
            outcome = failure.kind.value
            self._close_span(attempt, outcome, failure, time.time_ns(), {})
            attempt.span = self._start(attempt.subject, number)

    def answered(self, number: int, facts: Mapping[str, Any]) -> None:
        if attempt := self._attempts.get(number):
            attempt.facts.update(facts)

    def attempt_ended(self, record: AttemptRecord) -> None:
        if attempt := self._attempts.get(record.number or 0):
            attempt.ended_at = time.time_ns()

    def contains_call(self, number: int) -> None:
        """An attempt is made of the attempts of another call."""
        if attempt := self._attempts.get(number):
            attempt.subject = attempt.subject._replace(sends=False)

    def waits(self, seconds: float) -> None:
        self._end_attempts()
        if seconds:
            route = self._shared.bounded(self._call.route)
            self._shared.values.add("wait", seconds, ((_ROUTE, route),))

    def happened(self, event: str, facts: Mapping[str, Any]) -> None:
        if event in METRICS and METRICS[event].kind == "counter":
            route = self._shared.bounded(facts["route"])
            self._shared.values.add(event, 1, ((_ROUTE, route),))
        if self._is_recording:
            found = {f"retryrouter.{name}": value for name, value in facts.items()}
            self._span.add_event(_EVENTS[event], _without_none(found))

    def ended(self, error: BaseException | None) -> None:
        for attempt in list(self._attempts.values()):
            attempt.ended_at = attempt.ended_at or time.time_ns()
        self._end_attempts()
        served, subject = self._served, self._subject
        if served is not None:
            subject = served.subject
            if isinstance(error, GeneratorExit):
                error = None  # The caller took the whole answer, and closed the stream.
        kind = None  # `error.type`
        if error is None:
            outcome = "ok"
        elif isinstance(error, RetryRouterError):
            outcome = kind = error.kind.value
        elif isinstance(error, Exception):  # Of the caller's function.
            outcome, kind = "error", _OTHER
        else:  # A cancelled task, or a stream that was closed.
            outcome = "cancelled"
        model = self._shared.model(subject)
        if self._is_recording:
            found = {
                **model.attributes,
                _OUTCOME: outcome,
                "retryrouter.attempts": self._call.attempts,
                _ROUTE: self._call.route,
                _WAIT: self._call.waited or None,
                _ERROR_TYPE: kind,
                _RESPONSE_MODEL: served and _text(served.facts.get("model")),
            }
            self._span.update_name(model.span_name)  # The route that answered counts.
            self._span.set_attributes(_without_none(found))
            if kind is not None:
                self._span.set_status(trace.StatusCode.ERROR, kind)
        labels = model.labels if kind is None else (*model.labels, (_ERROR_TYPE, kind))
        self._shared.record(model.duration, self._call.elapsed, labels)
        self._span.end()

    def attach(self, number: int) -> Callable[[], object]:
        attempt = self._attempts.get(number)
        span = self._span if attempt is None or attempt.span is None else attempt.span
        current = context.set_value(
            _CURRENT, (self, number), trace.set_span_in_context(span)
        )
        return functools.partial(context.detach, context.attach(current))

    def _end_attempts(self) -> None:
        """End the spans of the attempts that are over, and count them."""
        for number, attempt in list(self._attempts.items()):
            if attempt.ended_at:
                del self._attempts[number]
                try:
                    self._end(attempt)
                except Exception:  # Of a span processor; the call's span goes on.
                    logger.warning("A span did not end", exc_info=True)

    def _end(self, attempt: _Attempt) -> None:
        record, shared = attempt.record, self._shared
        if record.outcome == "ok":
            self._served = attempt
        route = (_ROUTE, shared.bounded(record.route))
        outcome = (_OUTCOME, record.outcome)
        labels = (*shared.model(attempt.subject).labels, route, outcome)
        shared.record("attempt", record.seconds, labels)
        if record.limiter_wait:
            shared.values.add("limiter_wait", record.limiter_wait, (route,))
        counts: dict[str, Any] = {}
        if attempt.subject.sends:
            counts = _tokens(attempt.facts.get("usage"))
            for key, name in (("input", _INPUT_TOKENS), ("output", _OUTPUT_TOKENS)):
                if count := counts.get(name):
                    of_tokens = (*labels, ("gen_ai.token.modality", "unknown"))
                    shared.values.add(key, count, of_tokens)
            if cost := self._call.money_of(record):
                counts["retryrouter.cost"] = cost
                shared.values.add("cost", cost, labels)
        self._close_span(
            attempt, record.outcome, record.failure, attempt.ended_at, counts
        )

    def _close_span(
        self,
        attempt: _Attempt,
        outcome: str,
        failure: Failure | None,
        at: int,
        counts: Mapping[str, Any],
    ) -> None:
        record, facts, span = attempt.record, attempt.facts, attempt.span
        if span is None:
            return
        reasons = map(_text, facts.get("finish_reasons") or ())
        found = {
            _ROUTE: record.route,
            _OUTCOME: outcome,
            _WAIT: record.wait or None,
            "retryrouter.limiter_wait": record.limiter_wait or None,
            _RESPONSE_MODEL: _text(facts.get("model")),
            "gen_ai.response.finish_reasons": [one for one in reasons if one] or None,
            **counts,
        }
        if failure is not None:
            found |= {
                _ERROR_TYPE: failure.kind.value,
                "http.response.status_code": failure.status_code,
                "retryrouter.may_have_run": failure.may_have_run,
            }
            span.set_status(trace.StatusCode.ERROR, failure.kind.value)
        span.set_attributes(_without_none(found))
        span.end(at)


def _text(value: Any) -> str | None:
    """What a server said, if it is a name and no more than that."""
    return value[:_LONGEST_NAME] if isinstance(value, str) else None


def _without_none(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if value is not None}


# Where a usage has its counts.
_COUNTS: Final = {
    _INPUT_TOKENS: ("input_tokens",),
    _OUTPUT_TOKENS: ("output_tokens",),
    "gen_ai.usage.cache_read.input_tokens": ("input_token_details", "cache_read"),
    "gen_ai.usage.cache_write.input_tokens": ("input_token_details", "cache_creation"),
    "gen_ai.usage.reasoning.output_tokens": ("output_token_details", "reasoning"),
}


def _tokens(usage: Any) -> dict[str, Any]:
    found = {}
    for name, place in _COUNTS.items():
        count = usage
        for step in place:
            count = count.get(step) if isinstance(count, Mapping) else None
        if isinstance(count, int):
            found[name] = count
    return found


def _context_of(run: Any) -> context.Context | None:
    """The context of LangChain's run, if another instrumentation has a span for it.

    Such a span is not current: a callback handler cannot make it so.
    """
    for handler in getattr(run, "handlers", ()):
        get_span = getattr(handler, "get_span", None)  # OpenInference's
        spans = getattr(handler, "spans", None)  # OpenLLMetry's
        span: Any = None
        if callable(get_span):
            with contextlib.suppress(Exception):  # It may be another kind of method.
                span = get_span(run.run_id)
        elif isinstance(spans, Mapping):
            span = getattr(spans.get(run.run_id), "span", None)
        if isinstance(span, trace.Span):
            return trace.set_span_in_context(span)
    return None


# --- switching it on ----------------------------------------------------------------


class Instrumentation:
    """What `instrument` returns: calls are observed until `uninstrument`."""

    def __init__(self, tracer: trace.Tracer, provider: metrics.MeterProvider) -> None:
        """Make the instruments of all `METRICS`."""
        self.tracer = tracer
        # A proxy stands for the global one until the application has set it.
        is_global = provider is metrics.get_meter_provider()
        own = _values_of_global if is_global else _Values()
        self.values = _values.setdefault(provider, own)
        self.model = functools.lru_cache(_MOST_NAMES)(self._describe)
        self._names: set[str] = set()
        self._histograms: dict[str, metrics.Histogram] = {}
        meter = provider.get_meter(_SCOPE, __version__)
        for key, (name, kind, unit, description) in METRICS.items():
            if kind == "histogram":
                self._histograms[key] = meter.create_histogram(
                    name,
                    unit,
                    description,
                    explicit_bucket_boundaries_advisory=_SECONDS,
                )
            elif kind == "counter":
                observe: Any = [functools.partial(self.values.observe, key)]
                meter.create_observable_counter(name, observe, unit, description)
            else:
                observe = [functools.partial(_observe, key)]
                meter.create_observable_gauge(name, observe, unit, description)

    def __call__(self, call: CallState) -> CallObserver | None:
        """The observer of a call; None for one that is another call's attempt."""
        found = context.get_value(_CURRENT)
        # A call with a run was made by the caller's code, such as an LLM as a judge.
        if isinstance(found, tuple) and call.run is None:
            if not call.retries_enabled:
                return None
            outer, number = found
            outer.contains_call(number)
        for position, route in enumerate(call.routes):
            if route.breaker is not None and route.breaker not in _gauged:
                name = route.name or call.describe(position).model
                _gauged[route.breaker] = self.bounded(name)
        if call.budget is not None:
            _gauged[call.budget] = call.budget.name or "default"
        for limits in call.limits.routes if call.limits is not None else ():
            for limit in limits:
                if isinstance(limit, RateLimit):
                    _gauged[limit] = limit.name or "default"
        return _CallTelemetry(self, call)

    def _describe(self, subject: Subject) -> _Model:
        operation, name, model, _ = subject
        provider = _PROVIDERS.get(name, name) or _OTHER
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": provider,
        }
        if model:
            attributes["gen_ai.request.model"] = model
        labels = tuple((key, self.bounded(value)) for key, value in attributes.items())
        span_name = f"{operation} {model}" if model else operation
        duration = "embeddings" if operation == "embeddings" else "call"
        return _Model(span_name, attributes, labels, duration)

    def record(self, key: str, value: float, labels: Labels) -> None:
        """Record a value of a histogram."""
        self.values.record(self._histograms[key], value, labels)

    def bounded(self, name: str | None) -> str:
        """A label's value: calls may name any model."""
        if name is None:
            return "default"
        if name not in self._names:
            if len(self._names) >= _MOST_NAMES:
                return _OTHER
            self._names.add(name)
        return name

    def uninstrument(self) -> None:
        """Observe no further call; those under way are observed to their end."""
        with contextlib.suppress(ValueError):  # It has ended.
            OBSERVERS.remove(self)


def instrument(
    tracer_provider: trace.TracerProvider | None = None,
    meter_provider: metrics.MeterProvider | None = None,
) -> Instrumentation:
    """Record spans and metrics of all calls of this package's models from now on.

    A call has a span with all its attempts, as a child of the current span, or of the
    span that another instrumentation has for LangChain's run. Each request has a span
    of the kind CLIENT below it, which ends before the wait for the next one.

    Args:
        tracer_provider: Where spans go; by default the global one.
        meter_provider: Where metrics go; by default the global one.

    Returns:
        An object whose `uninstrument()` ends it. A second call of `instrument` takes
        the place of the first: nothing is recorded twice.
    """
    instrumentation = Instrumentation(
        trace.get_tracer(_SCOPE, __version__, tracer_provider),
        meter_provider or metrics.get_meter_provider(),
    )
    for one in list(OBSERVERS):
        if isinstance(one, Instrumentation):
            one.uninstrument()
    OBSERVERS.append(instrumentation)
    return instrumentation
