"""The columns of the matrix, and what one cell of it checks.

A cell is one integration, one fault and one method. The sick provider is the first
route, and a healthy one the second; then the sick one is asked alone.
"""

from __future__ import annotations

import asyncio
import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable
from langchain_openai import ChatOpenAI

from langchain_retryrouter import RetryPolicy, RetryRouter, RetryRouterError
from langchain_retryrouter.testing import FakeClock
from tests.integrations.rows import ROWS, Method, Row
from tests.support.providers.openai import OPENAI
from tests.support.providers.server import (
    TOOL,
    USAGE,
    Error,
    Reply,
    Script,
    ScriptedProvider,
    html,
    whole_arguments,
    whole_text,
)
from tests.support.providers.vertex import VertexProvider, serve

_MAX_RETRIES: Final = 1
_SILENCE: Final = 1.0  # Seconds that a silent provider is waited for.
_PATIENCE: Final = 10.0  # Seconds for any other: the machine may be slow.
# These are not repeated on their route.
_AT_ONCE: Final = {
    *("timeout", "quota", "authentication", "permission", "not_found"),
    *("context_overflow", "invalid_request", "content_filter"),
}


@dataclass(frozen=True, slots=True)
class Column:
    """One fault, and what has to become of it.

    Attributes:
        script: What the sick provider does.
        kinds: The kinds that the failure may have; empty: there is none.
        status, message: Of an error, in the protocol's form.
        wait: The least seconds before a retry, and the `retry_after` of the error.
    """

    script: Script
    kinds: str = ""
    status: int = 0
    message: str = ""
    wait: float | None = None
    is_refused: bool = False

    def scripted(self, name: str, row: Row, method: Method) -> Column:
        """This column with the error as the row's provider writes it."""
        if self.script.how != "error" or self.script.error is not None:
            return self
        error = row.errors.get(name) or Error(
            self.status, row.protocol.error(self.status, self.message)
        )
        wait = error.wait if self.wait is None else self.wait
        if method in row.loses_headers and (error.headers or self.wait):
            wait = None
        return replace(self, script=replace(self.script, error=error), wait=wait)


def _error(
    kinds: str, status: int, message: str, wait: float | None = None, **headers: str
) -> Column:
    script = Script(
        "error", headers={k.replace("_", "-"): v for k, v in headers.items()}
    )
    return Column(script, kinds, status, message, wait)


_LOST: Final = "connection interrupted malformed"
_BUSY: Final = "Too many requests"
COLUMNS: Final[Mapping[str, Column]] = {
    "healthy": Column(Script()),
    "healthy tool call": Column(Script(reply="tool")),
    "429, Retry-After 2": _error("rate_limit", 429, _BUSY, 2.0, retry_after="2"),
    "429, Retry-After 120": _error("rate_limit", 429, _BUSY, 120.0, retry_after="120"),
    "own 429": _error("rate_limit", 429, _BUSY),
    "500": _error("server_error", 500, "The server had an error"),
    "503": _error("unavailable", 503, "The service is unavailable"),
    "529": _error("unavailable", 529, "Overloaded"),
    "502 page": Column(Script("error", error=html(502)), "server_error malformed"),
    "refused": Column(Script(), "connection", is_refused=True),
    "reset": Column(Script("reset"), "connection"),
    "hang up": Column(Script("hangup"), "connection"),
    "silence": Column(Script("silence"), "timeout"),
    "head, silence": Column(Script("head"), "timeout"),
    "stall": Column(Script("stall"), "timeout interrupted"),
    "clean cut": Column(Script("cut"), _LOST),
    "cut tool call": Column(Script("cut", reply="tool"), _LOST),
    "RST": Column(Script("rst"), _LOST),
    "FIN": Column(Script("fin"), _LOST),
    "RST in a tool call": Column(Script("rst", reply="tool"), _LOST),
    "error event first": Column(
        Script("first event"), "server_error unavailable interrupted malformed"
    ),
    "error event": Column(
        Script("event"), "server_error unavailable interrupted malformed"
    ),
    "empty stream": Column(Script("empty"), "malformed interrupted connection"),
    "page as 200": Column(
        Script("body", body=html(200).body, content_type="text/html"),
        "malformed interrupted server_error",
    ),
    "empty 200": Column(
        Script("body", body=b"{}"), "malformed interrupted server_error connection"
    ),
    "no body": Column(Script("body"), "malformed interrupted connection server_error"),
    "wrong key": _error("authentication", 401, "Invalid API key"),
    "403": _error("permission", 403, "You may not use this endpoint"),
    "unknown model": _error("not_found", 404, "The model `sick` does not exist"),
    "context": _error(
        "context_overflow",
        400,
        "This model's maximum context length is 8192 tokens, you requested 9000",
    ),
    "filter": _error(
        "content_filter", 400, "The prompt was flagged by our content policy filter"
    ),
    "quota": _error("quota", 402, "You have exceeded your monthly usage limit"),
    "400": _error("invalid_request", 400, "temperature must be between 0 and 2"),
}


