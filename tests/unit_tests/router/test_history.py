"""What another provider gets to read of a conversation, and what it is spared."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_openai import AzureChatOpenAI, ChatOpenAI
from pydantic import SecretStr

from langchain_retryrouter import GPTRouter, GPTRouterModel
from langchain_retryrouter._providers.history import fit_history, provider_of
from langchain_retryrouter.testing import Answer, FaultyGateway

from .anthropic_wire import END, after_the_beginning
from .anthropic_wire import TEXT as TEXT_EVENT
from .attempts import WAYS, Way, ask
from .models import chat_anthropic, chat_openai

CALL = {"name": "search", "args": {"q": "a"}, "id": "call_1", "type": "tool_call"}
THINKING = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
TEXT = {"type": "text", "text": "Hello."}
MARK = {"cache_control": {"type": "ephemeral"}}
REASONING = {"type": "reasoning", "id": "rs_1", "summary": [], "index": 0}


def answer(
    content: Any,
    author: str | None = None,
    *,
    calls: bool = False,
    kwargs: dict[str, Any] | None = None,
    **metadata: Any,
) -> AIMessage:
    """An answer of the assistant."""
    if author is not None:
        metadata["model_provider"] = author
    return AIMessage(
        content=content,
        tool_calls=[CALL] if calls else [],
        additional_kwargs=kwargs or {},
        response_metadata=metadata,
    )


CLAUDES = [
    ([THINKING, TEXT], False, "Hello.", ("thinking",)),
    (
        [{"type": "redacted_thinking", "data": "x"}, TEXT],
        False,
        "Hello.",
        ("redacted_thinking",),
    ),
    (
        [{**TEXT, "citations": [{"type": "char_location"}]}],
        False,
        "Hello.",
        ("citations",),
    ),
    (
        [
            {
                "type": "server_tool_use",
                "id": "srvtoolu_1",
                "name": "web_search",
                "input": {},
            },
            {
                "type": "web_search_tool_result",
                "tool_use_id": "srvtoolu_1",
                "content": [],
            },
            TEXT,
        ],
        False,
        "Hello.",
        ("server_tool_use", "web_search_tool_result"),
    ),
    (
        [
            TEXT,
            {"type": "tool_use", "id": "call_1", "name": "search", "input": {"q": "a"}},
        ],
        True,
        "Hello.",
        (),
    ),
    ([THINKING], True, "", ("thinking",)),
    ([THINKING, THINKING, "Hel", "lo."], False, "Hello.", ("thinking",)),
    ([{"type": "a_new_block", "what": 1}, TEXT], False, "Hello.", ("a_new_block",)),
    (
        [{"type": "non_standard", "value": {"type": "web_fetch_tool_result"}}, TEXT],
        False,
        "Hello.",
        ("web_fetch_tool_result",),
    ),
]


@pytest.mark.parametrize(("content", "calls", "text", "left_out"), CLAUDES, ids=str)
def test_what_another_provider_reads_of_claude(
    content: Any, calls: bool, text: str, left_out: tuple[str, ...]
) -> None:
    """Of an answer of Anthropic's, text and tool calls go to OpenAI, and no more."""
    given_message = answer(content, "anthropic", calls=calls)
    [fitted], told = fit_history([given_message], "openai")
    assert isinstance(fitted, AIMessage)
    assert fitted.content == text
    assert fitted.tool_calls == given_message.tool_calls
    assert told == left_out


OPENAIS = [
    ([REASONING, TEXT], {}, False, "Hello.", ("reasoning",)),
    ([{**TEXT, "id": "msg_1", "annotations": []}], {}, False, "Hello.", ()),
    (
        [{**TEXT, "annotations": [{"type": "url_citation"}]}],
        {},
        False,
        "Hello.",
        ("annotations",),
    ),
    (
        [
            {
                "type": "function_call",
                "id": "fc_1",
                "call_id": "call_1",
                "name": "search",
            }
        ],
        {},
        True,
        "",
        (),
    ),
    (
        [{"type": "web_search_call", "id": "ws_1"}, TEXT],
        {},
        False,
        "Hello.",
        ("web_search_call",),
    ),
    ([{"type": "refusal", "refusal": "I will not."}], {}, False, "I will not.", ()),
    ("Hello.", {"reasoning": {"id": "rs_1"}}, False, "Hello.", ("reasoning",)),
    ("Hello.", {"reasoning_content": "hm"}, False, "Hello.", ("reasoning_content",)),
    ("", {"__openai_function_call_ids__": {"call_1": "fc_1"}}, True, "", ()),
]


@pytest.mark.parametrize(
    ("content", "kwargs", "calls", "text", "left_out"), OPENAIS, ids=str
)
def test_what_another_provider_reads_of_openai(
    content: Any,
    kwargs: dict[str, Any],
    calls: bool,
    text: str,
    left_out: tuple[str, ...],
) -> None:
    """Of the Responses API's items only text and tool calls go to Anthropic."""
    given_message = answer(content, "openai", calls=calls, kwargs=kwargs)
    [fitted], told = fit_history([given_message], "anthropic")
    assert isinstance(fitted, AIMessage)
    assert (fitted.content, fitted.additional_kwargs) == (text, {})
    assert fitted.tool_calls == given_message.tool_calls
    assert told == left_out


