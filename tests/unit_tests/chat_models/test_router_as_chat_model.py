"""What LangChain asks of a router as of any chat model: profile, tokens, traces."""

from collections.abc import Sequence
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    ClearToolUsesEdit,
    ContextEditingMiddleware,
    SummarizationMiddleware,
)
from langchain_core.language_models import ModelProfile
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, trim_messages
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler as Runs
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from langchain_retryrouter import RetryPolicy, RetryRouter
from langchain_retryrouter.testing import Answer, Status
from tests.support.models import NOWHERE, gpt_router

from .conftest import Pair, both_ways

HI = HumanMessage("hi there")


def fake(profile: Any = None) -> FakeListChatModel:
    return FakeListChatModel(responses=["a"], profile=profile)


class Counting(FakeListChatModel):
    """A model that counts by itself, or fails at it."""

    responses: list[str] = ["a"]  # noqa: RUF012 - a field
    error: Exception | None = None
    asked: list[Any] = []  # noqa: RUF012 - a field

    def get_token_ids(self, text: str) -> list[int]:
        """A token for each word."""
        self.asked.append(text)
        if self.error is not None:
            raise self.error
        return list(range(100, 100 + len(text.split())))

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """A token for each word, and ten for each tool."""
        words = sum(len(self.get_token_ids(message.text)) for message in messages)
        return words + 10 * len(tools or ())


# --- profile ---


@pytest.mark.parametrize(
    ("profiles", "common"),
    [
        (
            [
                {"max_input_tokens": 9, "tool_calling": True, "image_inputs": True},
                {"max_input_tokens": 5, "tool_calling": True, "image_inputs": False},
            ],
            {"max_input_tokens": 5, "tool_calling": True, "image_inputs": False},
        ),
        ([{"max_input_tokens": 9, "structured_output": True}, {"name": "b"}], {}),
        (
            [
                {"reasoning_effort_levels": ["low", "high"], "name": "a"},
                {"reasoning_effort_levels": ["high"], "name": "b"},
            ],
            {"reasoning_effort_levels": ["high"]},
        ),
        ([{"max_input_tokens": 9}, None], None),
    ],
    ids=["least", "only-what-all-say", "lists", "unknown"],
)
def test_a_router_can_do_what_all_its_routes_can(
    profiles: list[dict[str, Any] | None], common: dict[str, Any] | None
) -> None:
    """Any route may answer, so only what all of them claim is claimed."""
    router = RetryRouter(routes=[fake(profile) for profile in profiles])
    assert router.profile == common
    own = RetryRouter(routes=[fake()], profile={"max_input_tokens": 7})
    assert own.profile == {"max_input_tokens": 7}


@pytest.mark.parametrize(
    ("package", "name", "claims_it"),
    [
        ("langchain_google_genai", "gemini-2.5-pro", False),
        ("langchain_google_vertexai", "gemini-flash-latest", False),
        ("langchain_google_genai", "gemini-3-pro-preview", True),
        ("langchain_groq", "openai/gpt-oss-120b", False),
        ("langchain_mistralai", "mistral-large-latest", True),
    ],
)
def test_agents_do_not_ask_for_a_format_beside_tools_that_refuse_it(
    package: str, name: str, *, claims_it: bool
) -> None:
    """LangChain's agents would, since the profile claims it; then they use a tool."""
    facts = {"__module__": f"{package}.chat_models", "__annotations__": {"model": str}}
    cls = type("ChatModelOfATest", (FakeListChatModel,), facts)
    profile = {"structured_output": True, "tool_calling": True}
    model = cls(responses=["a"], model=name, profile=profile)
    router = RetryRouter(routes=[model, fake(profile)])
    assert ("structured_output" in (router.profile or {})) == claims_it


# --- tokens ---


def test_the_first_route_that_counts_is_asked() -> None:
    """A model without a counter of its own would load GPT-2's; it is passed over."""
    router = RetryRouter(routes=[fake(), Counting(asked=[])])
    assert router.get_token_ids("a b c") == [100, 101, 102]
    assert router.get_num_tokens("a b") == 2
    assert router.get_num_tokens_from_messages([HI, HI], [{"name": "t"}]) == 14
    own = RetryRouter(routes=[Counting()], custom_get_token_ids=lambda _: [1])
    assert own.get_num_tokens("a b c") == 1
    kept = trim_messages([HI] * 9, max_tokens=5, token_counter=router)
    assert len(kept) == 2


@pytest.mark.parametrize(
    "error", [ImportError("transformers"), NotImplementedError(), OSError("network")]
)
def test_a_counter_that_fails_is_left(error: Exception) -> None:
    """The next route counts, and for a while the failed counter is not asked again."""
    failing, counting = Counting(error=error, asked=[]), Counting(asked=[])
    router = RetryRouter(routes=[failing, counting])
    assert [router.get_num_tokens_from_messages([HI]) for _ in range(3)] == [2, 2, 2]
    assert len(router.routes[0].model.asked) == 1  # type: ignore[attr-defined]


