"""Models that answer oddly, caches between them and a router, and copies of routers."""

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_openai import ChatOpenAI

from langchain_retryrouter import (
    ContentFilterError,
    InvalidRequestError,
    RateLimit,
    RejectedAnswerError,
    RetryPolicy,
    RetryRouter,
    RetryRouterError,
    Route,
    StreamInterruptedError,
)
from langchain_retryrouter.rate_limits import Size
from langchain_retryrouter.testing import Answer, FakeClock, FaultyGateway, Status
from tests.support.models import chat_openai
from tests.unit_tests.conftest import Twin

from .attempts import (
    HELLO,
    Odd,
    Scripted,
    Way,
    every_way,
    log_of,
    message_of,
    outcomes,
    router_of,
    text_of,
)

ONCE = RetryPolicy(max_retries=0)


def answer(text: str) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=AIMessage(text))])


@every_way
@pytest.mark.parametrize(
    "result",
    [
        None,
        "Hello",
        ChatResult.model_construct(generations=None),
        ChatResult.model_construct(
            generations=[ChatGeneration.model_construct(message=None)]
        ),
        ChatResult(generations=[]),
    ],
    ids=["None", "a text", "no list", "no message", "empty"],
)
def test_what_is_no_answer_is_followed_by_the_next_route(way: Way, result: Any) -> None:
    """A model that returns something else has failed, like one that raises."""
    router = router_of(Odd(results=[result]), Odd(results=[HELLO]))
    assert text_of(way, router) == "Hello"


@every_way
@pytest.mark.parametrize("metadata", ["a text", ["a"], {"attempts": None}, {"a": 1}])
def test_metadata_of_another_package_is_no_attempt_log(way: Way, metadata: Any) -> None:
    """Only a model of ours has a log of its own inside of an attempt."""
    message = AIMessage("Hello", response_metadata={"retryrouter": metadata})
    result = ChatResult(generations=[ChatGeneration(message=message)])
    answer = message_of(way, router_of(Odd(results=[result])))
    assert "inside" not in log_of(answer)[0]


@every_way
def test_a_model_may_give_the_same_message_again(way: Way) -> None:
    """Its log is not put into the model's own message, nor into the next log."""
    message = AIMessage("We are down.")
    router = router_of(FakeMessagesListChatModel(responses=[message]))
    first, second = (message_of(way, router) for _ in range(2))
    assert [len(log_of(one)) for one in (first, second)] == [1, 1]
    assert "inside" not in log_of(second)[0]
    assert "retryrouter" not in message.response_metadata


@every_way
@pytest.mark.parametrize("version", ["v0", "v1"])
def test_a_model_may_give_the_same_chunks_again(way: Way, version: str) -> None:
    """The router takes nothing out of them, such as the finish reason."""

    class Keeping(Odd):
        def _stream(self, *_: Any, **__: Any) -> Iterator[ChatGenerationChunk]:
            yield from chunks

    metadata = {"finish_reason": "stop", "model_name": "m"}
    last = AIMessageChunk(
        content="lo", response_metadata=metadata, chunk_position="last"
    )
    messages = [AIMessageChunk(content="Hel"), last]
    chunks = [ChatGenerationChunk(message=message) for message in messages]
    model = Keeping(results=[HELLO], output_version=version)
    router = router_of(model, stream_recovery="continue")
    assert [message_of(way, router).text for _ in range(3)] == ["Hello"] * 3
    assert (last.content, last.chunk_position) == ("lo", "last")


class Mapped(Odd):
    """Its streams are iterators, as the type of `_stream` allows, and no generators."""

    def _stream(self, *_: Any, **__: Any) -> Iterator[ChatGenerationChunk]:
        def chunk(text: str) -> ChatGenerationChunk:
            return ChatGenerationChunk(message=AIMessageChunk(content=text))

        return map(chunk, ["Hel", "lo"])

    def _astream(self, *args: Any, **kwargs: Any) -> Any:
        chunks = self._stream(*args, **kwargs)

        class Later:
            def __aiter__(self) -> "Later":
                return self

            async def __anext__(self) -> ChatGenerationChunk:
                for chunk in chunks:
                    return chunk
                raise StopAsyncIteration

        return Later()


@every_way
def test_a_stream_needs_no_close(way: Way) -> None:
    """Whatever can be iterated is a stream."""
    assert text_of(way, router_of(Mapped(results=[HELLO]))) == "Hello"


# --- caches ---