def cells() -> list[tuple[str, str, Method]]:
    """All cells of the integrations that are installed."""
    return [
        (name, column, method)
        for name, row in ROWS.items()
        for column, fault in COLUMNS.items()
        for method in row.methods
        if row.is_installed
        and (row.has_tools or fault.script.reply == "text")
        and column not in row.unknown_faults
    ]


def _tools(model: Runnable[Any, Any], reply: Reply) -> Runnable[Any, Any]:
    if reply == "text":
        return model
    schema = {
        "title": TOOL,
        "description": "Delete the files of a folder",
        "type": "object",
        "properties": {"path": {"type": "string"}, "recursive": {"type": "boolean"}},
        "required": ["path"],
    }
    bind: Callable[[list[Any]], Runnable[Any, Any]] = model.bind_tools  # type: ignore[attr-defined]
    return bind([schema])


def pieces(build: Callable[[], Runnable[Any, Any]], method: Method) -> list[Any]:
    """The answer of the model that `build` makes, or its chunks."""
    prompt = "Hello there"

    async def apieces() -> list[Any]:
        model = build()  # Some need the event loop.
        if method == "ainvoke":
            return [await model.ainvoke(prompt)]
        return [chunk async for chunk in model.astream(prompt)]

    if method.startswith("a"):
        return asyncio.run(apieces())
    model = build()
    return [model.invoke(prompt)] if method == "invoke" else list(model.stream(prompt))


def ask(build: Callable[[], Runnable[Any, Any]], method: Method) -> BaseMessage:
    """The same, with the chunks added up."""
    total: BaseMessage = functools.reduce(operator.add, pieces(build, method))
    return total


def _policy(how: str, method: Method) -> RetryPolicy:
    seconds = _SILENCE if how in {"silence", "head", "stall"} else _PATIENCE
    is_stream = method.endswith("stream")
    return RetryPolicy(
        max_retries=_MAX_RETRIES,
        attempt_timeout=None if is_stream else seconds,
        first_token_timeout=seconds,
        stall_timeout=seconds,
    )


def backup(url: str) -> BaseChatModel:
    return ChatOpenAI(model="backup", api_key="sk-backup", base_url=f"{url}/v1")  # type: ignore[arg-type]


def run_cell(row: Row, name: str, method: Method) -> list[str]:
    """What is wrong in one cell; empty if all is right."""
    column = COLUMNS[name].scripted(name, row, method)
    reply = column.script.reply
    healthy = Script(reply=reply)
    with serve(row.protocol, column.script) as sick, serve(OPENAI, healthy) as well:
        clock = FakeClock()

        def router(*backups: BaseChatModel) -> Runnable[Any, Any]:
            if column.is_refused:  # Some clients ask for something when they are made.
                with serve(row.protocol, column.script) as gone:
                    routes = [row.model(gone.url), *backups]
            else:
                routes = [row.model(sick.url), *backups]
            policy = _policy(column.script.how, method)
            return _tools(
                RetryRouter(routes=routes, retry_policy=policy, clock=clock), reply
            )

        if not column.kinds:
            return _healthy(row, sick.url, column, method, router, sick)
        wrong = _answered(column, method, clock, lambda: router(backup(well.url)))
        sent = len(sick.requests)
        most = 1 if column.kinds in _AT_ONCE else _MAX_RETRIES + 1
        if sent > most:
            wrong.append(f"{sent} requests at the sick provider, not {most}")
        return [*wrong, *_raised(column, method, router)]


