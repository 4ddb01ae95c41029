"""What `retryrouter demo` shows: real LangChain calls over real HTTP, and their faults.

A `FaultyGateway` on the loopback plays the providers. Nothing is faked on our side: the
lines come from LangChain's own callbacks, the table from the ledgers of the answers.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import LLMResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import SecretStr
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tenacity import RetryCallState

from langchain_retryrouter import (
    GPTRouter,
    GPTRouterModel,
    OpenAI,
    RetryPolicy,
    RetryRouterError,
    StreamInterruptedError,
)
from langchain_retryrouter._version import __version__
from langchain_retryrouter.testing import (
    Answer,
    Cut,
    ErrorEvent,
    FaultyGateway,
    Reset,
    Status,
)

if TYPE_CHECKING:
    from langchain_retryrouter.testing import Step


_STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code.

    Args:
        argv: Arguments without the program's name; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except ModuleNotFoundError as error:
        if error.name not in {"rich", "h11"}:
            raise
        print(
            f"`retryrouter {arguments.command}` needs {error.name!r}:"
            ' pip install "langchain-retryrouter[cli]"',
            file=sys.stderr,
        )
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="retryrouter",
        description="LangChain's language models, surviving misbehaving providers.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser(
        "demo", help="real calls through real faults, no key needed"
    )
    demo.set_defaults(run=_demo)

    gateway = commands.add_parser(
        "gateway", help="run a gateway that misbehaves on cue"
    )
    gateway.add_argument("--port", type=int, default=0, help="0 for any free port")
    gateway.add_argument(
        "--script",
        default="",
        metavar="STEPS",
        help="what the first requests get, such as 429,reset,503,cut:3,stall:2,ok",
    )
    gateway.set_defaults(run=_gateway)

    explain = commands.add_parser("explain", help="the worst case of a retry policy")
    explain.add_argument("--max-retries", type=int, default=2)
    explain.add_argument("--initial-delay", type=float, default=1.5, metavar="SECONDS")
    explain.add_argument("--max-delay", type=float, default=8.0, metavar="SECONDS")
    explain.add_argument("--backoff-factor", type=float, default=2.0)
    explain.add_argument(
        "--max-retry-after", type=float, default=60.0, metavar="SECONDS"
    )
    explain.add_argument("--deadline", type=float, default=None, metavar="SECONDS")
    explain.add_argument(
        "--attempt-timeout", type=float, default=None, metavar="SECONDS"
    )
    explain.set_defaults(run=_explain)
    return parser


def _demo(_arguments: argparse.Namespace) -> int:
    from rich.console import Console  # noqa: PLC0415 - an extra

    run_demo(Console())
    return 0


def _gateway(arguments: argparse.Namespace) -> int:
    from langchain_retryrouter.testing import FaultyGateway

    try:
        steps = [_read_step(word) for word in arguments.script.split(",") if word]
    except ValueError as error:
        print(f"retryrouter gateway: {error}", file=sys.stderr)
        return 2
    # Before the address is told: whoever reads it may send the signal at once.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    with FaultyGateway(port=arguments.port, keep_requests=0) as gateway:
        gateway.script(*steps)
        print(f"GPTRouter  {gateway.url}\nOpenAI     {gateway.openai_url}", flush=True)
        signal.sigwait(_STOP_SIGNALS)
    return 0


def _read_step(word: str) -> Step:
    from langchain_retryrouter import testing

    name, _, amount = word.strip().partition(":")
    if name.isdigit():
        headers = {"retry-after": amount} if amount else None
        return testing.Status(int(name), headers)
    count = int(amount) if amount else 0
    known: dict[str, Step] = {
        "ok": testing.Answer(),
        "reset": testing.Reset(),
        "hangup": testing.Hangup(),
        "html": testing.HtmlPage(),
        "silence": testing.Silence(count or 120),
        "slow": testing.SlowFirstToken(count or 20),
        "stall": testing.Stall(count, 30),
        "cut": testing.Cut(count),
        "truncate": testing.Truncate(count),
        "malformed": testing.MalformedEvent(count or 1),
    }
    if name not in known:
        msg = (
            f"{word!r} is no step; say a status such as 429 or 429:2 (Retry-After), or"
            f" one of {', '.join(known)} (some take a number, as in cut:3)"
        )
        raise ValueError(msg)
    return known[name]


def _explain(arguments: argparse.Namespace) -> int:
    from langchain_retryrouter.retry import RetryPolicy

    try:
        policy = RetryPolicy(
            max_retries=arguments.max_retries,
            initial_delay=arguments.initial_delay,
            max_delay=arguments.max_delay,
            backoff_factor=arguments.backoff_factor,
            max_retry_after=arguments.max_retry_after,
            deadline=arguments.deadline,
        )
    except ValueError as error:
        print(f"retryrouter explain: {error}", file=sys.stderr)
        return 2
    for retry in range(1, policy.max_attempts):
        print(f"before retry {retry}: up to {policy.backoff(retry):.2f} s")
    print(f"{policy.explain(arguments.attempt_timeout)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())


_OK = "[green]ok[/]"
_WIDE = 110  # Columns from which on the provider's own words have room.
_POLICY = RetryPolicy(
    max_retries=4, initial_delay=0.3, max_delay=1.0, max_retry_after=5.0
)
_MODELS = [
    GPTRouterModel(name="gpt-4o", provider_name="chat_openai"),
    GPTRouterModel(name="claude-sonnet", provider_name="anthropic"),
]


@dataclass
class _Row:
    """One line of the closing table."""

    call: str
    attempts: int = 0
    waited: float = 0.0
    served_by: str = "-"
    tokens: str = "-"

    def read(self, attempt_log: dict[str, Any]) -> None:
        attempts = attempt_log["attempts"]
        self.attempts = len(attempts)
        self.waited = sum(attempt["wait"] for attempt in attempts)


class _Reporter(BaseCallbackHandler):
    """Prints what LangChain's callbacks report, and remembers it for the table."""

    def __init__(self, console: Console) -> None:
        self.rows: list[_Row] = []
        self.title = ""
        self._console = console
        self._runs: dict[UUID, _Row] = {}
        self._names = itertools.count(1)

    def on_chat_model_start(self, *_: Any, run_id: UUID, **__: Any) -> None:
        self._begin(run_id)

    def on_llm_start(self, *_: Any, run_id: UUID, **__: Any) -> None:
        self._begin(run_id)

    def on_retry(self, retry_state: RetryCallState, *, run_id: UUID, **_: Any) -> None:
        row = self._runs[run_id]
        error = retry_state.outcome.exception() if retry_state.outcome else None
        action = retry_state.next_action
        if not isinstance(error, RetryRouterError) or action is None:
            return
        asked = (
            "" if error.retry_after is None else f" (Retry-After {error.retry_after:g})"
        )
        fault = f"{error.kind.replace('_', ' ')}{asked}"
        self._line(
            row,
            retry_state.attempt_number,
            error.route,
            f"[red]{fault:<28}[/] [yellow]waits {action.sleep:.2f} s[/]",
            error.message,
        )

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:
        row = self._runs[run_id]
        generation = response.generations[0][0]
        message = getattr(generation, "message", None)
        facts = response.llm_output or {}
        if message is not None:
            facts = {**facts, **message.response_metadata}
        row.read(facts["retryrouter"])
        row.served_by = str(facts["model_name"])
        row.tokens = _tokens(facts, message)
        self._line(row, row.attempts, row.served_by, _OK, generation.text)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        row = self._runs[run_id]
        if isinstance(error, RetryRouterError):
            row.attempts = error.attempts
            row.served_by = "[red]interrupted[/]"
            text = f"[red]{type(error).__name__}[/]"
            self._line(row, error.attempts, error.route, text, error.message)

    def _begin(self, run_id: UUID) -> None:
        row = _Row(f"{next(self._names)}. {self.title}")
        self.rows.append(row)
        self._runs[run_id] = row

    def _line(
        self, row: _Row, number: int, route: str | None, what: str, said: str
    ) -> None:
        call = row.call.partition(".")[0]
        wide = self._console.width >= _WIDE
        quote = (
            f"  [dim]{escape(' '.join(said.split()))}[/]" if wide or what == _OK else ""
        )
        self._console.print(
            f"  call {call}  attempt {number}"
            f"  [cyan]{(route or '-')[:13]:<13}[/]  {what}"
            f"{quote}",
            highlight=False,
            no_wrap=True,
            overflow="ellipsis",
        )


