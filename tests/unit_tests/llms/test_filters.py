"""Answers that a content filter has ended, or has taken away."""

from __future__ import annotations

from typing import Any

import pytest

from langchain_retryrouter import errors
from langchain_retryrouter.testing import Body, FaultyGateway

from .conftest import NewLLM, choice, streamed, whole


def _filtered(*texts: str) -> Body:
    """A whole answer whose choices a content filter has ended."""
    choices = [choice(text, "content_filter") for text in texts]
    return whole(*({**one, "index": at} for at, one in enumerate(choices)))


def _filtered_stream(*texts: str) -> Body:
    """A stream that a content filter ends after these texts."""
    return streamed(*map(choice, texts), choice("", "content_filter"))


def test_an_answer_that_a_filter_took_away_is_an_error(
    twin: Any, new_any: NewLLM, gateway: FaultyGateway
) -> None:
    """Nothing but a finish reason is no empty answer, and is not asked for again."""
    llm = new_any()
    gateway.script(_filtered(""), _filtered_stream(), _filtered_stream(""))
    with pytest.raises(errors.ContentFilterError, match="removed the whole answer"):
        twin.invoke(llm, "hi")
    for _ in range(2):
        with pytest.raises(errors.ContentFilterError, match="removed"):
            twin.stream(llm, "hi")
    assert len(gateway.requests) == 3


def test_what_a_filter_left_is_kept(
    twin: Any, new_any: NewLLM, gateway: FaultyGateway
) -> None:
    """What came before a filter, or of the other answers, is told with its reason."""
    gateway.script(_filtered("so far"), _filtered_stream("so ", "far"))
    llm = new_any()
    (only,) = twin.generate(llm, ["hi"]).generations[0]
    assert only.text == "".join(twin.stream(llm, "hi")) == "so far"
    assert only.generation_info["finish_reason"] == "content_filter"
    gateway.script(_filtered("", "so far"))
    both = twin.generate(new_any(n=2), ["hi"]).generations[0]
    assert [generation.text for generation in both] == ["", "so far"]
