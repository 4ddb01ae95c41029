"""What real providers send, entry by entry, and what RetryRouter makes of it."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from langchain_retryrouter import OpenAI, RetryPolicy, RetryRouter
from langchain_retryrouter._providers.errors import read_event
from langchain_retryrouter.errors import RetryRouterError
from langchain_retryrouter.testing import Body, FaultyGateway, Status

from .attempts import WAYS, Way, ask, error_of
from .models import chat_anthropic, chat_openai

FILE = Path(__file__).parents[1] / "data" / "provider_answers.json"
DATA: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
ONCE = RetryPolicy(max_retries=0)


def with_dates(value: Any) -> Any:
    """An entry's headers or body with dates that lie 30 seconds ahead."""
    ahead = time.time() + 30  # noqa: TID251 - RetryRouter compares them with the time
    iso = datetime.fromtimestamp(ahead, UTC).isoformat()
    text = json.dumps(value).replace("<now + 30 s, ISO 8601>", iso)
    return json.loads(text.replace("<now + 30 s, milliseconds>", str(int(ahead * 1e3))))


def check(error: Any, entry: dict[str, Any]) -> None:
    assert (error.kind, error.status_code) == (entry["kind"], entry["status"])
    if "asked" in entry:
        # Dates lie in the future by a little less than when they were written.
        assert error.retry_after == pytest.approx(entry["asked"], abs=2)
    else:
        assert error.retry_after in {None, 34.07}


@pytest.mark.parametrize("way", [WAYS[0], WAYS[3]], ids=str)
@pytest.mark.parametrize("entry", DATA["answers"], ids=lambda entry: entry["name"])
def test_an_answer_has_its_kind_and_its_wait(entry: dict[str, Any], way: Way) -> None:
    """Status, codes, sentences and headers of a provider are understood as meant."""
    make = chat_anthropic if entry["protocol"] == "anthropic" else chat_openai
    with FaultyGateway() as gateway:
        headers = {"content-type": "application/json", **entry.get("headers", {})}
        step = Status(entry["status"], with_dates(headers), with_dates(entry["body"]))
        gateway.script(step)
        error = error_of(way, RetryRouter(routes=[make(gateway)], retry_policy=ONCE))
        assert len(gateway.requests) == 1
    check(error, entry)


@pytest.mark.parametrize(
    "entry",
    [entry for entry in DATA["answers"] if entry["protocol"] == "openai"],
    ids=lambda entry: entry["name"],
)
def test_the_llm_classes_find_the_same(entry: dict[str, Any]) -> None:
    """`OpenAI` has the same reader: the kind and the wait are those of RetryRouter."""
    with FaultyGateway() as gateway:
        headers = {"content-type": "application/json", **entry.get("headers", {})}
        step = Status(entry["status"], with_dates(headers), with_dates(entry["body"]))
        gateway.script(step)
        model = OpenAI(
            api_key=SecretStr("any"), base_url=gateway.openai_url, max_retries=0
        )
        with pytest.raises(RetryRouterError) as caught:
            model.invoke("hi")
        model.close()
    check(caught.value, entry)


@pytest.mark.parametrize("entry", DATA["wordings"])
def test_a_wording_has_its_kind(entry: dict[str, Any]) -> None:
    """What providers write of contexts, filters, quotas, models and keys is known."""
    with FaultyGateway() as gateway:
        headers = {"content-type": "application/json", **entry.get("headers", {})}
        gateway.script(Status(entry["status"], headers, entry["body"]))
        error = error_of(
            WAYS[0], RetryRouter(routes=[chat_openai(gateway)], retry_policy=ONCE)
        )
    assert isinstance(error, RetryRouterError)
    assert (error.kind, error.status_code) == (entry["kind"], entry["status"])
    assert error.retry_after == entry.get("asked")


@pytest.mark.parametrize("entry", DATA["events"], ids=lambda entry: entry["name"])
def test_an_event_is_an_error_or_not(entry: dict[str, Any]) -> None:
    """Every dialect of an error inside a stream is known, and no chunk is one."""
    data = entry["data"]
    written = data if isinstance(data, str) else json.dumps(data)
    for form in (data, written, written.encode()):
        report = read_event(form, entry["event"])
        assert (report and report.kind) == entry["kind"]


@pytest.mark.parametrize("way", WAYS[1::2], ids=str)
@pytest.mark.parametrize(
    "entry",
    [entry for entry in DATA["events"] if "response.failed" in str(entry)],
    ids=lambda entry: entry["name"],
)
def test_a_failed_response_counts_by_its_code(entry: dict[str, Any], way: Way) -> None:
    """langchain-openai raises its text alone, in which the code stands.

    Old versions swallow the event: no chunk at all is a malformed answer.
    """
    data = {"sequence_number": 1, **entry["data"]}
    event = f"event: response.failed\ndata: {json.dumps(data)}\n\n"
    with FaultyGateway() as gateway:
        gateway.respond("/v1/responses", {})
        gateway.always(Body(200, {"content-type": "text/event-stream"}, event))
        bare, routed = (chat_openai(gateway), chat_openai(gateway))
        bare.use_responses_api = routed.use_responses_api = True
        try:
            is_swallowed = not ask(way, bare)
        except ValueError:
            is_swallowed = False
        error = error_of(way, RetryRouter(routes=[routed], retry_policy=ONCE))
    assert isinstance(error, RetryRouterError)
    assert error.kind == ("malformed" if is_swallowed else entry["kind"])
    assert is_swallowed or "Said by OpenAI" in error.message
