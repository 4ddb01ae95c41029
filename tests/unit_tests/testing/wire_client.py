"""Clients that hide nothing: the standard library's, and a bare socket."""

import json
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from langchain_retryrouter.testing import FaultyGateway

GENERATE = "/api/v1/generate"
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"

_CAPTURES = Path(__file__).parents[1] / "data" / "gptrouter_captures"
_PATIENCE = 10.0
_JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Reply:
    """A response that came to its end."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of the server-sent events; JSON where it is JSON."""
        data = re.findall(rb"^data: (.*)$", self.body, flags=re.MULTILINE)
        return [json.loads(one) if one[:1] == b"{" else one.decode() for one in data]

    def header(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]


def generate(*, stream: bool = False, **parameters: Any) -> dict[str, Any]:
    """A GPTRouter request as langchain-community sends it."""
    messages = [{"role": "user", "content": "hi"}]
    entry = {
        "modelName": "gpt-4-0613",
        "providerName": "chat_openai",
        "order": 1,
        "promptParams": {"messages": messages} | parameters,
    }
    return {"stream": stream, "data": [entry]}


def chat(*, stream: bool = False, **parameters: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hi"}]
    return {"model": "gpt-4o", "messages": messages, "stream": stream} | parameters


def completion(*, stream: bool = False, **parameters: Any) -> dict[str, Any]:
    return {"model": "instruct", "prompt": "hi", "stream": stream} | parameters


_PAYLOADS = {GENERATE: generate, CHAT: chat, COMPLETIONS: completion}


def ask(gateway: FaultyGateway, path: str, **parameters: Any) -> Reply:
    """Post a request with these parameters, and read the response to its end."""
    return post(gateway, path, _PAYLOADS[path](**parameters))


def address(gateway: FaultyGateway) -> tuple[str, int]:
    return "127.0.0.1", urlsplit(gateway.url).port or 0


def connect(gateway: FaultyGateway) -> HTTPConnection:
    """A keep-alive connection that gives up when nothing comes."""
    return HTTPConnection(*address(gateway), timeout=_PATIENCE)


def request(
    gateway: FaultyGateway,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Send one request on a connection of its own, and read the response to its end."""
    with closing(connect(gateway)) as connection:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        return Reply(response.status, response.getheaders(), response.read())


def post(
    gateway: FaultyGateway,
    path: str,
    payload: Any,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Post JSON, and read the response to its end."""
    body = json.dumps(payload).encode()
    return request(gateway, "POST", path, body, _JSON | dict(headers or {}))


def statuses(gateway: FaultyGateway, count: int, model: str = "m") -> list[int]:
    """The statuses of the next `count` calls of `model`."""
    return [ask(gateway, CHAT, model=model).status for _ in range(count)]


def raw_request(path: str, **parameters: Any) -> bytes:
    body = json.dumps(_PAYLOADS[path](**parameters)).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


@contextmanager
def asked(
    gateway: FaultyGateway, path: str, **parameters: Any
) -> Iterator[socket.socket]:
    """A socket on which the request is sent and nothing is read yet."""
    with socket.create_connection(address(gateway), _PATIENCE) as client:
        client.sendall(raw_request(path, **parameters))
        yield client


def read_to_end(client: socket.socket) -> bytes:
    """All bytes up to FIN. A reset is a `ConnectionResetError`."""
    received = bytearray()
    while data := client.recv(65536):
        received += data
    return bytes(received)


def read_until(client: socket.socket, pattern: bytes) -> bytes:
    """What has come when `pattern` is in it."""
    received = bytearray()
    while not re.search(pattern, received):
        data = client.recv(65536)
        assert data, f"the connection ended before {pattern!r}: {bytes(received)!r}"
        received += data
    return bytes(received)


def chunks_of(response: bytes) -> list[bytes]:
    """The chunks of a chunked response, each as it was framed; the last is empty."""
    _, _, rest = response.partition(b"\r\n\r\n")
    chunks = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        chunks.append(rest[:length])
        rest = rest[length + 2 :]
    return chunks


@dataclass(frozen=True)
class Capture:
    """One exchange with the real GPTRouter server, as it was recorded."""

    method: str
    path: str
    headers: dict[str, str]
    request_body: bytes
    reply: Reply

    @classmethod
    def load(cls, name: str) -> Self:
        """Read the file `name`.http; the last line end belongs to the file."""
        text = (_CAPTURES / f"{name}.http").read_bytes().removesuffix(b"\n")
        asked, _, answered = text.partition(b"\n\n=== response ===\n")
        asked_head, _, request_body = asked.partition(b"\n\n")
        answered_head, _, body = answered.partition(b"\n\n")
        method, path, _ = asked_head.split(b"\n")[0].decode().split(" ")
        status = int(answered_head.split(b" ")[1])
        if b"text/event-stream" in answered_head:
            body += b"\n\n"  # the end of the last frame was trimmed
        reply = Reply(status, list(_fields(answered_head).items()), body)
        sent = b"" if request_body == b"None" else request_body
        return cls(method, path, _fields(asked_head), sent, reply)

    def send(self, gateway: FaultyGateway) -> Reply:
        return request(gateway, self.method, self.path, self.request_body, self.headers)

    @property
    def id(self) -> str | None:
        """The id of the answer, which the real server counted."""
        found = re.search(rb'"id":"(chatcmpl-stub\d+)"', self.reply.body)
        return found[1].decode() if found else None


def _fields(head: bytes) -> dict[str, str]:
    lines = head.decode().split("\n")[1:]
    return {name: value for name, _, value in (line.partition(": ") for line in lines)}
