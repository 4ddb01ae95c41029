"""The command `retryrouter`: a demo, a faulty gateway, worst cases, and timelines.

The demo makes real LangChain calls over real HTTP to a `FaultyGateway`: its lines come
from LangChain's callbacks, its table from the attempt logs of the answers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import LLMResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableConfig
from pydantic import SecretStr
from tenacity import RetryCallState

from langchain_retryrouter import (
    GPTRouter,
    GPTRouterModel,
    OpenAI,
    RetryPolicy,
    RetryRouter,
    RetryRouterError,
    StreamInterruptedError,
    __version__,
)
from langchain_retryrouter._providers.integrations import TOKEN_LIMITS
from langchain_retryrouter._retry.clock import SYSTEM_CLOCK
from langchain_retryrouter.attempt_log import (
    AttemptLog,
    one_line,
    read_logs,
    trace_page,
)

try:  # the extra "cli"; `explain` does without
    from rich import console as rich
    from rich.markup import escape
    from rich.table import Table

    from langchain_retryrouter import testing
    from langchain_retryrouter.stores import RedisStore
except ModuleNotFoundError as _error:
    _MISSING: str | None = (_error.name or "").partition(".")[0]
    if _MISSING not in {"rich", "h11"}:
        raise
else:
    _MISSING = None

    class Console(rich.Console):
        """Leaves a pipe whose reader has gone to `main`."""

        def on_broken_pipe(self) -> None:
            """Called by rich, which would exit with 1."""
            raise BrokenPipeError


if TYPE_CHECKING:
    from langchain_retryrouter.testing import Step

_INTERRUPTED, _BROKEN_PIPE = 130, 141  # As shells report SIGINT and SIGPIPE.
_LONGEST_WATCH = 86_400.0
_NEED_EXTRA = {"demo", "gateway", "status"}
_EXPLAINED = (
    *("max_retries", "initial_delay", "max_delay", "backoff_factor"),
    *("max_retry_after", "deadline", "attempt_timeout"),
)
_LONGEST_LINE = 1000  # Characters of what a provider or another process says.
_PING_TOKENS = 16  # The least that OpenAI's Responses API takes.


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments without the program's name; None for those of the process.

    Returns:
        The exit code: 0, 1 for a package that is not installed, a route that does not
            answer, or lines that cannot be read, 2 for bad arguments, 130 for Ctrl-C,
            and 141 if the output is a pipe whose reader has gone (`| head`).
    """
    try:
        try:
            return _run(argv)
        finally:
            for stream in _streams():
                stream.flush()
    except BrokenPipeError:
        null = os.open(os.devnull, os.O_WRONLY)
        for stream in _streams():  # Python flushes them at its end.
            with contextlib.suppress(OSError):
                os.dup2(null, stream.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        return _INTERRUPTED


def _streams() -> list[TextIO]:
    """What is written to; a shell's `>&-` leaves Python without a stream."""
    return [one for one in (sys.stdout, sys.stderr) if one is not None]


def _run(argv: Sequence[str] | None) -> int:
    for stream in _streams():
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # A file on Windows is not UTF-8.
    arguments = _parser().parse_args(argv)
    if arguments.command in _NEED_EXTRA and _MISSING:
        print(
            f"`retryrouter {arguments.command}` needs {_MISSING!r}:"
            ' pip install "langchain-retryrouter[cli]"',
            file=sys.stderr,
        )
        return 1
    try:
        return arguments.run(arguments) or 0
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ImportError) as error:
        print(f"retryrouter {arguments.command}: {error}", file=sys.stderr)
        return 1 if isinstance(error, ImportError) else 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="retryrouter",
        description="LangChain language models that survive misbehaving providers.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser("demo", help="calls through real faults, without a key")
    demo.set_defaults(run=run_demo)

    gateway = commands.add_parser("gateway", help="run a gateway that fails on cue")
    gateway.add_argument("--port", type=int, default=0, help="0 for any free port")
    steps = "answers to the first requests, such as 429,reset,503,cut:3,stall:2,ok"
    gateway.add_argument("--script", default="", metavar="STEPS", help=steps)
    gateway.set_defaults(run=_run_gateway)

    explain = commands.add_parser("explain", help="the worst case of a retry policy")
    for name in _EXPLAINED:
        explain.add_argument(
            f"--{name.replace('_', '-')}",
            type=int if name == "max_retries" else float,
            default=getattr(RetryPolicy(), name),
            metavar="N" if name in {"max_retries", "backoff_factor"} else "SECONDS",
        )
    explain.set_defaults(run=_explain)

    check = commands.add_parser("check", help="validate the config of a RetryRouter")
    check.add_argument("file", metavar="FILE", help="a .toml, .json or .yaml file")
    check.add_argument(
        "--ping", action="store_true", help="ask each route once, for a few tokens"
    )
    check.add_argument(
        "--timeout", type=float, default=30.0, metavar="SECONDS", help="of each ping"
    )
    check.set_defaults(run=_check)

    trace = commands.add_parser("trace", help="timelines of calls from their logs")
    lines = "a log in JSON a line, as AttemptLog.to_json writes it, or JSON around one"
    trace.add_argument("file", metavar="FILE.jsonl", type=Path, help=lines)
    page = "write a page with filters there instead of printing"
    trace.add_argument("--html", metavar="OUT.html", type=Path, help=page)
    trace.set_defaults(run=_trace)

    status = commands.add_parser("status", help="what the processes of a store share")
    url = "such as redis://localhost:6379/0"
    status.add_argument("--store", required=True, metavar="URL", help=url)
    status.add_argument("--namespace", default="rr", help="as in RedisStore")
    status.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=2.0,
        metavar="SECONDS",
        help="again and again, until Ctrl-C",
    )
    status.set_defaults(run=_status)
    return parser


