"""Messages as they are sent, compared with what langchain-openai's `ChatOpenAI` sends.

Both models send the same messages to the same server, each in its own protocol. Where
ours are different, a table says how and why.
"""

import contextlib
from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_retryrouter import StreamInterruptedError, UnsupportedOptionError
from langchain_retryrouter.testing import FaultyGateway, Status
from tests.support.models import chat_openai
from tests.unit_tests.conftest import Twin

from .conftest import WAYS, Env
from .frames import END, event, event_stream, update, whole

PNG = "iVBORw0KGgo="
PDF = "JVBERi0xLjQ="
WAV = "UklGRg=="
URL = "https://example.com/cat.png"
CALL = {"type": "tool_call", "id": "call_0", "name": "f", "args": {"städte": [1, None]}}
SENT_CALL = {
    "type": "function",
    "id": "call_0",
    "function": {"name": "f", "arguments": '{"städte": [1, null]}'},
}
TOOL_USE = {"type": "tool_use", "id": "call_0", "name": "f", "input": CALL["args"]}
INVALID = {
    "type": "invalid_tool_call",
    "id": "call_1",
    "name": "g",
    "args": '{"cut',
    "error": "no JSON",
}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def user(*blocks: Any) -> HumanMessage:
    return HumanMessage(list(blocks))


def ai(*blocks: Any, **fields: Any) -> AIMessage:
    return AIMessage(list(blocks), **fields)


def tool(content: Any, **fields: Any) -> ToolMessage:
    return ToolMessage(content, tool_call_id="call_0", **fields)


# --- as ChatOpenAI sends it ---

FUNCTION_CALL = {"function_call": {"name": "f", "arguments": "{}"}}
NAMED_PDF = {"base64": PDF, "mime_type": "application/pdf", "filename": "a.pdf"}
PDF_URL = f"data:application/pdf;base64,{PDF}"
V0_PNG = {"source_type": "base64", "data": PNG, "mime_type": "image/png"}


def anthropic(**source: Any) -> HumanMessage:
    return user({"type": "image", "source": source})


THE_SAME: dict[str, BaseMessage] = {
    "text of a user": HumanMessage("hi"),
    "a name": HumanMessage("hi", name="ann"),
    "a name in langchain-openai's form": AIMessage(
        "hi", additional_kwargs={"name": "bot"}
    ),
    "system": SystemMessage("be brief"),
    "function's result": FunctionMessage(content='{"a": 1}', name="f"),
    "calls": AIMessage("", tool_calls=[CALL]),
    "calls and text": AIMessage("Let me see.", tool_calls=[CALL]),
    "unreadable call": AIMessage("", invalid_tool_calls=[INVALID]),
    "both kinds of calls": AIMessage(
        "", tool_calls=[CALL], invalid_tool_calls=[INVALID]
    ),
    "calls as OpenAI has them": AIMessage(
        "", additional_kwargs={"tool_calls": [SENT_CALL]}
    ),
    "call of a function": AIMessage("", additional_kwargs=FUNCTION_CALL),
    "function's call beside a tool's": AIMessage(
        "", additional_kwargs=FUNCTION_CALL, tool_calls=[CALL]
    ),
    "tool's result with a name": tool("42", name="f", status="error", artifact=[1]),
    "image by URL": user(text("what?"), image(URL)),
    "image v1": user(text("?"), {"type": "image", "url": URL}),
    "image v1 in base64": user(
        {"type": "image", "base64": PNG, "mime_type": "image/png"}
    ),
    "image v0 in base64": user({"type": "image", **V0_PNG}),
    "image of Anthropic": anthropic(type="base64", media_type="image/png", data=PNG),
    "image of Anthropic by URL": anthropic(type="url", url=URL),
    "file v1": user({"type": "file", **NAMED_PDF}),
    "file by id": user({"type": "file", "file_id": "file-1"}),
    "file of OpenAI": user(
        {"type": "file", "file": {"filename": "a.pdf", "file_data": PDF_URL}}
    ),
    "file of OpenAI by id": user({"type": "file", "file": {"file_id": "file-1"}}),
    "audio v1": user({"type": "audio", "base64": WAV, "mime_type": "audio/wav"}),
    "audio of OpenAI": user(
        {"type": "input_audio", "input_audio": {"data": WAV, "format": "wav"}}
    ),
    "provider's mark on a text": user(
        {**text("long"), "cache_control": {"type": "ephemeral"}}
    ),
    "thinking alone": ai({"type": "thinking", "thinking": "hm"}, tool_calls=[CALL]),
    "calls of OpenAI's Responses": ai(
        {"type": "function_call", "call_id": "call_0", "name": "f", "arguments": "{}"},
        tool_calls=[CALL],
    ),
}


