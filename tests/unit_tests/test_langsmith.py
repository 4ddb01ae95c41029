"""In a LangSmith trace each retry is an event of the run that it belongs to.

The real `langsmith` client posts to a collector on the loopback, in its own format:
parts of a multipart form, compressed or not, from which the runs are put together.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
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

KEY = "sk-the-key-that-nobody-may-see"


class Collector(ThreadingHTTPServer):
    """Takes in what the client posts, as LangSmith's server does."""

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


@pytest.fixture
def collector(request: pytest.FixtureRequest) -> Iterator[Collector]:
    """A collector, uncompressed unless a test asks otherwise."""
    compressed = getattr(request, "param", False)
    with Collector(compressed=compressed) as collector:
        thread = threading.Thread(target=collector.serve_forever, args=(0.01,))
        thread.start()
        yield collector
        collector.shutdown()
        thread.join(10)


@pytest.fixture
def tracer(collector: Collector) -> Iterator[LangChainTracer]:
    # The client asks git and docker about their surroundings once, where it first needs
    # to know: not in a coroutine, where a blocking call is an error.
    get_runtime_environment()
    get_langchain_env_var_metadata()
    client = Client(api_url=collector.url, api_key="ls-key")
    yield LangChainTracer(client=client, project_name="tests")
    client.close()
    for thread in threading.enumerate():
        # `close` tells the client's threads to end, and does not wait for it.
        if "tracing_control" in thread.name:
            thread.join(10)


@pytest.fixture
def llm(faulty_gateway: FaultyGateway, fake_clock: FakeClock) -> GPTRouter:
    return GPTRouter(
        models_priority_list=[GPTRouterModel(name="gpt-4", provider_name="p")],
        gpt_router_api_base=faulty_gateway.url,
        gpt_router_api_key=SecretStr(KEY),
        clock=fake_clock,
    )


def another_at(gateway: FaultyGateway) -> GPTRouter:
    return GPTRouter(
        models_priority_list=[GPTRouterModel(name="gpt-4o", provider_name="p")],
        gpt_router_api_base=gateway.url,
        gpt_router_api_key=SecretStr(KEY),
    )


def flush(tracer: LangChainTracer) -> None:
    tracer.wait_for_futures()
    assert tracer.client is not None
    tracer.client.flush()


def retries_of(run: dict[str, Any]) -> list[dict[str, Any]]:
    return [event["kwargs"] for event in run["events"] if event["name"] == "retry"]


@pytest.mark.parametrize("way", ["invoke", "stream", "streaming invoke"])
def test_each_retry_is_an_event_of_its_run(
    twin: Twin,
    llm: GPTRouter,
    faulty_gateway: FaultyGateway,
    fake_clock: FakeClock,
    collector: Collector,
    tracer: LangChainTracer,
    way: str,
) -> None:
    """An event has the attempt, the seconds slept up to its end, and the exception."""
    faulty_gateway.script(Status(503), Status(429), Reset())
    model = llm.model_copy(update={"streaming": True}) if "streaming" in way else llm
    run = twin.stream if way == "stream" else twin.invoke

    run(model, "hi", {"callbacks": [tracer]})
    flush(tracer)

    [traced] = collector.runs_of("llm")
    first, second, third = retries_of(traced)
    assert first == {
        "attempt": 1,
        "slept": fake_clock.sleeps[0],
        "outcome": "failed",
        "exception": "Error code: 503 - Something went wrong",
        "exception_type": "GPTRouterUnavailableError",
    }
    assert (second["attempt"], second["exception_type"]) == (
        2,
        "GPTRouterRateLimitError",
    )
    assert (third["attempt"], third["exception_type"]) == (
        3,
        "GPTRouterConnectionError",
    )
    assert third["slept"] == sum(fake_clock.sleeps)
    names = [event["name"] for event in traced["events"]]
    assert names[:4] == ["start", "retry", "retry", "retry"]
    assert names[-1] == "end"
    [[generation]] = traced["outputs"]["generations"]
    assert generation["text"] == STUB_TEXT


