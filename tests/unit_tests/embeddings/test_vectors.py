"""Requests for vectors and their answers: a vector for each text, or an error."""

import asyncio
import copy
import json
import pickle
import traceback
from typing import Any

import pytest
from blockbuster import BlockBuster
from gpt_router.client import GPTRouterClient
from gpt_router.models import (
    ModelRouterEmbeddingsGenerationParams,
    ModelRouterEmbeddingsGenerationRequest,
)
from pydantic import ValidationError

from langchain_retryrouter import (
    AuthenticationError,
    InvalidRequestError,
    MalformedResponseError,
    RateLimitError,
    RetryRouterError,
    ServerError,
)
from langchain_retryrouter.testing import (
    Body,
    FaultyGateway,
    RecordedRequest,
    SlowFirstToken,
    Status,
)
from langchain_retryrouter.testing._gptrouter_api import stub_embedding

from .conftest import (
    ADA,
    AT_AZURE,
    KEY,
    SMALL,
    Env,
    NewEmbeddings,
    texts_of,
    vectors_in,
)

# --- what goes out ---


def sent_by_the_sdk(gateway: FaultyGateway, texts: list[str], endpoint: str) -> bytes:
    """The body that the `gptrouter` package's own client sends for `texts`."""
    client = GPTRouterClient(base_url=gateway.url, api_key=KEY)
    requests = [
        ModelRouterEmbeddingsGenerationRequest(
            model_name=model.name,
            model_provider=model.provider_name,
            promptParams=ModelRouterEmbeddingsGenerationParams(input=texts),
        )
        for model in (SMALL, AT_AZURE)
    ]
    if endpoint == "v1":
        asyncio.run(client.agenerate_embeddings(ordered_generation_requests=requests))
    else:
        asyncio.run(client.agenerate_embeddings_v2(input=texts, model_name=SMALL.name))
    return gateway.requests[-1].body


@pytest.mark.parametrize("endpoint", ["v1", "v2"])
def test_what_is_sent_is_what_the_sdk_sends(
    env: Env, no_blocking_calls: BlockBuster, endpoint: str
) -> None:
    """Path, body and key are those of the `gptrouter` package's own client."""
    texts = ["foo", "Łódź\u2028🦊"]
    models = [SMALL, AT_AZURE] if endpoint == "v1" else [SMALL]
    env.embed(env.embeddings(models_priority_list=models, endpoint=endpoint), texts)
    no_blocking_calls.deactivate()  # The SDK's client reads certificates in the loop.
    theirs = json.loads(sent_by_the_sdk(env.gateway, texts, endpoint))
    no_blocking_calls.activate()
    ours, sdks = env.gateway.requests
    assert ours.json == theirs
    assert ours.path == sdks.path
    assert ours.headers["ws-secret"] == sdks.headers["ws-secret"] == KEY


@pytest.mark.parametrize("endpoint", ["v1", "v2"])
def test_gateway_metadata_is_sent(env: Env, endpoint: str) -> None:
    """Gateway metadata goes with every request, as with those of `GPTRouter`."""
    fields = {"endpoint": endpoint, "user_id": "u1", "gateway_metadata": {"shelf": 7}}
    env.embed(env.embeddings(**fields), "foo")
    payload = env.gateway.requests[0].payload
    assert payload["metadata"] == {"created_by_user_id": "u1", "shelf": 7}
    assert payload["createdByUserId"] == "u1"


@pytest.mark.parametrize("endpoint", ["v1", "v2"])
@pytest.mark.parametrize(
    ("count", "sizes"), [(0, []), (1, [1]), (3, [3]), (4, [1, 3]), (11, [2, 3, 3, 3])]
)
def test_chunks_are_joined_in_order(
    env: Env, count: int, sizes: list[int], endpoint: str
) -> None:
    """Texts are sent `chunk_size` at a time, and each gets its own vector."""
    texts = [f"text {number}" for number in range(count)]
    embeddings = env.embeddings(chunk_size=3, endpoint=endpoint)
    assert env.embed(embeddings, texts) == [stub_embedding(text) for text in texts]
    chunks = texts_of(env.gateway)
    assert sorted(map(len, chunks)) == sizes
    assert sorted(text for chunk in chunks for text in chunk) == sorted(texts)
    if count == 1:
        assert env.embed(embeddings, texts[0]) == stub_embedding(texts[0])
        assert texts_of(env.gateway) == [texts, texts]


@pytest.mark.parametrize("endpoint", ["v1", "v2"])
def test_long_texts_are_cut_up_to_fit(env: Env, endpoint: str) -> None:
    """Texts that are too long for one body are sent in several of at most 1 MiB."""
    models = [SMALL, AT_AZURE] if endpoint == "v1" else [SMALL]
    texts = [f"{number}" + 50_000 * "\x00ä" for number in range(4)]
    embeddings = env.embeddings(models_priority_list=models, endpoint=endpoint)
    vectors = env.embed(embeddings, texts)
    assert vectors == [stub_embedding(text) for text in texts]
    assert all(len(request.body) <= 1024 * 1024 for request in env.gateway.requests)
    # A text takes 400,000 bytes, twice that where it is repeated.
    assert len(env.gateway.requests) == 2 * len(models)


