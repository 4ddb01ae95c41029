"""An agent that gets its work done over two providers which both misbehave.

Needs no key: the providers are real HTTP servers on the loopback that fail by script.

    pip install langchain langchain-openai "langchain-retryrouter[testing]"
    python examples/agent_with_failover.py
"""

from __future__ import annotations

from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from langchain_retryrouter import RetryPolicy, RetryRouter
from langchain_retryrouter.testing import (
    Answer,
    FaultyGateway,
    Reset,
    Status,
    ToolCall,
)


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"It rains in {city}"


def router_of(first: FaultyGateway, second: FaultyGateway) -> RetryRouter:
    """A model that asks the first provider, and the second when the first cannot."""
    return RetryRouter(
        routes=[
            ChatOpenAI(model="gpt-4o", base_url=first.openai_url, api_key="any"),
            ChatOpenAI(model="gpt-4.1", base_url=second.openai_url, api_key="any"),
        ],
        retry_policy=RetryPolicy(max_retries=2, deadline=60),
    )


def misbehave(first: FaultyGateway, second: FaultyGateway) -> None:
    """Fail twice in the agent's first step; in its second step, fail for good."""
    first.script(
        Status(429, {"retry-after": "1"}),  # too many requests: wait, and repeat
        Reset(),  # the connection breaks: repeat
        Answer(tool_calls=(ToolCall("get_weather", '{"city": "Oslo"}'),)),
        Status(429, error_code="insufficient_quota"),  # no money left: fail over
    )
    second.script(
        Status(503),  # overloaded: repeat
        Answer("Take an umbrella: it rains in Oslo."),
    )


def main() -> None:
    """Ask the agent, and show what it took to answer."""
    with FaultyGateway() as first, FaultyGateway() as second:
        misbehave(first, second)
        router = router_of(first, second)
        print(router.explain(), end="\n\n")
        agent = create_agent(router, tools=[get_weather])
        request = ("human", "What is the weather in Oslo?")
        for message in agent.invoke({"messages": [request]})["messages"]:
            if isinstance(message, AIMessage):
                for attempt in message.response_metadata["retryrouter"]["attempts"]:
                    print(f"    {attempt['route']}: {attempt['outcome']}")
            print(f"{message.type}: {message.text or message.tool_calls[0]['name']}")


if __name__ == "__main__":
    main()
