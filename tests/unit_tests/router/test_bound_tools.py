"""Tools and their options, in the form of each route's integration."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import tool

from langchain_retryrouter import RetryPolicy, RetryRouter, Route
from langchain_retryrouter.testing import Answer, FaultyGateway, Status
from tests.support.models import chat_openai
from tests.unit_tests.conftest import Twin

from .anthropic_wire import chat_anthropic
from .attempts import of_package

SEARCH = {"type": "web_search_20250305", "name": "web_search"}


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return city


@tool
def get_time(city: str) -> str:
    """The time in a city."""
    return city


TOOLS = [get_weather, get_time]


class Pair(NamedTuple):
    """Two providers, of which the first rejects all keys, and their models."""

    openai: FaultyGateway
    anthropic: FaultyGateway
    models: list[Any]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """OpenAI's and Anthropic's gateway and model."""
    with FaultyGateway(answer=Answer("a")) as openai, FaultyGateway() as anthropic:
        openai.always(Status(401))
        models = [chat_openai(openai), chat_anthropic(anthropic)]
        yield Pair(openai, anthropic, models)


class NoTools(FakeListChatModel):
    """A model whose integration has no tools."""

    responses: list[str] = ["said"]  # noqa: RUF012 - a field


class WithTools(NoTools):
    """A model whose integration binds tools in OpenAI's form."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.bind(tools=list(tools), **kwargs)


class Picky(NoTools):
    """A model whose integration takes nothing but tools."""

    def bind_tools(self, tools: Any, *, tool_choice: Any = None, **kwargs: Any) -> Any:
        if kwargs or tool_choice:
            msg = f"no such thing as {kwargs or tool_choice}"
            raise ValueError(msg)
        return self.bind(tools=list(tools))


NAMED = {"type": "function", "function": {"name": "get_time"}}
ANTHROPICS = {"type": "tool", "name": "get_time"}


@pytest.mark.parametrize(
    ("choice", "openais", "anthropics"),
    [
        ("any", "required", {"type": "any"}),
        ("required", "required", {"type": "any"}),
        (True, "required", {"type": "any"}),
        ({"type": "any"}, "required", {"type": "any"}),
        ("auto", "auto", {"type": "auto"}),
        ("none", "none", {"type": "none"}),
        ("get_time", NAMED, ANTHROPICS),
        (NAMED, NAMED, ANTHROPICS),
        (ANTHROPICS, NAMED, ANTHROPICS),
        ({"tool": {"name": "get_time"}}, NAMED, ANTHROPICS),
        (None, None, None),
        (False, None, None),
    ],
    ids=str,
)
def test_a_tool_choice_means_the_same_everywhere(
    pair: Pair, choice: Any, openais: Any, anthropics: Any
) -> None:
    """Any provider's form is translated for each route."""
    router = RetryRouter(routes=pair.models)
    router.bind_tools(TOOLS, tool_choice=choice).invoke("hi")
    assert pair.openai.requests[0].json.get("tool_choice") == openais
    assert pair.anthropic.requests[0].json.get("tool_choice") == anthropics


def test_strict_and_parallel_calls_reach_each_provider(pair: Pair) -> None:
    """Both are said in the form of each provider."""
    router = RetryRouter(routes=pair.models)
    bound = router.bind_tools(TOOLS, strict=True, parallel_tool_calls=False)
    bound.invoke("hi")
    first, second = pair.openai.requests[0].json, pair.anthropic.requests[0].json
    assert first["tools"][0]["function"]["strict"] is True
    assert first["parallel_tool_calls"] is False
    assert second["tools"][0]["strict"] is True
    assert second["tool_choice"]["disable_parallel_tool_use"] is True


@pytest.mark.parametrize(
    ("package", "choice", "options", "count"),
    [
        ("langchain_cohere", "any", {"tool_choice": "REQUIRED"}, 2),
        ("langchain_cohere", "get_time", {"tool_choice": "REQUIRED"}, 1),
        ("langchain_cohere", "auto", {}, 2),
        ("langchain_huggingface", "any", {"tool_choice": "required"}, 2),
        ("langchain_unheard_of", "required", {"tool_choice": "any"}, 2),
        ("langchain_unheard_of", ANTHROPICS, {"tool_choice": "get_time"}, 2),
    ],
)
def test_integrations_with_words_of_their_own(
    package: str, choice: Any, options: dict[str, Any], count: int
) -> None:
    """Where an integration does not translate, the router does; else by LangChain."""
    model = of_package(package, WithTools)()
    bound: Any = RetryRouter(routes=[model]).bind_tools(TOOLS, tool_choice=choice)
    given = dict(bound.bound.routes[0].options)
    given.pop("request_options", None)
    assert len(given.pop("tools")) == count
    assert given == options


