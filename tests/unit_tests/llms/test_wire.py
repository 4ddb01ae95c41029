"""The pure half: what requests, answers and chunks mean, without a server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.outputs import GenerationChunk

from langchain_retryrouter._openai import protocol as wire
from langchain_retryrouter._openai.protocol import (
    ClientSettings,
    add_usage,
    limited,
    part_of,
    sdk_timeout,
    without_password,
)
from langchain_retryrouter.failures import FailureKind


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({}, 1),
        ({"prompt": "a"}, 1),
        ({"prompt": ["a"]}, 1),
        ({"prompt": ["a", "b"], "n": 3}, 6),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": [[1, 2], [3]]}, 2),
        ({"prompt": []}, 1),
        ({"messages": [{}, {}], "n": 2}, 2),
        ({"prompt": "a", "n": None}, 1),
    ],
)
def test_choices_that_are_due(request_: dict[str, Any], expected: int) -> None:
    """A request is due `n` choices for each prompt, a text or a list of tokens."""
    assert wire.expected_choices(request_) == expected


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (None, FailureKind.MALFORMED),
        ("", FailureKind.MALFORMED),
        ("<html>", FailureKind.MALFORMED),
        ([], FailureKind.MALFORMED),
        (7, FailureKind.MALFORMED),
        ({}, FailureKind.MALFORMED),
        ({"choices": None}, FailureKind.MALFORMED),
        ({"choices": [{}, {}]}, FailureKind.MALFORMED),
        ({"choices": [{"index": 0, "finish_reason": "stop"}]}, FailureKind.MALFORMED),
        ({"choices": [{"message": "a text"}]}, FailureKind.MALFORMED),
        ({"error": {"code": "insufficient_quota"}}, FailureKind.QUOTA),
        ({"error": {"code": 503}}, FailureKind.UNAVAILABLE),
        ({"error": {"code": "429", "message": "slow"}}, FailureKind.RATE_LIMIT),
        ({"error": {"type": "invalid_request_error"}}, FailureKind.INVALID_REQUEST),
        (
            {"error": {"message": "maximum context length"}},
            FailureKind.CONTEXT_OVERFLOW,
        ),
        ({"error": "bad day"}, FailureKind.SERVER_ERROR),
        ({"error": {"code": 7}}, FailureKind.SERVER_ERROR),
        ({"error": {"code": {"not": "hashable"}}}, FailureKind.SERVER_ERROR),
    ],
    ids=str,
)
def test_an_answer_that_is_none_has_a_problem(answer: Any, kind: FailureKind) -> None:
    """Whatever comes with a 200 and is no answer is told by its kind."""
    problem = wire.problem_of(answer, 1)
    assert problem is not None
    assert problem.kind is kind


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": [{"text": ""}]},
        {"choices": [{"text": None}], "error": None},
        {"choices": [{"message": {}}]},
        {"choices": [SimpleNamespace(message=None)]},
        SimpleNamespace(),
        b"",
    ],
    ids=repr,
)
def test_an_answer_has_none(answer: Any) -> None:
    """An answer with its choices, and an object of another kind, have no problem."""
    assert wire.problem_of(answer, 1) is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (None, "an empty body"),
        (" \n", "an empty body"),
        ("short", "'short'"),
        ("a\n  b", "'a b'"),
        ("x" * 100, f"'{'x' * 80}…'"),
    ],
)
def test_pages_are_quoted_briefly(text: Any, shown: str) -> None:
    """Of a page, a line is quoted."""
    assert wire.excerpt(text) == shown


def chunk(index: Any = 0, text: str | None = "", reason: str | None = None) -> Any:
    """One chunk of a completions stream."""
    return {"choices": [{"index": index, "text": text, "finish_reason": reason}]}


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=30))
def test_a_stream_is_whole_when_all_choices_are(
    events: list[tuple[int, bool]],
) -> None:
    """The end is the chunk with which the last of all choices has its reason."""
    reader = wire.StreamReader(4)
    finished: set[int] = set()
    for index, is_finished in events:
        was_whole = len(finished) == 4
        if is_finished:
            finished.add(index)
        signal = reader(chunk(index, "x", "stop" if is_finished else None))
        assert signal.is_end == (len(finished) == 4 and not was_whole)
        assert reader.is_whole == (len(finished) == 4)


@pytest.mark.parametrize(
    ("choices", "is_token"),
    [
        ([], False),
        (None, False),
        ([{"text": ""}], False),
        ([{"text": None}], False),
        ([{"text": " "}], True),
        ([{"delta": {}}], False),
        ([{"delta": {"role": "assistant", "content": ""}}], False),
        ([{"delta": {"content": "a"}}], True),
        ([{"delta": {"refusal": "no"}}], True),
        ([{"delta": {"tool_calls": [{}]}}], True),
        ([{"delta": {"function_call": {"name": "f"}}}], True),
        ([{"text": "", "finish_reason": "stop"}], False),
    ],
    ids=str,
)
def test_what_is_a_token(choices: Any, *, is_token: bool) -> None:
    """A token is content that a caller would see: text, a refusal, a call."""
    signal = wire.StreamReader(1)({"choices": choices})
    assert signal.is_token is is_token


def test_the_end_is_told_once() -> None:
    """Of two chunks with a reason, the first ends the stream."""
    reader = wire.StreamReader(1)
    ending = chunk(reason="stop")
    assert [
        reader(event).is_end for event in (chunk(), ending, chunk(reason="stop"))
    ] == [
        False,
        True,
        False,
    ]
    assert reader.ending is ending


def test_objects_and_dicts_are_read_alike() -> None:
    """The SDK's objects and plain dicts mean the same."""
    as_object = SimpleNamespace(
        choices=[SimpleNamespace(index=0, text="a", finish_reason="stop", delta=None)]
    )
    for form in (as_object, chunk(0, "a", "stop")):
        assert wire.StreamReader(1)(form) == ("a", True, True, False)
        read = wire.ChunkReader().read(form)
        assert (read.text, read.generation_info) == (
            "a",
            {"finish_reason": "stop", "logprobs": None},
        )


