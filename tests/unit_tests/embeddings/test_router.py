"""`EmbeddingsRouter`: one vector for each text, of one model, while a route answers."""

import asyncio
import copy
import json
import math
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.stores import InMemoryByteStore
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import AzureOpenAIEmbeddings, OpenAIEmbeddings
from pydantic import SecretStr, ValidationError

from langchain_retryrouter import (
    APITimeoutError,
    AuthenticationError,
    CircuitBreaker,
    ContextLengthError,
    EmbeddingsRoute,
    EmbeddingsRouter,
    GPTRouterEmbeddings,
    InvalidRequestError,
    MalformedResponseError,
    RateLimit,
    RetryBudget,
    RetryEvent,
    RetryPolicy,
    UnavailableError,
    VectorSpaceError,
)
from langchain_retryrouter.stores import MemoryStore
from langchain_retryrouter.testing import (
    Body,
    FakeClock,
    FaultyGateway,
    Hangup,
    HtmlPage,
    Reset,
    Status,
    Step,
)
from langchain_retryrouter.testing._gptrouter_api import stub_embedding
from tests.support.alone import run_alone
from tests.unit_tests.one_loop import OneLoop, calls

from .conftest import KEY, SMALL, NewEmbeddings

__all__ = ["calls"]

SPACE = "text-embedding-3-small"
EXACT = RetryPolicy(max_retries=1, initial_delay=0.5, jitter=False)
TEXTS = ["a", "b", "c", "d", "e"]
STUBS = [pytest.approx(stub_embedding(text), abs=1e-6) for text in TEXTS]
TOO_LONG = Status(
    400,
    error_code="context_length_exceeded",
    message="This model's maximum context length is 8192 tokens.",
)
TOO_MANY = Status(400, message="'$.input' is invalid. Array too long: at most 2048.")


def vectors(*given: object) -> Body:
    data = [{"index": n, "embedding": vector} for n, vector in enumerate(given)]
    body = json.dumps({"object": "list", "data": data, "model": SPACE})
    return Body(200, {"content-type": "application/json"}, body)


class Places:
    """Two places of the same model, and what they were asked."""

    def __init__(self, calls: OneLoop, clock: FakeClock, *both: FaultyGateway) -> None:
        self.calls, self.clock, self.gateways = calls, clock, both
        self.logs: list[dict[str, Any]] = []

    def model(self, at: int = 0, **fields: Any) -> OpenAIEmbeddings:
        given: dict[str, Any] = {
            "model": SPACE,
            "api_key": SecretStr(KEY),
            "base_url": self.gateways[at].openai_url,
            "check_embedding_ctx_length": False,
            "http_client": openai.DefaultHttpxClient(),
            "http_async_client": openai.DefaultAsyncHttpxClient(),
        }
        model = OpenAIEmbeddings(**{**given, **fields})
        self.calls.closes(model)
        return model

    def router(
        self, *routes: Any, first: dict[str, Any] | None = None, **fields: Any
    ) -> EmbeddingsRouter:
        """A router of the two places, unless other routes are given.

        `first` are more fields of the first one.
        """
        if not routes:
            routes = (
                EmbeddingsRoute(model=self.model(0), name="first", **(first or {})),
                EmbeddingsRoute(model=self.model(1), name="second"),
            )
        given = {"retry_policy": EXACT, "clock": self.clock, **fields}
        log = self.logs.append
        return EmbeddingsRouter(routes=routes, on_attempt_log=log, **given)

    def embed(self, router: Any, texts: Any = TEXTS) -> Any:
        """The vectors of a list, or the vector of one text."""
        name = "embed_query" if isinstance(texts, str) else "embed_documents"
        return self.calls.call(router, name, texts)

    def asked(self, at: int) -> list[list[str]]:
        return [request.json["input"] for request in self.gateways[at].requests]


@pytest.fixture
def places(calls: OneLoop, fake_clock: FakeClock) -> Iterator[Places]:
    """Two gateways that speak OpenAI's protocol."""
    with FaultyGateway() as first, FaultyGateway() as second:
        yield Places(calls, fake_clock, first, second)


# --- batches and order ---


def test_each_text_has_its_vector(places: Places) -> None:
    """In order, duplicates included, of any iterable; no text is no request."""
    router = places.router(max_batch_size=2)
    assert places.embed(router) == STUBS
    assert sorted(places.asked(0)) == [["a", "b"], ["c", "d"], ["e"]]
    given = (text for text in ["a", "e", "a"])  # As vector stores hand them on.
    assert places.embed(router, given) == [STUBS[0], STUBS[4], STUBS[0]]
    assert places.embed(router, "a") == STUBS[0]
    count = len(places.asked(0))
    assert places.embed(router, []) == []
    assert len(places.asked(0)) == count
    assert not places.asked(1)