def sent_by(
    llm: Any, twin: Twin, gateway: FaultyGateway, message: BaseMessage
) -> list[dict[str, Any]]:
    """The second message of a conversation, as it arrives at the gateway."""
    twin.invoke(llm, [HumanMessage("first"), message])
    first, *rest = gateway.requests[-1].parameters["messages"]
    assert first == {"role": "user", "content": "first"}
    # The gateway answers 500 to a message without a `content` key.
    assert all("content" in one for one in rest)
    return list(rest)


@pytest.mark.parametrize("name", THE_SAME)
def test_a_message_goes_out_as_chat_openai_sends_it(env: Env, name: str) -> None:
    """Messages and content blocks of all forms arrive as `ChatOpenAI` sends them."""
    message = THE_SAME[name]
    before = message.model_dump()

    ours = sent_by(env.llm(), env, env.gateway, message)
    theirs = sent_by(chat_openai(env.gateway), env, env.gateway, message)

    assert ours == theirs
    assert message.model_dump() == before


# --- other than ChatOpenAI sends it ---


def result(content: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "call_0", "content": content}


def tool_result(content: Any) -> dict[str, Any]:
    """A result in Anthropic's form."""
    return {"type": "tool_result", "tool_use_id": "call_0", "content": content}


def from_user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def answer(content: Any, **rest: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": content, **rest}]


SYSTEM = [{"role": "system", "content": "be brief"}]
VIDEO = {"type": "input_video", "id": "v"}
ONE_PART = (
    "The public gateway counts no tokens if a content is a list, and gives completion"
    " models nothing of it."
)
NO_CALL = "The tool's result would have no call before it."
TOOLS_TEXT = "OpenAI takes text from a tool."
OPENAIS_RESULT = "OpenAI has a message for each result, directly after the call."

# A message, how it is sent, and why it is not sent as `ChatOpenAI` sends it.
OTHERWISE: dict[str, tuple[BaseMessage, list[dict[str, Any]], str]] = {
    "one part of text": (user(text("hi")), from_user("hi"), ONE_PART),
    "tool's result in one part": (tool([text("42")]), [result("42")], ONE_PART),
    "tool's result in parts": (
        tool([text("4"), text("2")]),
        [result("4\n2")],
        ONE_PART,
    ),
    "parts of text": (user(text("one"), text("two")), from_user("one\ntwo"), ONE_PART),
    "answer in parts": (
        ai(text("one"), {"type": "reasoning", "reasoning": "hm"}, text("two")),
        answer("onetwo"),
        ONE_PART,
    ),
    "calls of Anthropic": (
        ai(text("one"), text("two"), TOOL_USE, tool_calls=[CALL]),
        answer("onetwo", tool_calls=[SENT_CALL]),
        ONE_PART,
    ),
    "no parts": (user(), from_user(""), ONE_PART),
    "text without a type": (
        user("hi", "there"),
        from_user("hi\nthere"),
        "OpenAI takes no bare text in a list.",
    ),
    "developer": (
        SystemMessage("be brief", additional_kwargs={"__openai_role__": "developer"}),
        SYSTEM,
        "The gateway answers 500 to the role `developer`.",
    ),
    "developer by name": (
        ChatMessage(content="be brief", role="developer"),
        SYSTEM,
        "The gateway answers 500 to the role `developer`.",
    ),
    "image's URL alone": (
        user({"type": "image_url", "image_url": URL}),
        from_user([image(URL)]),
        "OpenAI takes an object, not a text.",
    ),
    "marks of LangChain": (
        user({**text("hi"), "id": "lc_1", "index": 0, "extras": {}}),
        from_user("hi"),
        "No provider knows LangChain's own keys.",
    ),
    "plain text as a file": (
        user({"type": "text-plain", "text": "notes", "mime_type": "text/plain"}),
        from_user("notes"),
        "ChatOpenAI refuses it, though a text can carry it.",
    ),
    "tool's result without a type": (
        tool([{"degrees": 20}]),
        [result('{"degrees": 20}')],
        TOOLS_TEXT,
    ),
    "block of JSON": (
        tool([{"type": "json", "json": {"degrees": 20}}]),
        [result('{"degrees": 20}')],
        TOOLS_TEXT,
    ),
    "results as Anthropic has them": (
        user(text("and?"), tool_result("42")),
        [result("42"), *from_user("and?")],
        OPENAIS_RESULT,
    ),
    "results alone": (
        user(tool_result([text("42"), image(URL)])),
        [result([text("42"), image(URL)])],
        OPENAIS_RESULT,
    ),
    "a block to be sent as it is": (
        user(text("look"), {"type": "non_standard", "value": VIDEO}),
        from_user([text("look"), VIDEO]),
        "It is LangChain's own type for such a block.",
    ),
    "call in a block only": (
        ai(TOOL_USE),
        answer(None, tool_calls=[SENT_CALL]),
        NO_CALL,
    ),
    "v1 call in a block only": (
        ai(CALL),
        answer(None, tool_calls=[SENT_CALL]),
        NO_CALL,
    ),
    "v1 answer with citations": (
        ai(
            {"type": "reasoning", "reasoning": "hm", "index": "lc_rs_0"},
            {**text("so"), "annotations": [{"type": "citation"}], "index": "lc_txt_0"},
            CALL,
            INVALID,
            response_metadata={"output_version": "v1"},
            tool_calls=[CALL],
        ),
        answer("so", tool_calls=[SENT_CALL]),
        ONE_PART,
    ),
    "blocks of other providers": (
        ai(
            {"type": "redacted_thinking", "data": "x"},
            {"type": "reasoning_content", "reasoning_content": {"text": "hm"}},
            {"type": "server_tool_call", "name": "web_search", "args": {}, "id": "s"},
            {"type": "web_search_call", "id": "ws"},
            {"type": "non_standard", "value": {"type": "executable_code"}},
            {"type": "image", "id": "drawn", "mime_type": "image/png"},
            text("so"),
        ),
        answer("so"),
        "ChatOpenAI passes on blocks that OpenAI then refuses.",
    ),
    "refusal": (
        AIMessage("", additional_kwargs={"refusal": "I will not."}),
        answer("I will not."),
        "The model's words would be lost.",
    ),
    "refusal in a block": (
        ai({"type": "refusal", "refusal": "I will not."}),
        answer("I will not."),
        "The gateway's providers take text.",
    ),
    "text without its type": (
        ai({"text": "So "}, {"type": "output_text", "text": "be it.", "id": "m"}),
        answer("So be it."),
        "The model's words would be lost.",
    ),
    "spoken answer": (
        AIMessage("", additional_kwargs={"audio": {"id": "a", "transcript": "hello"}}),
        answer("hello"),
        "The gateway has no key for the id of a sound, and the words would be lost.",
    ),
    "nothing but reasoning": (
        ai({"type": "thinking", "thinking": "hm"}),
        answer(""),
        "A content that is a list without parts says nothing.",
    ),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_a_message_is_sent_otherwise_for_a_reason(env: Env, name: str) -> None:
    """A message of this table is sent as it says, and not as `ChatOpenAI` sends it."""
    message, expected, _reason = OTHERWISE[name]
    before = message.model_dump()

    assert sent_by(env.llm(), env, env.gateway, message) == expected
    assert message.model_dump() == before
    theirs: Any = None
    with contextlib.suppress(ValueError):
        theirs = sent_by(chat_openai(env.gateway), env, env.gateway, message)
    assert theirs != expected


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (user({"type": "hologram"}), "'user'.*'hologram'.*non_standard"),
        (user({"nothing": 1}), "'user'.*None"),
        (user({"type": "text"}), "'text'"),
        (user({"type": "video", "url": URL}), "'video'"),
        (user({"type": "file", "url": URL}), "'file'.*does not support file URLs"),
        (user({"type": "image", "file_id": "file-1"}), "'image'"),
        (user({"type": "audio", "url": URL}), "'audio'.*base64"),
        (user({"type": "thinking", "thinking": "hm"}), "'thinking'"),
        (user({"type": "tool_use", "id": "1", "name": "f", "input": {}}), "'tool_use'"),
        (SystemMessage([{"type": "hologram"}]), "'system'.*'hologram'"),
        (tool([{"type": "hologram"}]), "'tool'.*'hologram'"),
        (RemoveMessage("1"), "'remove'"),
        (AIMessage("", tool_calls=[{**CALL, "args": {"a": {1}}}]), "'ai'"),
        (ai({**TOOL_USE, "input": {"a": {1}}}), "'ai'.*set"),
        (tool([{"a": {1}}]), "'tool'.*set"),
    ],
)
def test_content_that_cannot_be_sent_is_an_error(
    env: Env, message: BaseMessage, told: str
) -> None:
    """A block or message that cannot be sent is named, and nothing is sent."""
    with pytest.raises(UnsupportedOptionError, match=told):
        env.invoke(env.llm(), [message])

    assert env.gateway.requests == []


