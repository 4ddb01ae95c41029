"""Which answers are whole, empty, refused or cut, and when a stream is committed."""

from functools import partial
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_openai import ChatOpenAI
from tenacity import RetryCallState

from langchain_retryrouter import (
    ContentFilterError,
    MalformedResponseError,
    RetryPolicy,
    RetryRouterError,
    Route,
    StreamInterruptedError,
)
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Answer,
    FakeClock,
    FaultyGateway,
    MissingDone,
    Step,
    ToolCall,
    Truncate,
)
from tests.support.models import chat_openai

from .anthropic_wire import END, TEXT, after_the_beginning, chat_anthropic
from .attempts import (
    WAYS,
    Scripted,
    Way,
    ask,
    error_of,
    every_way,
    message_of,
    of_package,
    outcomes,
    router_of,
    text_of,
)

STREAMS = [way for way in WAYS if way.is_streaming]
streaming = pytest.mark.parametrize("way", STREAMS, ids=str)


def chunk(
    content: Any = "", facts: dict[str, Any] | None = None, **fields: Any
) -> AIMessageChunk:
    """A chunk whose provider says these facts of its end."""
    return AIMessageChunk(content=content, response_metadata=facts or {}, **fields)


def calling(args: str, **fields: Any) -> AIMessageChunk:
    """A chunk that begins a call of `f`."""
    call = tool_call_chunk(name="f", args=args, id="1", index=0)
    return chunk(**{"tool_call_chunks": [call], **fields})


CALL = calling("{}")


STOP = {"finish_reason": "stop"}
LEGACY_CALL = {"function_call": {"name": "f"}}
BACKUP = Scripted(chunks=[chunk("the backup", chunk_position="last")])


INCOMPLETE = {"object": "response", "status": "incomplete"}
NAMED: list[dict[str, Any]] = [
    {"finish_reason": "stop"},
    {"finish_reason": "STOP"},
    {"finish_reason": "length", "model_name": "m"},
    {"stop_reason": "end_turn", "stop_sequence": None},
    {"stopReason": "tool_use"},
    {"done": True, "done_reason": "stop"},
    {"object": "response", "status": "completed"},
    {**INCOMPLETE, "incomplete_details": {"reason": "max_output_tokens"}},
    {"normalized_finish_reason": "stop"},
    {"finish_state": "incomplete", "finish_reason": "length"},
]
UNNAMED: list[dict[str, Any]] = [
    {"object": "response", "status": "in_progress"},
    {"object": "response", "status": "failed"},
    {"status": "completed"},
    {"done": False, "done_reason": None},
    {"stop_reason": None},
    *(
        {"finish_reason": reason}
        for reason in (
            *("", "error", "cancelled", "FINISH_REASON_UNSPECIFIED", "null", "None"),
            *("FinishReason.FINISH_REASON_UNSPECIFIED", "FinishReason.OTHER"),
            *("FinishReason.MALFORMED_FUNCTION_CALL", "insufficient_system_resource"),
            *("abort", "UNEXPECTED_TOOL_CALL", "network_error", "quota_exceeded"),
            *("preempted", "deadline_exceeded", "disconnected", "killed"),
        )
    ),
    {"stopReason": "malformed_tool_use"},
    {"normalized_finish_reason": "error", "finish_reason": "stop"},
    {"finish_state": "failed", "finish_reason": "stop"},
    {"finish_state": "incomplete"},
    {"model_provider": "openai"},
    {},
]


@every_way
@pytest.mark.parametrize("facts", [*NAMED, *UNNAMED], ids=str)
def test_every_name_of_a_finish_reason_is_known(
    way: Way, facts: dict[str, Any]
) -> None:
    """An answer that names none, in any integration's words, is not trusted."""
    model = Scripted(chunks=[chunk("Hi", facts)])
    route = Route(model=model, sends_finish_reason=True)
    router = router_of(route, BACKUP, stream_recovery="buffer")
    assert text_of(way, router) == ("Hi" if facts in NAMED else "the backup")


SIGNED = {"type": "text", "text": "", "extras": {"signature": "c2ln"}}
CITING = {"type": "text", "text": " ", "annotations": [{"url": "a"}]}


