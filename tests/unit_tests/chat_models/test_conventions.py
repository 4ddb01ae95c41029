"""LangChain's conventions where calls fail: caches, limiters, chains, blocks, events.

They hold for a `GPTRouter` whose gateway fails, for a `RetryRouter` whose first route
fails, and for the model of a route, which is asked below its public methods.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.runnables import ConfigurableField
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, PrivateAttr

from langchain_retryrouter import (
    GPTRouter,
    GPTRouterModel,
    RetryPolicy,
    RetryRouter,
    Route,
    StreamInterruptedError,
    UnavailableError,
)
from langchain_retryrouter.testing import Answer, Cut, FaultyGateway, Reset, Status
from tests.support.models import gpt_router
from tests.support.rule_responder import RuleResponder
from tests.unit_tests.conftest import Twin

from .conftest import GPT_4, OTHER, Env
from .frames import outcomes, sum_of


class Weather(BaseModel):
    """Get the weather in a city."""

    city: str


class Gate(BaseRateLimiter):
    """Admits every request, and keeps whether it might have blocked."""

    def __init__(self) -> None:
        self.asked: list[bool] = []

    def acquire(self, *, blocking: bool = True) -> bool:
        self.asked.append(blocking)
        return True

    async def aacquire(self, *, blocking: bool = True) -> bool:
        return self.acquire(blocking=blocking)


@pytest.fixture
def gateway() -> Iterator[FaultyGateway]:
    """A hosted gateway whose model answers by rules."""
    with FaultyGateway(answer=RuleResponder(), gptrouter="hosted") as gateway:
        yield gateway


@pytest.fixture
def primary() -> Iterator[FaultyGateway]:
    """The provider of a router's first route: it is down."""
    with FaultyGateway(answer=RuleResponder(), gptrouter="hosted") as gateway:
        gateway.always(Status(503))
        yield gateway


def model_at(
    gateway: FaultyGateway, model: GPTRouterModel = GPT_4, **fields: Any
) -> GPTRouter:
    return gpt_router(gateway, model.name, max_retries=0, **fields)


NewRouter = Callable[..., RetryRouter]
"""Makes a router of both providers, with these fields besides."""


@pytest.fixture
def new_router(env: Env, primary: FaultyGateway) -> NewRouter:
    """Makes routers of the provider that is down, and of the gateway, as its backup."""

    def new_router(**fields: Any) -> RetryRouter:
        routes = [model_at(primary), model_at(env.gateway, OTHER)]
        return RetryRouter(**{"routes": routes, "clock": env.clock, **fields})

    return new_router


FAILED_OVER = ["unavailable"] * 3 + ["ok"]


@dataclass
class Sick:
    """A model or a router that answers after failures."""

    new: Callable[..., Any]
    log: list[str]
    """The outcomes of the attempts of a call."""
    asked: Callable[[], int]
    """How many requests were sent."""


@pytest.fixture(params=["GPTRouter", "RetryRouter"])
def sick(
    request: pytest.FixtureRequest,
    env: Env,
    new_router: NewRouter,
    primary: FaultyGateway,
) -> Sick:
    """Run the test for both."""
    if request.param == "GPTRouter":
        env.gateway.script(Status(503), Reset())
        log = ["unavailable", "connection", "ok"]
        return Sick(env.llm, log, lambda: len(env.gateway.requests))
    return Sick(
        new_router,
        FAILED_OVER,
        lambda: len(primary.requests) + len(env.gateway.requests),
    )


# --- caches ---


