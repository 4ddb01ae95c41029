"""In a LangSmith trace each retry is an event of the run that it belongs to.

The real `langsmith` client posts batches of runs to a server on the loopback.
"""

import itertools
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.tracers.langchain import LangChainTracer
from langsmith import Client

from langchain_retryrouter import GPTRouter, RetryPolicy, RetryRouter, UnavailableError
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Cut,
    FakeClock,
    FaultyGateway,
    Reset,
    Status,
)
from tests.support.models import KEY, gpt_router
from tests.unit_tests.conftest import Twin

pytestmark = pytest.mark.usefixtures("known_surroundings")

LIMITS = {
    "use_multipart_endpoint": False,
    "size_limit": 100,
    "scale_up_qsize_trigger": 1000,
    "scale_up_nthreads_limit": 4,
    "scale_down_nempty_trigger": 4,
}
"""How the client shall post runs: in JSON, without a form around it."""


@dataclass
class Trace:
    """A model over a faulty gateway, and a tracer that posts to a server."""

    gateway: FaultyGateway
    clock: FakeClock
    server: FaultyGateway
    tracer: LangChainTracer

    @property
    def config(self) -> Any:
        return {"callbacks": [self.tracer]}

    @property
    def llm(self) -> GPTRouter:
        """The model of most tests, whose waits take no time."""
        return gpt_router(self.gateway, "gpt-4", clock=self.clock)

    def runs(self, run_type: str) -> list[dict[str, Any]]:
        """The runs that were posted; the key is in none of them."""
        self.tracer.wait_for_futures()
        assert self.tracer.client is not None
        self.tracer.client.flush()
        assert KEY.encode() not in self.posted
        runs: dict[str, dict[str, Any]] = defaultdict(dict)
        for request in self.server.requests:
            for run in [one for batch in request.payload.values() for one in batch]:
                runs[run["id"]].update(run)
        return [run for run in runs.values() if run["run_type"] == run_type]

    @property
    def posted(self) -> bytes:
        return b"".join(request.body for request in self.server.requests)


@pytest.fixture
def trace(faulty_gateway: FaultyGateway, fake_clock: FakeClock) -> Iterator[Trace]:
    """A gateway, and LangSmith's client with a server that takes its batches."""
    with FaultyGateway() as server:
        server.respond("/info", {"batch_ingest_config": LIMITS})
        server.respond("/runs/batch", {})
        client = Client(api_url=server.url, api_key="ls-key")
        tracer = LangChainTracer(client=client, project_name="tests")
        yield Trace(faulty_gateway, fake_clock, server, tracer)
        client.close()
        for worker in threading.enumerate():
            # `close` tells the client's threads to end, and does not wait for it.
            if "tracing_control" in worker.name:
                worker.join(10)


def retries_of(run: dict[str, Any]) -> list[dict[str, Any]]:
    return [event["kwargs"] for event in run["events"] if event["name"] == "retry"]


calls_and_streams = pytest.mark.parametrize("way", ["invoke", "stream"])


@pytest.mark.parametrize("way", ["invoke", "stream", "streaming invoke"])
def test_each_retry_is_an_event_of_its_run(twin: Twin, trace: Trace, way: str) -> None:
    """An event has the attempt, the seconds slept up to its end, and the exception."""
    trace.gateway.script(Status(503), Status(429), Reset())
    model = trace.llm.model_copy(update={"streaming": "streaming" in way})
    (twin.stream if way == "stream" else twin.invoke)(model, "hi", trace.config)
    [run] = trace.runs("llm")
    retries = retries_of(run)
    waits = list(itertools.accumulate(trace.clock.sleeps))
    assert [(one["attempt"], one["slept"]) for one in retries] == list(
        enumerate(waits, 1)
    )
    errors = [
        "GPTRouterUnavailableError",
        "GPTRouterRateLimitError",
        "APIConnectionError",
    ]
    assert [one["exception_type"] for one in retries] == errors
    assert retries[0]["outcome"] == "failed"
    assert retries[0]["exception"] == "Error code: 503 - Something went wrong"
    names = [event["name"] for event in run["events"]]
    assert names[:4] == ["start", "retry", "retry", "retry"]
    assert names[-1] == "end"
    [[generation]] = run["outputs"]["generations"]
    assert generation["text"] == STUB_TEXT


@calls_and_streams
def test_a_failed_run_has_its_retries_and_its_error(
    twin: Twin, trace: Trace, way: str
) -> None:
    """A run that fails has its retries, and the error that was raised."""
    trace.gateway.always(Status(503))
    with pytest.raises(UnavailableError):
        getattr(twin, way)(trace.llm, "hi", trace.config)
    [run] = trace.runs("llm")
    assert len(retries_of(run)) == 4
    assert "GPTRouterUnavailableError" in run["error"]
    assert "gave up after 5 attempts" in run["error"]


def test_no_key_is_posted(twin: Twin, trace: Trace) -> None:
    """The key is nowhere in a trace: not of an answer, a retry, or an error."""
    llm = trace.llm
    trace.gateway.script(Status(503))
    twin.invoke(llm, "hi", trace.config)
    trace.gateway.script(Status(401), Cut(after=1))
    for call in (twin.invoke, twin.stream):
        with pytest.raises(Exception, match=r"401|broke"):
            call(llm, "hi", trace.config)
    proxy = "http://user:the-password-of-the-proxy@127.0.0.1:1"
    with FaultyGateway() as gone:
        unreachable = gpt_router(gone, "gpt-4", proxy=proxy, max_retries=0)
    with pytest.raises(Exception, match="no connection"):
        twin.invoke(unreachable, "hi", trace.config)
    assert len(trace.runs("llm")) == 4
    assert b"the-password-of-the-proxy" not in trace.posted


@calls_and_streams
def test_a_router_is_one_run(twin: Twin, trace: Trace, way: str) -> None:
    """Its routes have no runs: their attempts are events of the router's run."""
    trace.gateway.always(Status(503))
    with FaultyGateway() as backup:
        router = RetryRouter(
            routes=[trace.llm, gpt_router(backup, "gpt-4o")],
            retry_policy=RetryPolicy(max_retries=1),
            clock=trace.clock,
        )
        getattr(twin, way)(router | StrOutputParser(), "hi", trace.config)

    [run] = trace.runs("llm")
    assert run["name"] == "RetryRouter"
    kind = "GPTRouterUnavailableError"
    retries = [(retry["attempt"], retry["exception_type"]) for retry in retries_of(run)]
    assert retries == [(1, kind), (2, kind)]
    [[generation]] = run["outputs"]["generations"]
    assert generation["text"] == STUB_TEXT
    metadata = generation["message"]["kwargs"]["response_metadata"]
    assert metadata["model_name"] == "gpt-4o"
    lines = metadata["retryrouter"]["attempts"]
    assert [(line["route"], line["outcome"]) for line in lines] == [
        ("gpt-4", "unavailable"),
        ("gpt-4", "unavailable"),
        ("gpt-4o", "ok"),
    ]