@every_way
@pytest.mark.parametrize("content", ["", [], " \n", [SIGNED], [CITING]], ids=str)
@pytest.mark.parametrize("reason", ["stop", "end_turn", "stop_sequence"])
def test_only_a_stop_sequence_makes_an_empty_answer_whole(
    way: Way, content: Any, reason: str
) -> None:
    """Signatures, citations and white space are no answer."""
    empty = Scripted(chunks=[chunk(content, {"stop_reason": reason})])
    text = text_of(way, router_of(empty, BACKUP))
    assert text.strip() == ("" if reason == "stop_sequence" else "the backup")


REFUSALS: list[dict[str, Any]] = [
    {"finish_reason": "content_filter"},
    {"finish_reason": "SAFETY"},
    {"finish_reason": "PROHIBITED_CONTENT"},
    {"stop_reason": "refusal"},
    {"stopReason": "guardrail_intervened"},
    {"normalized_finish_reason": "refusal", "finish_reason": "stop"},
    {"normalized_finish_reason": "content_filter", "finish_reason": "other"},
    {"finish_reason": "MODEL_ARMOR"},
    {"finish_reason": "sensitive"},
    {"finish_reason": "blacklist"},  # GigaChat's.
    {"finish_reason": "unsafe"},
    {"prompt_feedback": {"block_reason": 1}, "finish_reason": ""},
    {**INCOMPLETE, "incomplete_details": {"reason": "content_filter"}},
]


@every_way
@pytest.mark.parametrize("content", ["", "half an answer"], ids=["empty", "half"])
@pytest.mark.parametrize("facts", REFUSALS, ids=str)
def test_a_refused_answer_is_a_content_filter_error(
    way: Way, content: str, facts: dict[str, Any]
) -> None:
    """A refusal inside a 200 is raised, unless the caller has another route asked."""
    refused = Scripted(chunks=[chunk(content, facts)])
    with pytest.raises(ContentFilterError):
        raise error_of(way, router_of(refused, BACKUP))
    if not content:
        router = router_of(refused, BACKUP, failover_on={"content_filter": "failover"})
        assert text_of(way, router) == "the backup"


@every_way
@pytest.mark.parametrize(
    "message",
    [
        chunk("", STOP, additional_kwargs={"refusal": "I will not."}),
        chunk([{"type": "refusal", "refusal": "I will not."}], STOP),
    ],
    ids=["completions", "responses"],
)
def test_a_model_that_refuses_is_quoted(way: Way, message: AIMessageChunk) -> None:
    """OpenAI's own field for a refusal is one as well; nothing of it is streamed."""
    with pytest.raises(ContentFilterError, match=r"I will not\."):
        raise error_of(way, router_of(Scripted(chunks=[message]), BACKUP))


EMPTY = [
    [chunk("", STOP)],
    [chunk([], STOP)],
    [chunk()],
    [chunk([{"type": "text", "text": "", "index": 0}])],
    [],  # A stream without a chunk, or an empty result.
]
SEEN = [
    [chunk(" \n", STOP)],
    [chunk([{"type": "reasoning", "reasoning": "hm"}], STOP)],
]


@every_way
@pytest.mark.parametrize("chunks", [*EMPTY, *SEEN], ids=repr)
def test_an_empty_answer_is_a_failure(way: Way, chunks: list[AIMessageChunk]) -> None:
    """No text and no tool call: the route is asked again, then the next one.

    A stream has handed white space and thoughts over already: the answer comes behind.
    """
    empty = Scripted(chunks=chunks)
    parts = ask(way, router_of(empty, BACKUP, retries=1))
    assert "".join(part.text for part in parts).strip() == "the backup"
    if chunks:
        is_seen = way.is_streaming and chunks in SEEN
        assert outcomes(parts) == ["malformed"] * (1 if is_seen else 2) + ["ok"]
        with pytest.raises(MalformedResponseError, match="no text and no tool call"):
            raise error_of(way, router_of(empty))


