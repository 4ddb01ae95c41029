"""`AttemptLog`: read from whatever has a log, as text, SVG and numbers."""

import io
import json
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumps
from langchain_core.messages import HumanMessage
from langchain_core.outputs import LLMResult
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler as Runs
from rich.console import Console

from langchain_retryrouter import (
    AttemptLog,
    RetryPolicy,
    RetryRouter,
    RetryRouterError,
)
from langchain_retryrouter.testing import (
    Cut,
    FakeClock,
    FaultyGateway,
    SlowFirstToken,
    Status,
)
from tests.promises.harness import new_model
from tests.support.models import chat_openai
from tests.unit_tests.conftest import Twin

HOSTILE = "</script><img src=x onerror=alert(1)>\x00&\"'"
LOG: dict[str, Any] = json.loads(
    """{"route": "backup", "cost": 0.0021, "cost_is_estimate": true, "attempts": [
    {"attempt": 1, "outcome": "rate_limit", "status_code": 429, "route": "first",
     "began": 0.0, "seconds": 0.5, "wait": 1.5, "cost": 0},
    {"outcome": "circuit_open", "began": 2.0, "seconds": 0.0},
    {"attempt": 2, "outcome": "ok", "route": "backup", "cost": 0.0021,
     "cost_is_estimate": true, "began": 2.0, "seconds": 2.0, "wait": 0.0}
    ]}"""
)
LOG["attempts"][1]["route"] = HOSTILE


@pytest.fixture
def tracer() -> Runs:
    """Keeps the runs, as LangSmith gets them."""
    return Runs()


def new_router(gateway: FaultyGateway, **fields: Any) -> RetryRouter:
    models = [chat_openai(gateway), chat_openai(gateway, "gpt-4o-mini")]
    return RetryRouter(**{"routes": models, "clock": FakeClock(), **fields})


def outcomes(log: AttemptLog) -> list[str]:
    return [line["outcome"] for line in log.attempts]


# --- where logs come from ---


@pytest.mark.parametrize("way", ["invoke", "stream", "generate"])
def test_the_log_of_an_answer_is_found(
    gateway: FaultyGateway, twin: Twin, tracer: Runs, way: str
) -> None:
    """A message, a sum of chunks, a result, a run and their JSON have the same log."""
    router = new_router(gateway)
    gateway.script(Status(503), Status(429, {"retry-after": "2"}))
    source: Any
    if way == "generate":
        source = twin.generate(router, [[HumanMessage("hi")]], callbacks=[tracer])
    else:
        source = getattr(twin, way)(router, "hi", {"callbacks": [tracer]})
    if way == "stream":
        source = sum(source[1:], source[0])
    text = AttemptLog(source).to_json()
    written = source.model_dump_json().encode()
    message = source.generations[0][0].message if way == "generate" else source
    dumped = json.loads(dumps(message))
    run = tracer.traced_runs[0]
    for one in (source, run, dumped, text, json.loads(text), written):
        log = AttemptLog(one)
        assert outcomes(log) == ["unavailable", "rate_limit", "ok"]
        assert (log.outcome, log.route) == ("ok", "gpt-4o")
        assert log.waited == sum(line["wait"] for line in log.attempts) > 2


class Results(BaseCallbackHandler):
    def __init__(self) -> None:
        self.results: list[LLMResult] = []

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        self.results.append(response)


def test_the_result_of_a_streamed_text_has_the_log(
    gateway: FaultyGateway, twin: Twin
) -> None:
    """Handlers of an LLM's stream find it in the result, and in its generation."""
    gateway.script(Status(503))
    llm, handler = new_model("OpenAI", gateway, clock=FakeClock()), Results()
    twin.stream(llm, "hi", {"callbacks": [handler]})
    [result] = handler.results
    for source in (result, result.generations[0][0]):
        assert outcomes(AttemptLog(source)) == ["unavailable", "ok"]
    twin.call(llm, "close")


@pytest.mark.parametrize("kind", ["router", "GPTRouter", "OpenAI", "cut"])
def test_an_error_has_the_log_of_its_call(
    gateway: FaultyGateway, twin: Twin, kind: str
) -> None:
    """An error carries its call's log: all attempts, also after a token was sent."""
    policy = RetryPolicy(max_retries=1)
    gateway.always(Cut(1) if kind == "cut" else Status(503))
    model: Any
    if kind in {"GPTRouter", "OpenAI"}:
        model = new_model(kind, gateway, retry_policy=policy, clock=FakeClock())
    else:
        model = new_router(gateway, stream_recovery="error", retry_policy=policy)
    with pytest.raises(RetryRouterError) as caught:
        twin.stream(model, "hi") if kind == "cut" else twin.invoke(model, "hi")
    twin.call(model, "close")
    log = AttemptLog(caught.value)
    sent = [line for line in log.attempts if "attempt" in line]
    assert len(sent) == caught.value.attempts == len(gateway.requests)
    assert log.outcome == ("interrupted" if kind == "cut" else "unavailable")


def test_a_run_that_failed_tells_its_attempts(
    gateway: FaultyGateway, tracer: Runs
) -> None:
    """A traced run without a log has an attempt for each retry event, and the last."""
    gateway.always(Status(503))
    router = new_router(gateway, routes=[chat_openai(gateway)])
    with pytest.raises(RetryRouterError):
        router.invoke("hi", {"callbacks": [tracer]})
    log = AttemptLog(tracer.traced_runs[0])
    assert outcomes(log) == ["UnavailableError", "UnavailableError", "failed"]
    assert [line["wait"] for line in log.attempts] == [0.75, 1.5, 0.0]


