"""`accept=`, and what `failover_on` makes of an answer that a token limit cut."""

from dataclasses import dataclass
from typing import Any

import pytest
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage

from langchain_retryrouter import (
    LengthLimitError,
    RejectedAnswerError,
    RetryRouter,
    Route,
    UnavailableError,
)
from langchain_retryrouter.testing import Answer, FaultyGateway, Status
from tests.support.models import chat_openai

from .attempts import WAYS, Way, ask, error_of, log_of, router_of

BACKUP = "The backup's answer."


def no_sorry(message: AIMessage) -> bool | str:
    return "sorry" not in message.text or "it says sorry"


async def ano_sorry(message: AIMessage) -> bool | str:
    return no_sorry(message)


@dataclass
class Lab:
    """A provider that says sorry, and routers that are asked in one of four ways."""

    way: Way
    gateway: FaultyGateway

    def router(self, **fields: Any) -> RetryRouter:
        """A router of OpenAI's model and a backup, which is asked after one retry."""
        said = iter([AIMessage(BACKUP)] * 9)
        backup = GenericFakeChatModel(messages=said, name="backup")
        routes = fields.pop("routes", [chat_openai(self.gateway), backup])
        return router_of(*routes, retries=1, **fields)

    def ask(self, router: RetryRouter) -> tuple[str, list[tuple[str, Any]]]:
        """The text of the answer, and each attempt's outcome and reason."""
        parts = ask(self.way, router)
        lines = [(line["outcome"], line.get("reason")) for line in log_of(parts)]
        return "".join(part.text for part in parts), lines

    def error(self, router: RetryRouter) -> Exception:
        return error_of(self.way, router)


@pytest.fixture(params=WAYS, ids=str)
def lab(request: pytest.FixtureRequest, gateway: FaultyGateway) -> Lab:
    """Run the test in each way."""
    gateway.always(Answer("I am sorry."))
    return Lab(request.param, gateway)


@pytest.mark.parametrize("of", ["router", "route"])
def test_an_answer_that_is_not_accepted_is_retried_and_failed_over(
    lab: Lab, of: str
) -> None:
    """Nothing of a rejected answer is handed over; the log says why it was rejected."""
    accept = ano_sorry if lab.way.is_async else no_sorry
    router = lab.router(accept=accept)
    if of == "route":
        first, second = router.routes
        router = lab.router(routes=[Route(model=first.model, accept=accept), second])
    rejected, accepted = ("rejected", "it says sorry"), ("ok", None)
    assert lab.ask(router) == (BACKUP, [rejected] * 2 + [accepted])
    assert len(lab.gateway.requests) == 2
    lab.gateway.script(Status(503))
    failed = ("unavailable", None)
    assert lab.ask(router) == (BACKUP, [failed, rejected, accepted])


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [(False, "accept returned False"), ("too short", "too short")],
)
def test_an_answer_that_no_route_gives_is_an_error(
    lab: Lab, verdict: bool | str, reason: str
) -> None:
    """The error has the reason and the message, and opens no breaker."""
    router = lab.router(
        routes=[chat_openai(lab.gateway)],
        accept=lambda _: verdict,
        breaker_settings={"failure_threshold": 1},
    )
    error = lab.error(router)
    assert isinstance(error, RejectedAnswerError)
    assert (error.kind, error.attempts) == ("rejected", 2)
    assert reason in str(error)
    assert error.raw_message is not None
    assert error.raw_message.text == "I am sorry."
    assert router.health()["is_healthy"]


def test_accept_sees_what_the_caller_would_get(lab: Lab) -> None:
    """The message is whole, with the model's name and the finish reason."""
    seen: list[AIMessage] = []

    def accept(message: AIMessage) -> bool:
        seen.append(message)
        return True

    text, lines = lab.ask(lab.router(accept=accept))
    assert (text, lines) == ("I am sorry.", [("ok", None)])
    assert (type(seen[0]), seen[0].text) == (AIMessage, text)
    assert seen[0].response_metadata["finish_reason"] == "stop"
    assert seen[0].response_metadata["model_name"]


class JudgeError(Exception):
    """What a function of a test raises."""


@pytest.mark.parametrize("raised", [JudgeError("no"), UnavailableError("judge down")])
def test_an_exception_in_accept_ends_the_call(lab: Lab, raised: Exception) -> None:
    """It is the caller's own, whatever its class: no route is blamed for it."""

    def accept(_: AIMessage) -> bool:
        raise raised

    router = lab.router(accept=accept, breaker_settings={"failure_threshold": 1})
    assert lab.error(router) is raised
    assert len(lab.gateway.requests) == 1
    assert router.health()["is_healthy"]


@pytest.mark.parametrize("verdict", [None, 1, "async"])
def test_a_verdict_of_another_type_is_an_error(lab: Lab, verdict: Any) -> None:
    """A function without a `return`, or an async one in a sync call, is named."""

    def accept(message: AIMessage) -> Any:
        return ano_sorry(message) if verdict == "async" else verdict

    router = lab.router(accept=accept)
    if lab.way.is_async and verdict == "async":
        assert lab.ask(router)[0] == BACKUP
        return
    error = lab.error(router)
    assert isinstance(error, TypeError)
    is_async = "accept is async, and this is a sync call"
    expected = f"True, False or a reason (str), not {verdict}"
    assert (is_async if verdict == "async" else expected) in str(error)


@pytest.mark.parametrize(
    "reason",
    [
        *("length", "max_tokens", "MAX_TOKENS", "max_output_tokens", "model_length"),
        *("model_context_window_exceeded", "token_limit", "maxTokens"),
    ],
)
def test_an_answer_that_a_limit_cut_passes_by_default(lab: Lab, reason: str) -> None:
    """`failover_on={"length": ...}` leaves the route, in each provider's words."""
    lab.gateway.always(Answer("I am", finish_reason=reason))
    assert lab.ask(lab.router()) == ("I am", [("ok", None)])

    for rule in ("length", LengthLimitError):
        router = lab.router(failover_on={rule: "failover"})
        text, lines = lab.ask(router)
        assert (text, lines) == (BACKUP, [("length", None), ("ok", None)])

    assert "length" not in str(lab.router().explain())
    router = lab.router(failover_on=[lambda _: None, {"length": "raise"}])
    assert "the end of the call: length" in str(router.explain())
    error = lab.error(router)
    assert isinstance(error, LengthLimitError)
    assert repr(reason) in str(error)
    assert error.raw_message is not None
    assert error.raw_message.text == "I am"