@streaming
def test_a_stream_that_breaks_within_its_thoughts_is_answered(way: Way) -> None:
    """Another attempt answers anew, its thoughts stay apart; a call is not repeated."""
    block: dict[str, Any] = {"type": "thinking", "thinking": "hm", "index": 0}
    thought, signed = chunk([block]), chunk([{**block, "signature": "c2ln"}])
    text = chunk([{"type": "text", "text": "hello", "index": 1}])
    first = Scripted(chunks=[thought], breaks=True)
    whole = message_of(way, router_of(first, Scripted(chunks=[signed, text])))
    blocks = [{**one, "index": 0} for one in whole.content if isinstance(one, dict)]
    assert blocks[:2] == [block, {**block, "signature": "c2ln"}]
    assert blocks[2]["text"] == "hello"

    call = chunk(additional_kwargs=LEGACY_CALL)
    with pytest.raises(StreamInterruptedError):
        raise error_of(way, router_of(Scripted(chunks=[call], breaks=True), BACKUP))


@every_way
@pytest.mark.parametrize(
    "message",
    [
        chunk("", {"finish_reason": "length"}),
        chunk([{"type": "image", "url": "https://a/b"}]),
        CALL,
        chunk(additional_kwargs=LEGACY_CALL),
    ],
    ids=["length", "image", "tool", "legacy-tool"],
)
def test_an_answer_without_text_may_be_whole(way: Way, message: AIMessageChunk) -> None:
    """The caller's own limit, an image, or a tool call alone is an answer."""
    answer = ask(way, router_of(Scripted(chunks=[message]), BACKUP))
    assert [part.text for part in answer if part.text] == []


CUT_CALL: dict[str, Any] = {"name": "delete", "args": '{"path": "/srv/a/cac', "id": "1"}


@streaming
@pytest.mark.parametrize(
    ("first", "rest", "is_whole"),
    [
        ('{"a":', "1}", True),
        ("", "", True),
        ("[1", "]", False),
        ('"{}', '"', False),
        ('{"a":', "", False),
    ],
)
def test_a_tool_call_may_begin_beside_text(
    way: Way, first: str, rest: str, is_whole: bool
) -> None:
    """Its arguments are those of all chunks, and must be an object."""
    chunks = [
        calling(first, content="Look. "),
        chunk(tool_call_chunks=[tool_call_chunk(args=rest, index=0)]),
        chunk("", {"finish_reason": "tool_calls"}),
    ]
    router = router_of(Scripted(chunks=chunks), stream_recovery="buffer")
    if is_whole:
        assert text_of(way, router) == "Look. "
    else:
        with pytest.raises(MalformedResponseError, match="arguments of f are not JSON"):
            raise error_of(way, router)


@every_way
@pytest.mark.parametrize(
    ("reason", "kind"), [("tool_calls", "malformed"), ("length", "length")]
)
def test_a_tool_call_that_is_no_json_is_a_failure(
    way: Way, reason: str, kind: str
) -> None:
    """LangChain completes arguments that were cut; here nobody acts on them."""
    end = chunk("", {"finish_reason": reason})
    cut = tool_call_chunk(**CUT_CALL, index=0)
    chunks: list[Any] = [chunk(tool_call_chunks=[cut]), end]
    if not way.is_streaming:
        invalid: Any = {**CUT_CALL, "type": "invalid_tool_call", "error": None}
        chunks = [AIMessage("", invalid_tool_calls=[invalid])]
        chunks[0].response_metadata = end.response_metadata
    error = error_of(way, router_of(Scripted(chunks=chunks)))
    assert isinstance(error, RetryRouterError)
    assert (error.kind, "/srv/a/cac" in str(error)) == (kind, True)


# --- which chunk commits a route ---


TOKENS = [
    chunk("word"),
    chunk([{"type": "text", "text": "a", "index": 0}]),
    chunk([{"type": "thinking", "thinking": "hm"}]),
    chunk(["", "word"]),
    chunk(additional_kwargs=LEGACY_CALL),
]
NO_TOKENS = [
    chunk(),
    chunk([]),
    chunk([{"type": "text", "text": "", "index": 0}]),
    chunk([{"type": "text", "text": "", "id": "msg_1", "phase": "final_answer"}]),
    chunk([{"type": "thinking", "thinking": "", "index": 0}]),
    chunk([{"type": "reasoning", "id": "rs", "summary": []}]),
    chunk(additional_kwargs={"refusal": None}),
    chunk("", {"model_provider": "openai"}),
    chunk("", STOP),
]


