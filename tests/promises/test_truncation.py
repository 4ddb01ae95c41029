"""A stream that ends too early, wherever and however, is never a short answer."""

import contextlib
import dataclasses
import http.client
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import pytest

from langchain_retryrouter import (
    RetryPolicy,
    RetryRouter,
    RetryRouterError,
    StreamInterruptedError,
)
from langchain_retryrouter.testing import (
    Answer,
    Body,
    FakeClock,
    FaultyGateway,
    Raw,
    Step,
)
from tests.promises.conftest import Figures, Twin
from tests.promises.harness import ALL, call, is_stub_answer, new_model
from tests.support.models import chat_openai

TEXT: Final = (
    "The answer has several wörds, 日本語の言葉も, and none of them may be lost."
)
TOLD: Final = Answer(TEXT)
HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: "
STREAMED: Final = HEAD + b"text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
ONCE: Final = RetryPolicy(max_retries=0)
SILENT: Final = RetryPolicy(max_retries=0, stall_timeout=0.3, first_token_timeout=0.3)


def recorded_body(
    gateway: FaultyGateway, call: Callable[[], object], answer: Step = TOLD
) -> bytes:
    """The body with which the gateway answers the request that `call` makes."""
    gateway.script(answer, answer)
    call()
    request = gateway.requests[-1]
    connection = http.client.HTTPConnection(gateway.url.removeprefix("http://"))
    with contextlib.closing(connection):
        path = f"{request.path}?{request.query}"
        headers = {"content-type": "application/json"}
        connection.request(request.method, path, request.body, headers)
        return connection.getresponse().read()


def cut(body: bytes, at: int, how: str) -> Step:
    """The first `at` bytes of a streamed body, and then an end of this sort."""
    part = STREAMED + (b"%x\r\n%b\r\n" % (at, body[:at]) if at else b"")
    if how == "clean end":
        return Raw(part + b"0\r\n\r\n", close=False)
    if how == "silence":
        return Raw(part, close=False)
    return Raw(part, how="rst" if how == "rst" else "fin")