# --- blocks of answers ---


CITED: list[Any] = [
    "https://example.com/a",
    "The Book",
    {
        "type": "url_citation",
        "url_citation": {
            "url": "https://example.com/b",
            "title": "B",
            "start_index": 0,
            "end_index": 4,
            "of_the_provider": 1,
        },
    },
    {"index": 1, "of_the_provider": True},
    5,
]
ANNOTATIONS = [
    {"type": "citation", "url": "https://example.com/a"},
    {"type": "citation", "title": "The Book"},
    {
        "type": "citation",
        "url": "https://example.com/b",
        "title": "B",
        "start_index": 0,
        "end_index": 4,
        "extras": {"of_the_provider": 1},
    },
    {"type": "non_standard_annotation", "value": {"index": 1, "of_the_provider": True}},
    {"type": "non_standard_annotation", "value": {"citation": 5}},
]
CHUNKED_CALL = {"name": "f", "arguments": '{"a": 1}'}
BLOCKS = [
    {"type": "reasoning", "reasoning": "Hm, well."},
    {"type": "text", "text": "So it is.", "annotations": ANNOTATIONS},
    {"type": "tool_call", "id": "call_0", "name": "f", "args": {"a": 1}},
]


STREAM = event_stream(
    update(reasoning_content="Hm, "),
    update(thinking="well."),
    update(text="So it ", citations=CITED[:2]),
    update(text="is.", citations=CITED[1:4]),
    update(tool_calls=[{"index": 0, "id": "call_0", "function": {"name": "f"}}]),
    update(tool_calls=[{"index": 0, "function": {"arguments": '{"a": '}}]),
    update(tool_calls=[{"index": 0, "function": {"arguments": "1}"}}]),
    update(finish_reason="tool_calls"),
    event("meta", {"model": "m"}, citations=CITED[4:]),
    END,
)
CHOICE = {
    "index": 0,
    "text": "So it is.",
    "finish_reason": "tool_calls",
    "reasoning_content": "Hm, well.",
    "tool_calls": [{"id": "call_0", "function": CHUNKED_CALL}],
    "citations": CITED[2:],
}
WHOLE = whole(CHOICE, citations=CITED[:2])