@streaming
@pytest.mark.parametrize("first", [*TOKENS, *NO_TOKENS], ids=repr)
def test_a_route_is_committed_by_content(way: Way, first: AIMessageChunk) -> None:
    """After a chunk with something to read a break is an error, before it is not."""
    broken = Scripted(chunks=[first], breaks=True)
    router = router_of(broken, BACKUP, stream_recovery="error")
    if first in TOKENS:
        with pytest.raises(StreamInterruptedError):
            raise error_of(way, router)
    else:
        assert text_of(way, router) == "the backup"


# --- what an end is ---


class OwnModel(ChatOpenAI):
    """A user's own subclass."""


CALLS = Answer(text="", tool_calls=(ToolCall("f", "{}", id="call_1"),))
CLAUDES = after_the_beginning(TEXT + END)
ENDS: list[tuple[Any, Step, str, bool]] = [
    (chat_openai, Answer(), STUB_TEXT, True),
    (chat_openai, MissingDone(), STUB_TEXT, True),
    (chat_openai, CALLS, "", True),
    (chat_openai, Truncate(after=3), STUB_TEXT, False),
    (partial(chat_openai, cls=OwnModel), Truncate(after=3), STUB_TEXT, False),
    # Anthropic's is whole when its `message_delta` has come.
    (chat_anthropic, CLAUDES, "Hello.", True),
    (partial(chat_anthropic, stream_usage=False), CLAUDES, "Hello.", True),
    (chat_anthropic, after_the_beginning(TEXT), "Hello.", False),
]


@streaming
@pytest.mark.parametrize(("make", "step", "text", "is_whole"), ENDS)
def test_a_finish_reason_ends_a_stream(
    way: Way, make: Any, step: Step, text: str, is_whole: bool
) -> None:
    """With it a stream needs no `[DONE]`, nor a text; without it a clean end is a cut.

    So for `ChatOpenAI`, what is made of it, and `ChatAnthropic`.
    """
    with FaultyGateway() as gateway:
        router = router_of(make(gateway), BACKUP)
        gateway.script(step)
        if is_whole:
            assert text_of(way, router) == text
        else:
            with pytest.raises(StreamInterruptedError) as caught:
                raise error_of(way, router)
            assert caught.value.delivered
            assert text.startswith(caught.value.delivered)


def fake_of(package: str, chunks: list[Any], **fields: Any) -> Any:
    """A model whose class is of `package`, as far as its module tells."""
    return of_package(package, Scripted)(chunks=chunks, **fields)


HALF = [chunk("half ")]
WHOLE = [*HALF, chunk("done", STOP)]


@every_way
@pytest.mark.parametrize(
    ("package", "is_trusted"),
    [
        ("langchain_groq", False),
        ("langchain_of_tomorrow", False),
        ("langchain_community", True),
        ("somebodys_own", True),
    ],
)
def test_integrations_must_name_a_reason(
    way: Way, package: str, is_trusted: bool
) -> None:
    """Of LangChain's integrations a reason is expected, of other classes not yet."""
    router = router_of(fake_of(package, HALF))
    if is_trusted:
        assert text_of(way, router) == "half "
    else:
        with pytest.raises(StreamInterruptedError, match="sends_finish_reason=False"):
            raise error_of(way, router)
    route = Route(model=fake_of(package, HALF), sends_finish_reason=False)
    assert text_of(way, router_of(route)) == "half "


@every_way
def test_a_model_that_once_named_a_reason_must_go_on(way: Way) -> None:
    """It is learned for the route, its bound copies included, and for each method."""
    model = fake_of("somebodys_own", WHOLE if way.is_streaming else WHOLE[1:])
    router = router_of(model)
    ask(way, router)
    model.chunks[:] = HALF
    with pytest.raises(StreamInterruptedError):
        raise error_of(way, router.model_copy())


@streaming
def test_a_reason_in_the_middle_is_no_end(way: Way) -> None:
    """A token after it takes it back: a break is then an error, a clean end is none."""
    early = [chunk("one ", STOP), chunk("", STOP), chunk("two")]
    assert text_of(way, router_of(Scripted(chunks=early))) == "one two"
    with pytest.raises(StreamInterruptedError) as caught:
        raise error_of(way, router_of(Scripted(chunks=early, breaks=True)))
    assert caught.value.delivered == "one two"