def test_without_a_counter_the_number_is_approximate() -> None:
    """Counting never fails: langchain-core's approximation is the last resort."""
    router = RetryRouter(routes=[fake(), Counting(error=OSError())])
    expected = count_tokens_approximately([HI])
    assert router.get_num_tokens_from_messages([HI]) == expected
    assert router.get_num_tokens("12345678") == len(router.get_token_ids("12345678"))
    assert router.get_num_tokens("12345678") == 2


def test_an_agent_summarizes_and_edits_by_a_router() -> None:
    """Fractions of the context and the model's own count work in LangChain's agents."""
    model = Counting(responses=["said"], profile={"max_input_tokens": 2_000})
    router = RetryRouter(routes=[model, fake({"max_input_tokens": 9_000})])
    counter: Any = router.get_num_tokens_from_messages
    agent = create_agent(
        router,
        middleware=[
            SummarizationMiddleware(
                router,
                trigger=("fraction", 0.5),
                keep=("messages", 1),
                token_counter=counter,
            ),
            ContextEditingMiddleware(
                edits=[ClearToolUsesEdit(trigger=1)], token_count_method="model"
            ),
        ],
    )
    long = HumanMessage("word " * 1_200)
    said = agent.invoke({"messages": [long, AIMessage("x"), HI]})
    assert "summary" in said["messages"][0].text
    assert [message.text for message in said["messages"][1:]] == ["hi there", "said"]


class Person(BaseModel):
    """A person."""

    name: str


def test_an_agent_asks_for_objects_by_the_routers_profile(pair: Pair) -> None:
    """If all routes have schemas of their own, LangChain's agent uses them."""
    pair.primary.always(Status(401))
    pair.backup.always(Answer('{"name": "Ada"}'))
    routes = [pair.model(gateway, "gpt-4o") for gateway in (pair.primary, pair.backup)]
    agent: Any = create_agent(pair.router(routes=routes), response_format=Person)
    said = pair.twin.invoke(agent, {"messages": [HI]})
    assert said["structured_response"] == Person(name="Ada")
    (request,) = pair.backup.requests
    assert request.json["response_format"]["type"] == "json_schema"
    assert "tools" not in request.json  # OpenAI refuses an empty list.


# --- traces ---


@both_ways
def test_the_run_names_the_model_that_answered(pair: Pair) -> None:
    """Costs and traces are those of the model that served, not of the first route."""
    pair.primary.always(Status(401))
    first = pair.model(pair.primary, "first", temperature=0.1)
    second = pair.model(pair.backup, "second", temperature=0.2)
    tracer, shared = Runs(), {"of": "the caller"}

    config = {"callbacks": [tracer], "metadata": shared}
    pair.ask(pair.router(routes=[first, second]), "hi", config)

    metadata = tracer.traced_runs[0].metadata
    assert metadata["ls_model_name"] == "second"
    assert metadata["ls_provider"] == "openai"
    assert metadata["ls_temperature"] == 0.2
    assert metadata["of"] == "the caller"
    assert shared == {"of": "the caller"}


# --- what cannot be a route ---


class Caching(FakeListChatModel):
    """A user's own class with a method around the call."""

    def invoke(self, *args: Any, **kwargs: Any) -> AIMessage:
        """Not called by a router."""
        return super().invoke(*args, **kwargs)


def test_an_overridden_public_method_is_named() -> None:
    """The router calls the model below `invoke`, and says so."""
    with pytest.warns(UserWarning, match="overrides invoke in Caching, which is not"):
        RetryRouter(routes=[Caching(responses=["a"])])
    nested = RetryRouter(routes=[fake()], retry_policy=RetryPolicy(max_retries=0))
    RetryRouter(routes=[nested])  # Overrides `stream`, and loses nothing.


# --- profiles of models ---


OPENAIS = [
    *("gpt-4", "gpt-4-turbo", "gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano", "gpt-4o"),
    *("gpt-4o-mini", "gpt-5", "gpt-5-mini", "gpt-5-nano", "o3", "o4-mini"),
]


def profile_of(*names: str, **fields: Any) -> ModelProfile | None:
    """The profile of a GPTRouter that asks these models."""
    return gpt_router(NOWHERE, *names, **fields).profile


@pytest.mark.parametrize("name", OPENAIS)
def test_the_table_says_what_langchains_own_says(name: str) -> None:
    """For OpenAI's models every entry equals the one that langchain-openai ships."""
    profile = profile_of(name)
    official = ChatOpenAI(model=name, api_key=SecretStr("sk")).profile
    assert profile
    assert official is not None
    assert profile.items() <= official.items()


def test_a_list_can_do_what_all_its_models_can() -> None:
    """Any model may answer: the least of each value, if all models are known."""
    profile = profile_of("gpt-5", "gpt-4")
    assert profile is not None
    assert profile["max_input_tokens"] == profile["max_output_tokens"] == 8_192
    assert profile["image_inputs"] is profile["reasoning_output"] is False
    assert profile_of("gpt-4o", "of-mine") is profile_of("of-mine") is None
    own: ModelProfile = {"max_input_tokens": 5}
    assert profile_of("gpt-4o", profile=own) == own