def _run_gateway(arguments: argparse.Namespace) -> None:
    steps = [_read_step(word) for word in arguments.script.split(",") if word]
    with contextlib.ExitStack() as stack:
        # A signal writes a byte, whichever thread takes it. Windows has no `sigwait`.
        stopped, stop = map(stack.enter_context, socket.socketpair())
        stop.settimeout(0)
        stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(stop.fileno()))
        # Before the address is printed: its reader may send the signal at once.
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(
                signal.signal, number, signal.signal(number, lambda *_: None)
            )
        gateway = stack.enter_context(
            testing.FaultyGateway(port=arguments.port, keep_requests=0)
        )
        gateway.script(*steps)
        print(f"GPTRouter  {gateway.url}\nOpenAI     {gateway.openai_url}", flush=True)
        stopped.recv(1)


def _read_step(word: str) -> Step:
    name, _, amount = word.strip().partition(":")
    is_status = name.isdecimal()
    if amount and not amount.replace(".", "", int(is_status)).isdecimal():
        msg = f"{amount!r} in {word!r} is not a {'' if is_status else 'whole '}number"
        raise ValueError(msg)
    if is_status:
        headers = {"retry-after": amount} if amount else None
        return testing.Status(int(name), headers)
    # How each is made, and its number if none is given; None for those without one.
    known: dict[str, tuple[Callable[..., Step], int | None]] = {
        "ok": (testing.Answer, None),
        "reset": (testing.Reset, None),
        "hangup": (testing.Hangup, None),
        "html": (testing.HtmlPage, None),
        "silence": (testing.Silence, 120),
        "slow": (testing.SlowFirstToken, 20),
        "stall": (lambda after: testing.Stall(after, 30), 0),
        "cut": (testing.Cut, 0),
        "truncate": (testing.Truncate, 0),
        "malformed": (testing.MalformedEvent, 1),
    }
    if name not in known:
        msg = (
            f"{word!r} is not a step: use a status such as 429 or 429:2 (Retry-After),"
            f" or one of {', '.join(known)} (some take a number, as in cut:3)"
        )
        raise ValueError(msg)
    step, usual = known[name]
    if usual is None:
        if amount:
            msg = f"{name!r} takes no number, so {word!r} is not a step"
            raise ValueError(msg)
        return step()
    return step(int(amount or usual))