def run_demo(console: Console) -> None:
    """Show the calls, live, and a table of what they took."""
    with FaultyGateway() as gateway:
        console.print(
            f"A gateway that misbehaves on purpose listens at [b]{gateway.url}[/]."
            " No key, no other network.\n"
            f"The policy: {_POLICY.explain()}.\n"
            "The chain: prompt | GPTRouter | parser, with two models to ask.\n",
            highlight=False,
        )
        reporter = _Reporter(console)
        for title, scene in _SCENES:
            console.print(f"[b]{escape(title)}[/]", highlight=False)
            reporter.title = title
            scene(gateway, reporter)
            console.print()
        console.print(_table(reporter.rows, len(gateway.requests)))


def _chain(gateway: FaultyGateway) -> Runnable[dict[str, str], str]:
    llm = GPTRouter(
        models_priority_list=_MODELS,
        gpt_router_api_base=gateway.url,
        gpt_router_api_key=SecretStr("no-key-needed"),
        retry_policy=_POLICY,
    )
    prompt = ChatPromptTemplate.from_template("What is the capital of {country}?")
    return prompt | llm | StrOutputParser()


def _watched(reporter: _Reporter) -> RunnableConfig:
    return {"callbacks": [reporter]}


def _invoke(gateway: FaultyGateway, reporter: _Reporter) -> None:
    gateway.script(
        Status(429, {"retry-after": "1"}), Reset(), Status(503), Answer("It is Paris.")
    )
    _chain(gateway).invoke({"country": "France"}, _watched(reporter))