def test_chunks_add_up_to_an_answer() -> None:
    """A joined stream has its text, its reason, usage and ledger."""
    reader = wire.ChunkReader()
    raws = [
        chunk(0, "a"),
        chunk(0, "b"),
        wire.attach_attempt_log(chunk(0, "", "stop"), {"attempts": [{"attempt": 1}]}),
        {"choices": [], "usage": {"total_tokens": 3}},
    ]
    answer = wire.join([reader.read(raw) for raw in raws])
    assert answer.choices == [{"text": "ab", "finish_reason": "stop", "logprobs": None}]
    assert answer.usage == {"total_tokens": 3}
    assert answer.attempt_log == {"attempts": [{"attempt": 1}]}


@pytest.mark.parametrize(
    "counts",
    [
        pytest.param(
            [{"choices": [{"index": 0, "delta": {}}], "usage": {"total_tokens": 3}}],
            id="with-an-empty-choice",
        ),
        pytest.param([{"choices": [], "usage": {"total_tokens": 3}}] * 2, id="twice"),
        pytest.param(
            [
                {**chunk(reason="stop"), "usage": {"total_tokens": 0, "details": {}}},
                {"choices": [], "usage": {"total_tokens": 3}},
            ],
            id="zeros-before",
        ),
    ],
)
def test_a_stream_is_counted_once_wherever_it_is_counted(counts: list[Any]) -> None:
    """What comes at or after the end counts, once; zeros are no count."""
    reader = wire.ChunkReader()
    early = {**chunk(0, "a"), "usage": {"total_tokens": 1}}
    raws = [early, chunk(reason="stop"), *counts]
    assert wire.join([reader.read(raw) for raw in raws]).usage == {"total_tokens": 3}