def _explain(arguments: argparse.Namespace) -> None:
    policy = RetryPolicy(**{name: getattr(arguments, name) for name in _EXPLAINED})
    for retry in range(1, policy.max_attempts):
        print(f"before retry {retry}: up to {policy.backoff(retry):.2f} s")
    print(policy.explain())


def _check(arguments: argparse.Namespace) -> int:
    router = RetryRouter.from_config(arguments.file)
    print(router.explain())
    if not arguments.ping:
        return 0
    print()
    # No other route, retry or breaker hides what one route does.
    policy = RetryPolicy(max_retries=0, attempt_timeout=arguments.timeout)
    width, failed = max(len(route.name) for route in router.routes), 0
    for route in router.routes:
        known = type(route.model).model_fields
        limit = next((name for name in TOKEN_LIMITS if name in known), None)
        update = {limit: _PING_TOKENS} if limit else {}
        once = route.model_copy(update={"model": route.model.model_copy(update=update)})
        pinged = RetryRouter(routes=[once], retry_policy=policy, breaker_settings=None)
        began, outcome = time.perf_counter(), "ok"
        try:
            pinged.invoke("Answer with the word OK.")
        except RetryRouterError as error:
            said = one_line(error.message, _LONGEST_LINE)
            outcome, failed = f"{error.kind.value}: {said}", failed + 1
        milliseconds = 1000 * (time.perf_counter() - began)
        print(f"{route.name:<{width}}  {milliseconds:>6.0f} ms  {outcome}")
    return 1 if failed else 0


def _trace(arguments: argparse.Namespace) -> int:
    logs: list[tuple[int, AttemptLog]] = []
    is_bad = False
    with arguments.file.open("rb") as file:
        for number, log in read_logs(file):
            if isinstance(log, str):
                print(f"{arguments.file}, line {number}: {log}", file=sys.stderr)
                is_bad = True
            else:
                logs.append((number, log))
    if arguments.html is not None:
        if arguments.html.exists() and arguments.html.samefile(arguments.file):
            msg = f"--html {arguments.html} is the file of the logs: give another one"
            raise ValueError(msg)
        arguments.html.write_text(trace_page(logs), encoding="utf-8")
        print(f"{len(logs):,} call{'s' * (len(logs) != 1)} in {arguments.html}")
        return int(is_bad)
    show: Any = print
    if _MISSING != "rich" and (console := Console(highlight=False)).encoding == "utf-8":
        show = console.print
    for number, log in logs:
        print(f"line {number}")
        show(log)
    print(AttemptLog.summarize(log for _, log in logs))
    return int(is_bad)


def _status(arguments: argparse.Namespace) -> int:
    console, seconds = Console(), arguments.watch
    store = RedisStore(arguments.store, namespace=arguments.namespace)
    with contextlib.closing(store), contextlib.suppress(KeyboardInterrupt):
        if seconds is None:
            return _show_status(store, console)
        if not 0 < seconds <= _LONGEST_WATCH:
            msg = f"--watch must be seconds above 0, not {seconds:g}"
            raise ValueError(msg)
        while True:
            console.clear()
            _show_status(store, console)
            SYSTEM_CLOCK.sleep(seconds)
    return 0


