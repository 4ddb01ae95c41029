"""What another provider gets to read of a conversation, and what it is spared."""

import copy
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_openai import AzureChatOpenAI, ChatOpenAI
from pydantic import SecretStr

from langchain_retryrouter import (
    GPTRouter,
    GPTRouterModel,
    InvalidRequestError,
    RetryRouter,
)
from langchain_retryrouter._providers import history as histories
from langchain_retryrouter._providers.history import foreign_response_id
from langchain_retryrouter._providers.integrations import Reader, family, reader_of
from langchain_retryrouter.testing import Answer, FaultyGateway, Status
from tests.support.models import chat_openai

from .attempts import Way, ask, every_way

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
    if author is not None:
        metadata["model_provider"] = author
    return AIMessage(
        content=content,
        tool_calls=[CALL] if calls else [],
        additional_kwargs=kwargs or {},
        response_metadata=metadata,
    )


def fit_history(
    messages: list[BaseMessage], reader: Reader | str, *args: Any, **kwargs: Any
) -> tuple[list[BaseMessage], tuple[str, ...]]:
    """What a reader, or any model of a provider, is sent, and what is left out."""
    if isinstance(reader, str):
        reader = Reader(family(reader))
    return histories.fit_history(messages, reader, *args, **kwargs)


def block(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, **fields}


def called(*ids: str | None, author: str | None = None, content: Any = "") -> AIMessage:
    """An answer that calls `search` under each of these ids."""
    calls: list[Any] = [{**CALL, "args": {}, "id": one} for one in ids]
    facts = {"model_provider": author} if author else {}
    return AIMessage(content, tool_calls=calls, response_metadata=facts)


WEB_FETCH = block("non_standard", value=block("web_fetch_tool_result"))
FUNCTION_CALL = block("function_call", id="fc_1", call_id="call_1", name="search")
IDS = {"__openai_function_call_ids__": {"call_1": "fc_1"}}


# The content of an answer, what is kept of it, and what is said to be left out.
OF_ANTHROPIC = [
    ([THINKING, TEXT], "Hello.", "thinking"),
    ([block("redacted_thinking")], "", "redacted_thinking"),
    ([{**TEXT, "citations": [1]}], "Hello.", "citations"),
    (
        [block("server_tool_use", id="s"), block("web_search_tool_result"), TEXT],
        *("Hello.", "server_tool_use web_search_tool_result"),
    ),
    ([TEXT, block("tool_use", id="call_1")], "Hello.", ""),
    ([THINKING], "", "thinking"),
    ([THINKING, "Hel", "lo."], "Hello.", "thinking"),
    ([block("new", what=1), TEXT], "Hello.", "new"),
    ([WEB_FETCH, TEXT], "Hello.", "web_fetch_tool_result"),
]
OF_OPENAI = [
    ([REASONING, TEXT], "Hello.", "reasoning"),
    ([{**TEXT, "id": "m", "annotations": []}], "Hello.", ""),
    ([{**TEXT, "annotations": [block("url_citation")]}], "Hello.", "annotations"),
    ([FUNCTION_CALL], "", ""),
    ([block("web_search_call")], "", "web_search_call"),
    ([block("refusal", refusal="No.")], "No.", ""),
]
READ: list[tuple[Any, ...]] = [
    *(("anthropic", "openai", said, {}, *kept) for said, *kept in OF_ANTHROPIC),
    *(("openai", "anthropic", said, {}, *kept) for said, *kept in OF_OPENAI),
    ("openai", "anthropic", "Hi", {"reasoning": {"id": "rs_1"}}, "Hi", "reasoning"),
    ("openai", "groq", "Hi", {"reasoning_content": "a"}, "Hi", "reasoning_content"),
    ("openai", "anthropic", "", IDS, "", ""),
    # Without an author only thoughts and what has one provider's form are foreign.
    (None, "openai", [THINKING, TEXT], {}, "Hello.", "thinking"),
    (None, "anthropic", [REASONING, TEXT], {}, "Hello.", "reasoning"),
    (None, "openai", [block("reasoning_content")], {}, "", "reasoning_content"),
    (None, "openai", [THINKING, block("new")], {}, [block("new")], "thinking"),
    (None, "openai", "Hi", {"reasoning_content": "a"}, "Hi", "reasoning_content"),
    (None, "sambanova", [block("reasoning", reasoning="a")], {}, "", "reasoning"),
]