@pytest.mark.parametrize("source", [{}, "text", ValueError("no"), 5, {"attempts": 1}])
def test_what_has_no_log_is_an_error(source: Any) -> None:
    """Anything else is a ValueError that says what to give."""
    with pytest.raises(ValueError, match=r"no attempt log in .* response_metadata"):
        AttemptLog(source)


# --- when attempts began ---


def test_lines_say_when_attempts_began(gateway: FaultyGateway, twin: Twin) -> None:
    """`began` counts from the call's start: an attempt begins after the wait before."""
    gateway.script(Status(503), Status(503))
    began = 0.0
    for line in AttemptLog(twin.invoke(new_router(gateway), "hi")).attempts:
        assert line["began"] == pytest.approx(began)
        began += line["seconds"] + line["wait"]


def test_hedged_attempts_overlap(gateway: FaultyGateway, twin: Twin) -> None:
    """The second attempt of a hedged stream begins while the first one is open."""
    gateway.script(SlowFirstToken(5))
    router = new_router(gateway, hedge_after=0.02, clock=None)
    chunks = twin.stream(router, "hi")
    first, second = AttemptLog(sum(chunks[1:], chunks[0])).attempts
    assert (first["outcome"], second["outcome"]) == ("cancelled", "ok")
    assert 0 < second["began"] < first["began"] + first["seconds"]


# --- what it looks like ---


def test_the_timeline_in_text() -> None:
    """`str` has a line an attempt: bars, waits, marks, outcomes, seconds and cost."""
    first, *lines = str(AttemptLog(LOG)).replace(HOSTILE.rstrip(), "?").splitlines()
    assert (
        first == "ok from backup: 4.00 s, 2 attempts, 1.50 s waited, cost about 0.0021"
    )
    assert lines[0].startswith("  1  first")
    assert "xxxx............." in lines[0]
    assert lines[0].endswith("rate_limit 429, 500 ms, 0, wait 1.50 s")
    assert lines[1].endswith("!" + " " * 19 + "circuit_open")
    assert lines[2].endswith("==================  ok, 2.00 s, about 0.0021")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_rich_draws_in_any_width(width: int) -> None:
    """The form for rich has the same lines, and none is wider than the console."""
    screen = io.StringIO()
    Console(file=screen, width=width, color_system=None).print(AttemptLog(LOG))
    lines = screen.getvalue().splitlines()
    assert "".join(lines).count("━") >= 2
    assert "◆" in screen.getvalue()
    assert max(map(len, lines)) <= width


def test_a_notebook_gets_svg_without_foreign_markup() -> None:
    """The SVG is well-formed, with a bar an attempt, and the names in it are text."""
    log = AttemptLog(LOG)
    root = ET.fromstring(log.svg())  # noqa: S314 - our own
    space = "{http://www.w3.org/2000/svg}"
    bars = root.findall(f".//{space}rect")
    assert [bar.get("fill") for bar in bars] == ["#dc5b4b", "#2c9a4b"]
    assert float(bars[1].get("x", 0)) > float(bars[0].get("x", 0))
    assert not root.findall(f".//{space}img")
    assert "</script>" in "".join(root.itertext())
    assert "<img" not in log._repr_html_()
    assert "</script" not in log._repr_html_()


@pytest.mark.parametrize(
    "value", ["x", None, -1, float("nan"), float("inf"), True, [], {}, 10**99]
)
def test_wrong_numbers_of_a_file_are_drawn_as_nothing(value: Any) -> None:
    """A log may come from anywhere: what is not a number counts as 0."""
    fields = ("began", "seconds", "wait", "cost", "limiter_wait", "status_code")
    line = {"attempt": value, "outcome": value, "route": value}
    log = AttemptLog({"attempts": [{**line, **dict.fromkeys(fields, value)}]})
    assert log.seconds >= 0
    ET.fromstring(log.svg())  # noqa: S314 - our own
    assert str(log)


def test_texts_of_a_log_are_neither_markup_nor_obeyed_by_a_terminal() -> None:
    """Each text of a log from a file is shown as text, wherever it stands."""
    hostile = "</text><script>alert(1)</script>\x1b[2J\ud800\n"
    line = dict.fromkeys(("attempt", "outcome", "status_code", "route"), hostile)
    log = AttemptLog({"route": hostile, "attempts": [line | {"reason": hostile}]})
    assert "<script" not in log._repr_html_()
    ET.fromstring(log.svg())  # noqa: S314 - our own
    screen = io.StringIO()
    Console(file=screen, width=200, color_system=None).print(log)
    for text in (str(log), screen.getvalue(), str(AttemptLog.summarize([log]))):
        assert "\x1b" not in text
        text.encode()


# --- many calls ---


def test_a_batch_adds_up(gateway: FaultyGateway, twin: Twin) -> None:
    """`summarize` counts calls, attempts, waits, answers and failures by their kind."""
    gateway.script(Status(503), Status(503))
    router = new_router(gateway, retry_policy=RetryPolicy(max_retries=1))
    good = twin.invoke(router, "hi")
    gateway.always(Status(401))
    with pytest.raises(RetryRouterError) as caught:
        twin.invoke(router, "hi")
    summary = AttemptLog.summarize([good, caught.value, LOG, KeyError("x"), "text"])
    assert (summary.calls, summary.answered) == (5, 3)
    assert summary.attempts == len(gateway.requests) + 2
    assert summary.failures["unavailable"] == summary.failures["authentication"] == 2
    assert summary.failures["KeyError"] == 1
    assert summary.routes == {"gpt-4o-mini": 1, "backup": 1}
    assert str(summary).startswith("5 calls, 3 answered, ")
    log = AttemptLog(good)
    for one in (good, log, log.as_dict(), log.to_json()):
        assert AttemptLog.summarize(one) == AttemptLog.summarize([good])
    assert AttemptLog.summarize(caught.value).calls == 1