@pytest.mark.parametrize(
    ("message", "provider"),
    [
        (answer([THINKING, {**TEXT, **MARK}], "anthropic"), "anthropic"),
        (answer([REASONING, TEXT], "openai"), "openai"),
        (answer([REASONING, TEXT], "openai"), "azure"),
        (answer([{"type": "reasoning_content"}], "bedrock_converse"), "amazon_bedrock"),
        (answer([THINKING, TEXT]), "anthropic"),
        (answer([REASONING, TEXT]), "openai"),
        (answer([TEXT, {"type": "a_new_block"}]), "openai"),
        (answer("Hello.", "anthropic"), "openai"),
        (answer("", "anthropic", calls=True), "openai"),
        (answer([TEXT], "anthropic"), "openai"),
        (answer("", "anthropic"), "openai"),
        (HumanMessage("hi"), "openai"),
        (
            HumanMessage([TEXT, {"type": "image_url", "image_url": {"url": "x"}}]),
            "openai",
        ),
        (SystemMessage([{**TEXT, **MARK}]), "anthropic"),
        (ToolMessage("found", tool_call_id="call_1", artifact={"a": 1}), "openai"),
    ],
    ids=str,
)
def test_what_fits_is_the_same_object(message: BaseMessage, provider: str) -> None:
    """Where nothing has to go, nothing is rebuilt, and nothing is said."""
    fitted, left_out = fit_history([message], provider)
    assert fitted[0] is message
    assert left_out == ()


@pytest.mark.parametrize(
    ("content", "reader", "kept", "left_out"),
    [
        ([THINKING, TEXT], "openai", "Hello.", ("thinking",)),
        ([REASONING, TEXT], "anthropic", "Hello.", ("reasoning",)),
        (
            [{"type": "reasoning_content"}, TEXT],
            "openai",
            "Hello.",
            ("reasoning_content",),
        ),
        ([THINKING, {"type": "new"}], "openai", [{"type": "new"}], ("thinking",)),
    ],
    ids=str,
)
def test_without_an_author_only_what_is_marked_goes(
    content: Any, reader: str, kept: Any, left_out: tuple[str, ...]
) -> None:
    """An answer of unknown origin loses what has one provider's form, and no more."""
    [fitted], told = fit_history([answer(content)], reader)
    assert (fitted.content, told) == (kept, left_out)


@pytest.mark.parametrize(
    ("message", "content"),
    [
        (SystemMessage([{**TEXT, **MARK}]), [TEXT]),
        (HumanMessage(["hi", {**TEXT, "extras": MARK}]), ["hi", TEXT]),
        (
            HumanMessage([{"type": "tool_result", "content": [{**TEXT, **MARK}]}]),
            [{"type": "tool_result", "content": [TEXT]}],
        ),
        (ToolMessage([{**TEXT, **MARK}], tool_call_id="call_1"), [TEXT]),
        (HumanMessage("hi", additional_kwargs=MARK), "hi"),
    ],
    ids=str,
)
def test_cache_marks_go_wherever_they_stand(message: BaseMessage, content: Any) -> None:
    """A mark for Anthropic's cache is an unknown field elsewhere, and often a 400."""
    [fitted], left_out = fit_history([message], "groq")
    assert type(fitted) is type(message)
    assert (fitted.content, fitted.additional_kwargs) == (content, {})
    assert left_out == ("cache_control",)


def test_a_call_said_in_content_alone_stays() -> None:
    """A message built by hand may have its call nowhere else."""
    block = {"type": "tool_use", "id": "by_hand", "name": "f", "input": {}}
    [fitted], left_out = fit_history([answer([THINKING, block], "anthropic")], "openai")
    assert fitted.content == [block]
    assert left_out == ("thinking",)


def test_an_answer_of_which_nothing_is_left_is_left_out() -> None:
    """An empty message is refused by most, and says nothing."""
    before, after = HumanMessage("hi"), HumanMessage("And?")
    fitted, left_out = fit_history(
        [before, answer([THINKING], "anthropic"), after], "openai"
    )
    assert fitted == [before, after]
    assert left_out == ("thinking",)


def test_each_kind_is_said_once_for_the_conversation() -> None:
    """The ledger names what is missing, in the order in which it went."""
    one = answer([THINKING, TEXT], "anthropic")
    _, left_out = fit_history([one, HumanMessage([{**TEXT, **MARK}]), one], "openai")
    assert left_out == ("thinking", "cache_control")


# What real integrations make of it.

