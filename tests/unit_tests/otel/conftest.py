"""Models of all kinds over a faulty gateway, and what OpenTelemetry records of them."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import openai
import pytest
from langchain_openai import ChatOpenAI
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from pydantic import SecretStr

from langchain_retryrouter import (
    GPTRouter,
    GPTRouterEmbeddings,
    GPTRouterModel,
    RetryRouter,
    Route,
)
from langchain_retryrouter.otel import instrument
from langchain_retryrouter.testing import FakeClock, FaultyGateway
from tests.promises.harness import LLMS, new_model
from tests.support import models
from tests.support.models import KEY
from tests.unit_tests.conftest import Twin

PROMPT: Final = "the secret of the prompt"


def gpt_router(gateway: FaultyGateway, name: str = "gpt-4", **fields: Any) -> GPTRouter:
    return models.gpt_router(gateway, name, provider="chat_anthropic", **fields)


def chat_openai(gateway: FaultyGateway, name: str, **fields: Any) -> ChatOpenAI:
    """A model whose async client is its own, so that a test can close it."""
    client = openai.DefaultAsyncHttpxClient()
    return models.chat_openai(
        gateway, name, stream_usage=True, http_async_client=client, **fields
    )


def router_of(
    gateway: FaultyGateway,
    clock: FakeClock | None,
    new: Callable[..., Any],
    **fields: Any,
) -> RetryRouter:
    """A router over two routes, `first` and `second`."""
    routes = [
        Route(model=new(gateway, "gpt-4"), name="first"),
        Route(model=new(gateway, "gpt-4o"), name="second"),
    ]
    return RetryRouter(**{"routes": routes, "clock": clock, **fields})


def llm(name: str, gateway: FaultyGateway, clock: FakeClock, **fields: Any) -> Any:
    settings = {"max_retries": 4, "stream_usage": True, "clock": clock}
    return new_model(name, gateway, **settings, **fields)


MODELS: Final[dict[str, Callable[[FaultyGateway, FakeClock], Any]]] = {
    "GPTRouter": lambda it, clock: gpt_router(it, clock=clock),
    "router of GPTRouters": lambda it, clock: router_of(it, clock, gpt_router),
    "router of ChatOpenAIs": lambda it, clock: router_of(it, clock, chat_openai),
    **{name: functools.partial(llm, name) for name in LLMS},
}
"""All kinds of models that make completions."""


def embeddings(gateway: FaultyGateway, clock: FakeClock) -> GPTRouterEmbeddings:
    return GPTRouterEmbeddings(
        models_priority_list=[
            GPTRouterModel(name="text-embedding-3-small", provider_name="openai")
        ],
        gpt_router_api_base=gateway.url,
        gpt_router_api_key=SecretStr(KEY),
        clock=clock,
    )


@dataclass
class Recorded:
    """What OpenTelemetry has been given."""

    spans: InMemorySpanExporter
    reader: InMemoryMetricReader
    tracers: TracerProvider
    meters: MeterProvider

    @property
    def finished(self) -> list[ReadableSpan]:
        """All spans, in the order in which they ended."""
        return list(self.spans.get_finished_spans())

    @property
    def attempts(self) -> list[ReadableSpan]:
        """The spans of requests, in the order in which they began."""
        found = [one for one in self.finished if one.kind is SpanKind.CLIENT]
        return sorted(found, key=lambda one: one.start_time or 0)

    @property
    def calls(self) -> list[ReadableSpan]:
        """The spans of this package's calls."""
        name = "retryrouter.attempts"
        return [one for one in self.finished if name in (one.attributes or {})]

    @property
    def call(self) -> ReadableSpan:
        (call,) = self.calls
        return call

    def values(self, key: str, *spans: ReadableSpan) -> list[Any]:
        """An attribute of all attempts, or of these spans."""
        return [(one.attributes or {}).get(key) for one in spans or self.attempts]

    def points(self, name: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def total(self, name: str, **labels: str) -> float:
        """The sum, or the count, of the points of a metric that have these labels."""
        wanted = {key.replace("__", "."): value for key, value in labels.items()}
        found: list[Any] = [
            getattr(point, "count", None) or getattr(point, "value", 0)
            for point in self.points(name)
            if wanted.items() <= dict(point.attributes).items()
        ]
        return float(sum(found))

    @property
    def everything(self) -> str:
        spans = [one.to_json() for one in self.finished]
        data = self.reader.get_metrics_data()
        return "".join(spans) + (data.to_json() if data else "")


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    """Record the spans and metrics of a test."""
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    recorded = Recorded(spans, reader, TracerProvider(), MeterProvider([reader]))
    recorded.tracers.add_span_processor(SimpleSpanProcessor(spans))
    instrumentation = instrument(recorded.tracers, recorded.meters)
    yield recorded
    instrumentation.uninstrument()
    recorded.tracers.shutdown()
    recorded.meters.shutdown()


@dataclass
class Env(Recorded):
    """What was recorded of calls, sync or async, of models at the test's gateway."""

    twin: Twin
    gateway: FaultyGateway
    clock: FakeClock

    def model(self, kind: str) -> Any:
        return MODELS[kind](self.gateway, self.clock)

    def router(self, new: Callable[..., Any], **fields: Any) -> RetryRouter:
        return router_of(self.gateway, self.clock, new, **fields)

    def run(self, model: Any, way: str, config: Any = None) -> None:
        """Call a model, or one of a kind, by the sync or the async method."""
        model = self.model(model) if isinstance(model, str) else model
        prompt = [PROMPT] if way == "batch" else PROMPT
        getattr(self.twin, way)(model, prompt, config)


@pytest.fixture
def env(
    twin: Twin, gateway: FaultyGateway, clock: FakeClock, recorded: Recorded
) -> Env:
    """Run the test with sync calls and with async calls."""
    return Env(**vars(recorded), twin=twin, gateway=gateway, clock=clock)
