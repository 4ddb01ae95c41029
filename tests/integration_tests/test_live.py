"""A real gateway: LangChain's standard tests, and an agent, by `make live_tests`.

The key is taken from `GPT_ROUTER_API_KEY`, and the address from `GPT_ROUTER_API_BASE`.
`GPT_ROUTER_MODEL` and `GPT_ROUTER_SECOND_MODEL` name two models that call tools and
see pictures, as `NAME@PROVIDER`; `GPT_ROUTER_EDITION=public` leaves out what the
published gateway does not support.
"""

import os

import pytest
from langchain.agents import create_agent
from langchain_core.tools import tool

from langchain_retryrouter import GPTRouter, GPTRouterModel
from tests.unit_tests.conftest import Twin

from .capabilities import GPTRouterSuite

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]


def _model(variable: str, default: str) -> GPTRouterModel:
    name, _, provider = (os.environ.get(variable) or default).partition("@")
    return GPTRouterModel(name=name, provider_name=provider or "chat_openai")


@pytest.fixture(autouse=True)
def user_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Say who downloads the suite's sound, as its host asks for."""
    monkeypatch.setenv(
        "LANGCHAIN_TESTS_USER_AGENT", "langchain-retryrouter (integration tests)"
    )


class TestLive(GPTRouterSuite):
    """The whole suite, with a real model."""

    edition = "public" if os.environ.get("GPT_ROUTER_EDITION") == "public" else "hosted"
    models = (
        _model("GPT_ROUTER_MODEL", "gpt-4o@chat_openai"),
        _model("GPT_ROUTER_SECOND_MODEL", "gpt-4o-mini@chat_openai"),
    )


def test_an_agent_uses_its_tool(twin: Twin) -> None:
    """A real model is offered a tool, calls it, and answers from its result."""
    asked: list[str] = []

    @tool
    def get_password(room: str) -> str:
        """Get the password of a room."""
        asked.append(room)
        return "tulip"

    llm = GPTRouter(models_priority_list=list(TestLive.models))
    agent = create_agent(llm, [get_password])
    request = "What is the password of the room 'library'? Use the tool."

    messages = twin.invoke(agent, {"messages": [("user", request)]})["messages"]

    assert asked == ["library"]
    assert "tulip" in messages[-1].text