def test_a_copy_with_other_routes_is_a_new_router(places: Places) -> None:
    """It asks its own routes, and a field that would have no effect cannot be set."""
    router = places.router(places.model(0))
    places.gateways[1].always(Status(401))
    copy = router.model_copy(update={"routes": [places.model(1)]})
    with pytest.raises(AuthenticationError):
        places.embed(copy)
    assert places.embed(router.model_copy()) == STUBS
    with pytest.raises(AttributeError, match="routes is only read when"):
        router.routes = copy.routes


def test_batches_are_split_by_tokens_and_by_the_models_own_size(places: Places) -> None:
    """What is sent fits each route: one call of its model is one request."""
    router = places.router(max_batch_tokens=25, max_concurrency=1)
    places.embed(router, ["x" * 40, "y" * 40, "z" * 400, "w"])
    assert [len(texts) for texts in places.asked(0)] == [2, 1, 1]
    small = places.model(1, chunk_size=3)
    places.embed(places.router(places.model(0), small, max_concurrency=1))
    assert places.asked(0)[-2:] == [["a", "b", "c"], ["d", "e"]]


@pytest.mark.parametrize("texts", ["ab", b"AB", ["a", 5], [None]])
def test_what_is_no_list_of_texts_is_refused(places: Places, texts: Any) -> None:
    """A string would be embedded letter by letter."""
    with pytest.raises(TypeError, match="text"):
        places.calls.call(places.router(), "embed_documents", texts)


# --- failures ---

FAILURES: dict[str, tuple[Step, int]] = {
    "429": (Status(429), 2),
    "503": (Status(503), 2),
    "reset": (Reset(), 2),
    "hangup": (Hangup(), 2),
    "page": (HtmlPage(200), 2),
    "401": (Status(401), 1),
    "404": (Status(404), 1),
    "402": (Status(402), 1),
    "429 for long": (Status(429, {"retry-after": "600"}), 1),
    "one vector is missing": (vectors([0.5] * 8, [0.5] * 8), 1),
    "none of them": (vectors(), 1),
    "different lengths": (vectors([0.5] * 8, [0.5] * 7, [0.5] * 8), 1),
    "no numbers": (vectors(*[["a"]] * 3), 1),
    "empty vectors": (vectors(*[[]] * 3), 1),
}
FILTERED = Status(400, error_code="content_filter", message="Flagged by a filter.")


@pytest.mark.parametrize("row", FAILURES)
def test_a_failed_route_is_followed_by_the_next(places: Places, row: str) -> None:
    """What may pass is retried, and what is no vector never is handed over."""
    step, requests = FAILURES[row]
    places.gateways[0].always(step)
    assert places.embed(places.router(), TEXTS[:3]) == STUBS[:3]
    assert len(places.asked(0)) == requests
    assert len(places.asked(1)) == 1


def test_only_the_batch_that_failed_is_sent_again(places: Places) -> None:
    """Batches that were answered are kept, whatever becomes of the others."""
    router = places.router(max_batch_size=2, max_concurrency=1)
    healthy = [Status(503)] * 2
    places.gateways[0].script(vectors(*[stub_embedding(t) for t in "ab"]), *healthy)
    assert places.embed(router) == STUBS
    assert places.asked(0) == [["a", "b"], ["c", "d"], ["c", "d"], ["e"]]
    assert places.asked(1) == [["c", "d"]]


@pytest.mark.parametrize("hole", [None, [], [None] * 8, [math.nan] * 8, [math.inf] * 8])
@pytest.mark.parametrize("is_alone", [False, True])
def test_only_missing_vectors_are_asked_for_again(
    places: Places, hole: Any, *, is_alone: bool
) -> None:
    """Of the next route, or of the same one again where no other can fill the holes."""
    router = places.router(*([places.model()] if is_alone else []))
    known = [stub_embedding(text) for text in "abc"]
    places.gateways[0].script(vectors(known[0], hole, known[2]))
    assert places.embed(router, ["a", "b", "c"]) == STUBS[:3]
    assert places.asked(0) + places.asked(1) == [["a", "b", "c"], ["b"]]
    assert len(places.asked(1)) == (not is_alone)
    assert sum(places.clock.sleeps) == (0.5 if is_alone else 0)