def without_index(blocks: list[Any]) -> list[Any]:
    return [{k: v for k, v in one.items() if k != "index"} for one in blocks]


def by_url(citations: list[Any]) -> list[str]:
    return sorted(map(repr, citations))


@pytest.mark.parametrize("output_version", ["v0", "v1"])
@pytest.mark.parametrize("way", [*WAYS, "inside"])
def test_an_answer_has_all_its_blocks(env: Env, way: str, output_version: str) -> None:
    """Reasoning, cited text and calls are blocks, streamed or not, in both versions."""
    streamed = way != "invoke"
    env.gateway.script(
        *[Status(500)] * (way == "inside"), STREAM if streamed else WHOLE
    )

    message = env.ask(way, output_version=output_version)

    blocks = [{**block} for block in message.content_blocks]
    if output_version == "v1":
        assert message.content == blocks
    else:
        assert message.content == "So it is."
    blocks, citations = without_index(blocks), message.response_metadata["citations"]
    if streamed:
        assert (blocks, citations) == (BLOCKS, CITED)
    else:  # The same sources in another order.
        assert by_url(blocks[1].pop("annotations")) == by_url(ANNOTATIONS)
        assert blocks == [BLOCKS[0], {"type": "text", "text": "So it is."}, BLOCKS[2]]
        assert by_url(citations) == by_url(CITED)
    assert message.text == "So it is."
    assert message.tool_calls == [BLOCKS[2]]


