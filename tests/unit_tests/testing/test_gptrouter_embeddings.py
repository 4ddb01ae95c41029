"""The hosted gateway's embeddings, by a client that hides nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from langchain_retryrouter.testing import (
    Answer,
    FaultyGateway,
    HtmlPage,
    RecordedRequest,
    Status,
)
from langchain_retryrouter.testing._gptrouter_api import stub_embedding

from .wire_client import GENERATE, post

V1 = f"{GENERATE}/embeddings"
V2 = f"{GENERATE}/embeddings-v2"


@pytest.fixture
def gateway() -> Iterator[FaultyGateway]:
    """A gateway with embeddings."""
    with FaultyGateway(gptrouter="hosted") as gateway:
        yield gateway


def entry(*texts: Any, **fields: Any) -> dict[str, Any]:
    """A model's entry in a request to `V1`."""
    return {
        "modelName": "small",
        "providerName": "openai_embeddings",
        "order": 1,
        "promptParams": {"input": list(texts)},
        **fields,
    }


def asking(path: str, *texts: Any) -> dict[str, Any]:
    """The request for vectors that `path` takes."""
    if path == V1:
        return {"data": [entry(*texts)]}
    return {"input": list(texts), "modelName": "small"}


@pytest.mark.parametrize("path", [V1, V2])
def test_each_text_has_its_vector(gateway: FaultyGateway, path: str) -> None:
    """The answer has a vector for each text, in order, and always the same."""
    reply = post(gateway, path, asking(path, "a", "Łódź", "a"))

    first, second, third = (c["embedding"] for c in reply.json["choices"])
    assert first == third == stub_embedding("a")
    assert second == stub_embedding("Łódź") != first
    assert gateway.requests[0].model == "small"
    assert gateway.requests[0].parameters["input"] == ["a", "Łódź", "a"]
    assert len(set(first)) == 8
    assert all(-1 <= number <= 1 for number in first)


@pytest.mark.parametrize("path", [V1, V2])
def test_the_public_gateway_has_no_embeddings(
    faulty_gateway: FaultyGateway, path: str
) -> None:
    """The published server has no such endpoint."""
    reply = post(faulty_gateway, path, asking(path, "a"))

    assert reply.status == 404
    assert reply.json["message"] == f"Route POST:{path} not found"


@pytest.mark.parametrize("path", [V1, V2])
def test_steps_apply_to_embeddings(gateway: FaultyGateway, path: str) -> None:
    """A script answers embedding requests like all others, by their model too."""
    gateway.script(HtmlPage(502))
    gateway.script(Status(429), model="small")

    statuses = [post(gateway, path, asking(path, "a")).status for _ in range(3)]

    assert statuses == [429, 502, 200]


@pytest.mark.parametrize(
    ("path", "payload"),
    [
        (V1, {}),
        (V1, {"data": []}),
        (V1, {"data": ["a"]}),
        (V1, {"data": [entry("a"), entry("a", order=None)]}),
        (V1, {"data": [entry("a", modelName=None)]}),
        (V1, {"data": [entry("a", providerName="")]}),
        (V1, {"data": [entry("a", promptParams=None)]}),
        (V1, {"data": [entry()]}),
        (V1, {"data": [entry("a", "")]}),
        (V1, asking(V2, "a")),
        (V2, {}),
        (V2, {"input": ["a"]}),
        (V2, {"input": [], "modelName": "small"}),
        (V2, {"input": [""], "modelName": "small"}),
        (V2, {"input": ["a"], "modelName": 1}),
        (V2, asking(V1, "a")),
    ],
)
def test_malformed_requests_are_refused(
    gateway: FaultyGateway, path: str, payload: object
) -> None:
    """A request of the wrong shape is an opaque 500, and takes no step of a script."""
    gateway.script(Status(418))

    reply = post(gateway, path, payload)

    assert (reply.status, reply.json) == (500, {"error": "Something went wrong"})
    assert post(gateway, path, asking(path, "a")).status == 418


def test_embeddings_take_json_and_the_key_only() -> None:
    """Another content type is an opaque 500, and a wrong key a 401."""
    with FaultyGateway(api_key="k", gptrouter="hosted") as gateway:
        form = {"content-type": "text/plain", "ws-secret": "k"}
        wrong = post(gateway, V1, asking(V1, "a"), form)
        unknown = post(gateway, V1, asking(V1, "a"), {"ws-secret": "z"})
        known = post(gateway, V1, asking(V1, "a"), {"ws-secret": "k"})
    assert (wrong.status, unknown.status, known.status) == (500, 401, 200)


def test_the_answer_of_the_gateway_is_not_for_vectors() -> None:
    """A function as `answer` speaks for chat models: it sees no embedding request."""

    def answer(request: RecordedRequest) -> Answer:
        raise AssertionError(request)

    with FaultyGateway(answer=answer, gptrouter="hosted") as gateway:
        assert post(gateway, V2, asking(V2, "a")).status == 200


def test_respond_replaces_the_vectors(gateway: FaultyGateway) -> None:
    """`respond` sets the vectors of an endpoint."""
    gateway.respond(V1, {"choices": []})
    assert post(gateway, V1, asking(V1, "a")).json == {"choices": []}
