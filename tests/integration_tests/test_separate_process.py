"""The package against a gateway in a process of its own, as a user would run it."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable
from pydantic import SecretStr

from langchain_retryrouter import OpenAI, RetryPolicy
from langchain_retryrouter.testing import FakeClock
from tests.support.models import gpt_router

_SCRIPT = "429:1,reset,503,cut:0"
_ANSWER = "Hello from the stub upstream"


@pytest.fixture
def url() -> Iterator[str]:
    """A gateway with four faults, which then is healthy."""
    command = [sys.executable, "-m", "langchain_retryrouter.cli", "gateway"]
    with subprocess.Popen(
        [*command, "--script", _SCRIPT],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[1]
        process.terminate()


def _chain(url: str, clock: FakeClock) -> Runnable[dict[str, str], str]:
    policy = RetryPolicy(max_retries=4)
    llm = gpt_router(url, "gpt-4o", retry_policy=policy, clock=clock)
    return ChatPromptTemplate.from_template("{q}") | llm | StrOutputParser()


def test_a_chain_survives_four_faults(url: str, fake_clock: FakeClock) -> None:
    """A sync stream through a chain comes whole after four failed attempts."""
    assert "".join(_chain(url, fake_clock).stream({"q": "hi"})) == _ANSWER
    assert len(fake_clock.sleeps) == 4


def test_an_llm_survives_the_same_faults(url: str, fake_clock: FakeClock) -> None:
    """The OpenAI LLM survives them too, at the same server."""
    llm = OpenAI(
        base_url=f"{url}/v1", api_key=SecretStr("any"), max_retries=4, clock=fake_clock
    )
    assert llm.invoke("hi") == _ANSWER
    assert asyncio.run(llm.ainvoke("hi")) == _ANSWER
