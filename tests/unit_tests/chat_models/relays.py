"""A relay, with TLS or without, and a proxy between client and gateway.

They use sockets and a thread for each direction, enough for a few connections.
"""

import contextlib
import itertools
import socket
import ssl
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit


class Relay:
    """Listens on the loopback, and forwards every connection to one address."""

    def __init__(
        self,
        target: str,
        *,
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname or "", parts.port or 0)
        self._tls = tls
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        scheme = "https" if tls else "http"
        name = f"[{host}]" if ":" in host else host
        self.url = f"{scheme}://{name}:{self._listener.getsockname()[1]}"
        """The address for clients."""
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.connections = 0
        """The number of connections that were accepted."""
        self.is_deaf = False
        """Whether what clients send from now on is lost."""
        self.left = threading.Event()
        """Set once a client has closed its connection."""

    def __enter__(self) -> Self:
        self._run(self._accept)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(10)

    def drain(self) -> None:
        """Wait until both sides of every connection have closed it."""
        for thread in itertools.islice(self._threads, 1, None):
            thread.join(10)

    def _run(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        thread.start()
        self._threads.append(thread)  # Now that it can be joined.

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(client)
            self._run(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
                self._open.append(client)
            self.serve(client)

    def serve(self, client: socket.socket) -> None:
        """Serve one connection, to its end."""
        self.join(client, self._target)

    def join(
        self, client: socket.socket, target: tuple[str, int], first: bytes = b""
    ) -> None:
        """Connect, send the bytes read so far, and forward bytes in both directions."""
        server = socket.create_connection(target, 10)
        self._open.append(server)
        server.sendall(first)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._run(_pump, server, client)
        # A TLS connection that `__exit__` closes meanwhile is a ValueError.
        with contextlib.suppress(OSError, ValueError):
            while data := client.recv(65536):
                if not self.is_deaf:
                    server.sendall(data)
        self.left.set()
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_WR)


class EarlyHints(Relay):
    """Sends a 103 for the first request, and maybe no answer."""

    def __init__(self, target: str, *, answers: bool) -> None:
        super().__init__(target)
        self._answers = answers

    def serve(self, client: socket.socket) -> None:
        if self.connections > 1:
            super().serve(client)
            return
        first = client.recv(65536)
        client.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        if self._answers:
            self.join(client, self._target, first)
        while client.recv(65536):
            pass


class Proxy(Relay):
    """An HTTP proxy: forwards plain requests, one a connection; tunnels the rest."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:0")
        self.asked: list[str] = []
        """The request lines that it received."""
        self.fields: list[dict[str, str]] = []
        """The header fields that it could read, names in lower case."""

    def serve(self, client: socket.socket) -> None:
        head, body = _read_head(client)
        line, _, fields = head.partition("\r\n")
        self.asked.append(line)
        pairs = [field.split(": ", 1) for field in fields.split("\r\n") if field]
        self.fields.append({name.lower(): value for name, value in pairs})
        method, target, version = line.split(" ")
        if method == "CONNECT":
            host, _, port = target.rpartition(":")
            client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            self.join(client, (host.strip("[]"), int(port)))
            return
        parts = urlsplit(target)
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        forwarded = f"{method} {path} {version}\r\nconnection: close\r\n{fields}"
        address = (parts.hostname or "", parts.port or 80)
        self.join(client, address, forwarded.encode("latin-1") + body)


def _read_head(client: socket.socket) -> tuple[str, bytes]:
    received = b""
    while b"\r\n\r\n" not in received:
        data = client.recv(65536)
        if not data:
            raise ConnectionResetError
        received += data
    head, _, body = received.partition(b"\r\n\r\n")
    return head.decode("latin-1") + "\r\n\r\n", body


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