@pytest.mark.parametrize(
    "collector", [False, True], ids=["multipart", "zstd"], indirect=True
)
def test_retries_in_a_chain_belong_to_the_model_s_run(
    twin: Twin,
    llm: GPTRouter,
    faulty_gateway: FaultyGateway,
    collector: Collector,
    tracer: LangChainTracer,
) -> None:
    """In a batch of chains each model's run has its own retries; a chain's has none."""
    faulty_gateway.script(Status(503), Status(503), Status(503))
    chain = ChatPromptTemplate(["{question}"]) | llm | StrOutputParser()

    twin.batch(chain, ["one", "two"], {"callbacks": [tracer]})
    flush(tracer)

    models, chains = collector.runs_of("llm"), collector.runs_of("chain")
    assert len(models) == len(chains) == 2
    assert sum(len(retries_of(run)) for run in models) == 3
    assert [retries_of(run) for run in chains] == [[], []]
    assert {run["parent_run_id"] for run in models} == {run["id"] for run in chains}


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_a_failed_run_has_its_retries_and_its_error(
    twin: Twin,
    llm: GPTRouter,
    faulty_gateway: FaultyGateway,
    collector: Collector,
    tracer: LangChainTracer,
    way: str,
) -> None:
    """A run that failed in the end tells its retries, and the error that came out."""
    faulty_gateway.always(Status(503))

    with pytest.raises(UnavailableError):
        getattr(twin, way)(llm, "hi", {"callbacks": [tracer]})
    flush(tracer)

    [run] = collector.runs_of("llm")
    assert len(retries_of(run)) == 4
    assert "GPTRouterUnavailableError" in run["error"]
    assert "gave up after 5 attempts" in run["error"]


def test_no_key_is_posted(
    twin: Twin,
    llm: GPTRouter,
    faulty_gateway: FaultyGateway,
    collector: Collector,
    tracer: LangChainTracer,
) -> None:
    """The key is nowhere in a trace: not of an answer, a retry, or an error."""
    config = {"callbacks": [tracer]}
    faulty_gateway.script(Status(503))
    twin.invoke(llm, "hi", config)
    faulty_gateway.script(Status(401), Cut(after=1))
    for call in (twin.invoke, twin.stream):
        with pytest.raises(Exception, match=r"401|broke"):
            call(llm, "hi", config)
    with FaultyGateway() as gone:
        address = gone.url
    nowhere = GPTRouter(
        models_priority_list=llm.models_priority_list,
        gpt_router_api_base=address,
        gpt_router_api_key=SecretStr(KEY),
        proxy="http://user:the-password-of-the-proxy@127.0.0.1:1",
        max_retries=0,
    )
    with pytest.raises(Exception, match="no connection"):
        twin.invoke(nowhere, "hi", config)
    flush(tracer)

    posted = b"".join(collector.posted)
    assert len(collector.runs_of("llm")) == 4
    assert KEY.encode() not in posted
    assert b"the-password-of-the-proxy" not in posted


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_a_router_is_one_run_whoever_served(
    twin: Twin,
    llm: GPTRouter,
    faulty_gateway: FaultyGateway,
    fake_clock: FakeClock,
    collector: Collector,
    tracer: LangChainTracer,
    way: str,
) -> None:
    """Its routes have no runs of their own: their attempts are events of the one."""
    faulty_gateway.always(Status(503))
    with FaultyGateway() as backup:
        router = RetryRouter(
            routes=[llm, another_at(backup)],
            retry_policy=RetryPolicy(max_retries=1),
            clock=fake_clock,
        )
        getattr(twin, way)(router | StrOutputParser(), "hi", {"callbacks": [tracer]})
    flush(tracer)

    [run] = collector.runs_of("llm")
    assert run["name"] == "RetryRouter"
    first, second = retries_of(run)
    assert first["exception_type"] == second["exception_type"]
    assert first["exception_type"] == "GPTRouterUnavailableError"
    assert (first["attempt"], second["attempt"]) == (1, 2)
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
    assert KEY.encode() not in b"".join(collector.posted)


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_a_router_that_failed_is_one_failed_run(
    twin: Twin,
    llm: GPTRouter,
    faulty_gateway: FaultyGateway,
    fake_clock: FakeClock,
    collector: Collector,
    tracer: LangChainTracer,
    way: str,
) -> None:
    """Its error is the first route's, and what the others said is beside it."""
    faulty_gateway.always(Status(503))
    with FaultyGateway() as backup:
        backup.always(Status(429))
        router = RetryRouter(
            routes=[llm, another_at(backup)],
            retry_policy=RetryPolicy(max_retries=0),
            clock=fake_clock,
        )
        with pytest.raises(UnavailableError):
            getattr(twin, way)(router, "hi", {"callbacks": [tracer]})
    flush(tracer)

    [run] = collector.runs_of("llm")
    assert [retry["attempt"] for retry in retries_of(run)] == [1]
    assert "GPTRouterUnavailableError" in run["error"]
    assert "gpt-4o: GPTRouterRateLimitError" in run["error"]
    assert KEY.encode() not in b"".join(collector.posted)
