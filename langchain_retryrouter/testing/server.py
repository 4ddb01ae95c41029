"""A model provider that fails on cue: a real HTTP server on the loopback, by script."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self, cast

import h11

from langchain_retryrouter.testing.exchange import (
    JSON_HEADERS,
    STUB_TEXT,
    BodyResponse,
    Delivery,
    Edition,
    Entry,
    Exchange,
    Outcome,
    ProtocolName,
    RecordedRequest,
    RequestLog,
    ResolvedAnswer,
    Step,
    compact_json,
)
from langchain_retryrouter.testing.faults import (
    HEALTHY,
    Answer,
    ScriptedStep,
    Status,
)
from langchain_retryrouter.testing.gptrouter_api import GPTRouterExchange
from langchain_retryrouter.testing.openai_api import OpenAIExchange

_HOST = "127.0.0.1"
_LAST_PORT = 65535
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
        answer: Callable[[Entry], Delivery],
        log: RequestLog,
        port: int,
        edition: Edition,
    ) -> None:
        """Listen on `port` of the loopback, 0 for any that is free, and begin to serve.

        Clients may connect as soon as this returns.
        """
        self.answer = answer
        self.log = log
        self.edition: Edition = edition
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
            return  # stopped before, or a copy in a forked child
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
        """Release the sockets in a forked child; they stay the parent's.

        A socket that the child holds too would stay open when the parent closes it: no
        FIN and no RST would be sent. The descriptors are pointed elsewhere and not
        closed: their owners in this process would close the number a second time, and
        the loop must not be touched, because its epoll is the parent's as well.
        """
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in (
            self._listener.fileno(),
            *(connection.socket.fileno() for connection in self.connections),
        ):
            if number >= 0:
                os.dup2(nowhere, number)
        os.close(nowhere)
        self.log.forget_locks()


class _Connection(asyncio.Protocol):
    """One TCP connection: it reads requests and writes what their steps deliver."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parser = h11.Connection(h11.SERVER)
        self._head: h11.Request | None = None
        self._body = bytearray()
        self._entry: Entry | None = None
        self._delivery = Delivery()
        self._next_action = 0
        self._timer: asyncio.TimerHandle | None = None
        self._is_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # `pause_writing` is called for any byte that the kernel does not take at once:
        # an answer counts as sent when all of it has left this process.
        self._transport.set_write_buffer_limits(high=0)
        # asyncio does this by itself, but not for a listener from `create_server`:
        # without it each stream on a kept connection pauses for 40 ms (Nagle).
        self.socket = cast("socket.socket", transport.get_extra_info("socket"))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._number = self._server.log.connection_opened()
        self._server.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._parser.receive_data(data)
        if self._entry is None:
            self._read()

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        if self._entry is not None and self._timer is None:
            self._write()

    def connection_lost(self, _exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        entry, self._entry = self._entry, None
        if entry is not None:
            outcome: Outcome = "faulted" if self._server.stopping else "client_left"
            self._server.log.end(entry, outcome)
        self._server.log.connection_closed()
        self._server.disconnected(self)

    def abort(self) -> None:
        """Close without waiting for anything."""
        self._transport.abort()

    # Reading.

    def _read(self) -> None:
        if self._transport.is_closing():
            return
        try:
            while isinstance(
                event := self._parser.next_event(), h11.Request | h11.Data
            ):
                if isinstance(event, h11.Data):
                    self._body += event.data
                    continue
                self._head = event
                if self._parser.they_are_waiting_for_100_continue:
                    self._transport.write(_CONTINUE)
        except h11.RemoteProtocolError:
            self._transport.write(_BAD_REQUEST)
            self._hang_up()
            return
        if isinstance(event, h11.EndOfMessage):
            self._begin(cast("h11.Request", self._head))

    def _begin(self, head: h11.Request) -> None:
        path, _, query = head.target.decode("latin-1").partition("?")
        headers: dict[str, str] = {}
        for raw_name, raw_value in head.headers.raw_items():
            name, value = raw_name.decode().lower(), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        request = RecordedRequest(
            number=self._server.log.next_number(),
            at=time.monotonic(),
            connection=self._number,
            method=head.method.decode("latin-1"),
            path=path,
            query=query,
            headers=headers,
            body=bytes(self._body),
            gptrouter=self._server.edition,
        )
        self._entry = self._server.log.begin(request)
        self._delivery = self._server.answer(self._entry)
        self._next_action = 0
        self._write()

    # Answering.

    def _write(self) -> None:
        """Write on until a pause, a full socket buffer, or the end."""
        self._timer = None
        actions = self._delivery.actions
        while self._next_action < len(actions):
            action = actions[self._next_action]
            self._next_action += 1
            if not isinstance(action, bytes):
                self._timer = self._server.loop.call_later(action, self._write)
                return
            if self._next_action == len(actions):
                # Before the client can have it: a test that reads the answer and then
                # the log must find it there. If the client leaves, it is corrected.
                self._record_outcome()
            self._transport.write(action)
            if self._is_paused:
                return
        self._end()

    def _end(self) -> None:
        self._record_outcome()
        self._entry = None
        if self._delivery.ending == "rst":
            option = socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE
            self.socket.setsockopt(*option)
            self._transport.abort()
        elif self._delivery.ending == "fin":
            self._hang_up()
        else:
            early, _ = self._parser.trailing_data
            # A new parser: the old one would insist on framing the response itself.
            self._parser = h11.Connection(h11.SERVER)
            self._body.clear()
            if early:
                self._parser.receive_data(early)
                self._server.loop.call_soon(self._read)

    def _record_outcome(self) -> None:
        entry = cast("Entry", self._entry)
        if entry.outcome == "pending":
            self._server.log.end(entry, self._delivery.outcome)

    def _hang_up(self) -> None:
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._transport.close()


# A forked child must find the servers that it has copied.
_running: weakref.WeakSet[Server] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for server in list(_running):
        _running.discard(server)
        server.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


@dataclass(slots=True)
class _Script:
    """The steps of one model, or of all requests."""

    once: deque[ScriptedStep] = field(default_factory=deque)
    always: ScriptedStep | None = None


_EXCHANGES: dict[ProtocolName, type[Exchange]] = {
    "gptrouter": GPTRouterExchange,
    "openai": OpenAIExchange,
}
_EDITIONS: frozenset[Edition] = frozenset({"public", "hosted"})


class FaultyGateway:
    """A model provider on the loopback that answers, or fails, as its script says.

    It speaks GPTRouter's protocol, OpenAI's completions and chat completions, and
    Azure's form of both. Every request takes the next step of the script; without one,
    the answer is healthy. `requests` has everything that came in.

    Example:
        ```python
        with FaultyGateway() as gateway:
            gateway.script(Status(429, {"retry-after": "1"}), Reset())
            llm = GPTRouter(gpt_router_api_base=gateway.url, ...)
            llm.invoke("hi")  # the third attempt is answered
            assert [request.step for request in gateway.requests] == [...]
        ```

    In a coroutine use `async with`: stopping a server blocks for a moment.
    """

    def __init__(
        self,
        *,
        answer: Answer | Callable[[RecordedRequest], Answer] = HEALTHY,
        api_key: str | None = None,
        port: int = 0,
        keep_requests: int | None = None,
        gptrouter: Edition = "public",
    ) -> None:
        """Prepare a gateway; `start` or `with` opens it.

        Args:
            answer: The healthy answer, or a function that makes one for a request. If
                it has neither text nor calls, its text is `STUB_TEXT`, cut at `stop`.
            api_key: The only accepted key; all are when it is None.
            port: The loopback port, 0 for any that is free. A gateway that is started
                again listens where it did before.
            keep_requests: How many requests `requests` holds at most; None for all, 0
                for load tests.
            gptrouter: Which GPTRouter it plays. `"public"` is the published server: it
                refuses `json_schema`, leaves usage out of streams whose messages are
                more than text, drops the parameters that it does not know, such as
                `tool_choice`, and gives the models of `anthropic` and `openai` a text
                only. A function as `answer` sees what is left. `"hosted"` is the newer
                service as its clients imply it: it takes all of these, and has
                embeddings.

        Raises:
            ValueError: `gptrouter` is neither, or `port` is not a port.
        """
        if not 0 <= port <= _LAST_PORT:
            msg = f"port is {port!r}, it must be from 0 to {_LAST_PORT}"
            raise ValueError(msg)
        if gptrouter not in _EDITIONS:
            msg = f"gptrouter is {gptrouter!r}, it must be 'public' or 'hosted'"
            raise ValueError(msg)
        self._gptrouter: Edition = gptrouter
        self._answer = answer
        self._api_key = api_key
        self._port = port
        self._scripts: dict[str | None, _Script] = {}
        self._lock = threading.Lock()
        self._fixed: dict[str, BodyResponse] = {}
        self._log = RequestLog(keep_requests)
        self._errors: list[Exception] = []
        self._server: Server | None = None

    # Opening and closing.

    def start(self) -> None:
        """Listen and serve; clients may connect as soon as this returns.

        Raises:
            RuntimeError: It is running already.
            OSError: The port is taken.
        """
        if self._server is not None:
            msg = f"the gateway is already running at {self.url}"
            raise RuntimeError(msg)
        self._server = Server(self._deliver, self._log, self._port, self._gptrouter)
        self._port = self._server.port

    def stop(self) -> None:
        """Abort what is under way, and close everything. Does nothing when stopped.

        Raises:
            ExceptionGroup: The errors of the functions in `answer` and in the script,
                and of steps that did not fit their request. The client saw a 500 then.
        """
        server, self._server = self._server, None
        if server is not None:
            server.stop()
        errors, self._errors = self._errors, []
        if errors:
            msg = "the gateway could not carry out its script or its answer"
            raise ExceptionGroup(msg, errors)

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    async def __aenter__(self) -> Self:
        """Start."""
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop, without blocking the event loop."""
        await asyncio.to_thread(self.stop)

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`: the base that GPTRouter and Azure clients take.

        It stays the same over a stop and a start.

        Raises:
            RuntimeError: The gateway was never started, so there is no port yet.
        """
        if not self._port:
            msg = "the gateway has no address yet: start it, or use it in a `with`"
            raise RuntimeError(msg)
        return f"http://127.0.0.1:{self._port}"

    @property
    def openai_url(self) -> str:
        """`http://127.0.0.1:PORT/v1`: the base that OpenAI clients take."""
        return f"{self.url}/v1"

    # Scripts.

    def script(self, *steps: ScriptedStep, model: str | None = None) -> None:
        """Answer the next requests with `steps`, one each, in order.

        They replace the steps that are not used yet; no steps at all clear the script.

        Args:
            *steps: Steps, or functions that pick one when they see the request.
            model: Only for requests to this model. Its steps come before the others.

        Raises:
            TypeError: One of `steps` is not a step.
        """
        checked = deque(_checked(step) for step in steps)
        with self._lock:
            self._scripts.setdefault(model, _Script()).once = checked

    def always(self, step: ScriptedStep, *, model: str | None = None) -> None:
        """Answer every request with `step` when the script is used up.

        `step` and `model` are what they are in `script`.
        """
        checked = _checked(step)
        with self._lock:
            self._scripts.setdefault(model, _Script()).always = checked

    def respond(self, path: str, json_body: Any, *, status: int = 200) -> None:
        """Set the healthy answer of a path that has no model behind it.

        Such requests take steps of the script like all others.

        Args:
            path: Such as `/v1/embeddings`; without a query.
            json_body: Anything that JSON can say.
            status: The status that comes with it.
        """
        response = BodyResponse(status, JSON_HEADERS, compact_json(json_body))
        self._fixed[path] = response

    # The log.

    @property
    def requests(self) -> list[RecordedRequest]:
        """The requests as they stand now, oldest first."""
        return self._log.requests

    @property
    def connections(self) -> int:
        """How many TCP connections were ever accepted."""
        return self._log.connections

    @property
    def open_connections(self) -> int:
        """How many TCP connections are open."""
        return self._log.open_connections

    def reset_log(self) -> None:
        """Forget the requests. Numbers continue, scripts stay as they are."""
        self._log.clear()

    def wait_for(
        self, predicate: Callable[[FaultyGateway], bool], timeout: float = 5.0
    ) -> None:
        """Block until `predicate` holds for this gateway.

        It is called whenever a request or a connection comes, ends or goes.

        Args:
            predicate: Such as `lambda gateway: len(gateway.requests) == 2`.
            timeout: Seconds.

        Raises:
            TimeoutError: It did not hold in time; says what was seen.
        """
        self._log.wait_for(lambda: predicate(self), timeout)

    async def await_for(
        self,
        predicate: Callable[[FaultyGateway], bool],
        timeout: float = 5.0,  # noqa: ASYNC109 - as in `wait_for`
    ) -> None:
        """Do what `wait_for` does, without blocking the event loop."""
        await self._log.await_for(lambda: predicate(self), timeout)

    # Called in the server's thread.

    def _deliver(self, entry: Entry) -> Delivery:
        exchange = self._exchange(entry.request)
        try:
            entry.step = self._refusal(exchange) or self._step_for(entry.request)
            return entry.step.deliver(exchange)
        except Exception as error:  # noqa: BLE001 - the user's code: `stop` raises it
            self._errors.append(error)
            body = f"FaultyGateway: {type(error).__name__}: {error}"
            entry.step = Status(500, {"content-type": "text/plain"}, body)
            return entry.step.deliver(exchange)

    def _exchange(self, request: RecordedRequest) -> Exchange:
        fixed = self._fixed.get(request.path)
        return _EXCHANGES[request.protocol](request, self._own_answer, fixed)

    def _own_answer(self, request: RecordedRequest) -> ResolvedAnswer:
        """The gateway's own answer."""
        answer = self._answer
        if not isinstance(answer, Answer):
            answer = answer(request)
        if not answer.has_content:  # Ours ends at the first text in `stop`.
            given = request.parameters.get("stop") or []
            stops = [given] if isinstance(given, str) else map(str, given)
            found = [at for stop in stops if (at := STUB_TEXT.find(stop)) >= 0]
            answer = replace(answer, text=STUB_TEXT[: min(found, default=None)])
        return answer.resolve(request)

    def _refusal(self, exchange: Exchange) -> Step | None:
        if exchange.request.endpoint is None and not exchange.fixed:
            return exchange.unknown_path()
        if self._api_key is not None and not exchange.is_authorized(self._api_key):
            return Status(401)
        return None if exchange.fixed else exchange.refusal()

    def _step_for(self, request: RecordedRequest) -> Step:
        scripted: ScriptedStep | None = None
        with self._lock:
            for name in (request.model, None):
                script = self._scripts.get(name)
                if script and (script.once or script.always):
                    scripted = script.once.popleft() if script.once else script.always
                    break
        scripted = scripted or HEALTHY
        # The user's function runs outside the lock: it may script the next step.
        return scripted if isinstance(scripted, Step) else scripted(request)


def _checked(step: ScriptedStep) -> ScriptedStep:
    if isinstance(step, type):
        name = step.__name__
        msg = f"{name} is a class, a script takes its instances: {name}()"
        raise TypeError(msg)
    if not isinstance(step, Step) and not callable(step):
        msg = f"{step!r} is neither a step nor a function that picks one"
        raise TypeError(msg)
    return step
