"""Whatever a server sends, the caller gets an answer or a RetryRouterError."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import json
import multiprocessing
import random  # noqa: TID251 - each input has its own, by its seed
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

from langchain_retryrouter import RetryPolicy, RetryRouterError
from langchain_retryrouter.testing import (
    Answer,
    Body,
    FaultyGateway,
    Status,
    Step,
    ToolCall,
    Usage,
)
from tests.promises.conftest import Figures, Twin
from tests.promises.models import (
    GATEWAY,
    LLMS,
    METHODS,
    aask,
    ask,
    call,
    is_stub_answer,
    load_lazily_imported_modules,
    new_model,
)
from tests.promises.test_truncation import recorded_body

FOREIGN: Final = "exceptions that are not a RetryRouterError"
ODD: Final[tuple[Any, ...]] = (
    *(None, True, 0, -1, 0.5, 1e308, float("inf"), float("nan"), 10**400),
    *("", "x", "-1", "429", "9" * 5_000, "²", "\x00", "\ud800", "\u2028", "stop"),
    *([], {}, [None], [[]], ["x"], [{}], {"a": None}, {"error": {"code": "9" * 5_000}}),
)
TOKENS: Final = (
    *(b"null", b"NaN", b"1e999", b'"', b"\\", b"\\ud800", b"{", b"}", b"[", b"]"),
    *(
        b"\n",
        b"\r\n\r\n",
        b"\xef\xbb\xbf",
        b"\xff",
        b"\x00",
        b"data: ",
        b"event: end\n",
    ),
    *(b"data: [DONE]\n\n", b": comment\n", b"[" * 1_500, b'{"a":' * 700),
)


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """Nothing is imported by the first call."""
    load_lazily_imported_modules()


def mutated(body: bytes, rng: random.Random) -> bytes:
    """A body with one to three mutations of its bytes or of its JSON."""
    for _ in range(rng.randint(1, 3)):
        body = rng.choice(
            (flipped, cut_out, repeated, with_token, *[restructured] * 4)
        )(body, rng)
    return body


def stretch(body: bytes, rng: random.Random) -> tuple[int, int]:
    """Two places, not far from each other."""
    start = rng.randrange(len(body) + 1)
    return start, min(len(body), start + rng.randrange(40))


def flipped(body: bytes, rng: random.Random) -> bytes:
    """One bit is another."""
    changed = bytearray(body or b"x")
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut_out(body: bytes, rng: random.Random) -> bytes:
    """A piece is missing, or all that comes after it too."""
    start, end = stretch(body, rng)
    return body[:start] + (body[end:] if rng.random() < 0.5 else b"")


def repeated(body: bytes, rng: random.Random) -> bytes:
    """A piece comes twice."""
    start, end = stretch(body, rng)
    return body[:end] + body[start:]


def with_token(body: bytes, rng: random.Random) -> bytes:
    """Something that means something is where it does not belong."""
    start, end = stretch(body, rng)
    return body[:start] + rng.choice(TOKENS) + body[rng.choice((start, end)) :]


def restructured(body: bytes, rng: random.Random) -> bytes:
    """Any value of the JSON, or of one event of a stream, is replaced or missing."""
    lines = body.split(b"\n")
    events = [at for at, line in enumerate(lines) if line.startswith(b"data: {")]
    at = rng.choice(events) if events else 0
    prefix = b"data: " if events else b""
    try:
        document = json.loads(lines[at].removeprefix(prefix))
    except ValueError:
        return body
    holder, key = document, None
    inner = document
    while isinstance(inner, dict | list) and inner and rng.random() < 0.8:
        holder = inner
        key = rng.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
        inner = inner[key]
    if key is None:
        document = rng.choice(ODD)
    elif rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = copy.deepcopy(rng.choice((*ODD, [inner], {"text": inner})))
    with contextlib.suppress(ValueError):
        lines[at] = prefix + json.dumps(document).encode()
    return b"\n".join(lines)


WHOLE: Final = Answer(
    "Hello, 世界.", tool_calls=(ToolCall("search", '{"q": "x"}'),), usage=Usage(3, 5)
)


@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")
@pytest.mark.parametrize("method", ["invoke", "stream"])
@pytest.mark.parametrize("name", ["GPTRouter", *LLMS])
def test_mutated_answers_are_read_or_refused(
    name: str, method: str, figures: Figures, *, is_long: bool
) -> None:
    """Recorded answers and errors are mutated, and read over HTTP as any answer."""
    count, foreign, accepted = 20_000 if is_long else 120, list[str](), 0
    with FaultyGateway(gptrouter="hosted", keep_requests=1) as gateway:
        once = RetryPolicy(max_retries=0)
        model = new_model(name, gateway, retry_policy=once)
        record = gateway_answers(name, method, gateway)
        for seed in range(count):
            rng = random.Random(f"{name} {method} {seed}")  # noqa: S311
            kind, body = rng.choice(record)
            status = rng.choice((200, 200, 200, 400, 429, 503))
            step = Body(status, {"content-type": kind}, mutated(body, rng))
            gateway.script(step)
            try:
                answer = call(model, method)
                accepted += 1
                check_answer(answer)
            except RetryRouterError:
                pass
            except Exception as error:  # noqa: BLE001 - it is what is looked for
                foreign.append(f"seed {seed}: {error!r}\n  {step.body[:500]!r}")
            gateway.script()
    assert not foreign, "\n".join([f"{len(foreign)}:", *foreign[:5]])
    assert 0.02 * count < accepted < 0.9 * count
    figures.counted(count, "mutated answers")
    figures.exactly(0, len(foreign), FOREIGN)


def gateway_answers(
    name: str, method: str, gateway: FaultyGateway
) -> list[tuple[str, bytes]]:
    """Content types and bodies of a healthy answer and of an error."""
    model = new_model(name, gateway)
    answer = WHOLE if name == "GPTRouter" else Answer("Hello, 世界.")
    kind = "text/event-stream" if method == "stream" else "application/json"
    healthy = recorded_body(gateway, lambda: call(model, method), answer)
    error = {"error": {"message": "no", "type": "invalid_request_error", "code": "x"}}
    return [(kind, healthy)] * 3 + [("application/json", json.dumps(error).encode())]


def check_answer(answer: Any) -> None:
    """What was accepted is text, and counts no tokens below zero."""
    for piece in answer if isinstance(answer, list) else [answer]:
        text = getattr(piece, "content", piece)
        assert isinstance(text, str | list)
        usage = getattr(piece, "usage_metadata", None) or {}
        assert all(usage.get(n, 0) >= 0 for n in ("input_tokens", "output_tokens"))


@pytest.mark.parametrize("name", [*GATEWAY, *LLMS])
def test_no_redirect_is_followed(name: str, twin: Twin, figures: Figures) -> None:
    """Neither key nor prompt goes where a server points; a gateway's cookie stays away.

    The openai SDK's own client for sync calls returns cookies to the host they are of.
    """
    with FaultyGateway(gptrouter="hosted") as gateway, FaultyGateway() as other:
        policy = RetryPolicy(max_retries=2)
        model = new_model(name, gateway, retry_policy=policy)
        hosts = (other.url, other.url.replace("127.0.0.1", "localhost"))
        for status, host in itertools.product((301, 302, 303, 307, 308), hosts):
            location = {"location": f"{host}/v1/completions"}
            step = Status(status, {**location, "set-cookie": "a=b; path=/"}, b"{}")
            gateway.script(step, step)
            with pytest.raises(RetryRouterError):
                asyncio.run(aask(model)) if twin.is_async else ask(model)
            gateway.script()
            assert is_stub_answer(ask(model))
        cookies = sum("cookie" in request.headers for request in gateway.requests)
        figures.exactly(0, len(other.requests), "requests that followed a redirect")
        if name in GATEWAY:
            figures.exactly(0, cookies, "cookies sent back to a gateway")


# --- answers without an end, of a gateway that was taken over ---

MIB: Final = 1024 * 1024


def packed_spaces(kind: str) -> Step:
    """300 MiB of spaces, packed; made in small pieces, since memory is measured."""
    packer, spaces = zlib.compressobj(1, wbits=31), b" " * MIB
    body = b"".join([*(packer.compress(spaces) for _ in range(300)), packer.flush()])
    return Body(200, {"content-type": kind, "content-encoding": "gzip"}, body)


def memory_taken(method: str) -> tuple[float, bool]:
    """MiB that a process grows by while it reads them, and whether it got an error."""
    kind = "text/event-stream" if "stream" in method else "application/json"
    with FaultyGateway(gptrouter="hosted", keep_requests=0) as gateway:
        once = RetryPolicy(max_retries=0)
        model = new_model("GPTRouter", gateway, retry_policy=once)
        call(model, method)
        gateway.script(packed_spaces(kind))
        before = peak_mebibytes(since_now=True)
        is_refused = False
        try:
            call(model, method)
        except RetryRouterError:
            is_refused = True
        taken = peak_mebibytes() - before
        assert is_stub_answer(ask(model))
    return taken, is_refused


def peak_mebibytes(*, since_now: bool = False) -> float:
    """The most memory that this process has held."""
    if since_now:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@pytest.mark.timeout(120)
def test_an_answer_without_an_end_is_left(figures: Figures, *, is_long: bool) -> None:
    """Of whatever a gateway sends, an answer is read up to a size and no further."""
    fresh: dict[str, Any] = {"max_workers": 2, "max_tasks_per_child": 1}
    context = multiprocessing.get_context("spawn")
    methods = METHODS if is_long else ("stream", "ainvoke")
    with ProcessPoolExecutor(mp_context=context, **fresh) as pool:
        for taken, is_refused in pool.map(memory_taken, methods):
            assert is_refused
            figures.at_most(
                128, taken, "MiB taken by a gateway's answer without an end"
            )
