"""What a provider is sent: no more requests than promised, and none to other hosts."""

import contextlib
import importlib
import itertools
from collections import Counter
from functools import partial
from operator import itemgetter
from typing import Any, Final

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware
from langchain_core.output_parsers import StrOutputParser
from langgraph.graph import MessagesState, StateGraph
from langgraph.types import RetryPolicy as LangGraphRetryPolicy

from langchain_retryrouter import RetryPolicy, RetryRouterError
from langchain_retryrouter.testing import (
    FakeClock,
    FaultyGateway,
    Reset,
    Silence,
    Status,
    Step,
)
from tests.promises.conftest import Figures, Twin
from tests.promises.harness import FIVE, GATEWAY, LLMS, call, is_stub_answer, new_model
from tests.support.models import chat_openai

MAX_RETRIES: Final = 2
FAULTS: Final[dict[str, Step]] = {
    "wrong key": Status(401),
    "503": Status(503),
    "429": Status(429, {"retry-after": "1"}),
    "reset": Reset(),
    "silence": Silence(),
}
LEFT: Final = ("silence", "RetryRouter")
"""A router leaves a silent route, as all classes leave a wrong key."""
MESSAGES: Final = {"messages": [("user", "hi")]}
BARE: Final = "requests a route, called bare"
INSIDE: Final = (
    "requests a route, with the retries of LangChain and LangGraph around it"
)

importlib.import_module("requests")  # LangGraph's first failure does.


def surrounded(llm: Any) -> Any:
    """An agent with retries in a LangGraph node with retries, in `with_retry()`."""
    inner = itemgetter("messages") | llm | {"messages": StrOutputParser()}
    if hasattr(llm, "bind_tools"):
        retries = ModelRetryMiddleware(initial_delay=0, on_failure="error")
        inner = create_agent(llm, tools=[], middleware=[retries])
    policy = LangGraphRetryPolicy(initial_interval=0, jitter=False)
    graph = StateGraph(MessagesState).add_node("model", inner, retry_policy=policy)
    compiled: Any = graph.set_entry_point("model").compile()
    return compiled.with_retry(
        retry_if_exception_type=lambda error: getattr(error, "is_retryable", True),
        wait_exponential_jitter=False,
    )


@pytest.mark.parametrize("name", FIVE)
@pytest.mark.parametrize("what", [BARE, INSIDE])
def test_no_route_gets_more(
    name: str, what: str, twin: Twin, figures: Figures, *, is_long: bool
) -> None:
    """Each route is asked `max_retries + 1` times, and once with a wrong key."""
    request: Any = "hi" if what == BARE else MESSAGES
    options: Any = {} if what == BARE else {"stream_mode": "messages"}
    # In the short form each class has another fault besides the wrong key.
    turn = 1 + (FIVE.index(name) + twin.is_async) % (len(FAULTS) - 1)
    with FaultyGateway() as gateway:
        for fault in FAULTS if is_long else ("wrong key", [*FAULTS][turn]):
            gateway.always(FAULTS[fault])
            timeout = 0.5 if fault == "silence" else 30
            fields: dict[str, Any] = {"clock": FakeClock(), "timeout": timeout}
            policy = RetryPolicy(max_retries=MAX_RETRIES)
            llm = new_model(name, gateway, retry_policy=policy, **fields)
            runnable = llm if what == BARE else surrounded(llm)
            expected, told = MAX_RETRIES + 1, what
            if fault == "wrong key" or (fault, name) == LEFT:
                expected, told = 1, f"requests a route, {fault}"
            calls: Any = (twin.invoke, partial(twin.stream, **options))
            for call in calls:
                gateway.reset_log()
                with pytest.raises(RetryRouterError):
                    call(runnable, request)
                asked = Counter(request.model for request in gateway.requests)
                assert len(asked) == (2 if name == "RetryRouter" else 1)
                for number in asked.values():
                    figures.exactly(expected, number, told)


def test_what_chat_openai_sends(figures: Figures) -> None:
    """The same around langchain-openai's model, whose SDK retries by itself."""
    with FaultyGateway() as gateway:
        gateway.always(Status(503, {"retry-after-ms": "1"}))
        llm: Any = chat_openai(gateway.url, max_retries=MAX_RETRIES)
        for what, runnable in ((BARE, llm), (INSIDE, surrounded(llm))):
            gateway.reset_log()
            with contextlib.suppress(Exception):
                runnable.invoke("hi" if runnable is llm else MESSAGES)
            figures.peer(len(gateway.requests), what)


@pytest.mark.parametrize("name", [*GATEWAY, *LLMS])
def test_no_redirect_is_followed(name: str, twin: Twin, figures: Figures) -> None:
    """Neither key nor prompt goes where a server points; a gateway's cookie stays away.

    The openai SDK's own client for sync calls returns cookies to the host they are of.
    """
    with FaultyGateway(gptrouter="hosted") as gateway, FaultyGateway() as other:
        model = new_model(name, gateway, retry_policy=RetryPolicy(max_retries=2))
        hosts = (other.url, other.url.replace("127.0.0.1", "localhost"))
        for status, host in itertools.product((301, 302, 303, 307, 308), hosts):
            location = {"location": f"{host}/v1/completions"}
            step = Status(status, {**location, "set-cookie": "a=b; path=/"}, b"{}")
            gateway.script(step, step)
            with pytest.raises(RetryRouterError):
                call(model, "ainvoke" if twin.is_async else "invoke")
            gateway.script()
            assert is_stub_answer(call(model))
        cookies = sum("cookie" in request.headers for request in gateway.requests)
        figures.exactly(0, len(other.requests), "requests that followed a redirect")
        if name in GATEWAY:
            figures.exactly(0, cookies, "cookies sent back to a gateway")
