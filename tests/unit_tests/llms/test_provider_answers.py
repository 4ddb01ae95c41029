"""What real providers send, entry by entry, and what the LLM classes make of it."""

import json
from operator import itemgetter
from typing import Any

import pytest

from langchain_retryrouter import AzureOpenAI, OpenAI, OpenAIChat
from langchain_retryrouter._retry.clock import SYSTEM_CLOCK
from langchain_retryrouter.errors import RetryRouterError
from langchain_retryrouter.testing import Body
from tests.support.provider_answers import DATA, check, status_of

from .conftest import EVENTS, JSON, Env, choice

CLASSES = (OpenAI, AzureOpenAI, OpenAIChat)
ANSWERS = [entry for entry in DATA["answers"] if entry["protocol"] == "openai"]
REPORTS = [entry for entry in DATA["events"] if entry["kind"]]
name_of = itemgetter("name")


@pytest.mark.parametrize("entry", ANSWERS, ids=name_of)
def test_an_answer_has_its_kind_and_its_wait(env: Env, entry: dict[str, Any]) -> None:
    """Status, codes, sentences and headers mean the same to each class and method."""
    env.gateway.always(status_of(entry))
    for cls in CLASSES:
        llm = env.new(cls, max_retries=0, clock=SYSTEM_CLOCK)
        for call in (env.invoke, env.stream):
            with pytest.raises(RetryRouterError) as caught:
                call(llm, "hi")
            check(caught.value, entry)
    assert len(env.gateway.requests) == 6


@pytest.mark.parametrize("entry", REPORTS, ids=name_of)
def test_a_report_in_a_200_is_an_error(env: Env, entry: dict[str, Any]) -> None:
    """Every dialect of an error is known, and not repeated after a token."""
    data = entry["data"]
    written = data if isinstance(data, str) else json.dumps(data)
    forms = [f"event: {entry['event']}\ndata: {written}\n\n"]
    if "field" in entry["name"]:
        forms.append(f"error: {written}\n\n")
    token = f"data: {json.dumps({'choices': [choice('one ')]})}\n\n"
    for cls in CLASSES:
        for form in forms:
            env.gateway.script(Body(200, EVENTS, form), Body(200, EVENTS, token + form))
            for retries, delivered in ((0, ""), (2, "one ")):
                with pytest.raises(RetryRouterError) as caught:
                    env.stream(env.new(cls, max_retries=retries), "hi")
                assert caught.value.kind == entry["kind"]
                assert caught.value.delivered == delivered
        if entry["event"] == "message":
            env.gateway.script(Body(200, JSON, written))
            with pytest.raises(RetryRouterError) as caught:
                env.invoke(env.new(cls, max_retries=0), "hi")
            assert caught.value.kind == entry["kind"]
    wholes = len(CLASSES) * (entry["event"] == "message")
    assert len(env.gateway.requests) == 2 * len(CLASSES) * len(forms) + wholes