def test_a_stream_of_zeros_has_no_usage() -> None:
    """An answer that nobody has counted is not one that cost nothing."""
    reader = wire.ChunkReader()
    raw = {**chunk(0, "a", "stop"), "usage": {"prompt_tokens": 0, "total_tokens": 0}}
    assert wire.join([reader.read(raw)]).usage == {}


def test_an_empty_stream_is_a_problem() -> None:
    """No chunk at all is no answer."""
    problem = wire.join([]).problem
    assert problem is not None
    assert problem.kind is FailureKind.MALFORMED
    assert wire.join([GenerationChunk(text="a")]).problem is None


def test_a_ledger_is_attached_to_what_can_hold_it() -> None:
    """Dicts are not changed in place; what can hold no field goes without."""
    answer: dict[str, Any] = {"choices": []}
    attempt_log: dict[str, Any] = {"attempts": []}
    assert wire.attach_attempt_log(answer, attempt_log) == {
        "choices": [],
        "retryrouter": attempt_log,
    }
    assert answer == {"choices": []}
    assert wire.attach_attempt_log("text", {}) == "text"


@pytest.mark.parametrize(
    ("indexes", "order"),
    [
        ([2, 0, 1], [1, 2, 0]),
        ([0, 0, 0], [0, 1, 2]),
        ([0, 1, 0, 1], [0, 1, 2, 3]),
        ([None, None], [0, 1]),
        ([1, 2], [0, 1]),
    ],
)
def test_choices_are_ordered_where_their_indexes_say_how(
    indexes: list[Any], order: list[int]
) -> None:
    """Indexes that number all choices order them; any others are not trusted."""
    choices = [{"index": i, "text": str(at)} for at, i in enumerate(indexes)]
    answer = wire.read_answer({"choices": choices})
    assert [choice["text"] for choice in answer.choices] == [str(at) for at in order]


def test_usage_is_added_up_in_depth() -> None:
    """Numbers add up, nested ones too; what is no number is left out."""
    usage = {"a": 1, "b": {"c": 2, "d": None}, "e": None, "f": True, "g": "x"}
    assert add_usage(add_usage({}, usage), usage) == {"a": 2, "b": {"c": 4}}


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (None, (5, 5, 5, 5)),
        (3, (3, 3, 3, 3)),
        (60, (5, 5, 5, 5)),
        ((1, 60), (1, 5, 5, 5)),
        ((60, 2), (5, 2, 2, 2)),
    ],
)
def test_the_smaller_limit_wins(value: Any, parts: tuple[float, ...]) -> None:
    """Each part of a time limit is the smaller of the caller's and the attempt's."""
    timeout = limited(sdk_timeout(value), 5)
    names = ("connect", "read", "write", "pool")
    assert tuple(part_of(timeout, name) for name in names) == parts


def test_settings_are_equal_by_value() -> None:
    """Settings compare by what they make, also where a value has no hash."""

    def settings(**options: Any) -> ClientSettings:
        return ClientSettings("OpenAI", options)

    same = {"a": {"b": [1, {"c": 2}]}, "timeout": sdk_timeout((1, 2))}
    assert settings(**same) == settings(**same)
    assert hash(settings(**same)) == hash(settings(**same))
    assert settings(a=1) != settings(a=2)
    assert settings(a=1) != "something else"
    unhashable = bytearray(b"x")
    assert settings(a=unhashable) == settings(a=unhashable)
    assert settings(a=unhashable) != settings(a=bytearray(b"x"))


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://me:secret@proxy:1/x@y", "http://proxy:1/x@y"),
        ("http://proxy:1", "http://proxy:1"),
        ("socks5://me@proxy", "socks5://proxy"),
        ("", ""),
    ],
)
def test_an_address_is_shown_without_its_password(address: str, shown: str) -> None:
    """A name and a password in an address are not shown."""
    assert without_password(address) == shown