def _show_status(store: RedisStore, console: rich.Console) -> int:
    """Print what is shared; 1 if the store does not answer."""
    try:
        scopes = store.snapshot()
    except Exception as error:  # noqa: BLE001 - of any client's library
        said = f"{store!r} does not answer: {one_line(str(error), _LONGEST_LINE)}"
        console.print(said, style="red", markup=False)
        return 1
    table = Table()
    for heading in ("kind", "name", "state", "processes"):
        table.add_column(heading, overflow="fold")
    for scope in scopes:
        facts = {
            name: f"{value:g}" if isinstance(value, float) else value
            for name, value in scope.facts.items()
        }
        state = "\n".join(
            _cell(f"{name.replace('_', ' ')}: {value}") for name, value in facts.items()
        )
        if scope.kind == "breaker":
            state = _breaker_state(scope.facts)
        count = str(len(scope.processes)) if scope.processes else ""
        table.add_row(_cell(scope.kind), _cell(scope.name), state, count)
    console.print(f"{store!r}", markup=False, highlight=False)
    console.print(table if scopes else "nothing was used within an hour")
    return 0


def _cell(value: Any) -> str:
    """What other processes have written, in one line, without rich's markup."""
    return escape(one_line(str(value), _LONGEST_LINE))


def _breaker_state(facts: dict[str, Any]) -> str:
    colour = {"closed": "green", "open": "red"}.get(facts["state"], "yellow")
    until = datetime.now().astimezone() + timedelta(seconds=facts["open_for"])
    lease = f"{facts['lease_for']:.1f} s"
    said = {
        "open_for": f"for {facts['open_for']:.1f} s, until {until:%H:%M:%S}",
        "why": f"because of {_cell(facts['why'])}",
        "by": f"by {_cell(facts['by'])}",
        "paused_for": f"requests wait for {facts['paused_for']:.1f} s",
        "prober": f"probed by {_cell(facts['prober'])} ({lease} left)",
        "votes": f"votes to open it: {_cell(', '.join(facts['votes']))}",
    }
    parts = [text for name, text in said.items() if facts[name]]
    return "\n".join([f"[{colour}]{_cell(facts['state'])}[/]", *parts])


# The demo.

_OK = "[green]ok[/]"
_WIDE = 110  # columns, for lines with the provider's error messages
_NO_KEY = SecretStr("no-key-needed")
_POLICY = RetryPolicy(
    max_retries=4, initial_delay=0.3, max_delay=1.0, max_retry_after=5.0
)
# Neither the machine's proxy nor its traces have to do with the demo's gateway.
_ALONE = {"no_proxy": "*", "NO_PROXY": "*", "LANGSMITH_TRACING_V2": "false"}
_MODELS = [
    GPTRouterModel(name="gpt-4o", provider_name="chat_openai"),
    GPTRouterModel(name="claude-sonnet", provider_name="anthropic"),
]


class _Reporter(BaseCallbackHandler):
    """Prints what LangChain's callbacks report, and collects a table of the calls."""

    def __init__(self, console: rich.Console) -> None:
        self.title = ""
        self.rows: dict[UUID, list[str]] = {}
        self.logs: list[AttemptLog] = []
        self._console = console

    def on_chat_model_start(self, *_: Any, run_id: UUID, **__: Any) -> None:
        self.rows[run_id] = [f"{len(self.rows) + 1}. {self.title}"]

    on_llm_start = on_chat_model_start

    def on_retry(self, retry_state: RetryCallState, *, run_id: UUID, **_: Any) -> None:
        error = retry_state.outcome.exception() if retry_state.outcome else None
        action = retry_state.next_action
        if not isinstance(error, RetryRouterError) or action is None:
            return
        fault = error.kind.replace("_", " ")
        if error.retry_after is not None:
            fault = f"{fault} (Retry-After {error.retry_after:g})"
        outcome = f"[red]{fault:<28}[/] [yellow]waits {action.sleep:.2f} s[/]"
        attempt = retry_state.attempt_number
        self._print(run_id, attempt, error.route, outcome, error.message)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:
        log, generation = AttemptLog(response), response.generations[0][0]
        message, output = getattr(generation, "message", None), response.llm_output
        usage = message.usage_metadata if message else (output or {})["token_usage"]
        self.logs.append(log)
        count, model = len(log.attempts), str(log.route)
        waited, tokens = f"{log.waited:.2f} s", str(usage["total_tokens"])
        self.rows[run_id] += [str(count), waited, model, tokens]
        self._print(run_id, count, model, _OK, generation.text)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        if isinstance(error, RetryRouterError):
            count, name = error.attempts, f"[red]{type(error).__name__}[/]"
            self.rows[run_id] += [str(count), "0.00 s", "[red]interrupted[/]", "-"]
            self._print(run_id, count, error.route, name, error.message)

    def _print(
        self, run_id: UUID, attempt: int, route: str | None, outcome: str, text: str
    ) -> None:
        call = self.rows[run_id][0].partition(".")[0]
        line = f"  call {call}  attempt {attempt}  [cyan]{(route or '-')[:13]:<13}[/]"
        line = f"{line}  {outcome}"
        if outcome == _OK or self._console.width >= _WIDE:
            line = f"{line}  [dim]{escape(' '.join(text.split()))}[/]"
        self._console.print(line, highlight=False, no_wrap=True, overflow="ellipsis")


