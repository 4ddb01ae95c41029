"""A stream that ends too early, wherever and however, is never a short answer."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.client
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from langchain_core.messages import BaseMessage
from langchain_core.outputs import Generation

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
from tests.promises.models import (
    ALL,
    aask,
    ask,
    chat_openai,
    is_stub_answer,
    load_lazily_imported_modules,
    new_model,
)

TEXT: Final = (
    "Grüße, 世界: 🙂 an answer of several words, and not one of them may be lost."
)
TOLD: Final = Answer(TEXT)
HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
CHUNKED: Final = HEAD + b"transfer-encoding: chunked\r\n\r\n"
ONCE: Final = RetryPolicy(max_retries=0)
SILENT: Final = RetryPolicy(max_retries=0, stall_timeout=0.1, first_token_timeout=0.1)
TAKEN: Final = "cut streams taken for whole answers"
CHANGED: Final = "cut streams with text that was never sent, or lost"
FOREIGN: Final = "cut streams whose error is not a RetryRouterError"
NOT_REPEATED: Final = "cut streams that buffer or continue did not make whole"


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """Nothing is imported by the first call."""
    load_lazily_imported_modules()


# --- what is cut, and how ---


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
        response = connection.getresponse()
        assert response.status == 200
        return response.read()


def cut(body: bytes, at: int, how: str) -> Step:
    """The first `at` bytes of a streamed body, and then an end of this sort."""
    part = b"%x\r\n%b\r\n" % (at, body[:at]) if at else b""
    if how == "clean end":
        return Raw(CHUNKED + part + b"0\r\n\r\n", close=False)
    if how == "silence":
        return Raw(CHUNKED + part, close=False)
    return Raw(CHUNKED + part, how="rst" if how == "rst" else "fin")


HOW: Final = ("clean end", "fin", "rst", "silence")


# --- who listens ---


def over(route: str, gateway: FaultyGateway, **fields: Any) -> RetryRouter:
    """A RetryRouter with this route; with two, if it recovers streams."""
    routes = [
        new_model("GPTRouter", gateway)
        if route == "GPTRouter"
        else chat_openai(gateway.url)
        for _ in range(2 if fields.get("stream_recovery") else 1)
    ]
    return RetryRouter(routes=routes, breaker_settings=None, **fields)


@dataclass(frozen=True)
class Listener:
    """One way to ask for a stream."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    is_repeated: bool = False
    """Whether a broken stream is followed by a whole one, and made good by it."""

    @property
    def is_invoked(self) -> bool:
        """Whether the stream runs inside `invoke`."""
        return bool(self.fields.get("streaming"))

    def model(self, gateway: FaultyGateway, policy: RetryPolicy) -> Any:
        """The model; it waits on a fake clock."""
        fields = {**self.fields, "clock": FakeClock()}
        if self.is_repeated:
            policy = dataclasses.replace(policy, max_retries=1)
        if self.name.startswith("RetryRouter"):
            route = self.name.split()[2].rstrip(",")
            return over(route, gateway, retry_policy=policy, **fields)
        name = self.name.partition("(")[0].partition(".")[0]
        return new_model(name, gateway, retry_policy=policy, **fields)


LISTENERS: Final = (
    Listener("GPTRouter.stream"),
    Listener("GPTRouter(streaming).invoke", {"streaming": True}),
    Listener("OpenAI.stream"),
    Listener("OpenAI(streaming).generate", {"streaming": True}),
    Listener("OpenAIChat.stream"),
    Listener("RetryRouter over GPTRouter"),
    Listener("RetryRouter over ChatOpenAI"),
    *(
        Listener(
            f"RetryRouter over {route}, {recovery}",
            {"stream_recovery": recovery},
            is_repeated=True,
        )
        for route in ("GPTRouter", "ChatOpenAI")
        for recovery in ("buffer", "continue")
    ),
)


async def pieces_of(
    listener: Listener, model: Any, into: list[Any], *, is_async: bool
) -> None:
    """Ask for the answer; its pieces are in `into`, also when it breaks off."""
    if not listener.is_invoked:
        if is_async:
            async for piece in model.astream("hi"):
                into.append(piece)  # noqa: PERF401 - kept also when it breaks off
        else:
            for piece in model.stream("hi"):
                into.append(piece)  # noqa: PERF402
        return
    if hasattr(model, "bind_tools"):
        into.append(await model.ainvoke("hi") if is_async else model.invoke("hi"))
        return
    result = await model.agenerate(["hi"]) if is_async else model.generate(["hi"])
    into.append(result.generations[0][0])


def text_of(pieces: list[Any]) -> str:
    """All text that was handed over."""
    return "".join(
        piece
        if isinstance(piece, str)
        else str(getattr(piece, "content", ""))
        or str(getattr(piece, "text", "") if isinstance(piece, Generation) else "")
        for piece in pieces
    )


def finish_reason_of(pieces: list[Any]) -> str | None:
    """Why the answer ended, where the listener is told."""
    facts = (getattr(piece, "response_metadata", {}) for piece in pieces)
    return next(filter(None, (one.get("finish_reason") for one in facts)), None)