@pytest.fixture(params=["its own", "for all"])
def cache(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A cache of LangChain's, given to the model or to all."""
    made = InMemoryCache()
    set_llm_cache(made if request.param == "for all" else None)
    yield made if request.param == "its own" else None
    set_llm_cache(None)


@every_way
@pytest.mark.parametrize("accepts", [None, "Hello"])
def test_only_a_good_answer_is_cached(
    way: Way, cache: Any, accepts: str | None
) -> None:
    """A bad one would be the answer for ever, and no retry would help."""
    model = Odd(results=[answer("Bad" if accepts else ""), HELLO], cache=cache)
    accept = (lambda message: message.text == accepts) if accepts else None
    router = router_of(model, retries=1, accept=accept, cache=False)
    assert [message_of(way, router).text for _ in range(3)] == ["Hello"] * 3
    assert len(model.asked) == 2


@every_way
@pytest.mark.parametrize("method", ["lookup", "update"])
def test_a_cache_that_is_away_costs_no_answer(way: Way, method: str) -> None:
    """Nor is it the provider's failure, which would open its breaker."""

    class Away(InMemoryCache):
        pass

    def fail(*_: Any) -> None:
        text = "connection refused"
        raise ConnectionRefusedError(text)

    setattr(Away, method, fail)
    router = router_of(Odd(results=[HELLO], cache=Away()))
    message = message_of(way, router)
    assert message.text == "Hello"
    assert outcomes(message) == ["ok"]


@every_way
def test_a_cached_answer_of_a_router_costs_nothing(way: Way) -> None:
    """Its attempt log tells of what was sent and paid before."""
    usage: Any = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
    message = AIMessage("Hello", usage_metadata=usage)
    model = Odd(results=[ChatResult(generations=[ChatGeneration(message=message)])])
    priced = Route(model=model, input_price=1e6, output_price=1e6)
    # Not streamed, since LangChain caches no streams.
    fields: dict[str, Any] = {"cache": InMemoryCache(), "disable_streaming": True}
    inner = router_of(priced, retries=1, **fields)
    route = Route(model=inner, input_price=1, output_price=1)
    with pytest.warns(UserWarning, match="repeats by itself"):
        outer = router_of(route, cache=False)
    lines = [log_of(message_of(way, outer))[0] for _ in range(2)]
    assert ["inside" in line for line in lines] == [True, False]
    assert [line["cost"] for line in lines] == [3, 0]
    assert len(model.asked) == 1


def test_an_answer_of_another_server_is_not_cached(twin: Twin, cache: Any) -> None:
    """Servers have models of the same name that are not the same."""
    with FaultyGateway() as one, FaultyGateway() as two:
        one.always(Answer("one"))
        two.always(Answer("two"))
        texts = [
            twin.invoke(RetryRouter(routes=[chat_openai(gateway)], cache=cache), "hi")
            for gateway in (one, two, one)
        ]
    assert [text.text for text in texts] == ["one", "two", "one"]


# --- attempts that are given up ---


def test_a_thread_that_was_given_up_sends_nothing_more() -> None:
    """A late 400 that is about our own form of the request is not answered by it."""
    may_answer = threading.Event()

    def refuse(_: Any) -> Exception:
        may_answer.wait(30)
        return InvalidRequestError("an unknown field", status_code=400)

    blocks: Any = [{"type": "new", "what": 1}, {"type": "text", "text": "a"}]
    history = [AIMessage(blocks), HumanMessage("And?")]
    late, other = Odd(results=[refuse]), Odd(results=[HELLO])
    short = RetryPolicy(max_retries=0, attempt_timeout=0.2)
    router = RetryRouter(routes=[late, other], retry_policy=short)
    assert router.invoke(history).text == "Hello"
    may_answer.set()
    threading.Event().wait(0.3)
    assert len(late.asked) == 1


# --- money, time and limits ---


def test_a_stream_that_money_cannot_continue_ends(twin: Twin) -> None:
    """The caller gets what there is, at once; it was tried again for ever."""
    said = [AIMessageChunk(content="one two ")]
    models = [Scripted(chunks=said, breaks=True) for _ in range(2)]
    routes = [Route(model=m, input_price=1, output_price=1e6) for m in models]
    router = RetryRouter(routes=routes, max_cost=3.0001, clock=FakeClock())
    with pytest.raises(StreamInterruptedError, match="broke") as caught:
        list(twin.stream(router, "hi", max_tokens=2))
    assert caught.value.delivered == "one two "
    assert len(models[0].sent + models[1].sent) == 1


def test_who_waits_is_spread_over_the_queues() -> None:
    """With all routes busy, a call waits where fewer others do."""

    class Slow(Odd):
        async def _agenerate(self, *_: Any, **__: Any) -> ChatResult:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), 0.02)
            return HELLO

    limits = [RateLimit(max_concurrency=1) for _ in range(2)]
    routes = [
        Route(model=Slow(results=[HELLO]), name=name, rate_limit=limit)
        for name, limit in zip("ab", limits, strict=True)
    ]
    answers = asyncio.run(RetryRouter(routes=routes).abatch(["hi"] * 20))
    counts = Counter(one.response_metadata["retryrouter"]["route"] for one in answers)
    assert min(counts.values()) >= 5