@pytest.mark.parametrize("row", READ, ids=str)
def test_what_another_provider_reads_of_an_answer(row: Any) -> None:
    """Text and tool calls, and of unknown authors what has no owner."""
    author, reader, content, kwargs, kept, left_out = row
    given_message = answer(content, author, calls=True, kwargs=kwargs)
    [fitted], told = fit_history([given_message], reader)
    assert isinstance(fitted, AIMessage)
    assert (fitted.content, fitted.additional_kwargs) == (kept, {})
    assert fitted.tool_calls == given_message.tool_calls
    assert " ".join(told) == left_out


@pytest.mark.parametrize("author", ["openai", "anthropic", None])
@pytest.mark.parametrize("content", ["Hello.", ["Hello."]])
def test_text_is_not_called_standard_blocks(author: str | None, content: Any) -> None:
    """A reader that believes it would send an empty message; streams say so of text."""
    message = answer(content, author, output_version="v1")
    [fitted], left_out = fit_history([message], "openai")
    assert "output_version" not in fitted.response_metadata
    assert (fitted.text, left_out) == (message.text, ())
    blocks = answer([TEXT], author, output_version="v1")
    assert fit_history([blocks], "openai")[0] == [blocks]


@pytest.mark.parametrize(
    ("message", "provider"),
    [
        (answer([THINKING, {**TEXT, **MARK}], "anthropic"), "anthropic"),
        (answer([REASONING, TEXT], "openai"), "openai"),
        (answer([REASONING, TEXT], "openai"), "azure"),
        (answer([block("reasoning_content")], "bedrock_converse"), "bedrock_converse"),
        (answer([THINKING, TEXT]), "anthropic"),
        (answer([REASONING, TEXT]), "openai"),
        (answer([TEXT, {"type": "a_new_block"}]), "openai"),
        (answer("Hello.", "anthropic"), "openai"),
        (answer("", "anthropic", calls=True), "openai"),
        (answer([TEXT], "anthropic"), "openai"),
        (answer("", "anthropic"), "openai"),
        (called("functions.search:0", author="moonshot"), "moonshot"),
        (HumanMessage("hi"), "openai"),
        (HumanMessage([TEXT, block("image_url", image_url={"url": "x"})]), "openai"),
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


BY_HAND = block("tool_use", id="by_hand", name="f", input={})
ASKED, AGAIN = HumanMessage("hi"), HumanMessage("And?")


@pytest.mark.parametrize(
    ("history", "contents", "left_out"),
    [
        # A message built by hand may have its call nowhere else.
        ([answer([THINKING, BY_HAND], "anthropic")], [[BY_HAND]], ("thinking",)),
        # An empty message is refused by most, and says nothing.
        (
            [ASKED, answer([THINKING], "anthropic"), AGAIN],
            ["hi", "And?"],
            ("thinking",),
        ),
        # Each kind is told once, in the order in which it went.
        (
            [
                answer([THINKING, TEXT], "anthropic"),
                HumanMessage([{**TEXT, **MARK}]),
                answer([THINKING, TEXT], "anthropic"),
            ],
            ["Hello.", [TEXT], "Hello."],
            ("thinking", "cache_control"),
        ),
    ],
    ids=["call", "empty", "once"],
)
def test_what_is_left_of_a_conversation(
    history: list[BaseMessage], contents: list[Any], left_out: tuple[str, ...]
) -> None:
    """A call stays, an empty message goes, and what was left out is told."""
    fitted, told = fit_history(history, "openai")
    assert [message.content for message in fitted] == contents
    assert told == left_out


# Accounts.

ONE, OTHER = (Reader("openai", account) for account in ("one", "other"))
OTHERS = {name: Reader(name, "one") for name in ("anthropic", "together")}
AUTHORS = {"a": ONE, "b": OTHER, **OTHERS}


def served(content: Any, route: str, **fields: Any) -> AIMessage:
    return answer(content, retryrouter={"route": route}, **fields)


@pytest.mark.parametrize(
    ("route", "author", "content", "left_out"),
    [
        ("a", "openai", [REASONING, TEXT], ()),
        ("a", None, [REASONING, TEXT], ()),
        ("b", "openai", "Hello.", ("reasoning",)),
        ("b", None, "Hello.", ("reasoning",)),
        ("another router's", "openai", [REASONING, TEXT], ()),
        # `ChatTogether` is made of `ChatOpenAI`, and names OpenAI.
        ("together", "openai", "Hello.", ("reasoning",)),
    ],
)
def test_items_of_another_account_are_left_out(
    route: str, author: str | None, content: Any, left_out: tuple[str, ...]
) -> None:
    """Ids and encrypted thoughts belong to an organisation or an Azure region."""
    said = served([REASONING, TEXT], route, author=author, id="resp_1")
    [fitted], told = fit_history([said], ONE, AUTHORS)
    assert (fitted.content, told) == (content, left_out)
    assert ("id" in fitted.response_metadata) == (not left_out)
    # Signatures of Anthropic's hold on every platform.
    signed = served([THINKING, TEXT], "anthropic", author="anthropic")
    reader = Reader("anthropic", "other")
    assert fit_history([signed], reader, AUTHORS)[0] == [signed]


def test_an_account_is_key_address_and_region() -> None:
    """Two models of one key are one author; another key, or region, is another."""
    key = SecretStr("sk")
    models = [
        ChatOpenAI(model=name, api_key=key, base_url=url, organization=organization)
        for name, url, organization in (
            ("gpt-4o", None, None),
            ("gpt-5", None, None),
            ("gpt-4o", None, "org-2"),
            ("gpt-4o", "http://127.0.0.1/v1", None),
        )
    ]
    first, same, *others = [reader_of(model) for model in models]
    assert first == same
    assert all(other != first for other in others)


# Ids of tool calls.


@pytest.mark.parametrize(
    ("reader", "pattern"),
    [
        ("openai", r".{1,40}"),
        ("anthropic", r"[a-zA-Z0-9_-]+"),
        ("amazon_bedrock", r"[a-zA-Z0-9_-]{1,64}"),
        ("mistralai", r"[a-zA-Z0-9]{9}"),
        ("groq", r"[a-zA-Z0-9_-]{1,40}"),
    ],
)
def test_ids_are_such_as_the_reader_takes(reader: str, pattern: str) -> None:
    """Length, characters and uniqueness are made right, for call and result alike."""
    given = ["functions.search:0", "x" * 46, "ok", "ok", None]
    history: list[BaseMessage] = []
    for one in given:
        content = [block("tool_use", id=one, name="search", input={})]
        said = called(one, author="moonshot", content=content)
        history += [said, ToolMessage("found", tool_call_id=one or "")]

    fitted, left_out = fit_history(history, reader)

    ids = [m.tool_calls[0]["id"] for m in fitted if isinstance(m, AIMessage)]
    assert ids == [m.tool_call_id for m in fitted if isinstance(m, ToolMessage)]
    assert all(re.fullmatch(pattern, str(one)) for one in ids)
    assert len(set(ids)) == len(ids)
    assert left_out == ()
    assert fit_history(history, reader) == (fitted, ())


def test_results_of_calls_with_one_id_keep_their_order() -> None:
    """A provider that gives each call of an answer the same id is understood."""
    results = [ToolMessage(one, tool_call_id="call_0") for one in ("of a", "of b")]
    said = called("call_0", "call_0", author="ollama")
    fitted, _ = fit_history([said, *results], "openai")
    ids = [call["id"] for call in fitted[0].tool_calls]  # type: ignore[attr-defined]
    assert [m.tool_call_id for m in fitted[1:]] == ids  # type: ignore[attr-defined]
    assert len(set(ids)) == 2


# Forms.

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,eA=="}}


@pytest.mark.parametrize(
    "image",
    [
        IMAGE,
        block("image", base64="eA==", mime_type="image/png"),
        block("image", source=block("base64", media_type="image/png", data="eA==")),
    ],
    ids=["OpenAI's", "LangChain's", "Anthropic's"],
)
@pytest.mark.parametrize("reader", ["openai", "one_that_is_not_known"])
def test_images_of_a_tool_follow_in_a_users_message(
    image: dict[str, Any], reader: str
) -> None:
    """Most take only text as the result of a tool, and OpenAI's form from the user."""
    said = called("call_1", "call_2", author="anthropic")
    results = [
        ToolMessage([TEXT, image], tool_call_id="call_1", name="look"),
        ToolMessage([image], tool_call_id="call_2"),
    ]
    fitted, left_out = fit_history([said, *results, AGAIN], reader)

    assert [message.type for message in fitted] == (
        ["ai", "tool", "tool", "human", "human"]
    )
    assert fitted[1].content == "Hello."
    assert isinstance(fitted[2].content, str)
    assert fitted[3].content[1::2] == [IMAGE, IMAGE]
    assert left_out == (f"tool_result.{image['type']}",)
    kept, _ = fit_history([said, *results, AGAIN], "anthropic")
    assert kept[1:3] == results
    asked = HumanMessage([TEXT, image])
    assert fit_history([asked], reader)[0] == [asked]
    assert fit_history([asked], "cohere")[0][0].content == [TEXT, IMAGE]


@pytest.mark.parametrize("is_strict", [True, False])
@pytest.mark.parametrize("reader", ["mistral", "openai"])
def test_an_answer_stands_between_a_result_and_the_user(
    reader: str, is_strict: bool
) -> None:
    """Mistral refuses a user's message right after a tool's result."""
    result = ToolMessage("found", tool_call_id="Ab1Cd2Ef3")
    history = [called("Ab1Cd2Ef3", author=reader), result, AGAIN]

    fitted, left_out = fit_history(history, reader, is_strict=is_strict)

    is_needed = is_strict or reader == "mistral"
    assert [one.type for one in fitted[2:]] == ["ai"] * is_needed + ["human"]
    assert ("order" in left_out) == is_needed


@pytest.mark.parametrize(
    ("name", "fit"),
    [("Jane Doe", "Jane_Doe"), (" a<b>\\ ", "a_b_"), ("Zoë", "Zoë"), (" ", None)],
)
def test_names_with_blanks_are_rewritten(name: str, fit: str | None) -> None:
    """OpenAI's pattern of names forbids blanks and a few signs."""
    [fitted], left_out = fit_history([HumanMessage("hi", name=name)], "openai")
    assert fitted.name == fit
    assert left_out == (() if fit == name else ("name",))


def test_calls_in_the_legacy_form_are_rewritten() -> None:
    """`function_call` is OpenAI's alone; others get a tool call and its result."""
    legacy = {"name": "search", "arguments": '{"q": "a"}'}
    history = [
        AIMessage("", additional_kwargs={"function_call": legacy}),
        FunctionMessage(content="found", name="search"),
    ]
    fitted, left_out = fit_history(history, "anthropic")
    assert fitted[0].tool_calls[0]["args"] == {"q": "a"}  # type: ignore[attr-defined]
    assert fitted[1].tool_call_id == "call_search"  # type: ignore[attr-defined]
    assert left_out == ("function_call",)
    assert fit_history(history, "openai") == (history, ())
    beside = answer("", calls=True, kwargs={"function_call": legacy})
    [fitted_too], _ = fit_history([beside], "groq")
    assert fitted_too.additional_kwargs == {}


def test_nvidia_reads_calls_from_kwargs() -> None:
    """Its integration reads `additional_kwargs` alone."""
    [fitted], _ = fit_history([answer("", "openai", calls=True)], "NVIDIA")
    (call,) = fitted.additional_kwargs["tool_calls"]
    assert call["id"] == "call_1"
    assert json.loads(call["function"]["arguments"]) == {"q": "a"}


# Rejections.


@every_way
@pytest.mark.parametrize(
    "fault",
    [
        Status(400, error_code="invalid_encrypted_content"),
        Status(404, message="Item with id 'rs_1' not found."),
    ],
    ids=["encrypted", "item"],
)
def test_a_rejected_item_is_left_out_once(way: Way, fault: Status) -> None:
    """The route is asked again without what only an author can read, in one attempt."""
    with FaultyGateway(answer=Answer("Well.")) as gateway:
        gateway.script(fault)
        router = RetryRouter(routes=[chat_openai(gateway)])
        said = answer([{"type": "new_item", "id": "rs_1"}, TEXT], "openai", id="resp_1")
        chunks = ask(way, router, [ASKED, said, AGAIN], stop=None)
        sent = [request.payload["messages"] for request in gateway.requests]
    assert [len(one[1]["content"]) for one in sent] == [2, len("Hello.")]
    log = chunks[-1].message.response_metadata["retryrouter"]
    (attempt,) = log["attempts"]
    assert attempt["left_out"] == ["new_item"]
    assert "rejected" in attempt


@every_way
def test_a_rejected_request_without_items_is_not_repeated(way: Way) -> None:
    """Where nothing can be left out, a 400 is the answer."""
    with FaultyGateway() as gateway:
        gateway.always(Status(400))
        router = RetryRouter(routes=[chat_openai(gateway)])
        with pytest.raises(InvalidRequestError):
            ask(way, router)
        assert len(gateway.requests) == 1


def test_the_id_of_another_accounts_response_is_not_sent() -> None:
    """`previous_response_id` is known to one account, of a provider that keeps them."""
    history = [served("Hello.", "b", author="openai", id="resp_1"), HumanMessage("hi")]
    ids = ("resp_1", "resp_2")
    known = [foreign_response_id(one, history, ONE, AUTHORS) for one in ids]
    assert known == [True, False]
    assert foreign_response_id("resp_2", history, Reader("anthropic"), AUTHORS)
    assert not foreign_response_id("resp_2", history, Reader("xai"), AUTHORS)


class Converse(GenericFakeChatModel):
    """As `ChatBedrockConverse` names itself."""

    @property
    def _llm_type(self) -> str:
        return "amazon_bedrock_converse_chat"

    def _get_ls_params(self, *_: Any, **__: Any) -> Any:
        return {"ls_provider": "amazon_bedrock"}


def test_the_provider_of_a_model() -> None:
    """Each integration's provider is named as its messages name their author."""
    key = SecretStr("any")
    azure = AzureChatOpenAI(
        azure_endpoint="http://127.0.0.1", api_key=key, api_version="1", model="m"
    )
    own = GPTRouterModel(name="gpt-4o", provider_name="openai")
    router = GPTRouter(models_priority_list=[own], gpt_router_api_key=key)
    fakes = [cls(messages=iter(())) for cls in (GenericFakeChatModel, Converse)]
    found = [reader_of(model).provider for model in (azure, router, *fakes)]
    assert found[:3] == ["openai", "gptrouter", "genericfakechatmodel"]
    assert found[3] == "bedrock_converse"


# Whatever comes.

NAMES = (
    *("text", "thinking", "reasoning", "tool_use", "function_call", "image"),
    *("refusal", "server_tool_use", "non_standard", "reasoning_content"),
    *("web_search_call", "new"),
)
names = st.sampled_from(NAMES)
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
    fitted, left_out = fit_history(conversation, reader)
    assert conversation == before
    is_moved = any(kind.startswith("tool_result.") for kind in left_out)
    refusals = [
        block
        for message in conversation
        if isinstance(message.content, list)
        for block in message.content
        if isinstance(block, dict) and block.get("type") == "refusal"
    ]
    # Refusals become text, where they are another provider's; moved images get a title.
    if not refusals and not is_moved:
        assert text_of(fitted) == text_of(before)
    calls, kept = (
        [call for m in some if isinstance(m, AIMessage) for call in m.tool_calls]
        for some in (before, fitted)
    )
    assert [(c["name"], c["args"]) for c in kept] == [
        (c["name"], c["args"]) for c in calls
    ]
    assert len({call["id"] for call in kept}) == len(kept)
    results = [m for m in before if isinstance(m, ToolMessage)]
    assert len([m for m in fitted if isinstance(m, ToolMessage)]) == len(results)
    again, left_out = fit_history(fitted, reader)
    assert all(one is other for one, other in zip(again, fitted, strict=True))
    assert left_out == ()