def places(size: int, count: int, shift: int = 0) -> range:
    """`count` places in a body, each run of the test at other ones; or every byte."""
    step = max(1, size // count)
    return range(shift % step, size, step)


class Listener(NamedTuple):
    """One way to ask for a stream: a class, or a router over some of that class."""

    of: str
    over: str = ""
    recovery: str | None = None
    """A broken stream is followed by a whole one, and made good by it."""
    is_invoked: bool = False
    """The stream runs inside `invoke`."""

    def model(self, gateway: FaultyGateway, policy: RetryPolicy = ONCE) -> Any:
        """The model; it waits on a fake clock."""
        retries = 1 if self.recovery else 0
        policy = dataclasses.replace(policy, max_retries=retries)
        fields: dict[str, Any] = {"clock": FakeClock(), "retry_policy": policy}
        if self.is_invoked:
            fields["streaming"] = True
        if self.of != "RetryRouter":
            return new_model(self.of, gateway, **fields)
        if self.recovery:
            fields["stream_recovery"] = self.recovery
        routes = [
            chat_openai(gateway.url)
            if self.over == "ChatOpenAI"
            else new_model("GPTRouter", gateway)
            for _ in range(retries + 1)
        ]
        return RetryRouter(routes=routes, breaker_settings=None, **fields)

    def ask(self, twin: Twin, model: Any, pieces: list[Any]) -> None:
        """Ask; what comes is in `pieces`, also when it breaks off."""
        if not self.is_invoked:
            twin.stream(model, "hi", into=pieces)
        elif hasattr(model, "bind_tools"):
            pieces.append(twin.invoke(model, "hi"))
        else:
            pieces.append(twin.generate(model, ["hi"]).generations[0][0].text)

    def faults_of(
        self, pieces: list[Any], error: Exception | None, *, may_be_whole: bool
    ) -> dict[str, bool]:
        """The rules for one cut stream, and whether it has broken them."""
        text = "".join(str(getattr(piece, "content", piece)) for piece in pieces)
        facts = [getattr(piece, "response_metadata", None) for piece in pieces]
        told = [one.get("finish_reason") for one in facts if one is not None]
        is_whole = text == TEXT and may_be_whole and (not told or "stop" in told)
        delivered = text
        if isinstance(error, StreamInterruptedError) and not self.is_invoked:
            delivered = error.delivered
        is_beginning = TEXT.startswith(text) and delivered == text
        is_ours = isinstance(error, RetryRouterError)
        has_failed = error is not None
        return {
            "taken for whole answers": not has_failed and not is_whole,
            "with text that was never sent, or lost": has_failed and not is_beginning,
            "whose error is not a RetryRouterError": has_failed and not is_ours,
            "that buffer or continue did not make whole": has_failed
            and self.recovery is not None,
        }


LISTENERS: Final = (
    *(Listener(name) for name in ("GPTRouter", "OpenAI", "OpenAIChat")),
    *(Listener(name, is_invoked=True) for name in ("GPTRouter", "OpenAI")),
    *(
        Listener("RetryRouter", over, recovery)
        for over in ("GPTRouter", "ChatOpenAI")
        for recovery in (None, "buffer", "continue")
    ),
)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("how", ["clean end", "fin", "rst", "silence"])
@pytest.mark.parametrize("listener", LISTENERS, ids=lambda one: "-".join(map(str, one)))
def test_no_part_of_a_stream_is_an_answer(
    listener: Listener, how: str, twin: Twin, figures: Figures, *, is_long: bool
) -> None:
    """However a stream is cut, the caller gets an error, or all of it by a retry."""
    count, policy = (1_500 if is_long else 25), ONCE
    if how == "silence":
        count, policy = (40 if is_long else 3), SILENT
    broken, stories = Counter[str](), list[str]()
    with FaultyGateway(keep_requests=1, gptrouter="hosted") as gateway:
        sync = Twin(is_async=False)
        body = recorded_body(
            gateway, lambda: listener.ask(sync, listener.model(gateway), [])
        )
        cuts = places(len(body), count, LISTENERS.index(listener) * 7)
        model = listener.model(gateway, policy)
        for at in cuts:
            step = cut(body, at, how)
            gateway.script(*([step, TOLD] if listener.recovery else [step]))
            pieces: list[Any] = []
            error = None
            try:
                listener.ask(twin, model, pieces)
            except Exception as caught:  # noqa: BLE001 - judged below
                error = caught
            # A repeated stream may come from its second attempt.
            may_be_whole = b'"stop"' in body[:at] or listener.recovery is not None
            faults = listener.faults_of(pieces, error, may_be_whole=may_be_whole)
            broken.update({what: int(is_so) for what, is_so in faults.items()})
            if any(faults.values()):
                stories.append(f"at {at} of {len(body)}: {faults}, {error!r}")
    assert not stories, "\n".join(stories[:5])
    figures.counted(len(cuts), "streams cut")
    for what, number in broken.items():
        figures.exactly(0, number, f"cut streams {what}")


@pytest.mark.parametrize("name", ALL)
def test_no_part_of_a_body_is_an_answer(
    name: str, twin: Twin, figures: Figures, *, is_long: bool
) -> None:
    """An unstreamed answer that ends too early is an error, however it is framed."""
    taken: list[Any] = []
    with FaultyGateway(keep_requests=1, gptrouter="hosted") as gateway:
        model = Listener(name).model(gateway)
        body = recorded_body(gateway, lambda: call(model), Answer())
        head = HEAD + b"application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        cuts = places(len(body), 1_000 if is_long else 12)
        for at in cuts:
            for step in (Body(body=body[:at]), Raw(head + body[:at])):
                gateway.script(step)
                with contextlib.suppress(RetryRouterError):
                    taken.append(call(model, "ainvoke" if twin.is_async else "invoke"))
        assert is_stub_answer(call(model))
    figures.counted(2 * len(cuts), "JSON bodies cut")
    figures.exactly(0, len(taken), "cut JSON bodies taken for answers")


@pytest.mark.parametrize("how", ["clean end", "fin"])
def test_what_chat_openai_makes_of_a_cut_stream(
    how: str, figures: Figures, *, is_long: bool
) -> None:
    """The same cuts, heard by langchain-openai's model alone."""
    taken = 0
    with FaultyGateway(keep_requests=1) as gateway:
        model = chat_openai(gateway.url, max_retries=0)
        body = recorded_body(gateway, lambda: list(model.stream("hi")))
        cuts = places(body.index(b'"stop"'), 100 if is_long else 20)
        for at in cuts:
            gateway.script(cut(body, at, how))
            with contextlib.suppress(Exception):
                list(model.stream("hi"))
                taken += 1
    figures.peer(100 * taken / len(cuts), f"% of cuts by {how} taken")