def test_a_text_that_never_fits_is_sent_alone(env: Env) -> None:
    """A text above the limit is sent alone, so that the others do not fail with it."""
    embeddings = env.embeddings(max_concurrency=1)
    with pytest.raises(ServerError):
        env.embed(embeddings, ["before", 2_000_000 * "x", "after"])
    assert len(env.gateway.requests) == 2
    assert env.gateway.requests[0].parameters["input"] == ["before"]


@pytest.mark.parametrize(
    ("texts", "error", "told"),
    [
        (["a", ""], ValueError, "text 1 is empty"),
        ("one text", TypeError, "a list of strings, not one str"),
        (b"bytes", TypeError, "a list of strings, not one bytes"),
        *(
            (odd, TypeError, f"texts must be a list of strings, not one {name}")
            for name, odd in {
                "NoneType": None,
                "int": 5,
                "dict": {"a": 1},
                "set": {"a"},
            }.items()
        ),
        (["a", None], TypeError, "text 1 must be a string, not NoneType"),
        ([["a"]], TypeError, "text 0 must be a string, not list"),
    ],
)
def test_a_wrong_text_is_refused(
    env: Env, texts: Any, error: type[Exception], told: str
) -> None:
    """A text that no provider takes is refused by its index before anything is sent."""
    with pytest.raises(error, match=told):
        env.call(env.embeddings(chunk_size=1), "embed_documents", texts)
    assert env.gateway.requests == []


# --- what comes back ---


def answer_of(body: Any) -> Body:
    return Body(200, {"content-type": "application/json"}, json.dumps(body))


def at_places(*indices: int | None) -> dict[str, Any]:
    """An answer whose vectors name their places."""
    return {"choices": [{"index": i, "embedding": [i or 0]} for i in indices]}


FOUND_WRONG: dict[str, tuple[Any, str]] = {
    "no answer": (Status(204), "204 with an empty body"),
    "no body": (Body(200), "has no body"),
    "one missing": (vectors_in([1.0]), "1 vectors came back for 2 texts"),
    "no choices": ({"data": []}, "has no vectors"),
    "a list": ([], "not a JSON object"),
    "choices are none": ({"choices": {"0": [1.0]}}, "has no vectors"),
    "a null": (vectors_in([1.0], None), "vector 1 of .* is not a list of finite"),
    "no embedding": ({"choices": [{}, {}]}, "vector 0 "),
    "no object": ({"choices": [[1.0], [2.0]]}, "vector 0 "),
    "base64": (vectors_in("AACAPw==", "AACAPw=="), "vector 0 "),
    "a null inside": (vectors_in([1.0, 2.0], [1.0, None]), "vector 1 "),
    "a boolean inside": (vectors_in([True], [1.0]), "vector 0 "),
    "not a number": (vectors_in([1.0], [float("nan")]), "vector 1 "),
    "infinite": (vectors_in([float("inf")], [1.0]), "vector 0 "),
    "beyond all floats": (vectors_in([10**400], [1.0]), "vector 0 "),
    "two lengths": (
        vectors_in([1.0], [1.0, 2.0]),
        "vectors of different lengths came back: of 1 and 2 numbers",
    ),
    "an index twice": (at_places(0, 0), r"vectors are not 0 to n-1: \[0, 0\]"),
    "an index missing": (at_places(0, None), "not 0 to n-1"),
    "an index too high": (at_places(1, 2), "not 0 to n-1"),
}


@pytest.mark.parametrize("wrong", FOUND_WRONG)
def test_wrong_vectors_are_an_error(env: Env, wrong: str) -> None:
    """An answer without a valid vector for each text is an error that says why."""
    body, told = FOUND_WRONG[wrong]
    is_step = isinstance(body, (Body, Status))
    env.gateway.always(body if is_step else answer_of(body))
    with pytest.raises(MalformedResponseError, match=told) as caught:
        env.embed(env.embeddings(max_retries=1), ["a", "b"])
    assert caught.value.attempts == len(env.gateway.requests) == 2
    assert caught.value.is_retryable is False


def test_indices_put_vectors_in_their_places(env: Env) -> None:
    """Vectors are ordered by the provider's indices, and whole numbers are floats."""
    env.gateway.respond("/api/v1/generate/embeddings", at_places(2, 0, 1))
    vectors = env.embed(env.embeddings(), ["a", "b", "c"])
    assert vectors == [[0.0], [1.0], [2.0]]
    assert {type(number) for [number] in vectors} == {float}


def test_chunks_of_different_lengths_are_not_joined(env: Env) -> None:
    """Vectors of two models are refused, and not requested again."""

    def step(request: RecordedRequest) -> Body:
        short = request.parameters["input"] == ["short"]
        return answer_of(vectors_in([1.0] if short else [1.0, 2.0]))

    env.gateway.always(step)
    with pytest.raises(
        MalformedResponseError, match=r"different models .* of 1 and 2 numbers"
    ) as caught:
        env.embed(env.embeddings(chunk_size=1), ["short", "long"])
    assert len(env.gateway.requests) == 2
    assert caught.value.is_retryable is False