class Tally:
    """What became of all cut streams."""

    def __init__(self) -> None:
        self.tried = 0
        self.wrong: dict[str, list[str]] = {
            what: [] for what in (TAKEN, CHANGED, FOREIGN, NOT_REPEATED)
        }

    def judge(
        self,
        listener: Listener,
        story: str,
        pieces: list[Any],
        error: Exception | None,
        *,
        may_be_whole: bool,
    ) -> None:
        """Hold one stream against the rules."""
        self.tried += 1
        text = text_of(pieces)
        story = f"{listener.name}, {story}: {text[-20:]!r}, {error!r}"
        if error is None:
            tells = isinstance(pieces[-1], BaseMessage) if pieces else False
            ended = finish_reason_of(pieces) == "stop" or not tells
            if text != TEXT or not (may_be_whole and ended):
                self.wrong[TAKEN].append(story)
            return
        if listener.is_repeated:
            self.wrong[NOT_REPEATED].append(story)
        if not isinstance(error, RetryRouterError):
            self.wrong[FOREIGN].append(story)
        delivered = text
        if isinstance(error, StreamInterruptedError) and not listener.is_invoked:
            delivered = error.delivered
        if not TEXT.startswith(text) or delivered != text:
            self.wrong[CHANGED].append(story)

    def note(self, figures: Figures) -> None:
        """The figures; what went wrong is in the failure."""
        found = [f"{what}: {s}" for what, all_ in self.wrong.items() for s in all_[:5]]
        assert not found, "\n".join(found)
        figures.counted(self.tried, "streams cut")
        for what, all_of_them in self.wrong.items():
            figures.exactly(0, len(all_of_them), what)


def places(size: int, count: int, shift: int) -> Iterator[int]:
    """`count` places in a body, each run of the test at other ones; or every byte."""
    step = max(1, size // count)
    return iter(range(shift % step, size, step))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("listener", LISTENERS, ids=lambda one: one.name)
def test_no_part_of_a_stream_is_an_answer(
    listener: Listener, how: str, twin: Twin, figures: Figures, *, is_long: bool
) -> None:
    """However a stream is cut, the caller gets an error, or all of it by a retry."""
    count = 4 if how == "silence" else 25
    policy = SILENT if how == "silence" else ONCE
    if is_long:
        count = 40 if how == "silence" else 1_500
    tally = Tally()

    async def listen_to_all(gateway: FaultyGateway, body: bytes) -> None:
        model = listener.model(gateway, policy)
        for at in places(len(body), count, LISTENERS.index(listener) * 7):
            step = cut(body, at, how)
            gateway.script(*([step, TOLD] if listener.is_repeated else [step]))
            pieces: list[Any] = []
            error = None
            try:
                await pieces_of(listener, model, pieces, is_async=twin.is_async)
            except Exception as caught:  # noqa: BLE001 - judged below
                error = caught
            # A repeated stream may come from its second attempt.
            may_be_whole = b'"stop"' in body[:at] or listener.is_repeated
            story = f"{how} at {at} of {len(body)}"
            tally.judge(listener, story, pieces, error, may_be_whole=may_be_whole)

    with FaultyGateway(keep_requests=1, gptrouter="hosted") as gateway:
        model = listener.model(gateway, ONCE)
        is_text = listener.is_invoked
        body = recorded_body(
            gateway, lambda: model.invoke("hi") if is_text else list(model.stream("hi"))
        )
        listening = listen_to_all(gateway, body)
        if twin.is_async:
            asyncio.run(listening)
        else:
            with pytest.raises(StopIteration):  # Nothing in it waits for an event loop.
                listening.send(None)
    tally.note(figures)


@pytest.mark.parametrize("name", ALL)
def test_no_part_of_a_body_is_an_answer(
    name: str, twin: Twin, figures: Figures, *, is_long: bool
) -> None:
    """An unstreamed answer that ends too early is an error, however it is framed."""
    with FaultyGateway(keep_requests=1, gptrouter="hosted") as gateway:
        model = new_model(name, gateway, retry_policy=ONCE)
        if name == "RetryRouter":
            model = over("GPTRouter", gateway, retry_policy=ONCE)
        body = recorded_body(gateway, lambda: ask(model), Answer())
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
        length = b"content-length: %d\r\n\r\n" % len(body)
        cut_short = [
            step
            for at in places(len(body), 1_000 if is_long else 12, 0)
            for step in (Body(body=body[:at]), Raw(head + length + body[:at]))
        ]

        async def taken() -> int:
            count = 0
            for step in cut_short:
                gateway.script(step)
                with contextlib.suppress(RetryRouterError):
                    await aask(model) if twin.is_async else ask(model)
                    count += 1
            answer = await aask(model) if twin.is_async else ask(model)
            assert is_stub_answer(answer)
            return count

        asking = taken()
        if twin.is_async:
            count = asyncio.run(asking)
        else:
            with pytest.raises(StopIteration) as end:
                asking.send(None)
            count = end.value.value
    figures.counted(len(cut_short), "JSON bodies cut")
    figures.exactly(0, count, "cut JSON bodies taken for answers")


@pytest.mark.parametrize("how", ["clean end", "fin"])
def test_what_chat_openai_makes_of_a_cut_stream(
    how: str, figures: Figures, *, is_long: bool
) -> None:
    """The same cuts, heard by langchain-openai's model alone."""
    taken = 0
    with FaultyGateway(keep_requests=1) as gateway:
        model = chat_openai(gateway.url, max_retries=0)
        body = recorded_body(gateway, lambda: list(model.stream("hi")))
        end = body.index(b'"stop"')
        cuts = list(places(end, 100 if is_long else 20, 0))
        for at in cuts:
            gateway.script(cut(body, at, how))
            with contextlib.suppress(Exception):
                list(model.stream("hi"))
                taken += 1
    figures.peer("ChatOpenAI", 100 * taken / len(cuts), f"% of cuts by {how} taken")
