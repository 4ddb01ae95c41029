"""Metrics agree with what the server was sent, and the dashboard with the metrics."""

import json
import os
import re
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from langchain_core.rate_limiters import InMemoryRateLimiter
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from langchain_retryrouter import (
    CircuitBreaker,
    RateLimit,
    RateLimitError,
    RetryBudget,
    RetryPolicy,
    Route,
)
from langchain_retryrouter.otel import METRICS, instrument
from langchain_retryrouter.testing import (
    Answer,
    FakeClock,
    FaultyGateway,
    Status,
    Usage,
)
from tests.promises.harness import new_model
from tests.support import models
from tests.support.alone import run_alone

from .conftest import (
    MODELS,
    PROMPT,
    Env,
    Recorded,
    embeddings,
    gpt_router,
    llm,
    router_of,
)

ATTEMPTS = "retryrouter.attempt.duration"
DOCS = Path(__file__).parents[3] / "docs"
# What belongs to a name that Prometheus knows it by.
SUFFIXES = re.compile(r"_(bucket|count|sum)$")


@pytest.mark.parametrize("kind", MODELS)
def test_attempts_tokens_and_waits_are_counted(env: Env, kind: str) -> None:
    """Attempts by outcome, tokens and waits equal those of the server's log."""
    env.gateway.script(Status(503), Status(429))
    env.gateway.always(Answer("Yes", usage=Usage(11, 7)))
    model = env.model(kind)
    env.twin.invoke(model, PROMPT)
    env.twin.stream(model, PROMPT)
    assert env.total(ATTEMPTS) == len(env.gateway.requests) == 4
    for outcome, number in (("unavailable", 1), ("rate_limit", 1), ("ok", 2)):
        assert env.total(ATTEMPTS, retryrouter__outcome=outcome) == number
    assert env.total("gen_ai.client.inference.duration") == 2
    labels = {"gen_ai__token__modality": "unknown", "retryrouter__outcome": "ok"}
    assert env.total("gen_ai.client.inference.usage.input_tokens", **labels) == 22
    assert env.total("gen_ai.client.inference.usage.output_tokens") == 14
    waited = env.total("retryrouter.wait.time")
    assert waited == pytest.approx(sum(env.clock.sleeps))


def test_gauges_read_breakers_budgets_and_limits(env: Env) -> None:
    """A gauge is what the object says when metrics are collected."""
    env.gateway.always(Status(503), model="gpt-4")
    breaker = CircuitBreaker(failure_threshold=1, clock=env.clock)
    budget = RetryBudget(capacity=100)
    # A limit of another test may be there still.
    account = f"account {env.twin}"
    limit = RateLimit(requests_per_minute=600, name=account, clock=env.clock)
    first = gpt_router(env.gateway, "gpt-4")
    router = env.router(
        gpt_router,
        routes=[
            Route(model=first, name="gauged", breaker=breaker),
            gpt_router(env.gateway, "gpt-4o"),
        ],
        retry_policy=RetryPolicy(max_retries=0),
        budget=budget,
        rate_limit=limit,
    )
    env.twin.invoke(router, PROMPT)
    state = env.total("retryrouter.breaker.state", retryrouter__route="gauged")
    assert state == 2
    assert env.total("retryrouter.budget.tokens") <= budget.tokens
    labels = {"retryrouter__limit": account}
    available = env.total("retryrouter.limit.available", **labels)
    assert available == pytest.approx(limit.available()["requests"])
    assert env.total("retryrouter.limit.in_flight", **labels) == 0
    env.twin.invoke(router, PROMPT)
    assert env.total("retryrouter.route.skipped", retryrouter__route="gauged") == 1


def test_a_wait_for_a_limit_is_recorded(env: Env) -> None:
    """It is an attribute of the attempt that waited, and counted apart."""
    limit = RateLimit(requests_per_minute=60, clock=env.clock)
    model = gpt_router(env.gateway, clock=env.clock, rate_limit=limit)
    env.twin.invoke(model, PROMPT)
    env.twin.invoke(model, PROMPT)
    first, second = env.values("retryrouter.limiter_wait")
    assert first is None
    assert second == pytest.approx(1.0, abs=0.1)
    assert env.total("retryrouter.limiter_wait.time") == second
    assert env.total("retryrouter.wait.time") == 0


def test_a_wait_for_langchains_limiter_is_recorded(env: Env) -> None:
    """LangChain's rate limiters are waited for before an attempt, too."""
    limiter = InMemoryRateLimiter(
        requests_per_second=50, check_every_n_seconds=0.005, max_bucket_size=1
    )
    model = new_model("OpenAI", env.gateway, rate_limiter=limiter)
    env.twin.invoke(model, PROMPT)
    [waited] = env.values("retryrouter.limiter_wait")
    assert waited > 0.005


def test_labels_of_metrics_are_bounded(
    gateway: FaultyGateway, clock: FakeClock, recorded: Recorded
) -> None:
    """A caller that names a new model with each call makes no label for each."""
    model = llm("OpenAI", gateway, clock)
    for number in range(300):
        model.invoke(PROMPT, model=f"model-{number}")
    names = {p.attributes["gen_ai.request.model"] for p in recorded.points(ATTEMPTS)}
    assert "_OTHER" in names
    assert len(names) <= 201
    assert recorded.total(ATTEMPTS) == 300


