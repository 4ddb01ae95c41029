"""A server that sends what no provider would, and without an end where it pleases.

`FaultyGateway` plays what is finite. What goes on for as long as somebody listens is
played here, by a bare socket and a thread; whoever comes back afterwards is handed on
to a healthy gateway.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Self, TypeAlias

from langchain_retryrouter.testing import FaultyGateway

MIB = 1024 * 1024
PIECE = 64 * 1024

Send: TypeAlias = Callable[[bytes], None]
Move: TypeAlias = Callable[[Send], None]
"""Answers one request, byte by byte; ends when the client hangs up."""


class HostileServer:
    """Plays a move for the first request, and hands all others on to `gateway`.

    Attributes:
        sent: Bytes that the move has handed to the system.
        moves: How often it was played.
    """

    def __init__(self, move: Move, gateway: FaultyGateway, moves: int = 1) -> None:
        """Listens at once.

        Args:
            move: What is done with a request.
            gateway: Who answers the requests after it.
            moves: How many requests get the move.
        """
        self.sent = 0
        self.moves = 0
        self._left = moves
        self._move = move
        self._gateway = gateway
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Its address, without a path."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        """It listens already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nobody is listened to, and nobody is sent anything."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for peer in list(self._open):
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                self._open.add(peer)
                threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with contextlib.suppress(OSError), peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            request = _request_from(peer)
            if request and self._left > 0:
                self._left -= 1
                self.moves += 1
                self._move(self._sender(peer))
            elif request:
                self._hand_on(peer, request)
        self._open.discard(peer)

    def _sender(self, peer: socket.socket) -> Send:
        def send(data: bytes) -> None:
            peer.sendall(data)
            self.sent += len(data)

        return send

    def _hand_on(self, peer: socket.socket, request: bytes) -> None:
        host, port = self._gateway.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as healthy:
            threading.Thread(target=_pump, args=(healthy, peer), daemon=True).start()
            healthy.sendall(request)
            _pump(peer, healthy)


def _request_from(peer: socket.socket) -> bytes:
    """One whole request; nothing if the client has hung up."""
    request = b""
    while b"\r\n\r\n" not in request:
        if not (piece := peer.recv(PIECE)):
            return b""
        request += piece
    head, _, body = request.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    missing = int(fields.get(b"content-length", b"0")) - len(body)
    while missing > 0 and (piece := peer.recv(PIECE)):
        request += piece
        missing -= len(piece)
    return request


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(PIECE):
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)


# What it sends. --------------------------------------------------------------------


def head(*fields: str, status: str = "200 OK", kind: str = "application/json") -> bytes:
    """Status line and header fields."""
    lines = [f"HTTP/1.1 {status}", f"content-type: {kind}", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def endless(first: bytes, again: bytes) -> Move:
    """`first`, and then `again` for as long as somebody reads it."""
    much = again * max(1, PIECE // len(again))

    def move(send: Send) -> None:
        send(first)
        while True:
            send(much)

    return move


def slow(data: bytes, seconds: float) -> Move:
    """`data`, a byte at a time, and the last one again and again."""
    pause = threading.Event()  # Nobody sets it: it is waited for in vain.

    def move(send: Send) -> None:
        for at in range(len(data)):
            send(data[at : at + 1])
            pause.wait(seconds)
        while True:
            send(data[-1:])
            pause.wait(seconds)

    return move


def bomb(fields: bytes, wbits: int) -> Move:
    """Zeros without end, a thousand times smaller on their way."""

    def move(send: Send) -> None:
        send(fields)
        packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
        for piece in _packed(packer):
            send(piece)

    return move


def _packed(packer: zlib._Compress) -> Iterator[bytes]:
    zeros = bytes(MIB)
    while True:
        if piece := packer.compress(zeros):
            yield piece
