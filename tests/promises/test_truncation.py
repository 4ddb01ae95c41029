"""A stream that ends too early, wherever and however, is never a short answer."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

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
from tests.promises.harness import (
    ALL,
    aask,
    ask,
    chat_openai,
    is_stub_answer,
    new_model,
    run_twin,
)

TEXT: Final = "The answer of the model has several words, and none of them may be lost."
TOLD: Final = Answer(TEXT)
HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: "
STREAMED: Final = HEAD + b"text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
ONCE: Final = RetryPolicy(max_retries=0)
SILENT: Final = RetryPolicy(max_retries=0, stall_timeout=0.1, first_token_timeout=0.1)
TAKEN: Final = "cut streams taken for whole answers"
CHANGED: Final = "cut streams with text that was never sent, or lost"
FOREIGN: Final = "cut streams whose error is not a RetryRouterError"
NOT_REPEATED: Final = "cut streams that buffer or continue did not make whole"


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


@dataclass(frozen=True)
class Listener:
    """One way to ask for a stream: a class, or a router over some of that class."""

    of: str
    fields: dict[str, Any] = field(default_factory=dict)
    over: str = ""

    def __str__(self) -> str:
        """Its name in the test's."""
        return " ".join([self.of, self.over, *map(str, self.fields.values())])

    @property
    def is_repeated(self) -> bool:
        """Whether a broken stream is followed by a whole one, and made good by it."""
        return "stream_recovery" in self.fields

    @property
    def is_invoked(self) -> bool:
        """Whether the stream runs inside `invoke`."""
        return "streaming" in self.fields

    def model(self, gateway: FaultyGateway, policy: RetryPolicy) -> Any:
        """The model; it waits on a fake clock."""
        retries = 1 if self.is_repeated else 0
        policy = dataclasses.replace(policy, max_retries=retries)
        fields = {**self.fields, "clock": FakeClock(), "retry_policy": policy}
        if self.of != "RetryRouter":
            return new_model(self.of, gateway, **fields)
        routes = [
            chat_openai(gateway.url)
            if self.over == "ChatOpenAI"
            else new_model(self.over, gateway)
            for _ in range(retries + 1)
        ]
        return RetryRouter(routes=routes, breaker_settings=None, **fields)

    async def ask(self, model: Any, pieces: list[Any], *, is_async: bool) -> None:
        """Ask; what comes is in `pieces`, also when it breaks off."""
        if self.is_invoked and hasattr(model, "bind_tools"):
            pieces.append(await model.ainvoke("hi") if is_async else model.invoke("hi"))
        elif self.is_invoked:
            result = (
                await model.agenerate(["hi"]) if is_async else model.generate(["hi"])
            )
            pieces.append(result.generations[0][0].text)
        elif is_async:
            async for piece in model.astream("hi"):
                pieces.append(piece)  # noqa: PERF401 - kept also when it breaks off
        else:
            for piece in model.stream("hi"):
                pieces.append(piece)  # noqa: PERF402

    def faults_of(
        self, pieces: list[Any], error: Exception | None, *, may_be_whole: bool
    ) -> Iterable[str]:
        """The rules that one cut stream has broken."""
        text = "".join(str(getattr(piece, "content", piece)) for piece in pieces)
        if error is None:
            facts = [getattr(piece, "response_metadata", None) for piece in pieces]
            told = [one.get("finish_reason") for one in facts if one is not None]
            is_whole = may_be_whole and (not told or "stop" in told)
            if text != TEXT or not is_whole:
                yield TAKEN
            return
        if self.is_repeated:
            yield NOT_REPEATED
        if not isinstance(error, RetryRouterError):
            yield FOREIGN
        delivered = text
        if isinstance(error, StreamInterruptedError) and not self.is_invoked:
            delivered = error.delivered
        if not TEXT.startswith(text) or delivered != text:
            yield CHANGED


LISTENERS: Final = (
    *(Listener(name) for name in ("GPTRouter", "OpenAI", "OpenAIChat")),
    *(Listener(name, {"streaming": True}) for name in ("GPTRouter", "OpenAI")),
    *(
        Listener("RetryRouter", how, over)
        for over in ("GPTRouter", "ChatOpenAI")
        for how in ({}, {"stream_recovery": "buffer"}, {"stream_recovery": "continue"})
    ),
)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("how", ["clean end", "fin", "rst", "silence"])
@pytest.mark.parametrize("listener", LISTENERS, ids=str)
def test_no_part_of_a_stream_is_an_answer(
    listener: Listener, how: str, twin: Twin, figures: Figures, *, is_long: bool
) -> None:
    """However a stream is cut, the caller gets an error, or all of it by a retry."""
    count, policy = (1_500 if is_long else 25), ONCE
    if how == "silence":
        count, policy = (40 if is_long else 4), SILENT
    broken, stories = Counter[str](), list[str]()

    async def listen_to_all() -> None:
        model = listener.model(gateway, policy)
        for at in cuts:
            step = cut(body, at, how)
            gateway.script(*([step, TOLD] if listener.is_repeated else [step]))
            pieces: list[Any] = []
            error = None
            try:
                await listener.ask(model, pieces, is_async=twin.is_async)
            except Exception as caught:  # noqa: BLE001 - judged below
                error = caught
            # A repeated stream may come from its second attempt.
            may_be_whole = b'"stop"' in body[:at] or listener.is_repeated
            faults = [*listener.faults_of(pieces, error, may_be_whole=may_be_whole)]
            broken.update(faults)
            if faults:
                stories.append(f"at {at} of {len(body)}: {faults}, {error!r}")

    with FaultyGateway(keep_requests=1, gptrouter="hosted") as gateway:
        model = listener.model(gateway, ONCE)
        ask_once = model.invoke if listener.is_invoked else model.stream
        body = recorded_body(gateway, lambda: [*ask_once("hi")])
        cuts = places(len(body), count, LISTENERS.index(listener) * 7)
        run_twin(twin, listen_to_all)
    assert not stories, "\n".join(stories[:5])
    figures.counted(len(cuts), "streams cut")
    for what in (TAKEN, CHANGED, FOREIGN, NOT_REPEATED):
        figures.exactly(0, broken[what], what)


@pytest.mark.parametrize("name", ALL)
def test_no_part_of_a_body_is_an_answer(
    name: str, twin: Twin, figures: Figures, *, is_long: bool
) -> None:
    """An unstreamed answer that ends too early is an error, however it is framed."""
    taken: list[Any] = []

    async def ask_all() -> None:
        for step in cut_short:
            gateway.script(step)
            with contextlib.suppress(RetryRouterError):
                taken.append(await aask(model) if twin.is_async else ask(model))
        assert is_stub_answer(await aask(model) if twin.is_async else ask(model))

    with FaultyGateway(keep_requests=1, gptrouter="hosted") as gateway:
        listener = Listener(name, over="GPTRouter")
        model = listener.model(gateway, ONCE)
        body = recorded_body(gateway, lambda: ask(model), Answer())
        head = HEAD + b"application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        cut_short = [
            step
            for at in places(len(body), 1_000 if is_long else 12)
            for step in (Body(body=body[:at]), Raw(head + body[:at]))
        ]
        run_twin(twin, ask_all)
    figures.counted(len(cut_short), "JSON bodies cut")
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