@streaming
def test_a_break_after_the_last_reason_is_no_matter(way: Way) -> None:
    """The answer is whole by then; only its usage may be missing."""
    router = router_of(Scripted(chunks=[chunk("one "), chunk("", STOP)], breaks=True))
    assert text_of(way, router) == "one "


@pytest.mark.parametrize("way", WAYS[::2], ids=str)
@pytest.mark.parametrize(
    ("reasons", "llm_output", "is_named"),
    [
        (["stop"], None, True),
        (["stop", "length"], {}, True),
        ([None], {"stop_reason": "end_turn"}, True),
        ([None], {"stop_reason": None}, False),
        ([None], None, False),
        (["stop", None], {"stop_reason": "end_turn"}, False),
        ([None, "stop"], {}, False),
    ],
)
def test_a_result_may_name_the_reason_of_its_only_answer(
    way: Way,
    reasons: list[str | None],
    llm_output: dict[str, Any] | None,
    is_named: bool,
) -> None:
    """Anthropic's reason is in `llm_output`, which says nothing of one in several."""
    messages = [
        AIMessage("Hi", response_metadata={"finish_reason": one}) for one in reasons
    ]
    model = Scripted(chunks=messages, llm_output=llm_output)
    router = router_of(Route(model=model, sends_finish_reason=True), BACKUP)
    assert ask(way, router)[0].text == ("Hi" if is_named else "the backup")


# --- continued streams ---


@streaming
@pytest.mark.parametrize("rest", ["two", " two", "\n two"], ids=repr)
@pytest.mark.parametrize("said", ["one \n", "one "], ids=repr)
def test_a_prefill_never_ends_in_white_space(way: Way, said: str, rest: str) -> None:
    """Providers refuse that; the space is not delivered twice if it comes again."""
    first = Scripted(chunks=[chunk(said)], breaks=True)
    second = Scripted(chunks=[chunk(rest), chunk(" three", STOP)])
    route = Route(model=second, supports_prefill=True)
    text = text_of(way, router_of(first, route, stream_recovery="continue"))
    (messages,) = second.sent
    assert messages[-1].content == "one"
    assert text.split() == ["one", "two", "three"]
    assert text.startswith(said)


def continued(way: Way, first: list[Any], second: list[Any], *versions: str) -> Any:
    """The answer of a stream that broke after `first`, and went on with `second`."""
    fields: list[Any] = [{"output_version": one} for one in versions] or [{}, {}]
    models = (
        Scripted(chunks=first, breaks=True, **fields[0]),
        Scripted(chunks=second, **fields[1]),
    )
    return message_of(way, router_of(*models, stream_recovery="continue"))


@streaming
def test_the_metadata_is_that_of_the_attempt_that_ended(way: Way) -> None:
    """Names of the model that was interrupted are not joined with the other's."""
    one = {"model_name": "m-1", "model_provider": "openai"}
    two = {
        "model_name": "m-2",
        "model_provider": "anthropic",
        "stop_reason": "end_turn",
    }
    answer = continued(way, [chunk("one ", one)], [chunk("one two", two)])
    metadata = answer.response_metadata
    assert answer.text == "one two"
    assert (metadata["model_name"], metadata["stop_reason"]) == ("m-2", "end_turn")
    assert metadata["model_provider"] == "openai"
    assert metadata["retryrouter"]["attempts"][1]["continued_at"] == 4


@streaming
def test_what_was_already_delivered_brings_its_facts(way: Way) -> None:
    """The name and the usage are kept of chunks whose text the caller has."""
    usage = {"input_tokens": 9, "output_tokens": 2, "total_tokens": 11}
    begin = chunk("", {"model_name": "m-2"}, usage_metadata=usage)
    again = [begin, chunk("one "), chunk("two", STOP)]
    answer = continued(way, [chunk("one ")], again)
    assert answer.text == "one two"
    assert answer.response_metadata["model_name"] == "m-2"
    assert answer.usage_metadata == usage


@streaming
def test_what_was_already_delivered_is_not_joined_with_what_is_new(way: Way) -> None:
    """A name in each chunk is there once, and blocks come without empty texts."""
    one, two, three = (
        chunk([{"type": "text", "text": text, "index": 0}], {"model_name": "m-2"})
        for text in ("one ", "two ", "three")
    )
    answer = continued(way, [one, two], [one, two, three, chunk("", STOP)])
    assert [part["text"] for part in answer.content] == ["one two ", "three"]
    assert answer.response_metadata["model_name"] == "m-2"


