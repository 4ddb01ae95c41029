"""What langchain-community's `GPTRouter` gets wrong, row by row, and what is right.

The rows are those of a table of measurements: langchain-community 0.4.2 and gptrouter
1.0.13 against the real gateway. A letter and a number name a row; each test gives the
behaviour that a user of that row expected.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from typing import Any

import pytest
from gpt_router import exceptions as sdk
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumps
from langchain_core.messages import HumanMessage
from langchain_core.outputs import LLMResult

from langchain_retryrouter import (
    APITimeoutError,
    UnavailableError,
    UnsupportedOptionError,
)
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Answer,
    FakeClock,
    FaultyGateway,
    Silence,
    Status,
)
from tests.unit_tests.conftest import Twin

from .conftest import KEY, NewModel
from .frames import sum_of, text_of

WHOLE_USAGE = {"input_tokens": 11, "output_tokens": 5, "total_tokens": 16}
# In a stream the gateway sends an estimate of its own.
STREAM_USAGE = {"input_tokens": 8, "output_tokens": 5, "total_tokens": 13}


# --- A: answers ---


def test_a1_a2_m1_m2_an_answer_has_text_usage_and_json_metadata(
    twin: Twin, new_llm: NewModel
) -> None:
    """An answer has text, usage, and metadata that JSON and `dumps` can carry."""
    answer = twin.invoke(new_llm(), "hi")

    assert answer.content == STUB_TEXT
    assert answer.usage_metadata == WHOLE_USAGE
    metadata = answer.response_metadata
    assert metadata["token_usage"]["total_tokens"] == 16
    assert json.loads(json.dumps(metadata)) == metadata
    written = json.loads(dumps(answer))
    assert written["type"] == "constructor"
    assert written["kwargs"]["response_metadata"] == metadata


def test_a3_a4_a_stream_has_text_usage_and_model(twin: Twin, new_llm: NewModel) -> None:
    """The chunks of a stream add up to text, usage and the model that answered."""
    message = sum_of(twin.stream(new_llm(), "hi"))

    assert message.content == STUB_TEXT
    assert message.usage_metadata == STREAM_USAGE
    assert message.response_metadata["model_name"] == "gpt-4-0613"
    assert message.response_metadata["provider_name"] == "chat_openai"
    assert message.response_metadata["model_id"].startswith("631b2d96-")
    assert message.response_metadata["provider_id"].startswith("7dc8712a-")
    assert message.response_metadata["finish_reason"] == "stop"


class Ends(BaseCallbackHandler):
    """Keeps what `on_llm_end` was told."""

    def __init__(self) -> None:
        self.results: list[LLMResult] = []

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        self.results.append(response)


def test_a5_two_choices_are_two_generations_with_usage(
    twin: Twin, new_llm: NewModel
) -> None:
    """`n=2` gives two generations; the result and the callback have the usage."""
    ends = Ends()

    result = twin.generate(new_llm(n=2), [[HumanMessage("hi")]], callbacks=[ends])

    assert [generation.text for generation in result.generations[0]] == [STUB_TEXT] * 2
    usage = {"completion_tokens": 10, "prompt_tokens": 11, "total_tokens": 21}
    assert result.llm_output["token_usage"] == usage
    assert result.llm_output["model_name"] == "gpt-4-0613"
    [told] = ends.results
    assert told.llm_output is not None
    assert told.llm_output["token_usage"] == usage


def test_a6_two_choices_in_a_stream_are_refused(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """A stream with `n=2`, whose choices nobody could tell apart, is refused unsent."""
    with pytest.raises(ValueError, match="n must be 1 in a stream"):
        twin.stream(new_llm(n=2), "hi")
    with pytest.raises(ValueError, match="n must be 1 in a stream"):
        twin.stream(new_llm(), "hi", n=2)

    assert gateway.requests == []


# --- B and I: options ---


def test_b1_b2_stop_is_sent_and_cuts(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """`stop` reaches the provider, and the answer ends before it."""
    assert twin.invoke(new_llm(), "hi", stop=["stub"]).content == "Hello from the "
    assert text_of(twin.stream(new_llm(), "hi", stop=["stub"])) == "Hello from the "
    bound = new_llm().bind(stop=["from"])
    assert twin.invoke(bound, "hi").content == "Hello "

    assert [request.parameters["stop"] for request in gateway.requests] == [
        ["stub"],
        ["stub"],
        ["from"],
    ]


@pytest.mark.parametrize("option", ["timeout", "maxRetries", "max_retries"])
def test_b6_i3_i4_settings_given_to_a_call_are_not_lost(
    twin: Twin, new_llm: NewModel, option: str
) -> None:
    """A setting of the model that is handed to a call is an error, not dropped."""
    with pytest.raises(UnsupportedOptionError, match=f"'{option}'"):
        twin.invoke(new_llm(), "hi", **{option: 1})


def test_i5_no_limit_of_tokens(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """`max_tokens=None` sends no limit at all: the gateway would make 0 of a null."""
    twin.invoke(new_llm(max_tokens=None), "hi")
    twin.stream(new_llm(), "hi", max_tokens=None)

    for request in gateway.requests:
        assert "max_tokens" not in request.parameters


@pytest.mark.parametrize("streaming", [False, True])
def test_i1_i2_a_read_timeout_is_typed_and_retried(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway, *, streaming: bool
) -> None:
    """A server that is silent for longer than `request_timeout` is asked again."""
    gateway.always(Silence())
    llm = new_llm(request_timeout=0.1, max_retries=1, streaming=streaming)

    with pytest.raises(APITimeoutError) as caught:
        twin.invoke(llm, "hi")

    assert isinstance(caught.value, sdk.GPTRouterApiTimeoutError)
    assert caught.value.attempts == 2
    gateway.script(Silence(), Answer())
    gateway.always(Answer())
    assert twin.invoke(llm, "hi").content == STUB_TEXT


# --- D: characters ---


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\r"])
def test_d2_unicode_line_ends_are_text(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway, character: str
) -> None:
    """What Unicode calls a line end is text, in a stream too, and nothing vanishes."""
    pieces = (f"one{character}", f"{character}two", "three")
    gateway.always(Answer(pieces))

    assert text_of(twin.stream(new_llm(), "hi")) == "".join(pieces)
    assert twin.invoke(new_llm(), "hi").content == "".join(pieces)


# --- L, M and the rows without a letter ---


@pytest.mark.parametrize("ending", ["", "/", "/api", "/api/"])
def test_l1_the_address_may_end_as_it_likes(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway, ending: str
) -> None:
    """With or without `/api`, with or without a slash: the same endpoint."""
    twin.invoke(new_llm(gpt_router_api_base=gateway.url + ending), "hi")

    assert gateway.requests[0].path == "/api/v1/generate"


def test_m3_the_key_is_not_shown(new_llm: NewModel) -> None:
    """Neither `repr` nor `dumps` shows the key, of the model or of its client."""
    llm = new_llm()

    for shown in (repr(llm), str(llm), dumps(llm), repr(llm.client), repr(vars(llm))):
        assert KEY not in shown
    assert KEY not in repr(vars(llm.client))


def test_the_package_brings_all_it_imports() -> None:
    """A fresh interpreter imports the module without a warning, tenacity included."""
    command = "import langchain_retryrouter.chat_models.gpt_router"

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", command], capture_output=True, check=False
    )

    assert done.stderr.decode() == ""
    assert done.returncode == 0


def test_a_stream_request_warns_of_nothing(twin: Twin, new_llm: NewModel) -> None:
    """A call makes no warning of any kind, streamed or not."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        twin.stream(new_llm(), "hi")
        twin.invoke(new_llm(), "hi")

    assert [str(warning.message) for warning in caught] == []


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("max_retries", [0, 1, 2, 4])
def test_max_retries_counts_retries(
    twin: Twin,
    new_llm: NewModel,
    gateway: FaultyGateway,
    max_retries: int,
    *,
    streaming: bool,
) -> None:
    """`max_retries=4` is one request and four retries; 0 is one request."""
    gateway.always(Status(503))

    with pytest.raises(UnavailableError):
        twin.invoke(new_llm(max_retries=max_retries, streaming=streaming), "hi")

    assert len(gateway.requests) == max_retries + 1


def test_waits_grow_and_are_jittered(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway, clock: FakeClock
) -> None:
    """Waits are random parts of 1.5, 3, 6 and 8 s, instead of four seconds each."""
    gateway.always(Status(503))

    with pytest.raises(UnavailableError):
        twin.invoke(new_llm(), "hi")

    assert clock.sleeps == [0.75, 1.5, 3.0, 4.0]
