"""Answers, choices of tools and histories are the same through a router."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import operator
import warnings
from typing import Any, Final

import pytest
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_retryrouter import RetryPolicy, RetryRouter, RetryRouterError, Route
from tests.integrations.matrix import pieces
from tests.integrations.rows import ROWS, Method
from tests.support.providers.rich import NAMES, rich
from tests.support.providers.server import TOOL, Script, ScriptedProvider
from tests.support.providers.strict import complaints, read_choice

pytestmark = pytest.mark.filterwarnings("ignore")

INSTALLED: Final = {
    name: row
    for name, row in ROWS.items()
    if row.is_installed and row.has_tools and not row.protocol.is_grpc
}
ONCE: Final = RetryPolicy(max_retries=0)
IMAGE: Final = {"type": "image", "base64": "aW1hZ2U=", "mime_type": "image/png"}
TOOLS: Final = [
    {
        "title": name,
        "description": "It does something",
        "type": "object",
        "properties": {"path": {"type": "string"}},
        "required": ["path"],
    }
    for name in NAMES
]
# Those whose `with_structured_output` has no format of the provider's own.
NO_FORMAT: Final = {"aws-invoke", "deepseek", "nvidia", "google-vertexai"}


def told(chunk: Any) -> dict[str, Any]:
    """What a chunk tells; ids that LangChain makes itself are left out."""
    fields = chunk.model_dump()
    calls = [{**one, "id": None} for one in fields.get("tool_call_chunks") or []]
    names = ("content", "usage_metadata", "additional_kwargs")
    found = {name: fields[name] for name in names if fields[name]}
    for block in found.get("content", ()):
        if isinstance(block, dict) and str(block.get("type")).startswith("tool_call"):
            block["id"] = None
    found.get("additional_kwargs", {}).pop(SIGNATURES, None)
    return {**found, "calls": calls} if calls else found


SIGNATURES: Final = "__gemini_function_call_thought_signatures__"


CELLS: Final = [
    (name, reply, method)
    for name, row in INSTALLED.items()
    for method in row.methods
    for reply in ("text", "tool", "rich")
    if not (method.endswith("stream") and (reply == "rich" or row.own_flaws))
]


@pytest.mark.parametrize("version", ["v0", "v1"])
@pytest.mark.parametrize(("name", "reply", "method"), CELLS)
def test_an_answer_is_the_bare_models(
    name: str, reply: Any, method: Method, version: str
) -> None:
    """Through a router come the same chunks, and the same request is sent."""
    row = INSTALLED[name]
    protocol, script = row.protocol, Script(reply="text" if reply == "rich" else reply)
    if reply == "rich":
        protocol = rich(name, protocol)
    with ScriptedProvider(protocol, script) as provider:
        bare, routed = row.model(provider.url), row.model(provider.url)
        bare.output_version = routed.output_version = version
        router = RetryRouter(routes=[routed], retry_policy=ONCE)
        theirs = pieces(lambda: bare.bind_tools(TOOLS), method)
        ours = pieces(lambda: router.bind_tools(TOOLS), method)
    assert provider.requests[0] == provider.requests[1]
    assert list(filter(None, map(told, ours))) == list(filter(None, map(told, theirs)))
    assert [type(one) for one in ours[:1]] == [type(one) for one in theirs[:1]]
    total, whole = (functools.reduce(operator.add, one) for one in (ours, theirs))
    metadata = dict(total.response_metadata)
    del metadata["retryrouter"]
    metadata.get("ResponseMetadata", {}).pop("MaxAttemptsReached", None)  # boto's count
    assert metadata == whole.response_metadata


@pytest.mark.parametrize("choice", ["any", "auto", "none", TOOL])
@pytest.mark.parametrize("name", INSTALLED)
def test_a_choice_of_tools_has_the_providers_form(name: str, choice: str) -> None:
    """`tool_choice` means the same everywhere, or a warning or error says why not."""
    row = INSTALLED[name]
    with ScriptedProvider(row.protocol, Script()) as provider:
        router = RetryRouter(routes=[row.model(provider.url)], retry_policy=ONCE)
        if (name, choice) == ("aws-converse", "none"):  # It has no such word.
            with pytest.raises(ValueError, match="tool_choice"):
                router.bind_tools(TOOLS, tool_choice=choice)
            return
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            bound = router.bind_tools(TOOLS, tool_choice=choice)
        bound.invoke("Hello there")
    is_ignored = name == "ollama" and choice != "auto"
    assert any("ignores tool_choice" in str(one.message) for one in said) == is_ignored
    expected = "auto" if is_ignored else choice
    assert read_choice(name, provider.requests[0]) == expected


@pytest.mark.parametrize("is_native", [True, False])
@pytest.mark.parametrize("name", INSTALLED)
def test_an_object_is_asked_for_as_the_profile_says(name: str, is_native: bool) -> None:
    """The provider's own format where it has one; else the model must call the tool."""
    row = INSTALLED[name]
    with ScriptedProvider(row.protocol, Script()) as provider:
        model = row.model(provider.url)
        model.profile = {"structured_output": is_native}
        router = RetryRouter(routes=[model], retry_policy=ONCE)
        with contextlib.suppress(RetryRouterError):  # The answer is no object.
            router.with_structured_output(TOOLS[0]).invoke("Hello there")
    request = provider.requests[0]
    if is_native and name not in NO_FORMAT:
        schema = json.dumps(request).replace("\\", "")
        assert '"path"' in schema
        assert not request.get("tools")
        assert "toolConfig" not in request
    else:
        choice = read_choice(name, request)
        assert choice in {"any", TOOL} or name == "ollama"