def test_an_answer_out_of_a_cache_costs_nothing(env: Env, sick: Sick) -> None:
    """What was asked before is not sent again, and has no attempts."""
    model = sick.new(cache=InMemoryCache())

    first, again = env.invoke(model, "hi"), env.invoke(model, "hi")

    assert first.content == again.content == "You said: hi"
    assert outcomes(first) == sick.log
    assert outcomes(again) == []
    name = first.response_metadata["model_name"]
    assert again.response_metadata["model_name"] == name
    assert sick.asked() == len(sick.log)


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"temperature": 0.1}, {}),
        ({"models_priority_list": [OTHER]}, {}),
        ({"tag": "summaries"}, {}),
        ({}, {"temperature": 0.1}),
        ({}, {"model": OTHER.name}),
        ({}, {"stop": ["you"]}),
        ({}, {"tools": [convert_to_openai_tool(Weather)]}),
    ],
)
def test_calls_that_differ_do_not_share_a_cached_answer(
    env: Env, fields: dict[str, Any], options: dict[str, Any]
) -> None:
    """Fields of the model and options of the call are part of the cache's key."""
    settings = {"cache": InMemoryCache(), "models_priority_list": [GPT_4, OTHER]}

    env.invoke(env.llm(**settings), "hi")
    env.invoke(env.llm(**{**settings, **fields}), "hi", **options)

    assert len(env.gateway.requests) == 2


def test_routers_that_differ_do_not_share_what_is_cached(
    env: Env, new_router: NewRouter
) -> None:
    """Other routes, a route's other options, tools: another answer."""
    cache, plain = InMemoryCache(), model_at(env.gateway)

    for routes in (
        [plain],
        [model_at(env.gateway, OTHER)],
        [model_at(env.gateway, temperature=0.1)],
        [Route(model=plain, options={"max_tokens": 7})],
    ):
        router = new_router(routes=routes, cache=cache)
        env.invoke(router, "hi")
    env.invoke(router.bind_tools([Weather]), "hi")
    env.invoke(router, "hi", stop=["said"])

    assert len(env.gateway.requests) == 6


# --- rate limiters and options ---


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_a_rate_limiter_is_asked_once_a_call(env: Env, sick: Sick, way: str) -> None:
    """LangChain's rate limiter counts calls, not their retries."""
    limiter = Gate()

    getattr(env, way)(sick.new(rate_limiter=limiter), "hi")

    assert limiter.asked == [True]
    assert sick.asked() == len(sick.log)


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_a_routes_limiter_is_asked_before_each_of_its_attempts(
    env: Env, new_router: NewRouter, primary: FaultyGateway, way: str
) -> None:
    """A limit belongs to a provider: each request of its route passes it, no other."""
    first, second = Gate(), Gate()
    routes = [
        model_at(primary, rate_limiter=first),
        model_at(env.gateway, OTHER, rate_limiter=second),
    ]

    getattr(env, way)(new_router(routes=routes), "hi")

    assert (len(first.asked), len(second.asked)) == (3, 1)
    assert (len(primary.requests), len(env.gateway.requests)) == (3, 1)


def test_a_field_can_be_configured_for_a_call(
    env: Env, new_router: NewRouter, primary: FaultyGateway
) -> None:
    """`configurable_fields` hands a call another policy; breakers are the router's."""
    field = ConfigurableField("policy")
    router = new_router().configurable_fields(retry_policy=field)

    once = {"configurable": {"policy": RetryPolicy(max_retries=0)}}
    answers = [env.invoke(router, "hi", once) for _ in range(5)]

    assert outcomes(answers[0]) == ["unavailable", "ok"]
    assert outcomes(answers[-1]) == ["circuit_open", "ok"]
    assert len(primary.requests) == 3


def test_the_numbers_of_breakers_can_be_configured_for_a_call(
    env: Env, new_router: NewRouter, primary: FaultyGateway
) -> None:
    """Such a call has breakers of its own."""
    field = ConfigurableField("breaker")
    router = new_router().configurable_fields(breaker_settings=field)

    none = {"configurable": {"breaker": None}}
    answers = [env.invoke(router, "hi", none) for _ in range(2)]

    assert outcomes(answers[1]) == ["unavailable"] * 3 + ["ok"]
    assert len(primary.requests) == 6


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_words_to_stop_at_can_be_bound_to_a_route(
    env: Env, new_router: NewRouter, primary: FaultyGateway, way: str
) -> None:
    """A route's own `stop` is sent, and a call's goes before it."""
    router = new_router(
        routes=[
            model_at(primary).bind(stop=["one"]),
            Route(model=model_at(env.gateway), options={"stop": ["two"]}),
        ],
        breaker_settings=None,
    )

    getattr(env, way)(router, "hi")
    getattr(env, way)(router, "hi", stop=["three"])

    for gateway, own in ((primary, "one"), (env.gateway, "two")):
        sent = [request.parameters["stop"] for request in gateway.requests]
        half = len(sent) // 2
        assert sent == [[own]] * half + [["three"]] * half