def run_demo(_arguments: argparse.Namespace) -> None:
    """Print the calls as they happen, a table of their attempts, and a timeline."""
    os.environ.update(_ALONE)
    console = Console()
    with testing.FaultyGateway(gptrouter="hosted") as gateway:
        console.print(
            f"A gateway that misbehaves on purpose listens at [b]{gateway.url}[/]."
            " No key, no other network.\n"
            f"The policy: {_POLICY.explain()}.\n"
            "The chain: prompt | GPTRouter | parser, with two models to ask.",
            highlight=False,
        )
        reporter = _Reporter(console)
        config: RunnableConfig = {"callbacks": [reporter]}

        def begin(title: str, *steps: Step) -> None:
            console.print(f"\n[b]{escape(title)}[/]", highlight=False)
            reporter.title = title
            gateway.script(*steps)

        llm = GPTRouter(
            models_priority_list=_MODELS,
            gpt_router_api_base=gateway.url,
            gpt_router_api_key=_NO_KEY,
            retry_policy=_POLICY,
        )
        prompt = ChatPromptTemplate.from_template("What is the capital of {country}?")
        chain = prompt | llm | StrOutputParser()
        limited = testing.Status(429, {"retry-after": "1"})
        down, reset = testing.Status(503), testing.Reset()
        begin("chain.invoke", limited, reset, down, testing.Answer("It is Paris."))
        chain.invoke({"country": "France"}, config)
        slow_down = testing.ErrorEvent("429 slow down")
        begin("chain.stream", testing.Cut(0), slow_down, testing.Answer("It is Rome."))
        for _ in chain.stream({"country": "Italy"}, config):
            pass
        begin("chain.stream, cut after its third token", testing.Cut(3))
        # Half an answer is an error; `on_llm_error` reports it.
        with contextlib.suppress(StreamInterruptedError):
            for _ in chain.stream({"country": "Spain"}, config):
                pass
        begin("chain.abatch", down, reset, testing.Status(500))
        countries = [{"country": name} for name in ("Peru", "Ghana", "Japan")]
        asyncio.run(chain.abatch(countries, config))
        limited = testing.Status(429, {"retry-after-ms": "400"})
        begin("OpenAI.invoke", limited, reset, testing.Answer("It is Oslo."))
        openai = OpenAI(
            model="gpt-3.5-turbo-instruct",
            base_url=gateway.openai_url,
            api_key=_NO_KEY,
            retry_policy=_POLICY,
        )
        openai.invoke("What is the capital of Norway?", config)
        rows, requests = reporter.rows.values(), len(gateway.requests)
    table = Table(title=f"{len(rows)} calls, {requests} requests", title_justify="left")
    table.add_column("call")
    for heading in ("attempts", "waited", "served by", "tokens"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print()
    console.print(table)
    console.print("\nThe first call, as `AttemptLog` shows it:", highlight=False)
    console.print(reporter.logs[0])


if __name__ == "__main__":
    sys.exit(main())