@functools.cache
def conversation() -> tuple[BaseMessage, ...]:
    """Of each author a turn with two calls and their results, one with an image."""
    messages: list[BaseMessage] = [SystemMessage("Be brief.")]
    for name, row in INSTALLED.items():
        with ScriptedProvider(rich(name, row.protocol), Script()) as provider:
            route = Route(model=row.model(provider.url), name=name)
            router = RetryRouter(routes=[route], retry_policy=ONCE)
            answer = router.bind_tools(TOOLS).invoke("Hello there")
        messages += [HumanMessage("Go on", name="Ann Lee"), answer]
        for place, call in enumerate(answer.tool_calls):
            text = {"type": "text", "text": f"Result {place} of {name}."}
            content: Any = [text, IMAGE] if place else text["text"]
            messages.append(ToolMessage(content, tool_call_id=call["id"]))
    parts: list[str | dict[str, Any]] = [{"type": "text", "text": "And this?"}, IMAGE]
    return (*messages, AIMessage("I see."), HumanMessage(parts))


@functools.cache
def authors() -> list[Route]:
    """The other routes of the router, which tell whose turns are whose."""
    routes = []
    for name, row in INSTALLED.items():
        with ScriptedProvider(row.protocol, Script()) as gone:
            routes.append(Route(model=row.model(gone.url), name=name))
    return routes


@pytest.mark.parametrize("name", INSTALLED)
def test_a_reader_takes_the_turns_of_all_authors(name: str) -> None:
    """A strict provider has no complaint, and misses nothing that it can read."""
    row, history = INSTALLED[name], list(conversation())
    with ScriptedProvider(row.protocol, Script()) as provider:
        others = [route for route in authors() if route.name != name]
        routes = [Route(model=row.model(provider.url), name=name), *others]
        router = RetryRouter(routes=routes, retry_policy=ONCE)
        answer = router.bind_tools(TOOLS).invoke(history)
        assert [
            one["outcome"]
            for one in answer.response_metadata["retryrouter"]["attempts"]
        ] == ["ok"]
        body = provider.requests[0]
        own = {
            str(call["id"])
            for message in history
            if isinstance(message, AIMessage)
            and message.response_metadata.get("retryrouter", {}).get("route") == name
            for call in message.tool_calls
        }
    wrong = list(complaints(name, body, own))
    text = json.dumps(body)
    for author in INSTALLED:
        secret = f"Secret of {author}."
        signed = base64.b64encode(secret.encode()).decode()
        if author != name and (secret in text or signed in text):
            wrong.append(f"the thoughts of {author} are sent")
        # With a call, `ChatMistralAI` sends no text.
        lost = [] if name == "mistralai" else [f"Text of {author}."]
        lost += [f"Result {place} of {author}." for place in (0, 1)]
        wrong += [f"lost: {one}" for one in lost if one not in text]
    if text.count(IMAGE["base64"]) != len(INSTALLED) + 1:
        wrong.append("lost: an image")
    assert wrong == []


@pytest.mark.parametrize("name", INSTALLED)
def test_a_reader_gets_its_own_turns_unchanged(name: str) -> None:
    """A model's own history is sent as the model alone sends it, thoughts included."""
    row, history = INSTALLED[name], list(conversation())
    place = next(
        place
        for place, message in enumerate(history)
        if message.response_metadata.get("retryrouter", {}).get("route") == name
    )
    own = [HumanMessage("Go on"), history[place]]
    own += [
        ToolMessage("Result.", tool_call_id=call["id"])
        for call in history[place].tool_calls  # type: ignore[attr-defined]
    ]
    with ScriptedProvider(row.protocol, Script()) as provider:
        row.model(provider.url).bind_tools(TOOLS).invoke(own)
        route = Route(model=row.model(provider.url), name=name)
        router = RetryRouter(routes=[route], retry_policy=ONCE)
        router.bind_tools(TOOLS).invoke(own)
    assert provider.requests[0] == provider.requests[1]