@every_way
@pytest.mark.parametrize("content", ["Hi", ["Hi"]], ids=str)
def test_content_that_is_called_standard_blocks_becomes_so(
    way: Way, content: Any
) -> None:
    """A model with `output_version="v1"` may say so of what is not."""
    said = chunk(content, {**STOP, "output_version": "v1"})
    answer = message_of(way, router_of(Scripted(chunks=[said], output_version="v1")))
    assert answer.text == "Hi"
    assert all("type" in block for block in answer.content)


@streaming
@pytest.mark.parametrize("repeats", ["", "I ", "I look. "])
@pytest.mark.parametrize("takes_prefill", [False, True])
def test_a_tool_call_behind_delivered_text_is_not_lost(
    way: Way, repeats: str, *, takes_prefill: bool
) -> None:
    """It follows the text, or else the stream ends with an error."""
    first = Scripted(chunks=[chunk("I look. ")], breaks=True)
    second = Scripted(chunks=[chunk(repeats), CALL, chunk("", STOP)])
    route = Route(model=second, supports_prefill=takes_prefill)
    router = router_of(first, route, stream_recovery="continue")

    if not takes_prefill and repeats != "I look. ":
        with pytest.raises(StreamInterruptedError):
            message_of(way, router)
        return
    answer = message_of(way, router)
    assert [call["name"] for call in answer.tool_calls] == ["f"]
    assert answer.text == "I look. " + ("I " if repeats == "I " else "")


@streaming
def test_a_stream_that_is_continued_is_seen_as_a_retry(way: Way) -> None:
    """Handlers and hooks hear of the break before the other route is asked."""
    seen: list[Any] = []

    class Watcher(BaseCallbackHandler):
        def on_retry(self, retry_state: RetryCallState, **_: Any) -> None:
            outcome = retry_state.outcome
            error = outcome.exception() if outcome else None
            action = retry_state.next_action  # tenacity's own listeners read it.
            assert action is not None
            seen.append((retry_state.attempt_number, type(error), action.sleep))

    first = Scripted(chunks=[chunk("one ")], breaks=True)
    second = Scripted(chunks=[chunk("one two", STOP)])
    hooks = RetryPolicy(max_retries=0, on_failover=seen.append)
    fields: dict[str, Any] = {"retry_policy": hooks, "stream_recovery": "continue"}
    router = router_of(Route(model=first, name="a"), second, **fields)

    assert message_of(way, router, "hi", {"callbacks": [Watcher()]}).text == "one two"

    event, told = seen
    assert (event.route, event.next_route) == ("a", "Scripted")
    assert told == (1, StreamInterruptedError, 0)
    assert len(second.sent) == 1


@streaming
def test_no_stream_is_continued_after_its_deadline(way: Way) -> None:
    """A listener that took its time is not followed by another request."""

    class Slow(BaseCallbackHandler):
        def on_retry(self, *_: Any, **__: Any) -> None:
            clock.advance(20)

    clock = FakeClock()
    first = Scripted(chunks=[chunk("one ")], breaks=True)
    second = Scripted(chunks=[chunk("one two", STOP)])
    policy = RetryPolicy(max_retries=0, deadline=10)
    fields: dict[str, Any] = {"retry_policy": policy, "stream_recovery": "continue"}
    router = router_of(first, second, clock=clock, **fields)

    with pytest.raises(StreamInterruptedError) as caught:
        message_of(way, router, "hi", {"callbacks": [Slow()]})

    assert caught.value.delivered == "one "
    assert not second.sent


@streaming
def test_a_cited_text_is_continued(way: Way) -> None:
    """A citation is no content of its own, and no reason to give a stream up."""
    said = [{"type": "text", "text": "one ", "index": 0}]
    cited = [{"type": "text", "citations": [{"cited_text": "a"}], "index": 0}]
    answer = continued(way, [chunk(said), chunk(cited)], [chunk("one two", STOP)])
    assert answer.text == "one two"


