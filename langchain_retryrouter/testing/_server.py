"""The sockets of the gateway: it reads requests with h11 and carries out plans.

It does not know what a step is, nor any protocol but HTTP/1.1's framing of requests.
The framing of responses comes with the plan, since faults break it on purpose, which
h11 would rightly refuse to do.

One thread runs one event loop. Everything in it is a callback: no task is ever left
over, and what waits is a timer that goes with its connection.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import h11

from ._plan import Ending, Pause, Plan
from .recorded_request import RecordedRequest

if TYPE_CHECKING:
    from ._log import Entry, RequestLog

_HOST = "127.0.0.1"
_BACKLOG = 4096
_STOP_SECONDS = 5.0
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # linger for zero seconds: close() sends RST


class Server:
    """A listening socket and the thread that serves it."""

    def __init__(
        self,
        answer: Callable[[Entry], Plan],
        log: RequestLog,
        port: int,
        record: Callable[..., RecordedRequest] = RecordedRequest,
    ) -> None:
        """Listen on `port` of the loopback, 0 for any that is free, and begin to serve.

        Clients may connect as soon as this returns.
        """
        self.answer = answer
        self.log = log
        self.record = record
        self.connections: set[_Connection] = set()
        self.stopping = False
        self._listener = socket.create_server((_HOST, port), backlog=_BACKLOG)
        self.port: int = self._listener.getsockname()[1]
        # Not the policy's loop: this one is known to close sockets the way we need.
        self.loop = asyncio.SelectorEventLoop()
        self._stop_asked = self.loop.create_future()
        self._all_gone = self.loop.create_future()
        self._thread = threading.Thread(
            target=self._run, name="FaultyGateway", daemon=True
        )
        self._thread.start()
        _running.add(self)

    def stop(self) -> None:
        """Close every socket and end the thread.

        Raises:
            RuntimeError: The thread does not end: a function in a script blocks it.
        """
        if self not in _running:
            return  # stopped before, or a copy in a forked child that owns nothing
        _running.discard(self)
        self.loop.call_soon_threadsafe(self._stop_asked.set_result, None)
        self._thread.join(_STOP_SECONDS)
        if self._thread.is_alive():
            msg = "the gateway's thread does not end: a function in its script blocks"
            raise RuntimeError(msg)

    def _run(self) -> None:
        try:
            self.loop.run_until_complete(self._serve())
        finally:
            self.loop.close()

    async def _serve(self) -> None:
        server = await self.loop.create_server(
            lambda: _Connection(self), sock=self._listener, backlog=_BACKLOG
        )
        await self._stop_asked
        self.stopping = True
        self.loop.remove_reader(self._listener)
        # asyncio runs a short task for each connection that it is just accepting. On a
        # closed server such a task would lose its socket, so `close` comes after them.
        if accepting := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(accepting)
        server.close()
        for connection in self.connections:
            connection.abort()
        if self.connections:
            await self._all_gone

    def disconnected(self, connection: _Connection) -> None:
        """Forget a connection that is gone."""
        self.connections.discard(connection)
        if self.stopping and not self.connections and not self._all_gone.done():
            self._all_gone.set_result(None)

    def leave_to_parent(self) -> None:
        """Let go in a forked child, so that the parent's sockets are its own.

        A socket that the child holds too would stay open when the parent closes it: no
        FIN and no RST would be sent. The descriptors are pointed elsewhere and not
        closed: their owners in this process would close the number a second time, and
        the loop must not be touched, because its epoll is the parent's as well.
        """
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in (
            self._listener.fileno(),
            *(one.fileno() for one in self.connections),
        ):
            if number >= 0:
                os.dup2(nowhere, number)
        os.close(nowhere)
        self.log.forget_locks()


class _Connection(asyncio.Protocol):
    """One TCP connection: requests come in one after another, plans are carried out."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parser = h11.Connection(h11.SERVER)
        self._head: h11.Request | None = None
        self._body = bytearray()
        self._entry: Entry | None = None
        self._plan = Plan()
        self._next_action = 0
        self._timer: asyncio.TimerHandle | None = None
        self._is_choked = False

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # Any byte that the kernel does not take at once makes the transport say so: an
        # answer counts as sent when all of it is out of our hands.
        self._transport.set_write_buffer_limits(high=0)
        # asyncio does this by itself, but not for a listener from `create_server`:
        # without it each stream on a kept connection stands still for 40 ms (Nagle).
        peer = cast("socket.socket", transport.get_extra_info("socket"))
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._number = self._server.log.connection_opened()
        self._server.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._parser.receive_data(data)
        if self._entry is None:
            self._read()

    def pause_writing(self) -> None:
        self._is_choked = True

    def resume_writing(self) -> None:
        self._is_choked = False
        if self._entry is not None and self._timer is None:
            self._play()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if self._timer is not None:
            self._timer.cancel()
        entry, self._entry = self._entry, None
        if entry is not None:
            self._server.log.end(
                entry, "faulted" if self._server.stopping else "client_left"
            )
        self._server.log.connection_closed()
        self._server.disconnected(self)

    # What the server calls.

    def abort(self) -> None:
        """Close without waiting for anything."""
        self._transport.abort()

    def fileno(self) -> int:
        """The descriptor of the socket."""
        return cast("socket.socket", self._transport.get_extra_info("socket")).fileno()

    # Reading.

    def _read(self) -> None:
        if self._transport.is_closing():
            return
        try:
            while self._take(self._parser.next_event()):
                pass
        except h11.RemoteProtocolError:
            self._transport.write(_BAD_REQUEST)
            self._hang_up()

    def _take(self, event: Any) -> bool:
        """Take one event of the parser; returns whether the next one is wanted."""
        kind = type(event)
        if kind is h11.Request:
            self._head = event
            if self._parser.they_are_waiting_for_100_continue:
                self._transport.write(_CONTINUE)
        elif kind is h11.Data:
            self._body += event.data
        elif kind is h11.EndOfMessage:
            self._begin(cast("h11.Request", self._head), bytes(self._body))
            return False
        else:
            return False
        return True

    def _begin(self, head: h11.Request, body: bytes) -> None:
        request = self._recorded(head, body)
        self._entry = self._server.log.begin(request)
        self._plan = self._server.answer(self._entry)
        self._next_action = 0
        self._play()

    def _recorded(self, head: h11.Request, body: bytes) -> RecordedRequest:
        path, _, query = head.target.decode("latin-1").partition("?")
        headers: dict[str, str] = {}
        for raw_name, raw_value in head.headers.raw_items():
            name, value = raw_name.decode().lower(), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return self._server.record(
            number=self._server.log.next_number(),
            at=time.monotonic(),
            connection=self._number,
            method=head.method.decode("latin-1"),
            path=path,
            query=query,
            headers=headers,
            body=body,
        )

    # Answering.

    def _play(self) -> None:
        """Go on with the plan until it waits, the kernel is full, or it is done."""
        self._timer = None
        actions = self._plan.actions
        while self._next_action < len(actions):
            action = actions[self._next_action]
            self._next_action += 1
            if isinstance(action, Pause):
                self._timer = self._server.loop.call_later(action.seconds, self._play)
                return
            if self._next_action == len(actions):
                # Before the client can have it: who reads the answer and then looks at
                # the log shall find it there. If the client leaves instead, it is
                # corrected.
                self._write_down_outcome()
            self._transport.write(action)
            if self._is_choked:
                return
        self._end()

    def _end(self) -> None:
        self._write_down_outcome()
        self._entry = None
        if self._plan.ending is Ending.RST:
            peer = cast("socket.socket", self._transport.get_extra_info("socket"))
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._transport.abort()
        elif self._plan.ending is Ending.FIN:
            self._hang_up()
        else:
            self._await_next_request()

    def _write_down_outcome(self) -> None:
        entry = cast("Entry", self._entry)
        if entry.outcome == "pending":
            self._server.log.end(entry, self._plan.outcome)

    def _hang_up(self) -> None:
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._transport.close()

    def _await_next_request(self) -> None:
        early, _ = self._parser.trailing_data
        # A new parser, because this one would insist on framing the response itself.
        self._parser = h11.Connection(h11.SERVER)
        self._body.clear()
        if early:
            self._parser.receive_data(early)
            self._server.loop.call_soon(self._read)


# The only thing that gateways share: a forked child must find those it has copied.
_running: weakref.WeakSet[Server] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for server in list(_running):
        _running.discard(server)
        server.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