def test_strict_is_put_into_tools_where_the_integration_has_no_such_argument() -> None:
    """It is in OpenAI's form of a tool, which every integration takes."""
    router = RetryRouter(routes=[WithTools()])
    bound: Any = router.bind_tools(TOOLS, strict=True)
    assert "strict" not in bound.bound.routes[0].options
    tools = bound.bound.routes[0].options["tools"]
    assert [one["function"]["strict"] for one in tools] == [True, True]


@pytest.mark.parametrize(
    "options",
    [{"tool_choice": "any"}, {"parallel_tool_calls": False}, {"strict": True}],
    ids=str,
)
def test_a_route_that_cannot_is_left_out(twin: Twin, options: dict[str, Any]) -> None:
    """Another route honours the option; the warning, said once, names this one."""
    routes = [Route(model=Picky(), name="picky"), Route(model=WithTools(), name="b")]
    router = RetryRouter(routes=routes)
    if "strict" in options:  # It keeps the schema of a dict.
        router = RetryRouter(routes=[NoTools(), *routes[1:]])
    with pytest.warns(UserWarning, match="route '.*' cannot be offered .* is skipped"):
        bound = router.bind_tools(TOOLS, **options)
    answer = twin.invoke(bound, "hi")
    assert answer.response_metadata["retryrouter"]["route"] == "b"
    assert "picky" not in str(bound.bound.explain())  # type: ignore[attr-defined]
    router.bind_tools(TOOLS, **options)  # Not a second time.


def test_what_no_route_can_is_an_error() -> None:
    """Every route and its reason are named."""
    routes = [Route(model=Picky(), name="a"), Route(model=Picky(), name="b")]
    with pytest.raises(ValueError, match=r"'a' cannot .*any; route 'b' cannot .*any"):
        RetryRouter(routes=routes).bind_tools(TOOLS, tool_choice="required")
    with pytest.raises(TypeError, match="route 'NoTools' cannot be offered tools"):
        RetryRouter(routes=[NoTools()]).bind_tools(TOOLS)
    with pytest.raises(ValueError, match="names 'x', and the tools are 'get_weather'"):
        RetryRouter(routes=[WithTools()]).bind_tools(TOOLS, tool_choice="x")


def test_a_choice_that_an_integration_ignores_is_named() -> None:
    """`ChatOllama` drops it, so the router says what it cannot promise."""
    route = Route(model=of_package("langchain_ollama", WithTools)(), name="o")
    with pytest.warns(UserWarning, match="route 'o' ignores tool_choice='any'"):
        RetryRouter(routes=[route]).bind_tools(TOOLS, tool_choice="any")


def test_a_provider_tool_of_one_route_stays(pair: Pair) -> None:
    """Tools that were bound to a route's model are offered beside the router's."""
    searching: Any = pair.models[1].bind_tools([SEARCH])
    router = RetryRouter(routes=[pair.models[0], searching])
    for _ in range(2):
        router.bind_tools([get_time]).invoke("hi")
    offered = [one["name"] for one in pair.anthropic.requests[-1].json["tools"]]
    assert offered == ["web_search", "get_time"]
    assert len(pair.openai.requests[-1].json["tools"]) == 1


def test_a_provider_tool_is_no_function_of_another_provider(pair: Pair) -> None:
    """ChatOpenAI would bind it as a function without code; its route is left out."""
    router = RetryRouter(routes=pair.models)
    with pytest.warns(UserWarning, match="a tool of another provider"):
        router.bind_tools([SEARCH]).invoke("hi")
    assert not pair.openai.requests


def test_no_tools_are_no_option() -> None:
    """Agents bind an empty list, which providers refuse."""
    router = RetryRouter(routes=[WithTools()], retry_policy=RetryPolicy())
    bound: Any = router.bind_tools([])
    assert "tools" not in bound.bound.routes[0].options
    assert isinstance(bound.invoke("hi"), AIMessage)
