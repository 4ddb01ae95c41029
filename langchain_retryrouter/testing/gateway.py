"""A provider that fails on cue: a real HTTP server on the loopback, with a script."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from . import _gptrouter_protocol, _openai_protocol
from ._log import Entry, RequestLog
from ._plan import Exchange, Plan, plan
from ._reply import JSON_HEADERS, Dialect, Whole, compact_json
from ._script import Scripts
from ._server import Server
from .completion import Responder, StubResponder
from .recorded_request import RecordedRequest
from .steps import ScriptedStep, Status, Step

if TYPE_CHECKING:
    from .recorded_request import Edition, ProtocolName

_DIALECTS: dict[ProtocolName, Dialect] = {
    "gptrouter": _gptrouter_protocol,
    "openai": _openai_protocol,
}
_EDITIONS: frozenset[Edition] = frozenset({"public", "hosted"})


class FaultyGateway:
    """A model provider on the loopback that answers, or fails, as its script says.

    It speaks GPTRouter's protocol, OpenAI's completions and chat completions, and
    Azure's form of both. Every request takes the next step of the script; without one,
    the answer is healthy. Everything that came in is in `requests`.

    Example:
        ```python
        with FaultyGateway() as gateway:
            gateway.script(Status(429, {"retry-after": "1"}), Reset())
            llm = GPTRouter(gpt_router_api_base=gateway.url, ...)
            llm.invoke("hi")  # the third attempt is answered
            assert [request.step for request in gateway.requests] == [...]
        ```

    In a coroutine use `async with`: to stop a server blocks for a moment.
    """

    def __init__(
        self,
        *,
        responder: Responder | None = None,
        api_key: str | None = None,
        port: int = 0,
        keep_requests: int | None = None,
        gptrouter: Edition = "public",
    ) -> None:
        """Prepare a gateway; `start` or `with` opens it.

        Args:
            responder: Makes the healthy answers. A `StubResponder` by default; a
                `RuleResponder` calls tools and fills schemas.
            api_key: The only key that is let in; everybody is when it is None.
            port: The loopback port, 0 for any that is free. A gateway that is started
                again listens where it did before.
            keep_requests: How many requests `requests` holds at most; None for all, 0
                for load tests.
            gptrouter: Which GPTRouter it plays. `"public"` is the published server: it
                refuses `json_schema`, leaves usage out of streams whose messages are
                more than text, and drops what it does not know, such as `tool_choice`,
                so that `responder` does not see it. `"hosted"` is the newer service as
                its clients imply it: it takes all of these, and has embeddings.

        Raises:
            ValueError: `gptrouter` is neither.
        """
        if gptrouter not in _EDITIONS:
            msg = f"gptrouter is {gptrouter!r}, it must be 'public' or 'hosted'"
            raise ValueError(msg)
        self._gptrouter = gptrouter
        self._responder = responder if responder is not None else StubResponder()
        self._api_key = api_key
        self._port = port
        self._scripts = Scripts()
        self._fixed: dict[str, Whole] = {}
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
        record = partial(RecordedRequest, gptrouter=self._gptrouter)
        self._server = Server(self._plan, self._log, self._port, record)
        self._port = self._server.port

    def stop(self) -> None:
        """Break off what is under way, and close everything. Does nothing when stopped.

        Raises:
            ExceptionGroup: What the responder, a step's function or a step that did not
                fit its answer raised; the client saw a 500 then.
        """
        server, self._server = self._server, None
        if server is not None:
            server.stop()
        errors, self._errors = self._errors, []
        if errors:
            msg = "the gateway could not do what its script or responder says"
            raise ExceptionGroup(msg, errors)

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop."""
        self.stop()

    async def __aenter__(self) -> Self:
        """Start."""
        self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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

    # What it shall do.

    def script(self, *steps: ScriptedStep, model: str | None = None) -> None:
        """Let the next requests be answered by `steps`, one each, in order.

        They take the place of the steps that are still open; none at all clears them.

        Args:
            *steps: Steps, or functions that pick one when they see the request.
            model: Only for requests to this model. Its steps come before the server's.

        Raises:
            TypeError: One of `steps` is no step.
        """
        self._scripts.script(steps, model)

    def always(self, step: ScriptedStep, *, model: str | None = None) -> None:
        """Let every request be answered by `step` when the script is used up.

        Args:
            step: A step, or a function that picks one when it sees the request.
            model: Only for requests to this model. Its steps come before the server's.

        Raises:
            TypeError: `step` is no step.
        """
        self._scripts.always(step, model)

    def respond(self, path: str, json_body: Any, *, status: int = 200) -> None:
        """Set the healthy answer of a path that has no model behind it.

        Such requests take steps of the script like all others.

        Args:
            path: Such as `/v1/embeddings`; without a query.
            json_body: Anything that JSON can say.
            status: The status that comes with it.
        """
        self._fixed[path] = Whole(status, JSON_HEADERS, compact_json(json_body))

    # What it has seen.

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
        """Forget the requests. Numbers go on counting, scripts stay as they are."""
        self._log.clear()

    def wait_for(
        self, predicate: Callable[[FaultyGateway], bool], timeout: float = 5.0
    ) -> None:
        """Block until `predicate` holds for this gateway.

        It is asked again whenever a request or a connection comes, ends or goes.

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
        timeout: float = 5.0,  # noqa: ASYNC109 - the twin of `wait_for`
    ) -> None:
        """Wait until `predicate` holds for this gateway; the event loop runs on.

        It is asked again whenever a request or a connection comes, ends or goes.

        Args:
            predicate: Such as `lambda gateway: len(gateway.requests) == 2`.
            timeout: Seconds.

        Raises:
            TimeoutError: It did not hold in time; says what was seen.
        """
        await self._log.await_for(lambda: predicate(self), timeout)

    # Called in the server's thread.

    def _plan(self, entry: Entry) -> Plan:
        try:
            return self._planned(entry)
        except Exception as error:  # noqa: BLE001 - the caller's code: told by `stop`
            self._errors.append(error)
            body = f"FaultyGateway: {type(error).__name__}: {error}"
            entry.step = Status(500, {"content-type": "text/plain"}, body)
            return plan(entry.step, self._exchange(entry.request))

    def _planned(self, entry: Entry) -> Plan:
        request = entry.request
        exchange = self._exchange(request)
        entry.step = self._refusal(exchange) or self._scripts.step_for(request)
        return plan(entry.step, exchange)

    def _exchange(self, request: RecordedRequest) -> Exchange:
        fixed = self._fixed.get(request.path)
        return Exchange(request, _DIALECTS[request.protocol], self._responder, fixed)

    def _refusal(self, exchange: Exchange) -> Step | None:
        request, dialect = exchange.request, exchange.dialect
        if request.endpoint is None and not exchange.fixed:
            return dialect.unknown_path(request)
        if self._api_key is not None and not dialect.is_authorized(
            request, self._api_key
        ):
            return Status(401)
        return None if exchange.fixed else dialect.refusal(request)
