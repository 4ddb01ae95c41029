"""Limits of time, with servers that are silent, slow, stalled or dripping.

The limits are about a tenth of a second, on the real clock.
"""

import gc
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from langchain_retryrouter import (
    APITimeoutError,
    GPTRouter,
    RetryPolicy,
    RetryRouterError,
    StreamInterruptedError,
)
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Drip,
    Silence,
    SlowFirstToken,
    Stall,
    Step,
)
from tests.unit_tests.listeners import A_LONG_PROMPT, deaf

from .conftest import WAYS, Env, NewModel

SHORT = 0.15
LONG = 30.0


@pytest.fixture
def new_hasty_llm(new_llm: NewModel) -> NewModel:
    """Makes models without retries, on the system's clock."""

    def new_hasty_llm(**fields: Any) -> GPTRouter:
        retries = fields.pop("max_retries", 0)
        policy = fields.pop("retry_policy", RetryPolicy())
        policy = replace(policy, max_retries=retries)
        return new_llm(**{"clock": None, "retry_policy": policy, **fields})

    return new_hasty_llm


@contextmanager
def within(least: float = 0.0) -> Iterator[None]:
    """Fail if the block takes less than this, or a second longer than `SHORT`."""
    began = time.monotonic()
    yield
    assert least <= time.monotonic() - began < SHORT + 1


SLOW: dict[str, Step] = {
    "silence": Silence(),
    "slow first token": SlowFirstToken(LONG),
    "stall": Stall(after=1, seconds=LONG),
    "drip": Drip(seconds=0.02),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fault", SLOW)
def test_a_deadline_ends_a_call_whatever_is_slow(
    env: Env, fault: str, way: str
) -> None:
    """A call ends at its deadline if the server is silent, stalled or dripping."""
    env.gateway.always(SLOW[fault])
    policy = RetryPolicy(max_retries=0, deadline=SHORT)

    errors = (APITimeoutError, StreamInterruptedError)
    with within(SHORT - 0.01), pytest.raises(errors):
        env.ask(way, clock=None, retry_policy=policy)


@pytest.mark.parametrize("timeout", [SHORT, (LONG, SHORT)], ids=["one", "pair"])
@pytest.mark.parametrize("fault", ["silence", "stall"])
def test_the_request_timeout_is_for_silence(
    env: Env, new_hasty_llm: NewModel, timeout: Any, fault: str
) -> None:
    """`request_timeout`, or the second of a pair, is how long silence may last."""
    env.gateway.always(SLOW[fault])

    with pytest.raises((APITimeoutError, StreamInterruptedError)):
        env.stream(new_hasty_llm(request_timeout=timeout), "hi")


def test_a_dripping_server_is_not_silent(env: Env, new_hasty_llm: NewModel) -> None:
    """A server that keeps sending, however slowly, is within `request_timeout`."""
    env.gateway.always(Drip(seconds=0.03, size=150))
    llm = new_hasty_llm(request_timeout=SHORT)

    assert env.invoke(llm, "hi").content == STUB_TEXT
    assert len(env.stream(llm, "hi")) > 1


def test_a_deadline_does_not_lift_the_request_timeout(
    env: Env, new_hasty_llm: NewModel
) -> None:
    """A long deadline does not lift `request_timeout`."""
    env.gateway.always(Stall(after=0, seconds=LONG))
    policy = RetryPolicy(deadline=LONG, first_token_timeout=LONG)
    llm = new_hasty_llm(request_timeout=SHORT, retry_policy=policy)

    for call in (env.invoke, env.stream):
        with within(), pytest.raises(RetryRouterError):
            call(llm, "hi")


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_a_request_that_is_not_read_is_a_timeout(
    env: Env, new_hasty_llm: NewModel, way: str
) -> None:
    """A server that reads nothing of a long request causes a timeout."""
    with deaf() as address:
        llm = new_hasty_llm(
            gpt_router_api_base=address, retry_policy=RetryPolicy(deadline=SHORT)
        )

        with within(), pytest.raises(APITimeoutError):
            getattr(env, way)(llm, A_LONG_PROMPT)

    with warnings.catch_warnings():
        # asyncio's own, for a connection that cannot send what is left in its buffer.
        warnings.filterwarnings("ignore", "unclosed", ResourceWarning)
        gc.collect()