def _healthy(
    row: Row,
    url: str,
    column: Column,
    method: Method,
    router: Callable[[], Runnable[Any, Any]],
    sick: ScriptedProvider | VertexProvider,
) -> list[str]:
    """A healthy provider: the same answer as from the bare model, by one request."""
    answer = ask(router, method)
    sent = len(sick.requests)
    bare = ask(lambda: _tools(row.model(url), column.script.reply), method)
    assert isinstance(answer, AIMessage)
    assert isinstance(bare, AIMessage)
    flaws = list(_unlike(bare, column.script.reply))
    usage = bare.usage_metadata
    if usage is None or (usage["input_tokens"], usage["output_tokens"]) != USAGE:
        flaws.append(f"usage {usage}")
    wrong = [] if row.own_flaws else flaws
    metadata = {**answer.response_metadata}
    log = metadata.pop("retryrouter", {}).get("attempts", [])
    pairs = {
        "content": (answer.content, bare.content),
        "tool_calls": (answer.tool_calls, bare.tool_calls),
        "usage": (answer.usage_metadata, bare.usage_metadata),
        "additional_kwargs": (answer.additional_kwargs, bare.additional_kwargs),
        "metadata": (metadata, bare.response_metadata),
    }
    if row.own_flaws:
        del pairs["metadata"]
    if list(_unlike(bare, column.script.reply)):  # The router's answer is whole.
        wrong, pairs = list(_unlike(answer, column.script.reply)), {}
    for what, (ours, theirs) in pairs.items():
        if _stable(ours) != _stable(theirs):
            wrong.append(f"{what} {ours!r}, and of the bare model {theirs!r}")
    if (outcomes := [one["outcome"] for one in log]) != ["ok"]:
        wrong.append(f"attempts {outcomes}")
    if sent != 1:
        wrong.append(f"{sent} requests")
    return wrong


_UNSTABLE: Final = (
    "id", "total_duration", "load_duration", "created", "RetryAttempts", "headers",
    "HTTPHeaders", "ResponseMetadata", "metrics", "latencyMs", "response_id",
    "token_usage", "created_at", "completed_at",
)  # fmt: skip


def _stable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _stable(v) for k, v in value.items() if k not in _UNSTABLE}
    if isinstance(value, list | tuple):
        return [_stable(one) for one in value]
    return value


def _unlike(answer: BaseMessage, reply: Reply) -> Iterator[str]:
    """How an answer differs from the whole one."""
    assert isinstance(answer, AIMessage)
    calls = [(one["name"], one["args"]) for one in answer.tool_calls]
    if reply == "tool":
        if calls != [(TOOL, whole_arguments())]:
            yield f"tool calls {calls}, invalid {answer.invalid_tool_calls}"
    elif answer.text != whole_text():
        yield f"text {answer.text!r}"


def _answered(
    column: Column,
    method: Method,
    clock: FakeClock,
    build: Callable[[], Runnable[Any, Any]],
) -> list[str]:
    """The backup answers, or the documented error says why not."""
    kinds = column.kinds.split()
    try:
        answer = ask(build, method)
    except RetryRouterError as error:
        is_cut_call = column.script.reply == "tool" and method.endswith("stream")
        if "content_filter" in kinds or is_cut_call:
            return _unlike_error(error, column)
        return [f"no answer: {type(error).__name__}: {error}"]
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        return [f"raw {type(error).__module__}.{type(error).__name__}: {error}"]
    if "content_filter" in kinds:
        return [f"a refusal was routed around: {answer.text!r}"]
    wrong = list(_unlike(answer, column.script.reply))
    log = answer.response_metadata.get("retryrouter", {}).get("attempts", [])
    failed = [one["outcome"] for one in log[:-1]]
    if not failed or not set(failed) <= set(kinds):
        wrong.append(f"attempts {[one['outcome'] for one in log]}, not {column.kinds}")
    short = column.wait is not None and column.wait <= 3  # It is waited for.
    if short and max(clock.sleeps, default=0) < (column.wait or 0):
        wrong.append(f"waits {clock.sleeps}, not {column.wait}")
    if column.wait and not short and any(clock.sleeps):
        wrong.append(f"waits {clock.sleeps} before another route")
    return wrong


def _raised(
    column: Column, method: Method, router: Callable[[], Runnable[Any, Any]]
) -> list[str]:
    """Alone, the sick provider's failure is a typed error with its cause."""
    try:
        answer = ask(router, method)
    except RetryRouterError as error:
        return _unlike_error(error, column)
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        return [f"raw alone {type(error).__module__}.{type(error).__name__}: {error}"]
    assert isinstance(answer, AIMessage)
    return [f"a broken answer is a success: {answer.text!r} {answer.tool_calls}"]


def _unlike_error(error: RetryRouterError, column: Column) -> list[str]:
    wrong = []
    allowed = {*column.kinds.split(), *(["interrupted"] if error.delivered else [])}
    if error.kind not in allowed:
        wrong.append(f"alone {error.kind}, not {column.kinds}: {error}")
    if column.wait is not None and (error.retry_after or 0) < column.wait:
        wrong.append(f"retry_after {error.retry_after}, not {column.wait}")
    scripted = column.script.error
    if scripted is not None and error.__cause__ is None:
        wrong.append("the error has no cause")
    if scripted is not None and error.status_code not in {scripted.status, None}:
        wrong.append(f"status {error.status_code}, not {scripted.status}")
    return wrong
