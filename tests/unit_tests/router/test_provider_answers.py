"""What real providers send, entry by entry, and what RetryRouter makes of it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_retryrouter import FailureKind
from langchain_retryrouter._providers.errors import read_event, read_response
from langchain_retryrouter.errors import RetryRouterError
from langchain_retryrouter.testing import Body, FaultyGateway, Status
from tests.support.models import chat_openai
from tests.support.provider_answers import DATA, check, status_of

from .anthropic_wire import chat_anthropic
from .attempts import WAYS, Way, ask, error_of, router_of


@pytest.mark.parametrize("way", [WAYS[0], WAYS[3]], ids=str)
@pytest.mark.parametrize("entry", DATA["answers"], ids=lambda entry: entry["name"])
def test_an_answer_has_its_kind_and_its_wait(
    gateway: FaultyGateway, entry: dict[str, Any], way: Way
) -> None:
    """Status, codes, sentences and headers of a provider are understood as meant."""
    make = chat_anthropic if entry["protocol"] == "anthropic" else chat_openai
    gateway.script(status_of(entry))
    error = error_of(way, router_of(make(gateway), clock=None))
    assert len(gateway.requests) == 1
    check(error, entry)


@pytest.mark.parametrize("entry", DATA["wordings"])
def test_a_wording_has_its_kind(entry: dict[str, Any]) -> None:
    """Each provider's words for a kind are known, with the seconds that they name."""
    report = read_response(entry["status"], entry.get("headers", {}), entry["body"])
    assert report.kind == entry["kind"]
    assert report.retry_after == entry.get("asked")


@pytest.mark.parametrize("entry", DATA["events"], ids=lambda entry: entry["name"])
def test_an_event_is_an_error_or_not(entry: dict[str, Any]) -> None:
    """Every dialect of an error inside a stream is known, and no chunk is one.

    Google's are in a list; a proxy that gathers what it got makes a list of it.
    """
    data = entry["data"]
    written = data if isinstance(data, str) else json.dumps(data)
    forms = [(form, entry["event"]) for form in (data, written, written.encode())]
    if entry["kind"] and "error" in data:
        forms += [(form, "error") for form in ([data], [[data]], [json.dumps([data])])]
    for form, event in forms:
        report = read_event(form, event)
        assert (report and report.kind) == entry["kind"]


facts = st.sampled_from(["error", "type", "code", "status", "message", "details"])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)


@given(
    st.recursive(
        scalars,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(facts, inner, max_size=4)
        ),
    ),
    st.sampled_from([None, 200, 302, 400, 429, 500]),
)
def test_no_body_makes_the_reader_fail(body: Any, status: int | None) -> None:
    """Whatever stands where a name or a sentence is expected, there is a kind."""
    assert read_response(status, {}, body).kind in FailureKind
    read_event(body)


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
        error = error_of(way, router_of(routed))
    assert isinstance(error, RetryRouterError)
    assert error.kind == ("malformed" if is_swallowed else entry["kind"])
    assert is_swallowed or "Said by OpenAI" in error.message


@pytest.mark.parametrize("way", [WAYS[0], WAYS[3]], ids=str)
def test_the_text_of_a_large_error_is_cut(way: Way) -> None:
    """Megabytes of an error page are neither searched nor handed on."""
    page = "an error, said often. " * 100_000
    with FaultyGateway() as gateway:
        gateway.script(Status(400, {}, {"error": {"message": page}}))
        error = error_of(way, router_of(chat_openai(gateway)))
    assert page[:9_000] in str(error)
    assert len(str(error)) < len(str(error.__cause__)) + 100 < 11_000
