"""A model provider that fails on cue: a real HTTP server on the loopback, by script."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Self, TypeAlias, cast

import h11

from langchain_retryrouter._shared import require, watch_forks
from langchain_retryrouter.testing import _exchange as wire
from langchain_retryrouter.testing._exchange import HEALTHY, Answer
from langchain_retryrouter.testing._faults import Status
from langchain_retryrouter.testing._gptrouter_api import GPTRouterExchange
from langchain_retryrouter.testing._openai_api import OpenAIExchange

ScriptedStep: TypeAlias = wire.Step | Callable[[wire.RecordedRequest], wire.Step]
"""A step, or a function that picks one when the request is known."""

_BACKLOG = 4096
_STOP_SECONDS = 5.0
_BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # linger for zero seconds: close() sends RST


class _Log:
    """The requests and the connections of one gateway."""

    def __init__(self, keep: int | None) -> None:
        self.changed = threading.Condition()
        self.requests: deque[wire.RecordedRequest] = deque(maxlen=keep)
        self.requests_begun = 0
        self.connections = 0
        self.open_connections = 0

    @contextlib.contextmanager
    def change(self) -> Iterator[Self]:
        """Change it in a `with`, and let those who wait look at it."""
        with self.changed:
            yield self
            self.changed.notify_all()


class _Server:
    """A listening socket and the thread that serves it, from start to stop."""

    def __init__(
        self,
        answer: Callable[[wire.RecordedRequest], wire.Delivery],
        log: _Log,
        port: int,
    ) -> None:
        self.answer = answer
        self.log = log
        self.connections: set[_Connection] = set()
        self.stopping = False
        self._is_parents = False
        self._listener = socket.create_server(("127.0.0.1", port), backlog=_BACKLOG)
        self.port: int = self._listener.getsockname()[1]
        # Not the policy's loop: this one is known to close sockets the way we need.
        self.loop = asyncio.SelectorEventLoop()
        self._stop_asked = self.loop.create_future()
        self._all_gone = self.loop.create_future()
        self._thread = threading.Thread(
            target=self._run, name="FaultyGateway", daemon=True
        )
        self._thread.start()
        watch_forks(self)

    def stop(self) -> None:
        if self._is_parents:
            return
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
            connection.transport.abort()
        if self.connections:
            await self._all_gone

    def disconnected(self, connection: _Connection) -> None:
        self.connections.discard(connection)
        if self.stopping and not self.connections and not self._all_gone.done():
            self._all_gone.set_result(None)

    def forked(self) -> None:
        """Release the sockets in a forked child; they stay the parent's.

        A socket that the child holds too would stay open when the parent closes it: no
        FIN and no RST would be sent. The descriptors are pointed elsewhere and not
        closed: their owners in this process would close the number a second time, and
        the loop must not be touched, because its epoll is the parent's as well.
        """
        self._is_parents = True
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in (
            self._listener.fileno(),
            *(connection.socket.fileno() for connection in self.connections),
        ):
            if number >= 0:
                os.dup2(nowhere, number)
        os.close(nowhere)
        self.log.changed = threading.Condition()  # It may have been copied while held.


class _Connection(asyncio.Protocol):
    """One TCP connection: it reads requests and writes what their steps deliver."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._parser = h11.Connection(h11.SERVER)
        self._head: h11.Request | None = None
        self._body = bytearray()
        self._request: wire.RecordedRequest | None = None
        self._delivery = wire.Delivery()
        self._next_action = 0
        self._timer: asyncio.TimerHandle | None = None
        self._is_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        # `pause_writing` is called for any byte that the kernel does not take at once:
        # an answer counts as sent when all of it has left this process.
        self.transport.set_write_buffer_limits(high=0)
        # asyncio does this by itself, but not for a listener from `create_server`:
        # without it each stream on a kept connection pauses for 40 ms (Nagle).
        self.socket = cast("socket.socket", transport.get_extra_info("socket"))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._server.log.change() as log:
            log.connections += 1
            log.open_connections += 1
            self._number = log.connections
        self._server.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._parser.receive_data(data)
        if self._request is None:
            self._read()

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        if self._request is not None and self._timer is None:
            self._write()

    def connection_lost(self, _exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with self._server.log.change() as log:
            log.open_connections -= 1
            if self._request is not None:
                is_ours = self._server.stopping
                self._request.outcome = "faulted" if is_ours else "client_left"
        self._request = None
        self._server.disconnected(self)

    # Reading.

    def _read(self) -> None:
        if self.transport.is_closing():
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
                    self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        except h11.RemoteProtocolError:
            self.transport.write(_BAD_REQUEST)
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
        with self._server.log.change() as log:
            log.requests_begun += 1
            self._request = wire.RecordedRequest(
                number=log.requests_begun,
                at=time.monotonic(),
                connection=self._number,
                method=head.method.decode("latin-1"),
                path=path,
                query=query,
                headers=headers,
                body=bytes(self._body),
            )
            log.requests.append(self._request)
        self._delivery = self._server.answer(self._request)
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
            self.transport.write(action)
            if self._is_paused:
                return
        self._end()

    def _end(self) -> None:
        self._record_outcome()
        self._request = None
        if self._delivery.ending == "rst":
            option = socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE
            self.socket.setsockopt(*option)
            self.transport.abort()
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
        request = cast("wire.RecordedRequest", self._request)
        if request.outcome == "pending":
            with self._server.log.change():
                request.outcome = self._delivery.outcome

    def _hang_up(self) -> None:
        self.transport.write_eof()
        self.transport.close()


class FaultyGateway:
    """A model provider on the loopback that answers, or fails, as its script says.

    It speaks GPTRouter's protocol, OpenAI's completions, chat completions and
    embeddings, and Azure's form of them. Every request takes the next step of the
    script; without one, the answer is healthy. `requests` has everything that came in.

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
        answer: Answer | Callable[[wire.RecordedRequest], Answer] = HEALTHY,
        api_key: str | None = None,
        port: int = 0,
        keep_requests: int | None = None,
        gptrouter: wire.Edition = "public",
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
        require("port", port, "from 0 to 65535", is_met=port in range(65_536))
        is_met = gptrouter in {"public", "hosted"}
        require("gptrouter", gptrouter, "'public' or 'hosted'", is_met=is_met)
        self._gptrouter: wire.Edition = gptrouter
        self._answer = answer
        self._api_key = api_key
        self._port = port
        self._once: dict[str | None, deque[ScriptedStep]] = {}
        self._always: dict[str | None, ScriptedStep] = {}
        self._fixed: dict[str, wire.Response] = {}
        self._log = _Log(keep_requests)
        self._errors: list[BaseException] = []
        self._server: _Server | None = None

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
        self._server = _Server(self._deliver, self._log, self._port)
        self._port = self._server.port

    def stop(self) -> None:
        """Abort what is under way, and close everything. Does nothing when stopped.

        Raises:
            ExceptionGroup: The errors of the functions in `answer` and in the script,
                and of steps that did not fit their request. The client saw a 500 then.
                It is a `BaseExceptionGroup` if one called `pytest.fail`.
        """
        server, self._server = self._server, None
        if server is not None:
            server.stop()
        errors, self._errors = self._errors, []
        if errors:
            msg = "the gateway could not carry out its script or its answer"
            raise BaseExceptionGroup(msg, errors)

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    async def __aenter__(self) -> Self:
        """Start."""
        return self.__enter__()

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
        self._once[model] = deque(_checked(step) for step in steps)

    def always(self, step: ScriptedStep, *, model: str | None = None) -> None:
        """Answer every request with `step` when the script is used up.

        `step` and `model` are what they are in `script`.
        """
        self._always[model] = _checked(step)

    def respond(self, path: str, json_body: Any, *, status: int = 200) -> None:
        """Set the healthy answer of a path that has no model behind it.

        Such requests take steps of the script like all others.

        Args:
            path: Such as `/v1/rerank`; without a query.
            json_body: Anything that JSON can say.
            status: The status that comes with it.

        Raises:
            ValueError: `path` is not one.
        """
        is_met = path.startswith("/") and "?" not in path
        require("path", path, "a '/' and what follows, without a query", is_met=is_met)
        self._fixed[path] = wire.Response(
            status, wire.JSON_HEADERS, wire.compact_json(json_body)
        )

    # The log.

    @property
    def requests(self) -> list[wire.RecordedRequest]:
        """The requests so far, oldest first; their `outcome` follows what happens."""
        with self._log.changed:
            return list(self._log.requests)

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
        with self._log.changed:
            self._log.requests.clear()

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
        with self._log.changed:
            if self._log.changed.wait_for(lambda: predicate(self), timeout):
                return
            counts = f"{self.open_connections} of {self.connections} connections open"
            counts += f", {len(self.requests)} requests"
            seen = "".join(f"\n  {request}" for request in self.requests)
        msg = f"not so after {timeout} s; {counts}:{seen}"
        raise TimeoutError(msg)

    async def await_for(
        self,
        predicate: Callable[[FaultyGateway], bool],
        timeout: float = 5.0,  # noqa: ASYNC109 - as in `wait_for`
    ) -> None:
        """Do what `wait_for` does, without blocking the event loop."""
        await asyncio.to_thread(self.wait_for, predicate, timeout)

    # Called in the server's thread.

    def _deliver(self, request: wire.RecordedRequest) -> wire.Delivery:
        request.gptrouter = self._gptrouter
        kind = GPTRouterExchange if request.protocol == "gptrouter" else OpenAIExchange
        fixed = self._fixed.get(request.path)
        exchange: wire.Exchange = kind(request, self._own_answer, fixed)
        try:
            request.step = self._refusal(exchange) or self._step_for(request)
            return request.step.deliver(exchange)
        except BaseException as error:  # noqa: BLE001 - the user's: `stop` raises it
            self._errors.append(error)
            body = f"FaultyGateway: {type(error).__name__}: {error}"
            request.step = Status(500, {"content-type": "text/plain"}, body)
            return request.step.deliver(exchange)

    def _own_answer(self, request: wire.RecordedRequest) -> Answer:
        answer = self._answer
        if not isinstance(answer, Answer):
            answer = answer(request)
        if not answer.has_content:  # Ours ends at the first text in `stop`.
            given = request.parameters.get("stop")
            stops = map(str, given if isinstance(given, list) else [given or ""])
            cut = (wire.STUB_TEXT.partition(stop)[0] for stop in stops if stop)
            text = min(cut, key=len, default=wire.STUB_TEXT)
            answer = replace(answer, text=text)
        return answer

    def _refusal(self, exchange: wire.Exchange) -> wire.Step | None:
        if exchange.request.endpoint is None and not exchange.fixed:
            return exchange.unknown_path()
        if self._api_key is not None and not exchange.is_authorized(self._api_key):
            return Status(401)
        return None if exchange.fixed else exchange.refusal()

    def _step_for(self, request: wire.RecordedRequest) -> wire.Step:
        step: ScriptedStep | None = None
        for model in (request.model, None):
            # `script` puts a new deque in place: only this thread takes from one.
            once = self._once.get(model)
            if step := once.popleft() if once else self._always.get(model):
                break
        step = step or HEALTHY
        while not isinstance(step, wire.Step):
            step = _checked(step(request))
        return step


def _checked(step: ScriptedStep) -> ScriptedStep:
    if isinstance(step, type):
        name = step.__name__
        msg = f"{name} is a class, a script takes its instances: {name}()"
        raise TypeError(msg)
    if not isinstance(step, wire.Step) and not callable(step):
        msg = f"{step!r} is neither a step nor a function that picks one"
        raise TypeError(msg)
    return step
