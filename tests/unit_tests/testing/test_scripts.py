"""Which step answers which request."""

from __future__ import annotations

import pytest

from langchain_retryrouter.testing import (
    Answer,
    FaultyGateway,
    RecordedRequest,
    Reset,
    Status,
    Step,
)

from .wire_client import (
    CHAT,
    GENERATE,
    chat,
    generate,
    post,
    request,
    statuses,
)


def test_a_script_is_used_up(faulty_gateway: FaultyGateway) -> None:
    """Each request takes one step; what follows is healthy."""
    faulty_gateway.script(Status(503), Answer(), Status(429))
    assert statuses(faulty_gateway, 5) == [503, 200, 429, 200, 200]


def test_always_follows_the_script(faulty_gateway: FaultyGateway) -> None:
    """`always` is what comes after the script, for ever."""
    faulty_gateway.always(Status(503))
    faulty_gateway.script(Answer())
    assert statuses(faulty_gateway, 4) == [200, 503, 503, 503]


def test_a_new_script_takes_the_place_of_the_old(faulty_gateway: FaultyGateway) -> None:
    """Steps that are still open do not come after a new script; none clears them."""
    faulty_gateway.script(Status(500), Status(501))
    faulty_gateway.script(Status(503))
    assert statuses(faulty_gateway, 2) == [503, 200]
    faulty_gateway.script(Status(500))
    faulty_gateway.script()
    assert statuses(faulty_gateway, 1) == [200]


def test_a_model_has_its_own_script(faulty_gateway: FaultyGateway) -> None:
    """A model's script and `always` come before the server's, for it alone."""
    faulty_gateway.script(Status(500), Status(501))
    faulty_gateway.script(Status(503), model="a")
    faulty_gateway.always(Status(504), model="b")
    assert statuses(faulty_gateway, 2, model="a") == [503, 500]
    assert statuses(faulty_gateway, 2, model="b") == [504, 504]
    assert statuses(faulty_gateway, 2, model="c") == [501, 200]


def test_a_function_picks_the_step(faulty_gateway: FaultyGateway) -> None:
    """A step may depend on the request, in a script and for ever."""

    def pick(asked: RecordedRequest) -> Step:
        return Status(400) if asked.payload["messages"][-1]["content"] else Answer()

    faulty_gateway.script(pick)
    faulty_gateway.always(pick, model="m")
    empty = [{"role": "user", "content": ""}]
    assert statuses(faulty_gateway, 1) == [400]
    assert post(faulty_gateway, CHAT, chat(model="m", messages=empty)).status == 200
    assert faulty_gateway.requests[0].step == Status(400)


@pytest.mark.parametrize("order", [None, "first", {}])
def test_an_order_that_is_no_number(
    faulty_gateway: FaultyGateway, order: object
) -> None:
    """A request that is turned down for its `order` is still readable in the log."""
    payload = generate()
    payload["data"].insert(0, payload["data"][0] | {"order": order, "modelName": "x"})
    assert post(faulty_gateway, GENERATE, payload).status == 500
    assert faulty_gateway.requests[0].model == "gpt-4-0613"


@pytest.mark.parametrize("step", [Reset, "reset", 503, None])
def test_what_is_no_step(faulty_gateway: FaultyGateway, step: object) -> None:
    """A class in place of its instance, or anything else, is refused at once."""
    with pytest.raises(TypeError, match=r"step|instances"):
        faulty_gateway.script(step)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"step|instances"):
        faulty_gateway.always(step)  # type: ignore[arg-type]
    assert statuses(faulty_gateway, 1) == [200]


def test_paths_without_a_model(faulty_gateway: FaultyGateway) -> None:
    """`respond` sets the answer of any path; scripts and keys hold for it as well."""
    faulty_gateway.respond("/v1/embeddings", {"data": [1.5]})
    faulty_gateway.respond("/api/v1/generate/generate-image", {}, status=201)
    faulty_gateway.script(Status(503), Answer("ignored"))
    replies = [post(faulty_gateway, "/v1/embeddings", {"model": "e"}) for _ in range(2)]
    image = request(faulty_gateway, "GET", "/api/v1/generate/generate-image")
    assert [reply.status for reply in replies] == [503, 200]
    assert replies[0].json["error"]["type"] == "server_error"
    assert replies[1].json == {"data": [1.5]}
    assert (image.status, image.json) == (201, {})
    assert faulty_gateway.requests[0].model == "e"
    with FaultyGateway(api_key="k") as gateway:
        gateway.respond("/v1/embeddings", {})
        assert post(gateway, "/v1/embeddings", {}).status == 401