def scraped(gateway: FaultyGateway, clock: FakeClock) -> dict[str, set[str]]:
    """The names and labels of all metrics, as Prometheus reads them."""
    reader = PrometheusMetricReader(disable_target_info=True)
    meters = MeterProvider([reader])
    instrumentation = instrument(meter_provider=meters)
    try:
        gateway.always(Status(503), model="gpt-4")
        prices: Any = {"input_price": 1.0, "output_price": 1.0}
        router = router_of(
            gateway,
            clock,
            gpt_router,
            routes=[
                gpt_router(gateway, "gpt-4"),
                Route(model=gpt_router(gateway, "gpt-4o"), **prices),
            ],
            breaker_settings={"failure_threshold": 1},
            retry_policy=RetryPolicy(max_retries=1),
            budget=RetryBudget(),
            rate_limit=RateLimit(requests_per_minute=60, clock=clock, name="account"),
        )
        for _ in range(3):
            router.invoke(PROMPT)
        tight = RateLimit(tokens_per_minute=1, clock=clock)
        with pytest.raises(RateLimitError, match="nothing was sent"):
            router_of(gateway, clock, gpt_router, rate_limit=tight).invoke(PROMPT * 10)
        gateway.script(Status(503), model="alone")
        gpt_router(gateway, "alone", clock=clock).invoke(PROMPT)
        with FaultyGateway(gptrouter="hosted") as hosted:
            hosted.script(Status(401))
            with pytest.raises(Exception, match="401"):
                embeddings(hosted, clock).embed_query(PROMPT)
        found: dict[str, set[str]] = {}
        for family in prometheus_client.REGISTRY.collect():
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
        return found
    finally:
        instrumentation.uninstrument()
        meters.shutdown()


def test_the_dashboard_asks_for_metrics_and_labels_that_exist(
    gateway: FaultyGateway, clock: FakeClock
) -> None:
    """Each expression of the Grafana dashboard names what a scrape has, and all of it.

    A metric has a panel; a panel has a title, a description and a place.
    """
    found = scraped(gateway, clock)
    dashboard = json.loads((DOCS / "grafana-dashboard.json").read_text())
    expressions = [
        target["expr"] for panel in dashboard["panels"] for target in panel["targets"]
    ]
    asked = set()
    for expression in expressions:
        names = re.findall(r"\b(?:retryrouter|gen_ai)_\w+", expression)
        known = [name for name in names if name in found]
        assert known, expression
        labels = set().union(*(found[name] for name in known))
        assert set(names) - set(known) <= labels, expression
        by = re.findall(r"by \(([^)]*)\)", expression)
        assert {one for group in by for one in group.split(", ")} <= labels, expression
        asked |= {SUFFIXES.sub("", name) for name in known}
    ours = {SUFFIXES.sub("", n) for n in found if n.startswith(("retryrouter", "gen_"))}
    assert asked == {name for name in ours if not name.endswith("_created")}
    for panel in dashboard["panels"]:
        assert panel["title"]
        assert panel["description"]
        assert panel["gridPos"]["w"] > 0


def test_each_metric_is_documented() -> None:
    """The page about observability names every metric, as OpenTelemetry does."""
    page = (DOCS / "observability.md").read_text()
    missing = [one.name for one in METRICS.values() if f"`{one.name}`" not in page]
    assert not missing


def test_a_call_that_is_not_sampled_is_counted(
    gateway: FaultyGateway, clock: FakeClock, recorded: Recorded
) -> None:
    """Metrics do not depend on the sampling of traces."""
    instrument(TracerProvider(sampler=ALWAYS_OFF), recorded.meters)
    gateway.script(Status(503))
    gpt_router(gateway, clock=clock).invoke(PROMPT)
    assert recorded.finished == []
    assert recorded.total(ATTEMPTS) == 2


def instrument_twice(url: str) -> None:
    """Before the global meter provider is set, and after; with a call each time."""
    model = models.gpt_router(url, "a")
    reader = InMemoryMetricReader()
    instrument()
    model.invoke("hi")
    metrics.set_meter_provider(MeterProvider([reader]))
    instrument()
    model.invoke("hi")
    data: Any = reader.get_metrics_data()
    found = {
        metric.name: [
            getattr(point, "count", None) or getattr(point, "value", None)
            for point in metric.data.data_points
        ]
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
    }
    assert found["retryrouter.attempt.duration"] == [2]
    assert found["gen_ai.client.inference.usage.output_tokens"] == [10]


def test_an_application_may_instrument_again_when_it_has_set_a_provider(
    gateway: FaultyGateway,
) -> None:
    """Until then a proxy stands for it; the metrics of both times are collected."""
    run_alone(instrument_twice, gateway.url)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # For its threads.
def test_a_forked_child_leaves_to_its_parent_what_is_not_collected(
    gateway: FaultyGateway, clock: FakeClock, recorded: Recorded
) -> None:
    """An attempt is in the histogram of one process."""
    gpt_router(gateway, clock=clock).invoke(PROMPT)
    child = os.fork()
    if child == 0:
        os._exit(int(recorded.total(ATTEMPTS)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert recorded.total(ATTEMPTS) == 1


def test_money_is_counted_by_attempt(env: Env) -> None:
    """Attempts, and the counter, cost what the attempt log says: rejected ones too."""
    env.gateway.script(Answer("No", usage=Usage(1_000, 500)))
    env.gateway.always(Answer("Yes", usage=Usage(2_000, 100)))
    models = [gpt_router(env.gateway, name) for name in ("gpt-4", "gpt-4o")]
    router = env.router(
        gpt_router,
        routes=[Route(model=one, input_price=1.0, output_price=2.0) for one in models],
        accept=lambda message: "Yes" in message.content,
    )
    answer = env.twin.invoke(router, PROMPT)
    log = answer.response_metadata["retryrouter"]["attempts"]
    costs = [line["cost"] for line in log]
    assert costs == pytest.approx([0.002, 0.0022])
    assert env.values("retryrouter.cost") == costs
    assert env.total("retryrouter.cost") == pytest.approx(sum(costs))
    assert env.total("retryrouter.cost", retryrouter__outcome="ok") == costs[-1]
