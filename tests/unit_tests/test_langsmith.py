"""In a LangSmith trace each retry is an event of the run that it belongs to.

The real `langsmith` client posts to a collector on the loopback, in its own format:
parts of a multipart form, compressed or not, from which the runs are put together.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import zstandard
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tracers.langchain import LangChainTracer
from langsmith import Client
from langsmith.env import get_langchain_env_var_metadata, get_runtime_environment
from pydantic import SecretStr

from langchain_retryrouter import (
    GPTRouter,
    GPTRouterModel,
    RetryPolicy,
    RetryRouter,
    UnavailableError,
)
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Cut,
    FakeClock,
    FaultyGateway,
    Reset,
    Status,
)
from tests.unit_tests.conftest import Twin

KEY = "sk-must-not-be-shown"


class Collector(ThreadingHTTPServer):
    """Collects the runs that the client posts, as LangSmith's server does."""

    daemon_threads = False  # Closed only when all have ended.

    def __init__(self, *, compressed: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.info = {
            "version": "0.12.0",
            "batch_ingest_config": {
                "use_multipart_endpoint": True,
                "size_limit": 100,
                "size_limit_bytes": 20_000_000,
                "scale_up_qsize_trigger": 1000,
                "scale_up_nthreads_limit": 4,
                "scale_down_nempty_trigger": 4,
            },
            "instance_flags": {"zstd_compression_enabled": compressed},
        }
        self.posted: list[bytes] = []
        self.runs: dict[str, dict[str, Any]] = defaultdict(dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def take(self, content_type: str, body: bytes) -> None:
        """Put the parts together: `post.ID`, `patch.ID.events` and so on."""
        self.posted.append(body)
        head = f"content-type: {content_type}\r\n\r\n".encode()
        form = BytesParser().parsebytes(head + body)
        for part in form.walk():
            name = part.get_param("name", header="content-disposition")
            if not isinstance(name, str):
                continue
            _, run_id, *field = name.split(".")
            payload = part.get_payload(decode=True)
            assert isinstance(payload, bytes)
            value = json.loads(payload)
            self.runs[run_id].update({field[0]: value} if field else value)

    def runs_of(self, run_type: str) -> list[dict[str, Any]]:
        return [run for run in self.runs.values() if run["run_type"] == run_type]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_GET(self) -> None:
        self._reply(self.server.info)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"] or 0))
        if not body:
            body = b"".join(self._chunks())
        if self.headers["content-encoding"] == "zstd":
            body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
        self.server.take(self.headers["content-type"], body)
        self._reply({})

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _reply(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@dataclass
class Trace:
    """A model over a faulty gateway, and a tracer that posts to a collector."""

    gateway: FaultyGateway
    clock: FakeClock
    collector: Collector
    tracer: LangChainTracer

    @property
    def config(self) -> Any:
        """The config of a traced call."""
        return {"callbacks": [self.tracer]}

    def model(self, gateway: FaultyGateway, name: str, **fields: Any) -> GPTRouter:
        """A GPTRouter for one model."""
        return GPTRouter(
            models_priority_list=[GPTRouterModel(name=name, provider_name="p")],
            gpt_router_api_base=gateway.url,
            gpt_router_api_key=SecretStr(KEY),
            **fields,
        )

    @property
    def llm(self) -> GPTRouter:
        """The model of most tests, whose waits take no time."""
        return self.model(self.gateway, "gpt-4", clock=self.clock)

    def router(self, backup: FaultyGateway, max_retries: int) -> RetryRouter:
        """A router over two such models."""
        return RetryRouter(
            routes=[self.llm, self.model(backup, "gpt-4o")],
            retry_policy=RetryPolicy(max_retries=max_retries),
            clock=self.clock,
        )

    def runs(self, run_type: str) -> list[dict[str, Any]]:
        """The runs that were posted; the key is in none of them."""
        self.tracer.wait_for_futures()
        assert self.tracer.client is not None
        self.tracer.client.flush()
        assert KEY.encode() not in b"".join(self.collector.posted)
        return self.collector.runs_of(run_type)


@pytest.fixture
def trace(
    request: pytest.FixtureRequest, faulty_gateway: FaultyGateway, fake_clock: FakeClock
) -> Iterator[Trace]:
    """A collector, uncompressed unless a test asks otherwise, and its client."""
    # The client asks git and docker about their surroundings once, where it first needs
    # to know: not in a coroutine, where a blocking call is an error.
    get_runtime_environment()
    get_langchain_env_var_metadata()
    with Collector(compressed=getattr(request, "param", False)) as collector:
        thread = threading.Thread(target=collector.serve_forever, args=(0.01,))
        thread.start()
        client = Client(api_url=collector.url, api_key="ls-key")
        tracer = LangChainTracer(client=client, project_name="tests")
        yield Trace(faulty_gateway, fake_clock, collector, tracer)
        client.close()
        for worker in threading.enumerate():
            # `close` tells the client's threads to end, and does not wait for it.
            if "tracing_control" in worker.name:
                worker.join(10)
        collector.shutdown()
        thread.join(10)


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
    first, second, third = retries_of(run)
    assert first == {
        "attempt": 1,
        "slept": trace.clock.sleeps[0],
        "outcome": "failed",
        "exception": "Error code: 503 - Something went wrong",
        "exception_type": "GPTRouterUnavailableError",
    }
    assert (second["attempt"], third["attempt"]) == (2, 3)
    assert second["exception_type"] == "GPTRouterRateLimitError"
    assert third["exception_type"] == "GPTRouterConnectionError"
    assert third["slept"] == sum(trace.clock.sleeps)
    names = [event["name"] for event in run["events"]]
    assert names[:4] == ["start", "retry", "retry", "retry"]
    assert names[-1] == "end"
    [[generation]] = run["outputs"]["generations"]
    assert generation["text"] == STUB_TEXT


@pytest.mark.parametrize(
    "trace", [False, True], ids=["multipart", "zstd"], indirect=True
)
def test_retries_in_a_chain_belong_to_the_models_run(twin: Twin, trace: Trace) -> None:
    """In a batch of chains each model's run has its own retries; a chain's has none."""
    trace.gateway.script(Status(503), Status(503), Status(503))
    chain = ChatPromptTemplate(["{question}"]) | trace.llm | StrOutputParser()
    twin.batch(chain, ["one", "two"], trace.config)

    models, chains = trace.runs("llm"), trace.runs("chain")
    assert len(models) == len(chains) == 2
    assert sum(len(retries_of(run)) for run in models) == 3
    assert [retries_of(run) for run in chains] == [[], []]
    assert {run["parent_run_id"] for run in models} == {run["id"] for run in chains}


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
        unreachable = trace.model(gone, "gpt-4", proxy=proxy, max_retries=0)
    with pytest.raises(Exception, match="no connection"):
        twin.invoke(unreachable, "hi", trace.config)
    assert len(trace.runs("llm")) == 4
    assert b"the-password-of-the-proxy" not in b"".join(trace.collector.posted)


@calls_and_streams
def test_a_router_is_one_run(twin: Twin, trace: Trace, way: str) -> None:
    """Its routes have no runs: their attempts are events of the router's run."""
    trace.gateway.always(Status(503))
    with FaultyGateway() as backup:
        chain = trace.router(backup, max_retries=1) | StrOutputParser()
        getattr(twin, way)(chain, "hi", trace.config)

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


@calls_and_streams
def test_a_router_that_failed_is_one_failed_run(
    twin: Twin, trace: Trace, way: str
) -> None:
    """Its error is the first route's, with those of the other routes beside it."""
    trace.gateway.always(Status(503))
    with FaultyGateway() as backup:
        backup.always(Status(429))
        router = trace.router(backup, max_retries=0)
        with pytest.raises(UnavailableError):
            getattr(twin, way)(router, "hi", trace.config)

    [run] = trace.runs("llm")
    assert [retry["attempt"] for retry in retries_of(run)] == [1]
    assert "GPTRouterUnavailableError" in run["error"]
    assert "gpt-4o: GPTRouterRateLimitError" in run["error"]
