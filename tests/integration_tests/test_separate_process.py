"""The package against a gateway in a process of its own, as a user would run it."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from pydantic import SecretStr

from langchain_retryrouter import OpenAI, RetryPolicy
from langchain_retryrouter.testing import FakeClock
from tests.support.models import gpt_router

FAULTS = "429:1,reset,503,cut:0"
ANSWER = "Hello from the stub upstream"


@pytest.fixture
def url() -> Iterator[str]:
    """A gateway with four faults, twice, which then is healthy."""
    command = [sys.executable, "-m", "langchain_retryrouter.cli", "gateway"]
    with subprocess.Popen(
        [*command, "--script", f"{FAULTS},ok,{FAULTS}"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[1]
        process.terminate()


def test_models_survive_four_faults(url: str, fake_clock: FakeClock) -> None:
    """A sync stream through a chain, and an LLM's answers, come after four retries."""
    policy = RetryPolicy(max_retries=4)
    chat = gpt_router(url, "gpt-4o", retry_policy=policy, clock=fake_clock)
    chain = ChatPromptTemplate.from_template("{q}") | chat | StrOutputParser()
    assert "".join(chain.stream({"q": "hi"})) == ANSWER
    assert len(fake_clock.sleeps) == 4

    llm = OpenAI(
        base_url=f"{url}/v1", api_key=SecretStr("any"), max_retries=4, clock=fake_clock
    )
    assert llm.invoke("hi") == ANSWER
    assert asyncio.run(llm.ainvoke("hi")) == ANSWER
    assert len(fake_clock.sleeps) == 8
