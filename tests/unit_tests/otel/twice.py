"""A program that instruments before it sets the global meter provider, and after."""

from typing import Any

from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from pydantic import SecretStr

from langchain_retryrouter import GPTRouter, GPTRouterModel
from langchain_retryrouter.otel import instrument


def instrument_twice(url: str) -> None:
    """Make a call each time; the metrics of both are collected."""
    model = GPTRouter(
        models_priority_list=[GPTRouterModel(name="a", provider_name="b")],
        gpt_router_api_base=url,
        gpt_router_api_key=SecretStr("any"),
    )
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