def test_holes_that_stay_are_an_error(places: Places) -> None:
    """Of a single route: after its retries, which the caller need not repeat."""
    known = stub_embedding("a")
    places.gateways[0].script(vectors(known, None, None), vectors(known, None))
    with pytest.raises(MalformedResponseError) as raised:
        places.embed(places.router(places.model()), TEXTS[:3])
    error = raised.value
    assert (error.attempts, error.is_retryable) == (2, False)
    assert "no retries left" in str(error.__notes__)


def test_a_refused_key_is_asked_once_in_a_call(places: Places) -> None:
    """Later batches ask that route last; another call asks it first again."""
    places.gateways[0].always(Status(401))
    router = places.router(max_batch_size=1, max_concurrency=1)
    assert places.embed(router) == STUBS
    assert [len(places.asked(at)) for at in (0, 1)] == [1, 5]
    places.gateways[1].script(*[vectors(stub_embedding("a"))], Status(401))
    with pytest.raises(AuthenticationError):
        places.embed(router, TEXTS[:2])
    assert [len(places.asked(at)) for at in (0, 1)] == [3, 7]


def test_the_error_is_the_first_routes(places: Places) -> None:
    """With the others attached, how often was asked, and which texts it concerns."""
    places.gateways[0].always(Status(503))
    places.gateways[1].always(vectors([0.5] * 8))
    router = places.router(max_batch_size=3, max_concurrency=1)
    with pytest.raises(UnavailableError) as raised:
        places.embed(router)
    error = raised.value
    assert (error.route, error.attempts, error.is_retryable) == ("first", 3, False)
    assert isinstance(error.others[-1], MalformedResponseError)
    assert "texts 0 to 2 of 5, counted from 0" in error.__notes__
    log = places.logs[0]
    outcomes = [line["outcome"] for line in log["attempts"]]
    assert outcomes == ["unavailable", "unavailable", "malformed"]
    assert log["texts"] == 3

    places.gateways[0].always(FILTERED)  # A refusal is not routed around.
    with pytest.raises(InvalidRequestError):
        places.embed(router)
    assert len(places.asked(1)) == 1


# --- sizes ---


@pytest.mark.parametrize("step", [TOO_LONG, TOO_MANY, Status(413)], ids=str)
def test_a_batch_that_is_too_large_is_halved(places: Places, step: Step) -> None:
    """On the same route, down to a single text, and in order."""
    places.gateways[0].script(step, step)
    assert places.embed(places.router()) == STUBS
    sizes = [len(texts) for texts in places.asked(0)]
    assert sizes == [5, 2, 1, 1, 3]
    assert not places.asked(1)


def test_a_text_that_is_too_long_by_itself_is_named(places: Places) -> None:
    """It is asked of the other route as well; the error names it."""
    for gateway in places.gateways:
        gateway.always(lambda request: TOO_LONG if "c" in request.json["input"] else OK)
    with pytest.raises(ContextLengthError) as raised:
        places.embed(places.router(), TEXTS[:4])
    assert "text 2 of 4, counted from 0" in raised.value.__notes__
    assert places.asked(1) == [["c"]]


OK_ONE, OK = (vectors(*[[0.5] * 8] * count) for count in (1, 2))


# --- one vector space ---


def test_another_length_is_an_error_and_no_failover(places: Places) -> None:
    """A route of another model is told at once, and its vectors are not handed over."""
    router = places.router()
    assert places.embed(router, ["a"]) == STUBS[:1]
    places.gateways[0].always(Status(401))
    places.gateways[1].always(vectors([0.5] * 7))
    with pytest.raises(VectorSpaceError, match=r"'second'.*7 numbers.*8") as raised:
        places.embed(router, ["b"])
    assert raised.value.others
    assert router.health()["routes"][1]["state"] == "closed"
    with pytest.raises(VectorSpaceError, match=f"'{SPACE}' have 9"):
        places.embed(places.router(dimensions=9), ["a"])


def fake(**fields: Any) -> DeterministicFakeEmbedding:
    return DeterministicFakeEmbedding(size=8, **fields)


def azure(**fields: Any) -> AzureOpenAIEmbeddings:
    return AzureOpenAIEmbeddings(
        azure_endpoint="http://127.0.0.1:1",
        api_key=SecretStr(KEY),
        api_version="2024-10-21",
        max_retries=0,
        **fields,
    )


