"""Whatever a server sends, the caller gets an answer or a RetryRouterError."""

import contextlib
import json
import multiprocessing
import random  # noqa: TID251 - each input has its own, by its seed
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

from langchain_retryrouter import RetryPolicy, RetryRouterError
from langchain_retryrouter.testing import Answer, Body, FaultyGateway, ToolCall, Usage
from tests.promises.conftest import Figures
from tests.promises.harness import LLMS, METHODS, call, is_stub_answer, new_model
from tests.promises.test_truncation import recorded_body

ODD: Final[tuple[Any, ...]] = (
    *(None, True, 0, -1, 0.5, 1e308, float("inf"), float("nan"), 10**400),
    *("", "x", "-1", "429", "9" * 5_000, "²", "\x00", "\ud800", "\u2028", "stop"),
    *([], {}, [None], [[]], ["x"], [{}], {"a": None}, {"error": {"code": "9" * 5_000}}),
)
TOKENS: Final = (
    *(b"null", b"NaN", b"1e999", b'"', b"\\", b"\\ud800", b"{", b"}", b"[", b"]"),
    *(b"\n", b"\r\n\r\n", b"\xef\xbb\xbf", b"\xff", b"\x00", b"data: "),
    *(b"event: end\n", b"data: [DONE]\n\n", b": comment\n"),
    *(b"[" * 1_500, b'{"a":' * 700),
)
WHOLE: Final = Answer(
    "Hello, 世界.", tool_calls=(ToolCall("search", '{"q": "x"}'),), usage=Usage(3, 5)
)
ONCE: Final = RetryPolicy(max_retries=0)


def mutated(body: bytes, rng: random.Random) -> bytes:
    """A body with one to three mutations of its bytes or of its JSON."""
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(body) + 1)
        end = min(len(body), start + rng.randrange(40))
        head, piece, rest = body[:start], body[start:end], body[end:]
        match rng.randrange(8):
            case 0:
                bit = bytes(byte ^ 1 << rng.randrange(8) for byte in piece[:1])
                body = head + bit + piece[1:] + rest
            case 1:  # A piece is missing, or all that comes after it too.
                body = head + (rest if rng.random() < 0.5 else b"")
            case 2:
                body = head + piece + piece + rest
            case 3:
                body = head + rng.choice(TOKENS) + rng.choice((rest, piece + rest))
            case _:
                body = restructured(body, rng)
    return body


def restructured(body: bytes, rng: random.Random) -> bytes:
    """Values of the JSON, or of one event of a stream, are replaced or missing."""
    lines = body.split(b"\n")
    at = rng.choice([at for at, line in enumerate(lines) if b"{" in line] or [0])
    prefix, brace, _ = lines[at].partition(b"{")
    share = rng.choice((0.05, 0.2, 1))

    def odd(value: Any) -> Any:
        return rng.choice((*ODD, [value], {"text": value}))

    def some(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        kept = [pair for pair in pairs if rng.random() > share / 4]
        return {key: odd(one) if rng.random() < share else one for key, one in kept}

    with contextlib.suppress(ValueError, RecursionError):
        document = lines[at].removeprefix(prefix)
        value = json.loads(document, object_pairs_hook=some) if brace else odd(None)
        lines[at] = prefix + json.dumps(value).encode()
    return b"\n".join(lines)


@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")
@pytest.mark.parametrize("method", ["invoke", "stream"])
@pytest.mark.parametrize("name", ["GPTRouter", *LLMS])
def test_mutated_answers_are_read_or_refused(
    name: str, method: str, figures: Figures, *, is_long: bool
) -> None:
    """Recorded answers and errors are mutated, and read over HTTP as any answer.

    What is accepted is text, and counts no tokens below zero.
    """
    count, foreign, accepted = 20_000 if is_long else 120, list[str](), 0
    with FaultyGateway(gptrouter="hosted", keep_requests=1) as gateway:
        model = new_model(name, gateway, retry_policy=ONCE)
        answer = WHOLE if name == "GPTRouter" else Answer("Hello, 世界.")
        healthy = recorded_body(gateway, lambda: call(model, method), answer)
        kind = "text/event-stream" if method == "stream" else "application/json"
        error = b'{"error": {"message": "no", "type": "invalid_request_error"}}'
        record = [(kind, healthy)] * 3 + [("application/json", error)]
        for seed in range(count):
            rng = random.Random(f"{name} {method} {seed}")  # noqa: S311
            kind, body = rng.choice(record)
            status = rng.choice((200, 200, 200, 400, 429, 503))
            step = Body(status, {"content-type": kind}, mutated(body, rng))
            gateway.script(step)
            try:
                got = call(model, method)
                accepted += 1
                for piece in got if isinstance(got, list) else [got]:
                    assert isinstance(getattr(piece, "content", piece), str | list)
                    usage = getattr(piece, "usage_metadata", None) or {}
                    assert usage.get("input_tokens", 0) >= 0
                    assert usage.get("output_tokens", 0) >= 0
            except RetryRouterError:
                pass
            except Exception as error_:  # noqa: BLE001 - it is what is looked for
                foreign.append(f"seed {seed}: {error_!r}\n  {step.body[:500]!r}")
            gateway.script()
    assert not foreign, "\n".join([f"{len(foreign)}:", *foreign[:5]])
    assert 0.02 * count < accepted < 0.9 * count
    figures.counted(count, "mutated answers")
    figures.exactly(0, len(foreign), "exceptions that are not a RetryRouterError")


def peak_mebibytes() -> float:
    """The most memory that this process has held."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def memory_taken(method: str) -> float:
    """MiB that a process grows by while a gateway sends it 300 MiB of packed spaces."""
    packer, spaces = zlib.compressobj(1, wbits=31), b" " * 1024 * 1024
    body = b"".join([*(packer.compress(spaces) for _ in range(300)), packer.flush()])
    kind = "text/event-stream" if "stream" in method else "application/json"
    headers = {"content-type": kind, "content-encoding": "gzip"}
    with FaultyGateway(gptrouter="hosted", keep_requests=0) as gateway:
        model = new_model("GPTRouter", gateway, retry_policy=ONCE)
        call(model, method)
        gateway.script(Body(200, headers, body))
        Path("/proc/self/clear_refs").write_text("5")
        before = peak_mebibytes()
        with pytest.raises(RetryRouterError):
            call(model, method)
        taken = peak_mebibytes() - before
        assert is_stub_answer(call(model))
    return taken


def test_an_answer_without_an_end_is_left(figures: Figures, *, is_long: bool) -> None:
    """Of whatever a gateway sends, an answer is read up to a size and no further."""
    fresh: dict[str, Any] = {"max_workers": 2, "max_tasks_per_child": 1}
    context = multiprocessing.get_context("spawn")
    methods = METHODS if is_long else ("stream", "ainvoke")
    what = "MiB taken by a gateway's answer without an end"
    with ProcessPoolExecutor(mp_context=context, **fresh) as pool:
        for taken in pool.map(memory_taken, methods):
            figures.at_most(128, taken, what)