def test_each_chunk_has_its_blocks(env: Env) -> None:
    """The index of a chunk's block says which block it is added to."""
    env.gateway.always(STREAM)

    chunks = env.stream(env.llm(), "hi")

    seen = [block for chunk in chunks for block in chunk.content_blocks]
    assert [(block["type"], block["index"]) for block in seen] == [
        ("reasoning", "lc_rs_0"),
        ("reasoning", "lc_rs_0"),
        ("text", "lc_txt_0"),
        ("text", "lc_txt_0"),
        ("tool_call_chunk", "lc_tc_0"),
        ("tool_call_chunk", "lc_tc_0"),
        ("tool_call_chunk", "lc_tc_0"),
        ("text", "lc_txt_0"),
    ]
    assert seen[-1]["annotations"] == ANNOTATIONS


def test_a_stream_that_delivered_reasoning_is_not_retried(env: Env) -> None:
    """A stream whose reasoning the caller has seen is not retried."""
    env.gateway.always(event_stream(update(reasoning_content="Hm, ")))
    chunks: list[Any] = []

    with pytest.raises(StreamInterruptedError) as caught:
        env.stream(env.llm(), "hi", into=chunks)

    assert [chunk.additional_kwargs for chunk in chunks] == [
        {"reasoning_content": "Hm, "}
    ]
    assert caught.value.delivered == ""
    assert len(env.gateway.requests) == 1


UNREADABLE = {"id": "b", "function": {**CHUNKED_CALL, "arguments": "no"}}
INVALID_BLOCK = {"type": "invalid_tool_call", "id": "b", "name": "f", "args": "no"}


def test_calls_without_an_id_and_unreadable_calls_are_blocks(env: Env) -> None:
    """A call without an id, or with arguments that are not JSON, is a block too."""
    calls = [{"function": CHUNKED_CALL}, UNREADABLE]
    env.gateway.always(whole({"text": "", "tool_calls": calls}))

    call, invalid = env.ask("invoke").content_blocks

    assert call == {"type": "tool_call", "id": None, "name": "f", "args": {"a": 1}}
    assert invalid == {**invalid, **INVALID_BLOCK}


@pytest.mark.parametrize(
    ("said", "block"),
    [
        ({"reasoning": "Hm."}, {"type": "reasoning", "reasoning": "Hm."}),
        ({"tool_calls": [UNREADABLE]}, {**INVALID_BLOCK, "error": None}),
    ],
)
def test_a_sum_without_text_has_whole_blocks(
    env: Env, said: dict[str, Any], block: dict[str, Any]
) -> None:
    """The sum of a stream without text has the blocks of a whole message."""
    env.gateway.always(event_stream(update(**said), update(finish_reason="stop"), END))

    assert env.ask("stream").content_blocks == [block]