# --- streams ---


@pytest.mark.parametrize("has_tools", [True, False])
@pytest.mark.parametrize("field", ["disable_streaming", "streaming", "of a route"])
def test_what_is_not_streamed_is_one_answer(
    env: Env, sick: Sick, primary: FaultyGateway, field: str, *, has_tools: bool
) -> None:
    """Without streaming a stream is one answer, with calls, usage and attempts."""
    fields: dict[str, Any] = {"disable_streaming": True}
    is_router = sick.log == FAILED_OVER
    if is_router and field == "of a route":
        models = (primary, GPT_4), (env.gateway, OTHER)
        fields = {"routes": [model_at(*one, **fields) for one in models]}
    elif not is_router and field == "streaming":
        fields = {"streaming": False}
    model = sick.new(**fields)

    chunks = env.stream(
        model.bind_tools([Weather]) if has_tools else model, "Weather('Oslo')"
    )

    whole = sum_of(chunks)
    assert all(isinstance(chunk, AIMessageChunk) for chunk in chunks)
    assert chunks[-1].chunk_position == "last"
    assert [call["args"] for call in whole.tool_calls] == [{"city": "Oslo"}] * has_tools
    assert whole.usage_metadata is not None
    assert outcomes(whole) == sick.log
    if not is_router:
        assert len(chunks) == 1
        streamed = [request.streaming for request in env.gateway.requests]
        assert streamed == [has_tools] * 3


@pytest.mark.parametrize("where", ["router", "routes"])
@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_content_can_be_asked_for_in_blocks(
    env: Env, new_router: NewRouter, primary: FaultyGateway, way: str, where: str
) -> None:
    """With `output_version="v1"` a router's, or its routes', content is blocks."""
    fields: dict[str, Any] = {"output_version": "v1"}
    if where == "routes":
        models = (primary, GPT_4), (env.gateway, OTHER)
        fields = {"routes": [model_at(*one, **fields) for one in models]}
    answer = env.message(way, new_router(**fields))

    (block,) = answer.content
    assert (block["type"], block["text"]) == ("text", "You said: hi")
    assert answer.response_metadata["output_version"] == "v1"
    assert outcomes(answer) == FAILED_OVER


def _events_v3(twin: Twin, model: Any, into: list[Any]) -> str:
    """The text of the events, which `into` keeps."""

    async def follow() -> None:
        async for event in await model.astream_events("one two three", version="v3"):
            into.append(event)  # noqa: PERF401 - what came before an error must be kept

    if twin.is_async:
        asyncio.run(follow())
    else:
        for event in model.stream_events("one two three", version="v3"):
            into.append(event)  # noqa: PERF402
    return _text_of(into)


def _text_of(events: list[Any]) -> str:
    deltas = [one["delta"] for one in events if one["event"] == "content-block-delta"]
    return "".join(delta["text"] for delta in deltas)


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
def test_events_of_blocks_come_once(env: Env, sick: Sick) -> None:
    """`stream_events` v3 has no events of failed attempts."""
    events: list[Any] = []

    assert _events_v3(env, sick.new(), events) == "You said: one two three"

    kinds = Counter(event["event"] for event in events)
    assert kinds["message-start"] == kinds["message-finish"] == 1
    assert sick.asked() == len(sick.log)


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
def test_events_of_a_broken_stream_end_in_its_error(env: Env) -> None:
    """What was delivered of it has events; an attempt before has none."""
    env.gateway.script(Cut(after=0), Cut(after=2), Answer())
    events: list[Any] = []

    with pytest.raises(StreamInterruptedError) as caught:
        _events_v3(env, env.llm(), events)

    assert _text_of(events) == caught.value.delivered == "You said:"
    assert len(env.gateway.requests) == 2