def test_a_key_is_not_shown(env: Env) -> None:
    """A gateway that quotes the key in an answer does not bring it into a trace."""
    env.gateway.always(Body(200, {}, json.dumps({"vectors": f"invalid: {KEY}."})))
    with pytest.raises(MalformedResponseError) as caught:
        env.embed(env.embeddings(), ["text"])
    shown = "".join(traceback.format_exception(caught.value))
    assert "invalid: ***." in shown
    assert KEY not in shown


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ({"error": {"message": "Rate limit", "code": 429}}, RateLimitError),
        ({"error": {"message": "Wrong key", "code": 401}}, AuthenticationError),
        ({"error": "no"}, ServerError),
        ({"choices": [], "error": {"message": "No", "code": 401}}, AuthenticationError),
        ({"choices": [{"error": {"message": "No", "code": 429}}]}, RateLimitError),
    ],
)
def test_an_error_in_a_200_is_read(
    env: Env, said: Any, error: type[RetryRouterError]
) -> None:
    """It is what it says, as for the chat model, and only then no vectors."""
    env.gateway.always(Body(200, {}, json.dumps(said)))
    with pytest.raises(error) as caught:
        env.embed(env.embeddings(), ["text"])
    assert not isinstance(caught.value, MalformedResponseError)


# --- side by side ---


def test_async_chunks_are_asked_together(
    new_embeddings: NewEmbeddings, gateway: FaultyGateway
) -> None:
    """At most `max_concurrency` requests are under way together."""
    together: list[int] = []

    def step(_: RecordedRequest) -> SlowFirstToken:
        together.append(sum(r.outcome == "pending" for r in gateway.requests))
        return SlowFirstToken(0.2)

    gateway.always(step)
    texts = [f"text {number}" for number in range(9)]
    embeddings = new_embeddings(chunk_size=1, max_concurrency=3)
    vectors = asyncio.run(embeddings.aembed_documents(texts))
    assert vectors == [stub_embedding(text) for text in texts]
    assert max(together) == 3


def test_one_failed_chunk_ends_the_others(env: Env) -> None:
    """If one chunk fails for good, its error is raised and the others are cancelled."""
    env.gateway.always(
        lambda request: (
            Status(400)
            if request.parameters["input"] == ["wrong"]
            else SlowFirstToken(60 if env.is_async else 0)
        )
    )
    embeddings = env.embeddings(chunk_size=1)
    with pytest.raises(InvalidRequestError, match="400"):
        env.embed(embeddings, ["right", "wrong", "right"])
    if env.is_async:
        env.gateway.wait_for(lambda g: g.open_connections == 0)
    else:
        assert texts_of(env.gateway) == [["right"], ["wrong"]]


# --- construction ---


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("endpoint", "v3", "'v1' or 'v2'"),
        ("chunk_size", 0, "greater than or equal to 1"),
        ("chunk_size", 2049, "less than or equal to 2048"),
        ("chunk_size", True, "valid integer"),
        ("chunk_size", 1.5, "valid integer"),
        ("max_concurrency", 0, "greater than or equal to 1"),
        ("max_concurrency", None, "valid integer"),
        ("client", GPTRouterClient("http://127.0.0.1:1", "k"), "must be left out"),
    ],
)
def test_a_bad_value_is_refused_at_construction(
    new_embeddings: NewEmbeddings, field: str, value: Any, told: str
) -> None:
    """A value that no call could use is refused by name, with what to give instead."""
    with pytest.raises(ValidationError) as caught:
        new_embeddings(**{field: value})
    [where] = {error["loc"][0] for error in caught.value.errors()}
    assert where == field
    assert told in str(caught.value)
    assert KEY not in str(caught.value) + repr(caught.value.errors())


def test_different_models_are_refused_unless_wanted(
    new_embeddings: NewEmbeddings,
) -> None:
    """Vectors of two models cannot be compared: mixing them must be allowed."""
    with pytest.raises(
        ValidationError,
        match=r"\('text-embedding-3-small', 'text-embedding-ada-002'\).*several",
    ):
        new_embeddings(models_priority_list=[SMALL, ADA])
    new_embeddings(models_priority_list=[SMALL, ADA], allow_different_models=True)
    new_embeddings(models_priority_list=[SMALL, AT_AZURE])
    # `v2` takes one name: a second model would never be asked.
    with pytest.raises(ValidationError, match="2 are listed: the others would never"):
        new_embeddings(models_priority_list=[SMALL, AT_AZURE], endpoint="v2")


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda embeddings: pickle.loads(pickle.dumps(embeddings))],
    ids=["deepcopy", "pickle"],
)
def test_a_copy_answers(env: Env, duplicate: Any) -> None:
    """A copy has the key and the fields, and works in another process."""
    embeddings = env.embeddings(clock=None, chunk_size=7)
    env.embed(embeddings, "a")
    again = duplicate(embeddings)
    assert again.chunk_size == 7
    assert env.embed(again, "a") == stub_embedding("a")