HISTORY = [
    SystemMessage([{**TEXT, **MARK}]),
    HumanMessage("Search."),
    answer(
        [
            THINKING,
            TEXT,
            {"type": "server_tool_use", "id": "s_1", "name": "web_search", "input": {}},
            {"type": "tool_use", "id": "call_1", "name": "search", "input": {"q": "a"}},
        ],
        "anthropic",
        calls=True,
    ),
    ToolMessage("found", tool_call_id="call_1"),
    answer(
        [
            REASONING,
            {**TEXT, "id": "msg_1", "annotations": []},
            {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        ],
        "openai",
    ),
    HumanMessage("Go on."),
]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_chat_openai_sends_nothing_of_claudes(way: Way) -> None:
    """The request that leaves has the texts, the call and its result, and no more."""
    with FaultyGateway() as gateway:
        model = chat_openai(gateway)
        ask(way, model, fit_history(HISTORY, provider_of(model))[0])
        sent = gateway.requests[-1].payload["messages"]
    assert [message["role"] for message in sent] == (
        ["system", "user", "assistant", "tool", "assistant", "user"]
    )
    assert sent[2]["content"] == "Hello."
    assert sent[2]["tool_calls"][0]["function"]["name"] == "search"
    assert not {"thinking", "server_tool_use", "cache_control"} & words(sent)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_chat_anthropic_sends_nothing_of_openais(way: Way) -> None:
    """The request that leaves keeps what is Anthropic's own, and has no item's id."""
    with FaultyGateway() as gateway:
        model = chat_anthropic(gateway)
        gateway.script(
            after_the_beginning(TEXT_EVENT, END) if way.is_streaming else Answer()
        )
        ask(way, model, fit_history(HISTORY, provider_of(model))[0])
        sent = gateway.requests[-1].payload
    assert sent["messages"][1]["content"][0] == THINKING
    assert sent["messages"][3]["content"] == "Hello."
    assert not {"reasoning", "web_search_call", "msg_1", "rs_1"} & words(sent)
    assert "cache_control" in words(sent)


def words(thing: Any) -> set[str]:
    """All strings in a document, names included."""
    return set(json.dumps(thing).replace('"', " ").split())


def test_who_is_asked() -> None:
    """Each integration's provider is told as its messages tell their author."""
    key = SecretStr("any")
    azure = AzureChatOpenAI(
        azure_endpoint="http://127.0.0.1", api_key=key, api_version="1", model="m"
    )
    own = GPTRouterModel(name="gpt-4o", provider_name="openai")
    router = GPTRouter(models_priority_list=[own], gpt_router_api_key=key)
    assert provider_of(ChatOpenAI(model="gpt-4o", api_key=key)) == "openai"
    assert provider_of(azure) == "openai"
    assert provider_of(router) == "gptrouter"
    assert (
        provider_of(GenericFakeChatModel(messages=iter(()))) == "genericfakechatmodel"
    )
    with FaultyGateway() as gateway:
        assert provider_of(chat_anthropic(gateway)) == "anthropic"


# Whatever comes.

names = st.sampled_from(
    (
        "text",
        "thinking",
        "reasoning",
        "tool_use",
        "function_call",
        "image",
        "refusal",
        "server_tool_use",
        "non_standard",
        "reasoning_content",
        "web_search_call",
        "new",
    )
)
blocks = st.text(max_size=5) | st.fixed_dictionaries(
    {"type": names},
    optional={
        "text": st.text(max_size=5),
        "refusal": st.text(max_size=5),
        "thinking": st.text(max_size=5),
        "id": st.sampled_from(["call_1", "other"]),
        "summary": st.just([]),
        "cache_control": st.just({"type": "ephemeral"}),
        "value": st.fixed_dictionaries({"type": names}),
        "extras": st.just({"cache_control": 1}),
    },
)
authors = st.sampled_from([None, "anthropic", "openai", "bedrock_converse", "groq"])
contents = st.text(max_size=5) | st.lists(blocks, max_size=4)
messages = st.one_of(
    st.builds(answer, contents, authors, calls=st.booleans()),
    st.builds(HumanMessage, contents),
    st.builds(lambda content: ToolMessage(content, tool_call_id="call_1"), contents),
)
readers = st.sampled_from(["anthropic", "openai", "azure", "amazon_bedrock", "groq"])


def text_of(conversation: list[BaseMessage]) -> str:
    return "".join(str(message.text) for message in conversation)


@given(st.lists(messages, max_size=5), readers)
def test_text_and_calls_survive_and_a_second_time_changes_nothing(
    conversation: list[BaseMessage], reader: str
) -> None:
    """No word and no tool's call or result is lost, and what was given is unchanged."""
    before = copy.deepcopy(conversation)
    fitted, _ = fit_history(conversation, reader)
    assert conversation == before
    refusals = [
        block
        for message in conversation
        if isinstance(message.content, list)
        for block in message.content
        if isinstance(block, dict) and block.get("type") == "refusal"
    ]
    if not refusals:  # These become text, where they are another provider's.
        assert text_of(fitted) == text_of(before)
    calls = [m.tool_calls for m in before if isinstance(m, AIMessage) and m.tool_calls]
    kept = [m.tool_calls for m in fitted if isinstance(m, AIMessage) and m.tool_calls]
    assert kept == calls
    results = [m for m in before if isinstance(m, ToolMessage)]
    assert len([m for m in fitted if isinstance(m, ToolMessage)]) == len(results)
    again, left_out = fit_history(fitted, reader)
    assert all(one is other for one, other in zip(again, fitted, strict=True))
    assert left_out == ()