# --- errors ---


def test_what_a_route_says_of_its_own_end_is_under_its_name(
    env: Env, new_router: NewRouter
) -> None:
    """A `GPTRouter` gives up an attempt, and only the router gives up the call."""
    env.gateway.always(Status(429))

    with pytest.raises(UnavailableError) as caught:
        env.invoke(new_router(), "hi")

    ends = [note.split(",")[0] for note in caught.value.__notes__ if "gave up" in note]
    assert ends == [
        "gpt-4-0613: gave up after 1 attempt",
        "gpt-4o: gave up after 1 attempt",
        "gave up after 6 attempts",
    ]


# --- a route's model, which is asked below its public methods ---


class _Model(BaseChatModel):
    """Answers whole, and in chunks where it is told to stream."""

    streaming: bool = False
    _asked: int = PrivateAttr(0)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> ChatResult:
        del messages, stop, run_manager, kwargs
        return self.answer("whole")

    def answer(self, text: str) -> ChatResult:
        self._asked += 1
        message = AIMessage(text, response_metadata={"model_name": "m"})
        generation = ChatGeneration(
            message=message, generation_info={"finish_reason": "stop"}
        )
        return ChatResult(generations=[generation], llm_output={"id": "resp-1"})

    def _stream(self, *_: Any, **__: Any) -> Iterator[ChatGenerationChunk]:
        for text in ("in ", "chunks"):
            yield ChatGenerationChunk(message=AIMessageChunk(content=text))

    @property
    def asked(self) -> int:
        return self._asked

    @property
    def _llm_type(self) -> str:
        return "in-memory"


class _WithoutRun(_Model):
    """Its `_generate` is not told of the run, and takes no further options."""

    def _generate(  # type: ignore[override] # as LangChain allows
        self, messages: list[BaseMessage], stop: list[str] | None = None
    ) -> ChatResult:
        del messages, stop
        return self.answer("without a run")

    async def _agenerate(  # type: ignore[override]
        self, messages: list[BaseMessage], stop: list[str] | None = None
    ) -> ChatResult:
        return self._generate(messages, stop)


MODELS = {
    "plain": _Model(),
    "streaming": _Model(streaming=True),
    "blocks": _Model(output_version="v1"),
    "without a run": _WithoutRun(),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_route_answers_as_its_model_does(twin: Twin, model: _Model) -> None:
    """Content and metadata are what the model's own `invoke` gives, to the letter."""
    own = twin.invoke(model, "hi")

    answer = twin.invoke(RetryRouter(routes=[model]), "hi")

    metadata = dict(answer.response_metadata)
    assert metadata.pop("retryrouter")["route"] == type(model).__name__
    assert metadata == own.response_metadata
    assert answer.content == own.content
    assert answer.usage_metadata == own.usage_metadata


@pytest.mark.parametrize(
    ("for_all", "cache", "asked"),
    [(False, InMemoryCache, 1), (True, lambda: None, 1), (True, lambda: False, 3)],
    ids=["its own", "for all", "refused"],
)
def test_a_routes_cache_answers_for_it(
    twin: Twin, for_all: bool, cache: Callable[[], Any], asked: int
) -> None:
    """A route keeps its model's own cache, or `set_llm_cache`'s unless it refuses."""
    model = _Model(cache=cache())
    router = RetryRouter(routes=[model], cache=False)
    set_llm_cache(InMemoryCache() if for_all else None)
    try:
        answers = [twin.invoke(router, "hi") for _ in range(3)]
    finally:
        set_llm_cache(None)

    assert [answer.content for answer in answers] == ["whole"] * 3
    assert model.asked == asked


def test_a_limiter_that_comes_later_is_asked(twin: Twin) -> None:
    """What a model may be given after it was made a route is looked at in each call."""
    model, gate = _Model(), Gate()
    router = RetryRouter(routes=[model])
    twin.invoke(router, "hi")

    model.rate_limiter = gate
    twin.invoke(router, "hi")

    assert gate.asked == [True]