def at_openai(model: str = SPACE, **fields: Any) -> OpenAIEmbeddings:
    return OpenAIEmbeddings(
        model=model, api_key=SecretStr(KEY), max_retries=0, **fields
    )


def test_the_space_is_read_from_the_models() -> None:
    """From whatever field has the name; a single route needs none."""
    own = GPTRouterEmbeddings(
        models_priority_list=[SMALL],
        gpt_router_api_base="http://127.0.0.1:1",
        gpt_router_api_key=SecretStr(KEY),
        max_retries=0,
    )
    assert EmbeddingsRouter(routes=[at_openai(), own]).space == SPACE
    assert EmbeddingsRouter(routes=[fake()]).space == "DeterministicFakeEmbedding"
    deployed = azure(azure_deployment="ours")
    router = EmbeddingsRouter(routes=[at_openai(), deployed], space=SPACE)
    names = [route.name for route in router.routes]
    assert names == ["OpenAIEmbeddings", "AzureOpenAIEmbeddings"]
    prefixed = at_openai(f"openai/{SPACE}")
    assert EmbeddingsRouter(routes=[at_openai(), prefixed], space=SPACE).space == SPACE
    other = EmbeddingsRoute(model=at_openai("emb-small-v3"), space=SPACE)
    assert EmbeddingsRouter(routes=[at_openai(), other]).space == SPACE


