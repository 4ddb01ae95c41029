"""OpenTelemetry: spans of calls and attempts, and metrics.

`instrument` has each call observed by a `_CallTelemetry`, see `CallObserver` in
`_retry.call_state`. The page `docs/observability.md` lists what is recorded. No prompt,
answer, key or error message is, and label values are bounded: routes and models come
from the configuration, outcomes from `FailureKind`.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from langchain_retryrouter import __version__
from langchain_retryrouter._retry.call_state import (
    OBSERVERS,
    AttemptRecord,
    CallObserver,
    CallState,
    Subject,
)
from langchain_retryrouter.circuit_breaker import BreakerState, CircuitBreaker
from langchain_retryrouter.errors import RetryRouterError
from langchain_retryrouter.failures import Failure
from langchain_retryrouter.policy import RetryBudget

try:
    from opentelemetry import context, metrics, trace
except ImportError as error:
    msg = (
        "langchain_retryrouter.otel needs the package opentelemetry-api: install"
        " langchain-retryrouter[otel]"
    )
    raise ImportError(msg) from error

__all__ = ["METRICS", "Instrumentation", "instrument"]

# --- names --------------------------------------------------------------------------

CONVENTIONS: Final = "semantic-conventions-genai v0.1.0"
"""The conventions that the names follow; all of `gen_ai.*` is "Development" there."""

_OPERATION: Final = "gen_ai.operation.name"
_PROVIDER: Final = "gen_ai.provider.name"
_REQUEST_MODEL: Final = "gen_ai.request.model"
_RESPONSE_MODEL: Final = "gen_ai.response.model"
_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
_CACHE_READ: Final = "gen_ai.usage.cache_read.input_tokens"
_CACHE_WRITE: Final = "gen_ai.usage.cache_write.input_tokens"
_REASONING: Final = "gen_ai.usage.reasoning.output_tokens"
_MODALITY: Final = "gen_ai.token.modality"
_ERROR_TYPE: Final = "error.type"
_STATUS_CODE: Final = "http.response.status_code"
_RESEND_COUNT: Final = "http.request.resend_count"
# What the conventions have no name for.
_ROUTE: Final = "retryrouter.route"
_ATTEMPT: Final = "retryrouter.attempt"
_ATTEMPTS: Final = "retryrouter.attempts"
_OUTCOME: Final = "retryrouter.outcome"
_MAY_HAVE_RUN: Final = "retryrouter.may_have_run"
_WAIT: Final = "retryrouter.wait"
_LIMITER_WAIT: Final = "retryrouter.limiter_wait"
_COST: Final = "retryrouter.cost"
_BUDGET: Final = "retryrouter.budget"
_EVENTS: Final = {
    "breaker": "retryrouter.breaker_changed",
    "skipped": "retryrouter.route_skipped",
    "hedge_began": "retryrouter.hedge_began",
    "hedge_settled": "retryrouter.hedge_settled",
    "continued": "retryrouter.continued",
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


METRICS: Final = {
    "call": Metric(
        "gen_ai.client.inference.duration",
        "histogram",
        "s",
        "Seconds of a call with all its attempts and waits.",
    ),
    "embeddings": Metric(
        "gen_ai.client.embeddings.duration",
        "histogram",
        "s",
        "Seconds of a request for embeddings with all its attempts and waits.",
    ),
    "input": Metric(
        "gen_ai.client.inference.usage.input_tokens",
        "counter",
        "{token}",
        "Input tokens of attempts, failed ones too where the provider names them.",
    ),
    "output": Metric(
        "gen_ai.client.inference.usage.output_tokens",
        "counter",
        "{token}",
        "Output tokens of attempts, failed ones too where the provider names them.",
    ),
    "attempt": Metric(
        "retryrouter.attempt.duration", "histogram", "s", "Seconds of an attempt."
    ),
    "wait": Metric(
        "retryrouter.wait", "histogram", "s", "Seconds waited before another attempt."
    ),
    "limiter_wait": Metric(
        "retryrouter.limiter.wait", "histogram", "s", "Seconds waited for a rate limit."
    ),
    "skipped": Metric(
        "retryrouter.route.skipped", "counter", "{route}", "Routes that were not asked."
    ),
    "cost": Metric("retryrouter.cost", "counter", "{money}", "Money of attempts."),
    "breaker": Metric(
        "retryrouter.breaker.state",
        "gauge",
        "{state}",
        "A route's circuit breaker: 0 closed, 1 half open, 2 open.",
    ),
    "budget": Metric(
        "retryrouter.budget.tokens", "gauge", "{token}", "Tokens of a retry budget."
    ),
}
"""All metrics, by the names that this module uses."""

_SECONDS: Final = [0.01 * 2**power for power in range(14)]  # As the conventions say.

# --- what gauges read ---------------------------------------------------------------

_breakers: weakref.WeakKeyDictionary[CircuitBreaker, str] = weakref.WeakKeyDictionary()
_budgets: weakref.WeakSet[RetryBudget] = weakref.WeakSet()
_LEVELS: Final = {
    BreakerState.CLOSED: 0,
    BreakerState.HALF_OPEN: 1,
    BreakerState.OPEN: 2,
}


def _observations(
    label: str, values: Iterable[tuple[str, float]], choose: Callable[..., float]
) -> list[metrics.Observation]:
    """One observation for each name; the worst of those that share a name."""
    chosen: dict[str, float] = {}
    for name, value in values if _instrumentations() else ():
        chosen[name] = choose(chosen.get(name, value), value)
    return [metrics.Observation(value, {label: name}) for name, value in chosen.items()]


def _observe_breakers(_options: Any) -> list[metrics.Observation]:
    states = [(name, _LEVELS[one.state]) for one, name in list(_breakers.items())]
    return _observations(_ROUTE, states, max)


def _observe_budgets(_options: Any) -> list[metrics.Observation]:
    tokens = [(_name_of(budget), budget.tokens) for budget in list(_budgets)]
    return _observations(_BUDGET, tokens, min)


def _name_of(shared: Any) -> str:
    return str(getattr(shared, "name", None) or "default")


_GAUGES: Final = {"breaker": _observe_breakers, "budget": _observe_budgets}

# --- one call -----------------------------------------------------------------------

_CURRENT: Final = context.create_key("langchain-retryrouter-attempt")
_MOST_NAMES: Final = 200  # Different label values of models and routes.


@dataclass(slots=True)
class _Attempt:
    """An attempt, until its span has ended: that is when all is known of it."""

    record: AttemptRecord
    subject: Subject
    attributes: dict[str, Any]
    span: trace.Span
    facts: dict[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    ended_at: int = 0
    has_call: bool = False  # Of a model of ours, whose attempts have spans themselves.


class _CallTelemetry(CallObserver):
    """The spans and metrics of one call."""

    def __init__(self, shared: Instrumentation, call: CallState) -> None:
        self._shared, self._call = shared, call
        self._attempts: dict[int, _Attempt] = {}
        self._requests = 0
        self._served: _Attempt | None = None
        self._subject = subject = call.describe(call.position)
        parent = _context_of(call.run)
        self._span = shared.tracer.start_span(
            _span_name(subject),
            context=parent,
            kind=trace.SpanKind.INTERNAL,
            attributes=_described(subject),
        )
        self._context = trace.set_span_in_context(self._span, parent)

    def attempt_began(self, record: AttemptRecord, position: int) -> None:
        self._end_attempts()
        if record.number is None:
            return
        subject = self._call.describe(position)
        attributes = {**_described(subject), _ATTEMPT: record.number}
        span = self._start(subject, attributes)
        self._attempts[record.number] = _Attempt(record, subject, attributes, span)

    def _start(self, subject: Subject, attributes: dict[str, Any]) -> trace.Span:
        """The span of a request, with the number of those before it."""
        if self._requests:
            attributes = {**attributes, _RESEND_COUNT: self._requests}
        self._requests += subject.sends
        kind = trace.SpanKind.CLIENT if subject.sends else trace.SpanKind.INTERNAL
        return self._shared.tracer.start_span(
            _span_name(subject), self._context, kind, attributes
        )

    def resent(self, number: int, failure: Failure) -> None:
        if attempt := self._attempts.get(number):
            self._close_span(attempt, failure.kind.value, failure, time.time_ns())
            attempt.span = self._start(attempt.subject, attempt.attributes)

    def answered(self, number: int, facts: Mapping[str, Any]) -> None:
        if attempt := self._attempts.get(number):
            attempt.facts.update(facts)

    def attempt_ended(self, record: AttemptRecord, failure: Failure | None) -> None:
        if attempt := self._attempts.get(record.number or 0):
            attempt.failure, attempt.ended_at = failure, time.time_ns()

    def contains_call(self, number: int) -> None:
        """An attempt is made of the attempts of another call."""
        if attempt := self._attempts.get(number):
            attempt.has_call = True

    def waits(self, seconds: float) -> None:
        self._end_attempts()
        if seconds:
            self._shared.record("wait", seconds, {_ROUTE: self._route_label()})

    def happened(self, event: str, facts: Mapping[str, Any]) -> None:
        if event == "skipped":
            route = self._shared.bounded(facts["route"])
            self._shared.record("skipped", 1, {_ROUTE: route})
        if self._span.is_recording():
            attributes = {
                f"retryrouter.{name}": value
                for name, value in facts.items()
                if value is not None
            }
            self._span.add_event(_EVENTS[event], attributes)

    def ended(self, error: BaseException | None) -> None:
        for attempt in self._attempts.values():
            attempt.ended_at = attempt.ended_at or time.time_ns()
        self._end_attempts()
        if isinstance(error, GeneratorExit) and self._served is not None:
            error = None  # The caller took all of the answer, and closed the stream.
        served = self._served
        subject = self._subject if served is None else served.subject
        outcome, kind = _outcome_of(error)
        if self._span.is_recording():
            log = self._call
            found = {
                **_described(subject),
                _OUTCOME: outcome,
                _ATTEMPTS: log.attempts,
                _ROUTE: log.route,
                _WAIT: log.waited or None,
                _ERROR_TYPE: kind,
                _RESPONSE_MODEL: served and served.facts.get("model"),
            }
            self._span.set_attributes(_without_none(found))
            if kind is not None:
                self._span.set_status(trace.StatusCode.ERROR, kind)
        self._span.end()
        labels = self._shared.labels(subject)
        if kind is not None:
            labels = {**labels, _ERROR_TYPE: kind}
        is_embeddings = subject.operation == "embeddings"
        name = "embeddings" if is_embeddings else "call"
        self._shared.record(name, self._call.elapsed, labels)

    def attach(self, number: int) -> Callable[[], object]:
        attempt = self._attempts.get(number)
        span = self._span if attempt is None else attempt.span
        current = trace.set_span_in_context(span)
        token = context.attach(context.set_value(_CURRENT, (self, number), current))
        return lambda: context.detach(token)

    def _end_attempts(self) -> None:
        """End the spans of the attempts that are over, and count them."""
        for number, attempt in list(self._attempts.items()):
            if attempt.ended_at:
                del self._attempts[number]
                self._end(attempt)

    def _end(self, attempt: _Attempt) -> None:
        record, subject, shared = attempt.record, attempt.subject, self._shared
        self._close_span(attempt, record.outcome, attempt.failure, attempt.ended_at)
        if record.outcome == "ok":
            self._served = attempt
        route = shared.bounded(record.route)
        labels = {**shared.labels(subject), _ROUTE: route, _OUTCOME: record.outcome}
        shared.record("attempt", record.seconds, labels)
        if not subject.sends or attempt.has_call:
            return
        if usage := _tokens(attempt.facts.get("usage")):
            labels = {**labels, _MODALITY: "unknown"}
            for name, key in (("input", _INPUT_TOKENS), ("output", _OUTPUT_TOKENS)):
                if count := usage.get(key):
                    shared.record(name, count, labels)
        if cost := attempt.facts.get("cost"):
            shared.record("cost", cost, labels)

    def _close_span(
        self, attempt: _Attempt, outcome: str, failure: Failure | None, at: int
    ) -> None:
        span, record, facts = attempt.span, attempt.record, attempt.facts
        if span.is_recording():
            found = {
                _ROUTE: record.route,
                _OUTCOME: outcome,
                _WAIT: record.wait or None,
                _RESPONSE_MODEL: facts.get("model"),
                _FINISH_REASONS: facts.get("finish_reasons"),
            }
            if attempt.subject.sends and not attempt.has_call:
                found |= {**_tokens(facts.get("usage")), _COST: facts.get("cost")}
            if failure is not None:
                found |= {
                    _ERROR_TYPE: failure.kind.value,
                    _STATUS_CODE: failure.status_code,
                    _MAY_HAVE_RUN: failure.may_have_run,
                }
                span.set_status(trace.StatusCode.ERROR, failure.kind.value)
            span.set_attributes(_without_none(found))
        span.end(at)

    def _route_label(self) -> str:
        return self._shared.bounded(self._call.route)


def _span_name(subject: Subject) -> str:
    return f"{subject.operation} {subject.model}" if subject.model else "chat"


def _described(subject: Subject) -> dict[str, Any]:
    """The attributes that are known before anything is sent."""
    provider = _PROVIDERS.get(subject.provider, subject.provider) or _OTHER
    described = {_OPERATION: subject.operation, _PROVIDER: provider}
    if subject.model:
        described[_REQUEST_MODEL] = subject.model
    return described


def _without_none(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if value is not None}


def _outcome_of(error: BaseException | None) -> tuple[str, str | None]:
    """How a call ended, and `error.type` if that was a failure."""
    if error is None:
        return "ok", None
    if isinstance(error, RetryRouterError):
        return error.kind.value, error.kind.value
    # A cancelled task, a stream that was closed; or an error of the caller's function.
    return ("error", _OTHER) if isinstance(error, Exception) else ("cancelled", None)


def _tokens(usage: Any) -> dict[str, int]:
    """The counts of a usage in LangChain's or OpenAI's form."""
    if not isinstance(usage, Mapping):
        return {}
    of_input = _mapping(usage, "input_token_details", "prompt_tokens_details")
    of_output = _mapping(usage, "output_token_details", "completion_tokens_details")
    found = {
        _INPUT_TOKENS: usage.get("input_tokens", usage.get("prompt_tokens")),
        _OUTPUT_TOKENS: usage.get("output_tokens", usage.get("completion_tokens")),
        _CACHE_READ: of_input.get("cache_read", of_input.get("cached_tokens")),
        _CACHE_WRITE: of_input.get("cache_creation"),
        _REASONING: of_output.get("reasoning", of_output.get("reasoning_tokens")),
    }
    return {name: count for name, count in found.items() if isinstance(count, int)}


def _mapping(usage: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    found = [usage[name] for name in names if isinstance(usage.get(name), Mapping)]
    return found[0] if found else {}


def _context_of(run: Any) -> context.Context | None:
    """The context of LangChain's run, if another instrumentation has a span for it.

    Such a span is not current: a callback handler cannot make it so.
    """
    for handler in getattr(run, "handlers", ()):
        get_span = getattr(handler, "get_span", None)
        if callable(get_span):
            span = get_span(run.run_id)
            if isinstance(span, trace.Span):
                return trace.set_span_in_context(span)
    return None


# --- switching it on ----------------------------------------------------------------


class Instrumentation:
    """What `instrument` returns: calls are observed until `uninstrument`."""

    def __init__(
        self, tracer: trace.Tracer, meter: metrics.Meter, names: set[str] | None = None
    ) -> None:
        """Make the instruments of all `METRICS`."""
        self.tracer = tracer
        self._names = names or set()
        self._record: dict[str, Callable[..., None]] = {}
        for key, metric in METRICS.items():
            name, kind, unit, description = metric
            if kind == "gauge":
                observe: Any = [_GAUGES[key]]
                meter.create_observable_gauge(name, observe, unit, description)
            elif kind == "counter":
                counter = meter.create_counter(name, unit, description)
                self._record[key] = counter.add
            else:
                histogram = meter.create_histogram(
                    name,
                    unit,
                    description,
                    explicit_bucket_boundaries_advisory=_SECONDS,
                )
                self._record[key] = histogram.record
        self._labels: dict[Subject, dict[str, str]] = {}

    def __call__(self, call: CallState) -> CallObserver | None:
        """The observer of a call; None for one that is another call's attempt."""
        found = context.get_value(_CURRENT)
        # A call with a run was made by the caller's code, such as an LLM as a judge.
        if isinstance(found, tuple) and call.run is None:
            if not call.retries_enabled:
                return None
            outer, number = found
            outer.contains_call(number)
        observer = _CallTelemetry(self, call)
        for position, route in enumerate(call.routes):
            if route.breaker is not None and route.breaker not in _breakers:
                name = route.name or call.describe(position).model
                _breakers[route.breaker] = self.bounded(name)
        if call.budget is not None:
            _budgets.add(call.budget)
        return observer

    def record(self, key: str, value: float, labels: dict[str, str]) -> None:
        """Record a value of a metric."""
        self._record[key](value, labels)

    def labels(self, subject: Subject) -> dict[str, str]:
        """The labels that all metrics of a model have."""
        known = self._labels.get(subject)
        if known is None:
            described = _described(subject)
            known = {name: self.bounded(value) for name, value in described.items()}
            if len(self._labels) < _MOST_NAMES:
                self._labels[subject] = known
        return known

    def bounded(self, name: str | None) -> str:
        """A label's value: calls may name any model, and servers any route."""
        if name is None:
            return "default"
        if name not in self._names:
            if len(self._names) >= _MOST_NAMES:
                return _OTHER
            self._names.add(name)
        return name

    def uninstrument(self) -> None:
        """Observe no further call; those under way are observed to their end."""
        if self in OBSERVERS:
            OBSERVERS.remove(self)


def _instrumentations() -> list[Instrumentation]:
    return [one for one in OBSERVERS if isinstance(one, Instrumentation)]


def instrument(
    tracer_provider: trace.TracerProvider | None = None,
    meter_provider: metrics.MeterProvider | None = None,
) -> Instrumentation:
    """Record spans and metrics of all calls of this package's models from now on.

    A call has a span with all its attempts, as a child of the current span, or of the
    span that another instrumentation has for LangChain's run. Each request has a span
    of the kind CLIENT below it, which ends before the wait for the next one.

    Example:
        ```python
        from langchain_retryrouter.otel import instrument

        instrument()
        ```

    Args:
        tracer_provider: Where spans go; by default the global one.
        meter_provider: Where metrics go; by default the global one.

    Returns:
        An object whose `uninstrument()` ends it. A second call of `instrument` takes
        the place of the first: nothing is recorded twice.
    """
    name = "langchain_retryrouter"
    instrumentation = Instrumentation(
        trace.get_tracer(name, __version__, tracer_provider),
        metrics.get_meter(name, __version__, meter_provider),
    )
    for one in _instrumentations():
        one.uninstrument()
    OBSERVERS.append(instrumentation)
    return instrumentation