def _stream(gateway: FaultyGateway, reporter: _Reporter) -> None:
    gateway.script(Cut(0), ErrorEvent("429 slow down"), Answer("It is Rome."))
    for _ in _chain(gateway).stream({"country": "Italy"}, _watched(reporter)):
        pass


def _lost_stream(gateway: FaultyGateway, reporter: _Reporter) -> None:
    gateway.script(Cut(3))
    try:
        for _ in _chain(gateway).stream({"country": "Spain"}, _watched(reporter)):
            pass
    except StreamInterruptedError:
        return  # Reported by `on_llm_error`: a truncated answer is no answer.


def _batch(gateway: FaultyGateway, reporter: _Reporter) -> None:
    gateway.script(Status(503), Reset(), Status(500))
    countries = [{"country": name} for name in ("Peru", "Ghana", "Japan")]
    asyncio.run(_chain(gateway).abatch(countries, _watched(reporter)))


def _openai(gateway: FaultyGateway, reporter: _Reporter) -> None:
    gateway.script(
        Status(429, {"retry-after-ms": "400"}), Reset(), Answer("It is Oslo.")
    )
    llm = OpenAI(
        model="gpt-3.5-turbo-instruct",
        base_url=gateway.openai_url,
        api_key=SecretStr("no-key-needed"),
        retry_policy=_POLICY,
    )
    llm.invoke("What is the capital of Norway?", _watched(reporter))


_SCENES: list[tuple[str, Callable[[FaultyGateway, _Reporter], None]]] = [
    ("chain.invoke", _invoke),
    ("chain.stream", _stream),
    ("chain.stream, cut after its third token", _lost_stream),
    ("chain.abatch", _batch),
    ("OpenAI.invoke", _openai),
]


def _table(rows: list[_Row], requests: int) -> Table:
    table = Table(title=f"{len(rows)} calls, {requests} requests", title_justify="left")
    for heading in ("call", "attempts", "waited", "served by", "tokens"):
        table.add_column(heading, justify="left" if heading == "call" else "right")
    for row in rows:
        table.add_row(
            row.call,
            str(row.attempts),
            f"{row.waited:.2f} s",
            row.served_by,
            row.tokens,
        )
    return table


def _tokens(facts: dict[str, Any], message: Any) -> str:
    usage = getattr(message, "usage_metadata", None)
    total = usage["total_tokens"] if usage else None
    if total is None:
        total = (facts.get("token_usage") or {}).get("total_tokens")
    return "-" if total is None else str(total)
