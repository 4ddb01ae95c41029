"""One model of each public class over a faulty gateway, and a loop with virtual time.

All fields go to each model, so that a test can set the policy, the budget or the clock.
Worker processes import this module.
"""

import asyncio
import random  # noqa: TID251 - seeded
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import SecretStr

from langchain_retryrouter import (
    AzureOpenAI,
    CircuitBreaker,
    GPTRouter,
    GPTRouterEmbeddings,
    GPTRouterModel,
    OpenAI,
    OpenAIChat,
    RateLimit,
    RetryRouter,
    Route,
)
from langchain_retryrouter.rate_limits import Size
from langchain_retryrouter.stores import MemoryStore
from langchain_retryrouter.testing import STUB_TEXT, FakeClock, FaultyGateway
from tests.support.models import KEY, chat_openai

T = TypeVar("T")

GATEWAY: Final[dict[str, Any]] = {
    "GPTRouter": GPTRouter,
    "GPTRouterEmbeddings": GPTRouterEmbeddings,
}
LLMS: Final[dict[str, Any]] = {
    "OpenAI": OpenAI,
    "OpenAIChat": OpenAIChat,
    "AzureOpenAI": AzureOpenAI,
}
CHAT_MODELS: Final = ("GPTRouter", "RetryRouter")
FIVE: Final = (*CHAT_MODELS, *LLMS)
ALL: Final = (*FIVE, "GPTRouterEmbeddings")
METHODS: Final = ("invoke", "stream", "ainvoke", "astream")


def new_model(name: str, gateway: FaultyGateway | str, **fields: Any) -> Any:
    """A model of the class `name`; `gateway` is a gateway, or its address.

    A RetryRouter has two routes, a GPTRouter and a ChatOpenAI. `breaker` is a breaker
    for each of them; without it they have none.
    """
    url = gateway if isinstance(gateway, str) else gateway.url
    if name in GATEWAY:
        return GATEWAY[name](
            models_priority_list=[GPTRouterModel(name="gpt-4", provider_name="p")],
            gpt_router_api_base=url,
            gpt_router_api_key=SecretStr(KEY),
            **fields,
        )
    if name in LLMS:
        address = {"base_url": f"{url}/v1"}
        if name == "AzureOpenAI":
            address = {"azure_endpoint": url, "azure_deployment": "mine"}
            address["api_version"] = "2024-10-21"
        return LLMS[name](**address, api_key=KEY, **fields)
    breaker = fields.pop("breaker", None)
    timeout = {"timeout": fields.pop("timeout")} if "timeout" in fields else {}
    # No prompt is too long for the routes: the servers here have no windows.
    common = {"profile": {"max_input_tokens": 100_000_000}, **timeout}
    models = (new_model("GPTRouter", url, **common), chat_openai(url, **common))
    routes = [Route(model=model, breaker=breaker) for model in models]
    return RetryRouter(routes=routes, breaker_settings=None, **fields)


async def acall(model: Any, method: str = "ainvoke", prompt: str = "hi") -> Any:
    """One async call, whatever the class."""
    if isinstance(model, GPTRouterEmbeddings):
        return await model.aembed_query(prompt)
    if method == "astream":
        return [chunk async for chunk in model.astream(prompt)]
    return await model.ainvoke(prompt)


def call(model: Any, method: str = "invoke", prompt: str = "hi") -> Any:
    """One call, whatever the class; an async one in an event loop of its own."""
    if method.startswith("a"):
        return asyncio.run(acall(model, method, prompt))
    if isinstance(model, GPTRouterEmbeddings):
        return model.embed_query(prompt)
    return model.invoke(prompt) if method == "invoke" else list(model.stream(prompt))


def is_stub_answer(answer: Any) -> bool:
    """Whether this is the gateway's healthy answer: its text, or a vector."""
    if isinstance(answer, list):
        return bool(answer) and all(isinstance(number, float) for number in answer)
    return bool(getattr(answer, "content", answer) == STUB_TEXT)


# --- virtual time ---
#
# A wait of an hour is over at once, and in its order. The code that runs on the loop is
# the real code, with its tasks, timeouts and waits. Nothing may reach for a socket,
# since no time passes while bytes travel.


class _Jump(selectors.SelectSelector):
    """Says that the time is over instead of waiting for it."""

    now = 0.0

    def select(
        self, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(10 if timeout is None else 0)
        if not ready and timeout is None:
            msg = "everybody waits, and nothing is scheduled to wake them"
            raise RuntimeError(msg)
        self.now += 0 if ready else timeout or 0
        return ready


class _VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is the selector's."""

    def __init__(self) -> None:
        self.jump = _Jump()
        super().__init__(self.jump)

    def time(self) -> float:
        return self.jump.now


class VirtualClock(FakeClock):
    """The package's clock on the virtual loop, with seeded randomness."""

    def __init__(self, seed: int) -> None:
        super().__init__(random=iter(random.Random(seed).random, None))  # noqa: S311

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def time(self) -> float:
        return 1_800_000_000 + self.monotonic()

    async def asleep(self, seconds: float) -> None:
        await let_pass(seconds)


async def let_pass(seconds: float) -> None:
    """Let virtual seconds pass."""
    if seconds > 0:
        await asyncio.sleep(seconds)  # noqa: TID251 - a jump


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run on a loop with virtual time."""
    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        return runner.run(main)


async def limited_fleet(
    processes: int, wanted: float, seconds: float, **numbers: Any
) -> tuple[list[int], list[float]]:
    """How much each process was admitted, and how long each admitted call waited.

    Each wants so many a second, and nobody waits for more than 2 s.
    """
    clock = VirtualClock(1)
    store = MemoryStore(clock=clock)
    limits = [
        RateLimit(**numbers, name="shared", store=store, clock=clock)
        for _ in range(processes)
    ]
    admitted, waits = [0] * processes, list[float]()

    async def call(at: int) -> None:
        began = clock.monotonic()
        one = await limits[at].areserve(Size(), 2.0)
        if one is not None:
            waits.append(clock.monotonic() - began)
            admitted[at] += clock.monotonic() < seconds
            await let_pass(0.05)
            one.succeeded()

    async def arrive(at: int) -> None:
        rng = random.Random(at)  # noqa: S311 - seeded
        while clock.monotonic() < seconds:
            await let_pass(rng.expovariate(wanted))
            calls.append(asyncio.create_task(call(at)))

    calls: list[asyncio.Task[None]] = []
    await asyncio.gather(*map(arrive, range(processes)))
    for one in calls:
        one.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert all(limit.waiting == 0 for limit in limits)
    return admitted, waits


class ScriptedModel(GenericFakeChatModel):
    """A chat model whose requests are `send`: any coroutine function."""

    messages: Any = iter(())
    send: Any

    async def _agenerate(self, *_args: Any, **_kwargs: Any) -> ChatResult:
        await self.send()
        return ChatResult(generations=[ChatGeneration(message=AIMessage("answer"))])


def router(
    send: Callable[[], Awaitable[None]],
    clock: Any,
    breaker: CircuitBreaker | None = None,
    **fields: Any,
) -> RetryRouter:
    """A router over one model whose requests are `send`."""
    route = Route(model=ScriptedModel(send=send), breaker=breaker)
    return RetryRouter(routes=[route], clock=clock, breaker_settings=None, **fields)