@streaming
@pytest.mark.parametrize("order", [("v1", "v0"), ("v0", "v1")], ids="-".join)
def test_a_stream_has_one_version_of_content(way: Way, order: tuple[str, str]) -> None:
    """What continues it comes in the form in which it began."""
    last = chunk("one two", {**STOP, "output_version": "v1"})
    answer = continued(way, [chunk("one ")], [last], *order)
    assert answer.text == "one two"
    assert {block["type"] for block in answer.content_blocks} == {"text"}
    version = answer.response_metadata.get("output_version")
    assert version == ("v1" if order[0] == "v1" else None)
    assert isinstance(answer.content, list) == (version == "v1")


# --- which models take a prefill ---


def taken_up(way: Way, package: str, name: str, text: str) -> tuple[str, BaseMessage]:
    """The text of a stream that breaks after "one ", and the last message sent on.

    It is sent to the model `name` of a package, which says `text`.
    """
    first = Scripted(chunks=[chunk("one ")], breaks=True)
    second = fake_of(package, [chunk(text, STOP)], model=name)
    whole = text_of(way, router_of(first, second, stream_recovery="continue"))
    return whole, second.sent[0][-1]


TAKE_A_PREFILL = [
    ("langchain_anthropic", "claude-3-7-sonnet-latest"),
    ("langchain_anthropic", "claude-opus-4-20250514"),
    ("langchain_anthropic", "claude-sonnet-4-0"),
    ("langchain_anthropic", "claude-haiku-4-5-20251001"),
    ("langchain_aws", "us.anthropic.claude-sonnet-4-5-20250929-v1:0"),
    ("langchain_aws", "amazon.nova-pro-v1:0"),
    ("langchain_mistralai", "mistral-large-latest"),
    ("langchain_ollama", "llama3"),
]
BEGIN_ANEW = [
    ("langchain_anthropic", "claude-opus-4-6"),
    ("langchain_anthropic", "claude-sonnet-4-6-20260217"),
    ("langchain_anthropic", "claude-opus-5"),
    ("langchain_aws", "us.anthropic.claude-opus-4-6-v1"),
    ("langchain_aws", "meta.llama3-3-70b-instruct-v1:0"),
    ("langchain_openai", "gpt-4o"),
    ("langchain_google_genai", "gemini-2.5-pro"),
]


@streaming
@pytest.mark.parametrize(("package", "name"), [*TAKE_A_PREFILL, *BEGIN_ANEW])
def test_a_model_that_takes_a_prefill_gets_one(
    way: Way, package: str, name: str
) -> None:
    """It is known without a setting; Claude 4.6 and OpenAI give the whole answer."""
    takes_it = (package, name) in TAKE_A_PREFILL
    said = "two" if takes_it else "one two"
    text, last = taken_up(way, package, name, said)
    assert (text, last.type) == ("one two", "ai" if takes_it else "human")


@streaming
@pytest.mark.parametrize(
    ("text", "whole"),
    [("one two", "one two"), ("one", "one "), ("", "one "), ("on two", "one on two")],
    ids=["repeated", "repeated-and-over", "over", "looks-alike"],
)
def test_what_follows_a_prefill(way: Way, text: str, whole: str) -> None:
    """Mistral repeats the prefill; an answer may have lacked nothing but its end."""
    if text == "one":
        with pytest.raises(StreamInterruptedError):
            taken_up(way, "langchain_mistralai", "m", text)
        return
    said, last = taken_up(way, "langchain_mistralai", "m", text)
    assert (said, last.additional_kwargs) == (whole, {"prefix": True})


@streaming
@pytest.mark.parametrize(
    ("said", "rest", "whole"),
    [
        ("1", "1", "11"),
        ("ha", "ha!", "haha!"),
        ("a ", " b", "a b"),
        ("a\n\n", "\n\nb", "a\n\nb"),
        ("a\n\n", "\nb", "a\n\nb"),
        ("a  ", "b", "a  b"),
    ],
)
def test_claude_does_not_repeat_a_prefill(
    way: Way, said: str, rest: str, whole: str
) -> None:
    """What it says is new, but for the white space that the prefill went without."""
    first = Scripted(chunks=[chunk(said)], breaks=True)
    parts = [*map(chunk, rest[:-1]), chunk(rest[-1], STOP)]
    second = fake_of("langchain_anthropic", parts, model="claude-sonnet-4-0")
    assert text_of(way, router_of(first, second, stream_recovery="continue")) == whole
