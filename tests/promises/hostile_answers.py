"""Answers that are wrong in a way of their own, each of an end; what no parser expects.

They are made from what a healthy answer says in few words, so that what is wrong is
the one thing that is wrong.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from typing import Any, Final

from langchain_retryrouter.testing import Body, Raw, Step
from tests.promises.hostile_models import Asked

_TEXT: Final = {"index": 0, "text": "hi", "finish_reason": "stop", "logprobs": None}
_MESSAGE: Final = {"role": "assistant", "content": "hi", "tool_calls": None}
_COUNTS: Final = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
_VECTOR: Final = {"index": 0, "embedding": [1.0, 2.0]}

_GATEWAY: Final = {"id": "1", "model": "m", "choices": [_TEXT], "meta": _COUNTS}
_UPDATE: Final = {
    "event": "update",
    "data": {"text": "hi", "finish_reason": "stop", "tool_calls": None},
}
_END: Final = b'data: {"event":"end","data":"end"}\n\nevent: end\ndata: end\n\n'
_VECTORS: Final = {"choices": [_VECTOR, {**_VECTOR, "index": 1}]}
_OPENAI: Final = {
    "id": "1",
    "created": 1,
    "model": "m",
    "choices": [{**_TEXT, "message": _MESSAGE}],
    "usage": _COUNTS,
}
_CHUNK: Final = {**_OPENAI, "choices": [{**_TEXT, "delta": _MESSAGE}]}

# Written as JSON by hand: no writer would.
_ODD_VALUES: Final = (
    "null",
    "true",
    "-1",
    "1e400",
    "NaN",
    "9" * 5000,
    '"\\ud800"',
    '"\\u0000"',
    "[]",
    "[[1]]",
    "{}",
    '{"a": [null]}',
)
_MARK: Final = "put it here"


def healthy(asked: Asked) -> dict[str, Any]:
    """The JSON of a small answer to this way of asking."""
    if asked.way == "embed":
        return _VECTORS
    if asked.is_openai:
        return _CHUNK if asked.way == "stream" else _OPENAI
    return _UPDATE if asked.is_streamed else _GATEWAY


def hostile_steps(asked: Asked) -> Iterator[tuple[str, Step]]:
    """All of them, each with a name."""
    answer = _written(asked, json.dumps(healthy(asked)).encode())
    yield from _odd_json(asked)
    yield from _wrong_types(asked)
    yield from _odd_errors()
    yield from _odd_patience()
    yield from _odd_http(_head(asked), answer)


# --- bodies -------------------------------------------------------------------------


def _written(asked: Asked, data: bytes) -> bytes:
    if not asked.is_streamed:
        return data
    end = b"data: [DONE]\n\n" if asked.is_openai else _END
    return b"data: " + data + b"\n\n" + end


def _body(asked: Asked, data: bytes) -> Step:
    kind = "text/event-stream" if asked.is_streamed else "application/json"
    return Body(200, {"content-type": kind}, _written(asked, data))


def _odd_json(asked: Asked) -> Iterator[tuple[str, Step]]:
    plain = json.dumps(healthy(asked))
    odd = {
        "100,000 brackets": b"[" * 100_000 + b"]" * 100_000,
        "100,000 braces": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "brackets in choices": b'{"choices":[' + b"[" * 900 + b"]" * 900 + b"]}",
        "brackets in an error": b'{"error":' + b"[" * 900 + b"]" * 900 + b"}",
        "braces in data": b'{"event":"update","data":' + b'{"a":' * 900 + b"1" * 901,
        "a number of 100,000 digits": b"9" * 100_000,
        "such a number in choices": b'{"choices":[' + b"9" * 100_000 + b"]}",
        "such a number as a code": b'{"error":{"code":' + b"9" * 5_000 + b"}}",
        "no number": b"NaN",
        "control characters": bytes(range(1, 9)) * 100,
        "NULs": bytes(1000),
        "no UTF-8": plain.replace("hi", "\xff").encode("latin-1"),
        "UTF-16": plain.encode("utf-16"),
        "a BOM": b"\xef\xbb\xbf" + plain.encode(),
        "keys twice": (plain[:-1] + ', "choices": 7, "data": 7}').encode(),
        "half a surrogate pair": plain.replace("hi", "\\ud800").encode(),
        "an error in half a pair": b'{"error":{"message":"\\ud800"},"event":"error",'
        b'"message":"\\ud800"}',
    }
    for name, data in odd.items():
        yield name, _body(asked, data)


def _wrong_types(asked: Asked) -> Iterator[tuple[str, Step]]:
    whole = healthy(asked)
    for path, value in itertools.product(_paths(whole), _ODD_VALUES):
        data = json.dumps(_with(whole, path, _MARK)).replace(f'"{_MARK}"', value)
        where = ".".join(map(str, path))
        yield f"{where} is {value[:12]}", _body(asked, data.encode())


def _paths(value: Any) -> Iterator[tuple[str | int, ...]]:
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for name, item in items:
        yield (name,)
        yield from ((name, *rest) for rest in _paths(item))


def _with(whole: Any, path: tuple[str | int, ...], value: Any) -> Any:
    changed = copy.deepcopy(whole)
    place = changed
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return changed


# --- statuses -----------------------------------------------------------------------


def _odd_errors() -> Iterator[tuple[str, Step]]:
    bodies = {
        "brackets": b"[" * 100_000 + b"]" * 100_000,
        "brackets in a message": b'{"error":{"message":'
        + b"[" * 900
        + b"]" * 900
        + b"}}",
        "no UTF-8": b"\xff\xfe",
        "half a pair": b'{"error":{"message":"\\ud800","code":"\\ud800"}}',
        "a number": b"7",
        "null": b"null",
        "a list": b'{"error":[1]}',
        "odd fields": b'{"error":{"message":7,"code":[1],"type":{}}}',
    }
    for status, (name, body) in itertools.product((400, 401, 429, 503), bodies.items()):
        kind = {"content-type": "application/json"}
        yield f"{status} of {name}", Body(status, kind, body)
    for charset in ("nonsense", "base64", "idna", "utf-7", '"a\tb"'):
        kind = {"content-type": f"text/plain; charset={charset}"}
        yield f"500 in {charset}", Body(500, kind, b"\xff.\xff..")
        yield f"200 in {charset}", Body(200, kind, b"\xff.\xff..")


def _odd_patience() -> Iterator[tuple[str, Step]]:
    for told in (
        "1e308",
        "-1",
        "nan",
        "inf",
        "9" * 400,
        "Fri, 31 Dec 9999 23:59:59 -9999",
        "Fri, 31 Dec 99999999 23:59:59 GMT",
        "Mon, 01 Jan 0001 00:00:00 GMT",
        "1,2,nan",
        "",
    ):
        names = ("retry-after", "retry-after-ms", "x-ratelimit-reset-requests", "date")
        fields = {**dict.fromkeys(names, told), "x-ratelimit-remaining-requests": "0"}
        yield f"come back after {told[:12]}", Body(429, fields, b"{}")


# --- HTTP ---------------------------------------------------------------------------


def _head(asked: Asked) -> bytes:
    kind = b"text/event-stream" if asked.is_streamed else b"application/json"
    # It says that it hangs up behind the answer, or the next call races with that.
    return b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: " + kind + b"\r\n"


def _odd_http(head: bytes, answer: bytes) -> Iterator[tuple[str, Step]]:
    sized = head + b"content-length: %d\r\n" % len(answer)
    chunked = head + b"transfer-encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%s\r\n" % (len(answer), answer)
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    odd = {
        "a header of 64 KiB": sized + b"x: " + b"a" * 65536 + b"\r\n\r\n" + answer,
        "a header of 10 MiB": sized + b"x: " + b"a" * 10_485_760 + b"\r\n\r\n" + answer,
        "100,000 headers": sized + b"x: a\r\n" * 100_000 + b"\r\n" + answer,
        "a NUL in a header": sized + b"x: a\0b\r\n\r\n" + answer,
        "a header without a colon": sized + b"x\r\n\r\n" + answer,
        "no HTTP": b"\x16\x03\x01" * 100,
        "status 99999": b"HTTP/1.1 99999 X\r\n\r\n",
        "status 000": b"HTTP/1.1 000 X\r\nconnection: close\r\n\r\n",
        "status 101": b"HTTP/1.1 101 X\r\nupgrade: x\r\n\r\n" + answer,
        "hints before it": b"HTTP/1.1 103 X\r\nlink: x\r\n\r\n"
        + sized
        + b"\r\n"
        + answer,
        "1,000 times 100": interim * 1000 + sized + b"\r\n" + answer,
        "a chunk too short": chunked + b"5\r\nabc\r\n0\r\n\r\n",
        "a chunk below zero": chunked + b"-5\r\nabc\r\n0\r\n\r\n",
        "a chunk of 2^80": chunked + b"f" * 20 + b"\r\nabc\r\n0\r\n\r\n",
        "a chunk of no number": chunked + b"zz\r\nabc\r\n0\r\n\r\n",
        "a chunk's extension": chunked
        + chunk.replace(b"\r\n", b";a=b\r\n", 1)
        + b"0\r\n\r\n",
        "trailers": chunked + chunk + b"0\r\nset-cookie: a=b\r\nx: y\r\n\r\n",
        "half a length": head + b"content-length: 9\r\n\r\n" + answer,
        "twice the length": head + b"content-length: 9999\r\n\r\n" + answer,
        "a length below zero": head + b"content-length: -5\r\n\r\n" + answer,
        "a length of 5,000 digits": head
        + b"content-length: "
        + b"9" * 5000
        + b"\r\n\r\n"
        + answer,
        "two lengths": head
        + b"content-length: 5\r\ncontent-length: 7\r\n\r\n"
        + answer,
        "a length and chunks": head
        + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n"
        + chunk
        + b"0\r\n\r\n",
    }
    for name, data in odd.items():
        yield name, Raw(data)
    for encoding in (b"gzip", b"deflate", b"br", b"gzip, gzip", b"a," * 99):
        data = sized + b"content-encoding: " + encoding + b"\r\n\r\n" + answer
        yield f"not {encoding[:12].decode()}", Raw(data)