async def lose(_: dict[str, Any]) -> None:
    """Nobody would await it."""


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "two models": (
        {"routes": [at_openai(), at_openai("text-embedding-3-large")]},
        "different models .text-embedding-3-large, text-embedding-3-small.",
    ),
    "another than the space": (
        {"routes": [at_openai(), at_openai("text-embedding-3-large")], "space": SPACE},
        "different models .text-embedding-3-large, and space='text-embedding-3-small'",
    ),
    "a deployment": (
        {"routes": [at_openai(), azure(azure_deployment="ours")]},
        "space is needed: the model of AzureOpenAIEmbeddings is not known",
    ),
    "unknown": ({"routes": [fake(), fake()]}, "space is needed"),
    "dimensions": (
        {"routes": [at_openai(dimensions=512), at_openai(dimensions=256)]},
        "different dimensions: ",
    ),
    "dimensions of one": (
        {"routes": [at_openai(dimensions=512), at_openai()]},
        "different dimensions: ",
    ),
    "string": ({"routes": "openai:x"}, "must be a list of embeddings.*'openai:x'"),
    "none": ({"routes": []}, "at least 1"),
    "unknown field": ({"routes": [fake()], "spaces": "a"}, "spaces"),
    "batch": ({"routes": [fake()], "max_batch_size": 0}, "max_batch_size"),
    "form": ({"routes": ["text-embedding-3-small"]}, "'provider:model'"),
    "breaker": (
        {"routes": [fake()], "breaker_settings": {"threshold": 3}},
        "breaker_settings must be",
    ),
    "number": ({"routes": [5]}, "not 5"),
    "hook": (
        {"routes": [fake()], "on_attempt_log": lose},
        "on_attempt_log must be a function that is not async",
    ),
    # Its retries would multiply with the outer one's.
    "router": ({"routes": [EmbeddingsRouter(routes=[fake()])]}, "put its routes into"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_what_could_mix_vectors_is_refused(row: str) -> None:
    """At construction, with what to do."""
    fields, says = REFUSED[row]
    with pytest.raises((TypeError, ValidationError), match=says):
        EmbeddingsRouter(**fields)


def test_strings_are_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """By langchain's `init_embeddings`."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    router = EmbeddingsRouter(routes=[f"openai:{SPACE}"])
    model = router.routes[0].model
    assert isinstance(model, OpenAIEmbeddings)
    assert (model.model, model.max_retries) == (SPACE, 0)


# --- retries, limits, breakers ---


def test_the_models_own_retries_are_switched_off(places: Places) -> None:
    """OpenAI's SDK would send each request three times, and wait by itself."""
    model = places.model(0, max_retries=2)
    places.gateways[0].always(Status(503))
    with pytest.raises(UnavailableError):
        places.embed(places.router(model), ["a"])
    assert len(places.asked(0)) == 2
    assert places.clock.sleeps == [0.5]


def test_retries_that_stay_are_warned_of() -> None:
    """Of a class that is not known, and says that it repeats."""

    class Repeating(DeterministicFakeEmbedding):
        max_retries: int = 3

    with pytest.warns(UserWarning, match="route 'Repeating' repeats by itself"):
        EmbeddingsRouter(routes=[Repeating(size=8)])


def test_a_gateways_embeddings_are_a_route(
    calls: OneLoop, gateway: FaultyGateway, fake_clock: FakeClock
) -> None:
    """Their own retries are switched off as well, and their errors are read."""
    own = GPTRouterEmbeddings(
        models_priority_list=[SMALL],
        gpt_router_api_base=gateway.url,
        gpt_router_api_key=SecretStr(KEY),
    )
    router = EmbeddingsRouter(routes=[own], retry_policy=EXACT, clock=fake_clock)
    gateway.script(Status(503))
    assert calls.call(router, "embed_documents", ["a"]) == [stub_embedding("a")]
    assert len(gateway.requests) == 2
    gateway.always(Status(503))
    with pytest.raises(UnavailableError):
        calls.call(router, "embed_query", "a")
    assert len(gateway.requests) == 4
    calls.call(router, "close")
    router.close()


def test_an_open_breaker_keeps_a_route_out(places: Places) -> None:
    """Breakers count over batches and calls; a shared one can be given."""
    breaker = CircuitBreaker(failure_threshold=1, clock=places.clock)
    places.gateways[0].always(Status(503))
    once = RetryPolicy(max_retries=0)
    router = places.router(first={"breaker": breaker}, retry_policy=once)
    assert places.embed(router) == STUBS
    assert breaker.is_open
    assert places.embed(copy.copy(router), ["a"]) == STUBS[:1]
    assert len(places.asked(0)) == 1
    health = router.health()
    assert [route["state"] for route in health["routes"]] == ["open", "closed"]
    assert health["routes"][0]["last_error"]["kind"] == "unavailable"


def test_a_full_limit_is_passed_by(places: Places) -> None:
    """A route without room is not waited for while another one has room."""
    limit = RateLimit(requests_per_minute=60, clock=places.clock)
    fields: Any = {"max_batch_size": 1, "max_concurrency": 1}
    policy = RetryPolicy(failover_after_wait=0)
    router = places.router(first={"rate_limit": limit}, retry_policy=policy, **fields)
    assert places.embed(router) == STUBS
    assert (len(places.asked(0)), len(places.asked(1))) == (1, 4)
    alone = places.router(router.routes[0], **fields)
    assert places.embed(alone, TEXTS[:3]) == STUBS[:3]
    assert places.clock.monotonic() >= 2


def test_a_models_own_limit_is_its_routes(
    places: Places, new_embeddings: NewEmbeddings
) -> None:
    """Its wait is no silence of the provider: another route is asked at once."""
    limit = RateLimit(requests_per_minute=1, clock=places.clock)
    own = new_embeddings(rate_limit=limit, clock=places.clock)
    places.calls.closes(own)
    router = places.router(own, places.model(1), max_batch_size=1, max_concurrency=1)
    places.embed(router)
    assert limit.in_flight == limit.waiting == 0
    assert len(places.asked(1)) == 4
    assert places.clock.sleeps == []


def test_a_store_shares_what_a_server_said(places: Places) -> None:
    """Another router with the same store does not ask a place that is held."""
    store = MemoryStore()
    places.gateways[0].always(Status(429, {"retry-after": "600"}))
    for _ in range(2):
        assert places.embed(places.router(store=store), ["a"]) == STUBS[:1]
    assert len(places.asked(0)) == 1


def test_an_empty_budget_sends_no_retry(places: Places) -> None:
    """But asks the next route, which costs nothing."""
    places.gateways[0].always(Status(503))
    assert places.embed(places.router(budget=RetryBudget(capacity=0))) == STUBS
    assert len(places.asked(0)) == 1


def test_the_deadline_is_for_all_batches(places: Places) -> None:
    """No wait begins that would outlast it, and no batch begins after it."""
    policy = RetryPolicy(max_retries=9, initial_delay=6, jitter=False, deadline=10)
    fields: Any = {"max_batch_size": 1, "max_concurrency": 1, "retry_policy": policy}
    router = places.router(places.model(), **fields)
    places.gateways[0].script(Status(503), OK_ONE, Status(503))
    with pytest.raises(UnavailableError) as raised:
        places.embed(router, ["a", "b", "c"])
    assert "would outlast the deadline of 10 s" in str(raised.value.__notes__)
    assert places.clock.monotonic() == 6

    def answer_late(_: Any) -> Step:
        places.clock.advance(6)
        return OK_ONE

    places.gateways[0].always(answer_late)
    with pytest.raises(APITimeoutError, match="the deadline of 10 s is over, and text"):
        places.embed(router, ["a", "b", "c"])
    assert len(places.asked(0)) == 3 + 2


class Slow(DeterministicFakeEmbedding):
    """Answers when nobody waits any longer."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        threading.Event().wait(2)
        return super().embed_documents(texts)

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        await asyncio.Event().wait()
        return super().embed_documents(texts)


def test_a_silent_route_is_left_within_its_limit(places: Places) -> None:
    """An attempt has its limit, in a thread or not."""
    policy = RetryPolicy(max_retries=0, attempt_timeout=0.05)
    with pytest.raises(APITimeoutError):
        places.embed(places.router(Slow(size=8), retry_policy=policy), ["a"])


def test_hooks_see_each_retry(places: Places) -> None:
    """LangChain has no callbacks for embeddings: the policy has hooks."""
    seen: list[tuple[str | None, str | None]] = []

    def note(event: RetryEvent) -> None:
        seen.append((event.route, event.next_route))

    policy = RetryPolicy(max_retries=1, on_retry=note, on_failover=note)
    places.gateways[0].always(Status(503))
    places.embed(places.router(retry_policy=policy), ["a"])
    assert seen == [("first", "first"), ("first", "second")]
    assert places.logs[0]["route"] == "second"


# --- in LangChain ---


def test_it_works_below_a_cache_and_a_vector_store(places: Places) -> None:
    """The space is a namespace that is right for the cache."""
    router = places.router()
    places.gateways[0].script(Status(503))
    store = InMemoryByteStore()
    cached = CacheBackedEmbeddings.from_bytes_store(
        router, store, namespace=router.space, key_encoder="sha256"
    )
    assert places.embed(cached) == STUBS
    count = len(places.asked(0))
    assert places.embed(cached, TEXTS) == STUBS
    assert len(places.asked(0)) == count
    search = InMemoryVectorStore(router)
    places.calls.call(search, "add_texts", TEXTS)
    found = places.calls.call(search, "similarity_search", "c", k=1)
    assert found[0].page_content == "c"


class OfArrays(DeterministicFakeEmbedding):
    """Gives arrays of numpy, as some integrations do."""

    type: str

    def embed_documents(self, texts: list[str]) -> Any:
        return 50 * np.clip(super().embed_documents(texts), -2, 2).astype(self.type)

    def embed_query(self, text: str) -> Any:
        return self.embed_documents([text])[0]


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_arrays_become_lists(calls: OneLoop, kind: str) -> None:
    """Of Python's floats, which is what stores and JSON take."""
    router = EmbeddingsRouter(routes=[OfArrays(size=800, type=kind)])
    found = calls.call(router, "embed_documents", ["a", "b"])
    assert json.loads(json.dumps(found)) == found
    assert calls.call(router, "embed_query", "a") == pytest.approx(found[0])


def test_a_router_travels() -> None:
    """A pickle has its routes and numbers, and knows the length of its vectors."""
    router = EmbeddingsRouter(routes=[fake()], max_batch_size=7)
    router.embed_query("a")
    travelled = pickle.loads(pickle.dumps(router))
    assert travelled.max_batch_size == 7
    assert travelled.embed_query("a") == router.embed_query("a")
    assert "answered" in str(travelled.health())


def test_connections_of_another_event_loop_are_no_failure(
    faulty_gateway: FaultyGateway,
) -> None:
    """A second `asyncio.run` with many calls is answered, and no breaker opens."""
    # In a process of its own: langchain-openai keeps the connections of the first loop.
    run_alone(embed_in_two_loops, faulty_gateway.openai_url)


def embed_in_two_loops(url: str) -> None:
    """Eight calls in one event loop, which then is closed, and eight in another."""
    outcomes: list[str] = []
    model = OpenAIEmbeddings(
        base_url=url, api_key=SecretStr(KEY), check_embedding_ctx_length=False
    )
    router = EmbeddingsRouter(
        routes=[model],
        retry_policy=RetryPolicy(max_retries=0),
        on_attempt_log=lambda log: outcomes.extend(
            one["outcome"] for one in log["attempts"]
        ),
    )

    async def embed() -> None:
        await asyncio.gather(*[router.aembed_query(text) for text in "abcdefgh"])

    asyncio.run(embed())
    asyncio.run(embed())
    assert outcomes == ["ok"] * 16