@pytest.mark.parametrize("freed", ["a", "b"])
def test_a_route_that_gets_free_is_found(twin: Twin, freed: str) -> None:
    """A call that waits at one route looks at the others again, before and behind."""

    class Freeing(BaseCallbackHandler):
        def on_custom_event(self, *_: Any, **__: Any) -> None:
            held.succeeded()

    clock = FakeClock()
    busy = RateLimit(max_concurrency=1, clock=clock)
    used_up = RateLimit(requests_per_minute=1, clock=clock)
    held: Any = busy.try_reserve(Size())
    used_up.try_reserve(Size())
    limits = [busy, used_up] if freed == "a" else [used_up, busy]
    routes = [
        Route(model=Odd(results=[answer(name)]), rate_limit=limit)
        for name, limit in zip("ab", limits, strict=True)
    ]
    router = RetryRouter(routes=routes, clock=clock)
    assert twin.invoke(router, "hi", {"callbacks": [Freeing()]}).text == freed
    assert sum(clock.sleeps) < 30


def after(clock: FakeClock, seconds: float, said: Any) -> Any:
    """An answer that takes its time."""

    def say(_: Any) -> Any:
        clock.advance(seconds)
        return said

    return say


def fastest_of(clock: FakeClock, *models: Odd) -> RetryRouter:
    settings: dict[str, Any] = {"strategy": "least_latency", "seed": 1, "retries": 0}
    return router_of(*models, clock=clock, **settings)


def test_a_route_that_fails_quickly_is_not_the_fastest(
    twin: Twin, clock: FakeClock
) -> None:
    """Only answers are fast; a failure counts as slower than the slowest of them."""
    sick = Odd(results=[Exception("no")])
    router = fastest_of(clock, sick, Odd(results=[after(clock, 2, HELLO)]))
    for _ in range(30):
        twin.invoke(router, "hi")
    assert len(sick.asked) <= 3


def test_a_refused_prompt_does_not_make_a_route_slow(
    twin: Twin, clock: FakeClock
) -> None:
    """A content filter's refusal is an answer: it is raised, and the route is well."""
    said = ((1, HELLO), (0.1, ContentFilterError("no")), (1, HELLO))
    fast = Odd(results=[after(clock, *one) for one in said])
    slow = Odd(results=[after(clock, 5, HELLO)])
    router = fastest_of(clock, fast, slow)
    for _ in range(6):
        with contextlib.suppress(ContentFilterError):
            twin.invoke(router, "hi")
    assert (len(fast.asked), len(slow.asked)) == (5, 1)


# --- copies ---


def test_a_copy_with_other_routes_is_a_new_router(twin: Twin) -> None:
    """Its breakers and strategy are of its own routes; other copies share them."""
    first, second, third = (Odd(results=[answer(name)]) for name in "abc")
    router = router_of(first, second, strategy="round_robin")
    copy = router.model_copy(update={"routes": [third]})
    assert [twin.invoke(copy, "hi").text for _ in range(2)] == ["c", "c"]
    turned = router.model_copy(update={"strategy": "priority"})
    assert [twin.invoke(turned, "hi").text for _ in range(2)] == ["a", "a"]
    shared = router.model_copy(update={"max_cost": None})
    assert [twin.invoke(one, "hi").text for one in (router, shared)] == ["a", "b"]


@pytest.mark.parametrize(
    "field", ["affinity", "breaker_settings", "clock", "routes", "store", "strategy"]
)
def test_a_field_that_would_have_no_effect_cannot_be_set(field: str) -> None:
    """What only the constructor reads is an error later; the rest may be set."""
    router = router_of(Odd(results=[answer("a")]))
    before = getattr(router, field)
    with pytest.raises(AttributeError, match=rf"model_copy\(update={{'{field}'"):
        setattr(router, field, None)
    assert getattr(router, field) is before
    router.stream_recovery = "error"
    assert router.stream_recovery == "error"


def test_a_copy_of_a_bound_router_keeps_what_is_bound(twin: Twin) -> None:
    """With another strategy it still asks for the object, and refuses other answers."""
    schema = {"title": "Age", "type": "object", "properties": {"age": {}}}
    with FaultyGateway() as gateway:
        gateway.always(Answer("I am old."))
        router = RetryRouter(routes=[chat_openai(gateway)], retry_policy=ONCE)
        chain: Any = router.with_structured_output({**schema, "required": ["age"]})
        copy = chain.first.bound.model_copy(update={"strategy": "round_robin"})
        with pytest.raises(RejectedAnswerError):
            twin.invoke(copy, "hi")
        assert "Age" in str(gateway.requests[0].json)


def test_a_failure_is_told_once() -> None:
    """Though it was to be retried, and the time for that was over then."""
    clock = FakeClock()
    policy = RetryPolicy(deadline=10, on_retry=lambda _: clock.advance(20))
    with FaultyGateway() as one, FaultyGateway() as two:
        one.always(Status(401))
        two.always(Status(503))
        routes: list[ChatOpenAI] = [chat_openai(one), chat_openai(two)]
        router = RetryRouter(routes=routes, retry_policy=policy, clock=clock)
        with pytest.raises(RetryRouterError) as caught:
            router.invoke("hi")
    assert len({id(error) for error in caught.value.others}) == 1
    assert len(caught.value.others) == 1
