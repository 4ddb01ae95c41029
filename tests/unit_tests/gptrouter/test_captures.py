"""The real gateway's recorded answers, replayed byte by byte.

Each capture is a request, a line `=== response ===`, and the response as it came, with
the framing of its chunks removed. What a replay must give is read from the capture by
other means than the package's own: the server's own sum of a streamed text, the plain
JSON of an answer, and a table for the errors.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from langchain_retryrouter import RetryRouterError
from langchain_retryrouter.testing import FaultyGateway, Raw
from tests.support.models import gpt_router
from tests.unit_tests.conftest import Twin
from tests.unit_tests.testing.wire_client import Capture as Recorded
from tests.unit_tests.testing.wire_client import Reply

CAPTURES = Path(__file__).parents[1] / "data" / "gptrouter_captures"
NAMES = sorted(path.stem for path in CAPTURES.glob("*.http"))

KINDS_BY_STATUS = {
    401: "authentication",
    404: "not_found",
    429: "rate_limit",
    500: "server_error",
}
KINDS_IN_STREAMS = {
    "33_unknown_provider_stream": "not_found",
    "34_unknown_model_stream": "not_found",
    "35_model_provider_mismatch_stream": "unavailable",
    "36_no_health_row_cohere_stream": "unavailable",
    "38_empty_data_stream": "unavailable",
    "42_no_messages_stream": "invalid_request",
    "60_up429_default_stream": "rate_limit",
    "61_up429_retries0_stream": "rate_limit",
    "62_up429_retryafter_stream": "rate_limit",
    "63_up500_retries0_stream": "server_error",
    "65_up400_stream": "invalid_request",
    "66_up401_stream": "authentication",
    "67_uptimeout_stream": "timeout",
    "68_uptimeout_retry1_stream": "timeout",
    "71_fallback_on_429_stream": "rate_limit",
    "72_negative_retries_stream": "server_error",
    "80_mid_cut_stream": "interrupted",
    "80_mid_errchunk_stream": "server_error",
    "80_mid_rst_stream": "interrupted",
    "a2_all_unavailable_stream": "unavailable",
    "b4s_response_format_json_schema_stream": "invalid_request",
}
NO_GENERATION = {"b6_generate_image"}  # A healthy answer of another endpoint.


@dataclass(frozen=True)
class Capture:
    """One recorded response."""

    name: str
    reply: Reply

    @property
    def retry_after(self) -> float | None:
        return next(map(float, self.reply.header("retry-after")), None)

    @property
    def is_event_stream(self) -> bool:
        return "text/event-stream" in str(self.reply.header("content-type"))

    @property
    def was_asked_to_stream(self) -> bool:
        return self.is_event_stream or self.name.endswith("_stream")

    @property
    def events(self) -> list[dict[str, Any]]:
        """The JSON events, by a reader that knows no more than these captures need."""
        lines = self.reply.body.decode().split("\n")
        return [json.loads(line[6:]) for line in lines if line.startswith('data: {"')]

    def response(self, chunks: list[bytes]) -> bytes:
        """The response with its body in `chunks`, on a connection that is kept."""
        framing = {"content-length", "transfer-encoding"}
        fields = [
            f"{name}: {value}"
            for name, value in self.reply.headers
            if name.lower() not in framing
        ]
        lines = [f"HTTP/1.1 {self.reply.status} Recorded", *fields]
        head = "\r\n".join([*lines, "transfer-encoding: chunked", "\r\n"]).encode()
        framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
        return head + framed + b"0\r\n\r\n"


@cache
def load(name: str) -> Capture:
    return Capture(name, Recorded.load(name).reply)


@dataclass
class Outcome:
    """What the caller of a replay gets."""

    text: str = ""
    usage: dict[str, Any] | None = None
    finish_reason: str | None = None
    model: str | None = None
    error: str | None = None
    told: str = ""
    retry_after: float | None = None
    delivered: str = ""


def replay(capture: Capture, twin: Twin, url: str) -> Outcome:
    """What the caller gets for this response, without retries."""
    llm = gpt_router(url, "gpt-4", max_retries=0)
    chunks: list[Any] = []
    try:
        if capture.was_asked_to_stream:
            first, *others = twin.stream(llm, "hi", into=chunks)
            message = first.__add__(others)
        else:
            message = twin.invoke(llm, "hi")
    except RetryRouterError as error:
        return Outcome(
            "".join(chunk.content for chunk in chunks),
            error=error.kind.value,
            told=str(error),
            retry_after=error.retry_after,
            delivered=error.delivered,
        )
    metadata = message.response_metadata
    return Outcome(
        message.content,
        message.usage_metadata,
        metadata.get("finish_reason"),
        metadata.get("model_name"),
    )


def expected(capture: Capture) -> Outcome:
    """What the caller should get, read from the capture itself."""
    if capture.is_event_stream:
        return expected_of_stream(capture)
    data = json.loads(capture.reply.body)
    if capture.name in NO_GENERATION:
        told = "the gateway's answer is not of its protocol (at 'choices')"
        return Outcome(error="malformed", told=told)
    if capture.reply.status != 200:
        said = data.get("message") or data["error"]
        told = f"Error code: {capture.reply.status} - {said}"
        kind = KINDS_BY_STATUS[capture.reply.status]
        return Outcome(error=kind, told=told, retry_after=capture.retry_after)
    choice = data["choices"][0]
    usage = data["meta"]["usage"]
    return Outcome(
        choice["text"], usage_of(usage), choice["finish_reason"], data["model"]
    )


def expected_of_stream(capture: Capture) -> Outcome:
    updates = [e["data"] for e in capture.events if e["event"] == "update"]
    if capture.name in KINDS_IN_STREAMS:
        [told] = [e["message"] for e in capture.events if e["event"] == "error"]
        kind = KINDS_IN_STREAMS[capture.name]
        text = "".join(update["text"] for update in updates)
        return Outcome(text, error=kind, told=told, delivered=text)
    [meta] = [e["data"] for e in capture.events if e["event"] == "meta"]
    # Two choices of a stream cannot be told apart; we never ask for two.
    reasons = [one["finish_reason"] for one in updates if one.get("finish_reason")]
    usage = usage_of(meta["usage"]) if "usage" in meta else None
    models = [one.get("model") for one in (meta, *updates) if one.get("model")]
    reason = reasons[0] if reasons else None
    return Outcome(meta["text"], usage, reason, models[0])


def usage_of(told: dict[str, int]) -> dict[str, int]:
    return {
        "input_tokens": told["prompt_tokens"],
        "output_tokens": told["completion_tokens"],
        "total_tokens": told["total_tokens"],
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_capture_gives_what_it_says(
    twin: Twin, faulty_gateway: FaultyGateway, name: str
) -> None:
    """A recorded answer gives its content, in one chunk or in chunks of one byte."""
    capture = load(name)
    body = capture.reply.body
    for chunks in ([body], [body[i : i + 1] for i in range(len(body))]):
        faulty_gateway.script(Raw(capture.response(chunks), close=False))
        assert replay(capture, twin, faulty_gateway.url) == expected(capture)


@pytest.mark.parametrize("name", ["02_stream_ok", "06_stream_tool"])
def test_a_stream_that_stops_anywhere_is_whole_or_an_error(
    twin: Twin, faulty_gateway: FaultyGateway, name: str
) -> None:
    """A body that ends before its event `end` is an error, wherever it ends."""
    capture = load(name)
    end = b'data: {"event":"end","data":"end"}\n\n'
    complete_from = capture.reply.body.index(end) + len(end)
    lengths = [*range(1, complete_from, 41), complete_from - 1, complete_from]
    for length in lengths:
        body = capture.reply.body[:length]
        faulty_gateway.script(Raw(capture.response([body]), close=False))

        outcome = replay(capture, twin, faulty_gateway.url)

        assert (outcome.error is None) is (length >= complete_from), length
