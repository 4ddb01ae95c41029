"""`accept=`, and what `failover_on` makes of an answer that a token limit cut."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI

from langchain_retryrouter import (
    LengthLimitError,
    RejectedAnswerError,
    RetryPolicy,
    RetryRouter,
    Route,
    UnavailableError,
)
from langchain_retryrouter.testing import Answer, FakeClock, FaultyGateway, Status

from .attempts import WAYS, Way, ask, error_of
from .models import chat_openai

BACKUP = "The backup's answer."


def router_of(gateway: FaultyGateway, **fields: Any) -> RetryRouter:
    """A router of OpenAI's model and a backup, which is asked after one retry."""
    backup = GenericFakeChatModel(messages=iter([AIMessage(BACKUP)] * 9), name="backup")
    settings: dict[str, Any] = {
        "routes": [chat_openai(gateway), backup],
        "retry_policy": RetryPolicy(max_retries=1),
        "clock": FakeClock(),
        **fields,
    }
    return RetryRouter(**settings)


def text_and_log(way: Way, router: RetryRouter) -> tuple[str, list[tuple[str, Any]]]:
    """The text of the answer, and each attempt's outcome and reason."""
    parts = ask(way, router)
    log = parts[-1].message.response_metadata["retryrouter"]["attempts"]
    lines = [(line["outcome"], line.get("reason")) for line in log]
    return "".join(part.text for part in parts), lines


def no_sorry(message: AIMessage) -> bool | str:
    return "sorry" not in message.text or "it says sorry"


async def ano_sorry(message: AIMessage) -> bool | str:
    return no_sorry(message)


@pytest.fixture
def gateway() -> Any:
    """The provider of the first route, which says sorry."""
    with FaultyGateway() as gateway:
        gateway.always(Answer("I am sorry."))
        yield gateway


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("of", ["router", "route"])
def test_an_answer_that_is_not_accepted_is_retried_and_failed_over(
    way: Way, gateway: FaultyGateway, of: str
) -> None:
    """Nothing of a rejected answer is handed over; the log says why it was rejected."""
    accept = ano_sorry if way.is_async else no_sorry
    router = router_of(gateway, accept=accept)
    if of == "route":
        first, second = router.routes
        router = router_of(
            gateway, routes=[Route(model=first.model, accept=accept), second]
        )

    text, lines = text_and_log(way, router)

    assert text == BACKUP
    assert lines == [("rejected", "it says sorry")] * 2 + [("ok", None)]
    assert len(gateway.requests) == 2


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize(
    ("verdict", "reason"),
    [(False, "accept returned False"), ("too short", "too short")],
)
def test_an_answer_that_no_route_gives_is_an_error(
    way: Way, gateway: FaultyGateway, verdict: bool | str, reason: str
) -> None:
    """The error has the reason and the message, and opens no breaker."""
    router = router_of(
        gateway,
        routes=[chat_openai(gateway)],
        accept=lambda _: verdict,
        breaker_settings={"failure_threshold": 1},
    )
    for _ in range(2):
        error = error_of(way, router)

        assert isinstance(error, RejectedAnswerError)
        assert (error.kind, error.attempts) == ("rejected", 2)
        assert reason in str(error)
        assert error.raw_message is not None
        assert error.raw_message.text == "I am sorry."
        router = router_of(gateway, routes=[chat_openai(gateway)], accept=router.accept)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_accept_sees_what_the_caller_would_get(
    way: Way, gateway: FaultyGateway
) -> None:
    """The message is whole, with the model's name and the finish reason."""
    seen: list[AIMessage] = []

    def accept(message: AIMessage) -> bool:
        seen.append(message)
        return True

    router = router_of(gateway, accept=accept)

    text, lines = text_and_log(way, router)

    assert (text, lines) == ("I am sorry.", [("ok", None)])
    assert (type(seen[0]), seen[0].text) == (AIMessage, text)
    assert seen[0].response_metadata["finish_reason"] == "stop"
    assert seen[0].response_metadata["model_name"]


class JudgeError(Exception):
    """What a function of a test raises."""


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("raised", [JudgeError("no"), UnavailableError("judge down")])
def test_an_exception_in_accept_ends_the_call(
    way: Way, gateway: FaultyGateway, raised: Exception
) -> None:
    """It is the caller's own, whatever its class: no route is blamed for it."""

    def accept(_: AIMessage) -> bool:
        raise raised

    router = router_of(
        gateway, accept=accept, breaker_settings={"failure_threshold": 1}
    )

    assert error_of(way, router) is raised
    assert len(gateway.requests) == 1
    assert router.routes[0].name == "gpt-4o"


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("verdict", [None, 1, "async"])
def test_a_verdict_of_another_type_is_an_error(
    way: Way, gateway: FaultyGateway, verdict: Any
) -> None:
    """A function without a `return`, or an async one in a sync call, is named."""

    def accept(message: AIMessage) -> Any:
        return ano_sorry(message) if verdict == "async" else verdict

    router = router_of(gateway, accept=accept)
    if way.is_async and verdict == "async":
        assert text_and_log(way, router)[0] == BACKUP
        return
    error = error_of(way, router)

    assert isinstance(error, TypeError)
    is_async = "accept is async, and this is a sync call"
    expected = f"True, False or a reason (str), not {verdict}"
    assert (is_async if verdict == "async" else expected) in str(error)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_failure_before_the_answer_is_as_ever(
    way: Way, gateway: FaultyGateway
) -> None:
    """`accept` is asked only of answers that are whole."""
    gateway.script(Status(503))
    router = router_of(gateway, accept=no_sorry, failover_on={"rejected": "failover"})

    text, lines = text_and_log(way, router)

    assert text == BACKUP
    assert [outcome for outcome, _ in lines] == ["unavailable", "rejected", "ok"]


LENGTHS = [
    "length",
    "max_tokens",
    "MAX_TOKENS",
    "max_output_tokens",
    "model_length",
    "model_context_window_exceeded",
    "token_limit",
]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("reason", LENGTHS)
def test_an_answer_that_a_limit_cut_passes_by_default(
    way: Way, gateway: FaultyGateway, reason: str
) -> None:
    """`failover_on={"length": ...}` leaves the route, in each provider's words."""
    gateway.always(Answer("I am", finish_reason=reason))
    assert text_and_log(way, router_of(gateway)) == ("I am", [("ok", None)])

    for rule in ("length", LengthLimitError):
        router = router_of(gateway, failover_on={rule: "failover"})
        text, lines = text_and_log(way, router)
        assert (text, lines) == (BACKUP, [("length", None), ("ok", None)])

    router = router_of(gateway, failover_on=[lambda _: None, {"length": "raise"}])
    error = error_of(way, router)
    assert isinstance(error, LengthLimitError)
    assert repr(reason) in str(error)
    assert error.raw_message is not None
    assert error.raw_message.text == "I am"


def test_explain_names_length_where_it_is_a_failure(gateway: FaultyGateway) -> None:
    """The table shows what is heard: by default a cut answer is none."""
    model = chat_openai(gateway)
    assert isinstance(model, ChatOpenAI)
    assert "length" not in str(RetryRouter(routes=[model]).explain())
    heard = RetryRouter(routes=[model], failover_on={"length": "raise"})
    assert "the end of the call: length" in str(heard.explain())
